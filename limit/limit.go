// Package limit is the check of rates and quotas: how much mail a client, a
// login, a sender or a recipient may hand in or get.
//
// A rate is the generic cell rate algorithm, a quota a count of a calendar
// period; [meter.Apply] is the whole rule. All meters of a request are asked in one
// atomic step of the store: when one of them refuses, nothing is taken from
// any. What a message has taken by its earlier recipients is given back when
// this check refuses a later one, and taken again when the client goes on with
// those that were accepted, at DATA. A chain that is not asked at DATA cannot
// tell, and gives nothing back. Rules that count what is accepted also give
// back what others refuse, as far as that can be seen.
package limit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/meter"
	"postern/list"
	"postern/policy"
)

// Options are what the check is given.
type Options struct {
	Store meter.Store
	// Admin are the meters as values, Raises and Leases are values of this
	// check's own.
	Admin, Raises, Leases AdminStore
	// Hostname stands in notifications. Secret reads what they need and nobody
	// else may know from a file.
	Hostname string
	Secret   func(path string) (string, error)
	Log      *zap.Logger
	Registry prometheus.Registerer
}

// Check implements [policy.Check]. It is safe for concurrent use.
type Check struct {
	cfg        Config
	rules      []rule
	recipients *policy.Template
	store      meter.Store
	admin      AdminStore
	log        *zap.Logger
	shared     *shared
	targets    []*target
	refunds    bool // a rule counts what is accepted
	work       background
}

// shared outlives a reload.
type shared struct {
	messages *messages
	lists    *list.Metrics
	exceeded *prometheus.CounterVec
	notified *prometheus.CounterVec
	warned   *warned
	raises   *raises
	scratch  sync.Pool // of *scratch
}

// rule is a Rule made ready.
type rule struct {
	Rule
	action      policy.Action
	hard        bool // it refuses
	refunds     bool // what others refuse does not count
	reply       *policy.Template
	only, skip  *list.Live
	exceeded    prometheus.Counter
	byRecipient bool // a recipient is part of the key
	distinct    bool
	rate        string // how keys of its rate begin
	perUnit     float64
	full        int64 // the burst, in microseconds
	quotas      []quotaOf
	targets     []*target // who is told when it is hit
}

// quotaOf is a QuotaSpec made ready.
type quotaOf struct {
	QuotaSpec
	prefix string // how its keys begin
	last   *atomic.Pointer[span]
}

// span is a calendar period.
type span struct{ start, end time.Time }

// now returns the period that holds a time. Most requests fall into the one of
// the request before.
func (q *quotaOf) now(at time.Time) (start, end time.Time) {
	if s := q.last.Load(); s != nil && !at.Before(s.start) && at.Before(s.end) && at.Location() == s.start.Location() {
		return s.start, s.end
	}
	start, end = q.period(at)
	q.last.Store(&span{start, end})
	return start, end
}

// ready fills in what follows from the rule.
func (r *rule) ready() {
	r.action = actions[r.Action]
	r.hard = r.action != policy.Continue && r.action != policy.Hold
	r.byRecipient = slices.Contains(r.Key, "recipient") || slices.Contains(r.Key, "recipient-domain")
	r.refunds = r.Count == countAccepted
	r.distinct = strings.HasPrefix(r.Unit, "distinct-")
	if r.Rate.Units > 0 {
		r.rate = r.Name + "/rate/"
		r.perUnit = float64(r.Rate.Per.Microseconds()) / float64(r.Rate.Units)
		r.full = r.Rate.interval(r.Burst)
	}
	for _, q := range r.Quota {
		r.quotas = append(r.quotas, quotaOf{q, r.Name + "/" + q.Period + "/", new(atomic.Pointer[span])})
	}
}

var (
	_ policy.Check    = (*Check)(nil)
	_ policy.Idler    = (*Check)(nil)
	_ policy.Refunder = (*Check)(nil)
)

