package dkim

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/conf"
	"postern/internal/dkimsig"
	"postern/policy"
)

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func TestKeyFiles(t *testing.T) {
	key := keysOnce()["rsa0"].(*rsa.PrivateKey)
	pkcs8 := func(k any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := block("PRIVATE KEY", pkcs8(key))
	for _, tt := range []struct {
		name, text string
		mode       os.FileMode
		want       string // "" for a good one
	}{
		{"PKCS#8", good, 0o600, ""},
		{"PKCS#8, read only", good, 0o400, ""},
		{"PKCS#1", block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), 0o600, ""},
		{"Ed25519", block("PRIVATE KEY", pkcs8(keysOnce()["ed0"])), 0o600, ""},
		{"behind a certificate", block("CERTIFICATE", []byte("x")) + good, 0o600, ""},
		{"another kind", block("PRIVATE KEY", pkcs8(ec)), 0o600, "the key is neither RSA nor Ed25519"},
		{"a public key", block("PUBLIC KEY", []byte("x")), 0o600, "there is no private key in it"},
		{"nothing", "", 0o600, "there is no private key in it"},
		{"not PEM", "hello\n", 0o600, "there is no private key in it"},
		{"encrypted", block("ENCRYPTED PRIVATE KEY", []byte("x")), 0o600, "the key is encrypted"},
		{"encrypted, old", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", 0o600, "the key is encrypted"},
		{"broken", block("RSA PRIVATE KEY", []byte("x")), 0o600, "it is neither PKCS#1 nor PKCS#8"},
		{"large", strings.Repeat("x", maxKeyFile+1), 0o600, "has more than"},
		{"world readable", good, 0o604, "is open to everybody on this host (mode 0604): chmod 0600"},
		{"world writable", good, 0o602, "is open to everybody"},
		{"group writable", good, 0o660, "can be changed by its group (mode 0660)"},
	} {
		path := put(t, "key", tt.text)
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		_, err := readKey(path)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	path := put(t, "key", good)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := safe(st, nil); err != nil {
		t.Errorf("as root: %v", err)
	}
	if err := safe(st, []int{os.Getegid()}); err != nil {
		t.Errorf("our group: %v", err)
	}
	if err := safe(st, []int{12345}); err == nil || !strings.Contains(err.Error(), "a group that is not the daemon's") {
		t.Errorf("another group: %v", err)
	}
	if _, err := readKey(t.TempDir()); err == nil {
		t.Error("a directory")
	}
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(path))
	if _, err := readKey("key"); err != nil {
		t.Errorf("a credential: %v", err)
	}
}

// A short RSA key is refused whoever made it.
func TestShortKeys(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip(err)
	}
	for _, form := range [][]string{{"genrsa", "-traditional", "768"}, {"genrsa", "768"}} {
		text, err := exec.Command("openssl", form...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseKey(text); err == nil || !strings.Contains(err.Error(), "1024 bits") && !strings.Contains(err.Error(), "at least 1024") {
			t.Errorf("%v: %v", form, err)
		}
	}
	text, err := exec.Command("openssl", "genrsa", "1024").Output()
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Mode = policy.Enforce
	cfg.Domains = []DomainConfig{{Domain: "example.org", Keys: []KeyConfig{{Selector: "s", File: put(t, "key", string(text))}}}}
	if w := cfg.Warnings("dkim"); len(w) != 1 || !strings.Contains(w[0].Error(), "dkim.domain[0].key[0]: the RSA key has 1024 bits") {
		t.Errorf("%v", w)
	}
}

func TestFaults(t *testing.T) {
	file := keyFile(t, "ed0")
	one := func(selector string) []KeyConfig { return []KeyConfig{{Selector: selector, File: file}} }
	date := func(s string) (d Date) {
		if err := d.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, tt := range []struct {
		name string
		set  func(*Config)
		want string
	}{
		{"by", func(c *Config) { c.By = "envelope" }, `dkim.by: unknown value "envelope" (one of from, sender)`},
		{"canonicalization", func(c *Config) { c.Canonicalization = "relaxed" }, `dkim.canonicalization: "relaxed" is not two of relaxed and simple`},
		{"canonicalization", func(c *Config) { c.Canonicalization = "nofws/simple" }, `dkim.canonicalization: "nofws/simple" is not two`},
		{"no From", func(c *Config) { c.Headers, c.Oversign = []string{"To"}, nil }, `dkim.headers: From must be signed`},
		{"Received", func(c *Config) { c.Headers = append(c.Headers, "received") }, `dkim.headers[13]: received cannot be signed: each host adds one`},
		{"twice", func(c *Config) { c.Headers = append(c.Headers, "to") }, `dkim.headers[13]: to stands there twice`},
		{"no name", func(c *Config) { c.Headers = append(c.Headers, "a b") }, `dkim.headers[13]: "a b" is no name of a header field`},
		{"asterisk", func(c *Config) { c.Headers = append(c.Headers, "*") }, `dkim.headers[13]: "*" is no name of a header field`},
		{"oversign", func(c *Config) { c.Oversign = []string{"X-Y"} }, `dkim.oversign[0]: X-Y is not among headers`},
		{"oversign by pattern", func(c *Config) { c.Oversign = []string{"Content-*"} }, `dkim.oversign[0]: "Content-*" is no name`},
		{"expire", func(c *Config) { c.Expire = 1 }, `dkim.expire: 1ns is out of range`},
		{"interval", func(c *Config) { c.CheckInterval = 0 }, `dkim.check_interval: 0s is out of range`},
		{"domain", func(c *Config) { c.Domains = []DomainConfig{{Domain: "exa mple", Keys: one("s")}} }, `dkim.domain[0].domain: "exa mple" is no domain`},
		{"domain twice", func(c *Config) {
			c.Domains = []DomainConfig{{Domain: "example.org", Keys: one("s")}, {Domain: "EXAMPLE.org.", Keys: one("t")}}
		}, `dkim.domain[1].domain: example.org stands there twice: put all keys under one`},
		{"no key", func(c *Config) { c.Domains = []DomainConfig{{Domain: "example.org"}} }, `dkim.domain[0]: example.org has no key: [[dkim.domain.key]]`},
		{"selector", func(c *Config) { c.Domains = []DomainConfig{{Domain: "example.org", Keys: one("a b")}} }, `dkim.domain[0].key[0].selector: "a b" is no selector`},
		{"selector twice", func(c *Config) {
			c.Domains = []DomainConfig{{Domain: "example.org", Keys: append(one("s"), one("S")...)}}
		}, `dkim.domain[0].key[1].selector: s stands there twice`},
		{"no file", func(c *Config) {
			c.Domains = []DomainConfig{{Domain: "example.org", Keys: []KeyConfig{{Selector: "s"}}}}
		}, "dkim.domain[0].key[0].file: no file is given: `postern dkim new example.org` makes one"},
		{"missing file", func(c *Config) {
			c.Domains = []DomainConfig{{Domain: "example.org", Keys: []KeyConfig{{Selector: "s", File: "/nonexistent"}}}}
		}, "dkim.domain[0].key[0].file: /nonexistent cannot be read: no such file or directory"},
		{"dates", func(c *Config) {
			k := one("s")
			k[0].From, k[0].To = date("2026-03-01"), date("2026-02-01")
			c.Domains = []DomainConfig{{Domain: "example.org", Keys: k}}
		}, "dkim.domain[0].key[0].to: 2026-02-01 is not after from (2026-03-01)"},
	} {
		cfg := DefaultConfig()
		tt.set(&cfg)
		var fs conf.Faults
		if cfg.Validate("dkim", &fs); len(fs) != 1 || !strings.HasPrefix(fs[0].Error(), tt.want) {
			t.Errorf("%s: %v\nwant %s", tt.name, fs, tt.want)
		}
	}
	var d Date
	for _, bad := range []string{"tomorrow", "2026-13-01", "2026-02-30", "01.03.2026"} {
		if err := d.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is a date", bad)
		}
	}
	for _, same := range []string{"", "2026-03-01", "2026-03-01T06:00:00+01:00"} {
		if got := date(same).String(); got != same {
			t.Errorf("%q: %q", same, got)
		}
	}
}

// The signature of RFC 8463 appendix A is what we make of the same field, and
// its message is one that carries our signature already.
func TestRFC8463(t *testing.T) {
	const text = "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n d=football.example.com; i=@football.example.com;\r\n q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n" +
		" subject : date : message-id : from : subject : date;\r\n bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\r\n" +
		" Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==\r\nFrom: Joe SixPack <joe@football.example.com>\r\nTo: Suzie Q <suzie@shopping.example.net>\r\nSubject: Is dinner ready?\r\n" +
		"Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\nMessage-ID: <20030712040037.46341.5F8J@football.example.com>\r\n\r\nHi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
	seed, err := base64.StdEncoding.DecodeString("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
	if err != nil {
		t.Fatal(err)
	}
	private := ed25519.NewKeyFromSeed(seed)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	b := newCheck(t, func(c *Config) {
		c.Domains = []DomainConfig{{Domain: "football.example.com", Keys: []KeyConfig{{Selector: "brisbane", File: put(t, "key", block("PRIVATE KEY", der))}}}}
	})
	if got := b.ring.keys[0].text(); got != "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=" {
		t.Errorf("the record: %s", got)
	}
	if v, _ := b.show(login(), text); v.Reason != reasonAlready {
		t.Errorf("%+v", v)
	}
	header, _, _ := strings.Cut(text, "\r\n\r\n")
	fields := dkimsig.NewFields(header + "\r\n")
	own := dkimsig.Unsigned(fields.Named("DKIM-Signature")[0])
	sig, err := dkimsig.Sign(private, fields.Hash(strings.Split("from:to:subject:date:message-id:from:subject:date", ":"), dkimsig.Relaxed, own))
	if want := "/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw=="; err != nil || base64.StdEncoding.EncodeToString(sig) != want {
		t.Errorf("%s %v", base64.StdEncoding.EncodeToString(sig), err)
	}
}

func TestMakeAndRotate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dkim")
	n := NewKey{Domain: "Example.org", Selector: "s2026a", Directory: dir, UID: -1, GID: -1}
	made, err := n.Make()
	if err != nil || made.Bits != 2048 || made.File != filepath.Join(dir, "example.org.s2026a.pem") {
		t.Fatalf("%+v %v", made, err)
	}
	if st, err := os.Stat(made.File); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	before, _ := os.ReadFile(made.File)
	if _, err := n.Make(); err == nil || !strings.Contains(err.Error(), "never replaced") {
		t.Errorf("%v", err)
	}
	if after, _ := os.ReadFile(made.File); string(after) != string(before) {
		t.Error("it has been replaced")
	}
	ed := NewKey{Domain: "example.org", Selector: "e2026a", Directory: dir, Ed25519: true, UID: -1, GID: -1}
	madeEd, err := ed.Make()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []NewKey{{Domain: "a b", Selector: "s"}, {Domain: "example.org", Selector: "../x"}, {Domain: "example.org", Selector: "s", Bits: 512}, {Domain: "../example.org", Selector: "s"}} {
		bad.Directory, bad.UID, bad.GID = dir, -1, -1
		if _, err := bad.Make(); err == nil {
			t.Errorf("%+v", bad)
		}
	}
	// Nothing of a private key is in what is shown.
	private := strings.Split(strings.TrimSpace(string(before)), "\n")
	shown, _ := json.Marshal(made)
	for _, line := range private[1 : len(private)-1] {
		if strings.Contains(string(shown)+made.Line()+made.Settings(true), line) {
			t.Fatal("the private key is shown")
		}
	}
	var joined string
	for _, s := range Strings(made.Record) {
		if joined += s; len(s) > 255 {
			t.Errorf("a string of %d octets", len(s))
		}
	}
	if joined != made.Record {
		t.Error("the strings are not the record")
	}

	cfg := DefaultConfig()
	cfg.Domains = []DomainConfig{{Domain: "example.org", Keys: []KeyConfig{{Selector: made.Selector, File: made.File}, {Selector: madeEd.Selector, File: madeEd.File}}}}
	from := time.Now().UTC().Truncate(24 * time.Hour).Add(7 * 24 * time.Hour)
	r, err := Rotate(cfg, "example.org", "", from, NewKey{UID: -1, GID: -1})
	year := from.Year()
	if err != nil || len(r.New) != 2 || r.New[0].Algorithm != "rsa" || r.New[0].File != filepath.Join(dir, "example.org."+r.New[0].Selector+".pem") ||
		!r.New[0].From.Equal(from) || !r.Old[0].To.Equal(from.Add(overlap)) || !strings.HasPrefix(r.New[1].Selector, fmt.Sprint("e", year)) {
		t.Fatalf("%+v %v", r, err)
	}
	for i := range r.New {
		cfg.Domains[0].Keys[i].To = Date{r.Old[i].To}
		cfg.Domains[0].Keys = append(cfg.Domains[0].Keys, KeyConfig{Selector: r.New[i].Selector, File: r.New[i].File, From: Date{r.New[i].From}})
	}
	if _, err := Rotate(cfg, "example.org", "", from, NewKey{UID: -1, GID: -1}); err == nil || !strings.Contains(err.Error(), "is planned already") {
		t.Errorf("%v", err)
	}
	if _, err := Rotate(cfg, "example.net", "", from, NewKey{}); err == nil || !strings.Contains(err.Error(), "no key of example.net is configured") {
		t.Errorf("%v", err)
	}
	// Through the change and behind it.
	var fs conf.Faults
	ring := newKeyring(&cfg, "dkim", &fs)
	for _, tt := range []struct {
		at   time.Time
		want string
	}{
		{from.Add(-time.Second), "s2026a e2026a"},
		{from, r.New[0].Selector + " " + r.New[1].Selector},
		{r.Revoke, r.New[0].Selector + " " + r.New[1].Selector},
	} {
		uses, _ := ring.uses(policy.Address{Local: "a", Domain: "example.org"}, tt.at)
		var got []string
		for _, u := range uses {
			got = append(got, u.selector)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%v: %v, want %s", tt.at, got, tt.want)
		}
	}
	used := []string{}
	for range 30 {
		s := NextSelector(used, false, now)
		if !properSelector(s) {
			t.Errorf("%q", s)
		}
		used = append(used, s)
	}
}

func TestTry(t *testing.T) {
	b := newCheck(t, nil, "rsa0", "ed0")
	r, err := Try(t.Context(), b.cfg, login(), []byte(strings.ReplaceAll(letter, "\r\n", "\n")))
	if err != nil || r.Reason != reasonSigned || len(r.Fields) != 2 || !strings.HasPrefix(r.Whose, "ours") {
		t.Fatalf("%+v %v", r, err)
	}
	b.verify(strings.ReplaceAll(strings.Join(r.Fields, "\n")+"\n", "\n", "\r\n")+strings.ReplaceAll(letter, "\r \r\n", "\r \r\n"), 2)
	stranger := login()
	stranger.SASL.Username = ""
	if r, err := Try(t.Context(), b.cfg, stranger, []byte(letter)); err != nil || !strings.HasPrefix(r.Whose, "not ours") || len(r.Fields) > 0 {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := Try(t.Context(), b.cfg, login(), []byte("From: ann@example.org\nno field\n\nx")); err == nil || !strings.Contains(err.Error(), `line 2 is no header field: "no field"`) {
		t.Error(err)
	}
}
