package auth

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/list"
	"postern/policy"
)

// Config is the [auth] section.
type Config struct {
	conf.Step
	// AuthservID is the name under which the results are written, and under
	// which nobody else's may stand in a message. Default: hostname.
	AuthservID string `toml:"authserv_id"`
	// Skip are clients, senders or recipients whose mail is not looked at, such
	// as your own networks, each an entry as in a list file. Default
	// ["127.0.0.0/8", "::1"].
	Skip []string `toml:"skip"`
	// Exceptions are files of such entries, or Postfix tables. Default none.
	Exceptions []string `toml:"exceptions"`
	// SkipAuthenticated does not look at mail of clients that have logged in or
	// have shown a certificate that Postfix trusts. Default true.
	SkipAuthenticated bool `toml:"skip_authenticated"`
	// MaxSignatures is how many DKIM signatures of a message are verified, the
	// topmost ones. Default 8.
	MaxSignatures int `toml:"max_signatures"`
	// MinRSABits is the least length of an RSA key that counts: 1024 to 4096. Default 1024.
	MinRSABits int `toml:"min_rsa_bits"`
	// PartialBody lets a signature count that leaves out the end of the body
	// (l=), where anybody can have added something. Default false.
	PartialBody bool `toml:"partial_body"`
	// OwnResults takes forged fields out of mail that is not looked at, too, and
	// writes into that of clients that have logged in that they have. Default
	// false.
	OwnResults bool `toml:"own_results"`
	// Upstream are hosts of yours whose results are believed. Default none.
	Upstream []UpstreamConfig `toml:"upstream"`
	// LookupTime is the most time for one question to the DNS. Default "5s".
	LookupTime conf.Duration `toml:"lookup_time"`
	// DMARC says what the wish of a domain's owner does.
	DMARC DMARCConfig `toml:"dmarc"`
	// ARC says whom you trust to have looked before.
	ARC ARCConfig `toml:"arc"`
	// ReloadInterval is how often list files are looked at. Default "2s".
	ReloadInterval conf.Duration `toml:"reload_interval"`
}

// UpstreamConfig is a host that mail comes through before it comes here.
type UpstreamConfig struct {
	// AuthservID is the name under which it writes its results. Such fields in
	// mail from elsewhere are forged, and are taken out.
	AuthservID string `toml:"authserv_id"`
	// Clients are the networks that it hands mail in from. At least one must be
	// given.
	Clients []netip.Prefix `toml:"clients"`
}

// ARCConfig is the [auth.arc] section.
type ARCConfig struct {
	// TrustedSealers are domains, d= of ARC-Seal, whose word counts: a message
	// that fails DMARC here and has passed there is not refused. "example.org" is
	// that domain, ".example.org" with all below it. Default none.
	TrustedSealers []string `toml:"trusted_sealers"`
}

// DMARCConfig is the [auth.dmarc] section.
type DMARCConfig struct {
	// Discovery is how records and organisational domains are found: "psl", by
	// the public suffix list (RFC 7489), or "tree", by a walk up the DNS tree
	// (its successor). Default "psl".
	Discovery string `toml:"discovery"`
	// Reject is what p=reject does with a message that fails: "reject",
	// "quarantine" (Postfix puts it on hold), "mark" or "none". Default "reject".
	Reject Action `toml:"reject"`
	// Quarantine is the same for p=quarantine. Default "mark".
	Quarantine Action `toml:"quarantine"`
	// BadFrom is what happens to a message whose author cannot be told: no From
	// field, more than one, or one that cannot be read. Default "mark".
	BadFrom Action `toml:"bad_from"`
	// Exempt are clients whose mail is judged and not refused, such as mailing
	// lists and forwarders that you trust, each an entry as in a list file.
	// Default none.
	Exempt []string `toml:"exempt"`
	// Exceptions are files of such entries, or Postfix tables. Default none.
	Exceptions []string `toml:"exceptions"`
	// Reply is what a refused client reads. Placeholders: {domain}, {sender},
	// {client}, {policy}. Default "550 5.7.26 Mail from {domain} is refused by
	// the policy of that domain (DMARC p={policy}): neither SPF nor DKIM
	// passed for it".
	Reply string `toml:"reply"`
	// BadFromReply is what a client reads whose message is refused for
	// bad_from. Default "550 5.7.1 The message has no From field with one
	// readable address".
	BadFromReply string `toml:"bad_from_reply"`
}

// Action is what a wish does.
type Action string

// The actions.
const (
	None       Action = "none"
	Mark       Action = "mark"
	Quarantine Action = "quarantine"
	Reject     Action = "reject"
)

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *Action) UnmarshalText(b []byte) error {
	switch v := Action(b); v {
	case None, Mark, Quarantine, Reject:
		*a = v
		return nil
	}
	return fmt.Errorf("unknown action %q (one of reject, quarantine, mark, none)", b)
}

// Values of DMARCConfig.Discovery.
const (
	byList = "psl"
	byTree = "tree"
)

var (
	dmarcReply = policy.Reply{Code: 550, Enhanced: "5.7.26"} // RFC 7372 section 3.3
	fromReply  = policy.Reply{Code: 550, Enhanced: "5.7.1"}

	replyVars = []string{"domain", "sender", "client", "policy"}
)

