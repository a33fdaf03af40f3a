package resolver

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"postern/internal/conf"
)

// upstream stands for the servers in a bubble, where there are no sockets.
type upstream struct {
	mu    sync.Mutex
	names []string
	reply func(ctx context.Context, k key) *answer
}

// answers sets what is answered from now on.
func (u *upstream) answers(reply func(ctx context.Context, k key) *answer) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reply = reply
}

func (u *upstream) ask(ctx context.Context, k key) *answer {
	u.mu.Lock()
	u.names = append(u.names, k.name)
	reply := u.reply
	u.mu.Unlock()
	return reply(ctx, k)
}

// asked returns the names that were asked for so far.
func (u *upstream) asked() []string {
	synctest.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.names)
}

// bubble runs a test on a clock of its own, with an upstream in place of the
// servers.
func bubble(t *testing.T, change func(*Config), test func(t *testing.T, r *Resolver, up *upstream)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig("192.0.2.53")
		if change != nil {
			change(&cfg)
		}
		r := start(t, cfg)
		up := new(upstream)
		r.upstream = up.ask
		test(t, r, up)
	})
}

// good is an answer with a TTL.
func good(ttl time.Duration) *answer {
	return &answer{records: records{addrs: addrs("192.0.2.1")}, ttl: ttl}
}

// servFail is the answer of servers that fail.
func servFail(k key) *answer { return failed(k, ErrServFail, "test") }

func TestTTL(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reply func(k key) *answer
		want  time.Duration // for which nobody is asked again
	}{
		{"as given", func(key) *answer { return good(time.Minute) }, time.Minute},
		{"min_ttl", func(key) *answer { return good(time.Second) }, 5 * time.Second},
		{"max_ttl", func(key) *answer { return good(30 * 24 * time.Hour) }, 24 * time.Hour},
		{"negative", func(key) *answer { return &answer{ttl: 10 * time.Minute} }, 10 * time.Minute},
		{"negative without SOA", func(key) *answer { return &answer{} }, 5 * time.Second},
		{"negative_ttl", func(key) *answer { return &answer{ttl: 12 * time.Hour} }, time.Hour},
		{"servfail_ttl", servFail, 5 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, r *Resolver, up *upstream) {
				up.answers(func(_ context.Context, k key) *answer { return tt.reply(k) })
				_, ttl, cached, err := r.LookupA(t.Context(), "a.example")
				if cached || ttl != tt.want {
					t.Errorf("first: ttl %v, cached %v, want %v", ttl, cached, tt.want)
				}
				time.Sleep(tt.want - 1)
				_, ttl, cached, again := r.LookupA(t.Context(), "a.example")
				if !cached || ttl != 1 || (err != nil) != (again != nil) {
					t.Errorf("just before: ttl %v, cached %v, %v", ttl, cached, again)
				}
				if len(up.asked()) != 1 {
					t.Errorf("asked %d times before", len(up.asked()))
				}
				time.Sleep(time.Nanosecond)
				if _, _, cached, _ := r.LookupA(t.Context(), "a.example"); cached {
					t.Error("cached when the time was over")
				}
				if len(up.asked()) != 2 {
					t.Errorf("asked %d times at the end", len(up.asked()))
				}
			})
		})
	}
}

func TestZeroTTLHoldsOnce(t *testing.T) {
	bubble(t, func(c *Config) { c.MinTTL = 0 }, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(context.Context, key) *answer { return good(0) })
		for range 3 {
			a, ttl, cached, err := r.LookupA(t.Context(), "a.example")
			if len(a) != 1 || ttl != 0 || cached || err != nil {
				t.Errorf("%v %v %v %v", a, ttl, cached, err)
			}
		}
		if len(up.asked()) != 3 {
			t.Errorf("asked %d times", len(up.asked()))
		}
	})
}

