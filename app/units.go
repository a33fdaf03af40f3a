package app

import (
	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/pipeline"
	"postern/policy"
)

// unit is a check as the daemon runs it. What it offers the administrator is
// named in [App.calls], what it finds in the content of messages in
// [generation.inspectors].
type unit struct {
	name string // in chains, and in the status
	running
	step   conf.Step
	status func() adminapi.Status
}

// running is what does something by itself between Start and Stop.
type running interface {
	Start()
	Stop()
}

// checks are all there are, in the order in which people read about them. One
// that is no [policy.Check] has no place in a chain.
func (g *generation) checks() []unit {
	cfg := g.cfg
	return []unit{
		{"access", g.access, cfg.Access.Step, func() adminapi.Status { return g.access.Status() }},
		{"headers", g.headers, conf.Step{}, func() adminapi.Status { return g.headers.Status() }},
		{"provider", g.provider, cfg.Provider.Step, func() adminapi.Status { return g.provider.Status() }},
		{"rbl", g.rbl, cfg.RBL.Step, func() adminapi.Status { return g.rbl.Status() }},
		{"spf", g.spf, cfg.SPF.Step, func() adminapi.Status { return g.spf.Status() }},
		{"verify", g.verify, cfg.Verify.Step, func() adminapi.Status { return g.verify.Status() }},
		{"greylist", g.greylist, cfg.Greylist.Step, func() adminapi.Status { return g.greylist.Status() }},
	}
}

// steps are the checks that chains can name.
func steps(units []unit) map[string]pipeline.Step {
	out := make(map[string]pipeline.Step, len(units))
	for _, u := range units {
		if check, ok := u.running.(policy.Check); ok {
			out[u.name] = pipeline.Step{Check: check, Step: u.step}
		}
	}
	return out
}
