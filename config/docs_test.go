package config

import (
	"bytes"
	"encoding"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/auth"
	"postern/client"
	"postern/dkim"
	"postern/expect"
	"postern/headercheck"
	"postern/limit"
	"postern/lookup"
	"postern/pipeline"
	"postern/provider"
	"postern/rbl"
	"postern/verify"
	"postern/verify/directory"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

const manual = "../docs/configuration.md"

// TestManual holds docs/configuration.md to the code: every key, its default
// and what its field's comment says. `go test ./config -update` writes it.
func TestManual(t *testing.T) {
	want := writeManual(t)
	if *update {
		if err := os.WriteFile(manual, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/configuration.md does not say what the code has; go test ./config -update writes it")
	}
}

const intro = `# Configuration

<!-- Written from the comments and defaults in the code by: go test ./config -update -->

` + "`/etc/postern/postern.toml`, then `conf.d/*.toml` beside it in the order of their names, is [TOML](https://toml.io). Later files override\n" +
	"single values and lists of earlier ones; tables merge. An empty file works: every key has a default.\n\n" +
	"Unknown keys, values of the wrong kind, lists that cannot be read and combinations that make no sense are faults. `postern check` reports\n" +
	"all of them with file, line and column; `postern config dump` shows the effective values. `systemctl reload postern`, `postern reload` or SIGHUP\n" +
	"bring a changed file into force; one with faults changes nothing. `store`, `journal`, `admin`, `console`, `log.output` and `log.format` take a restart, and `postern status`\n" +
	"says when one is waited for.\n\n" +
	"Durations are numbers with units, `\"250ms\"`, `\"90s\"`, `\"1h30m\"`, `\"36d\"`, `\"2w\"`. Secrets are never in the file itself but in files that it names; a name\n" +
	"without a directory is looked for among systemd's credentials. Texts for clients may begin with a code and an enhanced code of the right\n" +
	"class, and hold placeholders in braces; a brace itself is written twice.\n"

// section is one table of the configuration.
type section struct {
	title, words string
	value        reflect.Value
}

func writeManual(t *testing.T) []byte {
	t.Helper()
	c := Default()
	c.Hostname = "" // not the same everywhere
	chain := pipeline.DefaultChain()
	comments := fieldComments(t)
	var b bytes.Buffer
	b.WriteString(intro)
	titled := map[string]bool{}
	for _, s := range []section{
		{"", "These stand at the top, before any section.", reflect.ValueOf(*c)},
		{"log", "", reflect.ValueOf(c.Log)},
		{"policy", "The policy delegation door. What can be said behind an address: [policy protocol](policy-protocol.md).", reflect.ValueOf(c.Policy)},
		{"milter", "The milter door: [milter](milter.md).", reflect.ValueOf(c.Milter)},
		{"lookup", "The lookup door, open where there is a table or a list to serve: [lookup](lookup.md).", reflect.ValueOf(c.Lookup)},
		{"tables.NAME", "A table that the lookup door serves under NAME.", reflect.ValueOf(lookup.DefaultTable())},
		{"admin", "The administrator's door: metrics, health, and the commands of `postern`.", reflect.ValueOf(c.Admin)},
		{"console", "The console, in a browser; the manual: [console](console.md).", reflect.ValueOf(c.Console)},
		{"store", "", reflect.ValueOf(c.Store)},
		{"store.redis", "For `store.kind = \"redis\"`.", reflect.ValueOf(c.Store.Redis)},
		{"journal", "Traces of decisions: [journal](journal.md).", reflect.ValueOf(c.Journal)},
		{"dns", "", reflect.ValueOf(c.DNS)},
		{"chains.NAME", "A chain is a list of checks. `inbound` judges what names no other; without a section of its own it has `checks = [\"access\", \"provider\", \"client\", \"rbl\", \"spf\", \"verify\", \"greylist\"]`. " +
			"`policy_context=NAME` in main.cf, or `chain=NAME` behind a listening address, picks another.", reflect.ValueOf(chain)},
		{"access", "The check's manual: [access](checks/access.md).", reflect.ValueOf(c.Access)},
		{"provider", "The check's manual: [providers](providers.md).", reflect.ValueOf(c.Provider)},
		{"provider.guard", "", reflect.ValueOf(c.Provider.Guard)},
		{"[provider.list]", "One provider; the section can stand many times.", reflect.ValueOf(provider.ListConfig{})},
		{"[provider.list.export]", "A file for Postfix; belongs to the list above it.", reflect.ValueOf(provider.ExportConfig{})},
		{"[provider.list.relay]", "Who may relay through us from the networks of the list above it: all conditions must hold.", reflect.ValueOf(provider.RelayConfig{})},
		{"client", "The check's manual: [client](checks/client.md).", reflect.ValueOf(c.Client)},
		{"client.CONDITION", "What one condition does, `[client.helo_invalid]` for example. All of them with their defaults: [client](checks/client.md#conditions).", reflect.ValueOf(client.Condition{})},
		{"rbl", "The check's manual: [rbl](checks/rbl.md).", reflect.ValueOf(c.RBL)},
		{"rbl.volume", "", reflect.ValueOf(c.RBL.Volume)},
		{"[rbl.zone]", "Options of one list; the section can stand many times.", reflect.ValueOf(rbl.ZoneConfig{})},
		{"spf", "The check's manual: [spf](checks/spf.md).", reflect.ValueOf(c.SPF)},
		{"spf.mail_from", "What each result for the sender's domain does: \"reject\", \"defer\", \"mark\" (a suspicion for later checks) or \"off\".", reflect.ValueOf(c.SPF.MailFrom)},
		{"spf.helo", "The same for the HELO name.", reflect.ValueOf(c.SPF.Helo)},
		{"limit", "The check's manual: [limit](checks/limit.md).", reflect.ValueOf(c.Limit)},
		{"[limit.rule]", "One limit; the section can stand many times.", reflect.ValueOf(limit.DefaultRule())},
		{"[limit.notify]", "Who is told when somebody hits a limit; the section can stand many times.", reflect.ValueOf(limit.DefaultNotify())},
		{"verify", "The check's manual: [verify](checks/verify.md).", reflect.ValueOf(c.Verify)},
		{"verify.callout", "How next hops are asked.", reflect.ValueOf(c.Verify.Callout)},
		{"[verify.route]", "Domains, and who knows their addresses; the section can stand many times. What it leaves out is as in `[verify]` and `[verify.callout]`.", reflect.ValueOf(verify.Route{})},
		{"[verify.ldap]", "A directory that routes name as `ldap:NAME`; the section can stand many times.", reflect.ValueOf(directory.Config{})},
		{"known", "The check's manual: [known](checks/known.md).", reflect.ValueOf(c.Known)},
		{"names", "Which reverse names tell nothing about who is behind them, for `client` and `greylist`: [generic names](checks/greylist.md#generic-names).", reflect.ValueOf(c.Names)},
		{"greylist", "The check's manual: [greylist](checks/greylist.md).", reflect.ValueOf(c.Greylist)},
		{"auth", "DKIM, DMARC and Authentication-Results, at the milter door; the manual: [authentication](authentication.md).", reflect.ValueOf(c.Auth)},
		{"auth.dmarc", "", reflect.ValueOf(c.Auth.DMARC)},
		{"auth.arc", "", reflect.ValueOf(c.Auth.ARC)},
		{"[auth.upstream]", "A host of yours whose results are believed; the section can stand many times.", reflect.ValueOf(auth.UpstreamConfig{})},
		{"dkim", "Signing of outgoing mail, at the milter door; the manual: [signing](signing.md).", reflect.ValueOf(c.DKIM)},
		{"[dkim.domain]", "A domain whose mail is signed; the section can stand many times.", reflect.ValueOf(dkim.DomainConfig{})},
		{"[dkim.domain.key]", "A key of the domain above it; the section can stand many times.", reflect.ValueOf(dkim.KeyConfig{})},
		{"dmarc_reports", "Aggregate reports to the owners of domains: [authentication](authentication.md#reports).", reflect.ValueOf(c.Reports)},
		{"headers", "Rules on the content of messages; the manual: [headers](checks/headers.md).", reflect.ValueOf(c.Headers)},
		{"[headers.checks]", "One table; the section can stand many times.", reflect.ValueOf(headercheck.TableConfig{})},
		{"[headers.rules]", "A rule that needs several headers; the section can stand many times.", reflect.ValueOf(headercheck.RuleConfig{})},
		{"[expect]", "What the configuration is to do, tried by `postern check` and before each reload: [expectations](expect.md). The section can stand many times.", reflect.ValueOf(expect.Case{})},
	} {
		first, _, _ := strings.Cut(strings.Trim(s.title, "[]"), ".")
		titled[first] = true
		if s.title == "" {
			b.WriteString("\n## Top level\n")
		} else {
			fmt.Fprintf(&b, "\n## [%s]\n", s.title)
		}
		if s.words != "" {
			fmt.Fprintf(&b, "\n%s\n", s.words)
		}
		b.WriteString("\n| key | default | |\n|---|---|---|\n")
		for f, tag := range fields(s.value.Type()) {
			v := s.value.FieldByIndex(f.Index)
			if isTable(v.Type()) || v.Kind() == reflect.Slice && isTable(v.Type().Elem()) {
				continue // a section of its own
			}
			owner := s.value.Type()
			for i := range f.Index[:len(f.Index)-1] {
				owner = owner.FieldByIndex(f.Index[:i+1]).Type
			}
			text, ok := comments[owner.PkgPath()+"."+owner.Name()+"."+f.Name]
			if !ok || text == "" {
				t.Errorf("%s.%s of %s has no comment", owner.Name(), f.Name, owner.PkgPath())
			}
			text, said := cutDefault(text)
			value := tomlText(t, v)
			if v.Kind() != reflect.Pointer { // "not set" is a value of its own
				compareDefault(t, s.title+"."+tag, said, value)
			}
			text = strings.Replace(text, f.Name+" ", "`"+tag+"` ", 1)
			if value == `""` || value == "" {
				value = "none"
				if said != "" && !strings.HasPrefix(said, `""`) {
					value = said
				}
			} else {
				value = "`" + value + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", tag, strings.ReplaceAll(value, "|", `\|`), strings.ReplaceAll(text, "|", `\|`))
		}
	}
	for f, tag := range fields(reflect.TypeFor[Config]()) {
		if kind := f.Type.Kind(); !titled[tag] && (isTable(f.Type) || kind == reflect.Map || kind == reflect.Slice && isTable(f.Type.Elem())) {
			t.Errorf("the manual has no section %s", tag)
		}
	}
	return b.Bytes()
}

// cutDefault parts the sentence about the default from a comment.
func cutDefault(text string) (rest, said string) {
	i := strings.LastIndex(text, "Default ")
	if j := strings.LastIndex(text, "Default: "); j > i {
		i = j
	}
	if i < 0 {
		return text, ""
	}
	said = strings.TrimPrefix(strings.TrimPrefix(text[i:], "Default: "), "Default ")
	// What follows the sentence belongs to the text.
	if m := regexp.MustCompile(`^("(?:[^"]*)"|\[[^\]]*\]|-?[0-9]+|true|false)([.,:] ?)(.*)$`).FindStringSubmatch(said); m != nil {
		return strings.TrimSpace(text[:i] + strings.TrimSpace(m[3])), m[1]
	}
	return strings.TrimSpace(text[:i]), strings.TrimSuffix(said, ".")
}

// compareDefault reports a comment that promises another default than the
// code has. Comments that describe it in words are not compared.
func compareDefault(t *testing.T, key, said, value string) {
	t.Helper()
	if said == "" || !strings.ContainsAny(said[:1], `"[-0123456789tf`) || strings.HasPrefix(said, "the") || strings.HasPrefix(said, "those") || strings.HasPrefix(said, "th") {
		return
	}
	plain := strings.NewReplacer("'", "\"", " ", "", "[]", "[]").Replace
	if plain(said) != plain(value) {
		t.Errorf("%s: the comment says the default is %s, the code has %s", key, said, value)
	}
}

// tomlText writes a value as it stands in the file; "" for none.
func tomlText(t *testing.T, v reflect.Value) string {
	t.Helper()
	if v.Kind() == reflect.Pointer {
		return ""
	}
	if m, ok := reflect.TypeAssert[encoding.TextMarshaler](v); ok {
		text, err := m.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		return `"` + string(text) + `"`
	}
	if v.Kind() == reflect.Slice {
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = tomlText(t, v.Index(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	if v.Kind() == reflect.String {
		return `"` + v.String() + `"`
	}
	return fmt.Sprint(v.Interface())
}

// fieldComments returns the comments of the fields of all structs in the
// packages that the configuration is made of, by package, type and field.
func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range []string{
		"access", "admin", "config", "greylist", "internal/conf", "internal/logging", "pipeline", "policyd", "rbl", "resolver", "store", "verify", "verify/callout", "verify/directory",
		"auth", "client", "console", "dkim", "dmarcreport", "expect", "headercheck", "journal", "known", "limit", "lookup", "milter", "names", "provider", "spf",
	} {
		files, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				spec, ok := n.(*ast.TypeSpec)
				if !ok {
					return true
				}
				s, ok := spec.Type.(*ast.StructType)
				if !ok {
					return true
				}
				for _, f := range s.Fields.List {
					for _, name := range f.Names {
						out["postern/"+dir+"."+spec.Name.Name+"."+name.Name] = strings.Join(strings.Fields(f.Doc.Text()), " ")
					}
				}
				return true
			})
		}
	}
	return out
}

// TestShippedFileHoldsTheDefaults takes the # from every commented key of
// configs/postern.toml: what it shows must be what holds without it.
func TestShippedFileHoldsTheDefaults(t *testing.T) {
	text, err := os.ReadFile("../configs/postern.toml")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	shown := 0
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && regexp.MustCompile(`^([a-z_]+ = |\[)`).MatchString(rest) {
			line = rest
			shown++
		}
		b.WriteString(line)
	}
	if shown < 30 {
		t.Errorf("only %d commented keys", shown)
	}
	c := Default()
	d := newDecoder(c, func(string) any { return pipeline.DefaultChain() })
	d.document("postern.toml", []byte(b.String()))
	d.finish()
	if len(d.faults) > 0 {
		t.Fatal(d.faults)
	}
	want := Default()
	// What the shipped file sets on purpose.
	c.Hostname, c.Policy.Listen, c.Mode = want.Hostname, want.Policy.Listen, want.Mode
	c.Access.Allow, c.Access.Deny, c.Greylist.Exceptions, c.RBL.Lists = nil, nil, nil, nil
	var got, must bytes.Buffer
	if err := toml.NewEncoder(&got).Encode(c); err != nil {
		t.Fatal(err)
	}
	if err := toml.NewEncoder(&must).Encode(want); err != nil {
		t.Fatal(err)
	}
	if got.String() != must.String() {
		t.Errorf("shown defaults:\n%s\nreal ones:\n%s", got.String(), must.String())
	}
}
