package rbl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
	"postern/policy"
)

func load(t *testing.T, text string) Config {
	t.Helper()
	c := DefaultConfig()
	if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&c); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c
}

func faults(c Config) []string {
	var fs conf.Faults
	c.Validate("rbl", &fs)
	out := make([]string, len(fs))
	for i, f := range fs {
		out[i] = f.Error()
	}
	return out
}

func TestConfigGood(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("abcdefghij0123456789\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"",
		`lists = ["zen.example.org=127.0.0.[2..11]*3", "bl.example.net*2", "list.example.com=127.0.[0..255].[1..3]*-2"]`,
		`reject_at = 0
		mark_at = 0
		lists = ["zen.example.org"]`,
		`lists = ["zen.example.org*3", "sender:dbl.example.org*3", "helo:dbl.example.org*3", "zen.example.org=127.0.0.10*-2"]
		defer_at = 2
		mode = "shadow"
		on_error = "defer"
		timeout = "8s"
		[volume]
		share = 0
		[[zone]]
		zone = "ZEN.example.org."
		key_file = "` + key + `"
		name = "zen"
		mode = "shadow"
		reply = "550 {what} is in {list}: {reason}"
		timeout = "500ms"
		families = ["ipv4"]
		errors = ["127.0.0.[128..255]"]
		volume_share = 50
		[[zone]]
		zone = "dbl.example.org"
		test_listed = "test.example"
		test_unlisted = "INVALID"
		test = false`,
	} {
		if got := faults(load(t, text)); len(got) > 0 {
			t.Errorf("%s\n%s", text, strings.Join(got, "\n"))
		}
	}
}

