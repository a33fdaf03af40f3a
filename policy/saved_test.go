package policy

import (
	"reflect"
	"testing"
)

func TestCutMessage(t *testing.T) {
	for _, tt := range []struct {
		name, saved string
		fields      []Field
		body        string
	}{
		{"as usual", "A: b\nC:d\n\ntext\n", []Field{{"A", " b"}, {"C", "d"}}, "text\r\n"},
		{"CRLF", "A: b\r\nC:d\r\n\r\ntext\r\n\r\nmore", []Field{{"A", " b"}, {"C", "d"}}, "text\r\n\r\nmore"},
		{"folded", "A: b\n\tc\n d:e\nF: g\n\n", []Field{{"A", " b\n\tc\n d:e"}, {"F", " g"}}, ""},
		{"of a mailbox", "From ann@example.org Mon\nA: b\n\nx", []Field{{"A", " b"}}, "x"},
		{"only a header", "A: b", []Field{{"A", " b"}}, ""},
		{"only a body", "\ntext\n", nil, "text\r\n"},
		{"a line that is no field", "A: b\nno field\nC: d\n", []Field{{"A", " b"}}, "no field\r\nC: d\r\n"},
		{"a blank in the name", "A b: c\n", nil, "A b: c\r\n"},
		{"a blank behind the name", "A : c\n\n", []Field{{"A ", " c"}}, ""},
		{"continued from nothing", " a\nB: c\n", nil, " a\r\nB: c\r\n"},
		{"nothing", "", nil, ""},
	} {
		fields, body := CutMessage([]byte(tt.saved))
		if !reflect.DeepEqual(fields, tt.fields) || string(body) != tt.body {
			t.Errorf("%s: %q, %q", tt.name, fields, body)
		}
	}
}
