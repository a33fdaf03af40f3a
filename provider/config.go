package provider

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
)

// Config is the [provider] section.
type Config struct {
	conf.Step
	// Lists are the providers, each a [[provider.list]] section, in the order
	// in which a client is looked for. Default none.
	Lists []ListConfig `toml:"list"`
	// StateDir is the directory of the last good lists, which the daemon
	// writes. It is made when it does not exist. Default
	// "/var/lib/postern/providers".
	StateDir string `toml:"state_dir"`
	// Skip are the checks from which a client in a list is exempt, unless the list
	// has a skip of its own. What spf and client look at, the sender's domain
	// and the HELO name, a shared network says nothing about.
	// Default ["rbl", "greylist"].
	Skip []string `toml:"skip"`
	// RefreshEvery is the most time between two readings of a provider's SPF
	// records. Default "1d".
	RefreshEvery conf.Duration `toml:"refresh_every"`
	// RefreshMin is the least time between them, however short the TTL of the
	// records is. Default "1h".
	RefreshMin conf.Duration `toml:"refresh_min"`
	// RetryMin is how long after a failed reading the next one is tried; it
	// doubles with each failure. Default "1m".
	RetryMin conf.Duration `toml:"retry_min"`
	// RetryMax is the most time between two tries. Default "1h".
	RetryMax conf.Duration `toml:"retry_max"`
	// RefreshTimeout is how long one reading may take. Default "30s".
	RefreshTimeout conf.Duration `toml:"refresh_timeout"`
	// StaleAfter is the age of a list from which every failed reading is
	// logged as an error. The list stays in force. Default "3d".
	StaleAfter conf.Duration `toml:"stale_after"`
	// MaxLookups is how many terms that need DNS one record may lead to.
	// RFC 7208 allows 10; a record beyond that fails at receivers everywhere.
	// Default 10.
	MaxLookups int `toml:"max_lookups"`
	// ReloadInterval is how often the files of lists are looked at. Default "2s".
	ReloadInterval conf.Duration `toml:"reload_interval"`
	// History is how many changes of each list are kept. Default 20.
	History int `toml:"history"`
	// Guard says which new lists are not taken without an operator's word.
	Guard GuardConfig `toml:"guard"`
	// OwnDomains are the domains that this server takes mail for, ".example.org"
	// with all names below. Recipients there need no permit: none is given,
	// and a message to them alone is not held to the conditions of relaying.
	// Default none.
	OwnDomains []string `toml:"own_domains"`
	// RequireMilter gives a permit that depends on the message's content only
	// while the milter of this daemon has a session open for the client.
	// Without it a Postfix that does not ask the milter lets everything in.
	// Default true.
	RequireMilter bool `toml:"require_milter"`
	// ContentTimeout is how long looking at one message may take, DNS for DKIM
	// included. A message that takes longer is deferred. Default "15s".
	ContentTimeout conf.Duration `toml:"content_timeout"`
	// RelayReply is what a client reads whose message does not meet the
	// conditions. Placeholders: {client}, {sender}. Default "550 5.7.1
	// Relaying denied: this message does not come from an allowed customer".
	RelayReply string `toml:"relay_reply"`
	// DeferReply is what it reads when that could not be found out. Same
	// placeholders. Default "451 4.7.1 Relaying not possible now: please try
	// again later".
	DeferReply string `toml:"defer_reply"`
}

// GuardConfig is the [provider.guard] section, and part of a list.
type GuardConfig struct {
	// MaxShrink is the most that a list may lose at once, in per cent of its
	// addresses, counted for IPv4 and IPv6 apart. 100 allows all. Default 50.
	MaxShrink int `toml:"max_shrink"`
	// MaxGrow is the most that it may gain at once, in the same way. Default 100.
	MaxGrow int `toml:"max_grow"`
	// MinIPv4Prefix is the least prefix length of an IPv4 network of the
	// aggregated list: a shorter one is wider than is believed. Default 10.
	MinIPv4Prefix int `toml:"min_ipv4_prefix"`
	// MinIPv6Prefix is the same for IPv6. Default 28.
	MinIPv6Prefix int `toml:"min_ipv6_prefix"`
}

