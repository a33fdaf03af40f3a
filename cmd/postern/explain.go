package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/admin"
	"postern/internal/adminapi"
	"postern/journal"
	"postern/policy"
)

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (c *cli) explainCommand() *cobra.Command {
	var q admin.Question
	var recent int
	cmd := &cobra.Command{
		Use:   "explain [REFERENCE]",
		Short: "show every step of a decision",
		Long: "With flags, asks the running daemon what it would decide, and changes nothing: no entry is\n" +
			"written, nothing is counted. With the reference of a refusal (\"ref ABCDE-FGHJK\" in the\n" +
			"bounce), shows how that decision came about, also when the daemon has been restarted since or\n" +
			"is down. With --recent, lists the newest refusals. Past decisions by address, client or reason:\n" +
			"`postern journal search`.",
		Example: "  postern explain --client 192.0.2.7 --helo mail.example.org --sender a@example.org --recipient b@example.com\n" +
			"  postern explain 7K3QX-2MDAB",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w := cmd.OutOrStdout()
			if len(args) == 1 {
				rec, err := c.findDecision(cmd, args[0])
				if err != nil {
					return err
				}
				return c.show(w, rec, func(w io.Writer) { writeRecord(w, rec) })
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			switch {
			case recent > 0:
				list, err := journal.Admin{Client: cl}.Recent(cmd.Context(), recent)
				if err != nil {
					return err
				}
				return c.show(w, list, func(w io.Writer) { writeRecent(w, list) })
			case q.Client == "":
				return fmt.Errorf("name the client's address with --client, or give a reference")
			}
			if !cmd.Flags().Changed("helo") {
				q.Helo = addressLiteral(q.Client)
			}
			d, err := admin.Client{Client: cl}.Explain(cmd.Context(), q)
			if err != nil {
				return err
			}
			return c.show(w, d, func(w io.Writer) { writeDecision(w, d) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Client, "client", "", "IP address of the client")
	f.StringVar(&q.ClientName, "client-name", "", "verified reverse name of the client (default: looked up as Postfix does)")
	f.StringVar(&q.Helo, "helo", "", "HELO or EHLO name (default: the client's address in brackets)")
	f.StringVar(&q.Sender, "sender", "", "envelope sender; empty for the null sender")
	f.StringVar(&q.Recipient, "recipient", "", "envelope recipient")
	f.StringVar(&q.Stage, "stage", "rcpt", "SMTP stage: connect, helo, mail, rcpt, data, end-of-message, vrfy, etrn")
	f.StringVar(&q.Context, "context", "", "policy_context, which picks a chain")
	f.StringVar(&q.Login, "login", "", "SASL login name")
	f.IntVar(&recent, "recent", 0, "list this many of the newest refusals")
	return cmd
}

func writeDecision(w io.Writer, d *policy.Decision) {
	fmt.Fprintf(w, "chain %s\n", d.Chain)
	for i, s := range d.Steps {
		fmt.Fprintf(w, "%2d. %-10s %s", i+1, s.Check, stepText(&s))
		if s.Outcome != policy.Skipped && s.Outcome != policy.Hinted {
			fmt.Fprintf(w, "  (%s)", adminapi.Tidy(s.Took))
		}
		fmt.Fprintln(w)
		if s.Verdict.Detail != "" {
			fmt.Fprintf(w, "      %s\n", s.Verdict.Detail)
		}
		for _, n := range s.Notes {
			fmt.Fprintf(w, "      %-28s %s", n.What, n.Value)
			if n.Source != "" {
				fmt.Fprintf(w, "  [%s]", n.Source)
			}
			if n.Took > 0 {
				fmt.Fprintf(w, "  %s", adminapi.Tidy(n.Took))
			}
			fmt.Fprintln(w)
		}
	}
	fmt.Fprintf(w, "=> %s", d.Verdict.Text())
	if d.Check != "" {
		fmt.Fprintf(w, ", by %s", d.Check)
	}
	fmt.Fprintf(w, "  (%s in all)\n", adminapi.Tidy(d.Took))
	if d.WouldCheck != "" {
		fmt.Fprintf(w, "   in shadow: %s would say %s\n", d.WouldCheck, d.Would.Text())
	}
	for _, h := range d.Headers {
		fmt.Fprintf(w, "   adds %s: %s\n", h.Name, h.Value)
	}
	if d.Degraded {
		fmt.Fprintln(w, "   degraded: something could not be asked, see above")
	}
}

func stepText(s *policy.Step) string {
	switch s.Outcome {
	case policy.Skipped:
		return "not asked: " + s.Error
	case policy.Failed, policy.TimedOut, policy.Panicked:
		text := s.Outcome.String() + ": " + s.Error
		if s.Verdict.Action != policy.Continue {
			text += "; on_error: " + s.Verdict.Text()
		}
		return text
	case policy.Shadowed:
		return "in shadow: " + s.Verdict.Text()
	case policy.Hinted:
		return "known already: " + s.Verdict.Text()
	default:
		return s.Verdict.Text()
	}
}

func writeRecord(w io.Writer, r *journal.Record) {
	fmt.Fprintf(w, "%s  %s at %s\n", r.Decision.Reference, r.Time.Format(time.RFC3339), r.Stage)
	for _, f := range [][2]string{
		{"client", strings.TrimSpace(r.Client + " " + r.Name)},
		{"helo", r.Helo},
		{"sender", orNull(r.Sender)},
		{"recipient", r.Recipient},
		{"login", r.Login},
		{"queue id", r.QueueID},
		{"context", r.Context},
	} {
		if f[1] != "" {
			fmt.Fprintf(w, "  %-10s %s\n", f[0], adminapi.Printable(f[1]))
		}
	}
	writeDecision(w, r.Decision)
}

func writeRecent(w io.Writer, list []*journal.Record) {
	for _, r := range list {
		writeLine(w, r)
	}
}

// writeLine writes a decision in one line.
func writeLine(w io.Writer, r *journal.Record) {
	d := r.Decision
	text := d.Verdict.Text()
	if d.WouldCheck != "" {
		text += "; in shadow: " + d.WouldCheck + " would say " + d.Would.Text()
	}
	who := adminapi.Printable(orNull(r.Sender)) + " -> " + adminapi.Printable(r.Recipient)
	if r.Recipient == "" {
		who = "at " + r.Stage.String()
		if r.Stage >= policy.StageMail {
			who = adminapi.Printable(orNull(r.Sender)) + " " + who
		}
	}
	fmt.Fprintf(w, "%s  %s  %s  %s  %s\n", r.Time.Local().Format("2006-01-02 15:04:05"), cmp.Or(d.Reference, "-"),
		r.Client, who, text)
}

func orNull(sender string) string {
	if sender == "" {
		return "<>"
	}
	return sender
}
