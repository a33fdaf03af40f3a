package lookup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/internal/listen"
	"postern/internal/netstring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client is the Postfix side.
type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, addr net.Addr) *client {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // it may be closed
	return &client{c, bufio.NewReader(c)}
}

func (c *client) reply() (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	var b []byte
	for {
		one, err := c.r.ReadByte()
		if err != nil {
			return "", err
		}
		b = append(b, one)
		if content, n, err := netstring.Next(b, maxReply); n > 0 || err != nil {
			return string(content), err
		}
	}
}

func (c *client) ask(name, key string) (string, error) {
	if _, err := c.Write(netstring.Append(nil, name+" "+key)); err != nil {
		return "", err
	}
	return c.reply()
}

func (c *client) want(t testing.TB, name, key, want string) {
	t.Helper()
	if got, err := c.ask(name, key); err != nil || got != want {
		t.Errorf("%s %q: %.200q, %v; want %q", name, key, got, err, want)
	}
}

// closed reports whether the door ends the connection without an answer.
func (c *client) closed() bool {
	_, err := c.reply()
	var timeout net.Error
	return err != nil && (!errors.As(err, &timeout) || !timeout.Timeout())
}

type testDoor struct {
	*Server
	addr net.Addr
	reg  *prometheus.Registry
	log  *observer.ObservedLogs
}

// start opens a door on a unix socket and stops it at the end of the test.
func start(t testing.TB, m map[string]Map, edit func(*Config)) *testDoor {
	t.Helper()
	cfg := DefaultConfig()
	var a listen.Address
	if err := a.UnmarshalText([]byte("unix:" + filepath.Join(t.TempDir(), "l.sock"))); err != nil {
		t.Fatal(err)
	}
	cfg.Listen = []listen.Address{a}
	if edit != nil {
		edit(&cfg)
	}
	core, logs := observer.New(zap.WarnLevel)
	d := &testDoor{reg: prometheus.NewRegistry(), log: logs}
	d.Server = New(cfg, zap.New(core), d.reg)
	d.SetMaps(m)
	if err := d.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = d.Stop(ctx) // some tests leave connections open
	})
	d.addr = d.Addresses()[0]
	return d
}

// count returns the counter of a map's results.
func (d *testDoor) count(name, result string) float64 {
	return testutil.ToFloat64(d.metrics.lookups.WithLabelValues(name, result))
}

// echo answers keys of its own making.
var echo = MapFunc(func(ctx context.Context, key string) (string, bool, error) {
	switch {
	case key == "missing":
		return "", false, nil
	case key == "empty":
		return "", true, nil
	case key == "error":
		return "", false, errors.New("secret trouble")
	case key == "panic":
		panic("oops")
	case key == "slow":
		<-ctx.Done()
		return "", false, ctx.Err()
	case strings.HasPrefix(key, "long:"):
		var n int
		if _, err := fmt.Sscanf(key, "long:%d", &n); err != nil {
			return "", false, err
		}
		return strings.Repeat("x", n), true, nil
	}
	return "<" + key + ">", true, nil
})

