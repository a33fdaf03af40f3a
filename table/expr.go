package table

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dlclark/regexp2/v2"
)

// matchTimeout is the most time that one pattern which needs backtracking may
// take on one key. The engine looks at a clock that ticks every 100 ms.
const matchTimeout = 250 * time.Millisecond

// errAt is a fault at an offset of a pattern.
type errAt struct {
	at   int
	text string
	// refused is set when Postfix's engine does not take the pattern either.
	refused bool
}

func (e *errAt) Error() string { return e.text }

// expr is one compiled pattern.
type expr struct {
	tree   *node
	groups int
	posix  bool
	odd    []errAt         // escapes that are hardly meant
	re     *regexp.Regexp  // or
	back   *regexp2.Regexp // when it needs backtracking
}

// pattern reads a delimited pattern with its negations and flags from the
// text at offset at, for a regexp table also the second one of "/a/!/b/", and
// returns the offset behind it.
func (p *parser) pattern(in *instr, at int, two bool) (end int, ok bool) {
	in.re, in.not, end, ok = p.onePattern(at)
	if !ok {
		return end, false
	}
	if two && p.t.kind == Regexp && end < len(p.l.text) && p.l.text[end] == '!' {
		in.re2, in.not2, end, ok = p.onePattern(end)
	}
	return end, ok
}

func (p *parser) onePattern(at int) (re *expr, not bool, end int, ok bool) {
	text, i := p.l.text, at
	for ; i < len(text) && (text[i] == '!' || isSpace(text[i])); i++ {
		if text[i] == '!' {
			not = !not
		}
	}
	if i == len(text) {
		p.warnf(i, "no pattern")
		return nil, false, i, false
	}
	delimiter := text[i]
	if isAlnum(delimiter) || delimiter == '\\' {
		p.warnf(i, "a pattern between delimiters is expected here, such as /pattern/")
		return nil, false, i, false
	}
	start := i + 1
	for i = start; i < len(text) && text[i] != delimiter; i++ {
		if text[i] == '\\' {
			i++
		}
	}
	if i >= len(text) {
		p.warnf(start-1, "the pattern has no closing %c", delimiter)
		return nil, false, i, false
	}
	pattern := text[start:i]
	flags := i + 1
	for end = flags; end < len(text) && !isSpace(text[end]) && (p.t.kind != Regexp || text[end] != '!'); {
		end++
	}
	known := "imx"
	if p.t.kind == PCRE {
		known = "imsxAEU"
	}
	on := map[byte]bool{'i': true, 's': true}
	if p.t.kind == Regexp {
		on = map[byte]bool{'i': true, 'x': true}
	}
	for j := flags; j < end; j++ {
		if p.t.kind == PCRE && text[j] == 'X' {
			p.warnf(j, "the flag X means nothing any more")
			if p.lenient {
				continue
			}
			return nil, false, end, false
		}
		if strings.IndexByte(known, text[j]) < 0 {
			p.warnf(j, "unknown flag %q after the pattern (one of %s)", text[j:j+1], known)
			return nil, false, end, false
		}
		on[text[j]] = !on[text[j]]
	}
	re, err := compile(p.t.kind, pattern, on)
	if err != nil {
		offset, report := 0, p.faultf
		if where, ok := errors.AsType[*errAt](err); ok {
			offset = where.at
			if where.refused {
				report = p.warnf
			}
		}
		report(start+offset, "%v", err)
		return nil, false, end, false
	}
	for _, o := range re.odd {
		p.warnf(start+o.at, "%s", o.text)
	}
	return re, not, end, len(re.odd) == 0 || p.lenient
}

func compile(kind Kind, pattern string, flags map[byte]bool) (*expr, error) {
	re := &expr{posix: kind == Regexp}
	var err error
	if re.posix {
		re.tree, re.groups, re.odd, err = parsePOSIX(pattern, flags['x'], flags['i'], flags['m'])
	} else {
		re.tree, re.groups, err = parsePCRE(pattern, flags)
	}
	if err != nil {
		return nil, err
	}
	var w writer
	w.write(re.tree)
	text := w.b.String()
	if !w.backtracks {
		if re.re, err = regexp.Compile(text); err == nil {
			return re, nil
		}
	}
	if re.back, err = regexp2.Compile(text); err != nil {
		return nil, fmt.Errorf("the pattern is too much for the engine: %w", err)
	}
	re.back.MatchTimeout = matchTimeout
	return re, nil
}

