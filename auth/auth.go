// Package auth checks what a message says of its author: DKIM signatures (RFC
// 6376) and SPF are held against the domain in From by the wish of that
// domain's owner (DMARC, RFC 7489), and the results are written into the
// message (RFC 8601). It works at the milter door, where the content is.
package auth

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/aggregate"
	"postern/internal/conf"
	"postern/internal/dkimverify"
	"postern/internal/mailaddr"
	"postern/list"
	"postern/policy"
)

// Options are what the inspector is given.
type Options struct {
	Hostname string
	Resolver Resolver
	// SPF asks about the envelope of a request when no chain has.
	SPF func(context.Context, *policy.Request) policy.SPF
	// Report is told how a message fared, where the author's domain wants reports:
	// its policy, the value of rua=, and the message as a record of one. It does no
	// I/O. Nil: nobody is.
	Report   func(at time.Time, p aggregate.Policy, rua string, rec aggregate.Record)
	Log      *zap.Logger
	Registry prometheus.Registerer
}

// Check is the inspector. It is safe for concurrent use.
type Check struct {
	cfg              Config
	id               string // authserv-id, in the compared form
	res              Resolver
	spf              func(context.Context, *policy.Request) policy.SPF
	report           func(at time.Time, p aggregate.Policy, rua string, rec aggregate.Record)
	skip, exempt     *list.Live
	reply, fromReply *policy.Template
	shared           *shared
}

var _ policy.BodyInspector = (*Check)(nil)

// shared outlives a reload.
type shared struct {
	lists   *list.Metrics
	results *prometheus.CounterVec
}

// New returns the inspector; cfg has been validated. prev is the one that it
// takes the place of, or nil. It reads the lists and starts nothing.
func New(cfg Config, o Options, prev *Check) (*Check, error) {
	c := &Check{cfg: cfg, id: mailaddr.Domain(cfg.AuthservID), res: o.Resolver, spf: o.SPF, report: o.Report}
	if c.id == "" {
		c.id = mailaddr.Domain(o.Hostname)
	}
	if prev != nil {
		c.shared = prev.shared
	} else {
		results := prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postern_auth_results_total", Help: "Messages by method and result.",
		}, []string{"method", "result"})
		if err := o.Registry.Register(results); err != nil {
			return nil, fmt.Errorf("auth: %w", err)
		}
		c.shared = &shared{lists: list.NewMetrics(o.Registry, "auth"), results: results}
	}
	var err error
	if c.reply, err = policy.ParseTemplate(cfg.DMARC.Reply, dmarcReply, replyVars...); err != nil {
		return nil, fmt.Errorf("auth: dmarc.reply: %w", err)
	}
	if c.fromReply, err = policy.ParseTemplate(cfg.DMARC.BadFromReply, fromReply, replyVars...); err != nil {
		return nil, fmt.Errorf("auth: dmarc.bad_from_reply: %w", err)
	}
	var faults conf.Faults
	for i, l := range cfg.lists("auth") {
		live, fs := list.NewLive(l.sources, l.opts, o.Log.Named("auth"), c.shared.lists)
		faults = append(faults, fs...)
		*[...]**list.Live{&c.skip, &c.exempt}[i] = live
		if prev != nil && len(fs) == 0 {
			live.Adopt([...]*list.Live{prev.skip, prev.exempt}[i])
		}
	}
	return c, faults.Err()
}

// Start begins to watch the list files.
func (c *Check) Start() {
	c.skip.Start(c.cfg.ReloadInterval.D())
	c.exempt.Start(c.cfg.ReloadInterval.D())
}

// Stop ends what Start began. It can be called twice, and without Start.
func (c *Check) Stop() {
	c.skip.Stop()
	c.exempt.Stop()
}

// Name implements [policy.Inspector].
func (c *Check) Name() string { return "auth" }

// WantsBody implements [policy.BodyInspector].
func (c *Check) WantsBody() bool { return true }