func TestStale(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(context.Context, key) *answer { return good(time.Minute) })
		look := func() (int, bool, time.Duration, error) {
			begin := time.Now()
			a, ttl, cached, err := r.LookupA(t.Context(), "a.example")
			if err == nil && ttl <= 0 {
				t.Errorf("ttl %v", ttl)
			}
			return len(a), cached, time.Since(begin), err
		}
		if n, _, _, err := look(); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		time.Sleep(2 * time.Minute)

		// The servers fail: the old answer is given, and they are left alone.
		up.answers(func(_ context.Context, k key) *answer { return servFail(k) })
		if n, cached, took, err := look(); n != 1 || cached || took != 0 || err != nil {
			t.Errorf("servers fail: %d, cached %v, after %v, %v", n, cached, took, err)
		}
		if n, cached, took, err := look(); n != 1 || !cached || took != 0 || err != nil {
			t.Errorf("again: %d, cached %v, after %v, %v", n, cached, took, err)
		}
		if len(up.asked()) != 2 {
			t.Errorf("asked %d times, want 2", len(up.asked()))
		}

		// stale_retry later they are asked again. They are slow now.
		up.answers(func(context.Context, key) *answer { time.Sleep(3 * time.Second); return good(time.Minute) })
		time.Sleep(30 * time.Second)
		if n, cached, took, err := look(); n != 1 || cached || took != time.Second || err != nil {
			t.Errorf("servers are slow: %d, cached %v, after %v, %v", n, cached, took, err)
		}
		time.Sleep(3 * time.Second)
		if n, cached, _, err := look(); n != 1 || !cached || err != nil {
			t.Errorf("after their answer: %d, cached %v, %v", n, cached, err)
		}
		if len(up.asked()) != 3 {
			t.Errorf("asked %d times, want 3", len(up.asked()))
		}
		if s := r.Stats(); s.Stale != 3 || s.Hits != 1 || s.Misses != 3 {
			t.Errorf("%+v", s)
		}

		// A caller that has no time takes the old one, too.
		time.Sleep(2 * time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if a, _, _, err := r.LookupA(ctx, "a.example"); len(a) != 1 || err != nil {
			t.Errorf("hasty caller: %v %v", a, err)
		}
		time.Sleep(5 * time.Second)

		// What is older than stale_for is no answer.
		up.answers(func(_ context.Context, k key) *answer { return servFail(k) })
		time.Sleep(time.Hour + 2*time.Minute)
		if n, _, _, err := look(); n != 0 || !isError(err, ErrServFail) {
			t.Errorf("too old: %d, %v", n, err)
		}
	})
}

func TestStaleIsReplacedByNothing(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(context.Context, key) *answer { return good(time.Minute) })
		if _, _, _, err := r.LookupA(t.Context(), "a.example"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		up.answers(func(context.Context, key) *answer { return &answer{ttl: time.Minute} })
		if a, _, _, err := r.LookupA(t.Context(), "a.example"); len(a) != 0 || err != nil {
			t.Errorf("the name is gone, and still %v, %v", a, err)
		}
	})
}

func TestNoStale(t *testing.T) {
	bubble(t, func(c *Config) { c.StaleFor = 0 }, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(context.Context, key) *answer { return good(time.Minute) })
		if _, _, _, err := r.LookupA(t.Context(), "a.example"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		up.answers(func(_ context.Context, k key) *answer { return servFail(k) })
		if a, _, _, err := r.LookupA(t.Context(), "a.example"); len(a) != 0 || !isError(err, ErrServFail) {
			t.Errorf("stale_for is 0, and still %v, %v", a, err)
		}
	})
}

