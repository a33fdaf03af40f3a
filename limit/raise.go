package limit

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"postern/internal/adminapi"
	"postern/internal/meter"
)

// Raise is a limit of one meter that is higher for a time.
type Raise struct {
	Key   string    `json:"key"`
	To    int64     `json:"to"` // units: of a quota, or that may come at once
	Until time.Time `json:"until"`
}

const (
	// raiseEvery is how often a gateway looks at what others have raised.
	raiseEvery   = 5 * time.Second
	raiseTimeout = 2 * time.Second
	maxRaises    = 256
	// raisesKey is the key of the one value that holds them all: they are few,
	// and each gateway keeps them in memory.
	raisesKey = "all"
	// Bounds of how long.
	minRaise, maxRaise = time.Minute, 366 * 24 * time.Hour
)

// raises are those in force, in memory as they were read last. It is safe for
// concurrent use.
type raises struct {
	store   AdminStore
	now     atomic.Pointer[map[string]Raise]
	failing atomic.Bool
}

func newRaises(s AdminStore) *raises {
	r := &raises{store: s}
	r.now.Store(new(map[string]Raise))
	return r
}

// of returns the raise of a meter that is in force.
func (r *raises) of(key string, now time.Time) (Raise, bool) {
	one, ok := (*r.now.Load())[key]
	return one, ok && now.Before(one.Until)
}

// apply raises the limits of asks.
func (r *raises) apply(asks []ask, now time.Time) {
	if len(*r.now.Load()) == 0 {
		return
	}
	for i := range asks {
		a := &asks[i]
		one, ok := r.of(a.Key, now)
		switch {
		case !ok:
		case a.Kind != meter.Rate:
			a.Most = max(a.Most, one.To)
		default:
			a.limit(nil, a.n, one.To)
		}
	}
}

// read reads them from the store; text is the value as it is there.
func (r *raises) read(ctx context.Context) (text string, all []Raise, err error) {
	if text, err = r.store.Load(ctx, raisesKey); err != nil || text == "" {
		return text, nil, err
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return text, nil, fmt.Errorf("limit: raised limits: %w", err)
	}
	return text, all, nil
}

func (r *raises) keep(all []Raise) {
	m := make(map[string]Raise, len(all))
	for _, one := range all {
		m[one.Key] = one
	}
	r.now.Store(&m)
}

// refresh reads them. What cannot be read leaves those known in force, and is
// logged once.
func (r *raises) refresh(ctx context.Context, log *zap.Logger) {
	one, cancel := context.WithTimeout(ctx, raiseTimeout)
	defer cancel()
	_, all, err := r.read(one)
	if err == nil {
		r.keep(all)
		r.failing.Store(false)
	} else if ctx.Err() == nil && !r.failing.Swap(true) {
		log.Warn("raised limits cannot be read; those known stay in force", zap.Error(err))
	}
}

// follow refreshes them until ctx ends.
func (r *raises) follow(ctx context.Context, log *zap.Logger) {
	tick := time.NewTicker(raiseEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.refresh(ctx, log)
		}
	}
}

// change replaces the raises by what f makes of those in force.
func (r *raises) change(ctx context.Context, now time.Time, f func([]Raise) ([]Raise, error)) error {
	for {
		old, all, err := r.read(ctx)
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(one Raise) bool { return !now.Before(one.Until) })
		if all, err = f(all); err != nil {
			return err
		}
		next, expires := "", now
		if len(all) > 0 {
			b, err := json.Marshal(all)
			if err != nil {
				return fmt.Errorf("limit: raised limits: %w", err)
			}
			next = string(b)
			expires = slices.MaxFunc(all, func(a, b Raise) int { return a.Until.Compare(b.Until) }).Until.Add(meter.Skew)
		}
		done, err := r.store.Swap(ctx, raisesKey, old, next, expires)
		if err != nil {
			return err
		}
		if done {
			r.keep(all)
			return nil
		}
	}
}

