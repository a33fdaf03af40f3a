package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"

	"github.com/spf13/cobra"

	"postern/config"
)

// document is one document of the repository.
type document struct {
	name   string // from the root of the repository
	text   string
	blocks []block
}

// block is an example: between fences, or indented by four columns.
type block struct {
	line int
	kind string // what stands behind the fence; "" without, "indented"
	text string
}

// pages reads README, CHANGELOG, docs and the READMEs of shipped set-ups.
func pages(t *testing.T) (all []document) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "configs/postfix/*/*.md"} {
		names, err := filepath.Glob("../../" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			p := document{name: strings.TrimPrefix(name, "../../"), text: string(b)}
			p.split()
			all = append(all, p)
		}
	}
	if len(all) < 25 {
		t.Fatalf("only %d documents", len(all))
	}
	return all
}

// split finds the blocks, and leaves in text what is outside of them.
func (p *document) split() {
	var prose strings.Builder
	var b *block
	n, blank := 0, true
	end := func() {
		if b != nil {
			p.blocks = append(p.blocks, *b)
		}
		b = nil
	}
	for line := range strings.Lines(p.text) {
		n++
		indented := strings.HasPrefix(line, "    ")
		switch {
		case b != nil && b.kind != "indented":
			if strings.TrimSpace(line) == "```" {
				end()
				break
			}
			b.text += line
		case strings.HasPrefix(line, "```"):
			end()
			b = &block{line: n + 1, kind: strings.TrimSpace(line[3:])}
		case b != nil && (indented || strings.TrimSpace(line) == ""):
			b.text += strings.TrimPrefix(line, "    ")
		case indented && blank:
			b = &block{line: n, kind: "indented", text: line[4:]}
		default:
			end()
			prose.WriteString(line)
		}
		blank = strings.TrimSpace(line) == ""
	}
	end()
	p.text = prose.String()
}

// Every link within the repository leads somewhere, its anchor included.
func TestLinksOfDocuments(t *testing.T) {
	anchors := map[string][]string{}
	all := pages(t)
	for _, p := range all {
		for line := range strings.Lines(p.text) {
			if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
				anchors[p.name] = append(anchors[p.name], anchor(title))
			}
		}
	}
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, p := range all {
		for _, m := range link.FindAllStringSubmatch(p.text, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			file, at, _ := strings.Cut(m[1], "#")
			name := p.name
			if file != "" {
				name = filepath.Join(filepath.Dir(p.name), file)
			}
			if _, err := os.Stat("../../" + name); err != nil {
				t.Errorf("%s: (%s) leads nowhere", p.name, m[1])
			} else if at != "" && !slices.Contains(anchors[name], at) {
				t.Errorf("%s: (%s): there is no such heading in %s", p.name, m[1], name)
			}
		}
	}
}

// anchor is what GitHub makes of a heading.
func anchor(title string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		case r == ' ':
			return '-'
		}
		return -1
	}, strings.TrimSpace(title))
}

// Every configuration in a document is one that postern takes, alone or with
// what the document takes for granted. Its files are there, with nothing in them.
func TestConfigurationsInDocuments(t *testing.T) {
	n := 0
	for _, p := range pages(t) {
		if p.name == "docs/new-check.md" {
			continue // of a check that is not there yet; its own tests have it
		}
		for _, b := range p.blocks {
			if b.kind != "toml" {
				continue
			}
			n++
			if err := loads(t, b.text); err != nil {
				t.Errorf("%s:%d: %v", p.name, b.line, err)
			}
		}
	}
	if n < 40 {
		t.Errorf("only %d configurations", n)
	}
}

var (
	inConfiguration = regexp.MustCompile(`/(?:etc|var|usr|run)/[\w./-]*[\w-]`)
	// What can be wrong with files that are empty or elsewhere.
	ofContent = regexp.MustCompile(`PEM data|: it is empty|secret cannot be read: open [\w.]+: no such file`)
)

// signingKey is a key in PEM.
var signingKey = sync.OnceValue(func() []byte {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
})

