package spf

import (
	"context"
	"net/netip"
	"strings"

	"postern/policy"
)

// relayedKinds say whether the client behind a relay was found.
const (
	relayedFound = iota
	relayedUnknown
	relayedKinds
)

var relayedNames = [relayedKinds]string{"found", "unknown"}

// reasonOriginUnknown is the reason of mail from a relay whose Received field
// does not say where it had it from.
const reasonOriginUnknown = "spf-origin-unknown"

// Inspector asks about mail that a trusted relay hands in: about the client
// that the relay had it from, which only its Received field tells. Its result
// is in the facts of the request for inspectors behind it.
type Inspector struct{ c *Check }

var _ policy.BodyInspector = (*Inspector)(nil)

// Inspector returns the check's inspector. It is run with the check's own Step.
func (c *Check) Inspector() *Inspector { return &Inspector{c} }

// Inspects reports whether the inspector has anything to do.
func (c *Check) Inspects() bool { return len(c.cfg.Relays) > 0 }

// Name implements [policy.Inspector].
func (in *Inspector) Name() string { return "spf" }

// WantsBody implements [policy.BodyInspector].
func (in *Inspector) WantsBody() bool { return false }

// Inspect implements [policy.Inspector].
func (in *Inspector) Inspect(req *policy.Request, _ []policy.Address) policy.Inspection {
	about := *req
	about.DryRun = true // it has been counted at the envelope
	if reason, _ := in.c.exempt(&about); reason != reasonRelay {
		return nil
	}
	return &inspection{c: in.c, req: req}
}

// inspection is one message from a relay.
type inspection struct {
	c        *Check
	req      *policy.Request
	received []string
}

// Header implements [policy.Inspection].
func (i *inspection) Header(f policy.Field) {
	if len(i.received) < maxHops && strings.EqualFold(f.Name, "Received") {
		i.received = append(i.received, f.Value[:min(len(f.Value), maxReceived+1)])
	}
}

// EndOfHeaders implements [policy.Inspection].
func (i *inspection) EndOfHeaders() {}

// Body implements [policy.Inspection].
func (i *inspection) Body([]byte) (more bool) { return false }

// End implements [policy.Inspection].
func (i *inspection) End(ctx context.Context) (policy.Judgement, error) {
	c, req := i.c, i.req
	addr, helo, ok := Origin(i.received, c.trusts(req))
	if !ok {
		c.shared.metrics.relayed[relayedUnknown].Inc()
		return policy.Judgement{Verdict: policy.Verdict{Reason: reasonOriginUnknown, Detail: "the relay's Received field names no client"}}, nil
	}
	c.shared.metrics.relayed[relayedFound].Inc()
	s := subject{addr: addr, helo: helo, sender: req.Sender, null: req.NullSender(), instance: req.Instance, now: req.Time}
	v := c.judge(ctx, &s, req, c.cfg.RelayRefuse)
	if v.Detail != "" {
		v.Detail += ", "
	}
	v.Detail += "through a relay, from " + addr.String()
	return policy.Judgement{Verdict: v}, nil
}

// trusts returns the function that tells relays by their addresses.
func (c *Check) trusts(req *policy.Request) func(netip.Addr) bool {
	return func(addr netip.Addr) bool {
		about := policy.Request{Time: req.Time, Stage: policy.StageConnect, Client: policy.Client{Addr: addr}, DryRun: true}
		e := c.relays.Match(&about)
		return e != nil && e.Action != policy.Continue
	}
}
