package mailaddr

import (
	"net/netip"
	"strings"
	"testing"

	"postern/policy"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct{ in, local, domain string }{
		{"", "", ""},
		{"postmaster", "postmaster", ""},
		{"User@Example.ORG", "User", "example.org"},
		{"a@b@example.org.", "a@b", "example.org"},
		{"user@[192.0.2.1]", "user", "[192.0.2.1]"},
		{"user@[IPv6:2001:db8::1]", "user", "[ipv6:2001:db8::1]"},
		{"user@b\u00fccher.example", "user", "xn--bcher-kva.example"},
		{"user@B\u00dcCHER.example", "user", "xn--bcher-kva.example"},
		{"user@_x.example", "user", "_x.example"},
		{"user@\xff\xfe", "user", "\xff\xfe"},
		{"user@A\x80", "user", "A\x80"},
		{"user@A.z", "user", "a.z"},
		{"user@Z.z", "user", "z.z"},
		// names that IDNA refuses
		{"user@XN--\u00fc.example", "user", "xn--\u00fc.example"},
		{"user@\u00ad", "user", "\u00ad"},
		{"@example.org", "", "example.org"},
		{"user@", "user", ""},
		{"..@a..b", "..", "a..b"},
	} {
		if got := Parse(tt.in); got != (policy.Address{Raw: tt.in, Local: tt.local, Domain: tt.domain}) {
			t.Errorf("Parse(%q) = %q, %q; want %q, %q", tt.in, got.Local, got.Domain, tt.local, tt.domain)
		}
	}
}

func TestIsGlobal(t *testing.T) {
	for _, s := range []string{
		"10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.1.1", "100.64.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "240.0.0.1",
		"255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "fec0::1",
	} {
		if IsGlobal(netip.MustParseAddr(s)) {
			t.Errorf("%s is taken for global", s)
		}
	}
	for _, s := range []string{"192.0.2.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "1.0.0.0", "2001:db8::1", "2a00:1450::1"} {
		if !IsGlobal(netip.MustParseAddr(s)) {
			t.Errorf("%s is not taken for global", s)
		}
	}
	if IsGlobal(netip.Addr{}) {
		t.Error("no address is taken for global")
	}
}

func TestOrgDomain(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"mail.out.example.org":    "example.org",
		"example.org":             "example.org",
		"a.b.example.co.uk":       "example.co.uk",
		"co.uk":                   "",
		"com":                     "",
		"192.0.2.1":               "",
		"192.0.2.0":               "",
		"192.0.2.9":               "",
		"[192.0.2.1]":             "",
		"2001:db8::1":             "",
		"::ffff:192.0.2.1":        "",
		"[ipv6:2001:db8::1]":      "",
		"[ipv6:::ffff:192.0.2.1]": "", // was "2.1]"
		"host-1-2-3.example.net":  "example.net",
		"..":                      "",
	} {
		if got := OrgDomain(in); got != want {
			t.Errorf("OrgDomain(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSplitExtension(t *testing.T) {
	for _, tt := range []struct{ in, delimiters, user, ext string }{
		{"user+ext", "+", "user", "ext"},
		{"user+a+b", "+", "user", "a+b"},
		{"user-a+b", "+-", "user", "a+b"},
		{"user", "+", "user", ""},
		{"+ext", "+", "+ext", ""},
		{"user+", "+", "user", ""},
		{"+", "+", "+", ""},
		{"postmaster+", "+", "postmaster", ""},
		{"owner-", "-", "owner-", ""},
		{"double-bounce", "-", "double-bounce", ""},
		{"owner-list", "-", "owner-list", ""},
		{"list-request", "-", "list-request", ""},
		{"user+ext", "", "user+ext", ""},
	} {
		if u, e, ok := SplitExtension(tt.in, tt.delimiters); u != tt.user || e != tt.ext || ok != (u != tt.in) {
			t.Errorf("SplitExtension(%q, %q) = %q, %q", tt.in, tt.delimiters, u, e)
		}
	}
}

func TestPlainNamesCostNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		Parse("User@mail.example.org")
		ParsePath("<User@mail.example.org>")
	}); n != 0 {
		t.Errorf("%v allocations for a lower-case address", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a@b", "@", "a@\u00df.example", "a@XN--", "\x00@\xff", "a@" + strings.Repeat("x.", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a := Parse(s)
		if again := Domain(a.Domain); again != a.Domain && !strings.HasSuffix(a.Domain, ".") {
			t.Errorf("%q: domain %q is not stable: %q", s, a.Domain, again)
		}
		if !strings.HasPrefix(s, a.Local) {
			t.Errorf("%q: local part %q", s, a.Local)
		}
		OrgDomain(a.Domain)
		SplitExtension(a.Local, "+-")
	})
}

