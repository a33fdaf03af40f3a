package pipeline

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/policy"
)

var office = netip.MustParseAddr("10.9.1.2")

// gateway is a pipeline with a relay chain that permits one network, and an
// inbound chain whose greylist defers everybody.
type gateway struct {
	relay, inbound ChainConfig
	mode           policy.Mode // of access
	eyes           []Inspector
	permits        *Permits

	logs    *observer.ObservedLogs
	metrics *Metrics
}

func (g *gateway) build(t *testing.T) *Pipeline {
	t.Helper()
	access := &fake{name: "access", eval: func(_ context.Context, req *policy.Request) (policy.Verdict, error) {
		if req.Client.Addr == office {
			return policy.Verdict{Action: policy.Permit, Reason: "access-permitted"}, nil
		}
		return policy.Verdict{}, nil
	}}
	rbl := says("rbl", policy.Verdict{})
	verify := says("verify", policy.Verdict{Reason: "verify-known"})
	greylist := hinting{says("greylist", deferred)}
	greylist.traits = policy.Traits{Stages: policy.AllStages, Waits: true, Last: true}
	greylist.hint = func(*policy.Request) (policy.Verdict, bool) { return deferred, true }
	all := map[string]Step{}
	for _, s := range steps(access, rbl, verify, greylist) {
		if s.Check.Name() == "access" {
			s.Mode = g.mode
		}
		all[s.Check.Name()] = s
	}
	relay, inbound := DefaultChain(), DefaultChain()
	relay.Purpose, relay.Exempt, relay.Mode, relay.Checks = PurposeRelay, g.relay.Exempt, g.relay.Mode, []string{"access"}
	inbound.Mode, inbound.Checks = g.inbound.Mode, []string{"access", "rbl", "verify", "greylist"}
	core, logs := observer.New(zapcore.InfoLevel)
	g.logs, g.metrics = logs, NewMetrics(prometheus.NewRegistry())
	p, err := New(Options{
		Chains: map[string]ChainConfig{"inbound": inbound, "relay": relay}, Default: "inbound", Steps: all, Inspectors: g.eyes,
		Log: zap.New(core), Metrics: g.metrics, Permits: g.permits,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ask asks a chain about a recipient of a transaction.
func ask(p *Pipeline, chain string, edit ...func(*policy.Request)) *policy.Decision {
	req := &policy.Request{
		Time: time.Unix(1e9, 0), Stage: policy.StageRcpt, Context: chain, Instance: "123.65.7",
		Client: policy.Client{Addr: office, Port: 4711}, Sender: policy.Address{Raw: "ann@example.org"}, Recipient: policy.Address{Raw: "bob@example.com"},
	}
	for _, e := range edit {
		e(req)
	}
	d := new(policy.Decision)
	p.Decide(context.Background(), req, d)
	return d
}

// notAsked returns the checks that were skipped, and why.
func notAsked(d *policy.Decision) string {
	var out []string
	for _, s := range d.Steps {
		if s.Outcome == policy.Skipped {
			out = append(out, s.Check+": "+s.Error)
		}
	}
	return strings.Join(out, ", ")
}

// A permit of the relay chain exempts the recipient, and nobody else.
func TestPermitExempts(t *testing.T) {
	const exempt = "rbl: exempt by chain relay, greylist: exempt by chain relay"
	none := []string{}
	set := func(f func(*policy.Request)) func(*policy.Request) { return f }
	recipient := func(to string) func(*policy.Request) { return set(func(r *policy.Request) { r.Recipient.Raw = to }) }
	age := func(d time.Duration) func(*policy.Request) {
		return set(func(r *policy.Request) { r.Time = r.Time.Add(d) })
	}
	type edits = []func(*policy.Request)
	for _, tt := range []struct {
		name           string
		gateway        gateway
		first, second  edits // the relay chain's request, and the inbound chain's
		want           string
		refused        bool // by greylisting
		notEvenPermits bool
	}{
		{name: "the same recipient", want: exempt},
		{name: "at DATA", second: edits{func(r *policy.Request) { r.Stage = policy.StageData; r.RecipientCount = 1 }}, want: exempt},
		{name: "shortly before it is forgotten", second: edits{age(2 * time.Minute)}, want: exempt},
		{name: "a clock that steps back", second: edits{age(-time.Hour)}, want: exempt},
		{name: "the milter door joined to it", second: edits{func(r *policy.Request) { r.Joined, r.Instance = r.Instance, "milter.1.2.3" }}, want: exempt},
		{name: "without a port", first: edits{func(r *policy.Request) { r.Client.Port = 0 }}, second: edits{func(r *policy.Request) { r.Client.Port = 0 }}, want: exempt},
		{name: "other names", gateway: gateway{relay: ChainConfig{Exempt: &[]string{"verify", "greylist"}}}, want: "verify: exempt by chain relay, greylist: exempt by chain relay"},
		{name: "no names", gateway: gateway{relay: ChainConfig{Exempt: &none}}, refused: true},
		{name: "another recipient", second: edits{recipient("eve@example.com")}, refused: true},
		{name: "another sender", second: edits{func(r *policy.Request) { r.Sender.Raw = "" }}, refused: true},
		{name: "another transaction", second: edits{func(r *policy.Request) { r.Instance = "123.65.8" }}, refused: true},
		{name: "another client", second: edits{func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("10.9.1.3") }}, refused: true},
		{name: "another port", second: edits{func(r *policy.Request) { r.Client.Port++ }}, refused: true},
		{name: "the milter door joined to another", second: edits{func(r *policy.Request) { r.Joined = "9.9.9" }}, refused: true},
		{name: "too late", second: edits{age(2*time.Minute + 1)}, refused: true},
		{name: "without an instance", first: edits{func(r *policy.Request) { r.Instance = "" }}, second: edits{func(r *policy.Request) { r.Instance = "" }}, refused: true},
		{name: "without a recipient", first: edits{recipient("")}, second: edits{recipient("")}, refused: true},
		{name: "without a client", first: edits{func(r *policy.Request) { r.Client.Addr = netip.Addr{} }}, second: edits{func(r *policy.Request) { r.Client.Addr = netip.Addr{} }}, refused: true, notEvenPermits: true},
		{name: "a name that is too long", first: edits{recipient(strings.Repeat("x", maxPermitKey))}, second: edits{recipient(strings.Repeat("x", maxPermitKey))}, refused: true},
		{name: "a dry run changes nothing", first: edits{func(r *policy.Request) { r.DryRun = true }}, refused: true},
		{name: "a relay chain in shadow", gateway: gateway{relay: ChainConfig{Mode: policy.Shadow}}, refused: true, notEvenPermits: true},
		{name: "access in shadow", gateway: gateway{mode: policy.Shadow}, refused: true, notEvenPermits: true},
		{name: "not permitted", first: edits{func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.2.1") }}, second: edits{func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.2.1") }}, refused: true, notEvenPermits: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tt.gateway.build(t)
			if d := ask(p, "relay", tt.first...); (d.Verdict.Action == policy.Permit) == tt.notEvenPermits {
				t.Fatalf("the relay chain says %v", d.Verdict.Action)
			}
			d := ask(p, "inbound", tt.second...)
			if got := notAsked(d); got != tt.want || d.Verdict.Action.Refuses() != tt.refused {
				t.Errorf("not asked: %q; action %v", got, d.Verdict.Action)
			}
		})
	}
	// What the inbound chain says of a permit does not exempt: it permits nothing.
	p := (&gateway{}).build(t)
	if ask(p, "inbound"); !ask(p, "inbound").Verdict.Action.Refuses() {
		t.Error("an inbound chain's permit exempts")
	}
}

