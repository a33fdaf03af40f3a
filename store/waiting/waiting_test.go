package waiting

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"postern/greylist"
)

func key(i int) Key { return Key{uint64(i) * 0x9e3779b97f4a7c15, uint64(i)} }

func one(first int64, attempts uint32) *greylist.Waiting {
	return &greylist.Waiting{Since: first, Last: first, Side: greylist.Side{Match: "net:192.0.2.0/24", First: first, Last: first, Attempts: attempts}}
}

func v4(a, b, c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, c, d}) }

// Who floods pushes out his own, the oldest first; then, when nobody floods, the
// oldest of some network goes; who was tried again goes last.
func TestOrderOfEviction(t *testing.T) {
	tb := New(6)
	put := func(i int, addr netip.Addr, attempts uint32) {
		tb.Put(key(i), one(int64(i), attempts), addr, "", int64(i), 1000)
	}
	there := func(want ...int) {
		t.Helper()
		var got []int
		for i := range 100 {
			if tb.Find(key(i)) != nil {
				got = append(got, i)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("there are %v, want %v", got, want)
		}
	}
	flood, other, third := v4(198, 51, 100, 1), v4(192, 0, 2, 1), v4(203, 0, 113, 1)
	put(1, other, 1)
	for i := 2; i <= 6; i++ {
		put(i, flood, 1)
	}
	put(7, third, 1)
	there(1, 3, 4, 5, 6, 7)
	put(3, flood, 2) // tried again
	put(8, flood, 1)
	there(1, 3, 5, 6, 7, 8)
	if n, age := tb.Evicted(); n != 2 || age.Milliseconds() != 4 {
		t.Errorf("%d evicted, the last one %v old", n, age)
	}
	put(9, flood, 1)
	put(10, flood, 1)
	put(11, flood, 1)
	there(1, 3, 7, 9, 10, 11)
	for _, i := range []int{1, 7, 9, 10, 11} {
		put(i, flood, 2)
	}
	put(12, third, 1) // all were tried again: the first of them goes
	there(1, 7, 9, 10, 11, 12)
	put(13, other, 1) // one was not
	there(1, 7, 9, 10, 11, 13)
	if tb.Len() != 6 {
		t.Errorf("%d entries", tb.Len())
	}
}

// A /32 or /48 of IPv6 has as many /64 as it likes, and is one network once it
// fills many of them.
func TestWideNetworks(t *testing.T) {
	for name, addr := range map[string]func(i int) netip.Addr{
		"one /48": func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 1, byte(i >> 8), byte(i), 1})
		},
		"one /32": func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i), 0, 0, 1})
		},
	} {
		tb := New(1000)
		honest := netip.MustParseAddr("2600:1::1")
		tb.Put(key(0), one(0, 1), honest, "", 0, 1000)
		for i := 1; i < 20_000; i++ {
			tb.Put(key(i), one(int64(i), 1), addr(i), "", int64(i), 1000)
		}
		if tb.Find(key(0)) == nil {
			t.Errorf("%s has pushed out another network", name)
		}
	}
}

// Nobody from elsewhere has to go for a flood from fewer networks than there is
// room for; with more the oldest go, whoever they are.
func TestManyNetworks(t *testing.T) {
	const room, honest = 5000, 500
	for name, tt := range map[string]struct {
		networks, more int // of the flood, and how many contacts of it
		stay           bool
	}{
		"fewer than places": {room - honest, 10 * room, true},
		"more, for a while": {2 * room, room - honest, true},
		"more":              {2 * room, room, false},
	} {
		tb := New(room)
		put := func(i, network int) {
			tb.Put(key(i), one(int64(i+1), 1), v4(byte(network>>16), byte(network>>8), byte(network), 1), "", int64(i), 1e9)
		}
		n := 0
		flood := func(contacts int) {
			for range contacts {
				n++
				put(n, 1<<20+n%tt.networks)
			}
		}
		flood(2 * room)
		first := n + 1
		for range honest {
			n++
			put(n, n)
		}
		flood(tt.more)
		for i := first; i < first+honest; i++ {
			if there := tb.Find(key(i)) != nil; there != tt.stay {
				t.Fatalf("%s: the newcomer %d is there: %v", name, i-first, there)
			}
		}
		whole(t, tb)
	}
}

