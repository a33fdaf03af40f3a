package verify

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/smtptest"
	"postern/policy"
)

// TestOneMailboxIsNotJudgedByAnother: U+212A is a capital letter whose small
// one is "k", and U+0130 one whose small one is "i". By them a stranger could
// have a mailbox taken for unknown.
func TestOneMailboxIsNotJudgedByAnother(t *testing.T) {
	s := smtptest.Start(t).Know("kim@example.com", "jörg@example.com")
	people := write(t, t.TempDir()+"/people", "kim@closed.example\nJÖRG@closed.example\n")
	b := open(t, config(s, func(c *Config) {
		c.Routes = append(c.Routes, Route{Domains: []string{"closed.example"}, Sources: []string{"list:" + people}})
	}), memory(t))
	for _, stranger := range []string{"\u212aim@example.com", "k\u0130m@example.com", "J\u00d6rg@example.com"} {
		s.OnRcpt(func(string) string { return "550 5.1.1 unknown" }) // smtptest itself folds as Go does
		b.says(stranger, reasonUnknown)
	}
	s.OnRcpt(nil)
	b.says("kim@example.com", reasonKnown)
	b.says("jörg@example.com", reasonKnown)
	b.says("KIM@closed.example", reasonKnown)
	b.says("\u212aim@closed.example", reasonUnknown)
	b.says("Jörg@closed.example", reasonKnown)
}

func TestWhatCannotBeAsked(t *testing.T) {
	s := smtptest.Start(t)
	b := open(t, config(s), memory(t))
	for _, address := range []string{
		"x\xff@example.com", "x@\xff.example.com", // not UTF-8
		"x@a\uff1e\u3000orcpt=.example.com", "x@a\uff1cb.example.com", // ">", " " and "<" as A-labels
		"x y@a b.example.com", "x<y@example.com", "x\r\nDATA@example.com", "x@\x00.example.com",
	} {
		b.says(address, reasonUndecided)
	}
	if s.Count("CONNECT") != 0 {
		t.Errorf("asked: %q", s.Log())
	}
}

// TestWhoRefusesUsDefersNobody: its refusal is an alarm, for addresses not
// seen before too.
func TestWhoRefusesUsDefersNobody(t *testing.T) {
	for _, when := range []string{KnownOnly, DeferAll} {
		s := smtptest.Start(t).Know("a@example.com")
		b := open(t, config(s, func(c *Config) { c.WhenDown, c.Callout.DownAfter = when, 3 }), memory(t))
		b.says("a@example.com", reasonKnown)
		s.Answer("MAIL", "554 5.7.1 you are listed")
		for i := range 4 {
			if v := b.says(fmt.Sprintf("b%d@example.com", i), reasonRefused); v.Action != policy.Continue {
				t.Errorf("%+v", v)
			}
			b.says("a@example.com", reasonKnown)
		}
		if s.Count("MAIL") > 3 {
			t.Errorf("%d MAIL to a next hop that is left alone", s.Count("MAIL"))
		}
	}
}

