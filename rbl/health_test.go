package rbl

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"postern/policy"
)

func TestListThatListsTheWorldNeverRejects(t *testing.T) {
	for _, started := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			dns := newDNS().zone("a.example")
			dns.wild["a.example"] = "127.0.0.2"
			s := newSite(t, dns, `lists = ["a.example*3"]`)
			if started {
				s.started()
			}
			defer s.check.Stop()
			for i := range 200 {
				for _, a := range []string{fmt.Sprintf("192.0.2.%d", i), fmt.Sprintf("2001:db8::%x", i)} {
					if v, err := s.try(request(a)); v.Action != policy.Continue || err != nil {
						t.Fatalf("started %v: %s: %v %v", started, a, v.Action, err)
					}
				}
			}
			st := s.check.Status()[0]
			if st.State != StateOff || !strings.Contains(st.Why, "ipv4: lists 127.0.0.1") || !strings.Contains(st.Why, "ipv6: lists ::ffff:127.0.0.1") {
				t.Errorf("status: %v %q", st.State, st.Why)
			}
			s.errorsLogged("is off until it passes")
			if n := testutil.ToFloat64(s.check.shared.metrics.state.WithLabelValues("a.example", "off")); started && n != 1 {
				t.Errorf("postern_rbl_list_state{state=off} = %v", n)
			}
		})
	}
}

func TestListComesBackWithBackOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS() // no test entries
		s := newSite(t, dns, `lists = ["a.example*3"]`).started()
		defer s.check.Stop()
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		tests := func() int { return dns.count("a.example", "127.0.0.2") }
		if tests() != 1 {
			t.Fatalf("%d tests at start", tests())
		}
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Continue {
			t.Errorf("off: %v", v.Action)
		}
		// 1, 2, 4, ... minutes, each up to a tenth longer.
		for i, pause := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			pause *= time.Minute
			time.Sleep(pause * 115 / 100)
			synctest.Wait()
			if got := tests(); got < i+2 || got > i+3 {
				t.Errorf("%d tests after pause %d of %v", got, i, pause)
			}
		}
		if n := tests(); n > 11 {
			t.Errorf("%d tests: no back-off", n)
		}
		s.errorsLogged("is off until it passes") // once, not with every test
		dns.zone("a.example")
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Reject {
			t.Errorf("back: %v", v.Action)
		}
		if got := s.logs.FilterMessage("DNS list passes its test again and is on").Len(); got != 1 {
			t.Errorf("told %d times that it is back", got)
		}
		if st := s.check.Status()[0]; st.State != StateOn || st.LastPass.IsZero() || st.Tests["ipv4"] != "passed" || st.Tests["ipv6"] != "passed" {
			t.Errorf("status %+v", st)
		}
		before := tests()
		time.Sleep(24 * time.Hour)
		if n := tests() - before; n < 21 || n > 24 {
			t.Errorf("%d tests a day, want one an hour", n)
		}
		if got := s.logs.FilterMessage("DNS list passes its test again and is on").Len(); got != 1 {
			t.Errorf("told %d times that it is back, a day later", got)
		}
	})
}

func TestListGoesOffWhileRunning(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "wl.example")
		s := newSite(t, dns, `lists = ["a.example*3", "wl.example*-1"]`).started()
		defer s.check.Stop()
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Reject {
			t.Fatalf("on: %v", v.Action)
		}
		dns.change(func() { dns.wild["a.example"] = "127.0.0.2" })
		time.Sleep(70 * time.Minute)
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Continue {
			t.Errorf("off: %v", v.Action)
		}
		// What it said in its bad time is not used when it is back.
		dns.change(func() { clear(dns.wild) })
		dns.set("a.example", "192.0.2.1")
		time.Sleep(70 * time.Minute)
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Continue || s.check.Status()[0].State != StateOn {
			t.Errorf("back: %v, %v", v.Action, s.check.Status()[0].State)
		}
		// An allow list that is off cannot be asked either.
		dns.set("a.example", "192.0.2.2", "127.0.0.2")
		dns.set("wl.example", "127.0.0.2")
		dns.set("wl.example", "::ffff:127.0.0.2")
		time.Sleep(70 * time.Minute)
		req := request("192.0.2.2")
		if v := s.ask(req); v.Action != policy.Defer || len(req.Facts.Missing) != 1 {
			t.Errorf("allow list off: %v, missing %q", v.Action, req.Facts.Missing)
		}
	})
}

