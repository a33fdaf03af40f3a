package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/dnstest"
)

// restrictions are the lines that docs/install.md gives, for a socket.
func restrictions(service string) []string {
	service = "check_policy_service { " + service + ", timeout=25s, default_action=DUNNO }"
	return []string{
		"smtpd_recipient_restrictions = reject_unauth_destination, " + service,
		"smtpd_data_restrictions = " + service,
	}
}

func TestGreylisting(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, `
hostname = "mx.example.com"
[greylist]
delay = "2s"
known_after = 2
known_age = "0s"
count_every = "0s"
`)
	d.start()
	p := startPostfix(t, false, restrictions("unix:"+d.socket())...)

	s := p.dial("192.0.2.7", "mail.example.org")
	rcpt, _ := s.mail("ann@example.org", "bob@example.com")
	matches(t, "first contact", rcpt[0],
		`^450 4\.2\.0 <bob@example\.com>: Recipient address rejected: Greylisted, please try again in 2 seconds \[ref [0-9A-Z]{5}-[0-9A-Z]{5}\]$`)
	rcpt, _ = s.mail("ann@example.org", "bob@example.com")
	matches(t, "early retry", rcpt[0], `^450 4\.2\.0 .*Greylisted, please try again in [12] seconds`)
	first := d.decided("reason", "greylist-first-contact")
	if first["client"] != "192.0.2.7" || first["client_name"] != "mail.example.org" || first["sender"] != "ann@example.org" || first["recipient"] != "bob@example.com" || first["stage"] != "rcpt" {
		t.Errorf("log line: %v", first)
	}
	expect(t, "explain by reference", d.run("explain", fmt.Sprint(first["ref"])), "ann@example.org", "greylist-first-contact")

	time.Sleep(2100 * time.Millisecond)
	// The pool's next host retries: the same organisation.
	s = p.dial("198.51.100.9", "mail2.example.org")
	rcpt, data := s.mail("ann@example.org", "bob@example.com")
	matches(t, "retry after the delay", rcpt[0], `^250 `)
	matches(t, "its message", data, `^250 `)
	message := p.messages(1)[0]
	if n := strings.Count(message, "\nX-Greylist: delayed "); n != 1 || !strings.Contains(message, " seconds by postern at mx.example.com; ") {
		t.Errorf("%d X-Greylist fields in\n%s", n, message)
	}

	// A second pass makes the client known: others of its senders are not delayed.
	rcpt, _ = s.mail("ann@example.org", "bob@example.com")
	matches(t, "known triplet", rcpt[0], `^250 `)
	rcpt, _ = s.mail("carl@example.org", "dora@example.com")
	matches(t, "known client", rcpt[0], `^250 `)
	d.decided("reason", "greylist-known-client")
	for _, m := range p.messages(3) {
		if m != message && strings.Contains(m, "X-Greylist") {
			t.Errorf("a message that was not delayed:\n%s", m)
		}
	}
}

func TestOneMessageForSeveralRecipients(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, base+`
[access]
deny = ["inline:to:nobody@example.com 550 5.1.1 Nobody lives here"]
`)
	d.start()
	p := startPostfix(t, false, restrictions("unix:"+d.socket())...)
	s := p.dial("192.0.2.7", "mail.example.org")
	to := []string{"a@example.com", "b@example.com", "nobody@example.com", "c@example.com"}
	rcpt, _ := s.mail("ann@example.org", to...)
	for i, want := range []string{`^450 4\.2\.0`, `^450 4\.2\.0`, `^550 5\.1\.1 <nobody@example\.com>: Recipient address rejected: Nobody lives here \[ref `, `^450 4\.2\.0`} {
		matches(t, to[i], rcpt[i], want)
	}
	time.Sleep(1100 * time.Millisecond)
	rcpt, data := s.mail("ann@example.org", to...)
	for i, want := range []string{`^250`, `^250`, `^550`, `^250`} {
		matches(t, to[i]+" again", rcpt[i], want)
	}
	matches(t, "the message", data, `^250`)
	for _, m := range p.messages(3) {
		if n := strings.Count(m, "\nX-Greylist: "); n != 1 {
			t.Errorf("%d X-Greylist fields in\n%s", n, m)
		}
	}
}

