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

// Modes and switches that are off must not be counted on.
func TestUnreachableCountsWhatIsOn(t *testing.T) {
	c := load(t, "lists = [\"a.example.org*2\", \"b.example.org*2\"]\n[[zone]]\nzone = \"b.example.org\"\nmode = \"off\"")
	if got := strings.Join(faults(c), "\n"); !strings.Contains(got, "add up to 2") {
		t.Errorf("faults: %s", got)
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
