package callout

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
)

// Config is the [verify.callout] section.
type Config struct {
	// Helo is the name in EHLO. Default: hostname.
	Helo string `toml:"helo"`
	// Sender is the address in MAIL FROM; it must be one that this host takes
	// without asking anybody, as Postfix does for its address_verify_sender.
	// "<>" is the null sender, which some next hops refuse for every address.
	// Default: double-bounce@ and hostname.
	Sender string `toml:"sender"`
	// TLS is "may" (STARTTLS when it is offered, any certificate, plain text
	// when it fails), "encrypt" (never plain text, any certificate), "verify"
	// (a certificate that is trusted and names the host) or "none".
	// Default "may".
	TLS string `toml:"tls"`
	// CAFile holds the certificates to trust for "verify", in PEM. Default: the
	// system's.
	CAFile string `toml:"ca_file"`
	// Size is announced with SIZE= when the next hop knows it, in bytes, so that
	// it can refuse by quota; 0 leaves it out. Default 0.
	Size int `toml:"size"`
	// BindIPv4 is the address that connections come from. Default: any.
	BindIPv4 string `toml:"bind_ipv4"`
	// BindIPv6 is the same for IPv6. Default: any.
	BindIPv6 string `toml:"bind_ipv6"`
	// Connections is the most connections to one next hop. Default 4.
	Connections int `toml:"connections"`
	// MaxConnections is the most connections to all next hops. Default 32.
	MaxConnections int `toml:"max_connections"`
	// Queue is the most probes that wait for a connection to one next hop; what
	// comes beyond is not asked. Default 500.
	Queue int `toml:"queue"`
	// Rate is the most probes in a second to one next hop. Default 50.
	Rate int `toml:"rate"`
	// Burst is how many probes may come at once before Rate holds. Default 200.
	Burst int `toml:"burst"`
	// MaxTransactions is how many addresses are asked over one connection; a
	// Postfix closes it after 100 (smtpd_junk_command_limit). Default 50.
	MaxTransactions int `toml:"max_transactions"`
	// MaxRefused is how many refused addresses a connection may gather; more make
	// a Postfix slow and then close. Default 5.
	MaxRefused int `toml:"max_refused"`
	// KeepIdle is how long an unused connection is kept. Default "5s".
	KeepIdle conf.Duration `toml:"keep_idle"`
	// ConnectTimeout is the most time for a connection. Default "10s".
	ConnectTimeout conf.Duration `toml:"connect_timeout"`
	// ReplyTimeout is the most time for the greeting and for each reply.
	// Default "30s".
	ReplyTimeout conf.Duration `toml:"reply_timeout"`
	// Timeout is the most time for one probe, all hosts of a next hop together.
	// Default "1m".
	Timeout conf.Duration `toml:"timeout"`
	// DownAfter is after how many failures in a row a next hop counts as down
	// and is left alone for DownPause; 0 never. Default 3.
	DownAfter int `toml:"down_after"`
	// DownPause is how long a next hop that is down is left alone. Default "30s".
	DownPause conf.Duration `toml:"down_pause"`
	// RefusedPause is how long a next hop that refuses our greeting or sender
	// for good is left alone. Default "10m".
	RefusedPause conf.Duration `toml:"refused_pause"`
	// AcceptAllKeep is how long it is cached whether a next hop takes every
	// address of a domain, which a random address tells; 0: not asked.
	// Default "12h".
	AcceptAllKeep conf.Duration `toml:"accept_all_keep"`
	// OwnAddresses are addresses by which others reach this host beside those of
	// its interfaces (NAT): an MX that points there is this host. Default none.
	OwnAddresses []netip.Addr `toml:"own_addresses"`
}

// Values of Config.TLS.
const (
	TLSMay     = "may"
	TLSEncrypt = "encrypt"
	TLSVerify  = "verify"
	TLSNone    = "none"
)

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		TLS: TLSMay, Connections: 4, MaxConnections: 32, Queue: 500, Rate: 50, Burst: 200, MaxTransactions: 50, MaxRefused: 5,
		KeepIdle: conf.Duration(5 * time.Second), ConnectTimeout: conf.Duration(10 * time.Second),
		ReplyTimeout: conf.Duration(30 * time.Second), Timeout: conf.Duration(time.Minute),
		DownAfter: 3, DownPause: conf.Duration(30 * time.Second), RefusedPause: conf.Duration(10 * time.Minute),
		AcceptAllKeep: conf.Duration(12 * time.Hour),
	}
}

// Validate reports what is wrong; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if c.Helo != "" && (policy.Printable(c.Helo) != c.Helo || strings.ContainsAny(c.Helo, " <>")) {
		fs.Keyf(prefix+".helo", "%q is not a host name", c.Helo)
	}
	ValidateSender(prefix+".sender", c.Sender, fs)
	ValidateTLS(prefix, c.TLS, c.CAFile, false, fs)
	number := func(key string, n, low, high int) {
		if n < low || n > high {
			fs.Keyf(prefix+"."+key, "%d is out of range: %d to %d", n, low, high)
		}
	}
	number("size", c.Size, 0, 1<<31-1)
	number("connections", c.Connections, 1, 1000)
	number("max_connections", c.MaxConnections, 1, 10_000)
	number("queue", c.Queue, 0, 100_000)
	number("rate", c.Rate, 1, 100_000)
	number("burst", c.Burst, 1, 100_000)
	number("max_transactions", c.MaxTransactions, 1, 100_000)
	number("max_refused", c.MaxRefused, 1, 100_000)
	number("down_after", c.DownAfter, 0, 1000)
	between := func(key string, d conf.Duration, low, high time.Duration) {
		if d.D() < low || d.D() > high {
			fs.Keyf(prefix+"."+key, "%v is out of range: %v to %v", d, conf.Duration(low), conf.Duration(high))
		}
	}
	between("keep_idle", c.KeepIdle, 0, 5*time.Minute)
	between("connect_timeout", c.ConnectTimeout, 100*time.Millisecond, 5*time.Minute)
	between("reply_timeout", c.ReplyTimeout, 100*time.Millisecond, 5*time.Minute)
	between("timeout", c.Timeout, time.Second, 15*time.Minute)
	between("down_pause", c.DownPause, 10*time.Millisecond, time.Hour)
	between("refused_pause", c.RefusedPause, 10*time.Millisecond, 24*time.Hour)
	between("accept_all_keep", c.AcceptAllKeep, 0, 7*24*time.Hour)
	for key, want4 := range map[string]bool{"bind_ipv4": true, "bind_ipv6": false} {
		text := c.BindIPv4
		if !want4 {
			text = c.BindIPv6
		}
		if text == "" {
			continue
		}
		if a, err := netip.ParseAddr(text); err != nil || a.Is4() != want4 {
			fs.Keyf(prefix+"."+key, "%q is not an address of that family", text)
		}
	}
}

// ValidateSender reports a sender that cannot stand in MAIL FROM.
func ValidateSender(key, sender string, fs *conf.Faults) {
	if sender == "" || sender == "<>" {
		return
	}
	a := mailaddr.Parse(sender)
	if a.Local == "" || a.Domain == "" || policy.Printable(sender) != sender || strings.ContainsAny(sender, "<> ") {
		fs.Keyf(key, "%q is not an address (user@domain, or <>)", sender)
	}
}

// ValidateTLS reports an unknown level, and a file of authorities that cannot
// be used. inherit allows an empty level.
func ValidateTLS(prefix, level, caFile string, inherit bool, fs *conf.Faults) {
	switch level {
	case TLSMay, TLSEncrypt, TLSVerify, TLSNone:
	case "":
		if !inherit {
			fs.Keyf(prefix+".tls", "must not be empty (one of may, encrypt, verify, none)")
		}
	default:
		fs.Keyf(prefix+".tls", "unknown value %q (one of may, encrypt, verify, none)", level)
	}
	if caFile != "" {
		if _, err := LoadRoots(caFile); err != nil {
			fs.Keyf(prefix+".ca_file", "%v", err)
		}
	}
}

// LoadRoots reads certificates of authorities in PEM; nil, the system's, for
// an empty path.
func LoadRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the certificates cannot be read: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return roots, nil
}

// Options are what may differ from route to route. They are shared and not
// changed after New.
type Options struct {
	Sender string // "" is the null sender
	Level  string // one of the values of Config.TLS
	Roots  *x509.CertPool
}

// tlsConfig returns what a handshake with a host of that name needs.
func (o *Options) tlsConfig(name string) *tls.Config {
	return &tls.Config{
		ServerName: name, RootCAs: o.Roots, MinVersion: tls.VersionTLS12,
		// Opportunistic encryption keeps out who only listens; the address is
		// no secret to who answers, and a refused handshake would end in plain text.
		InsecureSkipVerify: o.Level != TLSVerify, //nolint:gosec // as the operator has chosen
	}
}
