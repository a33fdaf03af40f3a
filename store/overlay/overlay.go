// Package overlay keeps greylisting's records in sharded tables, alone
// (store/mem) or in front of a file that takes changes in batches (store/bolt).
//
// A record is read, changed and put back under the lock of its shard, so each
// contact is atomic. Changed records are dirty until a flush has written them;
// unchanged ones are a bounded cache when there is a file behind. Those who
// wait for their first pass are all in memory, in a bounded room (package
// waiting); the file only brings them back after a restart.
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
	"postern/store/waiting"
)

// Record is the stored form of a triplet that has passed or of a credit. The
// meaning of the fields goes with the kind of the key.
type Record struct {
	A, B, C int64  // triplet: First, Last, -; credit: First, Last, Counted
	X, Y    uint32 // triplet: Attempts, Passes; credit: Passes, -
	Expires int64  // Unix milliseconds after which the record may be dropped
}

func (r Record) triplet() greylist.Triplet {
	return greylist.Triplet{First: r.A, Last: r.B, Attempts: r.X, Passes: r.Y}
}

func (r Record) credit() greylist.Credit {
	return greylist.Credit{First: r.A, Last: r.B, Counted: r.C, Passes: r.X}
}

// Backing is the file behind the tables.
type Backing interface {
	// Load returns the record of a key, which is only valid during the call.
	Load(key []byte) (rec Record, found bool, err error)
}

// Triplets and those who wait are in the shard of their correspondence.
// Credits have shards of their own.
const (
	pairShards = 64
	shardCount = 2 * pairShards
)

// Engine is the set of tables. It is safe for concurrent use.
type Engine struct {
	shards  [shardCount]shard
	room    room
	seeds   [2]maphash.Seed
	backing Backing // nil: the tables are all there is

	maxEntries int
	maxWaiting int
	maxDirty   int // more unwritten changes than this: no new records

	entries atomic.Int64
	pending atomic.Int64  // dirty cells and those being flushed
	refused atomic.Uint64 // passes that could not be remembered

	// stored tells which keys are surely not in the backing. next is being
	// filled, and takes the place of stored when that is done.
	stored, next atomic.Pointer[filter]
	refs         []ref // memory of TakeDirty
}

// Options of an Engine.
type Options struct {
	MaxEntries int
	MaxWaiting int // correspondences that wait
	Backing    Backing
	MaxDirty   int // with a backing
	CacheSize  int // with a backing: records kept in memory, in all
	Entries    int // how many the backing holds now
}

// New returns an engine.
func New(o Options) *Engine {
	e := &Engine{
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, backing: o.Backing,
		maxEntries: o.MaxEntries, maxWaiting: o.MaxWaiting, maxDirty: o.MaxDirty,
	}
	for i := range e.shards {
		e.shards[i].init(o.CacheSize/pairShards, o.Backing == nil)
	}
	e.room.table = waiting.New(o.MaxWaiting)
	e.entries.Store(int64(o.Entries))
	return e
}

// Entries returns how many records there are, those who wait left out.
func (e *Engine) Entries() int { return int(e.entries.Load()) }

// Pending returns how many changes have not been written.
func (e *Engine) Pending() int { return int(e.pending.Load()) }

// Refused returns how many passes could not be remembered for want of room.
func (e *Engine) Refused() uint64 { return e.refused.Load() }

// digest stands for a key. Two keys of a store have the same one about as
// often as a machine's memory errs: with five million of them, the odds are
// one in 10^25. The seeds are the process's own, so that nobody can look for
// such keys.
type digest struct{ a, b uint64 }

func (e *Engine) digest(key []byte) digest {
	return digest{maphash.Bytes(e.seeds[0], key), maphash.Bytes(e.seeds[1], key)}
}

// scratch is what one contact works in.
type scratch struct {
	buf              []byte
	triplet, credit  []byte // keys
	pair, tsum, csum digest
	label            int // where sender and recipient begin in the triplet's key
}

var scratches = sync.Pool{New: func() any { return &scratch{buf: make([]byte, 0, 1024)} }}