func TestReplies(t *testing.T) {
	d := start(t, map[string]Map{"echo": echo}, nil)
	c := dial(t, d.addr)
	const sorry = `TEMP table "echo" cannot answer, the log of postern says why`
	for _, tt := range []struct{ name, key, want string }{
		{"echo", "a", "OK <a>"},
		{"echo", "a b  c ", "OK <a b  c >"},
		{"echo", " a", "OK < a>"},
		{"echo", "a,b:1", "OK <a,b:1>"},
		{"echo", "\xff\x00", "OK <\xff\x00>"},
		{"echo", "missing", "NOTFOUND "},
		{"echo", "", "NOTFOUND "},
		{"echo", "empty", sorry},
		{"echo", "error", sorry},
		{"echo", "panic", sorry},
		{"echo", "long:99997", "OK " + strings.Repeat("x", 99_997)},
		{"echo", "long:99998", sorry},
		{"echo", strings.Repeat("k", 102_400), sorry},
		{"other", "a", `TEMP postern has no table "other"`},
		{"Echo", "a", `TEMP postern has no table "Echo"`},
		{"a\x01\"b", "a", "TEMP postern has no table \"a?\"b\""},
		{strings.Repeat("n", 5000), "a", `TEMP postern has no table "` + strings.Repeat("n", 64) + `"`},
		{"", "a", "PERM a request is the name of a table, a space and a key"},
		{"echo", "still here", "OK <still here>"},
	} {
		got, err := c.ask(tt.name, tt.key)
		if err != nil || got != tt.want {
			t.Errorf("%.50s %.50q: %.100q, %v; want %.100q", tt.name, tt.key, got, err, tt.want)
		}
		if len(got) > maxReply {
			t.Errorf("%d bytes were answered", len(got))
		}
	}
	if _, err := c.Write([]byte("4:echo,")); err != nil {
		t.Fatal(err)
	}
	if got, err := c.reply(); err != nil || !strings.HasPrefix(got, "PERM ") {
		t.Errorf("a name without key: %q, %v", got, err)
	}
	for result, want := range map[string]float64{"found": 7, "not-found": 2, "error": 5, "timeout": 0} {
		if got := d.count("echo", result); got != want {
			t.Errorf("%s: %v, want %v", result, got, want)
		}
	}
	if got := d.count("unknown", "error"); got != 4 {
		t.Errorf("unknown: %v", got)
	}
	// What comes from outside makes no labels.
	if n := testutil.CollectAndCount(d.metrics.lookups); n != 8 {
		t.Errorf("%d rows of metrics", n)
	}
	// A fault is told once, not at each look-up.
	if n := d.log.FilterMessage("a table cannot answer").Len(); n != 1 {
		t.Errorf("%d log lines", n)
	}
	if n := d.Status().Lookups; n != 20 {
		t.Errorf("%d look-ups", n)
	}
}

func TestASlowMapIsCutShort(t *testing.T) {
	d := start(t, map[string]Map{"echo": echo}, func(c *Config) { c.LookupTimeout = conf.Duration(100 * time.Millisecond) })
	c, other := dial(t, d.addr), dial(t, d.addr)
	c.want(t, "echo", "slow", `TIMEOUT table "echo" takes too long`)
	// The next one finds the connection closed, and Postfix repeats it.
	_, _ = c.Write(netstring.Append(nil, "echo a")) // the door may have closed already
	if !c.closed() {
		t.Error("answered with a context that has ended")
	}
	other.want(t, "echo", "a", "OK <a>")
	if d.count("echo", "timeout") != 1 || d.count("echo", "error") != 0 {
		t.Error("not counted as a timeout")
	}
}

func TestAMapThatMindsNothingLosesItsConnection(t *testing.T) {
	release := make(chan struct{})
	stuck := MapFunc(func(context.Context, string) (string, bool, error) { <-release; return "late", true, nil })
	d := start(t, map[string]Map{"stuck": stuck}, func(c *Config) { c.LookupTimeout = conf.Duration(100 * time.Millisecond) })
	c := dial(t, d.addr)
	if _, err := c.Write(netstring.Append(nil, "stuck a")); err != nil {
		t.Fatal(err)
	}
	if !c.closed() {
		t.Error("the connection was kept")
	}
	close(release)
}

func TestPipelinedAndSplitRequests(t *testing.T) {
	d := start(t, map[string]Map{"echo": echo}, nil)
	c := dial(t, d.addr)
	var all []byte
	for i := range 300 {
		all = netstring.Append(all, fmt.Sprintf("echo %d%s", i, strings.Repeat(",", i)))
	}
	wrote := make(chan error, 1)
	go func() { _, err := c.Write(all); wrote <- err }()
	for i := range 300 {
		if got, err := c.reply(); err != nil || got != fmt.Sprintf("OK <%d%s>", i, strings.Repeat(",", i)) {
			t.Fatalf("pipelined %d: %q, %v", i, got, err)
		}
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	for _, b := range netstring.Append(nil, "echo a,b,") {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := c.reply(); err != nil || got != "OK <a,b,>" {
		t.Errorf("byte by byte: %q, %v", got, err)
	}
}

func TestBadRequestsEndTheirConnectionOnly(t *testing.T) {
	d := start(t, map[string]Map{"echo": echo}, func(c *Config) {
		c.RequestTimeout = conf.Duration(200 * time.Millisecond)
		c.WriteTimeout = conf.Duration(200 * time.Millisecond)
	})
	good := dial(t, d.addr)
	for name, data := range map[string][]byte{
		"not a netstring":  []byte("GET / HTTP/1.0\r\n\r\n"),
		"leading zero":     []byte("06:echo a,"),
		"no comma":         []byte("6:echo a;"),
		"too large":        []byte("131073:echo "),
		"endless length":   bytes.Repeat([]byte("9"), 100_000),
		"never ends":       []byte("6:echo"),
		"stops at a comma": []byte("9:echo a,"),
		"does not read":    bytes.Repeat(netstring.Append(nil, "echo long:50000"), 2000),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, d.addr)
			_, _ = c.Write(data) // the door may close before all is written
			if name == "does not read" {
				for d.Status().Connections > 1 {
					runtime.Gosched()
				}
				return
			}
			if !c.closed() {
				t.Error("the connection was not closed")
			}
			good.want(t, "echo", "a", "OK <a>")
		})
	}
	// A peer sees the end of a connection a moment before it is counted.
	for deadline := time.Now().Add(time.Minute); d.Status().Connections != 1; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", d.Status())
		}
	}
}

