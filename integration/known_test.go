package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/redistest"
)

const knownConfig = `
hostname = "mx.example.com"
[chains.inbound]
checks = ["access", "greylist"]
[chains.submission]
checks = ["access", "known"]
[access]
deny = ["inline:to:refused@example.net 550 5.1.1 Nobody lives here"]
[known]
own_networks = ["198.51.100.0/28"]
`

// submission are the restrictions of a server that our users send through:
// the clients of these tests say by XCLIENT whether they have logged in. Postfix
// has no SASL here, and lets their addresses relay.
func submission(service string) []string {
	ask := func(chain string) string {
		return "check_policy_service { " + service + ", timeout=25s, default_action=DUNNO, policy_context=" + chain + " }"
	}
	return []string{
		"smtpd_recipient_restrictions = " + ask("submission") + ", permit_mynetworks, reject_unauth_destination, " + ask("inbound"),
		"smtpd_data_restrictions = permit_mynetworks, " + ask("inbound"),
		"virtual_mailbox_domains = example.org, example.com",
		"virtual_mailbox_maps = inline:{ann@example.org=box/ eve@example.org=box/}",
		"mynetworks = 203.0.113.9/32, 198.51.100.0/28",
		"smtpd_relay_restrictions = permit_mynetworks, permit_mynetworks, reject_unauth_destination",
		"default_transport = discard:", "relay_transport = discard:",
	}
}

const (
	ann      = "ann@example.org"
	eve      = "eve@example.org"
	mustWait = `^450 4\.2\.0 .*Greylisted`
	accepted = `^250 `
)

// rcptOf is what the recipient of a message is told.
func (s *session) rcptOf(from, to string) string {
	s.t.Helper()
	rcpt, _ := s.mail(from, to)
	return rcpt[0]
}

// learned waits until so many correspondents are known.
func (d *daemon) learned(n int) {
	d.t.Helper()
	d.eventually(fmt.Sprintf("%d correspondents", n), func() bool {
		return strings.Contains(d.run("known", "stats"), fmt.Sprintf("correspondents  %d of", n))
	})
}

// Over the policy door: a user with a login writes to a stranger, whose answer
// to that user does not wait, while others do; strangers teach nothing, whatever
// address they send with.
func TestKnown(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, knownConfig)
	d.start()
	p := startPostfix(t, false, submission("unix:"+d.socket())...)
	user := p.dial("203.0.113.9 LOGIN=ann", "")
	stranger := p.dial("192.0.2.7", "")

	// A forger with our user's address, before anybody has written.
	forger := p.dial("192.0.2.66", "")
	matches(t, "the forger relays", forger.rcptOf(ann, "bob@example.net"), `^[45]5[40] `)
	matches(t, "the forger writes inside", forger.rcptOf("bob@example.net", ann), mustWait)
	d.decided("chain", "submission", "client", "192.0.2.66")
	if out := d.run("known", "list"); strings.Contains(out, "bob") {
		t.Errorf("a stranger has made himself known:\n%s", out)
	}

	rcpt, data := user.mail(ann, "Bob+list@example.net", "refused@example.net")
	matches(t, "written", rcpt[0]+" | "+rcpt[1]+" | "+data, `^250 .*\| 550 5\.1\.1 .*\| 250 `)
	d.learned(1)
	expect(t, "list", d.run("known", "list"), ann, "bob@example.net")
	matches(t, "the answer", stranger.rcptOf("bob@example.net", ann), accepted)
	matches(t, "to another user", stranger.rcptOf("bob@example.net", eve), mustWait)
	matches(t, "of somebody else there", stranger.rcptOf("mallory@example.net", ann), mustWait)
	line := d.decided("reason", "greylist-correspondent")
	if line["recipient"] != ann || line["action"] != "continue" {
		t.Errorf("%v", line)
	}
	expect(t, "explain", d.run("explain", "--client", "192.0.5.7", "--sender", "bob@example.net", "--recipient", ann), "vouched for", "correspondent: last written to on")

	// A host of ours teaches without a login.
	matches(t, "a host of ours", p.dial("198.51.100.3", "").rcptOf(eve, "carl@example.net"), accepted)
	d.learned(2)
	matches(t, "its answer", stranger.rcptOf("carl@example.net", eve), accepted)

	d.stop()
	d.start()
	matches(t, "after a restart", p.dial("192.0.2.200", "").rcptOf("bob@example.net", ann), accepted)
	expect(t, "forget", d.run("known", "forget", "--with", "bob@example.net"), "1 entries forgotten")
	matches(t, "forgotten", p.dial("192.0.3.7", "").rcptOf("bob@example.net", ann), mustWait)
	rcpt, _ = user.mail(ann, "bob@example.net")
	matches(t, "written again", rcpt[0], accepted)
	d.learned(2)
	matches(t, "known again", p.dial("192.0.4.7", "").rcptOf("bob@example.net", ann), accepted)
}

