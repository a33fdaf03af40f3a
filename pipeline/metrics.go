package pipeline

import (
	"maps"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"postern/internal/logging"
	"postern/policy"
)

// Metrics are the counters of all pipelines of a daemon. They outlive a
// reload, so they are made once.
type Metrics struct {
	decisions      *prometheus.CounterVec // chain, stage, action
	seconds        *histograms            // chain
	verdicts       *prometheus.CounterVec // check, outcome, action, reason
	stepSeconds    *histograms            // check
	degraded       *prometheus.CounterVec // chain
	shadowed       *prometheus.CounterVec // check, action
	unknownContext prometheus.Counter
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_decisions_total", Help: "Decisions by chain, SMTP stage and action.",
		}, []string{"chain", "stage", "action"}),
		seconds: newHistograms("postern_decision_seconds", "Time a decision took, by chain.", "chain"),
		verdicts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_check_verdicts_total", Help: "Verdicts of single checks; outcome tells whether the verdict counted.",
		}, []string{"check", "outcome", "action", "reason"}),
		stepSeconds: newHistograms("postern_check_seconds", "Time one check took, of checks that can wait.", "check"),
		degraded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_decisions_degraded_total", Help: "Decisions in which a check could not be asked.",
		}, []string{"chain"}),
		shadowed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_shadow_total", Help: "What checks or chains in shadow mode would have done.",
		}, []string{"check", "action"}),
		unknownContext: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_unknown_context_total", Help: "Requests whose policy_context names no chain.",
		}),
	}
	reg.MustRegister(m.decisions, m.seconds, m.verdicts, m.stepSeconds, m.degraded, m.shadowed, m.unknownContext)
	return m
}

type chainMetrics struct {
	seconds   *histogram
	degraded  prometheus.Counter
	decisions *decisions
}

// decisions are the children of one chain, made when they are first met.
type decisions [policy.StageEtrn + 1][policy.Redirect + 1]atomic.Pointer[prometheus.Counter]

func (m *Metrics) chain(name string) chainMetrics {
	c := chainMetrics{seconds: m.seconds.with(name), degraded: m.degraded.WithLabelValues(name), decisions: new(decisions)}
	for s := range c.decisions {
		m.decision(&c, name, policy.Stage(s), policy.Continue)
	}
	return c
}

func (m *Metrics) observe(r *evaluation) {
	c, d := &r.chain.metrics, r.d
	c.seconds.observe(d.Took)
	if d.Degraded {
		c.degraded.Inc()
	}
	if d.WouldCheck != "" {
		m.shadowed.WithLabelValues(d.WouldCheck, d.Would.Action.String()).Inc()
	}
	m.decision(c, r.chain.name, r.req.Stage, d.Verdict.Action).Inc()
}

func (m *Metrics) decision(c *chainMetrics, chain string, s policy.Stage, a policy.Action) prometheus.Counter {
	if int(s) >= len(c.decisions) || int(a) >= len(c.decisions[s]) {
		return m.decisions.WithLabelValues(chain, s.String(), a.String())
	}
	place := &c.decisions[s][a]
	if counter := place.Load(); counter != nil {
		return *counter
	}
	counter := m.decisions.WithLabelValues(chain, s.String(), a.String())
	place.Store(&counter)
	return counter
}

type stepMetrics struct {
	name     string
	verdicts *prometheus.CounterVec
	seconds  *histogram
	timed    bool // the check can wait; the time of others is not worth its measuring
	// counters holds the children met so far. It is copied to grow, so the
	// request path reads it without a lock. last is the one met last.
	counters *atomic.Pointer[map[verdictKey]*verdictCounter]
	last     *atomic.Pointer[verdictCounter]
}

type verdictCounter struct {
	key verdictKey
	prometheus.Counter
}

type verdictKey struct {
	outcome policy.Outcome
	action  policy.Action
	reason  string
}

func (m *Metrics) step(name string) stepMetrics {
	s := stepMetrics{
		name: name, verdicts: m.verdicts, seconds: m.stepSeconds.with(name),
		counters: new(atomic.Pointer[map[verdictKey]*verdictCounter]), last: new(atomic.Pointer[verdictCounter]),
	}
	s.counters.Store(&map[verdictKey]*verdictCounter{})
	return s
}

