package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/internal/logging"
	"postern/policy"
)

// fake is a check that does what its function says.
type fake struct {
	name   string
	traits policy.Traits
	eval   func(ctx context.Context, req *policy.Request) (policy.Verdict, error)
	hint   func(req *policy.Request) (policy.Verdict, bool)
	asked  atomic.Int64
}

func (f *fake) Name() string { return f.name }
func (f *fake) Traits() policy.Traits {
	if f.traits.Stages == 0 {
		f.traits.Stages = policy.AllStages
	}
	return f.traits
}

func (f *fake) Evaluate(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	f.asked.Add(1)
	return f.eval(ctx, req)
}

// refunding is a check that notes what it is told.
type refunding struct {
	*fake
	panics bool
	told   []string
}

func (r *refunding) Refund(ctx context.Context, req *policy.Request, d *policy.Decision) {
	_, limited := ctx.Deadline()
	r.told = append(r.told, fmt.Sprint(req.Stage, " ", d.Check, " ", limited))
	if r.panics {
		panic("told to")
	}
}

type hinting struct{ *fake }

func (h hinting) Hint(req *policy.Request) (policy.Verdict, bool) { return h.hint(req) }

func says(name string, v policy.Verdict) *fake {
	return &fake{name: name, eval: func(context.Context, *policy.Request) (policy.Verdict, error) { return v, nil }}
}

func fails(name string, err error) *fake {
	return &fake{name: name, eval: func(context.Context, *policy.Request) (policy.Verdict, error) { return policy.Verdict{}, err }}
}

// stuck waits until its context ends.
func stuck(name string) *fake {
	return &fake{name: name, eval: func(ctx context.Context, _ *policy.Request) (policy.Verdict, error) {
		<-ctx.Done()
		return policy.Verdict{}, ctx.Err()
	}}
}

var (
	reject   = policy.Verdict{Action: policy.Reject, Reason: "no", Reply: policy.Reply{Code: 550, Enhanced: "5.7.1", Text: "no"}}
	deferred = policy.Verdict{Action: policy.DeferIfPermit, Reason: "later", Reply: policy.Reply{Code: 450, Enhanced: "4.2.0", Text: "later"}}
)

type setup struct {
	chain  ChainConfig
	mode   policy.Mode
	steps  []Step
	logs   *observer.ObservedLogs
	log    *zap.Logger // nil: into logs
	record []policy.Decision
}

func (s *setup) Record(_ *policy.Request, d *policy.Decision) {
	if d.Reference != "" {
		s.record = append(s.record, *d.Clone())
	}
}

