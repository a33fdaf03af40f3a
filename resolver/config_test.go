package resolver

import (
	"slices"
	"testing"
	"time"

	"postern/internal/conf"
)

func TestDefaultsAreValid(t *testing.T) {
	cfg := DefaultConfig()
	var fs conf.Faults
	if cfg.Validate("dns", &fs); fs.Err() != nil {
		t.Error(fs.Err())
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   []string // keys with faults
	}{
		{"good servers", func(c *Config) {
			c.Servers = []string{"127.0.0.1", "127.0.0.1:5353", "::1", "[::1]:5353", "fe80::1%eth0"}
		}, nil},
		{"bad servers", func(c *Config) {
			c.Servers = []string{"ns.example.org", "127.0.0.1:0", "ff02::1", "127.0.0.1", "::ffff:127.0.0.1", "127.0.0.1:53", "::1:53:x", ""}
		}, []string{"dns.servers[0]", "dns.servers[1]", "dns.servers[2]", "dns.servers[4]", "dns.servers[5]", "dns.servers[6]", "dns.servers[7]"}},
		{"too many servers", func(c *Config) {
			c.Servers = []string{"::1", "::2", "::3", "::4", "::5", "::6", "::7", "::8", "::9"}
		}, []string{"dns.servers"}},
		{"least", func(c *Config) {
			*c = Config{
				Timeout: conf.Duration(10 * time.Millisecond), Attempts: 1, MaxInFlight: 1, CacheSize: 100,
				MaxTTL: conf.Duration(time.Second), NegativeTTL: conf.Duration(time.Second),
				ServFailTTL: conf.Duration(time.Second), StaleRetry: conf.Duration(time.Second),
			}
		}, nil},
		{"all zero", func(c *Config) { *c = Config{} }, []string{
			"dns.timeout", "dns.attempts", "dns.max_in_flight", "dns.cache_size", "dns.max_ttl", "dns.negative_ttl", "dns.servfail_ttl", "dns.stale_retry",
		}},
		{"all too large", func(c *Config) {
			const year = conf.Duration(365 * 24 * time.Hour)
			*c = Config{
				Timeout: year, Attempts: 1e9, MaxInFlight: 1e9, CacheSize: 1e9, MinTTL: year, MaxTTL: year,
				NegativeTTL: year, ServFailTTL: year, StaleFor: year, StaleWait: year, StaleRetry: year,
			}
		}, []string{
			"dns.timeout", "dns.attempts", "dns.max_in_flight", "dns.cache_size", "dns.min_ttl", "dns.max_ttl",
			"dns.negative_ttl", "dns.servfail_ttl", "dns.stale_for", "dns.stale_wait", "dns.stale_retry",
		}},
		{"least more than most", func(c *Config) { c.MinTTL, c.MaxTTL = conf.Duration(time.Minute), conf.Duration(time.Second) }, []string{"dns.min_ttl"}},
	} {
		cfg := DefaultConfig()
		tt.change(&cfg)
		var fs conf.Faults
		cfg.Validate("dns", &fs)
		var keys []string
		for _, f := range fs {
			keys = append(keys, f.Key)
		}
		if !slices.Equal(keys, tt.want) {
			t.Errorf("%s: faults in %v, want %v\n%v", tt.name, keys, tt.want, fs.Err())
		}
	}
}
