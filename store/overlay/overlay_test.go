package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/greylist"
	"postern/store"
	"postern/store/waiting"
)

var rule = greylist.Rule{
	Delay: 2 * time.Minute, Window: 48 * time.Hour, Keep: 36 * 24 * time.Hour, MaxDelay: 4 * time.Hour,
	KnownAfter: 3, KnownAge: time.Hour, CountEvery: time.Hour,
}

// disk is a backing in maps.
type disk struct {
	mu      sync.Mutex
	recs    map[string]Record
	waiting map[uint64][]byte
	looks   int // keys asked for
}

func newDisk() *disk { return &disk{recs: map[string]Record{}, waiting: map[uint64][]byte{}} }

func (d *disk) Load(key []byte) (rec Record, found bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	rec, found = d.recs[string(key)]
	return rec, found, nil
}

func (d *disk) write(changes Changes, waiting []WaitingChange) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range changes.Len() {
		if c := changes.At(i); c.Gone {
			delete(d.recs, string(c.Key))
		} else {
			d.recs[string(c.Key)] = c.Rec
		}
	}
	for _, c := range waiting {
		if c.Value == nil {
			delete(d.waiting, c.Seq)
		} else {
			d.waiting[c.Seq] = c.Value
		}
	}
}

// flush writes all that an engine has to write.
func (d *disk) flush(e *Engine) {
	waiting, changes := e.TakeWaiting(), e.TakeDirty()
	d.write(changes, waiting)
	e.WroteWaiting(waiting, true)
	e.Written()
}

func (d *disk) fill(add func(key []byte)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range d.recs {
		add([]byte(k))
	}
	return nil
}

// current returns what an engine with a backing holds, all of it flushed.
func (d *disk) current(e *Engine) map[string]Record {
	all := map[string]Record{}
	for key, rec := range d.recs {
		if now, ok := e.Current(key, rec); ok {
			all[key] = now
		}
	}
	return all
}

// waits returns who waits according to the file.
func (d *disk) waits() map[greylist.Entry]bool {
	all := map[greylist.Entry]bool{}
	for _, v := range d.waiting {
		for _, e := range WaitingEntries(v, time.Time{}) {
			all[e] = true
		}
	}
	return all
}

func inMemory(e *Engine) map[string]Record {
	all := map[string]Record{}
	for i := range e.shards {
		for j, name := range e.shards[i].names {
			if e.shards[i].cells[j].used {
				all[name] = e.shards[i].cells[j].rec
			}
		}
	}
	return all
}

func waitsInMemory(e *Engine) map[greylist.Entry]bool {
	all := map[greylist.Entry]bool{}
	e.RangeWaiting(time.Time{}, func(en greylist.Entry) bool { all[en] = true; return true })
	return all
}

// restore makes an engine of what is on disk, as after a start.
func (d *disk) restore(t *testing.T) *Engine {
	e := New(Options{MaxEntries: 1e6, MaxWaiting: 1e6, Backing: d, MaxDirty: 1e6, Entries: len(d.recs)})
	for seq, v := range d.waiting {
		if !e.RestoreWaiting(seq, v, time.Now()) {
			t.Fatalf("%x cannot be read", v)
		}
	}
	return e
}

