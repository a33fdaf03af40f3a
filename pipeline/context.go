package pipeline

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// stepContext is a context with a deadline whose timer is made only when
// somebody waits for it. A check that answers from memory costs no timer; the
// contexts of one decision are one allocation. One that is kept beyond its
// step stays valid and is done.
type stepContext struct {
	parent context.Context
	start  time.Time
	limit  time.Duration // from start on

	state  atomic.Uint32
	mu     sync.Mutex
	inner  context.Context // nil until Done is called
	cancel context.CancelFunc
}

// Bits of stepContext.state. Whoever sets the second of them ends the inner
// context.
const (
	contextWaited = 1 << iota // there is an inner context
	contextEnded
)

func (c *stepContext) init(parent context.Context, start time.Time, limit time.Duration) {
	c.parent, c.start, c.limit = parent, start, limit
}

// finish releases the timer. The context is done from then on.
func (c *stepContext) finish() {
	if c.state.Or(contextEnded)&contextWaited != 0 {
		c.mu.Lock()
		cancel := c.cancel
		c.mu.Unlock()
		cancel()
	}
}

func (c *stepContext) Deadline() (time.Time, bool) { return c.start.Add(c.limit), true }

func (c *stepContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		c.inner, c.cancel = context.WithDeadline(c.parent, c.start.Add(c.limit))
		if c.state.Or(contextWaited)&contextEnded != 0 {
			c.cancel()
		}
	}
	return c.inner.Done()
}

func (c *stepContext) Err() error {
	c.mu.Lock()
	inner := c.inner
	c.mu.Unlock()
	switch {
	case inner != nil:
		return inner.Err()
	case time.Since(c.start) >= c.limit:
		return context.DeadlineExceeded
	case c.parent.Err() != nil:
		return c.parent.Err()
	case c.state.Load()&contextEnded != 0:
		return context.Canceled
	}
	return nil
}

// Value asks the inner context once there is one: that is how package context
// finds the parent to hang a child on without starting a goroutine.
func (c *stepContext) Value(key any) any {
	c.mu.Lock()
	inner := c.inner
	c.mu.Unlock()
	if inner != nil {
		return inner.Value(key)
	}
	return c.parent.Value(key)
}
