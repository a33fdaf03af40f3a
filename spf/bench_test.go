package spf

import (
	"net/netip"
	"testing"
	"time"

	"postern/policy"
)

// benchWorld has a domain like those of large senders: an include or two.
func benchWorld(b *testing.B) *world {
	w := newWorld(b, func(c *Config) { c.WidestIPv4 = 7 })
	w.dns.KeepLog(false)
	w.txt("big.example", "v=spf1 include:_spf.big.example include:spf.mailer.example -all")
	w.txt("_spf.big.example", "v=spf1 ip4:198.51.100.0/24 ip4:203.0.113.0/25 ip6:2001:db8:1::/48 ~all")
	w.txt("spf.mailer.example", "v=spf1 ip4:192.0.2.0/24 ip4:10.0.0.0/9 ip4:10.128.0.0/10 ip4:10.192.0.0/10 ip6:2001:db8:2::/48 ~all")
	w.txt("mail.big.example", "v=spf1 a -all")
	w.dns.Add("mail.big.example. 3600 IN A 192.0.2.7")
	return w
}

// Several recipients, and messages from the same client: from memory.
func BenchmarkEvaluateRemembered(b *testing.B) {
	w := benchWorld(b)
	req := w.mail("192.0.2.7", "mail.big.example", "user@big.example")
	w.ask(req)
	b.ReportAllocs()
	for b.Loop() {
		req.Facts.Reset()
		if v, err := w.check.Evaluate(b.Context(), req); err != nil || v.Reason != "spf-pass" {
			b.Fatal(v, err)
		}
	}
}

// A client that has not been seen, of a domain whose records are in the DNS
// cache: with the networks in the record itself, and behind two includes.
func BenchmarkEvaluateCachedDomain(b *testing.B) {
	w := benchWorld(b)
	w.txt("small.example", "v=spf1 ip4:198.51.100.0/24 ip4:10.0.0.0/8 mx ~all")
	i := uint32(0) // goes on, so that no client comes twice
	for _, domain := range []string{"small.example", "big.example"} {
		b.Run(domain, func(b *testing.B) {
			req := w.mail("192.0.2.7", "localhost", "user@"+domain)
			w.ask(req)
			b.ReportAllocs()
			for ; b.Loop(); i++ {
				req.Client.Addr = netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
				req.Facts.Reset()
				if v, err := w.check.Evaluate(b.Context(), req); err != nil || v.Reason != "spf-pass" {
					b.Fatal(v, err)
				}
			}
		})
	}
}

func BenchmarkDecide(b *testing.B) {
	cfg := DefaultConfig()
	f := findings{mail: &Outcome{Result: softfail}, helo: &Outcome{Result: fail}}
	b.ReportAllocs()
	for b.Loop() {
		if decide(&cfg, &f).action != Reject {
			b.Fatal("not rejected")
		}
	}
}

func BenchmarkReceivedSPF(b *testing.B) {
	c := &Check{cfg: DefaultConfig(), hostname: "mx1.example.org"}
	o := &Outcome{Result: pass, Domain: "big.example", Mechanism: "ip"}
	s := &subject{addr: netip.MustParseAddr("192.0.2.7"), helo: "mail.big.example", sender: policy.Address{Raw: "user@big.example"}, now: time.Unix(1e9, 0)}
	f := &findings{mail: o, helo: o}
	b.ReportAllocs()
	for b.Loop() {
		if len(c.header(f, s)) != 1 {
			b.Fatal("no header")
		}
	}
}

func BenchmarkParseReceived(b *testing.B) {
	const field = " from mail.example.com (mail.example.com [192.0.2.7])\n\t(using TLSv1.3)\n\tby mx2.example.org (Postfix) with ESMTPS id 4abc"
	b.ReportAllocs()
	for b.Loop() {
		if _, _, ok := parseReceived(field); !ok {
			b.Fatal("not read")
		}
	}
}
