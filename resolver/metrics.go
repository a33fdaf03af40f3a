package resolver

import (
	"errors"
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// result is what came of one query to one server.
type result uint8

const (
	resAnswer      result = iota
	resNegative           // no such name, or no records of the type
	resTruncated          // the rest has to be fetched over TCP
	resFormErr            // the server does not understand the query
	resServFail           // the server could not find out
	resRefused            // the server does not want to
	resBad                // the answer makes no sense
	resForged             // too many packets that answer another question
	resTimeout            // silence
	resUnreachable        // the network or the host says no
	resultCount
)

var resultNames = [resultCount]string{
	"answer", "negative", "truncated", "formerr", "servfail", "refused", "bad", "forged", "timeout", "unreachable",
}

func (r result) String() string { return resultNames[r] }

// kind returns the error that a look-up which ends so fails with.
func (r result) kind() error {
	switch r {
	case resAnswer, resNegative:
		return nil
	case resRefused:
		return ErrRefused
	case resTimeout:
		return ErrTimeout
	case resUnreachable:
		return ErrUnreachable
	case resTruncated, resFormErr, resServFail, resBad, resForged:
	}
	return ErrServFail
}

// transport is how a query is sent.
type transport uint8

const (
	overUDP transport = iota
	overTCP
	transportCount
)

func (t transport) String() string { return [...]string{"udp", "tcp"}[t] }

// metrics outlive the resolver: the next one on the same registry takes them.
type metrics struct {
	queries            [transportCount][resultCount]prometheus.Counter
	seconds            prometheus.Histogram
	hit, miss, stale   prometheus.Counter
	unwanted, overflow prometheus.Counter
	live               *liveMetrics
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	queries, err := register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_resolver_queries_total", Help: "Queries to name servers, by transport and result.",
	}, []string{"transport", "result"}))
	if err != nil {
		return nil, err
	}
	lookups, err := register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_resolver_lookups_total",
		Help: "Look-ups by where the answer came from: hit (memory), miss (a server, or the wait for one), stale (memory, out of date).",
	}, []string{"source"}))
	if err != nil {
		return nil, err
	}
	m := &metrics{hit: lookups.WithLabelValues("hit"), miss: lookups.WithLabelValues("miss"), stale: lookups.WithLabelValues("stale")}
	for t := range m.queries {
		for r := range m.queries[t] {
			m.queries[t][r] = queries.WithLabelValues(transport(t).String(), result(r).String())
		}
	}
	m.seconds, err = register(reg, prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "postern_resolver_query_seconds", Help: "Time from a query to its answer.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5},
	}))
	if err != nil {
		return nil, err
	}
	m.unwanted, err = register(reg, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "postern_resolver_unwanted_packets_total",
		Help: "Packets that were not the answer to the question: late, garbled or forged.",
	}))
	if err != nil {
		return nil, err
	}
	m.overflow, err = register(reg, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "postern_resolver_queue_full_total", Help: "Look-ups that failed because too many waited already.",
	}))
	if err != nil {
		return nil, err
	}
	m.live, err = register(reg, &liveMetrics{resolvers: make(map[*Resolver]bool)})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// register returns the collector that reg holds by this name: ours, or that of
// an earlier resolver. reg may be nil.
func register[T prometheus.Collector](reg prometheus.Registerer, c T) (T, error) {
	if reg == nil {
		return c, nil
	}
	err := reg.Register(c)
	if err == nil {
		return c, nil
	}
	if twice, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if old, ok := twice.ExistingCollector.(T); ok {
			return old, nil
		}
	}
	return c, fmt.Errorf("resolver: metrics: %w", err)
}

var (
	entriesDesc = prometheus.NewDesc("postern_resolver_cache_entries", "Answers in memory.", nil, nil)
	flightsDesc = prometheus.NewDesc("postern_resolver_in_flight", "Look-ups that wait for a server.", nil, nil)
	queuedDesc  = prometheus.NewDesc("postern_resolver_queued", "Look-ups that wait for their turn.", nil, nil)
	serversDesc = prometheus.NewDesc("postern_resolver_servers", "Name servers by state.", []string{"state"}, nil)
)

// liveMetrics reads its values when it is asked. During a reload there are two
// resolvers: what they hold is added up, the servers are those of the newer.
type liveMetrics struct {
	mu        sync.Mutex
	resolvers map[*Resolver]bool
	newest    *Resolver
}

func (l *liveMetrics) add(r *Resolver) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resolvers[r], l.newest = true, r
}

func (l *liveMetrics) remove(r *Resolver) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.resolvers, r)
	if l.newest != r {
		return
	}
	l.newest = nil
	for other := range l.resolvers { // the one that stays after a failed reload
		l.newest = other
	}
}

// Describe implements [prometheus.Collector].
func (l *liveMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- entriesDesc
	ch <- flightsDesc
	ch <- queuedDesc
	ch <- serversDesc
}

// Collect implements [prometheus.Collector].
func (l *liveMetrics) Collect(ch chan<- prometheus.Metric) {
	var entries, inFlight, queued, up, down int
	l.mu.Lock()
	for r := range l.resolvers {
		s := r.Stats()
		entries += s.Entries
		inFlight += s.InFlight
		queued += s.Queued
	}
	if l.newest != nil {
		for _, s := range l.newest.servers.list() {
			if s.healthy() {
				up++
			} else {
				down++
			}
		}
	}
	l.mu.Unlock()
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	gauge(entriesDesc, entries)
	gauge(flightsDesc, inFlight)
	gauge(queuedDesc, queued)
	gauge(serversDesc, up, "healthy")
	gauge(serversDesc, down, "unhealthy")
}
