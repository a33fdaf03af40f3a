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
			if _, _, ok := h.get(key, now); !ok {
				t.Fatalf("%d contacts: the newest is forgotten", most)
			}
		}
		if n := h.count(now); n > room || n < room*9/10 {
			t.Errorf("%d hints of %d", n, room)
		}
		// Those that end soonest have gone.
		kept := 0
		for _, key := range keys[:most] {
			if _, _, ok := h.get(key, now); ok {
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
		until, first, ok := h.get(h.key(&policy.Request{}, c[0], c[1], 1), now)
		if !ok || !until.Equal(now.Add(time.Duration(i+1)*time.Minute)) || !first.Equal(now.Add(-time.Second)) {
			t.Errorf("%q: %v %v %v", c, until, first, ok)
		}
	}
	key := h.key(&policy.Request{}, "a", "bc", 1)
	for what, other := range map[string][2]uint64{
		"another delay":  h.key(&policy.Request{}, "a", "bc", 2),
		"another client": h.key(&policy.Request{Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1")}}, "a", "bc", 1),
	} {
		if _, _, ok := h.get(other, now); ok {
			t.Error(what)
		}
	}
	if h.empty(now) || !h.empty(now.Add(time.Hour)) {
		t.Error("empty too early, or never")
	}
	for at, want := range map[time.Duration]bool{time.Minute - 1: true, time.Minute: false, -time.Second: true, -time.Second - 1: false} {
		if _, _, ok := h.get(key, now.Add(at)); ok != want {
			t.Errorf("after %v: %v, want %v", at, ok, want)
		}
	}
	h.set(key, now, now.Add(time.Hour), now)
	if until, _, ok := h.get(key, now); !ok || !until.Equal(now.Add(time.Hour)) || h.count(now) != len(contacts) {
		t.Errorf("set again: until %v, %d hints", until, h.count(now))
	}
	h.forget(key)
	if _, _, ok := h.get(key, now); ok || h.count(now) != len(contacts)-1 {
		t.Errorf("forgotten: %v, %d hints", ok, h.count(now))
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
				if _, _, ok := h.get(key, now); !ok {
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