// needGroups prepares the expression to tell what groups up to n hold. It
// refuses patterns whose groups Postfix's engine fills by other rules, and says
// in doubt where the two may differ.
func (re *expr) needGroups(n int) (doubt string, err error) {
	if re.posix {
		if re.back != nil {
			return "", errors.New("$ in the result of a pattern with back-references or \\< \\>: the engines choose groups differently; a pcre table can say this")
		}
		re.re.Longest()
		return groupsInDoubt(re.tree, n), nil
	}
	return "", pcreGroups(re.tree, n)
}

// groupsInDoubt says of a POSIX expression why groups up to used may hold
// something else in glibc, "" when they hold the same. Both take the leftmost,
// longest match and in it the longest first group and so on. They have been
// seen to differ where a repeated part that holds a group can match nothing
// (what it held last is then the empty end for one of them), where an empty
// alternative comes before others, and where glibc
// errs: groups repeated {n,m} times, which it writes out, parts repeated {0}
// times, and anchors in repeated parts or in the middle.
func groupsInDoubt(n *node, used int) (why string) {
	n.walk(func(m *node) {
		switch {
		case m.kind == nAlt:
			for _, a := range m.subs[:len(m.subs)-1] {
				if a.nullable() && !a.hasAnchor() {
					why = "an alternative that is not the last can match nothing: /(|b?)b/ on \"bb\" gives $1 as \"b\" in Postfix and as nothing here"
				}
			}
		case m.kind != nRepeat:
		case m.max == 0:
			why = "something is repeated {0} times: /c{0}(|b?)b/ on \"bb\" gives $1 as \"b\" in Postfix and as nothing here"
		case m.subs[0].hasAnchor():
			why = "^, $ or \\b is in a repeated part: /((|^c){2})b?a/ on \"cca\" does not match in Postfix, and does here"
		case m.max > 1 && m.subs[0].hasGroup(used) && !m.subs[0].fixed():
			why = "a group whose length varies is repeated {n,m} times: /(b.?|c){0,2}/ on \"bb\" gives $1 as \"b\" in Postfix and as \"bb\" here"
		case (m.max < 0 || m.max > 1) && m.subs[0].hasGroup(used) && m.subs[0].canBeEmpty():
			why = "a repeated part that can match nothing holds a group: /(a|b?)*/ on \"b\" gives $1 as \"b\" in Postfix and as nothing here"
		}
	})
	if why == "" && n.repeatsGroup(used) && n.hasWordEdge() {
		why = "a group is repeated in a pattern with \\b: /(.{1,2})+c?\\b.*/ on \"b cac a\" may give another $1 in Postfix than here"
	}
	if why == "" && n.anchoredInside(true, true) {
		why = "^ or $ is in the middle: /$./ matches a line feed in Postfix, and nothing here"
	}
	return why
}

// fixed reports whether all that a node matches has the same length.
func (n *node) fixed() bool {
	lo, hi := n.lengths()
	return lo == hi
}

// lengths returns those of the shortest and the longest match, -1 for a
// longest that has no end or is not known.
func (n *node) lengths() (lo, hi int) {
	switch n.kind {
	case nLit, nSet:
		return 1, 1
	case nCat:
		for _, m := range n.subs {
			a, b := m.lengths()
			lo += a
			if hi >= 0 {
				hi += b
			}
			if b < 0 {
				hi = -1
			}
		}
		return lo, hi
	case nAlt:
		lo, hi = n.subs[0].lengths()
		for _, m := range n.subs[1:] {
			a, b := m.lengths()
			lo = min(lo, a)
			if hi < 0 || b < 0 {
				hi = -1
			} else {
				hi = max(hi, b)
			}
		}
		return lo, hi
	case nRepeat:
		a, b := n.subs[0].lengths()
		if n.max < 0 || b < 0 {
			return a * n.min, -1
		}
		return a * n.min, b * n.max
	case nGroup, nAtomic:
		return n.subs[0].lengths()
	case nBackref:
		return 0, -1
	default:
		return 0, 0
	}
}