func TestWeight(t *testing.T) {
	k := key{"a.example", dns.TypeA}
	for _, tt := range []struct {
		name string
		a    *answer
		want uint32
	}{
		{"nothing", new(answer), 1},
		{"one address", good(0), 1},
		{"a failure", servFail(k), 1},
		{"many addresses", &answer{records: records{addrs: slices.Repeat(addrs("2001:db8::1"), 100)}}, 4},
		{"a long text", &answer{records: records{texts: []string{strings.Repeat("x", 10_000)}}}, 20},
		{"many exchangers", &answer{records: records{mx: slices.Repeat([]MX{{10, "mx.example"}}, 100)}}, 3},
	} {
		data, _ := pack(nil, tt.a)
		if got := weight(k, &entry{data: string(data)}); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	cfg := testConfig("192.0.2.53")
	cfg.CacheSize = 1000
	cfg.StaleFor = conf.Duration(time.Hour)
	r := start(t, cfg)
	text := strings.Repeat("x", 5000) // 11 units
	for i := range 3000 {
		r.remember(key{"n" + strings.Repeat("a", i%40) + ".example", uint16(i)}, &answer{records: records{texts: []string{text}}, ttl: time.Minute})
	}
	r.cache.CleanUp()
	if n := r.Stats().Entries; n > 1000/11+1 || n == 0 {
		t.Errorf("%d answers of 5000 octets in a cache of 1000", n)
	}
}

// What the cache gives back is what was said.
func FuzzPacked(f *testing.F) {
	f.Add("a.example", uint16(dns.TypeA), uint16(1), "\x7f\x00\x00\x02", "")
	f.Add("a.example", uint16(dns.TypeMX), uint16(2), "mx.example", strings.Repeat("x", 300))
	f.Add("", uint16(dns.TypeTXT), uint16(3), "", "\x80")
	f.Add("a.example", uint16(dns.TypeTXT), uint16(0), "", "") // nothing
	f.Add("a.example", uint16(dns.TypeMX), uint16(0xffff), "x", "192.0.2.53:53: SERVFAIL")
	f.Add("a.example", uint16(dns.TypeAAAA), uint16(0), "0123456789abcdef0123456789abcdef", "")
	f.Fuzz(func(t *testing.T, name string, qtype, n uint16, one, two string) {
		k := key{name, qtype}
		a := new(answer)
		switch {
		case n == 0xffff:
			a = failed(k, kinds[len(one)%len(kinds)], two)
		case qtype == dns.TypeA:
			for ; len(one) >= 4; one = one[4:] {
				a.addrs = append(a.addrs, netip.AddrFrom4([4]byte([]byte(one[:4]))))
			}
		case qtype == dns.TypeAAAA:
			for ; len(one) >= 16; one = one[16:] {
				a.addrs = append(a.addrs, netip.AddrFrom16([16]byte([]byte(one[:16]))))
			}
		case qtype == dns.TypeMX:
			a.mx = slices.Repeat([]MX{{n, one}, {n + 1, two}}, int(n%200))
		default:
			a.texts = slices.Repeat([]string{one, two}, int(n%200))
		}
		packed, ok := pack([]byte(name), a)
		if !ok || string(packed[:len(name)]) != name {
			t.Fatal("not packed")
		}
		e := &entry{data: string(packed[len(name):])}
		f := e.failure(k)
		if (f != nil) != (a.failure != nil) || e.failed() != (f != nil) || f != nil && *f != *a.failure {
			t.Fatalf("failure %v, want %v", f, a.failure)
		}
		got := e.records(qtype)
		if !slices.Equal(got.addrs, a.addrs) || !slices.Equal(got.texts, a.texts) || !slices.Equal(got.mx, a.mx) {
			t.Fatalf("%+v, want %+v", got, a.records)
		}
	})
}

// A failure that would say something of this process is not remembered.
func TestWhatIsNotRemembered(t *testing.T) {
	r := start(t, testConfig("192.0.2.53"))
	k := key{"a.example", dns.TypeA}
	r.remember(k, failed(k, ErrClosed, ""))
	r.remember(k, failed(k, context.Canceled, ""))
	if _, ok := r.cache.GetIfPresent(k); ok {
		t.Error("it is remembered")
	}
}
