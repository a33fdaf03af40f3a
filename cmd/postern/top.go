package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"postern/admin"
	"postern/internal/adminapi"
	"postern/journal"
)

func (c *cli) topCommand() *cobra.Command {
	var every time.Duration
	var once bool
	cmd := &cobra.Command{
		Use: "top", Short: "what goes on: rates, verdicts by check, the slowest lists, health, the last refusals",
		Long: "Shows the running daemon anew every few seconds, until Ctrl-C. Where the output is no terminal, or with\n" +
			"--once, it is shown once, over one interval.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return fmt.Errorf("--every %v: at least 100ms", every)
			}
			cl, err := c.client()
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			f, ok := w.(*os.File)
			screen := ok && term.IsTerminal(int(f.Fd())) && !once && !c.json
			before, err := look(cmd.Context(), cl)
			if err != nil {
				return err
			}
			if screen {
				fmt.Fprint(w, "\x1b[2J") // there is nothing yet
			}
			for {
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(every):
				}
				now, err := look(cmd.Context(), cl)
				if err != nil {
					if cmd.Context().Err() != nil {
						return nil
					}
					return err
				}
				view := viewOf(before, now)
				if c.json {
					return writeJSON(w, view)
				}
				var b strings.Builder
				writeView(&b, view)
				text := b.String()
				if !screen {
					_, err = io.WriteString(w, text)
					return err
				}
				// Home, each line to its end, and what is below.
				_, err = io.WriteString(w, "\x1b[H"+strings.ReplaceAll(fit(text, f), "\n", "\x1b[K\n")+"\x1b[J")
				if err != nil {
					return err
				}
				before = now
			}
		},
	}
	cmd.Flags().DurationVar(&every, "every", 2*time.Second, "interval")
	cmd.Flags().BoolVar(&once, "once", false, "show it once")
	return cmd
}

