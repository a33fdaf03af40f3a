package filestamp

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestStamp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	at := time.Unix(1e9, 0)
	write := func(name, text string, at time.Time) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	missing := Of(path)
	if !missing.Same(Of(path)) || !missing.Settled(at) || missing.Same(Stamp{}) {
		t.Error("a missing file")
	}
	write(path, "abc", at)
	first := Of(path)
	if first.Same(missing) || first.Same(Stamp{}) || !first.Same(Of(path)) {
		t.Error("a new file")
	}
	for since, want := range map[time.Duration]bool{0: false, Settle - 1: false, Settle: true, time.Hour: true, -time.Hour: true} {
		if got := first.Settled(at.Add(since)); got != want {
			t.Errorf("settled %v after the edit: %v", since, got)
		}
	}
	write(path, "abc", at.Add(1))
	if Of(path).Same(first) {
		t.Error("another time was not seen")
	}
	write(path, "abcd", at)
	if Of(path).Same(first) {
		t.Error("another size was not seen")
	}
	write(path+".new", "xyz", at)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if Of(path).Same(first) {
		t.Error("another file of the same size and time was not seen")
	}
}
