package greylist

import (
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/list"
	"postern/policy"
)

// Config is the [greylist] section.
type Config struct {
	conf.Step
	// Profile is "strict", "balanced" or "gentle". It sets when and suspicions,
	// unless they are given. Default "balanced".
	Profile string `toml:"profile"`
	// Delay is how long after its first contact a triplet passes. Default "2m".
	Delay conf.Duration `toml:"delay"`
	// LongDelay is the same for a client that much speaks against, with
	// when = "graded". DNS lists are asked anew before it passes. Where it is not
	// given it is at least delay and at most max_delay. Default "40m".
	LongDelay conf.Duration `toml:"long_delay"`
	// Window is how long after its first contact a triplet that has not passed
	// is forgotten; it must be longer than the retry interval of slow senders.
	// Default "2d".
	Window conf.Duration `toml:"window"`
	// Keep is how long after it was last seen a triplet that has passed, or a
	// side's credit, is forgotten. Default "36d".
	Keep conf.Duration `toml:"keep"`
	// KnownAfter is how many passes give a sending side credit, so that it is not
	// delayed again; 0 never does. Default 3.
	KnownAfter int `toml:"known_after"`
	// KnownAge is how long ago the first of these passes must have been.
	// Default "1d".
	KnownAge conf.Duration `toml:"known_age"`
	// CountEvery is the time in which at most one pass of a side is counted.
	// Default "1h".
	CountEvery conf.Duration `toml:"count_every"`
	// MaxDelay is the most time a sender is kept from a recipient, however
	// many addresses it comes from. Default "4h".
	MaxDelay conf.Duration `toml:"max_delay"`
	// When is "always", "graded" (what speaks against a client decides how long
	// it waits: nothing, not at all; one suspicion, delay; more, long_delay) or
	// "suspicious" (only who has a suspicion waits, for delay, and is
	// recorded). Default "graded".
	When string `toml:"when"`
	// Suspicions are the kinds of marks that count: "name" (the client's
	// reverse name), "helo", "sender" (its domain), "spf" (no pass where SPF is
	// published), "list" (DNS lists, below rejection), "other" (marks of further
	// checks). Default: all of them.
	Suspicions []string `toml:"suspicions"`
	// Burst is how many different correspondences may be tried within
	// burst_within from a network in which nobody has credit; more wait for
	// long_delay, with when = "graded". 0 is no limit, 15 the most. Default 3.
	Burst int `toml:"burst"`
	// BurstWithin is that time. Default "6h".
	BurstWithin conf.Duration `toml:"burst_within"`
	// IPv4Prefix is the length of the network that stands for a client known
	// by its address only. Default 24.
	IPv4Prefix int `toml:"ipv4_prefix"`
	// IPv6Prefix is the same for IPv6. Default 64.
	IPv6Prefix int `toml:"ipv6_prefix"`
	// SkipSPFPass exempts clients for which SPF passed. Default false.
	SkipSPFPass bool `toml:"skip_spf_pass"`
	// SkipAuthenticated exempts clients that have logged in or have shown a
	// certificate that Postfix trusts. Default true.
	SkipAuthenticated bool `toml:"skip_authenticated"`
	// Skip are exceptions, each an entry as in a list file: networks, client
	// names, "from:" and "to:" addresses and domains; "off", "on" or
	// "delay=10m" may follow. Default ["to:postmaster@", "to:abuse@"].
	Skip []string `toml:"skip"`
	// Exceptions are files of such entries, Postfix tables, or postgrey's
	// whitelists ("postgrey-clients:PATH", "postgrey-recipients:PATH").
	// Default none.
	Exceptions []string `toml:"exceptions"`
	// NullSender says when mail from <> is judged: "data", so that others'
	// callouts, which end before DATA, are not harmed (needs the service in
	// smtpd_data_restrictions too); "rcpt" like other mail; "skip" never.
	// Default "data".
	NullSender string `toml:"null_sender"`
	// CalloutSenders are further senders that are treated as the null sender:
	// addresses, or local parts with an @ behind. Default none.
	CalloutSenders []string `toml:"callout_senders"`
	// OwnProbes are the senders of this daemon's own callouts. They are never
	// delayed at RCPT.
	OwnProbes []string `toml:"-"`
	// Delimiters are the characters that part an extension from the user in a
	// sender's address; it is left out of the key. Default "+".
	Delimiters string `toml:"delimiters"`
	// Header adds "X-Greylist: delayed ..." to the first message that passes
	// after a delay. Default true.
	Header bool `toml:"header"`
	// Reply is what a delayed client reads. Placeholders: {wait} (seconds),
	// {client}, {helo}, {sender}, {recipient}. Default "450 4.2.0 Greylisted,
	// please try again in {wait} seconds".
	Reply string `toml:"reply"`
	// Hints is how many delayed contacts are kept in memory, so that a
	// retry that comes too early is answered before any costlier check.
	// Default 100000.
	Hints int `toml:"hints"`
	// ReloadInterval is how often the files of exceptions are looked at.
	// Default "2s".
	ReloadInterval conf.Duration `toml:"reload_interval"`
}

