package headercheck

import "strings"

// Kinds of tokens beside the special characters, which stand for themselves.
const (
	tokenWord   = 256
	tokenQuoted = 257
)

type token struct {
	kind int
	text string
}

// specials are those of RFC 2045 section 5.1.
const specials = `()<>@,;:\"/[]?=`

// tokenizer cuts a structured header value at semicolons (header_token(3)).
type tokenizer struct {
	s string
	i int
}

func isLWSP(c byte) bool    { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }
func isControl(c byte) bool { return c < ' ' || c == 0x7f }

// next returns the first three tokens up to the next semicolon; false: there
// is nothing more.
func (t *tokenizer) next() (tokens []token, ok bool) {
	add := func(kind int, text string) {
		if len(tokens) < 3 {
			tokens = append(tokens, token{kind, text})
		}
	}
	terminated := false
	for t.i < len(t.s) {
		c := t.s[t.i]
		t.i++
		switch {
		case isLWSP(c):
		case c == ';':
			terminated = true
		case c == '(':
			t.comment()
		case c == '"':
			add(tokenQuoted, t.quoted())
		case isControl(c) || strings.IndexByte(specials, c) >= 0:
			add(int(c), string([]byte{c}))
		default:
			start := t.i - 1
			for t.i < len(t.s) && !isLWSP(t.s[t.i]) && !isControl(t.s[t.i]) && strings.IndexByte(specials, t.s[t.i]) < 0 {
				t.i++
			}
			add(tokenWord, t.s[start:t.i])
		}
		if terminated {
			break
		}
	}
	return tokens, len(tokens) > 0 || terminated
}

// comment skips the rest of a comment; comments can stand in each other.
func (t *tokenizer) comment() {
	for level := 1; t.i < len(t.s); {
		c := t.s[t.i]
		t.i++
		switch c {
		case '(':
			level++
		case ')':
			if level--; level == 0 {
				return
			}
		case '\\':
			t.i = min(t.i+1, len(t.s))
		}
	}
}

// quoted reads the rest of a quoted string and unfolds it.
func (t *tokenizer) quoted() string {
	var b []byte
	for t.i < len(t.s) {
		c := t.s[t.i]
		t.i++
		if c == '"' {
			break
		}
		if c == '\n' {
			for len(b) > 0 && isLWSP(b[len(b)-1]) {
				b = b[:len(b)-1]
			}
			continue
		}
		if c == '\\' {
			if t.i == len(t.s) {
				break
			}
			c = t.s[t.i]
			t.i++
		}
		b = append(b, c)
	}
	return string(b)
}
