package main

import (
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"postern/names"
	"postern/policy"
)

var update = flag.Bool("update", false, "write the assumptions into docs/filtering.md")

func judge(t testing.TB) *names.Judge {
	t.Helper()
	j, err := names.New(names.DefaultConfig(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// small is a world of few days.
func small(t testing.TB) *world {
	t.Helper()
	a := defaults()
	a.Mailboxes, a.Domains, a.Services = 10, 50, 50
	return makeWorld(a, options{seed: 1, days: 3, warm: 1}, judge(t))
}

func TestEachMessageEndsOnce(t *testing.T) {
	w := small(t)
	sent := [classCount]int{}
	for i := range w.messages {
		if m := &w.messages[i]; m.at >= w.begin.UnixMilli() {
			sent[m.class]++
		}
		if i > 0 && w.messages[i].at < w.messages[i-1].at {
			t.Fatalf("message %d comes before the one before it", i)
		}
	}
	for _, p := range profiles {
		f := p.make(judge(t))
		r := simulate(w, f)
		f.close()
		for c := range r.by {
			x := &r.by[c]
			if x.sent != sent[c] {
				t.Errorf("%s: %s: %d sent, want %d", p.key, classNames[c], x.sent, sent[c])
			}
			if got := x.delivered + x.refused + x.given + x.open; got != x.sent {
				t.Errorf("%s: %s: %d of %d messages ended: %+v", p.key, classNames[c], got, x.sent, x)
			}
			if x.delayed > x.sent || x.delayed < len(x.delays) {
				t.Errorf("%s: %s: %d delayed, %d delays, %d sent", p.key, classNames[c], x.delayed, len(x.delays), x.sent)
			}
		}
		if r.legit.sent == 0 || r.spam.sent == 0 {
			t.Errorf("%s: an empty world", p.key)
		}
	}
}

func TestSameSeedSameWorld(t *testing.T) {
	for _, p := range profiles {
		var results []*result
		for range 2 {
			f := p.make(judge(t))
			r := simulate(small(t), f)
			f.close()
			results = append(results, r)
		}
		if !reflect.DeepEqual(results[0], results[1]) {
			t.Errorf("%s: two runs differ: %+v, %+v", p.key, results[0], results[1])
		}
	}
}

// one is a message from one host, and its attempts.
type one struct {
	f filter
	m message
	h host
}

func newOne(f filter) *one {
	return &one{
		f: f, m: message{sys: &system{}, from: address("ann", "example.org"), to: address("bob", "example.com"), spf: policy.SPF{Result: "none", Domain: "example.org"}},
		h: host{addr: netip.MustParseAddr("192.0.2.7"), name: "mail.example.org", helo: "mail.example.org", listed: notListed},
	}
}

func (o *one) passes(after time.Duration) bool {
	return o.f.pass(&attempt{at: start.Add(after), msg: &o.m, from: &o.h})
}

func TestFirstContact(t *testing.T) {
	for _, tt := range []struct {
		key   string
		after time.Duration // 0: at once
	}{
		{"strict-1", 120 * time.Second},
		{"none", 0}, {"postgrey", 300 * time.Second}, {"postgrey-bare", 300 * time.Second}, {"sqlgrey", 300 * time.Second}, {"rspamd", 0},
		{"strict", 120 * time.Second}, {"gentle", 0}, {"balanced", 0},
	} {
		for _, p := range profiles {
			if p.key != tt.key {
				continue
			}
			o := newOne(p.make(judge(t)))
			if got := o.passes(0); got != (tt.after == 0) {
				t.Errorf("%s: first contact passes: %v", tt.key, got)
			}
			if tt.after > 0 && o.passes(tt.after-time.Second) {
				t.Errorf("%s: passes a second before %v", tt.key, tt.after)
			}
			if !o.passes(tt.after) {
				t.Errorf("%s: does not pass after %v", tt.key, tt.after)
			}
			o.f.close()
		}
	}
}

func TestPostgreyExemptsAfterFive(t *testing.T) {
	o := newOne(newPostgrey(true))
	for i := range 5 {
		o.m.to = address(string(rune('a'+i)), "example.com")
		when := time.Duration(i) * time.Hour
		if o.passes(when) || !o.passes(when+6*time.Minute) {
			t.Fatalf("recipient %d was not delayed once", i)
		}
	}
	o.m.to = address("new", "example.com")
	if !o.passes(5 * time.Hour) {
		t.Error("the client has five passes, and is delayed")
	}
	o.h.addr = netip.MustParseAddr("192.0.2.8")
	o.m.to = address("other", "example.com")
	if o.passes(5 * time.Hour) {
		t.Error("its neighbour is exempt")
	}
}

func TestRspamdKnowsTheText(t *testing.T) {
	o := newOne(newRspamd())
	o.m.text, o.m.body = 5, 7
	if o.passes(0) {
		t.Error("suspicious mail passes at once")
	}
	o.h.addr, o.m.to = netip.MustParseAddr("198.51.100.7"), address("other", "example.com")
	if !o.passes(5 * time.Minute) {
		t.Error("the same text from elsewhere is delayed after five minutes")
	}
}

func TestSchedules(t *testing.T) {
	for s := schedule(1); s < scheduleCount; s++ {
		for seed := range uint64(20) {
			elapsed, n := time.Duration(0), 0
			for n = 1; n < 2000; n++ {
				next, ok := s.next(seed, n, elapsed)
				if !ok {
					break
				}
				if next <= elapsed {
					t.Fatalf("schedule %d goes back: %v after %v", s, next, elapsed)
				}
				if elapsed < time.Hour && next-elapsed > 75*time.Minute {
					t.Errorf("schedule %d waits %v after %v", s, next-elapsed, elapsed)
				}
				elapsed = next
			}
			if elapsed < 20*time.Hour {
				t.Errorf("schedule %d ends after %v", s, elapsed)
			}
		}
	}
	if _, ok := never.next(1, 1, 0); ok {
		t.Error("never tries again")
	}
}

func TestAssumptions(t *testing.T) {
	a := defaults()
	if err := a.check(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, x := range a.each() {
		if x.name == "" || x.why == "" || seen[x.name] {
			t.Errorf("assumption %q: no name or reason, or twice", x.name)
		}
		seen[x.name] = true
	}
	a.BotListed = 2
	if a.check() == nil {
		t.Error("a share of 2 is taken")
	}
}

func TestRun(t *testing.T) {
	args := []string{"-days=2", "-warm=1", "-mailboxes=5", "-people-domains=20", "-services=20"}
	var out strings.Builder
	if err := run(&out, args); err != nil {
		t.Fatal(err)
	}
	for _, p := range profiles {
		f := p.make(judge(t))
		if !strings.Contains(out.String(), f.name()) {
			t.Errorf("nothing is printed of %s", f.name())
		}
		f.close()
	}
	for _, bad := range [][]string{{"-days=0"}, {"-bot-listed=2"}, {"-mailboxes=0"}, {"-spam-bots=-1"}} {
		if run(io.Discard, bad) == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

func TestSweep(t *testing.T) {
	a := defaults()
	a.Mailboxes, a.Domains, a.Services, a.ESPNets, a.ProviderNets = 2, 5, 5, 1, 1
	o := options{seed: 1, days: 1}
	j := judge(t)
	worlds := sweep(a, o, j)
	var out strings.Builder
	reportSweep(&out, only(needed, makeWorld(a, o, j), j), worlds)
	for i, x := range a.each() {
		half, double := worlds[2*i], worlds[2*i+1]
		if half.name != x.name || half.value != *x.value/2 || double.value != *x.value*2 && double.value != 1 {
			t.Errorf("%s is %v: swept as %s, %v and %v", x.name, *x.value, half.name, half.value, double.value)
		}
		if !strings.Contains(out.String(), x.name) {
			t.Errorf("nothing is printed of %s", x.name)
		}
	}
}

// The page lists the assumptions as they are: `go test ./bench/sim -update`.
func TestDocumentedAssumptions(t *testing.T) {
	const page = "../../docs/filtering.md"
	const begin, end = "<!-- assumptions -->\n", "<!-- end -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, more := strings.Cut(rest, end)
	if !ok || !more {
		t.Fatalf("%s has no place for the assumptions", page)
	}
	a := defaults()
	var b strings.Builder
	b.WriteString("| flag | default | what it is, and why |\n|---|---|---|\n")
	for _, x := range a.each() {
		fmt.Fprintf(&b, "| `-%s` | %.6g | %s |\n", x.name, *x.value, x.why)
	}
	want := before + begin + b.String() + end + after
	if want == string(text) {
		return
	}
	if !*update {
		t.Fatalf("the assumptions in %s are others: go test ./bench/sim -update", page)
	}
	if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
