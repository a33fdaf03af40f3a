package spf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	spflib "blitiri.com.ar/go/spf"

	"postern/internal/spfrecord"
)

// Resolver is what the check needs of the DNS. A name that does not exist, or
// has no such record, is an empty answer without an error; ttl is then that of
// the negative answer. An error is a temporary failure. All calls return soon
// after ctx is done and are safe for concurrent use.
type Resolver interface {
	// LookupTXT returns one text for each record, its strings joined.
	LookupTXT(ctx context.Context, name string) (texts []string, ttl time.Duration, cached bool, err error)
	LookupA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error)
	LookupAAAA(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, cached bool, err error)
	LookupMX(ctx context.Context, name string) (hosts []string, ttl time.Duration, cached bool, err error)
	LookupPTR(ctx context.Context, addr netip.Addr) (names []string, ttl time.Duration, cached bool, err error)
}

// query is one question of SPF: may addr send for domain?
type query struct {
	addr   netip.Addr
	domain string // in the compared form
	// local and helo are what the macros of a record may ask for. An empty
	// local part stands for "postmaster" (RFC 7208 section 4.3).
	local, helo string
}

// Outcome is what an evaluation results in. It does not change.
type Outcome struct {
	// Result is a result of RFC 7208 section 2.6: "pass", "fail", ...
	Result string `json:"result"`
	// Domain is the domain that was asked, in lower case.
	Domain string `json:"domain"`
	// TooWide is set with a pass by a record that lets more clients pass than
	// the configuration allows: it does not count as one.
	TooWide bool `json:"too_wide,omitempty"`
	// Mechanism is the kind of the matching term of the domain's own record.
	Mechanism string `json:"mechanism,omitempty"`
	// Problem says why it is a temperror or a permerror.
	Problem string `json:"problem,omitempty"`

	// exp is the exp= of the record that said "fail", "" for none, and
	// expDomain that record's domain.
	exp, expDomain string
	ttl            time.Duration
	// byLocal and byHelo are set when another local part or HELO name could
	// have led to another outcome.
	byLocal, byHelo bool
}

// passes reports whether the outcome counts as a pass.
func (o *Outcome) passes() bool { return o.Result == pass && !o.TooWide }

// Results of an evaluation.
const (
	pass      = string(spflib.Pass)
	fail      = string(spflib.Fail)
	softfail  = string(spflib.SoftFail)
	neutral   = string(spflib.Neutral)
	none      = string(spflib.None)
	temperror = string(spflib.TempError)
	permerror = string(spflib.PermError)
)

// Step is one look-up of an evaluation.
type Step struct {
	// Term is the term of a record that asked, "" for the first record.
	Term string `json:"term,omitempty"`
	// Depth is how many includes and redirects deep the term stands.
	Depth int `json:"depth"`
	// Query is what was looked up: "TXT example.org".
	Query string `json:"query"`
	// Answer is what came back: records, "nothing", or an error.
	Answer string `json:"answer"`
	// Cached is set when it was in memory.
	Cached bool `json:"cached"`
	// Took is how long it took, in nanoseconds.
	Took time.Duration `json:"took"`
}

// limits bound an evaluation.
type limits struct {
	lookups, void int
	time          time.Duration
}

// maxNames is the most names of a client's address that are looked at
// (RFC 7208 section 4.6.4). The same bound on mail exchangers is the library's.
const maxNames = 10

// evaluation is the resolver that go/spf gets for one query. It turns the
// marks of plans into names, and the answers into the errors that the library
// tells apart.
type evaluation struct {
	query
	ctx   context.Context //nolint:containedctx // it lives as long as one call
	res   Resolver
	plans *plans
	used  []use
	top   *plan // the record of the domain, or the one it redirects to

	names     []string // verified names of addr
	namesSeen bool
	noNames   bool // there are none at all

	ttl             time.Duration
	byLocal, byHelo bool
	lastRecord      string // the last name asked for a record

	trace bool
	depth int             // of the term that asks
	term  *spfrecord.Term // it, nil for the first record
	steps []Step
	match []string // the matching term, innermost first
}

