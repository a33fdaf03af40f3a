package milter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	gomilter "github.com/d--j/go-milter"

	"postern/internal/door"
	"postern/internal/quickack"
)

// The packets of the protocol (libmilter's mfdef.h). A packet is its length as
// four bytes, a code and data; the length counts the code.
const (
	codeAbort    = 'A'
	codeBody     = 'B'
	codeConnect  = 'C'
	codeMacros   = 'D'
	codeEOM      = 'E'
	codeHelo     = 'H'
	codeQuitNew  = 'K'
	codeHeader   = 'L'
	codeMail     = 'M'
	codeEOH      = 'N'
	codeOptions  = 'O'
	codeQuit     = 'Q'
	codeRcpt     = 'R'
	codeData     = 'T'
	codeUnknown  = 'U'
	prefixLength = 4
)

// The most bytes that a packet may announce. Postfix sends header fields of
// up to 60000 bytes and body chunks of up to 65535; everything else is one
// SMTP command or a few macros.
const (
	maxContentFrame = 1 << 20
	maxOtherFrame   = 64 << 10
)

// Errors of a packet. The connection cannot go on after one.
var (
	errTooLong   = errors.New("packet exceeds a limit")
	errMalformed = errors.New("malformed packet")
)

// frameLimit returns the most bytes, code included, of a packet.
func frameLimit(code byte) int {
	if code == codeHeader || code == codeBody {
		return maxContentFrame
	}
	return maxOtherFrame
}

// checkFrame says what is wrong with a packet. What it lets pass the library
// reads without a panic: it indexes behind strings without looking whether
// they end.
func checkFrame(code byte, data []byte) error {
	switch code {
	case codeOptions:
		if len(data) < 12 {
			return fmt.Errorf("%w: negotiation of %d bytes", errMalformed, len(data))
		}
	case codeConnect:
		end := bytes.IndexByte(data, 0)
		if end < 0 || len(data) < end+2 {
			return fmt.Errorf("%w: connect without a name or family", errMalformed)
		}
		switch rest := data[end+2:]; data[end+1] {
		case 'U':
		case 'L', '4', '6':
			if len(rest) < 3 || rest[len(rest)-1] != 0 {
				return fmt.Errorf("%w: connect without an address", errMalformed)
			}
		default:
			return fmt.Errorf("%w: address family %q", errMalformed, data[end+1])
		}
	case codeMail, codeRcpt, codeHelo, codeUnknown, codeHeader:
		if len(data) == 0 || data[len(data)-1] != 0 {
			return fmt.Errorf("%w: %q without its NUL", errMalformed, code)
		}
	case codeMacros:
		if len(data) == 0 || len(data) > 1 && data[len(data)-1] != 0 {
			return fmt.Errorf("%w: macros without their event or NUL", errMalformed)
		}
	case codeEOM:
		// The library would pass over body bytes in it, and nobody sends any.
		if len(data) > 0 {
			return fmt.Errorf("%w: end of message with %d bytes", errMalformed, len(data))
		}
	case codeBody, codeAbort, codeEOH, codeData, codeQuit, codeQuitNew:
	default:
		return fmt.Errorf("%w: unknown code %q", errMalformed, code)
	}
	return nil
}

// startBuffer holds what comes at once in a usual session; a connection that
// waits keeps no more than four of it.
const startBuffer = 4 << 10

// modifications are the packets that are only answers in part: a final one
// always follows, and they can be sent together with it.
const (
	modifications = "+2-bhmieq"
	codeProgress  = 'p'
)

// maxHeld is the most bytes of modifications that wait for the final answer.
const maxHeld = 64 << 10

