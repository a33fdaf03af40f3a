package callout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// ErrBusy is why a probe was not made: too many wait already.
var ErrBusy = errors.New("too many probes wait for the next hop")

var errRefusedPause = errors.New("the next hop refuses this host; left alone for a while")

// Prober makes probes and knows how the next hops are. All methods are safe
// for concurrent use.
type Prober struct {
	cfg     Config
	helo    string
	address string // the sender that is not the null sender
	dns     Resolver
	log     *zap.Logger
	metrics *metrics
	slots   chan struct{} // connections to all next hops

	mu   sync.Mutex
	hops map[string]*hop
	idle map[*connection]*hop // of all hops
	done bool
}

// maxHopStates bounds the next hops remembered: a route with MX look-ups by
// the recipient's domain has as many as there are domains.
const maxHopStates = 10_000

// New returns a prober on validated settings; hostname stands for what they
// leave out. It starts nothing. prev, which may be nil, hands on what it knows
// of next hops.
func New(cfg Config, hostname string, dns Resolver, log *zap.Logger, reg prometheus.Registerer, prev *Prober) *Prober {
	p := &Prober{
		cfg: cfg, helo: cfg.Helo, address: SenderAddress(cfg.Sender, hostname), dns: dns, log: log.Named("callout"),
		slots: make(chan struct{}, cfg.MaxConnections), hops: make(map[string]*hop),
		idle: make(map[*connection]*hop),
	}
	if p.helo == "" {
		p.helo = hostname
	}
	if p.address == "" {
		p.address = SenderAddress("", hostname)
	}
	if prev == nil {
		p.metrics = newMetrics(reg)
		return p
	}
	p.metrics = prev.metrics
	prev.mu.Lock()
	defer prev.mu.Unlock()
	for key, h := range prev.hops {
		h.mu.Lock()
		n := newHop(h.Hop, &cfg)
		n.health, n.senders = h.health, maps.Clone(h.senders)
		if cfg.AcceptAllKeep > 0 {
			n.accepts = maps.Clone(h.accepts) // prev may go on when the reload fails
		}
		h.mu.Unlock()
		p.hops[key] = n
	}
	return p
}

// SenderAddress returns the address in MAIL FROM for a configured sender: ""
// for "<>", double-bounce@hostname for "".
func SenderAddress(configured, hostname string) string {
	switch configured {
	case "<>":
		return ""
	case "":
		return "double-bounce@" + hostname
	}
	return configured
}

// Helo returns the name that the prober introduces itself with.
func (p *Prober) Helo() string { return p.helo }

// Close ends idle connections; the prober makes none idle any more. Probes
// under way go on.
func (p *Prober) Close() {
	p.mu.Lock()
	p.done = true
	all := make([]*connection, 0, len(p.idle))
	for c, h := range p.idle {
		p.take(h, c)
		all = append(all, c)
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(c.close)
	}
	wg.Wait()
}

// connection is a session that can be used again by probes with the same options.
type connection struct {
	*session
	options *Options
	label   string
	timer   *time.Timer // ends it when it stays idle
}

// hop is what is known of one next hop.
type hop struct {
	Hop
	slots chan struct{} // connections
	rate  *rate.Limiter

	mu      sync.Mutex
	waiting int
	limit   int // of waiting
	conns   []*connection
	health  health
	accepts map[string]acceptance // by domain
	senders map[string]string     // by configured sender: the one that works
}

type acceptance struct {
	all  bool
	vain bool // the test told nothing
	at   time.Time
}

// health is how a next hop has been lately.
type health struct {
	failures  int       // in a row
	until     time.Time // left alone until then
	refused   bool      // because it refuses us
	lastError string
	errorAt   time.Time
	lastOK    time.Time
	alarm     string // what it refuses us with
	alarmAt   time.Time
	asked     uint64
	failed    uint64
	took      time.Duration // rolling mean of an answer
	minute    [2]int        // asked in this minute and the one before
	minuteAt  time.Time     // when this one began
}

// tick begins a new minute when it is time.
func (st *health) tick(now time.Time) {
	switch past := now.Sub(st.minuteAt); {
	case past >= 2*time.Minute || past < 0:
		st.minute, st.minuteAt = [2]int{}, now
	case past >= time.Minute:
		st.minute, st.minuteAt = [2]int{0, st.minute[0]}, st.minuteAt.Add(time.Minute)
	}
}

// perMinute is about how many were asked in the last 60 seconds.
func (st *health) perMinute(now time.Time) int {
	st.tick(now)
	left := time.Minute - now.Sub(st.minuteAt)
	return st.minute[0] + int(int64(st.minute[1])*int64(left)/int64(time.Minute))
}

