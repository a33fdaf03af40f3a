package main

import (
	"errors"
	"fmt"
	"net/netip"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/access"
	"postern/internal/adminapi"
)

func (c *cli) accessCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "access", Short: "allow and deny lists", Args: cobra.NoArgs}
	var unused, expired bool
	ls := &cobra.Command{
		Use: "list", Short: "list the entries in force, with how often each has decided since the start", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
			now, n := time.Now(), 0
			err = access.Admin{Client: cl}.List(cmd.Context(), func(e access.Entry) bool {
				if unused && e.Hits > 0 || expired && !e.Expired {
					return true
				}
				if c.json {
					return writeJSON(w, e) == nil
				}
				if n == 0 {
					fmt.Fprintln(tw, "KIND\tENTRY\tACTION\tHITS\tLAST\tUNTIL\tOWNER\tPLACE")
				}
				n++
				until := "-"
				if !e.Until.IsZero() {
					until = e.Until.Format("2006-01-02 15:04")
					if e.Expired {
						until += " EXPIRED"
					}
				}
				_, err := fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", e.Kind, adminapi.Printable(e.Pattern), e.Action, e.Hits,
					adminapi.Ago(now, e.LastHit), until, adminapi.Printable(e.Owner), e.Place)
				return err == nil
			})
			return errors.Join(err, tw.Flush())
		},
	}
	ls.Flags().BoolVar(&unused, "unused", false, "only entries that have decided nothing since the start")
	ls.Flags().BoolVar(&expired, "expired", false, "only entries whose date has passed")
	cmd.AddCommand(ls)
	return cmd
}

func parseAddr(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return addr, fmt.Errorf("%q is not an IP address", s)
	}
	return addr.Unmap().WithZone(""), nil
}
