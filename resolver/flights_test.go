package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestCallersShareOneQuery(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(context.Context, key) *answer { time.Sleep(time.Second); return good(time.Minute) })
		first, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() {
			begin := time.Now()
			_, _, _, err := r.LookupA(first, "a.example")
			if took := time.Since(begin); !isError(err, context.DeadlineExceeded) || !isError(err, ErrTimeout) || took != 100*time.Millisecond {
				t.Errorf("the first caller got %v after %v", err, took)
			}
		})
		synctest.Wait()
		for i := range 50 {
			all.Go(func() {
				name := []string{"a.example", "A.Example."}[i%2]
				if a, _, _, err := r.LookupA(t.Context(), name); err != nil || len(a) != 1 {
					t.Errorf("got %v, %v", a, err)
				}
			})
		}
		all.Wait()
		if len(up.asked()) != 1 {
			t.Errorf("asked %d times", len(up.asked()))
		}
	})
}

// TestAskedAnew: the cache is passed over, and takes the answer; a failure
// leaves what it holds.
func TestAskedAnew(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *Resolver, up *upstream) {
		list := func(addr string) {
			up.answers(func(context.Context, key) *answer {
				time.Sleep(time.Second)
				return &answer{records: records{addrs: addrs(addr)}, ttl: time.Hour}
			})
		}
		want := func(what, addr string, cached bool, look func(context.Context, string) ([]netip.Addr, time.Duration, bool, error), asked int) {
			t.Helper()
			a, ttl, fromCache, err := look(t.Context(), "a.example")
			if err != nil || len(a) != 1 || a[0].String() != addr || fromCache != cached || ttl <= 0 || len(up.asked()) != asked {
				t.Errorf("%s: %v for %v, cached %v, %v; asked %d times, want %s, cached %v, %d", what, a, ttl, fromCache, err, len(up.asked()), addr, cached, asked)
			}
		}
		list("192.0.2.1")
		want("first", "192.0.2.1", false, r.LookupA, 1)
		list("192.0.2.2")
		want("from the cache", "192.0.2.1", true, r.LookupA, 1)
		want("anew", "192.0.2.2", false, r.LookupAnewA, 2)
		want("from the cache, then", "192.0.2.2", true, r.LookupA, 2)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { _, _, _, _ = r.LookupAnewA(t.Context(), "a.example") })
		}
		all.Wait()
		if n := len(up.asked()); n != 3 {
			t.Errorf("20 at once asked %d times", n-2)
		}
		up.answers(func(_ context.Context, k key) *answer { return servFail(k) })
		if a, _, _, err := r.LookupAnewA(t.Context(), "a.example"); !isError(err, ErrServFail) {
			t.Errorf("a failure: %v %v", a, err)
		}
		want("after a failure", "192.0.2.2", true, r.LookupA, 4)
		if _, _, _, err := r.LookupAnewA(t.Context(), "a..example"); !isError(err, ErrInvalidName) {
			t.Errorf("no name: %v", err)
		}
	})
}

func TestTypesDoNotShare(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(context.Context, key) *answer { time.Sleep(time.Second); return good(time.Minute) })
		var all sync.WaitGroup
		all.Go(func() { _, _, _, _ = r.LookupA(t.Context(), "a.example") })
		all.Go(func() { _, _, _, _ = r.LookupAAAA(t.Context(), "a.example") })
		all.Wait()
		if len(up.asked()) != 2 {
			t.Errorf("asked %d times", len(up.asked()))
		}
	})
}

func TestAnswerOutlivesItsCallers(t *testing.T) {
	bubble(t, nil, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(context.Context, key) *answer { time.Sleep(time.Second); return good(time.Minute) })
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Millisecond); cancel() }()
		if _, _, _, err := r.LookupA(ctx, "a.example"); !isError(err, context.Canceled) || isError(err, ErrTimeout) || !isError(err, ErrTemporary) {
			t.Errorf("got %v", err)
		}
		time.Sleep(2 * time.Second)
		if a, _, cached, err := r.LookupA(ctx, "a.example"); !cached || err != nil || len(a) != 1 {
			t.Errorf("later: %v, cached %v, %v", a, cached, err)
		}
		// A caller whose time is over does not begin anything.
		if _, _, _, err := r.LookupA(ctx, "b.example"); !isError(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if len(up.asked()) != 1 {
			t.Errorf("asked for %v", up.asked())
		}
	})
}

func TestQueue(t *testing.T) {
	bubble(t, func(c *Config) { c.MaxInFlight = 2 }, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(context.Context, key) *answer { time.Sleep(time.Second); return good(time.Minute) })
		look := func(i int, patience, want time.Duration, ok bool) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			begin := time.Now()
			_, _, _, err := r.LookupA(ctx, fmt.Sprintf("n%d.example", i))
			if took := time.Since(begin); took != want || (err == nil) != ok {
				t.Errorf("look-up %d: %v after %v, want %v", i, err, took, want)
			}
		}
		var all sync.WaitGroup
		for i, tt := range []struct {
			patience, want time.Duration
			ok             bool
		}{
			{time.Minute, time.Second, true},
			{time.Minute, time.Second, true},
			{time.Minute, 2 * time.Second, true},                    // queued
			{500 * time.Millisecond, 500 * time.Millisecond, false}, // gives up while queued: never asked for
			{time.Minute, 2 * time.Second, true},
			{2500 * time.Millisecond, 2500 * time.Millisecond, false}, // runs for half a second
			{time.Minute, 3 * time.Second, true},
		} {
			all.Go(func() { look(i, tt.patience, tt.want, tt.ok) })
			synctest.Wait()
		}
		if s := r.Stats(); s.InFlight != 2 || s.Queued != 5 {
			t.Errorf("%+v", s)
		}
		all.Wait()
		asked := up.asked()
		for i := 0; i+1 < len(asked); i += 2 { // two begin at a time, in any order
			slices.Sort(asked[i : i+2])
		}
		if want := []string{"n0.example", "n1.example", "n2.example", "n4.example", "n5.example", "n6.example"}; !slices.Equal(asked, want) {
			t.Errorf("asked for %v, want %v", asked, want)
		}
		if s := r.Stats(); s.InFlight != 0 || s.Queued != 0 {
			t.Errorf("at the end: %+v", s)
		}
	})
}

func TestQueuedLookupStaysForTheOthers(t *testing.T) {
	bubble(t, func(c *Config) { c.MaxInFlight = 1 }, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(context.Context, key) *answer { time.Sleep(time.Second); return good(time.Minute) })
		var all sync.WaitGroup
		all.Go(func() { _, _, _, _ = r.LookupA(t.Context(), "busy.example") })
		synctest.Wait()
		hasty, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		all.Go(func() {
			if _, _, _, err := r.LookupA(hasty, "a.example"); err == nil {
				t.Error("the hasty one got an answer")
			}
		})
		synctest.Wait()
		all.Go(func() {
			if _, _, _, err := r.LookupA(t.Context(), "a.example"); err != nil {
				t.Errorf("the patient one: %v", err)
			}
		})
		all.Wait()
	})
}

func TestFullQueue(t *testing.T) {
	bubble(t, func(c *Config) { c.MaxInFlight = 1 }, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(context.Context, key) *answer { time.Sleep(time.Second); return good(time.Minute) })
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range 1 + queuePerFlight {
			all.Go(func() { _, _, _, _ = r.LookupA(ctx, fmt.Sprintf("n%d.example", i)) })
		}
		synctest.Wait()
		begin := time.Now()
		_, _, _, err := r.LookupA(ctx, "more.example")
		if !isError(err, ErrTimeout) || !isError(err, ErrTemporary) || time.Since(begin) != 0 {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
		// What is in the queue can still be joined.
		joined := make(chan error)
		go func() {
			_, _, _, err := r.LookupA(t.Context(), "n5.example")
			joined <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-joined; err != nil {
			t.Errorf("joined: %v", err)
		}
		all.Wait()
	})
}

func TestCloseFailsWhatWaits(t *testing.T) {
	bubble(t, func(c *Config) { c.MaxInFlight = 1 }, func(t *testing.T, r *Resolver, up *upstream) {
		up.answers(func(ctx context.Context, k key) *answer { <-ctx.Done(); return failed(k, ErrClosed, "") })
		var all sync.WaitGroup
		for i := range 5 {
			all.Go(func() {
				if _, _, _, err := r.LookupA(t.Context(), fmt.Sprintf("n%d.example", i)); !isError(err, ErrClosed) {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		synctest.Wait()
		r.Close()
		all.Wait()
	})
}

func TestPanicIsAFailure(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	r, err := newResolver(testConfig("192.0.2.53"), zap.New(core), prometheus.NewRegistry(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.upstream = func(context.Context, key) *answer { panic("test") }
	if _, _, _, err := r.LookupA(t.Context(), "a.example"); !isError(err, ErrServFail) {
		t.Errorf("got %v", err)
	}
	if n := logs.FilterMessage("look-up panicked").Len(); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
}

// TestNoTwoAtOnce has many callers and a cache that forgets at once.
func TestNoTwoAtOnce(t *testing.T) {
	cfg := testConfig("192.0.2.53")
	cfg.MinTTL = 0
	r := start(t, cfg)
	var mu sync.Mutex
	running := map[key]bool{}
	r.upstream = func(_ context.Context, k key) *answer {
		mu.Lock()
		if running[k] {
			t.Error("two at once")
		}
		running[k] = true
		mu.Unlock()
		runtime.Gosched()
		mu.Lock()
		delete(running, k)
		mu.Unlock()
		return good(0)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 500 {
				if a, _, _, err := r.LookupA(t.Context(), fmt.Sprintf("n%d.example", (i*j)%3)); err != nil || len(a) != 1 {
					t.Error(a, err)
				}
			}
		})
	}
	all.Wait()
}
