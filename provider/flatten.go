package provider

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/internal/mailaddr"
	"postern/internal/spfrecord"
)

// Resolver is the DNS that records are read from. A name that does not exist
// or has no records of the type is an answer: nothing, and a nil error. Any
// error means that a later attempt may succeed. ttl is how long the answer
// holds. It must be safe for concurrent use.
type Resolver interface {
	// LookupTXT returns one text for each record.
	LookupTXT(ctx context.Context, name string) (texts []string, ttl time.Duration, cached bool, err error)
	LookupA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error)
	LookupAAAA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error)
	// LookupMX returns the names of the mail exchangers, the preferred first.
	LookupMX(ctx context.Context, name string) (hosts []string, ttl time.Duration, cached bool, err error)
}

// fresh asks past the cache of a resolver.
type fresh struct {
	Resolver
	forget func(name string)
}

// LookupTXT implements [Resolver].
func (f fresh) LookupTXT(ctx context.Context, name string) (texts []string, ttl time.Duration, cached bool, err error) {
	f.forget(name)
	return f.Resolver.LookupTXT(ctx, name)
}

// LookupA implements [Resolver].
func (f fresh) LookupA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error) {
	f.forget(name)
	return f.Resolver.LookupA(ctx, name)
}

// LookupAAAA implements [Resolver].
func (f fresh) LookupAAAA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error) {
	f.forget(name)
	return f.Resolver.LookupAAAA(ctx, name)
}

// LookupMX implements [Resolver].
func (f fresh) LookupMX(ctx context.Context, name string) (hosts []string, ttl time.Duration, cached bool, err error) {
	f.forget(name)
	return f.Resolver.LookupMX(ctx, name)
}

// Limits bounds what [Flatten] does.
type Limits struct {
	// Lookups is how many terms that need DNS an evaluation may take
	// (RFC 7208 section 4.6.4 says 10).
	Lookups int
	// Depth is how many records may stand one in another.
	Depth int
	// Networks is how many networks a list may have before aggregation.
	Networks int
}

// defaultLimits are those of RFC 7208: with ten look-ups at most ten records
// can stand in the first. The largest senders publish some hundred networks.
var defaultLimits = Limits{Lookups: 10, Depth: 11, Networks: 20_000}

const (
	// voidLookups is how many look-ups without an answer an evaluation may
	// take (RFC 7208 section 4.6.4). Only a name without addresses of either
	// family counts; what exists and ptr find is not known.
	voidLookups = 2
	// maxMX is how many exchangers one "mx" may have (RFC 7208 section 4.6.4).
	maxMX = 10
	// maxQuestions bounds the DNS questions of one Flatten: far above what ten
	// look-ups need, a record with thousands of includes ends here.
	maxQuestions = 250
	// parallel is how many questions are under way at one time.
	parallel = 64
)

// ProblemKind tells what a problem means for the list.
type ProblemKind string

// The kinds.
const (
	// NotFlattenable is a part whose meaning depends on the message or on the
	// client's name: exists, ptr, macros. What it would allow is left out.
	NotFlattenable ProblemKind = "not-flattenable"
	// Broken is what makes an evaluation end in permerror for the addresses
	// that come to it; they are left out.
	Broken ProblemKind = "broken"
	// Noted is odd, and changes nothing.
	Noted ProblemKind = "noted"
)

// Problem is something about a record that an operator should know.
type Problem struct {
	Kind   ProblemKind `json:"kind"`
	Record string      `json:"record"` // the domain
	Term   string      `json:"term,omitempty"`
	Text   string      `json:"text"`
}

// String returns the problem in one line.
func (p Problem) String() string {
	s := p.Record + ": "
	if p.Term != "" {
		s += p.Term + ": "
	}
	return s + p.Text
}

// RecordText is one SPF record that was read.
type RecordText struct {
	Domain string        `json:"domain"`
	Text   string        `json:"text"`
	TTL    time.Duration `json:"ttl"`
}