// begin makes the keys of a contact.
func (e *Engine) begin(c *greylist.Contact) *scratch {
	s := scratches.Get().(*scratch)
	b := store.AppendKey(s.buf[:0], store.TripletKey, c.Match)
	s.label = len(b)
	b = store.AppendParts(b, c.Sender, c.Recipient)
	t := len(b)
	if c.Credit != "" {
		b = store.AppendKey(b, store.CreditKey, c.Credit)
	}
	s.buf = b
	s.triplet, s.credit = b[:t:t], b[t:]
	s.tsum, s.pair = e.digest(s.triplet), e.digest(s.triplet[s.label:])
	if c.Credit != "" {
		s.csum = e.digest(s.credit)
	}
	return s
}

// slack is how much longer than its use a record is kept: its expiry is
// garbage collection, never the rule.
const slack = time.Hour

// pairShard returns the shard of a correspondence.
func (e *Engine) pairShard(pair digest) *shard { return &e.shards[pair.a%pairShards] }

func (d digest) key() waiting.Key { return waiting.Key{A: d.a, B: d.b} }

// Touch implements greylist.Store.
func (e *Engine) Touch(c *greylist.Contact) (greylist.Outcome, error) {
	s := e.begin(c)
	defer scratches.Put(s)
	sh := e.pairShard(s.pair)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	rec, found, err := e.get(sh, s.tsum, s.triplet)
	if err != nil {
		return greylist.Outcome{}, err
	}
	t := rec.triplet()
	if out, known, count := greylist.Known(c, &t); known {
		if !c.DryRun {
			e.putTriplet(sh, s, c, &t, true)
		}
		if count {
			out.Passes, err = e.countPass(c, s)
		}
		return out, err
	}
	return e.stranger(c, s, sh, &t, rec, found)
}

// stranger judges a triplet that has not passed: by its credit, or among those
// who wait. rec is what was found of it.
func (e *Engine) stranger(c *greylist.Contact, s *scratch, sh *shard, t *greylist.Triplet, rec Record, found bool) (greylist.Outcome, error) {
	var cr greylist.Credit
	var before Record
	var credits *shard
	var had bool
	if c.Earns() {
		credits = e.creditShard(s.csum)
		credits.mu.Lock()
		defer credits.mu.Unlock()
		var err error
		if before, had, err = e.get(credits, s.csum, s.credit); err != nil {
			return greylist.Outcome{}, err
		}
		cr = before.credit()
		if out, known := greylist.Credited(c, &cr); known {
			if !c.DryRun {
				e.putCredit(credits, s, c, &cr, before, had)
			}
			return out, nil
		}
	}
	w, waits := e.room.find(s.pair)
	if !waits && found && rec.Y == 0 && rec.A != 0 {
		// Written by an earlier version, which kept who waits here.
		w = greylist.Waiting{Since: rec.A, Last: rec.B, Side: greylist.Side{Match: c.Match, First: rec.A, Last: rec.B, Attempts: rec.X}}
	}
	out := greylist.Wait(c, t, &cr, &w)
	if c.Held(&out) {
		return out, nil
	}
	if c.Earns() {
		e.putCredit(credits, s, c, &cr, before, had)
	}
	if !out.State.Delays() {
		e.putTriplet(sh, s, c, t, found)
	} else if found && rec.A != 0 {
		e.put(sh, s.tsum, s.triplet, Record{}, true, true)
	}
	e.room.put(s.pair, &w, c, s.triplet[s.label:])
	return out, nil
}

func (e *Engine) creditShard(sum digest) *shard { return &e.shards[pairShards+sum.a%pairShards] }

// countPass counts a pass of a known triplet for its credit.
func (e *Engine) countPass(c *greylist.Contact, s *scratch) (passes int, err error) {
	sh := e.creditShard(s.csum)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	rec, found, err := e.get(sh, s.csum, s.credit)
	if err != nil {
		return 0, err
	}
	cr := rec.credit()
	greylist.CountPass(c, &cr)
	if !c.DryRun {
		e.putCredit(sh, s, c, &cr, rec, found)
	}
	return int(cr.Passes), nil
}

