// Package store is the state of the daemon behind one interface: whole,
// atomic operations for greylisting, compare-and-swap for the rest. store/bolt (embedded, the default),
// store/redis (shared by several gateways) and store/mem implement it; the
// suite in store/storetest holds all three to the same behaviour.
package store

import (
	"context"
	"errors"
	"time"

	"postern/greylist"
	"postern/internal/conf"
	"postern/internal/meter"
)

// Store is what the daemon needs of its state. All methods are safe for
// concurrent use and return by ctx's deadline.
type Store interface {
	greylist.Store
	greylist.AdminStore
	meter.Store
	Values
	// Status tells how the store is. It does no I/O.
	Status() Status
	// Ping reports whether the store can be used now.
	Ping(ctx context.Context) error
	// Close writes what is pending and releases the store.
	Close(ctx context.Context) error
}

// Errors that callers tell apart.
var (
	// ErrUnavailable marks a store that cannot be reached or written now.
	ErrUnavailable = errors.New("store unavailable")
	// ErrFull marks a store that takes no further entries.
	ErrFull = errors.New("store full")
	// ErrNewer marks a file that a newer version has written.
	ErrNewer = errors.New("written by a newer version")
)

// Status is what `postern status` shows of the store.
type Status struct {
	Kind      string        `json:"kind"`
	Where     string        `json:"where,omitempty"` // path or addresses
	Healthy   bool          `json:"healthy"`
	Breaker   string        `json:"breaker,omitempty"` // "closed", "open", "half-open"
	Entries   int           `json:"entries,omitempty"`
	Pending   int           `json:"pending,omitempty"` // changes not written yet
	Flushed   time.Time     `json:"flushed,omitzero"`  // last write to disk
	FlushTook time.Duration `json:"flush_took,omitempty"`
	LastError string        `json:"last_error,omitempty"`
	ErrorAt   time.Time     `json:"error_at,omitzero"`
	Room      Room          `json:"room,omitzero"`
	// Fallback is the gateway's own store behind one that several share.
	Fallback *Fallback `json:"fallback,omitempty"`
}

// Fallback is how the store is with which a gateway goes on by itself.
type Fallback struct {
	Kind      string    `json:"kind"`
	Where     string    `json:"where,omitempty"`
	Healthy   bool      `json:"healthy"`
	LastError string    `json:"last_error,omitempty"`
	Entries   int       `json:"entries,omitempty"`
	Alone     bool      `json:"alone"` // the gateway goes on by it now
	Since     time.Time `json:"since,omitzero"`
	ToMerge   int       `json:"to_merge,omitempty"` // records that the shared store has not been told
}

// Room is how the room for first contacts that wait is.
type Room struct {
	Waiting   int    `json:"waiting"`    // correspondences that wait
	Most      int    `json:"most"`       // as many fit in
	PushedOut uint64 `json:"pushed_out"` // that had to go for others since the start
	// Pressed is set while newcomers push others out. Lives is then how long a
	// first contact lives, and TooShort says that this is less than its delay
	// and a usual retry take.
	Pressed  bool          `json:"pressed,omitempty"`
	Lives    time.Duration `json:"lives,omitempty"`
	TooShort bool          `json:"too_short,omitempty"`
	// Unremembered are passes since the start for which there was no room: they
	// were let in, and will be delayed again.
	Unremembered uint64 `json:"unremembered,omitempty"`
}

// Kinds of store.
const (
	Embedded = "embedded"
	Redis    = "redis"
	Memory   = "memory"
)

