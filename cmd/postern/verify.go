package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/internal/adminapi"
	"postern/moving"
	"postern/verify"
)

func (c *cli) verifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify ADDRESS", Short: "ask now whether a recipient is known behind us, and show the dialogue",
		Long: "Asks the sources of the address's route now, whatever is remembered, shows what was said, and remembers\n" +
			"the answer. The sub-commands look at and change what is remembered.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			rep, err := verify.Admin{Client: cl}.Ask(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), rep, func(w io.Writer) { writeVerifyReport(w, rep, time.Now()) })
		},
	}
	cmd.AddCommand(c.verifyList(), c.verifyShow(), c.verifyPurge(), c.verifyRecheck(), c.verifyNextHops(), c.verifyLearn())
	return cmd
}

// which reads the optional argument "user@example.org" or "@example.org".
func which(args []string) (verify.Filter, error) {
	if len(args) == 0 {
		return verify.Filter{}, nil
	}
	return verify.ParseFilter(args[0])
}

func (c *cli) verifyList() *cobra.Command {
	var negative bool
	limit := 0
	cmd := &cobra.Command{
		Use: "list [ADDRESS|@DOMAIN]", Short: "list what is remembered", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := which(args)
			if err != nil {
				return err
			}
			f.Negative, f.Limit = negative, limit
			_, err = c.listVerified(cmd, f)
			return err
		},
	}
	cmd.Flags().BoolVar(&negative, "negative", false, "all but known addresses")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so many")
	return cmd
}

func (c *cli) listVerified(cmd *cobra.Command, f verify.Filter) (int, error) {
	cl, err := c.client()
	if err != nil {
		return 0, err
	}
	w, n := cmd.OutOrStdout(), 0
	if c.json {
		err = verify.Admin{Client: cl}.List(cmd.Context(), f, func(r verify.Record) bool {
			n++
			return writeJSON(w, r) == nil
		})
		return n, err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	now := time.Now()
	err = verify.Admin{Client: cl}.List(cmd.Context(), f, func(r verify.Record) bool {
		if n == 0 {
			fmt.Fprintln(tw, "ADDRESS\tRESULT\tSINCE\tEXPIRES\tSOURCE\tANSWER")
		}
		n++
		_, err := fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", adminapi.Printable(r.Address), resultText(&r), adminapi.Ago(now, r.At), adminapi.Until(now, r.Expires), adminapi.Printable(r.Source), adminapi.Printable(r.Detail))
		return err == nil
	})
	return n, errors.Join(err, tw.Flush())
}

func resultText(r *verify.Record) string {
	text := string(r.Result)
	if !r.Live {
		text += " (expired)"
	}
	if r.Strikes > 0 {
		text += " (in doubt)"
	}
	if r.Asking {
		text += " (being asked)"
	}
	return text
}

func (c *cli) verifyShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ADDRESS", Short: "show what is remembered of one address", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := verify.ParseFilter(args[0])
			if err != nil {
				return err
			}
			if strings.HasPrefix(f.Which, "@") {
				return errors.New("want one address; `postern verify list @domain` lists a domain")
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			found := false
			err = verify.Admin{Client: cl}.List(cmd.Context(), f, func(r verify.Record) bool {
				found = true
				_ = c.show(cmd.OutOrStdout(), r, func(w io.Writer) { writeVerified(w, &r, time.Now()) }) // the terminal is gone
				return false
			})
			if err == nil && !found {
				fmt.Fprintln(cmd.ErrOrStderr(), adminapi.Printable(args[0]), "is not remembered")
				return errSaid
			}
			return err
		},
	}
}

func writeVerified(w io.Writer, r *verify.Record, now time.Time) {
	fmt.Fprintf(w, "%s: %s since %s\n", adminapi.Printable(r.Address), resultText(r), adminapi.Ago(now, r.At))
	for _, l := range []struct{ name, text string }{
		{"source", r.Source},
		{"answer", r.Detail},
		{"asked again", "when used " + adminapi.Until(now, r.Refresh)},
		{"expires", adminapi.Until(now, r.Expires)},
		{"last attempt", adminapi.Ago(now, r.Tried) + " ago"},
		{"which failed", r.Error},
	} {
		if l.text != "" && !strings.HasSuffix(l.text, "-") {
			fmt.Fprintf(w, "  %-13s %s\n", l.name, adminapi.Printable(l.text))
		}
	}
}

