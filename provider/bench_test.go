package provider

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/policy"
)

// large returns n networks that do not aggregate, IPv4 and IPv6.
func large(n int) string {
	var b strings.Builder
	for i := range n {
		if i%4 == 3 {
			fmt.Fprintf(&b, "2600:%x:%x::/48\n", i>>16+1, i&0xfffe)
			continue
		}
		fmt.Fprintf(&b, "%d.%d.%d.0/25\n", 20+i>>16, i>>8&255, i&255)
	}
	return b.String()
}

// largeSet has a list of 100000 networks.
func largeSet(b *testing.B) (*Set, Table) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "large.list")
	if err := os.WriteFile(path, []byte(large(100_000)), 0o600); err != nil {
		b.Fatal(err)
	}
	cfg := testConfig(b)
	cfg.Lists = []ListConfig{{Name: "p", Files: []string{path}, AllowReserved: true}}
	s, _ := newSet(b, cfg, Options{Resolver: newZone(nil)})
	table, _ := s.Table("p")
	return s, table
}

func addresses(table Table) []netip.Addr {
	r := rand.New(rand.NewPCG(9, 10))
	return probes(r, table.Prefixes(), 1<<14)
}

func BenchmarkLookup100k(b *testing.B) {
	_, table := largeSet(b)
	addrs := addresses(table)
	b.ReportMetric(float64(len(table.Prefixes())), "networks")
	b.Run("contains", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			table.Contains(addrs[i&(1<<14-1)])
			i++
		}
	})
	b.Run("entry", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			table.Lookup(addrs[i&(1<<14-1)])
			i++
		}
	})
}

// The longest look-up while the list is exchanged again and again.
func BenchmarkSwap100k(b *testing.B) {
	s, table := largeSet(b)
	addrs := addresses(table)
	l := s.lists[0]
	var stop atomic.Bool
	worst := make(chan time.Duration)
	go func() {
		var most time.Duration
		for i := 0; !stop.Load(); i++ {
			start := time.Now()
			table.Contains(addrs[i&(1<<14-1)])
			most = max(most, time.Since(start))
		}
		worst <- most
	}()
	b.ReportAllocs()
	for b.Loop() {
		l.install()
	}
	stop.Store(true)
	b.ReportMetric(float64((<-worst).Microseconds()), "worst-lookup-us")
}

func BenchmarkEvaluate(b *testing.B) {
	s, _ := relaySet(b, func(c *Config) {
		for i := range 4 {
			c.Lists = append(c.Lists, ListConfig{Name: fmt.Sprint("other", i), Domains: []string{"q.example"}})
		}
	}, RelayConfig{SenderDomains: []string{"example.org"}, TenantIDs: []string{tenantA}})
	for name, addr := range map[string]string{"stranger": "198.51.100.1", "listed": "192.0.2.7"} {
		b.Run(name, func(b *testing.B) {
			req := request("a@example.net", "b@example.com")
			req.Client.Addr = netip.MustParseAddr(addr)
			req.Stage = policy.StageMail
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Evaluate(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkFlatten(b *testing.B) {
	z := newZone(providerRecords(b))
	for _, domain := range []string{"spf.protection.outlook.com", "_spf.google.com", "outlook.com"} {
		b.Run(domain, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Flatten(b.Context(), z, domain, defaultLimits); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDiff100k(b *testing.B) {
	_, table := largeSet(b)
	from := table.Prefixes()
	to := append(from[:50_000:50_000], from[50_001:]...)
	b.ReportAllocs()
	for b.Loop() {
		if d := diffOf(from, to); len(d.Removed) != 1 {
			b.Fatal(len(d.Removed))
		}
	}
}
