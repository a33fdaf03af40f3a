package verify

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"postern/policy"
	"postern/verify/callout"
)

// Result is what is remembered of an address.
type Result string

// The results. The values are stored.
const (
	Known     Result = "known"
	Unknown   Result = "unknown"
	Temporary Result = "temporary" // no source could tell
	Refused   Result = "refused"   // the next hop refuses our probes
	Undecided Result = "undecided" // the answer says nothing
)

// resultOf is what a callout's answer is remembered as. Full counts as known:
// the mailbox is there. An accept-all answer is not remembered at all.
func resultOf(c callout.Class) Result {
	switch c {
	case callout.Known, callout.Full, callout.AcceptAll:
		return Known
	case callout.Unknown:
		return Unknown
	case callout.Refused:
		return Refused
	case callout.Undecided:
		return Undecided
	case callout.Temporary, callout.Down:
	}
	return Temporary
}

// Entry is what is remembered of one address. The zero Entry knows nothing.
type Entry struct {
	Result Result
	At     time.Time // when the result was found, or last confirmed
	Source string
	Detail string // the answer, for the administrator
	// Tried is the last attempt to find out, which may have failed; Error is
	// why, while Result still stands.
	Tried time.Time
	Error string
	// Strikes counts "unknown" in a row against a known address.
	Strikes int
	// Lease is until when somebody is finding out, and Holder who.
	Lease  time.Time
	Holder string
}

// Times are how long results live.
type Times struct {
	PositiveExpire, PositiveRefresh time.Duration
	NegativeExpire, NegativeRefresh time.Duration
	// Temporary is how long a failure is believed, and the wait before a
	// known address is tried again after one.
	Temporary time.Duration
	// Refused is the same for a next hop that refuses the probes.
	Refused time.Duration
}

// expire is how long the entry's result may be used.
func (t *Times) expire(r Result) time.Duration {
	switch r {
	case Known:
		return t.PositiveExpire
	case Unknown:
		return t.NegativeExpire
	case Refused, Undecided:
		return t.Refused
	case Temporary:
	}
	return t.Temporary
}

// refresh is after what time a result is looked up again while it is used.
func (t *Times) refresh(r Result) time.Duration {
	switch r {
	case Known:
		return t.PositiveRefresh
	case Unknown:
		return t.NegativeRefresh
	case Temporary, Refused, Undecided:
	}
	return t.expire(r)
}

// age is how far a time lies from now, whatever the direction: what a clock
// that ran ahead has written is neither immortal nor of no use.
func age(now, t time.Time) time.Duration { return now.Sub(t).Abs() }

// Live reports whether the result can be used now.
func (e *Entry) Live(now time.Time, t *Times) bool {
	return e.Result != "" && age(now, e.At) < t.expire(e.Result)
}

// Due reports whether the address is to be asked about again now.
func (e *Entry) Due(now time.Time, t *Times) bool {
	if !e.Live(now, t) {
		return true
	}
	wait := t.refresh(e.Result)
	if e.Result == Known && e.Strikes > 0 {
		wait = 0 // what the last answer said is to be confirmed soon
	}
	if age(now, e.At) < wait {
		return false
	}
	// A refresh that failed is not repeated with every mail.
	return age(now, e.Tried) >= t.Temporary
}

// maxLease is more than any lease lasts (callout.Config.Timeout has a limit):
// what ends later was written by a clock that ran ahead.
const maxLease = 16 * time.Minute

// Leased reports whether another than holder is finding out now.
func (e *Entry) Leased(now time.Time, holder string) bool {
	return e.Holder != "" && e.Holder != holder && now.Before(e.Lease) && e.Lease.Sub(now) < maxLease
}

// confirmations is how many times in a row a known address must be refused
// before it counts as unknown: a wrong "unknown" loses mail.
const confirmations = 2

// Merge returns what is to be remembered when an attempt at found.At has come
// to found. It is the whole rule: a failed attempt never replaces a result
// that is still live, and a live "known" falls only to a second "unknown",
// Times.Temporary or more after the first.
func Merge(old, found Entry, t *Times) Entry {
	now := found.At
	live := old.Live(now, t)
	keep := func() Entry {
		e := old
		e.Tried, e.Error = now, found.Detail
		e.Lease, e.Holder = time.Time{}, ""
		return e
	}
	switch found.Result {
	case Known:
	case Unknown:
		if !live || old.Result != Known {
			break
		}
		if old.Strikes > 0 && age(now, old.Tried) < t.Temporary {
			e := keep()
			e.Tried = old.Tried // the same refusal again: it proves no more
			return e
		}
		if old.Strikes+1 < confirmations {
			e := keep()
			e.Strikes++
			return e
		}
	default:
		if live && (old.Result == Known || old.Result == Unknown) {
			return keep()
		}
	}
	found.Tried, found.Error, found.Strikes = now, "", 0
	found.Lease, found.Holder = time.Time{}, ""
	return found
}

// Expires is when an entry is of no more use.
func (e *Entry) Expires(t *Times) time.Time {
	end := e.At.Add(t.expire(e.Result))
	if e.Result == "" {
		end = e.Lease
	}
	if e.Lease.After(end) {
		end = e.Lease
	}
	return end
}

// maxDetail bounds the stored texts.
const maxDetail = 200

func clip(s string) string {
	if len(s) > maxDetail {
		return s[:maxDetail]
	}
	return s
}

// encode writes an entry for the store: a version, then the fields behind NULs,
// times in Unix milliseconds.
func (e *Entry) encode() string {
	b := make([]byte, 0, 96+len(e.Source)+len(e.Detail))
	b = append(b, '1', 0)
	b = append(b, e.Result...)
	for _, t := range []time.Time{e.At, e.Tried, e.Lease} {
		ms := int64(0)
		if !t.IsZero() {
			ms = t.UnixMilli()
		}
		b = strconv.AppendInt(append(b, 0), ms, 10)
	}
	b = strconv.AppendInt(append(b, 0), int64(e.Strikes), 10)
	for _, s := range []string{e.Holder, e.Source, e.Detail, e.Error} {
		b = append(append(b, 0), clip(policy.Printable(s))...)
	}
	return string(b)
}

var errDamaged = errors.New("verify: a stored entry is damaged")

// decode reads what encode wrote.
func decode(text string) (Entry, error) {
	var e Entry
	var field [10]string
	for i := range field {
		end := strings.IndexByte(text, 0)
		if last := i == len(field)-1; last != (end < 0) {
			return e, errDamaged
		} else if last {
			field[i] = text
			break
		}
		field[i], text = text[:end], text[end+1:]
	}
	e.Result = Result(field[1])
	switch e.Result {
	case "", Known, Unknown, Temporary, Refused, Undecided:
	default:
		return Entry{}, fmt.Errorf("verify: a stored entry has the unknown result %q", e.Result)
	}
	if field[0] != "1" {
		return Entry{}, fmt.Errorf("verify: a stored entry has the unknown version %q", field[0])
	}
	for i, t := range []*time.Time{&e.At, &e.Tried, &e.Lease} {
		ms, err := strconv.ParseInt(field[2+i], 10, 64)
		if err != nil {
			return Entry{}, errDamaged
		}
		if ms != 0 {
			*t = time.UnixMilli(ms)
		}
	}
	n, err := strconv.Atoi(field[5])
	if err != nil {
		return Entry{}, errDamaged
	}
	e.Strikes, e.Holder, e.Source, e.Detail, e.Error = n, field[6], field[7], field[8], field[9]
	return e, nil
}
