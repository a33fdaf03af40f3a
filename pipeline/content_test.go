package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/policy"
)

// eye is an inspector that does what its fields say.
type eye struct {
	name   string
	judged policy.Judgement
	err    error
	blind  bool          // it has no interest
	most   int           // bytes of the body that it wants; 0: all
	slow   time.Duration // for each header field
	stuck  bool          // End waits for its context
	panics string        // the method that panics

	shown []string
}

func (e *eye) Name() string { return e.name }

func (e *eye) call(what string) {
	if e.panics == what {
		panic("told to")
	}
	e.shown = append(e.shown, what)
}

func (e *eye) Inspect(*policy.Request, []policy.Address) policy.Inspection {
	e.call("Inspect")
	if e.blind {
		return nil
	}
	return e
}

func (e *eye) Header(policy.Field) { e.call("Header"); time.Sleep(e.slow) }
func (e *eye) EndOfHeaders()       { e.call("EndOfHeaders") }
func (e *eye) Body(p []byte) bool {
	e.call("Body")
	e.most -= len(p)
	return e.most > 0
}

func (e *eye) End(ctx context.Context) (policy.Judgement, error) {
	e.call("End")
	if e.stuck {
		<-ctx.Done()
		return policy.Judgement{}, ctx.Err()
	}
	return e.judged, e.err
}

// onlyHeader is an eye that says that it never looks at bodies.
type onlyHeader struct{ *eye }

func (onlyHeader) WantsBody() bool { return false }

type sight struct {
	chain  ChainConfig
	mode   policy.Mode
	eyes   []Inspector
	logs   *observer.ObservedLogs
	record []policy.Decision
}

func (s *sight) Record(_ *policy.Request, d *policy.Decision) {
	if d.Reference != "" {
		s.record = append(s.record, *d.Clone())
	}
}

