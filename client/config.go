package client

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/list"
	"postern/policy"
)

// Config is the [client] section.
type Config struct {
	conf.Step
	// OwnDomains are the domains whose senders are yours: "example.org", or
	// ".example.org" for everything below. A stranger who uses one of them is
	// sender_own, and helo_own as the HELO name; their DNS is not looked at.
	// Default none.
	OwnDomains []string `toml:"own_domains"`
	// OwnNames are names of yours that no stranger says in HELO, besides hostname
	// and the domains in own_domains. Default none.
	OwnNames []string `toml:"own_names"`
	// OwnNetworks are the networks of your own hosts; the host that postern runs
	// for is one in any case. Default ["127.0.0.0/8", "::1/128"].
	OwnNetworks []netip.Prefix `toml:"own_networks"`
	// SkipOwnNetworks exempts clients in own_networks. Default true.
	SkipOwnNetworks bool `toml:"skip_own_networks"`
	// SkipAuthenticated exempts clients that have logged in or have shown a
	// certificate that Postfix trusts. Default true.
	SkipAuthenticated bool `toml:"skip_authenticated"`
	// Skip are clients, senders or recipients that are exempt, each an entry as
	// in a list file. Default ["to:postmaster@", "to:abuse@"].
	Skip []string `toml:"skip"`
	// Exceptions are files of such entries, or Postfix tables. Default none.
	Exceptions []string `toml:"exceptions"`
	// OwnProbes are the senders of this daemon's own callouts.
	OwnProbes []string `toml:"-"`
	// HeloNames is how many HELO names a client (an IPv4 address, or an IPv6
	// network of 64 bits) may use within helo_window before it is helo_changes.
	// Default 5.
	HeloNames int `toml:"helo_names"`
	// HeloWindow is for how long a HELO name counts. Default "1h".
	HeloWindow conf.Duration `toml:"helo_window"`
	// HeloClients is of how many clients the HELO names are remembered; one
	// takes about 200 bytes. Default 50000.
	HeloClients int `toml:"helo_clients"`
	// RejectAt is the sum of the marks' weights from which on a client is
	// rejected; 0 never. Default 0.
	RejectAt int `toml:"reject_at"`
	// DeferAt is the sum from which on it is deferred; 0 never. Default 0.
	DeferAt int `toml:"defer_at"`
	// ScoreReply is what a client reads that is refused for the sum.
	// Placeholders: {conditions} (in words), {score}, and those of the conditions'
	// replies. Default "Too much speaks against {client}: {conditions}".
	ScoreReply string `toml:"score_reply"`
	// DeferUnable are the questions for which a client is asked to come back
	// when the DNS does not answer them: "helo", "reverse", "sender". Default
	// none: what could not be asked speaks against nobody.
	DeferUnable []string `toml:"defer_unable"`
	// UnableReply is what it reads then; {what} is what could not be looked up. Default
	// "451 4.4.3 The {what} cannot be looked up, please try again later".
	UnableReply string `toml:"unable_reply"`
	// LookupTime is the most time for all questions of a request. Default "5s".
	LookupTime conf.Duration `toml:"lookup_time"`
	// CacheSize is how many answers are remembered: of HELO names, addresses and
	// sender domains. One takes about 300 bytes. Default 50000.
	CacheSize int `toml:"cache_size"`
	// CacheTTL is the most time an answer is remembered; the TTL of the records
	// may make it less. Default "10m".
	CacheTTL conf.Duration `toml:"cache_ttl"`
	// ReloadInterval is how often the files of exceptions are looked at.
	// Default "2s".
	ReloadInterval conf.Duration `toml:"reload_interval"`
	Conditions
}

// Condition is what a condition does: [client.helo_invalid] and the like.
type Condition struct {
	// Action is "reject", "defer", "mark" (a suspicion for later checks) or
	// "off".
	Action conf.Action `toml:"action"`
	// Weight is what a mark adds to reject_at and defer_at of this check, and to
	// the score of rbl where a list has the client too.
	Weight int `toml:"weight"`
	// Reply is what a refused client reads, with or without codes in front.
	// Placeholders: {client}, {reverse_name}, {helo}, {sender}, {domain} (of the
	// sender), {recipient}, {detail}.
	Reply string `toml:"reply"`
}

