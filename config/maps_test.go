package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A map in an element of a map: neither can be set in place.
func TestMapsInTables(t *testing.T) {
	c, _, err := Load("testdata/maps.toml")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]map[string]string{}
	for name, table := range c.Tables {
		got[name] = table.MapDomains
		if !table.AnswerDomains {
			t.Errorf("%s has lost its defaults", name)
		}
	}
	want := map[string]map[string]string{
		"moved": {"a.example": "b.example", "c.example": "d.example"},
		"other": {"e.example": "f.example"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