// Through the milter nothing need be set, and what a program answers does not
// teach, nor does a message that is refused at its end.
func TestKnownThroughTheMilter(t *testing.T) {
	t.Parallel()
	for _, door := range []string{"policy", "milter"} {
		t.Run(door, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, fmt.Sprintf(`
hostname = "mx.example.com"
[milter]
listen = ["unix:{dir}/milter.sock"]
envelope = %v
[chains.inbound]
checks = ["greylist"]
[chains.submission]
checks = ["known"]
[[headers.rules]]
name = "marked"
all = ['/^X-Refuse: yes/']
action = "REJECT"
`, door == "milter"))
			d.start()
			settings := submission("unix:" + d.socket())
			if door == "milter" {
				settings[0], settings[1] = "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination", ""
			}
			p := startPostfix(t, false, append(settings, d.milters("accept"))...)
			user := p.dial("203.0.113.9 LOGIN=ann", "")
			send := func(to string, fields ...string) string {
				user.cmd(250, "MAIL FROM:<%s>", ann)
				user.cmd(250, "RCPT TO:<%s>", to)
				user.cmd(354, "DATA")
				return user.say("%s\r\nSubject: x\r\n\r\nbody\r\n.", strings.Join(append([]string{"From: " + ann}, fields...), "\r\n"))
			}
			matches(t, "vacation", send("bot@example.net", "Auto-Submitted: auto-replied"), accepted)
			matches(t, "refused", send("refused@example.net", "X-Refuse: yes"), `^5`)
			matches(t, "written", send("bob@example.net"), accepted)
			d.learned(1)
			expect(t, "list", d.run("known", "list"), "bob@example.net")
			matches(t, "the answer", p.dial("192.0.2.7", "").rcptOf("bob@example.net", ann), accepted)
			matches(t, "of who had the vacation", p.dial("192.0.2.7", "").rcptOf("bot@example.net", ann), mustWait)
			// A stranger who writes with our user's address.
			matches(t, "forged", p.dial("192.0.2.66", "").rcptOf(ann, eve), mustWait)
		})
	}
}

