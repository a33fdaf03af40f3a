package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/dnstest"
	"postern/internal/policytest"
	"postern/internal/redistest"
	"postern/store"
	"postern/store/bolt"
	"postern/store/redis"
)

var figures = flag.Bool("figures", false, "measure and print the figures (takes minutes)")

const (
	rounds    = 5               // of each measurement; the median counts
	roundTime = 2 * time.Second // of one load
	conns     = 10
	prefixes  = 100_000
	triplets  = 1000 // known ones
)

// TestFigures prints what docs/performance.md holds.
func TestFigures(t *testing.T) {
	if !*figures {
		t.Skip("measures for minutes; make bench asks for it")
	}
	dir := t.TempDir()
	dns := dnstest.Start(t)
	dns.KeepLog(false)
	for _, zone := range []string{"one.example", "two.example", "three.example"} {
		tested(dns, zone)
	}
	dns.Add("example.org. 3600 IN MX 10 mail.example.org.", "mail.example.org. 3600 IN A 198.51.100.1") // the senders' domain
	t.Logf("%s, %d processors, %s", runtime.Version(), runtime.NumCPU(), processor())

	// Each in a process of its own, as in life.
	fl := filepath.Join(dir, "floor.sock")
	start(t, "floor", fl)
	switch os.Getenv(profileEnv) {
	case "auth":
		t.Run("auth", func(t *testing.T) { authFigures(t, dir, dns) })
	case "dkim":
		t.Run("dkim", func(t *testing.T) { dkimFigures(t, dir, dns) })
	default:
		t.Run("embedded", func(t *testing.T) { embedded(t, dir, dns.Addr(), fl) })
	}
	if os.Getenv(profileEnv) != "" {
		return
	}
	t.Run("allocations", func(t *testing.T) { together(t, dir, dns.Addr()) })
	t.Run("redis", func(t *testing.T) { redisFigures(t, dir, dns.Addr(), fl) })
	t.Run("million", func(t *testing.T) { million(t, dir, dns.Addr(), fl) })
	t.Run("cold", func(t *testing.T) { cold(t, dir, dns) })
	t.Run("verify", verifyFigures)
	t.Run("milter", func(t *testing.T) { milterFigures(t, dir, dns.Addr()) })
	t.Run("auth", func(t *testing.T) { authFigures(t, dir, dns) })
	t.Run("dkim", func(t *testing.T) { dkimFigures(t, dir, dns) })
	t.Run("lookup", lookupFigures)
	t.Run("postfix", postfixFigures)
}

// embedded measures the whole chain with the embedded store.
func embedded(t *testing.T, dir, dns, fl string) {
	p := writeConfig(t, dir, "embedded", dns, fmt.Sprintf("[store]\npath = %q\n", filepath.Join(dir, "state.db")))
	d := start(t, "daemon", p.config)
	warm(t, p.socket)
	profiled := os.Getenv(profileEnv)
	if profiled != "unique" {
		compare(t, "embedded store, known triplets", fl, p.socket, d, known)
	}
	if profiled != "known" {
		compare(t, "embedded store, unique triplets", fl, p.socket, d, unique)
	}
	d.stop()
	if profiled != "" {
		return
	}
	p = writeConfig(t, dir, "limits", dns, fmt.Sprintf("[store]\npath = %q\n", filepath.Join(dir, "limits.db"))+fiveLimits)
	d = start(t, "daemon", p.config)
	warm(t, p.socket)
	compare(t, "the same with five limits, known triplets", fl, p.socket, d, known)
	d.stop()
}

// fiveLimits are five limits of each request, none of which is reached.
const fiveLimits = `
[chains.inbound]
checks = ["access", "provider", "client", "rbl", "spf", "limit", "verify", "greylist"]
[[limit.rule]]
name = "client"
key = ["client"]
rate = "1000000000/1h"
[[limit.rule]]
name = "network"
key = ["network"]
unit = "recipients"
rate = "1000000000/1h"
[[limit.rule]]
name = "sender"
key = ["sender"]
rate = "1000000000/1h"
[[limit.rule]]
name = "domain"
key = ["sender-domain"]
unit = "recipients"
quota = ["1000000000/day"]
[[limit.rule]]
name = "recipient"
key = ["recipient"]
rate = "1000000000/1h"
`

