package greylist

import (
	"hash/maphash"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"postern/policy"
)

// memoSize is how many clients' identities are remembered.
const memoSize = 4096

// memo remembers the identities of clients for which no other fact is known:
// working out whether a name is generic costs more than the rest of a known
// contact. It is a table without chains: a client that falls into another's
// place takes it. It is safe for concurrent use.
type memo struct {
	names Names
	seed  maphash.Seed
	slots [memoSize]atomic.Pointer[remembered]
}

type remembered struct {
	name          string
	addr          netip.Addr
	sender        string // organisational domains differ by it
	match, credit string
	until         time.Time // lists of names change
}

func newMemo(names Names) *memo { return &memo{names: names, seed: maphash.MakeSeed()} }

// memoFor bounds how long identities are remembered: the lists of names can
// change.
const memoFor = 10 * time.Second

// identities returns [matchIdentity] and [creditIdentity], with a memory. A
// credit of "" is none.
func (m *memo) identities(req *policy.Request, v4, v6 int) (match, credit string, ok bool) {
	if req.Facts.SPF.Result == "pass" || req.Facts.Provider != "" || len(req.Client.Name) > 255 || len(req.Sender.Domain) > 255 {
		return identities(req, m.names, v4, v6)
	}
	at := maphash.String(m.seed, req.Client.Name) ^ maphash.Comparable(m.seed, req.Client.Addr) ^ 31*maphash.String(m.seed, req.Sender.Domain)
	slot := &m.slots[at%memoSize]
	if r := slot.Load(); r != nil && r.addr == req.Client.Addr && r.name == req.Client.Name && r.sender == req.Sender.Domain &&
		req.Time.Before(r.until) && r.until.Sub(req.Time) <= memoFor {
		return r.match, r.credit, true
	}
	match, credit, ok = identities(req, m.names, v4, v6)
	if ok {
		// The request's strings are parts of something larger.
		slot.Store(&remembered{
			strings.Clone(req.Client.Name), req.Client.Addr, strings.Clone(req.Sender.Domain), strings.Clone(match), strings.Clone(credit), req.Time.Add(memoFor),
		})
	}
	return match, credit, ok
}

// identities is both identities of a request.
func identities(req *policy.Request, names Names, v4, v6 int) (match, credit string, ok bool) {
	if match, ok = matchIdentity(req, names, v4, v6); ok {
		credit, _ = creditIdentity(req, names, v4, v6)
	}
	return match, credit, ok
}
