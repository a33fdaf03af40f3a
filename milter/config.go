package milter

import (
	"net/netip"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/listen"
	"postern/internal/mailaddr"
	"postern/policy"
)

// Config is the [milter] section: the milter door.
type Config struct {
	// Listen are the addresses of the door, written as those of [policy]:
	// "unix:/path" with mode=, user=, group= and chain=, or "tcp:HOST:PORT"
	// with chain=. Sockets that systemd hands over are used for the address
	// they are bound to. Default []: the door is closed.
	Listen []listen.Address `toml:"listen"`
	// Chain is the chain of the addresses that name none. It judges the
	// envelope when Envelope is set; its mode, its budget and its error_reply
	// are those of the content. Default "": the default chain.
	Chain string `toml:"chain"`
	// Envelope has the milter run the chain at RCPT and DATA, or at the stages
	// that the chain names: for sites that do not ask the policy door, or
	// cannot. With both, everything would be judged, and counted, twice.
	// Default false.
	Envelope bool `toml:"envelope"`
	// MaxConnections is the most sessions at once; one more is closed, and
	// Postfix goes by its milter_default_action. Postfix opens one per SMTP
	// session. A usual one holds less than 20 kB; one that goes to all bounds below
	// about 8 MB. Default 4096.
	MaxConnections int `toml:"max_connections"`
	// MaxHeaders is the most header fields of a message that is looked at; one
	// with more is refused with 554 5.6.0. Postfix has no such limit. Default
	// 50000.
	MaxHeaders int `toml:"max_headers"`
	// MaxRecipients is the most recipients of a message; a message with more is
	// deferred with 452 4.5.3. Default 10000.
	MaxRecipients int `toml:"max_recipients"`
	// MaxEnvelope is the same for the bytes in all of them together. Default
	// 1048576.
	MaxEnvelope int `toml:"max_envelope"`
	// OnPanic is what happens to a message about which this door itself has
	// panicked: "defer" or "continue". Checks and inspectors have their own
	// on_error, for panics too. Default "defer".
	OnPanic policy.OnError `toml:"on_panic"`
	// FrameTimeout is how long a packet may take to arrive once its first byte
	// has, and how long the first one may. Default "10s".
	FrameTimeout conf.Duration `toml:"frame_timeout"`
	// WriteTimeout is how long an answer may take to be taken. Default "10s".
	WriteTimeout conf.Duration `toml:"write_timeout"`
	// Drain is the most time that stopping waits for messages under way.
	// Default "5s".
	Drain conf.Duration `toml:"drain"`
	// ExemptSenders are envelope senders that are never refused or delayed
	// before DATA: address verification probes, which never come further. When
	// such a sender goes on to DATA, its recipients are judged there. An
	// address that ends in "@" is at the names of this host and of the MTA.
	// Default ["double-bounce@"].
	ExemptSenders []string `toml:"exempt_senders"`
	// GreetPause is how long the greeting of clients that are not known good
	// is kept back: bots talk before it or go away. Each paused session holds
	// an smtpd process. It needs Postfix's smtpd to ask the milter at connect,
	// which it always does; more than a minute makes clients give up. Default
	// "0s": no pause.
	GreetPause conf.Duration `toml:"greet_pause"`
	// GreetPauseExcept are networks whose clients do not wait. Default
	// ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12",
	// "192.168.0.0/16", "fc00::/7", "fe80::/10"].
	GreetPauseExcept []netip.Prefix `toml:"greet_pause_except"`
	// GreetPauseMax is the most sessions that are paused at once; one more is
	// greeted at once. Keep it well below smtpd's process limit
	// (default_process_limit is 100). Default 50.
	GreetPauseMax int `toml:"greet_pause_max"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	c := Config{
		MaxConnections: 4096,
		MaxHeaders:     50_000,
		MaxRecipients:  10_000,
		MaxEnvelope:    1 << 20,
		OnPanic:        policy.ErrorDefer,
		FrameTimeout:   conf.Duration(10 * time.Second),
		WriteTimeout:   conf.Duration(10 * time.Second),
		Drain:          conf.Duration(5 * time.Second),
		ExemptSenders:  []string{"double-bounce@"},
		GreetPauseMax:  50,
	}
	for _, s := range []string{"127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10"} {
		c.GreetPauseExcept = append(c.GreetPauseExcept, netip.MustParsePrefix(s))
	}
	return c
}

// Validate reports what is wrong; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	between := func(key string, v, low, high int) {
		if v < low || v > high {
			fs.Keyf(prefix+"."+key, "%d is out of range: %d to %d", v, low, high)
		}
	}
	between("max_connections", c.MaxConnections, 1, 100_000)
	between("max_headers", c.MaxHeaders, 1000, 10_000_000)
	between("max_recipients", c.MaxRecipients, 100, 1_000_000)
	between("max_envelope", c.MaxEnvelope, 64<<10, 1<<30)
	between("greet_pause_max", c.GreetPauseMax, 1, 100_000)
	for _, d := range []struct {
		key       string
		v         conf.Duration
		low, high time.Duration
	}{
		{"frame_timeout", c.FrameTimeout, 100 * time.Millisecond, 5 * time.Minute},
		{"write_timeout", c.WriteTimeout, 100 * time.Millisecond, 5 * time.Minute},
		{"drain", c.Drain, 0, time.Minute},
		{"greet_pause", c.GreetPause, 0, time.Minute},
	} {
		if d.v.D() < d.low || d.v.D() > d.high {
			fs.Keyf(prefix+"."+d.key, "%v is out of range: %v to %v", d.v, d.low, d.high)
		}
	}
	for i, s := range c.ExemptSenders {
		if at := strings.LastIndexByte(s, '@'); at <= 0 || strings.ContainsAny(s, "<> \t") {
			fs.Keyf(index(prefix+".exempt_senders", i), "%q: want user@domain, or user@ for the names of this host", s)
		}
	}
	for i, p := range c.GreetPauseExcept {
		if p != p.Masked() {
			fs.Keyf(index(prefix+".greet_pause_except", i), "%v has bits set after the prefix, did you mean %v?", p, p.Masked())
		}
	}
	for i, a := range c.Listen {
		for _, b := range c.Listen[:i] {
			if a.Network == b.Network && a.Target() == b.Target() && a.Port != "0" {
				fs.Keyf(index(prefix+".listen", i), "%v is there already", a)
			}
		}
	}
}

// exempt reports whether sender is never refused or delayed before DATA.
// names are those of this host, in the compared form.
func (c *Config) exempt(sender policy.Address, names ...string) bool {
	if sender.Local == "" || sender.Domain == "" {
		return false
	}
	for _, s := range c.ExemptSenders {
		local, domain, _ := strings.Cut(s, "@")
		if at := strings.LastIndexByte(s, '@'); at >= 0 {
			local, domain = s[:at], s[at+1:]
		}
		if !strings.EqualFold(local, sender.Local) {
			continue
		}
		if domain != "" {
			if mailaddr.Domain(domain) == sender.Domain {
				return true
			}
			continue
		}
		for _, n := range names {
			if n != "" && n == sender.Domain {
				return true
			}
		}
	}
	return false
}
