package list

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"postern/internal/mailaddr"
	"postern/table"
)

// pattern is one pattern, read. Exactly one of its parts is set.
type pattern struct {
	field    Field
	rank     rank
	networks []netip.Prefix // a range may need several
	name     string         // exact client or HELO name, domain of an address
	suffix   string         // a domain and all below it, no leading dot
	user     string         // local part at any domain, lower case
	address  string         // lower case; "<>" is the null sender
	regexp   *table.Table   // of one pcre rule
	extended bool           // address and user also match any extension
}

// nullSender is the pattern for mail from <>.
const nullSender = "<>"

// unknownClient is the pattern for clients without a verified name.
const unknownClient = "unknown"

var prefixes = []struct {
	word  string
	field Field
}{
	{"client:", Client}, {"helo:", Helo}, {"from:", Sender}, {"sender:", Sender}, {"to:", Recipient}, {"recipient:", Recipient},
}

// parsePattern reads a pattern; def is the field of one without a prefix.
func parsePattern(s string, def Field) (pattern, error) {
	p := pattern{field: def}
	for _, pre := range prefixes {
		if len(s) >= len(pre.word) && strings.EqualFold(s[:len(pre.word)], pre.word) {
			p.field, s = pre.field, s[len(pre.word):]
			break
		}
	}
	if s == "" {
		return p, errors.New("nothing behind the prefix of the pattern")
	}
	if s[0] == '/' {
		return p, p.parseRegexp(s)
	}
	if p.field == Sender || p.field == Recipient {
		return p, p.parseAddress(s)
	}
	if p.field == Client {
		if nets, err := parseNetworks(s); err != nil {
			return p, err
		} else if len(nets) > 0 {
			p.networks = nets
			return p, nil
		}
	}
	return p, p.parseName(s)
}

// parseRegexp reads "/RE/FLAGS" with the meaning of pcre_table(5): letter
// case does not count unless the flag i is given.
func (p *pattern) parseRegexp(s string) error {
	// The result of the one rule is of no interest.
	t, faults := table.Parse(table.PCRE, "pattern", []byte(s+" x"))
	if len(faults) > 0 {
		return errors.New(faults[0].Text)
	}
	if len(t.Rules()) != 1 {
		return fmt.Errorf("%q is not one regular expression", s)
	}
	p.regexp, p.rank = t, rank{level: levelRegexp}
	return nil
}

// parseName reads a host name or .suffix.
func (p *pattern) parseName(s string) error {
	if p.field == Client && strings.EqualFold(s, unknownClient) {
		p.name, p.rank = unknownClient, rank{level: levelSuffix}
		return nil
	}
	if rest, ok := strings.CutPrefix(s, "."); ok {
		name, err := domain(rest)
		p.suffix, p.rank = name, nameRank(levelSuffix, name)
		return err
	}
	if p.field == Helo && strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		p.name, p.rank = strings.ToLower(s), rank{level: levelName, width: 255}
		return nil
	}
	name, err := domain(s)
	p.name, p.rank = name, nameRank(levelName, name)
	return err
}

// parseAddress reads user@domain, user@, @domain, domain, .domain or <>.
func (p *pattern) parseAddress(s string) error {
	if s == nullSender {
		if p.field == Recipient {
			return errors.New("<> is a sender: from:<>")
		}
		p.address, p.rank = nullSender, rank{levelAddress, 1}
		return nil
	}
	s = strings.TrimSuffix(strings.TrimPrefix(s, "<"), ">")
	at := strings.LastIndexByte(s, '@')
	switch {
	case at < 0 && strings.HasPrefix(s, "."):
		name, err := domain(s[1:])
		p.suffix, p.rank = name, nameRank(levelSuffix, name)
		return err
	case at < 0 && !strings.Contains(s, ".") && s != "":
		return fmt.Errorf("%q has no dot: \"%s@\" is that user at any domain, \"@%s\" is that domain", s, s, s)
	case at <= 0:
		name, err := domain(s[at+1:])
		p.name, p.rank = name, nameRank(levelDomain, name)
		return err
	}
	local, dom := strings.ToLower(s[:at]), s[at+1:]
	if len(local) >= 2 && local[0] == '"' && local[len(local)-1] == '"' {
		local = unquote(local[1 : len(local)-1])
	}
	if dom == "" {
		p.user, p.rank = local, rank{level: levelUser}
		return nil
	}
	name, err := domain(dom)
	p.address, p.rank = local+"@"+name, rank{levelAddress, 1}
	return err
}

