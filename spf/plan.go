package spf

import (
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/maypok86/otter/v2"

	"postern/internal/spfrecord"
)

// plan is a record as go/spf gets to see it, for clients of one family.
//
// The library reads a record term by term while it evaluates, and reads some
// of them more loosely than RFC 7208 does. So a record is read by
// internal/spfrecord first, as a whole, and written again in a plain form: no
// macros, no names, no modifiers but redirect=, of the networks only the one
// that holds the client, and nothing behind that. In the place of a name
// stands the mark of the plan and the number of the term, which no name in DNS
// can look like; [evaluation] turns it back into the name when the library
// asks for it. Order, limits and results remain the library's.
type plan struct {
	id       string
	domain   string
	record   *spfrecord.Record
	v6       bool
	networks []network
	names    []string                   // of each term, "" where it has macros or no name
	plain    []atomic.Pointer[[]string] // by the first of networks that holds the client, then for none
	width    float64                    // clients that its own terms let pass, in networks of the widest allowed
}

// network is a term ip4 or ip6.
type network struct {
	term   int
	prefix netip.Prefix
}

// mark begins what stands in the place of a name. Names from DNS are printable.
const mark = "\x01"

// planKey names a plan: %{d} makes it depend on the domain.
type planKey struct {
	domain, text string
	v6           bool
}

// plansKept is how much is kept of plans, in units: about 40 MB.
const (
	plansKept = 80_000
	planUnit  = 512 // octets
)

// planWeight estimates how much memory a plan needs, in units.
func planWeight(k planKey, p *plan) uint32 {
	const self, term, form = 500, 160, 100
	size := self + 2*len(k.text) + len(k.domain) + term*len(p.record.Terms)
	if len(p.networks) <= keptForms {
		size += form * len(p.networks)
	}
	return uint32((size + planUnit - 1) / planUnit)
}

// plans makes plans, and keeps them. It is safe for concurrent use.
type plans struct {
	cache  *otter.Cache[planKey, *plan]
	last   atomic.Uint64
	widest [2]int // prefix lengths for IPv4 and IPv6, see Config
}

func newPlans(widest4, widest6 int) *plans {
	return &plans{
		cache:  otter.Must(&otter.Options[planKey, *plan]{MaximumWeight: plansKept, Weigher: planWeight}),
		widest: [2]int{widest4, widest6},
	}
}

// get returns the plan of the record text of a domain. The error is a
// [*spfrecord.SyntaxError].
func (p *plans) get(domain, text string, v6 bool) (*plan, error) {
	key := planKey{domain, text, v6}
	if pl, ok := p.cache.GetIfPresent(key); ok {
		return pl, nil
	}
	r, err := spfrecord.Parse(text)
	if err != nil {
		return nil, err
	}
	key.domain, key.text = strings.Clone(domain), strings.Clone(text)
	pl := &plan{id: strconv.FormatUint(p.last.Add(1), 36), domain: key.domain, record: r, v6: v6, names: make([]string, len(r.Terms))}
	for i := range r.Terms {
		t := &r.Terms[i]
		pl.width += p.width(t, v6)
		switch {
		case t.Kind == spfrecord.IP4 || t.Kind == spfrecord.IP6:
			if v6 == (t.Kind == spfrecord.IP6) {
				pl.networks = append(pl.networks, network{i, t.Prefix()})
			}
		case t.Domain.String() == "":
			pl.names[i] = pl.domain
		case len(t.Domain.Macros()) == 0:
			pl.names[i] = expand(t, nil)
		}
	}
	pl.plain = make([]atomic.Pointer[[]string], len(pl.networks)+1)
	p.cache.Set(key, pl)
	return pl, nil
}

// term returns what stands for the name of term i: "\x01plan.i".
func (pl *plan) term(i int) string { return mark + pl.id + "." + strconv.Itoa(i) }

// expand returns the name of a term.
func expand(t *spfrecord.Term, value func(letter byte) (string, bool)) string {
	name, err := t.Domain.Expand(value)
	if err != nil {
		return "" // a letter of exp= only, which the parser refuses here
	}
	return lower(name)
}

// keptForms is the most networks of a record for which its plain forms are
// kept; with more of them they are written each time.
const keptForms = 256

// mostTerms is the most terms of a plain form that ask the DNS; max_lookups
// cannot be more.
const mostTerms = 40

// forClient returns the plain form for a client, as the one TXT record of an
// answer. It is not to be changed.
func (pl *plan) forClient(addr netip.Addr) []string {
	n := slices.IndexFunc(pl.networks, func(n network) bool { return n.prefix.Contains(addr) })
	if n < 0 {
		n = len(pl.networks)
	}
	if len(pl.networks) > keptForms {
		return []string{pl.write(n)}
	}
	if have := pl.plain[n].Load(); have != nil {
		return *have
	}
	out := []string{pl.write(n)}
	pl.plain[n].Store(&out)
	return out
}

// write returns the plain form when the first network that holds the client
// is n. It ends with the first term that is sure to match.
func (pl *plan) write(n int) string {
	matching := -1
	if n < len(pl.networks) {
		matching = pl.networks[n].term
	}
	var b strings.Builder
	b.WriteString("v=spf1")
	redirect, asking := "", 0
	for i := range pl.record.Terms {
		t := &pl.record.Terms[i]
		switch t.Kind {
		case spfrecord.Exp, spfrecord.Unknown:
			continue
		case spfrecord.Redirect:
			redirect = " redirect=" + pl.term(i)
			continue
		case spfrecord.IP4, spfrecord.IP6:
			if i != matching {
				continue
			}
		default:
		}
		b.WriteByte(' ')
		b.WriteByte(byte(t.Qualifier))
		switch t.Kind {
		case spfrecord.All:
			b.WriteString("all")
			return b.String()
		case spfrecord.IP4, spfrecord.IP6:
			b.WriteString(t.Kind.String() + ":" + t.Prefix().String())
			return b.String()
		case spfrecord.PTR: // answered by evaluation, which asks less of DNS
			b.WriteString("exists:" + pl.term(i))
		case spfrecord.A, spfrecord.MX:
			b.WriteString(t.Kind.String() + ":" + pl.term(i))
			switch {
			case pl.v6 && t.Len6 != spfrecord.NoLength:
				b.WriteString("//" + strconv.Itoa(t.Len6))
			case !pl.v6 && t.Len4 != spfrecord.NoLength:
				b.WriteString("/" + strconv.Itoa(t.Len4))
			}
		default: // include, exists
			b.WriteString(t.Kind.String() + ":" + pl.term(i))
		}
		if asking++; asking == mostTerms {
			return b.String()
		}
	}
	return b.String() + redirect // which comes after all others, wherever it stands
}

// everybody is the width of a record that lets everybody pass.
var everybody = math.Inf(1)

// width returns how many networks of the widest allowed size a term lets pass
// by itself.
func (p *plans) width(t *spfrecord.Term, v6 bool) float64 {
	if t.Qualifier != spfrecord.Pass || t.Kind.Modifier() {
		return 0
	}
	bits, family := t.Len4, 0
	if v6 {
		bits, family = t.Len6, 1
	}
	switch t.Kind {
	case spfrecord.All:
		return everybody
	case spfrecord.A, spfrecord.MX:
		if bits == spfrecord.NoLength {
			return 0
		}
	case spfrecord.IP4, spfrecord.IP6:
		if v6 != (t.Kind == spfrecord.IP6) {
			return 0
		}
		if bits == spfrecord.NoLength {
			return 0
		}
	default:
		return 0
	}
	return math.Ldexp(1, p.widest[family]-bits)
}
