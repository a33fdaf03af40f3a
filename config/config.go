// Package config reads the daemon's configuration: one TOML file and
// conf.d/*.toml beside it, into one typed, defaulted and validated value that
// is composed of the Config of each package.
//
// Reading opens no socket and starts nothing. All faults are reported at
// once, with file, line and column.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"

	"postern/admin"
	"postern/console"
	"postern/expect"
	"postern/internal/conf"
	"postern/internal/listen"
	"postern/internal/logging"
	"postern/journal"
	"postern/lookup"
	"postern/milter"
	"postern/names"
	"postern/pipeline"
	"postern/policy"
	"postern/policyd"
	"postern/resolver"
	"postern/store"
)

// DefaultPath is where the configuration is unless somebody says otherwise.
const DefaultPath = "/etc/postern/postern.toml"

// Config is everything that can be set.
type Config struct {
	// Path is the file that was read.
	Path string `toml:"-"`

	places map[string]place // of the keys that are given; see Locate

	// Hostname is this host's name in header fields. Default: the system's
	// name.
	Hostname string `toml:"hostname"`
	// Mode of the whole daemon: "enforce"; "shadow" decides and logs
	// everything and refuses nothing; "off" has no objection to anything.
	// Default "enforce".
	Mode policy.Mode `toml:"mode"`
	// Landlock has the kernel hold the daemon to the directories of the files
	// that the configuration names at its start, where the kernel can (Linux
	// 5.13). A reload that names a file in another directory is refused until a
	// restart. It is off where the daemon runs sendmail, which needs privileges
	// that it would take away. Default true.
	Landlock bool `toml:"landlock"`

	Log     logging.Config                  `toml:"log"`
	Policy  policyd.Config                  `toml:"policy"`
	Milter  milter.Config                   `toml:"milter"`
	Lookup  lookup.Config                   `toml:"lookup"`
	Admin   admin.Config                    `toml:"admin"`
	Console console.Config                  `toml:"console"`
	Store   store.Config                    `toml:"store"`
	Journal journal.Config                  `toml:"journal"`
	DNS     resolver.Config                 `toml:"dns"`
	Names   names.Config                    `toml:"names"`
	Chains  map[string]pipeline.ChainConfig `toml:"chains"`
	Checks
	// Expect are tests of the configuration.
	Expect []expect.Case `toml:"expect"`
	// Tables are served over the lookup door under their names.
	Tables map[string]lookup.TableConfig `toml:"tables"`
}

// Default returns the configuration of an empty file.
func Default() *Config {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return &Config{
		Hostname: host, Landlock: true, Log: logging.DefaultConfig(), Policy: policyd.DefaultConfig(), Admin: admin.DefaultConfig(),
		Milter: milter.DefaultConfig(), Lookup: lookup.DefaultConfig(), Console: console.DefaultConfig(),
		Store: store.DefaultConfig(), Journal: journal.DefaultConfig(), DNS: resolver.DefaultConfig(), Names: names.DefaultConfig(), Chains: pipeline.DefaultChains(),
		Checks: defaultChecks(),
	}
}

// maxFile is the most bytes of one configuration file.
const maxFile = 16 << 20

// Load reads the file at path and conf.d/*.toml beside it. The error is a
// [conf.Faults] with everything that is wrong. The warnings are what an
// administrator should know and can live with. A file that is missing at
// [DefaultPath] is an empty one.
func Load(path string) (*Config, []string, error) {
	return loaded(load(path, false))
}

// LoadLenient is Load with headers.lenient set: of the rules that Postfix
// would warn of and pass over there are warnings instead of faults.
func LoadLenient(path string) (*Config, []string, error) {
	return loaded(load(path, true))
}

func loaded(cfg *Config, warnings []string, err error) (*Config, []string, error) {
	if err != nil {
		return nil, warnings, err
	}
	return cfg, warnings, nil
}

// Peek returns what can be read of a configuration that may have faults; what
// cannot has its default. It serves to find the daemon that runs on an
// earlier version of the file.
func Peek(path string) *Config {
	cfg, _, _ := load(path, false) // the faults are Load's business
	return cfg
}

