package table

import (
	"math/bits"
	"slices"
)

// An index tells which rules of a block can match a key at all: those of
// which a literal text occurs in the key that every match of their pattern
// must hold, and those of which no such text is known. The texts are found in
// one pass over the key, however many there are (Aho and Corasick, 1975).
// Letters are compared without case, so that a rule may be tried in vain but
// is never left out.

// minIndexed is how many items make an index worth it.
const minIndexed = 4

// Bounds of what is taken from one pattern.
const (
	maxLiteral  = 24  // bytes of one text
	maxLiterals = 512 // texts of which one must occur
	maxProduct  = 64  // texts that come from parts that follow each other
)

// maxCells bounds the transitions of one index, 4 bytes each.
const maxCells = 4 << 20

func trailingZeros(w uint64) int { return bits.TrailingZeros64(w) }

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func hasFoldedPrefix(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if len(s) < len(p) {
			continue
		}
		i := 0
		for i < len(p) && lower(s[i]) == p[i] {
			i++
		}
		if i == len(p) {
			return true
		}
	}
	return false
}

// texts are literal texts in lower case; nil: nothing is known.
type texts []string

func (t texts) shortest() int {
	if len(t) == 0 {
		return 0
	}
	n := len(t[0])
	for _, s := range t {
		n = min(n, len(s))
	}
	return n
}

func (t texts) compact() texts {
	slices.Sort(t)
	return slices.Compact(t)
}

// cat returns the texts of a followed by those of b. Texts that grow too long
// are cut, and full is false then.
func cat(a, b texts) (product texts, full bool) {
	full = true
	for _, x := range a {
		for _, y := range b {
			s := x + y
			if len(s) > maxLiteral {
				s, full = s[:maxLiteral], false
			}
			product = append(product, s)
		}
	}
	return product.compact(), full
}

// leading returns texts of which one begins every match of n. When all is set
// they are all that n matches, letters without case. Nil: not known.
func (n *node) leading() (t texts, all bool) {
	switch n.kind {
	case nLit, nSet:
		s := n.bytes()
		for c := range 256 {
			if s.has(byte(c)) {
				t = append(t, string([]byte{lower(byte(c))}))
			}
			if len(t) > 2*maxLiteral {
				return nil, false
			}
		}
		t = t.compact()
		return t, len(t) > 0
	case nCat:
		t, all = texts{""}, true
		for _, sub := range n.subs {
			next, whole := sub.leading()
			if next == nil || len(t)*len(next) > max(maxProduct, len(t), len(next)) {
				all = false
				break
			}
			var full bool
			t, full = cat(t, next)
			if all = whole && full; !all {
				break
			}
		}
		return t, all
	case nAlt:
		all = true
		for _, sub := range n.subs {
			next, whole := sub.leading()
			if next == nil || len(t)+len(next) > maxLiterals {
				return nil, false
			}
			t, all = append(t, next...), all && whole
		}
		return t.compact(), all
	case nRepeat:
		t, all = n.subs[0].leading()
		switch {
		case t == nil || n.max == 0:
			return nil, false
		case n.min == 0 && n.max == 1 && all:
			return append(slices.Clone(t), "").compact(), true
		case n.min == 0:
			return nil, false
		case n.min == 1 && n.max == 1:
			return t, all
		}
		return t, false
	case nGroup, nAtomic:
		return n.subs[0].leading()
	case nBackref:
		return nil, false
	default: // nothing is consumed
		return texts{""}, true
	}
}

// anchored returns texts of which one begins every key that n matches; nil:
// not known.
func (n *node) anchored() texts {
	switch n.kind {
	case nCat:
		for i, sub := range n.subs {
			switch sub.kind {
			case nBegin:
				rest := &node{kind: nCat, subs: n.subs[i+1:]}
				t, _ := rest.leading()
				if t.shortest() == 0 {
					return nil
				}
				return t
			case nEmpty:
				continue
			default:
				return sub.anchored()
			}
		}
	case nAlt:
		var t texts
		for _, sub := range n.subs {
			next := sub.anchored()
			if next == nil || len(t)+len(next) > maxLiterals {
				return nil
			}
			t = append(t, next...)
		}
		return t.compact()
	case nGroup, nAtomic:
		return n.subs[0].anchored()
	default:
	}
	return nil
}

// required returns texts of which one occurs in every match of n, the most
// telling that were found; nil: not known.
func (n *node) required() texts {
	var best texts
	better := func(t texts) {
		if t.shortest() > best.shortest() {
			best = t
		}
	}
	switch n.kind {
	case nLit, nSet:
		if t, all := n.leading(); all {
			return t
		}
	case nCat:
		run := texts{""}
		begin := false // the run began at the start of the key
		flush := func() {
			if !begin {
				better(run)
			}
			run, begin = texts{""}, false
		}
		for _, sub := range n.subs {
			if sub.kind == nBegin {
				run, begin = texts{""}, true
				continue
			}
			next, all := sub.leading()
			if !all {
				if len(run) > 0 && next != nil && len(run)*len(next) <= maxProduct {
					run, _ = cat(run, next)
				}
				flush()
				better(sub.required())
				continue
			}
			if len(run)*len(next) > max(maxProduct, len(run), len(next)) {
				flush()
			}
			var full bool
			if run, full = cat(run, next); !full {
				flush()
			}
		}
		flush()
	case nAlt:
		var t texts
		for _, sub := range n.subs {
			next := sub.required()
			if next == nil || len(t)+len(next) > maxLiterals {
				return nil
			}
			t = append(t, next...)
		}
		return t.compact()
	case nRepeat:
		if n.min > 0 {
			return n.subs[0].required()
		}
	case nGroup, nAtomic:
		return n.subs[0].required()
	default:
	}
	return best
}

