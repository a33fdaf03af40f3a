package limit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/internal/meter"
	"postern/policy"
	"postern/store"
	"postern/store/bolt"
)

// shelf is the rule over a map.
type shelf struct {
	mu   sync.Mutex
	held map[string]string
	err  error
	asks int
}

func (s *shelf) TakeMeters(_ context.Context, now time.Time, takes []meter.Take, peek bool) ([]meter.Level, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asks++
	old := make([]string, len(takes))
	for i := range takes {
		old[i] = s.held[takes[i].Key]
	}
	next, levels, taken := meter.Apply(old, takes, now)
	for i := range next {
		if !peek {
			s.held[takes[i].Key] = next[i]
		}
	}
	return levels, taken, s.err
}

func (s *shelf) Load(_ context.Context, key string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[key], s.err
}

func (s *shelf) Swap(_ context.Context, key, old, next string, _ time.Time) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[key] != old || s.err != nil {
		return false, s.err
	}
	delete(s.held, key)
	if next != "" {
		s.held[key] = next
	}
	return true, nil
}

func (s *shelf) Each(_ context.Context, yield func(key, value string) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, v := range s.held {
		if !yield(k, v) {
			break
		}
	}
	return nil
}

func (s *shelf) Count() int { return len(s.held) }

var noon = time.Date(2026, 1, 7, 12, 0, 0, 0, time.UTC) // a Wednesday

type bench struct {
	t testing.TB
	*Check
	store, raises, leases *shelf
	reg                   *prometheus.Registry
}

func newBench(t testing.TB, c Config) *bench {
	t.Helper()
	var fs conf.Faults
	if c.Validate("limit", &fs); fs != nil {
		t.Fatal(fs)
	}
	return (&bench{t: t, store: newShelf(), raises: newShelf(), leases: newShelf()}).with(c)
}

// other is another gateway, or the same one after a restart.
func (b *bench) other() *bench {
	b.t.Helper()
	return b.with(b.cfg)
}

// with is a check with the same stores.
func (b *bench) with(c Config) *bench {
	b.t.Helper()
	o := &bench{t: b.t, store: b.store, raises: b.raises, leases: b.leases, reg: prometheus.NewRegistry()}
	var err error
	o.Check, err = New(c, Options{
		Store: b.store, Admin: b.store, Raises: b.raises, Leases: b.leases, Hostname: "mx.example.org", Log: zap.NewNop(), Registry: o.reg,
		Secret: func(path string) (string, error) {
			text, err := os.ReadFile(path)
			return strings.TrimSpace(string(text)), err
		},
	}, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return o
}

func newShelf() *shelf { return &shelf{held: map[string]string{}} }

func rules(rules ...Rule) Config {
	c := DefaultConfig()
	c.Rules = rules
	return c
}

// rcpt is a request of one recipient of one message.
func rcpt(instance, to string) *policy.Request {
	local, domain, _ := strings.Cut(to, "@")
	return &policy.Request{
		Time: noon, Stage: policy.StageRcpt, Listener: "l", Instance: instance, Helo: "mail.example.org",
		Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7")}, Sender: policy.Address{Raw: "Ann@example.org", Local: "Ann", Domain: "example.org"},
		Recipient: policy.Address{Raw: to, Local: local, Domain: domain}, SASL: policy.SASL{Username: "ann"},
	}
}

func at(stage policy.Stage, req *policy.Request) *policy.Request {
	req.Stage, req.Recipient = stage, policy.Address{}
	return req
}

// says asks and compares the action and the reply's text.
func (b *bench) says(req *policy.Request, want policy.Action, text string) {
	b.t.Helper()
	v, err := b.Evaluate(b.t.Context(), req)
	if err != nil || v.Action != want || !strings.Contains(v.Reply.String(), text) {
		b.t.Fatalf("%s %s: %v %q (%s), %v; want %v %q", req.Stage, req.Recipient.Raw, v.Action, v.Reply, v.Detail, err, want, text)
	}
}

func quota(text string) []QuotaSpec {
	var q QuotaSpec
	if err := q.UnmarshalText([]byte(text)); err != nil {
		panic(err)
	}
	return []QuotaSpec{q}
}

func rate(text string) (r RateSpec) {
	if err := r.UnmarshalText([]byte(text)); err != nil {
		panic(err)
	}
	return r
}

// A message is one message, however many recipients it has.
func TestMessagesAndRecipients(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "messages", Quota: quota("2/day")}, Rule{Name: "recipients", Unit: "recipients", Quota: quota("4/day")}))
	b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	b.says(rcpt("1", "b@example.com"), policy.Continue, "")
	b.says(rcpt("2", "a@example.com"), policy.Continue, "")
	b.says(rcpt("3", "a@example.com"), policy.Defer, "450 4.7.1 Too much mail, please try again in 12h")
	b.says(rcpt("2", "b@example.com"), policy.Continue, "")
	b.says(rcpt("2", "c@example.com"), policy.Defer, "450 4.7.1")
	next := rcpt("4", "a@example.com")
	next.Time = noon.Add(12 * time.Hour)
	b.says(next, policy.Continue, "")
	if b.store.asks != 7 {
		t.Errorf("the store was asked %d times for 7 requests", b.store.asks)
	}
}

