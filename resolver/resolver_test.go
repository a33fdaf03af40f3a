package resolver

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/internal/dnstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is the deadline of what must happen, but is not measured.
const patience = 30 * time.Second

// testConfig has a timeout that no healthy server on loopback reaches.
func testConfig(servers ...string) Config {
	cfg := DefaultConfig()
	cfg.Servers = servers
	cfg.Timeout = conf.Duration(10 * time.Second)
	return cfg
}

// start returns a resolver that ends with the test. Warnings it should not
// write fail the test; expect names those it should.
func start(tb testing.TB, cfg Config, expect ...string) *Resolver {
	tb.Helper()
	r, logs := startLogged(tb, cfg)
	tb.Cleanup(func() {
		for _, e := range logs.All() {
			if !slices.Contains(expect, e.Message) {
				tb.Errorf("unexpected in the log: %s %v", e.Message, e.ContextMap())
			}
		}
	})
	return r
}

// startLogged is start with the warnings and errors that are written.
func startLogged(tb testing.TB, cfg Config) (*Resolver, *observer.ObservedLogs) {
	tb.Helper()
	var fs conf.Faults
	if cfg.Validate("dns", &fs); fs.Err() != nil {
		tb.Fatal(fs.Err())
	}
	core, logs := observer.New(zapcore.WarnLevel)
	r, err := newResolver(cfg, zap.New(core), prometheus.NewRegistry(), "/nonexistent/resolv.conf")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	return r, logs
}

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

func TestEveryType(t *testing.T) {
	s := dnstest.Start(t)
	s.Add(
		`example.org. 300 IN A 192.0.2.1`,
		`example.org. 200 IN A 192.0.2.2`,
		`example.org. 300 IN AAAA 2001:db8::1`,
		`example.org. 300 IN TXT "v=spf1 " "-all"`,
		`example.org. 300 IN TXT "quote \" backslash \\ octet \200"`,
		`example.org. 300 IN MX 20 MX2.example.org.`,
		`example.org. 300 IN MX 10 mx1.example.org.`,
		`null.example.org. 300 IN MX 0 .`,
		`1.2.0.192.in-addr.arpa. 300 IN PTR Mail.Example.org.`,
		`1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 300 IN PTR six.example.org.`,
		`xn--bcher-kva.example. 300 IN A 192.0.2.3`,
	)
	r := start(t, testConfig(s.Addr()))
	ctx := t.Context()

	a, ttl, cached, err := r.LookupA(ctx, "Example.ORG.")
	slices.SortFunc(a, netip.Addr.Compare)
	if err != nil || cached || !slices.Equal(a, addrs("192.0.2.1", "192.0.2.2")) {
		t.Errorf("A = %v, cached %v, %v", a, cached, err)
	}
	if ttl > 200*time.Second || ttl < 100*time.Second {
		t.Errorf("ttl = %v, want the least of the records, 200s", ttl)
	}
	if _, _, cached, err := r.LookupA(ctx, "example.org"); err != nil || !cached {
		t.Errorf("second time: cached %v, %v", cached, err)
	}
	if n := s.Count("example.org", "A"); n != 1 {
		t.Errorf("%d queries, want 1", n)
	}
	if a, _, _, err := r.LookupAAAA(ctx, "example.org"); err != nil || !slices.Equal(a, addrs("2001:db8::1")) {
		t.Errorf("AAAA = %v, %v", a, err)
	}
	texts, _, _, err := r.LookupTXT(ctx, "example.org")
	slices.Sort(texts)
	if want := []string{"quote \" backslash \\ octet \xc8", "v=spf1 -all"}; err != nil || !slices.Equal(texts, want) {
		t.Errorf("TXT = %q, %v, want %q", texts, err, want)
	}
	mx, _, _, err := r.LookupMX(ctx, "example.org")
	if want := []MX{{10, "mx1.example.org"}, {20, "mx2.example.org"}}; err != nil || !slices.Equal(mx, want) {
		t.Errorf("MX = %v, %v, want %v", mx, err, want)
	}
	if mx, _, _, err := r.LookupMX(ctx, "null.example.org"); err != nil || !slices.Equal(mx, []MX{{}}) {
		t.Errorf("null MX = %v, %v", mx, err)
	}
	for addr, want := range map[string]string{
		"192.0.2.1": "mail.example.org", "::ffff:192.0.2.1": "mail.example.org", "2001:db8::1": "six.example.org",
	} {
		if names, _, _, err := r.LookupPTR(ctx, netip.MustParseAddr(addr)); err != nil || !slices.Equal(names, []string{want}) {
			t.Errorf("PTR %s = %v, %v", addr, names, err)
		}
	}
	if a, _, _, err := r.LookupA(ctx, "BÜCHER.example"); err != nil || !slices.Equal(a, addrs("192.0.2.3")) {
		t.Errorf("A of a U-label = %v, %v", a, err)
	}
}

