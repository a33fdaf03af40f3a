package limit

import (
	"fmt"
	"testing"
	"time"

	"postern/policy"
	"postern/store"
	"postern/store/bolt"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Faults that other programs of this kind have had.

// A message that is refused at the last of its 200 recipients, of which nothing
// is sent, used up the quota of its sender.
func TestFaultLastOf200RecipientsUsesUpTheQuota(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "r", Key: []string{"login"}, Unit: "recipients", Quota: quota("300/day")}))
	b.says(at(policy.StageData, rcpt("0", "")), policy.Continue, "")
	for i := range 101 {
		b.says(rcpt("before", fmt.Sprint(i, "@example.com")), policy.Continue, "")
	}
	for i := range 199 {
		b.says(rcpt("1", fmt.Sprint(i, "@example.com")), policy.Continue, "")
	}
	b.says(rcpt("1", "last@example.com"), policy.Defer, "450")
	if n := b.held("r/day/ann"); n != 101 {
		t.Errorf("%d are used, want 101", n)
	}
}

// Requests without a login were all counted under one empty key.
func TestFaultWithoutALoginUnderOneEmptyKey(t *testing.T) {
	for _, key := range [][]string{{"login"}, {"login", "recipient"}, {"client", "login"}} {
		b := newBench(t, rules(Rule{Name: "r", Key: key, Quota: quota("1/day")}))
		for i := range 5 {
			req := rcpt(fmt.Sprint(i), "a@example.com")
			req.SASL = policy.SASL{}
			b.says(req, policy.Continue, "")
		}
		if len(b.store.held) != 0 {
			t.Errorf("%v: there are meters %v", key, b.store.held)
		}
	}
}

// A limit for each recipient counted the whole domain.
func TestFaultRecipientLimitOfTheWholeDomain(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "r", Key: []string{"recipient"}, Quota: quota("1/day")}))
	b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	b.says(rcpt("2", "b@example.com"), policy.Continue, "")
	b.says(rcpt("3", "a@example.net"), policy.Continue, "")
	b.says(rcpt("4", "a@example.com"), policy.Defer, "450")
}

// A clock that went forward and back again left meters full until it was there
// again.
func TestFaultClockSteps(t *testing.T) {
	for _, step := range []time.Duration{-400 * 24 * time.Hour, -time.Hour, 30 * time.Minute, 3 * time.Hour, 400 * 24 * time.Hour} {
		b := newBench(t, rules(Rule{Name: "r", Rate: rate("2/1h")}, Rule{Name: "q", Quota: quota("5/day")}, Rule{Name: "d", Unit: "distinct-senders", Quota: quota("1/day")}))
		n := 0
		ask := func(at time.Time) policy.Action {
			n++
			req := rcpt(fmt.Sprint(n), "a@example.com")
			req.Time = at
			v, err := b.Evaluate(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			return v.Action
		}
		for ask(noon.Add(step)) == policy.Continue { // until it is full
			continue
		}
		// Twice the time of the burst is the longest that anybody waits.
		waited := time.Duration(0)
		for ask(noon.Add(waited)) != policy.Continue && waited <= 400*24*time.Hour {
			waited += time.Minute
		}
		if waited > 2*time.Hour+time.Minute {
			t.Errorf("a step of %v: waited %v", step, waited)
		}
	}
}

// A restart began all limits anew.
func TestFaultRestartForgets(t *testing.T) {
	cfg := store.DefaultConfig()
	cfg.Path = t.TempDir() + "/state.db"
	for i, want := range []policy.Action{policy.Continue, policy.Continue, policy.Defer} {
		s, err := bolt.Open(cfg, zap.NewNop(), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		c, err := New(rules(Rule{Name: "r", Rate: rate("2/1h")}), Options{
			Store: s, Admin: store.SpaceOf(s, store.MeterSpace), Raises: store.SpaceOf(s, "limit-raise"), Log: zap.NewNop(), Registry: prometheus.NewRegistry(),
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := c.Evaluate(t.Context(), rcpt(fmt.Sprint(i), "a@example.com")); err != nil || v.Action != want {
			t.Errorf("start %d: %v, %v; want %v", i+1, v.Action, err, want)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
