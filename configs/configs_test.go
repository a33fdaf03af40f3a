// Package configs_test tries the shipped examples: those for Postfix on a real
// one, the others as postern loads them.
package configs_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/config"
	"postern/internal/postfixtest"
)

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := postfixtest.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// need ends a test that cannot run here: loudly where everything must run.
func need(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%v; make deps installs it", err)
	}
	t.Skipf("%v; make deps installs it", err)
}

// find returns a program, also of the administrator's directories.
func find(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	path, err := exec.LookPath("/usr/sbin/" + name)
	need(t, err)
	return path
}

func run(t *testing.T, name string, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &errs)
	}
	return out.String(), errs.String()
}

// postfix is an instance of its own, in a temporary directory.
type postfix struct {
	dir              string // its configuration
	queue            string
	smtp, submission string // addresses
}

// newPostfix configures an instance from the shipped examples. What they leave
// to the administrator comes behind them.
func newPostfix(t *testing.T) *postfix {
	t.Helper()
	find(t, "postconf")
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // Postfix's own user must get in
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := &postfix{dir: filepath.Join(dir, "etc"), queue: filepath.Join(dir, "queue"), smtp: freeAddress(t), submission: freeAddress(t)}
	data := filepath.Join(dir, "data")
	for _, d := range []string{p.dir, p.queue, data} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postfix")
		need(t, err)
		uid, _ := strconv.Atoi(u.Uid)
		if err := os.Chown(data, uid, 0); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(p.dir, "main.cf"), read(t, "main.cf.example")+fmt.Sprintf(`
compatibility_level = 3.6
queue_directory = %s
data_directory = %s
maillog_file = %s
maillog_file_prefixes = %s
myhostname = mx.example.com
mydestination = example.com
mynetworks = 127.0.0.0/8
local_recipient_maps = inline:{ bob=here }
inet_interfaces = loopback-only
inet_protocols = ipv4
smtpd_authorized_xclient_hosts = 127.0.0.0/8
smtpd_peername_lookup = no
smtpd_error_sleep_time = 0
`, p.queue, data, filepath.Join(dir, "log"), dir))
	master := read(t, "master.cf.example")
	for _, replace := range [][2]string{
		{"\nsmtp      inet ", "\n" + p.smtp + " inet "},
		{"\nsubmission inet ", "\n" + p.submission + " inet "},
		// Neither certificate nor login here: what matters is who is asked.
		{"smtpd_tls_security_level=encrypt", "smtpd_tls_security_level=none"},
		{"smtpd_sasl_auth_enable=yes", "smtpd_sasl_auth_enable=no"},
		{"smtpd_relay_restrictions=permit_sasl_authenticated,reject", "smtpd_relay_restrictions=permit_mynetworks,reject"},
	} {
		if !strings.Contains(master, replace[0]) {
			t.Fatalf("master.cf.example holds no %q", replace[0])
		}
		master = strings.Replace(master, replace[0], replace[1], 1)
	}
	write(t, filepath.Join(p.dir, "master.cf"), master+`
postlog   unix-dgram n - n - 1 postlogd
cleanup   unix n - n - 0 cleanup
rewrite   unix - - n - - trivial-rewrite
anvil     unix - - n - 1 anvil
proxymap  unix - - n - - proxymap
`)
	return p
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it was only to find a port
	return l.Addr().String()
}

// start runs the instance until the test ends.
func (p *postfix) start(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		need(t, fmt.Errorf("Postfix is started by root only"))
	}
	if _, stderr := run(t, find(t, "postfix"), "-c", p.dir, "check"); stderr != "" {
		t.Fatalf("postfix check: %s", stderr)
	}
	daemons, _ := run(t, find(t, "postconf"), "-c", p.dir, "-h", "daemon_directory")
	cmd := exec.Command(filepath.Join(strings.TrimSpace(daemons), "master"), "-d", "-c", p.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it ends its whole group
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have failed already
		_ = cmd.Wait()                          // ends by that signal
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(filepath.Dir(p.dir), "log")) // only to show it
			t.Logf("Postfix's log:\n%s", log)
		}
	})
	for _, addr := range []string{p.smtp, p.submission} {
		awaitListener(t, addr)
	}
}

// awaitListener returns when somebody listens at addr.
func awaitListener(t *testing.T, addr string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); <-tick.C {
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close() // it was only to see
			return
		}
	}
	t.Fatalf("nobody listens at %s", addr)
}

