package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/redistest"
	"postern/internal/smtptest"
)

// inner starts a Postfix that holds the mailboxes of example.com.
func inner(t *testing.T, mailboxes ...string) *postfix {
	t.Helper()
	table := filepath.Join(shortDir(t), "mailboxes")
	var b strings.Builder
	for _, m := range mailboxes {
		fmt.Fprintf(&b, "%s box/\n", m)
	}
	if err := os.WriteFile(table, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return startPostfix(t, false, "myhostname = inner.example.com", "virtual_mailbox_maps = texthash:"+table)
}

// gateway starts a Postfix that relays example.com to another, asking a
// daemon about recipients.
func gateway(t *testing.T, socket, hop string) *postfix {
	t.Helper()
	return startPostfix(t, false, append(restrictions("unix:"+socket),
		"virtual_mailbox_domains =", "relay_domains = example.com", "relay_transport = relay:"+hop, "disable_dns_lookups = yes")...)
}

func (p *postfix) nextHop() string { return "[127.0.0.1]:" + strconv.Itoa(p.port) }

const verifying = `
hostname = "gate.example.org"
[chains.inbound]
checks = ["verify"]
[verify]
temporary_expire = "1s"
[verify.callout]
down_after = 2
down_pause = "500ms"
[[verify.route]]
domains = ["example.com"]
next_hop = "%s"
reject_code = %d
`

func TestVerifyThroughPostfix(t *testing.T) {
	t.Parallel()
	in := inner(t, "ann@example.com", "bob@example.com", "carl@example.com")
	d := newDaemon(t, fmt.Sprintf(verifying, in.nextHop(), 450))
	d.start()
	gate := gateway(t, d.socket(), in.nextHop())

	s := gate.dial("192.0.2.7", "mail.example.org")
	rcpt, data := s.mail("x@example.org", "ann@example.com", "nobody@example.com")
	matches(t, "known", rcpt[0], `^250 `)
	matches(t, "unknown", rcpt[1], `^450 4\.1\.1 <nobody@example\.com>: Recipient address rejected: no such mailbox \[ref `)
	matches(t, "the message", data, `^250 `)
	if m := in.messages(1); !strings.Contains(m[0], "for <ann@example.com>") {
		t.Errorf("delivered:\n%s", m[0])
	}
	line := d.decided("reason", "verify-unknown")
	if !strings.Contains(fmt.Sprint(line["detail"]), "550 5.1.1") {
		t.Errorf("log line %v", line)
	}
	expect(t, "verify list", d.run("verify", "list"), "ann@example.com", "known", "nobody@example.com", "unknown")
	expect(t, "verify", d.run("verify", "bob@example.com"), "C: MAIL FROM:<double-bounce@gate.example.org>", "C: RCPT TO:<bob@example.com>", "S: 250 2.1.5 Ok", "KNOWN")
	if strings.Contains(in.log(), "from=<double-bounce@gate.example.org>") && strings.Contains(in.log(), "to=<bob@example.com>") {
		t.Error("a probe became a message")
	}

	d.configure(fmt.Sprintf(verifying, in.nextHop(), 550))
	d.run("reload")
	rcpt, _ = s.mail("x@example.org", "nobody@example.com")
	matches(t, "unknown, reject_code = 550", rcpt[0], `^550 5\.1\.1 `)

	// The next hop goes: who is known is taken and waits in the queue.
	in.stop()
	rcpt, data = s.mail("x@example.org", "bob@example.com", "nobody@example.com", "carl@example.com")
	matches(t, "known, next hop down", rcpt[0], `^250 `)
	matches(t, "unknown from the cache, next hop down", rcpt[1], `^550 5\.1\.1 `)
	matches(t, "not in the cache, next hop down", rcpt[2], `^450 4\.1\.1 .*not verified yet`)
	matches(t, "the message", data, `^250 `)
	d.eventually("the next hop is seen to be down", func() bool {
		s.mail("x@example.org", fmt.Sprintf("u%d@example.com", time.Now().UnixNano()))
		return strings.Contains(d.run("verify", "next-hops"), "DOWN")
	})

	in.command("start")
	d.eventually("it is asked again when it is back", func() bool {
		rcpt, _ := s.mail("x@example.org", "carl@example.com")
		return strings.HasPrefix(rcpt[0], "250 ")
	})
	expect(t, "purge", d.run("verify", "purge", "nobody@example.com"), "1 addresses forgotten")
	if out, err := d.try("verify", "show", "nobody@example.com"); err == nil {
		t.Errorf("still remembered: %s", out)
	}
	rcpt, _ = s.mail("x@example.org", "nobody@example.com")
	matches(t, "after the purge", rcpt[0], `^550 5\.1\.1 `)
}

// TestVerifyNoLoop points a gateway at itself: it says so, and asks no more.
func TestVerifyNoLoop(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port for the next hop, known later
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close() // nobody is there yet
	d := newDaemon(t, fmt.Sprintf(verifying, "[127.0.0.1]:"+strconv.Itoa(l.Addr().(*net.TCPAddr).Port), 450))
	d.start()
	gate := gateway(t, d.socket(), "[127.0.0.1]:1")
	// By its own name it would be seen at the greeting; by another, its probe
	// comes back as a question.
	for _, tt := range [][2]string{
		{"mx.example.com", `^450 `},
		{"alias.example.org", `^250 `}, // the gateway takes what it relays: it cannot know better
	} {
		host, want := tt[0], tt[1]
		d.configure(strings.Replace(fmt.Sprintf(verifying, gate.nextHop(), 450), `"gate.example.org"`, `"`+host+`"`, 1))
		d.run("reload")
		rcpt, _ := gate.dial("192.0.2.7", "").mail("x@example.org", "ann-"+host+"@example.com")
		matches(t, host, rcpt[0], want)
	}
	own := 0
	for _, line := range d.decisions("reason", "verify-own-probe") {
		own++
		if !strings.HasPrefix(fmt.Sprint(line["sender"]), "double-bounce@") {
			t.Errorf("%v", line)
		}
	}
	if own == 0 || own > 10 {
		t.Errorf("%d of our own probes came back", own)
	}
}

func TestVerifyManyUnknownRecipients(t *testing.T) {
	t.Parallel()
	hop := smtptest.Start(t).Know("ann@example.com")
	d := newDaemon(t, fmt.Sprintf(verifying, hop.NextHop(), 550))
	d.start()
	gate := gateway(t, d.socket(), "[127.0.0.1]:1")
	before := d.resident()
	const sessions, each = 5, 2000
	var wg sync.WaitGroup
	var mu sync.Mutex
	replies := map[string]int{}
	for n := range sessions {
		s := gate.dial("192.0.2.66", "")
		wg.Go(func() {
			if err := s.PrintfLine("MAIL FROM:<x@example.org>"); err != nil {
				t.Error(err)
				return
			}
			if _, _, err := s.ReadResponse(250); err != nil {
				t.Error(err)
				return
			}
			for i := range each {
				if err := s.PrintfLine("RCPT TO:<u%d-%d@example.com>", n, i); err != nil {
					t.Error(err)
					return
				}
				code, _, err := s.ReadResponse(0)
				if err != nil && code == 0 {
					t.Error(err)
					return
				}
				mu.Lock()
				replies[strconv.Itoa(code)]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if replies["250"] > 0 || replies["550"] == 0 || replies["450"] == 0 {
		t.Errorf("replies %v", replies)
	}
	// harvest_limit is 100; some may have been under way.
	if n := hop.Count("RCPT"); n > 150 {
		t.Errorf("%d RCPT reached the next hop for %d unknown recipients of one client", n, sessions*each)
	}
	if hop.Most() > 5 {
		t.Errorf("%d connections to the next hop at once", hop.Most())
	}
	if grown := d.resident() - before; grown > 80<<20 {
		t.Errorf("the daemon has grown by %d MB", grown>>20)
	}
	rcpt, _ := gate.dial("192.0.2.7", "").mail("x@example.org", "ann@example.com")
	matches(t, "another client", rcpt[0], `^250 `)
	d.decided("reason", "verify-harvest")
}

func TestVerifySharedByTwoGateways(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	hop := smtptest.Start(t).Know("ann@example.com")
	hop.Latency(200 * time.Millisecond)
	config := fmt.Sprintf(verifying, hop.NextHop(), 450) + fmt.Sprintf("\n[store]\nkind = \"redis\"\n[store.redis]\naddrs = [%q]\n", server.Addr())
	gates := []*daemon{newDaemon(t, config), newDaemon(t, config)}
	for _, d := range gates {
		d.start()
	}
	ask := func(d *daemon, recipient string) string {
		return d.dial().MustAsk(t, sample("192.0.2.7", "x@example.org", recipient))
	}
	var wg sync.WaitGroup
	for i := range 40 {
		c := gates[i%2].dial()
		wg.Go(func() {
			if a, err := c.Ask(sample("192.0.2.7", "x@example.org", "ann@example.com")); err != nil || a != "DUNNO" {
				t.Errorf("%q, %v", a, err)
			}
		})
	}
	wg.Wait()
	// One address and one that nobody has, to see whether the hop takes all.
	if n := hop.Count("MAIL"); n != 1 {
		t.Errorf("%d transactions over two gateways for one address", n)
	}
	expect(t, "unknown", ask(gates[0], "nobody@example.com"), "450 4.1.1")
	asked := hop.Count("MAIL")
	expect(t, "unknown at the other", ask(gates[1], "nobody@example.com"), "450 4.1.1")
	if hop.Count("MAIL") != asked {
		t.Error("the other gateway asked again")
	}
	hop.Know("nobody@example.com")
	expect(t, "purge", gates[1].run("verify", "purge", "@example.com"), "2 addresses forgotten")
	expect(t, "after the other's purge", ask(gates[0], "nobody@example.com"), "DUNNO")

	// Without Redis there still is an answer.
	server.Hang()
	expect(t, "Redis hangs", ask(gates[0], "ann@example.com"), "DUNNO")
	expect(t, "Redis hangs", ask(gates[0], "stranger@example.com"), "450 4.1.1")
	server.Continue()
}
