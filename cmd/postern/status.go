package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/admin"
	"postern/list"
	"postern/policy"
	"postern/rbl"
	"postern/verify"
)

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "what runs, which lists are on or off and why, store and DNS health", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			st, err := cl.Status(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), st, func(w io.Writer) { writeStatus(w, &st, time.Now()) })
		},
	}
}

func writeStatus(w io.Writer, st *admin.Status, now time.Time) {
	fmt.Fprintf(w, "postern %s on %s, pid %d, up %s", st.Version, st.Hostname, st.PID, ago(now, st.Started))
	if st.Mode != policy.Enforce {
		fmt.Fprintf(w, ", the whole daemon in %s mode", st.Mode)
	}
	fmt.Fprintf(w, "\nconfig    %s, read %s ago\n", st.Config.Path, ago(now, st.Config.Loaded))
	if st.Config.Fault != "" {
		fmt.Fprintf(w, "          RELOAD REFUSED %s ago, the configuration above stays in force:\n", ago(now, st.Config.FaultAt))
		for line := range strings.Lines(st.Config.Fault) {
			fmt.Fprintf(w, "          %s\n", strings.TrimRight(line, "\n"))
		}
	}
	if len(st.Config.Restarts) > 0 {
		fmt.Fprintf(w, "          waits for a restart: %s\n", strings.Join(st.Config.Restarts, ", "))
	}
	fmt.Fprintf(w, "policy    %s; %d of %d connections, %d requests\n", strings.Join(st.Policy.Listen, ", "),
		st.Policy.Connections, st.Policy.Max, st.Policy.Requests)
	if len(st.Milter.Listen) > 0 {
		fmt.Fprintf(w, "milter    %s; %d of %d sessions, %d messages\n", strings.Join(st.Milter.Listen, ", "), st.Milter.Sessions, st.Milter.Max, st.Milter.Messages)
	}
	if len(st.Lookup.Listen) > 0 {
		fmt.Fprintf(w, "lookup    %s; %d of %d connections, %d look-ups; tables: %s\n", strings.Join(st.Lookup.Listen, ", "),
			st.Lookup.Connections, st.Lookup.Max, st.Lookup.Lookups, strings.Join(st.Lookup.Maps, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(st.Chains)) {
		checks := make([]string, len(st.Chains[name]))
		for i, c := range st.Chains[name] {
			checks[i] = c.Check
			if c.Mode != policy.Enforce {
				checks[i] += " (" + c.Mode.String() + ")"
			}
		}
		fmt.Fprintf(w, "chain     %s: %s\n", name, strings.Join(checks, ", "))
	}
	writeStore(w, st, now)
	writeDNS(w, st, now)
	for _, kind := range []struct {
		name  string
		lists []list.Status
	}{{"allow", st.Access.Allow}, {"deny", st.Access.Deny}, {"tables", st.Access.Tables}, {"greylist exceptions", st.Greylist.Skipping}} {
		writeLists(w, kind.name, kind.lists, now)
	}
	writeTables(w, st, now)
	for i := range st.Provider {
		writeProvider(w, &st.Provider[i], now, "provider  ")
	}
	writeRBL(w, st.RBL, now)
	writeVerify(w, &st.Verify, now)
	fmt.Fprintf(w, "greylist  delay %v, %s; %d early retries can be answered from memory\n", st.Greylist.Delay, st.Greylist.When, st.Greylist.Hints)
	for _, warning := range st.Warnings {
		fmt.Fprintf(w, "warning   %s\n", warning)
	}
}

func writeStore(w io.Writer, st *admin.Status, now time.Time) {
	s := st.Store
	fmt.Fprintf(w, "store     %s %s: ", s.Kind, s.Where)
	if s.Healthy {
		fmt.Fprint(w, "healthy")
	} else {
		fmt.Fprint(w, "NOT USABLE")
	}
	if s.Entries > 0 {
		fmt.Fprintf(w, ", %d entries", s.Entries)
	}
	if s.Breaker != "" {
		fmt.Fprintf(w, ", breaker %s", s.Breaker)
	}
	if !s.Flushed.IsZero() {
		fmt.Fprintf(w, ", written %s ago in %s", ago(now, s.Flushed), tidy(s.FlushTook))
	}
	fmt.Fprintln(w)
	r := s.Room
	fmt.Fprintf(w, "          %d first contacts wait, %d fit in", r.Waiting, r.Most)
	if r.Pressed {
		fmt.Fprintf(w, "; FULL: at the present rate the oldest lives for %s", tidy(r.Lives))
	}
	if r.TooShort {
		fmt.Fprint(w, ", TOO SHORT for a retry")
	}
	fmt.Fprintln(w)
	if r.PushedOut > 0 || r.Unremembered > 0 {
		fmt.Fprintf(w, "          %d first contacts made room for others, %d passes could not be remembered\n", r.PushedOut, r.Unremembered)
	}
	if s.LastError != "" {
		fmt.Fprintf(w, "          last error %s ago: %s\n", ago(now, s.ErrorAt), s.LastError)
	}
}

func writeDNS(w io.Writer, st *admin.Status, now time.Time) {
	for _, s := range st.DNS.Servers {
		health := "healthy"
		if !s.Healthy {
			health = "NOT ANSWERING"
		}
		fmt.Fprintf(w, "dns       %s: %s, %d queries, %d failed, %s on average", s.Address, health, s.Queries, s.Failures, tidy(s.RTT))
		if s.LastError != "" {
			fmt.Fprintf(w, "; last error %s ago: %s", ago(now, s.LastErrorAt), s.LastError)
		}
		fmt.Fprintln(w)
	}
	d := st.DNS.Stats
	fmt.Fprintf(w, "          %d answers kept; %d look-ups from the cache, %d asked, %d stale; %d wait now\n", d.Entries, d.Hits, d.Misses, d.Stale, d.InFlight+d.Queued)
}

func writeLists(w io.Writer, kind string, lists []list.Status, now time.Time) {
	for _, l := range lists {
		fmt.Fprintf(w, "list      %s: %s: %d entries, %d hits", kind, l.Source, l.Entries, l.Hits)
		if l.Expired > 0 {
			fmt.Fprintf(w, ", %d EXPIRED", l.Expired)
		}
		if l.File != "" {
			fmt.Fprintf(w, ", read %s ago", ago(now, l.Loaded))
		}
		fmt.Fprintln(w)
		if l.Fault != "" {
			fmt.Fprintf(w, "          EDIT NOT TAKEN %s ago, the entries above stay in force:\n", ago(now, l.FaultAt))
			for line := range strings.Lines(l.Fault) {
				fmt.Fprintf(w, "          %s\n", strings.TrimRight(line, "\n"))
			}
		}
	}
}

func writeRBL(w io.Writer, lists []rbl.Status, now time.Time) {
	for _, l := range lists {
		fmt.Fprintf(w, "rbl       %s: %s", l.List, l.State)
		if l.Mode != policy.Enforce {
			fmt.Fprintf(w, ", mode %s", l.Mode)
		}
		if l.Why != "" {
			fmt.Fprintf(w, " (%s)", l.Why)
		}
		fmt.Fprintf(w, "; %d queries, %d from memory, %d hits, %d errors", l.Queries, l.Cached, l.Hits, l.Errors)
		if l.LastError != "" {
			fmt.Fprintf(w, "; last error %s ago: %s", ago(now, l.LastErrorAt), l.LastError)
		}
		fmt.Fprintln(w)
	}
}

func writeTables(w io.Writer, st *admin.Status, now time.Time) {
	for _, t := range st.Headers {
		fmt.Fprintf(w, "headers   %s (%s): %d rules, %d hits, %d never hit", t.Name, t.Kind, t.Rules, t.Hits, t.Never)
		if !t.Loaded.IsZero() {
			fmt.Fprintf(w, ", read %s ago", ago(now, t.Loaded))
		}
		fmt.Fprintln(w)
		if t.Fault != "" {
			fmt.Fprintf(w, "          EDIT NOT TAKEN %s ago, the rules above stay in force: %s\n", ago(now, t.FaultAt), t.Fault)
		}
	}
	for _, t := range st.Tables {
		for _, s := range t.Sources {
			fmt.Fprintf(w, "table     %s: %s: %d rules, read %s ago\n", t.Name, s.Source, s.Rules, ago(now, s.Loaded))
			if s.Fault != "" {
				fmt.Fprintf(w, "          EDIT NOT TAKEN %s ago, the rules above stay in force: %s\n", ago(now, s.FaultAt), s.Fault)
			}
		}
	}
}

func writeVerify(w io.Writer, v *verify.Status, now time.Time) {
	if v.Routes == 0 {
		return
	}
	fmt.Fprintf(w, "verify    %d routes; about %d addresses remembered, %d being asked about\n", v.Routes, v.Entries, v.Pending)
	for _, h := range v.NextHops {
		fmt.Fprintf(w, "          %s: %s", h.NextHop, strings.ToUpper(h.State))
		switch {
		case h.Alarm != "":
			fmt.Fprintf(w, ": %s", printable(h.Alarm))
		case h.LastError != "":
			fmt.Fprintf(w, "; last error %s ago: %s", ago(now, h.ErrorAt), printable(h.LastError))
		}
		all := 0
		for _, yes := range h.AcceptAll {
			if yes {
				all++
			}
		}
		if all > 0 {
			fmt.Fprintf(w, "; TAKES EVERY ADDRESS of %d domains", all)
		}
		fmt.Fprintln(w)
	}
	for _, d := range v.Directories {
		if !d.Healthy {
			fmt.Fprintf(w, "          ldap:%s NOT USABLE since %s: %s\n", d.Name, ago(now, d.ErrorAt), printable(d.LastError))
		}
	}
	for _, f := range v.Files {
		if f.Fault != "" {
			fmt.Fprintf(w, "          %s: EDIT NOT TAKEN, its %d entries stay in force: %s\n", f.File, f.Entries, f.Fault)
		}
	}
}

func (c *cli) rblCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "rbl", Short: "DNS lists", Args: cobra.NoArgs}
	test := &cobra.Command{
		Use: "test IP", Short: "ask every list about an address, and say what the total would lead to", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddr(args[0])
			if err != nil {
				return err
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			rep, err := cl.TestLists(cmd.Context(), addr)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), rep, func(w io.Writer) { writeReport(w, &rep) })
		},
	}
	reset := &cobra.Command{
		Use: "reset LIST", Short: "let a list count again that was put into shadow because it listed much of the traffic", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			held, err := cl.ResetList(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), admin.WasHeld{Held: held}, func(w io.Writer) {
				if held {
					fmt.Fprintln(w, args[0], "counts again")
				} else {
					fmt.Fprintln(w, args[0], "was not held")
				}
			})
		},
	}
	cmd.AddCommand(test, reset)
	return cmd
}

func writeReport(w io.Writer, rep *rbl.TestReport) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, r := range rep.Results {
		verdict := "not listed"
		switch {
		case r.Error != "":
			verdict = "error: " + r.Error
		case r.Listed:
			verdict = "LISTED " + strings.Join(r.Codes, " ")
		case len(r.Codes) > 0:
			verdict = "listed, not by our filter: " + strings.Join(r.Codes, " ")
		}
		weight := ""
		if r.Listed {
			weight = fmt.Sprintf("%+d", r.Weight)
			if !r.Counts {
				weight += " (does not count: " + r.State.String() + ")"
			}
		}
		source := tidy(r.Took).String()
		if r.Cached {
			source = "cache"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", r.List, verdict, weight, source, printable(r.Reasons))
	}
	_ = tw.Flush() // errors show with the next line
	fmt.Fprintf(w, "score %d => %s\n", rep.Score, actionText(policy.Verdict{Action: rep.Action, Reason: rep.Reason, Reply: rep.Reply}))
	if rep.Note != "" {
		fmt.Fprintln(w, "note:", rep.Note)
	}
}
