package integration

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/policytest"
	"postern/internal/redistest"
)

// base is a configuration without DNS lists and with a short delay.
const base = `
hostname = "mx.example.com"
[greylist]
delay = "1s"
`

func withDNS(config string, dns *dnstest.Server) string {
	if !strings.Contains(config, "[dns]\n") {
		config += "[dns]\n"
	}
	return strings.Replace(config, "[dns]\n", fmt.Sprintf("[dns]\nservers = [%q]\n", dns.Addr()), 1)
}

// list makes a zone that passes its test (RFC 5782 section 5).
func list(dns *dnstest.Server, zone string) {
	dns.Add(
		"2.0.0.127."+zone+". 300 IN A 127.0.0.2",
		"2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0."+zone+". 300 IN A 127.0.0.2",
	)
}

func expect(t *testing.T, what, got string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(got, p) {
			t.Errorf("%s: %q does not hold %q", what, got, p)
		}
	}
}

func sample(client, sender, recipient string) policytest.Attrs {
	return policytest.Sample().With("client_address", client, "client_name", "unknown", "reverse_client_name", "unknown",
		"sender", sender, "recipient", recipient)
}

func TestKillNineKeepsWhatIsOlderThanASecond(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, base)
	d.start()
	c := d.dial()
	for i := range 50 {
		expect(t, "first contact", c.MustAsk(t, sample("192.0.2.7", fmt.Sprintf("a%d@example.org", i), "b@example.com")), "DEFER_IF_PERMIT 4.2.0 ")
	}
	// Entries older than the flush interval must be there; twice that is sure.
	d.eventually("the flush", func() bool {
		return strings.Contains(d.run("--json", "status"), `"flushed"`)
	})
	time.Sleep(2 * time.Second)
	d.kill()
	d.start()
	c = d.dial()
	for i := range 50 {
		retry := sample("192.0.2.7", fmt.Sprintf("a%d@example.org", i), "b@example.com").With("instance", fmt.Sprint("retry.", i))
		expect(t, "retry after the crash", c.MustAsk(t, retry), "PREPEND X-Greylist: delayed ")
	}
	d.stop()
	d.start()
	expect(t, "after an orderly stop", d.run("greylist", "stats"), "triplets  50\n")
}

func TestDNSFaultsStopNoMail(t *testing.T) {
	t.Parallel()
	dns := dnstest.Start(t)
	list(dns, "bl.example")
	list(dns, "world.example")
	dns.Add("*.world.example. 300 IN A 127.0.0.2")         // lists everybody, so it fails its test
	dns.Add("1.0.0.127.world.example. 300 IN A 127.0.0.2") // the entry by which it does
	config := withDNS(`
[dns]
timeout = "200ms"
attempts = 2
servfail_ttl = "1s"
[rbl]
lists = ["bl.example*5", "world.example*5"]
list_timeout = "1s"
ask_private = true
[greylist]
mode = "off"
`, dns)
	d := newDaemon(t, config)
	d.start()
	c := d.dial()
	d.eventually("the list that lists the world is off", func() bool {
		return strings.Contains(d.run("status"), "world.example: off")
	})
	for i, fault := range []struct {
		name     string
		b        dnstest.Behavior
		degraded bool
	}{
		{"drops", dnstest.Drop, true},
		{"fails", dnstest.ServFail, true},
		{"refuses", dnstest.Refused, true},
		{"lies about the question", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieQuestion}}, true},
		{"sends garbage", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieGarbage}}, true},
		{"lies, then tells the truth", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieID, dnstest.LieGarbage}, Truth: true}, false},
		{"truncates", dnstest.Truncate, false},
		{"delays", dnstest.Behavior{Delay: 50 * time.Millisecond}, false},
	} {
		dns.BehaveUnder("bl.example", fault.b)
		sender := fmt.Sprintf("fault%d@example.org", i)
		expect(t, fault.name, c.MustAsk(t, sample(fmt.Sprintf("192.0.2.%d", 100+i), sender, "b@example.com")), "DUNNO")
		got := d.decided("sender", sender)
		if _, degraded := got["degraded"]; degraded != fault.degraded {
			t.Errorf("%s: %v", fault.name, got)
		}
		dns.BehaveUnder("bl.example", dnstest.Behavior{})
		time.Sleep(1100 * time.Millisecond) // failures are remembered for a second
	}
	dns.Add("99.2.0.192.bl.example. 300 IN A 127.0.0.2")
	d.eventually("the list counts again", func() bool {
		a, err := c.Ask(sample("192.0.2.99", "a@example.org", "b@example.com"))
		time.Sleep(300 * time.Millisecond)
		return err == nil && strings.HasPrefix(a, "554 5.7.1 ")
	})
	d.stop()

	// With on_error = "defer" the operator has it otherwise.
	dns.BehaveUnder("bl.example", dnstest.Drop)
	d.configure(strings.Replace(config, "[rbl]", "[rbl]\non_error = \"defer\"", 1))
	d.start()
	expect(t, "on_error", d.dial().MustAsk(t, sample("192.0.2.200", "a@example.org", "b@example.com")), "DEFER_IF_PERMIT 4.", "[ref ")
}

