package rbl

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// health is what the test of RFC 5782 section 5 says about one aspect.
type health uint32

const (
	untested health = iota // never completed
	passed
	failed  // lists what it must not, or does not list what it must
	absent  // holds no entries of this address family
	trusted // the operator switched the test off
)

var healthNames = [...]string{"untested", "passed", "failed", "absent", "trusted"}

func (h health) String() string { return healthNames[h] }

// listState is what is learned about one zone. It outlives a reload.
type listState struct {
	suffix string // what queries end in, with the key: never shown
	health [aspectCount]atomic.Uint32
	// tripped is set while the volume guard holds the list in shadow mode.
	tripped atomic.Bool
	// dead is set while the list does not answer. It is not waited for then.
	dead atomic.Bool
	// gen changes when answers learned so far must not be used any more.
	gen     atomic.Uint32
	probing atomic.Bool   // a query to a dead list is under way
	kick    chan struct{} // holds one: the time of the next test has changed

	queries, cached, hits, failures atomic.Uint64

	mu         sync.Mutex
	why        [aspectCount]string // of failed
	lastTest   time.Time           // last attempt
	lastPass   time.Time           // last time that every aspect asked about was good
	next       time.Time           // when the next test is due
	retries    int                 // tests in a row without a good end
	testing    chan struct{}       // closed at the end of the test under way, nil when none is
	lastError  string
	errorAt    time.Time
	streak     int       // queries in a row without an answer
	streakFrom time.Time // when the first of them failed
	tripAt     time.Time
	window     window
}

// list is a zone as this configuration uses it.
type list struct {
	*listState
	zone, name string // name is the public one
	key        secret
	shadow     bool // mode = "shadow"
	test       bool
	listed     []subject // per test: any of them must be listed (domains)
	unlisted   subject
	families   []aspect // nil: those whose test entries it has
	aspects    [aspectCount]bool
	errorCodes []errorRow
	timeout    time.Duration
	testEvery  time.Duration
	deadAfter  int
	volume     VolumeConfig
	positive   []*Filter // of entries with a positive weight
	metrics    listMetrics
	log        *zap.Logger
	res        Resolver
}

func (l *list) healthOf(a aspect) health { return health(l.health[a].Load()) }

// off reports whether a list is not to be asked about an aspect, and whether
// that is because it is out of order.
func (l *list) off(a aspect) (off, broken bool) {
	switch l.healthOf(a) {
	case failed:
		return true, true
	case absent:
		return true, false
	default:
		return false, false
	}
}

// inShadow reports whether the list's listings do not count now.
func (l *list) inShadow() bool { return l.shadow || l.tripped.Load() }

// queryName returns the name to ask for.
func (l *list) queryName(s subject) string {
	return string(appendQuery(make([]byte, 0, 64+len(l.suffix)), s, l.suffix))
}

// note keeps the newest error for the status. text must not hold the key.
func (l *list) note(text string) {
	l.mu.Lock()
	l.lastError, l.errorAt = text, time.Now()
	l.mu.Unlock()
}

// answered notes that the list is alive.
func (l *list) answered() {
	if l.dead.Load() && l.dead.CompareAndSwap(true, false) {
		l.log.Info("DNS list answers again", zap.String("list", l.name))
		l.metrics.show(l)
	}
	l.mu.Lock()
	l.streak = 0
	l.mu.Unlock()
}

// unanswered notes a query without an answer. Many in a row, spread over more
// time than one burst of loss takes, make the list dead.
func (l *list) unanswered(why string) {
	now := time.Now()
	l.mu.Lock()
	if l.streak++; l.streak == 1 {
		l.streakFrom = now
	}
	dies := l.deadAfter > 0 && l.streak >= l.deadAfter && now.Sub(l.streakFrom) >= l.timeout && !l.dead.Load()
	if dies {
		l.dead.Store(true)
	}
	n := l.streak
	l.mu.Unlock()
	if dies {
		l.log.Error("DNS list does not answer and is not waited for until it does",
			zap.String("list", l.name), zap.Int("queries", n), zap.String("error", why))
		l.metrics.show(l)
	}
}

