// Package replay decides requests of the past again, by the present
// configuration and by another, and says what would change. Who decides is
// handed in; where the requests come from is one of the sources of this
// package.
package replay

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/policy"
)

// Item is a request of the past.
type Item struct {
	Request *policy.Request
	// Then is what came of it; nil where that is not known.
	Then *Outcome
	// Ref says where it is from: the reference of its decision, or the place in a
	// file.
	Ref string
}

// Outcome is what comes of a request, as far as it is compared.
type Outcome struct {
	// What is "accepted", "permitted", "refused", "deferred", "held", "discarded"
	// or "redirected".
	What string `json:"what"`
	// Check is whose verdict it is, "" when nobody objected; Reason is its reason.
	Check  string `json:"check,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Reply is what the client reads.
	Reply string `json:"reply,omitempty"`
}

// OutcomeOf is that of a decision.
func OutcomeOf(d *policy.Decision) Outcome {
	o := Outcome{Check: d.Check, Reason: d.Verdict.Reason}
	switch d.Verdict.Action {
	case policy.Continue, policy.Allow:
		return Outcome{What: "accepted"}
	case policy.Permit:
		o.What = "permitted"
	case policy.Reject:
		o.What = "refused"
	case policy.Defer, policy.DeferIfPermit:
		o.What = "deferred"
	case policy.Hold:
		o.What = "held"
	case policy.Discard:
		o.What = "discarded"
	case policy.Redirect:
		o.What = "redirected"
	}
	if d.Verdict.Action.Refuses() {
		o.Reply = d.Verdict.Reply.String()
	}
	return o
}

// Decider decides a request, and remembers what it has seen, as a daemon does.
type Decider interface {
	Decide(ctx context.Context, req *policy.Request, d *policy.Decision)
}

// Report is what a replay has found.
type Report struct {
	Requests int       `json:"requests"`
	From     time.Time `json:"from,omitzero"`
	To       time.Time `json:"to,omitzero"`
	// Alike are those of which the same comes by both configurations, Changed the
	// others.
	Alike   int      `json:"alike"`
	Changed int      `json:"changed"`
	Changes []Change `json:"changes"`
	// Known are those of which is known what came of them then, AsThen those of
	// them of which the same comes by the present configuration here. The others
	// hang on what was known before, or on what has changed since.
	Known  int `json:"known"`
	AsThen int `json:"as_then"`
	// NotThen are the changes from then to the present configuration, counted.
	NotThen map[string]int `json:"not_then,omitempty"`
	// Unrecorded are DNS questions to which no answer was recorded; they were
	// taken for names that do not exist.
	Unrecorded int `json:"unrecorded"`
	// Skipped are records that cannot be decided again, by why.
	Skipped map[string]int `json:"skipped,omitempty"`
}

// Change is a difference, and the requests that have it.
type Change struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Count   int      `json:"count"`
	Causes  []Cause  `json:"causes"`  // the most frequent first
	Samples []Sample `json:"samples"` // the first
}

// Cause is who says what is new, or has said what is no longer.
type Cause struct {
	Check  string `json:"check"`
	Reason string `json:"reason"`
	Count  int    `json:"count"`
}

// Sample is one request of a change.
type Sample struct {
	Time      time.Time    `json:"time"`
	Ref       string       `json:"ref,omitempty"`
	Stage     policy.Stage `json:"stage"`
	Client    string       `json:"client"`
	Name      string       `json:"client_name,omitempty"`
	Helo      string       `json:"helo,omitempty"`
	Sender    string       `json:"sender"`
	Recipient string       `json:"recipient,omitempty"`
	Before    Outcome      `json:"before"`
	After     Outcome      `json:"after"`
}

// change is one under way.
type change struct {
	count   int
	causes  map[[2]string]int
	samples []Sample
}

// Run is one replay.
type Run struct {
	// Before is the present configuration; nil: what came of the requests then
	// stands for it. After is the other one.
	Before, After Decider
	// Samples is how many requests of each change are kept.
	Samples int

	report  Report
	changes map[[2]string]*change
	d       policy.Decision
}

// Add decides a request.
func (r *Run) Add(ctx context.Context, it *Item) {
	at := it.Request.Time
	if r.report.Requests == 0 {
		r.report.From, r.report.To = at, at
	}
	if at.Before(r.report.From) {
		r.report.From = at
	}
	if at.After(r.report.To) {
		r.report.To = at
	}
	r.report.Requests++
	after := r.decide(ctx, r.After, it)
	var before Outcome
	switch {
	case r.Before != nil:
		before = r.decide(ctx, r.Before, it)
		if it.Then != nil {
			r.report.Known++
			if same(it.Then, &before) {
				r.report.AsThen++
			} else {
				if r.report.NotThen == nil {
					r.report.NotThen = make(map[string]int)
				}
				r.report.NotThen[it.Then.What+" -> "+before.What]++
			}
		}
	case it.Then != nil:
		before = *it.Then
		r.report.Known++
	default:
		r.Skip("what came of it is not known")
		return
	}
	if same(&before, &after) {
		r.report.Alike++
		return
	}
	r.report.Changed++
	r.add(it, before, after)
}

func (r *Run) decide(ctx context.Context, by Decider, it *Item) Outcome {
	req := *it.Request // each has its own facts
	r.d.Reset()
	by.Decide(ctx, &req, &r.d)
	return OutcomeOf(&r.d)
}

// same reports whether people would say that the same came of it: whose word
// it was counts only where both say it.
func same(a, b *Outcome) bool {
	return a.What == b.What && (a.Check == b.Check || a.Check == "" || b.Check == "")
}

func (r *Run) add(it *Item, before, after Outcome) {
	if r.changes == nil {
		r.changes = make(map[[2]string]*change)
	}
	key := [2]string{before.What, after.What}
	c := r.changes[key]
	if c == nil {
		c = &change{causes: make(map[[2]string]int)}
		r.changes[key] = c
	}
	c.count++
	cause := [2]string{after.Check, after.Reason}
	if after.Check == "" { // nobody objects any more: who did
		cause = [2]string{before.Check, before.Reason}
	}
	c.causes[cause]++
	if len(c.samples) < r.Samples {
		q := it.Request
		c.samples = append(c.samples, Sample{
			Time: q.Time, Ref: it.Ref, Stage: q.Stage, Client: address(q), Name: q.Client.Name, Helo: q.Helo,
			Sender: q.Sender.Raw, Recipient: q.Recipient.Raw, Before: before, After: after,
		})
	}
}

func address(q *policy.Request) string {
	if !q.Client.Addr.IsValid() {
		return "unknown"
	}
	return q.Client.Addr.String()
}

// Skip counts a record that cannot be decided again.
func (r *Run) Skip(why string) {
	if r.report.Skipped == nil {
		r.report.Skipped = make(map[string]int)
	}
	r.report.Skipped[why]++
}

// Report returns what was found, in an order that depends on nothing else.
func (r *Run) Report() *Report {
	out := r.report
	out.Changes = make([]Change, 0, len(r.changes))
	for key, c := range r.changes {
		causes := make([]Cause, 0, len(c.causes))
		for by, n := range c.causes {
			causes = append(causes, Cause{by[0], by[1], n})
		}
		slices.SortFunc(causes, func(a, b Cause) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Check, b.Check), strings.Compare(a.Reason, b.Reason))
		})
		out.Changes = append(out.Changes, Change{key[0], key[1], c.count, causes, c.samples})
	}
	slices.SortFunc(out.Changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.From, b.From), strings.Compare(a.To, b.To))
	})
	return &out
}

// Threshold is how many requests may change: a number, or a share of all.
type Threshold struct {
	Number int
	Share  float64 // in percent; used when Number is negative
}

// ParseThreshold reads "100" or "0.5%".
func ParseThreshold(s string) (Threshold, error) {
	wrong := fmt.Errorf("%q is neither a number nor a share such as 0.5%%", s)
	if text, percent := strings.CutSuffix(s, "%"); percent {
		share, err := strconv.ParseFloat(text, 64)
		if err != nil || !(share >= 0 && share <= 100) {
			return Threshold{}, wrong
		}
		return Threshold{-1, share}, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return Threshold{}, wrong
	}
	return Threshold{Number: n}, nil
}

// Exceeded reports whether more has changed.
func (t Threshold) Exceeded(r *Report) bool {
	if t.Number >= 0 {
		return r.Changed > t.Number
	}
	return float64(r.Changed)*100 > t.Share*float64(r.Requests)
}

// Sorted returns the keys of a map of counts, the most frequent first.
func Sorted(m map[string]int) []string {
	keys := slices.Collect(maps.Keys(m))
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(m[b], m[a]), strings.Compare(a, b)) })
	return keys
}
