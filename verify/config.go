package verify

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/policy"
	"postern/verify/callout"
	"postern/verify/directory"
)

// Config is the [verify] section.
type Config struct {
	conf.Step
	// Wait is the most time a client waits for an answer about an address that
	// is not in the cache; then it is deferred, and the answer is there when it
	// comes back. Default "6s".
	Wait conf.Duration `toml:"wait"`
	// RejectCode is 450 or 550: how an unknown recipient is refused. 450 lets
	// mistakes in this file be corrected without loss. Default 450.
	RejectCode int `toml:"reject_code"`
	// RejectText is what the client reads of an unknown recipient. Placeholders:
	// {recipient}, {sender}, {client}, {helo}. Postfix puts "<recipient>:
	// Recipient address rejected:" in front. Default "no such mailbox".
	RejectText string `toml:"reject_text"`
	// DeferReply is what the client reads while an address cannot be verified.
	// Default "450 4.1.1 not verified yet, please try again later".
	DeferReply string `toml:"defer_reply"`
	// HarvestReply is what a client reads that has asked for too many unknown
	// addresses. Default "450 4.7.1 too many unknown recipients, please try again
	// later".
	HarvestReply string `toml:"harvest_reply"`
	// WhenDown is what happens while no source can tell: "known-only" takes mail
	// for addresses known from the cache and defers the rest, "defer" defers all
	// while the next hop is down, "accept" takes all. Default "known-only".
	WhenDown string `toml:"when_down"`
	// PositiveExpire is how long a known address stays known. Default "31d".
	PositiveExpire conf.Duration `toml:"positive_expire"`
	// PositiveRefresh is after what time a known address is asked about again
	// when it is used. Default "7d".
	PositiveRefresh conf.Duration `toml:"positive_refresh"`
	// NegativeExpire is how long an unknown address stays unknown. Default "3d".
	NegativeExpire conf.Duration `toml:"negative_expire"`
	// NegativeRefresh is after what time an unknown address is asked about again
	// when it is used. Default "3h".
	NegativeRefresh conf.Duration `toml:"negative_refresh"`
	// TemporaryExpire is how long it is believed that nobody can tell, and the
	// pause after a refresh that failed. Default "2m".
	TemporaryExpire conf.Duration `toml:"temporary_expire"`
	// RefusedExpire is how long an answer that speaks of us, or says nothing, is
	// cached. Default "30m".
	RefusedExpire conf.Duration `toml:"refused_expire"`
	// Retry is when an address is asked about again in the background after the
	// next hop has answered "try again later", as one that greylists does; 0
	// waits for the next mail. Default "6m".
	Retry conf.Duration `toml:"retry"`
	// FoldCase compares local parts without regard to case. Default true.
	FoldCase bool `toml:"fold_case"`
	// Delimiters part an extension from the user where tables and directories
	// are asked.
	// Default "+".
	Delimiters string `toml:"delimiters"`
	// MaxEntries is the most addresses cached; beyond it only known ones
	// are. Default 1000000.
	MaxEntries int `toml:"max_entries"`
	// MaxPending is the most addresses that are being asked about at once; more
	// are deferred. Default 5000.
	MaxPending int `toml:"max_pending"`
	// HarvestMark is after how many unknown recipients a client is marked
	// "verify-harvest" for other checks; 0 never. Default 10.
	HarvestMark int `toml:"harvest_mark"`
	// HarvestLimit is after how many unknown recipients no new address is asked
	// about for a client: it is deferred; 0 never. Default 100.
	HarvestLimit int `toml:"harvest_limit"`
	// HarvestWindow is the time in which they are counted. Default "1h".
	HarvestWindow conf.Duration `toml:"harvest_window"`
	// SMTPServices are the transports of master.cf that are SMTP clients.
	// Default ["smtp", "relay"].
	SMTPServices []string `toml:"smtp_services"`
	// LMTPServices are those that are LMTP clients. Default ["lmtp"].
	LMTPServices []string `toml:"lmtp_services"`
	// ReloadInterval is how often files are looked at. Default "2s".
	ReloadInterval conf.Duration `toml:"reload_interval"`
	// Callout is how next hops are asked.
	Callout callout.Config `toml:"callout"`
	// Routes say which domains are ours and who knows their addresses.
	Routes []Route `toml:"route"`
	// LDAP are the directories that routes name.
	LDAP []directory.Config `toml:"ldap"`
}

