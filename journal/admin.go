package journal

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"postern/internal/adminapi"
)

// Calls are what the journal offers the administrator.
func (j *Journal) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/decisions": adminapi.Answer(func(r *http.Request) (any, error) {
			n, err := adminapi.Limit(r)
			if err != nil {
				return nil, err
			}
			if n == 0 {
				n = 50
			}
			return j.Recent(r.Context(), n)
		}),
		"GET /v1/decisions/{ref}": adminapi.Answer(func(r *http.Request) (any, error) {
			rec, err := j.Find(r.Context(), r.PathValue("ref"))
			if err == nil && rec == nil {
				err = notFound(r.PathValue("ref"))
			}
			if err != nil {
				return nil, err
			}
			return rec, nil
		}),
		"GET /v1/journal/search": patient(adminapi.Lines(j.log, func(r *http.Request, yield func(json.RawMessage) bool) error {
			f, err := filterOf(r)
			if err != nil {
				return err
			}
			_, err = j.SearchJSON(r.Context(), f, yield)
			return err
		})),
		"GET /v1/journal/shadow": patient(adminapi.Answer(func(r *http.Request) (any, error) {
			f, err := filterOf(r)
			if err != nil {
				return nil, err
			}
			return Shadow(r.Context(), j, *f)
		})),
		"GET /v1/journal/tail":   patient(http.HandlerFunc(j.serveTail)),
		"GET /v1/journal/status": adminapi.Answer(func(*http.Request) (any, error) { return j.Status(), nil }),
	}
}

// patient serves what may take longer than a request may take to be read: the
// server would take the end of that time for the end of the client.
func patient(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // without, it ends early
		h.ServeHTTP(w, r)
	})
}

func notFound(ref string) error {
	return adminapi.NotFound(fmt.Errorf("no decision %s in the journal: it is older than what is kept, or of another host; look for its ref in the log", adminapi.Printable(ref)))
}

// Admin makes the calls of this package at a running daemon.
type Admin struct{ *adminapi.Client }

// Decision returns the kept decision with that reference.
func (a Admin) Decision(ctx context.Context, reference string) (*Record, error) {
	r := new(Record)
	err := a.Call(ctx, http.MethodGet, "/v1/decisions/"+url.PathEscape(reference), nil, r)
	return r, err
}

// Recent returns the newest n refused decisions.
func (a Admin) Recent(ctx context.Context, n int) (out []*Record, err error) {
	err = a.Call(ctx, http.MethodGet, fmt.Sprint("/v1/decisions?limit=", n), nil, &out)
	return out, err
}

// SearchJSON calls yield with the JSON of the decisions that the filter lets
// through, the newest first, until it returns false. Each is a [Record].
func (a Admin) SearchJSON(ctx context.Context, f *Filter, yield func(json.RawMessage) bool) error {
	return adminapi.Each(ctx, a.Client, "/v1/journal/search?"+f.Values().Encode(), yield)
}

// Shadow reports what checks in shadow mode would have done: see [Shadow].
func (a Admin) Shadow(ctx context.Context, f *Filter) (*ShadowReport, error) {
	r := new(ShadowReport)
	err := a.Call(ctx, http.MethodGet, "/v1/journal/shadow?"+f.Values().Encode(), nil, r)
	return r, err
}

// Status tells how the journal is.
func (a Admin) Status(ctx context.Context) (s Status, err error) {
	err = a.Call(ctx, http.MethodGet, "/v1/journal/status", nil, &s)
	return s, err
}
