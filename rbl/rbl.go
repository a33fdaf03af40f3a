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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/policy"
)

// Resolver is what the check needs of the DNS. A name that does not exist, or
// has no such record, is an empty answer without an error; ttl is then that of
// the negative answer. Both calls return soon after ctx is done and are safe
// for concurrent use.
type Resolver interface {
	LookupA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error)
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
	runs       sync.Pool // of *run
	memo       memo

	tasks tasks // queries, tests, timers
	stop  context.CancelFunc
}

var _ policy.Check = (*Check)(nil)

// query is a question to one list: all entries of a zone and kind.
type query struct {
	list    *list
	kind    Kind
	entries []weighted
	reply   *policy.Template // nil: the check's
	// highest and lowest are the most that an answer can add and take away.
	highest, lowest int
	what            string // for notes: "zen.example.org", "dbl.example.org (sender)"
}

type weighted struct {
	filter *Filter
	weight int
}

// score adds up the entries that an answer matches.
func (q *query) score(l *listing) (sum int, matched bool) {
	for _, e := range q.entries {
		if slices.ContainsFunc(l.codes, e.filter.match) {
			sum, matched = sum+e.weight, true
		}
	}
	return sum, matched
}

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
			flights: make(map[cacheKey]*flight),
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
		return &run{check: c, slots: make([]slot, len(c.queries)), wake: make(chan struct{}, 1)}
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
	if !addr.IsValid() || !c.cfg.AskPrivate && !isGlobal(addr) {
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
			c.join(l, s, nil, true)
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
	s := c.subjectsOf(req)
	if c.recall(&s, req) {
		return policy.Verdict{}, nil
	}
	r := c.runs.Get().(*run)
	defer r.release()
	if r.begin(req, &s) > 0 {
		r.wait(ctx)
	} else {
		r.remember(&s, req)
	}
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

// tasks counts goroutines. Unlike a sync.WaitGroup it takes new ones while
// somebody waits: requests still under way start queries during Stop.
type tasks struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n falls to 0; nil when nobody waits
}

func (t *tasks) run(f func()) {
	t.mu.Lock()
	t.n++
	t.mu.Unlock()
	go func() {
		defer t.end()
		f()
	}()
}

func (t *tasks) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

func (t *tasks) wait() {
	t.mu.Lock()
	if t.n == 0 {
		t.mu.Unlock()
		return
	}
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.mu.Unlock()
	<-idle
}

// limits are the scores from which on something happens; 0 is never.
type limits struct{ reject, hold, mark int }

// outcome is what a score leads to, worse with each value.
type outcome uint8

const (
	clean     outcome = iota
	marked            // suspicious
	held              // refused for now, by score
	uncertain         // refused for now: an allow list that could have prevented a rejection is missing
	rejected
)

// of returns the outcome of a score. missing is the sum of the negative
// weights that could not be asked for. It is the whole rule.
func (l limits) of(score, missing int) outcome {
	switch {
	case l.reject > 0 && score >= l.reject && score+missing >= l.reject:
		return rejected
	case l.reject > 0 && score >= l.reject:
		return uncertain
	case l.hold > 0 && score >= l.hold:
		return held
	case l.mark > 0 && score >= l.mark:
		return marked
	}
	return clean
}

// settled reports whether answers still outstanding, which can raise the score
// by at most high and lower it by at most -low, or fail, cannot change what
// happens. The outcome grows with the score, and a failed allow list weighs no
// more than a matching one, so the two ends tell.
func (l limits) settled(score, missing, high, low int) bool {
	return l.of(score+low, missing) == l.of(score+high, missing)
}

// slot is the state of one query of a request.
type slot struct {
	subject subject
	answer  answer
	flight  *flight // not nil: under way
	state   slotState
	cached  bool
	expires int64 // of a cached answer, Unix ns
	took    time.Duration
}

type slotState uint8

