// Package overlay keeps greylist records in sharded maps, alone (store/mem)
// or in front of a file that takes changes in batches (store/bolt).
//
// A record is read, changed and put back under the locks of its shards, so
// each contact is atomic. Changed records are dirty until a flush has written
// them; unchanged ones are a bounded cache when there is a file behind.
package overlay

import (
	"context"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/greylist"
	"postern/store"
)

// Record is the stored form of a triplet, client or pair. The meaning of the
// fields goes with the kind of the key.
type Record struct {
	A, B    int64  // First, Last; for a client Last, Counted
	X, Y    uint32 // Attempts, Passes; for a client Passes, -
	Expires int64  // Unix milliseconds after which the record may be dropped
}

// Backing is the file behind the maps.
type Backing interface {
	// Load reads the records of the keys that are not nil, all from one
	// moment. found tells which were there. Keys are only valid during the call.
	Load(keys *[3][]byte, recs *[3]Record, found *[3]bool) error
}

type state uint8

const (
	clean    state = iota // as in the file
	dirty                 // to be written
	flushing              // being written
)

type slot struct {
	rec   Record
	state state
	gone  bool // deleted; kept until the file knows
}

const shardCount = 64

type shard struct {
	mu    sync.Mutex
	slots map[string]*slot // changed in place, so that a known key costs no allocation
	dirty int
	_     [24]byte // shards are locked by different cores: keep them on separate cache lines
}

// Engine is the set of maps. It is safe for concurrent use.
type Engine struct {
	shards  [shardCount]shard
	seed    maphash.Seed
	backing Backing // nil: the maps are all there is

	maxEntries int
	maxDirty   int // more unwritten changes than this: no new entries
	maxCache   int // slots a shard keeps when there is a backing

	entries atomic.Int64
	pending atomic.Int64 // dirty and flushing slots
}

// Options of an Engine.
type Options struct {
	MaxEntries int
	Backing    Backing
	MaxDirty   int // with a backing
	CacheSize  int // with a backing: slots kept in memory, in all
	Entries    int // how many the backing holds now
}

// New returns an engine.
func New(o Options) *Engine {
	e := &Engine{
		seed: maphash.MakeSeed(), backing: o.Backing,
		maxEntries: o.MaxEntries, maxDirty: o.MaxDirty, maxCache: o.CacheSize / shardCount,
	}
	for i := range e.shards {
		e.shards[i].slots = make(map[string]*slot)
	}
	e.entries.Store(int64(o.Entries))
	return e
}

// Entries returns how many records there are.
func (e *Engine) Entries() int { return int(e.entries.Load()) }

// Pending returns how many changes have not been written.
func (e *Engine) Pending() int { return int(e.pending.Load()) }

// scratch is what one Touch works in.
type scratch struct {
	buf   []byte
	keys  [3][]byte // triplet, client, pair
	at    [3]int    // shards
	lock  [3]int    // shards in the order of locking
	recs  [3]Record
	found [3]bool

	ask      [3][]byte // what the backing is asked for, and its answer
	asked    [3]Record
	answered [3]bool
}

var scratches = sync.Pool{New: func() any { return &scratch{buf: make([]byte, 0, 1024)} }}

// slack is how much longer than its use a record is kept: its expiry is
// garbage collection, never the rule.
const slack = time.Hour

// Touch implements greylist.Store.
func (e *Engine) Touch(c *greylist.Contact) (greylist.Outcome, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	b := store.AppendKey(s.buf[:0], store.TripletKey, c.Who, c.Sender, c.Recipient)
	t := len(b)
	b = store.AppendKey(b, store.ClientKey, c.Who)
	cl := len(b)
	b = store.AppendKey(b, store.PairKey, c.Sender, c.Recipient)
	s.buf = b
	s.keys = [3][]byte{b[:t], b[t:cl], b[cl:]}
	for i, k := range s.keys {
		s.at[i] = e.shardOf(k)
	}
	e.lockAll(s)
	defer e.unlockAll(s)
	if err := e.load(s); err != nil {
		return greylist.Outcome{}, err
	}

	before := s.recs
	triplet := greylist.Triplet{First: s.recs[0].A, Last: s.recs[0].B, Attempts: s.recs[0].X, Passes: s.recs[0].Y}
	client := greylist.Client{Last: s.recs[1].A, Counted: s.recs[1].B, Passes: s.recs[1].X}
	pair := greylist.Pair{First: s.recs[2].A, Last: s.recs[2].B}
	out := greylist.Advance(c, &triplet, &client, &pair)
	if c.DryRun {
		return out, nil
	}
	if !s.found[0] && triplet.First != 0 {
		if n := e.Entries(); n >= e.maxEntries {
			return greylist.Outcome{}, fmt.Errorf("%w: %d entries", store.ErrFull, n)
		}
		if e.backing != nil && e.Pending() >= e.maxDirty {
			return greylist.Outcome{}, fmt.Errorf("%w: %d changes wait to be written", store.ErrUnavailable, e.Pending())
		}
	}
	window, keep := (c.Rule.Window + slack).Milliseconds(), (c.Rule.Keep + slack).Milliseconds()
	s.recs[0] = Record{A: triplet.First, B: triplet.Last, X: triplet.Attempts, Y: triplet.Passes, Expires: triplet.First + window}
	if triplet.Passes > 0 {
		s.recs[0].Expires = triplet.Last + keep
	}
	s.recs[1] = Record{A: client.Last, B: client.Counted, X: client.Passes, Expires: client.Last + keep}
	s.recs[2] = Record{A: pair.First, B: pair.Last, Expires: pair.Last + window}
	for i := range s.recs {
		present := s.recs[i].A != 0
		switch {
		case !present && s.found[i]:
			e.put(s.at[i], s.keys[i], slot{gone: true}, -1)
		case present && !s.found[i]:
			e.put(s.at[i], s.keys[i], slot{rec: s.recs[i]}, 1)
		case present && s.recs[i] != before[i]:
			e.put(s.at[i], s.keys[i], slot{rec: s.recs[i]}, 0)
		}
	}
	return out, nil
}