// Flat is what an SPF record was made into.
type Flat struct {
	// Entries are the networks for which check_host says pass, sorted; no two
	// overlap. Since is not set.
	Entries  []Entry
	Problems []Problem
	Records  []RecordText  // in the order in which they were read
	TTL      time.Duration // the least of all answers
	Levels   int           // round trips that it took
	Queries  int           // DNS questions
}

// Flatten reads the SPF record of a domain and all that it leads to, and
// returns the networks for which an evaluation (RFC 7208 section 4) says
// "pass", whoever the sender is. The first term that matches an address
// decides, as there: what an earlier "-", "~" or "?" part holds is not in the
// list. Where it cannot be known whether an address passes, it is left out.
//
// The questions of one level of nesting are asked at the same time. An error
// means that DNS could not answer; nothing is known then.
func Flatten(ctx context.Context, res Resolver, domain string, limits Limits) (*Flat, error) {
	f := &fetcher{
		res: res, limits: limits, asked: make(map[question]bool),
		records: make(map[string]*record), addrs: make(map[string][]netip.Addr), mx: make(map[string][]string),
	}
	domain = mailaddr.Domain(domain)
	if !validName(domain) {
		return nil, fmt.Errorf("provider: %q is not a domain name", domain)
	}
	flat := &Flat{TTL: 1<<63 - 1}
	if err := f.fetch(ctx, domain, flat); err != nil {
		return nil, err
	}
	w := &walk{fetcher: f, flat: flat}
	rest := everything()
	out := w.record(domain, rest, []string{domain})
	if out.none {
		w.problem(Broken, domain, nil, "there is no SPF record")
	}
	flat.Entries = entriesOf(out.pass)
	return flat, nil
}

// question is one thing to ask DNS for.
type question struct {
	kind byte // 't'ext, 'a'ddresses of both families, 'm'ail exchangers
	name string
}

// record is what was found at a domain.
type record struct {
	parsed *spfrecord.Record
	text   string
	fault  string // why it is a permerror
	none   bool   // there is none
}

type fetcher struct {
	res    Resolver
	limits Limits

	mu      sync.Mutex // guards what follows
	records map[string]*record
	addrs   map[string][]netip.Addr
	mx      map[string][]string
	ttl     time.Duration
	errs    []error
	texts   []RecordText

	asked map[question]bool
}

// fetch asks for everything that the record of domain leads to, level by level.
func (f *fetcher) fetch(ctx context.Context, domain string, flat *Flat) error {
	f.ttl = 1<<63 - 1
	level := []question{{'t', domain}}
	f.asked[level[0]] = true
	for depth := 1; len(level) > 0; depth++ {
		flat.Levels++
		flat.Queries += len(level)
		f.ask(ctx, level)
		if len(f.errs) > 0 {
			return fmt.Errorf("provider: %s: %w", domain, errors.Join(f.errs[:min(len(f.errs), 5)]...))
		}
		var next []question
		for _, q := range level {
			for _, more := range f.follow(q) {
				if more.kind == 't' && depth >= f.limits.Depth || f.asked[more] || len(f.asked) >= maxQuestions {
					continue
				}
				f.asked[more] = true
				next = append(next, more)
			}
		}
		level = next
	}
	flat.TTL, flat.Records = f.ttl, f.texts
	return nil
}

// ask asks all questions of a level at the same time and waits for the answers.
func (f *fetcher) ask(ctx context.Context, level []question) {
	slots := make(chan struct{}, parallel)
	var all sync.WaitGroup
	answers := make([]RecordText, len(level))
	for i, q := range level {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			answers[i] = f.one(ctx, q)
		})
	}
	all.Wait()
	for _, a := range answers {
		if a.Domain != "" {
			f.texts = append(f.texts, a)
		}
	}
}

