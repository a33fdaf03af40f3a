package names

import (
	"net/netip"
	"strconv"
	"strings"

	"postern/internal/mailaddr"
)

// shape says whether a name is one that is made from the address for each
// customer ("host-192-0-2-7.isp.example"), or numbers customers' lines.
func shape(name string, addr netip.Addr) string {
	host := strings.TrimSuffix(name, mailaddr.OrgDomain(name))
	if host == "" {
		// Some hosters stand in the public suffix list themselves.
		host, _, _ = strings.Cut(name, ".")
	}
	if dynamicWord(host) {
		return "access network"
	}
	held := false
	switch {
	case !addr.IsValid():
	case addr.Is4():
		held = holdsIPv4(host, addr.As4())
	default:
		held = holdsIPv6(host, addr.As16())
	}
	if held {
		return "holds its address"
	}
	return ""
}

// mailWords are labels of hosts that send mail, or begin them. Large senders
// number their hosts by the end of the address ("a8-31.smtp-out.mailer.example"):
// with such a word, it takes the whole address to make a name generic.
var mailWords = [...]string{"mail", "smtp", "mta", "mx", "mout", "out", "relay", "bounce", "delivery"}

func mailWord(host string) bool {
	for part := range strings.FieldsFuncSeq(host, labelEnd) {
		letters := strings.Trim(part, "0123456789")
		for _, w := range mailWords {
			if letters == w || len(w) > 3 && strings.HasPrefix(letters, w) {
				return true
			}
		}
	}
	return false
}

func labelEnd(r rune) bool { return r == '.' || r == '-' || r == '_' }

// holdsIPv4 looks for the last two octets of the address as numbers, or for
// all of it in hexadecimal, in either order. In the name of a mail server it
// looks for the first two octets as well.
func holdsIPv4(host string, a [4]byte) bool {
	if numbersHold(host, int(a[2]), int(a[3])) && (numbersHold(host, int(a[0]), int(a[1])) || !mailWord(host)) {
		return true
	}
	const digits = "0123456789abcdef"
	var forward, reversed [8]byte
	for i, o := range a {
		forward[2*i], forward[2*i+1] = digits[o>>4], digits[o&15]
		reversed[6-2*i], reversed[7-2*i] = digits[o>>4], digits[o&15]
	}
	return strings.Contains(host, string(forward[:])) || strings.Contains(host, string(reversed[:]))
}

// numbersHold reports whether the numbers x and y stand in s as two decimal
// numbers next to each other, in either order, or run together as three
// digits each ("002007").
func numbersHold(s string, x, y int) bool {
	last, n := -1, 0 // -1: none that an octet could be
	for i := 0; i < len(s); {
		if s[i] < '0' || s[i] > '9' {
			i++
			continue
		}
		j := i
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		run := s[i:j]
		i = j
		if len(run) > 3 {
			if len(run)%3 == 0 && (strings.Contains(run, pad3(x)+pad3(y)) || strings.Contains(run, pad3(y)+pad3(x))) {
				return true
			}
			last = -1
			continue
		}
		n, _ = strconv.Atoi(run) // at most three digits
		if last == x && n == y || last == y && n == x {
			return true
		}
		last = n
	}
	return false
}

func pad3(n int) string {
	return string([]byte{'0' + byte(n/100), '0' + byte(n/10%10), '0' + byte(n%10)})
}

// holdsIPv6 looks for the last two groups of the address, with or without
// their leading zeros, or its last eight nibbles backwards.
func holdsIPv6(host string, a [16]byte) bool {
	const digits = "0123456789abcdef"
	var nibbles [32]byte
	for i, o := range a {
		nibbles[2*i], nibbles[2*i+1] = digits[o>>4], digits[o&15]
	}
	low := string(nibbles[24:])
	if len(strings.TrimLeft(low, "0")) < 3 {
		return false // a host number such as ::25 is in too many honest names
	}
	plain := unseparated.Replace(host)
	var reversed [8]byte
	for i := range reversed {
		reversed[i] = low[7-i]
	}
	if strings.Contains(plain, low) || strings.Contains(plain, string(reversed[:])) {
		return true
	}
	group := func(i int) string { return strconv.FormatUint(uint64(a[i])<<8|uint64(a[i+1]), 16) }
	last, want, end := "", group(12), group(14)
	for part := range strings.FieldsFuncSeq(host, labelEnd) {
		if last == want && part == end {
			return true
		}
		last = part
	}
	return false
}

var unseparated = strings.NewReplacer("-", "", ".", "", "_", "")

// dynamicWords occur in the names of customers' lines, beside digits.
var dynamicWords = [...]string{
	"dyn", "dynamic", "dhcp", "dsl", "adsl", "vdsl", "xdsl", "ppp", "pppoe", "pool", "dial", "dialup", "cable", "broadband",
	"customer", "cust", "client", "res", "residential", "home", "ip", "nat", "cgnat", "mobile", "lte", "fiber", "ftth", "catv",
}

// dynamicWord reports whether a label of host is such a word with digits
// behind or before it, or beside such a label.
func dynamicWord(host string) bool {
	word, number := false, false
	for part := range strings.FieldsFuncSeq(host, labelEnd) {
		letters := strings.Trim(part, "0123456789")
		if letters == "" {
			number = true
			continue
		}
		for _, w := range dynamicWords {
			if letters == w {
				word = true
				number = number || len(letters) < len(part)
			}
		}
	}
	return word && number
}
