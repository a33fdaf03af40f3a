// Package dkim signs outgoing mail with DKIM (RFC 6376, RFC 8463). It works at the
// milter door, and signs a message as Postfix will hold it: after all header
// rules have changed it. Keys are made, published and changed with `postern
// dkim`; one whose DNS record is not good does not sign.
package dkim

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/dkimsig"
	"postern/internal/mailaddr"
	"postern/policy"
)

// Options are what the inspector is given.
type Options struct {
	Resolver Resolver
	Log      *zap.Logger
	Registry prometheus.Registerer
}

// Check is the inspector. It is safe for concurrent use.
type Check struct {
	cfg          Config
	header, body dkimsig.Canon
	ring         *keyring
	res          Resolver
	log          *zap.Logger
	shared       *shared
	watcher      *watcher
	labels       bool // metrics name domains and selectors
}

var _ policy.BodyInspector = (*Check)(nil)

// shared outlives a reload.
type shared struct {
	messages, signatures, sealed *prometheus.CounterVec
	usable                       *prometheus.GaugeVec
}

// maxLabels is how many keys metrics tell apart. With more of them domain and
// selector are left empty.
const maxLabels = 500

// New returns the inspector; cfg has been validated. prev is the one that it
// takes the place of, or nil. It reads the keys and starts nothing.
func New(cfg Config, o Options, prev *Check) (*Check, error) {
	c := &Check{cfg: cfg, res: o.Resolver, log: o.Log.Named("dkim")}
	if prev != nil {
		c.shared = prev.shared
	} else {
		c.shared = &shared{
			prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "postern_dkim_messages_total", Help: "Messages that are ours to sign, by what came of it.",
			}, []string{"result"}),
			prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "postern_dkim_signatures_total", Help: "Signatures, by key and what came of it.",
			}, []string{"domain", "selector", "result"}),
			prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "postern_arc_messages_total", Help: "Messages that may be sealed, by what came of it.",
			}, []string{"result"}),
			prometheus.NewGaugeVec(prometheus.GaugeOpts{
				Name: "postern_dkim_key_usable", Help: "1 when nothing is wrong with the DNS record of a key.",
			}, []string{"domain", "selector"}),
		}
		for _, m := range []prometheus.Collector{c.shared.messages, c.shared.signatures, c.shared.sealed, c.shared.usable} {
			if err := o.Registry.Register(m); err != nil {
				return nil, fmt.Errorf("dkim: %w", err)
			}
		}
	}
	var err error
	if c.header, c.body, err = parseCanon(cfg.Canonicalization); err != nil {
		return nil, fmt.Errorf("dkim: canonicalization: %w", err)
	}
	var faults conf.Faults
	c.ring = newKeyring(&cfg, "dkim", &faults)
	if prev != nil {
		c.ring.adopt(prev.ring)
	}
	if !cfg.CheckDNS {
		for _, k := range c.ring.keys {
			k.state.Store(nil)
		}
	}
	c.labels = len(c.ring.keys) <= maxLabels
	return c, faults.Err()
}

func (c *Check) on() bool { return c.cfg.Mode != policy.Off }

// Name implements [policy.Inspector].
func (c *Check) Name() string { return "dkim" }

// WantsBody implements [policy.BodyInspector].
func (c *Check) WantsBody() bool { return true }

// label is the value of a label that names a key.
func (c *Check) label(s string) string {
	if !c.labels {
		return ""
	}
	return s
}

// Inspect implements [policy.Inspector]. Only what is ours to sign is of
// interest.
func (c *Check) Inspect(req *policy.Request, _ []policy.Address) policy.Inspection {
	from := c.originOf(req)
	if from == foreign {
		return nil
	}
	return &inspection{c: c, req: req, from: from}
}

// Bounds of what is kept of a message. Postfix cuts a header at 60000 bytes when
// a milter is there.
const (
	maxHeader     = 1 << 20
	maxReceived   = 50
	maxCandidates = 20 // signatures that may be our own
)

