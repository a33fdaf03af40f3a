package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	gomilter "github.com/d--j/go-milter"
)

// milterFloor is a milter on the same library that answers every step and
// does nothing. It serves on unix sockets and, where an address has no slash,
// over tcp, until standard input ends.
func milterFloor(addresses string) error {
	s := gomilter.NewServer(gomilter.WithMilter(func() gomilter.Milter { return nothing{} }))
	for address := range strings.FieldsSeq(addresses) {
		network := "unix"
		if !strings.Contains(address, "/") {
			network = "tcp"
		}
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		go s.Serve(l) //nolint:errcheck // it ends with the process
	}
	defer s.Shutdown(context.Background()) //nolint:errcheck // as above
	return untilEnd()
}

// nothing continues where the library's NoOpMilter takes an end.
type nothing struct{ gomilter.NoOpMilter }

func (nothing) RcptTo(string, string, gomilter.Modifier) (*gomilter.Response, error) {
	return gomilter.RespContinue, nil
}

func (nothing) Header(string, string, gomilter.Modifier) (*gomilter.Response, error) {
	return gomilter.RespContinue, nil
}

func (nothing) BodyChunk([]byte, gomilter.Modifier) (*gomilter.Response, error) {
	return gomilter.RespContinue, nil
}

// packet is a milter packet: its length, a code, its data.
func packet(code byte, data string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(data)+1))) + string(code) + data
}

// event is what the MTA says at one point of a session: macros, then the event.
type event struct {
	text            string
	noEvent, noData gomilter.OptProtocol // the steps by which it is not sent, or not answered
}

// mailSession is a session with one message of eight header fields and two
// kilobytes of body.
var mailSession = sessionOf("198.51.100.7", []string{
	"Received: from inside.example.org (inside.example.org [198.51.100.9])\n\tby mail.example.org with ESMTPS id 1234567890\n\tfor <bob@example.com>; Thu, 1 Jan 2026 00:00:00 +0000",
	"From: Ann Example <ann@example.org>", "To: Bob Example <bob@example.com>", "Subject: the minutes of our meeting last week", "Date: Thu, 1 Jan 2026 00:00:00 +0000",
	"Message-ID: <20260101000000.1234@mail.example.org>", "MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8",
}, strings.Repeat("some forty bytes of text in each line.\r\n", 50))

// sessionOf is a session as Postfix 3.7 tells it.
func sessionOf(client string, fields []string, body string) []event {
	macros := func(of byte, pairs ...string) string {
		return packet('D', string(of)+strings.Join(pairs, "\x00")+"\x00")
	}
	s := []event{
		{macros('C', "j", "mx.example.com", "v", "Postfix 3.7.11", "{daemon_addr}", "192.0.2.10", "{daemon_port}", "25", "{client_ptr}", "mail.example.org", "{client_resolve}", "OK") +
			packet('C', "mail.example.org\x004\x9d\x13"+client+"\x00"), gomilter.OptNoConnect, gomilter.OptNoConnReply},
		{macros('H', "{tls_version}", "TLSv1.3") + packet('H', "mail.example.org\x00"), gomilter.OptNoHelo, gomilter.OptNoHeloReply},
		{packet('D', "M") + packet('M', "<ann@example.org>\x00SIZE=2748\x00"), gomilter.OptNoMailFrom, gomilter.OptNoMailReply},
		{packet('D', "R") + packet('R', "<bob@example.com>\x00"), gomilter.OptNoRcptTo, gomilter.OptNoRcptReply},
		{macros('T', "i", "4XyZabc") + packet('T', ""), gomilter.OptNoData, gomilter.OptNoDataReply},
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ":")
		s = append(s, event{macros('L', "i", "4XyZabc") + packet('L', name+"\x00"+value+"\x00"), gomilter.OptNoHeaders, gomilter.OptNoHeaderReply})
	}
	return append(s,
		event{macros('N', "i", "4XyZabc") + packet('N', ""), gomilter.OptNoEOH, gomilter.OptNoEOHReply},
		event{macros('B', "i", "4XyZabc") + packet('B', body), gomilter.OptNoBody, gomilter.OptNoBodyReply},
		event{macros('E', "i", "4XyZabc") + packet('E', ""), 0, 0},
	)
}

