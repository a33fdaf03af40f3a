package provider

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
	"postern/policy"
)

// load reads a [provider] section as the daemon does.
func load(t testing.TB, text string) (Config, conf.Faults) {
	t.Helper()
	doc := struct {
		Provider Config `toml:"provider"`
	}{DefaultConfig()}
	if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&doc); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	var fs conf.Faults
	doc.Provider.Validate("provider", &fs)
	return doc.Provider, fs
}

func TestDefaultsAreGood(t *testing.T) {
	if _, fs := load(t, ""); fs != nil {
		t.Error(fs)
	}
	c, fs := load(t, "[provider]\n[[provider.list]]\nname = \"office365\"\n[[provider.list]]\nname = \"google\"\nskip = []\n")
	if fs != nil {
		t.Error(fs)
	}
	if got := c.Lists[0].domains(); len(got) != 1 || got[0] != "spf.protection.outlook.com" {
		t.Errorf("office365: %v", got)
	}
	if c.Lists[0].Skip != nil || c.Lists[1].Skip == nil {
		t.Error("an empty skip is not told from none")
	}
	if len(c.NeedsMilter("provider")) != 0 {
		t.Error("a milter is needed for nothing")
	}
}

func TestBuiltin(t *testing.T) {
	names := Builtin()
	if len(names) < 20 || !slices.IsSorted(names) || !slices.Contains(names, "office365") || !slices.Contains(names, "google") {
		t.Errorf("%v", names)
	}
	cfg := DefaultConfig()
	for _, name := range names {
		cfg.Lists = append(cfg.Lists, ListConfig{Name: name})
		for _, d := range BuiltinDomains(name) {
			if !validName(d) || strings.ToLower(d) != d || !strings.Contains(d, ".") {
				t.Errorf("%s: %q", name, d)
			}
		}
	}
	var fs conf.Faults
	if cfg.Validate("provider", &fs); fs != nil {
		t.Error(fs)
	}
	if BuiltinDomains("nobody") != nil {
		t.Error("somebody")
	}
}

