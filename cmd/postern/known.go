package main

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/known"
)

func (c *cli) knownCommand() *cobra.Command {
	var f known.Filter
	cmd := &cobra.Command{
		Use: "known", Short: "who our users write to: what comes back from there is not greylisted",
		Long: "Entries are of two kinds: correspondent (a user of ours and an address outside) and domain (a domain\n" +
			"of ours and one outside, with how many users have written there).\n" +
			"--user and --with match a part of the address, without regard to case.",
		Args: cobra.NoArgs,
	}
	filters := func(sub *cobra.Command) *cobra.Command {
		sub.Flags().StringVar(&f.User, "user", "", "part of our user's address, or of our domain")
		sub.Flags().StringVar(&f.With, "with", "", "part of the address or domain outside")
		return sub
	}
	list := filters(&cobra.Command{
		Use: "list", Short: "list entries", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := c.listKnown(cmd, f)
			return err
		},
	})
	list.Flags().StringVar(&f.Kind, "kind", "", "only correspondent or domain")
	list.Flags().IntVar(&f.Limit, "limit", 1000, "most entries to list; 0: all")
	show := &cobra.Command{
		Use: "show TEXT", Short: "list the entries in which TEXT occurs on either side", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := c.listKnown(cmd, known.Filter{User: args[0]})
			if err != nil {
				return err
			}
			m, err := c.listKnown(cmd, known.Filter{With: args[0]})
			if err == nil && n+m == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no entry holds", adminapi.Printable(args[0]))
				err = errSaid
			}
			return err
		},
	}
	all := false
	forget := filters(&cobra.Command{
		Use: "forget", Short: "remove entries; the next message to them is learned again", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			n, err := known.Admin{Client: cl}.Forget(cmd.Context(), f, all)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), known.Changed{Entries: n}, func(w io.Writer) { fmt.Fprintln(w, n, "entries forgotten") })
		},
	})
	forget.Flags().BoolVar(&all, "all", false, "everything, when no filter is given")
	forget.Flags().StringVar(&f.Kind, "kind", "", "only correspondent or domain")
	stats := &cobra.Command{
		Use: "stats", Short: "count entries", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			s, err := known.Admin{Client: cl}.Stats(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), s, func(w io.Writer) {
				fmt.Fprintf(w, "correspondents  %d of at most %d; %d users, the most of one is %d\n", s.Correspondents, s.Max, s.Users, s.MostOfOne)
				fmt.Fprintf(w, "domains         %d written to, %d known as a whole\n", s.Domains, s.KnownDomains)
				fmt.Fprintf(w, "expected        %d\n", s.Expected)
			})
		},
	}
	cmd.AddCommand(list, show, forget, stats, c.knownLearnCommand())
	return cmd
}

func (c *cli) listKnown(cmd *cobra.Command, f known.Filter) (n int, err error) {
	cl, err := c.client()
	if err != nil {
		return 0, err
	}
	w := cmd.OutOrStdout()
	if c.json {
		err = known.Admin{Client: cl}.List(cmd.Context(), f, func(e known.Entry) bool {
			n++
			return writeJSON(w, e) == nil
		})
		return n, err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	now := time.Now()
	err = known.Admin{Client: cl}.List(cmd.Context(), f, func(e known.Entry) bool {
		if n == 0 {
			fmt.Fprintln(tw, "KIND\tUSER\tWRITES TO\tSINCE\tLAST\tKNOWN")
		}
		n++
		says, last := "yes", adminapi.Ago(now, e.Last)
		if e.Kind == known.KindDomain {
			last = e.Last.Format(time.DateOnly) // no more is known
			says = fmt.Sprintf("%d users", e.Users)
			if !e.Known {
				says = "no, " + says
			}
		}
		_, err := fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", e.Kind, adminapi.Printable(e.User), adminapi.Printable(e.With), adminapi.Ago(now, e.First), last, says)
		return err == nil
	})
	return n, errors.Join(err, tw.Flush())
}

// learned is what `postern known learn` reports.
type learned struct {
	known.LogSeen
	known.Taken
}

func (c *cli) knownLearnCommand() *cobra.Command {
	var logs []string
	var networks []string
	local := true
	cmd := &cobra.Command{
		Use: "learn --log FILE... [FILE...]", Short: "learn from Postfix's log whom our users have written to",
		Long: "Reads mail logs, gzip'd ones too, - for standard input; the oldest first, so that a message that\n" +
			"stands in two of them is understood. What came by a login, from the host itself or from own_networks\n" +
			"and was sent by SMTP is learned. Automatic answers cannot be told from a log.",
		Example: "  postern known learn --log /var/log/mail.log.2.gz /var/log/mail.log.1 /var/log/mail.log\n" +
			"  journalctl -u 'postfix*' -o short-iso | postern known learn --log -",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			files := append(logs, args...)
			if len(files) == 0 {
				return errors.New("say which log: --log FILE, or - for standard input")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			api := known.Admin{Client: cl}
			set, err := api.Settings(cmd.Context())
			if err != nil {
				return err
			}
			r := &known.LogReader{Networks: set.OwnNetworks, Logins: set.Authenticated, Local: local, Now: time.Now()}
			for _, text := range networks {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return fmt.Errorf("--network %s: %w", text, err)
				}
				r.Networks = append(r.Networks, p.Masked())
			}
			out, err := learnLogs(cmd, api, r, files)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), out, func(w io.Writer) { writeLearned(w, &out) })
		},
	}
	cmd.Flags().StringArrayVar(&logs, "log", nil, "a log; more may follow as arguments")
	cmd.Flags().StringArrayVar(&networks, "network", nil, "a network whose mail is our users', besides known.own_networks")
	cmd.Flags().BoolVar(&local, "local", true, "take mail of this host (sendmail command) for our users'")
	return cmd
}

