package spf

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"postern/policy"
)

func TestParseReceived(t *testing.T) {
	for _, tt := range []struct{ field, addr, helo string }{
		// As MTAs write them.
		{"from mail.example.com (mail.example.com [192.0.2.7]) by mx2.example.org (Postfix) with ESMTP id 4abc", "192.0.2.7", "mail.example.com"},
		{" from mail.example.com (unknown [192.0.2.7])\n\t(using TLSv1.3 with cipher X (256/256 bits))\n\tby mx2.example.org (Postfix) with ESMTPS", "192.0.2.7", "mail.example.com"},
		{"from MAIL.example.com. (mail.example.com [IPv6:2001:db8::7]) by mx2", "2001:db8::7", "mail.example.com"},
		{"from mail.example.com (host.example.net [192.0.2.7] (may be forged)) by mx2 (8.17/8.17) with ESMTP", "192.0.2.7", "mail.example.com"},
		{"from mail.example.com (root@host.example.net [192.0.2.7]) by mx2", "192.0.2.7", "mail.example.com"},
		{"from mail.example.com ([192.0.2.7]) by mx2 (8.17/8.17)", "192.0.2.7", "mail.example.com"},
		{"from host.example.net ([192.0.2.7] helo=mail.example.com)\n by mx2 with esmtps (Exim 4.98)", "192.0.2.7", "mail.example.com"},
		{"from host.example.net ([192.0.2.7]:40211 helo=mail.example.com ident=root) by mx2", "192.0.2.7", "mail.example.com"},
		{"from host.example.net ([192.0.2.7]) by mx2 with esmtp (Exim 4.98)", "192.0.2.7", "host.example.net"},
		{"from [192.0.2.7] (helo=mail.example.com) by mx2 with esmtp (Exim 4.98)", "192.0.2.7", "mail.example.com"},
		{"from [192.0.2.7]:40211 (helo=mail.example.com) by mx2 with esmtp (Exim 4.98)", "192.0.2.7", "mail.example.com"},
		{"from MAIL.example.com (192.0.2.7) by EX.example.org (10.0.0.5) with Microsoft SMTP Server", "192.0.2.7", "mail.example.com"},
		{"from MAIL.example.com (2001:db8::7) by EX.example.org (10.0.0.5) with Microsoft SMTP Server", "2001:db8::7", "mail.example.com"},
		{"From mail.example.com (mail.example.com [192.0.2.7]) BY mx2", "192.0.2.7", "mail.example.com"},

		// HELO is the stranger's: it may look like an address, or like more of the field.
		{"from [203.0.113.9] (unknown [192.0.2.7]) by mx2 (Postfix)", "192.0.2.7", "[203.0.113.9]"},
		{"from [203.0.113.9] ([192.0.2.7]) by mx2", "192.0.2.7", "[203.0.113.9]"},
		{"from 203.0.113.9 (unknown [192.0.2.7]) by mx2", "192.0.2.7", "203.0.113.9"},
		{"from helo=[203.0.113.9] (unknown [192.0.2.7]) by mx2", "192.0.2.7", "helo=[203.0.113.9]"},
		{"from host ([192.0.2.7] helo=[203.0.113.9]) by mx2", "192.0.2.7", "[203.0.113.9]"},
		{"from [192.0.2.7] (helo=[203.0.113.9]) by mx2", "192.0.2.7", "[203.0.113.9]"},
		{"from x(unknown[203.0.113.9])by (unknown [192.0.2.7]) by mx2", "", ""},
		{"from x (y [203.0.113.9]) (unknown [192.0.2.7]) by mx2", "203.0.113.9", "x"}, // no MTA lets a blank or parentheses into HELO
		{"from x ([203.0.113.9] [192.0.2.7]) by mx2", "", ""},
		{"from x (unknown [203.0.113.9] [192.0.2.7]) by mx2", "", ""},
		{"from x ([203.0.113.9][192.0.2.7]) by mx2", "", ""},
		{"from x (a=[203.0.113.9] [192.0.2.7]) by mx2", "", ""},
		{"from x (helo=a helo=b) by mx2", "", ""},
		{"from x ([192.0.2.7] helo=a helo=b) by mx2", "", ""},
		{"from x ([192.0.2.7] from=[203.0.113.9]) by mx2", "", ""},
		{"from x (ident=a [192.0.2.7]) by mx2", "", ""},
		{"from x (helo=y) by mx2", "", ""},
		{`from x (un\)known [192.0.2.7]) by mx2`, "", ""},
		{`from "x (y [203.0.113.9])" (unknown [192.0.2.7]) by mx2`, "", ""},
		{"from x (unknown\x00 [192.0.2.7]) by mx2", "", ""},
		{"from x (unknown [192.0.2.7] (maybe forged)) by mx2", "", ""},
		{"from x (unknown [192.0.2.7] extra) by mx2", "", ""},
		{"from x (HELO y) (192.0.2.7) by mx2", "", ""}, // qmail
		{"from x (unknown [unknown]) by mx2", "", ""},
		{"from x (unknown [192.0.2.256]) by mx2", "", ""},
		{"from x (unknown [192.0.2.7) by mx2", "", ""},
		{"from x (unknown 192.0.2.7]) by mx2", "", ""},
		{"from x (unknown [192.0.2.7]x) by mx2", "", ""},
		{"from x (unknown [192.0.2.7]:) by mx2", "192.0.2.7", "x"},
		{"from x (unknown [192.0.2.7]:123456) by mx2", "", ""},
		{"from x (unknown [192.0.2.7]:1a) by mx2", "", ""},
		{"from x (unknown [192.0.2.7] by mx2", "", ""},
		{"from x by mx2 (unknown [192.0.2.7])", "", ""},
		{"from [192.0.2.7] by mx2", "", ""},
		{"from (unknown [192.0.2.7]) by mx2", "", ""},
		{"by mx2 (Postfix, from userid 0)", "", ""},
		{"(qmail 1 invoked by uid 0)", "", ""},
		{"from x () by mx2", "", ""},
		{"from", "", ""},
		{"", "", ""},
		{"from x (unknown [192.0.2.7]) by " + strings.Repeat("x", maxReceived), "", ""},
	} {
		addr, helo, ok := parseReceived(tt.field)
		if ok != (tt.addr != "") || ok && (addr.String() != tt.addr || helo != tt.helo) {
			t.Errorf("%q: %v %q %v, want %s %q", tt.field, addr, helo, ok, tt.addr, tt.helo)
		}
	}
}

