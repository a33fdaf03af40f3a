package spf

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"postern/internal/dnstest"
	"postern/internal/mailaddr"
)

func TestReport(t *testing.T) {
	w := newWorld(t, nil)
	w.txt("big.example", "v=spf1 a:%{l}.big.example//64 include:_spf.big.example -all")
	w.txt("_spf.big.example", "v=spf1 ip4:198.51.100.0/24 include:more.big.example ?all")
	w.txt("more.big.example", "v=spf1 mx:mx.big.example/25 ~all")
	w.dns.Add("mx.big.example. 60 IN MX 10 m1.big.example.", "m1.big.example. 60 IN A 192.0.2.1", "user.big.example. 60 IN A 203.0.113.1")
	test := func(client, sender, helo string) Report {
		return w.check.Test(t.Context(), netip.MustParseAddr(client), mailaddr.ParsePath(sender), helo, w.now)
	}
	r := test("192.0.2.7", "user@big.example", "mail.big.example")
	if len(r.Identities) != 2 || r.Action != "off" || r.Reason != "spf-pass" || !strings.HasPrefix(r.Header, "Received-SPF: pass (") {
		t.Fatalf("%+v", r)
	}
	helo, mail := r.Identities[0], r.Identities[1]
	if helo.Identity != "helo" || helo.Result != "none" || len(helo.Steps) != 1 || helo.Steps[0].Answer != "nothing" {
		t.Errorf("helo: %+v", helo)
	}
	if mail.Identity != "mailfrom" || mail.Result != "pass" || !slices.Equal(mail.Match, []string{"include:_spf.big.example", "include:more.big.example", "mx:mx.big.example/25"}) {
		t.Errorf("mailfrom: %+v, match %v", mail.Outcome, mail.Match)
	}
	var steps []string
	for _, s := range mail.Steps {
		steps = append(steps, strings.Repeat(">", s.Depth)+s.Term+"|"+s.Query+"|"+s.Answer)
	}
	if want := []string{
		"|TXT big.example|v=spf1 a:%{l}.big.example//64 include:_spf.big.example -all",
		">a:%{l}.big.example//64|A user.big.example|203.0.113.1",
		">include:_spf.big.example|TXT _spf.big.example|v=spf1 ip4:198.51.100.0/24 include:more.big.example ?all",
		">>include:more.big.example|TXT more.big.example|v=spf1 mx:mx.big.example/25 ~all",
		">>>mx:mx.big.example/25|MX mx.big.example|m1.big.example",
		">>>mx:mx.big.example/25|A m1.big.example|192.0.2.1",
	}; !slices.Equal(steps, want) {
		t.Errorf("steps\n%s, want\n%s", strings.Join(steps, "\n"), strings.Join(want, "\n"))
	}
	if mail.Steps[0].Cached || !test("192.0.2.7", "user@big.example", "x").Identities[1].Steps[0].Cached {
		t.Error("what comes from memory")
	}
	text, err := json.Marshal(r)
	if err != nil || !strings.Contains(string(text), `"identity":"mailfrom","result":"pass","domain":"big.example"`) {
		t.Errorf("%s, %v", text, err)
	}
	r = test("192.0.2.200", "user@big.example", "x")
	if r.Action != "reject" || r.Reply.Code != 550 || !slices.Equal(r.Marks, []string{"spf-fail"}) || !slices.Equal(r.Identities[1].Match, []string{"all"}) {
		t.Errorf("fail: %+v", r)
	}
	if r = test("127.0.0.1", "user@big.example", "x"); r.Exempt != "spf-exempt: spf.skip[0]:1 127.0.0.0/8" || r.Action != "reject" {
		t.Errorf("exempt: %+v", r)
	}
	if r = test("192.0.2.200", "<>", "big.example"); len(r.Identities) != 1 || r.Identities[0].Identity != "helo" || r.Reason != "spf-helo-fail" {
		t.Errorf("null sender: %+v", r)
	}
	w.txt("soft.example", "v=spf1 ~all")
	if r = test("192.0.2.7", "@soft.example", "x"); r.Action != "mark" || r.Reason != "spf-softfail" {
		t.Errorf("mark: %+v", r)
	}
	w.dns.Behave("broken.example", dnstest.ServFail)
	w.configure(func(c *Config) { c.MailFrom.TempError, c.AllowDomains = Defer, []string{"soft-allow.example"} })
	w.txt("soft-allow.example", "v=spf1 ip4:192.0.2.7")
	if r = test("192.0.2.8", "a@broken.example", "x"); r.Action != "defer" || !strings.Contains(r.Identities[1].Steps[0].Answer, "server failure") {
		t.Errorf("defer: %+v", r)
	}
	if r = test("192.0.2.7", "a@broken.example", "x"); r.Action != "allow" || r.Reason != "spf-allowed" {
		t.Errorf("allow: %+v", r)
	}
	if n := testutil.ToFloat64(w.check.shared.metrics.results[identityMailFrom][kindPass]); n != 0 {
		t.Errorf("%v results were counted", n)
	}
}