func TestConfigFaults(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tt := range []struct{ text, want string }{
		{`lists = ["zen.example.org=127.0.0.[2..*3"]`, `rbl.lists[0]: character 29: the filter ends where a number should be`},
		{`lists = ["zen.example.org*3", "zen.example.org*2"]`, `rbl.lists[1]: "zen.example.org" is already in lists[0]`},
		{`lists = ["zen.example.org=127.0.0.2*3", "ZEN.example.org.=127.0.0.[2]"]`, `rbl.lists[1]: "zen.example.org=127.0.0.2" is already in lists[0]`},
		{`lists = ["zen.example.org=127.255.255.254*3"]`, `rbl.lists[0]: character 17: this answer is an error`},
		{`lists = ["zen.example.org=10.0.0.1*3"]`, `rbl.lists[0]: character 17: lists answer with addresses in 127.0.0.0/8`},
		{`lists = ["zen.example.org", "wl.example.org*-2"]`, `rbl.reject_at: 3 can never be reached: all positive weights of rbl.lists add up to 1`},
		{`lists = ["zen.example.org*3"]
			defer_at = 3`, `rbl.defer_at: 3 is never used`},
		{`reject_at = -1`, `rbl.reject_at: -1 is out of range`},
		{`default_weight = 0`, `rbl.default_weight: 0 is out of range`},
		{`reply = "450 no"`, `rbl.reply: reply code 450: must be 5xx here`},
		{`reply = "{rbl}"`, `rbl.reply: unknown placeholder {rbl}`},
		{`defer_reply = "554 no"`, `rbl.defer_reply: reply code 554: must be 4xx here`},
		{`list_timeout = "5s"`, `rbl.list_timeout: 5s is out of range`},
		{`timeout = "1ms"`, `rbl.timeout: 1ms is out of range`},
		{`reason_timeout = "6s"`, `rbl.reason_timeout: 6s is out of range`},
		{`min_ttl = "2h"`, `rbl.min_ttl: 2h is out of range`},
		{`max_ttl = "2d"`, `rbl.max_ttl: 2d is out of range`},
		{`test_every = "1s"`, `rbl.test_every: 1s is out of range`},
		{`cache_size = 1`, `rbl.cache_size: 1 is out of range`},
		{`max_queries = 1`, `rbl.max_queries: 1 is out of range`},
		{`dead_after = -1`, `rbl.dead_after: -1 is out of range`},
		{"[volume]\nshare = 101", `rbl.volume.share: 101 is out of range`},
		{"[volume]\nclients = 1", `rbl.volume.clients: 1 is out of range`},
		{"[volume]\nwindow = \"1s\"", `rbl.volume.window: 1s is out of range`},
		{"[[zone]]\nzone = \"zne.example.org\"", `rbl.zone[0].zone: "zne.example.org" is in no entry of rbl.lists`},
		{
			"lists = [\"zen.example.org*3\"]\n[[zone]]\nzone = \"zen.example.org\"\n[[zone]]\nzone = \"zen.example.org\"",
			`rbl.zone[1].zone: "zen.example.org" already has options in rbl.zone[0]`,
		},
		{
			"lists = [\"zen.example.org*3\", \"bl.example.org\"]\n[[zone]]\nzone = \"zen.example.org\"\nname = \"bl.example.org\"",
			`rbl.zone[0].name: "bl.example.org" is the name of another list`,
		},
		{"[[zone]]\nname = \"a\\nb\"", `rbl.zone[0].name: "a\nb": at most 100 printable`},
		{"[[zone]]\nkey_file = \"/nonexistent/key\"", `rbl.zone[0].key_file: open /nonexistent/key: no such file`},
		{"[[zone]]\nkey_file = \"" + file("empty", "\n") + "\"", `empty is empty`},
		{"[[zone]]\nkey_file = \"" + file("short", "abc") + "\"", `at least 6`},
		{"[[zone]]\nkey_file = \"" + file("long", strings.Repeat("a", 101)) + "\"", `at most 100`},
		{"[[zone]]\nkey_file = \"" + file("odd", "k3ysecret one") + "\"", `holds more than a key`},
		{"[[zone]]\nreply = \"450 no\"", `rbl.zone[0].reply: reply code 450`},
		{"[[zone]]\ntimeout = \"9s\"", `rbl.zone[0].timeout: 9s is out of range`},
		{"[[zone]]\nfamilies = [\"ipv5\"]", `rbl.zone[0].families[0]: unknown address family "ipv5"`},
		{"[[zone]]\nerrors = [\"127.0.0\"]", `rbl.zone[0].errors[0]: character 8`},
		{"[[zone]]\ntest_listed = \"a b\"", `rbl.zone[0].test_listed: "a b" is not a domain name`},
		{"[[zone]]\nvolume_share = 200", `rbl.zone[0].volume_share: 200 is not a percentage`},
	} {
		got := strings.Join(faults(load(t, tt.text)), "\n")
		if !strings.Contains(got, tt.want) {
			t.Errorf("%s\ngot  %s\nwant %s", tt.text, got, tt.want)
		}
		if strings.Contains(got, "k3ysecret") {
			t.Errorf("the key is in a fault: %s", got)
		}
	}
	// All at once, not the first only.
	if n := len(faults(load(t, "reject_at = -1\nlists = [\"x\", \"y\", \"z.\"]\nreply = \"{x}\""))); n != 5 {
		t.Errorf("%d faults, want 5", n)
	}
}

