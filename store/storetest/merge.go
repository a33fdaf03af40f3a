package storetest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"postern/greylist"
	"postern/store"
)

func mergeInto(t testing.TB, s store.Store, now time.Time, entries ...greylist.Entry) greylist.Merged {
	t.Helper()
	m, err := s.MergeGreylist(context.Background(), entries, &Rule, now)
	if err != nil {
		t.Fatalf("MergeGreylist: %v", err)
	}
	return m
}

// merge: what entries tell is known afterwards, and nothing less.
func merge(t *testing.T, s store.Store) {
	const day = 24 * time.Hour
	now := base
	triplet := greylist.Entry{
		Kind: "triplet", Match: "org:a.example", Sender: "s@a.example", Recipient: "r@b.example",
		First: now.Add(-9 * day), Last: now.Add(-2 * day), Attempts: 2, Passes: 5,
	}
	credit := greylist.Entry{Kind: "credit", Credit: "org:a.example", First: now.Add(-9 * day), Last: now.Add(-2 * day), Counted: now.Add(-3 * day), Passes: 7}
	// Two sides wait in one correspondence, one of them for almost long enough.
	early := greylist.Entry{Kind: "waiting", Match: "net:1", Sender: "s@c.example", Recipient: "r@b.example", First: now.Add(-time.Minute), Last: now.Add(-time.Second), Attempts: 3}
	late := greylist.Entry{Kind: "waiting", Match: "net:2", Sender: "s@c.example", Recipient: "r@b.example", First: now.Add(-10 * time.Second), Last: now.Add(-10 * time.Second), Attempts: 1}
	over := triplet
	over.Match, over.Last = "org:old.example", now.Add(-Rule.Keep-time.Second)
	gone := early
	gone.Recipient, gone.First = "other@b.example", now.Add(-Rule.Window-time.Second)
	all := []greylist.Entry{triplet, credit, early, late, over, gone}
	if m, want := mergeInto(t, s, now, all...), (greylist.Merged{Taken: 4, Old: 2}); m != want {
		t.Errorf("merged %+v, want %+v", m, want)
	}
	before := dump(t, s, now)
	if m, want := mergeInto(t, s, now, all...), (greylist.Merged{Known: 4, Old: 2}); m != want {
		t.Errorf("merged again: %+v, want %+v", m, want)
	}
	if after := dump(t, s, now); !slices.Equal(before, after) || len(after) != 4 {
		t.Errorf("merging twice changed\n%q\nto\n%q", before, after)
	}
	// What is less than known changes nothing; what goes beyond in one thing adds that.
	less := triplet
	less.First, less.Last, less.Attempts, less.Passes = now.Add(-day), now.Add(-5*day), 1, 1
	if m := mergeInto(t, s, now, less); m.Known != 1 || !slices.Equal(before, dump(t, s, now)) {
		t.Errorf("less known afterwards: %+v\n%q", m, dump(t, s, now))
	}
	more := credit
	more.First, more.Last, more.Counted, more.Passes = now.Add(-day), now.Add(time.Hour), now.Add(-8*day), 2
	if m := mergeInto(t, s, now, more); m.Taken != 1 {
		t.Errorf("a later last time: %+v", m)
	}
	for _, e := range entriesOf(t, s, greylist.Filter{Kind: "credit"}, now) {
		if !e.First.Equal(credit.First) || !e.Last.Equal(now) || !e.Counted.Equal(credit.Counted) || e.Passes != 7 {
			t.Errorf("credit %+v: want the earliest first, the latest last up to now, and 7 passes", e)
		}
	}

	// The contacts find it so.
	c := greylist.Contact{Match: "org:a.example", Credit: "org:a.example", Sender: "s@a.example", Recipient: "r@b.example", Time: now, DryRun: true}
	if out := touch(t, s, c); out.State != greylist.KnownTriplet || out.Attempts != 2 || !out.First.Equal(triplet.First) {
		t.Errorf("triplet: %+v", out)
	}
	c.Recipient = "new@b.example"
	if out := touch(t, s, c); out.State != greylist.KnownClient || out.Passes != 7 {
		t.Errorf("credit: %+v", out)
	}
	w := greylist.Contact{Match: "net:1", Sender: "s@c.example", Recipient: "r@b.example", Time: now}
	if out := touch(t, s, w); out.State != greylist.EarlyRetry || out.Wait != Rule.Delay-time.Minute || out.Attempts != 4 {
		t.Errorf("one that waits: %+v", out)
	}
	w.Time = early.First.Add(Rule.Delay)
	if out := touch(t, s, w); out.State != greylist.FirstPass {
		t.Errorf("one that has waited: %+v", out)
	}
	w.Match = "net:2"
	if out := touch(t, s, w); out.State != greylist.EarlyRetry || !out.First.Equal(late.First) {
		t.Errorf("the other: %+v", out)
	}
	// Who has passed does not wait again.
	if m := mergeInto(t, s, w.Time, early); m.Known != 1 {
		t.Errorf("one that waits and has passed: %+v", m)
	}
	// A side that this store knows to wait for longer still does.
	later := late
	later.First, later.Last = now.Add(-time.Second), now.Add(-time.Second)
	mergeInto(t, s, w.Time, later)
	if out := touch(t, s, w); out.State != greylist.EarlyRetry || !out.First.Equal(late.First) {
		t.Errorf("a later first contact was merged: %+v", out)
	}
	if _, err := s.MergeGreylist(context.Background(), []greylist.Entry{{Kind: "pair", Last: now}}, &Rule, now); err == nil {
		t.Error("an unknown kind was taken")
	}
}