// New returns the check; cfg has been validated. prev is the check that this
// one takes the place of, or nil. It reads the lists and starts nothing.
func New(cfg Config, o Options, prev *Check) (*Check, error) {
	c := &Check{cfg: cfg, store: o.Store, admin: o.Admin, log: o.Log.Named("limit")}
	if prev != nil {
		c.shared = prev.shared
	} else {
		exceeded := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_limit_exceeded_total", Help: "Requests beyond a limit, by rule."}, []string{"rule"})
		notified := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_limit_notifications_total", Help: "Notifications that somebody has hit a limit, by what became of them."}, []string{"notify", "result"})
		for _, m := range []*prometheus.CounterVec{exceeded, notified} {
			if err := o.Registry.Register(m); err != nil {
				return nil, fmt.Errorf("limit: %w", err)
			}
		}
		c.shared = &shared{messages: newMessages(maxMessages), lists: list.NewMetrics(o.Registry, "limit"), exceeded: exceeded, notified: notified, warned: newWarned(), raises: newRaises(o.Raises)}
		c.shared.scratch.New = func() any { return new(scratch) }
	}
	var err error
	if c.recipients, err = policy.ParseTemplate(cfg.RecipientsReply, recipientsReply); err != nil {
		return nil, fmt.Errorf("limit: %w", err)
	}
	for _, n := range cfg.Notify {
		t, err := newTarget(n, &o, cfg.Sendmail, c.shared.notified, c.log)
		if err != nil {
			return nil, err
		}
		c.targets = append(c.targets, t)
	}
	var faults conf.Faults
	c.rules = make([]rule, 0, len(cfg.Rules))
	for i := range cfg.Rules {
		r := rule{Rule: cfg.Rules[i].withDefaults()}
		r.ready()
		c.refunds = c.refunds || r.refunds
		r.exceeded = c.shared.exceeded.WithLabelValues(r.Name)
		for _, t := range c.targets {
			if slices.Contains(r.Notify, t.Name) {
				r.targets = append(r.targets, t)
			}
		}
		if r.reply, err = r.template(); err != nil {
			return nil, fmt.Errorf("limit: %s: %w", r.Name, err)
		}
		for j, l := range r.sources(index("limit.rule", i)) {
			if len(l.sources) == 0 {
				continue
			}
			live, fs := list.NewLive(l.sources, l.opts, c.log.With(zap.String("rule", r.Name)), c.shared.lists)
			faults = append(faults, fs...)
			if before := prev.list(r.Name, j); live != nil && before != nil {
				live.Adopt(before)
			}
			*[...]**list.Live{&r.only, &r.skip}[j] = live
		}
		c.rules = append(c.rules, r)
	}
	return c, faults.Err()
}

// reloadInterval is how often list files are looked at.
const reloadInterval = 2 * time.Second

// Start reads what is raised, and begins to watch that and the list files, and
// to send notifications.
func (c *Check) Start() {
	c.eachList(func(l *list.Live) { l.Start(reloadInterval) })
	if len(c.rules) == 0 {
		return
	}
	c.shared.raises.refresh(context.Background(), c.log)
	jobs := []func(context.Context){func(ctx context.Context) { c.shared.raises.follow(ctx, c.log) }}
	for _, t := range c.targets {
		jobs = append(jobs, t.run)
	}
	if c.refunds {
		jobs = append(jobs, c.refundAbandoned)
	}
	c.work.start(jobs)
}

// Stop ends what Start began. It can be called twice, and without Start.
func (c *Check) Stop() {
	c.work.stop()
	c.eachList((*list.Live).Stop)
}

// background is what goes on beside the requests.
type background struct {
	mu     sync.Mutex
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (b *background) start(jobs []func(context.Context)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	for _, do := range jobs {
		b.wg.Go(func() { do(ctx) })
	}
}

func (b *background) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cancel != nil {
		b.cancel()
		b.wg.Wait()
	}
}

func (c *Check) eachList(do func(*list.Live)) {
	for i := range c.rules {
		for _, l := range c.rules[i].lists() {
			if l != nil {
				do(l)
			}
		}
	}
}

// lists are whom the rule applies to, and whom not; nil for none.
func (r *rule) lists() [2]*list.Live { return [...]*list.Live{r.only, r.skip} }

// list returns such a list of a rule, nil when there is none.
func (c *Check) list(name string, which int) *list.Live {
	if c == nil {
		return nil
	}
	if i := c.rule(name); i >= 0 {
		return c.rules[i].lists()[which]
	}
	return nil
}

// rule returns the number of a rule, -1 when there is none of that name.
func (c *Check) rule(name string) int {
	return slices.IndexFunc(c.rules, func(r rule) bool { return r.Name == name })
}

// Name implements [policy.Check].
func (c *Check) Name() string { return "limit" }

// Traits are those of every limit check: connections are counted when they
// come, recipients at RCPT, what was given back is taken again at DATA, bytes
// are known at the end of the message.
var Traits = policy.Traits{Stages: policy.Stages(policy.StageConnect, policy.StageRcpt, policy.StageData, policy.StageEndOfMessage), Waits: true}

