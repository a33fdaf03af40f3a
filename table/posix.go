package table

import (
	"fmt"
	"strings"
)

// maxRepeat is RE_DUP_MAX of glibc.
const maxRepeat = 32767

// maxDepth bounds the nesting of groups.
const maxDepth = 200

// posixParser reads POSIX regular expressions as glibc does in the C locale
// (regex(7)), and refuses what glibc itself leaves open.
type posixParser struct {
	s        string
	i        int
	extended bool
	fold     bool
	lines    bool // REG_NEWLINE
	groups   int
	closed   map[int]bool
	odd      []errAt // escapes that are hardly meant
}

func parsePOSIX(s string, extended, fold, lines bool) (n *node, groups int, odd []errAt, err error) {
	p := &posixParser{s: s, extended: extended, fold: fold, lines: lines, closed: map[int]bool{}}
	n, err = p.alternatives(0)
	if err == nil && p.i < len(s) {
		err = p.errorf(p.i, "unmatched closing parenthesis (a literal one is written \\))")
	}
	return n, p.groups, p.odd, err
}

func (p *posixParser) errorf(at int, format string, args ...any) error {
	return &errAt{at: at, text: fmt.Sprintf(format, args...)}
}

// refusef is errorf for what Postfix's engine does not take either.
func (p *posixParser) refusef(at int, format string, args ...any) error {
	return &errAt{at: at, text: fmt.Sprintf(format, args...), refused: true}
}

// operator reports whether the unescaped (ERE) or escaped (BRE) operator c
// stands here, and its length.
func (p *posixParser) operator(c byte) int {
	if p.extended {
		if p.i < len(p.s) && p.s[p.i] == c {
			return 1
		}
		return 0
	}
	if strings.HasPrefix(p.s[p.i:], string([]byte{'\\', c})) {
		return 2
	}
	return 0
}

func (p *posixParser) alternatives(depth int) (*node, error) {
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
		l := p.operator('|')
		if l == 0 {
			break
		}
		p.i += l
	}
	if len(alt.subs) == 1 {
		return alt.subs[0], nil
	}
	return alt, nil
}

func (p *posixParser) branch(depth int) (*node, error) {
	cat := &node{kind: nCat}
	for p.i < len(p.s) && p.operator('|') == 0 && p.operator(')') == 0 {
		n, err := p.atom(depth, len(cat.subs) == 0)
		if err == nil {
			n, err = p.repeats(n)
		}
		if err != nil {
			return nil, err
		}
		cat.subs = append(cat.subs, n)
	}
	return cat, nil
}

func (p *posixParser) lit(c byte) *node {
	return &node{kind: nLit, c: c, fold: p.fold}
}

func (p *posixParser) atom(depth int, first bool) (*node, error) {
	at := p.i
	if l := p.operator('('); l > 0 {
		p.i += l
		p.groups++
		n := p.groups
		sub, err := p.alternatives(depth + 1)
		if err != nil {
			return nil, err
		}
		l = p.operator(')')
		if l == 0 {
			return nil, p.refusef(at, "the parenthesis is not closed")
		}
		p.i += l
		p.closed[n] = true
		return &node{kind: nGroup, n: n, subs: []*node{sub}}, nil
	}
	c := p.s[p.i]
	p.i++
	switch {
	case c == '\\':
		return p.escape(at)
	case c == '[':
		return p.bracket(at)
	case c == '.':
		if p.lines {
			return &node{kind: nSet, set: setNoLF}, nil
		}
		return &node{kind: nSet, set: setAny}, nil
	case c == '^' && (p.extended || first):
		if p.lines {
			return &node{kind: nLineBegin}, nil
		}
		return &node{kind: nBegin}, nil
	case c == '$' && (p.extended || p.i == len(p.s) || p.operator(')') > 0 || p.operator('|') > 0):
		if p.lines {
			return &node{kind: nLineEnd}, nil
		}
		return &node{kind: nEnd}, nil
	case p.extended && strings.IndexByte("*+?{", c) >= 0, !p.extended && c == '*':
		return nil, p.refusef(at, "%c has nothing before it to repeat (a literal one is written \\%c)", c, c)
	case !p.extended && (c == '^' || c == '$'):
		return nil, p.errorf(at, "%c inside a basic expression: engines differ on it; write \\%c", c, c)
	}
	return p.lit(c), nil
}

