package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
	"postern/verify/callout"
	"postern/verify/directory"
)

// Record is one remembered address as the administrator sees it.
type Record struct {
	Address string    `json:"address"`
	Result  Result    `json:"result"`
	At      time.Time `json:"at,omitzero"` // found or confirmed
	Source  string    `json:"source,omitempty"`
	Detail  string    `json:"detail,omitempty"`
	Tried   time.Time `json:"tried,omitzero"`
	Error   string    `json:"error,omitempty"` // of the last attempt, when the result stands in spite of it
	Strikes int       `json:"strikes,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Refresh time.Time `json:"refresh,omitzero"` // asked about again when used after
	Live    bool      `json:"live"`
	Asking  bool      `json:"asking,omitempty"` // somebody is finding out
}

// timesOf returns how long results of an address live.
func (c *Check) timesOf(key string) Times {
	if r := c.routes.find(mailaddr.Parse(key).Domain); r != nil {
		return r.times
	}
	return c.cfg.times(nil)
}

func (c *Check) record(key string, e *Entry, now time.Time) Record {
	rec := Record{
		Address: key, Result: e.Result, At: e.At, Source: e.Source, Detail: e.Detail, Tried: e.Tried, Error: e.Error,
		Strikes: e.Strikes, Asking: now.Before(e.Lease),
	}
	times := c.timesOf(key)
	if e.Result != "" {
		rec.Expires, rec.Refresh = e.At.Add(times.expire(e.Result)), e.At.Add(times.refresh(e.Result))
		rec.Live = e.Live(now, &times)
	}
	return rec
}

// Filter picks remembered addresses.
type Filter struct {
	// Which is an address, or a domain behind an @; empty: all.
	Which string
	// Negative leaves out known ones.
	Negative bool
	// Results, when not empty, are those to pick.
	Results []Result
	// Limit is the most to return; 0: all.
	Limit int
}

// ParseFilter reads what stands on a command line: "user@example.org",
// "@example.org" or "".
func ParseFilter(which string) (Filter, error) {
	if which == "" {
		return Filter{}, nil
	}
	if d, ok := strings.CutPrefix(which, "@"); ok {
		if d = mailaddr.Domain(d); d == "" {
			return Filter{}, fmt.Errorf("%q names no domain", which)
		}
		return Filter{Which: "@" + d}, nil
	}
	a := mailaddr.Parse(which)
	if a.Local == "" || a.Domain == "" {
		return Filter{}, fmt.Errorf("%q is neither an address nor @domain", which)
	}
	return Filter{Which: a.Local + "@" + a.Domain}, nil
}

// covers reports whether f is about an address at all.
func (f *Filter) covers(c *Check, key string) bool {
	switch {
	case strings.HasPrefix(f.Which, "@"):
		return strings.HasSuffix(key, f.Which)
	case f.Which != "":
		return key == c.key(mailaddr.Parse(f.Which))
	}
	return true
}

// picks reports whether f, which covers the address, picks what is remembered
// of it.
func (f *Filter) picks(e *Entry) bool {
	return e.Result != "" && !(f.Negative && e.Result == Known) && (len(f.Results) == 0 || slices.Contains(f.Results, e.Result))
}

// every calls yield for what the store has of the addresses that f covers,
// those too of which only a lease is there.
func (c *Check) every(ctx context.Context, f *Filter, yield func(key, raw string, e *Entry) bool) error {
	if f.Which != "" && !strings.HasPrefix(f.Which, "@") {
		key := c.key(mailaddr.Parse(f.Which))
		e, raw, err := c.load(ctx, key)
		if err == nil && raw != "" {
			yield(key, raw, &e)
		}
		return err
	}
	return c.store.Each(ctx, func(key, raw string) bool {
		if !f.covers(c, key) {
			return true
		}
		e, err := decode(raw)
		return err != nil || yield(key, raw, &e)
	})
}

// each calls yield for the entries that f picks.
func (c *Check) each(ctx context.Context, f Filter, yield func(key, raw string, e *Entry) bool) error {
	n := 0
	return c.every(ctx, &f, func(key, raw string, e *Entry) bool {
		if !f.picks(e) {
			return true
		}
		n++
		return yield(key, raw, e) && (f.Limit == 0 || n < f.Limit)
	})
}

// List calls yield for the remembered addresses that f picks, in the order of
// the store, until it returns false.
func (c *Check) List(ctx context.Context, f Filter, yield func(Record) bool) error {
	now := time.Now()
	return c.each(ctx, f, func(key, _ string, e *Entry) bool { return yield(c.record(key, e, now)) })
}

// Purge forgets what f picks and returns how many that was. The answers to
// questions about the addresses that f covers, which are being asked here or by
// another gateway, are not remembered when they come, whatever they are: the
// next request asks again.
func (c *Check) Purge(ctx context.Context, f Filter) (int, error) {
	c.disown(&f)
	n := 0
	var failed error
	err := c.every(ctx, &f, func(key, raw string, e *Entry) bool {
		picked, err := c.purge(ctx, &f, key, raw, e)
		if picked {
			n++
		}
		failed = err
		return err == nil
	})
	return n, errors.Join(err, failed)
}

// disown marks the questions being asked here that f covers. Who asks for such
// an address from now on does not wait for the answer either.
func (c *Check) disown(f *Filter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for q := range c.asking {
		if f.covers(c, q.key) {
			q.purged.Store(true)
			delete(c.flights, q.key)
		}
	}
}

// purge removes what the store has of one address, or, where f picks only
// other results, the lease of who is asking. It reports whether a result was
// removed.
func (c *Check) purge(ctx context.Context, f *Filter, key, raw string, e *Entry) (picked bool, err error) {
	for raw != "" {
		next, expires := "", time.Time{}
		picked = f.picks(e)
		if e.Result != "" && !picked {
			if e.Holder == "" {
				return false, nil
			}
			rest := *e
			rest.Lease, rest.Holder = time.Time{}, ""
			times := c.timesOf(key)
			next, expires = rest.encode(), rest.Expires(&times)
		}
		if ok, err := c.store.Swap(ctx, key, raw, next, expires); ok || err != nil {
			return ok && picked, err
		}
		// It has just changed, maybe by an answer that was on its way.
		var changed Entry
		if changed, raw, err = c.load(ctx, key); err != nil {
			return false, err
		}
		e = &changed
	}
	return false, nil
}

// Recheck has what f picks asked about again in the background, as far as
// places are free, and returns how many will be and how many were left out.
func (c *Check) Recheck(ctx context.Context, f Filter) (asked, left int, err error) {
	var todo []*question
	err = c.each(ctx, f, func(key, _ string, _ *Entry) bool {
		a := mailaddr.Parse(key)
		if r := c.routes.find(a.Domain); r == nil || len(todo) >= c.cfg.MaxPending {
			left++
		} else {
			todo = append(todo, &question{route: r, address: a, key: key, force: true})
		}
		return true
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	if c.running {
		n = max(0, min(len(todo), c.cfg.MaxPending-c.rechecks))
	}
	c.rechecks += n
	questions := make(chan *question, n)
	for _, q := range todo[:n] {
		questions <- q
	}
	close(questions)
	// A few at a time: recipients of mail that is waiting go first.
	for range min(n, max(1, c.cfg.Callout.Connections/2)) {
		c.work.Go(func() { c.recheck(questions) })
	}
	return n, left + len(todo) - n, err
}

// recheck asks one after the other, until the check is stopped.
func (c *Check) recheck(questions <-chan *question) {
	for q := range questions {
		for {
			if f := c.fly(q); f != nil {
				<-f.done
				break
			}
			select { // too many are being asked about
			case <-time.After(pollLease):
				continue
			case <-c.ctx.Done():
			}
			break
		}
		c.mu.Lock()
		c.rechecks--
		c.mu.Unlock()
	}
}

// Report is what `postern verify ADDRESS` shows.
type Report struct {
	Address string   `json:"address"`
	Route   string   `json:"route"`
	Sources []string `json:"sources"`
	NextHop []string `json:"next_hop,omitempty"`
	Before  *Record  `json:"before,omitempty"` // what was remembered
	Now     Record   `json:"now"`              // what was found
	// AcceptAll is set when the next hop takes every address of the domain.
	AcceptAll bool     `json:"accept_all,omitempty"`
	After     *Record  `json:"after,omitempty"` // what is remembered now
	Dialogue  []string `json:"dialogue,omitempty"`
	Took      string   `json:"took"`
}

// Ask asks about an address now, whatever is remembered, and keeps the answer.
func (c *Check) Ask(ctx context.Context, address string) (*Report, error) {
	a := mailaddr.Parse(address)
	if a.Domain == "" || !sane(a) {
		return nil, fmt.Errorf("%q is not an address that can be asked about", address)
	}
	r := c.routes.find(a.Domain)
	if r == nil {
		return nil, fmt.Errorf("%w %s: [[verify.route]] says which are ours", errNoRoute, a.Domain)
	}
	q := &question{route: r, address: a, key: c.key(a), force: true, talk: &callout.Dialogue{}}
	rep := &Report{Address: a.Local + "@" + a.Domain, Route: r.name, Sources: r.sourceNames()}
	if hops, err := r.hopsFor(a, &c.cfg); err == nil {
		for _, h := range hops {
			rep.NextHop = append(rep.NextHop, h.String())
		}
	}
	remembered := func() *Record {
		e, err := c.recall(ctx, q.key)
		if err != nil || e.Result == "" {
			return nil
		}
		rec := c.record(q.key, &e, time.Now())
		return &rec
	}
	rep.Before = remembered()
	ctx, cancel := context.WithTimeout(ctx, c.lease())
	defer cancel()
	began := time.Now()
	e, all := c.findNow(ctx, q)
	rep.Took = time.Since(began).Round(time.Millisecond).String()
	rep.Now, rep.AcceptAll, rep.Dialogue = c.record(q.key, &e, time.Now()), all, q.talk.Lines
	rep.After = remembered()
	return rep, nil
}

// findNow is what the sources say now. What is remembered follows the rule for
// every attempt, so that a mistake here does no harm; the answer is shown as
// it came.
func (c *Check) findNow(ctx context.Context, q *question) (Entry, bool) {
	c.beginAsking(q)
	defer c.endAsking(q)
	found, kind := c.ask(ctx, q)
	found.Error = ""
	if kind == something && ctx.Err() == nil { // who hangs up has learned nothing
		c.update(ctx, q, func(old Entry) (Entry, bool) { return Merge(old, found, &q.route.times), true })
	}
	return found, kind == takesAll
}

// Learn remembers addresses as known that somebody vouches for, and returns
// how many; those of other domains and what is no address are left out.
func (c *Check) Learn(ctx context.Context, addresses []string) (learned, left int, err error) {
	for _, s := range addresses {
		a := mailaddr.Parse(s)
		r := c.routes.find(a.Domain)
		if r == nil || a.Domain == "" || !sane(a) {
			left++
			continue
		}
		q := &question{route: r, address: a, key: c.key(a)}
		found := Entry{Result: Known, At: time.Now(), Source: "learned", Detail: "a delivery succeeded"}
		if _, err := c.keep(ctx, q, func(old Entry) (Entry, bool) { return Merge(old, found, &r.times), true }); err != nil {
			return learned, left, err
		}
		learned++
	}
	return learned, left, nil
}

// Remembered is what another program remembered of an address.
type Remembered struct {
	Address string    `json:"address"`
	Known   bool      `json:"known"`
	At      time.Time `json:"at"`
	Text    string    `json:"text,omitempty"` // the answer
}

// Imported counts what became of [Remembered].
type Imported struct {
	Taken int `json:"taken"`
	Known int `json:"known"`    // what is remembered here is as new
	Old   int `json:"too_old"`  // would be asked about again
	Left  int `json:"left_out"` // of other domains, or no address
}

// Add adds counts.
func (i *Imported) Add(j Imported) {
	i.Taken += j.Taken
	i.Known += j.Known
	i.Old += j.Old
	i.Left += j.Left
}

// Import remembers what another program has found out, where nothing is
// remembered that is as new. Results that have expired by the times of their
// route are left out.
func (c *Check) Import(ctx context.Context, all []Remembered) (out Imported, err error) {
	now := time.Now()
	for i := range all {
		m := &all[i]
		a := mailaddr.Parse(m.Address)
		r := c.routes.find(a.Domain)
		if r == nil || a.Domain == "" || !sane(a) {
			out.Left++
			continue
		}
		found := Entry{Result: Unknown, At: m.At, Tried: m.At, Source: "imported", Detail: policy.Printable(m.Text)}
		if m.Known {
			found.Result = Known
		}
		if m.At.After(now) || !found.Live(now, &r.times) {
			out.Old++
			continue
		}
		q := &question{route: r, address: a, key: c.key(a)}
		taken := false
		if _, err := c.keep(ctx, q, func(old Entry) (Entry, bool) {
			taken = !old.Live(now, &r.times) || old.At.Before(found.At) && old.Result != Known
			if taken {
				return found, true
			}
			return old, true
		}); err != nil {
			return out, err
		}
		if taken {
			out.Taken++
		} else {
			out.Known++
		}
	}
	return out, nil
}

// NextHops returns how the next hops are, and the directories.
func (c *Check) NextHops() ([]callout.Status, []directory.Status) {
	dirs := make([]directory.Status, len(c.dirs))
	for i, d := range c.dirs {
		dirs[i] = d.Status()
	}
	return c.prober.Status(), dirs
}

// FileStatus is one file of the routes.
type FileStatus struct {
	File    string `json:"file"`
	Entries int    `json:"entries"`
	Fault   string `json:"fault,omitempty"`
}

// Status is what `postern status` shows of verification.
type Status struct {
	Routes      int                `json:"routes"`
	Entries     int                `json:"entries"` // remembered, about
	Pending     int                `json:"pending"`
	Retries     int                `json:"retries"`
	Wait        conf.Duration      `json:"wait"`
	NextHops    []callout.Status   `json:"next_hops,omitempty"`
	Directories []directory.Status `json:"directories,omitempty"`
	Files       []FileStatus       `json:"files,omitempty"`
}

// Status returns the present state.
func (c *Check) Status() Status {
	st := Status{Routes: len(c.routes.all), Entries: c.store.Count(), Wait: c.cfg.Wait}
	c.mu.Lock()
	st.Pending, st.Retries = c.flying, len(c.retries)
	c.mu.Unlock()
	st.NextHops, st.Directories = c.NextHops()
	for _, f := range c.routes.files {
		fst := FileStatus{File: f.text}
		if content := f.content.Load(); content != nil {
			fst.Entries = content.size
		}
		if fault := f.fault.Load(); fault != nil {
			fst.Fault = *fault
		}
		st.Files = append(st.Files, fst)
	}
	slices.SortFunc(st.Files, func(a, b FileStatus) int { return cmp.Compare(a.File, b.File) })
	return st
}
