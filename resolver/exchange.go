package resolver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

const (
	// udpSize is what EDNS offers: it fits into one packet on every way
	// (DNS flag day 2020).
	udpSize = 1232
	// optSize is the length of an OPT record without options.
	optSize = 11
)

// query is a question, packed once for all servers it goes to.
type query struct {
	key
	wire     []byte // with an OPT record at the end and the ID 0
	question int    // the offset at which the question ends
}

func newQuery(k key) (*query, error) {
	wire := make([]byte, headerSize+maxName+2+4+optSize)
	end, err := dns.PackDomainName(dns.Fqdn(k.name), wire, headerSize, nil, false)
	if err != nil {
		return nil, ErrInvalidName
	}
	wire[2] = flagRD
	wire[5] = 1 // one question
	binary.BigEndian.PutUint16(wire[end:], k.qtype)
	binary.BigEndian.PutUint16(wire[end+2:], dns.ClassINET)
	end += 4
	opt := wire[end : end+optSize] // RFC 6891 section 6.1.2; the owner is the root
	binary.BigEndian.PutUint16(opt[1:], dns.TypeOPT)
	binary.BigEndian.PutUint16(opt[3:], udpSize)
	return &query{key: k, wire: wire[:end+optSize], question: end}, nil
}

// packet appends the query with an ID, with or without EDNS.
func (q *query) packet(b []byte, id uint16, edns bool) []byte {
	at, end := len(b), q.question
	if edns {
		end = len(q.wire)
	}
	b = append(b, q.wire[:end]...)
	binary.BigEndian.PutUint16(b[at:], id)
	if edns {
		b[at+11] = 1 // one additional record
	}
	return b
}

// answeredBy reports whether a packet is the answer to this query: its ID, and
// the name, type and class of its question (RFC 5452 section 9.1). Only the
// case of the name may differ. An error may come without the question.
func (q *query) answeredBy(resp []byte, id uint16) bool {
	if len(resp) < headerSize || binary.BigEndian.Uint16(resp) != id ||
		resp[2]&flagQR == 0 || resp[2]&maskOpcode != 0 {
		return false
	}
	switch binary.BigEndian.Uint16(resp[4:]) {
	case 0:
		switch int(resp[3] & maskRcode) {
		case dns.RcodeFormatError, dns.RcodeServerFailure, dns.RcodeNotImplemented, dns.RcodeRefused:
			return true
		}
		return false
	case 1:
	default:
		return false
	}
	if len(resp) < q.question {
		return false
	}
	// The first name of a message cannot be compressed, so the octets are the
	// same. Lengths of labels are no letters.
	name := q.question - 4
	return bytes.Equal(resp[name:q.question], q.wire[name:q.question]) &&
		equalFold(resp[headerSize:name], q.wire[headerSize:name])
}

// equalFold compares octets; the letters of a may be capitals.
func equalFold(a, b []byte) bool {
	for i, c := range a {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != b[i] {
			return false
		}
	}
	return true
}

// maxUnwanted is after how many packets that answer another question a socket
// is given up: somebody is guessing (RFC 5452 section 9.2).
const maxUnwanted = 16

// Limits of a pool of connections.
const (
	udpLife  = 10 * time.Second // then the port is changed
	udpUses  = 400              // at most; the number is drawn, so that nobody can count on it
	udpIdle  = 64               // sockets kept for each server
	tcpLife  = time.Minute
	tcpUses  = 1000
	tcpIdle  = 4
	tcpQuiet = 5 * time.Second // servers close idle connections after some 8 seconds
)

// conn is a socket connected to one server; the kernel drops packets that come
// from elsewhere. One query at a time.
type conn struct {
	net.Conn
	transport transport
	uses      int // that are left
	born      time.Time
	used      time.Time
	buf       []byte
}

// outcome is what one query over one connection gave.
type outcome struct {
	resp     []byte
	unwanted int
	err      error
	spent    bool // the connection must not be used again
}

// errForged is the error of a socket on which too many packets were unwanted.
var errForged = errors.New("too many packets that answer another question")