// ListConfig is one [[provider.list]] section.
type ListConfig struct {
	// Name is a built-in provider ("office365", "google", ...), or one of your
	// own with domains or files: lower-case letters, digits, ".", "-", "_".
	Name string `toml:"name"`
	// Domains are those whose SPF records list the networks. Default: those of
	// the built-in provider.
	Domains []string `toml:"domains"`
	// Files hold networks, one a line, besides or instead of domains.
	// Default none.
	Files []string `toml:"files"`
	// Skip replaces provider.skip for this list; [] exempts from nothing.
	// Default: as there.
	Skip *[]string `toml:"skip"`
	// AllowReserved takes private and reserved networks too: for your own
	// networks, not for a provider's. Default false.
	AllowReserved bool `toml:"allow_reserved"`
	// MaxShrink replaces provider.guard.max_shrink. Default: as there.
	MaxShrink *int `toml:"max_shrink"`
	// MaxGrow replaces provider.guard.max_grow. Default: as there.
	MaxGrow *int `toml:"max_grow"`
	// MinIPv4Prefix replaces provider.guard.min_ipv4_prefix. Default: as there.
	MinIPv4Prefix *int `toml:"min_ipv4_prefix"`
	// MinIPv6Prefix replaces provider.guard.min_ipv6_prefix. Default: as there.
	MinIPv6Prefix *int `toml:"min_ipv6_prefix"`
	// Exports are files for Postfix, each a [[provider.list.export]] section.
	// Default none.
	Exports []ExportConfig `toml:"export"`
	// Relay says who may relay through us from these networks, each a
	// [[provider.list.relay]] section. A message needs all conditions of one
	// of them. Default none: nobody.
	Relay []RelayConfig `toml:"relay"`
}

// ExportConfig is one [[provider.list.export]] section: a cidr_table(5) file,
// written whenever the list has changed.
type ExportConfig struct {
	// Path of the file; its directory must exist and the daemon must be
	// allowed to write there.
	Path string `toml:"path"`
	// Result is what stands behind each network: "OK" for access(5),
	// "permit" for postscreen_access_list. Default: OK.
	Result string `toml:"result"`
	// Mode is the file's mode, octal. Default: mode 0644.
	Mode string `toml:"mode"`
	// Owner is "user", "user:group" or ":group", names or numbers; only root
	// can give files away. Default: whoever the daemon runs as.
	Owner string `toml:"owner"`
}

// RelayConfig is one [[provider.list.relay]] section: conditions that must
// all hold for a client of the list to relay.
type RelayConfig struct {
	// SenderDomains are the domains of envelope senders, ".example.org" with
	// all names below. Anybody can write any sender, so this alone keeps out
	// nobody who knows it. Default: any sender.
	SenderDomains []string `toml:"sender_domains"`
	// Authenticated takes a client that has logged in for one whose sender is
	// in SenderDomains. Default false.
	Authenticated bool `toml:"authenticated"`
	// NullSender takes the null sender too (bounces, automatic replies); needs
	// a condition on the content. Default false.
	NullSender bool `toml:"null_sender"`
	// CertNames are common names of client certificates that Postfix trusts,
	// ".example.org" with all names below. Default: none needed.
	CertNames []string `toml:"cert_names"`
	// CertFingerprints are fingerprints of client certificates or of their
	// public keys, as Postfix writes them. Default: none needed.
	CertFingerprints []string `toml:"cert_fingerprints"`
	// TenantIDs are Office 365 tenants, one of which must stand in the one
	// X-MS-Exchange-CrossTenant-Id field of the message. Needs the milter.
	// Default: none needed.
	TenantIDs []string `toml:"tenant_ids"`
	// DKIMDomains are domains one of which must have signed the message,
	// ".example.org" with all names below. Needs the milter. Default: none needed.
	DKIMDomains []string `toml:"dkim_domains"`
	// OpenToAllCustomers lets every customer of the provider relay: it must be
	// written where no other condition stands. Default false.
	OpenToAllCustomers bool `toml:"open_to_all_customers"`
}

