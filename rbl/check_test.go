package rbl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"postern/policy"
)

// fakeDNS answers by exact name, on the clock of a synctest bubble, which
// real sockets do not follow. Real packets are in real_test.go.
type fakeDNS struct {
	anew  int // asked past caches
	mu    sync.Mutex
	a     map[string][]string
	txt   map[string][]string
	ttl   map[string]time.Duration
	err   map[string]error         // by zone or name
	delay map[string]time.Duration // by zone; negative: never answers
	wild  map[string]string        // by zone: everything is listed
	asked map[string]int           // A queries by name
	texts int                      // TXT queries
}

func newDNS() *fakeDNS {
	return &fakeDNS{
		a: map[string][]string{}, txt: map[string][]string{}, ttl: map[string]time.Duration{}, err: map[string]error{},
		delay: map[string]time.Duration{}, wild: map[string]string{}, asked: map[string]int{},
	}
}

// zone adds the test entries of RFC 5782 for IPv4, IPv6 and domains.
func (d *fakeDNS) zone(names ...string) *fakeDNS {
	for _, z := range names {
		d.set(z, listedIPv4.addr.String(), "127.0.0.2")
		d.set(z, listedIPv6.addr.String(), "127.0.0.2")
		d.set(z, "test", "127.0.0.2")
	}
	return d
}

// set lists an address or a domain; no answers take it off.
func (d *fakeDNS) set(zone, what string, answers ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.a[nameOf(zone, what)] = answers
}

func (d *fakeDNS) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func nameOf(zone, what string) string {
	s := subject{domain: what}
	if a, err := netip.ParseAddr(what); err == nil {
		s = subject{addr: a}
	}
	return string(appendQuery(nil, s, zone))
}

func (d *fakeDNS) count(zone, what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[nameOf(zone, what)]
}

func (d *fakeDNS) total() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, c := range d.asked {
		n += c
	}
	return n
}

func (d *fakeDNS) lookup(ctx context.Context, name string) (zone string, err error) {
	d.mu.Lock()
	var delay time.Duration
	for z, e := range d.err {
		if name == z || strings.HasSuffix(name, "."+z) {
			zone, err = z, e
		}
	}
	for z, w := range d.delay {
		if strings.HasSuffix(name, "."+z) {
			zone, delay = z, w
		}
	}
	for z := range d.wild {
		if strings.HasSuffix(name, "."+z) {
			zone = z
		}
	}
	d.mu.Unlock()
	if delay < 0 {
		<-ctx.Done()
		return zone, fmt.Errorf("resolver: %s: %w", name, ctx.Err())
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return zone, fmt.Errorf("resolver: %s: %w", name, ctx.Err())
		}
	}
	if err != nil {
		return zone, fmt.Errorf("resolver: %s: %w", name, err)
	}
	return zone, nil
}

func (d *fakeDNS) LookupA(ctx context.Context, name string) ([]netip.Addr, time.Duration, bool, error) {
	d.mu.Lock()
	d.asked[name]++
	d.mu.Unlock()
	zone, err := d.lookup(ctx, name)
	if err != nil {
		return nil, 0, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	answers := d.a[name]
	if w := d.wild[zone]; w != "" {
		answers = []string{w}
	}
	var addrs []netip.Addr
	for _, s := range answers {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	ttl := d.ttl[name]
	if ttl == 0 {
		ttl = 5 * time.Minute
	}
	return addrs, ttl, false, nil
}

// LookupAnewA counts what was asked past every cache; there is none.
func (d *fakeDNS) LookupAnewA(ctx context.Context, name string) ([]netip.Addr, time.Duration, bool, error) {
	d.mu.Lock()
	d.anew++
	d.mu.Unlock()
	return d.LookupA(ctx, name)
}

func (d *fakeDNS) LookupTXT(ctx context.Context, name string) ([]string, time.Duration, bool, error) {
	if _, err := d.lookup(ctx, name); err != nil {
		return nil, 0, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.texts++
	return d.txt[name], time.Minute, false, nil
}

// site is a check with its surroundings.
type site struct {
	t     *testing.T
	dns   *fakeDNS
	check *Check
	reg   *prometheus.Registry
	logs  *observer.ObservedLogs
	log   *zap.Logger
}

func newSite(t *testing.T, dns *fakeDNS, text string) *site {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	s := &site{t: t, dns: dns, reg: prometheus.NewRegistry(), logs: logs, log: zap.New(core)}
	s.check = s.make(text, nil)
	return s
}

func (s *site) make(text string, prev *Check) *Check {
	s.t.Helper()
	cfg := load(s.t, text)
	if got := faults(cfg); len(got) > 0 {
		s.t.Fatalf("faults: %s", strings.Join(got, "\n"))
	}
	c, err := New(cfg, s.dns, s.log, s.reg, prev)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// started runs the first tests of the lists.
func (s *site) started() *site {
	s.check.Start()
	synctest.Wait()
	time.Sleep(s.check.cfg.ListTimeout.D())
	synctest.Wait()
	return s
}

// errorsLogged fails the test for warnings and errors that it did not expect.
func (s *site) errorsLogged(want ...string) {
	s.t.Helper()
	var got []string
	for _, e := range s.logs.All() {
		if e.Level >= zap.WarnLevel {
			got = append(got, fmt.Sprint(e.Message, " ", e.ContextMap()))
		}
	}
	if len(got) != len(want) {
		s.t.Errorf("%d warnings and errors, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
		return
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			s.t.Errorf("logged %q, want %q", got[i], want[i])
		}
	}
}

func request(addr string) *policy.Request {
	return &policy.Request{
		Time: time.Now(), Stage: policy.StageRcpt, Client: policy.Client{Addr: netip.MustParseAddr(addr)}, Helo: "mx.example.com",
		Sender:    policy.Address{Raw: "a@example.com", Local: "a", Domain: "example.com"},
		Recipient: policy.Address{Raw: "b@example.org", Local: "b", Domain: "example.org"},
	}
}

// ask evaluates a request within the check's own time limit.
func (s *site) ask(req *policy.Request) policy.Verdict {
	s.t.Helper()
	v, err := s.try(req)
	if err != nil {
		s.t.Fatalf("Evaluate: %v", err)
	}
	return v
}

func (s *site) try(req *policy.Request) (policy.Verdict, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), s.check.cfg.Timeout.D())
	defer cancel()
	return s.check.Evaluate(ctx, req)
}

func bubble(t *testing.T, f func(t *testing.T)) { synctest.Test(t, f) }

// What other checks hold against a client adds to what a list says of it, and
// is nothing to this check where no list speaks against the client.
func TestMarksAddToListings(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "wl.example")
		s := newSite(t, dns, `lists = ["a.example*2", "wl.example*-1"]
			default_weight = 2
			reject_at = 2
			mark_at = 1`).started()
		defer s.check.Stop()
		s.check.limits.reject = 3 // more than the lists have
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		dns.set("a.example", "192.0.2.3", "127.0.0.2")
		dns.set("wl.example", "192.0.2.3", "127.0.0.2")
		dns.set("wl.example", "192.0.2.4", "127.0.0.2")
		for _, tt := range []struct {
			client string
			marks  int
			action policy.Action
			score  int
			detail string
		}{
			{"192.0.2.1", 0, policy.Continue, 2, "score 2; a.example 127.0.0.2 (2)"},
			{"192.0.2.1", 1, policy.Reject, 2, "score 3; a.example 127.0.0.2 (2); marks (1)"},
			{"192.0.2.2", 100, policy.Continue, 0, ""}, // on no list
			{"192.0.2.3", 1, policy.Continue, 1, "score 2; a.example 127.0.0.2 (2); wl.example 127.0.0.2 (-1); marks (1)"},
			{"192.0.2.3", 2, policy.Reject, 1, "score 3; a.example 127.0.0.2 (2); wl.example 127.0.0.2 (-1); marks (2)"},
			{"192.0.2.4", 100, policy.Continue, 0, ""}, // on the allow list alone, which may not even be waited for
		} {
			for _, when := range []string{"asked", "from memory"} {
				req := request(tt.client)
				if tt.marks > 0 {
					req.Facts.Weigh("other-mark", tt.marks)
				}
				v := s.ask(req)
				if v.Action != tt.action || v.Detail != tt.detail || max(req.Facts.RBLScore, 0) != tt.score {
					t.Errorf("%s with marks of %d, %s: %v %q, score of the lists %d", tt.client, tt.marks, when, v.Action, v.Detail, req.Facts.RBLScore)
				}
				if tt.action == policy.Reject && !strings.Contains(v.Reply.Text, "blocked using a.example") {
					t.Errorf("%s: %v", tt.client, v.Reply)
				}
			}
		}
		s.errorsLogged()
	})
}

func TestWeightsAddUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example", "wl.example")
		s := newSite(t, dns, `lists = ["a.example=127.0.0.[2..11]*2", "a.example=127.0.0.4*5", "b.example", "wl.example=127.0.[0..255].[1..3]*-2"]
			reject_at = 3`).started()
		defer s.check.Stop()
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		dns.set("a.example", "192.0.2.2", "127.0.0.2", "127.0.0.4", "127.0.0.5")
		dns.set("a.example", "192.0.2.3", "127.0.0.200")
		for _, a := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.4", "2001:db8::1"} {
			dns.set("b.example", a, "127.0.0.3")
		}
		dns.set("a.example", "2001:db8::1", "127.0.0.3")
		dns.set("wl.example", "192.0.2.2", "127.0.7.1")
		dns.set("wl.example", "192.0.2.1", "127.0.7.0") // listed, but no entry matches
		for _, tt := range []struct {
			client string
			score  int
			action policy.Action
			reason string
			marks  int
		}{
			{"192.0.2.1", 3, policy.Reject, "rbl-listed", 1},
			{"192.0.2.2", 2 + 5 + 1 - 2, policy.Reject, "rbl-listed", 1},
			{"192.0.2.3", 0, policy.Continue, "", 0},
			{"192.0.2.4", 1, policy.Continue, "rbl-marked", 1},
			{"192.0.2.5", 0, policy.Continue, "", 0},
			{"2001:db8::1", 3, policy.Reject, "rbl-listed", 1},
		} {
			before := dns.count("a.example", tt.client)
			req := request(tt.client)
			s.check.Warm(t.Context(), req.Client.Addr) // or a certain rejection would not wait for the rest
			synctest.Wait()
			v := s.ask(req)
			if v.Action != tt.action || v.Reason != tt.reason || req.Facts.RBLScore != tt.score || len(req.Facts.Marks) != tt.marks {
				t.Errorf("%s: %v %q score %d marks %v, want %v %q %d", tt.client, v.Action, v.Reason, req.Facts.RBLScore, req.Facts.Marks,
					tt.action, tt.reason, tt.score)
			}
			if n := dns.count("a.example", tt.client) - before; n != 1 {
				t.Errorf("%s: a.example was asked %d times, two entries are one query", tt.client, n)
			}
			sum := 0
			for _, l := range req.Facts.Listings {
				sum += l.Weight
				if l.What != tt.client {
					t.Errorf("%s: listing of %q", tt.client, l.What)
				}
			}
			if sum != tt.score {
				t.Errorf("%s: listings %+v add up to %d, want %d", tt.client, req.Facts.Listings, sum, tt.score)
			}
		}
		s.errorsLogged()
	})
}

