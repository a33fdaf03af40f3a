package client

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"postern/internal/conf"
	"postern/internal/dnstest"
	"postern/internal/mailaddr"
	"postern/policy"
)

// found are the marks of a request for which every condition is a mark.
func (w *world) found(req *policy.Request) string {
	w.tb.Helper()
	req.Facts.Reset()
	w.ask(req)
	var out []string
	for _, m := range req.Facts.Marks {
		out = append(out, strings.TrimPrefix(m, "client-"))
	}
	return strings.Join(out, " ")
}

func TestHeloConditions(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		all(conf.Mark)(c)
		c.OwnDomains, c.OwnNames = []string{"own.example", ".below.example"}, []string{"Gate.example.org"}
		c.OwnNetworks = append(c.OwnNetworks, netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:5::/48"))
		c.HeloNames = maxHeloNames
	})
	w.dns.Add(
		"six.example. 60 IN AAAA 2001:db8::1", "mx.example. 60 IN MX 10 elsewhere.example.", "nullmx.example. 60 IN MX 0 .",
		"alias.example. 60 IN CNAME mail.good.example.", "txt.example. 60 IN TXT nothing", "b.below.example. 60 IN A 203.0.113.9",
	)
	for _, tt := range []struct{ helo, want string }{
		{"", "helo-missing"},
		{"mail.good.example", ""},
		{"MAIL.good.example.", ""},
		{"six.example", ""},
		{"mx.example", ""},
		{"nullmx.example", ""}, // a record is a record
		{"alias.example", ""},
		{"txt.example", "helo-unresolved"},
		{"nowhere.example", "helo-unresolved"},
		{"mail", "helo-not-full"},
		{"mail.", "helo-not-full"},
		{"192.0.2.7", "helo-invalid"},
		{"a b", "helo-invalid"},
		{"[192.0.2.7", "helo-invalid"},
		{"[192.0.2.7]", ""},
		{"[IPv6:::ffff:192.0.2.7]", ""},
		{"[192.0.2.8]", "helo-wrong-address"},
		{"[IPv6:2001:db8::7]", "helo-wrong-address"},
		{"[192.0.2.25]", "helo-own"}, // the server's
		{"[127.0.0.1]", "helo-own"},
		{"[198.51.100.9]", "helo-own"},
		{"[IPv6:2001:db8:5:1::9]", "helo-own"},
		{"[IPv6:::1]", "helo-own"},
		{"mx.example.org", "helo-own"},
		{"Mx.Example.Org.", "helo-own"},
		{"gate.example.org", "helo-own"},
		{"own.example", "helo-own"},
		{"a.own.example", "helo-unresolved"}, // only as it is
		{"b.below.example", ""},              // may be a host of somebody's below ours
	} {
		if got := w.found(w.mail(tt.helo, "ann@good.example")); got != tt.want {
			t.Errorf("HELO %q: %q, want %q", tt.helo, got, tt.want)
		}
	}
	if n := w.dns.Count("own.example", "") + w.dns.Count("mx.example.org", "") + w.dns.Count("mail", ""); n > 0 {
		t.Errorf("%d questions about what needs none", n)
	}
	// A host that Postfix has verified to bear our name is ours.
	req := w.mail("mx.example.org", "ann@good.example")
	req.Client.Name = "mx.example.org"
	if got := w.found(req); got != "" {
		t.Errorf("our own host: %q", got)
	}
	// A name that the reverse name proves is not looked up.
	req = w.mail("other.good.example", "ann@good.example")
	req.Client.Name = "other.good.example"
	if got := w.found(req); got != "" || w.dns.Count("other.good.example", "") > 0 {
		t.Errorf("a verified name: %q", got)
	}
}

func TestReverseConditions(t *testing.T) {
	w := newWorld(t, all(conf.Mark))
	w.dns.Add(
		"10.2.0.192.in-addr.arpa. 60 IN PTR mail.good.example.", // leads elsewhere
		"11.2.0.192.in-addr.arpa. 60 IN PTR nowhere.example.",
		"12.2.0.192.in-addr.arpa. 60 IN PTR first.example.", "12.2.0.192.in-addr.arpa. 60 IN PTR second.example.", "second.example. 60 IN A 192.0.2.12",
		"13.2.0.192.in-addr.arpa. 60 IN PTR host-192-0-2-13.isp.example.", "host-192-0-2-13.isp.example. 60 IN A 192.0.2.13",
		"14.2.0.192.in-addr.arpa. 60 IN PTR a\\032b.example.",
		"9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 60 IN PTR v6.example.", "v6.example. 60 IN AAAA 2001:db8::9",
		"v6.example. 60 IN A 192.0.2.99",
	)
	for i := range maxNames + 1 {
		name := fmt.Sprintf("n%02d.example.", i)
		w.dns.Add("15.2.0.192.in-addr.arpa. 60 IN PTR " + name)
		if i == maxNames {
			w.dns.Add(name + " 60 IN A 192.0.2.15")
		}
	}
	for _, tt := range []struct{ addr, name, reverse, want string }{
		{"192.0.2.7", "mail.good.example", "mail.good.example", ""},
		{"203.0.113.1", "mail.good.example", "mail.good.example", ""}, // Postfix has said so
		{"192.0.2.7", "", "", ""},                                     // Postfix does not look names up
		{"192.0.2.7", "", "mail.good.example", ""},                    // its look-up failed for the moment
		{"192.0.2.9", "", "", "reverse-missing"},
		{"192.0.2.10", "", "", "reverse-unverified"},
		{"192.0.2.10", "", "mail.good.example", "reverse-unverified"},
		{"192.0.2.11", "", "", "reverse-unverified"},
		{"192.0.2.12", "", "", ""}, // the second of two
		{"192.0.2.13", "", "", "reverse-generic"},
		{"192.0.2.13", "host-192-0-2-13.isp.example", "host-192-0-2-13.isp.example", "reverse-generic"},
		{"192.0.2.14", "", "", "reverse-unverified"},
		{"192.0.2.15", "", "", "reverse-unverified"}, // the eleventh is not looked at
		{"192.0.2.16", "", "host-192-0-2-16.isp.example", "reverse-unverified reverse-generic"},
		{"2001:db8::9", "", "", ""},
		{"2001:db8::a", "", "", "reverse-missing"},
		{"2001:db8::a", "", "v6.example", "reverse-unverified"},
	} {
		req := w.from(tt.addr, tt.name, tt.reverse)
		if got := w.found(req); got != tt.want {
			t.Errorf("%s, named %q and %q: %q, want %q", tt.addr, tt.name, tt.reverse, got, tt.want)
		}
	}
	if w.dns.Count("10.2.0.192.in-addr.arpa", "PTR") != 1 || w.dns.Count("16.2.0.192.in-addr.arpa", "") != 0 {
		t.Error("what Postfix has found is asked for again")
	}
	// Without the conditions that need it the DNS is not asked.
	w.configure(func(c *Config) {
		c.ReverseMissing.Action, c.ReverseUnverified.Action = conf.Off, conf.Off
	})
	w.dns.Reset()
	if got := w.found(w.from("192.0.2.17", "", "host-192-0-2-17.isp.example")); got != "reverse-generic" || w.dns.Count("host-192-0-2-17.isp.example", "") != 0 {
		t.Errorf("only generic names: %q, %v", got, w.dns.Log())
	}
}

