package headercheck

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"go.uber.org/zap"

	"postern/internal/conf"
)

const manual = "../docs/checks/headers.md"

// The manual's examples load, and it names every key, action, reason and metric.
func TestManual(t *testing.T) {
	b, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	dir := t.TempDir()
	for _, name := range []string{"mime_header_checks", "body_checks"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("/^x/ WARN\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := strings.NewReplacer("/etc/postfix/", dir+"/", "/etc/postern/", "../configs/")
	blocks := strings.Split(text, "```toml\n")[1:]
	if len(blocks) != 3 {
		t.Fatalf("%d examples", len(blocks))
	}
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		doc := struct {
			Headers Config `toml:"headers"`
		}{DefaultConfig()}
		if err := toml.NewDecoder(strings.NewReader(files.Replace(block))).DisallowUnknownFields().Decode(&doc); err != nil {
			t.Fatalf("%v in\n%s", err, block)
		}
		var fs conf.Faults
		if doc.Headers.Validate("headers", &fs); fs != nil {
			t.Errorf("%v in\n%s", fs, block)
		}
	}
	defaults, err := toml.Marshal(DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(defaults)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " = ")
		if value = strings.ReplaceAll(value, "'", `"`); ok && value != "[]" && !strings.Contains(text, "| `"+key+"` | `"+value+"` |") {
			t.Errorf("the manual does not say that %s is %s by default", key, value)
		}
	}
	for _, c := range []any{TableConfig{}, RuleConfig{}} {
		for field := range reflect.TypeOf(c).Fields() {
			if key := field.Tag.Get("toml"); !strings.Contains(text, "`"+key+"`") {
				t.Errorf("the manual does not name the key %s", key)
			}
		}
	}
	for word := range actionWords {
		if !regexp.MustCompile("`" + word + "[` ]").MatchString(text) {
			t.Errorf("the manual does not name the action %s", word)
		}
	}
	for _, r := range reasons {
		if !strings.Contains(text, "`"+r+"-`") {
			t.Errorf("the manual does not name the reasons %s-", r)
		}
	}
	code, err := os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?:counters?|gauge)\("([a-z_]+)"`).FindAllStringSubmatch(string(code), -1)
	if len(names) != 8 {
		t.Errorf("%d metrics", len(names))
	}
	for _, m := range names {
		if !regexp.MustCompile("`postern_headercheck_" + m[1] + "[{`]").MatchString(text) {
			t.Errorf("the manual does not name the metric postern_headercheck_%s", m[1])
		}
	}
	// The line for Postfix is the one that is made.
	c := tables(t, dir, "header\n/^a/ FILTER smtp:[192.0.2.9]:10025\n")
	c.FilterMarker = "X-Postern-Filter"
	if line := newSite(t, c).FilterLines()[0]; !strings.Contains(text, "\n    "+line+"\n") {
		t.Errorf("the manual does not show %s", line)
	}
}

const shipped = "../configs/header_checks.pcre"

// The shipped example does what its comments say, here and in Postfix.
func TestExample(t *testing.T) {
	c := DefaultConfig()
	c.Checks = []TableConfig{{Table: "pcre:" + shipped}}
	check, err := New(c, zap.NewNop(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]string{
		"X-Originating-IP: [192.0.2.1]":          "ignore ",
		"X-PHP-Originating-Script: 33:a.php":     "ignore ",
		"X-Spam-Status: No":                      "strip not ours",
		"X-Greylist: delayed":                    "ignore ",
		"X-Mailer: DarkMailer 2":                 "reject 5.7.1 Mail from this program is not taken here",
		"X-Mailer: PHPMailer 5.2.17 (https)":     "warn old PHPMailer, known holes",
		"X-Mailer: PHPMailer 5.2.18 (https)":     "",
		"X-Mailer: Mutt":                         "",
		"Subject: Your Casino Bonus!":            `reject 5.7.1 "Casino Bonus" is not wanted here`,
		"Subject: casino bonuses":                "",
		"Subject:" + strings.Repeat(" ", 200):    "reject 5.6.0 Subject of blanks",
		"Subject: hello":                         "",
		"Content-Type: x/y; name=\"a.EXE\"":      "reject 5.7.1 Attachments of type .EXE are not taken here",
		"Content-Type: x/y; name=a.js; x=y":      "reject 5.7.1 Attachments of type .js are not taken here",
		"Content-Type: x/y; name=a.js.txt":       "",
		"Content-Disposition: a; filename=a.txt": "",
		"List-Unsubscribe: <https://a.example>":  "prepend X-Bulk: yes",
	}
	var keys, found []string
	for line, want := range lines {
		got := ""
		for _, m := range check.Query(Header, line) {
			got = m.Action + " " + m.Arg
			found = append(found, line+"\t"+strings.ToUpper(m.Action)+strings.TrimRight(" "+m.Arg, " "))
		}
		if got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
		keys = append(keys, line)
	}
	dir := needPostmap(t)
	cmd := exec.Command("postmap", "-c", dir, "-q", "-", "pcre:"+shipped)
	cmd.Stdin = strings.NewReader(strings.Join(keys, "\n") + "\n")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil || errs.Len() > 0 {
		t.Errorf("postmap: %v %s", err, &errs)
	}
	for _, line := range found {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("Postfix does not say %q", line)
		}
	}
	if n := strings.Count(out.String(), "\n"); n != len(found) {
		t.Errorf("Postfix knows %d lines, we %d", n, len(found))
	}
}
