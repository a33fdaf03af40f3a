// Package app builds the daemon out of its parts, starts it, reloads it and
// stops it. It is the only package that knows all others.
package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"

	"postern/admin"
	"postern/config"
	"postern/dialog"
	"postern/internal/listen"
	"postern/internal/mailaddr"
	"postern/internal/reference"
	"postern/journal"
	"postern/lookup"
	"postern/milter"
	"postern/pipeline"
	"postern/policy"
	"postern/policyd"
	"postern/resolver"
	"postern/store"
	"postern/store/bolt"
	"postern/store/mem"
	"postern/store/near"
	"postern/store/redis"
)

// Options is what App needs beside the configuration.
type Options struct {
	Version string
	Log     *zap.Logger
	// Load reads the configuration again, for a reload.
	Load func() (*config.Config, error)
	// Inherited are the sockets that systemd handed over; nil: none.
	Inherited *listen.Inherited
	// Keep gives files to the service manager under a name, which hands them to
	// the next process as Inherited.Kept; Forget has it close them. nil: there
	// is none that does.
	Keep   func(name string, files []*os.File) error
	Forget func(name string) error
	// Reloaded is called with each configuration that has come into force by
	// a reload; nil: nobody wants to know.
	Reloaded func(*config.Config)
}

// App is one daemon. Start and Stop are called once each, in this order; the
// other methods are safe for concurrent use in between.
type App struct {
	o        Options
	log      *zap.Logger
	registry *prometheus.Registry
	metrics  *metrics
	parts    parts
	journal  *journal.Journal
	shelf    journal.Shelf // nil: traces cannot be shared
	door     *policyd.Server
	milter   *milter.Server
	lookup   *lookup.Server
	started  time.Time

	tuner     *tuner
	roomWatch *roomWatch
	admin     *admin.Server
	adminDone chan error
	console   *consoleDoor // nil: there is none

	reload  sync.Mutex // one reload at a time
	current atomic.Pointer[generation]
	state   atomic.Pointer[admin.ConfigStatus]
	retired sync.WaitGroup // generations that wait for their last decisions
}

// New builds a daemon that is not started. It opens the store, nothing else.
func New(cfg *config.Config, o Options) (a *App, err error) {
	a = &App{o: o, log: o.Log, registry: prometheus.NewRegistry(), started: time.Now()}
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.metrics = newMetrics(a.registry, o.Version)
	refs := reference.NewSource(cfg.Journal.NodeOf(cfg.Hostname))
	st, err := a.openStore(cfg, o.Log, a.registry)
	if err != nil {
		return nil, err
	}
	a.journal = journal.New(cfg.Journal, journal.Options{Dir: cfg.JournalDir(), Shelf: a.shelf, References: refs, Log: o.Log, Metrics: a.registry})
	a.parts = parts{
		log: o.Log, reg: a.registry, store: st, journal: a.journal, refs: refs, metrics: pipeline.NewMetrics(a.registry), permits: pipeline.NewPermits(),
		tables: lookup.NewTableMetrics(a.registry), dialogs: dialog.New(maxDialogs),
	}
	if a.journal.KeepsAnswers() {
		a.parts.answers = a.keepAnswer
	}
	g, err := build(cfg, a.parts, nil)
	if err != nil {
		return nil, errors.Join(err, st.Close(context.Background()))
	}
	roomMetrics(st, a.registry)
	a.current.Store(g)
	a.state.Store(&admin.ConfigStatus{Path: cfg.Path, Loaded: a.started})
	a.door = policyd.New(cfg.Policy, a, a.keeper(policyConnections), o.Log, a.registry)
	a.door.Join(a.parts.dialogs)
	a.milter = milter.New(cfg.Milter, milter.Options{
		Handler: a, Hostname: cfg.Hostname, Dialogs: a.parts.dialogs, Early: a.early, Known: a.known, Keep: a.keeper(milterSessions),
		Log: o.Log, Metrics: a.registry,
	})
	a.lookup = lookup.New(cfg.Lookup, o.Log, a.registry)
	return a, nil
}

// keepAnswer keeps what the DNS has said, but for names with a secret in them.
func (a *App) keepAnswer(r resolver.Recorded) {
	if g := a.current.Load(); g == nil || g.cfg.RBL.Keyed(r.Name) {
		return
	}
	a.journal.Answer(journal.Answer{Time: time.Now(), Name: r.Name, Type: r.Type, Records: r.Records, Failure: r.Failure, TTL: r.TTL})
}

