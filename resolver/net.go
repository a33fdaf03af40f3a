package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// Net looks names up in the shapes of package net, for libraries that ask
// for them. Its errors are always bare *net.DNSError values: a wrapped one
// would be taken for a permanent error by SPF and DKIM code.
type Net struct{ r *Resolver }

// Net returns r in the shapes of package net.
func (r *Resolver) Net() Net { return Net{r} }

// LookupTXT is [net.Resolver.LookupTXT].
func (n Net) LookupTXT(ctx context.Context, name string) ([]string, error) {
	texts, _, _, err := n.r.LookupTXT(ctx, name)
	return texts, n.dnsError(name, len(texts), err)
}

// LookupMX is [net.Resolver.LookupMX]. The hosts end in a dot.
func (n Net) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	mx, _, _, err := n.r.LookupMX(ctx, name)
	out := make([]*net.MX, len(mx))
	for i, m := range mx {
		out[i] = &net.MX{Host: dns.Fqdn(m.Host), Pref: m.Pref}
	}
	return out, n.dnsError(name, len(mx), err)
}

// LookupIPAddr is [net.Resolver.LookupIPAddr]: addresses of both families.
func (n Net) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	type result struct {
		addrs []netip.Addr
		err   error
	}
	six := make(chan result, 1)
	go func() {
		addrs, _, _, err := n.r.LookupAAAA(ctx, host)
		six <- result{addrs, err}
	}()
	addrs, _, _, err := n.r.LookupA(ctx, host)
	other := <-six
	var out []net.IPAddr
	for _, a := range append(append([]netip.Addr(nil), addrs...), other.addrs...) {
		out = append(out, net.IPAddr{IP: a.AsSlice()})
	}
	if err == nil {
		err = other.err
	}
	if len(out) > 0 {
		err = nil
	}
	return out, n.dnsError(host, len(out), err)
}

// LookupAddr is [net.Resolver.LookupAddr]. The names end in a dot.
func (n Net) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, &net.DNSError{Err: "not an address", Name: addr, IsNotFound: true}
	}
	names, _, _, err := n.r.LookupPTR(ctx, a)
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = dns.Fqdn(name)
	}
	return out, n.dnsError(addr, len(out), err)
}

// dnsError makes a bare *net.DNSError of a failure, or of an empty answer.
func (n Net) dnsError(name string, found int, err error) error {
	switch {
	case err == nil && found > 0:
		return nil
	case err == nil:
		return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	case errors.Is(err, ErrInvalidName):
		return &net.DNSError{Err: "invalid name", Name: name, IsNotFound: true}
	}
	return &net.DNSError{
		Err: err.Error(), Name: name, IsTemporary: true,
		IsTimeout: errors.Is(err, ErrTimeout) || errors.Is(err, context.DeadlineExceeded),
	}
}
