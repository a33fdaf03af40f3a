package limit

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
)

// RateSpec is a rate as it is written: "200/1h" is 200 units an hour, as many
// of them at once as the burst says.
type RateSpec struct {
	Units int64
	Per   time.Duration
}

// Bounds of what can be written. Times are counted in microseconds, which
// stay exact in the numbers of a Redis script.
const (
	maxUnits = 1 << 40
	maxPer   = 366 * 24 * time.Hour
	// What is further ahead than this (142 years) is never.
	maxInterval = 1 << 52
)

// UnmarshalText implements [encoding.TextUnmarshaler].
func (r *RateSpec) UnmarshalText(text []byte) error {
	// What was meant to be a rate is not taken for a rule without one.
	*r = RateSpec{Per: -1}
	count, per, ok := strings.Cut(string(text), "/")
	units, err := parseUnits(count)
	if !ok || err != nil {
		return fmt.Errorf("%q is not a rate such as \"200/1h\"", text)
	}
	d, err := conf.ParseDuration(strings.TrimSpace(per))
	if err != nil {
		return err
	}
	if d < time.Second || d > maxPer {
		return fmt.Errorf("%q: a rate is for 1s to 366d", text)
	}
	*r = RateSpec{units, d}
	return nil
}

// MarshalText implements [encoding.TextMarshaler].
func (r RateSpec) MarshalText() ([]byte, error) {
	if r.Units == 0 {
		return nil, nil
	}
	return []byte(strconv.FormatInt(r.Units, 10) + "/" + conf.Duration(r.Per).String()), nil
}

// interval returns how many microseconds n units take.
func (r RateSpec) interval(n int64) int64 {
	us := math.Ceil(float64(n) * float64(r.Per.Microseconds()) / float64(r.Units))
	return int64(min(us, maxInterval))
}

// QuotaSpec is a quota as it is written: "1000/day". Periods are those of the
// calendar, in the gateway's time zone; a week begins on Monday.
type QuotaSpec struct {
	Units  int64
	Period string // "hour", "day", "week" or "month"
}

var errPeriod = errors.New("a quota is for an hour, day, week or month")

// UnmarshalText implements [encoding.TextUnmarshaler].
func (q *QuotaSpec) UnmarshalText(text []byte) error {
	count, period, ok := strings.Cut(string(text), "/")
	units, err := parseUnits(count)
	if !ok || err != nil {
		return fmt.Errorf("%q is not a quota such as \"1000/day\"", text)
	}
	switch period = strings.TrimSpace(period); period {
	case "hour", "day", "week", "month":
	default:
		return fmt.Errorf("%q: %w", text, errPeriod)
	}
	*q = QuotaSpec{units, period}
	return nil
}

// MarshalText implements [encoding.TextMarshaler].
func (q QuotaSpec) MarshalText() ([]byte, error) {
	return []byte(strconv.FormatInt(q.Units, 10) + "/" + q.Period), nil
}

// period returns when the period that holds now begins and ends.
func (q QuotaSpec) period(now time.Time) (start, end time.Time) {
	y, m, d := now.Date()
	loc := now.Location()
	switch q.Period {
	case "hour":
		// Not by the wall clock: an hour that the summer time doubles is two.
		start = now.Truncate(time.Hour)
		return start, start.Add(time.Hour)
	case "day":
		return time.Date(y, m, d, 0, 0, 0, 0, loc), time.Date(y, m, d+1, 0, 0, 0, 0, loc)
	case "week":
		d -= (int(now.Weekday()) + 6) % 7
		return time.Date(y, m, d, 0, 0, 0, 0, loc), time.Date(y, m, d+7, 0, 0, 0, 0, loc)
	default:
		return time.Date(y, m, 1, 0, 0, 0, 0, loc), time.Date(y, m+1, 1, 0, 0, 0, 0, loc)
	}
}

// parseUnits reads a count: a number, or one with k, M or G (thousands) or
// Ki, Mi, Gi (1024) behind it.
func parseUnits(s string) (int64, error) {
	s = strings.TrimSpace(s)
	factor := int64(1)
	for _, f := range []struct {
		suffix string
		factor int64
	}{{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}} {
		if rest, ok := strings.CutSuffix(s, f.suffix); ok {
			s, factor = rest, f.factor
			break
		}
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n == 0 || n > uint64(maxUnits/factor) {
		return 0, fmt.Errorf("%q is not a number of units", s)
	}
	return int64(n) * factor, nil
}