// At DATA and at the end of a message Postfix says how many recipients it has
// accepted, and names none if there are several.
func TestPermitOfAMessage(t *testing.T) {
	other := newExemption([]string{"rbl"}, "chain other", "relay-permitted")
	for _, tt := range []struct {
		name      string
		permitted []int // recipients, in the order in which they are asked for
		accepted  int
		edit      func(*Permits, *policy.Request)
		exempt    bool
	}{
		{name: "both", permitted: []int{1, 2}, accepted: 2, exempt: true},
		{name: "one asked for twice", permitted: []int{1, 2, 1}, accepted: 2, exempt: true},
		{name: "one of them", permitted: []int{1}, accepted: 2},
		{name: "one twice", permitted: []int{1, 1}, accepted: 2},
		{name: "one more, that Postfix has refused", permitted: []int{1, 2, 3}, accepted: 2},
		{name: "none", accepted: 2},
		{name: "not counted", permitted: []int{1, 2}},
		{name: "another transaction", permitted: []int{1, 2}, accepted: 2, edit: func(_ *Permits, r *policy.Request) { r.Instance = "9.9.9" }},
		{name: "another client", permitted: []int{1, 2}, accepted: 2, edit: func(_ *Permits, r *policy.Request) { r.Client.Port++ }},
		{name: "too late", permitted: []int{1, 2}, accepted: 2, edit: func(_ *Permits, r *policy.Request) { r.Time = r.Time.Add(permitAge + 1) }},
		{name: "exempt from different checks", permitted: []int{1}, accepted: 2, edit: func(p *Permits, r *policy.Request) {
			to := *r
			to.Recipient.Raw = "r2@example.com"
			p.remember(&to, other)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := gateway{permits: NewPermits()}
			p := g.build(t)
			for _, i := range tt.permitted {
				ask(p, "relay", func(r *policy.Request) { r.Recipient.Raw = fmt.Sprintf("r%d@example.com", i) })
			}
			d := ask(p, "inbound", func(r *policy.Request) {
				r.Stage, r.RecipientCount, r.Recipient = policy.StageData, tt.accepted, policy.Address{}
				if tt.edit != nil {
					tt.edit(g.permits, r)
				}
			})
			if exempt := !d.Verdict.Action.Refuses(); exempt != tt.exempt {
				t.Errorf("not asked: %q; action %v", notAsked(d), d.Verdict.Action)
			}
		})
	}
}

