package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/config"
	"postern/internal/adminapi"
	"postern/lookup"
	"postern/provider"
)

func (c *cli) providerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "provider", Short: "networks of large senders, from their SPF records", Args: cobra.NoArgs}
	cmd.AddCommand(c.providerList(), c.providerShow(), c.providerRefresh(), c.providerDiff(), c.providerAccept(),
		c.providerExport(), c.providerWhois(), c.providerLines())
	return cmd
}

func (c *cli) providerList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "all lists: networks, age, next reading, what is refused", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			lists, err := provider.Admin{Client: cl}.Lists(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), lists, func(w io.Writer) {
				if len(lists) == 0 {
					fmt.Fprintf(w, "none is configured; built in: %s\n", strings.Join(provider.Builtin(), ", "))
				}
				for i := range lists {
					lists[i].Write(w, time.Now(), "")
				}
			})
		},
	}
}

func (c *cli) providerShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "networks with their origin, records, problems, history", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			out, err := provider.Admin{Client: cl}.Show(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), out, func(w io.Writer) {
				now := time.Now()
				out.Status.Write(w, now, "")
				provider.WriteProblems(w, out.Status.Problems, "")
				tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
				for _, e := range out.Entries {
					fmt.Fprintf(tw, "%v\t%s\t%s\t%s\tsince %s\n", e.Prefix, adminapi.Printable(e.Term), adminapi.Printable(e.Record), adminapi.Printable(e.Via), adminapi.Ago(now, e.Since))
				}
				_ = tw.Flush() // the terminal is gone
				for _, r := range out.Records {
					fmt.Fprintf(w, "record  %s (%v): %s\n", r.Domain, r.TTL.Round(time.Second), adminapi.Printable(r.Text))
				}
				writeHistory(w, out.History, now)
			})
		},
	}
}

func writeHistory(w io.Writer, history []provider.Change, now time.Time) {
	for _, h := range history {
		fmt.Fprintf(w, "changed %s ago (%s): +%d -%d networks\n", adminapi.Ago(now, h.Time), h.How, h.AddedCount, h.RemovedCount)
	}
}

func writeDiff(w io.Writer, d provider.Diff) {
	for _, l := range []struct {
		sign string
		nets []netip.Prefix
	}{{"+", d.Added}, {"-", d.Removed}} {
		for _, p := range l.nets {
			fmt.Fprintln(w, l.sign, p)
		}
	}
}

func writeRefresh(w io.Writer, rep *provider.Report) {
	fmt.Fprintf(w, "%s: %s", rep.List, strings.ToUpper(string(rep.Result)))
	if rep.DryRun {
		fmt.Fprint(w, " (dry run: nothing is changed)")
	}
	fmt.Fprintf(w, "; %d networks, %d questions in %d round trips, %v\n", rep.Networks, rep.Queries, rep.Levels, rep.Took.Round(time.Millisecond))
	if rep.Error != "" {
		fmt.Fprintln(w, "error:", adminapi.Printable(rep.Error))
	}
	for _, r := range rep.Reasons {
		fmt.Fprintln(w, "refused:", adminapi.Printable(r))
	}
	if len(rep.Reasons) > 0 {
		fmt.Fprintf(w, "to take it all the same: postern provider accept %s %s\n", rep.List, rep.ID)
	}
	provider.WriteProblems(w, rep.Problems, "")
	writeDiff(w, rep.Diff)
}

func (c *cli) providerRefresh() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use: "refresh NAME", Short: "read the records now", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			rep, err := provider.Admin{Client: cl}.Refresh(cmd.Context(), args[0], dry)
			if err != nil {
				return err
			}
			if err := c.show(cmd.OutOrStdout(), rep, func(w io.Writer) { writeRefresh(w, &rep) }); err != nil {
				return err
			}
			if rep.Error != "" || len(rep.Reasons) > 0 {
				return errSaid
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would happen")
	return cmd
}

func (c *cli) providerDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff NAME", Short: "what the refused update would change, and what has changed before", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			out, err := provider.Admin{Client: cl}.Diff(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), out, func(w io.Writer) { writeDifference(w, args[0], &out, time.Now()) })
		},
	}
}

