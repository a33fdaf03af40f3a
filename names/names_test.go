package names

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
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
		"! example.net":                        "f:1:2: one name a line: \"example.net\" stands behind it",
		"!a.example\tb":                        "f:1:11: one name a line: \"b\" stands behind it",
		"a.example b.example":                  "f:1:10: one name a line: \"b.example\" stands behind it",
		"192.0.2.0/24":                         "f:1:1: \"192.0.2.0/24\" is not a pattern of host names: \"0/24\" has a character that no name has",
		strings.Repeat("a", maxLine+1) + ".de": "f:1:1: a pattern of 516 bytes; names have at most 255",
	} {
		rules, faults := parse("f", text)
		if len(faults) != 1 || faults[0].Error() != want || len(rules) != 0 {
			t.Errorf("%.40q: %v", text, faults)
		}
	}
	if _, faults := parse("f", "a.example\n"+strings.Repeat("x", 100_000)); len(faults) != 1 || faults[0].Line != 2 {
		t.Errorf("an endless line: %v", faults)
	}
	for _, good := range []string{"a*b*c*d*e.example", strings.Repeat("a.", maxLine/2-1) + "de"} {
		if rules, faults := parse("f", good); len(faults) != 0 || len(rules) != 1 {
			t.Errorf("%.40q: %v", good, faults)
		}
	}
}

func TestRules(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, first, "vps.example.net\n!good.vps.example.net\nx.example.org\n!y.example.org\nv-*-1.cloud.example\n*.mid.*.cable.example\n"+
		"w**x.cloud.example\n!both.example.org\nboth.example.org\ntwo.example.org\n!two.example.org\na*.dup.example\n*b.dup.example\n")
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
		"wx.cloud.example":         true, "w-x.cloud.example": true, "w-xy.cloud.example": false,
		"both.example.org": false, "two.example.org": false, // in one file what is excepted
		"localhost": false, "": false,
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
	if why := j.Why("ab.dup.example", netip.Addr{}); why != first+":12 a*.dup.example" {
		t.Errorf("of two that match the first: %q", why)
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
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "own")
		version := 0
		edit := func(text string) {
			write(t, path, text)
			version++
			at := time.Unix(1e9, 0).Add(time.Duration(version) * time.Hour)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
		edit("a.example.org\n")
		core, logged := observer.New(zap.ErrorLevel)
		cfg := DefaultConfig()
		cfg.Files = []string{path}
		j, err := New(cfg, zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		j.Start()
		defer j.Stop()
		look := func() { time.Sleep(cfg.ReloadInterval.D()); synctest.Wait() }
		in := func(what string, names ...string) {
			t.Helper()
			for _, name := range []string{"a.example.org", "b.example.org", "c.example.org"} {
				if got := j.Generic(name, netip.Addr{}); got != slices.Contains(names, name) {
					t.Errorf("%s: %s is generic: %v", what, name, got)
				}
			}
		}
		in("at first", "a.example.org")
		before := j.list.Load()
		look()
		if j.list.Load() != before {
			t.Error("made anew though nothing changed")
		}
		edit("b.example.org\n")
		look()
		in("another", "b.example.org")
		edit("a.example.org\nc.example.org\n")
		look()
		in("two", "a.example.org", "c.example.org")
		edit("b.example.org\na..b\n")
		look()
		in("perhaps half written", "a.example.org", "c.example.org")
		if logged.Len() != 0 {
			t.Errorf("told at once: %v", logged.All())
		}
		for range 3 {
			look()
		}
		in("broken", "a.example.org", "c.example.org")
		if logged.Len() != 1 {
			t.Errorf("told %d times", logged.Len())
		}
		if _, err := New(cfg, zap.NewNop()); err == nil || !strings.Contains(err.Error(), path+":2:1: ") {
			t.Errorf("loading a broken file: %v", err)
		}
		edit("b.example.org\n")
		look()
		in("repaired", "b.example.org")
	})
}

func TestNothingToWatch(t *testing.T) {
	j := judge(t, nil)
	j.Start()
	if j.watcher.Stop() {
		t.Error("something was watched")
	}
}

