package greylist

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"postern/policy"
)

func TestHintsAreBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, most := range []int{1, 4, 100, 5000, 100_000} {
		h := newHints(most)
		room := 0
		for i := range h.parts {
			room += h.parts[i].most * hintWays
		}
		if room > max(most, hintWays) || room < most*9/10 {
			t.Errorf("room for %d of %d contacts", room, most)
		}
		begun := 0
		for i := range h.parts {
			begun += len(h.parts[i].groups) * hintWays
		}
		if begun > hintParts*hintFirst*hintWays {
			t.Errorf("%d contacts: begins with room for %d", most, begun)
		}
		if most > 5000 {
			continue
		}
		var keys [][2]uint64
		for i := range 3 * most {
			key := h.key(&policy.Request{}, fmt.Sprint(i), "r", time.Minute)
			keys = append(keys, key)
			h.set(key, now, now.Add(time.Duration(i+1)*time.Second), now)
			if _, _, ok := h.get(key, now, 0); !ok {
				t.Fatalf("%d contacts: the newest is forgotten", most)
			}
		}
		if n := h.count(now); n > room || n < room*9/10 {
			t.Errorf("%d hints of %d", n, room)
		}
		// Those that end soonest have gone.
		kept := 0
		for _, key := range keys[:most] {
			if _, _, ok := h.get(key, now, 0); ok {
				kept++
			}
		}
		if most >= 100 && kept > most/5 {
			t.Errorf("%d of the %d that end soonest are kept", kept, most)
		}
		if n := h.count(now.Add(10 * time.Hour)); n != 0 {
			t.Errorf("%d hints after their time", n)
		}
	}
}

func TestHintsHoldWhatTheyAreGiven(t *testing.T) {
	h := newHints(1000)
	now := time.Unix(1e9, 5)
	if !h.empty(now) {
		t.Error("not empty before the first")
	}
	// Different contacts whose texts run into each other.
	contacts := [][2]string{{"a", "bc"}, {"ab", "c"}, {"abc", ""}, {"", "abc"}}
	for i, c := range contacts {
		h.set(h.key(&policy.Request{}, c[0], c[1], 1), now, now.Add(time.Duration(i+1)*time.Minute), now.Add(-time.Second))
	}
	for i, c := range contacts {
		until, first, ok := h.get(h.key(&policy.Request{}, c[0], c[1], 1), now, 0)
		if !ok || !until.Equal(now.Add(time.Duration(i+1)*time.Minute)) || !first.Equal(now.Add(-time.Second)) {
			t.Errorf("%q: %v %v %v", c, until, first, ok)
		}
	}
	key := h.key(&policy.Request{}, "a", "bc", 1)
	for what, other := range map[string][2]uint64{
		"another delay":  h.key(&policy.Request{}, "a", "bc", 2),
		"another client": h.key(&policy.Request{Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1")}}, "a", "bc", 1),
	} {
		if _, _, ok := h.get(other, now, 0); ok {
			t.Error(what)
		}
	}
	last := now.Add(time.Duration(len(contacts)) * time.Minute)
	if h.empty(now) || h.empty(last.Add(-1)) || !h.empty(time.Unix(0, h.latest.Load())) || !h.empty(now.Add(time.Hour)) {
		t.Error("empty too early, or never")
	}
	if n := h.count(last.Add(-1)); n != 1 || h.count(last) != 0 {
		t.Errorf("%d hints before the last is over, %d after", n, h.count(last))
	}
	for at, want := range map[time.Duration]bool{time.Minute - 1: true, time.Minute: false, -time.Second: true, -time.Second - 1: false} {
		if _, _, ok := h.get(key, now.Add(at), 0); ok != want {
			t.Errorf("after %v: %v, want %v", at, ok, want)
		}
	}
	h.set(key, now, now.Add(time.Hour), now)
	if until, _, ok := h.get(key, now, 0); !ok || !until.Equal(now.Add(time.Hour)) || h.count(now) != len(contacts) {
		t.Errorf("set again: until %v, %d hints", until, h.count(now))
	}
	h.forget(key)
	if _, _, ok := h.get(key, now, 0); ok || h.count(now) != len(contacts)-1 {
		t.Errorf("forgotten: %v, %d hints", ok, h.count(now))
	}
}

// A table grows only where a hint that holds would have to go.
func TestHintsGrow(t *testing.T) {
	now := time.Unix(1e9, 0)
	groups := func(h *hints) int { return len(h.parts[0].groups) }
	// Four parts of one group each would do; one part of 2 groups, at most 4.
	table := func(most int) *hints {
		h := newHints(hintWays)
		h.parts[0].most, h.parts[0].groups = most, make([]hintGroup, 1)
		return h
	}
	fill := func(h *hints, until time.Time) (last [2]uint64) {
		for i := 0; h.count(now) < hintWays; i++ {
			// Half of them in each of two groups, so that these have a place for one more.
			if key := h.key(&policy.Request{}, fmt.Sprint(i), "r", 0); int(key[1]>>63) == h.count(now)%2 {
				last = key
				h.set(key, now, until, now)
			}
		}
		return last
	}
	next := func(h *hints, at time.Time) {
		h.set(h.key(&policy.Request{}, "next", "r", 0), at, at.Add(time.Hour), at)
	}

	h := table(4)
	last := fill(h, now.Add(time.Minute))
	if groups(h) != 1 {
		t.Errorf("%d groups with a place for each", groups(h))
	}
	h.set(last, now, now.Add(time.Hour), now)
	if groups(h) != 1 {
		t.Errorf("%d groups after the same again", groups(h))
	}
	next(h, now)
	if groups(h) != 2 || h.count(now) != hintWays+1 {
		t.Errorf("%d groups and %d hints after one too many", groups(h), h.count(now))
	}

	h = table(4)
	fill(h, now.Add(time.Minute))
	next(h, now.Add(time.Minute))
	if groups(h) != 1 {
		t.Errorf("%d groups in the place of one that is over", groups(h))
	}

	h = table(1)
	fill(h, now.Add(time.Minute))
	before := &h.parts[0].groups[0]
	next(h, now)
	if groups(h) != 1 || &h.parts[0].groups[0] != before || h.count(now) != hintWays {
		t.Errorf("%d groups, %d hints where no more fit", groups(h), h.count(now))
	}

	h = table(4)
	fill(h, now.Add(time.Minute))
	h.parts[0].groups[0][0].until = now.UnixNano() // over just now
	h.parts[0].grow(now.UnixNano())
	if groups(h) != 2 || h.count(now.Add(-1)) != hintWays-1 {
		t.Errorf("%d groups, %d hints after growing", groups(h), h.count(now.Add(-1)))
	}
}

func TestHintsConcurrently(t *testing.T) {
	h := newHints(10_000)
	now := time.Unix(1e9, 0)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				key := h.key(&policy.Request{}, fmt.Sprint(w, i), "r", 0)
				h.set(key, now, now.Add(time.Minute), now)
				if _, _, ok := h.get(key, now, 0); !ok {
					t.Error("not there")
				}
				if h.empty(now) {
					t.Error("empty")
				}
				if i%100 == 0 {
					h.count(now)
				}
				if i%2 == 0 {
					h.forget(key)
				}
			}
		})
	}
	wg.Wait()
	if n := h.count(now); n < 3600 || n > 4000 {
		t.Errorf("%d hints, want nearly 4000", n)
	}
}
