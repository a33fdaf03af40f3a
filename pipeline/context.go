package pipeline

import (
	"context"
	"sync"
	"time"
)

// stepContext is a context with a deadline whose timer is made only when
// somebody waits for it. A check that answers from memory costs no timer; the
// contexts of one decision are one allocation. One that is kept beyond its
// step stays valid and is done.
type stepContext struct {
	parent context.Context
	at     time.Time

	mu     sync.Mutex
	inner  context.Context // nil until Done is called
	cancel context.CancelFunc
	ended  bool
}

func (c *stepContext) init(parent context.Context, now time.Time, timeout time.Duration, limit time.Time) {
	c.parent, c.at = parent, limit
	if timeout > 0 {
		if at := now.Add(timeout); at.Before(limit) {
			c.at = at
		}
	}
}

// finish releases the timer. The context is done from then on.
func (c *stepContext) finish() {
	c.mu.Lock()
	c.ended = true
	cancel := c.cancel
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

func (c *stepContext) Deadline() (time.Time, bool) { return c.at, true }

func (c *stepContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		c.inner, c.cancel = context.WithDeadline(c.parent, c.at)
		if c.ended {
			c.cancel()
		}
	}
	return c.inner.Done()
}

func (c *stepContext) Err() error {
	c.mu.Lock()
	inner, ended := c.inner, c.ended
	c.mu.Unlock()
	switch {
	case inner != nil:
		return inner.Err()
	case !time.Now().Before(c.at):
		return context.DeadlineExceeded
	case c.parent.Err() != nil:
		return c.parent.Err()
	case ended:
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