// use is a plan that the evaluation has come to.
type use struct {
	*plan
	depth   int
	passing bool // a match in it can lead to a pass
}

// maxExp is the most octets of an exp= that is followed: outcomes are kept.
const maxExp = 512

// longest is more than any TTL that is kept.
const longest = 24 * time.Hour

// evaluate asks the record of q.domain, which isHost, about q.addr. ctx bounds it together
// with the limits. With trace the steps are kept in the returned evaluation.
func evaluate(ctx context.Context, res Resolver, plans *plans, l limits, q query, trace bool) (*Outcome, *evaluation) {
	ctx, cancel := context.WithTimeout(ctx, l.time)
	defer cancel()
	e := &evaluation{query: q, ctx: ctx, res: res, plans: plans, ttl: longest, trace: trace}
	e.used = make([]use, 0, 4)
	if q.local == "" {
		e.local = "postmaster"
	}
	o := &Outcome{Domain: q.domain}
	// What a stranger wrote never gets into the library: it sees marks.
	options := []spflib.Option{
		spflib.WithContext(ctx), spflib.WithResolver(e),
		spflib.OverrideLookupLimit(uint(l.lookups)), spflib.OverrideVoidLookupLimit(uint(l.void)),
	}
	if trace {
		options = append(options, spflib.WithTraceFunc(e.traced))
	}
	result, err := spflib.CheckHostWithSender(q.addr.AsSlice(), mark, "", options...)
	o.Result, o.ttl, o.byLocal, o.byHelo = string(result), e.ttl, e.byLocal, e.byHelo
	switch o.Result {
	case temperror, permerror:
		o.Problem = e.problem(err, l)
	case fail:
		o.Mechanism = mechanism(err)
		if exp := e.top.record.Modifier(spfrecord.Exp); exp != nil {
			if text := exp.Domain.String(); len(text) <= maxExp {
				o.exp, o.expDomain = strings.Clone(text), e.top.domain
			}
		}
	case pass:
		o.Mechanism, o.TooWide = mechanism(err), e.width() > 1
	case softfail, neutral:
		o.Mechanism = mechanism(err)
	}
	return o, e
}

// width returns how much the records that were read let pass.
func (e *evaluation) width() (sum float64) {
	for _, u := range e.used {
		if u.passing {
			sum += u.plan.width
		}
	}
	return sum
}

// mechanism names the match that go/spf reports with a result.
func mechanism(err error) string {
	switch {
	case errors.Is(err, spflib.ErrMatchedAll):
		return "all"
	case errors.Is(err, spflib.ErrMatchedA):
		return "a"
	case errors.Is(err, spflib.ErrMatchedIP):
		return "ip"
	case errors.Is(err, spflib.ErrMatchedMX):
		return "mx"
	case errors.Is(err, spflib.ErrMatchedExists):
		return "exists"
	}
	return ""
}

// problem puts the reason of an error result into words.
func (e *evaluation) problem(err error, l limits) string {
	switch {
	case errors.Is(err, spflib.ErrLookupLimitReached):
		return fmt.Sprintf("more than %d look-ups", l.lookups)
	case errors.Is(err, spflib.ErrVoidLookupLimitReached):
		return fmt.Sprintf("more than %d look-ups of names without records", l.void)
	case errors.Is(err, spflib.ErrTooManyMXRecords):
		return "a domain with more than 10 mail exchangers"
	case errors.Is(err, spflib.ErrMultipleRecords):
		return e.lastRecord + " has more than one SPF record"
	case errors.Is(err, spflib.ErrNoResult):
		return e.lastRecord + " is included or redirected to, and has no SPF record"
	case err == nil:
		return "unknown"
	}
	if d, ok := errors.AsType[*net.DNSError](err); ok {
		return d.Err
	}
	return err.Error()
}

