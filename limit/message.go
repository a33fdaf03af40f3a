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
	m.taken = append(make([]ask, 0, len(m.taken)+len(asks)), m.taken...)
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

// door is where the requests of a message come from. Services of one Postfix
// that ask the same listener are told apart by the address that their clients
// connect to.
type door struct {
	listener, context string
	server            netip.AddrPort
}

func doorOf(req *policy.Request) door {
	return door{req.Listener, req.Context, netip.AddrPortFrom(req.ServerAddr, req.ServerPort)}
}

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

// took keeps what a request has taken; m is what its message had before.
func (s *messages) took(req *policy.Request, m *message, asks []ask, levels []meter.Level) {
	if keyOf(req).instance != "" { // else it cannot be told from others
		s.put(req, m.with(req, asks, levels))
	}
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
	if d := doorOf(req); !s.data[d] && len(s.data) < maxDoors {
		d.listener, d.context = strings.Clone(d.listener), strings.Clone(d.context)
		s.data[d] = true
	}
}

// seesData tells whether it is.
func (s *messages) seesData(req *policy.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data[doorOf(req)]
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