func writeDifference(w io.Writer, name string, out *provider.Difference, now time.Time) {
	if out.Pending == nil {
		fmt.Fprintln(w, "no update waits")
	} else {
		fmt.Fprintf(w, "refused %s ago: %s\n", adminapi.Ago(now, out.Pending.Time), strings.Join(out.Pending.Reasons, "; "))
		provider.WriteProblems(w, out.Pending.Problems, "")
		writeDiff(w, out.Diff)
		fmt.Fprintf(w, "to take it: postern provider accept %s %s\n", name, out.Pending.ID)
	}
	writeHistory(w, out.History, now)
}

func (c *cli) providerAccept() *cobra.Command {
	return &cobra.Command{
		Use: "accept NAME ID", Short: "take a refused update", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			rep, err := provider.Admin{Client: cl}.Accept(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), rep, func(w io.Writer) { writeRefresh(w, &rep) })
		},
	}
}

func (c *cli) providerExport() *cobra.Command {
	result := ""
	cmd := &cobra.Command{
		Use: "export NAME", Short: "the list as a Postfix cidr table", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			text, err := provider.Admin{Client: cl}.Export(cmd.Context(), args[0], result)
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().StringVar(&result, "result", "OK", "what stands behind each network")
	return cmd
}

func (c *cli) providerWhois() *cobra.Command {
	return &cobra.Command{
		Use: "whois IP", Short: "which list holds an address, by which record and term, since when", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddr(args[0])
			if err != nil {
				return err
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			out, err := provider.Admin{Client: cl}.Whois(cmd.Context(), addr)
			if err != nil {
				return err
			}
			if len(out) == 0 && !c.json {
				fmt.Fprintln(cmd.ErrOrStderr(), addr, "is in no list")
				return errSaid
			}
			return c.show(cmd.OutOrStdout(), out, func(w io.Writer) {
				for _, m := range out {
					where := "in the record of"
					if strings.HasPrefix(m.Record, "/") {
						where = "of" // a file
					}
					fmt.Fprintf(w, "%s: %v by %s %s %s", m.List, m.Prefix, adminapi.Printable(m.Term), where, adminapi.Printable(m.Record))
					if m.Via != "" {
						fmt.Fprintf(w, " (%s)", adminapi.Printable(m.Via))
					}
					fmt.Fprintf(w, ", since %s\n", adminapi.Ago(time.Now(), m.Since))
				}
			})
		},
	}
}

// providerLines needs no daemon: it shows how Postfix can use the lists.
func (c *cli) providerLines() *cobra.Command {
	return &cobra.Command{
		Use: "postfix NAME", Short: "main.cf lines that use the list", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, _, err := config.Load(c.config)
			if err != nil {
				return err
			}
			for i := range cfg.Provider.Lists {
				l := &cfg.Provider.Lists[i]
				if l.Name != args[0] {
					continue
				}
				door := ""
				if len(cfg.Lookup.Listen) > 0 {
					a := cfg.Lookup.Listen[0]
					door = "socketmap:" + strings.Replace(a.Network, "tcp", "inet", 1) + ":" + a.Target() + ":" + config.MapOfProvider("")
				}
				for _, line := range l.PostfixLines(door) {
					fmt.Fprintln(cmd.OutOrStdout(), line)
				}
				return nil
			}
			return errors.New("there is no [[provider.list]] of that name")
		},
	}
}

func (c *cli) lookupCommand() *cobra.Command {
	return &cobra.Command{
		Use: "lookup MAP KEY", Short: "ask a table of the lookup door, and see which line answers", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			a, err := lookup.Admin{Client: cl}.Lookup(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			if err := c.show(cmd.OutOrStdout(), a, func(w io.Writer) {
				if !a.Found {
					return
				}
				fmt.Fprintln(w, a.Value)
				if a.Place != "" {
					fmt.Fprintf(w, "  %s %s", a.Place, adminapi.Printable(a.Pattern))
					if a.Asked != "" {
						fmt.Fprintf(w, " (asked for %s)", adminapi.Printable(a.Asked))
					}
					fmt.Fprintln(w)
				}
			}); err != nil {
				return err
			}
			if !a.Found {
				return errSaid // as postmap -q: nothing, and status 1
			}
			return nil
		},
	}
}
