package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/internal/dkimsig"
	"postern/policy"
)

// zone is a resolver that answers from a map; a nil answer is a failure.
type zone struct {
	mu      sync.Mutex
	records map[string][]string
	broken  bool
}

func (z *zone) LookupTXT(_ context.Context, name string) ([]string, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.broken {
		return nil, errors.New("the server is down")
	}
	return z.records[name], nil
}

func (z *zone) Forget(string) {}

func (z *zone) set(name string, records ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.records == nil {
		z.records = map[string][]string{}
	}
	z.records[name] = records
}

var keysOnce = sync.OnceValue(func() map[string]crypto.Signer {
	out := map[string]crypto.Signer{}
	for i := range 2 {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		_, e, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		out[fmt.Sprint("rsa", i)], out[fmt.Sprint("ed", i)] = k, e
	}
	return out
})

// keyFile writes one of a few keys to a file.
func keyFile(t *testing.T, which string) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(keysOnce()[which])
	if err != nil {
		t.Fatal(err)
	}
	return put(t, which+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

func put(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

type bench struct {
	*Check
	t    *testing.T
	dns  *zone
	logs *observer.ObservedLogs
	reg  *prometheus.Registry
}

// newCheck makes a check for example.org with the given keys, "rsa0" under the
// selector rsa0 and so on.
func newCheck(t *testing.T, change func(*Config), keys ...string) *bench {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Mode = policy.Enforce
	d := DomainConfig{Domain: "example.org"}
	for _, k := range keys {
		d.Keys = append(d.Keys, KeyConfig{Selector: k, File: keyFile(t, k)})
	}
	if len(keys) > 0 {
		cfg.Domains = []DomainConfig{d}
	}
	if change != nil {
		change(&cfg)
	}
	var fs conf.Faults
	if cfg.Validate("dkim", &fs); len(fs) > 0 {
		t.Fatal(fs)
	}
	core, logs := observer.New(zap.InfoLevel)
	b := &bench{t: t, dns: &zone{}, logs: logs, reg: prometheus.NewRegistry()}
	var err error
	if b.Check, err = New(cfg, Options{Resolver: b.dns, Log: zap.New(core), Registry: b.reg}, nil); err != nil {
		t.Fatal(err)
	}
	return b
}

// publish puts the records of all keys into the zone.
func (b *bench) publish() {
	for _, k := range b.ring.keys {
		b.dns.set(k.name(k.domain), k.text())
	}
}

var now = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func login() *policy.Request {
	return &policy.Request{Time: now, Stage: policy.StageData, JudgedBy: "inbound", Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7")}, SASL: policy.SASL{Username: "ann"}}
}

// fieldsOf takes a message apart as the door does.
func fieldsOf(message string) (fields []policy.Field, body string) {
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	header = strings.ReplaceAll(header, "\r\n", "\n")
	for _, line := range strings.SplitAfter(header, "\n") {
		if line != "" && (line[0] == ' ' || line[0] == '\t') {
			fields[len(fields)-1].Value += line
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		fields = append(fields, policy.Field{Name: name, Value: value})
	}
	for i := range fields {
		fields[i].Value = strings.TrimSuffix(fields[i].Value, "\n")
	}
	return fields, body
}

// message puts one together.
func message(fields []policy.Field, body string) string {
	var b strings.Builder
	for _, f := range fields {
		b.WriteString(f.Name + ":" + strings.ReplaceAll(f.Value, "\n", "\r\n") + "\r\n")
	}
	return b.String() + "\r\n" + body
}

// show gives a message to the inspector, and returns it as Postfix would have
// it.
func (b *bench) show(req *policy.Request, text string, edits ...policy.Edit) (v policy.Verdict, signed string) {
	b.t.Helper()
	in := b.Inspect(req, nil)
	if in == nil {
		return policy.Verdict{Reason: "not looked at"}, text
	}
	fields, body := fieldsOf(text)
	for _, f := range fields {
		in.Header(f)
	}
	in.EndOfHeaders()
	for rest := body; rest != ""; {
		n := min(len(rest), 17)
		if !in.Body([]byte(rest[:n])) {
			break
		}
		rest = rest[n:]
	}
	j, err := in.End(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	done, err := in.(policy.Finisher).Finish(b.t.Context(), edits)
	if err != nil {
		b.t.Fatal(err)
	}
	if v = done.Verdict; v.Reason == "" {
		v = j.Verdict
	}
	if text, ok := policy.Replaced(edits); ok {
		body = string(text)
	}
	return v, message(policy.Apply(fields, slices.Concat(edits, j.Edits, done.Edits)), body)
}

// verify has another implementation verify all signatures of a message.
func (b *bench) verify(signed string, want int) {
	b.t.Helper()
	b.publish()
	got, err := dkim.VerifyWithOptions(strings.NewReader(signed), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		return b.dns.LookupTXT(context.Background(), name)
	}})
	if err != nil || len(got) != want {
		b.t.Fatalf("%d signatures, want %d: %v\n%s", len(got), want, err, signed)
	}
	for _, v := range got {
		if v.Err != nil {
			b.t.Errorf("%s: %v\n%s", v.Domain, v.Err, signed)
		}
	}
}

const letter = "From: Ann <ann@example.org>\r\nTo: bob@example.com\r\nSubject:  a  b\r\n\tfolded \r\nto:second@example.com\r\nX-Empty:\r\nReply-To:\r\n" +
	"Date: Fri, 27 Nov 2026 12:00:00 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nList-Unsubscribe: <mailto:x@example.org>\r\n\r\n" +
	"Hello  \tB\xc3\xb6b \xff \r\n\r\n.dot\r \r\n" + "end \r\n\r\n\r\n"

func TestSigned(t *testing.T) {
	for _, canon := range []string{"relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"} {
		for _, text := range []string{letter, "From: ann@example.org\r\n\r\n", "From:ann@example.org\r\nSubject: \r\n\r\nno line end", strings.ReplaceAll(letter, "end", strings.Repeat("long ", 500))} {
			b := newCheck(t, func(c *Config) { c.Canonicalization = canon; c.Expire = conf.Duration(24 * time.Hour) }, "rsa0", "ed0")
			v, signed := b.show(login(), text)
			if v.Reason != reasonSigned || v.Detail != "d=example.org s=rsa0 a=rsa-sha256, d=example.org s=ed0 a=ed25519-sha256" {
				t.Errorf("%s: %+v", canon, v)
			}
			b.verify(signed, 2)
			for i, line := range strings.Split(signed, "\r\n") {
				if len(line) > 80 && !strings.Contains(line, "long") {
					t.Errorf("line %d has %d octets: %s", i, len(line), line)
				}
			}
		}
	}
	b := newCheck(t, nil, "rsa0")
	_, signed := b.show(login(), letter)
	flat := strings.ReplaceAll(signed, "\r\n\t", "")
	for _, want := range []string{"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=rsa0;t=1795780800;", "h=From:From:Reply-To:Subject:Date:To:To:MIME-Version:Content-Type:List-Unsubscribe;bh="} {
		if !strings.Contains(strings.ReplaceAll(flat, "; ", ";"), strings.ReplaceAll(want, "; ", ";")) {
			t.Errorf("%q is not in\n%s", want, signed)
		}
	}
}

// What others change is signed as they leave it.
func TestSignedAfterTheChange(t *testing.T) {
	b := newCheck(t, func(c *Config) { c.Canonicalization = "simple/simple" }, "rsa0")
	_, signed := b.show(login(), letter,
		policy.Edit{Kind: policy.ReplaceField, At: 2, Name: "Subject", Value: " [list] a\r\n b"},
		policy.Edit{Kind: policy.DeleteField, At: 1},
		policy.Edit{Kind: policy.InsertField, At: 0, Name: "Cc", Value: "carol@example.net"},
		policy.Edit{Kind: policy.ReplaceField, At: 0, Name: "From", Value: " <list@lists.example.org>"},
		policy.Edit{Kind: policy.ReplaceBody, Body: []byte("another body")},
	)
	b.verify(signed, 1)
	if !strings.Contains(signed, "\r\nSubject: [list] a\r\n b\r\n") || !strings.HasSuffix(signed, "another body") {
		t.Errorf("%s", signed)
	}
}

// A message that carries a good signature of ours is not signed again, one that
// has been changed since is.
func TestSignedOnce(t *testing.T) {
	for _, canon := range []string{"relaxed/relaxed", "simple/simple"} {
		first := newCheck(t, func(c *Config) { c.Canonicalization = canon }, "rsa0", "ed0")
		_, signed := first.show(login(), letter)
		again := newCheck(t, nil, "rsa0", "ed0")
		v, twice := again.show(login(), "Received: x\r\n"+signed)
		if v.Reason != reasonAlready || strings.Count(twice, "DKIM-Signature:") != 2 {
			t.Errorf("%s: %+v", canon, v)
		}
		if v, _ := again.show(login(), strings.Replace(signed, "Hello", "Hallo", 1)); v.Reason != reasonSigned {
			t.Errorf("%s, changed: %+v", canon, v)
		}
		if v, _ := again.show(login(), signed, policy.Edit{Kind: policy.ReplaceField, At: 2, Name: "From", Value: " ann@mail.example.org"}); v.Reason != reasonSigned {
			t.Errorf("%s, changed by a rule: %+v", canon, v)
		}
		if v, _ := again.show(login(), signed, policy.Edit{Kind: policy.ReplaceBody, Body: []byte("x")}); v.Reason != reasonSigned {
			t.Errorf("%s, another body: %+v", canon, v)
		}
		// One of the two is there.
		_, one := newCheck(t, nil, "ed0").show(login(), letter)
		v, both := again.show(login(), one)
		if v.Detail != "d=example.org s=rsa0 a=rsa-sha256, d=example.org s=ed0 a=ed25519-sha256 is there already" {
			t.Errorf("%+v", v)
		}
		again.verify(both, 2)
	}
	// Somebody else's key under our selector proves nothing.
	b := newCheck(t, func(c *Config) { c.Domains[0].Keys[0].Selector = "rsa0" }, "rsa1")
	_, forged := b.show(login(), letter)
	if v, _ := newCheck(t, nil, "rsa0").show(login(), forged); v.Reason != reasonSigned {
		t.Errorf("%+v", v)
	}
}

func TestWhoseMail(t *testing.T) {
	outside := "Received: from evil ([127.0.0.1]) (mail.evil.example [203.0.113.9])\r\n\tby mx.example.com (Postfix) with ESMTPS id 4X\r\n\tfor <bob@example.com>; Fri\r\n"
	inside := "Received: from laptop (unknown [203.0.113.9])\r\n\t(using TLSv1.3)\r\n\t(Authenticated sender: ann)\r\n\tby mx.example.com (Postfix) with ESMTPSA id 4X\r\n\tfor <bob@example.com>; Fri\r\n"
	amavis := "Received: from mx.example.com ([127.0.0.1])\r\n\tby localhost (mx.example.com [127.0.0.1]) (amavisd-new, port 10024)\r\n\twith ESMTP id 7; Fri\r\n"
	pickup := "Received: by mx.example.com (Postfix, from userid 1000)\r\n\tid 4X; Fri\r\n"
	for _, tt := range []struct {
		name, client, login, chain string
		received                   string
		signed                     bool
	}{
		{"a login", "203.0.113.9", "ann", "", "", true},
		{"a stranger", "203.0.113.9", "", "", "", false},
		{"no client", "", "", "", "", false},
		{"own network", "10.1.2.3", "", "", outside, true},
		{"a chain", "203.0.113.9", "", "submission", "", true},
		{"another chain", "203.0.113.9", "", "inbound", "", false},
		{"this host", "127.0.0.1", "", "", "", true},
		{"this host, IPv6", "::1", "", "", "", true},
		{"this host, local user", "127.0.0.1", "", "", pickup, true},
		{"filter, mail of a stranger", "127.0.0.1", "", "", outside, false},
		{"filter that writes its own", "127.0.0.1", "", "", amavis + outside, false},
		{"filter, mail of a login", "127.0.0.1", "", "", amavis + inside, true},
		{"filter, mail of a login that had come from elsewhere", "127.0.0.1", "", "", inside + outside, true},
		{"filter, stranger who shows a login", "127.0.0.1", "", "", amavis + outside + inside, false},
		{"filter, local user", "127.0.0.1", "", "", amavis + pickup, true},
		{"webmail", "127.0.0.1", "", "", "Received: from [203.0.113.9]\r\n\tby mail.example.com\r\n\twith HTTP (HTTP/1.1 POST); Fri\r\n", true},
		{"fetchmail", "127.0.0.1", "", "", "Received: from pop.example [203.0.113.9]\r\n\tby localhost with POP3 (fetchmail-6.4)\r\n", false},
		{"from an own network", "127.0.0.1", "", "", strings.Replace(outside, "203.0.113.9", "10.0.0.9", 1), true},
		{"IPv6", "127.0.0.1", "", "", strings.Replace(outside, "203.0.113.9", "IPv6:2001:db8::9", 1), false},
		{"unknown client", "127.0.0.1", "", "", strings.Replace(outside, "203.0.113.9", "unknown", 1), false},
		{"internationalised", "127.0.0.1", "", "", strings.Replace(outside, "ESMTPS", "UTF8SMTPS", 1), false},
		{"LMTP", "127.0.0.1", "", "", strings.Replace(outside, "ESMTPS", "LMTP", 1), false},
	} {
		b := newCheck(t, func(c *Config) {
			c.Networks = append(c.Networks, netip.MustParsePrefix("10.0.0.0/8"))
			c.Chains = []string{"submission"}
		}, "rsa0")
		req := login()
		req.SASL.Username, req.JudgedBy, req.Client.Addr = tt.login, tt.chain, netip.Addr{}
		if tt.client != "" {
			req.Client.Addr = netip.MustParseAddr(tt.client)
		}
		if v, _ := b.show(req, tt.received+letter); (v.Reason == reasonSigned) != tt.signed {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
}

func TestWhoseDomain(t *testing.T) {
	for _, tt := range []struct {
		name, header string
		by           string
		sub          bool
		domain       string // d=, "" for no signature
		reason       string
	}{
		{"the domain", "From: ann@EXAMPLE.org", "", true, "example.org", reasonSigned},
		{"below it", "From: ann@a.b.example.org", "", true, "example.org", reasonSigned},
		{"below it, not wanted", "From: ann@a.b.example.org", "", false, "", reasonNotOurs},
		{"the tail of a name", "From: ann@worseexample.org", "", true, "", reasonNotOurs},
		{"another", "From: ann@example.net", "", true, "", reasonNotOurs},
		{"its own section", "From: ann@x.sub.example.org", "", true, "sub.example.org", reasonSigned},
		{"two addresses", "From: ann@example.org, bob@example.org", "", true, "", reasonNoAuthor},
		{"two fields", "From: ann@example.org\r\nFrom: bob@example.org", "", true, "", reasonNoAuthor},
		{"no field", "Subject: x", "", true, "", reasonNoAuthor},
		{"no domain", "From: ann", "", true, "", reasonNoAuthor},
		{"two addresses, a sender", "From: ann@example.org, bob@example.net\r\nSender: ann@example.org", "", true, "", reasonNoAuthor},
		{"by sender", "From: ann@example.org, bob@example.net\r\nSender: ann@example.org", bySender, true, "example.org", reasonSigned},
		{"by sender, none", "From: ann@example.org", bySender, true, "example.org", reasonSigned},
		{"by sender, another", "From: ann@example.org\r\nSender: bob@example.net", bySender, true, "", reasonNotOurs},
		{"by sender, two", "From: ann@example.org\r\nSender: bob@example.org\r\nSender: bob@example.org", bySender, true, "", reasonNoAuthor},
	} {
		b := newCheck(t, func(c *Config) {
			if tt.by != "" {
				c.By = tt.by
			}
			c.Subdomains = tt.sub
			c.Domains = append(c.Domains, DomainConfig{Domain: "sub.example.org", Keys: c.Domains[0].Keys})
		}, "ed0")
		v, signed := b.show(login(), tt.header+"\r\n\r\nx\r\n")
		if v.Reason != tt.reason || strings.Contains(signed, "d="+tt.domain+";") != (tt.domain != "") {
			t.Errorf("%s: %+v\n%s", tt.name, v, signed)
		}
		if n := b.logs.FilterMessage("not signed").Len(); (n > 0) != (tt.reason == reasonNoAuthor) {
			t.Errorf("%s: %d lines in the log", tt.name, n)
		}
	}
}

// fail has the zone answer nothing, or answer again.
func (z *zone) fail(on bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.broken = on
}

func BenchmarkSign(b *testing.B) {
	for _, kind := range []string{"rsa0", "ed0"} {
		b.Run(kind, func(b *testing.B) {
			k := &key{domain: "example.org", selector: "s", signer: keysOnce()[kind]}
			if err := k.describe(); err != nil {
				b.Fatal(err)
			}
			c := &Check{cfg: DefaultConfig()}
			fields, _ := fieldsOf(letter)
			header, _ := join(fields)
			all := dkimsig.NewFields(header)
			names := c.signedNames(fields)
			u := &use{key: k, domain: "example.org"}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.signature(u, all, names, [32]byte{}, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What cannot be signed is not, and says why.
func TestNotSigned(t *testing.T) {
	b := newCheck(t, nil, "ed0")
	if v, _ := b.show(login(), "From: ann@example.org\r\nX-Large: "+strings.Repeat("x", maxHeader)+"\r\n\r\n"); v.Reason != reasonHeader || v.Detail != "the header is too large" {
		t.Errorf("%+v", v)
	}
	in := b.Inspect(login(), nil)
	in.Header(policy.Field{Name: "From", Value: " ann@example.org"})
	in.Header(policy.Field{Name: "Subject", Value: " a\nFrom: bank@example.org"})
	in.EndOfHeaders()
	if j, err := in.(policy.Finisher).Finish(t.Context(), nil); err != nil || j.Verdict.Reason != reasonHeader || len(j.Edits) > 0 {
		t.Errorf("%+v %v", j, err)
	}
	hidden := login()
	hidden.BodyHidden = true
	in = b.Inspect(hidden, nil)
	in.Header(policy.Field{Name: "From", Value: " ann@example.org"})
	in.EndOfHeaders()
	if _, err := in.(policy.Finisher).Finish(t.Context(), nil); !errors.Is(err, errHidden) {
		t.Errorf("%v", err)
	}
	late, cancel := context.WithCancel(t.Context())
	cancel()
	in = b.Inspect(login(), nil)
	in.Header(policy.Field{Name: "From", Value: " ann@example.org"})
	in.EndOfHeaders()
	if _, err := in.(policy.Finisher).Finish(late, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// However many fields there are, names in h= are bounded.
func TestManyFields(t *testing.T) {
	var text strings.Builder
	text.WriteString("From: ann@example.org\r\n")
	for i := range 3000 {
		fmt.Fprintf(&text, "List-X%d: a\r\n", i)
	}
	b := newCheck(t, func(c *Config) { c.Headers = append([]string{"Content-Type"}, c.Headers...) }, "ed0")
	_, signed := b.show(login(), text.String()+"Content-Type: text/plain\r\nContent-Language: de\r\n\r\n")
	b.verify(signed, 1)
	if n := strings.Count(signed, "Content-Type"); n != 2 {
		t.Errorf("%d times", n)
	}
}
