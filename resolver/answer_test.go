package resolver

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// message packs a response to a question for k. Records of the answer come
// first; those after "--" are of the authority section.
func message(tb testing.TB, k key, rcode int, records ...string) []byte {
	tb.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(k.name), k.qtype)
	m.Response, m.RecursionAvailable, m.Rcode = true, true, rcode
	section := &m.Answer
	for _, text := range records {
		if text == "--" {
			section = &m.Ns
			continue
		}
		rr, err := dns.NewRR(text)
		if err != nil {
			tb.Fatal(err)
		}
		*section = append(*section, rr)
	}
	b, err := m.Pack()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	chain := func(n int) []string {
		out := []string{fmt.Sprintf("n%d.example. 60 IN A 192.0.2.1", n)}
		for i := range n { // the order in a message means nothing
			out = append(out, fmt.Sprintf("n%d.example. 60 IN CNAME n%d.example.", i, i+1))
		}
		return out
	}
	soa := func(owner string, ttl, minimum int) string {
		return fmt.Sprintf("%s %d IN SOA ns.example. root.example. 1 3600 600 86400 %d", owner, ttl, minimum)
	}
	for _, tt := range []struct {
		name    string
		k       key
		rcode   int
		records []string
		want    result
		data    string
		ttl     time.Duration
	}{
		{"plain", key{"a.example", dns.TypeA}, 0, []string{"a.example. 60 IN A 192.0.2.1"}, resAnswer, "[192.0.2.1] [] []", time.Minute},
		{"owner in capitals", key{"a.example", dns.TypeA}, 0, []string{"A.Example. 60 IN A 192.0.2.1"}, resAnswer, "[192.0.2.1] [] []", time.Minute},
		{"other types and owners beside it", key{"a.example", dns.TypeA}, 0, []string{
			"a.example. 1 IN TXT x", "b.example. 1 IN A 192.0.2.9", "a.example. 60 IN A 192.0.2.1",
		}, resAnswer, "[192.0.2.1] [] []", time.Minute},
		{"another class", key{"a.example", dns.TypeA}, 0, []string{"a.example. 60 CH A 192.0.2.1"}, resBad, "", 0},
		{"least TTL, of the alias", key{"a.example", dns.TypeA}, 0, []string{
			"b.example. 60 IN A 192.0.2.1", "a.example. 30 IN CNAME B.example.",
		}, resAnswer, "[192.0.2.1] [] []", 30 * time.Second},
		{"TTL with the top bit", key{"a.example", dns.TypeA}, 0, []string{"a.example. 2147483648 IN A 192.0.2.1"}, resAnswer, "[192.0.2.1] [] []", 0},
		{"longest chain", key{"n0.example", dns.TypeA}, 0, chain(maxChain), resAnswer, "[192.0.2.1] [] []", time.Minute},
		{"longer chain", key{"n0.example", dns.TypeA}, 0, chain(maxChain + 1), resBad, "", 0},
		{"circle", key{"a.example", dns.TypeA}, 0, []string{"a.example. 60 IN CNAME b.example.", "b.example. 60 IN CNAME a.example."}, resBad, "", 0},
		{"alias to itself", key{"a.example", dns.TypeA}, 0, []string{"a.example. 60 IN CNAME a.example."}, resBad, "", 0},
		{"alias to nothing", key{"a.example", dns.TypeA}, dns.RcodeNameError, []string{
			"a.example. 30 IN CNAME b.example.", "--", soa("example.", 900, 600),
		}, resNegative, "[] [] []", 30 * time.Second},
		{"alias to no such type", key{"a.example", dns.TypeA}, 0, []string{
			"a.example. 300 IN CNAME b.example.", "--", soa("example.", 900, 60),
		}, resNegative, "[] [] []", time.Minute},
		{"no such name, minimum", key{"a.example", dns.TypeA}, dns.RcodeNameError, []string{"--", soa("example.", 900, 600)}, resNegative, "[] [] []", 10 * time.Minute},
		{"no such name, TTL of the SOA", key{"a.example", dns.TypeA}, dns.RcodeNameError, []string{"--", soa("example.", 300, 600)}, resNegative, "[] [] []", 5 * time.Minute},
		{"SOA of the root", key{"a.example", dns.TypeA}, dns.RcodeNameError, []string{"--", soa(".", 300, 600)}, resNegative, "[] [] []", 5 * time.Minute},
		{"SOA of a stranger", key{"a.example", dns.TypeA}, dns.RcodeNameError, []string{"--", soa("other.", 300, 600)}, resNegative, "[] [] []", 0},
		{"no such type, with NS", key{"a.example", dns.TypeA}, 0, []string{"--", "example. 60 IN NS ns.example.", soa("example.", 300, 600)}, resNegative, "[] [] []", 5 * time.Minute},
		{"no such type, without SOA", key{"a.example", dns.TypeA}, 0, nil, resNegative, "[] [] []", 0},
		{"referral", key{"a.example", dns.TypeA}, 0, []string{"--", "example. 60 IN NS ns.example."}, resBad, "", 0},
		{"records of another name", key{"a.example", dns.TypeA}, 0, []string{"b.example. 60 IN A 192.0.2.1"}, resBad, "", 0},
		{"TXT", key{"a.example", dns.TypeTXT}, 0, []string{`a.example. 60 IN TXT "a" "\"\\\000\255" ""`, `a.example. 60 IN TXT ""`}, resAnswer, fmt.Sprint("[] ", []string{"a\"\\\x00\xff", ""}, " []"), time.Minute},
		{"MX in order", key{"a.example", dns.TypeMX}, 0, []string{
			"a.example. 60 IN MX 20 c.example.", "a.example. 60 IN MX 10 B.example.", "a.example. 60 IN MX 10 a.example.",
		}, resAnswer, "[] [] [{10 a.example} {10 b.example} {20 c.example}]", time.Minute},
		{"PTR", key{"1.in-addr.arpa", dns.TypePTR}, 0, []string{`1.in-addr.arpa. 60 IN PTR Host.example.`, `1.in-addr.arpa. 60 IN PTR .`, `1.in-addr.arpa. 60 IN PTR a\032b.example.`}, resAnswer, `[] [host.example a\ b.example] []`, time.Minute},
		{"SERVFAIL", key{"a.example", dns.TypeA}, dns.RcodeServerFailure, nil, resServFail, "", 0},
		{"REFUSED", key{"a.example", dns.TypeA}, dns.RcodeRefused, nil, resRefused, "", 0},
		{"FORMERR", key{"a.example", dns.TypeA}, dns.RcodeFormatError, nil, resFormErr, "", 0},
		{"NOTIMP", key{"a.example", dns.TypeA}, dns.RcodeNotImplemented, nil, resFormErr, "", 0},
		{"NOTAUTH", key{"a.example", dns.TypeA}, dns.RcodeNotAuth, nil, resBad, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wire := message(t, tt.k, tt.rcode, tt.records...)
			a, res := parse(wire, tt.k)
			if res != tt.want || (a != nil) != (res == resAnswer || res == resNegative) {
				t.Fatalf("result %v (%v), want %v", res, a, tt.want)
			}
			if a != nil {
				if data := fmt.Sprint(a.addrs, a.texts, a.mx); data != tt.data || a.ttl != tt.ttl {
					t.Errorf("%s for %v, want %s for %v", data, a.ttl, tt.data, tt.ttl)
				}
			}
			// Whatever is cut off is asked for again, and never another answer.
			q, err := newQuery(tt.k)
			if err != nil {
				t.Fatal(err)
			}
			for n := q.question; n < len(wire) && a != nil; n++ {
				if _, res := parse(wire[:n], tt.k); res != resTruncated {
					t.Fatalf("the first %d of %d octets: %v", n, len(wire), res)
				}
			}
		})
	}
	wire := message(t, key{"a.example", dns.TypeA}, 0, "a.example. 60 IN A 192.0.2.1")
	wire[2] |= flagTC
	if a, res := parse(wire, key{"a.example", dns.TypeA}); a != nil || res != resTruncated {
		t.Errorf("with TC: %v, %v", a, res)
	}
}

