// Package client is the check that asks whether a client is what it says: its
// HELO name (RFC 5321 section 4.1.1.1), its reverse name, and the domain of the
// sender that it brings. What each condition does is the operator's choice; by
// default what no honest server does is refused, and what many do is a mark.
//
// What Postfix has found out of the reverse name is used; the rest is asked of
// the DNS, only where a condition needs it, and remembered. What the DNS does
// not answer speaks against nobody.
package client

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/list"
	"postern/policy"
)

// Resolver is what the check needs of the DNS. A name that does not exist, or
// has no such record, is an empty answer without an error; ttl is then that of
// the negative answer. An error is a temporary failure. All calls return soon
// after ctx is done and are safe for concurrent use.
type Resolver interface {
	LookupA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error)
	LookupAAAA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error)
	// LookupMX returns the hosts, the preferred first; that of a null MX (RFC
	// 7505) is "".
	LookupMX(ctx context.Context, name string) (hosts []string, ttl time.Duration, cached bool, err error)
	LookupPTR(ctx context.Context, addr netip.Addr) (names []string, ttl time.Duration, cached bool, err error)
}

// Names says what makes the reverse name of an address generic, "" when it is
// not. It is safe for concurrent use.
type Names interface {
	Why(name string, addr netip.Addr) string
}

// Options is what a Check is made from besides its settings.
type Options struct {
	// Hostname is our name, which no stranger has.
	Hostname string
	Resolver Resolver
	Names    Names
	Log      *zap.Logger
	Registry prometheus.Registerer
}

// Check is the client check. It is safe for concurrent use.
type Check struct {
	cfg      Config
	rules    *rules
	wanted   set
	res      Resolver
	names    *generics
	own      map[string]bool // names
	domains  map[string]bool // of ours
	ownBelow map[string]bool // domains whose names below are ours

	tooMany string // names in HELO, in words
	replies [conditions]*policy.Template
	score   [2]*policy.Template
	unable  *policy.Template
	skip    *list.Live

	shared *shared
}

var _ policy.Hinter = (*Check)(nil)

// shared outlives a reload.
type shared struct {
	made    madeFor
	answers *otter.Cache[key, kept]
	changes *changes
	metrics *metrics
	lists   *list.Metrics
}

// madeFor are the settings that what is remembered depends on.
type madeFor struct {
	size               int
	ttl                time.Duration
	hosts              bool // of mail exchangers are looked up
	helos, heloClients int
	window             time.Duration
}

// New returns the check; cfg has been validated. prev is the check that this
// one takes the place of, or nil: what it knows is carried over. It reads the
// lists and starts nothing. The error is that of a list file.
func New(cfg Config, o Options, prev *Check) (*Check, error) {
	c := &Check{
		cfg: cfg, rules: cfg.rules(), res: o.Resolver, names: newGenerics(o.Names),
		own: make(map[string]bool), domains: make(map[string]bool), ownBelow: make(map[string]bool),
	}
	c.wanted = c.rules.wanted()
	c.tooMany = fmt.Sprintf("more than %d names within %v", cfg.HeloNames, cfg.HeloWindow)
	for _, name := range append([]string{o.Hostname}, cfg.OwnNames...) {
		c.own[mailaddr.Domain(name)] = true
	}
	for _, d := range cfg.OwnDomains {
		if below, ok := strings.CutPrefix(d, "."); ok {
			c.ownBelow[mailaddr.Domain(below)] = true
		} else {
			c.domains[mailaddr.Domain(d)] = true
		}
	}
	var err error
	for i, one := range cfg.all() {
		if c.replies[i], err = one.template(condition(i)); err != nil {
			return nil, fmt.Errorf("client: reply of %s: %w", slugs[i], err)
		}
	}
	if c.score, err = cfg.scoreTemplates(); err != nil {
		return nil, fmt.Errorf("client: score_reply: %w", err)
	}
	if c.unable, err = policy.ParseTemplate(cfg.UnableReply, unableReply, unableVars...); err != nil {
		return nil, fmt.Errorf("client: unable_reply: %w", err)
	}
	c.share(o, prev)
	sources, opts := cfg.list("client")
	live, faults := list.NewLive(sources, opts, o.Log.Named("client"), c.shared.lists)
	if c.skip = live; prev != nil && len(faults) == 0 {
		live.Adopt(prev.skip)
	}
	return c, faults.Err()
}

// share takes over what prev knows, as far as it still holds.
func (c *Check) share(o Options, prev *Check) {
	made := madeFor{
		c.cfg.CacheSize, c.cfg.CacheTTL.D(), c.wanted.has(senderPrivateMX), c.cfg.HeloNames, c.cfg.HeloClients, c.cfg.HeloWindow.D(),
	}
	if prev != nil && prev.shared.made == made {
		c.shared = prev.shared
		return
	}
	c.shared = &shared{
		made:    made,
		answers: otter.Must(&otter.Options[key, kept]{MaximumSize: made.size}), // the times are in the values
		changes: newChanges(made.helos, made.window, made.heloClients),
	}
	if prev != nil {
		c.shared.metrics, c.shared.lists = prev.shared.metrics, prev.shared.lists
		return
	}
	c.shared.metrics, c.shared.lists = newMetrics(o.Registry), list.NewMetrics(o.Registry, "client")
}

