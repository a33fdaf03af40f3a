// Package provider is the check that knows the networks of large senders. It
// reads their SPF records (RFC 7208) into lists, keeps the lists right, and
// uses them: a client in a list is exempt from named checks; one that meets the
// conditions of a relay section is permitted to relay, and its message is held
// to those conditions that only the message can show; files and look-ups give
// the lists to Postfix.
//
// A list in force is only ever replaced by a good one. A reading that DNS
// could not answer changes nothing; one that is empty, changes too much, or
// holds networks that are too wide, private or reserved is refused, loudly,
// until an operator accepts it. The last good list is kept on disk and used
// at start.
package provider

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/policy"
)

// Set is all lists of a configuration. Its methods are safe for concurrent use.
type Set struct {
	cfg     Config
	res     Resolver
	reader  Resolver // res past its cache
	log     *zap.Logger
	lists   []*list // in the order of the configuration
	byName  map[string]*list
	own     []domainName
	milter  func(*policy.Client, netip.Addr) (open, content bool)
	memory  *memory
	looks   bool // at messages; so does every set after it
	bodies  bool // likewise
	metrics *metrics

	relayReply, deferReply *policy.Template

	mu     sync.Mutex
	cancel context.CancelFunc // nil when not started
	all    sync.WaitGroup
}

var _ policy.Check = (*Set)(nil)

// Options is what a Set is made from besides its settings.
type Options struct {
	Resolver Resolver
	// Forget drops what the resolver remembers of a name. It is called before
	// each question of a reading: records are read as they are now, not as a
	// cache has them. May be nil.
	Forget func(name string)
	// Shared is the store that the nodes of a fleet have in common; nil
	// without one.
	Shared Shared
	// Milter reports whether the milter door of this daemon has a session open
	// with the client, whom the SMTP server at this address talks to, and
	// whether it is shown the content of messages in it. It is asked before a
	// permit that depends on the message; nil means that there is no milter
	// door. It must not block.
	Milter   func(client *policy.Client, server netip.Addr) (open, content bool)
	Log      *zap.Logger
	Registry prometheus.Registerer
	// Previous is the set that this one takes the place of after a reload:
	// what its lists have learned moves over. May be nil.
	Previous *Set
}

// New returns a set on validated settings. It reads the last good lists and
// the files, and starts nothing.
func New(cfg Config, o Options) (*Set, error) {
	s := &Set{
		cfg: cfg, res: o.Resolver, reader: o.Resolver, log: o.Log.Named("provider"), own: domainSet(cfg.OwnDomains), milter: o.Milter,
		byName: make(map[string]*list, len(cfg.Lists)), memory: new(memory),
	}
	if o.Forget != nil {
		s.reader = fresh{o.Resolver, o.Forget}
	}
	var err error
	if s.relayReply, err = policy.ParseTemplate(cfg.RelayReply, relayReply, replyVars...); err != nil {
		return nil, fmt.Errorf("provider: relay_reply: %w", err)
	}
	if s.deferReply, err = policy.ParseTemplate(cfg.DeferReply, deferReply, replyVars...); err != nil {
		return nil, fmt.Errorf("provider: defer_reply: %w", err)
	}
	var previous map[string]*list
	if o.Previous != nil {
		s.memory, s.metrics, previous = o.Previous.memory, o.Previous.metrics, o.Previous.byName
		s.looks, s.bodies = o.Previous.looks, o.Previous.bodies
	} else {
		s.metrics = newMetrics(o.Registry)
	}
	node := nodeName()
	var faults conf.Faults
	for i := range cfg.Lists {
		l := s.newList(cfg.Lists[i], o.Shared, node)
		fs := l.load(time.Now())
		if l.inherit(previous[l.cfg.Name]) {
			l.install()
		}
		faults = append(faults, fs...)
		l.show()
		s.lists = append(s.lists, l)
		s.byName[l.cfg.Name] = l
	}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Set) newList(c ListConfig, shared Shared, node string) *list {
	l := &list{
		cfg: c, all: &s.cfg, domains: c.domains(), guard: c.guard(s.cfg.Guard), limits: defaultLimits, exports: c.Exports,
		res: s.reader, shared: shared, node: node, log: s.log.With(zap.String("list", c.Name)), metrics: s.metrics.list(c.Name),
		busy: make(chan struct{}, 1), wake: make(chan struct{}, 1),
	}
	l.source = sourceOf(l.domains)
	l.limits.Lookups, l.limits.Depth = s.cfg.MaxLookups, s.cfg.MaxLookups+1
	if l.skip = s.cfg.Skip; c.Skip != nil {
		l.skip = *c.Skip
	}
	for i := range c.Relay {
		l.rules = append(l.rules, newRule(l, i, &c.Relay[i]))
		s.looks = s.looks || c.Relay[i].Content()
		s.bodies = s.bodies || len(c.Relay[i].DKIMDomains) > 0
	}
	return l
}

