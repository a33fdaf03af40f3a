// Package directory asks LDAP servers (RFC 4511) whether an address is known
// there, Active Directory and OpenLDAP alike.
package directory

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"

	"postern/internal/conf"
	"postern/policy"
)

// Config is one [[verify.ldap]] section.
type Config struct {
	// Name is how routes call it, as "ldap:NAME". Default: none, it is needed.
	Name string `toml:"name"`
	// URLs are the servers in order of preference: "ldap://host[:port]",
	// "ldaps://host[:port]" or "ldapi:///path". Default: none, they are needed.
	URLs []string `toml:"urls"`
	// StartTLS encrypts ldap:// connections before anything else is said.
	// Default false.
	StartTLS bool `toml:"starttls"`
	// CAFile holds the certificates to trust, in PEM. Default: the system's.
	CAFile string `toml:"ca_file"`
	// BindDN is who asks. Default: nobody in particular (an anonymous bind).
	BindDN string `toml:"bind_dn"`
	// PasswordFile holds the password of BindDN. Default: none.
	PasswordFile string `toml:"password_file"`
	// Base is where the search begins. Default: none, it is needed.
	Base string `toml:"base"`
	// Scope is "sub", "one" or "base". Default: sub, all below Base.
	Scope string `toml:"scope"`
	// Filter finds the entry of an address. Placeholders, escaped: {address},
	// {user} (the local part) and {domain}. Default:
	// (|(mail={address})(proxyAddresses=smtp:{address})), which does for most
	// directories and for Active Directory.
	Filter string `toml:"filter"`
	// Attribute, when set, must have a value in the entry that is found.
	// Default: none.
	Attribute string `toml:"attribute"`
	// Timeout is the most time for a connection, and for a question. Default: three seconds.
	Timeout conf.Duration `toml:"timeout"`
	// Connections is the most connections at once; 0 stands for four. Default 0.
	Connections int `toml:"connections"`
}

const defaultFilter = "(|(mail={address})(proxyAddresses=smtp:{address}))"

var scopes = map[string]int{
	"sub": ldap.ScopeWholeSubtree, "one": ldap.ScopeSingleLevel, "base": ldap.ScopeBaseObject,
}

// filled returns c with its defaults.
func (c Config) filled() Config {
	if c.Scope == "" {
		c.Scope = "sub"
	}
	if c.Filter == "" {
		c.Filter = defaultFilter
	}
	if c.Timeout == 0 {
		c.Timeout = conf.Duration(3 * time.Second)
	}
	if c.Connections == 0 {
		c.Connections = 4
	}
	return c
}

// Validate reports what is wrong; prefix is the section's key. roots reads the
// file of authorities.
func (c *Config) Validate(prefix string, roots func(path string) (*x509.CertPool, error), fs *conf.Faults) {
	full := c.filled()
	if c.Name == "" || strings.ContainsAny(c.Name, " :,") || policy.Printable(c.Name) != c.Name {
		fs.Keyf(prefix+".name", "%q is not a name (routes say ldap:NAME)", c.Name)
	}
	if len(c.URLs) == 0 {
		fs.Keyf(prefix+".urls", "no server is given")
	}
	plain := false
	for i, s := range c.URLs {
		u, err := url.Parse(s)
		key := fmt.Sprintf("%s.urls[%d]", prefix, i)
		switch {
		case err != nil:
			fs.Keyf(key, "%v", err)
		case u.Scheme == "ldapi":
		case u.Scheme != "ldap" && u.Scheme != "ldaps":
			fs.Keyf(key, "%q: want ldap://, ldaps:// or ldapi://", s)
		case u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "":
			fs.Keyf(key, "%q: want a host and nothing behind it; base and filter have keys of their own", s)
		}
		plain = plain || err == nil && u.Scheme == "ldap"
	}
	if c.StartTLS && !plain && len(c.URLs) > 0 {
		fs.Keyf(prefix+".starttls", "has no use: no server is asked over ldap://")
	}
	if _, err := roots(c.CAFile); err != nil {
		fs.Keyf(prefix+".ca_file", "%v", err)
	}
	if c.Base == "" {
		fs.Keyf(prefix+".base", "says nowhere to search")
	} else if _, err := ldap.ParseDN(c.Base); err != nil {
		fs.Keyf(prefix+".base", "%v", err)
	}
	if (c.BindDN == "") != (c.PasswordFile == "") {
		fs.Keyf(prefix+".bind_dn", "bind_dn and password_file go together")
	}
	if _, ok := scopes[full.Scope]; !ok {
		fs.Keyf(prefix+".scope", "unknown value %q (one of sub, one, base)", c.Scope)
	}
	if !strings.Contains(full.Filter, "{address}") && !strings.Contains(full.Filter, "{user}") {
		fs.Keyf(prefix+".filter", "has neither {address} nor {user}: it would find the same for everybody")
	}
	sample := policy.Address{Raw: "a@example.org", Local: "a", Domain: "example.org"}
	if _, err := ldap.CompileFilter(full.filter(sample)); err != nil {
		fs.Keyf(prefix+".filter", "%v", err)
	}
	if d := full.Timeout.D(); d < 50*time.Millisecond || d > time.Minute {
		fs.Keyf(prefix+".timeout", "%v is out of range: 50ms to 1m", c.Timeout)
	}
	if full.Connections < 1 || full.Connections > 100 {
		fs.Keyf(prefix+".connections", "%d is out of range: 1 to 100", c.Connections)
	}
}

