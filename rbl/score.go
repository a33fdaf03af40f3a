package rbl

import (
	"slices"

	"postern/policy"
)

// query is a question to one list: all entries of a zone and kind.
type query struct {
	list    *list
	kind    Kind
	entries []weighted
	reply   *policy.Template // nil: the check's
	// highest and lowest are the most that an answer can add and take away.
	highest, lowest int
	what            string // for notes: "zen.example.org", "dbl.example.org (sender)"
}

type weighted struct {
	filter *Filter
	weight int
}

// score adds up the entries that an answer matches.
func (q *query) score(l *listing) (sum int, matched bool) {
	for _, e := range q.entries {
		if slices.ContainsFunc(l.codes, e.filter.match) {
			sum, matched = sum+e.weight, true
		}
	}
	return sum, matched
}

// limits are the scores from which on something happens; 0 is never.
type limits struct{ reject, hold, mark int }

// outcome is what a score leads to, worse with each value.
type outcome uint8

const (
	clean     outcome = iota
	marked            // suspicious
	held              // refused for now, by score
	uncertain         // refused for now: an allow list that could have prevented a rejection is missing
	rejected
)

// of returns the outcome of a score. missing is the sum of the negative
// weights that could not be asked for. It is the whole rule.
func (l limits) of(score, missing int) outcome {
	switch {
	case l.reject > 0 && score >= l.reject && score+missing >= l.reject:
		return rejected
	case l.reject > 0 && score >= l.reject:
		return uncertain
	case l.hold > 0 && score >= l.hold:
		return held
	case l.mark > 0 && score >= l.mark:
		return marked
	}
	return clean
}

// settled reports whether answers still outstanding, which can raise the score
// by at most high and lower it by at most -low, or fail, cannot change what
// happens. The outcome grows with the score, and a failed allow list weighs no
// more than a matching one, so the two ends tell. Of who is marked it counts
// how many lists have it: those that may are waited for.
func (l limits) settled(t *tally) bool {
	best := *t
	best.listed = t.listed || t.high > 0
	least := l.of(t.total()+t.low, t.missing)
	return least == l.of(best.total()+t.high, t.missing) && (least != marked || t.high == 0)
}

// tally is what the answers so far add up to.
type tally struct {
	score     int  // of the lists
	marks     int  // what marks of earlier checks weigh
	listed    bool // by a list with a positive weight
	missing   int  // negative weights that could not be asked for
	high, low int  // what outstanding answers can add and take away
	pending   bool // some answer that counts is outstanding
	shadow    int  // what lists in shadow mode would add
	answered  bool // some list that counts gave an answer
	failed    int  // lists that count and gave none
	top       int  // question of the matching list that counts most, -1 for none
}

// total is the score with the marks of earlier checks. They add to what a list
// says against somebody, and are nothing alone.
func (t *tally) total() int {
	if t.listed {
		return t.score + t.marks
	}
	return t.score
}

func (r *evaluation) tally() tally {
	t := tally{top: -1, marks: r.marks}
	best := 0
	for i := range r.questions {
		q, s := &r.check.queries[i], &r.questions[i]
		shadow := q.list.inShadow()
		switch {
		case s.state == questionSkipped:
		case s.state == questionPending:
			if !shadow {
				t.pending = true
				t.high += q.highest
				t.low += q.lowest
			}
		case s.answer.failure != nil:
			if shadow {
				continue
			}
			t.missing += q.lowest
			// A list that is off is known to be no use: no fault of the moment.
			if s.answer.failure.class != failOff {
				t.failed++
			}
		default:
			sum := 0
			if s.answer.listing != nil {
				sum, _ = q.score(s.answer.listing)
			}
			if shadow {
				t.shadow += sum
				continue
			}
			t.answered = true
			t.score += sum
			t.listed = t.listed || sum > 0
			if sum > best {
				best, t.top = sum, i
			}
		}
	}
	return t
}
