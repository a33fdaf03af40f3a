// Package limit is the check of rates and quotas: how much mail a client, a
// login, a sender or a recipient may hand in or get.
//
// A rate is the generic cell rate algorithm, a quota a count of a calendar
// period; [meter.Apply] is the whole rule. All meters of a request are asked in one
// atomic step of the store: when one of them refuses, nothing is taken from
// any. What a message has taken by its earlier recipients is given back when
// this check refuses a later one, and taken again when the client goes on with
// those that were accepted, at DATA. A chain that is not asked at DATA cannot
// tell, and gives nothing back.
package limit

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
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
	Store    meter.Store
	Admin    AdminStore
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
}

// shared outlives a reload.
type shared struct {
	messages *messages
	lists    *list.Metrics
	exceeded *prometheus.CounterVec
	warned   *warned
}

// rule is a Rule made ready.
type rule struct {
	Rule
	action     policy.Action
	reply      *policy.Template
	only, skip *list.Live
	exceeded   prometheus.Counter
}

var (
	_ policy.Check = (*Check)(nil)
	_ policy.Idler = (*Check)(nil)
)

// New returns the check; cfg has been validated. prev is the check that this
// one takes the place of, or nil. It reads the lists and starts nothing.
func New(cfg Config, o Options, prev *Check) (*Check, error) {
	c := &Check{cfg: cfg, store: o.Store, admin: o.Admin, log: o.Log.Named("limit")}
	if prev != nil {
		c.shared = prev.shared
	} else {
		exceeded := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_limit_exceeded_total", Help: "Requests beyond a limit, by rule."}, []string{"rule"})
		if err := o.Registry.Register(exceeded); err != nil {
			return nil, fmt.Errorf("limit: %w", err)
		}
		c.shared = &shared{messages: newMessages(maxMessages), lists: list.NewMetrics(o.Registry, "limit"), exceeded: exceeded, warned: newWarned()}
	}
	var err error
	if c.recipients, err = policy.ParseTemplate(cfg.RecipientsReply, recipientsReply); err != nil {
		return nil, fmt.Errorf("limit: %w", err)
	}
	var faults conf.Faults
	c.rules = make([]rule, 0, len(cfg.Rules))
	for i := range cfg.Rules {
		r := rule{Rule: cfg.Rules[i].withDefaults()}
		r.action, r.exceeded = actions[r.Action], c.shared.exceeded.WithLabelValues(r.Name)
		if r.reply, err = r.template(); err != nil {
			return nil, fmt.Errorf("limit: %s: %w", r.Name, err)
		}
		for j, l := range r.lists(index("limit.rule", i)) {
			if len(l.sources) == 0 {
				continue
			}
			live, fs := list.NewLive(l.sources, l.opts, c.log.With(zap.String("rule", r.Name)), c.shared.lists)
			faults = append(faults, fs...)
			*[...]**list.Live{&r.only, &r.skip}[j] = live
		}
		c.rules = append(c.rules, r)
	}
	return c, faults.Err()
}

// reloadInterval is how often list files are looked at.
const reloadInterval = 2 * time.Second

// Start begins to watch the list files.
func (c *Check) Start() {
	c.eachList(func(l *list.Live) { l.Start(reloadInterval) })
}

// Stop ends what Start began. It can be called twice, and without Start.
func (c *Check) Stop() {
	c.eachList((*list.Live).Stop)
}

func (c *Check) eachList(do func(*list.Live)) {
	for i := range c.rules {
		for _, l := range []*list.Live{c.rules[i].only, c.rules[i].skip} {
			if l != nil {
				do(l)
			}
		}
	}
}

// Name implements [policy.Check].
func (c *Check) Name() string { return "limit" }

// Traits are those of every limit check: recipients are counted at RCPT, what
// was given back is taken again at DATA, bytes are known at the end of the
// message.
var Traits = policy.Traits{Stages: policy.Stages(policy.StageRcpt, policy.StageData, policy.StageEndOfMessage), Waits: true}

// Traits implements [policy.Check].
func (c *Check) Traits() policy.Traits { return Traits }

// Idle implements [policy.Idler].
func (c *Check) Idle() bool { return len(c.rules) == 0 && c.cfg.MaxRecipients == 0 }

// Reasons of verdicts.
const (
	reasonExceeded   = "limit-exceeded"
	reasonRecipients = "limit-recipients"
)

