package overlay

import (
	"context"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/meter"
	"postern/store"
)

// ValueBacking is the file behind [Values].
type ValueBacking interface {
	// LoadValue returns a value of the file and when it expires (Unix
	// milliseconds), "" when it has none.
	LoadValue(space, key string) (value string, expires int64, err error)
}

// ValueChange is one value to write, or to delete when Value is empty.
type ValueChange struct {
	Space, Key string
	Value      string
	Expires    int64
}

type valueState uint8

const (
	clean    valueState = iota // as in the file
	dirty                      // to be written
	flushing                   // being written
)

type valueSlot struct {
	ValueChange
	state valueState
}

type valueShard struct {
	mu    sync.Mutex
	slots map[valueName]*valueSlot
}

// Values is the part of a store that keeps named values: alone, or as what
// has changed and what was used lately in front of a file. It is safe for
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
		v.shards[i].slots = make(map[valueName]*valueSlot)
	}
	return v
}

func (v *Values) index(name valueName) int { return int(maphash.String(v.seed, name.key) % shardCount) }

func (v *Values) shard(name valueName) *valueShard { return &v.shards[v.index(name)] }

// maxShardValues is how many values a shard keeps in memory when there is a
// file behind, besides those that wait to be written.
const maxShardValues = 1024

// room drops a value that the file has too when there are many.
func (sh *valueShard) room() {
	if len(sh.slots) < maxShardValues {
		return
	}
	tries := 0
	for name, sl := range sh.slots { // the order of a map is random enough
		if sl.state == clean {
			delete(sh.slots, name)
			return
		}
		if tries++; tries > 8 {
			return
		}
	}
}

// valueName is the name of a value in the maps.
type valueName struct{ space, key string }

// load returns the value that is valid now. The shard is locked.
func (v *Values) load(sh *valueShard, name valueName) (string, error) {
	value, _, err := v.loadExpiring(sh, name)
	return value, err
}

