package milter

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"postern/dialog"
	"postern/internal/conf"
	"postern/internal/listen"
	"postern/policy"
)

// pipes is a listener whose connections stay in the process, so that their
// time is that of a bubble.
type pipes struct {
	c    chan net.Conn
	done chan struct{}
	once sync.Once
}

func newPipes() *pipes { return &pipes{c: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.c:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// inside is a door over pipes.
type inside struct {
	*Server
	t *testing.T
	l *pipes
}

func startInside(t *testing.T, h Handler, edit func(*Config, *Options)) *inside {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Listen = nil
	o := Options{Handler: h, Hostname: "mx.example.com", Log: zap.NewNop(), Metrics: prometheus.NewRegistry()}
	if edit != nil {
		edit(&cfg, &o)
	}
	in := &inside{New(cfg, o), t, newPipes()}
	if err := in.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	in.door.Serve(&listen.Opened{Listener: in.l})
	return in
}

func (in *inside) stop() {
	in.t.Helper()
	_ = in.l.Close()
	if err := in.Stop(context.Background()); err != nil {
		in.t.Error(err)
	}
}

// dial opens a session; raw is one on which nothing has been said.
func (in *inside) raw() net.Conn {
	client, server := net.Pipe()
	in.l.c <- server
	return client
}

func (in *inside) dial() *mta {
	in.t.Helper()
	return negotiated(in.t, in.raw(), 6, 0x1ff, 0x1fffff)
}

func TestGreetPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		except := netip.MustParsePrefix("198.51.100.0/24")
		in := startInside(t, &handler{}, func(c *Config, o *Options) {
			c.GreetPause, c.GreetPauseExcept, c.GreetPauseMax = conf.Duration(25*time.Second), []netip.Prefix{except}, 2
			o.Known = func(_ context.Context, c policy.Client) bool {
				return c.Addr == netip.MustParseAddr("203.0.113.5") && c.Name == "mail.example.org"
			}
		})
		greeted := func(client string) (time.Duration, string) {
			m := in.dial()
			start := time.Now()
			got := m.connect(client, 1)
			for got[len(got)-1] == 'p' {
				code, _ := m.read()
				got += string(code)
			}
			took := time.Since(start)
			m.write(codeQuit)
			return took, got
		}
		for client, want := range map[string]time.Duration{
			"192.0.2.7": 25 * time.Second, "198.51.100.9": 0, "203.0.113.5": 0, "203.0.113.6": 25 * time.Second, "2001:db8::7": 25 * time.Second,
		} {
			took, got := greeted(client)
			if signs := strings.Count(got, "p"); took != want || got[len(got)-1] != 'c' || signs != int(want/aliveEvery) {
				t.Errorf("%s: %q after %v, want c after %v", client, got, took, want)
			}
		}
		// No more than two at once.
		var wg sync.WaitGroup
		var mu sync.Mutex
		var all []time.Duration
		for range 4 {
			wg.Go(func() {
				took, _ := greeted("192.0.2.7")
				mu.Lock()
				defer mu.Unlock()
				all = append(all, took)
			})
		}
		wg.Wait()
		slices.Sort(all)
		if want := []time.Duration{0, 0, 25 * time.Second, 25 * time.Second}; !slices.Equal(all, want) {
			t.Errorf("four at once: %v", all)
		}
		if n := testutil.ToFloat64(in.metrics.pauses.full); n != 2 || in.Status().Paused != 0 {
			t.Errorf("%v were not paused, %d still are", n, in.Status().Paused)
		}
		// Stopping does not wait for the pause.
		in.cfg.Load().Drain = conf.Duration(3 * time.Second)
		m := in.dial()
		m.set(codeConnect, "j", "mx.example.com")
		m.write(codeConnect, "[192.0.2.7]\x004\x00\x01192.0.2.7\x00")
		go func() { _, _ = io.Copy(io.Discard, m.c) }() // until the door closes it
		synctest.Wait()
		if in.Status().Paused != 1 {
			t.Error("the session is not paused")
		}
		start := time.Now()
		in.stop()
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("stopped after %v", took)
		}
	})
}

func TestSlowDecisionsShowSignsOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &looked{}
		h := &handler{wants: Wants{Stages: policy.Stages(policy.StageRcpt), Content: true}}
		h.decide = func(context.Context, *policy.Request, *policy.Decision) { time.Sleep(35 * time.Second) }
		h.inspect = func(*policy.Request, []policy.Address) Content { return l }
		in := startInside(t, h, func(c *Config, _ *Options) { c.Envelope = true })
		m := in.dial()
		m.connect("192.0.2.7", 1)
		m.mail("ann@example.org")
		got := m.rcpt("bob@example.com")
		for got[len(got)-1] == 'p' {
			code, _ := m.read()
			got += string(code)
		}
		if got != "pppc" {
			t.Errorf("answers %q", got)
		}
		if _, final := m.content(someHeader, ""); final != "a" {
			t.Errorf("final %q", final)
		}
		m.write(codeQuit)
		in.stop()
	})
}

func TestSlowPeersAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := startInside(t, &handler{}, nil)
		limit := in.cfg.Load().FrameTimeout.D()
		ends := func(what string, c net.Conn, from time.Time) {
			t.Helper()
			_, _ = io.Copy(io.Discard, c) // until it is closed
			if took := time.Since(from); took < limit || took > limit+limit/4 {
				t.Errorf("%s: closed after %v", what, took)
			}
		}
		start := time.Now()
		ends("a peer that says nothing", in.raw(), start)

		start = time.Now()
		c := in.raw()
		if _, err := c.Write(negotiation[:7]); err != nil {
			t.Fatal(err)
		}
		ends("half a negotiation", c, start)

		m := in.dial()
		m.connect("192.0.2.7", 1)
		time.Sleep(time.Hour) // Postfix may be as quiet as it likes
		m.helo()
		if _, err := m.c.Write(packet(codeMail, "<a@example.org>\x00")[:9]); err != nil {
			t.Fatal(err)
		}
		ends("half a packet", m.c, time.Now())

		m = in.dial().open()
		m.set(codeEOM, "i", "4abc")
		start = time.Now()
		m.write(codeEOM) // a pipe holds nothing: the answer cannot be given
		for in.Status().Sessions > 0 {
			time.Sleep(time.Second)
		}
		if took := time.Since(start); took < limit || took > limit+limit/2 {
			t.Errorf("an answer that is not taken: closed after %v", took)
		}
		if n := testutil.ToFloat64(in.metrics.bad.slow); n != 4 {
			t.Errorf("%v slow peers were counted", n)
		}
		in.stop()
	})
}

func TestConnectionLimit(t *testing.T) {
	s, addr := start(t, &handler{}, func(c *Config, o *Options) { c.MaxConnections, o.Log = 3, zap.NewNop() })
	var open []*mta
	for range 3 {
		open = append(open, dial(t, addr))
	}
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the end
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("a fourth session: %v", err)
	}
	if err := testutil.GatherAndCompare(s.o.Metrics.(*prometheus.Registry), strings.NewReader(`
# HELP postern_milter_connections_refused_total Connections closed because there were too many.
# TYPE postern_milter_connections_refused_total counter
postern_milter_connections_refused_total 1
`), "postern_milter_connections_refused_total"); err != nil {
		t.Error(err)
	}
	open[0].write(codeQuit)
	if _, _, err := open[0].tryRead(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	for s.Status().Sessions > 2 {
		time.Sleep(time.Millisecond)
	}
	if got := dial(t, addr).connect("192.0.2.7", 1); got != "" {
		t.Errorf("after one has left: %q", got)
	}
}

func TestStopLetsMessagesFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &handler{wants: Wants{Content: true, Bodies: true}, inspect: func(*policy.Request, []policy.Address) Content { return &looked{} }}
		in := startInside(t, h, nil)
		quiet, busy := in.dial(), in.dial().open()
		quiet.connect("192.0.2.7", 1)
		busy.event(codeBody, "text")
		synctest.Wait()
		stopped := make(chan error)
		start := time.Now()
		_ = in.l.Close()
		go func() { stopped <- in.Stop(context.Background()) }()
		if _, _, err := quiet.tryRead(); err == nil {
			t.Error("a quiet session is still open")
		}
		if took := time.Since(start); took < settled || took > 2*settled {
			t.Errorf("a quiet session was closed after %v", took)
		}
		time.Sleep(time.Second)
		if _, final := busy.end(); final != "a" {
			t.Errorf("the message under way: %q", final)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("stopped after %v", took)
		}
		if err := in.Stop(context.Background()); err != nil {
			t.Errorf("a second time: %v", err)
		}
		if err := in.Configure(DefaultConfig(), nil); err == nil {
			t.Error("a door that has stopped opens again")
		}
	})
}

func TestStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &handler{wants: Wants{Stages: policy.Stages(policy.StageRcpt)}}
		h.decide = func(ctx context.Context, _ *policy.Request, _ *policy.Decision) { <-ctx.Done() }
		for what, bound := range map[string]time.Duration{"drain": 5 * time.Second, "context": 2 * time.Second} {
			in := startInside(t, h, func(c *Config, _ *Options) { c.Envelope = true })
			m := in.dial()
			m.connect("192.0.2.7", 1)
			m.mail("ann@example.org")
			m.write(codeRcpt, "<bob@example.com>\x00")
			go func() { _, _ = io.Copy(io.Discard, m.c) }() // until the door closes it
			synctest.Wait()
			ctx, cancel := context.WithCancel(context.Background())
			if what == "context" {
				ctx, cancel = context.WithTimeout(context.Background(), bound)
			}
			start := time.Now()
			_ = in.l.Close()
			err := in.Stop(ctx)
			cancel()
			if took := time.Since(start); took != bound || err == nil || !strings.Contains(err.Error(), "1 sessions were cut") {
				t.Errorf("%s: %v after %v", what, err, took)
			}
			if n := testutil.ToFloat64(in.metrics.cut); n != 1 {
				t.Errorf("%s: %v were counted", what, n)
			}
		}
	})
}

func TestConfigureOpensAndCloses(t *testing.T) {
	s, first := start(t, &handler{}, nil)
	cfg := *s.cfg.Load()
	old := dial(t, first)
	old.connect("192.0.2.7", 1)

	cfg.Listen = []listen.Address{unixAddress(t), {}}
	if err := cfg.Listen[1].UnmarshalText([]byte("tcp:127.0.0.1:0,chain=other")); err != nil {
		t.Fatal(err)
	}
	if err := s.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	if got := s.Status().Listen; len(got) != 2 || !strings.HasPrefix(got[0], "unix:") || got[1] != "tcp:127.0.0.1:0,chain=other" {
		t.Errorf("listening at %v", got)
	}
	if c, err := net.Dial(first.Network(), first.String()); err == nil {
		_ = c.Close()
		t.Error("the first address is still open")
	}
	for _, a := range s.Addresses() {
		if _, final := dial(t, a).open().content(nil, ""); final != "a" {
			t.Errorf("%v: %q", a, final)
		}
	}
	old.begin() // a session goes on
	if _, final := old.content(nil, ""); final != "a" {
		t.Errorf("the session of before: %q", final)
	}
	bad := cfg
	bad.Listen = append(slices.Clone(cfg.Listen), listen.Address{Network: "unix", Path: "/nonexistent/x.sock"})
	if err := s.Configure(bad, nil); err == nil || len(s.Addresses()) != 2 {
		t.Errorf("a bad address: %v, %v are open", err, s.Addresses())
	}
}

