package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"postern/internal/dnstest"
	"postern/internal/policytest"
)

const spfConfig = `
hostname = "mx.example.com"
[dns]
timeout = "1s"
attempts = 1
servfail_ttl = "1s"
[chains.inbound]
checks = ["access", "spf", "greylist"]
[spf]
header = "received-spf"
must_pass = ["bank.example"]
allow_domains = ["forwarder.example"]
explanation = true
[spf.mail_from]
fail = "reject"
temperror = "defer"
[spf.helo]
fail = "reject"
[greylist]
delay = "1h"
when = "suspicious"
`

// spfZone has a domain for each result, for the client 192.0.2.7.
func spfZone(t *testing.T) *dnstest.Server {
	t.Helper()
	dns := dnstest.Start(t)
	for name, text := range map[string]string{
		"pass.example": "v=spf1 ip4:192.0.2.7 ip6:2001:db8::/64 -all", "fail.example": "v=spf1 exp=why.fail.example -all",
		"why.fail.example": "ask the postmaster of %{d}", "soft.example": "v=spf1 ~all", "wide.example": "v=spf1 +all", "bad.example": "v=spf1 include:nowhere.example -all",
		"bank.example": "v=spf1 ?all", "forwarder.example": "v=spf1 ip4:198.51.100.7 -all", "helo.example": "v=spf1 ip4:192.0.2.7 -all",
	} {
		spf(dns, name, text)
	}
	dns.Behave("broken.example", dnstest.ServFail)
	return dns
}

