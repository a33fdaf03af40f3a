// Package overlay keeps greylist records in sharded tables, alone (store/mem)
// or in front of a file that takes changes in batches (store/bolt).
//
// A record is read, changed and put back under the locks of its shards, so
// each contact is atomic. Changed records are dirty until a flush has written
// them; unchanged ones are a bounded cache when there is a file behind.
//
// Most triplets are never seen again: who sends it does not come back. Such a
// triplet and its pair say the same, so that with a file behind they are one
// record, a joint one, until one of them changes without the other.
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

// Stored is a record as a backing holds it. Who is set in a joint record: it
// stands under the key of a pair, with the Attempts of the only triplet that
// the pair has, which is of that client, has not passed, and has the same First
// and Last.
type Stored struct {
	Record
	Who string
}

// Query asks a backing for records.
type Query struct {
	Keys  [3][]byte // those that are not nil; only valid during the call
	Recs  [3]Stored
	Found [3]bool
}

// Backing is the file behind the tables.
type Backing interface {
	// Load answers a query, with records that are all from one moment.
	Load(q *Query) error
}

// A triplet is in the shard of its pair. Clients have shards of their own.
const (
	pairShards = 64
	shardCount = 2 * pairShards
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
		e.shards[i].init(o.CacheSize/pairShards, o.Backing == nil)
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
	return digest{maphash.Bytes(e.seeds[0], key), maphash.Bytes(e.seeds[1], key)}
}

// pairShard returns the shard of a pair, in which its triplets are too.
func (e *Engine) pairShard(pair digest) *shard { return &e.shards[pair.a%pairShards] }

func (e *Engine) clientShard(client digest) *shard { return &e.shards[pairShards+client.a%pairShards] }

// who returns what a joint record knows its triplet by in memory.
func (triplet digest) who() uint64 { return triplet.b | 1 }

// scratch is what one operation on the records of a contact works in.
type scratch struct {
	buf   []byte
	keys  [3][]byte // triplet, client, pair
	sums  [3]digest
	recs  [3]Record
	found [3]bool

	before [3]Record
	query  Query

	// joint is set when the pair's record is a joint one with this triplet,
	// other when it is one with another triplet, that of otherWho.
	joint, other bool
	together     Record // the joint record
	otherWho     string
}

// The places of a contact's records in a scratch.
const (
	tripletAt = iota
	clientAt
	pairAt
)

var scratches = sync.Pool{New: func() any { return &scratch{buf: make([]byte, 0, 1024)} }}

// begin makes the keys of a contact.
func (e *Engine) begin(who, sender, recipient string) *scratch {
	s := scratches.Get().(*scratch)
	b := store.AppendKey(s.buf[:0], store.TripletKey, who, sender, recipient)
	t := len(b)
	b = store.AppendKey(b, store.ClientKey, who)
	cl := len(b)
	b = store.AppendKey(b, store.PairKey, sender, recipient)
	s.buf = b
	s.keys = [3][]byte{b[:t], b[t:cl], b[cl:]}
	for i, k := range s.keys {
		s.sums[i] = e.digest(k)
	}
	s.joint, s.other, s.otherWho = false, false, ""
	return s
}

// slack is how much longer than its use a record is kept: its expiry is
// garbage collection, never the rule.
const slack = time.Hour

// Touch implements greylist.Store.
func (e *Engine) Touch(c *greylist.Contact) (greylist.Outcome, error) {
	s := e.begin(c.Who, c.Sender, c.Recipient)
	defer scratches.Put(s)
	sh := e.pairShard(s.sums[pairAt])
	sh.mu.Lock()
	defer sh.mu.Unlock()
	missing := e.findPair(sh, s, !c.DryRun)
	out, grown, changed, err := e.advance(c, s, missing)
	if err == nil && !c.DryRun {
		g, ch := e.updatePair(sh, s, c)
		grown, changed = grown+g, changed+ch
	}
	e.count(grown, changed)
	return out, err
}

func (e *Engine) count(grown, changed int64) {
	if grown != 0 {
		e.entries.Add(grown)
	}
	if changed != 0 {
		e.pending.Add(changed)
	}
}

