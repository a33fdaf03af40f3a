// Package storetest is the suite that every implementation of store.Store
// must pass.
package storetest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postern/greylist"
	"postern/store"
)

// MaxWaiting is how many first contacts the stores of the suite are to keep.
const MaxWaiting = 6_000

// Run runs the suite. open returns an empty store for MaxWaiting first
// contacts; it is closed by the suite.
func Run(t *testing.T, open func(t testing.TB) store.Store) {
	for name, test := range map[string]func(*testing.T, store.Store){
		"Life":        life,
		"DryRun":      dryRun,
		"Hold":        hold,
		"Concurrent":  concurrent,
		"Independent": independent,
		"List":        list,
		"Forget":      forget,
		"Merge":       merge,
		"OddNames":    oddNames,
		"Expiry":      expiry,
		"Values":      values,
		"Swap":        swap,
		"ValueNames":  valueNames,
		"Fleet":       fleet,
		"Meters":      meters,
		"Together":    metersTogether,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			defer closeStore(t, s)
			test(t, s)
		})
	}
	t.Run("Flood", func(t *testing.T) { flood(t, open) })
	t.Run("Moving", func(t *testing.T) { moving(t, open) })
	t.Run("SameAsTheRule", func(t *testing.T) { sameAsTheRule(t, open) })
}

func closeStore(t testing.TB, s store.Store) {
	for range 2 { // closing twice is fine
		if err := s.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}

// Rule is the rule that the suite uses unless it says otherwise.
var Rule = greylist.Rule{
	Delay: 2 * time.Minute, Window: 48 * time.Hour, Keep: 36 * 24 * time.Hour,
	MaxDelay: 4 * time.Hour, KnownAfter: 3, KnownAge: 24 * time.Hour, CountEvery: time.Hour,
}

// base is a whole second near the present: a store may drop what has expired
// by its own clock.
var base = time.Now().Truncate(time.Second)

func touch(t testing.TB, s store.Store, c greylist.Contact) greylist.Outcome {
	t.Helper()
	if c.Rule == (greylist.Rule{}) {
		c.Rule = Rule
	}
	out, err := s.TouchGreylist(context.Background(), &c)
	if err != nil {
		t.Fatalf("TouchGreylist(%+v): %v", c, err)
	}
	return out
}

func life(t *testing.T, s store.Store) {
	c := greylist.Contact{Match: "net:192.0.2.0/24", Sender: "a@example.org", Recipient: "b@example.com"}
	for i, step := range []struct {
		after time.Duration // since the first contact
		want  greylist.State
		wait  time.Duration
	}{
		{0, greylist.FirstContact, 2 * time.Minute},
		{time.Second, greylist.EarlyRetry, 119 * time.Second},
		{2*time.Minute - time.Millisecond, greylist.EarlyRetry, time.Millisecond},
		{2 * time.Minute, greylist.FirstPass, 0},
		{3 * time.Minute, greylist.KnownTriplet, 0},
		{time.Minute, greylist.KnownTriplet, 0}, // the clock stepped back
	} {
		c.Time = base.Add(step.after)
		out := touch(t, s, c)
		if out.State != step.want || out.Wait != step.wait {
			t.Errorf("step %d: %v wait %v, want %v wait %v", i, out.State, out.Wait, step.want, step.wait)
		}
		if out.State != greylist.KnownClient && !out.First.Equal(base) {
			t.Errorf("step %d: first contact %v, want %v", i, out.First, base)
		}
	}
	if st := s.Status(); st.Kind == "" || !st.Healthy {
		t.Errorf("status %+v", st)
	}
	if err := s.Ping(context.Background()); err != nil {
		t.Errorf("Ping: %v", err)
	}
}

func dryRun(t *testing.T, s store.Store) {
	c := greylist.Contact{Match: "w", Sender: "s", Recipient: "r", Time: base, DryRun: true}
	for range 2 {
		if out := touch(t, s, c); out.State != greylist.FirstContact {
			t.Fatalf("a dry run left something behind: %v", out.State)
		}
	}
	c.DryRun = false
	touch(t, s, c)
	c.DryRun, c.Time = true, base.Add(Rule.Delay)
	for range 2 {
		if out := touch(t, s, c); out.State != greylist.FirstPass {
			t.Fatalf("dry run: %v, want first-pass each time", out.State)
		}
	}
}

// hold: who would pass for the first time is told of, and goes on waiting;
// everything else is as without.
func hold(t *testing.T, s store.Store) {
	c := greylist.Contact{Match: "w", Credit: "w", Sender: "s", Recipient: "r", Time: base, Hold: true}
	if out := touch(t, s, c); out.State != greylist.FirstContact {
		t.Fatalf("first contact: %v", out.State)
	}
	c.Time = base.Add(time.Minute)
	if out := touch(t, s, c); out.State != greylist.EarlyRetry || out.Attempts != 2 {
		t.Fatalf("a first contact on hold was not written: %+v", out)
	}
	for _, after := range []time.Duration{Rule.Delay, time.Hour} {
		c.Time = base.Add(after)
		for range 2 {
			if out := touch(t, s, c); out.State != greylist.FirstPass || out.Attempts != 2 || !out.First.Equal(base) {
				t.Fatalf("on hold: %+v, want first-pass each time", out)
			}
		}
	}
	entries := 0
	err := s.ListGreylist(context.Background(), greylist.Filter{}, c.Time, func(e greylist.Entry) bool {
		if entries++; e.Kind != greylist.KindWaiting {
			t.Errorf("on hold there is %+v", e)
		}
		return true
	})
	if err != nil || entries != 1 {
		t.Errorf("%d entries, %v", entries, err)
	}
	// A longer delay holds it up again, a shorter one lets it go.
	c.Rule = Rule
	c.Rule.Delay = 2 * time.Hour
	if out := touch(t, s, c); out.State != greylist.EarlyRetry || out.Wait != time.Hour {
		t.Errorf("with a longer delay: %+v", out)
	}
	c.Rule.Delay = 0
	c.Hold = false
	if out := touch(t, s, c); out.State != greylist.FirstPass || out.Passes != 1 {
		t.Errorf("at last: %+v", out)
	}
	c.Hold = true
	if out := touch(t, s, c); out.State != greylist.KnownTriplet {
		t.Errorf("then: %+v", out)
	}
}

func concurrent(t *testing.T, s store.Store) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	states := map[greylist.State]int{}
	attempts := map[int]bool{}
	for range 100 {
		wg.Go(func() {
			out, err := s.TouchGreylist(context.Background(), &greylist.Contact{Match: "w", Sender: "s", Recipient: "r", Time: base, Rule: Rule})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			states[out.State]++
			attempts[out.Attempts] = true
		})
	}
	wg.Wait()
	if states[greylist.FirstContact] != 1 || states[greylist.EarlyRetry] != 99 || len(attempts) != 100 {
		t.Errorf("states %v, %d distinct attempts; want 1 first contact and attempts 1 to 100", states, len(attempts))
	}
}

