package spf

import (
	"context"
	"net/netip"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Report is what `postern spf test` shows.
type Report struct {
	Client string `json:"client"`
	Sender string `json:"sender"`
	Helo   string `json:"helo"`
	// Exempt says why the client would not be asked about; it is asked about
	// in the report all the same.
	Exempt     string           `json:"exempt,omitempty"`
	Identities []IdentityReport `json:"identities"`
	AllowedBy  string           `json:"allowed_by,omitempty"`
	// Action is "reject", "defer", "mark", "off" or "allow"; Reason is the slug
	// of the verdict.
	Action string       `json:"action"`
	Reason string       `json:"reason"`
	Reply  policy.Reply `json:"reply,omitzero"`
	Marks  []string     `json:"marks,omitempty"`
	Header string       `json:"header,omitempty"`
}

// IdentityReport is the evaluation of one identity.
type IdentityReport struct {
	Identity string `json:"identity"` // "mailfrom", "helo"
	*Outcome
	// Match is the term that decided, and the includes that led to it, the
	// innermost last.
	Match []string `json:"match,omitempty"`
	Steps []Step   `json:"steps"`
}

// Test evaluates both identities anew, whatever is in memory but for the DNS,
// and says what would come of it. Nothing is counted.
func (c *Check) Test(ctx context.Context, addr netip.Addr, sender policy.Address, helo string, now time.Time) Report {
	req := &policy.Request{
		Time: now, Stage: policy.StageRcpt, Client: policy.Client{Addr: addr}, Helo: helo, Sender: sender, DryRun: true,
	}
	r := Report{Client: addr.String(), Sender: sender.Raw, Helo: helo}
	if reason, detail := c.exempt(req); reason != "" {
		r.Exempt = reason + ": " + detail
	}
	name := mailaddr.Domain(helo)
	ask := func(id identity, q query) {
		o, e := c.ask(ctx, q, "", now, true)
		one := IdentityReport{Identity: id.fact(), Outcome: o, Steps: e.steps}
		for i := len(e.match) - 1; i >= 0; i-- {
			one.Match = append(one.Match, e.match[i])
		}
		r.Identities = append(r.Identities, one)
	}
	ask(identityHelo, query{addr: addr, domain: name, local: "postmaster", helo: name})
	if sender.Raw != "" {
		local := sender.Local
		if local == "" {
			local = "postmaster"
		}
		ask(identityMailFrom, query{addr: addr, domain: sender.Domain, local: local, helo: name})
	}
	s := subject{addr: addr, helo: name, sender: sender, null: sender.Raw == "", now: now}
	v := c.judge(ctx, &s, req, true)
	r.Reason, r.Reply, r.Marks = v.Reason, v.Reply, req.Facts.Marks
	for _, h := range v.Add {
		r.Header = h.Name + ": " + h.Value
	}
	switch {
	case v.Action == policy.Allow:
		r.Action, r.AllowedBy = "allow", v.Detail
	case v.Action == policy.Reject:
		r.Action = Reject.String()
	case v.Action == policy.Defer:
		r.Action = Defer.String()
	case len(r.Marks) > 0:
		r.Action = Mark.String()
	default:
		r.Action = Off.String()
	}
	return r
}
