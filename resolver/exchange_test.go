package resolver

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"postern/internal/conf"
	"postern/internal/dnstest"
)

func TestEDNSIsOffered(t *testing.T) {
	s := dnstest.Start(t)
	s.Add(`a.example. 300 IN A 192.0.2.1`)
	r := start(t, testConfig(s.Addr()))
	if _, _, _, err := r.LookupA(t.Context(), "a.example"); err != nil {
		t.Fatal(err)
	}
	if q := s.Log()[0]; !q.EDNS || q.UDPSize != 1232 || q.Net != "udp" {
		t.Errorf("%+v", q)
	}
}

func TestServerWithoutEDNS(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    dnstest.Behavior
	}{
		{"FORMERR", dnstest.Behavior{RefuseEDNS: true}},
		{"FORMERR as a bare header", dnstest.Behavior{RefuseEDNS: true, Bare: true}},
		{"NOTIMP once", dnstest.Behavior{Rcode: dns.RcodeNotImplemented, Times: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := dnstest.Start(t)
			s.Add(`a.example. 300 IN A 192.0.2.1`, `b.example. 300 IN A 192.0.2.2`)
			s.BehaveUnder(".", tt.b)
			r := start(t, testConfig(s.Addr()))
			for _, name := range []string{"a.example", "b.example"} {
				if a, _, _, err := r.LookupA(t.Context(), name); err != nil || len(a) != 1 {
					t.Fatalf("%s: %v, %v", name, a, err)
				}
			}
			log := s.Log()
			if len(log) != 3 || !log[0].EDNS || log[1].EDNS || log[2].EDNS {
				t.Errorf("%+v, want one query with EDNS and two without", log)
			}
		})
	}
	t.Run("FORMERR without EDNS, too", func(t *testing.T) {
		s := dnstest.Start(t)
		s.BehaveUnder(".", dnstest.Behavior{Rcode: dns.RcodeFormatError})
		r := start(t, testConfig(s.Addr()))
		for _, name := range []string{"a.example", "b.example"} {
			if _, _, _, err := r.LookupA(t.Context(), name); !isError(err, ErrServFail) {
				t.Errorf("got %v", err)
			}
		}
		if log := s.Log(); len(log) != 4 || !log[2].EDNS {
			t.Errorf("%+v: the server is now thought to know no EDNS", log)
		}
	})
}

func TestTCP(t *testing.T) {
	var long []string
	for i := range 120 {
		long = append(long, fmt.Sprintf("long.example. 300 IN A 192.0.2.%d", i))
	}
	for _, tt := range []struct {
		name string
		b    dnstest.Behavior
		rrs  []string
		want int
	}{
		{"does not fit", dnstest.Behavior{}, long, 120},
		{"empty, with TC", dnstest.Truncate, []string{"long.example. 300 IN A 192.0.2.1"}, 1},
		{"records cut off", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieBroken}, UDPOnly: true}, []string{"long.example. 300 IN A 192.0.2.1"}, 1},
		{"more than was asked for", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieOversize}, UDPOnly: true}, []string{"long.example. 300 IN A 192.0.2.1"}, 1},
		{"sixteen other questions", dnstest.Behavior{UDPOnly: true, Lies: slices.Repeat([]dnstest.Lie{dnstest.LieQuestion}, maxUnwanted)}, []string{"long.example. 300 IN A 192.0.2.1"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := dnstest.Start(t)
			s.Add(tt.rrs...)
			s.Behave("long.example", tt.b)
			r := start(t, testConfig(s.Addr()))
			a, _, _, err := r.LookupA(t.Context(), "long.example")
			if err != nil || len(a) != tt.want {
				t.Errorf("%d addresses, %v, want %d", len(a), err, tt.want)
			}
			var nets []string
			for _, q := range s.Log() {
				nets = append(nets, q.Net)
			}
			if !slices.Equal(nets, []string{"udp", "tcp"}) && tt.b.Lies == nil {
				t.Errorf("asked over %v", nets)
			}
		})
	}
}

