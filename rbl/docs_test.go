package rbl

import (
	"os"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
)

// The manual's examples load, and it names every reason and metric there is.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("../docs/checks/rbl.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	blocks := strings.Split(text, "```toml\n")[1:]
	if len(blocks) < 2 {
		t.Fatal("no examples")
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		doc := struct {
			RBL Config `toml:"rbl"`
		}{DefaultConfig()}
		if err := toml.NewDecoder(strings.NewReader(block)).DisallowUnknownFields().Decode(&doc); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
		var fs conf.Faults
		if doc.RBL.Validate("rbl", &fs); fs != nil {
			t.Errorf("%v in\n%s", fs, block)
		}
	}
	code, err := os.ReadFile("rbl.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(code), `v.Reason = "`)[1:] {
		if name, _, _ := strings.Cut(part, `"`); !strings.Contains(text, "`"+name+"`") {
			t.Errorf("the manual does not name the reason %s", name)
		}
	}
	code, err = os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(code), `counter("`)[1:] {
		if name, _, _ := strings.Cut(part, `"`); !strings.Contains(text, "`postern_rbl_"+name) {
			t.Errorf("the manual does not name the metric postern_rbl_%s", name)
		}
	}
	for s := range stateCount {
		if !strings.Contains(text, "`"+s.String()+"`") {
			t.Errorf("the manual does not name the state %s", s)
		}
	}
}
