package redis

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"postern/greylist"
	"postern/store"
)

// Version 1 of the keys had all of a fleet under one hash tag. Triplets that
// have passed are taken over when they are next seen; the rest expires.

const oldSchema = "1"

func (s *Store) oldPrefix() string { return s.cfg.Prefix + ":" + oldSchema + ":{g}:" }

// lookForOld finds out whether there are keys of version 1 left.
func (s *Store) lookForOld(ctx context.Context) {
	found := false
	err := s.scan(ctx, escape(s.oldPrefix())+"t*", func(keys []string) (bool, error) {
		found = len(keys) > 0
		return !found, nil
	})
	if err == nil && !found { // else ask again later
		s.old.Store(false)
	}
}

// oldTriplet returns a triplet of version 1 that has passed.
func (s *Store) oldTriplet(ctx context.Context, c *greylist.Contact) (t greylist.Triplet, ok bool) {
	key := store.AppendKey([]byte(s.oldPrefix()), store.TripletKey, c.Match, c.Sender, c.Recipient)
	cmd := redis.NewStringCmd(ctx, "get", key)
	if err := s.do(ctx, cmd); err != nil {
		if !errors.Is(err, redis.Nil) {
			s.log.Debug("a triplet of an earlier version could not be looked for")
		}
		return t, false
	}
	var n [4]int64
	for i, f := range strings.SplitN(cmd.Val(), ":", 4) {
		v, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return t, false
		}
		n[i] = v
	}
	t = greylist.Triplet{First: n[0], Last: n[1], Attempts: uint32(n[2]), Passes: uint32(n[3])}
	return t, t.Passes > 0 && c.Time.UnixMilli()-t.Last <= c.Rule.Keep.Milliseconds()
}

// adopt writes a triplet of version 1 as one of this, and judges the contact
// again.
func (s *Store) adopt(ctx context.Context, c *greylist.Contact, t greylist.Triplet) (greylist.Outcome, error) {
	if c.DryRun {
		out, _, _ := greylist.Known(c, &t)
		return out, nil
	}
	key := s.appendCorrespondence(nil, partOf(c.Sender, c.Recipient), store.TripletKey, c.Match, c.Sender, c.Recipient)
	v := appendNumbers(nil, t.First, t.Last, int64(t.Attempts), int64(t.Passes))
	keep := time.Duration(t.Last-c.Time.UnixMilli())*time.Millisecond + c.Rule.Keep + slack
	if err := s.do(ctx, redis.NewBoolCmd(ctx, "set", key, v, "px", keep.Milliseconds(), "nx")); err != nil && !errors.Is(err, redis.Nil) {
		return greylist.Outcome{}, err
	}
	out, _, err := s.touch(ctx, c)
	return out, err
}
