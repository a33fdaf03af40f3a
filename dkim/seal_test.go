package dkim

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/internal/conf"
	"postern/internal/dkimverify"
	"postern/policy"
)

// seal gives a message from elsewhere to the sealer, and returns it as Postfix
// would have it.
func (b *bench) seal(found policy.Auth, text string, edits ...policy.Edit) (policy.Verdict, string) {
	b.t.Helper()
	req := &policy.Request{Time: now, Stage: policy.StageData, Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7")}}
	in := b.Sealer().Inspect(req, nil)
	fields, body := fieldsOf(text)
	for _, f := range fields {
		in.Header(f)
	}
	in.EndOfHeaders()
	in.Body([]byte(body))
	req.Facts.Auth = found
	if _, err := in.End(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	done, err := in.(policy.Finisher).Finish(b.t.Context(), edits)
	if err != nil {
		b.t.Fatal(err)
	}
	if text, ok := policy.Replaced(edits); ok {
		body = string(text)
	}
	return done.Verdict, message(policy.Apply(fields, append(edits[:len(edits):len(edits)], done.Edits...)), body)
}

func (b *bench) chain(text string) dkimverify.Chain {
	b.t.Helper()
	b.publish()
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	m := dkimverify.Start(header+"\r\n", dkimverify.Options{LookupTXT: b.dns.LookupTXT, Limit: time.Minute, ARC: true, Most: 5, Now: now})
	m.Write([]byte(body))
	if _, err := m.Wait(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return m.Chain()
}

// One gateway behind the other seals, each after it has changed the message.
func TestSealed(t *testing.T) {
	b := newCheck(t, func(c *Config) { c.Seal = "Example.org" }, "rsa0", "ed0")
	text, arc := letter, "none"
	for n := 1; n <= 3; n++ {
		results := "mx.example.org;\n\tspf=pass smtp.mailfrom=example.com;\n\tdmarc=pass (p=reject) header.from=example.com"
		fields, _ := fieldsOf(text)
		subject := slices.IndexFunc(fields, func(f policy.Field) bool { return f.Name == "Subject" })
		v, sealed := b.seal(policy.Auth{ARC: arc, Results: results}, text,
			policy.Edit{Kind: policy.InsertField, Name: "Authentication-Results", Value: " " + results},
			policy.Edit{Kind: policy.ReplaceField, At: subject, Name: "Subject", Value: fmt.Sprintf(" [list %d] hello", n)})
		if v.Reason != "arc-sealed" || v.Detail != fmt.Sprintf("i=%d d=example.org s=rsa0 cv=%s", n, arc) {
			t.Fatalf("%+v", v)
		}
		if n == 2 {
			v, sealed = b.seal(policy.Auth{ARC: arc, Results: results}, text, policy.Edit{Kind: policy.ReplaceBody, Body: []byte("another\r\n")})
			if !strings.HasSuffix(sealed, "\r\n\r\nanother\r\n") {
				t.Fatalf("%+v\n%s", v, sealed)
			}
		}
		text, arc = sealed, "pass"
		c := b.chain(text)
		if c.Result != "pass" || len(c.Sets) != n || c.Sets[n-1].Sealer != "example.org" || !strings.Contains(c.Sets[n-1].Results, "dmarc=pass (p=reject) header.from=example.com") {
			t.Fatalf("%+v\n%s", c, text)
		}
		if c := b.chain(text + "more\r\n"); c.Result != "fail" {
			t.Errorf("changed: %+v", c)
		}
	}
	// Another implementation says so, too.
	if out, err := exec.Command("/usr/bin/python3", "-c", "import dkim").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v %s", err, out)
		}
		t.Skip("dkimpy is not installed (make deps installs it)")
	}
	const program = `
import sys, dkim
cv, _, why = dkim.arc_verify(sys.stdin.buffer.read(), dnsfunc=lambda name, timeout=5: sys.argv[1].encode())
print((cv or b'none').decode(), why)
`
	for want, text := range map[string]string{"pass": text, "fail": text + "more\r\n"} {
		cmd := exec.Command("/usr/bin/python3", "-c", program, b.ring.domains["example.org"].pick("rsa", now).text())
		cmd.Stdin = strings.NewReader(text)
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Run(); err != nil || !strings.HasPrefix(said.String(), want+" ") {
			t.Errorf("dkimpy: %v %s", err, said.String())
		}
	}
}

func TestNotSealed(t *testing.T) {
	b := newCheck(t, func(c *Config) { c.Seal = "example.org" }, "rsa0")
	_, once := b.seal(policy.Auth{ARC: "none", Results: "x; none"}, letter)
	for want, tt := range map[string]struct {
		arc, text string
	}{
		"arc-not-looked": {"", letter}, "arc-broken": {"fail", letter}, "arc-header": {"none", strings.Repeat("X: "+strings.Repeat("x", 60000)+"\r\n", 20) + letter},
	} {
		if v, text := b.seal(policy.Auth{ARC: tt.arc, Results: "x; none"}, tt.text); v.Reason != want || text != tt.text {
			t.Errorf("%s: %+v", want, v)
		}
	}
	for _, arc := range []string{"temperror", "none"} { // the second cannot be: there is a set
		if v, _ := b.seal(policy.Auth{ARC: arc, Results: "x; none"}, once); v.Reason != "arc-broken" {
			t.Errorf("%s: %+v", arc, v)
		}
	}
	many := once
	for range maxSets - 1 {
		_, many = b.seal(policy.Auth{ARC: "pass", Results: "x; none"}, many)
	}
	if v, _ := b.seal(policy.Auth{ARC: "pass", Results: "x; none"}, many); v.Reason != "arc-too-long" || b.chain(many).Result != "pass" {
		t.Errorf("%+v", v)
	}
	b.dns.set("rsa0._domainkey.example.org", "v=DKIM1; p=")
	b.ring.keys[0].from = now.Add(time.Hour)
	if v, _ := b.seal(policy.Auth{ARC: "none", Results: "x; none"}, letter); v.Reason != "arc-no-key" {
		t.Errorf("%+v", v)
	}
	// What is ours is signed, not sealed, and old sessions do not show bodies.
	if b.Sealer().Inspect(login(), nil) != nil {
		t.Error("mail of our own is sealed")
	}
	in := b.Sealer().Inspect(&policy.Request{Time: now, BodyHidden: true}, nil)
	if _, err := in.(policy.Finisher).Finish(context.Background(), nil); err == nil {
		t.Error("sealed without a body")
	}
	if newCheck(t, nil, "rsa0").Seals() {
		t.Error("it seals by itself")
	}
}

func TestSealFaults(t *testing.T) {
	for want, keys := range map[string][]string{
		`dkim.seal: "example.com" is none of dkim.domain`:                 {"rsa0"},
		"dkim.seal: example.org has no RSA key, which all verifiers know": {"ed0"},
	} {
		c := DefaultConfig()
		c.Mode, c.Seal = policy.Enforce, "example.com"
		if keys[0] == "ed0" {
			c.Seal = "example.org"
		}
		c.Domains = []DomainConfig{{Domain: "example.org", Keys: []KeyConfig{{Selector: "s", File: keyFile(t, keys[0])}}}}
		var fs conf.Faults
		if c.Validate("dkim", &fs); len(fs) != 1 || fs[0].Error() != want {
			t.Errorf("%v, want %s", fs, want)
		}
		if c.WithoutAuth("dkim") == "" {
			t.Error("no warning")
		}
	}
}
