package near

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/meter"
	"postern/store"
	"postern/store/mem"
	"postern/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shared is a store that can be away, and counts contacts.
type shared struct {
	store.Store
	off     atomic.Bool
	touches atomic.Int64
}

func (s *shared) err() error {
	if s.off.Load() {
		return fmt.Errorf("%w: switched off", store.ErrUnavailable)
	}
	return nil
}

func (s *shared) Ping(context.Context) error { return s.err() }

func (s *shared) TouchGreylist(ctx context.Context, c *greylist.Contact) (greylist.Outcome, error) {
	if err := s.err(); err != nil {
		return greylist.Outcome{}, err
	}
	s.touches.Add(1)
	return s.Store.TouchGreylist(ctx, c)
}

func (s *shared) MergeGreylist(ctx context.Context, e []greylist.Entry, r *greylist.Rule, now time.Time) (greylist.Merged, error) {
	if err := s.err(); err != nil {
		return greylist.Merged{}, err
	}
	return s.Store.MergeGreylist(ctx, e, r, now)
}

func (s *shared) ForgetGreylist(ctx context.Context, f greylist.Filter) (int, error) {
	if err := s.err(); err != nil {
		return 0, err
	}
	return s.Store.ForgetGreylist(ctx, f)
}

func (s *shared) LoadValue(ctx context.Context, space, key string) (string, error) {
	if err := s.err(); err != nil {
		return "", err
	}
	return s.Store.LoadValue(ctx, space, key)
}

func (s *shared) SwapValue(ctx context.Context, space, key, old, next string, expires time.Time) (bool, error) {
	if err := s.err(); err != nil {
		return false, err
	}
	return s.Store.SwapValue(ctx, space, key, old, next, expires)
}

func (s *shared) TakeMeters(ctx context.Context, now time.Time, takes []meter.Take, peek bool) ([]meter.Level, bool, error) {
	if err := s.err(); err != nil {
		return nil, false, err
	}
	return s.Store.TakeMeters(ctx, now, takes, peek)
}

// unclosed is a store that others still need.
type unclosed struct{ store.Store }

func (unclosed) Close(context.Context) error { return nil }

func newShared(t testing.TB) *shared {
	m := mem.New(1_000_000, storetest.MaxWaiting)
	t.Cleanup(func() { _ = m.Close(context.Background()) })
	return &shared{Store: unclosed{m}}
}

func node(t testing.TB, far *shared, cache time.Duration) *Store {
	t.Helper()
	s, err := New(Options{
		Far: far, Local: mem.New(1_000_000, storetest.MaxWaiting), Cache: cache, MaxCached: 10_000,
		Rule: func() greylist.Rule { return storetest.Rule }, Log: zap.NewNop(), Registry: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) }) // closing twice is fine
	return s
}

// Without the memory it is a store as any other.
func TestConformance(t *testing.T) {
	storetest.Run(t, func(t testing.TB) store.Store { return node(t, newShared(t), 0) })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: ", what)
		}
	}
}

