package spfrecord

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string // String(), or "column: part of the fault"
	}{
		{"v=spf1", "v=spf1"},
		{"v=spf1 ", "v=spf1"},
		{"V=sPf1   +ALL  ", "v=spf1 all"},
		{"v=spf1 -all", "v=spf1 -all"},
		{"v=spf1 a mx ptr -all", "v=spf1 a mx ptr -all"},
		{"v=spf1 a/24 a//64 mx/24//64 ~all", "v=spf1 a/24 a//64 mx/24//64 ~all"},
		{"v=spf1 a:Foo.example.com/24 ?mx:example.org//0", "v=spf1 a:Foo.example.com/24 ?mx:example.org//0"},
		{"v=spf1 a:foo:bar/baz.example.com", "v=spf1 a:foo:bar/baz.example.com"},
		{"v=spf1 a:foo/24/baz.example.com/8", "v=spf1 a:foo/24/baz.example.com/8"},
		{"v=spf1 a:example.com. -all", "v=spf1 a:example.com. -all"},
		{"v=spf1 a:foo.example.xn--zckzah -all", "v=spf1 a:foo.example.xn--zckzah -all"},
		{"v=spf1 ip4:192.0.2.5/24 ip6:2001:DB8::1/32 ip6:2001:db8::7", "v=spf1 ip4:192.0.2.5/24 ip6:2001:db8::1/32 ip6:2001:db8::7"},
		{"v=spf1 -ip4:1.2.3.4 ip6:::FFFF:1.2.3.4", "v=spf1 -ip4:1.2.3.4 ip6:::ffff:1.2.3.4"},
		{"v=spf1 ip6:::1.1.1.1/0", "v=spf1 ip6:::101:101/0"},
		{"v=spf1 include:_spf.example.org exists:%{ir}.%{v}._spf.%{d2} redirect=%{d}", "v=spf1 include:_spf.example.org exists:%{ir}.%{v}._spf.%{d2} redirect=%{d}"},
		{"v=spf1 moo.cow-far_out=man:dog/cat ip4:1.2.3.4 -all", "v=spf1 moo.cow-far_out=man:dog/cat ip4:1.2.3.4 -all"},
		{"v=spf1 x= EXP=e.%{D1R+-} y=%{c}%%%_%-", "v=spf1 x= exp=e.%{D1r+-} y=%{c}%%%_%-"},
		{"v=spf1 a:%{H}.bar a:1-2.a-1", "v=spf1 a:%{H}.bar a:1-2.a-1"},
		{"v=spf1 a:a.%{d099999999999999999999}", "v=spf1 a:a.%{d253}"},
		{"v=spf1 a:a.%{d254}", "v=spf1 a:a.%{d253}"},
		{"v=spf1 a:a.%{d2r.-}", "v=spf1 a:a.%{d2r.-}"},
		{"v=spf1 x=!~", "v=spf1 x=!~"},
		{"v=spf1 A:example.com Z.A=1", "v=spf1 a:example.com z.a=1"},
		{"v=spf1 a/32//128 a:example.com/19 a:example.com/20", "v=spf1 a/32//128 a:example.com/19 a:example.com/20"},
		{"v=spf1 ip4:192.0.2.1/32 ip6:2001:db8::/128", "v=spf1 ip4:192.0.2.1/32 ip6:2001:db8::/128"},

		// What the RFC 7208 test suite calls a permerror of the record's syntax.
		{"v=spf10", "1: does not begin"},
		{"v=spf3 !a:yahoo.com", "1: does not begin"},
		{"v=spf1\t-all", "1: does not begin"},
		{"", "1: does not begin"},
		{"v=spf1 a:\xef\xbb\xbfgarbage.example.net -all", "10: byte 0xef"},
		{"v=spf1 \x80a:example.net -all", "8: no mechanism begins like this"},
		{"v=spf1 a:example.net \x96all", "22: no mechanism"},
		{"v=spf1 a:ctrl.example.com\rptr -all", "26: byte 0x0d"},
		{"v=spf1 ip4: 192.0.2.5 -all", "12: not an address"},
		{"v=spf1 ip4:192.0.2.5\n include:spf.example.com", "12: not an address"},
		{"v=spf1 ip4:1.2.3.4 -all moo", "25: unknown mechanism"},
		{"v=spf1 moo.cow/far_out=man:dog/cat", "8: unknown mechanism"},
		{"v=spf1 moo.cow:far_out=man", "8: unknown mechanism"},
		{"v=spf1 redirect:t2.example.com", "8: unknown mechanism"},
		{"v=spf1 a:foo-bar -all", "10: not a domain of at least two"},
		{"v=spf1 -all.", "9: unknown mechanism"},
		{"v=spf1 -all:foobar", "12: nothing may follow all"},
		{"v=spf1 -all/8", "12: nothing may follow all"},
		{"v=spf1 ptr/0 -all", "11: only \":\" and a domain may follow ptr"},
		{"v=spf1 ptr:", "12: a domain is missing"},
		{"v=spf1 a:foo.example.com\x00", "25: byte 0x00"},
		{"v=spf1 a:111.222.33.44", "21: cannot be the last label"},
		{"v=spf1 a:abc.123", "14: cannot be the last label"},
		{"v=spf1 a:museum", "10: at least two labels"},
		{"v=spf1 a:museum.", "10: at least two labels"},
		{"v=spf1 a//129 -all", "11: from 0 to 128"},
		{"v=spf1 a/33 -all", "10: from 0 to 32"},
		{"v=spf1 a/00", "10: without leading zeros"},
		{"v=spf1 a/1000", "10: without leading zeros"},
		{"v=spf1 a:example.com/33", "22: from 0 to 32"},
		{"v=spf1 a:example.com//129", "23: from 0 to 128"},
		{"v=spf1 a:example.com-", "18: cannot be the last label"},
		{"v=spf1 =x", "8: no mechanism begins like this"},
		{"v=spf1 exp=a", "12: at least two labels"},
		{"v=spf1 x=b%(h)", "11: %( is no macro"},
		{"v=spf1 a/24/64 -all", "12: a prefix length is a number"},
		{"v=spf1 a/024", "10: without leading zeros"},
		{"v=spf1 a/", "10: a prefix length"},
		{"v=spf1 a//", "11: a prefix length"},
		{"v=spf1 a/24//", "14: a prefix length"},
		{"v=spf1 a///64", "11: a prefix length"},
		{"v=spf1 a:example.com/-1", "18: cannot be the last label"},
		{"v=spf1 a:example.com:8080", "18: cannot be the last label"},
		{"v=spf1 a:example.-com", "18: cannot be the last label"},
		{"v=spf1 a:example..", "18: cannot be the last label"},
		{"v=spf1 a:", "10: a domain is missing"},
		{"v=spf1 a:/24", "10: a domain is missing"},
		{"v=spf1 a=b.example", "v=spf1 a=b.example"}, // an unknown modifier
		{"v=spf1 +a=b.example", "10: only"},
		{"v=spf1 +x=b.example", "9: a modifier has no qualifier"},
		{"v=spf1 include +all", "15: include needs"},
		{"v=spf1 include: -all", "16: a domain is missing"},
		{"v=spf1 include:ip5.example.com/24 -all", "28: cannot be the last label"},
		{"v=spf1 exists", "14: exists needs"},
		{"v=spf1 exists:", "15: a domain is missing"},
		{"v=spf1 exists:mail.example.com/24", "28: cannot be"},
		{"v=spf1 ip4:1.2.3.4/33", "20: from 0 to 32"},
		{"v=spf1 ip4:1.2.3.4/032", "20: without leading zeros"},
		{"v=spf1 ip4:1.2.3.4//32", "20: a prefix length"},
		{"v=spf1 ip4", "11: ip4 needs"},
		{"v=spf1 ip4:1.2.3.4:8080", "12: not an address"},
		{"v=spf1 ip4:1.2.3", "12: not an address"},
		{"v=spf1 ip4:2001:db8::1", "12: not an address for ip4"},
		{"v=spf1 ip6:192.0.2.1", "12: not an address for ip6"},
		{"v=spf1 ip6:fe80::1%eth0", "12: not an address"},
		{"v=spf1 ip6:::1.1.1.1//33", "22: a prefix length"},
		{"v=spf1 redirect=a.example redirect=b.example", "27: a second redirect="},
		{"v=spf1 exp=a.example EXP=b.example", "22: a second exp="},
		{"v=spf1 redirect= -all", "17: a domain is missing"},
		{"v=spf1 redirect=%{o}x", "17: at least two labels"},
		{"v=spf1 -", "9: a qualifier without"},
		{"v=spf1 --all", "9: no mechanism"},
		{"v=spf1 a:%(h).example", "10: %( is no macro"},
		{"v=spf1 a:b.%", "12: a single %"},
		{"v=spf1 a:b.%{d", "12: without its closing brace"},
		{"v=spf1 a:b.%{}", "14: an empty macro"},
		{"v=spf1 a:b.%{q}", "14: no macro letter"},
		{"v=spf1 a:b.%{1}", "14: no macro letter"},
		{"v=spf1 a:b.%{c}", "14: explanation only"},
		{"v=spf1 a:b.%{d0}", "15: must not be 0"},
		{"v=spf1 a:b.%{dr2}", "16: no delimiter"},
		{"v=spf1 a:b.%{d:}", "15: no delimiter"},
	} {
		r, err := Parse(tt.in)
		if err == nil {
			if got := r.String(); got != tt.want {
				t.Errorf("%q: %q, want %q", tt.in, got, tt.want)
			}
			continue
		}
		fault, ok := errors.AsType[*SyntaxError](err)
		if !ok {
			t.Errorf("%q: %T", tt.in, err)
			continue
		}
		column, text, _ := strings.Cut(tt.want, ": ")
		if want := "spf record: column " + column + ": "; !strings.HasPrefix(err.Error(), want) || !strings.Contains(fault.Text, text) {
			t.Errorf("%q: %v, want %s", tt.in, err, tt.want)
		}
	}
	for in, want := range map[string]string{
		"v=spf2": `spf record: column 1: does not begin with "v=spf1" and a blank`,
		"v=spf1 a:%\x1f" + strings.Repeat("x", 76): `spf record: column 10: "a:%\x1f` + strings.Repeat("x", 76) + `": %? is no macro`,
		"v=spf1 a:%~" + strings.Repeat("x", 77):    `spf record: column 10: "a:%~` + strings.Repeat("x", 73) + `...": %~ is no macro`,
	} {
		if _, err := Parse(in); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
	for c, want := range map[byte]byte{0x1f: '?', ' ': ' ', '~': '~', 0x7f: '?', 0xff: '?'} {
		if got := printable(c); got != want {
			t.Errorf("byte 0x%02x is shown as %c", c, got)
		}
	}
	if _, err := Parse("v=spf1 " + strings.Repeat(" ", MaxLength-len("v=spf1 ")-len("-all")) + "-all"); err != nil {
		t.Errorf("the longest record: %v", err)
	}
	if _, err := Parse("v=spf1 " + strings.Repeat("a ", MaxLength)); err == nil {
		t.Error("a record without end was read")
	}
}