func (e *Engine) shardOf(key []byte) int { return int(maphash.Bytes(e.seed, key) % shardCount) }

func (e *Engine) shardOfString(key string) int { return int(maphash.String(e.seed, key) % shardCount) }

// lockAll locks the three shards in ascending order, each once.
func (e *Engine) lockAll(s *scratch) {
	a, b, c := s.at[0], s.at[1], s.at[2]
	if a > b {
		a, b = b, a
	}
	if b > c {
		b, c = c, b
	}
	if a > b {
		a, b = b, a
	}
	s.lock = [3]int{a, b, c}
	for i, n := range s.lock {
		if i == 0 || n != s.lock[i-1] {
			e.shards[n].mu.Lock()
		}
	}
}

func (e *Engine) unlockAll(s *scratch) {
	for i, n := range s.lock {
		if i == 0 || n != s.lock[i-1] {
			e.shards[n].mu.Unlock()
		}
	}
}

// load fills s.recs and s.found from the maps and, for what is not there,
// from the backing. The shards are locked.
func (e *Engine) load(s *scratch) error {
	s.ask, s.asked, s.answered = [3][]byte{}, [3]Record{}, [3]bool{}
	missing := false
	for i, k := range s.keys {
		s.recs[i], s.found[i] = Record{}, false
		if sl, ok := e.shards[s.at[i]].slots[string(k)]; ok {
			s.recs[i], s.found[i] = sl.rec, !sl.gone
			continue
		}
		s.ask[i], missing = k, true
	}
	if !missing || e.backing == nil {
		return nil
	}
	if err := e.backing.Load(&s.ask, &s.asked, &s.answered); err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	for i := range s.ask {
		if s.ask[i] != nil {
			// That a key is not in the file is worth remembering too: the
			// pair of a triplet that has passed is asked for again and again.
			s.recs[i], s.found[i] = s.asked[i], s.answered[i]
			e.cache(&e.shards[s.at[i]], string(s.ask[i]), slot{rec: s.asked[i], gone: !s.answered[i]})
		}
	}
	return nil
}

// put stores a changed slot; grown is by how much the number of entries
// changes. The shard is locked.
func (e *Engine) put(at int, key []byte, sl slot, grown int64) {
	sh := &e.shards[at]
	e.entries.Add(grown)
	if e.backing == nil {
		if sl.gone {
			delete(sh.slots, string(key))
			return
		}
		if old := sh.slots[string(key)]; old != nil {
			*old = sl
			return
		}
		fresh := sl // only what is kept goes to the heap
		sh.slots[string(key)] = &fresh
		return
	}
	old := sh.slots[string(key)]
	if old == nil || old.state != dirty {
		sh.dirty++
		if old == nil || old.state == clean {
			e.pending.Add(1)
		}
	}
	sl.state = dirty
	if old != nil {
		*old = sl
		return
	}
	e.cache(sh, string(key), sl)
}

// cache adds a slot and, when the shard holds too many, drops a clean one.
func (e *Engine) cache(sh *shard, key string, sl slot) {
	if len(sh.slots) >= e.maxCache {
		tries := 0
		for k, old := range sh.slots { // the order of a map is random enough
			if old.state == clean {
				delete(sh.slots, k)
				break
			}
			if tries++; tries > 8 {
				break
			}
		}
	}
	fresh := sl // as in put
	sh.slots[key] = &fresh
}