// asking is the term that a mark stands for.
type asking struct {
	*use
	*spfrecord.Term
	index int
}

// find returns the term of a mark; ok is false for the first mark, and for
// that of a mail exchanger without a name.
func (e *evaluation) find(name string) (a asking, ok bool) {
	id, n, _ := strings.Cut(name[len(mark):], ".")
	for i := range e.used {
		if e.used[i].id != id {
			continue
		}
		if t, err := strconv.Atoi(n); err == nil && t < len(e.used[i].record.Terms) {
			return asking{&e.used[i], &e.used[i].record.Terms[t], t}, true
		}
	}
	return asking{}, false
}

// name returns the name that a term asks for.
func (e *evaluation) name(a asking) string {
	if name := a.names[a.index]; name != "" {
		return name
	}
	return expand(a.Term, func(letter byte) (string, bool) { return e.macro(letter, a.use.domain) })
}

// enter notes which term asks, for the steps.
func (e *evaluation) enter(a asking, ok bool) {
	e.depth, e.term = 0, nil
	if ok {
		e.depth, e.term = a.depth+1, a.Term
	}
}

// macro returns the value of a macro letter (RFC 7208 section 7.2).
func (e *evaluation) macro(letter byte, domain string) (string, bool) {
	switch letter {
	case 's':
		e.byLocal = true
		return e.local + "@" + e.domain, true
	case 'l':
		e.byLocal = true
		return e.local, true
	case 'o':
		return e.domain, true
	case 'd':
		return domain, true
	case 'i':
		return dotted(e.addr), true
	case 'p':
		return e.verifiedName(domain), true
	case 'v':
		if e.addr.Is6() {
			return "ip6", true
		}
		return "in-addr", true
	case 'h':
		e.byHelo = true
		return e.helo, true
	}
	return "", false
}

// dotted returns an address as %{i}: IPv6 as nibbles.
func dotted(addr netip.Addr) string {
	if addr.Is4() {
		return addr.String()
	}
	const hex = "0123456789abcdef"
	octets := addr.As16()
	var buf [64]byte
	b := buf[:0]
	for _, o := range octets {
		b = append(b, hex[o>>4], '.', hex[o&15], '.')
	}
	return string(b[:len(b)-1])
}

// verifiedName returns the value of %{p}.
func (e *evaluation) verifiedName(domain string) string {
	e.verify()
	below := ""
	for _, n := range e.names {
		switch {
		case n == domain:
			return n
		case below == "" && strings.HasSuffix(n, "."+domain):
			below = n
		}
	}
	switch {
	case below != "":
		return below
	case len(e.names) > 0:
		return e.names[0]
	}
	return "unknown"
}

// verify finds the names of the client that lead back to its address (RFC
// 7208 section 5.5). Names that cannot be looked up are left out: the reverse
// zone is the client's, and must not make an error of the domain's record.
func (e *evaluation) verify() {
	if e.namesSeen {
		return
	}
	e.namesSeen = true
	start := e.now()
	names, ttl, cached, err := e.res.LookupPTR(e.ctx, e.addr)
	e.note("PTR", e.addr.String(), names, ttl, cached, err, start)
	if err != nil {
		return
	}
	e.noNames = len(names) == 0
	for _, n := range names[:min(len(names), maxNames)] {
		addrs, err := e.addrs(n, e.addr.Is6())
		if err == nil && slices.Contains(addrs, e.addr) {
			e.names = append(e.names, lower(strings.TrimSuffix(n, ".")))
		}
	}
}

// addrs looks up the addresses of a name of one family.
func (e *evaluation) addrs(name string, v6 bool) ([]netip.Addr, error) {
	look, what := e.res.LookupA, "A"
	if v6 {
		look, what = e.res.LookupAAAA, "AAAA"
	}
	start := e.now()
	addrs, ttl, cached, err := look(e.ctx, name)
	var shown []string
	if e.trace {
		for _, a := range addrs {
			shown = append(shown, a.String())
		}
	}
	e.note(what, name, shown, ttl, cached, err, start)
	return addrs, err
}

