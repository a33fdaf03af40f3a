// Package fieldtext writes what strangers have said into header fields, so that
// it cannot break out of its place (RFC 5322 section 3.2).
package fieldtext

import "strings"

// AppendWord appends s as it is where it is a dot-atom (section 3.2.3) of the
// characters in names and addresses, else as a quoted-string.
func AppendWord(b []byte, s string) []byte {
	plain := s != "" && s[0] != '.' && s[len(s)-1] != '.' && !strings.Contains(s, "..")
	for i := 0; plain && i < len(s); i++ {
		c := s[i]
		plain = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_'
	}
	if plain {
		return append(b, s...)
	}
	return AppendQuoted(b, s)
}

// AppendQuoted appends s as a quoted-string (section 3.2.4). What is not
// printable ASCII becomes "?".
func AppendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		b = appendEscaped(b, s[i], s[i] == '"')
	}
	return append(b, '"')
}

// AppendComment appends s as the text of a comment (section 3.2.2), without its
// parentheses. What is not printable ASCII becomes "?".
func AppendComment(b []byte, s string) []byte {
	for i := range len(s) {
		b = appendEscaped(b, s[i], s[i] == '(' || s[i] == ')')
	}
	return b
}

func appendEscaped(b []byte, c byte, special bool) []byte {
	switch {
	case c < ' ' || c > '~':
		return append(b, '?')
	case special || c == '\\':
		b = append(b, '\\')
	}
	return append(b, c)
}
