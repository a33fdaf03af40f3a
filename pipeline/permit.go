package pipeline

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/policy"
)

// Bounds of what is remembered of permits. Postfix asks the chains of one
// recipient within moments of each other, and DATA and the content follow
// soon; what lives longer than that is judged as if there were no permit.
const (
	permitAge    = 2 * time.Minute
	maxPermits   = 10_000
	maxPermitKey = 2048 // bytes of names in one entry
)

// Permits remembers for a short while which recipients of which transactions
// relay chains have permitted, so that the other chains exempt them from what
// the relay chain says. It outlives a reload, and is safe for concurrent use.
//
// It is bounded: when it is full the oldest permit is forgotten, and its
// recipient is judged as if there were none.
type Permits struct {
	age time.Duration
	max int
	// used spares requests the lock where no chain permits anything.
	used atomic.Bool

	mu    sync.Mutex
	byKey map[permitKey]*permit
	ring  []*permit // in the order of their times, from next on; grows to max
	next  int
}

// permitKey is one recipient of one transaction. The SMTP client cannot choose
// the instance, so nobody can ask for what another has been permitted.
type permitKey struct {
	instance          string
	client            netip.Addr
	port              uint16 // 0 when not known
	sender, recipient string // as given
}

type permit struct {
	key permitKey
	at  time.Time
	// What the relay chain exempts from; never nil.
	by *exemption
}

// exemption is why checks are not asked.
type exemption struct {
	checks []string // their names
	by     string   // who says so, for people: "access", "chain relay"
	why    string   // the same as a line of a trace
	reason string   // for metrics
}

func newExemption(checks []string, by, reason string) *exemption {
	return &exemption{checks, by, "exempt by " + by, reason}
}

// from returns e with other checks.
func (e exemption) from(checks []string) *exemption {
	e.checks = checks
	return &e
}

// NewPermits returns an empty memory.
func NewPermits() *Permits {
	return &Permits{age: permitAge, max: maxPermits, byKey: make(map[permitKey]*permit)}
}

// keyOf returns the key of a request about one recipient; false when it cannot
// be told from others.
func keyOf(req *policy.Request, recipient string) (permitKey, bool) {
	k := permitKey{req.Instance, req.Client.Addr, req.Client.Port, req.Sender.Raw, recipient}
	if req.Joined != "" {
		k.instance = req.Joined
	}
	return k, k.instance != "" && k.client.IsValid() && k.recipient != "" && len(k.instance)+len(k.sender)+len(k.recipient) <= maxPermitKey
}

// remember notes that the recipient of req has been permitted.
func (p *Permits) remember(req *policy.Request, by *exemption) {
	key, ok := keyOf(req, req.Recipient.Raw)
	if !ok {
		return
	}
	// A door uses the memory of a request again.
	key.instance, key.sender, key.recipient = strings.Clone(key.instance), strings.Clone(key.sender), strings.Clone(key.recipient)
	p.used.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &permit{key, req.Time, by}
	p.byKey[key] = m
	if len(p.ring) < p.max {
		p.ring = append(p.ring, m)
		return
	}
	old := p.ring[p.next]
	if p.byKey[old.key] == old {
		delete(p.byKey, old.key)
	}
	p.ring[p.next] = m
	p.next = (p.next + 1) % p.max
}

// findAll is find for a message: what is exempt is what holds for all of its
// recipients.
func (p *Permits) findAll(req *policy.Request, to []policy.Address) (by *exemption) {
	for i := range to {
		e := p.find(req, to[i].Raw)
		if e == nil || by != nil && e != by {
			return nil
		}
		by = e
	}
	return by
}

// find returns what the recipient of req is exempt from, nil for nothing.
func (p *Permits) find(req *policy.Request, recipient string) *exemption {
	if !p.used.Load() {
		return nil
	}
	key, ok := keyOf(req, recipient)
	if !ok {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.byKey[key]
	if m == nil || req.Time.Sub(m.at) > p.age {
		return nil
	}
	return m.by
}
