package lookup

import (
	"bytes"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/netstring"
)

// benchTables are tables of 100,000 entries each.
func benchTables(b *testing.B) *Tables {
	dir := b.TempDir()
	var names, nets strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&names, "user%d@host%d.example.org REJECT number %d\n", i, i%1000, i)
		fmt.Fprintf(&nets, "10.%d.%d.0/24 REJECT number %d\n", i>>8&0xff, i&0xff, i)
	}
	return newTable(b, map[string]TableConfig{
		"exact":  {Source: "texthash:" + write(b, filepath.Join(dir, "names"), names.String(), longAgo), Search: SearchExact},
		"access": {Source: "texthash:" + filepath.Join(dir, "names"), Search: SearchAccess, Delimiters: "+"},
		"cidr":   {Source: "cidr:" + write(b, filepath.Join(dir, "nets"), nets.String(), longAgo)},
		"pcre":   {Source: "pcre:" + write(b, filepath.Join(dir, "pcre"), "/^dyn-(\\d+)\\./ REJECT\n/\\.dial\\.example\\.org$/ REJECT\n", longAgo)},
		"domain": {MapDomains: map[string]string{"a.example": "b.example"}, AnswerDomains: true},
	})
}

// BenchmarkAnswer is a look-up without its connection.
func BenchmarkAnswer(b *testing.B) {
	tables := benchTables(b)
	d := start(b, tables.Maps(), nil)
	for _, bb := range []struct{ name, request, want string }{
		{"texthash", "exact user77777@host777.example.org", "OK REJECT number 77777"},
		{"texthash-miss", "exact nobody@host777.example.org", "NOTFOUND "},
		{"access-miss", "access nobody+ext@a.b.host777.example.org", "NOTFOUND "},
		{"cidr", "cidr 10.77.77.77", "OK REJECT number 19789"},
		{"cidr-miss", "cidr 2001:db8::1", "NOTFOUND "},
		{"pcre-miss", "pcre mail.example.org", "NOTFOUND "},
		{"domain", "domain user@a.example", "OK user@b.example"},
		{"unknown", "none x", `TEMP postern has no table "none"`},
	} {
		b.Run(bb.name, func(b *testing.B) {
			request := []byte(bb.request)
			out := d.answer(b.Context(), nil, request)
			if content, _, err := netstring.Next(out, maxReply); err != nil || string(content) != bb.want {
				b.Fatalf("%q, %v", content, err)
			}
			b.ReportAllocs()
			for b.Loop() {
				out = d.answer(b.Context(), out[:0], request)
			}
		})
	}
}

// echoServer reads a netstring and sends it back: what no server of the
// protocol can be faster than.
func echoServer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close() //nolint:errcheck // the peer is gone
			buf := make([]byte, 0, 4096)
			for {
				n, err := c.Read(buf[len(buf):cap(buf)])
				if err != nil {
					return
				}
				buf = buf[:len(buf)+n]
				if _, n, _ := netstring.Next(buf, maxReply); n == 0 {
					continue
				}
				if _, err := c.Write(buf); err != nil {
					return
				}
				buf = buf[:0]
			}
		}()
	}
}

// load asks n times over each of 10 connections.
func load(b *testing.B, conns []net.Conn, request []byte, n int) time.Duration {
	var wg sync.WaitGroup
	begin := time.Now()
	for _, c := range conns {
		wg.Go(func() {
			buf := make([]byte, 4096)
			for range n {
				if _, err := c.Write(request); err != nil {
					b.Error(err)
					return
				}
				for got := 0; ; {
					m, err := c.Read(buf[got:])
					if err != nil {
						b.Error(err)
						return
					}
					if got += m; bytes.HasSuffix(buf[:got], []byte(",")) {
						break
					}
				}
			}
		})
	}
	wg.Wait()
	return time.Since(begin)
}

// BenchmarkDoorBesideEcho asks the door and an echo of netstrings in turn, each
// over 10 connections: "ratio" is the door's rate by that of the echo.
func BenchmarkDoorBesideEcho(b *testing.B) {
	const each = 200
	tables := benchTables(b)
	d := start(b, tables.Maps(), nil)
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "e.sock"))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the end
	go echoServer(l)
	dialAll := func(addr net.Addr) []net.Conn {
		conns := make([]net.Conn, 10)
		for i := range conns {
			conns[i] = dial(b, addr)
		}
		return conns
	}
	door, echo := dialAll(d.addr), dialAll(l.Addr())
	for _, bb := range []struct{ name, request string }{
		{"texthash", "exact user77777@host777.example.org"},
		{"access-miss", "access nobody+ext@a.b.host777.example.org"},
		{"cidr", "cidr 10.77.77.77"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			request := netstring.Append(nil, bb.request)
			var echoed, looked time.Duration
			for b.Loop() {
				echoed += load(b, echo, request, each)
				looked += load(b, door, request, each)
			}
			b.ReportMetric(float64(echoed)/float64(looked), "ratio")
			b.ReportMetric(float64(looked.Nanoseconds())/float64(b.N)/each/10, "ns/lookup")
			b.ReportMetric(0, "ns/op")
		})
	}
}