func (p *posixParser) escape(at int) (*node, error) {
	if p.i == len(p.s) {
		return nil, p.refusef(at, "a backslash at the end of the pattern")
	}
	c := p.s[p.i]
	p.i++
	switch c {
	case 'w':
		return &node{kind: nSet, set: setWord}, nil
	case 'W':
		return &node{kind: nSet, set: setWord.negate()}, nil
	case 's':
		return &node{kind: nSet, set: setSpace}, nil
	case 'S':
		return &node{kind: nSet, set: setSpace.negate()}, nil
	case 'b':
		return &node{kind: nWord}, nil
	case 'B':
		return &node{kind: nNotWord}, nil
	case '<':
		return &node{kind: nWordStart}, nil
	case '>':
		return &node{kind: nWordEnd}, nil
	case '`':
		return &node{kind: nBegin}, nil
	case '\'':
		return &node{kind: nEnd}, nil
	}
	switch {
	case '1' <= c && c <= '9':
		n := int(c - '0')
		if !p.closed[n] {
			return nil, p.errorf(at, "\\%c refers to a group that is not closed before it", c)
		}
		return &node{kind: nBackref, n: n, fold: p.fold}, nil
	case isAlnum(c):
		// glibc compares in upper case without regard to case, but leaves what
		// is escaped as it is: a small letter is then never met.
		means := fmt.Sprintf("is %c itself", c)
		n := p.lit(c)
		if p.fold && 'a' <= c && c <= 'z' {
			means, n = "matches nothing", &node{kind: nSet}
		}
		p.odd = append(p.odd, errAt{at: at, text: fmt.Sprintf("\\%c %s in a POSIX expression (\\d is written [0-9], a tab [[:blank:]]; a pcre table knows such escapes)", c, means)})
		return n, nil
	case !p.extended && strings.IndexByte("{}+?", c) >= 0:
		return nil, p.refusef(at, "\\%c has nothing before it to repeat", c)
	}
	return p.lit(c), nil
}

// repeats reads any number of quantifiers: "a*?" is an optional "a*".
func (p *posixParser) repeats(n *node) (*node, error) {
	for again := false; p.i < len(p.s); again = true {
		at := p.i
		lo, hi := 0, -1
		switch {
		case p.s[p.i] == '*':
			p.i++
		case p.operator('+') > 0:
			p.i += p.operator('+')
			lo = 1
		case p.operator('?') > 0:
			p.i += p.operator('?')
			hi = 1
		case p.operator('{') > 0:
			p.i += p.operator('{')
			var ok bool
			if lo, hi, ok = p.interval(); !ok {
				return nil, p.errorf(at, "{ must be followed by one or two numbers up to %d and } (a literal one is written \\{)", maxRepeat)
			}
		default:
			return n, nil
		}
		switch n.kind {
		case nBegin, nEnd, nLineBegin, nLineEnd, nWord, nNotWord, nWordStart, nWordEnd:
			return nil, p.errorf(at, "%c after an anchor has nothing to repeat", p.s[at])
		default:
			if again && !p.extended {
				return nil, p.errorf(at, "a repetition right after another")
			}
			n = &node{kind: nRepeat, min: lo, max: hi, subs: []*node{n}}
		}
	}
	return n, nil
}

