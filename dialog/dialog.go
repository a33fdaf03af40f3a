// Package dialog joins what two doors learn of one SMTP dialogue: the policy
// door is asked at RCPT, the milter door sees the content, and both are told
// the client's address and port by the same smtpd process.
//
// # Who hands out a header field
//
// A field such as X-Greylist must stand in a message once. When the milter
// door has a session open for the client, it hands out all of them, at the end
// of the message; otherwise the policy door does, by PREPEND. The milter goes
// first because it can add any number at once, also to a message that is held
// or redirected (the answer to a policy request has room for one action), and
// because a PREPEND before it makes Postfix before 3.7.11 and 3.8.6 apply
// changes to the wrong field. Postfix opens the milter session before it asks
// the first policy question, and never in the middle of an SMTP session. The milter
// door answers MAIL only after it has called Begin, so what is learned at RCPT
// finds its session and its message, however busy the two doors are.
package dialog

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/policy"
)

// maxAge is longer than a transaction lasts. What is older belongs to another
// one, whose end nobody has told us.
const maxAge = time.Hour

// Bounds of one message, far above what checks produce.
const (
	maxHeaders = 64
	maxFacts   = 256
)

// Table holds the sessions that are open at the milter door. It is safe for
// concurrent use; all of its methods, and those of a Session, may be called
// on nil and then join nothing.
type Table struct {
	max  int
	open atomic.Int64

	mu       sync.Mutex
	byClient map[netip.AddrPort]*Session
}

// New returns an empty table for at most limit sessions. One more is not
// joined: its header fields are handed out by the policy door.
func New(limit int) *Table {
	return &Table{max: limit, byClient: make(map[netip.AddrPort]*Session)}
}

// Session is one SMTP session as the milter door sees it.
type Session struct {
	table  *Table
	client netip.AddrPort
	server netip.Addr

	content bool    // guarded by table.mu
	message message // likewise
}

// message is what the policy door has learned of the message under way.
type message struct {
	at                time.Time
	instance, queueID string
	early             bool // nothing was learned after MAIL
	facts             policy.Facts
	headers           []policy.Header
}

// Open begins a session. server, which may be invalid, is the address that
// the client has connected to. It returns nil, a session that is not joined,
// when the client's address or port is not known, or the table is full. A
// session left over from an earlier client with the same address and port
// loses its place.
func (t *Table) Open(client policy.Client, server netip.Addr) *Session {
	if t == nil || !client.Addr.IsValid() || client.Port == 0 {
		return nil
	}
	s := &Session{table: t, client: netip.AddrPortFrom(client.Addr, client.Port), server: server}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byClient[s.client] == nil && len(t.byClient) >= t.max {
		return nil
	}
	t.byClient[s.client] = s
	t.open.Store(int64(len(t.byClient)))
	return s
}

// Close ends the session.
func (s *Session) Close() {
	if s == nil {
		return
	}
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byClient[s.client] == s {
		delete(t.byClient, s.client)
		t.open.Store(int64(len(t.byClient)))
	}
	s.message = message{}
}

// Len returns the number of open sessions.
func (t *Table) Len() int {
	if t == nil {
		return 0
	}
	return int(t.open.Load())
}

