package config

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/internal/conf"
	"postern/pipeline"
	"postern/policy"
)

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func loadText(t *testing.T, text string) (*Config, error) {
	t.Helper()
	cfg, _, err := Load(write(t, t.TempDir(), "postern.toml", text))
	return cfg, err
}

func TestAnEmptyFileIsTheDefaults(t *testing.T) {
	cfg, err := loadText(t, "")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Path = cfg.Path
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got %+v\nwant %+v", cfg, want)
	}
}

// Each file in testdata/bad has the faults that its .want names, all of them
// and no more. -update writes them: read what it wrote.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.toml")
	if err != nil || len(files) < 6 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		_, _, err := Load(file)
		if err == nil {
			t.Errorf("%s loads", file)
			continue
		}
		got := strings.ReplaceAll(err.Error(), file+":", "") + "\n"
		if *update {
			if err := os.WriteFile(file+".want", []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file + ".want")
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", file, got, want)
		}
	}
}

// Relaying by what only the message shows is refused where nobody would look
// at it, or what is found would not count.
func TestRelayingNeedsTheMilter(t *testing.T) {
	const relay = `
[chains.relay]
purpose = "relay"
checks = ["provider"]
[provider]
own_domains = ["example.com"]
[[provider.list]]
name = "office365"
[[provider.list.relay]]
sender_domains = ["example.org"]
`
	const tenant = "tenant_ids = [\"01234567-89ab-cdef-0123-456789abcdef\"]\n"
	const door = "[milter]\nlisten = [\"tcp:127.0.0.1:10041\"]\n"
	for _, tt := range []struct{ name, text, fault, warning string }{
		{"by the envelope", relay, "", ""},
		{"by the message", relay + tenant + door, "", ""},
		{"by a signature", relay + "dkim_domains = [\"example.org\"]\n" + door, "", ""},
		{"without the milter", relay + tenant, "provider.list[0].relay[0].tenant_ids: can only be seen on the message itself: set milter.listen", ""},
		{"a signature without the milter", relay + "dkim_domains = [\"example.org\"]\n", "provider.list[0].relay[0].dkim_domains: can only be seen", ""},
		{"in shadow mode", "mode = \"shadow\"\n" + relay + tenant + door, "mode: shadow would let in what provider.list[0].relay[0].tenant_ids must refuse", ""},
		{"the milter's chain in shadow mode", relay + tenant + door + "[chains.inbound]\nmode = \"shadow\"\n", "chains.inbound.mode: shadow would let in", ""},
		{"another chain of the milter", relay + tenant + "[milter]\nlisten = [\"tcp:127.0.0.1:10041,chain=content\"]\n[chains.content]\nmode = \"off\"\n", "chains.content.mode: off would let in", ""},
		{"a milter that lets in what it cannot judge", relay + tenant + door + "on_panic = \"continue\"\n", "milter.on_panic: continue would let in", ""},
		{"the check in shadow mode", strings.Replace(relay, "[provider]", "[provider]\nmode = \"shadow\"", 1) + tenant + door, "", ""},
		{"no condition", strings.Replace(relay, "sender_domains = [\"example.org\"]", "", 1), "provider.list[0].relay[0]: there is no condition, so every customer of the provider could relay", ""},
		{"open on purpose", strings.Replace(relay, "sender_domains = [\"example.org\"]", "open_to_all_customers = true", 1), "", ""},
		{"open and not", relay + "open_to_all_customers = true\n", "open_to_all_customers: it means \"no condition\"", ""},
		{"no chain for relaying", strings.Replace(relay, "purpose = \"relay\"", "", 1), "", "no chain with purpose = \"relay\" has the check provider"},
	} {
		_, warnings, err := Load(write(t, t.TempDir(), "postern.toml", tt.text))
		switch {
		case tt.fault == "" && err != nil, tt.fault != "" && (err == nil || !strings.Contains(err.Error(), tt.fault)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.fault)
		case tt.warning == "" != (len(warnings) == 0) || tt.warning != "" && !strings.Contains(warnings[0], tt.warning):
			t.Errorf("%s: warnings %q, want %q", tt.name, warnings, tt.warning)
		}
	}
}

