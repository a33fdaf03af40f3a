package spf

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"postern/internal/dnstest"
	"postern/policy"
)

// What other programs got wrong, and what RFC 7208 says of odd records and
// senders, with real packets.
func TestRecords(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.LookupTime = c.Timeout / 2 })
	w.txt("pass.example", "v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all")
	w.txt("fail.example", "v=spf1 -all")
	w.txt("soft.example", "v=spf1 ~all")
	w.txt("neutral.example", "v=spf1 ?all")
	w.txt("other.example", "some text")
	w.txt("nothing.example", "v=spf1 include:missing.example -all")
	w.txt("included-other.example", "v=spf1 include:other.example -all")
	w.txt("redirected.example", "v=spf1 redirect=missing.example")
	w.txt("redirect-ok.example", "v=spf1 redirect=pass.example")
	w.txt("twice.example", "v=spf1 ip4:192.0.2.0/24 -all")
	w.txt("twice.example", "v=spf1 -all")
	w.txt("include-twice.example", "v=spf1 include:twice.example -all")
	addTXT(w.dns, "strings.example", "v=spf1 ip4:192.0", ".2.0/24 -a", "ll")
	w.txt("long.example", "v=spf1 "+strings.Repeat("ip4:203.0.113.9 ", 40)+"ip4:192.0.2.0/24 -all")
	w.txt("syntax.example", "v=spf1 ip4:192.0.2.0/24 foo -all") // the fault stands behind the match
	w.txt("loop.example", "v=spf1 include:loop.example -all")
	w.txt("broken-include.example", "v=spf1 include:broken.example -all")
	w.dns.Behave("broken.example", dnstest.ServFail)
	w.txt("broken-a.example", "v=spf1 a:broken.example -all")
	w.txt("broken-mx.example", "v=spf1 mx:broken.example -all")
	w.txt("silent-a.example", "v=spf1 a:silent.example -all")
	w.dns.Behave("silent.example", dnstest.Drop)
	w.txt("half-a.example", "v=spf1 a:half.example -all") // only the other family cannot be looked up
	w.dns.Add("half.example. 60 IN A 192.0.2.7")
	w.dns.Behave("half.example", dnstest.Behavior{Rcode: 2, Type: "AAAA"})
	w.txt("void2.example", "v=spf1 a:v1.missing.example a:v2.missing.example ip4:192.0.2.0/24 -all")
	w.txt("void3.example", "v=spf1 a:v1.missing.example mx:v2.missing.example exists:v3.missing.example ip4:192.0.2.0/24 -all")
	for n := range 11 {
		w.txt(fmt.Sprintf("n%d.example", n), "v=spf1 ?ip4:203.0.113.1")
		w.dns.Add(fmt.Sprintf("many.example. 60 IN MX 10 mx%d.many.example.", n), fmt.Sprintf("mx%d.many.example. 60 IN A 203.0.113.%d", n, n))
		w.dns.Add(fmt.Sprintf("9.2.0.192.in-addr.arpa. 60 IN PTR p%d.ptr.example.", n), fmt.Sprintf("p%d.ptr.example. 60 IN A 192.0.2.9", n))
	}
	includes := func(n int) (s string) {
		for i := range n {
			s += fmt.Sprintf(" include:n%d.example", i)
		}
		return s
	}
	w.txt("ten.example", "v=spf1"+includes(10)+" ip4:192.0.2.0/24 -all")
	w.txt("eleven.example", "v=spf1"+includes(11)+" ip4:192.0.2.0/24 -all")
	w.txt("eleven-terms.example", "v=spf1"+strings.Repeat(" a:half.example", 11)+" -all") // 203.0.113.1 matches none
	w.txt("mx.example", "v=spf1 mx:many.example -all")
	w.txt("ptr.ptr.example", "v=spf1 ptr:ptr.example -all")
	w.txt("ptr-last.example", "v=spf1 ptr:p10.ptr.example -all") // beyond the tenth name
	w.txt("p.example", "v=spf1 exists:%{p}.p.example -all")
	w.dns.Add("*.p.example. 60 IN A 127.0.0.2")
	w.txt("exists6.example", "v=spf1 exists:only-a.example -all")
	w.dns.Add("only-a.example. 60 IN A 127.0.0.2")
	w.txt("mapped.example", "v=spf1 ip6:::ffff:192.0.2.7 -all") // never an IPv4 client (RFC 7208 section 5)
	w.txt("local.example", "v=spf1 exists:%{l}.users.example include:%{l}.inc.example ?all")
	w.dns.Add("good.users.example. 60 IN A 127.0.0.2", `a\@b.users.example. 60 IN A 127.0.0.2`, `o\(d\)d.users.example. 60 IN A 127.0.0.2`,
		"xn--jrg-hoa.users.example. 60 IN A 127.0.0.2", `\"\;\'.users.example. 60 IN A 127.0.0.2`)
	w.txt("slash.example", "v=spf1 exists:%{l/}.users.example -all")
	w.txt("double-dot.example", "v=spf1 exists:%{l1r}.users.example -all")
	w.txt("sender.example", "v=spf1 exists:%{s}.all.example -all")
	w.dns.Add(`*.sender.example.all.example. 60 IN A 127.0.0.2`, `u\@sender.example.all.example. 60 IN A 127.0.0.2`)
	w.txt("xn--bcher-kva.example", "v=spf1 ip4:192.0.2.0/24 -all")
	w.txt("mail.helo.example", "v=spf1 ip4:192.0.2.7 -all")
	w.txt("_under.example", "v=spf1 ip4:192.0.2.7 -all")
	w.dns.Add("null-mx.example. 60 IN MX 0 .")
	w.txt("uses-null-mx.example", "v=spf1 mx:null-mx.example -all")
	w.dns.Add("alias.example. 60 IN CNAME pass.example.")

	const client = "192.0.2.7"
	for _, tt := range []struct {
		name, client, helo, sender string
		want, detail               string
	}{
		{"pass", client, "x", "u@pass.example", "pass", ""},
		{"fail", "203.0.113.1", "x", "u@pass.example", "fail", "fail by all"},
		{"softfail", client, "x", "u@soft.example", "softfail", ""},
		{"neutral", client, "x", "u@neutral.example", "neutral", ""},
		{"IPv6", "2001:db8::7", "x", "u@pass.example", "pass", ""},
		{"IPv6 fail", "2001:dead::7", "x", "u@pass.example", "fail", ""},
		{"IPv4-mapped client", "::ffff:192.0.2.7", "x", "u@pass.example", "pass", ""},
		{"IPv4-mapped network", client, "x", "u@mapped.example", "fail", ""},
		{"other texts only", client, "x", "u@other.example", "none", ""},
		{"no such domain", client, "x", "u@missing.example", "none", ""},
		{"upper case", client, "x", "u@PASS.example", "pass", ""},
		{"through a CNAME", client, "x", "u@alias.example", "pass", ""},

		{"include without a record", client, "x", "u@nothing.example", "permerror", "missing.example is included or redirected to, and has no SPF record"},
		{"include of another text", client, "x", "u@included-other.example", "permerror", "other.example is included"},
		{"redirect without a record", client, "x", "u@redirected.example", "permerror", "missing.example is included or redirected to"},
		{"redirect", client, "x", "u@redirect-ok.example", "pass", ""},
		{"two records", client, "x", "u@twice.example", "permerror", "twice.example has more than one SPF record"},
		{"include with two records", client, "x", "u@include-twice.example", "permerror", "twice.example has more than one"},
		{"a record of several strings", client, "x", "u@strings.example", "pass", ""},
		{"a long record", client, "x", "u@long.example", "pass", ""},
		{"fault behind the match", client, "x", "u@syntax.example", "permerror", `syntax.example: spf record: column 25: "foo"`},
		{"loop", client, "x", "u@loop.example", "permerror", "more than 10 look-ups"},
		{"record cannot be looked up", client, "x", "u@broken.example", "temperror", "server failure"},
		{"include cannot be looked up", client, "x", "u@broken-include.example", "temperror", "server failure"},
		{"address cannot be looked up", client, "x", "u@broken-a.example", "temperror", "server failure"},
		{"exchangers cannot be looked up", client, "x", "u@broken-mx.example", "temperror", "server failure"},
		{"no answer", client, "x", "u@silent-a.example", "temperror", "timeout"},
		{"the other family cannot be looked up", client, "x", "u@half-a.example", "pass", ""},
		{"and the client's cannot", "2001:db8::7", "x", "u@half-a.example", "temperror", "server failure"},

		{"two void look-ups", client, "x", "u@void2.example", "pass", ""},
		{"three void look-ups", client, "x", "u@void3.example", "permerror", "more than 2 look-ups of names without records"},
		{"ten look-ups", client, "x", "u@ten.example", "pass", ""},
		{"eleven look-ups", client, "x", "u@eleven.example", "permerror", "more than 10 look-ups"},
		{"the same name eleven times", "203.0.113.200", "x", "u@eleven-terms.example", "permerror", "more than 10 look-ups"},
		{"eleven exchangers", client, "x", "u@mx.example", "permerror", "more than 10 mail exchangers"},
		{"null MX", client, "x", "u@uses-null-mx.example", "fail", ""},
		{"ptr", "192.0.2.9", "x", "u@ptr.ptr.example", "pass", ""},
		{"eleventh name", "192.0.2.9", "x", "u@ptr-last.example", "fail", ""},
		{"ptr without names", client, "x", "u@ptr.ptr.example", "fail", ""},
		{"%{p}", "192.0.2.9", "x", "u@p.example", "pass", ""},
		{"exists asks for A", "2001:db8::7", "x", "u@exists6.example", "pass", ""},

		{"known local part", client, "x", "good@local.example", "pass", ""},
		{"quoted @", client, "x", `"a@b"@local.example`, "pass", ""},
		{"parentheses", client, "x", `"o(d)d"@local.example`, "pass", ""},
		{"quotes and semicolons", client, "x", `"\";'"@local.example`, "pass", ""},
		{"unicode local part", client, "x", "jörg@local.example", "neutral", ""}, // RFC 8616 section 4: no term matches
		{"backslash and control characters", client, "x", "\"a\\\\\x01\"@local.example", "permerror", "is included"},
		{"delimiter /", client, "x", "a/good@slash.example", "fail", ""},
		{"empty labels", client, "x", `"good..x"@double-dot.example`, "pass", ""},
		{"%{s} with its @", client, "x", "u@sender.example", "pass", ""},
		{"no local part", client, "x", "@pass.example", "pass", ""},
		{"unicode domain", client, "x", "u@bücher.example", "pass", ""},
		{"underscore", client, "x", "u@_under.example", "pass", ""},
		{"address literal", client, "x", "u@[192.0.2.7]", "none", ""},
		{"IPv6 literal", client, "x", "u@[IPv6:2001:db8::7]", "none", ""},
		{"bare address", client, "x", "u@192.0.2.7", "none", ""},
		{"one label", client, "x", "u@localhost", "none", ""},
		{"bare user", client, "x", "root", "none", ""},
		{"odd characters", client, "x", "u@a b\x01.example", "none", ""},
		{"empty label", client, "x", "u@a..example", "none", ""},
		{"long label", client, "x", "u@" + strings.Repeat("a", 64) + ".example", "none", ""},
		{"long domain", client, "x", "u@" + strings.Repeat("a.", 130) + "example", "none", ""},
		{"a mark of ours", client, "x", "u@\x01.example", "none", ""},

		{"null sender: HELO", client, "mail.helo.example", "", "pass", ""},
		{"null sender: HELO in upper case", client, "MAIL.helo.example.", "<>", "pass", ""},
		{"null sender from elsewhere", "203.0.113.1", "mail.helo.example", "", "fail", "HELO mail.helo.example: fail"},
		{"null sender, literal", client, "[192.0.2.7]", "", "none", ""},
		{"null sender, nothing", client, "", "", "none", ""},
	} {
		req := w.mail(tt.client, tt.helo, tt.sender)
		v := w.ask(req)
		if got := req.Facts.SPF.Result; got != tt.want || !strings.Contains(v.Detail, tt.detail) {
			t.Errorf("%s: %s (%s), want %s (%s)", tt.name, got, v.Detail, tt.want, tt.detail)
		}
		identity := "mailfrom"
		if tt.sender == "" || tt.sender == "<>" {
			identity = "helo"
		}
		if got := req.Facts.SPF.Identity; got != identity {
			t.Errorf("%s: identity %s", tt.name, got)
		}
		want := policy.Continue
		if tt.want == "fail" {
			want = policy.Reject
		}
		if v.Action != want || v.Reason == "" || len(v.Add) != 1 {
			t.Errorf("%s: %+v", tt.name, v)
		}
		if marked := tt.want != "pass" && tt.want != "none"; marked != req.Facts.Suspicious() {
			t.Errorf("%s: marks %v", tt.name, req.Facts.Marks)
		}
		if temp := tt.want == "temperror"; temp != (len(req.Facts.Missing) == 1) {
			t.Errorf("%s: missing %v", tt.name, req.Facts.Missing)
		}
	}
}

