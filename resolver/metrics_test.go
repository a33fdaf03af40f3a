package resolver

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/dnstest"
)

// values returns the metrics of a registry by name and labels; of a histogram,
// how many observations it has.
func values(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "postern_resolver_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

func TestMetricsOutliveAReload(t *testing.T) {
	s := dnstest.Start(t)
	s.Add(`a.example. 300 IN A 192.0.2.1`)
	s.Behave("fails.example", dnstest.ServFail)
	s.Behave("forged.example", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieID}, Truth: true})
	reg := prometheus.NewRegistry()
	open := func() *Resolver {
		t.Helper()
		r, err := New(testConfig(s.Addr(), "192.0.2.53"), zap.NewNop(), reg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		r.servers.set([]netip.AddrPort{r.servers.list()[0].addr})
		return r
	}
	use := func(r *Resolver) {
		for _, name := range []string{"a.example", "a.example", "fails.example", "forged.example"} {
			_, _, _, _ = r.LookupA(t.Context(), name)
		}
	}
	check := func(when string, want map[string]float64) {
		t.Helper()
		got := values(t, reg)
		for name, v := range want {
			if g, ok := got[name]; !ok || g != v {
				t.Errorf("%s: %s = %v (%v), want %v", when, name, g, ok, v)
			}
		}
	}
	first := open()
	use(first)
	check("first", map[string]float64{
		"lookups_total hit": 1, "lookups_total miss": 3, "lookups_total stale": 0,
		"queries_total answer udp": 1, "queries_total servfail udp": 1, "queries_total negative udp": 1, "queries_total answer tcp": 0,
		"unwanted_packets_total": 1, "query_seconds": 3, "cache_entries": 3, "servers healthy": 1, "servers unhealthy": 0,
		"in_flight": 0, "queued": 0, "queue_full_total": 0,
	})
	second := open()
	for range downAfter {
		second.servers.list()[0].note(resTimeout, os.ErrDeadlineExceeded, "test", 0)
	}
	check("both", map[string]float64{"cache_entries": 3, "servers healthy": 0, "servers unhealthy": 1})
	second.Close()
	check("reload failed", map[string]float64{"cache_entries": 3, "servers healthy": 1, "servers unhealthy": 0})
	third := open()
	first.Close()
	use(third)
	check("reload", map[string]float64{
		"lookups_total hit": 2, "lookups_total miss": 6, "queries_total answer udp": 2, "query_seconds": 6, "cache_entries": 3, "servers healthy": 1,
	})
	third.Close()
	check("closed", map[string]float64{"cache_entries": 0, "servers healthy": 0})
}

func TestForeignMetricIsAnError(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_resolver_queries_total", Help: "Not ours."}))
	if _, err := New(testConfig("192.0.2.53"), zap.NewNop(), reg); err == nil {
		t.Error("no error")
	}
}
