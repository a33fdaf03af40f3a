package known

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/internal/conf"
)

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		key  string
		edit func(*Config)
		want string
	}{
		{"", func(*Config) {}, ""},
		{"", func(c *Config) { c.DomainUsers, c.MaxEntries, c.Keep = 0, 1000, conf.Duration(48*time.Hour) }, ""},
		{"", func(c *Config) {
			c.OwnNetworks = []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/32")}
		}, ""},
		{"keep", func(c *Config) { c.Keep = conf.Duration(48*time.Hour - 1) }, "out of range"},
		{"keep", func(c *Config) { c.Keep = conf.Duration(3660*24*time.Hour + 1) }, "out of range"},
		{"timeout", func(c *Config) { c.Timeout = 0 }, "out of range"},
		{"max_expect", func(c *Config) { c.MaxExpect = conf.Duration(59 * time.Second) }, "out of range"},
		{"domain_users", func(c *Config) { c.DomainUsers = 1 }, "one user alone"},
		{"domain_users", func(c *Config) { c.DomainUsers = -1 }, "out of range"},
		{"domain_users", func(c *Config) { c.DomainUsers = 17 }, "out of range"},
		{"max_entries", func(c *Config) { c.MaxEntries = 999 }, "out of range"},
		{"own_networks[0]", func(c *Config) { c.OwnNetworks = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")} }, "everybody"},
		{"own_networks[0]", func(c *Config) { c.OwnNetworks = []netip.Prefix{netip.MustParsePrefix("::/0")} }, "everybody"},
		{"own_networks[1]", func(c *Config) {
			c.OwnNetworks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.1/24")}
		}, "bits behind"},
		{"own_networks[0]", func(c *Config) { c.OwnNetworks = []netip.Prefix{netip.MustParsePrefix("::ffff:192.0.2.0/120")} }, "as IPv4"},
		{"chains[0]", func(c *Config) { c.Chains = []string{"inbound"} }, "strangers"},
		{"chains[1]", func(c *Config) { c.Chains = []string{"a", "a"} }, "already"},
		{"own_domains[1]", func(c *Config) { c.OwnDomains = []string{".example.org", "@example.org"} }, "no domain"},
		{"own_domains[0]", func(c *Config) { c.OwnDomains = []string{"."} }, "no domain"},
		{"own_domains[0]", func(c *Config) { c.OwnDomains = []string{"..example.org"} }, "no domain"},
	} {
		c := DefaultConfig()
		tt.edit(&c)
		var fs conf.Faults
		c.Validate("known", &fs)
		switch {
		case tt.want == "" && fs != nil:
			t.Errorf("%v", fs)
		case tt.want != "" && (len(fs) != 1 || fs[0].Key != "known."+tt.key || !strings.Contains(fs[0].Error(), tt.want)):
			t.Errorf("%s, %s: %v", tt.key, tt.want, fs)
		}
	}
	c := DefaultConfig()
	c.Chains = []string{"a", "b"}
	if got := c.NamesChains("known"); len(got) != 2 || got["known.chains[1]"] != "b" {
		t.Errorf("%v", got)
	}
	for _, tt := range []struct {
		edit func(*Config)
		idle bool
	}{
		{func(*Config) {}, false},
		{func(c *Config) { c.Authenticated = false }, true},
		{func(c *Config) { c.Authenticated, c.Chains = false, []string{"a"} }, false},
		{func(c *Config) {
			c.Authenticated, c.OwnNetworks = false, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		}, false},
	} {
		c := DefaultConfig()
		tt.edit(&c)
		k := &Check{cfg: c}
		if k.Idle() != tt.idle || k.Inspects() == tt.idle {
			t.Errorf("%+v: idle %v, inspects %v", c, k.Idle(), k.Inspects())
		}
	}
}

// What is stored is read again, and what cannot be read is nothing.
func TestStored(t *testing.T) {
	for value, want := range map[string]span{"1 2": {1, 2}, "": {}, "1": {}, "x 2": {}, "1 x": {}, "1 2 3": {}, "-1 5": {-1, 5}} {
		if got := parseSpan(value); got != want {
			t.Errorf("%q: %+v", value, got)
		}
	}
	now := time.Unix(1e9, 0)
	if s := (span{5, 7}); parseSpan(s.String()) != s {
		t.Error(s.String())
	}
	var w writers
	for _, user := range []string{"a@x", "b@x", "a@x", "c@x"} {
		w, _ = w.written(user, now, 48*time.Hour, 4)
	}
	if again := parseWriters(w.String()); len(again) != 3 || again.String() != w.String() {
		t.Errorf("%v, %v", w, again)
	}
	for _, junk := range []string{"", ":", "x", "x:y", ":1", ",,,", strings.Repeat("aa:1,", 100)} {
		if got := parseWriters(junk); len(got) > maxDomainUsers || !strings.HasPrefix(junk, "aa") && got != nil {
			t.Errorf("%.20q: %v", junk, got)
		}
		if got := parseExpected(junk); got != nil {
			t.Errorf("%.20q: %v", junk, got)
		}
	}
	if a, b := splitPair(pairKey("ann@example.org", "bob@example.net")); a != "ann@example.org" || b != "bob@example.net" {
		t.Errorf("%q %q", a, b)
	}
}

func TestMachine(t *testing.T) {
	for local, want := range map[string]bool{
		"ann": false, "sales": false, "owner": false, "bouncer": false, "info": false, "john.noreply.smith": false, "root": false, "bounce.back": false,
		"": true, "noreply": true, "mailer-daemon": true, "owner-list": true, "list-request": true, "list-bounces": true, "news-#-x": true, "srs0=#=#=a=b": true, "shop-noreply": true,
	} {
		if machine(local) != want {
			t.Errorf("%q: %v", local, !want)
		}
	}
}