// conn hands the library whole, checked packets only, and sends whole answers.
// Reading and writing are each done by one goroutine at a time, mostly the
// session's.
type conn struct {
	net.Conn
	door  *door.Conn  // told what is being done; nil in tests
	ended func(*conn) // called once, when the connection is closed

	buf          []byte
	next, ok, in int // buf[next:ok] is checked, buf[ok:in] has arrived

	out  []byte // answers not sent yet
	left int    // bytes that the last packet in out lacks
	hold bool   // that packet waits for the next one

	acker *quickack.Acker
	due   bool // something has arrived since the last answer

	last   byte // code of the last packet handed out
	err    error
	closed atomic.Bool

	phase   door.Phase
	message atomic.Bool // a message is under way

	// For a session that goes on in the next process, or comes from another.
	said          saying
	givenUp       func(*conn) error // notes it; nil: it does not go on
	giveUp        atomic.Bool
	giveUpMessage atomic.Bool // even with a message under way
	past          []byte      // what is told first, as if the MTA said it
	telling       bool        // that is being done: nothing is answered
	lost          bool        // a message was under way in that past
	hasTold       func()      // called when that is over
}

func newConn(c net.Conn, d *door.Conn, ended func(*conn)) *conn {
	return &conn{Conn: c, door: d, ended: ended, buf: make([]byte, startBuffer), acker: quickack.Of(c), phase: door.Opening}
}

// enter begins a phase: door.Answering is the time in which the session's
// goroutine has something to do.
func (c *conn) enter(p door.Phase) {
	c.phase = p
	if c.door != nil {
		c.door.Enter(p, time.Now())
	}
}

// setMessage says whether a message is under way.
func (c *conn) setMessage(b bool) {
	c.message.Store(b)
	if c.door != nil {
		c.door.SetBusy(b)
	}
}

// Read gives bytes of checked packets. Every error is io.EOF for the library,
// which would log the others without saying whose they are.
func (c *conn) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, io.EOF
	}
	if c.next == c.ok {
		if c.err = c.fill(); c.err != nil {
			return 0, io.EOF
		}
	}
	n := copy(p, c.buf[c.next:c.ok])
	c.next += n
	return n, nil
}

// fill waits until one packet at least is whole, and checks all that are.
func (c *conn) fill() error {
	for {
		for {
			n, err := c.frame()
			if err != nil && c.ok == c.next {
				return err
			}
			if n == 0 || err != nil {
				break // what is right goes first
			}
			c.note(c.buf[c.ok : c.ok+n])
			c.ok += n
			if c.last == codeMail || c.last == codeEOM || c.last == codeAbort {
				break // what follows is noted when its turn comes
			}
		}
		if c.ok > c.next {
			if c.phase != door.Answering {
				c.enter(door.Answering)
			}
			return nil
		}
		if c.telling = len(c.past) > 0; c.telling {
			c.buf, c.past = c.past, nil
			c.next, c.ok, c.in = 0, 0, len(c.buf)
			continue
		}
		if c.lost {
			c.lost = false
			c.setMessage(true)
		}
		if c.hasTold != nil {
			c.hasTold()
			c.hasTold = nil
		}
		c.makeRoom()
		switch {
		case c.in > c.ok:
			if c.phase != door.Reading {
				c.enter(door.Reading)
			}
		case c.phase != door.Opening:
			c.enter(door.Waiting)
		}
		if c.due && !c.inBody() {
			c.acker.Now()
		}
		n, err := c.Conn.Read(c.buf[c.in:])
		c.in += n
		c.due = c.due || n > 0
		switch {
		case n > 0 || err == nil:
		case !c.giveUp.Load() || !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case c.in == 0 && (!c.message.Load() || c.giveUpMessage.Load()):
			if err := c.givenUp(c); err != nil {
				return err
			}
			return door.ErrGivenUp
		default: // not now
			if err := c.door.Resume(); err != nil {
				return err
			}
		}
	}
}

// inBody reports whether a part of a packet of the body has arrived. More of it
// is on its way then; anything else the MTA may keep back until it knows that
// the packet before, which needs no answer, has been received.
func (c *conn) inBody() bool { return c.in-c.ok > prefixLength && c.buf[c.ok+prefixLength] == codeBody }

