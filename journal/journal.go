// Package journal keeps the traces of decisions, so that the reference in a
// bounce leads back to every step of its decision, after a restart too.
//
// A decision is copied into a ring in memory; one goroutine writes it from
// there into files (segment.go says how they are made), which are bounded in
// size and age. Whoever decides never waits for the disk: what comes faster
// than it can be written is counted and lost.
package journal

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/reference"
	"postern/policy"
)

// Journal keeps decisions. It is safe for concurrent use.
type Journal struct {
	cfg   Config
	refs  *reference.Source
	log   *zap.Logger
	write *writer // nil: in memory only

	next  atomic.Uint64   // how many decisions have come
	known []atomic.Uint64 // their references, by place in the ring
	ring  []slot

	searching chan struct{} // holds one for each search

	tails tails
	share *sharer // nil: with nobody

	answers     chan Answer
	lostAnswers atomic.Uint64
}

// slot is a place in the ring. It keeps its memory for the decision that comes
// there next: every refused client passes here.
type slot struct {
	mu       sync.Mutex
	number   uint64 // of the decision, counted from 1; 0: none yet
	ref      reference.Ref
	req      policy.Request
	decision policy.Decision
}

// Options is what a Journal needs besides its settings.
type Options struct {
	// Dir is where the files are, "" for none: see [Config.Dir].
	Dir string
	// Shelf is what traces are shared by; nil for nothing.
	Shelf Shelf
	// References makes those of decisions that have none.
	References *reference.Source
	Log        *zap.Logger
	Metrics    prometheus.Registerer
}

// New returns a journal. cfg has been validated. Nothing is opened before Start.
func New(cfg Config, o Options) *Journal {
	j := &Journal{cfg: cfg, refs: o.References, log: o.Log.Named("journal"), tails: tails{end: make(chan struct{})}, searching: make(chan struct{}, maxSearches)}
	if cfg.Keep != KeepOff {
		j.ring, j.known = make([]slot, cfg.Memory), make([]atomic.Uint64, cfg.Memory)
	}
	if o.Dir != "" && cfg.Keep != KeepOff {
		j.write = newWriter(j, o.Dir)
		if o.Shelf != nil && cfg.Share {
			j.share = newSharer(o.Shelf, cfg.MaxAge.D())
		}
		if cfg.Keep == KeepAll {
			j.answers = make(chan Answer, maxAnswers)
		}
	}
	if o.Metrics != nil && j.write != nil {
		j.register(o.Metrics)
	}
	return j
}

// Start begins to write. What is wrong with the directory is logged; decisions
// do not depend on it.
func (j *Journal) Start() {
	if j.write != nil {
		j.write.start()
	}
	if j.share != nil {
		j.share.start()
	}
}

// Stop writes what is left and ends the writing. Nothing is recorded after it.
func (j *Journal) Stop(ctx context.Context) {
	if j.write != nil {
		j.write.stop(ctx)
	}
	if j.share != nil {
		j.share.stop(ctx)
	}
}

// keeps reports whether a decision is kept.
func (j *Journal) keeps(d *policy.Decision) bool {
	switch j.cfg.Keep {
	case KeepAll:
		return true
	case KeepRefused:
		return d.Reference != "" || d.WouldCheck != ""
	case KeepOff:
	}
	return false
}

// Record implements pipeline.Journal. It keeps a copy.
func (j *Journal) Record(req *policy.Request, d *policy.Decision) {
	keep, heard := j.keeps(d), j.tails.n.Load() > 0
	if !keep && !heard {
		return
	}
	ref, err := reference.Parse(d.Reference)
	if err != nil && keep {
		ref = j.refs.Next(req.Time)
	}
	if heard {
		j.tails.tell(req, d, ref)
	}
	if keep {
		j.keep(req, d, ref)
	}
}

func (j *Journal) keep(req *policy.Request, d *policy.Decision, ref reference.Ref) {
	number := j.next.Add(1)
	at := (number - 1) % uint64(len(j.ring))
	s := &j.ring[at]
	s.mu.Lock()
	if s.number < number { // else the ring has come round meanwhile
		s.number, s.ref = number, ref
		copyRequest(&s.req, req)
		copyDecision(&s.decision, d)
		j.known[at].Store(uint64(ref))
	}
	s.mu.Unlock()
	if j.write != nil {
		j.write.wakeUp()
	}
}

// copyRequest keeps the memory of to.
func copyRequest(to, q *policy.Request) {
	onTop, facts := to.OnTop, &to.Facts
	listings, marks, missing := facts.Listings, facts.Marks, facts.Missing
	*to = *q
	to.Probe = nil
	to.OnTop = copyInto(onTop, q.OnTop)
	facts.Listings, facts.Marks, facts.Missing = copyInto(listings, q.Facts.Listings), copyInto(marks, q.Facts.Marks), copyInto(missing, q.Facts.Missing)
}

// copyDecision keeps the memory of to.
func copyDecision(to, d *policy.Decision) {
	steps, headers := to.Steps, to.Headers
	*to = *d
	to.Steps, to.Headers = copyInto(steps, d.Steps), copyInto(headers, d.Headers)
}

// copyInto copies from into the memory of to, and does not keep more than it
// was given once there is less.
func copyInto[T any](to, from []T) []T {
	clear(to[min(len(from), len(to)):])
	return append(to[:0], from...)
}

// fill makes r the record of a slot, which is locked. They share memory.
func (s *slot) fill(r *Record) {
	r.fill(&s.req, &s.decision)
	if s.decision.Reference == "" {
		s.decision.Reference = s.ref.String()
	}
}

