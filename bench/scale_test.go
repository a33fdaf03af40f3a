package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/conf"
	"postern/internal/redistest"
	"postern/store"
	"postern/store/bolt"
	"postern/store/redis"
)

var scale = flag.Int("scale", 0, "load so many triplets into each store and print what one costs (10000000 take half an hour and 6 GB)")

// scaleAsked is how many contacts the cost of one is measured by.
const scaleAsked = 100_000

var scaleRule = greylist.Rule{Delay: time.Minute, Window: 48 * time.Hour, Keep: 36 * 24 * time.Hour, MaxDelay: 4 * time.Hour, KnownAfter: 3, KnownAge: 24 * time.Hour, CountEvery: time.Hour}

// TestScale prints what docs/scale.md reckons with: memory, processor time and
// network of an entry and of a contact.
func TestScale(t *testing.T) {
	if *scale == 0 {
		t.Skip("takes long; -scale 10000000 asks for it")
	}
	t.Logf("%s, %d processors, %s", runtime.Version(), runtime.NumCPU(), processor())
	t.Run("redis", func(t *testing.T) {
		server := redistest.Start(t)
		cfg := store.DefaultConfig()
		cfg.Redis.Addrs = []string{server.Addr()}
		s := scaleRedis(t, cfg)
		before := info(server, "memory", "used_memory")
		loadTriplets(t, s, *scale)
		t.Logf("Redis: %d triplets, %.0f bytes each", *scale, float64(info(server, "memory", "used_memory")-before)/float64(*scale))
		scaleContacts(t, s, []*redistest.Server{server})
	})
	t.Run("cluster", func(t *testing.T) {
		c := redistest.StartCluster(t, 3)
		cfg := store.DefaultConfig()
		cfg.Redis.Addrs, cfg.Redis.Cluster = c.Addrs(), true
		scaleContacts(t, scaleRedis(t, cfg), c.Servers)
	})
	t.Run("embedded", func(t *testing.T) {
		cfg := store.DefaultConfig()
		cfg.Path, cfg.MaxEntries = filepath.Join(t.TempDir(), "state.db"), *scale+1000
		s, err := bolt.Open(cfg, zap.NewNop(), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		loadTriplets(t, s, *scale)
		if err := s.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		debug.FreeOSMemory()
		begin := time.Now()
		if s, err = bolt.Open(cfg, zap.NewNop(), prometheus.NewRegistry()); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begin)
		defer s.Close(context.Background()) //nolint:errcheck // nothing is pending
		time.Sleep(20 * time.Second)        // the filter of all keys is made in the background
		debug.FreeOSMemory()
		t.Logf("embedded: %d triplets, %.0f bytes each in the file, opened in %v, %d MiB resident", *scale, float64(st.Size())/float64(*scale), took.Round(time.Millisecond), resident())
	})
}

func scaleRedis(t *testing.T, cfg store.Config) *redis.Store {
	t.Helper()
	cfg.Redis.Timeout = conf.Duration(10 * time.Second)
	s, err := redis.Open(cfg, "", "", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) }) // nothing is pending
	return s
}

// loadTriplets puts n triplets that have passed into a store.
func loadTriplets(t *testing.T, s store.Store, n int) {
	t.Helper()
	now := time.Now()
	const batch = 500
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				from := int(next.Add(batch)) - batch
				if from >= n {
					return
				}
				entries := make([]greylist.Entry, 0, batch)
				for i := from; i < min(from+batch, n); i++ {
					entries = append(entries, greylist.Entry{
						Kind: greylist.KindTriplet, Match: fmt.Sprintf("org:sender%d.example", i%50_000), Sender: fmt.Sprintf("somebody%d@sender%d.example", i, i%50_000),
						Recipient: fmt.Sprintf("user%d@example.com", i%10_000), First: now.Add(-time.Hour), Last: now, Attempts: 1, Passes: 1,
					})
				}
				for {
					_, err := s.MergeGreylist(t.Context(), entries, &scaleRule, now)
					if errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrUnavailable) { // faster than the disk
						time.Sleep(50 * time.Millisecond)
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					break
				}
			}
		})
	}
	wg.Wait()
}

