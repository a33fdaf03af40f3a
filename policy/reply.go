package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxReplyText is the most bytes that Reply.Text may have after expansion.
// Postfix cuts a whole reply line at 510 bytes, and puts the address and the
// name of the restriction list in front of our text.
const MaxReplyText = 320

// Reply is what the remote client reads. The zero Reply is none.
type Reply struct {
	Code     int    `json:"code"`     // 4xx or 5xx
	Enhanced string `json:"enhanced"` // "5.7.1", its first digit that of Code (RFC 3463)
	Text     string `json:"text"`     // one line of printable ASCII
}

// String returns the reply as it stands on the wire, without the line end.
func (r Reply) String() string {
	b := make([]byte, 0, 128) // usually enough, and not on the heap
	b = strconv.AppendInt(b, int64(r.Code), 10)
	b = append(b, ' ')
	b = append(b, r.Enhanced...)
	b = append(b, ' ')
	return string(append(b, r.Text...))
}

// Template is a [Reply] with placeholders in braces: "554 5.7.1 {client} is
// listed by {list}". It is made once, at load, and safe for concurrent use.
// The zero Template expands to the zero Reply.
type Template struct {
	code     int
	enhanced string
	parts    []string // literal, name, literal, name, ..., literal
	source   string
}

// ParseTemplate reads "[CODE] [ENHANCED] TEXT". What is left out comes from
// def, whose code also fixes the class: a template for a 5xx reply cannot
// hold a 4xx code. The placeholders that may stand in TEXT are named by vars;
// "{{" stands for a brace. The error names the first thing that is wrong.
func ParseTemplate(s string, def Reply, vars ...string) (*Template, error) {
	t := &Template{code: def.Code, enhanced: def.Enhanced, source: s}
	text := s
	word, rest, _ := strings.Cut(text, " ")
	if len(word) == 3 && allDigits(word) {
		t.code, _ = strconv.Atoi(word)
		if t.code/100 != def.Code/100 {
			return nil, fmt.Errorf("reply code %s: must be %dxx here", word, def.Code/100)
		}
		// RFC 5321 section 4.2.1: the second digit is 0 to 5.
		if word[1] > '5' {
			return nil, fmt.Errorf("reply code %s is not an SMTP code (RFC 5321 section 4.2.1)", word)
		}
		text = rest
		word, rest, _ = strings.Cut(text, " ")
	}
	if looksEnhanced(word) {
		if word[0] != byte('0'+t.code/100) {
			return nil, fmt.Errorf("enhanced code %s does not go with reply code %d", word, t.code)
		}
		t.enhanced, text = word, rest
	} else if t.enhanced == "" || int(t.enhanced[0]-'0') != t.code/100 {
		t.enhanced = fmt.Sprintf("%d.7.1", t.code/100)
	}
	if strings.TrimSpace(text) == "" {
		return nil, fmt.Errorf("reply %q has no text: Postfix reads a bare code as permission", s)
	}
	if len(text) > MaxReplyText {
		return nil, fmt.Errorf("reply text has %d bytes, at most %d fit", len(text), MaxReplyText)
	}
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return nil, fmt.Errorf("reply text has byte 0x%02x at %d: only printable ASCII is safe in an SMTP reply", text[i], i+1)
		}
	}
	var lit strings.Builder
	for text != "" {
		i := strings.IndexAny(text, "{}")
		if i < 0 {
			lit.WriteString(text)
			break
		}
		lit.WriteString(text[:i])
		if strings.HasPrefix(text[i:], "{{") || strings.HasPrefix(text[i:], "}}") {
			lit.WriteByte(text[i])
			text = text[i+2:]
			continue
		}
		end := strings.IndexByte(text[i:], '}')
		if end <= 0 { // 0: a closing brace
			return nil, fmt.Errorf("unpaired brace in reply %q (a literal brace is written twice)", s)
		}
		name := text[i+1 : i+end]
		if !slices.Contains(vars, name) {
			return nil, fmt.Errorf("unknown placeholder {%s} (known here: %s)", name, strings.Join(vars, ", "))
		}
		t.parts = append(t.parts, lit.String(), name)
		lit.Reset()
		text = text[i+end+1:]
	}
	t.parts = append(t.parts, lit.String())
	return t, nil
}

// MustTemplate is ParseTemplate for templates that are part of the program.
func MustTemplate(s string, def Reply, vars ...string) *Template {
	t, err := ParseTemplate(s, def, vars...)
	if err != nil {
		panic(err)
	}
	return t
}

// String returns the template as written.
func (t *Template) String() string { return t.source }

// Uses reports whether the placeholder stands in the template.
func (t *Template) Uses(name string) bool {
	for i := 1; i < len(t.parts); i += 2 {
		if t.parts[i] == name {
			return true
		}
	}
	return false
}

// Expand fills in the placeholders. What value returns may be a stranger's
// text: everything but printable ASCII becomes "?", and the whole is cut at
// MaxReplyText.
func (t *Template) Expand(value func(name string) string) Reply {
	if t.code == 0 {
		return Reply{}
	}
	var b strings.Builder
	b.Grow(len(t.source) + 16)
	for i, part := range t.parts {
		if i%2 == 0 {
			b.WriteString(part)
		} else {
			b.WriteString(Printable(value(part)))
		}
	}
	text := strings.TrimSpace(b.String())
	if len(text) > MaxReplyText {
		text = text[:MaxReplyText-3] + "..."
	}
	if text == "" {
		text = "Access denied"
	}
	return Reply{Code: t.code, Enhanced: t.enhanced, Text: text}
}

// Printable returns s with every byte outside printable ASCII replaced by
// "?" and white space folded to one blank. What is printable ASCII already
// stays as it is, runs of blanks too.
func Printable(s string) string {
	clean := true
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		switch c := s[i]; {
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			if len(b) > 0 && b[len(b)-1] != ' ' {
				b = append(b, ' ')
			}
		case c < ' ' || c > '~':
			b = append(b, '?')
		default:
			b = append(b, c)
		}
	}
	return string(b)
}

func allDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// looksEnhanced reports whether s has the form of an enhanced status code:
// class 2, 4 or 5, then two numbers of one to three digits (RFC 3463 section 2).
func looksEnhanced(s string) bool {
	f := strings.Split(s, ".")
	return len(f) == 3 && len(f[0]) == 1 && strings.Contains("245", f[0]) &&
		allDigits(f[1]) && len(f[1]) <= 3 && allDigits(f[2]) && len(f[2]) <= 3
}
