package limit

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/list"
	"postern/policy"
)

// Config is the [limit] section.
type Config struct {
	conf.Step
	// Rules are the limits, see [[limit.rule]]. Default none.
	Rules []Rule `toml:"rule"`
	// MaxRecipients is the most recipients that one message may have, whoever
	// sends it; those beyond are deferred, so that a mail server sends them in
	// a message of their own. 0: no limit. Default 0.
	MaxRecipients int `toml:"max_recipients"`
	// RecipientsReply is what a client reads that has named more. Default "452
	// 4.5.3 Too many recipients in one message".
	RecipientsReply string `toml:"recipients_reply"`
	// NetworkIPv4 is the length of the networks that the key "network" stands
	// for. Default 24.
	NetworkIPv4 int `toml:"network_ipv4"`
	// NetworkIPv6 is the same for IPv6. Default 64.
	NetworkIPv6 int `toml:"network_ipv6"`
	// Notify are those who can be told when a limit is hit, see [[limit.notify]].
	// Default none.
	Notify []Notify `toml:"notify"`
	// Sendmail is Postfix's sendmail(1), for notifications by mail. Default
	// "/usr/sbin/sendmail".
	Sendmail string `toml:"sendmail"`
	// OwnProbes are the senders of this daemon's own callouts. They are never
	// counted.
	OwnProbes []string `toml:"-"`
}

