package integration

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"postern/internal/dnstest"
)

const clientConfig = `
hostname = "mx.example.com"
[dns]
timeout = "1s"
attempts = 1
servfail_ttl = "1s"
[chains.inbound]
checks = ["access", "client", "rbl", "greylist"]
[client]
own_domains = ["example.com"]
helo_names = 2
%s
[rbl]
lists = ["bl.example*2", "other.example"]
[greylist]
delay = "1h"
when = "suspicious"
`

// clientConditions are all of them, each with a client that it is found of:
// the reverse name that Postfix has and whether it is verified, HELO names ("-"
// for none), the sender, the codes to reject and to defer, and the text. About a
// recipient Postfix makes x.1.2 of x.1.8, which is about senders.
var clientConditions = []struct {
	name, addr, reverse string
	verified            bool
	helo, sender        string
	codes               [2]string
	text                string
}{
	{"helo_missing", "203.0.113.1", "mail.good.example", true, "-", "ann@good.example", [2]string{"503 5.5.1", "450 4.5.1"}, "Send HELO or EHLO first"},
	{"helo_invalid", "203.0.113.2", "mail.good.example", true, "a..b", "ann@good.example", [2]string{"501 5.5.2", "450 4.5.2"},
		"HELO a..b is no host name: it has an empty label"},
	{"helo_not_full", "203.0.113.3", "mail.good.example", true, "mail", "ann@good.example", [2]string{"504 5.5.2", "450 4.5.2"}, "HELO mail is not a full host name"},
	{"helo_wrong_address", "203.0.113.4", "mail.good.example", true, "[203.0.113.99]", "ann@good.example", [2]string{"550 5.7.1", "450 4.7.1"},
		"HELO [203.0.113.99] is not your address, which is 203.0.113.4"},
	{"helo_own", "203.0.113.5", "mail.good.example", true, "MX.example.com", "ann@good.example", [2]string{"550 5.7.1", "450 4.7.1"}, "HELO MX.example.com is not you"},
	{"helo_unresolved", "203.0.113.6", "mail.good.example", true, "nowhere.example", "ann@good.example", [2]string{"550 5.7.1", "450 4.7.1"},
		"HELO nowhere.example does not exist in the DNS"},
	{"helo_changes", "203.0.113.7", "mail.good.example", true, "one.good.example two.good.example mail.good.example", "ann@good.example",
		[2]string{"550 5.7.1", "450 4.7.1"}, "203.0.113.7 uses too many HELO names"},
	{"reverse_missing", "203.0.113.8", "", false, "mail.good.example", "ann@good.example", [2]string{"550 5.7.25", "450 4.7.25"}, "Your address 203.0.113.8 has no reverse name"},
	{"reverse_unverified", "203.0.113.9", "mail.good.example", false, "mail.good.example", "ann@good.example", [2]string{"550 5.7.25", "450 4.7.25"},
		"The reverse name of your address 203.0.113.9, mail.good.example, does not lead back to it"},
	{"reverse_generic", "203.0.113.10", "dsl-203-0-113-10.isp.example", true, "mail.good.example", "ann@good.example", [2]string{"550 5.7.1", "450 4.7.1"},
		"The reverse name of your address 203.0.113.10, dsl-203-0-113-10.isp.example, is not that of a mail server"},
	{"sender_unresolved", "203.0.113.11", "mail.good.example", true, "mail.good.example", "ann@nowhere.example", [2]string{"550 5.1.2", "450 4.1.2"},
		"The sender's domain nowhere.example cannot receive mail: no MX, A or AAAA record"},
	{"sender_null_mx", "203.0.113.12", "mail.good.example", true, "mail.good.example", "ann@null.example", [2]string{"550 5.7.27", "450 4.7.27"},
		"The sender's domain null.example does not receive mail (null MX, RFC 7505)"},
	{"sender_private_mx", "203.0.113.13", "mail.good.example", true, "mail.good.example", "ann@private.example", [2]string{"550 5.1.2", "450 4.1.2"},
		"The sender's domain private.example cannot receive mail: mail exchanger ten.example has the address 10.1.2.3"},
	{"sender_own", "203.0.113.14", "mail.good.example", true, "mail.good.example", "ann@example.com", [2]string{"550 5.7.1", "450 4.7.1"},
		"Mail from example.com is not taken from 203.0.113.14 without authentication"},
}