// together has floor, daemon and client in one process, whose allocations can
// be counted.
func together(t *testing.T, dir, dns string) {
	fl := filepath.Join(dir, "herefloor.sock")
	l, err := net.Listen("unix", fl)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the end
	go policytest.Floor(l)
	p := writeConfig(t, dir, "here", dns, fmt.Sprintf("[store]\npath = %q\n", filepath.Join(dir, "here.db")))
	stop, err := serve(p.config)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	warm(t, p.socket)
	t.Logf("%-42s %.1f", "allocations of a known triplet", allocations(t, p.socket, known)-allocations(t, fl, known))
}

// tested gives a list the entries by which it passes its test (RFC 5782).
func tested(dns *dnstest.Server, zone string) {
	dns.Add("2.0.0.127." + zone + ". 3600 IN A 127.0.0.2")
}

func processor() string {
	b, _ := os.ReadFile("/proc/cpuinfo") // only a remark
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(line, "model name\t: "); ok {
			return strings.TrimSpace(name)
		}
	}
	return "unknown processor"
}

// place is a daemon's configuration and the socket in it.
type place struct{ config, socket string }

func writeConfig(t *testing.T, dir, name, dns, more string) place {
	t.Helper()
	list := filepath.Join(dir, "deny.list")
	if _, err := os.Stat(list); err != nil {
		var b strings.Builder
		for i := range prefixes {
			fmt.Fprintf(&b, "%d.%d.%d.0/24\n", 1+i>>16, i>>8&255, i&255)
		}
		write(t, list, b.String())
	}
	p := place{filepath.Join(dir, name+".toml"), filepath.Join(dir, name+".sock")}
	write(t, p.config, fmt.Sprintf(`
[policy]
listen = ["unix:%s"]
[admin]
listen = ""
[log]
output = "file:%s"
[dns]
servers = [%q]
[access]
deny = [%q]
[greylist]
profile = "strict"
delay = "10ms"
[rbl]
lists = ["one.example*2", "two.example*2", "three.example*2"]
%s`, p.socket, filepath.Join(dir, name+".log"), dns, list, more))
	return p
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// source makes the requests of one connection.
type source func(conn int) func() []byte

// request i is one of a set of triplets, from one of 256 clients.
func request(sender, recipient string, client int) []byte {
	return policytest.Sample().With("client_address", fmt.Sprintf("198.51.100.%d", client&255), "sender", sender, "recipient", recipient).Bytes()
}

func known(conn int) func() []byte {
	all := make([][]byte, triplets)
	for i := range all {
		all[i] = request(fmt.Sprintf("sender%d@example.org", i), fmt.Sprintf("user%d@example.com", i%100), i)
	}
	n := conn * triplets / conns
	return func() []byte {
		n++
		return all[n%triplets]
	}
}

var serial atomic.Int64

// unique makes triplets that nobody has seen. It makes no garbage: the client's
// collector would stop all its threads, and wait for each that blocks in the
// kernel, while the daemon has nothing to do.
func unique(conn int) func() []byte {
	const size = 16
	template := string(request("s"+strings.Repeat("N", size)+"@example.org", "user@example.com", conn))
	at := strings.Index(template, strings.Repeat("N", size))
	buf := []byte(template)
	copy(buf[at:], fmt.Sprintf("%08x%08d", serial.Add(1), 0))
	count := buf[at+size/2 : at+size]
	return func() []byte {
		for i := len(count) - 1; ; i-- {
			if count[i]++; count[i] <= '9' {
				return buf
			}
			count[i] = '0'
		}
	}
}

// warm has every known triplet pass.
func warm(t *testing.T, socket string) {
	t.Helper()
	c := dial(t, socket)
	defer c.Close() //nolint:errcheck // only a client
	for range 2 {
		next := known(0)
		for range triplets {
			if err := ask(c, next()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Millisecond) // the delay is 10 ms
	}
}

func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ask(c net.Conn, req []byte) error {
	if _, err := c.Write(req); err != nil {
		return err
	}
	var buf [1024]byte
	n := 0
	for {
		m, err := c.Read(buf[n:])
		if err != nil {
			return err
		}
		n += m
		if done, err := complete(buf[:n]); done {
			return err
		}
	}
}

// complete reports whether an answer is whole.
func complete(b []byte) (bool, error) {
	n := len(b)
	if n < 2 || b[n-1] != '\n' || b[n-2] != '\n' {
		return false, nil
	}
	if string(b[:7]) != "action=" {
		return true, fmt.Errorf("answer %q", b)
	}
	return true, nil
}

// smtpd is a connection as one of Postfix's smtpd processes holds it: a thread
// of its own that blocks in the kernel.
type smtpd struct{ fd int }

func dialBlocking(t *testing.T, socket string) smtpd {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	return smtpd{fd}
}

func (c smtpd) ask(req []byte) error {
	var buf [1024]byte
	_, err := c.answer(req, buf[:])
	return err
}

// answer asks, and reads the answer into buf.
func (c smtpd) answer(req, buf []byte) ([]byte, error) {
	if _, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(&req[0])), uintptr(len(req))); e != 0 {
		return nil, e
	}
	n := 0
	for {
		m, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&buf[n])), uintptr(len(buf)-n))
		if e != 0 {
			return nil, e
		}
		if m == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		n += int(m)
		if done, err := complete(buf[:n]); done {
			return buf[:n], err
		}
	}
}

