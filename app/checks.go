package app

import (
	"context"
	"slices"

	"postern/access"
	"postern/auth"
	"postern/client"
	"postern/config"
	"postern/dkim"
	"postern/dmarcreport"
	"postern/greylist"
	"postern/headercheck"
	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/internal/page"
	"postern/known"
	"postern/limit"
	"postern/pipeline"
	"postern/policy"
	"postern/provider"
	"postern/rbl"
	"postern/spf"
	"postern/store"
	"postern/verify"
)

// checks are those that others in this package talk to by their type.
type checks struct {
	access   *access.Check
	provider *provider.Set
	client   *client.Check
	rbl      *rbl.Check
	spf      *spf.Check
	known    *known.Check
	greylist *greylist.Check
	reports  *dmarcreport.Reporter
	auth     *auth.Check
	headers  *headercheck.Check
	dkim     *dkim.Check
}

// checks makes all checks, in the order in which people read about them. A new
// one is added here, and nowhere else in this package: add is given its step
// and how it is made, with the one that it takes the place of after a reload,
// nil for none.
func (b *builder) checks() {
	cfg, g := b.cfg, b.g
	g.access = add(b, cfg.Access.Step, func(prev *access.Check) (*access.Check, error) {
		return access.New(cfg.Access, b.log, b.reg, prev)
	})
	g.headers = add(b, conf.Step{}, func(prev *headercheck.Check) (*headercheck.Check, error) {
		return headercheck.New(cfg.Headers, b.log, b.reg, prev)
	})
	g.provider = add(b, cfg.Provider.Step, func(prev *provider.Set) (*provider.Set, error) {
		return provider.New(cfg.Provider, b.providerOptions(prev))
	})
	g.client = add(b, cfg.Client.Step, func(prev *client.Check) (*client.Check, error) {
		own := cfg.Client
		own.OwnProbes = verify.ProbeSenders(&cfg.Verify, cfg.Hostname)
		return client.New(own, client.Options{Hostname: cfg.Hostname, Resolver: dns{g.resolver}, Names: g.names, Log: b.log, Registry: b.reg}, prev)
	})
	g.rbl = add(b, cfg.RBL.Step, func(prev *rbl.Check) (*rbl.Check, error) {
		lists := cfg.RBL
		lists.Untested = b.rehearsal != nil // what is recorded is trusted
		return rbl.New(lists, g.resolver, b.log, b.reg, prev)
	})
	g.spf = add(b, cfg.SPF.Step, func(prev *spf.Check) (*spf.Check, error) {
		return spf.New(cfg.SPF, spf.Options{Hostname: cfg.Hostname, Resolver: dns{g.resolver}, Log: b.log, Registry: b.reg}, prev)
	})
	g.reports = add(b, conf.Step{}, func(prev *dmarcreport.Reporter) (*dmarcreport.Reporter, error) {
		return dmarcreport.New(cfg.Reports, dmarcreport.Options{
			Hostname: cfg.Hostname, Store: store.SpaceOf(b.store, store.ReportSpace), LookupTXT: authDNS{g.resolver}.LookupTXT, Log: b.log, Registry: b.reg,
		}, prev)
	})
	g.auth = add(b, cfg.Auth.Step, func(prev *auth.Check) (*auth.Check, error) {
		return auth.New(cfg.Auth, auth.Options{Hostname: cfg.Hostname, Resolver: authDNS{g.resolver}, SPF: g.envelopeSPF, Report: g.reports.Add, Log: b.log, Registry: b.reg}, prev)
	})
	g.dkim = add(b, conf.Step{}, func(prev *dkim.Check) (*dkim.Check, error) {
		return dkim.New(cfg.DKIM, dkim.Options{Resolver: signerDNS{authDNS{g.resolver}}, Log: b.log, Registry: b.reg}, prev)
	})
	add(b, cfg.Limit.Step, func(prev *limit.Check) (*limit.Check, error) {
		limits := cfg.Limit
		limits.OwnProbes = verify.ProbeSenders(&cfg.Verify, cfg.Hostname)
		return limit.New(limits, limit.Options{
			Store: b.store, Admin: store.SpaceOf(b.store, store.MeterSpace), Raises: store.SpaceOf(b.store, store.RaiseSpace), Leases: store.SpaceOf(b.store, store.NotifySpace),
			Hostname: cfg.Hostname, Secret: cfg.Secret, Log: b.log, Registry: b.reg,
		}, prev)
	})
	add(b, cfg.Verify.Step, func(prev *verify.Check) (*verify.Check, error) {
		passwords, err := ldapPasswords(cfg)
		if err != nil {
			return nil, err
		}
		return verify.New(cfg.Verify, verify.Options{
			Hostname: cfg.Hostname, Passwords: passwords, Recorded: b.recipients(), Store: store.SpaceOf(b.store, store.VerifySpace), DNS: g.resolver.Net(), Log: b.log, Metrics: b.reg,
		}, prev)
	})
	g.known = add(b, cfg.Known.Step, func(prev *known.Check) (*known.Check, error) {
		own := cfg.Known
		own.OwnProbes = verify.ProbeSenders(&cfg.Verify, cfg.Hostname)
		return known.New(own, b.knownOptions(), prev)
	})
	g.greylist = add(b, cfg.Greylist.Step, func(prev *greylist.Check) (*greylist.Check, error) {
		grey := cfg.Greylist
		grey.OwnProbes = verify.ProbeSenders(&cfg.Verify, cfg.Hostname)
		return greylist.New(grey, greylist.Options{
			Hostname: cfg.Hostname, Store: b.store, Admin: b.store, Networks: store.SpaceOf(b.store, store.NetworkSpace),
			Names: g.names, Relist: g.relist(), SPF: g.learnedSPF(), Voucher: g.known, Log: b.log, Metrics: b.reg, Previous: prev,
		})
	})
}

