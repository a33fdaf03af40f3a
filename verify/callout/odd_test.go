package callout

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"postern/internal/certtest"
	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/internal/smtptest"
)

// scripted runs a server of a few lines, by whose code each connection is
// served, and returns it as a next hop.
func scripted(t *testing.T, serve func(c net.Conn, in *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				serve(c, bufio.NewReader(c))
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	host, port, _ := net.SplitHostPort(l.Addr().String())
	return "[" + host + "]:" + port
}

// hears reads commands until one that begins with verb; false at the end.
func hears(in *bufio.Reader, verb string) bool {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return false
		}
		if strings.HasPrefix(strings.ToUpper(line), verb) {
			return true
		}
	}
}

// rest answers everything with 250 but RCPT for nobody@.
func rest(c io.Writer, in *bufio.Reader) {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		reply := "250 2.0.0 Ok"
		if strings.HasPrefix(line, "RCPT TO:<nobody@") {
			reply = "550 5.1.1 unknown"
		}
		fmt.Fprintf(c, "%s\r\n", reply)
	}
}

// TestLMTPServerOfThisHost is the usual one: Dovecot behind a unix socket,
// which greets with the name of the host it shares with us.
func TestLMTPServerOfThisHost(t *testing.T) {
	s := smtptest.StartLMTP(t, filepath.Join(t.TempDir(), "s")).Know("a@example.com")
	s.Answer("GREETING", "220 gate.example.org Dovecot ready.").Answer("LHLO", "250 gate.example.org\nPIPELINING")
	p, _ := prober(t, quick(), nil)
	for address, want := range map[string]Class{"a@example.com": Known, "b@example.com": Unknown} {
		if r, d := ask(t, p, s.NextHop(), address); r.Class != want {
			t.Errorf("%s: %v %s\n%s", address, r.Class, r.Text(), strings.Join(d.Lines, "\n"))
		}
	}
}

func TestWithoutAQueue(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	p, _ := prober(t, quick(func(c *Config) { c.Queue = 0 }), nil)
	for range 3 {
		if r, _ := ask(t, p, s.NextHop(), "a@example.com"); r.Class != Known {
			t.Errorf("%v %s", r.Class, r.Text())
		}
	}
}

// TestGentleWaitsForNobody: a refresh does not wait for a place either.
func TestGentleWaitsForNobody(t *testing.T) {
	s := smtptest.Start(t).Answer("RCPT", smtptest.Silence)
	p, _ := prober(t, quick(func(c *Config) { c.Connections = 1 }), nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	q := Probe{Hops: hops(t, s.NextHop()), Address: mailaddr.Parse("a@example.com"), Options: options}
	wg.Go(func() { p.Ask(ctx, &q) })
	for s.Count("RCPT") == 0 {
		time.Sleep(time.Millisecond)
	}
	gentle := q
	gentle.Gentle = true
	if r := p.Ask(t.Context(), &gentle); !errors.Is(r.Err, ErrBusy) || !r.Limited {
		t.Errorf("%+v", r)
	}
	cancel()
	wg.Wait()
}

// TestEndsAtOnceWhenCancelled: nobody waits for a server that says nothing.
func TestEndsAtOnceWhenCancelled(t *testing.T) {
	for _, verb := range []string{"GREETING", "EHLO", "RCPT"} {
		s := smtptest.Start(t).Answer(verb, smtptest.Silence)
		p, _ := prober(t, quick(func(c *Config) {
			c.ReplyTimeout, c.Timeout = conf.Duration(time.Hour), conf.Duration(time.Hour)
		}), nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan Result)
		go func() {
			done <- p.Ask(ctx, &Probe{Hops: hops(t, s.NextHop()), Address: mailaddr.Parse("a@example.com"), Options: options})
		}()
		wait := verb
		if verb == "GREETING" {
			wait = "CONNECT"
		}
		for s.Count(wait) == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if r := <-done; r.Class != Down {
			t.Errorf("%s: %+v", verb, r)
		}
		if st := p.Status()[0]; st.Failed != 0 {
			t.Errorf("%s: who hangs up holds it against the next hop: %+v", verb, st)
		}
	}
}

// TestLongQueue: who has waited long does not take the next hop for slow.
func TestLongQueue(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t).Know("a@example.com")
	s.Latency(300 * time.Millisecond)
	p, _ := prober(t, quick(func(c *Config) {
		c.Connections, c.DownAfter, c.Timeout = 1, 1, conf.Duration(4*time.Second)
	}), nil)
	var wg sync.WaitGroup
	for range 25 {
		wg.Go(func() {
			if r, _ := ask(t, p, s.NextHop(), "a@example.com"); r.Class != Known && !errors.Is(r.Err, ErrBusy) {
				t.Errorf("%+v", r)
			}
		})
	}
	wg.Wait()
	if st := p.Status()[0]; st.Failed != 0 || st.State != "up" {
		t.Errorf("%+v", st)
	}
}