// mta is the MTA's side of a session, in a thread that blocks in the kernel.
type mta struct {
	fd      int
	in, out []byte
	read    int // of in, by the last answer
}

func (m *mta) flush() error {
	for len(m.out) > 0 {
		n, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(m.fd), uintptr(unsafe.Pointer(&m.out[0])), uintptr(len(m.out)))
		if e != 0 {
			return e
		}
		m.out = m.out[n:]
	}
	return nil
}

// answer reads one packet, which is valid until the next.
func (m *mta) answer() ([]byte, error) {
	m.in = m.in[:copy(m.in, m.in[m.read:])]
	m.read = 0
	for {
		if len(m.in) >= 4 {
			if n := int(binary.BigEndian.Uint32(m.in)); len(m.in) >= 4+n {
				m.read = 4 + n
				return m.in[4:m.read], nil
			}
		}
		if len(m.in) == cap(m.in) {
			return nil, errors.New("an answer is too long")
		}
		room := m.in[len(m.in):cap(m.in)]
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(m.fd), uintptr(unsafe.Pointer(&room[0])), uintptr(len(room)))
		if e != 0 {
			return nil, e
		}
		if n == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		m.in = m.in[:len(m.in)+int(n)]
	}
}

var offer = packet('O', "\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff")

// session sends one whole session. What is not answered waits in the buffer,
// as in Postfix. It returns how many changes were asked for.
func (m *mta) session(addr *syscall.SockaddrUnix, events []event, buf []byte) (changes int, err error) {
	m.in, m.read = m.in[:0], 0
	if m.fd, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0); err != nil {
		return 0, err
	}
	defer syscall.Close(m.fd) //nolint:errcheck // the end
	if err := syscall.Connect(m.fd, addr); err != nil {
		return 0, err
	}
	m.out = append(buf[:0], offer...)
	if err := m.flush(); err != nil {
		return 0, err
	}
	a, err := m.answer()
	if err != nil {
		return 0, err
	}
	if len(a) < 13 || a[0] != 'O' {
		return 0, fmt.Errorf("negotiation: %q", a)
	}
	steps := gomilter.OptProtocol(binary.BigEndian.Uint32(a[9:]))
	m.out = buf[:0]
	for i := range events {
		e := &events[i]
		if steps&e.noEvent != 0 && e.noEvent != 0 {
			continue
		}
		m.out = append(m.out, e.text...)
		if steps&e.noData != 0 {
			continue
		}
		if err := m.flush(); err != nil {
			return 0, err
		}
		m.out = buf[:0]
		for {
			if a, err = m.answer(); err != nil {
				return 0, err
			}
			if a[0] == 'h' || a[0] == 'i' || a[0] == 'm' {
				changes++
				continue
			}
			if a[0] == 'c' || a[0] == 'a' || a[0] == 's' {
				break
			}
			return 0, fmt.Errorf("answer %q to %q", a, e.text)
		}
	}
	m.out = append(m.out, packet('A', "")+packet('Q', "")...)
	return changes, m.flush()
}

// milterLoad runs sessions, ten at a time, and returns how many a second.
func milterLoad(t *testing.T, socket string) float64 { return milterLoadOf(t, socket, mailSession, 0) }

