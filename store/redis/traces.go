package redis

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// maxTraces is how many traces of one node are kept, some 700 bytes each.
	maxTraces = 20_000
	// tracePage is how many are read at a time.
	tracePage = 100
	// traceSkew is how far the clocks of a node and of the server may be apart
	// before the whole stream is looked through.
	traceSkew = 10 * time.Minute
	// trimEvery is how often what is too old is taken out.
	trimEvery = time.Minute
)

// trims is when each node's stream was trimmed last.
type trims struct {
	mu sync.Mutex
	at map[uint8]time.Time
}

// due reports whether a stream is to be trimmed now, and takes note of it.
func (t *trims) due(node uint8, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last, ok := t.at[node]; ok && now.Sub(last) < trimEvery {
		return false
	}
	if t.at == nil {
		t.at = make(map[uint8]time.Time)
	}
	t.at[node] = now
	return true
}

// traceKey returns the key of a node's stream.
func (s *Store) traceKey(node uint8) string {
	return s.prefix + "{j" + strconv.Itoa(int(node)) + "}:t"
}

// PutTrace implements journal.Shelf: a stream for each node, of bounded length.
func (s *Store) PutTrace(ctx context.Context, node uint8, ref string, trace []byte, keep time.Duration) error {
	key := s.traceKey(node)
	err := s.do(ctx, redis.NewStringCmd(ctx, "xadd", key, "maxlen", "~", maxTraces, "*", "r", ref, "t", trace))
	now := time.Now()
	if err != nil || !s.trims.due(node, now) {
		return err
	}
	if err := s.do(ctx, redis.NewIntCmd(ctx, "xtrim", key, "minid", "~", now.Add(-keep).UnixMilli())); err != nil {
		return err
	}
	return s.do(ctx, redis.NewBoolCmd(ctx, "pexpire", key, (keep+slack).Milliseconds()))
}

// Trace implements journal.Shelf.
func (s *Store) Trace(ctx context.Context, node uint8, ref string, minute time.Time) ([]byte, error) {
	key := s.traceKey(node)
	from, to := minute.Add(-traceSkew).UnixMilli(), minute.Add(time.Minute+traceSkew).UnixMilli()
	if from > 0 {
		trace, err := s.findTrace(ctx, key, ref, strconv.FormatInt(from, 10), strconv.FormatInt(to, 10))
		if trace != nil || err != nil {
			return trace, err
		}
	}
	return s.findTrace(ctx, key, ref, "-", "+")
}

// findTrace looks through a part of a stream. A person waits, nobody else.
func (s *Store) findTrace(ctx context.Context, key, ref, from, to string) ([]byte, error) {
	for range 2 * maxTraces / tracePage {
		cmd := redis.NewXMessageSliceCmd(ctx, "xrange", key, from, to, "count", tracePage)
		if err := s.do(ctx, cmd); err != nil {
			return nil, err
		}
		page := cmd.Val()
		for _, m := range page {
			if m.Values["r"] != ref {
				continue
			}
			trace, ok := m.Values["t"].(string)
			if !ok {
				return nil, fmt.Errorf("store: redis: %s %s holds no trace", key, m.ID)
			}
			return []byte(trace), nil
		}
		if len(page) < tracePage {
			break
		}
		from = "(" + page[len(page)-1].ID
	}
	return nil, nil
}
