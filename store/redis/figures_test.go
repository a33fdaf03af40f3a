package redis

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"postern/internal/meter"
	"postern/internal/redistest"
	"postern/store"
)

// BenchmarkFiveMeters prints how five meters of a request, in one call, stand
// to a script that does nothing, and to their script with arguments made before,
// over the same client from 50 callers, in turns:
//
//	go test ./store/redis -run '^$' -bench FiveMeters -benchtime 5x
func BenchmarkFiveMeters(b *testing.B) {
	const callers, turn = 50, 500 * time.Millisecond
	server := redistest.Start(b)
	s := open(b, config(server.Addr()), "")
	load := redis.NewStringCmd(b.Context(), "script", "load", "return 1")
	if err := s.do(b.Context(), load); err != nil {
		b.Fatal(err)
	}
	rate := func(do func(ctx context.Context, caller int) error) float64 {
		var n atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for caller := range callers {
			wg.Go(func() {
				for time.Since(begin) < turn {
					ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
					err := do(ctx, caller)
					cancel()
					if err != nil {
						b.Error(err)
						return
					}
					n.Add(1)
				}
			})
		}
		wg.Wait()
		return float64(n.Load()) / time.Since(begin).Seconds()
	}
	nothing := func(ctx context.Context, caller int) error {
		return s.do(ctx, redis.NewCmd(ctx, "evalsha", load.Val(), 1, fmt.Sprint("postern:nothing:", caller)))
	}
	take := func(ctx context.Context, caller int) error {
		now := time.Now()
		takes := make([]meter.Take, 5)
		for i := range takes {
			takes[i] = meter.Take{Key: fmt.Sprintf("rule%d/rate/user%d@example.org", i, caller), Kind: meter.Rate, Add: 1, Most: 3.6e9, Hard: true}
		}
		_, taken, err := s.TakeMeters(ctx, now, takes, false)
		if err == nil && !taken {
			err = fmt.Errorf("%d was refused", caller)
		}
		return err
	}
	made := make([][]any, callers)
	for caller := range callers {
		for i := range 5 {
			made[caller] = append(made[caller], s.valueName(store.MeterSpace, fmt.Sprintf("rule%d/rate/user%d@example.org", i, caller)))
		}
	}
	alone := func(ctx context.Context, caller int) error {
		now := time.Now()
		values := appendDoubles(make([]byte, 0, 8*29), now.UnixMicro(), now.UnixMilli(), meter.Skew.Milliseconds(), 0)
		for range 5 {
			values = appendDoubles(values, int64(meter.Rate), 1, 1, 3.6e9, 3.6e6)
		}
		args := append([]any{"evalsha", takeSHA, 5}, made[caller]...)
		return s.do(ctx, redis.NewCmd(ctx, append(args, "<"+strings.Repeat("d", len(values)/8), values)...))
	}
	rate(nothing) // connections
	rate(take)
	rate(alone)
	var ratios, script, plain, five []float64
	for b.Loop() {
		p, a, f := rate(nothing), rate(alone), rate(take)
		ratios, script, plain, five = append(ratios, f/p), append(script, f/a), append(plain, p), append(five, f)
	}
	b.ReportMetric(middle(ratios), "of-nothing")
	b.ReportMetric(middle(script), "of-its-script")
	b.ReportMetric(middle(plain), "nothing/s")
	b.ReportMetric(middle(five), "five/s")
}

func middle(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
