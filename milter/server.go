package milter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	gomilter "github.com/d--j/go-milter"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/dialog"
	"postern/internal/listen"
	"postern/policy"
)

// Handler decides about envelopes and content. It is called concurrently.
type Handler interface {
	// Decide writes its decision to d, which is empty. Both values belong to
	// the caller again once it has returned.
	Decide(ctx context.Context, req *policy.Request, d *policy.Decision)
	// Inspect begins to look at a message: req is its envelope at StageData,
	// to its recipients, and both stay unchanged until End or Abandon. It
	// returns nil when nobody is interested.
	Inspect(req *policy.Request, to []policy.Address) Content
	// Wants says what the handler has to see of the sessions of a chain. A
	// session keeps to the answer that was given when it began.
	Wants(chain string) Wants
}

// Wants is what a handler has to see.
type Wants struct {
	// Stages are those at which it wants to decide about the envelope.
	Stages policy.StageSet
	// Content is set when it looks at header fields, Bodies when it looks at
	// bodies too.
	Content, Bodies bool
	// Early is set when look-ups are to begin at connect. The MTA then waits
	// for an answer to that event: one without an answer stays in its buffer
	// until MAIL, when the client has long spoken.
	Early bool
}

// Content is one message that is being looked at, by one goroutine. Either End
// or Abandon is called once, as the last method.
type Content interface {
	Header(f policy.Field)
	EndOfHeaders()
	// Body reports whether more of the body is wanted.
	Body(p []byte) (more bool)
	// End writes the decision to d, which is empty, and returns the edits that
	// count. req is the request at StageEndOfMessage.
	End(ctx context.Context, req *policy.Request, d *policy.Decision) []policy.Edit
	Abandon()
}

// Options is what a Server is built from.
type Options struct {
	Handler Handler
	// Hostname is a name of this host, for ExemptSenders; the MTA tells its own.
	Hostname string
	// Dialogs joins this door with the policy door; nil: it stands alone.
	Dialogs *dialog.Table
	// Early is called when a client connects and the handler wants it, in a
	// goroutine of its own that nobody waits for, so that look-ups begin before
	// the client has spoken; nil: nobody wants to know. ctx ends soon.
	Early func(ctx context.Context, c policy.Client)
	// Known reports whether a client is known good and need not wait for its
	// greeting; nil: none is. ctx ends soon.
	Known func(ctx context.Context, c policy.Client) bool

	Log     *zap.Logger
	Metrics prometheus.Registerer
}

// Server is the door. Its methods are safe for concurrent use.
type Server struct {
	o       Options
	log     *zap.Logger
	metrics *metrics
	cfg     atomic.Pointer[Config]
	started string // makes instances of this process its own

	ctx    context.Context // of decisions; ends when Stop's bound is reached
	cancel context.CancelFunc

	paused atomic.Int64
	early  chan struct{} // one element for each look-up under way

	mu        sync.Mutex
	listeners listen.Set
	libraries []*gomilter.Server
	conns     map[*conn]struct{}
	stopping  bool
	over      bool           // the time for what is under way is over
	wg        sync.WaitGroup // connections, accept loops and early look-ups
	watching  bool
	watcher   sync.WaitGroup
	done      chan struct{} // ends the watcher
	once      sync.Once
}

// Early look-ups: how many at once, and for how long.
const (
	maxEarly  = 256
	earlyTime = 10 * time.Second
)

// New returns a door that is not open yet.
func New(cfg Config, o Options) *Server {
	s := &Server{
		o: o, log: o.Log.Named("milter"), metrics: newMetrics(o.Metrics), conns: make(map[*conn]struct{}), done: make(chan struct{}),
		early: make(chan struct{}, maxEarly), started: strconv.FormatInt(time.Now().UnixNano(), 36),
	}
	s.cfg.Store(&cfg)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	warnTo.Store(s.log)
	return s
}

// warnTo is where the library's warnings go: it has one variable for the whole
// process, which must be set before its first use.
var warnTo = func() *atomic.Pointer[zap.Logger] {
	to := new(atomic.Pointer[zap.Logger])
	gomilter.LogWarning = func(format string, v ...any) {
		if log := to.Load(); log != nil {
			log.Warn("session ends", zap.String("why", fmt.Sprintf(format, v...)))
		}
	}
	return to
}()

// Configure opens the addresses of cfg that are not open yet, closes those
// that are no longer wanted, and applies the rest of cfg to what comes from
// now on; sessions keep what they have negotiated. When an address cannot be
// opened nothing changes.
func (s *Server) Configure(cfg Config, in *listen.Inherited) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return errors.New("milter: stopping")
	}
	opened, closed, err := s.listeners.Change(cfg.Listen, in)
	if err != nil {
		return err
	}
	for _, o := range closed {
		s.log.Info("no longer listening", zap.Stringer("address", o.Address))
	}
	s.cfg.Store(&cfg)
	if !s.watching {
		s.watching = true
		s.watcher.Go(s.watch)
	}
	for _, o := range opened {
		d := &door{Server: s, opened: o}
		lib := d.library()
		s.libraries = append(s.libraries, lib)
		s.log.Info("listening", zap.Stringer("address", o.Address))
		s.wg.Go(func() {
			_ = lib.Serve(d) // it ends when the listener does, and has said why
		})
	}
	return nil
}

// Addresses returns where the door listens.
func (s *Server) Addresses() []net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners.Addrs()
}