// repeatsGroup reports whether a group up to used is in a repeated part.
func (n *node) repeatsGroup(used int) (found bool) {
	n.walk(func(m *node) {
		found = found || m.kind == nRepeat && (m.max < 0 || m.max > 1) && m.subs[0].hasGroup(used)
	})
	return found
}

func (n *node) hasWordEdge() (found bool) {
	n.walk(func(m *node) {
		found = found || m.kind == nWord || m.kind == nNotWord || m.kind == nWordStart || m.kind == nWordEnd
	})
	return found
}

// hasAnchor reports whether something in a node matches a place, not a text.
func (n *node) hasAnchor() (found bool) {
	n.walk(func(m *node) {
		switch m.kind {
		case nBegin, nEnd, nLineBegin, nLineEnd, nWord, nNotWord, nWordStart, nWordEnd:
			found = true
		default:
		}
	})
	return found
}

// anchoredInside reports whether ^ is anywhere but first, or $ but last: first
// says that nothing comes before the node, last that nothing comes after.
func (n *node) anchoredInside(first, last bool) bool {
	switch n.kind {
	case nBegin, nLineBegin:
		return !first
	case nEnd, nLineEnd:
		return !last
	case nCat:
		for i, m := range n.subs {
			if m.anchoredInside(first && i == 0, last && i == len(n.subs)-1) {
				return true
			}
		}
	case nAlt, nGroup:
		return slices.ContainsFunc(n.subs, func(m *node) bool { return m.anchoredInside(first, last) })
	default:
		return slices.ContainsFunc(n.subs, func(m *node) bool { return m.anchoredInside(false, false) })
	}
	return false
}

// canBeEmpty reports whether a node can match nothing, or a repeated part in it
// can.
func (n *node) canBeEmpty() bool {
	if n.nullable() {
		return true
	}
	found := false
	n.walk(func(m *node) {
		found = found || m.kind == nRepeat && m.subs[0].nullable()
	})
	return found
}

// pcreGroups: the engines differ in what a group holds after a loop whose body
// can match nothing, and in groups inside a look-behind.
func pcreGroups(n *node, used int) error {
	var err error
	n.walk(func(m *node) {
		switch {
		case m.kind == nRepeat && (m.max < 0 || m.max > 1) && m.subs[0].nullable() && m.subs[0].hasGroup(used):
			err = errors.New("a group is used that stands in a repeated part which can match nothing: engines differ in what it holds then")
		case m.kind == nLook && m.behind && m.subs[0].hasGroup(used):
			err = errors.New("a group is used that stands in a look-behind: engines differ in what it holds then")
		}
	})
	return err
}

// subject is a key and its form for the engines.
type subject struct {
	text string
	wide string // bytes as runes; empty: not made yet
}

func (s *subject) runes() string {
	if s.wide == "" {
		s.wide = widen(s.text)
	}
	return s.wide
}

func widen(s string) string {
	for i := range len(s) {
		if s[i] >= 0x80 {
			r := make([]rune, len(s))
			for j := range len(s) {
				r[j] = rune(s[j])
			}
			return string(r)
		}
	}
	return s
}

func narrow(s string) string {
	for i := range len(s) {
		if s[i] >= 0x80 {
			b := make([]byte, 0, len(s))
			for _, r := range s {
				b = append(b, byte(r))
			}
			return string(b)
		}
	}
	return s
}

func (re *expr) match(s *subject) (bool, error) {
	if re.re != nil {
		return re.re.MatchString(s.runes()), nil
	}
	return re.back.MatchString(s.runes())
}

// find returns the groups, nil when there is no match.
func (re *expr) find(s *subject) ([]string, error) {
	if re.re != nil {
		m := re.re.FindStringSubmatch(s.runes())
		for i := range m {
			m[i] = narrow(m[i])
		}
		return m, nil
	}
	m, err := re.back.FindStringMatch(s.runes())
	if err != nil || m == nil {
		return nil, err
	}
	groups := make([]string, re.groups+1)
	for i := range groups {
		if g := m.GroupByNumber(i); g != nil && len(g.Captures) > 0 {
			groups[i] = narrow(g.String())
		}
	}
	return groups, nil
}