// SeesContent notes that the milter door is shown the content of the session's
// messages.
func (s *Session) SeesContent() {
	if s == nil {
		return
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	s.content = true
}

// Watched reports whether the milter door has a session open for a client, whom
// the SMTP server at that address talks to, and whether it is shown the content
// of its messages. A session that was opened while nobody was interested is not,
// and never will be.
func (t *Table) Watched(client *policy.Client, server netip.Addr) (open, content bool) {
	if t == nil || t.open.Load() == 0 || !client.Addr.IsValid() || client.Port == 0 {
		return false, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.find(client, server)
	return s != nil, s != nil && s.content
}

// find returns the session of a client. The table is locked.
func (t *Table) find(client *policy.Client, server netip.Addr) *Session {
	s := t.byClient[netip.AddrPortFrom(client.Addr, client.Port)]
	if s == nil || s.server.IsValid() && server.IsValid() && s.server != server {
		return nil
	}
	return s
}

// Learn takes what the policy door has decided about req, and reports whether
// the milter door hands out the header fields of d. It costs next to nothing
// while no session is open.
func (t *Table) Learn(req *policy.Request, d *policy.Decision) bool {
	if t == nil || t.open.Load() == 0 || !req.Client.Addr.IsValid() || req.Client.Port == 0 {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.find(&req.Client, req.ServerAddr)
	if s == nil {
		return false
	}
	if req.Stage < policy.StageMail || req.Stage > policy.StageEndOfMessage || d.Verdict.Action.Refuses() {
		return true // nothing of it goes into a message
	}
	m := &s.message
	if m.instance != req.Instance || req.Time.Sub(m.at) > maxAge {
		*m = message{instance: strings.Clone(req.Instance), early: true}
	}
	m.at, m.early = req.Time, m.early && req.Stage == policy.StageMail
	if req.QueueID != "" && m.queueID != req.QueueID {
		m.queueID = strings.Clone(req.QueueID)
	}
	Merge(&m.facts, &req.Facts)
	for _, h := range d.Headers {
		m.headers = Add(m.headers, h)
	}
	return true
}

// Add appends h to the fields of a message, unless there is one of that name.
func Add(headers []policy.Header, h policy.Header) []policy.Header {
	if len(headers) >= maxHeaders || slices.ContainsFunc(headers, func(o policy.Header) bool { return strings.EqualFold(o.Name, h.Name) }) {
		return headers
	}
	return append(headers, h)
}

// Merge adds to facts what is known in from, of the same message. The checks of a later stage, or of another
// recipient, may know less.
func Merge(to, from *policy.Facts) {
	if from.SPF.Result != "" {
		to.SPF = from.SPF
	}
	if from.Provider != "" {
		to.Provider = from.Provider
	}
	if len(from.Listings) > 0 || from.RBLScore != 0 {
		to.RBLScore = from.RBLScore
		to.Listings = slices.Clone(from.Listings[:min(len(from.Listings), maxFacts)])
	}
	for _, mark := range from.Marks {
		if len(to.Marks) < maxFacts {
			to.Mark(mark)
		}
	}
	to.MarkScore = max(to.MarkScore, from.MarkScore)
	for _, missing := range from.Missing {
		if len(to.Missing) < maxFacts && !slices.Contains(to.Missing, missing) {
			to.Missing = append(to.Missing, missing)
		}
	}
}

// Message returns what the policy door has learned of the message under way,
// whose queue id is given, "" when it is not known, and the header fields to
// add to it. What was learned of a message with another queue id is not
// returned.
func (s *Session) Message(queueID string, now time.Time) (policy.Facts, []policy.Header) {
	if s == nil {
		return policy.Facts{}, nil
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	m := &s.message
	if !m.is(queueID, now) {
		return policy.Facts{}, nil
	}
	f := m.facts
	f.Listings, f.Marks, f.Missing = slices.Clone(f.Listings), slices.Clone(f.Marks), slices.Clone(f.Missing)
	return f, slices.Clone(m.headers)
}

// Instance returns the instance by which the policy door knows the message
// under way, under the conditions of Message; "" when it was not asked.
func (s *Session) Instance(queueID string, now time.Time) string {
	if s == nil {
		return ""
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if !s.message.is(queueID, now) {
		return ""
	}
	return s.message.instance
}

// is reports whether a message with that queue id, "" when it is not known,
// may be this one.
func (m *message) is(queueID string, now time.Time) bool {
	return now.Sub(m.at) <= maxAge && (queueID == "" || m.queueID == "" || queueID == m.queueID)
}

// Begin is called at MAIL, before the milter door answers it: what was learned
// of an earlier message, whose end was not told, is forgotten. The policy door
// may have been asked about the new one at MAIL already, which Postfix does
// before it tells the milter.
func (s *Session) Begin() {
	if s == nil {
		return
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if !s.message.early {
		s.message = message{}
	}
}

// End is called when a message is complete, before the milter door answers:
// what was learned of it is forgotten. There is no call for a message that is
// given up, since the MTA waits for no answer to that, and the policy door may
// be asked about the next one first.
func (s *Session) End() {
	if s == nil {
		return
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	s.message = message{}
}
