package auth

import (
	"slices"
	"strings"
	"testing"
)

func TestFromDomains(t *testing.T) {
	for _, tt := range []struct {
		value string
		want  string // domains, "" for none that can be told
	}{
		{" ann@example.org", "example.org"},
		{" Ann <ann@Example.ORG>", "example.org"},
		{" <ann@example.org> (at work)", "example.org"},
		{" \"Lee, Ann\" <ann@example.org>", "example.org"},
		{" \"bob@example.com\" <ann@example.org>", "example.org"},
		{" bob@example.com <ann@example.org>", "example.org"},
		{" =?utf-8?q?bob=40example.com?= <ann@example.org>", "example.org"},
		{" (bob@example.com) ann@example.org", "example.org"},
		{" ann @ example . org", "example.org"},
		{"\n\tann@example.org", "example.org"},
		{" Ann <ann@example.org>, Bob <bob@example.com>", "example.org example.com"},
		{" ann@example.org, bob@example.org", "example.org"},
		{" Friends: ann@example.org, Bob <bob@example.com>;", "example.org example.com"},
		{" Undisclosed:;", ""},
		{" <@relay.example,@b.example:ann@example.org>", ""},
		{" <@relay.example:ann@example.org>", "example.org"},
		{" \"ann@example.com\"@example.org", "example.org"},
		{" \"a\\\"@example.com\"@example.org", "example.org"},
		{" ann@bücher.example", "xn--bcher-kva.example"},
		{" Ann O'Neil <ann.oneil@mail.example.org>", "mail.example.org"},
		{" Dr. Ann (\\) <x@example.com>) <ann@example.org>", "example.org"},

		{"", ""},
		{" Ann", ""},
		{" Ann Lee", ""},
		{" ann", ""},
		{" <>", ""},
		{" <ann>", ""},
		{" @example.org", ""},
		{" ann@", ""},
		{" ann@localhost", ""},
		{" ann@[192.0.2.1]", ""},
		{" ann@example.org@example.com", ""},
		{" <ann@example.org", ""},
		{" ann@example.org>", ""},
		{" <<ann@example.org>>", ""},
		{" <ann@example.org> <bob@example.com>", ""},
		{" <ann@example.org> bob@example.com", ""},
		{" <ann@example.org, bob@example.com>", ""},
		{" \"ann@example.org", ""},
		{" (ann@example.org", ""},
		{" Friends: ann@example.org", ""},
		{" ann@example.org;", ""},
		{" a: b: ann@example.org;", ""},
		{" ann@example.org\x00", ""},
		{" ann\\@example.org", ""},
		{" ann@exa(mple.com)mple.org", "example.org"},
		{" ann@-example.org", ""},
		{" ann@example..org", ""},
		{" ann@" + strings.Repeat("a", 64) + ".org", ""},
		{" ann@ex ample.net(.example.org", ""},
		{strings.Repeat(" a@x.example,", 300) + "b@y.example", "x.example y.example"},
		{" a@a.example, , b@b.example", "a.example b.example"},
	} {
		got, err := fromDomains(tt.value)
		if strings.Join(got, " ") != tt.want || (err != nil) != (tt.want == "" && tt.value != "" && tt.value != " Undisclosed:;") {
			t.Errorf("%.60q: %v, %v; want %q", tt.value, got, err, tt.want)
		}
	}
	var many []string
	for i := range maxAuthors + 1 {
		many = append(many, "a@d"+strings.Repeat("x", i)+".example")
	}
	if got, err := fromDomains(strings.Join(many[:maxAuthors], ",")); err != nil || len(got) != maxAuthors {
		t.Errorf("%d domains: %d, %v", maxAuthors, len(got), err)
	}
	if _, err := fromDomains(strings.Join(many, ",")); err == nil {
		t.Error("more domains than are looked at")
	}
}

// Whatever stands in the field, what comes out are domains, and no address is
// lost: one that is added in front or behind is found or nothing is.
func FuzzFromDomains(f *testing.F) {
	f.Add(" Ann <ann@example.org>")
	f.Add(" \"a\\\"b\" (c(d)e) <@r:ann@example.org>, g: x@y.example;")
	f.Add(" =?utf-8?b?YQ==?= <a@b.c")
	f.Fuzz(func(t *testing.T, value string) {
		got, err := fromDomains(value)
		for _, d := range got {
			if !properDomain(d) || err != nil {
				t.Fatalf("%q: %q, %v", value, d, err)
			}
		}
		for _, with := range []string{"z@zz.example, " + value, value + ", z@zz.example"} {
			more, err := fromDomains(with)
			if err == nil && !slices.Contains(more, "zz.example") {
				t.Fatalf("%q: %v", with, more)
			}
		}
	})
}
