package policy

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNamesRoundTrip(t *testing.T) {
	for s := StageConnect; s < stageCount; s++ {
		var got Stage
		if err := got.UnmarshalText([]byte(s.String())); err != nil || got != s {
			t.Errorf("stage %v: got %v, %v", s, got, err)
		}
	}
	for a := range actionCount {
		var got Action
		if err := got.UnmarshalText([]byte(a.String())); err != nil || got != a {
			t.Errorf("action %v: got %v, %v", a, got, err)
		}
	}
	for m := Enforce; m <= Off; m++ {
		var got Mode
		if err := got.UnmarshalText([]byte(m.String())); err != nil || got != m {
			t.Errorf("mode %v: got %v, %v", m, got, err)
		}
	}
	for _, o := range []OnError{ErrorContinue, ErrorDefer} {
		var got OnError
		if err := got.UnmarshalText([]byte(o.String())); err != nil || got != o {
			t.Errorf("on_error %v: got %v, %v", o, got, err)
		}
	}
	for o := Ran; o <= Hinted; o++ {
		var got Outcome
		if err := got.UnmarshalText([]byte(o.String())); err != nil || got != o {
			t.Errorf("outcome %v: got %v, %v", o, got, err)
		}
	}
	for _, beyond := range []fmt.Stringer{stageCount, actionCount, Off + 1, Hinted + 1, editKindCount} {
		if got := beyond.String(); got != "unknown" {
			t.Errorf("%T beyond the last: %q", beyond, got)
		}
	}
	for _, bad := range []interface{ UnmarshalText([]byte) error }{new(Stage), new(Action), new(Mode), new(OnError), new(Outcome)} {
		if err := bad.UnmarshalText([]byte("nonsense")); err == nil {
			t.Errorf("%T takes nonsense", bad)
		}
	}
	if err := new(Stage).UnmarshalText([]byte("unknown")); err == nil {
		t.Error(`the stage "unknown" can be configured`)
	}
}

func TestEditKindNames(t *testing.T) {
	for k, want := range map[EditKind]string{InsertField: "insert-field", ReplaceBody: "replace-body"} {
		if got := k.String(); got != want {
			t.Errorf("edit %d: %q, want %q", k, got, want)
		}
	}
}

func TestActionsThatRefuse(t *testing.T) {
	for a := range actionCount {
		if want := a == Reject || a == Defer || a == DeferIfPermit; a.Refuses() != want {
			t.Errorf("%v refuses: %v", a, !want)
		}
	}
}

func TestProbe(t *testing.T) {
	var none *Probe // the request path has none
	none.Add("a", "1", "cache", 0)
	if none.Len() != 0 || none.From(0) != nil {
		t.Errorf("no probe: %d notes, %v", none.Len(), none.From(0))
	}
	p := new(Probe)
	p.Add("a", "1", "cache", 0)
	p.Add("b", "2", "store", time.Second)
	got := p.From(1)
	if want := []Note{{"b", "2", "store", time.Second}}; p.Len() != 2 || !slices.Equal(got, want) {
		t.Errorf("%d notes, from the second %v, want %v", p.Len(), got, want)
	}
	if got[0].What = "changed"; p.Notes[1].What != "b" {
		t.Error("From shares its notes")
	}
}

func TestStageSets(t *testing.T) {
	set := Stages(StageRcpt, StageData)
	for s := range stageCount {
		if want := s == StageRcpt || s == StageData; set.Has(s) != want {
			t.Errorf("Has(%v) = %v", s, !want)
		}
		if want := s != StageUnknown; AllStages.Has(s) != want {
			t.Errorf("AllStages.Has(%v) = %v", s, !want)
		}
	}
}

func TestNullSender(t *testing.T) {
	for _, tt := range []struct {
		stage Stage
		raw   string
		want  bool
	}{
		{StageConnect, "", false},
		{StageHelo, "", false}, // not given yet
		{StageMail, "", true},
		{StageRcpt, "", true},
		{StageData, "", true},
		{StageEndOfMessage, "", true},
		{StageRcpt, "a@example.org", false},
		{StageVrfy, "", false},
		{StageEtrn, "", false},
	} {
		r := &Request{Stage: tt.stage, Sender: Address{Raw: tt.raw}}
		if r.NullSender() != tt.want {
			t.Errorf("%v %q: %v", tt.stage, tt.raw, !tt.want)
		}
	}
}