func TestInvalidNamesAreNotAsked(t *testing.T) {
	s := dnstest.Start(t)
	r := start(t, testConfig(s.Addr()))
	for _, name := range []string{"", ".", "a..b", ".a", "a\x00b", `a\b`, "\xff.example", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a"} {
		_, _, _, err := r.LookupA(t.Context(), name)
		if !isError(err, ErrInvalidName) || isError(err, ErrTemporary) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, _, _, err := r.LookupPTR(t.Context(), netip.Addr{}); !isError(err, ErrInvalidName) {
		t.Errorf("PTR of no address: %v", err)
	}
	if n := s.Total(); n != 0 {
		t.Errorf("%d queries", n)
	}
}

// SPF macros put local parts into names. An answer's owner comes with escapes
// that the question did not have.
func TestOddNamesAreAnswered(t *testing.T) {
	s := dnstest.Start(t)
	s.Add(`a\@b.odd.example. 60 IN A 192.0.2.1`, `a\ \(b\)\;\"c\".odd.example. 60 IN A 192.0.2.2`, `alias.example. 60 IN CNAME a\@b.odd.example.`,
		`a\.b.odd.example. 60 IN A 192.0.2.3`)
	r := start(t, testConfig(s.Addr()))
	for name, want := range map[string]string{
		"a@b.odd.example": "192.0.2.1", `a (b);"c".odd.example`: "192.0.2.2", "alias.example": "192.0.2.1", "A@B.odd.example": "192.0.2.1",
	} {
		addrs, _, _, err := r.LookupA(t.Context(), name)
		if err != nil || len(addrs) != 1 || addrs[0].String() != want {
			t.Errorf("%q: %v, %v", name, addrs, err)
		}
	}
	// The dot inside a label is not the one between two.
	if addrs, _, _, err := r.LookupA(t.Context(), "a.b.odd.example"); err != nil || len(addrs) != 0 {
		t.Errorf("another name's address: %v, %v", addrs, err)
	}
}

func TestFlush(t *testing.T) {
	s := dnstest.Start(t)
	s.Add(`a.example. 300 IN A 192.0.2.1`, `b.example. 300 IN A 192.0.2.2`, `1.2.0.192.in-addr.arpa. 300 IN PTR a.example.`)
	r := start(t, testConfig(s.Addr()))
	ask := func() {
		for _, name := range []string{"a.example", "b.example"} {
			if _, _, _, err := r.LookupA(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, _, err := r.LookupPTR(t.Context(), netip.MustParseAddr("192.0.2.1")); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	for _, tt := range []struct {
		flush string
		a, b  int // queries so far
		ptr   int
	}{
		{"A.example.", 2, 1, 1},
		{"192.0.2.1", 2, 1, 2},
		{"", 3, 2, 3},
		{"a..b", 3, 2, 3},
	} {
		r.Flush(tt.flush)
		ask()
		a, b, ptr := s.Count("a.example", "A"), s.Count("b.example", "A"), s.Count("1.2.0.192.in-addr.arpa", "PTR")
		if a != tt.a || b != tt.b || ptr != tt.ptr {
			t.Errorf("after flush of %q: %d, %d, %d queries, want %d, %d, %d", tt.flush, a, b, ptr, tt.a, tt.b, tt.ptr)
		}
	}
}

func TestClose(t *testing.T) {
	s := dnstest.Start(t)
	s.Add(`kept.example. 300 IN A 192.0.2.1`)
	s.BehaveUnder("silent.example", dnstest.Drop)
	cfg := testConfig(s.Addr())
	cfg.MaxInFlight = 1
	r := start(t, cfg)
	if _, _, _, err := r.LookupA(t.Context(), "kept.example"); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error)
	for _, name := range []string{"a.silent.example", "b.silent.example"} { // one is asked for, one queues
		go func() {
			_, _, _, err := r.LookupA(t.Context(), name)
			errs <- err
		}()
	}
	for s.Count("a.silent.example", "")+s.Count("b.silent.example", "") == 0 || r.Stats().Queued == 0 {
		time.Sleep(time.Millisecond)
	}
	begin := time.Now()
	r.Close()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("Close waited %v for the servers", took)
	}
	for range 2 {
		if err := <-errs; !isError(err, ErrClosed) || !isError(err, ErrTemporary) {
			t.Errorf("under way: %v", err)
		}
	}
	if _, _, _, err := r.LookupA(t.Context(), "new.example"); !isError(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if a, _, cached, err := r.LookupA(t.Context(), "kept.example"); err != nil || !cached || len(a) != 1 {
		t.Errorf("after Close, from the cache: %v %v %v", a, cached, err)
	}
	r.Close()
}

func TestServersInTurn(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		first  dnstest.Behavior
		second dnstest.Behavior
		want   error // nil: the second answers
		asked  int   // queries to the first
	}{
		{"first is silent", dnstest.Drop, dnstest.Behavior{}, nil, 1},
		{"first fails", dnstest.ServFail, dnstest.Behavior{}, nil, 1},
		{"first refuses", dnstest.Refused, dnstest.Behavior{}, nil, 1},
		{"first fails with a bare header", dnstest.Behavior{Rcode: 2, Bare: true}, dnstest.Behavior{}, nil, 1},
		{"first does not recurse", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieReferral}}, dnstest.Behavior{}, nil, 1},
		{"first answers about another name", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieName}}, dnstest.Behavior{}, nil, 1},
		{"first has a strange code", dnstest.Behavior{Rcode: 9}, dnstest.Behavior{}, nil, 1},
		{"first loses one packet, second fails", dnstest.Behavior{Drop: true, Times: 1}, dnstest.ServFail, nil, 2},
		{"both fail", dnstest.ServFail, dnstest.ServFail, ErrServFail, 1},
		{"both refuse", dnstest.Refused, dnstest.Refused, ErrRefused, 1},
		{"both are silent", dnstest.Drop, dnstest.Drop, ErrTimeout, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s1, s2 := dnstest.Start(t), dnstest.Start(t)
			for _, s := range []*dnstest.Server{s1, s2} {
				s.Add(`a.example. 300 IN A 192.0.2.1`)
			}
			s1.BehaveUnder(".", tt.first)
			s2.BehaveUnder(".", tt.second)
			cfg := testConfig(s1.Addr(), s2.Addr())
			cfg.Timeout = conf.Duration(700 * time.Millisecond)
			r := start(t, cfg)
			a, _, _, err := r.LookupA(t.Context(), "a.example")
			if !isError(err, tt.want) || tt.want == nil && !slices.Equal(a, addrs("192.0.2.1")) {
				t.Errorf("got %v, %v, want %v", a, err, tt.want)
			}
			if tt.want != nil && !isError(err, ErrTemporary) {
				t.Errorf("%v is not temporary", err)
			}
			if n := s1.Count("a.example", "A"); n != tt.asked {
				t.Errorf("first server was asked %d times, want %d", n, tt.asked)
			}
		})
	}
}

