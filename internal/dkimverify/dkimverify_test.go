package dkimverify

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
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
	for field := range fields(header + "\r\n") {
		name, value, _ := strings.Cut(strings.TrimSuffix(field, "\r\n"), ":")
		h.Add(name, strings.ReplaceAll(value, "\r\n", "\n"))
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
		{"a signature of nothing", field, good.record, Fail, "signature did not verify"},
		{"another body", strings.Replace(field, "bh=f", "bh=g", 1), good.record, Fail, "body hash did not verify"},
		{"1024 bits", field, short.record, Fail, "signature did not verify"},
		{"revoked", field, "v=DKIM1; p=", PermError, "key revoked"},
		{"no key", strings.Replace(field, "s=sel", "s=other", 1), "", PermError, "no key for signature"},
		{"not a key", field, "v=DKIM1; p=AAAA", PermError, "key syntax error"},
		{"another record", field, "v=spf1 -all", PermError, ""},
		{"SHA-1", strings.Replace(field, "sha256", "sha1", 1), good.record, PermError, "hash algorithm too weak: sha1"},
		{"From is not signed", strings.Replace(field, "h=From", "h=To", 1), good.record, PermError, "From field not signed"},
		{"expired", field + "; x=1000000000", good.record, PermError, "signature has expired"},
		{"another's identity", field + "; i=ann@example.com", good.record, PermError, "domain mismatch"},
		{"a body length", field + "; l=0", good.record, Policy, "only a part of the body is signed (l=)"},
		{"no tags", "DKIM-Signature: x", good.record, PermError, ""},
		{"no version", strings.Replace(field, "v=1;", "", 1), good.record, PermError, "incompatible signature version"},
	} {
		found := verify(t, message(tt.field), options(tt.record))
		if len(found) != 1 || found[0].Result != tt.result || !strings.HasPrefix(found[0].Reason, tt.reason) || found[0].Reason == "" {
			t.Errorf("%s: %+v", tt.name, found)
		}
	}
	o := options("")
	o.LookupTXT = func(context.Context, string) ([]string, error) { return nil, errors.New("no answer") }
	if found := verify(t, message(field), o); found[0].Result != TempError || found[0].Reason != "key unavailable: lookup sel._domainkey.example.org: no answer" {
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

// However a header is made, what is described are its signatures, and it ends.
func FuzzDescribed(f *testing.F) {
	f.Add("DKIM-Signature: v=1; d=a; s=b\r\n b=c\r\nFrom: x\r\n")
	f.Add("dkim-signature :\r\n\t;;=;b=aaaaaaaaaaaa;l\r\n\r\n")
	f.Fuzz(func(t *testing.T, header string) {
		for _, s := range described(header, 3) {
			if len(s.Prefix) > 8 || strings.ContainsAny(s.Domain+s.Selector+s.Algorithm, " \t\r\n;") {
				t.Fatalf("%q: %+v", header, s)
			}
		}
		if n := len(described(header, 3)); n > 3 {
			t.Fatalf("%d signatures", n)
		}
	})
}
