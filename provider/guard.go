package provider

import (
	"fmt"
	"net/netip"

	"postern/internal/conf"
)

// reserved are networks from which no mail comes over the Internet: private,
// reserved, documentation, multicast and translation ranges (RFC 6890 and the
// IANA special-purpose registries).
var reserved = func() spans {
	var prefixes []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
		"192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
		// Outside 2000::/3 nothing is given out to anybody.
		"::/3", "4000::/2", "8000::/1",
		"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
	} {
		prefixes = append(prefixes, netip.MustParsePrefix(s))
	}
	return spansOf(prefixes)
}()

// mostNamed is how many networks one reason names.
const mostNamed = 5

// absolute holds an aggregated list to the bounds that hold for every list,
// whatever was there before.
func (g *GuardConfig) absolute(prefixes []netip.Prefix, allowReserved bool) (why []string) {
	if len(prefixes) == 0 {
		return []string{"it is empty"}
	}
	var wide []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() && p.Bits() < g.MinIPv4Prefix || p.Addr().Is6() && p.Bits() < g.MinIPv6Prefix {
			wide = append(wide, p)
		}
	}
	if len(wide) > 0 {
		why = append(why, fmt.Sprintf("networks wider than min_ipv4_prefix = %d or min_ipv6_prefix = %d: %s", g.MinIPv4Prefix, g.MinIPv6Prefix, some(wide)))
	}
	if allowReserved {
		return why
	}
	if bad := spansOf(prefixes).common(reserved).prefixes(); len(bad) > 0 {
		why = append(why, "private or reserved networks: "+some(bad))
	}
	return why
}

// change holds a new aggregated list to what may change at once. There was one
// before.
func (g *GuardConfig) change(from, to []netip.Prefix) (why []string) {
	a, b := spansOf(from), spansOf(to)
	was4, was6 := a.size()
	gone4, gone6 := a.without(b).size()
	new4, new6 := b.without(a).size()
	for _, f := range []struct {
		name           string
		was, gone, new float64
	}{{"IPv4", was4, gone4, new4}, {"IPv6", was6, gone6, new6}} {
		if f.was == 0 {
			if f.new > 0 && g.MaxGrow < unlimited {
				why = append(why, fmt.Sprintf("it had no %s networks before", f.name))
			}
			continue
		}
		if share := f.gone / f.was * 100; share > float64(g.MaxShrink) {
			why = append(why, fmt.Sprintf("it loses %.0f%% of its %s addresses, more than max_shrink = %d", share, f.name, g.MaxShrink))
		}
		if share := f.new / f.was * 100; share > float64(g.MaxGrow) {
			why = append(why, fmt.Sprintf("it gains %.0f%% of its %s addresses, more than max_grow = %d", share, f.name, g.MaxGrow))
		}
	}
	return why
}

// unlimited is the max_grow from which on a list may gain a whole family.
const unlimited = 1_000_000

// some names a few networks.
func some(prefixes []netip.Prefix) string {
	s := ""
	for i, p := range prefixes {
		if i == mostNamed {
			return s + fmt.Sprintf(" and %d more", len(prefixes)-i)
		}
		if i > 0 {
			s += ", "
		}
		s += p.String()
	}
	return s
}

// faultsText is the first few faults in one line.
func faultsText(fs conf.Faults) string {
	s := ""
	for i, f := range fs {
		if i == mostNamed {
			return s + fmt.Sprintf("; and %d more", len(fs)-i)
		}
		if i > 0 {
			s += "; "
		}
		s += f.Error()
	}
	return s
}
