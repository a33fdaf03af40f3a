package list

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/filestamp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// edit writes a file whose time of change is long past, as that of a file
// that is left alone.
func edit(t *testing.T, path, text string, version int) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1e9, 0).Add(time.Duration(version) * time.Hour)
	if err := os.Chtimes(path+".new", at, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestListsAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		path := filepath.Join(t.TempDir(), "a.list")
		edit(t, path, "192.0.2.1\n", 1)
		reg := prometheus.NewRegistry()
		l, faults := NewLive([]string{path, "inline:192.0.2.9"}, Options{Key: "k"}, zap.New(core), NewMetrics(reg, "access"))
		if err := faults.Err(); err != nil {
			t.Fatal(err)
		}
		l.Start(time.Second)
		defer l.Stop()
		look := func() { time.Sleep(1500 * time.Millisecond); synctest.Wait() }
		gauge := func(name string, want int) {
			t.Helper()
			text := map[string]string{"entries": "Entries of the lists in force.", "expired_entries": "Entries that have passed their date and no longer match.", "faulty": "Lists whose last edit was not taken."}
			if err := testutil.GatherAndCompare(reg, strings.NewReader(fmt.Sprintf("# HELP postern_access_list_%s %s\n# TYPE postern_access_list_%s gauge\npostern_access_list_%s %d\n",
				name, text[name], name, name, want)), "postern_access_list_"+name); err != nil {
				t.Error(err)
			}
		}
		gauge("entries", 2)
		gauge("faulty", 0)
		look()
		look()
		if n := logs.FilterMessage("list reloaded").Len(); n != 0 {
			t.Errorf("read again %d times though nothing changed", n)
		}
		found := func(client string) bool {
			req := request(client, "", "", "", "")
			req.Time = time.Now()
			return l.Match(req) != nil
		}
		if !found("192.0.2.1") || found("192.0.2.2") {
			t.Fatal("the first version is not in force")
		}

		edit(t, path, "192.0.2.1\n192.0.2.2 until=2000-01-01T00:00:10\n", 2)
		look()
		if !found("192.0.2.1") || !found("192.0.2.2") || !found("192.0.2.9") {
			t.Error("the edit is not in force")
		}
		if st := l.Status(); st[0].Hits != 3 || st[0].Entries != 2 || st[1].Hits != 1 {
			t.Errorf("status %+v: the hits of the first version should be there", st)
		}

		edit(t, path, "192.0.2.3\n1.2.3.4.5\n", 3)
		look()
		if !found("192.0.2.1") || found("192.0.2.3") {
			t.Error("a broken edit has been taken")
		}
		if st := l.Status(); !strings.Contains(st[0].Fault, ":2:1: ") || st[0].FaultAt.IsZero() || st[0].Entries != 2 {
			t.Errorf("status %+v", st[0])
		}
		if n := logs.FilterMessageSnippet("was not taken").Len(); n != 1 {
			t.Errorf("the broken edit was logged %d times", n)
		}
		look()
		if n := logs.FilterMessageSnippet("was not taken").Len(); n != 1 {
			t.Errorf("the broken edit was logged %d times after a second look", n)
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP postern_access_list_entries Entries of the lists in force.
# TYPE postern_access_list_entries gauge
postern_access_list_entries 3
# HELP postern_access_list_faulty Lists whose last edit was not taken.
# TYPE postern_access_list_faulty gauge
postern_access_list_faulty 1
# HELP postern_access_list_reloads_total Lists read again because they had changed.
# TYPE postern_access_list_reloads_total counter
postern_access_list_reloads_total{result="refused"} 1
postern_access_list_reloads_total{result="taken"} 1
`), "postern_access_list_entries", "postern_access_list_faulty", "postern_access_list_reloads_total"); err != nil {
			t.Error(err)
		}

		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		look()
		if !found("192.0.2.1") || !strings.Contains(l.Status()[0].Fault, "no such file") {
			t.Error("a file that has gone takes its entries with it")
		}
		edit(t, path, "192.0.2.4\n", 4)
		look()
		if found("192.0.2.1") || !found("192.0.2.4") || l.Status()[0].Fault != "" {
			t.Error("the file that came back is not in force")
		}
		before := logs.FilterMessage("list reloaded").Len()
		if faults := l.Reload(); len(faults) > 0 || !found("192.0.2.4") {
			t.Error("an explicit reload:", faults)
		}
		if n := logs.FilterMessage("list reloaded").Len() - before; n != 1 {
			t.Errorf("%d lists were read again, want the file", n)
		}
		edit(t, path, "1.2.3.4.5\n", 5)
		if faults := l.Reload(); len(faults) != 1 || !strings.Contains(l.Status()[0].Fault, ":1:1: ") {
			t.Error("an explicit reload of a broken edit:", faults)
		}

		// Several have the gauges in common.
		edit(t, path, "192.0.2.5\n192.0.2.6 until="+time.Now().Add(time.Minute).Format("2006-01-02T15:04:05")+"\n", 6)
		look()
		other, faults := NewLive([]string{"inline:192.0.2.1", "inline:192.0.2.2 until=1999-01-01"}, Options{Key: "k"}, zap.New(core), l.metrics)
		if err := faults.Err(); err != nil {
			t.Fatal(err)
		}
		other.Start(time.Second)
		other.Start(time.Second)
		gauge("entries", 5)
		gauge("expired_entries", 1)
		time.Sleep(2 * time.Minute)
		gauge("expired_entries", 2)
		other.Stop()
		look()
		gauge("entries", 3)
		gauge("expired_entries", 1)
	})
}

func TestExpiryIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		end := time.Now().Add(5 * time.Second).Format("2006-01-02T15:04:05")
		l, faults := NewLive([]string{"inline:192.0.2.1 owner=ann until=" + end, "inline:192.0.2.2 owner=bob until=1999-01-01"},
			Options{Key: "k"}, zap.New(core), nil)
		if err := faults.Err(); err != nil {
			t.Fatal(err)
		}
		if n := logs.FilterField(zap.String("owner", "bob")).Len(); n != 1 {
			t.Errorf("what had expired at the start was reported %d times", n)
		}
		l.Start(0)
		time.Sleep(20 * time.Second)
		l.Stop()
		l.Stop()
		if n := logs.FilterField(zap.String("owner", "ann")).Len(); n != 1 {
			t.Errorf("what expired later was reported %d times", n)
		}
		if st := l.Status(); st[0].Expired != 1 || st[1].Expired != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestAFileBeingWrittenIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.list")
	edit(t, path, "192.0.2.1\n", 1)
	l, faults := NewLive([]string{path}, Options{Key: "k"}, zap.NewNop(), nil)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("192.0.2.2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	written := modified(t, path)
	l.poll(written.Add(filestamp.Settle / 2))
	if l.Find(t, "192.0.2.2") {
		t.Error("read while it was being written")
	}
	l.poll(written.Add(2 * filestamp.Settle))
	if !l.Find(t, "192.0.2.2") {
		t.Error("not read after it was left alone")
	}
}

// Find reports whether the client is in the present set.
func (l *Live) Find(t *testing.T, client string) bool {
	t.Helper()
	return l.Set().Find(request(client, "", "", "", "")) != nil
}

func TestAdopt(t *testing.T) {
	path := write(t, "a.list", "192.0.2.1\n192.0.2.2\n")
	make := func() *Live {
		l, faults := NewLive([]string{path}, Options{Key: "k"}, zap.NewNop(), nil)
		if err := faults.Err(); err != nil {
			t.Fatal(err)
		}
		return l
	}
	old := make()
	old.Match(request("192.0.2.1", "", "", "", ""))
	next := make()
	next.Adopt(old)
	next.Match(request("192.0.2.1", "", "", "", ""))
	if n, _ := next.Set().Entries()[0].Hits(); n != 2 {
		t.Errorf("%d hits", n)
	}
	if n, _ := next.Set().Entries()[1].Hits(); n != 0 {
		t.Errorf("%d hits of the other", n)
	}
}

func modified(t *testing.T, path string) time.Time {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.ModTime()
}

func TestNothingIsMadeOfFaults(t *testing.T) {
	for _, source := range []string{"nonsense:x", "inline:*.x"} {
		if l, faults := NewLive([]string{"inline:192.0.2.1", source}, Options{Key: "k"}, zap.NewNop(), nil); l != nil || len(faults) != 1 || faults[0].Key != "k[1]" {
			t.Errorf("%s: %v, %v", source, l, faults)
		}
	}
	l, faults := NewLive([]string{"inline:192.0.2.1"}, Options{Key: "k"}, zap.NewNop(), nil)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	l.Adopt(nil)
	if !l.Find(t, "192.0.2.1") {
		t.Error("nothing was taken over, and all is gone")
	}
}

// A file that changes while it is read is read again.
func TestAFileThatIsTorn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.list")
	edit(t, path, "192.0.2.1\n", 1)
	tears := 0
	opts := Options{Key: "k", Params: map[string]func(string) error{"tear": func(string) error {
		if tears++; tears == 1 {
			edit(t, path, "192.0.2.3 tear=again\n", 3)
		}
		return nil
	}}}
	l, faults := NewLive([]string{path}, opts, zap.NewNop(), nil)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	edit(t, path, "192.0.2.2 tear=once\n", 2)
	l.poll(time.Now())
	if !l.Find(t, "192.0.2.1") {
		t.Error("taken though it changed meanwhile")
	}
	l.poll(time.Now())
	if !l.Find(t, "192.0.2.3") || tears != 2 {
		t.Errorf("not read again; read %d times", tears)
	}
}

func TestMetricsAreShared(t *testing.T) {
	reg := prometheus.NewRegistry()
	a, b := NewMetrics(reg, "access"), NewMetrics(reg, "access")
	a.taken()
	b.taken()
	if n := testutil.ToFloat64(a.reloads[1]); n != 2 {
		t.Errorf("counted %v of 2", n)
	}
}

func TestStatusLines(t *testing.T) {
	now := time.Unix(1e9, 0)
	for want, st := range map[string]Status{
		"list      access deny: inline:192.0.2.1: 1 entries, 0 hits\n": {Source: "inline:192.0.2.1", Entries: 1},
		"list      access deny: /a: 3 entries, 7 hits, 1 EXPIRED, read 5s ago\n          EDIT NOT TAKEN 2s ago, the entries above stay in force:\n          /a:1: x\n          /a:2: y\n": {
			Source: "/a", File: "/a", Entries: 3, Hits: 7, Expired: 1, Loaded: now.Add(-5 * time.Second), Fault: "/a:1: x\n/a:2: y", FaultAt: now.Add(-2 * time.Second),
		},
	} {
		var b strings.Builder
		if WriteStatus(&b, "access deny", []Status{st}, now); b.String() != want {
			t.Errorf("got  %q\nwant %q", b.String(), want)
		}
	}
}
