// Package policyd is the policy delegation door: a server for the protocol
// that Postfix's check_policy_service speaks (SMTPD_POLICY_README). It turns
// attributes into a [policy.Request], has it decided, and answers with one
// action. It knows nothing of checks.
//
// Postfix keeps a connection for many requests and closes it when idle; a
// connection closed by the server in between costs Postfix a pause of one
// second. So connections are kept open for as long as Postfix likes.
package policyd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/dialog"
	"postern/internal/listen"
	"postern/policy"
)

// Handler decides requests.
type Handler interface {
	// Decide writes its decision to d, which is empty. Both values belong to
	// the caller again once it has returned. It is called concurrently.
	Decide(ctx context.Context, req *policy.Request, d *policy.Decision)
}

// Server is the door. Its methods are safe for concurrent use.
type Server struct {
	handler  Handler
	log      *zap.Logger
	metrics  *metrics
	messages messages
	dialogs  *dialog.Table
	cfg      atomic.Pointer[Config]

	ctx    context.Context // of decisions; ends when Stop's bound is reached
	cancel context.CancelFunc

	mu        sync.Mutex
	listeners listen.Set
	conns     map[*conn]struct{}
	stopping  bool
	wg        sync.WaitGroup // connections and accept loops
	watching  bool
	watcher   sync.WaitGroup
	done      chan struct{} // ends the watcher
	once      sync.Once
}

// New returns a door that is not open yet.
func New(cfg Config, h Handler, log *zap.Logger, reg prometheus.Registerer) *Server {
	s := &Server{
		handler: h, log: log.Named("policyd"), metrics: newMetrics(reg),
		conns: make(map[*conn]struct{}), done: make(chan struct{}),
	}
	s.cfg.Store(&cfg)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Join makes t the place where the milter door learns what this one knows of a
// message, and which of the two hands out its header fields. It is called
// before Configure, or not at all.
func (s *Server) Join(t *dialog.Table) { s.dialogs = t }

// Configure opens the addresses of cfg that are not open yet, closes those
// that are no longer wanted, and applies the limits of cfg to what comes from
// now on. When an address cannot be opened nothing changes.
func (s *Server) Configure(cfg Config, in *listen.Inherited) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return errors.New("policyd: stopping")
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
		s.log.Info("listening", zap.Stringer("address", o.Address))
		s.wg.Go(func() { s.accept(o) })
	}
	return nil
}

// Addresses returns where the door listens.
func (s *Server) Addresses() []net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners.Addrs()
}

func (s *Server) accept(o *listen.Opened) {
	for {
		c, err := listen.Accept(o, func(err error) {
			s.metrics.acceptErrors.Inc()
			s.log.Warn("cannot accept a connection, trying again", zap.Error(err))
		})
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.log.Error("no longer listening", zap.Stringer("address", o.Address), zap.Error(err))
			}
			return
		}
		s.admit(o, c)
	}
}

func (s *Server) admit(o *listen.Opened, nc net.Conn) {
	c := &conn{Conn: nc, server: s, listener: o.Address.String(), chain: o.Address.Chain}
	s.mu.Lock()
	full := len(s.conns) >= s.cfg.Load().MaxConnections
	if full || s.stopping {
		s.mu.Unlock()
		_ = nc.Close() // refused
		if full {
			s.metrics.refused.Inc()
			s.log.Warn("too many connections, closing a new one: raise policy.max_connections", zap.Int("open", s.cfg.Load().MaxConnections))
		}
		return
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	s.metrics.open.Inc()
	go func() {
		defer s.wg.Done()
		c.serve()
		_ = nc.Close() // nobody is left to tell
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		s.metrics.open.Dec()
	}()
}

// watch closes the connections that have been too long in their phase. It
// looks often enough to be at most a quarter of a limit late.
func (s *Server) watch() {
	for {
		cfg := s.cfg.Load()
		every := min(cfg.RequestTimeout.D(), cfg.WriteTimeout.D()) / 4
		select {
		case <-s.done:
			return
		case now := <-time.After(min(every, time.Second)):
			s.mu.Lock()
			for c := range s.conns {
				if c.expired(cfg, now) {
					c.late.Store(true)
					_ = c.Conn.Close() // its goroutine ends
				}
			}
			s.mu.Unlock()
		}
	}
}

// settled is how long a connection must have been quiet before Stop closes
// it: a transaction under way asks again within this time, and would feel the
// closing as a pause of one second.
const settled = 500 * time.Millisecond

// Stop closes the listeners, lets requests under way finish, and closes each
// connection once it has been quiet for half a second; at ctx's end it closes
// the rest. It may be called more than once.
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
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		s.closeQuiet(time.Now().Add(-settled))
		select {
		case <-done:
			s.cancel()
			return nil
		case <-ctx.Done():
			s.cancel()
			s.closeAll()
			<-done
			return fmt.Errorf("policyd: stop: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func (s *Server) closeQuiet(before time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.quietSince(before) {
			_ = c.Conn.Close() // its goroutine ends quietly
		}
	}
}

func (s *Server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Conn.Close() // as above
	}
}

// Status is what `postern status` shows of the door.
type Status struct {
	Listen      []string `json:"listen"`
	Connections int      `json:"connections"`
	Max         int      `json:"max_connections"`
	Requests    uint64   `json:"requests"`
}

// Status returns the present state.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Connections: len(s.conns), Max: s.cfg.Load().MaxConnections, Requests: s.metrics.answers.total()}
	st.Listen = s.listeners.Texts(s.cfg.Load().Listen)
	return st
}

var endOfRequest = []byte("\n\n")

// startBuffer holds a usual request; a connection that waits keeps no more.
const startBuffer = 1 << 10