// inspection looks at one message.
type inspection struct {
	c      *Check
	req    *policy.Request
	from   origin
	fields []policy.Field
	bytes  int
	fault  string // why the header cannot be signed

	received []string
	bodies   [2]*dkimsig.Body // by canonical form; nil where it is not needed
	sums     [2][32]byte
}

// Header implements [policy.Inspection].
func (m *inspection) Header(f policy.Field) {
	if m.fault != "" {
		return
	}
	m.bytes += len(f.Name) + len(f.Value)
	if m.bytes > maxHeader {
		m.fault, m.fields = "the header is too large", nil
		return
	}
	if strings.EqualFold(f.Name, "Received") && m.from == local && len(m.received) < maxReceived {
		m.received = append(m.received, f.Value)
	}
	m.fields = append(m.fields, f)
}

// EndOfHeaders implements [policy.Inspection].
func (m *inspection) EndOfHeaders() {
	if m.from == local {
		if m.c.fromElsewhere(m.received) {
			m.from = foreign
			return
		}
	}
	m.bodies[m.c.body] = dkimsig.NewBody(m.c.body, -1)
	n := 0
	for _, f := range m.fields {
		if !strings.EqualFold(f.Name, "DKIM-Signature") {
			continue
		}
		if n++; n > maxCandidates {
			break
		}
		if s, ok := m.c.candidate(f); ok && m.bodies[s.body] == nil {
			m.bodies[s.body] = dkimsig.NewBody(s.body, -1)
		}
	}
}

// Body implements [policy.Inspection].
func (m *inspection) Body(p []byte) bool {
	more := false
	for _, b := range m.bodies {
		if b != nil {
			b.Write(p)
			more = true
		}
	}
	return more
}

// Reasons of verdicts.
const (
	reasonSigned   = "dkim-signed"
	reasonAlready  = "dkim-already-signed"
	reasonNotOurs  = "dkim-other-domain"
	reasonNoAuthor = "dkim-no-author"
	reasonNoKey    = "dkim-no-key"
	reasonHeader   = "dkim-header"
	reasonOutside  = "dkim-from-outside"
	resultError    = "error"
)

var (
	errHidden = errors.New("this session is older than the configuration, bodies are not shown in it")
	_         = policy.Finisher((*inspection)(nil))
)

// End implements [policy.Inspection]. Nothing is said before all others have
// spoken.
func (m *inspection) End(context.Context) (policy.Judgement, error) {
	if m.from == foreign {
		return policy.Judgement{Verdict: policy.Verdict{Reason: reasonOutside}}, nil
	}
	for form, b := range m.bodies {
		if b != nil {
			m.sums[form] = b.Sum()
		}
	}
	return policy.Judgement{}, nil
}

// Finish implements [policy.Finisher].
func (m *inspection) Finish(ctx context.Context, edits []policy.Edit) (policy.Judgement, error) {
	c := m.c
	if m.from == foreign {
		return policy.Judgement{}, nil
	}
	v, added, err := m.sign(ctx, edits)
	if m.req.DryRun {
		return policy.Judgement{Verdict: v, Edits: added}, err
	}
	if err != nil {
		c.shared.messages.WithLabelValues(resultError).Inc()
		return policy.Judgement{}, err
	}
	c.shared.messages.WithLabelValues(strings.TrimPrefix(v.Reason, "dkim-")).Inc()
	switch v.Reason {
	case reasonNoAuthor, reasonNoKey, reasonHeader:
		c.log.Info("not signed", zap.String("queue_id", m.req.QueueID), zap.String("reason", v.Reason), zap.String("detail", v.Detail))
	}
	return policy.Judgement{Verdict: v, Edits: added}, nil
}

