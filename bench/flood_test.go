package bench

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/internal/policytest"
	"postern/internal/redistest"
)

var (
	flood     = flag.Int("flood", 0, "flood the greylist with so many triplets and print what becomes of it (10000000 take an hour)")
	floodRoom = flag.Int("flood-room", 0, "[store] max_waiting of the daemon that is flooded (default: a tenth of -flood)")
)

const (
	floodSteps = 1000 // of a flood; between two, newcomers come
	// floodDelay is the greylist's. It is over when anybody comes back: time is
	// counted in triplets of the flood here.
	floodDelay = 50 * time.Millisecond
	// Known contacts before the flood: so many have passed, and the first of
	// them three times, which gives credit.
	floodTriplets, floodCredits = 50_000, 10_000
)

// floodRetries is when newcomers come back: after so many triplets of the
// flood, in hundredths of the room.
var floodRetries = []int{10, 50, 90, 110, 150, 200, 400}

// TestFlood prints what a flood of triplets does to the greylist of a daemon.
func TestFlood(t *testing.T) {
	if *flood == 0 {
		t.Skip("takes long; -flood 10000000 asks for it")
	}
	if *floodRoom == 0 {
		*floodRoom = *flood / 10
	}
	t.Logf("%s, %d processors, %s", runtime.Version(), runtime.NumCPU(), processor())
	spread := func(networks int) func(int) [4]byte {
		return func(i int) [4]byte { return floodAddress(i % networks) }
	}
	kinds := []struct {
		name string
		addr func(int) [4]byte
	}{
		{"one-network", func(i int) [4]byte { return [4]byte{198, 51, 100, byte(i)} }},
		{"1000-networks", spread(1000)},
		{"million-addresses", spread(1_000_000)},
	}
	for _, k := range kinds {
		t.Run("embedded/"+k.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			f := startFlood(t, fmt.Sprintf("path = %q\nmax_entries = 1000000", path), *flood, *floodRoom)
			f.memory = func() string {
				st, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				return fmt.Sprintf("%d MiB resident, %d of them pages of the file, which has %d", f.d.resident(t), f.d.memory(t, "RssFile"), st.Size()>>20)
			}
			f.run(t, k.addr)
		})
	}
	// Relative to the room, the number of networks is what counts.
	for _, percent := range []int{1, 10, 50, 80, 100, 150, 200, 400} {
		t.Run(fmt.Sprintf("embedded/networks-%d-percent-of-room", percent), func(t *testing.T) {
			room := *floodRoom / 10
			f := startFlood(t, fmt.Sprintf("path = %q", filepath.Join(t.TempDir(), "state.db")), 10*room, room)
			f.run(t, spread(room*percent/100))
		})
	}
	for _, k := range kinds {
		t.Run("redis/"+k.name, func(t *testing.T) {
			server := redistest.Start(t)
			f := startFlood(t, fmt.Sprintf("kind = \"redis\"\n[store.redis]\naddrs = [%q]\ntimeout = \"5s\"", server.Addr()), *flood/10, *floodRoom/10)
			f.memory = func() string {
				return fmt.Sprintf("%d MiB resident, Redis %s", f.d.resident(t), redisMemory(t, server.Addr()))
			}
			f.run(t, k.addr)
		})
	}
}

// floodAddress returns the address of one of 14 million networks, of which
// none is that of a newcomer or of a known contact.
func floodAddress(network int) [4]byte {
	const first, octets = 13, 223 - 13
	x := network * 7_368_787 % (octets << 16) // a prime: neighbours are far apart
	return [4]byte{byte(first + x%octets), byte(x / octets >> 8), byte(x / octets), byte(1 + network%250)}
}

// flooding is one flood against one daemon.
type flooding struct {
	d             *child
	socket, admin string
	n, room       int
	memory        func() string // nil: not shown
}

