package verify

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/verify/callout"
)

// Who answered, as it stands in metrics.
const (
	sourceCache   = "cache"
	sourceFile    = "file"
	sourceLDAP    = "ldap"
	sourceCallout = "callout"
	sourceLimits  = "limits"

	resultBusy    = "busy"
	resultHarvest = "harvest"
)

// metrics of all verify checks of one daemon.
type metrics struct {
	answers     map[[2]string]prometheus.Counter
	seconds     map[[2]string]prometheus.Observer // of sources that are asked over the network
	storeErrors prometheus.Counter

	mu     sync.Mutex
	checks map[*Check]bool // running, the newest last to start
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		answers: make(map[[2]string]prometheus.Counter), seconds: make(map[[2]string]prometheus.Observer), checks: make(map[*Check]bool),
		storeErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_verify_store_errors_total", Help: "Answers that could not be looked up or kept.",
		}),
	}
	answers := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_verify_answers_total", Help: "Answers about recipients, by who gave them and what they were.",
	}, []string{"source", "result"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "postern_verify_seconds", Help: "Time of a question to a directory or a next hop, by what the answer was.",
		Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"source", "result"})
	stored := []string{string(Known), string(Unknown), string(Temporary), string(Refused), string(Undecided)}
	for source, results := range map[string][]string{
		sourceCache: stored, sourceFile: stored[:2], sourceLDAP: stored[:3], sourceCallout: callout.Classes(),
		sourceLimits: {resultBusy, resultHarvest},
	} {
		for _, r := range results {
			m.answers[[2]string{source, r}] = answers.WithLabelValues(source, r)
			if source == sourceLDAP || source == sourceCallout {
				m.seconds[[2]string{source, r}] = seconds.WithLabelValues(source, r)
			}
		}
	}
	reg.MustRegister(answers, seconds, m.storeErrors,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "postern_verify_entries", Help: "Addresses remembered, about.",
		}, m.sum(func(c *Check) int { return c.store.Count() })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "postern_verify_pending", Help: "Addresses that are being asked about.",
		}, m.sum(func(c *Check) int {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.flying
		})),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "postern_verify_next_hops_down", Help: "Next hops that do not answer or refuse us.",
		}, m.sum(func(c *Check) int {
			n := 0
			for _, h := range c.prober.Status() {
				if h.State == "down" || h.State == "refuses us" {
					n++
				}
			}
			return n
		})),
	)
	return m
}

// sum is a value of the check that runs; during a reload there are two, and
// the greater tells.
func (m *metrics) sum(f func(*Check) int) func() float64 {
	return func() float64 {
		m.mu.Lock()
		checks := make([]*Check, 0, len(m.checks))
		for c := range m.checks {
			checks = append(checks, c)
		}
		m.mu.Unlock()
		n := 0
		for _, c := range checks {
			n = max(n, f(c))
		}
		return float64(n)
	}
}

func (m *metrics) observe(c *Check) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.checks[c] = true
}

func (m *metrics) forget(c *Check) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.checks, c)
}

// asked counts an answer that had to be waited for.
func (m *metrics) asked(source, result string, began time.Time) {
	m.count(source, result)
	if h := m.seconds[[2]string{source, result}]; h != nil {
		h.Observe(time.Since(began).Seconds())
	}
}

func (m *metrics) count(source, result string) {
	if c := m.answers[[2]string{source, result}]; c != nil {
		c.Inc()
	}
}
