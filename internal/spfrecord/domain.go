package spfrecord

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Macro is one "%{...}" (RFC 7208 section 7).
type Macro struct {
	// Letter is one of slodiphcrtv in lower case.
	Letter byte
	// Escape is set when the letter was written in upper case: what it stands
	// for is percent-encoded as in a URL.
	Escape bool
	// Keep is how many labels are kept, from the right; 0 means all.
	Keep int
	// Reverse turns the labels round first.
	Reverse bool
	// Delimiters are the characters that part the value; empty means ".".
	Delimiters string
}

// String returns the macro as it stands in a record.
func (m Macro) String() string {
	var b strings.Builder
	b.WriteString("%{")
	if m.Escape {
		b.WriteByte(m.Letter - 'a' + 'A')
	} else {
		b.WriteByte(m.Letter)
	}
	if m.Keep > 0 {
		b.WriteString(strconv.Itoa(m.Keep))
	}
	if m.Reverse {
		b.WriteByte('r')
	}
	b.WriteString(m.Delimiters + "}")
	return b.String()
}

// apply transforms the value that the letter stands for.
func (m Macro) apply(value string) string {
	delimiters := m.Delimiters
	if delimiters == "" {
		delimiters = "."
	}
	if m.Keep > 0 || m.Reverse || m.Delimiters != "" {
		var parts []string
		for {
			i := strings.IndexAny(value, delimiters)
			if i < 0 {
				break
			}
			parts, value = append(parts, value[:i]), value[i+1:]
		}
		parts = append(parts, value)
		if m.Reverse {
			for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
				parts[i], parts[j] = parts[j], parts[i]
			}
		}
		if m.Keep > 0 && m.Keep < len(parts) {
			parts = parts[len(parts)-m.Keep:]
		}
		value = strings.Join(parts, ".")
	}
	if m.Escape {
		value = escape(value)
	}
	return value
}

// escape percent-encodes all but the unreserved characters of RFC 3986.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; alpha(c) || digit(c) || c == '-' || c == '.' || c == '_' || c == '~' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// part is a piece of a domain-spec: literal text ("%%", "%_" and "%-" are
// kept apart as they were written), or a macro.
type part struct {
	text  string
	macro Macro // when text is empty
}

// DomainSpec is a domain with macros in it (RFC 7208 section 7.1), or the
// value of a modifier. The zero value is empty. It does not change.
type DomainSpec struct {
	parts []part
}

func (d *DomainSpec) empty() bool { return len(d.parts) == 0 }

// String returns the specification as written, macro letters aside.
func (d DomainSpec) String() string {
	var b strings.Builder
	for _, p := range d.parts {
		if p.text != "" {
			b.WriteString(p.text)
		} else {
			b.WriteString(p.macro.String())
		}
	}
	return b.String()
}

// Macros returns the macros in it.
func (d DomainSpec) Macros() []Macro {
	var out []Macro
	for _, p := range d.parts {
		if p.text == "" {
			out = append(out, p.macro)
		}
	}
	return out
}

// ErrNoValue is the error of Expand for a macro whose value is not known.
var ErrNoValue = errors.New("no value for macro")

// maxName is the most bytes of an expanded name; labels are taken off its
// left until it fits (RFC 7208 section 7.3).
const maxName = 253

// Expand returns the name that it stands for. value is asked for each macro
// letter, in lower case; false makes Expand fail with [ErrNoValue].
func (d DomainSpec) Expand(value func(letter byte) (string, bool)) (string, error) {
	name, err := d.ExpandText(value)
	name = strings.TrimSuffix(name, ".")
	for len(name) > maxName {
		_, rest, more := strings.Cut(name, ".")
		if !more {
			break
		}
		name = rest
	}
	return name, err
}

// ExpandText is Expand for what is no name: the whole text is returned.
func (d DomainSpec) ExpandText(value func(letter byte) (string, bool)) (string, error) {
	var b strings.Builder
	for _, p := range d.parts {
		switch p.text {
		case "":
			v, ok := value(p.macro.Letter)
			if !ok {
				return "", fmt.Errorf("%w %s", ErrNoValue, p.macro)
			}
			b.WriteString(p.macro.apply(v))
		case "%%":
			b.WriteByte('%')
		case "%_":
			b.WriteByte(' ')
		case "%-":
			b.WriteString("%20")
		default:
			b.WriteString(p.text)
		}
	}
	return b.String(), nil
}

// ParseExplanation reads the text that exp= leads to (RFC 7208 section 6.2):
// words with macros, parted by blanks. The error is a [*SyntaxError].
func ParseExplanation(text string) (DomainSpec, error) {
	if len(text) > MaxLength {
		return DomainSpec{}, &SyntaxError{Pos: MaxLength + 1, Text: fmt.Sprintf("more than %d bytes", MaxLength)}
	}
	var d DomainSpec
	for at := 0; at < len(text); {
		word, _, more := strings.Cut(text[at:], " ")
		if err := d.parse(word, at, false, true); err != nil {
			err.Pos++
			err.Term = shorten(word)
			return DomainSpec{}, err
		}
		if more {
			d.parts = append(d.parts, part{text: " "})
		}
		at += len(word) + 1
	}
	return d, nil
}

