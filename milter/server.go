package milter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	gomilter "github.com/d--j/go-milter"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/dialog"
	"postern/internal/door"
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
	// Keep is given, when the door stops, what the next process needs to go on
	// with the open sessions (Resume); it keeps copies. nil: sessions end with
	// the process.
	Keep func([]*os.File) error

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
	cut    atomic.Int64  // messages that Stop has ended
	early  chan struct{} // one element for each look-up under way

	door      *door.Door
	mu        sync.Mutex
	entrances map[entranceKey]*entrance
	conns     map[*door.Conn]*conn      // where sessions are kept
	keeping   []keptSession             // given up
	resuming  map[net.Conn]*keptSession // not begun yet
	wg        sync.WaitGroup            // libraries and early look-ups
}

// Early look-ups: how many at once, and for how long.
const (
	maxEarly  = 256
	earlyTime = 10 * time.Second
)

// New returns a door that is not open yet.
func New(cfg Config, o Options) *Server {
	log := o.Log.Named("milter")
	s := &Server{
		o: o, log: log, metrics: newMetrics(o.Metrics), entrances: make(map[entranceKey]*entrance),
		conns: make(map[*door.Conn]*conn), resuming: make(map[net.Conn]*keptSession),
		early: make(chan struct{}, maxEarly), started: strconv.FormatInt(time.Now().UnixNano(), 36),
	}
	kind := door.Options{Name: "milter", Section: "milter", Serve: s.serve, Settled: settled}
	if o.Keep != nil {
		kind.Release = s.release
	}
	s.door = door.New(kind, log, o.Metrics)
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
	frame := cfg.FrameTimeout.D()
	err := s.door.Configure(cfg.Listen, door.Limits{
		Connections: cfg.MaxConnections, Open: frame, Request: frame, Write: cfg.WriteTimeout.D(),
	}, in)
	if err == nil {
		s.cfg.Store(&cfg)
	}
	return err
}

// Addresses returns where the door listens.
func (s *Server) Addresses() []net.Addr { return s.door.Addresses() }

// entranceKey tells entrances apart: by the address, and by what was agreed on
// in an earlier process, where sessions go on.
type entranceKey struct {
	address string
	agreed  agreement
}

// entrance is one address. The library accepts from it the guarded connections
// that the door has let in.
type entrance struct {
	*Server
	address *listen.Address
	agreed  agreement // zero: sessions begin here
	feed    chan *conn
	lib     *gomilter.Server
}

// entranceOf returns an entrance, made when it is first needed.
func (s *Server) entranceOf(a *listen.Address, agreed agreement) *entrance {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := entranceKey{a.String(), agreed}
	e := s.entrances[key]
	if e == nil {
		e = &entrance{Server: s, address: a, agreed: agreed, feed: make(chan *conn)}
		e.lib = e.library()
		s.entrances[key] = e
		s.wg.Go(func() { _ = e.lib.Serve(e) }) // it ends when the feed does
	}
	return e
}

// Accept implements [net.Listener] for the library.
func (e *entrance) Accept() (net.Conn, error) {
	c, ok := <-e.feed
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close implements [net.Listener]; the feed ends when the door has stopped.
func (e *entrance) Close() error { return nil }

// Addr implements [net.Listener].
func (e *entrance) Addr() net.Addr { return entranceAddr(e.address.String()) }

type entranceAddr string

func (a entranceAddr) Network() string { return "milter" }
func (a entranceAddr) String() string  { return string(a) }

// chain is the chain of the sessions that come in here.
func (e *entrance) chain(cfg *Config) string {
	if c := e.address.Chain; c != "" {
		return c
	}
	return cfg.Chain
}

// serve hands a connection to the library and waits for its end.
func (s *Server) serve(dc *door.Conn) {
	ended := make(chan struct{})
	c := newConn(dc.Conn, dc, func(*conn) { close(ended) })
	var agreed agreement
	if s.o.Keep != nil {
		c.givenUp = s.givenUp
	}
	s.mu.Lock()
	if k := s.resuming[dc.Conn]; k != nil {
		delete(s.resuming, dc.Conn)
		if len(k.Said) > 0 {
			agreed, c.past, c.lost, c.phase = k.Agreed, k.past(), k.Message, door.Waiting
		}
		c.hasTold = k.told
		defer k.told()
	}
	if s.o.Keep != nil {
		s.conns[dc] = c
	}
	s.mu.Unlock()
	s.entranceOf(dc.Address, agreed).feed <- c
	<-ended
	s.mu.Lock()
	delete(s.conns, dc)
	s.mu.Unlock()
	s.ended(c)
}

// ended counts and logs why a session ends. Postfix ends one with QUIT, or by
// closing it once the session can bring nothing more.
func (s *Server) ended(c *conn) {
	bad, err := &s.metrics.bad, c.err
	switch {
	case errors.Is(err, door.ErrGivenUp):
		return
	case c.door.Stopped():
		if c.message.Load() {
			s.cut.Add(1)
			s.metrics.cut.Inc()
		}
		return
	case c.door.Late():
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

// settled is how long a session must have been quiet, with no message under
// way, before Stop closes it: most are about to end by themselves.
const settled = time.Second

// Stop closes the listeners and lets messages under way finish. Sessions are
// kept for the next process (Options.Keep): those without a message at once, the
// others when Drain is over, or ctx; the message is deferred then. Where they
// are not kept, a session is closed once it has been quiet for a second, and all
// are in the end: Postfix goes by its milter_default_action for the rest of
// such an SMTP session. Stop may be called more than once.
func (s *Server) Stop(ctx context.Context) error {
	bound, cancel := context.WithTimeout(ctx, s.cfg.Load().Drain.D())
	defer cancel()
	defer context.AfterFunc(bound, s.cancel)()
	before := s.cut.Load()
	_ = s.door.Stop(bound) // what matters of it is what was cut
	if err := s.keep(); err != nil {
		s.log.Error("sessions could not be kept", zap.Error(err))
	}
	s.cancel()
	s.mu.Lock()
	for _, e := range s.entrances {
		close(e.feed)
		// The library's goroutines have nothing left to do.
		_ = e.lib.Shutdown(context.Background()) // there is nothing to wait for
	}
	clear(s.entrances)
	s.mu.Unlock()
	s.wg.Wait()
	if cut := s.cut.Load() - before; cut > 0 {
		return fmt.Errorf("milter: stop: %d sessions were cut with a message under way", cut)
	}
	return nil
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
	st := Status{Max: s.cfg.Load().MaxConnections, Messages: s.metrics.total.Load(), Paused: int(s.paused.Load())}
	st.Listen, st.Sessions = s.door.Status()
	return st
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }
