package rbl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"go.uber.org/zap"
)

// failure is why a list gave no usable answer. It wraps nothing: what the
// resolver says holds the name asked for, and that holds the key.
type failure struct {
	class failClass
	text  string
}

func (f *failure) Error() string { return f.text }

type failClass uint8

const (
	failTimeout  failClass = iota // no answer in time
	failDNS                       // the DNS answered with an error
	failCode                      // the list answered with an error code
	failUntested                  // listed, but the list could not be tested yet
	failOff                       // the list is off: it failed its test
	failDead                      // the list does not answer, and was not waited for
	failBusy                      // too many queries in flight
	failClasses
)

var failNames = [failClasses]string{"timeout", "dns", "code", "untested", "off", "dead", "busy"}

func (c failClass) String() string { return failNames[c] }

// listing is a positive answer.
type listing struct {
	codes []code
	text  string // "127.0.0.2 127.0.0.4"
}

// answer is what a list said about a subject: nothing (the zero listing and
// failure), a listing, or a failure.
type answer struct {
	listing *listing
	failure *failure
}

// cacheKey names an answer. The state stands for the list, so that answers
// survive a reload as long as the list is the same.
type cacheKey struct {
	list *listState
	subject
}

// flightKey names a query under way.
type flightKey struct {
	cacheKey
	anew bool
}

type cacheValue struct {
	answer
	expires int64 // Unix nanoseconds
	gen     uint32
	anew    uint32 // when the servers were asked, whatever was remembered; Unix seconds, 0: may be from a cache
}

// shared is what outlives a reload: answers, queries in flight, what is
// learned about the lists.
type shared struct {
	cache   *otter.Cache[cacheKey, cacheValue]
	metrics *metrics

	mu      sync.Mutex
	flights map[flightKey]*flight
	states  map[string]*listState
}

// failureTTL keeps a failure, so that each recipient of a message does not
// wait for the same dead list.
const failureTTL = 30 * time.Second

func (s *shared) cached(k cacheKey, now time.Time) (answer, bool) {
	a, _, ok := s.cachedUntil(k, now)
	return a, ok
}

// cachedUntil is cached, with the time (Unix ns) at which the answer expires.
func (s *shared) cachedUntil(k cacheKey, now time.Time) (answer, int64, bool) {
	v, ok := s.cache.GetIfPresent(k)
	if !ok || v.expires <= now.UnixNano() || v.gen != k.list.gen.Load() {
		return answer{}, 0, false
	}
	return v.answer, v.expires, true
}

// newFor is how long an answer that was asked for anew is as good as new: the
// recipients of a message come one after the other.
const newFor = time.Minute

// isNew reports whether the answer of k was asked for anew of late.
func (s *shared) isNew(k cacheKey, now time.Time) bool {
	v, ok := s.cache.GetIfPresent(k)
	return ok && v.anew != 0 && now.Sub(time.Unix(int64(v.anew), 0)) < newFor
}

func (s *shared) keep(k cacheKey, a answer, gen uint32, ttl time.Duration, anew bool) {
	// A part of a larger string would keep all of it alive.
	k.domain = strings.Clone(k.domain)
	v := cacheValue{answer: a, gen: gen, expires: time.Now().Add(ttl).UnixNano()}
	if anew && a.failure == nil {
		v.anew = uint32(time.Now().Unix())
	}
	s.cache.Set(k, v)
}

// flight is a query under way. Several requests can wait for it.
type flight struct {
	key     cacheKey
	anew    bool        // whatever is remembered
	counted atomic.Bool // some request that counts waits for it
	waiters []chan struct{}
	done    atomic.Bool
	// answer and took are set before done.
	answer answer
	took   time.Duration
}

// join returns the query about a subject, and starts it if there is none. It
// returns nil when too many are in flight. wake gets a token when the flight
// is done; it may be nil. With anew the servers are asked whatever the resolver
// remembers; such queries are joined by each other only.
func (c *Check) join(l *list, s subject, wake chan struct{}, counted, anew bool) *flight {
	k := flightKey{cacheKey{l.listState, s}, anew}
	sh := c.shared
	sh.mu.Lock()
	f := sh.flights[k]
	if f == nil {
		if len(sh.flights) >= c.cfg.MaxQueries {
			sh.mu.Unlock()
			return nil
		}
		k.domain = strings.Clone(k.domain)
		f = &flight{key: k.cacheKey, anew: anew}
		sh.flights[k] = f
		defer c.tasks.run(func() { c.fly(l, f) }) // when f is complete
	}
	if wake != nil {
		f.waiters = append(f.waiters, wake)
	}
	if counted {
		f.counted.Store(true)
	}
	sh.mu.Unlock()
	return f
}

