package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"postern/config"
	"postern/greylist"
	"postern/internal/adminapi"
	"postern/moving"
	"postern/replay"
	"postern/resolver"
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
	p := startProgress(cmd, "requests of the past", len(log.Items()))
	defer p.finish()
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
		p.add(1)
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
	writeCounts(w, []counted{
		{l.Refused, "not learned: refused then"},
		{l.Own, "not learned: of users who had logged in"},
		{l.Known, "not learned: known already"},
		{l.Exempt, "not learned: exempt from greylisting, or without a sender"},
		{l.TooOld, "not learned: longer ago than greylist.keep"},
		{l.Unknown, "not learned: the client cannot be recognised"},
		{l.Dropped, "not read: more than is remembered of one log"},
		{l.Unread, "lines of no form that is known"},
	})
}

// importedGreylist is what an import into greylisting reports.
type importedGreylist struct {
	Records int `json:"records"` // that had passed there
	Waiting int `json:"waiting"`
	Hidden  int `json:"hidden,omitempty"`
	Unread  int `json:"unread,omitempty"`
	Named   int `json:"named"` // clients with a verified name
	greylist.Learned
}

// importGreylisted hands over what a greylisting program knew.
func (c *cli) importGreylisted(cmd *cobra.Command, g *moving.Greylisted, dns bool) error {
	out := importedGreylist{Records: len(g.Past), Waiting: g.Waiting, Hidden: g.Hidden, Unread: g.Unread}
	cl, err := c.client()
	if err != nil {
		return err
	}
	if dns {
		if out.Named, err = c.nameClients(cmd, g.Past); err != nil {
			return err
		}
	}
	p := startProgress(cmd, "records handed over", len(g.Past))
	session := rand.Text()
	for part := range slices.Chunk(g.Past, greylist.MaxPast) {
		past := make([]greylist.Past, len(part))
		for i := range part {
			past[i] = greylist.Past(part[i])
		}
		var learned greylist.Learned
		if learned, err = (greylist.Admin{Client: cl}).Learn(cmd.Context(), session, past); err != nil {
			break
		}
		out.Add(learned)
		p.add(len(part))
	}
	p.finish()
	if err != nil {
		return fmt.Errorf("after %d of %d records: %w", out.Taken+out.Known+out.Exempt+out.TooOld+out.Unknown, len(g.Past), err)
	}
	return c.show(cmd.OutOrStdout(), out, func(w io.Writer) {
		fmt.Fprintf(w, "%d records of mail that had passed: %d taken\n", out.Records, out.Taken)
		writeCounts(w, []counted{
			{out.Known, "not taken: known already"},
			{out.Exempt, "not taken: exempt from greylisting, or without a sender"},
			{out.TooOld, "not taken: longer ago than greylist.keep"},
			{out.Unknown, "not taken: nothing by which the client could be known here"},
			{out.Waiting, "not taken: had not passed; they wait here anew"},
			{out.Hidden, "not taken: hashed addresses"},
			{out.Unread, "not read"},
		})
		if g.First != nil {
			fmt.Fprintln(w, "          the first:", adminapi.Printable(g.First.Error()))
		}
	})
}

// nameClients looks for the names of clients in DNS, as configured in [dns].
func (c *cli) nameClients(cmd *cobra.Command, passes []moving.Pass) (int, error) {
	cfg := config.Peek(c.config)
	res, err := resolver.New(cfg.DNS, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		return 0, err
	}
	defer res.Close()
	p := startProgress(cmd, "clients' names looked up", 0)
	defer p.finish()
	named := moving.Names(cmd.Context(), res.Net(), passes, func() { p.add(1) })
	return named, cmd.Context().Err()
}

func dnsFlag(cmd *cobra.Command, dns *bool) {
	cmd.Flags().BoolVar(dns, "dns", true, "look the clients' names up, by which postern knows a sending side")
}

func (c *cli) importPostgreyCommand() *cobra.Command {
	var clients string
	var dns bool
	delay := 300 * time.Second
	cmd := &cobra.Command{
		Use: "postgrey FILE", Short: "postgrey's triplets, and with --clients its auto-whitelist",
		Long: "FILE is postgrey.db, which needs db_dump, or what `db_dump -p` has printed of it; - for standard input.\n" +
			"Stop postgrey first, or copy the whole directory: Berkeley DB may still hold changes in its log.\n" +
			"Whitelist files need no import: name them in exceptions of [greylist].",
		Example: "  postern import postgrey --clients /var/lib/postgrey/postgrey_clients.db /var/lib/postgrey/postgrey.db",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var g *moving.Greylisted
			read := func(clientsIn io.Reader) error {
				return readDump(cmd, args[0], func(in io.Reader) (err error) {
					g, err = moving.Postgrey(in, clientsIn, int64(delay/time.Second))
					return err
				})
			}
			err := error(nil)
			if clients == "" {
				err = read(nil)
			} else {
				err = readDump(cmd, clients, read)
			}
			if err != nil {
				return err
			}
			return c.importGreylisted(cmd, g, dns)
		},
	}
	cmd.Flags().StringVar(&clients, "clients", "", "postgrey_clients.db or its dump: clients that postgrey lets in at once")
	cmd.Flags().DurationVar(&delay, "delay", delay, "postgrey's --delay: who came again within it has not passed")
	dnsFlag(cmd, &dns)
	return cmd
}

func (c *cli) importSqlgreyCommand() *cobra.Command {
	var dns bool
	cmd := &cobra.Command{
		Use: "sqlgrey FILE", Short: "sqlgrey's auto-whitelists",
		Long: "FILE is a dump in SQL (sqlite3 FILE .dump, mysqldump, pg_dump), an SQLite file, which needs sqlite3, or -\n" +
			"for standard input. sqlgrey knows senders and domains by network, not by recipient: they become credit.",
		Example: "  mysqldump sqlgrey | postern import sqlgrey -",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var g *moving.Greylisted
			err := readDump(cmd, args[0], func(in io.Reader) (err error) {
				g, err = moving.Sqlgrey(in, time.Local)
				return err
			})
			if err != nil {
				return err
			}
			return c.importGreylisted(cmd, g, dns)
		},
	}
	dnsFlag(cmd, &dns)
	return cmd
}

func (c *cli) importMilterGreylistCommand() *cobra.Command {
	var dns bool
	cmd := &cobra.Command{
		Use: "milter-greylist FILE", Short: "milter-greylist's auto-whitelisted tuples",
		Long:    "FILE is milter-greylist's dump, greylist.db; - for standard input.",
		Example: "  postern import milter-greylist /var/lib/milter-greylist/db/greylist.db",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var g *moving.Greylisted
			err := readDump(cmd, args[0], func(in io.Reader) (err error) {
				g, err = moving.MilterGreylist(in, time.Now())
				return err
			})
			if err != nil {
				return err
			}
			return c.importGreylisted(cmd, g, dns)
		},
	}
	dnsFlag(cmd, &dns)
	return cmd
}
