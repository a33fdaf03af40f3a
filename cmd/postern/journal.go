package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"postern/config"
	"postern/internal/adminapi"
	"postern/internal/reference"
	"postern/journal"
)

func (c *cli) journalCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "journal", Short: "past decisions: search them, and how much of them is kept", Args: cobra.NoArgs,
	}
	cmd.AddCommand(c.journalSearchCommand(), c.journalStatusCommand())
	return cmd
}

// filterFlags adds the flags of a filter to a command. The returned function
// completes the filter.
func filterFlags(cmd *cobra.Command, f *journal.Filter, times bool) func() error {
	flags := cmd.Flags()
	flags.StringVar(&f.Address, "address", "", "sender or recipient, the whole address; \"<>\" for the null sender")
	flags.StringVar(&f.Domain, "domain", "", "domain of sender or recipient, and all below it")
	flags.StringVar(&f.Client, "client", "", "IP address of the client, or a network")
	flags.StringVar(&f.QueueID, "queue-id", "", "Postfix's queue id")
	flags.StringVar(&f.Login, "login", "", "SASL login name")
	flags.StringVar(&f.Reference, "ref", "", "reference of the decision")
	flags.StringVar(&f.Reason, "reason", "", "reason, as in log and metrics: rbl-listed")
	flags.StringVar(&f.Check, "check", "", "check whose verdict it is, or would be without shadow mode")
	flags.StringVar(&f.Verdict, "verdict", "", "reject, defer, defer-if-permit, continue, ...; refused: all that refuse; would: what shadow mode kept from counting")
	var since, until string
	if times {
		flags.StringVar(&since, "since", "", "not before: how long ago (90m, 7d), a date, or date and time")
		flags.StringVar(&until, "until", "", "not after, likewise")
	}
	return func() (err error) {
		now := time.Now()
		if since != "" {
			if f.Since, err = journal.ParseTime(since, now); err != nil {
				return fmt.Errorf("--since: %w", err)
			}
		}
		if until != "" {
			if f.Until, err = journal.ParseTime(until, now); err != nil {
				return fmt.Errorf("--until: %w", err)
			}
		}
		return nil
	}
}

func (c *cli) journalSearchCommand() *cobra.Command {
	var f journal.Filter
	var complete func() error
	cmd := &cobra.Command{
		Use: "search", Short: "find past decisions, the newest first",
		Long: "All that is given must hold. Which decisions are kept, and for how long, says [journal] of the\n" +
			"configuration. While the daemon is down its files are read. With --json one decision a line.",
		Example: "  postern journal search --address ann@example.org --since 7d\n" +
			"  postern journal search --client 192.0.2.0/24 --verdict reject --json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := complete(); err != nil {
				return err
			}
			w := bufio.NewWriter(cmd.OutOrStdout())
			n := 0
			unread := 0
			var failed error
			err := c.searchJournal(cmd, &f, func(text json.RawMessage) bool {
				n++
				if c.json {
					_, _ = w.Write(text) // the writer keeps the error
					failed = w.WriteByte('\n')
					return failed == nil
				}
				r, err := journal.ReadRecord(text)
				if err != nil {
					unread++
					return true
				}
				writeLine(w, r)
				return true
			})
			err = errors.Join(err, failed, w.Flush())
			if unread > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "%d decisions cannot be read: another version has written them\n", unread)
			}
			if err == nil && n == 0 && !c.json {
				fmt.Fprintln(cmd.ErrOrStderr(), "no such decision is kept")
			}
			return err
		},
	}
	complete = filterFlags(cmd, &f, true)
	cmd.Flags().IntVar(&f.Limit, "limit", 100, "most decisions; 0: all")
	return cmd
}

func (c *cli) journalStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "files of the journal, their size and age, and what was lost", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			s, err := journal.Admin{Client: cl}.Status(cmd.Context())
			if errors.Is(err, adminapi.ErrNotRunning) {
				cfg := config.Peek(c.config)
				s, err = journal.StatusOf(&cfg.Journal, cfg.JournalDir())
			}
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), s, func(w io.Writer) { writeJournalStatus(w, &s, time.Now()) })
		},
	}
}

func writeJournalStatus(w io.Writer, s *journal.Status, now time.Time) {
	s.WriteStatus(w, now)
	if s.Dir == "" {
		return
	}
	if !s.Oldest.IsZero() {
		fmt.Fprintf(w, "          from %s to %s; kept for %s\n", s.Oldest.Local().Format("2006-01-02 15:04:05"), s.Newest.Local().Format("2006-01-02 15:04:05"), s.MaxAge)
	}
	if s.Offline {
		fmt.Fprintln(w, "          no daemon answers: this is what the files say")
		return
	}
	fmt.Fprintf(w, "          %d written since the start", s.Written)
	if !s.Flushed.IsZero() {
		fmt.Fprintf(w, ", the last %s ago", adminapi.Ago(now, s.Flushed))
	}
	fmt.Fprintln(w)
}

// journalFiles opens the journal's files of the configuration.
func (c *cli) journalFiles(cmd *cobra.Command) (*journal.Reader, error) {
	cfg := config.Peek(c.config)
	dir := cfg.JournalDir()
	if dir == "" {
		return nil, errors.New("no daemon answers, and the journal of this configuration writes no files")
	}
	r, err := journal.Open(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no daemon answers, and there is no journal in %s", dir)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("no daemon answers, and the journal cannot be read: %w (try as root)", err)
	case err != nil:
		return nil, err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "no daemon answers: the files in", dir, "are read")
	return r, nil
}

// findDecision returns the decision with a reference from the daemon or, when
// none runs, from its files.
func (c *cli) findDecision(cmd *cobra.Command, text string) (*journal.Record, error) {
	ref, err := reference.Parse(text)
	if err != nil {
		return nil, err
	}
	cl, err := c.client()
	if err != nil {
		return nil, err
	}
	rec, err := journal.Admin{Client: cl}.Decision(cmd.Context(), ref.String())
	if !errors.Is(err, adminapi.ErrNotRunning) || errors.Is(err, os.ErrPermission) {
		return rec, err
	}
	r, err := c.journalFiles(cmd)
	if err != nil {
		return nil, err
	}
	found, err := r.Find(cmd.Context(), ref)
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, fmt.Errorf("no decision %s in the journal", ref)
	}
	return found[0], nil
}

// searchJournal searches with the daemon or, when none runs, in its files.
func (c *cli) searchJournal(cmd *cobra.Command, f *journal.Filter, yield func(json.RawMessage) bool) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	err = journal.Admin{Client: cl}.SearchJSON(cmd.Context(), f, yield)
	if !errors.Is(err, adminapi.ErrNotRunning) || errors.Is(err, os.ErrPermission) {
		return err
	}
	r, err := c.journalFiles(cmd)
	if err != nil {
		return err
	}
	seen, err := r.SearchJSON(cmd.Context(), f, yield)
	if seen.Broken > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%d places in the files could not be read\n", seen.Broken)
	}
	return err
}
