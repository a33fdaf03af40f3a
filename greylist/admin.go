package greylist

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"go.uber.org/zap"

	"postern/internal/adminapi"
	"postern/list"
)

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, now time.Time) {
	list.WriteStatus(w, "greylist exceptions", s.Skipping, now)
	delay := s.Delay.String()
	if s.Long > 0 {
		delay += " or " + s.Long.String()
	}
	fmt.Fprintf(w, "greylist  %s: delay %s, %s; %d early retries can be answered from memory\n", s.Profile, delay, s.When, s.Hints)
}

// Forgotten is the answer to a forget call.
type Forgotten struct {
	Entries int `json:"entries"`
}

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/greylist": adminapi.Lines(c.log, func(r *http.Request, yield func(Entry) bool) error {
			f, err := filterOf(r)
			if err != nil {
				return err
			}
			return adminapi.Unavailable(c.admin.ListGreylist(r.Context(), f, time.Now(), yield))
		}),
		"DELETE /v1/greylist": adminapi.Answer(func(r *http.Request) (any, error) {
			f, err := filterOf(r)
			if err == nil && f.Who == "" && f.Sender == "" && f.Recipient == "" && r.URL.Query().Get("all") != "true" {
				err = errors.New("say what to forget: who, sender or recipient, or all=true")
			}
			if err != nil {
				return nil, err
			}
			n, err := c.admin.ForgetGreylist(r.Context(), f)
			if err != nil {
				return nil, adminapi.Unavailable(err)
			}
			c.log.Info("greylist entries forgotten on request", zap.Int("entries", n), zap.Any("filter", f))
			return Forgotten{n}, nil
		}),
		"POST /v1/greylist/learn": adminapi.Answer(func(r *http.Request) (any, error) {
			var in lesson
			if err := adminapi.Decode(r, maxPastBytes, &in); err != nil {
				return nil, err
			}
			if len(in.Past) > MaxPast {
				return nil, fmt.Errorf("%d in one call, at most %d", len(in.Past), MaxPast)
			}
			out, err := c.Learn(r.Context(), in.Session, in.Past, time.Now())
			if errors.Is(err, errLearned) {
				return nil, err
			}
			return out, adminapi.Unavailable(err)
		}),
		"GET /v1/greylist/stats": adminapi.Answer(func(r *http.Request) (any, error) {
			n, err := c.admin.CountGreylist(r.Context(), time.Now())
			return n, adminapi.Unavailable(err)
		}),
	}
}

// lesson is what a call of learn takes.
type lesson struct {
	Session string `json:"session"`
	Past    []Past `json:"past"`
}

func filterOf(r *http.Request) (f Filter, err error) {
	q := r.URL.Query()
	f = Filter{Kind: q.Get("kind"), Who: q.Get("who"), Sender: q.Get("sender"), Recipient: q.Get("recipient")}
	if f.Limit, err = adminapi.Limit(r); err != nil {
		return f, err
	}
	switch f.Kind {
	case "", KindTriplet, KindCredit, KindWaiting:
		return f, nil
	}
	return f, fmt.Errorf("kind=%q: one of triplet, credit, waiting", f.Kind)
}

func (f *Filter) query() url.Values {
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

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// List calls yield for each entry until it returns false.
func (c Admin) List(ctx context.Context, f Filter, yield func(Entry) bool) error {
	return adminapi.Each(ctx, c.Client, "/v1/greylist?"+f.query().Encode(), yield)
}

// Forget removes entries and returns how many. all must be set for an empty
// filter.
func (c Admin) Forget(ctx context.Context, f Filter, all bool) (int, error) {
	v := f.query()
	if all {
		v.Set("all", "true")
	}
	var out Forgotten
	err := c.Call(ctx, http.MethodDelete, "/v1/greylist?"+v.Encode(), nil, &out)
	return out.Entries, err
}

// Learn hands over mail of the past, at most [MaxPast] at once; see
// [Check.Learn].
func (c Admin) Learn(ctx context.Context, session string, past []Past) (out Learned, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/greylist/learn", lesson{session, past}, &out)
	return out, err
}

// Stats counts the entries.
func (c Admin) Stats(ctx context.Context) (out Counts, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/greylist/stats", nil, &out)
	return out, err
}
