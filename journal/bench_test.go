package journal

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"

	"postern/policy"
)

var entries = flag.Int("entries", 20_000, "how many decisions the benchmarks of searching look through")

// sample is a decision as a busy gateway makes it.
func sample(i int) (*policy.Request, *policy.Decision) {
	at := time.Unix(1_700_000_000+int64(i)/20, int64(i%20)*5e7)
	host := fmt.Sprintf("host-%d.example.net", i%5000)
	req := &policy.Request{
		Time: at, Stage: policy.StageRcpt, Door: "policy", Listener: "unix:/var/spool/postfix/postern/policy.sock", ESMTP: true,
		Client: policy.Client{Addr: netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)}), Name: host, ReverseName: host, Port: uint16(20000 + i%40000)},
		Helo:   host, Instance: fmt.Sprintf("%x.%x.0", i, i*7),
		Sender:    policy.Address{Raw: fmt.Sprintf("user%d@dom%d.example.org", i, i%20000)},
		Recipient: policy.Address{Raw: fmt.Sprintf("box%d@example.com", i%3000)},
	}
	v := policy.Verdict{Action: policy.Reject, Reason: "rbl-listed", Reply: policy.Reply{Code: 554, Enhanced: "5.7.1", Text: "Service unavailable; client is listed by zen.example"}, Detail: "zen.example 127.0.0.2 weight 5, bl.example 127.0.0.4 weight 3"}
	req.Facts.Listings = []policy.Listing{{List: "zen.example", What: req.Client.Addr.String(), Answer: "127.0.0.2", Weight: 5}}
	req.Facts.RBLScore, req.Facts.ListsAsked = 5, true
	return req, &policy.Decision{
		Reference: refs.Next(at).String(), Check: "rbl", Verdict: v, Chain: "inbound", Took: 1234567,
		Steps: []policy.Step{{Check: "access", Took: 1300}, {Check: "provider", Took: 400}, {Check: "client", Verdict: policy.Verdict{Detail: "reverse name is generic"}, Took: 52000}, {Check: "rbl", Verdict: v, Took: 1100000}},
	}
}

// What a decision pays.
func BenchmarkRecord(b *testing.B) {
	for _, keep := range []Keep{KeepRefused, KeepAll} {
		b.Run(keep.String(), func(b *testing.B) {
			cfg := DefaultConfig()
			cfg.Keep = keep
			j := New(cfg, Options{Dir: b.TempDir(), References: refs, Log: zap.NewNop()})
			// The writer has a processor of its own to be measured by: see BenchmarkWrite.
			req, d := sample(1)
			b.ReportAllocs()
			for b.Loop() {
				j.Record(req, d)
			}
		})
	}
}

// What the writer does for each decision, compression and all.
func BenchmarkWrite(b *testing.B) {
	cfg := DefaultConfig()
	j := New(cfg, Options{Dir: b.TempDir(), References: refs, Log: zap.NewNop()})
	j.write.open()
	req, d := sample(1)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		if i%1000 == 0 { // not always the same
			b.StopTimer()
			req, d = sample(i)
			b.StartTimer()
		}
		j.Record(req, d)
		if i%100 == 0 {
			j.write.drain(1 << 30)
		}
	}
	j.write.drain(1 << 30)
	j.write.write(true)
	b.ReportMetric(float64(j.write.state.Bytes)/float64(i), "disk-B/op")
	j.write.close()
}

// Searching *entries decisions; -entries 1000000 is a busy month.
func BenchmarkSearch(b *testing.B) {
	cfg := DefaultConfig()
	cfg.MaxSize = 4 << 30
	dir := b.TempDir()
	j := New(cfg, Options{Dir: dir, References: refs, Log: zap.NewNop()})
	j.write.open()
	var wanted string
	for i := range *entries {
		req, d := sample(i)
		if i == *entries/2 {
			wanted = d.Reference
		}
		j.Record(req, d)
		if i%1000 == 0 {
			j.write.drain(1 << 30)
		}
	}
	j.write.drain(1 << 30)
	j.write.write(true)
	size := j.write.state.Bytes
	j.write.close()
	r, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	half := *entries / 2
	for _, tt := range []struct {
		name string
		f    Filter
		most int
	}{
		{"reference", Filter{Reference: wanted}, 1},
		{"address", Filter{Address: fmt.Sprintf("user%d@dom%d.example.org", half, half%20000)}, 1},
		{"client", Filter{Client: netip.AddrFrom4([4]byte{203, byte(half >> 16), byte(half >> 8), byte(half)}).String()}, 1},
		{"domain", Filter{Domain: fmt.Sprintf("dom%d.example.org", half%20000)}, *entries},
		{"everything for a reason", Filter{Reason: "no-such-reason"}, 0},
		{"newest 100", Filter{Limit: 100}, 100},
	} {
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				seen, err := r.Search(context.Background(), &tt.f, func(*Record) bool { n++; return true })
				if err != nil || n > tt.most || tt.most > 0 && n == 0 {
					b.Fatal(n, err)
				}
				b.ReportMetric(float64(seen.Blocks), "blocks/op")
			}
			b.ReportMetric(float64(size)/float64(*entries), "disk-B/entry")
		})
	}
}
