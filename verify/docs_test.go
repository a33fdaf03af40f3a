package verify

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
	"postern/verify/callout"
)

func manual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docs/checks/verify.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The examples of the manual are configurations without faults.
func TestManualsExamples(t *testing.T) {
	blocks := strings.Split(manual(t), "```toml\n")[1:]
	if len(blocks) < 2 {
		t.Fatalf("%d examples", len(blocks))
	}
	for _, part := range blocks {
		block, _, _ := strings.Cut(part, "```")
		doc := struct {
			Verify Config `toml:"verify"`
		}{DefaultConfig()}
		if err := toml.NewDecoder(strings.NewReader(block)).DisallowUnknownFields().Decode(&doc); err != nil {
			t.Fatalf("%v in\n%s", err, block)
		}
		var fs conf.Faults
		if doc.Verify.Validate("verify", &fs); fs != nil {
			t.Errorf("%v in\n%s", fs, block)
		}
	}
}

// Every enhanced code of the table is classified as the table says.
func TestManualsTableOfAnswers(t *testing.T) {
	want := map[string]callout.Class{
		"known": callout.Known, "unknown": callout.Unknown, "temporary": callout.Temporary, "undecided": callout.Undecided,
	}
	seen := 0
	for line := range strings.Lines(manual(t)) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 || !strings.Contains(cells[1], "RCPT") {
			continue
		}
		class, ok := want[strings.TrimSpace(cells[2])]
		if !ok || strings.Contains(cells[1], "quota") {
			continue
		}
		for _, code := range regexp.MustCompile(`\b5\.\d+\.\d+\b`).FindAllString(cells[1], -1) {
			if code == "5.4.1" {
				continue // by its text
			}
			seen++
			if got := callout.Classify(callout.StageRcpt, callout.Reply{Code: 550, Enhanced: code, Lines: []string{"x"}}); got != class {
				t.Errorf("%s: the manual says %v, the code %v", code, class, got)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d codes found", seen)
	}
}

// The metrics that the manual names exist.
func TestManualsMetrics(t *testing.T) {
	b := open(t, config(nil, func(c *Config) { c.Routes = nil }), memory(t))
	families, err := b.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	for _, name := range regexp.MustCompile(`postern_verify_[a-z_]+`).FindAllString(manual(t), -1) {
		if !names[name] {
			t.Errorf("there is no metric %s", name)
		}
	}
}
