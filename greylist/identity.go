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

// holdsIPv6 looks for the last two groups of the address, with or without
// their leading zeros, or its last eight nibbles backwards.
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

// normalise brings the envelope sender into the form that is stored: what
// changes from one message or retry to the next is taken out, or stands as #.
// Domains compare without case, and so do local parts here: nobody is delayed
// for a capital. A form that is stored is its own form.
//
//	user+ext@d            user@d           extension
//	prvs=0123abcdef=u@d   u@d              BATV (draft-levine-smtp-batv), also
//	                                       btv1==...=u (Barracuda), msprvs1=...=u (Momentum)
//	SRS0=xxxx=tt=dom=u@d  srs0=#=#=dom=u@d             SRS: hash and time
//	SRS1=xxxx=h==xxxx=tt=dom=u@d  srs1=#=h==#=#=dom=u@d
//	list-bounce-1234-u=dom@d  list-bounce-#-u=dom@d    VERP, numbers of messages
func normalise(a policy.Address, delimiters string) string {
	if a.Raw == "" {
		return ""
	}
	local := untagged(strings.ToLower(a.Local))
	if form, ok := srs(local); ok {
		local = form
	} else {
		local, _ = mailaddr.SplitExtension(local, delimiters)
	}
	local = numbers(local)
	switch n := len(local); {
	case a.Domain == "":
		return local
	case len(a.Raw) == n+1+len(a.Domain) && a.Raw[:n] == local && a.Raw[n+1:] == a.Domain:
		return a.Raw // as it came
	}
	return local + "@" + a.Domain
}

// untagged takes the tags of BATV off a local part.
func untagged(local string) string {
	for {
		rest, ok := strings.CutPrefix(local, "prvs=")
		if !ok {
			rest, ok = strings.CutPrefix(local, "msprvs1=")
		}
		if !ok {
			rest, ok = strings.CutPrefix(local, "btv1==")
			_, rest, _ = strings.Cut(rest, "=") // its tag ends in two
		}
		if !ok {
			return local
		}
		_, user, ok := strings.Cut(rest, "=")
		if !ok || user == "" {
			return local
		}
		local = user
	}
}

// srs returns the local part of a forwarder's address without what changes.
// ok is false when it is none. Any of = + - may stand behind the tag.
func srs(local string) (form string, ok bool) {
	if len(local) < 5 || !srsSeparator(local[4]) {
		return "", false
	}
	rest := local[5:]
	switch local[:4] {
	case "srs0":
		original, ok := original(rest)
		return "srs0=#=#=" + original, ok
	case "srs1":
		// The hash, the first forwarder, and its own address without "SRS0".
		_, rest, ok := strings.Cut(rest, "=")
		forwarder, rest, more := strings.Cut(rest, "=")
		if !ok || !more || rest == "" || !srsSeparator(rest[0]) {
			return "", false
		}
		original, ok := original(rest[1:])
		return "srs1=#=" + forwarder + "==#=#=" + original, ok
	}
	return "", false
}

func srsSeparator(c byte) bool { return c == '=' || c == '+' || c == '-' }

// original drops the hash and the time of "hash=time=domain=user".
func original(s string) (string, bool) {
	_, s, hash := strings.Cut(s, "=")
	_, s, time := strings.Cut(s, "=")
	domain, user, ok := strings.Cut(s, "=")
	return s, hash && time && ok && domain != "" && user != ""
}

// numbers replaces what looks like the number of a message by #: what stands
// between separators and is a number, a UUID or a token. A local part that
// has nothing but plain numbers ("12345@qq.example") is somebody's name and
// stays.
func numbers(local string) string {
	digits, separated := false, false
	for i := range len(local) {
		c := local[i]
		digits = digits || c >= '0' && c <= '9'
		separated = separated || separator(c)
	}
	if !digits || len(local) < tokenSize && !separated {
		return local
	}
	var b strings.Builder
	changed, named := false, false
	for i := 0; i < len(local); {
		n := uuid(local[i:])
		replace := n > 0
		if !replace {
			for i+n < len(local) && !separator(local[i+n]) {
				n++
			}
			replace = variable(local[i : i+n])
		}
		for j := i; j < i+n && !named; j++ {
			c := local[j]
			named = (c < '0' || c > '9') && c != '#'
		}
		if replace && !changed {
			b.Grow(len(local))
			b.WriteString(local[:i])
			changed = true
		}
		if replace {
			b.WriteByte('#')
		} else if changed {
			b.WriteString(local[i : i+n])
		}
		if i += n; i < len(local) {
			if changed {
				b.WriteByte(local[i])
			}
			i++
		}
	}
	if !changed || !named {
		return local
	}
	return b.String()
}

func separator(c byte) bool { return c == '-' || c == '=' || c == '_' || c == '.' || c == '+' }

// uuid returns the length of the UUID that s begins with (RFC 9562 section 4),
// 0 when there is none or it goes on without a separator.
func uuid(s string) int {
	const form = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
	if len(s) < len(form) || len(s) > len(form) && !separator(s[len(form)]) {
		return 0
	}
	for i := range len(form) {
		c := s[i]
		if hex := c >= '0' && c <= '9' || c >= 'a' && c <= 'f'; hex != (form[i] == 'x') || !hex && c != '-' {
			return 0
		}
	}
	return len(form)
}

// tokenSize is how long a mix of letters and digits must be to be nobody's name.
const tokenSize = 16

// variable reports whether part is a number, at least eight hexadecimal
// digits with a decimal one among them, or a token: letters that go on behind
// digits more than once, which the year behind a name does not.
func variable(part string) bool {
	digits, hex, letters, turns := 0, 0, 0, 0
	for i := range len(part) {
		switch c := part[i]; {
		case c >= '0' && c <= '9':
			digits++
			continue
		case c >= 'a' && c <= 'f':
			hex++
		case c >= 'g' && c <= 'z':
			letters++
		default:
			return false
		}
		if i > 0 && part[i-1] <= '9' {
			turns++
		}
	}
	switch {
	case digits == 0:
		return false
	case letters == 0:
		return hex == 0 || len(part) >= 8
	}
	return turns >= 2 && len(part) >= tokenSize
}
