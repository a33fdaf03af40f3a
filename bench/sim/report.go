package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

func table(out io.Writer, rows func(w io.Writer)) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	rows(w)
	_ = w.Flush() // an error of out shows nothing anyway
}

// describe prints what the world is like, for comparison with real ones.
func describe(out io.Writer, w *world, o options) {
	var legit, spam, passed, new int
	domains, pairs, hosts := map[string]bool{}, map[[2]string]bool{}, map[*host]bool{}
	newPairs := 0
	for i := range w.messages {
		m := &w.messages[i]
		counted := m.at >= w.begin.UnixMilli()
		if m.class.spam() {
			if counted {
				spam++
			}
			continue
		}
		pair := [2]string{greySender(m.from), m.to.Raw}
		if counted {
			legit++
			if m.spf.Result == "pass" {
				passed++
			}
			if !domains[m.from.Domain] {
				new++
			}
			if !pairs[pair] {
				newPairs++
			}
		}
		domains[m.from.Domain], pairs[pair] = true, true
		hosts[m.sys.host(m.seed, 0)] = true
	}
	percent := func(n int) float64 { return 100 * float64(n) / float64(max(legit, 1)) }
	fmt.Fprintf(out, "%d days, after %d from which the filters only learn; seed %d.\n", o.days, o.warm, o.seed)
	fmt.Fprintf(out, "%d legitimate messages, %d spam. Of the legitimate ones SPF passes for %.1f %%, %.1f %% are the first of their return path's domain,\n"+
		"%.1f %% the first of their sender (as postgrey compares it) to their recipient; all in all from %d domains and %d addresses.\n\n",
		legit, spam, percent(passed), percent(new), percent(newPairs), len(domains), len(hosts))
}

// report prints what became of the mail under each filter.
func report(out io.Writer, results []*result) {
	table(out, func(w io.Writer) {
		fmt.Fprintln(w, "\tdelayed %\tp50\tp95\tp99\tnever %\tcodes late %\tspam passed %\trecords\tKiB\tattempts\t")
		for _, r := range results {
			c := &r.by[codes]
			fmt.Fprintf(w, "%s\t%.2f\t%s\t%s\t%s\t%.3f\t%.1f\t%.2f\t%d\t%d\t%d\t\n", r.filter,
				r.legit.share(r.legit.delayed), clock(r.legit.p50), clock(r.legit.p95), clock(r.legit.p99),
				r.legit.share(r.legit.lost()), c.share(c.late), r.spam.share(r.spam.delivered), r.records, r.bytes/1024, r.attempts)
		}
	})
	fmt.Fprintln(out, "\nLegitimate mail by class: delayed %")
	byClass(out, results, 0, firstSpam, func(t *tally) string { return fmt.Sprintf("%.2f", t.share(t.delayed)) })
	fmt.Fprintln(out, "\nDelay of those that were delayed and came: p50/p95/p99")
	byClass(out, results, 0, firstSpam, func(t *tally) string { return clock(t.p50) + "/" + clock(t.p95) + "/" + clock(t.p99) })
	fmt.Fprintln(out, "\nNever delivered %")
	byClass(out, results, 0, firstSpam, func(t *tally) string { return fmt.Sprintf("%.3f", t.share(t.lost())) })
	fmt.Fprintln(out, "\nSpam by class: passed %")
	byClass(out, results, firstSpam, classCount, func(t *tally) string { return fmt.Sprintf("%.2f", t.share(t.delivered)) })
}

