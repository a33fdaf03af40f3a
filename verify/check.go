// Package verify is the check that refuses recipients which nobody behind
// this host knows, so that no bounce is ever owed for them. It asks tables,
// LDAP directories and the next hop itself (a callout), and remembers the
// answers as Postfix's verify(8) does, but for its known pains: only what
// speaks of the mailbox is a negative answer, a failure is soon tried again,
// the cache can be seen, shared and corrected, and a next hop that takes every
// address or refuses us is found out.
package verify

import (
	"context"
	"crypto/rand"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/filestamp"
	"postern/policy"
	"postern/verify/callout"
	"postern/verify/directory"
)

// Store is where answers are kept, by address. See store.Values for what the
// methods promise.
type Store interface {
	Load(ctx context.Context, key string) (string, error)
	Swap(ctx context.Context, key, old, next string, expires time.Time) (swapped bool, err error)
	Each(ctx context.Context, yield func(key, value string) bool) error
	Count() int
}

// Check verifies recipients. It is safe for concurrent use.
type Check struct {
	cfg      Config
	routes   *routes
	prober   *callout.Prober
	dirs     []*directory.Directory
	store    Store
	log      *zap.Logger
	metrics  *metrics
	holder   string   // names this process in leases
	probe    []string // senders of probes
	deferral *policy.Template
	harvest  *policy.Template
	recorded func(policy.Address) (Result, string)
	clients  *otter.Cache[netip.Prefix, *harvester]
	seed     maphash.Seed // of harvester.last

	watcher filestamp.Watcher // of the files

	ctx  context.Context // of work in the background; ends with Stop
	stop context.CancelFunc
	work sync.WaitGroup

	mu       sync.Mutex
	flights  map[string]*flight // that requests join
	flying   int                // all of them
	asking   map[*question]bool // those whose sources are being asked
	retries  map[string]*time.Timer
	rechecks int // addresses that the administrator wants asked about again
	running  bool
}

var _ policy.Check = (*Check)(nil)

// Options are what a Check needs beside its settings.
type Options struct {
	Hostname string
	// Passwords of the directories, by the name of the directory.
	Passwords map[string]string
	Store     Store
	DNS       callout.Resolver
	// Recorded answers in place of the memory, of directories and of next hops,
	// which are not asked; "" for an address of which it knows nothing. Nil: they
	// are asked.
	Recorded func(a policy.Address) (result Result, detail string)
	Log      *zap.Logger
	Metrics  prometheus.Registerer
}

// maxHarvesters bounds the clients whose unknown recipients are counted.
const maxHarvesters = 100_000

// New returns a check on validated settings. prev, which may be nil, is the
// check that this one takes the place of: what is known of next hops and of
// clients moves over.
func New(cfg Config, o Options, prev *Check) (*Check, error) {
	c := &Check{
		cfg: cfg, store: o.Store, recorded: o.Recorded, log: o.Log.Named("verify"), probe: ProbeSenders(&cfg, o.Hostname),
		flights: make(map[string]*flight), asking: make(map[*question]bool), retries: make(map[string]*time.Timer),
	}
	var err error
	if c.deferral, err = policy.ParseTemplate(cfg.DeferReply, deferReply, replyVars...); err != nil {
		return nil, fmt.Errorf("verify: defer_reply: %w", err)
	}
	if c.harvest, err = policy.ParseTemplate(cfg.HarvestReply, harvestDef, replyVars...); err != nil {
		return nil, fmt.Errorf("verify: harvest_reply: %w", err)
	}
	byName := make(map[string]*directory.Directory, len(cfg.LDAP))
	for _, l := range cfg.LDAP {
		roots, err := callout.LoadRoots(l.CAFile)
		if err != nil {
			return nil, fmt.Errorf("verify: ldap %s: %w", l.Name, err)
		}
		d := directory.New(l, o.Passwords[l.Name], roots)
		byName[l.Name] = d
		c.dirs = append(c.dirs, d)
	}
	if c.routes, err = newRoutes(&cfg, o.Hostname, byName); err != nil {
		return nil, err
	}
	var prober *callout.Prober
	if prev != nil {
		c.metrics, c.clients, c.seed, c.holder, prober = prev.metrics, prev.clients, prev.seed, prev.holder, prev.prober
	} else {
		c.metrics = newMetrics(o.Metrics)
		c.holder, c.seed = rand.Text()[:10], maphash.MakeSeed()
		c.clients = otter.Must(&otter.Options[netip.Prefix, *harvester]{MaximumSize: maxHarvesters})
	}
	c.prober = callout.New(cfg.Callout, o.Hostname, o.DNS, c.log, o.Metrics, prober)
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c, nil
}

