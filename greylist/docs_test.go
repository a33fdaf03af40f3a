package greylist_test

import (
	"os"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/greylist"
	"postern/internal/conf"
)

// The manual's examples load, and it names every reason there is.
func TestManual(t *testing.T) {
	text, err := os.ReadFile("../docs/checks/greylist.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, ok := strings.Cut(string(text), "```toml\n")
	if !ok {
		t.Fatal("no example")
	}
	block, _, _ = strings.Cut(block, "```")
	doc := struct {
		Greylist greylist.Config `toml:"greylist"`
	}{greylist.DefaultConfig()}
	if err := toml.NewDecoder(strings.NewReader(block)).DisallowUnknownFields().Decode(&doc); err != nil {
		t.Fatal(err)
	}
	doc.Greylist.Exceptions = nil // the file is postgrey's
	var fs conf.Faults
	if doc.Greylist.Validate("greylist", &fs); fs != nil {
		t.Error(fs)
	}
	code, err := os.ReadFile("check.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(code), `"greylist-`)[1:] {
		if name, _, _ := strings.Cut(part, `"`); name != "" && !strings.Contains(string(text), "`greylist-"+name+"`") {
			t.Errorf("the manual does not name the reason greylist-%s", name)
		}
	}
	for s := greylist.FirstContact; s <= greylist.Overdue; s++ {
		if !strings.Contains(string(text), "`greylist-"+s.String()+"`") {
			t.Errorf("the manual does not name the reason greylist-%s", s)
		}
	}
}
