package overlay

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"

	"postern/greylist"
	"postern/store"
	"postern/store/waiting"
)

// room is the room for those who wait. Its lock is held for one look or change;
// a correspondence's own lock, taken before, makes a contact atomic.
type room struct {
	mu    sync.Mutex
	table *waiting.Table

	// When somebody last had to go for another, how old that was, and how long
	// it should have lived: its delay, and until a usual retry.
	pushed     time.Time
	lived      time.Duration
	shouldLive time.Duration
}

// usualRetry is how long after its delay a server that means it has come back.
const usualRetry = 30 * time.Minute

// find returns a copy of what is known of a correspondence.
func (r *room) find(pair digest) (w greylist.Waiting, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if en := r.table.Find(pair.key()); en != nil {
		w, ok = en.Waiting, true
		w.More = slices.Clone(w.More)
	}
	return w, ok
}

// put stores what is known of a correspondence after a contact, or that nobody
// waits in it any more.
func (r *room) put(pair digest, w *greylist.Waiting, c *greylist.Contact, label []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.Side.First == 0 {
		r.table.Remove(pair.key())
		return
	}
	before, _ := r.table.Evicted()
	r.table.Put(pair.key(), w, c.Addr, string(label), c.Time.UnixMilli(), w.Last+(c.Rule.Window+slack).Milliseconds())
	if after, age := r.table.Evicted(); after != before {
		r.pushed, r.lived, r.shouldLive = c.Time, age, c.Rule.Delay+usualRetry
	}
}

// pressureFor is how long after somebody had to go the room counts as pressed.
const pressureFor = time.Minute

// Room tells how the room for those who wait is.
func (e *Engine) Room(now time.Time) store.Room {
	r := &e.room
	r.mu.Lock()
	defer r.mu.Unlock()
	out := store.Room{Waiting: r.table.Len(), Most: e.maxWaiting, Unremembered: e.refused.Load()}
	out.PushedOut, _ = r.table.Evicted()
	if !r.pushed.IsZero() && now.Sub(r.pushed) < pressureFor {
		out.Pressed, out.Lives, out.TooShort = true, r.lived, r.lived < r.shouldLive
	}
	return out
}

// WaitingChange is an entry of the room to write, or with no value to delete.
type WaitingChange struct {
	Seq   uint64
	Value []byte
	key   waiting.Key
}

// valueSize is about how long an encoded entry is.
const valueSize = 160

// takeAtOnce is how many changes are taken, or told of, under one lock.
const takeAtOnce = 1000

// TakeWaiting returns what has changed among those who wait. WroteWaiting must
// follow before the next call.
func (e *Engine) TakeWaiting() []WaitingChange {
	r := &e.room
	r.mu.Lock()
	n := r.table.Pending()
	r.mu.Unlock()
	if n == 0 {
		return nil
	}
	out := make([]WaitingChange, 0, n+n/8)
	buf := make([]byte, 0, (n+n/8)*valueSize)
	for more := true; more; {
		r.mu.Lock()
		more = r.table.Take(takeAtOnce, func(en *waiting.Entry) {
			at := len(buf)
			buf = appendWaiting(buf, en)
			out = append(out, WaitingChange{en.Seq(), buf[at:len(buf):len(buf)], en.Key()})
		}, func(seq uint64) { out = append(out, WaitingChange{Seq: seq}) })
		r.mu.Unlock()
	}
	return out
}

// WroteWaiting tells whether what TakeWaiting returned has been stored.
func (e *Engine) WroteWaiting(changes []WaitingChange, ok bool) {
	r := &e.room
	for part := range slices.Chunk(changes, takeAtOnce) {
		r.mu.Lock()
		for i := range part {
			c := &part[i]
			switch {
			case !ok:
				r.table.Failed(c.key, c.Seq, c.Value == nil)
			case c.Value != nil && !r.table.Written(c.key, c.Seq):
				r.table.Forgotten(c.Seq)
			}
		}
		r.mu.Unlock()
	}
}

// appendWaiting encodes an entry: version, since, last, expiry, address, sides,
// label.
func appendWaiting(b []byte, en *waiting.Entry) []byte {
	b = append(b, 1)
	b = binary.BigEndian.AppendUint64(b, uint64(en.Since))
	b = binary.BigEndian.AppendUint64(b, uint64(en.Last))
	b = binary.BigEndian.AppendUint64(b, uint64(en.Expires))
	a := en.Addr.AsSlice()
	b = append(append(b, byte(len(a))), a...)
	b = append(b, byte(1+len(en.More)))
	side := func(s *greylist.Side) {
		b = binary.BigEndian.AppendUint64(b, uint64(s.First))
		b = binary.BigEndian.AppendUint64(b, uint64(s.Last))
		b = binary.BigEndian.AppendUint32(b, s.Attempts)
		b = store.AppendParts(b, s.Match)
	}
	side(&en.Side)
	for i := range en.More {
		side(&en.More[i])
	}
	return append(b, en.Label...)
}

