package main

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/internal/policytest"
	"postern/internal/postgreytest"
)

// realPostgrey is the program, asked with a time of ours: policy_test_time is
// the attribute that its own test script sends.
type realPostgrey struct {
	*postgreytest.Server
	t testing.TB
}

func (p *realPostgrey) pass(a *attempt) bool {
	name := a.from.name
	if name == "" {
		name = "unknown"
	}
	action, err := p.Ask(policytest.Attrs{
		{"request", "smtpd_access_policy"}, {"client_address", a.from.addr.String()}, {"client_name", name}, {"sender", a.msg.from.Raw},
		{"recipient", a.msg.to.Raw}, {"instance", strconv.FormatUint(a.msg.seed, 16) + "." + strconv.Itoa(a.n)},
		{"policy_test_time", strconv.FormatInt(a.at.Unix(), 10)},
	})
	if err != nil {
		p.t.Fatalf("postgrey: %v", err)
	}
	return !strings.HasPrefix(strings.ToUpper(action), "DEFER")
}

// both asks model and program, and says where they differ.
type both struct {
	*postgrey
	real      *realPostgrey
	asked     int
	different int
}

func (b *both) pass(a *attempt) bool {
	b.asked++
	model, real := b.postgrey.pass(a), b.real.pass(a)
	if model != real {
		if b.different++; b.different <= 10 {
			b.real.t.Errorf("%s attempt %d of %s to %s from %s: model passes %v, postgrey %v",
				a.at.Format(time.DateTime), a.n, a.msg.from.Raw, a.msg.to.Raw, a.from.addr, model, real)
		}
	}
	return real
}

func TestModelIsPostgrey(t *testing.T) {
	b := &both{postgrey: newPostgrey(false), real: &realPostgrey{postgreytest.Start(t), t}}
	r := simulate(small(t), b)
	if b.different > 0 {
		t.Errorf("%d of %d decisions differ", b.different, b.asked)
	}
	t.Logf("%d decisions, %.1f %% of legitimate mail delayed", b.asked, r.legit.share(r.legit.delayed))
}
