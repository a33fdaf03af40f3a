package greylist_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/names"
	"postern/policy"
	"postern/store/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a check over a real store, with a clock of its own.
type world struct {
	t     testing.TB
	check *greylist.Check
	store *mem.Store
	now   time.Time
	reg   *prometheus.Registry

	voucher greylist.Voucher
}

// judge is the real one, with its built-in list.
func judge(t testing.TB) *names.Judge {
	t.Helper()
	j, err := names.New(names.DefaultConfig(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func newWorld(t testing.TB, edit func(*greylist.Config)) *world {
	t.Helper()
	w := &world{t: t, store: mem.New(100_000, 100_000), now: time.Now(), reg: prometheus.NewRegistry()}
	w.check = w.make(edit, nil)
	t.Cleanup(func() {
		w.check.Stop()
		_ = w.store.Close(context.Background()) // nothing is pending
	})
	return w
}

func config(t testing.TB, edit func(*greylist.Config)) greylist.Config {
	t.Helper()
	cfg := greylist.ProfileConfig(greylist.Strict)
	if edit != nil {
		edit(&cfg)
	}
	var fs conf.Faults
	if cfg.Validate("greylist", &fs); fs != nil {
		t.Fatal(fs)
	}
	return cfg
}

func (w *world) make(edit func(*greylist.Config), prev *greylist.Check) *greylist.Check {
	w.t.Helper()
	c, err := greylist.New(config(w.t, edit), greylist.Options{
		Hostname: "mx.example.com", Store: w.store, Admin: w.store, Names: judge(w.t), Voucher: w.voucher, Log: zap.NewNop(), Metrics: w.reg, Previous: prev,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// request is one at RCPT from a client with a verified name.
func (w *world) request(client, name, sender, rcpt string) *policy.Request {
	return &policy.Request{
		Time: w.now, Stage: policy.StageRcpt, Helo: "helo.example",
		Client: policy.Client{Addr: netip.MustParseAddr(client), Name: name},
		Sender: mailaddr.Parse(sender), Recipient: mailaddr.Parse(rcpt),
	}
}

func (w *world) ask(req *policy.Request) policy.Verdict {
	w.t.Helper()
	v, err := w.check.Evaluate(w.t.Context(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// want asks and compares the reason.
func (w *world) want(what, reason string, req *policy.Request) policy.Verdict {
	w.t.Helper()
	v := w.ask(req)
	if v.Reason != reason {
		w.t.Errorf("%s: %q, want %q", what, v.Reason, reason)
	}
	if delays := reason == first || reason == early; delays != (v.Action == policy.DeferIfPermit) {
		w.t.Errorf("%s: action %v", what, v.Action)
	}
	return v
}

const (
	first   = "greylist-first-contact"
	early   = "greylist-early-retry"
	passes  = "greylist-first-pass"
	known   = "greylist-known-triplet"
	client  = "greylist-known-client"
	overdue = "greylist-overdue"
)

func TestLifeOfATriplet(t *testing.T) {
	w := newWorld(t, nil)
	req := func() *policy.Request { return w.request("192.0.2.7", "", "ann@example.org", "bob@example.com") }
	v := w.want("first contact", first, req())
	if v.Reply != (policy.Reply{Code: 450, Enhanced: "4.2.0", Text: "Greylisted, please try again in 120 seconds"}) {
		t.Errorf("reply %v", v.Reply)
	}
	w.now = w.now.Add(119*time.Second + 500*time.Millisecond)
	v = w.want("half a second too early", early, req())
	if !strings.HasSuffix(v.Reply.Text, "in 1 seconds") {
		t.Errorf("reply %v: a wait is rounded up", v.Reply)
	}
	w.now = w.now.Add(500 * time.Millisecond)
	v = w.want("on time", passes, req())
	if len(v.Add) != 1 || v.Add[0].Name != "X-Greylist" || !strings.HasPrefix(v.Add[0].Value, "delayed 120 seconds by postern at mx.example.com; ") {
		t.Errorf("header %+v", v.Add)
	}
	v = w.want("again", known, req())
	if len(v.Add) != 0 {
		t.Errorf("header %+v", v.Add)
	}
	w.now = w.now.Add(36*24*time.Hour + time.Second)
	w.want("after more than keep", first, req())
	w.now = w.now.Add(48*time.Hour + time.Second)
	w.want("a retry after the window", first, req())
}

func TestPoolsShareAnIdentity(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second func(*policy.Request)
		same          bool
	}{
		{
			"hosts of one organisation",
			func(r *policy.Request) { r.Client.Name = "mail1.example.org" },
			func(r *policy.Request) {
				r.Client.Name, r.Client.Addr = "out7.example.org", netip.MustParseAddr("198.51.100.9")
			}, true,
		},
		{
			"one network",
			func(*policy.Request) {}, func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.2.200") }, true,
		},
		{
			"another network",
			func(*policy.Request) {}, func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.3.7") }, false,
		},
		{
			"one IPv6 network",
			func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("2001:db8::1") },
			func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("2001:db8::ffff:1") }, true,
		},
		{
			"another IPv6 network",
			func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("2001:db8::1") },
			func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("2001:db8:0:1::1") }, false,
		},
		{
			"one domain with SPF pass",
			func(r *policy.Request) { r.Facts.SPF = policy.SPF{Result: "pass", Domain: "example.org"} },
			func(r *policy.Request) {
				r.Facts.SPF, r.Client.Addr = policy.SPF{Result: "pass", Domain: "example.org"}, netip.MustParseAddr("203.0.113.9")
			}, true,
		},
		{
			"SPF fails for the second",
			func(r *policy.Request) { r.Facts.SPF = policy.SPF{Result: "pass", Domain: "example.org"} },
			func(r *policy.Request) {
				r.Facts.SPF, r.Client.Addr = policy.SPF{Result: "fail", Domain: "example.org"}, netip.MustParseAddr("203.0.113.9")
			}, false,
		},
		{
			"one provider",
			func(r *policy.Request) { r.Facts.Provider = "office365" },
			func(r *policy.Request) {
				r.Facts.Provider, r.Client.Addr = "office365", netip.MustParseAddr("203.0.113.9")
			}, true,
		},
		{
			"names that an access provider made are no identity",
			func(r *policy.Request) { r.Client.Name = "host-192-0-2-7.dyn.example.org" },
			func(r *policy.Request) {
				r.Client.Name, r.Client.Addr = "host-198-51-100-9.dyn.example.org", netip.MustParseAddr("198.51.100.9")
			}, false,
		},
	} {
		w := newWorld(t, nil)
		a := w.request("192.0.2.7", "", "ann@example.org", "bob@example.com")
		tt.first(a)
		w.want(tt.name, first, a)
		w.now = w.now.Add(3 * time.Minute)
		b := w.request("192.0.2.7", "", "ann@example.org", "bob@example.com")
		tt.second(b)
		reason := first
		if tt.same {
			reason = passes
		}
		w.want(tt.name, reason, b)
	}
}

func TestSendersAreNormalised(t *testing.T) {
	for _, tt := range [][2]string{
		{"ann+one@example.org", "Ann+two@EXAMPLE.org"},
		{"prvs=0123abcdef=ann@example.org", "prvs=9876fedcba=ann@example.org"},
		{"SRS0=AbCd=EF=example.net=ann@example.org", "SRS0=WxYz=GH=example.net=ann@example.org"},
		{"list-bounce-1234-bob=example.com@example.org", "list-bounce-1235-bob=example.com@example.org"},
	} {
		w := newWorld(t, nil)
		w.want(tt[0], first, w.request("192.0.2.7", "", tt[0], "bob@example.com"))
		w.now = w.now.Add(3 * time.Minute)
		w.want(tt[1], passes, w.request("192.0.2.7", "", tt[1], "BOB@example.com"))
	}
	w := newWorld(t, nil)
	w.want("a number as a name", first, w.request("192.0.2.7", "", "12345@example.org", "bob@example.com"))
	w.now = w.now.Add(3 * time.Minute)
	w.want("another number", first, w.request("192.0.2.7", "", "54321@example.org", "bob@example.com"))
}

func TestCreditOfASide(t *testing.T) {
	w := newWorld(t, nil)
	rcpt := "bob@example.com"
	const name = "mail.example.org"
	from := func(sender, rcpt string) *policy.Request { return w.request("192.0.2.7", name, sender, rcpt) }
	for i := range 3 {
		sender := string(rune('a'+i)) + "@example.org"
		w.want("first contact", first, from(sender, rcpt))
		w.now = w.now.Add(3 * time.Minute)
		w.want("pass", passes, from(sender, rcpt))
		w.want("at once again", known, from(sender, rcpt))
		w.now = w.now.Add(time.Hour)
	}
	w.want("three passes within hours", first, from("young@example.org", rcpt))
	w.now = w.now.Add(24 * time.Hour)
	w.want("and a day later", client, from("new@example.org", "else@example.com"))
	w.want("from another host of the organisation", client, w.request("198.51.100.7", "mx2.example.org", "new@example.org", rcpt))
	// What it has earned is for its own mail, and for it alone.
	w.want("a stranger's mail from the same host", first, from("new@example.net", rcpt))
	w.want("its mail from elsewhere", first, w.request("198.51.100.7", "mail.example.net", "new2@example.org", rcpt))
	w.want("a sub-domain", client, from("new@news.example.org", rcpt))

	// Who is known can be asked without a message, and asking changes nothing.
	for _, tt := range []struct {
		addr, name string
		later      time.Duration
		want       bool
	}{
		{"192.0.2.7", name, 0, true},
		{"192.0.2.99", "mx2.example.org", 0, true}, // of the same organisation
		{"192.0.2.7", "", 0, false},
		{"192.0.2.7", "mail.example.net", 0, false},
		{"192.0.2.7", "dsl-17.example.org", 0, false},
		{"192.0.2.7", name, 37 * 24 * time.Hour, false},
	} {
		c := policy.Client{Name: tt.name}
		c.Addr = netip.MustParseAddr(tt.addr)
		for range 2 {
			if got := w.check.Known(t.Context(), c, w.now.Add(tt.later)); got != tt.want {
				t.Errorf("known %s %s: %v", tt.addr, tt.name, got)
			}
		}
	}

	off := newWorld(t, func(c *greylist.Config) { c.KnownAfter = 0 })
	for range 40 {
		off.ask(off.request("192.0.2.7", name, "a@example.org", rcpt))
		off.now = off.now.Add(2 * time.Hour)
	}
	off.want("with known_after = 0", first, off.request("192.0.2.7", name, "new@example.org", rcpt))
	if off.check.Known(t.Context(), policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Name: name}, off.now) {
		t.Error("known though known_after is 0")
	}
}

// What spam had passed by: a name that a hoster gives to every customer, a
// neighbour's good record, a provider's network, a domain of a few hours.
func TestCreditCannotBeBorrowed(t *testing.T) {
	const week = 7 * 24 * time.Hour
	earn := func(w *world, req func(sender, rcpt string) *policy.Request) {
		for i := range 20 {
			rcpt := fmt.Sprintf("user%d@example.com", i)
			w.want("earning", first, req(fmt.Sprintf("earner%d@earner.example", i), rcpt))
			w.now = w.now.Add(time.Hour)
			if v := w.ask(req(fmt.Sprintf("earner%d@earner.example", i), rcpt)); v.Action == policy.DeferIfPermit {
				w.t.Fatalf("earning: %+v", v)
			}
			if i == 2 {
				return
			}
		}
	}
	for _, name := range []string{"vmi123456.contaboserver.net", "srv12345.hstgr.cloud", "vps-1a2b3c4d.vps.ovh.net", "vps12345.vps.ovh.ca"} {
		w := newWorld(t, nil)
		earn(w, func(sender, rcpt string) *policy.Request { return w.request("192.0.2.7", name, sender, rcpt) })
		w.now = w.now.Add(week)
		other := strings.Replace(name, "1", "7", 1)
		w.want("another customer: "+name, first, w.request("198.51.100.9", other, "spam@spam.example", "bob@example.com"))
		w.want("another customer with a forged sender: "+name, first, w.request("198.51.100.9", other, "x@earner.example", "bob@example.com"))
		w.want("a neighbour: "+name, first, w.request("192.0.2.99", other, "spam@spam.example", "bob@example.com"))
		w.want("who has earned it: "+name, client, w.request("192.0.2.7", name, "new@earner.example", "bob@example.com"))
	}

	w := newWorld(t, nil)
	provider := func(addr, sender, rcpt string) *policy.Request {
		req := w.request(addr, "", sender, rcpt)
		req.Facts.Provider = "office365"
		return req
	}
	earn(w, func(sender, rcpt string) *policy.Request { return provider("192.0.2.7", sender, rcpt) })
	w.now = w.now.Add(week)
	w.want("another customer of the provider", first, provider("192.0.2.7", "spam@tenant.example", "bob@example.com"))
	w.want("from elsewhere at the provider", first, provider("198.51.100.7", "spam@tenant.example", "bob2@example.com"))

	// A snowshoe domain that passes from its first minute on.
	w = newWorld(t, nil)
	shoe := func(host int, rcpt string) *policy.Request {
		req := w.request(fmt.Sprintf("192.0.2.%d", host), fmt.Sprintf("mta%d.deal.example", host), "deal@deal.example", rcpt)
		req.Facts.SPF = policy.SPF{Result: "pass", Domain: "deal.example"}
		return req
	}
	for hour := range 20 {
		rcpt := fmt.Sprintf("user%d@example.com", hour)
		w.want("a fresh domain", first, shoe(hour+1, rcpt))
		w.now = w.now.Add(time.Hour)
		w.want("its retry", passes, shoe(hour+1, rcpt))
	}
}

// A question whose answer is certain is not put to the store.
func TestKnownAsksOnlyWhereItMatters(t *testing.T) {
	for _, tt := range []struct {
		name       string
		client     string
		knownAfter int
		asks       bool
	}{
		{"an organisation", "mx.example.org", 3, true},
		{"no name", "", 3, false},
		{"nobody is known", "mx.example.org", 0, false},
	} {
		store := &asked{}
		c, err := greylist.New(config(t, func(c *greylist.Config) { c.KnownAfter = tt.knownAfter }), greylist.Options{
			Store: store, Names: judge(t), Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
		})
		if err != nil {
			t.Fatal(err)
		}
		if c.Known(t.Context(), policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Name: tt.client}, time.Now()) || store.times > 0 != tt.asks {
			t.Errorf("%s: asked %d times", tt.name, store.times)
		}
	}
}

type asked struct{ times int }

func (a *asked) TouchGreylist(context.Context, *greylist.Contact) (greylist.Outcome, error) {
	a.times++
	return greylist.Outcome{}, nil
}

func TestNobodyWaitsLongerThanMaxDelay(t *testing.T) {
	w := newWorld(t, nil)
	start := w.now
	for i := 0; ; i++ {
		// Each attempt comes from a network that was never seen.
		req := w.request(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}).String(), "", "ann@example.org", "bob@example.com")
		v := w.ask(req)
		if v.Reason == overdue {
			// This network is new, the message is not.
			if len(v.Add) != 1 || !strings.HasPrefix(v.Add[0].Value, "delayed 14400 seconds ") {
				t.Errorf("header %+v", v.Add)
			}
			break
		}
		if w.now.Sub(start) > 4*time.Hour {
			t.Fatalf("still %s after %v", v.Reason, w.now.Sub(start))
		}
		w.now = w.now.Add(10 * time.Minute)
	}
	if waited := w.now.Sub(start); waited < 4*time.Hour {
		t.Errorf("passed after %v", waited)
	}

	// Who passes so is no longer delayed from memory, whatever the clock does.
	w = newWorld(t, nil)
	w.want("first", first, w.request("192.0.2.7", "", "ann@example.org", "bob@example.com"))
	w.now = w.now.Add(4*time.Hour - time.Minute)
	w.want("from another network", first, w.request("198.51.100.7", "", "ann@example.org", "bob@example.com"))
	w.now = w.now.Add(time.Minute)
	w.want("when all is over", overdue, w.request("198.51.100.7", "", "ann@example.org", "bob@example.com"))
	w.now = w.now.Add(-30 * time.Second)
	if _, ok := w.check.Hint(w.request("198.51.100.7", "", "ann@example.org", "bob@example.com")); ok {
		t.Error("a hint about what has passed")
	}
}