func load(path string, lenient bool) (*Config, []string, error) {
	cfg := Default()
	cfg.Path = path
	var warnings []string
	d := newDecoder(cfg, func(table string) any {
		switch table {
		case "chains":
			return pipeline.DefaultChain()
		case "tables":
			return lookup.DefaultTable()
		}
		return nil
	})
	text, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path == DefaultPath:
		warnings = append(warnings, path+" is not there: the defaults are used")
	case err != nil:
		d.faults.Filef(path, 0, 0, "%v", reason(err))
		return cfg, nil, &loadError{d.faults, err}
	default:
		d.document(path, text)
	}
	parts, err := filepath.Glob(filepath.Join(filepath.Dir(path), "conf.d", "*.toml"))
	if err != nil {
		d.faults.Filef(path, 0, 0, "conf.d: %v", err)
	}
	slices.Sort(parts)
	for _, part := range parts {
		text, err := readFile(part)
		if err != nil {
			d.faults.Filef(part, 0, 0, "%v", reason(err))
			continue
		}
		d.document(part, text)
	}
	d.finish()
	if len(d.places) > 0 {
		cfg.places = d.places
	}
	cfg.fill(func(key string) bool {
		_, ok := d.places[key]
		return ok
	})
	faults := d.faults
	cfg.Headers.Lenient = cfg.Headers.Lenient || lenient
	var more conf.Faults
	warnings = append(warnings, cfg.validate(&more)...)
	d.locate(more)
	// A value that could not be read would be reported again by what it
	// leaves behind.
	for _, f := range more {
		if !slices.ContainsFunc(faults, func(g *conf.Fault) bool { return g.Key != "" && g.Key == f.Key }) {
			faults = append(faults, f)
		}
	}
	if len(faults) > 0 {
		slices.SortStableFunc(faults, func(a, b *conf.Fault) int {
			return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
		})
		return cfg, warnings, &loadError{faults, nil}
	}
	return cfg, warnings, nil
}

// Locate adds to faults that name a key the place where that stands.
func (c *Config) Locate(fs conf.Faults) { locate(c.places, fs) }

// loadError is all faults, and what kept a file from being read.
type loadError struct {
	conf.Faults
	cause error
}

// Unwrap lets errors.Is tell a missing file from one that may not be read.
func (e *loadError) Unwrap() []error { return []error{e.Faults, e.cause} }

func reason(err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	case st.Size() > maxFile:
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", st.Size(), maxFile)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err == nil && !utf8.Valid(text) {
		err = errors.New("it is not UTF-8")
	}
	return bytes.TrimPrefix(text, []byte("\ufeff")), err
}

