package policyd

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"postern/policy"
)

type metrics struct {
	total        atomic.Uint64
	open         prometheus.Gauge
	refused      prometheus.Counter
	acceptErrors prometheus.Counter
	requests     [policy.StageEtrn + 1]prometheus.Counter
	replies      [policy.Redirect + 1]prometheus.Counter
	bad          struct{ tooLong, malformed, slow, broken, panics prometheus.Counter }
}

func newMetrics(reg prometheus.Registerer) *metrics {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_policyd_requests_total", Help: "Requests answered, by SMTP stage.",
	}, []string{"stage"})
	replies := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_policyd_replies_total", Help: "Answers given, by action.",
	}, []string{"action"})
	bad := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_policyd_bad_requests_total", Help: "Requests that ended their connection, by kind.",
	}, []string{"kind"})
	m := &metrics{
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_policyd_connections", Help: "Open connections.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_policyd_connections_refused_total", Help: "Connections closed because there were too many.",
		}),
		acceptErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_policyd_accept_errors_total", Help: "Connections that could not be accepted.",
		}),
	}
	for s := range m.requests {
		m.requests[s] = requests.WithLabelValues(policy.Stage(s).String())
	}
	for a := range m.replies {
		m.replies[a] = replies.WithLabelValues(policy.Action(a).String())
	}
	m.bad.tooLong = bad.WithLabelValues("too-long")
	m.bad.malformed = bad.WithLabelValues("malformed")
	m.bad.slow = bad.WithLabelValues("slow")
	m.bad.broken = bad.WithLabelValues("broken")
	m.bad.panics = bad.WithLabelValues("panic")
	reg.MustRegister(requests, replies, bad, m.open, m.refused, m.acceptErrors)
	return m
}

func (m *metrics) answered(req *policy.Request, d *policy.Decision) {
	m.total.Add(1)
	m.requests[req.Stage].Inc()
	m.replies[d.Verdict.Action].Inc()
}