// Rule is a [[limit.rule]]: one limit.
type Rule struct {
	// Name stands in logs, replies' reasons and keys: lower-case letters, digits
	// and "-".
	Name string `toml:"name"`
	// Key is who has a limit of his own: "client" (the address), "network",
	// "login", "sender", "sender-domain", "recipient", "recipient-domain",
	// "helo", or several of them together. What has no such thing, such as a
	// client without a login, is not counted. Default ["client"].
	Key []string `toml:"key"`
	// Unit is what is counted: "messages", "recipients" (each of a message),
	// "bytes" (at end of data), "connections" (in a chain that is asked at
	// connect), or how many distinct "distinct-recipients",
	// "distinct-recipient-domains", "distinct-senders", "distinct-clients" or
	// "distinct-networks" are seen in the period of the quota.
	// Default "messages".
	Unit string `toml:"unit"`
	// Count says of what: "asked" is all that this check lets through; "accepted"
	// leaves out what later checks or Postfix refuse, as far as that is seen.
	// Default "asked".
	Count string `toml:"count"`
	// Rate is the lasting rate, such as "200/1h". Units may end in k, M, G, Ki,
	// Mi or Gi. Default none.
	Rate RateSpec `toml:"rate"`
	// Burst is how many units may come at once; 0: as many as the rate names.
	// Default 0.
	Burst int64 `toml:"burst"`
	// Quota are units of a calendar period ("hour", "day", "week", "month") in
	// the gateway's time zone, such as ["500/day", "5000/month"]. Default none.
	Quota []QuotaSpec `toml:"quota"`
	// Action is what happens to what is too much: "defer", "reject", "hold" or
	// "mark" (a suspicion for later checks). Default "defer".
	Action string `toml:"action"`
	// Clients are those whose mail is counted: "all", "authenticated" (logged
	// in, or with a trusted certificate) or "unauthenticated". Default "all".
	Clients string `toml:"clients"`
	// Chains are those in which the rule counts; none: in all that have the
	// check. Default none.
	Chains []string `toml:"chains"`
	// Only are clients, senders or recipients to whom the limit applies, each
	// an entry as in a list file or the name of one ("file:PATH"); none: to
	// everybody. Default none.
	Only []string `toml:"only"`
	// Skip are those to whom it does not apply. Default none.
	Skip []string `toml:"skip"`
	// Warn is at how many percent of the limit a line is logged, once until it
	// falls below again; 0: never. Default 0.
	Warn int `toml:"warn"`
	// Notify are the names of those [[limit.notify]] who are told when one of its
	// meters is full. Default none.
	Notify []string `toml:"notify"`
	// NotifyPeriod is how long they are not told again of the same key, however
	// many gateways there are. Default "1d".
	NotifyPeriod conf.Duration `toml:"notify_period"`
	// Reply is what a refused client reads; its code must suit the action.
	// Placeholders: {client}, {sender}, {recipient}, {login}, {wait}, {rule}.
	// Default "450 4.7.1 Too much mail, please try again in {wait}", or "550
	// 5.7.1 Too much mail" where it is rejected; for connections it begins with
	// "421 4.7.0 Too many connections".
	Reply string `toml:"reply"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Step:            conf.Step{Timeout: conf.Duration(2 * time.Second)},
		RecipientsReply: "452 4.5.3 Too many recipients in one message",
		NetworkIPv4:     24, NetworkIPv6: 64, Sendmail: "/usr/sbin/sendmail",
	}
}

// DefaultRule returns what a [[limit.rule]] leaves out.
func DefaultRule() Rule {
	return Rule{Key: []string{"client"}, Unit: "messages", Count: countAsked, Action: "defer", Clients: "all", NotifyPeriod: conf.Duration(24 * time.Hour), Reply: deferText}
}

// withDefaults fills in what the rule leaves out.
func (r Rule) withDefaults() Rule {
	def := DefaultRule()
	if len(r.Key) == 0 {
		r.Key = def.Key
	}
	for _, s := range []struct {
		value *string
		def   string
	}{{&r.Unit, def.Unit}, {&r.Count, def.Count}, {&r.Action, def.Action}, {&r.Clients, def.Clients}} {
		if *s.value == "" {
			*s.value = s.def
		}
	}
	if r.Reply == "" {
		switch {
		case r.Action == "reject":
			r.Reply = "550 5.7.1 Too much mail"
		case r.Unit == "connections":
			r.Reply = "421 4.7.0 Too many connections, please try again in {wait}"
		default:
			r.Reply = deferText
		}
	}
	if r.NotifyPeriod == 0 {
		r.NotifyPeriod = def.NotifyPeriod
	}
	if r.Burst == 0 {
		r.Burst = r.Rate.Units
	}
	return r
}

// deferText is what a deferred client reads, unless the rule says otherwise.
const deferText = "450 4.7.1 Too much mail, please try again in {wait}"

// What Rule.Count can be.
const (
	countAsked    = "asked"
	countAccepted = "accepted"
)

var (
	keys    = []string{"client", "network", "login", "sender", "sender-domain", "recipient", "recipient-domain", "helo"}
	units   = []string{"messages", "recipients", "bytes", "connections", "distinct-recipients", "distinct-recipient-domains", "distinct-senders", "distinct-clients", "distinct-networks"}
	actions = map[string]policy.Action{"defer": policy.Defer, "reject": policy.Reject, "hold": policy.Hold, "mark": policy.Continue}
	counts  = []string{countAsked, countAccepted}
	clients = []string{"all", "authenticated", "unauthenticated"}

	replyVars       = []string{"client", "sender", "recipient", "login", "wait", "rule"}
	deferReply      = policy.Reply{Code: 450, Enhanced: "4.7.1"}
	rejectReply     = policy.Reply{Code: 550, Enhanced: "5.7.1"}
	recipientsReply = policy.Reply{Code: 452, Enhanced: "4.5.3"}
)

// Bounds of what is kept and asked for one request.
const (
	maxRules = 64
	maxQuota = 4
	// maxDistinct is the most members that are counted: each is eight bytes of
	// one value.
	maxDistinct = 4096
)

// Validate reports what is wrong with the values; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if d := c.Timeout.D(); d < 10*time.Millisecond || d > time.Minute {
		fs.Keyf(prefix+".timeout", "%v is out of range: 10ms to 1m", c.Timeout)
	}
	for _, n := range [...]struct {
		key              string
		value, low, high int
	}{{"max_recipients", c.MaxRecipients, 0, 100_000}, {"network_ipv4", c.NetworkIPv4, 8, 32}, {"network_ipv6", c.NetworkIPv6, 16, 128}} {
		if n.value < n.low || n.value > n.high {
			fs.Keyf(prefix+"."+n.key, "%d is out of range: %d to %d", n.value, n.low, n.high)
		}
	}
	if _, err := policy.ParseTemplate(c.RecipientsReply, recipientsReply); err != nil {
		fs.Keyf(prefix+".recipients_reply", "%v", err)
	}
	if len(c.Rules) > maxRules {
		fs.Keyf(prefix+".rule", "%d rules: at most %d", len(c.Rules), maxRules)
	}
	c.validateNotify(prefix, fs)
	names := map[string]int{}
	for i := range c.Rules {
		key := index(prefix+".rule", i)
		c.Rules[i].validate(key, fs)
		if before, twice := names[c.Rules[i].Name]; twice {
			fs.Keyf(key+".name", "%q is the name of rule %d, too", c.Rules[i].Name, before+1)
		}
		names[c.Rules[i].Name] = i
	}
}

func (r *Rule) validate(prefix string, fs *conf.Faults) {
	full := r.withDefaults()
	if !isName(r.Name) {
		fs.Keyf(prefix+".name", "%q is no name: lower-case letters, digits and \"-\", at most 40", r.Name)
	}
	for i, k := range full.Key {
		if !slices.Contains(keys, k) {
			fs.Keyf(index(prefix+".key", i), "unknown key %q (one of %s)", k, strings.Join(keys, ", "))
		} else if slices.Index(full.Key, k) < i {
			fs.Keyf(index(prefix+".key", i), "%q is there already", k)
		}
	}
	oneOf(fs, prefix+".unit", full.Unit, units)
	oneOf(fs, prefix+".count", full.Count, counts)
	oneOf(fs, prefix+".clients", full.Clients, clients)
	if _, ok := actions[full.Action]; !ok {
		fs.Keyf(prefix+".action", "unknown action %q (one of defer, reject, hold, mark)", full.Action)
	}
	if full.Unit == "bytes" && slices.ContainsFunc(full.Key, func(k string) bool { return strings.HasPrefix(k, "recipient") }) {
		fs.Keyf(prefix+".key", "bytes are counted at the end of a message, which may have several recipients")
	}
	if full.Unit == "connections" {
		for i, k := range full.Key {
			if k != "client" && k != "network" {
				fs.Keyf(index(prefix+".key", i), "when somebody connects only \"client\" and \"network\" are known")
			}
		}
		if full.Clients != "all" {
			fs.Keyf(prefix+".clients", "when somebody connects nobody has logged in")
		}
	}
	if full.Count == countAccepted && (full.Unit == "connections" || strings.HasPrefix(full.Unit, "distinct-")) {
		fs.Keyf(prefix+".count", "%s are counted when they come", full.Unit)
	}
	if r.Rate == (RateSpec{}) && len(r.Quota) == 0 {
		fs.Keyf(prefix, "the rule has neither a rate nor a quota")
	}
	if len(r.Quota) > maxQuota {
		fs.Keyf(prefix+".quota", "%d quotas: at most %d", len(r.Quota), maxQuota)
	}
	if r.Burst < 0 || r.Burst > maxUnits || r.Burst > 0 && r.Rate == (RateSpec{}) {
		fs.Keyf(prefix+".burst", "%d: a burst belongs to a rate and is at least 1", r.Burst)
	}
	if strings.HasPrefix(full.Unit, "distinct-") {
		if r.Rate.Units > 0 {
			fs.Keyf(prefix+".rate", "what is distinct is counted by quotas only")
		}
		for i, q := range r.Quota {
			if q.Units > maxDistinct {
				fs.Keyf(index(prefix+".quota", i), "%d distinct ones: at most %d can be counted", q.Units, maxDistinct)
			}
		}
	}
	if r.Warn < 0 || r.Warn > 100 {
		fs.Keyf(prefix+".warn", "%d is out of range: 0 to 100", r.Warn)
	}
	if _, err := full.template(); err != nil {
		fs.Keyf(prefix+".reply", "%v", err)
	}
	for _, l := range r.sources(prefix) {
		_, faults := list.Load(l.sources, l.opts)
		*fs = append(*fs, faults...)
	}
}

// template returns the reply, which must suit the action.
func (r *Rule) template() (*policy.Template, error) {
	def := deferReply
	if r.Action == "reject" {
		def = rejectReply
	}
	return policy.ParseTemplate(r.Reply, def, replyVars...)
}

// entries is one list of a rule.
type entries struct {
	sources []string
	opts    list.Options
}

// sources returns whom the rule applies to, and whom not.
func (r *Rule) sources(prefix string) [2]entries {
	of := func(key string, texts []string) (e entries) {
		for _, s := range texts {
			if !strings.HasPrefix(s, "file:") && !strings.HasPrefix(s, "cidr:") {
				s = "inline:" + s
			}
			e.sources = append(e.sources, s)
		}
		e.opts = list.Options{Key: prefix + "." + key}
		return e
	}
	return [...]entries{of("only", r.Only), of("skip", r.Skip)}
}

func oneOf(fs *conf.Faults, key, value string, values []string) {
	if !slices.Contains(values, value) {
		fs.Keyf(key, "unknown value %q (one of %s)", value, strings.Join(values, ", "))
	}
}

func isName(s string) bool {
	return s != "" && len(s) <= 40 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func index(key string, i int) string { return fmt.Sprint(key, "[", strconv.Itoa(i), "]") }

// NamesChains returns the chains that rules name, by the keys that name them.
func (c *Config) NamesChains(prefix string) map[string]string {
	out := map[string]string{}
	for i := range c.Rules {
		for j, name := range c.Rules[i].Chains {
			out[index(index(prefix+".rule", i)+".chains", j)] = name
		}
	}
	return out
}

// WithoutChain says what does not happen when no chain has the check.
func (c *Config) WithoutChain(prefix string) string {
	if len(c.Rules) == 0 && c.MaxRecipients == 0 {
		return ""
	}
	return prefix + ": no chain has the check limit: nothing is counted"
}
