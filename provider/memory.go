package provider

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"postern/policy"
)

// memory holds the permits that were given on the condition that the message
// shows to be allowed: a list that changes, or a reload, between RCPT and the
// end of the message must not let it through unseen. It is safe for
// concurrent use.
type memory struct {
	mu        sync.Mutex
	now, past map[permitKey][]*rule // past is what was now before the last turn
	turned    time.Time
}

// permitKey is one sender in one SMTP session. The domain is enough: the two
// doors may be told the local part in different spellings.
type permitKey struct {
	client netip.AddrPort
	domain string
}

const (
	// memoryTurn is how long a permit is kept at least; twice that at most.
	// Postfix waits for 300 s for a client's next command.
	memoryTurn = time.Hour
	// memorySize is how many permits are kept in one turn. Only clients in a
	// list whose conditions hold get one.
	memorySize = 1 << 16
)

func keyOf(req *policy.Request) permitKey {
	return permitKey{netip.AddrPortFrom(req.Client.Addr, req.Client.Port), req.Sender.Domain}
}

// permit notes that req was permitted if the message meets one of the rules.
func (m *memory) permit(req *policy.Request, rules []*rule) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == nil || len(m.now) >= memorySize || req.Time.Sub(m.turned) > memoryTurn {
		m.past, m.now, m.turned = m.now, make(map[permitKey][]*rule), req.Time
	}
	key := keyOf(req)
	known := m.now[key]
	for _, r := range rules {
		if !slices.Contains(known, r) {
			known = append(slices.Clip(known), r)
		}
	}
	m.now[key] = known
}

// rules returns those of which a message must meet one, nil when no permit
// depends on it.
func (m *memory) rules(req *policy.Request) []*rule {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := keyOf(req)
	return slices.Concat(m.now[key], m.past[key])
}