// Traits implements [policy.Check].
func (c *Check) Traits() policy.Traits { return Traits }

// Idle implements [policy.Idler].
func (c *Check) Idle() bool { return len(c.rules) == 0 && c.cfg.MaxRecipients == 0 }

// Reasons of verdicts.
const (
	reasonExceeded   = "limit-exceeded"
	reasonRecipients = "limit-recipients"
	reasonSize       = "limit-size"
)

// Evaluate implements [policy.Check]. The error is the store's.
func (c *Check) Evaluate(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	if c.ownProbe(req) {
		return policy.Verdict{}, nil
	}
	key := keyOf(req)
	switch {
	case req.DryRun || req.Stage == policy.StageConnect:
	case req.Stage != policy.StageRcpt:
		c.shared.messages.sawData(req, key)
	case c.refunds:
		c.shared.messages.heard(req, key)
	}
	m := c.shared.messages.of(key)
	if req.Stage == policy.StageRcpt && c.cfg.MaxRecipients > 0 && m.recipients >= c.cfg.MaxRecipients {
		return policy.Verdict{
			Action: policy.Defer, Reason: reasonRecipients, Detail: fmt.Sprint(c.cfg.MaxRecipients),
			Reply: c.recipients.Expand(func(string) string { return "" }),
		}, nil
	}
	sc := c.shared.scratch.Get().(*scratch)
	defer sc.release(&c.shared.scratch)
	c.asks(sc, req, &m)
	sc.merge(m.back()) // and yet the client goes on
	if r := tooLarge(sc.asks); r != nil {
		v := policy.Verdict{Action: policy.Reject, Reason: reasonSize, Detail: fmt.Sprintf("%s: %d bytes", r.Name, req.Size), Reply: sizeReply}
		if req.DryRun {
			return v, nil
		}
		r.exceeded.Inc()
		return v, c.refused(ctx, req, key, m)
	}
	levels, taken, err := c.take(ctx, req, sc)
	if err != nil {
		return policy.Verdict{}, err
	}
	v := c.verdict(req, sc.asks, levels)
	if req.DryRun {
		return v, nil
	}
	c.tell(req, sc.asks, levels)
	if !taken {
		return v, c.refused(ctx, req, key, m)
	}
	c.shared.messages.took(req, key, &m, sc.asks, levels)
	if c.refunds && req.Stage == policy.StageData {
		left, back := c.shared.messages.of(key).withoutRefused(req, &c.cfg)
		if err := c.returned(ctx, req.Time, key, left, back); err != nil {
			c.log.Warn("what was refused stays counted", zap.Error(err))
		}
	}
	return v, nil
}

// refused gives back what a message has taken so far, one of whose requests
// this check refuses, where it will be seen when the client goes on
// nevertheless.
func (c *Check) refused(ctx context.Context, req *policy.Request, key messageKey, m message) error {
	if !c.shared.messages.seesData(req) {
		return nil
	}
	if err := c.giveBack(ctx, req.Time, key, m, everything); err != nil {
		return fmt.Errorf("limit: %w", err)
	}
	return nil
}

// sizeReply is for a message that would not fit if it were the only one.
var sizeReply = policy.Reply{Code: 552, Enhanced: "5.3.4", Text: "Message is larger than is allowed in all"}

// tooLarge returns the first rule of whose quota the request takes more than
// there is, however long it waits.
func tooLarge(asks []ask) *rule {
	for i := range asks {
		if a := &asks[i]; a.Hard && a.Kind == meter.Quota && a.rule.Unit == "bytes" && a.Add > a.Most {
			return a.rule
		}
	}
	return nil
}

// take asks the store, unless there is nothing to ask.
func (c *Check) take(ctx context.Context, req *policy.Request, sc *scratch) (levels []meter.Level, taken bool, err error) {
	if len(sc.asks) == 0 {
		return nil, true, nil
	}
	for i := range sc.asks {
		sc.takes = append(sc.takes, sc.asks[i].Take)
	}
	levels, taken, err = c.store.TakeMeters(ctx, req.Time, sc.takes, req.DryRun)
	if err != nil {
		return nil, false, fmt.Errorf("limit: %w", err)
	}
	if req.Probe != nil {
		for i := range sc.asks {
			a := &sc.asks[i]
			req.Probe.Add(a.Key, fmt.Sprintf("%d of %d", a.units(levels[i].Used), a.units(a.Most)), over(levels[i].Over), 0)
		}
	}
	return levels, taken, nil
}

