package resolver

import (
	"fmt"
	"net/netip"
	"time"

	"postern/internal/conf"
)

// Config is the [dns] section.
type Config struct {
	// Servers are the addresses of the recursive name servers, in the order
	// in which they are preferred: "127.0.0.1", "127.0.0.1:5353", "::1" or
	// "[::1]:5353". Empty: those of /etc/resolv.conf, read again when that file
	// changes. A validating resolver on the same host is the best choice: DNS
	// lists refuse those that many share. Default [].
	Servers []string `toml:"servers"`
	// Timeout is how long one server has to answer one query before the next
	// one is asked. Default "2s".
	Timeout conf.Duration `toml:"timeout"`
	// Attempts is how many queries one look-up may take, over all servers;
	// every server is asked at least once. Default 3.
	Attempts int `toml:"attempts"`
	// MaxInFlight is how many look-ups may wait for a server at one time.
	// More of them queue, each until its own deadline, up to 16 times as many;
	// beyond that they fail at once. Default 512.
	MaxInFlight int `toml:"max_in_flight"`
	// CacheSize is how many answers are kept. A usual one takes about 200 bytes;
	// one counts once for each started 512 bytes. Default 100000.
	CacheSize int `toml:"cache_size"`
	// MinTTL is the least time an answer is kept, whatever its TTL.
	// Default "5s".
	MinTTL conf.Duration `toml:"min_ttl"`
	// MaxTTL is the most time an answer is kept, whatever its TTL.
	// Default "1d".
	MaxTTL conf.Duration `toml:"max_ttl"`
	// NegativeTTL is the most time a "does not exist" is kept; below it the
	// zone's SOA record decides (RFC 2308). Default "1h".
	NegativeTTL conf.Duration `toml:"negative_ttl"`
	// ServFailTTL is how long a failed look-up is not tried again
	// (RFC 9520). Default "5s".
	ServFailTTL conf.Duration `toml:"servfail_ttl"`
	// StaleFor is how long after its TTL an answer is still given when no
	// server can be asked (RFC 8767). "0" never does. Default "1h".
	StaleFor conf.Duration `toml:"stale_for"`
	// StaleWait is how long a look-up waits for the servers before it is
	// content with a stale answer. Default "1s".
	StaleWait conf.Duration `toml:"stale_wait"`
	// StaleRetry is how long stale answers are given at once, without asking,
	// after the servers failed. Default "30s".
	StaleRetry conf.Duration `toml:"stale_retry"`
}

// DefaultConfig returns the values of an empty section.
func DefaultConfig() Config {
	return Config{
		Timeout:     conf.Duration(2 * time.Second),
		Attempts:    3,
		MaxInFlight: 512,
		CacheSize:   100_000,
		MinTTL:      conf.Duration(5 * time.Second),
		MaxTTL:      conf.Duration(24 * time.Hour),
		NegativeTTL: conf.Duration(time.Hour),
		ServFailTTL: conf.Duration(5 * time.Second),
		StaleFor:    conf.Duration(time.Hour),
		StaleWait:   conf.Duration(time.Second),
		StaleRetry:  conf.Duration(30 * time.Second),
	}
}

// maxServers bounds the list of servers; each costs a wait when all are down.
const maxServers = 8

// Validate reports every fault; prefix is the section's full key ("dns").
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if len(c.Servers) > maxServers {
		fs.Keyf(prefix+".servers", "%d servers are too many: at most %d", len(c.Servers), maxServers)
	}
	seen := make(map[netip.AddrPort]int)
	for i, s := range c.Servers {
		key := fmt.Sprintf("%s.servers[%d]", prefix, i)
		addr, err := parseServer(s)
		if err != nil {
			fs.Keyf(key, "%v", err)
			continue
		}
		if first, ok := seen[addr]; ok {
			fs.Keyf(key, "%q is the same server as servers[%d]", s, first)
			continue
		}
		seen[addr] = i
	}
	duration := func(key string, d conf.Duration, least, most time.Duration) {
		if d.D() < least || d.D() > most {
			fs.Keyf(prefix+"."+key, "%v is out of range: %v to %v", d, conf.Duration(least), conf.Duration(most))
		}
	}
	number := func(key string, n, least, most int) {
		if n < least || n > most {
			fs.Keyf(prefix+"."+key, "%d is out of range: %d to %d", n, least, most)
		}
	}
	const day = 24 * time.Hour
	duration("timeout", c.Timeout, 10*time.Millisecond, 30*time.Second)
	number("attempts", c.Attempts, 1, 10)
	number("max_in_flight", c.MaxInFlight, 1, 10_000)
	number("cache_size", c.CacheSize, 100, 10_000_000)
	duration("min_ttl", c.MinTTL, 0, time.Hour)
	duration("max_ttl", c.MaxTTL, time.Second, 7*day)
	duration("negative_ttl", c.NegativeTTL, time.Second, day)
	duration("servfail_ttl", c.ServFailTTL, time.Second, 5*time.Minute) // RFC 9520 section 3.2
	duration("stale_for", c.StaleFor, 0, 7*day)                         // RFC 8767 section 5
	duration("stale_wait", c.StaleWait, 0, 30*time.Second)
	duration("stale_retry", c.StaleRetry, time.Second, time.Hour)
	if c.MinTTL > c.MaxTTL {
		fs.Keyf(prefix+".min_ttl", "%v is more than max_ttl, %v", c.MinTTL, c.MaxTTL)
	}
}

// parseServer reads an address with an optional port; 53 without.
func parseServer(s string) (netip.AddrPort, error) {
	addr, err := netip.ParseAddr(s)
	if err == nil {
		return checkServer(s, netip.AddrPortFrom(addr, 53))
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address with an optional port, such as 127.0.0.1, 127.0.0.1:5353 or [::1]:5353", s)
	}
	return checkServer(s, ap)
}

func checkServer(s string, ap netip.AddrPort) (netip.AddrPort, error) {
	switch {
	case ap.Port() == 0:
		return netip.AddrPort{}, fmt.Errorf("%q has port 0", s)
	case ap.Addr().IsMulticast():
		return netip.AddrPort{}, fmt.Errorf("%q is a multicast address", s)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}
