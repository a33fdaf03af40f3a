package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/postfixtest"
	"postern/internal/proctest"
	"postern/internal/systemdtest"
)

// patience is how long is waited for what should come soon. Nothing is timed by
// it: it only ends a test that would hang.
const patience = 2 * time.Minute

// delay is the greylist's.
const delay = time.Second

// redisTimeout is how long the daemon waits for an answer of Redis: the default,
// or what no machine needs that only has much to do.
func redisTimeout() time.Duration {
	if *long {
		return 100 * time.Millisecond
	}
	return time.Second
}

// plainBinary is the daemon, built once for all tests.
var plainBinary = sync.OnceValues(func() (string, error) { return build("postern") })

// newBinary is another build of it, as an upgrade brings.
var newBinary = sync.OnceValues(func() (string, error) { return build("postern.new", "-ldflags", "-X main.version=next") })

// built is the directory of the binaries.
var built = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "postern-chaos") })

func build(name string, args ...string) (string, error) {
	dir, err := built()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	all := []string{"build", "-o", path}
	if !*long {
		all = append(all, "-race") // the others have built it so
	}
	out, err := exec.Command("go", append(append(all, args...), "postern/cmd/postern")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
}

func TestMain(m *testing.M) {
	// Programs with the race detector sleep for a second when they end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // it only saves time
	code := m.Run()
	if dir, err := built(); err == nil {
		_ = os.RemoveAll(dir) // only the binaries
	}
	os.Exit(code)
}

// world is one daemon and what it stands on.
type world struct {
	t       *testing.T
	dir     string
	dns     *dnstest.Server
	redis   *redisServer // nil: the store is embedded
	proxy   *proxy       // between it and the daemon; nil: none
	control net.Conn     // to it, opened by the fault; nil: none
	idle    []net.Conn   // to the daemon
	known   []*contact
	d       *daemon
	postfix *postfixtest.Instance // nil: none

	tally tally
	// trouble is set from just before the fault until all is as before.
	trouble  atomic.Bool
	episodes atomic.Int64 // how often it was set

	mu   sync.Mutex
	cuts []time.Time // when processes were killed that may have forgotten what was new
}

// newWorld makes a world around a fault, and starts the daemon in it.
func newWorld(t *testing.T, f *fault) *world {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pc") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // best effort
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, dns: dnstest.Start(t)}
	w.dns.KeepLog(false)
	w.dns.Add("2.0.0.127.bl.example. 300 IN A 127.0.0.2", "*.18.198.bl.example. 300 IN A 127.0.0.2")
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o755); err != nil {
		t.Fatal(err)
	}
	if f.mount != nil {
		f.mount(w, state)
	}
	store := fmt.Sprintf("path = \"%s/state.db\"", state)
	if f.redis {
		w.redis = startRedis(t)
		addr := w.redis.addr()
		if f.proxied {
			w.proxy = startProxy(t, addr)
			addr = w.proxy.addr()
		}
		store = fmt.Sprintf("path = \"%s/state.db\"\nkind = \"redis\"\n[store.redis]\naddrs = [%q]\ntimeout = \"%v\"\nbreaker_pause = \"200ms\"", state, addr, redisTimeout())
	}
	w.d = &daemon{t: t, dir: dir, config: filepath.Join(dir, "postern.toml"), limit: f.files, env: slices.Clone(f.env)}
	which := plainBinary
	if f.clock {
		which = steppable
		wind(t, w.clock())
		w.d.env = append(w.d.env, "CHAOS_CLOCK="+w.clock())
	}
	w.d.path, err = which()
	if err != nil {
		t.Fatal(err)
	}
	w.d.text = fmt.Sprintf(`
hostname = "mx.example.com"
[log]
output = "stderr"
format = "json"
[policy]
listen = ["unix:%[1]s/policy.sock,mode=0666"]
[admin]
listen = "unix:%[1]s/admin.sock"
[journal]
path = "%[1]s/state/journal"
[dns]
servers = [%[2]q]
timeout = "500ms"
servfail_ttl = "1s"
[access]
deny = ["inline:203.0.113.0/24"]
[rbl]
lists = ["bl.example*5"]
list_timeout = "2s"
ask_private = true
[client]
mode = "off"
[spf]
mode = "off"
[greylist]
profile = "strict"
delay = "%[3]v"
%[4]s
[store]
%[5]s
`, dir, w.dns.Addr(), delay, f.config, store)
	if f.edit != nil {
		w.d.text = f.edit(strings.ReplaceAll(w.d.text, dir+"/", "{dir}/"))
	}
	w.d.text = strings.ReplaceAll(w.d.text, "{dir}", dir)
	w.d.configure(w.d.text)
	if f.sockets {
		w.d.hold("policy.sock")
		w.d.systemd = systemdtest.Start(t, filepath.Join(dir, "notify"))
		w.d.env = append(w.d.env, w.d.systemd.Env()...)
	}
	w.d.start()
	t.Cleanup(w.d.kill)
	if f.postfix {
		w.postfix = postfixtest.Start(t, false, "smtpd_authorized_xclient_hosts = 0.0.0.0/0", // one session is of many clients
			"in_flow_delay = 0", // no message is ever ended, and qmgr(8) would have them wait
			"smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:"+w.d.socket())
	}
	return w
}