// findPair looks for the records of the pair and the triplet in the tables.
// It returns which have to be asked for, as bits. write is set when they may be
// written: who shares a joint record with the pair must be known then.
func (e *Engine) findPair(sh *shard, s *scratch, write bool) (missing int) {
	s.recs[tripletAt], s.found[tripletAt] = Record{}, false
	s.recs[pairAt], s.found[pairAt] = Record{}, false
	switch c := sh.find(s.sums[pairAt]); {
	case c == nil:
		missing = e.ask(s, pairAt)
	case c.who != 0:
		s.split(c.rec, c.who)
		if s.other && write {
			if s.otherWho = sh.whoOf(c); s.otherWho == "" {
				missing = 1 << pairAt // the backing knows
			}
		}
	default:
		s.recs[pairAt], s.found[pairAt] = c.rec, !c.gone
	}
	if !s.joint {
		missing |= e.find(sh, s, tripletAt)
	}
	return missing
}

// split takes the pair, and the triplet if it is this one, out of a joint record.
func (s *scratch) split(rec Record, who uint64) {
	s.together = rec
	s.recs[pairAt], s.found[pairAt] = pairOf(rec), true
	if s.joint = who == s.sums[tripletAt].who(); s.joint {
		s.recs[tripletAt], s.found[tripletAt] = tripletOf(rec), true
	}
	s.other = !s.joint
}

// pairOf and tripletOf return the parts of a joint record.
func pairOf(rec Record) Record { return Record{A: rec.A, B: rec.B, Expires: rec.Expires} }

func tripletOf(rec Record) Record {
	// Both are kept for the same time, the pair from Last on.
	return Record{A: rec.A, B: rec.B, X: rec.X, Expires: rec.Expires - rec.B + rec.A}
}

// find looks for record i in the tables. It returns bit i when the backing has
// to be asked.
func (e *Engine) find(sh *shard, s *scratch, i int) (missing int) {
	if c := sh.find(s.sums[i]); c != nil {
		s.recs[i], s.found[i] = c.rec, !c.gone
		return 0
	}
	s.recs[i], s.found[i] = Record{}, false
	return e.ask(s, i)
}

// ask returns bit i if the backing may hold key i.
func (e *Engine) ask(s *scratch, i int) int {
	if e.backing == nil {
		return 0
	}
	if f := e.stored.Load(); f != nil && !f.holds(s.sums[i]) {
		return 0
	}
	return 1 << i
}

// load gets the records that are missing from the backing. That a key is not
// there is worth remembering too: the pair of a triplet that has passed is
// asked for again and again. The shards are locked.
func (e *Engine) load(s *scratch, missing int) error {
	s.query = Query{}
	for i, k := range s.keys {
		if missing&(1<<i) != 0 {
			s.query.Keys[i] = k
		}
	}
	if err := e.backing.Load(&s.query); err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	if missing&(1<<pairAt) != 0 {
		e.loadedPair(s)
	}
	for _, i := range [...]int{tripletAt, clientAt} {
		if missing&(1<<i) == 0 || i == tripletAt && s.joint {
			continue
		}
		sh := e.pairShard(s.sums[pairAt])
		if i == clientAt {
			sh = e.clientShard(s.sums[i])
		}
		s.recs[i], s.found[i] = s.query.Recs[i].Record, s.query.Found[i]
		c := sh.insert(s.sums[i], nil)
		c.rec, c.gone = s.recs[i], !s.found[i]
	}
	return nil
}

// loadedPair takes over what the backing said of the pair.
func (e *Engine) loadedPair(s *scratch) {
	rec, found := s.query.Recs[pairAt], s.query.Found[pairAt]
	if s.other { // in the tables; only the name of the client was wanted
		s.otherWho = rec.Who
		return
	}
	c := e.pairShard(s.sums[pairAt]).insert(s.sums[pairAt], nil)
	c.rec, c.gone = rec.Record, !found
	if rec.Who == "" {
		s.recs[pairAt], s.found[pairAt] = rec.Record, found
		return
	}
	c.who = e.tripletBeside(s.keys[pairAt], rec.Who).who()
	if s.split(rec.Record, c.who); s.other {
		s.otherWho = rec.Who
	}
}