// Content reports whether a condition can only be checked on the message itself.
func (r *RelayConfig) Content() bool { return len(r.TenantIDs)+len(r.DKIMDomains) > 0 }

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Step:     conf.Step{Timeout: conf.Duration(time.Second)},
		StateDir: "/var/lib/postern/providers", Skip: []string{"rbl", "greylist"},
		RefreshEvery: conf.Duration(24 * time.Hour), RefreshMin: conf.Duration(time.Hour),
		RetryMin: conf.Duration(time.Minute), RetryMax: conf.Duration(time.Hour), RefreshTimeout: conf.Duration(30 * time.Second),
		StaleAfter: conf.Duration(72 * time.Hour), MaxLookups: defaultLimits.Lookups, ReloadInterval: conf.Duration(2 * time.Second),
		History: 20, Guard: GuardConfig{MaxShrink: 50, MaxGrow: 100, MinIPv4Prefix: 10, MinIPv6Prefix: 28},
		RequireMilter: true, ContentTimeout: conf.Duration(15 * time.Second),
		RelayReply: "550 5.7.1 Relaying denied: this message does not come from an allowed customer",
		DeferReply: "451 4.7.1 Relaying not possible now: please try again later",
	}
}

// skippable are the checks that a list may exempt a client from.
var skippable = slices.DeleteFunc(slices.Clone(conf.Skippable), func(name string) bool { return name == "provider" })

var (
	relayReply = policy.Reply{Code: 550, Enhanced: "5.7.1"}
	deferReply = policy.Reply{Code: 451, Enhanced: "4.7.1"}
	replyVars  = []string{"client", "sender"}
)

const (
	maxLists   = 100
	maxDomains = 20
	maxName    = 64
)

// domains returns those whose records make the list.
func (l *ListConfig) domains() []string {
	domains := l.Domains
	if len(domains) == 0 && len(l.Files) == 0 {
		domains = builtin[l.Name]
	}
	out := make([]string, len(domains))
	for i, d := range domains {
		out[i] = mailaddr.Domain(d)
	}
	return out
}

// guard returns what holds for the list.
func (l *ListConfig) guard(all GuardConfig) GuardConfig {
	for _, v := range []struct {
		own *int
		to  *int
	}{{l.MaxShrink, &all.MaxShrink}, {l.MaxGrow, &all.MaxGrow}, {l.MinIPv4Prefix, &all.MinIPv4Prefix}, {l.MinIPv6Prefix, &all.MinIPv6Prefix}} {
		if v.own != nil {
			*v.to = *v.own
		}
	}
	return all
}

// NeedsMilter returns the full keys of the conditions that can only be checked
// on a message's content: with any of them the milter door must listen. prefix
// is the section's key.
func (c *Config) NeedsMilter(prefix string) []string {
	var keys []string
	for i := range c.Lists {
		for j := range c.Lists[i].Relay {
			r := &c.Lists[i].Relay[j]
			key := index(index(prefix+".list", i)+".relay", j)
			if len(r.TenantIDs) > 0 {
				keys = append(keys, key+".tenant_ids")
			}
			if len(r.DKIMDomains) > 0 {
				keys = append(keys, key+".dkim_domains")
			}
		}
	}
	return keys
}

// Relays reports whether any list has a section about relaying.
func (c *Config) Relays() bool {
	return slices.ContainsFunc(c.Lists, func(l ListConfig) bool { return len(l.Relay) > 0 })
}