func TestReplies(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("zen.example", "own.example", "dbl.example", "soft.example", "quiet.example")
		s := newSite(t, dns, `lists = ["zen.example*5", "own.example*4", "sender:dbl.example*5", "soft.example*2", "quiet.example*5"]
			reject_at = 4
			defer_at = 2
			[[zone]]
			zone = "own.example"
			reply = "550 5.7.9 {client} {client_name} {helo} {sender} {recipient} {list} {what} {score}: {reason}"`).started()
		defer s.check.Stop()
		txt := func(zone, what string, texts ...string) { dns.txt[nameOf(zone, what)] = texts }
		dns.set("zen.example", "192.0.2.1", "127.0.0.2")
		txt("zen.example", "192.0.2.1", "see https://example.org/?ip=192.0.2.1", "two\r\n\x00\u00e9")
		dns.set("own.example", "192.0.2.2", "127.0.0.2")
		txt("own.example", "192.0.2.2", "because")
		dns.set("dbl.example", "spam.example", "127.0.0.2")
		dns.set("soft.example", "192.0.2.3", "127.0.0.2")
		dns.set("quiet.example", "192.0.2.4", "127.0.0.2")
		dns.set("quiet.example", "2001:db8::4", "127.0.0.2")
		txt("quiet.example", "2001:db8::4", strings.Repeat("long ", 200))
		dns.set("zen.example", "192.0.2.6", "127.0.0.2")
		dns.set("quiet.example", "192.0.2.6", "127.0.0.2")
		for _, tt := range []struct{ client, sender, want string }{
			{
				"192.0.2.1", "example.com",
				"554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.example; see https://example.org/?ip=192.0.2.1 / two ???",
			},
			{"192.0.2.2", "example.com", "550 5.7.9 192.0.2.2 unknown mx.example.com a@example.com b@example.org own.example 192.0.2.2 4: because"},
			{"192.0.2.3", "example.com", "450 4.7.1 Service temporarily unavailable; Client host [192.0.2.3] listed by soft.example"},
			{"192.0.2.4", "example.com", "554 5.7.1 Service unavailable; Client host [192.0.2.4] blocked using quiet.example"},
			{"192.0.2.5", "spam.example", "554 5.7.1 Service unavailable; Sender address [spam.example] blocked using dbl.example"},
			{"192.0.2.6", "example.com", "554 5.7.1 Service unavailable; Client host [192.0.2.6] blocked using zen.example"},
		} {
			req := request(tt.client)
			if tt.sender != "example.com" {
				req.Sender = policy.Address{Raw: "x@" + tt.sender, Local: "x", Domain: tt.sender}
			}
			s.check.Warm(t.Context(), req.Client.Addr) // so that the weightiest list is known
			synctest.Wait()
			if got := s.ask(req).Reply.String(); got != tt.want {
				t.Errorf("%s:\ngot  %s\nwant %s", tt.client, got, tt.want)
			}
		}
		if got := s.ask(request("2001:db8::4")).Reply; len(got.Text) > policy.MaxReplyText || !strings.HasSuffix(got.Text, "...") {
			t.Errorf("a long reason gives %d bytes: %s", len(got.Text), got.Text)
		}
	})
}

func TestRepliesToBounces(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		s := newSite(t, dns, "lists = [\"a.example*3\"]\nreply = \"{sender} {client_name} {helo}\"").started()
		defer s.check.Stop()
		req := request("192.0.2.1")
		if got := s.ask(req).Reply.Text; got != "a@example.com unknown mx.example.com" {
			t.Errorf("a message: %q", got)
		}
		req.Sender, req.Helo, req.Client.Name = policy.Address{}, "", "mx.example.net"
		if got := s.ask(req).Reply.Text; got != "<> mx.example.net unknown" {
			t.Errorf("a bounce: %q", got)
		}
		if dns.texts != 0 {
			t.Errorf("%d TXT queries for a reply that does not show the reason", dns.texts)
		}
	})
}

// The reason is asked for only when a refusal is certain, and never waited
// for longer than allowed.
func TestReasonOnlyForRefusals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example")
		s := newSite(t, dns, `lists = ["a.example*3", "b.example"]`).started()
		defer s.check.Stop()
		dns.set("b.example", "192.0.2.1", "127.0.0.2")
		s.ask(request("192.0.2.1"))
		s.ask(request("192.0.2.2"))
		if dns.texts != 0 {
			t.Errorf("%d TXT queries without a refusal", dns.texts)
		}
		dns.set("a.example", "192.0.2.3", "127.0.0.2")
		s.ask(request("192.0.2.3"))
		if dns.texts != 1 {
			t.Errorf("%d TXT queries for a refusal", dns.texts)
		}
		dns.change(func() { dns.delay["a.example"] = -1 })
		start := time.Now()
		v := s.ask(request("192.0.2.3")) // A from memory, TXT never comes
		if took := time.Since(start); took != s.check.cfg.ReasonTimeout.D() || v.Action != policy.Reject || strings.HasSuffix(v.Reply.Text, ";") {
			t.Errorf("%v %q after %v", v.Action, v.Reply.Text, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		start = time.Now()
		if v, err := s.check.Evaluate(ctx, request("192.0.2.3")); err != nil || v.Action != policy.Reject || time.Since(start) != 10*time.Millisecond {
			t.Errorf("with 10ms left: %v %v after %v", v.Action, err, time.Since(start))
		}
		dns.change(func() { clear(dns.delay) })
		before := dns.texts
		if v, err := s.check.Evaluate(ctx, request("192.0.2.3")); err != nil || v.Action != policy.Reject || dns.texts != before {
			t.Errorf("with no time left: %v %v, %d TXT queries", v.Action, err, dns.texts-before)
		}
		s.check.cfg.ReasonTimeout = 0
		if v := s.ask(request("192.0.2.3")); v.Action != policy.Reject || dns.texts != before {
			t.Errorf("reason_timeout = 0: %v, %d TXT queries", v.Action, dns.texts-before)
		}
	})
}

func TestEightSlowListsTakeOneRound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS()
		var lists []string
		for i := range 8 {
			z := fmt.Sprintf("l%d.example", i)
			dns.zone(z).delay[z] = 50 * time.Millisecond
			lists = append(lists, fmt.Sprintf("%q", z))
		}
		s := newSite(t, dns, "lists = ["+strings.Join(lists, ",")+"]").started()
		defer s.check.Stop()
		start := time.Now()
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Continue {
			t.Errorf("got %v", v)
		}
		if took := time.Since(start); took != 50*time.Millisecond {
			t.Errorf("cold: %v, want exactly 50ms", took)
		}
		start = time.Now()
		s.ask(request("192.0.2.1"))
		if took := time.Since(start); took != 0 {
			t.Errorf("warm: %v", took)
		}
		// After a connect event the answers are on their way.
		s.check.Warm(t.Context(), netip.MustParseAddr("192.0.2.2"))
		time.Sleep(30 * time.Millisecond)
		start = time.Now()
		s.ask(request("192.0.2.2"))
		if took := time.Since(start); took != 20*time.Millisecond {
			t.Errorf("30ms after Warm: %v, want 20ms", took)
		}
		if n := dns.count("l0.example", "192.0.2.2"); n != 1 {
			t.Errorf("%d queries of one name, want 1", n)
		}
	})
}

