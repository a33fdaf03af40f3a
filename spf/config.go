package spf

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/list"
	"postern/policy"
)

// Config is the [spf] section.
type Config struct {
	conf.Step
	// MailFrom says what the results for the sender's domain do.
	MailFrom Actions `toml:"mail_from"`
	// Helo says what the results for the HELO name do. Of mail without a
	// sender (bounces) it is the only one.
	Helo Actions `toml:"helo"`
	// MustPass are sender domains whose mail is refused unless it passes:
	// "example.org", or ".example.org" for everything below. It is deferred
	// when the DNS cannot be asked. Default none.
	MustPass []string `toml:"must_pass"`
	// AllowDomains are domains whose SPF records stand for allow lists: a
	// client that one of them lets pass is exempt from the checks in allow_skip,
	// and not refused by this one, whatever the sender. Default none.
	AllowDomains []string `toml:"allow_domains"`
	// AllowSkip are the checks from which allow_domains exempts. Default ["rbl",
	// "client", "greylist"].
	AllowSkip []string `toml:"allow_skip"`
	// Skip are clients, senders or recipients about whom SPF is not asked,
	// each an entry as in a list file. Default ["127.0.0.0/8", "::1"].
	Skip []string `toml:"skip"`
	// Exceptions are files of such entries, or Postfix tables. Default none.
	Exceptions []string `toml:"exceptions"`
	// SkipAuthenticated does not ask about clients that have logged in or have
	// shown a certificate that Postfix trusts. Default true.
	SkipAuthenticated bool `toml:"skip_authenticated"`
	// Relays are your own relays and the forwarders that you trust, each an
	// entry as in a list file or the name of one ("file:PATH"): of their mail
	// the client that handed it to them is asked about, taken from the Received
	// field that they have put on it. That is seen at the milter door only;
	// the policy door does not ask. Default none.
	Relays []string `toml:"relays"`
	// RelayRefuse lets what came through a relay be refused too, which the relay
	// has to bounce then; otherwise it is marked. Default false.
	RelayRefuse bool `toml:"relay_refuse"`
	// WidestIPv4 is the length of the largest IPv4 network that a record may
	// let pass, all its networks together; beyond it a pass does not count. A
	// record that lets everybody pass never counts. Default 8.
	WidestIPv4 int `toml:"widest_ipv4"`
	// WidestIPv6 is the same for IPv6. Default 20.
	WidestIPv6 int `toml:"widest_ipv6"`
	// MaxLookups is the most terms of a record, with all that it includes,
	// that may ask the DNS. RFC 7208 says 10. Default 10.
	MaxLookups int `toml:"max_lookups"`
	// MaxVoidLookups is the most of them that may find nothing. Default 2.
	MaxVoidLookups int `toml:"max_void_lookups"`
	// LookupTime is the most time for one identity; beyond it the result is
	// temperror. Default "5s".
	LookupTime conf.Duration `toml:"lookup_time"`
	// Header is the field that an accepted message gets: "received-spf" (RFC
	// 7208 section 9.1), "authentication-results" (RFC 8601) or "off".
	// Default "off".
	Header string `toml:"header"`
	// Explanation shows a refused client the words of the domain's owner
	// (exp=). Default false.
	Explanation bool `toml:"explanation"`
	// Reply is what a rejected client reads. Placeholders: {client}, {helo},
	// {sender}, {recipient}, {identity} ("MAIL FROM" or "HELO"), {domain},
	// {result}, {explanation}. Default "550 5.7.23 SPF: {client} may not send
	// mail for {domain} ({identity}, {result}){explanation}".
	Reply string `toml:"reply"`
	// DeferReply is what a deferred client reads, with the same placeholders.
	// Default "450 4.7.23 SPF: {client} may not send mail for {domain}
	// ({identity}, {result}){explanation}".
	DeferReply string `toml:"defer_reply"`
	// ErrorReply is what a client reads that is rejected because the record
	// cannot be used (permerror); {problem} says why. Default "550 5.7.24
	// SPF: the record of {domain} has an error: {problem}".
	ErrorReply string `toml:"error_reply"`
	// TempReply is what a client reads that is deferred because the DNS could
	// not be asked. Default "451 4.4.3 SPF: the record of {domain} cannot be
	// looked up, please try again later".
	TempReply string `toml:"temp_reply"`
	// CacheSize is how many outcomes are kept. Default 50000.
	CacheSize int `toml:"cache_size"`
	// CacheTTL is the most time an outcome is kept; the TTL of the records
	// may make it less. Default "10m".
	CacheTTL conf.Duration `toml:"cache_ttl"`
	// ReloadInterval is how often list files are looked at. Default "2s".
	ReloadInterval conf.Duration `toml:"reload_interval"`
}

