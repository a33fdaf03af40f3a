package app

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of the daemon as a whole.
type metrics struct {
	successful, loaded prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, version string) *metrics {
	m := &metrics{
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_config_last_reload_successful", Help: "1, or 0 while the file in force is older than the one on disk, which has faults.",
		}),
		loaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_config_last_reload_success_timestamp_seconds", Help: "When the configuration in force was read.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "postern_build_info", Help: "Always 1; the labels tell the build.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	reg.MustRegister(m.successful, m.loaded, build)
	return m
}

func (m *metrics) reloaded(ok bool, at time.Time) {
	if !ok {
		m.successful.Set(0)
		return
	}
	m.successful.Set(1)
	m.loaded.Set(float64(at.UnixNano()) / 1e9)
}
