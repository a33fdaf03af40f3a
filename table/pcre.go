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

func (p *pcreParser) group(at, depth int) (*node, error) {
	saved := p.f
	inside := func() (*node, error) {
		n, err := p.alternatives(depth + 1)
		if err != nil {
			return nil, err
		}
		if !p.has(")") {
			return nil, p.refusef(at, "the parenthesis is not closed")
		}
		p.i++
		p.f = saved
		return n, nil
	}
	capture := func(name string) (*node, error) {
		p.groups++
		g := &node{kind: nGroup, n: p.groups}
		if name != "" {
			if p.names[name] != 0 {
				return nil, p.errorf(at, "two groups are called %q", name)
			}
			p.names[name] = g.n
		}
		sub, err := inside()
		g.subs = []*node{sub}
		return g, err
	}
	if p.has("*") {
		return nil, p.errorf(at, "(*...) is not supported")
	}
	if !p.has("?") {
		return capture("")
	}
	p.i++
	for _, look := range []struct {
		s           string
		behind, not bool
	}{{"=", false, false}, {"!", false, true}, {"<=", true, false}, {"<!", true, true}} {
		if !p.has(look.s) {
			continue
		}
		p.i += len(look.s)
		sub, err := inside()
		if err != nil {
			return nil, err
		}
		if look.behind {
			if err := p.fixed(at, sub); err != nil {
				return nil, err
			}
		}
		return &node{kind: nLook, behind: look.behind, not: look.not, subs: []*node{sub}}, nil
	}
	for _, q := range []struct{ open, end string }{{"P<", ">"}, {"<", ">"}, {"'", "'"}} {
		if !p.has(q.open) {
			continue
		}
		name, _, ok := strings.Cut(p.s[p.i+len(q.open):], q.end)
		if !ok || !validName(name) {
			return nil, p.errorf(at, "the name of the group is not letters, digits and _")
		}
		p.i += len(q.open) + len(name) + 1
		return capture(name)
	}
	switch {
	case p.has(":"):
		p.i++
		n, err := inside()
		if err != nil {
			return nil, err
		}
		return &node{kind: nCat, subs: []*node{n}}, nil
	case p.has(">"):
		p.i++
		n, err := inside()
		if err != nil {
			return nil, err
		}
		return &node{kind: nAtomic, subs: []*node{n}}, nil
	case p.has("P="):
		name, _, ok := strings.Cut(p.s[p.i+2:], ")")
		if !ok {
			return nil, p.refusef(at, "the parenthesis is not closed")
		}
		p.i += 2 + len(name) + 1
		return p.named(at, name)
	}
	return p.options(at, inside)
}

// options reads "(?i-s)" and "(?i:...)".
func (p *pcreParser) options(at int, inside func() (*node, error)) (*node, error) {
	f, on := p.f, true
	for ; p.i < len(p.s); p.i++ {
		switch c := p.s[p.i]; c {
		case 'i':
			f.fold = on
		case 'm':
			f.lines = on
		case 's':
			f.dotall = on
		case 'x':
			if p.has("xx") {
				return nil, p.errorf(at, "(?xx is not supported")
			}
			f.extended = on
		case '-':
			if !on {
				return nil, p.errorf(at, "two - in an option group")
			}
			on = false
		case ')':
			p.i++
			p.f = f
			return nil, nil
		case ':':
			p.i++
			p.f = f
			n, err := inside()
			if err != nil {
				return nil, err
			}
			return &node{kind: nCat, subs: []*node{n}}, nil
		default:
			return nil, p.errorf(at, "%q is not supported (recursion, conditions, branch reset and options other than i, m, s, x are not)", clip(p.s[at:p.i+1]))
		}
	}
	return nil, p.refusef(at, "the parenthesis is not closed")
}

func validName(s string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && s[i] != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 32 && (s[0] < '0' || s[0] > '9')
}

// fixed refuses a look-behind whose alternatives have no fixed length, as PCRE does.
func (p *pcreParser) fixed(at int, n *node) error {
	subs := []*node{n}
	if n.kind == nAlt {
		subs = n.subs
	}
	for _, s := range subs {
		if lo, hi := s.width(); lo != hi {
			return p.errorf(at, "a look-behind must have a fixed length")
		}
	}
	return nil
}

func (p *pcreParser) named(at int, name string) (*node, error) {
	n, ok := p.names[name]
	if !ok {
		return nil, p.errorf(at, "no group before this is called %q", name)
	}
	return &node{kind: nBackref, n: n, fold: p.f.fold}, nil
}

