package auth

import (
	"strconv"

	"postern/internal/aggregate"
	"postern/internal/dkimverify"
	"postern/policy"
)

// tell says how the message fared to whoever reports to the owners of the
// authors' domains.
func (m *inspection) tell(r *results, v *policy.Verdict) {
	if m.c.report == nil || m.req.DryRun || !m.req.Client.Addr.IsValid() { // a client without an address is none of the Internet
		return
	}
	for i := range r.authors {
		a := &r.authors[i]
		if a.record == nil || a.record.rua == "" || a.Result != "pass" && a.Result != "fail" {
			continue
		}
		m.c.report(m.req.Time, a.record.published(), a.record.rua, m.record(r, a, v))
	}
}

// published is the record as a report says it.
func (r *record) published() aggregate.Policy {
	mode := func(strict bool) string {
		if strict {
			return "s"
		}
		return "r"
	}
	p := aggregate.Policy{
		Domain: r.domain, ADKIM: mode(r.adkim), ASPF: mode(r.aspf), P: string(r.p), SP: string(r.sp), Pct: strconv.Itoa(r.pct), FO: r.fo,
	}
	if p.SP == "" {
		p.SP = p.P
	}
	if p.FO == "" {
		p.FO = "0"
	}
	return p
}

// record is the message as one row.
func (m *inspection) record(r *results, a *dmarc, v *policy.Verdict) aggregate.Record {
	rec := aggregate.Record{
		Row: aggregate.Row{SourceIP: m.req.Client.Addr.String(), Count: 1, Evaluated: aggregate.Evaluated{Disposition: "none", DKIM: "fail", SPF: "fail"}},
		Identifiers: aggregate.Identifiers{
			EnvelopeFrom: m.req.Sender.Domain, HeaderFrom: a.Domain,
		},
	}
	if len(m.to) > 0 {
		rec.Identifiers.EnvelopeTo = m.to[0].Domain
	}
	e := &rec.Row.Evaluated
	for _, by := range a.By {
		if by == "dkim" {
			e.DKIM = "pass"
		} else {
			e.SPF = "pass"
		}
	}
	if a.Result == "fail" {
		e.Disposition, e.Reasons = m.disposition(a, v)
	}
	for i := range r.dkim {
		s := &r.dkim[i]
		rec.Results.DKIM = append(rec.Results.DKIM, aggregate.DKIM{Domain: printable(s.Domain, maxDomain), Selector: printable(s.Selector, maxSelector), Result: s.Result})
	}
	spf := aggregate.SPF{Domain: m.req.Sender.Domain, Scope: "mfrom", Result: "none"}
	if r.spf.Result != "" {
		spf.Domain, spf.Result = r.spf.Domain, r.spf.Result
		if spf.Result == policy.SPFTooWide {
			spf.Result = "neutral" // of those that reports know
		}
		if r.spf.Identity == "helo" {
			spf.Scope = "helo"
		}
	}
	rec.Results.SPF = []aggregate.SPF{spf}
	return rec
}

// disposition is what was done with a message that failed, and why that is not
// what its owner asks for.
func (m *inspection) disposition(a *dmarc, v *policy.Verdict) (done string, why []aggregate.Reason) {
	done = "none"
	if !m.req.Shadow {
		switch v.Action {
		case policy.Reject:
			done = "reject"
		case policy.Hold:
			done = "quarantine"
		default:
		}
	}
	published := string(a.Published)
	switch {
	case a.Sealer != "":
		why = append(why, aggregate.Reason{Type: "local_policy", Comment: "arc=" + dkimverify.Pass + " as.d=" + printable(a.Sealer, maxDomain)})
	case v.Reason == reasonExempt:
		why = append(why, aggregate.Reason{Type: "trusted_forwarder"})
	case a.Wish != "" && string(a.Wish) != published && done == string(a.Wish):
		// sp, np, or not among the share.
		if a.Reason != "" {
			why = append(why, aggregate.Reason{Type: "sampled_out", Comment: a.Reason})
		}
	case done != string(a.Wish):
		why = append(why, aggregate.Reason{Type: "local_policy"})
	}
	return done, why
}