func (s *setup) build(t *testing.T) *Pipeline {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	s.logs = logs
	log := s.log
	if log == nil {
		log = zap.New(core)
	}
	steps := map[string]Step{}
	if s.chain.Budget == 0 {
		purpose, mode, stages := s.chain.Purpose, s.chain.Mode, s.chain.Stages
		s.chain = DefaultChain()
		s.chain.Purpose, s.chain.Mode, s.chain.Stages = purpose, mode, stages
	}
	for _, st := range s.steps {
		steps[st.Check.Name()] = st
		s.chain.Checks = append(s.chain.Checks, st.Check.Name())
	}
	p, err := New(Options{
		Chains: map[string]ChainConfig{"inbound": s.chain}, Default: "inbound", Mode: s.mode, Steps: steps,
		Log: log, Metrics: NewMetrics(prometheus.NewRegistry()), Journal: s,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (s *setup) decide(t *testing.T) (*policy.Decision, *policy.Request) {
	t.Helper()
	req := &policy.Request{Time: time.Unix(1e9, 0), Stage: policy.StageRcpt, Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7")}}
	d := new(policy.Decision)
	s.build(t).Decide(t.Context(), req, d)
	return d, req
}

func steps(checks ...policy.Check) []Step {
	var out []Step
	for _, c := range checks {
		out = append(out, Step{Check: c, Step: conf.Step{Timeout: conf.Duration(5 * time.Second)}})
	}
	return out
}

// A check that gives something back is told of what is refused, by whomever and
// wherever, and of nothing else.
func TestRefund(t *testing.T) {
	hold := policy.Verdict{Action: policy.Hold, Reason: "held"}
	for name, tt := range map[string]struct {
		before, behind policy.Verdict
		mode           policy.Mode // of the chain
		own            policy.Mode // of the check
		dry, panics    bool
		want           string
	}{
		"nobody":       {want: "[]"},
		"held":         {behind: hold, want: "[]"},
		"behind":       {behind: reject, want: "[rcpt behind true]"},
		"waits":        {behind: deferred, want: "[rcpt behind true]"},
		"before":       {before: reject, want: "[rcpt before true]"},
		"chain shadow": {behind: reject, mode: policy.Shadow, want: "[]"},
		"own shadow":   {behind: reject, own: policy.Shadow, want: "[rcpt behind true]"},
		"off":          {behind: reject, own: policy.Off, want: "[]"},
		"dry":          {behind: reject, dry: true, want: "[]"},
		"panics":       {behind: reject, panics: true, want: "[rcpt behind true]"},
	} {
		r := &refunding{fake: says("refunding", policy.Verdict{}), panics: tt.panics}
		s := &setup{mode: tt.mode, steps: steps(says("before", tt.before), r, says("behind", tt.behind))}
		s.steps[1].Mode = tt.own
		d := new(policy.Decision)
		p := s.build(t)
		p.Decide(t.Context(), &policy.Request{Time: time.Now(), Stage: policy.StageRcpt, DryRun: tt.dry}, d)
		if fmt.Sprint(r.told) != tt.want {
			t.Errorf("%s: told %v, want %s", name, r.told, tt.want)
		}
		if tt.panics && (d.Verdict.Action != policy.Reject || s.logs.FilterMessage("check panicked").Len() != 1) {
			t.Errorf("a panic: %+v", d.Verdict)
		}
	}
}

// It is told of content that is refused, too, whatever the chain of that is.
func TestRefundOfContent(t *testing.T) {
	for action, want := range map[policy.Action]string{policy.Reject: "[end-of-message eye true]", policy.Continue: "[]"} {
		r := &refunding{fake: says("refunding", policy.Verdict{})}
		with, without := DefaultChain(), DefaultChain()
		with.Checks = []string{"refunding"}
		v := policy.Verdict{Action: action}
		if action == policy.Reject {
			v = reject
		}
		p, err := New(Options{
			Chains: map[string]ChainConfig{"inbound": without, "other": with}, Default: "inbound", Steps: map[string]Step{"refunding": steps(r)[0]},
			Inspectors: eyes(&eye{name: "eye", judged: policy.Judgement{Verdict: v}}), Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry()),
		})
		if err != nil {
			t.Fatal(err)
		}
		req := &policy.Request{Time: time.Now(), Stage: policy.StageData}
		c := p.Inspect(req, nil)
		end := *req
		end.Stage = policy.StageEndOfMessage
		c.End(t.Context(), &end, new(policy.Decision))
		if fmt.Sprint(r.told) != want {
			t.Errorf("%v: told %v, want %s", action, r.told, want)
		}
	}
}

// The request says which chain judges it.
func TestJudgedBy(t *testing.T) {
	s := &setup{steps: steps(says("a", policy.Verdict{}))}
	if _, req := s.decide(t); req.JudgedBy != "inbound" {
		t.Errorf("%q", req.JudgedBy)
	}
}

func TestVerdictsOfAChain(t *testing.T) {
	hold := policy.Verdict{Action: policy.Hold, Reason: "held"}
	allow := policy.Verdict{Action: policy.Allow, Reason: "friend", Skip: []string{"b"}}
	header := policy.Verdict{Add: []policy.Header{{Name: "X-A", Value: "1"}}}
	tests := []struct {
		name    string
		checks  []policy.Check
		action  policy.Action
		check   string
		asked   []string // checks that ran or were skipped, in trace order
		headers int
	}{
		{"nobody objects", []policy.Check{says("a", policy.Verdict{})}, policy.Continue, "", []string{"a"}, 0},
		{"first rejection ends it", []policy.Check{says("a", reject), says("b", deferred)}, policy.Reject, "a", []string{"a"}, 0},
		{"a later rejection beats a pending defer", []policy.Check{says("a", deferred), says("b", reject)}, policy.Reject, "b", []string{"a", "b"}, 0},
		{"a pending defer stands at the end", []policy.Check{says("a", deferred), says("b", policy.Verdict{})}, policy.DeferIfPermit, "a", []string{"a", "b"}, 0},
		{"an allow skips what it names and no more", []policy.Check{says("a", allow), says("b", reject), says("c", deferred)}, policy.DeferIfPermit, "c", []string{"a", "b skipped", "c"}, 0},
		{"a hold waits for a refusal", []policy.Check{says("a", hold), says("b", reject)}, policy.Reject, "b", []string{"a", "b"}, 0},
		{"a hold stands when nobody refuses", []policy.Check{says("a", hold), says("b", policy.Verdict{})}, policy.Hold, "a", []string{"a", "b"}, 0},
		{"headers are collected", []policy.Check{says("a", header), says("b", header)}, policy.Continue, "", []string{"a", "b"}, 2},
		{"a refusal drops headers", []policy.Check{says("a", header), says("b", reject)}, policy.Reject, "b", []string{"a", "b"}, 0},
		{"permit outside a relay chain skips as an allow does", []policy.Check{says("a", policy.Verdict{Action: policy.Permit, Skip: []string{"b"}}), says("b", reject), says("c", policy.Verdict{})}, policy.Continue, "", []string{"a", "b skipped", "c"}, 0},
		{"permit outside a relay chain is no objection", []policy.Check{says("a", policy.Verdict{Action: policy.Permit}), says("b", reject)}, policy.Reject, "b", []string{"a", "b"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &setup{steps: steps(tt.checks...)}
			d, _ := s.decide(t)
			if d.Verdict.Action != tt.action || d.Check != tt.check || len(d.Headers) != tt.headers {
				t.Errorf("got %v by %q with %d headers, want %v by %q with %d",
					d.Verdict.Action, d.Check, len(d.Headers), tt.action, tt.check, tt.headers)
			}
			var asked []string
			for _, st := range d.Steps {
				name := st.Check
				if st.Outcome == policy.Skipped {
					name += " skipped"
				}
				asked = append(asked, name)
			}
			if !slices.Equal(asked, tt.asked) {
				t.Errorf("trace %v, want %v", asked, tt.asked)
			}
			if refused := d.Verdict.Action.Refuses(); refused != (d.Reference != "") || refused != (len(s.record) == 1) {
				t.Errorf("refused %v, reference %q, journal has %d", refused, d.Reference, len(s.record))
			}
			if n := s.logs.FilterMessage("decision").Len(); n != 1 {
				t.Errorf("%d decision lines, want 1", n)
			}
			if n := s.logs.FilterLevelExact(zapcore.ErrorLevel).Len(); n != 0 {
				t.Errorf("unexpected errors in the log: %v", s.logs.All())
			}
		})
	}
}

func TestPermitInARelayChain(t *testing.T) {
	s := &setup{chain: ChainConfig{Purpose: PurposeRelay}, steps: steps(says("a", policy.Verdict{Action: policy.Permit}), says("b", reject))}
	if d, _ := s.decide(t); d.Verdict.Action != policy.Permit || d.Check != "a" {
		t.Errorf("got %v by %q, want permit by a", d.Verdict.Action, d.Check)
	}
}

func TestUndecidedCheck(t *testing.T) {
	boom := errors.New("boom")
	panics := &fake{name: "a", eval: func(context.Context, *policy.Request) (policy.Verdict, error) { panic("oops") }}
	for _, tt := range []struct {
		name    string
		check   policy.Check
		onError policy.OnError
		outcome policy.Outcome
		action  policy.Action
	}{
		{"error continues", fails("a", boom), policy.ErrorContinue, policy.Failed, policy.Continue},
		{"error defers", fails("a", boom), policy.ErrorDefer, policy.Failed, policy.DeferIfPermit},
		{"panic continues", panics, policy.ErrorContinue, policy.Panicked, policy.Continue},
		{"panic defers", panics, policy.ErrorDefer, policy.Panicked, policy.DeferIfPermit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &setup{steps: steps(tt.check, says("b", policy.Verdict{}))}
			s.steps[0].OnError = tt.onError
			d, _ := s.decide(t)
			if d.Verdict.Action != tt.action || d.Steps[0].Outcome != tt.outcome || !d.Degraded {
				t.Errorf("got %v, outcome %v, degraded %v", d.Verdict.Action, d.Steps[0].Outcome, d.Degraded)
			}
			if len(d.Steps) != 2 {
				t.Error("the check after the broken one was not asked")
			}
			if tt.action.Refuses() && d.Verdict.Reply.String() != "451 4.3.0 Temporary local problem, please try again later" {
				t.Errorf("reply %q", d.Verdict.Reply)
			}
			line := s.logs.FilterMessage("decision").All()[0]
			if line.Level != zapcore.WarnLevel || line.ContextMap()["degraded"] != true {
				t.Errorf("decision line %v does not say degraded", line)
			}
		})
	}
}

func TestRejectBeatsDeferForAnError(t *testing.T) {
	s := &setup{steps: steps(fails("a", errors.New("boom")), says("b", reject))}
	s.steps[0].OnError = policy.ErrorDefer
	if d, _ := s.decide(t); d.Verdict.Action != policy.Reject {
		t.Errorf("got %v, want the rejection of the working check", d.Verdict.Action)
	}
}

func TestStuckCheckIsCutAtItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &setup{steps: steps(stuck("a"))}
		s.steps[0].Timeout, s.steps[0].OnError = conf.Duration(2*time.Second), policy.ErrorDefer
		start := time.Now()
		d, _ := s.decide(t)
		if took := time.Since(start); took != 2*time.Second || d.Verdict.Action != policy.DeferIfPermit || d.Steps[0].Outcome != policy.TimedOut {
			t.Errorf("got %v (%v) after %v, want a defer after exactly 2s", d.Verdict.Action, d.Steps[0].Outcome, took)
		}
	})
}

func TestBudgetCoversAllChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &setup{
			chain: ChainConfig{Budget: conf.Duration(3 * time.Second), ErrorReply: DefaultChain().ErrorReply},
			steps: steps(stuck("a"), stuck("b"), says("c", reject)),
		}
		s.steps[0].Timeout = conf.Duration(2 * time.Second)
		s.steps[1].Timeout = conf.Duration(2 * time.Second)
		start := time.Now()
		d, _ := s.decide(t)
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("took %v, want the budget of 3s", took)
		}
		if d.Verdict.Action != policy.Reject {
			t.Errorf("got %v: a check that needs no time must still be heard", d.Verdict.Action)
		}
	})
}

func TestLastCheckIsNotAskedAfterARefusal(t *testing.T) {
	last := says("last", deferred)
	last.traits = policy.Traits{Stages: policy.AllStages, Last: true}
	s := &setup{steps: steps(says("a", deferred), last)}
	s.decide(t)
	if last.asked.Load() != 0 {
		t.Error("the last check ran although something else had refused")
	}
}

func TestShadowCheckChangesNothing(t *testing.T) {
	marking := &fake{name: "a", eval: func(_ context.Context, req *policy.Request) (policy.Verdict, error) {
		req.Facts.Mark("spooky")
		req.Facts.RBLScore = 9
		return reject, nil
	}}
	var seen policy.Facts
	after := &fake{name: "b", eval: func(_ context.Context, req *policy.Request) (policy.Verdict, error) {
		seen = req.Facts
		return policy.Verdict{}, nil
	}}
	s := &setup{steps: steps(marking, after)}
	s.steps[0].Mode = policy.Shadow
	d, _ := s.decide(t)
	if d.Verdict.Action != policy.Continue || d.Reference == "" || len(s.record) != 1 {
		t.Errorf("shadow verdict counted: %+v", d)
	}
	if d.WouldCheck != "a" || d.Would.Action != policy.Reject || d.Steps[0].Outcome != policy.Shadowed {
		t.Errorf("trace does not say what shadow would have done: %+v", d)
	}
	if seen.Suspicious() || seen.RBLScore != 0 {
		t.Errorf("the next check saw facts of a shadow check: %+v", seen)
	}
	if m := s.logs.FilterMessage("decision").All()[0].ContextMap(); m["shadow_check"] != "a" || m["shadow_action"] != "reject" {
		t.Errorf("log line %v", m)
	}
}