// scaleContacts prints what contacts cost the servers.
func scaleContacts(t *testing.T, s store.Store, servers []*redistest.Server) {
	t.Helper()
	sum := func(section, field string) (total int64, most int64) {
		for _, server := range servers {
			v := info(server, section, field)
			total, most = total+v, max(most, v)
		}
		return total, most
	}
	cpu := func() (total int64) {
		for _, server := range servers {
			for _, f := range []string{"used_cpu_user", "used_cpu_sys"} {
				total += info(server, "cpu", f)
			}
		}
		return total
	}
	for _, kind := range []struct {
		name string
		ask  func(worker, i int) greylist.Contact
	}{
		{"first contacts", func(w, i int) greylist.Contact {
			return greylist.Contact{
				Match: fmt.Sprintf("net:10.%d.%d.0/24", w, i%250), Credit: fmt.Sprintf("net:10.%d.%d.0/24 new%d.example", w, i%250, i),
				Sender: fmt.Sprintf("new%d@new%d.example", w, i), Recipient: fmt.Sprintf("user%d@example.com", i%10_000),
			}
		}},
		{"known triplets", func(w, i int) greylist.Contact {
			n := i % 200
			return greylist.Contact{
				Match: "org:known.example", Credit: fmt.Sprintf("org:known%d.%d.example", w, n), Sender: fmt.Sprintf("k%d.%d@known.example", w, n), Recipient: "user@example.com",
			}
		}},
	} {
		const workers = 50
		var wg sync.WaitGroup
		run := func(n int, at time.Time) {
			for w := range workers {
				wg.Go(func() {
					for i := range n / workers {
						c := kind.ask(w, i)
						c.Time, c.Rule = at, scaleRule
						if _, err := s.TouchGreylist(t.Context(), &c); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		}
		now := time.Now()
		if kind.name == "known triplets" {
			run(200*workers, now.Add(-time.Hour))
			run(200*workers, now.Add(-time.Hour+scaleRule.Delay))
		}
		cpu0 := cpu()
		in0, _ := sum("stats", "total_net_input_bytes")
		out0, _ := sum("stats", "total_net_output_bytes")
		var commands0 []int64
		for _, server := range servers {
			commands0 = append(commands0, info(server, "stats", "total_commands_processed"))
		}
		begin := time.Now()
		run(scaleAsked, now)
		took := time.Since(begin)
		in1, _ := sum("stats", "total_net_input_bytes")
		out1, _ := sum("stats", "total_net_output_bytes")
		var all, most int64
		for i, server := range servers {
			n := info(server, "stats", "total_commands_processed") - commands0[i]
			all, most = all+n, max(most, n)
		}
		t.Logf("%d server(s), %s: %.1f µs of the servers' processor time, %.0f bytes in and %.0f out, %.2f commands each, %.0f a second; the busiest server has %.2f of the commands",
			len(servers), kind.name, float64(cpu()-cpu0)/scaleAsked, float64(in1-in0)/scaleAsked, float64(out1-out0)/scaleAsked, float64(all)/scaleAsked,
			scaleAsked/took.Seconds(), float64(most)/float64(all))
	}
}

// info is a number of INFO; seconds are in microseconds.
func info(s *redistest.Server, section, field string) int64 {
	m := regexp.MustCompile(`(?m)^` + field + `:([0-9.]+)`).FindStringSubmatch(s.Command("info", section))
	if m == nil {
		return 0
	}
	f, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0
	}
	if strings.HasPrefix(field, "used_cpu") {
		f *= 1e6
	}
	return int64(f)
}

// resident is the process's resident memory in MiB.
func resident() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	return pages * int64(os.Getpagesize()) >> 20
}
