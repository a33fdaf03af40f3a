// Package spfrecord reads SPF records: the whole grammar of RFC 7208 section
// 12, macros included. It asks nobody anything; what a record means for an
// address is the business of those who use it.
package spfrecord

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Kind is what a term of a record is.
type Kind uint8

// The mechanisms of RFC 7208 section 5, then the modifiers of section 6.
const (
	All Kind = iota
	Include
	A
	MX
	PTR
	IP4
	IP6
	Exists
	Redirect // redirect=
	Exp      // exp=
	Unknown  // any other modifier, which means nothing
	kindCount
)

var kindNames = [kindCount]string{"all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists", "redirect", "exp", "modifier"}

// String returns the name that stands in records.
func (k Kind) String() string {
	if k < kindCount {
		return kindNames[k]
	}
	return "unknown"
}

// Modifier reports whether terms of this kind are modifiers: they have no
// qualifier and match nothing by themselves.
func (k Kind) Modifier() bool { return k >= Redirect }

// Qualifier says what a matching mechanism results in (RFC 7208 section 4.6.2).
type Qualifier byte

// The qualifiers. A term that has none means Pass.
const (
	Pass     Qualifier = '+'
	Fail     Qualifier = '-'
	SoftFail Qualifier = '~'
	Neutral  Qualifier = '?'
)

// NoLength is Term.Len4 or Term.Len6 where none is given.
const NoLength = -1

// Term is one mechanism or modifier.
type Term struct {
	Kind      Kind
	Qualifier Qualifier  // of a mechanism; 0 of a modifier
	Name      string     // of an Unknown modifier, lower case
	Domain    DomainSpec // empty for All, IP4, IP6, and where it is left out
	Addr      netip.Addr // of IP4 and IP6, as written: host bits may be set
	Len4      int        // prefix length of A, MX, IP4; NoLength if none is given
	Len6      int        // prefix length of A, MX, IP6; NoLength if none is given
	Pos       int        // of the term's first byte in the record, from 1
}

// Prefix returns the network of an IP4 or IP6 term, host bits masked.
func (t *Term) Prefix() netip.Prefix {
	bits := t.Len4
	if t.Kind == IP6 {
		bits = t.Len6
	}
	if bits == NoLength {
		bits = t.Addr.BitLen()
	}
	return netip.PrefixFrom(t.Addr, bits).Masked()
}

// Lookup reports whether the term counts towards the ten look-ups that an
// evaluation may take (RFC 7208 section 4.6.4).
func (t *Term) Lookup() bool {
	switch t.Kind {
	case Include, A, MX, PTR, Exists, Redirect:
		return true
	default:
		return false
	}
}

// String returns the term in its shortest form; [Parse] reads the same from it.
func (t *Term) String() string {
	var b strings.Builder
	if t.Qualifier != Pass && !t.Kind.Modifier() {
		b.WriteByte(byte(t.Qualifier))
	}
	switch {
	case t.Kind == Unknown:
		b.WriteString(t.Name + "=" + t.Domain.String())
	case t.Kind.Modifier():
		b.WriteString(t.Kind.String() + "=" + t.Domain.String())
	case t.Kind == IP4 || t.Kind == IP6:
		b.WriteString(t.Kind.String() + ":" + t.Addr.String())
	case t.Domain.empty():
		b.WriteString(t.Kind.String())
	default:
		b.WriteString(t.Kind.String() + ":" + t.Domain.String())
	}
	switch {
	case t.Kind == IP6 && t.Len6 != NoLength:
		b.WriteString("/" + strconv.Itoa(t.Len6))
	case t.Kind == IP6:
	default:
		if t.Len4 != NoLength {
			b.WriteString("/" + strconv.Itoa(t.Len4))
		}
		if t.Len6 != NoLength {
			b.WriteString("//" + strconv.Itoa(t.Len6))
		}
	}
	return b.String()
}

// Record is a whole record. It does not change.
type Record struct {
	Terms []Term // in the order of the record, modifiers too
}

// Modifier returns the modifier of a kind (Redirect or Exp), nil if there is none.
func (r *Record) Modifier(k Kind) *Term {
	for i := range r.Terms {
		if r.Terms[i].Kind == k {
			return &r.Terms[i]
		}
	}
	return nil
}

