package replay

import (
	"context"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
	"postern/resolver"
)

var start = time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC)

// by decides by the sender's domain: what it says of each.
type by map[string]policy.Verdict

func (b by) Decide(_ context.Context, req *policy.Request, d *policy.Decision) {
	req.Facts.Mark("seen") // what one learns must not reach the other
	d.Verdict = b[req.Sender.Domain]
	if d.Verdict.Action != policy.Continue {
		d.Check = "check"
	}
}

func item(n int, sender string, then *Outcome) *Item {
	return &Item{Ref: "r", Then: then, Request: &policy.Request{
		Time: start.Add(time.Duration(n) * time.Minute), Stage: policy.StageRcpt, Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1")},
		Sender: mailaddr.Parse(sender), Recipient: mailaddr.Parse("b@example.com"),
	}}
}

func verdict(a policy.Action, reason string) policy.Verdict {
	v := policy.Verdict{Action: a, Reason: reason}
	if a.Refuses() {
		v.Reply = policy.Reply{Code: 550, Enhanced: "5.7.1", Text: reason}
	}
	return v
}

func TestRun(t *testing.T) {
	old := by{"bad.example": verdict(policy.Reject, "bad"), "held.example": verdict(policy.Hold, "odd")}
	next := by{"bad.example": verdict(policy.Reject, "worse"), "slow.example": verdict(policy.DeferIfPermit, "slow"), "late.example": verdict(policy.Defer, "late")}
	run := &Run{Before: old, After: next, Samples: 1}
	accepted := &Outcome{What: "accepted"}
	items := []*Item{
		item(5, "a@good.example", accepted), item(1, "a@bad.example", accepted), item(2, "a@slow.example", nil), item(3, "b@slow.example", accepted),
		item(4, "a@late.example", nil), item(9, "a@held.example", &Outcome{What: "held", Check: "check"}),
	}
	for _, it := range items {
		run.Add(t.Context(), it)
		if it.Request.Facts.Marks != nil {
			t.Fatal("a decision has changed the request")
		}
	}
	run.Skip("why")
	run.Skip("why")
	got := run.Report()
	want := &Report{
		Requests: 6, From: start.Add(time.Minute), To: start.Add(9 * time.Minute), Alike: 2, Changed: 4, Known: 4, AsThen: 3,
		NotThen: map[string]int{"accepted -> refused": 1}, Skipped: map[string]int{"why": 2},
	}
	changes := got.Changes
	got.Changes = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if len(changes) != 2 || changes[0].Count != 3 || changes[0].From != "accepted" || changes[0].To != "deferred" || changes[1].From != "held" || changes[1].To != "accepted" {
		t.Fatalf("%+v", changes)
	}
	if causes := changes[0].Causes; !reflect.DeepEqual(causes, []Cause{{"check", "slow", 2}, {"check", "late", 1}}) {
		t.Errorf("%+v", causes)
	}
	if causes := changes[1].Causes; !reflect.DeepEqual(causes, []Cause{{"check", "odd", 1}}) {
		t.Errorf("%+v", causes)
	}
	if s := changes[0].Samples; len(s) != 1 || s[0].Sender != "a@slow.example" || s[0].Client != "192.0.2.1" || s[0].After.Reply != "550 5.7.1 slow" || s[0].Before.What != "accepted" {
		t.Errorf("%+v", s)
	}
}

// Without the present configuration what came of a request then stands for it.
func TestAgainstThen(t *testing.T) {
	run := &Run{After: by{}}
	run.Add(t.Context(), item(0, "a@x.example", &Outcome{What: "refused", Check: "rbl", Reason: "rbl-listed"}))
	run.Add(t.Context(), item(0, "a@x.example", nil))
	r := run.Report()
	if r.Requests != 2 || r.Changed != 1 || r.Known != 1 || len(r.Changes) != 1 || r.Changes[0].From != "refused" || r.Skipped["what came of it is not known"] != 1 || r.Changes[0].Causes[0] != (Cause{"rbl", "rbl-listed", 1}) {
		t.Errorf("%+v", r)
	}
}

