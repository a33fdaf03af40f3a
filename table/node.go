package table

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// A pattern is read into a tree of our own and written out again for a Go
// engine. What the tree cannot say is refused while reading, so nothing
// reaches an engine that would read it differently from glibc or PCRE.
//
// Both Postfix engines look at bytes; the Go engines look at runes. A byte is
// therefore a rune of the same number (Latin-1) on both sides.

type nodeKind uint8

const (
	nEmpty     nodeKind = iota
	nLit                // byte c, both cases when fold
	nSet                // one byte of set
	nBegin              // start of the text
	nEnd                // end of the text
	nLineBegin          // start of a line
	nLineEnd            // end of a line
	nWord               // word boundary
	nNotWord            // no word boundary
	nWordStart          // \<
	nWordEnd            // \>
	nCat                // all of subs
	nAlt                // one of subs
	nRepeat             // subs[0], min to max times
	nGroup              // subs[0], captured as n
	nBackref            // what group n holds
	nLook               // look-around over subs[0]
	nAtomic             // subs[0] without backtracking into it
)

type node struct {
	kind     nodeKind
	c        byte
	fold     bool
	set      set
	subs     []*node
	min, max int // max < 0: no end
	lazy     bool
	n        int
	behind   bool
	not      bool
}

// set is a set of bytes.
type set [4]uint64

func (s *set) add(c byte)     { s[c>>6] |= 1 << (c & 63) }
func (s set) has(c byte) bool { return s[c>>6]&(1<<(c&63)) != 0 }
func (s *set) addRange(lo, hi byte) {
	for c := int(lo); c <= int(hi); c++ {
		s.add(byte(c))
	}
}

func (s *set) union(o set) {
	for i := range s {
		s[i] |= o[i]
	}
}

func (s set) negate() set {
	for i := range s {
		s[i] = ^s[i]
	}
	return s
}

func (s set) meets(o set) bool {
	for i := range s {
		if s[i]&o[i] != 0 {
			return true
		}
	}
	return false
}
func (s set) within(o set) bool { return !s.meets(o.negate()) }
func (s set) empty() bool       { return s == set{} }
func (s set) len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// folded adds the other case of every ASCII letter.
func (s set) folded() set {
	for c := byte('a'); c <= 'z'; c++ {
		if s.has(c) || s.has(c-32) {
			s.add(c)
			s.add(c - 32)
		}
	}
	return s
}

func ranges(pairs string) set {
	var s set
	for i := 0; i+1 < len(pairs); i += 2 {
		s.addRange(pairs[i], pairs[i+1])
	}
	return s
}

// The classes of the C locale.
var (
	setDigit  = ranges("09")
	setWord   = ranges("09AZaz__")
	setSpace  = ranges("\t\r  ")
	setHoriz  = ranges("\t\t  \xa0\xa0")
	setVert   = ranges("\n\r\x85\x85")
	setNoLF   = ranges("\n\n").negate()
	setAny    = set{}.negate()
	posixSets = map[string]set{
		"alnum": ranges("09AZaz"), "alpha": ranges("AZaz"), "blank": ranges("\t\t  "), "cntrl": ranges("\x00\x1f\x7f\x7f"),
		"digit": setDigit, "graph": ranges("!~"), "lower": ranges("az"), "print": ranges(" ~"),
		"punct": ranges("!/:@[`{~"), "space": setSpace, "upper": ranges("AZ"), "xdigit": ranges("09AFaf"),
	}
)

func (n *node) bytes() set { // of a literal or set
	if n.kind == nSet {
		return n.set
	}
	var s set
	s.add(n.c)
	if n.fold {
		s = s.folded()
	}
	return s
}

func (n *node) single() bool { return n.kind == nLit || n.kind == nSet }

// nullable reports whether n can match nothing.
func (n *node) nullable() bool {
	switch n.kind {
	case nLit, nSet:
		return false
	case nCat:
		for _, s := range n.subs {
			if !s.nullable() {
				return false
			}
		}
		return true
	case nAlt:
		for _, s := range n.subs {
			if s.nullable() {
				return true
			}
		}
		return false
	case nRepeat:
		return n.min == 0 || n.subs[0].nullable()
	case nGroup, nAtomic:
		return n.subs[0].nullable()
	default:
		return true
	}
}

// first returns the bytes that a match of n can begin with.
func (n *node) first() set {
	var s set
	switch n.kind {
	case nLit, nSet:
		return n.bytes()
	case nCat:
		for _, sub := range n.subs {
			s.union(sub.first())
			if !sub.nullable() {
				break
			}
		}
	case nAlt:
		for _, sub := range n.subs {
			s.union(sub.first())
		}
	case nRepeat, nGroup, nAtomic:
		return n.subs[0].first()
	case nBackref:
		return setAny
	default:
	}
	return s
}

// last returns the bytes that a match of n can end with.
func (n *node) last() set {
	var s set
	switch n.kind {
	case nCat:
		for _, v := range slices.Backward(n.subs) {
			s.union(v.last())
			if !v.nullable() {
				break
			}
		}
	case nAlt:
		for _, sub := range n.subs {
			s.union(sub.last())
		}
	case nRepeat, nGroup, nAtomic:
		return n.subs[0].last()
	default:
		return n.first()
	}
	return s
}

