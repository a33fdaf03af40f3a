// Package watch tells whether a file has changed. Files are looked at now and
// then: that works on every file system, and sees a link that points elsewhere.
package watch

import (
	"os"
	"time"
)

// Stamp is how a file looked. The zero Stamp differs from that of any file.
type Stamp struct {
	modified time.Time
	size     int64
	info     os.FileInfo
	missing  bool
}

// Of returns the stamp of the file at path, links followed.
func Of(path string) Stamp {
	st, err := os.Stat(path)
	if err != nil {
		return Stamp{missing: true}
	}
	return Stamp{modified: st.ModTime(), size: st.Size(), info: st}
}

// Same reports whether nothing has changed between two stamps.
func (s Stamp) Same(o Stamp) bool {
	return s.missing == o.missing && s.size == o.size && s.modified.Equal(o.modified) &&
		(s.info == nil || o.info == nil || os.SameFile(s.info, o.info))
}

// settle is how long a file must have been left alone before it is read
// again: an editor that writes in place is not caught half way.
const settle = 100 * time.Millisecond

// Settled reports whether the file has been left alone long enough at now. A
// missing one has, and so has one from the future.
func (s Stamp) Settled(now time.Time) bool {
	age := now.Sub(s.modified)
	return s.missing || age < 0 || age >= settle
}