func TestSenderConditions(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		all(conf.Mark)(c)
		c.OwnDomains = []string{"own.example", ".below.example"}
	})
	w.dns.Add(
		"a.example. 60 IN A 192.0.2.1", "aaaa.example. 60 IN AAAA 2001:db8::1", "txt.example. 60 IN TXT nothing",
		"null.example. 60 IN MX 0 .", "null.example. 60 IN A 192.0.2.1", "nulls.example. 60 IN MX 0 .", "nulls.example. 60 IN MX 10 .",
		"half.example. 60 IN MX 0 .", "half.example. 60 IN MX 10 mail.good.example.",
		"loop.example. 60 IN MX 10 lo.example.", "lo.example. 60 IN A 127.0.0.1", "lo.example. 60 IN AAAA ::1",
		"private.example. 60 IN MX 10 ten.example.", "private.example. 60 IN MX 20 ula.example.", "ten.example. 60 IN A 10.1.2.3", "ula.example. 60 IN AAAA fd00::1",
		"mapped.example. 60 IN MX 10 map.example.", "map.example. 60 IN AAAA ::ffff:10.1.2.3",
		"mixed.example. 60 IN MX 10 ten.example.", "mixed.example. 60 IN MX 20 mail.good.example.",
		"dual.example. 60 IN MX 10 both.example.", "both.example. 60 IN A 10.1.2.3", "both.example. 60 IN AAAA 2001:db8::2",
		"implicit.example. 60 IN A 192.168.1.1", "dangling.example. 60 IN MX 10 gone.example.", "numeric.example. 60 IN MX 10 192.0.2.1.",
		"odd.example. 60 IN MX 10 a\\032b.example.", "xn--bcher-kva.example. 60 IN A 192.0.2.1", "own.example. 60 IN MX 0 .",
	)
	for i := range maxExchangers {
		w.dns.Add(fmt.Sprintf("many.example. 60 IN MX %d ten.example.", i), fmt.Sprintf("toomany.example. 60 IN MX %d ten.example.", i))
	}
	w.dns.Add("toomany.example. 60 IN MX 50 mail.good.example.")
	for _, tt := range []struct{ sender, want string }{
		{"", ""},
		{"<>", ""},
		{"ann@good.example", ""},
		{"ann@a.example", ""},
		{"ann@aaaa.example", ""},
		{"ann@B\u00dcCHER.example", ""},
		{"ann@nowhere.example", "sender-unresolved"},
		{"ann@txt.example", "sender-unresolved"},
		{"ann@single", "sender-unresolved"},
		{"ann@a..b", "sender-unresolved"},
		{"ann@dangling.example", "sender-unresolved"},
		{"ann@numeric.example", "sender-unresolved"},
		{"ann@odd.example", "sender-unresolved"},
		{"ann@null.example", "sender-null-mx"},
		{"ann@nulls.example", "sender-null-mx"},
		{"ann@half.example", ""},
		{"ann@loop.example", "sender-private-mx"},
		{"ann@private.example", "sender-private-mx"},
		{"ann@mapped.example", "sender-private-mx"},
		{"ann@implicit.example", "sender-private-mx"},
		{"ann@many.example", "sender-private-mx"},
		{"ann@toomany.example", ""}, // not all are looked at
		{"ann@mixed.example", ""},
		{"ann@dual.example", ""},
		{"ann@[192.0.2.7]", ""},
		{"ann@[IPv6:2001:db8::7]", ""},
		{"ann@[10.0.0.1]", "sender-private-mx"},
		{"ann@[IPv6:::1]", "sender-private-mx"},
		{"ann@[nonsense]", "sender-unresolved"},
		{"ann@[", "sender-unresolved"},
		{"ann@own.example", "sender-own"},
		{"ann@OWN.example.", "sender-own"},
		{"ann@x.own.example", "sender-unresolved"},
		{"ann@x.below.example", "sender-own"},
		{"ann@x.y.below.example", "sender-own"},
		{"ann@below.example", "sender-unresolved"},
		{"ann", "sender-own"}, // Postfix makes it ours
	} {
		if got := w.found(w.mail("mail.good.example", tt.sender)); got != tt.want {
			t.Errorf("sender %q: %q, want %q", tt.sender, got, tt.want)
		}
	}
	// Without own domains nobody is kept from using them, and a bare name is nobody's.
	w.configure(all(conf.Mark))
	for _, tt := range []struct{ sender, want string }{{"ann@own.example", "sender-null-mx"}, {"ann", ""}} {
		if got := w.found(w.mail("mail.good.example", tt.sender)); got != tt.want {
			t.Errorf("no own domains, sender %q: %q, want %q", tt.sender, got, tt.want)
		}
	}
	// Where mail exchangers are is asked only for the condition that needs it.
	w.configure(func(c *Config) {
		all(conf.Mark)(c)
		c.SenderPrivateMX.Action = conf.Off
	})
	w.dns.Reset()
	for _, sender := range []string{"ann@loop.example", "ann@implicit.example", "ann@dangling.example"} {
		if got := w.found(w.mail("mail.good.example", sender)); got != "" {
			t.Errorf("private exchangers are not looked for, sender %q: %q", sender, got)
		}
	}
	if w.dns.Count("lo.example", "") != 0 {
		t.Error("the address of a mail exchanger is looked up")
	}
	if got := w.found(w.mail("mail.good.example", "ann@nowhere.example")); got != "sender-unresolved" {
		t.Errorf("%q", got)
	}
}

