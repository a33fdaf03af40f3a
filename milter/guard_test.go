package milter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	gomilter "github.com/d--j/go-milter"
)

// packet returns a packet as it stands on the wire.
func packet(code byte, data ...string) []byte {
	text := strings.Join(data, "")
	b := binary.BigEndian.AppendUint32(nil, uint32(len(text)+1))
	return append(append(b, code), text...)
}

func packets(ps ...[]byte) []byte { return bytes.Join(ps, nil) }

// negotiation is what Postfix 3.7 offers.
var negotiation = packet(codeOptions, "\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff")

// aSession is what Postfix sends for one session with one message.
func aSession() []byte {
	return packets(
		negotiation,
		packet(codeMacros, "Cj\x00mx.example.com\x00{client_port}\x0040211\x00"),
		packet(codeConnect, "mail.example.org\x004\x9d\x13192.0.2.7\x00"),
		packet(codeMacros, "H"),
		packet(codeHelo, "mail.example.org\x00"),
		packet(codeMacros, "M{mail_addr}\x00ann@example.org\x00"),
		packet(codeMail, "<ann@example.org>\x00SIZE=1000\x00"),
		packet(codeMacros, "R{rcpt_addr}\x00bob@example.com\x00"),
		packet(codeRcpt, "<bob@example.com>\x00"),
		packet(codeMacros, "Ti\x004abc\x00"),
		packet(codeData),
		packet(codeMacros, "Li\x004abc\x00"),
		packet(codeHeader, "Subject\x00 hello\x00"),
		packet(codeEOH),
		packet(codeBody, "hello\r\n"),
		packet(codeEOM),
		packet(codeAbort),
		packet(codeQuit),
	)
}

func TestFramesThatPass(t *testing.T) {
	for b := aSession(); len(b) > 0; {
		n := prefixLength + int(binary.BigEndian.Uint32(b))
		if err := checkFrame(b[prefixLength], b[prefixLength+1:n]); err != nil {
			t.Errorf("%q: %v", b[:n], err)
		}
		b = b[n:]
	}
	for _, data := range []string{"\x00U", "unknown\x00U\x00", "localhost\x00L\x00\x00/run/x\x00", "[2001:db8::1]\x006\x00\x192001:db8::1\x00"} {
		if err := checkFrame(codeConnect, []byte(data)); err != nil {
			t.Errorf("connect %q: %v", data, err)
		}
	}
}

func TestFramesThatEndTheConnection(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    []byte
		want error
	}{
		{"no code", []byte("\x00\x00\x00\x00"), errMalformed},
		{"all of 4 GB", []byte("\xff\xff\xff\xff"), errTooLong},
		{"long command", []byte("\x00\x01\x00\x01M"), errTooLong},
		{"long chunk", []byte("\x00\x10\x00\x01B"), errTooLong},
		{"unknown code", packet('!'), errMalformed},
		{"an answer", packet('c'), errMalformed},
		{"short negotiation", packet(codeOptions, "\x00\x00\x00\x06"), errMalformed},
		{"connect, nothing", packet(codeConnect), errMalformed},
		{"connect, no NUL", packet(codeConnect, "mail.example.org"), errMalformed},
		{"connect, no family", packet(codeConnect, "mail.example.org\x00"), errMalformed},
		{"connect, odd family", packet(codeConnect, "mail.example.org\x00X\x00\x19192.0.2.7\x00"), errMalformed},
		{"connect, no port", packet(codeConnect, "mail.example.org\x004"), errMalformed},
		{"connect, no end", packet(codeConnect, "mail.example.org\x004\x00\x19192.0.2.7"), errMalformed},
		{"helo, nothing", packet(codeHelo), errMalformed},
		{"helo, no NUL", packet(codeHelo, "x"), errMalformed},
		{"mail, no NUL", packet(codeMail, "<a@example.org>"), errMalformed},
		{"mail, no NUL at the end", packet(codeMail, "<a@example.org>\x00SIZE=1"), errMalformed},
		{"rcpt, no NUL", packet(codeRcpt, "<a@example.org>"), errMalformed},
		{"header, no NUL", packet(codeHeader, "Subject"), errMalformed},
		{"unknown command, nothing", packet(codeUnknown), errMalformed},
		{"macros, nothing", packet(codeMacros), errMalformed},
		{"macros, no NUL", packet(codeMacros, "Cj\x00mx"), errMalformed},
		{"body in the end", packet(codeEOM, "text"), errMalformed},
	} {
		// Between packets that are right, whole and byte by byte.
		for _, step := range []int{1, 1 << 20} {
			c := newConn(&fakeConn{in: packets(negotiation, tt.b, negotiation), step: step}, nil, func(*conn) {})
			got, err := io.ReadAll(c)
			if err != nil || !errors.Is(c.err, tt.want) {
				t.Errorf("%s: %v, %v", tt.name, err, c.err)
			}
			if !bytes.Equal(got, negotiation) {
				t.Errorf("%s: %q was let through", tt.name, got)
			}
		}
	}
}

// fakeConn gives in by pieces of at most step bytes, and keeps what is written.
type fakeConn struct {
	net.Conn
	in     []byte
	step   int
	writes [][]byte
}

func (c *fakeConn) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.in[:min(c.step, len(c.in))])
	c.in = c.in[n:]
	return n, nil
}

func (c *fakeConn) Write(p []byte) (int, error) {
	c.writes = append(c.writes, bytes.Clone(p))
	return len(p), nil
}

func (c *fakeConn) Close() error { return nil }