// TestIdleConnectionsCount: what is kept for later is within the limits too.
func TestIdleConnectionsCount(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	p, _ := prober(t, quick(func(c *Config) { c.Connections, c.KeepIdle = 1, conf.Duration(time.Minute) }), nil)
	for _, level := range []string{TLSMay, TLSNone, TLSMay} {
		q := &Probe{Hops: hops(t, s.NextHop()), Address: mailaddr.Parse("a@example.com"), Options: &Options{Level: level}}
		if r := p.Ask(t.Context(), q); r.Class != Known {
			t.Errorf("%+v", r)
		}
		if st := p.Status()[0]; st.Idle != 1 {
			t.Errorf("level %s: %d idle connections, 1 allowed", level, st.Idle)
		}
	}
	p, _ = prober(t, quick(func(c *Config) { c.MaxConnections, c.KeepIdle = 2, conf.Duration(time.Minute) }), nil)
	for range 5 {
		other := smtptest.Start(t).Know("a@example.com")
		if r, _ := ask(t, p, other.NextHop(), "a@example.com"); r.Class != Known {
			t.Errorf("%+v", r)
		}
	}
	idle := 0
	for _, st := range p.Status() {
		idle += st.Idle
	}
	if idle > 2 {
		t.Errorf("%d idle connections to all, 2 allowed", idle)
	}
}

// TestWhoRefusesUsIsNotDown: its pause defers nobody.
func TestWhoRefusesUsIsNotDown(t *testing.T) {
	s := smtptest.Start(t).Answer("MAIL", "554 5.7.1 you are listed")
	p, _ := prober(t, quick(), nil)
	ask(t, p, s.NextHop(), "a@example.com")
	if st := p.Status()[0]; st.State != "refuses us" || p.Down(hops(t, s.NextHop()), time.Now()) {
		t.Errorf("%+v", st)
	}
}

// TestRefusedSMTPUTF8 is an address by which a stranger could silence the
// prober for everybody.
func TestRefusedSMTPUTF8(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com").Answer("MAIL", "555 5.5.4 parameter")
	p, logs := prober(t, quick(), nil)
	if r, _ := ask(t, p, s.NextHop(), "jörg@example.com"); r.Class != Undecided {
		t.Errorf("%+v", r)
	}
	s.Answer("MAIL", "")
	if r, _ := ask(t, p, s.NextHop(), "a@example.com"); r.Class != Known || r.Limited {
		t.Errorf("afterwards: %+v", r)
	}
	if logs.Len() != 0 {
		t.Errorf("%v", logs.All())
	}
}

func TestWhatWasAcceptAllCanChange(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	p, _ := prober(t, quick(func(c *Config) { c.AcceptAllKeep = conf.Duration(time.Hour) }), nil)
	h := hops(t, s.NextHop())
	accepts := func() bool { return p.AcceptsAll(h, "example.com", time.Now()) }
	for _, address := range []string{"a@example.com", "b@example.com"} {
		p.hop(h[0]).accepts = nil
		s.AcceptAll(true)
		q := &Probe{Hops: h, Address: mailaddr.Parse(address), Options: options, Force: true}
		if r := p.Ask(t.Context(), q); r.Class != AcceptAll || !accepts() {
			t.Fatalf("%+v", r)
		}
		s.AcceptAll(false)
		if r := p.Ask(t.Context(), q); r.Class == AcceptAll || accepts() {
			t.Errorf("%s, asked by the administrator: %+v", address, r)
		}
	}
	// One refusal is proof, whoever asks.
	s.AcceptAll(true)
	q := &Probe{Hops: h, Address: mailaddr.Parse("b@example.com"), Options: options}
	p.hop(h[0]).setAcceptAll(p, "example.com", true)
	s.AcceptAll(false)
	if r := p.Ask(t.Context(), q); r.Class != Unknown || accepts() {
		t.Errorf("%+v", r)
	}
	// A reload that fails takes nothing away.
	p.hop(h[0]).setAcceptAll(p, "example.com", true)
	next := New(quick(func(c *Config) { c.AcceptAllKeep = conf.Duration(time.Hour) }), "gate.example.org", names{}, zap.NewNop(), nil, p)
	defer next.Close()
	if !accepts() || !next.AcceptsAll(h, "example.com", time.Now()) {
		t.Error("forgotten")
	}
}

