package verify

import (
	"context"
	"errors"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"postern/internal/mailaddr"
	"postern/policy"
	"postern/verify/callout"
	"postern/verify/directory"
)

// question is an address to ask about.
type question struct {
	route   *route
	address policy.Address
	key     string
	gentle  bool // can wait
	force   bool // asked by the administrator: limits of health do not count
	talk    *callout.Dialogue

	// lease is that of this question in the store, while its sources are being
	// asked; zero when none could be taken.
	lease time.Time
	// purged is set by a purge that comes while the sources are being asked.
	purged atomic.Bool
}

// flight is one address being asked about in this process. entry and
// acceptAll are set when done is closed.
type flight struct {
	done      chan struct{}
	entry     Entry
	acceptAll bool
}

// lease is how long one process may take to find out; after that another
// does. It is more than a probe can last.
func (c *Check) lease() time.Duration { return c.cfg.Callout.Timeout.D() + 10*time.Second }

// fly returns the flight of an address, a new one when there is none; nil
// when there are too many, or the check has been stopped.
func (c *Check) fly(q *question) *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[q.key]; f != nil {
		return f
	}
	if !c.running || c.flying >= c.cfg.MaxPending {
		return nil
	}
	f := &flight{done: make(chan struct{})}
	c.flights[q.key] = f
	c.flying++
	c.work.Go(func() {
		f.entry, f.acceptAll = c.guarded(q)
		c.mu.Lock()
		c.flying--
		if c.flights[q.key] == f { // else a purge has come, and those after it ask anew
			delete(c.flights, q.key)
		}
		c.mu.Unlock()
		close(f.done)
	})
	return f
}

// guarded is find; a panic is no answer, and ends nothing but this question.
func (c *Check) guarded(q *question) (entry Entry, acceptAll bool) {
	defer func() {
		if cause := recover(); cause != nil {
			c.log.Error("panic while an address was asked about", zap.String("address", q.key), zap.Any("cause", cause), zap.ByteString("stack", debug.Stack()))
			entry, acceptAll = Entry{Result: Temporary, Detail: "an internal fault"}, false
		}
	}()
	return c.find(c.ctx, q)
}

// recall returns what is remembered of an address.
func (c *Check) recall(ctx context.Context, key string) (Entry, error) {
	e, _, err := c.load(ctx, key)
	return e, err
}

func (c *Check) load(ctx context.Context, key string) (Entry, string, error) {
	b, err := c.store.Load(ctx, key)
	if err != nil || b == "" {
		return Entry{}, "", err
	}
	e, err := decode(b)
	if err != nil {
		c.log.Warn("a remembered address cannot be read, it is asked about anew", zap.String("address", key), zap.Error(err))
		return Entry{}, b, nil
	}
	return e, b, nil
}

// pollLease is how often the store is asked whether another gateway has found
// out.
const pollLease = 200 * time.Millisecond

// find finds out about an address and remembers it. One process at a time
// asks; the others wait for what it finds.
func (c *Check) find(ctx context.Context, q *question) (entry Entry, acceptAll bool) {
	wait, cancel := context.WithTimeout(ctx, c.lease())
	defer cancel()
	for !q.force {
		state, e := c.claim(wait, q)
		switch state {
		case claimKnown:
			return e, false
		case claimMine:
			return c.askAndKeep(ctx, q)
		case claimBusy:
		}
		select {
		case <-time.After(pollLease):
		case <-wait.Done():
			return Entry{Result: Temporary, Detail: "another gateway is asking"}, false
		}
	}
	return c.askAndKeep(ctx, q)
}

type claim uint8

const (
	claimMine claim = iota
	claimBusy
	claimKnown // somebody has found out in the meantime
)

// claim takes the lease of an address.
func (c *Check) claim(ctx context.Context, q *question) (claim, Entry) {
	for {
		now := time.Now()
		e, raw, err := c.load(ctx, q.key)
		switch {
		case err != nil:
			return claimMine, e // nobody can be told; ask all the same
		case e.Live(now, &q.route.times) && !e.Due(now, &q.route.times):
			return claimKnown, e
		case e.Leased(now, c.holder):
			return claimBusy, e
		case raw == "" && c.store.Count() >= c.cfg.MaxEntries:
			return claimMine, e
		}
		next := e
		next.Lease, next.Holder = now.Add(c.lease()), c.holder
		switch ok, err := c.store.Swap(ctx, q.key, raw, next.encode(), next.Expires(&q.route.times)); {
		case err != nil:
			return claimMine, e
		case ok:
			q.lease = next.Lease
			return claimMine, e
		case ctx.Err() != nil:
			return claimBusy, e
		}
	}
}

