package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/list"
	"postern/policy"
)

// Status is what `postern status` shows of the check.
type Status struct {
	Answers int           `json:"answers"` // of the DNS, remembered
	Clients int           `json:"clients"` // whose HELO names are remembered
	Skip    []list.Status `json:"skip"`    // exceptions
}

// Status returns what is remembered and how the lists are.
func (c *Check) Status() Status {
	return Status{c.shared.answers.EstimatedSize(), c.shared.changes.clients.EstimatedSize(), c.skip.Status()}
}

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, now time.Time) {
	list.WriteStatus(w, "client exceptions", s.Skip, now)
	fmt.Fprintf(w, "client    %d answers of the DNS and the HELO names of %d clients are remembered\n", s.Answers, s.Clients)
}

// Question is what `postern client test` asks.
type Question struct {
	IP     string  `json:"ip"`
	Helo   string  `json:"helo"`
	Sender *string `json:"sender,omitempty"` // as in MAIL FROM, "" or "<>" for the null sender; nil: not given yet
	// Name is the reverse name that Postfix would have verified; without one it
	// is looked up.
	Name string `json:"name,omitempty"`
}

// Report is what `postern client test` shows.
type Report struct {
	// Exempt says why such a client would not be judged; the report is as if it
	// were.
	Exempt     string            `json:"exempt,omitempty"`
	Conditions []ConditionReport `json:"conditions"`
	Answers    []AnswerReport    `json:"answers"`
	// Action is what would come of it: "reject", "defer", "mark" or "off".
	Action conf.Action  `json:"action"`
	Reason string       `json:"reason,omitempty"`
	Reply  policy.Reply `json:"reply,omitzero"`
	Score  int          `json:"score"` // of the marks
}

// ConditionReport is one condition.
type ConditionReport struct {
	Condition string      `json:"condition"`
	Action    conf.Action `json:"action"`
	Weight    int         `json:"weight"`
	Result    Result      `json:"result"`
	Detail    string      `json:"detail,omitempty"`
}

// Result is whether a condition holds.
type Result string

// The results.
const (
	Found    Result = "found"
	NotFound Result = "no"
	Unable   Result = "unable"    // the DNS did not answer
	NotGiven Result = "not given" // the question holds nothing to judge
)

// AnswerReport is what the DNS said to one question.
type AnswerReport struct {
	What   string        `json:"what"`
	Says   string        `json:"says"`
	Cached bool          `json:"cached"`
	Took   time.Duration `json:"took"`
}

// Test judges a client by every condition, those that are off too, with the
// DNS and not with what is remembered of it. Nothing is counted.
func (c *Check) Test(ctx context.Context, q *Question, now time.Time) (*Report, error) {
	addr, err := netip.ParseAddr(q.IP)
	if err != nil {
		return nil, fmt.Errorf("%q is not an IP address", q.IP)
	}
	req := &policy.Request{
		Time: now, Stage: policy.StageHelo, Helo: q.Helo, DryRun: true, Probe: new(policy.Probe),
		Client: policy.Client{Addr: addr.Unmap().WithZone(""), Name: mailaddr.Domain(q.Name)},
	}
	if q.Sender != nil {
		req.Stage, req.Sender = policy.StageRcpt, mailaddr.ParsePath(*q.Sender)
	}
	r := &Report{}
	if reason, detail := c.exempt(req, true); reason != "" {
		r.Exempt = reason + ": " + detail
	}
	f := findings{needed: everything, fresh: true}
	c.look(req, &f, false)
	c.lookUp(ctx, req, &f)
	for _, n := range req.Probe.Notes {
		r.Answers = append(r.Answers, AnswerReport{n.What, n.Value, n.Source == "cache", n.Took})
	}
	for i := range conditions {
		one := ConditionReport{Condition: slugs[i], Action: c.rules.actions[i], Weight: c.rules.weights[i], Result: c.result(i, req, &f)}
		if one.Result == Found {
			one.Detail = c.detail(i, req, &f)
		}
		r.Conditions = append(r.Conditions, one)
	}
	f.found &= c.wanted
	ruling := decide(c.rules, f.found, f.failed())
	r.Action, r.Reason, r.Score = ruling.action, ruling.reason, ruling.score
	if r.Action >= conf.Defer {
		r.Reply = c.reply(&ruling, req, &f)
	}
	return r, nil
}

// result says whether a condition holds.
func (c *Check) result(i condition, req *policy.Request, f *findings) Result {
	if f.found.has(i) {
		return Found
	}
	for q := range questions {
		if needs[q].has(i) && f.unable[q] != nil {
			return Unable
		}
	}
	if i <= heloChanges && req.Helo == "" || i >= senderUnresolved && req.Sender.Raw == "" {
		return NotGiven
	}
	return NotFound
}

// maxQuestion is the most octets of a Question as JSON.
const maxQuestion = 16 << 10

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"POST /v1/client/test": adminapi.Answer(func(r *http.Request) (any, error) {
			var q Question
			if err := adminapi.Decode(r, maxQuestion, &q); err != nil {
				return nil, err
			}
			return c.Test(r.Context(), &q, time.Now())
		}),
	}
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Test judges a client by every condition.
func (c Admin) Test(ctx context.Context, q *Question) (out Report, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/client/test", q, &out)
	return out, err
}
