package lookup

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
)

// file is the part of a configuration file that this package reads.
type file struct {
	Lookup Config                 `toml:"lookup"`
	Tables map[string]TableConfig `toml:"tables"`
}

// loadText reads a configuration whose tables are elsewhere, each with one entry.
func loadText(t *testing.T, text string) file {
	t.Helper()
	dir := t.TempDir()
	text = strings.ReplaceAll(text, "/etc/postfix/", dir+"/")
	for _, m := range regexp.MustCompile(`"(\w+):(`+regexp.QuoteMeta(dir)+`/[^"]+)"`).FindAllStringSubmatch(text, -1) {
		entry := "192.0.2.1 x\n"
		if m[1] == "pcre" || m[1] == "regexp" {
			entry = "/^x$/ x\n"
		}
		write(t, m[2], entry, longAgo)
	}
	doc := file{Lookup: DefaultConfig()}
	if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&doc); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	var fs conf.Faults
	doc.Lookup.Validate("lookup", &fs)
	if ValidateTables("tables", doc.Tables, &fs); fs != nil {
		t.Errorf("%v in\n%s", fs, text)
	}
	return doc
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The manual's example and the shipped one load, what they say of main.cf
// names their tables, and the manual names everything there is.
func TestManual(t *testing.T) {
	manual := readFile(t, "../docs/lookup.md")
	_, after, _ := strings.Cut(manual, "```toml\n")
	block, rest, ok := strings.Cut(after, "```")
	if !ok || strings.Contains(rest, "```toml") {
		t.Fatal("the manual has one example")
	}
	for _, one := range []struct{ name, toml, main string }{
		{"manual", block, manual},
		{"example", readFile(t, "../configs/lookup.toml.example"), readFile(t, "../configs/main.cf.lookup.example")},
	} {
		doc := loadText(t, one.toml)
		uses := regexp.MustCompile(`socketmap:(?:unix:postern/lookup.sock|inet:127.0.0.1:10042):([\w-]+)`).FindAllStringSubmatch(one.main, -1)
		if len(uses) < 4 {
			t.Errorf("%s: only %d uses", one.name, len(uses))
		}
		for _, use := range uses {
			if _, ok := doc.Tables[use[1]]; !ok {
				t.Errorf("%s: main.cf uses %q, which is no table", one.name, use[1])
			}
		}
		if got := filepath.Base(doc.Lookup.Listen[0].Path); got != "lookup.sock" {
			t.Errorf("%s: the socket is %s", one.name, got)
		}
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[TableConfig]()} {
		for f := range typ.Fields() {
			if key := f.Tag.Get("toml"); !strings.Contains(manual, "`"+key) && !strings.Contains(block, key+" =") {
				t.Errorf("the manual does not name the key %s", key)
			}
		}
	}
	for _, s := range searches {
		if !strings.Contains(manual, "`"+string(s)+"`") {
			t.Errorf("the manual does not name the search %s", s)
		}
	}
	code := readFile(t, "metrics.go")
	for _, m := range regexp.MustCompile(`"(postern_lookup_\w+)"`).FindAllStringSubmatch(code, -1) {
		if !strings.Contains(manual, "`"+m[1]+"`") {
			t.Errorf("the manual does not name the metric %s", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`bad\.WithLabelValues\("([\w-]+)"\)`).FindAllStringSubmatch(code, -1) {
		if !strings.Contains(manual, "`"+m[1]+"`") {
			t.Errorf("the manual does not name the kind %s", m[1])
		}
	}
	for _, word := range []string{wordOK, wordNotFound, wordTemp, wordTimeout, wordPerm} {
		if !strings.Contains(manual, "`"+word) {
			t.Errorf("the manual does not name the reply %q", word)
		}
	}
}