func touch(t *testing.T, s store.Store, c greylist.Contact) greylist.Outcome {
	t.Helper()
	if c.Rule == (greylist.Rule{}) {
		c.Rule = storetest.Rule
	}
	out, err := s.TouchGreylist(t.Context(), &c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func state(t *testing.T, s store.Store, c greylist.Contact, want greylist.State) {
	t.Helper()
	if out := touch(t, s, c); out.State != want {
		t.Errorf("%s %s at %v: %v, want %v", c.Match, c.Recipient, c.Time.Format(time.TimeOnly), out.State, want)
	}
}

var begin = time.Now().Add(-24 * time.Hour).Truncate(time.Hour)

func later(c greylist.Contact, d time.Duration) greylist.Contact {
	c.Time = c.Time.Add(d)
	return c
}

var ann = greylist.Contact{Match: "net:1", Credit: "net:1 a.example", Sender: "s@a.example", Recipient: "ann@b.example", Time: begin}

func entries(t *testing.T, s store.Store, kind string) (out []greylist.Entry) {
	t.Helper()
	if err := s.ListGreylist(t.Context(), greylist.Filter{Kind: kind}, begin.Add(24*time.Hour), func(e greylist.Entry) bool {
		out = append(out, e)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// What has passed is answered from memory, and written behind; what may count
// for credit, and what is only asked for, is not.
func TestCache(t *testing.T) {
	far := newShared(t)
	s := node(t, far, time.Hour)
	state(t, s, ann, greylist.FirstContact)
	state(t, s, later(ann, time.Minute), greylist.EarlyRetry)
	state(t, s, later(ann, 2*time.Minute), greylist.FirstPass)
	before := far.touches.Load()
	for i := range 10 {
		c := later(ann, 3*time.Minute+time.Duration(i)*time.Second)
		if out := touch(t, s, c); out.State != greylist.KnownTriplet || !out.First.Equal(begin) || out.Attempts != 2 {
			t.Fatalf("%+v", out)
		}
	}
	if n := far.touches.Load() - before; n != 0 {
		t.Errorf("%d contacts went to the shared store", n)
	}
	last := begin.Add(3*time.Minute + 9*time.Second)
	eventually(t, "it is written behind", func() bool {
		e := entries(t, far.Store, "triplet")
		return len(e) == 1 && e[0].Last.Equal(last) && e[0].Passes >= 11
	})
	state(t, s, later(ann, 65*time.Minute), greylist.KnownTriplet) // counts for credit
	if n := far.touches.Load() - before; n != 1 {
		t.Errorf("%d contacts went to the shared store, want the one that may count", n)
	}
	dry := later(ann, 66*time.Minute)
	dry.DryRun = true
	state(t, s, dry, greylist.KnownTriplet)
	if n := far.touches.Load() - before; n != 2 {
		t.Error("a dry run was answered from memory")
	}
	other := later(ann, 66*time.Minute)
	other.Recipient = "bob@b.example"
	state(t, s, other, greylist.FirstContact)

	// Credit.
	rule := storetest.Rule
	rule.KnownAge = 0
	rule.KnownAfter = 1
	fresh := later(ann, 70*time.Minute)
	fresh.Rule, fresh.Recipient = rule, "carl@b.example"
	state(t, s, fresh, greylist.KnownClient)
	before = far.touches.Load()
	fresh.Recipient, fresh.Time = "dora@b.example", fresh.Time.Add(time.Minute)
	state(t, s, fresh, greylist.KnownClient)
	if n := far.touches.Load() - before; n != 0 {
		t.Errorf("credit: %d contacts went to the shared store", n)
	}
	eventually(t, "credit is written behind", func() bool {
		e := entries(t, far.Store, "credit")
		return len(e) == 1 && e[0].Last.Equal(fresh.Time) && e[0].Passes == 2 && e[0].Counted.Before(fresh.Time)
	})
	rule.KnownAfter = 5 // a rule that asks for more
	fresh.Rule = rule
	state(t, s, fresh, greylist.FirstContact)
	// Whose time is over is not known, whatever memory holds.
	gone := later(ann, 66*time.Minute+storetest.Rule.Keep+time.Second)
	gone.Credit = ""
	state(t, s, gone, greylist.FirstContact)
}

// A forget is everywhere within a second, and nothing that was seen before
// comes back.
func TestForget(t *testing.T) {
	far := newShared(t)
	one, two := node(t, far, time.Hour), node(t, far, time.Hour)
	state(t, one, ann, greylist.FirstContact)
	state(t, one, later(ann, 2*time.Minute), greylist.FirstPass)
	state(t, two, later(ann, 3*time.Minute), greylist.KnownTriplet)
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() { // it is seen all the time
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				c := later(ann, 4*time.Minute)
				c.Rule = storetest.Rule
				_, _ = two.TouchGreylist(context.Background(), &c)
			}
		}
	}()
	n, err := one.ForgetGreylist(t.Context(), greylist.Filter{Sender: "a.example"})
	if err != nil || n < 1 {
		t.Errorf("forgot %d, %v", n, err)
	}
	close(stop)
	<-ended
	time.Sleep(3 * every) // whatever is written behind has been
	for _, e := range entries(t, far.Store, "triplet") {
		t.Errorf("still there: %+v", e)
	}
	for _, s := range []*Store{one, two} {
		if out := touch(t, s, later(ann, 5*time.Minute)); !out.State.Delays() {
			t.Errorf("still known: %v", out.State)
		}
	}
	// In an outage neither knows it.
	far.off.Store(true)
	for _, s := range []*Store{one, two} {
		if out := touch(t, s, later(ann, 5*time.Minute)); !out.State.Delays() {
			t.Errorf("known when alone: %v", out.State)
		}
	}
	if _, err := one.ForgetGreylist(t.Context(), greylist.Filter{}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("forget in an outage: %v", err)
	}
}

// More forgets than are told of, and one of before a restart.
func TestForgetMany(t *testing.T) {
	far := newShared(t)
	local := mem.New(1_000_000, storetest.MaxWaiting)
	t.Cleanup(func() { _ = local.Close(context.Background()) })
	open := func() *Store {
		s, err := New(Options{Far: far, Local: unclosed{local}, Rule: func() greylist.Rule { return storetest.Rule }, Log: zap.NewNop(), Registry: prometheus.NewRegistry()})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	state(t, s, ann, greylist.FirstContact)
	state(t, s, later(ann, 2*time.Minute), greylist.FirstPass)
	if err := s.tellForget(t.Context(), greylist.Filter{Sender: "nobody"}); err != nil {
		t.Fatal(err)
	}
	if err := s.learnForgets(t.Context()); err != nil || len(entries(t, local, "triplet")) != 1 {
		t.Fatal(err)
	}
	_ = s.Close(context.Background())
	other := node(t, far, 0)
	for i := range maxForgets + 5 {
		if err := other.tellForget(t.Context(), greylist.Filter{Sender: fmt.Sprint("x", i)}); err != nil {
			t.Fatal(err)
		}
	}
	s = open()
	defer s.Close(context.Background()) //nolint:errcheck // a test
	eventually(t, "all is forgotten here, for not all is told of", func() bool { return len(entries(t, local, "triplet")) == 0 })
}

// An outage: each gateway goes on by what it has seen, and what it learns is
// merged.
func TestOutage(t *testing.T) {
	far := newShared(t)
	one, two := node(t, far, 0), node(t, far, 0)
	known, waits, fresh, elsewhere := ann, ann, ann, ann
	waits.Recipient, fresh.Recipient, elsewhere.Recipient = "waits@b.example", "fresh@b.example", "elsewhere@b.example"
	state(t, one, known, greylist.FirstContact)
	state(t, one, later(known, 2*time.Minute), greylist.FirstPass)
	state(t, one, later(waits, 2*time.Minute), greylist.FirstContact)
	state(t, two, elsewhere, greylist.FirstContact)
	state(t, two, later(elsewhere, 2*time.Minute), greylist.FirstPass)

	far.off.Store(true)
	state(t, one, later(known, 3*time.Minute), greylist.KnownTriplet)
	state(t, one, later(waits, 3*time.Minute), greylist.EarlyRetry)
	state(t, one, later(waits, 4*time.Minute), greylist.FirstPass) // has waited since before
	state(t, one, later(fresh, 4*time.Minute), greylist.FirstContact)
	state(t, one, later(elsewhere, 4*time.Minute), greylist.FirstContact) // not seen here
	state(t, two, later(fresh, 5*time.Minute), greylist.FirstContact)
	held := later(ann, 4*time.Minute)
	held.Recipient = "held@b.example"
	state(t, one, held, greylist.FirstContact)
	held.Hold = true
	state(t, one, later(held, 2*time.Minute), greylist.FirstPass) // is looked at, and goes on waiting
	if st := one.Status().Fallback; st == nil || !st.Alone || st.ToMerge == 0 || st.Since.IsZero() {
		t.Errorf("status %+v", st)
	}
	var text strings.Builder
	one.Status().WriteStatus(&text, time.Now())
	if !strings.Contains(text.String(), "THIS GATEWAY GOES ON BY ITSELF") {
		t.Errorf("status:\n%s", text.String())
	}

	far.off.Store(false)
	// At once, before all is merged: what was learned of a contact goes first.
	state(t, one, later(waits, 5*time.Minute), greylist.KnownTriplet)
	state(t, one, later(fresh, 6*time.Minute), greylist.FirstPass) // since 4 minutes
	state(t, one, later(elsewhere, 6*time.Minute), greylist.KnownTriplet)
	for _, s := range []*Store{one, two} {
		eventually(t, "it is merged", func() bool { st := s.Status().Fallback; return !st.Alone && st.ToMerge == 0 })
	}
	state(t, two, later(waits, 7*time.Minute), greylist.KnownTriplet)
	state(t, two, later(fresh, 7*time.Minute), greylist.KnownTriplet)
	held.Hold = false
	state(t, two, later(held, 2*time.Minute), greylist.FirstPass)
}

// Whatever happens, for many contacts at two gateways with outages between:
// nobody passes before the delay is over since its very first contact, nobody
// who has passed at a gateway waits there again, and once all is merged nobody
// who has passed anywhere waits anywhere.
func TestOutagesByCases(t *testing.T) {
	const contacts, steps = 12, 400
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		far := newShared(t)
		nodes := []*Store{node(t, far, 0), node(t, far, time.Hour)}
		first := make([]time.Time, contacts)
		passed := make([][2]bool, contacts)
		now := begin
		rule := storetest.Rule
		rule.KnownAfter, rule.MaxDelay = 0, 1000*time.Hour
		try := func(i, n int) {
			c := greylist.Contact{Match: fmt.Sprint("net:", i%5), Sender: "s@a.example", Recipient: fmt.Sprintf("r%d@b.example", i), Time: now, Rule: rule}
			if first[i].IsZero() {
				first[i] = now
			}
			out := touch(t, nodes[n], c)
			waited := now.Sub(first[i])
			switch {
			case out.State.Delays() && passed[i][n]:
				t.Fatalf("seed %d: contact %d waits again at gateway %d after it has passed there: %+v", seed, i, n, out)
			case !out.State.Delays() && waited < rule.Delay && !passed[i][0] && !passed[i][1]:
				t.Fatalf("seed %d: contact %d passes after %v: %+v", seed, i, waited, out)
			case !out.State.Delays():
				passed[i][n] = true
			}
		}
		for range steps {
			now = now.Add(time.Duration(r.IntN(20_000)) * time.Millisecond)
			if r.IntN(25) == 0 {
				far.off.Store(!far.off.Load())
			}
			try(r.IntN(contacts), r.IntN(2))
		}
		far.off.Store(false)
		for _, s := range nodes {
			eventually(t, "it is merged", func() bool { st := s.Status().Fallback; return !st.Alone && st.ToMerge == 0 })
		}
		for i := range contacts {
			if passed[i][0] || passed[i][1] {
				passed[i] = [2]bool{true, true}
				try(i, 0)
				try(i, 1)
			}
		}
		for _, s := range nodes {
			if err := s.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestValuesInAnOutage(t *testing.T) {
	far := newShared(t)
	s := node(t, far, 0)
	ctx := t.Context()
	until := time.Now().Add(time.Hour)
	swap := func(space, key, old, next string) {
		t.Helper()
		if ok, err := s.SwapValue(ctx, space, key, old, next, until); !ok || err != nil {
			t.Fatalf("%s %s: %v %v", space, key, ok, err)
		}
	}
	load := func(from store.Values, space, key, want string) {
		t.Helper()
		if v, err := from.LoadValue(ctx, space, key); v != want || err != nil {
			t.Errorf("%s %s: %q, %v; want %q", space, key, v, err, want)
		}
	}
	swap(store.VerifySpace, "mine", "", "1")
	if ok, err := far.Store.SwapValue(ctx, store.VerifySpace, "theirs", "", "1", until); !ok || err != nil {
		t.Fatal(err)
	}
	load(s, store.VerifySpace, "theirs", "1")
	far.off.Store(true)
	load(s, store.VerifySpace, "mine", "1")
	load(s, store.VerifySpace, "theirs", "1") // was seen here
	swap(store.VerifySpace, "mine", "1", "2")
	swap(store.VerifySpace, "new", "", "1")
	swap(store.KnownSpace, "gone", "", "1")
	swap(store.KnownSpace, "gone", "1", "")
	if _, err := s.SwapValue(ctx, store.NotifySpace, "x", "", "lease", until); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a lease was taken alone: %v", err)
	}
	takes := []meter.Take{{Key: "rule/rate/x", Kind: meter.Rate, Add: 1, Most: 1, Hard: true}}
	if _, taken, err := s.TakeMeters(ctx, begin, takes, false); !taken || err != nil {
		t.Errorf("meters: %v %v", taken, err)
	}
	if _, taken, err := s.TakeMeters(ctx, begin, takes, false); taken || err != nil {
		t.Errorf("a full meter: %v %v", taken, err)
	}
	if ok, err := far.Store.SwapValue(ctx, store.VerifySpace, "mine", "1", "other", until); !ok || err != nil {
		t.Fatal(err) // another gateway, meanwhile
	}
	far.off.Store(false)
	load(s, store.VerifySpace, "mine", "2")
	eventually(t, "it is merged", func() bool { return s.outage.pending() == 0 && !s.Status().Fallback.Alone })
	load(far.Store, store.VerifySpace, "mine", "2")
	load(far.Store, store.VerifySpace, "new", "1")
	load(far.Store, store.KnownSpace, "gone", "")
}

// With nothing to go on with, an error goes to the check.
func TestPass(t *testing.T) {
	far := newShared(t)
	s, err := New(Options{Far: far, Cache: time.Hour, MaxCached: 1000, Rule: func() greylist.Rule { return storetest.Rule }, Log: zap.NewNop(), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background()) //nolint:errcheck // a test
	state(t, s, ann, greylist.FirstContact)
	state(t, s, later(ann, 2*time.Minute), greylist.FirstPass)
	far.off.Store(true)
	c := later(ann, 3*time.Minute)
	state(t, s, c, greylist.KnownTriplet) // from memory
	c.Recipient, c.Rule = "new@b.example", storetest.Rule
	if _, err := s.TouchGreylist(t.Context(), &c); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if _, err := s.LoadValue(t.Context(), store.VerifySpace, "x"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if st := s.Status(); st.Fallback != nil {
		t.Errorf("%+v", st.Fallback)
	}
}

func BenchmarkKnown(b *testing.B) {
	s := node(b, newShared(b), time.Hour)
	c := ann
	c.Rule = storetest.Rule
	for _, d := range []time.Duration{0, 2 * time.Minute, 2 * time.Minute} {
		at := later(c, d)
		if _, err := s.TouchGreylist(b.Context(), &at); err != nil {
			b.Fatal(err)
		}
	}
	c = later(c, 3*time.Minute)
	b.ReportAllocs()
	for b.Loop() {
		if out, err := s.TouchGreylist(b.Context(), &c); err != nil || out.State != greylist.KnownTriplet {
			b.Fatal(out, err)
		}
	}
}
