package headercheck

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/filestamp"
	"postern/list"
	"postern/policy"
)

// Check runs header and body rules. It is safe for concurrent use.
type Check struct {
	cfg     Config
	log     *zap.Logger
	metrics *metrics
	rules   atomic.Pointer[ruleset]
	held    atomic.Int64 // bytes of body kept by all inspections

	mu      sync.Mutex // guards what follows; held while files are read
	files   []*file
	watcher filestamp.Watcher
}

var _ policy.Inspector = (*Check)(nil)

// New returns a check on validated settings; it reads the tables and starts
// nothing. prev, which may be nil, is the check that this one takes the place
// of after a reload: hit counts move over. reg may be nil.
func New(cfg Config, log *zap.Logger, reg prometheus.Registerer, prev *Check) (*Check, error) {
	c := &Check{cfg: cfg, log: log.Named("headers")}
	rs, warnings, faults := load(&cfg, "headers")
	if err := faults.Err(); err != nil {
		return nil, err
	}
	for _, w := range warnings {
		c.log.Warn("a header rule is skipped", zap.String("fault", w.Error()))
	}
	if prev != nil {
		c.metrics = prev.metrics
		rs.adopt(prev.rules.Load())
	} else {
		c.metrics = newMetrics(reg)
	}
	for _, m := range rs.multis {
		sources, opts := cfg.match("headers", m.index)
		if len(sources) == 0 {
			continue
		}
		var faults conf.Faults
		if m.match, faults = list.NewLive(sources, opts, c.log, c.metrics.lists); len(faults) > 0 {
			return nil, faults.Err()
		}
		if old := prev.matching(m.rule.owner); old != nil {
			m.match.Adopt(old)
		}
	}
	now := time.Now()
	for i := range cfg.Checks {
		if cfg.Checks[i].Mode == policy.Off {
			continue
		}
		src, err := parseSource(cfg.Checks[i].Table)
		if err != nil {
			return nil, fmt.Errorf("headers: checks[%d]: %w", i, err) // load has taken it
		}
		f := &file{index: i, path: src.path, loaded: now}
		f.track.Begin(src.path)
		c.files = append(c.files, f)
	}
	c.rules.Store(rs)
	return c, nil
}

// matching returns the list that the rule of a name is for, nil for none.
func (c *Check) matching(name string) *list.Live {
	if c == nil {
		return nil
	}
	for _, m := range c.rules.Load().multis {
		if m.rule.owner == name {
			return m.match
		}
	}
	return nil
}

// Name implements [policy.Inspector].
func (c *Check) Name() string { return "headers" }

// Inspect implements [policy.Inspector].
func (c *Check) Inspect(req *policy.Request, to []policy.Address) policy.Inspection {
	rs := c.rules.Load()
	if c.cfg.Mode == policy.Off || len(rs.tables) == 0 && len(rs.multis) == 0 && c.cfg.FilterMarker == "" {
		return nil
	}
	return c.inspect(rs, req, to)
}

// file is a table's file and what is known of it.
type file struct {
	index   int // in Config.Checks
	path    string
	track   filestamp.Tracker
	loaded  time.Time
	fault   string
	faultAt time.Time
}

// Start looks at the files every reload_interval until Stop.
func (c *Check) Start() {
	for _, m := range c.rules.Load().multis {
		if m.match != nil {
			m.match.Start(c.cfg.ReloadInterval.D())
		}
	}
	if c.watcher.Start(c.cfg.ReloadInterval.D(), c.poll) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.publish()
	}
}

// Stop ends what Start began and waits for it. It can be called twice, and
// without Start.
func (c *Check) Stop() {
	c.watcher.Stop()
	for _, m := range c.rules.Load().multis {
		if m.match != nil {
			m.match.Stop()
		}
	}
}

// poll reads the files that have changed and been left alone since.
func (c *Check) poll(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := map[int]*set{}
	for _, f := range c.files {
		if !f.track.Due(f.path, now) {
			continue
		}
		if s, _ := c.reread(f, now, false); s != nil {
			fresh[f.index] = s
		}
	}
	c.replace(fresh)
}

// Reload reads all tables again, changed or not. A table with faults keeps
// its last good rules; the faults are returned.
func (c *Check) Reload() conf.Faults {
	c.mu.Lock()
	defer c.mu.Unlock()
	var faults conf.Faults
	fresh := map[int]*set{}
	for _, f := range c.files {
		s, fs := c.reread(f, time.Now(), true)
		faults = append(faults, fs...)
		if s != nil {
			fresh[f.index] = s
		}
	}
	c.replace(fresh)
	return faults
}

// reread reads one table; nil: its last good rules stay. asked is set when the
// administrator wants to know at once.
func (c *Check) reread(f *file, now time.Time, asked bool) (*set, conf.Faults) {
	f.track.Begin(f.path)
	s, warnings, faults := loadSet(&c.cfg, f.index, "headers")
	if len(faults) == 0 && f.track.Torn(f.path) {
		return nil, conf.Faults{{File: f.path, Text: "changed while it was read"}}
	}
	if len(faults) > 0 && !f.track.Bad() && !asked {
		return nil, faults // it may be half written
	}
	if len(faults) > 0 {
		f.fault, f.faultAt = faults.Error(), now
		c.metrics.reloads[0].Inc()
		c.log.Error("a table was not taken, its last good rules stay in force", zap.String("table", f.path), zap.Error(faults))
		return nil, faults
	}
	f.track.Good()
	for _, w := range warnings {
		c.log.Warn("a header rule is skipped", zap.String("fault", w.Error()))
	}
	f.loaded, f.fault, f.faultAt = now, "", time.Time{}
	c.metrics.reloads[1].Inc()
	c.log.Info("table reloaded", zap.String("table", f.path), zap.Int("rules", len(s.rules)))
	return s, nil
}

