package door

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"postern/internal/listen"
)

// Phase is what a connection is doing. Each has its limit.
type Phase int32

// The phases.
const (
	Waiting   Phase = iota // for a request to begin
	Reading                // a request has begun to arrive
	Answering              // the request is being worked on
	Writing                // the answer is being sent
)

// Conn is one connection. The code that serves it says what it is doing; a
// watcher compares that with the limits. This takes the place of deadlines on
// the socket, which cost more than an answer from memory.
type Conn struct {
	net.Conn
	// Address is the one that it came in by.
	Address *listen.Address

	door   *Door
	ctx    context.Context //nolint:containedctx // that of the connection's work, ended by its watcher
	cancel context.CancelFunc
	phase  atomic.Int32
	since  atomic.Int64 // Unix nanoseconds; when the phase began
	late   atomic.Bool
}

// Enter begins a phase.
func (c *Conn) Enter(p Phase, now time.Time) {
	c.since.Store(now.UnixNano())
	c.phase.Store(int32(p))
}

// Phase returns the present phase.
func (c *Conn) Phase() Phase { return Phase(c.phase.Load()) }

// Context ends when an answer has taken longer than its limit, with the
// connection, and at the end of the time for stopping.
func (c *Conn) Context() context.Context { return c.ctx }

// Late reports whether a phase has outlasted its limit. The connection has
// been closed then, except for an answer's first limit: that ends Context and
// leaves as long again to say so.
func (c *Conn) Late() bool { return c.late.Load() }

// enforce ends what has outlasted its limit.
func (c *Conn) enforce(l *Limits, now time.Time) {
	phase := Phase(c.phase.Load())
	limit := time.Duration(0)
	switch phase {
	case Waiting:
		limit = l.Idle
	case Reading:
		limit = l.Request
	case Answering:
		limit = l.Answer
	case Writing:
		limit = l.Write
	}
	past := now.UnixNano() - c.since.Load()
	if limit <= 0 || past <= int64(limit) {
		return
	}
	c.late.Store(true)
	if phase == Answering && past <= 2*int64(limit) {
		c.cancel()
		return
	}
	_ = c.Conn.Close() // its goroutine ends
}
