// Package access is the check of static allow and deny lists: networks, client
// names, HELO names, senders, recipients and patterns over them. Its lists are
// read again when their files change.
//
// Three kinds of sources are looked at together: allow lists let a request
// past named checks, deny lists refuse, and in tables each entry says what it
// does (access(5)). The most specific entry of all decides; among equally
// specific ones allow goes before deny, and deny before tables.
package access

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/list"
	"postern/policy"
)

// Check is the access check. It is safe for concurrent use.
type Check struct {
	cfg     Config
	reply   *policy.Template
	parts   []part
	metrics *list.Metrics
}

var _ policy.Check = (*Check)(nil)

// part is one kind of source.
type part struct {
	name    string
	sources []string
	opts    list.Options
	live    *list.Live
}

// parts are the kinds of sources, in the order in which a tie is decided.
func (c *Config) parts(prefix string) []part {
	skip := map[string]func(string) error{"skip": func(v string) error {
		for name := range strings.SplitSeq(v, ",") {
			if !slices.Contains(conf.Skippable, name) {
				return fmt.Errorf("there is no check %q that could be skipped (one of %s)", name, strings.Join(conf.Skippable, ", "))
			}
		}
		return nil
	}}
	opts := list.Options{Vars: replyVars, Reject: defaultReject, Defer: defaultDefer, Delimiters: c.Delimiters, Lenient: c.Lenient}
	allow, deny, tables := opts, opts, opts
	allow.Key, allow.Default, allow.Params = prefix+".allow", policy.Allow, skip
	allow.Actions = []policy.Action{policy.Allow, policy.Permit}
	deny.Key, deny.Default = prefix+".deny", policy.Reject
	deny.Actions = []policy.Action{policy.Reject, policy.Defer, policy.DeferIfPermit}
	tables.Key, tables.NeedAction, tables.Params = prefix+".tables", true, skip
	tables.Actions = []policy.Action{policy.Allow, policy.Permit, policy.Reject, policy.Defer, policy.DeferIfPermit, policy.Hold, policy.Discard, policy.Redirect}
	return []part{{"allow", c.Allow, allow, nil}, {"deny", c.Deny, deny, nil}, {"tables", c.Tables, tables, nil}}
}

// New returns a check on validated settings; it reads the lists and starts
// nothing. prev, which may be nil, is the check that this one takes the place
// of after a reload: hit counts move over.
func New(cfg Config, log *zap.Logger, reg prometheus.Registerer, prev *Check) (*Check, error) {
	c := &Check{cfg: cfg, parts: cfg.parts("access")}
	var err error
	if c.reply, err = policy.ParseTemplate(cfg.Reply, defaultReject, replyVars...); err != nil {
		return nil, fmt.Errorf("access: reply: %w", err)
	}
	if prev != nil {
		c.metrics = prev.metrics
	} else {
		c.metrics = list.NewMetrics(reg, "access")
	}
	log = log.Named("access")
	var faults conf.Faults
	for i := range c.parts {
		p := &c.parts[i]
		var fs conf.Faults
		p.live, fs = list.NewLive(p.sources, p.opts, log.With(zap.String("kind", p.name)), c.metrics)
		faults = append(faults, fs...)
		if len(fs) == 0 && prev != nil {
			p.live.Adopt(prev.parts[i].live)
		}
	}
	return c, faults.Err()
}

// Start begins to watch the files.
func (c *Check) Start() {
	for i := range c.parts {
		c.parts[i].live.Start(c.cfg.ReloadInterval.D())
	}
}

// Stop ends what Start began. It can be called twice.
func (c *Check) Stop() {
	for i := range c.parts {
		c.parts[i].live.Stop()
	}
}

// Name implements [policy.Check].
func (c *Check) Name() string { return "access" }

// Traits are those of every access check: what an entry looks at may be known
// at any stage, and what is not known does not match.
var Traits = policy.Traits{Stages: policy.AllStages}

// Traits implements [policy.Check].
func (c *Check) Traits() policy.Traits { return Traits }

// Idle implements [policy.Idler]: there is no list, not even an empty one.
func (c *Check) Idle() bool {
	return !slices.ContainsFunc(c.parts, func(p part) bool { return len(p.sources) > 0 })
}

