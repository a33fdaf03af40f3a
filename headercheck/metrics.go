package headercheck

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"postern/list"
)

// metrics are registered once and outlive a reload.
type metrics struct {
	messages prometheus.Counter
	patterns prometheus.Counter
	timeouts prometheus.Counter
	unedited prometheus.Counter
	reloads  [2]prometheus.Counter // refused, taken
	rules    prometheus.Gauge
	faulty   prometheus.Gauge
	matches  [kindCount][actionCount][2]prometheus.Counter
	lists    *list.Metrics // nil without a registry
}

// register returns the collector that reg holds by this name: ours, or the one
// of an earlier configuration. reg may be nil.
func register[T prometheus.Collector](reg prometheus.Registerer, c T) T {
	if reg == nil {
		return c
	}
	err := reg.Register(c)
	if twice, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		return twice.ExistingCollector.(T)
	}
	if err != nil {
		panic(err) // a fault in this file
	}
	return c
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const prefix = "postern_headercheck_"
	counter := func(name, help string) prometheus.Counter {
		return register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help}))
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels))
	}
	gauge := func(name, help string) prometheus.Gauge {
		return register(reg, prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help}))
	}
	m := &metrics{
		messages: counter("messages_total", "Messages that header rules have looked at."),
		patterns: counter("patterns_given_up_total", "Patterns that took too long and were taken as not matching."),
		timeouts: counter("timeouts_total", "Messages that were not decided because all rules together took too long."),
		unedited: counter("body_edits_dropped_total", "Messages whose body was too long to be changed as a rule asked."),
		rules:    gauge("rules", "Rules in force."),
		faulty:   gauge("tables_faulty", "Tables whose last edit was not taken."),
	}
	reloads := counters("table_reloads_total", "Tables read again because they had changed.", "result")
	m.reloads = [2]prometheus.Counter{reloads.WithLabelValues("refused"), reloads.WithLabelValues("taken")}
	matches := counters("matches_total", "Lines that a rule matched, by the rule's action.", "kind", "action", "mode")
	for k := range m.matches {
		for a := range m.matches[k] {
			for i, mode := range [2]string{"enforce", "shadow"} {
				m.matches[k][a][i] = matches.WithLabelValues(Kind(k).String(), action(a).String(), mode)
			}
		}
	}
	if reg != nil {
		m.lists = list.NewMetrics(reg, "headercheck")
	}
	return m
}

func (m *metrics) matched(k Kind, a action, shadow bool) {
	i := 0
	if shadow {
		i = 1
	}
	m.matches[k][a][i].Inc()
}
