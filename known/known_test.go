package known_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/internal/redistest"
	"postern/known"
	"postern/policy"
	"postern/store"
	"postern/store/bolt"
	"postern/store/mem"
	"postern/store/redis"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const keep = 180 * 24 * time.Hour

// world is a check over a real store, with a clock of its own.
type world struct {
	t        *testing.T
	check    *known.Check
	store    store.Store
	now      time.Time
	reg      *prometheus.Registry
	remote   bool
	watched  func(*policy.Client, netip.Addr) (bool, bool)
	expected int
}

func newWorld(t *testing.T, edit func(*known.Config)) *world {
	t.Helper()
	s := mem.New(100_000, 1000)
	t.Cleanup(func() { _ = s.Close(context.Background()) }) // nothing is pending
	return worldOver(t, s, false, edit)
}

func worldOver(t *testing.T, s store.Store, remote bool, edit func(*known.Config)) *world {
	t.Helper()
	w := &world{t: t, store: s, now: time.Now().Truncate(time.Second), reg: prometheus.NewRegistry(), remote: remote}
	w.restart(edit)
	t.Cleanup(func() { w.check.Stop() })
	return w
}

func config(t testing.TB, edit func(*known.Config)) known.Config {
	t.Helper()
	cfg := known.DefaultConfig()
	if edit != nil {
		edit(&cfg)
	}
	var fs conf.Faults
	if cfg.Validate("known", &fs); fs != nil {
		t.Fatal(fs)
	}
	return cfg
}

// restart puts a check on other settings in the place of the one that runs.
func (w *world) restart(edit func(*known.Config)) {
	w.t.Helper()
	c, err := known.New(config(w.t, edit), known.Options{
		Stores: known.Stores{
			Correspondents: store.SpaceOf(w.store, "known"), Domains: store.SpaceOf(w.store, "known-domain"), Expected: store.SpaceOf(w.store, "expect"),
			Remote: w.remote,
		},
		Delimiters: "+", Watched: w.watched, Expected: func() { w.expected++ }, Log: zap.NewNop(), Metrics: w.reg,
	}, w.check)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.check != nil {
		w.check.Stop()
	}
	w.check = c
}

// out is a user with a login who writes.
func (w *world) out(user, to string) *policy.Request {
	return &policy.Request{
		Time: w.now, Stage: policy.StageRcpt, Door: "policy", Client: policy.Client{Addr: netip.MustParseAddr("198.51.100.9"), Port: 4711},
		Sender: mailaddr.Parse(user), Recipient: mailaddr.Parse(to), SASL: policy.SASL{Method: "PLAIN", Username: "ann"},
	}
}

// writes has a user write, and waits until that is learned.
func (w *world) writes(user, to string) {
	w.t.Helper()
	w.evaluate(w.out(user, to))
	w.settle()
}

func (w *world) evaluate(req *policy.Request) policy.Verdict {
	w.t.Helper()
	v, err := w.check.Evaluate(w.t.Context(), req)
	if err != nil || v.Action != policy.Continue {
		w.t.Fatalf("%+v, %v", v, err)
	}
	return v
}

// settle waits until nothing is queued: a check that is stopped has learned all.
func (w *world) settle() {
	w.t.Helper()
	w.check.Start()
	w.check.Stop()
	w.restartSame()
}

// restartSame is a reload that changes nothing.
func (w *world) restartSame() {
	w.t.Helper()
	w.restart(w.edit())
}

// edit keeps the settings of the check that runs.
func (w *world) edit() func(*known.Config) {
	cfg := known.ConfigOf(w.check)
	return func(c *known.Config) { *c = cfg }
}

// in is a stranger who writes to a user.
func (w *world) in(sender, to string, change ...func(*policy.Request)) *policy.Request {
	req := &policy.Request{
		Time: w.now, Stage: policy.StageRcpt, Door: "policy", Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7")},
		Sender: mailaddr.Parse(sender), Recipient: mailaddr.Parse(to),
	}
	for _, f := range change {
		f(req)
	}
	return req
}

func (w *world) vouch(req *policy.Request) string {
	w.t.Helper()
	why, _, err := w.check.Vouch(w.t.Context(), req)
	if err != nil {
		w.t.Error(err)
	}
	return why
}

