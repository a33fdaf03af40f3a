package client

import (
	"net/netip"
	"strings"

	"postern/internal/mailaddr"
)

// heloForm is what a HELO argument is by its form.
type heloForm uint8

const (
	heloNone    heloForm = iota // nothing was said
	heloName                    // a host name, perhaps of one label
	heloLiteral                 // an address in brackets
	heloBad                     // neither
)

// helo is what a client says in HELO or EHLO, taken apart (RFC 5321 sections
// 4.1.1.1 and 4.1.3).
type helo struct {
	form  heloForm
	name  string     // of a name: in the compared form
	addr  netip.Addr // of a literal; an IPv4-mapped one is IPv4
	fault string     // of what is neither: what is wrong with it
}

// full reports whether it is a name of more than one label.
func (h *helo) full() bool { return h.form == heloName && strings.IndexByte(h.name, '.') >= 0 }

// parseHelo takes a HELO argument apart. One trailing dot is let pass, and
// underscores, which many honest hosts have in their names.
func parseHelo(s string) helo {
	if s == "" {
		return helo{}
	}
	if s[0] == '[' {
		return parseLiteral(s)
	}
	fault := hostFault(strings.TrimSuffix(s, "."))
	if fault == "" {
		return helo{form: heloName, name: mailaddr.Domain(s)}
	}
	if len(s) <= maxAddress {
		if _, err := netip.ParseAddr(s); err == nil {
			fault = "an address stands in brackets"
		}
	}
	return helo{form: heloBad, fault: fault}
}

// maxAddress is the most characters of an address as text.
const maxAddress = 64

const ipv6Tag = "IPv6:" // RFC 5321 section 4.1.3

func parseLiteral(s string) helo {
	bad := helo{form: heloBad, fault: "not an address in brackets"}
	inner, closed := strings.CutSuffix(s[1:], "]")
	if !closed || len(inner) > maxAddress {
		return bad
	}
	tagged := len(inner) > len(ipv6Tag) && strings.EqualFold(inner[:len(ipv6Tag)], ipv6Tag)
	if tagged {
		inner = inner[len(ipv6Tag):]
	}
	addr, err := netip.ParseAddr(inner)
	switch {
	case err != nil || addr.Zone() != "" || addr.Is4() && tagged:
		return bad
	case addr.Is6() && !tagged:
		return helo{form: heloBad, fault: "an IPv6 address in brackets begins with IPv6:"}
	}
	return helo{form: heloLiteral, addr: addr.Unmap()}
}

// Bounds of names (RFC 1035 section 2.3.4).
const (
	maxName  = 253
	maxLabel = 63
)

// hostFault says why s is no host name, "" when it is one: labels of letters,
// digits, '-' and '_', not beginning or ending with '-' (RFC 1123 section 2.1),
// of which the last is not a number.
func hostFault(s string) string {
	if s == "" {
		return "it is empty"
	}
	if len(s) > maxName {
		return "it is too long"
	}
	start, digits := 0, 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '.' {
			switch c := s[i]; {
			case c >= '0' && c <= '9':
				digits++
			case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_':
			default:
				return "it has a character that host names do not have"
			}
			continue
		}
		switch n := i - start; {
		case n == 0:
			return "it has an empty label"
		case n > maxLabel:
			return "it has a label that is too long"
		case s[start] == '-' || s[i-1] == '-':
			return "it has a label that begins or ends with a hyphen"
		case i == len(s) && digits == n:
			return "it ends in a number"
		}
		start, digits = i+1, 0
	}
	return ""
}

// askable reports whether the DNS can be asked about a name, in the compared
// form, which a stranger has written: host names are, and some that are none.
func askable(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	start := 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '.' {
			if c := s[i]; c <= ' ' || c >= 0x7f || c == '\\' {
				return false
			}
			continue
		}
		if n := i - start; n == 0 || n > maxLabel {
			return false
		}
		start = i + 1
	}
	return true
}