func startFlood(t *testing.T, storage string, n, room int) *flooding {
	t.Helper()
	dir := t.TempDir()
	f := &flooding{socket: filepath.Join(dir, "p.sock"), admin: filepath.Join(dir, "a.sock"), n: n, room: room}
	config := filepath.Join(dir, "postern.toml")
	write(t, config, fmt.Sprintf(`
[policy]
listen = ["unix:%s"]
[admin]
listen = "unix:%s"
[log]
output = "file:/dev/null"
[chains.inbound]
checks = ["greylist"]
[greylist]
profile = "strict"
delay = "%v"
known_after = 3
known_age = "0s"
count_every = "0s"
header = false
[store]
max_waiting = %d
%s
`, f.socket, f.admin, floodDelay, room, storage))
	f.d = start(t, "daemon", config)
	t.Cleanup(f.d.stop)
	return f
}

// comer is a newcomer that will come back.
type comer struct {
	retry int // which of floodRetries
	req   []byte
	came  time.Time
}

// run makes some contacts known, floods while newcomers come from elsewhere,
// and prints what has become of all of them.
func (f *flooding) run(t *testing.T, addr func(int) [4]byte) {
	c := dialBlocking(t, f.socket)
	defer syscall.Close(c.fd) //nolint:errcheck // only a client
	f.acquaint(t, c)

	step := f.n / floodSteps
	crowd := newCrowd(t, f.socket, addr)
	defer crowd.close()
	back, passed := make([]int, len(floodRetries)), make([]int, len(floodRetries))
	due := make([][]comer, floodSteps)
	came := 0
	began := time.Now()
	for s := range floodSteps {
		if f.memory != nil && s%(floodSteps/10) == 0 {
			t.Logf("  after %10d triplets: %s", s*step, f.memory())
		}
		crowd.send(t, step)
		for _, n := range due[s] {
			time.Sleep(time.Until(n.came.Add(2 * floodDelay))) // the flood may be that fast
			back[n.retry]++
			if c.passes(t, n.req) {
				passed[n.retry]++
			}
		}
		if s*step < 2*f.room {
			continue // there is no press yet
		}
		for r, percent := range floodRetries {
			at := s + f.room*percent/100/step
			for range max(1, step/5000) {
				if at >= floodSteps {
					break
				}
				came++
				n := comer{r, floodRequest("new", came, "bob", [4]byte{12, byte(came >> 8), byte(came), 7}), time.Now()}
				if c.passes(t, n.req) {
					t.Fatal("a newcomer is not delayed")
				}
				due[at] = append(due[at], n)
			}
		}
	}
	took := time.Since(began)
	if f.memory != nil {
		t.Logf("  after %10d triplets: %s", f.n, f.memory())
	}
	t.Logf("  %d triplets in %v (%.0f a second), %d passed; room for %d; %s", f.n, took.Round(time.Second), float64(f.n)/took.Seconds(), crowd.passed.Load(), f.room, f.figures(t))
	var line strings.Builder
	for i, percent := range floodRetries {
		if back[i] > 0 {
			fmt.Fprintf(&line, ", %d %%: %.1f %% of %d", percent, 100*float64(passed[i])/float64(back[i]), back[i])
		}
	}
	t.Logf("  newcomers from elsewhere that pass at their retry, by how much of the room has come meanwhile%s", line.String())
	f.count(t, c)
}

// acquaint makes contacts known, no more at a time than find room.
func (f *flooding) acquaint(t *testing.T, c smtpd) {
	t.Helper()
	const portion = 1000
	for from := 0; from < floodTriplets; from += portion {
		for round := range 4 {
			if round > 1 && from >= floodCredits {
				break
			}
			for i := from; i < from+portion; i++ {
				if c.passes(t, acquaintance(i, "bob")) != (round > 0) {
					t.Fatalf("round %d: contact %d", round, i)
				}
			}
			if round == 0 {
				time.Sleep(2 * floodDelay) // for the clock of the daemon
			}
		}
	}
}

// count asks for all that was known before the flood.
func (f *flooding) count(t *testing.T, c smtpd) {
	t.Helper()
	var triplets, credits int
	for i := range floodTriplets {
		if i >= floodCredits && c.passes(t, acquaintance(i, "bob")) {
			triplets++
		}
		if i < floodCredits && c.passes(t, acquaintance(i, "carol")) { // a recipient it has not written to
			credits++
		}
	}
	t.Logf("  known before: %d of %d triplets pass, %d of %d sides have credit", triplets, floodTriplets-floodCredits, credits, floodCredits)
}

