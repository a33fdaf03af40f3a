package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/dnstest"
	"postern/internal/netstring"
	"postern/provider"
	"postern/resolver"
)

// echo reads a netstring and sends it back: what no server of the protocol can
// be faster than. It ends with standard input.
func echo(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go echoConn(c)
		}
	}()
	return untilEnd()
}

func echoConn(c net.Conn) {
	defer c.Close() //nolint:errcheck // the peer is gone
	buf := make([]byte, 0, 4096)
	for {
		n, err := c.Read(buf[len(buf):cap(buf)])
		if err != nil {
			return
		}
		buf = buf[:len(buf)+n]
		if _, n, _ := netstring.Next(buf, cap(buf)); n == 0 {
			continue
		}
		if _, err := c.Write(buf); err != nil {
			return
		}
		buf = buf[:0]
	}
}

// lookup sends a request and waits for the netstring that answers it, which
// ends with a comma.
func (c smtpd) lookup(req, buf []byte) (n int, err error) {
	if _, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(&req[0])), uintptr(len(req))); e != 0 {
		return 0, e
	}
	for {
		m, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&buf[n])), uintptr(len(buf)-n))
		switch {
		case e != 0:
			return n, e
		case m == 0:
			return n, io.ErrUnexpectedEOF
		}
		if n += int(m); buf[n-1] == ',' {
			return n, nil
		}
	}
}