// A record that lets everybody pass says nothing.
func TestTooWide(t *testing.T) {
	w := newWorld(t, nil)
	for name, record := range map[string]string{
		"all.example": "v=spf1 +all", "narrow-first.example": "v=spf1 ip4:192.0.2.7 +all", "halves.example": "v=spf1 ip4:0.0.0.0/1 ip4:128.0.0.0/1",
		"seven.example": "v=spf1 ip4:192.0.0.0/7 -all", "eight.example": "v=spf1 ip4:192.0.0.0/8 -all",
		"eight-and-one.example": "v=spf1 ip4:192.0.0.0/8 ip4:10.0.0.1/32 -all",
		"sum.example":           "v=spf1 include:nine1.example include:nine2.example include:nine3.example -all",
		"nine1.example":         "v=spf1 ip4:10.0.0.0/9 -all", "nine2.example": "v=spf1 ip4:11.0.0.0/9 -all", "nine3.example": "v=spf1 ip4:192.0.0.0/9 -all",
		"a.example": "v=spf1 a/0 -all", "include.example": "v=spf1 include:all.example -all", "redirect.example": "v=spf1 redirect=all.example",
		"but-one.example":      "v=spf1 -ip4:203.0.113.1 +all",
		"soft-include.example": "v=spf1 ?include:all.example", "other.example": "v=spf1 ?include:elsewhere.example ip4:192.0.2.7 -all",
		"elsewhere.example": "v=spf1 ip4:10.0.0.0/7", "six.example": "v=spf1 ip6:2000::/3 ip4:192.0.2.7 -all", "twenty.example": "v=spf1 ip6:2001::/20 -all",
		"nineteen.example": "v=spf1 ip6:2001::/19 -all", "soft.example": "v=spf1 ip4:192.0.2.7 ~ip4:0.0.0.0/0",
	} {
		w.txt(name, record)
	}
	w.dns.Add("a.example. 60 IN A 203.0.113.1")
	for _, tt := range []struct{ sender, client, want string }{
		{"all.example", "192.0.2.7", "policy"}, {"all.example", "2001:db8::7", "policy"},
		{"narrow-first.example", "192.0.2.7", "policy"},
		{"halves.example", "192.0.2.7", "policy"}, {"seven.example", "192.0.2.7", "policy"}, {"eight.example", "192.0.2.7", "pass"},
		{"eight-and-one.example", "192.0.2.7", "policy"}, {"sum.example", "192.0.2.7", "policy"}, {"nine3.example", "192.0.2.7", "pass"},
		{"a.example", "192.0.2.7", "policy"}, {"include.example", "192.0.2.7", "policy"}, {"redirect.example", "192.0.2.7", "policy"},
		{"but-one.example", "192.0.2.7", "policy"}, {"but-one.example", "203.0.113.1", "fail"},
		{"soft-include.example", "192.0.2.7", "neutral"}, {"other.example", "192.0.2.7", "pass"},
		{"six.example", "192.0.2.7", "pass"}, {"six.example", "2001:db8::7", "policy"},
		{"twenty.example", "2001:db8::7", "pass"}, {"nineteen.example", "2001:db8::7", "policy"}, {"soft.example", "192.0.2.7", "pass"},
	} {
		req := w.mail(tt.client, "x", "u@"+tt.sender)
		v := w.ask(req)
		if got := req.Facts.SPF.Result; got != tt.want {
			t.Errorf("%s from %s: %s, want %s", tt.sender, tt.client, got, tt.want)
		}
		if tt.want == "policy" && (v.Reason != "spf-too-wide" || !slices.Equal(req.Facts.Marks, []string{"spf-too-wide"}) || !strings.HasPrefix(v.Add[0].Value, "neutral (mx1.example.org: the record of "+tt.sender+" lets too many")) {
			t.Errorf("%s: %+v %v", tt.sender, v, req.Facts.Marks)
		}
	}
	w.configure(func(c *Config) { c.WidestIPv4 = 7 })
	req := w.mail("192.0.2.7", "x", "u@seven.example")
	if w.ask(req); req.Facts.SPF.Result != "pass" {
		t.Errorf("with the bound moved: %s", req.Facts.SPF.Result)
	}
}