func TestBoundsOfTheSettings(t *testing.T) {
	for _, tt := range []struct {
		key       string
		good, bad []string // lines of the section
	}{
		{"timeout", []string{"timeout = \"100ms\"\nlist_timeout = \"50ms\"\nreason_timeout = \"0s\"", `timeout = "60s"`}, []string{`timeout = "99ms"`, `timeout = "60001ms"`}},
		{"list_timeout", []string{`list_timeout = "10ms"`, `list_timeout = "4999ms"`}, []string{`list_timeout = "9ms"`, `list_timeout = "5s"`}},
		{"reason_timeout", []string{`reason_timeout = "0s"`, `reason_timeout = "5s"`}, []string{`reason_timeout = "5001ms"`}},
		{"min_ttl", []string{`min_ttl = "1s"`, `min_ttl = "1h"`}, []string{`min_ttl = "999ms"`, `min_ttl = "3601s"`}},
		{"max_ttl", []string{`max_ttl = "1m"`, `max_ttl = "1d"`}, []string{`max_ttl = "86401s"`}},
		{"test_every", []string{`test_every = "1m"`, `test_every = "7d"`}, []string{`test_every = "59s"`, `test_every = "604801s"`}},
		{"volume.window", []string{"[volume]\nwindow = \"1m\"", "[volume]\nwindow = \"1d\""}, []string{"[volume]\nwindow = \"59s\"", "[volume]\nwindow = \"86401s\""}},
		{"volume.share", []string{"[volume]\nshare = 0", "[volume]\nshare = 100"}, []string{"[volume]\nshare = -1", "[volume]\nshare = 101"}},
		{"volume.clients", []string{"[volume]\nclients = 10", "[volume]\nclients = 2048"}, []string{"[volume]\nclients = 9", "[volume]\nclients = 2049"}},
		{"default_weight", []string{"default_weight = 1", "default_weight = 1000"}, []string{"default_weight = 0", "default_weight = 1001"}},
		{"cache_size", []string{"cache_size = 1000", "cache_size = 10000000"}, []string{"cache_size = 999", "cache_size = 10000001"}},
		{"defer_at", []string{"defer_at = 2", "defer_at = 4\nreject_at = 0"}, []string{"defer_at = 3", "defer_at = 4", "defer_at = -1"}},
		{"zone[0].timeout", []string{
			"[[zone]]\nzone = \"bl.example.org\"\ntimeout = \"10ms\"", "[[zone]]\nzone = \"bl.example.org\"\ntimeout = \"4999ms\"", "[[zone]]\nzone = \"bl.example.org\"\ntimeout = \"0s\"",
		}, []string{"[[zone]]\nzone = \"bl.example.org\"\ntimeout = \"9ms\"", "[[zone]]\nzone = \"bl.example.org\"\ntimeout = \"5s\""}},
		{"zone[0].volume_share", []string{"[[zone]]\nzone = \"bl.example.org\"\nvolume_share = 0", "[[zone]]\nzone = \"bl.example.org\"\nvolume_share = 100"}, []string{
			"[[zone]]\nzone = \"bl.example.org\"\nvolume_share = -1", "[[zone]]\nzone = \"bl.example.org\"\nvolume_share = 101",
		}},
		{"zone[0].name", []string{"[[zone]]\nzone = \"bl.example.org\"\nname = \"" + strings.Repeat("n", 100) + "\""}, []string{
			"[[zone]]\nzone = \"bl.example.org\"\nname = \"" + strings.Repeat("n", 101) + "\"",
		}},
	} {
		for _, text := range tt.good {
			if got := faults(load(t, "lists = [\"bl.example.org*9\"]\n"+text)); len(got) != 0 {
				t.Errorf("%s\n%s", text, strings.Join(got, "\n"))
			}
		}
		for _, text := range tt.bad {
			got := faults(load(t, "lists = [\"bl.example.org*9\"]\n"+text))
			if len(got) == 0 || !strings.Contains(strings.Join(got, "\n"), "rbl."+tt.key+": ") {
				t.Errorf("%s\n%s", text, strings.Join(got, "\n"))
			}
		}
	}
}

func TestKeysAndZones(t *testing.T) {
	key := func(text string) string {
		p := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	long := strings.Repeat("k", 50) + "." + strings.Repeat("k", 49) // 100 bytes
	for _, tt := range []struct{ name, key, zone, want string }{
		{"the shortest key", "abcdef", "zen.example.org", ""},
		{"too short a key", "abcde", "zen.example.org", "at least 6"},
		{"the longest key", long, "zen.example.org", ""},
		{"too long a key", long + "k", "zen.example.org", "at most 100"},
		{"a bad first letter", "@bcdefg", "zen.example.org", "holds more than a key"},
		{"the longest key and zone", long, strings.Repeat("z", 40) + "." + strings.Repeat("z", 39) + ".example", ""},
		{"too long together", long, strings.Repeat("z", 40) + "." + strings.Repeat("z", 40) + ".example", "together"},
	} {
		c := load(t, fmt.Sprintf("lists = [%q]\nreject_at = 1\n[[zone]]\nzone = %q\nkey_file = %q", tt.zone, tt.zone, key(tt.key)))
		if got := strings.Join(faults(c), "\n"); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %s, want %q", tt.name, got, tt.want)
		}
	}
}

