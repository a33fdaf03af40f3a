package dkim

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/internal/dkimsig"
	"postern/internal/mailaddr"
	"postern/policy"
)

// Sealer is the inspector that seals mail from elsewhere (ARC, RFC 8617): whoever
// gets it from here can read what was found out about it before it was changed or
// forwarded. It is safe for concurrent use.
type Sealer struct {
	c     *Check
	count *prometheus.CounterVec
}

// Seals reports whether anything is to be sealed.
func (c *Check) Seals() bool { return c.on() && c.cfg.Seal != "" }

// Sealer returns the inspector.
func (c *Check) Sealer() *Sealer { return &Sealer{c, c.shared.sealed} }

// Name implements [policy.Inspector].
func (s *Sealer) Name() string { return "arc" }

// WantsBody implements [policy.BodyInspector].
func (s *Sealer) WantsBody() bool { return true }

// Inspect implements [policy.Inspector]. What is ours to sign is not sealed, nor
// what this host hands in: it was sealed when it came.
func (s *Sealer) Inspect(req *policy.Request, _ []policy.Address) policy.Inspection {
	if s.c.originOf(req) != foreign {
		return nil
	}
	return &sealing{s: s, req: req, body: dkimsig.NewBody(dkimsig.Relaxed, -1)}
}

// maxSets is how many sets a chain may have (RFC 8617 section 4.2.1).
const maxSets = 50

// sealing looks at one message.
type sealing struct {
	s      *Sealer
	req    *policy.Request
	fields []policy.Field
	bytes  int
	body   *dkimsig.Body
	sum    [32]byte
}

var _ = policy.Finisher((*sealing)(nil))

// Header implements [policy.Inspection].
func (m *sealing) Header(f policy.Field) {
	if m.bytes += len(f.Name) + len(f.Value); m.bytes <= maxHeader {
		m.fields = append(m.fields, f)
	}
}

// EndOfHeaders implements [policy.Inspection].
func (m *sealing) EndOfHeaders() {}

// Body implements [policy.Inspection].
func (m *sealing) Body(p []byte) bool {
	m.body.Write(p)
	return true
}

// Reasons of verdicts.
const (
	reasonSealed  = "arc-sealed"
	reasonUnknown = "arc-not-looked"
	reasonBroken  = "arc-broken"
	reasonLong    = "arc-too-long"
	reasonNoSeal  = "arc-no-key"
	reasonOdd     = "arc-header"
)

// End implements [policy.Inspection].
func (m *sealing) End(context.Context) (policy.Judgement, error) {
	m.sum = m.body.Sum()
	return policy.Judgement{}, nil
}

// Finish implements [policy.Finisher].
func (m *sealing) Finish(_ context.Context, edits []policy.Edit) (policy.Judgement, error) {
	if m.req.BodyHidden {
		return policy.Judgement{}, errHidden
	}
	v, added, err := m.seal(edits)
	if err == nil && !m.req.DryRun {
		m.s.count.WithLabelValues(strings.TrimPrefix(v.Reason, "arc-")).Inc()
	}
	return policy.Judgement{Verdict: v, Edits: added}, err
}

func (m *sealing) seal(edits []policy.Edit) (v policy.Verdict, added []policy.Edit, err error) {
	c, found := m.s.c, &m.req.Facts.Auth
	not := func(reason, detail string) (policy.Verdict, []policy.Edit, error) {
		return policy.Verdict{Reason: reason, Detail: detail}, nil, nil
	}
	switch found.ARC {
	case "none", "pass":
	case "":
		return not(reasonUnknown, "")
	default: // a broken chain stays broken, and one that is not known cannot go on
		return not(reasonBroken, "the chain is "+found.ARC)
	}
	if m.bytes > maxHeader {
		return not(reasonOdd, "the header is too large")
	}
	key := c.ring.sealer(c.cfg.Seal, m.req.Time)
	if key == nil {
		return not(reasonNoSeal, "of "+c.cfg.Seal+" there is no RSA key whose time it is and whose record is good")
	}
	fields := policy.Apply(m.fields, edits)
	header, ok := join(fields)
	if !ok {
		return not(reasonOdd, "a header field with a line that does not belong to it")
	}
	if text, ok := policy.Replaced(edits); ok {
		b := dkimsig.NewBody(dkimsig.Relaxed, -1)
		b.Write(text)
		m.sum = b.Sum()
	}
	all := dkimsig.NewFields(header)
	before := sets(all)
	n := len(before)/3 + 1
	if n > maxSets {
		return not(reasonLong, "the chain has "+strconv.Itoa(maxSets)+" sets")
	}
	cv := found.ARC
	if (cv == "none") != (n == 1) {
		return not(reasonBroken, "the chain has changed since it was looked at")
	}
	set, err := c.set(key, n, cv, found.Results, fields, all, before, m.sum, m.req.Time)
	if err != nil {
		return v, nil, err
	}
	for _, f := range slices.Backward(set) {
		value := strings.TrimPrefix(strings.ReplaceAll(f.Value(), "\r\n", "\n"), "")
		added = append(added, policy.Edit{Kind: policy.InsertField, Name: f.Name(), Value: value})
	}
	return policy.Verdict{Reason: reasonSealed, Detail: fmt.Sprintf("i=%d d=%s s=%s cv=%s", n, mailaddr.Domain(c.cfg.Seal), key.selector, cv)}, added, nil
}

