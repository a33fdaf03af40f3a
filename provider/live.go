package provider

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/filestamp"
)

// list is one provider's list, kept right.
type list struct {
	cfg     ListConfig
	all     *Config
	domains []string
	source  string
	guard   GuardConfig
	rules   []*rule
	skip    []string
	limits  Limits
	exports []ExportConfig

	res     Resolver
	shared  Shared // nil without one
	node    string // our name in leases
	log     *zap.Logger
	metrics listMetrics

	snap atomic.Pointer[snapshot] // nil until there is a list

	busy chan struct{} // holds one while the list is being changed

	mu        sync.Mutex // guards what follows; not held across I/O
	doc       document   // what was learned from DNS; Serial 0: nothing yet
	files     []Entry    // from files
	tracks    []filestamp.Tracker
	fileFault string
	faultAt   time.Time
	next      time.Time // when the records are read again
	failures  int       // in a row
	lastError string
	errorAt   time.Time
	told      string // id of the refused update that was logged as an error
	exportErr string
	seen      uint64 // the highest serial of another node's document

	wake chan struct{} // holds one: next has changed
}

// errBusy is for a caller whose context ended while another refresh went on.
var errBusy = errors.New("another refresh of the list is under way")

// take makes this the only change of the list under way; release undoes it.
func (l *list) take(ctx context.Context) error {
	select {
	case l.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("provider: list %s: %w", l.cfg.Name, errBusy)
	}
}

func (l *list) release() { <-l.busy }

// statePath is the file of the last good list.
func (l *list) statePath() string { return filepath.Join(l.all.StateDir, l.cfg.Name+".json") }

// load reads the last good list and the files. Faults of files are returned;
// a state that cannot be used is logged, and does not count.
func (l *list) load(now time.Time) conf.Faults {
	entries, faults := l.readFiles()
	if len(faults) > 0 {
		return faults
	}
	l.files = entries
	if len(l.domains) > 0 {
		l.loadState(now)
	}
	l.install()
	return nil
}

func (l *list) readFiles() ([]Entry, conf.Faults) {
	l.mu.Lock()
	l.tracks = slices.Grow(l.tracks, len(l.cfg.Files))[:len(l.cfg.Files)]
	for i, path := range l.cfg.Files {
		l.tracks[i].Begin(path)
	}
	l.mu.Unlock()
	return readFiles(l.cfg.Files)
}

func (l *list) loadState(now time.Time) {
	text, err := readBounded(l.statePath(), maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var d *document
	if err == nil {
		d, err = decode(text, l.cfg.Name, l.source)
	}
	switch {
	case errors.Is(err, errOther):
		l.log.Info("the last good list is of other records and is not used", zap.String("file", l.statePath()))
		return
	case err != nil:
		l.log.Error("the last good list cannot be used; the list is empty until it has been read from DNS",
			zap.String("file", l.statePath()), zap.Error(err))
		return
	}
	if d.Serial > 0 {
		if why := l.guard.absolute(prefixesOf(d.Entries), l.cfg.AllowReserved); len(why) > 0 && d.How != ByHand {
			l.log.Error("the last good list is beyond the guards of the configuration and is not used",
				zap.String("file", l.statePath()), zap.Strings("reasons", why))
			return
		}
	}
	l.doc = *d
	l.next = l.due(d.Checked, now)
}

// save writes the state.
func (l *list) save() {
	l.mu.Lock()
	doc := l.doc
	l.mu.Unlock()
	text, err := doc.encode()
	if err == nil {
		if err = os.MkdirAll(l.all.StateDir, 0o750); err == nil {
			err = writeFile(l.statePath(), text, 0o640, -1, -1)
		}
	}
	if err != nil {
		l.log.Error("the list could not be kept: a restart without DNS would not have it", zap.String("file", l.statePath()), zap.Error(err))
		l.failed(err)
	}
}

func (l *list) failed(err error) {
	l.mu.Lock()
	l.lastError, l.errorAt = err.Error(), time.Now()
	l.mu.Unlock()
}

// install puts what is known in force.
func (l *list) install() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.doc.Serial == 0 && len(l.files) == 0 {
		l.snap.Store(nil)
		return
	}
	entries := slices.Concat(l.doc.Entries, l.files)
	slices.SortStableFunc(entries, byPrefix)
	entries = slices.CompactFunc(entries, func(a, b Entry) bool { return a.Prefix == b.Prefix })
	carry := l.snap.Load()
	for i := range entries {
		if entries[i].Since.IsZero() { // of a file
			one := entries[i : i+1]
			carrySince(one, carry, time.Now())
		}
	}
	l.snap.Store(newSnapshot(entries))
}

