package journal

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"postern/policy"
)

// ShadowReport is what checks and chains in shadow mode would have done.
type ShadowReport struct {
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Decisions is how many there are in which shadow mode kept something from
	// counting; each recipient of a message is one, and what is asked at other
	// stages.
	Decisions int           `json:"decisions"`
	Checks    []ShadowCheck `json:"checks"`
}

// ShadowCheck is what one check would have done.
type ShadowCheck struct {
	Check     string        `json:"check"`
	Decisions int           `json:"decisions"`
	Would     []ShadowCount `json:"would"` // the most first
	// Alone is how many of them nothing else refused, nor would have.
	Alone int `json:"alone"`
	// Good is how many came from those who are known as good, GoodBy by what: see
	// the constants.
	Good   int            `json:"good"`
	GoodBy map[string]int `json:"good_by,omitempty"`
	// Samples are some of the newest: of known good first, then of those that
	// nothing else refused.
	Samples []ShadowSample `json:"samples"`
}

// ShadowCount counts decisions of one kind.
type ShadowCount struct {
	Action policy.Action `json:"action"`
	Reason string        `json:"reason"`
	Count  int           `json:"count"`
}

// ShadowSample is one decision.
type ShadowSample struct {
	Time      time.Time     `json:"time"`
	Reference string        `json:"reference"`
	Client    string        `json:"client"`
	Sender    string        `json:"sender"`
	Recipient string        `json:"recipient,omitempty"`
	Action    policy.Action `json:"action"`
	Reason    string        `json:"reason"`
	Good      string        `json:"good,omitempty"` // why its sender is known as good
}

// Why somebody is known as good.
const (
	GoodLogin         = "login"         // one of our users
	GoodCorrespondent = "correspondent" // our users write there
	GoodPassed        = "passed"        // had passed the greylist before
	GoodAllowed       = "allowed"       // an access list or a provider's says so
)

// goodReasons are the reasons in a trace that speak for somebody.
var goodReasons = map[string]string{
	"greylist-correspondent": GoodCorrespondent, "greylist-correspondent-domain": GoodCorrespondent, "greylist-expected": GoodCorrespondent,
	"greylist-known-client": GoodPassed, "greylist-known-triplet": GoodPassed,
	"access-allowed": GoodAllowed, "access-permitted": GoodAllowed, "provider-allowed": GoodAllowed,
}

// maxSamples is how many samples of each sort a check has.
const maxSamples = 5

// goodBy returns why the sender of a decision is known as good, "" when it is
// not.
func goodBy(r *Record) string {
	if r.Login != "" {
		return GoodLogin
	}
	why := ""
	for i := range r.Decision.Steps {
		if s := &r.Decision.Steps[i]; s.Outcome != policy.Skipped {
			if g := goodReasons[s.Verdict.Reason]; g == GoodCorrespondent || why == "" {
				why = cmp.Or(g, why)
			}
		}
	}
	return why
}

// objection is what shadow mode kept from counting.
type objection struct {
	check   string
	verdict policy.Verdict
}

// objections returns what was kept from counting in a decision.
func objections(d *policy.Decision) (out []objection) {
	seen := false
	for i := range d.Steps {
		s := &d.Steps[i]
		if s.Outcome == policy.Shadowed && s.Verdict.Action != policy.Continue && s.Verdict.Action != policy.Allow {
			out = append(out, objection{s.Check, s.Verdict})
			seen = seen || s.Check == d.WouldCheck
		}
	}
	if d.WouldCheck != "" && !seen && d.Would.Action != policy.Allow { // its chain is in shadow, or it could not decide
		out = append(out, objection{d.WouldCheck, d.Would})
	}
	return out
}

// shadowTally adds up a report.
type shadowTally struct {
	only   string // a check; "" for all
	report ShadowReport
	checks map[string]*ShadowCheck
	would  map[string]map[ShadowCount]int
	alone  map[string][]ShadowSample
}

func (t *shadowTally) add(r *Record) {
	all := objections(r.Decision)
	good := goodBy(r)
	counted := false
	for _, o := range all {
		if t.only != "" && o.check != t.only {
			continue
		}
		counted = true
		c := t.checks[o.check]
		if c == nil {
			c = &ShadowCheck{Check: o.check, GoodBy: map[string]int{}}
			t.checks[o.check], t.would[o.check] = c, map[ShadowCount]int{}
		}
		c.Decisions++
		t.would[o.check][ShadowCount{Action: o.verdict.Action, Reason: o.verdict.Reason}]++
		alone := !r.Decision.Verdict.Action.Refuses() && !slices.ContainsFunc(all, func(other objection) bool {
			return other.check != o.check && other.verdict.Action.Refuses()
		})
		if alone {
			c.Alone++
		}
		sample := ShadowSample{r.Time, r.Decision.Reference, r.Client, r.Sender, r.Recipient, o.verdict.Action, o.verdict.Reason, good}
		switch {
		case good != "":
			c.Good++
			c.GoodBy[good]++
			if len(c.Samples) < maxSamples {
				c.Samples = append(c.Samples, sample)
			}
		case alone && len(t.alone[o.check]) < maxSamples:
			t.alone[o.check] = append(t.alone[o.check], sample)
		}
	}
	if counted {
		t.report.Decisions++
	}
}

func (t *shadowTally) finish() *ShadowReport {
	t.report.Checks = []ShadowCheck{}
	for _, name := range slices.Sorted(maps.Keys(t.checks)) {
		c := t.checks[name]
		for what, n := range t.would[name] {
			what.Count = n
			c.Would = append(c.Would, what)
		}
		slices.SortFunc(c.Would, func(a, b ShadowCount) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Action, b.Action), strings.Compare(a.Reason, b.Reason))
		})
		c.Samples = append(c.Samples, t.alone[name]...)
		t.report.Checks = append(t.report.Checks, *c)
	}
	slices.SortStableFunc(t.report.Checks, func(a, b ShadowCheck) int { return cmp.Compare(b.Decisions, a.Decisions) })
	return &t.report
}

// Shadow reports what checks in shadow mode would have done in the decisions
// that the filter lets through. Check is the check that the report is about, ""
// for all; Limit and Verdict are of no use.
func Shadow(ctx context.Context, in searcher, f Filter) (*ShadowReport, error) {
	t := shadowTally{
		only: f.Check, report: ShadowReport{Since: f.Since, Until: f.Until},
		checks: map[string]*ShadowCheck{}, would: map[string]map[ShadowCount]int{}, alone: map[string][]ShadowSample{},
	}
	f.Check, f.Limit, f.Verdict = "", 0, "would"
	_, err := searchRecords(ctx, in, &f, func(r *Record) bool {
		t.add(r)
		return true
	})
	if err != nil {
		return nil, err
	}
	return t.finish(), nil
}