var arcNames = [...]string{"ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal"}

// sets returns the fields of a valid chain in the order in which they are sealed.
func sets(all *dkimsig.Fields) []dkimsig.Field {
	var found [maxSets + 2][len(arcNames)]dkimsig.Field
	for kind, name := range arcNames {
		for _, f := range all.Named(name) {
			value, _, _ := strings.Cut(f.Value(), ";")
			tags, err := dkimsig.ParseTags(value)
			if kind > 0 {
				tags, err = dkimsig.ParseTags(f.Value())
			}
			if err != nil {
				continue
			}
			if n, err := tags.Number("i"); err == nil && n > 0 && n <= maxSets {
				found[n][kind] = f
			}
		}
	}
	var out []dkimsig.Field
	for n := 1; found[n] != [len(arcNames)]dkimsig.Field{}; n++ {
		out = append(out, found[n][:]...)
	}
	return out
}

// set makes the three fields of set n, the results first.
func (c *Check) set(key *key, n int, cv, results string, fields []policy.Field, all *dkimsig.Fields, before []dkimsig.Field, body [32]byte, now time.Time) ([]dkimsig.Field, error) {
	domain := mailaddr.Domain(c.cfg.Seal)
	begin := func(name string) *folder {
		f := &folder{column: len(name) + 1}
		f.b.WriteString(name + ":")
		f.word("i="+strconv.Itoa(n)+";", true)
		return f
	}
	end := func(f *folder, hash func(own dkimsig.Field) [32]byte) (dkimsig.Field, error) {
		f.word("b=", true)
		sig, err := dkimsig.Sign(key.signer, hash(dkimsig.Field(f.b.String()+"\r\n")))
		if err != nil {
			return "", fmt.Errorf("sealing: %w", err)
		}
		f.text(base64.StdEncoding.EncodeToString(sig))
		return dkimsig.Field(f.b.String() + "\r\n"), nil
	}
	seen := dkimsig.Field(arcNames[0] + ": i=" + strconv.Itoa(n) + "; " + strings.ReplaceAll(results, "\n", "\r\n") + "\r\n")

	names := slices.DeleteFunc(c.signedNames(fields), func(name string) bool { return len(name) > 3 && strings.EqualFold(name[:4], "ARC-") })
	for range all.Count(fieldName) {
		names = append(names, fieldName)
	}
	f := begin(arcNames[1])
	f.word("a="+key.algorithm+"-sha256;", true)
	f.word("c=relaxed/relaxed;", true)
	f.word("d="+domain+";", true)
	f.word("s="+key.selector+";", true)
	f.word("t="+strconv.FormatInt(now.Unix(), 10)+";", true)
	for i, name := range names {
		colon := ":"
		if i == len(names)-1 {
			colon = ";"
		}
		if i == 0 {
			name = "h=" + name
		}
		f.word(name+colon, i == 0)
	}
	f.word("bh="+base64.StdEncoding.EncodeToString(body[:])+";", true)
	message, err := end(f, func(own dkimsig.Field) [32]byte { return all.Hash(names, dkimsig.Relaxed, own) })
	if err != nil {
		return nil, err
	}

	f = begin(arcNames[2])
	f.word("a="+key.algorithm+"-sha256;", true)
	f.word("cv="+cv+";", true)
	f.word("d="+domain+";", true)
	f.word("s="+key.selector+";", true)
	f.word("t="+strconv.FormatInt(now.Unix(), 10)+";", true)
	seal, err := end(f, func(own dkimsig.Field) [32]byte {
		return dkimsig.HashSeal(append(slices.Clone(before), seen, message), own)
	})
	return []dkimsig.Field{seen, message, seal}, err
}

// sealer returns the key that seals as a domain, nil when none may. RSA is what
// all verifiers know.
func (r *keyring) sealer(name string, now time.Time) *key {
	d := r.domains[mailaddr.Domain(name)]
	if d == nil {
		return nil
	}
	return d.pick("rsa", now)
}
