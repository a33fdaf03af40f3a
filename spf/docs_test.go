package spf

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
)

// The manual's examples load, and it names every reason and metric there is.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("../docs/checks/spf.md")
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
		block = strings.ReplaceAll(block, `, "file:/etc/postern/relays.list"`, "")
		var doc struct {
			SPF    Config `toml:"spf"`
			Chains any    `toml:"chains"`
			Milter any    `toml:"milter"`
		}
		doc.SPF = DefaultConfig()
		if err := toml.NewDecoder(strings.NewReader(block)).DisallowUnknownFields().Decode(&doc); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
		var fs conf.Faults
		if doc.SPF.Validate("spf", &fs); fs != nil {
			t.Errorf("%v in\n%s", fs, block)
		}
	}
	names := []string{reasonExempt, reasonAuthenticated, reasonRelay, reasonUnknownClient, reasonAllowed, reasonMustPass, reasonAllowMissing, reasonOriginUnknown}
	for id := range identities {
		names = append(names, reasons[id][:]...)
	}
	code, err := os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`counter\("([a-z_]+)"`).FindAllSubmatch(code, -1) {
		names = append(names, "postern_spf_"+string(m[1]))
	}
	for _, name := range names {
		if !strings.Contains(text, "`"+name+"`") && !strings.Contains(text, "`"+name+"{") {
			t.Errorf("the manual does not name %s", name)
		}
	}
}
