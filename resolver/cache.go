package resolver

import (
	"net/netip"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/miekg/dns"
)

type key struct {
	name  string // normalised
	qtype uint16
}

// lookupTypes are the types that are looked up.
var lookupTypes = []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypePTR, dns.TypeMX}

// answer is what is known of a name and type. It is immutable.
type answer struct {
	addrs []netip.Addr
	texts []string
	mx    []MX
	err   *failure // a failed look-up that is not tried again yet

	expires time.Time // by the TTL
	keep    time.Time // as a stale answer
	// retry is until when a stale answer is given without asking.
	retry time.Time
}

var nothing = &answer{}

func newCache(cfg Config) (*otter.Cache[key, *answer], error) {
	return otter.New(&otter.Options[key, *answer]{
		MaximumWeight: uint64(cfg.CacheSize),
		Weigher:       func(_ key, a *answer) uint32 { return uint32(1 + a.size()/512) },
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[key, *answer]) time.Duration {
			return max(time.Until(e.Value.keep), time.Millisecond)
		}),
	})
}

// size is about how many bytes the answer takes.
func (a *answer) size() int {
	n := 24 * len(a.addrs)
	for _, t := range a.texts {
		n += 16 + len(t)
	}
	for _, m := range a.mx {
		n += 24 + len(m.Host)
	}
	return n
}
