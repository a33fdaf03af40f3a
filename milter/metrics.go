package milter

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"postern/policy"
)

type metrics struct {
	total    atomic.Uint64 // messages
	panics   prometheus.Counter
	cut      prometheus.Counter
	messages [policy.Redirect + 1]prometheus.Counter
	replies  [policy.Redirect + 1]prometheus.Counter
	edits    [editKinds]prometheus.Counter
	bad      struct{ tooLong, malformed, slow, broken prometheus.Counter }
	paused   prometheus.Gauge
	pauses   struct{ whole, cut, full prometheus.Counter }
	early    struct{ started, full prometheus.Counter }
}

// The kinds of changes, as they go over the wire.
const (
	editInsert = iota
	editChange
	editDelete
	editAddRecipient
	editDeleteRecipient
	editBody
	editQuarantine
	editKinds
)

var editNames = [editKinds]string{
	"insert-header", "change-header", "delete-header", "add-recipient", "delete-recipient", "replace-body", "quarantine",
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		reg.MustRegister(v)
		return v
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &metrics{
		panics: counter("postern_milter_panics_total", "Panics of the door itself; each has cost one message at most."),
		cut:    counter("postern_milter_sessions_cut_total", "Sessions closed with a message under way, because the door stopped."),
		paused: gauge("postern_milter_paused", "Sessions whose greeting is being kept back."),
	}
	messages := vec("postern_milter_messages_total", "Messages that were received whole, by what became of them.", "action")
	replies := vec("postern_milter_replies_total", "Answers about the envelope, by action.", "action")
	for a := range m.messages {
		m.messages[a] = messages.WithLabelValues(policy.Action(a).String())
		m.replies[a] = replies.WithLabelValues(policy.Action(a).String())
	}
	edits := vec("postern_milter_edits_total", "Changes made to messages, by kind.", "kind")
	for k := range m.edits {
		m.edits[k] = edits.WithLabelValues(editNames[k])
	}
	bad := vec("postern_milter_bad_sessions_total", "Sessions that ended before their time, by why.", "kind")
	m.bad.tooLong = bad.WithLabelValues("too-long")
	m.bad.malformed = bad.WithLabelValues("malformed")
	m.bad.slow = bad.WithLabelValues("slow")
	m.bad.broken = bad.WithLabelValues("broken")
	pauses := vec("postern_milter_pauses_total", "Greetings kept back, by how it ended; full: there were too many, and it was not.", "end")
	m.pauses.whole = pauses.WithLabelValues("whole")
	m.pauses.cut = pauses.WithLabelValues("cut")
	m.pauses.full = pauses.WithLabelValues("full")
	early := vec("postern_milter_early_total", "Look-ups begun at connect; full: there were too many, and they were not.", "end")
	m.early.started = early.WithLabelValues("started")
	m.early.full = early.WithLabelValues("full")
	return m
}
