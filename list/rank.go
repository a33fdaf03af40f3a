package list

import (
	"cmp"
	"strconv"
	"strings"
)

// rank says how specific a pattern is; the higher goes first.
type rank struct {
	level uint8
	width uint8 // within a level: prefix length, or number of labels
}

func (r rank) compare(o rank) int {
	if c := cmp.Compare(o.level, r.level); c != 0 {
		return c
	}
	return cmp.Compare(o.width, r.width)
}

func writeInt(b *strings.Builder, n int) {
	var buf [20]byte
	b.Write(strconv.AppendInt(buf[:0], int64(n), 10))
}
