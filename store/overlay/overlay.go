// Package overlay keeps greylist records in sharded tables, alone (store/mem)
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

// Backing is the file behind the tables.
type Backing interface {
	// Load reads the records of the keys that are not nil, all from one
	// moment. found tells which were there. Keys are only valid during the call.
	Load(keys *[3][]byte, recs *[3]Record, found *[3]bool) error
}

// Clients have shards of their own, behind those of triplets and pairs.
const (
	clientShards = 64
	shardCount   = 2 * clientShards
)

// Engine is the set of tables. It is safe for concurrent use.
type Engine struct {
	shards  [shardCount]shard
	seeds   [2]maphash.Seed
	backing Backing // nil: the tables are all there is

	maxEntries int
	maxDirty   int // more unwritten changes than this: no new entries

	entries atomic.Int64
	pending atomic.Int64 // dirty cells and those being flushed

	// stored tells which keys are surely not in the backing. next is being
	// filled, and takes the place of stored when that is done.
	stored, next atomic.Pointer[filter]
	refs         []ref // memory of TakeDirty
}

// Options of an Engine.
type Options struct {
	MaxEntries int
	Backing    Backing
	MaxDirty   int // with a backing
	CacheSize  int // with a backing: records kept in memory, in all
	Entries    int // how many the backing holds now
}

// New returns an engine.
func New(o Options) *Engine {
	e := &Engine{
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, backing: o.Backing,
		maxEntries: o.MaxEntries, maxDirty: o.MaxDirty,
	}
	for i := range e.shards {
		e.shards[i].init(o.CacheSize/clientShards, o.Backing == nil)
	}
	e.entries.Store(int64(o.Entries))
	return e
}

// Entries returns how many records there are.
func (e *Engine) Entries() int { return int(e.entries.Load()) }

// Pending returns how many changes have not been written.
func (e *Engine) Pending() int { return int(e.pending.Load()) }

// digest stands for a key. Two keys of a store have the same one about as
// often as a machine's memory errs: with five million of them, the odds are
// one in 10^25. The seeds are the process's own, so that nobody can look for
// such keys.
type digest struct{ a, b uint64 }

func (e *Engine) digest(key []byte) digest {
	d := digest{maphash.Bytes(e.seeds[0], key), maphash.Bytes(e.seeds[1], key)}
	d.a &^= clientShards
	if len(key) > 0 && key[0] == store.ClientKey {
		d.a |= clientShards
	}
	return d
}

// shard returns the number of the shard in which a key is.
func (d digest) shard() int { return int(d.a % shardCount) }

// scratch is what one Touch works in.
type scratch struct {
	buf   []byte
	keys  [3][]byte // triplet, client, pair
	sums  [3]digest
	recs  [3]Record
	found [3]bool

	before   [3]Record
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
		s.sums[i] = e.digest(k)
	}
	return e.touch(c, s)
}

// The places of a contact's records in a scratch.
const (
	tripletAt = iota
	clientAt
	pairAt
)

// touch locks the shards of the triplet and the pair, then that of the client:
// many contacts of a moment are of one client, so that its shard is locked
// last and released first.
func (e *Engine) touch(c *greylist.Contact, s *scratch) (greylist.Outcome, error) {
	low, high := &e.shards[s.sums[tripletAt].shard()], &e.shards[s.sums[pairAt].shard()]
	if s.sums[tripletAt].shard() > s.sums[pairAt].shard() {
		low, high = high, low
	}
	low.mu.Lock()
	defer low.mu.Unlock()
	if high != low {
		high.mu.Lock()
		defer high.mu.Unlock()
	}
	missing := e.find(s, tripletAt, 0)
	missing = e.find(s, pairAt, missing)

	out, grown, changed, err := e.advance(c, s, missing)
	if err == nil && !c.DryRun {
		for _, i := range [...]int{tripletAt, pairAt} {
			g, ch := e.update(s, i)
			grown, changed = grown+g, changed+ch
		}
	}
	if grown != 0 {
		e.entries.Add(grown)
	}
	if changed != 0 {
		e.pending.Add(changed)
	}
	return out, err
}