// inherit takes over what the list that l takes the place of has learned,
// which can be newer than what is on disk. It reports whether there was any.
func (l *list) inherit(old *list) bool {
	if old == nil || old.source != l.source {
		return false
	}
	old.mu.Lock()
	defer old.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if old.doc.Serial < l.doc.Serial {
		return false
	}
	l.doc, l.next, l.failures, l.lastError, l.errorAt, l.told, l.seen = old.doc, old.next, old.failures, old.lastError, old.errorAt, old.told, old.seen
	if l.doc.Serial > 0 && l.doc.How != ByHand && len(l.guard.absolute(prefixesOf(l.doc.Entries), l.cfg.AllowReserved)) > 0 {
		// The guards have become narrower than the list: read it anew.
		l.doc = document{History: l.doc.History, Pending: l.doc.Pending}
		l.next = time.Time{}
	}
	l.snap.Store(old.snap.Load()) // for the Since of files
	return true
}

// nodeName is our name in leases: unlike that of any other process.
func nodeName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return host + "-" + hex.EncodeToString(b[:])
}

// Start begins to read records and to watch files. It does nothing when the
// set has been started already.
func (s *Set) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.metrics.keepOnly(s.byName) // not earlier: the set before may stay in force
	for _, l := range s.lists {
		s.all.Go(func() { l.run(ctx) })
	}
}

// Stop ends what Start began and waits for it. It can be called twice.
func (s *Set) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.all.Wait()
	s.cancel = nil
}

// Table is one list for look-ups: whatever is in force at the time of a
// look-up. It is safe for concurrent use.
type Table struct{ l *list }

// Table returns the list of a name, false if there is none.
func (s *Set) Table(name string) (Table, bool) {
	l, ok := s.byName[name]
	return Table{l}, ok
}

// Names returns the names of the lists, in the order of the configuration.
func (s *Set) Names() []string {
	out := make([]string, len(s.lists))
	for i, l := range s.lists {
		out[i] = l.cfg.Name
	}
	return out
}

// Ready reports whether there is a list at all: false until it has been read
// for the first time.
func (t Table) Ready() bool { return t.l.snap.Load() != nil }

// Contains reports whether an address is in the list. IPv4-mapped addresses
// count as IPv4.
func (t Table) Contains(addr netip.Addr) bool {
	s := t.l.snap.Load()
	return s != nil && s.table.Contains(addr.Unmap())
}

// Lookup returns the entry that holds an address, false if none does. The
// entry must not be changed.
func (t Table) Lookup(addr netip.Addr) (*Entry, bool) {
	e := t.l.snap.Load().find(addr.Unmap())
	return e, e != nil
}

// Prefixes returns the networks, aggregated and sorted. They must not be changed.
func (t Table) Prefixes() []netip.Prefix {
	if s := t.l.snap.Load(); s != nil {
		return slices.Clip(s.prefixes)
	}
	return nil
}
