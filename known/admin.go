package known

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/internal/mailaddr"
)

// Status is what `postern status` shows of the check.
type Status struct {
	Correspondents int `json:"correspondents"` // about
	Domains        int `json:"domains"`        // about; that users have written to
	Expected       int `json:"expected"`       // about; recipients and domains
	Waiting        int `json:"waiting"`        // to be learned
}

// Status returns the present counts. It does no I/O.
func (c *Check) Status() Status {
	return Status{c.stores.Correspondents.Count(), c.stores.Domains.Count(), c.stores.Expected.Count(), len(c.queue)}
}

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, _ time.Time) {
	fmt.Fprintf(w, "known     about %d correspondents, %d domains written to; mail to %d expected\n", s.Correspondents, s.Domains, s.Expected)
}

// Entry is a correspondent, or a domain that users have written to.
type Entry struct {
	Kind  string    `json:"kind"` // "correspondent", "domain"
	User  string    `json:"user"` // of ours; of a domain entry: our domain
	With  string    `json:"with"` // the address or domain outside
	First time.Time `json:"first,omitzero"`
	Last  time.Time `json:"last"`            // when a user has last written there; to the day for a domain
	Users int       `json:"users,omitempty"` // of a domain entry: how many have written there lately, as far as is counted
	Known bool      `json:"known"`           // false for a domain with too few users
}

// Kinds of entries.
const (
	KindCorrespondent = "correspondent"
	KindDomain        = "domain"
)

// Filter picks entries. Empty fields match everything; User and With match a
// part without regard to case.
type Filter struct {
	Kind       string
	User, With string
	Limit      int // most entries; 0: all
}

func (f *Filter) picks(kind, user, with string) bool {
	return (f.Kind == "" || f.Kind == kind) && strings.Contains(strings.ToLower(user), strings.ToLower(f.User)) &&
		strings.Contains(strings.ToLower(with), strings.ToLower(f.With))
}

// List calls yield for each live entry that f picks until it returns false.
func (c *Check) List(ctx context.Context, f Filter, now time.Time, yield func(Entry) bool) error {
	n, more, keep := 0, true, c.cfg.Keep.D()
	each := func(of Store, kind string, entry func(value string, e *Entry) bool) error {
		if !more || f.Kind != "" && f.Kind != kind {
			return nil
		}
		return of.Each(ctx, func(key, value string) bool {
			e := Entry{Kind: kind}
			if e.User, e.With = splitPair(key); !f.picks(kind, e.User, e.With) || !entry(value, &e) {
				return true
			}
			n++
			more = yield(e) && (f.Limit == 0 || n < f.Limit)
			return more
		})
	}
	err := each(c.stores.Correspondents, KindCorrespondent, func(value string, e *Entry) bool {
		s := parseSpan(value)
		e.First, e.Last, e.Known = time.Unix(s.first, 0).UTC(), time.Unix(s.last, 0).UTC(), true
		return alive(s.last, now, keep)
	})
	if err != nil {
		return err
	}
	return each(c.stores.Domains, KindDomain, func(value string, e *Entry) bool {
		w := parseWriters(value).alive(now, keep)
		e.Last, e.Users, e.Known = time.Unix(w.last()*int64(day/time.Second), 0).UTC(), len(w), c.cfg.DomainUsers > 0 && len(w) >= c.cfg.DomainUsers
		return len(w) > 0
	})
}

// Forget removes what f picks and returns how many entries that was. They are
// learned again from the next message.
func (c *Check) Forget(ctx context.Context, f Filter) (n int, err error) {
	for kind, of := range map[string]Store{KindCorrespondent: c.stores.Correspondents, KindDomain: c.stores.Domains} {
		var keys []string
		err := of.Each(ctx, func(key, _ string) bool {
			if user, with := splitPair(key); f.picks(kind, user, with) {
				keys = append(keys, key)
			}
			return true
		})
		if err != nil {
			return n, err
		}
		for _, key := range keys {
			gone := false
			err := change(ctx, of, key, func(old string) (string, time.Time, bool) {
				gone = old != ""
				return "", time.Time{}, !gone
			})
			if err != nil {
				return n, err
			}
			if gone {
				n++
			}
		}
	}
	c.recent.clear()
	return n, nil
}

// Stats are the totals that `postern known stats` shows.
type Stats struct {
	Correspondents int `json:"correspondents"`
	Domains        int `json:"domains"`       // that users have written to
	KnownDomains   int `json:"known_domains"` // of them, those that are known as a whole
	Users          int `json:"users"`         // of ours that have correspondents
	MostOfOne      int `json:"most_of_one"`   // correspondents of the user who has most
	Max            int `json:"max"`           // known.max_entries
	Expected       int `json:"expected"`      // expectations
}

