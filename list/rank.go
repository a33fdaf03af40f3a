package list

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"
)

// rank says how specific a pattern is; the higher goes first.
type rank struct {
	level uint8
	width uint8 // within a level: prefix length, or number of dots
}

// The levels, from the least specific.
const (
	levelRegexp  uint8 = iota + 1
	levelSuffix        // .example.org
	levelUser          // user@
	levelDomain        // the domain of an address
	levelName          // a host name: of the client, or HELO
	levelNetwork       // client address
	levelAddress       // a whole envelope address
)

func (r rank) compare(o rank) int {
	if c := cmp.Compare(o.level, r.level); c != 0 {
		return c
	}
	return cmp.Compare(o.width, r.width)
}

// networkRank ranks networks of one family: no client has an address of both.
func networkRank(p netip.Prefix) rank { return rank{levelNetwork, uint8(p.Bits())} }

func nameRank(level uint8, name string) rank {
	return rank{level, uint8(min(strings.Count(name, "."), 255))}
}

func writeInt(b *strings.Builder, n int) {
	var buf [20]byte
	b.Write(strconv.AppendInt(buf[:0], int64(n), 10))
}
