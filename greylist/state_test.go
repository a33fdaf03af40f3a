package greylist

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var rule = Rule{
	Delay: 2 * time.Minute, Window: 48 * time.Hour, Keep: 36 * 24 * time.Hour,
	MaxDelay: 4 * time.Hour, KnownAfter: 3, KnownAge: 24 * time.Hour, CountEvery: time.Hour,
}

func TestAdvance(t *testing.T) {
	const minute, hour = int64(60_000), int64(3_600_000)
	const day = 24 * hour
	now := int64(1_000_000 * hour)
	waits := func(since, first, last int64, attempts uint32) Waiting {
		return Waiting{Since: since, Last: last, Side: Side{Match: "m", First: first, Last: last, Attempts: attempts}}
	}
	// other is a correspondence in which only another side waits.
	other := func(since, last int64) Waiting {
		return Waiting{Since: since, Last: last, Side: Side{Match: "other", First: since, Last: last, Attempts: 1}}
	}
	for _, tt := range []struct {
		name     string
		t        Triplet
		c        Credit
		w        Waiting
		want     State
		wait     time.Duration
		attempts int
		passes   int
	}{
		{"first contact", Triplet{}, Credit{}, Waiting{}, FirstContact, 2 * time.Minute, 1, 0},
		{"a millisecond too early", Triplet{}, Credit{}, waits(now-2*minute+1, now-2*minute+1, now-minute, 1), EarlyRetry, time.Millisecond, 2, 0},
		{"exactly on time", Triplet{}, Credit{}, waits(now-2*minute, now-2*minute, now-minute, 3), FirstPass, 0, 3, 1},
		{"clock stepped back", Triplet{}, Credit{}, waits(now+hour, now+hour, now+hour, 1), EarlyRetry, 2 * time.Minute, 2, 0},
		{"at the end of the window", Triplet{}, Credit{}, waits(now-48*hour, now-48*hour, now-hour, 1), FirstPass, 0, 1, 1},
		{"after the window", Triplet{}, Credit{}, waits(now-48*hour-1, now-48*hour-1, now-48*hour-1, 1), FirstContact, 2 * time.Minute, 1, 0},
		{"after the window, and the correspondence waits", Triplet{}, Credit{}, waits(now-48*hour-1, now-48*hour-1, now-hour, 1), Overdue, 0, 0, 1},
		{"passed before", Triplet{First: 1, Last: now - 35*day, Attempts: 1, Passes: 4}, Credit{}, Waiting{}, KnownTriplet, 0, 1, 1},
		{"passed, and seen as long ago as can be", Triplet{First: 1, Last: now - 36*day, Passes: 1}, Credit{}, Waiting{}, KnownTriplet, 0, 0, 1},
		{"a triplet without a pass is none", Triplet{First: 1, Last: now}, Credit{}, Waiting{}, FirstContact, 2 * time.Minute, 1, 0},
		{"nor is one without a beginning", Triplet{Last: now, Passes: 3}, Credit{}, Waiting{}, FirstContact, 2 * time.Minute, 1, 0},
		{"passed too long ago", Triplet{First: 1, Last: now - 36*day - 1, Passes: 4}, Credit{}, Waiting{}, FirstContact, 2 * time.Minute, 1, 0},
		{"passed, by a clock that was ahead", Triplet{First: now + hour, Last: now + day, Attempts: 1, Passes: 4}, Credit{}, Waiting{}, KnownTriplet, 0, 1, 0},
		{"credit", Triplet{}, Credit{First: now - day, Last: now - hour, Counted: now - hour, Passes: 3}, Waiting{}, KnownClient, 0, 0, 3},
		{"credit that is too young", Triplet{}, Credit{First: now - day + 1, Last: now - hour, Counted: now - hour, Passes: 9}, Waiting{}, FirstContact, 2 * time.Minute, 1, 9},
		{"credit, seen as long ago as can be", Triplet{}, Credit{First: 1, Last: now - 36*day, Passes: 5}, Waiting{}, KnownClient, 0, 0, 5},
		{"credit of long ago", Triplet{}, Credit{First: 1, Last: now - 36*day - 1, Passes: 5}, Waiting{}, FirstContact, 2 * time.Minute, 1, 0},
		{"no credit yet", Triplet{}, Credit{First: now - 9*day, Last: now - hour, Passes: 2}, Waiting{}, FirstContact, 2 * time.Minute, 1, 2},
		{"credit by a clock that was ahead", Triplet{}, Credit{First: now + day, Last: now + day, Counted: now + day, Passes: 5}, Waiting{}, FirstContact, 2 * time.Minute, 1, 5},
		{"the correspondence waits for max_delay", Triplet{}, Credit{}, other(now-4*hour, now-hour), Overdue, 0, 0, 1},
		{"it has almost waited", Triplet{}, Credit{}, other(now-4*hour+5, now-hour), FirstContact, 5 * time.Millisecond, 1, 0},
		{"it was tried as long ago as can be", Triplet{}, Credit{}, other(now-100*hour, now-48*hour), Overdue, 0, 0, 1},
		{"it is forgotten", Triplet{}, Credit{}, other(now-100*hour, now-48*hour-1), FirstContact, 2 * time.Minute, 1, 0},
		{"a pass in the same hour is not looked at", Triplet{First: 1, Last: now, Passes: 1}, Credit{First: 1, Last: now - 1, Counted: now - 2*hour, Passes: 1}, Waiting{}, KnownTriplet, 0, 0, 0},
		{"a pass within an hour of the last is not counted", Triplet{First: 1, Last: now - 1, Passes: 1}, Credit{First: 1, Last: now - 1, Counted: now - hour + 1, Passes: 1}, Waiting{}, KnownTriplet, 0, 0, 1},
		{"a pass after the hour is", Triplet{First: 1, Last: now - 1, Passes: 1}, Credit{First: 1, Last: now - 1, Counted: now - hour, Passes: 1}, Waiting{}, KnownTriplet, 0, 0, 2},
		{"a pass counted by a clock that was ahead", Triplet{First: 1, Last: now - hour, Passes: 1}, Credit{First: 1, Last: now + day, Counted: now + day, Passes: 1}, Waiting{}, KnownTriplet, 0, 0, 1},
	} {
		got := Advance(&Contact{Match: "m", Credit: "c", Time: time.UnixMilli(now), Rule: rule}, &tt.t, &tt.c, &tt.w)
		if got.State != tt.want || got.Wait != tt.wait || got.Attempts != tt.attempts || got.Passes != tt.passes {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if got.State.Delays() != (got.Wait > 0) {
			t.Errorf("%s: %v with a wait of %v", tt.name, got.State, got.Wait)
		}
		if passed := got.State == FirstPass || got.State == Overdue; passed && (tt.t.Passes != 1 || tt.w.find("m") != nil) {
			t.Errorf("%s: %+v %+v after a pass", tt.name, tt.t, tt.w)
		}
	}
}

// Who earns nothing has no credit, and leaves none.
func TestNobodysCredit(t *testing.T) {
	for name, edit := range map[string]func(*Contact){
		"nobody":          func(c *Contact) { c.Credit = "" },
		"known_after = 0": func(c *Contact) { c.Rule.KnownAfter = 0 },
	} {
		c := &Contact{Match: "m", Credit: "c", Time: time.UnixMilli(1e12), Rule: rule}
		edit(c)
		cr := Credit{First: 1, Last: 1e12, Counted: 1, Passes: 9}
		before := cr
		var tr Triplet
		var w Waiting
		if out := Advance(c, &tr, &cr, &w); out.State != FirstContact || out.Passes != 0 {
			t.Errorf("%s: %+v", name, out)
		}
		c.Time = c.Time.Add(rule.Delay)
		if out := Advance(c, &tr, &cr, &w); out.State != FirstPass || cr != before {
			t.Errorf("%s: %+v, %+v", name, out, cr)
		}
	}
}

// Where all places of a correspondence are taken, the one that came last and
// was not tried again makes room; who has waited for longest stays.
func TestSidesOfACorrespondence(t *testing.T) {
	now := time.UnixMilli(1e12)
	var w Waiting
	touch := func(match string) Outcome {
		now = now.Add(time.Second)
		var tr Triplet
		return Advance(&Contact{Match: match, Time: now, Rule: rule}, &tr, new(Credit), &w)
	}
	touch("honest")
	for i := range 3 * MaxSides {
		if out := touch(string(rune('A' + i))); out.State != FirstContact {
			t.Fatalf("side %d: %v", i, out.State)
		}
	}
	if 1+len(w.More) != MaxSides {
		t.Errorf("%d sides are kept", 1+len(w.More))
	}
	if out := touch("honest"); out.State != EarlyRetry {
		t.Errorf("who came first: %v", out.State)
	}
	if w.find("A") == nil || w.find(string(rune('A'+3*MaxSides-1))) == nil || w.find("H") != nil {
		t.Errorf("%+v", w)
	}
	touch("A")
	if !w.Forget("honest") || w.Forget("honest") || w.find("A") == nil || 1+len(w.More) != MaxSides-1 {
		t.Errorf("%+v", w)
	}
	for w.Side.First != 0 {
		if !w.Forget(w.Side.Match) {
			t.Fatal("a side cannot be forgotten")
		}
	}
	if w.More != nil {
		t.Errorf("%+v", w)
	}
}

func TestWhoMakesRoom(t *testing.T) {
	for _, tt := range []struct {
		name  string
		sides [MaxSides]Side // Side, then More
		want  int
	}{
		{"the last of equals", [MaxSides]Side{{First: 1}, {First: 2}, {First: 3}, {First: 4}, {First: 5}, {First: 6}, {First: 7}, {First: 8}}, 7},
		{"the last of those that came at once", [MaxSides]Side{{First: 8}, {First: 8}, {First: 8}, {First: 8}, {First: 8}, {First: 8}, {First: 8}, {First: 8}}, 7},
		{"the newest, wherever it stands", [MaxSides]Side{{First: 1}, {First: 2}, {First: 9}, {First: 4}, {First: 5}, {First: 6}, {First: 7}, {First: 8}}, 2},
		{"the first side", [MaxSides]Side{{First: 9}, {First: 2}, {First: 3}, {First: 4}, {First: 5}, {First: 6}, {First: 7}, {First: 8}}, 0},
		{"who tried once, before who tried twice", [MaxSides]Side{
			{First: 1, Attempts: 2}, {First: 2, Attempts: 1}, {First: 3, Attempts: 2}, {First: 4, Attempts: 2}, {First: 5, Attempts: 2}, {First: 6, Attempts: 2},
			{First: 7, Attempts: 2}, {First: 8, Attempts: 2},
		}, 1},
	} {
		w := Waiting{Side: tt.sides[0], More: slices.Clone(tt.sides[1:])}
		w.add("new")
		for i, s := range append([]Side{w.Side}, w.More...) {
			if isNew := s.Match == "new"; isNew != (i == tt.want) {
				t.Errorf("%s: side %d gone: %v", tt.name, i, isNew)
			}
		}
	}
}

// When one side passes, nobody waits in vain: max_delay begins anew for the others.
func TestAPassBeginsTheWaitAnew(t *testing.T) {
	var w Waiting
	start := time.UnixMilli(1e12)
	touch := func(match string, after time.Duration) Outcome {
		var tr Triplet
		return Advance(&Contact{Match: match, Time: start.Add(after), Rule: rule}, &tr, new(Credit), &w)
	}
	touch("a", 0)
	touch("b", 0)
	if out := touch("a", time.Hour); out.State != FirstPass {
		t.Fatalf("%+v", out)
	}
	if out := touch("c", 5*time.Hour-1*time.Second); out.State != FirstContact || out.Wait != time.Second {
		t.Errorf("before max_delay after the pass: %+v", out)
	}
	if out := touch("d", 5*time.Hour); out.State != Overdue {
		t.Errorf("max_delay after the pass: %+v", out)
	}
}

// A store that goes step by step hands in the credit as it stands.
func TestWhoEarnsNothingLeavesCreditAlone(t *testing.T) {
	c := &Contact{Match: "m", Time: time.UnixMilli(1e12), Rule: rule}
	c.Rule.Delay = 0
	var tr Triplet
	var w Waiting
	cr := Credit{First: 1, Last: 2, Counted: 3, Passes: 4}
	before := cr
	if out := Wait(c, &tr, &cr, &w); out.State != FirstPass || cr != before {
		t.Errorf("%+v, %+v", out, cr)
	}
}

func TestCounts(t *testing.T) {
	var n Counts
	for i, kind := range []string{KindTriplet, KindCredit, KindWaiting} {
		for range i + 1 {
			n.Add(&Entry{Kind: kind})
		}
	}
	n.Add(&Entry{Kind: "another"})
	if n != (Counts{Triplets: 1, Credits: 2, Waiting: 3}) {
		t.Errorf("%+v", n)
	}
}

// Whatever a correspondent does, from however many sides: nobody is delayed
// for longer than max_delay, who was told to wait passes when he has, and who
// has passed is not delayed again within keep.
func TestPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		triplets := make([]Triplet, 3)
		credits := make([]Credit, 3)
		var w Waiting
		now := time.UnixMilli(1e12)
		var waitingSince time.Time
		promised := make([]time.Time, len(triplets))
		for range rapid.IntRange(1, 60).Draw(t, "contacts") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(30*time.Minute/time.Millisecond)).Draw(t, "later")) * time.Millisecond)
			i := rapid.IntRange(0, len(triplets)-1).Draw(t, "side")
			passed := triplets[i].Passes > 0
			out := Advance(&Contact{Match: string(rune('a' + i)), Credit: "c", Time: now, Rule: rule}, &triplets[i], &credits[i], &w)
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

