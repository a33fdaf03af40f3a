package greylist

import (
	"hash/maphash"
	"net/netip"
	"strings"
	"sync/atomic"

	"postern/policy"
)

// memoSize is how many clients' identities are remembered.
const memoSize = 4096

// memo remembers the identities of clients for which no other fact is known:
// working out whether a name is generic costs more than the rest of a known
// contact. It is a table without chains: a client that falls into another's
// place takes it. It is safe for concurrent use.
type memo struct {
	seed  maphash.Seed
	slots [memoSize]atomic.Pointer[remembered]
}

type remembered struct {
	name string
	addr netip.Addr
	who  string
}

func newMemo() *memo { return &memo{seed: maphash.MakeSeed()} }

// identity is the function of that name, with a memory.
func (m *memo) identity(req *policy.Request, v4, v6 int) (string, bool) {
	if req.Facts.SPF.Result == "pass" || req.Facts.Provider != "" || len(req.Client.Name) > 255 {
		return identity(req, v4, v6)
	}
	at := maphash.String(m.seed, req.Client.Name) ^ maphash.Comparable(m.seed, req.Client.Addr)
	slot := &m.slots[at%memoSize]
	if r := slot.Load(); r != nil && r.addr == req.Client.Addr && r.name == req.Client.Name {
		return r.who, true
	}
	who, ok := identity(req, v4, v6)
	if ok {
		// The request's strings are parts of something larger.
		slot.Store(&remembered{strings.Clone(req.Client.Name), req.Client.Addr, strings.Clone(who)})
	}
	return who, ok
}
