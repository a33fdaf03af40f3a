package headercheck

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"postern/internal/adminapi"
	"postern/internal/mailaddr"
	"postern/internal/when"
	"postern/policy"
)

// Statuses are how the tables of rules are.
type Statuses []Status

// WriteStatus implements adminapi.Status.
func (s Statuses) WriteStatus(w io.Writer, now time.Time) {
	for _, t := range s {
		fmt.Fprintf(w, "headers   %s (%s): %d rules, %d hits, %d never hit", t.Name, t.Kind, t.Rules, t.Hits, t.Never)
		if !t.Loaded.IsZero() {
			fmt.Fprintf(w, ", read %s ago", adminapi.Ago(now, t.Loaded))
		}
		fmt.Fprintln(w)
		if t.Fault != "" {
			fmt.Fprintf(w, "          EDIT NOT TAKEN %s ago, the rules above stay in force: %s\n", adminapi.Ago(now, t.FaultAt), t.Fault)
		}
	}
}

// Rules are the rules with their hits.
type Rules struct {
	Rules       []RuleHits `json:"rules"`
	FilterLines []string   `json:"filter_lines,omitempty"` // for milter_header_checks
}

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/headers": adminapi.Answer(func(*http.Request) (any, error) {
			return Rules{c.Hits(), c.FilterLines()}, nil
		}),
		"POST /v1/headers/test": adminapi.Answer(func(r *http.Request) (any, error) {
			var q Question
			if err := adminapi.Decode(r, maxQuestion, &q); err != nil {
				return nil, err
			}
			return c.answer(&q)
		}),
	}
}

// Question is a message that the rules in force are to be run over.
type Question struct {
	Message []byte   `json:"message"` // as mail programs save it
	Client  string   `json:"client,omitempty"`
	From    string   `json:"from,omitempty"` // envelope
	To      []string `json:"to,omitempty"`
	// Results is what authentication is to have found, see when.ParseAuth.
	Results string `json:"results,omitempty"`
}

// maxQuestion is the most octets of a Question as JSON.
const maxQuestion = 64 << 20

// answer runs the rules over a message.
func (c *Check) answer(q *Question) (*Report, error) {
	req := &policy.Request{Time: time.Now(), Stage: policy.StageData, Door: "explain", Sender: mailaddr.Parse(q.From), DryRun: true}
	if q.Client != "" {
		addr, err := netip.ParseAddr(q.Client)
		if err != nil {
			return nil, fmt.Errorf("%q is not an IP address", q.Client)
		}
		req.Client.Addr = addr.Unmap().WithZone("")
	}
	var err error
	if req.Facts.Auth, err = when.ParseAuth(q.Results); err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	var to []policy.Address
	for _, r := range q.To {
		to = append(to, mailaddr.Parse(r))
	}
	return c.Test(req, to, q.Message)
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Rules returns the rules with their hits.
func (c Admin) Rules(ctx context.Context) (out Rules, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/headers", nil, &out)
	return out, err
}

// Test runs the rules in force over a message.
func (c Admin) Test(ctx context.Context, q *Question) (*Report, error) {
	out := new(Report)
	err := c.Call(ctx, http.MethodPost, "/v1/headers/test", q, out)
	return out, err
}
