package greylist_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/conf"
	"postern/policy"
	"postern/store"
	"postern/store/mem"
)

// profile is the settings of one.
func profile(name string, edits ...func(*greylist.Config)) func(*greylist.Config) {
	return func(c *greylist.Config) {
		*c = greylist.ProfileConfig(name)
		for _, edit := range edits {
			edit(c)
		}
	}
}

func marked(req *policy.Request, marks ...string) *policy.Request {
	for _, m := range marks {
		req.Facts.Mark(m)
	}
	return req
}

// waits returns what a first contact is told, 0 when it passes.
func waits(t *testing.T, v policy.Verdict) time.Duration {
	t.Helper()
	if !v.Action.Refuses() {
		return 0
	}
	var seconds int
	if _, err := fmt.Sscanf(v.Reply.Text, "Greylisted, please try again in %d seconds", &seconds); err != nil {
		t.Fatalf("reply %v: %v", v.Reply, err)
	}
	return time.Duration(seconds) * time.Second
}

func TestDelayByMarks(t *testing.T) {
	const short, long = 2 * time.Minute, 40 * time.Minute
	for _, tt := range []struct {
		marks            string
		spf              policy.SPF
		listings         []policy.Listing
		refuse           bool // lists would
		balanced, gentle time.Duration
	}{
		{marks: ""},
		{marks: "client-reverse-missing", balanced: short, gentle: short},
		{marks: "client-reverse-unverified", balanced: short, gentle: short},
		{marks: "client-reverse-generic", balanced: short, gentle: short},
		{marks: "client-helo-unresolved", balanced: short, gentle: short},
		{marks: "client-sender-unresolved", balanced: short, gentle: short},
		{marks: "rbl-listed", balanced: short, gentle: short},
		{marks: "spf-softfail", balanced: short},
		{marks: "spf-too-wide", balanced: short},
		{marks: "verify-harvest", balanced: short},
		// Of one cause.
		{marks: "client-helo-unresolved client-helo-changes", balanced: short, gentle: short},
		{marks: "spf-fail spf-helo-softfail", spf: policy.SPF{Identity: "mailfrom"}, balanced: short},
		{marks: "limit-a limit-b", balanced: short},
		// Of two.
		{marks: "client-reverse-missing client-helo-unresolved", balanced: long, gentle: short},
		{marks: "client-reverse-generic spf-softfail", balanced: long, gentle: short},
		{marks: "rbl-listed verify-harvest", balanced: long, gentle: short},
		{marks: "spf-softfail spf-helo-fail", spf: policy.SPF{Identity: "mailfrom"}, balanced: long, gentle: short},
		// What says nothing.
		{marks: "spf-temperror"},
		{marks: "spf-helo-temperror", spf: policy.SPF{Identity: "helo"}},
		{marks: "spf-helo-softfail", spf: policy.SPF{Identity: "mailfrom"}},
		{marks: "spf-helo-softfail", spf: policy.SPF{Identity: "helo"}, balanced: short}, // a bounce
		{marks: "spf-temperror client-reverse-missing", balanced: short, gentle: short},
		// Lists.
		{marks: "rbl-listed", listings: []policy.Listing{{List: "a", Weight: 1}}, balanced: short, gentle: short},
		{marks: "rbl-listed", listings: []policy.Listing{{List: "a", Weight: 1}, {List: "a", What: "other", Weight: 1}}, balanced: short, gentle: short},
		{marks: "rbl-listed", listings: []policy.Listing{{List: "a", Weight: 1}, {List: "b", Weight: -1}}, balanced: short, gentle: short},
		{marks: "rbl-listed", listings: []policy.Listing{{List: "a", Weight: 1}, {List: "b", Weight: 1}}, balanced: long, gentle: short},
		{marks: "", listings: []policy.Listing{{List: "a", Weight: 1}, {List: "b", Weight: 1}}}, // an allow list outweighs them
		{marks: "rbl-listed", refuse: true, balanced: long, gentle: short},                      // rbl in shadow mode
	} {
		for name, want := range map[string]time.Duration{greylist.Strict: short, greylist.Balanced: tt.balanced, greylist.Gentle: tt.gentle} {
			w := newWorld(t, profile(name))
			req := marked(w.request("192.0.2.7", "", "a@example.org", "b@example.com"), strings.Fields(tt.marks)...)
			req.Facts.SPF, req.Facts.Listings, req.Facts.ListsRefuse = tt.spf, tt.listings, tt.refuse
			if got := waits(t, w.ask(req)); got != want {
				t.Errorf("%s: %q %v: waits %v, want %v", name, tt.marks, tt.listings, got, want)
			}
		}
	}
}