func (s *sight) build(t *testing.T) *Pipeline {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	s.logs = logs
	if s.chain.Budget == 0 {
		mode := s.chain.Mode
		s.chain = DefaultChain()
		s.chain.Mode = mode
	}
	p, err := New(Options{
		Chains: map[string]ChainConfig{"inbound": s.chain}, Default: "inbound", Mode: s.mode, Inspectors: s.eyes,
		Log: zap.New(core), Metrics: NewMetrics(prometheus.NewRegistry()), Journal: s,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// look shows one message of two header fields.
func (s *sight) look(t *testing.T) (*policy.Decision, []policy.Edit) {
	t.Helper()
	req := &policy.Request{Time: time.Now(), Stage: policy.StageData, QueueID: "4abc"}
	c := s.build(t).Inspect(req, []policy.Address{{Raw: "bob@example.com"}})
	if c == nil {
		t.Fatal("nobody is interested")
	}
	c.Header(policy.Field{Name: "From", Value: " a"})
	c.Header(policy.Field{Name: "To", Value: " b"})
	c.EndOfHeaders()
	for c.Body([]byte("text\r\n")) {
		continue
	}
	end := *req
	end.Stage = policy.StageEndOfMessage
	d := new(policy.Decision)
	edits := c.End(t.Context(), &end, d)
	return d, edits
}

func eyes(all ...policy.Inspector) (out []Inspector) {
	for _, e := range all {
		out = append(out, Inspector{e, conf.Step{Timeout: conf.Duration(5 * time.Second)}})
	}
	return out
}

func edit(name string) policy.Judgement {
	return policy.Judgement{Edits: []policy.Edit{{Kind: policy.InsertField, Name: name}}}
}

func TestJudgementsOfAMessage(t *testing.T) {
	with := func(v policy.Verdict, name string) policy.Judgement {
		j := edit(name)
		j.Verdict = v
		return j
	}
	hold := policy.Verdict{Action: policy.Hold, Reason: "held", Add: []policy.Header{{Name: "X-Held", Value: "1"}}}
	for _, tt := range []struct {
		name   string
		judged []policy.Judgement
		action policy.Action
		check  string
		steps  int
		edits  string
		fields int
	}{
		{"edits of all", []policy.Judgement{edit("A"), edit("B")}, policy.Continue, "", 2, "A B", 0},
		{"first refusal", []policy.Judgement{edit("A"), with(reject, "B"), edit("C")}, policy.Reject, "1", 2, "", 0},
		{"a defer waits for a refusal", []policy.Judgement{with(deferred, "A"), with(reject, "B")}, policy.Reject, "1", 2, "", 0},
		{"a defer", []policy.Judgement{with(deferred, "A"), edit("B")}, policy.DeferIfPermit, "0", 2, "", 0},
		{"a hold keeps the edits", []policy.Judgement{with(hold, "A"), edit("B")}, policy.Hold, "0", 2, "A B", 1},
		{"a discard ends it", []policy.Judgement{with(policy.Verdict{Action: policy.Discard}, "A"), edit("B")}, policy.Discard, "0", 1, "", 0},
		{"a permit is no objection", []policy.Judgement{with(policy.Verdict{Action: policy.Permit}, "A"), with(reject, "B")}, policy.Reject, "1", 2, "", 0},
		{"an allow too", []policy.Judgement{with(policy.Verdict{Action: policy.Allow, Skip: []string{"1"}}, "A"), with(reject, "B")}, policy.Reject, "1", 2, "", 0},
	} {
		s := &sight{}
		for i, j := range tt.judged {
			s.eyes = append(s.eyes, eyes(&eye{name: fmt.Sprint(i), judged: j})...)
		}
		d, edits := s.look(t)
		var names []string
		for _, e := range edits {
			names = append(names, e.Name)
		}
		if d.Verdict.Action != tt.action || d.Check != tt.check || len(d.Steps) != tt.steps || strings.Join(names, " ") != tt.edits || len(d.Headers) != tt.fields {
			t.Errorf("%s: %+v, edits %v", tt.name, d, names)
		}
		if refuses := tt.action.Refuses(); refuses != (d.Reference != "") || refuses != (len(s.record) == 1) {
			t.Errorf("%s: reference %q, %d in the journal", tt.name, d.Reference, len(s.record))
		}
		lines := s.logs.FilterMessage("decision").All()
		if len(lines) != 1 {
			t.Fatalf("%s: %d lines", tt.name, len(lines))
		}
		m := lines[0].ContextMap()
		if m["stage"] != "end-of-message" || m["action"] != tt.action.String() || m["queue_id"] != "4abc" || (m["edits"] != nil) != (len(edits) > 0) {
			t.Errorf("%s: logged %v", tt.name, m)
		}
	}
}

func TestUndecidedInspectors(t *testing.T) {
	for _, tt := range []struct {
		name    string
		eye     *eye
		outcome policy.Outcome
	}{
		{"error", &eye{err: errors.New("told to")}, policy.Failed},
		{"panic at the beginning", &eye{panics: "Inspect"}, policy.Panicked},
		{"panic in a field", &eye{panics: "Header"}, policy.Panicked},
		{"panic after the fields", &eye{panics: "EndOfHeaders"}, policy.Panicked},
		{"panic in the body", &eye{panics: "Body"}, policy.Panicked},
		{"panic at the end", &eye{panics: "End"}, policy.Panicked},
		{"stuck", &eye{stuck: true}, policy.TimedOut},
		{"too slow in all", &eye{slow: 3 * time.Second}, policy.TimedOut},
	} {
		for _, onError := range []policy.OnError{policy.ErrorContinue, policy.ErrorDefer} {
			synctest.Test(t, func(t *testing.T) {
				e := *tt.eye
				e.name, e.judged = "eye", edit("never")
				other := &eye{name: "other", judged: edit("A")}
				s := &sight{eyes: eyes(&e, other)}
				s.eyes[0].OnError = onError
				start := time.Now()
				d, edits := s.look(t)
				want, n := policy.Continue, 1
				if onError == policy.ErrorDefer {
					want, n = policy.DeferIfPermit, 0
				}
				if d.Verdict.Action != want || len(edits) != n || !d.Degraded || d.Steps[0].Outcome != tt.outcome || d.Steps[0].Error == "" {
					t.Errorf("%s, %v: %+v, %d edits", tt.name, onError, d, len(edits))
				}
				if took := time.Since(start); took > 6*time.Second {
					t.Errorf("%s: %v", tt.name, took)
				}
				if !slices.Contains(other.shown, "End") {
					t.Errorf("%s: the other was shown %v", tt.name, other.shown)
				}
			})
		}
	}
}

func TestShadowedInspectors(t *testing.T) {
	judged := edit("A")
	judged.Verdict = reject
	s := &sight{eyes: eyes(&eye{name: "shadow", judged: judged}, &eye{name: "real", judged: edit("B")}, &eye{name: "off", panics: "Inspect"})}
	s.eyes[0].Mode, s.eyes[2].Mode = policy.Shadow, policy.Off
	d, edits := s.look(t)
	if d.Verdict.Action != policy.Continue || d.WouldCheck != "shadow" || len(edits) != 1 || edits[0].Name != "B" || len(d.Steps) != 2 {
		t.Errorf("one in shadow mode: %+v, %v", d, edits)
	}
	for _, s := range []*sight{{chain: ChainConfig{Mode: policy.Shadow}}, {mode: policy.Shadow}} {
		s.eyes = eyes(&eye{name: "a", judged: judged})
		if d, edits := s.look(t); d.Verdict.Action != policy.Continue || d.WouldCheck != "a" || edits != nil || d.Reference == "" {
			t.Errorf("all in shadow mode: %+v, %v", d, edits)
		}
	}
}

func TestWhoIsInterested(t *testing.T) {
	req := &policy.Request{Stage: policy.StageData}
	for name, s := range map[string]*sight{
		"nobody is there":  {},
		"nobody cares":     {eyes: eyes(&eye{name: "a", blind: true}, &eye{name: "b", blind: true})},
		"the chain is off": {eyes: eyes(&eye{name: "a"}), chain: ChainConfig{Mode: policy.Off}},
		"the eye is off":   {eyes: []Inspector{{&eye{name: "a"}, conf.Step{Mode: policy.Off}}}},
	} {
		if c := s.build(t).Inspect(req, nil); c != nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
	// One has seen enough of the body before the other.
	a, b := &eye{name: "a", most: 3}, &eye{name: "b", most: 10}
	(&sight{eyes: eyes(a, b)}).look(t)
	count := func(e *eye) (n int) {
		for _, s := range e.shown {
			if s == "Body" {
				n++
			}
		}
		return n
	}
	if count(a) != 1 || count(b) != 2 {
		t.Errorf("chunks shown: %d and %d", count(a), count(b))
	}
	for _, tt := range []struct {
		eyes            []Inspector
		content, bodies bool
	}{
		{nil, false, false},
		{eyes(onlyHeader{a}), true, false},
		{eyes(onlyHeader{a}, b), true, true},
		{[]Inspector{{b, conf.Step{Mode: policy.Off}}, {onlyHeader{a}, conf.Step{}}}, true, false},
	} {
		if content, bodies := (&sight{eyes: tt.eyes}).build(t).Looks(); content != tt.content || bodies != tt.bodies {
			t.Errorf("%v: %v %v", tt.eyes, content, bodies)
		}
	}
	c := (&sight{eyes: eyes(&eye{name: "a"})}).build(t).Inspect(req, nil)
	c.Abandon()
	if c.Body([]byte("x")) {
		t.Error("who has given up wants more")
	}
}

func TestStagesOfAChain(t *testing.T) {
	rcptOnly := &fake{name: "r", traits: policy.Traits{Stages: policy.Stages(policy.StageRcpt)}}
	all := says("a", policy.Verdict{})
	for _, tt := range []struct {
		name   string
		chain  ChainConfig
		checks []policy.Check
		want   policy.StageSet
	}{
		{"none named", ChainConfig{}, []policy.Check{all}, policy.Stages(policy.StageRcpt, policy.StageData)},
		{"none named, none has facts at DATA", ChainConfig{}, []policy.Check{rcptOnly}, policy.Stages(policy.StageRcpt)},
		{"some named", ChainConfig{Stages: []policy.Stage{policy.StageConnect, policy.StageRcpt}}, []policy.Check{all, rcptOnly}, policy.Stages(policy.StageConnect, policy.StageRcpt)},
		{"off", ChainConfig{Mode: policy.Off}, []policy.Check{all}, 0},
		{"no checks", ChainConfig{}, nil, 0},
	} {
		s := &setup{chain: tt.chain, steps: steps(tt.checks...)}
		p := s.build(t)
		for _, name := range []string{"inbound", "no such chain", ""} {
			if got := p.Stages(name); got != tt.want {
				t.Errorf("%s, chain %q: %b, want %b", tt.name, name, got, tt.want)
			}
		}
	}
}

func BenchmarkContent(b *testing.B) {
	p, err := New(Options{
		Chains: map[string]ChainConfig{"inbound": DefaultChain()}, Default: "inbound",
		Inspectors: eyes(quiet{}), Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		b.Fatal(err)
	}
	req := &policy.Request{Stage: policy.StageEndOfMessage}
	var d policy.Decision
	b.ReportAllocs()
	for b.Loop() {
		c := p.Inspect(req, nil)
		for range 8 {
			c.Header(policy.Field{Name: "Subject", Value: " hello"})
		}
		c.EndOfHeaders()
		d.Reset()
		c.End(b.Context(), req, &d)
	}
}

// quiet is an inspector that does nothing.
type quiet struct{}

func (quiet) Name() string                                                { return "quiet" }
func (quiet) Inspect(*policy.Request, []policy.Address) policy.Inspection { return quiet{} }
func (quiet) Header(policy.Field)                                         {}
func (quiet) EndOfHeaders()                                               {}
func (quiet) Body([]byte) bool                                            { return false }
func (quiet) End(context.Context) (policy.Judgement, error)               { return policy.Judgement{}, nil }

// pen is an eye that finishes.
type pen struct {
	*eye
	adds policy.Judgement
	err  error
	saw  []policy.Edit
	late bool // Finish waits for its context
}

func (p *pen) Inspect(req *policy.Request, to []policy.Address) policy.Inspection {
	if p.eye.Inspect(req, to) == nil {
		return nil
	}
	return p
}

func (p *pen) Finish(ctx context.Context, edits []policy.Edit) (policy.Judgement, error) {
	p.call("Finish")
	p.saw = slices.Clone(edits)
	if p.late {
		<-ctx.Done()
		return policy.Judgement{}, ctx.Err()
	}
	return p.adds, p.err
}

func added(name string) policy.Edit {
	return policy.Edit{Kind: policy.InsertField, Name: name, Value: " x"}
}

func names(edits []policy.Edit) (out []string) {
	for _, e := range edits {
		out = append(out, e.Name)
	}
	return out
}

// Who finishes sees what all others leave, whatever their order, and what it
// adds comes last.
func TestFinish(t *testing.T) {
	signer := &pen{eye: &eye{name: "dkim"}, adds: policy.Judgement{Verdict: policy.Verdict{Reason: "signed", Detail: "d=x"}, Edits: []policy.Edit{added("Signature")}}}
	sealer := &pen{eye: &eye{name: "arc"}, adds: policy.Judgement{Edits: []policy.Edit{added("Seal")}}}
	late := &eye{name: "headers", judged: policy.Judgement{Edits: []policy.Edit{added("Late")}, Verdict: policy.Verdict{Add: []policy.Header{{Name: "Top", Value: "1"}}}}}
	s := sight{eyes: []Inspector{{signer, conf.Step{}}, {sealer, conf.Step{}}, {late, conf.Step{}}}}
	d, edits := s.look(t)
	if got := names(signer.saw); !slices.Equal(got, []string{"Top", "Late"}) {
		t.Errorf("the first saw %v", got)
	}
	if got := names(sealer.saw); !slices.Equal(got, []string{"Top", "Late", "Signature"}) {
		t.Errorf("the second saw %v", got)
	}
	if got := names(edits); !slices.Equal(got, []string{"Late", "Signature", "Seal"}) {
		t.Errorf("%v", got)
	}
	if v := d.Steps[0].Verdict; v.Reason != "signed" || v.Detail != "d=x" || len(d.Steps) != 3 {
		t.Errorf("%+v", d.Steps)
	}
}

func TestFinishOnlyWhatIsAccepted(t *testing.T) {
	refuse := policy.Judgement{Verdict: policy.Verdict{Action: policy.Reject, Reason: "no", Reply: policy.Reply{Code: 550, Enhanced: "5.7.1", Text: "No"}}}
	hold := policy.Judgement{Verdict: policy.Verdict{Action: policy.Hold, Reason: "wait"}}
	for _, tt := range []struct {
		name     string
		other    *eye
		step     conf.Step
		pen      pen
		finishes bool
		action   policy.Action
		edits    []string
	}{
		{"refused", &eye{name: "headers", judged: refuse}, conf.Step{}, pen{eye: &eye{}}, false, policy.Reject, nil},
		{"held", &eye{name: "headers", judged: hold}, conf.Step{}, pen{eye: &eye{}}, true, policy.Hold, []string{"Signature"}},
		{"deferred by another's error", &eye{name: "headers", err: errors.New("x")}, conf.Step{}, pen{eye: &eye{}}, true, policy.Continue, []string{"Signature"}},
		{"its End failed", &eye{name: "headers"}, conf.Step{}, pen{eye: &eye{err: errors.New("x")}}, false, policy.Continue, nil},
		{"shadow", &eye{name: "headers"}, conf.Step{Mode: policy.Shadow}, pen{eye: &eye{}}, true, policy.Continue, nil},
		{"cannot", &eye{name: "headers"}, conf.Step{}, pen{eye: &eye{}, err: errors.New("x")}, true, policy.Continue, nil},
		{"cannot, and must", &eye{name: "headers"}, conf.Step{OnError: policy.ErrorDefer}, pen{eye: &eye{}, err: errors.New("x")}, true, policy.DeferIfPermit, nil},
		{"panics", &eye{name: "headers"}, conf.Step{OnError: policy.ErrorDefer}, pen{eye: &eye{panics: "Finish"}}, false, policy.DeferIfPermit, nil},
		{"too slow", &eye{name: "headers"}, conf.Step{OnError: policy.ErrorDefer, Timeout: conf.Duration(20 * time.Millisecond)}, pen{eye: &eye{}, late: true}, true, policy.DeferIfPermit, nil},
	} {
		tt.pen.name = "dkim"
		if tt.pen.err == nil && !tt.pen.late {
			tt.pen.adds.Edits = []policy.Edit{added("Signature")}
		}
		s := sight{eyes: []Inspector{{&tt.pen, tt.step}, {tt.other, conf.Step{}}}}
		d, edits := s.look(t)
		if d.Verdict.Action != tt.action || !slices.Equal(names(edits), tt.edits) || slices.Contains(tt.pen.shown, "Finish") != tt.finishes {
			t.Errorf("%s: %v, edits %v, %v", tt.name, d.Verdict.Action, names(edits), tt.pen.shown)
		}
	}
}

// finder is an inspector that finds out how a message is authenticated.
type finder struct {
	*eye
	req    *policy.Request
	shadow bool // of the request, when End was asked
}

func (f *finder) Inspect(req *policy.Request, _ []policy.Address) policy.Inspection {
	f.req = req
	return f
}

func (f *finder) End(ctx context.Context) (policy.Judgement, error) {
	f.req.Facts.Auth = policy.Auth{DMARC: "fail", Summary: "spf=none, dmarc=fail example.org"}
	f.shadow = f.req.Shadow
	return f.eye.End(ctx)
}

// reader sees what those before it have found out.
type reader struct {
	*eye
	req  *policy.Request
	read string
}

func (r *reader) Inspect(req *policy.Request, _ []policy.Address) policy.Inspection {
	r.req = req
	return r
}

func (r *reader) End(context.Context) (policy.Judgement, error) {
	r.read = r.req.Facts.Auth.DMARC
	return policy.Judgement{Verdict: policy.Verdict{Reason: "sealed", Detail: "by a key"}}, nil
}

// The log line has the results of mail authentication, whoever else has
// something to say; in shadow they are there, and move nothing.
func TestResultsOfAMessage(t *testing.T) {
	for _, tt := range []struct {
		name        string
		mode, whole policy.Mode
		shadow      bool
		read        string
	}{
		{"enforced", policy.Enforce, policy.Enforce, false, "fail"},
		{"the inspector in shadow", policy.Shadow, policy.Enforce, true, ""},
		{"the daemon in shadow", policy.Enforce, policy.Shadow, true, "fail"},
	} {
		f, r := &finder{eye: &eye{name: "auth"}}, &reader{eye: &eye{name: "dkim"}}
		s := &sight{eyes: eyes(f, r), mode: tt.whole}
		s.eyes[0].Mode = tt.mode
		s.look(t)
		if f.shadow != tt.shadow || r.read != tt.read {
			t.Errorf("%s: shadow %v, read %q", tt.name, f.shadow, r.read)
		}
		lines := s.logs.FilterMessage("decision").All()
		if len(lines) != 1 {
			t.Fatalf("%s: %d lines", tt.name, len(lines))
		}
		line := lines[0].ContextMap()
		if line["auth"] != "spf=none, dmarc=fail example.org" || line["reason"] != "sealed" || line["detail"] != "by a key" {
			t.Errorf("%s: %v", tt.name, line)
		}
	}
	// A detail that says the same is not said twice.
	f := &finder{eye: &eye{name: "auth", judged: policy.Judgement{Verdict: policy.Verdict{Reason: "dmarc-fail", Detail: "spf=none, dmarc=fail example.org"}}}}
	s := &sight{eyes: eyes(f)}
	s.look(t)
	if line := s.logs.All()[0].ContextMap(); line["auth"] == nil || line["detail"] != nil {
		t.Error(line)
	}
}
