package provider

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"postern/internal/mailaddr"
	"postern/internal/spfrecord"
)

// source is where a network comes from.
type source struct {
	record, term, via string
}

// piece is addresses that one term lets pass.
type piece struct {
	span
	source *source
}

// outcome is what a record says, for the addresses that it was asked about:
// each is in one of these sets, or in none, which is fail, softfail or neutral.
type outcome struct {
	pass  []piece
	perm  spans // permerror
	maybe spans // pass, or fail, softfail or neutral
	doubt spans // nothing is known
	none  bool  // there is no record; everything else is empty
}

func (o *outcome) passed() spans {
	out := make(spans, len(o.pass))
	for i := range o.pass {
		out[i] = o.pass[i].span
	}
	return normal(out)
}

// walk evaluates records for all addresses at once.
type walk struct {
	*fetcher
	flat    *Flat
	lookups int
	voids   int
	count   int // networks
}

// problem notes a problem once; no record can make more than a few hundred.
func (w *walk) problem(kind ProblemKind, domain string, t *spfrecord.Term, format string, args ...any) {
	p := Problem{Kind: kind, Record: domain, Text: fmt.Sprintf(format, args...)}
	if t != nil {
		p.Term = t.String()
		if len(p.Term) > 100 {
			p.Term = p.Term[:97] + "..."
		}
	}
	if len(w.flat.Problems) < 200 && !slices.Contains(w.flat.Problems, p) {
		w.flat.Problems = append(w.flat.Problems, p)
	}
}

// frame is the evaluation of one record under way.
type frame struct {
	*walk
	domain string
	via    string
	path   []string
	rest   spans // not decided yet
	maybe  spans // an unknown "+" part may have let them pass already
	out    outcome
}

// record evaluates the record of a domain for the addresses of in, which it
// takes over.
func (w *walk) record(domain string, in spans, path []string) outcome {
	f := &frame{walk: w, domain: domain, via: strings.Join(path, " > "), path: path, rest: slices.Clone(in)}
	r := w.records[domain]
	switch {
	case r == nil:
		w.problem(Broken, domain, nil, "too deep, or too much to read: not read")
		return outcome{perm: f.rest}
	case r.none:
		return outcome{none: true}
	case r.fault != "":
		w.problem(Broken, domain, nil, "%s", r.fault)
		return outcome{perm: f.rest}
	}
	var redirect *spfrecord.Term
	for i := range used(r.parsed) {
		t := &r.parsed.Terms[i]
		if len(f.rest) == 0 {
			break
		}
		if t.Kind == spfrecord.Redirect {
			redirect = t
			continue
		}
		if !t.Kind.Modifier() && !f.term(t) {
			break
		}
	}
	if redirect != nil && len(f.rest) > 0 {
		f.redirect(redirect)
	}
	f.out.maybe = f.maybe.without(f.out.passed()).without(f.out.doubt)
	return f.out
}

// broken ends the evaluation in permerror for all that is left.
func (f *frame) broken(t *spfrecord.Term, format string, args ...any) bool {
	f.problem(Broken, f.domain, t, format, args...)
	f.failed(f.rest)
	f.rest = nil
	return false
}

// failed notes a permerror, of those that nothing may have let pass before.
func (f *frame) failed(s spans) {
	f.out.perm = f.out.perm.with(s.without(f.maybe))
	f.out.doubt = f.out.doubt.with(s.common(f.maybe))
}

// counted counts a term that needs DNS; false means one too many.
func (f *frame) counted(t *spfrecord.Term) bool {
	if !t.Lookup() {
		return true
	}
	if f.lookups++; f.lookups > f.limits.Lookups {
		return f.broken(t, "more than %d look-ups", f.limits.Lookups)
	}
	return true
}

// void counts a look-up without an answer.
func (f *frame) void(t *spfrecord.Term) bool {
	if f.voids++; f.voids > voidLookups {
		return f.broken(t, "more than %d look-ups found nothing", voidLookups)
	}
	return true
}

// term evaluates one mechanism. It returns false when nothing is left.
func (f *frame) term(t *spfrecord.Term) bool {
	if !f.counted(t) {
		return false
	}
	switch t.Kind {
	case spfrecord.All:
		for _, x := range slices.Clone(f.rest) {
			f.match(t, x)
		}
		return false
	case spfrecord.IP4, spfrecord.IP6:
		p := t.Prefix()
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			f.problem(Noted, f.domain, t, "IPv4-mapped addresses never match: clients that have one count as IPv4")
			return true
		}
		return f.match(t, spanOf(p))
	case spfrecord.PTR:
		return f.unknown(t, "depends on the client's name")
	case spfrecord.Exists:
		return f.unknown(t, "depends on the message, or is asked anew for each client")
	default: // those with a domain
	}
	name, known := target(t, f.domain)
	if !known {
		return f.unknown(t, "a macro depends on the message")
	}
	switch t.Kind {
	case spfrecord.Include:
		return f.include(t, name)
	case spfrecord.A:
		addrs, ok := f.addresses(t, name)
		return ok && f.addrsMatch(t, addrs)
	default:
		return f.exchangers(t, name)
	}
}