func hop(helo, addr string) string { return "from " + helo + " (unknown [" + addr + "]) by relay" }

func TestOrigin(t *testing.T) {
	ours := netip.MustParsePrefix("192.0.2.0/24")
	trusted := func(a netip.Addr) bool { return ours.Contains(a) || a == netip.MustParseAddr("127.0.0.1") }
	deep := []string{}
	for range maxHops {
		deep = append(deep, hop("r", "192.0.2.1"))
	}
	for _, tt := range []struct {
		name     string
		received []string
		want     string
	}{
		{"one relay", []string{hop("a", "203.0.113.1")}, "203.0.113.1"},
		{"what stands below is the stranger's", []string{hop("a", "203.0.113.1"), hop("b", "198.51.100.1")}, "203.0.113.1"},
		{"two relays", []string{hop("r", "192.0.2.1"), hop("a", "203.0.113.1"), hop("b", "198.51.100.1")}, "203.0.113.1"},
		{"a content filter of the relay", []string{hop("localhost", "127.0.0.1"), hop("a", "203.0.113.1")}, "203.0.113.1"},
		{"none", nil, ""},
		{"only relays", []string{hop("r", "192.0.2.1"), hop("r", "192.0.2.2")}, ""},
		{"the first cannot be read", []string{"by relay with LMTP", hop("a", "203.0.113.1")}, ""},
		{"the second cannot be read", []string{hop("r", "192.0.2.1"), "from x by y", hop("a", "203.0.113.1")}, ""},
		{"private", []string{hop("a", "10.1.2.3"), hop("b", "203.0.113.1")}, ""},
		{"loopback that is not trusted", []string{hop("a", "::1"), hop("b", "203.0.113.1")}, ""},
		{"mapped", []string{hop("a", "::ffff:203.0.113.1")}, "203.0.113.1"},
		{"as deep as is looked", append(deep[:maxHops-1:maxHops-1], hop("a", "203.0.113.1")), "203.0.113.1"},
		{"deeper", append(deep, hop("a", "203.0.113.1")), ""},
	} {
		addr, _, ok := Origin(tt.received, trusted)
		if ok != (tt.want != "") || ok && addr.String() != tt.want {
			t.Errorf("%s: %v %v, want %q", tt.name, addr, ok, tt.want)
		}
	}
}

// FuzzParseReceived: whatever HELO a stranger gives, as long as it is one word
// as MTAs take care of, the address is that of the connection, or none.
func FuzzParseReceived(f *testing.F) {
	for _, s := range []string{"mail.example.com", "[203.0.113.9]", "helo=[203.0.113.9]", "x(y", "([203.0.113.9])", "from", "\x00", "ident=a"} {
		f.Add(s)
	}
	const addr = "192.0.2.7"
	f.Fuzz(func(t *testing.T, helo string) {
		_, _, _ = parseReceived(helo)
		if helo == "" || strings.ContainsAny(helo, " \t\r\n()") {
			return
		}
		for _, form := range []string{
			"from %s (unknown [192.0.2.7]) by x", "from %s ([192.0.2.7]) by x", "from %s (a.example [192.0.2.7] (may be forged)) by x",
			"from [192.0.2.7] (helo=%s) by x", "from a.example ([192.0.2.7] helo=%s) by x", "from %s (192.0.2.7) by x",
		} {
			got, _, ok := parseReceived(fmt.Sprintf(form, helo))
			if ok && got.String() != addr {
				t.Errorf(form+": %v", helo, got)
			}
		}
	})
}