// String returns the record with one blank between terms, names in lower
// case and without "+"; [Parse] reads the same record from it.
func (r *Record) String() string {
	var b strings.Builder
	b.WriteString(version)
	for i := range r.Terms {
		b.WriteString(" " + r.Terms[i].String())
	}
	return b.String()
}

const version = "v=spf1"

// Is reports whether the text of a TXT record is an SPF record: it begins
// with the version, alone or before a blank (RFC 7208 section 4.5).
func Is(text string) bool {
	return len(text) >= len(version) && strings.EqualFold(text[:len(version)], version) &&
		(len(text) == len(version) || text[len(version)] == ' ')
}

// MaxLength is the most bytes of a record that Parse reads: what fits in the
// data of one TXT record.
const MaxLength = 65535

// SyntaxError says what is wrong with a record and where.
type SyntaxError struct {
	Pos  int    // of the first byte that is wrong, from 1; may be one beyond the end
	Term string // the term it is in, printable and cut
	Text string // what is wrong
}

// Error implements error.
func (e *SyntaxError) Error() string {
	s := "spf record: column " + strconv.Itoa(e.Pos)
	if e.Term != "" {
		s += ": " + strconv.Quote(e.Term)
	}
	return s + ": " + e.Text
}

// Parse reads a record. A record with any fault is no record at all (RFC 7208
// section 4.6); the error is a [*SyntaxError] for the first one.
func Parse(text string) (*Record, error) {
	if len(text) > MaxLength {
		return nil, &SyntaxError{Pos: MaxLength + 1, Text: fmt.Sprintf("more than %d bytes", MaxLength)}
	}
	if !Is(text) {
		return nil, &SyntaxError{Pos: 1, Text: `does not begin with "v=spf1" and a blank`}
	}
	r := new(Record)
	for pos := len(version); pos < len(text); {
		if text[pos] == ' ' {
			pos++
			continue
		}
		end := pos
		for end < len(text) && text[end] != ' ' {
			end++
		}
		t, err := parseTerm(text[pos:end])
		if err != nil {
			err.Pos += pos + 1
			err.Term = shorten(text[pos:end])
			return nil, err
		}
		t.Pos = pos + 1
		if (t.Kind == Redirect || t.Kind == Exp) && r.Modifier(t.Kind) != nil {
			return nil, &SyntaxError{Pos: t.Pos, Term: shorten(text[pos:end]), Text: "a second " + t.Kind.String() + "="}
		}
		r.Terms = append(r.Terms, t)
		pos = end
	}
	return r, nil
}

// shorten keeps an error message short, whatever is in the record.
func shorten(s string) string {
	if len(s) > 80 {
		return s[:77] + "..."
	}
	return s
}

// wrong makes an error; at counts from 0, from the beginning of the term.
func wrong(at int, format string, args ...any) *SyntaxError {
	return &SyntaxError{Pos: at, Text: fmt.Sprintf(format, args...)}
}

// parseTerm reads one term; positions in its error count from 0.
func parseTerm(s string) (Term, *SyntaxError) {
	t := Term{Len4: NoLength, Len6: NoLength}
	n := 0
	for n < len(s) && nameByte(s[n], n == 0) {
		n++
	}
	if n > 0 && n < len(s) && s[n] == '=' {
		return parseModifier(t, s, n)
	}
	start := 0
	switch q := Qualifier(s[0]); q {
	case Pass, Fail, SoftFail, Neutral:
		t.Qualifier, start = q, 1
	default:
		t.Qualifier = Pass
	}
	for n = start; n < len(s) && nameByte(s[n], n == start); n++ {
	}
	name := lower(s[start:n])
	switch {
	case name == "" && n == len(s):
		return t, wrong(n, "a qualifier without a mechanism")
	case name == "":
		return t, wrong(n, "no mechanism begins like this")
	}
	for k := All; k <= Exists; k++ {
		if kindNames[k] == name {
			t.Kind = k
			return t, t.parseArguments(s, n)
		}
	}
	if n < len(s) && s[n] == '=' {
		return t, wrong(start, "a modifier has no qualifier")
	}
	return t, wrong(start, "unknown mechanism")
}