// door is one address. The library accepts from it and gets guarded
// connections, no more than there may be.
type door struct {
	*Server
	opened *listen.Opened
}

func (d *door) Addr() net.Addr { return d.opened.Addr() }
func (d *door) Close() error   { return d.opened.Close() }

// chain is the chain of the sessions that come in here.
func (d *door) chain(cfg *Config) string {
	if c := d.opened.Address.Chain; c != "" {
		return c
	}
	return cfg.Chain
}

func (d *door) Accept() (net.Conn, error) {
	for {
		nc, err := listen.Accept(d.opened, func(err error) {
			d.metrics.acceptErrors.Inc()
			d.log.Warn("cannot accept a connection, trying again", zap.Error(err))
		})
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				d.log.Error("no longer listening", zap.Stringer("address", d.opened.Address), zap.Error(err))
			}
			return nil, err
		}
		if c := d.admit(nc); c != nil {
			return c, nil
		}
	}
}

func (s *Server) limits() limits {
	cfg := s.cfg.Load()
	return limits{cfg.FrameTimeout.D(), cfg.WriteTimeout.D()}
}

// admit returns nil when there are too many connections. One that comes just as
// the listener is closed is served: nobody else would, and Postfix does not ask
// again.
func (s *Server) admit(nc net.Conn) *conn {
	c := newConn(nc, s.limits, s.ended)
	s.mu.Lock()
	full := len(s.conns) >= s.cfg.Load().MaxConnections
	if full || s.over {
		s.mu.Unlock()
		_ = nc.Close() // refused
		if full {
			s.metrics.refused.Inc()
			s.log.Warn("too many sessions, closing a new one: raise milter.max_connections", zap.Int("open", s.cfg.Load().MaxConnections))
		}
		return nil
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	s.metrics.open.Inc()
	return c
}

// ended counts and logs why a session ends. Postfix ends one with QUIT, or by
// closing it once the session can bring nothing more.
func (s *Server) ended(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.metrics.open.Dec()
	defer s.wg.Done()
	bad, err := &s.metrics.bad, c.err
	switch {
	case c.told.Load():
		return
	case c.late.Load():
		bad.slow.Inc()
		err = errors.New("it took too long")
	case errors.Is(err, errTooLong):
		bad.tooLong.Inc()
	case errors.Is(err, errMalformed):
		bad.malformed.Inc()
	case err == nil || errors.Is(err, io.EOF) && c.in == c.ok && !c.message.Load():
		return
	default:
		bad.broken.Inc()
		s.log.Debug("session broke", zap.Error(err))
		return
	}
	s.log.Warn("closing a session", zap.String("peer", c.RemoteAddr().String()), zap.Error(err))
}

// watch closes the connections that have been too long in their phase. It
// looks often enough to be at most a quarter of a limit late.
func (s *Server) watch() {
	for {
		l := s.limits()
		select {
		case <-s.done:
			return
		case now := <-time.After(min(min(l.frame, l.write)/4, time.Second)):
			s.mu.Lock()
			for c := range s.conns {
				if c.expired(now) {
					c.late.Store(true)
					_ = c.Conn.Close() // its goroutine ends
				}
			}
			s.mu.Unlock()
		}
	}
}

// settled is how long a session must have been quiet, with no message under
// way, before Stop closes it: most are about to end by themselves.
const settled = time.Second

// Stop closes the listeners and lets messages under way finish. A session is
// closed once it has been quiet for a second; when Drain is over, or ctx, all
// are. Postfix goes by its milter_default_action for the rest of an SMTP
// session whose milter session was closed. Stop may be called more than once.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	s.listeners.Close()
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		s.once.Do(func() { close(s.done) })
		s.watcher.Wait()
		close(done)
	}()
	bound, cancel := context.WithTimeout(ctx, s.cfg.Load().Drain.D())
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	cut := 0
	for wait := true; wait; {
		s.closeQuiet(time.Now().Add(-settled))
		select {
		case <-done:
			wait = false
		case <-bound.Done():
			s.cancel()
			cut = s.closeAll()
			<-done
			wait = false
		case <-tick.C:
		}
	}
	s.cancel()
	// The library's goroutines have nothing left to do.
	for _, lib := range s.libraries {
		_ = lib.Shutdown(context.Background()) // there is nothing to wait for
	}
	if cut > 0 {
		return fmt.Errorf("milter: stop: %d sessions were cut with a message under way", cut)
	}
	return nil
}

func (s *Server) closeQuiet(before time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.quietSince(before) {
			c.told.Store(true)
			_ = c.Conn.Close() // its goroutine ends
		}
	}
}

// closeAll closes all connections and returns how many messages it has cost.
func (s *Server) closeAll() (cut int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for c := range s.conns {
		if c.message.Load() {
			cut++
			s.metrics.cut.Inc()
		}
		c.told.Store(true)
		_ = c.Conn.Close() // its goroutine ends
	}
	return cut
}

// Status is what `postern status` shows of the door.
type Status struct {
	Listen   []string `json:"listen"`
	Sessions int      `json:"sessions"`
	Max      int      `json:"max_connections"`
	Messages uint64   `json:"messages"`
	Paused   int      `json:"paused"`
}

// Status returns the present state.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := s.cfg.Load()
	return Status{
		Listen: s.listeners.Texts(cfg.Listen), Sessions: len(s.conns), Max: cfg.MaxConnections,
		Messages: s.metrics.total.Load(), Paused: int(s.paused.Load()),
	}
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }
