// Package rbl is the check that asks DNS block and allow lists (RFC 5782)
// about the client's address and the domains that the session names, and adds
// up the weights of the entries that match. Entries are written as in
// Postfix's postscreen_dnsbl_sites (postconf(5)).
//
// A list can do harm by itself, so it must earn its say: it is tested as RFC
// 5782 section 5 says, error codes are no listings, a list that lists most of
// the traffic goes to shadow mode, and one that does not answer is not waited
// for.
package rbl

import (
	"context"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Resolver is what the check needs of the DNS. A name that does not exist, or
// has no such record, is an empty answer without an error; ttl is then that of
// the negative answer. Both calls return soon after ctx is done and are safe
// for concurrent use.
type Resolver interface {
	LookupA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error)
	// LookupAnewA is LookupA past whatever remembers answers.
	LookupAnewA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error)
	LookupTXT(ctx context.Context, name string) (texts []string, ttl time.Duration, cached bool, err error)
}

// Check asks DNS lists. It implements [policy.Check].
type Check struct {
	cfg        Config
	log        *zap.Logger
	limits     limits
	lists      []*list // one for each zone, in the order of the file
	queries    []query
	kinds      [kindCount]bool // those that some query has
	reply      *policy.Template
	deferReply *policy.Template
	shared     *shared
	runs       sync.Pool // of *evaluation
	memo       memo

	tasks tasks // queries, tests, timers
	stop  context.CancelFunc
}

var _ policy.Check = (*Check)(nil)

// New returns the check. cfg has been validated. prev is the check that this
// one takes the place of, or nil: answers, health and counters of the lists
// that both have are carried over. reg may be nil. Nothing is started. The
// error is that of a key file that can no longer be read.
func New(cfg Config, res Resolver, log *zap.Logger, reg prometheus.Registerer, prev *Check) (*Check, error) {
	c := &Check{cfg: cfg, log: log.Named("rbl"), limits: limits{reject: cfg.RejectAt, hold: cfg.DeferAt, mark: cfg.MarkAt}}
	c.memo.seed = maphash.MakeSeed()
	var err error
	if c.reply, err = policy.ParseTemplate(cfg.Reply, rejectReply, replyVars...); err != nil {
		return nil, fmt.Errorf("rbl: reply: %w", err)
	}
	if c.deferReply, err = policy.ParseTemplate(cfg.DeferReply, deferReply, replyVars...); err != nil {
		return nil, fmt.Errorf("rbl: defer_reply: %w", err)
	}
	if prev != nil {
		c.shared = prev.shared
		c.shared.cache.SetMaximum(uint64(cfg.CacheSize))
	} else {
		c.shared = &shared{
			// No expiry of the cache's own: that takes a goroutine, and the
			// time is in the value.
			cache:   otter.Must(&otter.Options[cacheKey, cacheValue]{MaximumSize: cfg.CacheSize}),
			metrics: newMetrics(reg),
			flights: make(map[flightKey]*flight),
			states:  make(map[string]*listState),
		}
	}
	for _, s := range cfg.Lists {
		e, err := ParseEntry(s)
		if err != nil {
			return nil, fmt.Errorf("rbl: %q: %w", s, err)
		}
		if err := c.add(e, res); err != nil {
			return nil, err
		}
	}
	for _, l := range c.lists {
		c.adopt(l)
	}
	c.runs.New = func() any {
		return &evaluation{check: c, questions: make([]question, len(c.queries)), wake: make(chan struct{}, 1)}
	}
	return c, nil
}