func TestUntestedListCostsNoSecondRound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		dns.delay["a.example"] = 50 * time.Millisecond
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		s := newSite(t, dns, `lists = ["a.example*3"]`) // not started: nothing is tested
		start := time.Now()
		v := s.ask(request("192.0.2.1"))
		// 50 ms for query and test together, 50 ms for the reason.
		if took := time.Since(start); v.Action != policy.Reject || took != 100*time.Millisecond {
			t.Errorf("%v after %v, want reject after 100ms", v.Action, took)
		}
		s.check.Stop()
	})
}

func TestDecisionIsCutShort(t *testing.T) {
	const slow = 500 * time.Millisecond
	for _, tt := range []struct {
		name   string
		lists  string
		listed []string // zones that list the client
		took   time.Duration
		want   policy.Action
	}{
		{"rejected already", `"fast.example*3", "slow.example*2"`, []string{"fast.example"}, 0, policy.Reject},
		{"an allow list could still prevent it", `"fast.example*3", "slow.example*-1"`, []string{"fast.example"}, slow, policy.Reject},
		{"an allow list prevents it", `"fast.example*3", "slow.example*-1"`, []string{"fast.example", "slow.example"}, slow, policy.Continue},
		{"an allow list cannot prevent it", `"fast.example*5", "slow.example*-2"`, []string{"fast.example"}, 0, policy.Reject},
		{"cannot reach anything", `"fast.example*3", "slow.example*-1"`, nil, 0, policy.Continue},
		{"can still be rejected", `"fast.example*3", "slow.example*3"`, nil, slow, policy.Continue},
		{"marked, and others may have it too", `"fast.example*1", "slow.example*1", "never.example*1"`, []string{"fast.example", "slow.example"}, slow, policy.Continue},
		{
			"an allow list cannot prevent what two lists add up to", `"fast.example*2", "slow.example*-1", "never.example*2"`,
			[]string{"fast.example", "never.example"},
			0, policy.Reject,
		},
	} {
		bubble(t, func(t *testing.T) {
			dns := newDNS().zone("fast.example", "slow.example", "never.example")
			s := newSite(t, dns, "reject_at = 3\nmark_at = 1\nlists = ["+tt.lists+"]").started()
			dns.change(func() { dns.delay["slow.example"] = slow })
			for _, z := range tt.listed {
				dns.set(z, "192.0.2.1", "127.0.0.2")
			}
			start := time.Now()
			v := s.ask(request("192.0.2.1"))
			if took := time.Since(start); took != tt.took || v.Action != tt.want {
				t.Errorf("%s: %v after %v, want %v after %v", tt.name, v.Action, took, tt.want, tt.took)
			}
			s.check.Stop()
			// What was not waited for is in memory all the same.
			before := dns.total()
			s.ask(request("192.0.2.1"))
			if n := dns.total() - before; n != 0 {
				t.Errorf("%s: %d queries the second time", tt.name, n)
			}
		})
	}
}

func TestMissingAllowListDefers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("bl.example", "wl.example")
		s := newSite(t, dns, `lists = ["bl.example*3", "bl.example=127.0.0.9*3", "wl.example*-2"]`).started()
		defer s.check.Stop()
		dns.set("bl.example", "192.0.2.1", "127.0.0.2")
		dns.set("bl.example", "192.0.2.2", "127.0.0.9")
		dns.change(func() { dns.err["wl.example"] = errors.New("SERVFAIL") })
		req := request("192.0.2.1")
		v := s.ask(req)
		if v.Action != policy.Defer || v.Reason != "rbl-allow-list-missing" || v.Reply.Code != 450 {
			t.Errorf("got %v %q %v", v.Action, v.Reason, v.Reply)
		}
		if want := "score 3; bl.example 127.0.0.2 (3); not asked: -2"; v.Detail != want {
			t.Errorf("detail %q, want %q", v.Detail, want)
		}
		if len(req.Facts.Missing) != 1 || !strings.HasPrefix(req.Facts.Missing[0], "dnsbl wl.example: ") {
			t.Errorf("missing: %q", req.Facts.Missing)
		}
		// 6 points: the allow list could not have prevented it.
		if v := s.ask(request("192.0.2.2")); v.Action != policy.Reject {
			t.Errorf("got %v", v.Action)
		}
		dns.change(func() { delete(dns.err, "wl.example") })
		time.Sleep(failureTTL)
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Reject || v.Detail != "score 3; bl.example 127.0.0.2 (3)" {
			t.Errorf("when it is back: %v, detail %q", v.Action, v.Detail)
		}
	})
}

func TestMarks(t *testing.T) {
	for _, tt := range []struct {
		mark int
		want bool
	}{{0, false}, {1, true}, {3, true}, {4, false}} {
		bubble(t, func(t *testing.T) {
			dns := newDNS().zone("a.example")
			dns.set("a.example", "192.0.2.1", "127.0.0.2")
			s := newSite(t, dns, fmt.Sprintf("lists = [\"a.example*3\"]\nmark_at = %d", tt.mark)).started()
			defer s.check.Stop()
			req := request("192.0.2.1")
			if v := s.ask(req); v.Action != policy.Reject || req.Facts.Suspicious() != tt.want {
				t.Errorf("mark_at = %d: %v, marks %v", tt.mark, v.Action, req.Facts.Marks)
			}
		})
	}
}

// A name that would be too long for the DNS is not asked for.
func TestLongNamesAreNotAskedFor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		s := newSite(t, dns, `lists = ["sender:a.example*3"]`).started()
		defer s.check.Stop()
		longest := strings.Repeat("abc.", 60) + "abc" // 243 bytes, and 10 for the dot and the list
		for domain, want := range map[string]int{longest: 1, longest + "c": 0} {
			req := request("192.0.2.1")
			req.Sender.Domain = domain
			s.ask(req)
			if n := dns.count("a.example", domain); n != want {
				t.Errorf("a domain of %d bytes: %d queries, want %d", len(domain), n, want)
			}
		}
	})
}

func TestAnswersAreKeptForTheirTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		s := newSite(t, dns, `lists = ["a.example*3"]`).started()
		defer s.check.Stop()
		for _, tt := range []struct {
			client  string
			listed  bool
			ttl     time.Duration
			keptFor time.Duration
		}{
			{"192.0.2.1", true, 10 * time.Minute, 10 * time.Minute},
			{"192.0.2.2", true, time.Second, time.Minute},
			{"192.0.2.3", true, 7 * 24 * time.Hour, time.Hour},
			{"192.0.2.4", false, 10 * time.Minute, 10 * time.Minute},
			{"192.0.2.5", false, time.Second, time.Minute},
			{"2001:db8::6", false, 7 * 24 * time.Hour, time.Hour},
		} {
			if tt.listed {
				dns.set("a.example", tt.client, "127.0.0.2")
			}
			dns.change(func() { dns.ttl[nameOf("a.example", tt.client)] = tt.ttl })
			s.ask(request(tt.client))
			time.Sleep(tt.keptFor - time.Nanosecond)
			s.ask(request(tt.client))
			if n := dns.count("a.example", tt.client); n != 1 {
				t.Errorf("%s: %d queries within its time", tt.client, n)
			}
			time.Sleep(time.Nanosecond)
			s.ask(request(tt.client))
			if n := dns.count("a.example", tt.client); n != 2 {
				t.Errorf("%s: %d queries after its time", tt.client, n)
			}
		}
	})
}

// TestAskedAnew: what is remembered does not count, here and in the resolver,
// and takes the new answers; a list that does not answer is no listing.
func TestAskedAnew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example")
		s := newSite(t, dns, `lists = ["a.example*2", "b.example*2"]`).started()
		defer s.check.Stop()
		anew := func() policy.Verdict {
			t.Helper()
			v, err := s.check.Anew(t.Context(), request("192.0.2.1"))
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		asked := func() [2]int { return [2]int{dns.count("a.example", "192.0.2.1"), dns.count("b.example", "192.0.2.1")} }
		req := request("192.0.2.1")
		if s.ask(req); !req.Facts.ListsAsked || req.Facts.ListsRefuse {
			t.Errorf("facts %+v", req.Facts)
		}
		// It takes both to refuse, so both are waited for.
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		dns.set("b.example", "192.0.2.1", "127.0.0.2")
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Continue || asked() != [2]int{1, 1} {
			t.Errorf("from memory: %v, asked %v", v, asked())
		}
		dns.change(func() { dns.anew = 0 })
		if v := anew(); v.Action != policy.Reject || v.Reason != "rbl-listed" || asked() != [2]int{2, 2} || dns.anew != 2 {
			t.Errorf("anew: %v, asked %v, past caches %d", v, asked(), dns.anew)
		}
		req = request("192.0.2.1")
		if v := s.ask(req); v.Action != policy.Reject || asked() != [2]int{2, 2} || !req.Facts.ListsRefuse {
			t.Errorf("it is not remembered: %v, asked %v", v, asked())
		}
		if v := anew(); v.Action != policy.Reject || asked() != [2]int{2, 2} {
			t.Errorf("at once again: %v, asked %v", v, asked())
		}
		time.Sleep(newFor)
		dns.change(func() { dns.err["a.example"] = errors.New("down") })
		if v := anew(); v.Action != policy.Continue || asked() != [2]int{3, 3} {
			t.Errorf("without one of them: %v, asked %v", v, asked())
		}
		if v := s.ask(request("192.0.2.1")); v.Action != policy.Reject {
			t.Errorf("a failure took the place of an answer: %v", v)
		}
		dns.change(func() { dns.err["b.example"] = errors.New("down") })
		time.Sleep(newFor)
		if v, err := s.check.Anew(t.Context(), request("192.0.2.1")); err == nil {
			t.Errorf("without any: %v", v)
		}
	})
}

func TestOneQueryInFlightPerName(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		s := newSite(t, dns, `lists = ["a.example*3", "helo:a.example*3", "sender:a.example*3"]`).started()
		defer s.check.Stop()
		dns.change(func() { dns.delay["a.example"] = 50 * time.Millisecond })
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				req := request("192.0.2.1")
				req.Helo = "example.com" // as the sender's domain
				s.ask(req)
			})
		}
		wg.Wait()
		if a, b := dns.count("a.example", "192.0.2.1"), dns.count("a.example", "example.com"); a != 1 || b != 1 {
			t.Errorf("%d and %d queries, want 1 and 1", a, b)
		}
	})
}

func TestCallersGiveUpAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		s := newSite(t, dns, `lists = ["a.example*3"]`).started()
		defer s.check.Stop()
		dns.change(func() { dns.delay["a.example"] = 50 * time.Millisecond })
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.check.Evaluate(ctx, request("192.0.2.1")); !errors.Is(err, context.Canceled) {
				t.Errorf("the one that gave up got %v", err)
			}
		})
		wg.Go(func() {
			if v := s.ask(request("192.0.2.1")); v.Action != policy.Reject {
				t.Errorf("the one that waited got %v", v.Action)
			}
		})
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

func TestDomainKinds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("dbl.example")
		s := newSite(t, dns, `lists = ["sender:dbl.example*3", "helo:dbl.example=127.0.0.2*4", "name:dbl.example*5", "reverse:dbl.example*6"]`).started()
		defer s.check.Stop()
		dns.set("dbl.example", "spam.example", "127.0.0.2")
		for _, tt := range []struct {
			name   string
			change func(*policy.Request)
			score  int
			class  string
		}{
			{"none", func(*policy.Request) {}, 0, ""},
			{"sender", func(r *policy.Request) { r.Sender.Domain = "spam.example" }, 3, "Sender address [spam.example]"},
			{"helo", func(r *policy.Request) { r.Helo = "SPAM.example" }, 4, "Helo command [spam.example]"},
			{"client name", func(r *policy.Request) { r.Client.Name = "spam.example" }, 5, "Client host [spam.example]"},
			{"reverse name", func(r *policy.Request) { r.Client.ReverseName = "spam.example" }, 6, "Unverified Client host [spam.example]"},
			{"helo and sender", func(r *policy.Request) { r.Helo, r.Sender.Domain = "spam.example", "spam.example" }, 7, "Helo command"},
			{"null sender", func(r *policy.Request) { r.Sender = policy.Address{} }, 0, ""},
			{"at connect", func(r *policy.Request) { r.Stage, r.Helo, r.Sender = policy.StageConnect, "", policy.Address{} }, 0, ""},
		} {
			req := request("192.0.2.1")
			tt.change(req)
			v := s.ask(req)
			if req.Facts.RBLScore != tt.score || !strings.Contains(v.Reply.Text, tt.class) || (tt.class == "") != (v.Action == policy.Continue) {
				t.Errorf("%s: score %d %v %q, want %d %q", tt.name, req.Facts.RBLScore, v.Action, v.Reply.Text, tt.score, tt.class)
			}
		}
		if n := dns.count("dbl.example", "192.0.2.1"); n != 0 {
			t.Errorf("a domain list was asked about an address %d times", n)
		}
		if n := dns.count("dbl.example", "spam.example"); n != 1 {
			t.Errorf("spam.example was asked for %d times", n)
		}
	})
}