// rule is greylisting's arithmetic that is in force.
func (a *App) rule() greylist.Rule {
	if g := a.current.Load(); g != nil {
		return g.greylist.Rule()
	}
	d := greylist.DefaultConfig() // before the first is in force
	return greylist.Rule{Window: d.Window.D(), Keep: d.Keep.D()}
}

// relist asks DNS lists anew for the greylist, where their check may refuse.
func (g *generation) relist() greylist.Relist {
	if g.rbl.Idle() || g.cfg.RBL.Mode != policy.Enforce {
		return nil
	}
	return g.rbl.Anew
}

func (b *builder) knownOptions() known.Options {
	g := b.g
	o := known.Options{
		Stores: known.Stores{
			Correspondents: store.SpaceOf(b.store, store.KnownSpace), Domains: store.SpaceOf(b.store, store.KnownDomainSpace),
			Expected: store.SpaceOf(b.store, store.ExpectSpace), Remote: b.cfg.Store.Kind == store.Redis,
		},
		Delimiters: b.cfg.Greylist.Delimiters, Log: b.log, Metrics: b.reg,
		// Who waits need not wait any longer.
		Expected: func() { g.greylist.ForgetHints() },
	}
	if len(b.cfg.Milter.Listen) > 0 {
		o.Watched = b.dialogs.Watched
	}
	return o
}

// learnedSPF asks SPF about past mail, where requests have its result; nil where
// they do not.
func (g *generation) learnedSPF() func(context.Context, *policy.Request) policy.SPF {
	if !g.cfg.InSomeChain("spf") {
		return nil
	}
	return g.envelopeSPF
}

// envelopeSPF asks what no chain has asked: SPF for the envelope of a message.
func (g *generation) envelopeSPF(ctx context.Context, req *policy.Request) policy.SPF {
	about := *req
	about.Facts = policy.Facts{}
	if _, err := g.spf.Evaluate(ctx, &about); err != nil {
		return policy.SPF{Result: "temperror"}
	}
	return about.Facts.SPF
}

func (b *builder) providerOptions(prev *provider.Set) provider.Options {
	o := provider.Options{
		Resolver: dns{b.g.resolver}, Forget: b.g.resolver.Flush, Log: b.log, Registry: b.reg, Previous: prev,
	}
	if len(b.cfg.Milter.Listen) > 0 {
		o.Milter = b.dialogs.Watched
	}
	if b.cfg.Store.Kind == store.Redis {
		o.Shared = store.FleetOf(b.store)
	}
	return o
}

