package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/dmarcreport"
	"postern/internal/adminapi"
	"postern/internal/aggregate"
)

func (c *cli) dmarcCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "dmarc", Short: "DMARC: what others report about mail in our name, and what we report to them", Args: cobra.NoArgs}
	cmd.AddCommand(c.dmarcRead(), c.dmarcReport())
	return cmd
}

func (c *cli) dmarcReport() *cobra.Command {
	var date string
	var send dmarcreport.Request
	at := func() (dmarcreport.Admin, error) {
		cl, err := c.client()
		return dmarcreport.Admin{Client: cl}, err
	}
	list := &cobra.Command{
		Use: "list [DOMAIN]", Short: "what is counted, and which reports were sent", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := at()
			if err != nil {
				return err
			}
			all, err := a.List(cmd.Context(), date, strings.Join(args, ""))
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), all, func(w io.Writer) { writeReports(w, all) })
		},
	}
	show := &cobra.Command{
		Use: "show DOMAIN", Short: "the report of a domain, as XML", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := at()
			if err != nil {
				return err
			}
			r, err := a.Show(cmd.Context(), date, args[0])
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), &r, func(w io.Writer) { _ = aggregate.Write(w, &r) }) // as any other output
		},
	}
	now := &cobra.Command{
		Use: "send [DOMAIN]", Short: "send the reports of a day now, those of yesterday unless told", Args: cobra.MaximumNArgs(1),
		Long: "Reports go out by themselves in the night. One that was sent is not sent again without --again. Those of\n" +
			"a day that is not over want --unfinished: they are for a trial, the whole ones go out later all the same.",
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := at()
			if err != nil {
				return err
			}
			send.Day, send.Domain = date, strings.Join(args, "")
			all, err := a.Send(cmd.Context(), send)
			if err != nil {
				return err
			}
			return c.show(cmd.OutOrStdout(), all, func(w io.Writer) { writeSent(w, all, send.DryRun) })
		},
	}
	now.Flags().BoolVar(&send.DryRun, "dry-run", false, "only say what would be sent to whom")
	now.Flags().BoolVar(&send.Unfinished, "unfinished", false, "send what there is of a day that is not over")
	now.Flags().BoolVar(&send.Again, "again", false, "send those that were sent, too")
	cmd := &cobra.Command{Use: "report", Short: "aggregate reports to the owners of domains", Args: cobra.NoArgs}
	cmd.PersistentFlags().StringVar(&date, "day", "", "a day in UTC, such as 2026-11-27")
	cmd.AddCommand(list, show, now)
	return cmd
}

func writeReports(w io.Writer, all []dmarcreport.Entry) {
	p := adminapi.Printable
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "DAY\tDOMAIN\tMESSAGES\tROWS\tSTATE\tDUE\tTO")
	for i := range all {
		e := &all[i]
		to := cmp.Or(strings.Join(e.To, ", "), e.RUA)
		if e.Detail != "" {
			to += "; not to " + e.Detail
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\t%s\n", e.Day, p(e.Domain), e.Messages, e.Rows, e.State, e.Due.UTC().Format("2006-01-02 15:04 UTC"), p(to))
	}
	_ = t.Flush() // as any other output
}

func writeSent(w io.Writer, all []dmarcreport.Sent, dry bool) {
	p := adminapi.Printable
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing was counted that day")
	}
	for i := range all {
		s := &all[i]
		fmt.Fprintf(w, "%s %s: %d messages, ", s.Day, p(s.Domain), s.Messages)
		switch {
		case dry && len(s.To) > 0:
			fmt.Fprintf(w, "%d bytes would go to %s", s.Bytes, p(strings.Join(s.To, ", ")))
		case dry:
			fmt.Fprint(w, "would go to nobody")
		case s.Before && s.State == "sending":
			fmt.Fprint(w, "another gateway is sending it")
		case s.Before && len(s.To) > 0:
			fmt.Fprintf(w, "was sent before to %s", p(strings.Join(s.To, ", ")))
		case len(s.To) > 0:
			fmt.Fprintf(w, "sent to %s", p(strings.Join(s.To, ", ")))
		default:
			fmt.Fprint(w, s.State)
		}
		if s.Detail != "" {
			fmt.Fprintf(w, "; not to %s", p(s.Detail))
		}
		for _, k := range s.Skipped {
			fmt.Fprintf(w, "; not to %s", p(k))
		}
		fmt.Fprintln(w)
	}
}

