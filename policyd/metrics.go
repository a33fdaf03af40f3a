package policyd

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"postern/policy"
)

type metrics struct {
	answers answers
	bad     struct{ tooLong, malformed, slow, broken, panics prometheus.Counter }
}

func newMetrics(reg prometheus.Registerer) *metrics {
	bad := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_policyd_bad_requests_total", Help: "Requests that ended their connection, by kind.",
	}, []string{"kind"})
	m := &metrics{}
	m.bad.tooLong = bad.WithLabelValues("too-long")
	m.bad.malformed = bad.WithLabelValues("malformed")
	m.bad.slow = bad.WithLabelValues("slow")
	m.bad.broken = bad.WithLabelValues("broken")
	m.bad.panics = bad.WithLabelValues("panic")
	reg.MustRegister(&m.answers, bad)
	return m
}

// answers counts requests by stage and action, with one addition each: all
// connections count here, and waiting for each other's memory is what a counter
// costs.
type answers [policy.StageEtrn + 1][policy.Redirect + 1]atomic.Uint64

func (a *answers) add(req *policy.Request, d *policy.Decision) {
	a[min(int(req.Stage), len(a)-1)][min(int(d.Verdict.Action), len(a[0])-1)].Add(1)
}

// total returns the number of all answers.
func (a *answers) total() (n uint64) {
	for s := range a {
		for i := range a[s] {
			n += a[s][i].Load()
		}
	}
	return n
}

var (
	requestsDesc = prometheus.NewDesc("postern_policyd_requests_total", "Requests answered, by SMTP stage.", []string{"stage"}, nil)
	repliesDesc  = prometheus.NewDesc("postern_policyd_replies_total", "Answers given, by action.", []string{"action"}, nil)
)

// Describe implements [prometheus.Collector].
func (a *answers) Describe(ch chan<- *prometheus.Desc) {
	ch <- requestsDesc
	ch <- repliesDesc
}

// Collect implements [prometheus.Collector].
func (a *answers) Collect(ch chan<- prometheus.Metric) {
	var replies [len(a[0])]uint64
	for s := range a {
		requests := uint64(0)
		for i := range a[s] {
			n := a[s][i].Load()
			requests += n
			replies[i] += n
		}
		ch <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(requests), policy.Stage(s).String())
	}
	for i, n := range replies {
		ch <- prometheus.MustNewConstMetric(repliesDesc, prometheus.CounterValue, float64(n), policy.Action(i).String())
	}
}