// advance does what needs the client's shard: it looks for the records that
// are missing, applies the rule, and updates the client.
func (e *Engine) advance(c *greylist.Contact, s *scratch, missing int) (out greylist.Outcome, grown, changed int64, err error) {
	sh := &e.shards[s.sums[clientAt].shard()]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if missing = e.find(s, clientAt, missing); missing != 0 {
		if err := e.load(s, missing); err != nil {
			return out, 0, 0, err
		}
	}
	s.before = s.recs
	t, cl, p := &s.recs[tripletAt], &s.recs[clientAt], &s.recs[pairAt]
	triplet := greylist.Triplet{First: t.A, Last: t.B, Attempts: t.X, Passes: t.Y}
	client := greylist.Client{Last: cl.A, Counted: cl.B, Passes: cl.X}
	pair := greylist.Pair{First: p.A, Last: p.B}
	out = greylist.Advance(c, &triplet, &client, &pair)
	if c.DryRun {
		return out, 0, 0, nil
	}
	if !s.found[tripletAt] && triplet.First != 0 {
		if n := e.Entries(); n >= e.maxEntries {
			return greylist.Outcome{}, 0, 0, fmt.Errorf("%w: %d entries", store.ErrFull, n)
		}
		if n := e.Pending(); e.backing != nil && n >= e.maxDirty {
			return greylist.Outcome{}, 0, 0, fmt.Errorf("%w: %d changes wait to be written", store.ErrUnavailable, n)
		}
	}
	window, keep := (c.Rule.Window + slack).Milliseconds(), (c.Rule.Keep + slack).Milliseconds()
	*t = Record{A: triplet.First, B: triplet.Last, X: triplet.Attempts, Y: triplet.Passes, Expires: triplet.First + window}
	if triplet.Passes > 0 {
		t.Expires = triplet.Last + keep
	}
	*cl = Record{A: client.Last, B: client.Counted, X: client.Passes, Expires: client.Last + keep}
	*p = Record{A: pair.First, B: pair.Last, Expires: pair.Last + window}
	grown, changed = e.update(s, clientAt)
	return out, grown, changed, nil
}

// update puts record i of a contact back if it has changed. It returns by how
// much the numbers of entries and of changes to write have grown.
func (e *Engine) update(s *scratch, i int) (grown, changed int64) {
	present := s.recs[i].A != 0
	switch {
	case !present && s.found[i]:
		return -1, e.put(s.sums[i], s.keys[i], Record{}, true)
	case present && !s.found[i]:
		return 1, e.put(s.sums[i], s.keys[i], s.recs[i], false)
	case present && s.recs[i] != s.before[i]:
		return 0, e.put(s.sums[i], s.keys[i], s.recs[i], false)
	}
	return 0, 0
}

// find fills in record i of a contact, whose shard is locked, from the tables.
// It returns missing with bit i set when the backing has to be asked.
func (e *Engine) find(s *scratch, i, missing int) int {
	d := s.sums[i]
	if c := e.shards[d.shard()].find(d); c != nil {
		s.recs[i], s.found[i] = c.rec, !c.gone
		return missing
	}
	s.recs[i], s.found[i] = Record{}, false
	if e.backing != nil {
		if f := e.stored.Load(); f == nil || f.holds(d) {
			missing |= 1 << i
		}
	}
	return missing
}

// load fills in the records that are missing from the backing. All shards are
// locked.
func (e *Engine) load(s *scratch, missing int) error {
	s.ask, s.asked, s.answered = [3][]byte{}, [3]Record{}, [3]bool{}
	for i, k := range s.keys {
		if missing&(1<<i) != 0 {
			s.ask[i] = k
		}
	}
	if err := e.backing.Load(&s.ask, &s.asked, &s.answered); err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	for i, d := range s.sums {
		if s.ask[i] != nil {
			// That a key is not in the file is worth remembering too: the
			// pair of a triplet that has passed is asked for again and again.
			s.recs[i], s.found[i] = s.asked[i], s.answered[i]
			*e.shards[d.shard()].insert(d, nil) = cell{key: d, rec: s.asked[i], gone: !s.answered[i], used: true}
		}
	}
	return nil
}

// put stores a changed record, or that it is gone, and returns how many more
// changes there are to write. The shard is locked.
func (e *Engine) put(d digest, key []byte, rec Record, gone bool) int64 {
	sh := &e.shards[d.shard()]
	c := sh.find(d)
	if e.backing == nil {
		switch {
		case gone && c != nil:
			sh.remove(c)
		case !gone && c != nil:
			c.rec = rec
		case !gone:
			sh.insert(d, key).rec = rec
		}
		return 0
	}
	if c == nil {
		c = sh.insert(d, nil)
	}
	c.rec, c.gone = rec, gone
	if sh.change(c, key) {
		return 1
	}
	return 0
}