// TestUnknownUntilEverythingIsTaken: what a next hop has refused before it
// began to take everything is refused no more.
func TestUnknownUntilEverythingIsTaken(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	b := open(t, config(s, func(c *Config) { c.Callout.AcceptAllKeep = conf.Duration(time.Hour) }), memory(t))
	b.says("x@example.com", reasonUnknown)
	b.says("a@example.com", reasonKnown)
	age := func(address string, by time.Duration) {
		b.update(t.Context(), &question{route: b.routes.all[0], key: address}, func(e Entry) (Entry, bool) {
			e.At, e.Tried = e.At.Add(-by), e.Tried.Add(-by)
			return e, true
		})
	}
	age("x@example.com", 4*time.Hour)
	age("a@example.com", 8*24*time.Hour)
	s.AcceptAll(true)
	again, err := New(b.cfg, Options{Hostname: "gate.example.org", Store: b.store, DNS: noDNS{}, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	again.Start()
	defer again.Stop()
	b = &bench{again, t, b.store, b.logs, b.reg}
	b.says("x@example.com", reasonUnknown) // and is asked about again
	b.settle()
	b.says("x@example.com", reasonAcceptAll)
	b.says("a@example.com", reasonKnown)
	b.settle()
	asked := s.Count("MAIL")
	b.says("a@example.com", reasonKnown)
	b.settle()
	if s.Count("MAIL") != asked {
		t.Error("a refresh that tells nothing is repeated with every mail")
	}
}

// TestRecheckOfMany leaves room for mail that waits, and leaves nobody out.
func TestRecheckOfMany(t *testing.T) {
	s := smtptest.Start(t)
	b := open(t, config(s, func(c *Config) {
		c.Callout.Queue, c.Callout.Rate, c.Callout.Burst, c.HarvestLimit = 2, 100_000, 100_000, 0
	}), memory(t))
	const many = 60
	for i := range many {
		b.says(fmt.Sprintf("u%d@example.com", i), reasonUnknown)
		s.Know(fmt.Sprintf("u%d@example.com", i))
	}
	asked, left, err := b.Recheck(t.Context(), Filter{Which: "@example.com"})
	if asked != many || left != 0 || err != nil {
		t.Error(asked, left, err)
	}
	b.settle()
	for i := range many {
		b.says(fmt.Sprintf("u%d@example.com", i), reasonKnown)
	}
}

// TestTryingAgainIsNoHarvest: a server does with 450 what it must do.
func TestTryingAgainIsNoHarvest(t *testing.T) {
	s := smtptest.Start(t)
	b := open(t, config(s, func(c *Config) { c.HarvestMark, c.HarvestLimit = 3, 5 }), memory(t))
	for range 20 {
		for _, a := range []string{"x@example.com", "y@example.com"} {
			r := request(a)
			if _, err := b.Evaluate(t.Context(), r); err != nil || r.Facts.Suspicious() {
				t.Fatalf("%v, suspicious %v", err, r.Facts.Suspicious())
			}
		}
	}
	b.says("z@example.com", reasonUnknown)
	r := request("x@example.com")
	if _, err := b.Evaluate(t.Context(), r); err != nil || !r.Facts.Suspicious() {
		t.Error("three different ones are not marked")
	}
	// A clock that steps back does not hold it against the client for ever.
	r = request("x@example.com", later(-48*time.Hour))
	if _, err := b.Evaluate(t.Context(), r); err != nil || r.Facts.Suspicious() {
		t.Error("marked by what happens in two days")
	}
}

// TestHangingUpTeachesNothing: an administrator who does not wait for the
// answer leaves no failure behind.
func TestHangingUpTeachesNothing(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com").Answer("RCPT", smtptest.Silence)
	b := open(t, config(s), memory(t))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = b.Ask(ctx, "a@example.com") })
	for s.Count("RCPT") == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
	if e := b.remembers("a@example.com"); e.Result != "" {
		t.Errorf("%+v", e)
	}
}

// TestStopWaitsForNoServer: one that says nothing does not hold up a reload.
func TestStopWaitsForNoServer(t *testing.T) {
	s := smtptest.Start(t).Answer("RCPT", smtptest.Silence)
	st := memory(t)
	b := open(t, config(s, func(c *Config) {
		c.Wait, c.Callout.ReplyTimeout, c.Callout.Timeout = conf.Duration(time.Millisecond), conf.Duration(5*time.Minute), conf.Duration(15*time.Minute)
	}), st)
	b.says("a@example.com", reasonPending)
	for s.Count("RCPT") == 0 {
		time.Sleep(time.Millisecond)
	}
	b.Stop()
	if e := b.remembers("a@example.com"); e.Result != "" || !e.Lease.IsZero() {
		t.Errorf("left behind: %+v", e)
	}
}

