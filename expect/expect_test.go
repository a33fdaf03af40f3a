package expect

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"postern/internal/conf"
	"postern/policy"
	"postern/resolver"
)

func pointer(s string) *string { return &s }

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "mail.eml")
	if err := os.WriteFile(file, []byte("Subject: x\n\ntext\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := Case{Client: "192.0.2.1", Sender: "a@example.org", Action: "accept"}
	for _, tt := range []struct {
		name string
		edit func(c *Case)
		want string
	}{
		{"good", func(*Case) {}, ""},
		{"everything", func(c *Case) {
			*c = Case{
				Client: "2001:db8::1", ClientName: "a.example", ReverseName: "b.example", Helo: pointer(""), Sender: "a@example.org", Message: file, DNS: []string{"a.example A none"},
				Listed: []string{"bl.example", "two.example=127.0.0.3"}, SPF: "pass", RecipientIs: "unknown", RetryAfter: conf.Duration(time.Minute), Times: 3, Action: "reject", Reply: "no",
				Header: []string{"Subject: x"},
			}
		}, ""},
		{"no client", func(c *Case) { c.Client = "" }, "expect[0]: client is missing: the address of the client"},
		{"bad client", func(c *Case) { c.Client = "mail.example" }, `expect[0].client: "mail.example" is not an IP address`},
		{"no action", func(c *Case) { c.Action = "" }, "expect[0]: action is missing: one of accept, permit, reject, defer, hold, discard, redirect"},
		{"bad action", func(c *Case) { c.Action = "refuse" }, `expect[0].action: "refuse" is none of accept, permit, reject, defer, hold, discard, redirect`},
		{"bad result", func(c *Case) { c.SPF = "passed" }, `expect[0].spf: "passed" is none of pass, fail, softfail, neutral, none, temperror, permerror`},
		{"nothing to have SPF", func(c *Case) { c.SPF, c.Sender = "pass", "" }, "expect[0].spf: there is neither a sender with a domain nor a HELO name that could have a record"},
		{"a HELO name has SPF", func(c *Case) { c.SPF, c.Sender, c.Helo = "pass", "", pointer("mail.example") }, ""},
		{"bad recipient", func(c *Case) { c.RecipientIs = "there" }, `expect[0].recipient_is: "there" is none of known, unknown, temporary`},
		{"bad record", func(c *Case) { c.DNS = []string{"a A 192.0.2.1", "a A b"} }, `expect[0].dns[1]: "b" is no data of a record A`},
		{"bad listing", func(c *Case) { c.Listed = []string{"bl.example=::1"} }, `expect[0].listed[0]: "bl.example=::1" is not a DNS list with an answer, such as "zen.spamhaus.org=127.0.0.2"`},
		{"bad listing", func(c *Case) { c.Listed = []string{"bl"} }, `expect[0].listed[0]: "bl" is not a DNS list with an answer, such as "zen.spamhaus.org=127.0.0.2"`},
		{"too often", func(c *Case) { c.Times = maxTimes + 1 }, "expect[0].times: 10001 is out of range: 1 to 10000"},
		{"less than once", func(c *Case) { c.Times = -1 }, "expect[0].times: -1 is out of range: 1 to 10000"},
		{"back in time", func(c *Case) { c.RetryAfter = -1 }, "expect[0].retry_after: -1ns is negative"},
		{"no file", func(c *Case) { c.Message = filepath.Join(dir, "none") }, "no such file or directory"},
		{"a directory", func(c *Case) { c.Message = dir }, "is not a file of at most 64 MB"},
		{"late", func(c *Case) { c.Message, c.Stage = file, policy.StageData }, "expect[0].stage: a message is looked at behind stage rcpt"},
		{"no field", func(c *Case) { c.Message, c.Header = file, []string{"Subject"} }, `expect[0].header[0]: "Subject" is not the beginning of a header field, such as "Subject: [spam]"`},
		{"no message", func(c *Case) { c.Header = []string{"Subject:"} }, "expect[0].header: there is no message that could have it"},
		{"nobody reads it", func(c *Case) { c.Reply = "no" }, "expect[0].reply: only who is refused gets a reply"},
	} {
		c := good
		tt.edit(&c)
		var fs conf.Faults
		c.Validate(Key(0), &fs)
		if tt.want == "" && fs.Err() != nil || tt.want != "" && (len(fs) != 1 || !strings.Contains(fs[0].Error(), tt.want)) {
			t.Errorf("%s: %v, want %s", tt.name, fs, tt.want)
		}
	}
}

func TestRequest(t *testing.T) {
	at := time.Unix(1_000_000_000, 0)
	for _, tt := range []struct {
		c                   Case
		helo, name, reverse string
		stage               policy.Stage
	}{
		{Case{Client: "::ffff:192.0.2.1"}, "[192.0.2.1]", "", "", policy.StageRcpt},
		{Case{Client: "2001:db8::1"}, "[IPv6:2001:db8::1]", "", "", policy.StageRcpt},
		{Case{Client: "192.0.2.1", ClientName: "Mail.Example."}, "Mail.Example.", "mail.example", "mail.example", policy.StageRcpt},
		{Case{Client: "192.0.2.1", ClientName: "mail.example", Helo: pointer("")}, "", "mail.example", "mail.example", policy.StageRcpt},
		{Case{Client: "192.0.2.1", ReverseName: "other.example", Stage: policy.StageMail}, "[192.0.2.1]", "", "other.example", policy.StageMail},
	} {
		r := tt.c.Request(at)
		if r.Helo != tt.helo || r.Client.Name != tt.name || r.Client.ReverseName != tt.reverse || r.Stage != tt.stage || r.Time != at || r.DryRun || r.Client.Addr.Is4In6() {
			t.Errorf("%+v: %+v", tt.c, r)
		}
	}
}

// nowhere is a world in which every name has a text.
type nowhere struct{}

func (nowhere) Answer(_ context.Context, name, rrtype string) resolver.Recorded {
	return resolver.Recorded{Name: name, Type: rrtype, Records: []string{"live"}}
}

func TestWorld(t *testing.T) {
	base := Case{Client: "192.0.2.1", ClientName: "mail.example", Sender: "a@example.org", Listed: []string{"bl.example=127.0.0.3", "bl.example=127.0.0.9", "dq.example"}}
	for _, tt := range []struct {
		name      string
		edit      func(*Case)
		ask, kind string
		want      []string
		failure   string
	}{
		{"the client's name", nil, "mail.example", "A", []string{"192.0.2.1"}, ""},
		{"not of the other family", nil, "mail.example", "AAAA", nil, ""},
		{"of IPv6", func(c *Case) { c.Client = "2001:db8::1" }, "mail.example", "AAAA", []string{"2001:db8::1"}, ""},
		{"its reverse name", nil, "1.2.0.192.in-addr.arpa", "PTR", []string{"mail.example"}, ""},
		{"another reverse name", func(c *Case) { c.ReverseName = "b.example" }, "1.2.0.192.in-addr.arpa", "PTR", []string{"b.example"}, ""},
		{"that leads nowhere", func(c *Case) { c.ReverseName = "b.example" }, "b.example", "A", nil, ""},
		{"no reverse name", func(c *Case) { c.ClientName = "" }, "1.2.0.192.in-addr.arpa", "PTR", nil, ""},
		{"HELO", func(c *Case) { c.Helo = pointer("helo.example") }, "helo.example", "A", []string{"192.0.2.1"}, ""},
		{"the sender's MX", nil, "example.org", "MX", []string{"10 example.org"}, ""},
		{"no MX for nobody", func(c *Case) { c.Sender = "" }, "example.org", "MX", nil, ""},
		{"on lists", nil, "1.2.0.192.bl.example", "A", []string{"127.0.0.3", "127.0.0.9"}, ""},
		{"with a key", nil, "1.2.0.192.secret.dq.example", "A", []string{"127.0.0.2"}, ""},
		{"not on a list", nil, "1.2.0.192.other.example", "A", nil, ""},
		{"not another address", nil, "2.2.0.192.bl.example", "A", nil, ""},
		{"no text of a list", nil, "1.2.0.192.bl.example", "TXT", nil, ""},
		{"IPv6 on a list", func(c *Case) { c.Client = "2001:db8::1" }, "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.dq.example", "A", []string{"127.0.0.2"}, ""},
		{"SPF passes", func(c *Case) { c.SPF = "pass" }, "example.org", "TXT", []string{"v=spf1 ip4:192.0.2.1 -all"}, ""},
		{"SPF passes for IPv6", func(c *Case) { c.SPF, c.Client = "pass", "2001:db8::1" }, "example.org", "TXT", []string{"v=spf1 ip6:2001:db8::1 -all"}, ""},
		{"SPF fails", func(c *Case) { c.SPF = "fail" }, "example.org", "TXT", []string{"v=spf1 -all"}, ""},
		{"softly", func(c *Case) { c.SPF = "softfail" }, "example.org", "TXT", []string{"v=spf1 ~all"}, ""},
		{"neither", func(c *Case) { c.SPF = "neutral" }, "example.org", "TXT", []string{"v=spf1 ?all"}, ""},
		{"no record", func(c *Case) { c.SPF = "none" }, "example.org", "TXT", nil, ""},
		{"a bad record", func(c *Case) { c.SPF = "permerror" }, "example.org", "TXT", []string{"v=spf1 nonsense -all"}, ""},
		{"no answer", func(c *Case) { c.SPF = "temperror" }, "example.org", "TXT", nil, "servfail"},
		{"of HELO", func(c *Case) { c.SPF, c.Sender = "fail", "" }, "mail.example", "TXT", []string{"v=spf1 -all"}, ""},
		{"given", func(c *Case) { c.DNS = []string{"x.example TXT one", "x.example TXT two"} }, "x.example", "TXT", []string{"one", "two"}, ""},
		{"given in place", func(c *Case) { c.DNS = []string{"mail.example A 198.51.100.1"} }, "mail.example", "A", []string{"198.51.100.1"}, ""},
		{"given failure", func(c *Case) { c.DNS = []string{"1.2.0.192.bl.example A timeout"} }, "1.2.0.192.bl.example", "A", nil, "timeout"},
		{"live", func(c *Case) { c.Live = true }, "anything.example", "TXT", []string{"live"}, ""},
		{"live in place of what is made up", func(c *Case) { c.Live = true }, "example.org", "MX", []string{"live"}, ""},
		{"given, and not live", func(c *Case) { c.Live, c.SPF = true, "none" }, "example.org", "TXT", nil, ""},
		{"not live", nil, "anything.example", "TXT", nil, ""},
	} {
		c := base
		if tt.edit != nil {
			tt.edit(&c)
		}
		got := c.World(nowhere{}).Answer(t.Context(), tt.ask, tt.kind)
		if !reflect.DeepEqual(got.Records, tt.want) || got.Failure != tt.failure {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
	c := Case{Client: "192.0.2.1", Live: true}
	if got := c.World(nil).Answer(t.Context(), "a.example", "A"); got.Records != nil {
		t.Error(got)
	}
}

func TestJudge(t *testing.T) {
	refused := &policy.Decision{
		Verdict: policy.Verdict{Action: policy.DeferIfPermit, Reason: "greylist-first-contact", Detail: "net:192.0.2.0/24", Reply: policy.Reply{Code: 450, Enhanced: "4.2.0", Text: "Greylisted"}},
		Check:   "greylist",
	}
	passed := &policy.Decision{
		Steps: []policy.Step{
			{Check: "greylist", Verdict: policy.Verdict{Reason: "greylist-passed"}}, {Check: "rbl"},
			{Check: "x", Outcome: policy.Skipped, Verdict: policy.Verdict{Reason: "allowed"}},
		},
		WouldCheck: "rbl", Would: policy.Verdict{Action: policy.Reject},
	}
	header := []policy.Field{{Name: "Subject", Value: " [spam]\n\thello"}, {Name: "X-Mark ", Value: "yes"}}
	for _, tt := range []struct {
		name string
		c    Case
		d    *policy.Decision
		want string
	}{
		{"as expected", Case{Action: "defer", Check: "greylist", Reason: "greylist-first-contact", Reply: "4.2.0 Grey"}, refused, ""},
		{"accepted", Case{Action: "accept", Reason: "greylist-passed"}, passed, ""},
		{"allowed", Case{Action: "accept"}, &policy.Decision{Verdict: policy.Verdict{Action: policy.Allow}}, ""},
		{"permitted is more", Case{Action: "accept"}, &policy.Decision{Verdict: policy.Verdict{Action: policy.Permit}}, "action accept was expected, it is permit"},
		{"another action", Case{Action: "reject"}, refused, "action reject was expected, it is defer (by greylist, greylist-first-contact, net:192.0.2.0/24, 450 4.2.0 Greylisted)"},
		{"everything", Case{Action: "accept", Check: "rbl", Reason: "x", Reply: "no"}, &policy.Decision{}, `check rbl was expected, it is none; reason x was expected, it is none; a reply with "no" was expected, it is ""`},
		{"in shadow", Case{Action: "reject"}, passed, "action reject was expected, it is accept (in shadow rbl would reject)"},
		{"a folded field", Case{Action: "accept", Header: []string{"subject: [spam] hel", "X-Mark: y", "X-Mark:"}}, passed, ""},
		{"no such field", Case{Action: "accept", Header: []string{"Subject: hello"}}, passed, `a header field "Subject: hello" was expected, there is none (in shadow rbl would reject)`},
	} {
		err := tt.c.Judge(tt.d, header)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
	for action, want := range map[policy.Action]string{policy.Hold: "hold", policy.Discard: "discard", policy.Redirect: "redirect", policy.Defer: "defer", policy.Reject: "reject"} {
		if word(action) != want {
			t.Error(action, word(action))
		}
	}
	if (&Case{}).Title(2) != "number 2" || (&Case{Name: "a"}).Title(2) != `"a"` {
		t.Error("titles")
	}
	if times, wait := (&Case{RetryAfter: conf.Duration(time.Minute)}).Runs(); times != 1 || wait != time.Minute {
		t.Error(times, wait)
	}
	if (&Case{}).RecipientSaid() != "known" || (&Case{RecipientIs: "unknown"}).RecipientSaid() != "unknown" {
		t.Error("recipients")
	}
}
