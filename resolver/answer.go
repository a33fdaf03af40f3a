package resolver

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Octets 2 and 3 of a message (RFC 1035 section 4.1.1).
const (
	headerSize = 12

	flagQR     = 0x80
	maskOpcode = 0x78
	flagTC     = 0x02
	flagRD     = 0x01
	maskRcode  = 0x0f
)

// maxChain bounds the CNAME records that lead to an answer. BIND follows 16.
const maxChain = 16

// parse reads a response to a question for k; that it is one has been checked.
// The answer is nil unless the result is resAnswer or resNegative.
func parse(resp []byte, k key) (*answer, result) {
	if resp[2]&flagTC != 0 {
		return nil, resTruncated // before all else: the rest is often cut off
	}
	switch int(resp[3] & maskRcode) {
	case dns.RcodeSuccess, dns.RcodeNameError:
	case dns.RcodeServerFailure:
		return nil, resServFail
	case dns.RcodeRefused:
		return nil, resRefused
	case dns.RcodeFormatError, dns.RcodeNotImplemented:
		return nil, resFormErr
	default:
		return nil, resBad
	}
	var m dns.Msg
	if err := m.Unpack(resp); err != nil || !complete(&m, resp) {
		return nil, resTruncated
	}
	switch m.Rcode { // with the upper bits, from EDNS
	case dns.RcodeSuccess, dns.RcodeNameError:
	case dns.RcodeBadVers:
		return nil, resFormErr
	default:
		return nil, resBad
	}

	owner, ttl, hops, ok := follow(m.Answer, k)
	if !ok {
		return nil, resBad
	}
	a := new(answer)
	if m.Rcode == dns.RcodeSuccess {
		for _, rr := range m.Answer {
			if matches(rr, owner, k.qtype) {
				ttl = min(ttl, ttlOf(rr))
				a.add(rr)
			}
		}
		slices.SortStableFunc(a.mx, func(x, y MX) int {
			return cmp.Or(cmp.Compare(x.Pref, y.Pref), strings.Compare(x.Host, y.Host))
		})
		if !a.negative() {
			a.ttl = ttl
			return a, resAnswer
		}
		if hops == 0 && (len(m.Answer) > 0 || referral(m.Ns)) {
			return nil, resBad // records nobody asked for, or "ask them"
		}
	}
	a.ttl = min(ttl, negativeTTL(m.Ns, owner))
	return a, resNegative
}

// complete reports whether all records are there that the header announces: a
// message cut off between two records unpacks without an error.
func complete(m *dns.Msg, resp []byte) bool {
	count := func(i int) int { return int(binary.BigEndian.Uint16(resp[i:])) }
	return len(m.Answer) == count(6) && len(m.Ns) == count(8) && len(m.Extra) == count(10)
}

// follow goes along the CNAME records from the name that was asked for. It
// returns the last name, the least TTL on the way and the number of steps.
func follow(rrs []dns.RR, k key) (owner string, ttl time.Duration, hops int, ok bool) {
	owner, ttl = k.name, time.Duration(1<<63-1)
	for ; hops <= maxChain; hops++ {
		i := slices.IndexFunc(rrs, func(rr dns.RR) bool { return matches(rr, owner, dns.TypeCNAME) })
		if i < 0 {
			return owner, ttl, hops, true
		}
		ttl = min(ttl, ttlOf(rrs[i]))
		cname, is := rrs[i].(*dns.CNAME)
		if !is {
			break
		}
		owner = ownerName(cname.Target)
	}
	return "", 0, hops, false // a circle, or as good as one
}

// matches reports whether rr is a record of this owner and type.
func matches(rr dns.RR, owner string, rrtype uint16) bool {
	h := rr.Header()
	return h.Rrtype == rrtype && h.Class == dns.ClassINET && len(h.Name) >= len(owner) && ownerName(h.Name) == owner
}

// textName is a name in the data of a record as this package writes names.
// Octets that are no letters, digits or signs of names stay escaped: "\\032".
func textName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// ownerName is the name that a record belongs to, in the form in which it was
// asked for: printable octets and blanks as they are. A dot or a backslash
// inside a label, and what is not printable, stay escaped: nobody asks for
// those.
func ownerName(name string) string {
	name = textName(name)
	if strings.IndexByte(name, '\\') < 0 {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '\\' && i+1 < len(name) {
			next := name[i+1]
			if next == '.' || next == '\\' || digit(next) {
				b.WriteByte(c)
			}
			c = next
			i++
		}
		b.WriteByte(c)
	}
	return b.String()
}

// ttlOf returns the TTL of a record; one with the top bit set counts as 0
// (RFC 2181 section 8).
func ttlOf(rr dns.RR) time.Duration {
	ttl := rr.Header().Ttl
	if ttl > 1<<31-1 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

// add takes the data of one record.
func (a *answer) add(rr dns.RR) {
	switch rr := rr.(type) {
	case *dns.A:
		if addr, ok := netip.AddrFromSlice(rr.A); ok {
			a.addrs = append(a.addrs, addr.Unmap())
		}
	case *dns.AAAA:
		if addr, ok := netip.AddrFromSlice(rr.AAAA); ok {
			a.addrs = append(a.addrs, addr)
		}
	case *dns.TXT:
		var b strings.Builder
		for _, s := range rr.Txt {
			unescape(&b, s)
		}
		a.texts = append(a.texts, b.String())
	case *dns.PTR:
		if name := textName(rr.Ptr); name != "" {
			a.texts = append(a.texts, name)
		}
	case *dns.NS: // only of the root, see rootQuery
		a.texts = append(a.texts, textName(rr.Ns))
	case *dns.MX:
		a.mx = append(a.mx, MX{Pref: rr.Preference, Host: textName(rr.Mx)})
	}
}

// unescape writes the octets of a character string, which the library gives
// as in a zone file: \" and \\ and \DDD (RFC 1035 section 5.1).
func unescape(b *strings.Builder, s string) {
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 || i+1 == len(s) {
			b.WriteString(s)
			return
		}
		b.WriteString(s[:i])
		s = s[i+1:]
		if len(s) >= 3 && digit(s[0]) && digit(s[1]) && digit(s[2]) {
			b.WriteByte((s[0]-'0')*100 + (s[1]-'0')*10 + s[2] - '0')
			s = s[3:]
			continue
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// referral reports whether an empty answer only names other servers
// (RFC 2308 section 2.2).
func referral(ns []dns.RR) bool {
	found := false
	for _, rr := range ns {
		switch rr.Header().Rrtype {
		case dns.TypeSOA:
			return false
		case dns.TypeNS:
			found = true
		}
	}
	return found
}

// negativeTTL is the lesser of the TTL and the MINIMUM field of the SOA record
// of the zone (RFC 2308 section 5), 0 without one.
func negativeTTL(ns []dns.RR, owner string) time.Duration {
	for _, rr := range ns {
		soa, ok := rr.(*dns.SOA)
		if !ok || soa.Hdr.Class != dns.ClassINET || !dns.IsSubDomain(soa.Hdr.Name, dns.Fqdn(owner)) {
			continue
		}
		return min(ttlOf(soa), time.Duration(soa.Minttl)*time.Second)
	}
	return 0
}