// The actions that hold without settings, with the whole reply.
func TestDefaults(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.OwnDomains = []string{"own.example"}
		c.HeloNames = maxHeloNames // all come from one address here
	})
	w.dns.Add("null.example. 60 IN MX 0 .", "loop.example. 60 IN MX 10 lo.example.", "lo.example. 60 IN A 127.0.0.1")
	for _, tt := range []struct {
		name  string
		req   *policy.Request
		want  string // reply, or marks
		score int
	}{
		{"good", w.mail("mail.good.example", "ann@good.example"), "", 0},
		{"helo missing", w.mail("", "ann@good.example"), "503 5.5.1 Send HELO or EHLO first", 0},
		{"helo invalid", w.mail("a..b", "ann@good.example"), "501 5.5.2 HELO a..b is no host name: it has an empty label", 0},
		{"helo not full", w.mail("mail", "ann@good.example"), "504 5.5.2 HELO mail is not a full host name", 0},
		{"helo wrong address", w.mail("[192.0.2.99]", "ann@good.example"), "client-helo-wrong-address", 1},
		{"helo own", w.mail("mx.example.org", "ann@good.example"), "550 5.7.1 HELO mx.example.org is not you", 0},
		{"helo unresolved", w.mail("nowhere.example", "ann@good.example"), "client-helo-unresolved", 1},
		{"reverse missing", w.from("192.0.2.9", "", ""), "client-reverse-missing", 1},
		{"reverse unverified", w.from("192.0.2.9", "", "mail.good.example"), "client-reverse-unverified", 1},
		{"reverse generic", w.from("192.0.2.9", "dsl-192-0-2-9.isp.example", ""), "client-reverse-generic", 1},
		{"several", w.from("192.0.2.9", "", "dsl-192-0-2-9.isp.example"), "client-reverse-unverified client-reverse-generic", 2},
		{"sender unresolved", w.mail("mail.good.example", "ann@nowhere.example"),
			"550 5.1.8 The sender's domain nowhere.example cannot receive mail: no MX, A or AAAA record", 0},
		{"sender null mx", w.mail("mail.good.example", "ann@null.example"), "550 5.7.27 The sender's domain null.example does not receive mail (null MX, RFC 7505)", 0},
		{"sender private mx", w.mail("mail.good.example", "ann@loop.example"),
			"550 5.1.8 The sender's domain loop.example cannot receive mail: mail exchanger lo.example has the address 127.0.0.1", 0},
		{"sender own", w.mail("mail.good.example", "ann@own.example"), "550 5.7.1 Mail from own.example is not taken from 192.0.2.7 without authentication", 0},
		{"sender own, bare", w.mail("mail.good.example", "ann"), "550 5.7.1 Mail from ann is not taken from 192.0.2.7 without authentication", 0},
		{"a bounce", w.mail("mail.good.example", "<>"), "", 0},
		{"a bounce with a bad HELO", w.mail("a..b", "<>"), "501 5.5.2 HELO a..b is no host name: it has an empty label", 0},
	} {
		v := w.ask(tt.req)
		got := strings.Join(tt.req.Facts.Marks, " ")
		if v.Action != policy.Continue {
			got = v.Reply.String()
		}
		if got != tt.want || tt.req.Facts.MarkScore != tt.score || (v.Action == policy.Reject) != (v.Reply.Code > 0) {
			t.Errorf("%s: %v %q, weight %d; want %q, %d", tt.name, v.Action, got, tt.req.Facts.MarkScore, tt.want, tt.score)
		}
		reason := "client-" + strings.ReplaceAll(strings.TrimSuffix(tt.name, ", bare"), " ", "-")
		switch tt.name {
		case "good", "a bounce":
			reason = ""
		case "a bounce with a bad HELO":
			reason = reasons[heloInvalid]
		case "several":
			reason = reasons[reverseUnverified]
			if want := "reverse-unverified: dsl-192-0-2-9.isp.example does not lead back; reverse-generic: access network"; v.Detail != want {
				t.Errorf("%s: detail %q, want %q", tt.name, v.Detail, want)
			}
		}
		if v.Reason != reason || (v.Detail == "") != (reason == "") {
			t.Errorf("%s: reason %q, want %q; detail %q", tt.name, v.Reason, reason, v.Detail)
		}
	}
}

// Every condition with every action: refused for good, for now, marked, not
// looked for.
func TestActions(t *testing.T) {
	w := newWorld(t, nil)
	w.dns.Add("null.example. 60 IN MX 0 .", "loop.example. 60 IN MX 10 lo.example.", "lo.example. 60 IN A 127.0.0.1")
	requests := [conditions]func() *policy.Request{
		heloMissing:       func() *policy.Request { return w.mail("", "ann@good.example") },
		heloInvalid:       func() *policy.Request { return w.mail("a b", "ann@good.example") },
		heloNotFull:       func() *policy.Request { return w.mail("mail", "ann@good.example") },
		heloWrongAddress:  func() *policy.Request { return w.mail("[192.0.2.99]", "ann@good.example") },
		heloOwn:           func() *policy.Request { return w.mail("mx.example.org", "ann@good.example") },
		heloUnresolved:    func() *policy.Request { return w.mail("nowhere.example", "ann@good.example") },
		heloChanges:       func() *policy.Request { return w.mail("mail.good.example", "ann@good.example") },
		reverseMissing:    func() *policy.Request { return w.from("192.0.2.9", "", "") },
		reverseUnverified: func() *policy.Request { return w.from("192.0.2.9", "", "mail.good.example") },
		reverseGeneric:    func() *policy.Request { return w.from("192.0.2.9", "dsl-192-0-2-9.isp.example", "") },
		senderUnresolved:  func() *policy.Request { return w.mail("mail.good.example", "ann@nowhere.example") },
		senderNullMX:      func() *policy.Request { return w.mail("mail.good.example", "ann@null.example") },
		senderPrivateMX:   func() *policy.Request { return w.mail("mail.good.example", "ann@loop.example") },
		senderOwn:         func() *policy.Request { return w.mail("mail.good.example", "ann@own.example") },
	}
	for i := range conditions {
		for a, want := range map[conf.Action]policy.Action{
			conf.Reject: policy.Reject, conf.Defer: policy.Defer, conf.Mark: policy.Continue, conf.Off: policy.Continue,
		} {
			w.configure(func(c *Config) {
				all(conf.Off)(c)
				c.OwnDomains = []string{"own.example"}
				c.HeloNames = 1
				*c.all()[i] = Condition{Action: a, Weight: 7, Reply: "no {client} {helo} {sender} {domain} {recipient} {reverse_name} {detail}"}
			})
			if i == heloChanges {
				w.check.shared.changes.count(netip.MustParseAddr("192.0.2.7"), "another.example", w.now, true)
			}
			if (a == conf.Off) != w.check.Idle() {
				t.Errorf("%s, %v: idle %v", slugs[i], a, w.check.Idle())
			}
			w.check.shared.answers.InvalidateAll()
			req := requests[i]()
			v := w.ask(req)
			if v.Action != want {
				t.Errorf("%s, %v: %v %q %q", slugs[i], a, v.Action, v.Reason, v.Detail)
			}
			marked := slices.Equal(req.Facts.Marks, []string{reasons[i]}) && req.Facts.MarkScore == 7
			if marked != (a == conf.Mark) || len(req.Facts.Marks) > 0 && !marked {
				t.Errorf("%s, %v: marks %v weigh %d", slugs[i], a, req.Facts.Marks, req.Facts.MarkScore)
			}
			if (v.Reason == reasons[i]) != (a != conf.Off) {
				t.Errorf("%s, %v: reason %q", slugs[i], a, v.Reason)
			}
			if !v.Action.Refuses() {
				continue
			}
			n := 0
			if a == conf.Defer {
				n = 1
			}
			def := codes[i][n]
			text := fmt.Sprintf("no %s %s %s %s user@example.org ", req.Client.Addr, req.Helo, req.Sender.Raw, req.Sender.Domain)
			if v.Reply.Code != def.Code || v.Reply.Enhanced != def.Enhanced || !strings.HasPrefix(v.Reply.Text, text) || !strings.HasSuffix(v.Reply.Text, v.Detail) {
				t.Errorf("%s, %v: %v", slugs[i], a, v.Reply)
			}
			if hint, ok := w.check.Hint(requests[i]()); !ok || hint.Action != want || hint.Reply != v.Reply {
				t.Errorf("%s, %v: hint %v %v", slugs[i], a, ok, hint)
			}
		}
	}
}

