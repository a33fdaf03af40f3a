package callout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
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