// nowhere is an answer that matches no client and is no void look-up.
var nowhere = []net.IPAddr{{}}

// dnsError is the one kind of error that go/spf tells apart.
func dnsError(name string, err error) error {
	if err == nil {
		return &net.DNSError{Err: "no such record", Name: name, IsNotFound: true}
	}
	return &net.DNSError{Err: err.Error(), Name: name, IsTemporary: true, IsTimeout: errors.Is(err, context.DeadlineExceeded)}
}

// twice is what a domain with several records is for the library, which counts
// them, and noMatch a record that matches nobody.
var (
	twice   = []string{"v=spf1", "v=spf1"}
	noMatch = []string{"v=spf1"}
)

// LookupTXT implements spf.DNSResolver: it returns the plain form of a record.
func (e *evaluation) LookupTXT(_ context.Context, asked string) ([]string, error) {
	name, passing := e.domain, true
	a, below := e.find(asked)
	e.enter(a, below)
	if below {
		name = e.name(a)
		passing = a.passing && (a.Kind == spfrecord.Redirect || a.Qualifier == spfrecord.Pass)
	}
	e.lastRecord = name
	switch {
	case !ascii(name):
		return noMatch, nil // RFC 8616 section 4
	case !isName(name):
		return nil, dnsError(name, nil)
	}
	start := e.now()
	texts, ttl, cached, err := e.res.LookupTXT(e.ctx, name)
	record, records := "", 0
	for _, text := range texts {
		if spfrecord.Is(text) {
			record, records = text, records+1
		}
	}
	if e.trace {
		texts = slices.DeleteFunc(slices.Clone(texts), func(text string) bool { return !spfrecord.Is(text) })
	}
	e.note("TXT", name, texts, ttl, cached, err, start)
	switch {
	case err != nil || records == 0:
		return nil, dnsError(name, err)
	case records > 1:
		return twice, nil
	}
	pl, err := e.plans.get(name, record, e.addr.Is6())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if !below || a.plan == e.top && a.Kind == spfrecord.Redirect {
		e.top = pl
	}
	e.use(use{pl, e.depth, passing})
	return pl.forClient(e.addr), nil
}

// use notes that a plan is being used.
func (e *evaluation) use(u use) {
	for i := range e.used {
		if have := &e.used[i]; have.plan == u.plan {
			have.passing = have.passing || u.passing
			return
		}
	}
	e.used = append(e.used, u)
}

// LookupIPAddr implements spf.DNSResolver: for a term with an address, or for
// a mail exchanger.
func (e *evaluation) LookupIPAddr(_ context.Context, asked string) ([]net.IPAddr, error) {
	name, v6 := asked, e.addr.Is6()
	if strings.HasPrefix(asked, mark) {
		a, ok := e.find(asked)
		if !ok {
			return nowhere, nil
		}
		e.enter(a, ok)
		name = e.name(a)
		switch a.Kind {
		case spfrecord.PTR:
			return e.lookupPTR(name)
		case spfrecord.Exists:
			v6 = false // RFC 7208 section 5.7
		default:
		}
	}
	if !isName(name) {
		return nowhere, nil
	}
	addrs, err := e.addrs(name, v6)
	if err != nil || len(addrs) == 0 {
		return nil, dnsError(name, err)
	}
	out := make([]net.IPAddr, len(addrs))
	for i, a := range addrs {
		out[i].IP = a.AsSlice()
	}
	return out, nil
}

// lookupPTR answers for the term ptr, of which [plan.write] makes an exists.
func (e *evaluation) lookupPTR(domain string) ([]net.IPAddr, error) {
	e.verify()
	for _, n := range e.names {
		if n == domain || strings.HasSuffix(n, "."+domain) {
			return []net.IPAddr{{IP: net.IPv4(127, 0, 0, 2)}}, nil
		}
	}
	if e.noNames {
		return nil, dnsError(domain, nil)
	}
	return nowhere, nil
}

