package limit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/adminapi"
)

// AdminStore are the meters as values, for the administrator: those that
// [meter.Store] keeps.
type AdminStore interface {
	Load(ctx context.Context, key string) (string, error)
	Swap(ctx context.Context, key, old, next string, expires time.Time) (bool, error)
	Each(ctx context.Context, yield func(key, value string) bool) error
	Count() int
}

// Meter is one meter as the administrator sees it.
type Meter struct {
	Key   string  `json:"key"` // rule/"rate" or period/whose
	Rule  string  `json:"rule"`
	Used  int64   `json:"used"`
	Most  int64   `json:"most"`  // what the rule allows now
	Share float64 `json:"share"` // Used of Most
}

// Status is what `postern status` shows of the check.
type Status struct {
	Rules  int `json:"rules"`
	Meters int `json:"meters"` // about
}

// Status returns how many rules and meters there are. It does no I/O.
func (c *Check) Status() Status { return Status{len(c.rules), c.admin.Count()} }

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, _ time.Time) {
	if s.Rules > 0 {
		fmt.Fprintf(w, "limit     %d rules, about %d meters\n", s.Rules, s.Meters)
	}
}

// mostListed is how many meters a listing has when no limit is given.
const mostListed = 20

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/limit": adminapi.Answer(func(r *http.Request) (any, error) {
			n, err := adminapi.Limit(r)
			if err != nil {
				return nil, err
			}
			if n == 0 {
				n = mostListed
			}
			return c.Top(r.Context(), r.URL.Query().Get("find"), n, time.Now())
		}),
		"DELETE /v1/limit": adminapi.Answer(func(r *http.Request) (any, error) {
			key := r.URL.Query().Get("key")
			if key == "" {
				return nil, errors.New("no key")
			}
			return nil, c.Reset(r.Context(), key)
		}),
	}
}

// Top returns the n meters of which most is used, of those whose keys hold
// find. What has run empty is left out.
func (c *Check) Top(ctx context.Context, find string, n int, now time.Time) ([]Meter, error) {
	out := []Meter{}
	err := c.admin.Each(ctx, func(key, value string) bool {
		if m, ok := c.meter(key, value, now); ok && m.Used > 0 && strings.Contains(key, find) {
			out = append(out, m)
		}
		if len(out) >= 2*max(n, 1000) {
			out = best(out, n)
		}
		return true
	})
	return best(out, n), err
}

func best(meters []Meter, n int) []Meter {
	slices.SortFunc(meters, func(a, b Meter) int {
		if a.Share != b.Share {
			if a.Share > b.Share {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Key, b.Key)
	})
	return meters[:min(n, len(meters))]
}

// meter reads a stored meter; false for one of a rule that is gone.
func (c *Check) meter(key, value string, now time.Time) (m Meter, ok bool) {
	name, rest, _ := strings.Cut(key, "/")
	kind, _, _ := strings.Cut(rest, "/")
	i := slices.IndexFunc(c.rules, func(r rule) bool { return r.Name == name })
	if i < 0 {
		return m, false
	}
	r := &c.rules[i]
	m = Meter{Key: key, Rule: name}
	a := ask{rule: r}
	if kind == "rate" {
		if r.Rate.Units == 0 {
			return m, false
		}
		a.Most, m.Most = r.Rate.interval(r.Burst), r.Burst
	} else {
		q := slices.IndexFunc(r.Quota, func(q QuotaSpec) bool { return q.Period == kind })
		if q < 0 {
			return m, false
		}
		a.Kind, m.Most = r.quotaKind(), r.Quota[q].Units
		a.Start, a.End = r.Quota[q].period(now)
	}
	m.Used = a.units(a.Held(value, now))
	m.Share = float64(m.Used) / float64(m.Most)
	return m, true
}

// Reset empties a meter.
func (c *Check) Reset(ctx context.Context, key string) error {
	for {
		old, err := c.admin.Load(ctx, key)
		if err != nil {
			return err
		}
		if old == "" {
			return adminapi.NotFound(fmt.Errorf("there is no meter %q; `postern limit top` lists them", key))
		}
		if done, err := c.admin.Swap(ctx, key, old, "", time.Time{}); done || err != nil {
			return err
		}
	}
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Top returns the n meters of which most is used (0: 20), of those whose keys
// hold find.
func (a Admin) Top(ctx context.Context, find string, n int) (out []Meter, err error) {
	q := url.Values{"find": {find}, "limit": {strconv.Itoa(n)}}
	err = a.Call(ctx, http.MethodGet, "/v1/limit?"+q.Encode(), nil, &out)
	return out, err
}

// Reset empties a meter.
func (a Admin) Reset(ctx context.Context, key string) error {
	var out any
	return a.Call(ctx, http.MethodDelete, "/v1/limit?"+url.Values{"key": {key}}.Encode(), nil, &out)
}
