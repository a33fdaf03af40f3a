package adminapi

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// idlePipe is how long a connection inside the process waits for the next call.
const idlePipe = time.Minute

// Pipe returns a listener inside the process and a client of what is served on
// it: the console makes its calls as the command line does. Nobody else can
// connect. Closing the listener ends it.
func Pipe() (net.Listener, *Client) {
	p := &pipe{conns: make(chan net.Conn), done: make(chan struct{})}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx) }
	transport := &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 4, IdleConnTimeout: idlePipe}
	return p, &Client{http: &http.Client{Transport: transport}, base: "http://postern", where: "the daemon itself"}
}

// Idle closes the connections that are not in use.
func (c *Client) Idle() { c.http.CloseIdleConnections() }

// pipe is a [net.Listener] for one client.
type pipe struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipe) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements [net.Listener].
func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (p *pipe) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr implements [net.Listener].
func (p *pipe) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
