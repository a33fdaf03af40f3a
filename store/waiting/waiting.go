// Package waiting is the room for correspondences that wait: first contacts
// that have not come back yet. It is bounded, and fair.
//
// Strangers decide how many first contacts there are, so a full room must make
// place without letting anybody in or forgetting those who matter. What nobody
// has tried again goes first, and of that the oldest of the network that takes
// most of the room: who floods pushes out his own (fair queueing that drops
// from the longest queue). A network is a /24 of IPv4 or a /64 of IPv6; where a
// /48 or a /32 of IPv6 fills many of its /64, it is one network from then on.
package waiting

import (
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

	link    // in the queue of its network, or of those that were tried again
	key     Key
	seq     uint64
	network int32
	tried   bool
	dirty   bool
	stored  bool
}

// Key is that of the correspondence.
func (e *Entry) Key() Key { return e.key }

// Seq is the number under which the entry is stored. Numbers grow.
func (e *Entry) Seq() uint64 { return e.seq }

// Table is the room. It is not safe for concurrent use.
type Table struct {
	most    int
	index   map[Key]int32
	entries places[Entry, *Entry]
	seq     uint64 // of the last entry
	swept   int    // where sweeping goes on

	networks *networks // what nobody has tried again
	tried    list

	dirty   []int32
	deleted []uint64 // stored numbers that are to be removed

	evicted uint64
	age     int64 // of the last one that was evicted, in ms
}

// New returns a table for at most so many entries.
func New(most int) *Table {
	t := &Table{most: max(most, 1), index: make(map[Key]int32), entries: noPlaces[Entry](), tried: emptyList}
	t.networks = newNetworks(&t.entries)
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
		i = t.entries.take()
		t.index[k] = i
		t.seq++
		*t.entries.at(i) = Entry{key: k, seq: t.seq, Addr: addr}
		t.networks.push(i)
		if len(t.index) > t.most {
			t.evict(now, i) // it may be one of the same network
		}
	}
	e := t.entries.at(i)
	e.Waiting, e.Label, e.Expires = *w, label, expires
	if !e.tried && tried(w) {
		t.networks.remove(i)
		e.tried = true
		t.entries.push(&t.tried, i)
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
		t.entries.remove(&t.tried, i)
	} else {
		t.networks.remove(i)
	}
	if e.stored {
		t.deleted = append(t.deleted, e.seq)
	}
	delete(t.index, e.key)
	t.entries.give(i)
}

// evict makes place for a newcomer: the oldest of the network that has most
// goes or, when all others have been tried again, the one of these that was so
// first.
func (t *Table) evict(now int64, newcomer int32) {
	i := t.networks.oldest()
	if i == newcomer {
		i = t.tried.head
	}
	t.evicted++
	t.age = max(0, now-t.entries.at(i).Since)
	t.drop(i)
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
