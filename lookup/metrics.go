package lookup

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	total   atomic.Uint64
	lookups *prometheus.CounterVec
	bad     struct{ tooLong, malformed, slow, broken, panics prometheus.Counter }
}

// counters are those of one map.
type counters struct{ found, missing, failed, timeouts prometheus.Counter }

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_lookup_lookups_total", Help: "Look-ups answered, by map and result.",
	}, []string{"map", "result"})}
	bad := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_lookup_bad_requests_total", Help: "Requests that could not be answered as they should, by kind.",
	}, []string{"kind"})
	m.bad.tooLong = bad.WithLabelValues("too-long")
	m.bad.malformed = bad.WithLabelValues("malformed")
	m.bad.slow = bad.WithLabelValues("slow")
	m.bad.broken = bad.WithLabelValues("broken")
	m.bad.panics = bad.WithLabelValues("panic")
	reg.MustRegister(m.lookups, bad)
	return m
}

// of returns the counters of the map name, which comes from the configuration.
func (m *metrics) of(name string) counters {
	return counters{
		found: m.lookups.WithLabelValues(name, "found"), missing: m.lookups.WithLabelValues(name, "not-found"),
		failed: m.lookups.WithLabelValues(name, "error"), timeouts: m.lookups.WithLabelValues(name, "timeout"),
	}
}

func (m *metrics) forget(name string) { m.lookups.DeletePartialMatch(prometheus.Labels{"map": name}) }

// TableMetrics are those of the named tables. They belong to the [Tables] that
// were started last. A nil one counts nothing.
type TableMetrics struct {
	reloads [2]prometheus.Counter // refused, taken
	inUse   atomic.Pointer[Tables]
	rules   *prometheus.Desc
	faulty  *prometheus.Desc
	gaveUp  *prometheus.Desc
}

// NewTableMetrics makes the metrics postern_lookup_table_... once for all
// Tables that follow each other.
func NewTableMetrics(reg prometheus.Registerer) *TableMetrics {
	reloads := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_lookup_table_reloads_total", Help: "Files of tables read again because they had changed.",
	}, []string{"result"})
	m := &TableMetrics{
		reloads: [2]prometheus.Counter{reloads.WithLabelValues("refused"), reloads.WithLabelValues("taken")},
		rules:   prometheus.NewDesc("postern_lookup_table_rules", "Rules of the table in force.", []string{"map"}, nil),
		faulty:  prometheus.NewDesc("postern_lookup_table_faulty", "Files of the table whose last edit was not taken.", []string{"map"}, nil),
		gaveUp:  prometheus.NewDesc("postern_lookup_table_pattern_failures", "Patterns given up after their time limit since the table was read.", []string{"map"}, nil),
	}
	reg.MustRegister(reloads, m)
	return m
}

// Describe implements [prometheus.Collector].
func (m *TableMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.rules
	ch <- m.faulty
	ch <- m.gaveUp
}

// Collect implements [prometheus.Collector].
func (m *TableMetrics) Collect(ch chan<- prometheus.Metric) {
	t := m.inUse.Load()
	if t == nil {
		return
	}
	for _, st := range t.Status() {
		if st.Sources == nil {
			continue
		}
		var rules, faulty, failures float64
		for _, s := range st.Sources {
			rules, failures = rules+float64(s.Rules), failures+float64(s.Failures)
			if s.Fault != "" {
				faulty++
			}
		}
		ch <- prometheus.MustNewConstMetric(m.rules, prometheus.GaugeValue, rules, st.Name)
		ch <- prometheus.MustNewConstMetric(m.faulty, prometheus.GaugeValue, faulty, st.Name)
		ch <- prometheus.MustNewConstMetric(m.gaveUp, prometheus.GaugeValue, failures, st.Name)
	}
}

func (m *TableMetrics) use(t *Tables) {
	if m != nil {
		m.inUse.Store(t)
	}
}

// release forgets t, unless others have taken its place.
func (m *TableMetrics) release(t *Tables) {
	if m != nil {
		m.inUse.CompareAndSwap(t, nil)
	}
}

func (m *TableMetrics) taken() {
	if m != nil {
		m.reloads[1].Inc()
	}
}

func (m *TableMetrics) refused() {
	if m != nil {
		m.reloads[0].Inc()
	}
}
