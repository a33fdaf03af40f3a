package limit

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"postern/policy"
)

// held returns what a meter holds at noon, in units.
func (b *bench) held(key string) int64 {
	b.t.Helper()
	meters, err := b.Top(b.t.Context(), key, 10, noon)
	if err != nil || len(meters) > 1 {
		b.t.Fatal(meters, err)
	}
	if len(meters) == 0 {
		return 0
	}
	return meters[0].Used
}

// goes asks, and then refuses in the name of a check before or behind, as the
// pipeline does.
func (b *bench) goes(req *policy.Request, by string) {
	b.t.Helper()
	var d policy.Decision
	if by != "before" {
		v, err := b.Evaluate(b.t.Context(), req)
		if err != nil {
			b.t.Fatal(err)
		}
		d.Verdict = v
		d.Steps = append(d.Steps, policy.Step{Check: b.Name(), Verdict: v})
	}
	if by != "" {
		d.Verdict = policy.Verdict{Action: policy.Reject}
		d.Steps = append(d.Steps, policy.Step{Check: by, Verdict: d.Verdict})
	}
	if d.Verdict.Action.Refuses() {
		b.Refund(b.t.Context(), req, &d)
	}
}

func counting(how string) Config {
	return rules(
		Rule{Name: "m", Key: []string{"login"}, Quota: quota("100/day"), Count: how},
		Rule{Name: "r", Key: []string{"login"}, Unit: "recipients", Rate: rate("100/1h"), Count: how},
		Rule{Name: "to", Key: []string{"recipient"}, Unit: "recipients", Quota: quota("100/day"), Count: how},
	)
}

// data is the request at DATA with so many recipients left.
func data(instance string, left int, one string) *policy.Request {
	req := rcpt(instance, "")
	if one != "" {
		req = rcpt(instance, one)
	}
	req.Stage, req.RecipientCount = policy.StageData, left
	return req
}

// What later checks refuse counts where what is asked counts, and not where
// what is accepted does.
func TestRefusedByOthers(t *testing.T) {
	for _, tt := range []struct {
		how        string
		m, r, a, b int64
	}{{"asked", 1, 3, 1, 2}, {"accepted", 1, 1, 1, 0}} {
		b := newBench(t, counting(tt.how))
		b.goes(rcpt("1", "b@example.com"), "rbl") // nothing of the message is left
		b.goes(rcpt("1", "b@example.com"), "rbl")
		b.goes(rcpt("1", "b@example.com"), "before") // not even asked
		b.goes(rcpt("1", "a@example.com"), "")
		b.goes(data("1", 1, "a@example.com"), "")
		if m, r, a, to := b.held("m/"), b.held("r/"), b.held("to/day/a@"), b.held("to/day/b@"); m != tt.m || r != tt.r || a != tt.a || to != tt.b {
			t.Errorf("%s: %d messages, %d recipients, %d to a, %d to b; want %+v", tt.how, m, r, a, to, tt)
		}
	}
}

// A message that is refused at DATA or at its end counts for nothing; one that
// goes on after a refusal pays again.
func TestRefusedAsAWhole(t *testing.T) {
	for _, stage := range []policy.Stage{policy.StageData, policy.StageEndOfMessage} {
		for _, by := range []string{"before", "headers"} {
			b := newBench(t, counting("accepted"))
			b.goes(rcpt("1", "a@example.com"), "")
			b.goes(rcpt("1", "b@example.com"), "")
			req := data("1", 2, "")
			req.Stage = stage
			b.goes(req, by)
			if m, r, a := b.held("m/"), b.held("r/"), b.held("to/day/a@"); m != 0 || r != 0 || a != 0 {
				t.Errorf("%s, %s: %d messages, %d recipients, %d to a are left", stage, by, m, r, a)
			}
			b.goes(req, "")
			if m, r, a := b.held("m/"), b.held("r/"), b.held("to/day/a@"); m != 1 || r != 2 || a != 1 {
				t.Errorf("%s, %s, and goes on: %d messages, %d recipients, %d to a", stage, by, m, r, a)
			}
			b.goes(req, by) // and is refused again
			if m, r := b.held("m/"), b.held("r/"); m != 0 || r != 0 {
				t.Errorf("%s, %s, again: %d messages, %d recipients", stage, by, m, r)
			}
		}
	}
}

// Postfix says at DATA how many recipients are left of those that it has asked
// about.
func TestRefusedByPostfix(t *testing.T) {
	b := newBench(t, counting("accepted"))
	for i := range 5 {
		b.goes(rcpt("1", fmt.Sprintf("u%d@example.com", i)), "")
	}
	b.goes(data("1", 2, ""), "")
	if m, r := b.held("m/"), b.held("r/"); m != 1 || r != 2 {
		t.Errorf("%d messages, %d recipients", m, r)
	}
	// Whose they were is not known: they stay counted.
	if a := b.held("to/day/u3@"); a != 1 {
		t.Errorf("%d to one of them", a)
	}
	// Of one that is left it is.
	b = newBench(t, counting("accepted"))
	for _, to := range []string{"a@example.com", "b@example.com"} {
		b.goes(rcpt("1", to), "")
	}
	b.goes(data("1", 1, "b@example.com"), "")
	if r, a, to := b.held("r/"), b.held("to/day/a@"), b.held("to/day/b@"); r != 1 || a != 0 || to != 1 {
		t.Errorf("%d recipients, %d to a, %d to b", r, a, to)
	}
	// Asked once more, as at the end of the message.
	req := data("1", 1, "b@example.com")
	req.Stage = policy.StageEndOfMessage
	b.goes(req, "")
	if r := b.held("r/"); r != 1 {
		t.Errorf("%d recipients", r)
	}
}