// Evaluate implements [policy.Check].
func (c *Check) Evaluate(_ context.Context, req *policy.Request) (policy.Verdict, error) {
	var best *list.Entry
	for i := range c.parts {
		set := c.parts[i].live.Set()
		if set.Len() == 0 {
			continue
		}
		e := set.Find(req)
		if e == nil {
			continue
		}
		if req.Probe != nil {
			req.Probe.Add(c.parts[i].name, e.Pattern+" "+e.Action.String(), e.Place(), 0)
		}
		if best == nil || best.Compare(e) > 0 {
			best = e
		}
	}
	if best == nil {
		return policy.Verdict{}, nil
	}
	if !req.DryRun {
		best.Hit(req.Time)
	}
	return c.verdict(best, req), nil
}

// verdict says what an entry means for a request.
func (c *Check) verdict(e *list.Entry, req *policy.Request) policy.Verdict {
	v := policy.Verdict{Action: e.Action, Reason: reasons[e.Action], Detail: e.Place() + " " + e.Pattern}
	switch e.Action {
	case policy.Allow:
		v.Skip = c.cfg.Skip
		if s, ok := e.Params["skip"]; ok {
			v.Skip = strings.Split(s, ",")
		}
	case policy.Reject, policy.Defer, policy.DeferIfPermit:
		t := e.Reply
		if t == nil {
			if t = c.reply; e.Action != policy.Reject {
				t = deferReply
			}
		}
		v.Reply = t.Expand(func(name string) string { return placeholder(name, req) })
	case policy.Redirect:
		v.Arg = e.Arg
	case policy.Continue:
		if e.Header.Name != "" {
			v.Reason, v.Add = "access-prepend", []policy.Header{e.Header}
		}
	default: // the action says it all
	}
	return v
}

// deferReply is for entries that defer and have no text of their own.
var deferReply = policy.MustTemplate("Access denied for now, please try again later", defaultDefer)

// reasons by action.
var reasons = map[policy.Action]string{
	policy.Continue: "access-dunno", policy.Allow: "access-allowed", policy.Permit: "access-permitted",
	policy.Reject: "access-denied", policy.Defer: "access-deferred", policy.DeferIfPermit: "access-deferred",
	policy.Hold: "access-hold", policy.Discard: "access-discard", policy.Redirect: "access-redirect",
}

func placeholder(name string, req *policy.Request) string {
	switch name {
	case "client":
		return req.Client.Addr.String()
	case "name":
		if req.Client.Name == "" {
			return "unknown"
		}
		return req.Client.Name
	case "helo":
		return req.Helo
	case "sender":
		return req.Sender.Raw
	case "recipient":
		return req.Recipient.Raw
	}
	return ""
}

// Status is what `postern status` shows of the access lists.
type Status struct {
	Allow  []list.Status `json:"allow"`
	Deny   []list.Status `json:"deny"`
	Tables []list.Status `json:"tables"`
}

// Status returns the present state.
func (c *Check) Status() Status {
	return Status{c.parts[0].live.Status(), c.parts[1].live.Status(), c.parts[2].live.Status()}
}

// Entry is an entry as `postern access list` shows it.
type Entry struct {
	Kind    string    `json:"kind"` // allow, deny or tables
	Place   string    `json:"place"`
	Pattern string    `json:"pattern"`
	Field   string    `json:"field"`
	Action  string    `json:"action"`
	Text    string    `json:"text,omitempty"`
	Owner   string    `json:"owner,omitempty"`
	Until   time.Time `json:"until,omitzero"`
	Expired bool      `json:"expired,omitempty"`
	Hits    uint64    `json:"hits"` // since the start of the daemon
	LastHit time.Time `json:"last_hit,omitzero"`
}

// Entries calls yield for each entry, in the order of the sources, until it
// returns false.
func (c *Check) Entries(now time.Time, yield func(Entry) bool) {
	for i := range c.parts {
		for _, e := range c.parts[i].live.Set().Entries() {
			out := Entry{
				Kind: c.parts[i].name, Place: e.Place(), Pattern: e.Pattern, Field: e.Field.String(), Action: e.Action.String(),
				Text: e.Text, Owner: e.Owner, Until: e.Until, Expired: e.Expired(now),
			}
			out.Hits, out.LastHit = e.Hits()
			if !yield(out) {
				return
			}
		}
	}
}