func independent(t *testing.T, s store.Store) {
	for _, c := range []greylist.Contact{
		{Match: "w", Sender: "s", Recipient: "r"},
		{Match: "w", Sender: "s", Recipient: "r2"},
		{Match: "w", Sender: "s2", Recipient: "r"},
		{Match: "w2", Sender: "s", Recipient: "r"},
		{Match: "w", Sender: "sr", Recipient: ""},
		{Match: "ws", Sender: "", Recipient: "r"},
		{Match: "w", Sender: "", Recipient: "r"},
	} {
		c.Time = base
		if out := touch(t, s, c); out.State != greylist.FirstContact {
			t.Errorf("%+v: %v, want first-contact", c, out.State)
		}
	}
}

// fill makes one triplet that has passed, with its credit, and one side that
// waits.
func fill(t *testing.T, s store.Store) {
	touch(t, s, greylist.Contact{Match: "org:example.org", Credit: "org:example.org", Sender: "A@example.org", Recipient: "b@example.com", Time: base})
	touch(t, s, greylist.Contact{Match: "org:example.org", Credit: "org:example.org", Sender: "A@example.org", Recipient: "b@example.com", Time: base.Add(Rule.Delay)})
	touch(t, s, greylist.Contact{Match: "net:192.0.2.0/24", Sender: "", Recipient: "c@example.com", Time: base})
}

