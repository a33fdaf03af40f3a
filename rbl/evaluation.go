package rbl

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"postern/policy"
)

// question is one query of a request: a list asked about a subject, and what has come of it.
type question struct {
	subject subject
	answer  answer
	flight  *flight // not nil: under way
	state   questionState
	cached  bool
	expires int64 // of a cached answer, Unix ns
	took    time.Duration
}

type questionState uint8

const (
	questionSkipped questionState = iota // nothing to ask about, or the list has no such entries
	questionPending
	questionDone
)

// evaluation is the state of one Evaluate. It is reused.
type evaluation struct {
	check     *Check
	questions []question
	wake      chan struct{} // a token: some query is done, perhaps one of an earlier use
	showAll   bool          // every answer is waited for
	marks     int           // what marks of earlier checks weigh
	anew      bool          // only answers that were asked for anew count
}

func (r *evaluation) release() {
	clear(r.questions)
	r.check.runs.Put(r)
}

// begin takes from memory what is there and asks for the rest. It returns the
// number of queries under way.
func (r *evaluation) begin(req *policy.Request, about *subjects) (pending int) {
	c := r.check
	r.showAll, r.marks = req.Probe != nil, req.Facts.MarkScore
	now := time.Now()
	for i := range c.queries {
		q, s := &c.queries[i], &r.questions[i]
		s.subject = about[q.kind]
		if !s.subject.ok() || len(s.subject.domain)+1+len(q.list.suffix) > 253 {
			continue
		}
		if off, broken := q.list.off(s.subject.aspect()); off {
			if broken {
				s.state, s.answer = questionDone, answer{failure: failureOff}
			}
			continue
		}
		key := cacheKey{q.list.listState, s.subject}
		var ok bool
		if s.answer, s.expires, ok = c.shared.cachedUntil(key, now); ok && (!r.anew || c.shared.isNew(key, now)) {
			s.state, s.cached = questionDone, true
			if !req.DryRun {
				q.list.cached.Add(1)
				q.list.metrics.cached.Inc()
			}
			continue
		}
		r.send(q, s, !req.DryRun)
		if s.state == questionPending {
			pending++
		}
	}
	return pending
}

var (
	failureOff  = &failure{failOff, "off, it fails its test"}
	failureDead = &failure{failDead, "does not answer"}
	failureBusy = &failure{failBusy, "too many queries in flight"}
	failureLate = &failure{failTimeout, "no answer in time"}
)

// send starts the query of a question.
func (r *evaluation) send(q *query, s *question, counted bool) {
	l := q.list
	if l.dead.Load() {
		// One query at a time finds out whether it is back. Nobody waits.
		s.state, s.answer = questionDone, answer{failure: failureDead}
		if l.probing.CompareAndSwap(false, true) {
			r.check.revive(l, s.subject, counted)
		}
		return
	}
	if s.flight = r.check.join(l, s.subject, r.wake, counted, r.anew); s.flight != nil {
		s.state = questionPending
		return
	}
	s.state, s.answer = questionDone, answer{failure: failureBusy}
	l.failures.Add(1)
	l.metrics.failures[failBusy].Inc()
}

// revive asks a dead list in the background.
func (c *Check) revive(l *list, s subject, counted bool) {
	wake := make(chan struct{}, 1)
	if c.join(l, s, wake, counted, false) == nil {
		l.probing.Store(false)
		return
	}
	c.tasks.run(func() {
		<-wake
		l.probing.Store(false)
	})
}

// wait waits until the outcome is settled, everything is answered, or ctx is
// done. With a probe it waits for every answer, since all are to be shown.
func (r *evaluation) wait(ctx context.Context) {
	for {
		t := r.tally()
		if !t.pending || !r.showAll && r.check.limits.settled(&t) {
			return
		}
		select {
		case <-r.wake:
		case <-ctx.Done():
			r.collect()
			for i := range r.questions {
				if s := &r.questions[i]; s.state == questionPending {
					s.state, s.answer = questionDone, answer{failure: failureLate}
				}
			}
			return
		}
		r.collect()
	}
}

// collect takes over what has been answered.
func (r *evaluation) collect() {
	for i := range r.questions {
		s := &r.questions[i]
		if s.state == questionPending && s.flight.done.Load() {
			s.state, s.answer, s.took = questionDone, s.flight.answer, s.flight.took
			s.flight = nil
		}
	}
}

// conclude turns the answers into facts and a verdict.
func (r *evaluation) conclude(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	c := r.check
	t := r.tally()
	// Here an answer that is still outstanding no longer matters.
	what := c.limits.of(t.total(), t.missing)
	r.report(req, t)
	if !t.answered && t.failed > 0 && what == clean {
		if err := ctx.Err(); err != nil {
			return policy.Verdict{}, fmt.Errorf("rbl: %w", err)
		}
		return policy.Verdict{}, fmt.Errorf("rbl: none of %d lists could be asked: %s", t.failed, r.firstFailure())
	}
	if t.shadow != 0 && !req.DryRun && c.limits.of(t.total()+t.shadow, t.missing) != what {
		r.countShadow()
	}
	v := policy.Verdict{}
	switch what {
	case clean:
		return v, nil
	case marked:
		v.Reason = "rbl-marked"
	case held:
		v.Action, v.Reason = policy.Defer, "rbl-deferred"
	case uncertain:
		v.Action, v.Reason = policy.Defer, "rbl-allow-list-missing"
	case rejected:
		v.Action, v.Reason = policy.Reject, "rbl-listed"
	}
	if c.cfg.MarkAt > 0 && t.total() >= c.cfg.MarkAt {
		req.Facts.Mark("rbl-listed")
	}
	v.Detail = r.detail(t)
	if v.Action.Refuses() {
		req.Facts.ListsRefuse = true // seen by later checks while this one is in shadow mode
		v.Reply = r.refusal(ctx, req, t, v.Action)
	}
	return v, nil
}