// What a message has taken that is refused at its last recipient is given back
// where DATA is asked about, and taken again when the client goes on.
func TestRefusedMessageGivesBack(t *testing.T) {
	used := func(b *bench) int64 {
		meters, err := b.Top(t.Context(), "", 10, noon)
		if err != nil || len(meters) > 1 {
			t.Fatal(meters, err)
		}
		if len(meters) == 0 {
			return 0
		}
		return meters[0].Used
	}
	for _, sees := range []bool{true, false} {
		b := newBench(t, rules(Rule{Name: "r", Unit: "recipients", Quota: quota("200/day")}))
		if sees {
			b.says(at(policy.StageData, rcpt("0", "")), policy.Continue, "")
		}
		for i := range 200 {
			b.says(rcpt("1", fmt.Sprint(i, "@example.com")), policy.Continue, "")
		}
		b.says(rcpt("1", "last@example.com"), policy.Defer, "450")
		if want := map[bool]int64{true: 0, false: 200}[sees]; used(b) != want {
			t.Errorf("seen %v: %d are used, want %d", sees, used(b), want)
		}
		if !sees {
			continue
		}
		b.says(at(policy.StageData, rcpt("1", "")), policy.Continue, "") // with 200 recipients
		if used(b) != 200 {
			t.Errorf("went on: %d are used", used(b))
		}
		// Another message takes what was given back; then the first cannot go on.
		b = newBench(t, rules(Rule{Name: "r", Unit: "recipients", Quota: quota("2/day"), Action: "reject"}))
		b.says(at(policy.StageData, rcpt("0", "")), policy.Continue, "")
		b.says(rcpt("1", "a@example.com"), policy.Continue, "")
		b.says(rcpt("1", "b@example.com"), policy.Continue, "")
		b.says(rcpt("1", "c@example.com"), policy.Reject, "550 5.7.1 Too much mail")
		b.says(rcpt("2", "a@example.com"), policy.Continue, "")
		b.says(at(policy.StageData, rcpt("1", "")), policy.Reject, "550 5.7.1")
		if used(b) != 1 {
			t.Errorf("%d are used by the one that was taken", used(b))
		}
	}
}

