package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"postern/admin"
	"postern/app"
	"postern/config"
	"postern/postfix"
	"postern/resolver"
)

func (c *cli) postfixCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "postfix", Short: "set Postfix up beside postern, and find what is wrong or dangerous about it", Args: cobra.NoArgs}
	cmd.AddCommand(c.postfixCheckCommand(), c.postfixConfigCommand(), c.postfixSetupCommand(), c.postfixUndoCommand())
	return cmd
}

// postfixFiles are where Postfix's configuration is read.
type postfixFiles struct{ dir, main, master string }

func (f *postfixFiles) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "config-dir", "", "Postfix's configuration directory (default: that of postconf)")
}

// read asks postconf, or reads what it has printed elsewhere.
func (f *postfixFiles) read(cmd *cobra.Command) (*postfix.Setup, error) {
	if f.main == "" {
		return postfix.Read(cmd.Context(), f.dir)
	}
	s := &postfix.Setup{}
	err := readFile(f.main, func(in io.Reader) (err error) {
		s.Main, err = postfix.ParseMain(f.main, in)
		return err
	})
	if err == nil && f.master != "" {
		err = readFile(f.master, func(in io.Reader) (err error) {
			s.Services, err = postfix.ParseMaster(f.master, in)
			return err
		})
	}
	return s, err
}

func readFile(name string, read func(io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	return read(f)
}

// checkedPostfix is what `postern postfix check` reports.
type checkedPostfix struct {
	Findings []postfix.Finding `json:"findings"`
}

func (c *cli) postfixCheckCommand() *cobra.Command {
	var files postfixFiles
	var dns bool
	cmd := &cobra.Command{
		Use: "check", Short: "say what is wrong or dangerous about Postfix's configuration, with the line that fixes it",
		Long: "Reads postern's configuration and what postconf says of Postfix's (or files with what `postconf -n` and\n" +
			"`postconf -M` print on another host), and prints what it finds, the worst first. docs/postfix.md explains\n" +
			"each finding. Changes nothing. Exit status 0: no errors; 1: there are.",
		Example: "  postern postfix check\n  postern postfix check --main main.txt --master master.txt",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadFor(cmd, c.config)
			if err != nil {
				return err
			}
			setup, err := files.read(cmd)
			if err != nil {
				return err
			}
			out := checkedPostfix{postfix.Check(setup, app.PostfixOf(cfg))}
			if dns {
				named, err := nameOf(cmd, cfg, setup)
				if err != nil {
					return err
				}
				out.Findings = append(out.Findings, named...)
			}
			if err := c.show(cmd.OutOrStdout(), out, func(w io.Writer) { writeFindings(w, out.Findings) }); err != nil {
				return err
			}
			if slices.ContainsFunc(out.Findings, func(f postfix.Finding) bool { return f.Severity == postfix.Error }) {
				return errSaid
			}
			return nil
		},
	}
	files.flags(cmd)
	cmd.Flags().StringVar(&files.main, "main", "", "file with what `postconf -n` printed")
	cmd.Flags().StringVar(&files.master, "master", "", "file with what `postconf -M` printed")
	cmd.Flags().BoolVar(&dns, "dns", true, "look up whether this host's name leads to its address and back")
	cmd.MarkFlagsMutuallyExclusive("config-dir", "main")
	return cmd
}

// nameOf asks the DNS, as configured in [dns], about this host's name.
func nameOf(cmd *cobra.Command, cfg *config.Config, setup *postfix.Setup) ([]postfix.Finding, error) {
	res, err := resolver.New(cfg.DNS, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	defer res.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
	defer cancel()
	return postfix.CheckName(ctx, setup, res.Net()), nil
}

func writeFindings(w io.Writer, all []postfix.Finding) {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing to find fault with")
		return
	}
	for i := range all {
		f := &all[i]
		fmt.Fprintf(w, "%-7s  %s  %s\n         %s\n", f.Severity, f.Slug, f.Where, f.Text)
		if f.Fix != "" {
			fmt.Fprintf(w, "         fix: %s\n", f.Fix)
		}
	}
}

