package journal

import (
	"fmt"
	"path/filepath"
	"time"

	"postern/internal/conf"
	"postern/internal/reference"
)

// Config is the [journal] section.
type Config struct {
	// Path is the directory of the files. Default: journal beside store.path;
	// with store.kind = "memory" nothing is written.
	Path string `toml:"path"`
	// Keep is which decisions are kept: "refused" (and those that a check in
	// shadow mode would have refused), "all", which also keeps what a replay
	// needs, or "off". Default "refused".
	Keep Keep `toml:"keep"`
	// MaxAge is how long they are kept. Default "30d".
	MaxAge conf.Duration `toml:"max_age"`
	// MaxSize is the most that all files take together: the oldest make room.
	// Default "512MB".
	MaxSize conf.Size `toml:"max_size"`
	// MaxRate is the most decisions that are written in a second, when more come
	// for longer than a moment: a flood shall neither take the processors nor push
	// out what was kept before. The others are counted and lost. Default 2000.
	MaxRate int `toml:"max_rate"`
	// Addresses says how envelope addresses stand in the files: "plain", or
	// "hashed", a keyed hash for the local part. Default "plain".
	Addresses Addresses `toml:"addresses"`
	// Node is this host's number in references, 0 to 255, which must not be that
	// of another gateway. -1: made from hostname. Default -1.
	Node int `toml:"node"`
	// Share puts traces of refusals into the Redis of store.kind = "redis", too, so
	// that `postern explain REF` finds those of other gateways: at most 20000 for
	// each, for max_age. Default false.
	Share bool `toml:"share"`
	// Memory is how many decisions are kept in memory until they are written, and
	// for the newest references; some 3 kB each. Default 4096.
	Memory int `toml:"memory"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{MaxAge: conf.Duration(30 * 24 * time.Hour), MaxSize: 512 << 20, MaxRate: 2000, Node: -1, Memory: 4096}
}

// minSize is the least max_size: a few segments must fit in.
const minSize = 4 << 20

// Validate reports what is wrong; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if d := c.MaxAge.D(); d < time.Hour || d > 3650*24*time.Hour {
		fs.Keyf(prefix+".max_age", "%v is out of range: 1h to 3650d", c.MaxAge)
	}
	if c.MaxSize < minSize || c.MaxSize > 1<<42 {
		fs.Keyf(prefix+".max_size", "%v is out of range: %v to 4TB", c.MaxSize, conf.Size(minSize))
	}
	if c.MaxRate < 1 || c.MaxRate > 1_000_000 {
		fs.Keyf(prefix+".max_rate", "%d is out of range: 1 to 1000000", c.MaxRate)
	}
	if c.Node < -1 || c.Node > 255 {
		fs.Keyf(prefix+".node", "%d is out of range: 0 to 255, or -1", c.Node)
	}
	if c.Memory < 16 || c.Memory > 1_000_000 {
		fs.Keyf(prefix+".memory", "%d is out of range: 16 to 1000000", c.Memory)
	}
}

// ValidateShare reports share without a Redis.
func (c *Config) ValidateShare(prefix string, redis bool, fs *conf.Faults) {
	if c.Share && !redis {
		fs.Keyf(prefix+".share", "needs store.kind = \"redis\": there is nothing to share by")
	}
}

// Dir returns the directory of the files: Path, else one beside the file of the
// store, "" when nothing is to be written.
func (c *Config) Dir(storePath string, forgetful bool) string {
	switch {
	case c.Keep == KeepOff, c.Path == "" && forgetful:
		return ""
	case c.Path != "":
		return c.Path
	}
	return filepath.Join(filepath.Dir(storePath), "journal")
}

// NodeOf returns the node of a host of that name.
func (c *Config) NodeOf(hostname string) uint8 {
	if c.Node >= 0 {
		return uint8(c.Node)
	}
	return reference.NodeOf(hostname)
}

// Keep says which decisions are kept.
type Keep uint8

// What is kept. The zero value is KeepRefused.
const (
	KeepRefused Keep = iota // refusals, and what a check in shadow mode objects to
	KeepAll                 // every decision, and answers of the DNS
	KeepOff                 // nothing
)

var keepNames = [...]string{"refused", "all", "off"}

// String returns the name used in configuration.
func (k Keep) String() string { return keepNames[k] }

// MarshalText implements [encoding.TextMarshaler].
func (k Keep) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (k *Keep) UnmarshalText(text []byte) error {
	for i, name := range keepNames {
		if name == string(text) {
			*k = Keep(i)
			return nil
		}
	}
	return fmt.Errorf("unknown keep %q (one of refused, all, off)", text)
}

// Addresses says how envelope addresses are kept.
type Addresses uint8

// The forms. The zero value is Plain.
const (
	Plain  Addresses = iota // as they came
	Hashed                  // a keyed hash in the place of the local part
)

// String returns the name used in configuration.
func (a Addresses) String() string {
	if a == Hashed {
		return "hashed"
	}
	return "plain"
}

// MarshalText implements [encoding.TextMarshaler].
func (a Addresses) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *Addresses) UnmarshalText(text []byte) error {
	switch string(text) {
	case "plain":
		*a = Plain
	case "hashed":
		*a = Hashed
	default:
		return fmt.Errorf("unknown addresses %q (one of plain, hashed)", text)
	}
	return nil
}
