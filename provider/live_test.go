package provider

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/internal/dnstest"
)

// testConfig is a configuration with one list, "p", of the record of p.example.
func testConfig(t testing.TB) Config {
	cfg := DefaultConfig()
	cfg.StateDir = t.TempDir()
	cfg.Lists = []ListConfig{{Name: "p", Domains: []string{"p.example"}, AllowReserved: true}}
	return cfg
}

// newSet makes a set whose log is returned; the set is stopped with the test.
func newSet(t testing.TB, cfg Config, o Options) (*Set, *observer.ObservedLogs) {
	t.Helper()
	var fs conf.Faults
	if cfg.Validate("provider", &fs); fs != nil {
		t.Fatal(fs)
	}
	core, logs := observer.New(zapcore.DebugLevel)
	o.Log = zap.New(core)
	s, err := New(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s, logs
}

// loud returns what was logged as a warning or error since the last call.
func loud(logs *observer.ObservedLogs) string {
	var b strings.Builder
	for _, e := range logs.TakeAll() {
		if e.Level >= zapcore.WarnLevel {
			b.WriteString(e.Level.String() + ": " + e.Message + "\n")
		}
	}
	return b.String()
}

func listed(t testing.TB, s *Set) string {
	t.Helper()
	table, ok := s.Table("p")
	if !ok {
		t.Fatal("no list p")
	}
	return text(table.Prefixes())
}

const good = "v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all"

func TestReadAtTheStartAndKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{"p.example": good})
		cfg := testConfig(t)
		reg := prometheus.NewRegistry()
		s, logs := newSet(t, cfg, Options{Resolver: z, Registry: reg})
		table, _ := s.Table("p")
		if table.Ready() || table.Contains(netip.MustParseAddr("192.0.2.1")) {
			t.Error("a list that was never read holds something")
		}
		began := time.Now()
		s.Start()
		s.Start()
		synctest.Wait()
		if got := listed(t, s); got != "192.0.2.0/24 2001:db8::/32" || !table.Ready() {
			t.Errorf("list %s", got)
		}
		if e, ok := table.Lookup(netip.MustParseAddr("::ffff:192.0.2.7")); !ok || e.Term != "ip4:192.0.2.0/24" || !e.Since.Equal(began) {
			t.Errorf("entry %+v", e)
		}
		st := s.Status()[0]
		if !st.Ready || st.IPv4 != 1 || st.IPv6 != 1 || !st.Checked.Equal(began) || st.How != ByRefresh || st.Next.Sub(began) > time.Hour || st.Next.Sub(began) < 54*time.Minute {
			t.Errorf("status %+v", st)
		}
		if n := testutil.ToFloat64(s.metrics.checked.WithLabelValues("p")); n != float64(began.Unix()) {
			t.Errorf("checked metric %v", n)
		}
		if l := loud(logs); l != "" {
			t.Errorf("log:\n%s", l)
		}
		s.Stop()
		s.Stop()

		// Without DNS, and much later, the last good list is used.
		time.Sleep(30 * 24 * time.Hour)
		z.fail("*", true)
		s, logs = newSet(t, cfg, Options{Resolver: z})
		if got := listed(t, s); got != "192.0.2.0/24 2001:db8::/32" {
			t.Errorf("after a restart: %s", got)
		}
		if m := s.Whois(netip.MustParseAddr("2001:db8::1")); len(m) != 1 || m[0].List != "p" || !m[0].Since.Equal(began) || m[0].Record != "p.example" {
			t.Errorf("whois %+v", m)
		}
		s.Start()
		time.Sleep(startSpread)
		synctest.Wait()
		if l := loud(logs); !strings.HasPrefix(l, "error: the list is old and cannot be read") {
			t.Errorf("log:\n%s", l)
		}
		if st := s.Status()[0]; !st.Stale || st.Failures != 1 || !strings.Contains(st.Error, "SERVFAIL") {
			t.Errorf("status %+v", st)
		}
		if listed(t, s) == "" {
			t.Error("the list is gone")
		}
	})
}

func TestWhenRecordsAreReadAgain(t *testing.T) {
	for _, tt := range []struct {
		ttl         time.Duration
		least, most time.Duration
	}{
		{0, 54 * time.Minute, time.Hour},
		{5 * time.Minute, 54 * time.Minute, time.Hour},
		{10 * time.Hour, 9 * time.Hour, 10 * time.Hour},
		{30 * 24 * time.Hour, 21 * time.Hour, 24 * time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			z := newZone(map[string]string{"p.example": good})
			z.ttl = tt.ttl
			s, _ := newSet(t, testConfig(t), Options{Resolver: z})
			s.Start()
			synctest.Wait()
			for i := range 5 {
				// The timer of the last round has run from the reading on.
				checked := s.Status()[0].Checked
				time.Sleep(time.Until(checked.Add(tt.least)) - time.Second)
				synctest.Wait()
				if n := z.queries(); n != i+1 {
					t.Fatalf("ttl %v: read again after less than %v", tt.ttl, tt.least)
				}
				time.Sleep(tt.most - tt.least + 2*time.Second)
				synctest.Wait()
				if n := z.queries(); n != i+2 {
					t.Fatalf("ttl %v: not read again within %v", tt.ttl, tt.most)
				}
			}
		})
	}
}

func TestFailedReadingsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{"p.example": good})
		s, logs := newSet(t, testConfig(t), Options{Resolver: z})
		s.Start()
		synctest.Wait()
		z.fail("*", true)
		start := s.Status()[0].Next
		time.Sleep(time.Until(start))
		synctest.Wait()
		last := time.Now()
		for i, most := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			st := s.Status()[0]
			if st.Failures != i+1 {
				t.Fatalf("failures %d, want %d", st.Failures, i+1)
			}
			pause := st.Next.Sub(last)
			if pause > most*time.Minute || pause < most*time.Minute*3/4 {
				t.Errorf("after %d failures: %v, want three quarters to all of %v", i+1, pause, most*time.Minute)
			}
			time.Sleep(time.Until(st.Next))
			synctest.Wait()
			last = time.Now()
		}
		if listed(t, s) != "192.0.2.0/24 2001:db8::/32" {
			t.Error("the list changed")
		}
		if l := loud(logs); strings.Count(l, "warn: the list cannot be read now") != 9 || strings.Contains(l, "error") {
			t.Errorf("log:\n%s", l)
		}
		z.fail("*", false)
		time.Sleep(time.Hour)
		synctest.Wait()
		if st := s.Status()[0]; st.Failures != 0 || st.Error != "" || st.Next.Sub(st.Checked) < 54*time.Minute {
			t.Errorf("after it is over: %+v", st)
		}
	})
}

func TestGuards(t *testing.T) {
	for _, tt := range []struct {
		name, from, to string
		reserved       bool   // allowed
		want           string // part of the first reason; "" is taken
	}{
		{"nothing changes", "ip4:20.1.0.0/24", "ip4:20.1.0.0/25 ip4:20.1.0.128/25", false, ""},
		{"first", "", "ip4:20.1.0.0/24", false, ""},
		{"first and empty", "", "-all", false, "it is empty"},
		{"to nothing", "ip4:20.1.0.0/24", "-all", false, "it is empty"},
		{"half lost", "ip4:20.1.0.0/24", "ip4:20.1.0.0/25", false, ""},
		{"more than half lost", "ip4:20.1.0.0/24", "ip4:20.1.0.0/26", false, "it loses 75% of its IPv4 addresses, more than max_shrink = 50"},
		{"all exchanged", "ip4:20.1.0.0/24", "ip4:20.2.0.0/24", false, "it loses 100% of its IPv4"},
		{"doubled", "ip4:20.1.0.0/24", "ip4:20.1.0.0/23", false, ""},
		{"more than doubled", "ip4:20.1.0.0/24", "ip4:20.1.0.0/22", false, "it gains 300% of its IPv4 addresses, more than max_grow = 100"},
		{"IPv6 lost", "ip4:20.1.0.0/24 ip6:2600:1::/32", "ip4:20.1.0.0/24", false, "it loses 100% of its IPv6"},
		{"IPv6 new", "ip4:20.1.0.0/24", "ip4:20.1.0.0/24 ip6:2600:1::/32", false, "it had no IPv6 networks before"},
		{"IPv6 grows", "ip6:2600:1::/40", "ip6:2600:1::/36", false, "it gains 1500% of its IPv6"},
		{"too wide", "", "ip4:20.0.0.0/9", false, "networks wider than min_ipv4_prefix = 10 or min_ipv6_prefix = 28: 20.0.0.0/9"},
		{"too wide in parts", "", "ip4:20.0.0.0/10 ip4:20.64.0.0/10", false, "networks wider"},
		{"everything", "", "+all", false, "networks wider than min_ipv4_prefix = 10 or min_ipv6_prefix = 28: 0.0.0.0/0, ::/0"},
		{"private", "", "ip4:20.1.0.0/24 ip4:10.1.0.0/24", false, "private or reserved networks: 10.1.0.0/24"},
		{"private, allowed", "", "ip4:10.1.0.0/24", true, ""},
		{"around a reserved one", "", "ip4:192.0.0.0/16", false, "private or reserved networks: 192.0.0.0/24, 192.0.2.0/24"},
		{"link local", "", "ip6:fe80::/64", false, "private or reserved networks: fe80::/64"},
		{"not given out", "", "ip6:4000::/32", false, "private or reserved"},
		{"documentation", "", "ip6:2001:db8::/48", false, "private or reserved networks: 2001:db8::/48"},
		{"broken", "ip4:20.1.0.0/24", "ip4:20.1.0.0/24 ip4:20.1.1.0/25 include:nowhere.example", false, "broken record: p.example: include:nowhere.example: nowhere.example has no SPF record"},
		{"broken, but the same", "ip4:20.1.0.0/24", "ip4:20.1.0.0/24 include:nowhere.example", false, ""},
	} {
		z := newZone(nil)
		cfg := testConfig(t)
		cfg.Lists[0].AllowReserved = tt.reserved
		s, logs := newSet(t, cfg, Options{Resolver: z})
		if tt.from != "" {
			z.set("p.example", "v=spf1 "+tt.from)
			if rep, err := s.Refresh(t.Context(), "p", false); err != nil || rep.Result != resultChanged {
				t.Fatalf("%s: first: %+v %v", tt.name, rep, err)
			}
		}
		before := listed(t, s)
		z.set("p.example", "v=spf1 "+tt.to)
		dry, err := s.Refresh(t.Context(), "p", true)
		if err != nil || listed(t, s) != before || s.Status()[0].Refused != nil {
			t.Errorf("%s: the dry run changed something: %v", tt.name, err)
		}
		loud(logs)
		rep, err := s.Refresh(t.Context(), "p", false)
		if err != nil || rep.Result != dry.Result || rep.ID != dry.ID || strings.Join(rep.Reasons, "; ") != strings.Join(dry.Reasons, "; ") {
			t.Errorf("%s: the dry run said %+v, the refresh %+v, %v", tt.name, dry, rep, err)
		}
		if tt.want == "" {
			if rep.Result == resultRefused || listed(t, s) != text(Aggregate(prefixesOf(s.lists[0].doc.Entries))) || strings.Contains(loud(logs), "error") {
				t.Errorf("%s: %+v", tt.name, rep)
			}
			continue
		}
		if rep.Result != resultRefused || !strings.HasPrefix(rep.Reasons[0], tt.want) {
			t.Errorf("%s: %+v", tt.name, rep)
		}
		if listed(t, s) != before || !strings.Contains(loud(logs), "error: an update of the list was refused") {
			t.Errorf("%s: taken, or in silence: %s", tt.name, listed(t, s))
		}
	}
}

func TestRefusedUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{"p.example": good})
		cfg := testConfig(t)
		s, logs := newSet(t, cfg, Options{Resolver: z})
		s.Start()
		synctest.Wait()
		z.set("p.example", "v=spf1 ip4:192.0.2.0/30 ip4:198.51.100.0/25 -all")
		time.Sleep(90 * time.Minute)
		synctest.Wait()
		if l := loud(logs); l != "error: an update of the list was refused; what is in force stays\n" {
			t.Errorf("log:\n%s", l)
		}
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if l := loud(logs); !strings.HasPrefix(l, "warn: an update of the list is still refused") || strings.Contains(l, "error") {
			t.Errorf("log, later:\n%s", l)
		}
		if listed(t, s) != "192.0.2.0/24 2001:db8::/32" {
			t.Fatalf("list %s", listed(t, s))
		}
		if n := testutil.ToFloat64(s.metrics.refused.WithLabelValues("p")); n != 1 {
			t.Errorf("metric %v", n)
		}
		st := s.Status()[0]
		if st.Refused == nil || len(st.Refused.Reasons) != 2 || st.Refused.Added != 1 || st.Refused.Removed != 7 || st.Age < 3*time.Hour {
			t.Fatalf("status %+v, %+v", st, st.Refused)
		}
		diff, pending, err := s.Pending("p")
		if err != nil || pending.ID != st.Refused.ID || text(diff.Added) != "198.51.100.0/25" || !strings.HasSuffix(text(diff.Removed), "192.0.2.128/25 2001:db8::/32") {
			t.Errorf("diff %v %v", diff, err)
		}
		s.Stop()

		// It survives a restart, and is accepted by its id only.
		s, logs = newSet(t, cfg, Options{Resolver: z})
		if _, err := s.Accept(t.Context(), "p", "000000000000"); err == nil || !strings.Contains(err.Error(), "is "+pending.ID+", not 000000000000") {
			t.Errorf("another id: %v", err)
		}
		if _, err := s.Accept(t.Context(), "q", pending.ID); err == nil {
			t.Error("accepted for a list that is not there")
		}
		rep, err := s.Accept(t.Context(), "p", pending.ID)
		if err != nil || rep.Result != resultAccepted || listed(t, s) != "192.0.2.0/30 198.51.100.0/25" || s.Status()[0].Refused != nil || s.Status()[0].How != ByHand {
			t.Errorf("accepted: %+v %v %s", rep, err, listed(t, s))
		}
		if _, err := s.Accept(t.Context(), "p", pending.ID); err == nil || !strings.Contains(err.Error(), "no refused update") {
			t.Errorf("accepted twice: %v", err)
		}
		if l := loud(logs); l != "" {
			t.Errorf("log:\n%s", l)
		}
		h, err := s.History("p")
		if err != nil || len(h) != 2 || h[0].How != ByRefresh || h[1].How != ByHand || h[1].AddedCount != 1 || h[1].RemovedCount != 7 || h[1].ID != pending.ID {
			t.Errorf("history %+v %v", h, err)
		}
		// The network that stayed has been there since the start.
		w := s.Whois(netip.MustParseAddr("192.0.2.1"))
		if len(w) != 1 || !w[0].Since.Equal(h[0].Time) || !s.Whois(netip.MustParseAddr("198.51.100.1"))[0].Since.Equal(h[1].Time) {
			t.Errorf("whois %+v", w)
		}

		// A refused update is forgotten when the records are right again.
		z.set("p.example", "v=spf1 -all")
		if rep, _ := s.Refresh(t.Context(), "p", false); rep.Result != resultRefused {
			t.Errorf("%+v", rep)
		}
		z.set("p.example", "v=spf1 ip4:192.0.2.0/30 ip4:198.51.100.0/25 -all")
		if rep, _ := s.Refresh(t.Context(), "p", false); rep.Result != resultUnchanged || s.Status()[0].Refused != nil {
			t.Errorf("%+v", rep)
		}
	})
}

