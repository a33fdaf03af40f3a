package provider

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"postern/internal/conf"
	"postern/internal/dnstest"
	"postern/resolver"
)

// zone is a Resolver made of records, and the same for go/spf. The fields may
// be changed under mu only once it is in use.
type zone struct {
	mu    sync.Mutex
	txt   map[string][]string
	addrs map[string][]netip.Addr
	mx    map[string][]string
	fails map[string]bool // SERVFAIL for every type
	ttl   time.Duration   // of all answers
	delay time.Duration   // of all answers
	asked int
}

func newZone(spf map[string]string) *zone {
	z := &zone{txt: map[string][]string{}, addrs: map[string][]netip.Addr{}, mx: map[string][]string{}, fails: map[string]bool{}, ttl: time.Hour}
	for name, text := range spf {
		z.set(name, text)
	}
	return z
}

// set gives a name one TXT record, none for "".
func (z *zone) set(name, text string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.txt, name)
	if text != "" {
		z.txt[name] = []string{text}
	}
}

func (z *zone) fail(name string, yes bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.fails[name] = yes
}

func (z *zone) queries() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked
}

var errServFail = errors.New("SERVFAIL")

func look[T any](ctx context.Context, z *zone, name string, records func() []T) ([]T, time.Duration, bool, error) {
	z.mu.Lock()
	z.asked++
	fails, out, ttl, delay := z.fails[name] || z.fails["*"], records(), z.ttl, z.delay
	z.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, 0, false, ctx.Err()
		}
	}
	if fails {
		return nil, 0, false, errServFail
	}
	return out, ttl, false, nil
}

func (z *zone) LookupTXT(ctx context.Context, name string) ([]string, time.Duration, bool, error) {
	return look(ctx, z, name, func() []string { return z.txt[name] })
}

func (z *zone) family(name string, v4 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range z.addrs[name] {
		if a.Is4() == v4 {
			out = append(out, a)
		}
	}
	return out
}

func (z *zone) LookupA(ctx context.Context, name string) ([]netip.Addr, time.Duration, bool, error) {
	return look(ctx, z, name, func() []netip.Addr { return z.family(name, true) })
}

func (z *zone) LookupAAAA(ctx context.Context, name string) ([]netip.Addr, time.Duration, bool, error) {
	return look(ctx, z, name, func() []netip.Addr { return z.family(name, false) })
}

func (z *zone) LookupMX(ctx context.Context, name string) ([]string, time.Duration, bool, error) {
	return look(ctx, z, name, func() []string { return z.mx[name] })
}

// forSPF is the zone as go/spf wants it.
type forSPF struct{ z *zone }

func notFound(name string) error {
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func key(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (f forSPF) LookupTXT(_ context.Context, name string) ([]string, error) {
	if out := f.z.txt[key(name)]; len(out) > 0 {
		return out, nil
	}
	return nil, notFound(name)
}

func (f forSPF) LookupMX(_ context.Context, name string) ([]*net.MX, error) {
	var out []*net.MX
	for _, h := range f.z.mx[key(name)] {
		out = append(out, &net.MX{Host: h})
	}
	if len(out) == 0 {
		return nil, notFound(name)
	}
	return out, nil
}

func (f forSPF) LookupIPAddr(_ context.Context, name string) ([]net.IPAddr, error) {
	if strings.HasSuffix(name, ".x.example") {
		// For exists: neither a match nor a void look-up.
		return []net.IPAddr{{IP: net.ParseIP("2001:db8::1")}}, nil
	}
	var out []net.IPAddr
	for _, a := range f.z.addrs[key(name)] {
		out = append(out, net.IPAddr{IP: a.AsSlice()})
	}
	if len(out) == 0 {
		return nil, notFound(name)
	}
	return out, nil
}

func (f forSPF) LookupAddr(_ context.Context, addr string) ([]string, error) {
	return nil, notFound(addr)
}

// providerRecords returns the SPF records of testdata/providers.zone by name.
func providerRecords(tb testing.TB) map[string]string {
	tb.Helper()
	f, err := os.Open("testdata/providers.zone")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	out := map[string]string{}
	for in := bufio.NewScanner(f); in.Scan(); {
		name, text, ok := strings.Cut(in.Text(), "TXT")
		if ok && in.Text()[0] != ';' {
			out[key(strings.TrimSpace(name))] = strings.Trim(strings.TrimSpace(text), `"`)
		}
	}
	if len(out) != 10 {
		tb.Fatalf("%d records", len(out))
	}
	return out
}

// realResolver is the daemon's own resolver with the method that differs, as
// the daemon puts it.
type realResolver struct{ *resolver.Resolver }

func (r realResolver) LookupMX(ctx context.Context, name string) ([]string, time.Duration, bool, error) {
	mx, ttl, cached, err := r.Resolver.LookupMX(ctx, name)
	hosts := make([]string, len(mx))
	for i := range mx {
		hosts[i] = mx[i].Host
	}
	return hosts, ttl, cached, err
}

// realDNS starts a DNS server and returns it with a resolver that asks it.
func realDNS(tb testing.TB) (*dnstest.Server, realResolver) {
	tb.Helper()
	srv := dnstest.Start(tb)
	cfg := resolver.DefaultConfig()
	cfg.Servers = []string{srv.Addr()}
	cfg.StaleFor, cfg.Attempts, cfg.Timeout = 0, 1, conf.Duration(500*time.Millisecond)
	r, err := resolver.New(cfg, zaptest.NewLogger(tb), nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	return srv, realResolver{r}
}

// addTXT adds a TXT record, cut into strings of 255 bytes.
func addTXT(srv *dnstest.Server, name, text string) {
	var b strings.Builder
	for len(text) > 255 {
		b.WriteString(` "` + text[:255] + `"`)
		text = text[255:]
	}
	srv.Add(name + ". 3600 IN TXT" + b.String() + ` "` + text + `"`)
}
