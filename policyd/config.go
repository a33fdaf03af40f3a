package policyd

import (
	"time"

	"postern/internal/conf"
	"postern/internal/listen"
)

// Config is the [policy] section: the policy delegation door.
type Config struct {
	// Listen are the addresses of the door: "unix:/path" with the options
	// mode=0666, user=, group= and chain=, or "tcp:HOST:PORT" with chain=.
	// Sockets that systemd hands over are used for the address they are bound
	// to. Default ["unix:/run/postern/policy.sock", "tcp:127.0.0.1:10040"].
	Listen []listen.Address `toml:"listen"`
	// MaxConnections is the most connections at once; one more is closed, and
	// Postfix uses its default_action. Postfix opens one per smtpd process and
	// per distinct check_policy_service text. Default 4096.
	MaxConnections int `toml:"max_connections"`
	// MaxLine is the most bytes in one attribute line. Default 16384.
	MaxLine int `toml:"max_line"`
	// MaxRequest is the most bytes in one request. Default 65536.
	MaxRequest int `toml:"max_request"`
	// MaxAttributes is the most attributes in one request. Default 100.
	MaxAttributes int `toml:"max_attributes"`
	// RequestTimeout is how long a request may take to arrive once its first
	// byte has. Default "10s".
	RequestTimeout conf.Duration `toml:"request_timeout"`
	// WriteTimeout is how long an answer may take to be taken. Default "10s".
	WriteTimeout conf.Duration `toml:"write_timeout"`
	// IdleTimeout closes a connection on which nothing has been asked for so
	// long; 0 never does. Postfix closes idle connections by itself; a value
	// below 2000s costs its sessions a second now and then. Default "0s".
	IdleTimeout conf.Duration `toml:"idle_timeout"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	c := Config{
		Listen:         make([]listen.Address, 2),
		MaxConnections: 4096,
		MaxLine:        16 << 10,
		MaxRequest:     64 << 10,
		MaxAttributes:  100,
		RequestTimeout: conf.Duration(10 * time.Second),
		WriteTimeout:   conf.Duration(10 * time.Second),
	}
	for i, s := range []string{"unix:/run/postern/policy.sock", "tcp:127.0.0.1:10040"} {
		if err := c.Listen[i].UnmarshalText([]byte(s)); err != nil {
			panic(err) // a constant
		}
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
	between("max_line", c.MaxLine, 8<<10, 1<<20)
	between("max_request", c.MaxRequest, 16<<10, 8<<20)
	between("max_attributes", c.MaxAttributes, 40, 10_000)
	if c.MaxLine > c.MaxRequest {
		fs.Keyf(prefix+".max_line", "%d is more than max_request (%d)", c.MaxLine, c.MaxRequest)
	}
	for key, d := range map[string]conf.Duration{"request_timeout": c.RequestTimeout, "write_timeout": c.WriteTimeout} {
		if d.D() < 100*time.Millisecond || d.D() > 100*time.Second {
			fs.Keyf(prefix+"."+key, "%v is out of range: 100ms to 100s", d)
		}
	}
	if d := c.IdleTimeout.D(); d != 0 && d < 300*time.Second {
		fs.Keyf(prefix+".idle_timeout", "%v would cut connections that Postfix still wants (smtpd_policy_service_max_idle is 300s); use 0 or 2000s", c.IdleTimeout)
	}
}
