// Package mem is a store that lives and dies with the process.
package mem

import (
	"context"
	"sync"
	"time"

	"postern/greylist"
	"postern/store"
	"postern/store/overlay"
)

// Store keeps everything in memory. It is safe for concurrent use.
type Store struct {
	*overlay.Values
	engine *overlay.Engine
	stop   chan struct{}
	once   sync.Once
	done   sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// sweepEvery is how often a part of the store is searched for expired records.
const sweepEvery = 2500 * time.Millisecond

// New returns a store for at most maxEntries records, and maxWaiting first
// contacts that wait. It starts its sweeper, which Close ends.
func New(maxEntries, maxWaiting int) *Store {
	s := &Store{engine: overlay.New(overlay.Options{MaxEntries: maxEntries, MaxWaiting: maxWaiting}), Values: overlay.NewValues(maxEntries, nil, nil), stop: make(chan struct{})}
	s.done.Go(func() {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-s.stop:
				return
			case now := <-tick.C:
				s.engine.SweepShard(n, now)
				s.engine.SweepRoom(now)
				s.Values.SweepShard(n, now)
			}
		}
	})
	return s
}

// EachValue implements store.Values.
func (s *Store) EachValue(ctx context.Context, space string, yield func(key, value string, expires time.Time) bool) error {
	return s.Each(ctx, space, yield)
}

// TouchGreylist implements greylist.Store.
func (s *Store) TouchGreylist(_ context.Context, c *greylist.Contact) (greylist.Outcome, error) {
	return s.engine.Touch(c)
}

// ListGreylist implements greylist.AdminStore.
func (s *Store) ListGreylist(ctx context.Context, f greylist.Filter, now time.Time, yield func(greylist.Entry) bool) error {
	pick := store.Picker(&f, yield)
	err := s.engine.Range(ctx, func(key string, rec overlay.Record) bool {
		e, live := overlay.Entry(key, rec, now)
		return !live || pick(e)
	})
	s.engine.RangeWaiting(now, pick)
	return err
}

// ForgetGreylist implements greylist.AdminStore.
func (s *Store) ForgetGreylist(ctx context.Context, f greylist.Filter) (int, error) {
	n := 0
	err := s.engine.Range(ctx, func(key string, _ overlay.Record) bool {
		if e, ok := store.SplitKey(key); !ok || !store.Matches(&f, &e) {
			return true
		}
		if gone, _ := s.engine.Delete(key, func(overlay.Record) bool { return true }); gone { // no error without a backing
			n++
		}
		return true
	})
	s.engine.RangeWaiting(time.Time{}, func(e greylist.Entry) bool {
		if store.Matches(&f, &e) && s.engine.ForgetWaiting(&e) {
			n++
		}
		return true
	})
	return n, err
}

// CountGreylist implements greylist.AdminStore.
func (s *Store) CountGreylist(ctx context.Context, now time.Time) (greylist.Counts, error) {
	var n greylist.Counts
	err := s.ListGreylist(ctx, greylist.Filter{}, now, func(e greylist.Entry) bool {
		n.Add(&e)
		return true
	})
	return n, err
}

// MergeGreylist implements greylist.AdminStore.
func (s *Store) MergeGreylist(ctx context.Context, entries []greylist.Entry, r *greylist.Rule, now time.Time) (out greylist.Merged, err error) {
	for i := range entries {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		one, err := s.engine.Merge(&entries[i], r, now)
		if err != nil {
			return out, err
		}
		out.Add(one)
	}
	return out, nil
}

// Status implements store.Store.
func (s *Store) Status() store.Status {
	return store.Status{Kind: store.Memory, Healthy: true, Entries: s.engine.Entries(), Room: s.engine.Room(time.Now())}
}

// Ping implements store.Store.
func (s *Store) Ping(context.Context) error { return nil }

// Close implements store.Store.
func (s *Store) Close(context.Context) error {
	s.once.Do(func() { close(s.stop) })
	s.done.Wait()
	return nil
}