func TestHistoryIsBounded(t *testing.T) {
	z := newZone(nil)
	cfg := testConfig(t)
	cfg.History = 3
	cfg.Guard.MaxShrink, cfg.Guard.MaxGrow = 100, unlimited
	s, _ := newSet(t, cfg, Options{Resolver: z})
	for i := range 10 {
		z.set("p.example", longRecord(1100*(1+i%2)))
		if rep, err := s.Refresh(t.Context(), "p", false); err != nil || rep.Result != resultChanged {
			t.Fatalf("%d: %v %v", i, rep.Result, rep.Reasons)
		}
	}
	h, _ := s.History("p")
	if len(h) != 3 || h[2].AddedCount != 1100 || len(h[2].Added) != maxDiff || h[1].RemovedCount != 1100 || len(h[1].Removed) != maxDiff {
		t.Errorf("%d changes", len(h))
	}
}

// Nothing that DNS can do at a refresh harms the list in use.
func TestDNSTroubleNeverHarmsTheList(t *testing.T) {
	srv, res := realDNS(t)
	records := providerRecords(t)
	for name, text := range records {
		addTXT(srv, name, text)
	}
	cfg := testConfig(t)
	cfg.Lists = []ListConfig{{Name: "office365", AllowReserved: true}, {Name: "google"}, {Name: "p", Domains: []string{"gmail.com"}}}
	s, logs := newSet(t, cfg, Options{Resolver: res})
	for _, name := range s.Names() {
		if rep, err := s.Refresh(t.Context(), name, false); err != nil || rep.Result != resultChanged {
			t.Fatalf("%s: %+v %v", name, rep, err)
		}
	}
	want := listed(t, s)
	loud(logs)
	for _, tt := range []struct {
		name  string
		do    func()
		undo  func()
		after Result
	}{
		{"SERVFAIL", func() { srv.BehaveUnder(".", dnstest.ServFail) }, func() { srv.BehaveWell(".") }, resultFailed},
		{"SERVFAIL for one part", func() { srv.Behave("_netblocks3.google.com", dnstest.ServFail) }, func() { srv.BehaveWell("_netblocks3.google.com") }, resultFailed},
		{"no answer for one part", func() { srv.Behave("_netblocks3.google.com", dnstest.Drop) }, func() { srv.BehaveWell("_netblocks3.google.com") }, resultFailed},
		{
			"half of the parts missing", func() { srv.Remove("_netblocks2.google.com."); srv.Remove("_netblocks3.google.com.") },
			func() {
				addTXT(srv, "_netblocks2.google.com", records["_netblocks2.google.com"])
				addTXT(srv, "_netblocks3.google.com", records["_netblocks3.google.com"])
			}, resultRefused,
		},
		{
			"the first part missing", func() { srv.Remove("_netblocks.google.com.") },
			func() { addTXT(srv, "_netblocks.google.com", records["_netblocks.google.com"]) }, resultRefused,
		},
		{"truncated", func() { srv.BehaveUnder(".", dnstest.Truncate) }, func() { srv.BehaveWell(".") }, resultUnchanged},
		{
			"cut off", func() { srv.Behave("_netblocks.google.com", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieBroken}}) },
			func() { srv.BehaveWell("_netblocks.google.com") }, resultFailed,
		},
		{
			"oversized", func() {
				srv.Behave("_netblocks.google.com", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieOversize}})
			},
			func() { srv.BehaveWell("_netblocks.google.com") }, resultFailed,
		},
		{
			"a loop", func() {
				srv.Remove("_netblocks.google.com.")
				addTXT(srv, "_netblocks.google.com", "v=spf1 include:_spf.google.com ~all")
			},
			func() {
				srv.Remove("_netblocks.google.com.")
				addTXT(srv, "_netblocks.google.com", records["_netblocks.google.com"])
			}, resultRefused,
		},
		{
			"nothing left", func() { srv.Remove("_spf.google.com."); addTXT(srv, "_spf.google.com", "v=spf1 -all") },
			func() { srv.Remove("_spf.google.com."); addTXT(srv, "_spf.google.com", records["_spf.google.com"]) }, resultRefused,
		},
		{"gone", func() { srv.Remove("gmail.com.") }, func() { addTXT(srv, "gmail.com", records["gmail.com"]) }, resultRefused},
		{"no server", srv.Stop, srv.Restart, resultFailed},
	} {
		res.Flush("")
		tt.do()
		rep, err := s.Refresh(t.Context(), "p", false)
		if err != nil || rep.Result != tt.after {
			t.Errorf("%s: %v %v %v, %v", tt.name, rep.Result, rep.Reasons, rep.Error, err)
		}
		if got := listed(t, s); got != want {
			t.Fatalf("%s: the list is %s", tt.name, got)
		}
		if l := loud(logs); (l == "") != (tt.after == resultUnchanged) {
			t.Errorf("%s: log: %s", tt.name, l)
		}
		tt.undo()
	}
	res.Flush("")
	if rep, err := s.Refresh(t.Context(), "p", false); err != nil || rep.Result != resultUnchanged {
		t.Errorf("when all is well: %+v %v", rep, err)
	}
}

func TestStatesThatAreNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{"p.example": good})
		cfg := testConfig(t)
		s, _ := newSet(t, cfg, Options{Resolver: z})
		if _, err := s.Refresh(t.Context(), "p", false); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(cfg.StateDir, "p.json")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if st, _ := os.Stat(path); st.Mode().Perm() != 0o640 {
			t.Errorf("mode %v", st.Mode())
		}
		for _, tt := range []struct{ name, text, log string }{
			{"whole", string(text), ""},
			{"empty", "", "error: the last good list cannot be used"},
			{"half", string(text[:len(text)/2]), "error: the last good list cannot be used"},
			{"newer", strings.Replace(string(text), `"version":1`, `"version":2`, 1), "error: the last good list cannot be used"},
			{"host bits", strings.Replace(string(text), "192.0.2.0/24", "192.0.2.1/24", 1), "error: the last good list cannot be used"},
			{"no network", strings.Replace(string(text), "192.0.2.0/24", "", 1), "error: the last good list cannot be used"},
			{"too wide", strings.Replace(string(text), "192.0.2.0/24", "128.0.0.0/1", 1), "error: the last good list is beyond the guards"},
			{"without entries", `{"version":1,"name":"p","source":"p.example","serial":3,"checked":"2020-01-01T00:00:00Z","entries":null}`, "error: the last good list is beyond the guards"},
			{"of other records", strings.Replace(string(text), `"source":"p.example"`, `"source":"q.example"`, 1), ""},
		} {
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			s, logs := newSet(t, cfg, Options{Resolver: z})
			ready := s.Status()[0].Ready
			if ready != (tt.name == "whole") {
				t.Errorf("%s: ready %v", tt.name, ready)
			}
			if l := loud(logs); !strings.HasPrefix(l, tt.log) || tt.log == "" && l != "" {
				t.Errorf("%s: log: %s", tt.name, l)
			}
		}
		// A directory that cannot be written is loud, and costs nothing else.
		bad := cfg
		bad.StateDir = filepath.Join(path, "below-a-file")
		s, logs := newSet(t, bad, Options{Resolver: z})
		if rep, err := s.Refresh(t.Context(), "p", false); err != nil || rep.Result != resultChanged || listed(t, s) == "" {
			t.Errorf("%+v %v", rep, err)
		}
		if l := loud(logs); !strings.Contains(l, "error: the list could not be kept") || s.Status()[0].Error == "" {
			t.Errorf("log: %s", l)
		}
	})
}