// Actions is [spf.mail_from] or [spf.helo]: what each result does, "reject",
// "defer", "mark" (a suspicion for later checks) or "off".
type Actions struct {
	// Fail is for a domain that says that the client may not send. To reject it
	// also refuses what forwarders hand on that do not rewrite the sender.
	// Default "mark".
	Fail Action `toml:"fail"`
	// SoftFail is for one that says: probably not. Default "mark".
	SoftFail Action `toml:"softfail"`
	// Neutral is for one that does not want to say. Default "mark".
	Neutral Action `toml:"neutral"`
	// None is for one without a record, or for no domain at all. Default "off".
	None Action `toml:"none"`
	// PermError is for a record that cannot be used. Default "mark".
	PermError Action `toml:"permerror"`
	// TempError is for a DNS that could not be asked; it cannot be "reject".
	// Default "mark".
	TempError Action `toml:"temperror"`
	// TooWide is for a pass by a record that lets more than widest_ipv4 or
	// widest_ipv6 pass. Default "mark".
	TooWide Action `toml:"too_wide"`
}

// Action is what a result does.
type Action = conf.Action

// The actions, the weakest first.
const (
	Off    = conf.Off
	Mark   = conf.Mark
	Defer  = conf.Defer
	Reject = conf.Reject
)

// Values of Config.Header.
const (
	HeaderReceivedSPF = "received-spf"
	HeaderResults     = "authentication-results"
	HeaderOff         = "off"
)

const defaultText = "SPF: {client} may not send mail for {domain} ({identity}, {result}){explanation}"

// DefaultConfig returns the values of an empty section.
func DefaultConfig() Config {
	actions := Actions{Fail: Mark, SoftFail: Mark, Neutral: Mark, None: Off, PermError: Mark, TempError: Mark, TooWide: Mark}
	return Config{
		Step:     conf.Step{Timeout: conf.Duration(12 * time.Second)},
		MailFrom: actions, Helo: actions,
		AllowSkip: []string{"rbl", "client", "greylist"},
		Skip:      []string{"127.0.0.0/8", "::1"}, SkipAuthenticated: true,
		WidestIPv4: 8, WidestIPv6: 20,
		MaxLookups: 10, MaxVoidLookups: 2, LookupTime: conf.Duration(5 * time.Second),
		Header: HeaderOff,
		Reply:  "550 5.7.23 " + defaultText, DeferReply: "450 4.7.23 " + defaultText,
		ErrorReply: "550 5.7.24 SPF: the record of {domain} has an error: {problem}",
		TempReply:  "451 4.4.3 SPF: the record of {domain} cannot be looked up, please try again later",
		CacheSize:  50_000, CacheTTL: conf.Duration(10 * time.Minute),
		ReloadInterval: conf.Duration(2 * time.Second),
	}
}

// Asks reports whether there are settings that need the check to be run.
func (c *Config) Asks() bool { return len(c.MustPass)+len(c.AllowDomains)+len(c.Relays) > 0 }

var (
	rejectReply = policy.Reply{Code: 550, Enhanced: "5.7.23"} // RFC 7372 section 3.2
	deferReply  = policy.Reply{Code: 450, Enhanced: "4.7.23"}
	errorReply  = policy.Reply{Code: 550, Enhanced: "5.7.24"}
	tempReply   = policy.Reply{Code: 451, Enhanced: "4.4.3"} // RFC 7208 section 8.6

	replyVars = []string{"client", "helo", "sender", "recipient", "identity", "domain", "result", "problem", "explanation"}
)

// skippable are the checks from which a domain's record may exempt a client.
var skippable = []string{"client", "greylist", "limit", "provider", "rbl", "verify"}

// maxAllowDomains bounds what is looked up for every client.
const maxAllowDomains = 20

