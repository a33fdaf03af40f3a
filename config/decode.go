package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"postern/internal/conf"
)

// place is where a key stands.
type place struct {
	file         string
	line, column int
}

// decoder puts TOML documents, one after the other, into one value. Unlike
// the library's own decoder it goes on after a fault, so that all are found,
// and it remembers where each key stands. Later documents override scalars
// and lists of earlier ones; tables merge.
type decoder struct {
	root   reflect.Value
	faults conf.Faults
	places map[string]place
	// fresh returns the value that a new element of a map of tables begins
	// with, by the map's key ("chains").
	fresh func(table string) any
	// elems are the elements of maps, which cannot be set in place, by their
	// keys; order is that in which they were found, an inner one behind the
	// one that holds it.
	elems map[string]*element
	order []*element

	file    string
	parser  unstable.Parser
	started map[string]bool // lists of tables that this file has begun
}

// element is one element of a map.
type element struct {
	of    reflect.Value // the map
	name  string
	value reflect.Value // a pointer to it
}

func newDecoder(v any, fresh func(string) any) *decoder {
	return &decoder{root: reflect.ValueOf(v).Elem(), places: make(map[string]place), fresh: fresh, elems: make(map[string]*element)}
}

// document takes one file. A file that is not TOML gives one fault and
// changes nothing.
func (d *decoder) document(file string, text []byte) {
	d.file, d.started = file, make(map[string]bool)
	// The whole document first: a key that is given twice shows only there.
	var whole map[string]any
	if err := toml.Unmarshal(text, &whole); err != nil {
		if de := (*toml.DecodeError)(nil); errors.As(err, &de) {
			line, column := de.Position()
			d.faults.Filef(file, line, column, "%s", strings.TrimPrefix(de.Error(), "toml: "))
			return
		}
		d.faults.Filef(file, 0, 0, "%s", strings.TrimPrefix(err.Error(), "toml: "))
		return
	}
	d.parser.Reset(text)
	key, target := "", d.root
	for d.parser.NextExpression() {
		e := d.parser.Expression()
		switch e.Kind {
		case unstable.Table:
			key, target = d.table(d.root, "", e.Key(), false)
		case unstable.ArrayTable:
			key, target = d.table(d.root, "", e.Key(), true)
		case unstable.KeyValue:
			if target.IsValid() {
				d.keyValue(target, key, e)
			}
		default: // a comment
		}
	}
}

// finish writes back what could not be set in place.
func (d *decoder) finish() {
	for _, e := range slices.Backward(d.order) {
		if e.of.IsNil() {
			e.of.Set(reflect.MakeMap(e.of.Type()))
		}
		e.of.SetMapIndex(reflect.ValueOf(e.name), e.value.Elem())
	}
}

func (d *decoder) at(r unstable.Range) place {
	s := d.parser.Shape(r).Start
	return place{d.file, s.Line, s.Column}
}

func (d *decoder) fault(p place, key, format string, args ...any) {
	d.faults = append(d.faults, &conf.Fault{Key: key, File: p.file, Line: p.line, Column: p.column, Text: fmt.Sprintf(format, args...)})
}

// table finds the table of a header; an invalid value when there is none.
func (d *decoder) table(v reflect.Value, key string, parts unstable.Iterator, list bool) (string, reflect.Value) {
	for parts.Next() {
		n := parts.Node()
		p := d.at(n.Raw)
		key, v = d.step(v, key, string(n.Data), p)
		if !v.IsValid() {
			return key, v
		}
		switch {
		case v.Kind() == reflect.Slice && isTable(v.Type().Elem()):
			last := parts.IsLast()
			if last && list {
				if !d.started[key] {
					d.started[key] = true
					v.SetLen(0)
				}
				v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
			}
			if v.Len() == 0 || last && !list {
				d.fault(p, key, "this is a list of tables: [[%s]]", key)
				return key, reflect.Value{}
			}
			key = index(key, v.Len()-1)
			v = v.Index(v.Len() - 1)
			d.places[key] = p
		case !isTable(v.Type()):
			d.fault(p, key, "this is a value, not a table; %s", example(v.Type()))
			return key, reflect.Value{}
		case list && parts.IsLast():
			d.fault(p, key, "this is one table, not a list of them: [%s]", key)
			return key, reflect.Value{}
		}
	}
	return key, v
}