// A single list that is off must not make the check undecided for good.
func TestOffListIsNoError(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSite(t, newDNS(), `lists = ["a.example*3"]`).started()
		defer s.check.Stop()
		req := request("192.0.2.1")
		if v, err := s.try(req); err != nil || v.Action != policy.Continue || len(req.Facts.Missing) != 1 {
			t.Errorf("%v %v missing %q", v.Action, err, req.Facts.Missing)
		}
	})
}

// DNS down at start: what a list lists does not count until it was tested,
// and is tested as soon as the DNS is back. Down later: all stays as it was.
func TestDNSDownAndTests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		dns.err["a.example"] = errors.New("SERVFAIL")
		s := newSite(t, dns, `lists = ["a.example*3"]`).started()
		defer s.check.Stop()
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		if _, err := s.try(request("192.0.2.1")); err == nil {
			t.Error("a request while the DNS is down is decided")
		}
		if st := s.check.Status()[0]; st.State != StateUntested || !strings.Contains(st.Why, "SERVFAIL") {
			t.Errorf("status %v %q", st.State, st.Why)
		}
		s.errorsLogged("could not be tested")
		dns.change(func() { clear(dns.err) })
		time.Sleep(failureTTL) // the test has been repeated by now
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Reject {
			t.Errorf("DNS back: %v", v.Action)
		}
		dns.change(func() { dns.err["a.example"] = errors.New("SERVFAIL") })
		time.Sleep(3 * time.Hour)
		if st := s.check.Status()[0]; st.Tests["ipv4"] != "passed" {
			t.Errorf("DNS down later: %+v", st.Tests)
		}
		s.errorsLogged("could not be tested", "could not be tested") // once each time, not with every test
	})
}

// Queries are answered but those of the test are not: no listing counts.
func TestListedButUntestable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS()
		s := newSite(t, dns, `lists = ["a.example*3"]`)
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		for _, n := range []string{"127.0.0.1", "127.0.0.2", "::ffff:127.0.0.1", "::ffff:127.0.0.2"} {
			dns.err[nameOf("a.example", n)] = errors.New("SERVFAIL")
		}
		if _, err := s.try(request("192.0.2.1")); err == nil || !strings.Contains(err.Error(), "could not be tested") {
			t.Errorf("got %v", err)
		}
		if v, err := s.try(request("192.0.2.2")); err != nil || v.Action != policy.Continue {
			t.Errorf("not listed needs no test: %v %v", v.Action, err)
		}
		s.check.Stop()
	})
}

func TestFamilyWithoutEntriesIsNotAsked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS()
		dns.set("v4.example", "127.0.0.2", "127.0.0.2")
		dns.set("v6.example", "::ffff:127.0.0.2", "127.0.0.2")
		dns.set("forced.example", "127.0.0.2", "127.0.0.2")
		s := newSite(t, dns, `lists = ["v4.example*3", "v6.example*3", "forced.example*3"]
			[[zone]]
			zone = "forced.example"
			families = ["ipv4", "ipv6"]`).started()
		defer s.check.Stop()
		s.ask(request("192.0.2.1"))
		s.ask(request("2001:db8::1"))
		for _, tt := range []struct {
			zone, client string
			want         int
		}{
			{"v4.example", "192.0.2.1", 1},
			{"v4.example", "2001:db8::1", 0},
			{"v6.example", "192.0.2.1", 0},
			{"v6.example", "2001:db8::1", 1},
			{"forced.example", "192.0.2.1", 1},
			{"forced.example", "2001:db8::1", 0},
		} {
			if n := dns.count(tt.zone, tt.client); n != tt.want {
				t.Errorf("%s was asked about %s %d times, want %d", tt.zone, tt.client, n, tt.want)
			}
		}
		st := s.check.Status()
		if st[0].Tests["ipv6"] != "absent" || st[0].State != StateOn || st[1].Tests["ipv4"] != "absent" || st[2].Tests["ipv6"] != "failed" || st[2].State != StateOff {
			t.Errorf("status %+v", st)
		}
		s.errorsLogged("forced.example")
	})
}

