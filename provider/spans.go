package provider

import (
	"net/netip"
	"slices"
	"sort"
)

// span is a range of addresses of one family, both ends included.
type span struct{ from, to netip.Addr }

// spans is a set of addresses: sorted (IPv4 before IPv6), no two overlap or touch.
type spans []span

// everything holds every address.
func everything() spans {
	return spans{spanOf(netip.MustParsePrefix("0.0.0.0/0")), spanOf(netip.MustParsePrefix("::/0"))}
}

// spanOf returns the addresses of a network.
func spanOf(p netip.Prefix) span {
	p = p.Masked()
	return span{p.Addr(), lastAddr(p)}
}

func lastAddr(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		fill(b[:], p.Bits())
		return netip.AddrFrom4(b)
	}
	b := p.Addr().As16()
	fill(b[:], p.Bits())
	return netip.AddrFrom16(b)
}

// fill sets all bits from n on.
func fill(b []byte, n int) {
	for i := n; i < len(b)*8; i++ {
		if i%8 == 0 {
			b[i/8] = 0xff
			i += 7
			continue
		}
		b[i/8] |= 0x80 >> (i % 8)
	}
}

// spansOf returns the set of the addresses in some networks.
func spansOf(prefixes []netip.Prefix) spans {
	out := make(spans, len(prefixes))
	for i, p := range prefixes {
		out[i] = spanOf(p)
	}
	return normal(out)
}

// normal sorts s in place and joins what overlaps or touches.
func normal(s spans) spans {
	slices.SortFunc(s, func(a, b span) int { return a.from.Compare(b.from) })
	out := s[:0]
	for _, x := range s {
		if n := len(out); n > 0 && touches(out[n-1], x) {
			if out[n-1].to.Less(x.to) {
				out[n-1].to = x.to
			}
			continue
		}
		out = append(out, x)
	}
	return out
}

// touches reports whether b, which does not begin before a, overlaps it or
// follows it at once.
func touches(a, b span) bool {
	if a.from.BitLen() != b.from.BitLen() {
		return false
	}
	return !a.to.Less(b.from) || a.to.Next() == b.from
}

// find returns the index of the first span of s that does not end before a.
func (s spans) find(a netip.Addr) int {
	return sort.Search(len(s), func(i int) bool { return !s[i].to.Less(a) })
}

func (s spans) contains(a netip.Addr) bool {
	i := s.find(a)
	return i < len(s) && !a.Less(s[i].from)
}

// cut takes x out of *s and returns what of x was in it.
func (s *spans) cut(x span) spans {
	i := s.find(x.from)
	var taken, left spans
	j := i
	for ; j < len(*s) && !x.to.Less((*s)[j].from); j++ {
		c := (*s)[j]
		t := c
		if c.from.Less(x.from) {
			left = append(left, span{c.from, x.from.Prev()})
			t.from = x.from
		}
		if x.to.Less(c.to) {
			left = append(left, span{x.to.Next(), c.to})
			t.to = x.to
		}
		taken = append(taken, t)
	}
	if j > i {
		*s = slices.Replace(*s, i, j, left...)
	}
	return taken
}

// cutAll takes all of o out of *s and returns what of it was there.
func (s *spans) cutAll(o spans) spans {
	if len(o) == 0 {
		return nil
	}
	left := s.without(o)
	taken := s.without(left)
	*s = left
	return taken
}

// with returns the union of both.
func (s spans) with(o spans) spans {
	if len(o) == 0 {
		return s
	}
	return normal(slices.Concat(s, o))
}

// without returns what is in s and not in o.
func (s spans) without(o spans) spans {
	out := make(spans, 0, len(s))
	j := 0
	for _, x := range s {
		for j < len(o) && o[j].to.Less(x.from) {
			j++
		}
		whole := true // whether something of x is left at its end
		for k := j; k < len(o) && !x.to.Less(o[k].from); k++ {
			if x.from.Less(o[k].from) {
				out = append(out, span{x.from, o[k].from.Prev()})
			}
			if !o[k].to.Less(x.to) {
				whole = false
				break
			}
			x.from = o[k].to.Next()
		}
		if whole {
			out = append(out, x)
		}
	}
	return out
}

// common returns what is in both.
func (s spans) common(o spans) spans { return s.without(s.without(o)) }

// appendPrefixes appends the fewest networks that make up x.
func (x span) appendPrefixes(out []netip.Prefix) []netip.Prefix {
	from, width := x.from, x.from.BitLen()
	for {
		p := netip.PrefixFrom(from, width)
		last := from
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(from, p.Bits()-1)
			end := lastAddr(wider)
			if wider.Masked().Addr() != from || x.to.Less(end) {
				break
			}
			p, last = wider, end
		}
		out = append(out, p)
		if last == x.to {
			return out
		}
		from = last.Next()
	}
}

// prefixes returns the fewest networks that make up s, sorted.
func (s spans) prefixes() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(s))
	for _, x := range s {
		out = x.appendPrefixes(out)
	}
	return out
}

// size returns how many IPv4 addresses and how many IPv6 addresses are in s.
func (s spans) size() (v4, v6 float64) {
	for _, x := range s {
		a, b := x.from.As16(), x.to.As16()
		n := 0.
		for i := range a {
			n = n*256 + float64(b[i]) - float64(a[i])
		}
		if x.from.Is4() {
			v4 += n + 1
		} else {
			v6 += n + 1
		}
	}
	return v4, v6
}

// Aggregate returns the fewest networks that hold the same addresses, IPv4
// first, sorted. Host bits are masked; the argument is not changed.
func Aggregate(prefixes []netip.Prefix) []netip.Prefix { return spansOf(prefixes).prefixes() }