// TestLogLine reads what a decision leaves in a log file.
func TestLogLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := logging.Open(logging.Config{Level: "info", Format: "json", Output: "file:" + path})
	if err != nil {
		t.Fatal(err)
	}
	shadow := steps(says("a", policy.Verdict{Action: policy.Discard, Reason: "spam"}), says("b", reject))
	shadow[0].Mode = policy.Shadow
	for _, st := range [][]Step{steps(says("a", policy.Verdict{Reason: "fine", Detail: "quite"})), shadow, steps(fails("a", errors.New("broken")))} {
		s := &setup{steps: st, log: log.Logger}
		p := s.build(t)
		req := &policy.Request{
			Stage: policy.StageRcpt, Client: policy.Client{Addr: netip.MustParseAddr("2001:db8::7"), Name: "mail.example.org"}, Helo: "a\"b",
			Sender: policy.Address{Raw: "a@example.org"}, Recipient: policy.Address{Raw: "b@example.com"}, QueueID: "4abc", Instance: "i.1",
			SASL: policy.SASL{Username: "ann"},
		}
		p.Decide(t.Context(), req, new(policy.Decision))
		p.Decide(t.Context(), &policy.Request{Stage: policy.StageMail}, new(policy.Decision))
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	for line := range strings.Lines(string(text)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		took, ok := m["took"].(float64)
		ref, _ := m["ref"].(string)
		if _, err := time.Parse(time.RFC3339Nano, m["ts"].(string)); err != nil || !ok || took <= 0 || m["msg"] != "decision" || m["chain"] != "inbound" || (m["reply"] != nil) != (len(ref) == 11) {
			t.Errorf("line %s", line)
		}
		for _, k := range []string{"took", "ts", "msg", "chain", "ref"} {
			delete(m, k)
		}
		got = append(got, m)
	}
	full := func(more ...string) map[string]any {
		m := map[string]any{
			"level": "info", "stage": "rcpt", "client": "2001:db8::7", "client_name": "mail.example.org", "helo": "a\"b", "sender": "a@example.org",
			"recipient": "b@example.com", "queue_id": "4abc", "instance": "i.1", "login": "ann",
		}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	bare := func(more ...string) map[string]any {
		m := full(more...)
		for _, k := range []string{"queue_id", "instance", "login"} {
			delete(m, k)
		}
		m["stage"], m["client"], m["client_name"], m["helo"], m["sender"], m["recipient"] = "mail", "unknown", "", "", "<>", ""
		return m
	}
	shadowed := []string{"action", "reject", "check", "b", "reason", "no", "reply", "550 5.7.1 no", "shadow_check", "a", "shadow_action", "discard", "shadow_reason", "spam"}
	broken := []string{"level", "warn", "action", "continue", "error", "a: broken"}
	want := []map[string]any{
		full("action", "continue", "reason", "fine", "detail", "quite"), bare("action", "continue", "reason", "fine", "detail", "quite"),
		full(shadowed...), bare(shadowed...), full(broken...), bare(broken...),
	}
	want[4]["degraded"], want[5]["degraded"] = true, true
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestShadowOfChainAndDaemon(t *testing.T) {
	for _, s := range []*setup{
		{chain: ChainConfig{Mode: policy.Shadow}, steps: steps(says("a", reject))},
		{mode: policy.Shadow, steps: steps(says("a", reject))},
	} {
		d, _ := s.decide(t)
		if d.Verdict.Action != policy.Continue || d.Would.Action != policy.Reject || d.WouldCheck != "a" || d.Reference == "" {
			t.Errorf("got %+v", d)
		}
	}
	s := &setup{mode: policy.Off, steps: steps(says("a", reject))}
	if d, _ := s.decide(t); d.Verdict.Action != policy.Continue || len(d.Steps) != 0 {
		t.Errorf("off: got %+v", d)
	}
}

func TestStages(t *testing.T) {
	a := says("a", reject)
	a.traits = policy.Traits{Stages: policy.Stages(policy.StageData)}
	s := &setup{steps: steps(a)}
	d, _ := s.decide(t)
	if a.asked.Load() != 0 || d.Steps[0].Error != "stage" {
		t.Errorf("a check for DATA was asked at RCPT: %+v", d)
	}
	s = &setup{chain: ChainConfig{Stages: []policy.Stage{policy.StageData}}, steps: steps(says("b", reject))}
	if d, _ := s.decide(t); d.Verdict.Action != policy.Continue {
		t.Errorf("a chain for DATA decided at RCPT: %+v", d)
	}
}

// A check that begins with what its hint knows is not asked for one right before
// its turn, but is where another check would wait first.
func TestNoHintRightBeforeAPromptCheck(t *testing.T) {
	var order []string
	check := func(name string, prompt bool) policy.Check {
		f := &fake{name: name, traits: policy.Traits{Stages: policy.AllStages, Waits: true, Prompt: prompt}}
		f.eval = func(context.Context, *policy.Request) (policy.Verdict, error) {
			order = append(order, name)
			return policy.Verdict{}, nil
		}
		f.hint = func(*policy.Request) (policy.Verdict, bool) {
			order = append(order, "hint of "+name)
			return policy.Verdict{}, false
		}
		return hinting{f}
	}
	for _, tt := range []struct {
		steps []Step
		want  string
	}{
		{steps(check("prompt", true), check("other", false)), "hint of other, prompt, other"},
		{steps(check("other", false), check("prompt", true)), "hint of other, hint of prompt, other, prompt"},
	} {
		order = nil
		s := &setup{steps: tt.steps}
		s.decide(t)
		if got := strings.Join(order, ", "); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestHintComesBeforeTheFirstCheckThatWaits(t *testing.T) {
	var order []string
	note := func(name string, v policy.Verdict) *fake {
		return &fake{name: name, eval: func(context.Context, *policy.Request) (policy.Verdict, error) {
			order = append(order, name)
			return v, nil
		}}
	}
	build := func(first policy.Verdict, certain bool) []Step {
		order = nil
		cheap, costly, last := note("cheap", first), note("costly", policy.Verdict{}), note("last", policy.Verdict{})
		costly.traits = policy.Traits{Stages: policy.AllStages, Waits: true}
		last.traits = policy.Traits{Stages: policy.AllStages, Waits: true, Last: true}
		last.hint = func(*policy.Request) (policy.Verdict, bool) {
			order = append(order, "hint")
			return deferred, certain
		}
		return steps(cheap, costly, hinting{last})
	}
	for _, tt := range []struct {
		name  string
		steps []Step
		mode  policy.Mode
		want  string
	}{
		{"certain", build(policy.Verdict{}, true), policy.Enforce, "cheap hint"},
		{"not certain", build(policy.Verdict{}, false), policy.Enforce, "cheap hint costly last"},
		{"cheap refusal first", build(reject, true), policy.Enforce, "cheap"},
		{"allowed past", build(policy.Verdict{Action: policy.Allow, Skip: []string{"last"}}, true), policy.Enforce, "cheap costly"},
		{"in shadow", build(policy.Verdict{}, true), policy.Shadow, "cheap costly last"},
	} {
		order = nil
		tt.steps[2].Mode = tt.mode
		s := &setup{steps: tt.steps}
		d, _ := s.decide(t)
		if got := strings.Join(order, " "); got != tt.want {
			t.Errorf("%s: order %q, want %q", tt.name, got, tt.want)
		}
		if tt.name == "certain" && (d.Verdict.Action != policy.DeferIfPermit || d.Check != "last" || d.Steps[1].Outcome != policy.Hinted) {
			t.Errorf("hint: got %+v", d)
		}
	}
}

func TestUnusableRepliesAreReplaced(t *testing.T) {
	for _, tt := range []struct {
		name  string
		v     policy.Verdict
		class int
	}{
		{"none", policy.Verdict{Action: policy.Reject}, 5},
		{"4xx for a reject", policy.Verdict{Action: policy.Reject, Reply: deferred.Reply}, 5},
		{"5xx for a defer", policy.Verdict{Action: policy.Defer, Reply: reject.Reply}, 4},
		{"no text", policy.Verdict{Action: policy.Defer, Reply: policy.Reply{Code: 450, Enhanced: "4.7.1"}}, 4},
		{"class of the enhanced code", policy.Verdict{Action: policy.Reject, Reply: policy.Reply{Code: 550, Enhanced: "4.7.1", Text: "x"}}, 5},
	} {
		s := &setup{steps: steps(says("a", tt.v))}
		d, _ := s.decide(t)
		r := d.Verdict.Reply
		if r.Code/100 != tt.class || r.Text == "" || int(r.Enhanced[0]-'0') != tt.class {
			t.Errorf("%s: reply %q", tt.name, r)
		}
		if s.logs.FilterMessage("check gave an unusable reply").Len() != 1 {
			t.Errorf("%s: nothing in the log", tt.name)
		}
	}
}

func TestChainIsPickedByContextThenListener(t *testing.T) {
	mk := func(name string) (ChainConfig, Step) {
		c := DefaultChain()
		c.Checks = []string{name}
		return c, steps(says(name, policy.Verdict{}))[0]
	}
	o := Options{
		Chains: map[string]ChainConfig{}, Steps: map[string]Step{}, Default: "inbound",
		Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry()),
	}
	for _, n := range []string{"inbound", "submission", "special"} {
		o.Chains[n], o.Steps[n] = mk(n)
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ context, listener, want string }{
		{"", "", "inbound"},
		{"", "submission", "submission"},
		{"special", "submission", "special"},
		{"no-such-chain", "submission", "submission"},
		{"no-such-chain", "", "inbound"},
	} {
		var d policy.Decision
		p.Decide(t.Context(), &policy.Request{Stage: policy.StageRcpt, Context: tt.context, Chain: tt.listener}, &d)
		if d.Chain != tt.want {
			t.Errorf("context %q, listener %q: chain %q, want %q", tt.context, tt.listener, d.Chain, tt.want)
		}
	}
}

func TestDryRunLeavesNoTrace(t *testing.T) {
	s := &setup{steps: steps(says("a", reject))}
	p := s.build(t)
	var d policy.Decision
	p.Decide(t.Context(), &policy.Request{Stage: policy.StageRcpt, DryRun: true}, &d)
	if d.Verdict.Action != policy.Reject {
		t.Errorf("got %v", d.Verdict.Action)
	}
	if len(s.record) != 0 || s.logs.Len() != 0 {
		t.Errorf("a dry run was recorded (%d) or logged (%d)", len(s.record), s.logs.Len())
	}
}

func TestProbeNotesGoToTheirStep(t *testing.T) {
	noting := func(name string) *fake {
		return &fake{name: name, eval: func(_ context.Context, req *policy.Request) (policy.Verdict, error) {
			req.Probe.Add("looked at", name, "cache", 0)
			return policy.Verdict{}, nil
		}}
	}
	p := (&setup{steps: steps(noting("a"), noting("b"))}).build(t)
	var d policy.Decision
	p.Decide(t.Context(), &policy.Request{Stage: policy.StageRcpt, DryRun: true, Probe: new(policy.Probe)}, &d)
	for _, st := range d.Steps {
		if want := []policy.Note{{What: "looked at", Value: st.Check, Source: "cache"}}; !reflect.DeepEqual(st.Notes, want) {
			t.Errorf("%s: notes %v", st.Check, st.Notes)
		}
	}
}

func TestFaultsOfChains(t *testing.T) {
	describe := Describe{
		"access":   {Stages: policy.AllStages},
		"greylist": {Stages: policy.Stages(policy.StageRcpt), Last: true},
	}
	nearest := func(s string) string {
		if s == "acess" {
			return "access"
		}
		return ""
	}
	for _, tt := range []struct {
		name string
		edit func(*ChainConfig)
		want string
	}{
		{"typo", func(c *ChainConfig) { c.Checks = []string{"acess"} }, `chains.x.checks[0]: unknown check "acess", did you mean "access"?`},
		{"unknown", func(c *ChainConfig) { c.Checks = []string{"foo"} }, `chains.x.checks[0]: unknown check "foo"`},
		{"order", func(c *ChainConfig) { c.Checks = []string{"greylist", "access"} }, `chains.x.checks[0]: "greylist" must be the last`},
		{"twice", func(c *ChainConfig) { c.Checks = []string{"access", "access"} }, `chains.x.checks[1]: "access" is already in this chain`},
		{"stage", func(c *ChainConfig) { c.Checks = []string{"greylist"}; c.Stages = []policy.Stage{policy.StageHelo} }, `can never run`},
		{"purpose", func(c *ChainConfig) { c.Purpose = "rely" }, `chains.x.purpose: unknown purpose "rely"`},
		{"budget", func(c *ChainConfig) { c.Budget = conf.Duration(100 * time.Second) }, `chains.x.budget: 1m40s is out of range`},
		{"reply", func(c *ChainConfig) { c.ErrorReply = "550 5.7.1 no" }, `chains.x.error_reply: reply code 550: must be 4xx here`},
		{"bare code", func(c *ChainConfig) { c.ErrorReply = "451" }, `has no text`},
	} {
		c := DefaultChain()
		tt.edit(&c)
		var fs conf.Faults
		c.Validate("chains.x", &fs)
		c.ValidateOrder("chains.x", describe, nearest, &fs)
		if err := fs.Err(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	for name, c := range DefaultChains() {
		var fs conf.Faults
		c.Validate("chains."+name, &fs)
		if fs.Err() != nil {
			t.Error(fs)
		}
	}
}

func TestStepContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c stepContext
		c.init(t.Context(), time.Now(), time.Second)
		child, cancel := context.WithTimeout(&c, time.Hour)
		defer cancel()
		if err := c.Err(); err != nil {
			t.Fatal(err)
		}
		<-child.Done()
		if !errors.Is(child.Err(), context.DeadlineExceeded) || !errors.Is(c.Err(), context.DeadlineExceeded) {
			t.Errorf("child %v, parent %v", child.Err(), c.Err())
		}

		var kept stepContext
		kept.init(t.Context(), time.Now(), time.Second)
		kept.finish()
		<-kept.Done()
		if !errors.Is(kept.Err(), context.Canceled) {
			t.Errorf("a context kept beyond its step: %v", kept.Err())
		}
		kept.finish()

		var both stepContext // waited for and ended at the same time
		both.init(t.Context(), time.Now(), time.Hour)
		go both.finish()
		<-both.Done()
	})
}

func BenchmarkDecide(b *testing.B) {
	a, c, g := says("access", policy.Verdict{}), says("rbl", policy.Verdict{}), says("greylist", policy.Verdict{Reason: "greylist-known-triplet"})
	cfg := DefaultChain()
	cfg.Checks = []string{"access", "rbl", "greylist"}
	m := map[string]Step{}
	for _, s := range steps(a, c, g) {
		m[s.Check.Name()] = s
	}
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(discard{}), zap.InfoLevel)
	p, err := New(Options{
		Chains: map[string]ChainConfig{"inbound": cfg}, Default: "inbound", Steps: m,
		Log: zap.New(core), Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		b.Fatal(err)
	}
	req := &policy.Request{Stage: policy.StageRcpt, Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7")}}
	d := new(policy.Decision)
	b.ReportAllocs()
	for b.Loop() {
		d.Reset()
		p.Decide(b.Context(), req, d)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// idle is a check without settings: it would fail every request.
type idle struct{ policy.Check }

func (idle) Idle() bool { return true }

func TestChecksWithNothingToDoAreLeftOut(t *testing.T) {
	su := &setup{steps: []Step{{Check: idle{fails("idle", errors.New("it was asked"))}}, {Check: says("ran", policy.Verdict{})}}}
	p := su.build(t)
	var d policy.Decision
	p.Decide(t.Context(), &policy.Request{Stage: policy.StageRcpt}, &d)
	if len(d.Steps) != 1 || d.Steps[0].Check != "ran" || d.Degraded {
		t.Errorf("steps %+v", d.Steps)
	}
	if got := p.Chains()["inbound"]; !slices.Equal(got, []string{"idle", "ran"}) {
		t.Errorf("the chain is shown as %v", got)
	}
}
