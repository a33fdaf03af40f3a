package lookup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/door"
	"postern/internal/listen"
	"postern/internal/netstring"
	"postern/policy"
)

// Server is the door. Its methods are safe for concurrent use.
type Server struct {
	door    *door.Door
	log     *zap.Logger
	metrics *metrics
	cfg     atomic.Pointer[Config]
	maps    atomic.Pointer[map[string]*entry]
	unknown *entry // counts for all names that are not there

	mu sync.Mutex // held while the maps are changed
}

// entry is a map with its counters.
type entry struct {
	name string
	m    Map
	counters
	quiet atomic.Int64 // Unix seconds until which its errors are not logged
}

// New returns a door that is not open yet and has no maps.
func New(cfg Config, log *zap.Logger, reg prometheus.Registerer) *Server {
	log = log.Named("lookup")
	s := &Server{log: log, metrics: newMetrics(reg)}
	s.door = door.New(door.Options{Name: "lookup", Section: "lookup", Serve: s.serve, Reconnects: true}, log, reg)
	s.unknown = &entry{name: unknownName, counters: s.metrics.of(unknownName)}
	s.cfg.Store(&cfg)
	s.maps.Store(&map[string]*entry{})
	return s
}

// SetMaps puts maps in place of those that there were, for every look-up from
// now on. The names are good ones ([CheckName]).
func (s *Server) SetMaps(m map[string]Map) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.maps.Load()
	fresh := make(map[string]*entry, len(m))
	for name, one := range m {
		fresh[name] = &entry{name: name, m: one, counters: s.metrics.of(name)}
	}
	s.maps.Store(&fresh)
	for name := range old {
		if fresh[name] == nil {
			s.metrics.forget(name)
		}
	}
}

// Names returns the names of the maps, sorted.
func (s *Server) Names() []string { return slices.Sorted(maps.Keys(*s.maps.Load())) }

// Explain asks a map as Postfix would, uncounted. The error is [ErrUnknown]
// when there is none of the name.
func (s *Server) Explain(ctx context.Context, name, key string) (Answer, error) {
	e := (*s.maps.Load())[name]
	if e == nil {
		return Answer{Map: name, Key: key}, fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	a, err := Explain(ctx, e.m, key)
	a.Map, a.Key = name, key
	return a, err
}

// Configure opens the addresses of cfg that are not open yet, closes those
// that are no longer wanted, and applies the limits of cfg to what comes from
// now on. When an address cannot be opened nothing changes.
func (s *Server) Configure(cfg Config, in *listen.Inherited) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.door.Configure(cfg.Listen, cfg.limits(), in); err != nil {
		return err
	}
	s.cfg.Store(&cfg)
	return nil
}

// Addresses returns where the door listens.
func (s *Server) Addresses() []net.Addr { return s.door.Addresses() }

// Stop closes the listeners, lets look-ups under way finish, and closes the
// connections; those that are not done at ctx's end it cuts. It may be called
// more than once.
func (s *Server) Stop(ctx context.Context) error { return s.door.Stop(ctx) }

// Status is what `postern status` shows of the door.
type Status struct {
	Listen      []string `json:"listen"`
	Connections int      `json:"connections"`
	Max         int      `json:"max_connections"`
	Lookups     uint64   `json:"lookups"`
	Maps        []string `json:"maps"`
}

// Status returns the present state.
func (s *Server) Status() Status {
	st := Status{Max: s.cfg.Load().MaxConnections, Lookups: s.metrics.total.Load(), Maps: s.Names()}
	st.Listen, st.Connections = s.door.Status()
	return st
}

// startBuffer holds a usual request; a connection that waits keeps no more.
const startBuffer = 512

// conn is one connection of one Postfix process.
type conn struct {
	*door.Conn
	server *Server
	buf    []byte // received, not yet answered
	out    []byte
}

func (s *Server) serve(dc *door.Conn) {
	c := &conn{Conn: dc, server: s, buf: make([]byte, 0, startBuffer)}
	now := time.Now()
	for {
		content, n, err := c.receive(s.cfg.Load().MaxRequest, now)
		if err == nil && c.Context().Err() != nil {
			return // too late for the request before: Postfix repeats this one
		}
		if err != nil {
			c.ended(err)
			return
		}
		c.Enter(door.Answering, time.Now())
		c.out = s.answer(c.Context(), c.out[:0], content)
		c.consume(n)
		now = time.Now()
		c.Enter(door.Writing, now)
		if _, err = c.Write(c.out); err != nil {
			c.ended(err)
			return
		}
		if cap(c.out) > 8*startBuffer {
			c.out = nil
		}
	}
}

