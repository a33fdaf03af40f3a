package known

import (
	"context"
	"errors"
	"hash/maphash"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/mailaddr"
)

// queueSize is how many lessons wait for the store at most. What finds no room
// is not learned: the next message teaches it again.
const queueSize = 4096

// learned is what outlives a reload.
type learned struct {
	recent  recent
	full    atomic.Int64 // when it was last said that there is no room; Unix seconds
	metrics *metrics
}

func newLearned(reg prometheus.Registerer, stores Stores) *learned {
	return &learned{recent: recent{seed: maphash.MakeSeed()}, metrics: newMetrics(reg, stores)}
}

// recent remembers pairs that were learned within refreshEvery, so that a busy
// correspondence does not ask the store. One that falls into another's place
// takes it. It is safe for concurrent use.
type recent struct {
	seed  maphash.Seed
	slots [recentSize]struct{ hash, at atomic.Uint64 }
}

const recentSize = 8192

func (r *recent) slot(l *lesson) (hash uint64, slot *struct{ hash, at atomic.Uint64 }) {
	hash = maphash.String(r.seed, l.user) ^ 31*maphash.String(r.seed, l.outside)
	return hash, &r.slots[hash%recentSize]
}

// has reports whether a lesson is nothing new. Two writers of one slot may mix:
// at worst a lesson is learned again, or a day later.
func (r *recent) has(l *lesson) bool {
	hash, slot := r.slot(l)
	at := int64(slot.at.Load())
	return slot.hash.Load() == hash && l.at.Unix() >= at && l.at.Unix()-at < int64(refreshEvery/time.Second)
}

func (r *recent) put(l *lesson) {
	hash, slot := r.slot(l)
	slot.at.Store(uint64(l.at.Unix()))
	slot.hash.Store(hash)
}

func (r *recent) clear() {
	for i := range r.slots {
		r.slots[i].hash.Store(0)
		r.slots[i].at.Store(0)
	}
}

// note queues a lesson. It never waits.
func (c *Check) note(l lesson) {
	if c.recent.has(&l) {
		return
	}
	// The request's strings are parts of something larger.
	l.user, l.outside = string([]byte(l.user)), string([]byte(l.outside))
	select {
	case c.queue <- l:
	default:
		c.metrics.lost[lostQueue].Inc()
	}
}

// Start begins to learn. A check that has been stopped is not started again.
func (c *Check) Start() {
	c.done.Go(func() {
		for {
			select {
			case l := <-c.queue:
				c.take(l, learnTimeout)
			case <-c.stop:
				c.drain()
				return
			}
		}
	})
}

// learnTimeout bounds one lesson. drainTimeout bounds all that wait at the end.
const (
	learnTimeout = 2 * time.Second
	drainTimeout = 2 * time.Second
)

// drain learns what waits, as far as time allows.
func (c *Check) drain() {
	end := time.Now().Add(drainTimeout)
	for {
		select {
		case l := <-c.queue:
			left := time.Until(end)
			if left <= 0 {
				c.metrics.lost[lostQueue].Add(float64(1 + len(c.queue)))
				return
			}
			c.take(l, left)
		default:
			return
		}
	}
}

// Settle learns what waits, of a check that is not started.
func (c *Check) Settle() { c.drain() }

// Stop ends what Start began. It can be called twice, and without Start.
func (c *Check) Stop() {
	c.once.Do(func() { close(c.stop) })
	c.done.Wait()
}

// take learns a lesson of the queue.
func (c *Check) take(l lesson, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := c.learn(ctx, l)
	switch {
	case errors.Is(err, errFull):
		c.metrics.lost[lostFull].Inc()
		c.sayFull()
	case err != nil:
		c.metrics.lost[lostStore].Inc()
		c.log.Debug("a correspondent was not learned", zap.String("user", l.user), zap.String("correspondent", l.outside), zap.Error(err))
	default:
		c.recent.put(&l)
	}
}

var errFull = errors.New("known.max_entries are kept")

// sayFull logs once an hour that nothing new is learned.
func (c *Check) sayFull() {
	now, last := time.Now().Unix(), c.full.Load()
	if now-last >= 3600 && c.full.CompareAndSwap(last, now) {
		c.log.Warn("no new correspondents are learned: there are known.max_entries of them", zap.Int("max_entries", c.cfg.MaxEntries))
	}
}

// Results of a lesson.
type result uint8

const (
	nothingNew result = iota
	refreshed         // known for longer
	added
)

// learn stores a lesson. The error is errFull when there is no room for a new
// correspondent.
func (c *Check) learn(ctx context.Context, l lesson) (res result, err error) {
	keep, most := c.cfg.Keep.D(), c.cfg.MaxEntries
	noRoom := false
	err = change(ctx, c.stores.Correspondents, pairKey(l.user, l.outside), func(old string) (string, time.Time, bool) {
		if noRoom = old == "" && c.stores.Correspondents.Count() >= most; noRoom {
			return "", time.Time{}, true
		}
		next, same := parseSpan(old).written(l.at, keep)
		switch {
		case same:
			res = nothingNew
		case old == "":
			res = added
		default:
			res = refreshed
		}
		return next.String(), time.Unix(next.last, 0).Add(keep), same
	})
	if err != nil {
		return nothingNew, err
	}
	switch res {
	case added:
		c.metrics.learned[learnedCorrespondent].Inc()
	case refreshed:
		c.metrics.learned[learnedAgain].Inc()
	}
	if err = c.learnDomain(ctx, l); err == nil && noRoom {
		err = errFull
	}
	return res, err
}

// learnDomain notes that a user of the domain has written to one.
func (c *Check) learnDomain(ctx context.Context, l lesson) error {
	key := c.domainKey(l.user, l.outside)
	if key == "" {
		return nil
	}
	keep := c.cfg.Keep.D()
	var before, after int
	err := change(ctx, c.stores.Domains, key, func(old string) (string, time.Time, bool) {
		if old == "" && c.stores.Domains.Count() >= c.cfg.MaxEntries {
			return "", time.Time{}, true
		}
		w := parseWriters(old)
		next, same := w.written(l.user, l.at, keep, max(c.cfg.DomainUsers, 2))
		before, after = len(w.alive(l.at, keep)), len(next)
		return next.String(), time.Unix(next.last()*int64(day/time.Second), 0).Add(keep + day), same
	})
	if err == nil && before < c.cfg.DomainUsers && after >= c.cfg.DomainUsers {
		c.metrics.learned[learnedDomain].Inc()
	}
	return err
}

// domainKey returns the key under which the writers of the user's domain to the
// outside address's are kept, "" when that domain is never known as a whole.
func (c *Check) domainKey(user, outside string) string {
	if c.cfg.DomainUsers == 0 {
		return ""
	}
	own, out := domainOf(user), mailaddr.OrgDomain(domainOf(outside))
	if out == "" || own == "" || mailaddr.OrgDomain(own) == out || c.shared.why(domainOf(outside)) != "" {
		return ""
	}
	return pairKey(own, out)
}