func TestWithoutADelay(t *testing.T) {
	w := newWorld(t, func(c *greylist.Config) { c.Delay = 0 })
	v := w.want("a first contact", passes, w.request("192.0.2.7", "", "ann@example.org", "bob@example.com"))
	if len(v.Add) != 0 || v.Detail != "" {
		t.Errorf("header %+v, detail %q: nothing was delayed", v.Add, v.Detail)
	}
}

func TestExceptions(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	w := newWorld(t, func(c *greylist.Config) {
		c.Skip = append(c.Skip, "192.0.2.0/24", ".friend.example", "from:.trusted.example", "to:sales@example.com off",
			"to:slow@example.com delay=10m", "to:.quick.example delay=1s", "192.0.2.66 on", "to:picky@example.com on")
		c.Exceptions = []string{
			write("a.list", "2001:db8::/32\n"), "cidr:" + write("cidr", "203.0.113.0/24 OK\n"),
			"postgrey-clients:" + write("clients", "postgrey.example\n"), "postgrey-recipients:" + write("rcpt", "help@\n"),
		}
	})
	other := "198.51.100.7"
	for _, tt := range []struct {
		what, client, name, sender, rcpt, reason string
	}{
		{"network", "192.0.2.7", "", "a@example.org", "b@example.com", "greylist-exception"},
		{"host", other, "mx.friend.example", "a@example.org", "b@example.com", "greylist-exception"},
		{"sender", other, "", "a@x.trusted.example", "b@example.com", "greylist-exception"},
		{"recipient", other, "", "a@example.org", "sales@example.com", "greylist-exception"},
		{"recipient with an extension", other, "", "a@example.org", "sales+x@example.com", "greylist-exception"},
		{"postmaster", other, "", "a@example.org", "postmaster@example.com", "greylist-exception"},
		{"postmaster without a domain", other, "", "a@example.org", "Postmaster", "greylist-exception"},
		{"abuse", other, "", "a@example.org", "abuse@example.net", "greylist-exception"},
		{"a host in an exempt network that is not", "192.0.2.66", "", "a@example.org", "b@example.com", first},
		{"a recipient that wants it for everybody", "192.0.2.7", "", "a@example.org", "picky@example.com", first},
		{"file", "2001:db8::9", "", "a@example.org", "b@example.com", "greylist-exception"},
		{"Postfix table", "203.0.113.9", "", "a@example.org", "b@example.com", "greylist-exception"},
		{"postgrey's clients", other, "mx.postgrey.example", "a@example.org", "b@example.com", "greylist-exception"},
		{"postgrey's recipients", other, "", "a@example.org", "help+me@example.com", "greylist-exception"},
		{"nobody special", other, "", "a@example.org", "b@example.com", first},
	} {
		w.want(tt.what, tt.reason, w.request(tt.client, tt.name, tt.sender, tt.rcpt))
	}
	v := w.want("a delay of its own", first, w.request(other, "", "d@example.org", "slow@example.com"))
	if !strings.HasSuffix(v.Reply.Text, "in 600 seconds") {
		t.Errorf("reply %v", v.Reply)
	}
	w.want("a short one", first, w.request(other, "", "d@example.org", "x@a.quick.example"))
	w.now = w.now.Add(3 * time.Minute)
	w.want("a delay of its own, three minutes later", early, w.request(other, "", "d@example.org", "slow@example.com"))
	w.want("a short one, three minutes later", passes, w.request(other, "", "d@example.org", "x@a.quick.example"))
}