func TestRate(t *testing.T) {
	var st health
	now := time.Unix(2_000_000_000, 0)
	for range 120 { // two a second
		st.tick(now)
		st.minute[0]++
		now = now.Add(500 * time.Millisecond)
	}
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{0, 120}, {30 * time.Second, 60}, {time.Minute, 0}, {time.Hour, 0}, {-time.Hour, 0}} {
		old := st
		if got := old.perMinute(now.Add(tt.after)); got != tt.want {
			t.Errorf("after %v: %d, want %d", tt.after, got, tt.want)
		}
	}
}

func TestOtherForm(t *testing.T) {
	p, _ := prober(t, quick(), nil)
	for _, tt := range []struct{ configured, refused, want string }{
		{"probe@example.org", "probe@example.org", ""},
		{"probe@example.org", "", "probe@example.org"},
		{"", "", "double-bounce@gate.example.org"},
		{"", "double-bounce@gate.example.org", ""},
	} {
		if got := p.otherForm(&Options{Sender: tt.configured}, tt.refused); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

// TestPlainTextBehindSTARTTLS: what somebody in between has put in is not
// taken for an answer over TLS (CVE-2011-0411 and its kin).
func TestPlainTextBehindSTARTTLS(t *testing.T) {
	t.Parallel()
	pair := certtest.New(t, "127.0.0.1")
	for _, refuse := range []bool{false, true} {
		hop := scripted(t, func(c net.Conn, in *bufio.Reader) {
			fmt.Fprint(c, "220 x\r\n")
			hears(in, "EHLO")
			fmt.Fprint(c, "250-x\r\n250-PIPELINING\r\n250 STARTTLS\r\n")
			if !hears(in, "STARTTLS") {
				return
			}
			fmt.Fprint(c, "220 go\r\n250-x\r\n250 PIPELINING\r\n250 ok\r\n250 injected\r\n250 injected\r\n")
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair.Cert}})
			if s.Handshake() != nil {
				return
			}
			inner := bufio.NewReader(s)
			if refuse { // hello is refused behind TLS: no transaction may follow
				for {
					line, err := inner.ReadString('\n')
					if err != nil || strings.HasPrefix(line, "MAIL") {
						fmt.Fprint(s, "250 taken without a hello\r\n")
						return
					}
					fmt.Fprint(s, "550 5.7.1 no\r\n")
				}
			}
			rest(s, inner)
		})
		p, _ := prober(t, quick(), nil)
		for _, level := range []string{TLSMay, TLSEncrypt} {
			q := &Probe{Hops: hops(t, hop), Address: mailaddr.Parse("nobody@example.com"), Options: &Options{Level: level}, Dialogue: &Dialogue{}}
			r := p.Ask(t.Context(), q)
			want := Unknown
			if refuse {
				want = Down
			}
			said := strings.Join(q.Dialogue.Lines, "\n")
			if r.Class != want && !(refuse && level == TLSMay) || strings.Contains(said, "injected") || strings.Contains(said, "without a hello") {
				t.Errorf("level %s, refused %v: %v %s\n%s", level, refuse, r.Class, r.Text(), said)
			}
		}
	}
}

// TestPiecesOfReplies: replies that come byte by byte, cut and glued, decide
// the same; what is too long, or never ends, decides nothing.
func TestPiecesOfReplies(t *testing.T) {
	for name, tt := range map[string]struct {
		greeting, reply string
		want            Class
		glued           bool // in one write
	}{
		"byte by byte":    {"220-one\r\n220 two\r\n", "250-2.1.0 a\r\n250 2.1.0 b\r\n550-5.1.1 no\r\n550-5.1.1 such\r\n550 5.1.1 user\r\n250 reset\r\n", Unknown, false},
		"codes differ":    {"220 x\r\n", "250 ok\r\n550-5.1.1 no\r\n250 yes\r\n250 reset\r\n", Down, false},
		"endless lines":   {"220 x\r\n", "250 ok\r\n" + strings.Repeat("550-5.1.1 no\r\n", 3*maxLines), Down, false},
		"one long line":   {"220 x\r\n", "250 ok\r\n550 5.1.1 " + strings.Repeat("x", 3*maxLine), Down, false},
		"421 in between":  {"220 x\r\n", "250 ok\r\n421 4.3.2 closing\r\n", Down, false},
		"421 at the RSET": {"220 x\r\n", "250 ok\r\n550 5.1.1 no\r\n421 4.3.2 closing\r\n", Unknown, false},
		"one more":        {"220 x\r\n", "250 ok\r\n250 ok\r\n550 5.1.1 no\r\n250 reset\r\n", Down, true},
		"a farewell":      {"220 x\r\n", "250 ok\r\n550 5.1.1 no\r\n250 reset\r\n421 too many\r\n", Unknown, true},
		"before it began": {"220 x\r\n250 x\r\n", "250 ok\r\n550 5.1.1 no\r\n250 reset\r\n", Down, true},
		"one reply less":  {"220 x\r\n", "250 ok\r\n", Down, false},
		"cut in a reply":  {"220 x\r\n", "250 ok\r\n550 5.1", Down, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hop := scripted(t, func(c net.Conn, in *bufio.Reader) {
				slow := func(text string) {
					for i := range len(text) {
						if i < 200 {
							time.Sleep(50 * time.Microsecond) // so that each is a packet
						}
						if _, err := io.WriteString(c, text[i:i+1]); err != nil {
							return
						}
					}
				}
				if tt.glued {
					_, _ = io.WriteString(c, tt.greeting)
				} else {
					slow(tt.greeting)
				}
				hears(in, "EHLO")
				slow("250-x\r\n250 PIPELINING\r\n")
				if hears(in, "RCPT") && hears(in, "RSET") {
					if tt.glued {
						_, _ = io.WriteString(c, tt.reply)
					} else {
						slow(tt.reply)
					}
				}
			})
			p, _ := prober(t, quick(), nil)
			if r, d := ask(t, p, hop, "nobody@example.com"); r.Class != tt.want {
				t.Errorf("%v %s\n%s", r.Class, r.Text(), strings.Join(d.Lines, "\n"))
			}
		})
	}
}