func (s *stepMetrics) observe(line *policy.Step, took time.Duration) {
	if s.timed && line.Outcome != policy.Hinted && line.Outcome != policy.Skipped {
		s.seconds.observe(took)
	}
	key := verdictKey{line.Outcome, line.Verdict.Action, line.Verdict.Reason}
	if c := s.last.Load(); c != nil && c.key == key {
		c.Inc()
		return
	}
	old := s.counters.Load()
	c, ok := (*old)[key]
	if !ok {
		c = &verdictCounter{key, s.verdicts.WithLabelValues(s.name, key.outcome.String(), key.action.String(), key.reason)}
		grown := maps.Clone(*old)
		grown[key] = c
		s.counters.CompareAndSwap(old, &grown) // a lost race is made good by the next request
	}
	s.last.Store(c)
	c.Inc()
}

// logDecision writes the one line of a decision. The names of its fields are
// documented in docs/observability.md.
func (p *Pipeline) logDecision(r *evaluation) {
	core := p.log.Core()
	e := zapcore.Entry{Level: zap.InfoLevel, Time: r.start.Add(r.d.Took), LoggerName: p.log.Name(), Message: "decision"}
	if !r.d.Degraded {
		if !core.Enabled(e.Level) {
			return
		}
		if l := logging.Begin(core, &e); l != nil {
			r.describe(l)
			_ = l.End() // as the logger would
			return
		}
	} else {
		e.Level = zap.WarnLevel
	}
	// Straight to the core: the logger would read the clock once more.
	ce := core.Check(e, nil)
	if ce == nil {
		return
	}
	f := make(zapFields, 0, 24)
	r.describe(&f)
	if r.d.Degraded {
		f = append(f, zap.Bool("degraded", true), zap.Error(r.err))
	}
	ce.Write(f...)
}

// fields are those of a line.
type fields interface {
	Text(name, value string)
	Addr(name string, value netip.Addr)
	Seconds(name string, value time.Duration)
	Int(name string, value int)
}

var _ fields = (*logging.Line)(nil)

func (r *evaluation) describe(f fields) {
	req, d := r.req, r.d
	f.Text("action", d.Verdict.Action.String())
	f.Text("stage", req.Stage.String())
	if req.Client.Addr.IsValid() {
		f.Addr("client", req.Client.Addr)
	} else {
		f.Text("client", "unknown")
	}
	f.Text("client_name", req.Client.Name)
	f.Text("helo", req.Helo)
	if req.NullSender() {
		f.Text("sender", "<>")
	} else {
		f.Text("sender", req.Sender.Raw)
	}
	f.Text("recipient", req.Recipient.Raw)
	f.Text("chain", d.Chain)
	f.Seconds("took", d.Took)
	some := func(name, value string) {
		if value != "" {
			f.Text(name, value)
		}
	}
	some("queue_id", req.QueueID)
	some("instance", req.Instance)
	some("login", req.SASL.Username)
	some("check", d.Check)
	said := &d.Verdict
	for i := len(d.Steps) - 1; said.Reason == "" && i >= 0; i-- {
		if d.Steps[i].Outcome != policy.Skipped {
			said = &d.Steps[i].Verdict // nobody objected: what the last check knew that has something to say
		}
	}
	some("reason", said.Reason)
	some("auth", r.auth)
	if said.Detail != r.auth {
		some("detail", said.Detail)
	}
	r.describeExempt(f)
	if d.Verdict.Action.Refuses() {
		f.Text("reply", d.Verdict.Reply.String())
	}
	some("ref", d.Reference)
	if r.edits > 0 {
		f.Int("edits", r.edits)
	}
	if d.WouldCheck != "" {
		f.Text("shadow_check", d.WouldCheck)
		f.Text("shadow_action", d.Would.Action.String())
		f.Text("shadow_reason", d.Would.Reason)
	}
}

// describeExempt says which checks were not asked, and who exempted from them.
func (r *evaluation) describeExempt(f fields) {
	if len(r.notAsked) > 0 {
		f.Text("exempt", strings.Join(r.notAsked, ","))
		f.Text("exempt_by", strings.Join(r.notAskedBy, ","))
	}
}

// zapFields are fields for the logger.
type zapFields []zap.Field

func (z *zapFields) Text(name, value string) { *z = append(*z, zap.String(name, value)) }

func (z *zapFields) Addr(name string, value netip.Addr) { z.Text(name, value.String()) }

func (z *zapFields) Int(name string, value int) { *z = append(*z, zap.Int(name, value)) }

func (z *zapFields) Seconds(name string, value time.Duration) {
	*z = append(*z, zap.Duration(name, value))
}