// ProbeSenders returns the addresses that probes carry in MAIL FROM: no check
// may hold them up.
func ProbeSenders(cfg *Config, hostname string) []string {
	out := []string{callout.SenderAddress("", hostname)}
	for _, s := range append([]string{cfg.Callout.Sender}, routeSenders(cfg)...) {
		if a := callout.SenderAddress(s, hostname); a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func routeSenders(cfg *Config) []string {
	var out []string
	for i := range cfg.Routes {
		if s := cfg.Routes[i].Sender; s != "" {
			out = append(out, s)
		}
	}
	return out
}

// Start begins to watch the files.
func (c *Check) Start() {
	c.mu.Lock()
	c.running = true
	c.mu.Unlock()
	c.metrics.observe(c)
	if len(c.routes.files) == 0 {
		return
	}
	c.watcher.Start(c.cfg.ReloadInterval.D(), func(now time.Time) {
		for _, f := range c.routes.files {
			f.poll(now, c.log)
		}
	})
}

// Stop ends what goes on in the background, probes under way too. It can be
// called twice, and without Start.
func (c *Check) Stop() {
	c.mu.Lock()
	c.running = false
	for _, t := range c.retries {
		t.Stop()
	}
	clear(c.retries)
	c.mu.Unlock()
	c.watcher.Stop()
	c.stop()
	c.work.Wait()
	c.metrics.forget(c)
	c.prober.Close()
	for _, d := range c.dirs {
		d.Close()
	}
}

// Name implements [policy.Check].
func (c *Check) Name() string { return "verify" }

// Traits implements [policy.Check].
func (c *Check) Traits() policy.Traits { return Traits }

// Traits are those of every verify check.
var Traits = policy.Traits{Stages: policy.Stages(policy.StageRcpt), Waits: true}

// Reasons.
const (
	reasonNoRoute    = "verify-no-route"
	reasonOwnProbe   = "verify-own-probe"
	reasonKnown      = "verify-known"
	reasonUnknown    = "verify-unknown"
	reasonUndecided  = "verify-undecided"
	reasonRefused    = "verify-probe-refused"
	reasonAcceptAll  = "verify-accept-all"
	reasonPending    = "verify-in-progress"
	reasonTemporary  = "verify-temporary"
	reasonDown       = "verify-down"
	reasonUnverified = "verify-down-accepted"
	reasonHarvest    = "verify-harvest"
	reasonDryRun     = "verify-not-asked"
)

// Mark is the suspicion that a client has asked for unknown recipients.
const Mark = "verify-harvest"

// Evaluate implements [policy.Check].
func (c *Check) Evaluate(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	a := req.Recipient
	r := c.routes.find(a.Domain)
	if r == nil || a.Domain == "" {
		c.note(req, "route", "none: the domain is not ours", "")
		return policy.Verdict{Reason: reasonNoRoute}, nil
	}
	c.note(req, "route", r.name, "")
	if c.ownProbe(req.Sender.Raw) {
		return policy.Verdict{Reason: reasonOwnProbe}, nil
	}
	bad := c.harvested(req)
	if c.cfg.HarvestMark > 0 && bad >= c.cfg.HarvestMark {
		req.Facts.Mark(Mark)
	}
	if !sane(a) {
		return policy.Verdict{Reason: reasonUndecided, Detail: "not an address that can be asked about"}, nil
	}
	if e, ok := c.fromFiles(req, r, a); ok {
		return c.decide(req, r, &e), nil
	}
	if c.recorded != nil {
		e := Entry{Source: "recorded"}
		if e.Result, e.Detail = c.recorded(a); e.Result == "" {
			return policy.Verdict{Reason: reasonDryRun, Detail: "nothing is recorded of the address"}, nil
		}
		return c.decide(req, r, &e), nil
	}
	key := c.key(a)
	entry, err := c.recall(ctx, key)
	if err != nil {
		// Without a memory there still is an answer; how many are asked is
		// bounded by the callouts' own limits.
		req.Facts.Missing = append(req.Facts.Missing, "verify: "+err.Error())
		c.metrics.storeErrors.Inc()
	}
	c.noteEntry(req, r, &entry)
	if v, ok := c.remembered(req, r, key, &entry); ok {
		return v, nil
	}
	if v, ok := c.unasked(req, r, bad); ok {
		return v, nil
	}
	f := c.fly(&question{route: r, address: a, key: key})
	if f == nil {
		c.metrics.count(sourceLimits, resultBusy)
		return c.put(req, policy.DeferIfPermit, c.deferral, reasonPending, "too many addresses are being asked about"), nil
	}
	return c.await(ctx, req, r, f), nil
}

// remembered decides by a live entry.
func (c *Check) remembered(req *policy.Request, r *route, key string, e *Entry) (policy.Verdict, bool) {
	if !e.Live(req.Time, &r.times) {
		return policy.Verdict{}, false
	}
	if e.Due(req.Time, &r.times) && !req.DryRun && c.mayAsk(req) {
		c.fly(&question{route: r, address: req.Recipient, key: key, gentle: true})
	}
	c.metrics.count(sourceCache, string(e.Result))
	if e.Result == Known && r.whenDown == DeferAll && c.down(r, req.Recipient, req.Time) {
		return c.put(req, policy.DeferIfPermit, c.deferral, reasonDown, "known, but the next hop is down"), true
	}
	return c.decide(req, r, e), true
}

// unasked decides where nobody is to be asked.
func (c *Check) unasked(req *policy.Request, r *route, bad int) (policy.Verdict, bool) {
	a := req.Recipient
	if hops, err := r.hopsFor(a, &c.cfg); err == nil && c.prober.AcceptsAll(hops, a.Domain, req.Time) && r.onlyCallout() {
		return policy.Verdict{Reason: reasonAcceptAll, Detail: "the next hop takes every address"}, true
	}
	switch {
	case !c.mayAsk(req):
		return policy.Verdict{Reason: reasonOwnProbe, Detail: "the null sender with our own name in HELO: a probe that came back"}, true
	case req.DryRun:
		c.note(req, "would be asked", strings.Join(r.sourceNames(), ", "), "")
		return policy.Verdict{Reason: reasonDryRun, Detail: "not in the cache; `postern verify` asks"}, true
	case c.cfg.HarvestLimit > 0 && bad >= c.cfg.HarvestLimit:
		c.metrics.count(sourceLimits, resultHarvest)
		return c.put(req, policy.DeferIfPermit, c.harvest, reasonHarvest, strconv.Itoa(bad)+" unknown recipients from this client"), true
	case c.down(r, a, req.Time):
		e := Entry{Result: Temporary, Detail: "the next hop is down"}
		return c.decide(req, r, &e), true
	}
	return policy.Verdict{}, false
}

// mayAsk is false for what may be our own probe come back: answering it by
// another probe would never end.
func (c *Check) mayAsk(req *policy.Request) bool {
	return !req.NullSender() || !strings.EqualFold(req.Helo, c.prober.Helo())
}

// await waits for a flight as long as the client may.
func (c *Check) await(ctx context.Context, req *policy.Request, r *route, f *flight) policy.Verdict {
	wait := time.NewTimer(r.wait)
	defer wait.Stop()
	began := time.Now()
	select {
	case <-f.done:
		c.note(req, "asked", f.entry.Detail, f.entry.Source)
		if f.acceptAll {
			return policy.Verdict{Reason: reasonAcceptAll, Detail: "the next hop takes every address"}
		}
		return c.decide(req, r, &f.entry)
	case <-wait.C:
	case <-ctx.Done():
	}
	return c.put(req, policy.DeferIfPermit, c.deferral, reasonPending, "no answer within "+time.Since(began).Round(time.Millisecond).String()+"; it goes on in the background")
}

// decide turns what is known into a verdict.
func (c *Check) decide(req *policy.Request, r *route, e *Entry) policy.Verdict {
	detail := e.Detail
	if e.Result == Known {
		if detail == "" {
			detail = e.Source
		}
		return policy.Verdict{Reason: reasonKnown, Detail: detail}
	}
	if e.Source != "" {
		detail = e.Source + ": " + detail
	}
	switch e.Result {
	case Unknown:
		c.count(req)
		action := policy.Defer
		if r.hard {
			action = policy.Reject
		}
		return c.put(req, action, r.reject, reasonUnknown, detail)
	case Refused:
		return policy.Verdict{Reason: reasonRefused, Detail: detail}
	case Undecided:
		return policy.Verdict{Reason: reasonUndecided, Detail: detail}
	case Temporary, Known:
	}
	if r.whenDown == AcceptAll {
		return policy.Verdict{Reason: reasonUnverified, Detail: detail}
	}
	return c.put(req, policy.DeferIfPermit, c.deferral, reasonTemporary, detail)
}

func (c *Check) put(req *policy.Request, action policy.Action, t *policy.Template, reason, detail string) policy.Verdict {
	return policy.Verdict{Action: action, Reason: reason, Detail: detail, Reply: t.Expand(func(name string) string { return placeholder(name, req) })}
}

func placeholder(name string, req *policy.Request) string {
	switch name {
	case "recipient":
		return req.Recipient.Raw
	case "sender":
		return req.Sender.Raw
	case "helo":
		return req.Helo
	case "client":
		if req.Client.Addr.IsValid() {
			return req.Client.Addr.String()
		}
	}
	return "unknown"
}

// fromFiles asks the sources that are in memory, as far as they stand first.
func (c *Check) fromFiles(req *policy.Request, r *route, a policy.Address) (Entry, bool) {
	for i := range r.instant {
		s := &r.sources[i]
		result, place, ok := s.file.address(a, c.cfg.Delimiters)
		if !ok {
			c.note(req, s.name, "not there", "")
			continue
		}
		if kind := said(result); kind != "" {
			c.note(req, s.name, string(kind), place)
			c.metrics.count(sourceFile, string(kind))
			return Entry{Result: kind, Source: place}, true
		}
	}
	if r.instant < len(r.sources) {
		return Entry{}, false
	}
	c.metrics.count(sourceFile, string(Unknown))
	return Entry{Result: Unknown, Source: r.sources[len(r.sources)-1].name, Detail: "not there"}, true
}

// onlyCallout reports whether nothing but a callout could tell.
func (r *route) onlyCallout() bool {
	return r.instant == len(r.sources)-1 && r.sources[r.instant].callout
}

func (r *route) sourceNames() []string {
	out := make([]string, len(r.sources))
	for i := range r.sources {
		out[i] = r.sources[i].name
	}
	return out
}

// down reports whether a route that only a callout can tell about has no next
// hop that answers.
func (c *Check) down(r *route, a policy.Address, now time.Time) bool {
	if !r.onlyCallout() {
		return false
	}
	hops, err := r.hopsFor(a, &c.cfg)
	return err == nil && c.prober.Down(hops, now)
}

// key is the address as it is remembered.
func (c *Check) key(a policy.Address) string {
	local := a.Local
	if c.cfg.FoldCase {
		local = foldASCII(local)
	}
	if n := len(local); len(a.Raw) == n+1+len(a.Domain) && a.Raw[:n] == local && a.Raw[n+1:] == a.Domain {
		return a.Raw // as it came
	}
	return local + "@" + a.Domain
}

// foldASCII makes ASCII letters small and leaves the rest: the small letter of
// U+212A is an ASCII "k", and what is said of that mailbox must not be
// remembered of another.
func foldASCII(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

func (c *Check) ownProbe(sender string) bool {
	for _, s := range c.probe {
		if strings.EqualFold(s, sender) {
			return true
		}
	}
	return false
}

// sane reports whether an address can stand in RCPT TO.
func sane(a policy.Address) bool {
	if a.Local == "" || len(a.Local) > 64 || len(a.Local)+1+len(a.Domain) > 254 || !utf8.ValidString(a.Raw) {
		return false
	}
	// As an A-label a domain can hold what its spelling does not: U+FF1E is ">".
	for i := range len(a.Domain) {
		if b := a.Domain[i]; b <= ' ' || b == 0x7f || strings.IndexByte(`<>()"\,;@`, b) >= 0 {
			return false
		}
	}
	for i := range len(a.Raw) {
		if b := a.Raw[i]; b < ' ' || b == 0x7f || b == '<' || b == '>' {
			return false
		}
	}
	return true
}

// note writes into an explanation.
func (c *Check) note(req *policy.Request, what, value, source string) {
	if req.Probe != nil {
		req.Probe.Add(what, value, source, 0)
	}
}

func (c *Check) noteEntry(req *policy.Request, r *route, e *Entry) {
	switch {
	case req.Probe == nil:
	case e.Result == "":
		req.Probe.Add("cache", "not there", "store", 0)
	default:
		state := "live"
		if !e.Live(req.Time, &r.times) {
			state = "expired"
		} else if e.Due(req.Time, &r.times) {
			state = "live, to be asked about again"
		}
		req.Probe.Add("cache", fmt.Sprintf("%s since %s (%s): %s", e.Result, req.Time.Sub(e.At).Round(time.Second), state, e.Detail), "store", 0)
	}
}

// harvester counts a client's unknown recipients in a window.
type harvester struct {
	mu    sync.Mutex
	begun time.Time
	n     int
	// last are the recipients counted last: who tries again what was refused
	// with 450 is no harvester.
	last [8]uint64
}

func clientPrefix(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // an invalid address has the zero prefix
	return p
}

// harvested returns how many unknown recipients the client has asked for.
func (c *Check) harvested(req *policy.Request) int {
	h, ok := c.clients.GetIfPresent(clientPrefix(req.Client.Addr))
	if !ok {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if age(req.Time, h.begun) >= c.cfg.HarvestWindow.D() {
		return 0
	}
	return h.n
}

func (c *Check) count(req *policy.Request) {
	if req.DryRun || !req.Client.Addr.IsValid() {
		return
	}
	p := clientPrefix(req.Client.Addr)
	h, _ := c.clients.SetIfAbsent(p, &harvester{begun: req.Time})
	h.mu.Lock()
	defer h.mu.Unlock()
	if age(req.Time, h.begun) >= c.cfg.HarvestWindow.D() {
		h.begun, h.n, h.last = req.Time, 0, [len(h.last)]uint64{}
	}
	hash := maphash.String(c.seed, c.key(req.Recipient)) | 1 // never 0
	if slices.Contains(h.last[:], hash) {
		return
	}
	h.last[h.n%len(h.last)] = hash
	if h.n++; h.n == c.cfg.HarvestLimit || h.n == c.cfg.HarvestMark {
		c.log.Warn("a client asks for unknown recipients", zap.Stringer("client", req.Client.Addr), zap.Int("unknown", h.n),
			zap.Stringer("window", conf.Duration(c.cfg.HarvestWindow)))
	}
}

// Idle implements [policy.Idler]: without a route no domain is ours.
func (c *Check) Idle() bool { return len(c.routes.all) == 0 }