// errUnread is returned when a report could not be read; the faults were shown.
var errUnread = errors.New("not all could be read")

func (c *cli) dmarcRead() *cobra.Command {
	var names bool
	var domain string
	cmd := &cobra.Command{
		Use: "read FILE...", Short: "read aggregate reports: who sends in our name, and does it pass",
		Long: "Reads the reports that others send to the rua address of a DMARC record: XML, gzip or zip, mails with such\n" +
			"attachments, mailboxes, directories of these, - for standard input. Shows a line for each client and domain in\n" +
			"From, those first of which most fails. Needs no daemon.",
		Example: "  postern dmarc read ~/Maildir/.dmarc/cur\n  postern dmarc read --names google.com!example.org!1700000000!1700086399.zip",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var sum aggregate.Summary
			faults := 0
			fault := func(err error) {
				faults++
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", adminapi.Printable(err.Error()))
			}
			each := func(_ string, r *aggregate.Report) {
				if domain == "" || strings.EqualFold(r.Published.Domain, domain) {
					sum.Add(r)
				}
			}
			for _, arg := range args {
				if err := readReports(cmd.InOrStdin(), arg, each, fault); err != nil {
					return err
				}
			}
			sum.Sort()
			if names {
				lookupNames(cmd.Context(), sum.Sources)
			}
			if err := c.show(cmd.OutOrStdout(), &sum, func(w io.Writer) { writeDMARC(w, &sum) }); err != nil {
				return err
			}
			if faults > 0 {
				return errUnread
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&names, "names", false, "look up the clients' reverse names")
	cmd.Flags().StringVar(&domain, "domain", "", "only reports for this domain")
	return cmd
}

// readReports reads a file, all files of a directory, or standard input for "-".
func readReports(stdin io.Reader, path string, each func(string, *aggregate.Report), fault func(error)) error {
	if path == "-" {
		aggregate.Read("standard input", stdin, each, fault)
		return nil
	}
	return filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		aggregate.Read(name, f, each, fault)
		return f.Close()
	})
}

// lookupNames asks for the reverse names of clients, a few at a time.
func lookupNames(ctx context.Context, sources []aggregate.Source) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	work := make(chan *aggregate.Source)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for s := range work {
				if found, err := net.DefaultResolver.LookupAddr(ctx, s.IP); err == nil && len(found) > 0 {
					s.Name = strings.TrimSuffix(found[0], ".")
				}
			}
		})
	}
	for i := range sources {
		work <- &sources[i]
	}
	close(work)
	wg.Wait()
}

func writeDMARC(w io.Writer, s *aggregate.Summary) {
	day := func(t int64) string { return time.Unix(t, 0).UTC().Format(time.DateOnly) }
	fmt.Fprintf(w, "%d reports", s.Reports)
	if s.Duplicates > 0 {
		fmt.Fprintf(w, " (%d came twice)", s.Duplicates)
	}
	if s.Begin > 0 {
		fmt.Fprintf(w, ", %s to %s", day(s.Begin), day(s.End))
	}
	fmt.Fprintf(w, ": %d messages, %d pass", s.Count, s.Pass)
	if s.Count > 0 {
		fmt.Fprintf(w, " (%.1f %%)", 100*float64(s.Pass)/float64(s.Count))
	}
	fmt.Fprintln(w)
	if len(s.Sources) == 0 {
		return
	}
	p := adminapi.Printable
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "FROM\tCLIENT\tMESSAGES\tFAIL\tDKIM\tSPF\tQUARANTINED\tREJECTED\tSIGNED BY\tREPORTED BY")
	for i := range s.Sources {
		o := &s.Sources[i]
		client := o.IP
		if o.Name != "" {
			client += " " + o.Name
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", p(o.Domain), p(client), o.Count, o.Count-o.Pass, o.DKIM, o.SPF, o.Quarantined, o.Rejected,
			p(cmp.Or(strings.Join(o.Signers, " "), "-")), p(strings.Join(o.Reporters, ", ")))
	}
	_ = t.Flush() // as any other output
}
