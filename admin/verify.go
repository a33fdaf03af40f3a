package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"go.uber.org/zap"

	"postern/verify"
	"postern/verify/callout"
	"postern/verify/directory"
)

// Verifier is the part of the daemon that knows recipients.
type Verifier interface {
	// Ask asks about an address now.
	Ask(ctx context.Context, address string) (*verify.Report, error)
	// List calls yield for remembered addresses until it returns false.
	List(ctx context.Context, f verify.Filter, yield func(verify.Record) bool) error
	Purge(ctx context.Context, f verify.Filter) (int, error)
	Recheck(ctx context.Context, f verify.Filter) (asked, left int, err error)
	Learn(ctx context.Context, addresses []string) (learned, left int, err error)
	NextHops() ([]callout.Status, []directory.Status)
}

// NextHops is the answer to the next hops call.
type NextHops struct {
	NextHops    []callout.Status   `json:"next_hops"`
	Directories []directory.Status `json:"directories"`
}

// Done is the answer to a call that goes through addresses.
type Done struct {
	Addresses int `json:"addresses"`
	Left      int `json:"left,omitempty"` // left out
}

func (h *handler) verifyRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/verify/ask", h.verifyAsk)
	mux.HandleFunc("GET /v1/verify", h.verifyList)
	mux.HandleFunc("DELETE /v1/verify", h.verifyPurge)
	mux.HandleFunc("POST /v1/verify/recheck", h.verifyRecheck)
	mux.HandleFunc("POST /v1/verify/learn", h.verifyLearn)
	mux.HandleFunc("GET /v1/verify/next-hops", h.verifyNextHops)
}

func (h *handler) verifyAsk(w http.ResponseWriter, r *http.Request) {
	rep, err := h.b.Verify().Ask(r.Context(), r.URL.Query().Get("address"))
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	reply(w, rep)
}

func verifyFilter(r *http.Request) (verify.Filter, error) {
	q := r.URL.Query()
	f, err := verify.ParseFilter(q.Get("which"))
	if err != nil {
		return f, err
	}
	f.Negative = q.Get("negative") == "true"
	if s := q.Get("limit"); s != "" {
		if f.Limit, err = strconv.Atoi(s); err != nil || f.Limit < 0 {
			return f, fmt.Errorf("limit=%q is not a number", s)
		}
	}
	return f, nil
}

// verifyList writes one JSON value a line.
func (h *handler) verifyList(w http.ResponseWriter, r *http.Request) {
	f, err := verifyFilter(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	enc := json.NewEncoder(w)
	wrote := false
	err = h.b.Verify().List(r.Context(), f, func(rec verify.Record) bool {
		wrote = true
		return enc.Encode(rec) == nil
	})
	switch {
	case err == nil:
	case wrote: // as in greylistList
		h.log.Warn("listing of addresses broke off", zap.Error(err))
		panic(http.ErrAbortHandler)
	default:
		fail(w, http.StatusServiceUnavailable, err)
	}
}

// changes reads the filter of a call that changes many addresses: all of them
// only when that is said.
func changes(r *http.Request) (verify.Filter, error) {
	f, err := verifyFilter(r)
	if err == nil && f.Which == "" && !f.Negative && r.URL.Query().Get("all") != "true" {
		err = errors.New("say which: an address, @domain, negative=true, or all=true")
	}
	return f, err
}

func (h *handler) verifyPurge(w http.ResponseWriter, r *http.Request) {
	f, err := changes(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	n, err := h.b.Verify().Purge(r.Context(), f)
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	h.log.Info("remembered addresses forgotten on request", zap.Int("addresses", n), zap.String("which", f.Which), zap.Bool("negative", f.Negative))
	reply(w, Done{Addresses: n})
}

func (h *handler) verifyRecheck(w http.ResponseWriter, r *http.Request) {
	f, err := changes(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	n, left, err := h.b.Verify().Recheck(r.Context(), f)
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	reply(w, Done{n, left})
}

// maxLearn is the most bytes of one call to learn.
const maxLearn = 4 << 20

func (h *handler) verifyLearn(w http.ResponseWriter, r *http.Request) {
	var addresses []string
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxLearn)).Decode(&addresses); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	n, left, err := h.b.Verify().Learn(r.Context(), addresses)
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	reply(w, Done{n, left})
}

func (h *handler) verifyNextHops(w http.ResponseWriter, _ *http.Request) {
	hops, dirs := h.b.Verify().NextHops()
	reply(w, NextHops{hops, dirs})
}

// VerifyAsk asks about an address now, with the dialogue.
func (c *Client) VerifyAsk(ctx context.Context, address string) (*verify.Report, error) {
	rep := new(verify.Report)
	err := c.call(ctx, http.MethodPost, "/v1/verify/ask?address="+url.QueryEscape(address), nil, rep)
	return rep, err
}

func verifyQuery(f verify.Filter, all bool) string {
	v := url.Values{}
	if f.Which != "" {
		v.Set("which", f.Which)
	}
	if f.Negative {
		v.Set("negative", "true")
	}
	if f.Limit > 0 {
		v.Set("limit", strconv.Itoa(f.Limit))
	}
	if all {
		v.Set("all", "true")
	}
	return v.Encode()
}

// VerifyList calls yield for each remembered address until it returns false.
func (c *Client) VerifyList(ctx context.Context, f verify.Filter, yield func(verify.Record) bool) error {
	res, err := c.do(ctx, http.MethodGet, "/v1/verify?"+verifyQuery(f, false), nil)
	if err != nil {
		return err
	}
	return eachLine(res, yield)
}

// VerifyPurge forgets addresses. all must be set for an empty filter.
func (c *Client) VerifyPurge(ctx context.Context, f verify.Filter, all bool) (out Done, err error) {
	err = c.call(ctx, http.MethodDelete, "/v1/verify?"+verifyQuery(f, all), nil, &out)
	return out, err
}

// VerifyRecheck has addresses asked about again in the background.
func (c *Client) VerifyRecheck(ctx context.Context, f verify.Filter, all bool) (out Done, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/verify/recheck?"+verifyQuery(f, all), nil, &out)
	return out, err
}

// VerifyLearn has addresses remembered as known.
func (c *Client) VerifyLearn(ctx context.Context, addresses []string) (out Done, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/verify/learn", addresses, &out)
	return out, err
}

// VerifyNextHops returns how next hops and directories are.
func (c *Client) VerifyNextHops(ctx context.Context) (out NextHops, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/verify/next-hops", nil, &out)
	return out, err
}