func TestDNSListsAndAccessLists(t *testing.T) {
	t.Parallel()
	dns := dnstest.Start(t)
	list(dns, "bl.example")
	dns.Add(
		"7.2.0.192.bl.example. 300 IN A 127.0.0.2", `7.2.0.192.bl.example. 300 IN TXT "see https://bl.example/192.0.2.7"`,
		"8.2.0.192.bl.example. 300 IN A 127.0.0.2",
		"9.2.0.192.bl.example. 300 IN A 127.255.255.254",
		"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.example. 300 IN A 127.0.0.4",
	)
	d := newDaemon(t, withDNS(`
[access]
allow = ["inline:192.0.2.8 a customer"]
deny = ["{dir}/deny.list"]
reload_interval = "100ms"
[rbl]
lists = ["bl.example=127.0.0.[2..11]*3"]
ask_private = true
[greylist]
mode = "off"
`, dns))
	if err := os.WriteFile(filepath.Join(d.dir, "deny.list"), []byte("198.51.100.0/24 554 5.7.1 Blocked after abuse; mail postmaster\n2001:db8:bad::/48\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.start()
	p := startPostfix(t, false, restrictions("unix:"+d.socket())...)
	for _, tt := range []struct{ name, client, want string }{
		{"listed", "192.0.2.7", `^554 5\.7\.1 <b@example\.com>: Recipient address rejected: Service unavailable; Client host \[192\.0\.2\.7\] blocked using bl\.example; see https://bl\.example/192\.0\.2\.7 \[ref `},
		{"allowed", "192.0.2.8", `^250`},
		{"refused by the list's operator", "192.0.2.9", `^250`},
		{"not listed", "192.0.2.10", `^250`},
		{"listed by IPv6", "2001:db8::7", `^554 5\.7\.1 .*Client host \[2001:db8::7\] blocked using bl\.example`},
		{"not listed, IPv6", "2001:db8::8", `^250`},
		{"denied", "198.51.100.1", `^554 5\.7\.1 .*Blocked after abuse; mail postmaster \[ref `},
		{"denied by IPv6", "2001:db8:bad::1", `^554 5\.7\.1 .*Access denied \[ref `},
	} {
		rcpt, _ := p.dial(tt.client, "").mail("a@example.org", "b@example.com")
		matches(t, tt.name, rcpt[0], tt.want)
	}
	// A client that really comes over IPv6.
	rcpt, _ := p.dialTo(fmt.Sprintf("[::1]:%d", p.port), "", "").mail("a@example.org", "b@example.com")
	matches(t, "loopback IPv6", rcpt[0], `^250`)
	d.decided("client", "::1", "action", "continue")
	expect(t, "rbl test", d.run("rbl", "test", "192.0.2.7"), "LISTED 127.0.0.2", "score 3 => reject")
}

func TestPolicyContextPicksTheChain(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, `
[access]
deny = ["inline:from:.spam.example"]
[greylist]
delay = "1m"
[chains.inbound]
checks = ["access", "greylist"]
[chains.lenient]
checks = ["access"]
`)
	d.start()
	p := startPostfix(t, false,
		"smtpd_restriction_classes = lenient",
		"lenient = check_policy_service { unix:"+d.socket()+", policy_context=lenient, default_action=DUNNO }, permit",
		"smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access inline:{sales@example.com=lenient}, check_policy_service { unix:"+d.socket()+", default_action=DUNNO }")
	s := p.dial("192.0.2.7", "")
	rcpt, _ := s.mail("a@example.org", "sales@example.com", "b@example.com")
	matches(t, "lenient chain", rcpt[0], `^250`)
	matches(t, "default chain", rcpt[1], `^450 4\.2\.0`)
	rcpt, _ = s.mail("a@spam.example", "sales@example.com")
	matches(t, "lenient chain, denied", rcpt[0], `^554 5\.7\.1`)
	d.decided("chain", "lenient", "action", "continue")
}

func TestNullSenderIsJudgedAtData(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, base)
	d.start()
	p := startPostfix(t, false, restrictions("unix:"+d.socket())...)
	// Another system's callout ends before DATA.
	s := p.dial("192.0.2.7", "mail.example.org")
	s.cmd(250, "MAIL FROM:<>")
	s.cmd(250, "RCPT TO:<bob@example.com>")
	s.cmd(250, "RSET")
	rcpt, data := s.mail("", "bob@example.com")
	matches(t, "recipient of a bounce", rcpt[0], `^250`)
	matches(t, "a bounce", data, `^450 4\.2\.0 .*Greylisted`)
	time.Sleep(1100 * time.Millisecond)
	_, data = s.mail("", "bob@example.com")
	matches(t, "a bounce that comes back", data, `^250`)
}

