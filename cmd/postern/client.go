package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"postern/client"
	"postern/internal/adminapi"
	"postern/internal/conf"
)

func (c *cli) clientCommand() *cobra.Command {
	var q client.Question
	var sender string
	test := &cobra.Command{
		Use: "test IP", Short: "judge a client by every condition, and say what would come of it",
		Long: "Has the running daemon judge an address, its HELO name and a sender, with its resolver and settings; what is not given\n" +
			"is not judged. Conditions that are off are judged too, and do nothing. What is remembered is not used, and nothing is counted.",
		Example: "  postern client test 192.0.2.7\n" +
			"  postern client test 192.0.2.7 --helo mail.example.org --sender a@example.org\n" +
			"  postern client test 2001:db8::7 --name mail.example.org     as if Postfix had verified that name",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddr(args[0])
			if err != nil {
				return err
			}
			if q.IP = addr.String(); cmd.Flags().Changed("sender") {
				q.Sender = &sender
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			r, err := client.Admin{Client: cl}.Test(cmd.Context(), &q)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), r, func(w io.Writer) { writeClient(w, &r) })
		},
	}
	f := test.Flags()
	f.StringVar(&q.Helo, "helo", "", "HELO or EHLO name")
	f.StringVar(&sender, "sender", "", "envelope sender; empty for the null sender")
	f.StringVar(&q.Name, "name", "", "verified reverse name; without it the DNS is asked")
	cmd := &cobra.Command{Use: "client", Short: "what a client says of itself", Args: cobra.NoArgs}
	cmd.AddCommand(test)
	return cmd
}

func writeClient(w io.Writer, r *client.Report) {
	if r.Exempt != "" {
		fmt.Fprintf(w, "such a client is not judged (%s); if it were:\n", adminapi.Printable(r.Exempt))
	}
	for _, a := range r.Answers {
		source := adminapi.Tidy(a.Took).String()
		if a.Cached {
			source = "cache"
		}
		fmt.Fprintf(w, "%s: %s  [%s]\n", adminapi.Printable(a.What), adminapi.Printable(a.Says), source)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, c := range r.Conditions {
		action := c.Action.String()
		if c.Action == conf.Mark {
			action = fmt.Sprintf("mark, weight %d", c.Weight)
		}
		result := string(c.Result)
		if c.Result == client.Found {
			result = "FOUND"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", c.Condition, result, action, adminapi.Printable(c.Detail))
	}
	_ = tw.Flush() // errors show with the next line
	fmt.Fprintf(w, "=> %s", r.Action)
	if r.Reason != "" {
		fmt.Fprintf(w, " (%s)", r.Reason)
	}
	if r.Reply.Code != 0 {
		fmt.Fprintf(w, ": %s", r.Reply)
	}
	if r.Score > 0 {
		fmt.Fprintf(w, "; marks weigh %d", r.Score)
	}
	fmt.Fprintln(w)
}
