package lookup

import (
	"time"

	"postern/internal/conf"
	"postern/internal/door"
	"postern/internal/listen"
)

// Config is the [lookup] section: the lookup door.
type Config struct {
	// Listen are the addresses of the door: "unix:/path" with the options
	// mode=0666, user= and group=, or "tcp:HOST:PORT". Whoever reaches one can
	// read every table. Sockets that systemd hands over are used for the
	// address they are bound to. Default []: the door is closed.
	Listen []listen.Address `toml:"listen"`
	// MaxConnections is the most connections at once. One more takes the place
	// of the connection that has been idle longest, which Postfix does not
	// feel; with none idle for a second it is closed, and Postfix takes that as
	// a temporary error. Postfix opens one per process that asks. Default 4096.
	MaxConnections int `toml:"max_connections"`
	// MaxRequest is the most bytes of one request: name and key. Longer ones
	// end their connection. A key is an address, a name, or with header_checks
	// a header of up to header_size_limit (102400) bytes. Default 131072.
	MaxRequest int `toml:"max_request"`
	// RequestTimeout is how long a request may take to arrive once its first
	// byte has. Default "10s".
	RequestTimeout conf.Duration `toml:"request_timeout"`
	// LookupTimeout is how long a look-up may take before a temporary error is
	// answered. Postfix waits for 100s, and a process of its that has waited so
	// long fails every further look-up for a while. Default "5s".
	LookupTimeout conf.Duration `toml:"lookup_timeout"`
	// WriteTimeout is how long an answer may take to be taken. Default "10s".
	WriteTimeout conf.Duration `toml:"write_timeout"`
	// IdleTimeout closes a connection on which nothing has been asked for so
	// long; 0 never does. Postfix closes idle connections by itself and does
	// not mind when they are closed. Default "10m".
	IdleTimeout conf.Duration `toml:"idle_timeout"`
	// ReloadInterval is how often the files of the tables are looked at.
	// Default "2s".
	ReloadInterval conf.Duration `toml:"reload_interval"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		MaxConnections: 4096,
		MaxRequest:     128 << 10,
		RequestTimeout: conf.Duration(10 * time.Second),
		LookupTimeout:  conf.Duration(5 * time.Second),
		WriteTimeout:   conf.Duration(10 * time.Second),
		IdleTimeout:    conf.Duration(10 * time.Minute),
		ReloadInterval: conf.Duration(2 * time.Second),
	}
}

// Validate reports what is wrong; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	for i, a := range c.Listen {
		if a.Chain != "" {
			fs.Keyf(indexed(prefix+".listen", i), "chain=%s has no meaning here: look-ups go through no chain", a.Chain)
		}
	}
	between := func(key string, v, low, high int) {
		if v < low || v > high {
			fs.Keyf(prefix+"."+key, "%d is out of range: %d to %d", v, low, high)
		}
	}
	between("max_connections", c.MaxConnections, 1, 100_000)
	between("max_request", c.MaxRequest, 10_000, 8<<20)
	span := func(key string, d conf.Duration, low, high time.Duration) {
		if d.D() < low || d.D() > high {
			fs.Keyf(prefix+"."+key, "%v is out of range: %v to %v", d, conf.Duration(low), conf.Duration(high))
		}
	}
	span("request_timeout", c.RequestTimeout, 100*time.Millisecond, 100*time.Second)
	// Postfix gives up after 100s. The client must hear before that, after up
	// to twice the limit.
	span("lookup_timeout", c.LookupTimeout, 100*time.Millisecond, 30*time.Second)
	span("write_timeout", c.WriteTimeout, 100*time.Millisecond, 100*time.Second)
	if c.IdleTimeout != 0 {
		span("idle_timeout", c.IdleTimeout, 10*time.Second, 24*time.Hour)
	}
	span("reload_interval", c.ReloadInterval, 100*time.Millisecond, time.Hour)
}

func (c *Config) limits() door.Limits {
	return door.Limits{
		Connections: c.MaxConnections, Idle: c.IdleTimeout.D(), Request: c.RequestTimeout.D(),
		Answer: c.LookupTimeout.D(), Write: c.WriteTimeout.D(),
	}
}
