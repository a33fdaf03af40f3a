package mailaddr

import (
	"errors"
	"strings"

	"postern/policy"
)

// ErrAuthors is returned for a field of addresses that cannot be read whole.
var ErrAuthors = errors.New("the From field cannot be read")

// Authors returns the addresses in the value of a From or Sender field (RFC
// 5322 section 3.6.2, groups of RFC 6854 too), at most the given number. What
// cannot be read whole, and an address without a proper domain, is
// [ErrAuthors]: a reader might see an author there whom we do not. In Local, an @ or
// a backslash that was quoted is a "?".
func Authors(value string, most int) ([]policy.Address, error) {
	p := fromParser{s: value}
	var out []policy.Address
	for {
		addr, more, err := p.next()
		if err != nil {
			return nil, err
		}
		if addr != "" {
			i := strings.LastIndexByte(addr, '@')
			if i <= 0 {
				return nil, ErrAuthors
			}
			domain := Domain(addr[i+1:])
			if !IsDomain(domain) || len(out) == most {
				return nil, ErrAuthors
			}
			out = append(out, policy.Address{Raw: addr, Local: addr[:i], Domain: domain})
		}
		if !more {
			return out, nil
		}
	}
}

// IsDomain reports whether a domain in the compared form is one that can
// be in the DNS.
func IsDomain(d string) bool {
	if len(d) > 253 || !strings.Contains(d, ".") {
		return false
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			switch c := label[i]; {
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return true
}

// fromParser reads a list of mailboxes and groups.
type fromParser struct {
	s  string
	in bool // in a group
}

// next returns the next address, "" for a group or an empty element, and
// whether more may follow.
func (p *fromParser) next() (addr string, more bool, err error) {
	var words strings.Builder // the element without white space, if it is a bare address
	angle := false
	for p.s != "" {
		c := p.s[0]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			p.s = p.s[1:]
		case c == '(':
			if p.s, err = SkipComment(p.s); err != nil {
				return "", false, err
			}
		case c == '"':
			text, rest, err := Quoted(p.s)
			if err != nil {
				return "", false, err
			}
			p.s = rest
			if !angle {
				words.WriteString(strings.NewReplacer("@", "?", "\\", "?").Replace(text))
			}
		case c == '<':
			if angle {
				return "", false, ErrAuthors
			}
			angle = true
			if addr, p.s, err = angleAddr(p.s[1:]); err != nil {
				return "", false, err
			}
		case c == ',' || c == ';':
			p.s = p.s[1:]
			if c == ';' {
				if !p.in {
					return "", false, ErrAuthors
				}
				p.in = false
			}
			if !angle {
				addr = words.String()
			}
			return addr, true, p.bare(addr, angle)
		case c == ':':
			if p.in || angle {
				return "", false, ErrAuthors
			}
			p.s, p.in = p.s[1:], true
			words.Reset() // it was the group's name
		case c == '>' || c == '\\' || c < ' ' || c == 0x7f:
			return "", false, ErrAuthors
		default:
			if angle {
				return "", false, ErrAuthors // words behind an address
			}
			words.WriteByte(c)
			p.s = p.s[1:]
		}
	}
	if p.in {
		return "", false, ErrAuthors
	}
	if !angle {
		addr = words.String()
	}
	return addr, false, p.bare(addr, angle)
}

// bare refuses words that are no address where one should be.
func (p *fromParser) bare(addr string, angle bool) error {
	if !angle && addr != "" && strings.Count(addr, "@") != 1 {
		return ErrAuthors
	}
	return nil
}

// angleAddr reads an address up to ">".
func angleAddr(s string) (addr, rest string, err error) {
	var b strings.Builder
	for s != "" {
		switch c := s[0]; {
		case c == '>':
			addr = b.String()
			if addr != "" && addr[0] == '@' { // an obsolete route
				if _, addr, _ = strings.Cut(addr, ":"); addr == "" {
					return "", "", ErrAuthors
				}
			}
			if strings.Count(addr, "@") != 1 {
				return "", "", ErrAuthors
			}
			return addr, s[1:], nil
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			s = s[1:]
		case c == '(':
			if s, err = SkipComment(s); err != nil {
				return "", "", err
			}
		case c == '"':
			text, rest, err := Quoted(s)
			if err != nil {
				return "", "", err
			}
			b.WriteString(strings.NewReplacer("@", "?", "\\", "?").Replace(text))
			s = rest
		case c == '<' || c == '\\' || c == ',' || c == ';' || c < ' ' || c == 0x7f:
			return "", "", ErrAuthors
		default:
			b.WriteByte(c)
			s = s[1:]
		}
	}
	return "", "", ErrAuthors
}

// Quoted reads a quoted string that s begins with, and returns it without its
// quotes.
func Quoted(s string) (text, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], nil
		case '\\':
			if i++; i == len(s) {
				return "", "", ErrAuthors
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", ErrAuthors
}

// SkipComment returns what is behind the comment that s begins with.
func SkipComment(s string) (string, error) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return s[i+1:], nil
			}
		case '\\':
			i++
		}
	}
	return "", ErrAuthors
}