// Start begins to watch the files of exceptions.
func (c *Check) Start() { c.skip.Start(c.cfg.ReloadInterval.D()) }

// Stop ends what Start began. It can be called twice, and without Start.
func (c *Check) Stop() { c.skip.Stop() }

// Name implements [policy.Check].
func (c *Check) Name() string { return "client" }

// Traits are those of every such check. What is not known yet at a stage is
// not judged there.
var Traits = policy.Traits{
	Stages: policy.Stages(policy.StageConnect, policy.StageHelo, policy.StageMail, policy.StageRcpt, policy.StageData),
	Waits:  true,
	Prompt: true,
}

// Traits implements [policy.Check].
func (c *Check) Traits() policy.Traits { return Traits }

// Idle implements [policy.Idler]: every condition is off.
func (c *Check) Idle() bool { return c.wanted == 0 }

// Evaluate implements [policy.Check]. It never fails: what could not be asked
// is noted.
func (c *Check) Evaluate(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	if reason, detail := c.exempt(req, false); reason != "" {
		if req.Probe != nil {
			req.Probe.Add("not judged", detail, "", 0)
		}
		return policy.Verdict{Reason: reason, Detail: detail}, nil
	}
	f := findings{needed: c.wanted, fresh: req.Probe != nil}
	c.look(req, &f, !req.DryRun)
	if f.pending != 0 && (req.Probe != nil || decide(c.rules, f.found, 0).action != conf.Reject) {
		c.lookUp(ctx, req, &f)
	}
	return c.conclude(req, &f), nil
}

// Hint implements [policy.Hinter]: what the form of a HELO name and what is
// remembered tell.
func (c *Check) Hint(req *policy.Request) (policy.Verdict, bool) {
	if reason, _ := c.exempt(req, true); reason != "" {
		return policy.Verdict{}, false
	}
	f := findings{needed: c.wanted}
	c.look(req, &f, false)
	r := decide(c.rules, f.found, 0)
	if r.action != conf.Reject && (r.action != conf.Defer || f.pending != 0) {
		return policy.Verdict{}, false
	}
	return c.conclude(req, &f), true
}

// Reasons for not judging a request.
const (
	reasonUnknownClient = "client-unknown-client"
	reasonAuthenticated = "client-authenticated"
	reasonOwnNetwork    = "client-own-network"
	reasonOwnProbe      = "client-own-probe"
	reasonOtherStage    = "client-other-stage"
	reasonExempt        = "client-exempt"
)

// exempt says why a request is not judged, "" when it is. An entry that exempts
// counts as hit unless peek is set.
func (c *Check) exempt(req *policy.Request, peek bool) (reason, detail string) {
	probe := c.ownProbe(req)
	switch {
	case probe && req.Stage < policy.StageData:
		return reasonOwnProbe, "judged at DATA"
	case req.Stage == policy.StageData && !probe:
		// Of several recipients, which may be exempt, nothing is known here.
		return reasonOtherStage, "has been judged at RCPT"
	case !req.Client.Addr.IsValid():
		return reasonUnknownClient, "the client's address is not known"
	case c.cfg.SkipAuthenticated && req.SASL.Username != "":
		return reasonAuthenticated, "login " + req.SASL.Username
	case c.cfg.SkipAuthenticated && req.TLS.CertSubject != "":
		return reasonAuthenticated, "certificate " + req.TLS.CertSubject
	case c.cfg.SkipOwnNetworks && c.ownHost(req):
		return reasonOwnNetwork, "a host of ours"
	}
	e := c.skip.Set().Find(req)
	if e == nil || e.Action == policy.Continue {
		return "", ""
	}
	if !peek && !req.DryRun {
		e.Hit(req.Time)
	}
	return reasonExempt, e.Place() + " " + e.Pattern
}

// ownHost reports whether the client is a host of ours.
func (c *Check) ownHost(req *policy.Request) bool {
	return req.Client.Addr == req.ServerAddr || c.ownAddr(req.Client.Addr)
}

func (c *Check) ownAddr(addr netip.Addr) bool {
	for _, p := range c.cfg.OwnNetworks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// ownProbe reports whether the sender is that of our own callouts: another
// gateway of ours asks. A probe ends before DATA, so the name opens nothing.
func (c *Check) ownProbe(req *policy.Request) bool {
	for _, s := range c.cfg.OwnProbes {
		if strings.EqualFold(s, req.Sender.Raw) {
			return true
		}
	}
	return false
}

// ownDomain reports whether a domain is one of own_domains.
func (c *Check) ownDomain(name string) bool {
	if c.domains[name] {
		return true
	}
	for len(c.ownBelow) > 0 {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			return false
		}
		if c.ownBelow[rest] {
			return true
		}
		name = rest
	}
	return false
}