// lookups asks over n connections for a while and returns look-ups a second.
// each answer must hold want, which the echo gives too.
func lookups(t *testing.T, socket string, n int, requests [][]byte, want string) float64 {
	t.Helper()
	var wg sync.WaitGroup
	var total atomic.Int64
	var failed atomic.Pointer[error]
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(n + 2)) // each blocks a processor of the runtime's
	begin := time.Now()
	for i := range n {
		c := dialBlocking(t, socket)
		wg.Go(func() {
			runtime.LockOSThread()
			defer syscall.Close(c.fd) //nolint:errcheck // only a client
			buf := make([]byte, 4096)
			count := 0
			for time.Since(begin) < roundTime {
				for j := range 16 {
					m, err := c.lookup(requests[(count+j+i*7919)%len(requests)], buf)
					if err == nil && !bytes.Contains(buf[:m], []byte(want)) {
						err = fmt.Errorf("answer %q", buf[:m])
					}
					if err != nil {
						failed.Store(&err)
						return
					}
				}
				count += 16
			}
			total.Add(int64(count))
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
	return float64(total.Load()) / time.Since(begin).Seconds()
}

// largeList has that many networks that do not aggregate, one in four IPv6.
func largeList(n int) string {
	var b strings.Builder
	for i := range n {
		if i%4 == 3 {
			fmt.Fprintf(&b, "2600:%x:%x::/48\n", i>>16+1, i&0xfffe)
			continue
		}
		fmt.Fprintf(&b, "%d.%d.%d.0/25\n", 20+i>>16, i>>8&255, i&255)
	}
	return b.String()
}

// lookupFigures measures the lookup door of a daemon beside an echo, each in a
// process of its own, and what providers' lists cost.
func lookupFigures(t *testing.T) {
	dir := t.TempDir()
	var names strings.Builder
	for i := range prefixes {
		fmt.Fprintf(&names, "user%d@host%d.example.org REJECT number %d\n", i, i%1000, i)
	}
	write(t, filepath.Join(dir, "names"), names.String())
	write(t, filepath.Join(dir, "large"), largeList(prefixes))
	config, socket := filepath.Join(dir, "postern.toml"), filepath.Join(dir, "lookup.sock")
	write(t, config, fmt.Sprintf(`
[policy]
listen = ["unix:%[1]s/policy.sock"]
[admin]
listen = ""
[store]
kind = "memory"
[log]
output = "file:%[1]s/log"
[lookup]
listen = ["unix:%[2]s"]
[tables.exact]
source = "texthash:%[1]s/names"
search = "exact"
[tables.access]
source = "texthash:%[1]s/names"
search = "access"
[provider]
state_dir = "%[1]s/providers"
[[provider.list]]
name = "large"
files = ["%[1]s/large"]
allow_reserved = true
`, dir, socket))
	floor := filepath.Join(dir, "echo.sock")
	start(t, "echo", floor)
	d := start(t, "daemon", config)

	requests := func(request func(i int) string) [][]byte {
		out := make([][]byte, 4096)
		for i := range out {
			out[i] = netstring.Append(nil, request(i))
		}
		return out
	}
	for _, load := range []struct {
		name, want string
		requests   [][]byte
	}{
		{"texthash of 100,000, found", ":OK REJECT number ", requests(func(i int) string { i *= 23; return fmt.Sprintf("exact user%d@host%d.example.org", i, i%1000) })},
		{"access search in it, nothing found", ":NOTFOUND ", requests(func(i int) string { return fmt.Sprintf("access nobody%d@a.b.host%d.example.org", i, i%1000) })},
		{"provider list of 100,000", ":OK OK", requests(func(i int) string { return fmt.Sprintf("provider-large 20.%d.%d.9", i>>7&255, i<<2&255) })},
	} {
		var ratios, rates, floors, cpus []float64
		for range rounds {
			f := lookups(t, floor, conns, load.requests, ":")
			used := d.cpu(t)
			r := lookups(t, socket, conns, load.requests, load.want)
			cpus = append(cpus, float64((d.cpu(t)-used).Microseconds())/(r*roundTime.Seconds()))
			ratios, rates, floors = append(ratios, r/f), append(rates, r), append(floors, f)
		}
		t.Logf("%-42s %.2f of a netstring echo (%.0f of %.0f look-ups/s; %.1f µs of the daemon's processor time each)",
			load.name, median(ratios), median(rates), median(floors), median(cpus))
	}
	t.Logf("%-42s %d MiB resident", "the daemon with all that", d.resident(t))
	d.stop()
	flattening(t)
	networks(t, dir)
}

// dnsOf is the resolver in the form that lists ask.
type dnsOf struct{ *resolver.Resolver }

func (d dnsOf) LookupMX(ctx context.Context, name string) (hosts []string, ttl time.Duration, cached bool, err error) {
	mx, ttl, cached, err := d.Resolver.LookupMX(ctx, name)
	for i := range mx {
		hosts = append(hosts, mx[i].Host)
	}
	return hosts, ttl, cached, err
}

// flattening reads both lists over a DNS server that takes its time.
func flattening(t *testing.T) {
	const trip = 100 * time.Millisecond
	dns := dnstest.Start(t)
	dns.BehaveUnder(".", dnstest.Behavior{Delay: trip})
	dns.Add(
		`spf.protection.outlook.com. 600 IN TXT "v=spf1 ip4:40.92.0.0/15 ip4:40.107.0.0/16 ip4:52.100.0.0/15 ip4:52.102.0.0/16 ip4:52.103.0.0/17 ip4:104.47.0.0/17 ip6:2a01:111:f400::/48 ip6:2a01:111:f403::/49 -all"`,
		`_spf.google.com. 600 IN TXT "v=spf1 include:_netblocks.google.com include:_netblocks2.google.com include:_netblocks3.google.com ~all"`,
		`_netblocks.google.com. 600 IN TXT "v=spf1 ip4:35.190.247.0/24 ip4:64.233.160.0/19 ip4:66.102.0.0/20 ip4:74.125.0.0/16 ip4:209.85.128.0/17 ~all"`,
		`_netblocks2.google.com. 600 IN TXT "v=spf1 ip6:2001:4860:4000::/36 ip6:2404:6800:4000::/36 ip6:2607:f8b0:4000::/36 ~all"`,
		`_netblocks3.google.com. 600 IN TXT "v=spf1 ip4:172.217.0.0/19 ip4:108.177.96.0/19 ip4:35.191.0.0/16 ip4:130.211.0.0/22 ~all"`,
	)
	cfg := resolver.DefaultConfig()
	cfg.Servers = []string{dns.Addr()}
	res, err := resolver.New(cfg, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	settings := provider.DefaultConfig()
	settings.StateDir = t.TempDir()
	settings.Lists = []provider.ListConfig{{Name: "office365"}, {Name: "google"}}
	set, err := provider.New(settings, provider.Options{Resolver: dnsOf{res}, Forget: res.Flush, Log: zap.NewNop(), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	begin := time.Now()
	for _, name := range set.Names() {
		wg.Go(func() {
			rep, err := set.Refresh(t.Context(), name, false)
			if err != nil || rep.Error != "" {
				t.Errorf("%+v, %v", rep, err)
			}
			t.Logf("%-42s %d levels, %d questions, %v at %v a round trip", "reading "+name, rep.Levels, rep.Queries, rep.Took.Round(time.Millisecond), trip)
		})
	}
	wg.Wait()
	t.Logf("%-42s %.2f round trips", "both at once", float64(time.Since(begin))/float64(trip))
}

// networks measures look-ups among many networks, and the exchange of the list.
func networks(t *testing.T, dir string) {
	path := filepath.Join(dir, "swapped")
	write(t, path, largeList(prefixes))
	settings := provider.DefaultConfig()
	settings.StateDir, settings.ReloadInterval = t.TempDir(), conf.Duration(100*time.Millisecond)
	settings.Lists = []provider.ListConfig{{Name: "large", Files: []string{path}, AllowReserved: true}}
	set, err := provider.New(settings, provider.Options{Log: zap.NewNop(), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	table, _ := set.Table("large")
	all := table.Prefixes()
	addrs := make([]netip.Addr, 1<<14)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range addrs {
		addrs[i] = all[r.IntN(len(all))].Addr()
	}
	cost := func(f func(netip.Addr)) float64 {
		b := testing.Benchmark(func(b *testing.B) {
			i := 0
			for b.Loop() {
				f(addrs[i&(len(addrs)-1)])
				i++
			}
		})
		return float64(b.T.Nanoseconds()) / float64(b.N)
	}
	t.Logf("%-42s %.0f ns whether, %.0f ns which entry", fmt.Sprintf("an address among %d networks", len(all)),
		cost(func(a netip.Addr) { table.Contains(a) }), cost(func(a netip.Addr) { table.Lookup(a) }))

	set.Start()
	defer set.Stop()
	var stop atomic.Bool
	worst := make(chan [2]time.Duration)
	go func() {
		var before, most time.Duration
		for i := 0; !stop.Load(); i++ {
			begin := time.Now()
			table.Contains(addrs[i&(len(addrs)-1)])
			took := time.Since(begin)
			if i < 1<<20 {
				before = max(before, took)
			} else {
				most = max(most, took)
			}
		}
		worst <- [2]time.Duration{before, most}
	}()
	time.Sleep(500 * time.Millisecond)
	write(t, path+".new", largeList(prefixes)+"8.8.8.0/24\n")
	begin := time.Now()
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	for !table.Contains(netip.MustParseAddr("8.8.8.8")) {
		time.Sleep(time.Millisecond)
	}
	took := time.Since(begin)
	stop.Store(true)
	w := <-worst
	t.Logf("%-42s in force after %v; the longest look-up meanwhile %v, without an exchange %v", "an edited file of 100,000 networks",
		took.Round(time.Millisecond), w[1].Round(time.Microsecond), w[0].Round(time.Microsecond))
}