// TestTCPFails has a server that truncates, and is silent over TCP.
func TestTCPFails(t *testing.T) {
	s1, s2 := dnstest.Start(t), dnstest.Start(t)
	s2.Add(`a.example. 300 IN A 192.0.2.1`)
	s1.Behave("a.example", dnstest.Behavior{Raw: func(query []byte) [][]byte {
		answer := slices.Clone(query)
		answer[2] |= flagQR | flagTC // and over TCP, where it makes no sense
		return [][]byte{answer}
	}})
	r := start(t, testConfig(s1.Addr(), s2.Addr()))
	if a, _, _, err := r.LookupA(t.Context(), "a.example"); err != nil || len(a) != 1 {
		t.Errorf("%v, %v", a, err)
	}
	if n := s2.Count("a.example", "A"); n != 1 {
		t.Errorf("second server was asked %d times", n)
	}
}

func TestTCPConnectionIsKeptAndRedialledOnce(t *testing.T) {
	s := dnstest.Start(t)
	for i := range 4 {
		s.Add(fmt.Sprintf(`n%d.example. 300 IN A 192.0.2.1`, i))
	}
	s.BehaveUnder(".", dnstest.Truncate)
	r := start(t, testConfig(s.Addr()))
	look := func(i int) {
		t.Helper()
		if a, _, _, err := r.LookupA(t.Context(), fmt.Sprintf("n%d.example", i)); err != nil || len(a) != 1 {
			t.Fatalf("%d: %v, %v", i, a, err)
		}
	}
	look(0)
	look(1)
	s.Stop() // closes the connection
	s.Restart()
	look(2)
	look(3)
	var from []string
	for _, q := range s.Log() {
		if q.Net == "tcp" {
			from = append(from, q.From)
		}
	}
	if len(from) != 4 || from[0] != from[1] || from[1] == from[2] || from[2] != from[3] {
		t.Errorf("queries came from %v, want two connections with two each", from)
	}
	if s := r.Status()[0]; !s.Healthy || s.Failures != 0 {
		t.Errorf("%+v", s)
	}
}

func TestLiesArePassedOver(t *testing.T) {
	for _, lie := range []dnstest.Lie{
		dnstest.LieID, dnstest.LieQuestion, dnstest.LieClass, dnstest.LieQuery, dnstest.LieGarbage,
	} {
		t.Run(string(lie), func(t *testing.T) {
			s := dnstest.Start(t)
			s.Add(`a.example. 300 IN A 192.0.2.1`)
			s.Behave("a.example", dnstest.Behavior{Lies: []dnstest.Lie{lie, lie}, Truth: true, UDPOnly: true})
			r := start(t, testConfig(s.Addr()))
			if a, _, _, err := r.LookupA(t.Context(), "a.example"); err != nil || !slices.Equal(a, addrs("192.0.2.1")) {
				t.Errorf("%v, %v", a, err)
			}
			if n := s.Count("a.example", "A"); n != 1 {
				t.Errorf("%d queries: the lie ended the wait", n)
			}
		})
		t.Run(string(lie)+" and nothing else", func(t *testing.T) {
			t.Parallel()
			s := dnstest.Start(t)
			s.Behave("a.example", dnstest.Behavior{Lies: []dnstest.Lie{lie}})
			cfg := testConfig(s.Addr())
			cfg.Timeout, cfg.Attempts = conf.Duration(100*time.Millisecond), 1
			r := start(t, cfg)
			if a, _, _, err := r.LookupA(t.Context(), "a.example"); !isError(err, ErrTimeout) {
				t.Errorf("%v, %v", a, err)
			}
		})
	}
	t.Run("case", func(t *testing.T) { // is no lie
		s := dnstest.Start(t)
		s.Add(`a.example. 300 IN A 192.0.2.1`)
		s.Behave("a.example", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieCase}})
		r := start(t, testConfig(s.Addr()))
		if a, _, _, err := r.LookupA(t.Context(), "a.example"); err != nil || len(a) != 1 {
			t.Errorf("%v, %v", a, err)
		}
	})
}