func TestTheBufferGrowsWithWhatComesOnly(t *testing.T) {
	d := start(t, map[string]Map{"echo": echo}, nil)
	const clients = 200
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range clients {
		c := dial(t, d.addr)
		if _, err := c.Write([]byte("131000:echo ")); err != nil { // announced, not sent
			t.Fatal(err)
		}
	}
	for range clients {
		c := dial(t, d.addr)
		c.want(t, "echo", "long:50000", "OK "+strings.Repeat("x", 50_000)) // used once, then idle
		c.r = nil
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)) / (2 * clients)
	if per > 40<<10 { // both ends, the clients' readers among them
		t.Errorf("a connection holds %d bytes", per)
	}
}

func TestManyConnections(t *testing.T) {
	d := start(t, map[string]Map{"echo": echo}, nil)
	var all []*client
	for range 1500 {
		all = append(all, dial(t, d.addr))
	}
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			for j := range 3 {
				if got, err := c.ask("echo", fmt.Sprint(i, j)); err != nil || got != fmt.Sprintf("OK <%d %d>", i, j) {
					t.Errorf("%q, %v", got, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := d.Status().Connections; n != 1500 {
		t.Errorf("%d connections", n)
	}
}

func TestSwappingMapsUnderLoad(t *testing.T) {
	constant := func(s string) Map {
		return MapFunc(func(context.Context, string) (string, bool, error) { return s, true, nil })
	}
	d := start(t, map[string]Map{"a": constant("1"), "old": echo}, nil)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		c := dial(t, d.addr)
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got, err := c.ask("a", "k"); err != nil || got != "OK 1" && got != "OK 2" {
					t.Errorf("%q, %v", got, err)
					return
				}
			}
		})
	}
	for i := range 500 {
		d.SetMaps(map[string]Map{"a": constant(fmt.Sprint(1 + i%2))})
	}
	close(done)
	wg.Wait()
	c := dial(t, d.addr)
	c.want(t, "a", "k", "OK 2")
	c.want(t, "old", "k", `TEMP postern has no table "old"`)
	if n := testutil.CollectAndCount(d.metrics.lookups); n != 8 {
		t.Errorf("%d rows of metrics: those of a map that is gone must go", n)
	}
	if got := d.Names(); len(got) != 1 || got[0] != "a" {
		t.Errorf("names %v", got)
	}
}

func TestUnknownMapIsLoggedPrintable(t *testing.T) {
	d := start(t, nil, nil)
	c := dial(t, d.addr)
	for range 5 {
		c.want(t, "a\r\nb", "k", `TEMP postern has no table "a b"`)
	}
	logs := d.log.FilterMessage("Postfix asks for a table that is not there").All()
	if len(logs) != 1 || logs[0].ContextMap()["map"] != "a b" {
		t.Errorf("logged %v", logs)
	}
}

func TestStopLetsLookupsFinish(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	wait := MapFunc(func(context.Context, string) (string, bool, error) {
		close(entered)
		<-release
		return "done", true, nil
	})
	d := start(t, map[string]Map{"wait": wait}, nil)
	c := dial(t, d.addr)
	if _, err := c.Write(netstring.Append(nil, "wait a")); err != nil {
		t.Fatal(err)
	}
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- d.Stop(context.Background()) }()
	for d.Addresses() != nil {
		runtime.Gosched()
	}
	close(release)
	if got, err := c.reply(); err != nil || got != "OK done" {
		t.Errorf("%q, %v", got, err)
	}
	if !c.closed() {
		t.Error("not closed in the end")
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if err := d.Configure(DefaultConfig(), nil); err == nil {
		t.Error("opened again after Stop")
	}
}