// replace puts newly read tables in force, by their place in Config.Checks.
// c.mu is held.
func (c *Check) replace(fresh map[int]*set) {
	if len(fresh) > 0 {
		old := c.rules.Load()
		rs := *old
		rs.tables = slices.Clone(old.tables)
		for i, f := range c.files { // tables go with files one to one
			if s := fresh[f.index]; s != nil {
				rs.tables[i] = s
			}
		}
		rs.arrange(&c.cfg)
		before := &ruleset{}
		for i := range old.tables {
			if rs.tables[i] != old.tables[i] {
				before.tables = append(before.tables, old.tables[i])
			}
		}
		after := &ruleset{}
		for i := range rs.tables {
			if rs.tables[i] != old.tables[i] {
				after.tables = append(after.tables, rs.tables[i])
			}
		}
		after.adopt(before)
		if !slices.Equal(rs.filters, old.filters) {
			c.log.Warn("the targets of FILTER have changed: milter_header_checks must hold a line for each", zap.Strings("lines", rs.filterLines(c.cfg.FilterMarker)))
		}
		c.rules.Store(&rs)
	}
	c.publish()
}

// publish sets the gauges. c.mu is held.
func (c *Check) publish() {
	rules, faulty := 0, 0
	c.rules.Load().each(func(*rule, bool) { rules++ })
	for _, f := range c.files {
		if f.fault != "" {
			faulty++
		}
	}
	c.metrics.rules.Set(float64(rules))
	c.metrics.faulty.Set(float64(faulty))
}

// FilterLines returns the lines that the regexp table named in Postfix's
// milter_header_checks must hold for the FILTER actions of the rules in
// force, one for each target. It is empty when there are none.
func (c *Check) FilterLines() []string { return c.rules.Load().filterLines(c.cfg.FilterMarker) }

// Status is the state of one table, or of all headers.rules together, whose
// kind is Rule, for `postern status`.
type Status struct {
	Name    string    `json:"name"`
	Table   string    `json:"table,omitempty"` // as configured
	Kind    Kind      `json:"kind"`
	Rules   int       `json:"rules"`
	Hits    uint64    `json:"hits"`
	Never   int       `json:"never"`             // rules without a hit
	Loaded  time.Time `json:"loaded,omitzero"`   // when the present rules of a table were read
	Fault   string    `json:"fault,omitempty"`   // why a later edit was not taken
	FaultAt time.Time `json:"fault_at,omitzero"` // when that was found
}

// add counts a rule.
func (s *Status) add(r *rule) {
	n := r.hits.hits.Load()
	s.Hits += n
	if n == 0 {
		s.Never++
	}
}

// Status returns the state of each table, in the order of the configuration,
// and then that of headers.rules, if there are any.
func (c *Check) Status() Statuses {
	c.mu.Lock()
	defer c.mu.Unlock()
	rules := c.rules.Load()
	tables := rules.tables
	out := make([]Status, len(c.files))
	for i, f := range c.files {
		s := tables[i]
		out[i] = Status{
			Name: s.name, Table: c.cfg.Checks[f.index].Table, Kind: s.kind, Rules: len(s.rules), Loaded: f.loaded, Fault: f.fault, FaultAt: f.faultAt,
		}
		for _, r := range s.rules {
			out[i].add(r)
		}
	}
	if len(rules.multis) > 0 {
		all := Status{Name: "headers.rules", Kind: Rule, Rules: len(rules.multis)}
		for _, m := range rules.multis {
			all.add(m.rule)
		}
		out = append(out, all)
	}
	return out
}

// RuleHits is how often a rule has matched.
type RuleHits struct {
	Kind    Kind      `json:"kind"`
	Table   string    `json:"table"` // its name; of headers.rules the rule's
	Rule    string    `json:"rule"`  // file:line; of headers.rules the name
	Pattern string    `json:"pattern"`
	Result  string    `json:"result"`
	Shadow  bool      `json:"shadow"`
	Hits    uint64    `json:"hits"`
	Last    time.Time `json:"last,omitzero"` // of the last hit
	Since   time.Time `json:"since"`         // counting began
}

// Hits returns all rules with their counts, in their order: first those of
// the tables, then headers.rules. A rule that stays at 0 may be obsolete.
func (c *Check) Hits() []RuleHits {
	var out []RuleHits
	c.rules.Load().each(func(r *rule, shadow bool) {
		h := RuleHits{Kind: r.kind, Table: r.owner, Rule: r.place, Pattern: r.pattern, Result: r.result, Shadow: shadow, Hits: r.hits.hits.Load(), Since: r.hits.since}
		if last := r.hits.last.Load(); last != 0 {
			h.Last = time.Unix(last, 0)
		}
		out = append(out, h)
	})
	return out
}

// NeverHit returns the rules that have matched nothing since before, oldest first.
func (c *Check) NeverHit(before time.Time) []RuleHits {
	out := slices.DeleteFunc(c.Hits(), func(h RuleHits) bool { return h.Hits > 0 || h.Since.After(before) })
	slices.SortStableFunc(out, func(a, b RuleHits) int { return cmp.Compare(a.Since.Unix(), b.Since.Unix()) })
	return out
}