func TestLearningSaysWhenItFails(t *testing.T) {
	s := smtptest.Start(t)
	b := open(t, config(s), readOnly{memory(t)})
	if n, _, err := b.Learn(t.Context(), []string{"a@example.com"}); n != 0 || err == nil {
		t.Error(n, err)
	}
}

// readOnly is a store that is full.
type readOnly struct{ Store }

func (readOnly) Swap(context.Context, string, string, string, time.Time) (bool, error) {
	return false, errBroken
}

// TestReloadsUnderLoad is everything at once: mail at two gateways on one
// store, reloads, an administrator who purges, asks and rechecks. No answer
// may be wrong.
func TestReloadsUnderLoad(t *testing.T) {
	s := smtptest.Start(t)
	for i := range 20 {
		s.Know(fmt.Sprintf("k%d@example.com", i))
	}
	st := memory(t)
	cfg := config(s, func(c *Config) {
		c.Callout.AcceptAllKeep, c.Callout.Rate, c.Callout.Burst, c.HarvestLimit = conf.Duration(time.Hour), 100_000, 100_000, 0
		c.Callout.Connections, c.Callout.MaxConnections, c.Callout.KeepIdle = 2, 3, conf.Duration(time.Millisecond)
	})
	type generation struct {
		*Check
		users sync.WaitGroup
	}
	gates := make([]*generation, 2)
	var mu sync.Mutex
	for i := range gates {
		gates[i] = &generation{Check: open(t, cfg, st).Check}
	}
	use := func(n int, f func(c *Check)) {
		mu.Lock()
		g := gates[n]
		g.users.Add(1)
		mu.Unlock()
		defer g.users.Done()
		f(g.Check)
	}
	var mail, admin sync.WaitGroup
	for worker := range 8 {
		mail.Go(func() {
			for i := range 200 {
				n := (i*7 + worker) % 20
				want, address := reasonKnown, fmt.Sprintf("k%d@example.com", n)
				if i%2 == 1 {
					want, address = reasonUnknown, fmt.Sprintf("u%d@example.com", n)
				}
				r := request(address, func(r *policy.Request) { r.Client.Addr = netip.AddrFrom4([4]byte{192, 0, 2, byte(worker)}) })
				use(worker%2, func(c *Check) {
					if v, err := c.Evaluate(t.Context(), r); err != nil || v.Reason != want && v.Action != policy.DeferIfPermit {
						t.Errorf("%s: %+v, %v", address, v, err)
					}
				})
			}
		})
	}
	stop := make(chan struct{})
	admin.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			switch i % 4 {
			case 0:
				use(0, func(c *Check) { _, _ = c.Purge(t.Context(), Filter{Which: "@example.com"}) })
			case 1:
				use(1, func(c *Check) { _, _, _ = c.Recheck(t.Context(), Filter{Negative: true}) })
			case 2:
				use(0, func(c *Check) { _, _ = c.Ask(t.Context(), "k1@example.com"); c.Status() })
			case 3:
				mu.Lock()
				old := gates[1]
				mu.Unlock()
				next, err := New(cfg, Options{Hostname: "gate.example.org", Store: st, DNS: noDNS{}, Log: zap.NewNop()}, old.Check)
				if err != nil {
					t.Error(err)
					return
				}
				next.Start()
				mu.Lock()
				gates[1] = &generation{Check: next}
				mu.Unlock()
				old.users.Wait()
				old.Stop()
			}
		}
	})
	mail.Wait()
	close(stop)
	admin.Wait()
	gates[1].Stop()
	for _, g := range gates {
		if st := g.Status(); st.Pending < 0 {
			t.Errorf("%+v", st)
		}
		for _, h := range g.prober.Status() {
			if h.Waiting != 0 || g == gates[1] && h.Idle != 0 {
				t.Errorf("%+v", h)
			}
		}
	}
}