func TestOutcomes(t *testing.T) {
	for action, want := range map[policy.Action]string{
		policy.Continue: "accepted", policy.Allow: "accepted", policy.Permit: "permitted", policy.Reject: "refused", policy.Defer: "deferred",
		policy.DeferIfPermit: "deferred", policy.Hold: "held", policy.Discard: "discarded", policy.Redirect: "redirected",
	} {
		if got := OutcomeOf(&policy.Decision{Verdict: verdict(action, "x"), Check: "c"}); got.What != want || (got.Reply != "") != action.Refuses() || want == "accepted" && got.Check != "" {
			t.Errorf("%v: %+v", action, got)
		}
	}
	for _, tt := range []struct {
		a, b Outcome
		want bool
	}{
		{Outcome{What: "refused", Check: "a"}, Outcome{What: "refused", Check: "a", Reason: "x"}, true},
		{Outcome{What: "refused", Check: "a"}, Outcome{What: "refused", Check: "b"}, false},
		{Outcome{What: "refused"}, Outcome{What: "refused", Check: "b"}, true},
		{Outcome{What: "refused"}, Outcome{What: "deferred"}, false},
	} {
		if same(&tt.a, &tt.b) != tt.want || same(&tt.b, &tt.a) != tt.want {
			t.Errorf("%+v", tt)
		}
	}
}

func TestThreshold(t *testing.T) {
	r := &Report{Requests: 1000, Changed: 5}
	for text, want := range map[string]bool{"0": true, "4": true, "5": false, "0.4%": true, "0.5%": false, "100%": false, "0%": true} {
		limit, err := ParseThreshold(text)
		if err != nil || limit.Exceeded(r) != want {
			t.Errorf("%s: %v, %v", text, limit.Exceeded(r), err)
		}
	}
	for _, text := range []string{"", "-1", "x", "1x", "101%", "-1%", "%", "1 %%"} {
		if limit, err := ParseThreshold(text); err == nil {
			t.Errorf("%q: %+v", text, limit)
		}
	}
}

func TestReadRequests(t *testing.T) {
	read := func(text string) (out []Item, err error) {
		err = ReadRequests("f", strings.NewReader(text), start, func(it Item) bool { out = append(out, it); return true })
		return out, err
	}
	got, err := read("# a comment\nrequest=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\nsender=a@example.org\n\n\n" +
		"request=smtpd_access_policy\r\nprotocol_state=RCPT\r\ntime=2026-11-27T12:00:00Z\r\nclient_address=192.0.2.2\r\n\r\n" +
		"request=smtpd_access_policy\nprotocol_state=DATA\nclient_address=192.0.2.3")
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	for i, want := range []struct {
		at   time.Time
		addr string
		ref  string
	}{{start, "192.0.2.1", "f:2"}, {start.Add(2 * time.Hour), "192.0.2.2", "f:8"}, {start.Add(2*time.Hour + time.Second), "192.0.2.3", "f:13"}} {
		if r := got[i].Request; !r.Time.Equal(want.at) || r.Client.Addr.String() != want.addr || got[i].Ref != want.ref || got[i].Then != nil {
			t.Errorf("%d: %+v %s", i, r, got[i].Ref)
		}
	}
	if got, err := read(""); err != nil || got != nil {
		t.Error(got, err)
	}
	for text, want := range map[string]string{
		"request=smtpd_access_policy\nno attribute\n\n": `f:2: "no attribute" is no attribute, "name=value"`,
		"time=soon\n":                           `f:1: "soon" is not a time such as 2026-11-27T10:00:00Z`,
		"\nclient_address=x\n\n":                "f:2: ",
		"a=" + strings.Repeat("x", 70_000):      "f:1: the request has more than 65536 bytes",
		strings.Repeat("x", 70_000):             `f:1: "` + strings.Repeat("x", 60) + `..." is no attribute`,
		"request=x\n\n":                         "f:1: ",
		strings.Repeat("a=b\n", 300) + "\n\n\n": "f:1: ",
	} {
		if got, err := read(text); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.40q: %v, %v", text, got, err)
		}
	}
	n := 0
	one := "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\n\n"
	if err := ReadRequests("f", strings.NewReader(one+one), start, func(Item) bool { n++; return false }); err != nil || n != 1 {
		t.Error(n, err)
	}
}