// due says when the records are to be read again: when the shortest TTL ends,
// within refresh_min and refresh_every, up to a tenth earlier so that nodes
// and lists do not ask all at once. It is never later than refresh_every.
func (l *list) due(checked, now time.Time) time.Time {
	if checked.After(now) {
		checked = now // the clock was set back
	}
	d := min(max(l.doc.TTL, l.all.RefreshMin.D()), l.all.RefreshEvery.D())
	return checked.Add(d - rand.N(d/10+1))
}

// backoff is the pause after so many failures in a row.
func (l *list) backoff(failures int) time.Duration {
	d := l.all.RetryMin.D()
	for range failures - 1 {
		if d *= 2; d >= l.all.RetryMax.D() {
			d = l.all.RetryMax.D()
			break
		}
	}
	return d - rand.N(d/4+1)
}

// schedule sets the time of the next reading.
func (l *list) schedule(at time.Time) {
	l.mu.Lock()
	l.next = at
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run keeps the list right until ctx ends.
func (l *list) run(ctx context.Context) {
	l.mu.Lock()
	if l.next.IsZero() {
		l.next = time.Now()
	} else if first := time.Now().Add(rand.N(startSpread)); l.next.Before(first) {
		l.next = first // there is a list: no hurry
	}
	l.mu.Unlock()
	l.export()
	refresh := time.NewTimer(0)
	defer refresh.Stop()
	files, peers := never, never
	if len(l.cfg.Files) > 0 {
		t := time.NewTicker(l.all.ReloadInterval.D())
		defer t.Stop()
		files = t.C
	}
	if l.shared != nil && len(l.domains) > 0 {
		t := time.NewTicker(sharedPoll)
		defer t.Stop()
		peers = t.C
	}
	for {
		if len(l.domains) > 0 {
			l.mu.Lock()
			refresh.Reset(time.Until(l.next))
			l.mu.Unlock()
		} else {
			refresh.Stop()
		}
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-files:
			l.poll(ctx, time.Now())
		case <-peers:
			l.follow(ctx)
		case <-refresh.C:
			if l.shared != nil {
				l.turn(ctx)
			} else {
				_, _ = l.refresh(ctx) // it logs, counts and schedules
			}
		}
	}
}

var never <-chan time.Time

// startSpread is the time over which the first readings of lists that are
// there already are spread after a start.
const startSpread = 30 * time.Second

// poll looks at the files and reads them again when they have changed.
func (l *list) poll(ctx context.Context, now time.Time) {
	l.mu.Lock()
	due := false
	for i, path := range l.cfg.Files {
		due = due || l.tracks[i].Due(path, now)
	}
	l.mu.Unlock()
	if due {
		_ = l.reload(ctx, false) // it logs and counts
	}
}

// reload reads the files. With any fault, the last good ones stay. asked is set
// when the administrator wants to know at once.
func (l *list) reload(ctx context.Context, asked bool) error {
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.release()
	entries, faults := l.readFiles()
	why := ""
	switch {
	case len(faults) > 0:
		why = faultsText(faults)
	case len(entries) == 0 && len(l.domains) == 0:
		why = "it is empty"
	case len(entries) > 0:
		why = strings.Join(l.guard.absolute(prefixesOf(entries), l.cfg.AllowReserved), "; ")
	}
	l.mu.Lock()
	tell := asked
	for i := range l.tracks {
		if why == "" {
			l.tracks[i].Good()
		} else if l.tracks[i].Bad() {
			tell = true
		}
	}
	if why != "" && !tell {
		l.mu.Unlock()
		return errors.New(why) // a file may be half written
	}
	l.fileFault, l.faultAt = why, time.Now()
	was := len(l.files)
	if why == "" {
		l.files = entries
	}
	l.mu.Unlock()
	l.metrics.faulty(why != "")
	if why != "" {
		l.metrics.count(resultRefused)
		l.log.Error("the files of a list were not taken, what they held before stays in force", zap.String("reason", why))
		return errors.New(why)
	}
	l.metrics.count(resultChanged)
	l.log.Info("files of a list read again", zap.Int("networks", len(entries)), zap.Int("before", was))
	l.install()
	l.show()
	l.export()
	return nil
}

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