func names(t *testing.T, s store.Store, f greylist.Filter) []string {
	t.Helper()
	var got []string
	if err := s.ListGreylist(context.Background(), f, base.Add(Rule.Delay), func(e greylist.Entry) bool {
		got = append(got, strings.Join([]string{e.Kind, e.Match + e.Credit, e.Sender, e.Recipient}, "|"))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	return got
}

func list(t *testing.T, s store.Store) {
	fill(t, s)
	const (
		credit  = "credit|org:example.org||"
		passed  = "triplet|org:example.org|A@example.org|b@example.com"
		waiting = "waiting|net:192.0.2.0/24||c@example.com"
	)
	for _, tt := range []struct {
		f    greylist.Filter
		want []string
	}{
		{greylist.Filter{}, []string{credit, passed, waiting}},
		{greylist.Filter{Kind: "triplet"}, []string{passed}},
		{greylist.Filter{Kind: "waiting"}, []string{waiting}},
		{greylist.Filter{Who: "EXAMPLE.org"}, []string{credit, passed}},
		{greylist.Filter{Who: "192.0.2"}, []string{waiting}},
		{greylist.Filter{Sender: "a@"}, []string{passed}},
		{greylist.Filter{Recipient: "c@example"}, []string{waiting}},
		{greylist.Filter{Recipient: "nobody"}, nil},
	} {
		if got := names(t, s, tt.f); !slices.Equal(got, tt.want) {
			t.Errorf("list %+v:\n got %q\nwant %q", tt.f, got, tt.want)
		}
	}
	if got := names(t, s, greylist.Filter{Limit: 2}); len(got) != 2 {
		t.Errorf("limit 2 gave %d entries", len(got))
	}
	n := 0
	if err := s.ListGreylist(context.Background(), greylist.Filter{}, base, func(greylist.Entry) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("a listing that was to stop gave %d entries, %v", n, err)
	}
	counts, err := s.CountGreylist(context.Background(), base.Add(Rule.Delay))
	if want := (greylist.Counts{Triplets: 1, Credits: 1, Waiting: 1}); err != nil || counts != want {
		t.Errorf("counts %+v, %v; want %+v", counts, err, want)
	}
	for _, want := range []greylist.Entry{
		{Kind: "triplet", Match: "org:example.org", Sender: "A@example.org", Recipient: "b@example.com", First: base, Last: base.Add(Rule.Delay), Attempts: 1, Passes: 1},
		{Kind: "credit", Credit: "org:example.org", First: base.Add(Rule.Delay), Last: base.Add(Rule.Delay), Passes: 1, Counted: base.Add(Rule.Delay)},
		{Kind: "waiting", Match: "net:192.0.2.0/24", Recipient: "c@example.com", First: base, Last: base, Attempts: 1, Since: base},
	} {
		found := 0
		if err := s.ListGreylist(context.Background(), greylist.Filter{Kind: want.Kind}, base.Add(Rule.Delay), func(e greylist.Entry) bool {
			if found++; !e.First.Equal(want.First) || !e.Last.Equal(want.Last) || !e.Counted.Equal(want.Counted) || !e.Since.Equal(want.Since) {
				t.Errorf("entry %+v, want %+v", e, want)
			}
			if e.First, e.Last, e.Counted, e.Since = want.First, want.Last, want.Counted, want.Since; e != want {
				t.Errorf("entry %+v, want %+v", e, want)
			}
			return true
		}); err != nil || found != 1 {
			t.Errorf("%d of %+v, %v", found, want, err)
		}
	}
	if out := names(t, s, greylist.Filter{Kind: "waiting"}); len(out) != 1 {
		t.Errorf("waiting: %q", out)
	}
	n = 0
	if err := s.ListGreylist(context.Background(), greylist.Filter{Kind: "waiting"}, base.Add(Rule.Window+time.Second), func(greylist.Entry) bool { n++; return true }); err != nil || n != 0 {
		t.Errorf("%d wait whose time is over, %v", n, err)
	}
}

func forget(t *testing.T, s store.Store) {
	fill(t, s)
	n, err := s.ForgetGreylist(context.Background(), greylist.Filter{Who: "example.org"})
	if err != nil || n != 2 {
		t.Errorf("forgot %d, %v; want triplet and credit", n, err)
	}
	if got := names(t, s, greylist.Filter{}); len(got) != 1 {
		t.Errorf("left over: %q", got)
	}
	if out := touch(t, s, greylist.Contact{Match: "org:example.org", Sender: "A@example.org", Recipient: "b@example.com", Time: base.Add(time.Hour)}); out.State != greylist.FirstContact {
		t.Errorf("a forgotten triplet: %v", out.State)
	}
	touch(t, s, greylist.Contact{Match: "other", Sender: "A@example.org", Recipient: "b@example.com", Time: base.Add(time.Hour)})
	if n, err := s.ForgetGreylist(context.Background(), greylist.Filter{Who: "other"}); err != nil || n != 1 {
		t.Errorf("forgot %d, %v; want one of two sides", n, err)
	}
	if out := touch(t, s, greylist.Contact{Match: "org:example.org", Sender: "A@example.org", Recipient: "b@example.com", Time: base.Add(time.Hour + time.Second)}); out.State != greylist.EarlyRetry {
		t.Errorf("the side that stays: %v", out.State)
	}
	if n, err := s.ForgetGreylist(context.Background(), greylist.Filter{}); err != nil || n != 2 {
		t.Errorf("forgot %d, %v; want all 2", n, err)
	}
	if n, err := s.ForgetGreylist(context.Background(), greylist.Filter{}); err != nil || n != 0 {
		t.Errorf("forgot %d, %v; want none", n, err)
	}
}

func oddNames(t *testing.T, s store.Store) {
	long := strings.Repeat("x", 3000)
	for i, c := range []greylist.Contact{
		{Match: "w", Sender: "a\x00b", Recipient: "r"},
		{Match: "w", Sender: "a", Recipient: "\x00br"},
		{Match: "w", Sender: "a|b", Recipient: "r{}*?[]"},
		{Match: "w", Sender: "\xff\xfe", Recipient: "r\n\r"},
		{Match: "w", Sender: long + "1", Recipient: "r"},
		{Match: "w", Sender: long + "2", Recipient: "r"},
		{Match: "", Sender: "", Recipient: ""},
	} {
		c.Time = base
		if out := touch(t, s, c); out.State != greylist.FirstContact {
			t.Errorf("contact %d: %v, want first-contact", i, out.State)
		}
		if out := touch(t, s, c); out.State != greylist.EarlyRetry {
			t.Errorf("contact %d again: %v, want early-retry", i, out.State)
		}
	}
	if got := names(t, s, greylist.Filter{Kind: "waiting"}); len(got) != 7 {
		t.Errorf("%d listed, want 7", len(got))
	}
	if got := names(t, s, greylist.Filter{Kind: "waiting", Sender: "a\x00B"}); len(got) != 1 {
		t.Errorf("%d triplets with a NUL found, want 1", len(got))
	}
}

func expiry(t *testing.T, s store.Store) {
	rule := Rule
	rule.Window, rule.Keep = time.Hour, 10*time.Hour
	c := greylist.Contact{Match: "w", Sender: "s", Recipient: "r", Rule: rule, Time: base}
	touch(t, s, c)
	c.Time = base.Add(rule.Window + time.Millisecond)
	if out := touch(t, s, c); out.State != greylist.FirstContact {
		t.Errorf("after the window: %v, want first-contact", out.State)
	}
	c.Time = c.Time.Add(rule.Delay)
	if out := touch(t, s, c); out.State != greylist.FirstPass {
		t.Errorf("%v, want first-pass", out.State)
	}
	c.Time = c.Time.Add(rule.Keep)
	if out := touch(t, s, c); out.State != greylist.KnownTriplet {
		t.Errorf("at the end of keep: %v, want known-triplet", out.State)
	}
	c.Time = c.Time.Add(rule.Keep + time.Millisecond)
	if out := touch(t, s, c); out.State != greylist.FirstContact {
		t.Errorf("after keep: %v, want first-contact", out.State)
	}
}

// model is the plainest store there is.
type model struct {
	triplets map[[3]string]greylist.Triplet
	credits  map[string]greylist.Credit
	waiting  map[[2]string]greylist.Waiting
}

func (m *model) touch(c greylist.Contact) greylist.Outcome {
	tk, wk := [3]string{c.Match, c.Sender, c.Recipient}, [2]string{c.Sender, c.Recipient}
	t, cr, w := m.triplets[tk], m.credits[c.Credit], m.waiting[wk]
	w.More = slices.Clone(w.More)
	out := greylist.Advance(&c, &t, &cr, &w)
	if !c.Held(&out) {
		m.triplets[tk], m.credits[c.Credit], m.waiting[wk] = t, cr, w
		delete(m.credits, "") // nobody
	}
	return out
}

// sameAsTheRule plays random sequences of contacts against the store and the
// model and compares every outcome.
func sameAsTheRule(t *testing.T, open func(t testing.TB) store.Store) {
	s := open(t)
	defer closeStore(t, s)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		m := &model{map[[3]string]greylist.Triplet{}, map[string]greylist.Credit{}, map[[2]string]greylist.Waiting{}}
		at := base
		for range rapid.IntRange(1, 40).Draw(rt, "contacts") {
			at = at.Add(time.Duration(rapid.Int64Range(-int64(10*time.Minute), int64(3*time.Hour)).Draw(rt, "step")))
			if rapid.IntRange(0, 30).Draw(rt, "long pause") == 0 {
				at = at.Add(time.Duration(rapid.IntRange(1, 60).Draw(rt, "days")) * 24 * time.Hour)
			}
			rule := Rule
			rule.Delay = rapid.SampledFrom([]time.Duration{0, time.Minute, 2 * time.Minute, time.Hour}).Draw(rt, "delay")
			rule.MaxDelay = rapid.SampledFrom([]time.Duration{30 * time.Minute, 4 * time.Hour}).Draw(rt, "max delay")
			rule.KnownAfter = rapid.SampledFrom([]int{0, 1, 3, 5}).Draw(rt, "known after")
			rule.KnownAge = rapid.SampledFrom([]time.Duration{0, time.Hour, 24 * time.Hour}).Draw(rt, "known age")
			rule.CountEvery = rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(rt, "count every")
			credit := rapid.SampledFrom([]string{"", "x", "y"}).Draw(rt, "credit")
			if credit != "" {
				credit = fmt.Sprintf("run%d:%s", run, credit)
			}
			sides := []string{"a", "b", "c"}
			if rapid.Bool().Draw(rt, "many sides") {
				sides = []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"}
			}
			c := greylist.Contact{
				Match:  fmt.Sprintf("run%d:%s", run, rapid.SampledFrom(sides).Draw(rt, "match")),
				Credit: credit, Addr: netip.MustParseAddr("192.0.2.1"),
				Sender:    fmt.Sprintf("run%d:%s", run, rapid.SampledFrom([]string{"", "s"}).Draw(rt, "sender")),
				Recipient: rapid.SampledFrom([]string{"r", "q"}).Draw(rt, "recipient"),
				Time:      at, Rule: rule, DryRun: rapid.IntRange(0, 9).Draw(rt, "dry run") == 0,
				Hold: rapid.IntRange(0, 3).Draw(rt, "hold") == 0,
			}
			want := m.touch(c)
			got, err := s.TouchGreylist(context.Background(), &c)
			if err != nil {
				rt.Fatal(err)
			}
			if got.State != want.State || !got.First.Equal(want.First) || got.Wait != want.Wait || got.Attempts != want.Attempts || got.Passes != want.Passes {
				rt.Fatalf("at %v, %+v:\n got %+v\nwant %+v", at, c, got, want)
			}
		}
	})
}

