package table

import (
	"fmt"
	"strconv"
	"strings"
)

// pcreParser reads PCRE2 expressions (pcre2pattern(3)) without UTF mode, as
// Postfix compiles them.
type pcreParser struct {
	s       string
	i       int
	f       pcreFlags
	endOnly bool
	greedy  bool
	groups  int
	names   map[string]int // of the groups met so far
}

// pcreFlags can change inside a pattern.
type pcreFlags struct{ fold, lines, dotall, extended bool }

func parsePCRE(s string, flags map[byte]bool) (*node, int, error) {
	p := &pcreParser{
		s: s, names: map[string]int{}, endOnly: flags['E'], greedy: !flags['U'],
		f: pcreFlags{flags['i'], flags['m'], flags['s'], flags['x']},
	}
	if strings.HasPrefix(s, "(*") {
		return nil, 0, p.errorf(0, "(*...) is not supported")
	}
	n, err := p.alternatives(0)
	if err == nil && p.i < len(s) {
		err = p.refusef(p.i, "unmatched closing parenthesis")
	}
	if err != nil {
		return nil, 0, err
	}
	highest := 0
	n.walk(func(m *node) {
		if m.kind == nBackref {
			highest = max(highest, m.n)
		}
	})
	if highest > p.groups {
		return nil, 0, p.errorf(0, "\\%d refers to a group that does not exist", highest)
	}
	if highest > 0 {
		if err := pcreGroups(n, highest); err != nil {
			return nil, 0, err
		}
	}
	if flags['A'] {
		n = &node{kind: nCat, subs: []*node{{kind: nBegin}, n}}
	}
	return n, p.groups, nil
}

func (p *pcreParser) errorf(at int, format string, args ...any) error {
	return &errAt{at: at, text: fmt.Sprintf(format, args...)}
}

// refusef is errorf for what Postfix's engine does not take either.
func (p *pcreParser) refusef(at int, format string, args ...any) error {
	return &errAt{at: at, text: fmt.Sprintf(format, args...), refused: true}
}

func (p *pcreParser) has(s string) bool { return strings.HasPrefix(p.s[p.i:], s) }

func (p *pcreParser) alternatives(depth int) (*node, error) {
	if depth > maxDepth {
		return nil, p.errorf(p.i, "groups are nested deeper than %d", maxDepth)
	}
	alt := &node{kind: nAlt}
	for {
		n, err := p.branch(depth)
		if err != nil {
			return nil, err
		}
		alt.subs = append(alt.subs, n)
		if !p.has("|") {
			break
		}
		p.i++
	}
	if len(alt.subs) == 1 {
		return alt.subs[0], nil
	}
	return alt, nil
}

// skip passes over what does not count: comments, and white space under x.
func (p *pcreParser) skip() error {
	for p.i < len(p.s) {
		switch {
		case p.has("(?#"):
			end := strings.IndexByte(p.s[p.i:], ')')
			if end < 0 {
				return p.refusef(p.i, "the comment is not closed")
			}
			p.i += end + 1
		case p.f.extended && isSpace(p.s[p.i]):
			p.i++
		case p.f.extended && p.s[p.i] == '#':
			end := strings.IndexByte(p.s[p.i:], '\n')
			if end < 0 {
				end = len(p.s) - p.i
			}
			p.i += end
		default:
			return nil
		}
	}
	return nil
}

func (p *pcreParser) branch(depth int) (*node, error) {
	cat := &node{kind: nCat}
	for {
		if err := p.skip(); err != nil {
			return nil, err
		}
		if p.i >= len(p.s) || p.s[p.i] == '|' || p.s[p.i] == ')' {
			return cat, nil
		}
		if p.has(`\Q`) {
			text, _, _ := strings.Cut(p.s[p.i+2:], `\E`)
			p.i = min(p.i+2+len(text)+2, len(p.s))
			for j := range len(text) {
				cat.subs = append(cat.subs, p.lit(text[j]))
			}
			if text == "" {
				continue
			}
			last := len(cat.subs) - 1
			n, err := p.repeat(cat.subs[last])
			if err != nil {
				return nil, err
			}
			cat.subs[last] = n
			continue
		}
		if p.has(`\E`) {
			p.i += 2
			continue
		}
		n, err := p.atom(depth)
		if err != nil {
			return nil, err
		}
		if n == nil { // options for the rest of the group
			continue
		}
		if n, err = p.repeat(n); err != nil {
			return nil, err
		}
		cat.subs = append(cat.subs, n)
	}
}

func (p *pcreParser) lit(c byte) *node { return &node{kind: nLit, c: c, fold: p.f.fold} }

