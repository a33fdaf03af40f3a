package dkim

import (
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern/internal/conf"
	"postern/internal/mailaddr"
)

// tables makes a check that signs by opendkim's tables.
func tables(t *testing.T, kind, keyTable, signingTable string, multiple bool) *bench {
	t.Helper()
	return newCheck(t, func(c *Config) {
		c.KeyTable, c.SigningTable, c.MultipleSignatures = put(t, "key.table", keyTable), kind+put(t, "signing.table", signingTable), multiple
	})
}

func TestSigningTable(t *testing.T) {
	rsa, ed := keyFile(t, "rsa0"), keyFile(t, "ed0")
	keys := fmt.Sprintf("# keys\none\texample.org:one:%s\n two  domain-ab.example:two:%s # and more\nany %%:any:%s\nexample.net example.net:net:%s\n", ed, rsa, ed, ed)
	const (
		refile = "refile:"
		file   = "file:"
		plain  = ""
	)
	for _, tt := range []struct {
		name, kind, table string
		author            string
		want              string // "d/s/i" of the signatures
	}{
		{"refile", refile, "*@example.org one\n", "ann@example.org", "example.org/one/"},
		{"refile, capitals", refile, "*@Example.ORG one\n", "Ann@EXAMPLE.org", "example.org/one/"},
		{"refile, below", refile, "*@*.example.org one\n", "ann@a.example.org", "example.org/one/"},
		{"refile, not below", refile, "*@*.example.org one\n", "ann@example.org", ""},
		{"refile, whole address", refile, "ann@example.org one\n*@example.org any\n", "ann@example.org", "example.org/one/"},
		{"refile, the first", refile, "*@example.org any\nann@example.org one\n", "ann@example.org", "example.org/any/"},
		{"refile, the first, wildcard", refile, "*nn@* any\nann@example.org one\n", "ann@example.org", "example.org/any/"},
		{"refile, tail of a name", refile, "*@domain-ab.example two\n", "ann@worsedomain-ab.example", ""},
		{"refile, everybody", refile, "* any\n", "x@y.example", "y.example/any/"},
		{"refile, inside", refile, "a*b*c@example.org one\n", "axxbc@example.org", "example.org/one/"},
		{"refile, no overlap", refile, "ab*ba@example.org one\n", "aba@example.org", ""},
		{"refile, bare domain", refile, "example.org one\n", "ann@example.org", ""},
		{"key of the domain", refile, "* %\n", "ann@example.net", "example.net/net/"},
		{"no key of the domain", refile, "* %\n", "ann@example.com", ""},
		{"identity", refile, "*@example.org one:@mail.example.org\n", "ann@example.org", "example.org/one/@mail.example.org"},
		{"identity with %", refile, "*@*.example.org one:%@%\n", "ann@a.example.org", "example.org/one/a.example.org@a.example.org"},
		{"identity of another domain", refile, "*@example.org one:@example.net\n", "ann@example.org", "example.org/one/"},
		{"file, address", plain, "example.org any\nann@example.org one\n", "ann@example.org", "example.org/one/"},
		{"file, domain", file, "example.org one\n", "ann@example.org", "example.org/one/"},
		{"file, domain, not below", file, "example.org one\n", "ann@a.example.org", ""},
		{"file, below", file, ".example.org one\n", "ann@b.a.example.org", "example.org/one/"},
		{"file, below, not itself", file, ".example.org one\n", "ann@example.org", ""},
		{"file, tail of a name", file, ".domain-ab.example two\ndomain-ab.example two\n", "ann@worsedomain-ab.example", ""},
		{"file, user below", file, ".example.org any\nann@.example.org one\n", "ann@a.example.org", "example.org/one/"},
		{"file, user anywhere", file, "* any\nann@* one\n", "ann@a.example.com", "example.org/one/"},
		{"file, everybody", file, "* any\n", "ann@a.example.com", "a.example.com/any/"},
		{"file, no wildcards", file, "*@example.org one\n", "ann@example.org", ""},
		{"comment", file, "# example.org one\nexample.org one # two\n\n", "ann@example.org", "example.org/one/"},
	} {
		for _, multiple := range []bool{false, true} {
			b := tables(t, tt.kind, keys, tt.table, multiple)
			uses, _ := b.ring.uses(mailaddr.Parse(strings.ToLower(tt.author)), now)
			var got []string
			for _, u := range uses {
				got = append(got, u.domain+"/"+u.selector+"/"+u.identity)
			}
			if multiple && tt.want != "" {
				got = got[:min(1, len(got))] // all of them begin with the first
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("%s, multiple %v: %v, want %s", tt.name, multiple, got, tt.want)
			}
			v, signed := b.show(login(), "From: <"+tt.author+">\r\n\r\n")
			if (v.Reason == reasonSigned) != (tt.want != "") {
				t.Errorf("%s: %+v", tt.name, v)
			}
			if tt.want != "" && !multiple && uses[0].key.domain != "" {
				b.verify(signed, 1)
			}
		}
	}
	b := tables(t, refile, keys, "*@example.org one\n* any\nann@example.org one\n* two\n", true)
	if _, signed := b.show(login(), letter); strings.Count(signed, "DKIM-Signature:") != 3 {
		t.Errorf("one for each key:\n%s", signed)
	}
}

