package near

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"postern/greylist"
	"postern/store"
)

// digest stands for the key of a triplet or a credit.
type digest struct{ a, b uint64 }

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

// digestOf returns the digest of a key.
func (s *Store) digestOf(kind byte, parts ...string) digest {
	buf := buffers.Get().(*[]byte)
	b := store.AppendKey((*buf)[:0], kind, parts...)
	d := digest{maphash.Bytes(s.seeds[0], b), maphash.Bytes(s.seeds[1], b)}
	*buf = b
	buffers.Put(buf)
	return d
}

// seen is a triplet that has passed, or a side with credit.
type seen struct {
	mu       sync.Mutex
	entry    greylist.Entry // as it is written behind
	attempts int
	passes   int // of a credit
	dirty    bool
	epoch    uint64 // in which it was seen
}

// dirt is what is to be written behind.
type dirt struct {
	mu   sync.Mutex
	what []*seen
}

func (d *dirt) add(e *seen) {
	d.mu.Lock()
	d.what = append(d.what, e)
	d.mu.Unlock()
}

func (d *dirt) take() []*seen {
	d.mu.Lock()
	defer d.mu.Unlock()
	what := d.what
	d.what = nil
	return what
}

// cached answers a contact from memory.
func (s *Store) cached(c *greylist.Contact) (out greylist.Outcome, ok bool) {
	if e, found := s.cache.GetIfPresent(s.digestOf(store.TripletKey, c.Match, c.Sender, c.Recipient)); found {
		return s.again(c, e)
	}
	if !c.Earns() {
		return out, false
	}
	e, found := s.cache.GetIfPresent(s.digestOf(store.CreditKey, c.Credit))
	if !found {
		return out, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.passes < c.Rule.KnownAfter || c.Time.Sub(e.entry.Last) > c.Rule.Keep {
		return out, false
	}
	s.touched(e, c.Time)
	return greylist.Outcome{State: greylist.KnownClient, Passes: e.passes}, true
}

// again is a further pass of a triplet. One that may count for its side's
// credit is not for memory to answer.
func (s *Store) again(c *greylist.Contact, e *seen) (out greylist.Outcome, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := greylist.Triplet{First: e.entry.First.UnixMilli(), Last: e.entry.Last.UnixMilli(), Attempts: uint32(e.attempts), Passes: uint32(e.entry.Passes)}
	out, known, count := greylist.Known(c, &t)
	if !known || count {
		return out, false
	}
	e.entry.Passes++
	s.touched(e, c.Time)
	return out, true
}

// touched notes when something was last seen. e is locked.
func (s *Store) touched(e *seen, at time.Time) {
	if at.After(e.entry.Last) {
		e.entry.Last = at
	}
	if !e.dirty {
		e.dirty = true
		s.dirty.add(e)
	}
}

// remember keeps what the shared store has just said, if nothing was forgotten
// since epoch.
func (s *Store) remember(c *greylist.Contact, out *greylist.Outcome, epoch uint64) {
	if out.State.Delays() || c.Held(out) {
		return
	}
	var d digest
	e := &seen{epoch: epoch}
	if out.State == greylist.KnownClient {
		d = s.digestOf(store.CreditKey, c.Credit)
		// A merge takes the earliest first and the latest count: these say nothing.
		e.entry = greylist.Entry{Kind: greylist.KindCredit, Credit: c.Credit, First: c.Time, Last: c.Time, Counted: time.UnixMilli(1), Passes: 1}
		e.passes = out.Passes
	} else {
		d = s.digestOf(store.TripletKey, c.Match, c.Sender, c.Recipient)
		e.entry = greylist.Entry{
			Kind: greylist.KindTriplet, Match: c.Match, Sender: c.Sender, Recipient: c.Recipient,
			First: out.First, Last: c.Time, Attempts: out.Attempts, Passes: 1,
		}
		e.attempts = out.Attempts
	}
	s.cache.Set(d, e)
	if s.epoch.Load() != epoch {
		s.cache.Invalidate(d)
	}
}

// writeBatch is how many entries are written behind at once.
const writeBatch = 500

// writeBehind tells both stores what memory has answered.
func (s *Store) writeBehind(ctx context.Context) {
	if s.cache == nil {
		return
	}
	epoch := s.epoch.Load()
	what := s.dirty.take()
	if len(what) == 0 {
		return
	}
	rule := s.o.Rule()
	for batch := range slices.Chunk(what, writeBatch) {
		entries := make([]greylist.Entry, 0, len(batch))
		for _, e := range batch {
			e.mu.Lock()
			e.dirty = false
			if e.epoch == epoch { // else something was forgotten meanwhile
				entries = append(entries, e.entry)
			}
			e.mu.Unlock()
		}
		if s.epoch.Load() != epoch {
			return // forgotten meanwhile
		}
		now := time.Now()
		if _, err := s.far.MergeGreylist(ctx, entries, &rule, now); err != nil {
			for _, e := range batch { // another time
				e.mu.Lock()
				if !e.dirty {
					e.dirty = true
					s.dirty.add(e)
				}
				e.mu.Unlock()
			}
			continue
		}
		if s.local != nil {
			_, _ = s.local.MergeGreylist(ctx, entries, &rule, now) // its fault is its own to tell
		}
	}
}
