package app

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"postern/config"
	"postern/internal/dnstest"
	"postern/policy"
	"postern/resolver"
)

func loadText(t *testing.T, text string) *config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "postern.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, _, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// What docs/expect.md shows is met.
func TestExpectationsOfTheManual(t *testing.T) {
	manual, err := os.ReadFile("../docs/expect.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(manual), -1)
	if len(blocks) == 0 {
		t.Fatal("there is no example")
	}
	for _, b := range blocks {
		cfg := loadText(t, b[1])
		met, faults, err := Expectations(t.Context(), cfg, false)
		if err != nil || faults.Err() != nil || met != len(cfg.Expect) || met == 0 {
			t.Errorf("%d of %d are met: %v, %v", met, len(cfg.Expect), faults, err)
		}
	}
}

const rehearsed = `
hostname = "mx.example.com"
[milter]
listen = ["tcp:127.0.0.1:0"]
[spf.mail_from]
fail = "reject"
[chains.inbound]
checks = ["access", "client", "rbl", "spf", "limit", "verify", "greylist"]
[rbl]
lists = ["bl.example*3"]
[greylist]
profile = "strict"
[[verify.route]]
domains = ["example.com"]
next_hop = "[127.0.0.1]:1"
[[limit.rule]]
name = "burst"
key = ["login"]
clients = "authenticated"
rate = "5/1h"
burst = 5
notify = ["boss"]
[[limit.notify]]
name = "boss"
to = ["boss@example.com"]
[[headers.rules]]
name = "pills"
all = ["/^Subject:.*pills/"]
action = "REJECT no pills"
[[headers.rules]]
name = "tag"
all = ["/^Subject:.*offer/"]
action = "SUBJECT [offer]"
`

func TestExpectations(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"pills.eml": "Subject: pills\n\nx\n", "offer.eml": "From: a@example.org\nSubject: offer\n\nx\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	from := "client = \"192.0.2.1\"\nclient_name = \"mail.example.org\"\nsender = \"a@example.org\"\nrecipient = \"b@example.com\"\n"
	for _, tt := range []struct{ name, text, want string }{
		{"listed", from + "listed = [\"bl.example\"]\naction = \"reject\"\ncheck = \"rbl\"", ""},
		{"not listed", from + "action = \"reject\"\ncheck = \"rbl\"", "action reject was expected, it is defer"},
		{"SPF", from + "spf = \"fail\"\naction = \"reject\"\ncheck = \"spf\"\nreply = \"5.7.23\"", ""},
		{"a list that does not answer", from + "dns = [\"1.2.0.192.bl.example A timeout\"]\nretry_after = \"10m\"\naction = \"accept\"", ""},
		{"no HELO", from + "helo = \"\"\naction = \"reject\"\ncheck = \"client\"", ""},
		{"no MX", from + "dns = [\"example.org MX 0 .\"]\naction = \"reject\"\nreason = \"client-sender-null-mx\"", ""},
		{"unknown", from + "recipient_is = \"unknown\"\naction = \"defer\"\ncheck = \"verify\"", ""},
		{"cannot be told", from + "recipient_is = \"temporary\"\naction = \"defer\"\nreason = \"verify-temporary\"", ""},
		{"five", from + "login = \"ann\"\ntimes = 5\naction = \"accept\"", ""},
		{"six", from + "login = \"ann\"\ntimes = 6\naction = \"defer\"\ncheck = \"limit\"", ""},
		{"too early", from + "retry_after = \"1m\"\naction = \"defer\"\nreason = \"greylist-early-retry\"", ""},
		{"a message", from + "retry_after = \"10m\"\nmessage = \"" + dir + "/pills.eml\"\naction = \"reject\"\ncheck = \"headers\"\nreply = \"no pills\"", ""},
		{"a changed message", from + "retry_after = \"10m\"\nmessage = \"" + dir + "/offer.eml\"\naction = \"accept\"\nheader = [\"Subject: [offer] offer\", \"X-Greylist: delayed\"]", ""},
		{"an unchanged message", from + "retry_after = \"10m\"\nmessage = \"" + dir + "/pills.eml\"\naction = \"accept\"", "action accept was expected, it is reject (by headers"},
		{"a message that is not asked for", from + "message = \"" + dir + "/pills.eml\"\naction = \"defer\"\ncheck = \"greylist\"", ""},
	} {
		cfg := loadText(t, rehearsed+"[[expect]]\nname = \""+tt.name+"\"\n"+tt.text+"\n")
		met, faults, err := Expectations(t.Context(), cfg, false)
		if err != nil {
			t.Fatal(err)
		}
		if tt.want == "" && (met != 1 || len(faults) != 0) || tt.want != "" && (met != 0 || len(faults) != 1 || !strings.Contains(faults[0].Error(), tt.want)) {
			t.Errorf("%s: %d met, %v", tt.name, met, faults)
		}
		if tt.want != "" && (faults[0].File != cfg.Path || faults[0].Line == 0) {
			t.Errorf("%s: it has no place: %v", tt.name, faults)
		}
	}
}

// A live expectation asks the DNS servers, and only when they may be asked.
func TestLiveExpectation(t *testing.T) {
	dns := dnstest.Start(t)
	dns.Add("example.org. 60 IN TXT \"v=spf1 -all\"", "example.org. 60 IN MX 10 example.org.", "example.org. 60 IN A 192.0.2.9")
	cfg := loadText(t, rehearsed+"[dns]\nservers = [\""+dns.Addr()+"\"]\n[[expect]]\nlive = true\nclient = \"192.0.2.1\"\nsender = \"a@example.org\"\nrecipient = \"b@example.com\"\naction = \"reject\"\ncheck = \"spf\"\n")
	if met, faults, err := Expectations(t.Context(), cfg, false); met != 0 || len(faults) != 0 || err != nil {
		t.Error(met, faults, err)
	}
	if met, faults, err := Expectations(t.Context(), cfg, true); met != 1 || len(faults) != 0 || err != nil {
		t.Error(met, faults, err)
	}
}

// A reload that would break an expectation changes nothing.
func TestReloadKeepsExpectations(t *testing.T) {
	text := `
policy = { listen = ["tcp:127.0.0.1:0"] }
admin = { listen = "" }
store = { kind = "memory" }
greylist = { profile = "strict" }
`
	cfg := loadText(t, text)
	next := text + "[[expect]]\nclient = \"192.0.2.1\"\nsender = \"a@example.org\"\nrecipient = \"b@example.com\"\naction = "
	path := cfg.Path
	a, err := New(cfg, Options{Log: zap.NewNop(), Load: func() (*config.Config, error) {
		cfg, _, err := config.Load(path)
		return cfg, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	defer a.Stop(context.Background())
	for action, want := range map[string]string{`"accept"`: "action accept was expected, it is defer", `"defer"`: ""} {
		if err := os.WriteFile(path, []byte(next+action+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := a.Reload(t.Context())
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", action, err)
		}
	}
	// Nothing of it has come into the state of the daemon.
	if n := a.parts.store.Status().Entries; n != 0 {
		t.Errorf("%d entries", n)
	}
}

// nobody knows any name.
type nobody struct{}

func (nobody) Answer(_ context.Context, name, rrtype string) resolver.Recorded {
	return resolver.Recorded{Name: name, Type: rrtype}
}

// A rehearsal is apart from everything: no goroutine, no file, no look-up is
// left behind.
func TestRehearsalDecides(t *testing.T) {
	cfg := loadText(t, rehearsed)
	r, err := Rehearse(cfg, &Facts{DNS: nobody{}, Recipients: func(policy.Address) (string, string) { return "", "" }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var d policy.Decision
	req := &policy.Request{
		Time: time.Now(), Stage: policy.StageRcpt, Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1")}, Helo: "[192.0.2.1]", ESMTP: true,
		Recipient: policy.Address{Raw: "b@example.com", Local: "b", Domain: "example.com"},
	}
	r.Decide(t.Context(), req, &d)
	if len(d.Steps) == 0 || d.Degraded {
		t.Errorf("%+v", d)
	}
	for _, s := range d.Steps {
		if s.Check == "verify" && s.Verdict.Reason != "verify-not-asked" {
			t.Errorf("%+v", s)
		}
	}
}

// changing is a world that can be changed.
type changing struct {
	listed atomic.Bool
	asked  atomic.Int64
}

func (c *changing) Answer(_ context.Context, name, rrtype string) resolver.Recorded {
	r := resolver.Recorded{Name: name, Type: rrtype, TTL: 24 * time.Hour}
	if strings.HasSuffix(name, ".bl.example") && rrtype == "A" {
		c.asked.Add(1)
		if c.listed.Load() {
			r.Records = []string{"127.0.0.2"}
		}
	}
	return r
}

// By the clock of the requests answers are remembered for an hour, and the
// state for as long as it is in a daemon.
func TestRehearsalGoesByTheRequestsClock(t *testing.T) {
	cfg := loadText(t, `
hostname = "mx.example.com"
greylist = { profile = "strict" }
[chains.inbound]
checks = ["rbl", "greylist"]
[rbl]
lists = ["bl.example*3"]
`)
	world := new(changing)
	r, err := Rehearse(cfg, &Facts{DNS: world, Recipients: func(policy.Address) (string, string) { return "", "" }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	start := time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC)
	var d policy.Decision
	for _, tt := range []struct {
		after  time.Duration
		listed bool
		reason string
		asked  int64
	}{
		{0, false, "greylist-first-contact", 1},
		{10 * time.Minute, true, "greylist-first-pass", 1},
		{59 * time.Minute, true, "greylist-known-triplet", 1},
		{time.Hour, true, "rbl-listed", 2},
		{3 * time.Hour, false, "greylist-known-triplet", 3},
	} {
		world.listed.Store(tt.listed)
		r.Decide(t.Context(), &policy.Request{
			Time: start.Add(tt.after), Stage: policy.StageRcpt, Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1")}, Helo: "[192.0.2.1]",
			Sender: policy.Address{Raw: "a@example.org", Local: "a", Domain: "example.org"}, Recipient: policy.Address{Raw: "b@example.com", Local: "b", Domain: "example.com"},
		}, &d)
		if got := d.Steps[len(d.Steps)-1].Verdict.Reason; got != tt.reason || world.asked.Load() != tt.asked {
			t.Errorf("after %v: %s, asked %d times; %+v", tt.after, got, world.asked.Load(), d.Steps)
		}
	}
	if r.Err() != nil {
		t.Error(r.Err())
	}
}