// What the DNS does not answer speaks against nobody, unless the operator has
// it so; and never for good.
func TestDNSFaults(t *testing.T) {
	for _, fault := range []struct {
		name string
		b    dnstest.Behavior
	}{{"SERVFAIL", dnstest.ServFail}, {"no answer", dnstest.Drop}, {"refused", dnstest.Refused}} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, all(conf.Reject))
			w.dns.BehaveUnder("broken.example", fault.b)
			w.dns.Behave("99.2.0.192.in-addr.arpa", fault.b)
			w.dns.Add("10.2.0.192.in-addr.arpa. 60 IN PTR x.broken.example.", "mxbroken.example. 60 IN MX 10 mail.broken.example.")
			requests := [questions]func() *policy.Request{
				func() *policy.Request { return w.mail("mail.broken.example", "ann@good.example") },
				func() *policy.Request { return w.from("192.0.2.99", "", "") },
				func() *policy.Request { return w.mail("mail.good.example", "ann@broken.example") },
			}
			try := func(name string, req *policy.Request, deferred string) {
				t.Helper()
				v := w.ask(req)
				if deferred == "" {
					if v.Action != policy.Continue || v.Reason != "client-unable" || len(req.Facts.Missing) != 1 || !strings.HasPrefix(req.Facts.Missing[0], "client: ") ||
						v.Detail == "" || len(req.Facts.Marks) > 0 {
						t.Errorf("%s: %v %q %q, missing %q, marks %q", name, v.Action, v.Reason, v.Detail, req.Facts.Missing, req.Facts.Marks)
					}
				} else if v.Action != policy.Defer || v.Reason != "client-unable" || v.Reply.String() != deferred {
					t.Errorf("%s: %v %q %q", name, v.Action, v.Reason, v.Reply)
				}
			}
			for q, make := range requests {
				try(questionNames[q], make(), "")
			}
			if fault.b.Drop {
				return // what follows would wait long, and finds the same
			}
			try("forward look-up", w.from("192.0.2.10", "", ""), "")
			try("mail exchanger", w.mail("mail.good.example", "ann@mxbroken.example"), "")
			if got := testutil.ToFloat64(w.check.shared.metrics.unable[askReverse]); got != 2 {
				t.Errorf("%v failures are counted", got)
			}
			w.configure(func(c *Config) {
				all(conf.Reject)(c)
				c.DeferUnable = []string{"helo", "reverse", "sender"}
			})
			for q, want := range [questions]string{
				"451 4.4.3 The HELO name mail.broken.example cannot be looked up, please try again later",
				"451 4.4.3 The reverse name of 192.0.2.99 cannot be looked up, please try again later",
				"451 4.4.3 The sender's domain broken.example cannot be looked up, please try again later",
			} {
				try(questionNames[q], requests[q](), want)
			}
			w.configure(func(c *Config) {
				all(conf.Mark)(c)
				c.DeferUnable = []string{"sender"}
			})
			try("not this one", requests[askHelo](), "")
			// What can be told without the name that fails is told.
			w.dns.Behave("first.example", fault.b)
			w.dns.Add(
				"11.2.0.192.in-addr.arpa. 60 IN PTR first.example.", "11.2.0.192.in-addr.arpa. 60 IN PTR second.example.", "second.example. 60 IN A 192.0.2.11",
				"half.example. 60 IN MX 10 first.example.", "half.example. 60 IN MX 20 second.example.",
				"six.first.example. 60 IN AAAA 2001:db8::1",
			)
			w.dns.Behave("six.first.example", dnstest.Behavior{Rcode: fault.b.Rcode, Drop: fault.b.Drop, Type: "A"})
			for _, req := range []*policy.Request{
				w.from("192.0.2.11", "", ""), w.mail("mail.good.example", "ann@half.example"), w.mail("six.first.example", "ann@good.example"),
			} {
				if v := w.ask(req); v.Action != policy.Continue || v.Reason != "" {
					t.Errorf("%s, %s, %s: %v %q %q", req.Client.Addr, req.Helo, req.Sender.Raw, v.Action, v.Reason, v.Detail)
				}
			}
			// The DNS is asked again, and a fault of one question hides nothing of another.
			w.dns.BehaveWell("broken.example")
			w.dns.Add("mail.broken.example. 60 IN A 192.0.2.7")
			w.check.shared.answers.InvalidateAll()
			w.res.Flush("")
			if v := w.ask(w.mail("mail.broken.example", "ann@good.example")); v.Reason != "" {
				t.Errorf("afterwards: %v %q", v.Action, v.Reason)
			}
			if v := w.ask(w.mail("nowhere.example", "ann@good.example")); v.Reason != "client-helo-unresolved" {
				t.Errorf("afterwards: %v %q", v.Action, v.Reason)
			}
		})
	}
}

// A question that fails beside a condition that decides changes nothing.
func TestAFaultBesideARefusal(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.DeferUnable = []string{"helo"} })
	w.dns.Behave("broken.example", dnstest.ServFail)
	v := w.ask(w.mail("broken.example", "ann@nowhere.example"))
	if v.Action != policy.Reject || v.Reason != "client-sender-unresolved" {
		t.Errorf("%v %q", v.Action, v.Reason)
	}
}