// step goes from a table to what a name in it stands for.
func (d *decoder) step(v reflect.Value, key, name string, p place) (string, reflect.Value) {
	full := name
	if key != "" {
		full = key + "." + name
	}
	if _, ok := d.places[full]; !ok || d.places[full].file != p.file {
		d.places[full] = p
	}
	if v.Kind() == reflect.Map {
		if e, ok := d.elems[full]; ok {
			return full, e.value.Elem()
		}
		e := reflect.New(v.Type().Elem())
		if old := v.MapIndex(reflect.ValueOf(name)); old.IsValid() {
			e.Elem().Set(old)
		} else if f := d.fresh(key); f != nil {
			e.Elem().Set(reflect.ValueOf(f))
		}
		d.elems[full] = &element{v, name, e}
		d.order = append(d.order, d.elems[full])
		return full, e.Elem()
	}
	f, ok := d.field(v, name)
	if !ok {
		text := "unknown key"
		if near := Nearest(name, keyNames(v.Type())); near != "" {
			text += fmt.Sprintf("; did you mean %q?", near)
		} else {
			text += fmt.Sprintf(" (one of %s)", strings.Join(keyNames(v.Type()), ", "))
		}
		d.fault(p, full, "%s", text)
		return full, reflect.Value{}
	}
	return full, f
}

// field finds a field by its name in TOML, in embedded structs too.
func (d *decoder) field(v reflect.Value, name string) (reflect.Value, bool) {
	for f, tag := range fields(v.Type()) {
		if tag == name {
			return v.FieldByIndex(f.Index), true
		}
	}
	return reflect.Value{}, false
}

// fields yields the fields of a struct that can be set, with their names.
func fields(t reflect.Type) func(yield func(reflect.StructField, string) bool) {
	return func(yield func(reflect.StructField, string) bool) {
		for _, f := range reflect.VisibleFields(t) {
			tag, ok := f.Tag.Lookup("toml")
			if !ok || tag == "-" || f.Anonymous {
				continue
			}
			if !yield(f, tag) {
				return
			}
		}
	}
}

func keyNames(t reflect.Type) []string {
	var out []string
	for _, tag := range fields(t) {
		out = append(out, tag)
	}
	slices.Sort(out)
	return out
}

func isTable(t reflect.Type) bool {
	if reflect.PointerTo(t).Implements(textUnmarshaler) {
		return false
	}
	return t.Kind() == reflect.Struct || t.Kind() == reflect.Map
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// keyValue takes "a.b = value" below a table.
func (d *decoder) keyValue(v reflect.Value, key string, e *unstable.Node) {
	parts := e.Key()
	var p place
	for parts.Next() {
		n := parts.Node()
		p = d.at(n.Raw)
		if !isTable(v.Type()) {
			d.fault(p, key, "this is a value, not a table")
			return
		}
		if key, v = d.step(v, key, string(n.Data), p); !v.IsValid() {
			return
		}
	}
	d.places[key] = p
	d.value(v, key, e.Value(), p)
}

// value sets v from a node; p is where its key or the node itself stands.
func (d *decoder) value(v reflect.Value, key string, n *unstable.Node, p place) {
	if n.Raw.Length > 0 {
		p = d.at(n.Raw)
	}
	if v.Kind() == reflect.Pointer {
		e := reflect.New(v.Type().Elem())
		before := len(d.faults)
		if d.value(e.Elem(), key, n, p); len(d.faults) == before {
			v.Set(e)
		}
		return
	}
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		if n.Kind != unstable.String {
			d.mismatch(p, key, v, n)
		} else if err := u.UnmarshalText(n.Data); err != nil {
			d.fault(p, key, "%v", err)
		}
		return
	}
	switch {
	case v.Kind() == reflect.Slice && n.Kind == unstable.Array:
		d.list(v, key, n, p)
	case isTable(v.Type()) && n.Kind == unstable.InlineTable:
		for it := n.Children(); it.Next(); {
			d.keyValue(v, key, it.Node())
		}
	case v.Kind() == reflect.String && n.Kind == unstable.String:
		v.SetString(string(n.Data))
	case v.Kind() == reflect.Bool && n.Kind == unstable.Bool:
		v.SetBool(string(n.Data) == "true")
	case (v.Kind() == reflect.Int || v.Kind() == reflect.Int64) && n.Kind == unstable.Integer:
		i, err := strconv.ParseInt(strings.ReplaceAll(string(n.Data), "_", ""), 0, v.Type().Bits())
		if err != nil {
			d.fault(p, key, "%s is too large a number", n.Data)
			return
		}
		v.SetInt(i)
	default:
		d.mismatch(p, key, v, n)
	}
}