// macroLetters are those of every domain-spec, then those of exp= texts only.
// The value of an unknown modifier may hold all of them.
const (
	macroLetters = "slodiphv"
	expLetters   = "crt"
)

// parse reads a domain-spec, or any macro-string when it need not be a domain.
// at is the position of s in the term.
func (d *DomainSpec) parse(s string, at int, domain, exp bool) *SyntaxError {
	if s == "" && domain {
		return wrong(at, "a domain is missing")
	}
	literal := 0 // where the literal text began
	flush := func(end int) {
		if end > literal {
			d.parts = append(d.parts, part{text: s[literal:end]})
		}
	}
	for i := 0; i < len(s); {
		if c := s[i]; c != '%' {
			if c < 0x21 || c > 0x7e {
				return wrong(at+i, "byte 0x%02x is not allowed", c)
			}
			i++
			continue
		}
		flush(i)
		if i+1 == len(s) {
			return wrong(at+i, "a single %%: write %%%%")
		}
		switch s[i+1] {
		case '%', '_', '-':
			d.parts = append(d.parts, part{text: s[i : i+2]})
			i += 2
		case '{':
			m, n, err := parseMacro(s[i:], exp)
			if err != nil {
				err.Pos += at + i
				return err
			}
			d.parts = append(d.parts, part{macro: m})
			i += n
		default:
			return wrong(at+i, "%%%c is no macro", printable(s[i+1]))
		}
		literal = i
	}
	flush(len(s))
	if domain {
		return d.checkEnd(s, at)
	}
	return nil
}

// checkEnd holds a domain-spec to its end: a macro, or a dot and a label with
// a letter in it (RFC 7208 section 7.1, domain-end).
func (d *DomainSpec) checkEnd(s string, at int) *SyntaxError {
	whole := d.parts[len(d.parts)-1].text
	if whole == "" || whole[0] == '%' {
		return nil
	}
	last := strings.TrimSuffix(whole, ".")
	dot := strings.LastIndexByte(last, '.')
	if dot < 0 {
		return wrong(at, "%q is not a domain of at least two labels", shorten(s))
	}
	if label := last[dot+1:]; !toplabel(label) {
		return wrong(at+len(s)-len(whole)+dot+1, "%q cannot be the last label of a domain", shorten(label))
	}
	return nil
}

func toplabel(s string) bool {
	letters := false
	for i := range len(s) {
		switch c := s[i]; {
		case alpha(c):
			letters = true
		case digit(c):
		case c == '-' && i > 0 && i < len(s)-1:
			letters = true // "1-2" has none, and is allowed
		default:
			return false
		}
	}
	return letters
}

// parseMacro reads the "%{...}" that s begins with.
func parseMacro(s string, exp bool) (m Macro, n int, err *SyntaxError) {
	end := strings.IndexByte(s, '}')
	if end < 0 {
		return m, 0, wrong(0, "a macro without its closing brace")
	}
	if end == 2 {
		return m, 0, wrong(2, "an empty macro")
	}
	c := s[2]
	m.Letter = c | 0x20
	switch {
	case !alpha(c):
		return m, 0, wrong(2, "%q is no macro letter", printable(c))
	case strings.IndexByte(macroLetters, m.Letter) >= 0:
	case strings.IndexByte(expLetters, m.Letter) < 0:
		return m, 0, wrong(2, "%q is no macro letter", c)
	case !exp:
		return m, 0, wrong(2, "%q is allowed in the text of an explanation only", c)
	}
	m.Escape = c < 'a'
	i := 3
	for ; i < end && digit(s[i]); i++ {
	}
	if i > 3 {
		keep, e := strconv.Atoi(strings.TrimLeft(s[3:i], "0"))
		switch {
		case e != nil && strings.Trim(s[3:i], "0") == "":
			return m, 0, wrong(3, "the number of labels must not be 0")
		case e != nil || keep > maxName:
			keep = maxName // more than any name has: all of them
		}
		m.Keep = keep
	}
	if i < end && s[i]|0x20 == 'r' {
		m.Reverse = true
		i++
	}
	for j := i; j < end; j++ {
		if strings.IndexByte(".-+,/_=", s[j]) < 0 {
			return m, 0, wrong(j, "%q is no delimiter of a macro", printable(s[j]))
		}
	}
	m.Delimiters = s[i:end]
	return m, end + 1, nil
}

// printable keeps odd bytes out of messages.
func printable(c byte) byte {
	if c < ' ' || c > '~' {
		return '?'
	}
	return c
}
