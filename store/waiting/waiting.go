// Package waiting is the room for correspondences that wait: first contacts
// that have not come back yet. It is bounded, and fair.
//
// Strangers decide how many first contacts there are, so a full room must make
// place without letting anybody in or forgetting those who matter. What nobody
// has tried again goes first, and of that the oldest of the network that takes
// most of the room: who floods pushes out his own (fair queueing that drops
// from the longest queue). Networks are told apart as a hash into a fixed
// number of queues, /24 for IPv4 and /64 for IPv6; where a /48 or a /32 of IPv6
// fills many of its /64, it is one network from then on.
package waiting

import (
	"hash/maphash"
	"net/netip"
	"time"

	"postern/greylist"
)

// Key stands for a correspondence.
type Key struct{ A, B uint64 }

// Entry is a correspondence in the room. It is only valid until the table
// changes.
type Entry struct {
	greylist.Waiting
	// Label names the correspondence where nothing else does: it is kept until
	// Written tells that it has been.
	Label string
	Addr  netip.Addr // where it was first heard of
	// Expires is when it may be dropped, Unix milliseconds.
	Expires int64

	key    Key
	seq    uint64
	queue  int32
	next   int32 // in the queue, or the list of free ones
	prev   int32
	tried  bool // in the queue of those that were tried again
	dirty  bool
	stored bool
}

// Key is that of the correspondence.
func (e *Entry) Key() Key { return e.key }

// Seq is the number under which the entry is stored. Numbers grow.
func (e *Entry) Seq() uint64 { return e.seq }

const (
	// queues is how many queues networks are spread over.
	queues = 1 << 16
	// wide48 and wide32 are how many first contacts of an IPv6 /48 or /32 are
	// told apart by /64; with more it is one network.
	wide48, wide32 = 16, 64
	none           = -1
)

// Table is the room. It is not safe for concurrent use.
type Table struct {
	most    int
	index   map[Key]int32
	entries entries
	free    int32
	seq     uint64 // of the last entry
	seed    maphash.Seed
	swept   int // where sweeping goes on

	queue   [queues]list
	longest int32 // a queue that is, or was, the longest
	tried   list
	// How many first contacts there are of networks with that hash.
	wide [2][queues]int32

	dirty   []int32
	deleted []uint64 // stored numbers that are to be removed

	evicted uint64
	age     int64 // of the last one that was evicted, in ms
}

// entries are places for entries, in blocks, so that a room that grows moves
// nothing.
type entries struct {
	blocks []*[block]Entry
	n      int32
}

const block = 1024

func (e *entries) at(i int32) *Entry { return &e.blocks[i/block][i%block] }

func (e *entries) grow() int32 {
	if int(e.n) == len(e.blocks)*block {
		e.blocks = append(e.blocks, new([block]Entry))
	}
	e.n++
	return e.n - 1
}

type list struct {
	head, tail int32
	n          int32
}

// New returns a table for at most so many entries.
func New(most int) *Table {
	t := &Table{most: max(most, 1), index: make(map[Key]int32), free: none, seed: maphash.MakeSeed()}
	for i := range t.queue {
		t.queue[i] = list{none, none, 0}
	}
	t.tried = list{none, none, 0}
	return t
}

// Len returns how many entries there are.
func (t *Table) Len() int { return len(t.index) }

// Evicted returns how many entries had to go, and how old the last one was.
func (t *Table) Evicted() (n uint64, age time.Duration) {
	return t.evicted, time.Duration(t.age) * time.Millisecond
}

// ResetEvicted begins the count of [Table.Evicted] anew.
func (t *Table) ResetEvicted() { t.evicted = 0 }

// Find returns the entry of a correspondence, nil when there is none.
func (t *Table) Find(k Key) *Entry {
	if i, ok := t.index[k]; ok {
		return t.entries.at(i)
	}
	return nil
}

// Put stores what is known of a correspondence. label names it; addr is where
// it comes from, if it is new. Times are in Unix milliseconds.
func (t *Table) Put(k Key, w *greylist.Waiting, addr netip.Addr, label string, now, expires int64) {
	i, ok := t.index[k]
	if !ok {
		if len(t.index) >= t.most {
			t.evict(now)
		}
		i = t.take()
		t.index[k] = i
		t.seq++
		*t.entries.at(i) = Entry{key: k, seq: t.seq, Addr: addr, queue: none, next: none, prev: none}
		t.enqueue(i)
	}
	e := t.entries.at(i)
	e.Waiting, e.Label, e.Expires = *w, label, expires
	if !e.tried && tried(w) {
		t.dequeue(i)
		e.tried = true
		t.tried.push(&t.entries, i)
	}
	if !e.dirty {
		e.dirty = true
		t.dirty = append(t.dirty, i)
	}
}

// Restore puts an entry back as it was stored. The earlier of two of one
// correspondence goes.
func (t *Table) Restore(k Key, seq uint64, w *greylist.Waiting, addr netip.Addr, now, expires int64) {
	if old, ok := t.index[k]; ok {
		if t.entries.at(old).seq > seq {
			t.deleted = append(t.deleted, seq)
			return
		}
		t.Remove(k)
	}
	t.Put(k, w, addr, "", now, expires)
	e := t.Find(k)
	e.seq, e.stored, e.dirty = seq, true, false
	t.seq = max(t.seq, seq)
	t.dirty = t.dirty[:len(t.dirty)-1]
}

// tried reports whether some side has been deferred more than once.
func tried(w *greylist.Waiting) bool {
	if w.Side.Attempts > 1 {
		return true
	}
	for i := range w.More {
		if w.More[i].Attempts > 1 {
			return true
		}
	}
	return false
}

// Remove takes a correspondence out and reports whether it was there.
func (t *Table) Remove(k Key) bool {
	i, ok := t.index[k]
	if ok {
		t.drop(i)
	}
	return ok
}

func (t *Table) drop(i int32) {
	e := t.entries.at(i)
	if e.tried {
		t.tried.remove(&t.entries, i)
	} else {
		t.dequeue(i)
	}
	if e.stored {
		t.deleted = append(t.deleted, e.seq)
	}
	delete(t.index, e.key)
	*e = Entry{next: t.free}
	t.free = i
}

// take returns a free place.
func (t *Table) take() int32 {
	if i := t.free; i != none {
		t.free = t.entries.at(i).next
		return i
	}
	return t.entries.grow()
}

// evict makes place for one.
func (t *Table) evict(now int64) {
	q := &t.queue[t.longest]
	i := q.head
	if q.n <= 1 {
		// Nobody floods: the oldest of any queue that has some, or, when all
		// have been tried again, the one of these that was so first.
		for j := range queues {
			if c := &t.queue[(int(t.longest)+1+j)%queues]; c.n > 0 {
				i = c.head
				t.longest = int32((int(t.longest) + 1 + j) % queues)
				break
			}
		}
		if i == none {
			i = t.tried.head
		}
	}
	t.evicted++
	t.age = max(0, now-t.entries.at(i).Since)
	t.drop(i)
}

// enqueue puts a new entry into the queue of its network.
func (t *Table) enqueue(i int32) {
	e := t.entries.at(i)
	q := t.networkOf(e.Addr)
	e.queue = q
	t.queue[q].push(&t.entries, i)
	if t.queue[q].n > t.queue[t.longest].n {
		t.longest = q
	}
	t.widen(e.Addr, 1)
}

func (t *Table) dequeue(i int32) {
	e := t.entries.at(i)
	t.queue[e.queue].remove(&t.entries, i)
	t.widen(e.Addr, -1)
}

func (t *Table) widen(addr netip.Addr, by int32) {
	if addr.Is6() {
		t.wide[0][t.hash(addr, 48)] += by
		t.wide[1][t.hash(addr, 32)] += by
	}
}

func (t *Table) hash(addr netip.Addr, bits int) int32 {
	p, _ := addr.Prefix(bits)
	return int32(maphash.Comparable(t.seed, p) % queues)
}

// networkOf returns the queue of a client's network.
func (t *Table) networkOf(addr netip.Addr) int32 {
	switch {
	case !addr.IsValid():
		return 0
	case addr.Is4():
		return t.hash(addr, 24)
	}
	if h := t.hash(addr, 32); t.wide[1][h] >= wide32 {
		return h
	}
	if h := t.hash(addr, 48); t.wide[0][h] >= wide48 {
		return h
	}
	return t.hash(addr, 64)
}

func (l *list) push(all *entries, i int32) {
	e := all.at(i)
	e.next, e.prev = none, l.tail
	if l.tail != none {
		all.at(l.tail).next = i
	} else {
		l.head = i
	}
	l.tail = i
	l.n++
}

func (l *list) remove(all *entries, i int32) {
	e := all.at(i)
	if e.prev != none {
		all.at(e.prev).next = e.next
	} else {
		l.head = e.next
	}
	if e.next != none {
		all.at(e.next).prev = e.prev
	} else {
		l.tail = e.prev
	}
	e.next, e.prev = none, none
	l.n--
}

// Sweep drops entries whose time is over, looking at no more than n places
// from where the last call ended, and returns how many were dropped.
func (t *Table) Sweep(now int64, n int) (dropped int) {
	for n = min(n, int(t.entries.n)); n > 0; n-- {
		if t.swept >= int(t.entries.n) {
			t.swept = 0
		}
		if e := t.entries.at(int32(t.swept)); e.Side.First != 0 && e.Expires < now {
			t.drop(int32(t.swept))
			dropped++
		}
		t.swept++
	}
	return dropped
}

// Each calls yield for every entry until it returns false.
func (t *Table) Each(yield func(*Entry) bool) {
	for _, i := range t.index {
		if !yield(t.entries.at(i)) {
			return
		}
	}
}

// Pending returns how many changes have not been taken.
func (t *Table) Pending() int { return len(t.dirty) + len(t.deleted) }

// Take hands out at most n of the changes since the last call: write for each
// entry, remove for each number. It reports whether there are more. Its caller
// tells Written or Failed later.
func (t *Table) Take(n int, write func(*Entry), remove func(seq uint64)) (more bool) {
	for ; n > 0 && len(t.dirty) > 0; n-- {
		i := t.dirty[len(t.dirty)-1]
		t.dirty = t.dirty[:len(t.dirty)-1]
		if e := t.entries.at(i); e.dirty {
			e.dirty = false
			write(e)
		}
	}
	for ; n > 0 && len(t.deleted) > 0; n-- {
		remove(t.deleted[len(t.deleted)-1])
		t.deleted = t.deleted[:len(t.deleted)-1]
	}
	if len(t.dirty)+len(t.deleted) > 0 {
		return true
	}
	if cap(t.dirty)+cap(t.deleted) > 1<<17 {
		t.dirty, t.deleted = nil, nil // left by a burst
	}
	return false
}

// Written tells that the entry of a key was stored under a number. It reports
// false when it is not there any more, and must be removed again.
func (t *Table) Written(k Key, seq uint64) bool {
	e := t.Find(k)
	if e == nil || e.seq != seq {
		return false
	}
	e.stored = true
	if !e.dirty {
		e.Label = ""
	}
	return true
}

// Failed tells that the entry of a key could not be stored, or with gone that
// a number could not be removed.
func (t *Table) Failed(k Key, seq uint64, gone bool) {
	if gone {
		t.deleted = append(t.deleted, seq)
		return
	}
	if i, ok := t.index[k]; ok && t.entries.at(i).seq == seq && !t.entries.at(i).dirty {
		t.entries.at(i).dirty = true
		t.dirty = append(t.dirty, i)
	}
}

// Forgotten tells that an entry that Written did not find is to be removed.
func (t *Table) Forgotten(seq uint64) { t.deleted = append(t.deleted, seq) }
