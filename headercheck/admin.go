package headercheck

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"postern/internal/adminapi"
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
	}
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Rules returns the rules with their hits.
func (c Admin) Rules(ctx context.Context) (out Rules, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/headers", nil, &out)
	return out, err
}
