// Package near is a store that several gateways share, with what this gateway
// has seen of it kept here.
//
// Triplets that have passed and sides with credit are answered from memory for
// a bounded time, and when they were last seen is written behind. While the
// shared store is away, the gateway's own store goes on by the same rules, and
// what it has learned is merged when the shared one is back. What an
// administrator forgets is forgotten by all gateways within a second.
package near

import (
	"context"
	"errors"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/meter"
	"postern/store"
)

// every is how often the shared store is asked what was forgotten, and told
// what was seen; a third of the second in which a forget is to be everywhere.
const every = 300 * time.Millisecond

// Options are what New needs.
type Options struct {
	// Far is the store that gateways share.
	Far store.Store
	// Local is this gateway's own; nil for none, then nothing goes on without Far.
	Local store.Store
	// Cache is how long what has passed is answered from memory after Far has
	// last said so; 0: never.
	Cache time.Duration
	// MaxCached is the most that is answered from memory.
	MaxCached int
	// Rule is the rule of greylisting in force, for what is merged.
	Rule     func() greylist.Rule
	Log      *zap.Logger
	Registry prometheus.Registerer
}

// Store is both. It is safe for concurrent use.
type Store struct {
	far   store.Store
	local store.Store
	o     Options
	log   *zap.Logger

	seeds [2]maphash.Seed
	cache *otter.Cache[digest, *seen] // nil: none
	epoch atomic.Uint64               // changes with each forget
	dirty dirt

	outage outage
	forget forgets

	hits, fallbacks, lost prometheus.Counter

	stop chan struct{}
	once sync.Once
	done sync.WaitGroup
	end  error
}

var _ store.Store = (*Store)(nil)

// New returns a store over both and starts what keeps them together, which
// Close ends. It closes both then.
func New(o Options) (*Store, error) {
	s := &Store{
		far: o.Far, local: o.Local, o: o, log: o.Log.Named("store"),
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, stop: make(chan struct{}),
	}
	if o.Cache > 0 && o.MaxCached > 0 {
		c, err := otter.New(&otter.Options[digest, *seen]{MaximumSize: o.MaxCached, ExpiryCalculator: otter.ExpiryWriting[digest, *seen](o.Cache)})
		if err != nil {
			return nil, err
		}
		s.cache = c
	}
	s.outage.init()
	s.metrics(o.Registry)
	s.done.Go(s.run)
	return s, nil
}

func (s *Store) metrics(reg prometheus.Registerer) {
	s.hits = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "postern_store_cache_hits_total", Help: "Contacts answered from memory, without the shared store.",
	})
	s.fallbacks = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "postern_store_fallback_total", Help: "Operations done by this gateway's own store because the shared one was away.",
	})
	s.lost = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "postern_store_fallback_dropped_total", Help: "What was learned while the shared store was away and could not be remembered for it.",
	})
	reg.MustRegister(s.hits, s.fallbacks, s.lost, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "postern_store_fallback_pending", Help: "Records learned while the shared store was away that it has not been told yet.",
	}, func() float64 { return float64(s.outage.pending()) }))
}

// away reports whether an error says that the shared store cannot be used and
// this gateway's own is to go on.
func (s *Store) away(err error) bool {
	return s.local != nil && errors.Is(err, store.ErrUnavailable) && !errors.Is(err, context.Canceled)
}

// run tells the shared store what was seen, learns what others have forgotten,
// and merges after an outage.
func (s *Store) run() {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			s.exchange()
		}
	}
}

// exchangeTime bounds one exchange.
const exchangeTime = 5 * time.Second

func (s *Store) exchange() {
	ctx, cancel := context.WithTimeout(context.Background(), exchangeTime)
	defer cancel()
	if err := s.far.Ping(ctx); err != nil {
		return // what is to be told keeps
	}
	if err := s.learnForgets(ctx); err != nil {
		return
	}
	s.writeBehind(ctx)
	s.merge(ctx)
}

