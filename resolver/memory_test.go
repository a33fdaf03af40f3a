package resolver

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"

	"postern/internal/conf"
)

// answersOf are usual questions and what is said to them; %[1]d is the number
// of the question, %[2]s its name.
var answersOf = []struct {
	name, question string
	qtype          uint16
	rcode          int
	records        []string
}{
	{"no such name", "%d.2.0.192.zen.example.org", dns.TypeA, dns.RcodeNameError, nil},
	{"listed", "%d.2.0.192.zen.example.org", dns.TypeA, 0, []string{"%[2]s. 300 IN A 127.0.0.2"}},
	{"PTR", "%d.2.0.192.in-addr.arpa", dns.TypePTR, 0, []string{"%[2]s. 300 IN PTR mail-%[1]d.example.org."}},
	{"MX", "%d.example.org", dns.TypeMX, 0, []string{"%[2]s. 300 IN MX 10 mx1.d%[1]d.example.org.", "%[2]s. 300 IN MX 20 mx2.d%[1]d.example.org."}},
	{"TXT", "%d.example.org", dns.TypeTXT, 0, []string{
		`%[2]s. 300 IN TXT "v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 include:_spf.example.com include:spf.example.net -all"`,
		`%[2]s. 300 IN TXT "google-site-verification=abcdefghijklmnopqrstuvwxyz0123456789ABCDE%[1]d"`,
	}},
	{"SERVFAIL", "%d.example.org", dns.TypeMX, dns.RcodeServerFailure, nil},
}

// BenchmarkMemory tells how much live memory an answer takes in the cache, with
// all that belongs to it, and what a hit takes of it.
func BenchmarkMemory(b *testing.B) {
	const n = 50_000
	for _, tt := range answersOf {
		b.Run(tt.name, func(b *testing.B) {
			cfg := testConfig("192.0.2.53")
			cfg.CacheSize, cfg.ServFailTTL = 10*n, conf.Duration(5*time.Minute)
			before := live()
			r := start(b, cfg)
			r.upstream = func(_ context.Context, k key) *answer {
				var i int
				if _, err := fmt.Sscanf(k.name, "%d", &i); err != nil {
					b.Error(err)
				}
				// As from the network, so that it keeps what it would keep of a message.
				a, res := parse(said(b, k, tt.rcode, tt.records, i), k)
				if a == nil {
					return failed(k, res.kind(), "127.0.0.1:53: SERVFAIL")
				}
				return a
			}
			for i := range n {
				_, _, _, _ = r.lookup(b.Context(), fmt.Sprintf(tt.question, i), tt.qtype) // a failure is one of the answers
			}
			r.cache.CleanUp()
			held := live() - before
			if r.cache.EstimatedSize() != n {
				b.Fatalf("%d answers are there", r.cache.EstimatedSize())
			}
			name := fmt.Sprintf(tt.question, n/2)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, cached, _ := r.lookup(b.Context(), name, tt.qtype); !cached {
					b.Fatal("not cached")
				}
			}
			b.ReportMetric(float64(held)/n, "bytes/answer")
			runtime.KeepAlive(r)
		})
	}
}

// live returns the bytes that are in use.
func live() int64 {
	runtime.GC()
	runtime.GC() // what the first has finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func said(b *testing.B, k key, rcode int, records []string, i int) []byte {
	m := new(dns.Msg).SetQuestion(k.name+".", k.qtype)
	m.Response, m.Rcode, m.Compress = true, rcode, true
	for _, text := range records {
		rr, err := dns.NewRR(fmt.Sprintf(text, i, k.name))
		if err != nil {
			b.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	if rcode == dns.RcodeNameError {
		rr, err := dns.NewRR("zen.example.org. 300 IN SOA a.example.org. b.example.org. 1 2 3 4 300")
		if err != nil {
			b.Fatal(err)
		}
		m.Ns = append(m.Ns, rr)
	}
	wire, err := m.Pack()
	if err != nil {
		b.Fatal(err)
	}
	return wire
}