// tripletBeside returns the digest of the triplet of a pair and a client.
func (e *Engine) tripletBeside(pair []byte, who string) digest {
	var buf [256]byte
	return e.digest(tripletKey(buf[:0], pair, who))
}

// TripletKey returns the key of the triplet of a joint record.
func TripletKey(pair []byte, who string) []byte { return tripletKey(nil, pair, who) }

// tripletKey appends the key of the triplet of a pair, whose key is given, and
// a client.
func tripletKey(b, pair []byte, who string) []byte {
	return append(store.AppendKey(b, store.TripletKey, who), pair[1:]...)
}

// advance does what needs the client's shard, which is locked for no longer:
// many contacts of a moment are of one client. It gets the records that are
// missing, applies the rule, and updates the client.
func (e *Engine) advance(c *greylist.Contact, s *scratch, missing int) (out greylist.Outcome, grown, changed int64, err error) {
	sh := e.clientShard(s.sums[clientAt])
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if missing |= e.find(sh, s, clientAt); missing != 0 {
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
	grown, changed = e.update(sh, s, clientAt)
	return out, grown, changed, nil
}

// maxWho is the longest name of a client in a joint record: what a key holds
// of a longer one cannot be told from a name.
const maxWho = 255

// updatePair puts the pair and the triplet of a contact back. It returns by how
// much the numbers of entries and of changes to write have grown.
func (e *Engine) updatePair(sh *shard, s *scratch, c *greylist.Contact) (grown, changed int64) {
	t, p := &s.recs[tripletAt], &s.recs[pairAt]
	alike := t.A != 0 && t.Y == 0 && p.A == t.A && p.B == t.B
	nameable := e.backing != nil && c.Who != "" && len(c.Who) <= maxWho
	if alike && nameable && (s.joint || !s.found[tripletAt] && !s.found[pairAt]) {
		together := Record{A: p.A, B: p.B, X: t.X, Expires: p.Expires}
		if s.joint {
			if together == s.together {
				return 0, 0
			}
		} else {
			grown = 2
		}
		return grown, e.put(sh, s.sums[pairAt], s.keys[pairAt], value{rec: together, joint: true, who: c.Who, triplet: s.sums[tripletAt]})
	}
	if s.joint || s.other && (p.A == 0 || *p != s.before[pairAt]) {
		changed = e.part(sh, s)
	}
	for _, i := range [...]int{tripletAt, pairAt} {
		g, ch := e.update(sh, s, i)
		grown, changed = grown+g, changed+ch
	}
	return grown, changed
}

// part makes the parts of a joint record records of their own.
func (e *Engine) part(sh *shard, s *scratch) (changed int64) {
	key, sum := s.keys[tripletAt], s.sums[tripletAt]
	if s.other {
		key = tripletKey(nil, s.keys[pairAt], s.otherWho)
		sum = e.digest(key)
	}
	changed = e.put(sh, sum, key, value{rec: tripletOf(s.together)})
	changed += e.put(sh, s.sums[pairAt], s.keys[pairAt], value{rec: pairOf(s.together)})
	s.joint, s.other = false, false
	return changed
}

// update puts record i of a contact back if it has changed.
func (e *Engine) update(sh *shard, s *scratch, i int) (grown, changed int64) {
	present := s.recs[i].A != 0
	switch {
	case !present && s.found[i]:
		return -1, e.put(sh, s.sums[i], s.keys[i], value{gone: true})
	case present && !s.found[i]:
		return 1, e.put(sh, s.sums[i], s.keys[i], value{rec: s.recs[i]})
	case present && s.recs[i] != s.before[i]:
		return 0, e.put(sh, s.sums[i], s.keys[i], value{rec: s.recs[i]})
	}
	return 0, 0
}

// value is what is put into a cell.
type value struct {
	rec     Record
	gone    bool
	joint   bool
	who     string // of a joint record, with its triplet
	triplet digest
}

// put stores a changed record, or that it is gone, and returns how many more
// changes there are to write. The shard is locked.
func (e *Engine) put(sh *shard, d digest, key []byte, v value) int64 {
	c := sh.find(d)
	if e.backing == nil {
		switch {
		case v.gone && c != nil:
			sh.remove(c)
		case !v.gone && c != nil:
			c.rec = v.rec
		case !v.gone:
			sh.insert(d, key).rec = v.rec
		}
		return 0
	}
	if c == nil {
		c = sh.insert(d, nil)
	}
	c.rec, c.gone, c.who = v.rec, v.gone, 0
	if v.joint {
		c.who = v.triplet.who()
	}
	if sh.change(c, key, v.who) {
		return 1
	}
	return 0
}

// Change is one record to write, or to delete.
type Change struct {
	Key  []byte
	Rec  Record
	Who  []byte // of a joint record, else empty
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
	return Change{b.key(ch), ch.rec, b.who(ch), ch.gone}
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
	f := newFilter(2 * e.Entries())
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

// Current calls yield for the records that are now valid under a key that has
// been read from the backing as rec: one, two for a joint record, or none. It
// returns what yield does, true for none.
func (e *Engine) Current(key string, rec Stored, yield func(key string, rec Record) bool) bool {
	k := []byte(key)
	sum, _, sh := e.locate(k)
	if sh == nil {
		return true
	}
	sh.mu.Lock()
	if c := sh.find(sum); c != nil {
		if c.gone {
			sh.mu.Unlock()
			return true
		}
		if c.who == 0 {
			rec.Who = ""
		} else if rec.Who == "" || e.tripletBeside(k, rec.Who).who() != c.who {
			rec.Who = sh.whoOf(c) // it has changed since it was read
		}
		rec.Record = c.rec
		if c.who != 0 && rec.Who == "" {
			sh.mu.Unlock()
			return true // changed and written since; who looks now sees it later
		}
	}
	sh.mu.Unlock()
	if rec.Who == "" {
		return yield(key, rec.Record)
	}
	return yield(string(tripletKey(nil, k, rec.Who)), tripletOf(rec.Record)) && yield(key, pairOf(rec.Record))
}

// locate returns the digest of a key, that of its pair if it has one, and its
// shard; nil for a key that is none.
func (e *Engine) locate(key []byte) (sum, pair digest, sh *shard) {
	sum = e.digest(key)
	if len(key) == 0 {
		return sum, pair, nil
	}
	switch key[0] {
	case store.ClientKey:
		return sum, pair, e.clientShard(sum)
	case store.PairKey:
		return sum, sum, e.pairShard(sum)
	}
	en, ok := store.SplitKey(string(key))
	if !ok {
		return sum, pair, nil
	}
	pair = e.digest(store.AppendKey(nil, store.PairKey, en.Sender, en.Recipient))
	return sum, pair, e.pairShard(pair)
}

// Delete removes the record of a key if drop says so of its present state. It
// reports whether there was one and it was removed.
func (e *Engine) Delete(key string, drop func(Record) bool) (bool, error) {
	en, ok := store.SplitKey(key)
	if !ok {
		return false, nil
	}
	s := e.begin(en.Who, en.Sender, en.Recipient)
	defer scratches.Put(s)
	at, missing := pairAt, 0
	sh := e.pairShard(s.sums[pairAt])
	switch key[0] {
	case store.TripletKey:
		at = tripletAt
	case store.ClientKey:
		at, sh = clientAt, e.clientShard(s.sums[clientAt])
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if at == clientAt {
		missing = e.find(sh, s, clientAt)
	} else {
		missing = e.findPair(sh, s, true)
	}
	if missing != 0 {
		if err := e.load(s, missing); err != nil {
			return false, err
		}
	}
	if !s.found[at] || !drop(s.recs[at]) {
		return false, nil
	}
	changed := int64(0)
	if at == tripletAt && s.joint || at == pairAt && (s.joint || s.other) {
		changed = e.part(sh, s)
	}
	e.count(-1, changed+e.put(sh, s.sums[at], s.keys[at], value{gone: true}))
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
