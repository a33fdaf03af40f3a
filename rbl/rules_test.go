package rbl

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postern/policy"
)

func TestLimits(t *testing.T) {
	l := limits{reject: 5, hold: 3, mark: 1}
	for _, tt := range []struct {
		name           string
		limits         limits
		score, missing int
		want           outcome
	}{
		{"nothing", l, 0, 0, clean},
		{"below zero", l, -4, 0, clean},
		{"mark", l, 1, 0, marked},
		{"just below defer", l, 2, 0, marked},
		{"defer", l, 3, 0, held},
		{"just below reject", l, 4, 0, held},
		{"reject", l, 5, 0, rejected},
		{"allow list missing that could have prevented it", l, 5, -1, uncertain},
		{"allow list missing that could not", l, 6, -1, rejected},
		{"allow list missing below reject", l, 4, -4, held},
		{"reject off", limits{hold: 3}, 100, 0, held},
		{"all off", limits{}, 100, 0, clean},
		{"only reject", limits{reject: 3}, 2, 0, clean},
	} {
		if got := tt.limits.of(tt.score, tt.missing); got != tt.want {
			t.Errorf("%s: of(%d, %d) = %d, want %d", tt.name, tt.score, tt.missing, got, tt.want)
		}
	}
}

// What is called settled must not change, whatever the outstanding lists
// answer: each matches some of its entries, none, or fails.
func TestSettledNeverChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := limits{
			reject: rapid.IntRange(0, 8).Draw(t, "reject"),
			hold:   rapid.IntRange(0, 8).Draw(t, "defer"),
			mark:   rapid.IntRange(0, 8).Draw(t, "mark"),
		}
		if l.reject > 0 && l.hold >= l.reject {
			l.hold = 0 // refused by Validate
		}
		marks := rapid.IntRange(0, 4).Draw(t, "marks")
		listed := rapid.Bool().Draw(t, "listed")
		score, missing := rapid.IntRange(-8, 12).Draw(t, "score"), rapid.IntRange(-6, 0).Draw(t, "missing")
		weights := rapid.SliceOfN(rapid.IntRange(-4, 4), 0, 5).Draw(t, "outstanding")
		high, low := 0, 0
		for _, w := range weights {
			high, low = high+max(w, 0), low+min(w, 0)
		}
		now := tally{score: score, marks: marks, listed: listed, missing: missing, high: high, low: low}
		if !l.settled(&now) {
			return
		}
		want := l.of(now.total(), missing)
		var try func(i int, later tally)
		try = func(i int, later tally) {
			if i == len(weights) {
				if got := l.of(later.total(), later.missing); got != want {
					t.Fatalf("called settled at %d, became %d at %+v", want, got, later)
				}
				return
			}
			try(i+1, later)
			failed := later
			failed.missing += min(weights[i], 0)
			try(i+1, failed)
			later.score += weights[i]
			later.listed = later.listed || weights[i] > 0
			try(i+1, later)
		}
		try(0, now)
	})
}

