package limit

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/admintest"
	"postern/policy"
)

// A quota that is raised lets as many through, on all gateways, for as long.
func TestRaisedQuota(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "q", Key: []string{"login"}, Quota: quota("2/day")}))
	// Before there is a meter.
	if _, err := b.Raise(t.Context(), "q/day/ann", 4, time.Hour, noon); err != nil {
		t.Fatal(err)
	}
	other := b.other()
	other.shared.raises.refresh(t.Context(), other.log)
	for i, gateway := range []*bench{b, other, b, other} {
		gateway.says(rcpt(fmt.Sprint(i), "a@example.com"), policy.Continue, "")
	}
	other.says(rcpt("5", "a@example.com"), policy.Defer, "450")
	meters, err := other.Top(t.Context(), "", 10, noon)
	if err != nil || len(meters) != 1 || meters[0].Used != 4 || meters[0].Most != 4 || !meters[0].Raised.Equal(noon.Add(time.Hour)) {
		t.Errorf("%+v, %v", meters, err)
	}
	// Nobody else has it.
	bob := rcpt("6", "a@example.com")
	for i, want := range []policy.Action{policy.Continue, policy.Continue, policy.Defer} {
		bob.SASL.Username, bob.Instance = "bob", fmt.Sprint("bob", i)
		b.says(bob, want, "")
	}
	// It ends by itself, also where nobody has read it since.
	if _, err := b.Raise(t.Context(), "q/day/ann", 10, time.Hour, noon); err != nil {
		t.Fatal(err)
	}
	late := rcpt("7", "a@example.com")
	late.Time = noon.Add(time.Hour - time.Second)
	b.says(late, policy.Continue, "")
	late.Time, late.Instance = noon.Add(time.Hour), "8"
	b.says(late, policy.Defer, "450")
	if all, err := b.Raised(t.Context(), late.Time); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

// A rate that is raised is higher in the long run too; what was used stays used.
func TestRaisedRate(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "r", Unit: "recipients", Rate: rate("60/1h"), Burst: 4}))
	n := 0
	pass := func(at time.Time, want int) {
		t.Helper()
		for i := range want + 1 {
			n++
			req := rcpt(fmt.Sprint(n), "a@example.com")
			req.Time = at
			b.says(req, map[bool]policy.Action{true: policy.Continue, false: policy.Defer}[i < want], "")
		}
	}
	const key = "r/rate/192.0.2.7"
	used := func(at time.Time) string {
		t.Helper()
		meters, err := b.Top(t.Context(), "", 10, at)
		if err != nil || len(meters) != 1 {
			t.Fatal(meters, err)
		}
		return fmt.Sprint(meters[0].Used, " of ", meters[0].Most)
	}
	pass(noon, 4)
	if _, err := b.Raise(t.Context(), key, 12, time.Hour, noon); err != nil {
		t.Fatal(err)
	}
	if got := used(noon); got != "4 of 12" {
		t.Errorf("raised: %s", got)
	}
	pass(noon, 8)
	pass(noon.Add(time.Minute), 3) // three times as many a minute
	// To more still.
	if _, err := b.Raise(t.Context(), key, 24, time.Hour, noon.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	pass(noon.Add(time.Minute), 12)
	if err := b.CancelRaise(t.Context(), key, noon); err != nil {
		t.Fatal(err)
	}
	// A full meter stays a full one.
	if got := used(noon.Add(time.Minute)); got != "4 of 4" {
		t.Errorf("cancelled: %s", got)
	}
	pass(noon.Add(2*time.Minute), 1)
}

// Who has a raise when the daemon starts has it at the first request.
func TestRaiseSurvivesARestart(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "q", Quota: quota("1/day")}))
	if _, err := b.Raise(t.Context(), "q/day/192.0.2.7", 2, time.Hour, noon); err != nil {
		t.Fatal(err)
	}
	b = b.other()
	b.Start()
	defer b.Stop()
	b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	b.says(rcpt("2", "a@example.com"), policy.Continue, "")
	b.says(rcpt("3", "a@example.com"), policy.Defer, "450")
	if b.store.asks != 3 {
		t.Errorf("the store was asked %d times for 3 requests", b.store.asks)
	}
	b.Stop() // twice
}

