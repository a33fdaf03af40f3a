package journal

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"postern/internal/reference"
)

// Reader reads the files of a directory, also while a daemon writes there. It
// is safe for concurrent use.
type Reader struct {
	dir    string
	hasher *hasher // nil: addresses are plain
	noKey  error   // why the key of hashed addresses cannot be read
}

// Open returns a reader of a directory's files. It fails when the directory
// cannot be read.
func Open(dir string) (*Reader, error) {
	if _, err := os.ReadDir(dir); err != nil {
		return nil, err
	}
	r := &Reader{dir: dir}
	h, err := readKey(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.noKey = err
	}
	r.hasher = h
	return r, nil
}

// Entry is one thing that was kept: a decision or an answer, the other is nil.
type Entry struct {
	Time     time.Time
	Decision *Record
	Answer   *Answer
}

// Seen is what came of reading.
type Seen struct {
	Segments int `json:"segments"`
	Blocks   int `json:"blocks"`  // unpacked, of all
	Entries  int `json:"entries"` // looked at
	// Broken counts places in the files, and entries, that could not be read, a
	// later version's among them. The end of the last file is none, where a daemon
	// may be writing.
	Broken int `json:"broken,omitempty"`
}

// Scan calls f with all that was kept from one time to another, the oldest
// first, until f returns an error, which Scan returns. A zero time is no bound.
// What is written meanwhile may be missing.
func (r *Reader) Scan(ctx context.Context, from, to time.Time, f func(Entry) error) (Seen, error) {
	w := walk{from: nanos(from, math.MinInt64), to: nanos(to, math.MaxInt64), keep: func(*entry) bool { return true }}
	unread := 0
	seen, err := r.walk(ctx, &w, func(e *entry) error {
		out := Entry{Time: timeOf(e.time)}
		var err error
		switch e.kind {
		case kindDecision:
			out.Decision, err = e.record()
		case kindAnswer:
			out.Answer, err = e.answer()
		default: // of a later version
			return nil
		}
		if err != nil {
			unread++
			return nil
		}
		return f(out)
	})
	seen.Broken += unread
	return seen, err
}

func nanos(t time.Time, none int64) int64 {
	if t.IsZero() {
		return none
	}
	return t.UnixNano()
}

// errEnough ends a walk.
var errEnough = errors.New("enough")

// Search calls f with the decisions that the filter lets through, the newest
// first, until f returns false or the filter's limit is reached.
func (r *Reader) Search(ctx context.Context, f *Filter, yield func(*Record) bool) (Seen, error) {
	return searchRecords(ctx, r, f, yield)
}