func over(b bool) string {
	if b {
		return "too much"
	}
	return ""
}

// verdict returns what the levels come to: the first rule that refuses, else
// the first that holds.
func (c *Check) verdict(req *policy.Request, asks []ask, levels []meter.Level) (v policy.Verdict) {
	var by *rule
	for i := range asks {
		if !levels[i].Over {
			continue
		}
		r := asks[i].rule
		if r.action == policy.Continue {
			req.Facts.Mark("limit-" + r.Name)
			continue
		}
		if by != nil && (by.action != policy.Hold || r.action == policy.Hold) {
			continue
		}
		by = r
		v = policy.Verdict{Action: r.action, Reason: reasonExceeded, Detail: takesText(&asks[i], levels[i])}
		if r.action != policy.Hold {
			v.Reply = r.reply.Expand(func(name string) string {
				switch name {
				case "client":
					return req.Client.Addr.String()
				case "sender":
					return req.Sender.Raw
				case "recipient":
					return req.Recipient.Raw
				case "login":
					return req.SASL.Username
				case "rule":
					return r.Name
				}
				return waitText(levels[i].Wait)
			})
		}
	}
	return v
}

func takesText(a *ask, l meter.Level) string {
	return fmt.Sprintf("%s: %d of %d", a.Key, a.units(l.Used), a.units(a.Most))
}

// waitText says how long a wait is, for people: rounded up, "40s", "7m", "5h".
func waitText(d time.Duration) string {
	switch {
	case d <= time.Minute:
		return fmt.Sprintf("%ds", max(1, int64((d+time.Second-1)/time.Second)))
	case d <= 2*time.Hour:
		return fmt.Sprintf("%dm", int64((d+time.Minute-1)/time.Minute))
	}
	return fmt.Sprintf("%dh", int64((d+time.Hour-1)/time.Hour))
}

// tell counts and logs what is, or is nearly, too much.
func (c *Check) tell(req *policy.Request, asks []ask, levels []meter.Level) {
	for i := range asks {
		r := asks[i].rule
		if levels[i].Over {
			r.exceeded.Inc()
			r.notify(req, &asks[i], levels[i])
		}
		if r.Warn > 0 && c.shared.warned.first(asks[i].Key, !levels[i].Over && levels[i].Used*100 < asks[i].Most*int64(r.Warn)) {
			c.log.Warn("a limit is nearly reached", zap.String("rule", r.Name), zap.String("key", asks[i].Key),
				zap.Int64("used", asks[i].units(levels[i].Used)), zap.Int64("limit", asks[i].units(asks[i].Most)),
				zap.String("client", req.Client.Addr.String()), zap.String("login", req.SASL.Username))
		}
	}
}

// notify has told who is to be told that a meter is full.
func (r *rule) notify(req *policy.Request, a *ask, l meter.Level) {
	if len(r.targets) == 0 {
		return
	}
	ev := event{
		rule: r.Name, who: strings.Clone(whoOf(a.Key)), used: a.units(l.Used), limit: a.units(a.Most), time: req.Time, client: req.Client.Addr,
		login: strings.Clone(req.SASL.Username), sender: strings.Clone(req.Sender.Raw), period: r.NotifyPeriod.D(),
	}
	for _, t := range r.targets {
		t.note(&ev)
	}
}

// whoOf returns whose a meter is, by its key.
func whoOf(key string) string {
	_, rest, _ := strings.Cut(key, "/")
	_, who, _ := strings.Cut(rest, "/")
	return who
}

func (c *Check) ownProbe(req *policy.Request) bool {
	return slices.ContainsFunc(c.cfg.OwnProbes, func(s string) bool { return strings.EqualFold(s, req.Sender.Raw) })
}

// applies tells whether the rule is for the request.
func (r *rule) applies(req *policy.Request) bool {
	login := req.SASL.Username != "" || req.TLS.CertSubject != ""
	if r.Clients == "authenticated" && !login || r.Clients == "unauthenticated" && login {
		return false
	}
	if len(r.Chains) > 0 && !slices.Contains(r.Chains, req.JudgedBy) {
		return false
	}
	if r.only != nil {
		if e := r.only.Match(req); e == nil || e.Action == policy.Continue {
			return false
		}
	}
	if r.skip != nil {
		if e := r.skip.Match(req); e != nil && e.Action != policy.Continue {
			return false
		}
	}
	return true
}