func TestRaiseRefuses(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "q", Quota: quota("5/day")}, Rule{Name: "d", Unit: "distinct-senders", Quota: quota("5/day")}))
	for name, tt := range map[string]struct {
		key  string
		to   int64
		long time.Duration
		want string
	}{
		"no such rule":    {"x/day/a", 9, time.Hour, "no rule has a meter"},
		"no such period":  {"q/month/a", 9, time.Hour, "no rule has a meter"},
		"no rate":         {"q/rate/a", 9, time.Hour, "no rule has a meter"},
		"nobody":          {"q/day/", 9, time.Hour, "no rule has a meter"},
		"not more":        {"q/day/a", 5, time.Hour, "allows 5 already"},
		"too many":        {"q/day/a", maxUnits + 1, time.Hour, "more than can be counted"},
		"too many kept":   {"d/day/a", maxDistinct + 1, time.Hour, "more than can be counted"},
		"too short":       {"q/day/a", 9, time.Second, "out of range"},
		"not for so long": {"q/day/a", 9, 400 * 24 * time.Hour, "out of range"},
	} {
		if _, err := b.Raise(t.Context(), tt.key, tt.to, tt.long, noon); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range maxRaises {
		if _, err := b.Raise(t.Context(), fmt.Sprint("q/day/u", i), 9, time.Hour, noon); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Raise(t.Context(), "q/day/one-more", 9, time.Hour, noon); err == nil || !strings.Contains(err.Error(), "cancel one") {
		t.Error(err)
	}
	// Those that have ended make room.
	if _, err := b.Raise(t.Context(), "q/day/one-more", 9, time.Hour, noon.Add(time.Hour)); err != nil {
		t.Error(err)
	}
}

// What cannot be read leaves what is known, and is said once.
func TestRaisesUnread(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "q", Quota: quota("1/day")}))
	if _, err := b.Raise(t.Context(), "q/day/192.0.2.7", 2, time.Hour, noon); err != nil {
		t.Fatal(err)
	}
	core, logged := observer.New(zap.WarnLevel)
	b.raises.err = errors.New("gone")
	for range 3 {
		b.shared.raises.refresh(t.Context(), zap.New(core))
	}
	if logged.Len() != 1 {
		t.Errorf("%d lines", logged.Len())
	}
	b.raises.err = nil
	b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	b.says(rcpt("2", "a@example.com"), policy.Continue, "")
	b.raises.held[raisesKey] = "{"
	b.shared.raises.refresh(t.Context(), zap.New(core))
	if _, ok := b.shared.raises.of("q/day/192.0.2.7", noon); !ok {
		t.Error("a value that makes no sense takes a raise away")
	}
}

func TestRaiseCalls(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "q", Quota: quota("1/day")}))
	a := Admin{admintest.Serve(t, b.Calls())}
	key := "q/day/" + strings.Repeat("a ", 3) + "?&%"
	one, err := a.Raise(t.Context(), key, 9, time.Hour)
	if err != nil || one.Key != key || one.To != 9 {
		t.Fatalf("%+v, %v", one, err)
	}
	all, err := a.Raised(t.Context())
	if err != nil || len(all) != 1 || all[0].Key != key {
		t.Errorf("%+v, %v", all, err)
	}
	if s := b.Status(); s.Raised != 1 {
		t.Errorf("%+v", s)
	}
	if err := a.CancelRaise(t.Context(), key); err != nil {
		t.Error(err)
	}
	if err := a.CancelRaise(t.Context(), key); err == nil || !strings.Contains(err.Error(), "is not raised") {
		t.Error(err)
	}
	if all, err = a.Raised(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := a.Raise(t.Context(), "x/day/a", 9, time.Hour); err == nil || !strings.Contains(err.Error(), "no rule") {
		t.Error(err)
	}
}
