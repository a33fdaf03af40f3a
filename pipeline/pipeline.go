// Package pipeline runs a chain of checks over a request and says what comes
// of it: the order, the time limits, what an undecided check does, shadow
// mode, the guard against panics, the reference in a refusal, the log line and
// the metrics. Checks know nothing of each other; doors know nothing of checks.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/reference"
	"postern/policy"
)

// Step is a check and how the operator wants it to be run.
type Step struct {
	Check policy.Check
	conf.Step
}

// Journal keeps decisions so that a reference can be looked up.
type Journal interface {
	// Record is called with every decision. It may keep what it is given only as
	// a copy.
	Record(req *policy.Request, d *policy.Decision)
}

// Options is what a Pipeline is built from. All values have been validated.
type Options struct {
	Chains map[string]ChainConfig
	// Default names the chain for requests that name none.
	Default string
	// Mode of the whole daemon.
	Mode policy.Mode
	// Steps holds every check that the chains name.
	Steps map[string]Step
	// Inspectors look at the content of messages. Of their verdicts the first
	// that refuses counts.
	Inspectors []Inspector

	Log     *zap.Logger
	Metrics *Metrics
	Journal Journal
	// References makes those of refusals; nil for a source of the pipeline's own.
	References *reference.Source
	// Permits is the memory of what relay chains have permitted; nil for one of
	// the pipeline's own.
	Permits *Permits
}

// Pipeline decides requests. It does not change after New and is safe for
// concurrent use; a reload makes a new one.
type Pipeline struct {
	chains   map[string]*chain
	fallback *chain

	inspectors []inspector
	refunders  []step // of all chains: the content of a message may be of another chain than its recipients

	log     *zap.Logger
	metrics *Metrics
	journal Journal
	refs    *reference.Source
	permits *Permits
}

type chain struct {
	name       string
	relay      bool
	exempt     *exemption // for who is permitted by a relay chain; nil for nobody
	mode       policy.Mode
	stages     policy.StageSet
	budget     time.Duration
	errorReply *policy.Template
	steps      []step // without those that have nothing to do
	all        []step // in the order of the configuration
	hintAt     int    // index of the first step that waits; hints are asked before it
	metrics    chainMetrics
}

type step struct {
	Step
	name    string
	traits  policy.Traits
	allows  exemption     // by its verdicts; they name the checks
	hinter  policy.Hinter // nil when the check has no hints
	metrics stepMetrics
}

// New builds the chains. It fails on what ValidateOrder reports as well.
func New(o Options) (*Pipeline, error) {
	p := &Pipeline{
		chains:  make(map[string]*chain, len(o.Chains)),
		log:     o.Log,
		metrics: o.Metrics,
		journal: o.Journal,
		refs:    o.References,
		permits: o.Permits,
	}
	if p.refs == nil {
		p.refs = reference.NewSource(0)
	}
	if p.permits == nil {
		p.permits = NewPermits()
	}
	describe := make(Describe, len(o.Steps))
	for name, s := range o.Steps {
		describe[name] = s.Check.Traits()
	}
	for name, cfg := range o.Chains {
		var fs conf.Faults
		cfg.Validate("chains."+name, &fs)
		cfg.ValidateOrder("chains."+name, describe, func(string) string { return "" }, &fs)
		if err := fs.Err(); err != nil {
			return nil, err
		}
		reply, err := policy.ParseTemplate(cfg.ErrorReply, errorReply, "check")
		if err != nil {
			return nil, err
		}
		c := &chain{
			name: name, relay: cfg.Purpose == PurposeRelay, mode: max(cfg.Mode, o.Mode),
			stages: cfg.stageSet(), budget: cfg.Budget.D(), errorReply: reply,
			metrics: o.Metrics.chain(name),
		}
		if names := cfg.exempt(); c.relay && len(names) > 0 {
			c.exempt = newExemption(names, "chain "+name, "relay-permitted")
		}
		for _, check := range cfg.Checks {
			s := step{Step: o.Steps[check], name: check, metrics: o.Metrics.step(check)}
			s.traits = s.Check.Traits()
			s.allows = *newExemption(nil, check, "allowed")
			s.metrics.timed = s.traits.Waits
			s.hinter, _ = s.Check.(policy.Hinter)
			c.all = append(c.all, s)
			if idle, ok := s.Check.(policy.Idler); !ok || !idle.Idle() {
				c.steps = append(c.steps, s)
				p.addRefunder(s)
			}
		}
		if c.hintAt = slices.IndexFunc(c.steps, func(s step) bool { return s.traits.Waits }); c.hintAt < 0 {
			c.hintAt = len(c.steps)
		} else if s := &c.steps[c.hintAt]; s.traits.Prompt {
			s.hinter = nil
		}
		p.chains[name] = c
	}
	for _, in := range o.Inspectors {
		s := inspector{Inspector: in, name: in.Name(), metrics: o.Metrics.step(in.Name())}
		s.metrics.timed = true
		p.inspectors = append(p.inspectors, s)
	}
	if p.fallback = p.chains[o.Default]; p.fallback == nil {
		return nil, fmt.Errorf("pipeline: there is no chain %q to use by default", o.Default)
	}
	return p, nil
}

