package auth

import (
	"strings"

	"postern/internal/mailaddr"
)

// claim is one result that somebody else has written down (RFC 8601 section
// 2.2, resinfo).
type claim struct {
	method, result string
	props          []prop
}

type prop struct{ name, value string }

// maxClaims bounds what is read of a field.
const maxClaims = 100

// get returns a property, "" without it.
func (c *claim) get(name string) string {
	for _, p := range c.props {
		if p.name == name {
			return p.value
		}
	}
	return ""
}

// domain returns the domain of a property that is a domain or an address, in
// the compared form.
func (c *claim) domain(name string) string {
	v := c.get(name)
	return mailaddr.Domain(v[strings.LastIndexByte(v, '@')+1:])
}

// parseResults reads the value of a field: who says it, in the compared form,
// and what. What cannot be read is not claimed: ok is false for a field of
// nobody, and a faulty result ends the list.
func parseResults(value string) (id string, claims []claim, ok bool) {
	id, ok = authservID(value)
	if !ok {
		return "", nil, false
	}
	_, rest, _ := cutOutside(value)
	return mailaddr.Domain(id), parseClaims(rest), true
}

// parseClaims reads what follows the name of who says it.
func parseClaims(s string) (out []claim) {
	for more := true; more && len(out) < maxClaims; {
		var one string
		one, s, more = cutOutside(s)
		words, ok := fieldWords(one)
		if !ok {
			return out
		}
		if len(words) == 0 || len(words) == 1 && words[0].name == "" {
			continue // "none", or nothing
		}
		method, _, _ := strings.Cut(words[0].name, "/")
		c := claim{method: method, result: strings.ToLower(words[0].value)}
		for _, w := range words[1:] {
			if w.name != "" {
				c.props = append(c.props, w)
			}
		}
		out = append(out, c)
	}
	return out
}

// cutOutside cuts at the first semicolon that is not in a comment or in quotes.
func cutOutside(s string) (before, after string, found bool) {
	for i := 0; i < len(s); {
		switch s[i] {
		case ';':
			return s[:i], s[i+1:], true
		case '(':
			rest, err := mailaddr.SkipComment(s[i:])
			if err != nil {
				return s, "", false
			}
			i = len(s) - len(rest)
		case '"':
			_, rest, err := mailaddr.Quoted(s[i:])
			if err != nil {
				return s, "", false
			}
			i = len(s) - len(rest)
		default:
			i++
		}
	}
	return s, "", false
}

// fieldWords returns the words of a result: "name=value", or a value alone.
// Names are in lower case. ok is false for what is no such list.
func fieldWords(s string) (out []prop, ok bool) {
	word := prop{}
	var text strings.Builder
	some, named := false, false
	end := func() {
		if some || named {
			word.value = text.String()
			out = append(out, word)
		}
		word, some, named = prop{}, false, false
		text.Reset()
	}
	for s != "" {
		switch c := s[0]; c {
		case ' ', '\t', '\r', '\n', '(':
			rest := s
			for rest != "" && strings.IndexByte(" \t\r\n(", rest[0]) >= 0 {
				if rest[0] != '(' {
					rest = rest[1:]
					continue
				}
				var err error
				if rest, err = mailaddr.SkipComment(rest); err != nil {
					return nil, false
				}
			}
			// White space may stand around "=".
			if (rest == "" || rest[0] != '=') && (!named || some) {
				end()
			}
			s = rest
		case '=':
			if named { // as in a base64 text
				text.WriteByte('=')
				some = true
			} else {
				word.name, named, some = strings.ToLower(text.String()), true, false
				text.Reset()
			}
			s = s[1:]
		case '"':
			t, rest, err := mailaddr.Quoted(s)
			if err != nil {
				return nil, false
			}
			text.WriteString(t)
			some, s = true, rest
		default:
			text.WriteByte(c)
			some, s = true, s[1:]
		}
	}
	end()
	return out, true
}
