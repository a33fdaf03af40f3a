package dmarcreport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"postern/internal/adminapi"
	"postern/internal/aggregate"
	"postern/internal/mailaddr"
)

// Status is what `postern status` shows.
type Status struct {
	Enabled bool `json:"enabled"`
	Waiting int  `json:"waiting"` // rows that are not stored yet
	Domains int  `json:"domains"` // counted today by this gateway
}

// Status returns what is in memory. It does no I/O.
func (r *Reporter) Status() Status {
	m := r.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	return Status{r.cfg.Enabled, len(m.waiting), len(m.counted)}
}

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, _ time.Time) {
	if s.Enabled {
		fmt.Fprintf(w, "reports   %d domains counted today, %d rows not stored yet\n", s.Domains, s.Waiting)
	}
}

// Entry is a report as the administrator sees it.
type Entry struct {
	Day      string    `json:"day"` // UTC
	Domain   string    `json:"domain"`
	Messages int64     `json:"messages"`
	Rows     int       `json:"rows"`
	RUA      string    `json:"rua"`
	State    string    `json:"state"`            // "counting", "waiting", "sent", "sending", "failed", "unwanted"
	Detail   string    `json:"detail,omitempty"` // who did not get it, and why
	To       []string  `json:"to,omitempty"`     // who has got it; of a dry run who would
	Due      time.Time `json:"due"`
}

// Sent is what became of a report that was asked for.
type Sent struct {
	Entry
	Before  bool     `json:"before,omitempty"`  // it was sent before, or another gateway is sending it
	Skipped []string `json:"skipped,omitempty"` // of a dry run, who is left out and why
	Bytes   int      `json:"bytes,omitempty"`   // of a dry run, of the packed report
}

// Request asks for reports to be sent now.
type Request struct {
	Day    string `json:"day"`    // "" for yesterday, UTC
	Domain string `json:"domain"` // "" for all
	DryRun bool   `json:"dry_run"`
	Again  bool   `json:"again"` // those that were sent, too
	// Unfinished sends reports of a day that is not over, for a trial: the whole
	// ones go out later all the same.
	Unfinished bool `json:"unfinished"`
}

var errOff = errors.New("dmarc_reports.enabled is false: nothing is counted")

// Calls are what the reporter offers the administrator.
func (r *Reporter) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/dmarc/reports": adminapi.Answer(func(q *http.Request) (any, error) {
			date, domain, err := r.asked(q.URL.Query().Get("day"), q.URL.Query().Get("domain"))
			if err != nil {
				return nil, err
			}
			r.flushSoon(q.Context())
			return r.list(q.Context(), date, domain)
		}),
		"GET /v1/dmarc/report": adminapi.Answer(func(q *http.Request) (any, error) {
			date, domain, err := r.asked(q.URL.Query().Get("day"), q.URL.Query().Get("domain"))
			if err != nil {
				return nil, err
			}
			r.flushSoon(q.Context())
			all, err := r.reports(q.Context(), date, domain)
			if err != nil {
				return nil, err
			}
			if len(all) == 0 {
				return nil, fmt.Errorf("nothing was counted for %s", domain)
			}
			return r.feedback(all[len(all)-1], time.Now()), nil // the newest
		}),
		"POST /v1/dmarc/send": adminapi.Answer(func(q *http.Request) (any, error) {
			var ask Request
			if err := adminapi.Decode(q, 4<<10, &ask); err != nil {
				return nil, err
			}
			if ask.Day == "" {
				ask.Day = time.Now().UTC().Add(-day).Format(time.DateOnly)
			}
			date, domain, err := r.asked(ask.Day, ask.Domain)
			if err != nil {
				return nil, err
			}
			if !ask.DryRun && !ask.Unfinished && time.Now().Before(dayOf(date).Add(day)) {
				return nil, fmt.Errorf("%s is not over (UTC): say so with unfinished, and the whole report goes out later all the same", date)
			}
			r.flushSoon(q.Context())
			return r.sendNow(q.Context(), date, domain, ask)
		}),
	}
}

// asked checks what was asked for.
func (r *Reporter) asked(date, domain string) (string, string, error) {
	if !r.cfg.Enabled {
		return "", "", errOff
	}
	if date != "" && dayOf(date).IsZero() {
		return "", "", fmt.Errorf("%q is no day, such as 2026-11-27", date)
	}
	return date, mailaddr.Domain(domain), nil
}

func (r *Reporter) list(ctx context.Context, date, domain string) ([]Entry, error) {
	all, err := r.reports(ctx, date, domain)
	if err != nil {
		return nil, err
	}
	out := make([]Entry, 0, len(all))
	for _, rep := range all {
		text, err := r.store.Load(ctx, stateKey(rep.date, rep.domain))
		if err != nil {
			return nil, err
		}
		s := parseState(text)
		out = append(out, r.entry(rep, &s, time.Now()))
	}
	return out, nil
}

func (r *Reporter) entry(rep *report, s *state, now time.Time) Entry {
	e := Entry{
		Day: rep.date, Domain: rep.domain, Messages: rep.count, Rows: len(rep.rows), RUA: rep.newest.RUA, State: s.What, Detail: s.Why, To: s.To,
		Due: r.due(rep.date, hashOf(rep.domain)),
	}
	over := !now.Before(dayOf(rep.date).Add(day))
	switch {
	case s.What == "busy" && !s.open(rep.date, now):
		e.State = "sending"
	case !over && s.What == "":
		e.State = "counting"
	case s.What == "" || s.What == "busy" || s.What != "failed" && s.open(rep.date, now):
		e.State = "waiting"
	}
	return e
}

func (r *Reporter) sendNow(ctx context.Context, date, domain string, ask Request) ([]Sent, error) {
	all, err := r.reports(ctx, date, domain)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	out := []Sent{}
	for _, rep := range all {
		one := Sent{}
		if ask.DryRun {
			one.Entry = r.entry(rep, &state{}, now)
			packed, err := r.pack(rep, now)
			if err != nil {
				return nil, err
			}
			one.Bytes = len(packed)
			v := r.verify(ctx, rep.domain, rep.newest.RUA, r.cfg.MaxDestinations)
			for _, d := range v.to {
				if n := len(r.message(rep, packed, d.Address, now)); d.Limit > 0 && int64(n) > d.Limit {
					v.skipped = append(v.skipped, fmt.Sprintf("%s (the report has %d bytes, it takes %d)", d.Address, n, d.Limit))
					continue
				}
				one.To = append(one.To, d.Address)
			}
			one.Skipped = append(v.skipped, v.failed...)
			out = append(out, one)
			continue
		}
		s, taken, err := r.sendOne(ctx, rep, now, ask.Again)
		if err != nil {
			return nil, err
		}
		one.Entry, one.Before = r.entry(rep, &s, now), taken
		out = append(out, one)
	}
	return out, nil
}

// Admin makes the reporter's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// List returns the reports of a day, "" for all that are kept.
func (c Admin) List(ctx context.Context, date, domain string) (out []Entry, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/dmarc/reports?"+query(date, domain), nil, &out)
	return out, err
}

// Show returns the report of a domain, the newest without a day.
func (c Admin) Show(ctx context.Context, date, domain string) (out aggregate.Report, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/dmarc/report?"+query(date, domain), nil, &out)
	return out, err
}

// Send sends reports now.
func (c Admin) Send(ctx context.Context, ask Request) (out []Sent, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/dmarc/send", ask, &out)
	return out, err
}

func query(date, domain string) string {
	return url.Values{"day": {date}, "domain": {domain}}.Encode()
}