// askAndKeep asks, which has all of its time now, and remembers what comes of
// it.
func (c *Check) askAndKeep(ctx context.Context, q *question) (entry Entry, acceptAll bool) {
	ctx, cancel := context.WithTimeout(ctx, c.lease())
	defer cancel()
	c.beginAsking(q)
	defer c.endAsking(q)
	found, kind := c.ask(ctx, q)
	if ctx.Err() != nil && found.Result == Temporary {
		kind = nothing // the daemon stops: it is no answer
	}
	// What was found is kept even when the time of the question is over.
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer done()
	if kind != something {
		c.update(ctx, q, func(old Entry) (Entry, bool) {
			old.Lease, old.Holder = time.Time{}, ""
			if kind == takesAll {
				// It takes this address too, so that what it has refused before
				// holds no more; of a known one nothing more can be learned.
				old.Tried = found.At
				return old, old.Result == Known
			}
			return old, old.Result != ""
		})
		if kind == nothing {
			if e, err := c.recall(ctx, q.key); err == nil && e.Live(found.At, &q.route.times) {
				return e, false // a refresh that did not come off
			}
		}
		return found, kind == takesAll
	}
	if c.cfg.Retry > 0 && found.Result == Temporary && found.Error == retryWord {
		c.retry(q)
	}
	found.Error = ""
	return c.update(ctx, q, func(old Entry) (Entry, bool) {
		merged := Merge(old, found, &q.route.times)
		full := old.Result == "" && merged.Result != Known && c.store.Count() > c.cfg.MaxEntries
		return merged, !full
	}), false
}

// update changes what is remembered: change returns the entry, and false to
// remember none. It returns the entry.
func (c *Check) update(ctx context.Context, q *question, change func(old Entry) (Entry, bool)) Entry {
	e, err := c.keep(ctx, q, change)
	if err != nil {
		c.metrics.storeErrors.Inc()
	}
	return e
}

// beginAsking has a purge find the question from here on.
func (c *Check) beginAsking(q *question) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asking[q] = true
}

func (c *Check) endAsking(q *question) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.asking, q)
}

// overtaken reports whether a purge has come since the sources of the question
// began to be asked. On another gateway it shows by the lease, which it takes away.
func (q *question) overtaken(old *Entry, holder string) bool {
	return q.purged.Load() || !q.lease.IsZero() && (old.Holder != holder || old.Lease.UnixMilli() != q.lease.UnixMilli())
}

// keep is update for who has to know whether the store has taken it. An answer
// that was asked for before a purge is not remembered.
func (c *Check) keep(ctx context.Context, q *question, change func(old Entry) (Entry, bool)) (Entry, error) {
	for {
		old, raw, err := c.load(ctx, q.key)
		next, keep := change(old)
		if err != nil {
			return next, err
		}
		if q.overtaken(&old, c.holder) {
			next, _ = change(Entry{}) // for those who have waited for it
			return next, nil
		}
		encoded := ""
		if keep {
			encoded = next.encode()
		}
		if encoded == raw {
			return next, nil
		}
		ok, err := c.store.Swap(ctx, q.key, raw, encoded, next.Expires(&q.route.times))
		if ok && q.purged.Load() && encoded != "" {
			// It came in between. One that comes now finds the entry by itself.
			_, err = c.store.Swap(ctx, q.key, encoded, "", time.Time{})
		}
		if ok || err != nil {
			return next, err
		}
		if err := ctx.Err(); err != nil {
			return next, err
		}
	}
}

// outcome says what to do with what was found.
type outcome uint8

const (
	something outcome = iota
	nothing           // nobody was asked
	takesAll          // the next hop's answer says nothing
)

// retryWord marks an answer "try again later" on its way to askAndKeep.
const retryWord = "retry"

