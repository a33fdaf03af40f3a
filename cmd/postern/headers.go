package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"postern/config"
	"postern/headercheck"
	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/internal/when"
	"postern/policy"
)

func (c *cli) headersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "headers", Short: "header and body rules: try them, and see what they hit",
		Long: "`test`, `query` and `filter-lines` read the tables themselves and need no daemon; `hits` asks the daemon.",
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(c.headersTest(), c.headersQuery(), c.headersHits(), c.headersFilterLines())
	return cmd
}

// rules reads the rules of the configuration, or the given tables instead.
func (c *cli) rules(tables []string, kind headercheck.Kind, lenient bool) (*headercheck.Check, error) {
	cfg := headercheck.DefaultConfig()
	if len(tables) == 0 {
		read := config.Load
		if lenient {
			read = config.LoadLenient
		}
		full, _, err := read(c.config)
		if err != nil {
			return nil, err
		}
		cfg = full.Headers
	}
	cfg.Lenient = cfg.Lenient || lenient
	for _, t := range tables {
		cfg.Checks = append(cfg.Checks, headercheck.TableConfig{Table: t, Kind: kind})
	}
	if len(tables) > 0 && cfg.FilterMarker == "" {
		cfg.FilterMarker = "X-Postern-Filter" // FILTER rules can be shown
	}
	var fs conf.Faults
	cfg.Validate("headers", &fs)
	if err := fs.Err(); err != nil {
		return nil, err
	}
	for _, w := range cfg.Warnings("headers") {
		fmt.Fprintln(os.Stderr, "warning:", w.Error())
	}
	if len(cfg.Checks)+len(cfg.Rules) == 0 {
		return nil, errors.New("the configuration has no [[headers.checks]] and no [[headers.rules]]; --table names a table")
	}
	return headercheck.New(cfg, zap.NewNop(), nil, nil)
}

func (c *cli) headersTest() *cobra.Command {
	var tables, to []string
	var from, client, results string
	var kind string
	var lenient, message bool
	cmd := &cobra.Command{
		Use: "test FILE.eml", Short: "run the rules over a message: each header, the rule that matched, the message as it would leave", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var k headercheck.Kind
			if err := k.UnmarshalText([]byte(kind)); err != nil {
				return err
			}
			check, err := c.rules(tables, k, lenient)
			if err != nil {
				return err
			}
			text, err := readInput(cmd, args[0])
			if err != nil {
				return err
			}
			req := &policy.Request{Time: time.Now(), Stage: policy.StageData, Door: "explain", Sender: mailaddr.Parse(from), DryRun: true}
			if client != "" {
				if req.Client.Addr, err = parseAddr(client); err != nil {
					return err
				}
			}
			if req.Facts.Auth, err = when.ParseAuth(results); err != nil {
				return fmt.Errorf("--results: %w", err)
			}
			var recipients []policy.Address
			for _, r := range to {
				recipients = append(recipients, mailaddr.Parse(r))
			}
			rep, err := check.Test(req, recipients, text)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), rep, func(w io.Writer) { writeHeaderReport(w, rep, message) })
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&tables, "table", nil, "a table instead of those of the configuration, as pcre:/path or regexp:/path; can be given again")
	f.StringVar(&kind, "kind", "header", "what --table looks at: header, mime, nested or body")
	f.BoolVar(&lenient, "lenient", false, "skip bad rules as Postfix does")
	f.BoolVar(&message, "message", true, "show the message as it would leave")
	f.StringArrayVar(&to, "to", nil, "a recipient, for rules of some domains; can be given again")
	f.StringVar(&from, "from", "", "the envelope sender")
	f.StringVar(&client, "client", "", "the client's address")
	f.StringVar(&results, "results", "", `what authentication is to have found, for rules with a condition: "dmarc=fail dmarc.policy=reject dkim=pass header.d=example.org"`)
	return cmd
}

// maxMessage is the most bytes of a message to be tried.
const maxMessage = 256 << 20

func readInput(cmd *cobra.Command, name string) ([]byte, error) {
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // only read
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxMessage+1))
	if err == nil && len(text) > maxMessage {
		err = fmt.Errorf("%s has more than %d bytes", name, maxMessage)
	}
	return text, err
}