// TestAgainstPlainMaps plays random changes and compares with maps, and looks
// at the lists from both ends.
func TestAgainstPlainMaps(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 1))
		tb := New(50)
		live := map[Key]int64{}
		stored := map[uint64]Key{} // what a file would hold
		for step := range 3000 {
			k := key(r.IntN(200))
			now := int64(step)
			switch r.IntN(10) {
			case 0:
				had := tb.Remove(k)
				if _, ok := live[k]; ok != had {
					t.Fatal("Remove is wrong about what there was")
				}
				delete(live, k)
			case 1:
				for i := range 3 {
					k := key(r.IntN(200))
					if (tb.Find(k) != nil) != (live[k] != 0) {
						t.Fatalf("step %d %d: find", step, i)
					}
				}
			case 2:
				type taken struct {
					k   Key
					seq uint64
				}
				var wrote []taken
				var gone []uint64
				for tb.Take(1+r.IntN(50), func(e *Entry) { wrote = append(wrote, taken{e.Key(), e.Seq()}) }, func(seq uint64) { gone = append(gone, seq) }) {
				}
				ok := r.IntN(3) > 0
				if r.IntN(2) == 0 && len(wrote) > 0 { // meanwhile
					tb.Remove(wrote[0].k)
					delete(live, wrote[0].k)
				}
				for _, w := range wrote {
					if !ok {
						tb.Failed(w.k, w.seq, false)
						continue
					}
					stored[w.seq] = w.k
					if !tb.Written(w.k, w.seq) {
						tb.Forgotten(w.seq)
					}
				}
				for _, seq := range gone {
					if !ok {
						tb.Failed(Key{}, seq, true)
						continue
					}
					delete(stored, seq)
				}
			case 3:
				tb.Sweep(now, r.IntN(100))
				for k, expires := range live {
					if tb.Find(k) == nil {
						if expires >= now {
							t.Fatal("swept too early")
						}
						delete(live, k)
					}
				}
			default:
				addr := v4(10, byte(r.IntN(3)), byte(r.IntN(3)), 1)
				if r.IntN(3) == 0 {
					addr = netip.AddrFrom16([16]byte{0x20, 1, byte(r.IntN(2)), 0, 0, byte(r.IntN(2)), 0, byte(r.IntN(3))})
				}
				expires := now + int64(r.IntN(500))
				tb.Put(k, one(now+1, uint32(1+r.IntN(2))), addr, "label", now, expires)
				live[k] = max(expires, 1)
				for k := range live {
					if tb.Find(k) == nil {
						delete(live, k)
					}
				}
				if tb.Find(k) == nil || tb.Len() > 50 {
					t.Fatalf("%d entries, or the new one is not there", tb.Len())
				}
			}
			if len(live) != tb.Len() {
				t.Fatalf("seed %d step %d: %d entries, want %d", seed, step, tb.Len(), len(live))
			}
		}
		whole(t, tb)
		for tb.Take(1000, func(e *Entry) { stored[e.Seq()] = e.Key() }, func(seq uint64) { delete(stored, seq) }) {
		}
		if len(stored) != tb.Len() {
			t.Fatalf("seed %d: %d would be in the file, %d are here", seed, len(stored), tb.Len())
		}
		again := New(50)
		for seq, k := range stored {
			e := tb.Find(k)
			if e == nil || e.Seq() != seq {
				t.Fatalf("%d in the file is not what is here", seq)
			}
			again.Restore(k, seq, &e.Waiting, e.Addr, 0, e.Expires)
		}
		if again.Len() != tb.Len() || again.Pending() != 0 {
			t.Errorf("%d restored of %d, %d changes", again.Len(), tb.Len(), again.Pending())
		}
		whole(t, again)
	}
}

// whole looks for entries that are in no list or in two, and for counts that
// are wrong.
func whole(t *testing.T, tb *Table) {
	t.Helper()
	n := 0
	walk := func(l *list) {
		last, count := int32(none), int32(0)
		for i := l.head; i != none; i = tb.entries.at(i).next {
			if e := tb.entries.at(i); e.prev != last || tb.index[e.key] != i {
				t.Fatal("a list is broken")
			}
			last, count = i, count+1
		}
		if last != l.tail || count != l.n {
			t.Fatalf("a list of %d counts %d", count, l.n)
		}
		n += int(count)
	}
	ns, ranked := tb.networks, 0
	for length := range ns.byLength {
		for at := ns.byLength[length].head; at != none; at = ns.places.at(at).next {
			net := ns.places.at(at)
			if int(net.n) != length || length == 0 || ns.index[net.key] != at {
				t.Fatalf("a network of %d is among those of %d", net.n, length)
			}
			walk(&net.list)
			ranked++
		}
	}
	if ranked != len(ns.index) || len(ns.byLength) > 1 && ns.byLength[len(ns.byLength)-1].n == 0 {
		t.Fatalf("%d of %d networks are in a list", ranked, len(ns.index))
	}
	walk(&tb.tried)
	if n != tb.Len() {
		t.Fatalf("%d entries are in lists, of %d", n, tb.Len())
	}
	sum := int32(0)
	for i := range ns.wide[0] {
		sum += ns.wide[0][i] - ns.wide[1][i]
	}
	if sum != 0 {
		t.Fatal("the counts of wide networks differ")
	}
}

func TestTheLaterOfTwoIsRestored(t *testing.T) {
	for _, order := range [][2]uint64{{5, 9}, {9, 5}} {
		tb := New(10)
		for _, seq := range order {
			tb.Restore(key(1), seq, one(int64(seq), 1), v4(192, 0, 2, 1), 0, 1000)
		}
		if e := tb.Find(key(1)); e == nil || e.Seq() != 9 || e.Since != 9 {
			t.Errorf("%v: %+v", order, e)
		}
		var gone []uint64
		tb.Take(10, func(*Entry) { t.Error("nothing has changed") }, func(seq uint64) { gone = append(gone, seq) })
		if !slices.Equal(gone, []uint64{5}) {
			t.Errorf("%v: %v are removed", order, gone)
		}
		tb.Put(key(2), one(1, 1), v4(192, 0, 2, 1), "", 0, 1000)
		if e := tb.Find(key(2)); e.Seq() <= 9 {
			t.Errorf("a new number %d", e.Seq())
		}
	}
}

func BenchmarkPut(b *testing.B) {
	for _, networks := range []int{1, 1000, 1 << 24} {
		b.Run(fmt.Sprintf("%d networks", networks), func(b *testing.B) { benchmarkPut(b, networks) })
	}
}

func benchmarkPut(b *testing.B, networks int) {
	tb := New(1_000_000)
	w := one(1, 1)
	b.ReportAllocs()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	i := 0
	for b.Loop() {
		i++
		tb.Put(key(i), w, v4(byte(i%networks>>16), byte(i%networks>>8), byte(i%networks), 1), "", int64(i), 1e9)
		if i%1000 == 0 {
			tb.Take(1<<30, func(*Entry) {}, func(uint64) {})
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(tb.Len()), "bytes/entry")
}
