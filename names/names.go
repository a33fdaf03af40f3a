// Package names judges the reverse names of clients: is a name its owner's own,
// or one that a hoster, a cloud or an access network gives to the hosts of all
// its customers? Such a generic name says nothing of who sends.
//
// A name is generic if it holds the address it belongs to, if a word of access
// networks stands in it beside a number, or if a list says so. The list is a
// visible file with its reasons; the one that is built in (generic.list) can be
// extended or replaced.
package names

import (
	_ "embed"
	"net/netip"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/filestamp"
)

// BuiltIn is the text of the list that is built in, in the form of such files.
//
//go:embed generic.list
var BuiltIn string

// Config is the [names] section.
type Config struct {
	// BuiltIn uses the built-in list of generic names; generic-names.list among
	// the documents shows it. Default true.
	BuiltIn bool `toml:"built_in"`
	// Files are lists of your own: patterns of names that are generic, and with
	// "!" in front of such that are not. They go before the built-in list where
	// both say something of the same domain. Default none.
	Files []string `toml:"files"`
	// ReloadInterval is how often the files are looked at. Default "2s".
	ReloadInterval conf.Duration `toml:"reload_interval"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{BuiltIn: true, ReloadInterval: conf.Duration(2 * time.Second)}
}

// Validate reports what is wrong with the values and the files; prefix is the
// section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if d := c.ReloadInterval.D(); d < 100*time.Millisecond || d > time.Hour {
		fs.Keyf(prefix+".reload_interval", "%v is out of range: 100ms to 1h", c.ReloadInterval)
	}
	for _, path := range c.Files {
		_, faults := readFile(path)
		*fs = append(*fs, faults...)
	}
}

// Judge knows which names are generic. It is safe for concurrent use.
type Judge struct {
	cfg     Config
	log     *zap.Logger
	list    atomic.Pointer[list]
	files   []*file // used by the watcher and New only
	watcher filestamp.Watcher
}

// New reads the lists; it starts nothing.
func New(cfg Config, log *zap.Logger) (*Judge, error) {
	j := &Judge{cfg: cfg, log: log.Named("names")}
	var faults conf.Faults
	for _, path := range cfg.Files {
		f := &file{path: path}
		f.track.Begin(path)
		var fs conf.Faults
		f.rules, fs = readFile(path)
		faults = append(faults, fs...)
		j.files = append(j.files, f)
	}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	j.rebuild()
	return j, nil
}

// Start begins to watch the files; Stop ends it, and can be called twice.
func (j *Judge) Start() {
	if len(j.files) > 0 {
		j.watcher.Start(j.cfg.ReloadInterval.D(), j.poll)
	}
}

// Stop ends what Start began.
func (j *Judge) Stop() { j.watcher.Stop() }

// Generic reports whether name, the verified name of addr, is generic. An
// invalid addr is one that is not known.
func (j *Judge) Generic(name string, addr netip.Addr) bool { return j.Why(name, addr) != "" }

// Why says what makes a name generic, "" when it is not: "holds its address",
// "access network", or the place of a line.
func (j *Judge) Why(name string, addr netip.Addr) string {
	switch r := j.list.Load().find(name); {
	case r != nil && r.except:
		return ""
	case r != nil:
		return r.place()
	}
	return shape(name, addr)
}
