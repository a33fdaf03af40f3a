package conf

import "fmt"

// Action is what a check does about one thing that it finds.
type Action uint8

// The actions, the weakest first.
const (
	Off    Action = iota // nothing; it may not even be looked for
	Mark                 // a suspicion for later checks
	Defer                // refuse for now
	Reject               // refuse for good
	actionCount
)

var actionNames = [actionCount]string{"off", "mark", "defer", "reject"}

// String returns the name used in configuration.
func (a Action) String() string {
	if a < actionCount {
		return actionNames[a]
	}
	return "unknown"
}

// MarshalText implements [encoding.TextMarshaler].
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *Action) UnmarshalText(text []byte) error {
	for i, name := range actionNames {
		if name == string(text) {
			*a = Action(i)
			return nil
		}
	}
	return fmt.Errorf("unknown action %q (one of reject, defer, mark, off)", text)
}