// width returns how many bytes n matches at least and at most; -1: no bound.
func (n *node) width() (lo, hi int) {
	add := func(a, b int) int {
		if a < 0 || b < 0 {
			return -1
		}
		return a + b
	}
	switch n.kind {
	case nLit, nSet:
		return 1, 1
	case nCat:
		for _, s := range n.subs {
			l, h := s.width()
			lo, hi = lo+l, add(hi, h)
		}
		return lo, hi
	case nAlt:
		for i, s := range n.subs {
			l, h := s.width()
			switch {
			case i == 0:
				lo, hi = l, h
			default:
				lo = min(lo, l)
				if h < 0 || hi < 0 {
					hi = -1
				} else {
					hi = max(hi, h)
				}
			}
		}
		return lo, hi
	case nRepeat:
		l, h := n.subs[0].width()
		switch {
		case h == 0:
			hi = 0
		case n.max < 0 || h < 0:
			hi = -1
		default:
			hi = h * n.max
		}
		return l * n.min, hi
	case nGroup, nAtomic:
		return n.subs[0].width()
	case nBackref:
		return 0, -1
	default:
		return 0, 0
	}
}

// walk calls f for n and everything below.
func (n *node) walk(f func(*node)) {
	f(n)
	for _, s := range n.subs {
		s.walk(f)
	}
}

func (n *node) hasGroup(used int) bool {
	found := false
	n.walk(func(m *node) { found = found || m.kind == nGroup && m.n <= used })
	return found
}

// writer writes a tree in the syntax that Go's regexp and regexp2 share.
type writer struct {
	b strings.Builder
	// backtracks is set when the text needs regexp2.
	backtracks bool
}

func (w *writer) byte(c byte) {
	if isAlnum(c) || c == '_' || c == ' ' || c == '@' || c == ',' || c == ':' {
		w.b.WriteByte(c)
	} else {
		fmt.Fprintf(&w.b, `\x%02x`, c)
	}
}

func (w *writer) writeSet(s set) {
	switch {
	case s == setAny:
		w.b.WriteString(`(?s:.)`)
		return
	case s.empty():
		w.b.WriteString(`[^\x00-\xff]`)
		return
	}
	w.b.WriteByte('[')
	for c := 0; c < 256; c++ {
		if !s.has(byte(c)) {
			continue
		}
		end := c
		for end < 255 && s.has(byte(end+1)) {
			end++
		}
		w.byte(byte(c))
		if end > c {
			w.b.WriteByte('-')
			w.byte(byte(end))
		}
		c = end
	}
	w.b.WriteByte(']')
}

func (w *writer) group(open string, n *node) {
	w.b.WriteString(open)
	w.write(n)
	w.b.WriteByte(')')
}

func (w *writer) write(n *node) {
	switch n.kind {
	case nEmpty:
		w.b.WriteString(`(?:)`)
	case nLit:
		if !n.fold || n.bytes().len() == 1 {
			w.byte(n.c)
			return
		}
		w.b.WriteString(`(?i:`)
		w.byte(n.c)
		w.b.WriteByte(')')
	case nSet:
		w.writeSet(n.set)
	case nBegin:
		w.b.WriteString(`\A`)
	case nEnd:
		w.b.WriteString(`\z`)
	case nLineBegin:
		w.b.WriteString(`(?m:^)`)
	case nLineEnd:
		w.b.WriteString(`(?m:$)`)
	case nWord:
		w.b.WriteString(`\b`)
	case nNotWord:
		w.b.WriteString(`\B`)
	case nWordStart:
		w.backtracks = true
		w.b.WriteString(`(?<![0-9A-Za-z_])(?=[0-9A-Za-z_])`)
	case nWordEnd:
		w.backtracks = true
		w.b.WriteString(`(?<=[0-9A-Za-z_])(?![0-9A-Za-z_])`)
	case nCat:
		for i, s := range n.subs {
			switch {
			case s.kind == nWordStart && i+1 < len(n.subs) && !n.subs[i+1].nullable() && n.subs[i+1].first().within(setWord),
				s.kind == nWordEnd && i > 0 && !n.subs[i-1].nullable() && n.subs[i-1].last().within(setWord):
				w.b.WriteString(`\b`)
			case s.kind == nAlt:
				w.group(`(?:`, s)
			default:
				w.write(s)
			}
		}
	case nAlt:
		for i, s := range n.subs {
			if i > 0 {
				w.b.WriteByte('|')
			}
			w.write(s)
		}
	case nRepeat:
		w.group(`(?:`, n.subs[0])
		switch {
		case n.min == 0 && n.max < 0:
			w.b.WriteByte('*')
		case n.min == 1 && n.max < 0:
			w.b.WriteByte('+')
		case n.min == 0 && n.max == 1:
			w.b.WriteByte('?')
		case n.max < 0:
			fmt.Fprintf(&w.b, "{%d,}", n.min)
		case n.min == n.max:
			fmt.Fprintf(&w.b, "{%d}", n.min)
		default:
			fmt.Fprintf(&w.b, "{%d,%d}", n.min, n.max)
		}
		if n.lazy {
			w.b.WriteByte('?')
		}
	case nGroup:
		w.group(`(`, n.subs[0])
	case nBackref:
		w.backtracks = true
		if n.fold {
			fmt.Fprintf(&w.b, `(?i:\%d)`, n.n)
		} else {
			fmt.Fprintf(&w.b, `(?:\%d)`, n.n)
		}
	case nLook:
		w.backtracks = true
		open := `(?`
		if n.behind {
			open += `<`
		}
		if n.not {
			open += `!`
		} else {
			open += `=`
		}
		w.group(open, n.subs[0])
	case nAtomic:
		w.backtracks = true
		w.group(`(?>`, n.subs[0])
	}
}
