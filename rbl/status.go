package rbl

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
)

// State is how a list takes part.
type State uint8

// The states.
const (
	StateOn       State = iota // asked, and its listings count
	StateShadow                // asked, but its listings do not count
	StateOff                   // not asked, or not for everything: it fails its test
	StateDead                  // does not answer, and is not waited for
	StateUntested              // its listings count when it has passed its test
	stateCount
)

var stateNames = [stateCount]string{"on", "shadow", "off", "dead", "untested"}

// String returns the name used in status and metrics.
func (s State) String() string {
	if s < stateCount {
		return stateNames[s]
	}
	return "unknown"
}

// MarshalText implements [encoding.TextMarshaler].
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *State) UnmarshalText(text []byte) error {
	for i, name := range stateNames {
		if name == string(text) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("unknown state %q", text)
}

// Status is what `postern status` shows of a list.
type Status struct {
	List    string      `json:"list"` // public name
	Entries []string    `json:"entries"`
	Mode    policy.Mode `json:"mode"` // as configured
	State   State       `json:"state"`
	// Why says what keeps the list from counting; empty for StateOn.
	Why string `json:"why,omitempty"`
	// Tests is what the test says of each part in use: "ipv4", "ipv6",
	// "domain" to "passed", "failed", "absent" (no such entries), "untested",
	// "trusted" (test = false).
	Tests       map[string]string `json:"tests"`
	LastTest    time.Time         `json:"last_test,omitzero"`
	LastPass    time.Time         `json:"last_pass,omitzero"`
	NextTest    time.Time         `json:"next_test,omitzero"`
	Queries     uint64            `json:"queries"` // sent to the resolver
	Cached      uint64            `json:"cached"`  // answered from memory
	Hits        uint64            `json:"hits"`    // requests for which an entry matched
	Errors      uint64            `json:"errors"`  // queries without a usable answer
	LastError   string            `json:"last_error,omitempty"`
	LastErrorAt time.Time         `json:"last_error_at,omitzero"`
	// Seen and Listed are the distinct clients that the volume guard looks at.
	Seen   int `json:"seen"`
	Listed int `json:"listed"`
}

// state returns how the list takes part now.
func (l *list) state() State {
	some, all := l.testState()
	switch {
	case some == failed:
		return StateOff
	case l.inShadow():
		return StateShadow
	case l.dead.Load():
		return StateDead
	case all == untested:
		return StateUntested
	}
	return StateOn
}

// testState returns failed as some if any aspect in use has failed, and
// untested as all if none has been tested.
func (l *list) testState() (some, all health) {
	some, all = passed, untested
	for a := range aspectCount {
		if !l.aspects[a] {
			continue
		}
		switch l.healthOf(a) {
		case failed:
			some, all = failed, passed
		case untested:
		default:
			all = passed
		}
	}
	return some, all
}

// Status tells about every list that is not mode = "off", in the order of the
// configuration.
func (c *Check) Status() Statuses {
	out := make([]Status, 0, len(c.lists))
	for _, l := range c.lists {
		out = append(out, c.status(l))
	}
	return out
}

func (c *Check) status(l *list) Status {
	s := Status{
		List: l.name, State: l.state(), Tests: map[string]string{},
		Queries: l.queries.Load(), Cached: l.cached.Load(), Hits: l.hits.Load(), Errors: l.failures.Load(),
	}
	if l.shadow {
		s.Mode = policy.Shadow
	}
	for i := range c.queries {
		if q := &c.queries[i]; q.list == l {
			for _, e := range q.entries {
				s.Entries = append(s.Entries, Entry{Kind: q.kind, Zone: l.name, Filter: e.filter, Weight: e.weight}.String())
			}
		}
	}
	for a := range aspectCount {
		if l.aspects[a] {
			s.Tests[a.String()] = l.healthOf(a).String()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.LastTest, s.LastPass, s.NextTest = l.lastTest, l.lastPass, l.next
	s.LastError, s.LastErrorAt = l.lastError, l.errorAt
	s.Seen, s.Listed = l.window.counts()
	switch s.State {
	case StateOff:
		s.Why = l.faults()
	case StateShadow:
		s.Why = "mode = \"shadow\""
		if l.tripped.Load() {
			s.Why = fmt.Sprintf("listed %d percent or more of at least %d clients at %s",
				l.volume.Share, l.volume.Clients, l.tripAt.UTC().Format(time.RFC3339))
		}
	case StateDead:
		s.Why = fmt.Sprintf("no answer to %d queries since %s", l.streak, l.streakFrom.UTC().Format(time.RFC3339))
	case StateUntested:
		s.Why = "could not be tested yet: " + orUnknown(l.lastError)
	default: // nothing keeps it
	}
	return s
}

// Result is what one list says about an address.
type Result struct {
	List    string        `json:"list"`
	State   State         `json:"state"`
	Listed  bool          `json:"listed"`            // an entry matches
	Codes   []string      `json:"codes,omitempty"`   // A records
	Reasons string        `json:"reasons,omitempty"` // TXT records
	Weight  int           `json:"weight"`            // of the entries that match
	Counts  bool          `json:"counts"`            // the weight is part of the total
	Error   string        `json:"error,omitempty"`
	Cached  bool          `json:"cached"`
	Took    time.Duration `json:"took"`
}

// TestReport is what all lists say about an address.
type TestReport struct {
	Addr    netip.Addr `json:"addr"`
	Results []Result   `json:"results"`
	Score   int        `json:"score"`
	// Action is what the total would lead to, Reason its slug, Reply what the
	// client would read.
	Action policy.Action `json:"action"`
	Reason string        `json:"reason,omitempty"`
	Reply  policy.Reply  `json:"reply,omitzero"`
	// Note says why requests of this address are not looked up, if so.
	Note string `json:"note,omitempty"`
}

// TestIP asks every list of addresses about addr, those that are off or in
// shadow too, whatever the address, and says what the total would lead to. It
// counts nothing against the client. It takes no longer than a list's time
// limit and the one for reasons; ctx ends only the latter.
func (c *Check) TestIP(ctx context.Context, addr netip.Addr) TestReport {
	addr = addr.Unmap().WithZone("")
	rep := TestReport{Addr: addr, Results: []Result{}}
	if !c.cfg.AskPrivate && !mailaddr.IsGlobal(addr) {
		rep.Note = "not a global address: requests of this client are not looked up"
	}
	r := &evaluation{check: c, questions: make([]question, len(c.queries))}
	reasons := make([]string, len(c.queries))
	var wg sync.WaitGroup
	for i := range c.queries {
		if q, s := &c.queries[i], &r.questions[i]; q.kind == KindClient {
			wg.Go(func() { reasons[i] = c.testOne(ctx, q, s, addr) })
		}
	}
	wg.Wait()
	for i := range c.queries {
		q, s := &c.queries[i], &r.questions[i]
		if q.kind != KindClient {
			continue
		}
		rep.Results = append(rep.Results, q.result(s, reasons[i]))
		// The total is what a request would get: without what is off.
		if off, broken := q.list.off(s.subject.aspect()); broken {
			s.answer = answer{failure: failureOff}
		} else if off {
			s.state = questionSkipped
		}
	}
	req := &policy.Request{Client: policy.Client{Addr: addr}, Time: time.Now(), DryRun: true}
	v, err := r.conclude(ctx, req)
	rep.Score, rep.Action, rep.Reason, rep.Reply = req.Facts.RBLScore, v.Action, v.Reason, v.Reply
	if err != nil && rep.Note == "" {
		rep.Note = err.Error()
	}
	return rep
}

// testOne fills the question of a list and returns the list's words.
func (c *Check) testOne(ctx context.Context, q *query, s *question, addr netip.Addr) string {
	s.subject = subject{addr: addr}
	s.state = questionDone
	start := time.Now()
	a, cached := c.shared.cached(cacheKey{q.list.listState, s.subject}, start)
	if cached {
		s.answer, s.cached = a, true
	} else {
		s.answer, _, _ = c.ask(q.list, s.subject, false)
	}
	s.took = time.Since(start)
	if s.answer.listing == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, max(c.cfg.ReasonTimeout.D(), time.Second))
	defer cancel()
	return policy.Printable(q.list.reason(ctx, s.subject))
}

func (q *query) result(s *question, reason string) Result {
	res := Result{List: q.list.name, State: q.list.state(), Reasons: reason, Cached: s.cached, Took: s.took}
	switch off, _ := q.list.off(s.subject.aspect()); {
	case s.answer.failure != nil:
		res.Error = s.answer.failure.text
	case s.answer.listing != nil:
		for _, code := range s.answer.listing.codes {
			res.Codes = append(res.Codes, code.String())
		}
		res.Weight, res.Listed = q.score(s.answer.listing)
		res.Counts = res.Listed && !off && !q.list.inShadow()
	}
	return res
}
