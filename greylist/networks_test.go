package greylist

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestNoteCounts plays correspondences of one network against a list of the
// latest of them, as many as are kept: a burst is more than so many different
// ones within the time.
func TestNoteCounts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNetworks()
		key := n.key(netip.MustParsePrefix("192.0.2.0/24"))
		most := rapid.IntRange(1, maxBurst).Draw(rt, "most")
		const within = time.Hour
		last := map[uint32]time.Time{}
		now := time.Unix(1e9, 0)
		for range rapid.IntRange(1, 60).Draw(rt, "attempts") {
			now = now.Add(time.Duration(rapid.IntRange(1, 900).Draw(rt, "seconds")) * time.Second)
			sum := n.sum(fmt.Sprint(rapid.IntRange(0, 20).Draw(rt, "domain")), "r")
			switch rapid.IntRange(0, 9).Draw(rt, "what") {
			case 0:
				n.drop(key, sum)
				delete(last, sum)
				continue
			case 1:
				want := others(last, sum, now, within)+1 > most
				if got := n.note(key, sum, now, within, most, true); got != want {
					rt.Fatalf("a look: burst %v, want %v", got, want)
				}
				continue
			}
			want := others(last, sum, now, within)+1 > most
			last[sum] = now
			if len(last) > maxBurst+1 {
				delete(last, slices.MinFunc(slices.Collect(maps.Keys(last)), func(a, b uint32) int { return last[a].Compare(last[b]) }))
			}
			if got := n.note(key, sum, now, within, most, false); got != want {
				rt.Fatalf("%d at %v: burst %v, want %v", sum, now, got, want)
			}
		}
	})
}

func others(last map[uint32]time.Time, sum uint32, now time.Time, within time.Duration) (n int) {
	for s, at := range last {
		if s != sum && !at.Before(now.Add(-within)) {
			n++
		}
	}
	return n
}

// More correspondences than there is place for are a burst for whatever most.
func TestNoteOfMany(t *testing.T) {
	n := newNetworks()
	key, now := n.key(netip.MustParsePrefix("2001:db8::/64")), time.Unix(1e9, 0)
	for i := range 1000 {
		got := n.note(key, n.sum(fmt.Sprint(i), "r"), now.Add(time.Duration(i)*time.Second), time.Hour, maxBurst, false)
		if want := i >= maxBurst; got != want {
			t.Fatalf("number %d: burst %v", i, got)
		}
	}
}

func TestClockOfNetworksStepsBack(t *testing.T) {
	n := newNetworks()
	key, now := n.key(netip.MustParsePrefix("192.0.2.0/24")), time.Unix(1e9, 0)
	n.note(key, 1, now, time.Hour, 1, false)
	if !n.note(key, 2, now.Add(-24*time.Hour), time.Hour, 1, false) {
		t.Error("what was written by a clock that was ahead is forgotten")
	}
	if n.note(key, 3, now.Add(2*time.Hour), time.Hour, 1, false) {
		t.Error("and lasts for longer than from now on")
	}
}

// Whoever has not been seen for longest makes room for the credit of others.
func TestCreditsOfManyNetworks(t *testing.T) {
	n := newNetworks()
	keys := make([]uint64, 0, 300_000)
	for i := range cap(keys) {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 0}), 24)
		keys = append(keys, n.key(p))
		n.setCredit(keys[i], uint32(1+i/10_000))
	}
	kept := 0
	for i, key := range keys {
		switch got := n.credit(key); got {
		case 0:
		case uint32(1 + i/10_000):
			kept++
		default:
			t.Fatalf("network %d: day %d", i, got)
		}
	}
	if most := networkParts * creditGroups * networkWays; kept > most || kept < most*9/10 {
		t.Errorf("%d kept, there is room for %d", kept, most)
	}
	recent := 0
	for _, key := range keys[len(keys)-10_000:] {
		if n.credit(key) != 0 {
			recent++
		}
	}
	if recent < 9_900 {
		t.Errorf("of the last 10000 %d are known", recent)
	}
}

func TestNetworksTogether(t *testing.T) {
	n := newNetworks()
	var wg sync.WaitGroup
	now := time.Unix(1e9, 0)
	for i := range 4 {
		wg.Go(func() {
			for j := range 2000 {
				key := n.key(netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(j), 0}), 24))
				n.note(key, uint32(i*j), now, time.Hour, 3, j%3 == 0)
				n.setAsked(key, now)
				n.asked(key, now)
				n.setCredit(key, 7)
				n.credit(key)
				n.drop(key, uint32(i*j))
			}
		})
	}
	wg.Wait()
}