func TestKeys(t *testing.T) {
	other := func(change func(*policy.Request)) *policy.Request {
		req := rcpt("2", "b@example.com")
		change(req)
		return req
	}
	for name, tt := range map[string]struct {
		same, other, none func(*policy.Request)
	}{
		"client":           {func(r *policy.Request) { r.SASL.Username = "x" }, func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.2.8") }, func(r *policy.Request) { r.Client.Addr = netip.Addr{} }},
		"network":          {func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.2.250") }, func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.3.7") }, func(r *policy.Request) { r.Client.Addr = netip.Addr{} }},
		"login":            {func(r *policy.Request) { r.Sender = policy.Address{} }, func(r *policy.Request) { r.SASL.Username = "bob" }, func(r *policy.Request) { r.SASL.Username = "" }},
		"sender":           {func(r *policy.Request) { r.Sender.Local = "ANN" }, func(r *policy.Request) { r.Sender.Local = "bob" }, func(r *policy.Request) { r.Sender = policy.Address{} }},
		"sender-domain":    {func(r *policy.Request) { r.Sender.Local = "bob" }, func(r *policy.Request) { r.Sender.Domain = "example.net" }, func(r *policy.Request) { r.Sender = policy.Address{} }},
		"recipient":        {func(r *policy.Request) { r.Recipient.Local = "A" }, func(*policy.Request) {}, func(r *policy.Request) { r.Recipient = policy.Address{} }},
		"recipient-domain": {func(*policy.Request) {}, func(r *policy.Request) { r.Recipient.Domain = "example.net" }, func(r *policy.Request) { r.Recipient = policy.Address{} }},
		"helo":             {func(r *policy.Request) { r.Helo = "MAIL.example.org" }, func(r *policy.Request) { r.Helo = "x" }, func(r *policy.Request) { r.Helo = "" }},
	} {
		b := newBench(t, rules(Rule{Name: "r", Key: []string{name}, Quota: quota("1/day")}))
		b.says(rcpt("1", "a@example.com"), policy.Continue, "")
		b.says(other(tt.same), policy.Defer, "450")
		b.says(other(tt.other), policy.Continue, "")
		for range 3 { // what has none is not counted under one empty key
			b.says(other(tt.none), policy.Continue, "")
		}
	}
	// Two together.
	b := newBench(t, rules(Rule{Name: "r", Key: []string{"login", "recipient-domain"}, Quota: quota("1/day")}))
	b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	b.says(rcpt("2", "b@example.com"), policy.Defer, "450")
	b.says(rcpt("2", "b@example.net"), policy.Continue, "")
}

func TestUnits(t *testing.T) {
	for unit, next := range map[string]func(*policy.Request){
		"distinct-recipients":        func(r *policy.Request) { r.Recipient.Local = "b" },
		"distinct-recipient-domains": func(r *policy.Request) { r.Recipient.Domain = "example.net" },
		"distinct-senders":           func(r *policy.Request) { r.Sender.Local = "bob" },
		"distinct-clients":           func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("192.0.2.8") },
		"distinct-networks":          func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("198.51.100.8") },
	} {
		b := newBench(t, rules(Rule{Name: "r", Key: []string{"login"}, Unit: unit, Quota: quota("1/day")}))
		b.says(rcpt("1", "a@example.com"), policy.Continue, "")
		b.says(rcpt("2", "a@example.com"), policy.Continue, "") // the same again
		req := rcpt("3", "a@example.com")
		next(req)
		b.says(req, policy.Defer, "450")
	}
	b := newBench(t, rules(Rule{Name: "r", Unit: "bytes", Rate: rate("10M/1h")}))
	end := func(size int64) *policy.Request {
		req := at(policy.StageEndOfMessage, rcpt("1", ""))
		req.Size = size
		return req
	}
	b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	b.says(end(9_000_000), policy.Continue, "")
	b.says(end(2_000_000), policy.Defer, "try again in 6m")
	b.says(end(1_000_000), policy.Continue, "")
}

// What is larger than a rate lets through at once waits until nothing else has
// been used, and then takes all of it; what is larger than a whole quota would
// wait forever and is refused for good.
func TestMessageLargerThanTheLimit(t *testing.T) {
	end := func(at time.Time, size int64) *policy.Request {
		req := rcpt("1", "a@example.com")
		req.Stage, req.Time, req.Size = policy.StageEndOfMessage, at, size
		return req
	}
	b := newBench(t, rules(Rule{Name: "r", Unit: "bytes", Rate: rate("10M/1h")}))
	for i, tt := range []struct {
		after time.Duration
		size  int64
		want  policy.Action
	}{{0, 1000, policy.Continue}, {0, 25_000_000, policy.Defer}, {time.Hour, 25_000_000, policy.Continue}, {time.Hour, 1000, policy.Defer}} {
		req := end(noon.Add(tt.after), tt.size)
		req.Instance = fmt.Sprint(i)
		b.says(req, tt.want, "")
	}

	b = newBench(t, rules(Rule{Name: "q", Unit: "bytes", Quota: quota("10M/day")}, Rule{Name: "m", Quota: quota("5/day")}))
	b.says(at(policy.StageData, rcpt("0", "")), policy.Continue, "")
	b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	v, err := b.Evaluate(t.Context(), end(noon, 10_000_001))
	if err != nil || v.Action != policy.Reject || v.Reason != reasonSize || v.Reply.Code != 552 || v.Reply.Enhanced != "5.3.4" {
		t.Errorf("%+v, %v", v, err)
	}
	if meters, err := b.Top(t.Context(), "", 10, noon); err != nil || len(meters) != 0 {
		t.Errorf("it has used %v, %v", meters, err)
	}
	b.says(end(noon, 10_000_000), policy.Continue, "")
	// One that is only held or marked goes on.
	b = newBench(t, rules(Rule{Name: "q", Unit: "bytes", Quota: quota("10M/day"), Action: "hold"}))
	b.says(end(noon, 10_000_001), policy.Hold, "")
}

