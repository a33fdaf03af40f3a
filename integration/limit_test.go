package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
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

// What counts is what is accepted, where a rule says so: not what Postfix, a
// later policy service or a header rule refuses, nor what is given up; bytes
// count at the end of the message, and connections when they come.
func TestLimitsOfWhatIsAccepted(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, `
hostname = "mx.example.com"
[milter]
listen = ["unix:{dir}/milter.sock"]
envelope = true
chain = "door"
[chains.inbound]
checks = ["limit", "access"]
[chains.door]
checks = ["limit"]
stages = ["connect"]
[access]
deny = ["inline:to:denied@example.com"]
[headers]
[[headers.rules]]
name = "spam"
all = ["/^Subject: spam/"]
action = "REJECT spam"
[[limit.rule]]
name = "accepted"
key = ["sender"]
unit = "recipients"
quota = ["1000/month"]
count = "accepted"
[[limit.rule]]
name = "asked"
key = ["sender"]
unit = "recipients"
quota = ["1000/month"]
[[limit.rule]]
name = "bytes"
key = ["sender"]
unit = "bytes"
quota = ["2000/month"]
[[limit.rule]]
name = "connections"
key = ["client"]
unit = "connections"
quota = ["3/month"]
`)
	d.start()
	service := "check_policy_service { unix:" + d.socket() + ", timeout=25s, default_action=DUNNO }"
	p := startPostfix(t, false, boxes,
		"smtpd_recipient_restrictions = reject_unauth_destination, "+service+", check_recipient_access inline:{other@example.com=REJECT}",
		"smtpd_data_restrictions = "+service, "smtpd_end_of_data_restrictions = "+service, d.milters("accept"))
	s := p.dial("192.0.2.7 PORT=4711", "") // by which the doors know the session
	used := func(rule string) (n int) {
		t.Helper()
		fields := strings.Fields(d.run("limit", "show", rule+"/month/ann@example.org"))
		if len(fields) > 1 {
			fmt.Sscan(fields[1], &n) //nolint:errcheck // 0
		}
		return n
	}
	// The first so that the daemon has seen DATA; of three one is left.
	rcpt, data := s.mail("ann@example.org", "denied@example.com", "other@example.com", "box@example.com")
	matches(t, "mixed", strings.Join(rcpt, " ")+" "+data, `^5\d\d .* 554 .* 250 .* 250 `)
	if a, b := used("accepted"), used("asked"); a != 1 || b != 3 {
		t.Errorf("mixed: %d accepted, %d asked", a, b)
	}
	size := used("bytes")
	if size < 20 || size > 2000 {
		t.Errorf("%d bytes", size)
	}
	// A header rule refuses the whole.
	s.cmd(250, "MAIL FROM:<ann@example.org>")
	s.cmd(250, "RCPT TO:<box@example.com>")
	s.cmd(250, "RCPT TO:<bcc@example.com>")
	s.cmd(354, "DATA")
	w := s.DotWriter()
	fmt.Fprint(w, "Subject: spam\r\n\r\nhello\r\n") //nolint:errcheck // Close tells
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	matches(t, "header rule", s.reply(), `^5\d\d `)
	sizes := used("bytes") // it came to its end
	if a, b := used("accepted"), used("asked"); a != 1 || b != 5 {
		t.Errorf("refused at the end: %d accepted, %d asked", a, b)
	}
	// One is given up, which the next one of the session shows.
	s.cmd(250, "MAIL FROM:<ann@example.org>")
	s.cmd(250, "RCPT TO:<box@example.com>")
	s.cmd(250, "RSET")
	if a := used("accepted"); a != 2 {
		t.Errorf("under way: %d accepted", a)
	}
	s.mail("bob@example.org", "box@example.com")
	d.eventually("it is given back", func() bool { return used("accepted") == 1 })
	// A message larger than the whole quota is refused for good.
	s.cmd(250, "MAIL FROM:<ann@example.org>")
	s.cmd(250, "RCPT TO:<box@example.com>")
	s.cmd(354, "DATA")
	w = s.DotWriter()
	fmt.Fprintf(w, "Subject: large\r\n\r\n%s", strings.Repeat("0123456789 0123456789\r\n", 100)) //nolint:errcheck // as above
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	matches(t, "large", s.reply(), `^552 5\.3\.4 .*Message is larger than is allowed in all \[ref `)
	if a, b := used("accepted"), used("bytes"); a != 1 || b != sizes {
		t.Errorf("large: %d accepted, %d bytes, want %d", a, b, sizes)
	}
	// Connections of one client, told at connect by a milter.
	pass, from := 0, net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 5)}}
	for range 5 {
		c, err := from.Dial("tcp", p.addr())
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, "220 ") {
			pass++
		}
		_ = c.Close() // it may be closed
	}
	if pass != 3 {
		t.Errorf("%d of 3 connections passed", pass)
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

// Who hits a limit is told of by a webhook and by a mail through a real
// sendmail, once for two gateways and a restart; the mail is not judged itself.
func TestLimitNotifications(t *testing.T) {
	t.Parallel()
	require(t, "setpriv")
	r := redistest.Start(t)
	got := make(chan string, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body) // compared
		got <- string(body)
	}))
	defer hook.Close()
	config := fmt.Sprintf(`
hostname = "mx.example.com"
[chains.inbound]
checks = ["limit"]
[[limit.rule]]
name = "logins"
key = ["login"]
quota = ["1/month"]
notify = ["hook", "people"]
[[limit.rule]]
name = "all"
key = ["recipient"]
quota = ["1/month"]
only = ["to:nobody@example.com"]
[[limit.notify]]
name = "hook"
url = %q
body = '{"text": "{login} {used}/{limit} {rule} {client} {hostname}"}'
[[limit.notify]]
name = "people"
to = ["nobody@example.com"]
[store]
kind = "redis"
[store.redis]
addrs = [%q]
`, hook.URL, r.Addr())
	one, two := newDaemon(t, config), newDaemon(t, config)
	p := startPostfix(t, false, append(restrictions("unix:"+one.socket()), boxes)...)
	q := startPostfix(t, false, append(restrictions("unix:"+two.socket()), boxes)...)
	for _, d := range []*daemon{one, two} {
		d.env = append(d.env, "MAIL_CONFIG="+p.config)
		d.start()
	}
	const login = `a"nn@example.org`
	hit := func(p *postfix, want string) {
		t.Helper()
		rcpt, _ := p.dial("192.0.2.7 LOGIN="+strings.ReplaceAll(login, `"`, "+22"), "").mail("ann@example.org", "box@example.com")
		matches(t, "hit", rcpt[0], "^"+want+" ")
	}
	hit(p, "250")
	hit(p, "450")
	var text struct{ Text string }
	if body := <-got; json.Unmarshal([]byte(body), &text) != nil || text.Text != login+" 1/1 logins 192.0.2.7 mx.example.com" {
		t.Errorf("the webhook got %s", body)
	}
	told := func() int {
		files, _ := filepath.Glob(filepath.Join(p.dir, "mail/nobody/new/*")) // the pattern is good
		return len(files)
	}
	one.eventually("the mail", func() bool { return told() == 1 })
	files, _ := filepath.Glob(filepath.Join(p.dir, "mail/nobody/new/*")) // as above
	letter, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Return-Path: <>", "\nTo: nobody@example.com\n", "\nFrom: postern <postern@mx.example.com>\n", "\nAuto-Submitted: auto-generated\n"} {
		if !strings.Contains("\n"+string(letter), want) {
			t.Errorf("no %q in\n%s", want, letter)
		}
	}
	if n := len(one.decisions("recipient", "nobody@example.com")) + len(two.decisions("recipient", "nobody@example.com")); n != 0 {
		t.Error("the mail was judged")
	}

	// The other gateway, and this one after a restart, tell nobody again.
	hit(q, "450")
	one.stop()
	one.start()
	hit(p, "450")
	one.stop() // what waits is sent before it ends
	two.stop()
	if len(got) != 0 || told() != 1 {
		t.Errorf("told %d times more by the webhook, %d mails", len(got), told())
	}
	one.start()
	expect(t, "test", one.run("limit", "notify", "--test", "logins"), "hook: sent\npeople: sent\n")
	<-got
	one.eventually("the test's mail", func() bool { return told() == 2 })
	hook.Close()
	if out, err := one.try("limit", "notify", "--test", "logins"); err == nil || !strings.Contains(out, "hook: FAILED: webhook: ") {
		t.Errorf("%v %s", err, out)
	}
	one.eventually("its mail", func() bool { return told() == 3 })

	// As under the shipped unit with the drop-in of docs/checks/limit.md:
	// nobody's program gets new rights, and the group of the maildrop is ours.
	cmd := exec.Command("setpriv", "--reuid=nobody", "--regid=nogroup", "--groups=postdrop", "--no-new-privs",
		"/usr/sbin/sendmail", "-i", "-f", "", "--", "nobody@example.com")
	cmd.Env, cmd.Stdin = append(os.Environ(), "MAIL_CONFIG="+p.config), strings.NewReader("Subject: x\n\nhello\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	one.eventually("the mail of the drop-in", func() bool { return told() == 4 })
}