// Count returns the totals. It may read the whole store.
func (c *Check) Count(ctx context.Context, now time.Time) (s Stats, err error) {
	users := map[string]int{}
	err = c.List(ctx, Filter{}, now, func(e Entry) bool {
		switch {
		case e.Kind == KindCorrespondent:
			s.Correspondents++
			users[e.User]++
			s.MostOfOne = max(s.MostOfOne, users[e.User])
		case e.Known:
			s.KnownDomains++
			fallthrough
		default:
			s.Domains++
		}
		return true
	})
	s.Users, s.Max = len(users), c.cfg.MaxEntries
	if err != nil {
		return s, err
	}
	all, err := c.Expectations(ctx, now)
	s.Expected = len(all)
	return s, err
}

// Written is one message of our users as a log has it.
type Written struct {
	User string    `json:"user"`
	To   string    `json:"to"`
	At   time.Time `json:"at"`
}

// Taken says what became of them.
type Taken struct {
	Added      int `json:"added"`
	Refreshed  int `json:"refreshed"`   // known for longer now
	Known      int `json:"known"`       // nothing new
	PassedOver int `json:"passed_over"` // no correspondence of two people, or a user of no domain of ours
	TooOld     int `json:"too_old"`     // written longer ago than known.keep
	NoRoom     int `json:"no_room"`     // known.max_entries are kept
}

// Add adds what became of others.
func (t *Taken) Add(o Taken) {
	t.Added += o.Added
	t.Refreshed += o.Refreshed
	t.Known += o.Known
	t.PassedOver += o.PassedOver
	t.TooOld += o.TooOld
	t.NoRoom += o.NoRoom
}

// MaxBatch is the most that one call takes.
const MaxBatch = 1000

// maxBatchBody is the most bytes of one such call.
const maxBatchBody = MaxBatch * 1024

// Learn takes what a log tells. It ends at the first error of the store.
func (c *Check) Learn(ctx context.Context, all []Written, now time.Time) (t Taken, err error) {
	for i := range all {
		w := &all[i]
		if w.At.After(now) {
			w.At = now
		}
		l, ok := c.pair(mailaddr.Parse(w.User), mailaddr.Parse(w.To), w.At)
		switch {
		case !ok:
			t.PassedOver++
			continue
		case !alive(w.At.Unix(), now, c.cfg.Keep.D()):
			t.TooOld++
			continue
		}
		res, err := c.learn(ctx, l)
		switch {
		case errors.Is(err, errFull):
			t.NoRoom++
		case err != nil:
			return t, err
		case res == added:
			t.Added++
		case res == refreshed:
			t.Refreshed++
		default:
			t.Known++
		}
	}
	return t, nil
}

// Settings are what reading a log needs to know.
type Settings struct {
	Authenticated bool           `json:"authenticated"`
	OwnNetworks   []netip.Prefix `json:"own_networks"`
	Keep          conf.Duration  `json:"keep"`
}

// expectCall is the body of a call.
type expectCall struct {
	To   string        `json:"to"`
	From string        `json:"from"`
	For  conf.Duration `json:"for"`
}

