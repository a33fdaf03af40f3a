package rbl

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/policy"
)

// Config is the [rbl] section.
type Config struct {
	conf.Step
	// Lists are the lists to ask, each "[kind:]zone[=filter][*weight]". Kinds:
	// client (address, default), sender, helo, name, reverse. A negative
	// weight makes it an allow list. Default none.
	Lists []string `toml:"lists"`
	// RejectAt is the score from which on a request is refused with a 5xx
	// reply; 0 never. Default 3.
	RejectAt int `toml:"reject_at"`
	// DeferAt is the score from which on a request is refused with a 4xx
	// reply; 0 never. Default 0.
	DeferAt int `toml:"defer_at"`
	// MarkAt is the score from which on the request is marked "rbl-listed" for
	// later checks; 0 never. Default 1.
	MarkAt int `toml:"mark_at"`
	// DefaultWeight is the weight of an entry that gives none. Default 1.
	DefaultWeight int `toml:"default_weight"`
	// Reply is what a rejected client reads. Placeholders: {class} {what}
	// (what is listed, as Postfix calls it: "Client host" and its address,
	// "Sender address" and its domain, ...), {client} {client_name} {helo} {sender} {recipient},
	// {list}, {reason} (the list's own words), {score}. Default "554 5.7.1
	// Service unavailable; {class} [{what}] blocked using {list}; {reason}".
	Reply string `toml:"reply"`
	// DeferReply is what a deferred client reads, with the same placeholders.
	// Default "450 4.7.1 Service temporarily unavailable; {class} [{what}]
	// listed by {list}; {reason}".
	DeferReply string `toml:"defer_reply"`
	// ListTimeout is the most time one query of a list may take; shorter than
	// timeout, so that a dead list leaves time for the rest, and longer than
	// dns.timeout, so that a lost packet is sent again. Default "3s".
	ListTimeout conf.Duration `toml:"list_timeout"`
	// ReasonTimeout is the most time spent on the list's words for a reply,
	// after the decision to refuse. Default "1s".
	ReasonTimeout conf.Duration `toml:"reason_timeout"`
	// MinTTL is the least time an answer is kept. Default "1m".
	MinTTL conf.Duration `toml:"min_ttl"`
	// MaxTTL is the most time an answer is kept. Default "1h".
	MaxTTL conf.Duration `toml:"max_ttl"`
	// CacheSize is the most answers kept, over all lists. One takes about 250
	// bytes. Default 200000.
	CacheSize int `toml:"cache_size"`
	// Untested has all lists trusted without a test, as with test = false.
	Untested bool `toml:"-"`
	// MaxQueries is the most queries in flight; what goes beyond counts as not
	// answered. Default 2000.
	MaxQueries int `toml:"max_queries"`
	// AskPrivate asks about client addresses that are not global as well:
	// private, loopback, link-local, unique local. For lists of your own.
	// Default false.
	AskPrivate bool `toml:"ask_private"`
	// TestEvery is the time between two tests of a list (RFC 5782 section 5).
	// Default "1h".
	TestEvery conf.Duration `toml:"test_every"`
	// DeadAfter is the number of queries in a row without an answer after
	// which a list is not waited for until it answers again; 0 never. Default 8.
	DeadAfter int `toml:"dead_after"`
	// Volume is the guard against a list that suddenly lists much of the traffic.
	Volume VolumeConfig `toml:"volume"`
	// Zones are options of single lists.
	Zones []ZoneConfig `toml:"zone"`
}

// VolumeConfig is the [rbl.volume] section. A list with a positive weight
// that lists Share percent of the distinct clients (or domains) asked within
// Window, at least Clients of them, goes to shadow mode until it lists
// clearly fewer.
type VolumeConfig struct {
	// Share is the percentage; 0 switches the guard off. Default 95.
	Share int `toml:"share"`
	// Clients is the least number of distinct clients to judge by. Default 100.
	Clients int `toml:"clients"`
	// Window is the time looked back on. Default "10m".
	Window conf.Duration `toml:"window"`
}

