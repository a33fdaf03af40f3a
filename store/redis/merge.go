package redis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"postern/greylist"
	"postern/store"
)

// mergeBatch is how many entries are merged in one go.
const mergeBatch = 500

// maxMerges bounds how often a merge is tried again when others change the
// same records.
const maxMerges = 8

var errContended = errors.New("changed by others again and again")

// merging is one record that entries are merged into.
type merging struct {
	key     string
	triplet string // for one that waits: the key under which its triplet would be
	entries []*greylist.Entry
	added   int // of them, written already
}

// MergeGreylist implements greylist.AdminStore. Records are read, merged here
// and put back unless they have changed meanwhile; a batch costs two round
// trips.
func (s *Store) MergeGreylist(ctx context.Context, entries []greylist.Entry, r *greylist.Rule, now time.Time) (out greylist.Merged, err error) {
	if err := s.Ping(ctx); err != nil { // behind the breaker; what follows is not
		return out, err
	}
	for len(entries) > 0 {
		n := min(mergeBatch, len(entries))
		if err := s.mergeBatch(ctx, entries[:n], r, now, &out); err != nil {
			return out, err
		}
		entries = entries[n:]
	}
	return out, nil
}

func (s *Store) mergeBatch(ctx context.Context, entries []greylist.Entry, r *greylist.Rule, now time.Time, out *greylist.Merged) error {
	byKey := make(map[string]int)
	var work []merging
	for i := range entries {
		e := &entries[i]
		if r.Over(e, now) {
			out.Old++
			continue
		}
		m, err := s.mergingOf(e)
		if err != nil {
			return err
		}
		name := m.key + "\x00" + m.triplet
		at, ok := byKey[name]
		if !ok {
			at = len(work)
			byKey[name] = at
			work = append(work, m)
		}
		work[at].entries = append(work[at].entries, e)
	}
	for range maxMerges {
		again, err := s.mergeOnce(ctx, work, r, now, out)
		if err != nil {
			return err
		}
		if work = again; len(work) == 0 {
			return nil
		}
	}
	return fmt.Errorf("store: redis: %w", errContended)
}

func (s *Store) mergingOf(e *greylist.Entry) (m merging, err error) {
	part := partOf(e.Sender, e.Recipient)
	switch e.Kind {
	case greylist.KindCredit:
		m.key = string(s.creditKey(nil, e.Credit))
	case greylist.KindTriplet:
		m.key = string(s.appendCorrespondence(nil, part, store.TripletKey, e.Match, e.Sender, e.Recipient))
	case greylist.KindWaiting:
		m.key = string(s.appendCorrespondence(nil, part, waitingKey, e.Sender, e.Recipient))
		m.triplet = string(s.appendCorrespondence(nil, part, store.TripletKey, e.Match, e.Sender, e.Recipient))
	default:
		err = fmt.Errorf("store: an entry of kind %q", e.Kind)
	}
	return m, err
}

// mergeOnce reads, merges and writes, and returns what others were changing.
func (s *Store) mergeOnce(ctx context.Context, work []merging, r *greylist.Rule, now time.Time, out *greylist.Merged) (again []merging, err error) {
	keys := make([]string, 0, 2*len(work))
	for i := range work {
		keys = append(keys, work[i].key)
		if work[i].triplet != "" {
			keys = append(keys, work[i].triplet)
		}
	}
	values, err := s.get(ctx, keys)
	if err != nil {
		return nil, err
	}
	pipe := s.client.Pipeline()
	type put struct {
		of    *merging
		cmd   *redis.Cmd
		taken int
	}
	var puts []put
	for i := range work {
		m := &work[i]
		old := values[0].value
		values = values[1:]
		if m.triplet != "" {
			passed := values[0].value != ""
			values = values[1:]
			switch {
			case passed:
				out.Known += len(m.entries)
				continue
			case old == "": // the newcomer takes its place in the room
				if err := s.newcomer(ctx, m.entries[0], r); err != nil {
					return nil, err
				}
				again = append(again, merging{m.key, m.triplet, m.entries, 1})
				continue
			}
		}
		next, last, taken := merge(m, old, now)
		taken = max(taken, m.added)
		if next == old {
			out.Taken += taken
			out.Known += len(m.entries) - taken
			continue
		}
		keep := time.UnixMilli(last).Sub(now) + r.Keep + slack
		if m.triplet != "" {
			keep = time.UnixMilli(last).Sub(now) + r.Window + slack
		}
		cmd := pipe.Eval(ctx, swapScript, []string{m.key}, old, next, max(keep, time.Second).Milliseconds())
		puts = append(puts, put{m, cmd, taken})
	}
	if len(puts) == 0 {
		return again, nil
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("%w: redis: %w", store.ErrUnavailable, err)
	}
	for _, p := range puts {
		if n, err := p.cmd.Int(); err != nil {
			return nil, fmt.Errorf("store: redis: answer of the script: %w", err)
		} else if n == 0 {
			again = append(again, *p.of)
			continue
		}
		out.Taken += p.taken
		out.Known += len(p.of.entries) - p.taken
	}
	return again, nil
}

// newcomer has a side wait from its first contact on, as if it had come then.
func (s *Store) newcomer(ctx context.Context, e *greylist.Entry, r *greylist.Rule) error {
	const never = 1000 * 24 * time.Hour // passes by itself
	_, _, err := s.touch(ctx, &greylist.Contact{
		Match: e.Match, Sender: e.Sender, Recipient: e.Recipient, Time: e.First,
		Rule: greylist.Rule{Delay: never, MaxDelay: never, Window: r.Window, Keep: r.Keep},
	})
	return err
}

// merge returns what a record is with the entries, when it was last seen, and
// how many of the entries told something new.
func merge(m *merging, old string, now time.Time) (next string, last int64, taken int) {
	count := func(changed bool) {
		if changed {
			taken++
		}
	}
	switch m.entries[0].Kind {
	case greylist.KindTriplet:
		t, _ := parseTriplet(old)
		for _, e := range m.entries {
			count(t.Merge(e, now))
		}
		return string(appendNumbers(nil, t.First, t.Last, int64(t.Attempts), int64(t.Passes))), t.Last, taken
	case greylist.KindCredit:
		cr, _ := parseCredit(old)
		for _, e := range m.entries {
			count(cr.Merge(e, now))
		}
		return string(appendNumbers(nil, cr.First, cr.Last, cr.Counted, int64(cr.Passes))), cr.Last, taken
	}
	w := parseWaiting(old)
	for _, e := range m.entries {
		count(w.Merge(e, now))
	}
	return string(appendWaiting(nil, &w)), w.Last, taken
}
