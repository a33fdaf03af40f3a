package limit

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
)

// The manual's examples load, and it names every unit and reason.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("../docs/checks/limit.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	blocks := strings.Split(text, "```toml\n")[1:]
	if len(blocks) < 3 {
		t.Fatal("no examples")
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		var doc struct {
			Limit  Config `toml:"limit"`
			Chains any    `toml:"chains"`
		}
		doc.Limit = DefaultConfig()
		if err := toml.NewDecoder(strings.NewReader(block)).DisallowUnknownFields().Decode(&doc); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
		var fs conf.Faults
		if doc.Limit.Validate("limit", &fs); fs != nil {
			t.Errorf("%v in\n%s", fs, block)
		}
	}
	for _, name := range append([]string{reasonExceeded, reasonRecipients, reasonSize, "postern_limit_exceeded_total{rule}", "postern_limit_notifications_total{notify,result}", "limit-NAME"}, slices.Concat(units, notifyVars)...) {
		if !strings.Contains(text, "`"+name+"`") && !strings.Contains(text, "`{"+name+"}`") {
			t.Errorf("the manual does not name %s", name)
		}
	}
}