// ZoneConfig is one [[rbl.zone]] section: options of one zone in Lists.
type ZoneConfig struct {
	// Zone is the zone as written in rbl.lists.
	Zone string `toml:"zone"`
	// Name is how the list is called in replies, logs, metrics and status.
	// Default: the zone.
	Name string `toml:"name"`
	// KeyFile holds the secret key of a paying customer, which is put in front
	// of the zone in queries and shown nowhere. Default none.
	KeyFile string `toml:"key_file"`
	// Mode is "enforce" (default), "shadow" (asked, counted, without effect)
	// or "off".
	Mode policy.Mode `toml:"mode"`
	// Reply replaces rbl.reply when this list decides. Default none.
	Reply string `toml:"reply"`
	// Timeout replaces rbl.list_timeout, unless it is 0. Default "0s".
	Timeout conf.Duration `toml:"timeout"`
	// Test is false for a list without test entries. It is then trusted
	// untested. Default true.
	Test *bool `toml:"test"`
	// TestListed is a domain that a domain list always lists. Default: TEST,
	// and what the list is known to publish.
	TestListed string `toml:"test_listed"`
	// TestUnlisted is a domain that a domain list never lists. Default INVALID.
	TestUnlisted string `toml:"test_unlisted"`
	// Families are the address families that the list holds, "ipv4" and
	// "ipv6". Default: those whose test entries it has.
	Families []string `toml:"families"`
	// Errors are filters for answers that are no listings; they take the place
	// of the shipped table. Default: the table.
	Errors []string `toml:"errors"`
	// VolumeShare replaces rbl.volume.share; 0 switches the guard off for this
	// list. Default: as there.
	VolumeShare *int `toml:"volume_share"`
}

var (
	rejectReply = policy.Reply{Code: 554, Enhanced: "5.7.1"}
	deferReply  = policy.Reply{Code: 450, Enhanced: "4.7.1"}
	replyVars   = []string{"class", "what", "client", "client_name", "helo", "sender", "recipient", "list", "reason", "score"}
)

// DefaultConfig returns what an empty section means.
func DefaultConfig() Config {
	return Config{
		Step:          conf.Step{Timeout: conf.Duration(5 * time.Second)},
		RejectAt:      3,
		MarkAt:        1,
		DefaultWeight: 1,
		Reply:         "554 5.7.1 Service unavailable; {class} [{what}] blocked using {list}; {reason}",
		DeferReply:    "450 4.7.1 Service temporarily unavailable; {class} [{what}] listed by {list}; {reason}",
		ListTimeout:   conf.Duration(3 * time.Second),
		ReasonTimeout: conf.Duration(time.Second),
		MinTTL:        conf.Duration(time.Minute),
		MaxTTL:        conf.Duration(time.Hour),
		CacheSize:     200_000,
		MaxQueries:    2000,
		TestEvery:     conf.Duration(time.Hour),
		DeadAfter:     8,
		Volume:        VolumeConfig{Share: 95, Clients: 100, Window: conf.Duration(10 * time.Minute)},
	}
}

// Validate reports everything that is wrong with c. prefix is the key of the
// section, "rbl". It reads the key files and opens nothing else.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	entries := c.validateLists(prefix, fs)
	c.validateZones(prefix, entries, fs)
	c.validateNumbers(prefix, fs)
	c.validateReach(prefix, entries, fs)
	if _, err := policy.ParseTemplate(c.Reply, rejectReply, replyVars...); err != nil {
		fs.Keyf(prefix+".reply", "%v", err)
	}
	if _, err := policy.ParseTemplate(c.DeferReply, deferReply, replyVars...); err != nil {
		fs.Keyf(prefix+".defer_reply", "%v", err)
	}
}

// validateLists returns the entries that could be read.
func (c *Config) validateLists(prefix string, fs *conf.Faults) []Entry {
	var entries []Entry
	seen := map[string]int{}
	for i, s := range c.Lists {
		key := index(prefix+".lists", i)
		e, err := ParseEntry(s)
		if err != nil {
			fs.Keyf(key, "%v", err)
			continue
		}
		same := e
		same.Weight = 0
		if first, twice := seen[same.String()]; twice {
			fs.Keyf(key, "%q is already in lists[%d]", same.String(), first)
			continue
		}
		seen[same.String()] = i
		if e.Filter != nil {
			if why := c.uselessFilter(e); why != "" {
				fs.Keyf(key, "character %d: %s", strings.IndexByte(s, '=')+2, why)
			}
		}
		entries = append(entries, e)
	}
	return entries
}

// uselessFilter says why an entry can never count, "" when it can.
func (c *Config) uselessFilter(e Entry) string {
	if !e.Filter[0].has(127) {
		return "lists answer with addresses in 127.0.0.0/8, this filter never matches"
	}
	if one, ok := e.Filter.only(); ok {
		if why := errorText(errorsOf(e.Zone, c.zoneErrors(e.Zone)), one); why != "" {
			return "this answer is an error, not a listing (" + why + ")"
		}
	}
	return ""
}

// zone returns the options of a zone, nil when there are none.
func (c *Config) zone(name string) *ZoneConfig {
	for i := range c.Zones {
		if canonicalZone(c.Zones[i].Zone) == name {
			return &c.Zones[i]
		}
	}
	return nil
}