// Values of Config.When and Config.NullSender.
const (
	Always     = "always"
	Graded     = "graded"
	Suspicious = "suspicious"

	AtData = "data"
	AtRcpt = "rcpt"
	Never  = "skip"
)

var defaultReply = policy.Reply{Code: 450, Enhanced: "4.2.0"}

var replyVars = []string{"wait", "client", "helo", "sender", "recipient"}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	c := Config{
		Step: conf.Step{Timeout: conf.Duration(5 * time.Second)}, Profile: DefaultProfile,
		Delay: conf.Duration(2 * time.Minute), LongDelay: conf.Duration(40 * time.Minute), Burst: 3, BurstWithin: conf.Duration(6 * time.Hour), Window: conf.Duration(48 * time.Hour), Keep: conf.Duration(36 * 24 * time.Hour),
		KnownAfter: 3, KnownAge: conf.Duration(24 * time.Hour), CountEvery: conf.Duration(time.Hour), MaxDelay: conf.Duration(4 * time.Hour),
		IPv4Prefix: 24, IPv6Prefix: 64, SkipAuthenticated: true,
		Skip: []string{"to:postmaster@", "to:abuse@"}, NullSender: AtData, Delimiters: "+", Header: true,
		Reply: "450 4.2.0 Greylisted, please try again in {wait} seconds", Hints: 100_000,
		ReloadInterval: conf.Duration(2 * time.Second),
	}
	c.Fill(func(string) bool { return false })
	return c
}

