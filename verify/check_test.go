package verify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/internal/ldaptest"
	"postern/internal/mailaddr"
	"postern/internal/smtptest"
	"postern/policy"
	"postern/store"
	"postern/store/mem"
	"postern/verify/directory"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/maypok86/otter/v2.(*cache[...]).periodicCleanUp"))
}

type noDNS struct{}

func (noDNS) LookupMX(_ context.Context, name string) ([]*net.MX, error) {
	return nil, &net.DNSError{Err: "SERVFAIL", Name: name, IsTemporary: true}
}

func (noDNS) LookupIPAddr(_ context.Context, name string) ([]net.IPAddr, error) {
	return nil, &net.DNSError{Err: "SERVFAIL", Name: name, IsTemporary: true}
}

// bench is a check with what it needs.
type bench struct {
	*Check
	t     *testing.T
	store Store
	logs  *observer.ObservedLogs
	reg   *prometheus.Registry
}

func memory(t *testing.T) Store {
	s := mem.New(100_000, 100_000)
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return store.SpaceOf(s, "verify")
}

// config is a configuration with one route to a server for example.com.
func config(s *smtptest.Server, change ...func(*Config)) Config {
	cfg := DefaultConfig()
	cfg.Callout.AcceptAllKeep, cfg.Callout.DownAfter = 0, 0
	cfg.Callout.ReplyTimeout, cfg.Callout.Timeout = conf.Duration(5*time.Second), conf.Duration(20*time.Second)
	cfg.Routes = []Route{{Domains: []string{"example.com", ".example.com"}}}
	if s != nil {
		cfg.Routes[0].NextHop = s.NextHop()
	}
	for _, f := range change {
		f(&cfg)
	}
	return cfg
}

func open(t *testing.T, cfg Config, st Store) *bench {
	t.Helper()
	var fs conf.Faults
	cfg.Validate("verify", &fs)
	if err := fs.Err(); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.InfoLevel)
	reg := prometheus.NewRegistry()
	passwords := map[string]string{}
	for _, l := range cfg.LDAP {
		passwords[l.Name] = ldaptest.Password
	}
	c, err := New(cfg, Options{
		Hostname: "gate.example.org", Passwords: passwords, Store: st, DNS: noDNS{}, Log: zap.New(core), Metrics: reg,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Start()
	t.Cleanup(c.Stop)
	return &bench{c, t, st, logs, reg}
}

func request(recipient string, change ...func(*policy.Request)) *policy.Request {
	r := &policy.Request{
		Time: time.Now(), Stage: policy.StageRcpt, Sender: mailaddr.Parse("s@example.net"), Recipient: mailaddr.Parse(recipient),
		Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1")}, Helo: "client.example.net",
	}
	for _, f := range change {
		f(r)
	}
	return r
}

// says runs the check and compares its reason.
func (b *bench) says(recipient, want string, change ...func(*policy.Request)) policy.Verdict {
	b.t.Helper()
	v, err := b.Evaluate(b.t.Context(), request(recipient, change...))
	if err != nil {
		b.t.Fatal(err)
	}
	if v.Reason != want {
		b.t.Errorf("%s: %s (%s), want %s", recipient, v.Reason, v.Detail, want)
	}
	return v
}

// settle waits until nothing is asked any more.
func (b *bench) settle() {
	b.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		n := b.flying + b.rechecks
		b.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(end) {
			b.t.Fatal("still asking")
		}
	}
}