func (v *Values) loadExpiring(sh *valueShard, name valueName) (value string, expires int64, err error) {
	if sl, ok := sh.slots[name]; ok {
		return sl.Value, sl.Expires, nil
	}
	if v.backing == nil {
		return "", 0, nil
	}
	if value, expires, err = v.backing.LoadValue(name.space, name.key); err != nil {
		return "", 0, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	// That there is none is worth remembering too.
	sh.room()
	sh.slots[name] = &valueSlot{ValueChange{name.space, name.key, value, expires}, clean}
	return value, expires, nil
}

// LoadExpiring is LoadValue with the time after which the value may be dropped.
func (v *Values) LoadExpiring(space, key string) (string, time.Time, error) {
	name := valueName{space, store.ValueKey(key)}
	sh := v.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	value, expires, err := v.loadExpiring(sh, name)
	return value, time.UnixMilli(expires), err
}

// LoadValue implements store.Values.
func (v *Values) LoadValue(_ context.Context, space, key string) (string, error) {
	key = store.ValueKey(key)
	name := valueName{space, key}
	sh := v.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return v.load(sh, name)
}

// SwapValue implements store.Values.
func (v *Values) SwapValue(_ context.Context, space, key, old, next string, expires time.Time) (bool, error) {
	key = store.ValueKey(key)
	name := valueName{space, key}
	sh := v.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	now, err := v.load(sh, name)
	if err != nil {
		return false, err
	}
	if now != old {
		return false, nil
	}
	if old == "" && next == "" {
		return true, nil
	}
	if old == "" && int(v.total.Load()) >= v.most {
		return false, fmt.Errorf("%w: %d values", store.ErrFull, v.total.Load())
	}
	v.put(sh, name, ValueChange{space, key, next, expires.UnixMilli()}, grown(old, next))
	return true, nil
}

// fewMeters is how many meters of one request need no memory from the heap.
const fewMeters = 8

// TakeMeters implements meter.Store. The shards of all meters are locked, each
// once and in their order.
func (v *Values) TakeMeters(_ context.Context, now time.Time, takes []meter.Take, peek bool) ([]meter.Level, bool, error) {
	var (
		few struct {
			slots     [fewMeters]*valueSlot
			shards    [fewMeters]int
			old, next [fewMeters]string
		}
		slots, shards, old, next = few.slots[:0], few.shards[:0], few.old[:], few.next[:]
		used                     [shardCount]bool
	)
	if len(takes) > fewMeters {
		old, next = make([]string, len(takes)), make([]string, len(takes))
	}
	old, next = old[:len(takes)], next[:len(takes)]
	for i := range takes {
		at := v.index(valueName{store.MeterSpace, store.ValueKey(takes[i].Key)})
		shards = append(shards, at)
		used[at] = true
	}
	for i := range used {
		if used[i] {
			v.shards[i].mu.Lock()
		}
	}
	defer func() {
		for i := range used {
			if used[i] {
				v.shards[i].mu.Unlock()
			}
		}
	}()
	added, loaded := 0, false
	for i := range takes {
		sh, name := &v.shards[shards[i]], valueName{store.MeterSpace, store.ValueKey(takes[i].Key)}
		sl := sh.slots[name]
		switch {
		case sl != nil:
			old[i] = sl.Value
		case v.backing != nil:
			var err error
			if old[i], err = v.load(sh, valueName{name.space, strings.Clone(name.key)}); err != nil {
				return nil, false, err
			}
			loaded = true
		}
		slots = append(slots, sl)
		if old[i] == "" {
			added++
		}
	}
	levels := make([]meter.Level, len(takes))
	taken := meter.ApplyTo(next, levels, old, takes, now)
	if !taken || peek {
		return levels, taken, nil
	}
	if added > 0 && int(v.total.Load())+added > v.most {
		return nil, false, fmt.Errorf("%w: %d values", store.ErrFull, v.total.Load())
	}
	for i := range takes {
		if next[i] == old[i] {
			continue
		}
		expires := takes[i].Expires(now).UnixMilli()
		// One that is in memory stays where it is, unless it had to go for one
		// that was loaded.
		if sl := slots[i]; sl != nil && !loaded && old[i] != "" && next[i] != "" {
			if sl.state == clean && v.backing != nil {
				v.pending.Add(1)
			}
			sl.Value, sl.Expires, sl.state = next[i], expires, dirty
			continue
		}
		name := valueName{store.MeterSpace, strings.Clone(store.ValueKey(takes[i].Key))}
		v.put(&v.shards[shards[i]], name, ValueChange{name.space, name.key, next[i], expires}, grown(old[i], next[i]))
	}
	return levels, true, nil
}

func grown(old, next string) int {
	switch {
	case old == "":
		return 1
	case next == "":
		return -1
	}
	return 0
}

// put stores a change. The shard is locked.
func (v *Values) put(sh *valueShard, name valueName, c ValueChange, grown int) {
	if grown != 0 {
		v.total.Add(int64(grown))
		v.mu.Lock()
		v.counts[c.Space] += grown
		v.mu.Unlock()
	}
	if v.backing == nil && c.Value == "" {
		delete(sh.slots, name)
		return
	}
	if old := sh.slots[name]; v.backing != nil && (old == nil || old.state == clean) {
		v.pending.Add(1)
		if old == nil {
			sh.room()
		}
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
		name := valueName{changes[i].Space, changes[i].Key}
		sh := v.shard(name)
		sh.mu.Lock()
		if sl, ok := sh.slots[name]; ok && sl.state == flushing {
			v.pending.Add(-1)
			sl.state = clean
			if sl.Value == "" || len(sh.slots) > maxShardValues {
				delete(sh.slots, name)
			}
		}
		sh.mu.Unlock()
	}
}

// Failed puts the changes of TakeDirty back, but for those that a newer
// change has overtaken.
func (v *Values) Failed(changes []ValueChange) {
	for i := range changes {
		name := valueName{changes[i].Space, changes[i].Key}
		sh := v.shard(name)
		sh.mu.Lock()
		if sl, ok := sh.slots[name]; ok && sl.state == flushing {
			sl.state = dirty
		}
		sh.mu.Unlock()
	}
}

// Each calls yield for a copy of each value in the maps, of one space.
func (v *Values) Each(ctx context.Context, space string, yield func(key, value string, expires time.Time) bool) error {
	for i := range v.shards {
		if err := ctx.Err(); err != nil {
			return err
		}
		var batch []ValueChange
		sh := &v.shards[i]
		sh.mu.Lock()
		for _, sl := range sh.slots {
			if sl.Space == space && sl.Value != "" {
				batch = append(batch, sl.ValueChange)
			}
		}
		sh.mu.Unlock()
		for _, c := range batch {
			if !yield(c.Key, c.Value, time.UnixMilli(c.Expires)) {
				return nil
			}
		}
	}
	return nil
}

// Expire removes a value that has expired, if it still has. stored is what
// the backing says of it.
func (v *Values) Expire(space, key string, stored int64, now time.Time) {
	name := valueName{space, key}
	sh := v.shard(name)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sl, ok := sh.slots[name]; ok {
		if sl.Value == "" {
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
