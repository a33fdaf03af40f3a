package rbl

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"go.uber.org/zap"

	"postern/internal/adminapi"
	"postern/policy"
)

// Statuses are how the lists are.
type Statuses []Status

// WriteStatus implements adminapi.Status.
func (lists Statuses) WriteStatus(w io.Writer, now time.Time) {
	for _, l := range lists {
		fmt.Fprintf(w, "rbl       %s: %s", l.List, l.State)
		if l.Mode != policy.Enforce {
			fmt.Fprintf(w, ", mode %s", l.Mode)
		}
		if l.Why != "" {
			fmt.Fprintf(w, " (%s)", l.Why)
		}
		fmt.Fprintf(w, "; %d queries, %d from memory, %d hits, %d errors", l.Queries, l.Cached, l.Hits, l.Errors)
		if l.LastError != "" {
			fmt.Fprintf(w, "; last error %s ago: %s", adminapi.Ago(now, l.LastErrorAt), l.LastError)
		}
		fmt.Fprintln(w)
	}
}

// WasHeld is the answer to a reset.
type WasHeld struct {
	Held bool `json:"held"`
}

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/rbl": adminapi.Answer(func(*http.Request) (any, error) { return c.Status(), nil }),
		"GET /v1/rbl/{addr}": adminapi.Answer(func(r *http.Request) (any, error) {
			addr, err := adminapi.Addr(r, "addr")
			if err != nil {
				return nil, err
			}
			return c.TestIP(r.Context(), addr), nil
		}),
		"POST /v1/rbl/{list}/reset": adminapi.Answer(func(r *http.Request) (any, error) {
			name := r.PathValue("list")
			known, held := c.Reset(name)
			if !known {
				return nil, adminapi.NotFound(fmt.Errorf("there is no list %q", name))
			}
			c.log.Info("a DNS list was reset on request", zap.String("list", name), zap.Bool("was_held", held))
			return WasHeld{held}, nil
		}),
	}
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Lists returns how the lists are.
func (c Admin) Lists(ctx context.Context) (out Statuses, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/rbl", nil, &out)
	return out, err
}

// Test asks every list about an address.
func (c Admin) Test(ctx context.Context, addr netip.Addr) (out TestReport, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/rbl/"+url.PathEscape(addr.String()), nil, &out)
	return out, err
}

// Reset lets a list count again that the volume guard holds in shadow, and
// reports whether it was held.
func (c Admin) Reset(ctx context.Context, name string) (bool, error) {
	var out WasHeld
	err := c.Call(ctx, http.MethodPost, "/v1/rbl/"+url.PathEscape(name)+"/reset", nil, &out)
	return out.Held, err
}
