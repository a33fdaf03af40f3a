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
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/dialog"
	"postern/internal/door"
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

	door *door.Door
}

// New returns a door that is not open yet. keep is given, when the door stops,
// the connections that the next process goes on with (Resume); it keeps copies.
// nil: connections end with the process.
func New(cfg Config, h Handler, keep func([]*os.File) error, log *zap.Logger, reg prometheus.Registerer) *Server {
	log = log.Named("policyd")
	s := &Server{handler: h, log: log, metrics: newMetrics(reg)}
	s.door = door.New(door.Options{Name: "policyd", Section: "policy", Serve: s.serve, Keep: keep}, log, reg)
	s.cfg.Store(&cfg)
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
	err := s.door.Configure(cfg.Listen, door.Limits{
		Connections: cfg.MaxConnections, Idle: cfg.IdleTimeout.D(), Request: cfg.RequestTimeout.D(), Write: cfg.WriteTimeout.D(),
	}, in)
	if err == nil {
		s.cfg.Store(&cfg)
	}
	return err
}

// Addresses returns where the door listens.
func (s *Server) Addresses() []net.Addr { return s.door.Addresses() }

// Resume goes on with the connections that an earlier process has kept, in
// files that it takes over. It is called after Configure, and returns how many
// there are.
func (s *Server) Resume(files []*os.File) int { return s.door.Readopt(files) }

// Stop closes the listeners, lets requests under way finish, and keeps the
// connections for the next process. Where they are not kept it closes each once
// it has been quiet for half a second: a transaction under way asks again
// within this time, and would feel the closing as a pause of one second. At
// ctx's end it closes the rest. It may be called more than once.
func (s *Server) Stop(ctx context.Context) error { return s.door.Stop(ctx) }

// Status is what `postern status` shows of the door.
type Status struct {
	Listen      []string `json:"listen"`
	Connections int      `json:"connections"`
	Max         int      `json:"max_connections"`
	Requests    uint64   `json:"requests"`
}

// Status returns the present state.
func (s *Server) Status() Status {
	st := Status{Max: s.cfg.Load().MaxConnections, Requests: s.metrics.answers.total()}
	st.Listen, st.Connections = s.door.Status()
	return st
}

var endOfRequest = []byte("\n\n")

// startBuffer holds a usual request; a connection that waits keeps no more.
const startBuffer = 1 << 10

// conn is one connection of one smtpd process.
type conn struct {
	*door.Conn
	server   *Server
	listener string

	buf  []byte // received, not yet answered
	out  []byte
	scan scanner
	req  policy.Request
	d    policy.Decision
	memory
}

func (s *Server) serve(dc *door.Conn) {
	c := &conn{Conn: dc, server: s, listener: dc.Address.String(), buf: make([]byte, 0, startBuffer)}
	now := time.Now()
	for {
		cfg := s.cfg.Load()
		n, err := c.receive(cfg, now)
		if err != nil {
			c.ended(err)
			return
		}
		arrived := time.Now()
		c.Enter(door.Answering, arrived)
		used, err := c.memory.parse(string(c.buf[:n]), cfg.MaxAttributes, &c.req)
		c.consume(used)
		if err != nil {
			c.ended(err)
			return
		}
		c.req.Time, c.req.Door, c.req.Listener, c.req.Chain = arrived, "policy", c.listener, c.Address.Chain
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
		c.Enter(door.Writing, now)
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
	c.server.handler.Decide(c.Context(), &c.req, &c.d)
}

// receive reads until there is a whole request in the buffer and returns where
// one ends. now is the time at which the connection became free.
func (c *conn) receive(cfg *Config, now time.Time) (int, error) {
	limits := Limits{Line: cfg.MaxLine, Request: cfg.MaxRequest, Attributes: cfg.MaxAttributes}
	if len(c.buf) == 0 {
		c.Enter(door.Waiting, now)
	} else {
		c.Enter(door.Reading, now)
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
		if len(c.buf) > 0 {
			c.Acker.Now() // the rest may wait for that
		}
		m, err := c.Read(c.buf[len(c.buf):cap(c.buf)])
		if m > 0 {
			first := len(c.buf) == 0
			c.buf = c.buf[:len(c.buf)+m]
			if first && !bytes.HasSuffix(c.buf, endOfRequest) {
				c.Enter(door.Reading, time.Now()) // it takes another read
			}
			continue
		}
		if err != nil && (len(c.buf) == 0 || !c.Continue(err)) {
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
	case c.Late():
		if c.Phase() == door.Waiting {
			return // idle_timeout
		}
		m.slow.Inc()
		err = errors.New("it took too long")
	case len(c.buf) == 0 && c.GivesUp(err):
		return
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