// fit cuts a text to the size of a terminal.
func fit(text string, f *os.File) string {
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 || height < 5 {
		return text
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) > height-1 {
		lines = lines[:height-1]
	}
	for i, l := range lines {
		if r := []rune(l); len(r) > width {
			lines[i] = string(r[:width-1]) + "…"
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// moment is what the daemon says at one time.
type moment struct {
	at      time.Time
	metrics map[string]*dto.MetricFamily
	status  string
	recent  []*journal.Record
}

// shownRefusals is how many of the last refusals are shown.
const shownRefusals = 8

func look(ctx context.Context, cl *adminapi.Client) (*moment, error) {
	text, err := cl.Text(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	m := &moment{at: time.Now()}
	if m.metrics, err = parser.TextToMetricFamilies(strings.NewReader(text)); err != nil {
		return nil, fmt.Errorf("/metrics: %w", err)
	}
	if m.status, err = (admin.Client{Client: cl}).StatusText(ctx); err != nil {
		return nil, err
	}
	m.recent, err = journal.Admin{Client: cl}.Recent(ctx, shownRefusals)
	return m, err
}

// view is what `postern top` shows of an interval.
type view struct {
	At      time.Time         `json:"at"`
	Seconds float64           `json:"seconds"`
	Actions []rate            `json:"actions"` // of decisions
	Checks  []busy            `json:"checks"`
	Lists   []busy            `json:"lists"` // DNS lists, the slowest first
	Health  []string          `json:"health"`
	Recent  []*journal.Record `json:"recent"`
}

// rate is how often something happens.
type rate struct {
	What      string  `json:"what"`
	PerSecond float64 `json:"per_second"`
}

// busy is how much something has to do.
type busy struct {
	Name      string  `json:"name"`
	PerSecond float64 `json:"per_second"`
	// Refused are verdicts that refuse, and failures those without an answer, per
	// second.
	Refused  float64 `json:"refused_per_second"`
	Failures float64 `json:"failures_per_second"`
	Millis   float64 `json:"milliseconds"` // on average
}

// viewOf compares two moments.
func viewOf(before, now *moment) *view {
	v := &view{At: now.at, Seconds: now.at.Sub(before.at).Seconds(), Recent: now.recent}
	d := delta{before.metrics, now.metrics, v.Seconds}
	for what, n := range d.by("postern_decisions_total", "action", nil) {
		v.Actions = append(v.Actions, rate{what, n})
	}
	slices.SortFunc(v.Actions, func(a, b rate) int { return cmp.Or(cmp.Compare(b.PerSecond, a.PerSecond), cmp.Compare(a.What, b.What)) })
	all := d.by("postern_check_verdicts_total", "check", nil)
	refused := d.by("postern_check_verdicts_total", "check", func(l map[string]string) bool {
		return l["outcome"] == "ran" && slices.Contains([]string{"reject", "defer", "defer-if-permit"}, l["action"]) || l["outcome"] == "hint"
	})
	failed := d.by("postern_check_verdicts_total", "check", func(l map[string]string) bool {
		return slices.Contains([]string{"error", "timeout", "panic"}, l["outcome"])
	})
	for name, n := range all {
		v.Checks = append(v.Checks, busy{name, n, refused[name], failed[name], d.mean("postern_check_seconds", "check", name)})
	}
	slices.SortFunc(v.Checks, func(a, b busy) int { return cmp.Or(cmp.Compare(b.PerSecond, a.PerSecond), cmp.Compare(a.Name, b.Name)) })
	failures := d.by("postern_rbl_failures_total", "list", nil)
	hits := d.by("postern_rbl_hits_total", "list", nil)
	for name, n := range d.by("postern_rbl_queries_total", "list", nil) {
		v.Lists = append(v.Lists, busy{name, n, hits[name], failures[name], d.mean("postern_rbl_query_seconds", "list", name)})
	}
	slices.SortFunc(v.Lists, func(a, b busy) int { return cmp.Or(cmp.Compare(b.Millis, a.Millis), cmp.Compare(a.Name, b.Name)) })
	for line := range strings.Lines(now.status) {
		if word, _, _ := strings.Cut(line, " "); slices.Contains([]string{"policy", "milter", "lookup", "store", "dns", "config", "journal"}, word) {
			v.Health = append(v.Health, strings.TrimRight(line, "\n"))
		}
	}
	return v
}

// delta is what has grown between two moments, per second.
type delta struct {
	before, now map[string]*dto.MetricFamily
	seconds     float64
}

func labels(m *dto.Metric) map[string]string {
	out := make(map[string]string, len(m.GetLabel()))
	for _, l := range m.GetLabel() {
		out[l.GetName()] = l.GetValue()
	}
	return out
}

// by sums a counter by one of its labels, over those that which lets through.
func (d *delta) by(name, label string, which func(map[string]string) bool) map[string]float64 {
	out := make(map[string]float64)
	for sign, of := range map[float64]map[string]*dto.MetricFamily{1: d.now, -1: d.before} {
		for _, m := range of[name].GetMetric() {
			l := labels(m)
			if which == nil || which(l) {
				out[l[label]] += sign * m.GetCounter().GetValue() / d.seconds
			} else if _, ok := out[l[label]]; !ok {
				out[l[label]] = 0
			}
		}
	}
	return out
}

// mean is the average of a histogram over the interval, in milliseconds; 0
// when nothing was measured.
func (d *delta) mean(name, label, value string) float64 {
	var sum, count float64
	for sign, of := range map[float64]map[string]*dto.MetricFamily{1: d.now, -1: d.before} {
		for _, m := range of[name].GetMetric() {
			if h := m.GetHistogram(); labels(m)[label] == value {
				sum += sign * h.GetSampleSum()
				count += sign * float64(h.GetSampleCount())
			}
		}
	}
	if count <= 0 {
		return 0
	}
	return sum / count * 1000
}

func writeView(w io.Writer, v *view) {
	total := 0.0
	var parts []string
	for _, a := range v.Actions {
		total += a.PerSecond
		if a.PerSecond > 0 {
			parts = append(parts, fmt.Sprintf("%s %.1f", a.What, a.PerSecond))
		}
	}
	fmt.Fprintf(w, "%s  %.1f decisions/s", v.At.Format("2006-01-02 15:04:05"), total)
	if len(parts) > 0 {
		fmt.Fprintf(w, ": %s", strings.Join(parts, ", "))
	}
	fmt.Fprint(w, "\n\n")
	table := func(head string, rows []busy, most int) {
		if len(rows) == 0 {
			return
		}
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(tw, head)
		for _, r := range rows[:min(most, len(rows))] {
			fmt.Fprintf(tw, "%.1f\t%.1f\t%.1f\t%.2f\t  %s\n", r.PerSecond, r.Refused, r.Failures, r.Millis, adminapi.Printable(r.Name))
		}
		_ = tw.Flush() // w is a text
		fmt.Fprintln(w)
	}
	table("/S\tREFUSED/S\tFAILED/S\tMS\t  CHECK", v.Checks, 20)
	table("/S\tHITS/S\tFAILED/S\tMS\t  DNS LIST", v.Lists, 10)
	for _, line := range v.Health {
		fmt.Fprintln(w, line)
	}
	if len(v.Recent) > 0 {
		fmt.Fprintln(w)
	}
	for _, r := range v.Recent {
		fmt.Fprintf(w, "%s  %s  %s  %s -> %s  %s\n", r.Time.Format("15:04:05"), r.Decision.Reference, r.Client,
			adminapi.Printable(orNull(r.Sender)), adminapi.Printable(r.Recipient), r.Decision.Verdict.Text())
	}
}
