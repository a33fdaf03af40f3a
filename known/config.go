package known

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
)

// Config is the [known] section.
type Config struct {
	conf.Step
	// Authenticated takes mail of clients that have logged in for our users'.
	// Default true.
	Authenticated bool `toml:"authenticated"`
	// OwnNetworks are networks whose mail is our users', without a login too.
	// A host in them that hands on mail of strangers does not belong here.
	// Default none.
	OwnNetworks []netip.Prefix `toml:"own_networks"`
	// Chains are the chains of your own users only: what they judge is our
	// users' mail, whoever the client is. Default none.
	Chains []string `toml:"chains"`
	// OwnDomains are the domains of your users, ".example.org" with all below:
	// mail of other senders teaches nothing. Default: any domain.
	OwnDomains []string `toml:"own_domains"`
	// Keep is how long a correspondent is known after a user has last written
	// there. Default "180d".
	Keep conf.Duration `toml:"keep"`
	// DomainUsers is how many users of a domain of ours must have written to a
	// domain before all of its senders are known to all users of ours; 0 never.
	// Default 3.
	DomainUsers int `toml:"domain_users"`
	// SharedDomains are files of domains whose senders have nothing in common,
	// besides the built-in list: they are never known as a whole. Default none.
	SharedDomains []string `toml:"shared_domains"`
	// BuiltIn uses the built-in list of free mail providers and bulk senders;
	// shared-domains.list among the documents shows it. Default true.
	BuiltIn bool `toml:"built_in"`
	// MaxEntries is the most correspondents that are kept, and the most domains.
	// When it is reached no new ones are learned until old ones expire.
	// Default 200000.
	MaxEntries int `toml:"max_entries"`
	// MaxExpect is the longest time for which mail can be expected.
	// Default "1d".
	MaxExpect conf.Duration `toml:"max_expect"`
	// OwnProbes are the senders of this daemon's own callouts.
	OwnProbes []string `toml:"-"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Step: conf.Step{Timeout: conf.Duration(time.Second)}, Authenticated: true, Keep: conf.Duration(180 * 24 * time.Hour), DomainUsers: 3, BuiltIn: true,
		MaxEntries: 200_000, MaxExpect: conf.Duration(24 * time.Hour),
	}
}

// maxDomainUsers bounds what is stored of one domain.
const maxDomainUsers = 16

// Validate reports what is wrong with the values and the files; prefix is the
// section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	between := func(key string, d conf.Duration, low, high time.Duration) {
		if d.D() < low || d.D() > high {
			fs.Keyf(prefix+"."+key, "%v is out of range: %v to %v", d, conf.Duration(low), conf.Duration(high))
		}
	}
	const day = 24 * time.Hour
	between("timeout", c.Timeout, 10*time.Millisecond, time.Minute)
	between("keep", c.Keep, 2*day, 3660*day)
	between("max_expect", c.MaxExpect, time.Minute, 30*day)
	if c.DomainUsers < 0 || c.DomainUsers == 1 || c.DomainUsers > maxDomainUsers {
		fs.Keyf(prefix+".domain_users", "%d is out of range: 2 to %d, or 0 for never; one user alone must not decide for all", c.DomainUsers, maxDomainUsers)
	}
	if c.MaxEntries < 1000 || c.MaxEntries > 100_000_000 {
		fs.Keyf(prefix+".max_entries", "%d is out of range: 1000 to 100000000", c.MaxEntries)
	}
	for i, p := range c.OwnNetworks {
		key := fmt.Sprintf("%s.own_networks[%d]", prefix, i)
		switch {
		case p.Addr().Is4In6():
			fs.Keyf(key, "%v: IPv4 is written as IPv4", p)
		case p != p.Masked():
			fs.Keyf(key, "%v has bits behind its length, %v has not", p, p.Masked())
		case p.Bits() == 0:
			fs.Keyf(key, "%v is everybody: a stranger could make himself known", p)
		}
	}
	for i, name := range c.Chains {
		key := fmt.Sprintf("%s.chains[%d]", prefix, i)
		if name == "inbound" {
			fs.Keyf(key, "inbound judges what names no other chain, strangers too: they could make themselves known")
		} else if slices.Contains(c.Chains[:i], name) {
			fs.Keyf(key, "%q stands here already", name)
		}
	}
	for i, d := range c.OwnDomains {
		if name := strings.TrimPrefix(d, "."); name == "" || strings.ContainsAny(name, "@*/ ") || strings.HasPrefix(name, ".") {
			fs.Keyf(fmt.Sprintf("%s.own_domains[%d]", prefix, i), "%q is no domain", d)
		}
	}
	for _, path := range c.SharedDomains {
		_, faults := readShared(path)
		*fs = append(*fs, faults...)
	}
}

// NamesChains are the chains that the section names, by their keys.
func (c *Config) NamesChains(prefix string) map[string]string {
	out := make(map[string]string, len(c.Chains))
	for i, name := range c.Chains {
		out[fmt.Sprintf("%s.chains[%d]", prefix, i)] = name
	}
	return out
}

// learns reports whether anything can be learned at all.
func (c *Config) learns() bool {
	return c.Authenticated || len(c.OwnNetworks) > 0 || len(c.Chains) > 0
}

// ownDomain reports whether a domain in the compared form is one of ours.
func (c *Config) ownDomain(domain string) bool {
	if len(c.OwnDomains) == 0 {
		return true
	}
	for _, d := range c.OwnDomains {
		if suffix, ok := strings.CutPrefix(d, "."); ok {
			suffix = mailaddr.Domain(suffix)
			if domain == suffix || strings.HasSuffix(domain, "."+suffix) {
				return true
			}
		} else if domain == mailaddr.Domain(d) {
			return true
		}
	}
	return false
}
