package dmarcreport

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/internal/aggregate"
	"postern/internal/conf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// values is a store that can fail.
type values struct {
	mu   sync.Mutex
	at   map[string]string
	fail error
}

func (v *values) Load(_ context.Context, key string) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.at[key], v.fail
}

func (v *values) Swap(_ context.Context, key, old, next string, _ time.Time) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fail != nil || v.at[key] != old {
		return false, v.fail
	}
	v.at[key] = next
	return true, nil
}

func (v *values) Each(_ context.Context, yield func(key, value string) bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for range 2 { // a value can come twice
		for k, text := range v.at {
			if !yield(k, text) {
				return v.fail
			}
		}
	}
	return v.fail
}

// gateway is a reporter whose sendmail writes into a directory.
type gateway struct {
	*Reporter
	dir string
	txt map[string][]string
	dns error
}

func newGateway(t *testing.T, store Store, edit func(*Config)) *gateway {
	t.Helper()
	g := &gateway{dir: t.TempDir(), txt: map[string][]string{}}
	program := filepath.Join(g.dir, "sendmail")
	script := "#!/bin/sh\n[ ! -e " + g.dir + "/refuse ] || { echo no; exit 75; }\necho \"$*\" >>" + g.dir + "/args\ncat >\"" + g.dir + "/mail.$$\"\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Enabled, cfg.Email, cfg.Sendmail = true, "dmarc@mx.example.net", program
	if edit != nil {
		edit(&cfg)
	}
	var fs conf.Faults
	if cfg.Validate("dmarc_reports", &fs); fs.Err() != nil {
		t.Fatal(fs.Err())
	}
	var err error
	g.Reporter, err = New(cfg, Options{Hostname: "mx.example.net", Store: store, Log: zap.NewNop(), Registry: prometheus.NewRegistry(), LookupTXT: func(_ context.Context, name string) ([]string, error) {
		return g.txt[name], g.dns
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// mails returns what was sent, and to whom.
func (g *gateway) mails(t *testing.T) (texts []string, args string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(g.dir, "mail.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		text, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(text))
	}
	said, err := os.ReadFile(filepath.Join(g.dir, "args"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return texts, string(said)
}

var (
	noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	next = time.Date(2026, 11, 27, 7, 0, 0, 0, time.UTC) // all are due
	p    = aggregate.Policy{Domain: "example.org", ADKIM: "r", ASPF: "r", P: "reject", SP: "reject", Pct: "100", FO: "0"}
)

func record(ip, from string) aggregate.Record {
	return aggregate.Record{
		Row:         aggregate.Row{SourceIP: ip, Count: 1, Evaluated: aggregate.Evaluated{Disposition: "none", DKIM: "pass", SPF: "fail"}},
		Identifiers: aggregate.Identifiers{EnvelopeFrom: "bounce.example.org", HeaderFrom: from},
		Results:     aggregate.Results{DKIM: []aggregate.DKIM{{Domain: "example.org", Selector: "s", Result: "pass"}}, SPF: []aggregate.SPF{{Domain: "bounce.example.org", Scope: "mfrom", Result: "none"}}},
	}
}

const rua = "mailto:rua@example.org"

// Two gateways count, one of them reports, once.
func TestFleet(t *testing.T) {
	store := &values{at: map[string]string{}}
	a, b := newGateway(t, store, nil), newGateway(t, store, nil)
	for i := range 5 {
		a.Add(noon.Add(time.Duration(i)*time.Minute), p, rua, record("192.0.2.7", "example.org"))
		b.Add(noon, p, rua, record("192.0.2.7", "example.org"))
		b.Add(noon, p, rua, record("2001:db8::7", "a.example.org"))
	}
	a.Add(noon, aggregate.Policy{Domain: "quiet.example"}, "mailto:", record("192.0.2.7", "quiet.example"))
	a.Add(noon.Add(day), p, rua, record("192.0.2.7", "example.org")) // of the next day
	for range 2 {
		a.flushSoon(t.Context())
		b.flushSoon(t.Context())
	}
	if err := a.sendDue(t.Context(), noon.Add(12*time.Hour)); err != nil { // midnight: others may have more
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 5 {
		for _, g := range []*gateway{a, b} {
			wg.Go(func() {
				if err := g.sendDue(t.Context(), next); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	mailsA, argsA := a.mails(t)
	mailsB, argsB := b.mails(t)
	mails := append(mailsA, mailsB...)
	if len(mails) != 1 || argsA+argsB != "-i -f dmarc@mx.example.net -- rua@example.org\n" {
		t.Fatalf("%d mails, %q", len(mails), argsA+argsB)
	}
	for _, want := range []string{
		"From: dmarc@mx.example.net\nTo: rua@example.org\nSubject: Report Domain: example.org\n Submitter: mx.example.net\n Report-ID: <", "\nAuto-Submitted: auto-generated\n",
		"filename=\"mx.example.net!example.org!1795651200!1795737599!", "for example.org, 2026-11-26 (UTC): 15 messages.",
	} {
		if !strings.Contains(mails[0], want) {
			t.Errorf("%q is not in\n%s", want, mails[0])
		}
	}
	for line := range strings.SplitSeq(mails[0], "\n") {
		if len(line) > 200 || strings.Contains(line, "\r") {
			t.Errorf("a line of %d", len(line))
		}
	}
	var got *aggregate.Report
	aggregate.Read("mail", strings.NewReader(mails[0]), func(_ string, r *aggregate.Report) { got = r }, func(err error) { t.Error(err) })
	if got.Published != p || len(got.Records) != 2 || got.Records[0].Row.Count != 10 || got.Records[1].Row.Count != 5 || got.Metadata.Organization != "mx.example.net" ||
		got.Metadata.Range != (aggregate.Range{Begin: 1795651200, End: 1795737599}) {
		t.Errorf("%+v", got)
	}
	list, err := a.list(t.Context(), "2026-11-26", "")
	if err != nil || len(list) != 1 || list[0].State != "sent" || !reflect.DeepEqual(list[0].To, []string{"rua@example.org"}) || list[0].Messages != 15 {
		t.Errorf("%+v %v", list, err)
	}
}

// A report that cannot be sent is tried again an hour later, until it is too old.
func TestFailures(t *testing.T) {
	store := &values{at: map[string]string{}}
	g := newGateway(t, store, nil)
	g.Add(noon, p, rua, record("192.0.2.7", "example.org"))
	store.fail = errors.New("no store")
	g.flushSoon(t.Context())
	if g.Status().Waiting != 1 {
		t.Error("a row is lost")
	}
	g.Add(noon, p, rua, record("192.0.2.7", "example.org"))
	store.fail = nil
	g.flushSoon(t.Context())
	refuse := filepath.Join(g.dir, "refuse")
	if err := os.WriteFile(refuse, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	send := func(at time.Time) int {
		t.Helper()
		if err := g.sendDue(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		mails, _ := g.mails(t)
		return len(mails)
	}
	if n := send(next); n != 0 {
		t.Error(n)
	}
	list, err := g.list(t.Context(), "", "")
	if err != nil || list[0].State != "failed" || list[0].Messages != 2 || !strings.Contains(list[0].Detail, "exit status 75: no") {
		t.Errorf("%+v %v", list, err)
	}
	if err := os.Remove(refuse); err != nil {
		t.Fatal(err)
	}
	if n := send(next.Add(59 * time.Minute)); n != 0 {
		t.Error("too early")
	}
	if n := send(next.Add(time.Hour)); n != 1 {
		t.Error("not tried again")
	}
	if n := send(next.Add(2 * time.Hour)); n != 1 {
		t.Error("sent twice")
	}
	// Who dies in the middle leaves it to another, later.
	g.Add(noon.Add(day), p, rua, record("192.0.2.7", "example.org"))
	g.flushSoon(t.Context())
	store.at[stateKey("2026-11-27", "example.org")] = (&state{What: "busy", At: next.Add(day + lease).Unix(), Why: "other.example"}).String()
	if n := send(next.Add(day)); n != 1 {
		t.Error("another is at it")
	}
	if n := send(next.Add(day + lease)); n != 2 {
		t.Error("the other has died")
	}
	g.Add(noon.Add(2*day), p, rua, record("192.0.2.7", "example.org"))
	g.flushSoon(t.Context())
	if n := send(next.Add(10 * day)); n != 2 {
		t.Error("it is too old")
	}
}

// To whom reports go.
func TestDestinations(t *testing.T) {
	for _, tt := range []struct {
		rua     string
		txt     map[string][]string
		to      []string
		skipped int
	}{
		{"mailto:a@example.org", nil, []string{"a@example.org"}, 0},
		{"MAILTO:a@Mail.Example.ORG , mailto:b@example.org!10m,mailto:c@example.org", nil, []string{"a@Mail.Example.ORG", "b@example.org"}, 0},
		{"mailto:a@other.example", nil, nil, 1},
		{"mailto:a@other.example", map[string][]string{"example.org._report._dmarc.other.example": {"v=spf1 -all", "v=DMARC1"}}, []string{"a@other.example"}, 0},
		{"mailto:a@other.example", map[string][]string{"example.org._report._dmarc.other.example": {"v=DMARC1; rua=mailto:b@other.example,mailto:c@third.example"}}, []string{"b@other.example"}, 0},
		{"mailto:a@other.example", map[string][]string{"example.org._report._dmarc.other.example": {"x; v=DMARC1"}}, nil, 1},
		{"https://example.org/x,mailto:,mailto:-x@example.org,mailto:a b@example.org,mailto:\"x\"@example.org,mailto:x@[192.0.2.1]", nil, nil, 0},
		{"mailto:a%21b%2Cc@example.org", nil, nil, 0}, // a comma cannot be an argument
		{"mailto:a%21b@example.org?subject=x", nil, []string{"a!b@example.org"}, 0},
		{"mailto:a@example.org!10x,mailto:b@example.org!", nil, nil, 0},
		{"", nil, nil, 0},
	} {
		g := newGateway(t, &values{}, nil)
		for name, texts := range tt.txt {
			g.txt[name] = texts
		}
		v := g.verify(t.Context(), "example.org", tt.rua, 2)
		var to []string
		for _, d := range v.to {
			to = append(to, d.Address)
		}
		if !reflect.DeepEqual(to, tt.to) || len(v.skipped) != tt.skipped || len(v.failed) > 0 {
			t.Errorf("%s: %q %+v", tt.rua, to, v)
		}
	}
	for in, want := range map[string]int64{"10": 10, "2k": 2048, "10M": 10 << 20, "1g": 1 << 30, "1t": 1 << 40} {
		if n, ok := parseSize(in); n != want || !ok {
			t.Errorf("%s: %d", in, n)
		}
	}
	for _, bad := range []string{"", "k", "-1", "+1", "1.5m", "99999999999999999999", "9999999999g"} {
		if n, ok := parseSize(bad); ok {
			t.Errorf("%s: %d", bad, n)
		}
	}
}

// What is too large for a destination is not sent there, and without one the
// report is done.
func TestNobodyWantsIt(t *testing.T) {
	g := newGateway(t, &values{at: map[string]string{}}, nil)
	g.Add(noon, p, "mailto:a@example.org!1k,mailto:b@other.example", record("192.0.2.7", "example.org"))
	g.flushSoon(t.Context())
	for range 2 {
		if err := g.sendDue(t.Context(), next); err != nil {
			t.Fatal(err)
		}
	}
	list, err := g.list(t.Context(), "", "")
	if err != nil || list[0].State != "unwanted" || !strings.Contains(list[0].Detail, "b@other.example (its domain does not want reports for example.org)") || !strings.Contains(list[0].Detail, "it takes 1024") {
		t.Errorf("%+v %v", list, err)
	}
	if n := testutil.ToFloat64(g.metrics.sent.WithLabelValues("unwanted")); n != 1 {
		t.Error(n)
	}
	g.dns = errors.New("no answer")
	g.Add(noon.Add(day), p, "mailto:b@other.example", record("192.0.2.7", "example.org"))
	sent, err := g.sendNow(t.Context(), "2026-11-27", "", Request{DryRun: true})
	if err != nil || len(sent) != 0 { // not stored yet
		t.Errorf("%+v %v", sent, err)
	}
	g.flushSoon(t.Context())
	if sent, err = g.sendNow(t.Context(), "2026-11-27", "", Request{DryRun: true}); err != nil || len(sent) != 1 || !reflect.DeepEqual(sent[0].Skipped, []string{"b@other.example (no answer)"}) || sent[0].Bytes == 0 {
		t.Errorf("%+v %v", sent, err)
	}
	if sent, err = g.sendNow(t.Context(), "2026-11-27", "", Request{}); err != nil || sent[0].State != "failed" {
		t.Errorf("%+v %v", sent, err)
	}
}

// However many strangers there are, what is kept has bounds.
func TestBounds(t *testing.T) {
	g := newGateway(t, &values{at: map[string]string{}}, func(c *Config) {
		c.MaxRows, c.MaxDomains, c.Exclude = 3, 2, []string{"no.example", ".nor.example"}
	})
	for i := range 10 {
		g.Add(noon, p, rua, record(fmt.Sprint("192.0.2.", i), "example.org"))
		g.Add(noon, p, rua, record("192.0.2.1", "example.org"))
		g.Add(noon, aggregate.Policy{Domain: fmt.Sprintf("d%d.example", i)}, rua, record("192.0.2.1", "x"))
		g.Add(noon, aggregate.Policy{Domain: "no.example"}, rua, record("192.0.2.1", "x"))
		g.Add(noon, aggregate.Policy{Domain: "a.nor.example"}, rua, record("192.0.2.1", "x"))
	}
	if s := g.Status(); s.Waiting != 4 || s.Domains != 2 {
		t.Errorf("%+v", s)
	}
	if n := testutil.ToFloat64(g.metrics.dropped); n != 7+9 {
		t.Errorf("%v were dropped", n)
	}
	g.Start()
	g.Stop()
	g.Stop()
	if s := g.Status(); s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
	off := newGateway(t, nil, func(c *Config) { c.Enabled = false })
	off.Add(noon, p, rua, record("192.0.2.1", "x"))
	off.Start()
	off.Stop()
	if _, _, err := off.asked("", ""); !errors.Is(err, errOff) || off.Status().Waiting != 0 {
		t.Error(err)
	}
}

// All reports of a day go out within spread, each at its own time.
func TestDue(t *testing.T) {
	g := newGateway(t, nil, nil)
	seen := map[time.Time]bool{}
	for i := range 100 {
		at := g.due("2026-11-26", hashOf(fmt.Sprintf("d%d.example", i)))
		if begin := dayOf("2026-11-27").Add(settle); at.Before(begin) || at.After(begin.Add(6*time.Hour)) {
			t.Error(at)
		}
		seen[at] = true
	}
	if len(seen) < 95 {
		t.Errorf("%d times", len(seen))
	}
}

func TestValidate(t *testing.T) {
	for want, edit := range map[string]func(*Config){
		"dmarc_reports.email: an address must be given: reports come from it":  func(c *Config) { c.Email = "" },
		`dmarc_reports.email: "-x@example.org" is no address that can be used`: func(c *Config) { c.Email = "-x@example.org" },
		"dmarc_reports.organization: at most 200":                              func(c *Config) { c.Organization = "a\nb" },
		"dmarc_reports.contact: at most 200":                                   func(c *Config) { c.Contact = strings.Repeat("x", 201) },
		`dmarc_reports.exclude[1]: "a@b" is no domain`:                         func(c *Config) { c.Exclude = []string{".example.org", "a@b"} },
		"dmarc_reports.max_destinations: 0 is out of range":                    func(c *Config) { c.MaxDestinations = 0 },
		"dmarc_reports.max_rows: 0 is out of range":                            func(c *Config) { c.MaxRows = 0 },
		"dmarc_reports.max_domains: 0 is out of range":                         func(c *Config) { c.MaxDomains = 0 },
		"dmarc_reports.spread: 21h is out of range":                            func(c *Config) { c.Spread = conf.Duration(21 * time.Hour) },
		"dmarc_reports.keep: 1h is out of range":                               func(c *Config) { c.Keep = conf.Duration(time.Hour) },
		"dmarc_reports.max_total: 0 is out of range":                           func(c *Config) { c.MaxTotal = 0 },
		`dmarc_reports.sendmail: "sendmail" is not an absolute path`:           func(c *Config) { c.Sendmail = "sendmail" },
	} {
		c := DefaultConfig()
		c.Enabled, c.Email = true, "a@example.org"
		edit(&c)
		var fs conf.Faults
		c.Validate("dmarc_reports", &fs)
		if len(fs) != 1 || !strings.HasPrefix(fs[0].Error(), want) {
			t.Errorf("%v, want %s", fs, want)
		}
	}
	c := DefaultConfig()
	var fs conf.Faults
	if c.Validate("x", &fs); len(fs) != 0 || c.WithoutAuth("x") != "" || c.WithoutMilter("x") != "" {
		t.Error(fs)
	}
	if c.Enabled = true; c.WithoutAuth("x") == "" || c.WithoutMilter("x") == "" {
		t.Error("no warning")
	}
}

func FuzzRUA(f *testing.F) {
	f.Add("mailto:a@example.org!10m,mailto:b%21c@example.org")
	f.Fuzz(func(t *testing.T, s string) {
		for _, d := range parseRUA(s) {
			if strings.ContainsAny(d.Address, " \n\r,<>\"") || d.Address[0] == '-' || d.Limit < 0 {
				t.Fatalf("%+v", d)
			}
		}
		accepts([]string{s})
		if kept := shorten(s); len(kept) > maxRUA || kept != "" && len(parseRUA(kept)) == 0 {
			t.Fatalf("%q", kept)
		}
	})
}

// One destination that cannot be told about now does not keep the report from
// the others, who do not get it twice.
func TestDestinationsFailAlone(t *testing.T) {
	g := newGateway(t, &values{at: map[string]string{}}, nil)
	g.Add(noon, p, "mailto:b@other.example,mailto:a@example.org", record("192.0.2.7", "example.org"))
	g.flushSoon(t.Context())
	g.dns = errors.New("no answer")
	send := func(at time.Time, want string) {
		t.Helper()
		if err := g.sendDue(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		_, args := g.mails(t)
		if got := strings.ReplaceAll(args, "-i -f dmarc@mx.example.net -- ", ""); got != want {
			t.Errorf("sent to %q, want %q", got, want)
		}
	}
	send(next, "a@example.org\n")
	if list, err := g.list(t.Context(), "", ""); err != nil || list[0].State != "failed" || list[0].Detail != "b@other.example (no answer)" || !reflect.DeepEqual(list[0].To, []string{"a@example.org"}) {
		t.Errorf("%+v %v", list, err)
	}
	g.dns = nil
	g.txt["example.org._report._dmarc.other.example"] = []string{"v=DMARC1"}
	send(next.Add(time.Hour), "a@example.org\nb@other.example\n")
	send(next.Add(3*time.Hour), "a@example.org\nb@other.example\n")
}

// What is sent of a day that is not over is not the report of that day.
func TestUnfinishedDay(t *testing.T) {
	g := newGateway(t, &values{at: map[string]string{}}, nil)
	g.Add(noon, p, rua, record("192.0.2.7", "example.org"))
	g.flushSoon(t.Context())
	all, err := g.reports(t.Context(), "", "example.org")
	if err != nil || len(all) != 1 {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true} { // once
		if s, taken, err := g.sendOne(t.Context(), all[0], noon.Add(time.Hour), false); err != nil || s.What != "sent" || taken != want {
			t.Errorf("%d: %+v %v %v", i, s, taken, err)
		}
	}
	g.Add(noon.Add(2*time.Hour), p, rua, record("192.0.2.7", "example.org"))
	g.flushSoon(t.Context())
	for range 2 {
		if err := g.sendDue(t.Context(), next); err != nil {
			t.Fatal(err)
		}
	}
	mails, _ := g.mails(t)
	ids, counts := map[string]bool{}, map[int64]bool{}
	for _, m := range mails {
		aggregate.Read("mail", strings.NewReader(m), func(_ string, r *aggregate.Report) {
			ids[r.Metadata.ID], counts[r.Records[0].Row.Count] = true, true
			if e := r.Metadata.Range.End; r.Records[0].Row.Count == 1 && e != noon.Add(time.Hour).Unix() {
				t.Error("it ends", e)
			}
		}, func(err error) { t.Error(err) })
	}
	if len(mails) != 2 || len(ids) != 2 || !counts[1] || !counts[2] {
		t.Errorf("%d mails, %v %v", len(mails), ids, counts)
	}
}

// Without sendmail one report is tried, and the others wait.
func TestNoSendmail(t *testing.T) {
	g := newGateway(t, &values{at: map[string]string{}}, func(c *Config) { c.Sendmail = "/nonexistent/sendmail" })
	for i := range 5 {
		q := p
		q.Domain = fmt.Sprintf("d%d.example", i)
		g.Add(noon, q, "mailto:x@"+q.Domain, record("192.0.2.7", q.Domain))
	}
	g.flushSoon(t.Context())
	if err := g.sendDue(t.Context(), next); err == nil {
		t.Error("no error")
	}
	if n := testutil.ToFloat64(g.metrics.sent.WithLabelValues("failed")); n != 1 {
		t.Errorf("%v were tried", n)
	}
}

// What strangers make long or many is cut, in memory and in the store.
func TestStrangersRecords(t *testing.T) {
	g := newGateway(t, &values{at: map[string]string{}}, func(c *Config) { c.MaxTotal = 10 })
	long := "mailto:a@example.org" + strings.Repeat(",mailto:a@example.org!10m", 5000)
	q := p
	q.FO = strings.Repeat("1:", 5000)
	for i := range 100 {
		q.Domain = fmt.Sprintf("d%d.example", i/5)
		g.Add(noon, q, long, record(fmt.Sprint("192.0.2.", i), q.Domain))
		g.Add(noon.Add(-day), q, long, record(fmt.Sprint("192.0.2.", i), q.Domain)) // around midnight
	}
	if s := g.Status(); s.Waiting != 10 || testutil.ToFloat64(g.metrics.dropped) != 190 {
		t.Errorf("%+v", s)
	}
	for _, w := range g.memory.waiting {
		if len(w.row.RUA) > maxRUA || w.row.Policy.FO != "0" {
			t.Errorf("%d bytes, %q", len(w.row.RUA), w.row.Policy.FO)
		}
	}
	g.Add(noon, q, "https://example.org/"+strings.Repeat("x", 2000)+",mailto:a@example.org", record("192.0.2.1", "x"))
	asked := 0
	g.lookup = func(context.Context, string) ([]string, error) { asked++; return nil, nil }
	many := ""
	for i := range 1000 {
		many += fmt.Sprintf("mailto:a@d%d.example,", i)
	}
	if g.verify(t.Context(), "example.org", many, 2); asked > maxURIs {
		t.Errorf("%d questions", asked)
	}
	// A reload keeps what waits, and what was counted.
	next, err := New(g.cfg, Options{Hostname: "mx.example.net", Store: g.store, Log: zap.NewNop()}, g.Reporter)
	if err != nil || next.Status().Waiting != 10 {
		t.Errorf("%+v %v", next.Status(), err)
	}
	next.Add(noon, q, rua, record("198.51.100.1", "x"))
	if next.Status().Waiting != 10 {
		t.Error("a reload makes room")
	}
}

// However many reports are late, a pass sends some; none is left out.
func TestBacklog(t *testing.T) {
	g := newGateway(t, &values{at: map[string]string{}}, nil)
	for i := range leastPass + 20 {
		q := p
		q.Domain = fmt.Sprintf("d%d.example", i)
		g.Add(noon, q, "mailto:x@other.example", record("192.0.2.7", q.Domain)) // nobody wants them
	}
	g.flushSoon(t.Context())
	for _, want := range []float64{leastPass, leastPass + 20, leastPass + 20} {
		if err := g.sendDue(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		if n := testutil.ToFloat64(g.metrics.sent.WithLabelValues("unwanted")); n != want {
			t.Errorf("%v, want %v", n, want)
		}
	}
}
