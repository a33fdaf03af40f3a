package app

import (
	"context"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/access"
	"postern/config"
	"postern/greylist"
	"postern/pipeline"
	"postern/policy"
	"postern/rbl"
	"postern/resolver"
	"postern/store"
)

// generation is everything that one reading of the configuration makes: the
// checks and the pipeline over them. A reload builds the next one beside the
// running one and swaps a pointer.
type generation struct {
	cfg      *config.Config
	resolver *resolver.Resolver
	access   *access.Check
	rbl      *rbl.Check
	greylist *greylist.Check
	pipeline *pipeline.Pipeline
}

// traits are what a chain must know of each check before it is built.
var traits = pipeline.Describe{
	"access":   access.Traits,
	"rbl":      rbl.Traits,
	"greylist": greylist.Traits,
}

// Check reports faults of a configuration that only show when its parts are
// seen together. It opens nothing.
func Check(cfg *config.Config) error { return nil }

// parts is what generations share.
type parts struct {
	log     *zap.Logger
	reg     prometheus.Registerer
	store   store.Store
	journal pipeline.Journal
	metrics *pipeline.Metrics
}

// build makes a generation that is not started. prev, which may be nil, hands
// on what it has learned.
func build(cfg *config.Config, p parts, prev *generation) (g *generation, err error) {
	g = &generation{cfg: cfg}
	if prev == nil {
		prev = &generation{}
	}
	if g.resolver, err = p.resolver(cfg, prev); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && g.resolver != prev.resolver {
			g.resolver.Close()
		}
	}()
	if g.access, err = access.New(cfg.Access, p.log, p.reg, prev.access); err != nil {
		return nil, err
	}
	if g.rbl, err = rbl.New(cfg.RBL, g.resolver, p.log, p.reg, prev.rbl); err != nil {
		return nil, err
	}
	if g.greylist, err = greylist.New(cfg.Greylist, cfg.Hostname, p.store, p.log, p.reg, prev.greylist); err != nil {
		return nil, err
	}
	g.pipeline, err = pipeline.New(pipeline.Options{
		Chains: cfg.Chains, Default: config.DefaultChain, Mode: cfg.Mode,
		Steps: map[string]pipeline.Step{
			"access":   {Check: g.access, Step: cfg.Access.Step},
			"rbl":      {Check: g.rbl, Step: cfg.RBL.Step},
			"greylist": {Check: g.greylist, Step: cfg.Greylist.Step},
		},
		Log: p.log, Metrics: p.metrics, Journal: p.journal,
	})
	return g, err
}