// escape reads what follows a backslash outside a class.
func (p *pcreParser) escape(at int) (*node, error) {
	if p.i == len(p.s) {
		return nil, p.refusef(at, "a backslash at the end of the pattern")
	}
	c := p.s[p.i]
	if s, ok := classEscape(c); ok {
		p.i++
		return p.set(s), nil
	}
	switch c {
	case 'p', 'P':
		s, err := p.property(at)
		if err != nil {
			return nil, err
		}
		return p.set(s), nil
	case 'N':
		p.i++
		if p.has("{") {
			return nil, p.errorf(at, "\\N{...} is not supported")
		}
		return p.set(setNoLF), nil
	case 'R':
		p.i++
		crlf := &node{kind: nCat, subs: []*node{{kind: nLit, c: '\r'}, {kind: nLit, c: '\n'}}}
		return &node{kind: nAtomic, subs: []*node{{kind: nAlt, subs: []*node{crlf, p.set(setVert)}}}}, nil
	case 'b':
		p.i++
		return &node{kind: nWord}, nil
	case 'B':
		p.i++
		return &node{kind: nNotWord}, nil
	case 'A':
		p.i++
		return &node{kind: nBegin}, nil
	case 'Z', 'z': // no key ends in a line feed
		p.i++
		return &node{kind: nEnd}, nil
	case 'g', 'k':
		p.i++
		return p.reference(at, c)
	}
	if '1' <= c && c <= '9' {
		start := p.i
		for p.i < len(p.s) && '0' <= p.s[p.i] && p.s[p.i] <= '9' {
			p.i++
		}
		n, err := strconv.Atoi(p.s[start:p.i])
		if err != nil || n > 9 {
			return nil, p.errorf(at, "\\%s could be a group or an octal number: write \\g{%s} or \\o{...}", p.s[start:p.i], p.s[start:p.i])
		}
		return &node{kind: nBackref, n: n, fold: p.f.fold}, nil
	}
	v, err := p.char(at)
	if err != nil {
		return nil, err
	}
	return p.lit(v), nil
}

func classEscape(c byte) (set, bool) {
	switch c {
	case 'd':
		return setDigit, true
	case 'D':
		return setDigit.negate(), true
	case 'w':
		return setWord, true
	case 'W':
		return setWord.negate(), true
	case 's':
		return setSpace, true
	case 'S':
		return setSpace.negate(), true
	case 'h':
		return setHoriz, true
	case 'H':
		return setHoriz.negate(), true
	case 'v':
		return setVert, true
	case 'V':
		return setVert.negate(), true
	}
	return set{}, false
}

// reference reads \g{n}, \gn, \g{-n}, \g{name}, \k<name>, \k'name', \k{name}.
func (p *pcreParser) reference(at int, c byte) (*node, error) {
	closer := byte(0)
	if p.i < len(p.s) {
		switch p.s[p.i] {
		case '{':
			closer = '}'
		case '<':
			closer = '>'
		case '\'':
			closer = '\''
		}
	}
	if c == 'g' && (closer == '>' || closer == '\'') {
		return nil, p.errorf(at, "\\g%c calls a group again, which is not supported", p.s[p.i])
	}
	var name string
	if closer != 0 {
		var ok bool
		if name, _, ok = strings.Cut(p.s[p.i+1:], string(closer)); !ok {
			return nil, p.errorf(at, "\\%c is not closed", c)
		}
		p.i += len(name) + 2
	} else {
		start := p.i
		for p.i < len(p.s) && ('0' <= p.s[p.i] && p.s[p.i] <= '9' || p.i == start && p.s[p.i] == '-') {
			p.i++
		}
		name = p.s[start:p.i]
	}
	if validName(name) {
		return p.named(at, name)
	}
	n, err := strconv.Atoi(name)
	if c == 'k' || err != nil || n == 0 || strings.HasPrefix(name, "+") {
		return nil, p.errorf(at, "%q is no reference to a group", p.s[at:p.i])
	}
	if n < 0 {
		if n += p.groups + 1; n < 1 {
			return nil, p.errorf(at, "%q refers to a group that does not exist", p.s[at:p.i])
		}
	}
	return &node{kind: nBackref, n: n, fold: p.f.fold}, nil
}

