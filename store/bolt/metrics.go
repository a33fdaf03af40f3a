package bolt

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/store/overlay"
)

type metrics struct {
	errors  prometheus.Counter
	failed  prometheus.Counter
	seconds prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_store_errors_total", Help: "Operations that the store could not do.",
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_store_flush_failures_total", Help: "Batches that could not be written to the state file.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "postern_store_flush_seconds", Help: "Time to write a batch to the state file.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5},
		}),
	}
	reg.MustRegister(m.errors, m.failed, m.seconds)
	return m
}

// observe registers the gauges that are read from the engine.
func (m *metrics) observe(e *overlay.Engine, reg prometheus.Registerer) {
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "postern_store_entries", Help: "Records in the store.",
		}, func() float64 { return float64(e.Entries()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "postern_store_pending", Help: "Changes that are not on disk yet.",
		}, func() float64 { return float64(e.Pending()) }),
	)
}

func (m *metrics) flushed(err error, took time.Duration) {
	m.seconds.Observe(took.Seconds())
	if err != nil {
		m.failed.Inc()
	}
}