// pick returns the chain for a request: by policy_context, by listener, or
// the default one. A context that names no chain is counted, not refused:
// Postfix sends whatever main.cf holds.
func (p *Pipeline) pick(req *policy.Request) *chain {
	if req.Context != "" {
		if c := p.chains[req.Context]; c != nil {
			return c
		}
		p.metrics.unknownContext.Inc()
	}
	if c := p.chains[req.Chain]; c != nil {
		return c
	}
	return p.fallback
}

// evaluation is the state of one decision.
type evaluation struct {
	chain  *chain
	req    *policy.Request
	d      *policy.Decision
	start  time.Time
	exempt []exempted
	// Of the steps that are exempt those whose turn came, and who exempted
	// from them, for the log.
	notAsked, notAskedBy []string
	pending              int           // step whose DeferIfPermit waits for the end, -1 for none
	sticky               int           // step whose Hold or Redirect waits for the end, -1 for none
	edits                int           // changes to the message, for the log
	auth                 string        // results of mail authentication, for the log
	err                  error         // first error, for the log
	took                 time.Duration // until the last step ended, 0 when none has run
}

// exempted are steps that are not asked, and why.
type exempted struct {
	steps uint64 // bit i: step i
	*exemption
}

// Decide runs the chain that req asks for and writes the outcome to d, which
// the caller has Reset. It never fails and never panics: what could not be
// asked is marked in d.Degraded. It returns by the chain's budget as long as
// the checks keep to their context. Cancelling ctx ends it early.
func (p *Pipeline) Decide(ctx context.Context, req *policy.Request, d *policy.Decision) {
	start := time.Now()
	r := evaluation{chain: p.pick(req), req: req, d: d, start: start, pending: -1, sticky: -1}
	d.Chain, req.JudgedBy = r.chain.name, r.chain.name
	if r.chain.mode != policy.Off && r.chain.stages.Has(req.Stage) {
		if by := p.permits.find(req); by != nil && !r.chain.relay {
			r.skip(0, by)
		}
		p.steps(ctx, start, &r)
	}
	p.settle(&r)
	p.refund(ctx, &r)
	if d.Took = r.took; d.Took == 0 {
		d.Took = time.Since(start)
	}
	p.finish(&r)
}

// finish counts, keeps and logs a decision.
func (p *Pipeline) finish(r *evaluation) {
	if r.req.DryRun {
		return
	}
	if r.d.Verdict.Action == policy.Permit && r.chain.exempt != nil {
		// Before the answer: Postfix asks the next chain as soon as it has it.
		p.permits.remember(r.req, r.chain.exempt)
	}
	p.metrics.observe(r)
	if p.journal != nil {
		p.journal.Record(r.req, r.d)
	}
	p.logDecision(r)
}

