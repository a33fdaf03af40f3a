package greylist

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// Contact is one attempt to deliver, as the store sees it.
type Contact struct {
	// Match is by what a retry is recognised: "spf:…", "org:…", "provider:…",
	// "net:…". It may be wide.
	Match string
	// Credit is who earns not to be delayed again, what strangers cannot share:
	// "spf:…", "org:…", "net:… DOMAIN". Empty: nobody.
	Credit    string
	Sender    string // normalised, empty for the null sender
	Recipient string // normalised
	// Addr is the client's address: networks share the room for first contacts.
	Addr netip.Addr
	Time time.Time
	Rule Rule
	// DryRun asks for the outcome only; nothing is written.
	DryRun bool
	// Hold writes nothing if the contact would pass for the first time, or is
	// overdue: whoever asks wants to look at it first.
	Hold bool
}

// Held reports whether an outcome was told and not written.
func (c *Contact) Held(o *Outcome) bool {
	return c.DryRun || c.Hold && o.State.firstPass()
}

// Earns reports whether a pass of the contact counts for somebody.
func (c *Contact) Earns() bool { return c.Credit != "" && c.Rule.KnownAfter > 0 }

// Rule is the arithmetic of greylisting.
type Rule struct {
	Delay      time.Duration // a triplet passes this long after its first contact
	Window     time.Duration // a triplet that has not passed is forgotten this long after its first contact
	Keep       time.Duration // a triplet or credit is forgotten this long after it was last seen
	MaxDelay   time.Duration // a correspondence is never delayed longer than this
	KnownAfter int           // passes after which a side is credited; 0: never
	KnownAge   time.Duration // and the first of them must be this old
	CountEvery time.Duration // at most one pass of a side is counted in this time
}

// State is where a contact stands.
type State uint8