func TestLargePacketsDoNotKeepTheirMemory(t *testing.T) {
	large := packet(codeBody, strings.Repeat("x", 65535))
	in := packets(negotiation, large, large, packet(codeEOM), packet(codeAbort))
	f := &fakeConn{in: in, step: 3000}
	c := newConn(f, nil, func(*conn) {})
	got := make([]byte, len(in))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, in) {
		t.Fatalf("%v: %d of %d bytes are the same", err, len(got), len(in))
	}
	if len(c.buf) < 65536 {
		t.Errorf("a buffer of %d bytes held a chunk", len(c.buf))
	}
	f.in = packets(packet(codeQuit))
	if _, err := io.ReadAll(c); err != nil || len(c.buf) != startBuffer {
		t.Errorf("%v: the buffer still has %d bytes", err, len(c.buf))
	}
}

func TestAnswersGoOutWhole(t *testing.T) {
	f := &fakeConn{}
	c := newConn(f, nil, func(*conn) {})
	write := func(p []byte, cut int) { // as the library: length and code, then data
		t.Helper()
		for _, part := range [][]byte{p[:cut], p[cut:]} {
			if len(part) == 0 {
				continue
			}
			if n, err := c.Write(part); n != len(part) || err != nil {
				t.Fatal(n, err)
			}
		}
	}
	want := func(what string, ps ...[]byte) {
		t.Helper()
		if len(f.writes) != len(ps) {
			t.Fatalf("%s: %d writes, want %d", what, len(f.writes), len(ps))
		}
		for i := range ps {
			if !bytes.Equal(f.writes[i], ps[i]) {
				t.Errorf("%s: write %d is %.40q, want %.40q", what, i, f.writes[i], ps[i])
			}
		}
		f.writes = nil
	}
	c.last = codeEOM
	c.message.Store(true)
	header, final := packet('h', "A\x00b\x00"), packet('a')
	write(header, 5)
	write(packet('q', "why\x00"), 5)
	want("modifications alone")
	write(packet('p'), 5)
	want("a sign of life", packets(header, packet('q', "why\x00"), packet('p')))
	if !c.message.Load() {
		t.Error("a sign of life ended the message")
	}
	write(header, 5)
	write(final, 5)
	want("the final answer", packets(header, final))
	if c.message.Load() {
		t.Error("the message goes on after its final answer")
	}
	chunk := packet('b', strings.Repeat("x", 65535))
	write(chunk, 5)
	write(chunk, 5)
	write(final, 5)
	want("a new body", chunk, chunk, final)
}

// pipe serves one connection with the library behind the guard. The returned
// function waits for the library to be done with it.
func pipe(t testing.TB, backend gomilter.Milter, options ...gomilter.Option) (client net.Conn, guard *conn, wait func()) {
	t.Helper()
	client, nc := net.Pipe()
	var wg sync.WaitGroup
	wg.Add(1)
	guard = newConn(nc, nil, func(*conn) { wg.Done() })
	l := &oneConn{c: make(chan net.Conn, 1), done: make(chan struct{})}
	l.c <- guard
	s := gomilter.NewServer(append(options, gomilter.WithMilter(func() gomilter.Milter { return backend }))...)
	wg.Go(func() { _ = s.Serve(l) }) // it ends when l is closed
	return client, guard, func() {
		_ = l.Close() // as above
		wg.Wait()
	}
}

type oneConn struct {
	c    chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	default:
	}
	select {
	case c := <-l.c:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error { l.once.Do(func() { close(l.done) }); return nil }
func (l *oneConn) Addr() net.Addr {
	return &net.UnixAddr{Name: "test", Net: "unix"}
}

// FuzzFrames gives the library arbitrary bytes, in pieces of any size, behind
// the guard: it neither panics, which would end the process, nor hangs. What
// the guard lets through does not depend on the pieces.
func FuzzFrames(f *testing.F) {
	f.Add(aSession(), uint16(1))
	f.Add(aSession(), uint16(5000))
	for _, b := range [][]byte{
		packet(codeConnect, "x\x00"), packet(codeConnect, "x"), packet(codeConnect, "x\x004\x00"), packet(codeMail, "x"), packet(codeRcpt),
		packet(codeHelo), packet(codeMacros), packet(codeMacros, "M\x00"), packet(codeMacros, "Zi\x00\x00\x00"), packet(codeHeader, "\x00"),
		packet(codeHeader, "\x00\x00\x00\x00"), packet(codeUnknown, "\x00"), packet(codeOptions, strings.Repeat("\x00", 12)), packet(codeQuitNew),
		packet(codeConnect, "x\x006\x00\x00[]\x00"), packet(codeConnect, "x\x006\x00\x00IPv6:[\x00"),
		{0, 0, 0, 0},
		{255, 255, 255, 255, 0},
	} {
		f.Add(packets(negotiation, b, packet(codeAbort)), uint16(7))
		f.Add(b, uint16(7))
	}
	f.Fuzz(func(t *testing.T, data []byte, step uint16) {
		client, _, wait := pipe(t, gomilter.NoOpMilter{}, gomilter.WithProtocol(gomilter.OptSkip))
		go func() {
			for rest := data; len(rest) > 0; {
				n := min(int(step)+1, len(rest))
				if _, err := client.Write(rest[:n]); err != nil {
					break // it was refused
				}
				rest = rest[n:]
			}
			_ = client.Close() // the end of the session
		}()
		_, _ = io.Copy(io.Discard, client) // the answers
		wait()

		one, _ := io.ReadAll(newConn(&fakeConn{in: data, step: 1}, nil, func(*conn) {}))
		all, _ := io.ReadAll(newConn(&fakeConn{in: data, step: 1 << 20}, nil, func(*conn) {}))
		if !bytes.Equal(one, all) {
			t.Fatalf("byte by byte %q\nat once %q", one, all)
		}
	})
}