func TestDomainsInPaths(t *testing.T) {
	dir := t.TempDir()
	der, err := x509.MarshalPKCS8PrivateKey(keysOnce()["ed0"])
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(keyFile(t, "ed0"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"example.org", "a.example.org", "not a domain"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, d, "mail.private"), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := tables(t, "refile:", "k %:mail:"+dir+"/%/mail.private\ninline example.com:in:"+base64.StdEncoding.EncodeToString(der)+"\n", "*@example.com inline\n* k\n", false)
	for author, want := range map[string]string{"x@example.org": "example.org", "x@a.example.org": "a.example.org", "x@b.example.org": "", "x@example.com": "example.com"} {
		uses, _ := b.ring.uses(mailaddr.Parse(author), now)
		got := ""
		if len(uses) == 1 {
			got = uses[0].domain
		}
		if got != want {
			t.Errorf("%s: %q", author, got)
		}
	}
	for pattern, want := range map[string]string{
		"/%.pem": "", "/%/mail.private": "a.example.org example.org",
	} {
		files, err := domainFiles(dir + pattern)
		var got []string
		for _, f := range files {
			got = append(got, f.domain)
		}
		if slices.Sort(got); err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v %v", pattern, got, err)
		}
	}
}

func TestFaultsOfTables(t *testing.T) {
	key := keyFile(t, "ed0")
	open := keyFile(t, "ed1")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, keys, signing, want string }{
		{"no value", "one\n", "* one\n", "key.table:1:4: \"one\" has no value behind it"},
		{"parts", "one example.org:" + key + "\n", "* one\n", `key.table:1:5: "example.org:` + key + `" is not domain:selector:path`},
		{"domain", "\n one exa_mple:s:" + key + "\n", "* one\n", `key.table:2:6: "exa_mple" is no domain`},
		{"selector", "one example.org:s t:" + key + "\n", "* one\n", `key.table:1:17: "s t" is no selector`},
		{"file", "one example.org:s:/nonexistent\n", "* one\n", `key.table:1:19: /nonexistent cannot be read: no such file`},
		{"open file", "one example.org:s:" + open + "\n", "* one\n", `key.table:1:19: ` + open + ` is open to everybody on this host (mode 0644): chmod 0600`},
		{"neither", "one example.org:s:key\n", "* one\n", `key.table:1:19: it is neither a path (beginning with / or ./) nor a key in base64`},
		{"twice", "one example.org:s:" + key + "\none example.org:t:" + key + "\n", "* one\n", `key.table:2:1: "one" stands there twice`},
		{"no such key", "one example.org:s:" + key + "\n", "\n*@example.org  two\n", `signing.table:2:16: the key table has no key "two"`},
		{"identity", "one example.org:s:" + key + "\n", "*@example.org one:x\n", `signing.table:1:19: "x" is no identity (i=)`},
		{"not text", "one example.org:s:" + key + "\n", "*@example.org\x00 one\n", `signing.table:1:14: it is not text`},
		{"long", "one example.org:s:" + key + "\n", "*@example.org " + strings.Repeat("x", maxTableLine) + "\n", `signing.table:1: a line has more than 16384 bytes`},
		{"no files", "one %:s:/nonexistent/%/x\n", "* one\n", `key.table:1:9: there is no file of this form: /nonexistent/%/x`},
	} {
		cfg := DefaultConfig()
		cfg.KeyTable, cfg.SigningTable = put(t, "key.table", tt.keys), "refile:"+put(t, "signing.table", tt.signing)
		var fs conf.Faults
		if cfg.Validate("dkim", &fs); len(fs) != 1 || !strings.Contains(fs[0].Error(), tt.want) {
			t.Errorf("%s: %v\nwant %s", tt.name, fs, tt.want)
		}
	}
	for _, tt := range []struct{ name, keys, signing, want string }{
		{"one alone", "/x", "", "dkim.keytable: no signing table says"},
		{"the other alone", "", "/x", "dkim.signingtable: no key table says"},
		{"kind", "dsn:mysql://x", "db:/x", `tables of kind "dsn" are not read`},
		{"nothing", "file:", "refile:/nonexistent", `dkim.keytable: "file:" is no table`},
		{"missing", "file:/nonexistent", "refile:/nonexistent", `/nonexistent: no such file or directory`},
	} {
		cfg := DefaultConfig()
		cfg.KeyTable, cfg.SigningTable = tt.keys, tt.signing
		var fs conf.Faults
		if cfg.Validate("dkim", &fs); len(fs) == 0 || !strings.Contains(fs.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, fs)
		}
	}
	b := tables(t, "refile:", "one example.org:s:"+key+"\n", "example.org one\n", false)
	if w := b.cfg.Warnings("dkim"); len(w) != 1 || !strings.Contains(w[0].Error(), `signing.table:1:1: "example.org" matches nothing: in a refile it is compared with the whole address, as *@example.org`) {
		t.Errorf("%v", w)
	}
}

