package callout

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/internal/smtptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// names is the DNS of these tests.
type names struct {
	mx    map[string][]*net.MX
	addrs map[string][]string
	err   error // for everything that is not there
}

func (n names) fail(name string) error {
	if n.err != nil {
		return n.err
	}
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func (n names) LookupMX(_ context.Context, name string) ([]*net.MX, error) {
	if mx, ok := n.mx[name]; ok {
		return mx, nil
	}
	return nil, n.fail(name)
}

func (n names) LookupIPAddr(_ context.Context, host string) (out []net.IPAddr, err error) {
	for _, a := range n.addrs[host] {
		out = append(out, net.IPAddr{IP: net.ParseIP(a)})
	}
	if len(out) == 0 {
		return nil, n.fail(host)
	}
	return out, nil
}

func hops(t testing.TB, s string) []Hop {
	t.Helper()
	h, err := ParseHops(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// quick is a configuration for tests: short waits, no accept-all test.
func quick(change ...func(*Config)) Config {
	cfg := DefaultConfig()
	cfg.ReplyTimeout, cfg.Timeout = conf.Duration(5*time.Second), conf.Duration(20*time.Second)
	cfg.AcceptAllKeep, cfg.DownAfter = 0, 0
	for _, f := range change {
		f(&cfg)
	}
	return cfg
}

func prober(t testing.TB, cfg Config, dns Resolver) (*Prober, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.InfoLevel)
	if dns == nil {
		dns = names{}
	}
	p := New(cfg, "gate.example.org", dns, zap.New(core), prometheus.NewRegistry(), nil)
	t.Cleanup(p.Close)
	return p, logs
}

var options = &Options{Sender: "double-bounce@gate.example.org", Level: TLSMay}

func ask(t testing.TB, p *Prober, hop, address string) (Result, *Dialogue) {
	t.Helper()
	d := &Dialogue{}
	return p.Ask(t.Context(), &Probe{Hops: hops(t, hop), Address: mailaddr.Parse(address), Options: options, Dialogue: d}), d
}

func TestKnownAndUnknown(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	p, _ := prober(t, quick(), nil)
	for _, tt := range []struct {
		address string
		want    Class
	}{
		{"a@example.com", Known}, {"b@example.com", Unknown}, {"a@example.com", Known},
	} {
		r, d := ask(t, p, s.NextHop(), tt.address)
		if r.Class != tt.want || r.Stage != StageRcpt || r.Reply.Code == 0 {
			t.Errorf("%s: %+v\n%s", tt.address, r, strings.Join(d.Lines, "\n"))
		}
	}
	if n := s.Count("CONNECT"); n != 1 {
		t.Errorf("%d connections for three addresses", n)
	}
	log := strings.Join(s.Log(), "\n")
	for _, want := range []string{"EHLO gate.example.org", "MAIL FROM:<double-bounce@gate.example.org>", "RCPT TO:<a@example.com>", "RSET"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in\n%s", want, log)
		}
	}
	if strings.Contains(log, "DATA") {
		t.Error("DATA was sent")
	}
	st := p.Status()
	if len(st) != 1 || st[0].State != "up" || st[0].Asked != 3 || st[0].Idle != 1 {
		t.Errorf("status %+v", st)
	}
}

func TestWithoutPipelining(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	s.Features("SIZE 1000")
	p, _ := prober(t, quick(func(c *Config) { c.Size = 1 }), nil)
	for _, tt := range []struct {
		address string
		want    Class
	}{{"a@example.com", Known}, {"b@example.com", Unknown}} {
		if r, _ := ask(t, p, s.NextHop(), tt.address); r.Class != tt.want {
			t.Errorf("%s: %+v", tt.address, r)
		}
	}
	if log := strings.Join(s.Log(), "\n"); !strings.Contains(log, "> SIZE=1") {
		t.Errorf("no SIZE in\n%s", log)
	}
	s.Answer("MAIL", "550 5.7.1 no")
	if r, _ := ask(t, p, s.NextHop(), "a@example.com"); r.Class != Refused || r.Stage != StageMail {
		t.Errorf("refused sender: %+v", r)
	}
}

func TestLMTP(t *testing.T) {
	s := smtptest.StartLMTP(t, filepath.Join(t.TempDir(), "s")).Know("a@example.com")
	p, _ := prober(t, quick(), nil)
	if r, d := ask(t, p, s.NextHop(), "a@example.com"); r.Class != Known {
		t.Errorf("%+v\n%s", r, strings.Join(d.Lines, "\n"))
	}
	if r, _ := ask(t, p, s.NextHop(), "b@example.com"); r.Class != Unknown {
		t.Errorf("%+v", r)
	}
	if s.Count("LHLO") != 1 || s.Count("EHLO") != 0 {
		t.Errorf("commands %q", s.Log())
	}
}

// TestOddServers is what each odd answer leads to, at each stage.
func TestOddServers(t *testing.T) {
	for _, tt := range []struct {
		name, verb, answer string
		want               Class
		stage              Stage
	}{
		{"greeting 554", "GREETING", "554 5.7.1 you are listed", Down, StageGreeting},
		{"greeting 421", "GREETING", "421 4.3.2 busy", Down, StageGreeting},
		{"greeting drop", "GREETING", smtptest.Drop, Down, StageGreeting},
		{"greeting silence", "GREETING", smtptest.Silence, Down, StageGreeting},
		{"greeting nonsense", "GREETING", "hello there", Down, StageGreeting},
		{"greeting is us", "GREETING", "220 gate.example.org ESMTP", Down, StageGreeting},
		{"ehlo 421", "EHLO", "421 4.3.2 busy", Down, StageHello},
		{"ehlo drop", "EHLO", smtptest.Drop, Down, StageHello},
		{"ehlo is us", "EHLO", "250 GATE.example.org\nPIPELINING", Down, StageHello},
		{"mail 450", "MAIL", "450 4.7.1 later", Down, StageMail},
		{"mail 550", "MAIL", "550 5.7.1 not you", Refused, StageMail},
		{"mail 421", "MAIL", "421 4.7.0 bye", Down, StageMail},
		{"mail drop", "MAIL", smtptest.Drop, Down, StageMail},
		{"rcpt 450", "RCPT", "450 4.2.0 greylisted", Temporary, StageRcpt},
		{"rcpt 451 bare", "RCPT", "451 try again", Temporary, StageRcpt},
		{"rcpt 421", "RCPT", "421 4.7.0 too many", Down, StageRcpt},
		{"rcpt drop", "RCPT", smtptest.Drop, Down, StageRcpt},
		{"rcpt silence", "RCPT", smtptest.Silence, Down, StageRcpt},
		{"rcpt 252", "RCPT", "252 2.1.5 cannot vrfy", Undecided, StageRcpt},
		{"rcpt 552 full", "RCPT", "552 5.2.2 over quota", Full, StageRcpt},
		{"rcpt 452 full", "RCPT", "452 4.2.2 over quota", Full, StageRcpt},
		{"rcpt 554 policy", "RCPT", "554 5.7.1 listed at zen", Refused, StageRcpt},
		{"rcpt 550 bare", "RCPT", "550 no such user", Unknown, StageRcpt},
		{"rcpt 550 spam", "RCPT", "550 spam source blocked", Refused, StageRcpt},
		{"rcpt 354", "RCPT", "354 what", Undecided, StageRcpt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t).Know("a@example.com").Answer(tt.verb, tt.answer)
			p, _ := prober(t, quick(func(c *Config) {
				if tt.answer == smtptest.Silence {
					c.ReplyTimeout = conf.Duration(200 * time.Millisecond)
				}
			}), nil)
			r, d := ask(t, p, s.NextHop(), "a@example.com")
			if r.Class != tt.want || r.Stage != tt.stage {
				t.Errorf("%v at %v (%s), want %v at %v\n%s", r.Class, r.Stage, r.Text(), tt.want, tt.stage, strings.Join(d.Lines, "\n"))
			}
			if r.Class == Down && r.Text() == "" {
				t.Error("no reason")
			}
		})
	}
}

