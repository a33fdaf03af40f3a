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

	mu   sync.Mutex
	ring []entry
	refs []uint64 // hashes of the references, by place in the ring
	next int
}

// entry is a kept decision. The place in the ring keeps its memory for the
// decision that comes there next: every refused client passes here.
type entry struct {
	Record
	decision policy.Decision
	addr     netip.Addr
}

// record returns what Record.Decision shares nothing with the ring.
func (e *entry) record() Record {
	r := e.Record
	r.Client, r.Decision = "unknown", e.decision.Clone()
	if e.addr.IsValid() {
		r.Client = e.addr.String()
	}
	return r
}

// New returns a journal for the newest size decisions.
func New(size int) *Journal {
	return &Journal{seed: maphash.MakeSeed(), ring: make([]entry, 0, size), refs: make([]uint64, 0, size)}
}

// Record implements pipeline.Journal. It keeps a copy.
func (j *Journal) Record(req *policy.Request, d *policy.Decision) {
	sum := maphash.String(j.seed, d.Reference)
	j.mu.Lock()
	defer j.mu.Unlock()
	if cap(j.ring) == 0 {
		return
	}
	if len(j.ring) < cap(j.ring) {
		j.ring, j.refs = append(j.ring, entry{}), append(j.refs, 0)
	}
	j.refs[j.next] = sum
	e := &j.ring[j.next]
	e.Time, e.Door, e.Stage = req.Time, req.Door, req.Stage
	e.addr, e.Name, e.Helo = req.Client.Addr, req.Client.Name, req.Helo
	e.Sender, e.Recipient = req.Sender.Raw, req.Recipient.Raw
	e.QueueID, e.Instance, e.Login, e.Context = req.QueueID, req.Instance, req.SASL.Username, req.Context
	steps, headers := e.decision.Steps, e.decision.Headers
	e.decision = *d
	// A place does not keep more than it was given once the trace is shorter.
	clear(steps[min(len(d.Steps), len(steps)):])
	clear(headers[min(len(d.Headers), len(headers)):])
	e.decision.Steps = append(steps[:0], d.Steps...)
	e.decision.Headers = append(headers[:0], d.Headers...)
	j.next = (j.next + 1) % cap(j.ring)
}

// Find returns the decision with the given reference, and whether it is
// still there.
func (j *Journal) Find(reference string) (Record, bool) {
	sum := maphash.String(j.seed, reference)
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, s := range j.refs { // a person asks: an index would cost each decision more
		if s == sum && j.ring[i].decision.Reference == reference {
			return j.ring[i].record(), true
		}
	}
	return Record{}, false
}

// Recent returns at most n decisions, newest first.
func (j *Journal) Recent(n int) []Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	n = min(n, len(j.ring))
	out := make([]Record, 0, n)
	for i := range n {
		out = append(out, j.ring[((j.next-1-i)%len(j.ring)+len(j.ring))%len(j.ring)].record())
	}
	return out
}
