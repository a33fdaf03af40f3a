package table

import (
	"strconv"
	"strings"
)

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