func TestChainsOfListeners(t *testing.T) {
	h := &handler{wants: Wants{Stages: policy.Stages(policy.StageRcpt)}}
	var a listen.Address
	if err := a.UnmarshalText([]byte("tcp:127.0.0.1:0,chain=other")); err != nil {
		t.Fatal(err)
	}
	_, addr := start(t, h, func(c *Config, _ *Options) { c.Envelope, c.Chain, c.Listen = true, "mine", []listen.Address{a} })
	dial(t, addr).open()
	if got := h.seen()[0]; got.Chain != "other" || got.Listener != "tcp:127.0.0.1:0" {
		t.Errorf("chain %q of %q", got.Chain, got.Listener)
	}
}

func TestEarlyLookUps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []policy.Client
		hang := false
		h := &handler{wants: Wants{Early: true}}
		in := startInside(t, h, func(_ *Config, o *Options) {
			o.Early = func(ctx context.Context, c policy.Client) {
				mu.Lock()
				seen = append(seen, c)
				stay := hang
				mu.Unlock()
				if c.Port == 666 {
					panic("told to")
				}
				if stay {
					<-ctx.Done()
				}
			}
		})
		connect := func(port uint16) {
			m := in.dial()
			m.connect("192.0.2.7", port)
			m.write(codeQuit)
			synctest.Wait()
		}
		connect(40211)
		connect(666)
		if len(seen) != 2 || seen[0].Addr.String() != "192.0.2.7" || seen[0].Name != "mail.example.org" || testutil.ToFloat64(in.metrics.panics) != 1 {
			t.Errorf("called for %v", seen)
		}
		mu.Lock()
		hang = true
		mu.Unlock()
		start := time.Now()
		for range maxEarly + 5 {
			connect(1)
		}
		if n := testutil.ToFloat64(in.metrics.early.full); n != 5 || time.Since(start) != 0 {
			t.Errorf("%v were too many, after %v", n, time.Since(start))
		}
		time.Sleep(earlyTime)
		synctest.Wait()
		h.wants.Early = false // a reload
		if connect(2); seen[len(seen)-1].Port != 1 {
			t.Error("called though nobody wants it")
		}
		if len(in.early) != 0 {
			t.Errorf("%d look-ups are still under way", len(in.early))
		}
		in.stop()
	})
}

func TestExemptSenders(t *testing.T) {
	c := DefaultConfig()
	c.ExemptSenders = append(c.ExemptSenders, "probe@Example.ORG", "check@")
	for sender, want := range map[string]bool{
		"double-bounce@mx.example.com": true, "Double-Bounce@MX.example.com": true, "double-bounce@alias.example": true, "check@mx.example.com": true,
		"probe@example.org": true, "probe@mx.example.com": false, "double-bounce@example.org": false, "double-bounce": false, "": false, "x@mx.example.com": false,
	} {
		local, domain, _ := strings.Cut(sender, "@")
		a := policy.Address{Raw: sender, Local: local, Domain: strings.ToLower(domain)}
		if got := c.exempt(a, "mx.example.com", "", "alias.example"); got != want {
			t.Errorf("%q: %v", sender, got)
		}
	}
	// It is judged when it goes on to send, whatever the MTA has negotiated.
	for _, steps := range []uint32{0x1fffff, 0x1fffff &^ uint32(1<<9)} {
		h := &handler{wants: Wants{Stages: policy.Stages(policy.StageMail, policy.StageRcpt)}, decide: func(_ context.Context, _ *policy.Request, d *policy.Decision) {
			d.Verdict = reject("no")
		}}
		_, addr := start(t, h, func(c *Config, _ *Options) { c.Envelope = true })
		m := dialOffer(t, addr, 6, 0x1ff, steps)
		m.connect("192.0.2.7", 40211)
		m.helo()
		got := []string{m.mail("double-bounce@mx.example.com"), m.rcpt("bob@example.com"), m.event(codeData), m.event(codeData)}
		if want := "c c y550 5.7.1 no y550 5.7.1 no"; strings.Join(got, " ") != want {
			t.Errorf("answers %q", got)
		}
		if _, final := m.content(nil, ""); final != "y550 5.7.1 no" {
			t.Errorf("at the end %q", final)
		}
		m.write(codeAbort)
		if got := m.mail("ann@example.org"); got != "y550 5.7.1 no" {
			t.Errorf("another sender: %q", got)
		}
	}
}

