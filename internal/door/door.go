// Package door is what the doors that Postfix keeps connections to have in
// common: listening sockets that can be changed while running, a bound on
// connections, limits on how long a connection may take over each part of its
// work, and an end that lets work under way finish.
package door

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/listen"
	"postern/internal/quickack"
)

// Limits bound connections. A time of 0 is no limit.
type Limits struct {
	Connections int           // open at once
	Open        time.Duration // until the first request has come
	Idle        time.Duration // without a request
	Request     time.Duration // from a request's first byte to its last
	Answer      time.Duration // from there until there is an answer
	Write       time.Duration // to send it
}

// Door accepts connections. Its methods are safe for concurrent use.
type Door struct {
	name       string // of the package
	section    string
	serve      func(*Conn)
	reconnects bool
	settled    time.Duration
	release    func(*Conn, bool) bool
	keep       func([]*os.File) error
	log        *zap.Logger

	open         prometheus.Gauge
	refused      prometheus.Counter
	evicted      prometheus.Counter
	acceptErrors prometheus.Counter

	ctx    context.Context // parent of those of the connections
	cancel context.CancelFunc
	limits atomic.Pointer[Limits]

	mu        sync.Mutex
	wanted    []listen.Address
	listeners listen.Set
	given     []*listen.Opened // those of Serve
	kept      []*os.File       // of connections that were given up
	conns     map[*Conn]struct{}
	stopping  bool
	over      bool           // the time for stopping is over
	wg        sync.WaitGroup // connections and accept loops
	watching  bool
	watcher   sync.WaitGroup
	done      chan struct{} // ends the watcher
	once      sync.Once
}

// Options say what kind of door it is.
type Options struct {
	// Name is that of the package: of log lines and metrics.
	Name string
	// Section is that of the configuration, for advice in log lines.
	Section string
	// Serve serves one connection, which is closed when it returns. It is
	// called in a goroutine of its own.
	Serve func(*Conn)
	// Reconnects says that clients do not mind when a connection is closed
	// between two requests: they open another and repeat what they have asked.
	// Then the connection that has been idle longest makes room for a new one
	// where there are too many, and Stop closes all that wait for a request.
	Reconnects bool
	// Settled is how long a connection must have been quiet before Stop closes
	// it, where clients do not reconnect: a transaction under way asks again
	// within this time. Default 500ms.
	Settled time.Duration
	// Release gives up a connection instead of closing it, for somebody else to
	// go on with, and reports whether it can: the connection's Serve returns
	// soon. Stop calls it for a connection that waits with nothing under way,
	// more than once if need be, and at the end of its time, with last, for each
	// that waits.
	Release func(c *Conn, last bool) bool
	// Keep says that connections have no state between two requests: Stop gives
	// them to it, for the next process ([Door.Readopt]). Serve calls
	// [Conn.GivesUp] when a read has failed. It is called once; it keeps copies.
	Keep func([]*os.File) error
}

// New returns a door that is not open yet. Its metrics
// postern_<name>_connections... go to reg.
func New(o Options, log *zap.Logger, reg prometheus.Registerer) *Door {
	d := &Door{
		name: o.Name, section: o.Section, serve: o.Serve, reconnects: o.Reconnects, settled: o.Settled, release: o.Release, keep: o.Keep, log: log,
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postern_" + o.Name + "_connections", Help: "Open connections.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_" + o.Name + "_connections_refused_total", Help: "Connections closed because there were too many.",
		}),
		acceptErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_" + o.Name + "_accept_errors_total", Help: "Connections that could not be accepted.",
		}),
		conns: make(map[*Conn]struct{}), done: make(chan struct{}),
	}
	reg.MustRegister(d.open, d.refused, d.acceptErrors)
	if d.reconnects {
		d.evicted = prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_" + o.Name + "_connections_evicted_total", Help: "Idle connections closed to make room for new ones.",
		})
		reg.MustRegister(d.evicted)
	}
	if d.keep != nil {
		d.release = interrupt
	}
	switch {
	case o.Reconnects, d.release != nil:
		d.settled = 0
	case d.settled == 0:
		d.settled = settled
	}
	d.limits.Store(&Limits{})
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Configure opens the addresses that are not open yet, closes those that are
// no longer wanted, and applies the limits to what comes from now on. When an
// address cannot be opened nothing changes.
func (d *Door) Configure(addresses []listen.Address, limits Limits, in *listen.Inherited) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopping {
		return fmt.Errorf("%s: stopping", d.name)
	}
	opened, closed, err := d.listeners.Change(addresses, in)
	if err != nil {
		return err
	}
	for _, o := range closed {
		d.log.Info("no longer listening", zap.Stringer("address", o.Address))
	}
	d.limits.Store(&limits)
	d.wanted = addresses
	if !d.watching {
		d.watching = true
		d.watcher.Go(d.watch)
	}
	for _, o := range opened {
		d.log.Info("listening", zap.Stringer("address", o.Address))
		d.wg.Go(func() { d.accept(o) })
	}
	return nil
}

// Serve accepts from a listener that somebody else has opened, until it is
// closed by whoever that was or by Stop.
func (d *Door) Serve(o *listen.Opened) {
	d.mu.Lock()
	d.given = append(d.given, o)
	if !d.watching {
		d.watching = true
		d.watcher.Go(d.watch)
	}
	d.mu.Unlock()
	d.wg.Go(func() { d.accept(o) })
}

// Addresses returns where the door listens.
func (d *Door) Addresses() []net.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.listeners.Addrs()
}

// Limits returns those in force.
func (d *Door) Limits() *Limits { return d.limits.Load() }