// Validate reports what is wrong with the values and with the files of
// exceptions; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	between := func(key string, d conf.Duration, low, high time.Duration) {
		if d.D() < low || d.D() > high {
			fs.Keyf(prefix+"."+key, "%v is out of range: %v to %v", d, conf.Duration(low), conf.Duration(high))
		}
	}
	const day = 24 * time.Hour
	between("timeout", c.Timeout, 10*time.Millisecond, time.Minute)
	between("delay", c.Delay, 0, 12*time.Hour)
	between("long_delay", c.LongDelay, 0, 12*time.Hour)
	between("burst_within", c.BurstWithin, time.Minute, 7*day)
	between("window", c.Window, time.Minute, 60*day)
	between("keep", c.Keep, time.Hour, 3660*day)
	between("count_every", c.CountEvery, 0, 30*day)
	between("known_age", c.KnownAge, 0, 365*day)
	between("max_delay", c.MaxDelay, 0, 5*day)
	between("reload_interval", c.ReloadInterval, 100*time.Millisecond, time.Hour)
	if c.Delay > c.MaxDelay {
		fs.Keyf(prefix+".max_delay", "%v is less than delay (%v): nobody would ever wait for delay", c.MaxDelay, c.Delay)
	}
	if c.Delay >= c.Window {
		fs.Keyf(prefix+".window", "%v is not more than delay (%v): no retry would ever pass", c.Window, c.Delay)
	}
	if c.KnownAfter < 0 {
		fs.Keyf(prefix+".known_after", "%d is negative; 0 switches it off", c.KnownAfter)
	}
	c.validateGrades(prefix, fs)
	if c.NullSender != AtData && c.NullSender != AtRcpt && c.NullSender != Never {
		fs.Keyf(prefix+".null_sender", "unknown value %q (one of data, rcpt, skip)", c.NullSender)
	}
	if c.IPv4Prefix < 8 || c.IPv4Prefix > 32 {
		fs.Keyf(prefix+".ipv4_prefix", "%d is out of range: 8 to 32", c.IPv4Prefix)
	}
	if c.IPv6Prefix < 16 || c.IPv6Prefix > 128 {
		fs.Keyf(prefix+".ipv6_prefix", "%d is out of range: 16 to 128", c.IPv6Prefix)
	}
	if c.Hints < 0 || c.Hints > 10_000_000 {
		fs.Keyf(prefix+".hints", "%d is out of range: 0 to 10000000", c.Hints)
	}
	for i, s := range c.CalloutSenders {
		if a := mailaddr.Parse(s); a.Local == "" || a.Local == a.Raw {
			fs.Keyf(indexed(prefix+".callout_senders", i), "%q is neither an address nor a local part with an @ behind", s)
		}
	}
	if _, err := policy.ParseTemplate(c.Reply, defaultReply, replyVars...); err != nil {
		fs.Keyf(prefix+".reply", "%v", err)
	}
	_, faults := list.Load(c.sources(), c.listOptions(prefix))
	*fs = append(*fs, faults...)
}

// validateGrades reports what is wrong with who waits for how long.
func (c *Config) validateGrades(prefix string, fs *conf.Faults) {
	if _, ok := profiles[c.Profile]; !ok {
		fs.Keyf(prefix+".profile", "unknown profile %q (one of strict, balanced, gentle)", c.Profile)
		return
	}
	counted, unknown := kindsOf(c.Suspicions)
	if unknown >= 0 {
		fs.Keyf(indexed(prefix+".suspicions", unknown), "unknown kind %q (one of %s)", c.Suspicions[unknown], strings.Join(kindNames[:], ", "))
	}
	if c.Burst < 0 || c.Burst > maxBurst {
		fs.Keyf(prefix+".burst", "%d is out of range: 0 to %d", c.Burst, maxBurst)
	}
	switch c.When {
	case Always:
	case Suspicious:
		if counted == 0 && unknown < 0 {
			fs.Keyf(prefix+".suspicions", "none: with when = \"suspicious\" nobody would ever be delayed")
		}
	case Graded:
		if c.LongDelay < c.Delay {
			fs.Keyf(prefix+".long_delay", "%v is less than delay (%v)", c.LongDelay, c.Delay)
		}
		if c.LongDelay > c.MaxDelay {
			fs.Keyf(prefix+".max_delay", "%v is less than long_delay (%v): nobody would ever wait for long_delay", c.MaxDelay, c.LongDelay)
		}
		if c.LongDelay >= c.Window {
			fs.Keyf(prefix+".window", "%v is not more than long_delay (%v): no retry would ever pass", c.Window, c.LongDelay)
		}
		if counted == 0 && unknown < 0 && c.Burst == 0 {
			fs.Keyf(prefix+".suspicions", "none, and no burst: with when = \"graded\" nobody would ever be delayed")
		}
	default:
		fs.Keyf(prefix+".when", "unknown value %q (one of always, graded, suspicious)", c.When)
	}
}

// sources puts the inline exceptions and the files into one list.
func (c *Config) sources() []string {
	out := make([]string, 0, len(c.Skip)+len(c.Exceptions))
	for _, s := range c.Skip {
		out = append(out, "inline:"+s)
	}
	return append(out, c.Exceptions...)
}