func TestWhoIsNotGreylisted(t *testing.T) {
	w := newWorld(t, func(c *greylist.Config) { c.SkipSPFPass = true })
	req := func(edit func(*policy.Request)) *policy.Request {
		r := w.request("192.0.2.7", "", "a@example.org", "b@example.com")
		edit(r)
		return r
	}
	w.want("a login", "greylist-authenticated", req(func(r *policy.Request) { r.SASL.Username = "ann" }))
	w.want("a trusted certificate", "greylist-authenticated", req(func(r *policy.Request) { r.TLS.CertSubject = "mx.example.org" }))
	w.want("SPF pass", "greylist-spf-pass", req(func(r *policy.Request) { r.Facts.SPF = policy.SPF{Result: "pass", Domain: "example.org"} }))
	w.want("SPF fail", first, req(func(r *policy.Request) { r.Facts.SPF = policy.SPF{Result: "fail", Domain: "example.org"} }))
	w.want("a client that Postfix no longer knows", "greylist-unknown-client", req(func(r *policy.Request) { r.Client.Addr = netip.Addr{} }))
	w.want("DATA", "greylist-other-stage", req(func(r *policy.Request) { r.Stage = policy.StageData }))

	on := newWorld(t, func(c *greylist.Config) { c.SkipAuthenticated = false })
	r := on.request("192.0.2.7", "", "a@example.org", "b@example.com")
	r.SASL.Username = "ann"
	on.want("a login, with skip_authenticated = false", first, r)
}

