package admin

import (
	"context"
	"encoding/json"
	"net/http"

	"postern/internal/adminapi"
	"postern/policy"
)

// Client makes the calls of this package at a running daemon.
type Client struct{ *adminapi.Client }

// Status returns what runs, as JSON.
func (c Client) Status(ctx context.Context) (s json.RawMessage, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// StatusText returns what runs, for people.
func (c Client) StatusText(ctx context.Context) (string, error) {
	return c.Text(ctx, "/v1/status/text")
}

// Reload asks the daemon to read its configuration again.
func (c Client) Reload(ctx context.Context) error {
	return c.Call(ctx, http.MethodPost, "/v1/reload", nil, &struct{}{})
}

// Explain runs a request in the daemon without changing anything.
func (c Client) Explain(ctx context.Context, q Question) (*policy.Decision, error) {
	d := new(policy.Decision)
	err := c.Call(ctx, http.MethodPost, "/v1/explain", q, d)
	return d, err
}

// Metrics returns the text of /metrics.
func (c Client) Metrics(ctx context.Context) (string, error) { return c.Text(ctx, "/metrics") }