func TestDomainListTests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS()
		dns.set("rfc.example", "test", "127.0.0.2")
		dns.set("own.example", "always.example", "127.0.0.2")
		dns.set("dbl.spamhaus.org", "dbltest.com", "127.0.1.2")
		dns.set("world.example", "test", "127.0.0.2")
		dns.set("world.example", "invalid", "127.0.0.2")
		s := newSite(t, dns, `lists = ["sender:rfc.example*3", "helo:own.example", "name:dbl.spamhaus.org", "sender:world.example", "sender:untested.example"]
			[[zone]]
			zone = "own.example"
			test_listed = "always.example"
			[[zone]]
			zone = "untested.example"
			test = false`).started()
		defer s.check.Stop()
		for i, want := range []string{"passed", "passed", "passed", "failed", "trusted"} {
			if st := s.check.Status()[i]; st.Tests["domain"] != want {
				t.Errorf("%s: %v, want %s", st.List, st.Tests, want)
			}
		}
		if n := dns.count("untested.example", "test"); n != 0 {
			t.Errorf("test = false, and %d tests", n)
		}
		s.errorsLogged("world.example")
	})
}

func TestRefusedListIsTestedSoonAndSwitchedOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example")
		s := newSite(t, dns, `lists = ["a.example*3", "b.example*3"]`).started()
		defer s.check.Stop()
		dns.change(func() { dns.wild["a.example"] = "127.255.255.255" })
		s.ask(request("192.0.2.1"))
		time.Sleep(3 * time.Minute)
		st := s.check.Status()[0]
		if st.State != StateOff || !strings.Contains(st.Why, "too many queries") {
			t.Errorf("status %v %q", st.State, st.Why)
		}
	})
}

func TestVolumeGuard(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example")
		s := newSite(t, dns, `lists = ["a.example*3", "b.example*3"]
			[volume]
			share = 80
			clients = 50
			window = "10m"`).started()
		defer s.check.Stop()
		client := func(i int) string { return fmt.Sprintf("198.51.%d.%d", 100+i/250, i%250) }
		for i := range 2000 {
			if i%2 == 0 || i < 400 {
				dns.set("a.example", client(i), "127.0.0.2")
			}
		}
		rejected := 0
		for i := range 300 {
			if s.ask(request(client(i))).Action == policy.Reject {
				rejected++
			}
			s.ask(request(client(i))) // the same client does not count twice
		}
		if rejected != 49 {
			t.Errorf("%d clients were rejected, want 49: the 50th makes the list suspect", rejected)
		}
		s.errorsLogged("lists most of the traffic")
		if st := s.check.Status()[0]; st.State != StateShadow || !strings.Contains(st.Why, "80 percent") {
			t.Errorf("status %v %q", st.State, st.Why)
		}
		// The other list goes on.
		dns.set("b.example", "192.0.2.1", "127.0.0.2")
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Reject {
			t.Errorf("the other list: %v", v.Action)
		}
		// It returns when the share is down, but not before the window is over.
		for i := 400; i < 600; i++ {
			s.ask(request(client(i)))
		}
		synctest.Wait() // nobody waits for the queries of a list in shadow
		if st := s.check.Status()[0]; st.State != StateShadow {
			t.Errorf("returned within the window: %v", st.State)
		}
		time.Sleep(11 * time.Minute)
		for i := 600; i < 700; i++ {
			s.ask(request(client(i)))
		}
		synctest.Wait() // as above
		if st := s.check.Status()[0]; st.State != StateOn || st.Why != "" {
			t.Errorf("half the traffic is listed, and it is still %v %q", st.State, st.Why)
		}
		if v := s.ask(request(client(998))); v.Action != policy.Reject {
			t.Errorf("after its return: %v", v.Action)
		}
	})
}