// Conditions are the sections of all conditions.
type Conditions struct {
	HeloMissing       Condition `toml:"helo_missing"`
	HeloInvalid       Condition `toml:"helo_invalid"`
	HeloNotFull       Condition `toml:"helo_not_full"`
	HeloWrongAddress  Condition `toml:"helo_wrong_address"`
	HeloOwn           Condition `toml:"helo_own"`
	HeloUnresolved    Condition `toml:"helo_unresolved"`
	HeloChanges       Condition `toml:"helo_changes"`
	ReverseMissing    Condition `toml:"reverse_missing"`
	ReverseUnverified Condition `toml:"reverse_unverified"`
	ReverseGeneric    Condition `toml:"reverse_generic"`
	SenderUnresolved  Condition `toml:"sender_unresolved"`
	SenderNullMX      Condition `toml:"sender_null_mx"`
	SenderPrivateMX   Condition `toml:"sender_private_mx"`
	SenderOwn         Condition `toml:"sender_own"`
}

// all returns them in their order.
func (c *Conditions) all() [conditions]*Condition {
	return [conditions]*Condition{
		&c.HeloMissing, &c.HeloInvalid, &c.HeloNotFull, &c.HeloWrongAddress, &c.HeloOwn, &c.HeloUnresolved, &c.HeloChanges,
		&c.ReverseMissing, &c.ReverseUnverified, &c.ReverseGeneric,
		&c.SenderUnresolved, &c.SenderNullMX, &c.SenderPrivateMX, &c.SenderOwn,
	}
}

// codes are those of a condition's replies where the text gives none, and the
// class where it does: to reject, and to defer.
var codes = [conditions][2]policy.Reply{
	heloMissing:       {{Code: 503, Enhanced: "5.5.1"}, {Code: 450, Enhanced: "4.5.1"}},
	heloInvalid:       {{Code: 501, Enhanced: "5.5.2"}, {Code: 450, Enhanced: "4.5.2"}},
	heloNotFull:       {{Code: 504, Enhanced: "5.5.2"}, {Code: 450, Enhanced: "4.5.2"}},
	heloWrongAddress:  {{Code: 550, Enhanced: "5.7.1"}, {Code: 450, Enhanced: "4.7.1"}},
	heloOwn:           {{Code: 550, Enhanced: "5.7.1"}, {Code: 450, Enhanced: "4.7.1"}},
	heloUnresolved:    {{Code: 550, Enhanced: "5.7.1"}, {Code: 450, Enhanced: "4.7.1"}},
	heloChanges:       {{Code: 550, Enhanced: "5.7.1"}, {Code: 450, Enhanced: "4.7.1"}},
	reverseMissing:    {{Code: 550, Enhanced: "5.7.25"}, {Code: 450, Enhanced: "4.7.25"}}, // RFC 7372 section 3.3
	reverseUnverified: {{Code: 550, Enhanced: "5.7.25"}, {Code: 450, Enhanced: "4.7.25"}},
	reverseGeneric:    {{Code: 550, Enhanced: "5.7.1"}, {Code: 450, Enhanced: "4.7.1"}},
	senderUnresolved:  {{Code: 550, Enhanced: "5.1.8"}, {Code: 450, Enhanced: "4.1.8"}},   // RFC 3463 section 3.2
	senderNullMX:      {{Code: 550, Enhanced: "5.7.27"}, {Code: 450, Enhanced: "4.7.27"}}, // RFC 7505 section 4.2
	senderPrivateMX:   {{Code: 550, Enhanced: "5.1.8"}, {Code: 450, Enhanced: "4.1.8"}},
	senderOwn:         {{Code: 550, Enhanced: "5.7.1"}, {Code: 450, Enhanced: "4.7.1"}},
}

var (
	scoreCodes  = [2]policy.Reply{{Code: 550, Enhanced: "5.7.1"}, {Code: 450, Enhanced: "4.7.1"}}
	unableReply = policy.Reply{Code: 451, Enhanced: "4.4.3"}

	replyVars  = []string{"client", "reverse_name", "helo", "sender", "domain", "recipient", "detail"}
	scoreVars  = append([]string{"conditions", "score"}, replyVars...)
	unableVars = append([]string{"what"}, replyVars...)
)