// While Redis is away the gateway goes on by what it has seen, and what it
// learns holds when Redis is back.
func TestRedisAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	d := newDaemon(t, base+fmt.Sprintf(`
[store]
kind = "redis"
path = "{dir}/state.db"
[store.redis]
addrs = [%q]
breaker_pause = "200ms"
cache = "0s"
`, server.Addr()))
	d.start()
	c := d.dial()
	ask := func(sender string) string { return c.MustAsk(t, sample("192.0.2.7", sender, "b@example.com")) }
	passes := func(what, sender string) {
		t.Helper()
		d.eventually(what, func() bool { return ask(sender) == "DUNNO" })
	}
	expect(t, "first contact", ask("known@example.org"), "DEFER_IF_PERMIT")
	passes("it passes", "known@example.org")
	for _, fault := range []struct {
		name        string
		begin, stop func()
	}{
		{"hangs", server.Hang, server.Continue},
		{"refuses", server.Stop, server.Restart},
	} {
		fault.begin()
		for range 10 {
			expect(t, fault.name, ask("known@example.org"), "DUNNO")
		}
		expect(t, fault.name, ask(fault.name+"@example.org"), "DEFER_IF_PERMIT 4.2.0 Greylisted")
		passes("it passes while Redis "+fault.name, fault.name+"@example.org")
		expect(t, fault.name+": status", d.run("status"), "NOT USABLE", "THIS GATEWAY GOES ON BY ITSELF")
		fault.stop()
		d.eventually("Redis is used again after it "+fault.name, func() bool { return strings.Contains(d.run("status"), "fallback: embedded") })
		expect(t, "what was learned while Redis "+fault.name, d.run("greylist", "list", "--kind", "triplet"), fault.name+"@example.org")
		expect(t, fault.name+": afterwards", ask(fault.name+"@example.org"), "DUNNO")
	}
	expect(t, "the log", d.log.String(), "this gateway goes on by its own", "the shared store is back")
	for _, line := range d.decisions("degraded", "true") {
		t.Errorf("degraded: %v", line)
	}
}

// The server behind Sentinels goes while mail comes in: nobody who has passed
// waits, and what was learned before another is named is told to that one.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	w := redistest.StartSentinel(t)
	d := newDaemon(t, base+fmt.Sprintf(`
[store]
kind = "redis"
path = "{dir}/state.db"
[store.redis]
addrs = ["%s"]
master = %q
breaker_pause = "200ms"
cache = "0s"
`, strings.Join(w.Addrs(), `", "`), redistest.MasterName))
	d.start()
	c := d.dial()
	ask := func(sender string) string { return c.MustAsk(t, sample("192.0.2.7", sender, "b@example.com")) }
	ask("known@example.org")
	d.eventually("it passes", func() bool { return ask("known@example.org") == "DUNNO" })
	w.Servers[0].Command("wait", "1", "5000") // the replica has it
	w.Servers[0].Stop()
	n := 0
	d.eventually("another server is named", func() bool {
		expect(t, "known", ask("known@example.org"), "DUNNO")
		n++
		expect(t, "a stranger", ask(fmt.Sprintf("new%d@example.org", n)), "DEFER_IF_PERMIT 4.2.0 Greylisted")
		return n > 20 && strings.Contains(d.run("status"), "fallback: embedded")
	})
	d.eventually("the new server is told", func() bool {
		return strings.Contains(d.run("greylist", "list", "--kind", "waiting"), "new1@example.org")
	})
	expect(t, "known", ask("known@example.org"), "DUNNO")
	for _, line := range d.decisions("degraded", "true") {
		t.Errorf("degraded: %v", line)
	}
}