func newHop(h Hop, cfg *Config) *hop {
	return &hop{
		Hop: h, slots: make(chan struct{}, cfg.Connections), limit: cfg.Queue,
		rate: rate.NewLimiter(rate.Limit(cfg.Rate), cfg.Burst),
	}
}

func (p *Prober) hop(h Hop) *hop {
	key := h.String()
	p.mu.Lock()
	defer p.mu.Unlock()
	state := p.hops[key]
	if state == nil {
		if len(p.hops) >= maxHopStates {
			for k, old := range p.hops { // any that is at rest
				if old.atRest() {
					delete(p.hops, k)
					break
				}
			}
		}
		state = newHop(h, &p.cfg)
		p.hops[key] = state
	}
	return state
}

func (h *hop) atRest() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting == 0 && len(h.slots) == 0 && len(h.conns) == 0
}

// leftAlone says why the next hop is not to be asked now.
func (h *hop) leftAlone(now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !now.Before(h.health.until) {
		return nil
	}
	if h.health.refused {
		return fmt.Errorf("%w: %s", errRefusedPause, h.health.lastError)
	}
	return fmt.Errorf("the next hop is down: %s", h.health.lastError)
}

// acquire waits for a connection's place and for the rate.
func (h *hop) acquire(ctx context.Context, p *Prober, gentle bool) (release func(), err error) {
	release = func() {
		p.metrics.open.Dec()
		<-p.slots
		<-h.slots
	}
	h.mu.Lock()
	if h.waiting == 0 && h.place(p) {
		if h.rate.Allow() {
			h.mu.Unlock()
			p.metrics.open.Inc()
			return release, nil
		}
		<-p.slots
		<-h.slots
	}
	if gentle || h.waiting >= h.limit {
		h.mu.Unlock()
		p.metrics.busy.Inc()
		return nil, ErrBusy
	}
	h.waiting++
	h.mu.Unlock()
	p.metrics.waiting.Inc()
	defer func() {
		h.mu.Lock()
		h.waiting--
		h.mu.Unlock()
		p.metrics.waiting.Dec()
	}()
	if err := h.rate.Wait(ctx); err != nil {
		return nil, fmt.Errorf("%w: the rate is used up", ErrBusy)
	}
	for i, slots := range []chan struct{}{h.slots, p.slots} {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			if i == 1 {
				<-h.slots
			}
			return nil, fmt.Errorf("%w: no connection became free", ErrBusy)
		}
	}
	p.metrics.open.Inc()
	return release, nil
}

// place takes a connection's place if one is free.
func (h *hop) place(p *Prober) bool {
	select {
	case h.slots <- struct{}{}:
	default:
		return false
	}
	select {
	case p.slots <- struct{}{}:
		return true
	default:
		<-h.slots
		return false
	}
}

// take takes an idle connection away and reports whether it still was there:
// only one of those who want it gets it. p is locked.
func (p *Prober) take(h *hop, c *connection) bool {
	if p.idle[c] != h {
		return false
	}
	delete(p.idle, c)
	h.mu.Lock()
	h.conns = slices.DeleteFunc(h.conns, func(o *connection) bool { return o == c })
	h.mu.Unlock()
	c.timer.Stop() // when it has run, it finds nothing
	return true
}

// idleOf returns a connection that can be used again, the one used last, or
// nil, and those that must end so that a new one does not exceed the limits:
// idle connections count.
func (p *Prober) idleOf(h *hop, o *Options) (c *connection, surplus []*connection) {
	keep := p.cfg.KeepIdle.D()
	p.mu.Lock()
	defer p.mu.Unlock()
	h.mu.Lock()
	conns := slices.Clone(h.conns)
	h.mu.Unlock()
	for _, c := range slices.Backward(conns) {
		if c.options.Level == o.Level && c.options.Roots == o.Roots && time.Since(c.usedAt) <= keep && p.take(h, c) {
			return c, nil
		}
	}
	if len(conns) > 0 && len(conns)+len(h.slots) > cap(h.slots) && p.take(h, conns[0]) {
		surplus = append(surplus, conns[0])
	}
	for c, of := range p.idle { // any
		if len(p.idle)+len(p.slots) <= cap(p.slots) {
			break
		}
		if p.take(of, c) {
			surplus = append(surplus, c)
		}
	}
	return nil, surplus
}

// putBack keeps a connection for the next probe, or ends it when it has served
// enough; nobody waits for that end, but its place is free only then.
func (p *Prober) putBack(h *hop, c *connection, release func()) {
	if c == nil {
		release()
		return
	}
	c.dialogue = nil
	c.usedAt = time.Now()
	if c.broken || c.transactions >= p.cfg.MaxTransactions || c.refused >= p.cfg.MaxRefused || p.cfg.KeepIdle == 0 || !p.keep(h, c) {
		go func() { // bounded by quitTimeout
			c.close()
			release()
		}()
		return
	}
	release()
}