// DefaultConfig returns the values of an empty section.
func DefaultConfig() Config {
	return Config{
		Step:            conf.Step{Timeout: conf.Duration(6 * time.Second)},
		OwnNetworks:     []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		SkipOwnNetworks: true, SkipAuthenticated: true, Skip: []string{"to:postmaster@", "to:abuse@"},
		HeloNames: 5, HeloWindow: conf.Duration(time.Hour), HeloClients: 50_000,
		ScoreReply:  "Too much speaks against {client}: {conditions}",
		UnableReply: "451 4.4.3 The {what} cannot be looked up, please try again later",
		LookupTime:  conf.Duration(5 * time.Second), CacheSize: 50_000, CacheTTL: conf.Duration(10 * time.Minute),
		ReloadInterval: conf.Duration(2 * time.Second),
		Conditions: Conditions{
			HeloMissing:       Condition{conf.Reject, 1, "Send HELO or EHLO first"},
			HeloInvalid:       Condition{conf.Reject, 1, "HELO {helo} is no host name: {detail}"},
			HeloNotFull:       Condition{conf.Reject, 1, "HELO {helo} is not a full host name"},
			HeloWrongAddress:  Condition{conf.Mark, 1, "HELO {helo} is not your address, which is {client}"},
			HeloOwn:           Condition{conf.Reject, 1, "HELO {helo} is not you"},
			HeloUnresolved:    Condition{conf.Mark, 1, "HELO {helo} does not exist in the DNS"},
			HeloChanges:       Condition{conf.Mark, 1, "{client} uses too many HELO names"},
			ReverseMissing:    Condition{conf.Mark, 1, "Your address {client} has no reverse name"},
			ReverseUnverified: Condition{conf.Mark, 1, "The reverse name of your address {client}, {reverse_name}, does not lead back to it"},
			ReverseGeneric:    Condition{conf.Mark, 1, "The reverse name of your address {client}, {reverse_name}, is not that of a mail server"},
			SenderUnresolved:  Condition{conf.Reject, 1, "The sender's domain {domain} cannot receive mail: {detail}"},
			SenderNullMX:      Condition{conf.Reject, 1, "The sender's domain {domain} does not receive mail (null MX, RFC 7505)"},
			SenderPrivateMX:   Condition{conf.Reject, 1, "The sender's domain {domain} cannot receive mail: {detail}"},
			SenderOwn:         Condition{conf.Reject, 1, "Mail from {domain} is not taken from {client} without authentication"},
		},
	}
}

// maxWeight is the most that a mark can weigh, and maxScore a limit.
const (
	maxWeight = 1000
	maxScore  = int(conditions) * maxWeight
)

// maxHeloNames bounds the memory of a client.
const maxHeloNames = 100

// Validate reports what is wrong with the values and with the list files;
// prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	for _, n := range [...]struct {
		key              string
		value, low, high int
	}{
		{"helo_names", c.HeloNames, 1, maxHeloNames},
		{"helo_clients", c.HeloClients, 100, 10_000_000},
		{"reject_at", c.RejectAt, 0, maxScore},
		{"defer_at", c.DeferAt, 0, maxScore},
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
		{"helo_window", c.HeloWindow, time.Minute, 30 * 24 * time.Hour},
		{"lookup_time", c.LookupTime, 50 * time.Millisecond, time.Minute},
		{"cache_ttl", c.CacheTTL, 0, 24 * time.Hour},
		{"reload_interval", c.ReloadInterval, 100 * time.Millisecond, time.Hour},
	} {
		if d.value.D() < d.low || d.value.D() > d.high {
			fs.Keyf(prefix+"."+d.key, "%v is out of range: %v to %v", d.value, conf.Duration(d.low), conf.Duration(d.high))
		}
	}
	if c.LookupTime >= c.Timeout {
		fs.Keyf(prefix+".lookup_time", "%v is not less than timeout (%v): the check would be cut off before it knows that the DNS cannot be asked", c.LookupTime, c.Timeout)
	}
	if c.RejectAt > 0 && c.DeferAt >= c.RejectAt {
		fs.Keyf(prefix+".defer_at", "%d is never used: from reject_at = %d on clients are rejected", c.DeferAt, c.RejectAt)
	}
	for i, d := range c.OwnDomains {
		if hostFault(mailaddr.Domain(strings.TrimPrefix(d, "."))) != "" {
			fs.Keyf(index(prefix+".own_domains", i), "%q is no domain", d)
		}
	}
	for i, n := range c.OwnNames {
		if hostFault(mailaddr.Domain(n)) != "" {
			fs.Keyf(index(prefix+".own_names", i), "%q is no host name", n)
		}
	}
	for i, p := range c.OwnNetworks {
		switch {
		case !p.IsValid(): // has been reported where it was read
		case p.Addr().Is4In6():
			fs.Keyf(index(prefix+".own_networks", i), "%v: IPv4 is written as IPv4", p)
		case p != p.Masked():
			fs.Keyf(index(prefix+".own_networks", i), "%v has bits behind its length, %v has not", p, p.Masked())
		}
	}
	for i, q := range c.DeferUnable {
		if !slices.Contains(questionNames[:], q) {
			fs.Keyf(index(prefix+".defer_unable", i), "unknown question %q (one of %s)", q, strings.Join(questionNames[:], ", "))
		}
	}
	for i, one := range c.all() {
		key := prefix + "." + strings.ReplaceAll(slugs[i], "-", "_")
		if one.Weight < 0 || one.Weight > maxWeight {
			fs.Keyf(key+".weight", "%d is out of range: 0 to %d", one.Weight, maxWeight)
		}
		if _, err := one.template(condition(i)); err != nil {
			fs.Keyf(key+".reply", "%v", err)
		}
	}
	if _, err := c.scoreTemplates(); err != nil {
		fs.Keyf(prefix+".score_reply", "%v", err)
	}
	if _, err := policy.ParseTemplate(c.UnableReply, unableReply, unableVars...); err != nil {
		fs.Keyf(prefix+".unable_reply", "%v", err)
	}
	sources, opts := c.list(prefix)
	_, faults := list.Load(sources, opts)
	*fs = append(*fs, faults...)
}

// template returns the reply of a condition for its action.
func (c *Condition) template(of condition) (*policy.Template, error) {
	def := codes[of][0]
	if c.Action == conf.Defer {
		def = codes[of][1]
	}
	return policy.ParseTemplate(c.Reply, def, replyVars...)
}

// scoreTemplates returns the replies to reject and to defer for the sum, those
// that are used.
func (c *Config) scoreTemplates() (out [2]*policy.Template, err error) {
	for i, used := range [...]bool{c.RejectAt > 0 || c.DeferAt == 0, c.DeferAt > 0} {
		if used && err == nil {
			out[i], err = policy.ParseTemplate(c.ScoreReply, scoreCodes[i], scoreVars...)
		}
	}
	return out, err
}

// list returns the exceptions.
func (c *Config) list(prefix string) (sources []string, opts list.Options) {
	for _, s := range c.Skip {
		sources = append(sources, "inline:"+s)
	}
	return append(sources, c.Exceptions...), list.Options{KeyAt: func(i int) string {
		if i < len(c.Skip) {
			return index(prefix+".skip", i)
		}
		return index(prefix+".exceptions", i-len(c.Skip))
	}}
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }

// rules returns what is to be done about each condition.
func (c *Config) rules() *rules {
	r := &rules{rejectAt: c.RejectAt, deferAt: c.DeferAt}
	for i, one := range c.all() {
		r.actions[i], r.weights[i] = one.Action, one.Weight
	}
	for i, name := range questionNames {
		if slices.Contains(c.DeferUnable, name) {
			r.deferUnable |= 1 << i
		}
	}
	return r
}

// WithoutChain says what does not happen when no chain has the check.
func (c *Config) WithoutChain(prefix string) string {
	if len(c.OwnDomains) == 0 {
		return ""
	}
	return prefix + ".own_domains: no chain has the check client: nobody is kept from using your domains"
}