// frame returns the length of the packet at ok, or 0 when it is not whole yet.
func (c *conn) frame() (int, error) {
	b := c.buf[c.ok:c.in]
	if len(b) < prefixLength {
		return 0, nil
	}
	length := binary.BigEndian.Uint32(b)
	switch {
	case length == 0:
		return 0, fmt.Errorf("%w: a packet of no bytes", errMalformed)
	case length > maxContentFrame:
		return 0, fmt.Errorf("%w: a packet of %d bytes", errTooLong, length)
	case len(b) == prefixLength:
		return 0, nil
	}
	code := b[prefixLength]
	if int(length) > frameLimit(code) {
		return 0, fmt.Errorf("%w: a packet %q of %d bytes", errTooLong, code, length)
	}
	n := prefixLength + int(length)
	if len(b) < n {
		return 0, nil
	}
	return n, checkFrame(code, b[prefixLength+1:n])
}

// makeRoom makes the buffer large enough for the packet at ok, all of whose
// predecessors have been read. A large buffer is kept for large packets only.
func (c *conn) makeRoom() {
	need := startBuffer
	b := c.buf[c.ok:c.in]
	if len(b) > prefixLength {
		need = max(need, prefixLength+int(binary.BigEndian.Uint32(b)))
	}
	switch {
	case need > len(c.buf):
		// A power of two: the chunks of a body do not each move the buffer.
		size := startBuffer
		for size < need {
			size *= 2
		}
		grown := make([]byte, size)
		copy(grown, b)
		c.buf = grown
	case len(b) == 0 && len(c.buf) > 4*startBuffer && c.last != codeBody && c.last != codeHeader:
		c.buf = make([]byte, startBuffer)
	case c.ok > 0:
		copy(c.buf, b)
	}
	c.next, c.ok, c.in = 0, 0, len(b)
}

// note keeps track of what has been said, and of whether a message is under way.
func (c *conn) note(packet []byte) {
	if c.givenUp != nil {
		c.said.note(packet)
	}
	c.last = packet[prefixLength]
	switch c.last {
	case codeMail:
		c.setMessage(true)
	case codeAbort, codeQuit, codeQuitNew:
		c.setMessage(false)
	}
}

// Write takes an answer, which the library gives in pieces, and sends it when
// it is whole. Modifications wait for the final answer.
func (c *conn) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if c.left == 0 {
			// The library writes the length and the code in one piece.
			if len(p) <= prefixLength {
				return 0, fmt.Errorf("milter: an answer of %d bytes", len(p))
			}
			c.left = prefixLength + int(binary.BigEndian.Uint32(p))
			c.hold = strings.IndexByte(modifications, p[prefixLength]) >= 0
			if c.last == codeEOM && !c.hold && p[prefixLength] != codeProgress {
				c.setMessage(false)
			}
		}
		n := min(c.left, len(p))
		c.out = append(c.out, p[:n]...)
		c.left -= n
		p = p[n:]
		if c.left > 0 || c.hold && len(c.out) < maxHeld {
			continue
		}
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	return total, nil
}

func (c *conn) flush() error {
	if out := c.out; c.givenUp != nil && len(out) >= prefixLength+13 && out[prefixLength] == codeOptions {
		word := func(i int) uint32 { return binary.BigEndian.Uint32(out[prefixLength+1+4*i:]) }
		c.said.agreed = agreement{word(0), gomilter.OptAction(word(1)), gomilter.OptProtocol(word(2))}
	}
	if c.telling {
		c.out = c.out[:0] // the MTA has had its answers
		return nil
	}
	before := c.phase
	c.enter(door.Writing)
	_, err := c.Conn.Write(c.out)
	c.due = false
	if c.out = c.out[:0]; cap(c.out) > 4*startBuffer {
		c.out = nil
	}
	if err != nil {
		c.err = err
		return io.EOF // as in Read
	}
	c.enter(before)
	return nil
}

// The library sets deadlines for the first packet and for each answer. They
// cost more than the packets; the server watches the phases instead.

func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// Close closes the connection, once.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	err := c.Conn.Close()
	c.ended(c)
	return err
}