const (
	slotSkipped slotState = iota // nothing to ask about, or the list has no such entries
	slotPending
	slotDone
)

// run is the state of one evaluation. It is reused.
type run struct {
	check   *Check
	slots   []slot
	wake    chan struct{} // a token: some query is done, perhaps one of an earlier use
	showAll bool          // every answer is waited for
}

func (r *run) release() {
	clear(r.slots)
	r.check.runs.Put(r)
}

// begin takes from memory what is there and asks for the rest. It returns the
// number of queries under way.
func (r *run) begin(req *policy.Request, about *subjects) (pending int) {
	c := r.check
	r.showAll = req.Probe != nil
	now := time.Now()
	for i := range c.queries {
		q, s := &c.queries[i], &r.slots[i]
		s.subject = about[q.kind]
		if !s.subject.ok() || len(s.subject.domain)+1+len(q.list.suffix) > 253 {
			continue
		}
		if off, broken := q.list.off(s.subject.aspect()); off {
			if broken {
				s.state, s.answer = slotDone, answer{failure: failureOff}
			}
			continue
		}
		var ok bool
		if s.answer, s.expires, ok = c.shared.cachedUntil(cacheKey{q.list.listState, s.subject}, now); ok {
			s.state, s.cached = slotDone, true
			if !req.DryRun {
				q.list.cached.Add(1)
				q.list.metrics.cached.Inc()
			}
			continue
		}
		r.send(q, s, !req.DryRun)
		if s.state == slotPending {
			pending++
		}
	}
	return pending
}

var (
	failureOff  = &failure{failOff, "off, it fails its test"}
	failureDead = &failure{failDead, "does not answer"}
	failureBusy = &failure{failBusy, "too many queries in flight"}
	failureLate = &failure{failTimeout, "no answer in time"}
)

// send starts the query of a slot.
func (r *run) send(q *query, s *slot, counted bool) {
	l := q.list
	if l.dead.Load() {
		// One query at a time finds out whether it is back. Nobody waits.
		s.state, s.answer = slotDone, answer{failure: failureDead}
		if l.probing.CompareAndSwap(false, true) {
			r.check.revive(l, s.subject, counted)
		}
		return
	}
	if s.flight = r.check.join(l, s.subject, r.wake, counted); s.flight != nil {
		s.state = slotPending
		return
	}
	s.state, s.answer = slotDone, answer{failure: failureBusy}
	l.failures.Add(1)
	l.metrics.failures[failBusy].Inc()
}

// revive asks a dead list in the background.
func (c *Check) revive(l *list, s subject, counted bool) {
	wake := make(chan struct{}, 1)
	if c.join(l, s, wake, counted) == nil {
		l.probing.Store(false)
		return
	}
	c.tasks.run(func() {
		<-wake
		l.probing.Store(false)
	})
}

// wait waits until the outcome is settled, everything is answered, or ctx is
// done. With a probe it waits for every answer, since all are to be shown.
func (r *run) wait(ctx context.Context) {
	for {
		t := r.tally()
		if t.pending == 0 || !r.showAll && r.check.limits.settled(t.score, t.missing, t.high, t.low) {
			return
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
			r.collect()
			for i := range r.slots {
				if s := &r.slots[i]; s.state == slotPending {
					s.state, s.answer = slotDone, answer{failure: failureLate}
				}
			}
			return
		}
		r.collect()
	}
}

// collect takes over what has been answered.
func (r *run) collect() {
	for i := range r.slots {
		s := &r.slots[i]
		if s.state == slotPending && s.flight.done.Load() {
			s.state, s.answer, s.took = slotDone, s.flight.answer, s.flight.took
			s.flight = nil
		}
	}
}

// tally is what the answers so far add up to.
type tally struct {
	score     int
	missing   int // negative weights that could not be asked for
	high, low int // what outstanding answers can add and take away
	pending   int // outstanding answers that count
	shadow    int // what lists in shadow mode would add
	answered  int // lists that count and gave an answer
	failed    int // lists that count and gave none
	top       int // slot of the matching list that counts most, -1 for none
}

