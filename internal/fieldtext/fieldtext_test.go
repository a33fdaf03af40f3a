package fieldtext

import (
	"strings"
	"testing"
)

func TestAppend(t *testing.T) {
	for _, tt := range []struct{ s, word, quoted, comment string }{
		{"mx1.Example_2.org", "mx1.Example_2.org", `"mx1.Example_2.org"`, "mx1.Example_2.org"},
		{"", `""`, `""`, ""},
		{".a", `".a"`, `".a"`, ".a"},
		{"a.", `"a."`, `"a."`, "a."},
		{"a..b", `"a..b"`, `"a..b"`, "a..b"},
		{"2001:db8::7", `"2001:db8::7"`, `"2001:db8::7"`, "2001:db8::7"},
		{`a"b\c(d)`, `"a\"b\\c(d)"`, `"a\"b\\c(d)"`, `a"b\\c\(d\)`},
		{"a\r\nb\x7f\xff", `"a??b??"`, `"a??b??"`, "a??b??"},
	} {
		for i, got := range []string{string(AppendWord(nil, tt.s)), string(AppendQuoted(nil, tt.s)), string(AppendComment(nil, tt.s))} {
			if want := []string{tt.word, tt.quoted, tt.comment}[i]; got != want {
				t.Errorf("%q: %s, want %s", tt.s, got, want)
			}
		}
	}
}

// Nothing ends a line, a quoted-string or a comment early.
func FuzzAppend(f *testing.F) {
	f.Add(`a"b\c(d)` + "\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		quoted, comment := string(AppendQuoted(nil, s)), string(AppendComment(nil, s))
		if strings.ContainsAny(quoted+comment, "\r\n\x00") || open(quoted[1:len(quoted)-1], `"`) || open(comment, "()") {
			t.Fatalf("%q: %s, %s", s, quoted, comment)
		}
	})
}

// open reports whether one of chars stands in s without a backslash before it,
// or s ends in the middle of an escape.
func open(s, chars string) bool {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			if i++; i == len(s) {
				return true
			}
		case strings.IndexByte(chars, s[i]) >= 0:
			return true
		}
	}
	return false
}