// message shows header fields to the inspector and returns its judgement; nil
// when it is not interested.
func (w *world) message(req *policy.Request, fields ...policy.Field) *policy.Judgement {
	w.tb.Helper()
	i := w.check.Inspector().Inspect(req, []policy.Address{req.Recipient})
	if i == nil {
		return nil
	}
	for _, f := range fields {
		i.Header(f)
	}
	i.EndOfHeaders()
	if i.Body([]byte("x\r\n")) {
		w.tb.Error("wants more of the body")
	}
	j, err := i.End(w.tb.Context())
	if err != nil {
		w.tb.Error(err)
	}
	return &j
}

func TestInspector(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		w := newWorld(t, func(c *Config) {
			c.Relays, c.RelayRefuse = []string{"192.0.2.0/24"}, refuse
		})
		w.txt("good.example", "v=spf1 ip4:203.0.113.1 -all")
		if w.check.Inspector().WantsBody() || !w.check.Inspects() || w.check.Inspector().Name() != "spf" {
			t.Error("what the inspector is")
		}
		req := func(client, sender string) *policy.Request {
			r := w.mail(client, "relay.example.org", sender)
			r.Stage = policy.StageData
			return r
		}
		if w.message(req("203.0.113.1", "a@good.example")) != nil {
			t.Error("looks at what comes from elsewhere")
		}
		known := req("192.0.2.1", "a@good.example")
		known.SASL.Username = "me"
		if w.message(known) != nil {
			t.Error("looks at what comes from users")
		}
		pass := req("192.0.2.1", "a@good.example")
		j := w.message(pass, policy.Field{Name: "Subject", Value: " x"}, policy.Field{Name: "RECEIVED", Value: " " + hop("a.example", "203.0.113.1")},
			policy.Field{Name: "Received", Value: hop("b.example", "198.51.100.1")})
		if j == nil || j.Verdict.Reason != "spf-pass" || pass.Facts.SPF.Result != "pass" || len(j.Verdict.Add) != 1 ||
			!strings.Contains(j.Verdict.Add[0].Value, "client-ip=203.0.113.1; identity=mailfrom; envelope-from=\"a@good.example\"; helo=a.example") {
			t.Errorf("pass: %+v %+v", j, pass.Facts)
		}
		fail := req("192.0.2.1", "a@good.example")
		j = w.message(fail, policy.Field{Name: "Received", Value: hop("b.example", "198.51.100.1")}, policy.Field{Name: "Received", Value: hop("a.example", "203.0.113.1")})
		want := policy.Continue
		if refuse {
			want = policy.Reject
		}
		if j.Verdict.Action != want || j.Verdict.Reason != "spf-fail" || !fail.Facts.Suspicious() || !strings.HasSuffix(j.Verdict.Detail, ", through a relay, from 198.51.100.1") {
			t.Errorf("fail: %+v", j)
		}
		if refuse && !strings.Contains(j.Verdict.Reply.Text, "198.51.100.1 may not send mail for good.example") {
			t.Errorf("reply %q", j.Verdict.Reply)
		}
		bounce := req("192.0.2.1", "")
		if w.message(bounce, policy.Field{Name: "Received", Value: hop("good.example", "203.0.113.1")}); bounce.Facts.SPF != (policy.SPF{Result: "pass", Domain: "good.example", Identity: "helo"}) {
			t.Errorf("null sender: %+v", bounce.Facts.SPF)
		}
		unknown := req("192.0.2.1", "a@good.example")
		j = w.message(unknown, policy.Field{Name: "Received", Value: "by x with LMTP"})
		if j.Verdict.Action != policy.Continue || j.Verdict.Reason != "spf-origin-unknown" || unknown.Facts.SPF.Result != "" || len(j.Verdict.Add) != 0 {
			t.Errorf("unknown: %+v", j)
		}
		// A chain of relays, and a field without end.
		long := policy.Field{Name: "Received", Value: hop("b", "198.51.100.1") + strings.Repeat(" ", 1<<20)}
		if j = w.message(req("192.0.2.1", "a@good.example"), long); j.Verdict.Reason != "spf-origin-unknown" {
			t.Errorf("long: %+v", j)
		}
		chain := []policy.Field{{Name: "Received", Value: hop("r", "192.0.2.9")}, {Name: "Received", Value: hop("a", "203.0.113.1")}}
		if j = w.message(req("192.0.2.1", "a@good.example"), chain...); j.Verdict.Reason != "spf-pass" {
			t.Errorf("two relays: %+v", j)
		}
		for k, want := range [relayedKinds]float64{4, 2} {
			if got := testutil.ToFloat64(w.check.shared.metrics.relayed[k]); got != want {
				t.Errorf("%s: %v, want %v", relayedNames[k], got, want)
			}
		}
	}
}