// Inspect implements [policy.Inspector].
func (c *Check) Inspect(req *policy.Request, to []policy.Address) policy.Inspection {
	own := c.cfg.SkipAuthenticated && (req.SASL.Username != "" || req.TLS.CertSubject != "") || matches(c.skip, req)
	if own && !c.cfg.OwnResults {
		return nil
	}
	return &inspection{c: c, req: req, to: to, own: own}
}

// matches reports whether an entry of a list holds for a request, and does not
// say "dunno".
func matches(l *list.Live, req *policy.Request) bool {
	e := l.Match(req)
	return e != nil && e.Action != policy.Continue
}

// inspection looks at one message.
type inspection struct {
	c   *Check
	req *policy.Request
	to  []policy.Address

	own      bool // nothing comes of the results
	fields   int
	ours     []int // fields that claim to be our results, or an upstream's and are not
	upstream []claim
	from     []string
	signed   bool // there is something to verify
	header   dkimverify.Header
	dkim     *dkimverify.Message
}

// Header implements [policy.Inspection].
func (m *inspection) Header(f policy.Field) {
	name := strings.TrimRight(f.Name, " \t")
	switch {
	case strings.EqualFold(name, "From"):
		m.from = append(m.from, f.Value)
	case strings.EqualFold(name, "DKIM-Signature"), strings.EqualFold(name, "ARC-Seal"):
		m.signed = true
	case strings.EqualFold(name, "Authentication-Results"):
		m.results(f.Value)
	}
	m.fields++
	m.header.Add(f.Name, f.Value)
}

// results looks at a field that says what somebody has found out.
func (m *inspection) results(value string) {
	id, ok := authservID(value)
	if !ok {
		return
	}
	if id = mailaddr.Domain(id); id == m.c.id {
		m.ours = append(m.ours, m.fields)
		return
	}
	for i := range m.c.cfg.Upstream {
		u := &m.c.cfg.Upstream[i]
		if mailaddr.Domain(u.AuthservID) != id {
			continue
		}
		if !slices.ContainsFunc(u.Clients, func(p netip.Prefix) bool { return p.Contains(m.req.Client.Addr) }) {
			m.ours = append(m.ours, m.fields)
		} else if _, claims, ok := parseResults(value); ok && len(m.upstream) < maxClaims {
			m.upstream = append(m.upstream, claims...)
		}
		return
	}
}

// EndOfHeaders implements [policy.Inspection].
func (m *inspection) EndOfHeaders() {
	header := m.header.Take()
	if m.own || !m.signed || m.req.BodyHidden || m.header.Hostile() != "" {
		return
	}
	m.dkim = dkimverify.Start(header, dkimverify.Options{
		LookupTXT: m.c.res.LookupTXT, Limit: m.c.cfg.LookupTime.D(), Most: m.c.cfg.MaxSignatures, ARC: true,
		MinBits: m.c.cfg.MinRSABits, Partial: m.c.cfg.PartialBody, Now: m.req.Time,
	})
}

// Body implements [policy.Inspection].
func (m *inspection) Body(p []byte) bool { return m.dkim != nil && m.dkim.Write(p) }

// results are what was found out about a message.
type results struct {
	spf      policy.SPF
	dkim     []dkimverify.Signature
	chain    dkimverify.Chain
	upstream []claim
	hostile  string // why no signature was looked at
	authors  []dmarc
	badFrom  string // why there is no author
}

// End implements [policy.Inspection].
func (m *inspection) End(ctx context.Context) (policy.Judgement, error) {
	c := m.c
	if m.own {
		return policy.Judgement{Verdict: policy.Verdict{Reason: reasonOwn}, Edits: m.edits(m.req.SASL.Username != "", formatOwn(c.id, m.req))}, nil
	}
	r := m.find(ctx)
	m.req.Facts.Auth = r.facts()
	m.req.Facts.Auth.Summary = r.detail()
	c.count(&r, &m.req.Facts.Auth)
	v := m.verdict(&r)
	m.tell(&r, &v)
	if v.Action.Refuses() {
		return policy.Judgement{Verdict: v}, nil
	}
	m.req.Facts.Auth.Results = format(c.id, m.req, &r)
	return policy.Judgement{Verdict: v, Edits: m.edits(true, m.req.Facts.Auth.Results)}, nil
}

