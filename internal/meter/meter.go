// Package meter is how much of something has been used: rates and quotas, taken
// from several at once or not at all. [Apply] is the rule; the stores keep what
// it returns, and store/redis has the same rule as a script.
package meter

import (
	"context"
	"strconv"
	"strings"
	"time"
)

// Kind is how a meter counts.
type Kind uint8

// The kinds of meters.
const (
	// Rate is the generic cell rate algorithm (ITU-T I.371, the "virtual
	// scheduling" form): one time is kept, the theoretical arrival time, which
	// each unit pushes on by an interval, and which may not be further ahead
	// than the burst.
	Rate Kind = iota
	// Quota counts units in calendar periods.
	Quota
	// Distinct counts different members in calendar periods.
	Distinct
)

// Take is what is taken from one meter, or given back to it.
type Take struct {
	Key  string
	Kind Kind
	// Add is what is taken: microseconds for a rate, units for a quota. It is
	// negative for what is given back. Distinct does not use it, and gives
	// nothing back.
	Add int64
	// Most is as much as the meter holds: microseconds, units, or members.
	Most int64
	// Start is when the period of a quota began, End when it ends.
	Start, End time.Time
	// Member is what is counted once for Distinct: eight hexadecimal digits.
	Member string
	// Hard refuses the whole of a [Store.TakeMeters] when the meter would hold
	// too much; else only this meter is left as it is.
	Hard bool
}

// Level is how a meter is after it was asked.
type Level struct {
	// Over reports that there was not enough left.
	Over bool
	// Used is what the meter holds, in the unit of Take.Most; when Over, what it
	// held before.
	Used int64
	// Wait is how long it takes until as much could be taken; for quotas, until
	// the period ends. Only set when Over.
	Wait time.Duration
}

// Store keeps meters. It is safe for concurrent use and returns by ctx's
// deadline.
type Store interface {
	// TakeMeters takes from all meters in one atomic step; levels has as many
	// elements as takes. When a hard one would hold too much nothing is changed
	// and taken is false. A peek changes nothing in any case.
	TakeMeters(ctx context.Context, now time.Time, takes []Take, peek bool) (levels []Level, taken bool, err error)
}

// Skew is how far the clocks of gateways that share a store may be apart
// without a new period being begun by one and taken back by another.
const Skew = time.Minute

// Apply is the whole rule: it returns what takes make of meters whose values
// are old, "" for none. next is nil when nothing is to be changed.
func Apply(old []string, takes []Take, now time.Time) (next []string, levels []Level, taken bool) {
	next = make([]string, len(takes))
	levels = make([]Level, len(takes))
	if !ApplyTo(next, levels, old, takes, now) {
		return nil, levels, false
	}
	return next, levels, true
}

// ApplyTo is Apply into slices of the caller, as long as takes. When it
// returns false, next says nothing.
func ApplyTo(next []string, levels []Level, old []string, takes []Take, now time.Time) (taken bool) {
	taken = true
	for i := range takes {
		t := &takes[i]
		switch t.Kind {
		case Rate:
			next[i], levels[i] = t.rate(old[i], now)
		case Quota:
			next[i], levels[i] = t.quota(old[i], now)
		default:
			next[i], levels[i] = t.distinct(old[i], now)
		}
		if levels[i].Over {
			next[i] = old[i]
			taken = taken && !t.Hard
		}
	}
	return taken
}

// rate: the value is the theoretical arrival time, Unix microseconds.
func (t *Take) rate(old string, now time.Time) (string, Level) {
	at := now.UnixMicro()
	tat := at + t.ahead(old, at)
	next := max(tat+t.Add, at)
	if over := next - at - t.Most; over > 0 && t.Add > 0 {
		return old, Level{Over: true, Used: tat - at, Wait: time.Duration(over) * time.Microsecond}
	}
	return decimal(next), Level{Used: next - at}
}

// ahead returns how much the value of a rate's meter holds. One that is further
// ahead than the burst, because the limit was lowered or the clock set back,
// counts as full; much further, as empty: what is refused changes nothing, so it
// would stay full until the clock is there again.
func (t *Take) ahead(old string, at int64) int64 {
	tat, err := strconv.ParseInt(old, 10, 64)
	if err != nil || tat < at || tat > at+2*t.Most+Skew.Microseconds() {
		return 0
	}
	return min(tat-at, t.Most)
}

// At returns the value of a rate's meter that holds so many microseconds.
func At(now time.Time, held int64) string { return decimal(now.UnixMicro() + held) }

// period returns what a value of a quota holds, and of which period. One that
// begins within moments is that of a gateway whose clock is ahead.
func (t *Take) period(old string, now time.Time) (start int64, held string) {
	start = t.Start.UnixMilli()
	first, rest, _ := strings.Cut(old, ":")
	stored, err := strconv.ParseInt(first, 10, 64)
	if err != nil || stored != start && (stored < start || stored > now.Add(Skew).UnixMilli()) {
		return start, ""
	}
	return stored, rest
}

func (t *Take) quota(old string, now time.Time) (string, Level) {
	start, held := t.period(old, now)
	n, err := strconv.ParseInt(held, 10, 64)
	if err != nil {
		n = 0
	}
	next := max(n+t.Add, 0)
	if next > t.Most && t.Add > 0 {
		return old, Level{Over: true, Used: n, Wait: t.End.Sub(now)}
	}
	var b [2*maxDecimal + 1]byte
	text := strconv.AppendInt(b[:0], start, 10)
	text = strconv.AppendInt(append(text, ':'), next, 10)
	return string(text), Level{Used: next}
}

// maxDecimal is the most bytes of a number.
const maxDecimal = 20

func decimal(n int64) string {
	var b [maxDecimal]byte
	return string(strconv.AppendInt(b[:0], n, 10))
}

// memberSize is the length of a member.
const memberSize = 8

// Held returns what the value of a meter holds now, in the unit of t.Most. Of
// the take its kind and its period count.
func (t *Take) Held(value string, now time.Time) int64 {
	switch t.Kind {
	case Rate:
		return t.ahead(value, now.UnixMicro())
	case Quota:
		_, held := t.period(value, now)
		n, err := strconv.ParseInt(held, 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	_, held := t.period(value, now)
	return int64(len(held) / memberSize)
}

func (t *Take) distinct(old string, now time.Time) (string, Level) {
	start, held := t.period(old, now)
	if len(held)%memberSize != 0 {
		held = ""
	}
	n := int64(len(held) / memberSize)
	for i := 0; i < len(held); i += memberSize {
		if held[i:i+memberSize] == t.Member {
			return old, Level{Used: n}
		}
	}
	if n >= t.Most {
		return old, Level{Over: true, Used: n, Wait: t.End.Sub(now)}
	}
	return strconv.FormatInt(start, 10) + ":" + held + t.Member, Level{Used: n + 1}
}

// Expires returns when a meter can be forgotten.
func (t *Take) Expires(now time.Time) time.Time {
	if t.Kind == Rate {
		return now.Add(time.Duration(t.Most) * time.Microsecond).Add(Skew)
	}
	return t.End.Add(Skew)
}
