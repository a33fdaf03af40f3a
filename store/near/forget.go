package near

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"postern/greylist"
	"postern/store"
)

// forgotten is one forget of an administrator.
type forgotten struct {
	N      uint64          `json:"n"` // counts up
	Filter greylist.Filter `json:"f"`
}

const (
	forgetKey  = "greylist"
	maxForgets = 50                 // as many are told of
	keepForget = 7 * 24 * time.Hour // for so long
	maxSwaps   = 10
)

// forgets is what this gateway knows of the forgets of all.
type forgets struct {
	mu   sync.Mutex
	text string // as it was last read
	last uint64
	read bool
}

// learnForgets applies what was forgotten anywhere since the last time.
func (s *Store) learnForgets(ctx context.Context) error {
	text, err := s.far.LoadValue(ctx, store.ForgetSpace, forgetKey)
	if err != nil {
		return err
	}
	f := &s.forget
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.read && text == f.text {
		return nil
	}
	all, err := decodeForgets(text)
	if err != nil {
		s.log.Warn("what was forgotten cannot be read", zap.Error(err))
	}
	first := !f.read
	f.read, f.text = true, text
	if len(all) == 0 {
		return nil
	}
	newest, oldest := all[len(all)-1].N, all[0].N
	if first {
		f.last = s.applied(ctx, newest)
	}
	known := f.last
	f.last = newest
	if newest <= known {
		return nil
	}
	s.drop()
	if s.local == nil {
		return nil
	}
	if oldest > known+1 { // more than is told of
		_, err = s.local.ForgetGreylist(ctx, greylist.Filter{})
	}
	for _, one := range all {
		if one.N > known {
			_, e := s.local.ForgetGreylist(ctx, one.Filter)
			err = errors.Join(err, e)
			s.unlearn(&one.Filter)
		}
	}
	if err == nil {
		s.copy(ctx, store.ForgetSpace, forgetKey, text, time.Now().Add(keepForget))
	} else {
		s.log.Warn("what others have forgotten cannot be forgotten here", zap.Error(err))
	}
	return nil
}

// applied is the last forget that the own store has heard of in an earlier life;
// one that has heard of none is as new as the last.
func (s *Store) applied(ctx context.Context, newest uint64) uint64 {
	if s.local == nil {
		return newest
	}
	text, err := s.local.LoadValue(ctx, store.ForgetSpace, forgetKey)
	if err != nil {
		return newest
	}
	all, _ := decodeForgets(text)
	if len(all) == 0 {
		s.copy(ctx, store.ForgetSpace, forgetKey, s.forget.text, time.Now().Add(keepForget))
		return newest
	}
	return all[len(all)-1].N
}

func decodeForgets(text string) (all []forgotten, err error) {
	if text == "" {
		return nil, nil
	}
	err = json.Unmarshal([]byte(text), &all)
	return all, err
}

// drop empties the memory, with what waits to be written behind.
func (s *Store) drop() {
	s.epoch.Add(1)
	if s.cache != nil {
		s.cache.InvalidateAll()
	}
	s.dirty.take()
}

// unlearn takes out of what is to be merged what is forgotten.
func (s *Store) unlearn(f *greylist.Filter) {
	o := &s.outage
	o.mu.Lock()
	defer o.mu.Unlock()
	for key, e := range o.learned {
		if store.Matches(f, &e) {
			delete(o.learned, key)
		}
	}
	o.counted()
}

// ForgetGreylist implements greylist.AdminStore. It forgets twice: what others
// had seen they may have written behind before they heard of it.
func (s *Store) ForgetGreylist(ctx context.Context, f greylist.Filter) (int, error) {
	n, err := s.forgetOnce(ctx, f)
	if err != nil || s.cache == nil {
		return n, err
	}
	select {
	case <-ctx.Done():
		return n, ctx.Err()
	case <-time.After(2 * every):
	}
	again, err := s.forgetOnce(ctx, f)
	return max(n, again), err
}

func (s *Store) forgetOnce(ctx context.Context, f greylist.Filter) (int, error) {
	n, err := s.far.ForgetGreylist(ctx, f)
	if err == nil {
		err = s.tellForget(ctx, f)
	}
	if err == nil {
		err = s.learnForgets(ctx)
	}
	return n, err
}

// tellForget adds a forget to what all gateways read.
func (s *Store) tellForget(ctx context.Context, f greylist.Filter) error {
	f.Limit = 0
	for range maxSwaps {
		old, err := s.far.LoadValue(ctx, store.ForgetSpace, forgetKey)
		if err != nil {
			return err
		}
		all, _ := decodeForgets(old)           // what cannot be read is begun anew
		next := uint64(time.Now().UnixMilli()) // the first; then they count up by one
		if len(all) > 0 {
			next = all[len(all)-1].N + 1
		}
		all = append(all, forgotten{next, f})
		if len(all) > maxForgets {
			all = all[len(all)-maxForgets:]
		}
		text, err := json.Marshal(all)
		if err != nil {
			return err
		}
		if ok, err := s.far.SwapValue(ctx, store.ForgetSpace, forgetKey, old, string(text), time.Now().Add(keepForget)); ok || err != nil {
			return err
		}
	}
	return errors.New("store: others forget at the same time, again and again")
}
