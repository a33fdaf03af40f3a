package client

import (
	"net/netip"
	"testing"

	"postern/internal/conf"
	"postern/policy"
)

// Several recipients, and messages from a client that is known: from memory,
// without an allocation.
func BenchmarkEvaluate(b *testing.B) {
	for _, tt := range []struct {
		name string
		req  func(*world) *policy.Request
	}{
		{"clean", func(w *world) *policy.Request { return w.mail("mail.good.example", "ann@good.example") }},
		{"other HELO name", func(w *world) *policy.Request { return w.mail("six.good.example", "ann@good.example") }},
		{"names not looked up by Postfix", func(w *world) *policy.Request { return w.from("192.0.2.7", "", "") }},
		{"one mark", func(w *world) *policy.Request { return w.from("192.0.2.9", "dsl-192-0-2-9.isp.example", "") }},
		{"refused", func(w *world) *policy.Request { return w.mail("mail", "ann@good.example") }},
	} {
		b.Run(tt.name, func(b *testing.B) {
			w := newWorld(b, nil)
			w.dns.KeepLog(false)
			w.dns.Add("six.good.example. 3600 IN AAAA 2001:db8::6")
			req := tt.req(w)
			req.Facts.Marks = make([]string, 0, 4) // as a door has it
			w.ask(req)
			b.ReportAllocs()
			for b.Loop() {
				req.Facts.Reset()
				if _, err := w.check.Evaluate(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A domain that has not been seen, in the resolver's memory.
func BenchmarkEvaluateNewClient(b *testing.B) {
	w := newWorld(b, nil)
	w.dns.KeepLog(false)
	w.dns.Add("*.in-addr.arpa. 3600 IN PTR mail.good.example.")
	req := w.from("192.0.2.7", "mail.good.example", "mail.good.example")
	i := uint32(0)
	b.ReportAllocs()
	for ; b.Loop(); i++ {
		req.Client.Addr = netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		req.Facts.Reset()
		if _, err := w.check.Evaluate(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHint(b *testing.B) {
	w := newWorld(b, nil)
	req := w.mail("mail.good.example", "ann@good.example")
	w.ask(req)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := w.check.Hint(req); ok {
			b.Fatal("refused")
		}
	}
}

func BenchmarkParseHelo(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if parseHelo("mail-oi1-f170.google.example").form != heloName {
			b.Fatal("no name")
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	cfg := DefaultConfig()
	r := cfg.rules()
	b.ReportAllocs()
	for b.Loop() {
		if decide(r, of(heloUnresolved, reverseGeneric), 0).action != conf.Mark {
			b.Fatal("no mark")
		}
	}
}

// What is known already costs no memory, marked or not.
func TestNoAllocations(t *testing.T) {
	w := newWorld(t, nil)
	for name, req := range map[string]*policy.Request{
		"clean":                          w.mail("mail.good.example", "ann@good.example"),
		"another HELO name":              w.mail("nowhere.example", "ann@good.example"),
		"names not looked up by Postfix": w.from("192.0.2.7", "", ""),
		"one mark":                       w.from("192.0.2.9", "dsl-192-0-2-9.isp.example", ""),
	} {
		req.Facts.Marks = make([]string, 0, 4)
		w.ask(req)
		n := testing.AllocsPerRun(200, func() {
			req.Facts.Reset()
			w.ask(req)
		})
		// Those of the deadline that ask sets.
		plain := testing.AllocsPerRun(200, func() { w.ask(&policy.Request{}) })
		if n > plain {
			t.Errorf("%s: %v allocations", name, n-plain)
		}
	}
}
