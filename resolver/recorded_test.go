package resolver

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

func TestParseRecord(t *testing.T) {
	for _, tt := range []struct {
		line string
		want Recorded
		err  string
	}{
		{line: "Mail.Example.ORG. A 192.0.2.1", want: Recorded{Name: "mail.example.org", Type: "A", Records: []string{"192.0.2.1"}}},
		{line: "mail.example.org 300 IN AAAA 2001:db8::1", want: Recorded{Name: "mail.example.org", Type: "AAAA", Records: []string{"2001:db8::1"}}},
		{line: "example.org mx 10 mail.example.org", want: Recorded{Name: "example.org", Type: "MX", Records: []string{"10 mail.example.org"}}},
		{line: "example.org MX 0 .", want: Recorded{Name: "example.org", Type: "MX", Records: []string{"0 "}}},
		{line: "example.org TXT v=spf1 ip4:192.0.2.0/24   -all", want: Recorded{Name: "example.org", Type: "TXT", Records: []string{"v=spf1 ip4:192.0.2.0/24 -all"}}},
		{line: `example.org TXT "v=spf1 " "-all"`, want: Recorded{Name: "example.org", Type: "TXT", Records: []string{"v=spf1 -all"}}},
		{line: "1.2.0.192.in-addr.arpa PTR mail.example.org.", want: Recorded{Name: "1.2.0.192.in-addr.arpa", Type: "PTR", Records: []string{"mail.example.org"}}},
		{line: "bücher.example A 192.0.2.1", want: Recorded{Name: "xn--bcher-kva.example", Type: "A", Records: []string{"192.0.2.1"}}},
		{line: "example.org TXT SERVFAIL", want: Recorded{Name: "example.org", Type: "TXT", Failure: "servfail"}},
		{line: "example.org A timeout", want: Recorded{Name: "example.org", Type: "A", Failure: "timeout"}},
		{line: "example.org A none", want: Recorded{Name: "example.org", Type: "A"}},
		{line: "example.org A", err: `a record is "NAME TYPE DATA", such as "example.org A 192.0.2.1"`},
		{line: "", err: `a record is "NAME TYPE DATA", such as "example.org A 192.0.2.1"`},
		{line: "example.org A example.net", err: `"example.net" is no data of a record A`},
		{line: "example.org MX mail.example.org", err: `"mail.example.org" is no data of a record MX`},
		{line: "example.org SOA a", err: `"SOA" is none of A, AAAA, TXT, PTR, MX`},
		{line: "a..b A 192.0.2.1", err: `"a..b" is not a name`},
	} {
		got, err := ParseRecord(tt.line)
		if tt.err != "" {
			if err == nil || err.Error() != tt.err {
				t.Errorf("%q: %v, want %s", tt.line, err, tt.err)
			}
			continue
		}
		tt.want.TTL = time.Hour
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %+v, %v", tt.line, got, err)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, seed := range []string{"a A 192.0.2.1", "a TXT \"x\" \"y", "a MX 1 b", "a 1 IN PTR b", "a TXT timeout", "é AAAA ::1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		r, err := ParseRecord(line)
		if err != nil {
			return
		}
		qtype := dns.StringToType[r.Type]
		if a := r.answer(key{r.Name, qtype}); r.Failure == "" && a.failure != nil {
			t.Errorf("%q: %+v cannot be read: %v", line, r, a.failure)
		}
	})
}

// tape answers from a map of "name type".
type tape map[string]Recorded

func (s tape) Answer(_ context.Context, name, rrtype string) Recorded { return s[name+" "+rrtype] }

// What a resolver that asks nobody says is what was recorded.
func TestRecorded(t *testing.T) {
	src := tape{}
	for _, line := range []string{
		"example.org A 192.0.2.1", "example.org AAAA 2001:db8::1", "example.org TXT a text", "example.org MX 10 mail.example.org",
		"1.2.0.192.in-addr.arpa PTR mail.example.org", "slow.example A timeout", "broken.example A servfail", "closed.example A refused",
	} {
		r, err := ParseRecord(line)
		if err != nil {
			t.Fatal(err)
		}
		src[r.Name+" "+r.Type] = r
	}
	src["bad.example A"] = Recorded{Records: []string{"2001:db8::1"}}
	src["bad.example MX"] = Recorded{Records: []string{"ten mail.example"}}
	src["odd.example A"] = Recorded{Failure: "what"}
	res, err := NewRecorded(DefaultConfig(), src, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	ctx := t.Context()
	a, ttl, cached, err := res.LookupA(ctx, "example.org")
	if err != nil || len(a) != 1 || a[0] != netip.MustParseAddr("192.0.2.1") || ttl > time.Hour || cached {
		t.Error(a, ttl, cached, err)
	}
	aaaa, _, _, _ := res.LookupAAAA(ctx, "example.org")
	txt, _, _, _ := res.LookupTXT(ctx, "example.org")
	mx, _, _, _ := res.LookupMX(ctx, "example.org")
	ptr, _, _, _ := res.LookupPTR(ctx, a[0])
	if len(aaaa) != 1 || len(txt) != 1 || txt[0] != "a text" || len(mx) != 1 || mx[0] != (MX{10, "mail.example.org"}) || len(ptr) != 1 || ptr[0] != "mail.example.org" {
		t.Error(aaaa, txt, mx, ptr)
	}
	for _, name := range []string{"example.org", "slow.example", "nothing.example"} {
		want := src[name+" A"]
		got := res.Answer(ctx, name, "A")
		if got.TTL = 0; !reflect.DeepEqual(got, Recorded{Name: name, Type: "A", Records: want.Records, Failure: want.Failure}) {
			t.Errorf("%+v", got)
		}
	}
	if got := res.Answer(ctx, "example.org", "what"); got.Failure == "" {
		t.Error(got)
	}
	if none, _, _, err := res.LookupA(ctx, "nothing.example"); err != nil || len(none) != 0 {
		t.Error(none, err)
	}
	for name, want := range map[string]error{
		"slow.example": ErrTimeout, "broken.example": ErrServFail, "closed.example": ErrRefused, "bad.example": ErrServFail, "odd.example": ErrServFail,
	} {
		if _, _, _, err := res.LookupA(ctx, name); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, _, err := res.LookupMX(ctx, "bad.example"); !errors.Is(err, ErrServFail) {
		t.Error(err)
	}
}

// What is written down is read back the same.
func TestRecordOfAnAnswer(t *testing.T) {
	for _, tt := range []struct {
		qtype uint16
		a     answer
	}{
		{dns.TypeA, answer{records: records{addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, ttl: time.Minute}},
		{dns.TypeTXT, answer{records: records{texts: []string{"a\x00b\n", ""}}}},
		{dns.TypeMX, answer{records: records{mx: []MX{{0, ""}, {10, "mail.example"}}}}},
		{dns.TypePTR, answer{}},
		{dns.TypeA, *failed(key{"example.org", dns.TypeA}, ErrRefused, "as recorded")},
	} {
		k := key{"example.org", tt.qtype}
		said := record(k, &tt.a)
		if got := said.answer(k); !reflect.DeepEqual(*got, tt.a) {
			t.Errorf("%+v became %+v", tt.a, got)
		}
	}
	if said := record(key{"a", dns.TypeA}, failed(key{"a", dns.TypeA}, ErrClosed, "")); said.Failure != "unreachable" {
		t.Error(said)
	}
}

// Who observes is told what was asked for, once, and nothing that the cache has.
func TestObserve(t *testing.T) {
	src := tape{"slow.example A": {Failure: "timeout"}, "example.org TXT": {Records: []string{"a text"}, TTL: time.Minute}}
	res, err := NewRecorded(DefaultConfig(), src, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan Recorded, 10)
	res.Observe(func(r Recorded) { seen <- r })
	for range 3 {
		if _, _, _, err := res.LookupTXT(t.Context(), "Example.ORG"); err != nil {
			t.Error(err)
		}
	}
	_, _, _, _ = res.LookupA(t.Context(), "slow.example")
	res.Close()
	_, _, _, _ = res.LookupA(t.Context(), "late.example")
	close(seen)
	var got []Recorded
	for r := range seen {
		got = append(got, r)
	}
	want := []Recorded{{Name: "example.org", Type: "TXT", Records: []string{"a text"}, TTL: time.Minute}, {Name: "slow.example", Type: "A", Failure: "timeout"}}
	for i := range got {
		if got[i].Failure != "" {
			got[i].TTL = 0 // how long it is remembered
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("told %+v, want %+v", got, want)
	}
}
