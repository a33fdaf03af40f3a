package resolver

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func isError(err, target error) bool { return errors.Is(err, target) }

func TestNormalize(t *testing.T) {
	long := strings.Repeat("a.", 126) + "a" // 253 octets
	for _, tt := range []struct{ in, want string }{
		{"example.org", "example.org"},
		{"Example.ORG.", "example.org"},
		{"_dmarc.example.org", "_dmarc.example.org"},
		{"user+tag=x@y._spf.example.org", "user+tag=x@y._spf.example.org"},
		{"0/25.2.0.192.in-addr.arpa", "0/25.2.0.192.in-addr.arpa"},
		{"bücher.example", "xn--bcher-kva.example"},
		{"BÜCHER.example.", "xn--bcher-kva.example"},
		{"straße.example", "xn--strae-oqa.example"},
		{"例え。テスト", "xn--r8jz45g.xn--zckzah"},
		{"_dmarc.bücher.example", "_dmarc.xn--bcher-kva.example"},
		{strings.Repeat("a", 63) + ".example", strings.Repeat("a", 63) + ".example"},
		{strings.Repeat("a", 64) + ".example", ""},
		{long, long},
		{long + ".", long},
		{long + "a", ""},
		{strings.Repeat("ü", 600), ""},
		{"", ""},
		{".", ""},
		{"..", ""},
		{".a", ""},
		{"a..", ""},
		{"a..b", ""},
		{"a b", "a b"},
		{"a\tb", ""},
		{"a\x00b", ""},
		{"a\x7fb", ""},
		{`a\.b`, ""},
		{"\xff.example", ""},
		{"\u200b.example", ""},
	} {
		got, err := normalize(tt.in)
		if got != tt.want || (err != nil) != (tt.want == "") || err != nil && !errors.Is(err, ErrInvalidName) {
			t.Errorf("normalize(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
}

func FuzzNormalize(f *testing.F) {
	for _, s := range []string{"example.org", "Example.ORG.", "bücher.example", "..", "\xff", "a b", "xn--bcher-kva.example", "例え。テスト"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		name, err := normalize(in)
		if err != nil {
			if name != "" {
				t.Errorf("%q with an error", name)
			}
			return
		}
		if again, err := normalize(name); err != nil || again != name {
			t.Errorf("normalize(%q) = %q, and of that %q, %v", in, name, again, err)
		}
		q, err := newQuery(key{name, 1})
		if err != nil {
			t.Fatalf("%q cannot be asked for: %v", name, err)
		}
		if want := headerSize + len(name) + 2 + 4; q.question != want {
			t.Errorf("question of %q ends at %d, want %d", name, q.question, want)
		}
	})
}

func TestReverseName(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.130":        "130.2.0.192.in-addr.arpa",
		"::ffff:192.0.2.130": "130.2.0.192.in-addr.arpa",
		"255.255.255.255":    "255.255.255.255.in-addr.arpa",
		"2001:db8::1:fe":     "e.f.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
		"fe80::1%eth0":       "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.e.f.ip6.arpa",
	} {
		if got := ReverseName(netip.MustParseAddr(in)); got != want {
			t.Errorf("ReverseName(%s) = %q, want %q", in, got, want)
		}
	}
	if got := ReverseName(netip.Addr{}); got != "" {
		t.Errorf("of no address: %q", got)
	}
}
