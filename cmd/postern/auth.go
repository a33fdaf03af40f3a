package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/internal/adminapi"
)

func (c *cli) authCommand() *cobra.Command {
	var q auth.Question
	test := &cobra.Command{
		Use: "test FILE.eml", Short: "verify a message step by step, and say what would be written and done",
		Long: "Has the running daemon look at a message, - for standard input, with its resolver and settings: SPF, every\n" +
			"DKIM signature, the ARC chain, DMARC for every author. Nothing is counted or remembered.",
		Example: "  postern auth test mail.eml --client 192.0.2.7 --helo mail.example.org --sender a@example.org",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := parseAddr(q.Client); err != nil {
				return err
			}
			var err error
			if q.Message, err = readInput(cmd, args[0]); err != nil {
				return err
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			r, err := auth.Admin{Client: cl}.Test(cmd.Context(), q)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), r, func(w io.Writer) { writeAuth(w, &r) })
		},
	}
	f := test.Flags()
	f.StringVar(&q.Client, "client", "", "IP address of the client")
	f.StringVar(&q.Name, "name", "", "its verified name")
	f.StringVar(&q.Helo, "helo", "", "HELO or EHLO name")
	f.StringVar(&q.Sender, "sender", "", "envelope sender; empty for the null sender")
	f.StringVar(&q.Login, "login", "", "as whom the client has logged in")
	if err := test.MarkFlagRequired("client"); err != nil {
		panic(err) // it is defined above
	}
	cmd := &cobra.Command{Use: "auth", Short: "mail authentication: SPF, DKIM, DMARC, ARC", Args: cobra.NoArgs}
	cmd.AddCommand(test)
	return cmd
}

func writeAuth(w io.Writer, r *auth.Report) {
	p := adminapi.Printable
	if r.Skipped != "" {
		fmt.Fprintf(w, "such a message is not looked at (%s); if it were:\n", p(r.Skipped))
	}
	if r.Hostile != "" {
		fmt.Fprintf(w, "no signature is looked at: %s\n", p(r.Hostile))
	}
	fmt.Fprintf(w, "SPF      %s", cmp.Or(r.SPF.Result, "none"))
	if r.SPF.Domain != "" {
		fmt.Fprintf(w, " for %s (%s)", p(r.SPF.Domain), p(r.SPF.Identity))
	}
	fmt.Fprintln(w)
	if len(r.Signatures) == 0 {
		fmt.Fprintln(w, "DKIM     none")
	}
	for i := range r.Signatures {
		s := &r.Signatures[i]
		fmt.Fprintf(w, "DKIM     %s%s\n", s.Result, reasonOf(s.Reason))
		line := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "           %-10s %s\n", name, p(value))
			}
		}
		line("domain", s.Domain+" (selector "+s.Selector+", "+s.Algorithm+")")
		line("canonical", s.Canon)
		line("signs", strings.Join(s.Signed, ": "))
		if s.BodyHash != "" {
			same := "as signed"
			if s.BodyHash != s.Claimed {
				same = "signed was " + s.Claimed
			}
			line("body", s.BodyHash+", "+same)
			line("fields", s.Hash)
		}
		line("key at", s.KeyName)
		line("record", s.Record)
		if s.Bits > 0 {
			line("RSA bits", fmt.Sprint(s.Bits))
		}
	}
	fmt.Fprintf(w, "ARC      %s%s\n", r.ARC.Result, reasonOf(r.ARC.Reason))
	for i, s := range r.ARC.Sets {
		trusted := "not trusted"
		if s.Trusted {
			trusted = "trusted"
		}
		fmt.Fprintf(w, "           %d %s (%s)\n             %s\n", i+1, p(s.Sealer), trusted, p(strings.Join(strings.Fields(s.Results), " ")))
	}
	for _, u := range r.Upstream {
		fmt.Fprintf(w, "upstream %s\n", p(u))
	}
	for i := range r.Authors {
		a := &r.Authors[i]
		fmt.Fprintf(w, "DMARC    %s for %s%s\n", a.Result, p(a.Domain), reasonOf(a.Reason))
		if a.Record != "" {
			fmt.Fprintf(w, "           record of %s: %s\n", p(a.Record), p(a.Text))
		}
		switch {
		case len(a.Aligned) > 0:
			fmt.Fprintf(w, "           aligned: %s\n", strings.Join(a.Aligned, ", "))
		case a.Sealer != "":
			fmt.Fprintf(w, "           fails here, and has passed at %s, which is trusted\n", p(a.Sealer))
		case a.Wish != "":
			fmt.Fprintf(w, "           neither SPF nor DKIM passed for it; its owner asks for: %s\n", a.Wish)
		}
	}
	if r.BadFrom != "" {
		fmt.Fprintf(w, "From     %s\n", p(r.BadFrom))
	}
	for _, f := range r.Removed {
		fmt.Fprintf(w, "removed  %s\n", p(strings.Join(strings.Fields(f), " ")))
	}
	if r.Field != "" {
		fmt.Fprintln(w, "written ")
		for line := range strings.SplitSeq(r.Field, "\n") {
			fmt.Fprintf(w, "  %s\n", p(strings.ReplaceAll(line, "\t", "    ")))
		}
	}
	fmt.Fprintf(w, "=> %s (%s)", r.Verdict.Action, r.Verdict.Reason)
	if r.Verdict.Reply.Code != 0 {
		fmt.Fprintf(w, ": %s", r.Verdict.Reply)
	}
	if len(r.Marks) > 0 {
		fmt.Fprintf(w, ", marks %s", strings.Join(r.Marks, ", "))
	}
	fmt.Fprintln(w)
}

// reasonOf is a reason behind a result, "" for none.
func reasonOf(s string) string {
	if s == "" {
		return ""
	}
	return ": " + adminapi.Printable(s)
}
