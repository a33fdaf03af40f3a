package console

import (
	"cmp"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"

	"postern/internal/page"
)

// bar is one stretch of an address bar, in thousandths of its width.
type bar struct {
	X, Width float64
	Mark     bool
}

// addressBar shows where networks lie among all addresses of a family.
type addressBar struct {
	Family string
	Count  int
	Bars   []bar
}

// thinnest is how wide a network is shown at least.
const thinnest = 1.5

// addressBars places networks: IPv4 among all addresses, IPv6 among those that are
// given out today, 2000::/3.
func addressBars(n page.Networks) (out []addressBar) {
	for _, family := range []string{"IPv4", "IPv6"} {
		b := addressBar{Family: family}
		add := func(all []netip.Prefix, mark bool) {
			for _, p := range all {
				if p.Addr().Is4() != (family == "IPv4") {
					continue
				}
				b.Count++
				if x, width, ok := place(p); ok {
					b.Bars = append(b.Bars, bar{x, max(width, thinnest), mark})
				}
			}
		}
		add(n.Prefixes, false)
		add(n.Mark, true)
		slices.SortStableFunc(b.Bars, func(a, c bar) int { return cmp.Or(cmp.Compare(btoi(a.Mark), btoi(c.Mark)), cmp.Compare(a.X, c.X)) })
		b.Bars = joined(b.Bars)
		if b.Count > 0 {
			out = append(out, b)
		}
	}
	return out
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// joined makes one of bars that lie over each other.
func joined(bars []bar) (out []bar) {
	for _, b := range bars {
		if n := len(out); n > 0 && out[n-1].Mark == b.Mark && b.X <= out[n-1].X+out[n-1].Width {
			out[n-1].Width = max(out[n-1].Width, b.X+b.Width-out[n-1].X)
			continue
		}
		out = append(out, b)
	}
	return out
}

// place is where a network lies, in thousandths.
func place(p netip.Prefix) (x, width float64, ok bool) {
	p = p.Masked()
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return 1000 * float64(binary.BigEndian.Uint32(a[:])) / (1 << 32), 1000 * math.Pow(2, float64(-p.Bits())), true
	}
	a := p.Addr().As16()
	high := binary.BigEndian.Uint64(a[:8])
	if high>>61 != 1 || p.Bits() < 3 {
		return 0, 0, false
	}
	return 1000 * float64(high&(1<<61-1)) / (1 << 61), 1000 * math.Pow(2, float64(3-p.Bits())), true
}
