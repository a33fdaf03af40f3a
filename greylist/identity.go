package greylist

import (
	"net/netip"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Names judges the names of clients. It is safe for concurrent use.
type Names interface {
	// Generic reports whether name, the verified name of addr, is one that a
	// hoster or an access network gives to its customers.
	Generic(name string, addr netip.Addr) bool
}

// matchIdentity returns by what a retry is recognised: the first of the domain
// for which SPF passed, the organisational domain of the client's verified
// name unless it is generic, the provider, the network. It may be wide, since
// it only lets a pool retry from another of its addresses. ok is false when
// nothing is known of the client.
func matchIdentity(req *policy.Request, names Names, v4, v6 int) (match string, ok bool) {
	if domain := passedSPF(req); domain != "" {
		return "spf:" + domain, true
	}
	if org := orgOf(&req.Client, names); org != "" {
		return "org:" + org, true
	}
	if req.Facts.Provider != "" {
		return "provider:" + req.Facts.Provider, true
	}
	return networkOf(req.Client.Addr, v4, v6)
}

// creditIdentity returns who earns not to be delayed again: what strangers
// cannot share. It is the domain for which SPF passed; else the organisational
// domain of the client's verified name, where it is the sender's own and the
// name is not generic; else the network and the sender's organisational domain
// together, so that a neighbour earns for its own domain only. What names no
// domain (the null sender, a bare user name) earns nothing without SPF: every
// host of the network could say it. ok is false when nothing can be earned.
func creditIdentity(req *policy.Request, names Names, v4, v6 int) (credit string, ok bool) {
	if domain := passedSPF(req); domain != "" {
		return "spf:" + domain, true
	}
	domain := mailaddr.OrgDomain(req.Sender.Domain)
	if domain == "" {
		// An address literal or a top-level domain is as good as another.
		if domain = req.Sender.Domain; domain == "" {
			return "", false
		}
	}
	if org := orgOf(&req.Client, names); org != "" && org == domain {
		return "org:" + org, true
	}
	network, ok := networkOf(req.Client.Addr, v4, v6)
	if !ok {
		return "", false
	}
	return network + " " + domain, true
}

// passedSPF returns the domain for which SPF passed, "" for none.
func passedSPF(req *policy.Request) string {
	if spf := &req.Facts.SPF; spf.Result == "pass" {
		return spf.Domain
	}
	return ""
}

// orgOf returns the organisational domain of a client's verified name, "" for
// none and for a generic name: such a domain is shared by strangers.
func orgOf(client *policy.Client, names Names) string {
	if client.Name == "" || names.Generic(client.Name, client.Addr) {
		return ""
	}
	return mailaddr.OrgDomain(client.Name)
}

func networkOf(addr netip.Addr, v4, v6 int) (string, bool) {
	if !addr.IsValid() {
		return "", false
	}
	bits := v4
	if addr.Is6() {
		bits = v6
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return "", false
	}
	var buf [64]byte
	return string(network.AppendTo(append(buf[:0], "net:"...))), true
}
