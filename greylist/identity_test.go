package greylist

import (
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"postern/internal/mailaddr"
	"postern/policy"
)

func TestIdentity(t *testing.T) {
	for _, tt := range []struct {
		addr, name, spf, provider string
		want                      string
	}{
		{"192.0.2.7", "", "", "", "net:192.0.2.0/24"},
		{"2001:db8:1:2:3::4", "", "", "", "net:2001:db8:1:2::/64"},
		{"192.0.2.7", "mail.example.org", "", "", "org:example.org"},
		{"192.0.2.7", "a.b.example.co.uk", "", "", "org:example.co.uk"},
		{"192.0.2.7", "example.org", "", "", "org:example.org"},
		{"192.0.2.7", "co.uk", "", "", "net:192.0.2.0/24"},
		{"192.0.2.7", "localhost", "", "", "net:192.0.2.0/24"},
		{"192.0.2.7", "mail.example.org", "sender.example", "", "spf:sender.example"},
		{"192.0.2.7", "mail.example.org", "", "google", "org:example.org"},
		{"192.0.2.7", "", "", "google", "provider:google"},
		{"192.0.2.7", "192-0-2-7.example.org", "", "", "net:192.0.2.0/24"},
		{"192.0.2.7", "7.2.0.192.example.org", "", "", "net:192.0.2.0/24"},
		{"192.0.2.7", "host002007.example.org", "", "", "net:192.0.2.0/24"},
		{"192.0.2.7", "c0000207.example.org", "", "", "net:192.0.2.0/24"},
		{"192.0.2.7", "070200c0.example.org", "", "", "net:192.0.2.0/24"},
		{"192.0.2.7", "dsl-17.example.org", "", "", "net:192.0.2.0/24"},
		{"192.0.2.7", "pool12.example.org", "", "", "net:192.0.2.0/24"},
		{"192.0.2.7", "customer.example.org", "", "", "org:example.org"},
		{"192.0.2.7", "mail2.example.org", "", "", "org:example.org"},
		{"192.0.2.7", "mta-3-14.example.org", "", "", "org:example.org"},
		{"2001:db8::aaaa:bbbb:cccc:dddd", "aaaa-bbbb-cccc-dddd.example.org", "", "", "net:2001:db8::/64"},
		{"2001:db8::25", "mail25.example.org", "", "", "org:example.org"},
	} {
		req := &policy.Request{Client: policy.Client{Addr: netip.MustParseAddr(tt.addr), Name: tt.name}, Facts: policy.Facts{Provider: tt.provider}}
		if tt.spf != "" {
			req.Facts.SPF = policy.SPF{Result: "pass", Domain: tt.spf}
		}
		m := newMemo()
		for range 2 { // the second time from memory
			if got, ok := m.identity(req, 24, 64); !ok || got != tt.want {
				t.Errorf("%s %s: %q, want %q", tt.addr, tt.name, got, tt.want)
			}
		}
	}
	if _, ok := newMemo().identity(&policy.Request{}, 24, 64); ok {
		t.Error("nobody has an identity")
	}
}

func TestNormalise(t *testing.T) {
	for in, want := range map[string]string{
		"":                                     "",
		"Ann@Example.ORG":                      "ann@example.org",
		"ann+x@example.org":                    "ann@example.org",
		"+x@example.org":                       "+x@example.org",
		"postmaster":                           "postmaster",
		"prvs=0123abc=u@d.example":             "u@d.example",
		"prvs=@d.example":                      "prvs=@d.example",
		"SRS0=HHHH=TT=dom.example=u@f.example": "srs0=dom.example=u@f.example",
		"SRS1=HHHH=g.example==HHH=TT=d.example=u@f.example": "srs1=g.example==hhh=tt=d.example=u@f.example",
		"srs0@f.example":                   "srs0@f.example",
		"bounce-123-u=d.example@l.example": "bounce-#-u=d.example@l.example",
		"b.0a1b2c3d4e5f.x@l.example":       "b.#.x@l.example",
		"12345@qq.example":                 "12345@qq.example",
		"12-34@x.example":                  "12-34@x.example",
		"john.smith@x.example":             "john.smith@x.example",
		"agent007@x.example":               "agent007@x.example",
	} {
		if got := normalise(mailaddr.Parse(in), "+"); got != want {
			t.Errorf("normalise(%q) = %q, want %q", in, got, want)
		}
	}
}

// What is stored is no longer than what came, but for the SRS tag's sign, and
// normalising it again changes nothing more than once more.
func FuzzNormalise(f *testing.F) {
	for _, s := range []string{"", "a@b", "SRS0=a=b=c=d@e", "prvs=1=prvs=2=x@y", "a+b+c@d", "1-2-3@x", "\x00@\xff", "srs0+a=b=c@d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 2048 || !utf8.ValidString(s) {
			return
		}
		a := mailaddr.Parse(s)
		got := normalise(a, "+")
		if len(got) > len(strings.ToLower(a.Local))+1+len(a.Domain)+8 {
			t.Fatalf("normalise(%q) = %q is longer", s, got)
		}
		if (got == "") != (s == "") && a.Local != "" {
			t.Fatalf("normalise(%q) = %q", s, got)
		}
		if lower := normalise(mailaddr.Parse(strings.ToUpper(s)), "+"); s == strings.ToLower(s) && isASCII(s) && lower != got {
			t.Fatalf("normalise(%q) = %q, in capitals %q", s, got, lower)
		}
	})
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func FuzzIdentity(f *testing.F) {
	f.Add("192-0-2-7.example.org", []byte{192, 0, 2, 7})
	f.Add("mail.example.org", []byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, name string, raw []byte) {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok || len(name) > 300 {
			return
		}
		req := &policy.Request{Client: policy.Client{Addr: addr.Unmap(), Name: mailaddr.Domain(name)}}
		who, ok := newMemo().identity(req, 24, 64)
		if !ok || !strings.HasPrefix(who, "net:") && !strings.HasPrefix(who, "org:") || len(who) > len(name)+64 {
			t.Fatalf("%q %v: %q %v", name, addr, who, ok)
		}
	})
}
