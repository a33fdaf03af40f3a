package journal

import (
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/internal/adminapi"
	"postern/internal/conf"
)

// Status is what `postern status` and `postern journal status` show.
type Status struct {
	Dir       string    `json:"dir,omitempty"` // "" when nothing is written
	Keep      Keep      `json:"keep"`
	Addresses Addresses `json:"addresses"`
	Segments  int       `json:"segments"`
	Bytes     int64     `json:"bytes"`
	MaxBytes  int64     `json:"max_bytes"`
	MaxAge    string    `json:"max_age"`
	// Oldest and Newest are times of what is in the files.
	Oldest  time.Time `json:"oldest,omitzero"`
	Newest  time.Time `json:"newest,omitzero"`
	Written uint64    `json:"written"` // entries since the start
	Dropped uint64    `json:"dropped"` // entries since the start that were not written
	Flushed time.Time `json:"flushed,omitzero"`
	// Shared is set when traces of refusals are shared with other gateways;
	// Unshared are those since the start that could not be.
	Shared   bool      `json:"shared,omitempty"`
	Unshared uint64    `json:"unshared,omitempty"`
	Fault    string    `json:"fault,omitempty"` // why nothing can be written now
	FaultAt  time.Time `json:"fault_at,omitzero"`
	// Listeners is how many `postern tail` run.
	Listeners int `json:"listeners,omitempty"`
	// Offline is set when no daemon was asked.
	Offline bool `json:"offline,omitempty"`
}

// Status tells how the journal is. It reads the beginnings of the oldest files
// and of the newest.
func (j *Journal) Status() Status {
	listeners := int(j.tails.n.Load())
	if j.write == nil {
		return Status{Keep: j.cfg.Keep, Listeners: listeners}
	}
	w := j.write
	w.mu.Lock()
	s := w.state
	w.mu.Unlock()
	s.Dir, s.Keep, s.Addresses, s.MaxBytes, s.MaxAge = w.dir, j.cfg.Keep, j.cfg.Addresses, int64(j.cfg.MaxSize), j.cfg.MaxAge.String()
	s.Dropped += j.lostAnswers.Load()
	s.Listeners = listeners
	if j.share != nil {
		s.Shared, s.Unshared = true, j.share.lost.Load()
	}
	s.Oldest, s.Newest = span(w.dir)
	return s
}

// StatusOf tells what is in a directory, without a daemon.
func StatusOf(cfg *Config, dir string) (Status, error) {
	s := Status{Dir: dir, Keep: cfg.Keep, Addresses: cfg.Addresses, MaxBytes: int64(cfg.MaxSize), MaxAge: cfg.MaxAge.String(), Offline: true}
	if dir == "" {
		return s, nil
	}
	all, err := segments(dir)
	if err != nil {
		return s, err
	}
	s.Segments = len(all)
	for _, one := range all {
		s.Bytes += one.size
	}
	s.Oldest, s.Newest = span(dir)
	return s, nil
}

// span returns the oldest and the newest time of the first and the last
// segment; with a clock that was set there may be others between.
func span(dir string) (oldest, newest time.Time) {
	all, err := segments(dir)
	if err != nil || len(all) == 0 {
		return oldest, newest
	}
	from, to := int64(math.MaxInt64), int64(math.MinInt64)
	look := func(s *segment) {
		f, err := os.Open(s.path)
		if err != nil {
			return // it is told when it is read
		}
		defer f.Close() //nolint:errcheck // only read
		_, _ = blocks(s, f, s.size, func(p place) { from, to = min(from, p.oldest), max(to, p.newest) })
	}
	look(all[0])
	if len(all) > 1 {
		look(all[len(all)-1])
	}
	if from <= to {
		oldest, newest = timeOf(from), timeOf(to)
	}
	return oldest, newest
}

var _ adminapi.Status = Status{}

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, now time.Time) {
	defer func() {
		if s.Listeners > 0 {
			fmt.Fprintf(w, "          %d listen to decisions as they happen\n", s.Listeners)
		}
	}()
	switch {
	case s.Keep == KeepOff:
		fmt.Fprintln(w, "journal   off")
		return
	case s.Dir == "":
		fmt.Fprintf(w, "journal   in memory only, keeps %s\n", s.Keep)
		return
	}
	fmt.Fprintf(w, "journal   %s keeps %s", s.Dir, s.Keep)
	if s.Addresses == Hashed {
		fmt.Fprint(w, ", addresses hashed")
	}
	if s.Shared {
		fmt.Fprint(w, ", shared by Redis")
	}
	files := "files"
	if s.Segments == 1 {
		files = "file"
	}
	fmt.Fprintf(w, ": %s of %s in %d %s", people(s.Bytes), people(s.MaxBytes), s.Segments, files)
	if !s.Oldest.IsZero() {
		fmt.Fprintf(w, ", the oldest of %s ago", adminapi.Ago(now, s.Oldest))
	}
	fmt.Fprintln(w)
	if s.Fault != "" {
		fmt.Fprintf(w, "          CANNOT BE WRITTEN, since %s ago: %s\n", adminapi.Ago(now, s.FaultAt), adminapi.Printable(s.Fault))
	}
	if s.Dropped > 0 {
		fmt.Fprintf(w, "          %d lost since the start, that could not be written in time\n", s.Dropped)
	}
	if s.Unshared > 0 {
		fmt.Fprintf(w, "          %d not shared since the start: Redis did not take them in time\n", s.Unshared)
	}
}

// people writes a number of bytes in two or three digits.
func people(n int64) string {
	if n < 1<<10 {
		return conf.Size(n).String()
	}
	v := float64(n)
	for _, unit := range []string{"kB", "MB", "GB", "TB"} {
		if v /= 1024; v < 1000 || unit == "TB" {
			if v < 10 {
				return fmt.Sprintf("%.1f%s", v, unit)
			}
			return fmt.Sprintf("%.0f%s", v, unit)
		}
	}
	return "" // not reached
}

// register makes the metrics, where files are written.
func (j *Journal) register(reg prometheus.Registerer) {
	of := func(f func(*Status) float64) func() float64 {
		return func() float64 {
			w := j.write
			w.mu.Lock()
			defer w.mu.Unlock()
			return f(&w.state)
		}
	}
	counter := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "postern_journal_" + name, Help: help}, f)
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "postern_journal_" + name, Help: help}, f)
	}
	reg.MustRegister(
		counter("written_total", "Entries written to the journal's files.", of(func(s *Status) float64 { return float64(s.Written) })),
		counter("lost_total", "Entries that were not written to the journal's files: they came faster than that could be done.",
			of(func(s *Status) float64 { return float64(s.Dropped + j.lostAnswers.Load()) })),
		counter("unshared_total", "Traces that could not be shared by Redis in time.", func() float64 {
			if j.share == nil {
				return 0
			}
			return float64(j.share.lost.Load())
		}),
		gauge("bytes", "Size of the journal's files.", of(func(s *Status) float64 { return float64(s.Bytes) })),
		gauge("writable", "1, or 0 while the journal's files cannot be written.", of(func(s *Status) float64 {
			if s.Fault != "" {
				return 0
			}
			return 1
		})),
	)
}
