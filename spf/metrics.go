package spf

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are registered once and outlive a reload.
type metrics struct {
	results             [identities][kinds]prometheus.Counter
	relayed             [relayedKinds]prometheus.Counter
	evaluations, cached prometheus.Counter
}

// register returns the collector that reg holds by this name: ours, or the one
// of an earlier configuration.
func register[T prometheus.Collector](reg prometheus.Registerer, c T) T {
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
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_spf_" + name, Help: help}, labels))
	}
	results := counter("results_total", "SPF results by identity (mailfrom, helo).", "identity", "result")
	relayed := counter("relayed_total", "Messages from a trusted relay, by whether the client behind it was found.", "origin")
	asked := counter("outcomes_total", "SPF questions by where the outcome came from (evaluated, memory).", "source")
	m := &metrics{evaluations: asked.WithLabelValues("evaluated"), cached: asked.WithLabelValues("memory")}
	for id := range identities {
		for k := range kinds {
			m.results[id][k] = results.WithLabelValues(id.fact(), kindNames[k])
		}
	}
	for k := range relayedKinds {
		m.relayed[k] = relayed.WithLabelValues(relayedNames[k])
	}
	return m
}