func (a *App) openStore(cfg *config.Config, log *zap.Logger, reg prometheus.Registerer) (store.Store, error) {
	switch cfg.Store.Kind {
	case store.Memory:
		return mem.New(cfg.Store.MaxEntries, cfg.Store.MaxWaiting), nil
	case store.Redis:
		return a.openShared(cfg, log, reg)
	}
	return bolt.Open(cfg.Store, log, reg)
}

// openShared opens a store that several gateways share, with what this one
// keeps of it.
func (a *App) openShared(cfg *config.Config, log *zap.Logger, reg prometheus.Registerer) (store.Store, error) {
	password, err := cfg.Secret(cfg.Store.Redis.PasswordFile)
	if err != nil {
		return nil, err
	}
	sentinel, err := cfg.Secret(cfg.Store.Redis.SentinelPasswordFile)
	if err != nil {
		return nil, err
	}
	far, err := redis.Open(cfg.Store, password, sentinel, log, reg)
	if err != nil {
		return nil, err
	}
	a.shelf = far
	var local store.Store
	switch cfg.Store.Redis.Fallback {
	case store.Embedded:
		// Its metrics are those of a store of its own.
		if local, err = bolt.Open(cfg.Store, log, prometheus.NewRegistry()); err == nil {
			break
		}
		log.Error("the fallback's file cannot be used: this gateway goes on with what it has in memory when Redis is away", zap.Error(err))
		fallthrough
	case store.Memory:
		local = mem.New(cfg.Store.MaxEntries, cfg.Store.MaxWaiting)
	}
	st, err := near.New(near.Options{
		Far: far, Local: local, Cache: cfg.Store.Redis.Cache.D(), MaxCached: cfg.Store.Redis.CacheSize, Rule: a.rule, Log: log, Registry: reg,
	})
	if err != nil {
		err = errors.Join(err, far.Close(context.Background()))
		if local != nil {
			err = errors.Join(err, local.Close(context.Background()))
		}
		return nil, err
	}
	return st, nil
}

// Start starts the checks' timers and opens the doors. When it fails, what it
// had started is stopped again.
func (a *App) Start() (err error) {
	g := a.current.Load()
	a.journal.Start()
	g.start()
	a.tuner = startTuner()
	a.roomWatch = watchRoom(a.parts.store, a.parts.log)
	defer func() {
		if err != nil {
			a.Stop(context.Background())
		}
	}()
	if err := a.startAdmin(g.cfg); err != nil {
		return err
	}
	if err := a.startConsole(g.cfg); err != nil {
		return err
	}
	// The milter's sessions begin before the first policy question of a client.
	if err := a.configureLookup(g, a.o.Inherited); err != nil {
		return err
	}
	if err := a.milter.Configure(g.cfg.Milter, a.o.Inherited); err != nil {
		return err
	}
	a.resumeSessions()
	if err := a.door.Configure(g.cfg.Policy, a.o.Inherited); err != nil {
		return err
	}
	a.resumePolicy()
	for _, s := range a.o.Inherited.Unused() {
		a.log.Warn("a socket from systemd is for no address of the configuration", zap.String("socket", s))
	}
	a.metrics.reloaded(true, a.started)
	return nil
}

func (a *App) startAdmin(cfg *config.Config) error {
	if cfg.Admin.Listen == "" {
		return nil
	}
	var addr listen.Address
	if err := addr.UnmarshalText([]byte(cfg.Admin.Listen)); err != nil {
		return err
	}
	token, err := cfg.Secret(cfg.Admin.TokenFile)
	if err != nil {
		return err
	}
	if addr.Network == "unix" && !strings.Contains(cfg.Admin.Listen, ",mode=") {
		addr.Mode = adminMode
	}
	l, err := listen.Open(&addr, a.o.Inherited)
	if err != nil {
		return err
	}
	a.admin = admin.NewServer(a, a.calls(), token, a.registry, a.log.Named("admin"))
	a.adminDone = make(chan error, 1)
	go func() { a.adminDone <- a.admin.Serve(l) }()
	return nil
}