func entriesOf(t testing.TB, s store.Store, f greylist.Filter, now time.Time) (out []greylist.Entry) {
	t.Helper()
	if err := s.ListGreylist(context.Background(), f, now, func(e greylist.Entry) bool {
		out = append(out, e)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// dump is all that a store knows, in an order of its own.
func dump(t testing.TB, s store.Store, now time.Time) (out []string) {
	t.Helper()
	ms := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.UnixMilli()
	}
	for _, e := range entriesOf(t, s, greylist.Filter{}, now) {
		out = append(out, fmt.Sprintf("%s %q %q %q %q first %d last %d counted %d since %d, %d attempts, %d passes",
			e.Kind, e.Match, e.Credit, e.Sender, e.Recipient, ms(e.First), ms(e.Last), ms(e.Counted), ms(e.Since), e.Attempts, e.Passes))
	}
	slices.Sort(out)
	return out
}

// moving: a store that takes all entries of another knows the same.
func moving(t *testing.T, open func(t testing.TB) store.Store) {
	from, to := open(t), open(t)
	defer closeStore(t, from)
	defer closeStore(t, to)
	for i := range 300 {
		c := greylist.Contact{
			Match: fmt.Sprintf("net:%d", i%70), Credit: fmt.Sprintf("net:%d x.example", i%70),
			Sender: fmt.Sprintf("s%d@x.example", i%90), Recipient: fmt.Sprintf("r%d@b.example", i%40), Time: base.Add(time.Duration(i) * time.Second),
		}
		touch(t, from, c)
		if i%3 == 0 {
			c.Time = c.Time.Add(Rule.Delay)
			touch(t, from, c)
		}
	}
	now := base.Add(time.Hour)
	entries := entriesOf(t, from, greylist.Filter{}, now)
	if m := mergeInto(t, to, now, entries...); m.Taken+m.Known != len(entries) || m.Old != 0 {
		t.Errorf("merged %+v of %d", m, len(entries))
	}
	if a, b := dump(t, from, now), dump(t, to, now); !slices.Equal(a, b) {
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Errorf("%d and %d entries; the first that differ:\n%s\n%s", len(a), len(b), a[i], b[i])
				break
			}
		}
	}
}