func TestExtendedRcode(t *testing.T) {
	m := new(dns.Msg)
	m.SetQuestion("a.example.", dns.TypeA)
	m.Response, m.Rcode = true, dns.RcodeBadVers
	m.SetEdns0(udpSize, false)
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if a, res := parse(wire, key{"a.example", dns.TypeA}); a != nil || res != resFormErr {
		t.Errorf("BADVERS: %v, %v", a, res)
	}
}

// FuzzParse states that no message makes parse panic, and that what it returns
// is whole and bounded.
func FuzzParse(f *testing.F) {
	f.Add(message(f, key{"a.example", dns.TypeA}, 0, "a.example. 60 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1"), uint8(0))
	f.Add(message(f, key{"a.example", dns.TypeAAAA}, 0, "a.example. 60 IN AAAA 2001:db8::1"), uint8(1))
	f.Add(message(f, key{"a.example", dns.TypeTXT}, 0, `a.example. 60 IN TXT "a\000" "b"`), uint8(2))
	f.Add(message(f, key{"a.example", dns.TypePTR}, 0, `a.example. 60 IN PTR a\.b.`), uint8(3))
	f.Add(message(f, key{"a.example", dns.TypeMX}, 0, "a.example. 60 IN MX 0 ."), uint8(4))
	f.Add(message(f, key{"a.example", dns.TypeA}, dns.RcodeNameError, "--", "example. 60 IN SOA a. b. 1 2 3 4 5"), uint8(0))
	f.Fuzz(func(t *testing.T, wire []byte, which uint8) {
		k := key{"a.example", lookupTypes[int(which)%len(lookupTypes)]}
		q, err := newQuery(k)
		if err != nil {
			t.Fatal(err)
		}
		if len(wire) >= 2 {
			q.answeredBy(wire, uint16(wire[0])<<8|uint16(wire[1]))
		}
		if len(wire) < headerSize {
			if q.answeredBy(wire, 0) {
				t.Error("shorter than a header, and an answer")
			}
			return
		}
		a, res := parse(wire, k)
		if (a != nil) != (res == resAnswer || res == resNegative) {
			t.Fatalf("%v with %v", a, res)
		}
		if a == nil {
			return
		}
		if a.negative() != (res == resNegative) || a.ttl < 0 || a.ttl > math.MaxInt32*time.Second {
			t.Errorf("%v with %+v", res, a)
		}
		size := 0
		for _, s := range a.texts {
			size += len(s)
		}
		if size > 4*len(wire)*len(wire) {
			t.Errorf("%d octets of text from %d", size, len(wire))
		}
	})
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"":          "",
		"plain":     "plain",
		`\"`:        `"`,
		`\\`:        `\`,
		`a\200b`:    "a\xc8b",
		`\0001`:     "\x001",
		`\12`:       "12",
		`x\`:        `x\`,
		`\\\034\\"`: `\"\"`,
	} {
		var b strings.Builder
		if unescape(&b, in); b.String() != want {
			t.Errorf("unescape(%q) = %q, want %q", in, b.String(), want)
		}
	}
}

