// Package quickack acknowledges TCP segments where the peer may be waiting for
// that. A peer that sends several small pieces waits before the second until
// the first has been acknowledged (Nagle's algorithm, RFC 896), and the kernel
// holds an acknowledgement back for 40 ms in the hope of an answer to send it
// with (tcp(7), TCP_QUICKACK). Where no answer is due, the two add up to a stall.
package quickack

import (
	"net"
	"syscall"
)

// Acker acknowledges what a TCP connection has received. It is used by one
// goroutine at a time. A nil Acker does nothing.
type Acker struct {
	raw syscall.RawConn
	set func(fd uintptr)
}

// Of returns the Acker of a connection, nil when it is not TCP.
func Of(c net.Conn) *Acker {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return nil
	}
	return &Acker{raw, func(fd uintptr) {
		// It only makes the peer faster: what goes wrong shows at the next read.
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
	}}
}

// Now acknowledges what has been received. What an answer has acknowledged
// already costs a system call and no packet.
func (a *Acker) Now() {
	if a != nil {
		_ = a.raw.Control(a.set) // as above
	}
}

// Conn is a connection whose reads acknowledge what came before, if nothing has
// been written since: a peer that has more to say is not kept waiting. Reading
// and writing are each done by one goroutine at a time.
type Conn struct {
	net.Conn
	acker *Acker
	due   bool
}

// Wrap returns c with such reads, and c itself where it is not TCP.
func Wrap(c net.Conn) net.Conn {
	if a := Of(c); a != nil {
		return &Conn{Conn: c, acker: a}
	}
	return c
}

// Read implements [net.Conn].
func (c *Conn) Read(p []byte) (int, error) {
	if c.due {
		c.acker.Now()
	}
	n, err := c.Conn.Read(p)
	c.due = n > 0
	return n, err
}