func (c *cli) postfixConfigCommand() *cobra.Command {
	var files postfixFiles
	var commands bool
	cmd := &cobra.Command{
		Use: "config", Short: "print the lines of main.cf that this configuration needs, merged with what is there",
		Long: "Prints the parameters of main.cf that have to change so that Postfix asks postern, each with what stands\n" +
			"there already. What Postfix can do besides, a pause before the greeting and limits by client, follows as comments.\n" +
			"Changes nothing; `postern postfix setup` does.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			setup, _, changes, err := c.planned(cmd, &files)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), changes, func(w io.Writer) {
				if !commands {
					defer func() { fmt.Fprint(w, postfix.Beside(setup)) }()
				}
				switch {
				case len(changes) == 0:
					fmt.Fprintln(w, "# Postfix asks postern already")
				case commands:
					fmt.Fprint(w, postfix.Commands(changes))
				default:
					fmt.Fprint(w, postfix.MainCF(changes))
				}
			})
		},
	}
	files.flags(cmd)
	cmd.Flags().BoolVar(&commands, "commands", false, "as commands of postconf for a shell")
	return cmd
}

// planned reads both configurations and says what has to change.
func (c *cli) planned(cmd *cobra.Command, files *postfixFiles) (*postfix.Setup, *postfix.Ours, []postfix.Change, error) {
	cfg, err := loadFor(cmd, c.config)
	if err != nil {
		return nil, nil, nil, err
	}
	setup, err := files.read(cmd)
	if err != nil {
		return nil, nil, nil, err
	}
	ours := app.PostfixOf(cfg)
	changes, err := postfix.Plan(setup, ours)
	if changes == nil {
		changes = []postfix.Change{}
	}
	return setup, ours, changes, err
}

func (c *cli) postfixSetupCommand() *cobra.Command {
	var files postfixFiles
	var yes, dry bool
	var server, recipient string
	cmd := &cobra.Command{
		Use: "setup", Short: "show what has to change in Postfix's configuration, change it after a yes, and prove it",
		Long: "Shows the differences, and after a yes makes the change with postconf. What was is kept below\n" +
			"postern-backup in Postfix's configuration directory; `postern postfix undo` puts it back. Then Postfix\n" +
			"reads its configuration, and it is tried: the policy door is asked, and a session by SMTP goes up to RCPT\n" +
			"and no further. When the change or the trial fails, all is put back.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			setup, ours, changes, err := c.planned(cmd, &files)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if len(changes) == 0 {
				fmt.Fprintln(w, "nothing to do: Postfix asks postern already")
				return nil
			}
			fmt.Fprint(w, postfix.Diff(changes))
			if dry {
				return nil
			}
			if _, err := postfix.AskPolicy(cmd.Context(), ours.Policy[0]); err != nil {
				return fmt.Errorf("postern does not answer, nothing is changed: %w", err)
			}
			if !yes && !agreed(cmd, "Change "+setup.Dir+"/main.cf?") {
				return errors.New("nothing is changed")
			}
			backup, err := setup.Apply(cmd.Context(), changes, time.Now())
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "changed; what was is in %s\n", backup)
			if err := c.prove(cmd, setup, server, recipient); err != nil {
				return errors.Join(fmt.Errorf("it does not work, all is as before: %w", err), setup.Undo(cmd.Context(), backup))
			}
			return nil
		},
	}
	files.flags(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show the differences")
	cmd.Flags().StringVar(&server, "server", "127.0.0.1:25", "the smtpd that is tried")
	cmd.Flags().StringVar(&recipient, "recipient", "", "the recipient that is tried (default: postmaster of the first domain that mail is taken for)")
	return cmd
}