func TestAnsweredBy(t *testing.T) {
	k := key{"a.example", dns.TypeA}
	q, err := newQuery(k)
	if err != nil {
		t.Fatal(err)
	}
	const id = 0x1234
	for _, tt := range []struct {
		name   string
		change func(m *dns.Msg)
		want   bool
	}{
		{"the answer", func(*dns.Msg) {}, true},
		{"question in capitals", func(m *dns.Msg) { m.Question[0].Name = "A.eXample." }, true},
		{"another id", func(m *dns.Msg) { m.Id++ }, false},
		{"a query", func(m *dns.Msg) { m.Response = false }, false},
		{"another opcode", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, false},
		{"another name", func(m *dns.Msg) { m.Question[0].Name = "b.example." }, false},
		{"a longer name", func(m *dns.Msg) { m.Question[0].Name = "a.example.org." }, false},
		{"another type", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }, false},
		{"another class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, false},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, false},
		{"no question", func(m *dns.Msg) { m.Question = nil }, false},
		{"no question, no such name", func(m *dns.Msg) { m.Question, m.Rcode = nil, dns.RcodeNameError }, false},
		{"no question, SERVFAIL", func(m *dns.Msg) { m.Question, m.Rcode = nil, dns.RcodeServerFailure }, true},
		{"no question, FORMERR", func(m *dns.Msg) { m.Question, m.Rcode = nil, dns.RcodeFormatError }, true},
	} {
		m := new(dns.Msg)
		m.SetQuestion("a.example.", dns.TypeA)
		m.Id, m.Response = id, true
		tt.change(m)
		wire, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if got := q.answeredBy(wire, id); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if q.answeredBy(make([]byte, headerSize-1), 0) {
		t.Error("a part of a header is an answer")
	}
}
