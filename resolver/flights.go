package resolver

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
)

// queuePerFlight bounds the queue: so many look-ups for each that may wait for
// a server.
const queuePerFlight = 16

// flight is a look-up under way, shared by all who want the same.
type flight struct {
	key     key
	waiters int
	queued  *list.Element // nil once it runs
	done    chan struct{}
	answer  *answer // set before done is closed
}

// flights are the look-ups under way, at most one of each key, and the queue of
// those that wait until fewer are.
type flights struct {
	mu      sync.Mutex
	most    int // that may run
	running int
	byKey   map[key]*flight
	queue   list.List // of *flight
	closed  bool
	tasks   sync.WaitGroup // goroutines
}

func (fs *flights) init(most int) {
	fs.most, fs.byKey = most, make(map[key]*flight)
}

var (
	errQueueFull = errors.New("too many look-ups wait already")
	errJustKnown = errors.New("the answer has just come")
)

// join makes the caller wait for the look-up of k, which begins if there is
// none: run is called in a goroutine of its own. known says whether the answer
// has come since the caller looked. Who has joined leaves.
func (fs *flights) join(k key, known func() bool, run func(*flight)) (*flight, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.byKey[k]; f != nil {
		f.waiters++
		return f, nil
	}
	switch {
	case fs.closed:
		return nil, ErrClosed
	case known():
		return nil, errJustKnown
	case fs.running >= fs.most && fs.queue.Len() >= fs.most*queuePerFlight:
		return nil, errQueueFull
	}
	f := &flight{key: k, waiters: 1, done: make(chan struct{})}
	fs.byKey[k] = f
	if fs.running >= fs.most {
		f.queued = fs.queue.PushBack(f)
		return f, nil
	}
	fs.running++
	fs.tasks.Go(func() { run(f) })
	return f, nil
}

// leave ends the wait of one caller. A look-up that still queues and that
// nobody waits for is given up; one that runs goes on, its answer is kept.
func (fs *flights) leave(f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.waiters--; f.waiters == 0 && f.queued != nil {
		fs.queue.Remove(f.queued)
		f.queued = nil
		delete(fs.byKey, f.key)
	}
}

// land ends a look-up and returns the next from the queue, nil if there is
// none.
func (fs *flights) land(f *flight) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.byKey, f.key)
	close(f.done)
	first := fs.queue.Front()
	if first == nil {
		fs.running--
		return nil
	}
	next := fs.queue.Remove(first).(*flight)
	next.queued = nil
	return next
}

// background runs a function unless the resolver has been closed.
func (fs *flights) background(run func()) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if !fs.closed {
		fs.tasks.Go(run)
	}
}

// close fails what queues and waits for what runs, which ends by its context.
func (fs *flights) close() {
	fs.mu.Lock()
	fs.closed = true
	for e := fs.queue.Front(); e != nil; e = fs.queue.Front() {
		f := fs.queue.Remove(e).(*flight)
		f.queued = nil
		f.answer = failed(f.key, ErrClosed, "")
		delete(fs.byKey, f.key)
		close(f.done)
	}
	fs.mu.Unlock()
	fs.tasks.Wait()
}

func (fs *flights) counts() (running, queued int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.running, fs.queue.Len()
}

// failed is the answer of a look-up that failed.
func failed(k key, kind error, detail string) *answer {
	return &answer{failure: &failure{name: k.name, qtype: k.qtype, kind: kind, detail: detail}}
}

// fly looks up one key, and then what queues: so there are never more
// goroutines than look-ups that may run.
func (r *Resolver) fly(f *flight) {
	for f != nil {
		f.answer = r.resolve(f.key)
		r.remember(f.key, f.answer)
		if r.observe != nil {
			r.tell(f.key, f.answer)
		}
		f = r.flights.land(f)
	}
}

