// Package spf is the check of the Sender Policy Framework (RFC 7208) at the
// envelope: may this client send mail for the domain of MAIL FROM, and for the
// name in HELO? What each result does is the operator's choice.
//
// blitiri.com.ar/go/spf evaluates. It gets the records in a plain form, read
// by the whole grammar first, and never sees what a stranger wrote; where it
// would answer otherwise than RFC 7208 says, that is put right on the way (see
// plan and evaluation).
//
// The results are left in the request's facts for later checks, and go into a
// Received-SPF or Authentication-Results field. What a trusted relay hands in
// is judged at the milter door by the address that the relay had it from (see
// [Inspector]).
package spf

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/list"
	"postern/policy"
)

// Options is what a Check is made from besides its settings.
type Options struct {
	// Hostname is our name in header fields.
	Hostname string
	Resolver Resolver
	Log      *zap.Logger
	Registry prometheus.Registerer
}

// Check is the spf check. It is safe for concurrent use.
type Check struct {
	cfg      Config
	hostname string
	res      Resolver
	limits   limits
	must     domains
	allow    []string

	reply, deferReply, errorReply, tempReply *policy.Template
	skip, relays                             *list.Live

	shared *shared
}

var _ policy.Check = (*Check)(nil)

// shared outlives a reload.
type shared struct {
	cache   *cache
	plans   *plans
	made    madeFor
	metrics *metrics
	lists   *list.Metrics
}

// madeFor are the settings that what is kept depends on.
type madeFor struct {
	limits           limits
	widest4, widest6 int
	size             int
	ttl              time.Duration
}

// New returns the check; cfg has been validated. prev is the check that this
// one takes the place of, or nil: what it knows is carried over. It reads the
// lists and starts nothing. The error is that of a list file.
func New(cfg Config, o Options, prev *Check) (*Check, error) {
	c := &Check{
		cfg: cfg, hostname: o.Hostname, res: o.Resolver,
		limits: limits{cfg.MaxLookups, cfg.MaxVoidLookups, cfg.LookupTime.D()},
		must:   newDomains(cfg.MustPass),
	}
	for _, d := range cfg.AllowDomains {
		c.allow = append(c.allow, mailaddr.Domain(d))
	}
	for i, t := range cfg.templates() {
		parsed, err := policy.ParseTemplate(t.text, t.def, replyVars...)
		if err != nil {
			return nil, fmt.Errorf("spf: %s: %w", t.key, err)
		}
		*[...]**policy.Template{&c.reply, &c.deferReply, &c.errorReply, &c.tempReply}[i] = parsed
	}
	c.share(o, prev)
	log := o.Log.Named("spf")
	var faults conf.Faults
	for i, l := range cfg.lists("spf") {
		kind := [...]string{"skip", "relays"}[i]
		live, fs := list.NewLive(l.sources, l.opts, log.With(zap.String("kind", kind)), c.shared.lists)
		faults = append(faults, fs...)
		mine := [...]**list.Live{&c.skip, &c.relays}[i]
		*mine = live
		if prev != nil && len(fs) == 0 {
			live.Adopt([...]*list.Live{prev.skip, prev.relays}[i])
		}
	}
	return c, faults.Err()
}

// share takes over what prev knows, as far as it still holds.
func (c *Check) share(o Options, prev *Check) {
	made := madeFor{c.limits, c.cfg.WidestIPv4, c.cfg.WidestIPv6, c.cfg.CacheSize, c.cfg.CacheTTL.D()}
	if prev != nil && prev.shared.made == made {
		c.shared = prev.shared
		return
	}
	c.shared = &shared{
		cache: newCache(made.size, made.ttl), plans: newPlans(made.widest4, made.widest6), made: made,
	}
	if prev != nil {
		c.shared.metrics, c.shared.lists = prev.shared.metrics, prev.shared.lists
		return
	}
	c.shared.metrics, c.shared.lists = newMetrics(o.Registry), list.NewMetrics(o.Registry, "spf")
}

// Start begins to watch the list files.
func (c *Check) Start() {
	c.skip.Start(c.cfg.ReloadInterval.D())
	c.relays.Start(c.cfg.ReloadInterval.D())
}

// Stop ends what Start began. It can be called twice, and without Start.
func (c *Check) Stop() {
	c.skip.Stop()
	c.relays.Stop()
}

