package app

import (
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/config"
	"postern/dialog"
	"postern/expect"
	"postern/internal/conf"
	"postern/lookup"
	"postern/pipeline"
	"postern/policy"
	"postern/resolver"
	"postern/store"
	"postern/store/mem"
)

// Facts are what a rehearsal is told in place of the world outside.
type Facts struct {
	DNS resolver.Source
	// Recipients says what directories and next hops say of a recipient, "known",
	// "unknown", "temporary" or "" for nothing, and in which words.
	Recipients func(policy.Address) (result, detail string)
}

// Rehearsal decides requests by a configuration, apart from any daemon: nobody
// is asked, nothing is listened on, nothing is written or sent, and the state
// is its own. It is for one goroutine.
type Rehearsal struct {
	g     *generation
	state store.Store
}

// Rehearse returns a rehearsal of a configuration that has been loaded, with
// an empty state. The caller closes it.
func Rehearse(cfg *config.Config, facts *Facts) (*Rehearsal, error) {
	own := *cfg
	own.Limit.Notify = nil // nobody is told of what does not happen
	own.Limit.Rules = slices.Clone(own.Limit.Rules)
	for i := range own.Limit.Rules {
		own.Limit.Rules[i].Notify = nil
	}
	own.Store.Kind = store.Memory
	reg := prometheus.NewRegistry()
	r := &Rehearsal{state: mem.New(own.Store.MaxEntries, own.Store.MaxWaiting)}
	var err error
	r.g, err = build(&own, parts{
		log: zap.NewNop(), reg: reg, store: r.state, metrics: pipeline.NewMetrics(reg), permits: pipeline.NewPermits(),
		tables: lookup.NewTableMetrics(reg), dialogs: dialog.New(1), rehearsal: facts,
	}, nil)
	if err != nil {
		_ = r.state.Close(context.Background()) // it is memory
		return nil, err
	}
	return r, nil
}

// Close ends the rehearsal.
func (r *Rehearsal) Close() {
	r.g.stop()
	r.g.resolver.Close()
	_ = r.state.Close(context.Background()) // it is memory
}

// Decide decides one request.
func (r *Rehearsal) Decide(ctx context.Context, req *policy.Request, d *policy.Decision) {
	d.Reset()
	r.g.pipeline.Decide(ctx, req, d)
}

// Content shows a message to the inspectors: req is its envelope, whose
// recipients have been accepted. It returns what changes about the message.
func (r *Rehearsal) Content(ctx context.Context, req *policy.Request, fields []policy.Field, body []byte, d *policy.Decision) []policy.Edit {
	begin := *req
	begin.Stage = policy.StageData
	c := r.g.pipeline.Inspect(&begin, []policy.Address{req.Recipient})
	if c == nil {
		return nil
	}
	for _, f := range fields {
		c.Header(f)
	}
	c.EndOfHeaders()
	for len(body) > 0 {
		n := min(len(body), 64<<10)
		if !c.Body(body[:n]) {
			break
		}
		body = body[n:]
	}
	end := begin
	end.Stage = policy.StageEndOfMessage
	end.OnTop = d.Headers
	d.Reset()
	return c.End(ctx, &end, d)
}

// Expectations runs the [[expect]] of a configuration, and returns those that
// are not met, each with its place in the file. Live ones are run only if live
// is set.
func Expectations(ctx context.Context, cfg *config.Config, live bool) (met int, faults conf.Faults, err error) {
	var world resolver.Source
	for i := range cfg.Expect {
		c := &cfg.Expect[i]
		if c.Live && !live {
			continue
		}
		if c.Live && world == nil {
			res, err := resolver.New(cfg.DNS, zap.NewNop(), prometheus.NewRegistry())
			if err != nil {
				return met, nil, err
			}
			defer res.Close()
			world = res
		}
		if err := expected(ctx, cfg, c, world); err != nil {
			faults.Keyf(expect.Key(i), "%s: %v", c.Title(i+1), err)
			continue
		}
		met++
	}
	cfg.Locate(faults)
	return met, faults, nil
}

// expected runs one case.
func expected(ctx context.Context, cfg *config.Config, c *expect.Case, live resolver.Source) error {
	r, err := Rehearse(cfg, &Facts{
		DNS:        c.World(live),
		Recipients: func(policy.Address) (string, string) { return c.RecipientSaid(), "as expected" },
	})
	if err != nil {
		return err
	}
	defer r.Close()
	var d policy.Decision
	times, wait := c.Runs()
	now := time.Now()
	if wait > 0 {
		r.Decide(ctx, c.Request(now.Add(-wait)), &d)
	}
	req := c.Request(now)
	for i := range times {
		req = c.Request(now.Add(time.Duration(i) * time.Millisecond))
		r.Decide(ctx, req, &d)
	}
	if c.Message == "" || !passes(d.Verdict.Action) {
		return c.Judge(&d, nil)
	}
	fields, body, err := c.ReadMessage()
	if err != nil {
		return err
	}
	on := make([]policy.Field, 0, len(d.Headers)+len(fields))
	for _, h := range d.Headers {
		on = append(on, h.OnTop())
	}
	edits := r.Content(ctx, req, fields, body, &d)
	return c.Judge(&d, append(on, policy.Apply(fields, edits)...))
}

// passes reports whether the message comes in after a verdict.
func passes(a policy.Action) bool { return !a.Refuses() && a != policy.Discard }