// The arithmetic of the guard at its edges.
func TestVolumeGuardAtItsEdges(t *testing.T) {
	for _, tt := range []struct {
		name          string
		ask, listed   int // clients before the window is over
		trips         bool
		after         time.Duration
		ask2, listed2 int // and clients then
		held          bool
	}{
		{name: "too few clients", ask: 19, listed: 19},
		{name: "enough", ask: 20, listed: 20, trips: true, held: true},
		{name: "the share exactly", ask: 20, listed: 16, trips: true, held: true},
		{name: "less than the share", ask: 20, listed: 15},
		{name: "within the window", ask: 20, listed: 20, trips: true, after: 10*time.Minute - 1, ask2: 30, held: true},
		{name: "at its end", ask: 20, listed: 20, trips: true, after: 10 * time.Minute, ask2: 30}, // 20 of 50: 64 percent would hold it
		{name: "too few to return by", ask: 20, listed: 20, trips: true, after: 11 * time.Minute, ask2: 4, held: true},
		{name: "a quarter of the clients", ask: 20, listed: 20, trips: true, after: 11 * time.Minute, ask2: 5},
		{name: "four fifths of the share", ask: 20, listed: 20, trips: true, after: 11 * time.Minute, ask2: 25, listed2: 16, held: true},
		{name: "less than that", ask: 20, listed: 20, trips: true, after: 11 * time.Minute, ask2: 26, listed2: 16},
	} {
		bubble(t, func(t *testing.T) {
			s := newSite(t, newDNS(), "lists = [\"a.example*3\"]\n[volume]\nshare = 80\nclients = 20\nwindow = \"10m\"")
			l := s.check.lists[0]
			client := 0
			ask := func(n, listed int) { // those that are listed come first
				for i := range n {
					client++
					codes := []code{{127, 0, 0, 2}}
					if i >= listed {
						codes = nil
					}
					l.observe(subject{addr: netip.AddrFrom4([4]byte{192, 0, byte(client >> 8), byte(client)})}, codes)
				}
			}
			gen := l.gen.Load()
			ask(tt.ask, tt.listed)
			if l.tripped.Load() != tt.trips || (l.gen.Load() != gen) != tt.trips {
				t.Errorf("%s: tripped %v", tt.name, !tt.trips)
			}
			time.Sleep(tt.after)
			ask(tt.ask2, tt.listed2)
			if l.tripped.Load() != tt.held {
				t.Errorf("%s: held %v", tt.name, !tt.held)
			}
			for message, want := range map[string]bool{
				"DNS list lists most of the traffic and is in shadow mode until it does not": tt.trips,
				"DNS list lists no more than usual and counts again":                         tt.trips && !tt.held,
			} {
				if n := s.logs.FilterMessage(message).Len(); n > 1 || (n == 1) != want {
					t.Errorf("%s: %d times %q", tt.name, n, message)
				}
			}
			if got, want := testutil.ToFloat64(l.metrics.state[StateShadow]), tt.held; (got == 1) != want {
				t.Errorf("%s: the gauge of its state is %v", tt.name, got)
			}
		})
	}
}

// A list is dead when enough queries in a row had no answer over enough time.
func TestWhenAListDies(t *testing.T) {
	for _, tt := range []struct {
		name      string
		deadAfter int
		queries   int
		over      time.Duration
		want      bool
	}{
		{"too few", 4, 3, time.Minute, false},
		{"in too short a time", 4, 4, 3*time.Second - 1, false},
		{"just so", 4, 4, 3 * time.Second, true},
		{"never", 0, 100, time.Hour, false},
	} {
		bubble(t, func(t *testing.T) {
			s := newSite(t, newDNS(), fmt.Sprintf("lists = [\"a.example*3\"]\ndead_after = %d", tt.deadAfter))
			l := s.check.lists[0]
			l.answered()
			for i := range tt.queries {
				if i == tt.queries-1 {
					time.Sleep(tt.over)
				}
				l.unanswered("no answer in time")
			}
			if l.dead.Load() != tt.want {
				t.Errorf("%s: dead %v", tt.name, !tt.want)
			}
			l.answered()
			n := s.logs.FilterMessage("DNS list answers again").Len()
			if l.dead.Load() || (n == 1) != tt.want {
				t.Errorf("%s: dead %v after an answer, told %d times", tt.name, l.dead.Load(), n)
			}
		})
	}
}

// Answers learned before a list's health changed are not used after it, those
// learned while it was not known yet are.
func TestGenerations(t *testing.T) {
	s := newSite(t, newDNS(), `lists = ["sender:a.example*3"]`)
	l := s.check.lists[0]
	for _, tt := range []struct {
		health  health
		changes bool
	}{{untested, false}, {passed, false}, {passed, false}, {untested, false}, {failed, true}, {failed, false}, {passed, true}} {
		before := l.gen.Load()
		l.apply([aspectCount]finding{aspectDomain: {health: tt.health, why: "why"}})
		if changed := l.gen.Load() != before; changed != tt.changes {
			t.Errorf("%v: a new generation: %v", tt.health, changed)
		}
	}
}