func TestSuspicious(t *testing.T) {
	w := newWorld(t, func(c *greylist.Config) { c.When = greylist.Suspicious })
	plain := w.request("192.0.2.7", "", "a@example.org", "b@example.com")
	w.want("without a mark", "greylist-not-suspicious", plain)
	marked := w.request("192.0.2.7", "", "a@example.org", "b@example.com")
	marked.Facts.Mark("rbl-listed")
	w.want("with one", first, marked)
	exempt := w.request("192.0.2.7", "", "a@example.org", "postmaster@example.com")
	exempt.Facts.Mark("rbl-listed")
	w.want("with one, to an exception", "greylist-exception", exempt)
	n, err := w.store.CountGreylist(t.Context(), w.now)
	if err != nil || n.Waiting != 1 {
		t.Errorf("the store holds %+v %v, want the marked one", n, err)
	}
	again := w.request("192.0.2.7", "", "a@example.org", "b@example.com")
	again.Time = w.now.Add(time.Minute)
	if v, ok := w.check.Hint(again); !ok || !strings.HasSuffix(v.Reply.Text, "in 60 seconds") {
		t.Errorf("who was told to wait, before the marks are known: %v %v", v, ok)
	}
}

func TestNullSender(t *testing.T) {
	at := func(w *world, stage policy.Stage, sender string) *policy.Request {
		r := w.request("192.0.2.7", "", sender, "b@example.com")
		r.Stage = stage
		return r
	}
	w := newWorld(t, func(c *greylist.Config) { c.CalloutSenders = []string{"verify@", "probe@example.net"} })
	for _, sender := range []string{"", "verify@anywhere.example", "Probe@example.net"} {
		w.want("a callout from "+sender, "greylist-null-sender", at(w, policy.StageRcpt, sender))
		w.want("a message from "+sender, first, at(w, policy.StageData, sender))
		w.want("a message from "+sender+" again", early, at(w, policy.StageData, sender))
	}
	w.want("a sender like it", first, at(w, policy.StageRcpt, "probe@example.org"))
	w.want("a sender like it, DATA", "greylist-other-stage", at(w, policy.StageData, "probe@example.org"))
	// A bounce to several recipients has none at DATA.
	several := at(w, policy.StageData, "")
	several.Recipient, several.RecipientCount = policy.Address{}, 2
	w.want("several recipients", first, several)
	w.now = w.now.Add(2 * time.Minute)
	several.Time = w.now
	if v := w.want("several recipients, on time", passes, several); len(v.Add) != 1 {
		t.Errorf("header %+v", v.Add)
	}
	w = newWorld(t, func(c *greylist.Config) { c.CalloutSenders = []string{"Probe@B\u00fccher.example"} })
	w.want("a sender at an international domain", "greylist-null-sender", at(w, policy.StageRcpt, "probe@b\u00fccher.example"))
	w = newWorld(t, func(c *greylist.Config) { c.NullSender = greylist.AtRcpt })
	w.want("null_sender = rcpt", first, at(w, policy.StageRcpt, ""))
	w.want("null_sender = rcpt, DATA", "greylist-other-stage", at(w, policy.StageData, ""))
	for _, when := range []string{greylist.AtRcpt, greylist.AtData} {
		w = newWorld(t, func(c *greylist.Config) {
			c.NullSender, c.OwnProbes = when, []string{"double-bounce@mx.example.org"}
		})
		w.want("our own probe, come back", "greylist-own-probe", at(w, policy.StageRcpt, "Double-Bounce@mx.example.org"))
		w.want("a message in its name", first, at(w, policy.StageData, "double-bounce@mx.example.org"))
	}
	w = newWorld(t, func(c *greylist.Config) { c.NullSender = greylist.Never })
	w.want("null_sender = skip", "greylist-null-sender", at(w, policy.StageData, ""))
}