func (m *inspection) sign(ctx context.Context, edits []policy.Edit) (v policy.Verdict, added []policy.Edit, err error) {
	c := m.c
	if m.req.BodyHidden {
		return v, nil, errHidden
	}
	if m.fault != "" {
		return policy.Verdict{Reason: reasonHeader, Detail: m.fault}, nil, nil
	}
	fields := policy.Apply(m.fields, edits)
	author, why := c.author(fields)
	if why != "" {
		return policy.Verdict{Reason: reasonNoAuthor, Detail: why}, nil, nil
	}
	uses, known := c.ring.uses(author, m.req.Time)
	switch {
	case !known:
		return policy.Verdict{Reason: reasonNotOurs, Detail: author.Domain}, nil, nil
	case len(uses) == 0:
		return policy.Verdict{Reason: reasonNoKey, Detail: "of " + author.Domain + " there is no key whose time it is and whose record is good"}, nil, nil
	}
	if text, ok := policy.Replaced(edits); ok {
		for form, b := range m.bodies {
			if b != nil {
				b = dkimsig.NewBody(dkimsig.Canon(form), -1)
				b.Write(text)
				m.sums[form] = b.Sum()
			}
		}
	}
	header, ok := join(fields)
	if !ok {
		return policy.Verdict{Reason: reasonHeader, Detail: "a header field with a line that does not belong to it"}, nil, nil
	}
	all := dkimsig.NewFields(header)
	names := c.signedNames(fields)
	there := c.present(fields, all, &m.sums, &m.bodies, m.req.Time)
	var detail []string
	for _, u := range uses {
		id := fmt.Sprintf("d=%s s=%s a=%s-sha256", u.domain, u.selector, u.algorithm)
		if there[u.domain+" "+u.selector] {
			detail = append(detail, id+" is there already")
			continue
		}
		if err := ctx.Err(); err != nil {
			return v, nil, err
		}
		value, err := c.signature(&u, all, names, m.sums[c.body], m.req.Time)
		if err != nil {
			c.shared.signatures.WithLabelValues(c.label(u.domainLabel()), c.label(u.selector), resultError).Inc()
			return v, nil, fmt.Errorf("%s: %w", id, err)
		}
		added = append(added, policy.Edit{Kind: policy.InsertField, Name: "DKIM-Signature", Value: value})
		detail = append(detail, id)
		if !m.req.DryRun {
			c.shared.signatures.WithLabelValues(c.label(u.domainLabel()), c.label(u.selector), "signed").Inc()
		}
	}
	v = policy.Verdict{Reason: reasonSigned, Detail: strings.Join(detail, ", ")}
	if len(added) == 0 {
		v.Reason = reasonAlready
	}
	return v, added, nil
}

// domainLabel is the domain in metrics: for a key of any domain it is "%".
func (u *use) domainLabel() string {
	if u.key.domain == "" {
		return "%"
	}
	return u.key.domain
}

// author returns the one whose domain signs, or why there is none.
func (c *Check) author(fields []policy.Field) (a policy.Address, why string) {
	from, sender := 0, 0
	var value, senderValue string
	for _, f := range fields {
		switch {
		case strings.EqualFold(f.Name, "From"):
			from++
			value = f.Value
		case strings.EqualFold(f.Name, "Sender"):
			sender++
			senderValue = f.Value
		}
	}
	switch {
	case from == 0:
		return a, "there is no From field"
	case from > 1:
		return a, "there is more than one From field"
	}
	of := "From"
	if c.cfg.By == bySender && sender > 0 {
		if sender > 1 {
			return a, "there is more than one Sender field"
		}
		of, value = "Sender", senderValue
	}
	all, err := mailaddr.Authors(value, maxAuthors)
	switch {
	case err != nil:
		return a, "the " + of + " field cannot be read"
	case len(all) != 1:
		return a, fmt.Sprintf("%s has %d addresses, one is needed", of, len(all))
	}
	return all[0], ""
}

const maxAuthors = 1000

// join returns the header in the form that is signed, and false for what would
// not be one.
func join(fields []policy.Field) (string, bool) {
	n := 0
	for _, f := range fields {
		n += len(f.Name) + len(f.Value) + 3 + strings.Count(f.Value, "\n")
	}
	var b strings.Builder
	b.Grow(n)
	for _, f := range fields {
		b.WriteString(f.Name)
		b.WriteByte(':')
		for rest := f.Value; ; {
			line, next, more := strings.Cut(rest, "\n")
			b.WriteString(line)
			b.WriteString("\r\n")
			if !more {
				break
			}
			if next == "" || next[0] != ' ' && next[0] != '\t' {
				return "", false
			}
			rest = next
		}
	}
	return b.String(), true
}