// A client may pipeline recipients, and one smtpd process after the other asks
// the two chains over connections of their own: what one recipient has earned
// no other gets, in any order.
func TestPermitsOfPipelinedRecipients(t *testing.T) {
	p := (&gateway{}).build(t)
	at := func(i int) func(*policy.Request) {
		return func(r *policy.Request) { r.Recipient.Raw = fmt.Sprintf("r%d@example.com", i) }
	}
	for _, i := range []int{0, 2, 4} {
		ask(p, "relay", at(i))
	}
	for _, i := range []int{4, 3, 2, 1, 0} {
		if d := ask(p, "inbound", at(i)); d.Verdict.Action.Refuses() == (i%2 == 0) {
			t.Errorf("recipient %d: %v", i, d.Verdict.Action)
		}
	}
	var wg sync.WaitGroup
	for c := range 8 {
		wg.Go(func() {
			for i := range 200 {
				mine := func(r *policy.Request) { at(i)(r); r.Instance = fmt.Sprint(c) }
				if i%2 == 0 {
					ask(p, "relay", mine)
				}
				if d := ask(p, "inbound", mine); d.Verdict.Action.Refuses() == (i%2 == 0) {
					t.Errorf("session %d, recipient %d: %v", c, i, d.Verdict.Action)
				}
			}
		})
	}
	wg.Wait()
}

