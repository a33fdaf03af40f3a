package known

import "github.com/prometheus/client_golang/prometheus"

// What is learned.
const (
	learnedCorrespondent = iota
	learnedAgain
	learnedDomain
	learnedKinds
)

// What is not.
const (
	lostQueue = iota
	lostFull
	lostStore
	lostAutomatic
	lostKinds
)

type metrics struct {
	learned [learnedKinds]prometheus.Counter
	lost    [lostKinds]prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, s Stores) *metrics {
	learned := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_known_learned_total", Help: "What outgoing mail has taught: new correspondents, such as are known for longer, domains that became known.",
	}, []string{"what"})
	lost := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_known_passed_over_total", Help: "Outgoing mail that taught nothing, by why.",
	}, []string{"why"})
	m := new(metrics)
	for i, name := range [learnedKinds]string{"correspondent", "again", "domain"} {
		m.learned[i] = learned.WithLabelValues(name)
	}
	for i, name := range [lostKinds]string{"queue", "full", "store", "automatic"} {
		m.lost[i] = lost.WithLabelValues(name)
	}
	entries := func(kind string, of Store) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "postern_known_entries", Help: "About how many entries are kept.", ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 { return float64(of.Count()) })
	}
	reg.MustRegister(learned, lost, entries("correspondent", s.Correspondents), entries("domain", s.Domains), entries("expected", s.Expected))
	return m
}
