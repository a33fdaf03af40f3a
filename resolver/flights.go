package resolver

import (
	"context"
	"errors"
	"sync"
	"time"
)

// flights are the look-ups under way: one for each name and type, shared by
// all who wait for it.
type flights struct {
	mu     sync.Mutex
	calls  map[key]*flight
	slots  chan struct{} // one for each look-up that asks servers
	closed bool
}

type flight struct {
	done    chan struct{}
	answer  *answer // set when done is closed
	waiters int
	running bool
	cancel  context.CancelFunc
}

func (f *flights) init(most int) {
	f.calls, f.slots = make(map[key]*flight), make(chan struct{}, most)
}

func (f *flights) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

func (f *flights) counts() (running, queued int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c.running {
			running++
		} else {
			queued++
		}
	}
	return running, queued
}

// join returns the look-up of k that is under way, begun now if need be; nil
// when the resolver is closed. Each join is followed by one leave.
func (r *Resolver) join(k key) *flight {
	r.flights.mu.Lock()
	defer r.flights.mu.Unlock()
	if r.flights.closed {
		return nil
	}
	if c := r.flights.calls[k]; c != nil {
		c.waiters++
		return c
	}
	// The look-up outlives the caller that begins it: others may wait for it,
	// and its answer is worth keeping.
	ctx, cancel := context.WithCancel(r.ctx)
	c := &flight{done: make(chan struct{}), waiters: 1, cancel: cancel}
	r.flights.calls[k] = c
	r.wg.Go(func() {
		defer cancel()
		r.fly(ctx, k, c)
	})
	return c
}

// leave is called by each who waited. A look-up that has not begun and that
// nobody waits for is given up.
func (r *Resolver) leave(k key, c *flight) {
	r.flights.mu.Lock()
	defer r.flights.mu.Unlock()
	if c.waiters--; c.waiters == 0 && !c.running {
		c.cancel()
		if r.flights.calls[k] == c {
			delete(r.flights.calls, k) // the next one begins anew
		}
	}
}

// fly waits for its turn, asks the servers and puts the outcome into the cache.
func (r *Resolver) fly(ctx context.Context, k key, c *flight) {
	select {
	case r.flights.slots <- struct{}{}:
		r.flights.mu.Lock()
		c.running = true
		r.flights.mu.Unlock()
		r.metrics.inFlight.Inc()
		c.answer = r.resolve(ctx, k)
		r.metrics.inFlight.Dec()
		<-r.flights.slots
	case <-ctx.Done():
		c.answer = &answer{err: &failure{name: k.name, qtype: k.qtype, kind: ErrTimeout, detail: "too many look-ups at once"}}
	}
	if r.ctx.Err() == nil {
		c.answer = r.remember(k, c.answer)
	} else {
		c.answer = &answer{err: &failure{name: k.name, qtype: k.qtype, kind: ErrClosed}}
	}
	r.flights.mu.Lock()
	if r.flights.calls[k] == c {
		delete(r.flights.calls, k)
	}
	r.flights.mu.Unlock()
	close(c.done)
}

// remember keeps an answer. A failed look-up does not replace an answer that
// may still be given as a stale one; it is returned instead.
func (r *Resolver) remember(k key, a *answer) *answer {
	if a.err != nil {
		now := time.Now()
		old, ok := r.cache.GetIfPresent(k)
		if ok && old.err == nil && now.Before(old.keep) {
			kept := *old
			kept.retry = now.Add(r.cfg.StaleRetry.D())
			r.cache.Set(k, &kept)
			return a
		}
		if !errors.Is(a.err, ErrTemporary) || a.expires.IsZero() {
			return a
		}
	}
	r.cache.Set(k, a)
	return a
}

// lookup answers from the cache or asks.
func (r *Resolver) lookup(ctx context.Context, name string, qtype uint16) (a *answer, ttl time.Duration, cached bool, err error) {
	n, err := normalize(name)
	if err != nil {
		return nothing, 0, false, &failure{name: name, qtype: qtype, kind: ErrInvalidName}
	}
	k := key{n, qtype}
	now := time.Now()
	old, ok := r.cache.GetIfPresent(k)
	switch {
	case !ok:
		old = nil
	case now.Before(old.expires):
		r.hits.Add(1)
		r.metrics.hit.Inc()
		if old.err != nil {
			return nothing, old.expires.Sub(now), true, old.err
		}
		return old, old.expires.Sub(now), true, nil
	case old.err != nil || !now.Before(old.keep):
		old = nil
	case now.Before(old.retry):
		return r.serveStale(old, old.retry.Sub(now))
	}
	r.misses.Add(1)
	r.metrics.miss.Inc()
	c := r.join(k)
	if c == nil {
		if old != nil {
			return r.serveStale(old, 0)
		}
		return nothing, 0, false, &failure{name: n, qtype: qtype, kind: ErrClosed}
	}
	defer r.leave(k, c)
	var impatient <-chan time.Time
	if old != nil {
		t := time.NewTimer(r.cfg.StaleWait.D())
		defer t.Stop()
		impatient = t.C
	}
	select {
	case <-c.done:
	case <-impatient:
		return r.serveStale(old, 0)
	case <-ctx.Done():
		if old != nil {
			return r.serveStale(old, 0)
		}
		return nothing, 0, false, &failure{name: n, qtype: qtype, kind: ctx.Err()}
	}
	if c.answer.err != nil {
		if old != nil {
			return r.serveStale(old, r.cfg.StaleRetry.D())
		}
		return nothing, 0, false, c.answer.err
	}
	return c.answer, time.Until(c.answer.expires), false, nil
}

func (r *Resolver) serveStale(a *answer, ttl time.Duration) (*answer, time.Duration, bool, error) {
	r.stale.Add(1)
	r.metrics.stale.Inc()
	return a, ttl, true, nil
}