func TestPrivateClientsAreNotAskedAbout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		s := newSite(t, dns, `lists = ["a.example*3"]`).started()
		defer s.check.Stop()
		dns.set("a.example", "10.0.0.1", "127.0.0.2")
		before := dns.total()
		for _, a := range []string{"10.0.0.1", "127.0.0.1", "fd00::1", "fe80::1"} {
			if v := s.ask(request(a)); v.Action != policy.Continue {
				t.Errorf("%s: %v", a, v.Action)
			}
			s.check.Warm(t.Context(), netip.MustParseAddr(a))
		}
		s.ask(&policy.Request{Stage: policy.StageRcpt})
		s.check.Warm(t.Context(), netip.Addr{})
		synctest.Wait()
		if n := dns.total() - before; n != 0 {
			t.Errorf("%d queries", n)
		}
		s.check.Stop()
		s.check = s.make("ask_private = true\nlists = [\"a.example*3\"]", s.check)
		if v := s.ask(request("10.0.0.1")); v.Action != policy.Reject {
			t.Errorf("ask_private: %v", v.Action)
		}
	})
}

func TestErrorAnswersAreNoListings(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example")
		s := newSite(t, dns, `lists = ["a.example*3", "b.example*3"]`).started()
		defer s.check.Stop()
		for client, answer := range map[string]string{
			"192.0.2.1": "127.255.255.254", "192.0.2.2": "203.0.113.9", "192.0.2.3": "127.0.0.1", "2001:db8::4": "127.255.255.1",
		} {
			dns.set("a.example", client, answer)
			req := request(client)
			if v := s.ask(req); v.Action != policy.Continue || req.Facts.RBLScore != 0 || len(req.Facts.Missing) != 1 {
				t.Errorf("%s: %v score %d missing %q", answer, v.Action, req.Facts.RBLScore, req.Facts.Missing)
			}
		}
		st := s.check.Status()[0]
		if st.Errors != 4 || st.LastError == "" || st.Hits != 0 {
			t.Errorf("status %+v", st)
		}
		if n := testutil.ToFloat64(s.check.shared.metrics.failures.WithLabelValues("a.example", "code")); n != 4 {
			t.Errorf("%v failures counted", n)
		}
	})
}

// Only when no list at all could be asked is the check undecided; what it
// could ask, it uses.
func TestNothingCouldBeAsked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example")
		s := newSite(t, dns, `lists = ["a.example*3", "b.example*3"]`).started()
		defer s.check.Stop()
		dns.change(func() { dns.err["a.example"] = errors.New("SERVFAIL") })
		if v, err := s.try(request("192.0.2.1")); err != nil || v.Action != policy.Continue {
			t.Errorf("one of two: %v %v", v.Action, err)
		}
		dns.change(func() { dns.err["b.example"] = errors.New("SERVFAIL") })
		if _, err := s.try(request("192.0.2.2")); err == nil || !strings.Contains(err.Error(), "none of 2 lists") {
			t.Errorf("none: %v", err)
		}
		// The failure is kept: the next recipient does not wait, and goes on
		// when it is over.
		n := dns.count("a.example", "192.0.2.2")
		_, _ = s.try(request("192.0.2.2"))
		if dns.count("a.example", "192.0.2.2") != n {
			t.Error("a failure is not kept")
		}
		dns.change(func() { clear(dns.err) })
		time.Sleep(failureTTL)
		if _, err := s.try(request("192.0.2.2")); err != nil {
			t.Errorf("when it is back: %v", err)
		}
	})
}

func TestDeadLists(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example", "wl.example")
		s := newSite(t, dns, `lists = ["a.example*3", "b.example*3", "wl.example*-1"]
			dead_after = 4
			test_every = "2d"`).started()
		defer s.check.Stop()
		dns.change(func() { dns.delay["a.example"] = -1 })
		client := func(i int) string { return fmt.Sprintf("192.0.2.%d", i) }
		for i := range 4 {
			start := time.Now()
			v := s.ask(request(client(i)))
			if took := time.Since(start); took != s.check.cfg.ListTimeout.D() || v.Action != policy.Continue {
				t.Errorf("request %d: %v after %v", i, v.Action, took)
			}
		}
		s.errorsLogged("does not answer")
		if st := s.check.Status()[0]; st.State != StateDead || !strings.Contains(st.Why, "4 queries") {
			t.Errorf("status: %v %q", st.State, st.Why)
		}
		for i := range 50 {
			start := time.Now()
			req := request(client(100 + i))
			s.ask(req)
			if took := time.Since(start); took != 0 || len(req.Facts.Missing) != 1 {
				t.Errorf("request to a dead list took %v, missing %q", took, req.Facts.Missing)
			}
		}
		if n := s.check.lists[0].queries.Load(); n != 4 {
			t.Errorf("%d queries ended, want 4: one probe is under way", n)
		}
		sent := 0
		for i := range 50 {
			sent += dns.count("a.example", client(100+i))
		}
		s.check.Warm(t.Context(), netip.MustParseAddr(client(99)))
		synctest.Wait()
		if n := dns.count("a.example", client(99)); n != 0 || sent != 1 {
			t.Errorf("%d probes, and %d queries when a client connects", sent, n)
		}
		// The others still count.
		dns.set("b.example", "192.0.2.200", "127.0.0.2")
		if v := s.ask(request("192.0.2.200")); v.Action != policy.Reject {
			t.Errorf("the living list: %v", v.Action)
		}
		dns.change(func() { delete(dns.delay, "a.example") })
		dns.set("a.example", "192.0.2.201", "127.0.0.2")
		time.Sleep(failureTTL)
		s.ask(request("192.0.2.202")) // finds out
		synctest.Wait()
		if v := s.ask(request("192.0.2.201")); v.Action != policy.Reject {
			t.Errorf("when it is back: %v", v.Action)
		}
		if n := s.logs.FilterMessage("DNS list answers again").Len(); n != 1 {
			t.Errorf("told %d times that it is back", n)
		}
		if st := s.check.Status()[0]; st.State != StateOn {
			t.Errorf("status: %v %q", st.State, st.Why)
		}
	})
}

