package greylist

import (
	"net/netip"
	"strconv"
	"strings"

	"postern/internal/mailaddr"
	"postern/policy"
)

// identity returns who is sending: the first of the domain for which SPF
// passed, the organisational domain of the client's verified name, the
// provider, the network. A pool that retries from another of its addresses
// has one identity. ok is false when nothing is known of the client.
func identity(req *policy.Request, v4, v6 int) (who string, ok bool) {
	if spf := &req.Facts.SPF; spf.Result == "pass" && spf.Domain != "" {
		return "spf:" + spf.Domain, true
	}
	if name := req.Client.Name; name != "" && !generic(name, req.Client.Addr) {
		if org := mailaddr.OrgDomain(name); org != "" {
			return "org:" + org, true
		}
	}
	if req.Facts.Provider != "" {
		return "provider:" + req.Facts.Provider, true
	}
	addr := req.Client.Addr
	if !addr.IsValid() {
		return "", false
	}
	bits := v4
	if addr.Is6() {
		bits = v6
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return "", false
	}
	var buf [64]byte
	return string(network.AppendTo(append(buf[:0], "net:"...))), true
}

// generic reports whether a reverse name is one that an access provider makes
// from the address for each of its customers: "host-192-0-2-7.isp.example".
// The organisational domain of such a name says nothing about who sends: with
// it, one customer's good record would open the door for all.
func generic(name string, addr netip.Addr) bool {
	host := name
	if org := mailaddr.OrgDomain(name); org != "" {
		host = strings.TrimSuffix(name, org)
	}
	if host == "" {
		return false
	}
	if dynamicWord(host) {
		return true
	}
	switch {
	case !addr.IsValid():
		return false
	case addr.Is4():
		return holdsIPv4(host, addr.As4())
	default:
		return holdsIPv6(host, addr.As16())
	}
}

// holdsIPv4 looks for the last two octets of the address, as numbers or in
// hexadecimal, in either order.
func holdsIPv4(host string, a [4]byte) bool {
	if numbersHold(host, int(a[2]), int(a[3])) {
		return true
	}
	const digits = "0123456789abcdef"
	var b [8]byte
	for i, o := range a {
		b[2*i], b[2*i+1] = digits[o>>4], digits[o&15]
	}
	for i := range 4 { // backwards
		if i < 2 {
			j := 3 - i
			b[2*i], b[2*i+1], b[2*j], b[2*j+1] = b[2*j], b[2*j+1], b[2*i], b[2*i+1]
		}
	}
	reversed := string(b[:])
	forward := reversed[6:8] + reversed[4:6] + reversed[2:4] + reversed[0:2]
	return strings.Contains(host, forward) || strings.Contains(host, reversed)
}

// numbersHold reports whether the numbers x and y stand in s as two decimal
// numbers next to each other, in either order, or run together as three
// digits each ("002007").
func numbersHold(s string, x, y int) bool {
	last, n := -1, 0
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
			if len(run)%3 == 0 && strings.Contains(run, pad3(x)+pad3(y)) || len(run)%3 == 0 && strings.Contains(run, pad3(y)+pad3(x)) {
				return true
			}
			last = -1
			continue
		}
		n, _ = strconv.Atoi(run) // at most three digits
		if last >= 0 && (last == x && n == y || last == y && n == x) {
			return true
		}
		last = n
	}
	return false
}

func pad3(n int) string {
	return string([]byte{'0' + byte(n/100), '0' + byte(n/10%10), '0' + byte(n%10)})
}

// holdsIPv6 looks for the last four groups or the last eight nibbles of the
// address.
func holdsIPv6(host string, a [16]byte) bool {
	const digits = "0123456789abcdef"
	var nibbles [32]byte
	for i, o := range a {
		nibbles[2*i], nibbles[2*i+1] = digits[o>>4], digits[o&15]
	}
	low := string(nibbles[24:])
	if low == "00000001" || strings.Trim(low, "0") == "" || len(strings.TrimLeft(low, "0")) < 3 {
		return false // a host number such as ::25 is in too many honest names
	}
	plain := strings.NewReplacer("-", "", ".", "", ":", "").Replace(host)
	var reversed [8]byte
	for i := range reversed {
		reversed[i] = low[7-i]
	}
	return strings.Contains(plain, low) || strings.Contains(plain, string(reversed[:]))
}

