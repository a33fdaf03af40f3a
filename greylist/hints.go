package greylist

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"postern/policy"
)

// hints remember contacts that have been delayed, at most so many. Where there
// is no place left, the one that would pass soonest goes. They hold no
// pointers, and make nothing for a contact. They are safe for concurrent use.
type hints struct {
	seeds  [2]maphash.Seed
	latest atomic.Int64 // no hint holds longer; Unix nanoseconds
	parts  []hintPart
}

// hintPart is a table of groups; a contact belongs to one of them.
type hintPart struct {
	mu     sync.Mutex
	groups []hintGroup
	most   int // groups
	_      [24]byte
}

type hintGroup [hintWays]hint

const (
	hintWays  = 4
	hintParts = 64
	// hintFirst is how many groups a part begins with.
	hintFirst = 4
)

// hint is a contact that has been delayed, as two hashes of it: that another
// has both the same is less likely than an error in the machine's memory.
type hint struct {
	key   [2]uint64
	until int64 // passes from here on; Unix nanoseconds; 0: no hint
	first int64
	asked int64 // when the store said so
}

// newHints returns a memory for n contacts.
func newHints(n int) *hints {
	h := &hints{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
	groups := max(1, n/hintWays)
	h.parts = make([]hintPart, min(hintParts, groups))
	for i := range h.parts {
		p := &h.parts[i]
		p.most = groups / len(h.parts)
		p.groups = make([]hintGroup, min(hintFirst, p.most))
	}
	return h
}

// key returns the hashes of a contact from a client.
func (h *hints) key(req *policy.Request, sender, recipient string, delay time.Duration) [2]uint64 {
	var buf [256]byte
	addr := req.Client.Addr.As16()
	b := append(buf[:0], addr[:]...)
	b = binary.NativeEndian.AppendUint64(b, uint64(delay))
	b = binary.NativeEndian.AppendUint64(b, uint64(len(sender)))
	b = append(b, sender...)
	b = append(b, recipient...)
	return [2]uint64{maphash.Bytes(h.seeds[0], b), maphash.Bytes(h.seeds[1], b)}
}

func (h *hints) part(key [2]uint64) *hintPart { return &h.parts[key[0]%uint64(len(h.parts))] }

func (p *hintPart) group(key [2]uint64) *hintGroup {
	i, _ := bits.Mul64(key[1], uint64(len(p.groups))) // spread over all, whatever their number
	return &p.groups[i]
}

// empty reports whether no hint can hold at now.
func (h *hints) empty(now time.Time) bool { return now.UnixNano() >= h.latest.Load() }

// get returns a hint that holds at now.
// asked is how long ago the store was asked for it at most; 0 is no bound.
func (h *hints) get(key [2]uint64, now time.Time, asked time.Duration) (until, first time.Time, ok bool) {
	at := now.UnixNano()
	p := h.part(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.group(key)
	for i := range g {
		if s := &g[i]; s.key == key && at < s.until && at >= s.first && (asked == 0 || at-s.asked <= int64(asked)) {
			return time.Unix(0, s.until), time.Unix(0, s.first), true
		}
	}
	return time.Time{}, time.Time{}, false
}

// set remembers a contact until a time.
func (h *hints) set(key [2]uint64, now, until, first time.Time) {
	fresh := hint{key, until.UnixNano(), first.UnixNano(), now.UnixNano()}
	if fresh.until > h.latest.Load() {
		// Not each time: it is read for each request.
		h.latest.Store(fresh.until + int64(time.Second))
	}
	at := now.UnixNano()
	p := h.part(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.group(key).place(key)
	if s.until > at && s.key != key && len(p.groups) < p.most {
		p.grow(at)
		s = p.group(key).place(key)
	}
	*s = fresh
}

// place returns where a contact stands or should stand.
func (g *hintGroup) place(key [2]uint64) *hint {
	soonest := &g[0]
	for i := range g {
		s := &g[i]
		if s.key == key {
			return s
		}
		if s.until < soonest.until {
			soonest = s // one that is over is sooner than all that hold
		}
	}
	return soonest
}

// grow doubles a part.
func (p *hintPart) grow(at int64) {
	old := p.groups
	p.groups = make([]hintGroup, min(2*len(old), p.most))
	for i := range old {
		for _, s := range old[i] {
			if s.until > at {
				*p.group(s.key).place(s.key) = s
			}
		}
	}
}

// forget drops a contact.
func (h *hints) forget(key [2]uint64) {
	p := h.part(key)
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.group(key)
	for i := range g {
		if g[i].key == key {
			g[i] = hint{}
		}
	}
}

// clear drops all.
func (h *hints) clear() {
	for i := range h.parts {
		p := &h.parts[i]
		p.mu.Lock()
		clear(p.groups)
		p.mu.Unlock()
	}
}

// count returns how many hints hold at now.
func (h *hints) count(now time.Time) int {
	n, at := 0, now.UnixNano()
	for i := range h.parts {
		p := &h.parts[i]
		p.mu.Lock()
		for j := range p.groups {
			for k := range p.groups[j] {
				if p.groups[j][k].until > at {
					n++
				}
			}
		}
		p.mu.Unlock()
	}
	return n
}