func TestBoundsOfTheSettings(t *testing.T) {
	for d, want := range map[time.Duration]bool{100*time.Millisecond - 1: false, 100 * time.Millisecond: true, time.Hour: true, time.Hour + 1: false} {
		cfg := DefaultConfig()
		cfg.ReloadInterval = conf.Duration(d)
		var fs conf.Faults
		if cfg.Validate("names", &fs); (fs == nil) != want {
			t.Errorf("reload_interval = %v: %v", d, fs)
		}
	}
}

func TestHoldsIPv4(t *testing.T) {
	for _, tt := range []struct {
		host string
		want bool
	}{
		{"h-2-7.", true}, {"h-7-2.", true}, {"h2x7.", true}, {"2-7", true}, {"x27.", false}, {"h-2-77.", false}, {"h-2-x-9-7.", false},
		{"002007", true}, {"007002", true}, {"192000002007", true}, {"h-2-1234-7.", false}, {"00020070", false}, {"0020070", false},
		{"h-002-007.", true}, {"192-000.002.007", true},
		{"c0000207.", true}, {"070200c0.", true}, {"xc0000207x.", true}, {"c000027.", false}, {"00c00702.", false},
		{"mail-2-7.", false}, {"mx-192-0-2-7.", true}, {"mail-0-192-2-7.", true}, {"mail-192-1-2-7.", false},
	} {
		if got := holdsIPv4(tt.host, [4]byte{192, 0, 2, 7}); got != tt.want {
			t.Errorf("%s: %v", tt.host, got)
		}
	}
}

func TestHoldsIPv6(t *testing.T) {
	for _, tt := range []struct {
		addr, host string
		want       bool
	}{
		{"2001:db8::1234:5678", "h-12345678.", true},
		{"2001:db8::1234:5678", "h-87654321.", true},
		{"2001:db8::1234:5678", "h-1234-5678.", true},
		{"2001:db8::1234:5678", "8.7.6.5.4.3.2.1.", true},
		{"2001:db8::1234:5678", "h-1234567.", false},
		{"2001:db8::1234:5678", "h-5678-1234.", false},
		{"2001:db8::34:567", "h-00340567.", true},
		{"2001:db8::34:567", "2001-db8-34-567.", true},
		{"2001:db8::34:567", "34.567", true},
		{"2001:db8::34:567", "34-x-567.", false},
		{"2001:db8::34:567", "567-34.", false},
		{"2001:db8::34:567", "34-34-567.", true},
		{"2001:db8::25", "h-0-25.", false}, // too small to be more than chance
		{"2001:db8::ff", "00000000ff", false},
		{"2001:db8::100", "0-100", true},
		{"2001:db8::1", "00000001", false},
		{"2001:db8::", "00000000", false},
	} {
		if got := holdsIPv6(tt.host, netip.MustParseAddr(tt.addr).As16()); got != tt.want {
			t.Errorf("%s of %s: %v", tt.host, tt.addr, got)
		}
	}
}

func TestWords(t *testing.T) {
	for host, want := range map[string]bool{
		"mail": true, "mail3": true, "mailer": true, "3mail": true, "a-smtpout.b": true, "mx17": true, "x_mta": true, "relays": true,
		"mtas": false, "mxs": false, "outer": false, "moutx": true, "www": false, "": false,
	} {
		if got := mailWord(host); got != want {
			t.Errorf("%q is a mail server's: %v", host, got)
		}
	}
	for host, want := range map[string]bool{
		"dsl": false, "dsl17": true, "17dsl": true, "dsl-17": true, "17.dsl": true, "dsl.x": false, "dslx17": false, "x17": false, "dsl-x17": false, "": false,
	} {
		if got := dynamicWord(host); got != want {
			t.Errorf("%q is of an access network: %v", host, got)
		}
	}
	for name, want := range map[string]string{
		"dsl-17.example.org": "access network", "example.org": "", "dsl17.co.uk": "access network", "dsl17.localdomain": "access network",
		"h-2-7.example.org": "holds its address", "h.2-7.org": "", "": "",
	} {
		if got := shape(name, netip.MustParseAddr("192.0.2.7")); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
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
