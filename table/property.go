package table

import (
	"strings"
	"unicode"
)

// property reads what stands behind a backslash as \p{Lu}, \P{Lu}, \p{^Lu} or
// \pL, and returns the bytes that have the property (pcre2pattern(3), "Unicode
// character properties"). Without UTF mode, as Postfix compiles, a byte is the
// character of that number, those of ISO 8859-1, and letters keep their case
// also where it does not matter otherwise.
func (p *pcreParser) property(at int) (s set, err error) {
	negated := p.s[p.i] == 'P'
	p.i++
	name := ""
	switch {
	case p.has("{"):
		inner, _, ok := strings.Cut(p.s[p.i+1:], "}")
		if !ok {
			return s, p.refusef(at, "\\p{ is not closed")
		}
		p.i += len(inner) + 2
		name = inner
		if rest, not := strings.CutPrefix(name, "^"); not {
			name, negated = rest, !negated
		}
	case p.i < len(p.s):
		name = p.s[p.i : p.i+1]
		p.i++
	}
	has, ok := propertyOf(name)
	if !ok {
		return s, p.errorf(at, "\\p{%s} is no property that is known here (general categories, scripts, Any, L&, Xan, Xps, Xsp, Xwd)", name)
	}
	for c := range 256 {
		if has(rune(c)) != negated {
			s.add(byte(c))
		}
	}
	return s, nil
}

func propertyOf(name string) (has func(rune) bool, ok bool) {
	switch name {
	case "Any":
		return func(rune) bool { return true }, true
	case "L&":
		return func(r rune) bool { return unicode.In(r, unicode.Lu, unicode.Ll, unicode.Lt) }, true
	case "Xan":
		return func(r rune) bool { return unicode.In(r, unicode.L, unicode.N) }, true
	case "Xwd":
		return func(r rune) bool { return r == '_' || unicode.In(r, unicode.L, unicode.N) }, true
	case "Xps", "Xsp":
		return func(r rune) bool { return unicode.In(r, unicode.Z) || r >= '\t' && r <= '\r' || r == 0x85 }, true
	case "C", "Cn":
		// Go's category C leaves out what is not assigned; below 256 all is.
		return func(r rune) bool { return name == "C" && unicode.In(r, unicode.Cc, unicode.Cf) }, true
	}
	t, ok := unicode.Categories[name]
	if !ok {
		t, ok = unicode.Scripts[name]
	}
	return func(r rune) bool { return unicode.Is(t, r) }, ok
}
