package client

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
)

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Config)
		want string // "" for none
	}{
		{"defaults", func(*Config) {}, ""},
		{"everything at its least", func(c *Config) {
			c.Timeout, c.LookupTime, c.HeloWindow, c.CacheTTL, c.ReloadInterval = 1e8, 5e7, conf.Duration(time.Minute), 0, 1e8
			c.HeloNames, c.HeloClients, c.CacheSize = 1, 100, 100
			c.RejectAt, c.DeferAt, c.HeloOwn.Weight = 1, 0, 0
		}, ""},
		{"everything at its most", func(c *Config) {
			c.Timeout, c.LookupTime = conf.Duration(time.Minute), conf.Duration(time.Minute-1)
			c.HeloWindow, c.CacheTTL, c.ReloadInterval = conf.Duration(30*24*time.Hour), conf.Duration(24*time.Hour), conf.Duration(time.Hour)
			c.HeloNames, c.HeloClients, c.CacheSize = 100, 10_000_000, 10_000_000
			c.RejectAt, c.DeferAt, c.HeloOwn.Weight = 14_000, 13_999, 1000
		}, ""},
		{"helo_names low", func(c *Config) { c.HeloNames = 0 }, "client.helo_names: 0 is out of range: 1 to 100"},
		{"helo_names high", func(c *Config) { c.HeloNames = 101 }, "client.helo_names: 101 is out of range: 1 to 100"},
		{"helo_clients", func(c *Config) { c.HeloClients = 99 }, "client.helo_clients: 99 is out of range: 100 to 10000000"},
		{"cache_size", func(c *Config) { c.CacheSize = 10_000_001 }, "client.cache_size: 10000001 is out of range: 100 to 10000000"},
		{"reject_at", func(c *Config) { c.RejectAt = -1 }, "client.reject_at: -1 is out of range: 0 to 14000"},
		{"defer_at", func(c *Config) { c.DeferAt = 14_001 }, "client.defer_at: 14001 is out of range: 0 to 14000"},
		{"defer_at not below reject_at", func(c *Config) { c.RejectAt, c.DeferAt = 3, 3 }, "client.defer_at: 3 is never used: from reject_at = 3 on clients are rejected"},
		{"timeout", func(c *Config) { c.Timeout = conf.Duration(61 * time.Second) }, "client.timeout: 1m1s is out of range: 100ms to 1m"},
		{"helo_window", func(c *Config) { c.HeloWindow = conf.Duration(59 * time.Second) }, "client.helo_window: 59s is out of range: 1m to 30d"},
		{"cache_ttl", func(c *Config) { c.CacheTTL = conf.Duration(25 * time.Hour) }, "client.cache_ttl: 25h is out of range: 0s to 1d"},
		{"reload_interval", func(c *Config) { c.ReloadInterval = conf.Duration(time.Millisecond) }, "client.reload_interval: 1ms is out of range: 100ms to 1h"},
		{"lookup_time", func(c *Config) { c.LookupTime = conf.Duration(time.Millisecond) }, "client.lookup_time: 1ms is out of range: 50ms to 1m"},
		{"lookup_time and timeout", func(c *Config) { c.LookupTime = c.Timeout }, "client.lookup_time: 6s is not less than timeout (6s)"},
		{"own_domains", func(c *Config) { c.OwnDomains = []string{"example.org", ".example.net", "B\u00fccher.example", "a b"} }, `client.own_domains[3]: "a b" is no domain`},
		{"own_domains, a dot alone", func(c *Config) { c.OwnDomains = []string{"."} }, `client.own_domains[0]: "." is no domain`},
		{"own_names", func(c *Config) { c.OwnNames = []string{"gate", "[192.0.2.1]"} }, `client.own_names[1]: "[192.0.2.1]" is no host name`},
		{"own_networks, bits", func(c *Config) { c.OwnNetworks = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")} },
			"client.own_networks[0]: 192.0.2.1/24 has bits behind its length, 192.0.2.0/24 has not"},
		{"own_networks, mapped", func(c *Config) { c.OwnNetworks = []netip.Prefix{netip.MustParsePrefix("::ffff:192.0.2.0/120")} },
			"client.own_networks[0]: ::ffff:192.0.2.0/120: IPv4 is written as IPv4"},
		{"defer_unable", func(c *Config) { c.DeferUnable = []string{"helo", "dns"} }, `client.defer_unable[1]: unknown question "dns" (one of helo, reverse, sender)`},
		{"weight low", func(c *Config) { c.HeloNotFull.Weight = -1 }, "client.helo_not_full.weight: -1 is out of range: 0 to 1000"},
		{"weight high", func(c *Config) { c.SenderNullMX.Weight = 1001 }, "client.sender_null_mx.weight: 1001 is out of range: 0 to 1000"},
		{"reply of the wrong class", func(c *Config) { c.HeloOwn.Reply = "450 4.7.1 no" }, "client.helo_own.reply: reply code 450: must be 5xx here"},
		{"reply of the wrong class to defer", func(c *Config) { c.HeloOwn = Condition{conf.Defer, 1, "550 no"} }, "client.helo_own.reply: reply code 550: must be 4xx here"},
		{"reply to defer", func(c *Config) { c.HeloOwn = Condition{conf.Defer, 1, "451 4.7.0 no"} }, ""},
		{"reply with a wrong placeholder", func(c *Config) { c.ReverseGeneric.Reply = "{score}" }, "client.reverse_generic.reply: unknown placeholder {score}"},
		{"score_reply", func(c *Config) { c.ScoreReply = "{nobody}" }, "client.score_reply: unknown placeholder {nobody}"},
		{"score_reply of the wrong class", func(c *Config) { c.DeferAt, c.ScoreReply = 1, "550 {score}" }, "client.score_reply: reply code 550: must be 4xx here"},
		{"score_reply of the right class", func(c *Config) { c.DeferAt, c.ScoreReply = 1, "451 {score}" }, ""},
		{"score_reply of one class for both", func(c *Config) { c.DeferAt, c.RejectAt, c.ScoreReply = 1, 2, "451 {score}" }, "client.score_reply: reply code 451: must be 5xx here"},
		{"unable_reply", func(c *Config) { c.UnableReply = "550 {what}" }, "client.unable_reply: reply code 550: must be 4xx here"},
		{"skip", func(c *Config) { c.Skip = []string{"192.0.2.0/33"} }, "client.skip[0]"},
		{"exceptions", func(c *Config) { c.Exceptions = []string{"file:/nowhere.list"} }, "/nowhere.list"},
	} {
		cfg := DefaultConfig()
		tt.edit(&cfg)
		var fs conf.Faults
		cfg.Validate("client", &fs)
		if tt.want == "" && len(fs) > 0 || tt.want != "" && (len(fs) != 1 || !strings.Contains(fs.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, fs, tt.want)
		}
	}
}