// record returns what shares nothing with the ring, as it stands in the files.
func (j *Journal) record(s *slot) *Record {
	var r Record
	s.fill(&r)
	if j.write != nil {
		if h := j.write.hasher.Load(); h != nil {
			return h.conceal(&r)
		}
	}
	return r.clone()
}

// remembered returns the decision with a reference if it is still in memory.
func (j *Journal) remembered(ref reference.Ref) *Record {
	for i := range j.known { // a person asks: an index would cost each decision more
		if j.known[i].Load() != uint64(ref) {
			continue
		}
		s := &j.ring[i]
		s.mu.Lock()
		if s.number > 0 && s.ref == ref {
			defer s.mu.Unlock()
			return j.record(s)
		}
		s.mu.Unlock()
	}
	return nil
}

// Find returns the decision with the given reference, nil when it is not kept.
// The error is that of a file that cannot be read, or of a text that is no
// reference.
func (j *Journal) Find(ctx context.Context, text string) (*Record, error) {
	ref, err := reference.Parse(text)
	if err != nil {
		return nil, err
	}
	if r := j.remembered(ref); r != nil {
		return r, nil
	}
	if j.write == nil {
		return nil, nil
	}
	j.write.flush(ctx) // it may be between the two
	var found []*Record
	r, err := Open(j.write.dir)
	if err == nil {
		found, err = r.Find(ctx, ref)
	}
	if len(found) > 0 {
		return found[0], nil
	}
	if j.share != nil {
		rec, failed := j.share.find(ctx, ref)
		if rec != nil {
			return rec, nil
		}
		err = errors.Join(err, failed)
	}
	return nil, err
}

// Recent returns at most n refused decisions, newest first: from memory, or from
// the files when there are not so many, as after a restart.
func (j *Journal) Recent(ctx context.Context, n int) ([]*Record, error) {
	out := j.recent(n)
	if len(out) == n || j.write == nil {
		return out, nil
	}
	var found []*Record
	_, err := j.Search(ctx, &Filter{Verdict: "refused", Limit: n}, func(r *Record) bool {
		found = append(found, r)
		return true
	})
	if len(found) < len(out) { // nothing can be written
		return out, nil
	}
	return found, err
}

func (j *Journal) recent(n int) []*Record {
	newest := j.next.Load()
	out := make([]*Record, 0, max(0, min(n, len(j.ring))))
	for i := range min(newest, uint64(len(j.ring))) {
		if len(out) >= n {
			break
		}
		number := newest - i
		s := &j.ring[(number-1)%uint64(len(j.ring))]
		s.mu.Lock()
		if s.number == number && s.decision.Verdict.Action.Refuses() { // else it is just coming, or a newer one has
			out = append(out, j.record(s))
		}
		s.mu.Unlock()
	}
	return out
}

// Search calls f with the decisions on disk that the filter lets through, the
// newest first, until it returns false. What has come is written before.
func (j *Journal) Search(ctx context.Context, f *Filter, yield func(*Record) bool) (Seen, error) {
	return searchRecords(ctx, j, f, yield)
}

// SearchJSON is Search for the JSON of records, which is valid until f returns.
func (j *Journal) SearchJSON(ctx context.Context, f *Filter, yield func(json.RawMessage) bool) (Seen, error) {
	if j.write == nil {
		return j.searchMemory(f, yield)
	}
	select {
	case j.searching <- struct{}{}: // decisions need the processors more
		defer func() { <-j.searching }()
	case <-ctx.Done():
		return Seen{}, ctx.Err()
	}
	j.write.flush(ctx)
	r, err := Open(j.write.dir)
	if err != nil {
		return Seen{}, err
	}
	seen, err := r.SearchJSON(ctx, f, yield)
	if seen.Broken > 0 {
		j.log.Warn("places in the journal's files could not be read", zap.Int("places", seen.Broken), zap.String("dir", j.write.dir))
	}
	return seen, err
}

// maxSearches is how many search the files at one time.
const maxSearches = 2

// searchMemory is SearchJSON where nothing is written.
func (j *Journal) searchMemory(f *Filter, yield func(json.RawMessage) bool) (seen Seen, err error) {
	m, err := f.matcher(nil)
	if err != nil {
		return seen, err
	}
	newest := j.next.Load()
	n := 0
	for i := range min(newest, uint64(len(j.ring))) {
		number := newest - i
		s := &j.ring[(number-1)%uint64(len(j.ring))]
		s.mu.Lock()
		var r *Record
		if s.number == number {
			seen.Entries++
			r = j.record(s)
		}
		ref := s.ref
		s.mu.Unlock()
		if r == nil {
			continue
		}
		k := keysOf(r, ref)
		if k.time < nanos(f.Since, k.time) || k.time > nanos(f.Until, k.time) || !m.wants(&k) {
			continue
		}
		text, err := appendJSON(nil, r)
		if err != nil {
			return seen, err
		}
		if n++; !yield(text) || n == f.Limit {
			break
		}
	}
	return seen, nil
}

// maxAnswers is how many answers of the DNS wait to be written.
const maxAnswers = 4096

// KeepsAnswers reports whether answers of the DNS are wanted.
func (j *Journal) KeepsAnswers() bool { return j.answers != nil }

// Answer keeps an answer of the DNS that came from the network. It does not
// wait.
func (j *Journal) Answer(a Answer) {
	if j.answers == nil {
		return
	}
	select {
	case j.answers <- a:
		j.write.wakeUp()
	default:
		j.lostAnswers.Add(1)
	}
}

// since is time.Since for a time that may be none.
func since(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return time.Since(t)
}
