package chaos

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

var (
	long  = flag.Bool("long", false, "have each fault last for long, and print the table (minutes)")
	table = flag.String("table", "", "write the table to this file")
)

// lasts is how long a fault does.
func lasts() time.Duration {
	if *long {
		return 6 * time.Second
	}
	return 1500 * time.Millisecond
}

// calm is how long there is traffic before and after it: newcomers come back
// meanwhile.
func calm() time.Duration {
	if *long {
		return 2 * time.Second
	}
	return 300 * time.Millisecond
}

// fault is something that breaks.
type fault struct {
	name string
	what part // that may be missing while it lasts

	redis   bool                       // the store is Redis
	proxied bool                       // behind a proxy
	postfix bool                       // some of the traffic is a real Postfix's
	sockets bool                       // systemd holds the daemon's
	clock   bool                       // the daemon's can be stepped
	files   int                        // limit of open files
	env     []string                   // of the daemon
	config  string                     // further lines, of [greylist] and after; {dir} is the world's directory
	edit    func(text string) string   // changes the configuration; nil: it stays
	mount   func(w *world, dir string) // prepares the directory of the state

	begin func(w *world)
	// during is called again and again while the fault lasts; nil: nothing is
	// to be done.
	during func(w *world)
	end    func(w *world)
	// after is called when all is as before and the traffic has ended.
	after func(w *world)
	slow  bool // only in a long run
}

// row is a line of the table.
type row struct {
	name, store                 string
	requests, mails             int
	wrong, failures             int
	slowest, lost, recoveredFor time.Duration
	order                       int
}

var rows struct {
	mu  sync.Mutex
	all []row
}

func run(t *testing.T, order int, f *fault) {
	w := newWorld(t, f)
	known := w.acquaint()
	w.known = known
	stop := w.traffic(known, f.what)
	defer stop()
	// Nothing happens in a moment, as it does in life.
	time.Sleep(calm())
	w.episodes.Add(1)
	w.trouble.Store(true)
	if f.begin != nil {
		f.begin(w)
	}
	for until := time.Now().Add(lasts()); time.Now().Before(until); {
		if f.during == nil {
			time.Sleep(time.Until(until))
			break
		}
		f.during(w)
	}
	if f.end != nil {
		f.end(w)
	}
	took := w.recovered(known)
	w.trouble.Store(false)
	time.Sleep(calm())
	stop()
	a := &doorAsker{socket: w.d.socket()}
	for _, c := range known {
		w.judge(a, c, nothing)
	}
	a.close()
	if f.after != nil {
		f.after(w)
	}
	w.check(t)
	w.d.stop()
	r := row{name: f.name, store: "embedded", order: order, recoveredFor: took}
	if f.redis {
		r.store = "redis"
	}
	c := &w.tally
	r.requests, r.mails, r.wrong, r.failures, r.slowest, r.lost = c.requests, c.mails, len(c.wrong), len(c.failures), c.slowest, c.lost
	rows.mu.Lock()
	defer rows.mu.Unlock()
	rows.all = append(rows.all, r)
}

// TestFaults breaks one thing after the other.
func TestFaults(t *testing.T) {
	for _, b := range []func() (string, error){plainBinary, newBinary} {
		if _, err := b(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range faults {
		f := &faults[i]
		if f.slow && !*long {
			continue
		}
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			run(t, i, f)
		})
	}
	t.Cleanup(func() { report(t) })
}

// report prints the table.
func report(t *testing.T) {
	slices.SortFunc(rows.all, func(a, b row) int { return a.order - b.order })
	var plain, md strings.Builder
	tw := tabwriter.NewWriter(&plain, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "fault\tstore\trequests\tthrough Postfix\twrong\t451\tslowest\tstate lost\trecovered after")
	md.WriteString("| fault | store | requests | through Postfix | wrong answers | 451 | slowest answer | state lost | recovered after |\n|---|---|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, r := range rows.all {
		cells := []any{r.name, r.store, r.requests, r.mails, r.wrong, r.failures, tidy(r.slowest), tidy(r.lost), tidy(r.recoveredFor)}
		fmt.Fprintf(tw, "%v\t%v\t%v\t%v\t%v\t%v\t%v\t%v\t%v\n", cells...)
		fmt.Fprintf(&md, "| %v | %v | %v | %v | %v | %v | %v | %v | %v |\n", cells...)
	}
	_ = tw.Flush() // to memory
	t.Logf("\n%s", &plain)
	if *table != "" {
		if err := os.WriteFile(*table, []byte(md.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

func tidy(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