func (b *bench) remembers(address string) Entry {
	b.t.Helper()
	e, err := b.recall(b.t.Context(), b.key(mailaddr.Parse(address)))
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

func later(d time.Duration) func(*policy.Request) {
	return func(r *policy.Request) { r.Time = r.Time.Add(d) }
}

func TestKnownAndUnknown(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com", "b@sub.example.com")
	b := open(t, config(s), memory(t))
	for range 2 {
		if v := b.says("a@example.com", reasonKnown); v.Action != policy.Continue {
			t.Errorf("%+v", v)
		}
		b.says("A@Example.COM", reasonKnown)
		v := b.says("x@example.com", reasonUnknown)
		if v.Action != policy.Defer || v.Reply.String() != "450 4.1.1 no such mailbox" {
			t.Errorf("%v %s", v.Action, v.Reply)
		}
		b.says("b@sub.example.com", reasonKnown)
	}
	if n := s.Count("RCPT"); n != 3 {
		t.Errorf("the next hop was asked %d times about 3 addresses", n)
	}
	b.says("a@example.net", reasonNoRoute)
	b.says("postmaster", reasonNoRoute)
	if got := testutil.ToFloat64(b.metrics.answers[[2]string{sourceCallout, "unknown"}]); got != 1 {
		t.Errorf("%v unknown answers counted", got)
	}
}

func TestHardRejectPerRoute(t *testing.T) {
	s := smtptest.Start(t)
	b := open(t, config(s, func(c *Config) {
		c.Routes[0].RejectCode, c.Routes[0].RejectText = 550, "nobody called {recipient} here"
		c.Routes = append(c.Routes, Route{Domains: []string{"*"}, NextHop: s.NextHop()})
	}), memory(t))
	if v := b.says("x@example.com", reasonUnknown); v.Action != policy.Reject || v.Reply.String() != "550 5.1.1 nobody called x@example.com here" {
		t.Errorf("%v %s", v.Action, v.Reply)
	}
	if v := b.says("x@example.net", reasonUnknown); v.Action != policy.Defer || v.Reply.Code != 450 {
		t.Errorf("%v %s", v.Action, v.Reply)
	}
}

func TestAnswersThatAreNotAboutTheMailbox(t *testing.T) {
	for _, tt := range []struct {
		verb, answer, reason string
		action               policy.Action
	}{
		{"RCPT", "450 4.2.0 greylisted", reasonTemporary, policy.DeferIfPermit},
		{"RCPT", "552 5.2.2 over quota", reasonKnown, policy.Continue},
		{"RCPT", "554 5.7.1 blocked", reasonRefused, policy.Continue},
		{"RCPT", "252 2.0.0 maybe", reasonUndecided, policy.Continue},
		{"MAIL", "550 5.7.1 not you", reasonRefused, policy.Continue},
		{"GREETING", "554 5.7.1 not you", reasonTemporary, policy.DeferIfPermit},
		{"EHLO", smtptest.Drop, reasonTemporary, policy.DeferIfPermit},
		{"MAIL", "451 4.3.0 later", reasonTemporary, policy.DeferIfPermit},
	} {
		s := smtptest.Start(t).Know("a@example.com").Answer(tt.verb, tt.answer)
		b := open(t, config(s), memory(t))
		for range 2 {
			if v := b.says("a@example.com", tt.reason); v.Action != tt.action {
				t.Errorf("%s %s: %v", tt.verb, tt.answer, v.Action)
			}
		}
		if n := s.Count("CONNECT"); n > 2 {
			t.Errorf("%s %s: %d connections for one address in one minute", tt.verb, tt.answer, n)
		}
	}
}

func TestWaitsNoLongerThanAllowed(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	s.Latency(300 * time.Millisecond)
	b := open(t, config(s, func(c *Config) { c.Wait = conf.Duration(20 * time.Millisecond) }), memory(t))
	if v := b.says("a@example.com", reasonPending); v.Action != policy.DeferIfPermit || v.Reply.Code != 450 {
		t.Errorf("%+v", v)
	}
	b.settle()
	b.says("a@example.com", reasonKnown)
	if s.Count("RCPT") != 1 {
		t.Errorf("asked %d times", s.Count("RCPT"))
	}
}

func TestRefreshInTheBackground(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	b := open(t, config(s), memory(t))
	const day = 24 * time.Hour
	old := func(r Result, age time.Duration) {
		t.Helper()
		b.update(t.Context(), &question{route: b.routes.all[0], key: "a@example.com"}, func(Entry) (Entry, bool) {
			return Entry{Result: r, At: time.Now().Add(-age), Source: "test"}, true
		})
	}
	old(Known, 8*day)
	b.says("a@example.com", reasonKnown)
	b.settle()
	if e := b.remembers("a@example.com"); time.Since(e.At) > time.Minute || s.Count("RCPT") != 1 {
		t.Errorf("not refreshed: %+v, asked %d times", e, s.Count("RCPT"))
	}

	// A failed refresh leaves the known address known.
	old(Known, 8*day)
	s.Answer("RCPT", "451 4.3.0 no")
	for range 3 {
		b.says("a@example.com", reasonKnown)
		b.settle()
	}
	if e := b.remembers("a@example.com"); e.Result != Known || e.Error == "" || s.Count("RCPT") != 2 {
		t.Errorf("%+v, asked %d times", e, s.Count("RCPT"))
	}

	// A known address falls only to a second refusal.
	s.Answer("RCPT", "").Forget("a@example.com")
	old(Known, 8*day)
	b.says("a@example.com", reasonKnown)
	b.settle()
	b.says("a@example.com", reasonKnown)
	b.settle()
	if e := b.remembers("a@example.com"); e.Strikes != 1 {
		t.Errorf("after one refusal: %+v", e)
	}
	b.update(t.Context(), &question{route: b.routes.all[0], key: "a@example.com"}, func(e Entry) (Entry, bool) {
		e.Tried = e.Tried.Add(-time.Hour)
		return e, true
	})
	b.says("a@example.com", reasonKnown)
	b.settle()
	b.says("a@example.com", reasonUnknown)
}

func TestNextHopDown(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	st := memory(t)
	run := func(when string) *bench {
		return open(t, config(s, func(c *Config) {
			c.WhenDown, c.Callout.DownAfter, c.TemporaryExpire = when, 1, conf.Duration(time.Second)
		}), st)
	}
	b := run(KnownOnly)
	b.says("a@example.com", reasonKnown)
	s.Stop()
	b.says("a@example.com", reasonKnown)
	if v := b.says("b@example.com", reasonTemporary); v.Action != policy.DeferIfPermit {
		t.Errorf("%+v", v)
	}
	b.says("c@example.com", reasonTemporary)

	b = run(DeferAll)
	b.says("a@example.com", reasonKnown) // not found out yet
	b.says("d@example.com", reasonTemporary)
	if v := b.says("a@example.com", reasonDown); v.Action != policy.DeferIfPermit {
		t.Errorf("%+v", v)
	}
	b = run(AcceptAll)
	for range 2 {
		if v := b.says("e@example.com", reasonUnverified); v.Action != policy.Continue {
			t.Errorf("%+v", v)
		}
	}
}

func TestAcceptAllNextHop(t *testing.T) {
	s := smtptest.Start(t)
	s.AcceptAll(true)
	b := open(t, config(s, func(c *Config) { c.Callout.AcceptAllKeep = conf.Duration(time.Hour) }), memory(t))
	for _, a := range []string{"a@example.com", "b@example.com", "a@example.com"} {
		b.says(a, reasonAcceptAll)
	}
	if n := s.Count("RCPT"); n != 2 {
		t.Errorf("%d RCPT: one address and one that nobody has were to be asked about", n)
	}
	if e := b.remembers("a@example.com"); e.Result != "" {
		t.Errorf("remembered %+v", e)
	}
	if b.logs.FilterMessageSnippet("takes every address").Len() != 1 {
		t.Errorf("logged %v", b.logs.All())
	}
}

func TestOneQuestionForManyWhoAsk(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	s.Latency(20 * time.Millisecond)
	st := memory(t)
	gates := []*bench{open(t, config(s), st), open(t, config(s), st)}
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() { gates[i%2].says("a@example.com", reasonKnown) })
	}
	wg.Wait()
	if n := s.Count("RCPT"); n != 1 {
		t.Errorf("%d probes for one address over two gateways", n)
	}
}