func loads(t *testing.T, text string) error {
	t.Helper()
	files, conf := t.TempDir(), t.TempDir()
	text = inConfiguration.ReplaceAllStringFunc(text, func(path string) string {
		path = files + path
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(path) != ".sock" && filepath.Ext(path) != "" || strings.Contains(path, "/etc/") {
			if err := os.WriteFile(path, nil, 0o640); err != nil {
				t.Fatal(err)
			}
		}
		return path
	})
	if err := os.WriteFile(files+"/key", signingKey(), 0o600); err != nil {
		t.Fatal(err)
	}
	const base = "hostname = \"mx.example.org\"\n"
	var first error
	const door = "[milter]\nlisten = [\"unix:/tmp/milter.sock\"]\n"
	for _, granted := range []string{
		"", door,
		door + "[chains.submission]\nchecks = [\"limit\"]\n[rbl]\nlists = [\"zen.spamhaus.org*9\"]\n[[provider.list]]\nname = \"office365\"\n",
		door + "[dkim]\nmode = \"enforce\"\n[[dkim.domain]]\ndomain = \"example.org\"\n[[dkim.domain.key]]\nselector = \"a\"\nfile = \"" + files + "/key\"\n",
	} {
		path := filepath.Join(conf, "postern.toml")
		for name, text := range map[string]string{path: base + granted, filepath.Join(conf, "conf.d", "a.toml"): text} {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := config.Load(path)
		if err == nil {
			return nil
		}
		var rest []string
		for _, line := range strings.Split(err.Error(), "\n") {
			if !strings.Contains(line, files) && !ofContent.MatchString(line) {
				rest = append(rest, line)
			}
		}
		if len(rest) == 0 {
			return nil
		}
		if err := fmt.Errorf("%s\n%s", text, strings.Join(rest, "\n")); first == nil {
			first = err
		}
	}
	return first
}

// Every command of ours in a document exists, with the flags that it is given.
func TestCommandsInDocuments(t *testing.T) {
	inline := regexp.MustCompile("`(postern [^`]+)`")
	n := 0
	for _, p := range pages(t) {
		if p.name == "docs/new-check.md" {
			continue // likewise
		}
		for _, b := range p.blocks {
			if b.kind != "sh" && b.kind != "indented" {
				continue
			}
			for i, line := range strings.Split(strings.ReplaceAll(b.text, "\\\n", " "), "\n") {
				for _, words := range commandsIn(line) {
					n++
					if err := parses(words, true); err != nil {
						t.Errorf("%s:%d: %s: %v", p.name, b.line+i, line, err)
					}
				}
			}
		}
		for _, m := range inline.FindAllStringSubmatch(p.text, -1) {
			for _, words := range commandsIn(m[1]) {
				n++
				if err := parses(words, false); err != nil {
					t.Errorf("%s: `%s`: %v", p.name, m[1], err)
				}
			}
		}
	}
	if n < 150 {
		t.Errorf("only %d commands", n)
	}
}

// commandsIn returns the words of each command of ours in a line for a shell.
func commandsIn(line string) (all [][]string) {
	line = strings.NewReplacer("&&", " ; ", "||", " ; ", "$(", " ; ", ")", " ; ").Replace(line)
	if i := strings.Index(line, "   "); i > 0 { // words about it, in a column of their own
		line = line[:i]
	}
	var words []string
	end := func() {
		for len(words) > 0 && (words[0] == "sudo" || words[0] == "watch" || words[0] == "-u" || words[0] == "$") {
			words = words[1:]
		}
		if len(words) > 1 && (words[0] == "postern" || words[0] == "./bin/postern") {
			all = append(all, words[1:])
		}
		words = nil
	}
	word, quote, in := "", rune(0), false
	flush := func() {
		if in {
			words = append(words, word)
		}
		word, in = "", false
	}
	for i, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == '#' && !in:
			end()
			return all
		case r == ' ' || r == '\t':
			flush()
		case (r == ';' || r == '>' || r == '<' || r == '&') && !in, r == ';':
			flush()
			end()
		case r == '|' && (i == 0 || line[i-1] == ' '):
			flush()
			end()
		default:
			word += string(r)
			in = true
		}
	}
	flush()
	end()
	return all
}