func TestHints(t *testing.T) {
	w := newWorld(t, nil)
	req := func() *policy.Request { return w.request("192.0.2.7", "", "ann@example.org", "bob@example.com") }
	if _, ok := w.check.Hint(req()); ok {
		t.Error("a hint about a stranger")
	}
	w.ask(req())
	w.now = w.now.Add(time.Minute)
	v, ok := w.check.Hint(req())
	if !ok || v.Action != policy.DeferIfPermit || v.Reason != early || !strings.HasSuffix(v.Reply.Text, "in 60 seconds") {
		t.Errorf("too early: %v %v", v, ok)
	}
	dry := req()
	dry.DryRun = true
	if _, ok := w.check.Hint(dry); !ok {
		t.Error("no hint about what is only asked")
	}
	if err := testutil.GatherAndCompare(w.reg, strings.NewReader(`# HELP postern_greylist_hints_total Retries that came too early and were answered from memory.
# TYPE postern_greylist_hints_total counter
postern_greylist_hints_total 1
`), "postern_greylist_hints_total"); err != nil {
		t.Error(err)
	}
	for what, r := range map[string]*policy.Request{
		"another client":    w.request("192.0.2.8", "", "ann@example.org", "bob@example.com"),
		"another sender":    w.request("192.0.2.7", "", "carl@example.org", "bob@example.com"),
		"another recipient": w.request("192.0.2.7", "", "ann@example.org", "dora@example.com"),
	} {
		if _, ok := w.check.Hint(r); ok {
			t.Errorf("a hint about %s", what)
		}
	}
	login := req()
	login.SASL.Username = "ann"
	if _, ok := w.check.Hint(login); ok {
		t.Error("a hint about who is not greylisted")
	}

	next := w.make(nil, w.check) // a reload
	defer next.Stop()
	if _, ok := next.Hint(req()); !ok {
		t.Error("the hints are lost by a reload")
	}
	w.now = w.now.Add(time.Minute)
	if _, ok := w.check.Hint(req()); ok {
		t.Error("a hint when the delay is over")
	}
	w.want("on time", passes, req())
	w.now = w.now.Add(-time.Minute)
	if _, ok := w.check.Hint(req()); ok {
		t.Error("a hint about what has passed")
	}

	off := newWorld(t, func(c *greylist.Config) { c.Hints = 0 })
	off.ask(off.request("192.0.2.7", "", "a@example.org", "b@example.com"))
	if _, ok := off.check.Hint(off.request("192.0.2.7", "", "a@example.org", "b@example.com")); ok {
		t.Error("hints = 0 gives hints")
	}
}

// A reload that fails late stops the new check; the old one goes on as before,
// and so does the new one when the reload does not fail.
func TestHintsOutliveAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.check.Start()
		failed := w.make(nil, w.check)
		failed.Start()
		failed.Stop()
		forgets := func(what string) {
			t.Helper()
			w.now = time.Now()
			w.want(what, first, w.request("192.0.2.7", "", what+"@example.org", "bob@example.com"))
			if n := w.check.Status().Hints; n != 1 {
				t.Errorf("%s: %d hints", what, n)
			}
			time.Sleep(3 * time.Minute)
			synctest.Wait()
			if n := w.check.Status().Hints; n != 0 {
				t.Errorf("%s: %d hints after their time", what, n)
			}
		}
		forgets("failed")
		old := w.check
		w.check = w.make(nil, old)
		w.check.Start()
		old.Stop()
		old.Stop()
		forgets("reloaded")
		other := w.make(func(c *greylist.Config) { c.Hints = 5 }, w.check)
		other.Start()
		w.check.Stop()
		w.check = other
		forgets("resized")
		w.check.Stop()
	})
}

// What is only asked is not counted as a hit of an exception.
func TestHitsOfExceptions(t *testing.T) {
	w := newWorld(t, func(c *greylist.Config) { c.Skip = []string{"to:bob@example.com"} })
	hits := func() uint64 {
		n, _ := w.check.Lists().Set().Entries()[0].Hits()
		return n
	}
	w.ask(w.request("192.0.2.7", "", "a@example.org", "carl@example.com")) // hints are not empty from here on
	req := w.request("192.0.2.7", "", "a@example.org", "bob@example.com")
	w.check.Hint(req)
	req.DryRun = true
	w.want("dry run", "greylist-exception", req)
	if n := hits(); n != 0 {
		t.Errorf("%d hits of what was only asked", n)
	}
	req.DryRun = false
	v := w.want("in earnest", "greylist-exception", req)
	if n := hits(); n != 1 || v.Detail != "greylist.skip[0]:1" {
		t.Errorf("%d hits, detail %q", n, v.Detail)
	}
	next := w.make(func(c *greylist.Config) { c.Skip = []string{"to:bob@example.com"} }, w.check)
	defer next.Stop()
	if n, _ := next.Lists().Set().Entries()[0].Hits(); n != 1 {
		t.Errorf("%d hits after a reload", n)
	}
}

func TestExceptionsEnd(t *testing.T) {
	w := newWorld(t, func(c *greylist.Config) { c.Skip = []string{"to:bob@example.com until=2100-01-01 owner=ann"} })
	req := w.request("192.0.2.7", "", "a@example.org", "bob@example.com")
	w.want("before", "greylist-exception", req)
	req.Time = time.Date(2100, 1, 3, 0, 0, 0, 0, time.UTC)
	w.want("after", first, req)
}