// A side with credit is never delayed while it is seen within keep, credit
// takes its passes and its age, and no pass is counted twice in count_every,
// however the contacts come and whatever the rule.
func TestCredit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rule
		r.KnownAfter = rapid.IntRange(0, 4).Draw(t, "known after")
		r.KnownAge = time.Duration(rapid.IntRange(0, 3).Draw(t, "known age")) * time.Hour
		r.CountEvery = time.Duration(rapid.IntRange(0, 3).Draw(t, "count every")) * time.Hour
		var credit Credit
		triplets, waiting := make([]Triplet, 6), make([]Waiting, 6)
		begin := time.UnixMilli(1e12)
		now, most := begin, 0
		for range rapid.IntRange(1, 80).Draw(t, "contacts") {
			now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "minutes")) * time.Minute)
			i := rapid.IntRange(0, len(triplets)-1).Draw(t, "triplet")
			has := r.KnownAfter > 0 && int(credit.Passes) >= r.KnownAfter && now.UnixMilli()-credit.First >= r.KnownAge.Milliseconds()
			passed := triplets[i].Passes > 0
			before := credit
			out := Advance(&Contact{Match: "m", Credit: "c", Time: now, Rule: r}, &triplets[i], &credit, &waiting[i])
			if has && out.State.Delays() || !passed && has != (out.State == KnownClient) {
				t.Fatalf("%d passes of %d: %v", before.Passes, r.KnownAfter, out.State)
			}
			if credit.Passes < before.Passes || credit.Passes > before.Passes+1 {
				t.Fatalf("%d passes, before %d", credit.Passes, before.Passes)
			}
			if !out.State.Delays() {
				most++
			}
			if r.CountEvery > 0 {
				most = min(most, 1+int(now.Sub(begin)/r.CountEvery))
			}
			if int(credit.Passes) > most {
				t.Fatalf("%d passes, at most %d can have been counted", credit.Passes, most)
			}
			if r.KnownAfter > 0 && (out.State == KnownClient || out.State == FirstPass) && credit.Last != now.UnixMilli() {
				t.Fatal("a side that is seen is not kept")
			}
		}
	})
}

// Whatever stands in the store, from whatever clock, an outcome makes sense:
// what is delayed comes to an end, and nothing is left in the future.
func TestAnyStateHasAnOutcome(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := int64(1e12)
		at := func(name string) int64 {
			return rapid.SampledFrom([]int64{0, 1, now - 1e10, now - 1e7, now - 120_000, now - 1, now, now + 1, now + 1e7, now + 1e10}).Draw(t, name)
		}
		count := rapid.Uint32Range(0, 7)
		triplet := Triplet{First: at("first"), Last: at("last"), Attempts: count.Draw(t, "attempts"), Passes: count.Draw(t, "passes")}
		credit := Credit{First: at("since"), Last: at("seen"), Counted: at("counted"), Passes: count.Draw(t, "credit")}
		w := Waiting{Since: at("waits since"), Last: at("waits last")}
		for i := range rapid.IntRange(0, MaxSides).Draw(t, "sides") {
			s := Side{Match: string(rune('a' + i)), First: max(1, at("side first")), Last: at("side last"), Attempts: count.Draw(t, "side attempts")}
			if i == 0 {
				w.Side = s
			} else {
				w.More = append(w.More, s)
			}
		}
		c := &Contact{Match: rapid.SampledFrom([]string{"a", "b", "z"}).Draw(t, "match"), Credit: "c", Time: time.UnixMilli(now), Rule: rule}
		out := Advance(c, &triplet, &credit, &w)
		if out.State.Delays() != (out.Wait > 0) || out.Wait > rule.Delay {
			t.Fatalf("%v with a wait of %v", out.State, out.Wait)
		}
		if !out.State.Delays() {
			return
		}
		if s := w.find(c.Match); s == nil || s.First == 0 || s.First > now || w.Since == 0 || w.Since > now || 1+len(w.More) > MaxSides {
			t.Fatalf("%+v is not remembered", w)
		}
		c.Time = c.Time.Add(out.Wait)
		if again := Advance(c, &triplet, &credit, &w); again.State.Delays() {
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
	for _, s := range []State{Overdue + 1, 99} {
		if got := s.String(); got != "unknown" {
			t.Errorf("state %d is %q", s, got)
		}
	}
}
