package journal

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/internal/conf"
)

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		edit func(*Config)
		want string
	}{
		{func(*Config) {}, ""},
		{func(c *Config) { c.Share = true }, "journal.share: needs store.kind"},
		{func(c *Config) { c.MaxAge = conf.Duration(time.Minute) }, "journal.max_age: 1m is out of range"},
		{func(c *Config) { c.MaxSize = 1 << 20 }, "journal.max_size: 1MB is out of range: 4MB to 4TB"},
		{func(c *Config) { c.MaxRate = 0 }, "journal.max_rate: 0 is out of range"},
		{func(c *Config) { c.Node = 256 }, "journal.node: 256 is out of range"},
		{func(c *Config) { c.Node = -2 }, "journal.node: -2 is out of range"},
		{func(c *Config) { c.Memory = 1 }, "journal.memory: 1 is out of range"},
	} {
		c := DefaultConfig()
		tt.edit(&c)
		var fs conf.Faults
		c.Validate("journal", &fs)
		c.ValidateShare("journal", false, &fs)
		if got := fmt.Sprint(fs.Err()); tt.want == "" && fs.Err() != nil || !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %s, want %q", c, got, tt.want)
		}
	}
	var k Keep
	var a Addresses
	if k.UnmarshalText([]byte("some")) == nil || a.UnmarshalText([]byte("some")) == nil {
		t.Error("any word is taken")
	}
}

func TestDir(t *testing.T) {
	for _, tt := range []struct {
		c         Config
		forgetful bool
		want      string
	}{
		{Config{}, false, "/var/lib/postern/journal"},
		{Config{}, true, ""},
		{Config{Path: "/j"}, true, "/j"},
		{Config{Path: "/j", Keep: KeepOff}, false, ""},
	} {
		if got := tt.c.Dir("/var/lib/postern/state.db", tt.forgetful); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.c, got, tt.want)
		}
	}
	if (&Config{Node: 7}).NodeOf("mx") != 7 || (&Config{Node: -1}).NodeOf("mx1") == (&Config{Node: -1}).NodeOf("mx2") {
		t.Error("nodes")
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 3, 8, 12, 0, 0, 0, time.FixedZone("", 3600))
	for text, want := range map[string]string{
		"90m": "2026-03-08T10:30:00+01:00", "7d": "2026-03-01T12:00:00+01:00", "2026-01-31": "2026-01-31T00:00:00+01:00",
		"2026-01-31 12:30": "2026-01-31T12:30:00+01:00", "2026-01-31T12:30:05Z": "2026-01-31T12:30:05Z", "": "", "yesterday": "", "2026-13-01": "",
	} {
		got, err := ParseTime(text, now)
		if (err != nil) != (want == "") || err == nil && got.Format(time.RFC3339) != want {
			t.Errorf("%q: %v %v, want %s", text, got, err, want)
		}
	}
}