func (r *run) tally() tally {
	t := tally{top: -1}
	best := 0
	for i := range r.slots {
		q, s := &r.check.queries[i], &r.slots[i]
		shadow := q.list.inShadow()
		switch {
		case s.state == slotSkipped:
		case s.state == slotPending:
			if !shadow {
				t.pending++
				t.high += q.highest
				t.low += q.lowest
			}
		case s.answer.failure != nil:
			if shadow {
				continue
			}
			t.missing += q.lowest
			// A list that is off is known to be no use: no fault of the moment.
			if s.answer.failure.class != failOff {
				t.failed++
			}
		default:
			sum := 0
			if s.answer.listing != nil {
				sum, _ = q.score(s.answer.listing)
			}
			if shadow {
				t.shadow += sum
				continue
			}
			t.answered++
			t.score += sum
			if sum > best {
				best, t.top = sum, i
			}
		}
	}
	return t
}

// conclude turns the answers into facts and a verdict.
func (r *run) conclude(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	c := r.check
	t := r.tally()
	// Here an answer that is still outstanding no longer matters.
	what := c.limits.of(t.score, t.missing)
	r.report(req, t)
	if t.answered == 0 && t.failed > 0 && what == clean {
		if err := ctx.Err(); err != nil {
			return policy.Verdict{}, fmt.Errorf("rbl: %w", err)
		}
		return policy.Verdict{}, fmt.Errorf("rbl: none of %d lists could be asked: %s", t.failed, r.firstFailure())
	}
	if t.shadow != 0 && !req.DryRun && c.limits.of(t.score+t.shadow, t.missing) != what {
		r.countShadow()
	}
	v := policy.Verdict{}
	switch what {
	case clean:
		return v, nil
	case marked:
		v.Reason = "rbl-marked"
	case held:
		v.Action, v.Reason = policy.Defer, "rbl-deferred"
	case uncertain:
		v.Action, v.Reason = policy.Defer, "rbl-allow-list-missing"
	case rejected:
		v.Action, v.Reason = policy.Reject, "rbl-listed"
	}
	if c.cfg.MarkAt > 0 && t.score >= c.cfg.MarkAt {
		req.Facts.Mark("rbl-listed")
	}
	v.Detail = r.detail(t)
	if v.Action.Refuses() {
		v.Reply = r.refusal(ctx, req, t, v.Action)
	}
	return v, nil
}

// report writes facts, counters and notes.
func (r *run) report(req *policy.Request, t tally) {
	c := r.check
	for i := range r.slots {
		q, s := &c.queries[i], &r.slots[i]
		if s.state == slotSkipped {
			continue
		}
		shadow := q.list.inShadow()
		switch {
		case s.answer.listing != nil:
			sum, matched := q.score(s.answer.listing)
			if matched && !req.DryRun {
				q.list.hits.Add(1)
				q.list.metrics.hits.Inc()
			}
			if matched && !shadow {
				req.Facts.Listings = append(req.Facts.Listings, policy.Listing{
					List: q.list.name, What: s.subject.String(), Answer: s.answer.listing.text, Weight: sum,
				})
			}
		case s.answer.failure != nil && !shadow:
			req.Facts.Missing = append(req.Facts.Missing, "dnsbl "+q.list.name+": "+s.answer.failure.text)
		}
		if req.Probe != nil {
			value, source := q.describe(s)
			if shadow && s.state == slotDone {
				value += ", in shadow"
			}
			req.Probe.Add(q.what, value, source, s.took)
		}
	}
	req.Facts.RBLScore = t.score
	req.Probe.Add("score", strconv.Itoa(t.score), "", 0)
}

