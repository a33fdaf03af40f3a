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
		for i, want := range []State{StateShadow, StateOn, StateOn} { // b: switched off; wl: an allow list may list everybody
			if st := s.check.Status()[i]; st.State != want {
				t.Errorf("%s: %v, want %v", st.List, st.State, want)
			}
		}
		if known, held := s.check.Reset("a.example"); !known || !held || s.check.Status()[0].State != StateOn {
			t.Errorf("Reset: %v %v, %v", known, held, s.check.Status()[0].State)
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