func TestOneBurstOfLossKillsNoList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		s := newSite(t, dns, `lists = ["a.example*3"]
			dead_after = 4`).started()
		defer s.check.Stop()
		dns.change(func() { dns.delay["a.example"] = -1 })
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { _, _ = s.try(request(fmt.Sprintf("192.0.2.%d", i))) })
		}
		wg.Wait()
		if st := s.check.Status()[0]; st.State != StateOn {
			t.Errorf("status: %v %q", st.State, st.Why)
		}
	})
}

func TestTooManyQueriesInFlight(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		s := newSite(t, dns, `lists = ["a.example*3"]
			max_queries = 10`).started()
		defer s.check.Stop()
		dns.change(func() { dns.delay["a.example"] = -1 })
		for i := range 20 {
			s.check.Warm(t.Context(), netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i)))
		}
		if n := len(s.check.shared.flights); n != 10 {
			t.Errorf("%d queries in flight, want 10", n)
		}
		start := time.Now()
		if _, err := s.try(request("192.0.2.99")); err == nil || !strings.Contains(err.Error(), "too many queries") || time.Since(start) != 0 {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		// A dead list that could not be asked is asked the next time.
		l := s.check.lists[0]
		l.dead.Store(true)
		_, _ = s.try(request("192.0.2.98")) // no list could be asked
		time.Sleep(s.check.cfg.ListTimeout.D())
		synctest.Wait()
		_, _ = s.try(request("192.0.2.97")) // as above
		synctest.Wait()
		if a, b := dns.count("a.example", "192.0.2.98"), dns.count("a.example", "192.0.2.97"); a != 0 || b != 1 {
			t.Errorf("a dead list was asked %d and %d times, want 0 and 1", a, b)
		}
	})
}

func TestNewMakesOneListOfAZone(t *testing.T) {
	s := newSite(t, newDNS(), `lists = ["a.example=127.0.0.2*3", "sender:a.example", "a.example=127.0.0.3", "b.example=127.0.0.2*-1"]
		[[zone]]
		zone = "a.example"
		families = ["ipv4"]`)
	if n, q := len(s.check.lists), len(s.check.queries); n != 2 || q != 3 || len(s.check.queries[0].entries) != 2 {
		t.Errorf("%d lists, %d queries", n, q)
	}
	a, b := s.check.lists[0], s.check.lists[1]
	if fmt.Sprint(a.families, a.aspects, b.families, b.aspects) != "[ipv4] [true false true] [] [true true false]" {
		t.Errorf("%v %v, %v %v", a.families, a.aspects, b.families, b.aspects)
	}
	v6 := s.make("lists = [\"a.example*3\"]\n[[zone]]\nzone = \"a.example\"\nfamilies = [\"ipv6\"]", nil).lists[0]
	if fmt.Sprint(v6.families, v6.aspects) != "[ipv6] [false true false]" {
		t.Errorf("%v %v", v6.families, v6.aspects)
	}
	if s.check.Idle() || !s.make("", nil).Idle() {
		t.Error("idle with lists, or not without")
	}
	if v, err := s.make("", nil).Evaluate(t.Context(), request("192.0.2.1")); err != nil || v.Action != policy.Continue {
		t.Errorf("without lists: %v %v", v, err)
	}
	for what, edit := range map[string]func(*Config){
		"reply: ":              func(c *Config) { c.Reply = "{x}" },
		"defer_reply: ":        func(c *Config) { c.DeferReply = "{x}" },
		"key of a.example: ":   func(c *Config) { c.Zones = []ZoneConfig{{Zone: "a.example", KeyFile: "/nonexistent"}} },
		"reply of a.example: ": func(c *Config) { c.Zones = []ZoneConfig{{Zone: "a.example", Reply: "{x}"}} },
		`"nonsense": `:         func(c *Config) { c.Lists = []string{"nonsense"} },
	} {
		cfg := load(t, `lists = ["a.example*3"]`)
		edit(&cfg)
		if _, err := New(cfg, newDNS(), s.log, nil, nil); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
}

func TestPanicOfTheResolver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSite(t, newDNS(), `lists = ["a.example*3"]`)
		s.check.lists[0].res = nil // any call panics
		if _, err := s.try(request("192.0.2.1")); err == nil || !strings.Contains(err.Error(), "panic") {
			t.Errorf("got %v", err)
		}
		s.check.Stop()
	})
}

func TestShadowAndOffLists(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example", "c.example")
		s := newSite(t, dns, `lists = ["a.example*3", "b.example", "c.example*3"]
			[[zone]]
			zone = "a.example"
			mode = "shadow"
			[[zone]]
			zone = "c.example"
			mode = "off"`).started()
		defer s.check.Stop()
		for _, z := range []string{"a.example", "b.example", "c.example"} {
			dns.set(z, "192.0.2.1", "127.0.0.2")
		}
		s.check.Warm(t.Context(), netip.MustParseAddr("192.0.2.1"))
		synctest.Wait()
		req := request("192.0.2.1")
		v := s.ask(req)
		if v.Action != policy.Continue || req.Facts.RBLScore != 1 || len(req.Facts.Listings) != 1 || req.Facts.Listings[0].List != "b.example" {
			t.Errorf("got %v, facts %+v", v.Action, req.Facts)
		}
		if !strings.Contains(v.Detail, "a.example 127.0.0.2 (3, shadow)") {
			t.Errorf("detail %q", v.Detail)
		}
		for list, want := range map[string]float64{"a.example": 1, "b.example": 0} {
			if n := testutil.ToFloat64(s.check.shared.metrics.shadowed.WithLabelValues(list)); n != want {
				t.Errorf("%s: shadow counted %v times, want %v", list, n, want)
			}
		}
		if n := dns.count("c.example", "192.0.2.1"); n != 0 {
			t.Errorf("a list that is off was asked %d times", n)
		}
		// It is not waited for.
		dns.change(func() { dns.delay["a.example"] = time.Second })
		start := time.Now()
		s.ask(request("192.0.2.2"))
		if took := time.Since(start); took != 0 {
			t.Errorf("waited %v for a list in shadow mode", took)
		}
	})
}

