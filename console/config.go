package console

import (
	"net/netip"
	"path/filepath"
	"time"

	"postern/internal/conf"
	"postern/internal/listen"
)

// Config is the [console] section.
type Config struct {
	// Listen is where browsers, or a reverse proxy in front of them, find the
	// console: "tcp:127.0.0.1:8025", or "unix:/path" for a proxy on this host.
	// Empty: there is none. Default "".
	Listen string `toml:"listen"`
	// TLSCert is the certificate with its chain, PEM. A renewed file is taken by
	// itself. Default: no TLS, for loopback and behind a proxy.
	TLSCert string `toml:"tls_cert"`
	// TLSKey is its key, PEM. Default: none.
	TLSKey string `toml:"tls_key"`
	// TrustedProxies are networks of reverse proxies: what they say in
	// X-Forwarded-For and X-Forwarded-Proto is believed. A unix socket is always
	// a proxy's. Default [].
	TrustedProxies []netip.Prefix `toml:"trusted_proxies"`
	// UsersFile holds names, roles and hashes of passwords; `postern console user`
	// writes it. Default: console.users beside store.path.
	UsersFile string `toml:"users_file"`
	// AuditFile is where every change is written, a JSON value a line: who, what,
	// before and after. Nothing is changed when it cannot be written. Default:
	// console-audit.jsonl beside store.path.
	AuditFile string `toml:"audit_file"`
	// IdleEnd is after how long without a request a session ends. Default "30m".
	IdleEnd conf.Duration `toml:"idle_end"`
	// AbsoluteEnd is after how long a session ends whatever happens. Default
	// "12h".
	AbsoluteEnd conf.Duration `toml:"absolute_end"`
	// MaxConnections is how many connections are held at most; each live view is
	// one. Default 1200.
	MaxConnections int `toml:"max_connections"`
	// MaxUpload is the most bytes of a form, with a message that is to be tried.
	// Default "4MB".
	MaxUpload conf.Size `toml:"max_upload"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{IdleEnd: conf.Duration(30 * time.Minute), AbsoluteEnd: conf.Duration(12 * time.Hour), MaxConnections: 1200, MaxUpload: 4 << 20}
}

// most is the most that MaxUpload can be: what the calls take.
const most = 6 << 20

// Validate reports what is wrong; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if (c.TLSCert == "") != (c.TLSKey == "") {
		fs.Keyf(prefix+".tls_cert", "%s.tls_cert and %s.tls_key go together", prefix, prefix)
	}
	if c.IdleEnd <= 0 || c.IdleEnd > c.AbsoluteEnd {
		fs.Keyf(prefix+".idle_end", "%v is not between 0 and %s.absolute_end (%v)", c.IdleEnd, prefix, c.AbsoluteEnd)
	}
	if c.MaxConnections < 1 {
		fs.Keyf(prefix+".max_connections", "%d is not at least 1", c.MaxConnections)
	}
	if c.MaxUpload < 64<<10 || c.MaxUpload > most {
		fs.Keyf(prefix+".max_upload", "%v is not from 64KB to %v", c.MaxUpload, conf.Size(most))
	}
	if c.Listen == "" {
		return
	}
	var a listen.Address
	if err := a.UnmarshalText([]byte(c.Listen)); err != nil {
		fs.Keyf(prefix+".listen", "%v", err)
		return
	}
	if a.Network == "tcp" && c.TLSCert == "" && len(c.TrustedProxies) == 0 && !loopback(a.Host) {
		fs.Keyf(prefix+".listen", "passwords would cross the network in the clear: set %s.tls_cert and %s.tls_key, or name the proxy in %s.trusted_proxies", prefix, prefix, prefix)
	}
	if c.TLSCert != "" {
		if _, err := newCertificate(c.TLSCert, c.TLSKey); err != nil {
			fs.Keyf(prefix+".tls_cert", "%v", err)
		}
	}
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// Users returns the path of the users file; state is a file in the directory
// of the daemon's state.
func (c *Config) Users(state string) string { return beside(c.UsersFile, state, "console.users") }

// Audit returns the path of the audit log, see [Config.Users].
func (c *Config) Audit(state string) string {
	return beside(c.AuditFile, state, "console-audit.jsonl")
}

func beside(path, state, name string) string {
	if path != "" {
		return path
	}
	return filepath.Join(filepath.Dir(state), name)
}
