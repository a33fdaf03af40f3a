package maillog

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func newReader() *Reader {
	return &Reader{Now: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), In: time.UTC}
}

func TestStamps(t *testing.T) {
	const rest = "mx postfix/qmgr[2]: 0A1B2C3D4E: removed"
	for text, want := range map[string]time.Time{
		"Nov 27 09:01:02 ":                        time.Date(2026, 11, 27, 9, 1, 2, 0, time.UTC),
		"Nov  7 09:01:02 ":                        time.Date(2026, 11, 7, 9, 1, 2, 0, time.UTC),
		"Nov 28 11:59:59 ":                        time.Date(2026, 11, 28, 11, 59, 59, 0, time.UTC), // a clock that is ahead
		"Nov 28 12:00:01 ":                        time.Date(2025, 11, 28, 12, 0, 1, 0, time.UTC),
		"Dec 31 23:59:59 ":                        time.Date(2025, 12, 31, 23, 59, 59, 0, time.UTC),
		"Nov 27 09:01:02.123456 ":                 time.Date(2026, 11, 27, 9, 1, 2, 0, time.UTC),
		"2026-11-27T09:01:02.5+01:00 ":            time.Date(2026, 11, 27, 8, 1, 2, 5e8, time.UTC),
		"2026-11-27T09:01:02Z ":                   time.Date(2026, 11, 27, 9, 1, 2, 0, time.UTC),
		"2026-11-27T09:01:02+0100 ":               time.Date(2026, 11, 27, 8, 1, 2, 0, time.UTC),
		"2026-11-27T09:01:02,123456+0100 ":        time.Date(2026, 11, 27, 8, 1, 2, 123456000, time.UTC),
		"2026-11-27 09:01:02 ":                    time.Date(2026, 11, 27, 9, 1, 2, 0, time.UTC),
		"2026-11-27T09:01:02 ":                    time.Date(2026, 11, 27, 9, 1, 2, 0, time.UTC),
		"Feb 30 09:01:02 ":                        {},
		"Nov 27 ":                                 {},
		"27 Nov 09:01:02 ":                        {},
		"":                                        {},
		"postfix/qmgr[2]: 0A1B2C3D4E: from=<x@y>": {},
		"2026-11-27":                              {},
	} {
		at, got, ok := newReader().stamp(text + rest)
		if ok != !want.IsZero() || ok && (!at.Equal(want) || got != rest) {
			t.Errorf("%q: %v %q %v", text, at, got, ok)
		}
	}
	// A leap day is of the last leap year, not the first of March of another.
	r := newReader()
	r.Now = time.Date(2028, 3, 1, 0, 0, 0, 0, time.UTC)
	if at, _, ok := r.stamp("Feb 29 09:01:02 " + rest); !ok || at.Day() != 29 || at.Year() != 2028 {
		t.Errorf("%v %v", at, ok)
	}
}

func TestLines(t *testing.T) {
	for text, want := range map[string]*Line{
		"mx postfix/qmgr[2]: 0A1B2C3D4E: removed":                                      {Program: "qmgr", ID: "0A1B2C3D4E", Text: "removed"},
		"mx postfix-out/submission/smtpd[2]: 4Xz1Wl3b9Qz2Rf: client=a[192.0.2.1]":      {Program: "smtpd", ID: "4Xz1Wl3b9Qz2Rf", Text: "client=a[192.0.2.1]"},
		"mx postfix/smtpd[2]: NOQUEUE: reject: RCPT from a[192.0.2.1]: 450 4.2.0 x: y": {Program: "smtpd", ID: "NOQUEUE", Text: "reject: RCPT from a[192.0.2.1]: 450 4.2.0 x: y"},
		"mx postfix/qmgr[2]: [ID 197553 mail.info] 0A1B2C3D4E: removed":                {Program: "qmgr", ID: "0A1B2C3D4E", Text: "removed"},
		"mx postfix/smtpd[2]: connect from a[192.0.2.1]":                               nil,
		"mx dovecot[2]: 0A1B2C3D4E: removed":                                           nil,
		"mx postfix 0A1B2C3D4E: removed":                                               nil,
	} {
		var got []Line
		r := newReader()
		if err := r.Read(strings.NewReader("Nov 27 09:00:00 "+text+"\n"), func(l Line) bool { got = append(got, l); return true }); err != nil {
			t.Fatal(err)
		}
		if want == nil && got != nil || want != nil && (len(got) != 1 || got[0].Program != want.Program || got[0].ID != want.ID || got[0].Text != want.Text) {
			t.Errorf("%q: %+v", text, got)
		}
	}
	for id, want := range map[string]bool{"0A1B2": true, "4Xz1Wl3b9Qz2Rf": true, "0A1B": false, "NOQUEUE": false, "warning": false, "0A1B2C-": false} {
		if l := (Line{ID: id}); l.OfMessage() != want {
			t.Errorf("%s: %v", id, !want)
		}
	}
}

func TestClient(t *testing.T) {
	for text, want := range map[string][2]string{
		"mail.example.org[192.0.2.1]:4711": {"mail.example.org", "192.0.2.1"},
		"unknown[2001:db8::1]":             {"", "2001:db8::1"},
		"a[192.0.2.9].evil[192.0.2.1]":     {"a[192.0.2.9].evil", "192.0.2.1"},
		"a[unknown]":                       {},
		"a":                                {},
		"a]b[":                             {},
	} {
		name, addr, ok := Client(text)
		if ok != (want[1] != "") || ok && (name != want[0] || addr.String() != want[1]) {
			t.Errorf("%q: %q %v %v", text, name, addr, ok)
		}
	}
}

func TestBracketed(t *testing.T) {
	for text, want := range map[string][]string{
		"to=<a@b>, x":             {"a@b", ", x"},
		`to=<"a>b"@c>, x`:         {"a>b@c", ", x"},
		"to=<>, x":                {"", ", x"},
		"to=<a@b":                 nil,
		"from=<a@b>":              nil,
		`to=<"a>b@c, "@ no end, `: nil,
	} {
		inner, after, ok := Bracketed(text, "to=<")
		if ok != (want != nil) || ok && !reflect.DeepEqual([]string{inner, after}, want) {
			t.Errorf("%q: %q %q %v", text, inner, after, ok)
		}
	}
}