// Validate reports what is wrong with the values and with the list files;
// prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	for _, n := range [...]struct {
		key              string
		value, low, high int
	}{
		{"widest_ipv4", c.WidestIPv4, 0, 32},
		{"widest_ipv6", c.WidestIPv6, 0, 128},
		{"max_lookups", c.MaxLookups, 1, 30},
		{"max_void_lookups", c.MaxVoidLookups, 0, 30},
		{"cache_size", c.CacheSize, 100, 10_000_000},
	} {
		if n.value < n.low || n.value > n.high {
			fs.Keyf(prefix+"."+n.key, "%d is out of range: %d to %d", n.value, n.low, n.high)
		}
	}
	for _, d := range [...]struct {
		key       string
		value     conf.Duration
		low, high time.Duration
	}{
		{"timeout", c.Timeout, 100 * time.Millisecond, time.Minute},
		{"lookup_time", c.LookupTime, 50 * time.Millisecond, time.Minute},
		{"cache_ttl", c.CacheTTL, 0, 24 * time.Hour},
		{"reload_interval", c.ReloadInterval, 100 * time.Millisecond, time.Hour},
	} {
		if d.value.D() < d.low || d.value.D() > d.high {
			fs.Keyf(prefix+"."+d.key, "%v is out of range: %v to %v", d.value, conf.Duration(d.low), conf.Duration(d.high))
		}
	}
	if c.Timeout.D() > 0 && c.LookupTime >= c.Timeout {
		fs.Keyf(prefix+".lookup_time", "%v is not less than timeout (%v): the check would be cut off before it knows that the DNS cannot be asked", c.LookupTime, c.Timeout)
	}
	for _, a := range [...]struct {
		key    string
		action Action
	}{{"mail_from", c.MailFrom.TempError}, {"helo", c.Helo.TempError}} {
		if a.action == Reject {
			fs.Keyf(prefix+"."+a.key+".temperror", "mail must not be rejected for good because the DNS did not answer: \"defer\", \"mark\" or \"off\"")
		}
	}
	if c.Header != HeaderReceivedSPF && c.Header != HeaderResults && c.Header != HeaderOff {
		fs.Keyf(prefix+".header", "unknown value %q (one of received-spf, authentication-results, off)", c.Header)
	}
	c.validateDomains(prefix, fs)
	for _, t := range c.templates() {
		if _, err := policy.ParseTemplate(t.text, t.def, replyVars...); err != nil {
			fs.Keyf(prefix+"."+t.key, "%v", err)
		}
	}
	for _, l := range c.lists(prefix) {
		_, faults := list.Load(l.sources, l.opts)
		*fs = append(*fs, faults...)
	}
}

func (c *Config) validateDomains(prefix string, fs *conf.Faults) {
	for i, d := range c.MustPass {
		if !isHost(mailaddr.Domain(strings.TrimPrefix(d, "."))) {
			fs.Keyf(index(prefix+".must_pass", i), "%q is no domain", d)
		}
	}
	for i, d := range c.AllowDomains {
		if !isHost(mailaddr.Domain(d)) {
			fs.Keyf(index(prefix+".allow_domains", i), "%q is no domain", d)
		}
	}
	if len(c.AllowDomains) > maxAllowDomains {
		fs.Keyf(prefix+".allow_domains", "%d domains: at most %d are looked up for every client", len(c.AllowDomains), maxAllowDomains)
	}
	for i, name := range c.AllowSkip {
		if !slices.Contains(skippable, name) {
			fs.Keyf(index(prefix+".allow_skip", i), "there is no check %q that could be skipped (one of %s)", name, strings.Join(skippable, ", "))
		}
	}
}

// template is a reply of the section.
type template struct {
	key, text string
	def       policy.Reply
}

func (c *Config) templates() [4]template {
	return [...]template{
		{"reply", c.Reply, rejectReply}, {"defer_reply", c.DeferReply, deferReply},
		{"error_reply", c.ErrorReply, errorReply}, {"temp_reply", c.TempReply, tempReply},
	}
}

// entries is one list of the section.
type entries struct {
	sources []string
	opts    list.Options
}

// lists returns the exceptions and the relays.
func (c *Config) lists(prefix string) [2]entries {
	var skip, relays entries
	for _, s := range c.Skip {
		skip.sources = append(skip.sources, "inline:"+s)
	}
	skip.sources = append(skip.sources, c.Exceptions...)
	skip.opts = list.Options{KeyAt: func(i int) string {
		if i < len(c.Skip) {
			return index(prefix+".skip", i)
		}
		return index(prefix+".exceptions", i-len(c.Skip))
	}}
	for _, s := range c.Relays {
		if !strings.HasPrefix(s, "file:") && !strings.HasPrefix(s, "cidr:") {
			s = "inline:" + s
		}
		relays.sources = append(relays.sources, s)
	}
	relays.opts = list.Options{Key: prefix + ".relays"}
	return [...]entries{skip, relays}
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }

// WithoutChain says what does not happen when no chain has the check.
func (c *Config) WithoutChain(prefix string) string {
	if !c.Asks() {
		return ""
	}
	return prefix + ": no chain has the check spf: nothing is asked"
}

// WithoutMilter says what does not happen when there is no milter door.
func (c *Config) WithoutMilter(prefix string) string {
	if len(c.Relays) == 0 {
		return ""
	}
	return prefix + ".relays: milter.listen is empty: who is behind a relay cannot be seen, its mail is not asked about"
}
