package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"postern/app"
	"postern/config"
	"postern/internal/adminapi"
	"postern/journal"
	"postern/replay"
	"postern/resolver"
)

// replayOptions are the flags of `postern replay`.
type replayOptions struct {
	old      string
	requests []string
	logs     []string
	live     bool
	since    string
	until    string
	journal  string
	samples  int
	most     string
}

func (c *cli) replayCommand() *cobra.Command {
	var o replayOptions
	cmd := &cobra.Command{
		Use:   "replay --config NEW",
		Short: "decide past requests by another configuration, and show what would change",
		Long: "Decides requests of the past by the configuration of --config and by the present one (--old), each with\n" +
			"an empty state of its own and the clock of the requests, and prints the differences. Nothing is asked,\n" +
			"written or sent. Without --log or --requests they are those of the journal ([journal] keep = \"all\"). What DNS and next hops said is taken from where the requests are from, or supposed to be\n" +
			"such that nothing speaks against them; --live-dns asks for what is not recorded.\n\n" +
			"A mail log tells less than the daemon's own records: of accepted mail it has no HELO, which is\n" +
			"supposed to be the client's name; of refused mail no login; of neither TLS or what content has led to.\n\n" +
			"Exit status 0: no more has changed than --fail-over allows; 1: more has.",
		Example: "  postern replay --config new.toml --since 2d\n" +
			"  postern replay --config new.toml --log /var/log/mail.log.1 --log /var/log/mail.log\n" +
			"  postern replay --config new.toml --requests requests.txt --fail-over 0.1%",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := c.replay(cmd, &o)
			if err != nil {
				return err
			}
			if err := c.show(cmd.OutOrStdout(), report, func(w io.Writer) { writeReplay(w, report) }); err != nil {
				return err
			}
			if o.most == "" {
				return nil
			}
			limit, _ := replay.ParseThreshold(o.most) // it has been read
			if limit.Exceeded(report) {
				fmt.Fprintf(cmd.ErrOrStderr(), "%d of %d requests are decided differently, more than %s\n", report.Changed, report.Requests, o.most)
				return errSaid
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.old, "old", config.DefaultPath, "the present configuration")
	f.StringArrayVar(&o.requests, "requests", nil, "file of requests as Postfix sends them to a policy server, - for standard input")
	f.StringArrayVar(&o.logs, "log", nil, "Postfix's log, also gzip'd, oldest first; - for standard input")
	f.StringVar(&o.since, "since", "7d", "requests of the journal from this time on: 7d, 12h, or 2026-11-27T10:00")
	f.StringVar(&o.until, "until", "", "and up to this time")
	f.StringVar(&o.journal, "journal", "", "the journal's directory (default: that of --old)")
	f.BoolVar(&o.live, "live-dns", false, "ask DNS, now, for what is not recorded")
	f.IntVar(&o.samples, "samples", 5, "show this many requests of each change")
	f.StringVar(&o.most, "fail-over", "", "fail when more requests change than this: 100, or 0.5%")
	return cmd
}

func (c *cli) replay(cmd *cobra.Command, o *replayOptions) (*replay.Report, error) {
	if o.most != "" {
		if _, err := replay.ParseThreshold(o.most); err != nil {
			return nil, fmt.Errorf("--fail-over: %w", err)
		}
	}
	after, err := loadFor(cmd, c.config)
	if err != nil {
		return nil, err
	}
	before, err := loadFor(cmd, o.old)
	if err != nil {
		return nil, err
	}
	world := replay.NewWorld()
	if o.live {
		res, err := resolver.New(after.DNS, zap.NewNop(), prometheus.NewRegistry())
		if err != nil {
			return nil, err
		}
		defer res.Close()
		world.Live = res
	}
	run := &replay.Run{Samples: o.samples}
	deciders := [2]*app.Rehearsal{}
	for i, cfg := range []*config.Config{before, after} {
		facts := &app.Facts{DNS: world, Recipients: world.Recipient}
		if deciders[i], err = app.Rehearse(cfg, facts); err != nil {
			return nil, err
		}
		defer deciders[i].Close()
	}
	run.Before, run.After = deciders[0], deciders[1]
	if len(o.requests)+len(o.logs) == 0 {
		err = replayJournal(cmd, o, before, world, run)
	} else {
		err = replayFiles(cmd, o, world, run)
	}
	if err != nil {
		return nil, err
	}
	report := run.Report()
	report.Unrecorded = world.Unrecorded()
	return report, errors.Join(deciders[0].Err(), deciders[1].Err())
}

// replayJournal decides what the daemon has recorded.
func replayJournal(cmd *cobra.Command, o *replayOptions, old *config.Config, world *replay.World, run *replay.Run) error {
	dir := o.journal
	if dir == "" {
		if dir = old.JournalDir(); dir == "" {
			return errors.New("the present configuration keeps no journal; name where the requests are from: --journal, --log or --requests")
		}
	}
	reader, err := journal.Open(dir)
	if err != nil {
		return fmt.Errorf("the journal: %w", err)
	}
	past := replay.Past{Reader: reader, World: world, Skipped: run.Skip}
	now := time.Now()
	if past.Since, err = journal.ParseTime(o.since, now); err != nil {
		return fmt.Errorf("--since: %w", err)
	}
	if o.until != "" {
		if past.Until, err = journal.ParseTime(o.until, now); err != nil {
			return fmt.Errorf("--until: %w", err)
		}
	}
	if old.Journal.Keep != journal.KeepAll {
		fmt.Fprintln(cmd.ErrOrStderr(), `only what was refused is recorded; with [journal] keep = "all" all requests are`)
	}
	p := startProgress(cmd, "requests decided", 0)
	defer p.finish()
	return past.Each(cmd.Context(), func(it *replay.Item) error {
		p.add(1)
		run.Add(cmd.Context(), it)
		return cmd.Context().Err()
	})
}

// replayFiles decides what logs and files of requests tell.
func replayFiles(cmd *cobra.Command, o *replayOptions, world *replay.World, run *replay.Run) error {
	items, err := readItems(cmd, o)
	if err != nil {
		return err
	}
	if !o.live {
		for i := range items { // before the first: whose answer comes first must not count
			world.Suppose(items[i].Request)
		}
	}
	p := startProgress(cmd, "requests decided", len(items))
	defer p.finish()
	for i := range items {
		if err := cmd.Context().Err(); err != nil {
			return err
		}
		p.add(1)
		run.Add(cmd.Context(), &items[i])
	}
	return nil
}

// readItems reads the requests of all files.
func readItems(cmd *cobra.Command, o *replayOptions) (items []replay.Item, err error) {
	for _, name := range o.requests {
		start := time.Now()
		if st, err := os.Stat(name); err == nil {
			start = st.ModTime()
		}
		err := readLog(cmd, name, func(in io.Reader) error {
			return replay.ReadRequests(name, in, start.Truncate(time.Second), func(it replay.Item) bool {
				items = append(items, it)
				return true
			})
		})
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%s: %w", name, err)
		}
		if err != nil {
			return nil, err
		}
	}
	log := replay.Log{Now: time.Now()}
	for _, name := range o.logs {
		if err := readLog(cmd, name, log.Read); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	found := log.Items()
	if all, unread := log.Lines(); len(o.logs) > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%d requests in %d lines of the log", len(found), all)
		if unread > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "; %d lines are of no form that is known", unread)
		}
		if log.Dropped > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "; %d messages were too many", log.Dropped)
		}
		fmt.Fprintln(cmd.ErrOrStderr())
	}
	return append(items, found...), nil
}

