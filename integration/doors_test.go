package integration

import (
	"fmt"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/systemdtest"
)

// hold opens sockets as systemd does for a service, and hands them to the
// daemon at each start.
func (d *daemon) hold(names ...string) {
	d.t.Helper()
	for _, name := range names {
		path := filepath.Join(d.dir, name)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			d.t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			d.t.Fatal(err)
		}
		f, err := l.File()
		if err != nil {
			d.t.Fatal(err)
		}
		d.t.Cleanup(func() { _ = f.Close(); _ = l.Close() }) // the end
		d.extra = append(d.extra, f)
	}
}

// mails sends messages in sessions of three until stop is called, which returns
// how many were accepted and the replies that no rule gave.
func mails(p *postfix, clients int) (stop func() (accepted int64, strange []string)) {
	var done atomic.Bool
	var accepted atomic.Int64
	var mu sync.Mutex
	var strange []string
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for n := 0; !done.Load(); n++ {
				sent, err := session3(p.addr(), fmt.Sprintf("s%d.%d@example.org", i, n))
				accepted.Add(int64(sent))
				if err != nil {
					mu.Lock()
					strange = append(strange, err.Error())
					mu.Unlock()
				}
			}
		})
	}
	return func() (int64, []string) {
		done.Store(true)
		wg.Wait()
		return accepted.Load(), strange
	}
}

// session3 sends three messages in one session and returns how many were
// accepted. The error is the first reply that is not as it should be.
func session3(addr, from string) (accepted int, err error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close() //nolint:errcheck // the end
	_ = c.SetDeadline(time.Now().Add(patience))
	s := newText(c)
	if err := s.expect("", 220); err != nil {
		return 0, err
	}
	if err := s.expect("EHLO mail.example.org", 250); err != nil {
		return 0, err
	}
	for range 3 {
		for _, step := range []struct {
			say  string
			code int
		}{
			{"MAIL FROM:<" + from + ">", 250}, {"RCPT TO:<alias@example.com>", 250}, {"DATA", 354},
			{"From: <" + from + ">\r\nSubject: test\r\n\r\nhello\r\n.", 250},
		} {
			if err := s.expect(step.say, step.code); err != nil {
				return accepted, err
			}
		}
		accepted++
	}
	return accepted, s.expect("QUIT", 221)
}

// While the daemon restarts ten times under mail, its sockets are held: nobody
// reads a 451, and no message is taken that its rules have not seen.
func TestTenRestartsCostNothing(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, `
hostname = "mx.example.com"
[milter]
listen = ["unix:{dir}/milter.sock"]
[lookup]
listen = ["unix:{dir}/lookup.sock"]
[tables.aliases]
source = "texthash:{dir}/aliases"
search = "virtual"
[tables.transport]
source = "texthash:{dir}/transport"
search = "transport"
[[headers.checks]]
table = "regexp:{dir}/header_checks"
[chains.inbound]
checks = ["access"]
`)
	d.put("aliases", "alias@example.com box@example.com\n")
	d.put("transport", "other.example.com smtp:[127.0.0.1]:1\n")
	d.put("header_checks", "/^Subject:/ PREPEND X-Seen: yes\n")
	d.hold("policy.sock", "milter.sock", "lookup.sock")
	d.start()
	socketmap := fmt.Sprintf("socketmap:unix:%s/lookup.sock:", d.dir)
	p := startPostfix(t, false, d.milters("tempfail"), "virtual_alias_maps = "+socketmap+"aliases", "transport_maps = "+socketmap+"transport",
		"smtpd_recipient_restrictions = reject_unauth_destination, reject_unlisted_recipient, check_policy_service unix:"+d.socket(),
		"virtual_mailbox_maps = inline:{box@example.com=box/}")
	stop := mails(p, 4)
	for range 10 {
		before := len(p.accepted())
		d.stop()
		d.start()
		d.eventually("mail after the restart", func() bool { return len(p.accepted()) > before+5 })
	}
	accepted, strange := stop()
	if len(strange) > 0 || accepted < 50 {
		t.Errorf("%d messages, %d strange replies: %.10q", accepted, len(strange), strange)
	}
	got := p.messages(int(accepted))
	if len(got) != int(accepted) {
		t.Errorf("%d messages were accepted, %d delivered", accepted, len(got))
	}
	for _, m := range got {
		if strings.Count(m, "\nX-Seen: yes\n") != 1 {
			t.Fatalf("a message that the rules have not seen:\n%s", m)
		}
	}
}

