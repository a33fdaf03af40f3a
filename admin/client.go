package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"

	"postern/access"
	"postern/greylist"
	"postern/journal"
	"postern/policy"
	"postern/rbl"
)

// Client calls a running daemon.
type Client struct {
	http  *http.Client
	base  string
	token string
	where string
}

// NewClient returns a client for a path of a unix socket ("/run/..." or
// "unix:/run/...") or a tcp address ("tcp:127.0.0.1:10049"). It connects at
// the first call.
func NewClient(address, token string) *Client {
	address, _, _ = strings.Cut(address, ",") // options of the listener
	if hostport, ok := strings.CutPrefix(address, "tcp:"); ok {
		return &Client{http: &http.Client{}, base: "http://" + hostport, token: token, where: address}
	}
	path := strings.TrimPrefix(address, "unix:")
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial}}, base: "http://postern", where: path}
}

// ErrNotRunning is returned when nothing answers at the address.
var ErrNotRunning = errors.New("no daemon answers")

func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		if ue := (*url.Error)(nil); errors.As(err, &ue) {
			err = ue.Err
		}
		hint := ""
		switch {
		case errors.Is(err, os.ErrNotExist):
			hint = " (is postern running, and admin.listen the same?)"
		case errors.Is(err, os.ErrPermission):
			hint = " (try as root or as a member of the socket's group)"
		}
		return nil, fmt.Errorf("%w at %s%s: %w", ErrNotRunning, c.where, hint, err)
	}
	if res.StatusCode >= 400 {
		defer res.Body.Close() //nolint:errcheck // nothing is lost
		var f failure
		text, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		if json.Unmarshal(text, &f) != nil || f.Error == "" {
			f.Error = strings.TrimSpace(string(text))
		}
		return nil, errors.New(f.Error)
	}
	return res, nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	res, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("admin: answer of %s: %w", path, err)
	}
	return nil
}

// Call makes one of the calls that checks offer: method and path, in as JSON
// unless it is nil, the answer decoded into out.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	return c.call(ctx, method, path, in, out)
}

// Status returns what runs.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// Reload asks the daemon to read its configuration again.
func (c *Client) Reload(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/reload", nil, &struct{}{})
}

// Explain runs a request in the daemon without changing anything.
func (c *Client) Explain(ctx context.Context, q Question) (*policy.Decision, error) {
	d := new(policy.Decision)
	err := c.call(ctx, http.MethodPost, "/v1/explain", q, d)
	return d, err
}

// Decision returns the kept decision with that reference.
func (c *Client) Decision(ctx context.Context, reference string) (r journal.Record, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/decisions/"+url.PathEscape(reference), nil, &r)
	return r, err
}

// Decisions returns the newest n refused decisions.
func (c *Client) Decisions(ctx context.Context, n int) (out []journal.Record, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/decisions?n="+strconv.Itoa(n), nil, &out)
	return out, err
}

func query(f greylist.Filter) url.Values {
	v := url.Values{}
	for name, value := range map[string]string{"kind": f.Kind, "who": f.Who, "sender": f.Sender, "recipient": f.Recipient} {
		if value != "" {
			v.Set(name, value)
		}
	}
	if f.Limit > 0 {
		v.Set("limit", strconv.Itoa(f.Limit))
	}
	return v
}

// GreylistList calls yield for each entry until it returns false.
func (c *Client) GreylistList(ctx context.Context, f greylist.Filter, yield func(greylist.Entry) bool) error {
	res, err := c.do(ctx, http.MethodGet, "/v1/greylist?"+query(f).Encode(), nil)
	if err != nil {
		return err
	}
	return eachLine(res, yield)
}

// eachLine reads JSON values one by one until yield returns false.
func eachLine[T any](res *http.Response, yield func(T) bool) error {
	defer res.Body.Close() //nolint:errcheck // an early end is wanted
	dec := json.NewDecoder(res.Body)
	for {
		var v T
		if err := dec.Decode(&v); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("admin: the listing broke off: %w", err)
		}
		if !yield(v) {
			return nil
		}
	}
}

// AccessList calls yield for each entry of the access lists until it returns false.
func (c *Client) AccessList(ctx context.Context, yield func(access.Entry) bool) error {
	res, err := c.do(ctx, http.MethodGet, "/v1/access", nil)
	if err != nil {
		return err
	}
	return eachLine(res, yield)
}

// GreylistForget removes entries and returns how many. all must be set for an
// empty filter.
func (c *Client) GreylistForget(ctx context.Context, f greylist.Filter, all bool) (int, error) {
	v := query(f)
	if all {
		v.Set("all", "true")
	}
	var out Forgotten
	err := c.call(ctx, http.MethodDelete, "/v1/greylist?"+v.Encode(), nil, &out)
	return out.Entries, err
}

// GreylistStats counts the entries.
func (c *Client) GreylistStats(ctx context.Context) (out greylist.Counts, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/greylist/stats", nil, &out)
	return out, err
}

// TestLists asks every DNS list about an address.
func (c *Client) TestLists(ctx context.Context, addr netip.Addr) (out rbl.TestReport, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/rbl/"+url.PathEscape(addr.String()), nil, &out)
	return out, err
}

// ResetList lets a DNS list count again that the volume guard holds in
// shadow, and reports whether it was held.
func (c *Client) ResetList(ctx context.Context, name string) (bool, error) {
	var out WasHeld
	err := c.call(ctx, http.MethodPost, "/v1/rbl/"+url.PathEscape(name)+"/reset", nil, &out)
	return out.Held, err
}

// Metrics returns the text of /metrics.
func (c *Client) Metrics(ctx context.Context) (string, error) {
	res, err := c.do(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(res.Body)
	return string(b), err
}