func TestExemptions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "exceptions.list")
	if err := os.WriteFile(file, []byte("198.51.100.0/24\nfrom:friend@good.example\n.partner.example\n192.0.2.66 dunno\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	edit := func(c *Config) {
		c.OwnDomains = []string{"own.example"}
		c.OwnNetworks = append(c.OwnNetworks, netip.MustParsePrefix("203.0.113.0/24"))
		c.Exceptions = []string{"file:" + file}
		c.OwnProbes = []string{"double-bounce@mx.example.org"}
	}
	w := newWorld(t, edit)
	bad := func(change func(*policy.Request)) *policy.Request {
		req := w.mail("a..b", "ann@own.example")
		change(req)
		return req
	}
	client := func(addr string) *policy.Request {
		return bad(func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr(addr) })
	}
	tests := []struct {
		name, reason string
		req          *policy.Request
	}{
		{"nobody special", "client-helo-invalid", bad(func(*policy.Request) {})},
		{"unknown client", "client-unknown-client", bad(func(r *policy.Request) { r.Client.Addr = netip.Addr{} })},
		{"login", "client-authenticated", bad(func(r *policy.Request) { r.SASL.Username = "ann" })},
		{"certificate", "client-authenticated", bad(func(r *policy.Request) { r.TLS.CertSubject = "ann" })},
		{"certificate that nobody trusts", "client-helo-invalid", bad(func(r *policy.Request) { r.TLS.CertFingerprint = "00:11" })},
		{"loopback", "client-own-network", client("127.0.0.1")},
		{"IPv6 loopback", "client-own-network", client("::1")},
		{"own network", "client-own-network", client("203.0.113.9")},
		{"this host", "client-own-network", client("192.0.2.25")},
		{"exception", "client-exempt", client("198.51.100.9")},
		{"not an exception after all", "client-helo-invalid", client("192.0.2.66")},
		{"excepted sender", "client-exempt", bad(func(r *policy.Request) { r.Sender = mailaddr.Parse("friend@good.example") })},
		{"excepted name", "client-exempt", bad(func(r *policy.Request) { r.Client.Name = "mail.partner.example" })},
		{"postmaster", "client-exempt", bad(func(r *policy.Request) { r.Recipient = mailaddr.Parse("Postmaster@example.org") })},
		{"abuse", "client-exempt", bad(func(r *policy.Request) { r.Recipient = mailaddr.Parse("abuse@example.com") })},
		{"postmaster as sender", "client-helo-invalid", bad(func(r *policy.Request) { r.Sender = mailaddr.Parse("postmaster@good.example") })},
		{"own probe", "client-own-probe", bad(func(r *policy.Request) { r.Sender = mailaddr.Parse("Double-Bounce@mx.example.org") })},
		{"own probe that sends", "client-helo-invalid", bad(func(r *policy.Request) {
			r.Sender, r.Stage = mailaddr.Parse("double-bounce@mx.example.org"), policy.StageData
		})},
		{"DATA", "client-other-stage", bad(func(r *policy.Request) { r.Stage = policy.StageData })},
	}
	for _, tt := range tests {
		v := w.ask(tt.req)
		if v.Reason != tt.reason || v.Action.Refuses() != (tt.reason == "client-helo-invalid") || v.Detail == "" {
			t.Errorf("%s: %v %q %q, want %q", tt.name, v.Action, v.Reason, v.Detail, tt.reason)
		}
		if hint, ok := w.check.Hint(tt.req); ok != v.Action.Refuses() || ok && hint.Reason != v.Reason {
			t.Errorf("%s: hint %v %v", tt.name, ok, hint)
		}
	}
	if w.dns.Total() != 0 {
		t.Errorf("the DNS was asked: %v", w.dns.Log())
	}
	hits := func() (n uint64) {
		for _, e := range w.check.skip.Set().Entries() {
			h, _ := e.Hits()
			n += h
		}
		return n
	}
	if n := hits(); n != 5 {
		t.Errorf("%d hits of exceptions, want 5", n)
	}
	// A question changes nothing.
	dry := client("198.51.100.9")
	dry.DryRun, dry.Probe = true, new(policy.Probe)
	if w.ask(dry); hits() != 5 || dry.Probe.Len() != 1 || dry.Probe.Notes[0].What != "not judged" {
		t.Errorf("%d hits, notes %v", hits(), dry.Probe.Notes)
	}
	// Hits go on over a reload.
	w.configure(edit)
	if n := hits(); n != 5 {
		t.Errorf("%d hits after a reload", n)
	}
	w.configure(func(c *Config) {
		edit(c)
		c.SkipAuthenticated, c.SkipOwnNetworks = false, false
	})
	for _, tt := range tests {
		want := tt.reason
		if want == "client-authenticated" || want == "client-own-network" {
			want = "client-helo-invalid"
		}
		if v := w.ask(tt.req); v.Reason != want {
			t.Errorf("without exemptions, %s: %q, want %q", tt.name, v.Reason, want)
		}
		// Who is ours uses our domain rightly.
		tt.req.Helo = "mail.good.example"
		if v := w.ask(tt.req); v.Action.Refuses() != (tt.reason == "client-helo-invalid") && tt.reason != "client-other-stage" ||
			v.Action.Refuses() && v.Reason != "client-sender-own" && v.Reason != "client-sender-unresolved" {
			if tt.name == "excepted sender" || tt.name == "postmaster as sender" {
				continue
			}
			t.Errorf("without exemptions, %s, good HELO: %v %q", tt.name, v.Action, v.Reason)
		}
	}
}

// What is not known at a stage is not judged there.
func TestStages(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		all(conf.Mark)(c)
		c.OwnDomains = []string{"own.example"}
	})
	for _, tt := range []struct {
		stage  policy.Stage
		helo   string
		sender string
		want   string
	}{
		{policy.StageConnect, "", "", "reverse-missing"},
		{policy.StageHelo, "a..b", "", "helo-invalid reverse-missing"},
		{policy.StageHelo, "", "", "reverse-missing"},
		{policy.StageMail, "", "", "helo-missing reverse-missing"},
		{policy.StageMail, "mail", "ann@own.example", "helo-not-full reverse-missing sender-own"},
		{policy.StageRcpt, "mail", "ann@own.example", "helo-not-full reverse-missing sender-own"},
		{policy.StageRcpt, "mail", "", "helo-not-full reverse-missing"},
		{policy.StageConnect, "", "ann@own.example", "reverse-missing"}, // Postfix does not say it there
	} {
		req := w.from("192.0.2.9", "", "")
		req.Stage, req.Helo, req.Sender = tt.stage, tt.helo, mailaddr.Parse(tt.sender)
		if got := w.found(req); got != tt.want {
			t.Errorf("%v, HELO %q, sender %q: %q, want %q", tt.stage, tt.helo, tt.sender, got, tt.want)
		}
	}
	for s := policy.StageConnect; s <= policy.StageEtrn; s++ {
		if want := s <= policy.StageData; w.check.Traits().Stages.Has(s) != want {
			t.Errorf("runs at %v: %v", s, !want)
		}
	}
}

