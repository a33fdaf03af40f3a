package spf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"postern/internal/conf"
)

func TestValidate(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.list")
	if err := os.WriteFile(bad, []byte("192.0.2.0/33\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		edit func(*Config)
		want string
	}{
		{"defaults", func(*Config) {}, ""},
		{"ends of the ranges", func(c *Config) {
			c.WidestIPv4, c.WidestIPv6, c.MaxLookups, c.MaxVoidLookups, c.CacheSize, c.CacheTTL = 32, 128, 30, 30, 100, 0
		}, ""},
		{"zero", func(c *Config) { c.WidestIPv4, c.WidestIPv6, c.MaxLookups, c.MaxVoidLookups = 0, 0, 1, 0 }, ""},
		{"widest_ipv4", func(c *Config) { c.WidestIPv4 = 33 }, "spf.widest_ipv4: 33 is out of range: 0 to 32"},
		{"widest_ipv6", func(c *Config) { c.WidestIPv6 = -1 }, "spf.widest_ipv6: -1 is out of range: 0 to 128"},
		{"max_lookups", func(c *Config) { c.MaxLookups = 0 }, "spf.max_lookups: 0 is out of range: 1 to 30"},
		{"max_void_lookups", func(c *Config) { c.MaxVoidLookups = 31 }, "spf.max_void_lookups: 31 is out of range"},
		{"cache_size", func(c *Config) { c.CacheSize = 99 }, "spf.cache_size: 99 is out of range"},
		{"cache_ttl", func(c *Config) { c.CacheTTL = conf.Duration(25 * time.Hour) }, "spf.cache_ttl: 25h is out of range: 0s to 1d"},
		{"timeout", func(c *Config) { c.Timeout = conf.Duration(2 * time.Minute) }, "spf.timeout: 2m is out of range: 100ms to 1m"},
		{"lookup_time", func(c *Config) { c.LookupTime = c.Timeout }, "spf.lookup_time: 12s is not less than timeout (12s)"},
		{"lookup_time short", func(c *Config) { c.LookupTime = 1 }, "spf.lookup_time: 1ns is out of range"},
		{"reload_interval", func(c *Config) { c.ReloadInterval = 0 }, "spf.reload_interval: 0s is out of range"},
		{"temperror", func(c *Config) { c.MailFrom.TempError, c.Helo.TempError = Reject, Defer }, "spf.mail_from.temperror: mail must not be rejected for good because the DNS did not answer"},
		{"temperror of HELO", func(c *Config) { c.Helo.TempError = Reject }, "spf.helo.temperror: mail must not be rejected for good"},
		{"header", func(c *Config) { c.Header = "both" }, `spf.header: unknown value "both"`},
		{"must_pass", func(c *Config) { c.MustPass = []string{"a.example", ".b.example", "c"} }, `spf.must_pass[2]: "c" is no domain`},
		{"allow_domains", func(c *Config) { c.AllowDomains = []string{".a.example"} }, `spf.allow_domains[0]: ".a.example" is no domain`},
		{"many allow_domains", func(c *Config) { c.AllowDomains = strings.Fields(strings.Repeat("a.example ", 21)) }, "spf.allow_domains: 21 domains: at most 20"},
		{"allow_skip", func(c *Config) { c.AllowSkip = []string{"rbl", "greylsit"} }, `spf.allow_skip[1]: there is no check "greylsit"`},
		{"reply", func(c *Config) { c.Reply = "450 4.7.1 no" }, "spf.reply: reply code 450: must be 5xx here"},
		{"defer_reply", func(c *Config) { c.DeferReply = "550 no" }, "spf.defer_reply: reply code 550: must be 4xx here"},
		{"error_reply", func(c *Config) { c.ErrorReply = "{nothing}" }, "spf.error_reply: unknown placeholder {nothing}"},
		{"temp_reply", func(c *Config) { c.TempReply = "" }, "spf.temp_reply: reply \"\" has no text"},
		{"skip", func(c *Config) { c.Skip = []string{"192.0.2.0/24", "192.0.2.0/33"} }, "spf.skip[1]"},
		{"exceptions", func(c *Config) { c.Exceptions = []string{bad} }, bad + ":1:"},
		{"no file", func(c *Config) { c.Exceptions = []string{"/nowhere/x"} }, "/nowhere/x"},
		{"relays", func(c *Config) { c.Relays = []string{"192.0.2.0/33"} }, "spf.relays[0]"},
		{"relays' file", func(c *Config) { c.Relays = []string{"file:" + bad} }, bad + ":1:"},
	} {
		cfg := DefaultConfig()
		tt.edit(&cfg)
		var fs conf.Faults
		cfg.Validate("spf", &fs)
		if got := fs.Error(); tt.want == "" && got != "" || !strings.Contains(got, tt.want) || tt.want != "" && len(fs) != 1 {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestActions(t *testing.T) {
	var doc struct {
		SPF Config `toml:"spf"`
	}
	doc.SPF = DefaultConfig()
	text := "[spf.mail_from]\nfail = \"mark\"\nnone = \"defer\"\n[spf.helo]\nfail = \"off\"\n"
	if err := toml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	if m, h := doc.SPF.MailFrom, doc.SPF.Helo; m.Fail != Mark || m.None != Defer || m.SoftFail != Mark || h.Fail != Off || h.None != Off {
		t.Errorf("%+v %+v", m, h)
	}
	if err := toml.Unmarshal([]byte("[spf.helo]\nfail = \"deny\"\n"), &doc); err == nil || !strings.Contains(err.Error(), `unknown action "deny" (one of reject, defer, mark, off)`) {
		t.Errorf("an unknown action: %v", err)
	}
}
