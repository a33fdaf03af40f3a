// Package postgreytest runs a real postgrey(8) for tests.
package postgreytest

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/internal/policytest"
)

// Server is one that runs. Attribute policy_test_time, which its own test
// script sends, sets the time of a request.
type Server struct {
	*policytest.Client
	Dir string // of its databases
	t   testing.TB

	cmd   *exec.Cmd
	ended chan error
	once  sync.Once
}

// Start starts a postgrey without lists of exceptions. It ends with the test.
// When postgrey is not installed the test is skipped, and fails when CI is "true".
func Start(t testing.TB) *Server {
	t.Helper()
	program, err := exec.LookPath("postgrey")
	if err != nil {
		if program = "/usr/sbin/postgrey"; !exists(program) {
			if os.Getenv("CI") == "true" {
				t.Fatal("postgrey is not installed")
			}
			t.Skip("postgrey is not installed (make deps installs it)")
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	// It syncs each change: memory where there is some.
	dir, err := os.MkdirTemp("/dev/shm", "postgrey")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr()
	_ = l.Close() // postgrey takes it
	cmd := exec.Command(program, "--inet="+addr.String(), "--dbdir="+dir, "--user="+me.Username, "--group="+group.Name,
		"--whitelist-clients="+empty, "--whitelist-recipients="+empty, "--quiet", "--hostname=mx.example.net")
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p := &Server{Dir: dir, t: t, cmd: cmd, ended: ended}
	t.Cleanup(p.Stop)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr.String())
		if err == nil {
			_ = c.Close()
			p.Client = policytest.Dial(t, addr)
			return p
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("postgrey ended: %v\n%s", err, log.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("postgrey does not listen: %v", err)
		}
	}
}

// Stop ends it, with its databases written.
func (p *Server) Stop() {
	p.once.Do(func() {
		_ = p.Close()                             // it waits for its clients
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-p.ended:
		case <-time.After(20 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.ended
		}
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}
