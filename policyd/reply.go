package policyd

import (
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
)

// appendReply appends the answer to a request: one action with its text, one
// line end, one empty line. It never writes an empty action, which Postfix
// reads as permission, nor a bare number, which it reads as permission too.
// header, when not nil, is a field to add to the message; it has a place only
// where the verdict itself needs none.
func appendReply(b []byte, d *policy.Decision, header *policy.Header) []byte {
	v := &d.Verdict
	b = append(b, "action="...)
	switch v.Action {
	case policy.Permit:
		b = append(b, "OK"...)
	case policy.Reject, policy.Defer:
		b = strconv.AppendInt(b, int64(v.Reply.Code), 10)
		b = appendText(b, d)
	case policy.DeferIfPermit:
		b = append(b, "DEFER_IF_PERMIT"...)
		b = appendText(b, d)
	case policy.Hold:
		b = append(b, "HOLD "...)
		b = append(b, orWord(v.Reason, "held by policy")...)
	case policy.Discard:
		b = append(b, "DISCARD "...)
		b = append(b, orWord(v.Reason, "discarded by policy")...)
	case policy.Redirect:
		if mailaddr.Deliverable(v.Arg) {
			b = append(b, "REDIRECT "...)
			b = append(b, v.Arg...)
			break
		}
		b = append(b, "DUNNO"...)
	default: // Continue, Allow
		if header == nil {
			b = append(b, "DUNNO"...)
			break
		}
		b = append(b, "PREPEND "...)
		b = append(b, header.Name...)
		b = append(b, ": "...)
		b = append(b, policy.Printable(header.Value)...)
	}
	return append(b, '\n', '\n')
}

func appendText(b []byte, d *policy.Decision) []byte {
	r := &d.Verdict.Reply
	b = append(b, ' ')
	b = append(b, r.Enhanced...)
	b = append(b, ' ')
	b = append(b, policy.Printable(r.Text)...)
	if d.Reference != "" {
		b = append(b, " [ref "...)
		b = append(b, d.Reference...)
		b = append(b, ']')
	}
	return b
}

func orWord(s, instead string) string {
	if s == "" {
		return instead
	}
	return policy.Printable(s)
}

// messages remembers which header fields a message has been given, so that
// each is added once, however many recipients it has. Postfix takes one
// PREPEND an answer; further fields wait for the next request about the same
// message. It is bounded in number and time.
type messages struct {
	used  atomic.Bool // there has been one: most sites never add a field
	mu    sync.Mutex
	byKey map[messageKey]*message
	order []messageKey // ring, oldest at next
	next  int
}

// messageKey tells messages apart: instance is unique per Postfix host.
type messageKey struct {
	instance string
	server   netip.Addr
}

type message struct {
	at      time.Time
	given   []string // names of fields given or waiting
	waiting []policy.Header
}

const (
	maxMessages = 10_000
	// messageAge is longer than a transaction lasts; instance numbers may
	// come again much later.
	messageAge = time.Hour
)

// take returns the field to add with this answer, nil for none.
func (m *messages) take(req *policy.Request, add []policy.Header) *policy.Header {
	if req.Instance == "" || req.Stage < policy.StageMail || req.Stage > policy.StageData {
		return nil
	}
	if len(add) == 0 && !m.used.Load() {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := messageKey{req.Instance, req.ServerAddr}
	msg := m.byKey[key]
	if msg != nil && req.Time.Sub(msg.at) > messageAge {
		msg.given, msg.waiting, msg.at = nil, nil, req.Time
	}
	if msg == nil {
		if len(add) == 0 {
			return nil
		}
		msg = m.insert(key, req.Time)
	}
	for _, h := range add {
		if !contains(msg.given, h.Name) {
			msg.given = append(msg.given, h.Name)
			msg.waiting = append(msg.waiting, h)
		}
	}
	if len(msg.waiting) == 0 {
		return nil
	}
	h := msg.waiting[0]
	msg.waiting = msg.waiting[1:]
	return &h
}

func (m *messages) insert(key messageKey, now time.Time) *message {
	if m.byKey == nil {
		m.byKey = make(map[messageKey]*message)
		m.used.Store(true)
	}
	// The request's text must not live as long as the message's entry.
	key.instance = strings.Clone(key.instance)
	if len(m.order) < maxMessages {
		m.order = append(m.order, key)
	} else {
		delete(m.byKey, m.order[m.next])
		m.order[m.next] = key
		m.next = (m.next + 1) % maxMessages
	}
	msg := &message{at: now}
	m.byKey[key] = msg
	return msg
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}