// A message that never comes to DATA counts for nothing once its client has
// begun another, or been silent; one that comes back pays again.
func TestGivenUp(t *testing.T) {
	from := func(port uint16, at time.Time, req *policy.Request) *policy.Request {
		req.Client.Port, req.Time = port, at
		return req
	}
	b := newBench(t, counting("accepted"))
	b.goes(from(1, noon, rcpt("1", "a@example.com")), "")
	b.goes(from(1, noon, rcpt("2", "a@example.com")), "")
	b.sweep(t.Context(), noon.Add(idle+time.Second))
	if r := b.held("r/"); r != 2 {
		t.Fatalf("%d are left where nobody has been seen to ask at DATA", r)
	}
	b = newBench(t, counting("accepted"))
	b.goes(from(9, noon, data("0", 1, "a@example.com")), "")
	b.goes(from(1, noon, rcpt("1", "a@example.com")), "")
	b.goes(from(1, noon, rcpt("1", "b@example.com")), "")
	b.goes(from(2, noon, rcpt("other", "c@example.com")), "")
	b.sweep(t.Context(), noon)
	if r := b.held("r/"); r != 3 {
		t.Fatalf("%d recipients before it is given up", r)
	}
	b.goes(from(1, noon, rcpt("2", "a@example.com")), "")
	b.sweep(t.Context(), noon)
	if m, r, a := b.held("m/"), b.held("r/"), b.held("to/day/a@"); m != 2 || r != 2 || a != 1 {
		t.Errorf("the next has begun: %d messages, %d recipients, %d to a", m, r, a)
	}
	b.goes(from(1, noon, data("2", 1, "a@example.com")), "")
	b.sweep(t.Context(), noon.Add(idle))
	if r := b.held("r/"); r != 2 {
		t.Errorf("before the time is over: %d", r)
	}
	b.sweep(t.Context(), noon.Add(idle+time.Second))
	if m, c := b.held("m/"), b.held("to/day/c@"); m != 1 || c != 0 {
		t.Errorf("the silent one: %d messages, %d to c", m, c)
	}
	b.goes(from(2, noon, data("other", 1, "c@example.com")), "")
	if m, c := b.held("m/"), b.held("to/day/c@"); m != 2 || c != 1 {
		t.Errorf("it comes back: %d messages, %d to c", m, c)
	}
	b.sweep(t.Context(), noon.Add(24*time.Hour))
	if s := b.shared.messages; len(s.waiting)+len(s.byClient)+len(s.left) != 0 {
		t.Errorf("%v, %v, %v are left", s.waiting, s.byClient, s.left)
	}
}

// What is kept of messages is bounded, and nothing of those that had to go is
// left.
func TestGivenUpIsBounded(t *testing.T) {
	b := newBench(t, counting("accepted"))
	b.shared.messages = newMessages(10)
	b.goes(data("0", 1, "a@example.com"), "")
	for i := range 100 {
		req := rcpt(fmt.Sprint("m", i), "a@example.com")
		req.Client.Port = uint16(i + 1)
		b.goes(req, "")
	}
	if s := b.shared.messages; len(s.byKey) != 10 || len(s.waiting) > 10 || len(s.byClient) > 10 {
		t.Errorf("%d, %d, %d", len(s.byKey), len(s.waiting), len(s.byClient))
	}
}

// What cannot be given back is logged, and the mail goes on.
func TestRefundFails(t *testing.T) {
	b := newBench(t, counting("accepted"))
	core, logged := observer.New(zap.WarnLevel)
	b.log = zap.New(core)
	b.goes(rcpt("1", "a@example.com"), "")
	b.store.err = errors.New("gone")
	b.goes(data("1", 1, "a@example.com"), "before")
	if logged.Len() != 1 {
		t.Errorf("%d lines", logged.Len())
	}
}

// Connections are counted when they come, and mail is not counted with them.
func TestConnections(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "c", Key: []string{"network"}, Unit: "connections", Rate: rate("2/1m")}, Rule{Name: "m", Quota: quota("1/day")}))
	connect := func() *policy.Request {
		req := at(policy.StageConnect, rcpt("x", ""))
		req.Sender, req.Helo, req.SASL = policy.Address{}, "", policy.SASL{}
		return req
	}
	b.says(connect(), policy.Continue, "")
	b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	b.says(connect(), policy.Continue, "")
	b.says(connect(), policy.Defer, "421 4.7.0 Too many connections, please try again in 30s")
	b.says(rcpt("1", "b@example.com"), policy.Continue, "")
	if n := len(b.shared.messages.byKey); n != 1 {
		t.Errorf("%d messages are known", n)
	}
}