// A refusal that needs no DNS asks none, and an answer is asked for once.
func TestTheDNSIsAskedOnlyWhenNeeded(t *testing.T) {
	w := newWorld(t, nil)
	ask := func(req *policy.Request, reason string, questions int) {
		t.Helper()
		w.dns.Reset()
		if v := w.ask(req); v.Reason != reason {
			t.Errorf("reason %q, want %q", v.Reason, reason)
		}
		if n := w.dns.Total(); n != questions {
			t.Errorf("%q: %d queries, want %d: %v", reason, n, questions, w.dns.Log())
		}
	}
	ask(w.mail("a..b", "ann@nowhere.example"), "client-helo-invalid", 0)
	ask(w.mail("mail.good.example", "ann@good.example"), "", 2)
	ask(w.mail("mail.good.example", "ann@good.example"), "", 0)
	ask(w.mail("mail.good.example", "bob@good.example"), "", 0)
	ask(w.from("192.0.2.7", "", ""), "", 1) // the forward look-up is in the resolver's memory
	w.res.Flush("")
	ask(w.from("192.0.2.7", "", ""), "", 0)
	if got := testutil.ToFloat64(w.check.shared.metrics.memory); got != 6 {
		t.Errorf("%v answers came from memory", got)
	}
	if got := testutil.ToFloat64(w.check.shared.metrics.asked); got != 3 {
		t.Errorf("%v answers came from the DNS", got)
	}
	// Remembered for as long as the record, or cache_ttl.
	w.dns.Add("short.example. 60 IN A 192.0.2.1")
	ask(w.mail("mail.good.example", "ann@short.example"), "", 2)
	for _, tt := range []struct {
		sender string
		later  time.Duration
		again  bool
	}{
		{"ann@short.example", 59 * time.Second, false},
		{"ann@short.example", 60 * time.Second, true},
		{"ann@good.example", 10*time.Minute - time.Second, false},
		{"ann@good.example", 10 * time.Minute, true},
		{"ann@good.example", -time.Hour, true}, // the clock was set back
	} {
		w.res.Flush("")
		req := w.mail("mail.good.example", tt.sender)
		req.Time = w.now.Add(tt.later)
		req.DryRun = true // what is asked is remembered all the same
		f := findings{needed: w.check.wanted}
		w.check.look(req, &f, false)
		if f.pending.has(askSender) != tt.again {
			t.Errorf("%s after %v: asked again %v", tt.sender, tt.later, !tt.again)
		}
	}
	// A request without a time has no moment for which anything holds.
	req := w.mail("mail.good.example", "ann@later.example")
	req.Time = time.Time{}
	w.ask(req)
	w.res.Flush("")
	w.dns.Reset()
	if w.ask(req); w.dns.Total() == 0 {
		t.Error("an answer was remembered without a time")
	}
	// A reload keeps what is known, other settings do not.
	w.configure(func(c *Config) { c.RejectAt = 50 })
	w.res.Flush("")
	ask(w.mail("mail.good.example", "ann@good.example"), "", 0)
	w.configure(func(c *Config) { c.SenderPrivateMX.Action = conf.Off })
	w.res.Flush("")
	ask(w.mail("mail.good.example", "ann@good.example"), "", 1)
}

func TestChangingNames(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		all(conf.Off)(c)
		c.HeloChanges.Action = conf.Mark
		c.HeloNames, c.HeloWindow = 3, conf.Duration(time.Hour)
	})
	try := func(addr, helo string, at time.Duration, want bool) {
		t.Helper()
		req := w.from(addr, "mail.good.example", "mail.good.example")
		req.Helo, req.Time = helo, w.now.Add(at)
		if got := w.found(req) == "helo-changes"; got != want {
			t.Errorf("%s, HELO %s after %v: %v", addr, helo, at, got)
		}
	}
	for i, helo := range []string{"a.example", "b.example", "A.example.", "[192.0.2.1]", "a.example"} {
		try("192.0.2.1", helo, time.Duration(i)*time.Minute, false)
	}
	try("192.0.2.1", "d.example", 5*time.Minute, true)
	try("192.0.2.1", "a.example", 6*time.Minute, true)  // whichever of them
	try("192.0.2.2", "d.example", 6*time.Minute, false) // another client
	try("192.0.2.1", "e.example", 7*time.Minute, true)  // b.example makes room
	try("192.0.2.1", "f.example", 8*time.Minute, true)
	// An hour after the first of them not all count any more.
	try("192.0.2.1", "f.example", 65*time.Minute-time.Second, true) // d e a f
	try("192.0.2.1", "f.example", 65*time.Minute, false)            // e a f
	// One IPv6 network of 64 bits is one client.
	for i, helo := range []string{"a.example", "b.example", "c.example", "d.example"} {
		try(fmt.Sprintf("2001:db8:0:1::%d", i), helo, 0, i == 3)
	}
	try("2001:db8:0:2::1", "d.example", 0, false)
	// A question changes nothing, and counts itself.
	dry := w.from("192.0.2.2", "mail.good.example", "")
	for _, helo := range []string{"x.example", "y.example", "z.example", "d.example"} {
		dry.Helo, dry.DryRun, dry.Time = helo, true, w.now.Add(6*time.Minute)
		if got := w.found(dry); got != "" {
			t.Errorf("a question for %s: %q", helo, got)
		}
	}
	try("192.0.2.2", "x.example", 6*time.Minute, false)
	try("192.0.2.2", "y.example", 6*time.Minute, false)
	dry.Helo = "z.example"
	if got := w.found(dry); got != "helo-changes" {
		t.Errorf("a question for one name too many: %q", got)
	}
	if v, ok := w.check.Hint(dry); ok {
		t.Errorf("hint: %v", v)
	}
	// The clock was set back for good: names of the future do not count for ever.
	try("192.0.2.1", "x.example", -2*time.Hour, false)
	// A reload forgets nothing.
	w.configure(func(c *Config) {
		all(conf.Off)(c)
		c.HeloChanges.Action = conf.Reject
		c.HeloNames, c.HeloWindow = 3, conf.Duration(time.Hour)
	})
	req := w.from("192.0.2.2", "mail.good.example", "")
	req.Helo, req.Time = "z.example", w.now.Add(7*time.Minute)
	if v := w.ask(req); v.Action != policy.Reject || v.Detail != "more than 3 names within 1h" || v.Reply.String() != "550 5.7.1 192.0.2.2 uses too many HELO names" {
		t.Errorf("%v %q %v", v.Action, v.Detail, v.Reply)
	}
}

