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
// is its own. Requests come in the order of their times. It is for one
// goroutine.
type Rehearsal struct {
	cfg   *config.Config
	parts parts
	state store.Store
	g     *generation
	until time.Time // then answers of the DNS that are remembered are too old
	err   error
}

// remembered is how long answers of the DNS are remembered, by the requests'
// clock: the checks' own memories go by the real one.
const remembered = time.Hour

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
	r := &Rehearsal{cfg: &own, state: mem.New(own.Store.MaxEntries, own.Store.MaxWaiting)}
	r.parts = parts{log: zap.NewNop(), store: r.state, permits: pipeline.NewPermits(), dialogs: dialog.New(1), rehearsal: facts}
	if err := r.build(); err != nil {
		_ = r.state.Close(context.Background()) // it is memory
		return nil, err
	}
	return r, nil
}

// build makes the checks anew, on the state that there is.
func (r *Rehearsal) build() error {
	p := r.parts
	p.reg = prometheus.NewRegistry()
	p.metrics, p.tables = pipeline.NewMetrics(p.reg), lookup.NewTableMetrics(p.reg)
	g, err := build(r.cfg, p, nil)
	if err != nil {
		return err
	}
	r.end()
	r.g = g
	return nil
}

func (r *Rehearsal) end() {
	if r.g != nil {
		r.g.stop()
		r.g.resolver.Close()
	}
}

// Close ends the rehearsal.
func (r *Rehearsal) Close() {
	r.end()
	_ = r.state.Close(context.Background()) // it is memory
}

// Decide decides one request.
func (r *Rehearsal) Decide(ctx context.Context, req *policy.Request, d *policy.Decision) {
	if r.until.IsZero() {
		r.until = req.Time.Add(remembered)
	}
	if !req.Time.Before(r.until) {
		r.until = req.Time.Add(remembered)
		if err := r.build(); err != nil && r.err == nil {
			r.err = err // the files have changed meanwhile
		}
	}
	d.Reset()
	r.g.pipeline.Decide(ctx, req, d)
	r.g.known.Settle()
}

// Err is why checks could not be made anew, nil when they could; requests after
// that were decided by the older ones.
func (r *Rehearsal) Err() error { return r.err }

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
