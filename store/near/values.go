package near

import (
	"context"
	"time"

	"postern/store"
)

type valueName struct{ space, key string }

// copied is how long a copy of a value is kept here when it is not told when
// it expires; the values tell that themselves.
const copied = 24 * time.Hour

// kept reports whether this gateway may go on with values of a space by
// itself: what it knows, never who of all gateways does something.
func (s *Store) kept(space string) bool {
	switch space {
	case store.VerifySpace, store.KnownSpace, store.KnownDomainSpace, store.ExpectSpace, store.NetworkSpace, store.RaiseSpace, store.MeterSpace:
		return s.local != nil
	}
	return false
}

// LoadValue implements store.Values.
func (s *Store) LoadValue(ctx context.Context, space, key string) (string, error) {
	s.mergeFirst(ctx, space, key)
	value, err := s.far.LoadValue(ctx, space, key)
	if err != nil && s.kept(space) && s.away(err) {
		s.fallback(err)
		return s.local.LoadValue(ctx, space, key)
	}
	if err == nil && s.kept(space) && space != store.MeterSpace {
		s.copy(ctx, space, key, value, time.Now().Add(copied))
	}
	return value, err
}

// SwapValue implements store.Values.
func (s *Store) SwapValue(ctx context.Context, space, key, old, next string, expires time.Time) (bool, error) {
	s.mergeFirst(ctx, space, key)
	ok, err := s.far.SwapValue(ctx, space, key, old, next, expires)
	if err != nil && s.kept(space) && s.away(err) {
		s.fallback(err)
		ok, err = s.local.SwapValue(ctx, space, key, old, next, expires)
		if ok && err == nil {
			s.note(space, key, expires)
		}
		return ok, err
	}
	if ok && s.kept(space) {
		s.copy(ctx, space, key, next, expires)
	}
	return ok, err
}

// copy keeps a value of the shared store here.
func (s *Store) copy(ctx context.Context, space, key, value string, expires time.Time) {
	have, err := s.local.LoadValue(ctx, space, key)
	if err != nil || have == value {
		return
	}
	_, _ = s.local.SwapValue(ctx, space, key, have, value, expires) // whoever was faster is newer
}

// note remembers that a value was changed here alone. Meters are not merged.
func (s *Store) note(space, key string, expires time.Time) {
	if space == store.MeterSpace {
		return
	}
	o := &s.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	name := valueName{space, store.ValueKey(key)}
	if _, ok := o.values[name]; !ok && len(o.values) >= maxLearned {
		s.lost.Inc()
		return
	}
	o.values[name] = expires
	o.counted()
}

// mergeFirst merges a value that was changed here, if it was and can be.
func (s *Store) mergeFirst(ctx context.Context, space, key string) {
	o := &s.outage
	if o.pending() == 0 {
		return
	}
	name := valueName{space, store.ValueKey(key)}
	o.mu.Lock()
	expires, ok := o.values[name]
	o.mu.Unlock()
	if ok {
		_ = s.mergeValue(ctx, name, expires) // what follows fails too, then
	}
}

// mergeValue puts a value that was changed here in the place of the shared
// one: it is newer.
func (s *Store) mergeValue(ctx context.Context, name valueName, expires time.Time) error {
	for {
		mine, err := s.local.LoadValue(ctx, name.space, name.key)
		if err != nil {
			return err
		}
		theirs, err := s.far.LoadValue(ctx, name.space, name.key)
		if err != nil {
			return err
		}
		if mine != theirs {
			ok, err := s.far.SwapValue(ctx, name.space, name.key, theirs, mine, expires)
			if err != nil {
				return err
			}
			if !ok {
				continue // changed by another: once more
			}
		}
		o := &s.outage
		o.mu.Lock()
		delete(o.values, name)
		o.counted()
		o.mu.Unlock()
		return nil
	}
}

// mergeValues merges all values that were changed here.
func (s *Store) mergeValues(ctx context.Context) (merged int, err error) {
	o := &s.outage
	for {
		var name valueName
		var expires time.Time
		o.mu.Lock()
		for name, expires = range o.values {
			break
		}
		left := len(o.values)
		o.mu.Unlock()
		if left == 0 {
			return merged, nil
		}
		if err := s.mergeValue(ctx, name, expires); err != nil {
			return merged, err
		}
		merged++
	}
}

// EachValue implements store.Values.
func (s *Store) EachValue(ctx context.Context, space string, yield func(key, value string, expires time.Time) bool) error {
	return s.far.EachValue(ctx, space, yield)
}

// CountValues implements store.Values.
func (s *Store) CountValues(space string) int { return s.far.CountValues(space) }