func TestReplies(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.MailFrom = Actions{Fail: Reject, SoftFail: Defer, Neutral: Reject, None: Reject, PermError: Reject, TempError: Defer, TooWide: Reject}
		c.Helo = Actions{Fail: Reject, PermError: Defer}
		c.Explanation = true
	})
	w.txt("fail.example", "v=spf1 exp=why.fail.example -all")
	w.txt("why.fail.example", "%{i} is no server of %{d}, see https://%{d}/%{l}?r=%{r}&c=%{c}")
	w.txt("soft.example", "v=spf1 ~all")
	w.txt("neutral.example", "v=spf1 ?all")
	w.txt("wide.example", "v=spf1 +all")
	w.txt("bad.example", "v=spf1 foo")
	w.dns.Behave("broken.example", dnstest.ServFail)
	for _, tt := range []struct{ helo, sender, reason, reply string }{
		{"x", "u@fail.example", "spf-fail", "550 5.7.23 SPF: 192.0.2.7 may not send mail for fail.example (MAIL FROM, fail); fail.example says: 192.0.2.7 is no server of fail.example, see https://fail.example/u?r=mx1.example.org&c=192.0.2.7"},
		{"x", "u@soft.example", "spf-softfail", "450 4.7.23 SPF: 192.0.2.7 may not send mail for soft.example (MAIL FROM, softfail)"},
		{"x", "u@neutral.example", "spf-neutral", "550 5.7.23 SPF: 192.0.2.7 may not send mail for neutral.example (MAIL FROM, neutral)"},
		{"x", "u@none.example", "spf-none", "550 5.7.23 SPF: 192.0.2.7 may not send mail for none.example (MAIL FROM, none)"},
		{"x", "u", "spf-none", "550 5.7.23 SPF: 192.0.2.7 may not send mail for an address without a domain (MAIL FROM, none)"},
		{"x", "u@wide.example", "spf-too-wide", "550 5.7.23 SPF: 192.0.2.7 may not send mail for wide.example (MAIL FROM, too-wide)"},
		{"x", "u@bad.example", "spf-permerror", `550 5.7.24 SPF: the record of bad.example has an error: bad.example: spf record: column 8: "foo": unknown mechanism`},
		{"x", "u@broken.example", "spf-temperror", "451 4.4.3 SPF: the record of broken.example cannot be looked up, please try again later"},
		{"fail.example", "", "spf-helo-fail", "550 5.7.23 SPF: 192.0.2.7 may not send mail for fail.example (HELO, fail); fail.example says: 192.0.2.7 is no server of fail.example, see https://fail.example/postmaster?r=mx1.example.org&c=192.0.2.7"},
		{"bad.example", "", "spf-helo-permerror", "450 4.7.24 SPF: 192.0.2.7 may not send mail for bad.example (HELO, permerror)"},
		{"fail.example", "u@soft.example", "spf-helo-fail", "550 5.7.23 SPF: 192.0.2.7 may not send mail for fail.example (HELO, fail); fail.example says: 192.0.2.7 is no server of fail.example, see https://fail.example/postmaster?r=mx1.example.org&c=192.0.2.7"},
		{"broken.example", "", "spf-helo-temperror", ""},
	} {
		v := w.ask(w.mail("192.0.2.7", tt.helo, tt.sender))
		got := v.Reply.String()
		if v.Reply.Code == 0 {
			got = ""
		}
		if got != tt.reply || v.Reason != tt.reason {
			t.Errorf("%s, %s: %s %q,\nwant %s %q", tt.helo, tt.sender, v.Reason, got, tt.reason, tt.reply)
		}
	}
}

