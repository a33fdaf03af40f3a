package auth

import (
	"errors"
	"strings"

	"postern/internal/mailaddr"
)

// errFrom is why the author of a message cannot be told.
var errFrom = errors.New("the From field cannot be read")

// maxAuthors is how many addresses of a From field are looked at.
const maxAuthors = 20

// fromDomains returns the domains of the addresses in a From field (RFC 5322
// section 3.6.2, groups of RFC 6854 too), each once, in the compared form.
// What cannot be read whole, and an address without a domain, is an error: a
// reader might see an author there whom we do not.
func fromDomains(value string) ([]string, error) {
	p := fromParser{s: value}
	var out []string
	for {
		addr, more, err := p.next()
		if err != nil {
			return nil, err
		}
		if addr != "" {
			_, domain, ok := cutLast(addr)
			if domain = mailaddr.Domain(domain); !ok || !properDomain(domain) {
				return nil, errFrom
			}
			if !contains(out, domain) {
				out = append(out, domain)
			}
			if len(out) > maxAuthors {
				return nil, errFrom
			}
		}
		if !more {
			return out, nil
		}
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// cutLast cuts an address at its last @.
func cutLast(addr string) (local, domain string, ok bool) {
	i := strings.LastIndexByte(addr, '@')
	if i <= 0 {
		return "", "", false
	}
	return addr[:i], addr[i+1:], true
}

// properDomain reports whether a domain in the compared form is one that can
// be in the DNS. Anything may stand in d= of a signature and in From: nothing
// else than a domain is ever aligned with one.
func properDomain(d string) bool {
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
			if p.s, err = skipComment(p.s); err != nil {
				return "", false, err
			}
		case c == '"':
			text, rest, err := quoted(p.s)
			if err != nil {
				return "", false, err
			}
			p.s = rest
			if !angle {
				words.WriteString(strings.NewReplacer("@", "?", "\\", "?").Replace(text))
			}
		case c == '<':
			if angle {
				return "", false, errFrom
			}
			angle = true
			if addr, p.s, err = angleAddr(p.s[1:]); err != nil {
				return "", false, err
			}
		case c == ',' || c == ';':
			p.s = p.s[1:]
			if c == ';' {
				if !p.in {
					return "", false, errFrom
				}
				p.in = false
			}
			if !angle {
				addr = words.String()
			}
			return addr, true, p.bare(addr, angle)
		case c == ':':
			if p.in || angle {
				return "", false, errFrom
			}
			p.s, p.in = p.s[1:], true
			words.Reset() // it was the group's name
		case c == '>' || c == '\\' || c < ' ' || c == 0x7f:
			return "", false, errFrom
		default:
			if angle {
				return "", false, errFrom // words behind an address
			}
			words.WriteByte(c)
			p.s = p.s[1:]
		}
	}
	if p.in {
		return "", false, errFrom
	}
	if !angle {
		addr = words.String()
	}
	return addr, false, p.bare(addr, angle)
}

// bare refuses words that are no address where one should be.
func (p *fromParser) bare(addr string, angle bool) error {
	if !angle && addr != "" && strings.Count(addr, "@") != 1 {
		return errFrom
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
					return "", "", errFrom
				}
			}
			if strings.Count(addr, "@") != 1 {
				return "", "", errFrom
			}
			return addr, s[1:], nil
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			s = s[1:]
		case c == '(':
			if s, err = skipComment(s); err != nil {
				return "", "", err
			}
		case c == '"':
			text, rest, err := quoted(s)
			if err != nil {
				return "", "", err
			}
			b.WriteString(strings.NewReplacer("@", "?", "\\", "?").Replace(text))
			s = rest
		case c == '<' || c == '\\' || c == ',' || c == ';' || c < ' ' || c == 0x7f:
			return "", "", errFrom
		default:
			b.WriteByte(c)
			s = s[1:]
		}
	}
	return "", "", errFrom
}

// quoted reads a quoted string that s begins with, and returns it without its
// quotes.
func quoted(s string) (text, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], nil
		case '\\':
			if i++; i == len(s) {
				return "", "", errFrom
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", errFrom
}

// skipComment returns what is behind the comment that s begins with.
func skipComment(s string) (string, error) {
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
	return "", errFrom
}