// storedWaiting is what appendWaiting wrote. label is sender and recipient as
// they stand in a key.
type storedWaiting struct {
	greylist.Waiting
	expires int64
	addr    netip.Addr
	label   []byte
}

// decodeWaiting reads what appendWaiting wrote.
func decodeWaiting(v []byte) (w storedWaiting, ok bool) {
	take := func(n int) []byte {
		if len(v) < n {
			v, ok = nil, false
			return make([]byte, n)
		}
		out := v[:n]
		v = v[n:]
		return out
	}
	ok = true
	if take(1)[0] != 1 {
		return w, false
	}
	number := func() int64 { return int64(binary.BigEndian.Uint64(take(8))) }
	w.Since, w.Last, w.expires = number(), number(), number()
	if n := int(take(1)[0]); n > 0 {
		w.addr, _ = netip.AddrFromSlice(take(n))
	}
	n := int(take(1)[0])
	if n < 1 || n > greylist.MaxSides {
		return w, false
	}
	for i := range n {
		s := greylist.Side{First: number(), Last: number(), Attempts: binary.BigEndian.Uint32(take(4))}
		s.Match = string(take(int(binary.BigEndian.Uint16(take(2)))))
		if i == 0 {
			w.Side = s
		} else {
			w.More = append(w.More, s)
		}
	}
	w.label = v
	return w, ok && w.Since != 0 && w.Side.First != 0
}

// RestoreWaiting puts back an entry as TakeWaiting gave it out. It reports
// false for what is none.
func (e *Engine) RestoreWaiting(seq uint64, value []byte, now time.Time) bool {
	w, ok := decodeWaiting(value)
	if _, _, named := store.SplitParts(w.label); !ok || !named {
		return false
	}
	e.room.mu.Lock()
	defer e.room.mu.Unlock()
	e.room.table.Restore(e.digest(w.label).key(), seq, &w.Waiting, w.addr, now.UnixMilli(), w.expires)
	return true
}

// WaitingEntries returns the administrator's view of a stored entry that is of
// use at now, one for each side.
func WaitingEntries(value []byte, now time.Time) []greylist.Entry {
	w, ok := decodeWaiting(value)
	sender, recipient, named := store.SplitParts(w.label)
	if !ok || !named || w.expires-slack.Milliseconds() < now.UnixMilli() {
		return nil
	}
	return entriesOf(&w.Waiting, sender, recipient)
}

func entriesOf(w *greylist.Waiting, sender, recipient string) []greylist.Entry {
	out := make([]greylist.Entry, 0, 1+len(w.More))
	add := func(s *greylist.Side) {
		out = append(out, greylist.Entry{
			Kind: greylist.KindWaiting, Match: s.Match, Sender: sender, Recipient: recipient,
			First: time.UnixMilli(s.First), Last: time.UnixMilli(s.Last), Attempts: int(s.Attempts), Since: time.UnixMilli(w.Since),
		})
	}
	add(&w.Side)
	for i := range w.More {
		add(&w.More[i])
	}
	return out
}

// RangeWaiting calls yield for the entries of those who wait, of an engine
// without a backing, until it returns false. Those that are of no use at now
// are left out.
func (e *Engine) RangeWaiting(now time.Time, yield func(greylist.Entry) bool) {
	var batch []greylist.Entry
	e.room.mu.Lock()
	e.room.table.Each(func(en *waiting.Entry) bool {
		if sender, recipient, ok := store.SplitParts([]byte(en.Label)); ok && en.Expires-slack.Milliseconds() >= now.UnixMilli() {
			batch = append(batch, entriesOf(&en.Waiting, sender, recipient)...)
		}
		return true
	})
	e.room.mu.Unlock()
	for _, en := range batch {
		if !yield(en) {
			return
		}
	}
}

// ForgetWaiting takes a side out of a correspondence, as RangeWaiting gave it
// out, and reports whether it was there.
func (e *Engine) ForgetWaiting(of *greylist.Entry) bool {
	label := store.AppendParts(nil, of.Sender, of.Recipient)
	pair := e.digest(label)
	sh := e.pairShard(pair)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	r := &e.room
	r.mu.Lock()
	defer r.mu.Unlock()
	en := r.table.Find(pair.key())
	if en == nil {
		return false
	}
	w := en.Waiting
	w.More = slices.Clone(w.More)
	if !w.Forget(of.Match) {
		return false
	}
	if w.Side.First == 0 {
		return r.table.Remove(pair.key())
	}
	r.table.Put(pair.key(), &w, en.Addr, string(label), w.Last, en.Expires)
	return true
}

// SweepRoom drops those who wait and whose time is over, looking at some
// thousand of them.
func (e *Engine) SweepRoom(now time.Time) int {
	const part, parts = 2000, 10
	dropped := 0
	for range parts { // others want the lock too
		e.room.mu.Lock()
		dropped += e.room.table.Sweep(now.UnixMilli(), part)
		e.room.mu.Unlock()
	}
	return dropped
}