// DefaultConfig returns the values of an empty section.
func DefaultConfig() Config {
	return Config{
		Step: conf.Step{Mode: policy.Off, Timeout: conf.Duration(20 * time.Second)},
		Skip: []string{"127.0.0.0/8", "::1"}, SkipAuthenticated: true,
		MaxSignatures: 8, MinRSABits: 1024, LookupTime: conf.Duration(5 * time.Second),
		DMARC: DMARCConfig{
			Discovery: byList, Reject: Reject, Quarantine: Mark, BadFrom: Mark,
			Reply: "550 5.7.26 Mail from {domain} is refused by the policy of that domain (DMARC p={policy}): " +
				"neither SPF nor DKIM passed for it",
			BadFromReply: "550 5.7.1 The message has no From field with one readable address",
		},
		ReloadInterval: conf.Duration(2 * time.Second),
	}
}

// Validate reports what is wrong with the values and with the list files;
// prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if c.MaxSignatures < 1 || c.MaxSignatures > 100 {
		fs.Keyf(prefix+".max_signatures", "%d is out of range: 1 to 100", c.MaxSignatures)
	}
	if c.MinRSABits < 1024 || c.MinRSABits > 4096 {
		fs.Keyf(prefix+".min_rsa_bits", "%d is out of range: 1024 to 4096", c.MinRSABits)
	}
	for _, d := range [...]struct {
		key       string
		value     conf.Duration
		low, high time.Duration
	}{
		{"timeout", c.Timeout, 100 * time.Millisecond, 2 * time.Minute},
		{"lookup_time", c.LookupTime, 50 * time.Millisecond, time.Minute},
		{"reload_interval", c.ReloadInterval, 100 * time.Millisecond, time.Hour},
	} {
		if d.value.D() < d.low || d.value.D() > d.high {
			fs.Keyf(prefix+"."+d.key, "%v is out of range: %v to %v", d.value, conf.Duration(d.low), conf.Duration(d.high))
		}
	}
	if c.Timeout.D() > 0 && c.LookupTime >= c.Timeout {
		fs.Keyf(prefix+".lookup_time", "%v is not less than timeout (%v)", c.LookupTime, c.Timeout)
	}
	if c.AuthservID != "" && !properDomain(mailaddr.Domain(c.AuthservID)) {
		fs.Keyf(prefix+".authserv_id", "%q is no host name", c.AuthservID)
	}
	for i, u := range c.Upstream {
		key := prefix + ".upstream[" + strconv.Itoa(i) + "]"
		if !properDomain(mailaddr.Domain(u.AuthservID)) {
			fs.Keyf(key+".authserv_id", "%q is no host name", u.AuthservID)
		} else if c.AuthservID != "" && mailaddr.Domain(u.AuthservID) == mailaddr.Domain(c.AuthservID) {
			fs.Keyf(key+".authserv_id", "%q is our own name", u.AuthservID)
		}
		if len(u.Clients) == 0 {
			fs.Keyf(key+".clients", "no network is given: nothing would be believed")
		}
	}
	for i, s := range c.ARC.TrustedSealers {
		if !properDomain(mailaddr.Domain(strings.TrimPrefix(s, "."))) {
			fs.Keyf(prefix+".arc.trusted_sealers["+strconv.Itoa(i)+"]", "%q is no domain", s)
		}
	}
	d := &c.DMARC
	if d.Discovery != byList && d.Discovery != byTree {
		fs.Keyf(prefix+".dmarc.discovery", "unknown value %q (one of psl, tree)", d.Discovery)
	}
	for _, t := range [...]struct {
		key, text string
		def       policy.Reply
	}{{"reply", d.Reply, dmarcReply}, {"bad_from_reply", d.BadFromReply, fromReply}} {
		if _, err := policy.ParseTemplate(t.text, t.def, replyVars...); err != nil {
			fs.Keyf(prefix+".dmarc."+t.key, "%v", err)
		}
	}
	for _, l := range c.lists(prefix) {
		_, faults := list.Load(l.sources, l.opts)
		*fs = append(*fs, faults...)
	}
}

// entries is one list of the section.
type entries struct {
	sources []string
	opts    list.Options
}

// lists returns those whose mail is not looked at, and those whose mail is not
// refused.
func (c *Config) lists(prefix string) [2]entries {
	made := func(prefix, inline string, entriesOf, files []string) (out entries) {
		for _, s := range entriesOf {
			out.sources = append(out.sources, "inline:"+s)
		}
		out.sources = append(out.sources, files...)
		out.opts = list.Options{KeyAt: func(i int) string {
			if i < len(entriesOf) {
				return prefix + "." + inline + "[" + strconv.Itoa(i) + "]"
			}
			return prefix + ".exceptions[" + strconv.Itoa(i-len(entriesOf)) + "]"
		}}
		return out
	}
	return [...]entries{made(prefix, "skip", c.Skip, c.Exceptions), made(prefix+".dmarc", "exempt", c.DMARC.Exempt, c.DMARC.Exceptions)}
}

// WithoutMilter says what does not happen when there is no milter door.
func (c *Config) WithoutMilter(prefix string) string {
	if c.Mode == policy.Off {
		return ""
	}
	return prefix + ": milter.listen is empty: messages are not seen, nothing is verified"
}