func writeVerifyReport(w io.Writer, rep *verify.Report, now time.Time) {
	fmt.Fprintf(w, "route     %s; sources: %s\n", rep.Route, strings.Join(rep.Sources, ", "))
	if len(rep.NextHop) > 0 {
		fmt.Fprintf(w, "next hop  %s\n", strings.Join(rep.NextHop, ", "))
	}
	if rep.Before != nil {
		fmt.Fprintf(w, "before    %s since %s\n", resultText(rep.Before), adminapi.Ago(now, rep.Before.At))
	}
	for _, line := range rep.Dialogue {
		fmt.Fprintf(w, "  %s\n", adminapi.Printable(line))
	}
	switch {
	case rep.AcceptAll:
		fmt.Fprintf(w, "now       the next hop takes every address of the domain: its answer says nothing\n")
	default:
		fmt.Fprintf(w, "now       %s (%s: %s), in %s\n", strings.ToUpper(string(rep.Now.Result)), adminapi.Printable(rep.Now.Source), adminapi.Printable(rep.Now.Detail), rep.Took)
	}
	if rep.After != nil && rep.After.Result != rep.Now.Result {
		fmt.Fprintf(w, "kept      %s since %s: one answer does not change what is known (`postern verify purge` does)\n", rep.After.Result, adminapi.Ago(now, rep.After.At))
	}
}

func (c *cli) verifyPurge() *cobra.Command {
	var negative, all bool
	cmd := &cobra.Command{
		Use: "purge [ADDRESS|@DOMAIN]", Short: "forget addresses: they are asked about anew", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := which(args)
			if err != nil {
				return err
			}
			f.Negative = negative
			cl, err := c.client()
			if err != nil {
				return err
			}
			done, err := verify.Admin{Client: cl}.Purge(cmd.Context(), f, all)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), done, func(w io.Writer) { fmt.Fprintln(w, done.Addresses, "addresses forgotten") })
		},
	}
	cmd.Flags().BoolVar(&negative, "negative", false, "all but known addresses")
	cmd.Flags().BoolVar(&all, "all", false, "everything, when nothing else is said")
	return cmd
}

func (c *cli) verifyRecheck() *cobra.Command {
	var negative, all bool
	cmd := &cobra.Command{
		Use: "recheck [ADDRESS|@DOMAIN]", Short: "ask about remembered addresses again, in the background", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := which(args)
			if err != nil {
				return err
			}
			f.Negative = negative
			cl, err := c.client()
			if err != nil {
				return err
			}
			done, err := verify.Admin{Client: cl}.Recheck(cmd.Context(), f, all)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), done, func(w io.Writer) {
				fmt.Fprintln(w, done.Addresses, "addresses are asked about")
				if done.Left > 0 {
					fmt.Fprintln(w, done.Left, "left out: too many at once, or no route any more")
				}
			})
		},
	}
	cmd.Flags().BoolVar(&negative, "negative", false, "all but known addresses")
	cmd.Flags().BoolVar(&all, "all", false, "everything, when nothing else is said")
	return cmd
}

func (c *cli) verifyNextHops() *cobra.Command {
	return &cobra.Command{
		Use: "next-hops", Short: "how next hops and directories are: health, rate, last error, accept-all", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.client()
			if err != nil {
				return err
			}
			out, err := verify.Admin{Client: cl}.NextHops(cmd.Context())
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), out, func(w io.Writer) { writeNextHops(w, &out, time.Now()) })
		},
	}
}

func writeNextHops(w io.Writer, out *verify.NextHops, now time.Time) {
	if len(out.NextHops)+len(out.Directories) == 0 {
		fmt.Fprintln(w, "none has been asked since the start")
	}
	for _, h := range out.NextHops {
		fmt.Fprintf(w, "%s: %s; asked %d, %d in the last minute, failed %d, %.0f ms on average; %d connections, %d idle, %d waiting\n",
			h.NextHop, strings.ToUpper(h.State), h.Asked, h.PerMinute, h.Failed, h.MeanSeconds*1000, h.Connections, h.Idle, h.Waiting)
		if !h.Until.IsZero() {
			fmt.Fprintf(w, "  left alone, asked again %s\n", adminapi.Until(now, h.Until))
		}
		if h.Alarm != "" {
			fmt.Fprintf(w, "  REFUSES THIS HOST: %s\n", adminapi.Printable(h.Alarm))
		}
		if h.LastError != "" {
			fmt.Fprintf(w, "  last error %s ago: %s\n", adminapi.Ago(now, h.ErrorAt), adminapi.Printable(h.LastError))
		}
		for _, domain := range slices.Sorted(maps.Keys(h.AcceptAll)) {
			if h.AcceptAll[domain] {
				fmt.Fprintf(w, "  TAKES EVERY ADDRESS of %s: its recipients cannot be verified here\n", domain)
			} else {
				fmt.Fprintf(w, "  tells unknown recipients of %s\n", domain)
			}
		}
	}
	for _, d := range out.Directories {
		health := "healthy"
		if !d.Healthy {
			health = "NOT USABLE"
		}
		fmt.Fprintf(w, "ldap:%s: %s; asked %d, failed %d\n", d.Name, health, d.Asked, d.Failed)
		if d.LastError != "" {
			fmt.Fprintf(w, "  last error %s ago: %s\n", adminapi.Ago(now, d.ErrorAt), adminapi.Printable(d.LastError))
		}
	}
}