// TestNullSenderInPlaceOfTheOther: where our sender is refused, the null
// sender is tried; a site that refuses it for everybody (BATV) must not make
// every mailbox unknown.
func TestNullSenderInPlaceOfTheOther(t *testing.T) {
	for _, tagged := range []bool{false, true} {
		var mu sync.Mutex
		nulls := 0
		hop := scripted(t, func(c net.Conn, in *bufio.Reader) {
			say := func(s string) { fmt.Fprint(c, s+"\r\n") }
			say("220 x")
			for {
				line, err := in.ReadString('\n')
				switch {
				case err != nil:
					return
				case strings.HasPrefix(line, "MAIL FROM:<>"):
					mu.Lock()
					nulls++
					mu.Unlock()
					say("250 ok")
				case strings.HasPrefix(line, "MAIL"):
					say("550 5.1.8 your domain does not exist")
				case strings.HasPrefix(line, "RCPT") && (tagged || strings.Contains(line, "nobody@")):
					say("550 5.1.1 no such user")
				case strings.HasPrefix(line, "QUIT"):
					say("221 bye")
					return
				default:
					say("250 ok")
				}
			}
		})
		p, _ := prober(t, quick(func(c *Config) { c.RefusedPause = conf.Duration(10 * time.Millisecond) }), nil)
		for range 2 {
			for address, want := range map[string]Class{"a@example.com": Known, "nobody@example.com": Unknown} {
				if tagged {
					want = Refused
				}
				q := &Probe{Hops: hops(t, hop), Address: mailaddr.Parse(address), Options: options, Force: true, Dialogue: &Dialogue{}}
				if r := p.Ask(t.Context(), q); r.Class != want {
					t.Errorf("tagged %v, %s: %v %s\n%s", tagged, address, r.Class, r.Text(), strings.Join(q.Dialogue.Lines, "\n"))
				}
			}
		}
		if mu.Lock(); !tagged && nulls != 5 {
			t.Errorf("the null sender was tried %d times for four addresses and one control", nulls)
		}
		mu.Unlock()
	}
}

// TestTarpit: a next hop that lets who asks for unknown addresses wait is not
// down for the known ones.
func TestTarpit(t *testing.T) {
	for _, pipelining := range []bool{true, false} {
		rcpts := 0
		s := smtptest.Start(t).Know("a@example.com")
		if !pipelining {
			s.Features("SMTPUTF8")
		}
		release := make(chan struct{})
		s.OnRcpt(func(address string) string {
			if rcpts++; address != "a@example.com" {
				<-release
			}
			return ""
		})
		p, _ := prober(t, quick(func(c *Config) {
			c.AcceptAllKeep, c.ReplyTimeout = conf.Duration(time.Hour), conf.Duration(300*time.Millisecond)
		}), nil)
		h := hops(t, s.NextHop())
		for range 2 {
			r := p.Ask(t.Context(), &Probe{Hops: h, Address: mailaddr.Parse("a@example.com"), Options: options})
			if r.Class != Known {
				t.Errorf("pipelining %v: %v %s", pipelining, r.Class, r.Text())
			}
			select {
			case <-release:
			default:
				close(release)
			}
		}
		s.Stop()
		if rcpts != 3 {
			t.Errorf("%d RCPT for two addresses and one test in vain", rcpts)
		}
	}
}