func unquote(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// domain checks a host or domain name and returns its compared form. Domain
// literals in brackets are taken as they are.
func domain(s string) (string, error) {
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		return strings.ToLower(s), nil
	}
	if strings.ContainsAny(s, "*?") {
		return "", fmt.Errorf("%q: there are no wildcards; \".example.org\" is example.org and all below it, /.../ a regular expression", s)
	}
	name := mailaddr.Domain(s)
	if name == "" || len(name) > 253 {
		return "", fmt.Errorf("%q is not a host name, network or address", s)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "", fmt.Errorf("%q is not a name: a label is empty or longer than 63 bytes", s)
		}
		for i := range len(label) {
			c := label[i]
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return "", fmt.Errorf("%q is neither a network nor a name: %q cannot stand in it", s, string(rune(c)))
			}
		}
	}
	if last := name[strings.LastIndexByte(name, '.')+1:]; isDigits(last) {
		return "", fmt.Errorf("%q is not an IP address or network", s)
	}
	return name, nil
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// parseNetworks reads an address, a prefix, an IPv4 address abbreviated by
// whole octets, or a range. It returns nothing for what looks like a name.
func parseNetworks(s string) ([]netip.Prefix, error) {
	s = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	if strings.Contains(s, "/") {
		addr, bits, _ := strings.Cut(s, "/")
		base, err := parseAddr(addr)
		if err != nil {
			return nil, fmt.Errorf("%q is not a network: %q is not an IP address", s, addr)
		}
		n, err := strconv.Atoi(bits)
		if err != nil || n < 0 || n > base.BitLen() || bits[0] == '+' {
			return nil, fmt.Errorf("%q is not a network: %q is not a prefix length from 0 to %d", s, bits, base.BitLen())
		}
		p := netip.PrefixFrom(base, n)
		if p.Masked() != p {
			return nil, fmt.Errorf("%q has bits set behind its prefix length: the network is %v, the address alone %v", s, p.Masked(), base)
		}
		return []netip.Prefix{p}, nil
	}
	if addr, err := parseAddr(s); err == nil {
		return []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}, nil
	}
	if lo, hi, ok := strings.Cut(s, "-"); ok {
		if from, err := parseAddr(lo); err == nil {
			return parseRange(s, from, lo, hi)
		}
		return nil, nil
	}
	if strings.Count(s, ":") >= 2 {
		return nil, fmt.Errorf("%q is not an IPv6 address or network", s)
	}
	return abbreviated(s)
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err == nil && a.Zone() != "" {
		err = errors.New("zone")
	}
	return a.Unmap(), err
}

// abbreviated reads one to three octets of IPv4: 10.2 is 10.2.0.0/16.
func abbreviated(s string) ([]netip.Prefix, error) {
	s = strings.TrimSuffix(s, ".")
	octets := strings.Split(s, ".")
	var b [4]byte
	for i, o := range octets {
		if !isDigits(o) {
			return nil, nil
		}
		n, err := strconv.Atoi(o)
		if err != nil || n > 255 || i > 3 || len(o) > 1 && o[0] == '0' {
			return nil, fmt.Errorf("%q is not an IPv4 address or the beginning of one", s)
		}
		b[i] = byte(n)
	}
	return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(b), 8*len(octets))}, nil
}

// parseRange reads A-B, where B may be just the last octet.
func parseRange(s string, from netip.Addr, lo, hi string) ([]netip.Prefix, error) {
	to, err := parseAddr(hi)
	if err != nil && from.Is4() && isDigits(hi) {
		to, err = parseAddr(lo[:strings.LastIndexByte(lo, '.')+1] + hi)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%q is not a range: %q is not an IP address", s, hi)
	case from.BitLen() != to.BitLen():
		return nil, fmt.Errorf("%q is not a range: one end is IPv4, the other IPv6", s)
	case to.Less(from):
		return nil, fmt.Errorf("%q is not a range: %v comes after %v", s, from, to)
	}
	return rangePrefixes(from, to), nil
}

// rangePrefixes cuts a range into the fewest prefixes.
func rangePrefixes(from, to netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for {
		bits := from.BitLen()
		for bits > 0 {
			p := netip.PrefixFrom(from, bits-1)
			if p.Masked().Addr() != from || to.Less(lastOf(p)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(from, bits)
		out = append(out, p)
		last := lastOf(p)
		if last == to {
			return out
		}
		from = last.Next()
	}
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// parsePostgreyClient reads a line of postgrey's whitelist_clients: names
// stand for everything below them too.
func parsePostgreyClient(s string) (pattern, error) {
	p, err := parsePattern(s, Client)
	if err == nil && p.name != "" {
		p.name, p.suffix, p.rank = "", p.name, nameRank(levelSuffix, p.name)
	}
	return p, err
}

// parsePostgreyRecipient reads a line of postgrey's whitelist_recipients.
func parsePostgreyRecipient(s string) (pattern, error) {
	p := pattern{field: Recipient, extended: true}
	if s[0] == '/' {
		return p, p.parseRegexp(s)
	}
	if !strings.Contains(s, "@") {
		name, err := domain(strings.TrimPrefix(s, "."))
		p.suffix, p.rank = name, nameRank(levelSuffix, name)
		return p, err
	}
	return p, p.parseAddress(s)
}