// Config is the [store] section.
type Config struct {
	// Kind is "embedded" (a file), "redis" (shared by several gateways) or
	// "memory" (forgotten at the end). Default "embedded".
	Kind string `toml:"kind"`
	// Path of the embedded store's file, and of the fallback of "redis"; its
	// directory must exist.
	// Default "/var/lib/postern/state.db".
	Path string `toml:"path"`
	// FlushInterval is how often the embedded store writes to disk: the most
	// that is lost when the machine or the process dies. Default "1s".
	FlushInterval conf.Duration `toml:"flush_interval"`
	// MaxEntries is the most records of the embedded and the memory store:
	// correspondences that have passed, credit, values of other checks. Those
	// who pass when it is full are delayed again the next time.
	// Default 5000000.
	MaxEntries int `toml:"max_entries"`
	// MaxWaiting is the most first contacts that are remembered until they come
	// back. When more come, those go that nobody has tried again, the oldest of
	// the network that has most. Some 300 bytes of memory each.
	// Default 1000000.
	MaxWaiting int `toml:"max_waiting"`
	// Redis is for kind = "redis".
	Redis RedisConfig `toml:"redis"`
}

// RedisConfig is the [store.redis] section.
type RedisConfig struct {
	// Addrs is the address of the server, "host:port" or a unix path; with master
	// those of the Sentinels, with cluster of some of its servers.
	// Default ["127.0.0.1:6379"].
	Addrs []string `toml:"addrs"`
	// Master is the name by which Sentinels know the server. Default "".
	Master string `toml:"master"`
	// SentinelUsername is for the Sentinels. Default "".
	SentinelUsername string `toml:"sentinel_username"`
	// SentinelPasswordFile holds the password of the Sentinels. Default: none.
	SentinelPasswordFile string `toml:"sentinel_password_file"`
	// Cluster says that addrs are servers of a Redis Cluster. Default false.
	Cluster bool `toml:"cluster"`
	// Username for Redis ACLs. Default "".
	Username string `toml:"username"`
	// PasswordFile holds the password. Default: none.
	PasswordFile string `toml:"password_file"`
	// DB is the number of the database. Default 0.
	DB int `toml:"db"`
	// TLS encrypts the connection. Default false.
	TLS bool `toml:"tls"`
	// CAFile holds the certificates to trust, in PEM. Default: the system's.
	CAFile string `toml:"ca_file"`
	// Prefix begins every key. Default "postern".
	Prefix string `toml:"prefix"`
	// Timeout is the most time one operation may take. Default "100ms".
	Timeout conf.Duration `toml:"timeout"`
	// Pool is the most connections. Default 16.
	Pool int `toml:"pool"`
	// AutoPipeline sends operations that come at the same time together.
	// Default true.
	AutoPipeline bool `toml:"auto_pipeline"`
	// BreakerFailures is how many operations must fail in a row before the
	// store is left alone for a while. Default 5.
	BreakerFailures int `toml:"breaker_failures"`
	// BreakerPause is how long it is left alone before it is tried again.
	// Default "1s".
	BreakerPause conf.Duration `toml:"breaker_pause"`
	// Fallback is with what a gateway goes on while the server cannot be used,
	// by what it has seen itself: "embedded", the file at store.path, "memory",
	// or "pass", with nothing: then on_error of the checks decides. What is
	// learned meanwhile is merged when the server is back. Default "embedded".
	Fallback string `toml:"fallback"`
	// Cache is how long a triplet or a sender with credit, once the server has
	// said that it passes, is answered from memory; when it was last seen is
	// written behind. 0: never. Default "10m".
	Cache conf.Duration `toml:"cache"`
	// CacheSize is the most that is answered from memory, some 500 bytes each.
	// Default 200000.
	CacheSize int `toml:"cache_size"`
}

// Pass is the fallback with nothing.
const Pass = "pass"

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Kind: Embedded, Path: "/var/lib/postern/state.db",
		FlushInterval: conf.Duration(time.Second), MaxEntries: 5_000_000, MaxWaiting: 1_000_000,
		Redis: RedisConfig{
			Addrs: []string{"127.0.0.1:6379"}, Prefix: "postern", Timeout: conf.Duration(100 * time.Millisecond),
			Pool: 16, AutoPipeline: true, BreakerFailures: 5, BreakerPause: conf.Duration(time.Second),
			Fallback: Embedded, Cache: conf.Duration(10 * time.Minute), CacheSize: 200_000,
		},
	}
}

