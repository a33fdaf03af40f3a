package table

import (
	"errors"
	"fmt"
	"regexp"
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
	return re, not, end, true
}

func compile(kind Kind, pattern string, flags map[byte]bool) (*expr, error) {
	re := &expr{posix: kind == Regexp}
	var err error
	if re.posix {
		re.tree, re.groups, err = parsePOSIX(pattern, flags['x'], flags['i'], flags['m'])
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
// refuses patterns whose groups Postfix's engine and ours may fill differently.
func (re *expr) needGroups(n int) error {
	if re.posix {
		if re.back != nil {
			return errors.New("$ in the result of a pattern with back-references or \\< \\>: the engines choose groups differently; a pcre table can say this")
		}
		if err := posixGroups(re.tree, n); err != nil {
			return err
		}
		re.re.Longest()
		return nil
	}
	return pcreGroups(re.tree, n)
}

// posixGroups: glibc takes the longest match and in it the longest first
// group and so on; Go takes the longest match and in it what backtracking
// finds first. They agree when alternatives cannot begin alike and a group is
// not repeated.
func posixGroups(n *node, used int) error {
	var err error
	n.walk(func(m *node) {
		switch {
		case m.kind == nRepeat && (m.max < 0 || m.max > 1) && m.subs[0].hasGroup(used):
			err = errors.New("$ in the result, but a group in the pattern is repeated: engines differ in what it holds then; a pcre table can say this")
		case m.kind == nAlt:
			for i, a := range m.subs {
				if a.nullable() && i < len(m.subs)-1 {
					err = errors.New("$ in the result, but an alternative that is not the last can be empty: engines differ in what groups hold then; a pcre table can say this")
				}
				for _, b := range m.subs[i+1:] {
					if !apart(a, b) {
						err = errors.New("$ in the result, but two alternatives can begin alike: engines differ in what groups hold then; a pcre table can say this")
					}
				}
			}
		}
	})
	return err
}

// apart reports whether no text can begin with a match of a and with one of b.
func apart(a, b *node) bool {
	for i := 0; ; i++ {
		x, y := a.nth(i), b.nth(i)
		if x == nil || y == nil {
			return i == 0 && (a.nullable() || b.nullable()) || i == 0 && !a.first().meets(b.first())
		}
		if !x.meets(*y) {
			return true
		}
	}
}

// nth returns the bytes that can stand at offset i of a match, nil when that
// cannot be told.
func (n *node) nth(i int) *set {
	for n.kind == nGroup {
		n = n.subs[0]
	}
	switch {
	case n.single() && i == 0:
		s := n.bytes()
		return &s
	case n.kind == nCat && i < len(n.subs):
		for j := 0; j <= i; j++ {
			if !n.subs[j].single() {
				if j == i && !n.subs[j].nullable() {
					s := n.subs[j].first()
					return &s
				}
				return nil
			}
		}
		s := n.subs[i].bytes()
		return &s
	case n.kind != nCat && i == 0 && !n.nullable():
		s := n.first()
		return &s
	}
	return nil
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