// Name implements [policy.Check].
func (c *Check) Name() string { return "spf" }

// Traits are those of every spf check: it needs the sender.
var Traits = policy.Traits{
	Stages: policy.Stages(policy.StageMail, policy.StageRcpt, policy.StageData, policy.StageEndOfMessage),
	Waits:  true,
}

// Traits implements [policy.Check].
func (c *Check) Traits() policy.Traits { return Traits }

// Evaluate implements [policy.Check]. It never fails: what cannot be asked is
// a temperror.
func (c *Check) Evaluate(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	if reason, detail := c.exempt(req); reason != "" {
		if req.Probe != nil {
			req.Probe.Add("not asked", detail, "", 0)
		}
		return policy.Verdict{Reason: reason, Detail: detail}, nil
	}
	s := subject{
		addr: req.Client.Addr, helo: mailaddr.Domain(req.Helo), sender: req.Sender, null: req.NullSender(),
		instance: req.Instance, now: req.Time, probe: req.Probe,
	}
	return c.judge(ctx, &s, req, true), nil
}

// Reasons for not asking.
const (
	reasonExempt        = "spf-exempt"
	reasonAuthenticated = "spf-authenticated"
	reasonRelay         = "spf-relay"
	reasonUnknownClient = "spf-unknown-client"
)

// exempt says why SPF is not asked about a request, "" when it is.
func (c *Check) exempt(req *policy.Request) (reason, detail string) {
	if !req.Client.Addr.IsValid() {
		return reasonUnknownClient, "the client's address is not known"
	}
	if c.cfg.SkipAuthenticated {
		if req.SASL.Username != "" {
			return reasonAuthenticated, "login " + req.SASL.Username
		}
		if req.TLS.CertSubject != "" {
			return reasonAuthenticated, "certificate " + req.TLS.CertSubject
		}
	}
	if e := c.skip.Match(req); e != nil && e.Action != policy.Continue {
		return reasonExempt, e.Place() + " " + e.Pattern
	}
	if e := c.relays.Match(req); e != nil && e.Action != policy.Continue {
		return reasonRelay, e.Place() + " " + e.Pattern
	}
	return "", ""
}

// subject is who is asked about.
type subject struct {
	addr     netip.Addr
	helo     string // in the compared form
	sender   policy.Address
	null     bool // the sender is <>
	instance string
	now      time.Time
	probe    *policy.Probe
}

// judge asks, leaves what it learned in the facts of req, and says what to do.
// What may not be refused is marked.
func (c *Check) judge(ctx context.Context, s *subject, req *policy.Request, refuse bool) policy.Verdict {
	f := c.askBoth(ctx, s)
	f.allowedBy, f.allowMissing = c.allowed(ctx, s)
	f.must = !s.null && c.must.has(s.sender.Domain)
	c.learn(&f, req)
	v := policy.Verdict{Add: c.header(&f, s)}
	if f.allowedBy != "" {
		v.Action, v.Skip, v.Reason, v.Detail = policy.Allow, c.cfg.AllowSkip, reasonAllowed, "allowed by the record of "+f.allowedBy
		return v
	}
	r := decide(&c.cfg, &f)
	if !refuse {
		r.action = min(r.action, Mark)
	}
	v.Reason = r.reason
	if r.outcome.Result != pass || r.outcome.TooWide {
		v.Detail = r.detail()
	}
	switch r.action {
	case Reject:
		v.Action = policy.Reject
	case Defer:
		v.Action = policy.Defer
	default:
		return v
	}
	v.Reply = c.replyOf(ctx, &r, s, req)
	return v
}

// reasonAllowed is the reason of a client that a record in allow_domains names.
const reasonAllowed = "spf-allowed"

// askBoth asks about both identities. Without a sender MAIL FROM is the HELO name
// (RFC 7208 section 2.4), and there is only one.
func (c *Check) askBoth(ctx context.Context, s *subject) (f findings) {
	f.helo = c.askOne(ctx, s, identityHelo, query{addr: s.addr, domain: s.helo, helo: s.helo})
	if !s.null {
		f.mail = c.askOne(ctx, s, identityMailFrom, query{addr: s.addr, domain: s.sender.Domain, local: s.sender.Local, helo: s.helo})
	}
	return f
}

