package app

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/config"
	"postern/dialog"
	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/internal/reference"
	"postern/lookup"
	"postern/names"
	"postern/pipeline"
	"postern/resolver"
	"postern/store"
)

// generation is everything that one reading of the configuration makes: the
// checks and the pipeline over them. A reload builds the next one beside the
// running one and swaps a pointer.
type generation struct {
	cfg      *config.Config
	resolver *resolver.Resolver
	names    *names.Judge
	tables   *lookup.Tables
	checks
	units    []unit // all checks
	pipeline *pipeline.Pipeline

	users atomic.Int64 // decisions under way
}

// resolver returns the one of prev when nothing about it has changed: what is
// in its cache stays.
func (p *parts) resolver(cfg *config.Config, prev *generation) (*resolver.Resolver, error) {
	if p.rehearsal != nil {
		return resolver.NewRecorded(cfg.DNS, p.rehearsal.DNS, p.log, p.reg)
	}
	if prev.resolver != nil && reflect.DeepEqual(prev.cfg.DNS, cfg.DNS) {
		return prev.resolver, nil
	}
	r, err := resolver.New(cfg.DNS, p.log, p.reg)
	if err == nil && p.answers != nil {
		r.Observe(p.answers)
	}
	return r, err
}

// start begins what the parts do by themselves: watching lists, testing DNS
// lists.
func (g *generation) start() {
	g.names.Start()
	g.tables.Start(g.cfg.Lookup.ReloadInterval.D())
	for _, u := range g.units {
		u.check.Start()
	}
}

// stop undoes start and waits for it.
func (g *generation) stop() {
	for _, u := range slices.Backward(g.units) {
		u.check.Stop()
	}
	g.tables.Stop()
	g.names.Stop()
}

// drain waits until no decision uses g any more; none begins once another
// generation is current. Decisions end by their budgets.
func (g *generation) drain() {
	for g.users.Load() > 0 {
		time.Sleep(5 * time.Millisecond)
	}
}

// namesTimeout bounds the look-ups of a client's names for an explanation.
const namesTimeout = 5 * time.Second

// namesOf looks up the names of a client as Postfix's smtpd does: the reverse
// name, and the same as verified name if it leads back to the address.
func (g *generation) namesOf(ctx context.Context, addr netip.Addr) (verified, reverse string) {
	ctx, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	names, _, _, err := g.resolver.LookupPTR(ctx, addr)
	if err != nil || len(names) == 0 {
		return "", ""
	}
	reverse = mailaddr.Domain(names[0])
	look := g.resolver.LookupA
	if addr.Is6() {
		look = g.resolver.LookupAAAA
	}
	addrs, _, _, err := look(ctx, reverse)
	if err == nil && slices.Contains(addrs, addr) {
		verified = reverse
	}
	return verified, reverse
}

// parts is what generations share.
type parts struct {
	log     *zap.Logger
	reg     prometheus.Registerer
	store   store.Store
	journal pipeline.Journal
	refs    *reference.Source
	answers func(resolver.Recorded) // nil: nobody wants to know what the DNS says
	metrics *pipeline.Metrics
	permits *pipeline.Permits
	tables  *lookup.TableMetrics
	dialogs *dialog.Table
	// rehearsal is set where nothing outside is asked; see [Rehearse].
	rehearsal *Facts
}

// builder makes a generation.
type builder struct {
	parts
	cfg  *config.Config
	g    *generation
	prev *generation // empty when there is none
	err  error       // the first
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
	if g.names, err = names.New(cfg.Names, p.log); err != nil {
		return nil, err
	}
	var faults conf.Faults
	if g.tables, faults = lookup.NewTables(cfg.Tables, p.log, p.tables); faults.Err() != nil {
		return nil, faults
	}
	b := &builder{parts: p, cfg: cfg, g: g, prev: prev}
	if b.checks(); b.err != nil {
		return nil, b.err
	}
	g.pipeline, err = pipeline.New(pipeline.Options{
		Chains: cfg.Chains, Default: pipeline.DefaultName, Mode: cfg.Mode,
		Steps:      steps(g.units),
		Inspectors: g.inspectors(),
		Log:        p.log, Metrics: p.metrics, Journal: p.journal, References: p.refs, Permits: p.permits,
	})
	return g, err
}