// The states. The first two delay, the others let pass.
const (
	FirstContact State = iota // never seen, now remembered
	EarlyRetry                // seen, and the delay is not over
	FirstPass                 // the delay is over, passes for the first time
	KnownTriplet              // has passed before
	KnownClient               // the sending side has credit
	Overdue                   // the correspondence has waited for Rule.MaxDelay
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

// firstPass reports whether the contact passes for the first time.
func (s State) firstPass() bool { return s == FirstPass || s == Overdue }

// Outcome is what the store made of a contact.
type Outcome struct {
	State    State
	First    time.Time     // first contact of the triplet; of the correspondence when Overdue; zero for KnownClient
	Wait     time.Duration // how long until it would pass; 0 unless State.Delays()
	Attempts int           // contacts of the triplet that were delayed, this one included
	Passes   int           // passes counted for the side that is credited, as far as was looked at
}

// Store is the state that greylisting needs. Both calls are atomic per key,
// safe for concurrent use, and return by ctx's deadline. An error means that
// the contact may not have been remembered.
type Store interface {
	TouchGreylist(ctx context.Context, c *Contact) (Outcome, error)
}

// Triplet is the stored state of (match, sender, recipient) once it has
// passed. Times are Unix milliseconds. First == 0 means that there is none.
type Triplet struct {
	First, Last      int64
	Attempts, Passes uint32
}

// Credit is the stored state of a side that has passed. First == 0 means none.
type Credit struct {
	First, Last, Counted int64 // first pass, last seen, when a pass was last counted
	Passes               uint32
}

// Waiting is the stored state of a correspondence, sender and recipient, in
// which some side waits. Since == 0 means that nobody does.
type Waiting struct {
	Since, Last int64  // since when somebody waits without a pass, last contact
	Side        Side   // the first side
	More        []Side // further ones
}

// Side is a sending side that waits. First == 0 means none.
type Side struct {
	Match       string
	First, Last int64
	Attempts    uint32
}

// MaxSides is how many sides of one correspondence are remembered.
const MaxSides = 8

// find returns the side of that name, nil when there is none.
func (w *Waiting) find(match string) *Side {
	if w.Side.First != 0 && w.Side.Match == match {
		return &w.Side
	}
	for i := range w.More {
		if w.More[i].Match == match {
			return &w.More[i]
		}
	}
	return nil
}

// add makes room for a side. Where all places are taken the one that came last
// and was not tried again goes: a flood of forged contacts cannot push out who
// has waited for longer. Whoever is pushed out still passes after MaxDelay.
func (w *Waiting) add(match string) *Side {
	if w.Side.First == 0 {
		w.Side = Side{Match: match}
		return &w.Side
	}
	if len(w.More) < MaxSides-1 {
		w.More = append(w.More, Side{Match: match})
		return &w.More[len(w.More)-1]
	}
	newest := &w.Side
	for i := range w.More {
		if s := &w.More[i]; s.Attempts < newest.Attempts || s.Attempts == newest.Attempts && s.First >= newest.First {
			newest = s
		}
	}
	*newest = Side{Match: match}
	return newest
}

// remove takes a side out.
func (w *Waiting) remove(s *Side) {
	if s != &w.Side {
		*s = w.More[len(w.More)-1]
		w.More = w.More[:len(w.More)-1]
	} else if n := len(w.More); n > 0 {
		w.Side, w.More = w.More[n-1], w.More[:n-1]
	} else {
		w.Side = Side{}
	}
	if len(w.More) == 0 {
		w.More = nil
	}
}

// Forget takes a side out and reports whether it was there.
func (w *Waiting) Forget(match string) bool {
	s := w.find(match)
	if s != nil {
		w.remove(s)
	}
	return s != nil
}

// expire drops sides whose time is over.
func (w *Waiting) expire(now, window int64) {
	over := func(s Side) bool { return now-s.First > window }
	w.More = slices.DeleteFunc(w.More, over)
	if w.Side.First != 0 && over(w.Side) {
		w.Side = Side{}
		if len(w.More) > 0 {
			w.Side = w.More[0]
			w.More = slices.Delete(w.More, 0, 1)
		}
	}
	if len(w.More) == 0 {
		w.More = nil
	}
}

// Advance applies a contact to the records it touches and tells its outcome.
// It is the whole rule, shared by every store that keeps state in this
// process; a store elsewhere mirrors it and is held to it by the conformance
// suite. It asks in three steps, so that a store reads no record that does not
// count: a triplet that has passed, credit, and those who wait. A record whose
// time is over counts as absent, whatever the store's own expiry has done so
// far. A clock that stepped back makes the wait start again, never longer than
// Delay; what was written by a clock that was ahead counts as of now.
func Advance(c *Contact, t *Triplet, cr *Credit, w *Waiting) Outcome {
	if !c.Earns() {
		cr = new(Credit)
	}
	out, known, count := Known(c, t)
	if known {
		if count {
			cr.count(c)
			out.Passes = int(cr.Passes)
		}
		return out
	}
	if out, known = Credited(c, cr); known {
		return out
	}
	return Wait(c, t, cr, w)
}

// Known is the first step of [Advance]: a triplet that has passed passes
// again. count is set when its credit is to be looked at, [CountPass].
func Known(c *Contact, t *Triplet) (out Outcome, known, count bool) {
	now := c.Time.UnixMilli()
	if t.First == 0 || t.Passes == 0 {
		return out, false, false
	}
	t.First, t.Last = min(t.First, now), min(t.Last, now)
	if now-t.Last > c.Rule.Keep.Milliseconds() {
		*t = Triplet{}
		return out, false, false
	}
	// A pass can be counted once in each slot of CountEvery: most contacts of
	// a busy correspondence need not look.
	every := c.Rule.CountEvery.Milliseconds()
	count = c.Earns() && (every == 0 || now/every != t.Last/every)
	t.Last = now
	t.Passes++
	return Outcome{State: KnownTriplet, First: time.UnixMilli(t.First), Attempts: int(t.Attempts)}, true, count
}

// CountPass counts a pass of a known triplet for its credit.
func CountPass(c *Contact, cr *Credit) { cr.count(c) }

// Credited is the second step of [Advance]: a side that has credit passes. It
// is only asked of a contact that earns.
func Credited(c *Contact, cr *Credit) (out Outcome, known bool) {
	cr.settle(c)
	now := c.Time.UnixMilli()
	if r := &c.Rule; c.Earns() && int(cr.Passes) >= r.KnownAfter && now-cr.First >= r.KnownAge.Milliseconds() {
		cr.Last = now
		return Outcome{State: KnownClient, Passes: int(cr.Passes)}, true
	}
	return out, false
}

// Wait is the third step of [Advance]: who is not known waits, or has waited
// for long enough. t is set when it passes.
func Wait(c *Contact, t *Triplet, cr *Credit, w *Waiting) Outcome {
	now := c.Time.UnixMilli()
	r := &c.Rule
	window := r.Window.Milliseconds()
	w.Since, w.Last, w.Side.First = min(w.Since, now), min(w.Last, now), min(w.Side.First, now)
	for i := range w.More {
		w.More[i].First = min(w.More[i].First, now)
	}
	w.expire(now, window)
	if w.Since == 0 || now-w.Last > window {
		w.Since = now
	}
	w.Last = now

	state := EarlyRetry
	s := w.find(c.Match)
	if s == nil {
		state = FirstContact
		s = w.add(c.Match)
		s.First = now
	}
	s.Last = now
	wait := r.Delay.Milliseconds() - (now - s.First)
	overdue := r.MaxDelay.Milliseconds() - (now - w.Since)
	if wait > 0 && overdue > 0 {
		s.Attempts++
		return Outcome{
			State: state, First: time.UnixMilli(s.First), Attempts: int(s.Attempts), Passes: int(cr.Passes),
			Wait: time.Duration(min(wait, overdue)) * time.Millisecond,
		}
	}
	out := Outcome{State: FirstPass, First: time.UnixMilli(s.First), Attempts: int(s.Attempts)}
	if wait > 0 {
		out.State, out.First = Overdue, time.UnixMilli(w.Since)
	}
	*t = Triplet{First: s.First, Last: now, Attempts: s.Attempts, Passes: 1}
	w.remove(s)
	w.Since = 0 // nobody waits in vain any more; who still does begins anew
	if w.Side.First != 0 {
		w.Since = now
	}
	cr.count(c)
	out.Passes = int(cr.Passes)
	return out
}

// settle drops a credit whose time is over, and brings times of a clock that
// was ahead to now.
func (cr *Credit) settle(c *Contact) {
	now := c.Time.UnixMilli()
	cr.First, cr.Last, cr.Counted = min(cr.First, now), min(cr.Last, now), min(cr.Counted, now)
	if cr.First != 0 && now-cr.Last > c.Rule.Keep.Milliseconds() {
		*cr = Credit{}
	}
}

// count adds a pass, at most one in Rule.CountEvery.
func (cr *Credit) count(c *Contact) {
	if !c.Earns() {
		return
	}
	cr.settle(c)
	now := c.Time.UnixMilli()
	if cr.First == 0 {
		*cr = Credit{First: now}
	}
	if cr.Passes == 0 || now-cr.Counted >= c.Rule.CountEvery.Milliseconds() {
		cr.Passes++
		cr.Counted = now
	}
	cr.Last = now
}

// Entry is one stored triplet, side with credit or waiting correspondence as
// the administrator sees it.
type Entry struct {
	Kind      string    `json:"kind"` // "triplet", "credit", "waiting"
	Match     string    `json:"match,omitempty"`
	Credit    string    `json:"credit,omitempty"`
	Sender    string    `json:"sender,omitempty"`
	Recipient string    `json:"recipient,omitempty"`
	First     time.Time `json:"first,omitzero"`
	Last      time.Time `json:"last,omitzero"`
	Attempts  int       `json:"attempts,omitempty"`
	Passes    int       `json:"passes,omitempty"`
	Counted   time.Time `json:"counted,omitzero"` // credit: when a pass was last counted
	Since     time.Time `json:"since,omitzero"`   // waiting: since when the correspondence waits without a pass
}

// Kinds of entries.
const (
	KindTriplet = "triplet" // has passed
	KindCredit  = "credit"  // a side, and what it has earned
	KindWaiting = "waiting" // a side that waits in a correspondence
)

// Filter picks entries. Empty fields match everything; the others match a
// part of the field, without regard to case. Who is looked for in Match and in
// Credit.
type Filter struct {
	Kind                   string // exact
	Who, Sender, Recipient string
	Limit                  int // most entries to return; 0: all
}

// Counts are the totals that `postern greylist stats` shows.
type Counts struct {
	Triplets int `json:"triplets"` // that have passed
	Credits  int `json:"credits"`  // sides that have passed
	Waiting  int `json:"waiting"`  // first contacts that have not
}

// Add counts an entry.
func (n *Counts) Add(e *Entry) {
	switch e.Kind {
	case KindTriplet:
		n.Triplets++
	case KindCredit:
		n.Credits++
	case KindWaiting:
		n.Waiting++
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
	// MergeGreylist adds what entries of another store tell, in such a way that
	// nobody is known less afterwards. Of r it uses Window and Keep.
	MergeGreylist(ctx context.Context, entries []Entry, r *Rule, now time.Time) (Merged, error)
}
