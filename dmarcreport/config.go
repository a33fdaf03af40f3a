// Package dmarcreport tells the owners of domains how mail in their name fared
// here: DMARC aggregate reports (RFC 7489 section 7.2), one for each domain and
// day, whatever the number of gateways that share a store.
package dmarcreport

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/internal/sendmail"
)

// Config is the [dmarc_reports] section.
type Config struct {
	// Enabled counts how mail fares, and sends the reports. It needs [auth].
	// Default false.
	Enabled bool `toml:"enabled"`
	// Email is the address that reports come from and that answers go to. It must
	// be given when they are enabled. Default none.
	Email string `toml:"email"`
	// Organization is who reports. Default: the domain of email.
	Organization string `toml:"organization"`
	// Contact is another way to reach you, such as a web address. Default none.
	Contact string `toml:"contact"`
	// Exclude are domains that get no reports; ".example.org" is a domain with all
	// below it. Default none.
	Exclude []string `toml:"exclude"`
	// MaxDestinations is how many addresses of a record are written to, the first
	// ones. Default 2.
	MaxDestinations int `toml:"max_destinations"`
	// MaxRows is how many different rows each gateway counts of a domain and day.
	// What is more is in no report. Default 5000.
	MaxRows int `toml:"max_rows"`
	// MaxDomains is of how many domains it counts rows a day. Default 5000.
	MaxDomains int `toml:"max_domains"`
	// MaxTotal is how many rows it counts a day of all domains. A row takes about
	// a kilobyte of the store, until the reports of its day are no longer kept.
	// Default 50000.
	MaxTotal int `toml:"max_total"`
	// Spread is how long after midnight UTC the last report of a day goes out.
	// Default "6h".
	Spread conf.Duration `toml:"spread"`
	// Keep is for how long a report that cannot be sent is tried, and can be shown.
	// Default "3d".
	Keep conf.Duration `toml:"keep"`
	// Sendmail is Postfix's sendmail(1). Default "/usr/sbin/sendmail".
	Sendmail string `toml:"sendmail"`
}

// DefaultConfig returns the values of an empty section.
func DefaultConfig() Config {
	return Config{
		MaxDestinations: 2, MaxRows: 5000, MaxDomains: 5000, MaxTotal: 50_000, Spread: conf.Duration(6 * time.Hour), Keep: conf.Duration(3 * day), Sendmail: sendmail.Default,
	}
}

const day = 24 * time.Hour

// Validate reports what is wrong with the values; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	switch {
	case c.Email != "" && !sendmail.Address(c.Email):
		fs.Keyf(prefix+".email", "%q is no address that can be used here", c.Email)
	case c.Enabled && c.Email == "":
		fs.Keyf(prefix+".email", "an address must be given: reports come from it")
	}
	for _, t := range [...]struct{ key, text string }{{"organization", c.Organization}, {"contact", c.Contact}} {
		if len(t.text) > 200 || strings.ContainsFunc(t.text, func(r rune) bool { return r < ' ' || r > '~' }) {
			fs.Keyf(prefix+"."+t.key, "at most 200 characters of printable ASCII")
		}
	}
	for i, d := range c.Exclude {
		if name := mailaddr.Domain(strings.TrimPrefix(d, ".")); name == "" || strings.ContainsAny(name, "@ \t/:") {
			fs.Keyf(prefix+".exclude["+strconv.Itoa(i)+"]", "%q is no domain", d)
		}
	}
	for _, n := range [...]struct {
		key             string
		value, low, top int
	}{{"max_destinations", c.MaxDestinations, 1, 20}, {"max_rows", c.MaxRows, 1, 100_000}, {"max_domains", c.MaxDomains, 1, 100_000}, {"max_total", c.MaxTotal, 1, 1_000_000}} {
		if n.value < n.low || n.value > n.top {
			fs.Keyf(prefix+"."+n.key, "%d is out of range: %d to %d", n.value, n.low, n.top)
		}
	}
	if d := c.Spread.D(); d < 0 || d > 20*time.Hour {
		fs.Keyf(prefix+".spread", "%v is out of range: 0s to 20h", c.Spread)
	}
	if d := c.Keep.D(); d < day || d > 30*day {
		fs.Keyf(prefix+".keep", "%v is out of range: 1d to 30d", c.Keep)
	}
	if !filepath.IsAbs(c.Sendmail) {
		fs.Keyf(prefix+".sendmail", "%q is not an absolute path", c.Sendmail)
	}
}

// WithoutMilter says what does not happen when there is no milter door.
func (c *Config) WithoutMilter(prefix string) string {
	if !c.Enabled {
		return ""
	}
	return prefix + ": milter.listen is empty: messages are not seen, nothing is reported"
}

// WithoutAuth says what does not happen when nothing is authenticated.
func (c *Config) WithoutAuth(prefix string) string {
	if !c.Enabled {
		return ""
	}
	return prefix + `: auth.mode is "off": nothing is reported`
}

// excluded reports whether a domain gets no reports.
func (c *Config) excluded(domain string) bool {
	for _, e := range c.Exclude {
		above, wide := strings.CutPrefix(e, ".")
		above = mailaddr.Domain(above)
		if domain == above || wide && strings.HasSuffix(domain, "."+above) {
			return true
		}
	}
	return false
}

// organization is who reports.
func (c *Config) organization() string {
	if c.Organization != "" {
		return c.Organization
	}
	return c.Email[strings.LastIndexByte(c.Email, '@')+1:]
}
