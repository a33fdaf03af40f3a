package resolver

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/miekg/dns"
)

// key names a look-up.
type key struct {
	name  string // see normalize
	qtype uint16
}

// lookupTypes are the types that are ever asked for.
var lookupTypes = [...]uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypePTR, dns.TypeMX}

// answer is what is known of a key. It does not change, but for retry.
type answer struct {
	addrs []netip.Addr // A, AAAA
	texts []string     // TXT, PTR
	mx    []MX

	failure *failure      // why there is nothing of the above
	ttl     time.Duration // as the servers said; clamped before it is kept
	expires time.Time     // then it is stale
	keep    time.Duration // how long it stays in the cache

	retry atomic.Int64 // Unix nanoseconds: until then it is given stale, unasked
}

// nothing stands for the answer of a look-up that failed.
var nothing = new(answer)

// negative reports whether the answer is that there is nothing.
func (a *answer) negative() bool {
	return a.failure == nil && len(a.addrs)+len(a.texts)+len(a.mx) == 0
}

// entryUnit is how many octets count as one entry of cache_size.
const entryUnit = 512

// weight estimates how much memory an entry needs, in units.
func weight(k key, a *answer) uint32 {
	const (
		self     = 200 // the answer, its key and the cache's own node
		addrSize = 24
		textSize = 16
		mxSize   = 24
	)
	size := self + len(k.name) + len(a.addrs)*addrSize
	for _, t := range a.texts {
		size += textSize + len(t)
	}
	for _, m := range a.mx {
		size += mxSize + len(m.Host)
	}
	if a.failure != nil {
		size += 64 + len(a.failure.detail)
	}
	return uint32((size + entryUnit - 1) / entryUnit)
}

func newCache(cfg Config) (*otter.Cache[key, *answer], error) {
	return otter.New(&otter.Options[key, *answer]{
		MaximumWeight:    uint64(cfg.CacheSize),
		Weigher:          weight,
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[key, *answer]) time.Duration { return e.Value.keep }),
	})
}

// clamp bounds the time for which an answer may be kept.
func (c *Config) clamp(a *answer) {
	switch {
	case a.failure != nil:
		a.ttl = c.ServFailTTL.D()
	case a.negative():
		a.ttl = min(max(a.ttl, c.MinTTL.D()), c.NegativeTTL.D())
	default:
		a.ttl = min(max(a.ttl, c.MinTTL.D()), c.MaxTTL.D())
	}
}

// remember keeps a new answer. A failure does not replace an older answer that
// is still good enough to be given stale; it stops the asking for a while.
func (r *Resolver) remember(k key, a *answer) {
	now := time.Now()
	r.cfg.clamp(a)
	a.expires = now.Add(a.ttl)
	a.keep = a.ttl
	switch {
	case a.failure != nil:
		if errors.Is(a.failure, ErrClosed) {
			return
		}
		if old, ok := r.cache.GetIfPresent(k); ok && old.failure == nil {
			old.retry.Store(now.Add(r.cfg.StaleRetry.D()).UnixNano())
			return
		}
	case a.ttl <= 0: // valid for this once
		r.cache.Invalidate(k)
		return
	default:
		a.keep += r.cfg.StaleFor.D()
	}
	k.name = strings.Clone(k.name) // a part of a larger text would keep all of it
	r.cache.Set(k, a)
}