// TestEngineBesideMapAlone holds an engine with a backing, whose flushes fail
// at times and whose cache is tiny, to one that has all in memory.
func TestEngineBesideMapAlone(t *testing.T) {
	for seed := range uint64(10) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		d := newDisk()
		behind := New(Options{MaxEntries: 1e6, MaxWaiting: 1e6, Backing: d, MaxDirty: 1e6, CacheSize: shardCount * 4})
		alone := New(Options{MaxEntries: 1e6, MaxWaiting: 1e6})
		if seed%2 == 0 {
			if err := behind.FillFilter(d.fill); err != nil {
				t.Fatal(err)
			}
		}
		now := time.Now().Truncate(time.Millisecond)
		var flush *Changes // under way
		var waiting []WaitingChange
		for range 5000 {
			now = now.Add(time.Duration(rnd.IntN(60)) * time.Second)
			switch rnd.IntN(50) {
			case 0:
				if flush == nil {
					waiting = behind.TakeWaiting()
					changes := behind.TakeDirty()
					flush = &changes
				}
			case 1:
				if flush != nil && rnd.IntN(3) == 0 {
					behind.WroteWaiting(waiting, false)
					behind.Failed()
					flush = nil
				}
			case 2:
				if flush != nil {
					d.write(*flush, waiting)
					behind.WroteWaiting(waiting, true)
					behind.Written()
					flush = nil
				}
			case 3:
				key := string(store.AppendKey(nil, store.TripletKey, fmt.Sprint("w", rnd.IntN(20)), fmt.Sprint("s", rnd.IntN(20)), "r"))
				if rnd.IntN(2) == 0 {
					key = string(store.AppendKey(nil, store.CreditKey, fmt.Sprint("c", rnd.IntN(10))))
				}
				yes := func(Record) bool { return true }
				got, err1 := behind.Delete(key, yes)
				want, err2 := alone.Delete(key, yes)
				if got != want || err1 != nil || err2 != nil {
					t.Fatalf("seed %d: Delete(%q) = %v, %v, want %v, %v", seed, key, got, err1, want, err2)
				}
			case 4: // what is on disk, as it is now
				got, want := d.current(behind), inMemory(alone)
				for key, rec := range got {
					if want[key] != rec {
						t.Fatalf("seed %d: %q is %+v, want %+v", seed, key, rec, want[key])
					}
				}
			case 5:
				of := greylist.Entry{Match: fmt.Sprint("w", rnd.IntN(20)), Sender: fmt.Sprint("s", rnd.IntN(20)), Recipient: "r"}
				if got, want := behind.ForgetWaiting(&of), alone.ForgetWaiting(&of); got != want {
					t.Fatalf("seed %d: forgotten %v, want %v", seed, got, want)
				}
			default:
				c := greylist.Contact{
					Match: fmt.Sprint("w", rnd.IntN(20)), Sender: fmt.Sprint("s", rnd.IntN(20)), Recipient: "r", Time: now, Rule: rule, DryRun: rnd.IntN(10) == 0,
				}
				if n := rnd.IntN(10); n > 0 {
					c.Credit = fmt.Sprint("c", n)
				}
				got, err1 := behind.Touch(&c)
				want, err2 := alone.Touch(&c)
				if got != want || err1 != nil || err2 != nil {
					t.Fatalf("seed %d: %+v, %v; want %+v, %v", seed, got, err1, want, err2)
				}
			}
			if behind.Entries() != alone.Entries() {
				t.Fatalf("seed %d: %d entries, want %d", seed, behind.Entries(), alone.Entries())
			}
		}
		if flush != nil {
			behind.WroteWaiting(waiting, false)
			behind.Failed()
		}
		d.flush(behind)
		d.flush(behind) // what came and went during the first
		if n := behind.Pending(); n != 0 {
			t.Errorf("seed %d: %d changes pending after the last flush", seed, n)
		}
		if got, want := d.current(behind), inMemory(alone); !maps.Equal(got, want) {
			t.Errorf("seed %d: the backing holds %d records, want %d", seed, len(got), len(want))
		}
		if got, want := d.waits(), waitsInMemory(alone); !maps.Equal(got, want) || len(want) < 10 {
			t.Errorf("seed %d: %d wait in the file, want %d", seed, len(got), len(want))
		}
		// Another process goes on from there.
		again := d.restore(t)
		for i := range 300 {
			c := greylist.Contact{
				Match: fmt.Sprint("w", rnd.IntN(20)), Credit: fmt.Sprint("c", i%10), Sender: fmt.Sprint("s", rnd.IntN(20)), Recipient: "r", Time: now, Rule: rule,
			}
			got, err1 := again.Touch(&c)
			want, err2 := alone.Touch(&c)
			if got != want || err1 != nil || err2 != nil {
				t.Fatalf("seed %d after a start: %+v, %v; want %+v, %v", seed, got, err1, want, err2)
			}
		}
	}
}

// A file that holds something else is no entry.
func TestDecodeWaiting(t *testing.T) {
	w := waiting.New(10)
	w.Put(waiting.Key{A: 1}, &greylist.Waiting{
		Since: 1, Last: 2, Side: greylist.Side{Match: "a", First: 1, Last: 2, Attempts: 3}, More: []greylist.Side{{Match: "b", First: 4, Last: 5, Attempts: 6}},
	}, netip.MustParseAddr("2001:db8::1"), string(store.AppendParts(nil, "s", "r")), 1, 1000)
	var good []byte
	w.Take(1, func(e *waiting.Entry) { good = appendWaiting(nil, e) }, nil)
	e := New(Options{MaxEntries: 10, MaxWaiting: 10})
	if !e.RestoreWaiting(7, good, time.Now()) {
		t.Fatal("not read")
	}
	for n := range len(good) {
		if e.RestoreWaiting(7, good[:n], time.Now()) || WaitingEntries(good[:n], time.Time{}) != nil {
			t.Errorf("the first %d bytes are taken for an entry", n)
		}
	}
	if got := WaitingEntries(good, time.Time{}); len(got) != 2 || got[1].Match != "b" || got[1].Sender != "s" || got[1].Recipient != "r" || got[1].Attempts != 6 {
		t.Errorf("%+v", got)
	}
}

