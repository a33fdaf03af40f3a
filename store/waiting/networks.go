package waiting

import (
	"hash/maphash"
	"net/netip"
)

// network is one that has first contacts which nobody has tried again.
type network struct {
	link // among those that have as many
	key  uint64
	list // of its entries, the oldest first
}

// networks are the queues of all networks, by a hash of their prefix: that two
// have the same is less likely than an error in the machine's memory.
type networks struct {
	entries *places[Entry, *Entry]
	index   map[uint64]int32
	places  places[network, *network]
	// By how many entries they have, who has had as many for longest first. The
	// last list is not empty.
	byLength []list
	seed     maphash.Seed
	// wide is how many entries there are of IPv6 networks with that hash, /48
	// and /32.
	wide [2][wideSlots]int32
}

const (
	// wide48 and wide32 are how many first contacts of an IPv6 /48 or /32 are
	// told apart by /64; with more it is one network.
	wide48, wide32 = 16, 64
	wideSlots      = 1 << 16
)

func newNetworks(of *places[Entry, *Entry]) *networks {
	return &networks{entries: of, index: make(map[uint64]int32), places: noPlaces[network](), byLength: []list{emptyList}, seed: maphash.MakeSeed()}
}

// push puts an entry into the queue of its network.
func (ns *networks) push(i int32) {
	addr := ns.entries.at(i).Addr
	key := ns.keyOf(addr)
	ns.widen(addr, 1)
	at, ok := ns.index[key]
	if !ok {
		at = ns.places.take()
		*ns.places.at(at) = network{key: key, list: emptyList}
		ns.index[key] = at
	}
	ns.entries.at(i).network = at
	net := ns.places.at(at)
	ns.entries.push(&net.list, i)
	ns.rank(at, net.n-1)
}

// remove takes an entry out of its queue.
func (ns *networks) remove(i int32) {
	e := ns.entries.at(i)
	ns.widen(e.Addr, -1)
	at := e.network
	net := ns.places.at(at)
	ns.entries.remove(&net.list, i)
	ns.rank(at, net.n+1)
	if net.n == 0 {
		delete(ns.index, net.key)
		ns.places.give(at)
	}
}

// rank moves a network, which had so many entries, among those that have as
// many as it has now.
func (ns *networks) rank(at, before int32) {
	if before > 0 {
		ns.places.remove(&ns.byLength[before], at)
	}
	n := int(ns.places.at(at).n)
	for len(ns.byLength) <= n {
		ns.byLength = append(ns.byLength, emptyList)
	}
	if n > 0 {
		ns.places.push(&ns.byLength[n], at)
	}
	// Not before: the longest becomes shorter or longer by one.
	for last := len(ns.byLength) - 1; last > 0 && ns.byLength[last].n == 0; last-- {
		ns.byLength = ns.byLength[:last]
	}
}

// oldest returns the oldest entry of the network that has most. There is one.
func (ns *networks) oldest() int32 {
	return ns.places.at(ns.byLength[len(ns.byLength)-1].head).head
}

func (ns *networks) widen(addr netip.Addr, by int32) {
	if addr.Is6() {
		ns.wide[0][ns.hash(addr, 48)%wideSlots] += by
		ns.wide[1][ns.hash(addr, 32)%wideSlots] += by
	}
}

// keyOf returns the hash of a client's network.
func (ns *networks) keyOf(addr netip.Addr) uint64 {
	switch {
	case !addr.IsValid():
		return 0
	case addr.Is4():
		return ns.hash(addr, 24)
	}
	if h := ns.hash(addr, 32); ns.wide[1][h%wideSlots] >= wide32 {
		return h
	}
	if h := ns.hash(addr, 48); ns.wide[0][h%wideSlots] >= wide48 {
		return h
	}
	return ns.hash(addr, 64)
}

func (ns *networks) hash(addr netip.Addr, bits int) uint64 {
	p, _ := addr.Prefix(bits)
	return maphash.Comparable(ns.seed, p)
}