// answer appends the reply to one request.
func (s *Server) answer(ctx context.Context, dst, content []byte) []byte {
	s.metrics.total.Add(1)
	name, key, ok := parseRequest(content)
	if !ok {
		s.metrics.bad.malformed.Inc()
		return appendReply(dst, wordPerm, "a request is the name of a table, a space and a key")
	}
	e := (*s.maps.Load())[string(name)]
	if e == nil {
		// It may be there after the next reload. Until then mail must wait, not
		// be judged without the table.
		s.unknown.failed.Inc()
		shown := policy.Printable(string(name[:min(len(name), 64)]))
		if s.unknown.speak() {
			s.log.Warn("Postfix asks for a table that is not there", zap.String("map", shown))
		}
		return appendReply(dst, wordTemp, `postern has no table "`+shown+`"`)
	}
	if len(key) == 0 {
		e.missing.Inc()
		return appendReply(dst, wordNotFound, "")
	}
	value, found, err := s.ask(ctx, e, string(key))
	switch {
	case err == nil && !found:
		e.missing.Inc()
		return appendReply(dst, wordNotFound, "")
	case err == nil && value == "":
		err = errEmpty
	case err == nil && len(value) > maxValue:
		err = fmt.Errorf("the result has %d bytes, Postfix takes at most %d", len(value), maxValue)
	case err == nil:
		e.found.Inc()
		return appendReply(dst, wordOK, value)
	}
	word, text := wordTemp, `table "`+e.name+`" cannot answer, the log of postern says why`
	if ctx.Err() != nil {
		word, text = wordTimeout, `table "`+e.name+`" takes too long`
		e.timeouts.Inc()
	} else {
		e.failed.Inc()
	}
	if e.speak() {
		s.log.Error("a table cannot answer", zap.String("map", e.name), zap.ByteString("key", key[:min(len(key), 256)]), zap.Error(err))
	}
	return appendReply(dst, word, text)
}

// quiet is how long a map's errors are counted only, once one has been logged.
const quiet = 10 // seconds

// speak reports whether an error is to be logged.
func (e *entry) speak() bool {
	now := time.Now().Unix()
	until := e.quiet.Load()
	return now >= until && e.quiet.CompareAndSwap(until, now+quiet)
}

// ask asks the map. A panic is an error: Postfix tries again later.
func (s *Server) ask(ctx context.Context, e *entry, key string) (value string, found bool, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			s.metrics.bad.panics.Inc()
			s.log.Error("look-up panicked", zap.String("map", e.name), zap.Any("cause", cause), zap.ByteString("stack", debug.Stack()))
			err = errors.New("panic")
		}
	}()
	return e.m.Lookup(ctx, key)
}

// receive reads until the buffer begins with a whole request, and returns its
// content and length. now is the time at which the connection became free.
func (c *conn) receive(limit int, now time.Time) (content []byte, n int, err error) {
	c.Enter(door.Waiting, now)
	for {
		if content, n, err = netstring.Next(c.buf, limit); n > 0 || err != nil {
			return content, n, err
		}
		if len(c.buf) > 0 && c.Phase() == door.Waiting {
			c.Enter(door.Reading, time.Now()) // it takes another read
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
			c.buf = c.buf[:len(c.buf)+m]
			continue
		}
		if err != nil {
			return nil, 0, err
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
	case len(c.buf) == 0 && (errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)):
		return
	case errors.Is(err, netstring.ErrTooLong):
		m.tooLong.Inc()
	case errors.Is(err, netstring.ErrMalformed):
		m.malformed.Inc()
	default:
		m.broken.Inc()
		log.Debug("connection broke", zap.Stringer("listener", c.Address), zap.Error(err))
		return
	}
	log.Warn("closing a connection after a bad request", zap.Stringer("listener", c.Address),
		zap.String("peer", c.RemoteAddr().String()), zap.Error(err))
}