// Raise raises the limit of a meter, which need not exist yet. A raise of the
// same meter before is replaced. Other gateways follow within seconds.
func (c *Check) Raise(ctx context.Context, key string, to int64, howLong time.Duration, now time.Time) (Raise, error) {
	a, most, ok := c.askOf(key, now)
	switch {
	case !ok:
		return Raise{}, adminapi.Refused(fmt.Errorf("no rule has a meter %q; `postern limit top` lists meters: RULE/rate or period/WHOSE", key))
	case to <= most:
		return Raise{}, adminapi.Refused(fmt.Errorf("the rule allows %d already", most))
	case to > maxUnits || a.Kind == meter.Distinct && to > maxDistinct:
		return Raise{}, adminapi.Refused(fmt.Errorf("%d is more than can be counted", to))
	case howLong < minRaise || howLong > maxRaise:
		return Raise{}, adminapi.Refused(fmt.Errorf("%v is out of range: 1m to 366d", howLong))
	}
	before := a.perUnit
	if old, ok := c.shared.raises.of(key, now); ok {
		a.limit(nil, 0, old.To)
		before = a.perUnit
	}
	one := Raise{key, to, now.Add(howLong).Truncate(time.Second)}
	err := c.shared.raises.change(ctx, now, func(all []Raise) ([]Raise, error) {
		all = slices.DeleteFunc(all, func(r Raise) bool { return r.Key == key })
		if len(all) >= maxRaises {
			return nil, adminapi.Refused(fmt.Errorf("%d limits are raised; cancel one", len(all)))
		}
		return append(all, one), nil
	})
	if err != nil || a.Kind != meter.Rate {
		return one, err
	}
	// A rate's meter holds times: what is used stays as many units.
	a.limit(nil, 0, to)
	return one, c.rescale(ctx, &a, a.perUnit/before, now)
}

// rescale changes what the meter of a rate holds by a factor.
func (c *Check) rescale(ctx context.Context, a *ask, factor float64, now time.Time) error {
	for {
		old, err := c.admin.Load(ctx, a.Key)
		if err != nil || old == "" {
			return err
		}
		next := meter.At(now, int64(float64(a.Held(old, now))*factor))
		if done, err := c.admin.Swap(ctx, a.Key, old, next, a.Expires(now)); done || err != nil {
			return err
		}
	}
}

// Raised returns what is raised, by key.
func (c *Check) Raised(ctx context.Context, now time.Time) ([]Raise, error) {
	_, all, err := c.shared.raises.read(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(one Raise) bool { return !now.Before(one.Until) })
	slices.SortFunc(all, func(a, b Raise) int { return cmp.Compare(a.Key, b.Key) })
	if all == nil {
		all = []Raise{}
	}
	return all, nil
}

// CancelRaise ends a raise before its time.
func (c *Check) CancelRaise(ctx context.Context, key string, now time.Time) error {
	return c.shared.raises.change(ctx, now, func(all []Raise) ([]Raise, error) {
		n := len(all)
		all = slices.DeleteFunc(all, func(one Raise) bool { return one.Key == key })
		if len(all) == n {
			return nil, adminapi.NotFound(fmt.Errorf("%q is not raised", key))
		}
		return all, nil
	})
}

var errKey = errors.New("no key")

// askOf returns an ask of a meter by its key, and how many units its rule
// allows; false for one of no rule.
func (c *Check) askOf(key string, now time.Time) (a ask, most int64, ok bool) {
	name, rest, _ := strings.Cut(key, "/")
	kind, who, _ := strings.Cut(rest, "/")
	i := c.rule(name)
	if i < 0 || who == "" {
		return a, 0, false
	}
	r := &c.rules[i]
	a = ask{rule: r, Take: meter.Take{Key: key, Hard: r.hard}}
	if kind == "rate" {
		a.limit(nil, 0, 0)
		return a, r.Burst, r.rate != ""
	}
	j := slices.IndexFunc(r.quotas, func(q quotaOf) bool { return q.Period == kind })
	if j < 0 {
		return a, 0, false
	}
	a.Kind = r.quotaKind()
	a.Start, a.End = r.quotas[j].now(now)
	a.limit(&r.quotas[j], 0, 0)
	return a, r.quotas[j].Units, true
}