// The delay is that of the marks at the retry, from the first contact on.
func TestDelayOfARetry(t *testing.T) {
	w := newWorld(t, profile(greylist.Balanced))
	begin := w.now
	ask := func(what, reason string, after, wait time.Duration, marks ...string) policy.Verdict {
		t.Helper()
		w.now = begin.Add(after)
		v := w.want(what, reason, marked(w.request("192.0.2.7", "", "a@example.org", "b@example.com"), marks...))
		if got := waits(t, v); got != wait {
			t.Errorf("%s: waits %v, want %v", what, got, wait)
		}
		return v
	}
	ask("two marks", first, 0, 40*time.Minute, "client-reverse-missing", "client-helo-unresolved")
	ask("one", early, time.Minute, time.Minute, "client-reverse-missing")
	v := ask("two again", early, 10*time.Minute, 30*time.Minute, "client-reverse-missing", "client-helo-unresolved")
	if want := "net:192.0.2.0/24, attempt 3, long_delay for client-reverse-missing, client-helo-unresolved"; v.Detail != want {
		t.Errorf("detail %q, want %q", v.Detail, want)
	}
	v = ask("one, late", passes, 11*time.Minute, 0, "client-reverse-missing", "spf-temperror")
	if len(v.Add) != 1 || !strings.HasPrefix(v.Add[0].Value, "delayed 660 seconds by postern at mx.example.com; ") || !strings.HasSuffix(v.Add[0].Value, " (client-reverse-missing)") {
		t.Errorf("header %+v", v.Add)
	}
	w.now = begin.Add(12 * time.Minute)
	w.want("known, whatever its marks", known, marked(w.request("192.0.2.7", "", "a@example.org", "b@example.com"), "client-reverse-missing", "client-helo-unresolved"))
}

// Nobody waits longer than max_delay, whatever its delay is.
func TestMaxDelayOfLongOnes(t *testing.T) {
	w := newWorld(t, profile(greylist.Balanced, func(c *greylist.Config) { c.MaxDelay = conf.Duration(time.Hour) }))
	begin := w.now
	for i, reason := range []string{first, first, overdue} {
		w.now = begin.Add(time.Duration(i) * 30 * time.Minute)
		client := fmt.Sprintf("198.51.%d.7", 100+i)
		w.want(client, reason, marked(w.request(client, "", "a@example.org", "b@example.com"), "client-reverse-missing", "client-helo-unresolved"))
	}
}

