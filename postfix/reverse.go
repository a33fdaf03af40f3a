package postfix

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Names looks names and addresses up, as [net.Resolver] does.
type Names interface {
	LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error)
	LookupAddr(ctx context.Context, addr string) ([]string, error)
}

// reserved are the ends of names that are nobody's (RFC 2606, RFC 6761).
var reserved = []string{"example", "test", "invalid", "localhost", "local", "example.com", "example.net", "example.org"}

// CheckName says what is wrong with the name that this host has in HELO, as the
// DNS knows it: others expect that it leads to an address, and the address back to it.
// Names that are nobody's are not looked up, nor are private addresses. What the
// DNS does not say is a note, an error in looking it up nothing worse.
func CheckName(ctx context.Context, s *Setup, dns Names) []Finding {
	name := strings.ToLower(strings.TrimSuffix(s.Value(nil, "smtp_helo_name"), "."))
	where := "smtp_helo_name"
	if name == "" || s.raw(nil, "smtp_helo_name") == "$myhostname" {
		name, where = strings.ToLower(strings.TrimSuffix(s.Value(nil, "myhostname"), ".")), "myhostname"
	}
	if !strings.Contains(name, ".") || slices.ContainsFunc(reserved, func(end string) bool { return name == end || strings.HasSuffix(name, "."+end) }) {
		return nil // what is no full name is found without DNS
	}
	c := &checker{s: s, seen: make(map[string]bool)}
	addrs, err := dns.LookupIPAddr(ctx, name)
	switch {
	case notThere(err):
		c.say(Warning, "helo-reverse", where, "an A record of "+name+" with the address from which this host sends", "%s, which this host says in HELO, has no address: others refuse mail for that", name)
		return c.out
	case err != nil:
		c.say(Note, "helo-reverse", where, "", "%s cannot be looked up now: %v", name, err)
		return c.out
	}
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		if addr = addr.Unmap(); !ok || addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast() {
			continue
		}
		names, err := dns.LookupAddr(ctx, addr.String())
		if err != nil && !notThere(err) {
			c.say(Note, "helo-reverse", where, "", "the name of %s cannot be looked up now: %v", addr, err)
			continue
		}
		for i, n := range names {
			names[i] = strings.ToLower(strings.TrimSuffix(n, "."))
		}
		fix := fmt.Sprintf("a PTR record of %s with %s, which the owner of the network makes", addr, name)
		switch {
		case len(names) == 0:
			c.say(Warning, "helo-reverse", where, fix, "%s, the address of %s, has no name: others refuse mail from such addresses", addr, name)
		case !slices.Contains(names, name):
			c.say(Warning, "helo-reverse", where, fix, "%s, the address of %s, is called %s: some refuse or delay mail from hosts that say another name", addr, name, strings.Join(names, ", "))
		}
	}
	return c.out
}

// notThere reports whether the DNS says that there is no such thing.
func notThere(err error) bool {
	no, ok := errors.AsType[*net.DNSError](err)
	return ok && no.IsNotFound
}