// What a stranger writes into an explanation gets into a reply as one short
// line, or not at all.
func TestExplanations(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Explanation, c.Reply = true, "550 5.7.23 no{explanation}" })
	for name, text := range map[string]string{
		"plain": "go away", "long": strings.Repeat("x", 300), "control": "a\r\nb\x00c", "percent": "100%% of %{d}", "fault": "100% of", "letters": "%{x}",
		"unicode": "grüße", "blanks": "   ", "two": "a",
	} {
		w.txt(name+".example", "v=spf1 -all exp=why."+name+".example")
		w.txt("why."+name+".example", text)
	}
	w.txt("why.two.example", "b")
	w.txt("none.example", "v=spf1 -all")
	w.txt("missing.example", "v=spf1 -all exp=why.missing.example")
	w.txt("broken.example", "v=spf1 -all exp=why.broken.example")
	w.dns.Behave("why.broken.example", dnstest.ServFail)
	w.txt("redirect.example", "v=spf1 redirect=plain.example exp=why.percent.example") // RFC 7208 section 6.2: the target's
	w.txt("include.example", "v=spf1 include:plain.example -all")                      // never that of an include
	w.txt("local.example", "v=spf1 -all exp=%{l}.local.example")
	w.txt("u.local.example", "hello %{L}")
	for name, want := range map[string]string{
		"plain": "go away", "long": strings.Repeat("x", 157) + "...", "control": "", "percent": "100% of percent.example", "fault": "", "letters": "",
		"unicode": "", "blanks": "", "two": "", "none": "", "missing": "", "broken": "", "include": "", "local": "hello u",
	} {
		v := w.ask(w.mail("192.0.2.7", "x", "u@"+name+".example"))
		if want != "" {
			want = "; " + name + ".example says: " + want
		}
		if got := strings.TrimPrefix(v.Reply.Text, "no"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if v := w.ask(w.mail("192.0.2.7", "x", "u@redirect.example")); v.Reply.Text != "no; redirect.example says: go away" {
		t.Errorf("of a redirect: %q", v.Reply.Text)
	}
	w.configure(func(c *Config) { c.Reply = "550 5.7.23 no{explanation}" })
	if v := w.ask(w.mail("192.0.2.7", "x", "u@plain.example")); v.Reply.Text != "no" {
		t.Errorf("switched off: %q", v.Reply.Text)
	}
}

func TestDecide(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MailFrom.Fail, cfg.Helo.Fail = Reject, Reject
	cfg.MailFrom.TempError, cfg.MailFrom.None = Defer, Mark
	outcome := func(s string) *Outcome {
		switch s {
		case "":
			return nil
		case "wide":
			return &Outcome{Result: pass, TooWide: true}
		}
		return &Outcome{Result: s}
	}
	for _, tt := range []struct {
		mail, helo    string
		must, missing bool
		action        Action
		reason        string
	}{
		{"pass", "pass", false, false, Off, "spf-pass"},
		{"pass", "none", false, false, Off, "spf-pass"},
		{"pass", "fail", false, false, Reject, "spf-helo-fail"},
		{"pass", "softfail", false, false, Mark, "spf-helo-softfail"},
		{"fail", "pass", false, false, Reject, "spf-fail"},
		{"fail", "fail", false, false, Reject, "spf-fail"},
		{"softfail", "fail", false, false, Reject, "spf-helo-fail"},
		{"softfail", "softfail", false, false, Mark, "spf-softfail"},
		{"none", "none", false, false, Mark, "spf-none"},
		{"neutral", "none", false, false, Mark, "spf-neutral"},
		{"wide", "none", false, false, Mark, "spf-too-wide"},
		{"permerror", "none", false, false, Mark, "spf-permerror"},
		{"temperror", "temperror", false, false, Defer, "spf-temperror"},
		{"temperror", "fail", false, false, Reject, "spf-helo-fail"},
		{"", "pass", false, false, Off, "spf-helo-pass"},
		{"", "fail", false, false, Reject, "spf-helo-fail"},
		{"", "temperror", false, false, Mark, "spf-helo-temperror"},
		{"odd", "none", false, false, Mark, "spf-permerror"},

		{"pass", "none", true, false, Off, "spf-pass"},
		{"wide", "none", true, false, Reject, "spf-must-pass"},
		{"none", "none", true, false, Reject, "spf-must-pass"},
		{"neutral", "pass", true, false, Reject, "spf-must-pass"},
		{"permerror", "none", true, false, Reject, "spf-must-pass"},
		{"temperror", "none", true, false, Defer, "spf-must-pass"},

		{"fail", "none", false, true, Defer, "spf-allow-missing"},
		{"pass", "fail", false, true, Defer, "spf-allow-missing"},
		{"none", "none", true, true, Defer, "spf-allow-missing"},
		{"softfail", "none", false, true, Mark, "spf-softfail"},
		{"pass", "none", false, true, Off, "spf-pass"},
	} {
		r := decide(&cfg, &findings{mail: outcome(tt.mail), helo: outcome(tt.helo), must: tt.must, allowMissing: tt.missing})
		if r.action != tt.action || r.reason != tt.reason {
			t.Errorf("%+v: %v %s", tt, r.action, r.reason)
		}
	}
}

func TestMustPassAndAllow(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.MustPass = []string{"bank.example", ".below.example"}
		c.AllowDomains = []string{"forwarder.example", "Wide.example"}
		c.AllowSkip = []string{"greylist"}
	})
	w.txt("bank.example", "v=spf1 ip4:192.0.2.7 ?all")
	w.txt("a.below.example", "v=spf1 ip4:192.0.2.7 ?all")
	w.txt("fail.example", "v=spf1 -all")
	w.txt("forwarder.example", "v=spf1 ip4:198.51.100.0/24 -all")
	w.txt("wide.example", "v=spf1 +all")
	w.dns.Behave("b.below.example", dnstest.ServFail)
	for _, tt := range []struct {
		client, sender string
		action         policy.Action
		reason         string
	}{
		{"192.0.2.7", "u@bank.example", policy.Continue, "spf-pass"},
		{"203.0.113.1", "u@bank.example", policy.Reject, "spf-must-pass"},
		{"203.0.113.1", "u@BANK.example", policy.Reject, "spf-must-pass"},
		{"203.0.113.1", "u@sub.bank.example", policy.Continue, "spf-none"},
		{"203.0.113.1", "u@a.below.example", policy.Reject, "spf-must-pass"},
		{"203.0.113.1", "u@x.y.below.example", policy.Reject, "spf-must-pass"},
		{"203.0.113.1", "u@below.example", policy.Continue, "spf-none"},
		{"203.0.113.1", "u@b.below.example", policy.Defer, "spf-must-pass"},
		{"203.0.113.1", "u@fail.example", policy.Reject, "spf-fail"},
		{"198.51.100.1", "u@fail.example", policy.Allow, "spf-allowed"},
		{"198.51.100.1", "u@bank.example", policy.Allow, "spf-allowed"},
		{"198.51.100.1", "", policy.Allow, "spf-allowed"},
	} {
		req := w.mail(tt.client, "x", tt.sender)
		v := w.ask(req)
		if v.Action != tt.action || v.Reason != tt.reason {
			t.Errorf("%s from %s: %v %s", tt.sender, tt.client, v.Action, v.Reason)
		}
		if v.Action == policy.Allow && (!slices.Equal(v.Skip, []string{"greylist"}) || v.Detail != "allowed by the record of forwarder.example" || req.Facts.SPF.Result == "") {
			t.Errorf("%s: %+v %+v", tt.sender, v, req.Facts.SPF)
		}
		if tt.client == "203.0.113.1" && tt.sender == "u@b.below.example" && v.Reply.String() != "451 4.4.3 SPF: the record of b.below.example cannot be looked up, please try again later" {
			t.Errorf("reply %q", v.Reply)
		}
	}
	// Without the record that stands for the allow list nobody is rejected.
	w.dns.Behave("forwarder.example", dnstest.ServFail)
	w.res.Flush("")
	w.configure(func(c *Config) { c.AllowDomains, c.CacheTTL = []string{"forwarder.example"}, 1 })
	v := w.ask(w.mail("203.0.113.1", "x", "u@fail.example"))
	if v.Action != policy.Defer || v.Reason != "spf-allow-missing" || v.Reply.Code != 451 {
		t.Errorf("allow list missing: %+v", v)
	}
}

