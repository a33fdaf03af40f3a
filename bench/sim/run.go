package main

import (
	"slices"
	"time"
)

// attempt is one attempt to hand in a message.
type attempt struct {
	at   time.Time
	msg  *message
	from *host
	n    int // 0: the first
}

// filter is what judges attempts, in the order of their times.
type filter interface {
	name() string
	// pass reports whether an attempt is let in; else it is deferred.
	pass(a *attempt) bool
	// size is what the filter remembers at a time: records, and their bytes.
	size(now time.Time) (records, bytes int)
	close()
}

// tally is what became of the messages of one class.
type tally struct {
	sent, delayed      int
	delivered          int
	refused            int // by a DNS list
	given              int // up by the sender
	open               int // still tried when the simulation ended
	late               int // later than ten minutes, or never
	delays             []time.Duration
	p50, p95, p99, max time.Duration
}

// result is what one filter did in one world.
type result struct {
	filter         string
	by             [classCount]tally
	legit, spam    tally
	records, bytes int
	attempts       int
}

// codeLife is how long a confirmation code is of use.
const codeLife = 10 * time.Minute

// event is an attempt to come.
type event struct {
	at  int64
	msg int32
	n   int32
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.msg < o.msg }

// queue is a heap of events, the next in front.
type queue []event

func (q *queue) push(e event) {
	*q = append(*q, e)
	h := *q
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !h[i].before(h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (q *queue) pop() event {
	h := *q
	first := h[0]
	last := len(h) - 1
	h[0] = h[last]
	h = h[:last]
	*q = h
	for i := 0; ; {
		least := i
		for _, c := range [...]int{2*i + 1, 2*i + 2} {
			if c < last && h[c].before(h[least]) {
				least = c
			}
		}
		if least == i {
			return first
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// simulate shows a world to a filter. Messages from before w.begin teach the
// filter and are not counted.
func simulate(w *world, f filter) *result {
	res := &result{filter: f.name()}
	var retries queue
	fresh := 0
	// Retries go on for a week behind the last message.
	last := w.end.Add(7 * day).UnixMilli()
	measured := false
	for fresh < len(w.messages) || len(retries) > 0 {
		var e event
		if fresh < len(w.messages) && (len(retries) == 0 || w.messages[fresh].at <= retries[0].at) {
			e = event{at: w.messages[fresh].at, msg: int32(fresh)}
			fresh++
		} else {
			e = retries.pop()
		}
		if !measured && e.at >= w.end.UnixMilli() {
			measured = true
			res.records, res.bytes = f.size(w.end)
		}
		m := &w.messages[e.msg]
		counted := m.at >= w.begin.UnixMilli()
		t := &res.by[m.class]
		if e.n == 0 && counted {
			t.sent++
		}
		if e.at > last {
			if counted {
				t.open++
			}
			continue
		}
		a := attempt{at: time.UnixMilli(e.at).UTC(), msg: m, from: m.sys.host(m.seed, int(e.n)), n: int(e.n)}
		res.attempts++
		elapsed := time.Duration(e.at-m.at) * time.Millisecond
		switch {
		case a.from.listed <= e.at:
			if counted {
				t.refused++
			}
		case f.pass(&a):
			if counted {
				t.deliver(m, elapsed)
			}
		default:
			if e.n == 0 && counted {
				t.delayed++
			}
			next, ok := m.sys.retry.next(m.seed, int(e.n)+1, elapsed)
			if !ok || m.giveUp > 0 && next > m.giveUp {
				if counted {
					t.given++
					if m.class == codes {
						t.late++
					}
				}
				continue
			}
			retries.push(event{at: m.at + next.Milliseconds(), msg: e.msg, n: e.n + 1})
		}
	}
	if !measured {
		res.records, res.bytes = f.size(w.end)
	}
	res.sum()
	return res
}

func (t *tally) deliver(m *message, after time.Duration) {
	t.delivered++
	if after > 0 {
		t.delays = append(t.delays, after)
	}
	if m.class == codes && after > codeLife {
		t.late++
	}
}

// sum adds the classes up and works out the quantiles.
func (r *result) sum() {
	for c := range r.by {
		to := &r.legit
		if class(c).spam() {
			to = &r.spam
		}
		t := &r.by[c]
		to.sent += t.sent
		to.delayed += t.delayed
		to.delivered += t.delivered
		to.refused += t.refused
		to.given += t.given
		to.open += t.open
		to.late += t.late
		to.delays = append(to.delays, t.delays...)
		t.quantiles()
	}
	r.legit.quantiles()
	r.spam.quantiles()
}

// quantiles are those of the delays of messages that were delayed and came.
func (t *tally) quantiles() {
	slices.Sort(t.delays)
	q := func(share float64) time.Duration {
		if len(t.delays) == 0 {
			return 0
		}
		return t.delays[min(int(share*float64(len(t.delays))), len(t.delays)-1)]
	}
	t.p50, t.p95, t.p99, t.max = q(0.5), q(0.95), q(0.99), q(1)
}

// lost counts the messages that did not come.
func (t *tally) lost() int { return t.refused + t.given + t.open }

func (t *tally) share(n int) float64 {
	if t.sent == 0 {
		return 0
	}
	return 100 * float64(n) / float64(t.sent)
}