// figures returns the daemon's own account of its room.
func (f *flooding) figures(t *testing.T) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", f.admin)
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://postern/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		for _, name := range []string{"waiting", "waiting_life_seconds", "pushed_out_total", "unremembered_total"} {
			if v, ok := strings.CutPrefix(line, "postern_greylist_"+name+" "); ok {
				n, _ := strconv.ParseFloat(strings.TrimSpace(v), 64)
				out = append(out, fmt.Sprintf("%s %.0f", name, n))
			}
		}
	}
	return strings.Join(out, ", ")
}

// redisMemory returns what a Redis says of the memory of its data.
func redisMemory(t *testing.T, addr string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // only read
	if _, err := io.WriteString(c, "INFO memory\r\n"); err != nil {
		t.Fatal(err)
	}
	for in := bufio.NewScanner(c); in.Scan(); {
		if v, ok := strings.CutPrefix(in.Text(), "used_memory:"); ok {
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("%d MiB", n>>20)
		}
	}
	t.Fatal("Redis does not say how much memory it uses")
	return ""
}

// floodRequest is one contact from a client without a name.
func floodRequest(who string, n int, recipient string, from [4]byte) []byte {
	return policytest.Sample().With(
		"client_address", netip.AddrFrom4(from).String(), "client_name", "unknown", "reverse_client_name", "unknown",
		"sender", fmt.Sprintf("%s@%s%d.example", who, who, n), "recipient", recipient+"@example.com",
	).Bytes()
}

// acquaintance is a contact that is known before the flood, if it writes to bob.
func acquaintance(i int, recipient string) []byte {
	return floodRequest("known", i, recipient, [4]byte{11, byte(i >> 8), byte(i), 7})
}

// passes asks and reports whether the contact is let through.
func (c smtpd) passes(t *testing.T, req []byte) bool {
	t.Helper()
	var buf [1024]byte
	answer, err := c.answer(req, buf[:])
	if err != nil {
		t.Fatal(err)
	}
	return string(answer) == "action=DUNNO\n\n"
}

// crowd are the connections that a flood comes by.
type crowd struct {
	addr   func(int) [4]byte
	conns  []smtpd
	sent   []int // by each
	parts  [3]string
	passed atomic.Int64
	procs  int
}

func newCrowd(t *testing.T, socket string, addr func(int) [4]byte) *crowd {
	t.Helper()
	template := string(policytest.Sample().With("client_address", "ADDRESS", "client_name", "unknown", "reverse_client_name", "unknown", "sender", "SENDER@flood.example").Bytes())
	w := &crowd{addr: addr, sent: make([]int, conns), procs: runtime.GOMAXPROCS(conns + 2)} // each blocks a processor of the runtime's
	var ok1, ok2 bool
	w.parts[0], w.parts[1], ok1 = strings.Cut(template, "ADDRESS")
	w.parts[1], w.parts[2], ok2 = strings.Cut(w.parts[1], "SENDER")
	if !ok1 || !ok2 {
		t.Fatal("the sample request has changed")
	}
	for range conns {
		w.conns = append(w.conns, dialBlocking(t, socket))
	}
	return w
}

func (w *crowd) close() {
	for _, c := range w.conns {
		_ = syscall.Close(c.fd) // only a client
	}
	runtime.GOMAXPROCS(w.procs)
}

// send sends n further triplets.
func (w *crowd) send(t *testing.T, n int) {
	t.Helper()
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for j, c := range w.conns {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			req, buf := make([]byte, 0, 1024), make([]byte, 1024)
			passed := 0
			for range n / len(w.conns) {
				i := w.sent[j]*len(w.conns) + j // every one is some connection's
				w.sent[j]++
				req = append(req[:0], w.parts[0]...)
				req = netip.AddrFrom4(w.addr(i)).AppendTo(req)
				req = append(req, w.parts[1]...)
				req = strconv.AppendInt(req, int64(i), 10)
				req = append(req, w.parts[2]...)
				answer, err := c.answer(req, buf)
				if err != nil {
					failed.Store(&err)
					return
				}
				if string(answer) == "action=DUNNO\n\n" {
					passed++
				}
			}
			w.passed.Add(int64(passed))
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
}
