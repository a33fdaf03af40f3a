package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"postern/internal/adminapi"
	"postern/policy"
	"postern/rbl"
)

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
			rep, err := rbl.Admin{Client: cl}.Test(cmd.Context(), addr)
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
			held, err := rbl.Admin{Client: cl}.Reset(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), rbl.WasHeld{Held: held}, func(w io.Writer) {
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
		source := adminapi.Tidy(r.Took).String()
		if r.Cached {
			source = "cache"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", r.List, verdict, weight, source, adminapi.Printable(r.Reasons))
	}
	_ = tw.Flush() // errors show with the next line
	fmt.Fprintf(w, "score %d => %s\n", rep.Score, policy.Verdict{Action: rep.Action, Reason: rep.Reason, Reply: rep.Reply}.Text())
	if rep.Note != "" {
		fmt.Fprintln(w, "note:", rep.Note)
	}
}