func TestConditionsAreSections(t *testing.T) {
	var doc struct {
		Client Config `toml:"client"`
	}
	doc.Client = DefaultConfig()
	text := "[client.helo_invalid]\naction = \"mark\"\nweight = 4\n[client.sender_own]\naction = \"off\"\n"
	if err := toml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.HeloInvalid.Action, want.HeloInvalid.Weight, want.SenderOwn.Action = conf.Mark, 4, conf.Off
	if doc.Client.Conditions != want.Conditions {
		t.Errorf("%+v", doc.Client.Conditions)
	}
	// A table names all of them once.
	var names []string
	for i, one := range want.all() {
		for j, other := range want.all() {
			if (one == other) != (i == j) {
				t.Errorf("%s and %s are one", slugs[i], slugs[j])
			}
		}
		if words[i] == "" || codes[i][0].Code/100 != 5 || codes[i][1].Code/100 != 4 {
			t.Errorf("%s: %q %v", slugs[i], words[i], codes[i])
		}
		names = append(names, slugs[i])
	}
	slices.Sort(names)
	if n := len(slices.Compact(names)); n != int(conditions) {
		t.Errorf("%d names", n)
	}
}

func TestWithoutChain(t *testing.T) {
	cfg := DefaultConfig()
	if s := cfg.WithoutChain("client"); s != "" {
		t.Errorf("%q", s)
	}
	cfg.OwnDomains = []string{"example.org"}
	if s := cfg.WithoutChain("client"); !strings.HasPrefix(s, "client.own_domains: ") {
		t.Errorf("%q", s)
	}
}

// A list that is broken after it was checked is an error, not a panic.
func TestNewFails(t *testing.T) {
	w := newWorld(t, nil)
	file := filepath.Join(t.TempDir(), "exceptions.list")
	if err := os.WriteFile(file, []byte("192.0.2.0/99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{Hostname: "mx.example.org", Resolver: w.res, Names: w.check.names.names, Log: nopLog, Registry: w.reg}
	for name, edit := range map[string]func(*Config){
		"list":         func(c *Config) { c.Exceptions = []string{"file:" + file} },
		"reply":        func(c *Config) { c.HeloOwn.Reply = "" },
		"score_reply":  func(c *Config) { c.ScoreReply = "" },
		"unable_reply": func(c *Config) { c.UnableReply = "" },
	} {
		cfg := DefaultConfig()
		edit(&cfg)
		if _, err := New(cfg, o, w.check); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