// A rule counts in the chains that it names.
func TestChains(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "r", Quota: quota("1/day"), Chains: []string{"submission", "lan"}}))
	for i, tt := range []struct {
		chain string
		want  policy.Action
	}{{"lan", policy.Continue}, {"inbound", policy.Continue}, {"submission", policy.Defer}, {"", policy.Continue}} {
		req := rcpt(fmt.Sprint(i), "a@example.com")
		req.JudgedBy = tt.chain
		b.says(req, tt.want, "")
	}
	if got := fmt.Sprint(b.cfg.NamesChains("limit")); got != "map[limit.rule[0].chains[0]:submission limit.rule[0].chains[1]:lan]" {
		t.Error(got)
	}
}

// Services of one Postfix share a listener, and one does not ask at DATA: what
// it refuses is not given back, since nobody would see it go on.
func TestServicesOnOneListener(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "r", Unit: "recipients", Quota: quota("3/day")}))
	service := func(port uint16, req *policy.Request) *policy.Request {
		req.ServerAddr, req.ServerPort = netip.MustParseAddr("192.0.2.1"), port
		return req
	}
	b.says(service(587, at(policy.StageData, rcpt("0", ""))), policy.Continue, "")
	for instance, port := range map[string]uint16{"mx": 25, "submission": 587} {
		for _, to := range []string{"a@example.com", "b@example.com", "c@example.com"} {
			b.says(service(port, rcpt(instance, to)), policy.Continue, "")
		}
		b.says(service(port, rcpt(instance, "d@example.com")), policy.Defer, "450")
		meters, err := b.Top(t.Context(), "", 1, noon)
		if err != nil || len(meters) != map[uint16]int{25: 1, 587: 0}[port] {
			t.Errorf("port %d: %v, %v", port, meters, err)
		}
		clear(b.store.held)
	}
}

