package provider

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"postern/internal/mailaddr"
	"postern/internal/spfrecord"
)

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