// adminMode is the mode of the administrator's socket when none is set: who
// can open it can forget greylist entries and see addresses of mail.
const adminMode = 0o660

// Stop closes the doors, lets decisions under way finish, and writes the
// state; it takes no longer than ctx. What it could not do in that time it logs.
func (a *App) Stop(ctx context.Context) {
	a.stopDoors(ctx)
	a.journal.Hush()
	a.console.stop(ctx, a.log)
	if a.admin != nil {
		if err := errors.Join(a.admin.Stop(ctx), <-a.adminDone); err != nil {
			a.log.Warn("admin door", zap.Error(err))
		}
	}
	a.reload.Lock()
	defer a.reload.Unlock()
	a.retired.Wait()
	g := a.current.Load()
	g.stop()
	g.resolver.Close()
	a.roomWatch.end()
	a.roomWatch = nil
	a.tuner.close()
	a.journal.Stop(ctx)
	if err := a.parts.store.Close(ctx); err != nil {
		a.log.Error("the state could not be saved", zap.Error(err))
	}
}

// stopDoors closes the milter door before the others: a message under way
// there is one about which smtpd still has to ask them. If they were closed
// already, its question would wait in their sockets for the next daemon, and
// the milter door for its answer.
func (a *App) stopDoors(ctx context.Context) {
	stop := func(ctx context.Context, name string, f func(context.Context) error) {
		if err := f(ctx); err != nil {
			a.log.Warn("some connections were cut off", zap.String("door", name), zap.Error(err))
		}
	}
	first := ctx
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		first, cancel = context.WithDeadline(ctx, end.Add(-time.Until(end)/4)) // some time is for the others
		defer cancel()
	}
	stop(first, "milter", a.milter.Stop)
	var others sync.WaitGroup
	others.Go(func() { stop(ctx, "policy", a.door.Stop) })
	others.Go(func() { stop(ctx, "lookup", a.lookup.Stop) })
	others.Wait()
}

// Decide implements policyd.Handler.
func (a *App) Decide(ctx context.Context, req *policy.Request, d *policy.Decision) {
	g := a.use()
	defer g.users.Add(-1)
	g.pipeline.Decide(ctx, req, d)
}

// use returns the current generation with one more user, which keeps it
// running until the user is gone.
func (a *App) use() *generation {
	for {
		g := a.current.Load()
		g.users.Add(1)
		if g == a.current.Load() {
			return g
		}
		g.users.Add(-1) // a reload came between; g may be stopping
	}
}

// Reload reads the configuration again and, if nothing is wrong with it,
// decides by it from the next request on. Otherwise everything stays as it
// is, and the error says why.
func (a *App) Reload(context.Context) error {
	a.reload.Lock()
	defer a.reload.Unlock()
	old := a.current.Load()
	err := a.reloadLocked(old)
	now := time.Now()
	if err != nil {
		st := *a.state.Load()
		st.Fault, st.FaultAt = err.Error(), now
		a.state.Store(&st)
		a.metrics.reloaded(false, now)
		a.log.Error("reload refused, the old configuration stays in force", zap.Error(err))
		return err
	}
	g := a.current.Load()
	st := &admin.ConfigStatus{Path: g.cfg.Path, Loaded: now, Restarts: restarts(old.cfg, g.cfg)}
	a.state.Store(st)
	a.metrics.reloaded(true, now)
	a.log.Info("configuration reloaded", zap.Strings("waits_for_restart", st.Restarts))
	if a.o.Reloaded != nil {
		a.o.Reloaded(g.cfg)
	}
	return nil
}

func (a *App) reloadLocked(old *generation) error {
	cfg, err := a.o.Load()
	if err != nil {
		return err
	}
	if _, faults, err := Expectations(context.Background(), cfg, false); err != nil || faults.Err() != nil {
		return errors.Join(err, faults.Err())
	}
	g, err := build(cfg, a.parts, old)
	if err != nil {
		return err
	}
	g.start()
	err = a.door.Configure(cfg.Policy, nil)
	if err == nil {
		err = a.milter.Configure(cfg.Milter, nil)
	}
	if err == nil {
		err = a.configureLookup(g, nil)
	}
	if err != nil {
		// The doors that had been opened anew go back to where they were.
		err = errors.Join(err, a.door.Configure(old.cfg.Policy, nil), a.milter.Configure(old.cfg.Milter, nil), a.configureLookup(old, nil))
		g.stop()
		if g.resolver != old.resolver {
			g.resolver.Close()
		}
		return err
	}
	a.current.Store(g)
	a.retired.Go(func() {
		old.drain()
		old.stop()
		if g.resolver != old.resolver {
			old.resolver.Close()
		}
	})
	return nil
}