// Hit counts of a rule's lists go on after a reload, and the status shows them.
func TestListsInStatus(t *testing.T) {
	file := filepath.Join(t.TempDir(), "own")
	if err := os.WriteFile(file, []byte("192.0.2.0/24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, rules(Rule{Name: "r", Quota: quota("1/day"), Skip: []string{"file:" + file}, Only: []string{"from:example.org"}}))
	b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	b.says(rcpt("2", "a@example.com"), policy.Continue, "")
	after, err := New(b.cfg, Options{Store: b.store, Admin: b.store, Log: zap.NewNop(), Registry: prometheus.NewRegistry()}, b.Check)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	after.Status().WriteStatus(&text, time.Now())
	for _, want := range []string{"limit     1 rules, about 0 meters\n", "list      limit r only: inline:from:example.org: 1 entries, 2 hits\n", "list      limit r skip: file:" + file + ": 1 entries, 2 hits, read "} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
}

func TestActionsAndConditions(t *testing.T) {
	once := func(change func(*Rule)) *bench {
		r := Rule{Name: "r", Quota: quota("1/day")}
		change(&r)
		b := newBench(t, rules(r))
		b.says(rcpt("1", "a@example.com"), policy.Continue, "")
		return b
	}
	b := once(func(r *Rule) { r.Action = "hold" })
	b.says(rcpt("2", "a@example.com"), policy.Hold, "")
	b = once(func(r *Rule) { r.Action = "mark" })
	req := rcpt("2", "a@example.com")
	b.says(req, policy.Continue, "")
	if fmt.Sprint(req.Facts.Marks) != "[limit-r]" {
		t.Errorf("marks %v", req.Facts.Marks)
	}
	once(func(r *Rule) { r.Action, r.Reply = "reject", "550 5.7.1 {login} {sender} {rule}" }).says(rcpt("2", "a@example.com"), policy.Reject, "ann Ann@example.org r")
	once(func(r *Rule) { r.Clients = "unauthenticated" }).says(rcpt("2", "a@example.com"), policy.Continue, "")
	once(func(r *Rule) { r.Clients = "authenticated" }).says(rcpt("2", "a@example.com"), policy.Defer, "")
	once(func(r *Rule) { r.Skip = []string{"192.0.2.0/24"} }).says(rcpt("2", "a@example.com"), policy.Continue, "")
	once(func(r *Rule) { r.Skip = []string{"198.51.100.0/24"} }).says(rcpt("2", "a@example.com"), policy.Defer, "")
	once(func(r *Rule) { r.Only = []string{"from:example.org"} }).says(rcpt("2", "a@example.com"), policy.Defer, "")
	once(func(r *Rule) { r.Only = []string{"from:example.net"} }).says(rcpt("2", "a@example.com"), policy.Continue, "")

	// A question changes nothing; the store's fault is an error.
	b = newBench(t, rules(Rule{Name: "r", Quota: quota("1/day")}))
	for range 3 {
		dry := rcpt("1", "a@example.com")
		dry.DryRun = true
		b.says(dry, policy.Continue, "")
	}
	b.store.err = errors.New("gone")
	if _, err := b.Evaluate(t.Context(), rcpt("1", "a@example.com")); !errors.Is(err, b.store.err) {
		t.Error(err)
	}
	// Our own callouts are never counted.
	c := rules(Rule{Name: "r", Quota: quota("1/day")})
	c.OwnProbes = []string{"ann@EXAMPLE.org"}
	b = newBench(t, c)
	for range 3 {
		b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	}
}

func TestMaxRecipients(t *testing.T) {
	c := DefaultConfig()
	c.MaxRecipients = 2
	b := newBench(t, c)
	b.says(rcpt("1", "a@example.com"), policy.Continue, "")
	b.says(rcpt("1", "b@example.com"), policy.Continue, "")
	b.says(rcpt("1", "c@example.com"), policy.Defer, "452 4.5.3")
	b.says(rcpt("2", "c@example.com"), policy.Continue, "")
}

// One line is logged when the mark is reached, and again after it was left.
func TestWarn(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "r", Quota: quota("5/day"), Warn: 80}))
	core, logged := observer.New(zap.WarnLevel)
	b.log = zap.New(core)
	for i, want := range []int{0, 0, 0, 1, 1} {
		b.says(rcpt(fmt.Sprint(i), "a@example.com"), policy.Continue, "")
		if logged.Len() != want {
			t.Errorf("after %d of 5: %d lines", i+1, logged.Len())
		}
	}
	for i, want := range []int{1, 1, 1, 2} { // the next day
		req := rcpt(fmt.Sprint("n", i), "a@example.com")
		req.Time = noon.Add(24 * time.Hour)
		b.says(req, policy.Continue, "")
		if logged.Len() != want {
			t.Errorf("the next day, after %d: %d lines", i+1, logged.Len())
		}
	}
}