func (p *posixParser) interval() (lo, hi int, ok bool) {
	number := func() int {
		n, digits := 0, 0
		for p.i < len(p.s) && '0' <= p.s[p.i] && p.s[p.i] <= '9' && digits < 6 {
			n = n*10 + int(p.s[p.i]-'0')
			p.i++
			digits++
		}
		if digits == 0 {
			return -1
		}
		return n
	}
	lo = number()
	hi = lo
	if p.i < len(p.s) && p.s[p.i] == ',' {
		p.i++
		hi = number()
	} else if lo < 0 {
		return 0, 0, false
	}
	l := p.operator('}')
	if l == 0 || lo < 0 && hi < 0 {
		return 0, 0, false
	}
	p.i += l
	lo = max(lo, 0)
	return lo, hi, hi < 0 && lo <= maxRepeat || lo <= hi && hi <= maxRepeat
}

// bracket reads a bracket expression; a backslash in it is a member like any
// other. Under the i flag glibc compares upper-case letters only, so "[Z-a]"
// is an empty range and "[A-z]" is "[A-Z]".
func (p *posixParser) bracket(at int) (*node, error) {
	var s set
	negated := false
	if p.i < len(p.s) && p.s[p.i] == '^' {
		negated = true
		p.i++
	}
	upper := func(c byte) byte {
		if p.fold && 'a' <= c && c <= 'z' {
			return c - 32
		}
		return c
	}
	for first := true; ; first = false {
		if p.i >= len(p.s) {
			return nil, p.refusef(at, "the bracket is not closed")
		}
		if p.s[p.i] == ']' && !first {
			p.i++
			break
		}
		start := p.i
		lo, class, err := p.member(at)
		if err != nil {
			return nil, err
		}
		if class != nil {
			if p.isRange() {
				return nil, p.errorf(start, "a class cannot begin a range")
			}
			s.union(*class)
			continue
		}
		hi := lo
		if p.isRange() {
			p.i++
			if hi, class, err = p.member(at); err != nil {
				return nil, err
			}
			if class != nil {
				return nil, p.errorf(start, "a class cannot end a range")
			}
			if p.isRange() {
				return nil, p.errorf(start, "a range in a range")
			}
			if upper(hi) < upper(lo) {
				return nil, p.refusef(start, "the range %q runs backwards%s", p.s[start:p.i], foldNote(p.fold))
			}
		}
		s.addRange(upper(lo), upper(hi))
	}
	if p.fold {
		var both set
		for c := range 256 {
			if s.has(upper(byte(c))) {
				both.add(byte(c))
			}
		}
		s = both
	}
	if negated {
		s = s.negate()
		if p.lines {
			s[0] &^= 1 << '\n'
		}
	}
	return &node{kind: nSet, set: s}, nil
}

func foldNote(fold bool) string {
	if fold {
		return " (letters are compared in upper case)"
	}
	return ""
}

// isRange reports whether a - stands here that is not the last member.
func (p *posixParser) isRange() bool {
	return p.i+1 < len(p.s) && p.s[p.i] == '-' && p.s[p.i+1] != ']'
}

func (p *posixParser) member(at int) (byte, *set, error) {
	if p.i >= len(p.s) {
		return 0, nil, p.refusef(at, "the bracket is not closed")
	}
	c := p.s[p.i]
	if c != '[' || p.i+1 >= len(p.s) || strings.IndexByte(":=.", p.s[p.i+1]) < 0 {
		p.i++
		return c, nil, nil
	}
	kind := p.s[p.i+1]
	name, _, ok := strings.Cut(p.s[p.i+2:], string([]byte{kind, ']'}))
	if !ok {
		return 0, nil, p.errorf(p.i, "[%c is not closed by %c]", kind, kind)
	}
	start := p.i
	p.i += len(name) + 4
	if kind == ':' {
		class, ok := posixSets[name]
		if !ok {
			return 0, nil, p.refusef(start, "unknown character class [:%s:]", name)
		}
		if p.fold && (name == "lower" || name == "upper") {
			class = posixSets["alpha"]
		}
		return 0, &class, nil
	}
	if len(name) != 1 {
		return 0, nil, p.errorf(start, "only single characters can stand in [%c %c]", kind, kind)
	}
	if kind == '=' {
		var class set
		class.add(name[0])
		if p.fold {
			class = class.folded()
		}
		return 0, &class, nil
	}
	return name[0], nil, nil
}