func (p *Pipeline) steps(ctx context.Context, start time.Time, r *evaluation) {
	steps := r.chain.steps
	contexts := make([]stepContext, len(steps))
	// Reading the clock costs as much as a small check: once a step, and only
	// its monotonic part.
	var at time.Duration
	for i := range steps {
		if i == r.chain.hintAt && p.hints(r) {
			return
		}
		s := &steps[i]
		if why, by := r.skipWhy(i, s); why != "" {
			r.skipped(s.name, why, by, &s.metrics)
			continue
		}
		c := &contexts[i]
		limit := r.chain.budget
		if timeout := s.Timeout.D(); timeout > 0 {
			limit = min(limit, at+timeout)
		}
		c.init(ctx, start, limit)

		var facts policy.Facts
		if s.Mode == policy.Shadow {
			facts = r.req.Facts
		}
		r.req.Shadow = s.Mode == policy.Shadow || r.chain.mode == policy.Shadow
		notes := r.req.Probe.Len()
		verdict, err := p.evaluate(c, s, r.req)
		now := time.Since(start)
		took := now - at
		at, r.took = now, now
		c.finish()

		r.d.Steps = append(r.d.Steps, policy.Step{Check: s.name, Verdict: verdict, Took: took, Notes: r.req.Probe.From(notes)})
		line := &r.d.Steps[len(r.d.Steps)-1]
		switch {
		case err != nil:
			line.Outcome, line.Error = outcomeOf(err, c), err.Error()
		case s.Mode == policy.Shadow:
			line.Outcome = policy.Shadowed
		}
		if !r.req.DryRun {
			s.metrics.observe(line, took)
		}
		if s.Mode == policy.Shadow {
			// What it learned must not move the checks after it either.
			r.req.Facts = facts
			if err != nil {
				r.failed(s, err, true)
			} else {
				r.would(s.name, verdict)
			}
			continue
		}
		if err != nil {
			if r.failed(s, err, false) {
				r.pend(len(r.d.Steps) - 1)
			}
			continue
		}
		if r.take(i, &verdict) {
			return
		}
	}
}

// skipped notes that a step is not asked, and by what it is exempt, if it is.
func (r *evaluation) skipped(name, why string, by *exemption, m *stepMetrics) {
	line := policy.Step{Check: name, Outcome: policy.Skipped, Error: why}
	r.d.Steps = append(r.d.Steps, line)
	if by == nil {
		return
	}
	r.notAsked = append(r.notAsked, name)
	if !slices.Contains(r.notAskedBy, by.by) {
		r.notAskedBy = append(r.notAskedBy, by.by)
	}
	if !r.req.DryRun {
		line.Verdict.Reason = by.reason // the metric's only: the check has said nothing
		m.observe(&line, 0)
	}
}

// skipWhy says why step i is not asked, "" when it is, and by what it is
// exempt, if it is.
func (r *evaluation) skipWhy(i int, s *step) (string, *exemption) {
	by := r.exemptBy(i)
	switch {
	case s.Mode == policy.Off:
		return "off", nil
	case by != nil:
		return by.why, by
	case !s.traits.Stages.Has(r.req.Stage):
		return "stage", nil
	case s.traits.Last && r.pending >= 0:
		return "already refused", nil
	}
	return "", nil
}

// take applies a verdict that counts and reports whether it ends the chain.
func (r *evaluation) take(i int, v *policy.Verdict) bool {
	r.d.Headers = append(r.d.Headers, v.Add...)
	switch v.Action {
	case policy.Continue:
	case policy.Allow:
		r.allow(i, v)
	case policy.Permit:
		// Only a relay chain may say OK; elsewhere it is an allow.
		if r.chain.relay {
			r.decide(len(r.d.Steps) - 1)
			return true
		}
		r.allow(i, v)
	case policy.Hold, policy.Redirect:
		if r.sticky < 0 {
			r.sticky = len(r.d.Steps) - 1
		}
	case policy.DeferIfPermit:
		r.pend(len(r.d.Steps) - 1)
	default: // Reject, Defer, Discard
		r.decide(len(r.d.Steps) - 1)
		return true
	}
	return false
}

// allow exempts from the checks behind step i that its verdict names.
func (r *evaluation) allow(i int, v *policy.Verdict) {
	if len(v.Skip) > 0 && i < len(r.chain.steps) {
		r.skip(i+1, r.chain.steps[i].allows.from(v.Skip))
	}
}

