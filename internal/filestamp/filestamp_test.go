package filestamp

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
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

// A file that is being written in place: nobody is told of what is half there,
// once of what stays broken, and nothing is left out.
func TestTracker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	at := time.Unix(1e9, 0)
	write := func(text string) {
		t.Helper()
		at = at.Add(time.Minute)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	var tr Tracker
	read, told := 0, 0
	// look is what a poll does; a file is good that ends in a full stop.
	look := func(after time.Duration) {
		t.Helper()
		if !tr.Due(path, at.Add(after)) {
			return
		}
		tr.Begin(path)
		read++
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case tr.Torn(path):
		case len(text) > 0 && text[len(text)-1] == '.':
			tr.Good()
		case tr.Bad():
			told++
		}
	}
	want := func(what string, reads, tells int) {
		t.Helper()
		if read != reads || told != tells {
			t.Errorf("%s: read %d times and told %d, want %d and %d", what, read, told, reads, tells)
		}
	}
	write("good.")
	look(Settle / 2)
	want("just written", 0, 0)
	look(Settle)
	look(time.Second)
	want("left alone", 1, 0)
	write("half")
	look(time.Second)
	want("half written", 2, 0)
	write("half of it is there.")
	look(time.Second)
	look(time.Minute)
	want("written whole", 3, 0)
	write("broken")
	look(time.Second)
	want("broken", 4, 0)
	look(time.Second)
	want("still broken", 5, 1)
	look(time.Second)
	look(time.Minute)
	want("nobody touches it", 5, 1)
	write("broken again")
	look(time.Second)
	look(time.Second)
	want("broken in another way", 7, 2)
	write("fixed.")
	look(time.Second)
	look(time.Second)
	want("good again", 8, 2)

	tr.Begin(path)
	write("torn.")
	if !tr.Torn(path) || !tr.Due(path, at.Add(time.Second)) {
		t.Error("a change while it was read goes unseen")
	}
}

func TestWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Watcher
		polls, others := 0, 0
		if w.Stop() {
			t.Error("stopped before it was started")
		}
		for range 2 {
			polls = 0
			if !w.Start(time.Second, func(time.Time) { polls++ }) {
				t.Error("not started")
			}
			if w.Start(time.Second, func(time.Time) { others++ }) {
				t.Error("started twice")
			}
			time.Sleep(3500 * time.Millisecond)
			if !w.Stop() || w.Stop() {
				t.Error("not stopped, or twice")
			}
			time.Sleep(time.Minute)
			if polls != 3 || others != 0 {
				t.Errorf("%d polls, %d of another", polls, others)
			}
		}
	})
}
