package rbl

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"postern/policy"
)

func (m *memo) stored() (all []*unlisted) {
	for i := range m.questions {
		if e := m.questions[i].Load(); e != nil {
			all = append(all, e)
		}
	}
	return all
}

func TestWhatIsRemembered(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*fakeDNS, *policy.Request)
		want bool
	}{
		{"nothing found", func(*fakeDNS, *policy.Request) {}, true},
		{"a null sender", func(_ *fakeDNS, r *policy.Request) { r.Sender = policy.Address{} }, true},
		{"a listing without effect", func(d *fakeDNS, _ *policy.Request) { d.set("b.example", "192.0.2.1", "127.0.0.2") }, false},
		{"a list that failed", func(d *fakeDNS, _ *policy.Request) { d.err["b.example"] = errors.New("SERVFAIL") }, false},
		{"no address of that family", func(_ *fakeDNS, r *policy.Request) { r.Client.Addr = netip.MustParseAddr("2001:db8::1") }, false},
		{"nothing to ask about", func(_ *fakeDNS, r *policy.Request) {
			r.Client.Addr, r.Sender = netip.MustParseAddr("10.0.0.1"), policy.Address{}
		}, false},
		{"no time", func(_ *fakeDNS, r *policy.Request) { r.Time = time.Time{} }, false},
	} {
		bubble(t, func(t *testing.T) {
			dns := newDNS().zone("a.example", "dbl.example")
			dns.set("b.example", "127.0.0.2", "127.0.0.2") // IPv4 only
			s := newSite(t, dns, `lists = ["a.example*3", "b.example", "sender:dbl.example"]`).started()
			defer s.check.Stop()
			req := request("192.0.2.1")
			tt.edit(dns, req)
			for i := range 3 { // the first is not answered from memory
				if got := len(s.check.memo.stored()) == 1; got != (tt.want && i > 1) {
					t.Errorf("%s: remembered %v before request %d", tt.name, got, i)
				}
				s.ask(req)
				synctest.Wait()
			}
		})
	}
}

func TestWhenMemoryIsUsed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "dbl.example")
		s := newSite(t, dns, `lists = ["a.example*3", "sender:dbl.example"]`).started()
		defer s.check.Stop()
		now := time.Now()
		ask := func(edit func(*policy.Request)) bool {
			req := request("192.0.2.1")
			req.Time = now
			edit(req)
			sub := s.check.subjectsOf(req)
			return s.check.recall(&sub, req)
		}
		same := func(*policy.Request) {}
		s.ask(request("192.0.2.1"))
		if ask(same) {
			t.Error("known before it was answered from memory")
		}
		s.ask(request("192.0.2.1"))
		stored := s.check.memo.stored()
		if len(stored) != 1 {
			t.Fatalf("%d remembered", len(stored))
		}
		for i := range s.check.memo.questions { // it stands in the place of all others
			s.check.memo.questions[i].Store(stored[0])
		}
		for _, tt := range []struct {
			name string
			edit func(*policy.Request)
			want bool
		}{
			{"the same", same, true},
			{"just in time", func(r *policy.Request) { r.Time = now.Add(memoFor - 1) }, true},
			{"too late", func(r *policy.Request) { r.Time = now.Add(memoFor) }, false},
			{"by a clock that was ahead", func(r *policy.Request) { r.Time = now.Add(-1) }, false},
			{"another client", func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.2.2") }, false},
			{"another sender", func(r *policy.Request) { r.Sender.Domain = "example.net" }, false},
			{"another name, which no list is asked about", func(r *policy.Request) { r.Client.Name = "example.net" }, true},
			{"to be shown", func(r *policy.Request) { r.Probe = &policy.Probe{} }, false},
			{"without a time", func(r *policy.Request) { r.Time = time.Time{} }, false},
		} {
			if got := ask(tt.edit); got != tt.want {
				t.Errorf("%s: %v", tt.name, got)
			}
		}

		// It counts as an answer of each list that was asked.
		cached := func() string { st := s.check.Status(); return fmt.Sprint(st[0].Cached, st[1].Cached) }
		before := cached()
		ask(func(r *policy.Request) { r.DryRun = true })
		if got := cached(); got != before {
			t.Errorf("a dry run counts: %s, before %s", got, before)
		}
		s.check.memo = memo{seed: s.check.memo.seed}
		bounce := request("192.0.2.1")
		bounce.Sender = policy.Address{}
		s.ask(bounce)
		before = cached()
		if s.ask(bounce); before != "5 4" || cached() != "6 4" {
			t.Errorf("a bounce is counted %s, before %s", cached(), before)
		}
	})
}

// What is remembered ends with the first of the answers.
func TestMemoryEndsWithTheAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "dbl.example")
		s := newSite(t, dns, `lists = ["a.example*3", "sender:dbl.example"]`).started()
		defer s.check.Stop()
		s.ask(request("192.0.2.1")) // kept for five minutes
		time.Sleep(5*time.Minute - 100*time.Millisecond)
		s.ask(request("192.0.2.1"))
		time.Sleep(100 * time.Millisecond)
		s.ask(request("192.0.2.1"))
		if n := dns.count("a.example", "192.0.2.1"); n != 2 {
			t.Errorf("%d queries, want another when the answer is over", n)
		}
	})
}

func TestMemoSpreads(t *testing.T) {
	s := newSite(t, newDNS(), `lists = ["a.example*3"]`)
	for kind := range kindCount {
		places := map[any]bool{}
		for i := range 100 {
			var about subjects
			about[kind] = subject{domain: fmt.Sprintf("d%d.example", i)}
			if kind == KindClient {
				about[kind] = subject{addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}
			}
			places[s.check.memo.slot(&about)] = true
		}
		if len(places) < 80 {
			t.Errorf("100 of kind %v have %d places", kind, len(places))
		}
	}
}
