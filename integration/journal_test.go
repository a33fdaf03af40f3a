package integration

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/redistest"
	"postern/journal"
)

var inReply = regexp.MustCompile(`\[ref ([0-9A-Z-]{11})\]`)

// ref returns the reference in an answer.
func ref(t *testing.T, answer string) string {
	t.Helper()
	m := inReply.FindStringSubmatch(answer)
	if m == nil {
		t.Fatalf("no reference in %q", answer)
	}
	return m[1]
}

// A daemon that is killed while it writes has kept all but the last moment, and
// goes on where it was.
func TestJournalOverAKill(t *testing.T) {
	t.Parallel()
	dns := dnstest.Start(t)
	dns.Add("listed.example. 60 IN TXT \"v=spf1 -all\"")
	d := newDaemon(t, withDNS(`
hostname = "mx.example.com"
[dns]
[access]
deny = ["inline:198.51.100.0/24"]
[spf]
mail_from = { fail = "reject" }
[journal]
path = "{dir}/journal"
keep = "all"
addresses = "hashed"
`, dns))
	d.start()
	c := d.dial()
	first := ref(t, c.MustAsk(t, sample("198.51.100.1", "ann@listed.example", "bob@example.com")))
	spf := ref(t, c.MustAsk(t, sample("192.0.2.7", "carol@listed.example", "bob@example.com")))
	expect(t, "search", d.run("journal", "search", "--address", "ANN@listed.example"), first, "access-denied") // it is on disk now
	for round := range 5 {
		stop, ended := make(chan struct{}), make(chan struct{})
		load := d.dial()
		go func() {
			defer close(ended)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := load.Ask(sample("198.51.100.1", fmt.Sprintf("x%d.%d@example.org", round, i), "bob@example.com")); err != nil {
					return // it has been killed
				}
			}
		}()
		d.eventually("something is written", func() bool {
			var s journal.Status
			return json.Unmarshal([]byte(d.run("--json", "journal", "status")), &s) == nil && s.Written > 20
		})
		d.kill()
		close(stop)
		<-ended
		expect(t, "without a daemon", d.run("explain", strings.ToLower(first)), "access-denied", "no daemon answers", "@listed.example")
		if out := d.run("explain", first); strings.Contains(out, "ann@") {
			t.Errorf("an address is there in plain: %s", out)
		}
		d.start()
		expect(t, "after the kill", d.run("explain", spf), "spf-fail")
	}
	d.stop()
	r, err := journal.Open(filepath.Join(d.dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	decisions, answers := 0, 0
	seen, err := r.Scan(t.Context(), time.Time{}, time.Time{}, func(e journal.Entry) error {
		switch {
		case e.Decision != nil:
			decisions++
		case e.Answer.Name == "listed.example" && e.Answer.Type == "TXT":
			answers++
			if len(e.Answer.Records) != 1 || e.Answer.Records[0] != "v=spf1 -all" || e.Answer.Failure != "" {
				t.Errorf("the DNS said %+v", e.Answer)
			}
		}
		return nil
	})
	if err != nil || decisions < 100 || answers != 1 || seen.Broken != 0 {
		t.Errorf("%d decisions, %d answers; %+v %v", decisions, answers, seen, err)
	}
	if n := len(d.run("--json", "journal", "search", "--limit", "0")); n < 100*100 {
		t.Errorf("only %d bytes are found", n)
	}
}

// With one Redis each gateway explains what another has refused.
func TestJournalOfAFleet(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	gateway := func(name string) *daemon {
		d := newDaemon(t, fmt.Sprintf(`
hostname = %q
[access]
deny = ["inline:198.51.100.0/24"]
[journal]
path = "{dir}/journal"
share = true
[store]
kind = "redis"
[store.redis]
addrs = [%q]
breaker_pause = "200ms"
`, name, server.Addr()))
		d.start()
		return d
	}
	one, two := gateway("mx1.example.com"), gateway("mx2.example.com")
	refused := ref(t, one.dial().MustAsk(t, sample("198.51.100.1", "ann@example.org", "bob@example.com")))
	two.eventually("it is shared", func() bool {
		out, err := two.try("explain", refused)
		return err == nil && strings.Contains(out, "access-denied") && strings.Contains(out, "ann@example.org")
	})
	expect(t, "status", one.run("status"), "shared by Redis")
	// Without Redis each has its own, and decisions go on.
	server.Stop()
	own := ref(t, two.dial().MustAsk(t, sample("198.51.100.2", "carol@example.org", "bob@example.com")))
	expect(t, "its own", two.run("explain", own), "carol@example.org")
	if out, err := two.try("explain", refused); err == nil || !strings.Contains(out, "redis") {
		t.Errorf("another's, without Redis: %s %v", out, err)
	}
	server.Restart()
	one.stop()
	two.stop()
}
