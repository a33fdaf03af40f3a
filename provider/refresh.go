package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// reading is what DNS said.
type reading struct {
	entries  []Entry // sorted; no two overlap
	records  []RecordText
	problems []Problem
	ttl      time.Duration
	levels   int
	queries  int
}

// read flattens all records of the list.
func (l *list) read(ctx context.Context) (*reading, error) {
	ctx, cancel := context.WithTimeout(ctx, l.all.RefreshTimeout.D())
	defer cancel()
	flats := make([]*Flat, len(l.domains))
	errs := make([]error, len(l.domains))
	var all sync.WaitGroup
	for i, domain := range l.domains {
		all.Go(func() { flats[i], errs[i] = Flatten(ctx, l.res, domain, l.limits) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	r := &reading{ttl: 1<<63 - 1}
	for _, f := range flats {
		r.entries = append(r.entries, f.Entries...)
		r.records = append(r.records, f.Records...)
		r.problems = append(r.problems, f.Problems...)
		r.ttl = min(r.ttl, f.TTL)
		r.levels = max(r.levels, f.Levels)
		r.queries += f.Queries
	}
	slices.SortStableFunc(r.entries, byPrefix)
	r.entries = slices.CompactFunc(r.entries, func(a, b Entry) bool { return a.Prefix == b.Prefix })
	return r, nil
}

// Result is what became of a reading.
type Result string

// The results, as they stand in metrics and reports.
const (
	resultUnchanged Result = "unchanged"
	resultChanged   Result = "changed"
	resultRefused   Result = "refused"
	resultFailed    Result = "failed"  // DNS could not answer
	resultAdopted   Result = "adopted" // another node has read it
	resultAccepted  Result = "accepted"
)

var results = [...]Result{resultUnchanged, resultChanged, resultRefused, resultFailed, resultAdopted, resultAccepted}

// Report is what a refresh found and did.
type Report struct {
	List    string   `json:"list"`
	DryRun  bool     `json:"dry_run,omitempty"`
	Result  Result   `json:"result"`
	Error   string   `json:"error,omitempty"`   // of a failed one
	Reasons []string `json:"reasons,omitempty"` // of a refused one
	ID      string   `json:"id,omitempty"`      // of what was read, to accept it by
	Diff
	Networks int           `json:"networks"` // of what was read, aggregated
	Problems []Problem     `json:"problems,omitempty"`
	Records  []RecordText  `json:"records,omitempty"`
	TTL      time.Duration `json:"ttl,omitempty"`
	Levels   int           `json:"levels,omitempty"`  // round trips
	Queries  int           `json:"queries,omitempty"` // DNS questions
	Took     time.Duration `json:"took"`
	Next     time.Time     `json:"next,omitzero"` // next reading
}

// judge compares what was read with what is in force. l.mu is held.
func (l *list) judge(r *reading, rep *Report) {
	was, is := prefixesOf(l.doc.Entries), prefixesOf(r.entries)
	rep.ID, rep.Networks, rep.Problems, rep.Records, rep.TTL = idOf(is), len(is), r.problems, r.records, r.ttl
	rep.Levels, rep.Queries = r.levels, r.queries
	rep.Diff = diffOf(was, is)
	rep.Result = resultChanged
	if l.doc.Serial > 0 && rep.Diff.Empty() {
		rep.Result = resultUnchanged
		return
	}
	for _, p := range r.problems {
		if p.Kind == Broken {
			rep.Reasons = append(rep.Reasons, "broken record: "+p.String())
		}
	}
	rep.Reasons = append(rep.Reasons, l.guard.absolute(is, l.cfg.AllowReserved)...)
	if l.doc.Serial > 0 {
		rep.Reasons = append(rep.Reasons, l.guard.change(was, is)...)
	}
	if len(rep.Reasons) > 0 {
		rep.Result = resultRefused
	}
}

// dryRun reads the records and says what a refresh would do.
func (l *list) dryRun(ctx context.Context) (Report, error) {
	rep := Report{List: l.cfg.Name, DryRun: true}
	if len(l.domains) == 0 {
		return rep, fmt.Errorf("provider: list %s has no records to read, only files", l.cfg.Name)
	}
	start := time.Now()
	r, err := l.read(ctx)
	rep.Took = time.Since(start)
	if err != nil {
		rep.Result, rep.Error = resultFailed, err.Error()
		return rep, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.judge(r, &rep)
	return rep, nil
}

// refresh reads the records and takes what they say, if the guards allow.
func (l *list) refresh(ctx context.Context) (Report, error) {
	rep := Report{List: l.cfg.Name}
	if err := l.take(ctx); err != nil {
		return rep, err
	}
	defer l.release()
	start := time.Now()
	r, err := l.read(ctx)
	rep.Took = time.Since(start)
	now := time.Now()
	if err != nil {
		if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return rep, err // we are being stopped, or the caller has gone
		}
		l.unread(&rep, err, now)
		return rep, nil
	}
	l.mu.Lock()
	l.judge(r, &rep)
	l.failures = 0
	l.lastError = ""
	l.mu.Unlock()
	switch rep.Result {
	case resultUnchanged:
		l.unchanged(r, now)
	case resultRefused:
		l.refused(r, &rep, now)
	default:
		carrySince(r.entries, l.snap.Load(), now)
		l.adopt(document{TTL: r.ttl, Entries: r.entries, Records: r.records, Problems: r.problems, How: ByRefresh}, rep.Diff, rep.ID, now)
	}
	l.metrics.count(rep.Result)
	l.mu.Lock()
	rep.Next = l.due(now, now)
	l.mu.Unlock()
	l.schedule(rep.Next)
	l.finish(ctx)
	return rep, nil
}

// unread notes that DNS could not answer.
func (l *list) unread(rep *Report, err error, now time.Time) {
	l.mu.Lock()
	l.failures++
	l.lastError, l.errorAt = err.Error(), now
	rep.Next = now.Add(l.backoff(l.failures))
	checked, failures := l.doc.Checked, l.failures
	l.mu.Unlock()
	rep.Result, rep.Error = resultFailed, err.Error()
	l.metrics.count(resultFailed)
	f := []zap.Field{zap.Error(err), zap.Int("failures", failures), zap.Time("next", rep.Next)}
	switch {
	case checked.IsZero():
		l.log.Error("the list has never been read, and cannot be read now: it is empty", f...)
	case now.Sub(checked) > l.all.StaleAfter.D():
		l.log.Error("the list is old and cannot be read; what is in force stays", append(f, zap.Time("checked", checked))...)
	default:
		l.log.Warn("the list cannot be read now; what is in force stays", append(f, zap.Time("checked", checked))...)
	}
	l.schedule(rep.Next)
}

// unchanged notes that the list is right.
func (l *list) unchanged(r *reading, now time.Time) {
	carrySince(r.entries, l.snap.Load(), now)
	l.mu.Lock()
	l.doc.Serial = l.nextSerial()
	l.doc.Checked, l.doc.TTL, l.doc.Entries, l.doc.Records, l.doc.Problems = now, r.ttl, r.entries, r.records, r.problems
	was := l.doc.Pending
	l.doc.Pending = nil
	l.told = ""
	l.mu.Unlock()
	if was != nil {
		l.log.Info("the records are again as the list in force; the refused update is forgotten", zap.String("id", was.ID))
	}
	l.install() // the same networks may come from other terms
}

// refused keeps an update that the guards do not allow.
func (l *list) refused(r *reading, rep *Report, now time.Time) {
	l.mu.Lock()
	l.doc.Pending = &Pending{ID: rep.ID, Time: now, Reasons: rep.Reasons, TTL: r.ttl, Entries: r.entries, Records: r.records, Problems: r.problems}
	again := l.told == rep.ID
	l.told = rep.ID
	l.mu.Unlock()
	f := []zap.Field{
		zap.String("id", rep.ID), zap.Strings("reasons", rep.Reasons), zap.Int("networks", rep.Networks),
		zap.Int("added", len(rep.Added)), zap.Int("removed", len(rep.Removed)),
		zap.String("accept", "postern provider accept "+l.cfg.Name+" "+rep.ID),
	}
	if again {
		l.log.Warn("an update of the list is still refused; what is in force stays", f...)
		return
	}
	l.log.Error("an update of the list was refused; what is in force stays", f...)
}

// nextSerial is more than any that this node has seen. l.mu is held.
func (l *list) nextSerial() uint64 { return max(l.doc.Serial, l.seen) + 1 }

// adopt puts a new list in force. Its Since are set.
func (l *list) adopt(d document, diff Diff, id string, now time.Time) {
	l.mu.Lock()
	first := l.doc.Serial == 0
	d.Version, d.Name, d.Source = documentVersion, l.cfg.Name, l.source
	how := string(d.How)
	if d.Serial == 0 {
		d.Serial = l.nextSerial()
		d.Checked, d.Changed = now, now
		d.History = append(slices.Clone(l.doc.History), newChange(now, d.How, id, diff))
	} else {
		how += " by another node"
	}
	d.History = d.History[max(0, len(d.History)-l.all.History):]
	l.doc = d
	l.told = ""
	l.mu.Unlock()
	l.install()
	l.log.Info("list changed", zap.String("how", how), zap.String("id", id), zap.Bool("first", first),
		zap.Int("networks", len(l.snap.Load().prefixes)), zap.Int("added", len(diff.Added)), zap.Int("removed", len(diff.Removed)))
	for _, p := range d.Problems {
		l.log.Warn("a part of the list's records", zap.String("kind", string(p.Kind)), zap.Stringer("problem", p))
	}
}

// finish tells everybody what the list is now.
func (l *list) finish(ctx context.Context) {
	l.show()
	l.save()
	l.export()
	if l.shared != nil {
		l.publish(ctx)
	}
}

// accept takes the refused update that id names.
func (l *list) accept(ctx context.Context, id string) (Report, error) {
	rep := Report{List: l.cfg.Name}
	if err := l.take(ctx); err != nil {
		return rep, err
	}
	defer l.release()
	now := time.Now()
	l.mu.Lock()
	p := l.doc.Pending
	was, is := prefixesOf(l.doc.Entries), []Entry(nil)
	if p != nil {
		is = slices.Clone(p.Entries)
	}
	l.mu.Unlock()
	switch {
	case p == nil:
		return rep, fmt.Errorf("provider: list %s has no refused update to accept", l.cfg.Name)
	case id != p.ID:
		return rep, fmt.Errorf("provider: the refused update of list %s is %s, not %s", l.cfg.Name, p.ID, id)
	}
	prefixes := prefixesOf(is)
	rep.Result, rep.ID, rep.Networks, rep.Reasons, rep.Problems, rep.Records = resultAccepted, p.ID, len(prefixes), p.Reasons, p.Problems, p.Records
	rep.Diff = diffOf(was, prefixes)
	carrySince(is, l.snap.Load(), now)
	l.adopt(document{TTL: p.TTL, Entries: is, Records: p.Records, Problems: p.Problems, How: ByHand}, rep.Diff, p.ID, now)
	l.metrics.count(resultAccepted)
	l.finish(ctx)
	l.mu.Lock()
	rep.Next = l.next
	l.mu.Unlock()
	return rep, nil
}
