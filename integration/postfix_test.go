package integration

import (
	"fmt"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern/internal/postfixtest"
)

// postfix is a real Postfix. Mail for example.com is delivered into files;
// nothing leaves the host.
type postfix struct {
	*postfixtest.Instance
	t      *testing.T
	dir    string
	port   int
	config string
}

// require skips, or fails where nothing may be missing.
func require(t *testing.T, tools ...string) {
	t.Helper()
	postfixtest.Require(t, tools...)
}

// startPostfix starts an instance. {dir} in the settings is its queue
// directory. chroot puts smtpd into it.
func startPostfix(t *testing.T, chroot bool, settings ...string) *postfix {
	t.Helper()
	p := postfixtest.Start(t, chroot, settings...)
	return &postfix{p, t, p.Dir, p.Port, p.Config}
}

func (p *postfix) addr() string           { return p.Addr() }
func (p *postfix) command(args ...string) { p.t.Helper(); p.Command(args...) }
func (p *postfix) stop()                  { p.Stop() }
func (p *postfix) log() string            { return p.Log() }

// files returns the files of the delivered messages, in no order that counts.
func (p *postfix) files() []string {
	p.t.Helper()
	files, err := filepath.Glob(filepath.Join(p.dir, "mail/box/new/*"))
	if err != nil {
		p.t.Fatal(err)
	}
	return files
}

// messages waits for n delivered messages and returns all there are.
func (p *postfix) messages(n int) []string {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		files := p.files()
		if len(files) >= n {
			var out []string
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					p.t.Fatal(err)
				}
				out = append(out, string(b))
			}
			return out
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%d of %d messages were delivered\n%s", len(files), n, p.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// session is one SMTP session.
type session struct {
	t *testing.T
	*textproto.Conn
	conn net.Conn
}

// dial opens a session as if from a client: its address and verified name
// ("" for none), told by XCLIENT.
func (p *postfix) dial(client, name string) *session {
	p.t.Helper()
	return p.dialTo(p.addr(), client, name)
}

func (p *postfix) dialTo(addr, client, name string) *session {
	p.t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		p.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(2 * patience)) // a dead connection fails the next command
	s := &session{p.t, textproto.NewConn(c), c}
	p.t.Cleanup(func() { _ = s.Close() }) // it may be closed
	s.want(220)
	s.cmd(250, "EHLO test.example")
	if client != "" {
		if strings.Contains(client, ":") {
			client = "IPV6:" + client
		}
		if name == "" {
			name = "[UNAVAILABLE]"
		}
		s.cmd(220, "XCLIENT ADDR=%s NAME=%s REVERSE_NAME=%s", client, name, name)
		s.cmd(250, "EHLO mail.example.org")
	}
	return s
}

func (s *session) want(code int) string {
	s.t.Helper()
	_, text, err := s.ReadResponse(code)
	if err != nil {
		s.t.Fatalf("want %d: %v", code, err)
	}
	return text
}

// cmd sends a command that must be answered with a code.
func (s *session) cmd(code int, format string, args ...any) string {
	s.t.Helper()
	if err := s.PrintfLine(format, args...); err != nil {
		s.t.Fatal(err)
	}
	return s.want(code)
}

// say sends a command and returns the whole reply.
func (s *session) say(format string, args ...any) string {
	s.t.Helper()
	if err := s.PrintfLine(format, args...); err != nil {
		s.t.Fatal(err)
	}
	return s.reply()
}

func (s *session) reply() string {
	s.t.Helper()
	code, text, err := s.ReadResponse(0)
	if err != nil {
		if te, ok := err.(*textproto.Error); ok { //nolint:errorlint // ReadResponse returns it bare
			return te.Error()
		}
		s.t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", code, text)
}

// mail sends one message and returns the reply of each recipient, and that to
// the message, "" when no recipient was taken.
func (s *session) mail(from string, to ...string) (rcpt []string, data string) {
	s.t.Helper()
	s.cmd(250, "MAIL FROM:<%s>", from)
	accepted := false
	for _, r := range to {
		reply := s.say("RCPT TO:<%s>", r)
		accepted = accepted || strings.HasPrefix(reply, "250")
		rcpt = append(rcpt, reply)
	}
	if !accepted {
		s.cmd(250, "RSET")
		return rcpt, ""
	}
	reply := s.say("DATA")
	if !strings.HasPrefix(reply, "354") {
		s.cmd(250, "RSET")
		return rcpt, reply
	}
	w := s.DotWriter()
	if _, err := fmt.Fprintf(w, "From: <%s>\r\nSubject: test\r\n\r\nhello\r\n", from); err != nil {
		s.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	return rcpt, s.reply()
}

// matches fails the test unless a reply matches.
func matches(t *testing.T, what, reply, pattern string) {
	t.Helper()
	if !regexp.MustCompile(pattern).MatchString(reply) {
		t.Errorf("%s: %q does not match %q", what, reply, pattern)
	}
}
