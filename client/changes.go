package client

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
)

// changes remembers the HELO names that each client has used lately. It is safe
// for concurrent use.
type changes struct {
	limit  int
	window time.Duration
	seed   maphash.Seed
	// No expiry of the cache's own: that takes a goroutine, and the times are
	// in the values.
	clients *otter.Cache[netip.Addr, *usedNames]
}

// usedNames are the names of one client, at most one more than the limit.
type usedNames struct {
	mu    sync.Mutex
	names []usedName
}

type usedName struct {
	hash uint64
	last int64 // Unix seconds
}

func newChanges(limit int, window time.Duration, clients int) *changes {
	return &changes{limit, window, maphash.MakeSeed(), otter.Must(&otter.Options[netip.Addr, *usedNames]{MaximumSize: clients})}
}

// holder is whom names are counted for: an IPv4 address, or an IPv6 network of
// 64 bits, in which one host can have as many addresses as it wants.
func holder(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return addr
	}
	a := addr.As16()
	clear(a[8:])
	return netip.AddrFrom16(a)
}

// count returns how many names the client has used within the window, this one
// included, up to one more than the limit. With note it is remembered.
func (m *changes) count(addr netip.Addr, name string, now time.Time, note bool) int {
	key := holder(addr)
	used, ok := m.clients.GetIfPresent(key)
	if !ok {
		if !note {
			return 1
		}
		used, _ = m.clients.SetIfAbsent(key, &usedNames{}) // that of another request, if it was faster
	}
	hash, at, window := maphash.String(m.seed, name), now.Unix(), int64(m.window/time.Second)
	used.mu.Lock()
	defer used.mu.Unlock()
	n, place, oldest := 1, -1, -1
	for i, u := range used.names {
		switch {
		case u.hash == hash:
			place = i
		case u.last > at-window && u.last < at+window: // a clock may have been set back
			n++
			if oldest < 0 || u.last < used.names[oldest].last {
				oldest = i
			}
		case place < 0:
			place = i // its time is over
		}
	}
	n = min(n, m.limit+1)
	if !note {
		return n
	}
	switch {
	case place >= 0:
	case len(used.names) <= m.limit:
		used.names = append(used.names, usedName{})
		place = len(used.names) - 1
	default:
		place = oldest
	}
	used.names[place] = usedName{hash, at}
	return n
}