// zoneErrors returns the error codes configured for a zone, nil for none.
func (c *Config) zoneErrors(name string) []*Filter {
	z := c.zone(name)
	if z == nil || z.Errors == nil {
		return nil
	}
	filters := []*Filter{}
	for _, s := range z.Errors {
		if f, err := ParseFilter(s); err == nil {
			filters = append(filters, f)
		}
	}
	return filters
}

func (c *Config) validateZones(prefix string, entries []Entry, fs *conf.Faults) {
	zones := map[string]string{} // zone -> key
	names := map[string]string{} // public name -> zone
	for _, e := range entries {
		if c.zone(e.Zone) == nil {
			names[e.Zone] = e.Zone
		}
	}
	for i := range c.Zones {
		z := &c.Zones[i]
		key := index(prefix+".zone", i)
		zone := canonicalZone(z.Zone)
		if first := zones[zone]; first != "" {
			fs.Keyf(key+".zone", "%q already has options in %s", zone, first)
		}
		zones[zone] = key
		if !slices.ContainsFunc(entries, func(e Entry) bool { return e.Zone == zone }) {
			fs.Keyf(key+".zone", "%q is in no entry of %s.lists", z.Zone, prefix)
		}
		name := zone
		if z.Name != "" {
			name = z.Name
			if policy.Printable(name) != name || len(name) > 100 {
				fs.Keyf(key+".name", "%q: at most 100 printable ASCII characters", name)
			}
		}
		if other, taken := names[name]; taken && other != zone {
			fs.Keyf(key+".name", "%q is the name of another list, %s", name, other)
		}
		names[name] = zone
		z.validate(key, c.Timeout.D(), fs)
	}
}

func (z *ZoneConfig) validate(key string, limit time.Duration, fs *conf.Faults) {
	if z.KeyFile != "" {
		switch secret, err := readKey(z.KeyFile); {
		case err != nil:
			fs.Keyf(key+".key_file", "%v", err)
		case len(secret)+1+len(canonicalZone(z.Zone)) > maxZone:
			fs.Keyf(key+".key_file", "key and zone together have more than %d bytes", maxZone)
		}
	}
	if z.Reply != "" {
		if _, err := policy.ParseTemplate(z.Reply, rejectReply, replyVars...); err != nil {
			fs.Keyf(key+".reply", "%v", err)
		}
	}
	if d := z.Timeout.D(); d != 0 && (d < 10*time.Millisecond || d >= limit) {
		fs.Keyf(key+".timeout", "%v is out of range: 10ms to less than rbl.timeout, %v", z.Timeout, conf.Duration(limit))
	}
	for _, p := range [...]struct{ key, name string }{{"test_listed", z.TestListed}, {"test_unlisted", z.TestUnlisted}} {
		if p.name != "" && !isDomain(canonicalZone(p.name), true) {
			fs.Keyf(key+"."+p.key, "%q is not a domain name", p.name)
		}
	}
	for i, f := range z.Families {
		if f != "ipv4" && f != "ipv6" {
			fs.Keyf(index(key+".families", i), "unknown address family %q (one of ipv4, ipv6)", f)
		}
	}
	for i, s := range z.Errors {
		if _, err := ParseFilter(s); err != nil {
			fs.Keyf(index(key+".errors", i), "%v", err)
		}
	}
	if z.VolumeShare != nil && (*z.VolumeShare < 0 || *z.VolumeShare > 100) {
		fs.Keyf(key+".volume_share", "%d is not a percentage", *z.VolumeShare)
	}
}