// filter fills the placeholders; whatever an address holds stays a value.
func (c *Config) filter(a policy.Address) string {
	e := ldap.EscapeFilter
	return strings.NewReplacer("{address}", e(a.Local+"@"+a.Domain), "{user}", e(a.Local), "{domain}", e(a.Domain)).Replace(c.Filter)
}

// Directory is one set of servers. It is safe for concurrent use.
type Directory struct {
	cfg      Config
	password string
	roots    *x509.CertPool
	slots    chan struct{}

	mu     sync.Mutex
	idle   []*ldap.Conn
	closed bool
	status Status
}

// Status is how the servers are.
type Status struct {
	Name      string    `json:"name"`
	Healthy   bool      `json:"healthy"`
	Server    string    `json:"server,omitempty"` // of the last answer
	Asked     uint64    `json:"asked"`
	Failed    uint64    `json:"failed"`
	LastError string    `json:"last_error,omitempty"`
	ErrorAt   time.Time `json:"error_at,omitzero"`
}

// New returns a directory on validated settings. It connects when it is asked.
func New(cfg Config, password string, roots *x509.CertPool) *Directory {
	cfg = cfg.filled()
	return &Directory{
		cfg: cfg, password: password, roots: roots, slots: make(chan struct{}, cfg.Connections),
		status: Status{Name: cfg.Name, Healthy: true},
	}
}

// Close ends idle connections, and those in use when they are given back.
func (d *Directory) Close() {
	d.mu.Lock()
	idle := d.idle
	d.idle, d.closed = nil, true
	d.mu.Unlock()
	for _, c := range idle {
		_ = c.Close() // nothing is lost
	}
}

// Status returns how the servers are.
func (d *Directory) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status
}

// Ask reports whether the directory has an entry for the address, and its DN.
// It returns by ctx's deadline. An error means that it could not be asked.
func (d *Directory) Ask(ctx context.Context, a policy.Address) (dn string, found bool, err error) {
	if err := ctx.Err(); err != nil {
		return "", false, fmt.Errorf("directory %s: %w", d.cfg.Name, err)
	}
	select {
	case d.slots <- struct{}{}:
	case <-ctx.Done():
		return "", false, fmt.Errorf("directory %s: every connection is busy", d.cfg.Name)
	}
	defer func() { <-d.slots }()
	dn, found, server, err := d.ask(ctx, a)
	d.mu.Lock()
	defer d.mu.Unlock()
	st := &d.status
	st.Asked++
	if err != nil {
		st.Failed++
		st.Healthy, st.LastError, st.ErrorAt = false, err.Error(), time.Now()
		return "", false, fmt.Errorf("directory %s: %w", d.cfg.Name, err)
	}
	st.Healthy = true
	if server != "" {
		st.Server = server
	}
	return dn, found, nil
}

func (d *Directory) ask(ctx context.Context, a policy.Address) (dn string, found bool, server string, err error) {
	if c := d.take(); c != nil {
		// A connection that was idle may be gone, its server may be going down
		// or have lost the bind: once more, on a new one, and at the others.
		if dn, found, err = d.search(ctx, c, a); err == nil {
			d.put(c)
			return dn, found, "", nil
		}
		_ = c.Close() // it is of no use
		if ctx.Err() != nil {
			return "", false, "", err
		}
	}
	var failed error
	for _, u := range d.cfg.URLs {
		if ctx.Err() != nil {
			return "", false, "", errors.Join(failed, ctx.Err())
		}
		c, err := d.dial(ctx, u)
		if err == nil {
			if dn, found, err = d.search(ctx, c, a); err == nil {
				d.put(c)
				return dn, found, u, nil
			}
			_ = c.Close() // as above
		}
		failed = errors.Join(failed, fmt.Errorf("%s: %w", u, err))
	}
	return "", false, "", failed
}

func (d *Directory) take() *ldap.Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.idle) > 0 {
		c := d.idle[len(d.idle)-1]
		d.idle = d.idle[:len(d.idle)-1]
		if !c.IsClosing() {
			return c
		}
	}
	return nil
}

func (d *Directory) put(c *ldap.Conn) {
	d.mu.Lock()
	closed := d.closed
	if !closed {
		d.idle = append(d.idle, c)
	}
	d.mu.Unlock()
	if closed {
		_ = c.Close() // nobody takes it again
	}
}

// left is the time for the next step.
func (d *Directory) left(ctx context.Context) time.Duration {
	t := d.cfg.Timeout.D()
	if end, ok := ctx.Deadline(); ok {
		t = min(t, time.Until(end))
	}
	return max(t, time.Millisecond)
}

func (d *Directory) dial(ctx context.Context, server string) (*ldap.Conn, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	t := &tls.Config{ServerName: u.Hostname(), RootCAs: d.roots, MinVersion: tls.VersionTLS12}
	c, err := ldap.DialURL(server, ldap.DialWithDialer(&net.Dialer{Timeout: d.left(ctx)}), ldap.DialWithTLSConfig(t))
	if err != nil {
		return nil, err
	}
	c.SetTimeout(d.left(ctx))
	if d.cfg.StartTLS && u.Scheme == "ldap" {
		if err := c.StartTLS(t); err != nil {
			return nil, errors.Join(fmt.Errorf("STARTTLS: %w", err), c.Close())
		}
	}
	if d.cfg.BindDN != "" {
		c.SetTimeout(d.left(ctx))
		if err := c.Bind(d.cfg.BindDN, d.password); err != nil {
			return nil, errors.Join(fmt.Errorf("bind as %s: %w", d.cfg.BindDN, err), c.Close())
		}
	}
	return c, nil
}

func (d *Directory) search(ctx context.Context, c *ldap.Conn, a policy.Address) (dn string, found bool, err error) {
	left := d.left(ctx)
	c.SetTimeout(left)
	attributes := []string{"1.1"} // none, RFC 4511 section 4.5.1.8
	if d.cfg.Attribute != "" {
		attributes = []string{d.cfg.Attribute}
	}
	res, err := c.Search(ldap.NewSearchRequest(d.cfg.Base, scopes[d.cfg.Scope], ldap.NeverDerefAliases,
		2, int((left+time.Second-1)/time.Second), false, d.cfg.filter(a), attributes, nil))
	more := ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) && res != nil && len(res.Entries) > 0
	switch {
	case more:
	case ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject):
		return "", false, fmt.Errorf("base %s: %w", d.cfg.Base, err)
	case err != nil:
		return "", false, err
	}
	i := slices.IndexFunc(res.Entries, func(e *ldap.Entry) bool {
		return d.cfg.Attribute == "" || slices.ContainsFunc(e.GetEqualFoldAttributeValues(d.cfg.Attribute), func(v string) bool { return v != "" })
	})
	if i < 0 && more { // another entry may have it
		return "", false, fmt.Errorf("more than two entries are found, the first without %s", d.cfg.Attribute)
	}
	if i < 0 {
		return "", false, nil
	}
	return res.Entries[i].DN, true, nil
}