func TestConfD(t *testing.T) {
	dir := t.TempDir()
	main := write(t, dir, "postern.toml", `
[greylist]
delay = "3m"
window = "1d"
[access]
deny = ["inline:192.0.2.1"]
[chains.inbound]
checks = ["access", "greylist"]
[[rbl.zone]]
zone = "a.example"
[rbl]
lists = ["a.example*3", "b.example"]
`)
	write(t, dir, "conf.d/20-second.toml", "[greylist]\ndelay = \"5m\"\n[chains.submission]\nchecks = [\"access\"]\nmode = \"shadow\"\n")
	write(t, dir, "conf.d/10-first.toml", "[greylist]\ndelay = \"4m\"\n[access]\ndeny = [\"inline:192.0.2.2\", \"inline:192.0.2.3\"]\n[chains.inbound]\nbudget = \"9s\"\n[[rbl.zone]]\nzone = \"b.example\"\nname = \"b\"\n")
	write(t, dir, "conf.d/ignored.txt", "nonsense")
	cfg, _, err := Load(main)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Greylist.Delay != conf.Duration(5*time.Minute) || cfg.Greylist.Window != conf.Duration(24*time.Hour) {
		t.Errorf("scalars: %+v", cfg.Greylist)
	}
	if want := []string{"inline:192.0.2.2", "inline:192.0.2.3"}; !reflect.DeepEqual(cfg.Access.Deny, want) {
		t.Errorf("list: %q", cfg.Access.Deny)
	}
	in, sub := cfg.Chains["inbound"], cfg.Chains["submission"]
	if in.Budget != conf.Duration(9*time.Second) || len(in.Checks) != 2 || sub.Mode != policy.Shadow || sub.Budget != pipeline.DefaultChain().Budget || len(cfg.Chains) != 2 {
		t.Errorf("chains: %+v", cfg.Chains)
	}
	if len(cfg.RBL.Zones) != 1 || cfg.RBL.Zones[0].Name != "b" {
		t.Errorf("list of tables: %+v", cfg.RBL.Zones)
	}

	write(t, dir, "conf.d/30-bad.toml", "[greylist]\ndelay = \"13h\"\n")
	_, _, err = Load(main)
	if want := filepath.Join(dir, "conf.d/30-bad.toml") + ":2:1: greylist.delay: 13h is out of range"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a fault of the last file: %v, want %s", err, want)
	}
}

// A profile sets what no file gives, wherever the keys stand.
func TestProfile(t *testing.T) {
	for _, tt := range []struct{ text, part, when, suspicions string }{
		{"", "", "graded", "name helo sender spf list other"},
		{"[greylist]\nprofile = \"strict\"\n", "", "always", "name helo sender spf list other"},
		{"[greylist]\nprofile = \"gentle\"\n", "", "suspicious", "name helo sender list"},
		{"[greylist]\nwhen = \"suspicious\"\n", "", "suspicious", "name helo sender spf list other"},
		{"[greylist]\nsuspicions = [\"helo\"]\nprofile = \"balanced\"\n", "", "graded", "helo"},
		{"[greylist]\nprofile = \"gentle\"\nwhen = \"graded\"\n", "", "graded", "name helo sender list"},
		{"[greylist]\nwhen = \"graded\"\n", "[greylist]\nprofile = \"gentle\"\n", "graded", "name helo sender list"},
		{"greylist = { profile = \"gentle\", when = \"always\" }\n", "", "always", "name helo sender list"},
	} {
		dir := t.TempDir()
		main := write(t, dir, "postern.toml", tt.text)
		write(t, dir, "conf.d/1.toml", tt.part)
		cfg, _, err := Load(main)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		if got := strings.Join(cfg.Greylist.Suspicions, " "); cfg.Greylist.When != tt.when || got != tt.suspicions {
			t.Errorf("%q %q: when = %q, suspicions = %s", tt.text, tt.part, cfg.Greylist.When, got)
		}
	}
}

func TestDumpLoadsAgain(t *testing.T) {
	cfg, err := loadText(t, `
hostname = "mx.example.org"
mode = "shadow"
[policy]
listen = ["unix:/run/postern/p.sock,mode=0660,chain=other", "tcp:[::1]:10040"]
[chains.inbound]
checks = ["access", "rbl", "greylist"]
stages = ["rcpt", "data"]
[chains.other]
purpose = "relay"
checks = ["access"]
[rbl]
lists = ["a.example=127.0.0.[2..11]*3"]
[rbl.volume]
share = 0
[[rbl.zone]]
zone = "a.example"
test = false
volume_share = 50
[greylist]
profile = "gentle"
on_error = "defer"
delay = "90s"
skip = ["to:\"odd one\"@example.org delay=10m"]
`)
	if err != nil {
		t.Fatal(err)
	}
	var first bytes.Buffer
	if err := cfg.Dump(&first); err != nil {
		t.Fatal(err)
	}
	again, err := loadText(t, first.String())
	if err != nil {
		t.Fatalf("%v in\n%s", err, first.String())
	}
	var second bytes.Buffer
	if err := again.Dump(&second); err != nil || first.String() != second.String() {
		t.Errorf("%v; a dump of the dump:\n%s\nof\n%s", err, second.String(), first.String())
	}
	if !reflect.DeepEqual(cfg.Chains["other"].Checks, again.Chains["other"].Checks) || !reflect.DeepEqual(cfg.RBL.Zones[0].Test, again.RBL.Zones[0].Test) ||
		cfg.Greylist.Step != again.Greylist.Step || !reflect.DeepEqual(cfg.Policy, again.Policy) {
		t.Errorf("got %+v\nwant %+v", again, cfg)
	}
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := Load(filepath.Join(dir, "none.toml")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none.toml: no such file") {
		t.Errorf("a missing file: %v", err)
	}
	if _, _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := loadText(t, "hostname = \"\xff\""); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
		t.Errorf("bytes: %v", err)
	}
	if _, err := loadText(t, "\ufeffhostname = \"mx.example.org\""); err != nil {
		t.Errorf("a byte order mark: %v", err)
	}
	main := write(t, dir, "postern.toml", "")
	if err := os.Symlink("/nonexistent", filepath.Join(dir, "conf.d")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(main); err != nil {
		t.Errorf("without conf.d: %v", err)
	}
}