// Change is one record to write, or to delete.
type Change struct {
	Key  []byte
	Rec  Record
	Gone bool
}

// Changes are what a flush has to write.
type Changes struct {
	engine *Engine
	refs   []ref
}

// Len returns how many there are.
func (c Changes) Len() int { return len(c.refs) }

// At returns change i; they are in the order of their keys, which are not to
// be changed.
func (c Changes) At(i int) Change {
	b, ch := c.engine.change(&c.refs[i])
	return Change{b.key(ch), ch.rec, ch.gone}
}

// TakeDirty returns all changes that wait to be written. One of Written or
// Failed must follow before the next TakeDirty; they are valid until then.
func (e *Engine) TakeDirty() Changes {
	refs := e.refs[:0]
	for i := range e.shards {
		sh := &e.shards[i]
		sh.mu.Lock()
		b := sh.take()
		sh.mu.Unlock()
		for j := range b.changes {
			refs = append(refs, ref{shard: uint32(i), at: uint32(j)})
		}
	}
	e.refs = refs
	if cap(refs) > 1<<20 && cap(refs) > 8*len(refs) {
		e.refs = nil // 16 MB left by a burst
	}
	e.sort(refs, 0)
	return Changes{e, refs}
}

// Written tells that what TakeDirty returned is in the backing.
func (e *Engine) Written() {
	// First the filters: what is clean below may be dropped from memory.
	for _, f := range []*filter{e.stored.Load(), e.next.Load()} {
		if f == nil {
			continue
		}
		for i := range e.shards {
			changes := e.shards[i].before.changes
			for j := range changes {
				if !changes[j].gone {
					f.add(changes[j].sum)
				}
			}
		}
	}
	for i := range e.shards {
		sh := &e.shards[i]
		sh.mu.Lock()
		e.pending.Add(-int64(sh.written()))
		sh.mu.Unlock()
	}
}

// Failed puts what TakeDirty returned back, but for what a newer change has
// overtaken.
func (e *Engine) Failed() {
	for i := range e.shards {
		sh := &e.shards[i]
		sh.mu.Lock()
		sh.failed()
		sh.mu.Unlock()
	}
}

// FillFilter begins to tell the engine what is in the backing, so that it need
// not look there for what is not: each calls add for every key, which it need
// not keep. Until each has come to its end without an error the engine looks.
// Keys written meanwhile need not be told. One such call is made at a time.
func (e *Engine) FillFilter(each func(add func(key []byte)) error) error {
	f := newFilter(4 * e.Entries()) // a filling costs a walk through the file
	e.next.Store(f)
	defer e.next.Store(nil)
	if err := each(func(key []byte) { f.add(e.digest(key)) }); err != nil {
		return err
	}
	e.stored.Store(f)
	return nil
}

// FilterFull reports whether it is time for FillFilter: there is no filter, or
// it has taken more keys than it was made for.
func (e *Engine) FilterFull() bool {
	f := e.stored.Load()
	return f == nil || f.full()
}

// Current returns the record that is now valid for a key read from the
// backing as rec, and whether there is one.
func (e *Engine) Current(key []byte, rec Record) (Record, bool) {
	d := e.digest(key)
	sh := &e.shards[d.shard()]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if c := sh.find(d); c != nil {
		return c.rec, !c.gone
	}
	return rec, true
}

// Delete removes a record if drop still says so of its present state. rec is
// what the backing holds. It reports whether it was removed.
func (e *Engine) Delete(key []byte, rec Record, drop func(Record) bool) bool {
	d := e.digest(key)
	sh := &e.shards[d.shard()]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if c := sh.find(d); c != nil {
		rec = c.rec
		if c.gone {
			return false
		}
	} else if e.backing == nil {
		return false
	}
	if !drop(rec) {
		return false
	}
	e.entries.Add(-1)
	e.pending.Add(e.put(d, key, Record{}, true))
	return true
}

// Range calls yield for a copy of each record of an engine without a backing
// until it returns false. It holds one shard's lock while it copies, none while it yields.
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
		for j := range sh.cells {
			if c := &sh.cells[j]; c.used && !c.gone {
				batch = append(batch, pair{sh.names[j], c.rec})
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
	for i := 0; i < len(sh.cells); {
		if c := &sh.cells[i]; c.used && c.rec.Expires < ms {
			sh.remove(c) // another may take its place
			dropped++
			continue
		}
		i++
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