// find ends the looking, and evaluates what was found.
func (m *inspection) find(ctx context.Context) results {
	c := m.c
	r := results{spf: m.req.Facts.SPF, chain: dkimverify.Chain{Result: dkimverify.None}, upstream: m.upstream, hostile: m.header.Hostile()}
	if m.signed && m.req.BodyHidden {
		r.dkim = []dkimverify.Signature{{Result: dkimverify.TempError, Reason: "this session is older than the configuration, bodies are not shown in it"}}
	}
	if m.dkim != nil {
		var err error
		if r.dkim, err = m.dkim.Wait(ctx); err != nil {
			// What claims to be ours is taken out all the same.
			r.dkim = []dkimverify.Signature{{Result: dkimverify.TempError, Reason: err.Error()}}
		} else {
			r.chain = m.dkim.Chain()
		}
	}
	if r.spf.Result == "" && c.spf != nil {
		r.spf = c.spf(ctx, m.req)
		m.req.Facts.SPF = r.spf // for rules
	}
	m.authors(ctx, &r)
	return r
}

// edits puts our results on top, if there are any, and takes out what claims to
// be ours.
func (m *inspection) edits(some bool, results string) []policy.Edit {
	edits := make([]policy.Edit, 0, 1+len(m.ours))
	if some {
		edits = append(edits, policy.Edit{Kind: policy.InsertField, Name: "Authentication-Results", Value: " " + results})
	}
	for _, at := range m.ours {
		edits = append(edits, policy.Edit{Kind: policy.DeleteField, At: at})
	}
	return edits
}

// authors evaluates DMARC for the authors of the message.
func (m *inspection) authors(ctx context.Context, r *results) {
	switch len(m.from) {
	case 0:
		r.badFrom = "there is no From field"
		return
	case 1:
	default:
		// A reader shows one of them, and we do not know which.
		r.badFrom = "there is more than one From field"
	}
	p := passed{}
	switch r.spf.Result {
	case "pass":
		p.spf = append(p.spf, r.spf.Domain)
	case "temperror":
		p.unsure = true
	}
	for _, s := range r.dkim {
		switch s.Result {
		case dkimverify.Pass:
			p.dkim = append(p.dkim, mailaddr.Domain(s.Domain))
		case dkimverify.TempError:
			p.unsure = true
		}
	}
	if n := len(r.chain.Sets); r.chain.Result == dkimverify.TempError && n > 0 && m.c.trusts(r.chain.Sets[n-1].Sealer) {
		p.unsure = true
	}
	m.believe(&p)
	d := discovery{res: m.c.res, tree: m.c.cfg.DMARC.Discovery == byTree}
	for _, value := range m.from {
		domains, err := fromDomains(value)
		if err != nil || len(domains) == 0 {
			r.badFrom = errFrom.Error()
			continue
		}
		for _, domain := range domains {
			if len(r.authors) >= maxAuthors || slices.ContainsFunc(r.authors, func(a dmarc) bool { return a.Domain == domain }) {
				continue
			}
			a := d.evaluate(ctx, domain, &p, m.req.QueueID+m.req.Instance)
			if a.Result == "fail" {
				a.Sealer = m.c.vouched(ctx, &d, &r.chain, domain)
			}
			r.authors = append(r.authors, a)
		}
	}
}

// believe adds what an upstream has found out.
func (m *inspection) believe(p *passed) {
	for i := range m.upstream {
		switch c := &m.upstream[i]; {
		case c.method == "dkim" && c.result == "pass" && c.get("header.d") != "":
			p.dkim = append(p.dkim, c.domain("header.d"))
		case c.method == "spf" && c.result == "pass":
			domain := c.domain("smtp.mailfrom")
			if domain == "" && m.req.Sender.Raw == "" {
				domain = c.domain("smtp.helo")
			}
			p.spf = append(p.spf, domain)
		case c.result == "temperror" && (c.method == "dkim" || c.method == "spf"):
			p.unsure = true
		}
	}
}

