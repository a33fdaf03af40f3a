package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"

	"go.uber.org/zap"

	"postern/headercheck"
	"postern/lookup"
	"postern/provider"
)

// Providers is the part of the daemon that keeps providers' lists.
type Providers interface {
	Status() []provider.Status
	Show(name string) (provider.Shown, error)
	Refresh(ctx context.Context, name string, dry bool) (provider.Report, error)
	Pending(name string) (provider.Diff, *provider.Pending, error)
	Accept(ctx context.Context, name, id string) (provider.Report, error)
	History(name string) ([]provider.Change, error)
	Export(w io.Writer, name, result string) error
	Whois(addr netip.Addr) []provider.Match
}

// Difference is what accepting a refused update of a list would change.
type Difference struct {
	provider.Diff
	Pending *provider.Pending `json:"pending,omitempty"`
	History []provider.Change `json:"history,omitempty"`
}

// HeaderRules are the rules on message content with their hits.
type HeaderRules struct {
	Rules       []headercheck.RuleHits `json:"rules"`
	FilterLines []string               `json:"filter_lines,omitempty"` // for milter_header_checks
}

func (h *handler) contentRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/headers", h.headers)
	mux.HandleFunc("GET /v1/lookup/{map}", h.lookup)
	mux.HandleFunc("GET /v1/providers", func(w http.ResponseWriter, _ *http.Request) { reply(w, h.b.Providers().Status()) })
	mux.HandleFunc("GET /v1/providers/whois/{addr}", h.whois)
	mux.HandleFunc("GET /v1/providers/list/{name}", answer(func(r *http.Request) (any, error) { return h.b.Providers().Show(r.PathValue("name")) }))
	mux.HandleFunc("GET /v1/providers/list/{name}/diff", answer(h.difference))
	mux.HandleFunc("GET /v1/providers/list/{name}/export", h.export)
	mux.HandleFunc("POST /v1/providers/list/{name}/refresh", answer(func(r *http.Request) (any, error) {
		return h.b.Providers().Refresh(r.Context(), r.PathValue("name"), r.URL.Query().Get("dry") == "true")
	}))
	mux.HandleFunc("POST /v1/providers/list/{name}/accept", answer(func(r *http.Request) (any, error) {
		rep, err := h.b.Providers().Accept(r.Context(), r.PathValue("name"), r.URL.Query().Get("id"))
		if err == nil {
			h.log.Info("a refused update was accepted on request", zap.String("list", r.PathValue("name")), zap.String("id", rep.ID))
		}
		return rep, err
	}))
}

// answer makes a handler of what returns a value or what is wrong with the
// request.
func answer(f func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		reply(w, v)
	}
}

func (h *handler) headers(w http.ResponseWriter, _ *http.Request) {
	rules, lines := h.b.HeaderRules()
	reply(w, HeaderRules{rules, lines})
}

func (h *handler) lookup(w http.ResponseWriter, r *http.Request) {
	a, err := h.b.Lookup(r.Context(), r.PathValue("map"), r.URL.Query().Get("key"))
	switch {
	case errors.Is(err, lookup.ErrUnknown):
		fail(w, http.StatusNotFound, fmt.Errorf("there is no table %q", r.PathValue("map")))
	case err != nil:
		fail(w, http.StatusServiceUnavailable, err)
	default:
		reply(w, a)
	}
}

func (h *handler) difference(r *http.Request) (any, error) {
	name := r.PathValue("name")
	diff, pending, err := h.b.Providers().Pending(name)
	if err != nil {
		return nil, err
	}
	history, err := h.b.Providers().History(name)
	return Difference{diff, pending, history}, err
}

func (h *handler) export(w http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	if err := h.b.Providers().Export(&b, r.PathValue("name"), r.URL.Query().Get("result")); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // the client is gone: nobody to tell
}

func (h *handler) whois(w http.ResponseWriter, r *http.Request) {
	addr, err := netip.ParseAddr(r.PathValue("addr"))
	if err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("%q is not an IP address", r.PathValue("addr")))
		return
	}
	reply(w, h.b.Providers().Whois(addr.Unmap().WithZone("")))
}

// HeaderRules returns the rules on message content with their hits.
func (c *Client) HeaderRules(ctx context.Context) (out HeaderRules, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/headers", nil, &out)
	return out, err
}

// Lookup asks a table of the lookup door.
func (c *Client) Lookup(ctx context.Context, table, key string) (out lookup.Answer, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/lookup/"+url.PathEscape(table)+"?key="+url.QueryEscape(key), nil, &out)
	return out, err
}

func providerPath(name, more string) string {
	return "/v1/providers/list/" + url.PathEscape(name) + more
}

// Providers returns the lists.
func (c *Client) Providers(ctx context.Context) (out []provider.Status, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/providers", nil, &out)
	return out, err
}

// ProviderShow returns all that is known of a list.
func (c *Client) ProviderShow(ctx context.Context, name string) (out provider.Shown, err error) {
	err = c.call(ctx, http.MethodGet, providerPath(name, ""), nil, &out)
	return out, err
}

// ProviderRefresh reads the records of a list now; dry changes nothing.
func (c *Client) ProviderRefresh(ctx context.Context, name string, dry bool) (out provider.Report, err error) {
	more := "/refresh"
	if dry {
		more += "?dry=true"
	}
	err = c.call(ctx, http.MethodPost, providerPath(name, more), nil, &out)
	return out, err
}

// ProviderDiff returns what accepting the refused update would change.
func (c *Client) ProviderDiff(ctx context.Context, name string) (out Difference, err error) {
	err = c.call(ctx, http.MethodGet, providerPath(name, "/diff"), nil, &out)
	return out, err
}

// ProviderAccept takes the refused update with that id.
func (c *Client) ProviderAccept(ctx context.Context, name, id string) (out provider.Report, err error) {
	err = c.call(ctx, http.MethodPost, providerPath(name, "/accept?id="+url.QueryEscape(id)), nil, &out)
	return out, err
}

// ProviderExport returns a list as a cidr table.
func (c *Client) ProviderExport(ctx context.Context, name, result string) (string, error) {
	res, err := c.do(ctx, http.MethodGet, providerPath(name, "/export?result="+url.QueryEscape(result)), nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// Whois returns the lists that hold an address.
func (c *Client) Whois(ctx context.Context, addr netip.Addr) (out []provider.Match, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/providers/whois/"+url.PathEscape(addr.String()), nil, &out)
	return out, err
}
