package client

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are registered once and outlive a reload.
type metrics struct {
	found         [conditions]prometheus.Counter
	unable        [questions]prometheus.Counter
	asked, memory prometheus.Counter
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
	counter := func(name, help, label string) *prometheus.CounterVec {
		return register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_client_" + name, Help: help}, []string{label}))
	}
	found := counter("found_total", "Requests of which a condition was found, whatever came of it.", "condition")
	unable := counter("unable_total", "Questions that the DNS did not answer.", "question")
	answers := counter("answers_total", "Questions by where the answer came from (dns, memory).", "source")
	m := &metrics{asked: answers.WithLabelValues("dns"), memory: answers.WithLabelValues("memory")}
	for c := range conditions {
		m.found[c] = found.WithLabelValues(slugs[c])
	}
	for q := range questions {
		m.unable[q] = unable.WithLabelValues(questionNames[q])
	}
	return m
}
