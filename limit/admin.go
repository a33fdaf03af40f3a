package limit

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/adminapi"
	"postern/internal/meter"
	"postern/list"
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
	// Raised is until when Most is more than the rule says.
	Raised time.Time `json:"raised,omitzero"`
}

// Status is what `postern status` shows of the check.
type Status struct {
	Rules  int `json:"rules"`
	Meters int `json:"meters"` // about
	Raised int `json:"raised"`
	// Only and Skip are the lists of the rules that have some.
	Only []RuleLists `json:"only,omitempty"`
	Skip []RuleLists `json:"skip,omitempty"`
}

// RuleLists are lists of one rule.
type RuleLists struct {
	Rule  string        `json:"rule"`
	Lists []list.Status `json:"lists"`
}

// Status returns how many rules and meters there are, and how the lists are.
// It does no I/O.
func (c *Check) Status() Status {
	s := Status{Rules: len(c.rules), Meters: c.admin.Count()}
	now := time.Now()
	for _, one := range *c.shared.raises.now.Load() {
		if now.Before(one.Until) {
			s.Raised++
		}
	}
	for i := range c.rules {
		r := &c.rules[i]
		if r.only != nil {
			s.Only = append(s.Only, RuleLists{r.Name, r.only.Status()})
		}
		if r.skip != nil {
			s.Skip = append(s.Skip, RuleLists{r.Name, r.skip.Status()})
		}
	}
	return s
}

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, now time.Time) {
	if s.Rules == 0 {
		return
	}
	fmt.Fprintf(w, "limit     %d rules, about %d meters", s.Rules, s.Meters)
	if s.Raised > 0 {
		fmt.Fprintf(w, ", %d raised", s.Raised)
	}
	fmt.Fprintln(w)
	for _, l := range s.Only {
		list.WriteStatus(w, "limit "+l.Rule+" only", l.Lists, now)
	}
	for _, l := range s.Skip {
		list.WriteStatus(w, "limit "+l.Rule+" skip", l.Lists, now)
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
				return nil, errKey
			}
			return nil, c.Reset(r.Context(), key)
		}),
		"POST /v1/limit/notify/test": adminapi.Answer(func(r *http.Request) (any, error) {
			var q testQuestion
			if err := adminapi.Decode(r, maxQuestion, &q); err != nil {
				return nil, err
			}
			out, err := c.TestNotify(r.Context(), q.Rule, time.Now())
			if err != nil {
				err = adminapi.Refused(err)
			}
			return out, err
		}),
		"GET /v1/limit/raise": adminapi.Answer(func(r *http.Request) (any, error) {
			return c.Raised(r.Context(), time.Now())
		}),
		"POST /v1/limit/raise": adminapi.Answer(func(r *http.Request) (any, error) {
			var q raiseQuestion
			if err := adminapi.Decode(r, maxQuestion, &q); err != nil {
				return nil, err
			}
			return c.Raise(r.Context(), q.Key, q.To, q.For, time.Now())
		}),
		"DELETE /v1/limit/raise": adminapi.Answer(func(r *http.Request) (any, error) {
			key := r.URL.Query().Get("key")
			if key == "" {
				return nil, errKey
			}
			return nil, c.CancelRaise(r.Context(), key, time.Now())
		}),
	}
}

// raiseQuestion is what `postern limit raise` asks for.
type raiseQuestion struct {
	Key string        `json:"key"`
	To  int64         `json:"to"`
	For time.Duration `json:"for"`
}

// testQuestion is what `postern limit notify --test` asks for.
type testQuestion struct {
	Rule string `json:"rule"`
}

// maxQuestion is the most octets of a question as JSON.
const maxQuestion = 16 << 10

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
	a, most, ok := c.askOf(key, now)
	if !ok {
		return m, false
	}
	m = Meter{Key: key, Rule: a.rule.Name, Most: most}
	if one, ok := c.shared.raises.of(key, now); ok && one.To > most {
		m.Most, m.Raised = one.To, one.Until
		if a.Kind == meter.Rate {
			a.limit(nil, 0, one.To)
		}
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

// Raise raises the limit of a meter for a time.
func (a Admin) Raise(ctx context.Context, key string, to int64, howLong time.Duration) (out Raise, err error) {
	err = a.Call(ctx, http.MethodPost, "/v1/limit/raise", raiseQuestion{key, to, howLong}, &out)
	return out, err
}

// Raised returns what is raised.
func (a Admin) Raised(ctx context.Context) (out []Raise, err error) {
	err = a.Call(ctx, http.MethodGet, "/v1/limit/raise", nil, &out)
	return out, err
}

// CancelRaise ends a raise before its time.
func (a Admin) CancelRaise(ctx context.Context, key string) error {
	var out any
	return a.Call(ctx, http.MethodDelete, "/v1/limit/raise?"+url.Values{"key": {key}}.Encode(), nil, &out)
}

// TestNotify sends a test to all whom a rule notifies.
func (a Admin) TestNotify(ctx context.Context, rule string) (out []Tested, err error) {
	err = a.Call(ctx, http.MethodPost, "/v1/limit/notify/test", testQuestion{rule}, &out)
	return out, err
}

// Reset empties a meter.
func (a Admin) Reset(ctx context.Context, key string) error {
	var out any
	return a.Call(ctx, http.MethodDelete, "/v1/limit?"+url.Values{"key": {key}}.Encode(), nil, &out)
}
