package auth

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"time"

	"postern/internal/dkimverify"
	"postern/policy"
)

// Question is what `postern auth test` asks: what comes of a message.
type Question struct {
	Message []byte `json:"message"` // as mail programs save it
	Client  string `json:"client"`  // IP address
	Name    string `json:"name"`    // its verified name
	Helo    string `json:"helo"`
	Sender  string `json:"sender"` // as in MAIL FROM, "" or "<>" for the null sender
	Login   string `json:"login"`  // as whom the client has logged in
}

// maxQuestion is the most octets of a Question as JSON.
const maxQuestion = 64 << 20

// testTime bounds a test.
const testTime = 2 * time.Minute

// Report is all that was found out about a message, and what comes of it.
type Report struct {
	// Skipped says why such a message is not looked at, "" when it is. It was
	// looked at for the report all the same.
	Skipped    string      `json:"skipped,omitempty"`
	Hostile    string      `json:"hostile,omitempty"` // why its header is not trusted
	SPF        policy.SPF  `json:"spf"`
	Signatures []Signature `json:"signatures"`
	ARC        Chain       `json:"arc"`
	Upstream   []string    `json:"upstream,omitempty"` // "spf=pass"
	Authors    []Author    `json:"authors"`
	BadFrom    string      `json:"bad_from,omitempty"`
	// Removed are fields that would be taken out, Field what would be written.
	Removed []string       `json:"removed,omitempty"`
	Field   string         `json:"field,omitempty"`
	Verdict policy.Verdict `json:"verdict"`
	Marks   []string       `json:"marks,omitempty"`
}

// Signature is one DKIM signature. Hashes are SHA-256: those of the body in
// base64 as in bh=, that of the fields in hexadecimal digits.
type Signature struct {
	Domain    string   `json:"domain"`
	Selector  string   `json:"selector"`
	Algorithm string   `json:"algorithm"`
	Canon     string   `json:"canonicalization,omitempty"`
	Signed    []string `json:"signed,omitempty"`
	BodyHash  string   `json:"body_hash,omitempty"` // of the body as it is here
	Claimed   string   `json:"claimed,omitempty"`   // bh=
	Hash      string   `json:"hash,omitempty"`
	KeyName   string   `json:"key_name,omitempty"`
	Record    string   `json:"record,omitempty"`
	Bits      int      `json:"bits,omitempty"` // of an RSA key
	Result    string   `json:"result"`
	Reason    string   `json:"reason,omitempty"`
}

// Chain is the ARC chain, the first set first.
type Chain struct {
	Result string `json:"result"`
	Reason string `json:"reason,omitempty"`
	Sets   []Set  `json:"sets,omitempty"`
}

// Set is one set of it.
type Set struct {
	Sealer  string `json:"sealer"`
	Signer  string `json:"signer"`
	Results string `json:"results"`
	Trusted bool   `json:"trusted"`
}

// Author is what DMARC says of one domain in From.
type Author struct {
	Domain  string   `json:"domain"`
	Record  string   `json:"record,omitempty"` // the domain where the record stands
	Text    string   `json:"text,omitempty"`   // the record
	Result  string   `json:"result"`
	Wish    string   `json:"wish,omitempty"`
	Aligned []string `json:"aligned,omitempty"` // what passed for it: "spf", "dkim"
	Sealer  string   `json:"sealer,omitempty"`  // who vouches for it
	Reason  string   `json:"reason,omitempty"`
}

// Test looks at a whole message for an envelope, req, which is a DryRun. Nothing
// is counted.
func (c *Check) Test(ctx context.Context, req *policy.Request, message []byte) Report {
	out := Report{}
	switch {
	case c.cfg.Mode == policy.Off:
		out.Skipped = `[auth] mode is "off"`
	case c.cfg.SkipAuthenticated && req.SASL.Username != "":
		out.Skipped = "the client has logged in (skip_authenticated)"
	case matches(c.skip, req):
		out.Skipped = "an entry of skip or exceptions"
	}
	m := &inspection{c: c, req: req}
	fields, body := policy.CutMessage(message)
	for _, f := range fields {
		m.Header(f)
	}
	m.EndOfHeaders()
	m.Body(body)
	r := m.find(ctx)
	req.Facts.Auth = r.facts()
	req.Facts.Auth.Summary = r.detail()
	out.Verdict = m.verdict(&r)
	out.Hostile, out.SPF, out.BadFrom, out.Marks = r.hostile, r.spf, r.badFrom, req.Facts.Marks
	for i := range r.dkim {
		out.Signatures = append(out.Signatures, describe(&r.dkim[i]))
	}
	out.ARC = Chain{Result: r.chain.Result, Reason: r.chain.Reason}
	for _, s := range r.chain.Sets {
		out.ARC.Sets = append(out.ARC.Sets, Set{s.Sealer, s.Signer, strings.TrimSpace(s.Results), c.trusts(s.Sealer)})
	}
	for i := range r.upstream {
		out.Upstream = append(out.Upstream, r.upstream[i].method+"="+r.upstream[i].result)
	}
	for i := range r.authors {
		a := &r.authors[i]
		out.Authors = append(out.Authors, Author{a.Domain, a.Record, a.Text, a.Result, string(a.Wish), a.By, a.Sealer, a.Reason})
	}
	if !out.Verdict.Action.Refuses() {
		out.Field = "Authentication-Results: " + format(c.id, req, &r)
		for _, at := range m.ours {
			out.Removed = append(out.Removed, fields[at].Name+":"+strings.ReplaceAll(fields[at].Value, "\n", "\r\n"))
		}
	}
	return out
}

func describe(s *dkimverify.Signature) Signature {
	out := Signature{
		Domain: s.Domain, Selector: s.Selector, Algorithm: s.Algorithm, Canon: s.Canon, Signed: s.Signed, KeyName: s.KeyName, Record: s.Record, Bits: s.Bits,
		Result: s.Result, Reason: s.Reason, Claimed: base64.StdEncoding.EncodeToString(s.Claimed),
	}
	if s.Hash != [32]byte{} {
		out.BodyHash, out.Hash = base64.StdEncoding.EncodeToString(s.BodyHash[:]), hex.EncodeToString(s.Hash[:])
	}
	return out
}
