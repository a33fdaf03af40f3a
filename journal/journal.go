// Package journal keeps the decisions that refused somebody, so that the
// reference in a bounce leads back to every step of the decision.
//
// It is a ring in memory: the newest decisions of this process. The log line
// of a decision carries the reference too, and outlives it.
package journal

import (
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
	mu    sync.Mutex
	ring  []Record
	next  int
	byRef map[string]int
}

// New returns a journal for the newest size decisions.
func New(size int) *Journal {
	return &Journal{ring: make([]Record, 0, size), byRef: make(map[string]int, size)}
}

// Record implements pipeline.Journal. It keeps a copy.
func (j *Journal) Record(req *policy.Request, d *policy.Decision) {
	rec := Record{
		Time: req.Time, Door: req.Door, Stage: req.Stage,
		Client: "unknown", Name: req.Client.Name, Helo: req.Helo,
		Sender: req.Sender.Raw, Recipient: req.Recipient.Raw,
		QueueID: req.QueueID, Instance: req.Instance, Login: req.SASL.Username, Context: req.Context,
		Decision: d.Clone(),
	}
	if req.Client.Addr.IsValid() {
		rec.Client = req.Client.Addr.String()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if cap(j.ring) == 0 {
		return
	}
	at := j.next
	if len(j.ring) < cap(j.ring) {
		j.ring = append(j.ring, rec)
	} else {
		delete(j.byRef, j.ring[at].Decision.Reference)
		j.ring[at] = rec
	}
	j.byRef[d.Reference] = at
	j.next = (at + 1) % cap(j.ring)
}

// Find returns the decision with the given reference, and whether it is
// still there.
func (j *Journal) Find(reference string) (Record, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i, ok := j.byRef[reference]
	if !ok {
		return Record{}, false
	}
	return j.ring[i], true
}

// Recent returns at most n decisions, newest first.
func (j *Journal) Recent(n int) []Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	n = min(n, len(j.ring))
	out := make([]Record, 0, n)
	for i := range n {
		out = append(out, j.ring[((j.next-1-i)%len(j.ring)+len(j.ring))%len(j.ring)])
	}
	return out
}