// resolve asks the servers. It is bound to the life of the resolver and to a
// time of its own, not to a caller: others may wait for the same answer.
func (r *Resolver) resolve(k key) (a *answer) {
	defer func() {
		// This is no goroutine of the pipeline: its guard does not reach here.
		if cause := recover(); cause != nil {
			r.log.Error("look-up panicked", zap.String("name", k.name), zap.Uint16("type", k.qtype),
				zap.String("cause", fmt.Sprint(cause)), zap.ByteString("stack", debug.Stack()))
			a = failed(k, ErrServFail, "internal error")
		}
	}()
	return r.upstream(r.ctx, k)
}

// lookup answers from the cache, else it asks or joins those who wait.
func (r *Resolver) lookup(ctx context.Context, name string, qtype uint16) (rs records, ttl time.Duration, cached bool, err error) {
	n, err := normalize(name)
	if err != nil {
		return records{}, 0, false, invalidName(name, qtype)
	}
	k := key{n, qtype}
	old, ok := r.cache.GetIfPresent(k)
	if !ok {
		return r.wait(ctx, k, nil, false)
	}
	now := r.now()
	switch left := old.left(now); {
	case left > 0:
		r.hits.Add(1)
		r.metrics.hit.Inc()
		if f := old.failure(k); f != nil {
			return records{}, left, true, f
		}
		return old.records(qtype), left, true, nil
	case old.failed():
		old = nil
	case old.spared(now):
		return r.giveStale(k, old, true)
	}
	return r.wait(ctx, k, old, false)
}

// invalidName is the failure of a name as it was given, which may hold
// anything and be long.
func invalidName(name string, qtype uint16) *failure {
	const most = 100
	if len(name) > most {
		name = name[:most]
	}
	return &failure{name: strconv.QuoteToASCII(name), qtype: qtype, kind: ErrInvalidName}
}

// giveStale gives an answer whose time is over. It is good until it may be
// asked for again (RFC 8767 section 4 recommends 30 seconds).
func (r *Resolver) giveStale(k key, old *entry, cached bool) (records, time.Duration, bool, error) {
	r.stale.Add(1)
	r.metrics.stale.Inc()
	return old.records(k.qtype), r.cfg.StaleRetry.D(), cached, nil
}

// wait waits for the servers' answer. old, if not nil, is a stale one that
// will do when that takes long or fails. With anew an answer that has just
// come will not do.
func (r *Resolver) wait(ctx context.Context, k key, old *entry, anew bool) (records, time.Duration, bool, error) {
	r.misses.Add(1)
	r.metrics.miss.Inc()
	fail := func(kind error, detail string) (records, time.Duration, bool, error) {
		if old != nil {
			return r.giveStale(k, old, false)
		}
		return records{}, 0, false, &failure{name: k.name, qtype: k.qtype, kind: kind, detail: detail}
	}
	if err := ctx.Err(); err != nil {
		return fail(err, "")
	}
	var fresh *entry
	known := func() bool {
		if anew {
			return false
		}
		e, ok := r.cache.GetIfPresent(k)
		if ok && e.left(r.now()) > 0 {
			fresh = e
		}
		return fresh != nil
	}
	f, err := r.flights.join(k, known, r.fly)
	switch {
	case errors.Is(err, errJustKnown):
		left := max(fresh.left(r.now()), 0)
		if f := fresh.failure(k); f != nil {
			return records{}, left, false, f
		}
		return fresh.records(k.qtype), left, false, nil
	case errors.Is(err, errQueueFull):
		r.metrics.overflow.Inc()
		return fail(ErrTimeout, err.Error())
	case err != nil:
		return fail(err, "")
	}
	defer r.flights.leave(f)
	var enough <-chan time.Time
	if old != nil {
		t := time.NewTimer(r.cfg.StaleWait.D())
		defer t.Stop()
		enough = t.C
	}
	select {
	case <-f.done:
	case <-enough:
		return r.giveStale(k, old, false)
	case <-ctx.Done():
		return fail(ctx.Err(), "")
	}
	a := f.answer
	left := max(time.Until(a.expires), 0)
	switch {
	case a.failure != nil && old != nil:
		return r.giveStale(k, old, false)
	case a.failure != nil:
		return records{}, left, false, a.failure
	}
	return a.records, left, false, nil
}