// FuzzTables: whatever the tables hold, there are faults or keys, and a match
// is what a naive reading finds.
func FuzzTables(f *testing.F) {
	f.Add("*@example.org one\n# x\nann@* %:@%\n", true)
	f.Add(".example.org two:a@b\n* one\n", false)
	f.Fuzz(func(t *testing.T, text string, refile bool) {
		var fs, warnings conf.Faults
		rows := parseTable("t", strings.NewReader(text), &fs)
		for _, r := range rows {
			if r.key == "" || r.value == "" || r.line < 1 || r.keyColumn < 1 || r.valueColumn <= r.keyColumn || strings.ContainsAny(r.key, " \t#") {
				t.Fatalf("%q: %+v", text, r)
			}
		}
		table := &signingTable{refile: refile, exact: map[string][]int{}, keys: map[string]*keyEntry{}}
		table.read(rows, false, &warnings, &fs)
		for _, author := range []string{"ann@example.org", "b@a.example.org", "%@x.example"} {
			a := mailaddr.Parse(author)
			got, all := table.match(a, false), table.match(a, true)
			if len(got) > 1 || len(all) > maxSignatures || len(got) == 1 && (len(all) == 0 || all[0].pattern != got[0].pattern) {
				t.Fatalf("%q: %s: %v, all %v", text, author, got, all)
			}
			if refile {
				for _, e := range table.entries {
					if naive(e.pattern, author) {
						if len(got) == 0 || got[0].pattern != e.pattern {
							t.Fatalf("%q: %s: %v, want %q", text, author, got, e.pattern)
						}
						return
					}
				}
				if len(got) > 0 {
					t.Fatalf("%q: %s: %v, want none", text, author, got)
				}
			}
		}
	})
}

// naive reports whether s is pattern with anything for each asterisk.
func naive(pattern, s string) bool {
	if pattern == "" {
		return s == ""
	}
	if pattern[0] == '*' {
		return naive(pattern[1:], s) || s != "" && naive(pattern, s[1:])
	}
	return s != "" && s[0] == pattern[0] && naive(pattern[1:], s[1:])
}

func FuzzParseKey(f *testing.F) {
	for _, which := range []string{"rsa0", "ed0"} {
		der, err := x509.MarshalPKCS8PrivateKey(keysOnce()[which])
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte("-----BEGIN PRIVATE KEY-----\n" + base64.StdEncoding.EncodeToString(der) + "\n-----END PRIVATE KEY-----\n"))
	}
	f.Add([]byte("-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: x\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		signer, err := parseKey(text)
		if (signer == nil) == (err == nil) {
			t.Fatalf("%v %v", signer, err)
		}
		if err != nil {
			return
		}
		k := key{signer: signer}
		if err := k.describe(); err != nil {
			t.Fatal(err)
		}
	})
}
