// Package filestamp tells whether a file has changed since it was read, and
// looks at files now and then.
package filestamp

import (
	"os"
	"sync"
	"time"
)

// Stamp is what a file looked like at one moment. The zero value differs from
// that of every file.
type Stamp struct {
	modified time.Time
	size     int64
	info     os.FileInfo
	missing  bool
}

// Of returns the present stamp of the file at path.
func Of(path string) Stamp {
	st, err := os.Stat(path)
	if err != nil {
		return Stamp{missing: true}
	}
	return Stamp{modified: st.ModTime(), size: st.Size(), info: st}
}

// Same reports whether both are of one state of one file.
func (s Stamp) Same(o Stamp) bool {
	return s.missing == o.missing && s.size == o.size && s.modified.Equal(o.modified) &&
		(s.info == nil || o.info == nil || os.SameFile(s.info, o.info))
}

// Settle is how long a file must have been left alone before it is read
// again: an editor that writes in place is not caught half way.
const Settle = 100 * time.Millisecond

// Settled reports whether the file, seen at time now, has been left alone for
// long enough to be read. A missing one has.
func (s Stamp) Settled(now time.Time) bool {
	age := now.Sub(s.modified)
	return s.missing || age < 0 || age >= Settle
}

// Tracker decides when a file is read again, and when what is wrong with it is
// told. A file that is being written in place is no fault: one whose new content
// is bad is in doubt first, and read once more at the next look. Only if it is
// bad then too, somebody is told. The zero Tracker has read nothing. It is used
// by one goroutine at a time.
type Tracker struct {
	read  Stamp
	doubt bool // the last reading was bad, and nobody was told
}

// Begin notes that the file at path is about to be read.
func (t *Tracker) Begin(path string) { t.read = Of(path) }

// Due reports whether the file is to be read, seen at time now: it has changed
// and been left alone since, or it is in doubt.
func (t *Tracker) Due(path string, now time.Time) bool {
	st := Of(path)
	if st.Same(t.read) {
		return t.doubt
	}
	return st.Settled(now)
}

// Torn reports whether the file has changed since Begin: what was read may be of
// two versions, and the next look reads all of it.
func (t *Tracker) Torn(path string) bool {
	if Of(path).Same(t.read) {
		return false
	}
	t.read = Stamp{}
	return true
}

// Good notes that what was read is in force.
func (t *Tracker) Good() { t.doubt = false }

// Bad notes that what was read is of no use. It reports whether that is to be
// told: not the first time, since the file may be half written.
func (t *Tracker) Bad() (tell bool) {
	tell = t.doubt
	t.doubt = !tell
	return tell
}

// Watcher calls a function now and then, in a goroutine of its own. The zero
// Watcher is ready. Its methods are safe for concurrent use.
type Watcher struct {
	mu     sync.Mutex
	cancel chan struct{}
	done   chan struct{}
}

// Start calls poll every interval until Stop. It reports false, and does
// nothing, when it is running already.
func (w *Watcher) Start(every time.Duration, poll func(now time.Time)) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel != nil {
		return false
	}
	cancel, done := make(chan struct{}), make(chan struct{})
	w.cancel, w.done = cancel, done
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-cancel:
				return
			case now := <-tick.C:
				poll(now)
			}
		}
	}()
	return true
}

// Stop ends what Start began and waits for it. It reports whether it was
// running.
func (w *Watcher) Stop() bool {
	w.mu.Lock()
	cancel, done := w.cancel, w.done
	w.cancel = nil
	w.mu.Unlock()
	if cancel == nil {
		return false
	}
	close(cancel)
	<-done
	return true
}
