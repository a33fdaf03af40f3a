package pipeline

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/policy"
)

// Inspector looks at the content of messages, in the way the operator wants.
// Its time limit is for all of a message: what it takes to be fed, and its End.
type Inspector struct {
	policy.Inspector
	conf.Step
}

type inspector struct {
	Inspector
	name    string
	metrics stepMetrics
}

// Stages returns the stages at which a door that sees the whole dialogue has
// to ask about the envelope: those that the chain names or, when it names
// none, RCPT and DATA, where sender and recipient are known and a refusal
// hits only what it is meant for. A chain that is off, or has no check for a
// stage, is not to be asked there. name is as in [policy.Request.Chain].
func (p *Pipeline) Stages(name string) policy.StageSet {
	c := p.chains[name]
	if c == nil {
		c = p.fallback
	}
	if c.mode == policy.Off {
		return 0
	}
	stages := c.stages
	if stages == policy.AllStages {
		stages = policy.Stages(policy.StageRcpt, policy.StageData)
	}
	var has policy.StageSet
	for i := range c.steps {
		if c.steps[i].Mode != policy.Off {
			has |= c.steps[i].traits.Stages
		}
	}
	return stages & has
}

// Looks reports whether messages are looked at, and whether their bodies are.
func (p *Pipeline) Looks() (content, bodies bool) {
	for i := range p.inspectors {
		s := &p.inspectors[i]
		if s.Mode == policy.Off {
			continue
		}
		content = true
		h, ok := s.Inspector.Inspector.(policy.BodyInspector)
		bodies = bodies || !ok || h.WantsBody()
	}
	return content, bodies
}

// Content is one message that is being looked at. It is used by one goroutine.
type Content struct {
	p     *Pipeline
	chain *chain
	req   *policy.Request // as the inspectors know it
	parts []part
}

// part is one inspector at work.
type part struct {
	of *inspector
	// The relay chain that exempts the message from this inspector; in is nil.
	exempt *exemption
	in     policy.Inspection
	body   bool // it wants more of the body
	spent  time.Duration
	ended  bool // it has been asked for its judgement
	step   int  // its line in the trace, when it may finish
	err    error
}

// Inspect begins to look at a message: req is its envelope at StageData, to
// its recipients. Both stay unchanged until End. It returns nil when nobody
// is interested.
func (p *Pipeline) Inspect(req *policy.Request, to []policy.Address) *Content {
	if len(p.inspectors) == 0 {
		return nil
	}
	c := &Content{p: p, chain: p.pick(req), req: req}
	req.JudgedBy = c.chain.name
	if c.chain.mode == policy.Off {
		return nil
	}
	by := p.permits.findAll(req, to)
	at := time.Now()
	for i := range p.inspectors {
		s := &p.inspectors[i]
		if s.Mode == policy.Off {
			continue
		}
		if by != nil && slices.Contains(by.checks, s.name) {
			c.parts = append(c.parts, part{of: s, exempt: by})
			continue
		}
		t := part{of: s, body: true}
		t.err = c.guarded(&t, func() { t.in = s.Inspect(req, to) })
		at = t.took(at)
		if t.in == nil && t.err == nil {
			continue
		}
		c.parts = append(c.parts, t)
	}
	if len(c.parts) == 0 {
		return nil
	}
	return c
}

// took adds the time since at to what t has spent, and returns now. A part
// that has spent too much is given up.
func (t *part) took(at time.Time) time.Time {
	now := time.Now()
	t.spent += now.Sub(at)
	if limit := t.of.Timeout.D(); t.err == nil && limit > 0 && t.spent > limit {
		t.err = fmt.Errorf("%w: %v were spent on looking", context.DeadlineExceeded, t.spent)
	}
	return now
}

// looks reports whether it is to be shown more.
func (t *part) looks() bool { return t.err == nil && t.exempt == nil }

