package callout

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of all probers of one daemon.
type metrics struct {
	limited, busy prometheus.Counter
	waiting, open prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		limited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_verify_callouts_withheld_total", Help: "Callouts that were not made: limits, or a next hop that is left alone.",
		}),
		busy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_verify_callouts_busy_total", Help: "Callouts that were not made because too many waited for the next hop.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_verify_callouts_waiting", Help: "Callouts that wait for a connection.",
		}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_verify_connections", Help: "Connections to next hops in use.",
		}),
	}
	reg.MustRegister(m.limited, m.busy, m.waiting, m.open)
	return m
}

func (m *metrics) observe(r *Result) {
	if r.Limited {
		m.limited.Inc()
	}
}