// agreed asks on the terminal; without one the answer is no.
func agreed(cmd *cobra.Command, question string) bool {
	fmt.Fprint(cmd.OutOrStdout(), question, " [y/N] ")
	line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n') // an end is a no
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(line)), "y")
}

// prove tries a running Postfix.
func (c *cli) prove(cmd *cobra.Command, setup *postfix.Setup, server, recipient string) error {
	w := cmd.OutOrStdout()
	if !setup.Running(cmd.Context()) {
		fmt.Fprintln(w, "Postfix does not run here, so that it was not tried")
		return nil
	}
	if recipient == "" {
		recipient = setup.Recipient()
	}
	session, asked, err := c.tryUntilAsked(cmd, server, recipient)
	if err != nil {
		return fmt.Errorf("%s: %w", server, err)
	}
	said := strings.Join(session.Lines, "; ")
	switch {
	case asked > 0:
		fmt.Fprintf(w, "a session with %s up to RCPT TO:<%s> was answered with %d, and postern was asked: it works\n", server, recipient, session.Code)
	case session.Code == 451:
		return fmt.Errorf("Postfix answers 451 and has not asked postern: %s", said)
	case session.Client && session.Code < 300:
		return fmt.Errorf("Postfix has taken a stranger's recipient without asking postern: %s", said)
	case session.Client:
		return fmt.Errorf("Postfix refuses before it asks postern; try another --recipient: %s", said)
	default:
		fmt.Fprintf(w, "from here Postfix does not ask (permit_mynetworks comes first), and XCLIENT is not permitted to this host;\n"+
			"for a trial as a stranger: postconf -e 'smtpd_authorized_xclient_hosts = 127.0.0.1'\n")
	}
	return nil
}

// settle is how long a process of Postfix's may still answer by the old
// configuration after a reload.
const settle = 10 * time.Second

// tryUntilAsked tries until postern has been asked, or for as long as old
// processes may answer.
func (c *cli) tryUntilAsked(cmd *cobra.Command, server, recipient string) (session postfix.Session, asked int, err error) {
	before := c.requests(cmd)
	for end := time.Now().Add(settle); ; {
		session, err = postfix.Try(cmd.Context(), server, "postern-test@example.org", recipient)
		asked = c.requests(cmd) - before
		if asked > 0 || err == nil && !session.Client || time.Now().After(end) || cmd.Context().Err() != nil {
			return session, asked, err
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// requests is how many requests the policy door has had, 0 when nobody says.
func (c *cli) requests(cmd *cobra.Command) int {
	cl, err := c.client()
	if err != nil {
		return 0
	}
	text, err := admin.Client{Client: cl}.Status(cmd.Context())
	if err != nil {
		return 0
	}
	var st struct {
		Policy struct {
			Requests int `json:"requests"`
		} `json:"policy"`
	}
	if json.Unmarshal(text, &st) != nil {
		return 0
	}
	return st.Policy.Requests
}

func (c *cli) postfixUndoCommand() *cobra.Command {
	var files postfixFiles
	var force bool
	cmd := &cobra.Command{
		Use: "undo", Short: "put back what was before the last `postern postfix setup`",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			setup, err := files.read(cmd)
			if err != nil {
				return err
			}
			backup, err := setup.Newest()
			if err != nil {
				return err
			}
			if backup == "" {
				return errors.New("there is no change to take back in " + setup.Dir)
			}
			changed, err := setup.Changed(backup)
			if err != nil {
				return err
			}
			if len(changed) > 0 && !force {
				return fmt.Errorf("%s changed since %s; --force puts back what was before, and what was changed since is lost", strings.Join(changed, " and "), backup)
			}
			if err := setup.Undo(cmd.Context(), backup); err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), map[string]string{"restored": backup}, func(w io.Writer) { fmt.Fprintln(w, "restored from", backup) })
		},
	}
	files.flags(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "even if the files were changed since")
	return cmd
}
