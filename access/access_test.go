package access

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"postern/internal/admintest"
	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func request(client, name, sender, rcpt string) *policy.Request {
	req := &policy.Request{
		Time: time.Now(), Stage: policy.StageRcpt, Client: policy.Client{Name: name},
		Sender: mailaddr.Parse(sender), Recipient: mailaddr.Parse(rcpt), Helo: "helo.example",
	}
	if client != "" {
		req.Client.Addr = netip.MustParseAddr(client)
	}
	return req
}

func check(t *testing.T, edit func(*Config)) *Check {
	t.Helper()
	cfg := DefaultConfig()
	edit(&cfg)
	var fs conf.Faults
	cfg.Validate("access", &fs)
	if err := fs.Err(); err != nil {
		t.Fatal(err)
	}
	c, err := New(cfg, zaptest.NewLogger(t), prometheus.NewRegistry(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestVerdicts(t *testing.T) {
	c := check(t, func(cfg *Config) {
		cfg.Allow = []string{"inline:192.0.2.0/24", "inline:198.51.100.7 skip=rbl", "inline:from:friend@example.org", "inline:203.0.113.1"}
		cfg.Deny = []string{
			"inline:192.0.2.66 you know why", "inline:from:spam.example", "inline:198.51.100.0/24 451 4.7.1 come back, {client}",
			"inline:203.0.113.1", "inline:10.0.0.0/8 dunno", "inline:0.0.0.0/1 defer",
		}
		cfg.Tables = []string{
			"inline:to:trap@example.com redirect spamtrap@example.com", "inline:to:hold@example.com hold", "inline:to:void@example.com discard",
			"inline:to:tag@example.com prepend X-Tagged: yes", "inline:203.0.113.1 hold", "inline:to:relay@example.com permit",
		}
		cfg.Reply = "550 5.7.1 {name} [{client}] {helo} {sender} {recipient}"
	})
	other := "198.18.0.1"
	for _, tt := range []struct {
		name string
		req  *policy.Request
		want policy.Verdict
	}{
		{"nobody knows it", request("2001:db8::1", "", "a@example.net", "b@example.com"), policy.Verdict{}},
		{"allowed", request("192.0.2.1", "", "", ""), policy.Verdict{
			Action: policy.Allow, Reason: "access-allowed", Skip: []string{"rbl", "client", "spf", "greylist"}, Detail: "access.allow[0]:1 192.0.2.0/24",
		}},
		{"a closer deny goes before a wide allow", request("192.0.2.66", "", "", ""), policy.Verdict{
			Action: policy.Reject, Reason: "access-denied", Reply: policy.Reply{Code: 554, Enhanced: "5.7.1", Text: "you know why"}, Detail: "access.deny[0]:1 192.0.2.66",
		}},
		{"a closer allow goes before a wide deny, with its own checks to skip", request("198.51.100.7", "", "", ""), policy.Verdict{
			Action: policy.Allow, Reason: "access-allowed", Skip: []string{"rbl"}, Detail: "access.allow[1]:1 198.51.100.7",
		}},
		{"an entry's own code", request("198.51.100.8", "", "", ""), policy.Verdict{
			Action: policy.Defer, Reason: "access-deferred", Reply: policy.Reply{Code: 451, Enhanced: "4.7.1", Text: "come back, 198.51.100.8"}, Detail: "access.deny[2]:1 198.51.100.0/24",
		}},
		{"the section's reply", request(other, "mx.example", "x@spam.example", "b@example.com"), policy.Verdict{
			Action: policy.Reject, Reason: "access-denied", Detail: "access.deny[1]:1 from:spam.example",
			Reply: policy.Reply{Code: 550, Enhanced: "5.7.1", Text: "mx.example [198.18.0.1] helo.example x@spam.example b@example.com"},
		}},
		{"a stranger's text is made printable", request(other, "", "\x00\xff\r\n@spam.example", ""), policy.Verdict{
			Action: policy.Reject, Reason: "access-denied", Detail: "access.deny[1]:1 from:spam.example",
			Reply: policy.Reply{Code: 550, Enhanced: "5.7.1", Text: "unknown [198.18.0.1] helo.example ?? @spam.example"},
		}},
		{"allow goes before deny", request("203.0.113.1", "", "", ""), policy.Verdict{
			Action: policy.Allow, Reason: "access-allowed", Skip: []string{"rbl", "client", "spf", "greylist"}, Detail: "access.allow[3]:1 203.0.113.1",
		}},
		{"an exception from a deny list", request("10.1.2.3", "", "", ""), policy.Verdict{Reason: "access-dunno", Detail: "access.deny[4]:1 10.0.0.0/8"}},
		{"deferred without a text", request("100.0.0.1", "", "", ""), policy.Verdict{
			Action: policy.Defer, Reason: "access-deferred", Detail: "access.deny[5]:1 0.0.0.0/1",
			Reply: policy.Reply{Code: 450, Enhanced: "4.7.1", Text: "Access denied for now, please try again later"},
		}},
		{"redirect", request(other, "", "", "trap@example.com"), policy.Verdict{
			Action: policy.Redirect, Reason: "access-redirect", Arg: "spamtrap@example.com", Detail: "access.tables[0]:1 to:trap@example.com",
		}},
		{"hold", request(other, "", "", "hold@example.com"), policy.Verdict{Action: policy.Hold, Reason: "access-hold", Detail: "access.tables[1]:1 to:hold@example.com"}},
		{"discard", request(other, "", "", "void@example.com"), policy.Verdict{Action: policy.Discard, Reason: "access-discard", Detail: "access.tables[2]:1 to:void@example.com"}},
		{"prepend", request(other, "", "", "tag@example.com"), policy.Verdict{
			Reason: "access-prepend", Add: []policy.Header{{Name: "X-Tagged", Value: "yes"}}, Detail: "access.tables[3]:1 to:tag@example.com",
		}},
		{"permit", request(other, "", "", "relay@example.com"), policy.Verdict{Action: policy.Permit, Reason: "access-permitted", Detail: "access.tables[5]:1 to:relay@example.com"}},
	} {
		got, err := c.Evaluate(t.Context(), tt.req)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}

func TestHitsAndEntries(t *testing.T) {
	c := check(t, func(cfg *Config) {
		cfg.Deny = []string{"inline:192.0.2.1 owner=ann no", "inline:192.0.2.2 until=2001-01-01"}
	})
	req := request("192.0.2.1", "", "", "")
	req.Probe = new(policy.Probe)
	if _, err := c.Evaluate(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if len(req.Probe.Notes) != 1 || req.Probe.Notes[0].Source != "access.deny[0]:1" {
		t.Errorf("notes %+v", req.Probe.Notes)
	}
	req.DryRun = true
	for range 2 {
		if _, err := c.Evaluate(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	var got []Entry
	c.Entries(time.Now(), func(e Entry) bool { got = append(got, e); return true })
	if len(got) != 2 || got[0].Hits != 1 || got[0].Owner != "ann" || got[0].Kind != "deny" || got[0].Action != "reject" || !got[1].Expired {
		t.Errorf("entries %+v", got)
	}
	n := 0
	if c.Entries(time.Now(), func(Entry) bool { n++; return false }); n != 1 {
		t.Errorf("%d entries after it was told to stop", n)
	}

	next, err := New(c.cfg, zaptest.NewLogger(t), prometheus.NewRegistry(), c)
	if err != nil {
		t.Fatal(err)
	}
	if st := next.Status(); st.Deny[0].Hits != 1 || len(st.Allow) != 0 || len(st.Tables) != 0 {
		t.Errorf("after a reload: %+v", st)
	}
}

func TestStartWatchesTheFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deny.list")
	if err := os.WriteFile(path, []byte("192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := check(t, func(cfg *Config) {
		cfg.Deny = []string{path}
		cfg.ReloadInterval = conf.Duration(100 * time.Millisecond)
	})
	c.Start()
	defer c.Stop()
	if err := os.WriteFile(path, []byte("192.0.2.2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		v, err := c.Evaluate(t.Context(), request("192.0.2.2", "", "", ""))
		if err == nil && v.Action == policy.Reject {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the edit never came into force")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestCalls(t *testing.T) {
	c := check(t, func(cfg *Config) {
		cfg.Allow, cfg.Deny = []string{"inline:192.0.2.1", "inline:192.0.2.2"}, []string{"inline:192.0.2.3 owner=ann no"}
	})
	a := Admin{admintest.Serve(t, c.Calls())}
	for most, want := range map[int]string{9: "192.0.2.1 192.0.2.2 192.0.2.3", 2: "192.0.2.1 192.0.2.2"} {
		var got []string
		if err := a.List(t.Context(), func(e Entry) bool {
			got = append(got, e.Pattern)
			return len(got) < most
		}); err != nil || strings.Join(got, " ") != want {
			t.Errorf("%v, %v, want %s", got, err, want)
		}
	}
	var b strings.Builder
	c.Status().WriteStatus(&b, time.Now())
	if want := "list      allow: inline:192.0.2.1: 1 entries, 0 hits\nlist      allow: inline:192.0.2.2: 1 entries, 0 hits\nlist      deny: inline:192.0.2.3 owner=ann no: 1 entries, 0 hits\n"; b.String() != want {
		t.Errorf("status %q", b.String())
	}
}

func TestIdle(t *testing.T) {
	for name, edit := range map[string]func(*Config){
		"allow": func(c *Config) { c.Allow = []string{"inline:192.0.2.1"} }, "deny": func(c *Config) { c.Deny = []string{"inline:192.0.2.1"} },
		"tables": func(c *Config) { c.Tables = []string{"inline:192.0.2.1 ok"} }, "": func(*Config) {},
	} {
		if got := check(t, edit).Idle(); got != (name == "") {
			t.Errorf("idle with %q: %v", name, got)
		}
	}
}

func TestBoundsOfTheSettings(t *testing.T) {
	for _, tt := range []struct {
		timeout, reload time.Duration
		ok              bool
	}{
		{10 * time.Millisecond, 100 * time.Millisecond, true},
		{time.Minute, time.Hour, true},
		{10*time.Millisecond - 1, time.Second, false},
		{time.Minute + 1, time.Second, false},
		{time.Second, 100*time.Millisecond - 1, false},
		{time.Second, time.Hour + 1, false},
	} {
		cfg := DefaultConfig()
		cfg.Timeout, cfg.ReloadInterval = conf.Duration(tt.timeout), conf.Duration(tt.reload)
		var fs conf.Faults
		if cfg.Validate("access", &fs); (fs == nil) != tt.ok {
			t.Errorf("timeout = %v, reload_interval = %v: %v", tt.timeout, tt.reload, fs)
		}
	}
}

func TestWarnings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "regexp")
	if err := os.WriteFile(path, []byte("/a/ OK\n/(/ OK\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Lenient, cfg.Tables = true, []string{"regexp:" + path}
	if warnings := cfg.Warnings("access"); len(warnings) != 1 || warnings[0].Line != 2 {
		t.Errorf("%v", warnings)
	}
	cfg.Tables = append(cfg.Tables, "/nowhere") // a fault, which is told elsewhere
	if warnings := cfg.Warnings("access"); len(warnings) != 0 {
		t.Errorf("%v", warnings)
	}
}

func TestValidate(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Allow = []string{"inline:192.0.2.1 skip=rbl,nonsense", "/nowhere"}
	cfg.Deny = []string{"inline:192.0.2.1 ok"}
	cfg.Tables = []string{"inline:192.0.2.1 something"}
	cfg.Skip = []string{"rbl", "rlb"}
	cfg.Reply = "450 4.7.1 later"
	cfg.Timeout, cfg.ReloadInterval = 1, 1
	var fs conf.Faults
	cfg.Validate("access", &fs)
	text := fs.Error()
	for _, want := range []string{
		"access.allow[0]: skip: there is no check \"nonsense\"", "access.allow[1]: /nowhere cannot be read",
		"access.deny[0]: allow cannot stand in access.deny", "access.tables[0]: \"something\" is not an action",
		"access.skip[1]: there is no check \"rlb\"", "access.reply: reply code 450: must be 5xx", "access.timeout: ", "access.reload_interval: ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if _, err := New(cfg, zaptest.NewLogger(t), prometheus.NewRegistry(), nil); err == nil {
		t.Error("a check was made of it")
	}
}

func BenchmarkEvaluate(b *testing.B) {
	cfg := DefaultConfig()
	cfg.Allow = []string{"inline:198.51.100.0/24", "inline:.example.net"}
	cfg.Deny = []string{"inline:203.0.113.0/24", "inline:from:spam.example"}
	c, err := New(cfg, zaptest.NewLogger(b), prometheus.NewRegistry(), nil)
	if err != nil {
		b.Fatal(err)
	}
	req := request("192.0.2.1", "mail.example.org", "a@example.org", "b@example.com")
	b.ReportAllocs()
	for b.Loop() {
		if v, _ := c.Evaluate(b.Context(), req); v.Action != policy.Continue {
			b.Fatal(v)
		}
	}
}