func TestFactsResetForgetsEverything(t *testing.T) {
	var f Facts
	if f.Suspicious() {
		t.Error("suspicious without a mark")
	}
	f.Mark("a")
	f.Mark("a")
	f.Weigh("b", 2)
	f.Weigh("b", 2)
	f.Weigh("a", 4) // it has been left without a weight
	if len(f.Marks) != 2 || f.MarkScore != 2 || !f.Suspicious() {
		t.Errorf("marks %v weigh %d", f.Marks, f.MarkScore)
	}
	f.SPF, f.Provider, f.RBLScore = SPF{"pass", "example.org", "mailfrom"}, "p", 3
	f.Listings, f.Missing = []Listing{{}}, []string{"x"}
	f.Reset()
	f.Listings, f.Marks, f.Missing = nil, nil, nil // the memory may stay
	if !reflect.DeepEqual(f, Facts{}) {
		t.Errorf("left over: %+v", f)
	}
}

func TestDecisionTravelsAsJSON(t *testing.T) {
	in := &Decision{
		Verdict: Verdict{Action: Reject, Reason: "r", Reply: Reply{554, "5.7.1", "no"}},
		Check:   "rbl", Reference: "AAAAA-BBBBB", Chain: "inbound", Degraded: true,
		Steps: []Step{{Check: "rbl", Outcome: Shadowed, Took: time.Second, Notes: []Note{{"a", "b", "cache", 1}}}},
		Would: Verdict{Action: Defer}, WouldCheck: "x", Took: time.Minute,
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	out := new(Decision)
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(in, out) {
		t.Errorf("sent %+v\ngot  %+v", in, out)
	}
	d := in.Clone()
	in.Reset()
	if d.Check != "rbl" || len(d.Steps) != 1 || len(in.Steps) != 0 || in.Check != "" {
		t.Errorf("clone %+v, reset %+v", d, in)
	}
}

func TestTemplates(t *testing.T) {
	def4, def5 := Reply{Code: 450, Enhanced: "4.2.0"}, Reply{Code: 554, Enhanced: "5.7.1"}
	vars := map[string]string{"list": "bl.example", "evil": "a\r\nRCPT TO:<x>\x00\xff"}
	for _, tt := range []struct {
		in   string
		def  Reply
		want string // reply, or "error: part of it"
	}{
		{"no thanks", def5, "554 5.7.1 no thanks"},
		{"550 no thanks", def5, "550 5.7.1 no thanks"},
		{"5.1.1 no thanks", def5, "554 5.1.1 no thanks"},
		{"550 5.1.1 listed by {list}", def5, "550 5.1.1 listed by bl.example"},
		{"{list}", def5, "554 5.7.1 bl.example"},
		{"550 no code", Reply{Code: 554}, "550 5.7.1 no code"},
		{"of another class", Reply{Code: 450, Enhanced: "5.1.1"}, "450 4.7.1 of another class"},
		{"not a code", def5, "554 5.7.1 not a code"}, // three letters
		{"5/0 5:0 are none", def5, "554 5.7.1 5/0 5:0 are none"},
		{"5:0 5/0 are none", def5, "554 5.7.1 5:0 5/0 are none"},
		{"5.123.456 x", def5, "554 5.123.456 x"},
		{"5.1234.1 x", def5, "554 5.7.1 5.1234.1 x"},
		{"5.1.1234 x", def5, "554 5.7.1 5.1.1234 x"},
		{"5.1.1.1 x", def5, "554 5.7.1 5.1.1.1 x"},
		{"5.1 x", def5, "554 5.7.1 5.1 x"},
		{"5.x.1 x", def5, "554 5.7.1 5.x.1 x"},
		{"5.1. x", def5, "554 5.7.1 5.1. x"},
		{"3.1.1 x", def5, "554 5.7.1 3.1.1 x"},
		{"45.1.1 x", def4, "450 4.2.0 45.1.1 x"},
		{"~ first and last  ~", def5, "554 5.7.1 ~ first and last  ~"},
		{"{{braces}}", def5, "554 5.7.1 {braces}"},
		{"x {evil}", def5, "554 5.7.1 x a RCPT TO:<x>??"},
		{"421 4.7.0 go away", def4, "421 4.7.0 go away"},
		{"10 minutes", def4, "450 4.2.0 10 minutes"},
		{"450", def4, "error: has no text"},
		{"450 ", def4, "error: has no text"},
		{"450 4.2.0", def4, "error: has no text"},
		{"", def4, "error: has no text"},
		{"550 x", def4, "error: must be 4xx here"},
		{"450 x", def5, "error: must be 5xx here"},
		{"450 5.7.1 x", def4, "error: does not go with"},
		{"5.7.1 x", def4, "error: does not go with"},
		{"999 x", def5, "error: must be 5xx"},
		{"599 x", def5, "error: not an SMTP code"},
		{"x {nope}", def5, "error: unknown placeholder {nope}"},
		{"x {list", def5, "error: unpaired brace"},
		{"x }", def5, "error: unpaired brace"},
		{"{}", def5, "error: unknown placeholder {}"},
		{"gr\u00fc\u00dfe", def5, "error: byte 0xc3 at 3: only printable ASCII"},
		{"a\x7f", def5, "error: byte 0x7f at 2: only printable ASCII"},
		{"a\r\nb", def5, "error: only printable ASCII"},
		{strings.Repeat("x", MaxReplyText), def5, "554 5.7.1 " + strings.Repeat("x", MaxReplyText)},
		{strings.Repeat("x", MaxReplyText+1), def5, "error: at most"},
	} {
		tpl, err := ParseTemplate(tt.in, tt.def, "list", "evil")
		if part, bad := strings.CutPrefix(tt.want, "error: "); bad {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%q: error %v, want %q", tt.in, err, part)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if tpl.String() != tt.in {
			t.Errorf("%q is shown as %q", tt.in, tpl)
		}
		if got := tpl.Expand(func(n string) string { return vars[n] }).String(); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.in, got, tt.want)
		}
	}
	if got := new(Template).Expand(nil); got != (Reply{}) {
		t.Errorf("zero template: %q", got)
	}
}

