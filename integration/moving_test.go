package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/policytest"
	"postern/internal/postgreytest"
	"postern/internal/redistest"
)

const movingConfig = `
hostname = "mx.example.com"
[dns]
timeout = "1s"
attempts = 1
[spf]
[greylist]
known_after = 5
keep = "3000d"
[chains.inbound]
checks = ["spf", "greylist"]
`

func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err, "(make deps installs it)")
	}
}

func asks(t *testing.T, c *policytest.Client, client, name, sender, recipient string) string {
	t.Helper()
	return c.MustAsk(t, policytest.Sample().With("client_address", client, "client_name", name, "reverse_client_name", name,
		"helo_name", "mail.example.org", "sender", sender, "recipient", recipient, "sasl_username", "", "ccert_subject", ""))
}

// Whom a real postgrey knows is not delayed by a postern that has taken over
// its databases; whom it does not know still is.
func TestFromPostgrey(t *testing.T) {
	t.Parallel()
	need(t, "db_dump")
	grey := postgreytest.Start(t)
	now := time.Now().Unix()
	instance := 0
	ask := func(ago int64, client, sender, recipient string) {
		instance++
		if _, err := grey.Ask(policytest.Attrs{
			{"request", "smtpd_access_policy"}, {"client_address", client}, {"client_name", "mail.example.org"}, {"sender", sender},
			{"recipient", recipient}, {"instance", strconv.Itoa(instance)}, {"policy_test_time", strconv.FormatInt(now-ago, 10)},
		}); err != nil {
			t.Fatal(err)
		}
	}
	ask(90_000, "192.0.2.7", "a@example.org", "b@example.com") // passes
	ask(89_000, "192.0.2.7", "a@example.org", "b@example.com")
	ask(90_000, "198.51.100.9", "c@example.net", "b@example.com") // passes, without a name
	ask(89_000, "198.51.100.9", "c@example.net", "b@example.com")
	ask(500, "192.0.2.7", "waits@other.example", "b@example.com")
	for i := range int64(5) { // earns its place in the auto-whitelist, an hour apart
		to := "r" + strconv.FormatInt(i, 10) + "@example.com"
		ask(200_000-8_000*i, "203.0.113.5", "s@busy.example", to)
		ask(200_000-8_000*i-400, "203.0.113.5", "s@busy.example", to)
	}
	grey.Stop()

	dns := dnstest.Start(t)
	dns.Add("7.2.0.192.in-addr.arpa. 300 IN PTR mail.example.org.", "mail.example.org. 300 IN A 192.0.2.7",
		"5.113.0.203.in-addr.arpa. 300 IN PTR out.busy.example.", "out.busy.example. 300 IN A 203.0.113.5")
	spf(dns, "busy.example", "v=spf1 ip4:203.0.113.5 -all")
	d := newDaemon(t, withDNS(movingConfig, dns))
	d.start()
	out := d.run("import", "postgrey", "--clients", filepath.Join(grey.Dir, "postgrey_clients.db"), filepath.Join(grey.Dir, "postgrey.db"))
	// 7 triplets and 3 clients, of which the one without a name says nothing.
	if !strings.Contains(out, "10 records of mail that had passed: 9 taken") || !strings.Contains(out, "1  not taken: had not passed") ||
		!strings.Contains(out, "1  not taken: nothing by which the client could be known here") {
		t.Errorf("said:\n%s", out)
	}
	c := d.dial()
	for _, tt := range []struct{ client, name, sender, recipient, want string }{
		{"192.0.2.7", "mail.example.org", "a@example.org", "b@example.com", "DUNNO"},
		{"192.0.2.9", "mail2.example.org", "a@example.org", "b@example.com", "DUNNO"}, // of the same pool
		{"198.51.100.200", "unknown", "c@example.net", "b@example.com", "DUNNO"},
		{"203.0.113.5", "out.busy.example", "new@busy.example", "other@example.com", "DUNNO"}, // has credit
		{"192.0.2.7", "mail.example.org", "waits@other.example", "b@example.com", "DEFER_IF_PERMIT"},
		{"192.0.2.7", "mail.example.org", "a@example.org", "somebody@example.com", "DEFER_IF_PERMIT"},
		{"198.51.100.9", "unknown", "new@busy.example", "b@example.com", "DEFER_IF_PERMIT"},
	} {
		if got := asks(t, c, tt.client, tt.name, tt.sender, tt.recipient); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%+v: %s", tt, got)
		}
	}
	if again := d.run("import", "postgrey", "--clients", filepath.Join(grey.Dir, "postgrey_clients.db"), filepath.Join(grey.Dir, "postgrey.db")); !strings.Contains(again, "10 records of mail that had passed: 0 taken") {
		t.Errorf("again:\n%s", again)
	}
}