func TestDryRunChangesNothing(t *testing.T) {
	w := newWorld(t, nil)
	req := w.request("192.0.2.7", "", "ann@example.org", "bob@example.com")
	req.DryRun, req.Probe = true, new(policy.Probe)
	w.want("dry run", first, req)
	w.want("dry run again", first, req)
	n, err := w.store.CountGreylist(t.Context(), w.now)
	if err != nil || n != (greylist.Counts{}) {
		t.Errorf("the store holds %+v %v", n, err)
	}
	if _, ok := w.check.Hint(req); ok {
		t.Error("a hint from a dry run")
	}
	notes := map[string]string{}
	for _, n := range req.Probe.Notes {
		notes[n.What] = n.Value
	}
	if notes["match"] != "net:192.0.2.0/24" || notes["credit"] != "net:192.0.2.0/24 example.org" || notes["sender"] != "ann@example.org" || !strings.HasPrefix(notes["state"], "first-contact, would pass in 2m0s") {
		t.Errorf("notes %v", notes)
	}
	passedOver := w.request("192.0.2.7", "", "ann@example.org", "postmaster@example.com")
	passedOver.DryRun = true
	w.want("an exception", "greylist-exception", passedOver)
	gathered, err := w.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range gathered {
		for _, m := range f.GetMetric() {
			if strings.HasPrefix(f.GetName(), "postern_greylist_") && m.GetCounter().GetValue() != 0 {
				t.Errorf("%s counts a dry run", f.GetName())
			}
		}
	}
}

type broken struct{}

var errBroken = errors.New("no store")

func (broken) TouchGreylist(context.Context, *greylist.Contact) (greylist.Outcome, error) {
	return greylist.Outcome{}, errBroken
}

func TestAStoreThatFailsIsAnError(t *testing.T) {
	c, err := greylist.New(config(t, nil), greylist.Options{Hostname: "mx", Store: broken{}, Names: judge(t), Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	w := newWorld(t, nil)
	v, err := c.Evaluate(t.Context(), w.request("192.0.2.7", "", "a@example.org", "b@example.com"))
	if !errors.Is(err, errBroken) || v.Action != policy.Continue {
		t.Errorf("%v %v: what an undecided check does is the pipeline's business", v, err)
	}
}

func TestHeaderOff(t *testing.T) {
	w := newWorld(t, func(c *greylist.Config) { c.Header = false })
	req := func() *policy.Request { return w.request("192.0.2.7", "", "a@example.org", "b@example.com") }
	w.ask(req())
	w.now = w.now.Add(3 * time.Minute)
	if v := w.want("pass", passes, req()); len(v.Add) != 0 || v.Detail != "net:192.0.2.0/24, delayed 180 s" {
		t.Errorf("header %+v, detail %q", v.Add, v.Detail)
	}
}

func TestReply(t *testing.T) {
	w := newWorld(t, func(c *greylist.Config) { c.Reply = "451 4.7.1 {wait} {client} {helo} {sender} {recipient} {{}}" })
	req := w.request("2001:db8::7", "", "Ann+x@example.org", "Bob@example.com")
	want := policy.Reply{Code: 451, Enhanced: "4.7.1", Text: "120 2001:db8::7 helo.example Ann+x@example.org Bob@example.com {}"}
	if v := w.ask(req); v.Reply != want {
		t.Errorf("reply %q, want %q", v.Reply, want)
	}
	req.Helo, req.Client = "a\r\n250 b\x00", policy.Client{Name: "mx.example.org"}
	if v := w.ask(req); !strings.HasPrefix(v.Reply.Text, "120 unknown a 250 b? ") {
		t.Errorf("reply %q", v.Reply)
	}
}

func TestRecipientsAreComparedWithoutCase(t *testing.T) {
	w := newWorld(t, nil)
	w.want("as written", first, w.request("192.0.2.7", "", "ann@example.org", "Bob@B\u00fccher.example"))
	w.now = w.now.Add(3 * time.Minute)
	w.want("in another spelling", passes, w.request("192.0.2.7", "", "ann@example.org", "bob@xn--bcher-kva.example."))
	w.want("in capitals", known, w.request("192.0.2.7", "", "ann@example.org", "BOB@XN--BCHER-KVA.EXAMPLE"))
	w.want("with an extension", first, w.request("192.0.2.7", "", "ann@example.org", "bob+x@xn--bcher-kva.example"))
	w.want("without a domain", first, w.request("192.0.2.7", "", "ann@example.org", "Bob"))
	w.want("without a domain, again", early, w.request("192.0.2.7", "", "ann@example.org", "bob"))
}

// An explanation says what was compared, what was found, and what failed.
func TestExplanations(t *testing.T) {
	w := newWorld(t, func(c *greylist.Config) { c.NullSender = greylist.AtRcpt })
	explain := func(ask func(*policy.Request), edit func(*policy.Request)) map[string]string {
		req := w.request("192.0.2.7", "", "", "bob@example.com")
		req.DryRun, req.Probe = true, new(policy.Probe)
		edit(req)
		ask(req)
		notes := map[string]string{}
		for _, n := range req.Probe.Notes {
			notes[n.What] = n.Value
		}
		return notes
	}
	evaluate := func(req *policy.Request) { w.ask(req) }
	w.ask(w.request("192.0.2.7", "", "", "bob@example.com"))
	w.now = w.now.Add(time.Minute)
	notes := explain(evaluate, func(*policy.Request) {})
	if notes["sender"] != "<>" || notes["recipient"] != "bob@example.com" || notes["credit"] != "none can be earned" ||
		notes["state"] != "early-retry, first contact 1m0s ago, would pass in 1m0s" {
		t.Errorf("an early retry: %v", notes)
	}
	if note, ok := notes["passes counted for credit"]; ok {
		t.Errorf("%s passes of who earns nothing", note)
	}
	ann := func(req *policy.Request) { req.Sender = mailaddr.Parse("ann@example.org") }
	if notes = explain(evaluate, ann); notes["passes counted for credit"] != "0 of 3" {
		t.Errorf("who can earn credit: %v", notes)
	}
	took := w.request("192.0.2.7", "", "ann@example.org", "bob@example.com")
	took.DryRun, took.Probe = true, new(policy.Probe)
	w.ask(took)
	if n := took.Probe.Notes[len(took.Probe.Notes)-2]; n.What != "state" || n.Took < 0 || n.Took > time.Minute {
		t.Errorf("asking the store: %+v", n)
	}
	w.ask(w.request("192.0.2.9", "", "ann@example.org", "bob@example.com"))
	w.now = w.now.Add(2 * time.Minute)
	w.want("passes", passes, w.request("192.0.2.9", "", "ann@example.org", "bob@example.com"))
	notes = explain(evaluate, ann)
	if note, ok := notes["passes counted for credit"]; ok || !strings.HasPrefix(notes["state"], "known-triplet") {
		t.Errorf("a triplet that has passed: %v passes in %v", note, notes)
	}
	w.now = w.now.Add(-2 * time.Minute)
	notes = explain(func(req *policy.Request) {
		if _, ok := w.check.Hint(req); !ok {
			t.Error("no hint")
		}
	}, func(*policy.Request) {})
	if notes["retry too early"] != "first contact 1m0s ago" {
		t.Errorf("a hint: %v", notes)
	}
	notes = explain(evaluate, func(req *policy.Request) { req.SASL.Username = "ann" })
	if notes["passed over"] != "authenticated login ann" {
		t.Errorf("a login: %v", notes)
	}
	c, err := greylist.New(config(t, nil), greylist.Options{Hostname: "mx", Store: broken{}, Names: judge(t), Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	notes = explain(func(req *policy.Request) { _, err = c.Evaluate(t.Context(), req) },
		func(req *policy.Request) { req.Sender = mailaddr.Parse("ann@example.org") })
	if notes["store"] != errBroken.Error() || !errors.Is(err, errBroken) {
		t.Errorf("a broken store: %v %v", notes, err)
	}
}

func TestExceptionFilesAreWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "x.list")
		put := func(text string, hour int) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			at := time.Unix(1e9, 0).Add(time.Duration(hour) * time.Hour)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
		put("198.51.100.0/24\n", 1)
		w := newWorld(t, func(c *greylist.Config) { c.Exceptions, c.Hints = []string{path}, 0 })
		w.check.Start()
		defer w.check.Stop()
		put("192.0.2.0/24\n", 2)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		w.want("an entry that came later", "greylist-exception", w.request("192.0.2.7", "", "a@example.org", "b@example.com"))
		put("192.0.2.300\n", 3)
		if faults := w.check.Reload(); len(faults) != 1 {
			t.Errorf("faults %v", faults)
		}
		if st := w.check.Status(); len(st.Skipping) != 3 || st.Skipping[2].Fault == "" || st.Delay != conf.Duration(2*time.Minute) {
			t.Errorf("status %+v", st)
		}
		w.check.Stop()
	})
}