// The memory of names is bounded, by clients and for each.
func TestChangingNamesAreBounded(t *testing.T) {
	m := newChanges(3, time.Hour, 100)
	now := time.Unix(1.7e9, 0)
	for i := range 10_000 {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		m.count(addr, "mail.example", now, true)
		m.count(netip.MustParseAddr("192.0.2.1"), fmt.Sprint(i), now, true)
	}
	m.clients.CleanUp()
	if n := m.clients.EstimatedSize(); n > 100 {
		t.Errorf("%d clients are remembered", n)
	}
	for _, u := range m.clients.All() {
		if len(u.names) > 4 {
			t.Errorf("%d names of a client are remembered", len(u.names))
		}
	}
}

// The marks' sum refuses by itself where the operator wants it.
func TestScore(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.RejectAt, c.DeferAt = 5, 3
		c.ReverseMissing.Weight, c.HeloUnresolved.Weight, c.HeloWrongAddress.Weight = 3, 2, 1
	})
	for _, tt := range []struct {
		addr, helo string
		want       string
	}{
		{"192.0.2.9", "nowhere.example", "550 5.7.1 Too much speaks against 192.0.2.9: HELO name does not exist, no reverse name"},
		{"192.0.2.9", "[192.0.2.1]", "450 4.7.1 Too much speaks against 192.0.2.9: HELO address not the client's, no reverse name"},
		{"192.0.2.9", "mail.good.example", "450 4.7.1 Too much speaks against 192.0.2.9: no reverse name"},
		{"192.0.2.7", "nowhere.example", ""},
	} {
		req := w.from(tt.addr, "", "")
		req.Helo = tt.helo
		v := w.ask(req)
		got := ""
		if v.Action.Refuses() {
			got = v.Reply.String()
		}
		if got != tt.want || (v.Reason == "client-score") != (got != "") {
			t.Errorf("%s, %s: %q %q, want %q", tt.addr, tt.helo, v.Reason, got, tt.want)
		}
	}
}

func TestDecide(t *testing.T) {
	r := &rules{rejectAt: 10, deferAt: 5}
	r.actions[heloInvalid], r.actions[heloOwn] = conf.Defer, conf.Reject
	r.actions[reverseMissing], r.weights[reverseMissing] = conf.Mark, 4
	r.actions[reverseGeneric], r.weights[reverseGeneric] = conf.Mark, 1
	r.actions[senderOwn], r.weights[senderOwn] = conf.Mark, 6
	r.actions[senderNullMX] = conf.Reject
	r.weights[heloOwn], r.weights[heloInvalid] = 100, 100
	r.deferUnable = 1<<askReverse | 1<<askSender
	for _, tt := range []struct {
		name   string
		found  set
		unable asks
		action conf.Action
		reason string
		score  int
	}{
		{"nothing", 0, 0, conf.Off, "", 0},
		{"what is off", of(heloMissing), 0, conf.Off, "", 0},
		{"a mark", of(reverseMissing), 0, conf.Mark, "client-reverse-missing", 4},
		{"marks to defer", of(reverseMissing, reverseGeneric), 0, conf.Defer, "client-score", 5},
		{"marks to reject", of(reverseMissing, senderOwn), 0, conf.Reject, "client-score", 10},
		{"a deferral", of(heloInvalid), 0, conf.Defer, "client-helo-invalid", 0},
		{"a deferral before marks", of(heloInvalid, reverseMissing, reverseGeneric), 0, conf.Defer, "client-helo-invalid", 5},
		{"marks that reject before a deferral", of(heloInvalid, reverseMissing, senderOwn), 0, conf.Reject, "client-score", 10},
		{"a rejection before a deferral", of(heloInvalid, heloOwn), 0, conf.Reject, "client-helo-own", 0},
		{"the first rejection", of(heloOwn, senderNullMX), 0, conf.Reject, "client-helo-own", 0},
		{"a rejection before marks", of(reverseMissing, senderOwn, senderNullMX), 0, conf.Reject, "client-sender-null-mx", 10},
		{"unable", 0, 1 << askHelo, conf.Off, "client-unable", 0},
		{"unable, deferred", 0, 1 << askSender, conf.Defer, "client-unable", 0},
		{"unable, the first that defers", 0, 1<<askHelo | 1<<askReverse | 1<<askSender, conf.Defer, "client-unable", 0},
		{"unable and a mark", of(reverseGeneric), 1 << askHelo, conf.Mark, "client-reverse-generic", 1},
		{"unable and a mark, deferred", of(reverseGeneric), 1 << askSender, conf.Defer, "client-unable", 1},
		{"unable and a rejection", of(heloOwn), 1 << askSender, conf.Reject, "client-helo-own", 0},
		{"unable and a deferral", of(heloInvalid), 1 << askSender, conf.Defer, "client-helo-invalid", 0},
	} {
		got := decide(r, tt.found, tt.unable)
		if got.action != tt.action || got.reason != tt.reason || got.score != tt.score {
			t.Errorf("%s: %+v, want %v %q %d", tt.name, got, tt.action, tt.reason, tt.score)
		}
		if by := got.by < conditions; by != (got.reason != "" && got.reason != reasonScore && got.reason != reasonUnable) {
			t.Errorf("%s: by %d", tt.name, got.by)
		}
		if un := got.unable < questions; un != (got.reason == reasonUnable && got.action == conf.Defer) {
			t.Errorf("%s: unable %d", tt.name, got.unable)
		}
	}
	if got := decide(r, 0, 7); got.unable != askReverse {
		t.Errorf("not the first question: %d", got.unable)
	}
	none := &rules{}
	none.actions[senderOwn], none.weights[senderOwn] = conf.Mark, 1000
	if got := decide(none, of(senderOwn), 0); got.action != conf.Mark || got.score != 1000 {
		t.Errorf("without limits: %+v", got)
	}
}

