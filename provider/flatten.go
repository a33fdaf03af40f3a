package provider

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
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