// TouchGreylist implements greylist.Store.
func (s *Store) TouchGreylist(ctx context.Context, c *greylist.Contact) (greylist.Outcome, error) {
	if s.cache != nil && !c.DryRun {
		if out, ok := s.cached(c); ok {
			s.hits.Inc()
			return out, nil
		}
	}
	if s.outage.pending() > 0 {
		if err := s.tell(ctx, c); s.away(err) { // what was learned of it goes first
			return s.alone(ctx, c)
		} else if err != nil {
			return greylist.Outcome{}, err
		}
	}
	epoch := s.epoch.Load()
	out, err := s.far.TouchGreylist(ctx, c)
	if s.away(err) {
		return s.alone(ctx, c)
	}
	if err != nil || c.DryRun {
		return out, err
	}
	entries := entriesOf(c, &out)
	if s.cache != nil {
		s.remember(c, &out, epoch)
	}
	if s.local != nil {
		// So that the next outage finds it. A fault of the own store is its own to tell.
		_, _ = s.local.MergeGreylist(ctx, entries[:], &c.Rule, c.Time)
	}
	return out, nil
}

// entriesOf is what an outcome tells of the contact's triplet, or of who waits,
// and of its credit.
func entriesOf(c *greylist.Contact, out *greylist.Outcome) []greylist.Entry {
	entries := make([]greylist.Entry, 0, 2)
	pair := greylist.Entry{Match: c.Match, Sender: c.Sender, Recipient: c.Recipient, First: out.First, Last: c.Time, Attempts: out.Attempts}
	switch {
	case out.State == greylist.KnownClient:
	case out.State.Delays(), c.Held(out):
		pair.Kind, pair.Since = greylist.KindWaiting, out.First
		entries = append(entries, pair)
	default:
		pair.Kind, pair.Passes = greylist.KindTriplet, 1
		entries = append(entries, pair)
	}
	if c.Earns() && out.Passes > 0 && !c.Held(out) {
		e := greylist.Entry{Kind: greylist.KindCredit, Credit: c.Credit, First: c.Time, Last: c.Time, Counted: c.Time, Passes: out.Passes}
		if out.State == greylist.KnownClient { // it is as old as it must be
			e.First = c.Time.Add(-c.Rule.KnownAge)
			e.Counted = e.First
			e.Passes = max(e.Passes, c.Rule.KnownAfter)
		}
		entries = append(entries, e)
	}
	return entries
}

// ListGreylist implements greylist.AdminStore.
func (s *Store) ListGreylist(ctx context.Context, f greylist.Filter, now time.Time, yield func(greylist.Entry) bool) error {
	s.writeBehind(ctx)
	return s.far.ListGreylist(ctx, f, now, yield)
}

// CountGreylist implements greylist.AdminStore.
func (s *Store) CountGreylist(ctx context.Context, now time.Time) (greylist.Counts, error) {
	return s.far.CountGreylist(ctx, now)
}

// MergeGreylist implements greylist.AdminStore.
func (s *Store) MergeGreylist(ctx context.Context, entries []greylist.Entry, r *greylist.Rule, now time.Time) (greylist.Merged, error) {
	out, err := s.far.MergeGreylist(ctx, entries, r, now)
	if err == nil && s.local != nil {
		_, _ = s.local.MergeGreylist(ctx, entries, r, now) // as above
	}
	return out, err
}

// TakeMeters implements meter.Store. While the shared store is away each
// gateway counts for itself, from what it has counted in outages before.
func (s *Store) TakeMeters(ctx context.Context, now time.Time, takes []meter.Take, peek bool) ([]meter.Level, bool, error) {
	levels, taken, err := s.far.TakeMeters(ctx, now, takes, peek)
	if s.away(err) {
		s.fallback(err)
		return s.local.TakeMeters(ctx, now, takes, peek)
	}
	return levels, taken, err
}

// Status implements store.Store.
func (s *Store) Status() store.Status {
	st := s.far.Status()
	if s.local != nil {
		own := s.local.Status()
		st.Fallback = &store.Fallback{Kind: own.Kind, Where: own.Where, Healthy: own.Healthy, LastError: own.LastError, Entries: own.Entries}
		st.Fallback.Since, st.Fallback.Alone = s.outage.since()
		st.Fallback.ToMerge = s.outage.pending()
	}
	return st
}

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error { return s.far.Ping(ctx) }

// Close implements store.Store.
func (s *Store) Close(ctx context.Context) error {
	s.once.Do(func() {
		close(s.stop)
		s.done.Wait()
		if s.cache != nil {
			defer s.cache.StopAllGoroutines()
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		if s.far.Ping(last) == nil && s.learnForgets(last) == nil {
			s.writeBehind(last)
			s.merge(last)
		}
		cancel()
		s.end = s.far.Close(ctx)
		if s.local != nil {
			s.end = errors.Join(s.end, s.local.Close(ctx))
		}
	})
	return s.end
}
