package resolver

import (
	"net/netip"
	"strconv"

	"postern/internal/mailaddr"
)

const (
	maxName  = 253 // octets of a name as text (RFC 1035 section 3.1)
	maxLabel = 63
)

// normalize returns the one form of a name under which it is asked for and
// kept: lower case, A-labels, no trailing dot. The error is [ErrInvalidName].
// A name that has this form already costs no allocation.
func normalize(name string) (string, error) {
	if canonical(name) {
		return name, nil
	}
	if len(name) > 4*maxName { // no character takes more octets; bounds the work
		return "", ErrInvalidName
	}
	name = mailaddr.Domain(name)
	if !canonical(name) {
		return "", ErrInvalidName
	}
	return name, nil
}

// canonical reports whether name is valid and in the form of normalize. Any
// printable character and the blank may stand in a label, since SPF macros put
// local parts there; not the backslash, which begins an escape in the text of a name.
func canonical(name string) bool {
	if len(name) > maxName {
		return false
	}
	label := 0
	for i := range len(name) {
		c := name[i]
		if c == '.' {
			if label == 0 {
				return false
			}
			label = 0
			continue
		}
		if c < ' ' || c >= 0x7f || c == '\\' || 'A' <= c && c <= 'Z' {
			return false
		}
		if label++; label > maxLabel {
			return false
		}
	}
	return label > 0
}

// ReverseName returns the name whose PTR records belong to an address
// (RFC 1035 section 3.5, RFC 3596 section 2.5); "" for the zero address.
func ReverseName(addr netip.Addr) string {
	addr = addr.Unmap()
	if !addr.IsValid() {
		return ""
	}
	var buf [73]byte
	b := buf[:0]
	if addr.Is4() {
		octets := addr.As4()
		for i := range octets {
			b = strconv.AppendUint(b, uint64(octets[3-i]), 10)
			b = append(b, '.')
		}
		return string(append(b, "in-addr.arpa"...))
	}
	const hex = "0123456789abcdef"
	octets := addr.As16()
	for i := range octets {
		o := octets[15-i]
		b = append(b, hex[o&15], '.', hex[o>>4], '.')
	}
	return string(append(b, "ip6.arpa"...))
}
