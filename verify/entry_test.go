package verify

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

var standard = func() Times {
	cfg := DefaultConfig()
	return cfg.times(nil)
}()

func TestMerge(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	const day = 24 * time.Hour
	at := func(r Result, age time.Duration) Entry { return Entry{Result: r, At: now.Add(-age), Source: "old"} }
	struck := at(Known, day)
	struck.Strikes = 1
	justStruck := struck
	justStruck.Tried = now.Add(-time.Minute)
	laterStruck := struck
	laterStruck.Tried = now.Add(-2 * time.Minute)
	for _, tt := range []struct {
		name    string
		old     Entry
		found   Result
		want    Result
		fresh   bool // the time is that of what was found
		strikes int
	}{
		{"first known", Entry{}, Known, Known, true, 0},
		{"first unknown", Entry{}, Unknown, Unknown, true, 0},
		{"first temporary", Entry{}, Temporary, Temporary, true, 0},
		{"known again", at(Known, day), Known, Known, true, 0},
		{"known, refresh fails", at(Known, 8*day), Temporary, Known, false, 0},
		{"known, we are refused", at(Known, 8*day), Refused, Known, false, 0},
		{"known, says nothing", at(Known, 8*day), Undecided, Known, false, 0},
		{"expired known, refresh fails", at(Known, 31*day), Temporary, Temporary, true, 0},
		{"known, first unknown", at(Known, day), Unknown, Known, false, 1},
		{"known, second unknown", struck, Unknown, Unknown, true, 0},
		{"known, unknown twice in a minute", justStruck, Unknown, Known, false, 1},
		{"known, unknown twice in some minutes", laterStruck, Unknown, Unknown, true, 0},
		{"known, unknown, known", struck, Known, Known, true, 0},
		{"known, unknown, failure", struck, Temporary, Known, false, 1},
		{"expired known, unknown", at(Known, 32*day), Unknown, Unknown, true, 0},
		{"unknown, then known", at(Unknown, time.Hour), Known, Known, true, 0},
		{"unknown, refresh fails", at(Unknown, 4*time.Hour), Temporary, Unknown, false, 0},
		{"expired unknown, fails", at(Unknown, 3*day), Temporary, Temporary, true, 0},
		{"temporary again", at(Temporary, time.Minute), Temporary, Temporary, true, 0},
		{"refused, then temporary", at(Refused, time.Minute), Temporary, Temporary, true, 0},
	} {
		tt.old.Lease, tt.old.Holder = now.Add(time.Minute), "me"
		got := Merge(tt.old, Entry{Result: tt.found, At: now, Detail: "why"}, &standard)
		if got.Result != tt.want || got.At.Equal(now) != tt.fresh || got.Strikes != tt.strikes {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if !got.Tried.Equal(now) && !(tt.old.Strikes > 0 && got.Strikes > 0) || got.Holder != "" || !got.Lease.IsZero() {
			t.Errorf("%s: tried or lease: %+v", tt.name, got)
		}
		if !tt.fresh && got.Error != "why" {
			t.Errorf("%s: the failed attempt is not told: %+v", tt.name, got)
		}
	}
}

func TestLifeOfAnEntry(t *testing.T) {
	found := time.Unix(2_000_000_000, 0)
	const day = 24 * time.Hour
	for _, tt := range []struct {
		e         Entry
		age       time.Duration
		live, due bool
	}{
		{Entry{}, 0, false, true},
		{Entry{Result: Known}, 0, true, false},
		{Entry{Result: Known}, 7*day - time.Second, true, false},
		{Entry{Result: Known}, 7 * day, true, true},
		{Entry{Result: Known}, 31*day - time.Second, true, true},
		{Entry{Result: Known}, 31 * day, false, true},
		{Entry{Result: Known, Strikes: 1}, day, true, true},
		{Entry{Result: Unknown}, 3*time.Hour - time.Second, true, false},
		{Entry{Result: Unknown}, 3 * time.Hour, true, true},
		{Entry{Result: Unknown}, 3 * day, false, true},
		{Entry{Result: Temporary}, 2*time.Minute - time.Second, true, false},
		{Entry{Result: Temporary}, 2 * time.Minute, false, true},
		{Entry{Result: Refused}, 29 * time.Minute, true, false},
		{Entry{Result: Undecided}, 30 * time.Minute, false, true},
		{Entry{Result: Known}, -time.Hour, true, false}, // the clock stepped back
		{Entry{Result: Known}, -8 * day, true, true},
		{Entry{Result: Unknown}, -4 * time.Hour, true, true},
		{Entry{Result: Unknown}, -3 * day, false, true},
		{Entry{Result: Known}, -365 * day, false, true},
		{Entry{Result: Temporary}, -time.Hour, false, true},
	} {
		tt.e.At = found
		now := found.Add(tt.age)
		if live, due := tt.e.Live(now, &standard), tt.e.Due(now, &standard); live != tt.live || due != tt.due {
			t.Errorf("%v after %v: live %v due %v", tt.e.Result, tt.age, live, due)
		}
	}
	e := Entry{Result: Known, At: found, Tried: found.Add(8 * day)}
	if e.Due(found.Add(8*day+time.Minute), &standard) || !e.Due(found.Add(8*day+2*time.Minute), &standard) {
		t.Error("a refresh that failed is repeated at once, or never")
	}
	e = Entry{Result: Known, At: found, Tried: found.Add(300 * day)}
	if !e.Due(found.Add(8*day), &standard) {
		t.Error("an attempt of a clock that ran ahead puts off all others")
	}
	if e = (Entry{Holder: "a", Lease: found.Add(day)}); e.Leased(found, "b") {
		t.Error("a lease of a clock that ran ahead")
	}
	e = Entry{Holder: "a", Lease: found.Add(time.Minute)}
	if !e.Leased(found, "b") || e.Leased(found, "a") || e.Leased(found.Add(time.Minute), "b") {
		t.Error("lease")
	}
}

func TestStoredForm(t *testing.T) {
	now := time.UnixMilli(2_000_000_000_123)
	for _, e := range []Entry{
		{},
		{Result: Known, At: now},
		{Holder: "h", Lease: now},
		{Result: Unknown, At: now, Source: "callout x", Detail: "550 5.1.1 no", Tried: now, Error: "e", Strikes: 3, Lease: now, Holder: "h"},
	} {
		got, err := decode(e.encode())
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%+v: %+v, %v", e, got, err)
		}
	}
	long := Entry{Result: Known, At: now, Detail: strings.Repeat("x", 10_000) + "\x00\n"}
	got, err := decode(long.encode())
	if err != nil || len(got.Detail) > maxDetail {
		t.Errorf("%d bytes, %v", len(got.Detail), err)
	}
	for _, bad := range []string{"", "1", "2\x00known\x000\x000\x000\x000\x00\x00\x00\x00", "1\x00maybe\x000\x000\x000\x000\x00\x00\x00\x00", "1\x00known\x00x\x000\x000\x000\x00\x00\x00\x00"} {
		if _, err := decode(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func FuzzStoredForm(f *testing.F) {
	f.Add("1\x00known\x001\x000\x000\x000\x00h\x00s\x00d\x00e")
	f.Fuzz(func(t *testing.T, b string) {
		e, err := decode(b)
		if err != nil {
			return
		}
		again, err := decode(e.encode())
		if err != nil || again.Result != e.Result || again.Strikes != e.Strikes {
			t.Fatalf("%q: %+v, then %+v, %v", b, e, again, err)
		}
	})
}
