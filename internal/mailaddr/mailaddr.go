// Package mailaddr brings envelope addresses and host names into the forms
// that are compared: domains in lower case, as A-labels, without a trailing
// dot; local parts as written (RFC 5321 section 2.4).
package mailaddr

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"

	"postern/policy"
)

// profile maps as for a look-up but lets underscores and other odd ASCII
// names through, which occur in mail.
var profile = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false))

// Parse splits an address in internal form (no angle brackets, local part
// unquoted) at its last @. An address without @ has only a local part. A name
// that IDNA refuses keeps its lower-case spelling, one that is not UTF-8 its
// bytes. It never fails.
func Parse(raw string) policy.Address {
	at := strings.LastIndexByte(raw, '@')
	if at < 0 {
		return policy.Address{Raw: raw, Local: raw}
	}
	return policy.Address{Raw: raw, Local: raw[:at], Domain: Domain(raw[at+1:])}
}

// ParsePath reads an address as it stands in MAIL FROM or RCPT TO (RFC 5321
// section 4.1.2), with or without angle brackets: a source route is dropped,
// and a quoted local part loses its quotes and backslashes. It never fails.
func ParsePath(path string) policy.Address {
	if n := len(path); n >= 2 && path[0] == '<' && path[n-1] == '>' {
		path = path[1 : n-1]
	}
	if strings.HasPrefix(path, "@") {
		// "@relay.example,@other.example:user@example.com"
		if i := strings.IndexByte(path, ':'); i >= 0 {
			path = path[i+1:]
		}
	}
	if strings.IndexByte(path, '"') < 0 && strings.IndexByte(path, '\\') < 0 {
		return Parse(path)
	}
	local, domain := path, ""
	if at := strings.LastIndexByte(path, '@'); at >= 0 && !insideQuotes(path, at) {
		local, domain = path[:at], path[at:]
	}
	var b strings.Builder
	for i := 0; i < len(local); i++ {
		switch c := local[i]; {
		case c == '"':
		case c == '\\' && i+1 < len(local):
			i++
			b.WriteByte(local[i])
		default:
			b.WriteByte(c)
		}
	}
	if domain == "" {
		// An @ in it was quoted and separates nothing.
		return policy.Address{Raw: b.String(), Local: b.String()}
	}
	return Parse(b.String() + domain)
}

// Deliverable reports whether an MTA would take s as one address to deliver
// to: printable ASCII, with a domain, and nothing that could end it early.
func Deliverable(s string) bool {
	at := strings.LastIndexByte(s, '@')
	return at > 0 && at < len(s)-1 && policy.Printable(s) == s && !strings.ContainsAny(s, " ,<>")
}

// insideQuotes reports whether the byte at i stands in a quoted string.
func insideQuotes(s string, i int) bool {
	in := false
	for j := 0; j < i; j++ {
		switch s[j] {
		case '"':
			in = !in
		case '\\':
			j++
		}
	}
	return in
}

// IP reads an address as Postfix writes it, with or without the prefix
// "IPv6:". An IPv4-mapped address is IPv4, a zone is dropped; what is no
// address ("unknown") is the invalid one.
func IP(s string) netip.Addr {
	a, _ := netip.ParseAddr(strings.TrimPrefix(s, "IPv6:")) // the invalid one, with an error
	return a.Unmap().WithZone("")
}

var (
	sharedSpace = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")     // RFC 791
	reserved    = netip.MustParsePrefix("240.0.0.0/4")   // RFC 1112
	siteLocal   = netip.MustParsePrefix("fec0::/10")     // RFC 3879
)

// IsGlobal reports whether an address, not an IPv4-mapped one, can belong to a
// host of the internet: not private, loopback, link-local, multicast or
// reserved. Ranges for documentation count as global: no host has them.
func IsGlobal(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !sharedSpace.Contains(a) && !thisNetwork.Contains(a) &&
		!reserved.Contains(a) && !siteLocal.Contains(a)
}

// HostName returns a client's name in the compared form, "" for Postfix's
// "unknown".
func HostName(s string) string {
	if s == "" || s == "unknown" {
		return ""
	}
	return Domain(s)
}

// Domain returns a host or domain name in the compared form. Lower-case ASCII
// costs no allocation.
func Domain(name string) string {
	name = strings.TrimSuffix(name, ".")
	ascii, upper := true, false
	for i := range len(name) {
		c := name[i]
		ascii = ascii && c < 0x80
		upper = upper || 'A' <= c && c <= 'Z'
	}
	if ascii {
		if upper {
			return strings.ToLower(name)
		}
		return name
	}
	if !utf8.ValidString(name) {
		return name
	}
	if a, err := profile.ToASCII(name); err == nil && a != "" {
		return strings.TrimSuffix(strings.ToLower(a), ".")
	}
	return strings.ToLower(name)
}

// OrgDomain returns the organisational domain of a name in the compared form:
// the public suffix and one label more (RFC 7489 section 3.2). It is "" for an
// address, an address literal, a public suffix itself and a name without one.
func OrgDomain(name string) string {
	if strings.HasSuffix(name, "]") {
		return "" // an address literal; publicsuffix knows plain addresses
	}
	org, _ := publicsuffix.EffectiveTLDPlusOne(name) // "", with an error
	return org
}

// SplitExtension splits a local part at the first of the delimiter
// characters, as Postfix's recipient_delimiter does: "user", "ext". The
// extension may be empty ("user+"), the user may not. ok is false when there is
// none, and user is all of local then; postmaster, mailer-daemon and
// double-bounce never have one.
func SplitExtension(local, delimiters string) (user, extension string, ok bool) {
	i := strings.IndexAny(local, delimiters)
	if i <= 0 {
		return local, "", false
	}
	switch strings.ToLower(local) {
	case "postmaster", "mailer-daemon", "double-bounce":
		return local, "", false
	}
	if local[i] == '-' {
		lower := strings.ToLower(local)
		if strings.HasPrefix(lower, "owner-") || strings.HasSuffix(lower, "-request") {
			return local, "", false
		}
	}
	return local[:i], local[i+1:], true
}
