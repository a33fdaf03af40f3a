package rbl

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Kind says what of a request a list is asked about.
type Kind uint8

// The kinds. KindClient is asked about addresses, the others about domains.
const (
	KindClient  Kind = iota // client address, IPv4 or IPv6
	KindSender              // domain of the envelope sender
	KindHelo                // name in HELO or EHLO
	KindName                // reverse name of the client, verified by a forward look-up
	KindReverse             // reverse name of the client as found, not verified
	kindCount
)

var kindNames = [kindCount]string{"client", "sender", "helo", "name", "reverse"}

// kindClasses is how a reply calls what is listed.
var kindClasses = [kindCount]string{"Client host", "Sender address", "Helo command", "Client host", "Unverified Client host"}

// String returns the name used in configuration.
func (k Kind) String() string {
	if k < kindCount {
		return kindNames[k]
	}
	return "unknown"
}

// Entry is one parsed element of `lists`.
type Entry struct {
	Kind   Kind
	Zone   string  // lower case, no trailing dot
	Filter *Filter // nil: any answer that is no error
	Weight int     // 0: none given
}

// MaxWeight bounds the weight of an entry in both directions.
const MaxWeight = 1000

// maxZone leaves room for the 64 bytes of an IPv6 address in front of a zone:
// a name has at most 253 bytes (RFC 1035 section 2.3.4).
const maxZone = 253 - 64

// SyntaxError is a fault in an entry. Column counts bytes from 1.
type SyntaxError struct {
	Column int
	Text   string
}

// Error implements error.
func (e *SyntaxError) Error() string { return fmt.Sprintf("character %d: %s", e.Column, e.Text) }

func faultAt(offset int, format string, args ...any) *SyntaxError {
	return &SyntaxError{Column: offset + 1, Text: fmt.Sprintf(format, args...)}
}

// ParseEntry reads "[kind:]zone[=filter][*weight]". Kind, filter and weight
// are those of [Kind], [ParseFilter] and postscreen_dnsbl_sites (postconf(5)).
// An error is a *SyntaxError.
func ParseEntry(s string) (Entry, error) {
	var e Entry
	rest, at := s, 0
	if i := strings.IndexByte(rest, ':'); i >= 0 {
		kind, ok := parseKind(rest[:i])
		if !ok {
			return Entry{}, faultAt(0, "unknown kind %q (one of %s)", rest[:i], strings.Join(kindNames[:], ", "))
		}
		e.Kind, rest, at = kind, rest[i+1:], i+1
	}
	if i := strings.IndexByte(rest, '*'); i >= 0 {
		w, err := strconv.Atoi(rest[i+1:])
		switch {
		case err != nil || strings.HasPrefix(rest[i+1:], "+"):
			return Entry{}, faultAt(at+i+1, "weight %q is not a whole number", rest[i+1:])
		case w == 0:
			return Entry{}, faultAt(at+i+1, "weight 0 changes nothing; use mode = \"shadow\" to watch a list")
		case w > MaxWeight || w < -MaxWeight:
			return Entry{}, faultAt(at+i+1, "weight %d is out of range: %d to %d", w, -MaxWeight, MaxWeight)
		}
		e.Weight, rest = w, rest[:i]
	}
	zone, filter, filtered := strings.Cut(rest, "=")
	if filtered {
		f, err := parseFilter(filter, at+len(zone)+1)
		if err != nil {
			return Entry{}, err
		}
		e.Filter = f
	}
	if err := checkZone(zone, at); err != nil {
		return Entry{}, err
	}
	e.Zone = canonicalZone(zone)
	return e, nil
}

// String returns e in the form that ParseEntry reads.
func (e Entry) String() string {
	var b strings.Builder
	if e.Kind != KindClient {
		b.WriteString(e.Kind.String() + ":")
	}
	b.WriteString(e.Zone)
	if e.Filter != nil {
		b.WriteString("=" + e.Filter.String())
	}
	if e.Weight != 0 {
		b.WriteString("*" + strconv.Itoa(e.Weight))
	}
	return b.String()
}

func parseKind(s string) (Kind, bool) {
	for i, name := range kindNames {
		if name == s {
			return Kind(i), true
		}
	}
	return 0, false
}

func canonicalZone(zone string) string {
	return strings.ToLower(strings.TrimSuffix(zone, "."))
}

// checkZone reports what keeps zone from being the name of a list.
func checkZone(zone string, at int) *SyntaxError {
	name := strings.TrimSuffix(zone, ".")
	switch {
	case name == "":
		return faultAt(at, "the name of the list is missing")
	case len(name) > maxZone:
		return faultAt(at, "the name of the list has %d bytes, at most %d fit", len(name), maxZone)
	case !strings.Contains(name, "."):
		return faultAt(at, "%q is not the full name of a list", name)
	}
	pos := at
	for label := range strings.SplitSeq(name, ".") {
		if i := badLabel(label); i >= 0 {
			switch {
			case label == "":
				return faultAt(pos, "empty part in the name of the list")
			case i < len(label):
				return faultAt(pos+i, "%q cannot stand in the name of a list", label[i:i+1])
			}
			return faultAt(pos, "a part of the list's name has %d bytes, at most 63 fit", len(label))
		}
		pos += len(label) + 1
	}
	if digits(name[strings.LastIndexByte(name, '.')+1:]) {
		return faultAt(at, "%q is an address, not the name of a list", name)
	}
	return nil
}

