package conf

import "testing"

func TestActionsRoundTrip(t *testing.T) {
	for a := range actionCount {
		var back Action
		text, err := a.MarshalText()
		if err != nil || back.UnmarshalText(text) != nil || back != a {
			t.Errorf("%v becomes %v", a, back)
		}
	}
	if actionCount.String() != "unknown" {
		t.Error("an action that does not exist has a name")
	}
	if err := new(Action).UnmarshalText([]byte("deny")); err == nil || err.Error() != `unknown action "deny" (one of reject, defer, mark, off)` {
		t.Errorf("an unknown action: %v", err)
	}
}