func TestExpandedTextIsCut(t *testing.T) {
	tpl := MustTemplate("{v}", Reply{Code: 450, Enhanced: "4.2.0"}, "v")
	for _, tt := range []struct{ value, want string }{
		{strings.Repeat("x", MaxReplyText), strings.Repeat("x", MaxReplyText)},
		{strings.Repeat("x", MaxReplyText+1), strings.Repeat("x", MaxReplyText-3) + "..."},
		{" " + strings.Repeat("x", MaxReplyText) + "\n", strings.Repeat("x", MaxReplyText)}, // blanks at the ends go first
		{"\r\n", "Access denied"},
	} {
		if got := tpl.Expand(func(string) string { return tt.value }).Text; got != tt.want {
			t.Errorf("%.20q of %d bytes: %q, want %q", tt.value, len(tt.value), got, tt.want)
		}
	}
}

func TestUses(t *testing.T) {
	vars := []string{"a", "b", "c"}
	tpl := MustTemplate("c {a}{b}", Reply{Code: 450, Enhanced: "4.2.0"}, vars...)
	for _, name := range vars {
		if want := name != "c"; tpl.Uses(name) != want {
			t.Errorf("%q uses %s: %v", tpl, name, !want)
		}
	}
	if new(Template).Uses("") {
		t.Error("the zero template uses a placeholder")
	}
}

func TestMustTemplatePanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	MustTemplate("{nope}", Reply{Code: 450, Enhanced: "4.2.0"})
}

func TestPrintable(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{" a  b~", " a  b~"}, // nothing to replace, nothing changed
		{"a\tb", "a b"},
		{"a\rb", "a b"},
		{"a\nb", "a b"},
		{"a\r\n\t b", "a b"},
		{"~~  a\x00", "~~ a?"},
		{"a\x1f\x7f\xff", "a???"},
		{"\n a", "a"},
		{"a \n", "a "},
	} {
		if got := Printable(tt.in); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"450 4.7.1 {v}", "{{v}}", "{v}{v}", "4.7.1 x", "450 450 450", "{"} {
		f.Add(s, "value")
		f.Add(s, "\r\n\x00")
	}
	f.Fuzz(func(t *testing.T, s, value string) {
		tpl, err := ParseTemplate(s, Reply{Code: 450, Enhanced: "4.7.1"}, "v")
		if err != nil {
			return
		}
		r := tpl.Expand(func(string) string { return value })
		if r.Code/100 != 4 || r.Enhanced[0] != '4' || r.Text == "" || len(r.Text) > MaxReplyText {
			t.Fatalf("%q: %+v", s, r)
		}
		for i := range len(r.Text) {
			if r.Text[i] < ' ' || r.Text[i] > '~' {
				t.Fatalf("%q with %q: byte %#x in the reply", s, value, r.Text[i])
			}
		}
	})
}
