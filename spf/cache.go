package spf

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"

	"postern/policy"
)

// key names an outcome. Local part and HELO name are in it only when the
// outcome depends on them.
type key struct {
	addr                netip.Addr
	domain, local, helo string
	// instance is the message for which the outcome holds, "" for any.
	instance string
}

// kept is an outcome in memory.
type kept struct {
	outcome *Outcome // nil: it depends on more of the question
	until   time.Time
	// What it depends on, when outcome is nil.
	byLocal, byHelo bool
}

// with returns the key of an outcome that depends on more of a question.
func (k key) with(q *query, byLocal, byHelo bool) key {
	if byLocal {
		k.local = q.local
	}
	if byHelo {
		k.helo = q.helo
	}
	return k
}

// instanceTime is how long all recipients of a message get the same outcome,
// whatever the TTL: a temperror is not waited for again.
const instanceTime = 2 * time.Minute

// maxKeyPart is the most octets of a local part or HELO name in a key; an
// outcome that depends on a longer one is not kept.
const maxKeyPart = 256

// cache keeps outcomes, as long as the records that they come from. It is safe
// for concurrent use.
type cache struct {
	outcomes *otter.Cache[key, kept]
	most     time.Duration
}

func newCache(size int, most time.Duration) *cache {
	// No expiry of the cache's own: that takes a goroutine, and the time is in
	// the value.
	return &cache{otter.Must(&otter.Options[key, kept]{MaximumSize: size}), most}
}

// holds reports whether what is kept until then can be used. A clock that was
// set back makes nothing last longer.
func (k *kept) holds(now time.Time, most time.Duration) bool {
	return now.Before(k.until) && k.until.Sub(now) <= most
}

// get returns what is known about q, nil if nothing is.
func (c *cache) get(q *query, instance string, now time.Time) *Outcome {
	k := key{addr: q.addr, domain: q.domain}
	v, ok := c.outcomes.GetIfPresent(k)
	if ok && v.holds(now, c.most) {
		if v.outcome != nil {
			return v.outcome
		}
		if v, ok = c.outcomes.GetIfPresent(k.with(q, v.byLocal, v.byHelo)); ok && v.holds(now, c.most) {
			return v.outcome
		}
	}
	if instance == "" {
		return nil
	}
	k = key{q.addr, q.domain, q.local, q.helo, instance}
	if v, ok = c.outcomes.GetIfPresent(k); ok && v.holds(now, instanceTime) {
		return v.outcome
	}
	return nil
}

// put keeps an outcome.
func (c *cache) put(q *query, instance string, now time.Time, o *Outcome) {
	if len(q.local) > maxKeyPart || len(q.helo) > maxKeyPart || len(instance) > maxKeyPart {
		return
	}
	k := key{addr: q.addr, domain: o.Domain} // its own memory, see ask
	ttl := min(o.ttl, c.most)
	switch {
	case o.Result == temperror || ttl < time.Second:
		if instance != "" {
			k.local, k.helo, k.instance = strings.Clone(q.local), strings.Clone(q.helo), strings.Clone(instance)
			c.outcomes.Set(k, kept{outcome: o, until: now.Add(instanceTime)})
		}
		return
	case o.byLocal || o.byHelo:
		more := kept{nil, now.Add(c.most), o.byLocal, o.byHelo}
		if before, ok := c.outcomes.GetIfPresent(k); ok && before.outcome == nil { // of another local part, say
			more.byLocal, more.byHelo = more.byLocal || before.byLocal, more.byHelo || before.byHelo
		}
		c.outcomes.Set(k, more)
		k = k.with(&query{local: strings.Clone(q.local), helo: strings.Clone(q.helo)}, more.byLocal, more.byHelo)
	}
	c.outcomes.Set(k, kept{outcome: o, until: now.Add(ttl)})
}

// hostless returns what is shown as the domain where there is none: nothing of
// what could be anything.
func hostless(domain string) string {
	if len(domain) > maxDomain || policy.Printable(domain) != domain {
		return ""
	}
	return strings.Clone(domain)
}

// ask returns the outcome of a query, from memory if it is there. With trace
// it is always evaluated, and the evaluation is returned too.
func (c *Check) ask(ctx context.Context, q query, instance string, now time.Time, trace bool) (*Outcome, *evaluation) {
	if !isHost(q.domain) { // costs less than remembering it
		return &Outcome{Result: none, Domain: hostless(q.domain), ttl: longest}, &evaluation{query: q}
	}
	sh := c.shared
	memory := !trace && !now.IsZero()
	if memory {
		if o := sh.cache.get(&q, instance, now); o != nil {
			sh.metrics.cached.Inc()
			return o, nil
		}
	}
	o, e := evaluate(ctx, c.res, sh.plans, c.limits, q, trace)
	if !trace {
		sh.metrics.evaluations.Inc()
	}
	o.Domain = strings.Clone(o.Domain) // a part of the request's text, which is larger
	if memory {
		sh.cache.put(&q, instance, now, o)
	}
	return o, e
}