func TestHeloWhereEhloIsNotUnderstood(t *testing.T) {
	for _, answer := range []string{"502 5.5.1 what", "554 5.7.1 no extensions", "450 4.3.0 odd"} {
		s := smtptest.Start(t).Know("a@example.com").Answer("EHLO", answer)
		p, _ := prober(t, quick(), nil)
		if r, _ := ask(t, p, s.NextHop(), "a@example.com"); r.Class != Known || s.Count("HELO") != 1 {
			t.Errorf("%s: %+v", answer, r)
		}
	}
}

func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		stage Stage
		reply string
		want  Class
		alarm bool
	}{
		{StageRcpt, "250 2.1.5 Ok", Known, false},
		{StageRcpt, "251 will forward", Known, false},
		{StageRcpt, "550 5.1.1 User unknown", Unknown, false},
		{StageRcpt, "550 5.1.0 x", Unknown, false},
		{StageRcpt, "550 5.1.2 x", Unknown, false},
		{StageRcpt, "553 5.1.3 x", Unknown, false},
		{StageRcpt, "551 5.1.6 moved", Unknown, false},
		{StageRcpt, "556 5.1.10 null MX", Unknown, false},
		{StageRcpt, "550 5.2.1 disabled", Unknown, false},
		{StageRcpt, "550 5.2.0 x", Unknown, false},
		{StageRcpt, "525 5.7.13 disabled", Unknown, false},
		{StageRcpt, "550 5.7.17 owner changed", Unknown, false},
		{StageRcpt, "552 5.2.3 too large", Known, false},
		{StageRcpt, "552 5.3.4 too large", Known, false},
		{StageRcpt, "550 5.7.2 members only", Known, false},
		{StageRcpt, "550 5.7.1 blocked", Refused, true},
		{StageRcpt, "554 5.7.1 Relay access denied", Refused, true},
		{StageRcpt, "550 5.7.26 x", Refused, true},
		{StageRcpt, "550 5.1.8 bad sender", Refused, true},
		{StageRcpt, "550 5.1.7 bad sender", Refused, true},
		{StageRcpt, "550 5.6.7 utf8", Undecided, false},
		{StageRcpt, "550 5.5.1 x", Undecided, false},
		{StageRcpt, "550 5.4.1 no answer from host", Temporary, false},
		{StageRcpt, "550 5.4.4 no route", Temporary, false},
		{StageRcpt, "550 5.4.1 Recipient address rejected: Access denied. AS(201806281)", Unknown, false},
		{StageRcpt, "552 mailbox full", Full, false},
		{StageRcpt, "556 no mail here", Unknown, false},
		{StageRcpt, "554 no", Refused, true},
		{StageRcpt, "521 no", Refused, true},
		{StageRcpt, "503 bad sequence", Undecided, false},
		{StageRcpt, "501 syntax", Undecided, false},
		{StageRcpt, "550 Sender verify failed", Refused, true},
		{StageRcpt, "550 blocked by SPF", Refused, true},
		{StageRcpt, "553 sorry, no mailbox here by that name", Unknown, false},
		{StageRcpt, "452 4.5.3 too many", Temporary, false},
		// Postfix's reject_unlisted_sender and reject_unverified_sender, at RCPT.
		{StageRcpt, "550 5.1.0 <double-bounce@gate.example.org>: Sender address rejected: User unknown in virtual mailbox table", Refused, true},
		{StageRcpt, "550 5.1.0 <x@example.com>: Recipient address rejected: undeliverable", Unknown, false},
		{StageRcpt, "550 5.1.1 <p@gate.example.org>: Sender address rejected: undeliverable address", Refused, true},
		// Exim's words where the administrator has given none, and the usual ones.
		{StageRcpt, "550 Administrative prohibition", Refused, true},
		{StageRcpt, "550 192.0.2.1 is in a black list at bl.example.net", Refused, true},
		{StageRcpt, "550 Access denied", Refused, true},
		// The address chooses no verdict.
		{StageRcpt, "550 <spam@example.com>: no such user", Unknown, false},
		{StageRcpt, "550 <\"a spam b\"@example.com> unknown", Unknown, false},
		{StageRcpt, "550 spam < blocked", Refused, true},
		{StageRcpt, "550 relay@policy.example.com... user unknown", Unknown, false},
		{StageRcpt, "550 no mailbox (sender@example.com)", Unknown, false},
		{StageRcpt, "421 4.3.2 x", Down, false},
		{StageMail, "553 5.6.7 utf8", Undecided, false},
		{StageMail, "550 5.1.8 x", Refused, true},
		{StageMail, "451 4.3.0 x", Down, false},
		{StageGreeting, "554 go away", Down, true},
		{StageHello, "550 5.7.1 x", Down, true},
		{StageHello, "450 x", Down, false},
	} {
		r, err := readReply(bufio.NewReaderSize(strings.NewReader(tt.reply+"\r\n"), maxLine), func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		if got := Classify(tt.stage, r); got != tt.want {
			t.Errorf("%v %s: %v, want %v", tt.stage, tt.reply, got, tt.want)
		}
		if got := Alarm(tt.stage, r); got != tt.alarm {
			t.Errorf("%v %s: alarm %v", tt.stage, tt.reply, got)
		}
	}
}