// load asks over n connections for a while and returns requests a second.
func load(t *testing.T, socket string, n int, src source) float64 {
	t.Helper()
	var wg sync.WaitGroup
	var total atomic.Int64
	var failed atomic.Pointer[error]
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(n + 2)) // each blocks a processor of the runtime's
	begin := time.Now()
	for i := range n {
		c := dialBlocking(t, socket)
		next := src(i)
		wg.Go(func() {
			runtime.LockOSThread()
			defer syscall.Close(c.fd) //nolint:errcheck // only a client
			count := int64(0)
			for time.Since(begin) < roundTime {
				for range 16 {
					if err := c.ask(next()); err != nil {
						failed.Store(&err)
						return
					}
				}
				count += 16
			}
			total.Add(count)
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
	return float64(total.Load()) / time.Since(begin).Seconds()
}

// compare loads the floor and the daemon, whose process is d, in turn.
func compare(t *testing.T, what, floor, socket string, d *child, src source) {
	t.Helper()
	var ratios, rates, floors, cpus []float64
	for range rounds {
		f := load(t, floor, conns, known)
		used := d.cpu(t)
		r := load(t, socket, conns, src)
		cpus = append(cpus, float64((d.cpu(t)-used).Microseconds())/(r*roundTime.Seconds()))
		ratios, rates, floors = append(ratios, r/f), append(rates, r), append(floors, f)
	}
	t.Logf("%-42s %.2f of the floor (%.0f of %.0f requests/s; %.1f µs of the daemon's processor time each, %d MiB resident)",
		what, median(ratios), median(rates), median(floors), median(cpus), d.resident(t))
}

// allocations counts those of the whole process for one request.
func allocations(t *testing.T, socket string, src source) float64 {
	t.Helper()
	c := dial(t, socket)
	defer c.Close() //nolint:errcheck // only a client
	next := src(0)
	const n = 20_000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		if err := ask(c, next()); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / n
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func redisFigures(t *testing.T, dir, dns, floor string) {
	server := redistest.Start(t)
	p := writeConfig(t, dir, "redis", dns, fmt.Sprintf("[store]\nkind = \"redis\"\n[store.redis]\naddrs = [%q]\n", server.Addr()))
	d := start(t, "daemon", p.config)
	warm(t, p.socket)
	cfg := store.DefaultConfig()
	cfg.Redis.Addrs = []string{server.Addr()}
	const callers = 50
	var ratios, rates, alone []float64
	for range rounds {
		a := evalsha(t, cfg, callers)
		r := load(t, p.socket, callers, known)
		ratios, rates, alone = append(ratios, r/a), append(rates, r), append(alone, a)
	}
	t.Logf("%-42s %.2f of the script alone at %d callers (%.0f of %.0f a second)", "Redis, known triplets", median(ratios), callers, median(rates), median(alone))
	compare(t, "Redis, known triplets, 10 connections", floor, p.socket, d, known)
	compare(t, "Redis, unique triplets, 10 connections", floor, p.socket, d, unique)
}

// evalsha calls the greylist script alone, from n callers.
func evalsha(t *testing.T, cfg store.Config, n int) float64 {
	t.Helper()
	s, err := redis.Open(cfg, "", "", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background()) //nolint:errcheck // nothing is pending
	rule := greylist.Rule{Delay: 10 * time.Millisecond, Window: 48 * time.Hour, Keep: 36 * 24 * time.Hour, MaxDelay: 4 * time.Hour, KnownAfter: 5, CountEvery: time.Hour}
	var wg sync.WaitGroup
	var total atomic.Int64
	begin := time.Now()
	for i := range n {
		wg.Go(func() {
			count := int64(0)
			for time.Since(begin) < roundTime {
				for j := range 16 {
					c := greylist.Contact{
						Match: "net:198.51.100.0/24", Sender: fmt.Sprintf("sender%d@example.org", i), Recipient: fmt.Sprintf("user%d@example.com", j),
						Time: time.Now(), Rule: rule,
					}
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					_, err := s.TouchGreylist(ctx, &c)
					cancel()
					if err != nil {
						t.Error(err)
						return
					}
				}
				count += 16
			}
			total.Add(count)
		})
	}
	wg.Wait()
	return float64(total.Load()) / time.Since(begin).Seconds()
}

// million fills an embedded store with a million entries and looks at what
// opening it costs, and a request.
func million(t *testing.T, dir, dns, floor string) {
	fill := func(path string, entries int) {
		cfg := store.DefaultConfig()
		cfg.Path = path
		s, err := bolt.Open(cfg, zap.NewNop(), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		rule := greylist.Rule{Delay: time.Minute, Window: 48 * time.Hour, Keep: 36 * 24 * time.Hour, MaxDelay: 4 * time.Hour, KnownAfter: 5, CountEvery: time.Hour}
		for i := 0; ; i++ {
			c := greylist.Contact{
				Match: fmt.Sprintf("net:10.%d.%d.0/24", i>>8&255, i&255), Sender: fmt.Sprintf("somebody%d@sender%d.example.org", i, i%5000),
				Recipient: fmt.Sprintf("user%d@example.com", i%1000), Time: time.Now(), Rule: rule,
			}
			_, err := s.TouchGreylist(t.Context(), &c)
			for errors.Is(err, store.ErrUnavailable) { // faster than the disk
				time.Sleep(50 * time.Millisecond)
				_, err = s.TouchGreylist(t.Context(), &c)
			}
			if err != nil {
				t.Fatal(err)
			}
			if i%10000 == 0 {
				if st := s.Status(); st.Entries >= entries {
					break
				}
			}
		}
		if err := s.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	small, large := filepath.Join(dir, "small.db"), filepath.Join(dir, "large.db")
	fill(small, 10_000)
	fill(large, 1_000_000)
	o := start(t, "open", large)
	t.Logf("%-42s %s, %d MiB resident", "a million entries, the store alone", strings.Join(o.said, " "), o.resident(t))
	o.stop()
	for _, path := range []string{small, large} {
		name := strings.TrimSuffix(filepath.Base(path), ".db")
		p := writeConfig(t, dir, name, dns, fmt.Sprintf("[store]\npath = %q\n", path))
		begin := time.Now()
		d := start(t, "daemon", p.config)
		t.Logf("%-42s ready in %v, %d MiB resident", "whole daemon, "+name+" store", time.Since(begin).Round(10*time.Millisecond), d.resident(t))
		warm(t, p.socket)
		compare(t, name+" store, known triplets", floor, p.socket, d, known)
		d.stop()
	}
}

// cold asks eight lists that take 50 ms each about addresses that nobody has
// asked about.
func cold(t *testing.T, dir string, dns *dnstest.Server) {
	p := place{filepath.Join(dir, "cold.toml"), filepath.Join(dir, "cold.sock")}
	var lists []string
	for i := range 8 {
		zone := fmt.Sprintf("slow%d.example", i)
		dns.BehaveUnder(zone, dnstest.Behavior{Delay: 50 * time.Millisecond})
		tested(dns, zone)
		lists = append(lists, fmt.Sprintf("%q", zone))
	}
	write(t, p.config, fmt.Sprintf(`
[policy]
listen = ["unix:%s"]
[admin]
listen = ""
[log]
output = "file:%s"
[dns]
servers = [%q]
[store]
kind = "memory"
[rbl]
lists = [%s]
[greylist]
mode = "off"
`, p.socket, filepath.Join(dir, "cold.log"), dns.Addr(), strings.Join(lists, ", ")))
	start(t, "daemon", p.config)
	c := dial(t, p.socket)
	defer c.Close() //nolint:errcheck // only a client
	var took []float64
	for i := range 50 {
		req := policytest.Sample().With("client_address", fmt.Sprintf("203.0.114.%d", i)).Bytes()
		begin := time.Now()
		if err := ask(c, req); err != nil {
			t.Fatal(err)
		}
		took = append(took, float64(time.Since(begin).Microseconds())/1000)
	}
	slices.Sort(took)
	t.Logf("%-42s median %.1f ms, worst of %d %.1f ms", "eight lists of 50 ms, cold", median(took), len(took), took[len(took)-1])
}
