package rbl

import (
	"errors"
	"strings"
	"testing"
)

func TestParseEntry(t *testing.T) {
	for _, tt := range []struct {
		in     string
		kind   Kind
		zone   string
		weight int
		match  []code
		differ []code
	}{
		{"zen.example.org", KindClient, "zen.example.org", 0, []code{{127, 0, 0, 2}, {127, 9, 9, 9}}, nil},
		{"Zen.Example.ORG.", KindClient, "zen.example.org", 0, nil, nil},
		{"zen.example.org*3", KindClient, "zen.example.org", 3, nil, nil},
		{
			"wl.example.org=127.0.[0..255].[1..3]*-2", KindClient, "wl.example.org", -2,
			[]code{{127, 0, 0, 1}, {127, 0, 255, 3}},
			[]code{{127, 0, 0, 4}, {127, 1, 0, 1}, {127, 0, 7, 0}},
		},
		{"bl.example.org=127.0.0.2", KindClient, "bl.example.org", 0, []code{{127, 0, 0, 2}}, []code{{127, 0, 0, 3}}},
		{
			"bl.example.org=127.0.0.[2..11;255]", KindClient, "bl.example.org", 0,
			[]code{{127, 0, 0, 2}, {127, 0, 0, 11}, {127, 0, 0, 255}},
			[]code{{127, 0, 0, 12}, {127, 0, 0, 1}, {127, 0, 0, 254}},
		},
		{"bl.example.org=[0;127].0.[3].4", KindClient, "bl.example.org", 0, []code{{127, 0, 3, 4}, {0, 0, 3, 4}}, []code{{127, 0, 4, 4}}},
		{"sender:dbl.example.org=127.0.1.[2..99]*4", KindSender, "dbl.example.org", 4, []code{{127, 0, 1, 50}}, []code{{127, 0, 1, 100}}},
		{"helo:dbl.example.org", KindHelo, "dbl.example.org", 0, nil, nil},
		{"name:dbl.example.org", KindName, "dbl.example.org", 0, nil, nil},
		{"reverse:dbl.example.org", KindReverse, "dbl.example.org", 0, nil, nil},
		{"bl.example.org=127.0.0.[2..2]", KindClient, "bl.example.org", 0, []code{{127, 0, 0, 2}}, []code{{127, 0, 0, 3}}},
		{"bl.example.org*1000", KindClient, "bl.example.org", 1000, nil, nil},
		{"bl.example.org*-1000", KindClient, "bl.example.org", -1000, nil, nil},
		{"az.AZ.09.example", KindClient, "az.az.09.example", 0, nil, nil},
		{strings.Repeat("a", 63) + ".example", KindClient, strings.Repeat("a", 63) + ".example", 0, nil, nil},
		{strings.Repeat("a.", 94) + "a", KindClient, strings.Repeat("a.", 94) + "a", 0, nil, nil}, // 189 bytes
		{"client:_bl.example.org*-1", KindClient, "_bl.example.org", -1, nil, nil},
	} {
		e, err := ParseEntry(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if e.Kind != tt.kind || e.Zone != tt.zone || e.Weight != tt.weight {
			t.Errorf("%s: got %v %q %d, want %v %q %d", tt.in, e.Kind, e.Zone, e.Weight, tt.kind, tt.zone, tt.weight)
		}
		for _, c := range tt.match {
			if !e.Filter.match(c) {
				t.Errorf("%s does not match %v", tt.in, c)
			}
		}
		for _, c := range tt.differ {
			if e.Filter.match(c) {
				t.Errorf("%s matches %v", tt.in, c)
			}
		}
	}
}

func TestParseEntryFaults(t *testing.T) {
	for _, tt := range []struct {
		in     string
		column int
		text   string
	}{
		{"", 1, "name of the list is missing"},
		{"=127.0.0.2", 1, "name of the list is missing"},
		{"zen", 1, "not the full name"},
		{"a..example", 3, "empty part"},
		{"a b.example", 2, `" " cannot stand`},
		{"192.0.2.1", 1, "is an address"},
		{"sendr:dbl.example.org", 1, "unknown kind"},
		{"sender:=127.0.0.2", 8, "missing"},
		{"zen.example.org*", 17, "whole number"},
		{"zen.example.org*1.5", 17, "whole number"},
		{"zen.example.org*+1", 17, "whole number"},
		{"zen.example.org*0", 17, "shadow"},
		{"zen.example.org*1001", 17, "out of range"},
		{"zen.example.org*-1001", 17, "out of range"},
		{"sender:zen.example.org*x", 24, `weight "x" is not a whole number`},
		{":zen.example.org", 1, "unknown kind \"\""},
		{"*3", 1, "name of the list is missing"},
		{"zen.example.org=127.0.0.[x]", 26, "number should be"},
		{"zen.example.org=127.0.0.12345", 25, "1234 is more than 255"},
		{"a`.example", 2, `"` + "`" + `" cannot stand`},
		{"a{.example", 2, `"{" cannot stand`},
		{"a@.example", 2, `"@" cannot stand`},
		{"a[.example", 2, `"[" cannot stand`},
		{"a/.example", 2, `"/" cannot stand`},
		{"zen.example.org*2*3", 17, "whole number"},
		{"zen.example.org=", 17, "ends where a number"},
		{"zen.example.org=127.0.0", 24, "ends where"},
		{"zen.example.org=127.0.0.256", 25, "more than 255"},
		{"zen.example.org=127.0.0.2.1", 26, "after the end"},
		{"zen.example.org=127.0.0.[2..]", 29, "number should be"},
		{"zen.example.org=127.0.0.[9..2]", 29, "upside down"},
		{"zen.example.org=127.0.0.[2", 27, "ends where"},
		{"zen.example.org=127.0.0.2[3]", 26, "after the end"},
		{"zen.example.org=127.0.0.[2.3]", 27, `where "]"`},
		{"zen.example.org=127.0.0.[2,3]", 27, `where "]"`},
		{"zen.example.org=127.0.[0.0].2", 25, `where "]"`},
		{"zen.example.org=127.0.0.x", 25, "number should be"},
		{strings.Repeat("a", 64) + ".example", 1, "64 bytes"},
		{strings.Repeat("a.", 100) + "example", 1, "at most 189"},
		{strings.Repeat("a.", 93) + "a.aa", 1, "at most 189"}, // 190 bytes
	} {
		_, err := ParseEntry(tt.in)
		se, ok := errors.AsType[*SyntaxError](err)
		if !ok {
			t.Errorf("%q: error %v, want a syntax error", tt.in, err)
			continue
		}
		if se.Column != tt.column || !strings.Contains(se.Text, tt.text) {
			t.Errorf("%q: %v, want %q at character %d", tt.in, se, tt.text, tt.column)
		}
	}
}

func TestEntriesAreWritten(t *testing.T) {
	for in, want := range map[string]string{
		"A.example.":                            "a.example",
		"client:a.example=127.0.0.2*1":          "a.example=127.0.0.2*1",
		"sender:a.example=127.0.0.[7]*-1":       "sender:a.example=127.0.0.7*-1",
		"a.example=[1;3].[1;2].[5..7].[0..255]": "a.example=[1;3].[1..2].[5..7].[0..255]",
		"a.example=127.0.0.[9;2;254;255]":       "a.example=127.0.0.[2;9;254..255]",
	} {
		if e, err := ParseEntry(in); err != nil || e.String() != want {
			t.Errorf("%s: %v, %v, want %s", in, e, err, want)
		}
	}
	if got := kindCount.String(); got != "unknown" {
		t.Errorf("a kind beyond the last: %q", got)
	}
}

// FuzzParseEntry: what parses is written back to something that parses to the
// same, and every fault lies inside the string or right behind it.
func FuzzParseEntry(f *testing.F) {
	for _, s := range []string{
		"zen.example.org=127.0.0.[2..11;255]*3", "list.example.org=127.0.[0..255].[1..3]*-2", "sender:dbl.example.org",
		"x.y=[0].[1;2].[3..4].[5;7..9]", "a.b=127.0.0.[", "a.b*", ":", "client:A.B.*1", "a.b=0.0.0.0*-1000", "a.b=127.0.0.[255..0]", "\xff.b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEntry(s)
		if err != nil {
			se, ok := errors.AsType[*SyntaxError](err)
			if !ok || se.Column < 1 || se.Column > len(s)+1 || se.Text == "" {
				t.Fatalf("%q: fault %v", s, err)
			}
			return
		}
		again, err := ParseEntry(e.String())
		if err != nil {
			t.Fatalf("%q is written %q: %v", s, e.String(), err)
		}
		if again.String() != e.String() || again.Kind != e.Kind || again.Weight != e.Weight || (again.Filter == nil) != (e.Filter == nil) {
			t.Fatalf("%q became %q", e.String(), again.String())
		}
		if e.Filter != nil && *again.Filter != *e.Filter {
			t.Fatalf("%q: the filter changed", s)
		}
		if len(appendQuery(nil, listedIPv6, e.Zone)) > 253 {
			t.Fatalf("%q: no IPv6 address fits in front", s)
		}
	})
}
