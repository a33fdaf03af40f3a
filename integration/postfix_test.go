package integration

import (
	"context"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// postfix is a real Postfix with a configuration, a queue and a log of its
// own. Mail for example.com is delivered into files; nothing leaves the host.
type postfix struct {
	t      *testing.T
	dir    string
	port   int
	config string
}

// require skips, or fails where nothing may be missing.
func require(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed", tool)
		}
		t.Skipf("%s is not installed (make deps installs it)", tool)
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("Postfix can only be started by root")
		}
		t.Skip("Postfix can only be started by root")
	}
}

// startPostfix starts an instance. {dir} in the settings is its queue
// directory. chroot puts smtpd into it.
func startPostfix(t *testing.T, chroot bool, settings ...string) *postfix {
	t.Helper()
	require(t, "postfix", "postconf")
	p := &postfix{t: t, dir: shortDir(t)}
	p.config = filepath.Join(p.dir, "etc")
	for _, d := range []string{"etc", "queue", "data", "mail"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	own := func(user string, paths ...string) {
		for _, path := range paths {
			if out, err := exec.Command("chown", user, path).CombinedOutput(); err != nil {
				t.Fatalf("chown: %v %s", err, out)
			}
		}
	}
	own("postfix", filepath.Join(p.dir, "data"), filepath.Join(p.dir, "mail"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close() // Postfix takes it
	uid, gid := idOf(t, "-u"), idOf(t, "-g")
	main := fmt.Sprintf(`compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
maillog_file = %[1]s/mail.log
maillog_file_prefixes = %[1]s
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.example.com
mydestination =
inet_interfaces = 127.0.0.1, ::1
inet_protocols = all
mynetworks = 127.255.255.255/32
smtpd_authorized_xclient_hosts = 127.0.0.0/8, [::1]/128
smtpd_peername_lookup = no
disable_dns_lookups = yes
smtpd_client_event_limit_exceptions = static:all
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 1000
smtpd_junk_command_limit = 1000000
smtpd_hard_error_limit = 1000000
virtual_mailbox_domains = example.com
virtual_mailbox_base = %[1]s/mail
virtual_mailbox_maps = static:box/
virtual_minimum_uid = 1
virtual_uid_maps = static:%[3]s
virtual_gid_maps = static:%[4]s
notify_classes =
alias_maps =
alias_database =
local_recipient_maps =
smtpd_relay_restrictions = reject_unauth_destination
default_process_limit = 20
`, p.dir, p.port, uid, gid)
	main = lastOfEach(main + strings.ReplaceAll(strings.Join(settings, "\n"), "{dir}", filepath.Join(p.dir, "queue")) + "\n")
	yn := "n"
	if chroot {
		yn = "y"
	}
	master := fmt.Sprintf(`127.0.0.1:%[1]d inet n - %[2]s - - smtpd
[::1]:%[1]d inet n - %[2]s - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
tlsmgr unix - - n 1000? 1 tlsmgr
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
smtp unix - - n - - smtp
relay unix - - n - - smtp
flush unix n - n 1000? 0 flush
postlog unix-dgram n - n - 1 postlogd
`, p.port, yn)
	for name, text := range map[string]string{"main.cf": main, "master.cf": master} {
		if err := os.WriteFile(filepath.Join(p.config, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(p.stop)
	p.command("start")
	deadline := time.Now().Add(patience)
	for {
		c, err := net.Dial("tcp", p.addr())
		if err == nil {
			_ = c.Close() // only to see
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("Postfix does not answer: %v\n%s", err, p.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// lastOfEach leaves of several settings of one name the last. Postfix would
// take that too, but each of its processes warns of the others when it starts;
// and postlogd, which reads what it writes itself, waits for itself for ever
// when there are more such lines than its socket holds.
func lastOfEach(main string) string {
	var names, texts []string
	for line := range strings.Lines(main) {
		switch {
		case strings.TrimSpace(line) == "" || line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			texts[len(texts)-1] += line
		default:
			name, _, _ := strings.Cut(line, "=")
			names, texts = append(names, strings.TrimSpace(name)), append(texts, line)
		}
	}
	var b strings.Builder
	for i, name := range names {
		if !slices.Contains(names[i+1:], name) {
			b.WriteString(texts[i])
		}
	}
	return b.String()
}

func idOf(t *testing.T, flag string) string {
	t.Helper()
	out, err := exec.Command("id", flag, "postfix").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func (p *postfix) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

func (p *postfix) command(args ...string) {
	p.t.Helper()
	out, err := exec.Command("postfix", append([]string{"-c", p.config}, args...)...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("postfix %s: %v\n%s\n%s", strings.Join(args, " "), err, out, p.log())
	}
}

// stop ends the instance and waits until its master is gone.
func (p *postfix) stop() {
	pid, err := os.ReadFile(filepath.Join(p.dir, "queue/pid/master.pid"))
	if p.t.Failed() {
		p.t.Logf("Postfix's log:\n%s", p.log())
	}
	// A master whose log service is stuck does not end by itself.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_ = exec.CommandContext(ctx, "postfix", "-c", p.config, "stop").Run() // it may not have started
	if err != nil {
		return
	}
	n := strings.TrimSpace(string(pid))
	if id, err := strconv.Atoi(n); err == nil && ctx.Err() != nil {
		_ = syscall.Kill(id, syscall.SIGKILL) // it may have ended at last
	}
	for range 500 {
		if _, err := os.Stat("/proc/" + n); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.t.Errorf("Postfix's master %s is still there", n)
}

func (p *postfix) log() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "mail.log")) // there may be none yet
	return string(b)
}

// messages waits for n delivered messages and returns all there are.
func (p *postfix) messages(n int) []string {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		files, err := filepath.Glob(filepath.Join(p.dir, "mail/box/new/*"))
		if err != nil {
			p.t.Fatal(err)
		}
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