// char reads an escape that stands for one byte, in and outside classes; p.i
// is behind the backslash.
func (p *pcreParser) char(at int) (byte, error) {
	c := p.s[p.i]
	p.i++
	number := func(digits string, base int) (byte, error) {
		v, err := strconv.ParseUint(digits, base, 16)
		if err != nil || v > 255 {
			return 0, p.errorf(at, "%q is not the number of a byte", clip(p.s[at:p.i]))
		}
		return byte(v), nil
	}
	braces := func() (string, error) {
		inner, _, ok := strings.Cut(p.s[p.i+1:], "}")
		if !ok {
			return "", p.errorf(at, "the brace is not closed")
		}
		p.i += len(inner) + 2
		return inner, nil
	}
	switch c {
	case 'a':
		return 7, nil
	case 'e':
		return 27, nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'x':
		if p.has("{") {
			inner, err := braces()
			if err != nil {
				return 0, err
			}
			return number(inner, 16)
		}
		start := p.i
		for p.i < len(p.s) && p.i < start+2 && strings.IndexByte("0123456789abcdefABCDEF", p.s[p.i]) >= 0 {
			p.i++
		}
		return number("0"+p.s[start:p.i], 16)
	case 'o':
		if !p.has("{") {
			return 0, p.errorf(at, "\\o without {")
		}
		inner, err := braces()
		if err != nil {
			return 0, err
		}
		return number(inner, 8)
	case '0':
		start := p.i
		for p.i < len(p.s) && p.i < start+2 && '0' <= p.s[p.i] && p.s[p.i] <= '7' {
			p.i++
		}
		return number("0"+p.s[start:p.i], 8)
	case 'c':
		if p.i < len(p.s) && p.s[p.i] > ' ' && p.s[p.i] < 0x7f {
			v := p.s[p.i]
			p.i++
			if 'a' <= v && v <= 'z' {
				v -= 32
			}
			return v ^ 0x40, nil
		}
		return 0, p.errorf(at, "\\c must be followed by a printable character")
	}
	if isAlnum(c) {
		return 0, p.errorf(at, "\\%c is not supported", c)
	}
	return c, nil
}

// class reads a character class; p.i is behind the bracket.
func (p *pcreParser) class(at int) (*node, error) {
	var s, classes set // what is named by a class keeps its case
	negated := false
	if p.has("^") {
		negated = true
		p.i++
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
		ranged := p.i+1 < len(p.s) && p.s[p.i] == '-' && p.s[p.i+1] != ']'
		if class != nil {
			if ranged {
				return nil, p.errorf(start, "a - after a class: write it first or last, or as \\-")
			}
			classes.union(*class)
			continue
		}
		hi := lo
		if ranged {
			p.i++
			if hi, class, err = p.member(at); err != nil {
				return nil, err
			}
			if class != nil {
				return nil, p.errorf(start, "a class cannot end a range")
			}
			if hi < lo {
				return nil, p.refusef(start, "the range %q runs backwards", p.s[start:p.i])
			}
		}
		s.addRange(lo, hi)
	}
	if p.f.fold {
		s = s.folded()
	}
	s.union(classes)
	if negated {
		s = s.negate()
	}
	return p.set(s), nil
}

func (p *pcreParser) member(at int) (byte, *set, error) {
	if p.i >= len(p.s) {
		return 0, nil, p.refusef(at, "the bracket is not closed")
	}
	c := p.s[p.i]
	if c == '[' && p.i+1 < len(p.s) && strings.IndexByte(":=.", p.s[p.i+1]) >= 0 {
		kind := p.s[p.i+1]
		name, _, ok := strings.Cut(p.s[p.i+2:], string([]byte{kind, ']'}))
		if ok && strings.Trim(strings.TrimPrefix(name, "^"), "abcdefghijklmnopqrstuvwxyz") == "" {
			if kind != ':' {
				return 0, nil, p.errorf(p.i, "[%c %c] is not supported", kind, kind)
			}
			bare, not := strings.CutPrefix(name, "^")
			class, known := posixSets[bare]
			switch {
			case bare == "word":
				class, known = setWord, true
			case bare == "ascii":
				class, known = ranges("\x00\x7f"), true
			}
			if !known {
				return 0, nil, p.refusef(p.i, "unknown character class [:%s:]", name)
			}
			if p.f.fold && (bare == "lower" || bare == "upper") {
				class = posixSets["alpha"]
			}
			if not {
				class = class.negate()
			}
			p.i += len(name) + 4
			return 0, &class, nil
		}
	}
	if c != '\\' {
		p.i++
		return c, nil, nil
	}
	start := p.i
	p.i++
	if p.i == len(p.s) {
		return 0, nil, p.refusef(at, "the bracket is not closed")
	}
	c = p.s[p.i]
	if s, ok := classEscape(c); ok {
		p.i++
		return 0, &s, nil
	}
	switch {
	case c == 'p' || c == 'P':
		s, err := p.property(start)
		return 0, &s, err
	case c == 'b':
		p.i++
		return '\b', nil, nil
	case c == 'Q' || c == 'E':
		return 0, nil, p.errorf(start, "\\%c inside a class is not supported", c)
	case '1' <= c && c <= '9':
		return 0, nil, p.errorf(start, "\\%c inside a class: write \\o{...} or \\x..", c)
	}
	v, err := p.char(start)
	return v, nil, err
}