// later is when the values of the suite expire.
var later = base.Add(time.Hour)

func swapped(t testing.TB, s store.Store, space, key, old, next string) bool {
	t.Helper()
	ok, err := s.SwapValue(context.Background(), space, key, old, next, later)
	if err != nil {
		t.Fatalf("SwapValue(%s %s %q %q): %v", space, key, old, next, err)
	}
	return ok
}

func value(t testing.TB, s store.Store, space, key string) string {
	t.Helper()
	v, err := s.LoadValue(context.Background(), space, key)
	if err != nil {
		t.Fatalf("LoadValue(%s %s): %v", space, key, err)
	}
	return v
}

func values(t *testing.T, s store.Store) {
	if v := value(t, s, "a", "k"); v != "" {
		t.Errorf("at first: %q", v)
	}
	for i, step := range []struct {
		old, next string
		want      bool
		then      string
	}{
		{"x", "y", false, ""},
		{"", "one", true, "one"},
		{"", "two", false, "one"},
		{"on", "two", false, "one"},
		{"one", "two", true, "two"},
		{"two", "two", true, "two"},
		{"one", "", false, "two"},
		{"two", "", true, ""},
		{"", "", true, ""},
		{"", "three", true, "three"},
	} {
		if got := swapped(t, s, "a", "k", step.old, step.next); got != step.want {
			t.Errorf("step %d: swapped %v", i, got)
		}
		if v := value(t, s, "a", "k"); v != step.then {
			t.Errorf("step %d: %q", i, v)
		}
	}
	if v := value(t, s, "b", "k"); v != "" {
		t.Errorf("in another space: %q", v)
	}
	swapped(t, s, "b", "k", "", "other")
	for i := range 1200 {
		swapped(t, s, "many", fmt.Sprintf("k%d", i), "", fmt.Sprint("v", i))
	}
	seen := map[string]string{}
	err := s.EachValue(context.Background(), "many", func(key, v string, _ time.Time) bool {
		seen[key] = v
		return true
	})
	if err != nil || len(seen) != 1200 || seen["k77"] != "v77" {
		t.Errorf("%d values, %v", len(seen), err)
	}
	n := 0
	if err := s.EachValue(context.Background(), "many", func(string, string, time.Time) bool { n++; return n < 3 }); err != nil || n != 3 {
		t.Errorf("stopped after %d, %v", n, err)
	}
	if got := store.SpaceOf(s, "b").Count(); got != 1 {
		t.Errorf("%d values counted", got)
	}
}