func FuzzDecodeWaiting(f *testing.F) {
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, v []byte) {
		w, ok := decodeWaiting(v)
		if ok && (w.Side.First == 0 || len(w.More) >= greylist.MaxSides) {
			t.Errorf("%+v", w)
		}
		WaitingEntries(v, time.Time{})
	})
}

// TestTableBesideMap holds a shard to a map.
func TestTableBesideMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var sh shard
	sh.init(1<<30, true)
	want := map[digest]int64{}
	// Few homes, so that runs are long and go around the end.
	key := func() digest { return digest{rnd.Uint64N(40) * (1 << 58), rnd.Uint64N(20)} }
	for i := range 200_000 {
		d := key()
		c := sh.find(d)
		if _, ok := want[d]; ok != (c != nil) || ok && c.rec.A != want[d] {
			t.Fatalf("step %d: found %+v, want %v", i, c, want[d])
		}
		switch {
		case c == nil && rnd.IntN(3) > 0:
			name := fmt.Sprint(d)
			sh.insert(d, []byte(name)).rec.A = int64(i)
			want[d] = int64(i)
		case c != nil && rnd.IntN(2) > 0:
			sh.remove(c)
			delete(want, d)
		}
		if sh.n != len(want) {
			t.Fatalf("step %d: %d cells, want %d", i, sh.n, len(want))
		}
	}
	for i := range sh.cells {
		if c := &sh.cells[i]; c.used && sh.names[i] != fmt.Sprint(c.key) || !c.used && sh.names[i] != "" {
			t.Fatalf("cell %d has the name %q", i, sh.names[i])
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	d := newDisk()
	const keep = shardCount * 8
	e := New(Options{MaxEntries: 1e6, MaxWaiting: 1e6, Backing: d, MaxDirty: 1e6, CacheSize: keep})
	count := func() (n, room int) {
		for i := range e.shards {
			n, room = n+e.shards[i].n, room+len(e.shards[i].cells)
		}
		return n, room
	}
	now := time.Now()
	touch := func(i int) {
		c := greylist.Contact{Match: "w", Sender: fmt.Sprint(i), Recipient: "r", Time: now, Rule: rule}
		c.Rule.Delay = 0 // passes
		if _, err := e.Touch(&c); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10_000 {
		touch(i)
	}
	if n, _ := count(); n < 10_000 {
		t.Fatalf("%d cells for 10000 changes that are not written", n)
	}
	d.flush(e)
	for i := range 40_000 {
		touch(100_000 + i)
		if i%50 == 49 {
			d.flush(e)
		}
	}
	if n, room := count(); n > 2*keep || room > 16*keep {
		t.Errorf("%d cells and room for %d, of which %d are wanted", n, room, keep)
	}
	for i := range e.shards {
		if c := cap(e.shards[i].batch.changes) + cap(e.shards[i].before.changes); c > 1024 {
			t.Fatalf("a shard keeps room for %d changes", c)
		}
	}
}

func TestChangesComeInOrder(t *testing.T) {
	for _, shortest := range []int{0, 8, 40} {
		rnd := rand.New(rand.NewPCG(3, uint64(shortest)))
		e := New(Options{MaxEntries: 1e6, MaxWaiting: 1e6, Backing: newDisk(), MaxDirty: 1e6, CacheSize: 1000})
		var put []string // by Record.A
		for range 3000 {
			key := strings.Repeat("prefix ", rnd.IntN(4)) + strings.Repeat("\x00", rnd.IntN(3)) + fmt.Sprint(rnd.IntN(100))
			if rnd.IntN(2) == 0 {
				key += fmt.Sprint(rnd.Uint64())
			}
			if len(key) < shortest {
				key = strings.Repeat("x", shortest-len(key)) + key
			}
			if key += strings.Repeat("\x00", rnd.IntN(2)); !slices.Contains(put, key) {
				e.put(&e.shards[len(put)%shardCount], e.digest([]byte(key)), []byte(key), Record{A: int64(len(put))}, false, false)
				put = append(put, key)
			}
		}
		want := slices.Sorted(slices.Values(put))
		changes := e.TakeDirty()
		if changes.Len() != len(want) {
			t.Fatalf("%d changes, want %d", changes.Len(), len(want))
		}
		for i := range want {
			if c := changes.At(i); string(c.Key) != want[i] || put[c.Rec.A] != want[i] {
				t.Fatalf("keys of %d bytes and more: change %d is %q %+v, want %q", shortest, i, c.Key, c.Rec, want[i])
			}
		}
	}
}

func TestFilterSparesLooks(t *testing.T) {
	d := newDisk()
	e := New(Options{MaxEntries: 1e6, MaxWaiting: 1e6, Backing: d, MaxDirty: 1e6, CacheSize: shardCount})
	if !e.FilterFull() {
		t.Error("no filter is good enough")
	}
	const n = 5000
	contact := func(i int) *greylist.Contact {
		c := &greylist.Contact{Match: fmt.Sprint("w", i), Sender: fmt.Sprint(i), Recipient: "r", Time: time.Now(), Rule: rule}
		c.Rule.Delay = 0
		return c
	}
	for i := range n {
		if _, err := e.Touch(contact(i)); err != nil {
			t.Fatal(err)
		}
		if i == n/2 { // one half by the filling, the other by flushes during and after it
			d.flush(e)
		}
	}
	// A flush whose keys the filling does not see any more.
	err := e.FillFilter(func(add func([]byte)) error {
		if err := d.fill(add); err != nil {
			return err
		}
		d.flush(e)
		return nil
	})
	if err != nil || e.FilterFull() {
		t.Fatalf("filling: %v", err)
	}
	for i := range n {
		if out, err := e.Touch(contact(i)); err != nil || out.State != greylist.KnownTriplet {
			t.Fatalf("contact %d is forgotten: %v, %v", i, out.State, err)
		}
	}
	d.looks = 0
	for i := range n {
		if out, err := e.Touch(contact(n + i)); err != nil || out.State != greylist.FirstPass {
			t.Fatalf("contact %d: %v, %v", n+i, out.State, err)
		}
	}
	if d.looks > n/20 {
		t.Errorf("%d looks into the backing for %d new contacts", d.looks, n)
	}
	if err := e.FillFilter(func(func([]byte)) error { return errors.New("broken") }); err == nil {
		t.Error("a filling that broke off")
	}
	if out, err := e.Touch(contact(1)); err != nil || out.State != greylist.KnownTriplet {
		t.Errorf("after a filling that broke off: %v, %v", out.State, err)
	}
}

func TestFilterIsFullInTime(t *testing.T) {
	f := newFilter(1)
	e := New(Options{})
	wrong, asked := 0, 0
	for i := range filterMin * filterWord {
		if f.full() {
			break
		}
		f.add(e.digest([]byte(fmt.Sprint("key", i))))
	}
	for i := range 100_000 {
		asked++
		if f.holds(e.digest([]byte(fmt.Sprint("other", i)))) {
			wrong++
		}
	}
	if wrong > asked/50 {
		t.Errorf("%d of %d keys that were not added are taken for added", wrong, asked)
	}
	for i := 0; !f.full(); i++ {
		f.add(e.digest([]byte(fmt.Sprint("more", i))))
	}
	if len(newFilter(10*filterMin*filterWord).words) < 10*filterMin {
		t.Error("a filter for many keys is too small")
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	d := newDisk()
	e := New(Options{MaxEntries: 1e6, MaxWaiting: 1e6, Backing: d, MaxDirty: 1e6, CacheSize: shardCount})
	ctx, cancel := context.WithCancel(t.Context())
	var flusher, wg sync.WaitGroup
	flusher.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			waiting, changes := e.TakeWaiting(), e.TakeDirty()
			if i%5 == 0 {
				e.WroteWaiting(waiting, false)
				e.Failed()
				continue
			}
			for j := 1; j < changes.Len(); j++ {
				if a, b := changes.At(j-1), changes.At(j); bytes.Compare(a.Key, b.Key) >= 0 {
					t.Errorf("%q before %q", a.Key, b.Key)
				}
			}
			d.write(changes, waiting)
			e.WroteWaiting(waiting, true)
			e.Written()
			e.SweepRoom(time.Now())
			e.Room(time.Now())
		}
	})
	flusher.Go(func() {
		for ctx.Err() == nil {
			_ = e.FillFilter(d.fill) // it does not fail
		}
	})
	now := time.Now()
	for w := range 4 {
		wg.Go(func() {
			for i := range 3000 {
				c := greylist.Contact{Match: fmt.Sprint("w", w), Credit: fmt.Sprint("c", w%2), Addr: netip.MustParseAddr("192.0.2.1"), Sender: fmt.Sprint(i % 500), Recipient: "r", Time: now.Add(time.Duration(i) * time.Second), Rule: rule}
				if _, err := e.Touch(&c); err != nil {
					t.Error(err)
				}
				if i%100 == 0 {
					if _, err := e.Delete(string(store.AppendKey(nil, store.CreditKey, c.Credit)), func(Record) bool { return true }); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	cancel()
	flusher.Wait()
}
