package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"postern/internal/conf"
	"postern/internal/dnstest"
)

// spfResolver is the interface DNSResolver of blitiri.com.ar/go/spf.
type spfResolver interface {
	LookupTXT(ctx context.Context, domain string) (txts []string, err error)
	LookupMX(ctx context.Context, domain string) (mxs []*net.MX, err error)
	LookupIPAddr(ctx context.Context, host string) (ips []net.IPAddr, err error)
	LookupAddr(ctx context.Context, addr string) (names []string, err error)
}

// listResolver is the interface of package rbl.
type listResolver interface {
	LookupA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error)
	LookupTXT(ctx context.Context, name string) (texts []string, ttl time.Duration, cached bool, err error)
}

var (
	_ spfResolver  = Net{}
	_ listResolver = (*Resolver)(nil)
)

func TestNet(t *testing.T) {
	s := dnstest.Start(t)
	s.Add(
		`example.org. 300 IN TXT "v=spf1 " "-all"`,
		`example.org. 300 IN MX 20 b.example.org.`,
		`example.org. 300 IN MX 10 a.example.org.`,
		`null.example.org. 300 IN MX 0 .`,
		`example.org. 300 IN A 192.0.2.1`,
		`example.org. 300 IN AAAA 2001:db8::1`,
		`four.example.org. 300 IN A 192.0.2.4`,
		`six.example.org. 300 IN AAAA 2001:db8::6`,
		`half.example.org. 300 IN A 192.0.2.5`,
		`1.2.0.192.in-addr.arpa. 300 IN PTR Mail.example.org.`,
	)
	s.Behave("half.example.org", dnstest.Behavior{Rcode: 2, Type: "AAAA"})
	s.Behave("fails.example.org", dnstest.ServFail)
	n := start(t, testConfig(s.Addr())).Net()
	ctx := t.Context()
	ips := func(host string) (any, error) { return n.LookupIPAddr(ctx, host) }
	names := func(addr string) (any, error) { return n.LookupAddr(ctx, addr) }
	texts := func(name string) (any, error) { return n.LookupTXT(ctx, name) }
	mx := func(name string) (any, error) {
		list, err := n.LookupMX(ctx, name)
		var out []string
		for _, m := range list {
			out = append(out, fmt.Sprint(m.Pref, " ", m.Host))
		}
		return out, err
	}
	for _, tt := range []struct {
		name  string
		ask   func(string) (any, error)
		arg   string
		want  string
		found bool // else not found
		fails bool
	}{
		{"TXT", texts, "Example.org.", "[v=spf1 -all]", true, false},
		{"no TXT", texts, "four.example.org", "[]", false, false},
		{"TXT fails", texts, "fails.example.org", "[]", false, true},
		{"invalid name", texts, "a..b", "[]", false, false},
		{"MX", mx, "example.org", "[10 a.example.org. 20 b.example.org.]", true, false},
		{"null MX", mx, "null.example.org", "[0 .]", true, false},
		{"no MX", mx, "four.example.org", "[]", false, false},
		{"MX fails", mx, "fails.example.org", "[]", false, true},
		{"both families", ips, "example.org", "[{192.0.2.1 } {2001:db8::1 }]", true, false},
		{"one family", ips, "four.example.org", "[{192.0.2.4 }]", true, false},
		{"the other", ips, "six.example.org", "[{2001:db8::6 }]", true, false},
		{"neither", ips, "none.example.org", "[]", false, false},
		{"half of it fails", ips, "half.example.org", "[]", false, true},
		{"an address", ips, "2001:db8::7", "[{2001:db8::7 }]", true, false},
		{"PTR", names, "192.0.2.1", "[mail.example.org.]", true, false},
		{"no PTR", names, "192.0.2.2", "[]", false, false},
		{"no address", names, "example.org", "[]", false, false},
	} {
		got, err := tt.ask(tt.arg)
		if s := fmt.Sprint(got); s != tt.want || (err == nil) != tt.found {
			t.Errorf("%s: %s, %v, want %s", tt.name, s, err, tt.want)
		}
		if err == nil {
			continue
		}
		// Not errors.As: it has to be bare.
		e, ok := err.(*net.DNSError) //nolint:errorlint // see above
		if !ok {
			t.Errorf("%s: error is a %T", tt.name, err)
			continue
		}
		if e.IsNotFound == tt.fails || e.IsTemporary != tt.fails || e.IsTimeout || e.Unwrap() != nil {
			t.Errorf("%s: %+v", tt.name, e)
		}
	}
}

func TestNetTimeouts(t *testing.T) {
	t.Parallel()
	s := dnstest.Start(t)
	s.BehaveUnder(".", dnstest.Drop)
	cfg := testConfig(s.Addr())
	cfg.Timeout, cfg.Attempts = conf.Duration(500*time.Millisecond), 1
	n := start(t, cfg).Net()
	expired, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	canceled, stop := context.WithCancel(t.Context())
	stop()
	for _, tt := range []struct {
		name    string
		ctx     context.Context
		timeout bool
	}{
		{"servers are silent", t.Context(), true},
		{"deadline", expired, true},
		{"caller is gone", canceled, false},
	} {
		_, err := n.LookupTXT(tt.ctx, fmt.Sprintf("%d.example", len(tt.name)))
		e, ok := err.(*net.DNSError) //nolint:errorlint // it has to be bare
		if !ok || !e.IsTemporary || e.IsTimeout != tt.timeout || e.IsNotFound {
			t.Errorf("%s: %#v", tt.name, err)
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: a context's error shines through", tt.name)
		}
	}
	for end := time.Now().Add(10 * time.Second); s.Total() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // the server has not read it yet
	}
	if n := s.Total(); n != 1 {
		t.Errorf("%d queries, want 1", n)
	}
}
