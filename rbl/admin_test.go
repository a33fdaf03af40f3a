package rbl

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/internal/admintest"
	"postern/policy"
)

func TestCalls(t *testing.T) {
	dns := newDNS().zone("a.example")
	dns.set("a.example", "192.0.2.1", "127.0.0.2")
	s := newSite(t, dns, `lists = ["a.example*3"]`)
	t.Cleanup(s.check.Stop)
	a := Admin{admintest.Serve(t, s.check.Calls())}
	rep, err := a.Test(t.Context(), netip.MustParseAddr("::ffff:192.0.2.1"))
	if err != nil || rep.Addr != netip.MustParseAddr("192.0.2.1") || rep.Score != 3 || rep.Action != policy.Reject || len(rep.Results) != 1 {
		t.Errorf("test: %+v, %v", rep, err)
	}
	if err := a.Call(t.Context(), "GET", "/v1/rbl/mail.example.org", nil, nil); err == nil || !strings.Contains(err.Error(), "not an IP address") {
		t.Errorf("test of a name: %v", err)
	}
	if held, err := a.Reset(t.Context(), "a.example"); err != nil || held {
		t.Errorf("reset: %v, %v", held, err)
	}
	s.check.lists[0].tripped.Store(true)
	if held, err := a.Reset(t.Context(), "a.example"); err != nil || !held {
		t.Errorf("reset of one that is held: %v, %v", held, err)
	}
	if _, err := a.Reset(t.Context(), "b.example"); err == nil || !strings.Contains(err.Error(), `no list "b.example"`) {
		t.Errorf("reset of one that is not there: %v", err)
	}
}

func TestStatusLines(t *testing.T) {
	now := time.Unix(1e9, 0)
	for want, st := range map[string]Status{
		"rbl       a.example: on; 1 queries, 2 from memory, 3 hits, 4 errors\n": {List: "a.example", Queries: 1, Cached: 2, Hits: 3, Errors: 4},
		"rbl       a.example: off, mode shadow (ipv4: lists 127.0.0.1); 0 queries, 0 from memory, 0 hits, 1 errors; last error 5s ago: no answer in time\n": {
			List: "a.example", State: StateOff, Mode: policy.Shadow, Why: "ipv4: lists 127.0.0.1", Errors: 1,
			LastError: "no answer in time", LastErrorAt: now.Add(-5 * time.Second),
		},
	} {
		var b strings.Builder
		if (Statuses{st}).WriteStatus(&b, now); b.String() != want {
			t.Errorf("got  %q\nwant %q", b.String(), want)
		}
	}
}
