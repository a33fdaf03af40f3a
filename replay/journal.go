package replay

import (
	"context"
	"strings"
	"time"

	"postern/expect"
	"postern/journal"
	"postern/policy"
	"postern/resolver"
)

// Past is what a journal has kept. Of a journal with keep = "refused" that is
// only what was refused.
type Past struct {
	Reader *journal.Reader
	// Since and Until bound the requests.
	Since, Until time.Time
	World        *World

	waiting []*journal.Record
	// Skipped is told of records that cannot be decided again.
	Skipped func(why string)
}

// Why records are skipped.
const (
	noContent  = "the content of messages is not recorded"
	beforehand = time.Hour       // answers of the DNS from before the first request are read
	settling   = 2 * time.Second // answers come while a request waits for them
)

// Each calls yield with the requests in the order in which they came, once the
// world has what was found out for each, until it returns an error.
func (p *Past) Each(ctx context.Context, yield func(*Item) error) error {
	from := p.Since
	if !from.IsZero() {
		from = from.Add(-beforehand)
	}
	until := p.Until
	if !until.IsZero() {
		until = until.Add(settling)
	}
	_, err := p.Reader.Scan(ctx, from, until, func(e journal.Entry) error {
		if err := p.decide(e.Time, yield); err != nil {
			return err
		}
		switch {
		case e.Answer != nil:
			a := e.Answer
			p.World.Record(&resolver.Recorded{Name: a.Name, Type: a.Type, Records: a.Records, Failure: a.Failure, TTL: a.TTL})
		case e.Decision != nil && !e.Time.Before(p.Since) && (p.Until.IsZero() || !e.Time.After(p.Until)):
			p.waiting = append(p.waiting, e.Decision)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.decide(time.Time{}, yield)
}

// decide gives on those for which everything has come by now; a zero time is
// the end.
func (p *Past) decide(now time.Time, yield func(*Item) error) error {
	for len(p.waiting) > 0 {
		r := p.waiting[0]
		if !now.IsZero() && now.Before(r.Time.Add(r.Decision.Took+settling)) {
			return nil
		}
		p.waiting = p.waiting[1:]
		if why := unusable(r); why != "" {
			p.Skipped(why)
			continue
		}
		req := r.Request()
		p.World.Recall(req, r)
		then := OutcomeOf(r.Decision)
		if err := yield(&Item{Request: req, Then: &then, Ref: r.Decision.Reference}); err != nil {
			return err
		}
	}
	return nil
}

// unusable says why a record cannot be decided again, "" when it can.
func unusable(r *journal.Record) string {
	if r.Door == "milter" && r.Stage == policy.StageEndOfMessage {
		return noContent
	}
	return ""
}

// Recall takes from a record what was found out and is of no answer that was
// recorded: it had been remembered from before.
func (w *World) Recall(req *policy.Request, r *journal.Record) {
	for _, s := range r.Decision.Steps {
		if s.Check != "verify" {
			continue
		}
		switch s.Verdict.Reason {
		case "verify-unknown":
			w.Remember(req.Recipient, "unknown")
		case "verify-temporary", "verify-down", "verify-in-progress":
			w.Remember(req.Recipient, "temporary")
		case "verify-known":
			w.Remember(req.Recipient, "known")
		}
	}
	if addr := req.Client.Addr; addr.IsValid() {
		for _, l := range r.Facts.Listings {
			if l.What == addr.String() {
				w.suppose(resolver.Recorded{Name: expect.ListedName(addr, l.List), Type: "A", Records: strings.Fields(l.Answer), TTL: time.Hour})
			}
		}
		if spf := r.Facts.SPF; spf.Domain != "" {
			if text, failure, ok := expect.SPFAnswer(spf.Result, addr); ok {
				a := resolver.Recorded{Name: spf.Domain, Type: "TXT", Failure: failure, TTL: time.Hour}
				if text != "" {
					a.Records = []string{text}
				}
				w.suppose(a)
			}
		}
	}
	w.Suppose(req)
}
