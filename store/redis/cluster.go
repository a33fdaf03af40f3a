package redis

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"postern/greylist"
	"postern/internal/meter"
)

// credited is what the script says of a credit that is elsewhere.
type credited struct {
	state   int64  // negative: no triplet that has passed
	due     bool   // its pass is to be counted
	next    string // the credit's new value, empty for none
	changed bool
}

// touchApart is touch in a Cluster, where the credit of a side may be on
// another server than the correspondence. The triplet and the credit are asked
// for at once; who has passed is answered then, others in a second step, in
// which the script is told of the credit.
func (s *Store) touchApart(ctx context.Context, c *greylist.Contact, creditKey string, run func(more ...any) *redis.Cmd) (out greylist.Outcome, fresh bool, err error) {
	value := ""
	if c.Earns() {
		var got string
		var failed error
		var wg sync.WaitGroup
		wg.Go(func() { got, failed = s.load(ctx, creditKey) })
		cmd, err := s.script(ctx, script, s.sha, func() *redis.Cmd { return run("?") })
		wg.Wait()
		if err == nil {
			err = failed
		}
		if err != nil {
			return out, false, err
		}
		known, rest, err := s.outcome(cmd, c)
		if err != nil {
			return out, false, err
		}
		if rest.state >= 0 {
			if rest.due {
				known.Passes, err = s.countApart(ctx, c, creditKey, got)
			}
			return known, false, err
		}
		value = got
	}
	cmd, err := s.script(ctx, script, s.sha, func() *redis.Cmd { return run("v" + value) })
	if err != nil {
		return out, false, err
	}
	out, rest, err := s.outcome(cmd, c)
	if err != nil || !rest.changed {
		return out, out.State == greylist.FirstContact, err
	}
	keep := (c.Rule.Keep + slack).Milliseconds()
	if ok, err := s.swap(ctx, creditKey, value, rest.next, keep); ok || err != nil {
		return out, out.State == greylist.FirstContact, err
	}
	if !out.State.Delays() && out.State != greylist.KnownClient { // others have passed at the same time
		out.Passes, err = s.countApart(ctx, c, creditKey, "")
	}
	return out, out.State == greylist.FirstContact, err
}

// load returns a value, empty when there is none.
func (s *Store) load(ctx context.Context, key string) (string, error) {
	cmd := redis.NewStringCmd(ctx, "get", key)
	err := s.do(ctx, cmd)
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return cmd.Val(), err
}

// countApart counts a pass for a credit, whose value is thought to be value.
func (s *Store) countApart(ctx context.Context, c *greylist.Contact, key, value string) (passes int, err error) {
	for range maxMerges {
		cr, _ := parseCredit(value)
		greylist.CountPass(c, &cr)
		if c.DryRun {
			return int(cr.Passes), nil
		}
		next := string(appendNumbers(nil, cr.First, cr.Last, cr.Counted, int64(cr.Passes)))
		ok, err := s.swap(ctx, key, value, next, (c.Rule.Keep + slack).Milliseconds())
		if ok || err != nil {
			return int(cr.Passes), err
		}
		if value, err = s.load(ctx, key); err != nil {
			return 0, err
		}
	}
	return 0, errContended
}

// takeApart takes from meters that are on several servers. They are asked
// first; when none refuses all are taken from, and if one does then, because
// another gateway was faster, what was taken from the others is given back.
func (s *Store) takeApart(ctx context.Context, now time.Time, takes []meter.Take, peek bool) ([]meter.Level, bool, error) {
	levels, taken, err := s.eachMeter(ctx, now, takes, true)
	if err != nil || peek || !all(taken) {
		return levels, all(taken), err
	}
	if levels, taken, err = s.eachMeter(ctx, now, takes, false); err == nil && all(taken) {
		return levels, true, nil
	}
	var back []meter.Take
	for i, t := range takes {
		if taken[i] && !levels[i].Over && t.Kind != meter.Distinct && t.Add > 0 {
			t.Add, t.Hard = -t.Add, false
			back = append(back, t)
		}
	}
	if len(back) > 0 {
		_, _, _ = s.eachMeter(ctx, now, back, false) // what cannot be given back fades
	}
	return levels, false, err
}

// eachMeter asks all meters at once, each by itself.
func (s *Store) eachMeter(ctx context.Context, now time.Time, takes []meter.Take, peek bool) ([]meter.Level, []bool, error) {
	levels, taken, errs := make([]meter.Level, len(takes)), make([]bool, len(takes)), make([]error, len(takes))
	var wg sync.WaitGroup
	for i := range takes {
		wg.Go(func() {
			var one []meter.Level
			if one, taken[i], errs[i] = s.takeTogether(ctx, now, takes[i:i+1], peek); errs[i] == nil {
				levels[i] = one[0]
			}
		})
	}
	wg.Wait()
	return levels, taken, errors.Join(errs...)
}

func all(taken []bool) bool { return !slices.Contains(taken, false) }