// observe tells the volume guard what the list said about a subject.
func (l *list) observe(s subject, codes []code) {
	if l.volume.Share == 0 || len(l.positive) == 0 {
		return
	}
	hit := false
	for _, f := range l.positive {
		for _, c := range codes {
			hit = hit || f.match(c)
		}
	}
	now := time.Now()
	l.mu.Lock()
	l.window.add(now, l.volume.Window.D(), s, hit)
	n, listed := l.window.counts()
	trips, returns := false, false
	switch {
	case !l.tripped.Load():
		trips = n >= l.volume.Clients && listed*100 >= l.volume.Share*n
	case now.Sub(l.tripAt) >= l.volume.Window.D():
		// A quarter of the clients suffices to see that it is over, at four
		// fifths of the share, so that it does not flap.
		returns = n >= l.volume.Clients/4 && listed*500 < l.volume.Share*4*n
	}
	if trips {
		l.tripAt = now
	}
	if trips || returns {
		l.tripped.Store(trips)
		l.gen.Add(1)
	}
	l.mu.Unlock()
	if trips || returns {
		l.metrics.show(l)
	}
	if trips {
		l.metrics.trips.Inc()
		l.log.Error("DNS list lists most of the traffic and is in shadow mode until it does not",
			zap.String("list", l.name), zap.Int("clients", n), zap.Int("listed", listed), zap.Int("share", l.volume.Share))
	}
	if returns {
		l.log.Info("DNS list lists no more than usual and counts again",
			zap.String("list", l.name), zap.Int("clients", n), zap.Int("listed", listed))
	}
}

// reset lets a list count again at the administrator's word.
func (l *list) reset() bool {
	l.mu.Lock()
	was := l.tripped.Swap(false)
	l.window = window{}
	l.gen.Add(1)
	l.mu.Unlock()
	if was {
		l.log.Info("DNS list counts again, by order", zap.String("list", l.name))
	}
	l.metrics.show(l)
	return was
}

// maxWindow bounds what the volume guard remembers of one list.
const maxWindow = 2048

// window holds the distinct subjects of the newest queries, at most maxWindow
// and not older than the guard looks back.
type window struct {
	seen   map[subject]bool // listed?
	queue  []seenAt         // oldest first, from head on
	head   int
	listed int
}

type seenAt struct {
	at time.Time
	s  subject
}

func (w *window) add(now time.Time, span time.Duration, s subject, hit bool) {
	for w.head < len(w.queue) && (now.Sub(w.queue[w.head].at) > span || len(w.queue)-w.head >= maxWindow) {
		w.forget(w.queue[w.head].s)
		w.queue[w.head] = seenAt{}
		w.head++
	}
	if w.head > maxWindow {
		w.queue = append(w.queue[:0], w.queue[w.head:]...)
		w.head = 0
	}
	if w.seen == nil {
		w.seen = make(map[subject]bool)
	}
	if was, ok := w.seen[s]; ok {
		if was {
			w.listed--
		}
	} else {
		w.queue = append(w.queue, seenAt{now, s})
	}
	if w.seen[s] = hit; hit {
		w.listed++
	}
}

func (w *window) forget(s subject) {
	if w.seen[s] {
		w.listed--
	}
	delete(w.seen, s)
}

func (w *window) counts() (n, listed int) { return len(w.seen), w.listed }

