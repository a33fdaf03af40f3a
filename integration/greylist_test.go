package integration

import (
	"fmt"
	"strings"
	"testing"

	"postern/internal/dnstest"
)

const balancedConfig = `
hostname = "mx.example.com"
[dns]
timeout = "1s"
attempts = 1
[client]
[spf]
[rbl]
lists = ["bl.example*3", "minor.example", "other.example"]
[greylist]
profile = "balanced"
delay = "1s"
long_delay = "4s"
`

// What speaks against a client decides how long a real Postfix tells it to
// wait, in the default chain: nothing, one mark, two, a burst. Who is listed by
// the end of a long delay is refused, though the caches know of nothing.
func TestBalanced(t *testing.T) {
	t.Parallel()
	dns := dnstest.Start(t)
	for _, zone := range []string{"bl.example", "minor.example", "other.example"} {
		list(dns, zone)
	}
	spf(dns, "soft.example", "v=spf1 ~all")
	dns.Add("good.example. 300 IN MX 10 mail.good.example.", "mail.good.example. 300 IN A 192.0.2.7",
		"soft.example. 300 IN MX 10 mail.good.example.",
		"20.113.0.203.minor.example. 300 IN A 127.0.0.2",
		"21.113.0.203.minor.example. 300 IN A 127.0.0.2", "21.113.0.203.other.example. 300 IN A 127.0.0.2")
	for i := range 8 {
		dns.Add(fmt.Sprintf("b%d.example. 300 IN MX 10 mail.good.example.", i))
	}
	d := newDaemon(t, withDNS(balancedConfig, dns))
	d.start()
	p := startPostfix(t, false, append(restrictions("unix:"+d.socket()), boxes)...)
	const to = "box@example.com"
	const name, helo = "mail.good.example", "mail.good.example"
	var s *session
	ask := func(addr, reverse, helo, sender string) string {
		s = p.as(s, addr, reverse, reverse != "")
		s.cmd(250, "EHLO %s", helo)
		return s.rcpt(sender, to)
	}
	waits := func(n int) string {
		if n == 0 {
			return `^250 `
		}
		return fmt.Sprintf(`^450 4\.2\.0 .*Greylisted, please try again in %d seconds`, n)
	}
	type contact struct {
		what, addr, reverse, helo, sender string
		wait                              int
	}
	contacts := []contact{
		{"nothing", "203.0.113.1", name, helo, "a@good.example", 0},
		{"no name", "203.0.113.2", "", helo, "b@good.example", 1},
		{"a generic name", "203.0.113.3", "dsl-203-0-113-3.isp.example", helo, "c@good.example", 1},
		{"an unknown HELO name", "203.0.113.4", name, "nowhere.example", "d@good.example", 1},
		{"no SPF pass", "203.0.113.5", name, helo, "e@soft.example", 1},
		{"on a list", "203.0.113.20", name, helo, "f@good.example", 1},
		{"on two lists", "203.0.113.21", name, helo, "g@good.example", 4},
		{"no name, and an unknown HELO name", "203.0.113.6", "", "nowhere.example", "h@good.example", 4},
		{"no name, and no SPF pass", "203.0.113.7", "", helo, "i@soft.example", 4},
		{"no name, and an unknown HELO name, listed later", "203.0.113.8", "", "nowhere.example", "j@good.example", 4},
	}
	for i := range 4 {
		wait := 0
		if i == 3 {
			wait = 4
		}
		contacts = append(contacts, contact{fmt.Sprintf("correspondence %d of a network", i+1), "198.51.100.7", name, helo, fmt.Sprintf("a@b%d.example", i), wait})
	}
	for _, c := range contacts {
		matches(t, c.what, ask(c.addr, c.reverse, c.helo, c.sender), waits(c.wait))
	}
	expect(t, "explain", d.run("explain", "--client", "203.0.113.9", "--helo", "nowhere.example", "--sender", "new@good.example", "--recipient", to),
		`client-helo-unresolved: suspicion "helo"`, `client-reverse-missing: suspicion "name"`, "4s (long_delay)")
	expect(t, "explain a burst", d.run("explain", "--client", "198.51.100.9", "--client-name", name, "--helo", helo, "--sender", "a@b5.example", "--recipient", to),
		"more than 3 correspondences within 6h from 198.51.100.0/24", "4s (long_delay)")

	dns.Add("8.113.0.203.bl.example. 300 IN A 127.0.0.2")
	for _, c := range contacts {
		if c.wait == 0 {
			continue
		}
		reply := ""
		d.eventually(c.what+" is told something else", func() bool {
			reply = ask(c.addr, c.reverse, c.helo, c.sender)
			return !strings.HasPrefix(reply, "450 4.2.0 ")
		})
		want := `^250 `
		if c.addr == "203.0.113.8" {
			want = `^554 5\.7\.1 .*203\.0\.113\.8\] blocked using bl\.example`
		}
		matches(t, c.what+", later", reply, want)
	}
	line := d.decided("check", "greylist", "reason", "rbl-listed")
	if line["client"] != "203.0.113.8" || !strings.Contains(fmt.Sprint(line["detail"]), "asked anew after") {
		t.Errorf("%v", line)
	}
	if got := d.run("greylist", "list", "--kind", "triplet", "--sender", "j@good.example"); strings.Contains(got, "j@") {
		t.Errorf("who was refused counts as passed: %s", got)
	}
	expect(t, "metrics", d.metrics(), `postern_greylist_asked_anew_total{result="refused"} 1`, "postern_greylist_bursts_total 1", `postern_greylist_grades_total{delay="long_delay"} 5`)
	// The answer is known to the check of the lists, too.
	matches(t, "listed, again", ask("203.0.113.8", name, helo, "k@good.example"), `^554 5\.7\.1 `)
	if line := d.decided("check", "rbl", "reason", "rbl-listed"); line["client"] != "203.0.113.8" {
		t.Errorf("%v", line)
	}
}