// conn is one connection of one smtpd process.
type conn struct {
	net.Conn
	server   *Server
	listener string
	chain    string

	buf  []byte // received, not yet answered
	out  []byte
	scan scanner
	req  policy.Request
	d    policy.Decision
	memory

	// phase and since are what the watcher reads. They take the place of
	// deadlines on the socket, which cost more than the rest of the door.
	phase atomic.Int32
	since atomic.Int64 // Unix nanoseconds; when the phase began
	late  atomic.Bool  // closed by the watcher
}

// The phases of a connection.
const (
	waiting  = iota // for a request to begin
	reading         // a request has begun to arrive
	deciding        // bounded by the handler
	writing
)

func (c *conn) enter(phase int32, now time.Time) {
	c.since.Store(now.UnixNano())
	c.phase.Store(phase)
}

// expired reports whether the connection has been too long in its phase.
func (c *conn) expired(cfg *Config, now time.Time) bool {
	limit := time.Duration(0)
	switch c.phase.Load() {
	case waiting:
		limit = cfg.IdleTimeout.D()
	case reading:
		limit = cfg.RequestTimeout.D()
	case writing:
		limit = cfg.WriteTimeout.D()
	}
	return limit > 0 && now.UnixNano()-c.since.Load() > int64(limit)
}

// quietSince reports whether no request is under way and none has been since t.
func (c *conn) quietSince(t time.Time) bool {
	return c.phase.Load() == waiting && c.since.Load() < t.UnixNano()
}

func (c *conn) serve() {
	s := c.server
	c.buf = make([]byte, 0, startBuffer)
	now := time.Now()
	for {
		cfg := s.cfg.Load()
		n, err := c.receive(cfg, now)
		if err != nil {
			c.ended(err)
			return
		}
		arrived := time.Now()
		c.enter(deciding, arrived)
		used, err := c.memory.parse(string(c.buf[:n]), cfg.MaxAttributes, &c.req)
		c.consume(used)
		if err != nil {
			c.ended(err)
			return
		}
		c.req.Time, c.req.Door, c.req.Listener, c.req.Chain = arrived, "policy", c.listener, c.chain
		c.req.Facts.Reset()
		c.d.Reset()
		c.decide()

		var header *policy.Header
		left := s.dialogs.Learn(&c.req, &c.d)
		if a := c.d.Verdict.Action; !left && (a == policy.Continue || a == policy.Allow) {
			header = s.messages.take(&c.req, c.d.Headers)
		}
		c.out = appendReply(c.out[:0], &c.d, header)
		// Reading the clock is not free: the pipeline has just done so.
		now = arrived.Add(c.d.Took)
		c.enter(writing, now)
		_, err = c.Write(c.out)
		s.metrics.answers.add(&c.req, &c.d)
		if err != nil {
			c.ended(err)
			return
		}
	}
}

// decide runs the handler. A panic is answered as "no objection": mail is not
// stopped by a fault of ours.
func (c *conn) decide() {
	defer func() {
		if cause := recover(); cause != nil {
			c.server.metrics.bad.panics.Inc()
			c.server.log.Error("decision panicked", zap.Any("cause", cause), zap.ByteString("stack", debug.Stack()))
			c.d.Reset()
		}
	}()
	c.server.handler.Decide(c.server.ctx, &c.req, &c.d)
}

// receive reads until there is a whole request in the buffer and returns where
// one ends. now is the time at which the connection became free.
func (c *conn) receive(cfg *Config, now time.Time) (int, error) {
	limits := Limits{Line: cfg.MaxLine, Request: cfg.MaxRequest, Attributes: cfg.MaxAttributes}
	if len(c.buf) == 0 {
		c.enter(waiting, now)
	} else {
		c.enter(reading, now)
	}
	for {
		n, err := c.scan.end(c.buf, limits)
		if n > 0 || err != nil {
			return n, err
		}
		if len(c.buf) == cap(c.buf) {
			grown := make([]byte, len(c.buf), 2*cap(c.buf))
			copy(grown, c.buf)
			c.buf = grown
		}
		m, err := c.Read(c.buf[len(c.buf):cap(c.buf)])
		if m > 0 {
			first := len(c.buf) == 0
			c.buf = c.buf[:len(c.buf)+m]
			if first && !bytes.HasSuffix(c.buf, endOfRequest) {
				c.enter(reading, time.Now()) // it takes another read
			}
			continue
		}
		if err != nil {
			return 0, err
		}
	}
}

// consume drops the request of n bytes. A large buffer is not kept.
func (c *conn) consume(n int) {
	rest := c.buf[n:]
	if cap(c.buf) > 8*startBuffer && len(rest) < startBuffer {
		c.buf = append(make([]byte, 0, startBuffer), rest...)
		return
	}
	c.buf = c.buf[:copy(c.buf, rest)]
}

// ended counts and logs why a connection ends. Postfix closing it between two
// requests is the normal end.
func (c *conn) ended(err error) {
	m, log := &c.server.metrics.bad, c.server.log
	switch {
	case c.late.Load():
		if c.phase.Load() == waiting {
			return // idle_timeout
		}
		m.slow.Inc()
		err = errors.New("it took too long")
	case len(c.buf) == 0 && (errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)):
		return
	case errors.Is(err, ErrTooLong):
		m.tooLong.Inc()
	case errors.Is(err, ErrMalformed):
		m.malformed.Inc()
	default:
		m.broken.Inc()
		log.Debug("connection broke", zap.String("listener", c.listener), zap.Error(err))
		return
	}
	log.Warn("closing a connection after a bad request", zap.String("listener", c.listener),
		zap.String("peer", c.RemoteAddr().String()), zap.Error(err))
}
