package client

import (
	"hash/maphash"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// genericsSize is how many judgements of names are remembered.
	genericsSize = 4096
	// genericsFor bounds for how long: the lists of names can change.
	genericsFor = 10 * time.Second
)

// generics remembers whether names are generic: working it out costs more than
// everything else of a client that is known. It is a table without chains; who
// falls into another's place takes it. It is safe for concurrent use.
type generics struct {
	names Names
	seed  maphash.Seed
	slots [genericsSize]atomic.Pointer[judged]
}

type judged struct {
	name  string
	addr  netip.Addr
	why   string
	until time.Time
}

func newGenerics(names Names) *generics { return &generics{names: names, seed: maphash.MakeSeed()} }

// why says what makes a name generic, "" when it is not.
func (g *generics) why(name string, addr netip.Addr, now time.Time) string {
	slot := &g.slots[(maphash.String(g.seed, name)^maphash.Comparable(g.seed, addr))%genericsSize]
	if j := slot.Load(); j != nil && j.addr == addr && j.name == name && now.Before(j.until) && j.until.Sub(now) <= genericsFor {
		return j.why
	}
	why := g.names.Why(name, addr)
	if len(name) <= maxName && !now.IsZero() {
		slot.Store(&judged{strings.Clone(name), addr, why, now.Add(genericsFor)})
	}
	return why
}
