package rbl

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/zap"

	"postern/policy"
)

// warm returns a check with three lists that have answered about 192.0.2.1
// (not listed), 192.0.2.2 (listed by one, without effect) and 2001:db8::1.
func warm(tb testing.TB) *Check {
	tb.Helper()
	dns := newDNS().zone("a.example", "b.example", "c.example")
	dns.set("b.example", "192.0.2.2", "127.0.0.2")
	cfg := DefaultConfig()
	cfg.Lists = []string{"a.example=127.0.0.[2..11]*3", "b.example*2", "c.example=127.0.[0..255].[1..3]*-2"}
	c, err := New(cfg, dns, zap.NewNop(), nil, nil)
	if err != nil {
		tb.Fatal(err)
	}
	for _, a := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"} {
		if _, err := c.Evaluate(tb.Context(), request(a)); err != nil {
			tb.Fatal(err)
		}
	}
	tb.Cleanup(c.Stop)
	return c
}

func TestWarmAllocations(t *testing.T) {
	c := warm(t)
	for _, tt := range []struct {
		client string
		most   float64
	}{{"192.0.2.1", 0}, {"2001:db8::1", 0}, {"192.0.2.2", 2}} {
		req := request(tt.client)
		n := testing.AllocsPerRun(1000, func() {
			req.Facts.Reset()
			if _, err := c.Evaluate(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		})
		if n > tt.most {
			t.Errorf("%s: %v allocations, want at most %v", tt.client, n, tt.most)
		}
	}
}

func BenchmarkEvaluateWarm(b *testing.B) {
	for _, client := range []string{"192.0.2.1", "2001:db8::1", "192.0.2.2"} {
		b.Run(client, func(b *testing.B) {
			c, req, ctx := warm(b), request(client), b.Context()
			b.ReportAllocs()
			for b.Loop() {
				req.Facts.Reset()
				if _, err := c.Evaluate(ctx, req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEvaluateWarmParallel(b *testing.B) {
	c, ctx := warm(b), b.Context()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		req := request("192.0.2.1")
		for pb.Next() {
			req.Facts.Reset()
			if _, err := c.Evaluate(ctx, req); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkEvaluateCold(b *testing.B) {
	c, ctx := warm(b), b.Context()
	b.ReportAllocs()
	addr := netip.MustParseAddr("198.51.0.0")
	req := &policy.Request{Stage: policy.StageRcpt}
	for b.Loop() {
		addr = addr.Next()
		req.Client.Addr = addr
		req.Facts.Reset()
		if _, err := c.Evaluate(ctx, req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseEntry(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseEntry("sender:dbl.example.org=127.0.1.[2..99;102..106]*3"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	cfg := DefaultConfig()
	for i := range 30 {
		cfg.Lists = append(cfg.Lists, fmt.Sprintf("l%d.%s", i, strings.Repeat("x", 10)+".example=127.0.0.[2..11]*3"))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := New(cfg, newDNS(), zap.NewNop(), nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}
