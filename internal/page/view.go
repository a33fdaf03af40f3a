package page

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// View is what a page shows, from top to bottom.
type View struct {
	// Title stands in place of the page's; "" leaves that.
	Title string
	// Intro is a sentence or two under it.
	Intro  string
	Blocks []Block
}

// Add puts blocks at the end.
func (v *View) Add(blocks ...Block) { v.Blocks = append(v.Blocks, blocks...) }

// Block is a part of a view: [Tiles], [Notice], [Facts], [Table], [Form], [Text],
// [Networks], [Links] or [Actions].
type Block interface {
	// Kind names how the console shows it.
	Kind() string
}

// Tone is what a word, a number or a line means for who looks at it. Colour is
// never the only sign of it: the words say the same.
type Tone string

// The tones.
const (
	Plain Tone = ""
	Good  Tone = "good"
	Warn  Tone = "warn"
	Bad   Tone = "bad"
	Quiet Tone = "quiet"
)

// Notice is something to be seen first.
type Notice struct {
	Tone Tone
	Text string
	// Lines are more of it, each on its own line.
	Lines []string
	// Buttons are what can be done about it.
	Buttons []Button
}

// Tiles are a few numbers side by side.
type Tiles []Tile

// Tile is one number with its name.
type Tile struct {
	Name, Value, Note string
	Tone              Tone
	Href              string
}

// Facts are names and values.
type Facts struct {
	Title string
	Rows  []Fact
}

// Fact is one of them.
type Fact struct {
	Name  string
	Value Cell
}

// Add puts a fact at the end, unless its text is empty.
func (f *Facts) Add(name, text string) {
	if text != "" {
		f.Rows = append(f.Rows, Fact{name, Cell{Text: text}})
	}
}

// AddCell puts a fact at the end.
func (f *Facts) AddCell(name string, c Cell) { f.Rows = append(f.Rows, Fact{name, c}) }

// Table is a table. Its first column names the row.
type Table struct {
	Title string
	// Note is a sentence under the title.
	Note    string
	Columns []string
	Rows    [][]Cell
	// Empty is what is said in place of a table without rows; "" for "None.".
	Empty string
	// More says that there are more rows than are shown.
	More string
	// Live is set for what the console adds to at its top as it happens, see
	// [Event].
	Live bool
}

// Add puts a row at the end.
func (t *Table) Add(cells ...Cell) { t.Rows = append(t.Rows, cells) }

// Cell is what stands in one place of a table.
type Cell struct {
	Text string
	// Note is a line below it, in smaller letters.
	Note string
	// Href makes the text a link within the console: see [Link].
	Href string
	Tone Tone
	// Code is set for what a machine reads: addresses, patterns, names.
	Code bool
	// Number is set for what is aligned at its right.
	Number bool
	// Badge is set for a word that says a state.
	Badge bool
	// Time is shown as how long ago or ahead it is, beside Text.
	Time    time.Time
	Buttons []Button
}

// T is a cell of plain text.
func T(format string, args ...any) Cell {
	if len(args) == 0 {
		return Cell{Text: format}
	}
	return Cell{Text: fmt.Sprintf(format, args...)}
}

// Code is a cell of what a machine reads.
func Code(text string) Cell { return Cell{Text: text, Code: true} }

// N is a cell of a number.
func N[I int | int64 | uint64 | int32 | uint32](n I) Cell {
	return Cell{Text: Thousands(int64(n)), Number: true} //nolint:gosec // counts
}

// State is a cell of a word that says a state.
func State(tone Tone, text string) Cell { return Cell{Text: text, Tone: tone, Badge: true} }

// At is a cell of a time; the zero time is "-".
func At(t time.Time) Cell {
	if t.IsZero() {
		return Cell{Text: "-", Tone: Quiet}
	}
	return Cell{Time: t}
}

// Thousands writes a number with its thousands apart.
func Thousands(n int64) string {
	text := fmt.Sprint(n)
	sign := ""
	if strings.HasPrefix(text, "-") {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "\u202f" + text[i:]
	}
	return sign + text
}

// Button orders something.
type Button struct {
	// Page and Action are what it orders; Page "" is the page it stands on.
	Page, Action string
	Label        string
	Values       url.Values
	// Confirm is asked before; "" does it at once.
	Confirm string
	// Danger is set for what cannot be taken back.
	Danger bool
}

// Values makes the values of a button or link: names and values in turn.
func Values(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v
}

// Link returns the path of a page with a query: names and values in turn.
func Link(name string, pairs ...string) string {
	path := "/p/" + url.PathEscape(name)
	if len(pairs) > 0 {
		path += "?" + Values(pairs...).Encode()
	}
	return path
}

// Actions are buttons that stand by themselves.
type Actions []Button

// Form asks for what an action or a look needs.
type Form struct {
	Title, Note string
	// Action is what is ordered with it; "" asks the page itself, and changes
	// nothing.
	Action string
	Fields []Field
	Submit string
	Danger bool
	// Confirm is asked before; "" does it at once.
	Confirm string
	// Closed is set when only its title is shown until somebody opens it.
	Closed bool
}

// Field is one of them.
type Field struct {
	Name, Label, Value string
	Hint               string
	// Type is that of HTML: "text" when it is empty, "number", "checkbox",
	// "textarea", "file", "hidden", "date"; "select" with Choices.
	Type     string
	Choices  []Choice
	Required bool
	// Wide is set for one that takes the whole width.
	Wide        bool
	Placeholder string
}

// Choice is one of a select.
type Choice struct{ Value, Label string }

// Choices makes choices whose values are their labels; "" is shown as any.
func Choices(any string, values ...string) []Choice {
	out := []Choice{}
	if any != "" {
		out = append(out, Choice{"", any})
	}
	for _, v := range values {
		out = append(out, Choice{v, v})
	}
	return out
}

// Text is text of a machine, as it is.
type Text struct {
	Title, Note, Text string
	// Copy is set for what is to be copied.
	Copy bool
}

// Networks shows where networks lie among all addresses.
type Networks struct {
	Title string
	// Mark are those that stand out.
	Prefixes, Mark []netip.Prefix
}

// Links lead on from a page.
type Links []Cell

// Kinds, for the console.
func (Notice) Kind() string   { return "notice" }
func (Tiles) Kind() string    { return "tiles" }
func (Facts) Kind() string    { return "facts" }
func (Table) Kind() string    { return "table" }
func (Form) Kind() string     { return "form" }
func (Text) Kind() string     { return "text" }
func (Networks) Kind() string { return "networks" }
func (Actions) Kind() string  { return "actions" }
func (Links) Kind() string    { return "links" }

// Event is a row of a live table.
type Event []Cell