// keep has a connection wait for the next probe, unless the prober is closed.
func (p *Prober) keep(h *hop, c *connection) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return false
	}
	c.timer = time.AfterFunc(p.cfg.KeepIdle.D(), func() {
		p.mu.Lock()
		mine := p.take(h, c)
		p.mu.Unlock()
		if mine {
			c.close()
		}
	})
	p.idle[c] = h
	h.mu.Lock()
	h.conns = append(h.conns, c)
	h.mu.Unlock()
	return true
}

// note keeps what a result says of the next hop, and logs when it changes.
func (h *hop) note(p *Prober, res *Result, began time.Time) {
	now := time.Now()
	h.mu.Lock()
	st := &h.health
	st.asked++
	st.tick(now)
	st.minute[0]++
	was := st.failures
	alarm := Alarm(res.Stage, res.Reply) && res.Class != Undecided
	down, back := false, false
	if res.Class == Down {
		st.failed++
		st.failures++
		if st.refused {
			st.until = time.Time{} // that pause was for another reason
		}
		st.lastError, st.errorAt, st.refused = res.Stage.String()+": "+res.Text(), now, false
		if p.cfg.DownAfter > 0 && st.failures >= p.cfg.DownAfter {
			down = st.failures == p.cfg.DownAfter
			st.until = now.Add(p.cfg.DownPause.D())
		}
	} else {
		back = p.cfg.DownAfter > 0 && was >= p.cfg.DownAfter
		st.failures, st.lastOK, st.until = 0, now, time.Time{}
		st.took += (now.Sub(began) - st.took) / 8
	}
	loud := false
	if alarm {
		loud = now.Sub(st.alarmAt) > p.cfg.RefusedPause.D()
		st.alarm = res.Stage.String() + ": " + res.Reply.String()
		if loud {
			st.alarmAt = now
		}
		if res.Stage < StageRcpt { // it is not about one address
			st.until, st.refused = now.Add(p.cfg.RefusedPause.D()), res.Class == Refused
			st.lastError, st.errorAt = st.alarm, now
		}
	} else if res.Class == Known || res.Class == Unknown || res.Class == AcceptAll {
		st.alarm = ""
	}
	h.mu.Unlock()
	fields := []zap.Field{zap.String("next_hop", res.Hop), zap.String("host", res.Host), zap.Stringer("stage", res.Stage), zap.String("answer", res.Text())}
	switch {
	case loud:
		p.log.Error("the next hop refuses this host's probes: recipients cannot be verified there", fields...)
	case down:
		p.log.Error("the next hop is down", fields...)
	case back:
		p.log.Info("the next hop is back", fields...)
	}
}

// acceptAll returns whether the next hop takes every address of the domain;
// nil when that is not known.
func (h *hop) acceptAll(domain string, now time.Time) *bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	a, ok := h.accepts[domain]
	if !ok || a.vain || !now.Before(a.at) {
		return nil
	}
	return &a.all
}

// untested reports whether it is time to find out.
func (h *hop) untested(domain string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	a, ok := h.accepts[domain]
	return !ok || !now.Before(a.at)
}

// vainPause is how long a test that told nothing is not repeated: each shows
// the next hop one more address that nobody has.
const vainPause = 10 * time.Minute

func (h *hop) testedInVain(p *Prober, domain string) {
	if h.untested(domain, time.Now()) {
		h.remember(domain, acceptance{vain: true, at: time.Now().Add(min(vainPause, p.cfg.AcceptAllKeep.D()))})
	}
}

func (h *hop) remember(domain string, a acceptance) (old acceptance) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.accepts == nil {
		h.accepts = make(map[string]acceptance)
	}
	old = h.accepts[domain]
	if len(h.accepts) >= maxDomains {
		clear(h.accepts)
	}
	h.accepts[domain] = a
	return old
}

// maxDomains bounds the domains remembered of one next hop.
const maxDomains = 100_000

func (h *hop) setAcceptAll(p *Prober, domain string, all bool) {
	// at is the end: a check that changes its settings asks anew soon enough.
	old := h.remember(domain, acceptance{all: all, at: time.Now().Add(p.cfg.AcceptAllKeep.D())})
	switch {
	case all && !old.all:
		p.log.Warn("the next hop takes every address of a domain: its recipients cannot be verified",
			zap.String("next_hop", h.String()), zap.String("domain", domain))
	case !all && old.all:
		p.log.Info("the next hop does tell unknown recipients of a domain now", zap.String("next_hop", h.String()), zap.String("domain", domain))
	}
}

