package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"postern/internal/adminapi"
	"postern/limit"
)

func (c *cli) limitCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "limit", Short: "rates and quotas: who has used how much", Args: cobra.NoArgs}
	n := 0
	list := func(cmd *cobra.Command, find string) error {
		cl, err := c.client()
		if err != nil {
			return err
		}
		meters, err := limit.Admin{Client: cl}.Top(cmd.Context(), find, n)
		if err != nil {
			return err
		}
		return c.show(cmd.OutOrStdout(), meters, func(w io.Writer) { writeMeters(w, meters) })
	}
	top := &cobra.Command{
		Use: "top", Short: "the meters of which most is used", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return list(cmd, "") },
	}
	show := &cobra.Command{
		Use: "show TEXT", Short: "the meters whose keys hold a text: an address, a login, a rule", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return list(cmd, args[0]) },
	}
	for _, sub := range []*cobra.Command{top, show} {
		sub.Flags().IntVarP(&n, "number", "n", 20, "at most so many")
	}
	reset := &cobra.Command{
		Use: "reset KEY", Short: "empty one meter", Args: cobra.ExactArgs(1),
		Long:    "KEY is a key as `postern limit top` lists it. With Redis it holds for all gateways.",
		Example: "  postern limit reset 'logins/day/ann@example.org'",
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			if err := (limit.Admin{Client: cl}).Reset(cmd.Context(), args[0]); err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), map[string]bool{"ok": true}, func(w io.Writer) { fmt.Fprintln(w, "empty") })
		},
	}
	cmd.AddCommand(top, show, reset)
	return cmd
}

func writeMeters(w io.Writer, meters []limit.Meter) {
	if len(meters) == 0 {
		fmt.Fprintln(w, "none")
	}
	for _, m := range meters {
		fmt.Fprintf(w, "%4.0f%%  %d of %d  %s\n", 100*m.Share, m.Used, m.Most, adminapi.Printable(m.Key))
	}
}