// learnLogs reads the files and hands over what they tell.
func learnLogs(cmd *cobra.Command, api known.Admin, r *known.LogReader, files []string) (out learned, err error) {
	var batch []known.Written
	var failed error
	flush := func() bool {
		if len(batch) == 0 {
			return true
		}
		var t known.Taken
		t, failed = api.Learn(cmd.Context(), batch)
		out.Add(t)
		batch = batch[:0]
		return failed == nil
	}
	for _, name := range files {
		err := readLog(cmd, name, func(in io.Reader) error {
			return r.Read(in, func(w known.Written) bool {
				batch = append(batch, w)
				return len(batch) < known.MaxBatch || flush()
			})
		})
		if err = errors.Join(failed, err); err != nil {
			return out, fmt.Errorf("%s: %w", name, err)
		}
	}
	flush()
	out.LogSeen = r.Seen
	return out, failed
}

// readLog opens a log, gzip'd or not.
func readLog(cmd *cobra.Command, name string, read func(io.Reader) error) error {
	var in io.Reader = cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return errors.Unwrap(err)
		}
		defer f.Close() //nolint:errcheck // only read
		in = f
	}
	b := bufio.NewReaderSize(in, 64<<10)
	if magic, _ := b.Peek(2); len(magic) == 2 && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(b)
		if err != nil {
			return err
		}
		return read(z)
	}
	return read(b)
}

func writeLearned(w io.Writer, l *learned) {
	fmt.Fprintf(w, "%d lines, %d of them in a form that is not known\n", l.Lines, l.Unread)
	fmt.Fprintf(w, "%d messages of our users, %d of others\n", l.Messages, l.Strangers)
	fmt.Fprintf(w, "%d deliveries by SMTP: %d new correspondents, %d known for longer, %d nothing new\n", l.Sent, l.Added, l.Refreshed, l.Known)
	for _, n := range []struct {
		n    int
		text string
	}{
		{l.PassedOver, "not learned: no correspondence of two people, or none of own_domains"},
		{l.TooOld, "not learned: written longer ago than known.keep"},
		{l.NoRoom, "not learned: there are known.max_entries correspondents"},
		{l.NotSent, "were deferred or bounced"},
		{l.Forgotten, "messages were given up: too many at once"},
	} {
		if n.n > 0 {
			fmt.Fprintln(w, n.n, n.text)
		}
	}
}

// expectCommand is `postern greylist expect`.
func (c *cli) expectCommand() *cobra.Command {
	var to, from string
	var list, cancel bool
	d := conf.Duration(30 * time.Minute)
	cmd := &cobra.Command{
		Use: "expect", Short: "let mail that must come now past the greylist",
		Long: "Mail to an address, or to all of a domain (@example.org), is not delayed for a while: from an address,\n" +
			"from a domain and all below it, or from anybody. Everything else that judges mail still does. With\n" +
			"Redis it holds at all gateways.",
		Example: "  postern greylist expect --to ann@example.org --for 30m\n" +
			"  postern greylist expect --to ann@example.org --from shop.example\n" +
			"  postern greylist expect --list\n" +
			"  postern greylist expect --cancel --to ann@example.org",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			api := known.Admin{Client: cl}
			for _, name := range []string{"kind", "who", "sender", "recipient"} { // of the other sub-commands
				if cmd.Flags().Changed(name) {
					return fmt.Errorf("--%s is for entries of the greylist; here it is --to and --from", name)
				}
			}
			switch {
			case list && cancel:
				return errors.New("--list or --cancel, not both")
			case list:
				all, err := api.Expected(cmd.Context())
				if err != nil {
					return err
				}
				return c.show(cmd.OutOrStdout(), all, func(w io.Writer) { writeExpected(w, all, time.Now()) })
			case to == "":
				return errors.New("say who expects mail: --to ADDRESS")
			case cancel:
				n, err := api.Cancel(cmd.Context(), to, from)
				if err != nil {
					return err
				}
				return c.show(cmd.OutOrStdout(), known.Changed{Entries: n}, func(w io.Writer) { fmt.Fprintln(w, n, "cancelled") })
			}
			e, err := api.Expect(cmd.Context(), to, from, d.D())
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), e, func(w io.Writer) { fmt.Fprintln(w, "expected:", adminapi.Printable(e.String())) })
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "who expects it: an address, or @domain")
	cmd.Flags().StringVar(&from, "from", "", "from whom: an address, or a domain and all below it; default anybody")
	cmd.Flags().TextVar(&d, "for", d, "how long; at most known.max_expect")
	cmd.Flags().BoolVar(&list, "list", false, "show what is expected")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "end it: all of --to, or what is expected from --from")
	return cmd
}

func writeExpected(w io.Writer, all []known.Expected, now time.Time) {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing is expected")
		return
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "TO\tFROM\tENDS")
	for _, e := range all {
		from := e.From
		if from == "" {
			from = "anybody"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", adminapi.Printable(e.To), adminapi.Printable(from), adminapi.Until(now, e.Until))
	}
	_ = tw.Flush() // a terminal that is gone
}