func spf(result string) func(*policy.Request) {
	return func(r *policy.Request) {
		r.Facts.SPF = policy.SPF{Result: result, Domain: r.Sender.Domain, Identity: "mailfrom"}
	}
}

func name(host string) func(*policy.Request) {
	return func(r *policy.Request) { r.Client.Name = host }
}

// stores runs a test over all three.
func stores(t *testing.T, test func(t *testing.T, open func() store.Store, remote bool)) {
	t.Run("memory", func(t *testing.T) {
		s := mem.New(100_000, 1000)
		t.Cleanup(func() { _ = s.Close(context.Background()) }) // nothing is pending
		test(t, func() store.Store { return s }, false)
	})
	t.Run("embedded", func(t *testing.T) {
		cfg := store.DefaultConfig()
		cfg.Path = t.TempDir() + "/state.db"
		var last store.Store
		test(t, func() store.Store {
			if last != nil {
				if err := last.Close(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			s, err := bolt.Open(cfg, zap.NewNop(), prometheus.NewRegistry())
			if err != nil {
				t.Fatal(err)
			}
			last = s
			return s
		}, false)
		if err := last.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Run("redis", func(t *testing.T) {
		cfg := store.DefaultConfig()
		cfg.Redis.Addrs, cfg.Redis.Timeout = []string{redistest.Start(t).Addr()}, conf.Duration(5*time.Second)
		test(t, func() store.Store {
			s, err := redis.Open(cfg, "", "", zap.NewNop(), prometheus.NewRegistry())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close(context.Background()) }) // nothing is pending
			return s
		}, true)
	})
}

// What is learned holds after a restart, expectations too, with every store.
func TestStores(t *testing.T) {
	stores(t, func(t *testing.T, open func() store.Store, remote bool) {
		w := worldOver(t, open(), remote, nil)
		w.writes("ann@example.org", "bob@example.net")
		for i := range 3 {
			w.writes(fmt.Sprintf("u%d@example.org", i), "eve@example.com")
		}
		if _, err := w.check.Expect(t.Context(), "ann@example.org", "shop.example", time.Hour, w.now); err != nil {
			t.Fatal(err)
		}
		w.store = open()
		w.restartSame()
		if got := w.vouch(w.in("bob@example.net", "ann@example.org")); got != "correspondent" {
			t.Errorf("a correspondent: %q", got)
		}
		if got := w.vouch(w.in("other@example.com", "new@example.org", spf("pass"))); got != "correspondent-domain" {
			t.Errorf("a domain: %q", got)
		}
		if got := w.vouch(w.in("noreply@mail.shop.example", "ann@example.org")); got != "expected" {
			t.Errorf("expected: %q", got)
		}
		stats, err := w.check.Count(t.Context(), w.now)
		if want := (known.Stats{Correspondents: 4, Domains: 2, KnownDomains: 1, Users: 4, MostOfOne: 1, Max: 200_000, Expected: 1}); err != nil || stats != want {
			t.Errorf("%+v, %v", stats, err)
		}
		n, err := w.check.Forget(t.Context(), known.Filter{With: "EXAMPLE.com"})
		if n != 4 || err != nil {
			t.Errorf("%d forgotten, %v", n, err)
		}
		if got := w.vouch(w.in("eve@example.com", "u0@example.org", spf("pass"))); got != "" {
			t.Errorf("forgotten: %q", got)
		}
		w.writes("u0@example.org", "eve@example.com")
		if got := w.vouch(w.in("eve@example.com", "u0@example.org")); got != "correspondent" {
			t.Errorf("learned again: %q", got)
		}
	})
}

func TestWhoVouches(t *testing.T) {
	w := newWorld(t, nil)
	w.writes("Ann+work@Example.org", "Bob+list@example.net")
	for i := range 3 {
		w.writes(fmt.Sprintf("u%d@example.org", i), fmt.Sprintf("p%d@host%d.partner.example", i, i))
		w.writes(fmt.Sprintf("u%d@example.org", i), fmt.Sprintf("p%d@gmail.com", i))
		w.writes("u0@example.org", fmt.Sprintf("p%d@alone.example", i))
	}
	w.writes("u0@example.org", "two@two.example")
	w.writes("u1@example.org", "two@two.example")
	for _, tt := range []struct {
		what string
		req  *policy.Request
		want string
	}{
		{"a reply", w.in("bob@example.net", "ann@example.org"), "correspondent"},
		{"in other letters", w.in("BOB@Example.NET", "ANN@example.org"), "correspondent"},
		{"with an extension, to one", w.in("bob+x@example.net", "ann+y@example.org"), "correspondent"},
		{"with BATV", w.in("prvs=0123abcdef=bob@example.net", "ann@example.org"), "correspondent"},
		{"SPF passes", w.in("bob@example.net", "ann@example.org", spf("pass")), "correspondent"},
		{"SPF has no record", w.in("bob@example.net", "ann@example.org", spf("none")), "correspondent"},
		{"SPF cannot be asked", w.in("bob@example.net", "ann@example.org", spf("temperror")), "correspondent"},
		{"SPF fails", w.in("bob@example.net", "ann@example.org", spf("fail")), ""},
		{"SPF softfails", w.in("bob@example.net", "ann@example.org", spf("softfail")), ""},
		{"to another user", w.in("bob@example.net", "u0@example.org"), ""},
		{"from another there", w.in("eve@example.net", "ann@example.org", spf("pass")), ""},
		{"the other way round", w.in("ann@example.org", "bob@example.net"), ""},
		{"from nobody", w.in("", "ann@example.org"), ""},
		{"from a name without a domain", w.in("bob", "ann@example.org"), ""},
		{"to a name without a domain", w.in("bob@example.net", "ann"), ""},

		{"a domain, SPF passes", w.in("x@partner.example", "new@example.org", spf("pass")), "correspondent-domain"},
		{"a host of it", w.in("x@mail.partner.example", "new@example.org", spf("pass")), "correspondent-domain"},
		{"a domain, a host of its own", w.in("x@partner.example", "new@example.org", name("mx.partner.example")), "correspondent-domain"},
		{"a domain, of which nothing shows it", w.in("x@partner.example", "new@example.org"), ""},
		{"a domain, somebody else's host", w.in("x@partner.example", "new@example.org", name("mx.bot.example")), ""},
		{"a domain, SPF says too much", w.in("x@partner.example", "new@example.org", spf(policy.SPFTooWide)), ""},
		{"a domain, its own host, SPF fails", w.in("x@partner.example", "new@example.org", name("mx.partner.example"), spf("fail")), ""},
		{"a domain, SPF passed for HELO", w.in("x@partner.example", "new@example.org", func(r *policy.Request) {
			r.Facts.SPF = policy.SPF{Result: "pass", Domain: "partner.example", Identity: "helo"}
		}), ""},
		{"a domain, to another of ours", w.in("x@partner.example", "new@example.com", spf("pass")), ""},
		{"a domain of free mailboxes", w.in("x@gmail.com", "new@example.org", spf("pass")), ""},
		{"one there that was written to", w.in("p0@gmail.com", "u0@example.org", spf("pass")), "correspondent"},
		{"two users are too few", w.in("x@two.example", "new@example.org", spf("pass")), ""},
		{"one user is too few, whatever he writes", w.in("x@alone.example", "new@example.org", spf("pass")), ""},
	} {
		if got := w.vouch(tt.req); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
}

// Whose mail teaches, and what of it. The sender's address proves nothing.
func TestWhoTeaches(t *testing.T) {
	network := func(c *known.Config) { c.OwnNetworks = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")} }
	chain := func(c *known.Config) { c.Chains = []string{"submission"} }
	domains := func(c *known.Config) { c.OwnDomains = []string{"example.org", ".Lab.example"} }
	stranger := func(r *policy.Request) { r.SASL = policy.SASL{} }
	for _, tt := range []struct {
		what   string
		edit   func(*known.Config)
		change func(*policy.Request)
		teach  bool
	}{
		{"a login", nil, nil, true},
		{"a stranger with our user's address", nil, stranger, false},
		{"a stranger who claims a login", nil, func(r *policy.Request) { r.SASL = policy.SASL{Sender: "ann@example.org"} }, false},
		{"a stranger with a certificate", nil, func(r *policy.Request) { stranger(r); r.TLS.CertSubject = "mx.bot.example" }, false},
		{"a login where that does not count", func(c *known.Config) { c.Authenticated = false; network(c) }, func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.2.7") }, false},
		{"a host of ours", network, stranger, true},
		{"a host of others", network, func(r *policy.Request) { stranger(r); r.Client.Addr = netip.MustParseAddr("198.51.101.1") }, false},
		{"a host that is not known", network, func(r *policy.Request) { stranger(r); r.Client.Addr = netip.Addr{} }, false},
		{"our chain, by the context", chain, func(r *policy.Request) { stranger(r); r.Context = "submission" }, true},
		{"our chain, by the listener", chain, func(r *policy.Request) { stranger(r); r.Chain = "submission" }, true},
		{"another chain at that listener", chain, func(r *policy.Request) { stranger(r); r.Chain, r.Context = "submission", "inbound" }, false},
		{"no chain", chain, stranger, false},
		{"from nobody", nil, func(r *policy.Request) { r.Sender = policy.Address{} }, false},
		{"from a name without a domain", nil, func(r *policy.Request) { r.Sender = mailaddr.Parse("ann") }, false},
		{"from a daemon", nil, func(r *policy.Request) { r.Sender = mailaddr.Parse("MAILER-DAEMON@example.org") }, false},
		{"from a list", nil, func(r *policy.Request) { r.Sender = mailaddr.Parse("news-bounces@example.org") }, false},
		{"with the number of a message", nil, func(r *policy.Request) { r.Sender = mailaddr.Parse("news-4711-x@example.org") }, false},
		{"forwarded", nil, func(r *policy.Request) { r.Sender = mailaddr.Parse("SRS0=hh=tt=bot.example=x@example.org") }, false},
		{"a probe of ours", func(c *known.Config) { c.OwnProbes = []string{"Ann@example.org"} }, nil, false},
		{"to one's own domain", nil, func(r *policy.Request) { r.Recipient = mailaddr.Parse("eve@example.org") }, false},
		{"to a name without a domain", nil, func(r *policy.Request) { r.Recipient = mailaddr.Parse("bob") }, false},
		{"to an address literal", nil, func(r *policy.Request) { r.Recipient = mailaddr.Parse("bob@[192.0.2.9]") }, false},
		{"to an address that is too long", nil, func(r *policy.Request) { r.Recipient = mailaddr.Parse(strings.Repeat("b", 300) + "@example.net") }, false},
		{"a domain of ours", domains, nil, true},
		{"below a domain of ours", domains, func(r *policy.Request) { r.Sender = mailaddr.Parse("ann@a.lab.example") }, true},
		{"below a domain of ours that stands for itself", domains, func(r *policy.Request) { r.Sender = mailaddr.Parse("ann@a.example.org") }, false},
		{"a domain of others", domains, func(r *policy.Request) { r.Sender = mailaddr.Parse("ann@lab.example.com") }, false},
		{"a question", nil, func(r *policy.Request) { r.DryRun, r.Probe = true, new(policy.Probe) }, false},
		{"the milter sees it", nil, func(r *policy.Request) { r.Client.Port = 25252 }, false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			w := newWorld(t, tt.edit)
			w.watched = func(c *policy.Client, _ netip.Addr) (bool, bool) { return true, c.Port == 25252 }
			w.restartSame()
			req := w.out("ann@example.org", "bob@example.net")
			if tt.change != nil {
				tt.change(req)
			}
			w.evaluate(req)
			w.settle()
			stats, err := w.check.Count(t.Context(), w.now)
			if err != nil || stats.Correspondents != 0 != tt.teach || stats.Domains != 0 != tt.teach {
				t.Errorf("%+v, %v", stats, err)
			}
		})
	}
}

func TestTime(t *testing.T) {
	w := newWorld(t, nil)
	begin := w.now
	reply := func() string { return w.vouch(w.in("bob@example.net", "ann@example.org")) }
	w.writes("ann@example.org", "bob@example.net")
	w.now = begin.Add(keep)
	if reply() == "" {
		t.Error("forgotten too early")
	}
	w.now = begin.Add(keep + time.Second)
	if reply() != "" {
		t.Error("known too long")
	}
	w.now = begin.Add(keep - time.Hour)
	w.writes("ann@example.org", "bob@example.net")
	w.now = begin.Add(2*keep - time.Hour)
	if reply() == "" {
		t.Error("the second message did not count")
	}
	// One that is written to anew after that is known anew.
	w.now = begin.Add(3 * keep)
	w.writes("ann@example.org", "bob@example.net")
	n := 0
	err := w.check.List(t.Context(), known.Filter{Kind: known.KindCorrespondent}, w.now, func(e known.Entry) bool {
		n++
		if !e.First.Equal(w.now) || !e.Last.Equal(w.now) {
			t.Errorf("%+v", e)
		}
		return true
	})
	if n != 1 || err != nil {
		t.Errorf("%d entries, %v", n, err)
	}
}

// Users of a domain count as long as they write.
func TestDomainForgetsUsers(t *testing.T) {
	w := newWorld(t, nil)
	begin := w.now
	stranger := func() string { return w.vouch(w.in("x@partner.example", "new@example.org", spf("pass"))) }
	w.writes("u0@example.org", "p@partner.example")
	w.writes("u1@example.org", "p@partner.example")
	w.now = begin.Add(keep / 2)
	w.writes("u2@example.org", "p@partner.example")
	if stranger() == "" {
		t.Error("three users")
	}
	w.now = begin.Add(keep + 48*time.Hour)
	if stranger() != "" {
		t.Error("one user is left")
	}
	w.writes("u0@example.org", "p@partner.example")
	w.writes("u3@example.org", "p@partner.example")
	if stranger() == "" {
		t.Error("three users again")
	}
	// Those who write lately take the place of those who do not.
	w.now = begin.Add(keep + keep/2 - 48*time.Hour)
	w.writes("u4@example.org", "p@partner.example")
	w.now = begin.Add(keep + keep/2 + 48*time.Hour)
	if stranger() == "" {
		t.Error("three who have written lately")
	}
}

// A busy correspondence costs one change a day.
func TestBusyCorrespondence(t *testing.T) {
	w := newWorld(t, nil)
	for range 48 {
		w.writes("ann@example.org", "bob@example.net")
		w.now = w.now.Add(time.Hour)
	}
	want := `
# HELP postern_known_learned_total What outgoing mail has taught: new correspondents, such as are known for longer, domains that became known.
# TYPE postern_known_learned_total counter
postern_known_learned_total{what="again"} 1
postern_known_learned_total{what="correspondent"} 1
postern_known_learned_total{what="domain"} 0
`
	if err := testutil.GatherAndCompare(w.reg, strings.NewReader(want), "postern_known_learned_total"); err != nil {
		t.Error(err)
	}
}

func TestNoRoom(t *testing.T) {
	w := newWorld(t, func(c *known.Config) { c.MaxEntries = 1000 })
	var batch []known.Written
	for i := range 1000 {
		batch = append(batch, known.Written{User: "ann@example.org", To: fmt.Sprintf("b%d@gmail.com", i), At: w.now})
	}
	if got, err := w.check.Learn(t.Context(), batch, w.now); err != nil || got != (known.Taken{Added: 1000}) {
		t.Fatalf("%+v, %v", got, err)
	}
	w.now = w.now.Add(48 * time.Hour)
	got, err := w.check.Learn(t.Context(), []known.Written{
		{User: "ann@example.org", To: "new@gmail.com", At: w.now}, {User: "ann@example.org", To: "b7@gmail.com", At: w.now},
		{User: "ann@example.org", To: "b8@gmail.com", At: w.now.Add(-47 * time.Hour)},
		{User: "ann@example.org", To: "b9@gmail.com", At: w.now.Add(-keep - time.Second)}, {User: "ann@example.org", To: "eve@example.org", At: w.now},
	}, w.now)
	if want := (known.Taken{NoRoom: 1, Refreshed: 1, Known: 1, TooOld: 1, PassedOver: 1}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	w.writes("ann@example.org", "new@gmail.com")
	if got := w.vouch(w.in("new@gmail.com", "ann@example.org")); got != "" {
		t.Errorf("%q", got)
	}
	if got := w.vouch(w.in("b999@gmail.com", "ann@example.org")); got != "correspondent" {
		t.Errorf("%q: who is known stays", got)
	}
}

func TestMode(t *testing.T) {
	for mode, want := range map[policy.Mode][2]string{policy.Enforce: {"correspondent", "expected"}, policy.Shadow: {"", "expected"}, policy.Off: {"", ""}} {
		w := newWorld(t, nil)
		w.writes("ann@example.org", "bob@example.net")
		if _, err := w.check.Expect(t.Context(), "eve@example.org", "", time.Hour, w.now); err != nil {
			t.Fatal(err)
		}
		w.restart(func(c *known.Config) { c.Mode = mode })
		got := [2]string{w.vouch(w.in("bob@example.net", "ann@example.org")), w.vouch(w.in("x@bot.example", "eve@example.org"))}
		if got != want {
			t.Errorf("%v: %q", mode, got)
		}
		_, err := w.check.Expect(t.Context(), "eve@example.org", "", time.Hour, w.now)
		if off := mode == policy.Off; (err != nil) != off || w.check.Inspects() == off {
			t.Errorf("%v: %v, inspects %v", mode, err, w.check.Inspects())
		}
	}
}

func TestExpect(t *testing.T) {
	w := newWorld(t, nil)
	expect := func(to, from string) {
		t.Helper()
		if _, err := w.check.Expect(t.Context(), to, from, time.Hour, w.now); err != nil {
			t.Error(err)
		}
	}
	expect(" <Ann@Example.org> ", "")
	expect("bob@example.org", "Shop.example.")
	expect("eve@example.org", "code@shop.example")
	expect("@example.net", "@shop.example")
	for _, tt := range []struct {
		sender, to string
		want       bool
	}{
		{"x@bot.example", "ann@example.org", true},
		{"x@bot.example", "ANN+code@example.org", true},
		{"", "ann@example.org", true},
		{"x@bot.example", "anna@example.org", false},
		{"x@shop.example", "bob@example.org", true},
		{"x@mail.shop.example", "bob@example.org", true},
		{"x@bigshop.example", "bob@example.org", false},
		{"x@shop.example.bot.example", "bob@example.org", false},
		{"", "bob@example.org", false},
		{"shop.example", "bob@example.org", false},
		{"Code@shop.example", "eve@example.org", true},
		{"other@shop.example", "eve@example.org", false},
		{"x@shop.example", "anybody@example.net", true},
		{"x@shop.example", "anybody@lab.example.net", false},
		{"x@shop.example", "example.net", false},
	} {
		for _, s := range []string{"", "fail"} { // who forges waits no longer than anybody
			if got := w.vouch(w.in(tt.sender, tt.to, spf(s))) == "expected"; got != tt.want {
				t.Errorf("<%s> to <%s>: %v", tt.sender, tt.to, got)
			}
		}
	}
	if w.expected != 4 {
		t.Errorf("told %d times", w.expected)
	}
	w.now = w.now.Add(time.Hour - time.Second)
	if w.vouch(w.in("x@bot.example", "ann@example.org")) == "" {
		t.Error("ended too early")
	}
	expect("eve@example.org", "code@shop.example") // again: for longer
	w.now = w.now.Add(time.Second)
	if w.vouch(w.in("x@bot.example", "ann@example.org")) != "" {
		t.Error("has not ended")
	}
	all, err := w.check.Expectations(t.Context(), w.now)
	if err != nil || len(all) != 1 || all[0].To != "eve@example.org" {
		t.Errorf("%v, %v", all, err)
	}
	if n, err := w.check.Cancel(t.Context(), "eve@example.org", "other@shop.example", w.now); n != 0 || err != nil {
		t.Errorf("%d cancelled, %v", n, err)
	}
	if n, err := w.check.Cancel(t.Context(), "eve@example.org", "", w.now); n != 1 || err != nil {
		t.Errorf("%d cancelled, %v", n, err)
	}
	if w.vouch(w.in("code@shop.example", "eve@example.org")) != "" {
		t.Error("it was cancelled")
	}
	for _, bad := range [][3]string{
		{"ann", "", "1h"}, {"", "", "1h"}, {"ann@", "", "1h"}, {"ann@[192.0.2.7]", "", "1h"}, {"\xff@example.org", "", "1h"},
		{"ann@example.org", "shop", "1h"}, {"ann@example.org", "x y@shop.example", ""}, {"ann@example.org", "*.example", "1h"},
		{"ann@example.org", "", "59s"}, {"ann@example.org", "", "24h1s"},
	} {
		d, _ := time.ParseDuration(bad[2])
		if e, err := w.check.Expect(t.Context(), bad[0], bad[1], d, w.now); err == nil {
			t.Errorf("%q became %v", bad, e)
		}
	}
	for i := range 21 {
		_, err := w.check.Expect(t.Context(), "full@example.org", fmt.Sprintf("s%d.example.com", i), time.Hour, w.now)
		if (err != nil) != (i == 20) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// inspect shows a message to the inspector and returns the reason.
func (w *world) inspect(req *policy.Request, fields []string, to ...string) string {
	w.t.Helper()
	req.Stage = policy.StageData
	var addrs []policy.Address
	for _, a := range to {
		addrs = append(addrs, mailaddr.Parse(a))
	}
	in := w.check.Inspector().Inspect(req, addrs)
	if in == nil {
		return ""
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ":")
		in.Header(policy.Field{Name: name, Value: value})
	}
	in.EndOfHeaders()
	if in.Body([]byte("Precedence: bulk\r\n")) {
		w.t.Error("it looks at bodies")
	}
	j, err := in.End(w.t.Context())
	if err != nil || j.Verdict.Action != policy.Continue || j.Edits != nil {
		w.t.Errorf("%+v, %v", j, err)
	}
	w.settle()
	return j.Verdict.Reason
}

func TestInspector(t *testing.T) {
	plain := []string{"From: Ann <ann@example.org>", "Subject: list-id", "X-Precedence: bulk", "Auto-Submitted: no", "Precedence: first-class", "Content-Type: multipart/mixed; report", "X-Auto: yes"}
	w := newWorld(t, nil)
	if got := w.inspect(w.out("ann@example.org", ""), plain, "bob@example.net", "eve@example.com", "ann2@example.org"); got != "known-learned" {
		t.Errorf("%q", got)
	}
	if s, err := w.check.Count(t.Context(), w.now); err != nil || s.Correspondents != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, field := range []string{
		"Auto-Submitted: auto-replied", "auto-submitted:auto-generated (vacation)", "Auto-Submitted: auto-notified; owner-email=\"x@y\"",
		"Precedence: bulk", "precedence: List", "Precedence:junk", "Precedence: auto_reply (x)",
		"List-Id: <x.example.org>", "List-Unsubscribe: <https://example.org>", "List-Post: NO", "X-Autoreply: yes", "X-Autorespond: yes",
		"Content-Type: multipart/report; report-type=disposition-notification", "Content-Type:\n Multipart/Report; boundary=x",
	} {
		w := newWorld(t, nil)
		if got := w.inspect(w.out("ann@example.org", ""), append(slices.Clone(plain), field), "bob@example.net"); got != "known-automatic" {
			t.Errorf("%s: %q", field, got)
		}
		if s, err := w.check.Count(t.Context(), w.now); err != nil || s.Correspondents != 0 {
			t.Errorf("%s: %+v, %v", field, s, err)
		}
	}
	stranger := w.out("ann@example.org", "")
	stranger.SASL = policy.SASL{}
	if got := w.inspect(stranger, plain, "x@bot.example"); got != "" {
		t.Errorf("a stranger with our user's address: %q", got)
	}
	if got := w.inspect(w.out("ann@example.org", ""), plain, "ann2@example.org"); got != "" {
		t.Errorf("within the domain: %q", got)
	}
	var many []string
	for i := range 150 {
		many = append(many, fmt.Sprintf("m%d@gmail.com", i))
	}
	w.inspect(w.out("ann@example.org", ""), plain, many...)
	if s, err := w.check.Count(t.Context(), w.now); err != nil || s.Correspondents != 102 {
		t.Errorf("%+v, %v", s, err)
	}
}

// A message that is given up or refused teaches nothing.
func TestInspectionThatEndsEarly(t *testing.T) {
	w := newWorld(t, nil)
	in := w.check.Inspector().Inspect(w.out("ann@example.org", ""), []policy.Address{mailaddr.Parse("bob@example.net")})
	in.Header(policy.Field{Name: "Subject", Value: " x"})
	in.EndOfHeaders()
	w.settle()
	if s, err := w.check.Count(t.Context(), w.now); err != nil || s.Correspondents != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
