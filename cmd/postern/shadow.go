package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/internal/adminapi"
	"postern/journal"
)

func (c *cli) shadowCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "shadow", Short: "what checks in shadow mode would have done", Args: cobra.NoArgs}
	cmd.AddCommand(c.shadowReportCommand())
	return cmd
}

func (c *cli) shadowReportCommand() *cobra.Command {
	var f journal.Filter
	var since, until string
	cmd := &cobra.Command{
		Use: "report", Short: "what checks in shadow mode would have done, and to whom",
		Long: "Adds up, from the journal, what checks, chains and the whole daemon in shadow mode would have done: how\n" +
			"often and why, how many nothing else refused, and how many came from somebody who is known as good:\n" +
			"one of our users (login), whom our users write to (correspondent), who had passed the greylist before (passed),\n" +
			"or who is on a list of ours (allowed). Samples come with references for `postern explain`.",
		Example: "  postern shadow report --since 7d\n" +
			"  postern shadow report --since 24h --check rbl --json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			now := time.Now()
			if f.Since, err = journal.ParseTime(since, now); err != nil {
				return fmt.Errorf("--since: %w", err)
			}
			if until != "" {
				if f.Until, err = journal.ParseTime(until, now); err != nil {
					return fmt.Errorf("--until: %w", err)
				}
			}
			r, err := c.shadowReport(cmd, f)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), r, func(w io.Writer) { writeShadow(w, r) })
		},
	}
	cmd.Flags().StringVar(&since, "since", "7d", "not before: how long ago (90m, 7d), a date, or date and time")
	cmd.Flags().StringVar(&until, "until", "", "not after, likewise")
	cmd.Flags().StringVar(&f.Check, "check", "", "only this check")
	return cmd
}

func (c *cli) shadowReport(cmd *cobra.Command, f journal.Filter) (*journal.ShadowReport, error) {
	cl, err := c.client()
	if err != nil {
		return nil, err
	}
	r, err := journal.Admin{Client: cl}.Shadow(cmd.Context(), &f)
	if !errors.Is(err, adminapi.ErrNotRunning) || errors.Is(err, os.ErrPermission) {
		return r, err
	}
	files, err := c.journalFiles(cmd)
	if err != nil {
		return nil, err
	}
	return journal.Shadow(cmd.Context(), files, f)
}

func writeShadow(w io.Writer, r *journal.ShadowReport) {
	const layout = "2006-01-02 15:04"
	to := "now"
	if !r.Until.IsZero() {
		to = r.Until.Local().Format(layout)
	}
	fmt.Fprintf(w, "from %s to %s: %d decisions in which shadow mode kept something from counting\n", r.Since.Local().Format(layout), to, r.Decisions)
	for _, c := range r.Checks {
		fmt.Fprintf(w, "\n%s would have acted in %d\n", c.Check, c.Decisions)
		for _, n := range c.Would {
			fmt.Fprintf(w, "  %8d  %s (%s)\n", n.Count, n.Action, n.Reason)
		}
		fmt.Fprintf(w, "  %8d  of them nothing else refused\n", c.Alone)
		fmt.Fprintf(w, "  %8d  of them came from known good senders%s\n", c.Good, goodText(c.GoodBy))
		for _, s := range c.Samples {
			fmt.Fprintf(w, "    %s  %s  %s  %s -> %s  %s %s", s.Time.Local().Format(layout), s.Reference, s.Client,
				adminapi.Printable(orNull(s.Sender)), adminapi.Printable(s.Recipient), s.Action, s.Reason)
			if s.Good != "" {
				fmt.Fprintf(w, "  GOOD: %s", s.Good)
			}
			fmt.Fprintln(w)
		}
	}
}

func goodText(by map[string]int) string {
	var parts []string
	for _, why := range []string{journal.GoodLogin, journal.GoodCorrespondent, journal.GoodPassed, journal.GoodAllowed} {
		if n := by[why]; n > 0 {
			parts = append(parts, fmt.Sprint(why, " ", n))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