func TestOutageIsSeenAtOnceAndEnds(t *testing.T) {
	s := dnstest.Start(t)
	s.Add(`a.example. 300 IN A 192.0.2.1`, `b.example. 300 IN A 192.0.2.1`)
	cfg := testConfig(s.Addr())
	cfg.Timeout = conf.Duration(20 * time.Second)
	r := start(t, cfg)
	if _, _, _, err := r.LookupA(t.Context(), "a.example"); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	begin := time.Now()
	_, _, _, err := r.LookupA(t.Context(), "b.example")
	if !isError(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	s.Restart()
	r.Flush("b.example") // the failure
	if _, _, _, err := r.LookupA(t.Context(), "b.example"); err != nil {
		t.Errorf("after the outage: %v", err)
	}
}

func TestAttempts(t *testing.T) {
	t.Parallel()
	s := dnstest.Start(t)
	s.BehaveUnder(".", dnstest.Drop)
	cfg := testConfig(s.Addr())
	cfg.Timeout, cfg.Attempts = conf.Duration(50*time.Millisecond), 2
	r := start(t, cfg)
	if _, _, _, err := r.LookupA(t.Context(), "a.example"); !isError(err, ErrTimeout) {
		t.Errorf("got %v", err)
	}
	if n := s.Total(); n != 2 {
		t.Errorf("%d queries, want 2", n)
	}
}
