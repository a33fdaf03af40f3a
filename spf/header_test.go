package spf

import (
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"postern/policy"
)

func headerOf(kind string, f *findings, s *subject) string {
	c := &Check{cfg: Config{Header: kind}, hostname: "mx1.example.org"}
	h := c.header(f, s)
	if len(h) == 0 {
		return ""
	}
	return h[0].Name + ": " + h[0].Value
}

func TestHeader(t *testing.T) {
	s := &subject{addr: netip.MustParseAddr("192.0.2.7"), helo: "mail.example.com", sender: policy.Address{Raw: "user@example.com"}}
	s6 := &subject{addr: netip.MustParseAddr("2001:db8::7"), helo: "[IPv6:2001:db8::7]", null: true}
	odd := &subject{addr: s.addr, helo: "", sender: policy.Address{Raw: "\"a\r\nX: y\\(é\"@b(c).example"}}
	out := func(result, domain, mechanism string) *Outcome {
		return &Outcome{Result: result, Domain: domain, Mechanism: mechanism}
	}
	helo := out(none, "mail.example.com", "")
	wide := out(pass, "example.com", "all")
	wide.TooWide = true
	bad := out(permerror, "example.com", "")
	bad.Problem = `"foo" (x)`
	for _, tt := range []struct {
		name, kind string
		f          findings
		s          *subject
		want       string
	}{
		{"pass", HeaderReceivedSPF, findings{mail: out(pass, "example.com", "ip"), helo: helo}, s, `Received-SPF: pass (mx1.example.org: example.com designates 192.0.2.7 as permitted sender) receiver=mx1.example.org; client-ip=192.0.2.7; identity=mailfrom; envelope-from="user@example.com"; helo=mail.example.com; mechanism=ip`},
		{"softfail", HeaderReceivedSPF, findings{mail: out(softfail, "example.com", "all"), helo: helo}, s, `Received-SPF: softfail (mx1.example.org: example.com probably does not permit 192.0.2.7 to send) receiver=mx1.example.org; client-ip=192.0.2.7; identity=mailfrom; envelope-from="user@example.com"; helo=mail.example.com; mechanism=all`},
		{"too wide", HeaderReceivedSPF, findings{mail: wide, helo: helo}, s, `Received-SPF: neutral (mx1.example.org: the record of example.com lets too many clients pass to count) receiver=mx1.example.org; client-ip=192.0.2.7; identity=mailfrom; envelope-from="user@example.com"; helo=mail.example.com; mechanism=all`},
		{"permerror", HeaderReceivedSPF, findings{mail: bad, helo: helo}, s, `Received-SPF: permerror (mx1.example.org: the record of example.com has an error) receiver=mx1.example.org; client-ip=192.0.2.7; identity=mailfrom; envelope-from="user@example.com"; helo=mail.example.com; problem="\"foo\" (x)"`},
		{"null sender, IPv6", HeaderReceivedSPF, findings{helo: out(none, "", "")}, s6, `Received-SPF: none (mx1.example.org: no domain to ask about) receiver=mx1.example.org; client-ip="2001:db8::7"; identity=helo; envelope-from=""; helo="[IPv6:2001:db8::7]"`},
		{"odd", HeaderReceivedSPF, findings{mail: out(fail, "b(c).example", "all"), helo: helo}, odd, `Received-SPF: fail (mx1.example.org: b\(c\).example does not designate 192.0.2.7 as permitted sender) receiver=mx1.example.org; client-ip=192.0.2.7; identity=mailfrom; envelope-from="\"a??X: y\\(??\"@b(c).example"; helo=""; mechanism=all`},
		{"neutral", HeaderReceivedSPF, findings{helo: out(neutral, "x.example", "")}, s, `Received-SPF: neutral (mx1.example.org: x.example does not say whether 192.0.2.7 may send) receiver=mx1.example.org; client-ip=192.0.2.7; identity=helo; envelope-from="user@example.com"; helo=mail.example.com`},
		{"none", HeaderReceivedSPF, findings{helo: helo}, s, `Received-SPF: none (mx1.example.org: mail.example.com has no record) receiver=mx1.example.org; client-ip=192.0.2.7; identity=helo; envelope-from="user@example.com"; helo=mail.example.com`},
		{"temperror", HeaderReceivedSPF, findings{helo: out(temperror, "x.example", "")}, s, `Received-SPF: temperror (mx1.example.org: the record of x.example cannot be looked up) receiver=mx1.example.org; client-ip=192.0.2.7; identity=helo; envelope-from="user@example.com"; helo=mail.example.com`},

		{"results", HeaderResults, findings{mail: out(pass, "example.com", "ip"), helo: helo}, s, `Authentication-Results: mx1.example.org; spf=pass smtp.mailfrom=example.com; spf=none smtp.helo=mail.example.com`},
		{"results, too wide", HeaderResults, findings{mail: wide, helo: helo}, s, `Authentication-Results: mx1.example.org; spf=policy (the record lets too many clients pass) smtp.mailfrom=example.com; spf=none smtp.helo=mail.example.com`},
		{"results, null sender", HeaderResults, findings{helo: out(none, "", "")}, s6, `Authentication-Results: mx1.example.org; spf=none`},
		{"results, odd", HeaderResults, findings{mail: out(none, "a b;c", ""), helo: out(none, "x..y", "")}, s, `Authentication-Results: mx1.example.org; spf=none smtp.mailfrom="a b;c"; spf=none smtp.helo="x..y"`},
		{"off", HeaderOff, findings{helo: helo}, s, ""},
	} {
		if got := headerOf(tt.kind, &tt.f, tt.s); got != tt.want {
			t.Errorf("%s:\n%s, want\n%s", tt.name, got, tt.want)
		}
	}
}

// FuzzHeader: a field is one line of printable ASCII, not too long, with
// strings and comments closed, whatever a stranger writes.
func FuzzHeader(f *testing.F) {
	f.Add("user@example.com", "mail.example.com", "example.com", "no")
	f.Add("a\"\\\r\n(", "x)(\x00", "b\\", "é\x7f")
	f.Add(strings.Repeat("\"", 400), strings.Repeat("\\", 400), strings.Repeat("(", 400), strings.Repeat(")", 400))
	f.Fuzz(func(t *testing.T, sender, helo, domain, problem string) {
		s := &subject{addr: netip.MustParseAddr("2001:db8::7"), helo: helo, sender: policy.Address{Raw: sender}}
		for k := range kinds {
			o := &Outcome{Result: kindNames[k], Domain: domain, Problem: problem, Mechanism: "exists"}
			if k == kindTooWide {
				o.Result, o.TooWide = pass, true
			}
			for _, kind := range []string{HeaderReceivedSPF, HeaderResults} {
				h := headerOf(kind, &findings{mail: o, helo: o}, s)
				if len(h) > 2000 || !utf8.ValidString(h) || policy.Printable(h) != h {
					t.Fatalf("%q", h)
				}
				if kind == HeaderReceivedSPF && !strings.ContainsAny(sender+helo+domain+problem, `"\()`) && len(h) > 998 {
					t.Fatalf("%d octets: %q", len(h), h)
				}
				quoted, depth := false, 0
				for i := 0; i < len(h); i++ {
					switch c := h[i]; {
					case c == '\\' && (quoted || depth > 0):
						i++
					case c == '"' && depth == 0:
						quoted = !quoted
					case c == '(' && !quoted:
						depth++
					case c == ')' && !quoted:
						depth--
					}
				}
				if quoted || depth != 0 {
					t.Fatalf("not closed: %q", h)
				}
			}
		}
	})
}