func TestVerdictsBeforeMail(t *testing.T) {
	h := &handler{wants: Wants{Stages: policy.AllStages}, decide: func(_ context.Context, req *policy.Request, d *policy.Decision) {
		switch req.Stage {
		case policy.StageConnect:
			d.Verdict = policy.Verdict{Action: policy.Hold, Reason: "from the first word"}
		case policy.StageHelo:
			d.Headers = append(d.Headers, policy.Header{Name: "X-Helo", Value: req.Helo})
		case policy.StageMail:
			d.Headers = append(d.Headers, policy.Header{Name: "X-Mail", Value: req.Sender.Local})
		default:
		}
	}}
	_, addr := start(t, h, func(c *Config, _ *Options) { c.Envelope = true })
	m := dial(t, addr)
	m.connect("192.0.2.7", 1)
	m.event(codeHelo, "first.example.org\x00")
	m.event(codeHelo, "seen\x00")
	m.write(codeAbort)
	for _, sender := range []string{"ann", "carl"} {
		m.mail(sender + "@example.org")
		m.rcpt("bob@example.com")
		m.event(codeData)
		edits, final := m.content(nil, "")
		want := []string{"i 0|X-Mail|" + sender, "i 0|X-Helo|seen", "q from the first word"}
		if final != "a" || !slices.Equal(edits, want) {
			t.Errorf("%q %q, want %q", final, edits, want)
		}
		m.write(codeAbort)
	}
	h.decide = func(_ context.Context, req *policy.Request, d *policy.Decision) {
		if req.Stage == policy.StageHelo {
			d.Verdict.Action = policy.Discard
		}
	}
	m = dial(t, addr)
	m.connect("192.0.2.7", 1)
	m.helo()
	if got := m.mail("ann@example.org"); got != "d" {
		t.Errorf("discarded at HELO: %q at MAIL", got)
	}
}