// A Redis Cluster whose slots move under a daemon.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	d := newDaemon(t, base+fmt.Sprintf(`
[store]
kind = "redis"
path = "{dir}/state.db"
[store.redis]
addrs = ["%s"]
cluster = true
cache = "0s"
`, strings.Join(cluster.Addrs(), `", "`)))
	d.start()
	c := d.dial()
	sender := func(i int) string { return fmt.Sprintf("s%d@x%d.example", i, i) }
	ask := func(i int) string { return c.MustAsk(t, sample("192.0.2.7", sender(i), "b@example.com")) }
	const pairs = 60
	for i := range pairs {
		expect(t, "first contact", ask(i), "DEFER_IF_PERMIT")
	}
	for i := range pairs {
		d.eventually("it passes", func() bool { return ask(i) == "DUNNO" })
	}
	moved := make(chan struct{})
	go func() {
		defer close(moved)
		cluster.Move(0, 2, 1000)
	}()
	for i := 0; ; i++ {
		expect(t, "while slots move", ask(i%pairs), "DUNNO")
		select {
		case <-moved:
		default:
			continue
		}
		break
	}
	expect(t, "stats", d.run("greylist", "stats"), fmt.Sprintf("triplets  %d", pairs))
	expect(t, "forget", d.run("greylist", "forget", "--sender", "s1@"), "1 entries forgotten")
	expect(t, "forgotten", ask(1), "DEFER_IF_PERMIT")
	for _, line := range d.decisions("degraded", "true") {
		t.Errorf("degraded: %v", line)
	}
}

// With nothing to go on with nobody is deferred for Redis.
func TestRedisFaultsStopNoMail(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	d := newDaemon(t, base+fmt.Sprintf(`
[store]
kind = "redis"
[store.redis]
addrs = [%q]
breaker_pause = "200ms"
fallback = "pass"
`, server.Addr()))
	d.start()
	c := d.dial()
	expect(t, "first contact", c.MustAsk(t, sample("192.0.2.7", "a@example.org", "b@example.com")), "DEFER_IF_PERMIT")

	for _, fault := range []struct {
		name        string
		begin, stop func()
	}{
		{"hangs", server.Hang, server.Continue},
		{"refuses", server.Stop, server.Restart},
	} {
		fault.begin()
		for i := range 10 {
			expect(t, fault.name, c.MustAsk(t, sample("192.0.2.7", fmt.Sprintf("x%d@example.org", i), "b@example.com")), "DUNNO")
		}
		d.decided("degraded", "true")
		expect(t, fault.name+": status", d.run("status"), "NOT USABLE")
		fault.stop()
		d.eventually("Redis is used again after it "+fault.name, func() bool {
			a, err := c.Ask(sample("192.0.2.7", fmt.Sprintf("after-%s-%d@example.org", fault.name, time.Now().UnixNano()), "b@example.com"))
			return err == nil && strings.HasPrefix(a, "DEFER_IF_PERMIT")
		})
	}
	d.stop()

	// With on_error = "defer" the operator has it otherwise.
	server.Stop()
	d.configure(strings.Replace(base, "[greylist]", "[greylist]\non_error = \"defer\"", 1) + fmt.Sprintf(`
[store]
kind = "redis"
[store.redis]
addrs = [%q]
fallback = "pass"
`, server.Addr()))
	d.start() // without Redis
	expect(t, "on_error", d.dial().MustAsk(t, sample("192.0.2.7", "a@example.org", "b@example.com")), "DEFER_IF_PERMIT 4.", "[ref ")
}

func TestBadConnectionsHarmNobody(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, base)
	d.start()
	good := d.dial()
	ask := func(when string) {
		t.Helper()
		if a := good.MustAsk(t, sample("192.0.2.7", "a@example.org", "b@example.com")); !strings.HasPrefix(a, "D") && !strings.HasPrefix(a, "PREPEND") {
			t.Errorf("%s: %q", when, a)
		}
	}
	ask("at first")
	before := d.resident()

	dial := func() net.Conn {
		c, err := net.Dial("unix", d.socket())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // it may be closed
		return c
	}
	// closes sends bytes until the daemon has enough of them.
	closes := func(what string, write func(c net.Conn) error) {
		t.Helper()
		c := dial()
		_ = c.SetDeadline(time.Now().Add(patience)) // a dead one fails the write
		for write(c) == nil {
		}
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: the connection is still open", what)
		}
		ask("after " + what)
	}
	junk := strings.Repeat("x", 8192)
	closes("an endless line", func(c net.Conn) error { _, err := io.WriteString(c, junk); return err })
	closes("endless attributes", func(c net.Conn) error { _, err := io.WriteString(c, "name=value\n"); return err })
	closes("zero bytes", func(c net.Conn) error { _, err := c.Write(make([]byte, 8192)); return err })
	closes("http", func(c net.Conn) error {
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n\n\n")
		return err
	})

	// Thousands of idle ones, and thousands that have begun a request.
	const many = 1500
	var wg sync.WaitGroup
	for i := range many {
		c := dial()
		if i%2 == 0 {
			wg.Go(func() { _, _ = io.WriteString(c, "request=smtpd_access_policy\nclient_add") }) // closed by the daemon in time
		}
	}
	wg.Wait()
	ask("beside many idle connections")
	if grown := d.resident() - before; grown > 150 {
		t.Errorf("%d idle connections cost %d MiB", many, grown)
	}
	expect(t, "status", d.run("status"), "policy    unix:"+filepath.Join(d.dir, "policy.sock"))
}