func TestTopAndReset(t *testing.T) {
	b := newBench(t, rules(Rule{Name: "day", Key: []string{"login"}, Quota: quota("10/day")}, Rule{Name: "rate", Rate: rate("4/1h"), Warn: 50}))
	for i := range 3 {
		b.says(rcpt(fmt.Sprint(i), "a@example.com"), policy.Continue, "")
	}
	b.store.held["gone/day/x"] = "1:1"
	meters, err := b.Top(t.Context(), "", 10, noon)
	if got := fmt.Sprint(meters); err != nil || got != "[{rate/rate/192.0.2.7 rate 3 4 0.75 0001-01-01 00:00:00 +0000 UTC} {day/day/ann day 3 10 0.3 0001-01-01 00:00:00 +0000 UTC}]" {
		t.Error(got, err)
	}
	if meters, _ := b.Top(t.Context(), "ann", 10, noon); len(meters) != 1 {
		t.Error(meters)
	}
	if err := b.Reset(t.Context(), "day/day/ann"); err != nil || b.store.held["day/day/ann"] != "" {
		t.Error(err, b.store.held)
	}
	if err := b.Reset(t.Context(), "day/day/ann"); err == nil || !strings.Contains(err.Error(), "there is no meter") {
		t.Error(err)
	}
}

func TestSpecs(t *testing.T) {
	for text, want := range map[string]string{
		"200/1h": "200/1h", "10Mi/1d": "10485760/1d", " 5k / 1m ": "5000/1m", "0/1h": "", "x/1h": "", "5": "", "5/1ms": "", "5/2y": "", "-1/1h": "", "5/": "", "99999G/1h": "",
	} {
		var r RateSpec
		err := r.UnmarshalText([]byte(text))
		got, _ := r.MarshalText()
		if (err != nil) != (want == "") || string(got) != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"5/hour": "12:00:00 13:00:00", "5/day": "00:00:00 00:00:00", "5/week": "Mon Mon", "5/month": "1 1", "5/year": "", "5": "", "x/day": "",
	} {
		var q QuotaSpec
		err := q.UnmarshalText([]byte(text))
		if (err != nil) != (want == "") {
			t.Errorf("%q: %v", text, err)
		}
		if err != nil {
			continue
		}
		start, end := q.period(noon)
		layout := map[string]string{"hour": time.TimeOnly, "day": time.TimeOnly, "week": "Mon", "month": "2"}[q.Period]
		if got := start.Format(layout) + " " + end.Format(layout); got != want || noon.Before(start) || !noon.Before(end) {
			t.Errorf("%q: %v to %v", text, start, end)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		rule Rule
		want string
	}{
		"no name":         {Rule{Quota: quota("1/day")}, `limit.rule[0].name: "" is no name`},
		"count":           {Rule{Name: "a", Count: "all", Quota: quota("1/day")}, `unknown value "all"`},
		"count distinct":  {Rule{Name: "a", Count: "accepted", Unit: "distinct-senders", Quota: quota("1/day")}, "when they come"},
		"connections":     {Rule{Name: "a", Key: []string{"client", "helo"}, Unit: "connections", Quota: quota("1/day")}, "limit.rule[0].key[1]"},
		"who connects":    {Rule{Name: "a", Clients: "authenticated", Unit: "connections", Quota: quota("1/day")}, "nobody has logged in"},
		"bad rate":        {Rule{Name: "a", Rate: RateSpec{Per: -1}, Burst: 3, Quota: quota("5000/day"), Unit: "distinct-clients"}, "at most 4096"},
		"no limit":        {Rule{Name: "a"}, "neither a rate nor a quota"},
		"key":             {Rule{Name: "a", Key: []string{"user"}, Quota: quota("1/day")}, `unknown key "user"`},
		"key twice":       {Rule{Name: "a", Key: []string{"login", "login"}, Quota: quota("1/day")}, "there already"},
		"unit":            {Rule{Name: "a", Unit: "mails", Quota: quota("1/day")}, `unknown value "mails"`},
		"action":          {Rule{Name: "a", Action: "drop", Quota: quota("1/day")}, `unknown action "drop"`},
		"clients":         {Rule{Name: "a", Clients: "x", Quota: quota("1/day")}, `unknown value "x"`},
		"burst":           {Rule{Name: "a", Burst: 5, Quota: quota("1/day")}, "belongs to a rate"},
		"distinct rate":   {Rule{Name: "a", Unit: "distinct-clients", Rate: rate("1/1h")}, "by quotas only"},
		"distinct many":   {Rule{Name: "a", Unit: "distinct-clients", Quota: quota("5000/day")}, "at most 4096"},
		"bytes":           {Rule{Name: "a", Unit: "bytes", Key: []string{"recipient"}, Rate: rate("1M/1h")}, "several recipients"},
		"reply":           {Rule{Name: "a", Reply: "450 4.7.1 {who}", Quota: quota("1/day")}, "who"},
		"reply of reject": {Rule{Name: "a", Action: "reject", Reply: "450 4.7.1 x", Quota: quota("1/day")}, "limit.rule[0].reply"},
		"warn":            {Rule{Name: "a", Warn: 101, Quota: quota("1/day")}, "0 to 100"},
		"skip":            {Rule{Name: "a", Skip: []string{"192.0.2.0/99"}, Quota: quota("1/day")}, "limit.rule[0].skip"},
	} {
		var fs conf.Faults
		c := rules(tt.rule)
		if c.Validate("limit", &fs); len(fs) == 0 || !strings.Contains(fs.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, fs, tt.want)
		}
	}
	var fs conf.Faults
	c := rules(Rule{Name: "a", Quota: quota("1/day")}, Rule{Name: "a", Quota: quota("1/day")})
	if c.Validate("limit", &fs); !strings.Contains(fs.Error(), "is the name of rule 1, too") {
		t.Error(fs)
	}
}