// worst returns the author whose wish is the strongest, nil when all pass, are
// vouched for, or have no record.
func (r *results) worst() (w *dmarc) {
	rank := func(a *dmarc) int {
		switch {
		case a.Result == "temperror":
			return 1
		case a.Result != "fail" || a.Sealer != "":
			return 0
		case a.Wish == wishReject:
			return 4
		case a.Wish == wishQuarantine:
			return 3
		}
		return 2
	}
	for i := range r.authors {
		if a := &r.authors[i]; rank(a) > 0 && (w == nil || rank(a) > rank(w)) {
			w = a
		}
	}
	return w
}

// Reasons of verdicts.
const (
	reasonPass      = "dmarc-pass"
	reasonFail      = "dmarc-fail"
	reasonNone      = "dmarc-none"
	reasonTemp      = "dmarc-temperror"
	reasonReject    = "dmarc-reject"
	reasonHold      = "dmarc-quarantine"
	reasonMark      = "dmarc-marked"
	reasonExempt    = "dmarc-exempt"
	reasonARC       = "dmarc-arc"
	reasonOwn       = "auth-own"
	reasonBadFrom   = "dmarc-bad-from"
	markFail        = "dmarc-fail"
	markBadFrom     = "dmarc-bad-from"
	maxDetailDomain = 100
)

// verdict is what comes of the results.
func (m *inspection) verdict(r *results) policy.Verdict {
	cfg := &m.c.cfg.DMARC
	v := policy.Verdict{Reason: reasonNone, Detail: m.req.Facts.Auth.Summary}
	worst := r.worst()
	action, reason := None, ""
	switch {
	case r.badFrom != "":
		v.Reason = reasonBadFrom
		action, reason = cfg.BadFrom, reasonBadFrom
	case worst == nil:
		if slices.ContainsFunc(r.authors, func(a dmarc) bool { return a.Sealer != "" }) {
			v.Reason = reasonARC
		} else if slices.ContainsFunc(r.authors, func(a dmarc) bool { return a.Result == "pass" }) {
			v.Reason = reasonPass
		}
		return v
	case worst.Result == "temperror":
		v.Reason = reasonTemp
		return v
	default:
		v.Reason, reason = reasonFail, reasonReject
	}
	// Of a message without one readable author a wish that is known still counts.
	if worst != nil && worst.Result == "fail" {
		switch worst.Wish {
		case wishReject:
			action, reason = stronger(action, cfg.Reject, reason, reasonReject)
		case wishQuarantine:
			action, reason = stronger(action, cfg.Quarantine, reason, reasonReject)
		}
	}
	if action != None && matches(m.c.exempt, m.req) {
		v.Reason = reasonExempt
		return v
	}
	switch action {
	case Reject:
		v.Action, v.Reason, v.Reply = policy.Reject, reason, m.c.reply.Expand(m.placeholders(worst))
		if reason == reasonBadFrom {
			v.Reply = m.c.fromReply.Expand(m.placeholders(worst))
		}
	case Quarantine:
		v.Action, v.Reason = policy.Hold, reasonHold
	case Mark:
		v.Reason = reasonMark
		if r.badFrom != "" {
			m.req.Facts.Mark(markBadFrom)
		}
		if worst != nil && worst.Result == "fail" {
			m.req.Facts.Mark(markFail)
		}
	case None:
	}
	return v
}

// stronger returns the stronger of two actions, with its reason.
func stronger(a, b Action, why, whyB string) (Action, string) {
	order := []Action{None, Mark, Quarantine, Reject}
	if slices.Index(order, b) > slices.Index(order, a) {
		return b, whyB
	}
	return a, why
}