func byClass(out io.Writer, results []*result, from, to class, cell func(*tally) string) {
	table(out, func(w io.Writer) {
		fmt.Fprint(w, "\t")
		for c := from; c < to; c++ {
			fmt.Fprintf(w, "%s\t", classNames[c])
		}
		fmt.Fprint(w, "\nmessages\t")
		for c := from; c < to; c++ {
			fmt.Fprintf(w, "%d\t", results[0].by[c].sent)
		}
		fmt.Fprintln(w)
		for _, r := range results {
			fmt.Fprintf(w, "%s\t", r.filter)
			for c := from; c < to; c++ {
				fmt.Fprintf(w, "%s\t", cell(&r.by[c]))
			}
			fmt.Fprintln(w)
		}
	})
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

// mark is something that greylisting here should reach, beside another.
type mark struct {
	text string
	// holds looks at the results of a world, and of the same one where spam is
	// tried again for a day; nil where that was not made.
	holds func(r, allDay byKey) bool
}

type byKey map[string]*result

func (b byKey) delayed(key string) float64 { return b[key].legit.share(b[key].legit.delayed) }
func (b byKey) spam(key string) float64    { return b[key].spam.share(b[key].spam.delivered) }

// stoppable is the spam passed that a greylist can stop at all: stolen accounts
// and hacked sites send through mail servers that try again.
func (b byKey) stoppable(key string) float64 {
	r := b[key]
	n := r.by[bots].delivered + r.by[retryBots].delivered + r.by[snowshoe].delivered
	return r.spam.share(n)
}

// tie is how much more spam counts as no more: a tenth of a percent of all.
const tie = 0.1

var marks = []mark{
	{"strict delays less than postgrey", func(r, _ byKey) bool { return r.delayed("strict") < r.delayed("postgrey") }},
	{"strict passes no more spam than postgrey", func(r, _ byKey) bool { return r.spam("strict") <= r.spam("postgrey")+tie }},
	{"gentle delays less than rspamd", func(r, _ byKey) bool { return r.delayed("gentle") < r.delayed("rspamd") }},
	{"gentle passes no more spam than rspamd", func(r, _ byKey) bool { return r.spam("gentle") <= r.spam("rspamd")+tie }},
	{"balanced delays less than 0.5 %", func(r, _ byKey) bool { return r.delayed("balanced") < 0.5 }},
	{"balanced passes a third less spam than postgrey", func(r, _ byKey) bool { return r.spam("balanced") <= r.spam("postgrey")*2/3 }},
	{"balanced passes a third less than postgrey of bots' and snowshoe spam", func(r, _ byKey) bool { return r.stoppable("balanced") <= r.stoppable("postgrey")*2/3 }},
	{"balanced passes at most a tenth more when spam is tried for a day", func(_, d byKey) bool {
		return d == nil || d.spam("balanced") <= d.spam("postgrey")*1.1
	}},
}

// needed are the filters that marks speak of.
var needed = []string{"postgrey", "rspamd", "strict", "balanced", "gentle"}

func reportMarks(out io.Writer, r, allDay byKey) {
	fmt.Fprintln(out, "\nSpam passed %, without stolen accounts and hacked sites, and when what is tried again is tried for a day")
	table(out, func(w io.Writer) {
		fmt.Fprintln(w, "\tall\twithout\tfor a day\twithout\t")
		for _, key := range needed {
			fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.2f\t%.2f\t\n", r[key].filter, r.spam(key), r.stoppable(key), allDay.spam(key), allDay.stoppable(key))
		}
	})
	fmt.Fprintln(out, "\nAimed at")
	for _, m := range marks {
		answer := "no "
		if m.holds(r, allDay) {
			answer = "yes"
		}
		fmt.Fprintf(out, "  %s  %s\n", answer, m.text)
	}
}

// reportSweep prints how the figures move when each assumption is halved and
// doubled, and in how many of these worlds each mark is reached.
func reportSweep(out io.Writer, base byKey, worlds []swept) {
	for _, what := range []struct {
		title string
		of    func(byKey, string) float64
	}{
		{"Legitimate mail delayed %", byKey.delayed}, {"Spam passed %", byKey.spam},
	} {
		fmt.Fprintf(out, "\n%s when an assumption is halved and doubled (a share at most 1)\n", what.title)
		table(out, func(w io.Writer) {
			fmt.Fprint(w, "\t\t")
			for _, key := range needed {
				fmt.Fprintf(w, "%s\t\t", key)
			}
			fmt.Fprint(w, "\nas it is\t\t")
			for _, key := range needed {
				fmt.Fprintf(w, "%.2f\t\t", what.of(base, key))
			}
			fmt.Fprintln(w)
			for i := 0; i+1 < len(worlds); i += 2 {
				half, double := &worlds[i], &worlds[i+1]
				fmt.Fprintf(w, "%s\t%.4g %.4g\t", half.name, half.value, double.value)
				for _, key := range needed {
					fmt.Fprintf(w, "%.2f\t%.2f\t", what.of(half.results, key), what.of(double.results, key))
				}
				fmt.Fprintln(w)
			}
		})
	}
	fmt.Fprintf(out, "\nAimed at, in these %d worlds\n", len(worlds))
	for _, m := range marks {
		var not []string
		for i := range worlds {
			if x := &worlds[i]; !m.holds(x.results, nil) {
				not = append(not, fmt.Sprintf("%s=%.4g", x.name, x.value))
			}
		}
		fmt.Fprintf(out, "  %3d  %s", len(worlds)-len(not), m.text)
		if len(not) > 0 && len(not) <= 12 {
			fmt.Fprintf(out, "; not with %s", strings.Join(not, ", "))
		}
		fmt.Fprintln(out)
	}
}