// SearchJSON is Search for the JSON of records, which is valid until f returns.
func (r *Reader) SearchJSON(ctx context.Context, f *Filter, yield func(json.RawMessage) bool) (Seen, error) {
	m, err := f.matcher(r.hasher)
	if err != nil {
		return Seen{}, err
	}
	if m.address != nil && r.noKey != nil {
		return Seen{}, fmt.Errorf("an address cannot be searched for: %w", r.noKey)
	}
	w := walk{from: nanos(f.Since, math.MinInt64), to: nanos(f.Until, math.MaxInt64), newestFirst: true, may: m.may, keep: m.matches}
	n := 0
	seen, err := r.walk(ctx, &w, func(e *entry) error {
		if n++; !yield(e.json) || n == f.Limit {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return seen, err
}

// searcher is a Journal or a Reader.
type searcher interface {
	SearchJSON(ctx context.Context, f *Filter, yield func(json.RawMessage) bool) (Seen, error)
}

// searchRecords reads what a search finds.
func searchRecords(ctx context.Context, in searcher, f *Filter, yield func(*Record) bool) (Seen, error) {
	unread := 0
	seen, err := in.SearchJSON(ctx, f, func(text json.RawMessage) bool {
		r, err := ReadRecord(text)
		if err != nil {
			unread++
			return true
		}
		return yield(r)
	})
	seen.Broken += unread
	return seen, err
}

// Find returns the decisions with a reference, the newest first; usually one.
func (r *Reader) Find(ctx context.Context, ref reference.Ref) ([]*Record, error) {
	// The minute says where it is, unless the clock was years ahead.
	minute := ref.Minute(time.Now().Add(reference.Wrap / 2))
	found, err := r.find(ctx, ref, minute.UnixNano(), minute.Add(time.Minute).UnixNano()-1)
	if err == nil && len(found) == 0 {
		found, err = r.find(ctx, ref, math.MinInt64, math.MaxInt64)
	}
	return found, err
}

func (r *Reader) find(ctx context.Context, ref reference.Ref, from, to int64) (out []*Record, err error) {
	want := hashRef(ref)
	w := walk{
		from: from, to: to, newestFirst: true,
		may:  func(h *header) bool { return h.filter.has(want) },
		keep: func(e *entry) bool { return e.kind == kindDecision && e.ref == ref },
	}
	_, err = r.walk(ctx, &w, func(e *entry) error {
		rec, err := e.record()
		if err == nil {
			out = append(out, rec)
		}
		return err
	})
	return out, err
}

// walk is a way through the files in the order of time, whatever the order in
// which they were written.
type walk struct {
	from, to    int64 // inclusive
	newestFirst bool
	may         func(*header) bool // nil: any block may hold what is looked for
	keep        func(*entry) bool
}

// before reports whether time a comes before b.
func (w *walk) before(a, b int64) bool {
	if w.newestFirst {
		a, b = b, a
	}
	return a < b
}

// first is the time of a block that comes first.
func (w *walk) first(h *header) int64 {
	if w.newestFirst {
		return h.newest
	}
	return h.oldest
}

// waiting are entries that have been read and whose turn has not come.
type waiting struct {
	*walk
	entries []numbered
}

// numbered is an entry and its place in the files, which orders those of one
// time.
type numbered struct {
	entry
	block, n int
}

func (q *waiting) Len() int      { return len(q.entries) }
func (q *waiting) Swap(i, j int) { q.entries[i], q.entries[j] = q.entries[j], q.entries[i] }
func (q *waiting) Push(x any)    { q.entries = append(q.entries, x.(numbered)) }
func (q *waiting) Pop() any {
	last := q.entries[len(q.entries)-1]
	q.entries = q.entries[:len(q.entries)-1]
	return last
}

func (q *waiting) Less(i, j int) bool {
	a, b := &q.entries[i], &q.entries[j]
	if a.time != b.time {
		return q.before(a.time, b.time)
	}
	c := cmp.Or(cmp.Compare(a.block, b.block), cmp.Compare(a.n, b.n))
	if q.newestFirst {
		c = -c
	}
	return c < 0
}

func (r *Reader) walk(ctx context.Context, w *walk, yield func(*entry) error) (Seen, error) {
	var seen Seen
	all, err := segments(r.dir)
	if err != nil {
		return seen, err
	}
	files := opened{}
	defer files.close()
	var places []place
	for n, s := range all {
		f, err := files.open(s)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				continue // it has just been removed
			}
			return seen, err
		}
		seen.Segments++
		one, err := blocks(s, f, s.size, func(p place) {
			if p.newest >= w.from && p.oldest <= w.to && (w.may == nil || w.may(&p.header)) {
				p.filter = nil
				places = append(places, p)
			}
		})
		if err != nil {
			return seen, err
		}
		if seen.Broken += one.broken; one.torn && n == len(all)-1 {
			seen.Broken-- // it is being written
		}
		if err := ctx.Err(); err != nil {
			return seen, err
		}
	}
	order := make([]int, len(places))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		x, y := w.first(&places[a].header), w.first(&places[b].header)
		switch {
		case w.before(x, y):
			return -1
		case w.before(y, x):
			return 1
		case w.newestFirst:
			return b - a
		}
		return a - b
	})
	u := unpacker{Decoder: newDecoder()}
	defer u.Close()
	q := &waiting{walk: w}
	give := func(until int64, all bool) error {
		for len(q.entries) > 0 && (all || w.before(q.entries[0].time, until)) {
			e := heap.Pop(q).(numbered)
			if err := yield(&e.entry); err != nil {
				return err
			}
		}
		return nil
	}
	for _, i := range order {
		p := &places[i]
		if err := give(w.first(&p.header), false); err != nil {
			return seen, err
		}
		if err := ctx.Err(); err != nil {
			return seen, err
		}
		f, err := files.open(p.segment)
		if err != nil {
			return seen, err
		}
		seen.Blocks++
		if !q.take(p, i, f, &u, &seen) {
			seen.Broken++ // the rest of the block is lost, not that of the file
		}
	}
	return seen, give(0, true)
}

// take puts the entries of a block that are wanted among those that wait. It
// reports whether all could be read.
func (q *waiting) take(p *place, number int, f *os.File, u *unpacker, seen *Seen) bool {
	data, err := u.unpack(p, f)
	var e entry
	for n := 0; err == nil && len(data) > 0; n++ {
		if data, err = e.cut(data); err != nil {
			break
		}
		seen.Entries++
		if e.time >= q.from && e.time <= q.to && q.keep(&e) {
			heap.Push(q, numbered{e, number, n})
			u.data = nil // it is theirs
		}
	}
	return err == nil
}

// opened are the files of a walk: each is opened once, so that what is removed
// meanwhile is read nevertheless.
type opened map[*segment]*os.File

func (o opened) open(s *segment) (*os.File, error) {
	if f := o[s]; f != nil {
		return f, nil
	}
	f, err := os.Open(s.path)
	if err == nil {
		o[s] = f
	}
	return f, err
}

func (o opened) close() {
	for _, f := range o {
		_ = f.Close() // only read
	}
}
