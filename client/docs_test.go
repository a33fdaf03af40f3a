package client

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
)

// The manual's examples load; its table has every condition with its defaults,
// and it names every reason and metric there is.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("../docs/checks/client.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	blocks := strings.Split(text, "```toml\n")[1:]
	if len(blocks) < 4 {
		t.Fatal("no examples")
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		block = strings.ReplaceAll(block, `exceptions = ["/etc/postern/client-exceptions.list"]`, "")
		var doc struct {
			Client Config `toml:"client"`
		}
		doc.Client = DefaultConfig()
		if err := toml.NewDecoder(strings.NewReader(block)).DisallowUnknownFields().Decode(&doc); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
		var fs conf.Faults
		if doc.Client.Validate("client", &fs); fs != nil {
			t.Errorf("%v in\n%s", fs, block)
		}
	}
	cfg := DefaultConfig()
	for i, one := range cfg.all() {
		end := fmt.Sprintf("| `%v` | `%d %s`, `%d %s` |", one.Action, codes[i][0].Code, codes[i][0].Enhanced, codes[i][1].Code, codes[i][1].Enhanced)
		row := regexp.MustCompile("(?m)^\\| `" + strings.ReplaceAll(slugs[i], "-", "_") + "` \\| .* " + regexp.QuoteMeta(end) + "$")
		if !row.MatchString(text) {
			t.Errorf("the table has no row of %s that ends in %s", slugs[i], end)
		}
		if one.Weight != 1 {
			t.Errorf("the manual says that a mark weighs 1, %s weighs %d", slugs[i], one.Weight)
		}
	}
	names := []string{
		reasonUnknownClient, reasonAuthenticated, reasonOwnNetwork, reasonOwnProbe, reasonOtherStage, reasonExempt, reasonScore, reasonUnable, reasons[heloInvalid],
	}
	for _, v := range append(replyVars, "conditions", "score") {
		names = append(names, "{"+v+"}")
	}
	code, err := os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`counter\("([a-z_]+)"`).FindAllSubmatch(code, -1) {
		names = append(names, "postern_client_"+string(m[1]))
	}
	for _, name := range names {
		if !strings.Contains(text, "`"+name+"`") && !strings.Contains(text, "`"+name+"{") {
			t.Errorf("the manual does not name %s", name)
		}
	}
	if want := fmt.Sprintf("more than `helo_names` (%d) names within `helo_window` (an hour)", cfg.HeloNames); !strings.Contains(text, want) || cfg.HeloWindow.String() != "1h" {
		t.Errorf("the manual does not say %q", want)
	}
}
