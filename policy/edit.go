package policy

import (
	"slices"
	"strings"
)

// UsableName reports whether s is the name of a field (RFC 5322 section 2.2)
// that fits on a line.
func UsableName(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == ':' {
			return false
		}
	}
	return s != "" && len(s) <= 900
}

// maxValue is what Postfix keeps of a header field while a milter is in use
// (milter(8): header_size_limit is cut to it). A packet holds it.
const maxValue = 60_000

// CleanValue returns the value of a field as a door sends it: one folded value
// without NUL, which would end it, without CR, and without a line that has no
// text, which would end the header. Lines are joined by LF.
func CleanValue(name, v string) string {
	if strings.ContainsAny(v, "\x00\r\n") {
		v = strings.ReplaceAll(strings.ReplaceAll(v, "\r\n", "\n"), "\x00", " ")
		v = strings.ReplaceAll(v, "\r", "\n")
		lines := strings.Split(v, "\n")
		kept := lines[:1]
		for _, l := range lines[1:] {
			if strings.Trim(l, " \t") == "" {
				continue
			}
			if l[0] != ' ' && l[0] != '\t' {
				l = "\t" + l // as Postfix does
			}
			kept = append(kept, l)
		}
		v = strings.Join(kept, "\n")
	}
	if most := maxValue - len(name); len(v) > most {
		v = v[:most]
	}
	return v
}

// OnTop returns a field that a verdict adds as the door writes it.
func (h Header) OnTop() Field {
	return Field{Name: h.Name, Value: " " + CleanValue(h.Name, Printable(h.Value))}
}

// Apply returns the fields as the MTA has them once the door has made the
// edits. Edits that no door can make are passed over, as it does; fields is not
// changed.
func Apply(fields []Field, edits []Edit) []Field {
	type at struct {
		inserts []Field
		last    *Edit // of those that replace or delete
	}
	byField := map[int]*at{}
	for i := range edits {
		e := &edits[i]
		if !e.Fits(len(fields)) {
			continue
		}
		a := byField[e.At]
		if a == nil {
			a = &at{}
			byField[e.At] = a
		}
		if e.Kind == InsertField {
			a.inserts = append(a.inserts, Field{e.Name, CleanValue(e.Name, e.Value)})
		} else {
			a.last = e
		}
	}
	if len(byField) == 0 {
		return fields
	}
	out := make([]Field, 0, len(fields)+len(edits))
	for i := range len(fields) + 1 {
		a := byField[i]
		if a != nil {
			out = append(out, a.inserts...)
		}
		switch {
		case i == len(fields):
		case a == nil || a.last == nil:
			out = append(out, fields[i])
		case a.last.Kind == ReplaceField:
			f := Field{a.last.Name, CleanValue(a.last.Name, a.last.Value)}
			if f.Value == "" && strings.EqualFold(f.Name, fields[i].Name) {
				f.Value = " " // an empty one would delete it
			}
			out = append(out, f)
		}
	}
	return out
}

// Fits reports whether an edit is one of a field that can be made on a message
// of n fields.
func (e *Edit) Fits(n int) bool {
	switch e.Kind {
	case InsertField:
	case ReplaceField, DeleteField:
		n--
	default:
		return false
	}
	return e.At >= 0 && e.At <= n && (e.Kind == DeleteField || UsableName(e.Name))
}

// Replaced returns the body that edits put in the place of a message's, the
// last one, and whether any does.
func Replaced(edits []Edit) (body []byte, ok bool) {
	for _, e := range slices.Backward(edits) {
		if e.Kind == ReplaceBody {
			return e.Body, true
		}
	}
	return nil, false
}