// Validate reports what is wrong with the values and with every line of the
// files; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	between := func(key string, d conf.Duration, low, high time.Duration) {
		if d.D() < low || d.D() > high {
			fs.Keyf(prefix+"."+key, "%v is out of range: %v to %v", d, conf.Duration(low), conf.Duration(high))
		}
	}
	const day = 24 * time.Hour
	between("timeout", c.Timeout, 10*time.Millisecond, time.Minute)
	between("refresh_every", c.RefreshEvery, 10*time.Minute, 30*day)
	between("refresh_min", c.RefreshMin, time.Minute, 30*day)
	between("retry_min", c.RetryMin, time.Second, time.Hour)
	between("retry_max", c.RetryMax, time.Second, day)
	between("refresh_timeout", c.RefreshTimeout, time.Second, 10*time.Minute)
	between("stale_after", c.StaleAfter, time.Hour, 365*day)
	between("reload_interval", c.ReloadInterval, 100*time.Millisecond, time.Hour)
	between("content_timeout", c.ContentTimeout, time.Second, 2*time.Minute)
	if c.RefreshMin > c.RefreshEvery {
		fs.Keyf(prefix+".refresh_min", "%v is more than refresh_every, %v", c.RefreshMin, c.RefreshEvery)
	}
	if c.RetryMin > c.RetryMax {
		fs.Keyf(prefix+".retry_min", "%v is more than retry_max, %v", c.RetryMin, c.RetryMax)
	}
	if c.MaxLookups < 1 || c.MaxLookups > 100 {
		fs.Keyf(prefix+".max_lookups", "%d is out of range: 1 to 100", c.MaxLookups)
	}
	if c.History < 1 || c.History > 1000 {
		fs.Keyf(prefix+".history", "%d is out of range: 1 to 1000", c.History)
	}
	if len(c.Lists) > 0 && !filepath.IsAbs(c.StateDir) {
		fs.Keyf(prefix+".state_dir", "%q is not an absolute path", c.StateDir)
	}
	c.Guard.validate(prefix+".guard", fs)
	validateSkip(prefix+".skip", c.Skip, fs)
	validateDomains(prefix+".own_domains", c.OwnDomains, fs)
	if _, err := policy.ParseTemplate(c.RelayReply, relayReply, replyVars...); err != nil {
		fs.Keyf(prefix+".relay_reply", "%v", err)
	}
	if _, err := policy.ParseTemplate(c.DeferReply, deferReply, replyVars...); err != nil {
		fs.Keyf(prefix+".defer_reply", "%v", err)
	}
	if len(c.Lists) > maxLists {
		fs.Keyf(prefix+".list", "%d lists are too many: at most %d", len(c.Lists), maxLists)
		return
	}
	names, paths := map[string]int{}, map[string]string{}
	for i := range c.Lists {
		l := &c.Lists[i]
		key := index(prefix+".list", i)
		if first, ok := names[l.Name]; ok {
			fs.Keyf(key+".name", "%q is the name of list[%d] too", l.Name, first)
		}
		names[l.Name] = i
		l.validate(key, c, paths, fs)
	}
	c.validateOverlap(prefix, fs)
}

func (g *GuardConfig) validate(prefix string, fs *conf.Faults) {
	for _, v := range []struct {
		key            string
		n, least, most int
	}{
		{"max_shrink", g.MaxShrink, 1, 100},
		{"max_grow", g.MaxGrow, 1, 1_000_000},
		{"min_ipv4_prefix", g.MinIPv4Prefix, 0, 32},
		{"min_ipv6_prefix", g.MinIPv6Prefix, 0, 128},
	} {
		if v.n < v.least || v.n > v.most {
			fs.Keyf(prefix+"."+v.key, "%d is out of range: %d to %d", v.n, v.least, v.most)
		}
	}
}

func validateSkip(key string, skip []string, fs *conf.Faults) {
	for i, name := range skip {
		if !slices.Contains(skippable, name) {
			fs.Keyf(index(key, i), "there is no check %q that could be skipped (one of %v)", name, skippable)
		}
	}
}

// validateDomains holds domains to "example.org" or ".example.org".
func validateDomains(key string, domains []string, fs *conf.Faults) {
	for i, d := range domains {
		name := mailaddr.Domain(strings.TrimPrefix(d, "."))
		if !validName(name) || !strings.Contains(name, ".") || strings.ContainsAny(name, "@*/ ") {
			fs.Keyf(index(key, i), "%q is not a domain (example.org, or .example.org with all names below)", d)
		}
	}
}