// accepted returns the queue ids of what cleanup has taken.
func (p *postfix) accepted() []string {
	var ids []string
	for line := range strings.Lines(p.log()) {
		if _, rest, ok := strings.Cut(line, "/cleanup["); ok && strings.Contains(rest, "message-id=") {
			ids = append(ids, rest)
		}
	}
	return ids
}

// text speaks SMTP without a test: what goes wrong is returned.
type text struct{ *textproto.Conn }

func newText(c net.Conn) text { return text{textproto.NewConn(c)} }

// expect says something, unless it is empty, and reads a reply.
func (s text) expect(say string, code int) error {
	if say != "" {
		if err := s.PrintfLine("%s", say); err != nil {
			return err
		}
	}
	got, words, err := s.ReadResponse(code)
	if err != nil {
		return fmt.Errorf("%.40q: %d %s: %w", say, got, words, err)
	}
	return nil
}

// underSystemd has the daemon's files kept over its restarts.
func (d *daemon) underSystemd() *systemdtest.Manager {
	d.t.Helper()
	s := systemdtest.Start(d.t, filepath.Join(d.dir, "notify"))
	d.env = append(d.env, s.Env()...)
	d.kept = s.Copies
	return s
}

// SMTP sessions that stay open over a restart keep their milter: between
// messages nobody notices, and a message under way is deferred, once.
func TestSessionsGoOnOverARestart(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, `
hostname = "mx.example.com"
[milter]
listen = ["unix:{dir}/milter.sock", "tcp:127.0.0.1:{port}"]
drain = "1s"
[[headers.checks]]
table = "regexp:{dir}/header_checks"
[chains.inbound]
checks = ["access"]
`)
			d.put("header_checks", "/^Subject:/ PREPEND X-Seen: yes\n")
			d.hold("policy.sock", "milter.sock")
			port := d.holdTCP()
			d.configure(strings.ReplaceAll(readFile(t, d.config), "{port}", port))
			s := d.underSystemd()
			d.start()
			address := "unix:" + d.dir + "/milter.sock"
			if network == "tcp" {
				address = "inet:127.0.0.1:" + port
			}
			p := startPostfix(t, false, "smtpd_milters = "+address, "milter_default_action = accept",
				"smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:"+d.socket())
			sent := 0
			ok := func(s *session) {
				t.Helper()
				_, reply := s.mail("a@example.org", "box@example.com")
				matches(t, "a message", reply, "^250 ")
				sent++
			}
			greeted := p.dial("", "")
			used := p.dial("192.0.2.7", "mail.example.org")
			ok(used)
			middle := p.dial("", "")
			middle.cmd(250, "MAIL FROM:<a@example.org>")
			middle.cmd(250, "RCPT TO:<box@example.com>")
			atData := p.dial("", "")
			atData.cmd(250, "MAIL FROM:<a@example.org>")
			atData.cmd(250, "RCPT TO:<box@example.com>")
			atData.cmd(354, "DATA")
			for range 3 {
				d.stop()
				if n := s.Holds("milter-sessions"); n != 5 {
					t.Errorf("%d files are kept, want those of four sessions and one", n)
				}
				if n := s.Holds("policy-connections"); n == 0 {
					t.Error("no connection of the policy door is kept")
				}
				d.start()
				d.eventually("nothing is kept any more", func() bool { return s.Holds("") == 0 })
				ok(greeted)
				ok(used)
			}
			// Nothing can be said any more of messages that were under way.
			matches(t, "a message under way", atData.say("Subject: test\r\n\r\nhello\r\n."), `^451 4\.7\.1 `)
			middle.cmd(354, "DATA")
			matches(t, "a message under way", middle.say("Subject: test\r\n\r\nhello\r\n."), `^451 4\.7\.1 `)
			ok(middle)
			ok(atData)
			// A session that has ended meanwhile is no harm.
			d.stop()
			greeted.cmd(221, "QUIT")
			d.start()
			ok(used)
			ok(p.dial("", ""))
			for _, m := range p.messages(sent) {
				if strings.Count(m, "\nX-Seen: yes\n") != 1 {
					t.Fatalf("a message that the rules have not seen:\n%s", m)
				}
			}
			if err := s.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// holdTCP is hold for a port of loopback, which it returns.
func (d *daemon) holdTCP() (port string) {
	d.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = f.Close(); _ = l.Close() }) // the end
	d.extra = append(d.extra, f)
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		d.t.Fatal(err)
	}
	return port
}