// add takes an entry into the list and the query that it belongs to.
func (c *Check) add(e Entry, res Resolver) error {
	opt := c.cfg.zone(e.Zone)
	if opt == nil {
		opt = &ZoneConfig{}
	}
	if opt.Mode == policy.Off {
		return nil
	}
	i := slices.IndexFunc(c.lists, func(l *list) bool { return l.zone == e.Zone })
	if i < 0 {
		l, err := c.newList(e.Zone, opt, res)
		if err != nil {
			return err
		}
		i = len(c.lists)
		c.lists = append(c.lists, l)
	}
	l := c.lists[i]
	w := weighted{e.Filter, c.cfg.weight(e)}
	if w.weight > 0 {
		l.positive = append(l.positive, w.filter)
	}
	c.kinds[e.Kind] = true
	if e.Kind != KindClient {
		l.aspects[aspectDomain] = true
	} else {
		l.aspects[aspectIPv4] = opt.Families == nil || slices.Contains(opt.Families, "ipv4")
		l.aspects[aspectIPv6] = opt.Families == nil || slices.Contains(opt.Families, "ipv6")
	}
	n := slices.IndexFunc(c.queries, func(q query) bool { return q.list == l && q.kind == e.Kind })
	if n < 0 {
		q := query{list: l, kind: e.Kind, what: l.name}
		if e.Kind != KindClient {
			q.what += " (" + e.Kind.String() + ")"
		}
		if opt.Reply != "" {
			t, err := policy.ParseTemplate(opt.Reply, rejectReply, replyVars...)
			if err != nil {
				return fmt.Errorf("rbl: reply of %s: %w", l.name, err)
			}
			q.reply = t
		}
		n = len(c.queries)
		c.queries = append(c.queries, q)
	}
	q := &c.queries[n]
	q.entries = append(q.entries, w)
	q.highest += max(w.weight, 0)
	q.lowest += min(w.weight, 0)
	return nil
}

func (c *Check) newList(zone string, opt *ZoneConfig, res Resolver) (*list, error) {
	l := &list{
		zone: zone, name: zone, shadow: opt.Mode == policy.Shadow, test: opt.Test == nil || *opt.Test,
		errorCodes: errorsOf(zone, c.cfg.zoneErrors(zone)), timeout: c.cfg.ListTimeout.D(), testEvery: c.cfg.TestEvery.D(),
		deadAfter: c.cfg.DeadAfter, volume: c.cfg.Volume, log: c.log, res: res,
		listed: []subject{listedName}, unlisted: unlistedName,
	}
	if opt.Name != "" {
		l.name = opt.Name
	}
	if opt.Timeout > 0 {
		l.timeout = opt.Timeout.D()
	}
	if opt.VolumeShare != nil {
		l.volume.Share = *opt.VolumeShare
	}
	if opt.TestListed != "" {
		l.listed = []subject{{domain: canonicalZone(opt.TestListed)}}
	} else if p := testPointOf(zone); p != "" {
		l.listed = append(l.listed, subject{domain: p})
	}
	if opt.TestUnlisted != "" {
		l.unlisted = subject{domain: canonicalZone(opt.TestUnlisted)}
	}
	for _, f := range opt.Families {
		if f == "ipv4" {
			l.families = append(l.families, aspectIPv4)
		} else {
			l.families = append(l.families, aspectIPv6)
		}
	}
	suffix := zone
	if opt.KeyFile != "" {
		key, err := readKey(opt.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("rbl: key of %s: %w", l.name, err)
		}
		l.key, suffix = key, string(key)+"."+zone
	}
	l.listState = &listState{suffix: suffix, kick: make(chan struct{}, 1)}
	return l, nil
}

