package dkimverify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"postern/internal/dkimsig"
)

// sealer makes sets of our own.
type sealer struct {
	keys map[string]crypto.Signer
}

func (s *sealer) key(domain string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte(domain), ed25519.SeedSize)[:ed25519.SeedSize])
}

func (s *sealer) options() Options {
	return Options{Limit: time.Minute, ARC: true, Now: time.Unix(1_800_000_000, 0), LookupTXT: func(_ context.Context, name string) ([]string, error) {
		domain, ok := strings.CutPrefix(name, "sel._domainkey.")
		switch {
		case !ok:
			return nil, nil
		case strings.HasPrefix(domain, "down."):
			return nil, errors.New("no answer")
		}
		return []string{"v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(s.key(domain).Public().(ed25519.PublicKey))}, nil
	}}
}

// set puts a set on top of a message.
func (s *sealer) set(t *testing.T, message, domain string, n int, cv string) string {
	t.Helper()
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	sum := dkimsig.NewBody(dkimsig.Relaxed, -1)
	sum.Write([]byte(body))
	hash := sum.Sum()
	fields := dkimsig.NewFields(header + "\r\n")
	sign := func(hash [32]byte) string {
		sig, err := dkimsig.Sign(s.key(domain), hash)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(sig)
	}
	results := fmt.Sprintf("ARC-Authentication-Results: i=%d; %s; dmarc=pass header.from=example.org\r\n", n, domain)
	ams := fmt.Sprintf("ARC-Message-Signature: i=%d; a=ed25519-sha256; c=relaxed/relaxed; d=%s; s=sel; h=From:Subject; bh=%s;\r\n\tb=", n, domain, base64.StdEncoding.EncodeToString(hash[:]))
	ams += sign(fields.Hash([]string{"From", "Subject"}, dkimsig.Relaxed, dkimsig.Field(ams+"\r\n"))) + "\r\n"
	var sealed []dkimsig.Field
	for i := 1; i < n; i++ {
		for _, name := range []string{"ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal"} {
			for _, f := range fields.Named(name) {
				if strings.Contains(string(f), fmt.Sprintf("i=%d;", i)) {
					sealed = append(sealed, f)
				}
			}
		}
	}
	seal := fmt.Sprintf("ARC-Seal: i=%d; a=ed25519-sha256; cv=%s; d=%s; s=sel; b=", n, cv, domain)
	seal += sign(dkimsig.HashSeal(append(sealed, dkimsig.Field(results), dkimsig.Field(ams)), dkimsig.Field(seal+"\r\n"))) + "\r\n"
	return seal + ams + results + message
}

func chainOf(t *testing.T, message string, o Options) Chain {
	t.Helper()
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	m := Start(header+"\r\n", o)
	m.Write([]byte(body))
	if _, err := m.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m.Chain()
}

const letter = "From: ann@example.org\r\nTo: list@lists.example\r\nSubject: hello\r\n\r\nHello\r\n"

func TestChains(t *testing.T) {
	var s sealer
	one := s.set(t, letter, "lists.example", 1, "none")
	footer := func(m string) string { return m + "-- \r\nthe list\r\n" }
	two := s.set(t, footer(one), "forward.example", 2, "pass")
	three := s.set(t, strings.Replace(two, "Subject: hello", "Subject: [x] hello", 1), "third.example", 3, "pass")
	many := letter
	for n := 1; n <= 51; n++ {
		many = s.set(t, many, "many.example", n, map[bool]string{true: "none", false: "pass"}[n == 1])
	}
	_, fifty, _ := strings.Cut(many, "ARC-Seal: i=50;")
	for _, tt := range []struct {
		name, message  string
		result, reason string
		sets           int
	}{
		{"none", letter, None, "", 0},
		{"one", one, Pass, "", 1},
		{"two, the body changed between", two, Pass, "", 2},
		{"three", three, Pass, "", 3},
		{"fifty", "ARC-Seal: i=50;" + fifty, Pass, "", 50},
		{"fifty-one", many, Fail, "an ARC field without a proper instance (i=)", 0},
		{"changed since", footer(two), Fail, "message signature 2: the body has been changed", 2},
		{"subject changed since", strings.Replace(two, "hello", "Hello", 1), Fail, "message signature 2: the signature is not that of the message", 2},
		{"results changed since", strings.Replace(two, "i=1; lists.example; dmarc=pass", "i=1; lists.example; dmarc=fail", 1), Fail, "seal 2: the signature is not that of the message", 2},
		{"the first seal is forged", s.set(t, strings.Replace(one, "d=lists.example; s=sel; b=", "d=other.example; s=sel; b=", 1), "forward.example", 2, "pass"), Fail, "seal 1: the signature is not that of the message", 2},
		{"cv=fail", s.set(t, one, "forward.example", 2, "fail"), Fail, "seal 2: it says that the chain was broken already (cv=fail)", 1},
		{"cv=none in the second", s.set(t, one, "forward.example", 2, "none"), Fail, "seal 2: what it says of the chain before it cannot be (cv=)", 1},
		{"cv=pass in the first", s.set(t, letter, "lists.example", 1, "pass"), Fail, "seal 1: what it says of the chain before it cannot be (cv=)", 0},
		{"the first is missing", s.set(t, letter, "forward.example", 2, "pass"), Fail, "a set is not complete", 0},
		{"a field is missing", strings.Replace(two, "ARC-Message-Signature: i=1", "X: i=1", 1), Fail, "a set is not complete", 0},
		{"a field twice", "ARC-Seal: i=1; a=x\r\n" + one, Fail, "set 1 has two ARC-Seal", 0},
		{"no instance", "ARC-Seal: a=x\r\n" + one, Fail, "an ARC field without a proper instance (i=)", 0},
		{"instance 0", "arc-seal: i=0\r\n" + one, Fail, "an ARC field without a proper instance (i=)", 0},
		{"h= in the seal", strings.Replace(one, "cv=none;", "cv=none; h=from;", 1), Fail, "seal 1: there is a h=", 0},
		{"SHA-1", strings.Replace(one, "ARC-Seal: i=1; a=ed25519-sha256", "ARC-Seal: i=1; a=rsa-sha1", 1), Fail, "seal 1: SHA-1 is too weak", 0},
		{"the seal is signed", strings.Replace(one, "h=From:Subject", "h=From:Arc-Seal", 1), Fail, "message signature 1: the seal itself is signed", 1},
		{"no key", strings.Replace(one, "d=lists.example; s=sel; b=", "d=lists.example; s=no; b=", 1), Fail, "seal 1: there is no key", 1},
		{"a key cannot be asked for", s.set(t, letter, "down.example", 1, "none"), TempError, "message signature 1: the key cannot be asked for: no answer", 1},
		{"a signer that is no domain", strings.Replace(one, "d=lists.example; s=sel; b=", "d=lists.example(.x; s=sel; b=", 1), Fail, "seal 1: the domain is none", 0},
	} {
		c := chainOf(t, tt.message, s.options())
		if c.Result != tt.result || c.Reason != tt.reason || len(c.Sets) != tt.sets {
			t.Errorf("%s: %s %q, %d sets", tt.name, c.Result, c.Reason, len(c.Sets))
		}
	}
	c := chainOf(t, two, s.options())
	if want := (Set{"forward.example", "sel", "forward.example", " forward.example; dmarc=pass header.from=example.org"}); c.Sets[1] != want || c.Sets[0].Sealer != "lists.example" {
		t.Errorf("%+v", c.Sets)
	}
	o := s.options()
	o.ARC = false
	if c := chainOf(t, footer(two), o); c.Result != None {
		t.Errorf("nobody has asked: %+v", c)
	}
}

// Chains that dkimpy has sealed are valid, and what it finds wrong is wrong here.
func TestSealedByDkimpy(t *testing.T) {
	if out, err := exec.Command("/usr/bin/python3", "-c", "import dkim").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v %s", err, out)
		}
		t.Skip("dkimpy is not installed (make deps installs it)")
	}
	k := newKey(t, 2048)
	o := options(k.record)
	o.ARC, o.Now = true, time.Now()
	const program = `
import re, sys, dkim
m = sys.stdin.buffer.read()
key, record = open(sys.argv[1], 'rb').read(), sys.argv[2].encode()
hops, change = int(sys.argv[3]), sys.argv[4].encode()
for i in range(hops):
    arc = b'none' if i == 0 else b'pass'
    m = re.sub(rb'(?m)^Authentication-Results:.*\r\n', b'', m)
    m = b'Authentication-Results: gate.example; arc=' + arc + b'; dkim=pass header.d=example.org\r\n' + m
    m = b''.join(dkim.arc_sign(m, b'sel', b'example.org', key, b'gate.example')) + m
    m += b'list %d\r\n' % i if i + 1 < hops else b''
if change:
    a, b = change.split(b'/')
    m = m.replace(a, b, 1)
cv, _, why = dkim.arc_verify(m, dnsfunc=lambda name, timeout=5: record)
sys.stderr.write((cv or b'none').decode())
sys.stdout.buffer.write(m)
`
	for kind, message := range messages {
		for hops, change := range map[string]string{"1": "", "2": "", "3": "", "1 ": "ann@/eve@", "2 ": "ann@/eve@", "3 ": "dkim=pass/dkim=fail"} {
			cmd := exec.Command("/usr/bin/python3", "-c", program, k.file, k.record, strings.TrimSpace(hops), change)
			cmd.Stdin = strings.NewReader(message)
			var out, theirs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &theirs
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v %s", err, theirs.String())
			}
			want := map[bool]string{true: Pass, false: Fail}[change == ""]
			c := chainOf(t, out.String(), o)
			if c.Result != want || theirs.String() != want {
				t.Errorf("%s, %s hops: %s %q, dkimpy says %s\n%s", kind, hops, c.Result, c.Reason, theirs.String(), out.String())
			}
		}
	}
}