// Status returns the addresses that are open, as written and in that order,
// and the number of connections.
func (d *Door) Status() (open []string, connections int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.listeners.Texts(d.wanted), len(d.conns)
}

func (d *Door) accept(o *listen.Opened) {
	for {
		c, err := listen.Accept(o, func(err error) {
			d.acceptErrors.Inc()
			d.log.Warn("cannot accept a connection, trying again", zap.Error(err))
		})
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				d.log.Error("no longer listening", zap.Stringer("address", o.Address), zap.Error(err))
			}
			return
		}
		d.admit(o, c)
	}
}

// Adopt serves a connection that somebody else has accepted, as one that came in
// by address, or closes it and reports false.
func (d *Door) Adopt(address *listen.Address, c net.Conn) bool {
	return d.admit(&listen.Opened{Address: *address}, c)
}

// admit serves a connection, or closes it and reports false.
func (d *Door) admit(o *listen.Opened, nc net.Conn) bool {
	c := &Conn{Conn: nc, Address: &o.Address, Acker: quickack.Of(nc), door: d}
	limits := d.limits.Load()
	if limits.Open > 0 {
		c.Enter(Opening, time.Now())
	} else {
		c.Enter(Waiting, time.Now())
	}
	d.mu.Lock()
	limit := limits.Connections
	full := len(d.conns) >= limit
	var old *Conn
	if full && d.reconnects && !d.stopping {
		if old = d.idlest(time.Now()); old != nil {
			delete(d.conns, old)
			full = false
		}
	}
	// One that comes just as the listener is closed is served: nobody else
	// would.
	if full || d.over {
		d.mu.Unlock()
		if full { // counted first: who sees the end can rely on it
			d.refused.Inc()
			d.log.Warn("too many connections, closing a new one: raise "+d.section+".max_connections", zap.Int("open", limit))
		}
		_ = nc.Close() // refused
		return false
	}
	c.ctx, c.cancel = context.WithCancel(d.ctx)
	d.conns[c] = struct{}{}
	d.wg.Add(1)
	d.mu.Unlock()
	if old != nil {
		d.evicted.Inc()
		old.end()
	}
	d.open.Inc()
	go func() {
		defer d.wg.Done()
		d.serve(c)
		_ = nc.Close() // nobody is left to tell
		c.cancel()
		d.mu.Lock()
		delete(d.conns, c)
		d.mu.Unlock()
		d.open.Dec()
	}()
	return true
}

// spare is how long a connection must have been idle to be closed in favour of
// a new one.
const spare = time.Second

// idlest returns the connection that has been idle longest, nil when none has
// been for long. d.mu is held.
func (d *Door) idlest(now time.Time) *Conn {
	var found *Conn
	since := now.Add(-spare).UnixNano()
	for c := range d.conns {
		if at := c.since.Load(); c.phase.Load() == int32(Waiting) && at < since {
			found, since = c, at
		}
	}
	return found
}

// watch ends what takes too long. It looks often enough to be at most a
// quarter of a limit late.
func (d *Door) watch() {
	for {
		limits := d.limits.Load()
		every := time.Second
		for _, one := range []time.Duration{limits.Open, limits.Request, limits.Answer, limits.Write} {
			if one > 0 {
				every = min(every, one/4)
			}
		}
		select {
		case <-d.done:
			return
		case now := <-time.After(every):
			d.mu.Lock()
			for c := range d.conns {
				c.enforce(limits, now)
			}
			d.mu.Unlock()
		}
	}
}

// settled is the default of Options.Settled.
const settled = 500 * time.Millisecond

// Stop closes the listeners, lets what is under way finish, and closes each
// connection once it has been quiet for Options.Settled, or at once where
// clients reconnect; at ctx's end it closes the rest. It may be called more than
// once.
func (d *Door) Stop(ctx context.Context) error {
	d.mu.Lock()
	d.stopping = true
	d.listeners.Close()
	for _, o := range d.given {
		_ = o.Close() // its accept loop ends
	}
	d.mu.Unlock()

	err := d.finish(ctx)
	if keepErr := d.keepAll(); keepErr != nil {
		err = errors.Join(err, fmt.Errorf("%s: stop: %w", d.name, keepErr))
	}
	return err
}

// finish waits for the connections to end.
func (d *Door) finish(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		d.wg.Wait()
		d.once.Do(func() { close(d.done) })
		d.watcher.Wait()
		close(done)
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		d.closeQuiet(time.Now().Add(-d.settled))
		select {
		case <-done:
			d.cancel()
			return nil
		case <-ctx.Done():
			d.cancel()
			d.releaseAll(done)
			d.closeAll()
			<-done
			return fmt.Errorf("%s: stop: %w", d.name, ctx.Err())
		case <-tick.C:
		}
	}
}

func (d *Door) closeQuiet(before time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if c.quietSince(before) && (d.release == nil || !d.release(c, false)) {
			c.end()
		}
	}
}

// lastWait is how long Stop waits for connections that are being released.
const lastWait = 500 * time.Millisecond

// releaseAll releases what waits. done is closed when nothing is left.
func (d *Door) releaseAll(done <-chan struct{}) {
	if d.release == nil {
		return
	}
	d.mu.Lock()
	for c := range d.conns {
		if p := Phase(c.phase.Load()); p == Waiting || p == Opening {
			d.release(c, true)
		}
	}
	d.mu.Unlock()
	select {
	case <-done:
	case <-time.After(lastWait):
	}
}

func (d *Door) closeAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	for c := range d.conns {
		c.end()
	}
}
