package known

import (
	"testing"
	"time"
)

// FuzzStored reads what a store may hold of correspondents and of expected
// mail: nothing of it is an end.
func FuzzStored(f *testing.F) {
	f.Add("1700000000 1700000001")
	f.Add("0123456789abcdef:1700000000,fedcba9876543210:1700000001")
	f.Add(`[{"to":"a@b","since":"2026-11-27T23:07:24Z","until":"2026-11-27T23:37:24Z"}]`)
	f.Add("")
	now := time.Unix(1_700_000_000, 0)
	f.Fuzz(func(t *testing.T, text string) {
		_ = parseSpan(text)
		_ = parseWriters(text)
		e := parseExpected(text)
		for _, one := range e.alive(now) {
			if one.Until.Before(now) {
				t.Errorf("%+v is over at %v", one, now)
			}
		}
		_, _ = e.find("a@b", now)
	})
}
