package conf

import (
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	const day = 24 * time.Hour
	for _, tt := range []struct {
		in   string
		want time.Duration
		text string // as it is written; "": as read
	}{
		{"0", 0, "0s"},
		{"0s", 0, ""},
		{"250ms", 250 * time.Millisecond, ""},
		{"90s", 90 * time.Second, "1m30s"},
		{"1m0s", time.Minute, "1m"},
		{"1h0m0s", time.Hour, "1h"},
		{"1h30m", 90 * time.Minute, ""},
		{"1h0m10s", time.Hour + 10*time.Second, ""},
		{"10m", 10 * time.Minute, ""},
		{"24h", day, "1d"},
		{"25h", day + time.Hour, ""},
		{"36d", 36 * day, ""},
		{"2w", 14 * day, "14d"},
		{"1w1d1h1m1s", 8*day + time.Hour + time.Minute + time.Second, "193h1m1s"},
		{"0.5d", 12 * time.Hour, "12h"},
		{"1.5h", 90 * time.Minute, "1h30m"},
		{".5s", 500 * time.Millisecond, "500ms"},
		{"9d", 9 * day, ""},
		{"1d9h", 33 * time.Hour, "33h"},
		{"1d0h", day, "1d"},
		{"0d", 0, "0s"},
		{"53375d", 53375 * day, ""}, // 1 << 62 nanoseconds are between these
	} {
		var d Duration
		if err := d.UnmarshalText([]byte(tt.in)); err != nil || d.D() != tt.want {
			t.Errorf("%s: %v, %v", tt.in, d.D(), err)
			continue
		}
		text := tt.text
		if text == "" {
			text = tt.in
		}
		if b, err := d.MarshalText(); err != nil || string(b) != text {
			t.Errorf("%s is written %s, want %s", tt.in, b, text)
		}
	}
	for _, in := range []string{
		"", "5", "d", "-1d", "-5s", "5 s", "5x", "1d5", "1..5d", ".d", ".s", "1e3d", "53376d", "9999999999999w", "2000000h2000000h", "100000d100000d", "50000d50000d50000d",
		"50000d2000000h", "/1d", ":1d",
	} {
		d := Duration(7)
		if err := d.UnmarshalText([]byte(in)); err == nil || d != 7 {
			t.Errorf("%q is read as %v", in, d.D())
		}
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"0", "1h30m", "36d", "2w", ".5d", "1.d", "1ns1us1ms1s", "53375d", "-1d", "1d\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if again, err := ParseDuration(Duration(d).String()); d < 0 || err != nil || again != d {
			t.Fatalf("%q is %v, written %v, read as %v, %v", s, d, Duration(d), again, err)
		}
	})
}

func TestFaults(t *testing.T) {
	var fs Faults
	if fs.Err() != nil {
		t.Error("no fault is one")
	}
	fs.Keyf("rbl.lists[2]", "%q is no list", "x")
	fs.Filef("/a/b", 0, 0, "gone")
	fs.Filef("/a/b", 7, 0, "bad line")
	fs.Filef("/a/b", 1, 1, "bad word")
	fs = append(fs, &Fault{Key: "k", File: "f", Line: 2, Column: 3, Text: "both"})
	want := "rbl.lists[2]: \"x\" is no list\n/a/b: gone\n/a/b:7: bad line\n/a/b:1:1: bad word\nf:2:3: k: both"
	if got := fs.Err(); got == nil || got.Error() != want {
		t.Errorf("%v, want\n%s", got, want)
	}
}
