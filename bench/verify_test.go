package bench

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/conf"
	"postern/internal/dnstest"
	"postern/internal/mailaddr"
	"postern/internal/smtptest"
	"postern/names"
	"postern/policy"
	"postern/resolver"
	"postern/store"
	"postern/store/bolt"
	"postern/verify"
)

// latency of the next hop, and how many new addresses come at once.
const (
	hopLatency   = 200 * time.Millisecond
	newAddresses = 100
	sameAddress  = 1000
)

// verifyFigures measures recipient verification: what a remembered answer
// costs beside the greylist's, and how long new addresses take.
func verifyFigures(t *testing.T) {
	cfg := store.DefaultConfig()
	cfg.Path = filepath.Join(t.TempDir(), "state.db")
	st, err := bolt.Open(cfg, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close(context.Background()) //nolint:errcheck // a measurement

	hop := smtptest.Start(t)
	check := verifier(t, hop, st)
	req := &policy.Request{
		Time: time.Now(), Stage: policy.StageRcpt, Sender: mailaddr.Parse("a@example.net"), Recipient: mailaddr.Parse("known@example.com"),
		Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1"), Name: "mail.example.net"}, Helo: "mail.example.net",
	}
	if n, _, err := check.Learn(t.Context(), []string{"known@example.com"}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	grey := greylist.ProfileConfig(greylist.Strict)
	grey.Delay = 0
	judge, err := names.New(names.DefaultConfig(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	gc, err := greylist.New(grey, greylist.Options{Hostname: "mx.example.org", Store: st, Names: judge, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	gc.Start()
	defer gc.Stop()
	cost := func(c policy.Check) testing.BenchmarkResult {
		return testing.Benchmark(func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Evaluate(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	var ratios []float64
	var v, g testing.BenchmarkResult
	for range 3 {
		v, g = cost(check), cost(gc)
		ratios = append(ratios, float64(v.NsPerOp())/float64(g.NsPerOp()))
	}
	t.Logf("a remembered recipient beside a known triplet, embedded store: %.2f (%d and %d ns, %d and %d allocations)",
		median(ratios), v.NsPerOp(), g.NsPerOp(), v.AllocsPerOp(), g.AllocsPerOp())

	hop.AcceptAll(false)
	for i := range newAddresses {
		hop.Know(fmt.Sprintf("new%d@example.com", i))
	}
	hop.Know("same@example.com")
	hop.Latency(hopLatency)
	limit := verify.DefaultConfig().Callout.Connections
	took := atOnce(t, check, req, newAddresses, func(i int) string { return fmt.Sprintf("new%d@example.com", i) })
	rounds := float64(took) / float64(hopLatency)
	t.Logf("%d new addresses at once, %d connections, next hop %v away: %v, %.1f rounds; %d would be %d / %d",
		newAddresses, limit, hopLatency, took.Round(time.Millisecond), rounds, newAddresses/limit, newAddresses, limit)
	before := hop.Count("MAIL")
	took = atOnce(t, check, req, sameAddress, func(int) string { return "same@example.com" })
	t.Logf("one new address asked for %d times at once: %d probes, %v", sameAddress, hop.Count("MAIL")-before, took.Round(time.Millisecond))
}

func verifier(t *testing.T, hop *smtptest.Server, st store.Values) *verify.Check {
	cfg := verify.DefaultConfig()
	cfg.Wait = conf.Duration(30 * time.Second)
	cfg.Timeout = conf.Duration(40 * time.Second)
	cfg.Routes = []verify.Route{{Domains: []string{"example.com"}, NextHop: hop.NextHop()}}
	dns := resolver.DefaultConfig()
	dns.Servers = []string{dnstest.Start(t).Addr()}
	r, err := resolver.New(dns, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	c, err := verify.New(cfg, verify.Options{
		Hostname: "gate.example.org", Store: store.SpaceOf(st, "verify"), DNS: r.Net(), Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Start()
	t.Cleanup(c.Stop)
	return c
}

// atOnce asks n times at once and returns how long the last waited.
func atOnce(t *testing.T, c *verify.Check, sample *policy.Request, n int, address func(int) string) time.Duration {
	var wg sync.WaitGroup
	start := time.Now()
	for i := range n {
		r := *sample
		r.Facts = policy.Facts{}
		r.Recipient = mailaddr.Parse(address(i))
		wg.Go(func() {
			if v, err := c.Evaluate(t.Context(), &r); err != nil || v.Reason != "verify-known" {
				t.Errorf("%s: %s %s, %v", r.Recipient.Raw, v.Reason, v.Detail, err)
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}
