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
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"postern/config"
	"postern/internal/adminapi"
)

// version and commit, its name and date, are set at build time with -ldflags
// "-X main.version=...".
var (
	version = "development"
	commit  string
)

// built is what `postern version` says.
type built struct {
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"`
	Committed string `json:"committed,omitempty"`
	Go        string `json:"go"`
}

func main() { os.Exit(Main()) }

// Main runs the command line and returns the exit status: 0, or 1 when the
// command failed or found a fault, or what the command says of itself.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := &cli{}
	if err := c.root().ExecuteContext(ctx); err != nil {
		if status, ok := errors.AsType[exitStatus](err); ok {
			return int(status)
		}
		if !errors.Is(err, errSaid) {
			fmt.Fprintln(os.Stderr, "postern:", err)
		}
		return 1
	}
	return 0
}

// errSaid ends a command that has already told the user what is wrong.
var errSaid = errors.New("failed")

// exitStatus ends a command that has told the user what came of it, with a
// status that is neither 0 nor 1.
type exitStatus int

// Error implements error.
func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

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
		Long: "postern answers Postfix over the policy delegation and milter protocols (access lists, providers' networks,\n" +
			"DNSBLs, recipient verification, greylisting, header rules) and over socketmap (tables).\n" +
			"`postern serve` is the daemon; the other commands check its configuration or talk to it.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	path := os.Getenv("POSTERN_CONFIG")
	if path == "" {
		path = config.DefaultPath
	}
	f := root.PersistentFlags()
	f.StringVarP(&c.config, "config", "c", path, "configuration file; conf.d/*.toml beside it are read too (environment: POSTERN_CONFIG)")
	f.StringVar(&c.socket, "socket", "", "address of the running daemon (default: admin.listen of the configuration)")
	f.BoolVar(&c.json, "json", false, "write JSON")
	root.AddCommand(
		c.serveCommand(), c.checkCommand(), c.replayCommand(), c.postfixCommand(), c.sendCommand(), c.manCommand(), c.configCommand(), c.reloadCommand(), c.statusCommand(), c.topCommand(),
		c.explainCommand(), c.journalCommand(), c.tailCommand(), c.shadowCommand(), c.askCommand(), c.greylistCommand(), c.clientCommand(), c.rblCommand(), c.spfCommand(), c.authCommand(), c.dmarcCommand(), c.limitCommand(), c.knownCommand(), c.accessCommand(), c.verifyCommand(),
		c.headersCommand(), c.dkimCommand(), c.providerCommand(), c.lookupCommand(), c.storeCommand(), c.importCommand(), c.exportCommand(), c.consoleCommand(), c.versionCommand(),
	)
	return root
}

// client returns a client for the running daemon: where --socket says, or
// where the configuration says. A configuration with faults serves as far as
// it can be read, since it may be the one that the daemon has refused; one
// that this user may not read leaves the default place.
func (c *cli) client() (*adminapi.Client, error) {
	cfg := config.Peek(c.config)
	token, err := cfg.AdminToken()
	if err != nil {
		return nil, err
	}
	if c.socket != "" {
		return adminapi.NewClient(c.socket, token), nil
	}
	if cfg.Admin.Listen == "" {
		return nil, errors.New("admin.listen is empty: the daemon has no administrator's door")
	}
	return adminapi.NewClient(cfg.Admin.Listen, token), nil
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
			v := built{Version: version, Go: runtime.Version()}
			v.Commit, v.Committed, _ = strings.Cut(commit, " ")
			return c.show(cmd.OutOrStdout(), v, func(w io.Writer) {
				fmt.Fprintln(w, "postern", v.Version)
				if v.Commit != "" {
					fmt.Fprintln(w, "commit", v.Commit, v.Committed)
				}
				fmt.Fprintln(w, "built by", v.Go)
			})
		},
	}
}