// skip exempts from the steps from the first on that by names.
func (r *evaluation) skip(first int, by *exemption) {
	e := exempted{exemption: by}
	for i := first; i < len(r.chain.steps); i++ {
		if slices.Contains(by.checks, r.chain.steps[i].name) {
			e.steps |= 1 << i
		}
	}
	if e.steps != 0 {
		r.exempt = append(r.exempt, e)
	}
}

// exemptBy returns why step i is not to be asked, nil when it is.
func (r *evaluation) exemptBy(i int) *exemption {
	for _, e := range r.exempt {
		if e.steps&(1<<i) != 0 {
			return e.exemption
		}
	}
	return nil
}

// failed notes that a check could not decide. It reports whether the request
// must be deferred for it, and then has put that verdict into the trace.
func (r *evaluation) failed(s *step, err error, shadow bool) bool {
	return r.undecided(s.name, s.OnError, err, shadow)
}

func (r *evaluation) undecided(name string, onError policy.OnError, err error, shadow bool) bool {
	return r.undecidedAt(len(r.d.Steps)-1, name, onError, err, shadow)
}

// undecidedAt is undecided for the check whose line in the trace is step.
func (r *evaluation) undecidedAt(step int, name string, onError policy.OnError, err error, shadow bool) bool {
	r.d.Degraded = true
	if r.err == nil {
		r.err = fmt.Errorf("%s: %w", name, err)
	}
	if onError != policy.ErrorDefer {
		return false
	}
	v := policy.Verdict{
		Action: policy.DeferIfPermit, Reason: "check-error",
		Reply: r.chain.errorReply.Expand(func(string) string { return name }),
	}
	if shadow {
		r.would(name, v)
		return false
	}
	r.d.Steps[step].Verdict = v
	return true
}

func (r *evaluation) pend(i int) {
	if r.pending < 0 {
		r.pending = i
	}
}

func (r *evaluation) would(check string, v policy.Verdict) {
	if r.d.WouldCheck == "" && v.Action != policy.Continue {
		r.d.Would, r.d.WouldCheck = v, check
	}
}

// decide makes the verdict of trace line i the final one.
func (r *evaluation) decide(i int) {
	r.d.Verdict, r.d.Check = r.d.Steps[i].Verdict, r.d.Steps[i].Check
}

// hints asks the checks that can tell from memory, and reports whether one did.
func (p *Pipeline) hints(r *evaluation) bool {
	if r.pending >= 0 {
		return false
	}
	for i := r.chain.hintAt; i < len(r.chain.steps); i++ {
		s := &r.chain.steps[i]
		if s.hinter == nil || s.Mode != policy.Enforce {
			continue
		}
		if why, _ := r.skipWhy(i, s); why != "" {
			continue
		}
		notes := r.req.Probe.Len()
		v, ok := p.hint(s, r.req)
		if !ok || !v.Action.Refuses() {
			continue
		}
		r.d.Steps = append(r.d.Steps, policy.Step{
			Check: s.name, Outcome: policy.Hinted, Verdict: v, Notes: r.req.Probe.From(notes),
		})
		if !r.req.DryRun {
			s.metrics.observe(&r.d.Steps[len(r.d.Steps)-1], 0)
		}
		r.decide(len(r.d.Steps) - 1)
		return true
	}
	return false
}

// settle turns what waited into the verdict, guards the reply, applies the
// chain's shadow mode and gives a refusal its reference, also one that shadow
// mode kept from counting.
func (p *Pipeline) settle(r *evaluation) {
	d := r.d
	if d.Check == "" {
		switch {
		case r.pending >= 0:
			r.decide(r.pending)
		case r.sticky >= 0:
			r.decide(r.sticky)
		}
	}
	if d.Verdict.Action.Refuses() {
		fixReply(p.log, r.chain, &d.Verdict, d.Check)
	}
	if r.chain.mode == policy.Shadow {
		if d.Check != "" {
			d.Would, d.WouldCheck = d.Verdict, d.Check
		}
		d.Verdict, d.Check = policy.Verdict{}, ""
		d.Headers = d.Headers[:0]
	}
	if d.Verdict.Action.Refuses() {
		d.Headers = d.Headers[:0]
	}
	if d.Verdict.Action.Refuses() || d.WouldCheck != "" {
		d.Reference = p.refs.Next(r.req.Time).String()
	}
}