// get returns the record of a key. The shard is locked. That a key is not in
// the backing is worth remembering too.
func (e *Engine) get(sh *shard, sum digest, key []byte) (rec Record, found bool, err error) {
	if c := sh.find(sum); c != nil {
		return c.rec, !c.gone, nil
	}
	if e.backing == nil {
		return Record{}, false, nil
	}
	if f := e.stored.Load(); f != nil && !f.holds(sum) {
		return Record{}, false, nil
	}
	if rec, found, err = e.backing.Load(key); err != nil {
		return Record{}, false, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	c := sh.insert(sum, nil)
	c.rec, c.gone = rec, !found
	return rec, found, nil
}

func (e *Engine) putTriplet(sh *shard, s *scratch, c *greylist.Contact, t *greylist.Triplet, found bool) {
	e.put(sh, s.tsum, s.triplet, Record{A: t.First, B: t.Last, X: t.Attempts, Y: t.Passes, Expires: t.Last + (c.Rule.Keep + slack).Milliseconds()}, found, false)
}

func (e *Engine) putCredit(sh *shard, s *scratch, c *greylist.Contact, cr *greylist.Credit, before Record, found bool) {
	if cr.First == 0 {
		if found && before.A != 0 {
			e.put(sh, s.csum, s.credit, Record{}, true, true)
		}
		return
	}
	rec := Record{A: cr.First, B: cr.Last, C: cr.Counted, X: cr.Passes, Expires: cr.Last + (c.Rule.Keep + slack).Milliseconds()}
	if rec != before || !found {
		e.put(sh, s.csum, s.credit, rec, found, false)
	}
}

// full reports whether no new record is taken.
func (e *Engine) full() bool {
	return e.Entries() >= e.maxEntries || e.backing != nil && e.Pending() >= e.maxDirty
}

// put stores a changed record, or with gone that it is not there any more. The
// shard is locked. A new record for which there is no room is left out.
func (e *Engine) put(sh *shard, sum digest, key []byte, rec Record, found, gone bool) {
	c := sh.find(sum)
	if !found && !gone {
		if e.full() {
			e.refused.Add(1)
			return
		}
		e.entries.Add(1)
	}
	if found && gone {
		e.entries.Add(-1)
	}
	if e.backing == nil {
		switch {
		case gone && c != nil:
			sh.remove(c)
		case !gone && c != nil:
			c.rec = rec
		case !gone:
			sh.insert(sum, key).rec = rec
		}
		return
	}
	if c == nil {
		c = sh.insert(sum, nil)
	}
	c.rec, c.gone = rec, gone
	if sh.change(c, key) {
		e.pending.Add(1)
	}
}

// FilterFull reports whether it is time for FillFilter: there is no filter, or
// it has taken more keys than it was made for.
func (e *Engine) FilterFull() bool {
	f := e.stored.Load()
	return f == nil || f.full()
}

// locate returns the digest of a key and its shard; nil for a key that is none.
func (e *Engine) locate(key []byte) (sum digest, sh *shard) {
	en, ok := store.SplitKey(string(key))
	if !ok {
		return sum, nil
	}
	sum = e.digest(key)
	if key[0] == store.TripletKey {
		pair := e.digest(store.AppendParts(nil, en.Sender, en.Recipient))
		return sum, e.pairShard(pair)
	}
	return sum, e.creditShard(sum)
}

// Current returns the record that is now valid under a key that has been read
// from the backing as rec. ok is false when there is none any more.
func (e *Engine) Current(key string, rec Record) (now Record, ok bool) {
	sum, sh := e.locate([]byte(key))
	if sh == nil {
		return rec, false
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if c := sh.find(sum); c != nil {
		return c.rec, !c.gone
	}
	return rec, true
}

// Delete removes the record of a key if drop says so of its present state. It
// reports whether there was one and it was removed.
func (e *Engine) Delete(key string, drop func(Record) bool) (bool, error) {
	k := []byte(key)
	sum, sh := e.locate(k)
	if sh == nil {
		return false, nil
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	rec, found, err := e.get(sh, sum, k)
	if err != nil || !found || !drop(rec) {
		return false, err
	}
	e.put(sh, sum, k, Record{}, true, true)
	return true, nil
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
	en.First, en.Last = time.UnixMilli(rec.A), time.UnixMilli(rec.B)
	if key[0] == store.TripletKey {
		en.Attempts, en.Passes = int(rec.X), int(rec.Y)
		return en, rec.Y > 0
	}
	en.Passes = int(rec.X)
	if rec.C != 0 {
		en.Counted = time.UnixMilli(rec.C)
	}
	return en, true
}