// swap is that of many who add to a number at once, none is lost.
func swap(t *testing.T, s store.Store) {
	const workers, each = 8, 25
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				for {
					old := value(t, s, "n", "sum")
					n := 0
					if old != "" {
						if _, err := fmt.Sscan(old, &n); err != nil {
							t.Error(err)
							return
						}
					}
					if swapped(t, s, "n", "sum", old, fmt.Sprint(n+1)) {
						break
					}
				}
			}
		})
	}
	wg.Wait()
	if v := value(t, s, "n", "sum"); v != fmt.Sprint(workers*each) {
		t.Errorf("the sum is %s", v)
	}
}

func valueNames(t *testing.T, s store.Store) {
	names := []string{
		"a@example.org", "a*b?[c]\\", "nul\x00", "\xff\xfe", " ", "jörg@example.org", strings.Repeat("x", 1000), strings.Repeat("x", 999) + "y",
	}
	for i, name := range names {
		if !swapped(t, s, "odd", name, "", fmt.Sprint("v", i)) {
			t.Errorf("%q is there already", name)
		}
	}
	for i, name := range names {
		if v := value(t, s, "odd", name); v != fmt.Sprint("v", i) {
			t.Errorf("%q: %q", name, v)
		}
	}
	binary := string([]byte{0, 1, 0xff, '\n', 0})
	if !swapped(t, s, "odd", "binary", "", binary) || value(t, s, "odd", "binary") != binary {
		t.Error("bytes are changed")
	}
}