// match decides the addresses of x that are left. It returns false when there
// are too many networks.
func (f *frame) match(t *spfrecord.Term, x span) bool {
	taken := f.rest.cut(x)
	if t.Qualifier != spfrecord.Pass || len(taken) == 0 {
		return true
	}
	from := &source{f.domain, t.String(), f.via}
	for _, p := range taken {
		f.out.pass = append(f.out.pass, piece{p, from})
	}
	if f.count += len(taken); f.count > f.limits.Networks {
		return f.broken(t, "more than %d networks", f.limits.Networks)
	}
	return true
}

// unknown handles a part of which it is not known what it matches.
func (f *frame) unknown(t *spfrecord.Term, why string) bool {
	if t.Qualifier == spfrecord.Pass {
		f.problem(NotFlattenable, f.domain, t, "%s; what it lets pass is not in the list", why)
		f.maybe = f.maybe.with(f.rest)
		return true
	}
	f.problem(NotFlattenable, f.domain, t, "%s; the parts after it are left out, since it may except some of them", why)
	f.out.doubt = f.out.doubt.with(f.rest)
	f.rest = nil
	return false
}

// include evaluates another record in the place of t (RFC 7208 section 5.2).
func (f *frame) include(t *spfrecord.Term, name string) bool {
	if !validName(name) {
		return f.broken(t, "%q is not a domain name", name)
	}
	if slices.Contains(f.path, name) {
		return f.broken(t, "a loop: %s > %s", f.via, name)
	}
	child := f.record(name, f.rest, append(slices.Clone(f.path), name))
	if child.none {
		return f.broken(t, "%s has no SPF record", name)
	}
	f.rest.cutAll(child.passed())
	f.failed(f.rest.cutAll(child.perm))
	f.out.doubt = f.out.doubt.with(f.rest.cutAll(child.doubt))
	if t.Qualifier == spfrecord.Pass {
		f.out.pass = append(f.out.pass, child.pass...)
		f.maybe = f.maybe.with(child.maybe)
	} else {
		f.out.doubt = f.out.doubt.with(f.rest.cutAll(child.maybe))
	}
	return true
}

// redirect evaluates another record for what is left (RFC 7208 section 6.1).
func (f *frame) redirect(t *spfrecord.Term) {
	if !f.counted(t) {
		return
	}
	name, known := target(t, f.domain)
	switch {
	case !known:
		f.problem(NotFlattenable, f.domain, t, "a macro depends on the message; what it lets pass is not in the list")
		f.maybe = f.maybe.with(f.rest)
	case !validName(name):
		f.broken(t, "%q is not a domain name", name)
	case slices.Contains(f.path, name):
		f.broken(t, "a loop: %s > %s", f.via, name)
	default:
		child := f.record(name, f.rest, append(slices.Clone(f.path), name))
		if child.none {
			f.broken(t, "%s has no SPF record", name)
			return
		}
		f.out.pass = append(f.out.pass, child.pass...)
		f.failed(child.perm)
		f.out.doubt = f.out.doubt.with(child.doubt)
		f.maybe = f.maybe.with(child.maybe)
	}
}

// addresses returns those of a host; none is a void look-up.
func (f *frame) addresses(t *spfrecord.Term, name string) ([]netip.Addr, bool) {
	if !validName(name) {
		return nil, f.void(t)
	}
	addrs, asked := f.addrs[name]
	if !asked {
		return nil, f.broken(t, "too much to read: not read")
	}
	if len(addrs) == 0 {
		return nil, f.void(t)
	}
	return addrs, true
}

func (f *frame) addrsMatch(t *spfrecord.Term, addrs []netip.Addr) bool {
	for _, a := range addrs {
		bits := t.Len4
		if a.Is6() {
			bits = t.Len6
		}
		if bits == spfrecord.NoLength {
			bits = a.BitLen()
		}
		if !f.match(t, spanOf(netip.PrefixFrom(a, bits))) {
			return false
		}
	}
	return true
}

// exchangers handles "mx" (RFC 7208 section 5.4).
func (f *frame) exchangers(t *spfrecord.Term, name string) bool {
	if !validName(name) {
		return f.void(t)
	}
	hosts, asked := f.mx[name]
	switch {
	case !asked:
		return f.broken(t, "too much to read: not read")
	case len(hosts) == 0:
		return f.void(t)
	case len(hosts) > maxMX:
		return f.broken(t, "%s has more than %d mail exchangers", name, maxMX)
	}
	for _, host := range hosts {
		host = mailaddr.Domain(host)
		if !validName(host) {
			continue // the null MX, or nonsense
		}
		addrs, asked := f.addrs[host]
		if !asked {
			return f.broken(t, "too much to read: not read")
		}
		if !f.addrsMatch(t, addrs) {
			return false
		}
	}
	return true
}