// Evaluate implements [policy.Check]. The error is the store's.
func (c *Check) Evaluate(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	if c.ownProbe(req) {
		return policy.Verdict{}, nil
	}
	if req.Stage != policy.StageRcpt && !req.DryRun {
		c.shared.messages.sawData(req)
	}
	m := c.shared.messages.of(req)
	if req.Stage == policy.StageRcpt && c.cfg.MaxRecipients > 0 && m.recipients >= c.cfg.MaxRecipients {
		return policy.Verdict{
			Action: policy.Defer, Reason: reasonRecipients, Detail: fmt.Sprint(c.cfg.MaxRecipients),
			Reply: c.recipients.Expand(func(string) string { return "" }),
		}, nil
	}
	asks := c.asks(req, &m)
	if m.givenBack { // and yet the client goes on
		asks = merged(append(asks, m.taken...))
	}
	levels, taken, err := c.take(ctx, req, asks)
	if err != nil {
		return policy.Verdict{}, err
	}
	v := c.verdict(req, asks, levels)
	if req.DryRun {
		return v, nil
	}
	c.tell(req, asks, levels)
	if !taken {
		return v, c.giveBack(ctx, req, m)
	}
	c.shared.messages.put(req, m.with(req, asks, levels))
	return v, nil
}

// take asks the store, unless there is nothing to ask.
func (c *Check) take(ctx context.Context, req *policy.Request, asks []ask) (levels []meter.Level, taken bool, err error) {
	if len(asks) == 0 {
		return nil, true, nil
	}
	takes := make([]meter.Take, len(asks))
	for i := range asks {
		takes[i] = asks[i].Take
	}
	levels, taken, err = c.store.TakeMeters(ctx, req.Time, takes, req.DryRun)
	if err != nil {
		return nil, false, fmt.Errorf("limit: %w", err)
	}
	if req.Probe != nil {
		for i := range asks {
			req.Probe.Add(asks[i].Key, fmt.Sprintf("%d of %d", asks[i].units(levels[i].Used), asks[i].units(asks[i].Most)), over(levels[i].Over), 0)
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

// giveBack returns what the message has taken so far, where it will be seen
// when the client goes on nevertheless.
func (c *Check) giveBack(ctx context.Context, req *policy.Request, m message) error {
	if m.givenBack || len(m.taken) == 0 || !c.shared.messages.seesData(req) {
		return nil
	}
	back := make([]meter.Take, 0, len(m.taken))
	for _, t := range m.taken {
		if t.Kind != meter.Distinct {
			t.Add, t.Hard = -t.Add, false
			back = append(back, t.Take)
		}
	}
	m.givenBack = true
	c.shared.messages.put(req, m)
	if _, _, err := c.store.TakeMeters(ctx, req.Time, back, false); err != nil {
		return fmt.Errorf("limit: %w", err)
	}
	return nil
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
		}
		if r.Warn > 0 && c.shared.warned.first(asks[i].Key, !levels[i].Over && levels[i].Used*100 < asks[i].Most*int64(r.Warn)) {
			c.log.Warn("a limit is nearly reached", zap.String("rule", r.Name), zap.String("key", asks[i].Key),
				zap.Int64("used", asks[i].units(levels[i].Used)), zap.Int64("limit", asks[i].units(asks[i].Most)),
				zap.String("client", req.Client.Addr.String()), zap.String("login", req.SASL.Username))
		}
	}
}

func (c *Check) ownProbe(req *policy.Request) bool {
	return slices.ContainsFunc(c.cfg.OwnProbes, func(s string) bool { return strings.EqualFold(s, req.Sender.Raw) })
}

// ask is a take with the rule that it is for.
type ask struct {
	rule *rule
	meter.Take
}

// units returns an amount of the take in units of the rule.
func (a *ask) units(n int64) int64 {
	if a.Kind != meter.Rate {
		return n
	}
	return int64(float64(n) * float64(a.rule.Rate.Units) / float64(a.rule.Rate.Per.Microseconds()))
}

// asks returns what the request takes.
func (c *Check) asks(req *policy.Request, m *message) (out []ask) {
	for i := range c.rules {
		r := &c.rules[i]
		n, member := r.cost(req, m, &c.cfg)
		if n == 0 || !r.applies(req) {
			continue
		}
		who, ok := r.who(req, &c.cfg)
		if !ok {
			continue
		}
		hard := r.action != policy.Continue && r.action != policy.Hold
		if r.Rate.Units > 0 {
			out = append(out, ask{rule: r, Take: meter.Take{
				Key: r.Name + "/rate/" + who, Kind: meter.Rate, Add: r.Rate.interval(n), Most: r.Rate.interval(r.Burst), Hard: hard,
			}})
		}
		for _, q := range r.Quota {
			start, end := q.period(req.Time)
			out = append(out, ask{rule: r, Take: meter.Take{
				Key: r.Name + "/" + q.Period + "/" + who, Kind: r.quotaKind(), Add: n, Most: q.Units, Start: start, End: end, Member: member, Hard: hard,
			}})
		}
	}
	return out
}

func (r *rule) quotaKind() meter.Kind {
	if strings.HasPrefix(r.Unit, "distinct-") {
		return meter.Distinct
	}
	return meter.Quota
}

// merged joins takes from the same meter.
func merged(asks []ask) []ask {
	out := asks[:0]
	for _, a := range asks {
		i := slices.IndexFunc(out, func(b ask) bool { return b.Key == a.Key })
		switch {
		case i < 0:
			out = append(out, a)
		case a.Kind != meter.Distinct:
			out[i].Add += a.Add
		}
	}
	return out
}

// cost returns how many units the request takes of the rule, 0 for none, and
// what is counted once where that is distinct.
func (r *rule) cost(req *policy.Request, m *message, cfg *Config) (n int64, member string) {
	what := ""
	switch r.Unit {
	case "bytes":
		if req.Stage != policy.StageEndOfMessage {
			return 0, ""
		}
		return max(req.Size, 0), ""
	case "messages":
		// A key with the recipient has a message of its own for each of them.
		if req.Stage != policy.StageRcpt || m.counts(r) && !r.byRecipient() {
			return 0, ""
		}
		return 1, ""
	case "recipients":
		if req.Stage != policy.StageRcpt {
			return 0, ""
		}
		return 1, ""
	case "distinct-recipients":
		what = strings.ToLower(req.Recipient.Local) + "@" + req.Recipient.Domain
	case "distinct-recipient-domains":
		what = req.Recipient.Domain
	case "distinct-senders":
		what = strings.ToLower(req.Sender.Local) + "@" + req.Sender.Domain
	case "distinct-clients":
		what = req.Client.Addr.String()
	default:
		what = network(req, cfg)
	}
	if req.Stage != policy.StageRcpt || what == "" {
		return 0, ""
	}
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(what)) // never fails
	return 1, fmt.Sprintf("%08x", sum.Sum32())
}

