// Package journal keeps the decisions that refused somebody, so that the
// reference in a bounce leads back to every step of the decision.
//
// It is a ring in memory: the newest decisions of this process. The log line
// of a decision carries the reference too, and outlives it.
package journal

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"postern/policy"
)

// Record is one kept decision with what was asked.
type Record struct {
	Time      time.Time        `json:"time"`
	Door      string           `json:"door"`
	Stage     policy.Stage     `json:"stage"`
	Client    string           `json:"client"`
	Name      string           `json:"client_name,omitempty"`
	Helo      string           `json:"helo,omitempty"`
	Sender    string           `json:"sender"`
	Recipient string           `json:"recipient,omitempty"`
	QueueID   string           `json:"queue_id,omitempty"`
	Instance  string           `json:"instance,omitempty"`
	Login     string           `json:"login,omitempty"`
	Context   string           `json:"policy_context,omitempty"`
	Decision  *policy.Decision `json:"decision"`
}

// Journal is a ring of decisions, found by reference. It is safe for
// concurrent use.
type Journal struct {
	seed maphash.Seed
	next atomic.Uint64   // how many decisions have come
	refs []atomic.Uint64 // hashes of their references, by place
	ring []entry
}

// entry is a place in the ring. It keeps its memory for the decision that
// comes there next: every refused client passes here.
type entry struct {
	mu       sync.Mutex
	number   uint64 // of the decision, counted from 1; 0: none yet
	rec      Record // but for Client and Decision
	decision policy.Decision
	addr     netip.Addr
}

// record returns what shares nothing with the ring.
func (e *entry) record() Record {
	r := e.rec
	r.Client, r.Decision = "unknown", e.decision.Clone()
	if e.addr.IsValid() {
		r.Client = e.addr.String()
	}
	return r
}

// New returns a journal for the newest size decisions.
func New(size int) *Journal {
	return &Journal{seed: maphash.MakeSeed(), ring: make([]entry, size), refs: make([]atomic.Uint64, size)}
}

// Record implements pipeline.Journal. It keeps a copy.
func (j *Journal) Record(req *policy.Request, d *policy.Decision) {
	if len(j.ring) == 0 {
		return
	}
	number := j.next.Add(1)
	at := (number - 1) % uint64(len(j.ring))
	e := &j.ring[at]
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.number > number {
		return // the ring has come round meanwhile
	}
	e.number, e.addr = number, req.Client.Addr
	e.rec = Record{
		Time: req.Time, Door: req.Door, Stage: req.Stage, Name: req.Client.Name, Helo: req.Helo,
		Sender: req.Sender.Raw, Recipient: req.Recipient.Raw,
		QueueID: req.QueueID, Instance: req.Instance, Login: req.SASL.Username, Context: req.Context,
	}
	steps, headers := e.decision.Steps, e.decision.Headers
	e.decision = *d
	// A place does not keep more than it was given once the trace is shorter.
	clear(steps[min(len(d.Steps), len(steps)):])
	clear(headers[min(len(d.Headers), len(headers)):])
	e.decision.Steps = append(steps[:0], d.Steps...)
	e.decision.Headers = append(headers[:0], d.Headers...)
	j.refs[at].Store(maphash.String(j.seed, d.Reference))
}

// Find returns the decision with the given reference, and whether it is
// still there.
func (j *Journal) Find(reference string) (Record, bool) {
	sum := maphash.String(j.seed, reference)
	for i := range j.refs { // a person asks: an index would cost each decision more
		if j.refs[i].Load() != sum {
			continue
		}
		e := &j.ring[i]
		e.mu.Lock()
		if e.number > 0 && e.decision.Reference == reference {
			defer e.mu.Unlock()
			return e.record(), true
		}
		e.mu.Unlock()
	}
	return Record{}, false
}

// Recent returns at most n decisions, newest first.
func (j *Journal) Recent(n int) []Record {
	newest := j.next.Load()
	n = min(n, len(j.ring), int(newest))
	out := make([]Record, 0, max(n, 0))
	for i := range uint64(max(n, 0)) {
		number := newest - i
		e := &j.ring[(number-1)%uint64(len(j.ring))]
		e.mu.Lock()
		if e.number == number { // else it is just coming, or a newer one has
			out = append(out, e.record())
		}
		e.mu.Unlock()
	}
	return out
}