func (l *ListConfig) validate(key string, c *Config, paths map[string]string, fs *conf.Faults) {
	if l.Name == "" || len(l.Name) > maxName || strings.Trim(l.Name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" || l.Name[0] == '.' || l.Name[0] == '-' {
		fs.Keyf(key+".name", "%q is not a name: at most %d lower-case letters, digits, \".\", \"-\", \"_\"", l.Name, maxName)
	}
	if len(l.Domains) == 0 && len(l.Files) == 0 && builtin[l.Name] == nil {
		fs.Keyf(key+".name", "%q is no built-in provider, so it needs domains or files (built in: %s)", l.Name, strings.Join(Builtin(), ", "))
	}
	if len(l.Domains) > maxDomains {
		fs.Keyf(key+".domains", "%d domains are too many: at most %d", len(l.Domains), maxDomains)
	}
	seen := map[string]bool{}
	for i, d := range l.Domains {
		name := mailaddr.Domain(d)
		switch {
		case !validName(name) || !strings.Contains(name, "."):
			fs.Keyf(index(key+".domains", i), "%q is not a domain name", d)
		case seen[name]:
			fs.Keyf(index(key+".domains", i), "%q is there already", d)
		}
		seen[name] = true
	}
	if l.Skip != nil {
		validateSkip(key+".skip", *l.Skip, fs)
	}
	g := l.guard(c.Guard)
	own := conf.Faults{}
	g.validate(key, &own)
	for _, f := range own {
		if !c.Guard.hasFault(f.Key[strings.LastIndexByte(f.Key, '.')+1:]) {
			*fs = append(*fs, f)
		}
	}
	if _, faults := readFiles(l.Files); len(faults) > 0 {
		*fs = append(*fs, faults...)
	} else if len(l.Files) > 0 {
		l.validateFiles(key, g, fs)
	}
	for i := range l.Exports {
		e := &l.Exports[i]
		k := index(key+".export", i)
		if other := paths[e.Path]; other != "" {
			fs.Keyf(k+".path", "%q is written by %s too", e.Path, other)
		}
		paths[e.Path] = k
		e.validate(k, fs)
	}
	for i := range l.Relay {
		l.Relay[i].validate(index(key+".relay", i), c, fs)
	}
}

// hasFault reports whether the section itself has been reported already.
func (g *GuardConfig) hasFault(key string) bool {
	var fs conf.Faults
	g.validate("guard", &fs)
	return slices.ContainsFunc(fs, func(f *conf.Fault) bool { return f.Key == "guard."+key })
}

// validateFiles holds the content of the files to the bounds that hold for
// every list.
func (l *ListConfig) validateFiles(key string, g GuardConfig, fs *conf.Faults) {
	entries, _ := readFiles(l.Files)
	if len(entries) == 0 && len(l.domains()) == 0 {
		fs.Keyf(key+".files", "there is no network in them")
		return
	}
	for _, why := range g.absolute(prefixesOf(entries), l.AllowReserved) {
		fs.Keyf(key+".files", "%s", why)
	}
}

func (e *ExportConfig) validate(key string, fs *conf.Faults) {
	if !filepath.IsAbs(e.Path) {
		fs.Keyf(key+".path", "%q is not an absolute path", e.Path)
	} else if st, err := os.Stat(filepath.Dir(e.Path)); err != nil || !st.IsDir() {
		fs.Keyf(key+".path", "%q is not a directory", filepath.Dir(e.Path))
	}
	if policy.Printable(e.Result) != e.Result || strings.TrimSpace(e.Result) != e.Result || len(e.Result) > 200 {
		fs.Keyf(key+".result", "%q: at most 200 printable ASCII characters", e.Result)
	}
	if _, err := e.mode(); err != nil {
		fs.Keyf(key+".mode", "%v", err)
	}
	if _, _, err := e.owner(); err != nil {
		fs.Keyf(key+".owner", "%v", err)
	}
}

// mode returns the file's mode.
func (e *ExportConfig) mode() (os.FileMode, error) {
	if e.Mode == "" {
		return 0o644, nil
	}
	m, err := strconv.ParseUint(e.Mode, 8, 32)
	if err != nil || m > 0o777 || m&0o400 == 0 {
		return 0, fmt.Errorf("%q is not a file mode (octal, readable by its owner, such as 0644)", e.Mode)
	}
	return os.FileMode(m), nil
}

// owner returns the numbers of the owner and the group; -1 leaves one as it is.
func (e *ExportConfig) owner() (uid, gid int, err error) {
	uid, gid = -1, -1
	name, group, _ := strings.Cut(e.Owner, ":")
	if name != "" {
		if uid, err = strconv.Atoi(name); err != nil {
			u, err := user.Lookup(name)
			if err != nil {
				return -1, -1, fmt.Errorf("there is no user %q", name)
			}
			uid, _ = strconv.Atoi(u.Uid) // always a number here
		}
	}
	if group != "" {
		if gid, err = strconv.Atoi(group); err != nil {
			g, err := user.LookupGroup(group)
			if err != nil {
				return -1, -1, fmt.Errorf("there is no group %q", group)
			}
			gid, _ = strconv.Atoi(g.Gid) // always a number here
		}
	}
	return uid, gid, nil
}

