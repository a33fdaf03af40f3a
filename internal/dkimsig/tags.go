package dkimsig

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Tags is a list of tags (RFC 6376 section 3.2).
type Tags struct {
	list []tag
}

type tag struct{ name, value string }

// maxTags bounds a list.
const maxTags = 64

var errTags = errors.New("the list of tags is malformed")

// ParseTags reads a list. White space around names and values is dropped, that
// within a value stays. With an error it returns what came before the fault.
func ParseTags(s string) (t Tags, err error) {
	for s != "" {
		var one string
		one, s, _ = strings.Cut(s, ";")
		name, value, found := strings.Cut(one, "=")
		name = strings.Trim(name, wsp)
		if !found && name == "" {
			if s != "" && strings.Trim(s, wsp) != "" {
				return t, errTags
			}
			continue
		}
		if !found || !tagName(name) {
			return t, errTags
		}
		if _, twice := t.Get(name); twice {
			return t, fmt.Errorf("the tag %s= stands twice", name)
		}
		if len(t.list) == maxTags {
			return t, errTags
		}
		t.list = append(t.list, tag{name, strings.Trim(value, wsp)})
	}
	return t, nil
}

func tagName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c|0x20 < 'a' || c|0x20 > 'z' {
			if i == 0 || c != '_' && (c < '0' || c > '9') {
				return false
			}
		}
	}
	return s != ""
}

// Get returns a tag's value, and whether there is one.
func (t Tags) Get(name string) (string, bool) {
	for i := range t.list {
		if t.list[i].name == name {
			return t.list[i].value, true
		}
	}
	return "", false
}

// Bare returns a tag's value without any white space, "" when there is none.
func (t Tags) Bare(name string) string {
	v, _ := t.Get(name)
	return bare(v)
}

func bare(s string) string {
	if !strings.ContainsAny(s, wsp) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		if strings.IndexByte(wsp, s[i]) < 0 {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// List returns the parts of a tag's value between colons, none without the tag.
func (t Tags) List(name string) []string {
	v, ok := t.Get(name)
	if !ok {
		return nil
	}
	parts := strings.Split(v, ":")
	for i, p := range parts {
		parts[i] = strings.Trim(p, wsp)
	}
	return parts
}

// Number returns a tag's value as a number, -1 when there is no such tag.
func (t Tags) Number(name string) (int64, error) {
	if _, ok := t.Get(name); !ok {
		return -1, nil
	}
	s := t.Bare(name)
	if len(s) == 0 || len(s) > 76 || strings.Trim(s, "0123456789") != "" {
		return 0, fmt.Errorf("%s= is no number", name)
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil { // too large for us, and allowed
		n = 1<<63 - 1
	}
	return n, nil
}

// Binary returns a tag's value that is written in base64.
func (t Tags) Binary(name string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(t.Bare(name))
	if err != nil || len(b) == 0 {
		return nil, fmt.Errorf("%s= is no base64", name)
	}
	return b, nil
}