// Validate reports what is wrong; prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	switch c.Kind {
	case Memory:
	case Embedded:
		if c.Path == "" {
			fs.Keyf(prefix+".path", "the embedded store needs a file")
		}
	case Redis:
		c.Redis.validate(prefix+".redis", fs)
	default:
		fs.Keyf(prefix+".kind", "unknown kind %q (one of embedded, redis, memory)", c.Kind)
	}
	if d := c.FlushInterval.D(); d < 10*time.Millisecond || d > time.Minute {
		fs.Keyf(prefix+".flush_interval", "%v is out of range: 10ms to 1m", c.FlushInterval)
	}
	if c.MaxEntries < 1000 {
		fs.Keyf(prefix+".max_entries", "%d is too few: at least 1000", c.MaxEntries)
	}
	if c.MaxWaiting < 1000 || c.MaxWaiting > 1<<30 {
		fs.Keyf(prefix+".max_waiting", "%d is out of range: 1000 to %d", c.MaxWaiting, 1<<30)
	}
}

func (c *RedisConfig) validate(prefix string, fs *conf.Faults) {
	switch {
	case len(c.Addrs) == 0:
		fs.Keyf(prefix+".addrs", "want the address of a server")
	case len(c.Addrs) > 1 && c.Master == "" && !c.Cluster:
		fs.Keyf(prefix+".addrs", "%d addresses: of Sentinels (then say master) or of a Cluster (cluster = true)?", len(c.Addrs))
	case c.Master != "" && c.Cluster:
		fs.Keyf(prefix+".master", "Sentinel does not watch a Cluster: master or cluster = true, not both")
	case c.Cluster && c.DB != 0:
		fs.Keyf(prefix+".db", "a Cluster has database 0 only")
	}
	if c.Master == "" && (c.SentinelUsername != "" || c.SentinelPasswordFile != "") {
		fs.Keyf(prefix+".master", "the Sentinels' user and password have no use without the name of the server")
	}
	for i, a := range c.Addrs {
		if a == "" {
			fs.Keyf(prefix+".addrs", "address %d is empty", i+1)
		}
	}
	if c.DB < 0 {
		fs.Keyf(prefix+".db", "%d is no database number", c.DB)
	}
	if c.CAFile != "" && !c.TLS {
		fs.Keyf(prefix+".ca_file", "has no use without tls = true")
	}
	if c.Prefix == "" {
		fs.Keyf(prefix+".prefix", "must not be empty")
	}
	for i := range len(c.Prefix) {
		if b := c.Prefix[i]; b <= ' ' || b > '~' || b == '{' || b == '}' || b == '*' || b == '?' || b == '[' || b == '\\' {
			fs.Keyf(prefix+".prefix", "%q holds a character that means something else in Redis keys", c.Prefix)
			break
		}
	}
	if d := c.Timeout.D(); d < 5*time.Millisecond || d > 10*time.Second {
		fs.Keyf(prefix+".timeout", "%v is out of range: 5ms to 10s", c.Timeout)
	}
	if c.Pool < 1 || c.Pool > 10_000 {
		fs.Keyf(prefix+".pool", "%d is out of range: 1 to 10000", c.Pool)
	}
	if c.BreakerFailures < 1 {
		fs.Keyf(prefix+".breaker_failures", "%d is out of range: at least 1", c.BreakerFailures)
	}
	if c.Fallback != Embedded && c.Fallback != Memory && c.Fallback != Pass {
		fs.Keyf(prefix+".fallback", "unknown fallback %q (one of embedded, memory, pass)", c.Fallback)
	}
	if d := c.Cache.D(); d < 0 || d > 24*time.Hour {
		fs.Keyf(prefix+".cache", "%v is out of range: 0s to 1d", c.Cache)
	}
	if c.CacheSize < 0 || c.CacheSize > 100_000_000 {
		fs.Keyf(prefix+".cache_size", "%d is out of range: 0 to 100000000", c.CacheSize)
	}
	if d := c.BreakerPause.D(); d < 10*time.Millisecond || d > 5*time.Minute {
		fs.Keyf(prefix+".breaker_pause", "%v is out of range: 10ms to 5m", c.BreakerPause)
	}
}