// Route is one [[verify.route]] section: domains, and who knows their
// addresses. What it leaves out is as in [verify] and [verify.callout].
type Route struct {
	// Domains are "example.org", ".example.org" (what is below), "*" (all that
	// no other route names), and files: "list:/path", or a Postfix table as of
	// relay_domains, "texthash:/path", "regexp:/path" or "pcre:/path".
	// Default: none, they are needed.
	Domains []string `toml:"domains"`
	// NextHop is where mail for them goes, as transport(5) writes it:
	// "[host]:port", "host" (by MX), "lmtp:unix:/path", several parted by commas
	// in order of preference. Default: none.
	NextHop string `toml:"next_hop"`
	// Transport are tables as of transport_maps that say it for each address,
	// before NextHop. Default: none.
	Transport []string `toml:"transport"`
	// Sources are asked in their order until one knows the address: files
	// ("list:/path", one address a line, or a Postfix table such as
	// "texthash:/etc/postfix/relay_recipients"), "ldap:NAME", "callout". What no
	// source knows is unknown. Default: a callout only.
	Sources []string `toml:"sources"`
	// Sender replaces verify.callout.sender. Default: as there.
	Sender string `toml:"sender"`
	// TLS replaces verify.callout.tls. Default: as there.
	TLS string `toml:"tls"`
	// CAFile replaces verify.callout.ca_file. Default: as there.
	CAFile string `toml:"ca_file"`
	// RejectCode replaces verify.reject_code. Default: as there.
	RejectCode int `toml:"reject_code"`
	// RejectText replaces verify.reject_text. Default: as there.
	RejectText string `toml:"reject_text"`
	// WhenDown replaces verify.when_down. Default: as there.
	WhenDown string `toml:"when_down"`
	// Wait replaces verify.wait. Default: as there.
	Wait conf.Duration `toml:"wait"`
	// PositiveExpire replaces verify.positive_expire. Default: as there.
	PositiveExpire conf.Duration `toml:"positive_expire"`
	// PositiveRefresh replaces verify.positive_refresh. Default: as there.
	PositiveRefresh conf.Duration `toml:"positive_refresh"`
	// NegativeExpire replaces verify.negative_expire. Default: as there.
	NegativeExpire conf.Duration `toml:"negative_expire"`
	// NegativeRefresh replaces verify.negative_refresh. Default: as there.
	NegativeRefresh conf.Duration `toml:"negative_refresh"`
}

// Values of Config.WhenDown.
const (
	KnownOnly = "known-only"
	DeferAll  = "defer"
	AcceptAll = "accept"
)

var (
	rejectSoft  = policy.Reply{Code: 450, Enhanced: "4.1.1"}
	rejectHard  = policy.Reply{Code: 550, Enhanced: "5.1.1"}
	deferReply  = policy.Reply{Code: 450, Enhanced: "4.1.1"}
	harvestDef  = policy.Reply{Code: 450, Enhanced: "4.7.1"}
	replyVars   = []string{"recipient", "sender", "client", "helo"}
	calloutWord = "callout"
)

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	const day = 24 * time.Hour
	return Config{
		Step: conf.Step{Timeout: conf.Duration(10 * time.Second)},
		Wait: conf.Duration(6 * time.Second), RejectCode: 450, RejectText: "no such mailbox",
		DeferReply:   "450 4.1.1 not verified yet, please try again later",
		HarvestReply: "450 4.7.1 too many unknown recipients, please try again later",
		WhenDown:     KnownOnly, PositiveExpire: conf.Duration(31 * day), PositiveRefresh: conf.Duration(7 * day),
		NegativeExpire: conf.Duration(3 * day), NegativeRefresh: conf.Duration(3 * time.Hour),
		TemporaryExpire: conf.Duration(2 * time.Minute), RefusedExpire: conf.Duration(30 * time.Minute),
		Retry: conf.Duration(6 * time.Minute), FoldCase: true, Delimiters: "+", MaxEntries: 1_000_000, MaxPending: 5000,
		HarvestMark: 10, HarvestLimit: 100, HarvestWindow: conf.Duration(time.Hour),
		SMTPServices: []string{"smtp", "relay"}, LMTPServices: []string{"lmtp"},
		ReloadInterval: conf.Duration(2 * time.Second), Callout: callout.DefaultConfig(),
	}
}

