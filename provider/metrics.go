package provider

import (
	"errors"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are registered once and outlive a reload. The label "list" holds the
// names of the configuration.
type metrics struct {
	networks  *prometheus.GaugeVec   // list, family
	checked   *prometheus.GaugeVec   // list
	changed   *prometheus.GaugeVec   // list
	refused   *prometheus.GaugeVec   // list
	faults    *prometheus.GaugeVec   // list
	refreshes *prometheus.CounterVec // list, result
	relay     *prometheus.CounterVec // list, result
	messages  *prometheus.CounterVec // list, result

	mu    sync.Mutex
	names map[string]bool // of lists that have children
}

// relayResult is what became of a question for relaying, or of a message.
type relayResult uint8

const (
	relayPermitted relayResult = iota
	relayDenied                // the conditions on the envelope do not hold
	relayNoMilter              // they do, but the milter has no session with the client
	relayUnseen                // they do, but its session is not shown the content
	relayResults
)

var relayNames = [relayResults]string{"permitted", "denied", "no-milter", "deferred"}

type messageResult uint8

const (
	messagePassed messageResult = iota
	messageRefused
	messageDeferred
	messageShadow // would have been refused
	messageResults
)

var messageNames = [messageResults]string{"passed", "refused", "deferred", "shadow"}

type listMetrics struct {
	v4, v6, checked, changed, refused, faults prometheus.Gauge
	refreshes                                 map[Result]prometheus.Counter
	relay                                     [relayResults]prometheus.Counter
	messages                                  [messageResults]prometheus.Counter
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
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_provider_" + name, Help: help}, append([]string{"list"}, labels...)))
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_provider_" + name, Help: help}, []string{"list", "result"}))
	}
	return &metrics{
		names:     make(map[string]bool),
		networks:  gauge("networks", "Networks of a provider list in force, aggregated.", "family"),
		checked:   gauge("checked_timestamp_seconds", "When the SPF records of a list were last read and agreed with the list in force; 0 for never."),
		changed:   gauge("changed_timestamp_seconds", "When a list last changed; 0 for never."),
		refused:   gauge("refused", "1 while an update of a list waits for an operator to accept it."),
		faults:    gauge("faulty", "1 while the files of a list, as they are now, could not be taken."),
		refreshes: counter("refreshes_total", "Readings of a list by what became of them."),
		relay:     counter("relay_total", "Recipients asked for by clients of a list that may relay, by answer."),
		messages:  counter("messages_total", "Messages held to the conditions of relaying, by outcome."),
	}
}

func (m *metrics) list(name string) listMetrics {
	m.mu.Lock()
	m.names[name] = true
	m.mu.Unlock()
	l := listMetrics{
		v4: m.networks.WithLabelValues(name, "ipv4"), v6: m.networks.WithLabelValues(name, "ipv6"),
		checked: m.checked.WithLabelValues(name), changed: m.changed.WithLabelValues(name),
		refused: m.refused.WithLabelValues(name), faults: m.faults.WithLabelValues(name),
		refreshes: make(map[Result]prometheus.Counter),
	}
	for _, r := range results {
		l.refreshes[r] = m.refreshes.WithLabelValues(name, string(r))
	}
	for i := range l.relay {
		l.relay[i] = m.relay.WithLabelValues(name, relayNames[i])
	}
	for i := range l.messages {
		l.messages[i] = m.messages.WithLabelValues(name, messageNames[i])
	}
	return l
}

// keepOnly forgets the lists that the configuration no longer names.
func (m *metrics) keepOnly(lists map[string]*list) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.names {
		if lists[name] != nil {
			continue
		}
		delete(m.names, name)
		for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{
			m.networks, m.checked, m.changed, m.refused, m.faults, m.refreshes, m.relay, m.messages,
		} {
			v.DeletePartialMatch(prometheus.Labels{"list": name})
		}
	}
}

func (m *listMetrics) count(r Result) { m.refreshes[r].Inc() }

func (m *listMetrics) faulty(yes bool) {
	m.faults.Set(0)
	if yes {
		m.faults.Set(1)
	}
}

// show brings the gauges up to date.
func (l *list) show() {
	v4, v6 := 0, 0
	if s := l.snap.Load(); s != nil {
		for _, p := range s.prefixes {
			if p.Addr().Is4() {
				v4++
			} else {
				v6++
			}
		}
	}
	l.metrics.v4.Set(float64(v4))
	l.metrics.v6.Set(float64(v6))
	l.mu.Lock()
	defer l.mu.Unlock()
	at := func(g prometheus.Gauge, unix int64, zero bool) {
		if zero {
			unix = 0
		}
		g.Set(float64(unix))
	}
	at(l.metrics.checked, l.doc.Checked.Unix(), l.doc.Checked.IsZero())
	at(l.metrics.changed, l.doc.Changed.Unix(), l.doc.Changed.IsZero())
	l.metrics.refused.Set(0)
	if l.doc.Pending != nil {
		l.metrics.refused.Set(1)
	}
}