func TestTerms(t *testing.T) {
	r, err := Parse("v=spf1 ip4:192.0.2.173/30 ~ip6:2001:db8:1::1/33 ip4:192.0.2.1 ip6:2001:db8::1 a mx/8//9 redirect=x.example foo=1 -all")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"192.0.2.172/30", "2001:db8::/33", "192.0.2.1/32", "2001:db8::1/128"} {
		if got := r.Terms[i].Prefix(); got != netip.MustParsePrefix(want) {
			t.Errorf("term %d: %v, want %v", i, got, want)
		}
	}
	if a := r.Terms[4]; a.Len4 != NoLength || a.Len6 != NoLength || a.Pos != 79 || a.Qualifier != Pass || !a.Lookup() {
		t.Errorf("a: %+v", a)
	}
	if mx := r.Terms[5]; mx.Len4 != 8 || mx.Len6 != 9 || mx.Kind != MX {
		t.Errorf("mx: %+v", mx)
	}
	if m := r.Modifier(Redirect); m == nil || m.Domain.String() != "x.example" || m.Qualifier != 0 || !m.Kind.Modifier() {
		t.Errorf("redirect: %+v", m)
	}
	if r.Modifier(Exp) != nil {
		t.Error("found an exp= that is not there")
	}
	if m := r.Terms[7]; m.Kind != Unknown || m.Name != "foo" || m.Lookup() || m.Kind.String() != "modifier" {
		t.Errorf("unknown modifier: %+v", m)
	}
	if kindCount.String() != "unknown" {
		t.Error("a kind that does not exist has a name")
	}
}