// Every result through a real Postfix: refused, deferred, marked.
func TestSPF(t *testing.T) {
	t.Parallel()
	dns := spfZone(t)
	d := newDaemon(t, withDNS(spfConfig, dns))
	d.start()
	p := startPostfix(t, false, append(restrictions("unix:"+d.socket()), boxes)...)
	const to = "box@example.com"
	s := p.dial("192.0.2.7", "")
	for _, tt := range []struct{ from, reply, reason string }{
		{"ann@fail.example", `^550 5\.7\.23 <box@example\.com>: Recipient address rejected: SPF: 192\.0\.2\.7 may not send mail for fail\.example \(MAIL FROM, fail\); ` +
			`fail\.example says: ask the postmaster of fail\.example \[ref [0-9A-Z]{5}-[0-9A-Z]{5}\]$`, "spf-fail"},
		{"ann@broken.example", `^451 4\.4\.3 .*SPF: the record of broken\.example cannot be looked up, please try again later \[ref `, "spf-temperror"},
		{"ann@bank.example", `^550 5\.7\.23 .*SPF: 192\.0\.2\.7 may not send mail for bank\.example \(MAIL FROM, neutral\) \[ref `, "spf-must-pass"},
		{"ann@soft.example", `^450 4\.2\.0 .*Greylisted`, "greylist-first-contact"},
		{"ann@wide.example", `^450 4\.2\.0 .*Greylisted`, "greylist-first-contact"},
		{"ann@bad.example", `^450 4\.2\.0 .*Greylisted`, "greylist-first-contact"},
	} {
		rcpt, _ := s.mail(tt.from, to)
		matches(t, tt.from, rcpt[0], tt.reply)
		line := d.decided("sender", tt.from)
		if line["reason"] != tt.reason {
			t.Errorf("%s: %v", tt.from, line)
		}
	}
	expect(t, "explain", d.run("explain", fmt.Sprint(d.decided("sender", "ann@soft.example")["ref"])), "spf-softfail", "MAIL FROM soft.example: softfail by all")

	// One field for one message, whoever it is for.
	rcpt, data := s.mail("ann@pass.example", to, "other@example.com")
	matches(t, "pass", strings.Join(rcpt, " ")+data, `^250 .*250 .*250 `)
	for _, box := range []string{"box", "other"} {
		got := p.takeFrom(box)
		if n := strings.Count(got, "Received-SPF:"); n != 1 {
			t.Errorf("%d fields in\n%s", n, got)
		}
		expect(t, box, strings.Join(strings.Fields(got), " "), `Received-SPF: pass (mx.example.com: pass.example designates 192.0.2.7 as permitted sender) receiver=mx.example.com; `+
			`client-ip=192.0.2.7; identity=mailfrom; envelope-from="ann@pass.example"; helo=mail.example.org; mechanism=ip`)
	}
	if n := dns.Count("pass.example.", "TXT"); n != 1 {
		t.Errorf("the record was asked for %d times", n)
	}
	// The forwarder's record is an allow list, for greylisting too.
	rcpt, _ = p.dial("198.51.100.7", "").mail("ann@fail.example", to)
	matches(t, "forwarder", rcpt[0], `^250 `)
	p.takeFrom("box")
	// IPv6, and the null sender with its HELO name.
	rcpt, _ = p.dial("2001:db8::7", "").mail("ann@pass.example", to)
	matches(t, "IPv6", rcpt[0], `^250 `)
	expect(t, "IPv6", p.takeFrom("box"), `client-ip="2001:db8::7"`)
	rcpt, _ = p.dial("2001:db8:1::7", "").mail("ann@pass.example", to)
	matches(t, "IPv6 from elsewhere", rcpt[0], `^550 5\.7\.23 .*2001:db8:1::7 may not`)
	s = p.dial("192.0.2.7", "")
	s.cmd(250, "EHLO helo.example")
	_, data = s.mail("", to)
	matches(t, "bounce", data, `^250 `)
	expect(t, "bounce", strings.Join(strings.Fields(p.takeFrom("box")), " "), `Received-SPF: pass (`, `identity=helo; envelope-from=""; helo=helo.example`)
	s = p.dial("192.0.2.8", "")
	s.cmd(250, "EHLO helo.example")
	rcpt, _ = s.mail("", to)
	matches(t, "bounce from elsewhere", rcpt[0], `^550 5\.7\.23 .*may not send mail for helo\.example \(HELO, fail\)`)

	// The command shows what happened.
	expect(t, "spf test", d.run("spf", "test", "--ip", "192.0.2.7", "--sender", "ann@bad.example", "--helo", "mail.example.org"),
		"HELO mail.example.org\n  TXT mail.example.org", "MAIL FROM bad.example\n", "    TXT nowhere.example  for include:nowhere.example", "    nothing\n",
		"  => permerror: nowhere.example is included or redirected to, and has no SPF record\n", "=> mark (spf-permerror)\n", "   marks spf-permerror\n", "   adds Received-SPF: permerror (")
	expect(t, "spf test", d.run("spf", "test", "--ip", "198.51.100.7", "--sender", "ann@fail.example"), "=> allow (spf-allowed): allowed by the record of forwarder.example\n")
	expect(t, "spf test", d.run("spf", "test", "--ip", "127.0.0.1", "--sender", "ann@fail.example"), "not asked about (spf-exempt: spf.skip[0]:1 127.0.0.0/8); if it were:\n",
		"  => fail, matched all\n", "=> reject (spf-fail): 550 5.7.23 SPF: 127.0.0.1 may not send")
	var report struct {
		Action     string
		Identities []struct {
			Result   string
			TooWide  bool `json:"too_wide"`
			Identity string
			Steps    []struct{ Query, Answer string }
		}
	}
	if err := json.Unmarshal([]byte(d.run("--json", "spf", "test", "--ip", "192.0.2.7", "--sender", "ann@wide.example")), &report); err != nil {
		t.Fatal(err)
	}
	if m := report.Identities; report.Action != "mark" || len(m) != 2 || m[1].Result != "pass" || !m[1].TooWide || len(m[1].Steps) != 1 || m[1].Steps[0].Answer != "v=spf1 +all" {
		t.Errorf("%+v", report)
	}
	for _, bad := range [][]string{{"--ip", "nobody"}, {"--sender", "a@b.example"}, {"--ip", "192.0.2.7", "more"}} {
		if out, err := d.try(append([]string{"spf", "test"}, bad...)...); err == nil {
			t.Errorf("%v: %s", bad, out)
		}
	}
	expect(t, "metrics", d.metrics(), `postern_spf_results_total{identity="mailfrom",result="too-wide"} 1`, `postern_spf_results_total{identity="helo",result="fail"} 1`)
	p.noComplaint()
}

