package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"postern/internal/adminapi"
	"postern/internal/conf"
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
	cmd.AddCommand(top, show, reset, c.limitRaiseCommand(), c.limitNotifyCommand())
	return cmd
}

func (c *cli) limitRaiseCommand() *cobra.Command {
	var to int64
	howLong, list, cancel := conf.Duration(0), false, false
	raise := &cobra.Command{
		Use: "raise KEY --to N --for 2h | raise KEY --cancel | raise --list", Short: "raise the limit of one meter for a time", Args: cobra.MaximumNArgs(1),
		Long: "KEY is a key as `postern limit top` lists it, RULE/rate/WHOSE or RULE/PERIOD/WHOSE; the meter need not exist yet.\n" +
			"A quota becomes N. Of a rate N may come at once, and as many times more in the long run. It ends by itself.\n" +
			"With Redis other gateways follow within seconds.",
		Example: "  postern limit raise 'logins/day/ann@example.org' --to 5000 --for 8h",
		RunE: func(cmd *cobra.Command, args []string) error {
			if list == (len(args) == 1) {
				return errors.New("a KEY, or --list")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			a := limit.Admin{Client: cl}
			switch {
			case list:
				all, err := a.Raised(cmd.Context())
				if err != nil {
					return err
				}
				return c.show(cmd.OutOrStdout(), all, func(w io.Writer) { writeRaises(w, all) })
			case cancel:
				if err := a.CancelRaise(cmd.Context(), args[0]); err != nil {
					return err
				}
				return c.show(cmd.OutOrStdout(), map[string]bool{"ok": true}, func(w io.Writer) { fmt.Fprintln(w, "cancelled") })
			case to <= 0 || howLong <= 0:
				return errors.New("--to and --for are needed")
			}
			one, err := a.Raise(cmd.Context(), args[0], to, howLong.D())
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), one, func(w io.Writer) { writeRaises(w, []limit.Raise{one}) })
		},
	}
	raise.Flags().Int64Var(&to, "to", 0, "units: of the quota, or that may come at once")
	raise.Flags().Var(durationFlag{&howLong}, "for", "how long: 2h, 3d")
	raise.Flags().BoolVar(&list, "list", false, "show what is raised")
	raise.Flags().BoolVar(&cancel, "cancel", false, "end it now")
	return raise
}

func (c *cli) limitNotifyCommand() *cobra.Command {
	rule := ""
	notify := &cobra.Command{
		Use: "notify --test RULE", Short: "send a test to all whom a rule notifies", Args: cobra.NoArgs,
		Long: "The daemon sends it, by the settings that are in force. It counts for nothing.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rule == "" {
				return errors.New("--test RULE is needed")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			out, err := limit.Admin{Client: cl}.TestNotify(cmd.Context(), rule)
			if err != nil {
				return err
			}
			if err := c.show(cmd.OutOrStdout(), out, func(w io.Writer) { writeTested(w, out) }); err != nil {
				return err
			}
			for _, t := range out {
				if t.Error != "" {
					return errors.New("not all could be notified")
				}
			}
			return nil
		},
	}
	notify.Flags().StringVar(&rule, "test", "", "the rule's name")
	return notify
}

func writeTested(w io.Writer, out []limit.Tested) {
	for _, t := range out {
		if t.Error != "" {
			fmt.Fprintf(w, "%s: FAILED: %s\n", t.Notify, adminapi.Printable(t.Error))
		} else {
			fmt.Fprintf(w, "%s: sent\n", t.Notify)
		}
	}
}

// durationFlag is a duration as the configuration writes them.
type durationFlag struct{ *conf.Duration }

func (d durationFlag) Set(s string) error { return d.UnmarshalText([]byte(s)) }
func (d durationFlag) Type() string       { return "duration" }

func writeRaises(w io.Writer, all []limit.Raise) {
	if len(all) == 0 {
		fmt.Fprintln(w, "none")
	}
	for _, r := range all {
		fmt.Fprintf(w, "%s  raised to %d until %s\n", adminapi.Printable(r.Key), r.To, r.Until.Local().Format(time.DateTime))
	}
}

func writeMeters(w io.Writer, meters []limit.Meter) {
	if len(meters) == 0 {
		fmt.Fprintln(w, "none")
	}
	for _, m := range meters {
		fmt.Fprintf(w, "%4.0f%%  %d of %d  %s", 100*m.Share, m.Used, m.Most, adminapi.Printable(m.Key))
		if !m.Raised.IsZero() {
			fmt.Fprintf(w, "  raised until %s", m.Raised.Local().Format(time.DateTime))
		}
		fmt.Fprintln(w)
	}
}