func FuzzSpecs(f *testing.F) {
	for _, s := range []string{"200/1h", "10Mi/1d", "5/week", "9223372036854775807/1s", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var r RateSpec
		if r.UnmarshalText([]byte(s)) == nil {
			if n := r.interval(r.Units); n <= 0 || n > maxInterval {
				t.Errorf("%q: %d", s, n)
			}
			var again RateSpec
			if text, _ := r.MarshalText(); again.UnmarshalText(text) != nil || again.Units != r.Units {
				t.Errorf("%q became %q", s, text)
			}
		}
		var q QuotaSpec
		if q.UnmarshalText([]byte(s)) == nil {
			if start, end := q.period(noon); !end.After(start) {
				t.Errorf("%q: %v to %v", s, start, end)
			}
		}
	})
}

// The mark is under 3 microseconds with the embedded store.
func BenchmarkFiveLimits(b *testing.B) {
	s, err := bolt.Open(func() store.Config {
		c := store.DefaultConfig()
		c.Path = filepath.Join(b.TempDir(), "state.db")
		return c
	}(), zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(context.Background()) //nolint:errcheck // only a benchmark
	var five []Rule
	for i, key := range []string{"client", "network", "login", "sender", "recipient-domain"} {
		five = append(five, Rule{Name: fmt.Sprint("r", i), Key: []string{key}, Unit: "recipients", Rate: rate("1G/1s")})
	}
	c, err := New(rules(five...), Options{
		Store: s, Admin: store.SpaceOf(s, store.MeterSpace), Raises: store.SpaceOf(s, "limit-raise"), Log: zap.NewNop(), Registry: prometheus.NewRegistry(),
	}, nil)
	if err != nil {
		b.Fatal(err)
	}
	instances := make([]string, 1<<16)
	for i := range instances {
		instances[i] = fmt.Sprintf("%x.1.0", i)
	}
	// With DATA asked about, too, it is kept what a message has taken.
	for _, stage := range []policy.Stage{policy.StageRcpt, policy.StageData} {
		b.Run(stage.String(), func(b *testing.B) {
			req := rcpt("x", "a@example.com")
			req.Listener = stage.String()
			if stage == policy.StageData {
				if _, err := c.Evaluate(b.Context(), at(stage, rcpt("x", ""))); err != nil {
					b.Fatal(err)
				}
				req.Listener = "l"
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				req.Instance, req.Time = instances[n%len(instances)], req.Time.Add(10*time.Microsecond)
				n++
				if _, err := c.Evaluate(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A rate that refuses one more shows itself as full, whatever has flowed off.
func TestUnitsOfARate(t *testing.T) {
	a := ask{perUnit: 20e6}
	a.Kind = meter.Rate
	for n, want := range map[int64]int64{0: 0, 1: 0, 1_000_000: 1, 20_000_000: 1, 20_000_100: 2, 59_900_000: 3, 60_000_000: 3} {
		if got := a.units(n); got != want {
			t.Errorf("%d µs: %d of it, want %d", n, got, want)
		}
	}
}