// parseArguments reads what follows the name of a mechanism, from s[n] on.
func (t *Term) parseArguments(s string, n int) *SyntaxError {
	rest := s[n:]
	switch t.Kind {
	case All:
		if rest != "" {
			return wrong(n, "nothing may follow all")
		}
	case Include, Exists:
		if !strings.HasPrefix(rest, ":") {
			return wrong(n, "%s needs \":\" and a domain", t.Kind)
		}
		return t.Domain.parse(rest[1:], n+1, true, false)
	case PTR:
		switch {
		case rest == "":
		case rest[0] != ':':
			return wrong(n, "only \":\" and a domain may follow ptr")
		default:
			return t.Domain.parse(rest[1:], n+1, true, false)
		}
	case A, MX:
		if rest == "" {
			return nil
		}
		if rest[0] != ':' {
			if rest[0] != '/' {
				return wrong(n, "only \":\" and a domain, or \"/\" and a prefix length may follow %s", t.Kind)
			}
			return t.parseDual(rest, n)
		}
		domain, lengths := cutLengths(rest[1:])
		if err := t.Domain.parse(domain, n+1, true, false); err != nil {
			return err
		}
		return t.parseDual(lengths, n+1+len(domain))
	case IP4, IP6:
		return t.parseAddr(s, n)
	default: // modifiers do not come here
	}
	return nil
}

// cutLengths parts the domain of an "a" or "mx" from the prefix lengths behind
// it. A domain may hold slashes, but it ends in a label with a letter or in a
// macro, so it never ends in what looks like a prefix length.
func cutLengths(s string) (domain, lengths string) {
	i := len(s)
	for {
		j := i
		for j > 0 && '0' <= s[j-1] && s[j-1] <= '9' {
			j--
		}
		if j == 0 || s[j-1] != '/' {
			break
		}
		i = j - 1
		if i > 0 && s[i-1] == '/' {
			i--
		}
	}
	return s[:i], s[i:]
}

// parseDual reads dual-cidr-length: "/24", "//64", "/24//64" or nothing.
func (t *Term) parseDual(s string, at int) *SyntaxError {
	v4, v6, both := strings.Cut(s, "//")
	if v4 != "" {
		n, err := length(v4[1:], 32, at+1)
		if err != nil {
			return err
		}
		t.Len4 = n
	}
	if both {
		n, err := length(v6, 128, at+len(v4)+2)
		if err != nil {
			return err
		}
		t.Len6 = n
	}
	return nil
}

// length reads a prefix length without leading zeros.
func length(s string, most, at int) (int, *SyntaxError) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, wrong(at+i, "a prefix length is a number from 0 to %d", most)
		}
	}
	if s == "" || len(s) > 3 || len(s) > 1 && s[0] == '0' {
		return 0, wrong(at, "a prefix length is a number from 0 to %d without leading zeros", most)
	}
	n, err := strconv.Atoi(s)
	if err != nil || n > most {
		return 0, wrong(at, "a prefix length is a number from 0 to %d", most)
	}
	return n, nil
}

func (t *Term) parseAddr(s string, n int) *SyntaxError {
	if n == len(s) || s[n] != ':' {
		return wrong(n, "%s needs \":\" and an address", t.Kind)
	}
	text, bits, found := strings.Cut(s[n+1:], "/")
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil || addr.Zone() != "":
		return wrong(n+1, "not an address")
	case addr.Is4() != (t.Kind == IP4):
		return wrong(n+1, "not an address for %s", t.Kind)
	}
	t.Addr = addr
	if !found {
		return nil
	}
	got, e := length(bits, addr.BitLen(), n+1+len(text)+1)
	if e != nil {
		return e
	}
	if t.Kind == IP4 {
		t.Len4 = got
	} else {
		t.Len6 = got
	}
	return nil
}

// parseModifier reads a modifier whose name is s[:n].
func parseModifier(t Term, s string, n int) (Term, *SyntaxError) {
	switch name := lower(s[:n]); name {
	case "redirect":
		t.Kind = Redirect
		return t, t.Domain.parse(s[n+1:], n+1, true, false)
	case "exp":
		t.Kind = Exp
		return t, t.Domain.parse(s[n+1:], n+1, true, false)
	default:
		t.Kind, t.Name = Unknown, name
		return t, t.Domain.parse(s[n+1:], n+1, false, true)
	}
}

// nameByte reports whether c may stand in the name of a modifier; those of
// mechanisms are made of the same.
func nameByte(c byte, first bool) bool {
	return alpha(c) || !first && (digit(c) || c == '-' || c == '_' || c == '.')
}

func alpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func digit(c byte) bool { return '0' <= c && c <= '9' }

// lower folds ASCII only: names of terms are ASCII (RFC 7208 section 4.6.1).
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}