func (c *Config) validateNumbers(prefix string, fs *conf.Faults) {
	if d := c.Timeout.D(); d < 100*time.Millisecond || d > 60*time.Second {
		fs.Keyf(prefix+".timeout", "%v is out of range: 100ms to 60s", c.Timeout)
	}
	if d := c.ListTimeout.D(); d < 10*time.Millisecond || d >= c.Timeout.D() {
		fs.Keyf(prefix+".list_timeout", "%v is out of range: 10ms to less than %s.timeout, %v", c.ListTimeout, prefix, c.Timeout)
	}
	if d := c.ReasonTimeout.D(); d < 0 || d > c.Timeout.D() {
		fs.Keyf(prefix+".reason_timeout", "%v is out of range: 0s to %s.timeout, %v", c.ReasonTimeout, prefix, c.Timeout)
	}
	if d := c.MinTTL.D(); d < time.Second || d > c.MaxTTL.D() {
		fs.Keyf(prefix+".min_ttl", "%v is out of range: 1s to %s.max_ttl, %v", c.MinTTL, prefix, c.MaxTTL)
	}
	if d := c.MaxTTL.D(); d > 24*time.Hour {
		fs.Keyf(prefix+".max_ttl", "%v is out of range: at most 1d, so that a removal is seen", c.MaxTTL)
	}
	if d := c.TestEvery.D(); d < time.Minute || d > 7*24*time.Hour {
		fs.Keyf(prefix+".test_every", "%v is out of range: 1m to 7d", c.TestEvery)
	}
	if d := c.Volume.Window.D(); d < time.Minute || d > 24*time.Hour {
		fs.Keyf(prefix+".volume.window", "%v is out of range: 1m to 1d", c.Volume.Window)
	}
	for _, n := range [...]struct {
		key              string
		value, low, high int
	}{
		{"reject_at", c.RejectAt, 0, 1000 * MaxWeight},
		{"defer_at", c.DeferAt, 0, 1000 * MaxWeight},
		{"mark_at", c.MarkAt, 0, 1000 * MaxWeight},
		{"default_weight", c.DefaultWeight, 1, MaxWeight},
		{"cache_size", c.CacheSize, 1000, 10_000_000},
		{"max_queries", c.MaxQueries, 10, 100_000},
		{"dead_after", c.DeadAfter, 0, 1000},
		{"volume.share", c.Volume.Share, 0, 100},
		{"volume.clients", c.Volume.Clients, 10, maxWindow},
	} {
		if n.value < n.low || n.value > n.high {
			fs.Keyf(prefix+"."+n.key, "%d is out of range: %d to %d", n.value, n.low, n.high)
		}
	}
	if c.RejectAt > 0 && c.DeferAt >= c.RejectAt {
		fs.Keyf(prefix+".defer_at", "%d is never used: from reject_at = %d on requests are rejected", c.DeferAt, c.RejectAt)
	}
}

// validateReach reports thresholds that no set of answers can reach.
func (c *Config) validateReach(prefix string, entries []Entry, fs *conf.Faults) {
	if len(entries) == 0 || len(entries) < len(c.Lists) {
		return // nothing to score with, or the sum is not known
	}
	sum := 0
	for _, e := range entries {
		if z := c.zone(e.Zone); z == nil || z.Mode != policy.Off {
			sum += max(c.weight(e), 0)
		}
	}
	for _, t := range [...]struct {
		key string
		at  int
	}{{"reject_at", c.RejectAt}, {"defer_at", c.DeferAt}} {
		if t.at > sum {
			fs.Keyf(prefix+"."+t.key, "%d can never be reached: all positive weights of %s.lists add up to %d (write \"zone*%d\", or lower %s)",
				t.at, prefix, sum, t.at, t.key)
		}
	}
}

func (c *Config) weight(e Entry) int {
	if e.Weight != 0 {
		return e.Weight
	}
	return c.DefaultWeight
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }

// secret is a key. It shows itself to nobody; conversion to string is the
// only way to it.
type secret string

// Format implements [fmt.Formatter] for every verb.
func (secret) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, hidden) }

const hidden = "***"

// hide returns s without the key, in whatever case it stands there.
func (k secret) hide(s string) string {
	if k == "" {
		return s
	}
	low, key := strings.ToLower(s), string(k)
	if len(low) != len(s) { // odd Unicode: the offsets would not fit
		s = low
	}
	var b strings.Builder
	for {
		i := strings.Index(low, key)
		if i < 0 {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i] + hidden)
		low, s = low[i+len(key):], s[i+len(key):]
	}
}

// readKey reads a key: one line, usable as the first labels of a name. Its
// errors never hold it.
// Keyed reports whether a name in the DNS, in lower case and without the dot at
// its end, is one that is asked for with a secret key in it, which is not to be
// written down.
func (c *Config) Keyed(name string) bool {
	for i := range c.Zones {
		if z := &c.Zones[i]; z.KeyFile != "" && strings.HasSuffix(name, "."+canonicalZone(z.Zone)) {
			return true
		}
	}
	return false
}

func readKey(path string) (secret, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	key := string(bytes.ToLower(bytes.TrimSpace(data)))
	switch {
	case key == "":
		return "", fmt.Errorf("%s is empty", path)
	case len(key) < 6:
		return "", fmt.Errorf("%s: a key has at least 6 characters", path)
	case len(key) > 100:
		return "", fmt.Errorf("%s: a key has at most 100 characters on one line", path)
	}
	for label := range strings.SplitSeq(key, ".") {
		if badLabel(label) >= 0 {
			return "", errors.New(path + " holds more than a key: letters, digits, '-', '_' and '.' on one line")
		}
	}
	return secret(key), nil
}

// ZoneNames are the zones of all lists, of a configuration that was validated.
func (c *Config) ZoneNames() []string {
	var out []string
	for _, text := range c.Lists {
		if e, err := ParseEntry(text); err == nil {
			out = append(out, e.Zone)
		}
	}
	return out
}
