package client

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

var (
	labels63 = strings.Repeat("a", 63)
	long253  = strings.Repeat(labels63+".", 3) + strings.Repeat("a", 61)
)

func TestParseHelo(t *testing.T) {
	for _, tt := range []struct {
		in   string
		form heloForm
		want string // name, address, or part of the fault
	}{
		{"", heloNone, ""},
		{"mail.example.org", heloName, "mail.example.org"},
		{"MAIL.Example.ORG.", heloName, "mail.example.org"},
		{"mailserver", heloName, "mailserver"},
		{"my_host.example.org", heloName, "my_host.example.org"},
		{"_x.example.org", heloName, "_x.example.org"},
		{"3com.example", heloName, "3com.example"},
		{"1.2.3.example", heloName, "1.2.3.example"},
		{"xn--bcher-kva.example", heloName, "xn--bcher-kva.example"},
		{"a.b3", heloName, "a.b3"},
		{labels63 + ".example", heloName, labels63 + ".example"},
		{long253, heloName, long253},
		{long253 + ".", heloName, long253},

		{"192.0.2.7", heloBad, "in brackets"},
		{"2001:db8::7", heloBad, "in brackets"},
		{"192.0.2", heloBad, "ends in a number"},
		{"mail.1", heloBad, "ends in a number"},
		{"12345", heloBad, "ends in a number"},
		{".", heloBad, "empty"},
		{"..", heloBad, "empty label"},
		{".example.org", heloBad, "empty label"},
		{"mail..example.org", heloBad, "empty label"},
		{"mail.example.org..", heloBad, "empty label"},
		{"-mail.example.org", heloBad, "hyphen"},
		{"mail-.example.org", heloBad, "hyphen"},
		{"mail.example.org-", heloBad, "hyphen"},
		{"-", heloBad, "hyphen"},
		{"mail example.org", heloBad, "character"},
		{"mail?example.org", heloBad, "character"},
		{"b\u00fccher.example", heloBad, "character"},
		{"\x00", heloBad, "character"},
		{labels63 + "a.example", heloBad, "label that is too long"},
		{long253 + "a", heloBad, "too long"},
		{strings.Repeat("1", 1000), heloBad, "too long"},

		{"[192.0.2.7]", heloLiteral, "192.0.2.7"},
		{"[IPv6:2001:db8::7]", heloLiteral, "2001:db8::7"},
		{"[ipv6:2001:DB8:0::7]", heloLiteral, "2001:db8::7"},
		{"[IPv6:::ffff:192.0.2.7]", heloLiteral, "192.0.2.7"},
		{"[2001:db8::7]", heloBad, "begins with IPv6:"},
		{"[IPv6:192.0.2.7]", heloBad, "not an address"},
		{"[IPv6:]", heloBad, "not an address"},
		{"[IPv6:fe80::1%eth0]", heloBad, "not an address"},
		{"[192.0.2.7", heloBad, "not an address"},
		{"[192.0.2]", heloBad, "not an address"},
		{"[192.0.2.07]", heloBad, "not an address"},
		{"[192.0.2.7].", heloBad, "not an address"},
		{"[mail.example.org]", heloBad, "not an address"},
		{"[]", heloBad, "not an address"},
		{"[", heloBad, "not an address"},
		{"[" + strings.Repeat("0", 64) + "]", heloBad, "not an address"},
	} {
		h := parseHelo(tt.in)
		got := h.name
		switch h.form {
		case heloLiteral:
			got = h.addr.String()
		case heloBad:
			if got = h.fault; strings.Contains(got, tt.want) {
				got = tt.want
			}
		default:
		}
		if h.form != tt.form || got != tt.want {
			t.Errorf("%q: form %d, %q; want %d, %q", tt.in, h.form, got, tt.form, tt.want)
		}
	}
}

func TestAskable(t *testing.T) {
	for _, s := range []string{"example.org", "localhost", "-x-.example.org", "a_b.example", "a*b!.example", "example.123", long253, labels63} {
		if !askable(s) {
			t.Errorf("%q could not be asked about", s)
		}
	}
	for _, s := range []string{"", ".", "a..b", ".a", "a.", "a b.example", "a\\b.example", "\x7f.example", "b\u00fccher.example", long253 + "a", labels63 + "a"} {
		if askable(s) {
			t.Errorf("%q would be asked about", s)
		}
	}
}

var hostName = regexp.MustCompile(`^([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)

func FuzzParseHelo(f *testing.F) {
	for _, s := range []string{
		"", "mail.example.org", "MAIL.", "[192.0.2.7]", "[IPv6:2001:db8::1]", "[ipv6:::ffff:192.0.2.1]", "192.0.2.7", "2001:db8::1", "-a.b", "a..b", "a.1",
		"[IPv6:fe80::1%x]", "[", "[]", ".", "a b", "\xff", "b\u00fccher.example", labels63 + "." + labels63, long253, "_", "a-", "0x7f.1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h := parseHelo(s)
		switch h.form {
		case heloNone:
			if s != "" {
				t.Fatalf("%q is nothing", s)
			}
		case heloName:
			trimmed := strings.ToLower(strings.TrimSuffix(s, "."))
			if h.name != trimmed || len(h.name) > maxName || !hostName.MatchString(h.name) || !askable(h.name) {
				t.Fatalf("%q is the name %q", s, h.name)
			}
			if last := h.name[strings.LastIndexByte(h.name, '.')+1:]; strings.Trim(last, "0123456789") == "" {
				t.Fatalf("%q ends in a number", h.name)
			}
			if _, err := netip.ParseAddr(s); err == nil {
				t.Fatalf("the address %q is a name", s)
			}
			if again := parseHelo(h.name); again != h {
				t.Fatalf("%q: %+v, then %+v", s, h, again)
			}
		case heloLiteral:
			if !h.addr.IsValid() || h.addr.Is4In6() || h.addr.Zone() != "" {
				t.Fatalf("%q is the address %v", s, h.addr)
			}
			written := "[" + h.addr.String() + "]"
			if h.addr.Is6() {
				written = "[IPv6:" + h.addr.String() + "]"
			}
			if again := parseHelo(written); again != h {
				t.Fatalf("%q: %+v, as %q %+v", s, h, written, again)
			}
		case heloBad:
			if h.fault == "" || h.name != "" || h.addr.IsValid() {
				t.Fatalf("%q: %+v", s, h)
			}
			if name := strings.ToLower(strings.TrimSuffix(s, ".")); len(name) <= maxName && hostName.MatchString(name) &&
				strings.Trim(name[strings.LastIndexByte(name, '.')+1:], "0123456789") != "" {
				t.Fatalf("the name %q is none: %s", s, h.fault)
			}
		}
	})
}
