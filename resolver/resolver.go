// Package resolver is the one DNS client of the daemon: a stub resolver that
// asks recursive servers over UDP, and TCP where an answer does not fit, and
// remembers what they said.
//
// It keeps to RFC 1035 and 2181 (messages, TTLs), 2308 (negative answers),
// 5452 (what makes an answer hard to forge), 6891 (EDNS), 8767 (stale
// answers) and 9520 (failures are remembered, briefly).
//
// All look-ups of one name and type at one time share one query. What waits
// for a server is bounded, and so are the cache and the number of goroutines.
package resolver

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Resolver looks names up. Its methods are safe for concurrent use.
//
// A name is given as text, with or without the trailing dot; letters outside
// ASCII become A-labels. Slices that look-ups return are shared: they must
// not be changed. A name that does not exist, or has no records of the type,
// is an answer: an empty slice, a nil error and the time for which that holds.
// The ttl is how long the answer may be kept; cached says that nobody was
// asked for it. Errors are those of this package.
type Resolver struct {
	cfg     Config
	log     *zap.Logger
	metrics *metrics
	cache   *otter.Cache[key, *entry]
	epoch   time.Time // see now
	flights flights
	servers serverList

	upstream func(context.Context, key) *answer // ask, but in tests
	observe  func(Recorded)                     // nil: nobody does

	hits, misses, stale atomic.Uint64

	ctx    context.Context // ends with Close; look-ups outlive their callers
	cancel context.CancelFunc
	closed sync.Once
}

// New returns a resolver. cfg has been validated. It reads /etc/resolv.conf
// when cfg names no servers, and sends nothing. Metrics of an earlier resolver
// on the same registry are continued. The caller calls Close.
func New(cfg Config, log *zap.Logger, reg prometheus.Registerer) (*Resolver, error) {
	return newResolver(cfg, log, reg, "/etc/resolv.conf")
}

func newResolver(cfg Config, log *zap.Logger, reg prometheus.Registerer, resolvConf string) (*Resolver, error) {
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	r := &Resolver{cfg: cfg, log: log.Named("resolver"), metrics: m, epoch: time.Now()}
	if err := r.servers.init(cfg, resolvConf, r.log, m, r.probe); err != nil {
		return nil, err
	}
	r.cache, err = r.newCache()
	if err != nil {
		return nil, err
	}
	r.flights.init(cfg.MaxInFlight)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.upstream = r.ask
	m.live.add(r)
	return r, nil
}

// ask asks the servers, as often as the configuration allows. A server that
// said something is not asked again, since it would say the same.
func (r *Resolver) ask(ctx context.Context, k key) *answer {
	q, err := newQuery(k)
	if err != nil {
		return failed(k, err, "")
	}
	servers := r.servers.order()
	left := max(r.cfg.Attempts, len(servers))
	kind, detail := ErrUnreachable, ""
	for len(servers) > 0 {
		var again []*server
		for _, s := range servers {
			if left == 0 {
				return failed(k, kind, detail)
			}
			left--
			a, res, text := s.ask(ctx, q)
			switch {
			case a != nil:
				return a
			case ctx.Err() != nil:
				return failed(k, ErrClosed, "")
			case res == resTimeout && s.healthy():
				again = append(again, s) // the packet may have been lost
			}
			kind, detail = res.kind(), text
		}
		servers = again
	}
	return failed(k, kind, detail)
}

// probe asks a server that did not answer whether it does now.
func (r *Resolver) probe(s *server) {
	r.flights.background(func() {
		_, _, _ = s.ask(r.ctx, rootQuery) // any answer makes it healthy
	})
}

// Close ends the look-ups under way and waits for them. Later ones fail with
// [ErrClosed], except those that the cache can answer. It may be called twice.
func (r *Resolver) Close() {
	r.closed.Do(func() {
		r.cancel()
		r.flights.close()
		r.servers.close()
		r.metrics.live.remove(r)
		r.cache.StopAllGoroutines()
	})
}

// LookupA returns the IPv4 addresses of a name.
func (r *Resolver) LookupA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error) {
	rs, ttl, cached, err := r.lookup(ctx, name, dns.TypeA)
	return rs.addrs, ttl, cached, err
}

// LookupAnewA is LookupA past the cache: the servers are asked, or who asks
// them is joined, and what they say is kept. No stale answer is given.
func (r *Resolver) LookupAnewA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error) {
	n, err := normalize(name)
	if err != nil {
		return nil, 0, false, invalidName(name, dns.TypeA)
	}
	rs, ttl, cached, err := r.wait(ctx, key{n, dns.TypeA}, nil, true)
	return rs.addrs, ttl, cached, err
}

// LookupAAAA returns the IPv6 addresses of a name.
func (r *Resolver) LookupAAAA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error) {
	rs, ttl, cached, err := r.lookup(ctx, name, dns.TypeAAAA)
	return rs.addrs, ttl, cached, err
}

// LookupTXT returns the texts of a name, one for each record: the strings of
// a record are joined without anything between them (RFC 7208 section 3.3).
// They are octets as they came, not checked for anything.
func (r *Resolver) LookupTXT(ctx context.Context, name string) (texts []string, ttl time.Duration, cached bool, err error) {
	rs, ttl, cached, err := r.lookup(ctx, name, dns.TypeTXT)
	return rs.texts, ttl, cached, err
}

// LookupPTR returns the names that an address claims, in lower case and
// without trailing dot. Nobody has verified them.
func (r *Resolver) LookupPTR(ctx context.Context, addr netip.Addr) (names []string, ttl time.Duration, cached bool, err error) {
	rs, ttl, cached, err := r.lookup(ctx, ReverseName(addr), dns.TypePTR)
	return rs.texts, ttl, cached, err
}

// LookupMX returns the mail exchangers of a domain, the preferred first.
func (r *Resolver) LookupMX(ctx context.Context, name string) (mx []MX, ttl time.Duration, cached bool, err error) {
	rs, ttl, cached, err := r.lookup(ctx, name, dns.TypeMX)
	return rs.mx, ttl, cached, err
}

// Flush forgets what is known of a name, or of an address its reverse name;
// "" forgets everything. A look-up under way is not affected.
func (r *Resolver) Flush(name string) {
	if name == "" {
		r.cache.InvalidateAll()
		return
	}
	names := []string{name}
	if addr, err := netip.ParseAddr(name); err == nil {
		names = append(names, ReverseName(addr))
	}
	for _, n := range names {
		n, err := normalize(n)
		if err != nil {
			continue // nothing is cached under it
		}
		for _, qtype := range lookupTypes {
			r.cache.Invalidate(key{n, qtype})
		}
	}
}

// Status returns what is known of each server, in the order of preference.
func (r *Resolver) Status() []ServerStatus {
	servers := r.servers.list()
	out := make([]ServerStatus, len(servers))
	for i, s := range servers {
		out[i] = s.status()
	}
	return out
}

// Stats returns counts since the start.
func (r *Resolver) Stats() Stats {
	inFlight, queued := r.flights.counts()
	return Stats{
		Entries:  r.cache.EstimatedSize(),
		Hits:     r.hits.Load(),
		Misses:   r.misses.Load(),
		Stale:    r.stale.Load(),
		InFlight: inFlight,
		Queued:   queued,
	}
}