// one asks one question. It returns the SPF record, if it found one.
func (f *fetcher) one(ctx context.Context, q question) (found RecordText) {
	switch q.kind {
	case 't':
		texts, ttl, _, err := f.res.LookupTXT(ctx, q.name)
		r := recordOf(texts)
		f.took(ttl, err, func() { f.records[q.name] = r })
		if err == nil && r.text != "" {
			found = RecordText{q.name, r.text, ttl}
		}
	case 'm':
		hosts, ttl, _, err := f.res.LookupMX(ctx, q.name)
		f.took(ttl, err, func() { f.mx[q.name] = hosts })
	default:
		var v6 []netip.Addr
		var ttl6 time.Duration
		var err6 error
		var other sync.WaitGroup
		other.Go(func() { v6, ttl6, _, err6 = f.res.LookupAAAA(ctx, q.name) })
		v4, ttl, _, err := f.res.LookupA(ctx, q.name)
		other.Wait()
		f.took(min(ttl, ttl6), errors.Join(err, err6), func() { f.addrs[q.name] = slices.Concat(v4, v6) })
	}
	return found
}

// took notes an answer.
func (f *fetcher) took(ttl time.Duration, err error, store func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.errs = append(f.errs, err)
		return
	}
	f.ttl = min(f.ttl, ttl)
	store()
}

// recordOf picks the SPF record out of the texts of a name (RFC 7208 section 4.5).
func recordOf(texts []string) *record {
	r := &record{none: true}
	for _, text := range texts {
		if !spfrecord.Is(text) {
			continue
		}
		if !r.none {
			return &record{fault: "there is more than one SPF record", text: r.text}
		}
		r.none, r.text = false, text
	}
	if r.none {
		return r
	}
	var err error
	if r.parsed, err = spfrecord.Parse(r.text); err != nil {
		r.fault = err.Error()
	}
	return r
}

// follow returns what has to be asked next, after q was answered.
func (f *fetcher) follow(q question) (next []question) {
	switch q.kind {
	case 'm':
		hosts := f.mx[q.name]
		for _, host := range hosts[:min(len(hosts), maxMX)] {
			if host = mailaddr.Domain(host); validName(host) {
				next = append(next, question{'a', host})
			}
		}
	case 't':
		r := f.records[q.name]
		if r.parsed == nil {
			return nil
		}
		for i := range used(r.parsed) {
			t := &r.parsed.Terms[i]
			name, ok := target(t, q.name)
			if !ok || !validName(name) {
				continue
			}
			switch t.Kind {
			case spfrecord.Include, spfrecord.Redirect:
				next = append(next, question{'t', name})
			case spfrecord.A:
				next = append(next, question{'a', name})
			case spfrecord.MX:
				next = append(next, question{'m', name})
			default: // nothing to ask
			}
		}
	}
	return next
}

// used yields the indexes of the terms that can have an effect: those up to
// "all", and redirect= where there is no "all".
func used(r *spfrecord.Record) func(func(int) bool) {
	return func(yield func(int) bool) {
		all := slices.IndexFunc(r.Terms, func(t spfrecord.Term) bool { return t.Kind == spfrecord.All })
		for i := range r.Terms {
			if all >= 0 && (i > all || r.Terms[i].Kind == spfrecord.Redirect) {
				continue
			}
			if !yield(i) {
				return
			}
		}
	}
}

// target returns the name that a term points to. It is false for one with
// macros other than %{d}, the domain of the record, the only one whose value
// does not depend on the message.
func target(t *spfrecord.Term, domain string) (string, bool) {
	if t.Domain.String() == "" {
		return domain, true
	}
	name, err := t.Domain.Expand(func(letter byte) (string, bool) { return domain, letter == 'd' })
	return mailaddr.Domain(name), err == nil
}

// validName reports whether DNS can be asked for a name.
func validName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for i := range len(label) {
			if c := label[i]; c <= ' ' || c > '~' {
				return false
			}
		}
	}
	return true
}

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