func TestValidate(t *testing.T) {
	cfg := greylist.ProfileConfig(greylist.Strict)
	cfg.Timeout, cfg.Delay, cfg.Window, cfg.Keep, cfg.CountEvery, cfg.MaxDelay = 1, -1, 1, 1, -1, -1
	cfg.KnownAfter, cfg.When, cfg.NullSender, cfg.IPv4Prefix, cfg.IPv6Prefix, cfg.Hints = -1, "often", "never", 4, 129, -1
	cfg.Skip, cfg.Exceptions, cfg.CalloutSenders = []string{"to:postmaster"}, []string{"/nonexistent"}, []string{"nobody"}
	cfg.Reply, cfg.ReloadInterval = "{nonsense}", 1
	var fs conf.Faults
	cfg.Validate("greylist", &fs)
	text := fs.Error()
	for _, key := range []string{
		"timeout", "delay", "window", "keep", "count_every", "max_delay", "known_after", "when", "null_sender", "ipv4_prefix", "ipv6_prefix", "hints",
		"skip[0]", "exceptions[0]", "callout_senders[0]", "reply", "reload_interval",
	} {
		if !strings.Contains("\n"+text, "\ngreylist."+key+": ") {
			t.Errorf("nothing about %s in\n%s", key, text)
		}
	}
	cfg = greylist.ProfileConfig(greylist.Strict)
	cfg.Delay, cfg.Window = conf.Duration(5*time.Hour), conf.Duration(5*time.Hour)
	cfg.Skip = []string{"to:a@example.org delay=5h", "to:b@example.org delay=soon", "to:c@example.org later=5m", "to:d@example.org reject"}
	fs = nil
	cfg.Validate("greylist", &fs)
	for _, want := range []string{
		"greylist.max_delay: 4h is less than delay (5h)", "greylist.window: 5h is not more than delay", "delay: 5h is more than max_delay (4h)",
		"greylist.skip[1]: delay: invalid duration", "greylist.skip[2]: unknown key \"later\"", "greylist.skip[3]: reject cannot stand",
	} {
		if !strings.Contains(fs.Error(), want) {
			t.Errorf("no %q in\n%s", want, fs)
		}
	}
	cfg = greylist.ProfileConfig(greylist.Strict)
	cfg.Window, cfg.Skip = conf.Duration(time.Hour), []string{"to:a@example.org delay=1h"}
	fs = nil
	cfg.Validate("greylist", &fs)
	if want := "greylist.skip[0]: delay: 1h is not less than window (1h)"; len(fs) != 1 || !strings.Contains(fs.Error(), want) {
		t.Errorf("no %q in\n%s", want, fs)
	}
}