// The shipped table of error codes stays for a zone that has other options only.
func TestErrorsOfAZone(t *testing.T) {
	c := load(t, "[[zone]]\nzone = \"a.example\"\nmode = \"shadow\"\n[[zone]]\nzone = \"b.example\"\nerrors = [\"127.0.0.9\", \"nonsense\", \"127.0.0.8\"]\n[[zone]]\nzone = \"c.example\"\nerrors = []")
	for zone, want := range map[string]int{"a.example": -1, "b.example": 2, "c.example": 0, "d.example": -1} {
		filters := c.zoneErrors(zone)
		if (filters == nil) != (want < 0) || filters != nil && len(filters) != want {
			t.Errorf("%s: %v", zone, filters)
		}
	}
}

// Modes and switches that are off must not be counted on.
func TestUnreachableCountsWhatIsOn(t *testing.T) {
	c := load(t, "lists = [\"a.example.org*2\", \"b.example.org*2\"]\n[[zone]]\nzone = \"b.example.org\"\nmode = \"off\"")
	if got := strings.Join(faults(c), "\n"); !strings.Contains(got, "add up to 2") {
		t.Errorf("faults: %s", got)
	}
}

func TestKeyed(t *testing.T) {
	c := DefaultConfig()
	c.Zones = []ZoneConfig{{Zone: "Paid.Example", KeyFile: "/k"}, {Zone: "free.example"}}
	for name, want := range map[string]bool{
		"2.0.0.127.abcdefghij.paid.example": true, "paid.example": false, "unpaid.example": false, "2.0.0.127.free.example": false,
	} {
		if got := c.Keyed(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestSecretShowsItselfToNobody(t *testing.T) {
	k := secret("abcdefghij")
	for _, s := range []string{
		fmt.Sprint(k), fmt.Sprintf("%s %v %q %x %#v %d", k, k, k, k, k, k), fmt.Sprintf("%+v", struct{ K secret }{k}),
	} {
		if strings.Contains(s, "abcdefghij") || strings.Contains(s, "6162636465") {
			t.Errorf("shown: %s", s)
		}
	}
}

// The defaults that the comments promise are those of the code.
func TestDefaults(t *testing.T) {
	c := DefaultConfig()
	if c.Mode != policy.Enforce || c.OnError != policy.ErrorContinue || c.Timeout.D() != 5*time.Second {
		t.Errorf("step: %+v", c.Step)
	}
	if c.ListTimeout.D()+c.ReasonTimeout.D() >= c.Timeout.D() {
		t.Error("a dead list and its reason take longer than the check may")
	}
	source, err := os.ReadFile("config.go")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("\n\t// ", " ", "\t", "").Replace(string(source))
	for _, want := range []string{
		fmt.Sprintf("0 never. Default %d. RejectAt", c.RejectAt), fmt.Sprintf("Default %d.\nDeferAt", c.DeferAt),
		fmt.Sprintf("Default %d.\nMarkAt", c.MarkAt), fmt.Sprintf("Default %d.\nDefaultWeight", c.DefaultWeight),
		fmt.Sprintf("Default %q.\nReply", c.Reply), fmt.Sprintf("Default %q.\nDeferReply", c.DeferReply),
		fmt.Sprintf("Default %q.\nListTimeout", c.ListTimeout), fmt.Sprintf("Default %q.\nReasonTimeout", c.ReasonTimeout),
		fmt.Sprintf("Default %q.\nMinTTL", strings.TrimSuffix(c.MinTTL.String(), "0s")), fmt.Sprintf("Default %d.\nCacheSize", c.CacheSize),
		fmt.Sprintf("Default %d.\nMaxQueries", c.MaxQueries), fmt.Sprintf("Default %d.\nDeadAfter", c.DeadAfter),
		fmt.Sprintf("Default %d.\nShare", c.Volume.Share), fmt.Sprintf("Default %d.\nClients", c.Volume.Clients),
	} {
		if !strings.Contains(text, strings.ReplaceAll(want, ". RejectAt", ".\nRejectAt")) {
			t.Errorf("config.go does not say %q", want)
		}
	}
}
