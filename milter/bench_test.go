package milter

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	gomilter "github.com/d--j/go-milter"

	"postern/dialog"
	"postern/policy"
)

// floor is a milter on the same library that answers every step and does
// nothing.
type floor struct{ gomilter.NoOpMilter }

func (floor) RcptTo(string, string, gomilter.Modifier) (*gomilter.Response, error) {
	return gomilter.RespContinue, nil
}

func (floor) Header(string, string, gomilter.Modifier) (*gomilter.Response, error) {
	return gomilter.RespContinue, nil
}

func (floor) BodyChunk([]byte, gomilter.Modifier) (*gomilter.Response, error) {
	return gomilter.RespContinue, nil
}

// load is one SMTP session as Postfix tells it, with 8 header fields and a
// body of 2 kB.
type load struct {
	c     net.Conn
	r     *bufio.Reader
	w     *bufio.Writer
	steps gomilter.OptProtocol
}

var loadHeader = func() (out [][]byte) {
	for i := range 8 {
		out = append(out, packets(packet(codeMacros, "Li\x004abc\x00"), packet(codeHeader, fmt.Sprintf("X-Field-%d\x00 a value of some words, number %d\x00", i, i))))
	}
	return out
}()

var loadBody = packets(packet(codeMacros, "Bi\x004abc\x00"), packet(codeBody, strings.Repeat("x", 2000)))

func (l *load) event(code byte, b []byte) error {
	if l.steps&noEvent[code] != 0 {
		return nil
	}
	if _, err := l.w.Write(b); err != nil {
		return err
	}
	if l.steps&noReply[code] != 0 {
		return l.w.Flush() // whether or not Postfix does
	}
	return l.answer(nil)
}

// answer waits for one that is final.
func (l *load) answer(data []byte) error {
	if err := l.w.Flush(); err != nil {
		return err
	}
	for {
		var head [5]byte
		if _, err := io.ReadFull(l.r, head[:]); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint32(head[:])) - 1
		if head[4] == codeOptions {
			if _, err := io.ReadFull(l.r, data[:12]); err != nil {
				return err
			}
			n -= 12
		}
		if _, err := l.r.Discard(n); err != nil {
			return err
		}
		if strings.IndexByte(modifications, head[4]) < 0 {
			return nil
		}
	}
}

var (
	loadConnect = packets(packet(codeMacros, "Cj\x00mx.example.com\x00v\x00Postfix 3.7.11\x00{daemon_addr}\x00192.0.2.10\x00{client_ptr}\x00mail.example.org\x00{client_resolve}\x00OK\x00"),
		packet(codeConnect, "mail.example.org\x004\x9d\x13192.0.2.7\x00"))
	loadHelo = packets(packet(codeMacros, "H{tls_version}\x00TLSv1.3\x00"), packet(codeHelo, "mail.example.org\x00"))
	loadMail = packets(packet(codeMacros, "M"), packet(codeMail, "<ann@example.org>\x00SIZE=1234\x00"))
	loadRcpt = packets(packet(codeMacros, "R"), packet(codeRcpt, "<bob@example.com>\x00"))
	loadData = packet(codeMacros, "Ti\x004abc\x00")
	loadEOH  = packets(packet(codeMacros, "Ni\x004abc\x00"), packet(codeEOH))
	loadEOM  = packets(packet(codeMacros, "Ei\x004abc\x00"), packet(codeEOM))
	loadBye  = packets(packet(codeAbort), packet(codeQuit))
)

// session sends one, from the negotiation to QUIT.
func (l *load) session(addr string) (err error) {
	if l.c, err = net.Dial("unix", addr); err != nil {
		return err
	}
	defer l.c.Close() //nolint:errcheck // the end
	l.r.Reset(l.c)
	l.w.Reset(l.c)
	l.steps = 0
	if _, err := l.w.Write(negotiation); err != nil {
		return err
	}
	var data [12]byte
	if err := l.answer(data[:]); err != nil {
		return err
	}
	l.steps = gomilter.OptProtocol(binary.BigEndian.Uint32(data[8:]))
	do := func(code byte, b []byte) {
		if err == nil {
			err = l.event(code, b)
		}
	}
	do(codeConnect, loadConnect)
	do(codeHelo, loadHelo)
	do(codeMail, loadMail)
	do(codeRcpt, loadRcpt)
	if _, e := l.w.Write(loadData); err == nil {
		err = e
	}
	do(codeData, packet(codeData))
	for _, h := range loadHeader {
		do(codeHeader, h)
	}
	do(codeEOH, loadEOH)
	do(codeBody, loadBody)
	if err == nil {
		_, err = l.w.Write(loadEOM)
	}
	if err == nil {
		err = l.answer(nil)
	}
	if err == nil {
		_, err = l.w.Write(loadBye)
	}
	if err == nil {
		err = l.w.Flush()
	}
	return err
}

// skimmer is a Content that looks at all and keeps nothing.
type skimmer struct{ n int }

func (s *skimmer) Header(f policy.Field) { s.n += len(f.Name) + len(f.Value) }
func (s *skimmer) EndOfHeaders()         {}
func (s *skimmer) Body(p []byte) bool    { s.n += len(p); return true }
func (s *skimmer) Abandon()              {}
func (s *skimmer) End(context.Context, *policy.Request, *policy.Decision) []policy.Edit {
	return nil
}

// BenchmarkSession compares whole sessions, 10 at once, with the floor.
func BenchmarkSession(b *testing.B) {
	run := func(b *testing.B, addr string) {
		b.ReportAllocs()
		b.SetParallelism(5) // for each of two processors
		b.RunParallel(func(pb *testing.PB) {
			l := &load{r: bufio.NewReader(nil), w: bufio.NewWriter(nil)}
			for pb.Next() {
				if err := l.session(addr); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	b.Run("floor", func(b *testing.B) {
		path := filepath.Join(b.TempDir(), "f.sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			b.Fatal(err)
		}
		s := gomilter.NewServer(gomilter.WithMilter(func() gomilter.Milter { return floor{} }))
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }() // it ends with Shutdown
		run(b, path)
		_ = s.Shutdown(context.Background()) // the end
		<-done
	})
	for _, kind := range []struct {
		name     string
		wants    Wants
		envelope bool
	}{
		{"headers", Wants{Content: true}, false},
		{"bodies", Wants{Content: true, Bodies: true}, false},
		{"envelope", Wants{Stages: policy.Stages(policy.StageRcpt), Content: true, Bodies: true}, true},
	} {
		b.Run(kind.name, func(b *testing.B) {
			_, addr := start(b, &counted{kind.wants}, func(c *Config, o *Options) {
				c.Envelope, o.Dialogs = kind.envelope, dialog.New(100)
			})
			run(b, addr.String())
		})
	}
}

// counted is a handler without objections.
type counted struct{ wants Wants }

func (c *counted) Decide(context.Context, *policy.Request, *policy.Decision) {}
func (c *counted) Inspect(*policy.Request, []policy.Address) Content         { return &skimmer{} }
func (c *counted) Wants(string) Wants                                        { return c.wants }

// BenchmarkGuard is the guard alone, over what one session sends.
func BenchmarkGuard(b *testing.B) {
	data := aSession()
	f := &fakeConn{step: 1 << 20}
	buf := make([]byte, 4096)
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		f.in = data
		c := newConn(f, nil, func(*conn) {})
		for {
			if _, err := c.Read(buf); err != nil {
				break
			}
		}
	}
}
