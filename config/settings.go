package config

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"postern/docs"
)

// Setting is one key with its value in force.
type Setting struct {
	// Section is the table it stands in, "" for the top: "rbl", "chains.inbound",
	// "provider.list[0]".
	Section string
	Key     string
	// Value and Default are as TOML writes them; Default is "" where it depends on
	// others, or where each element has its own.
	Value, Default string
	// Doc is what the reference says of it.
	Doc string
	// File and Line are where it is set; "" and 0 where it is not.
	File string
	Line int
}

// Settings returns all keys in the order of the reference, with what stands in
// tables and lists as far as there are such.
func (c *Config) Settings() []Setting {
	w := settingsWalk{places: c.places, docs: reference()}
	w.table("", reflect.ValueOf(c).Elem(), reflect.ValueOf(Default()).Elem())
	return w.out
}

type settingsWalk struct {
	places map[string]place
	docs   map[string]string
	out    []Setting
}

// table takes the keys of a table, and then the tables in it. without is what has
// the defaults, or invalid.
func (w *settingsWalk) table(section string, v, without reflect.Value) {
	type inner struct {
		name       string
		v, without reflect.Value
	}
	var tables []inner
	for f, tag := range fields(v.Type()) {
		field, none := v.FieldByIndex(f.Index), reflect.Value{}
		if without.IsValid() {
			none = without.FieldByIndex(f.Index)
		}
		if isTable(field.Type()) || field.Kind() == reflect.Slice && isTable(field.Type().Elem()) {
			tables = append(tables, inner{tag, field, none})
			continue
		}
		w.one(section, tag, field, none)
	}
	for _, t := range tables {
		name := join(section, t.name)
		switch t.v.Kind() {
		case reflect.Struct:
			w.table(name, t.v, t.without)
		case reflect.Slice:
			for i := range t.v.Len() {
				w.table(index(name, i), t.v.Index(i), reflect.Value{})
			}
		case reflect.Map:
			keys := t.v.MapKeys()
			slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
			for _, k := range keys {
				if e := reflect.Indirect(t.v.MapIndex(k)); e.Kind() == reflect.Struct {
					w.table(join(name, k.String()), e, reflect.Value{})
				}
			}
		default:
		}
	}
}

func join(section, name string) string {
	if section == "" {
		return name
	}
	return section + "." + name
}

func (w *settingsWalk) one(section, tag string, v, without reflect.Value) {
	key := join(section, tag)
	s := Setting{Section: section, Key: tag, Value: settingText(v), Doc: w.doc(section, tag)}
	if without.IsValid() {
		s.Default = settingText(without)
	}
	if p, ok := w.places[key]; ok {
		s.File, s.Line = p.file, p.line
	}
	w.out = append(w.out, s)
}

// settingText writes a value as TOML does.
func settingText(v reflect.Value) string {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		v = v.Elem()
	}
	if m, ok := reflect.TypeAssert[encoding.TextMarshaler](v); ok {
		text, err := m.MarshalText()
		if err != nil {
			return "?"
		}
		return strconv.Quote(string(text))
	}
	switch v.Kind() {
	case reflect.Slice:
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = settingText(v.Index(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case reflect.Map:
		var parts []string
		for k, e := range v.Seq2() {
			parts = append(parts, fmt.Sprint(k, " = ", settingText(e)))
		}
		slices.Sort(parts)
		return "{ " + strings.Join(parts, ", ") + " }"
	case reflect.String:
		return strconv.Quote(v.String())
	default:
		return fmt.Sprint(v.Interface())
	}
}

// doc is what the reference says of a key. In its sections the names of maps are
// in capitals, and elements of lists have none.
func (w *settingsWalk) doc(section, tag string) string {
	var words []string
	for _, word := range strings.Split(section, ".") {
		word, _, _ = strings.Cut(word, "[")
		words = append(words, word)
	}
	plain := strings.Join(words, ".")
	if text, ok := w.docs[plain+" "+tag]; ok {
		return text
	}
	parent := strings.Join(words[:len(words)-1], ".")
	for _, any := range []string{"NAME", "CONDITION"} {
		if text, ok := w.docs[join(parent, any)+" "+tag]; ok {
			return text
		}
	}
	return ""
}

// reference reads the reference: what it says of a key, by "section key".
var reference = sync.OnceValue(func() map[string]string {
	out := map[string]string{}
	section := ""
	for line := range strings.Lines(docs.Configuration) {
		line = strings.TrimRight(line, "\n")
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.Trim(title, "[]")
			if title == "Top level" {
				section = ""
			}
			continue
		}
		cells := strings.Split(strings.TrimSuffix(strings.TrimPrefix(line, "| "), " |"), " | ")
		if !strings.HasPrefix(line, "| `") || len(cells) < 3 {
			continue
		}
		out[section+" "+strings.Trim(cells[0], "`")] = strings.ReplaceAll(strings.Join(cells[2:], " | "), `\|`, "|")
	}
	return out
})

// Sections returns the sections of settings, each once.
func Sections(all []Setting) []string {
	seen := map[string]bool{}
	for i := range all {
		word, _, _ := strings.Cut(all[i].Section, ".")
		seen[word] = true
	}
	return slices.Sorted(maps.Keys(seen))
}
