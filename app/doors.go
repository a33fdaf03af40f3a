package app

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"postern/config"
	"postern/internal/listen"
	"postern/lookup"
	"postern/milter"
	"postern/pipeline"
	"postern/policy"
	"postern/resolver"
)

// maxDialogs is how many SMTP sessions the two doors join at once.
const maxDialogs = 10_000

// Inspect implements milter.Handler. The generation that begins a message also
// ends it.
func (a *App) Inspect(req *policy.Request, to []policy.Address) milter.Content {
	g := a.use()
	if c := g.pipeline.Inspect(req, to); c != nil {
		return content{c, g}
	}
	g.users.Add(-1)
	return nil
}

// content is a message that keeps its generation running.
type content struct {
	*pipeline.Content
	g *generation
}

// End implements milter.Content.
func (c content) End(ctx context.Context, req *policy.Request, d *policy.Decision) []policy.Edit {
	defer c.g.users.Add(-1)
	return c.Content.End(ctx, req, d)
}

// Abandon implements milter.Content.
func (c content) Abandon() {
	defer c.g.users.Add(-1)
	c.Content.Abandon()
}

// Wants implements milter.Handler.
func (a *App) Wants(chain string) milter.Wants {
	g := a.current.Load()
	p := g.pipeline
	content, bodies := p.Looks()
	return milter.Wants{Stages: p.Stages(chain), Content: content, Bodies: bodies, Early: g.asksLists()}
}

// asksLists reports whether DNS lists are asked at all.
func (g *generation) asksLists() bool {
	if g.cfg.Mode == policy.Off || g.cfg.RBL.Mode == policy.Off || len(g.cfg.RBL.Lists) == 0 {
		return false
	}
	for _, c := range g.cfg.Chains {
		if slices.Contains(c.Checks, "rbl") {
			return true
		}
	}
	return false
}

// early begins the DNS look-ups about a client that has just connected: what
// they find is in the caches when the policy door is asked. Of a client known
// good nothing is asked.
func (a *App) early(ctx context.Context, c policy.Client) {
	g := a.use()
	defer g.users.Add(-1)
	if g.trusts(c.Addr) {
		return
	}
	req := policy.Request{Time: time.Now(), Stage: policy.StageConnect, Door: "milter", Client: c, DryRun: true}
	var names sync.WaitGroup
	if own := req; g.cfg.InSomeChain("client") && g.cfg.Client.Mode != policy.Off {
		names.Go(func() { _, _ = g.client.Evaluate(ctx, &own) }) // the answers are what counts, and they are cached
	}
	_, _ = g.rbl.Evaluate(ctx, &req) // likewise
	names.Wait()
}

// known reports whether a client is known good: trusted, or one whose mail has
// passed greylisting often enough.
func (a *App) known(ctx context.Context, c policy.Client) bool {
	g := a.use()
	defer g.users.Add(-1)
	return g.trusts(c.Addr) || g.cfg.Greylist.Mode != policy.Off && g.greylist.Known(ctx, c, time.Now())
}

// trusts reports whether a client is allowed by a list, or permitted to relay,
// or in the networks of a provider.
func (g *generation) trusts(addr netip.Addr) bool {
	for _, name := range g.provider.Names() {
		if t, ok := g.provider.Table(name); ok && t.Contains(addr) {
			return true
		}
	}
	req := &policy.Request{Time: time.Now(), Stage: policy.StageConnect, Client: policy.Client{Addr: addr}, DryRun: true}
	v, err := g.access.Evaluate(context.Background(), req)
	return err == nil && (v.Action == policy.Allow || v.Action == policy.Permit)
}

// maps are everything that the lookup door serves.
func (g *generation) maps() map[string]lookup.Map {
	m := g.tables.Maps()
	for _, name := range g.provider.Names() {
		if t, ok := g.provider.Table(name); ok {
			m[config.MapOfProvider(name)] = lookup.FromNetworks(providerNetworks{t})
		}
	}
	if len(g.cfg.Access.Allow) > 0 {
		m[config.MapOfAllow] = lookup.FromNetworks(accessNetworks{g.access, policy.Allow})
	}
	if len(g.cfg.Access.Deny) > 0 {
		m[config.MapOfDeny] = lookup.FromNetworks(accessNetworks{g.access, policy.Reject})
	}
	return m
}

// providerNetworks answers OK for addresses of a provider, as its exported
// files do.
type providerNetworks struct {
	table interface{ Contains(netip.Addr) bool }
}

// Lookup implements lookup.Networks.
func (n providerNetworks) Lookup(addr netip.Addr) (string, bool) {
	return "OK", n.table.Contains(addr)
}

// accessNetworks answers for clients that an access list allows or denies by
// their address.
type accessNetworks struct {
	check  policy.Check
	action policy.Action
}

// Lookup implements lookup.Networks.
func (n accessNetworks) Lookup(addr netip.Addr) (string, bool) {
	req := &policy.Request{Time: time.Now(), Stage: policy.StageConnect, Client: policy.Client{Addr: addr}, DryRun: true}
	v, err := n.check.Evaluate(context.Background(), req)
	switch {
	case err != nil || v.Action == policy.Continue:
		return "", false
	case n.action == policy.Allow:
		return "OK", v.Action == policy.Allow
	case v.Action.Refuses():
		return v.Reply.String(), true
	}
	return "", false
}

// configureLookup opens the lookup door where there is something to look up.
func (a *App) configureLookup(g *generation, in *listen.Inherited) error {
	cfg := g.cfg.Lookup
	maps := g.maps()
	if len(maps) == 0 {
		cfg.Listen = nil
	}
	a.lookup.SetMaps(maps)
	return a.lookup.Configure(cfg, in)
}

// dns is the resolver in the form that checks ask.
type dns struct{ *resolver.Resolver }

// LookupMX returns the hosts, that of a null MX as "".
func (d dns) LookupMX(ctx context.Context, name string) (hosts []string, ttl time.Duration, cached bool, err error) {
	mx, ttl, cached, err := d.Resolver.LookupMX(ctx, name)
	for i := range mx {
		hosts = append(hosts, mx[i].Host)
	}
	return hosts, ttl, cached, err
}

// authDNS is the resolver as auth asks it.
type authDNS struct{ *resolver.Resolver }

// LookupTXT returns one text for each record.
func (d authDNS) LookupTXT(ctx context.Context, name string) ([]string, error) {
	texts, _, _, err := d.Resolver.LookupTXT(ctx, name)
	return texts, err
}

// signerDNS is the resolver as the signer asks it.
type signerDNS struct{ authDNS }

// Forget drops what is remembered of a name.
func (d signerDNS) Forget(name string) { d.Flush(name) }

// Exists reports whether a name has an A, AAAA or MX record.
func (d authDNS) Exists(ctx context.Context, name string) (bool, error) {
	a, _, _, err := d.LookupA(ctx, name)
	if err != nil || len(a) > 0 {
		return len(a) > 0, err
	}
	aaaa, _, _, err := d.LookupAAAA(ctx, name)
	if err != nil || len(aaaa) > 0 {
		return len(aaaa) > 0, err
	}
	mx, _, _, err := d.LookupMX(ctx, name)
	return len(mx) > 0, err
}
