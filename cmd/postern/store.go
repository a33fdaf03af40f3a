package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"postern/config"
	"postern/store"
	"postern/store/bolt"
)

func (c *cli) storeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "store", Short: "the state", Args: cobra.NoArgs}
	cmd.AddCommand(&cobra.Command{
		Use: "compact", Short: "give the space of forgotten entries in the embedded store's file back; the daemon must not run",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := config.Load(c.config)
			if err != nil {
				return err
			}
			if cfg.Store.Kind != store.Embedded && (cfg.Store.Kind != store.Redis || cfg.Store.Redis.Fallback != store.Embedded) {
				return fmt.Errorf("store.kind is %q: there is no file to compact", cfg.Store.Kind)
			}
			before, after, err := bolt.Compact(cfg.Store.Path)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), map[string]int64{"before": before, "after": after}, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %d bytes, was %d\n", cfg.Store.Path, after, before)
			})
		},
	})
	return cmd
}