func TestFullPermitsForgetTheOldest(t *testing.T) {
	g := gateway{permits: newPermits(3)}
	p := g.build(t)
	at := func(i int) func(*policy.Request) {
		return func(r *policy.Request) { r.Recipient.Raw = fmt.Sprintf("r%d@example.com", i) }
	}
	exempt := func() (out []int) {
		for i := range 9 {
			if !ask(p, "inbound", at(i)).Verdict.Action.Refuses() {
				out = append(out, i)
			}
		}
		return out
	}
	for i := range 5 {
		ask(p, "relay", at(i))
	}
	if got := exempt(); !slices.Equal(got, []int{2, 3, 4}) {
		t.Errorf("exempt are %v", got)
	}
	// One that is permitted again is as new as its last permit.
	ask(p, "relay", at(2))
	ask(p, "relay", at(5))
	if got := exempt(); !slices.Equal(got, []int{2, 4, 5}) {
		t.Errorf("exempt are %v", got)
	}
	ask(p, "relay", at(6))
	if got := exempt(); !slices.Equal(got, []int{2, 5, 6}) {
		t.Errorf("exempt are %v", got)
	}
	if r := &g.permits.recipients; len(r.byKey) != 3 || len(r.ring) != 3 {
		t.Errorf("%d and %d are held", len(r.byKey), len(r.ring))
	}
	// A reload keeps them.
	p = g.build(t)
	if got := exempt(); !slices.Equal(got, []int{2, 5, 6}) {
		t.Errorf("after a reload exempt are %v", got)
	}
}

// The request's memory is used again by the door.
func TestPermitsKeepNothingOfTheRequest(t *testing.T) {
	p := NewPermits()
	line := []byte("1.2.3 ann@example.org bob@example.com")
	text := unsafe.String(&line[0], len(line))
	req := &policy.Request{
		Instance: text[:5], Client: policy.Client{Addr: office}, Sender: policy.Address{Raw: text[6:21]}, Recipient: policy.Address{Raw: text[22:]},
	}
	p.remember(req, new(exemption))
	for i := range line {
		line[i] = 'x'
	}
	req.Instance, req.Sender.Raw = "1.2.3", "ann@example.org"
	req.Recipient.Raw = "bob@example.com"
	if p.find(req) == nil {
		t.Error("the memory of a request that has been answered is held")
	}
}

func TestExemptionIsTold(t *testing.T) {
	g := gateway{}
	p := g.build(t)
	ask(p, "relay")
	ask(p, "inbound")
	lines := g.logs.FilterMessage("decision").All()
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	f := lines[1].ContextMap()
	if f["exempt"] != "rbl,greylist" || f["exempt_by"] != "chain relay" || f["reason"] != "verify-known" || f["action"] != "continue" {
		t.Errorf("the line: %v", f)
	}
	if _, ok := lines[0].ContextMap()["exempt"]; ok {
		t.Error("the relay chain's line speaks of an exemption")
	}
	for _, check := range []string{"rbl", "greylist"} {
		if n := testutil.ToFloat64(g.metrics.verdicts.WithLabelValues(check, "skipped", "continue", "relay-permitted")); n != 1 {
			t.Errorf("%s is counted %v times", check, n)
		}
	}
	ask(p, "inbound", func(r *policy.Request) { r.DryRun = true })
	if n := testutil.ToFloat64(g.metrics.verdicts.WithLabelValues("rbl", "skipped", "continue", "relay-permitted")); n != 1 {
		t.Errorf("a dry run is counted")
	}

	// An allow entry's exemption is told in the same way.
	s := &setup{steps: steps(says("access", policy.Verdict{Action: policy.Allow, Reason: "access-allowed", Skip: []string{"rbl", "none"}}), says("rbl", reject))}
	d, _ := s.decide(t)
	f = s.logs.FilterMessage("decision").All()[0].ContextMap()
	if f["exempt"] != "rbl" || f["exempt_by"] != "access" || f["reason"] != "access-allowed" || notAsked(d) != "rbl: exempt by access" {
		t.Errorf("the line: %v, the trace: %v", f, notAsked(d))
	}
}

