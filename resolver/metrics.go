package resolver

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are shared by all resolvers of one registry: a reload continues
// what its predecessor counted.
type metrics struct {
	hit, miss, stale prometheus.Counter
	udp, tcp         prometheus.Counter
	failures         map[error]prometheus.Counter
	malformed        prometheus.Counter
	seconds          prometheus.Observer
	inFlight         prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var failed error
	lookups := register(reg, &failed, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_resolver_lookups_total", Help: "Look-ups by where the answer came from: hit (cache), miss (a server was asked), stale.",
	}, []string{"result"}))
	queries := register(reg, &failed, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_resolver_queries_total", Help: "Queries sent to servers.",
	}, []string{"transport"}))
	failures := register(reg, &failed, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_resolver_failures_total", Help: "Queries without a usable answer, and answers that were thrown away (malformed).",
	}, []string{"kind"}))
	seconds := register(reg, &failed, prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "postern_resolver_query_seconds", Help: "Time of a query until its answer.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
	}))
	inFlight := register(reg, &failed, prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "postern_resolver_in_flight", Help: "Look-ups that wait for a server now.",
	}))
	if failed != nil {
		return nil, failed
	}
	return &metrics{
		hit: lookups.WithLabelValues("hit"), miss: lookups.WithLabelValues("miss"), stale: lookups.WithLabelValues("stale"),
		udp: queries.WithLabelValues("udp"), tcp: queries.WithLabelValues("tcp"),
		failures: map[error]prometheus.Counter{
			ErrTimeout: failures.WithLabelValues("timeout"), ErrServFail: failures.WithLabelValues("servfail"),
			ErrRefused: failures.WithLabelValues("refused"), ErrUnreachable: failures.WithLabelValues("unreachable"),
		},
		malformed: failures.WithLabelValues("malformed"), seconds: seconds, inFlight: inFlight,
	}, nil
}

func register[C prometheus.Collector](reg prometheus.Registerer, failed *error, c C) C {
	err := reg.Register(c)
	if are, ok := err.(prometheus.AlreadyRegisteredError); ok { //nolint:errorlint // Register returns it bare
		if existing, ok := are.ExistingCollector.(C); ok {
			return existing
		}
	}
	*failed = errors.Join(*failed, err)
	return c
}

func (m *metrics) answered(took time.Duration) { m.seconds.Observe(took.Seconds()) }

func (m *metrics) failed(kind error) {
	if c := m.failures[kind]; c != nil {
		c.Inc()
	}
}