// Changed is the answer to a call that removes entries.
type Changed struct {
	Entries int `json:"entries"`
}

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/known": adminapi.Lines(c.log, func(r *http.Request, yield func(Entry) bool) error {
			f, err := filterOf(r)
			if err != nil {
				return err
			}
			return adminapi.Unavailable(c.List(r.Context(), f, time.Now(), yield))
		}),
		"DELETE /v1/known": adminapi.Answer(func(r *http.Request) (any, error) {
			f, err := filterOf(r)
			if err == nil && f.User == "" && f.With == "" && r.URL.Query().Get("all") != "true" {
				err = errors.New("say what to forget: user or with, or all=true")
			}
			if err != nil {
				return nil, err
			}
			n, err := c.Forget(r.Context(), f)
			if err != nil {
				return nil, adminapi.Unavailable(err)
			}
			c.log.Info("correspondents forgotten on request", zap.Int("entries", n), zap.Any("filter", f))
			return Changed{n}, nil
		}),
		"GET /v1/known/stats": adminapi.Answer(func(r *http.Request) (any, error) {
			s, err := c.Count(r.Context(), time.Now())
			return s, adminapi.Unavailable(err)
		}),
		"GET /v1/known/settings": adminapi.Answer(func(*http.Request) (any, error) {
			return Settings{c.cfg.Authenticated, c.cfg.OwnNetworks, c.cfg.Keep}, nil
		}),
		"POST /v1/known/learn": adminapi.Answer(func(r *http.Request) (any, error) {
			var batch []Written
			if err := adminapi.Decode(r, maxBatchBody, &batch); err != nil {
				return nil, err
			}
			if len(batch) > MaxBatch {
				return nil, fmt.Errorf("%d in one call, at most %d", len(batch), MaxBatch)
			}
			t, err := c.Learn(r.Context(), batch, time.Now())
			return t, adminapi.Unavailable(err)
		}),
		"GET /v1/expected": adminapi.Answer(func(r *http.Request) (any, error) {
			return c.Expectations(r.Context(), time.Now())
		}),
		"POST /v1/expected": adminapi.Answer(func(r *http.Request) (any, error) {
			var in expectCall
			if err := adminapi.Decode(r, 4096, &in); err != nil {
				return nil, err
			}
			e, err := c.Expect(r.Context(), in.To, in.From, in.For.D(), time.Now())
			if err == nil {
				c.log.Info("mail is expected", zap.String("to", e.To), zap.String("from", e.From), zap.Time("until", e.Until))
			}
			return e, err
		}),
		"DELETE /v1/expected": adminapi.Answer(func(r *http.Request) (any, error) {
			q := r.URL.Query()
			n, err := c.Cancel(r.Context(), q.Get("to"), q.Get("from"), time.Now())
			if err == nil && n == 0 {
				err = adminapi.NotFound(errors.New("no such mail is expected; `postern greylist expect --list` shows what is"))
			}
			return Changed{n}, err
		}),
	}
}

func filterOf(r *http.Request) (f Filter, err error) {
	q := r.URL.Query()
	f = Filter{Kind: q.Get("kind"), User: q.Get("user"), With: q.Get("with")}
	if f.Limit, err = adminapi.Limit(r); err != nil {
		return f, err
	}
	if f.Kind != "" && f.Kind != KindCorrespondent && f.Kind != KindDomain {
		return f, fmt.Errorf("kind=%q: one of %s, %s", f.Kind, KindCorrespondent, KindDomain)
	}
	return f, nil
}

func (f *Filter) query() url.Values {
	v := url.Values{}
	for name, value := range map[string]string{"kind": f.Kind, "user": f.User, "with": f.With} {
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
func (a Admin) List(ctx context.Context, f Filter, yield func(Entry) bool) error {
	return adminapi.Each(ctx, a.Client, "/v1/known?"+f.query().Encode(), yield)
}

// Forget removes entries and returns how many. all must be set for an empty
// filter.
func (a Admin) Forget(ctx context.Context, f Filter, all bool) (int, error) {
	v := f.query()
	if all {
		v.Set("all", "true")
	}
	var out Changed
	err := a.Call(ctx, http.MethodDelete, "/v1/known?"+v.Encode(), nil, &out)
	return out.Entries, err
}

// Stats returns the totals.
func (a Admin) Stats(ctx context.Context) (out Stats, err error) {
	err = a.Call(ctx, http.MethodGet, "/v1/known/stats", nil, &out)
	return out, err
}

// Settings returns what reading a log needs to know.
func (a Admin) Settings(ctx context.Context) (out Settings, err error) {
	err = a.Call(ctx, http.MethodGet, "/v1/known/settings", nil, &out)
	return out, err
}

// Learn hands over at most MaxBatch of what a log tells.
func (a Admin) Learn(ctx context.Context, batch []Written) (out Taken, err error) {
	err = a.Call(ctx, http.MethodPost, "/v1/known/learn", batch, &out)
	return out, err
}

// Expected returns what mail is expected.
func (a Admin) Expected(ctx context.Context) (out []Expected, err error) {
	err = a.Call(ctx, http.MethodGet, "/v1/expected", nil, &out)
	return out, err
}

// Expect lets mail past the greylist for a time: [Check.Expect].
func (a Admin) Expect(ctx context.Context, to, from string, d time.Duration) (out Expected, err error) {
	err = a.Call(ctx, http.MethodPost, "/v1/expected", expectCall{to, from, conf.Duration(d)}, &out)
	return out, err
}

// Cancel ends expectations and returns how many: [Check.Cancel].
func (a Admin) Cancel(ctx context.Context, to, from string) (int, error) {
	var out Changed
	err := a.Call(ctx, http.MethodDelete, "/v1/expected?"+url.Values{"to": {to}, "from": {from}}.Encode(), nil, &out)
	return out.Entries, err
}