func TestBurst(t *testing.T) {
	w := newWorld(t, profile(greylist.Balanced))
	begin := w.now
	ask := func(after time.Duration, client, sender, rcpt string) policy.Verdict {
		w.now = begin.Add(after)
		return w.ask(w.request(client, "", sender, rcpt))
	}
	wait := func(what string, v policy.Verdict, want time.Duration) {
		t.Helper()
		if got := waits(t, v); got != want {
			t.Errorf("%s: waits %v, want %v", what, got, want)
		}
	}
	for i := range 3 {
		wait("one of three", ask(0, fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("a@%d.example", i), "b@example.com"), 0)
	}
	wait("the same domain to the same recipient", ask(0, "192.0.2.9", "another@1.example", "b@example.com"), 0)
	wait("from another network", ask(0, "198.51.100.1", "a@example.org", "b@example.com"), 0)
	v := ask(time.Minute, "192.0.2.4", "a@4.example", "b@example.com")
	wait("a fourth correspondence", v, 40*time.Minute)
	if !strings.HasSuffix(v.Detail, ", long_delay for burst") {
		t.Errorf("detail %q", v.Detail)
	}
	wait("one that has passed", ask(time.Minute, "192.0.2.1", "a@0.example", "b@example.com"), 0)
	asked := w.request("192.0.2.4", "", "a@5.example", "b@example.com")
	asked.DryRun, asked.Probe = true, new(policy.Probe)
	wait("a question", w.ask(asked), 40*time.Minute)
	if text := fmt.Sprint(asked.Probe.Notes); !strings.Contains(text, "more than 3 correspondences within 6h from 192.0.2.0/24") || !strings.Contains(text, "40m (long_delay)") {
		t.Errorf("explained as %s", text)
	}
	wait("when it tries again", ask(41*time.Minute, "192.0.2.4", "a@4.example", "b@example.com"), 0)
	wait("after six hours", ask(6*time.Hour+42*time.Minute, "192.0.2.5", "a@6.example", "b@example.com"), 0)
}

// Where somebody has credit there is no burst, also after a restart and at
// another gateway.
func TestBurstFromWhereCreditIs(t *testing.T) {
	values := mem.New(1000, 1000)
	defer values.Close(context.Background()) //nolint:errcheck // memory
	saved := &counted{Networks: store.SpaceOf(values, "networks")}
	w := newWorld(t, nil)
	start := func() {
		c, err := greylist.New(config(t, profile(greylist.Balanced, func(c *greylist.Config) { c.KnownAfter = 1 })), greylist.Options{
			Hostname: "mx", Store: w.store, Networks: saved, Names: judge(t), Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
		})
		if err != nil {
			t.Fatal(err)
		}
		w.check = c
	}
	crowd := func(day string) (delayed int) {
		for i := range 6 {
			if v := w.ask(w.request("192.0.2.7", "", fmt.Sprintf("a@%s-%d.example", day, i), "b@example.com")); v.Action.Refuses() {
				delayed++
			}
		}
		return delayed
	}
	start()
	w.want("the first", passes, w.request("192.0.2.7", "mx.example.org", "a@example.org", "b@example.com"))
	w.now = w.now.Add(25 * time.Hour)
	if n := crowd("one"); n != 3 {
		t.Errorf("before anybody has credit %d are delayed, want 3", n)
	}
	for i := range 20 {
		w.want("with credit", client, w.request("192.0.2.7", "mx.example.org", "a@example.org", fmt.Sprintf("c%d@example.com", i)))
	}
	if saved.swaps != 1 {
		t.Errorf("stored %d times in a day", saved.swaps)
	}
	if n := crowd("two"); n != 0 {
		t.Errorf("where somebody has credit %d are delayed", n)
	}
	start() // a new process
	if n := crowd("three"); n != 0 || saved.loads == 0 {
		t.Errorf("after a restart %d are delayed, the store was asked %d times", n, saved.loads)
	}
	loads := saved.loads
	crowd("four")
	if saved.loads != loads {
		t.Errorf("the store was asked again")
	}
	// Long after nobody has come from there, credit does not count.
	w.now = w.now.Add(40 * 24 * time.Hour)
	if n := crowd("five"); n != 3 {
		t.Errorf("after 40 days %d are delayed, want 3", n)
	}
	// Of a network without credit the store is asked once an hour.
	loads = saved.loads
	crowd("six")
	if saved.loads != loads {
		t.Errorf("the store was asked %d times within a moment", saved.loads-loads+1)
	}
	start()
	saved.err = errors.New("down")
	if n := crowd("seven"); n != 0 {
		t.Errorf("while the store does not answer %d are delayed", n)
	}
}

// counted counts what the store is asked.
type counted struct {
	greylist.Networks
	loads, swaps int
	err          error
}

