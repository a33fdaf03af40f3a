package access

import (
	"fmt"
	"slices"
	"time"

	"postern/internal/conf"
	"postern/list"
	"postern/policy"
)

// Config is the [access] section. A source of entries is the path of a list,
// a Postfix table ("cidr:PATH", "pcre:PATH", "regexp:PATH", "texthash:PATH"),
// one of postgrey's whitelists ("postgrey-clients:PATH",
// "postgrey-recipients:PATH") or a single entry ("inline:192.0.2.1 text");
// "sender=", "recipient=", "helo=" or "client=" in front says what a table is
// looked up by.
type Config struct {
	conf.Step
	// Allow are the sources of entries that exempt a request from the checks
	// of skip. Default none.
	Allow []string `toml:"allow"`
	// Deny are the sources of entries that refuse. Default none.
	Deny []string `toml:"deny"`
	// Tables are sources where each entry says what it does, as in Postfix's
	// access(5). Default none.
	Tables []string `toml:"tables"`
	// Skip are the checks from which an allow entry exempts, unless it has a "skip=" of its own. Default ["rbl", "client", "spf", "greylist"].
	Skip []string `toml:"skip"`
	// Reply is what a refused client reads where the entry has no text of its
	// own. Placeholders: {client}, {name}, {helo}, {sender}, {recipient}.
	// Default "554 5.7.1 Access denied".
	Reply string `toml:"reply"`
	// Delimiters are the characters that part an extension from the user in
	// an address; an entry for the address without it matches too. Default "+".
	Delimiters string `toml:"delimiters"`
	// Lenient reads regexp and pcre tables as Postfix does: what it warns of and
	// skips is skipped, with a warning. Otherwise it is a fault.
	// Default false.
	Lenient bool `toml:"lenient"`
	// ReloadInterval is how often the files are looked at. Default "2s".
	ReloadInterval conf.Duration `toml:"reload_interval"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Step:       conf.Step{Timeout: conf.Duration(time.Second)},
		Skip:       []string{"rbl", "client", "spf", "greylist"},
		Reply:      "554 5.7.1 Access denied",
		Delimiters: "+", ReloadInterval: conf.Duration(2 * time.Second),
	}
}

var (
	defaultReject = policy.Reply{Code: 554, Enhanced: "5.7.1"}
	defaultDefer  = policy.Reply{Code: 450, Enhanced: "4.7.1"}
	replyVars     = []string{"client", "name", "helo", "sender", "recipient"}
)

// Validate reports what is wrong with the values and with every line of the
// files; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if d := c.Timeout.D(); d < 10*time.Millisecond || d > time.Minute {
		fs.Keyf(prefix+".timeout", "%v is out of range: 10ms to 1m", c.Timeout)
	}
	if d := c.ReloadInterval.D(); d < 100*time.Millisecond || d > time.Hour {
		fs.Keyf(prefix+".reload_interval", "%v is out of range: 100ms to 1h", c.ReloadInterval)
	}
	for i, name := range c.Skip {
		if !slices.Contains(conf.Skippable, name) {
			fs.Keyf(fmt.Sprintf("%s.skip[%d]", prefix, i), "there is no check %q that could be skipped (one of %v)", name, conf.Skippable)
		}
	}
	if _, err := policy.ParseTemplate(c.Reply, defaultReject, replyVars...); err != nil {
		fs.Keyf(prefix+".reply", "%v", err)
	}
	for _, part := range c.parts(prefix) {
		_, faults := list.Load(part.sources, part.opts)
		*fs = append(*fs, faults...)
	}
}

// Warnings returns what the administrator should know of the tables and can
// live with.
func (c *Config) Warnings(prefix string) (warnings conf.Faults) {
	for _, part := range c.parts(prefix) {
		if set, _ := list.Load(part.sources, part.opts); set != nil {
			warnings = append(warnings, set.Warnings()...)
		}
	}
	return warnings
}