// Of mail from our own relay the client behind it is asked about, whom only
// the relay's Received field tells, at the milter door.
func TestSPFBehindARelay(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		settings string
		policy   bool
		refused  string
	}{
		{"marked, both doors", "", true, ""},
		{"refused, milter alone", "relay_refuse = true\n", false, `^550 5\.7\.23 SPF: 203\.0\.113\.9 may not send mail for pass\.example \(MAIL FROM, fail\) \[ref `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			text := strings.Replace(withDNS(spfConfig, spfZone(t)), "[spf]\n", "[spf]\nrelays = [\"192.0.2.25\"]\n"+tt.settings, 1)
			d := newDaemon(t, text+"[milter]\nlisten = [\"unix:{dir}/milter.sock\"]\n"+fmt.Sprintf("envelope = %v\n", !tt.policy))
			d.start()
			settings := []string{d.milters("tempfail"), boxes}
			if tt.policy {
				settings = append(settings, restrictions("unix:"+d.socket())...)
			}
			p := startPostfix(t, false, settings...)
			s := p.dial("192.0.2.25", "mx2.example.com")
			hop := func(client string) string {
				return "Received: from mail.pass.example (unknown [" + client + "])\r\n\tby mx2.example.com (Postfix) with ESMTP id 4abc\r\n\tfor <box@example.com>; Thu, 1 Jan 1970 00:00:00 +0000"
			}
			send := func(fields ...string) string {
				rcpt, data := s.hand("ann@pass.example", letter("ann@pass.example", fields...), "box@example.com")
				return strings.Join(rcpt, " ") + data
			}
			// The field below the relay's is the stranger's.
			matches(t, "pass", send(hop("192.0.2.7"), hop("203.0.113.9")), `^250 .*250 `)
			got := strings.Join(strings.Fields(p.takeFrom("box")), " ")
			if strings.Count(got, "Received-SPF:") != 1 {
				t.Errorf("not one field:\n%s", got)
			}
			expect(t, "pass", got, "Received-SPF: pass (mx.example.com: pass.example designates 192.0.2.7 as permitted sender)", "client-ip=192.0.2.7", "helo=mail.pass.example")

			reply := send(hop("203.0.113.9"), hop("192.0.2.7"))
			if tt.refused != "" {
				matches(t, "fail", strings.TrimPrefix(reply, "250 2.1.5 Ok"), tt.refused)
			} else {
				matches(t, "fail", reply, `^250 .*250 `)
				expect(t, "fail", strings.Join(strings.Fields(p.takeFrom("box")), " "), "Received-SPF: fail (mx.example.com: pass.example does not designate 203.0.113.9")
			}
			// No field of the relay's: nothing is known.
			matches(t, "unknown", send("Received: by mx2.example.com with LMTP"), `^250 .*250 `)
			if got := p.takeFrom("box"); strings.Contains(got, "Received-SPF") {
				t.Errorf("unknown:\n%s", got)
			}
			expect(t, "metrics", d.metrics(), `postern_spf_relayed_total{origin="found"} 2`, `postern_spf_relayed_total{origin="unknown"} 1`)
			p.noComplaint()
		})
	}
}

// A resolver that is gone stops no mail, and what it would have said is not
// taken for a refusal.
func TestSPFWithoutDNS(t *testing.T) {
	t.Parallel()
	dns := spfZone(t)
	d := newDaemon(t, strings.Replace(withDNS(spfConfig, dns), "temperror = \"defer\"", "temperror = \"off\"", 1))
	d.start()
	dns.Stop()
	c := d.dial()
	ask := func(sender string) policytest.Attrs { return sample("192.0.2.7", sender, "b@example.com") }
	for _, sender := range []string{"a@fail.example", "a@pass.example", "a@missing.example"} {
		// The HELO name of the sample cannot be asked about either, which is a mark.
		if got := c.MustAsk(t, ask(sender)); strings.HasPrefix(got, "5") {
			t.Errorf("%s: %s", sender, got)
		}
		if line := d.decided("sender", sender); line["action"] == "reject" {
			t.Errorf("%v", line)
		}
	}
	if got := c.MustAsk(t, ask("a@bank.example")); !strings.HasPrefix(got, "451 4.4.3 ") {
		t.Errorf("a domain that must pass: %s", got)
	}
	dns.Restart()
	d.eventually("the DNS answers again", func() bool {
		got, err := c.Ask(ask("a@fail.example").With("instance", fmt.Sprint("later.", dns.Total())))
		return err == nil && strings.HasPrefix(got, "550 5.7.23 ")
	})
}