func (p *pcreParser) set(s set) *node { return &node{kind: nSet, set: s} }

func (p *pcreParser) atom(depth int) (*node, error) {
	at := p.i
	c := p.s[p.i]
	p.i++
	switch c {
	case '(':
		return p.group(at, depth)
	case '\\':
		return p.escape(at)
	case '[':
		return p.class(at)
	case '.':
		if p.f.dotall {
			return p.set(setAny), nil
		}
		return p.set(setNoLF), nil
	case '^':
		if p.f.lines {
			return &node{kind: nLineBegin}, nil
		}
		return &node{kind: nBegin}, nil
	case '$':
		// Without flag E it also matches before a line feed at the very end,
		// which no key has.
		if p.f.lines {
			return &node{kind: nLineEnd}, nil
		}
		return &node{kind: nEnd}, nil
	case '*', '+', '?':
		return nil, p.refusef(at, "%c has nothing before it to repeat (a literal one is written \\%c)", c, c)
	case '{':
		if _, _, n := p.interval(at); n > 0 {
			return nil, p.errorf(at, "{ has nothing before it to repeat (a literal one is written \\{)")
		}
		return p.openBrace(at)
	}
	return p.lit(c), nil
}

// openBrace refuses braces that versions of PCRE2 read differently.
func (p *pcreParser) openBrace(at int) (*node, error) {
	rest := p.s[at+1:]
	if i := strings.IndexByte(rest, '}'); i >= 0 && strings.Trim(rest[:i], "0123456789, \t") == "" {
		return nil, p.errorf(at, "%q: versions of PCRE2 differ on it; write {0,n}, or \\{ for a literal brace", p.s[at:at+i+2])
	}
	return p.lit('{'), nil
}

// interval reads {n}, {n,} or {n,m} at offset at; length 0: there is none.
func (p *pcreParser) interval(at int) (lo, hi, length int) {
	if at >= len(p.s) || p.s[at] != '{' {
		return 0, 0, 0
	}
	inner, _, ok := strings.Cut(p.s[at+1:], "}")
	if !ok {
		return 0, 0, 0
	}
	a, b, comma := strings.Cut(inner, ",")
	for _, r := range a + b {
		if r < '0' || r > '9' {
			return 0, 0, 0
		}
	}
	lo, err := strconv.Atoi(a)
	if err != nil {
		return 0, 0, 0
	}
	hi = lo
	if comma {
		hi = -1
		if b != "" {
			if hi, err = strconv.Atoi(b); err != nil {
				return 0, 0, 0
			}
		}
	}
	return lo, hi, len(inner) + 2
}

func (p *pcreParser) repeat(n *node) (*node, error) {
	if err := p.skip(); err != nil {
		return nil, err
	}
	at := p.i
	if at >= len(p.s) {
		return n, nil
	}
	lo, hi := 0, -1
	switch p.s[at] {
	case '*':
		p.i++
	case '+':
		lo = 1
		p.i++
	case '?':
		hi = 1
		p.i++
	case '{':
		var length int
		if lo, hi, length = p.interval(at); length == 0 {
			return n, nil
		}
		if lo > 65535 || hi > 65535 || hi >= 0 && hi < lo {
			return nil, p.refusef(at, "%q: numbers up to 65535, the smaller first", p.s[at:at+length])
		}
		p.i += length
	default:
		return n, nil
	}
	switch n.kind {
	case nBegin, nEnd, nLineBegin, nLineEnd, nWord, nNotWord, nLook:
		return nil, p.errorf(at, "a repeated anchor or look-around: engines differ on it")
	default:
	}
	n = &node{kind: nRepeat, min: lo, max: hi, lazy: !p.greedy, subs: []*node{n}}
	if err := p.skip(); err != nil {
		return nil, err
	}
	if p.i < len(p.s) {
		switch p.s[p.i] {
		case '?':
			if p.f.extended && p.s[p.i-1] != p.s[at] && isSpace(p.s[p.i-1]) {
				return nil, p.errorf(p.i, "white space before ?: versions of PCRE2 differ on it")
			}
			p.i++
			n.lazy = !n.lazy
		case '+':
			p.i++
			n.lazy = false
			n = &node{kind: nAtomic, subs: []*node{n}}
		}
	}
	if p.i < len(p.s) {
		if _, _, l := p.interval(p.i); l > 0 || strings.IndexByte("*+?", p.s[p.i]) >= 0 {
			return nil, p.errorf(p.i, "a repetition right after another")
		}
	}
	return n, nil
}