func (d *decoder) list(v reflect.Value, key string, n *unstable.Node, p place) {
	out := reflect.MakeSlice(v.Type(), 0, 4)
	for it := n.Children(); it.Next(); {
		c := it.Node()
		if c.Kind == unstable.Comment {
			continue
		}
		at := p
		if c.Raw.Length > 0 {
			at = d.at(c.Raw)
		}
		full := index(key, out.Len())
		d.places[full] = at
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(e, full, c, at)
		out = reflect.Append(out, e)
	}
	v.Set(out)
}

func (d *decoder) mismatch(p place, key string, v reflect.Value, n *unstable.Node) {
	d.fault(p, key, "%s does not fit here: %s", kindName(n.Kind), example(v.Type()))
}

func kindName(k unstable.Kind) string {
	switch k {
	case unstable.String:
		return "a text"
	case unstable.Integer, unstable.Float:
		return "a number"
	case unstable.Bool:
		return "true or false"
	case unstable.Array:
		return "a list"
	case unstable.InlineTable:
		return "a table"
	default:
		return "a date"
	}
}

// example shows how a value of the type is written.
func example(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[conf.Duration]():
		return `a duration is written as "90s", "5m" or "36d"`
	case t.Kind() == reflect.Pointer:
		return example(t.Elem())
	case reflect.PointerTo(t).Implements(textUnmarshaler) || t.Kind() == reflect.String:
		return `a text is written as "..."`
	case t.Kind() == reflect.Int || t.Kind() == reflect.Int64:
		return "a whole number is written as 10"
	case t.Kind() == reflect.Bool:
		return "it is true or false"
	case t.Kind() == reflect.Slice:
		return `a list is written as ["...", "..."]`
	}
	return "a table is written as [name]"
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }

// locate fills in where the keys of faults stand.
func (d *decoder) locate(fs conf.Faults) { locate(d.places, fs) }

func locate(places map[string]place, fs conf.Faults) {
	for _, f := range fs {
		if f.File != "" || f.Key == "" {
			continue
		}
		for key := f.Key; key != ""; key = parent(key) {
			if p, ok := places[key]; ok {
				f.File, f.Line, f.Column = p.file, p.line, p.column
				break
			}
		}
	}
}

func parent(key string) string {
	i := strings.LastIndexAny(key, ".[")
	if i < 0 {
		return ""
	}
	return key[:i]
}

// Nearest returns the word of a list that another may be a misspelling of, ""
// when none is close.
func Nearest(word string, of []string) string {
	best, least := "", max(2, len(word)/3)+1
	for _, w := range of {
		if n := distance(strings.ToLower(word), w); n < least {
			best, least = w, n
		}
	}
	return best
}

// distance is the number of letters to insert, remove, change or swap with
// their neighbour (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
