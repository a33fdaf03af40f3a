package near

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"postern/greylist"
	"postern/store"
)

// maxLearned is how many records of an outage are remembered for the shared
// store, some 400 bytes each. What comes beyond is only known here.
const maxLearned = 1_000_000

// outage is what was learned while the shared store was away.
type outage struct {
	n  atomic.Int64 // records and values, read without the lock
	mu sync.Mutex
	// learned are entries by their keys: what is to be merged.
	learned map[string]greylist.Entry
	values  map[valueName]time.Time // changed here, and when they expire
	at      time.Time               // since when; zero: not away
}

func (o *outage) init() {
	o.learned, o.values = make(map[string]greylist.Entry), make(map[valueName]time.Time)
}

func (o *outage) pending() int { return int(o.n.Load()) }

func (o *outage) counted() { o.n.Store(int64(len(o.learned) + len(o.values))) }

func (o *outage) since() (time.Time, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.at, !o.at.IsZero()
}

func keyOf(e *greylist.Entry) string {
	switch e.Kind {
	case greylist.KindCredit:
		return string(store.AppendKey(nil, store.CreditKey, e.Credit))
	case greylist.KindWaiting:
		return string(store.AppendKey(nil, 'w', e.Match, e.Sender, e.Recipient))
	}
	return string(store.AppendKey(nil, store.TripletKey, e.Match, e.Sender, e.Recipient))
}

// fallback notes that the own store has to do something.
func (s *Store) fallback(why error) {
	s.fallbacks.Inc()
	o := &s.outage
	o.mu.Lock()
	first := o.at.IsZero()
	if first {
		o.at = time.Now()
	}
	o.mu.Unlock()
	if first {
		s.log.Error("the shared store is away: this gateway goes on by its own, and tells it what it learns", zap.Error(why))
	}
}

// alone judges a contact by the gateway's own store, and remembers what came of
// it for the shared one.
func (s *Store) alone(ctx context.Context, c *greylist.Contact) (greylist.Outcome, error) {
	s.fallback(store.ErrUnavailable)
	out, err := s.local.TouchGreylist(ctx, c)
	if err != nil || c.DryRun {
		return out, err
	}
	entries := entriesOf(c, &out)
	o := &s.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range entries {
		s.learn(&entries[i])
	}
	if !out.State.Delays() && !c.Held(&out) { // it does not wait any more
		delete(o.learned, keyOf(&greylist.Entry{Kind: greylist.KindWaiting, Match: c.Match, Sender: c.Sender, Recipient: c.Recipient}))
	}
	o.counted()
	return out, nil
}

// learn adds an entry to what is to be merged. The outage is locked.
func (s *Store) learn(e *greylist.Entry) {
	o := &s.outage
	key := keyOf(e)
	if old, ok := o.learned[key]; ok {
		e.First = earlier(e.First, old.First)
		if e.Kind == greylist.KindWaiting {
			e.Since = earlier(e.Since, old.Since)
		}
		e.Passes, e.Attempts = max(e.Passes, old.Passes), max(e.Attempts, old.Attempts)
	} else if len(o.learned) >= maxLearned {
		s.lost.Inc()
		return
	}
	o.learned[key] = *e
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// tell merges what was learned of a contact's records before the shared store
// judges it, so that nobody who has passed here waits there.
func (s *Store) tell(ctx context.Context, c *greylist.Contact) error {
	o := &s.outage
	keys := []string{
		keyOf(&greylist.Entry{Kind: greylist.KindTriplet, Match: c.Match, Sender: c.Sender, Recipient: c.Recipient}),
		keyOf(&greylist.Entry{Kind: greylist.KindWaiting, Match: c.Match, Sender: c.Sender, Recipient: c.Recipient}),
	}
	if c.Credit != "" {
		keys = append(keys, keyOf(&greylist.Entry{Kind: greylist.KindCredit, Credit: c.Credit}))
	}
	var entries []greylist.Entry
	o.mu.Lock()
	for _, key := range keys {
		if e, ok := o.learned[key]; ok {
			entries = append(entries, e)
		}
	}
	o.mu.Unlock()
	if len(entries) == 0 {
		return nil
	}
	if _, err := s.far.MergeGreylist(ctx, entries, &c.Rule, c.Time); err != nil {
		return err
	}
	s.told(entries)
	return nil
}

// told takes out what has been merged, unless it has changed since.
func (s *Store) told(entries []greylist.Entry) {
	o := &s.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range entries {
		key := keyOf(&entries[i])
		if now, ok := o.learned[key]; ok && now == entries[i] {
			delete(o.learned, key)
		}
	}
	o.counted()
}

// merge tells the shared store all that was learned without it.
func (s *Store) merge(ctx context.Context) {
	o := &s.outage
	if _, away := o.since(); !away {
		return
	}
	rule := s.o.Rule()
	merged := 0
	for {
		var batch []greylist.Entry
		o.mu.Lock()
		for _, e := range o.learned {
			if batch = append(batch, e); len(batch) == writeBatch {
				break
			}
		}
		o.mu.Unlock()
		if len(batch) == 0 {
			break
		}
		if _, err := s.far.MergeGreylist(ctx, batch, &rule, time.Now()); err != nil {
			if !errors.Is(err, store.ErrUnavailable) {
				s.log.Warn("what was learned alone cannot be told to the shared store", zap.Error(err))
			}
			return
		}
		s.told(batch)
		merged += len(batch)
	}
	values, err := s.mergeValues(ctx)
	if err != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.learned)+len(o.values) > 0 {
		return // there is more meanwhile
	}
	s.log.Info("the shared store is back and has been told what was learned without it",
		zap.Duration("away", time.Since(o.at)), zap.Int("records", merged), zap.Int("values", values))
	o.at = time.Time{}
	// Maps do not shrink.
	o.init()
}
