package resolver

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"postern/internal/mailaddr"
)

// normalize brings a name into the form that the cache is keyed by: lower
// case, A-labels, no trailing dot. "." is the root and becomes "".
func normalize(name string) (string, error) {
	if name == "" {
		return "", ErrInvalidName
	}
	if name == "." {
		return "", nil
	}
	n := mailaddr.Domain(name)
	// 255 octets on the wire, less the length of the first label and the root.
	if n == "" || len(n) > 253 {
		return "", ErrInvalidName
	}
	label := 0
	for i := range len(n) {
		switch c := n[i]; {
		case c == '.':
			if label == 0 {
				return "", ErrInvalidName
			}
			label = 0
			continue
		case c <= ' ' || c >= 0x7f || c == '\\':
			return "", ErrInvalidName
		}
		if label++; label > 63 {
			return "", ErrInvalidName
		}
	}
	if label == 0 {
		return "", ErrInvalidName
	}
	return n, nil
}

// reverseName is the name under which the PTR records of an address stand
// (RFC 1035 section 3.5, RFC 3596 section 2.5); "" for an invalid address.
func reverseName(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	name, err := dns.ReverseAddr(addr.Unmap().WithZone("").String())
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(name, ".")
}

// hostText is a name from an answer as text: lower case, no trailing dot.
func hostText(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// octets undoes the escapes (\" \\ \DDD) in which package dns keeps the
// strings of TXT records.
func octets(b *strings.Builder, s string) {
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if i+3 < len(s) && digit(s[i+1]) && digit(s[i+2]) && digit(s[i+3]) {
			b.WriteByte((s[i+1]-'0')*100 + (s[i+2]-'0')*10 + s[i+3] - '0')
			i += 3
			continue
		}
		i++
		b.WriteByte(s[i])
	}
}

func digit(c byte) bool { return '0' <= c && c <= '9' }