func TestLeaseOfAGatewayThatDied(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	b := open(t, config(s, func(c *Config) { c.Wait = conf.Duration(50 * time.Millisecond) }), memory(t))
	leave := func(until time.Duration) {
		b.update(t.Context(), &question{route: b.routes.all[0], key: "a@example.com"}, func(e Entry) (Entry, bool) {
			e.Lease, e.Holder = time.Now().Add(until), "dead"
			return e, true
		})
	}
	leave(500 * time.Millisecond)
	b.says("a@example.com", reasonPending)
	if s.Count("RCPT") != 0 {
		t.Error("asked in spite of another's lease")
	}
	b.settle()
	b.says("a@example.com", reasonKnown)
}

func TestOwnProbesAreNeverVerified(t *testing.T) {
	s := smtptest.Start(t)
	b := open(t, config(s, func(c *Config) { c.Routes[0].Sender = "probe@example.org" }), memory(t))
	from := func(sender string) func(*policy.Request) {
		return func(r *policy.Request) { r.Sender = mailaddr.Parse(sender) }
	}
	b.says("x@example.com", reasonOwnProbe, from("double-bounce@gate.example.org"))
	b.says("x@example.com", reasonOwnProbe, from("Probe@example.org"))
	b.says("x@example.com", reasonOwnProbe, from(""), func(r *policy.Request) { r.Helo = "GATE.example.org" })
	if s.Count("CONNECT") != 0 {
		t.Error("a probe was answered by a probe")
	}
	// What is known all the same is used: nobody gets past by a name.
	b.says("x@example.com", reasonUnknown)
	b.says("x@example.com", reasonUnknown, from(""), func(r *policy.Request) { r.Helo = "gate.example.org" })
}

