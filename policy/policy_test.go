package policy

import (
	"encoding/json"
	"reflect"
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
	for _, bad := range []interface{ UnmarshalText([]byte) error }{new(Stage), new(Action), new(Mode), new(OnError), new(Outcome)} {
		if err := bad.UnmarshalText([]byte("nonsense")); err == nil {
			t.Errorf("%T takes nonsense", bad)
		}
	}
	if err := new(Stage).UnmarshalText([]byte("unknown")); err == nil {
		t.Error(`the stage "unknown" can be configured`)
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
	f.Mark("a")
	f.Mark("a")
	if len(f.Marks) != 1 || !f.Suspicious() {
		t.Errorf("marks %v", f.Marks)
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
		{"gr\u00fc\u00dfe", def5, "error: only printable ASCII"},
		{"a\r\nb", def5, "error: only printable ASCII"},
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
		if got := tpl.Expand(func(n string) string { return vars[n] }).String(); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.in, got, tt.want)
		}
	}
	if got := new(Template).Expand(nil); got != (Reply{}) {
		t.Errorf("zero template: %q", got)
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
