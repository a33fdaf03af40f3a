package door

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"postern/internal/listen"
	"postern/internal/quickack"
)

// Phase is what a connection is doing. Each has its limit.
type Phase int32

// The phases.
const (
	Waiting   Phase = iota // for a request to begin
	Reading                // a request has begun to arrive
	Answering              // the request is being worked on
	Writing                // the answer is being sent
	Opening                // nothing has come yet, where Limits.Open is set
)

// Conn is one connection. The code that serves it says what it is doing; a
// watcher compares that with the limits. This takes the place of deadlines on
// the socket, which cost more than an answer from memory.
type Conn struct {
	net.Conn
	// Address is the one that it came in by.
	Address *listen.Address
	// Acker acknowledges what has arrived where the peer may wait for that.
	Acker *quickack.Acker

	door   *Door
	ctx    context.Context //nolint:containedctx // that of the connection's work, ended by its watcher
	cancel context.CancelFunc
	phase  atomic.Int32
	since  atomic.Int64 // Unix nanoseconds; when the phase began
	late   atomic.Bool
	busy   atomic.Bool
	told   atomic.Bool
	giveUp atomic.Bool
}

// ErrGivenUp ends a connection here that somebody else goes on with.
var ErrGivenUp = errors.New("given up")

// longAgo ends a read at once.
var longAgo = time.Unix(1, 0)

// Interrupt ends the read under way, and the next, with
// [os.ErrDeadlineExceeded], until Resume. What has arrived stays unread.
func (c *Conn) Interrupt() error { return c.SetReadDeadline(longAgo) }

// Resume lets reads wait again.
func (c *Conn) Resume() error { return c.SetReadDeadline(time.Time{}) }

// File returns a copy of the connection's file.
func (c *Conn) File() (*os.File, error) {
	f, ok := c.Conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("%w: it has no file", errors.ErrUnsupported)
	}
	return f.File()
}

// SetBusy says whether something larger than one request is under way: Stop
// does not close the connection between two of its requests then.
func (c *Conn) SetBusy(b bool) { c.busy.Store(b) }

// Busy reports what SetBusy has said.
func (c *Conn) Busy() bool { return c.busy.Load() }

// Stopped reports whether Stop, or a new connection, has closed this one.
func (c *Conn) Stopped() bool { return c.told.Load() }

// quietSince reports whether nothing is under way and nothing has been since t.
func (c *Conn) quietSince(t time.Time) bool {
	p := Phase(c.phase.Load())
	return (p == Waiting || p == Opening) && !c.busy.Load() && c.since.Load() <= t.UnixNano()
}

// end closes the connection, whose goroutine then ends quietly.
func (c *Conn) end() {
	c.told.Store(true)
	_ = c.Conn.Close()
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
	case Opening:
		limit = l.Open
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
