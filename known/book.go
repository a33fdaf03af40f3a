package known

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Store is one space of small values. All methods are safe for concurrent use
// and return by ctx's deadline.
type Store interface {
	// Load returns a value, "" when there is none.
	Load(ctx context.Context, key string) (string, error)
	// Swap puts next in the place of old, "" standing for none, and reports
	// whether old was there. After expires the value may be dropped.
	Swap(ctx context.Context, key, old, next string, expires time.Time) (bool, error)
	// Each calls yield for the values until it returns false. One can come twice.
	Each(ctx context.Context, yield func(key, value string) bool) error
	// Count tells about how many there are. It does no I/O.
	Count() int
}

// Stores are the spaces that are needed.
type Stores struct {
	Correspondents, Domains, Expected Store
	// Remote is set when a call takes a round trip: those that can go at the
	// same time do.
	Remote bool
}

// maxSwaps bounds how often a change is tried again when others change the
// same value.
const maxSwaps = 8

var errContended = errors.New("changed by others again and again")

// change applies f to a value in one atomic step. f returns the next value and
// when it expires; same leaves everything as it is.
func change(ctx context.Context, s Store, key string, f func(old string) (next string, expires time.Time, same bool)) error {
	for range maxSwaps {
		old, err := s.Load(ctx, key)
		if err != nil {
			return err
		}
		next, expires, same := f(old)
		if same {
			return nil
		}
		if done, err := s.Swap(ctx, key, old, next, expires); done || err != nil {
			return err
		}
	}
	return errContended
}

// pairKey joins two names into a key. A newline stands in no address.
func pairKey(a, b string) string { return a + "\n" + b }

// splitPair parts what pairKey has joined. The second is cut when the key was
// too long for the store.
func splitPair(key string) (a, b string) {
	a, b, _ = strings.Cut(key, "\n")
	return a, b
}

// refreshEvery is how old "last written to" may be before it is written anew:
// a busy correspondence costs one change a day.
const refreshEvery = 24 * time.Hour

// span is since when a correspondent is known, and when a user has last
// written there. Stored as two decimal numbers, Unix seconds.
type span struct{ first, last int64 }

func (s span) String() string {
	return strconv.FormatInt(s.first, 10) + " " + strconv.FormatInt(s.last, 10)
}

// parseSpan reads a span; the zero one for anything else.
func parseSpan(value string) (s span) {
	a, b, ok := strings.Cut(value, " ")
	if !ok {
		return span{}
	}
	var err error
	if s.first, err = strconv.ParseInt(a, 10, 64); err != nil {
		return span{}
	}
	if s.last, err = strconv.ParseInt(b, 10, 64); err != nil {
		return span{}
	}
	return s
}

// alive reports whether what was last written to at that time still counts.
func alive(last int64, now time.Time, keep time.Duration) bool {
	return last > 0 && now.Unix()-last <= int64(keep/time.Second)
}

// written returns the span after a user has written at that time. same is set
// when nothing need be stored.
func (s span) written(at time.Time, keep time.Duration) (next span, same bool) {
	t := at.Unix()
	if !alive(s.last, at, keep) {
		return span{t, t}, false
	}
	if t < s.last+int64(refreshEvery/time.Second) {
		// Mail that was sent before all we know of makes it known for longer.
		if t >= s.first {
			return s, true
		}
		return span{t, s.last}, false
	}
	return span{s.first, t}, false
}

// writers are the users of one domain of ours that have written to a domain,
// as digests, with the day (Unix days) of the last time. Stored as
// "digest:day,digest:day".
type writers []writer

type writer struct {
	digest string
	day    int64
}

const day = 24 * time.Hour

func dayOf(t time.Time) int64 { return t.Unix() / int64(day/time.Second) }

// digestOf stands for a user: that two of one domain have the same is too
// unlikely to matter, and it is short.
func digestOf(user string) string {
	sum := sha256.Sum256([]byte(user))
	return hex.EncodeToString(sum[:6])
}

func (w writers) String() string {
	var b strings.Builder
	for i, u := range w {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s:%d", u.digest, u.day)
	}
	return b.String()
}

// parseWriters reads writers, and passes over what it cannot read.
func parseWriters(value string) (w writers) {
	for part := range strings.SplitSeq(value, ",") {
		digest, text, ok := strings.Cut(part, ":")
		n, err := strconv.ParseInt(text, 10, 64)
		if ok && err == nil && digest != "" && len(w) < maxDomainUsers {
			w = append(w, writer{digest, n})
		}
	}
	return w
}

// alive returns those who have written lately enough.
func (w writers) alive(now time.Time, keep time.Duration) writers {
	oldest := dayOf(now) - int64(keep/day)
	return slices.DeleteFunc(slices.Clone(w), func(u writer) bool { return u.day < oldest })
}

// last is the day on which one of them has last written.
func (w writers) last() (d int64) {
	for _, u := range w {
		d = max(d, u.day)
	}
	return d
}

// written returns the writers after a user has written at that time, at most
// most of them: the one that wrote longest ago makes room. same is set when
// nothing need be stored.
func (w writers) written(user string, at time.Time, keep time.Duration, most int) (next writers, same bool) {
	digest, today := digestOf(user), dayOf(at)
	next = w.alive(at, keep)
	if i := slices.IndexFunc(next, func(u writer) bool { return u.digest == digest }); i >= 0 {
		if today <= next[i].day {
			return w, true
		}
		next[i].day = today
		return next, false
	}
	if len(next) < most {
		return append(next, writer{digest, today}), false
	}
	oldest := 0
	for i := range next {
		if next[i].day < next[oldest].day {
			oldest = i
		}
	}
	if next[oldest].day >= today {
		return w, true
	}
	next[oldest] = writer{digest, today}
	return next, false
}