// TestAnswerFromElsewhere forges the right answer, with the right ID and to
// the right port, but from another address.
func TestAnswerFromElsewhere(t *testing.T) {
	release := make(chan struct{})
	s := dnstest.Start(t)
	s.Add(`a.example. 300 IN A 192.0.2.1`)
	s.Behave("a.example", dnstest.Behavior{Hold: release})
	r := start(t, testConfig(s.Addr()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if a, _, _, err := r.LookupA(t.Context(), "a.example"); err != nil || !slices.Equal(a, addrs("192.0.2.1")) {
			t.Errorf("%v, %v", a, err)
		}
	}()
	var q dnstest.Query
	for log := s.Log(); ; log = s.Log() {
		if len(log) > 0 {
			q = log[0]
			break
		}
		time.Sleep(time.Millisecond)
	}
	forged := message(t, key{"a.example", dns.TypeA}, 0, "a.example. 300 IN A 192.0.2.66")
	binary.BigEndian.PutUint16(forged, q.ID)
	liar, err := net.Dial("udp", q.From)
	if err != nil {
		t.Fatal(err)
	}
	defer liar.Close() //nolint:errcheck // nothing to lose
	for range 5 {
		_, _ = liar.Write(forged) // refused: that is the point
	}
	close(release)
	<-done
}

func TestSocketsAreReusedAndReplaced(t *testing.T) {
	s := dnstest.Start(t)
	s.Add(`*.example. 300 IN A 192.0.2.1`)
	r := start(t, testConfig(s.Addr()))
	const queries = 3 * udpUses
	for i := range queries {
		if _, _, _, err := r.LookupA(t.Context(), fmt.Sprintf("n%d.example", i)); err != nil {
			t.Fatal(err)
		}
	}
	uses := map[string]int{}
	ids := map[uint16]bool{}
	for _, q := range s.Log() {
		uses[q.From]++
		ids[q.ID] = true
	}
	if len(uses) < 3 || len(uses) > queries/20 {
		t.Errorf("%d queries came from %d ports", queries, len(uses))
	}
	for port, n := range uses {
		if n > udpUses {
			t.Errorf("%d queries from %s", n, port)
		}
	}
	if len(ids) < queries*9/10 {
		t.Errorf("%d different IDs", len(ids))
	}
}

func TestPool(t *testing.T) {
	s := dnstest.Start(t)
	p := pool{transport: overUDP, addr: mustServer(t, s.Addr())}
	now := time.Now()
	dial := func() *conn {
		t.Helper()
		c, err := p.dial(t.Context(), now.Add(patience))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := p.take(now); c != nil {
		t.Error("a connection from nowhere")
	}
	c := dial()
	p.put(c, now)
	if got := p.take(now); got != c {
		t.Error("not reused")
	}
	c.uses = 0
	p.put(c, now)
	if got := p.take(now); got != nil {
		t.Error("reused too often")
	}
	old := dial()
	old.born = now
	p.put(old, now)
	young := dial()
	young.born = now.Add(udpLife)
	p.put(young, now.Add(udpLife)) // closes the old one
	if got := p.take(now.Add(udpLife)); got != young {
		t.Error("the young one is gone")
	}
	if got := p.take(now.Add(udpLife)); got != nil {
		t.Error("the old one is not")
	}
	var many []*conn
	for range udpIdle + 5 {
		many = append(many, dial())
	}
	for _, c := range many {
		p.put(c, now)
	}
	if n := len(p.idle); n != udpIdle {
		t.Errorf("%d idle sockets, want %d", n, udpIdle)
	}
	p.put(young, now)
	p.close()
	late := dial()
	p.put(late, now)
	if len(p.idle) != 0 {
		t.Error("a closed pool keeps a socket")
	}
	for _, c := range []*conn{old, young, late} {
		if _, err := c.Write([]byte{0}); !isError(err, net.ErrClosed) {
			t.Errorf("still open: %v", err)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	s := dnstest.Start(t)
	s.Add(`*.example. 300 IN A 192.0.2.1`)
	cfg := testConfig(s.Addr())
	cfg.MaxInFlight = 16
	r := start(t, cfg)
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			if _, _, _, err := r.LookupA(t.Context(), fmt.Sprintf("n%d.example", i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	ports := map[string]bool{}
	for _, q := range s.Log() {
		ports[q.From] = true
	}
	if len(ports) > 16 {
		t.Errorf("%d sockets, with max_in_flight 16", len(ports))
	}
}

func TestShortText(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := dead.LocalAddr().String()
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(addr)
	r := start(t, cfg)
	_, _, _, err = r.LookupA(t.Context(), "a.example")
	if !isError(err, ErrUnreachable) || !strings.HasSuffix(err.Error(), "A a.example: server unreachable ("+addr+" over udp: connection refused)") {
		t.Errorf("got %v", err)
	}
}

func mustServer(tb testing.TB, text string) netip.AddrPort {
	tb.Helper()
	addr, err := parseServer(text)
	if err != nil {
		tb.Fatal(err)
	}
	return addr
}
