package chaos

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/postfixtest"
)

// redisServer is a redis-server that keeps every write in a file, so that
// nothing it has answered is forgotten when it is killed.
type redisServer struct {
	t         *testing.T
	dir, port string
	cmd       *exec.Cmd
}

func startRedis(t *testing.T) *redisServer {
	t.Helper()
	postfixtest.Require(t, "redis-server")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close() // the server takes it
	s := &redisServer{t: t, dir: t.TempDir(), port: port}
	t.Cleanup(s.kill)
	s.start()
	s.ready()
	return s
}

func (s *redisServer) addr() string { return "127.0.0.1:" + s.port }

// start starts the server and waits for nothing.
func (s *redisServer) start(args ...string) {
	s.t.Helper()
	s.cmd = exec.Command("redis-server", append([]string{
		"--port", s.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--daemonize", "no", "--dir", s.dir,
		"--logfile", filepath.Join(s.dir, "redis.log"), "--enable-debug-command", "yes", "--enable-protected-configs", "yes", "--busy-reply-threshold", "20",
	}, args...)...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

// ready waits until it answers PONG.
func (s *redisServer) ready() {
	s.t.Helper()
	eventually(s.t, "Redis answers", func() bool { r, err := s.try("PING"); return err == nil && r == "+PONG" })
}

func (s *redisServer) pid() int { return s.cmd.Process.Pid }

func (s *redisServer) kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may be gone
	_ = s.cmd.Wait()         // killed
	s.cmd = nil
}

// do sends a command, which must not fail.
func (s *redisServer) do(args ...string) string {
	s.t.Helper()
	r, err := s.try(args...)
	if err == nil && strings.HasPrefix(r, "-") {
		err = fmt.Errorf("%s", r)
	}
	if err != nil {
		s.t.Errorf("redis %v: %v", args, err)
	}
	return r
}

// dial opens a connection that stays until the end.
func (s *redisServer) dial() net.Conn {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() }) // the end
	return c
}

// over is do over such a connection.
func (s *redisServer) over(c net.Conn, args ...string) {
	s.t.Helper()
	if r, err := ask(c, args...); err != nil || strings.HasPrefix(r, "-") {
		s.t.Errorf("redis %v: %s, %v", args, r, err)
	}
}

// try sends a command and returns the first line of the answer, or the bulk in it.
func (s *redisServer) try(args ...string) (string, error) {
	c, err := net.Dial("tcp", s.addr())
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // the end
	return ask(c, args...)
}

func ask(c net.Conn, args ...string) (string, error) {
	_ = c.SetDeadline(time.Now().Add(patience)) // a dead connection fails the read
	if _, err := io.WriteString(c, command(args...)); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	if !strings.HasPrefix(line, "$") {
		return line, nil
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 {
		return line, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(r, b)
	return string(b), err
}

func command(args ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b.String()
}

// says waits until an answer to a write begins with a word.
func (s *redisServer) says(word string) {
	s.t.Helper()
	eventually(s.t, "Redis says "+word, func() bool { r, err := s.try("SET", "probe", "1"); return err == nil && strings.HasPrefix(r, word) })
}

// proxy stands between the daemon and Redis.
type proxy struct {
	l      net.Listener
	target string
	delay  atomic.Int64  // of each answer
	swap   atomic.Value  // string: what comes instead of answers; "" for nothing
	mute   atomic.Bool   // answers are swallowed
	conns  sync.Map      // net.Conn
	shut   atomic.Bool   // new connections are closed at once
	end    chan struct{} // closed at the end
}

func startProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, target: target, end: make(chan struct{})}
	p.swap.Store("")
	t.Cleanup(func() { close(p.end); _ = l.Close(); p.cutAll() }) // the end
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if p.shut.Load() {
				_ = c.Close() // as meant
				continue
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *proxy) addr() string { return p.l.Addr().String() }

// cutAll closes all connections.
func (p *proxy) cutAll() {
	p.conns.Range(func(c, _ any) bool { _ = c.(net.Conn).Close(); return true }) // as meant
}

func (p *proxy) serve(c net.Conn) {
	defer c.Close() //nolint:errcheck // the end
	s, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer s.Close() //nolint:errcheck // the end
	p.conns.Store(c, nil)
	defer p.conns.Delete(c)
	go func() {
		_, _ = io.Copy(s, c) // until one of them ends
		_ = s.Close()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		if d := time.Duration(p.delay.Load()); d > 0 {
			select {
			case <-time.After(d):
			case <-p.end:
				return
			}
		}
		out := buf[:n]
		if text := p.swap.Load().(string); text != "" {
			out = []byte(text)
		}
		if p.mute.Load() {
			continue
		}
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// forget takes the server's working directory away, so that it cannot save.
func (s *redisServer) forget() {
	s.t.Helper()
	dir := filepath.Join(s.dir, "gone")
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Error(err)
	}
	s.do("CONFIG", "SET", "dir", dir)
	if err := os.Remove(dir); err != nil {
		s.t.Error(err)
	}
}