func fleet(t *testing.T, s store.Store) {
	f, ctx := store.FleetOf(s), context.Background()
	load := func(newer uint64, want string) {
		t.Helper()
		doc, serial, err := f.LoadProvider(ctx, "p", newer)
		if err != nil || string(doc) != want || want != "" && serial <= newer {
			t.Errorf("newer than %d: %q %d, %v", newer, doc, serial, err)
		}
	}
	save := func(doc string, serial uint64, want bool) {
		t.Helper()
		if kept, err := f.SaveProvider(ctx, "p", []byte(doc), serial); kept != want || err != nil {
			t.Errorf("save %d: %v, %v", serial, kept, err)
		}
	}
	load(0, "")
	save("two\nlines\x00", 2, true)
	load(0, "two\nlines\x00")
	load(2, "")
	save("older", 1, false)
	save("same", 2, false)
	save("three", 3, true)
	load(2, "three")

	lease := func(node string, d time.Duration, want bool) {
		t.Helper()
		if got, err := f.LeaseProvider(ctx, "p", node, d); got != want || err != nil {
			t.Errorf("lease of %s: %v, %v", node, got, err)
		}
	}
	lease("a", time.Hour, true)
	lease("b", time.Hour, false)
	lease("a", -time.Second, true) // given up
	lease("b", time.Hour, true)
	if got, err := f.LeaseProvider(ctx, "other", "a", time.Hour); !got || err != nil {
		t.Error("another list", got, err)
	}
}