// validate reports everything that is wrong with the values and with the
// files they name.
func (c *Config) validate(fs *conf.Faults) (warnings []string) {
	if c.Hostname == "" || strings.ContainsAny(c.Hostname, " \t\r\n") || policy.Printable(c.Hostname) != c.Hostname {
		fs.Keyf("hostname", "%q is not a host name", c.Hostname)
	}
	c.Log.Validate("log", fs)
	c.Policy.Validate("policy", fs)
	c.Milter.Validate("milter", fs)
	c.Lookup.Validate("lookup", fs)
	for _, w := range lookup.ValidateTables("tables", c.Tables, fs) {
		warnings = append(warnings, w.Error())
	}
	c.Admin.Validate("admin", fs)
	c.Console.Validate("console", fs)
	c.Store.Validate("store", fs)
	c.Journal.Validate("journal", fs)
	c.Journal.ValidateShare("journal", c.Store.Kind == store.Redis, fs)
	c.DNS.Validate("dns", fs)
	c.Names.Validate("names", fs)
	secrets := map[string]string{"admin.token_file": c.Admin.TokenFile, "store.redis.password_file": c.Store.Redis.PasswordFile, "store.redis.sentinel_password_file": c.Store.Redis.SentinelPasswordFile}
	for _, s := range c.sections() {
		s.cfg.Validate(s.name, fs)
		warnings = append(warnings, c.warnings(&s)...)
		if has, ok := s.cfg.(secretive); ok {
			maps.Copy(secrets, has.Secrets(s.name))
		}
	}
	checks := c.describe()
	for _, name := range slices.Sorted(maps.Keys(c.Chains)) {
		chain := c.Chains[name]
		prefix := "chains." + name
		chain.Validate(prefix, fs)
		chain.ValidateOrder(prefix, checks, func(word string) string {
			return Nearest(word, slices.Sorted(maps.Keys(checks)))
		}, fs)
	}
	if _, ok := c.Chains[pipeline.DefaultName]; !ok {
		fs.Keyf("chains", "there is no chain %q, which judges what names no other", pipeline.DefaultName)
	}
	for i := range c.Expect {
		e, key := &c.Expect[i], expect.Key(i)
		e.Validate(key, fs)
		if _, ok := c.Chains[e.Context]; e.Context != "" && !ok {
			fs.Keyf(key+".context", "there is no chain %q", e.Context)
		}
	}
	c.doors(fs)
	warnings = append(warnings, c.content(fs)...)
	if len(c.Verify.Routes) > 0 && c.Store.Kind != store.Redis && c.Verify.MaxEntries >= c.Store.MaxEntries {
		fs.Keyf("verify.max_entries", "%d is not less than store.max_entries (%d): unknown addresses could fill the store, and known ones find no room",
			c.Verify.MaxEntries, c.Store.MaxEntries)
	}
	for key, path := range secrets {
		if path == "" {
			continue
		}
		secret, err := c.Secret(path)
		if err != nil {
			fs.Keyf(key, "%v", err)
		} else if secret == "" {
			fs.Keyf(key, "%s is empty", path)
		}
		if st, err := os.Stat(conf.SecretPath(path)); err == nil && st.Mode().Perm()&0o004 != 0 {
			warnings = append(warnings, fmt.Sprintf("%s: everybody on this host can read %s", key, conf.SecretPath(path)))
		}
	}
	slices.Sort(warnings)
	return warnings
}

// doors reports chains and tables that the doors name and that are not there.
func (c *Config) doors(fs *conf.Faults) {
	for key, listen := range map[string][]listen.Address{"policy.listen": c.Policy.Listen, "milter.listen": c.Milter.Listen} {
		for i, a := range listen {
			if _, ok := c.Chains[a.Chain]; a.Chain != "" && !ok {
				fs.Keyf(index(key, i), "there is no chain %q", a.Chain)
			}
		}
	}
	for _, s := range c.sections() {
		if has, ok := s.cfg.(chained); ok {
			for key, name := range has.NamesChains(s.name) {
				if _, ok := c.Chains[name]; !ok {
					fs.Keyf(key, "there is no chain %q", name)
				}
			}
		}
	}
	if _, ok := c.Chains[c.Milter.Chain]; c.Milter.Chain != "" && !ok {
		fs.Keyf("milter.chain", "there is no chain %q", c.Milter.Chain)
	}
	for i := range c.Provider.Lists {
		if name := MapOfProvider(c.Provider.Lists[i].Name); c.hasTable(name) {
			fs.Keyf("tables."+name, "the lookup door gives the provider's list out under this name")
		}
	}
	for _, name := range []string{MapOfAllow, MapOfDeny} {
		if c.hasTable(name) {
			fs.Keyf("tables."+name, "the lookup door gives an access list out under this name")
		}
	}
}

func (c *Config) hasTable(name string) bool {
	_, ok := c.Tables[name]
	return ok
}

// Names of what the lookup door serves besides [tables].
const (
	MapOfAllow = "access-allow"
	MapOfDeny  = "access-deny"
)

// MapOfProvider is the name under which the lookup door serves the networks
// of a provider.
func MapOfProvider(name string) string { return "provider-" + name }