// restarts names the settings that differ and are only read at start.
func restarts(old, cfg *config.Config) []string {
	var out []string
	if !reflect.DeepEqual(old.Store, cfg.Store) {
		out = append(out, "store")
	}
	if old.Log.Output != cfg.Log.Output || old.Log.Format != cfg.Log.Format {
		out = append(out, "log.output and log.format")
	}
	if old.Admin != cfg.Admin {
		out = append(out, "admin")
	}
	if !reflect.DeepEqual(old.Console, cfg.Console) {
		out = append(out, "console")
	}
	if old.Landlock != cfg.Landlock {
		out = append(out, "landlock")
	}
	if old.Journal != cfg.Journal || old.JournalDir() != cfg.JournalDir() {
		out = append(out, "journal")
	}
	return out
}

// Alive makes a decision that touches nothing outside the process, and says
// whether it came in time: the watchdog is fed by it.
func (a *App) Alive(ctx context.Context) error {
	var d policy.Decision
	req := &policy.Request{
		Time: time.Now(), Stage: policy.StageConnect, Door: "watchdog", DryRun: true,
		Client: policy.Client{Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1})},
	}
	a.Decide(ctx, req, &d)
	return ctx.Err()
}

// Ready implements admin.Backend.
func (a *App) Ready(ctx context.Context) error {
	if len(a.door.Addresses()) == 0 {
		return errors.New("no address is open")
	}
	return a.Alive(ctx)
}

// Addresses returns where the policy door listens.
func (a *App) Addresses() []net.Addr { return a.door.Addresses() }

// Explain implements admin.Backend. The client's names are looked up as
// Postfix does when the question does not give them.
func (a *App) Explain(ctx context.Context, q admin.Question) (*policy.Decision, error) {
	addr, err := netip.ParseAddr(q.Client)
	if err != nil {
		return nil, fmt.Errorf("client %q is not an IP address", q.Client)
	}
	stage := policy.StageRcpt
	if q.Stage != "" {
		if err := stage.UnmarshalText([]byte(q.Stage)); err != nil {
			return nil, err
		}
	}
	g := a.use()
	defer g.users.Add(-1)
	if _, ok := g.cfg.Chains[q.Context]; q.Context != "" && !ok {
		return nil, fmt.Errorf("there is no chain %q", q.Context)
	}
	req := &policy.Request{
		Time: time.Now(), Stage: stage, Door: "explain", Context: q.Context, ESMTP: true,
		Client: policy.Client{Addr: addr.Unmap().WithZone(""), Name: mailaddr.Domain(q.ClientName), ReverseName: mailaddr.Domain(q.Reverse)},
		Helo:   q.Helo, Sender: mailaddr.Parse(q.Sender), Recipient: mailaddr.Parse(q.Recipient),
		SASL: policy.SASL{Username: q.Login}, DryRun: true, Probe: new(policy.Probe),
	}
	if q.ClientName == "" && q.Reverse == "" {
		req.Client.Name, req.Client.ReverseName = g.namesOf(ctx, req.Client.Addr)
	}
	d := new(policy.Decision)
	g.pipeline.Decide(ctx, req, d)
	return d, nil
}

// Status implements admin.Backend.
func (a *App) Status(context.Context) *admin.Status {
	g := a.current.Load()
	st := &admin.Status{
		Version: a.o.Version, PID: os.Getpid(), Hostname: g.cfg.Hostname, Started: a.started, Mode: g.cfg.Mode,
		Config: *a.state.Load(), Chains: map[string][]admin.CheckMode{}, Goroutines: runtime.NumGoroutine(), Parts: a.status(g),
	}
	for name, checks := range g.pipeline.Chains() {
		modes := g.pipeline.Modes(name)
		for _, c := range checks {
			st.Chains[name] = append(st.Chains[name], admin.CheckMode{Check: c, Mode: modes[c]})
		}
	}
	return st
}
