package provider

import (
	"context"
	"strings"

	"postern/policy"
)

// Traits are those of every provider check: the client's address is known at
// all stages.
var Traits = policy.Traits{Stages: policy.AllStages}

// Name implements [policy.Check].
func (s *Set) Name() string { return "provider" }

// Traits implements [policy.Check].
func (s *Set) Traits() policy.Traits { return Traits }

// Idle implements [policy.Idler]: no list is configured.
func (s *Set) Idle() bool { return len(s.Names()) == 0 }

// Evaluate implements [policy.Check]. A client in a list is exempt from the checks
// that the list names. At RCPT one that meets all conditions of a relay
// section that can be checked by then is permitted, which counts in a chain
// with purpose = "relay" only; Skip is that of an allow then, too.
func (s *Set) Evaluate(_ context.Context, req *policy.Request) (policy.Verdict, error) {
	addr := req.Client.Addr
	var first *list
	var at *Entry
	var relays []*list
	for _, l := range s.lists {
		e := l.snap.Load().find(addr)
		if e == nil {
			continue
		}
		if first == nil {
			first, at = l, e
			req.Facts.Provider = l.cfg.Name
		}
		if req.Probe != nil {
			req.Probe.Add("list", l.cfg.Name+" "+e.Prefix.String(), e.Record+" "+e.Term, 0)
		}
		if len(l.rules) > 0 && req.Stage == policy.StageRcpt {
			relays = append(relays, l)
		}
	}
	if first == nil {
		return policy.Verdict{}, nil
	}
	v := policy.Verdict{Reason: "provider-listed", Skip: first.skip}
	v.Detail = first.cfg.Name + " " + at.Prefix.String() + " " + at.Record
	if len(first.skip) > 0 {
		v.Action, v.Reason = policy.Allow, "provider-allowed"
	}
	if len(relays) > 0 {
		switch r, why := s.permits(relays, req); {
		case why == unseen:
			v = policy.Verdict{
				Action: policy.Defer, Reason: "provider-relay-undecided", Detail: v.Detail + "; " + why,
				Reply: s.deferReply.Expand(func(name string) string {
					if name == "client" {
						return addr.String()
					}
					return req.Sender.Raw
				}),
			}
		case r == nil:
			v.Detail += "; not relayed: " + why
		default:
			v.Action, v.Reason, v.Detail = policy.Permit, "provider-relay", r.name+" "+v.Detail
		}
	}
	return v, nil
}

// unseen is why nothing can be said yet: the client's session with the milter
// was opened before the first condition on content came into force, and is not
// shown any. That passes with the session.
const unseen = "the milter's session with this client is older than the first condition on content"

// permits returns the rule by which a recipient is permitted, nil if there is
// none, and then why. The client is in all of the lists.
func (s *Set) permits(lists []*list, req *policy.Request) (*rule, string) {
	if own(s.own, &req.Recipient) {
		return nil, "the recipient is ours and needs no permit"
	}
	var plain *rule     // one that does not look at the message
	var content []*rule // those that do
	var whys []string
	for _, l := range lists {
		for _, r := range l.rules {
			ok, why := r.envelope(req)
			switch {
			case !ok:
				if len(whys) < 10 {
					whys = append(whys, r.name+" "+why)
				}
			case r.content():
				content = append(content, r)
			case plain == nil:
				plain = r
			}
			if req.Probe != nil {
				if ok {
					why = "holds"
				}
				req.Probe.Add("relay", r.name+": "+why, "", 0)
			}
		}
	}
	switch {
	case plain != nil:
		count(plain, relayPermitted, req)
		return plain, ""
	case len(content) == 0:
		count(lists[0].rules[0], relayDenied, req)
		return nil, strings.Join(whys, ", ")
	case s.cfg.RequireMilter && s.milter == nil:
		return noSession(content[0], req)
	case s.cfg.RequireMilter && !req.DryRun: // of a dry run nobody has a session; it asks what would be
		switch open, sees := s.milter(&req.Client, req.ServerAddr); {
		case !open:
			return noSession(content[0], req)
		case !sees:
			count(content[0], relayUnseen, req)
			return nil, unseen
		}
	}
	if !req.DryRun && s.cfg.Mode == policy.Enforce {
		s.memory.permit(req, content)
	}
	count(content[0], relayPermitted, req)
	return content[0], ""
}

// noSession says that a rule cannot be applied for want of the milter.
func noSession(r *rule, req *policy.Request) (*rule, string) {
	count(r, relayNoMilter, req)
	return nil, "the milter has no session with this client, and " + r.name + " looks at the message"
}

func count(r *rule, what relayResult, req *policy.Request) {
	if !req.DryRun {
		r.of.metrics.relay[what].Inc()
	}
}
