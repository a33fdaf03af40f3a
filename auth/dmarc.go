package auth

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"postern/internal/mailaddr"
)

// Resolver is what the inspector needs of the DNS. An empty answer is no error,
// an error is temporary. Both return soon after ctx is done and are safe for
// concurrent use.
type Resolver interface {
	// LookupTXT returns one text for each record, its strings joined.
	LookupTXT(ctx context.Context, name string) ([]string, error)
	// Exists reports whether a name has an A, AAAA or MX record.
	Exists(ctx context.Context, name string) (bool, error)
}

// wish is what a domain's owner asks for.
type wish string

// The wishes, the weakest first.
const (
	wishNone       wish = "none"
	wishQuarantine wish = "quarantine"
	wishReject     wish = "reject"
)

// record is a DMARC record (RFC 7489 section 6.3, and its successor).
type record struct {
	domain      string // where it stands
	text        string // as it stands there
	p, sp, np   wish   // sp and np are "" where they are not given
	adkim, aspf bool   // strict
	pct         int
	test        bool // t=y
	psd         byte // 'y', 'n', or 'u'
	rua, fo     string
}

// parseRecord reads a record. ok is false for a text that is none.
func parseRecord(text string) (r record, ok bool) {
	r = record{pct: 100, psd: 'u'}
	first, seen := true, map[string]bool{}
	for tag := range strings.SplitSeq(text, ";") {
		name, value, found := strings.Cut(tag, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if first {
			// It must be the first tag, exactly so.
			if !found || name != "v" || value != "DMARC1" {
				return r, false
			}
			first = false
			continue
		}
		name = strings.ToLower(name)
		if !found || seen[name] {
			continue
		}
		seen[name] = true
		lower := strings.ToLower(value)
		switch name {
		case "p":
			r.p = asWish(lower)
		case "sp":
			r.sp = asWish(lower)
		case "np":
			r.np = asWish(lower)
		case "adkim":
			r.adkim = lower == "s"
		case "aspf":
			r.aspf = lower == "s"
		case "pct":
			if n, err := strconv.Atoi(value); err == nil && n >= 0 && n <= 100 {
				r.pct = n
			}
		case "t":
			r.test = lower == "y"
		case "rua":
			r.rua = value
		case "fo":
			r.fo = value
		case "psd":
			if lower == "y" || lower == "n" {
				r.psd = lower[0]
			}
		}
	}
	if r.p == "" {
		// RFC 7489 section 6.6.3: without a usable p it counts as "none" if
		// reports are wanted; its successor takes it for "none" in any case.
		r.p = wishNone
	}
	return r, true
}

func asWish(s string) wish {
	switch w := wish(s); w {
	case wishNone, wishQuarantine, wishReject:
		return w
	}
	return ""
}

// discovery finds records and organisational domains.
type discovery struct {
	res  Resolver
	tree bool // by the tree walk, not by the public suffix list
	// found is what has been asked for this message.
	found map[string]*record
}

// maxWalk is the most names that a tree walk asks for.
const maxWalk = 8

// at returns the record that stands at a domain, nil for none.
func (d *discovery) at(ctx context.Context, domain string) (*record, error) {
	if r, ok := d.found[domain]; ok {
		return r, nil
	}
	texts, err := d.res.LookupTXT(ctx, "_dmarc."+domain)
	if err != nil {
		return nil, err
	}
	var r *record
	for _, text := range texts {
		if one, ok := parseRecord(text); ok {
			if r != nil { // several are none
				r = nil
				break
			}
			r = &one
			r.domain, r.text = domain, text
		}
	}
	if d.found == nil {
		d.found = make(map[string]*record)
	}
	d.found[domain] = r
	return r, nil
}

// policy returns the record that holds for a domain, nil for none.
func (d *discovery) policy(ctx context.Context, domain string) (*record, error) {
	r, err := d.at(ctx, domain)
	if r != nil || err != nil {
		return r, err
	}
	if !d.tree {
		if org := mailaddr.OrgDomain(domain); org != "" && org != domain {
			return d.at(ctx, org)
		}
		return nil, nil
	}
	// The organisational domain's, else that of its public suffix.
	org, err := d.org(ctx, domain)
	if err != nil {
		return nil, err
	}
	if r, err = d.at(ctx, org); r != nil || err != nil {
		return r, err
	}
	for _, name := range walk(domain)[1:] {
		if r, err = d.at(ctx, name); err != nil || r != nil && r.psd == 'y' {
			return r, err
		}
	}
	return nil, nil
}

// org returns the organisational domain.
func (d *discovery) org(ctx context.Context, domain string) (string, error) {
	if !d.tree {
		if org := mailaddr.OrgDomain(domain); org != "" {
			return org, nil
		}
		return domain, nil
	}
	org := ""
	names := walk(domain)
	for i, name := range names {
		r, err := d.at(ctx, name)
		switch {
		case err != nil:
			return "", err
		case r == nil:
		case r.psd == 'n':
			return name, nil
		case r.psd == 'y' && i > 0:
			// One label below it: a name of the walk, or one that it skipped.
			rest := strings.TrimSuffix(domain, "."+name)
			return rest[strings.LastIndexByte(rest, '.')+1:] + "." + name, nil
		default:
			org = name // the one with fewest labels counts
		}
	}
	if org == "" {
		return domain, nil
	}
	return org, nil
}

// walk returns the names that a tree walk asks for: the domain, then its
// parents, of a long name only the last seven labels.
func walk(domain string) []string {
	out := []string{domain}
	labels := strings.Count(domain, ".") + 1
	if labels > maxWalk {
		for ; labels > maxWalk; labels-- {
			_, domain, _ = strings.Cut(domain, ".")
		}
	}
	for labels > 1 && len(out) < maxWalk {
		_, domain, _ = strings.Cut(domain, ".")
		labels--
		out = append(out, domain)
	}
	return out
}

// aligned reports whether a domain that was authenticated is that of the
// author.
func (d *discovery) aligned(ctx context.Context, domain, author string, strict bool) (bool, error) {
	switch {
	case domain == author:
		return properDomain(domain), nil
	case strict || !properDomain(domain):
		return false, nil
	}
	a, err := d.org(ctx, domain)
	if err != nil {
		return false, err
	}
	b, err := d.org(ctx, author)
	return a == b && err == nil, err
}

// dmarc is the outcome for one author.
type dmarc struct {
	Domain string // in From
	Record string // the domain where the record stands, "" without one
	Text   string // the record
	record *record
	// Result is "pass", "fail", "none" or "temperror".
	Result string
	// Wish is what the owner asks for of a message that fails, after sp, np, pct
	// and t; Published is p.
	Wish, Published wish
	Reason          string
	// By is what passed and is aligned: "spf", "dkim" or both.
	By []string
	// Sealer is who vouches for a message that fails, "" for nobody.
	Sealer string
}

// passed are the domains that were authenticated.
type passed struct {
	spf  []string
	dkim []string // of valid signatures
	// unsure is set when the DNS could not be asked for one of them.
	unsure bool
}

// evaluate is the rule of DMARC for one author (RFC 7489 section 6.6.2).
// sample tells messages apart for pct.
func (d *discovery) evaluate(ctx context.Context, author string, p *passed, sample string) dmarc {
	out := dmarc{Domain: author}
	r, err := d.policy(ctx, author)
	switch {
	case err != nil:
		return out.temporary("the record cannot be looked up", err)
	case r == nil:
		out.Result = "none"
		return out
	}
	out.Record, out.Text, out.record, out.Published = r.domain, r.text, r, r.p
	for _, by := range [...]struct {
		method  string
		domains []string
		strict  bool
	}{{"spf", p.spf, r.aspf}, {"dkim", p.dkim, r.adkim}} {
		for _, domain := range by.domains {
			ok, err := d.aligned(ctx, domain, author, by.strict)
			if err != nil {
				return out.temporary("alignment with "+domain, err)
			}
			if ok {
				out.By = append(out.By, by.method)
				break
			}
		}
	}
	switch {
	case len(out.By) > 0:
		out.Result = "pass"
		return out
	case p.unsure:
		out.Result, out.Reason = "temperror", "a record could not be looked up"
		return out
	}
	out.Result = "fail"
	out.Wish, err = d.wish(ctx, r, author)
	if err != nil {
		return out.temporary("whether the domain exists", err)
	}
	if r.test || !sampled(r.pct, sample) {
		weaker := weaken(out.Wish)
		if weaker != out.Wish {
			out.Reason = fmt.Sprintf("%s instead of %s: ", weaker, out.Wish)
			if r.test {
				out.Reason += "t=y"
			} else {
				out.Reason += fmt.Sprint("pct=", r.pct)
			}
		}
		out.Wish = weaker
	}
	return out
}

func (m dmarc) temporary(what string, err error) dmarc {
	m.Result, m.Wish, m.Reason = "temperror", "", what
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		m.Reason += ": " + err.Error()
	}
	return m
}

// wish returns what is asked for of an author's domain that fails.
func (d *discovery) wish(ctx context.Context, r *record, author string) (wish, error) {
	if r.domain == author {
		return r.p, nil
	}
	below := r.p
	if r.sp != "" {
		below = r.sp
	}
	if r.np == "" || r.np == below {
		return below, nil
	}
	exists, err := d.res.Exists(ctx, author)
	if err == nil && !exists {
		below = r.np
	}
	return below, err
}

func weaken(w wish) wish {
	if w == wishReject {
		return wishQuarantine
	}
	return wishNone
}

// sampled reports whether a message is among the pct of all.
func sampled(pct int, sample string) bool {
	if pct >= 100 {
		return true
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(sample)) // it never fails
	return int(h.Sum64()>>32%100) < pct
}