// guarded runs f, and turns a panic into an error.
func (c *Content) guarded(t *part, f func()) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%w: %v", errPanic, cause)
			c.p.log.Error("check panicked", zap.String("check", t.of.name), zap.Any("cause", cause), zap.ByteString("stack", debug.Stack()))
		}
	}()
	f()
	return nil
}

// Header shows the next header field.
func (c *Content) Header(f policy.Field) {
	at := time.Now()
	for i := range c.parts {
		if t := &c.parts[i]; t.looks() {
			t.err = c.guarded(t, func() { t.in.Header(f) })
			at = t.took(at)
		}
	}
}

// EndOfHeaders says that the body follows.
func (c *Content) EndOfHeaders() {
	at := time.Now()
	for i := range c.parts {
		if t := &c.parts[i]; t.looks() {
			t.err = c.guarded(t, t.in.EndOfHeaders)
			at = t.took(at)
		}
	}
}

// Body shows the next bytes of the body and reports whether anybody wants more.
func (c *Content) Body(p []byte) (more bool) {
	at := time.Now()
	for i := range c.parts {
		t := &c.parts[i]
		if t.err == nil && t.body {
			t.err = c.guarded(t, func() { t.body = t.in.Body(p) })
			at = t.took(at)
		}
		more = more || t.looks() && t.body
	}
	return more
}

// End asks for the judgements and writes the decision to d, which the caller
// has Reset: the first that refuses or discards, in order, is the verdict;
// without one the edits of all are returned. req is the request at
// StageEndOfMessage, for the log and the journal. Like Decide it never fails,
// never panics, and returns by the chain's budget.
func (c *Content) End(ctx context.Context, req *policy.Request, d *policy.Decision) []policy.Edit {
	start := time.Now()
	r := evaluation{chain: c.chain, req: req, d: d, start: start, pending: -1, sticky: -1}
	d.Chain = c.chain.name
	edits := c.judge(ctx, start, &r)
	req.Facts = c.req.Facts
	c.Abandon() // those who were not asked
	c.p.settle(&r)
	c.p.refund(ctx, &r)
	if c.chain.mode == policy.Shadow || d.Verdict.Action.Refuses() || d.Verdict.Action == policy.Discard {
		edits = nil
	}
	r.edits = len(edits)
	d.Took = time.Since(start)
	c.p.finish(&r)
	return edits
}

func (c *Content) judge(ctx context.Context, start time.Time, r *evaluation) (edits []policy.Edit) {
	contexts := make([]stepContext, len(c.parts))
	at := start
	finishers := false
	for i := range c.parts {
		c.parts[i].step = -1
	}
	for i := range c.parts {
		t := &c.parts[i]
		s := t.of
		if t.exempt != nil {
			r.skipped(s.name, t.exempt.why, t.exempt, &s.metrics)
			continue
		}
		_, finishes := t.in.(policy.Finisher)
		var judged policy.Judgement
		x := &contexts[i]
		x.init(ctx, start, c.limit(t, start, at))
		err := t.err
		facts := c.req.Facts
		c.req.Shadow = s.Mode == policy.Shadow || c.chain.mode == policy.Shadow
		if err == nil {
			t.ended = true
			if p := c.guarded(t, func() { judged, err = t.in.End(x) }); p != nil {
				err = p
			}
		}
		now := time.Now()
		took := now.Sub(at) + t.spent
		at = now
		if summary := c.req.Facts.Auth.Summary; summary != "" {
			r.auth = summary
		}
		if s.Mode == policy.Shadow { // what it learned must not move those behind it
			c.req.Facts = facts
		}
		if err != nil {
			judged = policy.Judgement{}
		}
		r.d.Steps = append(r.d.Steps, policy.Step{Check: s.name, Verdict: judged.Verdict, Took: took})
		line := &r.d.Steps[len(r.d.Steps)-1]
		switch {
		case err != nil:
			line.Outcome, line.Error = outcomeOf(err, x), err.Error()
		case s.Mode == policy.Shadow:
			line.Outcome = policy.Shadowed
		}
		x.finish()
		if finishes && err == nil { // counted when it has finished
			t.step, t.spent, finishers = len(r.d.Steps)-1, took, true
		} else if !r.req.DryRun {
			s.metrics.observe(line, took)
		}
		switch shadow := s.Mode == policy.Shadow; {
		case err != nil:
			if r.undecided(s.name, s.OnError, err, shadow) {
				r.pend(len(r.d.Steps) - 1)
			}
		case shadow:
			r.would(s.name, judged.Verdict)
		default:
			edits = append(edits, judged.Edits...)
			if judged.Verdict.Action == policy.Permit {
				continue // there is no list of restrictions to end
			}
			if r.take(len(c.chain.steps), &judged.Verdict) {
				c.unfinished(r)
				return nil
			}
		}
	}
	switch {
	case !finishers:
		return edits
	case r.pending >= 0:
		c.unfinished(r)
		return nil
	}
	return c.finish(ctx, start, at, r, edits)
}

