package resolver

import (
	"fmt"
	"net/netip"
	"testing"

	"postern/internal/dnstest"
)

func warm(tb testing.TB) *Resolver {
	tb.Helper()
	s := dnstest.Start(tb)
	s.Add(`2.0.0.127.bl.example. 3600 IN A 127.0.0.2`, `1.2.0.192.in-addr.arpa. 3600 IN PTR a.example.`)
	r := start(tb, testConfig(s.Addr()))
	if _, _, _, err := r.LookupA(tb.Context(), "2.0.0.127.bl.example"); err != nil {
		tb.Fatal(err)
	}
	if _, _, _, err := r.LookupA(tb.Context(), "not.bl.example"); err != nil {
		tb.Fatal(err)
	}
	if _, _, _, err := r.LookupPTR(tb.Context(), netip.MustParseAddr("192.0.2.1")); err != nil {
		tb.Fatal(err)
	}
	return r
}

// What a hit takes is the slice that it returns, and none for what DNS lists
// answer.
func TestWarmLookupsCostLittle(t *testing.T) {
	r := warm(t)
	ctx := t.Context()
	addr := netip.MustParseAddr("192.0.2.1")
	for _, tt := range []struct {
		name string
		most float64
		look func() (cached bool)
	}{
		{"A", 0, func() bool { _, _, cached, _ := r.LookupA(ctx, "2.0.0.127.bl.example"); return cached }},
		{"no such name", 0, func() bool { _, _, cached, _ := r.LookupA(ctx, "not.bl.example"); return cached }},
		{"A in capitals", 1, func() bool { _, _, cached, _ := r.LookupA(ctx, "2.0.0.127.BL.example"); return cached }},
		{"PTR", 2, func() bool { _, _, cached, _ := r.LookupPTR(ctx, addr); return cached }},
	} {
		if got := testing.AllocsPerRun(1000, func() {
			if !tt.look() {
				t.Fatalf("%s: not cached", tt.name)
			}
		}); got > tt.most {
			t.Errorf("%s: %v allocations, want at most %v", tt.name, got, tt.most)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	b.Run("warm", func(b *testing.B) {
		r := warm(b)
		b.ReportAllocs()
		for b.Loop() {
			if _, _, cached, err := r.LookupA(b.Context(), "2.0.0.127.bl.example"); err != nil || !cached {
				b.Fatal(cached, err)
			}
		}
	})
	b.Run("warm-parallel", func(b *testing.B) {
		r := warm(b)
		ctx := b.Context()
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, _, cached, err := r.LookupA(ctx, "2.0.0.127.bl.example"); err != nil || !cached {
					b.Error(cached, err)
				}
			}
		})
	})
	b.Run("warm-ptr", func(b *testing.B) {
		r := warm(b)
		addr := netip.MustParseAddr("192.0.2.1")
		b.ReportAllocs()
		for b.Loop() {
			if _, _, cached, err := r.LookupPTR(b.Context(), addr); err != nil || !cached {
				b.Fatal(cached, err)
			}
		}
	})
	b.Run("cold", func(b *testing.B) { // with the server's work in the same process
		s := dnstest.Start(b)
		s.KeepLog(false)
		s.Add(`*.bl.example. 3600 IN A 127.0.0.2`)
		r := start(b, testConfig(s.Addr()))
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			i++
			if _, _, _, err := r.LookupA(b.Context(), fmt.Sprintf("n%d.bl.example", i)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