func TestBoundsOfTheSettings(t *testing.T) {
	const day = 24 * time.Hour
	for _, tt := range []struct {
		key       string
		set       func(*greylist.Config, time.Duration)
		low, high time.Duration
	}{
		{"timeout", func(c *greylist.Config, d time.Duration) { c.Timeout = conf.Duration(d) }, 10 * time.Millisecond, time.Minute},
		{"delay", func(c *greylist.Config, d time.Duration) {
			c.Delay, c.MaxDelay = conf.Duration(d), conf.Duration(5*day)
		}, 0, 12 * time.Hour},
		{"max_delay", func(c *greylist.Config, d time.Duration) { c.Delay, c.MaxDelay = 0, conf.Duration(d) }, 0, 5 * day},
		{"window", func(c *greylist.Config, d time.Duration) { c.Delay, c.Window = 0, conf.Duration(d) }, time.Minute, 60 * day},
		{"keep", func(c *greylist.Config, d time.Duration) { c.Keep = conf.Duration(d) }, time.Hour, 3660 * day},
		{"count_every", func(c *greylist.Config, d time.Duration) { c.CountEvery = conf.Duration(d) }, 0, 30 * day},
		{"known_age", func(c *greylist.Config, d time.Duration) { c.KnownAge = conf.Duration(d) }, 0, 365 * day},
		{"reload_interval", func(c *greylist.Config, d time.Duration) { c.ReloadInterval = conf.Duration(d) }, 100 * time.Millisecond, time.Hour},
		{"ipv4_prefix", func(c *greylist.Config, n time.Duration) { c.IPv4Prefix = int(n) }, 8, 32},
		{"ipv6_prefix", func(c *greylist.Config, n time.Duration) { c.IPv6Prefix = int(n) }, 16, 128},
		{"hints", func(c *greylist.Config, n time.Duration) { c.Hints = int(n) }, 0, 10_000_000},
		{"known_after", func(c *greylist.Config, n time.Duration) { c.KnownAfter = int(n) }, 0, 1000},
	} {
		for v, want := range map[time.Duration]bool{tt.low - 1: false, tt.low: true, tt.high: true, tt.high + 1: tt.key == "known_after"} {
			cfg := greylist.ProfileConfig(greylist.Strict)
			tt.set(&cfg, v)
			var fs conf.Faults
			cfg.Validate("greylist", &fs)
			if ok := fs == nil; ok != want {
				t.Errorf("%s = %d: %v", tt.key, v, fs)
			}
		}
	}
	for _, tt := range []struct {
		name string
		edit func(*greylist.Config)
		ok   bool
	}{
		{"delay = max_delay", func(c *greylist.Config) { c.Delay = c.MaxDelay }, true},
		{"an exception's delay = max_delay", func(c *greylist.Config) { c.Skip = []string{"to:a@example.org delay=4h"} }, true},
		{"a delay above max_delay", func(c *greylist.Config) { c.Delay = c.MaxDelay + 1 }, false},
	} {
		cfg := greylist.ProfileConfig(greylist.Strict)
		tt.edit(&cfg)
		var fs conf.Faults
		if cfg.Validate("greylist", &fs); (fs == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, fs)
		}
	}
	cfg := greylist.ProfileConfig(greylist.Strict)
	cfg.Reply = "{nonsense}"
	if _, err := greylist.New(cfg, greylist.Options{Log: zap.NewNop(), Metrics: prometheus.NewRegistry()}); err == nil {
		t.Error("a check with a reply that cannot be expanded")
	}
}

func TestTraits(t *testing.T) {
	w := newWorld(t, nil)
	// The first contact is remembered when nothing else has refused.
	tr := w.check.Traits()
	if w.check.Name() != "greylist" || !tr.Last || !tr.Waits || tr.Stages != policy.Stages(policy.StageRcpt, policy.StageData) {
		t.Errorf("%s %+v", w.check.Name(), tr)
	}
}

// The path of nearly all mail that is not delayed stays cheap.
func TestAllocations(t *testing.T) {
	for _, profile := range []string{greylist.Strict, greylist.Balanced} {
		t.Run(profile, func(t *testing.T) { allocations(t, profile) })
	}
}

func allocations(t *testing.T, profile string) {
	w := newWorld(t, func(c *greylist.Config) {
		*c = greylist.ProfileConfig(profile)
		c.Delay, c.KnownAfter = 0, 0
		c.Skip = append(c.Skip, "to:slow@example.com delay=0s")
	})
	for _, tt := range []struct {
		name string
		edit func(*policy.Request)
		most float64
	}{
		{"known triplet", func(*policy.Request) {}, 1},
		{"known triplet, the sender in capitals", func(r *policy.Request) { r.Sender = mailaddr.Parse("Ann@example.org") }, 3},
		{"exception", func(r *policy.Request) { r.Recipient = mailaddr.Parse("abuse@example.com") }, 2},
		{"recipient with a delay of its own", func(r *policy.Request) { r.Recipient = mailaddr.Parse("slow@example.com") }, 2},
		{"login", func(r *policy.Request) { r.SASL.Username = "ann" }, 1},
	} {
		req := w.request("192.0.2.7", "mail.example.org", "ann@example.org", "bob@example.com")
		tt.edit(req)
		n := testing.AllocsPerRun(200, func() {
			if v := w.ask(req); v.Action != policy.Continue {
				t.Fatal(v)
			}
		})
		// The race detector makes sync.Pool drop things now and then.
		if n > tt.most && !race {
			t.Errorf("%s: %v allocations, at most %v", tt.name, n, tt.most)
		}
	}
}

func BenchmarkEvaluate(b *testing.B) {
	for _, name := range []string{"known", "unique"} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, func(c *greylist.Config) { c.KnownAfter = 0 })
			req := w.request("192.0.2.7", "mail.example.org", "ann@example.org", "bob@example.com")
			w.ask(req)
			req.Time = req.Time.Add(3 * time.Minute)
			w.want("the triplet", passes, req)
			// Each sender is forgotten when its turn comes again.
			senders := make([]policy.Address, 1<<15)
			for i := range senders {
				senders[i] = mailaddr.Parse(fmt.Sprintf("u%d@example.org", i))
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; b.Loop(); i++ {
				if name == "unique" {
					n := i % len(senders)
					if n == 0 {
						req.Time = req.Time.Add(50 * time.Hour)
					}
					req.Sender = senders[n]
				}
				w.ask(req)
			}
		})
	}
}

func BenchmarkHint(b *testing.B) {
	w := newWorld(b, nil)
	req := w.request("192.0.2.7", "", "ann@example.org", "bob@example.com")
	w.ask(req)
	for name, sender := range map[string]string{"hit": "ann@example.org", "miss": "carl@example.org"} {
		b.Run(name, func(b *testing.B) {
			req.Sender = mailaddr.Parse(sender)
			b.ReportAllocs()
			for b.Loop() {
				w.check.Hint(req)
			}
		})
	}
}
