package rbl

import (
	"errors"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the counters of all lists. They are registered once and outlive
// a reload. The label "list" holds public names.
type metrics struct {
	queries  *prometheus.CounterVec   // list
	cached   *prometheus.CounterVec   // list
	hits     *prometheus.CounterVec   // list
	failures *prometheus.CounterVec   // list, class
	seconds  *prometheus.HistogramVec // list
	tests    *prometheus.CounterVec   // list, result
	trips    *prometheus.CounterVec   // list
	shadowed *prometheus.CounterVec   // list
	state    *prometheus.GaugeVec     // list, state

	mu    sync.Mutex
	names map[string]bool // of lists that have children
}

type listMetrics struct {
	queries, cached, hits, trips, shadowed prometheus.Counter
	seconds                                prometheus.Observer
	failures                               [failClasses]prometheus.Counter
	tests                                  [trusted + 1]prometheus.Counter
	state                                  [stateCount]prometheus.Gauge
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
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_rbl_" + name, Help: help}, labels))
	}
	return &metrics{
		names:    make(map[string]bool),
		queries:  counter("queries_total", "Queries of a DNS list that went to the resolver.", "list"),
		cached:   counter("cached_total", "Questions to a DNS list that were answered from memory.", "list"),
		hits:     counter("hits_total", "Requests for which an entry of a DNS list matched.", "list"),
		failures: counter("failures_total", "Queries of a DNS list without a usable answer, by class.", "list", "class"),
		tests:    counter("tests_total", "Tests of a DNS list (RFC 5782) by result.", "list", "result"),
		trips:    counter("volume_trips_total", "Times that a DNS list listed most of the traffic and went to shadow mode.", "list"),
		shadowed: counter("shadow_total", "Requests whose outcome a DNS list in shadow mode would have changed.", "list"),
		seconds: register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "postern_rbl_query_seconds", Help: "Time of a query of a DNS list.",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5},
		}, []string{"list"})),
		state: register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "postern_rbl_list_state", Help: "1 for the state that a DNS list is in.",
		}, []string{"list", "state"})),
	}
}

func (m *metrics) list(name string) listMetrics {
	m.mu.Lock()
	m.names[name] = true
	m.mu.Unlock()
	l := listMetrics{
		queries: m.queries.WithLabelValues(name), cached: m.cached.WithLabelValues(name), hits: m.hits.WithLabelValues(name),
		trips: m.trips.WithLabelValues(name), shadowed: m.shadowed.WithLabelValues(name), seconds: m.seconds.WithLabelValues(name),
	}
	for c := range l.failures {
		l.failures[c] = m.failures.WithLabelValues(name, failClass(c).String())
	}
	for h := range l.tests {
		l.tests[h] = m.tests.WithLabelValues(name, health(h).String())
	}
	for s := range l.state {
		l.state[s] = m.state.WithLabelValues(name, State(s).String())
	}
	return l
}

// keepOnly forgets the lists that the configuration no longer names.
func (m *metrics) keepOnly(names map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.names {
		if names[name] {
			continue
		}
		delete(m.names, name)
		for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{
			m.queries, m.cached, m.hits, m.failures, m.seconds, m.tests, m.trips, m.shadowed, m.state,
		} {
			v.DeletePartialMatch(prometheus.Labels{"list": name})
		}
	}
}

// show brings the state gauges up to date.
func (m *listMetrics) show(l *list) {
	now := l.state()
	for s := range m.state {
		v := 0.
		if State(s) == now {
			v = 1
		}
		m.state[s].Set(v)
	}
}