func TestFaults(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const list = "[[provider.list]]\nname = \"p\"\ndomains = [\"p.example\"]\n"
	const relay = list + "[[provider.list.relay]]\n"
	for _, tt := range []struct {
		text string
		want []string // the faults, in order: parts
	}{
		{"[provider]\nrefresh_every = \"1m\"\nrefresh_min = \"1s\"\n", []string{"provider.refresh_every: 1m is out of range", "provider.refresh_min: 1s is out of range"}},
		{"[provider]\nrefresh_min = \"2d\"\n", []string{"provider.refresh_min: 2d is more than refresh_every, 1d"}},
		{"[provider]\nretry_min = \"10m\"\nretry_max = \"5m\"\n", []string{"provider.retry_min: 10m is more than retry_max"}},
		{"[provider]\nmax_lookups = 0\nhistory = 0\n", []string{"provider.max_lookups: 0", "provider.history: 0"}},
		{"[provider]\nstate_dir = \"state\"\n" + list, []string{`provider.state_dir: "state" is not an absolute path`}},
		{"[provider]\nskip = [\"rbl\", \"provider\"]\n", []string{`provider.skip[1]: there is no check "provider"`}},
		{"[provider]\nown_domains = [\"a@example.org\", \"localhost\"]\n", []string{"provider.own_domains[0]", "provider.own_domains[1]"}},
		{"[provider]\nrelay_reply = \"450 no\"\ndefer_reply = \"{x}\"\n", []string{"provider.relay_reply: reply code 450: must be 5xx", "provider.defer_reply: unknown placeholder {x}"}},
		{
			"[provider.guard]\nmax_shrink = 0\nmax_grow = 0\nmin_ipv4_prefix = 33\nmin_ipv6_prefix = -1\n" + list,
			[]string{"guard.max_shrink: 0", "guard.max_grow: 0", "guard.min_ipv4_prefix: 33", "guard.min_ipv6_prefix: -1"},
		},
		{list + "max_shrink = 101\nmin_ipv4_prefix = 40\n", []string{"list[0].max_shrink: 101", "list[0].min_ipv4_prefix: 40"}},
		{list + list, []string{`provider.list[1].name: "p" is the name of list[0] too`}},
		{"[[provider.list]]\n", []string{`list[0].name: "" is not a name`, `list[0].name: "" is no built-in provider`}},
		{"[[provider.list]]\nname = \"Ofice/365\"\n", []string{"is not a name", "is no built-in provider, so it needs domains or files (built in: amazonses"}},
		{
			"[[provider.list]]\nname = \"p\"\ndomains = [\"p.example\", \"P.example.\", \"x..y\", \"com\"]\n",
			[]string{`domains[1]: "P.example." is there already`, `domains[2]: "x..y" is not a domain`, `domains[3]: "com"`},
		},
		{
			"[[provider.list]]\nname = \"p\"\nfiles = [\"" + file("bad", "192.0.2.1/24\n\n 300.1.1.1 # x\n::ffff:192.0.2.0/120\n") + "\", \"" + filepath.Join(dir, "none") + "\"]\n",
			[]string{`bad:1:1: "192.0.2.1/24" has bits set behind the prefix length: did you mean 192.0.2.0/24?`, `bad:3:2: "300.1.1.1" is not an address`, "bad:4:1", "none: no such file"},
		},
		{"[[provider.list]]\nname = \"p\"\nfiles = [\"" + file("empty", "# nothing\n") + "\"]\n", []string{"list[0].files: there is no network in them"}},
		{"[[provider.list]]\nname = \"p\"\nfiles = [\"" + file("private", "10.0.0.0/8\n") + "\"]\n", []string{"list[0].files: networks wider", "list[0].files: private or reserved networks: 10.0.0.0/8"}},
		{"[[provider.list]]\nname = \"p\"\nmin_ipv4_prefix = 8\nallow_reserved = true\nfiles = [\"" + file("private2", "10.0.0.0/8\n") + "\"]\n", nil},
		{
			list + "[[provider.list.export]]\npath = \"x\"\nmode = \"abc\"\nowner = \"nobody-here-at-all\"\nresult = \" OK\"\n",
			[]string{`export[0].path: "x" is not an absolute path`, "export[0].result", "export[0].mode", "export[0].owner: there is no user"},
		},
		{
			list + "[[provider.list.export]]\npath = \"" + dir + "/none/x\"\nmode = \"0077\"\nowner = \":no-such-group-here\"\n[[provider.list.export]]\npath = \"" + dir + "/none/x\"\n",
			[]string{"is not a directory", "mode", "there is no group", "is written by provider.list[0].export[0] too", "is not a directory"},
		},

		{relay, []string{"provider.list[0].relay[0]: there is no condition, so every customer of the provider could relay"}},
		{relay + "open_to_all_customers = true\n", nil},
		{relay + "open_to_all_customers = true\nsender_domains = [\"example.org\"]\n", []string{"relay[0].open_to_all_customers: it means"}},
		{
			relay + "sender_domains = [\"a b\", \"@x.example\"]\ncert_names = [\"*\"]\ndkim_domains = [\"\"]\n",
			[]string{"sender_domains[0]", "sender_domains[1]", "cert_names[0]", "dkim_domains[0]"},
		},
		{
			relay + "sender_domains = [\"example.org\"]\ncert_fingerprints = [\"AA:BB\"]\ntenant_ids = [\"example.onmicrosoft.com\"]\n",
			[]string{"cert_fingerprints[0]", "tenant_ids[0]"},
		},
		{relay + "null_sender = true\n", []string{"relay[0].null_sender: anybody can send with the null sender"}},
		{relay + "tenant_ids = [\"" + tenantA + "\"]\n", []string{"relay[0]: without own_domains"}},
		{relay + "sender_domains = [\"example.org\"]\nnull_sender = true\ntenant_ids = [\"" + tenantA + "\"]\n", []string{"without own_domains"}},
		{"[provider]\nown_domains = [\"example.org\"]\n" + relay + "tenant_ids = [\"" + tenantA + "\"]\n", nil},
		{relay + "sender_domains = [\"example.org\"]\ntenant_ids = [\"" + tenantA + "\"]\n" +
			"[[provider.list.relay]]\nsender_domains = [\".example.org\"]\ncert_names = [\"m.example.org\"]\n", []string{"list[0].relay[1]: a sender can belong to it and to provider.list[0].relay[0]"}},
		{relay + "sender_domains = [\"example.org\"]\ntenant_ids = [\"" + tenantA + "\"]\n" +
			"[[provider.list.relay]]\nsender_domains = [\".sub.example.org\"]\ncert_names = [\"m.example.org\"]\n", nil},
		{relay + "sender_domains = [\"example.org\"]\ncert_names = [\"a.example\", \"b.example\"]\ntenant_ids = [\"" + tenantA + "\"]\n" +
			"[[provider.list.relay]]\nsender_domains = [\"example.org\"]\ncert_names = [\"b.example\", \"a.example\"]\ndkim_domains = [\"example.org\"]\n", nil},
	} {
		_, fs := load(t, tt.text)
		if len(fs) != len(tt.want) {
			t.Errorf("%d faults, want %d:\n%v\nin\n%s", len(fs), len(tt.want), fs, tt.text)
			continue
		}
		for i, f := range fs {
			if !strings.Contains(f.Error(), tt.want[i]) {
				t.Errorf("fault %v, want %s", f, tt.want[i])
			}
		}
	}
	many := DefaultConfig()
	for i := range maxLists + 1 {
		many.Lists = append(many.Lists, ListConfig{Name: fmt.Sprint("p", i), Domains: []string{"p.example"}})
	}
	var fs conf.Faults
	if many.Validate("provider", &fs); len(fs) != 1 {
		t.Errorf("%v", fs)
	}
}