// delivered is a line of Postfix's log that proves a mailbox: an SMTP or LMTP
// server has taken a message for it. What pipe(8) or a local agent took, what
// was only relayed to an error or discarded, and probes do not match.
var delivered = regexp.MustCompile(`postfix[-\w.]*(?:/[-\w.]+)*/(?:smtp|lmtp|relay)\[\d+\]: [0-9A-Za-z]+: to=<([^>]+)>,[^(]* dsn=2\.\d+\.\d+, status=sent \(2`)

// learnBatch is how many addresses are sent at once.
const learnBatch = 1000

func (c *cli) verifyLearn() *cobra.Command {
	var fromLog bool
	cmd := &cobra.Command{
		Use: "learn [FILE]", Short: "remember addresses as known that mail has been delivered to",
		Long: "Reads one address a line from FILE or standard input, or with --log lines of Postfix's log, of which it takes\n" +
			"the recipients that a next hop has accepted. Addresses of domains without a route are left out.\n" +
			"  journalctl -u postfix@- --since -31d | postern verify learn --log",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if len(args) == 1 && args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close() //nolint:errcheck // only read
				in = f
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			var total verify.Done
			var batch []string
			send := func() error {
				if len(batch) == 0 {
					return nil
				}
				done, err := verify.Admin{Client: cl}.Learn(cmd.Context(), batch)
				total.Addresses += done.Addresses
				total.Left += done.Left
				batch = batch[:0]
				return err
			}
			lines := bufio.NewScanner(in)
			lines.Buffer(nil, 1<<20)
			for lines.Scan() {
				address := strings.TrimSpace(lines.Text())
				if fromLog {
					m := delivered.FindStringSubmatch(address)
					if m == nil {
						continue
					}
					address = m[1]
				}
				if address == "" || address[0] == '#' {
					continue
				}
				if batch = append(batch, address); len(batch) == learnBatch {
					if err := send(); err != nil {
						return err
					}
				}
			}
			if err := errors.Join(lines.Err(), send()); err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), total, func(w io.Writer) {
				fmt.Fprintf(w, "%d addresses learned, %d left out\n", total.Addresses, total.Left)
			})
		},
	}
	cmd.Flags().BoolVar(&fromLog, "log", false, "the lines are Postfix's log")
	return cmd
}

// importedVerify is what `postern import verify` reports.
type importedVerify struct {
	Results int `json:"results"`
	Open    int `json:"open"`
	Unread  int `json:"unread,omitempty"`
	verify.Imported
}

// verifyBatch is how many results are handed over at once.
const verifyBatch = 2000

func (c *cli) importVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify FILE", Short: "Postfix's verify(8) cache: recipients",
		Long: "FILE is what `postmap -s` prints of address_verify_map; - for standard input. Results count from when they\n" +
			"were found, by the times of [verify]; addresses of domains without a route are left out.",
		Example: "  postmap -s btree:/var/lib/postfix/verify_cache | postern import verify -",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var cache *moving.VerifyCache
			err := readDump(cmd, args[0], func(in io.Reader) (err error) {
				cache, err = moving.Verify(in)
				return err
			})
			if err != nil {
				return err
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			out := importedVerify{Results: len(cache.Results), Open: cache.Open, Unread: cache.Unread}
			p := startProgress(cmd, "addresses handed over", len(cache.Results))
			for part := range slices.Chunk(cache.Results, verifyBatch) {
				results := make([]verify.Remembered, len(part))
				for i := range part {
					results[i] = verify.Remembered(part[i])
				}
				var one verify.Imported
				if one, err = (verify.Admin{Client: cl}).Import(cmd.Context(), results); err != nil {
					break
				}
				out.Add(one)
				p.add(len(part))
			}
			p.finish()
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), out, func(w io.Writer) {
				fmt.Fprintf(w, "%d addresses with a result: %d taken\n", out.Results, out.Taken)
				writeCounts(w, []counted{
					{out.Known, "not taken: what is remembered here is as good"},
					{out.Old, "not taken: expired by the times of [verify]"},
					{out.Left, "not taken: no route for their domain, or no address"},
					{out.Open, "without a result that lasts"},
					{out.Unread, "lines of no form that is known"},
				})
				if cache.First != nil {
					fmt.Fprintln(w, "          the first:", adminapi.Printable(cache.First.Error()))
				}
			})
		},
	}
}
