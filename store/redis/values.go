package redis

import (
	"context"
	"crypto/sha1" //nolint:gosec // the name that Redis gives a script
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"postern/store"
)

//go:embed swap.lua
var swapScript string

var swapSHA = func() string {
	sum := sha1.Sum([]byte(swapScript)) //nolint:gosec // as above
	return hex.EncodeToString(sum[:])
}()

// valueName returns the key of a value. Each is alone in its operation, so
// none needs a hash tag.
func (s *Store) valueName(space, key string) string {
	return s.cfg.Prefix + ":" + schema + ":v:" + space + ":" + store.ValueKey(key)
}

// LoadValue implements store.Values.
func (s *Store) LoadValue(ctx context.Context, space, key string) (string, error) {
	return s.load(ctx, s.valueName(space, key))
}

// SwapValue implements store.Values.
func (s *Store) SwapValue(ctx context.Context, space, key, old, next string, expires time.Time) (bool, error) {
	keep := max(time.Until(expires)+slack, time.Second)
	ok, err := s.swap(ctx, s.valueName(space, key), old, next, keep.Milliseconds())
	if ok {
		s.counts.add(space, old, next)
	}
	return ok, err
}

// swap puts next in the place of old, if that is what is there, and keeps it
// for so many milliseconds.
func (s *Store) swap(ctx context.Context, key, old, next string, keep int64) (bool, error) {
	cmd, err := s.script(ctx, swapScript, swapSHA, func() *redis.Cmd { return redis.NewCmd(ctx, 1, key, old, next, keep) })
	if err != nil {
		return false, err
	}
	n, err := cmd.Int64()
	if err != nil {
		return false, fmt.Errorf("store: redis: answer of the script: %w", err)
	}
	return n == 1, nil
}

// countValues counts the keys of a space on the server.
func (s *Store) countValues(ctx context.Context, space string) (total int64, err error) {
	err = s.scan(ctx, escape(s.valueName(space, ""))+"*", func(keys []string) (bool, error) {
		total += int64(len(keys))
		return true, nil
	})
	return total, err
}

// EachValue implements store.Values.
func (s *Store) EachValue(ctx context.Context, space string, yield func(key, value string, expires time.Time) bool) error {
	prefix := s.valueName(space, "")
	return s.scan(ctx, escape(prefix)+"*", func(keys []string) (bool, error) {
		if len(keys) == 0 {
			return true, nil
		}
		values, err := s.get(ctx, keys)
		if err != nil {
			return false, err
		}
		for i, key := range keys {
			v := &values[i]
			if v.value != "" && !yield(strings.TrimPrefix(key, prefix), v.value, time.Now().Add(v.left-slack)) {
				return false, nil
			}
		}
		return true, nil
	})
}

// stored is a value and how long its key lives on.
type stored struct {
	value string
	left  time.Duration
}

// get reads keys with their times, in one round trip; those that are gone have
// no value.
func (s *Store) get(ctx context.Context, keys []string) ([]stored, error) {
	pipe := s.client.Pipeline()
	values, left := make([]*redis.StringCmd, len(keys)), make([]*redis.DurationCmd, len(keys))
	for i, key := range keys {
		values[i], left[i] = pipe.Get(ctx, key), pipe.PTTL(ctx, key)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
	}
	out := make([]stored, len(keys))
	for i := range keys {
		out[i] = stored{values[i].Val(), left[i].Val()}
	}
	return out, nil
}

// countEvery is how often the values of a space are counted on the server.
// What expires or others add in between is not noticed.
const countEvery = 10 * time.Minute

// counts are about how many values each space has.
type counts struct {
	mu     sync.Mutex
	spaces map[string]*count
}

type count struct {
	n    atomic.Int64
	at   time.Time
	busy bool
}

func (c *counts) of(space string) *count {
	if c.spaces == nil {
		c.spaces = make(map[string]*count)
	}
	n := c.spaces[space]
	if n == nil {
		n = &count{}
		c.spaces[space] = n
	}
	return n
}

func (c *counts) add(space, old, next string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case old == "" && next != "":
		c.of(space).n.Add(1)
	case old != "" && next == "":
		c.of(space).n.Add(-1)
	}
}

// CountValues implements store.Values: the last count, and what this process
// has added since. Counting goes on in the background.
func (s *Store) CountValues(space string) int {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	c := s.counts.of(space)
	if !c.busy && time.Since(c.at) > countEvery && s.counting.Err() == nil {
		c.busy = true
		s.done.Go(func() {
			ctx, cancel := context.WithTimeout(s.counting, time.Minute)
			defer cancel()
			n, err := s.countValues(ctx, space)
			s.counts.mu.Lock()
			defer s.counts.mu.Unlock()
			if c.busy, c.at = false, time.Now(); err == nil {
				c.n.Store(n)
			}
		})
	}
	return int(c.n.Load())
}
