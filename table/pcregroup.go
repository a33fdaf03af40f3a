package table

import (
	"strconv"
	"strings"
)

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