// Test entries of RFC 5782 section 5.
var (
	listedIPv4   = subject{addr: netip.AddrFrom4([4]byte{127, 0, 0, 2})}
	unlistedIPv4 = subject{addr: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	listedIPv6   = subject{addr: netip.MustParseAddr("::ffff:127.0.0.2")}
	unlistedIPv6 = subject{addr: netip.MustParseAddr("::ffff:127.0.0.1")}
	listedName   = subject{domain: "test"}
	unlistedName = subject{domain: "invalid"}
)

// finding is the outcome of a test of one aspect.
type finding struct {
	health health // untested: nothing is known, the DNS is to blame
	none   bool   // failed only because no test entry is listed
	why    string
}

// probe is one query of a test.
type probe struct {
	codes []code
	wrong string // an answer that is an error
	err   string // no answer
}

func (l *list) probe(ctx context.Context, s subject) probe {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	addrs, _, fail := l.lookup(ctx, s, false)
	if fail != nil {
		return probe{err: fail.text}
	}
	codes, wrong := classify(l.errorCodes, addrs)
	return probe{codes: codes, wrong: wrong}
}

// testAspect asks for the test entries of an aspect, all at once.
func (l *list) testAspect(ctx context.Context, a aspect) finding {
	listed, unlisted := l.listed, l.unlisted
	switch a {
	case aspectIPv4:
		listed, unlisted = []subject{listedIPv4}, unlistedIPv4
	case aspectIPv6:
		listed, unlisted = []subject{listedIPv6}, unlistedIPv6
	default: // the zone's own
	}
	subjects := append([]subject{unlisted}, listed...)
	probes := make([]probe, len(subjects))
	var wg sync.WaitGroup
	for i, s := range subjects {
		wg.Go(func() { probes[i] = l.probe(ctx, s) })
	}
	wg.Wait()
	return judge(subjects, probes)
}

// judge is the rule of the test: the first subject must not be listed, and
// one of the others must. What is certain goes before what is not known.
func judge(subjects []subject, probes []probe) finding {
	for i, p := range probes {
		if p.wrong != "" {
			return finding{health: failed, why: "answers " + p.wrong + " for its test entry " + subjects[i].String()}
		}
	}
	if len(probes[0].codes) > 0 {
		return finding{health: failed, why: "lists " + subjects[0].String() + ", and so perhaps the world"}
	}
	missing, unknown, found := make([]string, 0, len(probes)), "", false
	for i, p := range probes {
		switch {
		case p.err != "":
			unknown = p.err
		case i > 0 && len(p.codes) > 0:
			found = true
		case i > 0:
			missing = append(missing, subjects[i].String())
		}
	}
	switch {
	case probes[0].err != "" || !found && unknown != "":
		return finding{health: untested, why: unknown}
	case found:
		return finding{health: passed}
	}
	return finding{health: failed, none: true, why: "does not list its test entry " + strings.Join(missing, " or ")}
}

// families applies the rule that a list without a family's entries is not
// broken when it has the other's.
func families(v4, v6 *finding) {
	switch {
	case v4.none && v6.health == passed:
		*v4 = finding{health: absent}
	case v6.none && v4.health == passed:
		*v6 = finding{health: absent}
	case v4.none && v6.health == untested:
		*v4 = finding{health: untested, why: v6.why}
	case v6.none && v4.health == untested:
		*v6 = finding{health: untested, why: v4.why}
	}
}

// runTest tests every aspect in use and applies the outcome.
func (l *list) runTest(ctx context.Context) {
	var found [aspectCount]finding
	var wg sync.WaitGroup
	for a := range aspectCount {
		if l.aspects[a] {
			wg.Go(func() { found[a] = l.testAspect(ctx, a) })
		}
	}
	wg.Wait()
	if l.families == nil && l.aspects[aspectIPv4] {
		families(&found[aspectIPv4], &found[aspectIPv6])
	}
	l.apply(found)
}

// The first pause before a test is repeated, doubled each time.
const (
	retryFailed  = time.Minute
	retryUnknown = 10 * time.Second
)

// apply takes the outcome of a test over. What the DNS could not tell leaves
// an aspect as it was.
func (l *list) apply(found [aspectCount]finding) {
	now := time.Now()
	var wentOff, cameBack, unknown bool
	worst := passed
	l.mu.Lock()
	for a := range aspectCount {
		f := found[a]
		switch was := l.healthOf(a); {
		case !l.aspects[a]:
			continue
		case f.health == untested:
			unknown = true
			l.lastError, l.errorAt = "test: "+f.why, now
			if worst == passed {
				worst = untested
			}
			continue
		case f.health == failed:
			worst = failed
			wentOff = wentOff || l.why[a] != f.why
		default:
			cameBack = cameBack || was == failed
		}
		if was := l.healthOf(a); was != f.health && was != untested {
			l.gen.Add(1)
		}
		l.why[a] = f.why
		l.health[a].Store(uint32(f.health))
	}
	l.lastTest = now
	pause := l.testEvery
	if worst == passed {
		l.lastPass, l.retries = now, 0
	} else {
		pause = retryFailed
		if worst == untested {
			pause = retryUnknown
		}
		pause = min(pause<<min(l.retries, 16), l.testEvery)
		l.retries++
	}
	// Many installations must not ask in the same second.
	pause += rand.N(pause/10 + 1)
	l.next = now.Add(pause)
	first := l.retries == 1
	why := l.faults()
	l.mu.Unlock()

	l.metrics.tests[worst].Inc()
	l.metrics.show(l)
	switch {
	case wentOff:
		l.log.Error("DNS list fails its test and is off until it passes",
			zap.String("list", l.name), zap.String("why", why), zap.Duration("next_test", pause))
	case unknown && first:
		l.log.Warn("DNS list could not be tested", zap.String("list", l.name), zap.Duration("next_test", pause))
	}
	if cameBack {
		l.log.Info("DNS list passes its test again and is on", zap.String("list", l.name))
	}
}

// faults joins why the failed aspects failed. l.mu is held.
func (l *list) faults() string {
	var parts []string
	for a := range aspectCount {
		if l.healthOf(a) == failed {
			parts = append(parts, a.String()+": "+l.why[a])
		}
	}
	return strings.Join(parts, "; ")
}

// startTest starts a test unless one is under way or was just tried, and
// returns a channel that is closed when it is over. run runs a goroutine that
// [Check.Stop] waits for.
func (l *list) startTest(run func(func())) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.testing != nil {
		return l.testing
	}
	done := make(chan struct{})
	if !l.lastTest.IsZero() && time.Since(l.lastTest) < retryUnknown/2 {
		close(done)
		return done
	}
	l.testing = done
	run(func() {
		l.runTest(context.Background()) // each query has its own deadline
		l.mu.Lock()
		l.testing = nil
		l.mu.Unlock()
		close(done)
	})
	return done
}

// hurry brings the next test forward after an error answer: a list that
// refuses us is better switched off than asked again and again.
func (l *list) hurry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if soon := l.lastTest.Add(retryFailed); l.test && soon.Before(l.next) {
		l.next = soon
		select {
		case l.kick <- struct{}{}:
		default:
		}
	}
}