func (r *RelayConfig) validate(key string, c *Config, fs *conf.Faults) {
	validateDomains(key+".sender_domains", r.SenderDomains, fs)
	validateDomains(key+".cert_names", r.CertNames, fs)
	validateDomains(key+".dkim_domains", r.DKIMDomains, fs)
	for i, s := range r.CertFingerprints {
		if _, ok := fingerprint(s); !ok {
			fs.Keyf(index(key+".cert_fingerprints", i), "%q is not a fingerprint: 16, 20, 32, 48 or 64 bytes in hexadecimal, with or without colons", s)
		}
	}
	for i, s := range r.TenantIDs {
		if _, ok := tenantID(s); !ok {
			fs.Keyf(index(key+".tenant_ids", i), "%q is not a tenant id, such as 01234567-89ab-cdef-0123-456789abcdef", s)
		}
	}
	conditions := len(r.SenderDomains) + len(r.CertNames) + len(r.CertFingerprints) + len(r.TenantIDs) + len(r.DKIMDomains)
	if conditions == 0 && !r.Authenticated && !r.NullSender && !r.OpenToAllCustomers {
		fs.Keyf(key, "there is no condition, so every customer of the provider could relay: add sender_domains and tenant_ids, dkim_domains or cert_names, or write open_to_all_customers = true")
	}
	if r.OpenToAllCustomers && (conditions > 0 || r.Authenticated || r.NullSender) {
		fs.Keyf(key+".open_to_all_customers", "it means \"no condition\", and there are conditions beside it")
	}
	if r.NullSender && !r.Content() {
		fs.Keyf(key+".null_sender", "anybody can send with the null sender: it needs tenant_ids or dkim_domains")
	}
	free := len(r.SenderDomains) == 0 || r.NullSender || r.Authenticated
	if r.Content() && free && len(c.OwnDomains) == 0 {
		fs.Keyf(key, "without own_domains, mail of the provider's other customers to your own domains would be refused too: set %s.own_domains", strings.SplitN(key, ".", 2)[0])
	}
}

// validateOverlap finds two sections of which it could not be told, when the
// message is there, which one has let it in: the milter does not see all that
// is known of a certificate.
func (c *Config) validateOverlap(prefix string, fs *conf.Faults) {
	type place struct {
		key string
		r   *RelayConfig
	}
	var all []place
	for i := range c.Lists {
		for j := range c.Lists[i].Relay {
			all = append(all, place{index(index(prefix+".list", i)+".relay", j), &c.Lists[i].Relay[j]})
		}
	}
	for i, a := range all {
		for _, b := range all[:i] {
			if !a.r.Content() && !b.r.Content() || !a.r.overlaps(b.r) || a.r.sameCert(b.r) {
				continue
			}
			fs.Keyf(a.key, "a sender can belong to it and to %s, one of them looks at the message, and their certificates differ: "+
				"part the sender_domains, or give both the same cert_names and cert_fingerprints", b.key)
		}
	}
}

// overlaps reports whether some sender meets the sender conditions of both.
func (r *RelayConfig) overlaps(o *RelayConfig) bool {
	if r.Authenticated && o.Authenticated || r.NullSender && o.NullSender || r.anySender() || o.anySender() ||
		r.Authenticated && len(o.SenderDomains) > 0 || o.Authenticated && len(r.SenderDomains) > 0 {
		return true
	}
	for _, a := range domainSet(r.SenderDomains) {
		for _, b := range domainSet(o.SenderDomains) {
			if a.holds(strings.TrimPrefix(b.name, ".")) || b.holds(strings.TrimPrefix(a.name, ".")) {
				return true
			}
		}
	}
	return false
}

func (r *RelayConfig) anySender() bool {
	return len(r.SenderDomains) == 0 && !r.Authenticated && !r.NullSender
}

func (r *RelayConfig) sameCert(o *RelayConfig) bool {
	same := func(a, b []string) bool {
		a, b = slices.Clone(a), slices.Clone(b)
		slices.Sort(a)
		slices.Sort(b)
		return slices.Equal(a, b)
	}
	return same(r.CertNames, o.CertNames) && same(r.CertFingerprints, o.CertFingerprints)
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }
