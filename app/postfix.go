package app

import (
	"slices"
	"time"

	"postern/config"
	"postern/internal/listen"
	"postern/pipeline"
	"postern/policy"
	"postern/postfix"
)

// PostfixOf is what of the configuration matters to Postfix.
func PostfixOf(cfg *config.Config) *postfix.Ours {
	o := &postfix.Ours{
		Hostname: cfg.Hostname, Policy: endpoints(cfg.Policy.Listen), Milter: endpoints(cfg.Milter.Listen), Lookup: endpoints(cfg.Lookup.Listen),
		RBL: len(cfg.RBL.Lists) > 0 && cfg.InSomeChain("rbl"), Greylist: cfg.InSomeChain("greylist"),
		Verify: len(cfg.Verify.Routes) > 0 && cfg.InSomeChain("verify"), MaxConnections: cfg.Policy.MaxConnections,
		Signs: cfg.DKIM.Mode != policy.Off, RelaysByContent: cfg.Provider.Relays(),
	}
	for name, chain := range cfg.Chains {
		o.Budget = max(o.Budget, chain.Budget.D())
		if chain.Purpose == pipeline.PurposeRelay {
			o.Relay = append(o.Relay, name)
		}
	}
	slices.Sort(o.Relay)
	o.LooksAtContent = o.Signs || cfg.Auth.Mode != policy.Off || len(cfg.Headers.Checks)+len(cfg.Headers.Rules) > 0 || o.RelaysByContent
	if o.LooksAtContent {
		o.Content = max(time.Minute, 2*o.Budget)
	}
	for i := range cfg.Verify.Routes {
		r := &cfg.Verify.Routes[i]
		o.Domains = append(o.Domains, r.Domains...)
		if r.NextHop != "" {
			o.Hops = append(o.Hops, r.NextHop)
		}
	}
	o.RBLZones = cfg.RBL.ZoneNames()
	return o
}

func endpoints(all []listen.Address) []postfix.Endpoint {
	out := make([]postfix.Endpoint, len(all))
	for i, a := range all {
		out[i] = postfix.Endpoint{Network: a.Network, Path: a.Path, Host: a.Host, Port: a.Port}
	}
	return out
}
