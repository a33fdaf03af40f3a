package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/greylist"
	"postern/internal/adminapi"
	"postern/replay"
)

func (c *cli) greylistCommand() *cobra.Command {
	var f greylist.Filter
	var all bool
	cmd := &cobra.Command{
		Use: "greylist", Short: "look at and change what greylisting remembers",
		Long: "Entries are of three kinds: triplet (sending side, sender and recipient that have passed), credit\n" +
			"(how often a side has passed) and waiting (a side that has not passed yet).\n" +
			"The filters --who, --sender and --recipient match a part of the field, without regard to case.",
		Args: cobra.NoArgs,
	}
	pf := cmd.PersistentFlags()
	pf.StringVar(&f.Kind, "kind", "", "only triplet, credit or waiting")
	pf.StringVar(&f.Who, "who", "", "part of the sending side, as it is matched or credited: net:192.0.2.0/24, org:example.org, ...")
	pf.StringVar(&f.Sender, "sender", "", "part of the sender")
	pf.StringVar(&f.Recipient, "recipient", "", "part of the recipient")

	list := func(cmd *cobra.Command, f greylist.Filter) (int, error) {
		cl, err := c.client()
		if err != nil {
			return 0, err
		}
		w, n := cmd.OutOrStdout(), 0
		if c.json {
			err = greylist.Admin{Client: cl}.List(cmd.Context(), f, func(e greylist.Entry) bool {
				n++
				return writeJSON(w, e) == nil
			})
			return n, err
		}
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		now := time.Now()
		err = greylist.Admin{Client: cl}.List(cmd.Context(), f, func(e greylist.Entry) bool {
			if n == 0 {
				fmt.Fprintln(tw, "KIND\tMATCH OR CREDIT\tSENDER\tRECIPIENT\tFIRST\tLAST\tDELAYED\tPASSED")
			}
			n++
			_, err := fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\n", e.Kind, adminapi.Printable(e.Match+e.Credit), senderColumn(e), adminapi.Printable(e.Recipient),
				adminapi.Ago(now, e.First), adminapi.Ago(now, e.Last), e.Attempts, e.Passes)
			return err == nil
		})
		return n, errors.Join(err, tw.Flush())
	}

	ls := &cobra.Command{
		Use: "list", Short: "list entries", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := list(cmd, f)
			return err
		},
	}
	ls.Flags().IntVar(&f.Limit, "limit", 1000, "most entries to list; 0: all")

	show := &cobra.Command{
		Use: "show TEXT", Short: "list the entries in which TEXT occurs as a sending side, sender or recipient", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			total := 0
			for _, g := range []greylist.Filter{{Who: args[0]}, {Sender: args[0]}, {Recipient: args[0]}} {
				g.Kind = f.Kind
				n, err := list(cmd, g)
				if err != nil {
					return err
				}
				total += n
			}
			if total == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no entry holds", adminapi.Printable(args[0]))
				return errSaid
			}
			return nil
		},
	}

	forget := &cobra.Command{
		Use: "forget", Short: "remove entries: who is forgotten is delayed again", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			n, err := greylist.Admin{Client: cl}.Forget(cmd.Context(), f, all)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), map[string]int{"entries": n}, func(w io.Writer) { fmt.Fprintln(w, n, "entries forgotten") })
		},
	}
	forget.Flags().BoolVar(&all, "all", false, "everything, when no filter is given")

	stats := &cobra.Command{
		Use: "stats", Short: "count entries", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			n, err := greylist.Admin{Client: cl}.Stats(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), n, func(w io.Writer) {
				fmt.Fprintf(w, "triplets  %d\ncredit    %d\nwaiting   %d\n", n.Triplets, n.Credits, n.Waiting)
			})
		},
	}
	cmd.AddCommand(ls, show, forget, stats, c.expectCommand(), c.greylistLearnCommand())
	return cmd
}

func senderColumn(e greylist.Entry) string {
	if e.Kind == greylist.KindCredit {
		return "-"
	}
	return adminapi.Printable(orNull(e.Sender))
}

// greylistLearned is what `postern greylist learn` reports.
type greylistLearned struct {
	Lines   int `json:"lines"`
	Unread  int `json:"unread"`
	Dropped int `json:"dropped"`
	// Refused are requests that were not accepted then, Own those of users.
	Refused int `json:"refused"`
	Own     int `json:"own"`
	greylist.Learned
}

func (c *cli) greylistLearnCommand() *cobra.Command {
	var logs []string
	cmd := &cobra.Command{
		Use: "learn --log FILE... [FILE...]", Short: "learn from Postfix's log who has written before, so that they are not delayed",
		Long: "Reads mail logs, gzip'd ones too, - for standard input; the oldest first. Mail that was accepted from\n" +
			"clients without a login passes greylisting as if it had been there: its correspondents are known, and\n" +
			"sides earn their credit. What postern knows already stays as it is.",
		Example: "  postern greylist learn --log /var/log/mail.log.2.gz /var/log/mail.log.1 /var/log/mail.log",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			files := append(logs, args...)
			if len(files) == 0 {
				return errors.New("say which log: --log FILE, or - for standard input")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			out, err := learnPast(cmd, greylist.Admin{Client: cl}, files)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), out, func(w io.Writer) { writeGreylistLearned(w, &out) })
		},
	}
	cmd.Flags().StringArrayVar(&logs, "log", nil, "a log; more may follow as arguments")
	return cmd
}

// learnPast reads the files and hands over what they tell.
func learnPast(cmd *cobra.Command, api greylist.Admin, files []string) (out greylistLearned, err error) {
	log := replay.Log{Now: time.Now()}
	for _, name := range files {
		if err := readLog(cmd, name, log.Read); err != nil {
			return out, fmt.Errorf("%s: %w", name, err)
		}
	}
	out.Lines, out.Unread = log.Lines()
	out.Dropped = log.Dropped
	session := rand.Text()
	var batch []greylist.Past
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		learned, err := api.Learn(cmd.Context(), session, batch)
		out.Add(learned)
		batch = batch[:0]
		return err
	}
	for _, it := range log.Items() {
		r := it.Request
		switch {
		case it.Then.What != "accepted":
			out.Refused++
			continue
		case r.SASL.Username != "":
			out.Own++
			continue
		}
		batch = append(batch, greylist.Past{Time: r.Time, Client: r.Client.Addr, Name: r.Client.Name, Sender: r.Sender.Raw, Recipient: r.Recipient.Raw})
		if len(batch) == greylist.MaxPast {
			if err := flush(); err != nil {
				return out, err
			}
		}
	}
	return out, flush()
}

func writeGreylistLearned(w io.Writer, l *greylistLearned) {
	fmt.Fprintf(w, "%d lines of log, mail to %d recipients learned\n", l.Lines, l.Taken)
	for _, row := range []struct {
		n    int
		text string
	}{
		{l.Refused, "not learned: refused then"},
		{l.Own, "not learned: of users who had logged in"},
		{l.Known, "not learned: known already"},
		{l.Exempt, "not learned: exempt from greylisting, or without a sender"},
		{l.TooOld, "not learned: longer ago than greylist.keep"},
		{l.Unknown, "not learned: the client cannot be recognised"},
		{l.Dropped, "not read: more than is remembered of one log"},
		{l.Unread, "lines of no form that is known"},
	} {
		if row.n > 0 {
			fmt.Fprintf(w, "%8d  %s\n", row.n, row.text)
		}
	}
}