// index finds candidates among the items of a block.
type index struct {
	width  int      // words of a set of items
	always []uint64 // items that are always candidates
	of     [][]int32
	marks  int // words of a set of literals

	classes int
	class   [256]uint8
	next    []int32 // [state*classes+class]
	out     []int32 // of a state: 1 + the literal that ends there
	link    []int32 // of a state: the next shorter one with a literal, or 0
}

// link makes the index of a block, if there is something to gain.
func (b *block) link() {
	if len(b.items) < minIndexed {
		return
	}
	ix := &index{width: (len(b.items) + 63) / 64}
	ix.always = make([]uint64, ix.width)
	literals := make([]texts, len(b.items))
	useful, longest := 0, 0
	for i := range b.items {
		it := &b.items[i]
		if !it.in.not {
			it.prefixes = it.in.re.tree.anchored()
			if len(it.prefixes) > 16 {
				it.prefixes = nil
			}
			literals[i] = it.in.re.tree.required()
			if p := texts(it.prefixes); literals[i].shortest() < 3 && p.shortest() > literals[i].shortest() {
				literals[i] = p
			}
		}
		if literals[i] == nil {
			ix.always[i/64] |= 1 << (i % 64)
			continue
		}
		useful++
		for _, s := range literals[i] {
			longest = max(longest, len(s))
		}
	}
	if useful < minIndexed {
		for i := range b.items {
			b.items[i].prefixes = nil
		}
		return
	}
	for ; longest > 0; longest /= 2 {
		if ix.build(literals, longest) {
			b.index = ix
			return
		}
	}
}

// build makes the automaton of the literals, cut to so many bytes. It gives
// up when that takes too much memory.
func (ix *index) build(literals []texts, cut int) bool {
	ix.class, ix.classes, ix.of = [256]uint8{}, 1, nil
	for _, t := range literals {
		for _, s := range t {
			for i := range min(len(s), cut) {
				if c := s[i]; ix.class[c] == 0 {
					if ix.classes == 255 {
						return false
					}
					ix.class[c] = uint8(ix.classes)
					ix.classes++
				}
			}
		}
	}
	for c := byte('A'); c <= 'Z'; c++ {
		ix.class[c] = ix.class[lower(c)]
	}
	n := ix.classes
	ix.next, ix.out = make([]int32, n), make([]int32, 1)
	for i, t := range literals {
		for _, s := range t {
			s = s[:min(len(s), cut)]
			state := 0
			for j := range len(s) {
				cell := state*n + int(ix.class[s[j]])
				if ix.next[cell] == 0 {
					if len(ix.next)+n > maxCells {
						return false
					}
					ix.next[cell] = int32(len(ix.out))
					ix.next = append(ix.next, make([]int32, n)...)
					ix.out = append(ix.out, 0)
				}
				state = int(ix.next[cell])
			}
			if ix.out[state] == 0 {
				ix.of = append(ix.of, nil)
				ix.out[state] = int32(len(ix.of))
			}
			of := &ix.of[ix.out[state]-1]
			*of = append(*of, int32(i))
		}
	}
	ix.marks = (len(ix.of) + 63) / 64
	ix.fail()
	return true
}

// fail turns the tree of literals into an automaton that never goes back.
func (ix *index) fail() {
	n := ix.classes
	ix.link = make([]int32, len(ix.out))
	fails := make([]int32, len(ix.out))
	var queue []int32
	for c := range n {
		if s := ix.next[c]; s != 0 {
			queue = append(queue, s)
		}
	}
	for len(queue) > 0 {
		state := queue[0]
		queue = queue[1:]
		fail := fails[state]
		if ix.out[fail] != 0 {
			ix.link[state] = fail
		} else {
			ix.link[state] = ix.link[fail]
		}
		for c := range n {
			cell, other := int(state)*n+c, ix.next[int(fail)*n+c]
			if s := ix.next[cell]; s != 0 {
				fails[s] = other
				queue = append(queue, s)
			} else {
				ix.next[cell] = other
			}
		}
	}
}

// candidates appends the set of items that can match key, ix.width words.
func (ix *index) candidates(words []uint64, key string) []uint64 {
	base := len(words)
	words = append(words, ix.always...)
	words = append(words, make([]uint64, ix.marks)...)
	set, marks := words[base:base+ix.width], words[base+ix.width:]
	state, n := int32(0), int32(ix.classes)
	for i := range len(key) {
		state = ix.next[state*n+int32(ix.class[key[i]])]
		at := state
		if ix.out[at] == 0 {
			at = ix.link[at]
		}
		for ; at != 0; at = ix.link[at] {
			lit := ix.out[at] - 1
			if marks[lit/64]&(1<<(lit%64)) != 0 {
				continue
			}
			marks[lit/64] |= 1 << (lit % 64)
			for _, it := range ix.of[lit] {
				set[it/64] |= 1 << (it % 64)
			}
		}
	}
	return words[:base+ix.width]
}