func TestFiles(t *testing.T) {
	z := newZone(map[string]string{"p.example": good})
	cfg := testConfig(t)
	path := filepath.Join(t.TempDir(), "own.list")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("\ufeff# our own\n198.51.100.0/25  # first\n\t198.51.100.128/25 second half\r\n2001:db8:ffff::1\n")
	cfg.Lists[0].Files = []string{path}
	s, logs := newSet(t, cfg, Options{Resolver: z})
	if got := listed(t, s); got != "198.51.100.0/24 2001:db8:ffff::1/128" {
		t.Errorf("files: %s", got)
	}
	if _, err := s.Refresh(t.Context(), "p", false); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, s); got != "192.0.2.0/24 198.51.100.0/24 2001:db8::/32" {
		t.Errorf("both: %s", got)
	}
	if m := s.Whois(netip.MustParseAddr("2001:db8:ffff::1")); len(m) != 1 || m[0].Record != path || m[0].Term != "line 4" || m[0].Since.IsZero() {
		t.Errorf("whois %+v", m)
	}
	l := s.lists[0]
	later := time.Now().Add(time.Hour)
	for _, bad := range []string{"198.51.100.0/33\n", "198.51.100.1/24\n", "host.example\n", "0.0.0.0/1\n"} {
		write(bad)
		loud(logs)
		l.poll(t.Context(), later)
		if loud(logs) != "" {
			t.Errorf("%q is told before it can have been written whole", bad)
		}
		l.poll(t.Context(), later)
		if got := listed(t, s); got != "192.0.2.0/24 198.51.100.0/24 2001:db8::/32" {
			t.Errorf("after %q: %s", bad, got)
		}
		if s.Status()[0].FileFault == "" || !strings.HasPrefix(loud(logs), "error: the files of a list were not taken") {
			t.Errorf("%q was not taken in silence", bad)
		}
		l.poll(t.Context(), later)
		if loud(logs) != "" {
			t.Error("the same edit is reported twice")
		}
	}
	if testutil.ToFloat64(s.metrics.faults.WithLabelValues("p")) != 1 {
		t.Error("the metric does not show it")
	}
	write("198.51.100.7\n")
	l.poll(t.Context(), later)
	if got := listed(t, s); got != "192.0.2.0/24 198.51.100.7/32 2001:db8::/32" || s.Status()[0].FileFault != "" {
		t.Errorf("after a good edit: %s", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l.poll(t.Context(), later)
	if got := listed(t, s); got != "192.0.2.0/24 198.51.100.7/32 2001:db8::/32" {
		t.Errorf("without the file: %s", got)
	}
	// A file that is being written is left alone.
	write("198.51.100.9\n")
	now := time.Now()
	if err := os.Chtimes(path, now, now); err != nil {
		t.Fatal(err)
	}
	l.poll(t.Context(), now.Add(50*time.Millisecond))
	if got := listed(t, s); strings.Contains(got, "198.51.100.9") {
		t.Error("read while it was written")
	}
	// A list of files only has nothing to refresh.
	cfg.Lists[0] = ListConfig{Name: "p", Files: []string{path}, AllowReserved: true}
	s, _ = newSet(t, cfg, Options{Resolver: z})
	if _, err := s.Refresh(t.Context(), "p", false); err == nil {
		t.Error("refreshed a list of files")
	}
	l = s.lists[0]
	write("# nothing\n")
	l.poll(t.Context(), later)
	l.poll(t.Context(), later)
	if got := listed(t, s); got != "198.51.100.9/32" || s.Status()[0].FileFault != "it is empty" {
		t.Errorf("emptied: %s", got)
	}
}

func TestReloadKeepsWhatWasLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{"p.example": good, "q.example": "v=spf1 ip4:198.51.100.0/24 -all"})
		cfg := testConfig(t)
		reg := prometheus.NewRegistry()
		old, _ := newSet(t, cfg, Options{Resolver: z, Registry: reg})
		old.Start()
		synctest.Wait()
		if err := os.RemoveAll(cfg.StateDir); err != nil {
			t.Fatal(err)
		}
		cfg.Lists = append(cfg.Lists, ListConfig{Name: "q", Domains: []string{"q.example"}, AllowReserved: true})
		s, logs := newSet(t, cfg, Options{Resolver: z, Registry: reg, Previous: old})
		if listed(t, s) != "192.0.2.0/24 2001:db8::/32" || s.Status()[0].Next != old.Status()[0].Next {
			t.Errorf("%+v", s.Status()[0])
		}
		old.Stop()
		s.Start()
		synctest.Wait()
		if q, _ := s.Table("q"); text(q.Prefixes()) != "198.51.100.0/24" {
			t.Error("the new list was not read")
		}
		if n := z.queries(); n != 2 {
			t.Errorf("%d queries", n)
		}
		// Narrower guards than the list: it is read anew, and refused.
		cfg.Lists[0].AllowReserved = false
		next, nextLogs := newSet(t, cfg, Options{Resolver: z, Registry: reg, Previous: s})
		if listed(t, next) != "" {
			t.Errorf("in force beyond the guards: %s", listed(t, next))
		}
		s.Stop()
		next.Start()
		synctest.Wait()
		if st := next.Status()[0]; st.Ready || st.Refused == nil || !strings.Contains(loud(nextLogs), "refused") {
			t.Errorf("%+v", st)
		}
		// Other records: nothing of the old list is used.
		cfg.Lists = []ListConfig{{Name: "p", Domains: []string{"q.example"}, AllowReserved: true}}
		last, _ := newSet(t, cfg, Options{Resolver: z, Registry: reg, Previous: old})
		if listed(t, last) != "" {
			t.Errorf("of other records: %s", listed(t, last))
		}
		// A list that is no longer named leaves the metrics when the new
		// configuration comes into force, and not when it is only tried.
		for _, want := range []int{2, 1} {
			if n, err := testutil.GatherAndCount(reg, "postern_provider_checked_timestamp_seconds"); err != nil || n != want {
				t.Errorf("%d lists in the metrics, %v, want %d", n, err, want)
			}
			next.Stop()
			last.Start()
			synctest.Wait()
		}
		if l := loud(logs); l != "" {
			t.Errorf("log: %s", l)
		}
	})
}

// memShared is a Shared for tests: what a store does, and its failures.
type memShared struct {
	mu     sync.Mutex
	docs   map[string][]byte
	serial map[string]uint64
	holder map[string]string
	until  map[string]time.Time
	down   bool
	leases int
}

func newShared() *memShared {
	return &memShared{docs: map[string][]byte{}, serial: map[string]uint64{}, holder: map[string]string{}, until: map[string]time.Time{}}
}

var errDown = errors.New("store is down")

func (m *memShared) LoadProvider(_ context.Context, list string, newer uint64) ([]byte, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return nil, 0, errDown
	}
	if m.serial[list] <= newer {
		return nil, 0, nil
	}
	return m.docs[list], m.serial[list], nil
}

