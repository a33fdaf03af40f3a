// Package postfixtest runs a real Postfix for a test: with a configuration, a
// queue and a log of its own, on loopback only.
package postfixtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/internal/proctest"
)

// patience is how long is waited for what should come soon. Nothing is timed by
// it: it only ends a test that would hang.
const patience = 60 * time.Second

// Instance is a Postfix that runs until its test ends. Mail for example.com is
// delivered into files below Dir; nothing leaves the host.
type Instance struct {
	// Dir is its directory: etc, queue, data, mail and mail.log are in it.
	Dir string
	// Port is that of smtpd, on 127.0.0.1 and ::1.
	Port int
	// Config is the directory of main.cf and master.cf.
	Config string

	t *testing.T
}

// Require skips the test where one of the tools is missing or the test is not
// root's; with CI=true it fails instead.
func Require(t *testing.T, tools ...string) {
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

// Start starts an instance with settings of main.cf, of which the last of a
// name counts. {dir} in them is the queue directory. chroot puts smtpd into it.
func Start(t *testing.T, chroot bool, settings ...string) *Instance {
	t.Helper()
	return StartFiles(t, func(p *Instance) (main, master string) {
		uid, gid := ID(t, "-u"), ID(t, "-g")
		main = fmt.Sprintf(`compatibility_level = 3.6
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
`, p.Dir, p.Port, uid, gid)
		main = lastOfEach(main + strings.ReplaceAll(strings.Join(settings, "\n"), "{dir}", filepath.Join(p.Dir, "queue")) + "\n")
		yn := "n"
		if chroot {
			yn = "y"
		}
		services := fmt.Sprintf(`127.0.0.1:%[1]d inet n - %[2]s - - smtpd
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
`, p.Port, yn)
		return main, services
	})
}

// StartFiles starts an instance with the main.cf and master.cf that files
// returns for it, to which it adds nothing.
func StartFiles(t *testing.T, files func(p *Instance) (main, master string)) *Instance {
	t.Helper()
	Require(t, "postfix", "postconf")
	dir, err := os.MkdirTemp("/tmp", "pp") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // best effort
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &Instance{t: t, Dir: dir}
	p.Config = filepath.Join(p.Dir, "etc")
	for _, d := range []string{"etc", "queue", "data", "mail"} {
		if err := os.Mkdir(filepath.Join(p.Dir, d), 0o755); err != nil {
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
	own("postfix", filepath.Join(p.Dir, "data"), filepath.Join(p.Dir, "mail"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.Port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close() // Postfix takes it
	main, services := files(p)
	for name, text := range map[string]string{"main.cf": main, "master.cf": services} {
		if err := WriteFile(filepath.Join(p.Config, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(p.Stop)
	p.Command("start")
	deadline := time.Now().Add(patience)
	for {
		c, err := net.Dial("tcp", p.Addr())
		if err == nil {
			_ = c.Close() // only to see
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("Postfix does not answer: %v\n%s", err, p.Log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// WriteFile is [os.WriteFile] and [Age].
func WriteFile(name string, data []byte, perm os.FileMode) error {
	if err := os.WriteFile(name, data, perm); err != nil {
		return err
	}
	return Age(name)
}

// Age makes a file a minute old. Postfix reads main.cf and texthash tables that
// are younger than two seconds again and again, until they are that old.
func Age(name string) error {
	old := time.Now().Add(-time.Minute)
	return os.Chtimes(name, old, old)
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

// ID returns an id of the user postfix, as id(1) prints it with a flag.
func ID(t *testing.T, flag string) string {
	t.Helper()
	out, err := exec.Command("id", flag, "postfix").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// Addr returns where smtpd listens.
func (p *Instance) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port)) }

// Command runs a command of postfix(1), which must succeed.
func (p *Instance) Command(args ...string) {
	p.t.Helper()
	out, err := exec.Command("postfix", append([]string{"-c", p.Config}, args...)...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("postfix %s: %v\n%s\n%s", strings.Join(args, " "), err, out, p.Log())
	}
}

// Stop ends the instance and waits until its master is gone. It may be called
// more than once, and is called at the test's end.
func (p *Instance) Stop() {
	if p.t.Failed() {
		p.t.Logf("Postfix's log:\n%s", p.Log())
	}
	Stop(p.t, filepath.Join(p.Dir, "queue"))
}

// Stop ends the Postfix with a queue directory, if one has started, and waits
// until its master is gone.
func Stop(t testing.TB, queue string) {
	t.Helper()
	pid, err := os.ReadFile(filepath.Join(queue, "pid/master.pid"))
	if err != nil {
		return // it has not started
	}
	id, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	if err != nil {
		t.Errorf("Postfix's master.pid: %v", err)
		return
	}
	// All its processes at once: "postfix stop" and the master, too, wait for
	// seconds so that the last lines can be logged.
	_ = syscall.Kill(-id, syscall.SIGKILL) // it may have ended by now
	proctest.Gone(t, id)
}

// Log returns what Postfix has logged so far.
func (p *Instance) Log() string {
	b, _ := os.ReadFile(filepath.Join(p.Dir, "mail.log")) // there may be none yet
	return string(b)
}