// A list in shadow mode is counted where it would have changed what happens.
func TestWhatAShadowListWouldHaveChanged(t *testing.T) {
	for _, tt := range []struct {
		name   string
		lists  string
		listed string // zones that list the client
		dry    bool
		want   float64
	}{
		{"it would be refused", `"s.example*3", "b.example"`, "s.example", false, 1},
		{"only asked", `"s.example*3", "b.example"`, "s.example", true, 0},
		{"it is refused anyway", `"s.example*3", "b.example*3"`, "s.example b.example", false, 0},
		{"it would not be refused", `"s.example*-1", "b.example*3"`, "s.example b.example", false, 1},
		{"too little", `"s.example", "b.example*3"`, "s.example", false, 1}, // it would be marked
		{"another list in shadow", `"s.example*3", "b.example*3", "t.example*3"`, "t.example", false, 0},
		{"no entry matches", `"s.example=127.0.0.9*3", "b.example*3", "t.example*3"`, "s.example t.example", false, 0},
	} {
		bubble(t, func(t *testing.T) {
			dns := newDNS().zone("s.example", "b.example", "t.example")
			text := "lists = [" + tt.lists + "]\n[[zone]]\nzone = \"s.example\"\nmode = \"shadow\"\n"
			if strings.Contains(tt.lists, "t.example") {
				text += "[[zone]]\nzone = \"t.example\"\nmode = \"shadow\"\n"
			}
			s := newSite(t, dns, text).started()
			defer s.check.Stop()
			for _, z := range strings.Fields(tt.listed) {
				dns.set(z, "192.0.2.1", "127.0.0.2")
			}
			s.check.Warm(t.Context(), netip.MustParseAddr("192.0.2.1"))
			synctest.Wait()
			req := request("192.0.2.1")
			req.DryRun = tt.dry
			s.ask(req)
			if n := testutil.ToFloat64(s.check.shared.metrics.shadowed.WithLabelValues("s.example")); n != tt.want {
				t.Errorf("%s: counted %v times, want %v", tt.name, n, tt.want)
			}
		})
	}
}

func TestWarmAsksWhatWouldBeAsked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "dbl.example") // off.example has no test entries
		s := newSite(t, dns, `lists = ["a.example*3", "off.example*3", "sender:dbl.example"]`).started()
		defer s.check.Stop()
		addr := netip.MustParseAddr("192.0.2.1")
		for range 2 {
			s.check.Warm(t.Context(), addr)
			synctest.Wait()
		}
		for zone, want := range map[string]int{"a.example": 1, "off.example": 0, "dbl.example": 0} {
			if n := dns.count(zone, addr.String()); n != want {
				t.Errorf("%s was asked %d times, want %d", zone, n, want)
			}
		}
	})
}

func TestDryRunCountsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example")
		s := newSite(t, dns, `lists = ["a.example*3"]`).started()
		defer s.check.Stop()
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		for range 2 {
			req := request("192.0.2.1")
			req.DryRun = true
			if v := s.ask(req); v.Action != policy.Reject {
				t.Errorf("got %v", v.Action)
			}
		}
		st := s.check.Status()[0]
		if st.Hits != 0 || st.Cached != 0 || st.Seen != 0 {
			t.Errorf("counted: %+v", st)
		}
		s.ask(request("192.0.2.1"))
		if st := s.check.Status()[0]; st.Hits != 1 || st.Cached != 1 {
			t.Errorf("a real one: %+v", st)
		}
	})
}

func TestProbeShowsEveryAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "b.example", "c.example", "dbl.example")
		s := newSite(t, dns, `lists = ["a.example*3", "b.example=127.0.0.9", "c.example", "sender:dbl.example"]`).started()
		defer s.check.Stop()
		dns.set("a.example", "192.0.2.1", "127.0.0.2")
		dns.set("b.example", "192.0.2.1", "127.0.0.7")
		dns.txt[nameOf("a.example", "192.0.2.1")] = []string{"bad"}
		dns.change(func() { dns.delay["c.example"], dns.err["dbl.example"] = 40*time.Millisecond, errors.New("SERVFAIL") })
		req := request("192.0.2.1")
		req.DryRun, req.Probe = true, &policy.Probe{}
		s.ask(req)
		var got []string
		for _, n := range req.Probe.Notes {
			got = append(got, fmt.Sprintf("%s: %s [%s] %v", n.What, n.Value, n.Source, n.Took))
		}
		want := []string{
			"a.example: 192.0.2.1: 127.0.0.2, weight 3 [network] 0s",
			"b.example: 192.0.2.1: 127.0.0.7, no entry matches [network] 0s",
			"c.example: 192.0.2.1: not listed [network] 40ms",
			"dbl.example (sender): example.com: resolver: example.com.dbl.example: SERVFAIL [network] 0s",
			"score: 3 [] 0s",
			"reason: bad [a.example] 0s",
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("notes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestProbeShowsListsInShadow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dns := newDNS().zone("a.example", "s.example", "slow.example")
		s := newSite(t, dns, `lists = ["a.example*3", "s.example", "slow.example"]
			[[zone]]
			zone = "s.example"
			mode = "shadow"
			[[zone]]
			zone = "slow.example"
			mode = "shadow"`).started()
		defer s.check.Stop()
		dns.change(func() { dns.delay["a.example"], dns.delay["slow.example"] = 10*time.Millisecond, 40*time.Millisecond })
		req := request("192.0.2.1")
		req.Probe = &policy.Probe{}
		s.ask(req)
		s.ask(req)
		var got []string
		for _, n := range req.Probe.Notes {
			got = append(got, n.What+": "+n.Value+" ["+n.Source+"]")
		}
		want := []string{
			"a.example: 192.0.2.1: not listed [network]",
			"s.example: 192.0.2.1: not listed, in shadow [network]",
			"slow.example: 192.0.2.1: not waited for []",
			"score: 0 []",
			"a.example: 192.0.2.1: not listed [cache]",
			"s.example: 192.0.2.1: not listed, in shadow [cache]",
			"slow.example: 192.0.2.1: not waited for []",
			"score: 0 []",
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("notes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}