// Change is one record to write, or to delete.
type Change struct {
	Key  string
	Rec  Record
	Gone bool
}

// TakeDirty returns all changes that wait to be written. Exactly one of
// Written or Failed must follow before the next TakeDirty.
func (e *Engine) TakeDirty() []Change {
	var out []Change
	for i := range e.shards {
		sh := &e.shards[i]
		sh.mu.Lock()
		if sh.dirty > 0 {
			for k, sl := range sh.slots {
				if sl.state == dirty {
					sl.state = flushing
					out = append(out, Change{k, sl.rec, sl.gone})
				}
			}
			sh.dirty = 0
		}
		sh.mu.Unlock()
	}
	return out
}

// Written tells that the changes of TakeDirty are in the backing.
func (e *Engine) Written(changes []Change) {
	for _, c := range changes {
		sh := &e.shards[e.shardOfString(c.Key)]
		sh.mu.Lock()
		if sl, ok := sh.slots[c.Key]; ok && sl.state == flushing {
			e.pending.Add(-1)
			sl.state = clean
			if sl.gone || len(sh.slots) > e.maxCache {
				delete(sh.slots, c.Key)
			}
		}
		sh.mu.Unlock()
	}
}

// Failed puts the changes of TakeDirty back, but for those that a newer
// change has overtaken.
func (e *Engine) Failed(changes []Change) {
	for _, c := range changes {
		sh := &e.shards[e.shardOfString(c.Key)]
		sh.mu.Lock()
		if sl, ok := sh.slots[c.Key]; ok && sl.state == flushing {
			sl.state = dirty
			sh.dirty++
		}
		sh.mu.Unlock()
	}
}

// Current returns the record that is now valid for a key read from the
// backing as rec, and whether there is one.
func (e *Engine) Current(key []byte, rec Record) (Record, bool) {
	sh := &e.shards[e.shardOf(key)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sl, ok := sh.slots[string(key)]; ok {
		return sl.rec, !sl.gone
	}
	return rec, true
}

// Delete removes a record if drop still says so of its present state. rec is
// what the backing holds. It reports whether it was removed.
func (e *Engine) Delete(key []byte, rec Record, drop func(Record) bool) bool {
	at := e.shardOf(key)
	sh := &e.shards[at]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sl := sh.slots[string(key)]; sl != nil {
		rec = sl.rec
		if sl.gone {
			return false
		}
	} else if e.backing == nil {
		return false
	}
	if !drop(rec) {
		return false
	}
	e.put(at, key, slot{gone: true}, -1)
	return true
}

// Range calls yield for a copy of each record in the maps until it returns
// false. It holds one shard's lock while it copies, none while it yields.
func (e *Engine) Range(ctx context.Context, yield func(key string, rec Record) bool) error {
	type pair struct {
		key string
		rec Record
	}
	var batch []pair
	for i := range e.shards {
		if err := ctx.Err(); err != nil {
			return err
		}
		batch = batch[:0]
		sh := &e.shards[i]
		sh.mu.Lock()
		for k, sl := range sh.slots {
			if !sl.gone {
				batch = append(batch, pair{k, sl.rec})
			}
		}
		sh.mu.Unlock()
		for _, p := range batch {
			if !yield(p.key, p.rec) {
				return nil
			}
		}
	}
	return nil
}

// SweepShard drops the expired records of one shard of an engine without a
// backing, and returns how many. Call it for growing n.
func (e *Engine) SweepShard(n int, now time.Time) int {
	sh := &e.shards[n%shardCount]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	dropped := 0
	ms := now.UnixMilli()
	for k, sl := range sh.slots {
		if sl.rec.Expires < ms {
			delete(sh.slots, k)
			dropped++
		}
	}
	e.entries.Add(int64(-dropped))
	return dropped
}

// Entry returns the administrator's view of a record, and whether it is still
// of use at now.
func Entry(key string, rec Record, now time.Time) (greylist.Entry, bool) {
	en, ok := store.SplitKey(key)
	if !ok || rec.Expires-slack.Milliseconds() < now.UnixMilli() {
		return en, false
	}
	switch key[0] {
	case store.TripletKey:
		en.First, en.Last = time.UnixMilli(rec.A), time.UnixMilli(rec.B)
		en.Attempts, en.Passes = int(rec.X), int(rec.Y)
	case store.ClientKey:
		en.Last, en.Passes = time.UnixMilli(rec.A), int(rec.X)
	case store.PairKey:
		en.First, en.Last = time.UnixMilli(rec.A), time.UnixMilli(rec.B)
	}
	return en, true
}

// SortKey orders changes for a write.
func SortKey(a, b Change) int { return strings.Compare(a.Key, b.Key) }
