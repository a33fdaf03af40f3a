package storetest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postern/internal/meter"
	"postern/store"
)

// meters compares the store with the rule, on chance requests.
func meters(t *testing.T, s store.Store) {
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		held := map[string]string{}
		now := base
		for range rapid.IntRange(1, 30).Draw(rt, "requests") {
			now = now.Add(time.Duration(rapid.Int64Range(-int64(2*time.Minute), int64(20*time.Minute)).Draw(rt, "step")))
			var takes []meter.Take
			var old []string
			for i := range rapid.IntRange(1, 5).Draw(rt, "meters") {
				start := now.Truncate(time.Hour)
				take := meter.Take{
					Key: fmt.Sprintf("run%d/%d/%s", run, i, rapid.SampledFrom([]string{"a", "b c"}).Draw(rt, "who")), Kind: meter.Kind(i % 3),
					Add: rapid.Int64Range(-3, 6).Draw(rt, "add"), Most: 8, Start: start, End: start.Add(time.Hour),
					Hard: rapid.Bool().Draw(rt, "hard"), Member: fmt.Sprintf("%08x", rapid.IntRange(0, 12).Draw(rt, "member")),
				}
				if take.Kind == meter.Rate {
					take.Add, take.Most = take.Add*60e6+1, 8*60e6
				}
				takes, old = append(takes, take), append(old, held[take.Key])
			}
			peek := rapid.IntRange(0, 4).Draw(rt, "peek") == 0
			next, want, wantTaken := meter.Apply(old, takes, now)
			got, taken, err := s.TakeMeters(context.Background(), now, takes, peek)
			if err != nil {
				rt.Fatal(err)
			}
			if fmt.Sprint(got, taken) != fmt.Sprint(want, wantTaken) {
				rt.Fatalf("at %v, %+v of %q:\n got %+v %v\nwant %+v %v", now, takes, old, got, taken, want, wantTaken)
			}
			for i := range next {
				if !peek {
					held[takes[i].Key] = next[i]
				}
			}
			for i := range takes {
				if v := value(t, s, store.MeterSpace, takes[i].Key); v != held[takes[i].Key] {
					rt.Fatalf("%s holds %q, want %q", takes[i].Key, v, held[takes[i].Key])
				}
			}
		}
	})
}

// metersTogether takes from the same meters from many sides: exactly as many
// as there are get through.
func metersTogether(t *testing.T, s store.Store) {
	var passed atomic.Int64
	var wg sync.WaitGroup
	for side := range 8 {
		wg.Go(func() {
			for n := range 50 {
				takes := []meter.Take{
					{Key: "all", Kind: meter.Quota, Add: 1, Most: 100, Start: base, End: later, Hard: true},
					{Key: fmt.Sprint("side", side), Kind: meter.Quota, Add: 1, Most: 1000, Start: base, End: later, Hard: true},
				}
				if n%2 == 0 { // locked in another order, if there are locks
					takes[0], takes[1] = takes[1], takes[0]
				}
				_, taken, err := s.TakeMeters(context.Background(), base, takes, false)
				if err != nil {
					t.Error(err)
				}
				if taken {
					passed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := passed.Load(); n != 100 {
		t.Errorf("%d of 100 were taken", n)
	}
}