func TestReplies(t *testing.T) {
	for _, tt := range []struct {
		in   string
		code int
		enh  string
		text string // "" means an error
	}{
		{"250 ok\r\n", 250, "", "ok"},
		{"250-a\r\n250 b\r\n", 250, "", "a b"},
		{"550-5.1.1 no\r\n550 5.1.1 such user\r\n", 550, "5.1.1", "no such user"},
		{"550 4.1.1 odd class\n", 550, "", "4.1.1 odd class"},
		{"250\r\n", 250, "", "-"},
		{"250-a\r\n550 b\r\n", 0, "", ""},
		{"25 x\r\n", 0, "", ""},
		{"650 x\r\n", 0, "", ""},
		{"250x\r\n", 0, "", ""},
		{strings.Repeat("250-x\r\n", maxLines), 0, "", ""},
		{"250 " + strings.Repeat("x", maxLine) + "\r\n", 0, "", ""},
		{"250 cut", 0, "", ""},
	} {
		r, err := readReply(bufio.NewReaderSize(strings.NewReader(tt.in), maxLine), func(string) {})
		if (err != nil) != (tt.text == "") {
			t.Errorf("%.30q: %v", tt.in, err)
			continue
		}
		if err == nil && (r.Code != tt.code || r.Enhanced != tt.enh || tt.text != "-" && strings.Join(r.Lines, " ") != tt.text) {
			t.Errorf("%.30q: %+v", tt.in, r)
		}
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte("250-a\r\n250 2.1.5 b\r\n"))
	f.Add([]byte("550 5.1.1\r\n"))
	f.Add([]byte("421\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readReply(bufio.NewReaderSize(strings.NewReader(string(b)), maxLine), func(string) {})
		if err != nil {
			return
		}
		if r.Code < 200 || r.Code > 599 || len(r.Lines) == 0 || len(r.Lines) > maxLines || len(r.String()) > 320 {
			t.Fatalf("%q: %+v", b, r)
		}
		if r.Enhanced != "" && int(r.Enhanced[0]-'0') != r.Code/100 {
			t.Fatalf("%q: class of %s", b, r.Enhanced)
		}
		for i := range stageCount {
			if c := Classify(i, r); c == Unknown && (i != StageRcpt || r.Code/100 != 5) {
				t.Fatalf("%q at %v makes an address unknown", b, i)
			}
		}
	})
}