// Validate reports what is wrong with the values and with the files they name;
// prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	const day = 24 * time.Hour
	between := func(key string, d conf.Duration, low, high time.Duration) {
		if d.D() < low || d.D() > high {
			fs.Keyf(prefix+"."+key, "%v is out of range: %v to %v", d, conf.Duration(low), conf.Duration(high))
		}
	}
	between("timeout", c.Timeout, 100*time.Millisecond, time.Minute)
	between("wait", c.Wait, 0, 50*time.Second)
	between("temporary_expire", c.TemporaryExpire, time.Second, time.Hour)
	between("refused_expire", c.RefusedExpire, time.Second, day)
	between("retry", c.Retry, 0, day)
	between("harvest_window", c.HarvestWindow, time.Minute, 7*day)
	between("reload_interval", c.ReloadInterval, 100*time.Millisecond, time.Hour)
	if c.Timeout <= c.Wait {
		fs.Keyf(prefix+".timeout", "%v is not longer than wait (%v): the check would be cut off while it waits", c.Timeout, c.Wait)
	}
	number := func(key string, n, low, high int) {
		if n < low || n > high {
			fs.Keyf(prefix+"."+key, "%d is out of range: %d to %d", n, low, high)
		}
	}
	number("max_entries", c.MaxEntries, 1000, 100_000_000)
	number("max_pending", c.MaxPending, 1, 1_000_000)
	number("harvest_mark", c.HarvestMark, 0, 1_000_000)
	number("harvest_limit", c.HarvestLimit, 0, 1_000_000)
	c.validateReply(prefix, c.RejectCode, c.RejectText, c.WhenDown, fs)
	if _, err := policy.ParseTemplate(c.DeferReply, deferReply, replyVars...); err != nil {
		fs.Keyf(prefix+".defer_reply", "%v", err)
	}
	if _, err := policy.ParseTemplate(c.HarvestReply, harvestDef, replyVars...); err != nil {
		fs.Keyf(prefix+".harvest_reply", "%v", err)
	}
	validateTimes(prefix, c.times(nil), fs)
	c.Callout.Validate(prefix+".callout", fs)
	names := make(map[string]bool)
	for i := range c.LDAP {
		l := &c.LDAP[i]
		key := fmt.Sprintf("%s.ldap[%d]", prefix, i)
		l.Validate(key, callout.LoadRoots, fs)
		if names[l.Name] {
			fs.Keyf(key+".name", "%q is the name of another directory", l.Name)
		}
		names[l.Name] = true
	}
	seen := make(map[string]int)
	for i := range c.Routes {
		c.validateRoute(fmt.Sprintf("%s.route[%d]", prefix, i), i, &c.Routes[i], names, seen, fs)
	}
}

func validateTimes(prefix string, t Times, fs *conf.Faults) {
	const day = 24 * time.Hour
	for _, k := range []struct {
		key             string
		expire, refresh time.Duration
	}{{"positive", t.PositiveExpire, t.PositiveRefresh}, {"negative", t.NegativeExpire, t.NegativeRefresh}} {
		if k.expire < time.Second || k.expire > 3660*day {
			fs.Keyf(prefix+"."+k.key+"_expire", "%v is out of range: 1s to 3660d", conf.Duration(k.expire))
		}
		if k.refresh < time.Second || k.refresh > k.expire {
			fs.Keyf(prefix+"."+k.key+"_refresh", "%v is out of range: 1s to %s_expire (%v)", conf.Duration(k.refresh), k.key, conf.Duration(k.expire))
		}
	}
}

func (c *Config) validateReply(prefix string, code int, text, whenDown string, fs *conf.Faults) {
	if code != 450 && code != 550 {
		fs.Keyf(prefix+".reject_code", "%d is neither 450 nor 550", code)
	} else if _, err := policy.ParseTemplate(text, rejectDefault(code), replyVars...); err != nil {
		fs.Keyf(prefix+".reject_text", "%v", err)
	}
	switch whenDown {
	case KnownOnly, DeferAll, AcceptAll:
	default:
		fs.Keyf(prefix+".when_down", "unknown value %q (one of known-only, defer, accept)", whenDown)
	}
}

func rejectDefault(code int) policy.Reply {
	if code == 550 {
		return rejectHard
	}
	return rejectSoft
}

