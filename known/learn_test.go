package known_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/adminapi"
	"postern/known"
	"postern/policy"
	"postern/store"
	"postern/store/mem"
)

// A request never waits for the store: what finds no room in the queue is
// counted, and the next message teaches it.
func TestQueueIsBounded(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 4096 + 10 {
		w.evaluate(w.out("ann@example.org", fmt.Sprintf("b%d@gmail.com", i)))
	}
	if st := w.check.Status(); st.Waiting != 4096 {
		t.Errorf("%+v", st)
	}
	w.passedOver("queue", 10)
	w.settle()
	if n := w.check.Status().Correspondents; n != 4096 {
		t.Errorf("%d correspondents", n)
	}
	w.writes("ann@example.org", "b4100@gmail.com")
	if w.vouch(w.in("b4100@gmail.com", "ann@example.org")) == "" {
		t.Error("the next message does not teach")
	}
}

// passedOver compares a counter.
func (w *world) passedOver(why string, n int) {
	w.t.Helper()
	want := "# HELP postern_known_passed_over_total Outgoing mail that taught nothing, by why.\n# TYPE postern_known_passed_over_total counter\n"
	for _, name := range []string{"automatic", "full", "queue", "store"} {
		count := 0
		if name == why {
			count = n
		}
		want += fmt.Sprintf("postern_known_passed_over_total{why=%q} %d\n", name, count)
	}
	if err := testutil.GatherAndCompare(w.reg, strings.NewReader(want), "postern_known_passed_over_total"); err != nil {
		w.t.Error(err)
	}
}

var errBroken = errors.New("no store")

// broken is a store of which calls fail while it is.
type broken struct {
	known.Store
	mu     sync.Mutex
	is     bool
	others bool // somebody else changes each value in between
	swaps  int
}

func (b *broken) Load(ctx context.Context, key string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.is {
		return "", errBroken
	}
	return b.Store.Load(ctx, key)
}

func (b *broken) Swap(ctx context.Context, key, old, next string, expires time.Time) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.swaps++; b.others {
		return false, nil
	}
	return b.Store.Swap(ctx, key, old, next, expires)
}

func brokenWorld(t *testing.T, log *zap.Logger) (*world, *broken) {
	t.Helper()
	w := newWorld(t, nil)
	b := &broken{Store: store.SpaceOf(w.store, "known")}
	c, err := known.New(config(t, nil), known.Options{
		Stores:     known.Stores{Correspondents: b, Domains: store.SpaceOf(w.store, "known-domain"), Expected: store.SpaceOf(w.store, "expect")},
		Delimiters: "+", Log: log, Metrics: prometheus.NewRegistry(),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.check.Stop()
	w.check = c
	return w, b
}

// A store that does not answer vouches for nobody and says so; expectations
// that it could tell hold.
func TestStoreFails(t *testing.T) {
	w, b := brokenWorld(t, zap.NewNop())
	if _, err := w.check.Expect(t.Context(), "ann@example.org", "", time.Hour, w.now); err != nil {
		t.Fatal(err)
	}
	b.is = true
	if why, _, err := w.check.Vouch(t.Context(), w.in("x@bot.example", "eve@example.org")); why != "" || !errors.Is(err, errBroken) {
		t.Errorf("%q, %v", why, err)
	}
	if why, _, err := w.check.Vouch(t.Context(), w.in("x@bot.example", "ann@example.org")); why != "expected" || err != nil {
		t.Errorf("%q, %v", why, err)
	}
	if _, err := w.check.Learn(t.Context(), []known.Written{{User: "ann@example.org", To: "b@gmail.com", At: w.now}}, w.now); !errors.Is(err, errBroken) {
		t.Errorf("%v", err)
	}
	b.is, b.others = false, true
	if _, err := w.check.Learn(t.Context(), []known.Written{{User: "ann@example.org", To: "b@gmail.com", At: w.now}}, w.now); err == nil || b.swaps != 8 {
		t.Errorf("%v after %d attempts", err, b.swaps)
	}
}

// That there is no room is said once, not for each message.
func TestNoRoomIsSaidOnce(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	s := mem.New(100_000, 1000)
	t.Cleanup(func() { _ = s.Close(context.Background()) }) // nothing is pending
	c, err := known.New(config(t, func(c *known.Config) { c.MaxEntries = 1000 }), known.Options{
		Stores: known.Stores{
			Correspondents: full{store.SpaceOf(s, "known")}, Domains: store.SpaceOf(s, "known-domain"), Expected: store.SpaceOf(s, "expect"),
		}, Log: zap.New(core), Metrics: prometheus.NewRegistry(),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, check: c, now: time.Now()}
	for i := range 5 {
		w.evaluate(w.out("ann@example.org", fmt.Sprintf("b%d@gmail.com", i)))
	}
	c.Start()
	c.Stop()
	if n := logs.FilterMessageSnippet("no new correspondents").Len(); n != 1 || logs.Len() != 1 {
		t.Errorf("%v", logs.All())
	}
}

// full says that there is no room.
type full struct{ known.Store }

func (full) Count() int { return 1000 }

// Two that learn at the same time lose nothing.
func TestLearningAtOnce(t *testing.T) {
	stores(t, func(t *testing.T, open func() store.Store, remote bool) {
		w := worldOver(t, open(), remote, nil)
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				_, err := w.check.Learn(t.Context(), []known.Written{{User: fmt.Sprintf("u%d@example.org", i%3), To: fmt.Sprintf("p%d@partner.example", i), At: w.now}}, w.now)
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if w.vouch(w.in("x@partner.example", "new@example.org", spf("pass"))) != "correspondent-domain" {
			t.Error("three users have written there")
		}
	})
}

// The administrator's calls at both ends.
func TestCalls(t *testing.T) {
	w := newWorld(t, nil)
	mux := http.NewServeMux()
	for pattern, handler := range w.check.Calls() {
		mux.Handle(pattern, handler)
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	api := known.Admin{Client: adminapi.NewClient("tcp:"+srv.Listener.Addr().String(), "")}
	ctx := t.Context()
	now := time.Now()
	taken, err := api.Learn(ctx, []known.Written{
		{User: "Ann@example.org", To: "Bob@example.net", At: now.Add(time.Hour)}, {User: "eve@example.org", To: "carl@example.com", At: now.Add(-24 * time.Hour)}, {User: "", To: "x@y.example", At: now},
	})
	if err != nil || taken != (known.Taken{Added: 2, PassedOver: 1}) {
		t.Errorf("%+v, %v", taken, err)
	}
	if _, err := api.Learn(ctx, make([]known.Written, known.MaxBatch+1)); err == nil {
		t.Error("too many were taken")
	}
	list := func(f known.Filter) (out []string) {
		t.Helper()
		if err := api.List(ctx, f, func(e known.Entry) bool {
			if e.Last.After(time.Now()) {
				t.Errorf("%+v: written in the time to come", e)
			}
			out = append(out, e.User+">"+e.With)
			return true
		}); err != nil {
			t.Error(err)
		}
		return out
	}
	for _, tt := range []struct {
		f known.Filter
		n int
	}{
		{known.Filter{}, 4}, {known.Filter{Limit: 3}, 3}, {known.Filter{Kind: known.KindDomain}, 2}, {known.Filter{User: "ANN@"}, 1}, {known.Filter{With: "example.net"}, 2},
		{known.Filter{User: "ann", With: "carl"}, 0}, {known.Filter{Kind: known.KindCorrespondent, Limit: 1}, 1},
	} {
		if got := list(tt.f); len(got) != tt.n {
			t.Errorf("%+v: %q", tt.f, got)
		}
	}
	if err := api.List(ctx, known.Filter{Kind: "x"}, func(known.Entry) bool { return true }); err == nil {
		t.Error("an unknown kind")
	}
	if _, err := api.Forget(ctx, known.Filter{}, false); err == nil {
		t.Error("everything was forgotten unasked")
	}
	if n, err := api.Forget(ctx, known.Filter{Kind: known.KindCorrespondent, User: "ann"}, false); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if s, err := api.Stats(ctx); err != nil || s.Correspondents != 1 || s.Domains != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	if n, err := api.Forget(ctx, known.Filter{}, true); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if s, err := api.Settings(ctx); err != nil || !s.Authenticated || s.Keep.D() != keep {
		t.Errorf("%+v, %v", s, err)
	}
	e, err := api.Expect(ctx, "ann@example.org", "shop.example", time.Hour)
	if err != nil || e.Until.Before(now.Add(59*time.Minute)) {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := api.Expect(ctx, "ann", "", time.Hour); err == nil {
		t.Error("no address")
	}
	if all, err := api.Expected(ctx); err != nil || len(all) != 1 || all[0] != e {
		t.Errorf("%v, %v", all, err)
	}
	if n, err := api.Cancel(ctx, "ann@example.org", "shop.example"); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := api.Cancel(ctx, "ann@example.org", ""); err == nil {
		t.Error("nothing was cancelled")
	}
}

// What a request costs: a stranger's, one of a busy correspondence, and the
// question of a greylist.
func BenchmarkEvaluate(b *testing.B) {
	s := mem.New(100_000, 1000)
	b.Cleanup(func() { _ = s.Close(context.Background()) }) // nothing is pending
	c, err := known.New(config(b, nil), known.Options{
		Stores:     known.Stores{Correspondents: store.SpaceOf(s, "known"), Domains: store.SpaceOf(s, "known-domain"), Expected: store.SpaceOf(s, "expect")},
		Delimiters: "+", Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
	}, nil)
	if err != nil {
		b.Fatal(err)
	}
	w := &world{now: time.Now()}
	user := w.out("ann@example.org", "bob@example.net")
	if _, err := c.Evaluate(b.Context(), user); err != nil {
		b.Fatal(err)
	}
	c.Start()
	c.Stop()
	stranger := w.in("bob@example.net", "ann@example.org", spf("pass"))
	for name, f := range map[string]func() error{
		"stranger":  func() error { _, err := c.Evaluate(b.Context(), stranger); return err },
		"user":      func() error { _, err := c.Evaluate(b.Context(), user); return err },
		"vouch":     func() error { _, _, err := c.Vouch(b.Context(), stranger); return err },
		"vouch-not": func() error { _, _, err := c.Vouch(b.Context(), w.in("x@bot.example", "ann@example.org")); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

var _ policy.Check = (*known.Check)(nil)