// loadFor reads a configuration; what is wrong with it has been said.
func loadFor(cmd *cobra.Command, path string) (*config.Config, error) {
	cfg, _, err := config.Load(path)
	if err != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), err)
		return nil, errSaid
	}
	return cfg, nil
}

func writeReplay(w io.Writer, r *replay.Report) {
	if r.Requests == 0 {
		fmt.Fprintln(w, "no requests")
		return
	}
	fmt.Fprintf(w, "%d requests from %s to %s\n", r.Requests, r.From.Format("2006-01-02 15:04"), r.To.Format("2006-01-02 15:04"))
	fmt.Fprintf(w, "%d are decided alike, %d differently (%.2f %%)\n", r.Alike, r.Changed, 100*float64(r.Changed)/float64(r.Requests))
	for i := range r.Changes {
		c := &r.Changes[i]
		fmt.Fprintf(w, "\n%s -> %s: %d\n", c.From, c.To, c.Count)
		for _, by := range c.Causes {
			fmt.Fprintf(w, "  %6d  %s\n", by.Count, strings.TrimSpace(by.Check+" "+by.Reason))
		}
		for j := range c.Samples {
			writeSample(w, &c.Samples[j])
		}
	}
	fmt.Fprintln(w)
	if r.Known > 0 {
		fmt.Fprintf(w, "Of %d requests is known what came of them then; by the present configuration the same comes of %d (%.1f %%) here.\n",
			r.Known, r.AsThen, 100*float64(r.AsThen)/float64(r.Known))
		for _, change := range replay.Sorted(r.NotThen) {
			fmt.Fprintf(w, "  %6d  %s\n", r.NotThen[change], change)
		}
	}
	if r.Unrecorded > 0 {
		fmt.Fprintf(w, "%d DNS questions have no recorded answer; --live-dns asks them.\n", r.Unrecorded)
	}
	for _, why := range replay.Sorted(r.Skipped) {
		fmt.Fprintf(w, "%d passed over: %s\n", r.Skipped[why], why)
	}
}

func writeSample(w io.Writer, s *replay.Sample) {
	fmt.Fprintf(w, "          %s  %s  %s %s  %s -> %s\n", s.Time.Format("01-02 15:04:05"), s.Ref, s.Client, adminapi.Printable(s.Name),
		adminapi.Printable(orNull(s.Sender)), adminapi.Printable(s.Recipient))
	for _, o := range []struct {
		what string
		of   *replay.Outcome
	}{{"before", &s.Before}, {"after", &s.After}} {
		text := strings.TrimSpace(o.of.Check + " " + o.of.Reason)
		if text == "" {
			text = o.of.What
		}
		if o.of.Reply != "" {
			text += ": " + o.of.Reply
		}
		fmt.Fprintf(w, "              %-7s %s\n", o.what, adminapi.Printable(text))
	}
}

var _ replay.Decider = (*app.Rehearsal)(nil)
