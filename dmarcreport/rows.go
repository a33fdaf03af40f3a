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
	"sync"
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

// Keys of values: "r/DAY/DOMAIN/ROW" is a row, "s/DAY/DOMAIN" what became of the
// report of a domain, which are hashes. Who looks for what is to do reads keys.
func rowKey(date, domain, row string) string { return "r/" + date + "/" + hashOf(domain) + "/" + row }
func stateKey(date, domain string) string    { return "s/" + date + "/" + hashOf(domain) }

// splitKey returns the parts of a key, "" for what is none.
func splitKey(key string) (kind, date, domain string) {
	parts := strings.Split(key, "/")
	if len(parts) < 3 || dayOf(parts[1]).IsZero() {
		return "", "", ""
	}
	return parts[0], parts[1], parts[2]
}

func hashOf(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:16])
}

// pending are rows that are not in the store yet.
type pending struct {
	date string
	row  *row
}

// Bounds of what strangers make long. The record of one message has as many
// signatures as are verified, and domains are never long.
const (
	maxRUA = 1000
	maxFO  = 30
)

// memory is what has not been stored, and what was counted. It outlives a
// reload.
type memory struct {
	mu      sync.Mutex
	waiting map[string]*pending
	today   string                         // the newest day, what counted is of
	counted map[string]map[string]struct{} // rows by domain
	rows    int                            // of all domains
	full    bool                           // was said today
}

// Add counts a message. rua is the value of that tag; the count of the record is
// that of the messages. It does no I/O.
func (r *Reporter) Add(at time.Time, p aggregate.Policy, rua string, rec aggregate.Record) {
	if !r.cfg.Enabled || r.cfg.excluded(p.Domain) {
		return
	}
	if rua = shorten(rua); rua == "" {
		return
	}
	if len(p.FO) > maxFO {
		p.FO = "0"
	}
	n := rec.Row.Count
	rec.Row.Count = 0
	text, err := json.Marshal(rec)
	if err != nil {
		return // strings and numbers always can be
	}
	date := at.UTC().Format(time.DateOnly)
	key := rowKey(date, p.Domain, hashOf(string(text)))
	m := r.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.waiting[key]; w != nil {
		w.row.Record.Row.Count += n
		w.row.Policy, w.row.RUA, w.row.Seen = p, rua, max(w.row.Seen, at.Unix())
		return
	}
	if !m.room(&r.cfg, date, p.Domain, key) {
		r.metrics.dropped.Add(float64(n))
		if !m.full {
			m.full = true
			r.log.Warn("there is no room for more rows of DMARC reports today", zap.String("domain", p.Domain), zap.Int("domains", len(m.counted)), zap.Int("rows", m.rows))
		}
		return
	}
	rec.Row.Count = n
	m.waiting[key] = &pending{date, &row{p, rua, rec, at.Unix()}}
}

// room reports whether a row may be counted that day. m.mu is held.
func (m *memory) room(cfg *Config, date, domain, key string) bool {
	if m.today < date { // one of yesterday counts among those of today
		m.today, m.counted, m.rows, m.full = date, map[string]map[string]struct{}{}, 0, false
	}
	rows := m.counted[domain]
	if _, ok := rows[key]; ok {
		return true
	}
	// Rows of days before may wait for a store that does not answer.
	if m.rows >= cfg.MaxTotal || len(m.waiting) >= cfg.MaxTotal || len(rows) >= cfg.MaxRows {
		return false
	}
	if rows == nil {
		if len(m.counted) >= cfg.MaxDomains {
			return false
		}
		rows = map[string]struct{}{}
		m.counted[domain] = rows
	}
	rows[key] = struct{}{}
	m.rows++
	return true
}

const maxSwaps = 5

var errContended = errors.New("changed by others again and again")

// flush writes what waits to the store. What cannot be written waits on.
func (r *Reporter) flush(ctx context.Context) {
	m := r.memory
	m.mu.Lock()
	batch := m.waiting
	m.waiting = map[string]*pending{}
	m.mu.Unlock()
	var failed error
	for key, w := range batch {
		if failed == nil {
			if failed = r.write(ctx, key, w); failed == nil {
				continue
			}
		}
		m.mu.Lock()
		if now := m.waiting[key]; now != nil {
			now.row.Record.Row.Count += w.row.Record.Row.Count
		} else {
			m.waiting[key] = w
		}
		m.mu.Unlock()
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

// todo returns the keys of states of which there are rows, and whose report is
// to be sent now: at most so many, the most urgent first.
func (r *Reporter) todo(ctx context.Context, now time.Time, most int) ([]string, error) {
	type work struct {
		key string
		due time.Time
	}
	found, states := map[string]work{}, map[string]state{}
	err := r.store.Each(ctx, func(key, value string) bool {
		switch kind, date, domain := splitKey(key); kind {
		case "r":
			if due := r.due(date, domain); !now.Before(due) && !now.After(dayOf(date).Add(day+r.cfg.Keep.D())) {
				at := "s/" + date + "/" + domain
				found[at] = work{at, due}
			}
		case "s":
			states[key] = parseState(value)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(found, func(key string, _ work) bool {
		s, ok := states[key]
		_, date, _ := splitKey(key)
		return ok && !s.open(date, now)
	})
	all := slices.SortedFunc(maps.Values(found), func(a, b work) int { return cmp.Or(a.due.Compare(b.due), strings.Compare(a.key, b.key)) })
	out := make([]string, 0, min(len(all), most))
	for _, w := range all[:min(len(all), most)] {
		out = append(out, w.key)
	}
	return out, nil
}

// reports returns what the store has of one day or of all (""), of one domain
// or of all.
func (r *Reporter) reports(ctx context.Context, date, domain string) ([]*report, error) {
	sum := hashOf(domain)
	return r.collect(ctx, func(d, s string) bool { return (date == "" || d == date) && (domain == "" || s == sum) })
}

// collect returns the reports of the days and hashes of domains that are wanted.
func (r *Reporter) collect(ctx context.Context, wanted func(date, domain string) bool) ([]*report, error) {
	found, seen := map[[2]string]*report{}, map[string]bool{}
	err := r.store.Each(ctx, func(key, value string) bool {
		kind, of, sum := splitKey(key)
		if kind != "r" || !wanted(of, sum) || seen[key] { // a value can come twice
			return true
		}
		one, ok := parseRow(value)
		if !ok {
			return true
		}
		seen[key] = true
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