// LookupMX implements spf.DNSResolver.
func (e *evaluation) LookupMX(_ context.Context, asked string) ([]*net.MX, error) {
	a, ok := e.find(asked)
	if !ok {
		return nil, dnsError("", nil)
	}
	e.enter(a, ok)
	name := e.name(a)
	if !isName(name) {
		return []*net.MX{{Host: mark}}, nil
	}
	start := e.now()
	hosts, ttl, cached, err := e.res.LookupMX(e.ctx, name)
	e.note("MX", name, hosts, ttl, cached, err, start)
	if err != nil || len(hosts) == 0 {
		return nil, dnsError(name, err)
	}
	out := make([]*net.MX, len(hosts))
	for i, h := range hosts {
		out[i] = &net.MX{Host: h}
	}
	return out, nil
}

// LookupAddr implements spf.DNSResolver. No plan has a term that asks it.
func (e *evaluation) LookupAddr(context.Context, string) ([]string, error) {
	return nil, dnsError("", nil)
}

// now returns the time, where it is wanted.
func (e *evaluation) now() time.Time {
	if e.trace {
		return time.Now()
	}
	return time.Time{}
}

// note keeps how long an answer holds, and the step if they are wanted.
func (e *evaluation) note(kind, name string, answer []string, ttl time.Duration, cached bool, err error, start time.Time) {
	e.ttl = min(e.ttl, ttl)
	if !e.trace {
		return
	}
	s := Step{Depth: e.depth, Query: kind + " " + name, Answer: strings.Join(answer, ", "), Cached: cached, Took: time.Since(start)}
	if e.term != nil {
		s.Term = e.term.String()
	}
	switch {
	case err != nil:
		s.Answer = err.Error()
	case len(answer) == 0:
		s.Answer = "nothing"
	}
	e.steps = append(e.steps, s)
}

// traced takes what go/spf says while it evaluates, to learn which term has
// matched. The text is meant for people, and is shown to them only.
func (e *evaluation) traced(format string, args ...any) {
	switch {
	case format == "all: %v" && e.match == nil:
		e.match = append(e.match, "all")
	case format == "%q %v, %v" && len(args) == 3:
		field, _ := args[0].(string)
		err, _ := args[2].(error)
		if mechanism(err) != "" {
			e.match = append(e.match, e.readable(field))
		}
	}
}

// readable returns a term of a plain form as its record has it.
func (e *evaluation) readable(field string) string {
	i := strings.Index(field, mark)
	if i < 0 {
		return field
	}
	asked, _, _ := strings.Cut(field[i:], "/")
	if a, ok := e.find(asked); ok {
		return a.Term.String()
	}
	return field
}

// lower folds the letters of a DNS name, which are ASCII.
func lower(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			b := []byte(s)
			for j := i; j < len(b); j++ {
				if c := b[j]; 'A' <= c && c <= 'Z' {
					b[j] = c | 0x20
				}
			}
			return string(b)
		}
	}
	return s
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// isName reports whether a name can be asked for: labels of 1 to 63 octets,
// 253 in all, printable or blank. A local part in a macro may put odd ones there.
func isName(name string) bool {
	if len(name) > 253 {
		return false
	}
	label := 0
	for i := range len(name) {
		c := name[i]
		if c == '.' {
			if label == 0 {
				return false
			}
			label = 0
			continue
		}
		if c < ' ' || c >= 0x7f || c == '\\' {
			return false
		}
		if label++; label > 63 {
			return false
		}
	}
	return label > 0
}

// isHost reports whether a sender's domain or a HELO name is one that can
// have a record: a name of several labels that is no address (RFC 7208
// section 4.3).
func isHost(name string) bool {
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 || !isName(name) || name[0] == '[' {
		return false
	}
	return strings.Trim(name[dot+1:], "0123456789") != ""
}
