package dkimsig

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strings"
)

// Field is one header field as it was received: with its name, the colon, and
// CRLF at the end of each line.
type Field string

// Name returns its name, as written.
func (f Field) Name() string {
	name, _, _ := strings.Cut(string(f), ":")
	return strings.TrimRight(name, wsp)
}

// Value returns all that follows the colon, without the last CRLF.
func (f Field) Value() string {
	_, value, _ := strings.Cut(string(f), ":")
	return strings.TrimSuffix(value, "\r\n")
}

// Fields are the header fields of a message, in their order. They do not
// change; the methods are safe for concurrent use.
type Fields struct {
	all   []Field
	last  map[string]int // of a name in lower case, the last one
	above []int          // of a field: the one above it with its name, -1 for none
}

// NewFields takes a header apart.
func NewFields(header string) *Fields {
	n := strings.Count(header, "\n")
	f := &Fields{all: make([]Field, 0, n), last: make(map[string]int, min(n, 64)), above: make([]int, 0, n)}
	for header != "" {
		end := 0
		for {
			i := strings.Index(header[end:], "\r\n")
			if i < 0 {
				end = len(header)
				break
			}
			if end += i + 2; end == len(header) || header[end] != ' ' && header[end] != '\t' {
				break
			}
		}
		field := Field(header[:end])
		name := strings.ToLower(field.Name())
		above, some := f.last[name]
		if !some {
			above = -1
		}
		f.above, f.last[name] = append(f.above, above), len(f.all)
		f.all = append(f.all, field)
		header = header[end:]
	}
	return f
}

// All returns the fields. They are not to be changed.
func (f *Fields) All() []Field { return f.all }

// Named returns the fields of a name, in their order.
func (f *Fields) Named(name string) []Field {
	var out []Field
	for i := f.find(name); i >= 0; i = f.above[i] {
		out = append(out, f.all[i])
	}
	slices.Reverse(out)
	return out
}

// find returns the last field of a name, -1 for none.
func (f *Fields) find(name string) int {
	if i, ok := f.last[strings.ToLower(name)]; ok {
		return i
	}
	return -1
}

// Count returns how many fields of a name there are.
func (f *Fields) Count(name string) (n int) {
	for i := f.find(name); i >= 0; i = f.above[i] {
		n++
	}
	return n
}

// Hash returns the SHA-256 of the named fields and of own, the signature's own
// field with an empty signature (RFC 6376 section 3.7). Of fields of one name
// the last one comes first; a name for which there is none, or none is left,
// adds nothing.
func (f *Fields) Hash(names []string, c Canon, own Field) [sha256.Size]byte {
	next := make(map[string]int, len(names)) // which field of a name is next
	buf := make([]byte, 0, 2048)
	for _, name := range names {
		name = strings.ToLower(name)
		at, begun := next[name]
		if !begun {
			at = f.find(name)
		}
		if at >= 0 {
			buf = AppendField(buf, string(f.all[at]), c)
			at = f.above[at]
		}
		next[name] = at
	}
	buf = AppendField(buf, string(own), c)
	return sha256.Sum256(bytes.TrimSuffix(buf, crlf))
}

// HashSeal returns what an ARC-Seal signs: the fields in their order, and own,
// the seal with an empty signature, all relaxed (RFC 8617 section 5.1.1).
func HashSeal(fields []Field, own Field) [sha256.Size]byte {
	buf := make([]byte, 0, 4096)
	for _, f := range fields {
		buf = AppendField(buf, string(f), Relaxed)
	}
	buf = AppendField(buf, string(own), Relaxed)
	return sha256.Sum256(buf[:len(buf)-2])
}

// Unsigned returns a signature field with the value of b= taken out.
func Unsigned(f Field) Field {
	s := string(f)
	from := strings.IndexByte(s, ':') + 1
	for from < len(s) {
		end := strings.IndexByte(s[from:], ';')
		if end < 0 {
			end = len(s)
		} else {
			end += from
		}
		name, value, found := strings.Cut(s[from:end], "=")
		if found && strings.Trim(name, wsp) == "b" {
			from = end - len(value)
			if end == len(s) && strings.HasSuffix(value, "\r\n") {
				end -= 2
			}
			return Field(s[:from] + s[end:])
		}
		from = end + 1
	}
	return f
}

const wsp = " \t\r\n"