func TestTestsInARow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		dns.delay["a.example"] = 50 * time.Millisecond
		s := newSite(t, dns, `lists = ["sender:a.example*3"]`)
		l := s.check.lists[0]
		tests := func() int { return dns.count("a.example", "test") }
		first, second := l.startTest(s.check.tasks.run), l.startTest(s.check.tasks.run)
		if first != second {
			t.Error("two tests at once")
		}
		<-first
		synctest.Wait()
		for _, tt := range []struct {
			after time.Duration
			tests int
		}{{0, 1}, {retryUnknown/2 - 1, 1}, {1, 2}} {
			time.Sleep(tt.after)
			<-l.startTest(s.check.tasks.run)
			if tests() != tt.tests {
				t.Errorf("%d tests, want %d", tests(), tt.tests)
			}
		}
		// An error answer brings the next test forward, never back.
		for _, tt := range []struct {
			name string
			next time.Duration // after the last test
			test bool
			want time.Duration
		}{
			{"in an hour", time.Hour, true, retryFailed},
			{"at that time", retryFailed, true, retryFailed},
			{"soon anyway", retryUnknown, true, retryUnknown},
			{"never", time.Hour, false, time.Hour},
		} {
			l.next, l.test = l.lastTest.Add(tt.next), tt.test
			l.hurry()
			if got := l.next.Sub(l.lastTest); got != tt.want {
				t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
			}
			moved := len(l.kick) == 1
			if moved != (tt.want != tt.next) {
				t.Errorf("%s: the tester is told: %v", tt.name, moved)
			}
			if moved {
				<-l.kick
			}
		}
		s.check.Stop()
	})
}

func TestVolumeGuardByOrderAndPerList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example", "wl.example")
		s := newSite(t, dns, `lists = ["a.example*3", "b.example*3", "wl.example*-5"]
			[volume]
			clients = 10
			[[zone]]
			zone = "b.example"
			volume_share = 0`).started()
		defer s.check.Stop()
		for i := range 30 {
			for _, z := range []string{"a.example", "b.example", "wl.example"} {
				dns.set(z, fmt.Sprintf("192.0.2.%d", i), "127.0.0.2")
			}
			s.ask(request(fmt.Sprintf("192.0.2.%d", i)))
		}
		synctest.Wait()                                               // not every list is waited for
		for i, want := range []State{StateShadow, StateOn, StateOn} { // b: switched off; wl: an allow list may list everybody
			if st := s.check.Status()[i]; st.State != want {
				t.Errorf("%s: %v, want %v", st.List, st.State, want)
			}
		}
		if known, held := s.check.Reset("a.example"); !known || !held || s.check.Status()[0].State != StateOn {
			t.Errorf("Reset: %v %v, %v", known, held, s.check.Status()[0].State)
		}
		if n := s.logs.FilterMessage("DNS list counts again, by order").Len(); n != 1 {
			t.Errorf("told %d times that a list counts again", n)
		}
		if known, held := s.check.Reset("b.example"); !known || held {
			t.Errorf("Reset of a list that counts: %v %v", known, held)
		}
		if n := s.logs.FilterMessage("DNS list counts again, by order").Len(); n != 1 {
			t.Errorf("told %d times that a list counts again", n)
		}
		if known, _ := s.check.Reset("c.example"); known {
			t.Error("Reset knows a list that is not there")
		}
	})
}

func TestReloadKeepsWhatWasLearned(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example", "c.example")
		s := newSite(t, dns, `lists = ["a.example*3", "b.example"]`).started()
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		s.ask(request("192.0.2.1"))
		synctest.Wait() // b.example was perhaps not waited for
		old, before := s.check, dns.total()

		s.check = s.make(`lists = ["c.example", "a.example=127.0.0.9*3"]`, old)
		s.check.Start()
		old.Stop()
		synctest.Wait()
		defer s.check.Stop()
		if n := dns.count("a.example", "127.0.0.2"); n != 1 {
			t.Errorf("a.example was tested %d times, want once", n)
		}
		req := request("192.0.2.1")
		if v := s.ask(req); v.Action != policy.Continue || req.Facts.RBLScore != 0 {
			t.Errorf("the new filter on the kept answer: %v", v.Action)
		}
		// 4 queries of the test of c.example, 1 of the request.
		if n := dns.total() - before; n != 5 {
			t.Errorf("%d queries after the reload, want 5", n)
		}
		st := s.check.Status()
		if st[1].Queries != 1 || st[1].Cached != 1 || st[1].LastPass.IsZero() {
			t.Errorf("counters are lost: %+v", st[1])
		}
		if n, err := testutil.GatherAndCount(s.reg, "postern_rbl_queries_total"); n != 2 || err != nil {
			t.Errorf("%d lists in the metrics, want 2 (%v)", n, err)
		}
		// Other options of the test: what was learned does not hold.
		again := s.make("lists = [\"a.example*3\"]\n[[zone]]\nzone = \"a.example\"\nfamilies = [\"ipv4\"]", s.check)
		if h := again.lists[0].healthOf(aspectIPv4); h != untested {
			t.Errorf("health after a change of the test: %v", h)
		}
	})
}