// as opens a session of a client, who says nothing yet, and closes the one
// before it, if any.
func (p *postfix) as(before *session, addr, reverse string, verified bool) *session {
	p.t.Helper()
	if before != nil {
		_ = before.Close() // nothing is under way
	}
	s := p.dial("", "")
	name := "[UNAVAILABLE]"
	if verified {
		name = reverse
	}
	if reverse == "" {
		reverse = "[UNAVAILABLE]"
	}
	s.cmd(220, "XCLIENT ADDR=%s NAME=%s REVERSE_NAME=%s", addr, name, reverse)
	return s
}

// rcpt asks about one recipient and gives the message up.
func (s *session) rcpt(sender, recipient string) string {
	s.t.Helper()
	s.cmd(250, "MAIL FROM:<%s>", sender)
	reply := s.say("RCPT TO:<%s>", recipient)
	s.cmd(250, "RSET")
	return reply
}

// Every condition through a real Postfix: refused, deferred, marked.
func TestClient(t *testing.T) {
	t.Parallel()
	dns := dnstest.Start(t)
	list(dns, "bl.example")
	list(dns, "other.example")
	dns.Add(
		"good.example. 300 IN MX 10 mail.good.example.", "mail.good.example. 300 IN A 192.0.2.7", "one.good.example. 300 IN A 192.0.2.7", "two.good.example. 300 IN A 192.0.2.7",
		"7.2.0.192.in-addr.arpa. 300 IN PTR mail.good.example.",
		"null.example. 300 IN MX 0 .", "private.example. 300 IN MX 10 ten.example.", "ten.example. 300 IN A 10.1.2.3",
		"20.113.0.203.bl.example. 300 IN A 127.0.0.2", "21.113.0.203.bl.example. 300 IN A 127.0.0.2",
	)
	dns.Behave("broken.example", dnstest.ServFail)
	config := func(settings string) string { return withDNS(fmt.Sprintf(clientConfig, settings), dns) }
	every := func(action string) string {
		var b strings.Builder
		for _, c := range clientConditions {
			fmt.Fprintf(&b, "%s.action = %q\n", c.name, action)
		}
		return config(b.String())
	}
	d := newDaemon(t, every("reject"))
	d.start()
	p := startPostfix(t, false, append(restrictions("unix:"+d.socket()), boxes)...)
	var s *session
	const to = "box@example.com"

	for i, action := range []string{"reject", "defer", "mark"} {
		if i > 0 {
			d.configure(every(action))
			d.run("reload")
		}
		for _, c := range clientConditions {
			var reply string
			for helo := range strings.FieldsSeq(c.helo) {
				s = p.as(s, c.addr, c.reverse, c.verified)
				if helo != "-" {
					s.cmd(250, "EHLO %s", helo)
				}
				reply = s.rcpt(c.sender, to)
			}
			want := "450 4.2.0 <" + to + ">: Recipient address rejected: Greylisted, please try again in "
			if action != "mark" {
				want = c.codes[i] + " <" + to + ">: Recipient address rejected: " + c.text + " [ref "
			}
			if !strings.HasPrefix(reply, want) {
				t.Errorf("%s, %s: %q, want %q", c.name, action, reply, want)
			}
		}
	}
	for _, c := range clientConditions {
		reason := "client-" + strings.ReplaceAll(c.name, "_", "-")
		for _, action := range []string{"reject", "defer"} {
			d.decided("reason", reason, "action", action, "client", c.addr)
		}
		// The mark stands among the steps of the decision to greylist, which it led to.
		ref := fmt.Sprint(d.decided("check", "greylist", "client", c.addr)["ref"])
		expect(t, c.name, d.run("explain", ref), reason)
	}
	expect(t, "metrics", d.metrics(), `postern_client_found_total{condition="sender-null-mx"} 3`)

	// Who has nothing against him passes; that Postfix does not know his name is
	// not his fault.
	for _, reverse := range []string{"mail.good.example", ""} {
		s = p.as(s, "192.0.2.7", reverse, reverse != "")
		s.cmd(250, "EHLO mail.good.example")
		matches(t, "good", s.rcpt("ann@good.example", to), `^250 `)
		matches(t, "a bounce", s.rcpt("", to), `^250 `)
	}
	if n := dns.Count("7.2.0.192.in-addr.arpa", "PTR"); n != 1 {
		t.Errorf("the reverse name was asked for %d times", n)
	}
	// A mark adds to what a list says.
	s = p.as(s, "203.0.113.20", "mail.good.example", true)
	s.cmd(250, "EHLO mail.good.example")
	matches(t, "on a list", s.rcpt("ann@good.example", to), `^450 4\.2\.0 .*Greylisted`)
	s = p.as(s, "203.0.113.21", "mail.good.example", true)
	s.cmd(250, "EHLO nowhere.example")
	matches(t, "on a list, with a mark", s.rcpt("ann@good.example", to), `^554 5\.7\.1 .*blocked using bl\.example`)
	if line := d.decided("client", "203.0.113.21"); line["detail"] != "score 3; bl.example 127.0.0.2 (2); marks (1)" {
		t.Errorf("%v", line)
	}

	// What the DNS does not answer refuses nobody, unless that is wanted. The
	// postmaster can be reached, and who is exempt is not judged.
	d.configure(every("reject"))
	d.run("reload")
	s = p.as(s, "192.0.2.7", "mail.good.example", true)
	s.cmd(250, "EHLO broken.example")
	matches(t, "unable", s.rcpt("ann@broken.example", to), `^250 `)
	s.cmd(250, "EHLO a..b")
	s.rcpt("ann@example.com", "postmaster@example.com") // Postfix may not know it
	if line := d.decided("recipient", "postmaster@example.com"); line["action"] != "continue" {
		t.Errorf("%v", line)
	}
	expect(t, "metrics", d.metrics(), `postern_client_unable_total{question="helo"} 1`, `postern_client_unable_total{question="sender"} 1`)
	d.configure(config("defer_unable = [\"sender\"]\nskip = [\"198.51.100.0/24\"]\n"))
	d.run("reload")
	s.cmd(250, "EHLO mail.good.example")
	matches(t, "unable, deferred", s.rcpt("bob@broken.example", to), `^451 4\.4\.3 .*The sender's domain broken\.example cannot be looked up, please try again later \[ref `)
	s = p.as(s, "198.51.100.7", "", false)
	s.cmd(250, "EHLO a..b")
	matches(t, "exempt", s.rcpt("ann@example.com", to), `^250 `)

	// Where Postfix asks at HELO, it is told there.
	service := strings.TrimPrefix(restrictions("unix:" + d.socket())[1], "smtpd_data_restrictions = ")
	if out, err := exec.Command("postconf", "-c", p.config, "-e", "smtpd_delay_reject = no", "smtpd_helo_restrictions = "+service).CombinedOutput(); err != nil {
		t.Fatalf("postconf: %v %s", err, out)
	}
	p.command("reload")
	d.eventually("Postfix asks at HELO", func() bool {
		s = p.as(s, "203.0.113.30", "mail.good.example", true)
		return strings.HasPrefix(s.say("EHLO a..b"), "501 5.5.2 <a..b>: Helo command rejected: HELO a..b is no host name: it has an empty label [ref ")
	})
	if line := d.decided("client", "203.0.113.30", "stage", "helo"); line["reason"] != "client-helo-invalid" {
		t.Errorf("%v", line)
	}
	p.noComplaint()
}