func TestSetIsACheck(t *testing.T) {
	s, _ := newSet(t, DefaultConfig(), Options{Resolver: newZone(nil)})
	if s.Name() != "provider" || s.Traits() != Traits || Traits.Waits || Traits.Last || s.Inspector().Name() != "provider" || len(s.Names()) != 0 {
		t.Error("it is not what the pipeline wants")
	}
	if v := evaluate(t, s, request("a@example.org", "b@example.com")); v.Action != policy.Continue {
		t.Errorf("%+v", v)
	}
	if _, ok := s.Table("p"); ok {
		t.Error("a table without a list")
	}
}

// manual is the manual page of the package.
func manual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docs/providers.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheManualsExamplesLoad(t *testing.T) {
	n := 0
	plain := strings.ReplaceAll(manual(t), "\n   ", "\n") // blocks in a numbered list
	for i, part := range strings.Split(plain, "\n```") {
		text, ok := strings.CutPrefix(part, "toml\n")
		if !ok || i%2 == 0 {
			continue
		}
		n++
		text = strings.ReplaceAll(text, "/etc/postfix/", t.TempDir()+"/")
		path := filepath.Join(t.TempDir(), "own.list")
		if err := os.WriteFile(path, []byte("198.18.0.0/24\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		text = strings.ReplaceAll(text, "/etc/postern/partners.list", path)
		text = strings.ReplaceAll(text, `"postfix"`, `""`)
		// Sections of other packages are not ours to read.
		var own strings.Builder
		skip := false
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "[") {
				skip = !strings.Contains(line, "provider")
			}
			if !skip {
				own.WriteString(line)
			}
		}
		if _, fs := load(t, own.String()); fs != nil {
			t.Errorf("%v in\n%s", fs, own.String())
		}
	}
	if n != 7 {
		t.Errorf("%d examples", n)
	}
}

// Every key is in the manual, with its default as the code has it.
func TestTheManualHasEveryKey(t *testing.T) {
	text := manual(t)
	row := func(section, key string) string {
		_, after, ok := strings.Cut(text, "\n### "+section+"\n")
		if !ok {
			t.Fatalf("no section %q", section)
		}
		after, _, _ = strings.Cut(after, "\n#")
		_, line, ok := strings.Cut(after, "\n| `"+key+"` |")
		if !ok {
			t.Errorf("%s has no row for %s", section, key)
		}
		line, _, _ = strings.Cut(line, "\n")
		return line
	}
	for section, v := range map[string]any{
		"[provider]": DefaultConfig(), "[provider.guard]": DefaultConfig().Guard, "[[provider.list]]": ListConfig{},
		"[[provider.list.export]]": ExportConfig{}, "[[provider.list.relay]]": RelayConfig{},
	} {
		rv := reflect.ValueOf(v)
		for i := range rv.NumField() {
			key := rv.Type().Field(i).Tag.Get("toml")
			if key == "" || key == "list" || key == "guard" || key == "export" || key == "relay" {
				continue
			}
			line := row(section, key)
			if strings.HasPrefix(section, "[[") {
				continue
			}
			want := fmt.Sprint(rv.Field(i).Interface())
			if list, ok := reflect.TypeAssert[[]string](rv.Field(i)); ok {
				want = strings.Join(list, `", "`)
			}
			if !strings.Contains(line, want) {
				t.Errorf("%s %s: the manual says %q, the default is %s", section, key, line, want)
			}
		}
	}
	for _, name := range Builtin() {
		line := row("Built-in providers", name)
		for _, d := range BuiltinDomains(name) {
			if !strings.Contains(line, "`"+d+"`") {
				t.Errorf("%s: the manual does not name %s", name, d)
			}
		}
	}
	for _, word := range append(slices.Concat(relayNames[:], messageNames[:]), "postern_provider_networks", "postern_provider_checked_timestamp_seconds",
		"postern_provider_changed_timestamp_seconds", "postern_provider_refused", "postern_provider_faulty", "postern_provider_refreshes_total",
		"postern_provider_relay_total", "postern_provider_messages_total", "provider-allowed", "provider-listed", "provider-relay",
		"provider-relay-refused", "provider-relay-undecided", "milter_default_action", "X-MS-Exchange-CrossTenant-Id") {
		if !strings.Contains(text, word) {
			t.Errorf("the manual does not mention %s", word)
		}
	}
}
