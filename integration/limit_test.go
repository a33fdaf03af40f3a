package integration

import (
	"fmt"
	"strings"
	"testing"

	"postern/internal/redistest"
)

const limitConfig = `
hostname = "mx.example.com"
[chains.inbound]
checks = ["access", "limit"]
[[limit.rule]]
name = "logins"
key = ["login"]
unit = "recipients"
quota = ["3/month"]
[[limit.rule]]
name = "networks"
key = ["network"]
unit = "distinct-senders"
quota = ["2/month"]
clients = "unauthenticated"
action = "reject"
reply = "550 5.7.1 Too many senders behind {client}"
`

// Limits of a login and of a network through a real Postfix: what is too much,
// what a message that is refused at its last recipient gives back, and what a
// restart keeps.
func TestLimits(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, limitConfig)
	d.start()
	p := startPostfix(t, false, append(restrictions("unix:"+d.socket()), boxes)...)
	const to = "box@example.com"
	s := p.dial("192.0.2.7 LOGIN=ann", "")
	rcpt, data := s.mail("ann@example.org", to)
	matches(t, "first", rcpt[0]+" "+data, `^250 .* 250 `)
	// Two are left: the message for three takes nothing.
	s.cmd(250, "MAIL FROM:<ann@example.org>")
	s.cmd(250, "RCPT TO:<%s>", to)
	s.cmd(250, "RCPT TO:<other@example.com>")
	matches(t, "the third", s.say("RCPT TO:<bcc@example.com>"), `^450 4\.7\.1 .*Too much mail, please try again in \d+[mh] \[ref `)
	s.cmd(250, "RSET")
	line := d.decided("reason", "limit-exceeded")
	if line["check"] != "limit" {
		t.Errorf("%v", line)
	}
	expect(t, "top", d.run("limit", "top"), " 33%  1 of 3  logins/month/ann\n")
	// One that goes on with the two that were accepted pays for them.
	rcpt, data = s.mail("ann@example.org", to, "other@example.com", "bcc@example.com")
	matches(t, "goes on", strings.Join(rcpt, " ")+" "+data, `^250 .* 250 .* 450 .* 250 `)
	expect(t, "top", d.run("limit", "top"), "100%  3 of 3  logins/month/ann\n")

	d.stop()
	d.start()
	matches(t, "after a restart", func() string { rcpt, _ := s.mail("ann@example.org", to); return rcpt[0] }(), `^450 4\.7\.1 `)
	rcpt, _ = p.dial("192.0.2.7 LOGIN=bob", "").mail("ann@example.org", to)
	matches(t, "another login", rcpt[0], `^250 `)
	expect(t, "reset", d.run("limit", "reset", "logins/month/ann"), "empty")
	rcpt, _ = s.mail("ann@example.org", to)
	matches(t, "after the reset", rcpt[0], `^250 `)
	// Two more are left; raised, three.
	matches(t, "raise", d.run("limit", "raise", "logins/month/ann", "--to", "4", "--for", "2h"), `^logins/month/ann  raised to 4 until \d{4}-`)
	d.stop()
	d.start()
	for i, want := range []string{"250", "250", "250", "450"} {
		rcpt, _ = s.mail("ann@example.org", to)
		matches(t, fmt.Sprint("raised ", i), rcpt[0], "^"+want+" ")
	}
	matches(t, "show", d.run("limit", "show", "ann"), `^ *100%  4 of 4  logins/month/ann  raised until \d{4}-`)
	matches(t, "list", d.run("limit", "raise", "--list"), `^logins/month/ann  raised to 4 `)
	expect(t, "cancel", d.run("limit", "raise", "logins/month/ann", "--cancel"), "cancelled")
	expect(t, "list", d.run("limit", "raise", "--list"), "none")
	if out, err := d.try("limit", "raise", "logins/day/ann", "--to", "9", "--for", "1h"); err == nil || !strings.Contains(out, "no rule has a meter") {
		t.Errorf("%v %s", err, out)
	}
	if out, err := d.try("limit", "reset", "logins/month/nobody"); err == nil || !strings.Contains(out, "there is no meter") {
		t.Errorf("%v %s", err, out)
	}

	// Strangers: the third sender of a network, from whatever address.
	for i := range 3 {
		want := `^250 `
		if i == 2 {
			want = `^550 5\.7\.1 .*Too many senders behind 198\.51\.100\.3 \[ref `
		}
		rcpt, _ := p.dial(fmt.Sprint("198.51.100.", i+1), "").mail(fmt.Sprintf("u%d@example.org", i), to)
		matches(t, "strangers", rcpt[0], want)
	}
}

// Two gateways with one Redis let through as many as one.
func TestGatewaysShareLimits(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	config := limitConfig + fmt.Sprintf("[store]\nkind = \"redis\"\n[store.redis]\naddrs = [%q]\n", r.Addr())
	passed := 0
	p, daemons := make([]*session, 2), make([]*daemon, 2)
	for i := range p {
		d := newDaemon(t, config)
		daemons[i] = d
		d.start()
		p[i] = startPostfix(t, false, append(restrictions("unix:"+d.socket()), boxes)...).dial("192.0.2.7 LOGIN=ann", "")
	}
	for i := range 8 {
		if rcpt, _ := p[i%2].mail("ann@example.org", "box@example.com"); strings.HasPrefix(rcpt[0], "250 ") {
			passed++
		}
	}
	if passed != 3 {
		t.Errorf("%d of 3 passed", passed)
	}
	// What is raised at one is raised at the other.
	daemons[0].run("limit", "raise", "logins/month/ann", "--to", "5", "--for", "1h")
	daemons[1].eventually("the other follows", func() bool { return strings.Contains(daemons[1].run("status"), ", 1 raised\n") })
	for i := range 4 {
		if rcpt, _ := p[i%2].mail("ann@example.org", "box@example.com"); strings.HasPrefix(rcpt[0], "250 ") {
			passed++
		}
	}
	if passed != 5 {
		t.Errorf("raised: %d of 5 passed", passed)
	}
}
