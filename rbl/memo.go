package rbl

import (
	"hash/maphash"
	"strings"
	"sync/atomic"
	"time"

	"postern/policy"
)

const (
	// memoSize is how many clients' clean answers are remembered.
	memoSize = 4096
	// memoFor bounds how long: what happens to a list in the meantime (it fails
	// its test, it comes back) is seen that much later.
	memoFor = time.Second
)

// memo remembers that no list knew anything of a request's subjects: most
// requests of a moment come from clients that have just been looked up. It is
// a table without chains; who falls into another's place takes it. It is safe
// for concurrent use.
type memo struct {
	seed      maphash.Seed
	questions [memoSize]atomic.Pointer[unlisted]
}

// subjects are what the lists are asked about, by kind.
type subjects [kindCount]subject

type unlisted struct {
	subjects subjects
	until    time.Time
	asked    []*query // those that had something to ask about
}

func (m *memo) slot(s *subjects) *atomic.Pointer[unlisted] {
	h := maphash.Comparable(m.seed, s[KindClient].addr)
	for k := KindClient + 1; k < kindCount; k++ {
		if d := s[k].domain; d != "" {
			h = h*31 + maphash.String(m.seed, d)
		}
	}
	return &m.questions[h%memoSize]
}

// recall reports whether the subjects are known to be clean, and counts as if
// each list had answered from memory.
func (c *Check) recall(s *subjects, req *policy.Request) bool {
	if req.Probe != nil || req.Time.IsZero() {
		return false // every answer is to be shown; a request without a time has no moment
	}
	e := c.memo.slot(s).Load()
	if e == nil || !req.Time.Before(e.until) || e.until.Sub(req.Time) > memoFor || e.subjects != *s {
		return false
	}
	if !req.DryRun {
		for _, q := range e.asked {
			q.list.cached.Add(1)
			q.list.metrics.cached.Inc()
		}
	}
	return true
}

// remember keeps a request of which nothing was found, if every answer came
// from memory.
func (r *evaluation) remember(s *subjects, req *policy.Request) {
	if req.Time.IsZero() {
		return
	}
	until, asked := req.Time.Add(memoFor), 0
	for i := range r.questions {
		question := &r.questions[i]
		if !question.subject.ok() {
			continue
		}
		if question.state != questionDone || !question.cached || question.answer.listing != nil || question.answer.failure != nil {
			return
		}
		if t := time.Unix(0, question.expires); t.Before(until) {
			until = t
		}
		asked++
	}
	if asked == 0 {
		return
	}
	e := &unlisted{subjects: *s, until: until, asked: make([]*query, 0, asked)}
	for i := range r.questions {
		if r.questions[i].subject.ok() {
			e.asked = append(e.asked, &r.check.queries[i])
		}
	}
	for k := range e.subjects { // parts of the request's text, which is larger
		e.subjects[k].domain = strings.Clone(e.subjects[k].domain)
	}
	r.check.memo.slot(s).Store(e)
}
