package postfix

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"
)

func TestFollower(t *testing.T) {
	f := Follow("0A1B2C3D4E", time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC))
	const head = "Nov 27 09:00:01 mx postfix/"
	for _, tt := range []struct {
		line string
		want *Event // without time and text
	}{
		{head + "cleanup[1]: 0A1B2C3D4E: message-id=<x@y>", &Event{ID: "0A1B2C3D4E"}},
		{head + "qmgr[1]: 0A1B2C3D4E: from=<a@b>, size=1, nrcpt=1 (queue active)", &Event{ID: "0A1B2C3D4E", What: "queued"}},
		{head + "qmgr[1]: 0A1B2C3D4F: from=<a@b>, size=1, nrcpt=1 (queue active)", nil},
		{head + "smtp[1]: 0A1B2C3D4E: to=<c@d>, relay=127.0.0.1[127.0.0.1]:10025, delay=1, status=sent (250 2.0.0 Ok: queued as 1F2E3D4C5B)", &Event{ID: "0A1B2C3D4E", Recipient: "c@d", Relay: "127.0.0.1[127.0.0.1]:10025"}},
		{head + "qmgr[1]: 1F2E3D4C5B: from=<a@b>, size=1, nrcpt=1 (queue active)", &Event{ID: "1F2E3D4C5B", What: "queued"}},
		{head + "smtp[1]: 1F2E3D4C5B: to=<c@d>, relay=mx.d[192.0.2.1]:25, delay=1, status=sent (250 Ok: queued as 999999)", &Event{ID: "1F2E3D4C5B", What: "sent", Recipient: "c@d", Relay: "mx.d[192.0.2.1]:25"}},
		{head + "smtp[1]: 999999: to=<c@d>, relay=x, status=sent", nil},
		{head + "local[1]: 0A1B2C3D4E: to=<root@mx>, orig_to=<me@b>, relay=local, status=deferred (why)", &Event{ID: "0A1B2C3D4E", What: "deferred", Recipient: "me@b", Relay: "local"}},
		{head + "smtp[1]: 0A1B2C3D4E: to=<c@d>, relay=none, status=bounced (no)", &Event{ID: "0A1B2C3D4E", What: "bounced", Recipient: "c@d", Relay: "none"}},
		{head + "qmgr[1]: 0A1B2C3D4E: from=<a@b>, status=expired, returned to sender", &Event{ID: "0A1B2C3D4E", What: "expired"}},
		{head + "cleanup[1]: 0A1B2C3D4E: milter-hold: END-OF-MESSAGE from x", &Event{ID: "0A1B2C3D4E", What: "held"}},
		{head + "cleanup[1]: 0A1B2C3D4E: milter-reject: END-OF-MESSAGE from x", &Event{ID: "0A1B2C3D4E", What: "rejected"}},
		{head + "qmgr[1]: 0A1B2C3D4E: removed", &Event{ID: "0A1B2C3D4E"}},
		{"no line", nil},
		{"", nil},
	} {
		got, ok := f.Line(tt.line)
		if ok != (tt.want != nil) {
			t.Errorf("%s: %+v %v", tt.line, got, ok)
			continue
		}
		if !ok {
			continue
		}
		if got.Text == "" || got.Time.IsZero() {
			t.Errorf("%s: %+v", tt.line, got)
		}
		got.Text, got.Time = "", time.Time{}
		if !reflect.DeepEqual(got, *tt.want) {
			t.Errorf("%s: %+v", tt.line, got)
		}
		if got.Final() != slices.Contains([]string{"sent", "deferred", "bounced", "expired", "held", "rejected"}, got.What) {
			t.Error(got)
		}
	}
}

// A log is read on where it was, also when it is rotated meanwhile.
func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write := func(text string) {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write("old\nnew\npa")
	var got []string
	err := Tail(t.Context(), path, 4, func(line string) bool {
		switch got = append(got, line); line {
		case "new":
			write("rt\r\nlast of this\n")
		case "last of this":
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			write("first of the next\n")
		case "first of the next":
			return false
		}
		return true
	})
	if want := []string{"new", "part", "last of this", "first of the next"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Tail(ctx, path, 0, func(string) bool { return true }); err == nil {
		t.Error("it goes on")
	}
	if err := Tail(t.Context(), path+".none", 0, nil); err == nil {
		t.Error("there is no such file")
	}
}