func TestHarvest(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	b := open(t, config(s, func(c *Config) { c.HarvestMark, c.HarvestLimit = 3, 5 }), memory(t))
	marked := false
	see := func(r *policy.Request) *policy.Request {
		if _, err := b.Evaluate(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		marked = r.Facts.Suspicious()
		return r
	}
	for i := range 5 {
		see(request(fmt.Sprintf("x%d@example.com", i)))
		if marked != (i >= 3) {
			t.Errorf("after %d unknown: marked %v", i, marked)
		}
	}
	if v := b.says("y@example.com", reasonHarvest); v.Action != policy.DeferIfPermit || v.Reply.Enhanced != "4.7.1" {
		t.Errorf("%+v", v)
	}
	asked := s.Count("RCPT")
	b.says("z@example.com", reasonHarvest)
	if s.Count("RCPT") != asked {
		t.Error("asked for a harvester")
	}
	b.says("x1@example.com", reasonUnknown) // what is remembered is still told
	b.says("y@example.com", reasonUnknown, func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.2.2") })
	b.says("q@example.com", reasonUnknown, later(time.Hour))
}

func TestManyUnknownRecipientsAreBounded(t *testing.T) {
	s := smtptest.Start(t)
	b := open(t, config(s, func(c *Config) {
		c.HarvestLimit, c.HarvestMark, c.MaxEntries, c.MaxPending = 0, 0, 1000, 50
		c.Callout.Rate = 100_000
	}), memory(t))
	var wg sync.WaitGroup
	work := make(chan int)
	for range 20 {
		wg.Go(func() {
			for i := range work {
				if _, err := b.Evaluate(t.Context(), request(fmt.Sprintf("u%d@example.com", i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 1500 {
		work <- i
	}
	close(work)
	wg.Wait()
	b.settle()
	if n := b.store.Count(); n > 1020 {
		t.Errorf("%d entries, 1000 allowed", n)
	}
	if s.Most() > 6 { // the server may not have seen an end yet
		t.Errorf("%d connections at once", s.Most())
	}
}

func TestDryRunAsksNobody(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	b := open(t, config(s), memory(t))
	p := &policy.Probe{}
	b.says("a@example.com", reasonDryRun, func(r *policy.Request) { r.DryRun, r.Probe = true, p })
	if s.Count("CONNECT") != 0 || b.store.Count() != 0 {
		t.Error("a dry run asked or remembered")
	}
	b.says("a@example.com", reasonKnown)
	p.Notes = nil
	b.says("a@example.com", reasonKnown, func(r *policy.Request) { r.DryRun, r.Probe = true, p })
	if len(p.Notes) < 2 || !strings.Contains(fmt.Sprint(p.Notes), "known since") {
		t.Errorf("notes %+v", p.Notes)
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	s := smtptest.Start(t).Know("c@example.com")
	people := write(t, dir+"/people", "# ours\nAnn@example.com\nbob@Example.COM # the boss\n@all.example.com\n")
	relay := write(t, dir+"/relay", "dora@example.com OK\nspam@example.com REJECT\nmaybe@example.com DUNNO\n")
	b := open(t, config(s, func(c *Config) {
		c.Routes[0].Sources = []string{"list:" + people, "texthash:" + relay, "callout"}
		c.ReloadInterval = conf.Duration(100 * time.Millisecond)
		c.Routes = append(c.Routes, Route{Domains: []string{"closed.example"}, Sources: []string{"list:" + people}})
	}), memory(t))
	for address, want := range map[string]string{
		"ann@example.com": reasonKnown, "ANN+x@example.com": reasonKnown, "bob@example.com": reasonKnown, "any@all.example.com": reasonKnown,
		"dora@example.com": reasonKnown, "spam@example.com": reasonUnknown, "c@example.com": reasonKnown, "maybe@example.com": reasonUnknown,
		"x@closed.example": reasonUnknown,
	} {
		b.says(address, want)
	}
	if n := s.Count("RCPT"); n != 2 {
		t.Errorf("%d callouts: only c@ and maybe@ are not in the files", n)
	}
	v := b.says("ann@example.com", reasonKnown)
	if !strings.Contains(v.Detail, "people:2") {
		t.Errorf("detail %q", v.Detail)
	}

	write(t, people, "new@closed.example\n")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if v, _ := b.Evaluate(t.Context(), request("new@closed.example")); v.Reason == reasonKnown {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the changed file is not read")
		}
	}
	write(t, people, "new@closed.example and more\n")
	for end := time.Now().Add(20 * time.Second); b.logs.FilterMessageSnippet("was not taken").Len() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the broken file is not reported")
		}
	}
	b.says("new@closed.example", reasonKnown)
	write(t, people, "# the database was not there\n")
	for end := time.Now().Add(20 * time.Second); b.logs.FilterField(zap.String("file", "list:"+people)).FilterMessageSnippet("was not taken").Len() < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the empty file is not reported")
		}
	}
	b.says("new@closed.example", reasonKnown)
	if st := b.Status(); len(st.Files) != 2 || st.Files[0].Fault == "" {
		t.Errorf("%+v", st.Files)
	}
}

func TestDirectoryThenCallout(t *testing.T) {
	l := ldaptest.Start(t, ldaptest.Person("ann", "ann@example.com", "info@example.com"))
	s := smtptest.Start(t).Know("c@example.com", "ann@example.com")
	b := open(t, config(s, func(c *Config) {
		c.LDAP = []directory.Config{{
			Name: "corp", URLs: []string{l.URL()}, BindDN: ldaptest.BindDN, PasswordFile: "x", Base: ldaptest.Base, Timeout: conf.Duration(300 * time.Millisecond),
		}}
		c.Routes[0].Sources = []string{"ldap:corp", "callout"}
		c.Routes = append(c.Routes, Route{Domains: []string{"only.example.com"}, Sources: []string{"ldap:corp"}})
	}), memory(t))
	if v := b.says("info@example.com", reasonKnown); !strings.Contains(v.Detail, "cn=ann") {
		t.Errorf("detail %q", v.Detail)
	}
	if v := b.says("Ann+lists@example.com", reasonKnown); !strings.Contains(v.Detail, "cn=ann") {
		t.Errorf("with an extension: %q", v.Detail)
	}
	b.says("c@example.com", reasonKnown)
	b.says("x@example.com", reasonUnknown)
	b.says("x@only.example.com", reasonUnknown)
	b.says("x+y@only.example.com", reasonUnknown)
	l.Stop()
	// Who cannot be asked might know it: only a "yes" counts now.
	b.says("ann@example.com", reasonKnown)
	if v := b.says("y@example.com", reasonTemporary); v.Action != policy.DeferIfPermit {
		t.Errorf("%+v", v)
	}
	b.says("y@only.example.com", reasonTemporary)
	if _, dirs := b.NextHops(); len(dirs) != 1 || dirs[0].Healthy {
		t.Errorf("%+v", dirs)
	}
}

func TestTransportTable(t *testing.T) {
	dir := t.TempDir()
	one, two := smtptest.Start(t).Know("a@one.example"), smtptest.Start(t).Know("a@sub.two.example", "u@one.example")
	domains := write(t, dir+"/relay_domains", "one.example x\n.two.example x\nthree.example x\nfour.example x\n")
	transport := write(t, dir+"/transport", "one.example smtp:"+one.NextHop()+"\nu@one.example relay:"+two.NextHop()+
		"\n.two.example relay:"+two.NextHop()+"\nthree.example local:\nforeign.example smtp:"+one.NextHop()+"\n")
	cfg := config(nil)
	cfg.Routes = []Route{{Domains: []string{"texthash:" + domains}, Transport: []string{"texthash:" + transport}}}
	b := open(t, cfg, memory(t))
	for address, want := range map[string]string{
		"a@one.example": reasonKnown, "b@one.example": reasonUnknown, "u@one.example": reasonKnown, "a@sub.two.example": reasonKnown,
		"a@three.example": reasonUndecided, "a@four.example": reasonTemporary, "a@foreign.example": reasonNoRoute, "a@two.example": reasonNoRoute,
	} {
		b.says(address, want)
	}
}

// broken is a store that fails.
type broken struct{ Store }

var errBroken = errors.New("the store is gone")

func (broken) Load(context.Context, string) (string, error) { return "", errBroken }

func (broken) Swap(context.Context, string, string, string, time.Time) (bool, error) {
	return false, errBroken
}

func TestWithoutAStore(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	b := open(t, config(s), broken{memory(t)})
	r := request("a@example.com")
	v, err := b.Evaluate(t.Context(), r)
	if err != nil || v.Reason != reasonKnown || len(r.Facts.Missing) != 1 {
		t.Errorf("%+v, %v, missing %v", v, err, r.Facts.Missing)
	}
	b.says("x@example.com", reasonUnknown)
}

// faulty is a store that panics when something is to be remembered.
type faulty struct{ Store }

func (faulty) Swap(context.Context, string, string, string, time.Time) (bool, error) {
	panic("a fault for this test")
}

func TestPanicEndsOneQuestionOnly(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	b := open(t, config(s), faulty{memory(t)})
	for range 2 {
		b.says("a@example.com", reasonTemporary)
	}
	if b.logs.FilterMessageSnippet("panic").Len() != 2 {
		t.Errorf("logged %v", b.logs.All())
	}
}

func TestRetryAfterGreylisting(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com").Answer("RCPT", "450 4.2.0 greylisted")
	b := open(t, config(s, func(c *Config) {
		c.Retry, c.TemporaryExpire = conf.Duration(1100*time.Millisecond), conf.Duration(time.Second)
	}), memory(t))
	b.says("a@example.com", reasonTemporary)
	if b.Status().Retries != 1 {
		t.Errorf("%+v", b.Status())
	}
	s.Answer("RCPT", "")
	for end := time.Now().Add(20 * time.Second); b.remembers("a@example.com").Result != Known; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never asked again")
		}
	}
}

func TestAdministration(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com", "b@sub.example.com")
	b := open(t, config(s), memory(t))
	for _, a := range []string{"a@example.com", "x@example.com", "y@example.com", "b@sub.example.com"} {
		if _, err := b.Evaluate(t.Context(), request(a)); err != nil {
			t.Fatal(err)
		}
	}
	list := func(which string, negative bool) string {
		t.Helper()
		f, err := ParseFilter(which)
		if err != nil {
			t.Fatal(err)
		}
		f.Negative = negative
		got := map[string]bool{}
		if err := b.List(t.Context(), f, func(r Record) bool { got[r.Address+"="+string(r.Result)] = true; return true }); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(got)
	}
	for _, tt := range []struct {
		which    string
		negative bool
		want     string
	}{
		{"", false, "map[a@example.com=known:true b@sub.example.com=known:true x@example.com=unknown:true y@example.com=unknown:true]"},
		{"@example.com", true, "map[x@example.com=unknown:true y@example.com=unknown:true]"},
		{"A@EXAMPLE.com", false, "map[a@example.com=known:true]"},
		{"nobody@example.com", false, "map[]"},
	} {
		if got := list(tt.which, tt.negative); got != tt.want {
			t.Errorf("%q %v: %s", tt.which, tt.negative, got)
		}
	}
	for _, bad := range []string{"nobody", "@"} {
		if _, err := ParseFilter(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}

	s.Know("x@example.com")
	if asked, left, err := b.Recheck(t.Context(), Filter{Negative: true}); asked != 2 || left != 0 || err != nil {
		t.Error(asked, left, err)
	}
	b.settle()
	b.says("x@example.com", reasonKnown)
	b.says("y@example.com", reasonUnknown)

	s.Know("y@example.com")
	if n, err := b.Purge(t.Context(), Filter{Which: "y@example.com"}); n != 1 || err != nil {
		t.Error(n, err)
	}
	b.says("y@example.com", reasonKnown)

	rep, err := b.Ask(t.Context(), "Z@example.com")
	if err != nil || rep.Now.Result != Unknown || rep.Before != nil || rep.After == nil || rep.After.Result != Unknown {
		t.Fatalf("%+v, %v", rep, err)
	}
	if text := strings.Join(rep.Dialogue, "\n"); !strings.Contains(text, "C: RCPT TO:<Z@example.com>") || !strings.Contains(text, "S: 550 5.1.1") {
		t.Errorf("dialogue\n%s", text)
	}
	for _, bad := range []string{"a@example.net", "nobody", "a b\r\n@example.com"} {
		if _, err := b.Ask(t.Context(), bad); err == nil {
			t.Errorf("%q was asked about", bad)
		}
	}

	learned, left, err := b.Learn(t.Context(), []string{"new@example.com", "a@elsewhere.example", "nonsense"})
	if learned != 1 || left != 2 || err != nil {
		t.Error(learned, left, err)
	}
	asked := s.Count("RCPT")
	b.says("new@example.com", reasonKnown)
	if s.Count("RCPT") != asked {
		t.Error("a learned address was asked about")
	}
	if n, err := b.Purge(t.Context(), Filter{}); n != 6 || err != nil {
		t.Error(n, err)
	}
}

func TestReloadKeepsWhatIsKnown(t *testing.T) {
	s := smtptest.Start(t).Answer("MAIL", "550 5.7.1 not you")
	cfg := config(s, func(c *Config) { c.HarvestMark = 1 })
	st := memory(t)
	b := open(t, cfg, st)
	b.says("a@example.com", reasonRefused)
	next, err := New(cfg, Options{Hostname: "gate.example.org", Store: st, DNS: noDNS{}, Log: zap.NewNop(), Metrics: b.reg}, b.Check)
	if err != nil {
		t.Fatal(err)
	}
	next.Start()
	defer next.Stop()
	b.Stop()
	if hops, _ := next.NextHops(); len(hops) != 1 || hops[0].State != "refuses us" {
		t.Errorf("%+v", hops)
	}
	if v, err := b.Evaluate(t.Context(), request("fresh@example.com")); err != nil || v.Action != policy.DeferIfPermit {
		t.Errorf("a stopped check: %+v, %v", v, err)
	}
}

func TestConfigFaults(t *testing.T) {
	dir := t.TempDir()
	bad := write(t, dir+"/bad", "two words\n")
	var fs conf.Faults
	cfg := DefaultConfig()
	if cfg.Validate("verify", &fs); len(fs) > 0 {
		t.Fatalf("the defaults: %v", fs)
	}
	cfg = DefaultConfig()
	cfg.Wait, cfg.Timeout, cfg.RejectCode, cfg.WhenDown, cfg.DeferReply = conf.Duration(time.Minute), conf.Duration(time.Second), 554, "panic", "550 no"
	cfg.NegativeRefresh = cfg.NegativeExpire + 1
	cfg.MaxEntries = 1
	cfg.LDAP = []directory.Config{{Name: "a", URLs: []string{"ldap://x"}, Base: "dc=x"}, {Name: "a", URLs: []string{"ldap://x"}, Base: "dc=x"}}
	cfg.Routes = []Route{
		{},
		{Domains: []string{"example.com", "a b", "*.example.com"}, NextHop: "[a.example"},
		{Domains: []string{"EXAMPLE.com."}, Sources: []string{"callout", "list:" + bad}, RejectText: "{nope}"},
		{Domains: []string{"list:/nowhere", "hash:/etc/x"}, Sources: []string{"ldap:none"}, NextHop: "a.example", TLS: "maybe", Sender: "x"},
	}
	cfg.Validate("verify", &fs)
	text := fs.Error()
	for _, want := range []string{
		"verify.wait: ", "verify.timeout: ", "verify.reject_code: ", "verify.when_down: ", "verify.defer_reply: ", "verify.negative_refresh: ",
		"verify.max_entries: ", "verify.ldap[1].name: ", "verify.route[0].domains: ", "verify.route[0].next_hop: a callout needs",
		"verify.route[1].domains[1]: ", "verify.route[1].domains[2]: ", "verify.route[1].next_hop: ", "verify.route[2].domains[0]: ",
		"verify.route[2].sources[0]: a callout always knows", bad + ":1:5: text behind", "verify.route[2].reject_text: ", "/nowhere: no such file",
		"verify.route[3].domains[1]: ", "verify.route[3].sources[0]: ", "verify.route[3].next_hop: has no use", "verify.route[3].tls: ", "verify.route[3].sender: ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func BenchmarkCached(b *testing.B) {
	s := mem.New(100_000, 100_000)
	defer s.Close(context.Background()) //nolint:errcheck // a benchmark
	cfg := DefaultConfig()
	cfg.Routes = []Route{{Domains: []string{"example.com"}, NextHop: "[127.0.0.1]:1"}}
	c, err := New(cfg, Options{
		Hostname: "gate.example.org", Store: store.SpaceOf(s, "verify"), DNS: noDNS{}, Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
	}, nil)
	if err != nil {
		b.Fatal(err)
	}
	c.Start()
	defer c.Stop()
	if n, _, err := c.Learn(b.Context(), []string{"a@example.com"}); n != 1 || err != nil {
		b.Fatal(n, err)
	}
	r := request("a@example.com")
	b.ReportAllocs()
	for b.Loop() {
		if v, err := c.Evaluate(b.Context(), r); err != nil || v.Reason != reasonKnown {
			b.Fatal(v, err)
		}
	}
}