// ask asks the sources in their order, from the first that is not in memory.
// Unknown is only what every source could be asked about.
func (c *Check) ask(ctx context.Context, q *question) (Entry, outcome) {
	r := q.route
	var missing error
	e := Entry{Result: Unknown, At: time.Now(), Detail: "not there"}
	for i := range r.sources {
		s := &r.sources[i]
		e.Source = s.name
		switch {
		case s.file != nil:
			if i < r.instant && !q.force {
				continue
			}
			result, place, ok := s.file.address(q.address, c.cfg.Delimiters)
			if kind := said(result); ok && kind != "" {
				c.metrics.count(sourceFile, string(kind))
				return Entry{Result: kind, At: time.Now(), Source: place}, something
			}
		case s.directory != nil:
			began := time.Now()
			dn, found, err := c.askDirectory(ctx, s.directory, q.address)
			if err != nil {
				c.metrics.asked(sourceLDAP, string(Temporary), began)
				c.log.Warn("a directory cannot be asked", zap.String("source", s.name), zap.Error(err))
				missing = errors.Join(missing, err)
				continue
			}
			if found {
				c.metrics.asked(sourceLDAP, string(Known), began)
				return Entry{Result: Known, At: time.Now(), Source: s.name, Detail: dn}, something
			}
			c.metrics.asked(sourceLDAP, string(Unknown), began)
		default:
			var what outcome
			if e, what = c.callout(ctx, q, s); what != something || e.Result != Unknown {
				return e, what
			}
		}
	}
	if missing != nil {
		return Entry{Result: Temporary, At: time.Now(), Source: e.Source, Detail: missing.Error()}, something
	}
	e.At = time.Now()
	return e, something
}

// askDirectory asks for an address, then for it without its extension, as
// Postfix looks up recipients.
func (c *Check) askDirectory(ctx context.Context, d *directory.Directory, a policy.Address) (dn string, found bool, err error) {
	dn, found, err = d.Ask(ctx, a)
	user, _, extended := mailaddr.SplitExtension(a.Local, c.cfg.Delimiters)
	if err != nil || found || !extended {
		return dn, found, err
	}
	return d.Ask(ctx, policy.Address{Raw: user + "@" + a.Domain, Local: user, Domain: a.Domain})
}

// callout asks the next hop.
func (c *Check) callout(ctx context.Context, q *question, s *source) (Entry, outcome) {
	e := Entry{At: time.Now(), Source: s.name}
	hops, err := q.route.hopsFor(q.address, &c.cfg)
	if err != nil {
		e.Result, e.Detail = Undecided, err.Error()
		if !errors.Is(err, callout.ErrNotProbed) {
			e.Result = Temporary
			c.log.Error("there is no next hop to ask", zap.String("domain", q.address.Domain), zap.Error(err))
		}
		return e, something
	}
	res := c.prober.Ask(ctx, &callout.Probe{
		Hops: hops, Address: q.address, Options: q.route.options, Gentle: q.gentle, Force: q.force, Dialogue: q.talk,
	})
	e.At, e.Detail, e.Result = time.Now(), res.Text(), resultOf(res.Class)
	if res.Host != "" {
		e.Source = "callout " + res.Host
	}
	if !res.Limited {
		c.metrics.asked(sourceCallout, res.Class.String(), e.At.Add(-res.Took))
	}
	switch {
	case res.Class == callout.AcceptAll:
		return e, takesAll
	case res.Limited:
		return e, nothing
	case res.Class == callout.Temporary && res.Stage == callout.StageRcpt:
		e.Error = retryWord
	}
	return e, something
}

// maxRetries bounds the addresses that are to be asked about again.
const maxRetries = 2000

// retry asks about an address once more after a while, so that it is known
// when the client comes back: a next hop that greylists lets the second pass.
func (c *Check) retry(q *question) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.running || c.retries[q.key] != nil || len(c.retries) >= maxRetries || q.gentle || q.force {
		return
	}
	again := &question{route: q.route, address: q.address, key: q.key, gentle: true}
	c.retries[q.key] = time.AfterFunc(c.cfg.Retry.D(), func() {
		c.mu.Lock()
		delete(c.retries, q.key)
		c.mu.Unlock()
		c.fly(again)
	})
}
