package door

import (
	"errors"
	"net"
	"os"

	"postern/internal/listen"
)

// interrupt is Options.Release of a door that keeps its connections.
func interrupt(c *Conn, _ bool) bool {
	c.giveUp.Store(true)
	return c.Interrupt() == nil
}

// Continue reports whether a read has failed only to have a connection given up
// that has more to do first; the next one waits again.
func (c *Conn) Continue(err error) bool {
	return c.giveUp.Load() && errors.Is(err, os.ErrDeadlineExceeded) && c.Resume() == nil
}

// GivesUp reports whether the connection is given to the next process, and
// does so. err is that of a read before which nothing of a request had come;
// Serve returns then.
func (c *Conn) GivesUp(err error) bool {
	if !c.giveUp.Load() || !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	f, err := c.File()
	if err != nil {
		return false
	}
	d := c.door
	d.mu.Lock()
	defer d.mu.Unlock()
	d.kept = append(d.kept, f)
	return true
}

// keepAll gives the connections that were given up to the next process.
func (d *Door) keepAll() error {
	d.mu.Lock()
	files := d.kept
	d.kept = nil
	d.mu.Unlock()
	if len(files) == 0 {
		return nil
	}
	err := d.keep(files)
	for _, f := range files {
		_ = f.Close() // the next process has a copy, or nobody
	}
	return err
}

// Readopt serves connections that an earlier process has kept, in files that
// it takes over. It is called after Configure, and returns how many there are.
// One that came in by an address that is none any more is closed.
func (d *Door) Readopt(files []*os.File) (n int) {
	for _, f := range files {
		c, err := net.FileConn(f)
		_ = f.Close() // c has a copy
		if err != nil {
			continue // it is no connection
		}
		a := d.addressOf(c)
		if a == nil {
			_ = c.Close() // nobody is to be served here
			continue
		}
		if d.Adopt(a, c) {
			n++
		}
	}
	return n
}

// addressOf returns the address by which a connection came in, nil when it is
// none of the door's.
func (d *Door) addressOf(c net.Conn) *listen.Address {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.wanted {
		if d.wanted[i].Is(c.LocalAddr()) {
			return &d.wanted[i]
		}
	}
	return nil
}