// dynamicWords occur in the names of customers' lines, beside digits.
var dynamicWords = [...]string{
	"dyn", "dynamic", "dhcp", "dsl", "adsl", "vdsl", "xdsl", "ppp", "pppoe", "pool", "dial", "dialup", "cable", "broadband",
	"customer", "cust", "client", "res", "residential", "home", "ip", "nat", "cgnat", "mobile", "lte", "fiber", "ftth", "catv",
}

// dynamicWord reports whether a label of host is such a word with digits
// behind or before it, or beside such a label.
func dynamicWord(host string) bool {
	word, number := false, false
	for part := range strings.FieldsFuncSeq(host, func(r rune) bool { return r == '.' || r == '-' || r == '_' }) {
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

// normalise brings the envelope sender into the form that is stored: what
// changes from one message or retry to the next is taken out. Domains compare
// without case, and so do local parts here: nobody is delayed for a capital.
//
//	user+ext@d            user@d           extension
//	prvs=0123abcdef=u@d   u@d              BATV (draft-levine-smtp-batv)
//	SRS0=xxxx=tt=dom=u@d  srs0=dom=u@d     SRS: hash and timestamp
//	SRS1=xxxx=h==...@d    srs1=h==...@d
//	list-bounce-1234-u=dom@d  list-bounce-#-u=dom@d   VERP, numbers of messages
func normalise(a policy.Address, delimiters string) string {
	if a.Raw == "" {
		return ""
	}
	local := strings.ToLower(a.Local)
	switch {
	case strings.HasPrefix(local, "prvs="):
		if _, rest, ok := strings.Cut(local[len("prvs="):], "="); ok && rest != "" {
			local = rest
		}
	case strings.HasPrefix(local, "srs0"):
		local = srs(local, 2)
	case strings.HasPrefix(local, "srs1"):
		local = srs(local, 1)
	default:
		local, _ = mailaddr.SplitExtension(local, delimiters)
	}
	local = numbers(local)
	if a.Domain == "" {
		return local
	}
	return local + "@" + a.Domain
}

// srs drops the first n fields behind the tag: the hash, and in SRS0 the timestamp.
func srs(local string, n int) string {
	tag, rest := local[:4], local[4:]
	if rest == "" || !strings.ContainsRune("=+-", rune(rest[0])) {
		return local
	}
	rest = rest[1:]
	for range n {
		_, after, ok := strings.Cut(rest, "=")
		if !ok || after == "" {
			return local
		}
		rest = after
	}
	return tag + "=" + rest
}

// numbers replaces what looks like the number of a message, in a local part
// that has one: a run of digits, or of hexadecimal digits with a digit among
// them, that stands between separators. A local part that is a number as a
// whole ("12345@qq.example") is somebody's name and stays.
func numbers(local string) string {
	if !strings.ContainsAny(local, "-=_.+") || !strings.ContainsAny(local, "0123456789") {
		return local
	}
	var b strings.Builder
	b.Grow(len(local))
	changed := false
	for i := 0; i < len(local); {
		j := i
		for j < len(local) && !separator(local[j]) {
			j++
		}
		part := local[i:j]
		if variable(part) {
			b.WriteByte('#')
			changed = true
		} else {
			b.WriteString(part)
		}
		if j < len(local) {
			b.WriteByte(local[j])
			j++
		}
		i = j
	}
	if !changed || strings.Trim(b.String(), "#-=_.+") == "" {
		return local
	}
	return b.String()
}

func separator(c byte) bool { return c == '-' || c == '=' || c == '_' || c == '.' || c == '+' }

// variable reports whether part is a number, or at least eight hexadecimal
// digits with a decimal one among them.
func variable(part string) bool {
	digits, hex := 0, 0
	for i := range len(part) {
		switch c := part[i]; {
		case c >= '0' && c <= '9':
			digits++
		case c >= 'a' && c <= 'f':
			hex++
		default:
			return false
		}
	}
	return digits > 0 && (hex == 0 || digits+hex >= 8)
}