func TestHops(t *testing.T) {
	for in, want := range map[string]string{
		"[mail.example.org]":                   "[mail.example.org]",
		"[Mail.Example.ORG.]:25":               "[mail.example.org]",
		"[mail.example.org]:2525":              "[mail.example.org]:2525",
		"mail.example.org:587":                 "mail.example.org:587",
		"example.org":                          "example.org",
		"[192.0.2.5]:26":                       "[192.0.2.5]:26",
		"[2001:db8::5]":                        "[2001:db8::5]",
		"[IPv6:2001:db8::5]:26":                "[2001:db8::5]:26",
		"lmtp:unix:/run/lmtp":                  "lmtp:unix:/run/lmtp",
		"lmtp:inet:mail.example.org:24":        "lmtp:mail.example.org",
		"lmtp:[mail.example.org]":              "lmtp:mail.example.org",
		"smtp:[a.example], b.example:26":       "[a.example] b.example:26",
		"lmtp:a.example, [192.0.2.1]:25":       "lmtp:a.example lmtp:[192.0.2.1]:25",
		"[127.0.0.1]:10025":                    "[127.0.0.1]:10025",
		"lmtp:[127.0.0.1]":                     "!loopback",
		"[127.0.0.1]":                          "!loopback",
		"[127.0.0.1]:25":                       "!loopback",
		"[0.0.0.0]:25":                         "!this host",
		"[::]":                                 "!this host",
		"localhost":                            "!this host",
		"192.0.2.5":                            "!brackets",
		"2001:db8::5":                          "!brackets",
		"[a.example":                           "!closing bracket",
		"[a.example]x":                         "!behind the bracket",
		"a.example:":                           "!no port",
		"[a.example]:":                         "!no port",
		"a.example:smtp":                       "!not a port number",
		"a.example:0":                          "!not a port number",
		"a.example:70000":                      "!not a port number",
		"":                                     "!empty next hop",
		"a.example,":                           "!empty next hop",
		"lmtp:unix:run/x":                      "!begins with /",
		"a b.example":                          "!not a host name",
		"a..example":                           "!not a host name",
		"..":                                   "!not a host name",
		strings.Repeat("a.example,", 11) + "b": "!at most",
	} {
		hs, err := ParseHops(in)
		if part, bad := strings.CutPrefix(want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%q: %v, want %q", in, err, part)
			}
			continue
		}
		var got []string
		for _, h := range hs {
			got = append(got, h.String())
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzHops(f *testing.F) {
	for _, s := range []string{"[a.example]:25", "lmtp:unix:/x", "a.example,b.example:2", "[2001:db8::1]", "..", "a\n."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		hs, err := ParseHops(s)
		if err != nil {
			return
		}
		for _, h := range hs {
			again, err := ParseHops(h.String())
			if err != nil || len(again) != 1 || again[0].String() != h.String() {
				t.Fatalf("%q gives %q, which reads as %v, %v", s, h, again, err)
			}
		}
	})
}

func TestFromTransport(t *testing.T) {
	svc := Services{SMTP: []string{"smtp", "relay"}, LMTP: []string{"lmtp"}}
	for in, want := range map[string]string{
		"smtp:[mail.example.org]:26": "[mail.example.org]:26",
		"relay:mail.example.org":     "mail.example.org",
		"smtp:":                      "example.com",
		":[mail.example.org]":        "[mail.example.org]",
		"lmtp:unix:/run/lmtp":        "lmtp:unix:/run/lmtp",
		"lmtp:inet:a.example:24":     "lmtp:a.example",
		":":                          "",
	} {
		hs, err := FromTransport(in, "example.com", svc)
		got := ""
		if len(hs) > 0 {
			got = hs[0].String()
		}
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"error:5.1.1 no", "discard:", "local:", "virtual:", "maildrop:x"} {
		if _, err := FromTransport(in, "example.com", svc); !errors.Is(err, ErrNotProbed) {
			t.Errorf("%q: %v", in, err)
		}
	}
	if _, err := FromTransport("smtp", "example.com", svc); err == nil {
		t.Error("a result without colon was taken")
	}
}

func TestMX(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	_, port, _ := net.SplitHostPort(s.Addr())
	dead := smtptest.Start(t)
	dead.Stop()
	dns := names{
		mx: map[string][]*net.MX{
			"two.example":  {{Host: "dead.example.", Pref: 20}, {Host: "live.example.", Pref: 10}},
			"null.example": {{Host: ".", Pref: 0}},
			"bare.example": {{Host: "gone.example.", Pref: 10}},
		},
		addrs: map[string][]string{"live.example": {"127.0.0.1"}, "dead.example": {"127.0.0.1"}, "implicit.example": {"127.0.0.1"}},
	}
	p, _ := prober(t, quick(), dns)
	for _, tt := range []struct {
		hop, text string
		want      Class
	}{
		{"null.example:" + port, "null MX", Down}, // a relay that the operator has named
		{"bare.example:" + port, "gone.example", Down},
		{"none.example:" + port, "none.example", Down},
		{"two.example:" + port, "Ok", Known},
		{"implicit.example:" + port, "Ok", Known},
		{"[live.example]:" + port, "Ok", Known},
	} {
		r, _ := ask(t, p, tt.hop, "a@example.com")
		if r.Class != tt.want || !strings.Contains(r.Text(), tt.text) {
			t.Errorf("%s: %v %q", tt.hop, r.Class, r.Text())
		}
	}
	if r, _ := ask(t, p, "null.example:"+port, "a@null.example"); r.Class != Unknown || !strings.Contains(r.Text(), "null MX") {
		t.Errorf("the domain itself takes no mail: %v %q", r.Class, r.Text())
	}
	broken := names{err: &net.DNSError{Err: "SERVFAIL", Name: "x", IsTemporary: true}, addrs: dns.addrs}
	p, _ = prober(t, quick(), broken)
	if r, _ := ask(t, p, "live.example:"+port, "a@example.com"); r.Class != Down || r.Stage != StageRoute {
		t.Errorf("with a DNS that fails: %+v; the addresses must not stand in for the MX", r)
	}
}

// TestOwnHostAmongTheExchangers is RFC 5321 section 5.1: only those that are
// preferred to this host are asked.
func TestOwnHostAmongTheExchangers(t *testing.T) {
	dns := names{
		mx: map[string][]*net.MX{
			"behind.example": {{Host: "us.example.", Pref: 20}, {Host: "inner.example.", Pref: 10}, {Host: "other.example.", Pref: 20}},
			"loop.example":   {{Host: "us.example.", Pref: 10}, {Host: "other.example.", Pref: 10}, {Host: "inner.example.", Pref: 30}},
			"nat.example":    {{Host: "nat.example.", Pref: 10}},
		},
		addrs: map[string][]string{
			"us.example": {"127.0.0.1"}, "zero.example": {"0.0.0.0"}, "nat.example": {"192.0.2.99"}, "inner.example": {"192.0.2.1", "2001:db8::1"}, "other.example": {"192.0.2.2"},
		},
	}
	p, _ := prober(t, quick(func(c *Config) { c.OwnAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.99")} }), dns)
	ts, fail := p.resolve(t.Context(), hops(t, "behind.example")[0])
	if fail != nil || len(ts) != 2 || ts[0].name != "inner.example" || ts[1].name != "inner.example" {
		t.Errorf("%v, %v", ts, fail)
	}
	for _, hop := range []string{"loop.example", "nat.example", "zero.example"} {
		if ts, fail := p.resolve(t.Context(), hops(t, hop)[0]); fail == nil || !errors.Is(fail.err, errOwnAddress) {
			t.Errorf("%s: %v, %v", hop, ts, fail)
		}
	}
}

func TestNextHopsInOrder(t *testing.T) {
	first := smtptest.Start(t).Know("a@example.com")
	second := smtptest.Start(t)
	second.AcceptAll(true)
	p, _ := prober(t, quick(), nil)
	both := first.NextHop() + "," + second.NextHop()
	if r, _ := ask(t, p, both, "b@example.com"); r.Class != Unknown || second.Count("CONNECT") != 0 {
		t.Errorf("%+v", r)
	}
	first.Stop()
	if r, _ := ask(t, p, both, "b@example.com"); r.Class != Known || r.Hop != second.NextHop() {
		t.Errorf("with the first down: %+v", r)
	}
}

func TestTLS(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	ca := s.TLS("mail.example.org")
	roots, err := LoadRoots(ca)
	if err != nil {
		t.Fatal(err)
	}
	with := func(t *testing.T, p *Prober, hop string, o *Options) Result {
		t.Helper()
		return p.Ask(t.Context(), &Probe{Hops: hops(t, hop), Address: mailaddr.Parse("a@example.com"), Options: o})
	}
	_, port, _ := net.SplitHostPort(s.Addr())
	dns := names{addrs: map[string][]string{"mail.example.org": {"127.0.0.1"}, "other.example.org": {"127.0.0.1"}}}
	p, _ := prober(t, quick(), dns)
	for _, tt := range []struct {
		name, hop string
		o         Options
		want      Class
		starttls  int
	}{
		{"may", s.NextHop(), Options{Level: TLSMay}, Known, 1},
		{"encrypt", s.NextHop(), Options{Level: TLSEncrypt}, Known, 1},
		{"none", s.NextHop(), Options{Level: TLSNone}, Known, 0},
		{"verify", "[mail.example.org]:" + port, Options{Level: TLSVerify, Roots: roots}, Known, 1},
		{"verify, other name", "[other.example.org]:" + port, Options{Level: TLSVerify, Roots: roots}, Down, 1},
		{"verify, not trusted", "[mail.example.org]:" + port, Options{Level: TLSVerify}, Down, 1},
	} {
		before := s.Count("STARTTLS")
		if r := with(t, p, tt.hop, &tt.o); r.Class != tt.want || s.Count("STARTTLS")-before != tt.starttls {
			t.Errorf("%s: %v %s, %d STARTTLS", tt.name, r.Class, r.Text(), s.Count("STARTTLS")-before)
		}
	}

	for _, answer := range []string{"454 4.7.0 not now", smtptest.Drop, "220 go ahead, but there is nobody"} {
		b := smtptest.Start(t).Know("a@example.com")
		b.Features("STARTTLS", "PIPELINING")
		b.Answer("STARTTLS", answer)
		if r := with(t, p, b.NextHop(), &Options{Level: TLSMay}); r.Class != Known {
			t.Errorf("%q at level may: %v %s", answer, r.Class, r.Text())
		}
		if r := with(t, p, b.NextHop(), &Options{Level: TLSEncrypt}); r.Class != Down || r.Stage != StageTLS {
			t.Errorf("%q at level encrypt: %v at %v", answer, r.Class, r.Stage)
		}
	}
	plain := smtptest.Start(t).Know("a@example.com")
	if r := with(t, p, plain.NextHop(), &Options{Level: TLSEncrypt}); r.Class != Down || r.Stage != StageTLS {
		t.Errorf("no STARTTLS at level encrypt: %v at %v", r.Class, r.Stage)
	}
}

func TestTheOtherFormOfTheSender(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	p, _ := prober(t, quick(), nil)
	// BATV and the like: the null sender is refused for everybody.
	s.OnRcpt(nil)
	null := &Options{Sender: "", Level: TLSMay}
	q := &Probe{Hops: hops(t, s.NextHop()), Address: mailaddr.Parse("a@example.com"), Options: null}
	if r := p.Ask(t.Context(), q); r.Class != Known {
		t.Fatalf("%+v", r)
	}
	s.Answer("MAIL", "550 5.7.1 no bounces here")
	if r := p.Ask(t.Context(), q); r.Class != Refused {
		t.Errorf("both refused: %+v", r)
	}
	if n := strings.Count(strings.Join(s.Log(), "\n"), "MAIL FROM:<double-bounce@gate.example.org>"); n != 1 {
		t.Errorf("the other form was tried %d times", n)
	}
}

func TestSMTPUTF8(t *testing.T) {
	s := smtptest.Start(t).Know("jörg@example.com", "a@xn--bcher-kva.example")
	p, _ := prober(t, quick(), nil)
	if r, _ := ask(t, p, s.NextHop(), "jörg@example.com"); r.Class != Known {
		t.Errorf("%+v", r)
	}
	if log := strings.Join(s.Log(), "\n"); !strings.Contains(log, "> SMTPUTF8") {
		t.Errorf("no SMTPUTF8 in\n%s", log)
	}
	if r, _ := ask(t, p, s.NextHop(), "a@bücher.example"); r.Class != Known {
		t.Errorf("IDN: %+v", r)
	}
	old := smtptest.Start(t)
	old.Features("PIPELINING")
	if r, _ := ask(t, p, old.NextHop(), "jörg@example.com"); r.Class != Undecided || old.Count("RCPT") != 0 {
		t.Errorf("without SMTPUTF8: %+v", r)
	}
}

func TestAcceptAll(t *testing.T) {
	s := smtptest.Start(t)
	s.AcceptAll(true)
	p, logs := prober(t, quick(func(c *Config) { c.AcceptAllKeep = conf.Duration(time.Hour) }), nil)
	for range 2 {
		if r, _ := ask(t, p, s.NextHop(), "a@example.com"); r.Class != AcceptAll {
			t.Fatalf("%+v", r)
		}
	}
	if n := s.Count("RCPT"); n != 3 {
		t.Errorf("%d RCPT for two addresses and one test", n)
	}
	if !p.AcceptsAll(hops(t, s.NextHop()), "example.com", time.Now()) || p.AcceptsAll(hops(t, s.NextHop()), "example.net", time.Now()) {
		t.Error("the domain is not remembered, or another is")
	}
	if logs.FilterMessageSnippet("takes every address").Len() != 1 {
		t.Errorf("logged %v", logs.All())
	}

	honest := smtptest.Start(t).Know("a@example.com")
	for _, address := range []string{"a@example.com", "b@example.com", "a@example.com"} {
		want := Known
		if address[0] == 'b' {
			want = Unknown
		}
		if r, _ := ask(t, p, honest.NextHop(), address); r.Class != want {
			t.Errorf("%s: %+v", address, r)
		}
	}
	if n := honest.Count("RCPT"); n != 4 {
		t.Errorf("%d RCPT for three addresses and one test", n)
	}
	if st := p.Status(); len(st) != 2 || !has(st, true) || !has(st, false) {
		t.Errorf("%+v", st)
	}
}

func has(st []Status, all bool) bool {
	for _, s := range st {
		if v, ok := s.AcceptAll["example.com"]; ok && v == all {
			return true
		}
	}
	return false
}

func TestRestraint(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	s.Latency(5 * time.Millisecond)
	p, _ := prober(t, quick(func(c *Config) { c.Connections, c.MaxTransactions, c.MaxRefused = 3, 10, 4 }), nil)
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			if r, _ := ask(t, p, s.NextHop(), "a@example.com"); r.Class != Known {
				t.Errorf("%v %s", r.Class, r.Text())
			}
		})
	}
	wg.Wait()
	if s.Most() > 5 { // the server may not have seen an end yet
		t.Errorf("%d connections at once, 3 allowed", s.Most())
	}
	if n := s.Count("CONNECT"); n < 6 || n > 20 {
		t.Errorf("%d connections for 60 addresses of 10 each", n)
	}
	refusing := smtptest.Start(t) // to which no connection is open yet
	for range 12 {
		ask(t, p, refusing.NextHop(), "b@example.com")
	}
	if n := refusing.Count("CONNECT"); n != 3 {
		t.Errorf("%d connections for 12 refused addresses, 4 a connection", n)
	}
}

func TestQueueIsBounded(t *testing.T) {
	s := smtptest.Start(t).Answer("RCPT", smtptest.Silence)
	p, _ := prober(t, quick(func(c *Config) { c.Connections, c.Queue = 1, 1 }), nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	one := func() Result {
		return p.Ask(ctx, &Probe{Hops: hops(t, s.NextHop()), Address: mailaddr.Parse("a@example.com"), Options: options})
	}
	for range 2 {
		wg.Go(func() { one() })
	}
	for s.Count("RCPT") == 0 || p.Status()[0].Waiting == 0 {
		time.Sleep(time.Millisecond)
	}
	if r := one(); r.Class != Temporary || !errors.Is(r.Err, ErrBusy) || !r.Limited {
		t.Errorf("%+v", r)
	}
	gentle := p.Ask(ctx, &Probe{Hops: hops(t, s.NextHop()), Address: mailaddr.Parse("a@example.com"), Options: options, Gentle: true})
	if !errors.Is(gentle.Err, ErrBusy) {
		t.Errorf("gentle: %+v", gentle)
	}
	cancel()
	wg.Wait()
}

func TestDownIsLeftAlone(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	s.Stop()
	p, logs := prober(t, quick(func(c *Config) { c.DownAfter, c.DownPause = 2, conf.Duration(time.Hour) }), nil)
	for i := range 4 {
		r, _ := ask(t, p, s.NextHop(), "a@example.com")
		if r.Class != Down || r.Limited != (i >= 2) {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if !p.Down(hops(t, s.NextHop()), time.Now()) || p.Status()[0].State != "down" {
		t.Errorf("%+v", p.Status())
	}
	s.Restart()
	q := &Probe{Hops: hops(t, s.NextHop()), Address: mailaddr.Parse("a@example.com"), Options: options, Force: true}
	if r := p.Ask(t.Context(), q); r.Class != Known {
		t.Errorf("forced: %+v", r)
	}
	if p.Down(q.Hops, time.Now()) {
		t.Error("still down after an answer")
	}
	if logs.FilterMessage("the next hop is down").Len() != 1 || logs.FilterMessage("the next hop is back").Len() != 1 {
		t.Errorf("logged %v", logs.All())
	}
}

func TestWhoRefusesUsIsLeftAloneAndReported(t *testing.T) {
	s := smtptest.Start(t).Answer("MAIL", "554 5.7.1 you are listed")
	p, logs := prober(t, quick(), nil)
	for i := range 3 {
		r, _ := ask(t, p, s.NextHop(), "a@example.com")
		if r.Class != Refused || r.Limited != (i > 0) {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if logs.FilterLevelExact(zapcore.ErrorLevel).Len() != 1 {
		t.Errorf("logged %v", logs.All())
	}
	if st := p.Status()[0]; st.State != "refuses us" || !strings.Contains(st.Alarm, "you are listed") {
		t.Errorf("%+v", st)
	}
	// What is learned survives a reload.
	next := New(quick(), "gate.example.org", names{}, zap.NewNop(), nil, p)
	defer next.Close()
	if next.Status()[0].State != "refuses us" {
		t.Errorf("after a reload: %+v", next.Status())
	}
}

func TestIdleConnectionLeftByTheOtherSide(t *testing.T) {
	s := smtptest.Start(t).Know("a@example.com")
	p, _ := prober(t, quick(), nil)
	if r, _ := ask(t, p, s.NextHop(), "a@example.com"); r.Class != Known {
		t.Fatalf("%+v", r)
	}
	s.Stop()
	s.Restart()
	if r, d := ask(t, p, s.NextHop(), "a@example.com"); r.Class != Known {
		t.Errorf("%+v\n%s", r, strings.Join(d.Lines, "\n"))
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"a.b+c@example.com": "a.b+c@example.com",
		"a b@example.com":   `"a b"@example.com`,
		`a"b\c@example.com`: `"a\"b\\c"@example.com`,
		".a@example.com":    `".a"@example.com`,
		"a..b@example.com":  `"a..b"@example.com`,
		"a@b@example.com":   `"a@b"@example.com`,
	} {
		if got := quote(mailaddr.Parse(in)); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestConfigFaults(t *testing.T) {
	cfg := DefaultConfig()
	var fs conf.Faults
	cfg.Validate("verify.callout", &fs)
	if len(fs) > 0 {
		t.Fatalf("the defaults: %v", fs)
	}
	cfg = Config{TLS: "maybe", Helo: "a b", Sender: "nobody", CAFile: "/nowhere", BindIPv4: "::1", Connections: 0}
	cfg.Validate("verify.callout", &fs)
	for _, key := range []string{"tls", "helo", "sender", "ca_file", "bind_ipv4", "connections", "timeout", "reply_timeout", "rate"} {
		found := false
		for _, f := range fs {
			found = found || f.Key == "verify.callout."+key
		}
		if !found {
			t.Errorf("no fault for %s in %v", key, fs)
		}
	}
}