// limit is how long t may take from now on, counted from start.
func (c *Content) limit(t *part, start, now time.Time) time.Duration {
	limit := c.chain.budget
	if left := t.of.Timeout.D(); left > 0 {
		limit = min(limit, now.Sub(start)+max(left-t.spent, time.Nanosecond))
	}
	return limit
}

// unfinished counts those that would have finished, of a message that is
// refused.
func (c *Content) unfinished(r *evaluation) {
	for i := range c.parts {
		if t := &c.parts[i]; t.ended && t.step >= 0 && !r.req.DryRun {
			t.of.metrics.observe(&r.d.Steps[t.step], t.spent)
		}
	}
}

// finish has the finishers add their edits to those that count.
func (c *Content) finish(ctx context.Context, start, at time.Time, r *evaluation, edits []policy.Edit) []policy.Edit {
	shown := make([]policy.Edit, 0, len(r.req.OnTop)+len(r.d.Headers)+len(edits)+4)
	for _, h := range slices.Concat(r.req.OnTop, r.d.Headers) {
		if slices.ContainsFunc(shown, func(e policy.Edit) bool { return strings.EqualFold(e.Name, h.Name) }) {
			continue // a field is added once
		}
		f := h.OnTop()
		shown = append(shown, policy.Edit{Kind: policy.InsertField, Name: f.Name, Value: f.Value})
	}
	top := len(shown)
	shown = append(shown, edits...)
	contexts := make([]stepContext, len(c.parts))
	for i := range c.parts {
		t := &c.parts[i]
		if t.step < 0 {
			continue
		}
		s := t.of
		var judged policy.Judgement
		var err error
		x := &contexts[i]
		x.init(ctx, start, c.limit(t, start, at))
		t.err = nil
		if p := c.guarded(t, func() { judged, err = t.in.(policy.Finisher).Finish(x, slices.Clip(shown)) }); p != nil {
			err = p
		}
		now := time.Now()
		t.spent += now.Sub(at)
		at = now
		line := &r.d.Steps[t.step]
		line.Took = t.spent
		if err != nil {
			line.Outcome, line.Error = outcomeOf(err, x), err.Error()
		} else if v := &judged.Verdict; v.Reason != "" || v.Detail != "" {
			line.Verdict.Reason, line.Verdict.Detail = v.Reason, v.Detail
		}
		x.finish()
		if !r.req.DryRun {
			s.metrics.observe(line, t.spent)
		}
		switch shadow := s.Mode == policy.Shadow; {
		case err != nil:
			if r.undecidedAt(t.step, s.name, s.OnError, err, shadow) {
				r.pend(t.step)
			}
		case !shadow:
			shown = append(shown, judged.Edits...)
		}
	}
	return shown[top:]
}

// Abandon ends the looking without a judgement. Inspections that hold something
// have a method of that name.
func (c *Content) Abandon() {
	for i := range c.parts {
		t := &c.parts[i]
		if a, ok := t.in.(interface{ Abandon() }); ok && !t.ended {
			_ = c.guarded(t, a.Abandon) // it is logged
		}
	}
	c.parts = nil
}