// What Postfix's own verify(8) has found out is known without a probe.
func TestFromVerifyCache(t *testing.T) {
	t.Parallel()
	in := inner(t, "ann@example.com")
	before := startPostfix(t, false, "virtual_mailbox_domains =", "relay_domains = example.com", "relay_transport = relay:"+in.nextHop(), "disable_dns_lookups = yes",
		"address_verify_map = btree:$data_directory/verify_cache", "address_verify_poll_count = 50", "address_verify_poll_delay = 1s", "smtpd_recipient_restrictions = reject_unverified_recipient",
		"unverified_recipient_reject_code = 550")
	s := before.dial("192.0.2.7", "mail.example.org")
	rcpt, _ := s.mail("x@example.org", "ann@example.com", "nobody@example.com")
	matches(t, "known", rcpt[0], `^250 `)
	matches(t, "unknown", rcpt[1], `^550 5\.1\.1 `)
	before.stop()
	in.stop() // nobody can be asked any more
	var said strings.Builder
	postmap := exec.Command("postmap", "-s", "btree:"+filepath.Join(before.dir, "data/verify_cache"))
	postmap.Stderr = &said
	listed, err := postmap.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	d := newDaemon(t, fmt.Sprintf(verifying, in.nextHop(), 550))
	d.start()
	dump := filepath.Join(d.dir, "verify.txt")
	listed = append(listed, "else@other.example\t0:1700000000:1700000000:250 Ok\n"...)
	if err := os.WriteFile(dump, listed, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, "import", d.run("import", "verify", dump), "3 addresses with a result: 2 taken", "1  not taken: no route")
	gate := gateway(t, d.socket(), in.nextHop())
	rcpt, _ = gate.dial("192.0.2.7", "mail.example.org").mail("x@example.org", "ann@example.com", "nobody@example.com")
	matches(t, "known, from the import", rcpt[0], `^250 `)
	matches(t, "unknown, from the import", rcpt[1], `^550 5\.1\.1 `)
	expect(t, "list", d.run("verify", "list"), "imported")
}

// State goes from the embedded store to Redis and back, and nobody is delayed
// again, nor let in early.
func TestExport(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	const config = `
hostname = "mx.example.com"
[greylist]
delay = "1h"
known_age = "0s"
known_after = 1
[chains.inbound]
checks = ["greylist"]
`
	d := newDaemon(t, config)
	d.start()
	c := d.dial()
	asks(t, c, "192.0.2.7", "mail.example.org", "waits@example.org", "b@example.com")
	d.run("greylist", "expect", "--to", "x@example.com")
	log := filepath.Join(d.dir, "mail.log")
	stamp := time.Now().Add(-24 * time.Hour).UTC().Format(time.RFC3339)
	lines := ""
	for _, rest := range []string{"smtpd[1]: 0A1B2C3D4E: client=mx.known.example[198.51.100.7]", "qmgr[1]: 0A1B2C3D4E: from=<k@known.example>, size=1, nrcpt=1 (queue active)",
		"lmtp[1]: 0A1B2C3D4E: to=<b@example.com>, relay=x, status=sent (ok)", "qmgr[1]: 0A1B2C3D4E: removed"} {
		lines += stamp + " mx postfix/" + rest + "\n"
	}
	if err := os.WriteFile(log, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := d.run("greylist", "learn", log); !strings.Contains(out, "1 recipients learned") {
		t.Fatal(out)
	}
	first := filepath.Join(d.dir, "first.jsonl")
	write := func(d *daemon, name string) string {
		text := d.run("export")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return text
	}
	text := write(d, first)
	d.stop()

	in := newDaemon(t, config+"[store]\nkind = \"redis\"\n[store.redis]\naddrs = [\""+server.Addr()+"\"]\n")
	in.start()
	if out := in.run("import", "postern", first); !strings.Contains(out, "greylisting: 3 taken, 0 known already") || !strings.Contains(out, "other values: 1 taken") {
		t.Errorf("into Redis:\n%s\nof\n%s", out, text)
	}
	if out := in.run("import", "postern", first); !strings.Contains(out, "greylisting: 0 taken, 3 known already") || !strings.Contains(out, "other values: 0 taken, 1 known") {
		t.Errorf("again:\n%s", out)
	}
	judge := func(d *daemon) {
		t.Helper()
		c := d.dial()
		if got := asks(t, c, "192.0.2.7", "mail.example.org", "waits@example.org", "b@example.com"); !strings.HasPrefix(got, "DEFER_IF_PERMIT") || strings.Contains(got, "3600 seconds") {
			t.Errorf("who has waited: %s", got)
		}
		for _, tt := range [][3]string{{"198.51.100.7", "mx.known.example", "k@known.example"}, {"198.51.100.8", "mx.known.example", "other@known.example"}} {
			if got := asks(t, c, tt[0], tt[1], tt[2], "b@example.com"); got != "DUNNO" {
				t.Errorf("%v: %s", tt, got)
			}
		}
		if got := asks(t, c, "203.0.113.9", "unknown", "any@where.example", "x@example.com"); got != "DUNNO" {
			t.Errorf("what is expected: %s", got)
		}
	}
	judge(in)
	second := filepath.Join(d.dir, "second.jsonl")
	write(in, second)
	in.stop()

	back := newDaemon(t, config)
	back.start()
	if out := back.run("import", "postern", second); !strings.Contains(out, " taken, 0 known already") {
		t.Errorf("back:\n%s", out)
	}
	judge(back)

	for content, want := range map[string]string{
		"":     "empty: the line",
		"{}\n": `line 1: not what "postern export" prints`,
		`{"postern_state":"postern","version":9}` + "\n":                                              "line 1: written by a newer version",
		strings.SplitAfter(text, "\n")[0] + "{\"greylist\":}\n":                                       "line 2, character 13:",
		strings.SplitAfter(text, "\n")[0] + "{\"value\":{\"space\":\"no\",\"key\":\"k\"}}\n":          `line 2: space "no" is not known`,
		strings.SplitAfter(text, "\n")[0] + "{\"greylist\":{\"kind\":\"triplet\",\"match\":\"x\"}}\n": `line 2: an entry without`,
	} {
		bad := filepath.Join(d.dir, "bad.jsonl")
		if err := os.WriteFile(bad, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := back.try("import", "postern", bad); err == nil || !strings.Contains(out, want) {
			t.Errorf("%q: %v %s", content, err, out)
		}
	}
}
