package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/internal/policytest"
)

// patience is how long a test waits for what should come soon. Nothing is
// timed by it: it only ends a test that would hang.
const patience = 60 * time.Second

// binary is the daemon, built once for all tests, or the one that
// POSTERN_BINARY names: `make matrix` runs them where there is no Go.
var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("POSTERN_BINARY"); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "postern-bin")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "postern")
	out, err := exec.Command("go", "build", "-race", "-o", path, "postern/cmd/postern").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	// Programs with the race detector sleep for a second when they end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // it only saves time
	code := m.Run()
	if path, err := binary(); err == nil && os.Getenv("POSTERN_BINARY") == "" {
		_ = os.RemoveAll(filepath.Dir(path)) // only the binary
	}
	os.Exit(code)
}

// daemon is one running postern.
type daemon struct {
	t      *testing.T
	dir    string
	config string
	extra  []*os.File        // sockets to inherit
	kept   func() []*os.File // files that it has given to systemd; nil: none
	env    []string
	cmd    *exec.Cmd
	done   chan error
	log    *logBuffer
}

// logBuffer collects what the daemon writes.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pi")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // best effort
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newDaemon writes a configuration; {dir} in it is the daemon's directory.
// The policy socket is {dir}/policy.sock unless the text says otherwise.
func newDaemon(t *testing.T, config string) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: shortDir(t), log: &logBuffer{}}
	d.config = filepath.Join(d.dir, "postern.toml")
	// A directory for temporary files of its own, since it may use that: there is
	// nothing else in /tmp for it that the configuration does not name.
	tmp := filepath.Join(d.dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	d.env = append(d.env, "TMPDIR="+tmp)
	d.configure(config)
	return d
}

// configure writes the configuration anew.
func (d *daemon) configure(config string) {
	d.t.Helper()
	config = strings.ReplaceAll(config, "{dir}", d.dir)
	if !strings.Contains(config, "[policy]") {
		config += fmt.Sprintf("\n[policy]\nlisten = [\"unix:%s/policy.sock\"]\n", d.dir)
	}
	if !strings.Contains(config, "[admin]") {
		config += fmt.Sprintf("\n[admin]\nlisten = \"unix:%s/admin.sock\"\n", d.dir)
	}
	if !strings.Contains(config, "[store]") {
		config += fmt.Sprintf("\n[store]\npath = \"%s/state.db\"\n", d.dir)
	}
	if !strings.Contains(config, "[journal]") {
		config += fmt.Sprintf("\n[journal]\npath = \"%s/journal\"\n", d.dir)
	}
	if !strings.Contains(config, "[client") {
		config += "\n[client]\nmode = \"off\"\n" // no DNS knows the senders of these tests
	}
	if !strings.Contains(config, "[spf") && !strings.Contains(config, `"spf"`) {
		config += "\n[spf]\nmode = \"off\"\n" // likewise
	}
	if !strings.Contains(config, "\nprofile = ") && !strings.Contains(config, "\nwhen = ") {
		// Most tests want first contacts to wait.
		if !strings.Contains(config, "[greylist]\n") {
			config += "\n[greylist]\n"
		}
		config = strings.Replace(config, "[greylist]\n", "[greylist]\nprofile = \"strict\"\n", 1)
	}
	tmp := d.config + ".new"
	if err := os.WriteFile(tmp, []byte(config), 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(tmp, d.config); err != nil {
		d.t.Fatal(err)
	}
}

// start starts the daemon and waits until it answers.
func (d *daemon) start() {
	d.t.Helper()
	path, err := binary()
	if err != nil {
		d.t.Fatal(err)
	}
	// LISTEN_PID must be the daemon's own: the shell knows it and goes.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, path, "-c", d.config, "serve")
	cmd.Stdout, cmd.Stderr = d.log, d.log
	files, names := slices.Clone(d.extra), strings.Repeat("policy:", len(d.extra))
	if d.kept != nil {
		for _, f := range d.kept() {
			files, names = append(files, f), names+f.Name()+":"
			defer f.Close() //nolint:errcheck // the daemon has it
		}
	}
	cmd.Env = append(append(os.Environ(), d.env...), fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+strings.TrimSuffix(names, ":"))
	cmd.ExtraFiles = files
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.cmd, d.done = cmd, make(chan error, 1)
	go func(done chan<- error) { done <- cmd.Wait() }(d.done)
	d.t.Cleanup(d.kill)
	d.t.Cleanup(func() {
		if d.t.Failed() {
			d.t.Logf("the daemon's log:\n%s", d.log)
		}
	})
	d.eventually("ready", func() bool {
		select {
		case err := <-d.done:
			d.done <- err
			d.t.Fatalf("the daemon ended: %v\n%s", err, d.log)
		default:
		}
		_, err := d.try("status")
		return err == nil
	})
}

// kill ends the daemon without a word, as the power does.
func (d *daemon) kill() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill() // it may be gone
	<-d.done                 //nolint:errcheck // killed, as meant
	d.cmd = nil
}

// stop ends the daemon as systemd does; it must end well.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	select {
	case err := <-d.done:
		if err != nil {
			d.t.Errorf("the daemon ended badly: %v", err)
		}
	case <-time.After(patience):
		d.t.Fatal("the daemon does not stop")
	}
	d.cmd = nil
}

func (d *daemon) hangUp() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		d.t.Fatal(err)
	}
}

// try runs a command of the binary against the daemon.
func (d *daemon) try(args ...string) (string, error) {
	path, err := binary()
	if err != nil {
		return "", err
	}
	out, err := exec.Command(path, append([]string{"-c", d.config}, args...)...).CombinedOutput()
	return string(out), err
}

func (d *daemon) run(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	if err != nil {
		d.t.Fatalf("postern %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// eventually waits until a condition holds.
func (d *daemon) eventually(what string, ok func() bool) {
	d.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			d.t.Fatalf("never came: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// decisions returns the log lines of decisions that hold all of the fields,
// given as names and values in turn.
func (d *daemon) decisions(fields ...string) []map[string]any {
	var out []map[string]any
	for line := range strings.Lines(d.log.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) != nil || m["msg"] != "decision" {
			continue
		}
		match := true
		for i := 0; i < len(fields); i += 2 {
			match = match && fmt.Sprint(m[fields[i]]) == fields[i+1]
		}
		if match {
			out = append(out, m)
		}
	}
	return out
}

// decided waits for such a line and returns the first.
func (d *daemon) decided(fields ...string) map[string]any {
	d.t.Helper()
	var found []map[string]any
	d.eventually("a decision with "+strings.Join(fields, " "), func() bool {
		found = d.decisions(fields...)
		return len(found) > 0
	})
	return found[0]
}

func (d *daemon) socket() string { return filepath.Join(d.dir, "policy.sock") }

// dial connects to the policy socket as smtpd does.
func (d *daemon) dial() *policytest.Client {
	d.t.Helper()
	return policytest.Dial(d.t, &net.UnixAddr{Name: d.socket(), Net: "unix"})
}

// resident is the daemon's resident memory in MiB.
func (d *daemon) resident() int {
	d.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kb int
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			return kb >> 10
		}
	}
	d.t.Fatal("no VmRSS")
	return 0
}