func TestNetworks(t *testing.T) {
	net4, net6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")
	m := FromNetworks(networksFunc(func(a netip.Addr) (string, bool) {
		if a.Is4In6() || a.Zone() != "" {
			t.Errorf("asked for %v", a)
		}
		switch {
		case net4.Contains(a):
			return "four", true
		case net6.Contains(a):
			return "six", true
		}
		return "", false
	}))
	for key, want := range map[string]string{
		"192.0.2.7": "four", "2001:db8::7": "six", "::ffff:192.0.2.7": "four", "[192.0.2.7]": "four", "[IPv6:2001:DB8::1]": "six",
		"2001:db8::1%eth0": "six", "198.51.100.1": "", "192.0.2": "", "192.0.2.7/32": "", "mail.example.org": "", "unknown": "", "*": "", "": "",
		"a@[192.0.2.7]": "", "192.0.2.07": "", "[]": "", strings.Repeat("1", 1000): "",
	} {
		got, found, err := m.Lookup(t.Context(), key)
		if got != want || found != (want != "") || err != nil {
			t.Errorf("%q: %q, %v, %v", key, got, found, err)
		}
	}
}

type networksFunc func(netip.Addr) (string, bool)

func (f networksFunc) Lookup(a netip.Addr) (string, bool) { return f(a) }

func TestExplainOfTheDoor(t *testing.T) {
	d := start(t, map[string]Map{"echo": echo}, nil)
	if a, err := d.Explain(t.Context(), "echo", "k"); err != nil || a != (Answer{Map: "echo", Key: "k", Found: true, Value: "<k>"}) {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := d.Explain(t.Context(), "echo", ""); err != nil || a.Found {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := d.Explain(t.Context(), "echo", "empty"); !errors.Is(err, errEmpty) {
		t.Errorf("%v", err)
	}
	if _, err := d.Explain(t.Context(), "other", "k"); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v", err)
	}
	if d.count("echo", "found") != 0 {
		t.Error("counted")
	}
}

// FuzzRequests feeds arbitrary bytes in arbitrary pieces over a connection:
// however they are split, the replies are the same, and each is one that
// Postfix takes.
func FuzzRequests(f *testing.F) {
	f.Add([]byte("6:echo a,"), uint8(3))
	f.Add([]byte("6:echo a,12:echo missing,9:other key,4:echo,2: a,"), uint8(1))
	f.Add([]byte("5:echo ,7:echo  a,x"), uint8(2))
	f.Add([]byte("99999999:"), uint8(4))
	s := New(DefaultConfig(), zap.NewNop(), prometheus.NewRegistry())
	s.SetMaps(map[string]Map{"echo": echo})
	replies := func(t *testing.T, in []byte, piece int) []byte {
		var out, buf []byte
		for len(in) > 0 || len(buf) > 0 {
			content, n, err := netstring.Next(buf, 200)
			if err != nil {
				return append(out, "closed"...)
			}
			if n > 0 {
				if bytes.HasSuffix(content, []byte(" slow")) { // it waits, as it should
					return out
				}
				before := len(out)
				out = s.answer(t.Context(), out, content)
				reply, m, err := netstring.Next(out[before:], maxReply)
				word, _, ok := strings.Cut(string(reply), " ")
				if err != nil || m != len(out)-before || !ok || !strings.Contains(" OK NOTFOUND TEMP TIMEOUT PERM ", " "+word+" ") || string(reply) == "OK " {
					t.Fatalf("%q was answered with %.200q", content, out[before:])
				}
				buf = buf[n:]
				continue
			}
			if len(in) == 0 {
				return out
			}
			k := min(piece, len(in))
			buf, in = append(buf, in[:k]...), in[k:]
		}
		return out
	}
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		whole, split := replies(t, in, max(len(in), 1)), replies(t, in, int(piece)+1)
		if !bytes.Equal(whole, split) {
			t.Errorf("%q: %q whole, %q split", in, whole, split)
		}
	})
}

// FuzzParseRequest states that a request is taken apart without loss.
func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{"echo a", "echo  a b", "echo", " a", "", "a "} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		name, key, ok := parseRequest(in)
		if ok && (len(name) == 0 || bytes.IndexByte(name, ' ') >= 0 || !bytes.Equal(in, bytes.Join([][]byte{name, key}, []byte(" ")))) {
			t.Errorf("%q: %q, %q", in, name, key)
		}
		if !ok && (name != nil || key != nil || bytes.IndexByte(in, ' ') > 0) {
			t.Errorf("%q refused", in)
		}
	})
}
