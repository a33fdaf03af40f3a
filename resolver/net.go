package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// Net looks names up with the methods of [net.Resolver], for libraries that
// want those. Every error is a bare [*net.DNSError]: SPF and DKIM libraries
// take any other for a permanent one. Like that type's, names in answers end
// with a dot, and a name without records is an error, with IsNotFound set.
type Net struct{ r *Resolver }

// Net returns r with the methods of [net.Resolver].
func (r *Resolver) Net() Net { return Net{r} }

// LookupTXT returns the texts of a name, as [Resolver.LookupTXT] does.
func (n Net) LookupTXT(ctx context.Context, name string) ([]string, error) {
	texts, _, _, err := n.r.LookupTXT(ctx, name)
	if err := dnsError(name, len(texts), err); err != nil {
		return nil, err
	}
	return texts, nil
}

// LookupMX returns the mail exchangers of a domain, the preferred first. The
// null MX (RFC 7505) has the host ".".
func (n Net) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	mx, _, _, err := n.r.LookupMX(ctx, name)
	if err := dnsError(name, len(mx), err); err != nil {
		return nil, err
	}
	out := make([]*net.MX, len(mx))
	for i, m := range mx {
		out[i] = &net.MX{Host: dns.Fqdn(m.Host), Pref: m.Pref}
	}
	return out, nil
}

// LookupIPAddr returns the addresses of both families. Unlike [net.Resolver]
// it fails when one of the two cannot be found out: half of the addresses
// would make SPF say "fail" where it has to say "temperror".
func (n Net) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []net.IPAddr{{IP: addr.WithZone("").AsSlice(), Zone: addr.Zone()}}, nil
	}
	type half struct {
		addrs []netip.Addr
		err   error
	}
	v6 := make(chan half, 1)
	go func() {
		addrs, _, _, err := n.r.LookupAAAA(ctx, host)
		v6 <- half{addrs, err}
	}()
	v4, _, _, err := n.r.LookupA(ctx, host)
	other := <-v6
	if err == nil {
		err = other.err
	}
	if err := dnsError(host, len(v4)+len(other.addrs), err); err != nil {
		return nil, err
	}
	out := make([]net.IPAddr, 0, len(v4)+len(other.addrs))
	for _, addrs := range [][]netip.Addr{v4, other.addrs} {
		for _, a := range addrs {
			out = append(out, net.IPAddr{IP: a.AsSlice()})
		}
	}
	return out, nil
}

// LookupAddr returns the names that an address claims.
func (n Net) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, &net.DNSError{Err: "not an address", Name: addr, IsNotFound: true}
	}
	names, _, _, err := n.r.LookupPTR(ctx, ip)
	if err := dnsError(addr, len(names), err); err != nil {
		return nil, err
	}
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = dns.Fqdn(name)
	}
	return out, nil
}

// dnsError returns the error of a look-up that found so many records; nil when
// it succeeded.
func dnsError(name string, found int, err error) error {
	switch {
	case err == nil && found > 0:
		return nil
	case err == nil, errors.Is(err, ErrInvalidName):
		return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	// Our text, not the error: an UnwrapErr would let errors.Is find a context's.
	return &net.DNSError{Err: err.Error(), Name: name, IsTimeout: errors.Is(err, ErrTimeout), IsTemporary: true}
}