func (c *Check) askOne(ctx context.Context, s *subject, id identity, q query) *Outcome {
	if q.local == "" {
		q.local = "postmaster"
	}
	before := time.Now()
	o, e := c.ask(ctx, q, s.instance, s.now, s.probe != nil)
	if s.probe != nil {
		for _, step := range e.steps {
			source := "network"
			if step.Cached {
				source = "cache"
			}
			s.probe.Add(step.Query, step.Answer, source, step.Took)
		}
		s.probe.Add(id.String()+" "+o.Domain, o.words(), "", time.Since(before))
	}
	return o
}

// allowed returns the domain of allow_domains whose record lets the client
// pass, and whether one could not be asked.
func (c *Check) allowed(ctx context.Context, s *subject) (by string, missing bool) {
	for _, d := range c.allow {
		o, _ := c.ask(ctx, query{addr: s.addr, domain: d, local: "postmaster", helo: s.helo}, s.instance, s.now, false)
		if s.probe != nil {
			s.probe.Add("allow_domains "+d, o.words(), "", 0)
		}
		if o.passes() {
			return d, false
		}
		missing = missing || o.Result == temperror
	}
	return "", missing
}

// learn leaves what was found in the facts, and counts it.
func (c *Check) learn(f *findings, req *policy.Request) {
	main, id := f.main()
	facts := &req.Facts
	facts.SPF = policy.SPF{Result: main.Result, Domain: main.Domain, Identity: id.fact()}
	if main.TooWide {
		facts.SPF.Result = policy.SPFTooWide
	}
	for _, x := range [...]struct {
		id identity
		o  *Outcome
	}{{identityMailFrom, f.mail}, {identityHelo, f.helo}} {
		if x.o == nil {
			continue
		}
		k := kindOf(x.o)
		if !req.DryRun {
			c.shared.metrics.results[x.id][k].Inc()
		}
		if k != kindPass && c.cfg.action(x.id, k) >= Mark {
			facts.Mark(reasons[x.id][k])
		}
		if k == kindTempError && !slices.Contains(facts.Missing, "spf "+x.o.Domain) {
			facts.Missing = append(facts.Missing, "spf "+x.o.Domain)
		}
	}
}

// replyOf returns the reply of a ruling that refuses.
func (c *Check) replyOf(ctx context.Context, r *ruling, s *subject, req *policy.Request) policy.Reply {
	t := c.reply
	switch {
	case r.temporary():
		t = c.tempReply
	case r.action == Defer:
		t = c.deferReply
	case r.outcome.Result == permerror:
		t = c.errorReply
	}
	explanation := ""
	if c.cfg.Explanation && r.outcome.exp != "" && t.Uses("explanation") {
		q := query{addr: s.addr, domain: r.outcome.Domain, local: s.sender.Local, helo: s.helo}
		if r.identity == identityHelo {
			q.local = "postmaster"
		}
		if text := c.explain(ctx, r.outcome, q, s.now); text != "" {
			explanation = "; " + r.outcome.Domain + " says: " + text
		}
	}
	reply := t.Expand(func(name string) string {
		switch name {
		case "client":
			return s.addr.String()
		case "helo":
			return req.Helo
		case "sender":
			return req.Sender.Raw
		case "recipient":
			return req.Recipient.Raw
		case "identity":
			return r.identity.String()
		case "domain":
			if r.outcome.Domain == "" {
				return "an address without a domain"
			}
			return r.outcome.Domain
		case "result":
			return r.word()
		case "problem":
			return r.outcome.Problem
		default:
			return explanation
		}
	})
	if r.action == Defer && r.outcome.Result == permerror && !r.temporary() && reply.Enhanced == deferReply.Enhanced {
		reply.Enhanced = "4.7.24" // RFC 7372 section 3.2
	}
	return reply
}

// domains are those of must_pass.
type domains struct {
	exact, below map[string]bool
}

func newDomains(names []string) domains {
	d := domains{make(map[string]bool), make(map[string]bool)}
	for _, n := range names {
		if rest, ok := strings.CutPrefix(n, "."); ok {
			d.below[mailaddr.Domain(rest)] = true
		} else {
			d.exact[mailaddr.Domain(n)] = true
		}
	}
	return d
}

func (d *domains) has(name string) bool {
	if d.exact[name] {
		return true
	}
	for len(d.below) > 0 {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			return false
		}
		if d.below[rest] {
			return true
		}
		name = rest
	}
	return false
}