// describe tells what became of a query: a value and where it is from.
func (q *query) describe(s *slot) (value, source string) {
	source = "network"
	if s.cached {
		source = "cache"
	}
	switch {
	case s.state == slotPending:
		return s.subject.String() + ": not waited for", ""
	case s.answer.failure != nil:
		return s.subject.String() + ": " + s.answer.failure.text, source
	case s.answer.listing == nil:
		return s.subject.String() + ": not listed", source
	}
	sum, matched := q.score(s.answer.listing)
	if !matched {
		return s.subject.String() + ": " + s.answer.listing.text + ", no entry matches", source
	}
	return s.subject.String() + ": " + s.answer.listing.text + ", weight " + strconv.Itoa(sum), source
}

func (r *run) firstFailure() string {
	for i := range r.slots {
		if f := r.slots[i].answer.failure; f != nil {
			return r.check.queries[i].list.name + ": " + f.text
		}
	}
	return "no list"
}

func (r *run) countShadow() {
	for i := range r.slots {
		q := &r.check.queries[i]
		if s := &r.slots[i]; s.answer.listing != nil && q.list.inShadow() {
			if sum, _ := q.score(s.answer.listing); sum != 0 {
				q.list.metrics.shadowed.Inc()
			}
		}
	}
}

// detail is the line for the log: the score and where it comes from.
func (r *run) detail(t tally) string {
	b := append(make([]byte, 0, 128), "score "...)
	b = strconv.AppendInt(b, int64(t.score), 10)
	for i := range r.slots {
		q, s := &r.check.queries[i], &r.slots[i]
		if s.answer.listing == nil {
			continue
		}
		sum, matched := q.score(s.answer.listing)
		if !matched {
			continue
		}
		b = append(append(append(b, "; "...), q.list.name...), ' ')
		if q.kind != KindClient {
			b = append(append(append(append(b, q.kind.String()...), ' '), s.subject.domain...), ' ')
		}
		b = append(append(b, s.answer.listing.text...), " ("...)
		b = strconv.AppendInt(b, int64(sum), 10)
		if q.list.inShadow() {
			b = append(b, ", shadow"...)
		}
		b = append(b, ')')
	}
	if t.missing < 0 {
		b = append(b, "; not asked: "...)
		b = strconv.AppendInt(b, int64(t.missing), 10)
	}
	return string(b)
}

// refusal fills in the reply of the list that counts most.
func (r *run) refusal(ctx context.Context, req *policy.Request, t tally, action policy.Action) policy.Reply {
	c := r.check
	template := c.deferReply
	q, s := &c.queries[t.top], &r.slots[t.top]
	if action == policy.Reject {
		if template = c.reply; q.reply != nil {
			template = q.reply
		}
	}
	reason := ""
	if template.Uses("reason") && c.cfg.ReasonTimeout > 0 && ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(ctx, c.cfg.ReasonTimeout.D())
		reason = q.list.reason(ctx, s.subject)
		cancel()
	}
	reply := template.Expand(func(name string) string { return c.placeholder(name, req, q, s, t.score, reason) })
	if reason == "" {
		reply.Text = strings.TrimRight(reply.Text, " ;:,-")
	}
	if req.Probe != nil {
		req.Probe.Add("reason", policy.Printable(reason), q.what, 0)
	}
	return reply
}

func (c *Check) placeholder(name string, req *policy.Request, q *query, s *slot, score int, reason string) string {
	switch name {
	case "class":
		return kindClasses[q.kind]
	case "what":
		return s.subject.String()
	case "client":
		return req.Client.Addr.String()
	case "client_name":
		return orUnknown(req.Client.Name)
	case "helo":
		return orUnknown(req.Helo)
	case "sender":
		if req.Sender.Raw == "" {
			return "<>"
		}
		return req.Sender.Raw
	case "recipient":
		return req.Recipient.Raw
	case "list":
		return q.list.name
	case "reason":
		return reason
	case "score":
		return strconv.Itoa(score)
	}
	return ""
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
