package redis

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/conf"
	"postern/internal/redistest"
	"postern/store"
	"postern/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(addr string) store.RedisConfig {
	c := store.DefaultConfig().Redis
	c.Addrs = []string{addr}
	c.Timeout = conf.Duration(10 * time.Second) // a busy machine is no fault
	return c
}

// whole is the section that holds these settings.
func whole(cfg store.RedisConfig) store.Config {
	c := store.DefaultConfig()
	c.Redis, c.MaxWaiting = cfg, storetest.MaxWaiting
	return c
}

func open(t testing.TB, cfg store.RedisConfig, password string) *Store {
	t.Helper()
	s, err := Open(whole(cfg), password, "", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) }) // closing twice is fine
	return s
}

func flush(t testing.TB, s *Store) {
	t.Helper()
	if err := s.client.FlushDB(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	server := redistest.Start(t)
	for _, auto := range []bool{true, false} {
		t.Run(fmt.Sprint("auto_pipeline=", auto), func(t *testing.T) {
			cfg := config(server.Addr())
			cfg.AutoPipeline = auto
			storetest.Run(t, func(t testing.TB) store.Store {
				s := open(t, cfg, "")
				flush(t, s)
				return s
			})
		})
	}
}

func contact(i int) *greylist.Contact {
	return &greylist.Contact{
		Match: "net:192.0.2.0/24", Sender: fmt.Sprintf("a%d@example.org", i), Recipient: "b@example.com", Time: time.Now(), Rule: storetest.Rule,
	}
}

// What one correspondence needs is under one hash tag, another is elsewhere.
func TestKeysExpireAndAreSpread(t *testing.T) {
	server := redistest.Start(t)
	cfg := config(server.Addr())
	cfg.Prefix = "a[b]*"
	s := open(t, cfg, "")
	for i := range 100 {
		if _, err := s.TouchGreylist(t.Context(), contact(i)); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := s.client.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	tags, waiting := map[string]bool{}, 0
	for _, k := range keys {
		_, rest, ok := strings.Cut(k, "a[b]*:2:{")
		tag, rest, tagged := strings.Cut(rest, "}:")
		if !ok || !tagged {
			t.Fatalf("key %q", k)
		}
		tags[tag] = true
		if rest[0] != waitingKey {
			continue
		}
		waiting++
		ttl, err := s.client.PTTL(t.Context(), k).Result()
		if want := storetest.Rule.Window + slack; err != nil || ttl > want || ttl < want-time.Minute {
			t.Errorf("%q lives for %v (%v)", k, ttl, err)
		}
	}
	if waiting != 100 || len(tags) < parts/2 {
		t.Errorf("%d wait, under %d tags", waiting, len(tags))
	}
	n := 0
	if err := s.ListGreylist(t.Context(), greylist.Filter{}, time.Now(), func(greylist.Entry) bool { n++; return true }); err != nil || n != 100 {
		t.Errorf("%d entries listed under a prefix with pattern signs: %v", n, err)
	}
}

// A server short of memory may drop any key: the room goes on without.
func TestRoomWithoutSomeOfItsKeys(t *testing.T) {
	server := redistest.Start(t)
	cfg := whole(config(server.Addr()))
	cfg.MaxWaiting = 10 * parts
	for _, lost := range []string{"c00002", "#length", "#age", "#tried", ""} {
		s, err := Open(cfg, "", "", zap.NewNop(), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close(context.Background()) }) // closing twice is fine
		flush(t, s)
		touch := func(from, to int) {
			for i := from; i < to; i++ {
				c := contact(i)
				c.Addr = netip.MustParseAddr([]string{"192.0.2.1", "198.51.100.1"}[i%2])
				if out, err := s.TouchGreylist(t.Context(), c); err != nil || out.State != greylist.FirstContact {
					t.Fatalf("without %q: contact %d: %+v, %v", lost, i, out, err)
				}
			}
		}
		touch(0, 2000)
		keys, err := s.client.Keys(t.Context(), "*:"+string(roomKey)+lost).Result()
		if err != nil || len(keys) == 0 && lost != "#tried" {
			t.Fatalf("no key of the room ends in %q: %v", lost, err)
		}
		if len(keys) > 0 {
			s.client.Del(t.Context(), keys...)
		}
		touch(2000, 6000)
		waiting := 0
		if err := s.ListGreylist(t.Context(), greylist.Filter{}, time.Now(), func(greylist.Entry) bool { waiting++; return true }); err != nil {
			t.Error(err)
		}
		// What only a lost key knew of stays until its time is over.
		if waiting > 3*cfg.MaxWaiting {
			t.Errorf("without %q: %d wait, at most %d have room", lost, waiting, cfg.MaxWaiting)
		}
	}
}

// Keys of version 1: who has passed is known, and the rest is not looked at.
func TestKeysOfVersion1(t *testing.T) {
	server := redistest.Start(t)
	writer := open(t, config(server.Addr()), "")
	old := func(kind byte, value string, names ...string) {
		t.Helper()
		key := string(store.AppendKey([]byte("postern:1:{g}:"), kind, names...))
		if err := writer.client.Set(t.Context(), key, value, time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	ms := now.Add(-time.Hour).UnixMilli()
	known, waits := contact(1), contact(2)
	old(store.TripletKey, fmt.Sprintf("%d:%d:2:7", ms, ms), known.Match, known.Sender, known.Recipient)
	old(store.TripletKey, fmt.Sprintf("%d:%d:1:0", ms, ms), waits.Match, waits.Sender, waits.Recipient)
	old(store.OldClientKey, fmt.Sprintf("%d:%d:9", ms, ms), known.Match)
	s := open(t, config(server.Addr()), "") // it looks for them when it is opened
	for _, dry := range []bool{true, false, false} {
		known.Time, known.DryRun = now, dry
		out, err := s.TouchGreylist(t.Context(), known)
		if err != nil || out.State != greylist.KnownTriplet || out.Attempts != 2 || out.First.UnixMilli() != ms {
			t.Errorf("who has passed: %+v, %v", out, err)
		}
	}
	if out, err := s.TouchGreylist(t.Context(), waits); err != nil || out.State != greylist.FirstContact {
		t.Errorf("who waited: %+v, %v", out, err)
	}
	known.Time = now.Add(2 * storetest.Rule.Keep)
	if out, err := s.TouchGreylist(t.Context(), known); err != nil || out.State != greylist.FirstContact {
		t.Errorf("long after: %+v, %v", out, err)
	}
	// Once they are gone nobody looks for them any more.
	flush(t, s)
	s.lookForOld(t.Context())
	if s.old.Load() {
		t.Error("still looked for")
	}
}

func TestTheScriptIsLoadedAgain(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, config(server.Addr()), "")
	for i := range 3 {
		out, err := s.TouchGreylist(t.Context(), contact(1))
		if err != nil || out.Attempts != i+1 {
			t.Errorf("%+v %v", out, err)
		}
		if err := s.client.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneContactIsOneRoundTrip(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, config(server.Addr()), "")
	calls := func() int {
		info, err := s.client.Info(t.Context(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(info) {
			if _, err := fmt.Sscanf(line, "cmdstat_evalsha:calls=%d", &n); err == nil {
				return n
			}
		}
		return 0
	}
	if _, err := s.TouchGreylist(t.Context(), contact(0)); err != nil {
		t.Fatal(err)
	}
	before := calls()
	for i := range 10 {
		if _, err := s.TouchGreylist(t.Context(), contact(i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := calls() - before; n != 10 {
		t.Errorf("10 contacts took %d calls of the script", n)
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestServerThatHangsOrIsGone(t *testing.T) {
	server := redistest.Start(t)
	for _, auto := range []bool{true, false} {
		cfg := config(server.Addr())
		cfg.AutoPipeline = auto
		cfg.Timeout = conf.Duration(100 * time.Millisecond)
		cfg.BreakerPause = conf.Duration(200 * time.Millisecond)
		s := open(t, cfg, "")
		for _, fault := range []struct {
			name       string
			begin, end func()
		}{{"hangs", server.Hang, server.Continue}, {"is gone", server.Stop, server.Restart}} {
			eventually(t, "a healthy store", func() bool {
				_, err := s.TouchGreylist(t.Context(), contact(1))
				return err == nil && s.Status().Healthy
			})
			fault.begin()
			start := time.Now()
			for range 20 {
				if _, err := s.TouchGreylist(t.Context(), contact(2)); !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("server %s: %v", fault.name, err)
				}
			}
			// 5 failures of 0.1 s and then the breaker; without it or with the
			// library's own limits it would be minutes.
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("server %s: 20 contacts took %v", fault.name, took)
			}
			st := s.Status()
			if st.Healthy || st.LastError == "" || st.ErrorAt.IsZero() || st.Breaker == "closed" {
				t.Errorf("server %s: status %+v", fault.name, st)
			}
			fault.end()
			eventually(t, "the breaker closes without traffic", func() bool { return s.Status().Healthy })
		}
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func TestCancelledCallsDoNotOpenTheBreaker(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, config(server.Addr()), "")
	eventually(t, "a healthy store", func() bool { return s.Ping(t.Context()) == nil })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		if _, err := s.TouchGreylist(ctx, contact(1)); err == nil {
			t.Error("a cancelled call has been made")
		}
	}
	if st := s.Status(); !st.Healthy || st.Breaker != "closed" {
		t.Errorf("status %+v", st)
	}
}

func TestOpenDoesNotWaitForTheServer(t *testing.T) {
	server := redistest.Start(t)
	server.Stop()
	s := open(t, config(server.Addr()), "")
	if _, err := s.TouchGreylist(t.Context(), contact(1)); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("without a server: %v", err)
	}
	server.Restart()
	eventually(t, "the server is used once it is there", func() bool {
		_, err := s.TouchGreylist(t.Context(), contact(1))
		return err == nil
	})
}

func TestPassword(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "right-secret")
	s := open(t, config(server.Addr()), "right-secret")
	if _, err := s.TouchGreylist(t.Context(), contact(1)); err != nil {
		t.Error(err)
	}
	s = open(t, config(server.Addr()), "wrong-secret")
	_, err := s.TouchGreylist(t.Context(), contact(1))
	if !errors.Is(err, store.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("with the wrong password: %v", err)
	}
	if st := s.Status(); strings.Contains(fmt.Sprintf("%+v", st), "secret") {
		t.Errorf("status %+v", st)
	}
}

func TestBadSettings(t *testing.T) {
	cfg := config("127.0.0.1:1")
	cfg.TLS, cfg.CAFile = true, "/nonexistent"
	if _, err := Open(whole(cfg), "", "", zap.NewNop(), prometheus.NewRegistry()); err == nil {
		t.Error("a missing CA file")
	}
	cfg.Addrs = []string{"a:1", "b:2"}
	if _, err := Open(whole(cfg), "", "", zap.NewNop(), prometheus.NewRegistry()); err == nil {
		t.Error("two servers")
	}
}

func BenchmarkTouch50Callers(b *testing.B) {
	server := redistest.Start(b)
	s := open(b, config(server.Addr()), "")
	if _, err := s.TouchGreylist(b.Context(), contact(0)); err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	next := make(chan int, 1024)
	b.ReportAllocs()
	b.ResetTimer()
	for range 50 {
		wg.Go(func() {
			for i := range next {
				if _, err := s.TouchGreylist(context.Background(), contact(i%1000)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range b.N {
		next <- i
	}
	close(next)
	wg.Wait()
	b.StopTimer()
	reportScript(b, s)
}

// New contacts, each from a network of its own or all from one, while there is
// room and when each must push another out.
func BenchmarkFirstContacts(b *testing.B) {
	server := redistest.Start(b)
	for _, bb := range []struct {
		name           string
		networks, most int
	}{
		{"of one network", 1, 1 << 30},
		{"of many networks", 1 << 16, 1 << 30},
		{"of one network, full", 1, 6400},
		{"of many networks, full", 1 << 16, 6400},
	} {
		b.Run(bb.name, func(b *testing.B) {
			cfg := whole(config(server.Addr()))
			cfg.MaxWaiting = bb.most
			s, err := Open(cfg, "", "", zap.NewNop(), prometheus.NewRegistry())
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = s.Close(context.Background()) }() // nothing is pending
			flush(b, s)
			touch := func(i int) {
				c := contact(i)
				n := i % bb.networks
				c.Addr = netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 1})
				if _, err := s.TouchGreylist(context.Background(), c); err != nil {
					b.Fatal(err)
				}
			}
			i := 0
			for ; i < 20_000; i++ {
				touch(i)
			}
			s.client.ConfigResetStat(b.Context())
			b.ResetTimer()
			for range b.N {
				touch(i)
				i++
			}
			b.StopTimer()
			reportScript(b, s)
		})
	}
}

// reportScript says how long the server was at a script.
func reportScript(b *testing.B, s *Store) {
	info, _ := s.client.Info(b.Context(), "commandstats").Result()
	for line := range strings.Lines(info) {
		var calls, total int
		var each float64
		if n, _ := fmt.Sscanf(line, "cmdstat_evalsha:calls=%d,usec=%d,usec_per_call=%f", &calls, &total, &each); n == 3 {
			b.ReportMetric(each, "µs-in-redis/op")
		}
	}
}