// The examples of RFC 7208 section 7.4, and a few beyond.
func TestExpand(t *testing.T) {
	values := map[byte]string{
		's': "strong-bad@email.example.com", 'l': "strong-bad", 'o': "email.example.com", 'd': "email.example.com",
		'i': "192.0.2.3", 'v': "in-addr", 'h': "mx.example.org",
	}
	for _, tt := range [][2]string{
		{"%{s}", "strong-bad@email.example.com"},
		{"%{o}", "email.example.com"},
		{"%{d4}", "email.example.com"},
		{"%{d3}", "email.example.com"},
		{"%{d2}", "example.com"},
		{"%{d1}", "com"},
		{"%{dr}", "com.example.email"},
		{"%{d2r}", "example.email"},
		{"%{l}", "strong-bad"},
		{"%{l-}", "strong.bad"},
		{"%{lr}", "strong-bad"},
		{"%{lr-}", "bad.strong"},
		{"%{l1r-}", "strong"},
		{"%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"},
		{"%{lr-}.lp.%{ir}.%{v}._spf.%{d2}", "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"},
		{"%{d2}.trusted-domains.example.net", "example.com.trusted-domains.example.net"},
		{"%{S}.x.example", "strong-bad%40email.example.com.x.example"},
		{"a%%b%_c%-d.example.", "a%b c%20d.example"},
	} {
		r, err := Parse("v=spf1 exists:" + tt[0])
		if err != nil {
			t.Errorf("%s: %v", tt[0], err)
			continue
		}
		got, err := r.Terms[0].Domain.Expand(func(l byte) (string, bool) { v, ok := values[l]; return v, ok })
		if err != nil || got != tt[1] {
			t.Errorf("%s: %q, %v, want %q", tt[0], got, err, tt[1])
		}
	}
	r, err := Parse("v=spf1 exists:%{d}.%{p}.example")
	if err != nil {
		t.Fatal(err)
	}
	d := r.Terms[0].Domain
	if _, err := d.Expand(func(l byte) (string, bool) { return "x", l == 'd' }); !errors.Is(err, ErrNoValue) {
		t.Errorf("unknown value: %v", err)
	}
	if m := d.Macros(); len(m) != 2 || m[1].Letter != 'p' {
		t.Errorf("macros %v", m)
	}
	for _, tt := range []struct {
		macro Macro
		want  string
	}{{Macro{Reverse: true}, "com.example."}, {Macro{Keep: 2}, "example.com"}, {Macro{Keep: 3}, ".example.com"}, {Macro{Delimiters: "x"}, ".e.ample.com"}} {
		if got := tt.macro.apply(".example.com"); got != tt.want {
			t.Errorf("%v of .example.com: %q, want %q", tt.macro, got, tt.want)
		}
	}
	for value, want := range map[string]string{ // with .x.example behind it
		"a" + strings.Repeat(".abcdefgh", 26) + ".abcdefg":  "a" + strings.Repeat(".abcdefgh", 26) + ".abcdefg", // 253 bytes
		"ab" + strings.Repeat(".abcdefgh", 26) + ".abcdefg": strings.Repeat("abcdefgh.", 26) + "abcdefg",        // and 254
	} {
		got, err := d.Expand(func(l byte) (string, bool) { return map[byte]string{'d': value, 'p': "x"}[l], true })
		if err != nil || got != want+".x.example" {
			t.Errorf("a name of %d bytes became %q, %v", len(value)+len(".x.example"), got, err)
		}
	}
	long := strings.Repeat("abcdefghi.", 30) + "end"
	got, err := d.Expand(func(byte) (string, bool) { return long, true })
	if err != nil || len(got) > 253 || !strings.HasSuffix(got, ".end.example") || !strings.HasPrefix(got, "abcdefghi.") {
		t.Errorf("a long name became %q, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"v=spf1", "V=SPF1 +A/0//0 -MX:a.b/32//128 ?include:%{d2r.-}.x ~all", "v=spf1 ip4:1.2.3.4/33", "v=spf1 ip6:::ffff:1.2.3.4/96",
		"v=spf1 exists:%{ir}.%{v}._spf.%{d2} redirect=%{D} exp=%%%_%-.e.f x.y-z=%{c}", "v=spf1 a:b/c.d/24", "v=spf1 a:%{d}/24//64",
		"v=spf1 a:x.y.", "v=spf1 ptr:%{l99999999999999999999}", "v=spf1 -", "v=spf1 a:1-2.3-4", "v=spf1 ip6:1::2//3",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			fault, ok := errors.AsType[*SyntaxError](err)
			if !ok || fault.Pos < 1 || fault.Pos > len(s)+1 || fault.Text == "" {
				t.Fatalf("%q: %#v", s, err)
			}
			return
		}
		again, err := Parse(r.String())
		if err != nil {
			t.Fatalf("%q became %q: %v", s, r, err)
		}
		if again.String() != r.String() || len(again.Terms) != len(r.Terms) {
			t.Fatalf("%q became %q, then %q", s, r, again)
		}
		for i := range r.Terms {
			a, b := r.Terms[i], again.Terms[i]
			if a.Kind != b.Kind || a.Qualifier != b.Qualifier || a.Addr != b.Addr || a.Len4 != b.Len4 || a.Len6 != b.Len6 || a.Name != b.Name {
				t.Fatalf("%q: %+v, then %+v", s, a, b)
			}
			if a.Kind == IP4 || a.Kind == IP6 {
				if p := a.Prefix(); !p.IsValid() || p != p.Masked() {
					t.Fatalf("%q: prefix %v", s, p)
				}
			}
			value := func(byte) (string, bool) { return "a.b-c.d", true }
			x, err1 := a.Domain.Expand(value)
			y, err2 := b.Domain.Expand(value)
			if err1 != nil || err2 != nil || x != y {
				t.Fatalf("%q expands to %q, then %q", s, x, y)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	const text = "v=spf1 ip4:40.92.0.0/15 ip4:40.107.0.0/16 ip4:52.100.0.0/15 ip4:52.102.0.0/16 ip4:52.103.0.0/17 ip4:104.47.0.0/17 " +
		"ip6:2a01:111:f400::/48 ip6:2a01:111:f403::/49 ip6:2a01:111:f403:8000::/51 include:_spf.example.org -all"
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

func TestParseExplanation(t *testing.T) {
	values := map[byte]string{'i': "192.0.2.3", 'd': "example.com", 'c': "192.0.2.3", 't': "17", 'r': "mx."}
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"go away.", "go away."},
		{" two  blanks ", " two  blanks "},
		{"%{i} is not one of %{d}'s: %{d2r} %{c} %{t} %{r}", "192.0.2.3 is not one of example.com's: com.example 192.0.2.3 17 mx."},
		{"100%% %_ %-", "100%   %20"},
		{"(a) \"b\" é", "9: \"é\": byte 0xc3"},
		{"a\nb", "2:"},
		{"50% off", "3: \"50%\": a single"},
		{"a b %{x} c", "7: \"%{x}\": 'x' is no macro letter"},
		{strings.Repeat("x ", MaxLength/2+1), "65536: more than"},
	} {
		d, err := ParseExplanation(tt.in)
		if err == nil {
			var got string
			if got, err = d.ExpandText(func(c byte) (string, bool) { v, ok := values[c]; return v, ok }); err != nil || got != tt.want {
				t.Errorf("%q: %q, %v", tt.in, got, err)
			}
			continue
		}
		if column, _, _ := strings.Cut(tt.want, ":"); !strings.HasPrefix(err.Error(), "spf record: column "+column+":") {
			t.Errorf("%q: %v, want %s", tt.in, err, tt.want)
		}
	}
	if _, err := ParseExplanation(strings.Repeat("x", MaxLength)); err != nil {
		t.Errorf("the longest text: %v", err)
	}
	d, err := ParseExplanation("%{l}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.ExpandText(func(byte) (string, bool) { return "", false }); !errors.Is(err, ErrNoValue) {
		t.Errorf("no value: %v", err)
	}
	long := strings.Repeat("abc.", 200)
	if got, err := d.ExpandText(func(byte) (string, bool) { return long, true }); err != nil || got != long {
		t.Errorf("a long text became %q, %v", got, err)
	}
}