func (r *rule) byRecipient() bool {
	return slices.Contains(r.Key, "recipient") || slices.Contains(r.Key, "recipient-domain")
}

// applies tells whether the rule is for the request.
func (r *rule) applies(req *policy.Request) bool {
	login := req.SASL.Username != "" || req.TLS.CertSubject != ""
	if r.Clients == "authenticated" && !login || r.Clients == "unauthenticated" && login {
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

// who returns whose meter the request is counted on; false when it has no such
// thing.
func (r *rule) who(req *policy.Request, cfg *Config) (string, bool) {
	parts := make([]string, 0, len(r.Key))
	for _, k := range r.Key {
		v := ""
		switch k {
		case "client":
			if req.Client.Addr.IsValid() {
				v = req.Client.Addr.String()
			}
		case "network":
			v = network(req, cfg)
		case "login":
			v = req.SASL.Username
		case "sender":
			v = lower(req.Sender)
		case "sender-domain":
			v = req.Sender.Domain
		case "recipient":
			v = lower(req.Recipient)
		case "recipient-domain":
			v = req.Recipient.Domain
		case "helo":
			v = strings.ToLower(req.Helo)
		}
		if v == "" {
			return "", false
		}
		parts = append(parts, strings.ReplaceAll(v, " ", "%20"))
	}
	return strings.Join(parts, " "), true
}

// lower returns an address as limits compare it: nobody escapes by writing it
// otherwise.
func lower(a policy.Address) string {
	if a.Domain == "" {
		return strings.ToLower(a.Local)
	}
	return strings.ToLower(a.Local) + "@" + a.Domain
}

func network(req *policy.Request, cfg *Config) string {
	a := req.Client.Addr
	if !a.IsValid() {
		return ""
	}
	bits := cfg.NetworkIPv6
	if a.Is4() {
		bits = cfg.NetworkIPv4
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}