// cut notes that what has just been learned may be forgotten.
func (w *world) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cuts = append(w.cuts, time.Now())
}

// lost returns how old a contact was when it could be forgotten, and whether
// there was such an occasion since.
func (w *world) lost(contact time.Time) (time.Duration, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.cuts {
		if c.After(contact) {
			return c.Sub(contact), true
		}
	}
	return 0, false
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// daemon is one postern.
type daemon struct {
	t            *testing.T
	dir          string
	path         string // of the binary
	config, text string
	held         []*os.File           // sockets that outlive it, as systemd holds them
	systemd      *systemdtest.Manager // nil: none
	limit        int                  // of open files; 0: none
	env          []string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan error
}

func (d *daemon) socket() string { return filepath.Join(d.dir, "policy.sock") }

// configure writes the configuration.
func (d *daemon) configure(text string) {
	d.t.Helper()
	tmp := d.config + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(tmp, d.config); err != nil {
		d.t.Fatal(err)
	}
}

// hold opens a socket as systemd does for a service.
func (d *daemon) hold(name string) {
	d.t.Helper()
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
	d.held = append(d.held, f)
}

// start starts the daemon and waits until it is ready.
func (d *daemon) start() {
	d.t.Helper()
	// LISTEN_PID must be the daemon's own: the shell knows it and goes.
	script := `LISTEN_PID=$$ exec "$0" "$@"`
	if d.limit > 0 {
		script = fmt.Sprintf("ulimit -n %d; ", d.limit) + script
	}
	cmd := exec.Command("/bin/sh", "-c", script, d.path, "-c", d.config, "serve")
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // the daemon has it
	cmd.Stdout, cmd.Stderr = log, log
	files, names := slices.Clone(d.held), strings.Repeat("policy:", len(d.held))
	if d.systemd != nil {
		for _, f := range d.systemd.Copies() {
			files, names = append(files, f), names+f.Name()+":"
			defer f.Close() //nolint:errcheck // the daemon has it
		}
	}
	cmd.Env = append(append(os.Environ(), d.env...), fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+strings.TrimSuffix(names, ":"))
	cmd.ExtraFiles = files
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	d.mu.Lock()
	d.cmd, d.done = cmd, done
	d.mu.Unlock()
	eventually(d.t, "ready", func() bool {
		select {
		case err := <-done:
			done <- err
			d.t.Fatalf("the daemon ended: %v\n%s", err, d.log())
		default:
		}
		_, err := d.call("GET", "/readyz")
		return err == nil
	})
}

func (d *daemon) logFile() string { return filepath.Join(d.dir, "daemon.log") }

func (d *daemon) log() string {
	b, _ := os.ReadFile(d.logFile()) // there may be none
	if len(b) > 8000 {
		b = b[len(b)-8000:]
	}
	return string(b)
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

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
	proctest.Signal(d.t, d.pid(), syscall.SIGTERM)
	select {
	case err := <-d.done:
		if err != nil {
			d.t.Errorf("the daemon ended badly: %v\n%s", err, d.log())
		}
	case <-time.After(patience):
		d.t.Fatal("the daemon does not stop")
	}
	d.cmd = nil
}

// call asks the administrator's door.
func (d *daemon) call(method, path string) ([]byte, error) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(d.dir, "admin.sock"))
	}}}
	req, err := http.NewRequest(method, "http://postern"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return b, err
}

// storeStatus is what the daemon says of its store.
type storeStatus struct {
	Healthy bool
	Breaker string
	Pending int
	Flushed time.Time
	Room    struct {
		Waiting   int
		PushedOut int `json:"pushed_out"`
	}
}

func (d *daemon) store() (storeStatus, bool) {
	b, err := d.call("GET", "/v1/status")
	var st struct{ Store storeStatus }
	return st.Store, err == nil && json.Unmarshal(b, &st) == nil
}

// healthy reports whether the daemon finds its store so.
func (d *daemon) healthy() bool {
	st, ok := d.store()
	return ok && st.Healthy && st.Breaker != "open"
}
