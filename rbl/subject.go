package rbl

import (
	"net/netip"
	"strconv"
	"strings"

	"postern/internal/mailaddr"
	"postern/policy"
)

// aspect is a part of a list that is tested, and can fail, by itself.
type aspect uint8

const (
	aspectIPv4 aspect = iota
	aspectIPv6
	aspectDomain
	aspectCount
)

var aspectNames = [aspectCount]string{"ipv4", "ipv6", "domain"}

func (a aspect) String() string { return aspectNames[a] }

// subject is what a list is asked about: an address, or a domain in the
// compared form. The zero subject is nothing to ask about.
type subject struct {
	addr   netip.Addr
	domain string
}

func (s subject) ok() bool { return s.domain != "" || s.addr.IsValid() }

func (s subject) aspect() aspect {
	switch {
	case s.domain != "":
		return aspectDomain
	case s.addr.Is4():
		return aspectIPv4
	}
	return aspectIPv6
}

func (s subject) String() string {
	if s.domain != "" {
		return s.domain
	}
	return s.addr.String()
}

// subjectOf returns what req has for a kind of list. A stage that does not
// know it yet, and what no list holds, gives the zero subject.
func subjectOf(kind Kind, req *policy.Request, private bool) subject {
	switch kind {
	case KindClient:
		if a := req.Client.Addr; a.IsValid() && (private || mailaddr.IsGlobal(a)) {
			return subject{addr: a}
		}
		return subject{}
	case KindSender:
		return domainSubject(req.Sender.Domain)
	case KindHelo:
		return domainSubject(mailaddr.Domain(req.Helo))
	case KindName:
		return domainSubject(req.Client.Name)
	case KindReverse:
		return domainSubject(req.Client.ReverseName)
	}
	return subject{}
}

func domainSubject(name string) subject {
	if isDomain(name, false) {
		return subject{domain: name}
	}
	return subject{}
}

// isDomain reports whether a list can be asked about name: not an address
// literal, not a single label (unless single), not an address written as a
// name, and of a form that DNS takes.
func isDomain(name string, single bool) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	labels, last := 0, name
	for label := range strings.SplitSeq(name, ".") {
		if badLabel(label) >= 0 {
			return false
		}
		labels, last = labels+1, label
	}
	return (single || labels > 1) && !digits(last)
}

const hexDigits = "0123456789abcdef"

// appendQuery appends the name under which a list with the given suffix keeps
// a subject: IPv4 octets or IPv6 nibbles reversed (RFC 5782 sections 2.1 and
// 2.4), or the domain (section 3.1).
func appendQuery(b []byte, s subject, suffix string) []byte {
	switch s.aspect() {
	case aspectDomain:
		b = append(append(b, s.domain...), '.')
	case aspectIPv4:
		a := s.addr.As4()
		for i := 3; i >= 0; i-- {
			b = append(strconv.AppendUint(b, uint64(a[i]), 10), '.')
		}
	case aspectIPv6:
		a := s.addr.As16()
		for i := 15; i >= 0; i-- {
			b = append(b, hexDigits[a[i]&15], '.', hexDigits[a[i]>>4], '.')
		}
	}
	return append(b, suffix...)
}