func (c *Config) validateRoute(prefix string, n int, r *Route, directories map[string]bool, seen map[string]int, fs *conf.Faults) {
	if len(r.Domains) == 0 {
		fs.Keyf(prefix+".domains", "names no domain")
	}
	for i, d := range r.Domains {
		key := fmt.Sprintf("%s.domains[%d]", prefix, i)
		if strings.Contains(d, ":") {
			validateFile(key, d, fs)
			continue
		}
		name := foldKey(d)
		if name == "" || name == "." || strings.ContainsAny(name, " @/<>") || name != "*" && strings.Contains(name, "*") {
			fs.Keyf(key, "%q is not a domain (example.org, .example.org for what is below it, or *)", d)
			continue
		}
		if other, ok := seen[name]; ok {
			fs.Keyf(key, "%q stands in route %d already", d, other+1)
			continue
		}
		seen[name] = n
	}
	if r.NextHop != "" {
		if _, err := callout.ParseHops(r.NextHop); err != nil {
			fs.Keyf(prefix+".next_hop", "%v", err)
		}
	}
	for i, t := range r.Transport {
		validateFile(fmt.Sprintf("%s.transport[%d]", prefix, i), t, fs)
	}
	asks := false
	for i, s := range r.sources() {
		key := fmt.Sprintf("%s.sources[%d]", prefix, i)
		kind, rest, _ := strings.Cut(s, ":")
		switch {
		case s == calloutWord:
			asks = true
			if i != len(r.sources())-1 {
				fs.Keyf(key, "a callout always knows: nothing behind it would be asked")
			}
		case kind == "ldap":
			if !directories[rest] {
				fs.Keyf(key, "there is no [[verify.ldap]] with the name %q", rest)
			}
		default:
			validateFile(key, s, fs)
		}
	}
	if asks && r.NextHop == "" && len(r.Transport) == 0 {
		fs.Keyf(prefix+".next_hop", "a callout needs to know whom to ask: set next_hop or transport")
	}
	if !asks && r.NextHop != "" {
		fs.Keyf(prefix+".next_hop", "has no use: callout is not among the sources")
	}
	if r.Sender != "" {
		callout.ValidateSender(prefix+".sender", r.Sender, fs)
	}
	callout.ValidateTLS(prefix, r.TLS, r.CAFile, true, fs)
	full := c.settings(r)
	if r.RejectCode == 0 && full.RejectCode != 450 && full.RejectCode != 550 || r.RejectText == "" {
		full.RejectCode = max(r.RejectCode, 450) // the section's own faults are told once
	}
	if r.RejectText == "" {
		full.RejectText = "x"
	}
	if r.WhenDown == "" {
		full.WhenDown = KnownOnly
	}
	c.validateReply(prefix, full.RejectCode, full.RejectText, full.WhenDown, fs)
	if r.Wait != 0 && (r.Wait < 0 || r.Wait >= c.Timeout) {
		fs.Keyf(prefix+".wait", "%v is not less than verify.timeout (%v)", r.Wait, c.Timeout)
	}
	own := *r
	if own.PositiveExpire != 0 || own.PositiveRefresh != 0 || own.NegativeExpire != 0 || own.NegativeRefresh != 0 {
		validateTimes(prefix, c.times(r), fs)
	}
}

func validateFile(key, text string, fs *conf.Faults) {
	f, err := parseFile(text)
	if err != nil {
		fs.Keyf(key, "%v", err)
		return
	}
	*fs = append(*fs, f.load()...)
}

// sources returns the route's sources with their default.
func (r *Route) sources() []string {
	if len(r.Sources) == 0 {
		return []string{calloutWord}
	}
	return r.Sources
}

// settings returns the route with everything it inherits.
func (c *Config) settings(r *Route) Route {
	full := *r
	if full.Sender == "" {
		full.Sender = c.Callout.Sender
	}
	if full.TLS == "" {
		full.TLS = c.Callout.TLS
	}
	if full.CAFile == "" {
		full.CAFile = c.Callout.CAFile
	}
	if full.RejectCode == 0 {
		full.RejectCode = c.RejectCode
	}
	if full.RejectText == "" {
		full.RejectText = c.RejectText
	}
	if full.WhenDown == "" {
		full.WhenDown = c.WhenDown
	}
	if full.Wait == 0 {
		full.Wait = c.Wait
	}
	return full
}

// times returns the times of a route, of the section for nil.
func (c *Config) times(r *Route) Times {
	if r == nil {
		r = &Route{}
	}
	or := func(own, general conf.Duration) time.Duration {
		if own != 0 {
			return own.D()
		}
		return general.D()
	}
	return Times{
		PositiveExpire: or(r.PositiveExpire, c.PositiveExpire), PositiveRefresh: or(r.PositiveRefresh, c.PositiveRefresh),
		NegativeExpire: or(r.NegativeExpire, c.NegativeExpire), NegativeRefresh: or(r.NegativeRefresh, c.NegativeRefresh),
		Temporary: c.TemporaryExpire.D(), Refused: c.RefusedExpire.D(),
	}
}

// WithoutChain says what does not happen when no chain has the check.
func (c *Config) WithoutChain(prefix string) string {
	if len(c.Routes) == 0 {
		return ""
	}
	return prefix + ".route: no chain has the check verify: no recipient is verified"
}

// Secrets returns the keys of the files with passwords, and the files.
func (c *Config) Secrets(prefix string) map[string]string {
	out := make(map[string]string)
	for i := range c.LDAP {
		if c.LDAP[i].PasswordFile != "" {
			out[fmt.Sprintf("%s.ldap[%d].password_file", prefix, i)] = c.LDAP[i].PasswordFile
		}
	}
	return out
}

var errNoRoute = errors.New("no route names the domain")
