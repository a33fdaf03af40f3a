package journal

import (
	"fmt"
	"testing"
	"time"

	"postern/policy"
)

func TestShadowReport(t *testing.T) {
	reject := func(reason string) policy.Verdict { return policy.Verdict{Action: policy.Reject, Reason: reason} }
	shadowed := func(check, reason string) policy.Step {
		return policy.Step{Check: check, Outcome: policy.Shadowed, Verdict: reject(reason)}
	}
	ran := func(check string, v policy.Verdict) policy.Step { return policy.Step{Check: check, Verdict: v} }
	listed := policy.Decision{WouldCheck: "rbl", Would: reject("rbl-listed"), Steps: []policy.Step{shadowed("rbl", "rbl-listed")}}
	with := func(d policy.Decision, steps ...policy.Step) policy.Decision {
		d.Steps = append(append([]policy.Step(nil), d.Steps...), steps...)
		return d
	}
	grey := policy.Verdict{Action: policy.DeferIfPermit, Reason: "greylist-first-contact"}
	deferred := with(listed, ran("greylist", grey))
	deferred.Verdict, deferred.Check = grey, "greylist"
	j := inMemory(config())
	for i, d := range []policy.Decision{
		listed,
		with(listed, ran("greylist", policy.Verdict{Reason: "greylist-correspondent"})),
		with(listed, ran("greylist", policy.Verdict{Reason: "greylist-known-client"})),
		deferred,
		with(listed, shadowed("spf", "spf-fail")),
		{WouldCheck: "client", Would: reject("helo-invalid"), Steps: []policy.Step{ran("client", reject("helo-invalid"))}}, // its chain is in shadow
		{WouldCheck: "spf", Would: policy.Verdict{Action: policy.DeferIfPermit, Reason: "check-error"}, Steps: []policy.Step{{Check: "spf", Outcome: policy.TimedOut}}},
	} {
		req, _ := refused(time.Now(), i)
		if i == 4 {
			req.SASL.Username = "ann"
		}
		j.Record(req, &d)
	}
	got, err := Shadow(t.Context(), j, Filter{})
	if err != nil || got.Decisions != 7 || len(got.Checks) != 3 {
		t.Fatalf("%+v %v", got, err)
	}
	for i, want := range []string{
		"rbl 5 [{reject rbl-listed 5}] alone 3 good 3 map[correspondent:1 login:1 passed:1] samples S4 S2 S1 S0",
		"spf 2 [{reject spf-fail 1} {defer-if-permit check-error 1}] alone 1 good 1 map[login:1] samples S4 S6",
		"client 1 [{reject helo-invalid 1}] alone 1 good 0 map[] samples S5",
	} {
		c := got.Checks[i]
		text := fmt.Sprint(c.Check, " ", c.Decisions, " ", c.Would, " alone ", c.Alone, " good ", c.Good, " ", c.GoodBy, " samples")
		for _, s := range c.Samples {
			text += " " + s.Sender[:2]
			if s.Reference == "" || find(t, j, s.Reference) == nil {
				t.Errorf("reference %q of %s is not found", s.Reference, s.Sender)
			}
		}
		if text != want {
			t.Errorf("got  %s\nwant %s", text, want)
		}
	}
	if got, err := Shadow(t.Context(), j, Filter{Check: "spf"}); err != nil || got.Decisions != 2 || len(got.Checks) != 1 {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := Shadow(t.Context(), j, Filter{Since: time.Now().Add(time.Hour)}); err != nil || got.Decisions != 0 || len(got.Checks) != 0 {
		t.Errorf("%+v %v", got, err)
	}
}