// `postern explain` sees what was looked at.
func TestNotes(t *testing.T) {
	w := newWorld(t, nil)
	req := w.from("192.0.2.9", "", "")
	req.Helo, req.Probe = "nowhere.example", new(policy.Probe)
	for _, source := range []string{"network", "cache"} {
		req.Probe.Notes = nil
		w.ask(req)
		var got []string
		for _, n := range req.Probe.Notes {
			got = append(got, n.What+" = "+n.Value+" ["+n.Source+"]")
		}
		want := []string{
			"HELO name nowhere.example = no A, AAAA or MX record [" + source + "]",
			"reverse name of 192.0.2.9 = no PTR record [" + source + "]",
			"sender's domain good.example = mail exchanger mail.good.example, 192.0.2.7 [" + source + "]",
			"helo-unresolved = mark, weight 1: no A, AAAA or MX record []",
			"reverse-missing = mark, weight 1: no PTR record []",
		}
		if !slices.Equal(got, want) {
			t.Errorf("notes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestHintWaitsForWhatItDoesNotKnow(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.HeloInvalid.Action = conf.Defer
		c.HeloNames = 1
		c.HeloChanges.Action = conf.Reject
	})
	// A deferral could yet become a rejection.
	req := w.mail("a..b", "ann@nowhere.example")
	if v, ok := w.check.Hint(req); ok {
		t.Errorf("hint %v", v)
	}
	w.ask(req)
	if v, ok := w.check.Hint(req); !ok || v.Action != policy.Reject || v.Reason != "client-sender-unresolved" {
		t.Errorf("hint %v %v", ok, v)
	}
	req = w.mail("a..b", "ann@good.example")
	w.ask(req)
	if v, ok := w.check.Hint(req); !ok || v.Action != policy.Defer || v.Reason != "client-helo-invalid" {
		t.Errorf("hint %v %v", ok, v)
	}
	// Nothing speaks against it: no hint; and asking for one is not a HELO.
	for range 3 {
		req = w.mail("mail.good.example", "ann@good.example")
		req.Client.Addr = netip.MustParseAddr("192.0.2.77")
		if v, ok := w.check.Hint(req); ok {
			t.Errorf("hint %v", v)
		}
	}
	req.Helo = "other.good.example"
	w.dns.Add("other.good.example. 60 IN A 192.0.2.77")
	if v := w.ask(req); v.Reason != "" {
		t.Errorf("a HELO name of a hint was remembered: %q", v.Reason)
	}
}

func TestStatus(t *testing.T) {
	w := newWorld(t, nil)
	w.ask(w.mail("mail.good.example", "ann@good.example"))
	w.ask(w.from("192.0.2.9", "", ""))
	var b strings.Builder
	w.check.Status().WriteStatus(&b, w.now)
	if got := b.String(); !strings.Contains(got, "client    3 answers of the DNS and the HELO names of 2 clients are remembered\n") {
		t.Errorf("%q", got)
	}
}

func TestReport(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.SenderPrivateMX.Action = conf.Off
		c.OwnDomains = []string{"own.example"}
	})
	w.dns.Add("loop.example. 60 IN MX 10 lo.example.", "lo.example. 60 IN A 127.0.0.1")
	w.dns.Behave("broken.example", dnstest.ServFail)
	text := func(s string) *string { return &s }
	for _, tt := range []struct {
		q      Question
		want   string // what does not say "no" or "not given"
		given  int    // conditions for which something was given
		action conf.Action
		exempt string
	}{
		{Question{IP: "192.0.2.7"}, "", 3, conf.Off, ""},
		{Question{IP: "192.0.2.7", Helo: "mail.good.example", Sender: text("ann@good.example")}, "", 14, conf.Off, ""},
		{Question{IP: "::ffff:192.0.2.7", Helo: "mail.good.example", Sender: text("<>")}, "", 10, conf.Off, ""},
		{Question{IP: "192.0.2.7", Sender: text("ann@good.example")}, "helo-missing=found", 8, conf.Reject, ""},
		{Question{IP: "192.0.2.9", Helo: "a..b"}, "helo-invalid=found reverse-missing=found", 10, conf.Reject, ""},
		{Question{IP: "192.0.2.9", Name: "Mail.good.example."}, "", 3, conf.Off, ""},
		{Question{IP: "192.0.2.9", Name: "dsl-192-0-2-9.isp.example"}, "reverse-generic=found", 3, conf.Mark, ""},
		{Question{IP: "192.0.2.7", Helo: "broken.example", Sender: text("ann@loop.example")}, "helo-unresolved=unable sender-private-mx=found", 14, conf.Off, ""},
		{Question{IP: "192.0.2.7", Helo: "mail.good.example", Sender: text("ann@broken.example")},
			"sender-unresolved=unable sender-null-mx=unable sender-private-mx=unable", 14, conf.Off, ""},
		{Question{IP: "127.0.0.1", Helo: "mx.example.org", Name: "localhost"}, "helo-own=found", 10, conf.Reject, "client-own-network: a host of ours"},
	} {
		r, err := w.check.Test(t.Context(), &tt.q, w.now)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		given := 0
		for _, c := range r.Conditions {
			if c.Result != NotGiven {
				given++
			}
			if c.Result == Found || c.Result == Unable {
				got = append(got, c.Condition+"="+string(c.Result))
			}
			if (c.Detail != "") != (c.Result == Found) {
				t.Errorf("%+v: %+v", tt.q, c)
			}
		}
		if strings.Join(got, " ") != tt.want || given != tt.given || r.Action != tt.action || r.Exempt != tt.exempt || (r.Reply.Code > 0) != (r.Action >= conf.Defer) {
			t.Errorf("%+v: %q (%d given), %v %q %v; exempt %q", tt.q, got, given, r.Action, r.Reason, r.Reply, r.Exempt)
		}
	}
	if _, err := w.check.Test(t.Context(), &Question{IP: "nobody"}, w.now); err == nil {
		t.Error("nobody is judged")
	}
	// Nothing of it is counted or remembered.
	if s := w.check.Status(); s.Answers != 0 || s.Clients != 0 {
		t.Errorf("%+v", s)
	}
	if n := testutil.CollectAndCount(w.reg, "postern_client_found_total"); n != int(conditions) {
		t.Errorf("%d conditions are counted", n)
	}
	for i := range conditions {
		if n := testutil.ToFloat64(w.check.shared.metrics.found[i]); n != 0 {
			t.Errorf("%s was counted", slugs[i])
		}
	}
}

func TestFoundConditionsAreCounted(t *testing.T) {
	w := newWorld(t, nil)
	w.ask(w.from("192.0.2.9", "", ""))
	w.ask(w.mail("mail", "ann@good.example"))
	dry := w.mail("mail", "ann@good.example")
	dry.DryRun = true
	w.ask(dry)
	for i := range conditions {
		want := 0.0
		if i == reverseMissing || i == heloNotFull {
			want = 1
		}
		if got := testutil.ToFloat64(w.check.shared.metrics.found[i]); got != want {
			t.Errorf("%s: %v", slugs[i], got)
		}
	}
}