func TestSocketInTheChroot(t *testing.T) {
	t.Parallel()
	const base = "landlock = false\n" + base // else a place for a socket elsewhere takes a restart
	d := newDaemon(t, base+"\n[policy]\nlisten = [\"unix:{dir}/first.sock\"]\n")
	d.start()
	p := startPostfix(t, true, restrictions("unix:postern/policy.sock")...)
	dir := filepath.Join(p.dir, "queue/postern")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The socket's place is known only now: a reload opens it.
	d.configure(base + "\n[policy]\nlisten = [\"unix:" + dir + "/policy.sock,mode=0660,group=postfix\"]\n")
	d.run("reload")
	rcpt, _ := p.dial("192.0.2.7", "").mail("a@example.org", "b@example.com")
	matches(t, "a chrooted smtpd", rcpt[0], `^450 4\.2\.0 .*Greylisted`)
	st, err := os.Stat(dir + "/policy.sock")
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v %v", st.Mode(), err)
	}
}

func TestMailGoesOnWithoutTheDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, base)
	p := startPostfix(t, false, restrictions("unix:"+d.socket())...)
	rcpt, data := p.dial("192.0.2.7", "").mail("a@example.org", "b@example.com")
	matches(t, "without the daemon", rcpt[0], `^250`)
	matches(t, "without the daemon", data, `^250`)
}

// A client that nobody here wrote.
func TestSwaks(t *testing.T) {
	t.Parallel()
	require(t, "swaks")
	d := newDaemon(t, base)
	d.start()
	p := startPostfix(t, false, restrictions("unix:"+d.socket())...)
	swaks := func() (string, error) {
		out, err := exec.Command("swaks", "--server", "127.0.0.1", "--port", fmt.Sprint(p.port), "--from", "ann@example.org", "--to", "bob@example.com",
			"--helo", "mail.example.org").CombinedOutput()
		return string(out), err
	}
	if out, err := swaks(); err == nil || !strings.Contains(out, "450 4.2.0 <bob@example.com>: Recipient address rejected: Greylisted") {
		t.Errorf("first contact: %v\n%s", err, out)
	}
	time.Sleep(1100 * time.Millisecond)
	if out, err := swaks(); err != nil {
		t.Errorf("retry: %v\n%s", err, out)
	}
	if m := p.messages(1)[0]; !strings.Contains(m, "\nX-Greylist: delayed ") {
		t.Errorf("message:\n%s", m)
	}
}

// A real recursive server between the daemon and the lists, as in life.
func TestThroughUnbound(t *testing.T) {
	t.Parallel()
	require(t, "unbound")
	dns := dnstest.Start(t)
	list(dns, "bl.example")
	dns.Add("7.2.0.192.bl.example. 300 IN A 127.0.0.2", `7.2.0.192.bl.example. 300 IN TXT "real words"`)
	host, port, ok := strings.Cut(dns.Addr(), ":")
	if !ok {
		t.Fatal(dns.Addr())
	}
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own := l.LocalAddr().(*net.UDPAddr).Port
	_ = l.Close() // unbound takes it
	dir := shortDir(t)
	conf := filepath.Join(dir, "unbound.conf")
	text := fmt.Sprintf(`server:
  interface: 127.0.0.1
  port: %d
  username: ""
  chroot: ""
  directory: %q
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  do-not-query-localhost: no
  module-config: "iterator"
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: %s@%s
`, own, dir, host, port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unbound", "-d", "-c", conf)
	out := &logBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has nothing to save
		_ = cmd.Wait()         // killed
		if t.Failed() {
			t.Logf("unbound: %s", out)
		}
	})
	d := newDaemon(t, fmt.Sprintf(`
[dns]
servers = ["127.0.0.1:%d"]
[rbl]
lists = ["bl.example*3"]
ask_private = true
[greylist]
mode = "off"
`, own))
	d.start()
	d.eventually("the list passes its test", func() bool { return strings.Contains(d.run("status"), "bl.example: on") })
	c := d.dial()
	expect(t, "listed", c.MustAsk(t, sample("192.0.2.7", "a@example.org", "b@example.com")), "554 5.7.1 ", "blocked using bl.example; real words")
	expect(t, "not listed", c.MustAsk(t, sample("192.0.2.8", "a@example.org", "b@example.com")), "DUNNO")
}
