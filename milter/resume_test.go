package milter

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/dialog"
	"postern/internal/conf"
	"postern/policy"
)

// manager keeps copies of files from one process to the next.
type manager struct {
	t     *testing.T
	mu    sync.Mutex
	files []*os.File
}

func (m *manager) keep(files []*os.File) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range files {
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			return err
		}
		m.files = append(m.files, os.NewFile(uintptr(fd), f.Name()))
	}
	return nil
}

// next ends a server and starts the one after it.
func (m *manager) next(s *Server, h Handler, edit func(*Config, *Options)) *Server {
	m.t.Helper()
	if err := s.Stop(context.Background()); err != nil {
		m.t.Error(err)
	}
	fresh, _ := start(m.t, h, func(c *Config, o *Options) {
		o.Keep = m.keep
		if edit != nil {
			edit(c, o)
		}
	})
	files := m.files
	m.files = nil
	if err := fresh.Resume(files); err != nil {
		m.t.Error(err)
	}
	return fresh
}

func TestSessionsGoOnInTheNextProcess(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			m := &manager{t: t}
			var messages []string
			h := &handler{wants: Wants{Content: true, Bodies: true, Early: true, Stages: policy.Stages(policy.StageConnect, policy.StageHelo, policy.StageRcpt)}}
			h.decide = func(_ context.Context, req *policy.Request, d *policy.Decision) {
				if req.Stage == policy.StageConnect {
					d.Headers = append(d.Headers, policy.Header{Name: "X-Connect", Value: "yes"})
				}
			}
			h.inspect = func(req *policy.Request, _ []policy.Address) Content {
				messages = append(messages, req.Client.Addr.String()+" "+req.Client.Name+" "+req.Helo+" "+req.TLS.Protocol+" "+req.Sender.Raw)
				return &looked{}
			}
			dialogs := dialog.New(10)
			edit := func(c *Config, o *Options) { c.Envelope, o.Dialogs = true, dialogs }
			s, addr := start(t, h, func(c *Config, o *Options) {
				edit(c, o)
				o.Keep = m.keep
				if network == "tcp" {
					if err := c.Listen[0].UnmarshalText([]byte("tcp:127.0.0.1:0")); err != nil {
						t.Fatal(err)
					}
				}
			})
			idle := dial(t, addr)
			idle.connect("192.0.2.7", 40211)
			idle.set(codeHelo, "{tls_version}", "TLSv1.3")
			idle.helo()
			used := dial(t, addr).open()
			used.content(someHeader, "x")
			used.write(codeAbort)
			begun := dial(t, addr).open()
			raw, err := net.Dial(addr.Network(), addr.String())
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close() //nolint:errcheck // a test
			half := dial(t, addr)
			half.connect("192.0.2.8", 40212)
			before := len(h.seen())
			gone := dial(t, addr)
			gone.connect("192.0.2.9", 1)

			s = m.next(s, h, func(c *Config, o *Options) {
				edit(c, o)
				c.GreetPause = conf.Duration(time.Hour) // of a client that has been greeted long ago
			})
			_ = gone.c.Close() // it ends meanwhile
			s = m.next(s, h, func(c *Config, o *Options) {
				edit(c, o)
				c.MaxConnections, c.Chain = 100, "other"
				h.wants.Bodies = false // what was agreed on stays
			})
			for _, req := range h.seen()[before:] {
				if req.Client.Port != 1 && !req.DryRun {
					t.Errorf("decided again: %+v", req)
				}
			}
			// As if nothing had been.
			messages = nil
			for name, m := range map[string]*mta{"idle": idle, "used": used} {
				m.begin()
				edits, final := m.content(someHeader, strings.Repeat("x", 100))
				if final != "a" || strings.Join(edits, ",") != "i 0|X-Connect| yes" && strings.Join(edits, ",") != "i 0|X-Connect|yes" {
					t.Errorf("%s: %q %q", name, edits, final)
				}
			}
			if len(messages) != 2 || !strings.Contains(strings.Join(messages, "\n"), "192.0.2.7 mail.example.org mail.example.org TLSv1.3 ann@example.org") {
				t.Errorf("%q", messages)
			}
			// What was found about a message is lost: it must come again.
			if got := begun.rcpt("other@example.com"); got != "t" {
				t.Errorf("a recipient of a lost message: %q", got)
			}
			if edits, final := begun.content(someHeader, "x"); final != "t" || len(edits) > 0 {
				t.Errorf("a lost message: %q %q", edits, final)
			}
			begun.begin()
			if _, final := begun.content(someHeader, "x"); final != "a" {
				t.Errorf("the message after it: %q", final)
			}
			// One on which nothing had been said begins.
			fresh := negotiated(t, raw, 6, 0x1ff, 0x1fffff).open()
			if _, final := fresh.content(someHeader, "x"); final != "a" {
				t.Errorf("a session that begins: %q", final)
			}
			if half.helo() != "c" {
				t.Error("HELO of a session that was greeted")
			}
			if open, sees := dialogs.Watched(&policy.Client{Addr: netip.MustParseAddr("192.0.2.8"), Port: 40212}, netip.Addr{}); !open || !sees {
				t.Error("the policy door does not know of the session")
			}
			if n := s.Status().Sessions; n != 5 {
				t.Errorf("%d sessions", n)
			}
			// The end is seen by the MTA: nobody else holds the connection.
			used.write(codeQuit)
			if _, err := used.c.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // bare
				t.Errorf("after QUIT: %v", err)
			}
		})
	}
}

func TestWhatCannotBeResumed(t *testing.T) {
	s, _ := start(t, &handler{}, nil)
	file := func(text string) *os.File {
		t.Helper()
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		return f
	}
	for text, want := range map[string]string{
		"":              "EOF",
		"{":             "EOF",
		`{"version":2}`: "version 2",
		`{"version":1}`: "",
		`{"version":1,"sessions":[{"inode":1,"address":"unix:/x"}]}`: "",
	} {
		err := s.Resume([]*os.File{file(text)})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := s.Resume(nil); err != nil {
		t.Error(err)
	}
}

// A session's past is read as it was said, and a past that is none ends it.
func TestThePast(t *testing.T) {
	var s saying
	for b := aSession(); len(b) > 0; {
		n := prefixLength + int(b[3])
		s.note(b[:n])
		b = b[n:]
	}
	k := keptSession{Said: s.bytes(), Message: true}
	want := packets(negotiation, packet(codeMacros, "Cj\x00mx.example.com\x00{client_port}\x0040211\x00"),
		packet(codeConnect, "mail.example.org\x004\x9d\x13192.0.2.7\x00"), packet(codeMacros, "H"), packet(codeHelo, "mail.example.org\x00"),
		packet(codeUnknown, pastToldLost+"\x00"))
	if got := k.past(); string(got) != string(want) {
		t.Errorf("%q", got)
	}
	s.note(packet(codeQuitNew))
	if got := s.bytes(); string(got) != string(negotiation) {
		t.Errorf("after the end of the SMTP session: %q", got)
	}
}