func TestErrorCodes(t *testing.T) {
	own := []*Filter{mustFilter("127.0.0.9")}
	for _, tt := range []struct {
		zone       string
		configured []*Filter
		answer     string
		wrong      string // part of the reason; "": a listing
	}{
		{"zen.spamhaus.org", nil, "127.0.0.2", ""},
		{"zen.spamhaus.org", nil, "127.0.0.11", ""},
		{"zen.spamhaus.org", nil, "127.255.255.252", "typing error"},
		{"zen.spamhaus.org", nil, "127.255.255.254", "public resolver"},
		{"zen.spamhaus.org", nil, "127.255.255.255", "too many queries"},
		{"bl.example.org", nil, "127.255.255.7", "error code"},
		{"dbl.spamhaus.org", nil, "127.0.1.2", ""},
		{"dbl.spamhaus.org", nil, "127.0.1.255", "domain list"},
		{"dbl.dq.spamhaus.net", nil, "127.0.1.255", "domain list"},
		{"list.dnswl.org", nil, "127.0.10.2", ""},
		{"list.dnswl.org", nil, "127.0.0.255", "free number"},
		{"bl.example.org", nil, "127.0.0.255", ""},
		{"multi.uribl.com", nil, "127.0.0.1", "refused"},
		{"multi.uribl.com", nil, "127.0.0.2", ""},
		{"multi.surbl.org", nil, "127.0.0.1", "blocked"},
		{"bl.example.org", nil, "127.0.0.1", "no listing"},
		{"hostkarma.junkemailfilter.com", nil, "127.0.0.1", ""},
		{"bl.example.org", nil, "192.0.2.80", "outside 127.0.0.0/8"},
		{"bl.example.org", nil, "0.0.0.0", "outside 127.0.0.0/8"},
		{"bl.example.org", own, "127.0.0.9", "configured"},
		{"bl.example.org", own, "127.0.0.1", ""},
		{"bl.example.org", own, "127.255.255.254", "public resolver"},
		{"bl.example.org", []*Filter{}, "127.0.0.1", ""},
		{"notspamhaus.org", nil, "127.0.1.255", ""},
	} {
		_, wrong := classify(errorsOf(tt.zone, tt.configured), []netip.Addr{netip.MustParseAddr(tt.answer)})
		if tt.wrong == "" && wrong != "" || !strings.Contains(wrong, tt.wrong) {
			t.Errorf("%s of %s: %q, want %q", tt.answer, tt.zone, wrong, tt.wrong)
		}
	}
	for answer, want := range map[string]string{
		"127.255.255.254": "127.255.255.254: asked through a public resolver, use your own",
		"127.255.255.7":   "127.255.255.7: an error code in 127.255.255.0/24", // the row is for many
		"2001:db8::1":     "2001:db8::1 is no answer of a list",
	} {
		if _, wrong := classify(errorsOf("bl.example.org", nil), []netip.Addr{netip.MustParseAddr(answer)}); wrong != want {
			t.Errorf("%s: %q, want %q", answer, wrong, want)
		}
	}
	codes, wrong := classify(errorsOf("bl.example.org", nil),
		[]netip.Addr{netip.MustParseAddr("127.0.0.10"), netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("::ffff:127.0.0.4")})
	if wrong != "" || textOf(codes) != "127.0.0.2 127.0.0.4 127.0.0.10" {
		t.Errorf("several answers: %v %q", codes, wrong)
	}
	if _, wrong := classify(errorsOf("bl.example.org", nil),
		[]netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.255.255.255")}); wrong == "" {
		t.Error("a listing beside an error code is taken for a listing")
	}
}

func TestTestPoints(t *testing.T) {
	for zone, want := range map[string]string{
		"dbl.spamhaus.org": "dbltest.com", "key.dbl.dq.spamhaus.net": "dbltest.com", "multi.surbl.org": "surbl-org-permanent-test-point.com",
		"multi.uribl.com": "test.uribl.com", "notsurbl.org": "", "dbl.example.org": "",
	} {
		if got := testPointOf(zone); got != want {
			t.Errorf("%s: %q, want %q", zone, got, want)
		}
	}
}

func TestQueryNames(t *testing.T) {
	for _, tt := range []struct {
		s    subject
		want string
	}{
		{subject{addr: netip.MustParseAddr("192.0.2.99")}, "99.2.0.192.bl.example"},
		// RFC 5782 section 2.4
		{
			subject{addr: netip.MustParseAddr("2001:db8:1:2:3:4:567:89ab")},
			"b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.bl.example",
		},
		{listedIPv6, "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.bl.example"},
		{subject{domain: "mail.example.org"}, "mail.example.org.bl.example"},
	} {
		if got := string(appendQuery(nil, tt.s, "bl.example")); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.s, got, tt.want)
		}
	}
}

