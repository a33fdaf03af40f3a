package limit

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"postern/internal/meter"
	"postern/policy"
)

// Bounds of what is kept of messages that are being handed in. What is dropped
// for others is counted as if its recipients were messages of their own, and is
// not given back.
const (
	maxMessages = 20_000
	maxTaken    = 1000 // meters of one message
	maxDoors    = 256
)

// message is what one message has taken so far.
type message struct {
	recipients int
	taken      []ask
	// givenBack says that taken has been given back.
	givenBack bool
}

// counts reports whether the message has been counted by a rule.
func (m *message) counts(r *rule) bool {
	return slices.ContainsFunc(m.taken, func(a ask) bool { return a.rule.Name == r.Name })
}

// with returns m with what a request has taken besides.
func (m message) with(req *policy.Request, asks []ask, levels []meter.Level) message {
	if req.Stage == policy.StageRcpt {
		m.recipients++
	}
	if m.givenBack {
		m.givenBack, m.taken = false, nil // it is among asks
	}
	m.taken = slices.Clone(m.taken)
	for i, a := range asks {
		if levels[i].Over {
			continue
		}
		if at := slices.IndexFunc(m.taken, func(b ask) bool { return b.Key == a.Key }); at >= 0 {
			m.taken[at].Add += a.Add
		} else if len(m.taken) < maxTaken {
			m.taken = append(m.taken, a)
		}
	}
	return m
}

// messageKey is one mail transaction.
type messageKey struct {
	instance string
	client   netip.Addr
	port     uint16
}

// door is where the requests of a message come from.
type door struct{ listener, context string }

// messages are those that are being handed in. It is safe for concurrent use;
// the requests of one message come one after another.
type messages struct {
	most int

	mu    sync.Mutex
	byKey map[messageKey]message
	ring  []messageKey // in the order in which they came, from next on
	next  int
	data  map[door]bool // where DATA or the end of a message is asked about
}

func newMessages(most int) *messages {
	return &messages{most: most, byKey: make(map[messageKey]message), data: make(map[door]bool)}
}

func keyOf(req *policy.Request) messageKey {
	k := messageKey{req.Instance, req.Client.Addr, req.Client.Port}
	if req.Joined != "" {
		k.instance = req.Joined
	}
	return k
}

// of returns what a request's message has taken before.
func (s *messages) of(req *policy.Request) message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[keyOf(req)]
}

// put keeps what the message has taken by now.
func (s *messages) put(req *policy.Request, m message) {
	key := keyOf(req)
	if key.instance == "" {
		return // it cannot be told from others
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.byKey[key]; !there {
		key.instance = strings.Clone(key.instance) // a door uses the memory of a request again
		if len(s.ring) < s.most {
			s.ring = append(s.ring, key)
		} else {
			delete(s.byKey, s.ring[s.next])
			s.ring[s.next] = key
			s.next = (s.next + 1) % s.most
		}
	}
	s.byKey[key] = m
}

// sawData notes that DATA or the end of a message is asked about where a
// request comes from.
func (s *messages) sawData(req *policy.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := (door{req.Listener, req.Context}); !s.data[d] && len(s.data) < maxDoors {
		s.data[door{strings.Clone(req.Listener), strings.Clone(req.Context)}] = true
	}
}

// seesData tells whether it is.
func (s *messages) seesData(req *policy.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data[door{req.Listener, req.Context}]
}

// maxWarned is of how many meters it is known that they have been warned about.
const maxWarned = 10_000

// warned are the meters that have been warned about.
type warned struct {
	mu   sync.Mutex
	keys map[string]bool
}

func newWarned() *warned { return &warned{keys: make(map[string]bool)} }

// first reports whether a meter is to be warned about: when it is not below
// the mark and was when it was last looked at.
func (w *warned) first(key string, below bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if below {
		delete(w.keys, key)
		return false
	}
	if w.keys[key] {
		return false
	}
	if len(w.keys) >= maxWarned {
		clear(w.keys)
	}
	w.keys[strings.Clone(key)] = true
	return true
}
