package greylist

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

var rule = Rule{
	Delay: 2 * time.Minute, Window: 48 * time.Hour, Keep: 36 * 24 * time.Hour,
	MaxDelay: 4 * time.Hour, KnownAfter: 5, CountEvery: time.Hour,
}

func TestAdvance(t *testing.T) {
	const minute, hour = int64(60_000), int64(3_600_000)
	now := int64(1_000_000 * hour)
	for _, tt := range []struct {
		name     string
		t        Triplet
		c        Client
		p        Pair
		want     State
		wait     time.Duration
		attempts int
		passes   int
	}{
		{"first contact", Triplet{}, Client{}, Pair{}, FirstContact, 2 * time.Minute, 1, 0},
		{"a millisecond too early", Triplet{First: now - 2*minute + 1, Last: now - minute, Attempts: 1}, Client{}, Pair{First: now - 2*minute + 1, Last: now - minute}, EarlyRetry, time.Millisecond, 2, 0},
		{"exactly on time", Triplet{First: now - 2*minute, Last: now - minute, Attempts: 3}, Client{}, Pair{}, FirstPass, 0, 3, 1},
		{"clock stepped back", Triplet{First: now + hour, Last: now + hour, Attempts: 1}, Client{}, Pair{First: now + hour, Last: now + hour}, EarlyRetry, 2 * time.Minute, 2, 0},
		{"at the end of the window", Triplet{First: now - 48*hour, Last: now - hour, Attempts: 1}, Client{}, Pair{}, FirstPass, 0, 1, 1},
		{"after the window", Triplet{First: now - 48*hour - 1, Last: now - hour, Attempts: 1}, Client{}, Pair{}, FirstContact, 2 * time.Minute, 1, 0},
		{"passed before", Triplet{First: 1, Last: now - 35*24*hour, Attempts: 1, Passes: 4}, Client{}, Pair{}, KnownTriplet, 0, 1, 1},
		{"passed too long ago", Triplet{First: 1, Last: now - 36*24*hour - 1, Passes: 4}, Client{}, Pair{}, FirstContact, 2 * time.Minute, 1, 0},
		{"known client", Triplet{}, Client{Last: now - hour, Passes: 5}, Pair{}, KnownClient, 0, 0, 5},
		{"client known long ago", Triplet{}, Client{Last: now - 36*24*hour - 1, Passes: 5}, Pair{}, FirstContact, 2 * time.Minute, 1, 0},
		{"client not known yet", Triplet{}, Client{Last: now - hour, Passes: 4}, Pair{}, FirstContact, 2 * time.Minute, 1, 4},
		{"pair waits for max_delay", Triplet{}, Client{}, Pair{First: now - 4*hour, Last: now - hour}, Overdue, 0, 0, 1},
		{"pair has almost waited", Triplet{}, Client{}, Pair{First: now - 4*hour + 5, Last: now - hour}, FirstContact, 5 * time.Millisecond, 1, 0},
		{"pair forgotten", Triplet{}, Client{}, Pair{First: now - 100*hour, Last: now - 48*hour - 1}, FirstContact, 2 * time.Minute, 1, 0},
		{"a pass within the hour is not counted", Triplet{First: 1, Last: now - 1, Passes: 1}, Client{Last: now - 1, Counted: now - hour + 1, Passes: 2}, Pair{}, KnownTriplet, 0, 0, 2},
		{"a pass after the hour is", Triplet{First: 1, Last: now - 1, Passes: 1}, Client{Last: now - 1, Counted: now - hour, Passes: 2}, Pair{}, KnownTriplet, 0, 0, 3},
	} {
		got := Advance(&Contact{Time: time.UnixMilli(now), Rule: rule}, &tt.t, &tt.c, &tt.p)
		if got.State != tt.want || got.Wait != tt.wait || got.Attempts != tt.attempts || got.Passes != tt.passes {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if got.State.Delays() != (got.Wait > 0) {
			t.Errorf("%s: %v with a wait of %v", tt.name, got.State, got.Wait)
		}
	}
}

// Whatever a correspondent does, from however many clients: nobody is delayed
// for longer than max_delay, who was told to wait passes when he has, and who
// has passed is not delayed again within keep.
func TestPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		triplets := make([]Triplet, 3)
		clients := make([]Client, 3)
		var pair Pair
		now := time.UnixMilli(1e12)
		var waitingSince time.Time
		promised := make([]time.Time, len(triplets))
		for range rapid.IntRange(1, 60).Draw(t, "contacts") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(30*time.Minute/time.Millisecond)).Draw(t, "later")) * time.Millisecond)
			i := rapid.IntRange(0, len(triplets)-1).Draw(t, "client")
			passed := triplets[i].Passes > 0
			out := Advance(&Contact{Time: now, Rule: rule}, &triplets[i], &clients[i], &pair)
			if !out.State.Delays() {
				waitingSince = time.Time{}
				continue
			}
			if waitingSince.IsZero() {
				waitingSince = now
			}
			if waited := now.Sub(waitingSince); waited >= rule.MaxDelay {
				t.Fatalf("delayed after %v", waited)
			}
			if passed {
				t.Fatal("a triplet that has passed is delayed")
			}
			if !promised[i].IsZero() && !now.Before(promised[i]) {
				t.Fatalf("told to come at %v, delayed at %v", promised[i], now)
			}
			if out.Wait <= 0 || out.Wait > rule.Delay {
				t.Fatalf("a wait of %v", out.Wait)
			}
			promised[i] = now.Add(out.Wait)
		}
	})
}

// A client that has passed often enough is never delayed while it is seen
// within keep, and no pass is counted twice in count_every, however the
// contacts come and whatever the rule.
func TestKnownClientsAreNeverDelayed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rule
		r.KnownAfter = rapid.IntRange(0, 4).Draw(t, "known after")
		r.CountEvery = time.Duration(rapid.IntRange(0, 3).Draw(t, "count every")) * time.Hour
		var client Client
		triplets, pairs := make([]Triplet, 6), make([]Pair, 6)
		begin := time.UnixMilli(1e12)
		now, most := begin, 0
		for range rapid.IntRange(1, 80).Draw(t, "contacts") {
			now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "minutes")) * time.Minute)
			i := rapid.IntRange(0, len(triplets)-1).Draw(t, "triplet")
			known := r.KnownAfter > 0 && int(client.Passes) >= r.KnownAfter
			before := client
			out := Advance(&Contact{Time: now, Rule: r}, &triplets[i], &client, &pairs[i])
			if known != (out.State == KnownClient) {
				t.Fatalf("%d passes of %d: %v", before.Passes, r.KnownAfter, out.State)
			}
			if out.Passes != int(client.Passes) || client.Passes < before.Passes || client.Passes > before.Passes+1 {
				t.Fatalf("%d passes, before %d, told %d", client.Passes, before.Passes, out.Passes)
			}
			if !out.State.Delays() {
				most++
			}
			if r.CountEvery > 0 {
				most = min(most, 1+int(now.Sub(begin)/r.CountEvery))
			}
			if int(client.Passes) > most || r.KnownAfter > 0 && int(client.Passes) > r.KnownAfter {
				t.Fatalf("%d passes, at most %d can have been counted", client.Passes, most)
			}
			if !out.State.Delays() && client.Last != now.UnixMilli() {
				t.Fatal("a client that is seen is not kept")
			}
		}
	})
}

// Whatever stands in the store, from whatever clock, an outcome makes sense:
// what is delayed comes to an end, and no entry is left in the future but what
// was there.
func TestAnyStateHasAnOutcome(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := int64(1e12)
		at := func(name string) int64 {
			return rapid.SampledFrom([]int64{0, 1, now - 1e10, now - 1e7, now - 120_000, now - 1, now, now + 1, now + 1e7, now + 1e10}).Draw(t, name)
		}
		count := rapid.Uint32Range(0, 7)
		triplet := Triplet{First: at("first"), Last: at("last"), Attempts: count.Draw(t, "attempts"), Passes: count.Draw(t, "passes")}
		client := Client{Last: at("seen"), Counted: at("counted"), Passes: count.Draw(t, "client passes")}
		pair := Pair{First: at("pair first"), Last: at("pair last")}
		c := &Contact{Time: time.UnixMilli(now), Rule: rule}
		out := Advance(c, &triplet, &client, &pair)
		if out.State.Delays() != (out.Wait > 0) || out.Wait > rule.Delay {
			t.Fatalf("%v with a wait of %v", out.State, out.Wait)
		}
		if !out.State.Delays() {
			return
		}
		if triplet.First == 0 || triplet.First > now || pair.First == 0 || pair.First > now {
			t.Fatalf("%+v %+v is not remembered", triplet, pair)
		}
		c.Time = c.Time.Add(out.Wait)
		if again := Advance(c, &triplet, &client, &pair); again.State.Delays() {
			t.Fatalf("told to wait for %v, then %v", out.Wait, again.State)
		}
	})
}

func TestStates(t *testing.T) {
	for s, delays := range []bool{FirstContact: true, EarlyRetry: true, FirstPass: false, KnownTriplet: false, KnownClient: false, Overdue: false} {
		if State(s).Delays() != delays || State(s).String() == "unknown" {
			t.Errorf("%v: delays %v", State(s), !delays)
		}
	}
	if s := State(99).String(); s != "unknown" {
		t.Errorf("state 99 is %q", s)
	}
}