func (c *counted) Load(ctx context.Context, network string) (string, error) {
	if c.loads++; c.err != nil {
		return "", c.err
	}
	return c.Networks.Load(ctx, network)
}

func (c *counted) Swap(ctx context.Context, network, old, next string, expires time.Time) (bool, error) {
	if c.swaps++; c.err != nil {
		return false, c.err
	}
	return c.Networks.Swap(ctx, network, old, next, expires)
}

// A reload keeps what is known of networks.
func TestBurstAfterReload(t *testing.T) {
	w := newWorld(t, profile(greylist.Balanced))
	for i := range 4 {
		w.ask(w.request("192.0.2.7", "", fmt.Sprintf("a@%d.example", i), "b@example.com"))
	}
	old := w.check
	w.check = w.make(profile(greylist.Balanced, func(c *greylist.Config) { c.Burst = 4 }), old)
	old.Stop()
	if v := w.ask(w.request("192.0.2.7", "", "a@5.example", "b@example.com")); waits(t, v) != 40*time.Minute {
		t.Errorf("after a reload with burst = 4 a fifth correspondence: %v", v)
	}
}

// A flood from a hundred thousand networks takes no more memory, and does not
// make room for who tries much.
func TestBurstInAFlood(t *testing.T) {
	w := newWorld(t, profile(greylist.Balanced))
	for i := range 4 {
		w.ask(w.request("192.0.2.7", "", fmt.Sprintf("a@%d.example", i), "b@example.com"))
	}
	for i := range 100_000 {
		w.ask(w.request(fmt.Sprintf("%d.%d.%d.1", 20+(i>>16), i>>8&255, i&255), "", "f@example.net", "b@example.com"))
	}
	if v := w.ask(w.request("192.0.2.7", "", "a@5.example", "b@example.com")); waits(t, v) != 40*time.Minute {
		t.Errorf("after a flood another correspondence of a burst: %v", v)
	}
}

// SPF that does not pass is what forwarders make of it: where a network is
// known, it alone delays nobody.
func TestForwarders(t *testing.T) {
	w := newWorld(t, profile(greylist.Balanced))
	forwarded := func(sender string, marks ...string) *policy.Request {
		req := marked(w.request("192.0.2.7", "mx.alumni.example", sender, "b@example.com"), marks...)
		req.Facts.SPF = policy.SPF{Result: "softfail", Domain: sender[2:], Identity: "mailfrom"}
		return req
	}
	w.want("from an unknown network", first, forwarded("a@example.org", "spf-softfail"))
	w.now = w.now.Add(5 * time.Minute)
	w.want("again", passes, forwarded("a@example.org", "spf-softfail"))
	w.want("another domain", first, forwarded("a@example.net", "spf-softfail"))
	w.now = w.now.Add(25 * time.Hour)
	w.want("the first, a day later", known, forwarded("a@example.org", "spf-softfail"))
	w.want("a third domain", passes, forwarded("a@third.example", "spf-softfail"))
	w.want("with another mark", first, forwarded("a@fourth.example", "spf-softfail", "client-helo-unresolved"))
	req := forwarded("a@fifth.example", "spf-softfail")
	req.DryRun, req.Probe = true, new(policy.Probe)
	w.ask(req)
	if text := fmt.Sprint(req.Probe.Notes); !strings.Contains(text, "spf-softfail: does not count by itself") || !strings.Contains(text, "0s (none)") {
		t.Errorf("explained as %s", text)
	}
}

// lists are what DNS lists say when they are asked anew.
type lists struct {
	asked   int
	verdict policy.Verdict
	err     error
}

func (l *lists) ask(_ context.Context, req *policy.Request) (policy.Verdict, error) {
	l.asked++
	req.Facts.Mark("rbl-listed")
	return l.verdict, l.err
}

