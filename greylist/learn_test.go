package greylist_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"

	"postern/greylist"
	"postern/policy"
)

func (w *world) learn(session string, past ...greylist.Past) greylist.Learned {
	w.t.Helper()
	out, err := w.check.Learn(w.t.Context(), session, past, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) past(ago time.Duration, client, name, sender, rcpt string) greylist.Past {
	return greylist.Past{Time: w.now.Add(-ago), Client: netip.MustParseAddr(client), Name: name, Sender: sender, Recipient: rcpt}
}

const day = 24 * time.Hour

// Who has written before is not delayed, and has earned what he would have.
func TestLearn(t *testing.T) {
	w := newWorld(t, nil)
	got := w.learn("one",
		w.past(100*day, "192.0.2.1", "mail.old.example", "a@old.example", "bob@example.com"),
		w.past(5*day, "192.0.2.1", "mail.org.example", "a@org.example", "bob@example.com"),
		w.past(4*day, "192.0.2.1", "mail.org.example", "b@org.example", "bob@example.com"),
		w.past(3*day, "192.0.2.2", "mail2.org.example", "c@org.example", "bob@example.com"),
		w.past(2*day, "198.51.100.1", "", "", "bob@example.com"),
		w.past(1*day, "198.51.100.1", "", "x@rare.example", "Bob@Example.com"),
		w.past(-day, "198.51.100.2", "", "y@ahead.example", "bob@example.com"),
	)
	if want := (greylist.Learned{Taken: 5, Exempt: 1, TooOld: 1}); got != want {
		t.Errorf("%+v", got)
	}
	w.want("the same", "greylist-known-triplet", w.request("192.0.2.1", "mail.org.example", "a@org.example", "bob@example.com"))
	w.want("another of a side with credit", "greylist-known-client", w.request("192.0.2.3", "mail3.org.example", "new@org.example", "ann@example.com"))
	w.want("a rare one", "greylist-known-triplet", w.request("198.51.100.1", "", "x@rare.example", "bob@example.com"))
	w.want("of a clock that was ahead", "greylist-known-triplet", w.request("198.51.100.2", "", "y@ahead.example", "bob@example.com"))
	w.want("one pass is no credit", "greylist-first-contact", w.request("198.51.100.1", "", "z@rare.example", "bob@example.com"))
	w.want("too old", "greylist-first-contact", w.request("192.0.2.1", "mail.old.example", "a@old.example", "bob@example.com"))
}

// The past does not make the present older.
func TestLearnKeepsWhatIsKnown(t *testing.T) {
	w := newWorld(t, func(c *greylist.Config) { c.KnownAge = 0; c.CountEvery = 0; c.KnownAfter = 2 })
	pass := func(client, name, sender, rcpt string) {
		w.ask(w.request(client, name, sender, rcpt))
		w.now = w.now.Add(10 * time.Minute)
		w.ask(w.request(client, name, sender, rcpt))
	}
	pass("192.0.2.1", "", "a@one.example", "bob@example.com")
	for range 2 {
		pass("203.0.113.1", "mail.big.example", "a@big.example", "bob@example.com")
	}
	w.ask(w.request("198.51.100.9", "", "w@waits.example", "bob@example.com"))
	if got, want := w.learn("two",
		w.past(30*day, "192.0.2.1", "", "a@one.example", "bob@example.com"),
		w.past(29*day, "203.0.113.1", "mail.big.example", "other@big.example", "ann@example.com"),
		w.past(28*day, "198.51.100.9", "", "w@waits.example", "bob@example.com"),
		w.past(27*day, "198.51.100.9", "", "w@waits.example", "bob@example.com"),
	), (greylist.Learned{Taken: 2, Known: 2}); got != want {
		t.Errorf("%+v", got)
	}
	w.want("who waited waits no longer", "greylist-known-triplet", w.request("198.51.100.9", "", "w@waits.example", "bob@example.com"))
	w.now = w.now.Add(30 * day)
	w.want("a triplet", "greylist-known-triplet", w.request("192.0.2.1", "", "a@one.example", "bob@example.com"))
	w.want("a credit", "greylist-known-client", w.request("203.0.113.1", "mail.big.example", "new@big.example", "bob@example.com"))
	// Another session looks again.
	if got, want := w.learn("three", w.past(time.Hour, "198.51.100.9", "", "w@waits.example", "bob@example.com")), (greylist.Learned{Known: 1}); got != want {
		t.Errorf("%+v", got)
	}
}

// Where requests have a result of SPF, past mail is asked for one.
func TestLearnBySPF(t *testing.T) {
	w := newWorld(t, nil)
	c, err := greylist.New(config(t, nil), greylist.Options{
		Hostname: "mx.example.com", Store: w.store, Names: judge(t), Log: zap.NewNop(), Metrics: w.reg, Previous: w.check,
		SPF: func(_ context.Context, req *policy.Request) policy.SPF {
			return policy.SPF{Result: "pass", Domain: req.Sender.Domain, Identity: "mailfrom"}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.check = c
	w.learn("one", w.past(day, "192.0.2.1", "", "a@org.example", "bob@example.com"))
	req := w.request("203.0.113.77", "", "a@org.example", "bob@example.com")
	req.Facts.SPF = policy.SPF{Result: "pass", Domain: "org.example", Identity: "mailfrom"}
	w.want("from another address", "greylist-known-triplet", req)
	w.want("without SPF", "greylist-first-contact", w.request("203.0.113.77", "", "a@org.example", "bob@example.com"))
}

// A side that has passed elsewhere has credit here, as far as it had there.
func TestLearnSides(t *testing.T) {
	w := newWorld(t, nil)
	c := w.check
	now := w.now
	client := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	past := []greylist.Past{
		{Time: now.Add(-day), First: now.Add(-9 * day), Client: client("192.0.2.7"), Sender: "x@known.example", Passes: 1000},
		{Time: now.Add(-day), First: now.Add(-9 * day), Client: client("198.51.100.7"), Name: "mx.own.example", Passes: 5},
		{Time: now.Add(-day), First: now.Add(-9 * day), Client: client("203.0.113.7"), Passes: 5},
		{Time: now.Add(-day), Client: client("203.0.113.8"), Sender: "x@few.example", Passes: 1},
		{Time: now.Add(-999 * day), Client: client("203.0.113.8"), Sender: "x@old.example", Passes: 9},
	}
	out, err := c.Learn(t.Context(), "one", past, now)
	if want := (greylist.Learned{Taken: 3, Unknown: 1, TooOld: 1}); err != nil || out != want {
		t.Errorf("%+v, %v; want %+v", out, err, want)
	}
	if out, err = c.Learn(t.Context(), "two", past, now); err != nil || out.Taken != 0 || out.Known != 3 {
		t.Errorf("again: %+v, %v", out, err)
	}
	for _, tt := range []struct {
		addr, name, sender string
		delayed            bool
	}{
		{"192.0.2.99", "", "new@known.example", false},
		{"198.51.100.99", "out.own.example", "new@own.example", false},
		{"198.51.100.99", "out.own.example", "new@other.example", true},
		{"203.0.113.8", "", "new@few.example", true},
		{"203.0.113.7", "", "new@any.example", true},
	} {
		v := w.ask(w.request(tt.addr, tt.name, tt.sender, "dora@example.com"))
		if got := v.Action != policy.Continue; got != tt.delayed {
			t.Errorf("%+v: %v", tt, v)
		}
	}
}
