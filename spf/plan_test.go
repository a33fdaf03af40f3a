package spf

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// What go/spf gets to see.
func TestPlainForm(t *testing.T) {
	for _, tt := range []struct{ record, client, want string }{
		{"v=spf1", "192.0.2.7", "v=spf1"},
		{"V=SPF1  MX -All", "192.0.2.7", "v=spf1 +mx:\x010 -all"},
		{"v=spf1 ip4:198.51.100.0/24 ip4:192.0.2.9/24 ip4:192.0.2.7 -all", "192.0.2.7", "v=spf1 +ip4:192.0.2.0/24"},
		{"v=spf1 ip4:198.51.100.0/24 ip6:2001:db8::/32 ~all", "192.0.2.7", "v=spf1 ~all"},
		{"v=spf1 a ?ip6:2001:db8::/32 ~all", "2001:db8::7", "v=spf1 +a:\x010 ?ip6:2001:db8::/32"},
		{"v=spf1 a/24//64 mx:x.example/25 -ptr ~exists:%{i}.x.example include:y.example", "192.0.2.7", "v=spf1 +a:\x010/24 +mx:\x011/25 -exists:\x012 ~exists:\x013 +include:\x014"},
		{"v=spf1 a/24//64 mx:x.example/25 a//48", "2001:db8::7", "v=spf1 +a:\x010//64 +mx:\x011 +a:\x012//48"},
		{"v=spf1 redirect=x.example a exp=y.example foo=bar", "192.0.2.7", "v=spf1 +a:\x011 redirect=\x010"},
		{"v=spf1 redirect=x.example -all", "192.0.2.7", "v=spf1 -all"}, // RFC 7208 section 6.1
		{"v=spf1 redirect=x.example ip4:192.0.2.7", "192.0.2.7", "v=spf1 +ip4:192.0.2.7/32"},
		{"v=spf1 all a", "192.0.2.7", "v=spf1 +all"},
		{"v=spf1" + strings.Repeat(" ?a", 50) + " -all", "192.0.2.7", "v=spf1 ?a:\x01" + strings.Join(strings.Split("0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39", " "), " ?a:\x01")},
	} {
		addr := netip.MustParseAddr(tt.client)
		pl, err := newPlans(8, 20).get("x.example", tt.record, addr.Is6())
		if err != nil {
			t.Errorf("%q: %v", tt.record, err)
			continue
		}
		for range 2 { // the second from memory
			got := pl.forClient(addr)
			if plain := strings.ReplaceAll(strings.Join(got, "|"), mark+pl.id+".", mark); plain != tt.want {
				t.Errorf("%q for %s: %q, want %q", tt.record, tt.client, plain, tt.want)
			}
		}
	}
}

// Records are strangers' and may be made to cost.
func TestLargeRecords(t *testing.T) {
	w := newWorld(t, nil)
	record := func(networks int) string {
		var b strings.Builder
		b.WriteString("v=spf1")
		for i := range networks {
			fmt.Fprintf(&b, " ip4:203.0.%d.%d", i>>8, i&255)
		}
		return b.String() + " ip4:192.0.2.7 -all"
	}
	for _, n := range []int{keptForms - 1, keptForms, 2000} {
		pl, err := w.check.shared.plans.get("large.example", record(n), false)
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.MustParseAddr("192.0.2.7")
		if got := pl.forClient(addr)[0]; got != "v=spf1 +ip4:192.0.2.7/32" {
			t.Errorf("%d networks: %q", n, got)
		}
		if kept := pl.plain[len(pl.networks)-1].Load() != nil; kept != (n+1 <= keptForms) {
			t.Errorf("%d networks: kept %v", n+1, kept)
		}
	}
	small, large := planKey{domain: "a.example", text: "v=spf1 -all"}, planKey{domain: "a.example", text: record(2000)}
	a, err := w.check.shared.plans.get(small.domain, small.text, false)
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.check.shared.plans.get(large.domain, large.text, false)
	if err != nil {
		t.Fatal(err)
	}
	if x, y := planWeight(small, a), planWeight(large, b); x != 2 || y < 2*uint32(len(large.text))/planUnit {
		t.Errorf("weights %d, %d", x, y)
	}
	w.txt("terms.example", "v=spf1"+strings.Repeat(" a", 3000)+" +all")
	req := w.mail("192.0.2.7", "x", "u@terms.example")
	if w.ask(req); req.Facts.SPF.Result != "permerror" {
		t.Errorf("3000 terms: %+v", req.Facts.SPF)
	}
	w.configure(func(c *Config) { c.Explanation = true })
	for _, n := range []int{maxExp, maxExp + 1} {
		domain := fmt.Sprintf("exp%d.example", n)
		where := strings.Repeat("a", n-len(".example")) + ".example"
		w.txt(domain, "v=spf1 -all exp="+where)
		w.ask(w.mail("192.0.2.7", "x", "u@"+domain))
		o, _ := w.check.ask(t.Context(), query{addr: netip.MustParseAddr("192.0.2.7"), domain: domain, local: "u"}, "", w.now, false)
		if kept := o.exp == where; kept != (n <= maxExp) {
			t.Errorf("exp= of %d octets: %v", n, kept)
		}
	}
}
