package dmarcreport

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/internal/aggregate"
)

// Store keeps small values: rows that have been counted, and which reports were
// sent. A Swap puts next in the place of old if that is what is there, "" for
// nothing. All return by ctx's deadline.
type Store interface {
	Load(ctx context.Context, key string) (string, error)
	Swap(ctx context.Context, key, old, next string, expires time.Time) (bool, error)
	Each(ctx context.Context, yield func(key, value string) bool) error
}

// row is one row of a report as it is stored.
type row struct {
	Policy aggregate.Policy `json:"policy"`
	RUA    string           `json:"rua"`
	Record aggregate.Record `json:"record"` // with its count
	Seen   int64            `json:"seen"`   // when last; Unix seconds
}

// Keys of values: "r/DAY/HASH" is a row, "s/DAY/HASH" what became of the report
// of a domain.
func rowKey(date, sum string) string      { return "r/" + date + "/" + sum }
func stateKey(date, domain string) string { return "s/" + date + "/" + hashOf(domain) }

func hashOf(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:16])
}

// pending are rows that are not in the store yet.
type pending struct {
	date string
	row  *row
}

// maxPending bounds what waits for a store that does not answer.
const maxPending = 50_000

// Add counts a message. rua is the value of that tag; the count of the record is
// that of the messages. It does no I/O.
func (r *Reporter) Add(at time.Time, p aggregate.Policy, rua string, rec aggregate.Record) {
	if !r.cfg.Enabled || r.cfg.excluded(p.Domain) || len(parseRUA(rua)) == 0 {
		return
	}
	n := rec.Row.Count
	rec.Row.Count = 0
	text, err := json.Marshal(rec)
	if err != nil {
		return // strings and numbers always can be
	}
	date := at.UTC().Format(time.DateOnly)
	key := rowKey(date, hashOf(p.Domain, string(text)))
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.waiting[key]; w != nil {
		w.row.Record.Row.Count += n
		w.row.Policy, w.row.RUA, w.row.Seen = p, rua, max(w.row.Seen, at.Unix())
		return
	}
	if !r.room(date, p.Domain, key) || len(r.waiting) >= maxPending {
		r.metrics.dropped.Add(float64(n))
		return
	}
	rec.Row.Count = n
	r.waiting[key] = &pending{date, &row{p, rua, rec, at.Unix()}}
}

// room reports whether a row may be counted that day. r.mu is held.
func (r *Reporter) room(date, domain, key string) bool {
	if r.today != date {
		r.today, r.counted = date, map[string]map[string]struct{}{}
	}
	rows := r.counted[domain]
	if rows == nil {
		if len(r.counted) >= r.cfg.MaxDomains {
			return false
		}
		rows = map[string]struct{}{}
		r.counted[domain] = rows
	}
	if _, ok := rows[key]; !ok && len(rows) >= r.cfg.MaxRows {
		return false
	}
	rows[key] = struct{}{}
	return true
}

const maxSwaps = 5

var errContended = errors.New("changed by others again and again")

// flush writes what waits to the store. What cannot be written waits on.
func (r *Reporter) flush(ctx context.Context) {
	r.mu.Lock()
	batch := r.waiting
	r.waiting = map[string]*pending{}
	r.mu.Unlock()
	var failed error
	for key, w := range batch {
		if failed == nil {
			if failed = r.write(ctx, key, w); failed == nil {
				continue
			}
		}
		r.mu.Lock()
		if now := r.waiting[key]; now != nil {
			now.row.Record.Row.Count += w.row.Record.Row.Count
		} else {
			r.waiting[key] = w
		}
		r.mu.Unlock()
	}
	if failed != nil {
		r.log.Warn("rows of DMARC reports could not be stored, they are kept in memory", zap.Error(failed))
	}
}

func (r *Reporter) write(ctx context.Context, key string, w *pending) error {
	for range maxSwaps {
		old, err := r.store.Load(ctx, key)
		if err != nil {
			return err
		}
		next := *w.row
		if before, ok := parseRow(old); ok {
			next.Record.Row.Count += before.Record.Row.Count
			if before.Seen > next.Seen {
				next.Policy, next.RUA, next.Seen = before.Policy, before.RUA, before.Seen
			}
		}
		text, err := json.Marshal(&next)
		if err != nil {
			return err
		}
		if ok, err := r.store.Swap(ctx, key, old, string(text), r.expires(w.date)); ok || err != nil {
			return err
		}
	}
	return errContended
}

func parseRow(text string) (out row, ok bool) {
	if text == "" {
		return row{}, false
	}
	return out, json.Unmarshal([]byte(text), &out) == nil
}

// expires is until when what belongs to a day is kept.
func (r *Reporter) expires(date string) time.Time {
	return dayOf(date).Add(2*day + r.cfg.Keep.D())
}

// dayOf returns the beginning of a day, the zero time for what is none.
func dayOf(date string) time.Time {
	t, err := time.Parse(time.DateOnly, date)
	if err != nil {
		return time.Time{}
	}
	return t
}

// report is what was counted of a domain and day.
type report struct {
	date   string
	domain string
	newest row // has the policy
	rows   []aggregate.Record
	count  int64
}

// reports returns what the store has, of one day or of all ("").
func (r *Reporter) reports(ctx context.Context, date, domain string) ([]*report, error) {
	found, seen := map[[2]string]*report{}, map[string]bool{}
	err := r.store.Each(ctx, func(key, value string) bool {
		kind, rest, _ := strings.Cut(key, "/")
		of, _, _ := strings.Cut(rest, "/")
		if kind != "r" || date != "" && of != date || dayOf(of).IsZero() {
			return true
		}
		one, ok := parseRow(value)
		if seen[key] { // a value can come twice
			return true
		}
		seen[key] = true
		if !ok || domain != "" && one.Policy.Domain != domain {
			return true
		}
		id := [2]string{of, one.Policy.Domain}
		rep := found[id]
		if rep == nil {
			rep = &report{date: of, domain: one.Policy.Domain}
			found[id] = rep
		}
		rep.rows = append(rep.rows, one.Record)
		rep.count += one.Record.Row.Count
		if one.Seen >= rep.newest.Seen {
			rep.newest = one
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	out := slices.SortedFunc(maps.Values(found), func(a, b *report) int {
		return cmp.Or(strings.Compare(a.date, b.date), strings.Compare(a.domain, b.domain))
	})
	for _, rep := range out {
		slices.SortFunc(rep.rows, func(a, b aggregate.Record) int {
			return cmp.Or(cmp.Compare(b.Row.Count, a.Row.Count), strings.Compare(a.Row.SourceIP, b.Row.SourceIP), strings.Compare(a.Identifiers.HeaderFrom, b.Identifiers.HeaderFrom))
		})
	}
	return out, nil
}