func TestExamplesAreSound(t *testing.T) {
	p := newPostfix(t)
	for _, args := range [][]string{{"-n"}, {"-M"}, {"-P"}} {
		stdout, stderr := run(t, find(t, "postconf"), append([]string{"-c", p.dir}, args...)...)
		if stderr != "" { // unused parameters and the like
			t.Errorf("postconf %v: %s", args, stderr)
		}
		if stdout == "" {
			t.Errorf("postconf %v says nothing", args)
		}
	}
	// What each list does first decides whether a relay can be opened.
	out, _ := run(t, find(t, "postconf"), "-c", p.dir, "-h", "smtpd_recipient_restrictions")
	relay, asked := strings.Index(out, "reject_unauth_destination"), strings.Index(out, "check_policy_service")
	if relay < 0 || asked < relay {
		t.Errorf("smtpd_recipient_restrictions asks before it is clear that the mail is ours: %s", out)
	}
	for _, name := range []string{"main.cf.example", "master.cf.example"} {
		for line := range strings.Lines(read(t, name)) {
			if strings.HasPrefix(line, "#") || !strings.Contains(line, "check_policy_service") {
				continue
			}
			if !strings.Contains(line, "{ unix:postern/policy.sock, timeout=25s, default_action=DUNNO") {
				t.Errorf("%s: %s has another time limit or fails closed", name, strings.TrimSpace(line))
			}
		}
	}
}

// door is a policy server that answers by stage and keeps what it was asked.
type door struct {
	l       net.Listener
	actions map[string]string // by protocol_state
	wg      sync.WaitGroup

	mu    sync.Mutex
	asked []map[string]string
	conns []net.Conn
}

func (p *postfix) door(t *testing.T, actions map[string]string) *door {
	t.Helper()
	dir := filepath.Join(p.queue, "postern")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "policy.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	d := &door{l: l, actions: actions}
	d.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.conns = append(d.conns, c)
			d.mu.Unlock()
			d.wg.Go(func() { d.serve(c) })
		}
	})
	t.Cleanup(d.stop)
	return d
}

func (d *door) serve(c net.Conn) {
	req := map[string]string{}
	for r := bufio.NewScanner(c); r.Scan(); {
		name, value, ok := strings.Cut(r.Text(), "=")
		if ok {
			req[name] = value
			continue
		}
		d.mu.Lock()
		d.asked = append(d.asked, req)
		d.mu.Unlock()
		action := d.actions[req["protocol_state"]]
		if _, err := fmt.Fprintf(c, "action=%s\n\n", action); err != nil {
			return
		}
		req = map[string]string{}
	}
}

// stop ends the server, connections included. It can be called twice.
func (d *door) stop() {
	_ = d.l.Close() // twice is no harm
	d.mu.Lock()
	for _, c := range d.conns {
		_ = c.Close() // likewise
	}
	d.mu.Unlock()
	d.wg.Wait()
}

// questions returns what was asked since the last call.
func (d *door) questions() []map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	asked := d.asked
	d.asked = nil
	return asked
}

// session speaks SMTP and fails the test unless each reply has the wanted code.
type session struct {
	*testing.T
	c *textproto.Conn
}

// dial opens a session, from a client elsewhere when client is not "".
func dial(t *testing.T, addr, client string) *session {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // it may be closed already
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	s := &session{t, textproto.NewConn(c)}
	s.reply("greeting", 220)
	if client != "" {
		s.say("XCLIENT NAME=[UNAVAILABLE] ADDR="+client, 220)
	}
	s.say("EHLO mail.example.org", 250)
	return s
}

func (s *session) say(line string, want int) string {
	s.Helper()
	if err := s.c.PrintfLine("%s", line); err != nil {
		s.Fatal(err)
	}
	return s.reply(line, want)
}

func (s *session) reply(to string, want int) string {
	s.Helper()
	code, text, err := s.c.ReadResponse(0)
	if err != nil && code == 0 {
		s.Fatalf("%s: %v", to, err)
	}
	if code != want {
		s.Fatalf("%s: %d %s, want %d", to, code, text, want)
	}
	return text
}