// flood is that of strangers who come in far greater numbers than there is
// room: who is known stays known, all are delayed, and who comes from
// elsewhere in the middle of it passes at its retry.
func flood(t *testing.T, open func(t testing.TB) store.Store) {
	for _, tt := range []struct {
		name string
		addr func(i int) netip.Addr
		// The share of newcomers that must pass, in percent.
		pass  int
		tries int // of each contact
	}{
		{"one network", func(int) netip.Addr { return netip.MustParseAddr("198.51.100.7") }, 95, 1},
		// Fewer than there are places, in each part of the room.
		{"fifty networks", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, 1, byte(i % 50), 7}) }, 95, 1},
		{"an IPv6 /32", func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x2a, 0, 0xb, 0xad, byte(i >> 16), byte(i >> 8), byte(i), 0, 1})
		}, 95, 1},
		{"more networks than places", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 7}) }, 0, 1},
		{"all tried again", func(int) netip.Addr { return netip.MustParseAddr("198.51.100.7") }, 0, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			defer closeStore(t, s)
			known := greylist.Contact{Match: "known", Credit: "known", Sender: "k@example.org", Recipient: "r", Addr: netip.MustParseAddr("203.0.113.5")}
			known.Time = base
			touch(t, s, known)
			known.Time = base.Add(Rule.Delay)
			touch(t, s, known)
			at := base.Add(Rule.Delay)
			newcomer := func(i int) greylist.Contact {
				a := netip.AddrFrom4([4]byte{60, byte(i), 1, 1})
				return greylist.Contact{Match: "net:" + a.String(), Sender: fmt.Sprintf("n%d@example.org", i), Recipient: "r", Addr: a, Time: at}
			}
			const newcomers = 100
			n := 0
			more := func(count int) {
				const workers = 16
				var wg sync.WaitGroup
				for worker := range workers {
					wg.Go(func() {
						for i := worker; i < count; i += workers {
							a := tt.addr(n + i)
							for range tt.tries {
								out, err := s.TouchGreylist(context.Background(), &greylist.Contact{
									Match: "net:" + a.String(), Sender: fmt.Sprintf("f%d@spam.example", n+i), Recipient: "r", Addr: a,
									Time: at.Add(time.Duration(n+i) * time.Microsecond), Rule: Rule,
								})
								if err != nil || !out.State.Delays() {
									t.Errorf("a contact of the flood is let in: %v, %v", out.State, err)
									return
								}
							}
						}
					})
				}
				wg.Wait()
				n += count
			}
			more(MaxWaiting + MaxWaiting/4)
			for i := range newcomers {
				if out := touch(t, s, newcomer(i)); out.State != greylist.FirstContact {
					t.Fatalf("newcomer: %v", out.State)
				}
			}
			more(MaxWaiting + MaxWaiting/2)
			at = at.Add(Rule.Delay)
			passed := 0
			for i := range newcomers {
				if out := touch(t, s, newcomer(i)); !out.State.Delays() {
					passed++
				}
			}
			if passed < tt.pass {
				t.Errorf("%d of %d newcomers pass at their retry, want %d", passed, newcomers, tt.pass)
			}
			known.Time = at
			if out := touch(t, s, known); out.State != greylist.KnownTriplet {
				t.Errorf("who is known: %v", out.State)
			}
			room := s.Status().Room
			if room.Waiting > MaxWaiting+MaxWaiting/10 || room.Waiting < MaxWaiting/2 || room.PushedOut == 0 {
				t.Errorf("room %+v", room)
			}
			if counts, err := s.CountGreylist(context.Background(), at); err != nil || counts.Waiting > MaxWaiting+MaxWaiting/10 || counts.Waiting < MaxWaiting/2 {
				t.Errorf("%+v, %v", counts, err)
			}
		})
	}
}
