package table

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/postfixtest"
)

// Properties are those of Postfix's own PCRE2, byte for byte.
func TestPropertiesBesidePostfix(t *testing.T) {
	t.Parallel()
	postmap, err := exec.LookPath("postmap")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	// Bytes that are no UTF-8 are keys only without SMTPUTF8.
	if err := postfixtest.WriteFile(filepath.Join(dir, "main.cf"), []byte("compatibility_level = 3.6\nsmtputf8_enable = no\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	patterns := []string{
		`\p{L}`, `\pL`, `\P{L}`, `\PL`, `\p{^L}`, `\P{^L}`, `[\p{Lu}1-3]`, `[^\p{N}]`, `[\P{N}]`, `\p{L&}`, `\p{Any}`, `\p{Xan}`, `\p{Xsp}`, `\p{Xps}`, `\p{Xwd}`,
	}
	for _, name := range []string{"Lu", "Ll", "Lo", "Lm", "N", "Nd", "No", "P", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sc", "Sm", "Sk", "So", "Z", "Zs", "C", "Cc", "Cf", "M", "Latin", "Greek", "Common", "Han"} {
		patterns = append(patterns, `\p{`+name+`}`)
	}
	raw := make([]byte, 0, 4*256)
	for c := 33; c < 256; c++ {
		raw = append(raw, 'x', byte(c), 'x', '\n')
	}
	for _, pattern := range patterns {
		for _, flag := range []string{"", "i"} {
			path := filepath.Join(dir, "t")
			text := "/^x" + pattern + "x$/" + flag + " yes\n"
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(postmap, "-c", dir, "-q", "-", "pcre:"+path)
			cmd.Stdin = bytes.NewReader(raw)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, _ := cmd.Output() // not found is a status of its own
			if stderr.Len() > 0 {
				t.Fatalf("%s: %s", text, &stderr)
			}
			table, faults := Parse(PCRE, "t", []byte(text))
			if table == nil {
				t.Errorf("%s%v", text, faults)
				continue
			}
			for c := 33; c < 256; c++ {
				key := string([]byte{'x', byte(c), 'x'})
				want := bytes.Contains(out, []byte(key+"\tyes\n"))
				if _, rule := table.Lookup(key); (rule != nil) != want {
					t.Errorf("%s on byte %#x: %v, Postfix %v", strings.TrimSpace(text), c, rule != nil, want)
				}
			}
		}
	}
	if _, faults := Parse(PCRE, "t", []byte("/\\p{Nonsense}/ x\n")); len(faults) != 1 || !strings.Contains(faults[0].Text, "Nonsense") {
		t.Errorf("%v", faults)
	}
}