func TestStopWaitsAndIsIdempotent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		dns.delay["a.example"] = 100 * time.Millisecond
		s := newSite(t, dns, `lists = ["a.example*3"]`)
		s.check.Start()
		s.check.Warm(t.Context(), netip.MustParseAddr("192.0.2.1"))
		start := time.Now()
		s.check.Stop()
		s.check.Stop()
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("Stop took %v, want the time of the query in flight", took)
		}
	})
}

// The key of a paying customer must not be seen anywhere.
func TestKeyIsNeverShown(t *testing.T) {
	const key = "s3cr3tk3ys3cr3tk3y"
	bubble(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte("S3cr3tK3yS3cr3tK3y\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		zone := key + ".zen.example"
		dns := newDNS().zone(zone, key+".wl.example")
		dns.set(zone, "192.0.2.1", "127.0.0.2")
		dns.txt[nameOf(zone, "192.0.2.1")] = []string{"https://example.org/?q=1.2.0.192.S3CR3TK3YS3CR3TK3Y.zen.example"}
		s := newSite(t, dns, `lists = ["zen.example*3", "sender:zen.example*3", "wl.example*-1"]
			[[zone]]
			zone = "zen.example"
			name = "zen"
			key_file = "`+file+`"
			[[zone]]
			zone = "wl.example"
			key_file = "`+file+`"
			mode = "shadow"`).started()
		var seen strings.Builder
		look := func(addr string) {
			req := request(addr)
			req.Probe = &policy.Probe{}
			v, err := s.try(req)
			fmt.Fprintf(&seen, "%+v %v %+v %+v\n", v, err, req.Facts, req.Probe.Notes)
			fmt.Fprintf(&seen, "%+v\n", s.check.TestIP(t.Context(), netip.MustParseAddr(addr)))
		}
		look("192.0.2.1")
		if !strings.Contains(seen.String(), "blocked using zen; https://example.org/?q=1.2.0.192.***.zen.example") {
			t.Errorf("the reply is not as expected:\n%s", seen.String())
		}
		dns.change(func() { dns.wild[zone] = "127.255.255.254" })
		look("192.0.2.2")
		time.Sleep(3 * time.Minute)
		dns.change(func() {
			clear(dns.wild)
			dns.err[zone], dns.err[key+".wl.example"] = errors.New("SERVFAIL"), errors.New("REFUSED")
		})
		look("192.0.2.3")
		time.Sleep(3 * time.Hour)
		look("192.0.2.4")
		s.check.lists[0].res = panicker{}
		look("192.0.2.5")
		fmt.Fprintf(&seen, "%+v\n", s.check.Status())
		fmt.Fprintf(&seen, "%+v\n", s.check.cfg)
		for _, e := range s.logs.All() {
			fmt.Fprintln(&seen, e.Message, e.ContextMap())
		}
		families, err := s.reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			fmt.Fprintln(&seen, f)
		}
		s.check.Stop()
		if i := strings.Index(strings.ToLower(seen.String()), "s3cr3tk3y"); i >= 0 {
			t.Errorf("the key is shown: ...%s...", seen.String()[max(0, i-200):min(seen.Len(), i+100)])
		}
		for _, part := range []string{"SERVFAIL", "panic", "127.255.255.254", "zen"} {
			if !strings.Contains(seen.String(), part) {
				t.Errorf("what was looked through has no %q: the test looks at nothing", part)
			}
		}
	})
}

type panicker struct{ Resolver }

func (panicker) String() string { return "" }

