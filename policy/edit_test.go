package policy

import (
	"slices"
	"strings"
	"testing"
)

func TestApply(t *testing.T) {
	fields := []Field{{"From", " a"}, {"To", " b"}, {"Subject", " c"}}
	for _, tt := range []struct {
		name  string
		edits []Edit
		want  []Field
	}{
		{"none", nil, fields},
		{
			"on top, in order",
			[]Edit{{Kind: InsertField, Name: "X", Value: " 1"}, {Kind: InsertField, Name: "Y", Value: " 2"}},
			[]Field{{"X", " 1"}, {"Y", " 2"}, {"From", " a"}, {"To", " b"}, {"Subject", " c"}},
		},
		{"at the end", []Edit{{Kind: InsertField, At: 3, Name: "X", Value: "1"}}, []Field{{"From", " a"}, {"To", " b"}, {"Subject", " c"}, {"X", "1"}}},
		{
			"the last one counts",
			[]Edit{{Kind: DeleteField, At: 1}, {Kind: ReplaceField, At: 1, Name: "Cc", Value: " d"}, {Kind: InsertField, At: 1, Name: "X", Value: " 1"}},
			[]Field{{"From", " a"}, {"X", " 1"}, {"Cc", " d"}, {"Subject", " c"}},
		},
		{"taken out", []Edit{{Kind: DeleteField, At: 0}, {Kind: DeleteField, At: 2}}, []Field{{"To", " b"}}},
		{"emptied", []Edit{{Kind: ReplaceField, At: 2, Name: "subject"}}, []Field{{"From", " a"}, {"To", " b"}, {"subject", " "}}},
		{"cleaned", []Edit{{Kind: ReplaceField, At: 2, Name: "Subject", Value: " a\r\nb\r\n \r\n\tc\x00"}}, []Field{{"From", " a"}, {"To", " b"}, {"Subject", " a\n\tb\n\tc "}}},
		{"cannot be made", []Edit{{Kind: DeleteField, At: 3}, {Kind: InsertField, At: 4, Name: "X"}, {Kind: ReplaceField, At: -1, Name: "X"}, {Kind: InsertField, Name: "a b"}, {Kind: AddRecipient}}, fields},
	} {
		if got := Apply(fields, tt.edits); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
	if b, ok := Replaced([]Edit{{Kind: ReplaceBody, Body: []byte("a")}, {Kind: InsertField}, {Kind: ReplaceBody, Body: []byte("b")}}); string(b) != "b" || !ok {
		t.Error("the last body counts")
	}
	if _, ok := Replaced(nil); ok {
		t.Error("no body")
	}
}

func TestCleanValues(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{" text", " text"},
		{"", ""},
		{" a\n b", " a\n b"},
		{" a\r\n b", " a\n b"},
		{" a\rb", " a\n\tb"},
		{" a\nX-Evil: b", " a\n\tX-Evil: b"},
		{" a\n\n\n b\n", " a\n b"},
		{" a\n \t\n b", " a\n b"},
		{"\n folded from the start", "\n folded from the start"},
		{" a\x00b", " a b"},
		{" gr\u00fcn \xff", " gr\u00fcn \xff"},
	} {
		if got := CleanValue("X", tt.in); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.in, got, tt.want)
		}
	}
	if got := CleanValue("X-Long", strings.Repeat("x", 70_000)); len(got)+len("X-Long") != maxValue {
		t.Errorf("a long one has %d bytes", len(got))
	}
}

// FuzzCleanValue: whatever comes in is one field of one header, and stays it.
func FuzzCleanValue(f *testing.F) {
	f.Add("a\r\nb\x00\n\n\nc")
	f.Fuzz(func(t *testing.T, v string) {
		got := CleanValue("X", v)
		if strings.ContainsAny(got, "\x00\r") || len(got) > maxValue {
			t.Fatalf("%q became %q", v, got)
		}
		for i, line := range strings.Split(got, "\n") {
			if i > 0 && (line == "" || line[0] != ' ' && line[0] != '\t') {
				t.Fatalf("%q became %q, which ends the field", v, got)
			}
		}
	})
}
