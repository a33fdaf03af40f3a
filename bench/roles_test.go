package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/app"
	"postern/config"
	"postern/internal/logging"
	"postern/internal/policytest"
	"postern/store"
	"postern/store/bolt"
)

// The servers run in processes of their own, as in life: this binary again,
// with a role in its environment.
const roleEnv = "POSTERN_BENCH_ROLE"

func TestMain(m *testing.M) {
	role, arg, _ := strings.Cut(os.Getenv(roleEnv), " ")
	var err error
	switch role {
	case "floor":
		err = floor(arg)
	case "echo":
		err = echo(arg)
	case "daemon":
		err = daemon(arg)
	case "milterfloor":
		err = milterFloor(arg)
	case "open":
		err = openStore(arg)
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// floor serves the floor on a unix socket until standard input ends.
func floor(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go policytest.Floor(l)
	return untilEnd()
}

// profileEnv names a load ("known", "unique", "auth", "dkim") that is to be profiled, into
// /tmp/postern-LOAD-NAME.prof of each daemon.
const profileEnv = "POSTERN_BENCH_PROFILE"

// serve runs a daemon in this process until stop is called.
func serve(path string) (stop func(), err error) {
	cfg, _, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	log, err := logging.Open(cfg.Log)
	if err != nil {
		return nil, err
	}
	a, err := app.New(cfg, app.Options{Version: "bench", Log: log.Logger})
	if err != nil {
		return nil, err
	}
	if err := a.Start(); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		a.Stop(ctx)
		_ = log.Close() // a bench's log
	}), nil
}

func daemon(path string) error {
	stop, err := serve(path)
	if err != nil {
		return err
	}
	defer stop()
	if load := os.Getenv(profileEnv); load != "" {
		f, err := os.Create(filepath.Join(os.TempDir(), "postern-"+load+"-"+strings.TrimSuffix(filepath.Base(path), ".toml")+".prof"))
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	return untilEnd()
}

// openStore opens an embedded store and says how long that took and how much
// memory the process has then.
func openStore(path string) error {
	cfg := store.DefaultConfig()
	cfg.Path = path
	start := time.Now()
	s, err := bolt.Open(cfg, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	fmt.Printf("opened in %v\n", time.Since(start).Round(time.Millisecond))
	if err := untilEnd(); err != nil {
		return err
	}
	return s.Close(context.Background())
}

func untilEnd() error {
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// child is a process in a role.
type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	said  []string // before "ready"
}

func start(t *testing.T, role, arg string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleEnv+"="+role+" "+arg)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd, stdin: in}
	t.Cleanup(c.stop)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == "ready" {
			go io.Copy(io.Discard, out) //nolint:errcheck // nothing more is said
			return c
		}
		c.said = append(c.said, lines.Text())
	}
	t.Fatalf("%s did not start", role)
	return nil
}

func (c *child) stop() {
	if c.stdin == nil {
		return
	}
	_ = c.stdin.Close() // the role ends by it
	_ = c.cmd.Wait()    // how it ended does not matter
	c.stdin = nil
}

// resident returns the resident memory of the process in MiB.
func (c *child) resident(t *testing.T) int { return c.memory(t, "VmRSS") }

// memory returns a figure of the process's memory in MiB.
func (c *child) memory(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kb int
		if n, _ := fmt.Sscanf(line, name+": %d kB", &kb); n == 1 {
			return kb >> 10
		}
	}
	t.Fatal("no " + name)
	return 0
}

// cpu returns the processor time that the process has used.
func (c *child) cpu(t *testing.T) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	var user, system int64
	if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}