// addRefunder adds a step to those that give something back, once.
func (p *Pipeline) addRefunder(s step) {
	_, ok := s.Check.(policy.Refunder)
	if ok && s.Mode != policy.Off && !slices.ContainsFunc(p.refunders, func(o step) bool { return o.name == s.name }) {
		p.refunders = append(p.refunders, s)
	}
}

// refund tells the checks that give something back that the client is refused.
// Each has its own time limit.
func (p *Pipeline) refund(ctx context.Context, r *evaluation) {
	if r.req.DryRun || !r.d.Verdict.Action.Refuses() {
		return
	}
	for i := range p.refunders {
		s := &p.refunders[i]
		limit := r.chain.budget
		if timeout := s.Timeout.D(); timeout > 0 {
			limit = min(limit, timeout)
		}
		func() {
			one, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			var err error
			defer p.guard(s, r.req, &err) // it has logged it
			s.Check.(policy.Refunder).Refund(one, r.req, r.d)
		}()
	}
}

// fixReply replaces a reply that Postfix would misread. Reaching it is a fault
// in a check, but the client must not feel it as a permit.
func fixReply(log *zap.Logger, c *chain, v *policy.Verdict, check string) {
	class := 4
	if v.Action == policy.Reject {
		class = 5
	}
	if v.Reply.Code/100 == class && v.Reply.Text != "" && len(v.Reply.Enhanced) > 0 && int(v.Reply.Enhanced[0]-'0') == class {
		return
	}
	log.Error("check gave an unusable reply", zap.String("check", check), zap.String("reply", v.Reply.String()))
	if class == 5 {
		v.Reply = policy.Reply{Code: 550, Enhanced: "5.7.1", Text: "Access denied"}
		return
	}
	v.Reply = c.errorReply.Expand(func(string) string { return check })
}

// errPanic marks the error that a panic of a check was turned into.
var errPanic = errors.New("panic")

func (p *Pipeline) evaluate(ctx context.Context, s *step, req *policy.Request) (v policy.Verdict, err error) {
	defer p.guard(s, req, &err)
	v, err = s.Check.Evaluate(ctx, req)
	if err != nil {
		return policy.Verdict{}, err
	}
	return v, nil
}

func (p *Pipeline) hint(s *step, req *policy.Request) (v policy.Verdict, ok bool) {
	var err error
	defer func() { ok = ok && err == nil }()
	defer p.guard(s, req, &err)
	return s.hinter.Hint(req)
}

func (p *Pipeline) guard(s *step, req *policy.Request, err *error) {
	if cause := recover(); cause != nil {
		*err = fmt.Errorf("%w: %v", errPanic, cause)
		p.log.Error("check panicked", zap.String("check", s.name), zap.Any("cause", cause),
			zap.Stringer("client", req.Client.Addr), zap.ByteString("stack", debug.Stack()))
	}
}

func outcomeOf(err error, c *stepContext) policy.Outcome {
	switch {
	case errors.Is(err, errPanic):
		return policy.Panicked
	case errors.Is(err, context.DeadlineExceeded) || c.Err() == context.DeadlineExceeded: //nolint:errorlint // the context's own error is never wrapped
		return policy.TimedOut
	}
	return policy.Failed
}

// Chains returns the names of the chains and of the checks in each, in order.
func (p *Pipeline) Chains() map[string][]string {
	out := make(map[string][]string, len(p.chains))
	for name, c := range p.chains {
		list := make([]string, len(c.all))
		for i := range c.all {
			list[i] = c.all[i].name
		}
		out[name] = list
	}
	return out
}

// Modes returns the mode in which each check runs in a chain, the chain's own
// mode taken into account.
func (p *Pipeline) Modes(name string) map[string]policy.Mode {
	c := p.chains[name]
	if c == nil {
		return nil
	}
	out := make(map[string]policy.Mode, len(c.all))
	for i := range c.all {
		out[c.all[i].name] = max(c.all[i].Mode, c.mode)
	}
	return out
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }
