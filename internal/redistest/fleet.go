package redistest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Cluster is a Redis Cluster of masters on loopback.
type Cluster struct {
	Servers []*Server
	t       testing.TB
}

// StartCluster starts a Cluster of n masters, three at the least, without
// replicas. It ends with the test.
func StartCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	addrs := make([]string, n)
	for i := range n {
		// The bus is at the port and ten thousand more.
		s := startAt(t, 10_000, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no")
		c.Servers = append(c.Servers, s)
		addrs[i] = s.Addr()
	}
	c.cli(append([]string{"--cluster", "create"}, append(addrs, "--cluster-yes")...)...)
	for _, s := range c.Servers {
		until(t, "the Cluster is whole", func() bool {
			return strings.Contains(s.Command("cluster", "info"), "cluster_state:ok") && strings.Count(s.Command("cluster", "slots"), "127.0.0.1") == n
		})
	}
	return c
}

// Addrs are the addresses of all servers.
func (c *Cluster) Addrs() []string {
	out := make([]string, len(c.Servers))
	for i, s := range c.Servers {
		out[i] = s.Addr()
	}
	return out
}

// Move moves n slots from one server to another, with their keys.
func (c *Cluster) Move(from, to, n int) {
	c.t.Helper()
	id := func(i int) string { return strings.TrimSpace(c.Servers[i].Command("cluster", "myid")) }
	c.cli("--cluster", "reshard", c.Servers[0].Addr(), "--cluster-from", id(from), "--cluster-to", id(to), "--cluster-slots", strconv.Itoa(n), "--cluster-yes")
}

func (c *Cluster) cli(args ...string) {
	c.t.Helper()
	if out, err := exec.Command("redis-cli", args...).CombinedOutput(); err != nil {
		c.t.Fatalf("redis-cli %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Command runs redis-cli and returns what it prints.
func (s *Server) Command(args ...string) string {
	s.t.Helper()
	out, err := exec.Command("redis-cli", append([]string{"-p", s.port}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("redis-cli %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Watched are a server with a replica, and Sentinels that watch it.
type Watched struct {
	Servers   []*Server // the first is the master at the beginning
	Sentinels []*Server
}

// MasterName is the name by which Sentinels know the server.
const MasterName = "postern"

// StartSentinel starts a server, a replica of it and three Sentinels that
// promote it when the server is gone. They end with the test.
func StartSentinel(t testing.TB) *Watched {
	t.Helper()
	master := Start(t)
	replica := Start(t, "--replicaof", "127.0.0.1 "+master.port)
	w := &Watched{Servers: []*Server{master, replica}}
	until(t, "the replica follows", func() bool { return strings.Contains(replica.Command("info", "replication"), "master_link_status:up") })
	for range 3 {
		conf := filepath.Join(t.TempDir(), "sentinel.conf")
		text := fmt.Sprintf("sentinel monitor %s 127.0.0.1 %s 2\nsentinel down-after-milliseconds %[1]s 500\nsentinel failover-timeout %[1]s 2000\n", MasterName, master.port)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := startAt(t, 0)
		s.end()
		s.cmd = exec.Command("redis-server", conf, "--sentinel", "--port", s.port, "--bind", "127.0.0.1", "--dir", s.dir, "--logfile", filepath.Join(s.dir, "redis.log"))
		if err := s.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "a Sentinel answers", s.answers)
		w.Sentinels = append(w.Sentinels, s)
	}
	for _, s := range w.Sentinels {
		until(t, "the Sentinels know each other and the replica", func() bool {
			info := s.Command("info", "sentinel")
			return strings.Contains(info, "slaves=1,sentinels=3")
		})
	}
	return w
}

// Addrs are the addresses of the Sentinels.
func (w *Watched) Addrs() []string {
	out := make([]string, len(w.Sentinels))
	for i, s := range w.Sentinels {
		out[i] = s.Addr()
	}
	return out
}

// startAt is Start on a port below which so many more are free, too.
func startAt(t testing.TB, above int, more ...string) *Server {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		if port+above > 65_535 {
			// Those at the end have no room for the bus: one of the lower half.
			port -= 20_000
		}
		free := true
		for _, p := range []int{port, port + above} {
			l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p))
			if err != nil {
				free = false
				break
			}
			_ = l.Close()
		}
		if free {
			return startOn(t, strconv.Itoa(port), more...)
		}
	}
	t.Fatal("no port is free")
	return nil
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: ", what)
		}
	}
}
