package dkimverify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/internal/dkimsig"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// key is a signing key with its record.
type key struct {
	file   string // PEM
	bare   string // the same without its first and last line
	record string
}

func newKey(t *testing.T, bits int) key {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	k := key{filepath.Join(t.TempDir(), "key.pem"), "", "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(public)}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})
	k.bare = k.file + ".bare"
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for path, content := range map[string]string{k.file: string(text), k.bare: strings.Join(lines[1:len(lines)-1], "\n") + "\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// verify shows a message, body in small pieces.
func verify(t *testing.T, message string, o Options) []Signature {
	t.Helper()
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	var h Header
	for line := range strings.SplitSeq(strings.NewReplacer("\r\n ", "\n ", "\r\n\t", "\n\t").Replace(header), "\r\n") {
		name, value, _ := strings.Cut(line, ":")
		h.Add(name, value)
	}
	if h.Hostile() != "" {
		t.Fatal(h.Hostile())
	}
	m := Start(h.Take(), o)
	for body != "" {
		n := min(11, len(body))
		m.Write([]byte(body[:n]))
		body = body[n:]
	}
	found, err := m.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func options(record string) Options {
	return Options{Limit: time.Minute, Most: 5, LookupTXT: func(_ context.Context, name string) ([]string, error) {
		if name != "sel._domainkey.example.org" {
			return nil, nil
		}
		return []string{record}, nil
	}}
}

// Messages as mail programs write them, and as they should not.
var messages = map[string]string{
	"plain":              "From: Ann <ann@example.org>\r\nTo: bob@example.com\r\nSubject: hello\r\nDate: Fri, 27 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@example.org>\r\n\r\nHello Bob,\r\nhow are you?\r\n",
	"folded":             "From: Ann\r\n\t<ann@example.org>\r\nSubject:\r\n folded at once\r\n\tand   again \r\nTo: bob@example.com\r\nDate: Fri, 27 Nov 2026 10:00:00 +0000\r\n\r\nx\r\n",
	"white space":        "From:ann@example.org\r\nSubject:   spaces   \t inside  \r\nTo: bob@example.com\r\n\r\n trailing  \t \r\n\r\n  two   words\r\n\r\n\r\n",
	"8-bit":              "From: ann@example.org\r\nSubject: gr\xfc\xdfe\r\nTo: bob@example.com\r\n\r\nz\xc3\xbcrich \xff\r\n",
	"dot lines":          "From: ann@example.org\r\nTo: bob@example.com\r\n\r\n.\r\n..\r\n.end\r\n",
	"no body":            "From: ann@example.org\r\nTo: bob@example.com\r\nSubject: empty\r\n\r\n",
	"empty field":        "From: ann@example.org\r\nTo: bob@example.com\r\nSubject:\r\n\r\nx\r\n",
	"fields of one name": "From: ann@example.org\r\nTo: bob@example.com\r\nto: eve@example.com\r\nTO: mallory@example.com\r\n\r\nx\r\n",
}

// Signatures that other programs make are valid, and are not when something was
// changed.
func TestSignedByOthers(t *testing.T) {
	k := newKey(t, 2048)
	signers := map[string][]string{
		"dkimpy relaxed/relaxed":     {"dkimsign", "--hcanon", "relaxed", "--bcanon", "relaxed", "sel", "example.org", k.file},
		"dkimpy simple/simple":       {"dkimsign", "--hcanon", "simple", "--bcanon", "simple", "sel", "example.org", k.file},
		"dkimpy relaxed/simple":      {"dkimsign", "--hcanon", "relaxed", "--bcanon", "simple", "sel", "example.org", k.file},
		"Mail::DKIM simple/relaxed":  {"dkimproxy-sign", "--binary", "--method", "simple/relaxed", "--selector", "sel", "--domain", "example.org", "--key", k.bare},
		"Mail::DKIM relaxed/relaxed": {"dkimproxy-sign", "--binary", "--method", "relaxed/relaxed", "--selector", "sel", "--domain", "example.org", "--key", k.bare},
	}
	for name, command := range signers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(command[0]); err != nil {
				if os.Getenv("CI") == "true" {
					t.Fatal(err)
				}
				t.Skip(command[0], "is not installed (make deps installs it)")
			}
			for kind, message := range messages {
				cmd := exec.Command(command[0], command[1:]...)
				cmd.Stdin = strings.NewReader(message)
				var out, errors bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &errors
				if err := cmd.Run(); err != nil {
					t.Errorf("%s: %v %s", kind, err, errors.String())
					continue
				}
				// Some print the field with bare line feeds, and some the field alone.
				signed := strings.ReplaceAll(strings.ReplaceAll(out.String(), "\r\n", "\n"), "\n", "\r\n")
				if !strings.Contains(signed, "\r\n\r\n") {
					signed = strings.TrimRight(signed, "\r\n") + "\r\n" + message
				}
				if found := verify(t, signed, options(k.record)); len(found) != 1 || found[0].Result != Pass || found[0].Domain != "example.org" || found[0].Selector != "sel" || found[0].Algorithm != "rsa-sha256" || len(found[0].Prefix) != 8 {
					t.Errorf("%s: %+v\n%s", kind, found, signed)
				}
				for what, changed := range map[string]string{
					"another author": strings.Replace(signed, "ann@example.org", "eve@example.org", 1),
					"more text":      signed + "more\r\n",
				} {
					if found := verify(t, changed, options(k.record)); len(found) != 1 || found[0].Result != Fail {
						t.Errorf("%s, %s: %+v", kind, what, found)
					}
				}
			}
		})
	}
}

// Records and signatures that are no good.
func TestResults(t *testing.T) {
	good, short := newKey(t, 2048), newKey(t, 1024)
	const field = "DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=sel; h=From; bh=frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY=; b=AAAA"
	message := func(field string) string { return field + "\r\nFrom: ann@example.org\r\n\r\n" }
	for _, tt := range []struct {
		name, field, record string
		result, reason      string
	}{
		{"a signature of nothing", field, good.record, Fail, "the signature is not that of the message"},
		{"another body", strings.Replace(field, "bh=f", "bh=g", 1), good.record, Fail, "the body has been changed"},
		{"1024 bits", field, short.record, Fail, "the signature is not that of the message"},
		{"revoked", field, "v=DKIM1; p=", PermError, "the key is revoked"},
		{"no key", strings.Replace(field, "s=sel", "s=other", 1), "", PermError, "there is no key"},
		{"not a key", field, "v=DKIM1; p=AAAA", PermError, "the key record is malformed"},
		{"another record", field, "v=spf1 -all", PermError, "there is no key: it is no key record"},
		{"SHA-1", strings.Replace(field, "sha256", "sha1", 1), good.record, PermError, "SHA-1 is too weak"},
		{"From is not signed", strings.Replace(field, "h=From", "h=To", 1), good.record, PermError, "From is not signed"},
		{"fields without end", strings.Replace(field, "h=From", "h=From"+strings.Repeat(":x", maxSigned), 1), good.record, PermError, "too many fields are signed"},
		{"a domain that is none", strings.Replace(field, "d=example.org", "d=example.org(.example.net", 1), good.record, PermError, "the domain is none"},
		{"another's identity", field + "; i=ann@example.com", good.record, PermError, "the identity (i=) is not of the domain (d=)"},
		{"no tags", "DKIM-Signature: x", good.record, PermError, ""},
		{"no version", strings.Replace(field, "v=1;", "", 1), good.record, PermError, "the version (v=) is not 1"},
	} {
		found := verify(t, message(tt.field), options(tt.record))
		if len(found) != 1 || found[0].Result != tt.result || !strings.HasPrefix(found[0].Reason, tt.reason) || found[0].Reason == "" {
			t.Errorf("%s: %+v", tt.name, found)
		}
	}
	o := options(good.record)
	o.Now = time.Unix(1_800_000_000, 0)
	for tags, want := range map[string]Signature{
		"; x=1799999999":               {Result: PermError, Reason: "it has expired"},
		"; x=1800000000":               {Result: Fail, Reason: "the signature is not that of the message"}, // not yet
		"; x=1800000001":               {Result: Fail, Reason: "the signature is not that of the message"},
		"; t=1700000000; x=1700000000": {Result: PermError, Reason: "it has expired before it was made"},
		"; t=1800003601":               {Result: Policy, Reason: "signed in the future"},
		"; t=1800003600":               {Result: Fail, Reason: "the signature is not that of the message"},
		"; t=soon":                     {Result: PermError, Reason: "t= is no number"},
		"; x=1e9":                      {Result: PermError, Reason: "x= is no number"},
		"; l=-1":                       {Result: PermError, Reason: "l= is no number"},
		"; q=dns/other":                {Result: PermError, Reason: "the key is not in the DNS (q=)"},
		"; c=other":                    {Result: PermError, Reason: "unknown canonicalization"},
		"; c=relaxed/other":            {Result: PermError, Reason: "unknown canonicalization"},
		"; d=example.com":              {Result: PermError, Reason: "the tag d= stands twice"},
	} {
		if found := verify(t, message(field+tags), o); found[0].Result != want.Result || found[0].Reason != want.Reason {
			t.Errorf("%s: %+v", tags, found)
		}
	}
	o = options("")
	o.LookupTXT = func(context.Context, string) ([]string, error) { return nil, errors.New("no answer") }
	if found := verify(t, message(field), o); found[0].Result != TempError || found[0].Reason != "the key cannot be asked for: no answer" {
		t.Errorf("without DNS: %+v", found)
	}
	o = options(good.record)
	o.Most = 2
	if found := verify(t, strings.Repeat(field+"\r\n", 3)+message(field), o); len(found) != 2 {
		t.Errorf("%d of 4 signatures, 2 are looked at", len(found))
	}
}

func TestHeader(t *testing.T) {
	for value, hostile := range map[string]bool{" a": false, " a\n b": false, " a\n\tb\n c": false, " a\nb": true, " a\n": true, " a\n\n b": true} {
		var h Header
		h.Add("X", value)
		if (h.Hostile() != "") != hostile {
			t.Errorf("%q: %q", value, h.Hostile())
		}
	}
	var h Header
	h.Add("From", " a\n b")
	if got := h.Take(); got != "From: a\r\n b\r\n" || h.Take() != "" {
		t.Errorf("%q", got)
	}
	for range 20 {
		h.Add("X", strings.Repeat("x", 60_000))
	}
	if h.Hostile() == "" {
		t.Error("a header of more than a megabyte")
	}
}

// signed is a message with a signature of our own making.
func signed(t testing.TB, k crypto.Signer, message, tags string) string {
	t.Helper()
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	list, err := dkimsig.ParseTags(tags)
	if err != nil {
		t.Fatal(err)
	}
	h, b, err := dkimsig.ParseCanon(list.Bare("c"))
	if err != nil {
		t.Fatal(err)
	}
	limit, err := list.Number("l")
	if err != nil {
		t.Fatal(err)
	}
	sum := dkimsig.NewBody(b, limit)
	sum.Write([]byte(body))
	hash := sum.Sum()
	field := "DKIM-Signature: " + tags + "; bh=" + base64.StdEncoding.EncodeToString(hash[:]) + "; b="
	fields := dkimsig.NewFields(header + "\r\n")
	sig, err := dkimsig.Sign(k, fields.Hash(list.List("h"), h, dkimsig.Field(field+"\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	return field + base64.StdEncoding.EncodeToString(sig) + "\r\n" + message
}

// What the body length leaves out does not count, unless somebody says so.
func TestBodyLength(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o := options("v=DKIM1; k=ed25519; t=y; p=" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey)))
	const base = "v=1; a=ed25519-sha256; d=example.org; s=sel; h=From; l="
	message := "From: ann@example.org\r\n\r\nHello\r\n"
	for _, tt := range []struct {
		length, more    string
		partial         bool
		result, comment string
	}{
		{"7", "", false, Pass, "the domain tests its keys"},
		{"7", "more\r\n", false, Policy, "only a part of the body is signed (l=)"},
		{"7", "more\r\n", true, Pass, "only a part of the body is signed (l=)"},
		{"5", "", false, Policy, "only a part of the body is signed (l=)"},
		{"0", "", true, Pass, "only a part of the body is signed (l=)"},
		{"8", "", true, Fail, "the body is shorter than what was signed (l=)"},
		{"99999999999999999999999", "", true, Fail, "the body is shorter than what was signed (l=)"},
	} {
		o.Partial = tt.partial
		found := verify(t, signed(t, private, message, base+tt.length)+tt.more, o)
		if len(found) != 1 || found[0].Result != tt.result || found[0].Reason != tt.comment {
			t.Errorf("l=%s %q: %+v", tt.length, tt.more, found)
		}
	}
}

// What a key record says of its key.
func TestKeyRecords(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := "p=" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
	const tags = "v=1; a=ed25519-sha256; d=example.org; s=sel; h=From"
	short := newKey(t, 1024)
	for _, tt := range []struct {
		tags    string
		records []string
		result  string
		reason  string
	}{
		{tags, []string{"k=ed25519; " + p}, Pass, ""},
		{tags, []string{"v=spf1 -all", "v=DKIM1; k=ed25519; p=", short.record, "v=DKIM1; k=ed25519; " + p}, Pass, ""},
		{tags, []string{short.record, short.record, short.record, "v=DKIM1; k=ed25519; " + p}, PermError, "the key is of another kind than the signature"},
		{tags, []string{"v=DKIM1; k=ed25519; h=sha1; " + p}, PermError, "the key is not for SHA-256 (h=)"},
		{tags, []string{"v=DKIM1; k=ed25519; h=sha1 : sha256; " + p}, Pass, ""},
		{tags, []string{"v=DKIM1; k=ed25519; s=tlsrpt; " + p}, PermError, "the key is not for mail (s=)"},
		{tags, []string{"v=DKIM1; k=ed25519; s=tlsrpt:email; " + p}, Pass, ""},
		{tags, []string{"v=DKIM1; k=ed448; " + p}, PermError, "the key is of an unknown kind (k=)"},
		{tags, []string{"v=DKIM1; k=rsa; " + p}, PermError, "the key record is malformed: p= is no RSA key"},
		{tags, []string{"k=ed25519; v=DKIM1; " + p}, PermError, "there is no key: it is no key record: v= is not DKIM1"},
		{tags + "; i=x@mail.example.org", []string{"k=ed25519; " + p}, Pass, ""},
		{tags + "; i=x@mail.example.org", []string{"k=ed25519; t=y:s; " + p}, PermError, "the key is not for sub-domains (t=s)"},
		{tags + "; i=x@EXAMPLE.org", []string{"k=ed25519; t=s; " + p}, Pass, ""},
		{tags + "; i=x@notexample.org", []string{"k=ed25519; " + p}, PermError, "the identity (i=) is not of the domain (d=)"},
	} {
		o := options("")
		o.LookupTXT = func(context.Context, string) ([]string, error) { return tt.records, nil }
		found := verify(t, signed(t, private, "From: ann@example.org\r\n\r\nHello\r\n", tt.tags), o)
		if len(found) != 1 || found[0].Result != tt.result || found[0].Reason != tt.reason {
			t.Errorf("%s %s: %s %q", tt.tags, tt.records, found[0].Result, found[0].Reason)
		}
	}
	o := options(short.record)
	o.MinBits = 2048
	block, _ := pem.Decode([]byte(mustRead(t, short.file)))
	rsaKey, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	message := signed(t, rsaKey, "From: ann@example.org\r\n\r\nHello\r\n", "v=1; a=rsa-sha256; d=example.org; s=sel; h=From")
	if found := verify(t, message, o); found[0].Result != Policy || found[0].Reason != "the RSA key has 1024 bits, 2048 are wanted" {
		t.Errorf("%+v", found)
	}
	o.MinBits = 0
	if found := verify(t, message, o); found[0].Result != Pass || found[0].Bits != 1024 {
		t.Errorf("%+v", found)
	}
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The examples of RFC 6376 appendix A and RFC 8463 appendix A.
func TestExamplesOfTheRFCs(t *testing.T) {
	const letter = `From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game. Are you hungry yet?

Joe.
`
	const rfc6376 = `DKIM-Signature: v=1; a=rsa-sha256; s=brisbane; d=example.com;
      c=simple/simple; q=dns/txt; i=joe@football.example.com;
      h=Received : From : To : Subject : Date : Message-ID;
      bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
      b=AuUoFEfDxTDkHlLXSZEpZj79LICEps6eda7W3deTVFOk4yAUoqOB
      4nujc7YopdG5dWLSdNg6xNAZpOPr+kHxt1IrE+NahM6L/LbvaHut
      KVdkLLkpVaVVQPzeRDI009SO2Il5Lu7rDNH6mZckBdrIx0orEtZV
      4bmp/YzhwvcubU4=;
Received: from client1.football.example.com  [192.0.2.1]
      by submitserver.example.com with SUBMISSION;
      Fri, 11 Jul 2003 21:01:54 -0700 (PDT)
`
	const rfc8463 = `DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
`
	keys := map[string]string{
		"brisbane._domainkey.example.com": "v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYt" +
			"IxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhitdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB",
		"brisbane._domainkey.football.example.com": "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
		"test._domainkey.football.example.com": "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/by" +
			"YzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB",
	}
	o := options("")
	o.LookupTXT = func(_ context.Context, name string) ([]string, error) { return []string{keys[name]}, nil }
	o.Now = time.Unix(1528637909, 0)
	crlf := strings.NewReplacer("\n", "\r\n").Replace
	for name, message := range map[string]string{"RFC 6376": rfc6376 + letter, "RFC 8463": rfc8463 + letter} {
		found := verify(t, crlf(message), o)
		if len(found) != strings.Count(message, "DKIM-Signature") {
			t.Errorf("%s: %d signatures", name, len(found))
		}
		for _, s := range found {
			if s.Result != Pass {
				t.Errorf("%s: %+v", name, s)
			}
		}
		for _, s := range verify(t, crlf(strings.Replace(message, "lost", "won", 1)), o) {
			if s.Result != Fail {
				t.Errorf("%s, changed: %+v", name, s)
			}
		}
	}
}

// One name is asked for once, and of a message's names only so many.
func TestKeysAreAskedOnce(t *testing.T) {
	const field = "DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=%d; h=From; bh=AAAA; b=AAAA\r\n"
	var asked atomic.Int64
	o := Options{Limit: time.Minute, Most: 1000, LookupTXT: func(context.Context, string) ([]string, error) {
		asked.Add(1)
		return nil, nil
	}}
	message := strings.Repeat(fmt.Sprintf(field, 1), 10) + "From: x\r\n\r\n"
	if verify(t, message, o); asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
	asked.Store(0)
	message = "From: x\r\n\r\n"
	for i := range 1000 {
		message = fmt.Sprintf(field, i) + message
	}
	if found := verify(t, message, o); asked.Load() != maxNames || len(found) != 1000 || found[999].Result != TempError {
		t.Errorf("asked %d times", asked.Load())
	}
}

// However a message is made, it ends with as many signatures as are looked at.
func FuzzMessage(f *testing.F) {
	f.Add("DKIM-Signature: v=1; d=a; s=b\r\n b=c\r\nFrom: x\r\n", "body")
	f.Add("dkim-signature :\r\n\t;;=;b=aaaaaaaaaaaa;l\r\n\r\n", "\r\n \r")
	f.Add("ARC-Seal: i=1; a=rsa-sha256; cv=none; d=a; s=b; b=AAAA\r\nARC-Message-Signature: i=1; a=rsa-sha256; d=a; s=b; h=from; bh=AAAA; b=AAAA\r\nARC-Authentication-Results: i=1; x; none\r\n", "")
	f.Fuzz(func(t *testing.T, header, text string) {
		m := Start(header, Options{Limit: time.Second, Most: 3, ARC: true, LookupTXT: func(_ context.Context, name string) ([]string, error) {
			return []string{text, name}, nil
		}})
		m.Write([]byte(text))
		found, err := m.Wait(t.Context())
		if err != nil || len(found) > 3 {
			t.Fatal(found, err)
		}
		for _, s := range found {
			if len(s.Prefix) > 8 || strings.ContainsAny(s.Domain+s.Selector+s.Algorithm, " \t\r\n;") || s.Result == "" || s.Reason == "" {
				t.Fatalf("%q: %+v", header, s)
			}
		}
		if c := m.Chain(); c.Result == Pass || len(c.Sets) > MaxSets || (c.Result == None) != (c.Reason == "") {
			t.Fatalf("%+v", c)
		}
	})
}

// A letter of 10 kB with one signature by RSA with 2048 bits, beside the bare
// cryptography that it takes: a hash of the body and one public-key operation.
func BenchmarkVerify(b *testing.B) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		b.Fatal(err)
	}
	record := []string{"v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(public)}
	body := strings.Repeat("Dear Bob, this is a line as they stand in letters of this kind.\r\n", 150)
	header := "Received: from client.example.org (client.example.org [192.0.2.7])\r\n\tby mx.example.org (Postfix) with ESMTPS id 4F1\r\n\tfor <bob@example.com>; Fri, 27 Nov 2026 10:00:00 +0000\r\n" +
		"From: Ann <ann@example.org>\r\nTo: Bob <bob@example.com>\r\nSubject: a letter\r\nDate: Fri, 27 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@example.org>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n"
	message := signed(b, private, header+"\r\n"+body, "v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=sel; h=From:To:Subject:Date:Message-ID:MIME-Version:Content-Type:From")
	header, _, _ = strings.Cut(message, "\r\n\r\n")
	header += "\r\n"
	o := Options{Limit: time.Minute, Most: 8, ARC: true, LookupTXT: func(context.Context, string) ([]string, error) { return record, nil }}
	b.Run("message", func(b *testing.B) {
		b.ReportAllocs()
		chunk := []byte(body)
		for b.Loop() {
			m := Start(header, o)
			m.Write(chunk)
			if found, err := m.Wait(b.Context()); err != nil || found[0].Result != Pass {
				b.Fatal(found, err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		sum := sha256.Sum256([]byte(body))
		sig, err := dkimsig.Sign(private, sum)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if sha256.Sum256([]byte(body)) != sum || rsa.VerifyPKCS1v15(&private.PublicKey, crypto.SHA256, sum[:], sig) != nil {
				b.Fatal("not valid")
			}
		}
	})
}

// What a stranger sends, and what the DNS says, costs no more than it may.
func TestHostileMail(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
	const tags = "v=1; a=ed25519-sha256; d=example.org; s=sel; h=From"
	plain := signed(t, private, "From: ann@example.org\r\n\r\nHello\r\n", tags)
	flood := make([]string, 1000)
	for i := range flood {
		flood[i] = "v=DKIM1; p=" + base64.StdEncoding.EncodeToString(make([]byte, 48_000))
	}
	for name, tt := range map[string]struct {
		message string
		records []string
		found   int
		result  string // of the last one looked at
	}{
		"a thousand signatures":   {strings.Repeat(plain[:strings.Index(plain, "From: ")], 1000) + plain, []string{good}, 8, Pass},
		"keys of 64 kB":           {plain, flood, 1, PermError},
		"a flood, and the key":    {plain, append(slices.Clone(flood), good), 1, PermError},
		"texts that are no keys":  {plain, append(slices.Repeat([]string{strings.Repeat("x", 60_000)}, 1000), good), 1, Pass},
		"tags without end":        {"DKIM-Signature: " + strings.Repeat("a=b;", 100_000) + "\r\n" + plain, []string{good}, 2, Pass},
		"folds without end":       {"DKIM-Signature: v=1;" + strings.Repeat("\r\n ", 100_000) + "a=\r\n" + plain, []string{good}, 2, Pass},
		"white space in the data": {strings.Replace(plain, "; bh=", "; bh="+strings.Repeat(" \r\n\t", 50_000), 1), []string{good}, 1, Fail},
		"fields without end":      {strings.Repeat("From: x\r\n", 50_000) + plain, []string{good}, 1, Pass},
		"a key that lies":         {plain, []string{"v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString([]byte(plain))}, 1, PermError},
	} {
		asked := 0
		o := Options{Limit: time.Minute, Most: 8, ARC: true, LookupTXT: func(context.Context, string) ([]string, error) {
			asked++
			return tt.records, nil
		}}
		header, body, _ := strings.Cut(tt.message, "\r\n\r\n")
		m := Start(header+"\r\n", o)
		m.Write([]byte(body))
		found, err := m.Wait(t.Context())
		if err != nil || len(found) != tt.found || found[tt.found-1].Result != tt.result || asked > 1 {
			t.Errorf("%s: %d signatures, asked %d times, %+.300v %v", name, len(found), asked, found[len(found)-1], err)
		}
	}

	// A body of any size is not kept.
	m := Start(strings.Replace(plain, "\r\n\r\nHello\r\n", "\r\n", 1), options(good))
	chunk := []byte(strings.Repeat(strings.Repeat("long lines ", 90)+"\r\n", 60))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 2000 {
		m.Write(chunk)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes for a body of %d", n, 2000*len(chunk))
	}
}