func TestEndsAreLogged(t *testing.T) {
	log, seen := logs()
	s, addr := start(t, &handler{}, func(_ *Config, o *Options) { o.Log = log })
	m := dial(t, addr)
	m.write(codeHelo) // without its NUL
	if _, _, err := m.tryRead(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	m = dial(t, addr)
	m.write(codeConnect, "x\x004\x00\x19no address\x00") // what the library itself refuses
	if _, _, err := m.tryRead(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	for seen.Len() < 2 {
		time.Sleep(time.Millisecond)
	}
	if seen.FilterMessage("closing a session").Len() != 1 || seen.FilterMessage("session ends").Len() != 1 || testutil.ToFloat64(s.metrics.bad.malformed) != 1 {
		t.Errorf("logged %v", seen.All())
	}
}

func TestDefaultsAreValidAndBadValuesAreNot(t *testing.T) {
	c := DefaultConfig()
	var fs conf.Faults
	c.Validate("milter", &fs)
	if err := fs.Err(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	for key, edit := range map[string]func(*Config){
		"milter.max_connections":       func(c *Config) { c.MaxConnections = 0 },
		"milter.max_headers":           func(c *Config) { c.MaxHeaders = 1 },
		"milter.max_recipients":        func(c *Config) { c.MaxRecipients = -1 },
		"milter.max_envelope":          func(c *Config) { c.MaxEnvelope = 10 },
		"milter.greet_pause_max":       func(c *Config) { c.GreetPauseMax = 0 },
		"milter.frame_timeout":         func(c *Config) { c.FrameTimeout = 0 },
		"milter.write_timeout":         func(c *Config) { c.WriteTimeout = conf.Duration(time.Hour) },
		"milter.drain":                 func(c *Config) { c.Drain = conf.Duration(time.Hour) },
		"milter.greet_pause":           func(c *Config) { c.GreetPause = conf.Duration(2 * time.Minute) },
		"milter.exempt_senders[1]":     func(c *Config) { c.ExemptSenders = append(c.ExemptSenders, "postmaster") },
		"milter.greet_pause_except[0]": func(c *Config) { c.GreetPauseExcept = []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")} },
		"milter.listen[1]":             func(c *Config) { c.Listen = append(c.Listen, unixAddress(t)); c.Listen = append(c.Listen, c.Listen[0]) },
	} {
		c := DefaultConfig()
		edit(&c)
		var fs conf.Faults
		c.Validate("milter", &fs)
		if len(fs) != 1 || fs[0].Key != key {
			t.Errorf("%s: %v", key, fs)
		}
	}
}

// FuzzSession gives a whole door arbitrary packets: it answers or closes, and
// nothing of the session is left.
func FuzzSession(f *testing.F) {
	f.Add(aSession())
	f.Add(packets(negotiation, packet(codeMail, "<a@b>\x00"), packet(codeRcpt, "<c@d>\x00"), packet(codeEOM), packet(codeMail, "\x00"), packet(codeEOM)))
	f.Add(packets(negotiation, packet(codeHeader, "\x00\x00"), packet(codeBody), packet(codeEOM), packet(codeQuitNew), packet(codeEOM)))
	f.Add(packets(negotiation, packet(codeConnect, "x\x00U"), packet(codeHelo, "\x00"), packet(codeEOH), packet(codeAbort), packet(codeBody, "x"), packet(codeEOM)))
	f.Add(packets(packet(codeOptions, "\x00\x00\x00\x02\x00\x00\x01\xff\x00\x00\x00\x7f"), packet(codeHeader, "A\x00b\x00"), packet(codeEOM)))
	table := dialog.New(10)
	l := func() *looked {
		return &looked{headers: []policy.Header{{Name: "X", Value: "y"}}, edits: []policy.Edit{
			{Kind: policy.DeleteField}, {Kind: policy.ReplaceField, At: 1, Name: "A", Value: "b"}, {Kind: policy.ReplaceBody, Body: []byte("x")},
		}}
	}
	h := &handler{wants: Wants{Stages: policy.AllStages, Content: true, Bodies: true}, inspect: func(*policy.Request, []policy.Address) Content { return l() }}
	cfg := DefaultConfig()
	cfg.Listen, cfg.Envelope = nil, true
	s := New(cfg, Options{Handler: h, Hostname: "mx.example.com", Dialogs: table, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	pl := newPipes()
	if err := s.Configure(cfg, nil); err != nil {
		f.Fatal(err)
	}
	s.door.Serve(&listen.Opened{Listener: pl})
	f.Cleanup(func() { _ = s.Stop(context.Background()) }) // the fuzzing is over
	f.Fuzz(func(t *testing.T, data []byte) {
		h.mu.Lock()
		h.requests = nil
		h.mu.Unlock()
		client, server := net.Pipe()
		pl.c <- server
		go func() {
			_, _ = client.Write(data) // it may be closed
			_ = client.Close()        // the end of the session
		}()
		_, _ = io.Copy(io.Discard, client) // the answers
		for until := time.Now().Add(time.Minute); s.Status().Sessions > 0 && time.Now().Before(until); {
			time.Sleep(100 * time.Microsecond)
		}
		if n := s.Status().Sessions; n != 0 || table.Len() != 0 {
			t.Fatalf("%d sessions and %d dialogues are left", n, table.Len())
		}
		if n := testutil.ToFloat64(s.metrics.panics); n != 0 {
			t.Fatalf("%v panics", n)
		}
	})
}