// badLabel returns -1 for a good label, the index of the first bad byte, or
// the length of the label when it is empty or too long.
func badLabel(label string) int {
	for i := range len(label) {
		c := label[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return i
		}
	}
	if label == "" || len(label) > 63 {
		return len(label)
	}
	return -1
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// code is an A record.
type code [4]byte

func (c code) String() string {
	return fmt.Sprintf("%d.%d.%d.%d", c[0], c[1], c[2], c[3])
}

// octet is the set of values that one field of a filter accepts.
type octet [4]uint64

func (o *octet) add(from, to int) {
	for v := from; v <= to; v++ {
		o[v/64] |= 1 << (v % 64)
	}
}

func (o *octet) has(v byte) bool { return o[v/64]&(1<<(v%64)) != 0 }

func (o *octet) count() int {
	n := 0
	for _, w := range o {
		n += bits.OnesCount64(w)
	}
	return n
}

// first returns the smallest value of a set that is not empty.
func (o *octet) first() byte {
	for i, w := range o {
		if w != 0 {
			return byte(i*64 + bits.TrailingZeros64(w))
		}
	}
	return 0
}

// Filter picks answers of a list: "d.d.d.d", where each d is a number or a
// set in brackets: "127.0.[0..255].[1;3;5..7]" (postconf(5), reject_rbl_client).
type Filter [4]octet

// ParseFilter reads a filter. An error is a *SyntaxError.
func ParseFilter(s string) (*Filter, error) {
	f, err := parseFilter(s, 0)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// match reports whether c is one of the filter's answers. A nil filter
// matches every answer.
func (f *Filter) match(c code) bool {
	return f == nil || f[0].has(c[0]) && f[1].has(c[1]) && f[2].has(c[2]) && f[3].has(c[3])
}

// only returns the one answer that f matches, if it is only one.
func (f *Filter) only() (c code, ok bool) {
	for i := range f {
		if f[i].count() != 1 {
			return code{}, false
		}
		c[i] = f[i].first()
	}
	return c, true
}

// String returns f in the form that ParseFilter reads.
func (f *Filter) String() string {
	var b strings.Builder
	for i := range f {
		if i > 0 {
			b.WriteByte('.')
		}
		if f[i].count() == 1 {
			b.WriteString(strconv.Itoa(int(f[i].first())))
			continue
		}
		b.WriteByte('[')
		sep := ""
		for v := 0; v < 256; v++ {
			if !f[i].has(byte(v)) {
				continue
			}
			from := v
			for v < 255 && f[i].has(byte(v+1)) {
				v++
			}
			b.WriteString(sep + strconv.Itoa(from))
			if v > from {
				b.WriteString(".." + strconv.Itoa(v))
			}
			sep = ";"
		}
		b.WriteByte(']')
	}
	return b.String()
}

// filterParser walks over a filter; at is the offset of s in the entry.
type filterParser struct {
	s       string
	pos, at int
}

func parseFilter(s string, at int) (*Filter, *SyntaxError) {
	p := filterParser{s: s, at: at}
	var f Filter
	for i := range f {
		if i > 0 {
			if err := p.want('.'); err != nil {
				return nil, err
			}
		}
		if err := p.field(&f[i]); err != nil {
			return nil, err
		}
	}
	if p.pos < len(s) {
		return nil, p.fault("%q after the end of the filter", s[p.pos:])
	}
	return &f, nil
}

func (p *filterParser) fault(format string, args ...any) *SyntaxError {
	return faultAt(p.at+p.pos, format, args...)
}

func (p *filterParser) want(c byte) *SyntaxError {
	if p.pos >= len(p.s) {
		return p.fault("the filter ends where %q should be", string(c))
	}
	if p.s[p.pos] != c {
		return p.fault("%q where %q should be", p.s[p.pos:p.pos+1], string(c))
	}
	p.pos++
	return nil
}

// field reads a number or a set in brackets.
func (p *filterParser) field(o *octet) *SyntaxError {
	if p.pos >= len(p.s) || p.s[p.pos] != '[' {
		v, err := p.number()
		if err != nil {
			return err
		}
		o.add(v, v)
		return nil
	}
	p.pos++
	for {
		from, err := p.number()
		if err != nil {
			return err
		}
		to := from
		if strings.HasPrefix(p.s[p.pos:], "..") {
			p.pos += 2
			start := p.pos
			if to, err = p.number(); err != nil {
				return err
			}
			if to < from {
				p.pos = start
				return p.fault("range %d..%d is upside down", from, to)
			}
		}
		o.add(from, to)
		if strings.HasPrefix(p.s[p.pos:], ";") {
			p.pos++
			continue
		}
		return p.want(']')
	}
}

func (p *filterParser) number() (int, *SyntaxError) {
	start := p.pos
	for p.pos < len(p.s) && p.s[p.pos] >= '0' && p.s[p.pos] <= '9' && p.pos-start < 4 {
		p.pos++
	}
	word := p.s[start:p.pos]
	v, err := strconv.Atoi(word)
	if err != nil || v > 255 {
		p.pos = start
		switch {
		case word != "":
			return 0, p.fault("%s is more than 255", word)
		case start == len(p.s):
			return 0, p.fault("the filter ends where a number should be")
		}
		return 0, p.fault("%q where a number should be", p.s[start:start+1])
	}
	return v, nil
}
