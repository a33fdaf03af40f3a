package list

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/filestamp"
	"postern/policy"
)

// Live keeps a Set up to date with its files. Its methods are safe for
// concurrent use.
type Live struct {
	opts    *Options
	log     *zap.Logger
	metrics *Metrics
	set     atomic.Pointer[Set]

	mu      sync.Mutex // guards what follows; held while files are read
	sources []*liveSource

	watcher filestamp.Watcher
}

// liveSource is a source and what is known of its file.
type liveSource struct {
	*source
	content *content // the last good one
	track   filestamp.Tracker
	loaded  time.Time
	fault   string
	faultAt time.Time
}

// NewLive reads the sources as [Load] does. It starts nothing. metrics may be nil.
func NewLive(sources []string, opts Options, log *zap.Logger, metrics *Metrics) (*Live, conf.Faults) {
	l := &Live{opts: &opts, log: log, metrics: metrics}
	var faults conf.Faults
	now := time.Now()
	for i, text := range sources {
		s, err := opts.parseSource(i, text)
		if err != nil {
			faults.Keyf(opts.sourceKey(i), "%v", err)
			continue
		}
		ls := &liveSource{source: s, loaded: now}
		if s.file != "" {
			ls.track.Begin(s.file)
		}
		var fs conf.Faults
		ls.content, fs = s.read(&opts)
		faults = append(faults, fs...)
		l.sources = append(l.sources, ls)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	l.rebuild()
	l.reportExpired(now)
	return l, nil
}

// rebuild makes the set anew from what is there. l.mu is held, or l is new.
func (l *Live) rebuild() {
	sources := make([]*source, len(l.sources))
	contents := make([]*content, len(l.sources))
	for i, s := range l.sources {
		for _, e := range s.content.entries {
			if e.hits == nil {
				e.hits = new(counter)
			}
		}
		sources[i], contents[i] = s.source, s.content
	}
	set := build(l.opts, sources, contents)
	// The set's entries take the place of those that they were copied from:
	// nobody needs both.
	rest := set.entries
	for _, s := range l.sources {
		n := len(s.content.entries)
		s.content.entries, rest = rest[:n:n], rest[n:]
	}
	l.set.Store(set)
}

func (l *Live) reportExpired(now time.Time) {
	for _, e := range l.Set().Entries() {
		if e.Expired(now) {
			l.log.Warn("an entry has expired and does not match", zap.String("entry", e.Place()), zap.String("pattern", e.Pattern),
				zap.Time("until", e.Until), zap.String("owner", e.Owner))
		}
	}
}

// Start looks at the files every interval (not above 0: 2 s) until Stop.
func (l *Live) Start(interval time.Duration) {
	if interval <= 0 {
		interval = 2 * time.Second
	}
	last := time.Now()
	if l.watcher.Start(interval, func(now time.Time) {
		l.poll(now)
		l.expire(last, now)
		last = now
	}) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.publish(l.metrics)
	}
}

// expire tells of entries that ended between two looks.
func (l *Live) expire(from, to time.Time) {
	for _, e := range l.Set().Entries() {
		if e.Expired(to) && !e.Expired(from) {
			l.log.Warn("an entry has expired and does not match any more", zap.String("entry", e.Place()),
				zap.String("pattern", e.Pattern), zap.String("owner", e.Owner))
		}
	}
}

// Stop ends what Start began and waits for it. It can be called twice, and
// without Start.
func (l *Live) Stop() {
	if l.watcher.Stop() {
		l.metrics.forget(l)
	}
}

// Set returns the present set.
func (l *Live) Set() *Set { return l.set.Load() }

// Match is [Set.Match] of the present set.
func (l *Live) Match(req *policy.Request) *Entry { return l.Set().Match(req) }

// poll reads the files that have changed and been left alone since.
func (l *Live) poll(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed := false
	for _, s := range l.sources {
		if s.file == "" {
			continue
		}
		if s.track.Due(s.file, now) && l.reread(s, now, false) == nil {
			changed = true
		}
	}
	if changed {
		l.rebuild()
	}
	l.publish(l.metrics)
}

// reread reads one file; on faults its last good entries stay. asked is set
// when the administrator wants to know at once.
func (l *Live) reread(s *liveSource, now time.Time, asked bool) conf.Faults {
	s.track.Begin(s.file)
	c, faults := s.read(l.opts)
	if len(faults) == 0 && s.track.Torn(s.file) {
		return conf.Faults{{File: s.file, Text: "changed while it was read"}}
	}
	if len(faults) > 0 && !s.track.Bad() && !asked {
		return faults // it may be half written
	}
	if len(faults) > 0 {
		s.fault, s.faultAt = faults.Error(), now
		l.metrics.refused()
		l.log.Error("a list was not taken, its last good entries stay in force", zap.String("list", s.text), zap.Error(faults))
		return faults
	}
	s.track.Good()
	adopt(c.entries, s.content.entries)
	was := len(s.content.entries)
	s.content, s.loaded, s.fault, s.faultAt = c, now, "", time.Time{}
	for _, w := range c.warnings {
		l.log.Warn("in a list", zap.String("list", s.text), zap.Error(w))
	}
	l.metrics.taken()
	l.log.Info("list reloaded", zap.String("list", s.text), zap.Int("entries", len(c.entries)), zap.Int("before", was))
	return nil
}