func TestListsAreAskedAnew(t *testing.T) {
	refusal := policy.Verdict{Action: policy.Reject, Reason: "rbl-listed", Reply: policy.Reply{Code: 554, Enhanced: "5.7.1", Text: "listed"}, Detail: "score 3"}
	l := &lists{}
	w := newWorld(t, nil)
	w.check.Stop()
	c, err := greylist.New(config(t, profile(greylist.Balanced)), greylist.Options{
		Hostname: "mx", Store: w.store, Names: judge(t), Relist: l.ask, Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.check = c
	begin := w.now
	request := func(after time.Duration, rcpt string, marks ...string) *policy.Request {
		w.now = begin.Add(after)
		req := marked(w.request("192.0.2.7", "", "a@example.org", rcpt), marks...)
		req.Facts.ListsAsked = true
		return req
	}
	two := []string{"client-reverse-missing", "client-helo-unresolved"}
	entries := func() greylist.Counts {
		n, err := w.store.CountGreylist(t.Context(), w.now)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	w.want("first contact", first, request(0, "b@example.com", two...))
	w.want("too early", early, request(39*time.Minute, "b@example.com", two...))
	if l.asked != 0 {
		t.Fatalf("asked %d times before anybody would pass", l.asked)
	}
	l.verdict = refusal
	for i := range 2 {
		v := w.ask(request(41*time.Minute, "b@example.com", two...))
		if v.Action != policy.Reject || v.Reason != "rbl-listed" || v.Reply != refusal.Reply || len(v.Add) != 0 ||
			v.Detail != "score 3; asked anew after 41m0s, net:192.0.2.0/24, long_delay for client-reverse-missing, client-helo-unresolved" || l.asked != i+1 {
			t.Errorf("listed by now: %+v, asked %d times", v, l.asked)
		}
	}
	if n := entries(); n.Triplets != 0 || n.Credits != 0 || n.Waiting != 1 {
		t.Errorf("who was refused has earned %+v", n)
	}
	// A question changes nothing either way.
	for _, l.verdict = range []policy.Verdict{refusal, {}} {
		req := request(42*time.Minute, "b@example.com", two...)
		req.DryRun, req.Probe = true, new(policy.Probe)
		if v := w.ask(req); v.Action.Refuses() != (l.verdict.Action == policy.Reject) || !strings.Contains(fmt.Sprint(req.Probe.Notes), "DNS lists asked anew") {
			t.Errorf("a question: %+v, %v", v, req.Probe.Notes)
		}
	}
	if n := entries(); n.Triplets != 0 || n.Waiting != 1 {
		t.Errorf("a question has changed it to %+v", n)
	}
	// Nobody answers: as without.
	l.err = errors.New("none of 3 lists could be asked")
	w.want("nobody answers", passes, request(43*time.Minute, "b@example.com", two...))
	if n := entries(); n.Triplets != 1 || n.Credits != 1 || n.Waiting != 0 {
		t.Errorf("who has passed has %+v", n)
	}
	asked := l.asked
	w.want("known", known, request(44*time.Minute, "b@example.com", two...))
	// Who waits for delay only, and whom lists were not to judge, is let in
	// without.
	for _, tt := range []struct {
		rcpt  string
		marks []string
		lists bool
	}{{"short@example.com", two[:1], true}, {"exempt@example.com", two, false}} {
		begin, l.verdict, l.err = w.now, refusal, nil
		req := request(0, tt.rcpt, tt.marks...)
		req.Facts.ListsAsked = tt.lists
		w.want(tt.rcpt, first, req)
		req = request(41*time.Minute, tt.rcpt, tt.marks...)
		req.Facts.ListsAsked = tt.lists
		w.want(tt.rcpt, passes, req)
	}
	if l.asked != asked {
		t.Errorf("asked %d times for them", l.asked-asked)
	}
}

func TestProfiles(t *testing.T) {
	for name, want := range map[string]string{greylist.Strict: "always", greylist.Balanced: "graded", greylist.Gentle: "suspicious"} {
		c := greylist.DefaultConfig()
		c.Profile = name
		c.When, c.Suspicions = "own", []string{"helo"}
		c.Fill(func(key string) bool { return key == "when" })
		if c.When != "own" || len(c.Suspicions) < 4 {
			t.Errorf("%s beside when: %q %v", name, c.When, c.Suspicions)
		}
		c.Fill(func(key string) bool { return key == "suspicions" })
		if c.When != want {
			t.Errorf("%s: when = %q, want %q", name, c.When, want)
		}
		c.Suspicions = []string{"helo"}
		if c.Fill(func(string) bool { return true }); len(c.Suspicions) != 1 {
			t.Errorf("%s: what was given is %v", name, c.Suspicions)
		}
	}
}

// Who has other delays need not give long_delay, too.
func TestLongDelayFollows(t *testing.T) {
	for _, tt := range []struct{ delay, most, want time.Duration }{
		{2 * time.Minute, 4 * time.Hour, 40 * time.Minute}, {time.Hour, 4 * time.Hour, time.Hour}, {2 * time.Minute, 30 * time.Minute, 30 * time.Minute},
	} {
		c := greylist.ProfileConfig(greylist.Balanced)
		c.Delay, c.MaxDelay = conf.Duration(tt.delay), conf.Duration(tt.most)
		c.Fill(func(string) bool { return false })
		var fs conf.Faults
		if c.Validate("greylist", &fs); fs != nil || c.LongDelay.D() != tt.want {
			t.Errorf("delay %v, max_delay %v: long_delay %v, want %v; %v", tt.delay, tt.most, c.LongDelay, tt.want, fs)
		}
	}
}

func TestBadGrades(t *testing.T) {
	for _, tt := range []struct {
		key  string
		edit func(*greylist.Config)
	}{
		{"profile", func(c *greylist.Config) { c.Profile = "harsh" }},
		{"when", func(c *greylist.Config) { c.When = "never" }},
		{"suspicions[1]", func(c *greylist.Config) { c.Suspicions = []string{"helo", "hello"} }},
		{"suspicions", func(c *greylist.Config) { c.Suspicions, c.Burst = nil, 0 }},
		{"burst", func(c *greylist.Config) { c.Burst = 16 }},
		{"burst", func(c *greylist.Config) { c.Burst = -1 }},
		{"burst_within", func(c *greylist.Config) { c.BurstWithin = conf.Duration(time.Second) }},
		{"long_delay", func(c *greylist.Config) { c.LongDelay = conf.Duration(time.Minute) }},
		{"max_delay", func(c *greylist.Config) { c.LongDelay = conf.Duration(5 * time.Hour) }},
		{"window", func(c *greylist.Config) { c.Window = conf.Duration(30 * time.Minute) }},
	} {
		c := greylist.ProfileConfig(greylist.Balanced)
		tt.edit(&c)
		var fs conf.Faults
		c.Validate("greylist", &fs)
		found := false
		for _, f := range fs {
			found = found || f.Key == "greylist."+tt.key
		}
		if !found {
			t.Errorf("%s: faults %v", tt.key, fs)
		}
	}
	c := greylist.ProfileConfig(greylist.Gentle)
	c.Suspicions = nil
	var fs conf.Faults
	if c.Validate("greylist", &fs); len(fs) != 1 || fs[0].Key != "greylist.suspicions" {
		t.Errorf("gentle without suspicions: %v", fs)
	}
}

// Requests with IPv6 addresses belong to their /64.
func TestBurstOfIPv6(t *testing.T) {
	w := newWorld(t, profile(greylist.Balanced))
	last := time.Duration(0)
	for i := range 5 {
		req := w.request("192.0.2.7", "", fmt.Sprintf("a@%d.example", i), "b@example.com")
		req.Client.Addr = netip.MustParseAddr(fmt.Sprintf("2001:db8:1:2:%d::7", i))
		last = waits(t, w.ask(req))
	}
	if last != 40*time.Minute {
		t.Errorf("a fifth correspondence waits %v", last)
	}
}