// parses says whether words are a command; whole ones are parsed as they would
// be, those in prose may leave things out.
func parses(words []string, whole bool) error {
	words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return strings.Trim(w, "….") == "" })
	for i, w := range words { // "list|show", "a, b" and the like: each of them
		if names := strings.Split(w, "|"); len(names) > 1 && !strings.HasPrefix(w, "-") {
			for _, name := range names {
				if err := parses(slices.Concat(words[:i], []string{name}, words[i+1:]), false); err != nil {
					return err
				}
			}
			return nil
		}
	}
	root := (&cli{}).root()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(words...)
	root.InitDefaultVersionFlag()
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if cmd.HasSubCommands() {
		for _, w := range rest {
			if !strings.HasPrefix(w, "-") && !cmd.Runnable() {
				return fmt.Errorf("%s has no %s", cmd.CommandPath(), w)
			}
		}
	}
	cmd.InitDefaultHelpFlag()
	if whole {
		if err := cmd.ParseFlags(rest); err != nil {
			return err
		}
		if !cmd.Runnable() {
			return nil
		}
		return cmd.ValidateArgs(cmd.Flags().Args())
	}
	return hasFlags(cmd, rest)
}

// hasFlags says whether each flag among words is one of cmd.
func hasFlags(cmd *cobra.Command, words []string) error {
	if err := cmd.ParseFlags(nil); err != nil { // the flags of the commands above it too
		return err
	}
	for _, w := range words {
		name, _, _ := strings.Cut(strings.Trim(w, "[]"), "=")
		switch {
		case strings.HasPrefix(name, "--") && cmd.Flags().Lookup(name[2:]) == nil,
			len(name) == 2 && name[0] == '-' && cmd.Flags().ShorthandLookup(name[1:]) == nil:
			return fmt.Errorf("%s has no %s", cmd.CommandPath(), name)
		}
	}
	return nil
}

// Every example for main.cf names parameters that Postfix has.
func TestPostfixSettingsInDocuments(t *testing.T) {
	postconf, err := exec.LookPath("postconf")
	if err != nil {
		postconf, err = exec.LookPath("/usr/sbin/postconf")
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("%v; make deps installs it", err)
	}
	dir := t.TempDir()
	ask := func(args ...string) (string, string) {
		var out, errs strings.Builder
		cmd := exec.Command(postconf, append([]string{"-c", dir}, args...)...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Errorf("%s: %v", cmd, err)
		}
		return out.String(), errs.String()
	}
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("main.cf", "")
	put("master.cf", "")
	defaults, _ := ask("-d")
	parameters := map[string]bool{}
	for line := range strings.Lines(defaults) {
		name, _, _ := strings.Cut(line, " =")
		parameters[name] = true
	}
	setting := regexp.MustCompile(`(?m)^([a-z][a-z0-9_]+) *=`)
	leave := regexp.MustCompile(`(?m)^(/.*| *\.\.\.)\n`) // lines of a table beside it, and what is left out
	n := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			names := setting.FindAllStringSubmatch(b.text, -1)
			if b.kind == "toml" || !slices.ContainsFunc(names, func(m []string) bool { return parameters[m[1]] }) {
				continue
			}
			n++
			put("main.cf", leave.ReplaceAllString(b.text, ""))
			if _, warnings := ask("-n"); warnings != "" {
				t.Errorf("%s:%d: %s", p.name, b.line, warnings)
			}
			for _, m := range names {
				// What is made up for a restriction class or a map of one's own begins as in the documents.
				if !parameters[m[1]] && !strings.HasPrefix(m[1], "postern") && !strings.Contains(b.text, "$"+m[1]) {
					t.Errorf("%s:%d: Postfix has no %s", p.name, b.line, m[1])
				}
			}
		}
	}
	if n < 8 {
		t.Errorf("only %d examples for main.cf", n)
	}
}
