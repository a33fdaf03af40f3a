package bolt

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/store"
)

func reopen(t *testing.T, path string) *Store {
	t.Helper()
	cfg := store.DefaultConfig()
	cfg.Path = path
	s, err := Open(cfg, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestValuesOutliveTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := reopen(t, path)
	ctx := context.Background()
	now := time.Now()
	for i := range 50 {
		if ok, err := s.SwapValue(ctx, "verify", fmt.Sprint(i), "", "v", now.Add(time.Hour)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if ok, err := s.SwapValue(ctx, "verify", "7", "v", "", now); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := s.SwapValue(ctx, "verify", "old", "", "v", now.Add(-time.Hour)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}

	s = reopen(t, path)
	defer s.Close(ctx) //nolint:errcheck // a test
	if n := s.CountValues("verify"); n != 50 {
		t.Errorf("%d values counted", n)
	}
	for key, want := range map[string]string{"3": "v", "7": "", "99": ""} {
		if v, err := s.LoadValue(ctx, "verify", key); v != want || err != nil {
			t.Errorf("%s: %q, %v", key, v, err)
		}
	}
	s.sweepValues(now)
	if v, err := s.LoadValue(ctx, "verify", "old"); v != "" || err != nil {
		t.Errorf("expired: %q, %v", v, err)
	}
	if n := s.CountValues("verify"); n != 49 {
		t.Errorf("%d values after the sweep", n)
	}
}

func TestValuesAreBounded(t *testing.T) {
	cfg := store.DefaultConfig()
	cfg.Path, cfg.MaxEntries = filepath.Join(t.TempDir(), "state.db"), 1000
	s, err := Open(cfg, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background()) //nolint:errcheck // a test
	later := time.Now().Add(time.Hour)
	for i := range 1001 {
		_, err = s.SwapValue(context.Background(), "verify", fmt.Sprint(i), "", "v", later)
	}
	if err == nil {
		t.Error("more values than max_entries were taken")
	}
	if ok, err := s.SwapValue(context.Background(), "verify", "1", "v", "w", later); !ok || err != nil {
		t.Errorf("a change of a value that is there: %v, %v", ok, err)
	}
}

// TestValuesUnderLoad has each worker know what its own keys hold while the
// file is written, swept, listed and read.
func TestValuesUnderLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := reopen(t, path)
	ctx := context.Background()
	const workers, keys = 4, 300
	held := make([]map[string]string, workers)
	var work, other sync.WaitGroup
	stop := make(chan struct{})
	other.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = s.flushValues()
			s.sweepValues(time.Now())
			if err := s.EachValue(ctx, "verify", func(string, string, time.Time) bool { return true }); err != nil {
				t.Error(err)
			}
		}
	})
	for w := range workers {
		held[w] = make(map[string]string)
		work.Go(func() {
			for i := range 6000 {
				key := fmt.Sprintf("%d-%d", w, (i*i+7*i)%keys)
				old, next := held[w][key], ""
				if i%3 > 0 {
					next = fmt.Sprint("v", i)
				}
				if v, err := s.LoadValue(ctx, "verify", key); v != old || err != nil {
					t.Errorf("%s: %q, want %q: %v", key, v, old, err)
				}
				if ok, err := s.SwapValue(ctx, "verify", key, "other", "x", time.Now().Add(time.Hour)); ok || err != nil {
					t.Errorf("%s: swapped what is not there: %v", key, err)
				}
				if ok, err := s.SwapValue(ctx, "verify", key, old, next, time.Now().Add(time.Hour)); !ok || err != nil {
					t.Errorf("%s: not swapped: %v", key, err)
				}
				held[w][key] = next
			}
		})
	}
	work.Wait()
	close(stop)
	other.Wait()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, path)
	defer s.Close(ctx) //nolint:errcheck // a test
	n := 0
	for w := range held {
		for key, want := range held[w] {
			if want != "" {
				n++
			}
			if v, err := s.LoadValue(ctx, "verify", key); v != want || err != nil {
				t.Errorf("after the restart %s: %q, want %q: %v", key, v, want, err)
			}
		}
	}
	if got := s.CountValues("verify"); got != n {
		t.Errorf("%d values counted, %d are there", got, n)
	}
}
