package access

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
)

// blocks returns the fenced blocks of the manual page in a language.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/checks/access.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i, part := range strings.Split(string(text), "\n```") {
		if rest, ok := strings.CutPrefix(part, language+"\n"); ok && i%2 == 1 {
			out = append(out, rest)
		}
	}
	if len(out) == 0 {
		t.Fatalf("no block of %q", language)
	}
	return out
}

func TestTheManualsExamplesLoad(t *testing.T) {
	for _, text := range blocks(t, "toml") {
		doc := struct {
			Access Config `toml:"access"`
		}{DefaultConfig()}
		if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&doc); err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
		var fs conf.Faults
		if doc.Access.Validate("access", &fs); fs != nil {
			t.Errorf("%v in\n%s", fs, text)
		}
	}
	path := filepath.Join(t.TempDir(), "deny.list")
	if err := os.WriteFile(path, []byte(blocks(t, "")[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Deny = []string{path}
	var fs conf.Faults
	if cfg.Validate("access", &fs); fs != nil {
		t.Error(fs)
	}
}