// content reports what needs the milter door and cannot have it.
func (c *Config) content(fs *conf.Faults) (warnings []string) {
	needs := c.Provider.NeedsMilter("provider")
	if c.Provider.Relays() && !c.relays("provider") {
		warnings = append(warnings, "provider.list.relay: no chain with purpose = \"relay\" has the check provider: nobody is permitted to relay")
	}
	if len(c.Milter.Listen) == 0 {
		for _, key := range needs {
			fs.Keyf(key, "can only be seen on the message itself: set milter.listen, and smtpd_milters in main.cf")
		}
		return warnings
	}
	if len(needs) == 0 {
		return warnings
	}
	// A permit at RCPT counts on the refusal at the message's end.
	if c.Milter.OnPanic != policy.ErrorDefer {
		fs.Keyf("milter.on_panic", "%v would let in what %s must refuse: \"defer\"", c.Milter.OnPanic, needs[0])
	}
	if c.Mode != policy.Enforce {
		fs.Keyf("mode", "%v would let in what %s must refuse", c.Mode, needs[0])
	}
	chains := []string{c.Milter.Chain}
	for _, a := range c.Milter.Listen {
		chains = append(chains, a.Chain)
	}
	for _, name := range chains {
		if name == "" {
			name = pipeline.DefaultName
		}
		if chain, ok := c.Chains[name]; ok && chain.Mode != policy.Enforce {
			fs.Keyf("chains."+name+".mode", "%v would let in what %s must refuse", chain.Mode, needs[0])
		}
	}
	return warnings
}

// relays reports whether a chain for relaying has the check.
func (c *Config) relays(check string) bool {
	for _, chain := range c.Chains {
		if chain.Purpose == pipeline.PurposeRelay && slices.Contains(chain.Checks, check) {
			return true
		}
	}
	return false
}

// warnings are what a check says of settings that are no faults.
func (c *Config) warnings(s *checkSection) (out []string) {
	if w, ok := s.cfg.(warner); ok {
		for _, f := range w.Warnings(s.name) {
			out = append(out, f.Error())
		}
	}
	if u, ok := s.cfg.(unchained); ok && !c.InSomeChain(s.name) {
		if text := u.WithoutChain(s.name); text != "" {
			return append(out, text) // whatever else it needs
		}
	}
	if u, ok := s.cfg.(unseen); ok && len(c.Milter.Listen) == 0 {
		if text := u.WithoutMilter(s.name); text != "" {
			out = append(out, text)
		}
	}
	if u, ok := s.cfg.(unsure); ok && (c.Auth.Mode == policy.Off || len(c.Milter.Listen) == 0) {
		if text := u.WithoutAuth(s.name); text != "" {
			out = append(out, text)
		}
	}
	return out
}

// InSomeChain reports whether a chain has the check.
func (c *Config) InSomeChain(check string) bool {
	for _, chain := range c.Chains {
		if slices.Contains(chain.Checks, check) {
			return true
		}
	}
	return false
}

// maxSecret is the most bytes of a secret.
const maxSecret = 4096

// Secret reads a secret from a file; "" for an empty path. A name without
// directory is looked for among systemd's credentials (systemd.exec(5)). The
// line end is not part of it.
func (c *Config) Secret(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(conf.SecretPath(path))
	if err != nil {
		return "", fmt.Errorf("the secret cannot be read: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("the secret cannot be read: %w", err)
	}
	if len(b) > maxSecret {
		return "", fmt.Errorf("%s holds more than %d bytes: it is no secret", path, maxSecret)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// JournalDir returns where the journal's files are, "" when there are none.
func (c *Config) JournalDir() string {
	return c.Journal.Dir(c.Store.Path, c.Store.Kind == store.Memory)
}

// AdminToken returns the token of the administrator's door, "" when there is
// none.
func (c *Config) AdminToken() (string, error) { return c.Secret(c.Admin.TokenFile) }

// Dump writes the effective values as TOML. Secrets are not among them: the
// configuration holds only the names of their files.
func (c *Config) Dump(w io.Writer) error {
	enc := toml.NewEncoder(w)
	enc.SetArraysMultiline(false)
	if err := enc.Encode(c); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return nil
}
