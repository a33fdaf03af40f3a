package adminapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
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
			if res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusMethodNotAllowed {
				f.Error = fmt.Sprintf("the daemon at %s has no call %s %s: it may be of another version than this command", c.where, method, path)
			}
		}
		return nil, errors.New(f.Error)
	}
	return res, nil
}

// Call makes a call: method and path, in as JSON unless it is nil, the answer
// decoded into out.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	res, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("adminapi: answer of %s: %w", path, err)
	}
	return nil
}

// Text makes a GET call that is answered with text.
func (c *Client) Text(ctx context.Context, path string) (string, error) {
	res, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// Each makes a GET call that is answered by [Lines], until yield returns false.
func Each[T any](ctx context.Context, c *Client, path string, yield func(T) bool) error {
	res, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // an early end is wanted
	dec := json.NewDecoder(res.Body)
	for {
		var v T
		if err := dec.Decode(&v); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("adminapi: the listing broke off: %w", err)
		}
		if !yield(v) {
			return nil
		}
	}
}
