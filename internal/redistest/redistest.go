// Package redistest runs a real redis-server for tests.
package redistest

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/proctest"
)

// Server is one redis-server on loopback. Its methods are for one goroutine.
type Server struct {
	t    testing.TB
	dir  string
	port string
	args []string
	cmd  *exec.Cmd
}

// patience bounds the start; nothing is timed by it.
const patience = 60 * time.Second

// Start starts a server on a free port, without persistence; more are further
// arguments ("--requirepass", "secret"). It ends with the test. When
// redis-server is not installed the test is skipped, and fails when CI is "true".
func Start(t testing.TB, more ...string) *Server {
	t.Helper()
	return startAt(t, 0, more...)
}

func startOn(t testing.TB, port string, more ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not installed")
		}
		t.Skip("redis-server is not installed (make deps installs it)")
	}
	s := &Server{t: t, dir: t.TempDir(), port: port, args: more}
	t.Cleanup(s.end)
	s.Restart()
	return s
}

// Addr returns host and port.
func (s *Server) Addr() string { return "127.0.0.1:" + s.port }

// Restart starts the server again, empty, and waits until it answers.
func (s *Server) Restart() {
	s.t.Helper()
	args := append([]string{
		"--port", s.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no",
		"--dir", s.dir, "--logfile", filepath.Join(s.dir, "redis.log"),
	}, s.args...)
	s.cmd = exec.Command("redis-server", args...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for !s.answers() {
		if time.Now().After(deadline) {
			s.t.Fatal("redis-server does not answer")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// answers reports whether the server answers anything: a server with a
// password says NOAUTH.
func (s *Server) answers() bool {
	c, err := net.DialTimeout("tcp", s.Addr(), time.Second)
	if err != nil {
		return false
	}
	defer c.Close()                                //nolint:errcheck // only to see
	_ = c.SetDeadline(time.Now().Add(time.Second)) // a dead connection fails the read
	if _, err := fmt.Fprint(c, "PING\r\n"); err != nil {
		return false
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return err == nil && (strings.HasPrefix(line, "+PONG") || strings.HasPrefix(line, "-NOAUTH"))
}

// Hang stops the process without closing anything: it takes requests and
// answers none.
func (s *Server) Hang() { s.t.Helper(); proctest.Freeze(s.t, s.cmd.Process.Pid) }

// Continue ends Hang.
func (s *Server) Continue() { s.t.Helper(); proctest.Thaw(s.t, s.cmd.Process.Pid) }

// Stop ends the server: connections are refused.
func (s *Server) Stop() {
	s.t.Helper()
	s.end()
}

func (s *Server) end() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it has nothing to save
	_ = s.cmd.Wait()         // killed
	s.cmd = nil
}
