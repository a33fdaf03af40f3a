package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/aggregate"
	"postern/internal/dnstest"
	"postern/internal/redistest"
)

// reportConfig has auth judge mail at the milter door, and report about it.
const reportConfig = `
hostname = "mx.example.com"
[dns]
timeout = "1s"
attempts = 1
servfail_ttl = "1s"
[chains.inbound]
checks = ["access"]
[auth]
mode = "enforce"
[milter]
listen = ["unix:{dir}/milter.sock"]
envelope = true
[dmarc_reports]
enabled = true
email = "reports@example.com"
organization = "Example & Co."
`

// reportDNS publishes domains that want reports.
func reportDNS(t *testing.T) *dnstest.Server {
	t.Helper()
	dns := dnstest.Start(t)
	for name, text := range map[string]string{
		"strict.example":        "v=spf1 ip4:192.0.2.7 -all",
		"_dmarc.strict.example": "v=DMARC1; p=reject; pct=100; rua=mailto:box@example.com,mailto:spy@example.net",
		// example.com takes reports for it, example.net does not say so.
		"strict.example._report._dmarc.example.com": "v=DMARC1",
		"_dmarc.second.example":                     "v=DMARC1; p=none; aspf=s; rua=mailto:other@example.com!1m",
		"second.example._report._dmarc.example.com": "v=DMARC1;",
		"_dmarc.silent.example":                     "v=DMARC1; p=none",
		"_dmarc.unwanted.example":                   "v=DMARC1; p=none; rua=mailto:box@example.net",
	} {
		spf(dns, name, text)
	}
	return dns
}

// readReport has a mail read by `postern dmarc read`, whose summary is returned.
func (d *daemon) readReport(mail string) (sum aggregate.Summary) {
	d.t.Helper()
	file := filepath.Join(d.t.TempDir(), "mail")
	if err := os.WriteFile(file, []byte(mail), 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(d.run("dmarc", "read", "--json", file)), &sum); err != nil {
		d.t.Fatal(err)
	}
	return sum
}

// boxed returns how many mails a mailbox has.
func (p *postfix) boxed(box string) int {
	files, _ := filepath.Glob(filepath.Join(p.dir, "mail", box, "new/*")) // the pattern is good
	return len(files)
}

// Mail passes and fails; the owners of the domains read the same numbers in a
// mail, which Postfix has delivered.
func TestDMARCReports(t *testing.T) {
	t.Parallel()
	dns := reportDNS(t)
	sign := dkimSigner(t, dns, "sel", "strict.example")
	d := newDaemon(t, withDNS(reportConfig, dns))
	d.start()
	p := startPostfix(t, false, d.milters("tempfail"), boxes)
	hand := func(client, sender, message, want string) {
		t.Helper()
		_, data := p.dial(client, "").hand(sender, message, "nobody@example.com")
		matches(t, sender, data, "^"+want+" ")
	}
	for range 3 {
		hand("192.0.2.7", "ann@strict.example", letter("ann@strict.example"), "250")
	}
	hand("2001:db8::9", "list@lists.example", sign(letter("ann@strict.example")), "250")
	hand("198.51.100.1", "eve@evil.example", letter("ann@strict.example"), "550")
	hand("198.51.100.1", "", letter("ann@strict.example"), "550")
	hand("198.51.100.1", "eve@evil.example", letter("bob@second.example"), "250")
	hand("198.51.100.1", "eve@evil.example", letter("bob@silent.example"), "250")
	hand("198.51.100.1", "eve@evil.example", letter("bob@unwanted.example"), "250")

	// What was counted survives the daemon.
	d.stop()
	d.env = append(d.env, "MAIL_CONFIG="+p.config)
	d.start()
	hand("192.0.2.7", "ann@strict.example", letter("ann@strict.example"), "250")
	today := time.Now().UTC().Format(time.DateOnly)
	list := d.run("dmarc", "report", "list")
	matches(t, "list", list, `(?m)^`+today+` +strict\.example +7 +4 +counting `)
	if strings.Contains(list, "silent.example") {
		t.Errorf("nobody wants it:\n%s", list)
	}
	expect(t, "show", d.run("dmarc", "report", "show", "strict.example"), "<org_name>Example &amp; Co.</org_name>", "<source_ip>2001:db8::9</source_ip>", "<selector>sel</selector>")

	// A dry run sends nothing and says where it would go.
	expect(t, "dry run", d.run("dmarc", "report", "send", "--dry-run", "--day", today),
		today+" strict.example: 7 messages, ", "would go to box@example.com; not to spy@example.net (its domain does not want reports for strict.example)",
		today+" unwanted.example: 1 messages, would go to nobody; not to box@example.net")
	if n := p.boxed("box"); n != 0 {
		t.Fatalf("%d mails after a dry run", n)
	}

	expect(t, "send", d.run("dmarc", "report", "send", "--unfinished", "--day", today), "strict.example: 7 messages, sent to box@example.com", "second.example: 1 messages, sent to other@example.com")
	mail := p.takeFrom("box")
	for _, want := range []string{
		"\nReturn-Path: <reports@example.com>\n", "\nFrom: reports@example.com\n", "\nTo: box@example.com\n", "\nAuto-Submitted: auto-generated\n", "\nSubject: Report Domain: strict.example\n",
	} {
		if !strings.Contains("\n"+mail, want) {
			t.Errorf("no %q in\n%s", want, mail)
		}
	}
	sum := d.readReport(mail)
	if sum.Reports != 1 || sum.Count != 7 || sum.Pass != 5 || len(sum.Sources) != 3 {
		t.Errorf("%+v", sum)
	}
	for i, want := range []aggregate.Source{
		{IP: "198.51.100.1", Count: 2, Rejected: 2},
		{IP: "192.0.2.7", Count: 4, Pass: 4, SPF: 4},
		{IP: "2001:db8::9", Count: 1, Pass: 1, DKIM: 1},
	} {
		if i >= len(sum.Sources) {
			break
		}
		s := sum.Sources[i]
		if s.IP != want.IP || s.Domain != "strict.example" || s.Count != want.Count || s.Pass != want.Pass || s.SPF != want.SPF || s.DKIM != want.DKIM || s.Rejected != want.Rejected {
			t.Errorf("%+v, want %+v", s, want)
		}
	}
	if sum := d.readReport(p.takeFrom("other")); sum.Count != 1 || sum.Pass != 0 || sum.Sources[0].Rejected != 0 || sum.Sources[0].Domain != "second.example" {
		t.Errorf("%+v", sum)
	}
	list = d.run("dmarc", "report", "list", "unwanted.example")
	matches(t, "list", list, `(?m)^`+today+` +unwanted\.example +1 +1 +unwanted `)
	if n := p.boxed("net"); n != 0 {
		t.Errorf("%d mails to who has not asked", n)
	}
	// The reports were not judged, and are in no report.
	if n := len(d.decisions("sender", "reports@example.com")); n != 0 {
		t.Error("the reports were judged")
	}
	p.noComplaint()
}