func TestTestIP(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example", "s.example", "wl.example", "dbl.example")
		dns.wild["off.example"] = "127.0.0.2"
		dns.delay["a.example"] = 30 * time.Millisecond
		s := newSite(t, dns, `lists = ["a.example*3", "b.example", "s.example*3", "off.example*3", "wl.example*-1", "sender:dbl.example*3"]
			[[zone]]
			zone = "s.example"
			mode = "shadow"`).started()
		defer s.check.Stop()
		for _, z := range []string{"a.example", "s.example"} {
			dns.set(z, "192.0.2.1", "127.0.0.4", "127.0.0.2")
		}
		dns.set("wl.example", "10.0.0.1", "127.0.0.2")
		dns.txt[nameOf("a.example", "192.0.2.1")] = []string{"bad", "worse\x07"}
		dns.change(func() { dns.err["b.example"] = errors.New("SERVFAIL") })

		rep := s.check.TestIP(t.Context(), netip.MustParseAddr("::ffff:192.0.2.1"))
		if rep.Score != 3 || rep.Action != policy.Reject || rep.Reason != "rbl-listed" || rep.Reply.Code != 554 || len(rep.Results) != 5 {
			t.Fatalf("report %+v", rep)
		}
		want := []Result{
			{List: "a.example", State: StateOn, Listed: true, Codes: []string{"127.0.0.2", "127.0.0.4"}, Reasons: "bad / worse?", Weight: 3, Counts: true, Took: 30 * time.Millisecond},
			{List: "b.example", State: StateOn, Error: "resolver: 1.2.0.192.b.example: SERVFAIL"},
			{List: "s.example", State: StateShadow, Listed: true, Codes: []string{"127.0.0.2", "127.0.0.4"}, Weight: 3},
			{List: "off.example", State: StateOff, Listed: true, Codes: []string{"127.0.0.2"}, Weight: 3},
			{List: "wl.example", State: StateOn},
		}
		for i := range want {
			if got := fmt.Sprintf("%+v", rep.Results[i]); got != fmt.Sprintf("%+v", want[i]) {
				t.Errorf("got  %s\nwant %+v", got, want[i])
			}
		}
		if strings.Contains(rep.Note, "global") {
			t.Errorf("note %q", rep.Note)
		}
		if st := s.check.Status(); st[2].Mode != policy.Shadow || st[0].Mode != policy.Enforce || strings.Join(st[0].Entries, " ") != "a.example*3" || strings.Join(st[5].Entries, " ") != "sender:dbl.example*3" {
			t.Errorf("status %+v", st)
		}
		s.ask(request("192.0.2.9"))
		if rep := s.check.TestIP(t.Context(), netip.MustParseAddr("192.0.2.9")); !rep.Results[0].Cached || rep.Action != policy.Continue {
			t.Errorf("cached: %+v", rep)
		}
		rep = s.check.TestIP(t.Context(), netip.MustParseAddr("10.0.0.1"))
		if rep.Note == "" || rep.Score != -1 || !rep.Results[4].Listed {
			t.Errorf("private address: %+v", rep)
		}
		if st := s.check.Status()[0]; st.Hits != 0 || st.Seen != 1 {
			t.Errorf("counted: %+v", st)
		}
	})
}

func TestReportsWithoutAnAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		s := newSite(t, dns, `lists = ["a.example*3"]`).started()
		dns.change(func() { dns.err["a.example"] = errors.New("SERVFAIL") })
		if rep := s.check.TestIP(t.Context(), netip.MustParseAddr("192.0.2.1")); !strings.Contains(rep.Note, "none of 1 lists") {
			t.Errorf("note %q", rep.Note)
		}
		if rep := s.check.TestIP(t.Context(), netip.MustParseAddr("10.0.0.1")); !strings.Contains(rep.Note, "not a global address") {
			t.Errorf("note %q", rep.Note)
		}
		s.check.Stop()
		dns.change(func() { clear(dns.err) })
		s.check = s.make("ask_private = true\nlists = [\"a.example*3\"]", s.check)
		if rep := s.check.TestIP(t.Context(), netip.MustParseAddr("10.0.0.2")); rep.Note != "" {
			t.Errorf("ask_private: note %q", rep.Note)
		}
		s.check.Stop()
	})
}

func TestStates(t *testing.T) {
	for s := range stateCount {
		var got State
		if err := got.UnmarshalText([]byte(s.String())); err != nil || got != s {
			t.Errorf("%v: %v, %v", s, got, err)
		}
	}
	if err := new(State).UnmarshalText([]byte("nonsense")); err == nil || stateCount.String() != "unknown" {
		t.Errorf("nonsense: %v, beyond the last: %v", err, stateCount)
	}
}