func TestSubjects(t *testing.T) {
	addr := func(s string) policy.Request {
		return policy.Request{Client: policy.Client{Addr: netip.MustParseAddr(s)}}
	}
	for _, s := range []string{
		"10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.1.1", "100.64.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "240.0.0.1",
		"255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "fec0::1",
	} {
		req := addr(s)
		if subjectOf(KindClient, &req, false).ok() {
			t.Errorf("%s would be asked about", s)
		}
		if !subjectOf(KindClient, &req, true).ok() {
			t.Errorf("%s would not be asked about with ask_private", s)
		}
	}
	for _, s := range []string{"192.0.2.1", "8.8.8.8", "2001:db8::1", "2a00:1450::1"} {
		req := addr(s)
		if !subjectOf(KindClient, &req, false).ok() {
			t.Errorf("%s would not be asked about", s)
		}
	}
	if subjectOf(KindClient, &policy.Request{}, true).ok() {
		t.Error("a request without a client address would be asked about")
	}

	req := policy.Request{
		Helo: "MAIL.Example.ORG.", Sender: policy.Address{Raw: "a@example.com", Local: "a", Domain: "example.com"},
		Client: policy.Client{Name: "a.example.net", ReverseName: "b.example.net"},
	}
	for kind, want := range map[Kind]string{
		KindHelo: "mail.example.org", KindSender: "example.com", KindName: "a.example.net", KindReverse: "b.example.net",
	} {
		if got := subjectOf(kind, &req, false); got.domain != want {
			t.Errorf("%v: %q, want %q", kind, got.domain, want)
		}
	}
	longest := strings.Repeat("abc.", 61) + "example.a" // 253 bytes
	for helo, want := range map[string]bool{longest: true, longest + "b": false} {
		req := policy.Request{Helo: helo}
		if got := subjectOf(KindHelo, &req, false).ok(); got != want {
			t.Errorf("a name of %d bytes: %v", len(helo), got)
		}
	}
	for _, helo := range []string{
		"", "[192.0.2.1]", "[IPv6:2001:db8::1]", "192.0.2.1", "localhost", "mail", "host.123", "a..b", ".example.org", "a b.example",
		"a/b.example", strings.Repeat("a", 64) + ".example", strings.Repeat("abc.", 70) + "example", "\x00.example", "a.example..",
	} {
		req := policy.Request{Helo: helo}
		if s := subjectOf(KindHelo, &req, false); s.ok() {
			t.Errorf("helo %q would be asked about as %q", helo, s)
		}
	}
}

