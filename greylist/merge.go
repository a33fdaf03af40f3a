package greylist

import "time"

// Merged counts what became of entries that were merged.
type Merged struct {
	Taken int `json:"taken"`
	Known int `json:"known"`   // told nothing new
	Old   int `json:"too_old"` // their time is over
}

// Add adds counts.
func (m *Merged) Add(n Merged) {
	m.Taken += n.Taken
	m.Known += n.Known
	m.Old += n.Old
}

// The merge rule: nobody is known less, waits anew or has waited for less
// afterwards than either side knew. It is the same whichever comes first, and
// merging twice changes nothing.

// Over reports whether an entry's time is over, so that it tells nothing.
func (r *Rule) Over(e *Entry, now time.Time) bool {
	if e.Kind == KindWaiting {
		return now.Sub(e.First) > r.Window
	}
	return now.Sub(e.Last) > r.Keep
}

// Merge adds what e, a triplet, tells, and reports whether that was new. Times
// after now count as now.
func (t *Triplet) Merge(e *Entry, now time.Time) bool {
	before := *t
	first, last := capped(e.First, now), capped(e.Last, now)
	if t.First == 0 {
		t.First = first
	}
	t.First, t.Last = min(t.First, first), max(t.Last, last)
	t.Attempts, t.Passes = max(t.Attempts, count32(e.Attempts)), max(t.Passes, count32(e.Passes), 1)
	return *t != before
}

// Merge adds what e, a credit, tells.
func (cr *Credit) Merge(e *Entry, now time.Time) bool {
	before := *cr
	first, last := capped(e.First, now), capped(e.Last, now)
	if cr.First == 0 {
		cr.First = first
	}
	cr.First, cr.Last = min(cr.First, first), max(cr.Last, last)
	cr.Passes = max(cr.Passes, count32(e.Passes), 1)
	counted := last // an entry that does not tell
	if !e.Counted.IsZero() {
		counted = capped(e.Counted, now)
	}
	cr.Counted = max(cr.Counted, counted)
	return *cr != before
}

// Merge adds the side that e, one that waits, tells of.
func (w *Waiting) Merge(e *Entry, now time.Time) (changed bool) {
	first, last := capped(e.First, now), capped(e.Last, now)
	since := first
	if !e.Since.IsZero() {
		since = min(since, capped(e.Since, now))
	}
	if w.Since == 0 || since < w.Since {
		w.Since, changed = since, true
	}
	if last > w.Last {
		w.Last, changed = last, true
	}
	s := w.find(e.Match)
	if s == nil {
		s = w.add(e.Match)
		*s = Side{Match: e.Match, First: first, Last: last}
	}
	before := *s
	s.First, s.Last, s.Attempts = min(s.First, first), max(s.Last, last), max(s.Attempts, count32(e.Attempts), 1)
	return changed || *s != before
}

func capped(t, now time.Time) int64 { return min(t.UnixMilli(), now.UnixMilli()) }

func count32(n int) uint32 { return uint32(max(0, min(n, 1<<31))) }
