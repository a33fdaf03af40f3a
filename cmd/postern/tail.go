package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"postern/journal"
)

func (c *cli) tailCommand() *cobra.Command {
	var f journal.Filter
	cmd := &cobra.Command{
		Use: "tail", Short: "decisions as they happen, all or some",
		Long: "Shows every decision, whether the journal keeps it or not, until you press Ctrl-C. All that is given\n" +
			"must hold. With --json one decision a line; {\"lost\":N} says that N could not be shown in time.",
		Example: "  postern tail --verdict refused\n" +
			"  postern tail --domain example.org --json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			enc := json.NewEncoder(w)
			enc.SetEscapeHTML(false)
			n := 0
			err = journal.Admin{Client: cl}.Tail(cmd.Context(), &f, func(h *journal.Heard) bool {
				switch {
				case c.json:
					err = enc.Encode(h)
				case h.Record == nil:
					fmt.Fprintln(cmd.ErrOrStderr(), h.Lost, "decisions were lost: they came faster than they could be shown")
				default:
					n++
					writeLine(w, h.Record)
				}
				return err == nil
			})
			switch {
			case cmd.Context().Err() != nil: // Ctrl-C
				return nil
			case err == nil && (f.Limit == 0 || n < f.Limit) && !c.json:
				return errors.New("the daemon has stopped")
			}
			return err
		},
	}
	filterFlags(cmd, &f, false)
	cmd.Flags().IntVar(&f.Limit, "limit", 0, "end after so many; 0: never")
	return cmd
}
