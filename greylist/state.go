package greylist

import (
	"context"
	"time"
)

// Contact is one attempt to deliver, as the store sees it.
type Contact struct {
	Who       string // identity of the sending side: "spf:…", "org:…", "provider:…", "net:…"
	Sender    string // normalised, empty for the null sender
	Recipient string // normalised
	Time      time.Time
	Rule      Rule
	// DryRun asks for the outcome only; nothing is written.
	DryRun bool
}

// Rule is the arithmetic of greylisting.
type Rule struct {
	Delay      time.Duration // a triplet passes this long after its first contact
	Window     time.Duration // a triplet that has not passed is forgotten this long after its first contact
	Keep       time.Duration // a triplet or client that has passed is forgotten this long after it was last seen
	MaxDelay   time.Duration // a pair of sender and recipient is never delayed longer than this
	KnownAfter int           // passes after which a client is known; 0: never
	CountEvery time.Duration // at most one pass of a client is counted in this time
}

// State is where a contact stands.
type State uint8

// The states. The first two delay, the others let pass.
const (
	FirstContact State = iota // never seen, now remembered
	EarlyRetry                // seen, and the delay is not over
	FirstPass                 // the delay is over, passes for the first time
	KnownTriplet              // has passed before
	KnownClient               // the client has passed often enough
	Overdue                   // the pair has waited for Rule.MaxDelay
)

var stateNames = [...]string{"first-contact", "early-retry", "first-pass", "known-triplet", "known-client", "overdue"}

// String returns the slug used in reasons, logs and metrics.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// Delays reports whether the contact must come back later.
func (s State) Delays() bool { return s <= EarlyRetry }

// Outcome is what the store made of a contact.
type Outcome struct {
	State    State
	First    time.Time     // first contact of the triplet; of the pair when Overdue; zero for KnownClient
	Wait     time.Duration // how long until it would pass; 0 unless State.Delays()
	Attempts int           // contacts of the triplet that were delayed, this one included
	Passes   int           // passes counted for the client so far
}

// Store is the state that greylisting needs. Both calls are atomic per key,
// safe for concurrent use, and return by ctx's deadline. An error means that
// the contact may not have been remembered.
type Store interface {
	TouchGreylist(ctx context.Context, c *Contact) (Outcome, error)
}

// Triplet is the stored state of (who, sender, recipient). Times are Unix
// milliseconds. First == 0 means that there is no entry.
type Triplet struct {
	First, Last      int64
	Attempts, Passes uint32
}

// Client is the stored state of a sending side. Last == 0 means no entry.
type Client struct {
	Last, Counted int64 // last seen; when a pass was last counted
	Passes        uint32
}

// Pair is the stored state of (sender, recipient). First == 0 means no entry.
type Pair struct {
	First, Last int64
}

// Advance applies a contact to the three entries it touches and tells its
// outcome. It is the whole rule, shared by every store that keeps state in
// this process; a store elsewhere mirrors it and is held to it by the
// conformance suite. An entry whose time is over counts as absent, whatever
// the store's own expiry has done so far. A clock that stepped back makes the
// wait start again, never longer than Delay.
func Advance(c *Contact, t *Triplet, cl *Client, p *Pair) Outcome {
	now := c.Time.UnixMilli()
	r := &c.Rule
	keep, window := r.Keep.Milliseconds(), r.Window.Milliseconds()

	if cl.Last != 0 && now-cl.Last > keep {
		*cl = Client{}
	}
	if r.KnownAfter > 0 && int(cl.Passes) >= r.KnownAfter {
		cl.Last = max(cl.Last, now)
		return Outcome{State: KnownClient, Passes: int(cl.Passes)}
	}

	if t.First > now {
		t.First = now
	}
	if t.First != 0 && (t.Passes == 0 && now-t.First > window || t.Passes > 0 && now-t.Last > keep) {
		*t = Triplet{}
	}
	if t.Passes > 0 {
		t.Last = max(t.Last, now)
		t.Passes++
		cl.count(now, r)
		return Outcome{State: KnownTriplet, First: time.UnixMilli(t.First), Attempts: int(t.Attempts), Passes: int(cl.Passes)}
	}

	state := EarlyRetry
	if t.First == 0 {
		state = FirstContact
		t.First = now
	}
	t.Last = now
	wait := r.Delay.Milliseconds() - (now - t.First)
	if wait <= 0 {
		t.Passes = 1
		*p = Pair{}
		cl.count(now, r)
		return Outcome{State: FirstPass, First: time.UnixMilli(t.First), Attempts: int(t.Attempts), Passes: int(cl.Passes)}
	}

	if p.First > now {
		p.First = now
	}
	if p.First == 0 || now-p.Last > window {
		p.First = now
	}
	p.Last = now
	overdue := r.MaxDelay.Milliseconds() - (now - p.First)
	if overdue <= 0 {
		first := time.UnixMilli(p.First)
		t.Passes = 1
		*p = Pair{}
		cl.count(now, r)
		return Outcome{State: Overdue, First: first, Attempts: int(t.Attempts), Passes: int(cl.Passes)}
	}
	t.Attempts++
	return Outcome{
		State: state, First: time.UnixMilli(t.First), Attempts: int(t.Attempts), Passes: int(cl.Passes),
		Wait: time.Duration(min(wait, overdue)) * time.Millisecond,
	}
}

// count adds a pass of the client, at most one in r.CountEvery.
func (cl *Client) count(now int64, r *Rule) {
	cl.Last = max(cl.Last, now)
	if cl.Passes == 0 || now-cl.Counted >= r.CountEvery.Milliseconds() {
		cl.Passes++
		cl.Counted = now
	}
}

// Entry is one stored triplet, client or pair as the administrator sees it.
type Entry struct {
	Kind      string    `json:"kind"` // "triplet", "client", "pair"
	Who       string    `json:"who,omitempty"`
	Sender    string    `json:"sender,omitempty"`
	Recipient string    `json:"recipient,omitempty"`
	First     time.Time `json:"first,omitzero"`
	Last      time.Time `json:"last,omitzero"`
	Attempts  int       `json:"attempts,omitempty"`
	Passes    int       `json:"passes,omitempty"`
}

// Filter picks entries. Empty fields match everything; the others match a
// part of the field, without regard to case.
type Filter struct {
	Kind                   string // exact
	Who, Sender, Recipient string
	Limit                  int // most entries to return; 0: all
}

// Counts are the totals that `postern greylist stats` shows.
type Counts struct {
	Triplets int `json:"triplets"`
	Passed   int `json:"passed"` // triplets that have passed at least once
	Clients  int `json:"clients"`
	Pairs    int `json:"pairs"`
}

// Add counts an entry.
func (n *Counts) Add(e *Entry) {
	switch e.Kind {
	case "triplet":
		n.Triplets++
		if e.Passes > 0 {
			n.Passed++
		}
	case "client":
		n.Clients++
	case "pair":
		n.Pairs++
	}
}

// AdminStore is what the administrator's commands need of the store.
type AdminStore interface {
	// ListGreylist calls yield for each live entry until it returns false.
	// The order is that of the store.
	ListGreylist(ctx context.Context, f Filter, now time.Time, yield func(Entry) bool) error
	// ForgetGreylist removes what f picks and returns how many entries that was.
	ForgetGreylist(ctx context.Context, f Filter) (int, error)
	// CountGreylist counts live entries. It may read the whole store.
	CountGreylist(ctx context.Context, now time.Time) (Counts, error)
}
