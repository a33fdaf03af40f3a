package lookup

import (
	"strings"
	"testing"
)

func TestFurtherKeys(t *testing.T) {
	for _, tt := range []struct {
		s    searcher
		key  string
		want string // "KEY" or "KEY~EXTENSION"
	}{
		{searcher{kind: SearchExact, delimiters: "+"}, "a+b@c.example", ""},
		{searcher{kind: SearchAccess}, "mail.sub.Example.org", "sub.Example.org Example.org org"},
		{searcher{kind: SearchAccess, dots: true}, "mail.sub.example.org", ".sub.example.org .example.org .org"},
		{searcher{kind: SearchAccess}, "org", ""},
		{searcher{kind: SearchAccess}, "unknown", ""},
		{searcher{kind: SearchAccess}, "<>", ""},
		{searcher{kind: SearchAccess}, "example.org.", "org."},
		{searcher{kind: SearchAccess}, "192.0.2.7", "192.0.2 192.0 192"},
		{searcher{kind: SearchAccess}, "2001:db8::1", "2001:db8: 2001:db8 2001"},
		{searcher{kind: SearchAccess}, "::1", ":"},
		{searcher{kind: SearchAccess}, "a+b@c.example", "c.example example a+b@"},
		{searcher{kind: SearchAccess, delimiters: "+-"}, "a-b@c.example", "a@c.example~-b c.example example a-b@ a@~-b"},
		{searcher{kind: SearchAccess, delimiters: "+-"}, "a+@c.example", "a@c.example~+ c.example example a+@ a@~+"},
		{searcher{kind: SearchAccess, delimiters: "+-"}, "owner-@c.example", "c.example example owner-@"},
		{searcher{kind: SearchAccess, delimiters: "+-"}, "+a@c.example", "c.example example +a@"},
		{searcher{kind: SearchAccess, delimiters: "+"}, "postmaster@c.example", "c.example example postmaster@"},
		{searcher{kind: SearchAccess, delimiters: "+"}, `"a@b"@c.example`, `c.example example "a@b"@`},
		{searcher{kind: SearchTransport, delimiters: "+", dots: true}, "a+x@b.c.example", "a@b.c.example~+x b.c.example .c.example .example"},
		{searcher{kind: SearchTransport}, "a@b.c.example", "b.c.example c.example example"},
		{searcher{kind: SearchTransport, dots: true}, "*", ""},
		{searcher{kind: SearchVirtual, delimiters: "+"}, "a+x@b.example", "a@b.example~+x @b.example"},
		{searcher{kind: SearchMailbox, delimiters: "+", local: map[string]bool{"b.example": true}}, "a+x@B.example", "a@B.example~+x a+x a~+x @B.example"},
		{searcher{kind: SearchMailbox, local: map[string]bool{"b.example": true}}, "a@c.example", "@c.example"},
		{searcher{kind: SearchVirtual}, "b.example", ""},
		{searcher{kind: SearchVirtual}, "<>", ""},
		{searcher{kind: SearchDomain}, "a.b.example", "b.example example"},
		{searcher{kind: SearchDomain, dots: true}, "a.b.example", ".b.example .example"},
		{searcher{kind: SearchDomain}, "192.0.2.7", ""},
		{searcher{kind: SearchAccess}, strings.Repeat("x", maxSearched-2) + ".b", "b"},
		{searcher{kind: SearchAccess}, strings.Repeat("x", maxSearched-1) + ".b", ""},
	} {
		var got []string
		for key, ext := range tt.s.further(tt.key) {
			if ext != "" {
				key += "~" + ext
			}
			got = append(got, key)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s of %q: %q, want %q", tt.s.kind, tt.key, strings.Join(got, " "), tt.want)
		}
		// Whoever stops early is not asked again.
		for n := range got {
			seen := 0
			for range tt.s.further(tt.key) {
				if seen++; seen > n {
					break
				}
			}
		}
	}
}

func TestPropagate(t *testing.T) {
	for in, want := range map[string]string{
		"bob@example.org":                  "bob+x@example.org",
		"bob":                              "bob+x",
		"bob@example.org, al@b.example":    "bob+x@example.org, al+x@b.example",
		"bob@example.org,al":               "bob+x@example.org, al+x",
		`"b, c@d"@example.org , al@e.test`: `"b, c@d"+x@example.org, al+x@e.test`,
		`"b\", c"@example.org`:             `"b\", c"+x@example.org`,
		"@example.org":                     "@example.org",
		"a@example.org,,":                  "a+x@example.org",
	} {
		if got := propagate(in, "+x"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// FuzzFurtherKeys states that a search ends, with keys no longer than the
// first by more than a sign.
func FuzzFurtherKeys(f *testing.F) {
	for _, s := range []string{"a+b@c.example", "192.0.2.1", "2001:db8::1", "....", "@", "a@", ":::", "a@.b..c."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		for _, kind := range searches {
			for _, dots := range []bool{false, true} {
				s := searcher{kind: kind, dots: dots, delimiters: "+-", local: map[string]bool{"c.example": true}}
				n := 0
				for k := range s.further(key) {
					if len(k) > len(key)+1 {
						t.Fatalf("%q of %q", k, key)
					}
					if n++; n > len(key)+8 {
						t.Fatalf("more than %d keys of %q", n, key)
					}
				}
			}
		}
	})
}