// sender returns what to say in MAIL FROM: the configured one, or the other
// form when the next hop has refused that.
func (h *hop) sender(o *Options) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s, ok := h.senders[o.Sender]; ok {
		return s
	}
	return o.Sender
}

func (h *hop) preferSender(o *Options, sender string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.senders == nil {
		h.senders = make(map[string]string)
	}
	h.senders[o.Sender] = sender
}

// AcceptsAll reports whether one of the hops is known to take every address
// of the domain. It does no I/O.
func (p *Prober) AcceptsAll(hops []Hop, domain string, now time.Time) bool {
	for _, h := range hops {
		p.mu.Lock()
		state := p.hops[h.String()]
		p.mu.Unlock()
		if state == nil {
			continue
		}
		if a := state.acceptAll(domain, now); a != nil {
			return *a
		}
	}
	return false
}

// Down reports whether all hops are left alone now because they do not answer.
// One that refuses this host is not down: that says nothing against an address.
func (p *Prober) Down(hops []Hop, now time.Time) bool {
	for _, h := range hops {
		p.mu.Lock()
		state := p.hops[h.String()]
		p.mu.Unlock()
		if state == nil {
			return false
		}
		if why := state.leftAlone(now); why == nil || errors.Is(why, errRefusedPause) {
			return false
		}
	}
	return len(hops) > 0
}

// Status is how one next hop is.
type Status struct {
	NextHop string `json:"next_hop"`
	// State is "up", "down", "refuses us" or "not asked yet".
	State       string          `json:"state"`
	Asked       uint64          `json:"asked"`
	Failed      uint64          `json:"failed"`
	PerMinute   int             `json:"per_minute"` // asked in the last minute, about
	MeanSeconds float64         `json:"mean_seconds"`
	Connections int             `json:"connections"` // in use
	Idle        int             `json:"idle"`
	Waiting     int             `json:"waiting"`
	LastOK      time.Time       `json:"last_ok,omitzero"`
	LastError   string          `json:"last_error,omitempty"`
	ErrorAt     time.Time       `json:"error_at,omitzero"`
	Until       time.Time       `json:"left_alone_until,omitzero"`
	Alarm       string          `json:"alarm,omitempty"`
	AcceptAll   map[string]bool `json:"accept_all,omitempty"` // by domain: tested, and what came out
}

// Status returns the next hops that have been asked, by name.
func (p *Prober) Status() []Status {
	p.mu.Lock()
	hops := make([]*hop, 0, len(p.hops))
	for _, h := range p.hops {
		hops = append(hops, h)
	}
	p.mu.Unlock()
	now := time.Now()
	out := make([]Status, 0, len(hops))
	for _, h := range hops {
		out = append(out, h.status(now))
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.NextHop, b.NextHop) })
	return out
}

func (h *hop) status(now time.Time) Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := &h.health
	out := Status{
		NextHop: h.String(), State: "up", Asked: st.asked, Failed: st.failed, PerMinute: st.perMinute(now), MeanSeconds: st.took.Seconds(),
		Connections: len(h.slots), Idle: len(h.conns), Waiting: h.waiting, LastOK: st.lastOK, LastError: st.lastError, ErrorAt: st.errorAt, Alarm: st.alarm,
	}
	switch {
	case now.Before(st.until) && st.refused:
		out.State, out.Until = "refuses us", st.until
	case now.Before(st.until):
		out.State, out.Until = "down", st.until
	case st.asked == 0:
		out.State = "not asked yet"
	case st.failures > 0:
		out.State = "failing"
	}
	if st.alarm != "" && out.State == "up" {
		out.State = "refuses us"
	}
	for domain, a := range h.accepts {
		if now.Before(a.at) && !a.vain {
			if out.AcceptAll == nil {
				out.AcceptAll = make(map[string]bool)
			}
			out.AcceptAll[domain] = a.all
		}
	}
	return out
}

// metrics of all probers of one daemon.
type metrics struct {
	limited, busy prometheus.Counter
	waiting, open prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		limited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_verify_callouts_withheld_total", Help: "Callouts that were not made: limits, or a next hop that is left alone.",
		}),
		busy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_verify_callouts_busy_total", Help: "Callouts that were not made because too many waited for the next hop.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_verify_callouts_waiting", Help: "Callouts that wait for a connection.",
		}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_verify_connections", Help: "Connections to next hops in use.",
		}),
	}
	reg.MustRegister(m.limited, m.busy, m.waiting, m.open)
	return m
}

func (m *metrics) observe(r *Result) {
	if r.Limited {
		m.limited.Inc()
	}
}
