package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"postern/internal/adminapi"
	"postern/spf"
)

func (c *cli) spfCommand() *cobra.Command {
	var q spf.Question
	test := &cobra.Command{
		Use: "test", Short: "evaluate SPF for a client, step by step, and say what would come of it",
		Long: "Has the running daemon evaluate HELO name and sender, with its resolver and settings. What is remembered\n" +
			"of earlier outcomes is not used, and nothing is counted.",
		Example: "  postern spf test --ip 192.0.2.7 --sender a@example.org --helo mail.example.org\n" +
			"  postern spf test --ip 2001:db8::7 --helo mail.example.org     a bounce: the null sender",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := parseAddr(q.IP); err != nil {
				return err
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			r, err := spf.Admin{Client: cl}.Test(cmd.Context(), q)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), r, func(w io.Writer) { writeSPF(w, &r) })
		},
	}
	f := test.Flags()
	f.StringVar(&q.IP, "ip", "", "IP address of the client")
	f.StringVar(&q.Sender, "sender", "", "envelope sender; empty for the null sender")
	f.StringVar(&q.Helo, "helo", "", "HELO or EHLO name")
	if err := test.MarkFlagRequired("ip"); err != nil {
		panic(err) // it is defined above
	}
	cmd := &cobra.Command{Use: "spf", Short: "the Sender Policy Framework", Args: cobra.NoArgs}
	cmd.AddCommand(test)
	return cmd
}

func writeSPF(w io.Writer, r *spf.Report) {
	if r.Exempt != "" {
		fmt.Fprintf(w, "such a client is not asked about (%s); if it were:\n", adminapi.Printable(r.Exempt))
	}
	for _, id := range r.Identities {
		name := "MAIL FROM"
		if id.Identity == "helo" {
			name = "HELO"
		}
		domain := id.Domain
		if domain == "" {
			domain = "(no domain)"
		}
		fmt.Fprintf(w, "%s %s\n", name, adminapi.Printable(domain))
		for _, s := range id.Steps {
			source := adminapi.Tidy(s.Took).String()
			if s.Cached {
				source = "cache"
			}
			fmt.Fprintf(w, "  %s%s", strings.Repeat("  ", s.Depth), adminapi.Printable(s.Query))
			if s.Term != "" {
				fmt.Fprintf(w, "  for %s", adminapi.Printable(s.Term))
			}
			fmt.Fprintf(w, "  [%s]\n  %s  %s\n", source, strings.Repeat("  ", s.Depth), adminapi.Printable(s.Answer))
		}
		fmt.Fprintf(w, "  => %s", id.Result)
		switch {
		case id.TooWide:
			fmt.Fprint(w, ", which does not count: the record lets too many clients pass")
		case id.Problem != "":
			fmt.Fprintf(w, ": %s", adminapi.Printable(id.Problem))
		}
		if len(id.Match) > 0 {
			fmt.Fprintf(w, ", matched %s", adminapi.Printable(strings.Join(id.Match, " > ")))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "=> %s (%s)", r.Action, r.Reason)
	switch {
	case r.Reply.Code != 0:
		fmt.Fprintf(w, ": %s", r.Reply)
	case r.AllowedBy != "":
		fmt.Fprintf(w, ": %s", adminapi.Printable(r.AllowedBy))
	}
	fmt.Fprintln(w)
	if len(r.Marks) > 0 {
		fmt.Fprintf(w, "   marks %s\n", strings.Join(r.Marks, ", "))
	}
	if r.Header != "" && r.Reply.Code == 0 {
		fmt.Fprintf(w, "   adds %s\n", adminapi.Printable(r.Header))
	}
}
