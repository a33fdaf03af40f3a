package main

import (
	"io"

	"github.com/spf13/cobra"

	"postern/admin"
)

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "what runs, which lists are on or off and why, store and DNS health", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			daemon := admin.Client{Client: cl}
			if c.json {
				st, err := daemon.Status(cmd.Context())
				if err != nil {
					return err
				}
				return writeJSON(cmd.OutOrStdout(), st)
			}
			text, err := daemon.StatusText(cmd.Context())
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
}