func (m *memShared) SaveProvider(_ context.Context, list string, doc []byte, serial uint64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return false, errDown
	}
	if serial <= m.serial[list] {
		return false, nil
	}
	m.docs[list], m.serial[list] = doc, serial
	return true, nil
}

func (m *memShared) LeaseProvider(_ context.Context, list, node string, d time.Duration) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return false, errDown
	}
	if m.holder[list] != node && time.Now().Before(m.until[list]) {
		return false, nil
	}
	m.leases++
	m.holder[list], m.until[list] = node, time.Now().Add(d)
	return true, nil
}

func TestFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{"p.example": good})
		z.delay = time.Second
		shared := newShared()
		const n = 4
		nodes := make([]*Set, n)
		logs := make([]*observer.ObservedLogs, n)
		for i := range nodes {
			nodes[i], logs[i] = newSet(t, testConfig(t), Options{Resolver: z, Shared: shared})
			nodes[i].Start()
		}
		same := func(when, want string) {
			t.Helper()
			for i, s := range nodes {
				if got := listed(t, s); got != want {
					t.Errorf("%s: node %d has %s", when, i, got)
				}
				if l := loud(logs[i]); l != "" {
					t.Errorf("%s: node %d: %s", when, i, l)
				}
			}
		}
		time.Sleep(2*z.delay + sharedFirst)
		synctest.Wait()
		same("at first", "192.0.2.0/24 2001:db8::/32")
		if q := z.queries(); q != 1 {
			t.Errorf("%d readings at first", q)
		}
		// A day: the records are read about once an hour, not by each node.
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if q := z.queries(); q < 20 || q > 35 {
			t.Errorf("%d readings in a day", q)
		}
		same("after a day", "192.0.2.0/24 2001:db8::/32")

		// A change of the records comes to all, and what one node accepts too.
		z.set("p.example", "v=spf1 ip4:192.0.2.0/24 ip4:198.51.100.0/28 ip6:2001:db8::/32 -all")
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		same("after a change", "192.0.2.0/24 198.51.100.0/28 2001:db8::/32")
		z.set("p.example", "v=spf1 ip4:192.0.2.0/28 -all")
		var refused *Set
		for refused == nil {
			time.Sleep(time.Minute)
			synctest.Wait()
			for _, s := range nodes {
				if s.Status()[0].Refused != nil {
					refused = s
				}
			}
		}
		if rep, err := refused.Accept(t.Context(), "p", refused.Status()[0].Refused.ID); err != nil || rep.Result != resultAccepted {
			t.Fatalf("%+v %v", rep, err)
		}
		time.Sleep(2 * sharedPoll)
		synctest.Wait()
		for i, s := range nodes {
			if got := listed(t, s); got != "192.0.2.0/28" || s.Status()[0].Refused != nil {
				t.Errorf("node %d has %s after another accepted, refused %v", i, got, s.Status()[0].Refused)
			}
			loud(logs[i])
		}

		// Without the store each goes on alone.
		shared.mu.Lock()
		shared.down = true
		shared.mu.Unlock()
		z.set("p.example", "v=spf1 ip4:192.0.2.0/27 -all")
		before := z.queries()
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		for i, s := range nodes {
			if got := listed(t, s); got != "192.0.2.0/27" {
				t.Errorf("node %d has %s without the store", i, got)
			}
			if l := loud(logs[i]); !strings.HasPrefix(l, "warn: the shared store cannot be used") || strings.Contains(l, "error") {
				t.Errorf("node %d: %s", i, l)
			}
		}
		if q := z.queries() - before; q < 2*n {
			t.Errorf("%d readings without the store", q)
		}
		shared.mu.Lock()
		shared.down = false
		shared.mu.Unlock()
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		for i := range nodes {
			loud(logs[i])
		}
		same("with the store again", "192.0.2.0/27")
	})
}

func TestWhatIsNotTakenFromAPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{"p.example": good})
		shared := newShared()
		s, logs := newSet(t, testConfig(t), Options{Resolver: z, Shared: shared})
		s.Start()
		time.Sleep(time.Second)
		synctest.Wait()
		own := s.lists[0].doc
		put := func(d document) {
			text, err := d.encode()
			if err != nil {
				t.Fatal(err)
			}
			shared.mu.Lock()
			shared.docs["p"], shared.serial["p"] = text, d.Serial
			shared.mu.Unlock()
			time.Sleep(sharedPoll)
			synctest.Wait()
		}
		base := document{Version: documentVersion, Name: "p", Source: "p.example", How: ByRefresh, Checked: time.Now(), TTL: time.Hour}
		entry := func(p string) []Entry { return []Entry{{Prefix: netip.MustParsePrefix(p), Record: "p.example"}} }
		for i, tt := range []struct {
			name string
			edit func(d *document)
			log  string
		}{
			{"too wide", func(d *document) { d.Entries = entry("128.0.0.0/1") }, "error: an update of the list was refused"},
			{"empty", func(*document) {}, "error: an update of the list was refused"},
			{"shrunk", func(d *document) { d.Entries = entry("192.0.2.0/30") }, "error: an update of the list was refused"},
			{"of other records", func(d *document) { d.Source, d.Entries = "x.example", entry("192.0.2.0/24") }, "warn: the list in the shared store is of other records"},
			{"newer version", func(d *document) { d.Version = 9 }, "error: the list in the shared store cannot be used"},
		} {
			loud(logs)
			d := base
			d.Serial = own.Serial + uint64(i) + 1
			tt.edit(&d)
			put(d)
			if got := listed(t, s); got != "192.0.2.0/24 2001:db8::/32" {
				t.Fatalf("%s: %s", tt.name, got)
			}
			if l := loud(logs); !strings.HasPrefix(l, tt.log) {
				t.Errorf("%s: %s", tt.name, l)
			}
		}
		shared.mu.Lock()
		shared.docs["p"], shared.serial["p"] = []byte("garbage"), 100
		shared.mu.Unlock()
		time.Sleep(sharedPoll)
		synctest.Wait()
		if l := loud(logs); !strings.HasPrefix(l, "error: the list in the shared store cannot be used") || listed(t, s) != "192.0.2.0/24 2001:db8::/32" {
			t.Errorf("garbage: %s", l)
		}
	})
}

func TestOnlyOneRefreshAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone(map[string]string{"p.example": good})
		z.delay = 10 * time.Second
		s, _ := newSet(t, testConfig(t), Options{Resolver: z})
		s.Start()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Refresh(ctx, "p", false); !errors.Is(err, errBusy) {
			t.Errorf("%v", err)
		}
		if rep, err := s.Refresh(t.Context(), "p", false); err != nil || rep.Result != resultUnchanged {
			t.Errorf("%+v %v", rep, err)
		}
		// A reading under way does not hold up the end.
		z.mu.Lock()
		z.delay = time.Hour
		z.mu.Unlock()
		time.Sleep(time.Until(s.Status()[0].Next))
		synctest.Wait()
		start := time.Now()
		s.Stop()
		if took := time.Since(start); took != 0 {
			t.Errorf("Stop took %v", took)
		}
	})
}

func TestNothingIsLeftBehind(t *testing.T) {
	defer goleak.VerifyNone(t)
	z := newZone(map[string]string{"p.example": good})
	cfg := testConfig(t)
	s, _ := newSet(t, cfg, Options{Resolver: z, Shared: newShared()})
	s.Start()
	s.Stop()
	s.Start()
	s.Stop()
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"version":1,"name":"p","source":"p.example","serial":1,"entries":[{"prefix":"192.0.2.0/24"}],"pending":{"entries":[]}}`))
	f.Add([]byte(`{"version":1,"name":"p","source":"p.example","entries":[{"prefix":"::ffff:1.2.3.4/128"},{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := decode(text, "p", "p.example")
		if err != nil {
			return
		}
		snap := newSnapshot(d.Entries)
		for _, e := range d.Entries {
			if snap.find(e.Prefix.Addr()) == nil {
				t.Fatalf("%v is lost", e.Prefix)
			}
		}
		again, err := d.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(again, "p", "p.example"); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
	})
}

func FuzzFile(f *testing.F) {
	f.Add([]byte("192.0.2.0/24 # x\n\n# y\n2001:db8::/32\n192.0.2.1/24\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, faults := parseFile("f", text)
		for _, e := range entries {
			if !e.Prefix.IsValid() || e.Prefix != e.Prefix.Masked() || e.Prefix.Addr().Is4In6() {
				t.Fatalf("%v", e.Prefix)
			}
		}
		if len(faults) > maxFaults+2 {
			t.Fatalf("%d faults", len(faults))
		}
		newSnapshot(entries)
	})
}

func TestReportsTravelAsJSON(t *testing.T) {
	z := newZone(map[string]string{"p.example": good + " exists:%{i}.example"})
	s, _ := newSet(t, testConfig(t), Options{Resolver: z})
	rep, err := s.Refresh(t.Context(), "p", false)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := s.Show("p")
	if err != nil || len(shown.Entries) != 2 || len(shown.Records) != 1 || len(shown.History) != 1 {
		t.Errorf("%+v %v", shown, err)
	}
	if _, err := s.Show("q"); err == nil || !strings.Contains(err.Error(), `no list "q" (there are: p)`) {
		t.Errorf("%v", err)
	}
	status := []Status(s.Status())
	for _, v := range []any{&rep, &shown, new(s.Whois(netip.MustParseAddr("192.0.2.1"))), &status} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(roundTrip(t, v, text))
		if err != nil || string(again) != string(text) {
			t.Errorf("sent %s\n got %s", text, again)
		}
	}
}

func roundTrip(t *testing.T, like any, text []byte) any {
	t.Helper()
	var out any
	switch like.(type) {
	case *Report:
		out = new(Report)
	case *Shown:
		out = new(Shown)
	case *[]Match:
		out = new([]Match)
	case *[]Status:
		out = new([]Status)
	default:
		t.Fatalf("%T", like)
	}
	if err := json.Unmarshal(text, out); err != nil {
		t.Fatal(err)
	}
	return out
}
