package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// report prints what became of the mail under each filter.
func report(out io.Writer, results []*result) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tdelayed %\tp50\tp95\tp99\tnever %\tcodes late %\tspam passed %\trecords\tKiB\tattempts\ttook\t")
	for _, r := range results {
		c := &r.by[codes]
		fmt.Fprintf(w, "%s\t%.2f\t%s\t%s\t%s\t%.3f\t%.2f\t%.2f\t%d\t%d\t%d\t%v\t\n", r.filter,
			r.legit.share(r.legit.delayed), clock(r.legit.p50), clock(r.legit.p95), clock(r.legit.p99),
			r.legit.share(r.legit.given+r.legit.refused+r.legit.open), c.share(c.late), r.spam.share(r.spam.delivered),
			r.records, r.bytes/1024, r.attempts, r.took.Round(time.Millisecond))
	}
	_ = w.Flush()

	fmt.Fprintln(out, "\nLegitimate mail by class: delayed %, of all of the class")
	byClass(out, results, 0, firstSpam, func(t *tally) string { return fmt.Sprintf("%.2f", t.share(t.delayed)) })
	fmt.Fprintln(out, "\nDelay of those delayed, p50/p95/p99")
	byClass(out, results, 0, firstSpam, func(t *tally) string { return clock(t.p50) + "/" + clock(t.p95) + "/" + clock(t.p99) })
	fmt.Fprintln(out, "\nNever delivered %")
	byClass(out, results, 0, firstSpam, func(t *tally) string { return fmt.Sprintf("%.3f", t.share(t.given+t.refused+t.open)) })
	fmt.Fprintln(out, "\nSpam by class: passed %")
	byClass(out, results, firstSpam, classCount, func(t *tally) string { return fmt.Sprintf("%.2f", t.share(t.delivered)) })
}

func byClass(out io.Writer, results []*result, from, to class, cell func(*tally) string) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "\t")
	for c := from; c < to; c++ {
		fmt.Fprintf(w, "%s\t", classNames[c])
	}
	fmt.Fprintln(w)
	if len(results) > 0 {
		fmt.Fprint(w, "messages\t")
		for c := from; c < to; c++ {
			fmt.Fprintf(w, "%d\t", results[0].by[c].sent)
		}
		fmt.Fprintln(w)
	}
	for _, r := range results {
		fmt.Fprintf(w, "%s\t", r.filter)
		for c := from; c < to; c++ {
			fmt.Fprintf(w, "%s\t", cell(&r.by[c]))
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
}

// clock writes a delay briefly.
func clock(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < time.Hour:
		return fmt.Sprintf("%d:%02d", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%.1fh", d.Hours())
}