// Reload reads all files again, changed or not. A file with faults keeps its
// last good entries; the faults are returned.
func (l *Live) Reload() conf.Faults {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	var faults conf.Faults
	for _, s := range l.sources {
		if s.file != "" {
			faults = append(faults, l.reread(s, now, true)...)
		}
	}
	l.rebuild()
	l.publish(l.metrics)
	return faults
}

// identity is what makes two entries the same over a reload.
type identity struct {
	file, pattern, text string
	field               Field
	action              policy.Action
}

func (e *Entry) identity() identity { return identity{e.File, e.Pattern, e.Text, e.Field, e.Action} }

// adopt gives entries the counts of the same entries of old.
func adopt(entries, old []*Entry) {
	counts := make(map[identity]*counter, len(old))
	for _, e := range old {
		if e.hits != nil && e.hits.hits.Load() > 0 {
			counts[e.identity()] = e.hits
		}
	}
	if len(counts) == 0 {
		return
	}
	for _, e := range entries {
		if c, ok := counts[e.identity()]; ok {
			e.hits = c
			delete(counts, e.identity()) // a second one like it counts by itself
		}
	}
}

// Adopt takes over the hit counts of the same entries of old.
func (l *Live) Adopt(old *Live) {
	if old == nil {
		return
	}
	entries := old.Set().Entries()
	l.mu.Lock()
	defer l.mu.Unlock()
	var own []*Entry
	for _, s := range l.sources {
		own = append(own, s.content.entries...)
	}
	adopt(own, entries)
	l.rebuild()
}

// Status is the state of one source, for `postern status`.
type Status struct {
	Source  string    `json:"source"` // as configured
	File    string    `json:"file,omitempty"`
	Entries int       `json:"entries"`
	Expired int       `json:"expired"`
	Hits    uint64    `json:"hits"`
	Loaded  time.Time `json:"loaded"`            // when the present entries were read
	Fault   string    `json:"fault,omitempty"`   // why a later edit was not taken
	FaultAt time.Time `json:"fault_at,omitzero"` // when that was found
}

// Status returns the state of each source, in their order.
func (l *Live) Status() []Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	out := make([]Status, len(l.sources))
	for i, s := range l.sources {
		out[i] = Status{Source: s.text, File: s.file, Entries: len(s.content.entries), Loaded: s.loaded, Fault: s.fault, FaultAt: s.faultAt}
		for _, e := range s.content.entries {
			if e.Expired(now) {
				out[i].Expired++
			}
			if e.hits != nil {
				n, _ := e.Hits()
				out[i].Hits += n
			}
		}
	}
	return out
}

// Metrics are the counters of the lists of one check. A nil one counts nothing.
type Metrics struct {
	entries, expired, faulty prometheus.Gauge
	reloads                  [2]prometheus.Counter // refused, taken

	mu    sync.Mutex
	lives map[*Live]figures
}

// figures are what one Live adds to the gauges: several share them.
type figures struct{ entries, expired, faulty int }

// NewMetrics makes the metrics postern_<check>_list_..., or finds those that
// reg already has.
func NewMetrics(reg prometheus.Registerer, check string) *Metrics {
	m := &Metrics{lives: make(map[*Live]figures)}
	gauge := func(name, help string) prometheus.Gauge {
		return register(reg, prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_" + check + "_list_" + name, Help: help}))
	}
	m.entries = gauge("entries", "Entries of the lists in force.")
	m.expired = gauge("expired_entries", "Entries that have passed their date and no longer match.")
	m.faulty = gauge("faulty", "Lists whose last edit was not taken.")
	reloads := register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_" + check + "_list_reloads_total", Help: "Lists read again because they had changed.",
	}, []string{"result"}))
	m.reloads[0], m.reloads[1] = reloads.WithLabelValues("refused"), reloads.WithLabelValues("taken")
	return m
}

func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if err := reg.Register(c); err != nil {
		if are, ok := err.(prometheus.AlreadyRegisteredError); ok { //nolint:errorlint // Register returns it bare
			return are.ExistingCollector.(C)
		}
		panic(err) // two metrics of one name: a mistake in the program
	}
	return c
}

func (m *Metrics) taken() {
	if m != nil {
		m.reloads[1].Inc()
	}
}

func (m *Metrics) refused() {
	if m != nil {
		m.reloads[0].Inc()
	}
}

// publish sets the gauges from the state of l. l.mu is held.
func (l *Live) publish(m *Metrics) {
	if m == nil {
		return
	}
	now := time.Now()
	var f figures
	for _, s := range l.sources {
		f.entries += len(s.content.entries)
		if s.fault != "" {
			f.faulty++
		}
		for _, e := range s.content.entries {
			if e.Expired(now) {
				f.expired++
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lives[l] = f
	f = figures{}
	for _, one := range m.lives {
		f.entries, f.expired, f.faulty = f.entries+one.entries, f.expired+one.expired, f.faulty+one.faulty
	}
	m.entries.Set(float64(f.entries))
	m.expired.Set(float64(f.expired))
	m.faulty.Set(float64(f.faulty))
}

func (m *Metrics) forget(l *Live) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.lives, l)
}