// Mail that must come now: told by the command line, to one who waits already.
func TestExpect(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, knownConfig)
	d.start()
	p := startPostfix(t, false, submission("unix:"+d.socket())...)
	s := p.dial("192.0.2.7", "")
	matches(t, "first contact", s.rcptOf("code@shop.example", ann), mustWait)
	expect(t, "expect", d.run("greylist", "expect", "--to", "Ann@Example.org", "--from", "shop.example", "--for", "10m"), "expected: mail to "+ann+" from shop.example, until ")
	matches(t, "the retry, at once", s.rcptOf("code@shop.example", ann), accepted)
	matches(t, "of others", s.rcptOf("x@bot.example", ann), mustWait)
	matches(t, "to others", s.rcptOf("code@shop.example", eve), mustWait)
	expect(t, "list", d.run("greylist", "expect", "--list"), ann, "shop.example", "in 9m")
	d.stop()
	d.start()
	matches(t, "after a restart", s.rcptOf("more@mail.shop.example", ann), accepted)
	expect(t, "cancel", d.run("greylist", "expect", "--cancel", "--to", ann), "1 cancelled")
	matches(t, "cancelled", s.rcptOf("again@shop.example", ann), mustWait)
	for _, args := range [][]string{
		{"--to", ann, "--for", "25h"}, {"--to", "ann"}, {}, {"--to", ann, "--from", "*"}, {"--list", "--cancel"}, {"--to", ann, "--sender", "x"}, {"--cancel", "--to", ann},
	} {
		if out, err := d.try(append([]string{"greylist", "expect"}, args...)...); err == nil {
			t.Errorf("%v: %s", args, out)
		}
	}
	line := d.decided("reason", "greylist-expected")
	if line["sender"] != "code@shop.example" {
		t.Errorf("%v", line)
	}
}

// What one gateway has learned or been told holds at the other.
func TestGatewaysShareWhoIsKnown(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	config := knownConfig + fmt.Sprintf("[store]\nkind = \"redis\"\n[store.redis]\naddrs = [%q]\n", r.Addr())
	d, p := make([]*daemon, 2), make([]*postfix, 2)
	for i := range d {
		d[i] = newDaemon(t, config)
		d[i].start()
		p[i] = startPostfix(t, false, submission("unix:"+d[i].socket())...)
	}
	p[0].dial("203.0.113.9 LOGIN=ann", "").mail(ann, "bob@example.net")
	d[0].eventually("learned", func() bool { return strings.Contains(d[0].run("known", "list"), "bob@example.net") })
	matches(t, "the answer, at the other", p[1].dial("192.0.2.7", "").rcptOf("bob@example.net", ann), accepted)
	d[0].run("greylist", "expect", "--to", eve)
	expect(t, "list", d[1].run("greylist", "expect", "--list"), eve)
	matches(t, "expected, at the other", p[1].dial("192.0.2.7", "").rcptOf("code@shop.example", eve), accepted)
	d[1].run("known", "forget", "--user", ann)
	matches(t, "forgotten, at the one", p[0].dial("192.0.2.8", "").rcptOf("bob@example.net", ann), accepted) // the triplet has passed
	matches(t, "forgotten, at the one", p[0].dial("198.51.100.77", "").rcptOf("bob@example.net", ann), mustWait)
}

// From the log that Postfix has written of such mail.
func TestKnownFromTheLog(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, knownConfig)
	d.start()
	log := `Nov 20 10:00:00 mx postfix/submission/smtpd[11]: 4F1234ABCD: client=laptop.example[203.0.113.9], sasl_method=PLAIN, sasl_username=ann
Nov 20 10:00:00 mx postfix/qmgr[2]: 4F1234ABCD: from=<ann@example.org>, size=900, nrcpt=1 (queue active)
Nov 20 10:00:01 mx postfix/smtp[12]: 4F1234ABCD: to=<bob@example.net>, relay=mx.example.net[192.0.2.50]:25, delay=1, dsn=2.0.0, status=sent (250 ok)
Nov 20 10:00:01 mx postfix/qmgr[2]: 4F1234ABCD: removed
`
	file := filepath.Join(d.dir, "mail.log")
	if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, "learn", d.run("known", "learn", "--log", file), "4 lines, 0 of them", "1 messages of our users, 0 of others", "1 deliveries by SMTP: 1 new correspondents")
	expect(t, "again", d.run("known", "learn", "--log", file), "0 new correspondents, 0 known for longer, 1 nothing new")
	d.learned(1)
	if out, err := d.try("known", "learn", "--log", file+".gone"); err == nil || !strings.Contains(out, "no such file") {
		t.Errorf("%v %s", err, out)
	}
}