// recipients is what verify is told in place of asking; nil: it asks.
func (b *builder) recipients() func(policy.Address) (verify.Result, string) {
	if b.rehearsal == nil {
		return nil
	}
	return func(a policy.Address) (verify.Result, string) {
		result, detail := b.rehearsal.Recipients(a)
		return verify.Result(result), detail
	}
}

func ldapPasswords(cfg *config.Config) (map[string]string, error) {
	passwords := make(map[string]string, len(cfg.Verify.LDAP))
	for _, l := range cfg.Verify.LDAP {
		secret, err := cfg.Secret(l.PasswordFile)
		if err != nil {
			return nil, err
		}
		passwords[l.Name] = secret
	}
	return passwords, nil
}

// inspectors are the checks that look at the content of messages, in their
// order: who may relay comes before who the message is from, and that before
// what it holds.
func (g *generation) inspectors() []pipeline.Inspector {
	var out []pipeline.Inspector
	if g.provider.Inspects() {
		out = append(out, pipeline.Inspector{Inspector: g.provider.Inspector(), Step: g.provider.InspectorStep()})
	}
	if g.spf.Inspects() && g.cfg.InSomeChain("spf") {
		out = append(out, pipeline.Inspector{Inspector: g.spf.Inspector(), Step: g.cfg.SPF.Step})
	}
	if g.cfg.Auth.Mode != policy.Off {
		out = append(out, pipeline.Inspector{Inspector: g.auth, Step: g.cfg.Auth.Step})
	}
	if len(g.cfg.Headers.Checks)+len(g.cfg.Headers.Rules) > 0 {
		out = append(out, pipeline.Inspector{Inspector: g.headers, Step: g.cfg.Headers.Step()})
	}
	if g.cfg.DKIM.Mode != policy.Off { // it comes when all others have finished
		out = append(out, pipeline.Inspector{Inspector: g.dkim, Step: g.cfg.DKIM.Step})
	}
	if g.dkim.Seals() {
		out = append(out, pipeline.Inspector{Inspector: g.dkim.Sealer(), Step: g.cfg.DKIM.Step})
	}
	if g.known.Inspects() { // last, for what nobody has refused
		out = append(out, pipeline.Inspector{Inspector: g.known.Inspector(), Step: g.known.InspectorStep()})
	}
	return slices.Clip(out)
}

// unit is a check as a generation runs it.
type unit struct {
	name  string // in chains, and in the status
	check interface {
		Start()
		Stop()
	}
	step   conf.Step // in chains; of no use to what is no [policy.Check]
	status func() adminapi.Status
	calls  adminapi.Calls
	pages  []page.Page // of the console
}

// check is what the daemon needs of every check, S being what it says of its
// state. One that chains can name is a [policy.Check], too.
type check[S adminapi.Status] interface {
	Name() string
	Start()
	Stop() // can be called without Start
	Status() S
	Calls() adminapi.Calls
}

// add makes a check and adds it to the generation. It does nothing once
// something has failed.
func add[C check[S], S adminapi.Status](b *builder, step conf.Step, build func(prev C) (C, error)) (c C) {
	if b.err != nil {
		return c
	}
	var prev C
	for _, u := range b.prev.units {
		if same, ok := u.check.(C); ok {
			prev = same
		}
	}
	made, err := build(prev)
	if err != nil {
		b.err = err
		return c
	}
	u := unit{
		name: made.Name(), check: made, step: step, status: func() adminapi.Status { return made.Status() }, calls: made.Calls(),
	}
	if shown, ok := any(made).(interface{ Pages() []page.Page }); ok {
		u.pages = shown.Pages()
	}
	b.g.units = append(b.g.units, u)
	return made
}

// steps are the checks that chains can name.
func steps(units []unit) map[string]pipeline.Step {
	out := make(map[string]pipeline.Step, len(units))
	for _, u := range units {
		if check, ok := u.check.(policy.Check); ok {
			out[u.name] = pipeline.Step{Check: check, Step: u.step}
		}
	}
	return out
}