// report writes facts, counters and notes.
func (r *evaluation) report(req *policy.Request, t tally) {
	c := r.check
	for i := range r.questions {
		q, s := &c.queries[i], &r.questions[i]
		if s.state == questionSkipped {
			continue
		}
		shadow := q.list.inShadow()
		switch {
		case s.answer.listing != nil:
			sum, matched := q.score(s.answer.listing)
			if matched && !req.DryRun {
				q.list.hits.Add(1)
				q.list.metrics.hits.Inc()
			}
			if matched && !shadow {
				req.Facts.Listings = append(req.Facts.Listings, policy.Listing{
					List: q.list.name, What: s.subject.String(), Answer: s.answer.listing.text, Weight: sum,
				})
			}
		case s.answer.failure != nil && !shadow:
			req.Facts.Missing = append(req.Facts.Missing, "dnsbl "+q.list.name+": "+s.answer.failure.text)
		}
		if req.Probe != nil {
			value, source := q.describe(s)
			if shadow && s.state == questionDone {
				value += ", in shadow"
			}
			req.Probe.Add(q.what, value, source, s.took)
		}
	}
	req.Facts.RBLScore = t.score
	req.Probe.Add("score", strconv.Itoa(t.total()), "", 0)
}

// describe tells what became of a query: a value and where it is from.
func (q *query) describe(s *question) (value, source string) {
	source = "network"
	if s.cached {
		source = "cache"
	}
	switch {
	case s.state == questionPending:
		return s.subject.String() + ": not waited for", ""
	case s.answer.failure != nil:
		return s.subject.String() + ": " + s.answer.failure.text, source
	case s.answer.listing == nil:
		return s.subject.String() + ": not listed", source
	}
	sum, matched := q.score(s.answer.listing)
	if !matched {
		return s.subject.String() + ": " + s.answer.listing.text + ", no entry matches", source
	}
	return s.subject.String() + ": " + s.answer.listing.text + ", weight " + strconv.Itoa(sum), source
}

func (r *evaluation) firstFailure() string {
	for i := range r.questions {
		if f := r.questions[i].answer.failure; f != nil {
			return r.check.queries[i].list.name + ": " + f.text
		}
	}
	return "no list"
}

func (r *evaluation) countShadow() {
	for i := range r.questions {
		q := &r.check.queries[i]
		if s := &r.questions[i]; s.answer.listing != nil && q.list.inShadow() {
			if sum, _ := q.score(s.answer.listing); sum != 0 {
				q.list.metrics.shadowed.Inc()
			}
		}
	}
}

// detail is the line for the log: the score and where it comes from.
func (r *evaluation) detail(t tally) string {
	b := append(make([]byte, 0, 128), "score "...)
	b = strconv.AppendInt(b, int64(t.total()), 10)
	for i := range r.questions {
		q, s := &r.check.queries[i], &r.questions[i]
		if s.answer.listing == nil {
			continue
		}
		sum, matched := q.score(s.answer.listing)
		if !matched {
			continue
		}
		b = append(append(append(b, "; "...), q.list.name...), ' ')
		if q.kind != KindClient {
			b = append(append(append(append(b, q.kind.String()...), ' '), s.subject.domain...), ' ')
		}
		b = append(append(b, s.answer.listing.text...), " ("...)
		b = strconv.AppendInt(b, int64(sum), 10)
		if q.list.inShadow() {
			b = append(b, ", shadow"...)
		}
		b = append(b, ')')
	}
	if t.listed && t.marks > 0 {
		b = append(b, "; marks ("...)
		b = append(strconv.AppendInt(b, int64(t.marks), 10), ')')
	}
	if t.missing < 0 {
		b = append(b, "; not asked: "...)
		b = strconv.AppendInt(b, int64(t.missing), 10)
	}
	return string(b)
}

// refusal fills in the reply of the list that counts most.
func (r *evaluation) refusal(ctx context.Context, req *policy.Request, t tally, action policy.Action) policy.Reply {
	c := r.check
	template := c.deferReply
	q, s := &c.queries[t.top], &r.questions[t.top]
	if action == policy.Reject {
		if template = c.reply; q.reply != nil {
			template = q.reply
		}
	}
	reason := ""
	if template.Uses("reason") && c.cfg.ReasonTimeout > 0 && ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(ctx, c.cfg.ReasonTimeout.D())
		reason = q.list.reason(ctx, s.subject)
		cancel()
	}
	reply := template.Expand(func(name string) string { return c.placeholder(name, req, q, s, t.total(), reason) })
	if reason == "" {
		reply.Text = strings.TrimRight(reply.Text, " ;:,-")
	}
	if req.Probe != nil {
		req.Probe.Add("reason", policy.Printable(reason), q.what, 0)
	}
	return reply
}

func (c *Check) placeholder(name string, req *policy.Request, q *query, s *question, score int, reason string) string {
	switch name {
	case "class":
		return kindClasses[q.kind]
	case "what":
		return s.subject.String()
	case "client":
		return req.Client.Addr.String()
	case "client_name":
		return orUnknown(req.Client.Name)
	case "helo":
		return orUnknown(req.Helo)
	case "sender":
		if req.Sender.Raw == "" {
			return "<>"
		}
		return req.Sender.Raw
	case "recipient":
		return req.Recipient.Raw
	case "list":
		return q.list.name
	case "reason":
		return reason
	case "score":
		return strconv.Itoa(score)
	}
	return ""
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
