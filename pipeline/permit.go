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
	// used spares requests the lock where no chain permits anything.
	used atomic.Bool

	mu         sync.Mutex
	recipients permitRing
	messages   permitRing // their keys name no recipient
}

// permitRing holds the newest permits. The caller has the lock.
type permitRing struct {
	max   int
	byKey map[permitKey]*permit
	ring  []*permit // in the order in which they came, from next on; grows to max
	next  int
}

// permitKey is one recipient of one transaction, or the transaction. The SMTP
// client cannot choose the instance, so nobody can ask for what another has
// been permitted.
type permitKey struct {
	instance          string
	client            netip.Addr
	port              uint16
	sender, recipient string
}

type permit struct {
	key permitKey
	at  time.Time
	// What the relay chain exempts from; nil for a message to recipients that
	// are exempt from different things.
	by *exemption
	// recipients is how many of a message are permitted.
	recipients int
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
func NewPermits() *Permits { return newPermits(maxPermits) }

func newPermits(most int) *Permits {
	ring := permitRing{max: most, byKey: make(map[permitKey]*permit)}
	other := ring
	other.byKey = make(map[permitKey]*permit)
	return &Permits{age: permitAge, recipients: ring, messages: other}
}

// keyOf returns the key of a request about one recipient, or about a message
// if it is empty; false when it cannot be told from others.
func keyOf(req *policy.Request, recipient string) (permitKey, bool) {
	k := permitKey{req.Instance, req.Client.Addr, req.Client.Port, req.Sender.Raw, recipient}
	if req.Joined != "" {
		k.instance = req.Joined
	}
	return k, k.instance != "" && k.client.IsValid() && len(k.instance)+len(k.sender)+len(k.recipient) <= maxPermitKey
}

// remember notes that the recipient of req has been permitted.
func (p *Permits) remember(req *policy.Request, by *exemption) {
	key, ok := keyOf(req, req.Recipient.Raw)
	if !ok || key.recipient == "" {
		return
	}
	// A door uses the memory of a request again.
	key.instance, key.sender, key.recipient = strings.Clone(key.instance), strings.Clone(key.sender), strings.Clone(key.recipient)
	p.used.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	again := p.live(&p.recipients, key, req.Time) != nil
	p.recipients.put(&permit{key: key, at: req.Time, by: by})
	key.recipient = ""
	m := p.live(&p.messages, key, req.Time)
	if m == nil {
		m = &permit{key: key, by: by}
		p.messages.put(m)
	}
	m.at = req.Time
	if m.by != by {
		m.by = nil
	}
	if !again {
		m.recipients++
	}
}

// live returns the permit of a key that still holds, nil for none.
func (p *Permits) live(r *permitRing, key permitKey, now time.Time) *permit {
	m := r.byKey[key]
	if m == nil || now.Sub(m.at) > p.age {
		return nil
	}
	return m
}

// put adds a permit in the place of the oldest.
func (r *permitRing) put(m *permit) {
	r.byKey[m.key] = m
	if len(r.ring) < r.max {
		r.ring = append(r.ring, m)
		return
	}
	old := r.ring[r.next]
	if r.byKey[old.key] == old {
		delete(r.byKey, old.key)
	}
	r.ring[r.next] = m
	r.next = (r.next + 1) % r.max
}

// findAll is find for a message: what is exempt is what holds for all of its
// recipients.
func (p *Permits) findAll(req *policy.Request, to []policy.Address) (by *exemption) {
	for i := range to {
		e := p.findOf(req, to[i].Raw)
		if e == nil || by != nil && e != by {
			return nil
		}
		by = e
	}
	return by
}

// find returns what a request is exempt from, nil for nothing. Postfix does not
// name the recipients of a message that has several, it counts those that it
// has accepted: as many must have been permitted.
func (p *Permits) find(req *policy.Request) *exemption {
	if req.Recipient.Raw != "" {
		return p.findOf(req, req.Recipient.Raw)
	}
	if req.RecipientCount == 0 || !p.used.Load() {
		return nil
	}
	key, ok := keyOf(req, "")
	if !ok {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.live(&p.messages, key, req.Time); m != nil && m.recipients == req.RecipientCount {
		return m.by
	}
	return nil
}

// findOf returns what a recipient of req is exempt from, nil for nothing.
func (p *Permits) findOf(req *policy.Request, recipient string) *exemption {
	if recipient == "" || !p.used.Load() {
		return nil
	}
	key, ok := keyOf(req, recipient)
	if !ok {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.live(&p.recipients, key, req.Time); m != nil {
		return m.by
	}
	return nil
}