// exchange sends a query and waits for its answer until the deadline, or until
// ctx ends.
func (c *conn) exchange(ctx context.Context, deadline time.Time, q *query, edns bool) (out outcome) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // a closed socket wakes up too
	defer func() { out.spent = out.err != nil || out.unwanted > 0 || !stop() }()
	if out.err = c.SetDeadline(deadline); out.err != nil {
		return out
	}
	if out.err = ctx.Err(); out.err != nil { // the deadline just set may have undone its end
		return out
	}
	id := dns.Id()
	if c.transport == overTCP {
		out.resp, out.err = c.stream(q, id, edns)
		return out
	}
	c.buf = q.packet(c.buf[:0], id, edns)
	if _, out.err = c.Write(c.buf); out.err != nil {
		return out
	}
	buf := c.buf[:cap(c.buf)]
	for {
		var n int
		if n, out.err = c.Read(buf); out.err != nil {
			return out
		}
		if q.answeredBy(buf[:n], id) {
			out.resp = bytes.Clone(buf[:n])
			return out
		}
		if out.unwanted++; out.unwanted >= maxUnwanted {
			out.err = errForged
			return out
		}
	}
}

// stream is exchange over TCP.
func (c *conn) stream(q *query, id uint16, edns bool) ([]byte, error) {
	b := q.packet(make([]byte, 2, 2+len(q.wire)), id, edns)
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c.Conn, size[:]); err != nil {
		return nil, err
	}
	resp := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c.Conn, resp); err != nil {
		return nil, err
	}
	if !q.answeredBy(resp, id) {
		return nil, fmt.Errorf("%w over TCP", errForged)
	}
	return resp, nil
}

// pool keeps connections to one server for the next query.
type pool struct {
	transport transport
	addr      netip.AddrPort

	mu     sync.Mutex
	idle   []*conn
	closed bool
}

// take returns an idle connection, nil if there is none.
func (p *pool) take(now time.Time) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if c.fresh(now) {
			return c
		}
		_ = c.Close() // nobody is left to tell
	}
	return nil
}

func (c *conn) fresh(now time.Time) bool {
	if c.transport == overTCP {
		return c.uses > 0 && now.Sub(c.born) < tcpLife && now.Sub(c.used) < tcpQuiet
	}
	return c.uses > 0 && now.Sub(c.born) < udpLife
}

// put gives a connection back after a good exchange.
func (p *pool) put(c *conn, now time.Time) {
	c.used = now
	most := udpIdle
	if p.transport == overTCP {
		most = tcpIdle
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// What has grown old lies at the bottom.
	for len(p.idle) > 0 && !p.idle[0].fresh(now) {
		_ = p.idle[0].Close()
		p.idle = append(p.idle[:0], p.idle[1:]...)
	}
	if p.closed || len(p.idle) >= most || !c.fresh(now) {
		_ = c.Close()
		return
	}
	p.idle = append(p.idle, c)
}

// dial opens a connection.
func (p *pool) dial(ctx context.Context, deadline time.Time) (*conn, error) {
	d := net.Dialer{Deadline: deadline}
	nc, err := d.DialContext(ctx, p.transport.String(), p.addr.String())
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, transport: p.transport, born: time.Now()}
	if p.transport == overTCP {
		c.uses = tcpUses
	} else {
		c.uses = udpUses/2 + rand.IntN(udpUses/2)
		c.buf = make([]byte, 0, 4096) // servers that ignore our size get this far
	}
	return c, nil
}

// exchange sends a query over an idle connection or a new one. An idle one may
// have died meanwhile; then it tries once more with a new one.
func (p *pool) exchange(ctx context.Context, deadline time.Time, q *query, edns bool) (resp []byte, unwanted int, err error) {
	c := p.take(time.Now())
	for reused := c != nil; ; reused = false {
		if !reused {
			if c, err = p.dial(ctx, deadline); err != nil {
				return nil, unwanted, err
			}
		}
		c.uses--
		out := c.exchange(ctx, deadline, q, edns)
		unwanted += out.unwanted
		if out.spent {
			_ = c.Close()
		} else {
			p.put(c, time.Now())
		}
		dead := out.err != nil && !errors.Is(out.err, os.ErrDeadlineExceeded) && !errors.Is(out.err, errForged) && ctx.Err() == nil
		if !reused || !dead {
			return out.resp, unwanted, out.err
		}
	}
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		_ = c.Close()
	}
	p.idle = nil
}

// classify returns what an error of an exchange means.
func classify(err error) result {
	switch {
	case errors.Is(err, errForged):
		return resForged
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return resTimeout
	}
	return resUnreachable
}

// shortText is the error without the addresses, which package net puts around
// it and which change with every query.
func shortText(err error) string {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e.Error()
	}
	if classify(err) == resTimeout {
		return "no answer in time"
	}
	return err.Error()
}