// Two gateways with one Redis send one report of what both have seen; it is
// tried again when it could not be sent.
func TestGatewaysShareDMARCReports(t *testing.T) {
	t.Parallel()
	dns := reportDNS(t)
	r := redistest.Start(t)
	config := withDNS(reportConfig, dns) + fmt.Sprintf("[store]\nkind = \"redis\"\n[store.redis]\naddrs = [%q]\n", r.Addr())
	today := time.Now().UTC().Format(time.DateOnly)
	daemons, postfixes := make([]*daemon, 2), make([]*postfix, 2)
	for i := range daemons {
		daemons[i] = newDaemon(t, config)
		postfixes[i] = startPostfix(t, false, daemons[i].milters("tempfail"), boxes)
		daemons[i].env = append(daemons[i].env, "MAIL_CONFIG="+postfixes[0].config)
		daemons[i].start()
		for range 2 {
			_, data := postfixes[i].dial("192.0.2.7", "").hand("ann@strict.example", letter("ann@strict.example"), "nobody@example.com")
			matches(t, "passes", data, "^250 ")
		}
	}
	one, two := daemons[0], daemons[1]
	one.eventually("both are counted", func() bool {
		two.run("dmarc", "report", "list") // stores what waits
		return strings.Contains(strings.Join(strings.Fields(one.run("dmarc", "report", "list", "strict.example")), " "), today+" strict.example 4 1 counting")
	})
	done := make(chan string, 2)
	for _, d := range daemons {
		go func() {
			out, err := d.try("dmarc", "report", "send", "--unfinished", "--day", today)
			if err != nil {
				out += err.Error()
			}
			done <- out
		}()
	}
	said := <-done + <-done
	if n := strings.Count(said, "4 messages, sent to box@example.com"); n != 1 {
		t.Errorf("sent %d times:\n%s", n, said)
	}
	if sum := one.readReport(postfixes[0].takeFrom("box")); sum.Count != 4 || sum.Pass != 4 {
		t.Errorf("%+v", sum)
	}
	expect(t, "again", two.run("dmarc", "report", "send", "--unfinished", "--day", today), "4 messages, was sent before to box@example.com")
	if n := postfixes[0].boxed("box"); n != 0 {
		t.Errorf("%d mails too many", n)
	}
}