func writeHeaderReport(w io.Writer, rep *headercheck.Report, message bool) {
	for _, l := range rep.Lines {
		fmt.Fprintf(w, "%-7s %s\n", l.Kind, adminapi.Printable(strings.ReplaceAll(l.Text, "\n", " ")))
		for _, m := range l.Matches {
			writeMatch(w, &m, "          ")
		}
	}
	v := rep.Judgement.Verdict
	fmt.Fprintf(w, "=> %s\n", v.Text())
	for _, e := range rep.Judgement.Edits {
		switch e.Kind {
		case policy.AddRecipient, policy.ReplaceRecipient:
			fmt.Fprintf(w, "   %s %s\n", e.Kind, adminapi.Printable(e.Arg))
		case policy.InsertField, policy.ReplaceField, policy.DeleteField, policy.ReplaceBody:
		}
	}
	if message && rep.Message != nil {
		fmt.Fprintf(w, "\n%s", strings.ReplaceAll(string(rep.Message), "\r\n", "\n"))
	}
}

func writeMatch(w io.Writer, m *headercheck.Match, indent string) {
	text := strings.ToUpper(m.Action)
	if m.Arg != "" {
		text += " " + adminapi.Printable(m.Arg)
	}
	if m.Shadow {
		text += " (shadow)"
	}
	fmt.Fprintf(w, "%s%s %s => %s\n", indent, m.Rule, adminapi.Printable(m.Pattern), text)
}

func (c *cli) headersQuery() *cobra.Command {
	var tables []string
	var kind string
	var lenient bool
	cmd := &cobra.Command{
		Use: "query 'Subject: ...'", Short: "what the tables say about a header or line, as postmap -q does", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var k headercheck.Kind
			if err := k.UnmarshalText([]byte(kind)); err != nil {
				return err
			}
			check, err := c.rules(tables, k, lenient)
			if err != nil {
				return err
			}
			matches := check.Query(k, args[0])
			if len(matches) == 0 {
				return errSaid // as postmap -q: nothing, and status 1
			}
			return c.show(cmd.OutOrStdout(), matches, func(w io.Writer) {
				for i := range matches {
					writeMatch(w, &matches[i], "")
				}
			})
		},
	}
	cmd.Flags().StringArrayVar(&tables, "table", nil, "a table instead of those of the configuration, as pcre:/path or regexp:/path; can be given again")
	cmd.Flags().StringVar(&kind, "kind", "header", "tables of which kind: header, mime, nested or body")
	cmd.Flags().BoolVar(&lenient, "lenient", false, "skip bad rules as Postfix does")
	return cmd
}

func (c *cli) headersHits() *cobra.Command {
	var never bool
	cmd := &cobra.Command{
		Use: "hits", Short: "how often each rule has matched, and when last", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			out, err := headercheck.Admin{Client: cl}.Rules(cmd.Context())
			if err != nil {
				return err
			}
			rules := out.Rules
			if never {
				rules = nil
				for _, r := range out.Rules {
					if r.Hits == 0 {
						rules = append(rules, r)
					}
				}
			}
			return c.show(cmd.OutOrStdout(), rules, func(w io.Writer) {
				now := time.Now()
				tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
				fmt.Fprintln(tw, "HITS\tLAST\tCOUNTED\tKIND\tRULE\tPATTERN\tACTION")
				for _, r := range rules {
					action := r.Result
					if r.Shadow {
						action = "(shadow) " + action
					}
					fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Hits, adminapi.Ago(now, r.Last), adminapi.Ago(now, r.Since), r.Kind, r.Rule, adminapi.Printable(r.Pattern), adminapi.Printable(action))
				}
				_ = tw.Flush() // the terminal is gone
			})
		},
	}
	cmd.Flags().BoolVar(&never, "never", false, "only rules that have matched nothing")
	return cmd
}

func (c *cli) headersFilterLines() *cobra.Command {
	return &cobra.Command{
		Use: "filter-lines", Short: "the lines for Postfix's milter_header_checks that carry out FILTER actions", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			check, err := c.rules(nil, headercheck.Header, false)
			if err != nil {
				return err
			}
			for _, l := range check.FilterLines() {
				fmt.Fprintln(cmd.OutOrStdout(), l)
			}
			return nil
		},
	}
}
