// Package filestamp tells whether a file has changed since it was read.
package filestamp

import (
	"os"
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
