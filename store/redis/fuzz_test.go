package redis

import (
	"reflect"
	"testing"

	"postern/greylist"
)

// FuzzValues reads whatever a key may hold: nothing of it is an end, and what
// can be read is written as it was.
func FuzzValues(f *testing.F) {
	w := greylist.Waiting{Since: 1, Last: 2, Side: greylist.Side{Match: "net:1", First: 1, Last: 2, Attempts: 3}, More: []greylist.Side{{Match: "org:x", First: 1, Last: 1, Attempts: 1}}}
	f.Add(string(appendWaiting(nil, &w)))
	f.Add(string(appendNumbers(nil, 1, 2, 3, 4)))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		parseTriplet(text)
		parseCredit(text)
		waitingEntries(text, "s", "r")
		w := parseWaiting(text)
		for _, s := range append([]greylist.Side{w.Side}, w.More...) {
			if s.First < -1<<52 || s.First > 1<<52 { // no whole number of a double
				return
			}
		}
		if w.Side.First == 0 || w.Since < -1<<52 || w.Since > 1<<52 || w.Last < -1<<52 || w.Last > 1<<52 {
			return
		}
		again := parseWaiting(string(appendWaiting(nil, &w)))
		if again.Since != w.Since || again.Side.Match != w.Side.Match || len(again.More) != len(w.More) {
			t.Errorf("%+v came back as %+v", w, again)
		}
		if n := len(w.More); n > 0 && !reflect.DeepEqual(again.More[n-1].Match, w.More[n-1].Match) {
			t.Errorf("%+v came back as %+v", w, again)
		}
	})
}
