package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/internal/adminapi"
	"postern/verify/callout"
	"postern/verify/directory"
)

// WriteStatus implements adminapi.Status.
func (v Status) WriteStatus(w io.Writer, now time.Time) {
	if v.Routes == 0 {
		return
	}
	fmt.Fprintf(w, "verify    %d routes; about %d addresses remembered, %d being asked about\n", v.Routes, v.Entries, v.Pending)
	for _, h := range v.NextHops {
		fmt.Fprintf(w, "          %s: %s", h.NextHop, strings.ToUpper(h.State))
		switch {
		case h.Alarm != "":
			fmt.Fprintf(w, ": %s", adminapi.Printable(h.Alarm))
		case h.LastError != "":
			fmt.Fprintf(w, "; last error %s ago: %s", adminapi.Ago(now, h.ErrorAt), adminapi.Printable(h.LastError))
		}
		all := 0
		for _, yes := range h.AcceptAll {
			if yes {
				all++
			}
		}
		if all > 0 {
			fmt.Fprintf(w, "; TAKES EVERY ADDRESS of %d domains", all)
		}
		fmt.Fprintln(w)
	}
	for _, d := range v.Directories {
		if !d.Healthy {
			fmt.Fprintf(w, "          ldap:%s NOT USABLE since %s: %s\n", d.Name, adminapi.Ago(now, d.ErrorAt), adminapi.Printable(d.LastError))
		}
	}
	for _, f := range v.Files {
		if f.Fault != "" {
			fmt.Fprintf(w, "          %s: EDIT NOT TAKEN, its %d entries stay in force: %s\n", f.File, f.Entries, f.Fault)
		}
	}
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

// maxLearn is the most bytes of one call to learn.
const maxLearn = 4 << 20

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"POST /v1/verify/ask": adminapi.Answer(func(r *http.Request) (any, error) {
			return c.Ask(r.Context(), r.URL.Query().Get("address"))
		}),
		"GET /v1/verify": adminapi.Lines(c.log, func(r *http.Request, yield func(Record) bool) error {
			f, err := filterOf(r)
			if err != nil {
				return err
			}
			return adminapi.Unavailable(c.List(r.Context(), f, yield))
		}),
		"DELETE /v1/verify": adminapi.Answer(func(r *http.Request) (any, error) {
			f, err := changes(r)
			if err != nil {
				return nil, err
			}
			n, err := c.Purge(r.Context(), f)
			if err != nil {
				return nil, adminapi.Unavailable(err)
			}
			c.log.Info("cached addresses forgotten on request", zap.Int("addresses", n), zap.String("which", f.Which), zap.Bool("negative", f.Negative))
			return Done{Addresses: n}, nil
		}),
		"POST /v1/verify/recheck": adminapi.Answer(func(r *http.Request) (any, error) {
			f, err := changes(r)
			if err != nil {
				return nil, err
			}
			n, left, err := c.Recheck(r.Context(), f)
			return Done{n, left}, adminapi.Unavailable(err)
		}),
		"POST /v1/verify/learn": adminapi.Answer(func(r *http.Request) (any, error) {
			var addresses []string
			if err := adminapi.Decode(r, maxLearn, &addresses); err != nil {
				return nil, err
			}
			n, left, err := c.Learn(r.Context(), addresses)
			return Done{n, left}, adminapi.Unavailable(err)
		}),
		"POST /v1/verify/import": adminapi.Answer(func(r *http.Request) (any, error) {
			var in []Remembered
			if err := adminapi.Decode(r, maxLearn, &in); err != nil {
				return nil, err
			}
			out, err := c.Import(r.Context(), in)
			return out, adminapi.Unavailable(err)
		}),
		"GET /v1/verify/next-hops": adminapi.Answer(func(*http.Request) (any, error) {
			hops, dirs := c.NextHops()
			return NextHops{hops, dirs}, nil
		}),
	}
}

func filterOf(r *http.Request) (Filter, error) {
	q := r.URL.Query()
	f, err := ParseFilter(q.Get("which"))
	if err != nil {
		return f, err
	}
	f.Negative = q.Get("negative") == "true"
	f.Limit, err = adminapi.Limit(r)
	return f, err
}

// changes reads the filter of a call that changes many addresses: all of them
// only when that is said.
func changes(r *http.Request) (Filter, error) {
	f, err := filterOf(r)
	if err == nil && f.Which == "" && !f.Negative && r.URL.Query().Get("all") != "true" {
		err = errors.New("say which: an address, @domain, negative=true, or all=true")
	}
	return f, err
}

func (f *Filter) query(all bool) string {
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

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Ask asks about an address now, with the dialogue.
func (c Admin) Ask(ctx context.Context, address string) (*Report, error) {
	rep := new(Report)
	err := c.Call(ctx, http.MethodPost, "/v1/verify/ask?address="+url.QueryEscape(address), nil, rep)
	return rep, err
}

// List calls yield for each cached address until it returns false.
func (c Admin) List(ctx context.Context, f Filter, yield func(Record) bool) error {
	return adminapi.Each(ctx, c.Client, "/v1/verify?"+f.query(false), yield)
}

// Purge forgets addresses. all must be set for an empty filter.
func (c Admin) Purge(ctx context.Context, f Filter, all bool) (out Done, err error) {
	err = c.Call(ctx, http.MethodDelete, "/v1/verify?"+f.query(all), nil, &out)
	return out, err
}

// Recheck has addresses asked about again in the background.
func (c Admin) Recheck(ctx context.Context, f Filter, all bool) (out Done, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/verify/recheck?"+f.query(all), nil, &out)
	return out, err
}

// Learn has addresses cached as known.
func (c Admin) Learn(ctx context.Context, addresses []string) (out Done, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/verify/learn", addresses, &out)
	return out, err
}

// Import hands over what another program remembered.
func (c Admin) Import(ctx context.Context, all []Remembered) (out Imported, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/verify/import", all, &out)
	return out, err
}

// NextHops returns how next hops and directories are.
func (c Admin) NextHops(ctx context.Context) (out NextHops, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/verify/next-hops", nil, &out)
	return out, err
}
