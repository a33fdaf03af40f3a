// Command postern is the side gate beside Postfix: the daemon and everything
// the administrator calls it with. See `postern help`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"postern/admin"
	"postern/config"
)

// version is set at build time with -ldflags "-X main.version=...".
var version = "development"

func main() { os.Exit(Main()) }

// Main runs the command line and returns the exit status: 0, or 1 when the
// command failed or found a fault.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := &cli{}
	if err := c.root().ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errSaid) {
			fmt.Fprintln(os.Stderr, "postern:", err)
		}
		return 1
	}
	return 0
}

// errSaid ends a command that has already told the user what is wrong.
var errSaid = errors.New("failed")

// defaultConfig is where the configuration is unless --config or
// POSTERN_CONFIG says otherwise.
const defaultConfig = "/etc/postern/postern.toml"

// cli holds the flags that all commands share.
type cli struct {
	config string
	socket string
	json   bool
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "postern",
		Short: "the side gate beside Postfix: decides who may hand in mail",
		Long: "postern answers Postfix's policy delegation protocol: access lists, DNSBLs, greylisting.\n" +
			"`postern serve` is the daemon; the other commands check its configuration or talk to it.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		Args:          cobra.NoArgs,
	}
	path := os.Getenv("POSTERN_CONFIG")
	if path == "" {
		path = defaultConfig
	}
	f := root.PersistentFlags()
	f.StringVarP(&c.config, "config", "c", path, "configuration file; conf.d/*.toml beside it are read too (environment: POSTERN_CONFIG)")
	f.StringVar(&c.socket, "socket", "", "address of the running daemon (default: admin.listen of the configuration)")
	f.BoolVar(&c.json, "json", false, "write JSON")
	root.AddCommand(
		c.serveCommand(), c.checkCommand(), c.configCommand(), c.reloadCommand(), c.statusCommand(),
		c.explainCommand(), c.askCommand(), c.greylistCommand(), c.rblCommand(), c.accessCommand(), c.storeCommand(), c.versionCommand(),
	)
	return root
}

// client returns a client for the running daemon: where --socket says, or
// where the configuration says, or at the default place when the
// configuration cannot be read by this user.
func (c *cli) client() (*admin.Client, error) {
	cfg, _, err := config.Load(c.config)
	if c.socket != "" {
		token := ""
		if err == nil {
			token, err = cfg.AdminToken()
			if err != nil {
				return nil, err
			}
		}
		return admin.NewClient(c.socket, token), nil
	}
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
		return admin.NewClient(admin.DefaultConfig().Listen, ""), nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w\n(the address of the daemon is in the configuration; --socket names it without)", err)
	}
	token, err := cfg.AdminToken()
	if err != nil {
		return nil, err
	}
	if cfg.Admin.Listen == "" {
		return nil, errors.New("admin.listen is empty: the daemon has no administrator's door")
	}
	return admin.NewClient(cfg.Admin.Listen, token), nil
}

// show writes v as JSON with --json, else calls text.
func (c *cli) show(w io.Writer, v any, text func(io.Writer)) error {
	if c.json {
		return writeJSON(w, v)
	}
	text(w)
	return nil
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.show(cmd.OutOrStdout(), map[string]string{"version": version}, func(w io.Writer) {
				fmt.Fprintln(w, "postern", version)
			})
		},
	}
}