func TestParsePath(t *testing.T) {
	for _, tt := range []struct{ in, raw, domain string }{
		{"<>", "", ""},
		{"", "", ""},
		{"<Bob@Example.COM>", "Bob@Example.COM", "example.com"},
		{"bob@example.com", "bob@example.com", "example.com"},
		{"<bob>", "bob", ""},
		{"<@relay.example,@other.example:bob@example.com>", "bob@example.com", "example.com"},
		{`<"bob smith"@example.com>`, "bob smith@example.com", "example.com"},
		{`<"a@b"@example.com>`, "a@b@example.com", "example.com"},
		{`<"a\"b\\c"@example.com>`, `a"b\c@example.com`, "example.com"},
		{`<bob\ smith@example.com>`, "bob smith@example.com", "example.com"},
		{`"bob smith"@example.com`, "bob smith@example.com", "example.com"},
		{`\bob@example.com`, "bob@example.com", "example.com"},
		{`<@"a">`, `@"a"`, `"a"`},
		{`<"a@b">`, "a@b", ""},
		{`<"a@b>`, "a@b", ""},
		{`<a@[IPv6:2001:db8::1]>`, "a@[IPv6:2001:db8::1]", "[ipv6:2001:db8::1]"},
		{"<", "<", ""},
		{`\`, `\`, ""},
	} {
		if got := ParsePath(tt.in); got.Raw != tt.raw || got.Domain != tt.domain {
			t.Errorf("%s: %+v, want %q at %q", tt.in, got, tt.raw, tt.domain)
		}
	}
}

func TestDeliverable(t *testing.T) {
	for in, want := range map[string]bool{
		"bob@example.com": true, "b@e": true, "a@b@example.com": true,
		"": false, "bob": false, "@example.com": false, "bob@": false, "bob smith@example.com": false, "a,b@example.com": false,
		"<bob@example.com": false, "bob@example.com>": false, "b\u00f6b@example.com": false, "bob@example.com\n": false,
	} {
		if got := Deliverable(in); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"<>", "<a@b>", `<"a b"@c>`, `"\`, "@:", `<"a"@"b"@c>`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a := ParsePath(s)
		if len(a.Raw) > len(s) || len(a.Local) > len(a.Raw) {
			t.Fatalf("%q became %+v", s, a)
		}
		// Without anything quoted nothing is left to do a second time.
		if !strings.ContainsAny(s, `"\<>:`) && ParsePath(a.Raw) != a {
			t.Fatalf("%q became %+v, then %+v", s, a, ParsePath(a.Raw))
		}
	})
}

func TestIPAndHostName(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "IPv6:2001:db8::1": "2001:db8::1", "fe80::1%eth0": "fe80::1",
	} {
		if got := IP(in); got.String() != want {
			t.Errorf("%s: %v", in, got)
		}
	}
	if IP("unknown").IsValid() || HostName("unknown") != "" || HostName("Mail.Example.ORG.") != "mail.example.org" {
		t.Error("unknown, or a name with capitals")
	}
}