func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	secret := write(t, dir, "token", "s3cret\r\n")
	cfg, warnings, err := Load(write(t, dir, "postern.toml", "[admin]\nlisten = \"tcp:127.0.0.1:10049\"\ntoken_file = \""+secret+"\"\n"))
	if err != nil || len(warnings) != 0 {
		t.Fatal(err, warnings)
	}
	if token, err := cfg.AdminToken(); token != "s3cret" || err != nil {
		t.Errorf("token %q %v", token, err)
	}
	var dump bytes.Buffer
	if err := cfg.Dump(&dump); err != nil || strings.Contains(dump.String(), "s3cret") {
		t.Errorf("the dump holds the secret: %v", err)
	}
	if err := os.Chmod(secret, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, warnings, _ := Load(cfg.Path); len(warnings) != 1 || !strings.Contains(warnings[0], "everybody on this host can read") {
		t.Errorf("warnings %q", warnings)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if s, err := cfg.Secret("token"); s != "s3cret" || err != nil {
		t.Errorf("a credential: %q %v", s, err)
	}
	if s, err := cfg.Secret(""); s != "" || err != nil {
		t.Errorf("no secret: %q %v", s, err)
	}
	write(t, dir, "large", strings.Repeat("x", maxSecret+1))
	if _, err := cfg.Secret("large"); err == nil {
		t.Error("a large file is a secret")
	}
}

func TestPeekReadsWhatItCan(t *testing.T) {
	cfg := Peek(write(t, t.TempDir(), "postern.toml", "[admin]\nlisten = \"unix:/run/other.sock\"\n[greylist]\nnonsense = 1\n"))
	if cfg.Admin.Listen != "unix:/run/other.sock" {
		t.Errorf("admin %+v", cfg.Admin)
	}
	if cfg := Peek("/nonexistent/x.toml"); cfg.Admin.Listen == "" {
		t.Errorf("without a file: %+v", cfg.Admin)
	}
}

func TestNearest(t *testing.T) {
	of := []string{"delay", "window", "keep", "max_delay"}
	for word, want := range map[string]string{
		"dealy": "delay", "delays": "delay", "Window": "window", "max_dalay": "max_delay", "kepe": "keep", "completely": "", "x": "",
	} {
		if got := Nearest(word, of); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func FuzzDocument(f *testing.F) {
	for _, s := range []string{"", "hostname = 1", "[chains.x]\nchecks = ['access']", "[[rbl.zone]]\nzone='a'\n[rbl.zone.x]", "a.b.c = 1", "[rbl]\nzone = [{zone='a', test=true}]", "[rbl]\nvolume = {share = 1}", "[chains]\nx = {}", "chains.a.b.c = 1", "[a]\n[a]", "x = 1979-05-27"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c := Default()
		d := newDecoder(c, func(string) any { return pipeline.DefaultChain() })
		d.document("f", []byte(text))
		d.document("g", []byte(text))
		d.finish()
		for _, fault := range d.faults {
			if fault.Text == "" || fault.File == "" || fault.Line < 0 || fault.Column < 0 {
				t.Fatalf("fault %+v", fault)
			}
		}
	})
}

// Every check that a chain can name can be skipped by name.
func TestChecksAreSkippable(t *testing.T) {
	for name := range new(Checks).describe() {
		if !slices.Contains(conf.Skippable, name) {
			t.Errorf("conf.Skippable does not have %q", name)
		}
	}
}

// Settings have all keys with their places and what the reference says of them.
func TestSettings(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "postern.toml")
	text := "hostname = \"mx.example.com\"\n[greylist]\ndelay = \"3m\"\n[[limit.rule]]\nname = \"a\"\nkey = [\"client\"]\nrate = \"10/1h\"\n[chains.inbound]\nchecks = [\"greylist\"]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, _, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]Setting{}
	for _, s := range cfg.Settings() {
		found[s.Section+" "+s.Key] = s
		if s.Doc == "" {
			t.Errorf("the reference does not have %s of [%s]", s.Key, s.Section)
		}
	}
	for key, want := range map[string]Setting{
		" hostname":             {Value: `"mx.example.com"`, File: path, Line: 1},
		"greylist delay":        {Value: `"3m"`, Default: `"2m"`, File: path, Line: 3},
		"greylist profile":      {Value: `"balanced"`, Default: `"balanced"`},
		"limit.rule[0] name":    {Value: `"a"`, File: path, Line: 5},
		"chains.inbound checks": {Value: `["greylist"]`, File: path, Line: 9},
	} {
		got := found[key]
		if got.Value != want.Value || got.File != want.File || got.Line != want.Line || want.Default != "" && got.Default != want.Default {
			t.Errorf("%s: %+v, want %+v", key, got, want)
		}
	}
}