func (m *inspection) placeholders(worst *dmarc) func(string) string {
	return func(name string) string {
		switch name {
		case "domain":
			if worst != nil {
				return worst.Domain
			}
			return m.req.Sender.Domain
		case "sender":
			return m.req.Sender.Raw
		case "client":
			return m.req.Client.Addr.String()
		case "policy":
			if worst != nil {
				return string(worst.Wish)
			}
		}
		return ""
	}
}

// detail says the results in one line for the log.
func (r *results) detail() string {
	var b strings.Builder
	b.WriteString("spf=" + orNone(r.spf.Result))
	if len(r.dkim) == 0 {
		b.WriteString(", dkim=none")
	}
	for i := range r.dkim {
		s := &r.dkim[i]
		fmt.Fprintf(&b, ", dkim=%s %s", s.Result, printable(s.Domain, maxDetailDomain))
		if s.Reason != "" {
			b.WriteString(" (" + s.Reason + ")")
		}
	}
	if r.chain.Result != dkimverify.None {
		b.WriteString(", arc=" + r.chain.Result)
		if n := len(r.chain.Sets); n > 0 {
			fmt.Fprintf(&b, " %s (%d)", printable(r.chain.Sets[n-1].Sealer, maxDetailDomain), n)
		}
		if r.chain.Reason != "" {
			b.WriteString(" (" + r.chain.Reason + ")")
		}
	}
	for i := range r.upstream {
		c := &r.upstream[i]
		fmt.Fprintf(&b, ", upstream %s=%s", printable(c.method, 16), printable(c.result, 16))
	}
	for i := range r.authors {
		a := &r.authors[i]
		fmt.Fprintf(&b, ", dmarc=%s %s", a.Result, printable(a.Domain, maxDetailDomain))
		if a.Record != "" {
			fmt.Fprintf(&b, " p=%s", a.Published)
		}
		if a.Reason != "" {
			b.WriteString(" (" + a.Reason + ")")
		}
		if a.Sealer != "" {
			b.WriteString(" (passed at " + printable(a.Sealer, maxDetailDomain) + ")")
		}
	}
	if r.badFrom != "" {
		b.WriteString(", " + r.badFrom)
	}
	if r.hostile != "" {
		b.WriteString(", " + r.hostile)
	}
	return b.String()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// facts returns the results as those see them who come later.
func (r *results) facts() policy.Auth {
	out := policy.Auth{DKIM: "none", DMARC: "none", ARC: r.chain.Result}
	for _, result := range []string{dkimverify.TempError, dkimverify.PermError, dkimverify.Policy, dkimverify.Fail, dkimverify.Pass} {
		if slices.ContainsFunc(r.dkim, func(s dkimverify.Signature) bool { return s.Result == result }) {
			out.DKIM = result
		}
	}
	for i := range r.dkim {
		if d := mailaddr.Domain(r.dkim[i].Domain); r.dkim[i].Result == dkimverify.Pass && !slices.Contains(out.Signers, d) {
			out.Signers = append(out.Signers, d)
		}
	}
	for i := range r.authors {
		a := &r.authors[i]
		out.Authors = append(out.Authors, a.Domain)
		if a.Result == "pass" {
			out.DMARC = "pass"
		}
	}
	w := r.worst()
	if w == nil {
		// Who is vouched for has failed all the same.
		if i := slices.IndexFunc(r.authors, func(a dmarc) bool { return a.Sealer != "" }); i >= 0 {
			w, out.Override = &r.authors[i], "arc"
		}
	}
	if w != nil {
		out.DMARC, out.Policy = w.Result, string(w.Published)
	}
	if r.badFrom != "" {
		out.DMARC = "permerror"
	}
	return out
}

// count counts a message.
func (c *Check) count(r *results, f *policy.Auth) {
	c.shared.results.WithLabelValues("spf", orNone(r.spf.Result)).Inc()
	c.shared.results.WithLabelValues("dkim", f.DKIM).Inc()
	c.shared.results.WithLabelValues("dmarc", f.DMARC).Inc()
	c.shared.results.WithLabelValues("arc", f.ARC).Inc()
}
