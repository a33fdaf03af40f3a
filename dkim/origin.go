package dkim

import (
	"net/netip"
	"slices"
	"strings"

	"postern/policy"
)

// origin is why a message is ours to sign.
type origin uint8

const (
	foreign origin = iota // it is not
	ours
	// handed in by a program of this host: it is ours unless its Received fields
	// say that it has come from elsewhere.
	local
)

// originOf says whose a message is, as far as its envelope tells.
func (c *Check) originOf(req *policy.Request) origin {
	switch {
	case c.cfg.Authenticated && req.SASL.Username != "":
		return ours
	case slices.Contains(c.cfg.Chains, req.JudgedBy):
		return ours
	case !req.Client.Addr.IsValid() || !c.own(req.Client.Addr):
		return foreign
	case req.Client.Addr.IsLoopback():
		return local
	}
	return ours
}

// own reports whether an address is of our networks.
func (c *Check) own(a netip.Addr) bool {
	return slices.ContainsFunc(c.cfg.Networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// fromElsewhere reports whether a message that a program of this host hands in,
// such as a content filter, has come from outside. received are the values of
// its Received fields, the topmost first. The first that names another host than
// this one tells: the MTA of this host has written it, and nothing below it can
// be trusted or is needed.
func (c *Check) fromElsewhere(received []string) bool {
	for _, value := range received {
		addr, with := parseReceived(value)
		switch {
		case with == "HTTP" || with == "HTTPS" || strings.HasSuffix(with, "A") && transfers(strings.TrimSuffix(with, "A")):
			return false // webmail, or somebody who has logged in (RFC 3848)
		case with == "POP3" || with == "IMAP":
			return true // fetched from a mailbox elsewhere
		case !transfers(with):
			return false // a program of this host made it
		case !addr.IsValid():
			return true // who can tell
		case !addr.IsLoopback():
			return !c.own(addr)
		}
	}
	return false
}

// transfers reports whether a word behind "with" is SMTP or LMTP of any kind
// without a login (RFC 3848, RFC 6531).
func transfers(with string) bool {
	switch strings.TrimPrefix(strings.TrimSuffix(with, "S"), "UTF8") {
	case "SMTP", "ESMTP", "LMTP":
		return true
	}
	return false
}

// parseReceived returns from a Received field the address of the client, as
// Postfix writes it at the end of the first line, and the protocol. What the
// client calls itself stands on that line too, and before the address.
func parseReceived(value string) (addr netip.Addr, with string) {
	first, rest, folded := strings.Cut(value, "\n")
	if !folded {
		// Others write one line; there "by" ends what the client may have said.
		if i := strings.LastIndex(value, " by "); i >= 0 {
			first, rest = value[:i], value[i+1:]
		}
	}
	if strings.HasPrefix(strings.TrimSpace(first), "from ") {
		if end := strings.LastIndexByte(first, ']'); end >= 0 {
			if begin := strings.LastIndexByte(first[:end], '['); begin >= 0 {
				text := first[begin+1 : end]
				if i := strings.LastIndexByte(text, ':'); i >= 0 && len(text) > 5 && strings.EqualFold(text[:5], "IPv6:") {
					text = text[5:]
				}
				if a, err := netip.ParseAddr(text); err == nil {
					addr = a.Unmap().WithZone("")
				}
			}
		}
	} else {
		rest = value
	}
	words := strings.Fields(rest)
	for i, w := range words {
		if strings.EqualFold(w, "with") && i+1 < len(words) {
			return addr, strings.ToUpper(strings.TrimRight(words[i+1], ";,"))
		}
	}
	return addr, ""
}
