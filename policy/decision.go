package policy

import (
	"fmt"
	"time"
)

// Mode says whether a check's verdict counts.
type Mode uint8

// The modes. The zero value is Enforce.
const (
	Enforce Mode = iota // the verdict counts
	Shadow              // the check runs whole; its verdict is only recorded
	Off                 // the check is not run
)

var modeNames = [...]string{"enforce", "shadow", "off"}

// String returns the name used in configuration, logs and metrics.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return "unknown"
}

// MarshalText implements [encoding.TextMarshaler].
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (m *Mode) UnmarshalText(text []byte) error {
	for i, name := range modeNames {
		if name == string(text) {
			*m = Mode(i)
			return nil
		}
	}
	return fmt.Errorf("unknown mode %q (one of enforce, shadow, off)", text)
}

// OnError says what a check that could not decide does to the request.
type OnError uint8

// The choices. The zero value lets mail go on.
const (
	ErrorContinue OnError = iota // as if the check had no objection
	ErrorDefer                   // the client is asked to come back
)

// String returns the name used in configuration.
func (o OnError) String() string {
	if o == ErrorDefer {
		return "defer"
	}
	return "continue"
}

// MarshalText implements [encoding.TextMarshaler].
func (o OnError) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (o *OnError) UnmarshalText(text []byte) error {
	switch string(text) {
	case "continue":
		*o = ErrorContinue
	case "defer":
		*o = ErrorDefer
	default:
		return fmt.Errorf("unknown on_error %q (one of continue, defer)", text)
	}
	return nil
}

// Outcome is what became of one step of a chain.
type Outcome uint8

// The outcomes.
const (
	Ran      Outcome = iota // the verdict counted
	Shadowed                // the check ran, its verdict did not count
	Skipped                 // not asked: an allow, the stage, or switched off
	Failed                  // it returned an error
	TimedOut                // its time ran out
	Panicked                // it panicked
	Hinted                  // answered from memory before its turn
)

var outcomeNames = [...]string{"ran", "shadow", "skipped", "error", "timeout", "panic", "hint"}

// String returns the name used in traces, logs and metrics.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return "unknown"
}

// MarshalText implements [encoding.TextMarshaler].
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (o *Outcome) UnmarshalText(text []byte) error {
	for i, name := range outcomeNames {
		if name == string(text) {
			*o = Outcome(i)
			return nil
		}
	}
	return fmt.Errorf("unknown outcome %q", text)
}

// Step is one line of a trace.
type Step struct {
	Check   string        `json:"check"`
	Outcome Outcome       `json:"outcome"`
	Verdict Verdict       `json:"verdict"`
	Error   string        `json:"error,omitempty"` // when it failed; why, when it was skipped
	Took    time.Duration `json:"took"`
	Notes   []Note        `json:"notes,omitempty"` // only with a Probe
}

// Decision is what a chain made of a request. It is reused by its owner; who
// keeps one beyond the request calls Clone.
type Decision struct {
	Verdict   Verdict  `json:"verdict"`
	Check     string   `json:"check,omitempty"`     // whose verdict it is, empty when nobody objected
	Reference string   `json:"reference,omitempty"` // set when the client is refused, or would be without shadow mode
	Chain     string   `json:"chain"`
	Headers   []Header `json:"headers,omitempty"` // from all checks, for an accepted message
	Degraded  bool     `json:"degraded"`          // something could not be asked
	// Would is the first verdict that shadow mode kept from counting, and
	// WouldCheck whose it was. Empty WouldCheck: there was none.
	Would      Verdict       `json:"would,omitzero"`
	WouldCheck string        `json:"would_check,omitempty"`
	Steps      []Step        `json:"steps"`
	Took       time.Duration `json:"took"`
}

// Reset empties d and keeps its memory.
func (d *Decision) Reset() {
	*d = Decision{Headers: d.Headers[:0], Steps: d.Steps[:0]}
}

// Clone returns a copy that shares nothing with what is reused.
func (d *Decision) Clone() *Decision {
	c := *d
	c.Headers = append([]Header(nil), d.Headers...)
	c.Steps = append([]Step(nil), d.Steps...)
	return &c
}

// Note is one thing that a check looked at.
type Note struct {
	What   string        `json:"what"`             // "zen.example.org", "triplet"
	Value  string        `json:"value"`            // "127.0.0.2", "first seen 2m3s ago"
	Source string        `json:"source,omitempty"` // "cache", "network", "store", "file:line"
	Took   time.Duration `json:"took,omitempty"`
}

// Probe collects notes for an explanation. It is used by one goroutine.
type Probe struct {
	Notes []Note
}

// Add takes a note. A nil Probe drops it.
func (p *Probe) Add(what, value, source string, took time.Duration) {
	if p != nil {
		p.Notes = append(p.Notes, Note{what, value, source, took})
	}
}

// Len returns the number of notes; 0 for a nil Probe.
func (p *Probe) Len() int {
	if p == nil {
		return 0
	}
	return len(p.Notes)
}

// From returns a copy of the notes from index i on; nil for a nil Probe.
func (p *Probe) From(i int) []Note {
	if p == nil {
		return nil
	}
	return append([]Note(nil), p.Notes[i:]...)
}