func TestExamplesOnRealPostfix(t *testing.T) {
	p := newPostfix(t)
	d := p.door(t, map[string]string{"RCPT": "DUNNO", "DATA": "450 4.2.0 Not yet"})
	p.start(t)

	s := dial(t, p.smtp, "192.0.2.7")
	s.say("MAIL FROM:<>", 250)
	s.say("RCPT TO:<nobody@elsewhere.example>", 454)
	s.say("RCPT TO:<nobody@example.com>", 550)
	if asked := d.questions(); len(asked) != 0 {
		t.Errorf("postern was asked about mail that Postfix refuses by itself: %v", asked)
	}
	s.say("RCPT TO:<bob@example.com>", 250)
	if asked := d.questions(); len(asked) != 1 || asked[0]["protocol_state"] != "RCPT" || asked[0]["recipient"] != "bob@example.com" {
		t.Errorf("at RCPT postern was asked %v, want once about bob", asked)
	}
	if text := s.say("DATA", 450); !strings.Contains(text, "Not yet") {
		t.Errorf("the client reads %q, want postern's words", text)
	}
	if asked := d.questions(); len(asked) != 1 || asked[0]["protocol_state"] != "DATA" {
		t.Errorf("at DATA postern was asked %v, want once", asked)
	}
	s.say("QUIT", 221)

	// Our own networks send out, and are not judged.
	s = dial(t, p.smtp, "")
	s.say("MAIL FROM:<bob@example.com>", 250)
	s.say("RCPT TO:<alice@example.org>", 250)
	s.say("DATA", 354)
	if asked := d.questions(); len(asked) != 0 {
		t.Errorf("postern was asked about mail of our own networks: %v", asked)
	}
	if _, err := io.WriteString(s.c.W, "Subject: test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := s.c.Close(); err != nil { // before the end of the message: nothing is sent
		t.Fatal(err)
	}

	s = dial(t, p.submission, "")
	s.say("MAIL FROM:<bob@example.com>", 250)
	s.say("RCPT TO:<alice@example.org>", 554) // without login, after postern had no objection
	if asked := d.questions(); len(asked) != 1 || asked[0]["policy_context"] != "submission" {
		t.Errorf("the submission service asked %v, want once with policy_context=submission", asked)
	}
	s.say("QUIT", 221)

	// Without postern mail goes on.
	d.stop()
	s = dial(t, p.smtp, "192.0.2.7")
	s.say("MAIL FROM:<alice@example.org>", 250)
	s.say("RCPT TO:<bob@example.com>", 250)
	s.say("DATA", 354)
	if err := s.c.Close(); err != nil { // nothing is sent
		t.Fatal(err)
	}
}

// Every configuration in the installation's document loads as it stands there,
// with its files elsewhere; and its lines for main.cf are those tried above.
func TestInstallationDocument(t *testing.T) {
	doc := read(t, "../docs/install.md")
	dir := t.TempDir()
	files := strings.NewReplacer("/etc/postgrey/", dir+"/", "/etc/postern/", dir+"/")
	for _, name := range []string{"whitelist_clients", "whitelist_recipients", "redis.password"} {
		write(t, filepath.Join(dir, name), "example.org\n")
		if err := os.Chmod(filepath.Join(dir, name), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for rest := doc; ; n++ {
		_, after, ok := strings.Cut(rest, "```toml\n")
		if !ok {
			break
		}
		text, next, ok := strings.Cut(after, "```")
		if !ok {
			t.Fatal("a block has no end")
		}
		rest = next
		path := filepath.Join(dir, "postern.toml")
		write(t, path, files.Replace(text))
		if _, warnings, err := config.Load(path); err != nil || len(warnings) > 0 {
			t.Errorf("%s\n%v %v", text, err, warnings)
		}
	}
	if n < 3 {
		t.Errorf("only %d configurations were found", n)
	}
	example := settings(read(t, "main.cf.example"))
	for _, name := range []string{"smtpd_recipient_restrictions", "smtpd_data_restrictions"} {
		if got, want := settings(doc)[name], example[name]; got == "" || got != want {
			t.Errorf("%s: the document says\n%s\nmain.cf.example\n%s", name, got, want)
		}
	}
}

// settings returns the settings of a main.cf, or of one quoted in a document,
// each with its words one space apart.
func settings(text string) map[string]string {
	out := map[string]string{}
	name := ""
	for line := range strings.Lines(text) {
		words := strings.Join(strings.Fields(line), " ")
		if first, ok := strings.CutSuffix(words, " ="); ok {
			name = first
			continue
		}
		if words == "" || strings.HasPrefix(words, "#") || !strings.HasPrefix(line, " ") {
			name = ""
		}
		if name != "" {
			out[name] += words + " "
		}
	}
	return out
}

func TestDevelopersConfiguration(t *testing.T) {
	cfg, warnings, err := config.Load("dev.toml")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	// make run makes these directories and no others.
	for _, path := range []string{strings.TrimPrefix(cfg.Admin.Listen, "unix:"), cfg.Policy.Listen[0].Path} {
		if filepath.Dir(path) != "/tmp/postern-dev" {
			t.Errorf("%s is not in /tmp/postern-dev", path)
		}
	}
	if filepath.Dir(cfg.Store.Path) != "build/dev" {
		t.Errorf("%s is not in build/dev", cfg.Store.Path)
	}
	if len(cfg.RBL.Lists) > 0 {
		t.Errorf("%v needs the internet", cfg.RBL.Lists)
	}
}