// fly asks the list. It is bound to the list's time limit, not to a request:
// others may wait for the same answer, and the next request has use for it.
func (c *Check) fly(l *list, f *flight) {
	start := time.Now()
	gen := l.gen.Load()
	a, ttl, codes := c.ask(l, f.key.subject, f.anew)
	f.took = time.Since(start)
	f.answer = a

	counted := f.counted.Load()
	if a.failure == nil && counted {
		l.observe(f.key.subject, codes)
	}
	if a.failure != nil {
		l.failures.Add(1)
		l.note(a.failure.text)
		l.metrics.failures[a.failure.class].Inc()
	}
	l.queries.Add(1)
	l.metrics.queries.Inc()
	l.metrics.seconds.Observe(f.took.Seconds())

	sh := c.shared
	if !f.anew || a.failure == nil { // what is remembered is better than no answer
		sh.keep(f.key, a, gen, ttl, f.anew)
	}
	sh.mu.Lock()
	delete(sh.flights, flightKey{f.key, f.anew})
	f.done.Store(true)
	waiters := f.waiters
	sh.mu.Unlock()
	for _, w := range waiters {
		select {
		case w <- struct{}{}:
		default: // a token is there already
		}
	}
}

// ask sends the query and reads the answer. An untested list is tested
// meanwhile: what it lists counts only when it passes.
func (c *Check) ask(l *list, s subject, anew bool) (a answer, ttl time.Duration, codes []code) {
	ctx, cancel := context.WithTimeout(context.Background(), l.timeout)
	defer cancel()
	var tested <-chan struct{}
	if l.healthOf(s.aspect()) == untested {
		tested = l.startTest(c.tasks.run)
	}
	addrs, ttl, fail := l.lookup(ctx, s, anew)
	if fail != nil {
		l.unanswered(fail.text)
		return answer{failure: fail}, failureTTL, nil
	}
	l.answered()
	codes, wrong := classify(l.errorCodes, addrs)
	if wrong != "" {
		l.hurry()
		return answer{failure: &failure{failCode, wrong}}, failureTTL, nil
	}
	ttl = min(max(ttl, c.cfg.MinTTL.D()), c.cfg.MaxTTL.D())
	if len(codes) == 0 {
		return answer{}, ttl, nil
	}
	if tested != nil {
		select {
		case <-tested:
		case <-ctx.Done():
		}
		switch l.healthOf(s.aspect()) {
		case untested:
			return answer{failure: &failure{failUntested, "listed, but the list could not be tested yet"}}, retryUnknown / 2, nil
		case failed:
			return answer{failure: &failure{failOff, "fails its test"}}, failureTTL, nil
		case absent:
			return answer{}, ttl, nil
		default: // the list can be believed
		}
	}
	return answer{listing: &listing{codes: codes, text: textOf(codes)}}, ttl, codes
}

// lookup asks the resolver for the addresses that the list keeps for s.
func (l *list) lookup(ctx context.Context, s subject, anew bool) (addrs []netip.Addr, ttl time.Duration, fail *failure) {
	defer func() {
		// This is no goroutine of the pipeline: its guard does not reach here.
		if cause := recover(); cause != nil {
			text := l.key.hide(fmt.Sprint("panic: ", cause))
			l.log.Error("query of a DNS list panicked", zap.String("list", l.name), zap.String("cause", text),
				zap.ByteString("stack", debug.Stack()))
			addrs, ttl, fail = nil, 0, &failure{failDNS, text}
		}
	}()
	ask := l.res.LookupA
	if anew {
		ask = l.res.LookupAnewA
	}
	addrs, ttl, _, err := ask(ctx, l.queryName(s))
	if err != nil {
		return nil, 0, l.errorFrom(ctx, err)
	}
	return addrs, ttl, nil
}

// classify splits the addresses of an answer into listings and the reason why
// it is an error. One error makes all of the answer one.
func classify(rows []errorRow, addrs []netip.Addr) (codes []code, wrong string) {
	for _, a := range addrs {
		a = a.Unmap()
		if !a.Is4() {
			return nil, a.String() + " is no answer of a list"
		}
		if why := errorText(rows, a.As4()); why != "" {
			return nil, why
		}
		codes = append(codes, a.As4())
	}
	slices.SortFunc(codes, func(a, b code) int { return slices.Compare(a[:], b[:]) })
	return codes, ""
}

func textOf(codes []code) string {
	parts := make([]string, len(codes))
	for i, c := range codes {
		parts[i] = c.String()
	}
	return strings.Join(parts, " ")
}

// errorFrom turns an error of the resolver into ours, without the key.
func (l *list) errorFrom(ctx context.Context, err error) *failure {
	timeout := errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil
	if t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok {
		timeout = timeout || t.Timeout()
	}
	if timeout {
		return &failure{failTimeout, "no answer in time"}
	}
	return &failure{failDNS, l.key.hide(err.Error())}
}

// reason asks for the list's words about a subject. It returns "" when there
// are none, or not in time.
func (l *list) reason(ctx context.Context, s subject) string {
	texts, _, _, err := l.res.LookupTXT(ctx, l.queryName(s))
	if err != nil {
		l.note("reason: " + l.errorFrom(ctx, err).text)
		return ""
	}
	return strings.TrimSpace(l.key.hide(strings.Join(texts, " / ")))
}
