package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"postern/admin"
	"postern/app"
	"postern/config"
	"postern/internal/adminapi"
)

// checked is what `postern check` says of a good configuration.
type checked struct {
	OK           bool `json:"ok"`
	Expectations int  `json:"expectations"` // that are met
}

func (c *cli) checkCommand() *cobra.Command {
	var lenient bool
	cmd := &cobra.Command{
		Use: "check", Short: "read the configuration and every file it names, and report all faults",
		Long: "Changes nothing, and opens no socket but for expectations that are live. Exit status 0: the daemon\n" +
			"would start with it, and what [[expect]] asks for is met; 1: there are faults, each printed as\n" +
			"file:line:column.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := config.Load
			if lenient {
				load = config.LoadLenient
			}
			cfg, warnings, err := load(c.config)
			for _, w := range warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			if err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), err)
				return errSaid
			}
			met, faults, err := app.Expectations(cmd.Context(), cfg, true)
			if err != nil {
				return err
			}
			if faults.Err() != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), faults)
				fmt.Fprintf(cmd.ErrOrStderr(), "%d of %d expectations are not met\n", len(faults), met+len(faults))
				return errSaid
			}
			return c.show(cmd.OutOrStdout(), checked{true, met}, func(w io.Writer) {
				fmt.Fprint(w, c.config, " is good")
				if met > 0 {
					fmt.Fprintf(w, ", and all %d expectations are met", met)
				}
				fmt.Fprintln(w)
			})
		},
	}
	cmd.Flags().BoolVar(&lenient, "lenient", false, "warn of bad rules in header tables that Postfix would skip, as with headers.lenient = true")
	return cmd
}

func (c *cli) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "the effective configuration", Args: cobra.NoArgs}
	cmd.AddCommand(&cobra.Command{
		Use: "dump", Short: "print every setting with its effective value and where it comes from; secrets are not shown", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := config.Load(c.config)
			if err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), err)
				return errSaid
			}
			return cfg.Dump(cmd.OutOrStdout())
		},
	})
	return cmd
}

func (c *cli) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "let the running daemon read its configuration again, and say what is wrong with it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			if err := (admin.Client{Client: cl}).Reload(cmd.Context()); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), err)
				if !errors.Is(err, adminapi.ErrNotRunning) {
					fmt.Fprintln(cmd.ErrOrStderr(), "the daemon keeps the configuration it had")
				}
				return errSaid
			}
			return c.show(cmd.OutOrStdout(), map[string]bool{"ok": true}, func(w io.Writer) { fmt.Fprintln(w, "reloaded") })
		},
	}
}
