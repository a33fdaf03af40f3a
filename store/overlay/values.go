package overlay

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/store"
)

// ValueBacking is the file behind [Values].
type ValueBacking interface {
	// LoadValue returns a value of the file and when it expires (Unix
	// milliseconds), nil when it has none. The slice is the caller's.
	LoadValue(space, key string) (value []byte, expires int64, err error)
}

// ValueChange is one value to write, or to delete when Value is nil.
type ValueChange struct {
	Space, Key string
	Value      []byte
	Expires    int64
}

type valueSlot struct {
	ValueChange
	state state
}

type valueShard struct {
	mu    sync.Mutex
	slots map[string]*valueSlot // by space and key
}

// Values is the part of a store that keeps named values: alone, or as what
// has changed since the last flush in front of a file. It is safe for
// concurrent use.
type Values struct {
	shards  [shardCount]valueShard
	seed    maphash.Seed
	backing ValueBacking // nil: the maps are all there is
	most    int          // values in all

	pending atomic.Int64
	mu      sync.Mutex // guards counts
	counts  map[string]int
	total   atomic.Int64
}

// NewValues returns an engine that takes at most so many values. counts is
// how many of each space the backing holds.
func NewValues(most int, backing ValueBacking, counts map[string]int) *Values {
	v := &Values{seed: maphash.MakeSeed(), backing: backing, most: most, counts: maps.Clone(counts)}
	if v.counts == nil {
		v.counts = make(map[string]int)
	}
	for _, n := range counts {
		v.total.Add(int64(n))
	}
	for i := range v.shards {
		v.shards[i].slots = make(map[string]*valueSlot)
	}
	return v
}

func (v *Values) shard(name string) *valueShard {
	return &v.shards[maphash.String(v.seed, name)%shardCount]
}

func slotName(space, key string) string { return space + "\x00" + key }

// load returns the value that is valid now. The shard is locked.
func (v *Values) load(sh *valueShard, name, space, key string) ([]byte, error) {
	if sl, ok := sh.slots[name]; ok {
		return sl.Value, nil
	}
	if v.backing == nil {
		return nil, nil
	}
	value, _, err := v.backing.LoadValue(space, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	return value, nil
}

// LoadValue implements store.Values.
func (v *Values) LoadValue(_ context.Context, space, key string) ([]byte, error) {
	key = store.ValueKey(key)
	name := slotName(space, key)
	sh := v.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	value, err := v.load(sh, name, space, key)
	return bytes.Clone(value), err
}

// SwapValue implements store.Values.
func (v *Values) SwapValue(_ context.Context, space, key string, old, next []byte, expires time.Time) (bool, error) {
	key = store.ValueKey(key)
	name := slotName(space, key)
	sh := v.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	now, err := v.load(sh, name, space, key)
	if err != nil {
		return false, err
	}
	if !bytes.Equal(now, old) || (now == nil) != (old == nil) {
		return false, nil
	}
	if old == nil && next == nil {
		return true, nil
	}
	if old == nil && int(v.total.Load()) >= v.most {
		return false, fmt.Errorf("%w: %d values", store.ErrFull, v.total.Load())
	}
	v.put(sh, name, ValueChange{space, key, bytes.Clone(next), expires.UnixMilli()}, grown(old, next))
	return true, nil
}

func grown(old, next []byte) int {
	switch {
	case old == nil:
		return 1
	case next == nil:
		return -1
	}
	return 0
}

// put stores a change. The shard is locked.
func (v *Values) put(sh *valueShard, name string, c ValueChange, grown int) {
	if grown != 0 {
		v.total.Add(int64(grown))
		v.mu.Lock()
		v.counts[c.Space] += grown
		v.mu.Unlock()
	}
	if v.backing == nil && c.Value == nil {
		delete(sh.slots, name)
		return
	}
	if old := sh.slots[name]; v.backing != nil && (old == nil || old.state == clean) {
		v.pending.Add(1)
	}
	sh.slots[name] = &valueSlot{c, dirty}
}

// CountValues implements store.Values.
func (v *Values) CountValues(space string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.counts[space]
}

// Counts returns the number of values of each space.
func (v *Values) Counts() map[string]int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.counts)
}

// Pending returns how many changes have not been written.
func (v *Values) Pending() int { return int(v.pending.Load()) }

// TakeDirty returns the changes that wait to be written, by space and key.
// Exactly one of Written or Failed must follow before the next TakeDirty.
func (v *Values) TakeDirty() []ValueChange {
	var out []ValueChange
	for i := range v.shards {
		sh := &v.shards[i]
		sh.mu.Lock()
		for _, sl := range sh.slots {
			if sl.state == dirty {
				sl.state = flushing
				out = append(out, sl.ValueChange)
			}
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b ValueChange) int {
		if a.Space != b.Space {
			return strings.Compare(a.Space, b.Space)
		}
		return strings.Compare(a.Key, b.Key)
	})
	return out
}

// Written tells that the changes of TakeDirty are in the backing.
func (v *Values) Written(changes []ValueChange) {
	for i := range changes {
		name := slotName(changes[i].Space, changes[i].Key)
		sh := v.shard(name)
		sh.mu.Lock()
		if sl, ok := sh.slots[name]; ok && sl.state == flushing {
			delete(sh.slots, name)
			v.pending.Add(-1)
		}
		sh.mu.Unlock()
	}
}

// Failed puts the changes of TakeDirty back, but for those that a newer
// change has overtaken.
func (v *Values) Failed(changes []ValueChange) {
	for i := range changes {
		name := slotName(changes[i].Space, changes[i].Key)
		sh := v.shard(name)
		sh.mu.Lock()
		if sl, ok := sh.slots[name]; ok && sl.state == flushing {
			sl.state = dirty
		}
		sh.mu.Unlock()
	}
}

// Each calls yield for a copy of each value in the maps, of one space.
func (v *Values) Each(ctx context.Context, space string, yield func(key string, value []byte) bool) error {
	for i := range v.shards {
		if err := ctx.Err(); err != nil {
			return err
		}
		var batch []ValueChange
		sh := &v.shards[i]
		sh.mu.Lock()
		for _, sl := range sh.slots {
			if sl.Space == space && sl.Value != nil {
				batch = append(batch, sl.ValueChange)
			}
		}
		sh.mu.Unlock()
		for _, c := range batch {
			if !yield(c.Key, bytes.Clone(c.Value)) {
				return nil
			}
		}
	}
	return nil
}

// Expire removes a value that has expired, if it still has. stored is what
// the backing says of it.
func (v *Values) Expire(space, key string, stored int64, now time.Time) {
	name := slotName(space, key)
	sh := v.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sl, ok := sh.slots[name]; ok {
		if sl.Value == nil {
			return
		}
		stored = sl.Expires
	}
	if stored < now.UnixMilli() {
		v.put(sh, name, ValueChange{Space: space, Key: key}, -1)
	}
}

// SweepShard drops the expired values of one shard of an engine without a
// backing. Call it for growing n.
func (v *Values) SweepShard(n int, now time.Time) {
	sh := &v.shards[n%shardCount]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for name, sl := range sh.slots {
		if sl.Expires < now.UnixMilli() {
			v.put(sh, name, ValueChange{Space: sl.Space, Key: sl.Key}, -1)
		}
	}
}