func TestLog(t *testing.T) {
	log := &Log{Now: start.Add(time.Hour), In: time.UTC}
	const head = "Nov 27 09:00:0"
	text := strings.Join([]string{
		head + "1 mx postfix/smtpd[1]: connect from a.example[192.0.2.1]",
		head + "1 mx postfix/smtpd[1]: 0A1B2C3D4E: client=a.example[192.0.2.1]:4711, sasl_method=PLAIN, sasl_username=ann",
		head + "2 mx postfix/cleanup[1]: 0A1B2C3D4E: message-id=<x@y>",
		head + "2 mx postfix/qmgr[1]: 0A1B2C3D4E: from=<ann@example.org>, size=1234, nrcpt=2 (queue active)",
		head + "3 mx postfix/smtp[1]: 0A1B2C3D4E: to=<bob@example.net>, relay=x, status=deferred (busy)",
		head + "4 mx postfix/smtp[1]: 0A1B2C3D4E: to=<bob@example.net>, relay=x, status=sent (ok)",
		head + "4 mx postfix/local[1]: 0A1B2C3D4E: to=<root@mx.example>, orig_to=<postmaster@example.com>, relay=local, status=sent (ok)",
		head + "5 mx postfix/qmgr[1]: 0A1B2C3D4E: removed",
		head + "5 mx postfix/smtp[1]: 0A1B2C3D4E: to=<late@example.net>, relay=x, status=sent (ok)",
		head + "0 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[2001:db8::1]: 450 4.2.0 <c@example.com>: Recipient address rejected: Greylisted; from=<x@y>; from=<> to=<c@example.com> proto=ESMTP helo=<[2001:db8::1]>",
		head + "6 mx postfix/submission/smtpd[1]: 0A1B2C3D4F: reject: RCPT from b.example[192.0.2.2]: 554 5.7.1 <x>: no; from=<s@b.example> to=<\"a> b\"@example.com> proto=SMTP helo=<b.example>",
		head + "7 mx postfix/smtpd[1]: NOQUEUE: reject: MAIL from b.example[192.0.2.2]: 450 no; from=<s@b.example> proto=SMTP helo=<b.example>",
		head + "8 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from b.example[192.0.2.2]: 450 nothing more",
		head + "8 mx postfix/smtpd[1]: 0A1B2C3D50: client=unknown[unknown]",
		head + "8 mx postfix/qmgr[1]: 0A1B2C3D51: from=<other@example.org>, size=1, nrcpt=1 (queue active)",
		"no line of a log",
	}, "\n")
	if err := log.Read(strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	items := log.Items()
	type row struct {
		second                          int
		addr, name, helo, from, to, ref string
		login, what                     string
		size                            int64
	}
	var got []row
	for _, it := range items {
		r := it.Request
		got = append(got, row{r.Time.Second(), r.Client.Addr.String(), r.Client.Name, r.Helo, r.Sender.Raw, r.Recipient.Raw, it.Ref, r.SASL.Username, it.Then.What, r.Size})
	}
	want := []row{
		{0, "2001:db8::1", "", "[2001:db8::1]", "", "c@example.com", "NOQUEUE", "", "deferred", 0},
		{1, "192.0.2.1", "a.example", "a.example", "ann@example.org", "bob@example.net", "0A1B2C3D4E", "ann", "accepted", 1234},
		{1, "192.0.2.1", "a.example", "a.example", "ann@example.org", "postmaster@example.com", "0A1B2C3D4E", "ann", "accepted", 1234},
		{6, "192.0.2.2", "b.example", "b.example", "s@b.example", "a> b@example.com", "0A1B2C3D4F", "", "refused", 0},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if all, unread := log.Lines(); all != 16 || unread != 1 || log.Dropped != 0 {
		t.Error(all, unread, log.Dropped)
	}
}

func FuzzLog(f *testing.F) {
	f.Add("Nov 27 09:00:00 mx postfix/smtpd[1]: NOQUEUE: reject: RCPT from a[192.0.2.1]: 450 x; from=<> to=<b> helo=<c>\n")
	f.Add("Nov 27 09:00:00 mx postfix/smtpd[1]: 0A1B2C: client=a[::1]\nNov 27 09:00:00 mx postfix/qmgr[1]: 0A1B2C: from=<>, size=x\nNov 27 09:00:00 mx postfix/smtp[1]: 0A1B2C: to=<\"\">\n")
	f.Fuzz(func(t *testing.T, text string) {
		log := &Log{Now: start, In: time.UTC}
		if err := log.Read(strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		for _, it := range log.Items() {
			if !it.Request.Client.Addr.IsValid() || it.Then == nil {
				t.Errorf("%+v", it)
			}
		}
	})
}

func FuzzReadRequests(f *testing.F) {
	f.Add("request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\n\n")
	f.Add("time=2026-11-27T12:00:00Z\n\n#\n=\n")
	f.Fuzz(func(t *testing.T, text string) {
		_ = ReadRequests("f", strings.NewReader(text), start, func(it Item) bool { return it.Request != nil })
	})
}

// live has a text for every name.
type live struct{ asked int }

func (l *live) Answer(_ context.Context, name, rrtype string) resolver.Recorded {
	l.asked++
	return resolver.Recorded{Name: name, Type: rrtype, Records: []string{"live"}}
}

func TestWorld(t *testing.T) {
	w := NewWorld()
	w.Record(&resolver.Recorded{Name: "example.org", Type: "MX", Records: []string{"5 mx.example.org"}})
	w.Record(&resolver.Recorded{Name: "gone.example", Type: "A"})
	it := item(0, "a@example.org", nil)
	it.Request.Client.Name, it.Request.Client.ReverseName, it.Request.Helo = "mail.example.org", "mail.example.org", "helo.example"
	w.Suppose(it.Request)
	six := item(0, "", nil)
	six.Request.Client.Addr, six.Request.Helo = netip.MustParseAddr("2001:db8::1"), "six.example"
	w.Suppose(six.Request)
	for key, want := range map[string][]string{
		"MX example.org": {"5 mx.example.org"}, "A example.org": {"192.0.2.1"}, "A mail.example.org": {"192.0.2.1"}, "A helo.example": {"192.0.2.1"},
		"PTR 1.2.0.192.in-addr.arpa": {"mail.example.org"}, "AAAA six.example": {"2001:db8::1"}, "A six.example": nil, "A gone.example": nil, "TXT other.example": nil,
	} {
		rrtype, name, _ := strings.Cut(key, " ")
		if got := w.Answer(t.Context(), name, rrtype); !reflect.DeepEqual(got.Records, want) || got.Failure != "" {
			t.Errorf("%s: %+v", key, got)
		}
	}
	if w.Answer(t.Context(), "other.example", "TXT"); w.Unrecorded() != 2 {
		t.Error(w.Unrecorded())
	}
	l := new(live)
	w.Live = l
	for range 2 {
		if got := w.Answer(t.Context(), "other.example", "TXT"); len(got.Records) != 1 || l.asked != 1 {
			t.Errorf("%+v, asked %d times", got, l.asked)
		}
	}
	w.Remember(mailaddr.Parse("Bob@Example.com"), "unknown")
	if said, _ := w.Recipient(mailaddr.Parse("bob@example.com")); said != "unknown" {
		t.Error(said)
	}
	if said, _ := w.Recipient(mailaddr.Parse("ann@example.com")); said != "known" {
		t.Error(said)
	}
}