// An inspector that the permit exempts from is not shown the message, when all
// of its recipients are permitted. The others are.
func TestPermitExemptsFromInspectors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		to     []string
		exempt *[]string
		spf    bool // is asked
	}{
		{"all permitted", []string{"r0@example.com", "r1@example.com"}, nil, false},
		{"one of them not", []string{"r0@example.com", "r1@example.com", "r2@example.com"}, nil, true},
		{"none", []string{"r2@example.com"}, nil, true},
		{"another check", []string{"r0@example.com"}, &[]string{"rbl"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spf, provider, headers := &eye{name: "spf", judged: policy.Judgement{Verdict: reject}}, &eye{name: "provider"}, &eye{name: "headers"}
			g := gateway{eyes: eyes(provider, spf, headers), relay: ChainConfig{Exempt: tt.exempt}}
			p := g.build(t)
			for i := range 2 {
				ask(p, "relay", func(r *policy.Request) { r.Recipient.Raw = fmt.Sprintf("r%d@example.com", i) })
			}
			req := &policy.Request{
				Time: time.Unix(1e9, 0), Stage: policy.StageData, Instance: "milter.1", Joined: "123.65.7",
				Client: policy.Client{Addr: office, Port: 4711}, Sender: policy.Address{Raw: "ann@example.org"},
			}
			var to []policy.Address
			for _, a := range tt.to {
				to = append(to, policy.Address{Raw: a})
			}
			c := p.Inspect(req, to)
			c.Header(policy.Field{Name: "From", Value: " a"})
			c.EndOfHeaders()
			c.Body([]byte("x"))
			var d policy.Decision
			c.End(t.Context(), req, &d)
			if (len(spf.shown) > 0) != tt.spf || d.Verdict.Action.Refuses() != tt.spf {
				t.Errorf("spf was shown %v, the verdict is %v", spf.shown, d.Verdict.Action)
			}
			if len(provider.shown) < 5 || !tt.spf && len(headers.shown) < 5 {
				t.Errorf("others were shown %v and %v", provider.shown, headers.shown)
			}
			if want := map[bool]string{false: "spf: exempt by chain relay"}[tt.spf]; notAsked(&d) != want {
				t.Errorf("not asked: %q, want %q", notAsked(&d), want)
			}
		})
	}
}

func TestValidateExempt(t *testing.T) {
	nearest := func(s string) string { return map[string]string{"greylst": "greylist"}[s] }
	for _, tt := range []struct {
		purpose string
		exempt  []string
		want    string
	}{
		{PurposeRelay, []string{"rbl", "client", "limit", "spf", "verify", "greylist"}, ""},
		{PurposeRelay, []string{}, ""},
		{PurposeInbound, []string{"rbl"}, `chains.x.exempt: only a chain with purpose = "relay"`},
		{PurposeInbound, []string{}, `chains.x.exempt: only a chain with purpose = "relay"`},
		{PurposeRelay, []string{"rbl", "greylst"}, `chains.x.exempt[1]: unknown check "greylst", did you mean "greylist"?`},
		{PurposeRelay, []string{"headers"}, `chains.x.exempt[0]: unknown check "headers" (one of `},
		{PurposeRelay, []string{"access"}, `chains.x.exempt[0]: "access" also says who may relay`},
		{PurposeRelay, []string{"provider"}, `chains.x.exempt[0]: "provider" also says who may relay`},
		{PurposeRelay, []string{"rbl", "rbl"}, `chains.x.exempt[1]: "rbl" stands here already`},
	} {
		c := DefaultChain()
		c.Purpose, c.Exempt = tt.purpose, &tt.exempt
		var fs conf.Faults
		c.ValidateOrder("chains.x", Describe{}, nearest, &fs)
		switch err := fs.Err(); {
		case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)):
			t.Errorf("%q %v: got %v, want %q", tt.purpose, tt.exempt, err, tt.want)
		}
	}
}