// milterLoadOf is the same for sessions that ask for so many changes.
func milterLoadOf(t *testing.T, socket string, events []event, changes int) float64 {
	t.Helper()
	var wg sync.WaitGroup
	var total atomic.Int64
	var failed atomic.Pointer[error]
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(conns + 2)) // each blocks a processor of the runtime's
	begin := time.Now()
	for range conns {
		wg.Go(func() {
			runtime.LockOSThread()
			m := &mta{in: make([]byte, 0, 4096)}
			addr := &syscall.SockaddrUnix{Name: socket}
			buf := make([]byte, 0, 64<<10)
			count := int64(0)
			for time.Since(begin) < roundTime {
				n, err := m.session(addr, events, buf)
				if err == nil && n != changes {
					err = fmt.Errorf("%d changes, want %d", n, changes)
				}
				if err != nil {
					failed.Store(&err)
					return
				}
				count++
			}
			total.Add(count)
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
	return float64(total.Load()) / time.Since(begin).Seconds()
}

// headerRules writes n rules of the kinds that administrators have. None
// matches the message, so all of it is looked at.
func headerRules(n int) string {
	var b strings.Builder
	for i := range n {
		switch i % 5 {
		case 0:
			fmt.Fprintf(&b, "/^Subject:.*\\b(cheap|free) offer%d\\b/ REJECT 5.7.1 not wanted\n", i)
		case 1:
			fmt.Fprintf(&b, "/^X-Mailer: *Sender%d( |$)/ REJECT\n", i)
		case 2:
			fmt.Fprintf(&b, "/^From:.*@spam%d\\.example/ HOLD\n", i)
		case 3:
			fmt.Fprintf(&b, "/^Content-(Type|Disposition):.*name\\s*=\\s*\"?[^\";]*\\.ex%d\"?\\s*(;|$)/ REJECT no such files\n", i)
		case 4:
			fmt.Fprintf(&b, "/^X-Inside-%d:/ IGNORE\n", i)
		}
	}
	return b.String()
}

// milterFigures measures whole milter sessions beside those of a milter that
// does nothing.
func milterFigures(t *testing.T, dir, dns string) {
	fl := filepath.Join(dir, "mfloor.sock")
	floor := start(t, "milterfloor", fl)
	type rival struct {
		name, socket         string
		d                    *child
		ratios, rates, costs []float64
	}
	var rivals []*rival
	for _, r := range []struct {
		name, headers string
		rules         int
	}{
		{"100 header rules", "", 100},
		{"1000 header rules", "", 1000},
		{"100 header and 100 body rules", "body", 100},
	} {
		key := fmt.Sprintf("m%d%s", r.rules, r.headers)
		table := filepath.Join(dir, key+".pcre")
		write(t, table, headerRules(r.rules))
		socket := filepath.Join(dir, key+"-m.sock")
		more := fmt.Sprintf("[store]\nkind = \"memory\"\n[milter]\nlisten = [\"unix:%s\"]\n[[headers.checks]]\ntable = \"pcre:%s\"\n", socket, table)
		if r.headers == "body" {
			lines := filepath.Join(dir, key+"-body.pcre")
			var b strings.Builder
			for i := range 100 {
				fmt.Fprintf(&b, "/^(buy|order) number %d now/ REJECT\n", i)
			}
			write(t, lines, b.String())
			more += fmt.Sprintf("[[headers.checks]]\ntable = \"pcre:%s\"\nkind = \"body\"\n", lines)
		}
		p := writeConfig(t, dir, key, dns, more)
		rivals = append(rivals, &rival{name: r.name, socket: socket, d: start(t, "daemon", p.config)})
	}
	var floorCost []float64
	for range rounds {
		used := floor.cpu(t)
		f := milterLoad(t, fl)
		floorCost = append(floorCost, float64((floor.cpu(t)-used).Microseconds())/(f*roundTime.Seconds()))
		for _, r := range rivals {
			used := r.d.cpu(t)
			rate := milterLoad(t, r.socket)
			r.costs = append(r.costs, float64((r.d.cpu(t)-used).Microseconds())/(rate*roundTime.Seconds()))
			r.ratios, r.rates = append(r.ratios, rate/f), append(r.rates, rate)
		}
	}
	t.Logf("%-42s %.1f µs of its processor time for a session", "the milter that does nothing", median(floorCost))
	for _, r := range rivals {
		t.Logf("%-42s %.2f of the milter that does nothing (%.0f sessions/s; %.1f µs of the daemon's processor time each, %d MiB resident)",
			r.name, median(r.ratios), median(r.rates), median(r.costs), r.d.resident(t))
		r.d.stop()
	}
	floor.stop()
}
