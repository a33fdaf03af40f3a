package bolt

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/greylist"
	"postern/internal/conf"
	"postern/store"
	"postern/store/overlay"
	"postern/store/storetest"
)

func config(path string) store.Config {
	cfg := store.DefaultConfig()
	cfg.Path = path
	cfg.FlushInterval = conf.Duration(20 * time.Millisecond)
	return cfg
}

func open(t testing.TB, cfg store.Config) *Store {
	t.Helper()
	s, err := Open(cfg, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) }) // the test closes what it examines
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t testing.TB) store.Store {
		cfg := config(filepath.Join(t.TempDir(), "state.db"))
		cfg.MaxWaiting = storetest.MaxWaiting
		return open(t, cfg)
	})
}

func contact(i int, at time.Time) *greylist.Contact {
	return &greylist.Contact{Match: "net:192.0.2.0/24", Sender: fmt.Sprintf("sender%d@example.org", i), Recipient: "b@example.com", Time: at, Rule: storetest.Rule}
}

func TestStateSurvivesAClose(t *testing.T) {
	cfg := config(filepath.Join(t.TempDir(), "state.db"))
	cfg.FlushInterval = conf.Duration(time.Hour) // only Close writes
	now := time.Now()
	s := open(t, cfg)
	for i := range 100 {
		if _, err := s.TouchGreylist(t.Context(), contact(i, now)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	if st := s.Status(); st.Entries != 0 || st.Pending != 0 || st.Room.Waiting != 100 {
		t.Errorf("status after reopening: %+v", st)
	}
	for i := range 100 {
		out, err := s.TouchGreylist(t.Context(), contact(i, now.Add(storetest.Rule.Delay)))
		if err != nil || out.State != greylist.FirstPass || out.Attempts != 1 {
			t.Fatalf("entry %d: %+v, %v", i, out, err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	if st := s.Status(); st.Entries != 100 || st.Room.Waiting != 0 {
		t.Errorf("status after all have passed: %+v", st)
	}
	st, err := os.Stat(cfg.Path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("file mode %v, %v", st.Mode(), err)
	}
}

// TestKillNineLosesAtMostTheFlushInterval kills a process that writes all the
// time, and looks for all that it had written long enough ago.
func TestKillNineLosesAtMostTheFlushInterval(t *testing.T) {
	if path := os.Getenv("POSTERN_BOLT_VICTIM"); path != "" {
		victim(path)
	}
	path := filepath.Join(t.TempDir(), "state.db")
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillNineLosesAtMostTheFlushInterval$")
	cmd.Env = append(os.Environ(), "POSTERN_BOLT_VICTIM="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	safe := -1 // everything up to here has seen two whole flushes
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if n, ok := strings.CutPrefix(lines.Text(), "safe "); ok {
			safe, _ = strconv.Atoi(n)
			if safe >= 2000 {
				break
			}
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if safe < 0 {
		t.Fatal("the writer told nothing")
	}
	s := open(t, config(path))
	lost := 0
	for i := range safe + 1 {
		c := contact(i, time.Now())
		c.DryRun = true
		o, err := s.TouchGreylist(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if o.State == greylist.FirstContact {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d entries that were older than the flush interval are lost", lost, safe+1)
	}
}

// victim writes entries until it is killed. It calls an entry safe when a
// flush has begun and ended after it was made.
func victim(path string) {
	s, err := Open(config(path), zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var flushed time.Time
	older, newer := -1, -1
	for i := 0; ; i++ {
		if _, err := s.TouchGreylist(context.Background(), contact(i, time.Now())); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if f := s.Status().Flushed; f.After(flushed) {
			flushed = f
			if older >= 0 {
				fmt.Println("safe", older)
			}
			older, newer = newer, i
		}
		time.Sleep(20 * time.Microsecond) // real time passes in the child
	}
}

func TestDamagedFileIsMovedAside(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"garbage": func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("garbage ", 4096)), 0o600) },
		"short":   func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) },
		"both meta pages": func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			for i := range 2 * os.Getpagesize() {
				b[i] ^= 0x55
			}
			return os.WriteFile(p, b, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			if err := open(t, config(path)).Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			core, logs := observer.New(zapcore.ErrorLevel)
			s, err := Open(config(path), zap.New(core), prometheus.NewRegistry())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close(t.Context()) //nolint:errcheck // not what is tested
			if logs.FilterMessageSnippet("damaged").Len() != 1 {
				t.Errorf("log: %v", logs.All())
			}
			if aside, _ := filepath.Glob(path + ".damaged-*"); len(aside) != 1 {
				t.Errorf("moved aside: %v", aside)
			}
			if _, err := s.TouchGreylist(t.Context(), contact(1, time.Now())); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFilesThatAreNotOpened(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	first := open(t, config(path))
	if _, err := Open(config(path), zap.NewNop(), prometheus.NewRegistry()); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a file in use: %v", err)
	}
	if _, _, err := Compact(path); err == nil || !strings.Contains(err.Error(), "stop the daemon first") {
		t.Errorf("compacting a file in use: %v", err)
	}
	if err := first.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keySchema, []byte{schema + 1}) }); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(config(path), zap.NewNop(), prometheus.NewRegistry()); !errors.Is(err, store.ErrNewer) {
		t.Errorf("a newer file: %v", err)
	}
	if _, err := Open(config(filepath.Join(dir, "no", "state.db")), zap.NewNop(), prometheus.NewRegistry()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := Open(config(dir), zap.NewNop(), prometheus.NewRegistry()); err == nil {
		t.Error("a directory was opened")
	}
}

// earlier puts a file of testdata, as an earlier version has written it, into
// a directory of its own.
func earlier(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A file of schema 2: who has passed is known. Who waited then begins anew,
// and what clients had earned by their names alone is not credit.
func TestFileOfSchema2(t *testing.T) {
	cfg := config(earlier(t, "schema2.db.gz"))
	s := open(t, cfg)
	base := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	touch := func(match, credit, sender string, after time.Duration) greylist.Outcome {
		t.Helper()
		out, err := s.TouchGreylist(t.Context(), &greylist.Contact{
			Match: match, Credit: credit, Sender: sender, Recipient: "bob@example.com", Time: base.Add(after), Rule: storetest.Rule,
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	const day = 24 * time.Hour
	if out := touch("org:example.org", "org:example.org", "passed@example.org", day); out.State != greylist.KnownTriplet || out.Attempts != 1 || !out.First.Equal(base) {
		t.Errorf("a triplet that has passed: %+v", out)
	}
	if out := touch("org:known.example", "org:known.example", "other@known.example", day); out.State != greylist.FirstContact {
		t.Errorf("credit of the name alone: %+v", out)
	}
	if out := touch("net:192.0.2.0/24", "", "waits@example.org", time.Hour); out.State != greylist.FirstContact {
		t.Errorf("who waited: %+v", out)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	// Two triplets, three records of old kinds, one credit.
	if out := touch("org:example.org", "org:example.org", "passed@example.org", 2*day); out.State != greylist.KnownTriplet {
		t.Errorf("after a restart: %+v", out)
	}
	if n, err := s.CountGreylist(t.Context(), base.Add(2*day)); err != nil || n.Triplets != 2 || n.Credits != 1 || n.Waiting != 2 {
		t.Errorf("%+v, %v", n, err)
	}
	s.sweep(base.Add(100 * day))
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.db.View(func(tx *bbolt.Tx) error {
		if n := tx.Bucket(bucketGrey).Stats().KeyN; n != 0 {
			t.Errorf("%d keys after their time", n)
		}
		if v := tx.Bucket(bucketMeta).Get(keySchema); len(v) != 1 || v[0] != schema {
			t.Errorf("schema %v", v)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// A record of schema 1, which kept who waits among the triplets.
func TestWaitingTripletOfSchema1(t *testing.T) {
	cfg := config(filepath.Join(t.TempDir(), "state.db"))
	s := open(t, cfg)
	now := time.Now()
	c := contact(1, now)
	if err := s.db.Update(func(tx *bbolt.Tx) error {
		first := overlay.Record{A: now.UnixMilli(), B: now.UnixMilli(), X: 1, Expires: now.Add(time.Hour).UnixMilli()}
		return errors.Join(
			tx.Bucket(bucketGrey).Put(store.AppendKey(nil, store.TripletKey, c.Match, c.Sender, c.Recipient), encode(nil, &first)),
			tx.Bucket(bucketMeta).Put(keySchema, []byte{1}),
			tx.Bucket(bucketMeta).Put(keyEntries, binary.BigEndian.AppendUint64(nil, 1)),
		)
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	c.Time = now.Add(time.Second)
	if out, err := s.TouchGreylist(t.Context(), c); err != nil || out.State != greylist.EarlyRetry || out.Attempts != 2 {
		t.Errorf("a triplet of then: %+v, %v", out, err)
	}
	if st := s.Status(); st.Entries != 0 || st.Room.Waiting != 1 {
		t.Errorf("%+v", st)
	}
	c.Time = now.Add(time.Hour)
	if out, err := s.TouchGreylist(t.Context(), c); err != nil || out.State != greylist.FirstPass {
		t.Errorf("its retry: %+v, %v", out, err)
	}
}

func TestWriteErrorKeepsChangesAndHeals(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	cfg := config(filepath.Join(t.TempDir(), "state.db"))
	cfg.FlushInterval = conf.Duration(time.Hour) // flushes are called by hand
	s, err := Open(cfg, zap.New(core), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context()) //nolint:errcheck // not what is tested
	tooLong := contact(0, time.Now())
	if _, err := s.TouchGreylist(t.Context(), tooLong); err != nil {
		t.Fatal(err)
	}
	// A read-only transaction mode stands for a disk that refuses writes.
	good := s.db
	bad, err := bbolt.Open(filepath.Join(t.TempDir(), "other.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := bad.Close(); err != nil {
		t.Fatal(err)
	}
	s.db = bad
	if err := s.flush(); err == nil {
		t.Fatal("a closed file took changes")
	}
	if st := s.Status(); st.Healthy || st.LastError == "" {
		t.Errorf("status %+v", st)
	}
	if err := s.Ping(t.Context()); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Ping: %v", err)
	}
	s.db = good
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); !st.Healthy || st.Pending != 0 {
		t.Errorf("status after healing %+v", st)
	}
	kept := 0
	if err := s.eachWaiting(t.Context(), time.Now(), func(greylist.Entry) bool { kept++; return true }); err != nil || kept != 1 {
		t.Errorf("%d of 1 written in the end, %v", kept, err)
	}
	if logs.FilterMessageSnippet("cannot write").Len() != 1 || logs.FilterMessageSnippet("can be written again").Len() != 1 {
		t.Errorf("log: %v", logs.All())
	}
}

func TestSweepDeletesFromTheFile(t *testing.T) {
	cfg := config(filepath.Join(t.TempDir(), "state.db"))
	cfg.FlushInterval = conf.Duration(time.Hour)
	s := open(t, cfg)
	old := time.Now().Add(-100 * 24 * time.Hour)
	passes := func(i int, at time.Time) {
		t.Helper()
		c := contact(i, at)
		c.Rule.Delay = 0
		if out, err := s.TouchGreylist(t.Context(), c); err != nil || out.State != greylist.FirstPass {
			t.Fatal(out.State, err)
		}
	}
	for i := range 5000 {
		passes(i, old)
	}
	passes(0, time.Now())
	for i := range 100 {
		if _, err := s.TouchGreylist(t.Context(), contact(10_000+i, old)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	for range 4 { // sweepKeys at a time
		s.sweep(time.Now())
	}
	s.engine.SweepRoom(time.Now())
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	keys := 0
	if err := s.db.View(func(tx *bbolt.Tx) error {
		keys = tx.Bucket(bucketGrey).Stats().KeyN + tx.Bucket(bucketWait).Stats().KeyN
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n := s.Status().Entries; keys != 1 || n != 1 {
		t.Errorf("%d keys in the file, %d entries counted; want one, of the live triplet", keys, n)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, after, err := Compact(cfg.Path)
	if err != nil || after >= before {
		t.Errorf("compacted from %d to %d, %v", before, after, err)
	}
	if st := open(t, cfg).Status(); st.Entries != 1 {
		t.Errorf("after compacting: %+v", st)
	}
}

func BenchmarkTouch(b *testing.B) {
	for _, size := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprintf("entries=%d", size), func(b *testing.B) { benchmarkSize(b, size) })
	}
}

// benchmarkSize measures a store of that many triplets: opening, a contact
// from anywhere in it, a new contact, and what the process holds in memory.
func benchmarkSize(b *testing.B, size int) {
	cfg := config(filepath.Join(b.TempDir(), "state.db"))
	cfg.FlushInterval = conf.Duration(time.Second)
	s := open(b, cfg)
	now := time.Now()
	for i := range size {
		c := contact(i, now)
		c.Rule.Delay = 0 // passed at once: a triplet without a pair
		c.Rule.KnownAfter = 0
		if _, err := s.TouchGreylist(b.Context(), c); err != nil {
			b.Fatal(err)
		}
		if i%100_000 == 99_999 {
			if err := s.flush(); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := s.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	s = open(b, cfg)
	opened := time.Since(start)
	touch := func(b *testing.B, next func(i int) *greylist.Contact) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			i++
			if i%50_000 == 0 { // no gap for the flusher here: its work is part of the price
				if err := s.flush(); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := s.TouchGreylist(b.Context(), next(i)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(opened.Milliseconds()), "ms-open")
		runtime.GC()
		b.ReportMetric(residentMB(), "MB-resident")
	}
	b.Run("known", func(b *testing.B) {
		touch(b, func(i int) *greylist.Contact {
			c := contact((i*7919)%size, now.Add(time.Minute))
			c.Rule.KnownAfter = 0
			return c
		})
	})
	b.Run("new", func(b *testing.B) {
		touch(b, func(i int) *greylist.Contact { return contact(size+i, now) })
	})
}

// residentMB is the resident set of this process (proc(5), VmRSS).
func residentMB() float64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if kb, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.Atoi(strings.Fields(kb)[0])
			return float64(n) / 1024
		}
	}
	return 0
}