func TestJudge(t *testing.T) {
	yes, no := probe{codes: []code{{127, 0, 0, 2}}}, probe{}
	down, refused := probe{err: "no answer in time"}, probe{wrong: "127.255.255.254: public resolver"}
	for _, tt := range []struct {
		name   string
		probes []probe // unlisted first
		want   health
		none   bool
		why    string
	}{
		{"as it should be", []probe{no, yes}, passed, false, ""},
		{"lists the world", []probe{yes, yes}, failed, false, "the world"},
		{"lists the wrong one only", []probe{yes, no}, failed, false, "the world"},
		{"lists nothing", []probe{no, no}, failed, true, "does not list its test entry test"},
		{"lists neither", []probe{no, no, no}, failed, true, "does not list its test entry test or dbltest.com"},
		{"refuses", []probe{refused, refused}, failed, false, "public resolver"},
		{"refuses one", []probe{no, refused}, failed, false, "public resolver"},
		{"DNS down", []probe{down, down}, untested, false, "in time"},
		{"one not answered", []probe{down, yes}, untested, false, "in time"},
		{"the other not answered", []probe{no, down}, untested, false, "in time"},
		{"certain beats unknown", []probe{yes, down}, failed, false, "the world"},
		{"refusal beats unknown", []probe{down, refused}, failed, false, "public resolver"},
		{"second test point", []probe{no, no, yes}, passed, false, ""},
		{"second test point, first unknown", []probe{no, down, yes}, passed, false, ""},
		{"second unknown", []probe{no, no, down}, untested, false, "in time"},
	} {
		subjects := []subject{{domain: "invalid"}, {domain: "test"}, {domain: "dbltest.com"}}
		got := judge(subjects[:len(tt.probes)], tt.probes)
		if got.health != tt.want || got.none != tt.none || !strings.Contains(got.why, tt.why) {
			t.Errorf("%s: %+v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestFamilies(t *testing.T) {
	ok, none, bad, unknown := finding{health: passed}, finding{health: failed, none: true}, finding{health: failed, why: "lists the world"}, finding{}
	for _, tt := range []struct {
		name   string
		v4, v6 finding
		w4, w6 health
	}{
		{"both", ok, ok, passed, passed},
		{"IPv4 only", ok, none, passed, absent},
		{"IPv6 only", none, ok, absent, passed},
		{"neither", none, none, failed, failed},
		{"IPv6 lists the world", ok, bad, passed, failed},
		{"IPv4 not known", unknown, none, untested, untested},
		{"IPv6 not known", none, unknown, untested, untested},
		{"IPv4 good, IPv6 not known", ok, unknown, passed, untested},
	} {
		v4, v6 := tt.v4, tt.v6
		if families(&v4, &v6); v4.health != tt.w4 || v6.health != tt.w6 {
			t.Errorf("%s: %v %v, want %v %v", tt.name, v4.health, v6.health, tt.w4, tt.w6)
		}
	}
}

func TestWindow(t *testing.T) {
	var w window
	now := time.Unix(1e9, 0)
	at := func(i int) subject { return subject{addr: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})} }
	for i := range 10 {
		w.add(now, time.Minute, at(i), i%2 == 0)
		w.add(now, time.Minute, at(i), i%2 == 0) // the same client again
	}
	if n, listed := w.counts(); n != 10 || listed != 5 {
		t.Errorf("%d of %d, want 5 of 10", listed, n)
	}
	w.add(now, time.Minute, at(0), false) // delisted
	if n, listed := w.counts(); n != 10 || listed != 4 {
		t.Errorf("after a change: %d of %d, want 4 of 10", listed, n)
	}
	w.add(now.Add(time.Minute), time.Minute, at(0), false)
	if n, listed := w.counts(); n != 10 || listed != 4 {
		t.Errorf("at the end of the window: %d of %d, want 4 of 10", listed, n)
	}
	w.add(now.Add(61*time.Second), time.Minute, at(100), true)
	if n, listed := w.counts(); n != 1 || listed != 1 {
		t.Errorf("after the window: %d of %d, want 1 of 1", listed, n)
	}
	for i := range 4 * maxWindow {
		w.add(now.Add(62*time.Second), time.Minute, at(1000+i), true)
	}
	if n, listed := w.counts(); n != maxWindow || listed != n {
		t.Errorf("bound: %d of %d, want %d", listed, n, maxWindow)
	}
	if len(w.queue) > 2*maxWindow+1 {
		t.Errorf("queue has %d places", len(w.queue))
	}
	// What is over goes to the end of the queue's memory at once, not with each.
	w = window{}
	for i := range 2*maxWindow + 1 {
		w.add(now, time.Minute, at(i), true)
		if want := max(0, i+1-maxWindow); i < 2*maxWindow && w.head != want {
			t.Fatalf("%d forgotten after %d, want %d", w.head, i+1, want)
		}
	}
	if w.head != 0 || len(w.queue) != maxWindow {
		t.Errorf("%d places of %d are empty", w.head, len(w.queue))
	}
}

func TestErrorTextHasNoKey(t *testing.T) {
	l := &list{key: "s3cretkey0"}
	err := &queryError{"resolver: A 2.0.0.127.S3CretKey0.zen.example: SERVFAIL (s3cretkey0)"}
	got := l.errorFrom(t.Context(), err).text
	if strings.Contains(strings.ToLower(got), "s3cret") || !strings.Contains(got, hidden+".zen.example") {
		t.Errorf("error became %q", got)
	}
	if got := l.errorFrom(t.Context(), context.DeadlineExceeded); got.class != failTimeout {
		t.Errorf("deadline: %v", got.class)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if got := l.errorFrom(gone, err); got.class != failTimeout {
		t.Errorf("an error when time is up: %v", got.class)
	}
	if got := l.errorFrom(t.Context(), timeoutError{}); got.class != failTimeout {
		t.Errorf("timeout of the network: %v", got.class)
	}
	if got := l.key.hide("S3cretKey0.zen.example s3cretkey0s3cretkey0"); got != hidden+".zen.example "+hidden+hidden {
		t.Errorf("hidden: %q", got)
	}
	if got := secret("").hide("zen.example"); got != "zen.example" {
		t.Errorf("without a key: %q", got)
	}
	// Lower-casing changes the length of some Unicode; the key goes all the same.
	if got := l.key.hide("\u0130\xff S3CRETKEY0 \u0130"); strings.Contains(strings.ToLower(got), "s3cret") {
		t.Errorf("hidden: %q", got)
	}
}

type queryError struct{ text string }

func (e *queryError) Error() string { return e.text }

type timeoutError struct{}

func (timeoutError) Error() string { return "i/o timeout" }
func (timeoutError) Timeout() bool { return true }