func TestExempt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "skip.list")
	if err := os.WriteFile(file, []byte("198.51.100.0/24\nfrom:lists.example\n203.0.113.9 dunno\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	relays := filepath.Join(t.TempDir(), "relays.list")
	if err := os.WriteFile(relays, []byte("192.0.2.32/28\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *Config) {
		c.Exceptions = []string{file}
		c.Relays = []string{"192.0.2.128/25", "2001:db8:9::/48", "file:" + relays}
	})
	w.txt("fail.example", "v=spf1 -all")
	for _, tt := range []struct {
		client string
		edit   func(*policy.Request)
		want   string
	}{
		{"203.0.113.1", nil, "spf-fail"},
		{"203.0.113.9", nil, "spf-fail"},
		{"127.0.0.1", nil, "spf-exempt"},
		{"::1", nil, "spf-exempt"},
		{"198.51.100.1", nil, "spf-exempt"},
		{"203.0.113.1", func(r *policy.Request) {
			r.Sender = policy.Address{Raw: "u@lists.example", Local: "u", Domain: "lists.example"}
		}, "spf-exempt"},
		{"192.0.2.129", nil, "spf-relay"},
		{"192.0.2.33", nil, "spf-relay"},
		{"192.0.2.1", nil, "spf-fail"},
		{"2001:db8:9::1", nil, "spf-relay"},
		{"203.0.113.1", func(r *policy.Request) { r.SASL.Username = "me" }, "spf-authenticated"},
		{"203.0.113.1", func(r *policy.Request) { r.TLS.CertSubject = "peer.example" }, "spf-authenticated"},
		{"203.0.113.1", func(r *policy.Request) { r.Client.Addr = netip.Addr{} }, "spf-unknown-client"},
	} {
		req := w.mail(tt.client, "x", "u@fail.example")
		if tt.edit != nil {
			tt.edit(req)
		}
		v := w.ask(req)
		if v.Reason != tt.want {
			t.Errorf("%s: %s, want %s", tt.client, v.Reason, tt.want)
		}
		if asked := tt.want == "spf-fail"; asked != (req.Facts.SPF.Result != "") || asked != (len(v.Add) > 0) {
			t.Errorf("%s: %+v %+v", tt.client, v, req.Facts.SPF)
		}
	}
	w.configure(func(c *Config) { c.SkipAuthenticated = false })
	req := w.mail("203.0.113.1", "x", "u@fail.example")
	req.SASL.Username = "me"
	if v := w.ask(req); v.Reason != "spf-fail" {
		t.Errorf("skip_authenticated = false: %s", v.Reason)
	}
}

func TestMemory(t *testing.T) {
	w := newWorld(t, nil)
	evaluations := func() int { return int(testutil.ToFloat64(w.check.shared.metrics.evaluations)) }
	asks := func(what string, want int, req *policy.Request) {
		t.Helper()
		before := evaluations()
		w.ask(req)
		if got := evaluations() - before; got != want {
			t.Errorf("%s: %d evaluations, want %d", what, got, want)
		}
	}
	w.txt("plain.example", "v=spf1 ip4:192.0.2.0/24 -all")
	w.txt("local.example", "v=spf1 exists:%{l}.users.example -all")
	w.txt("helo.example", "v=spf1 exists:%{h}.users.example -all")
	w.dns.Add("a.users.example. 3600 IN A 127.0.0.2", "h.x.users.example. 3600 IN A 127.0.0.2")
	asks("first", 1, w.mail("192.0.2.7", "x", "a@plain.example"))
	asks("another recipient and local part", 0, w.mail("192.0.2.7", "y", "b@plain.example"))
	asks("another client", 1, w.mail("192.0.2.8", "x", "a@plain.example"))
	asks("local part", 1, w.mail("192.0.2.7", "x", "a@local.example"))
	asks("same local part", 0, w.mail("192.0.2.7", "y", "a@local.example"))
	b := w.mail("192.0.2.7", "x", "b@local.example")
	asks("another local part", 1, b)
	if b.Facts.SPF.Result != "fail" {
		t.Errorf("another local part: %s", b.Facts.SPF.Result)
	}
	asks("HELO in a macro", 2, w.mail("192.0.2.7", "h.x", "a@helo.example")) // and of h.x itself
	asks("same HELO", 0, w.mail("192.0.2.7", "h.x", "b@helo.example"))
	other := w.mail("192.0.2.7", "h.y", "b@helo.example")
	asks("another HELO", 2, other)
	if other.Facts.SPF.Result != "fail" {
		t.Errorf("another HELO: %s", other.Facts.SPF.Result)
	}
	// The local part of the HELO identity is postmaster.
	asks("as HELO", 1, w.mail("192.0.2.7", "local.example", ""))

	w.now = w.now.Add(9 * time.Minute)
	asks("within cache_ttl", 0, w.mail("192.0.2.7", "x", "a@plain.example"))
	w.now = w.now.Add(time.Minute)
	asks("after cache_ttl", 1, w.mail("192.0.2.7", "x", "a@plain.example"))
	w.now = w.now.Add(-time.Hour)
	asks("the clock was set back", 1, w.mail("192.0.2.7", "x", "a@plain.example"))
	explained := w.mail("192.0.2.7", "x", "a@plain.example")
	explained.Probe = new(policy.Probe)
	asks("explained, which does not count", 0, explained)
	if len(explained.Probe.Notes) < 2 || explained.Probe.Notes[1].What != "TXT plain.example" || explained.Probe.Notes[1].Source != "cache" {
		t.Errorf("notes %+v", explained.Probe.Notes)
	}
	noTime := w.mail("192.0.2.7", "x", "a@plain.example")
	noTime.Time = time.Time{}
	asks("without a time", 1, noTime)

	// The TTL of the record bounds it.
	w.dns.Add("short.example. 20 IN TXT \"v=spf1 include:shorter.example -all\"", "shorter.example. 8 IN TXT \"v=spf1 ip4:192.0.2.0/24\"")
	w.now = time.Unix(1.8e9, 0)
	asks("short", 1, w.mail("192.0.2.7", "x", "a@short.example"))
	w.now = w.now.Add(7 * time.Second)
	asks("within its TTL", 0, w.mail("192.0.2.7", "x", "a@short.example"))
	w.now = w.now.Add(time.Second)
	asks("after its TTL", 1, w.mail("192.0.2.7", "x", "a@short.example"))

	// What cannot be looked up is asked once for a message.
	w.dns.Behave("broken.example", dnstest.ServFail)
	first := w.mail("192.0.2.7", "x", "a@broken.example")
	first.Instance = "1.2.3"
	asks("temperror", 1, first)
	asks("its next recipient", 0, first)
	second := w.mail("192.0.2.7", "x", "a@broken.example")
	second.Instance = "1.2.4"
	asks("the next message", 1, second)
	asks("without an instance", 1, w.mail("192.0.2.7", "x", "a@broken.example"))

	// A reload keeps what does not depend on what has changed.
	w.configure(func(c *Config) { c.MailFrom.Fail = Mark })
	asks("after a reload", 0, w.mail("192.0.2.7", "x", "a@short.example"))
	w.configure(func(c *Config) { c.MaxLookups = 9 })
	asks("after a reload with other limits", 1, w.mail("192.0.2.7", "x", "a@short.example"))
	long := w.mail("192.0.2.7", "x", strings.Repeat("a", 300)+"@local.example")
	asks("a long local part", 1, long)
	asks("a long local part again", 1, long)
}

// A resolver that hangs makes a temperror in time, and no error.
func TestTimeLimit(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.LookupTime = 50e6 })
	hold := make(chan struct{})
	w.dns.Behave("slow.example", dnstest.Behavior{Hold: hold})
	defer close(hold)
	req := w.mail("192.0.2.7", "x", "a@slow.example")
	if w.ask(req); req.Facts.SPF.Result != "temperror" {
		t.Errorf("%+v", req.Facts.SPF)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	req = w.mail("192.0.2.7", "x", "a@slow2.example")
	if v, err := w.check.Evaluate(ctx, req); err != nil || req.Facts.SPF.Result != "temperror" || v.Action != policy.Continue {
		t.Errorf("%+v %+v %v", v, req.Facts.SPF, err)
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, nil)
	w.txt("fail.example", "v=spf1 -all")
	req := w.mail("192.0.2.7", "fail.example", "a@fail.example")
	w.ask(req)
	w.ask(req)
	req.DryRun = true
	w.ask(req)
	for id := range identities {
		for k := range kinds {
			want := 0.
			if k == kindFail {
				want = 2
			}
			if got := testutil.ToFloat64(w.check.shared.metrics.results[id][k]); got != want {
				t.Errorf("%v %s: %v, want %v", id, kindNames[k], got, want)
			}
		}
	}
}