// adopt gives a list the state that an earlier configuration learned, if
// everything that the state depends on is the same.
func (c *Check) adopt(l *list) {
	l.test = l.test && !c.cfg.Untested
	id := fmt.Sprint(l.suffix, l.aspects, l.families, l.listed, l.unlisted, l.test, c.cfg.zoneErrors(l.zone))
	sh := c.shared
	l.metrics = sh.metrics.list(l.name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s := sh.states[id]; s != nil {
		l.listState = s
		return
	}
	sh.states[id] = l.listState
	for a := range aspectCount {
		switch {
		case !l.aspects[a]:
			l.health[a].Store(uint32(absent))
		case !l.test:
			l.health[a].Store(uint32(trusted))
		}
	}
}

// Name implements [policy.Check].
func (c *Check) Name() string { return "rbl" }

// Traits are those of every rbl check. It runs at every stage; kinds of
// subjects that are not known yet are left out.
var Traits = policy.Traits{Stages: policy.AllStages, Waits: true}

// Traits implements [policy.Check].
func (c *Check) Traits() policy.Traits { return Traits }

// Idle implements [policy.Idler]: no list is configured.
func (c *Check) Idle() bool { return len(c.lists) == 0 }

// Start begins to test the lists, at once and then by the clock, until Stop is
// called. It is called at most once, when the check takes over: lists that only
// an earlier configuration had are forgotten.
func (c *Check) Start() {
	c.forgetOthers()
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	for _, l := range c.lists {
		l.metrics.show(l)
		if l.test {
			c.tasks.run(func() { c.tester(ctx, l) })
		}
	}
}

// Stop ends the tests and waits for queries in flight, which takes no longer
// than a list's time limit. It can be called twice, and without Start.
func (c *Check) Stop() {
	if c.stop != nil {
		c.stop()
	}
	c.tasks.wait()
}

func (c *Check) forgetOthers() {
	sh := c.shared
	mine := make(map[*listState]bool, len(c.lists))
	names := make(map[string]bool, len(c.lists))
	for _, l := range c.lists {
		mine[l.listState], names[l.name] = true, true
	}
	sh.mu.Lock()
	for id, s := range sh.states {
		if !mine[s] {
			delete(sh.states, id)
		}
	}
	sh.mu.Unlock()
	sh.metrics.keepOnly(names)
}

// tester tests a list whenever a test is due.
func (c *Check) tester(ctx context.Context, l *list) {
	for ctx.Err() == nil {
		l.mu.Lock()
		wait := time.Until(l.next)
		l.mu.Unlock()
		if wait <= 0 {
			select {
			case <-l.startTest(c.tasks.run):
			case <-ctx.Done():
			}
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-l.kick:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// Warm begins the queries about a client's address, so that the answers are
// there when a request comes. It returns at once.
func (c *Check) Warm(_ context.Context, addr netip.Addr) {
	if !addr.IsValid() || !c.cfg.AskPrivate && !mailaddr.IsGlobal(addr) {
		return
	}
	s, now := subject{addr: addr}, time.Now()
	for i := range c.queries {
		l := c.queries[i].list
		if c.queries[i].kind != KindClient {
			continue
		}
		if off, _ := l.off(s.aspect()); off || l.dead.Load() {
			continue
		}
		if _, ok := c.shared.cached(cacheKey{l.listState, s}, now); !ok {
			c.join(l, s, nil, true, false)
		}
	}
}

// Reset lets a list that the volume guard put into shadow mode count again.
// It reports whether there is a list of that public name, and whether it was
// held.
func (c *Check) Reset(name string) (known, held bool) {
	for _, l := range c.lists {
		if l.name == name {
			return true, l.reset()
		}
	}
	return false, false
}

// Evaluate implements [policy.Check]. The error says that no list at all could
// be asked.
func (c *Check) Evaluate(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	if len(c.queries) == 0 {
		return policy.Verdict{}, nil
	}
	req.Facts.ListsAsked = true
	s := c.subjectsOf(req)
	if c.recall(&s, req) {
		return policy.Verdict{}, nil
	}
	r := c.runs.Get().(*evaluation)
	r.anew = false
	defer r.release()
	if r.begin(req, &s) > 0 {
		r.wait(ctx)
	} else {
		r.remember(&s, req)
	}
	return r.conclude(ctx, req)
}

// Anew is Evaluate past what is remembered of the lists, here and in the
// resolver, unless it was asked for in the last minute. What they say is
// remembered. A list that does not answer is no listing.
func (c *Check) Anew(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	if len(c.queries) == 0 {
		return policy.Verdict{}, nil
	}
	s := c.subjectsOf(req)
	r := c.runs.Get().(*evaluation)
	defer r.release()
	r.anew = true
	if r.begin(req, &s) > 0 {
		r.wait(ctx)
	}
	c.memo.slot(&s).Store(nil)
	return r.conclude(ctx, req)
}

// subjectsOf returns what the lists can be asked about a request.
func (c *Check) subjectsOf(req *policy.Request) (s subjects) {
	for k, used := range c.kinds {
		if used {
			s[k] = subjectOf(Kind(k), req, c.cfg.AskPrivate)
		}
	}
	return s
}
