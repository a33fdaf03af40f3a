package names

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func judge(t testing.TB, edit func(*Config)) *Judge {
	t.Helper()
	cfg := DefaultConfig()
	if edit != nil {
		edit(&cfg)
	}
	j, err := New(cfg, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// Some hundred names as they are in life, both ways.
func TestNames(t *testing.T) {
	text, err := os.ReadFile("testdata/names.txt")
	if err != nil {
		t.Fatal(err)
	}
	j := judge(t, nil)
	counts := map[string]int{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		if len(f) != 3 {
			t.Fatalf("bad line %q", line)
		}
		counts[f[0]]++
		why := j.Why(f[2], netip.MustParseAddr(f[1]))
		if (why != "") != (f[0] == "generic") {
			t.Errorf("%s %s: %q", f[1], f[2], why)
		}
	}
	if counts["generic"] < 300 || counts["own"] < 250 {
		t.Errorf("only %v names", counts)
	}
}

func TestBuiltInReads(t *testing.T) {
	rules, faults := parse("generic.list", BuiltIn)
	if err := faults.Err(); err != nil || len(rules) < 400 {
		t.Errorf("%d rules: %v", len(rules), err)
	}
	seen := map[string]int{}
	for _, r := range rules {
		if at, ok := seen[r.pattern]; ok {
			t.Errorf("%s stands in lines %d and %d", r.pattern, at, r.line)
		}
		seen[r.pattern] = r.line
	}
}

func TestParse(t *testing.T) {
	rules, faults := parse("f", "# note\n\nexample.net\n !mail.example.net # why\n.Vps-*.Example.ORG.\n")
	if faults.Err() != nil || len(rules) != 3 || rules[1].line != 4 || !rules[1].except || rules[2].pattern != "vps-*.example.org" || len(rules[2].labels) != 3 {
		t.Errorf("%+v %v", rules, faults)
	}
	for text, want := range map[string]string{
		"net\n":                                "f:1:1: \"net\" would make a whole top-level domain generic",
		"\n  a..b\n":                           "f:2:3: \"a..b\" has an empty label",
		"example.n*t":                          "f:1:1: \"example.n*t\": the last label cannot hold *",
		"!a*b*c*d*e*f.example.net":             "f:1:2: \"a*b*c*d*e*f.example.net\": more than four * in one label",
		"a.example b.example":                  "f:1:10: one name a line: \"b.example\" stands behind it",
		"192.0.2.0/24":                         "f:1:1: \"192.0.2.0/24\" is not a pattern of host names: \"0/24\" has a character that no name has",
		strings.Repeat("a", maxLine+1) + ".de": "f:1:1: a pattern of 516 bytes; names have at most 255",
	} {
		rules, faults := parse("f", text)
		if len(faults) != 1 || faults[0].Error() != want || len(rules) != 0 {
			t.Errorf("%.40q: %v", text, faults)
		}
	}
	if _, faults := parse("f", strings.Repeat("x", 100_000)); len(faults) != 1 {
		t.Errorf("an endless line: %v", faults)
	}
}

func TestRules(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, first, "vps.example.net\n!good.vps.example.net\nx.example.org\n!y.example.org\nv-*-1.cloud.example\n*.mid.*.cable.example\n")
	write(t, second, "!x.example.org\ny.example.org\n!t-ipconnect.de\nown.t-ipconnect.de\n")
	j := judge(t, func(c *Config) { c.Files = []string{first, second} })
	for name, want := range map[string]bool{
		"vps.example.net": true, "a.vps.example.net": true, "b.a.vps.example.net": true, "xvps.example.net": false, "example.net": false,
		"good.vps.example.net": false, "a.good.vps.example.net": false,
		"x.example.org": true, "y.example.org": false, // the first file goes first
		"v-77-1.cloud.example": true, "v-1.cloud.example": false, "v--1.cloud.example": true, "v-77-12.cloud.example": false,
		"a.mid.b.cable.example": true, "mid.b.cable.example": false, "z.a.mid.b.cable.example": true, "a.mid.cable.example": false,
		"mail.t-ipconnect.de": false, "own.t-ipconnect.de": true, // a file goes before the built-in list
		"p123.dip0.t-ipconnect.de": true, // but a longer pattern before a shorter one
		"localhost":                false, "": false,
	} {
		if got := j.Generic(name, netip.Addr{}); got != want {
			t.Errorf("%s: %v (%s)", name, got, j.Why(name, netip.Addr{}))
		}
	}
	none := judge(t, func(c *Config) { c.BuiltIn = false })
	if none.Generic("vmi1.contaboserver.net", netip.Addr{}) {
		t.Error("the built-in list is off")
	}
	if why := none.Why("dsl-17.example.org", netip.Addr{}); why != "access network" {
		t.Errorf("shapes need no list: %q", why)
	}
	if why := j.Why("a.vps.example.net", netip.Addr{}); why != first+":1 vps.example.net" {
		t.Errorf("why: %q", why)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A broken edit keeps the last good rules, and is told once.
func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "own")
	write(t, path, "a.example.org\n")
	core, logged := observer.New(zap.ErrorLevel)
	cfg := DefaultConfig()
	cfg.Files, cfg.ReloadInterval = []string{path}, conf.Duration(100*time.Millisecond)
	j, err := New(cfg, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	j.Start()
	defer j.Stop()
	for text, names := range map[string][2]string{"b.example.org\n": {"b.example.org", "a.example.org"}, "a.example.org\nc.example.org\n": {"c.example.org", "b.example.org"}} {
		write(t, path, text)
		for until := time.Now().Add(time.Minute); !j.Generic(names[0], netip.Addr{}) || j.Generic(names[1], netip.Addr{}); {
			if time.Now().After(until) {
				t.Fatalf("%q is not in force", text)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	write(t, path, "a..b\n")
	for until := time.Now().Add(time.Minute); logged.Len() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("a broken edit is not told")
		}
	}
	j.poll(time.Now())
	if logged.Len() != 1 || (!j.Generic("a.example.org", netip.Addr{}) && !j.Generic("b.example.org", netip.Addr{})) {
		t.Errorf("%d errors; rules are lost", logged.Len())
	}
	if _, err := New(cfg, zap.NewNop()); err == nil || !strings.Contains(err.Error(), path+":1:1: ") {
		t.Errorf("loading a broken file: %v", err)
	}
}

func TestValidate(t *testing.T) {
	cfg := DefaultConfig()
	var fs conf.Faults
	if cfg.Validate("names", &fs); fs != nil {
		t.Error(fs)
	}
	cfg.Files, cfg.ReloadInterval = []string{"/nonexistent"}, 0
	if cfg.Validate("names", &fs); len(fs) != 2 || fs[0].Key != "names.reload_interval" || fs[1].File != "/nonexistent" {
		t.Error(fs)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("example.net\n!a*.example.net # x", "vps.example.net")
	f.Add("*.b.c\na.*.c", "x.b.c")
	f.Fuzz(func(t *testing.T, text, name string) {
		rules, _ := parse("f", text)
		for _, r := range rules {
			if len(r.labels) == 0 || strings.Contains(r.labels[0], "*") {
				t.Fatalf("%+v", r)
			}
			again, faults := parse("f", r.pattern)
			if faults != nil || len(again) != 1 || again[0].pattern != r.pattern {
				t.Fatalf("%q reads as %+v %v", r.pattern, again, faults)
			}
			if plain := !strings.Contains(r.pattern, "*"); plain && (!r.matches(r.pattern) || !r.matches("x."+r.pattern) || r.matches("x"+r.pattern)) {
				t.Fatalf("%q does not match itself and below, or matches more", r.pattern)
			}
		}
		newList(rules).find(name)
	})
}

func BenchmarkWhy(b *testing.B) {
	j := judge(b, nil)
	addr := netip.MustParseAddr("192.0.2.7")
	for _, name := range []string{"mail.example.org", "vmi123456.contaboserver.net", "c-192-0-2-7.hsd1.ca.comcast.net"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				j.Generic(name, addr)
			}
		})
	}
}
