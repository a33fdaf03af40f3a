package provider

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"blitiri.com.ar/go/spf"

	"postern/internal/dnstest"
)

func text(prefixes []netip.Prefix) string {
	s := make([]string, len(prefixes))
	for i, p := range prefixes {
		s[i] = p.String()
	}
	return strings.Join(s, " ")
}

// longRecord has more terms than fit in a UDP packet.
func longRecord(n int) string {
	var b strings.Builder
	b.WriteString("v=spf1")
	for i := range n {
		fmt.Fprintf(&b, " ip4:20.%d.%d.0/25", i/256, i%256)
	}
	return b.String() + " -all"
}

func TestFlatten(t *testing.T) {
	for _, tt := range []struct {
		name     string
		records  map[string]string // "a:NAME" and "mx:NAME" too, blank-separated
		want     string
		problems string // kinds and parts of the texts, "; " between
	}{
		{
			"networks, host bits masked, aggregated",
			map[string]string{
				"d.example": "v=spf1 ip4:192.0.2.129/25 ip4:192.0.2.0/25 ip4:198.51.100.7 ip6:2001:db8::1/33 ip6:2001:db8:8000::/33 -all",
			},
			"192.0.2.0/24 198.51.100.7/32 2001:db8::/32", "",
		},
		{
			"qualifiers",
			map[string]string{
				"d.example": "v=spf1 -ip4:192.0.2.0/26 ~ip4:192.0.2.64/27 ?ip4:192.0.2.96/27 ip4:192.0.2.0/24 ~all",
			},
			"192.0.2.128/25", "",
		},
		{
			"the first match decides",
			map[string]string{"d.example": "v=spf1 ip4:192.0.2.0/26 -ip4:192.0.2.0/24 ip4:192.0.2.0/23 -all"},
			"192.0.2.0/26 192.0.3.0/24", "",
		},
		{"nothing after all", map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 -all ip4:192.0.2.2 include:nowhere.example"}, "192.0.2.1/32", ""},
		{"+all", map[string]string{"d.example": "v=spf1 -ip4:128.0.0.0/1 +all"}, "0.0.0.0/1 ::/0", ""},
		{
			"include",
			map[string]string{
				"d.example": "v=spf1 include:a.example include:b.example -all",
				"a.example": "v=spf1 ip4:192.0.2.0/25 -all", "b.example": "v=spf1 -ip4:192.0.2.128/26 ip4:192.0.2.0/24 ?all",
			},
			"192.0.2.0/25 192.0.2.192/26", "",
		},
		{
			"an include that says fail matches nothing",
			map[string]string{
				"d.example": "v=spf1 include:a.example ip4:192.0.2.0/24 -all", "a.example": "v=spf1 -ip4:192.0.2.0/25 -all",
			},
			"192.0.2.0/24", "",
		},
		{
			"an include that takes away",
			map[string]string{
				"d.example": "v=spf1 -include:a.example ip4:192.0.2.0/24 -all", "a.example": "v=spf1 ip4:192.0.2.0/25 -all",
			},
			"192.0.2.128/25", "",
		},
		{
			"redirect",
			map[string]string{"d.example": "v=spf1 -ip4:192.0.2.0/25 redirect=A.Example.", "a.example": "v=spf1 ip4:192.0.2.0/24"},
			"192.0.2.128/25", "",
		},
		{"redirect beside all", map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 redirect=a.example -all"}, "192.0.2.1/32", ""},
		{
			"a and mx",
			map[string]string{
				"d.example": "v=spf1 a a:w.example/28//64 mx -all", "a:d.example": "192.0.2.1 2001:db8::1", "a:w.example": "198.51.100.77 2001:db8:1:2:3::",
				"mx:d.example": "m1.example m2.example", "a:m1.example": "192.0.2.9", "a:m2.example": "192.0.2.8 2001:db8::9",
			},
			"192.0.2.1/32 192.0.2.8/31 198.51.100.64/28 2001:db8::1/128 2001:db8::9/128 2001:db8:1:2::/64", "",
		},
		{
			"the macro that is known",
			map[string]string{"d.example": "v=spf1 include:_spf.%{d} -all", "_spf.d.example": "v=spf1 a:%{d1r}.x.example", "a:_spf.x.example": "192.0.2.1"},
			"192.0.2.1/32", "",
		},
		{
			"exists, ptr, macros",
			map[string]string{
				"d.example": "v=spf1 exists:%{i}.x.example ptr include:%{s}.example a:%{h}.x.example ip4:192.0.2.1 -all",
			},
			"192.0.2.1/32", "not-flattenable exists; not-flattenable ptr; not-flattenable include; not-flattenable a:",
		},
		{"a redirect that cannot be known", map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 redirect=%{s}.example"}, "192.0.2.1/32", "not-flattenable redirect"},
		{
			"what an unknown part may except is left out",
			map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 -exists:%{i}.x.example ip4:192.0.2.2 -all"},
			"192.0.2.1/32", "not-flattenable left out",
		},
		{
			"so is what an include of an unknown part may except",
			map[string]string{
				"d.example": "v=spf1 ?include:a.example ip4:192.0.2.0/24 -all", "a.example": "v=spf1 -ip4:192.0.2.0/25 ptr -all",
			},
			"192.0.2.0/25", "not-flattenable ptr",
		},
		{
			"an unknown part that adds hides nothing",
			map[string]string{
				"d.example": "v=spf1 include:a.example ip4:192.0.2.0/24 -all", "a.example": "v=spf1 ptr -all",
			},
			"192.0.2.0/24", "not-flattenable ptr",
		},
		{"mapped addresses", map[string]string{"d.example": "v=spf1 ip6:::ffff:192.0.2.1 ip4:192.0.2.2 -all"}, "192.0.2.2/32", "noted IPv4-mapped"},

		{"no record", map[string]string{"d.example": "something else"}, "", "broken there is no SPF record"},
		{"two records", map[string]string{"d.example": "v=spf1 ip4:192.0.2.1|v=spf1 -all"}, "", "broken more than one"},
		{"bad syntax spoils all of a record", map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 ip4:192.0.2.300 -all"}, "", "broken column 26"},
		{
			"a missing include spoils what comes after",
			map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 include:x.example ip4:192.0.2.2 -all"},
			"192.0.2.1/32", "broken x.example has no SPF record",
		},
		{
			"a broken include too",
			map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 include:x.example ip4:192.0.2.2 -all", "x.example": "v=spf1 -ip4:192.0.2.2 foo"},
			"192.0.2.1/32", "broken unknown mechanism",
		},
		{
			"but not what it decides before",
			map[string]string{
				"d.example": "v=spf1 include:x.example ip4:192.0.2.0/24 -all", "x.example": "v=spf1 ip4:192.0.2.1 -ip4:192.0.2.2 include:y.example",
			},
			"192.0.2.1/32 192.0.2.2/32", "broken y.example has no SPF record",
		},
		{"a missing redirect", map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 redirect=x.example"}, "192.0.2.1/32", "broken x.example has no SPF record"},
		{
			"a loop",
			map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 include:a.example ip4:192.0.2.3 -all", "a.example": "v=spf1 ip4:192.0.2.2 include:d.example -all"},
			"192.0.2.1/32 192.0.2.2/32", "broken a loop: d.example > a.example > d.example",
		},
		{"a loop of one", map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 include:D.example -all"}, "192.0.2.1/32", "broken a loop"},
		{
			"a loop of redirects",
			map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 redirect=a.example", "a.example": "v=spf1 redirect=d.example"},
			"192.0.2.1/32", "broken a loop",
		},
		{
			"the same record twice is no loop",
			map[string]string{
				"d.example": "v=spf1 include:a.example include:b.example -all",
				"a.example": "v=spf1 include:c.example -all", "b.example": "v=spf1 include:c.example ip4:192.0.2.2 -all", "c.example": "v=spf1 ip4:192.0.2.1 -all",
			},
			"192.0.2.1/32 192.0.2.2/32", "",
		},
		{"ten look-ups", map[string]string{"d.example": "v=spf1 " + strings.Repeat("include:a.example ", 10) + "ip4:192.0.2.1", "a.example": "v=spf1 -all"}, "192.0.2.1/32", ""},
		{
			"eleven look-ups",
			map[string]string{"d.example": "v=spf1 ip4:192.0.2.2 " + strings.Repeat("include:a.example ", 11) + "ip4:192.0.2.1", "a.example": "v=spf1 -all"},
			"192.0.2.2/32", "broken more than 10 look-ups",
		},
		{"two void look-ups", map[string]string{"d.example": "v=spf1 a:x.example mx:y.example ip4:192.0.2.1 -all"}, "192.0.2.1/32", ""},
		{"three void look-ups", map[string]string{"d.example": "v=spf1 a:x.example mx:y.example a:z.example ip4:192.0.2.1 -all"}, "", "broken found nothing"},
		{"eleven exchangers", map[string]string{"d.example": "v=spf1 mx ip4:192.0.2.1 -all", "mx:d.example": strings.Repeat("m.example ", 11)}, "", "broken more than 10 mail exchangers"},
		{"the null exchanger", map[string]string{"d.example": "v=spf1 mx ip4:192.0.2.1 -all", "mx:d.example": "."}, "192.0.2.1/32", ""},
		{"an impossible name", map[string]string{"d.example": "v=spf1 ip4:192.0.2.1 include:" + strings.Repeat("a", 64) + ".example ip4:192.0.2.2"}, "192.0.2.1/32", "broken is not a domain name"},
		{"a chain too deep", chain(12), "192.0.2.0/29 192.0.2.8/31 192.0.2.10/32", "broken more than 10 look-ups"},
	} {
		z := newZone(nil)
		for name, text := range tt.records {
			kind, host, ok := strings.Cut(name, ":")
			switch {
			case !ok:
				z.txt[name] = strings.Split(text, "|")
			case kind == "mx":
				z.mx[host] = strings.Fields(text)
			default:
				for a := range strings.FieldsSeq(text) {
					z.addrs[host] = append(z.addrs[host], netip.MustParseAddr(a))
				}
			}
		}
		f, err := Flatten(t.Context(), z, "D.example.", defaultLimits)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := text(prefixesOf(f.Entries)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
		var want []string
		if tt.problems != "" {
			want = strings.Split(tt.problems, "; ")
		}
		if len(f.Problems) != len(want) {
			t.Errorf("%s: problems %v, want %q", tt.name, f.Problems, want)
			continue
		}
		for i, p := range f.Problems {
			kind, part, _ := strings.Cut(want[i], " ")
			if string(p.Kind) != kind || !strings.Contains(p.String(), part) {
				t.Errorf("%s: problem %v, want %s", tt.name, p, want[i])
			}
		}
	}
	if _, err := Flatten(t.Context(), newZone(nil), "a..b", defaultLimits); err == nil {
		t.Error("a bad name was taken")
	}
}

// chain is a record that includes another that includes another and so on.
func chain(n int) map[string]string {
	out := map[string]string{"d.example": "v=spf1 ip4:192.0.2.0 include:n1.example -all"}
	for i := 1; i <= n; i++ {
		out[fmt.Sprintf("n%d.example", i)] = fmt.Sprintf("v=spf1 ip4:192.0.2.%d include:n%d.example -all", i, i+1)
	}
	return out
}

func TestEntriesSayWhereTheyComeFrom(t *testing.T) {
	z := newZone(map[string]string{
		"d.example": "v=spf1 ip4:192.0.2.0/25 include:a.example -all", "a.example": "v=spf1 redirect=b.example", "b.example": "v=spf1 ip4:192.0.2.7/24 ~all",
	})
	z.ttl = 90 * time.Second
	f, err := Flatten(t.Context(), z, "d.example", defaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{
		{Prefix: netip.MustParsePrefix("192.0.2.0/25"), Record: "d.example", Term: "ip4:192.0.2.0/25", Via: "d.example"},
		{Prefix: netip.MustParsePrefix("192.0.2.128/25"), Record: "b.example", Term: "ip4:192.0.2.7/24", Via: "d.example > a.example > b.example"},
	}
	if fmt.Sprint(f.Entries) != fmt.Sprint(want) {
		t.Errorf("entries %v", f.Entries)
	}
	if f.TTL != 90*time.Second || f.Levels != 3 || f.Queries != 3 || len(f.Records) != 3 || f.Records[2].Domain != "b.example" {
		t.Errorf("%+v", f)
	}
}

// Every level of nesting costs one round trip, however wide it is.
func TestOneRoundTripPerLevel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := providerRecords(t)
		for domain, levels := range map[string]int{"spf.protection.outlook.com": 1, "outlook.com": 2, "_spf.google.com": 2, "gmail.com": 3} {
			z := newZone(records)
			z.delay = time.Second
			start := time.Now()
			f, err := Flatten(t.Context(), z, domain, defaultLimits)
			if err != nil || len(f.Problems) > 0 {
				t.Fatalf("%s: %v %v", domain, err, f.Problems)
			}
			if took := time.Since(start); took != time.Duration(levels)*time.Second || f.Levels != levels {
				t.Errorf("%s: %v in %d levels, want %d", domain, took, f.Levels, levels)
			}
		}
	})
}

func TestDNSTroubleIsAnError(t *testing.T) {
	z := newZone(map[string]string{
		"d.example": "v=spf1 ip4:192.0.2.1 include:a.example include:b.example a:c.example mx:m.example -all",
		"a.example": "v=spf1 ip4:192.0.2.2 -all", "b.example": "v=spf1 ip4:192.0.2.3 -all",
	})
	z.mx["m.example"] = []string{"x.example"}
	for _, name := range []string{"d.example", "b.example", "c.example", "m.example", "x.example"} {
		z.fail(name, true)
		if f, err := Flatten(t.Context(), z, "d.example", defaultLimits); !errors.Is(err, errServFail) || f != nil {
			t.Errorf("%s fails: %v, %v", name, f, err)
		}
		z.fail(name, false)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	z.delay = time.Hour
	if _, err := Flatten(ctx, z, "d.example", defaultLimits); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestReadingIsBounded(t *testing.T) {
	var wide strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&wide, " ?a:h%d.example", i)
	}
	z := newZone(map[string]string{"d.example": "v=spf1 ip4:192.0.2.1" + wide.String()})
	f, err := Flatten(t.Context(), z, "d.example", defaultLimits)
	if err != nil || z.queries() < maxQuestions || z.queries() > 2*maxQuestions || text(prefixesOf(f.Entries)) != "192.0.2.1/32" {
		t.Errorf("%d queries, %d entries, %v", z.queries(), len(f.Entries), err)
	}
	limits := defaultLimits
	limits.Networks = 100
	z.set("d.example", longRecord(200))
	f, err = Flatten(t.Context(), z, "d.example", limits)
	if err != nil || len(f.Entries) != 101 || len(f.Problems) != 1 || f.Problems[0].Kind != Broken {
		t.Errorf("%d entries, %v, %v", len(f.Entries), f.Problems, err)
	}
}

// passes asks the independent evaluator.
func passes(z *zone, domain string, a netip.Addr) bool {
	result, _ := spf.CheckHostWithSender(net.IP(a.AsSlice()), "mail."+domain, "someone@"+domain, spf.WithResolver(forSPF{z}))
	return result == spf.Pass
}

// probes yields addresses that tell lists apart: at and beside the ends of the
// networks that occur in the records, in them, and anywhere.
func probes(r *rand.Rand, near []netip.Prefix, n int) []netip.Addr {
	out := make([]netip.Addr, 0, n)
	for len(out) < n {
		var a netip.Addr
		switch k := r.IntN(10); {
		case k < 8 && len(near) > 0:
			p := near[r.IntN(len(near))]
			s := spanOf(p)
			switch r.IntN(5) {
			case 0:
				a = s.from
			case 1:
				a = s.to
			case 2:
				a = s.from.Prev()
			case 3:
				a = s.to.Next()
			default:
				b := s.from.AsSlice()
				for i := p.Bits(); i < len(b)*8; i++ {
					if r.IntN(2) == 0 {
						b[i/8] |= 0x80 >> (i % 8)
					}
				}
				a, _ = netip.AddrFromSlice(b)
			}
		case k == 8:
			var b [4]byte
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			a = netip.AddrFrom4(b)
		default:
			b := [16]byte{0x20, 0x01}
			for i := 2; i < 16; i++ {
				b[i] = byte(r.Uint32())
			}
			a = netip.AddrFrom16(b)
		}
		if a.IsValid() && !a.Is4In6() {
			out = append(out, a)
		}
	}
	return out
}

// The records of the large providers: an address is in the list exactly when
// an independent implementation of check_host says pass.
func TestSameAsCheckHost(t *testing.T) {
	t.Parallel()
	z := newZone(providerRecords(t))
	r := rand.New(rand.NewPCG(1, 2))
	const each = 2500 // 10000 together; the evaluator is slow
	for _, domain := range []string{"spf.protection.outlook.com", "outlook.com", "_spf.google.com", "gmail.com"} {
		f, err := Flatten(t.Context(), z, domain, defaultLimits)
		if err != nil {
			t.Fatal(err)
		}
		snap := newSnapshot(f.Entries)
		in, out := 0, 0
		for _, a := range probes(r, snap.prefixes, each) {
			want := passes(z, domain, a)
			if got := snap.find(a) != nil; got != want {
				t.Fatalf("%s: %v is in the list: %v, check_host passes: %v", domain, a, got, want)
			}
			if want {
				in++
			} else {
				out++
			}
		}
		if in < each/4 || out < each/4 {
			t.Errorf("%s: only %d inside and %d outside were tried", domain, in, out)
		}
	}
}

// Records made at random, with every qualifier, overlaps, nesting, missing and
// broken parts, and the limits.
func TestRandomRecordsSameAsCheckHost(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	checked, in := 0, 0
	for round := range 500 {
		z, near := randomZone(r)
		f, err := Flatten(t.Context(), z, "n0.example", defaultLimits)
		if err != nil {
			t.Fatal(err)
		}
		for i := range f.Entries {
			if i > 0 && f.Entries[i].Prefix.Overlaps(f.Entries[i-1].Prefix) {
				t.Fatalf("round %d: %v and %v overlap", round, f.Entries[i-1].Prefix, f.Entries[i].Prefix)
			}
		}
		snap := newSnapshot(f.Entries)
		aggregated := spansOf(snap.prefixes)
		for _, a := range probes(r, near, 24) {
			want, got := passes(z, "n0.example", a), snap.find(a) != nil
			checked++
			if want {
				in++
			}
			if got != aggregated.contains(a) {
				t.Fatalf("round %d: %v: entries and aggregated list differ", round, a)
			}
			// With limits or unknown parts in the way the list may lack some.
			if got && !want || want && !got && !inDoubt(f) {
				t.Fatalf("round %d: %v is in the list: %v, check_host passes: %v\n%v\n%v", round, a, got, want, z.txt, f.Problems)
			}
		}
	}
	if checked < 10_000 || in < 1500 {
		t.Errorf("%d addresses, %d of them inside", checked, in)
	}
}

// inDoubt reports whether a list may lack what passes: the look-ups of an
// evaluation depend on the address.
func inDoubt(f *Flat) bool {
	for _, p := range f.Problems {
		if p.Kind == NotFlattenable || strings.Contains(p.Text, "more than") {
			return true
		}
	}
	return false
}

func randomZone(r *rand.Rand) (*zone, []netip.Prefix) {
	z := newZone(nil)
	var near []netip.Prefix
	network := func() netip.Prefix {
		var p netip.Prefix
		if r.IntN(4) > 0 {
			p = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(r.IntN(3)), byte(r.IntN(256))}), 20+r.IntN(13))
		} else {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(r.IntN(3)), byte(r.IntN(256))}), 30+r.IntN(20))
		}
		near = append(near, p.Masked())
		return p
	}
	for i := range 4 {
		host := fmt.Sprintf("h%d.example", i)
		for range r.IntN(3) {
			a := network().Addr()
			z.addrs[host] = append(z.addrs[host], a)
			near = append(near, netip.PrefixFrom(a, a.BitLen()))
		}
		for range r.IntN(3) {
			z.mx[fmt.Sprintf("m%d.example", i)] = append(z.mx[fmt.Sprintf("m%d.example", i)], fmt.Sprintf("h%d.example", r.IntN(4)))
		}
	}
	const records = 6
	for i := range records {
		var b strings.Builder
		b.WriteString("v=spf1")
		for range 1 + r.IntN(6) {
			b.WriteString(" " + []string{"", "", "", "-", "~", "?", "+"}[r.IntN(7)])
			switch k := r.IntN(20); {
			case k < 11:
				p := network()
				kind := "ip6"
				if p.Addr().Is4() {
					kind = "ip4"
				}
				fmt.Fprintf(&b, "%s:%v", kind, p)
			case k < 15:
				fmt.Fprintf(&b, "include:n%d.example", min(records+1, i+r.IntN(4)))
			case k < 17:
				fmt.Fprintf(&b, "a:h%d.example/%d//%d", r.IntN(4), 24+r.IntN(9), 32+r.IntN(97))
			case k < 18:
				fmt.Fprintf(&b, "mx:m%d.example", r.IntN(4))
			case k < 19 && r.IntN(4) == 0:
				b.WriteString("exists:%{i}.x.example")
			default:
				b.WriteString("ip4:192.0.2.0/24")
			}
		}
		switch r.IntN(8) {
		case 0:
			fmt.Fprintf(&b, " redirect=n%d.example", i+1)
		case 1: // ends without a result; go/spf looks for faults only as far as it gets
		default:
			b.WriteString(" " + []string{"-", "~", "?"}[r.IntN(3)] + "all")
		}
		z.txt[fmt.Sprintf("n%d.example", i)] = []string{b.String()}
	}
	return z, near
}

// Real packets: large answers, TCP, and every way in which a server can fail.
func TestFlattenOverRealDNS(t *testing.T) {
	srv, res := realDNS(t)
	for name, text := range providerRecords(t) {
		addTXT(srv, name, text)
	}
	addTXT(srv, "long.example", longRecord(900))
	addTXT(srv, "mixed.example", "v=spf1 a mx include:long.example -all")
	srv.Add("mixed.example. 60 IN A 192.0.2.1", "mixed.example. 60 IN AAAA 2001:db8::1", "mixed.example. 60 IN MX 10 m.example.",
		"m.example. 60 IN A 192.0.2.2", "mixed.example. 60 IN TXT \"another text\"")
	ctx := t.Context()
	for domain, networks := range map[string]int{"spf.protection.outlook.com": 11, "_spf.google.com": 24, "long.example": 900, "mixed.example": 903} {
		f, err := Flatten(ctx, res, domain, defaultLimits)
		if err != nil || len(f.Problems) > 0 {
			t.Fatalf("%s: %v", domain, err)
		}
		if len(f.Entries) < networks-3 || len(f.Entries) > networks+3 {
			t.Errorf("%s: %d entries, want about %d", domain, len(f.Entries), networks)
		}
	}
	tcp := false
	for _, q := range srv.Log() {
		tcp = tcp || q.Name == "long.example" && q.Net == "tcp"
	}
	if !tcp {
		t.Error("the long record was not asked for over TCP")
	}
	for name, b := range map[string]dnstest.Behavior{
		"SERVFAIL": dnstest.ServFail, "REFUSED": dnstest.Refused, "garbage": {Lies: []dnstest.Lie{dnstest.LieGarbage}},
		"truncated over TCP too": {Raw: func(q []byte) [][]byte {
			r := append([]byte(nil), q...)
			r[2] |= 0x82 // an answer, cut
			return [][]byte{r}
		}},
		"oversized": {Lies: []dnstest.Lie{dnstest.LieOversize}}, "half a message": {Lies: []dnstest.Lie{dnstest.LieBroken}},
		"a referral": {Lies: []dnstest.Lie{dnstest.LieReferral}},
	} {
		res.Flush("")
		srv.Behave("_netblocks2.google.com", b)
		c, cancel := context.WithTimeout(ctx, 10*time.Second)
		if f, err := Flatten(c, res, "_spf.google.com", defaultLimits); err == nil {
			t.Errorf("%s: %d entries, want an error", name, len(f.Entries))
		}
		cancel()
		srv.BehaveWell("_netblocks2.google.com")
	}
	res.Flush("")
	if _, err := Flatten(ctx, res, "_spf.google.com", defaultLimits); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// A reading asks the servers, whatever the cache holds.
func TestReadingPastTheCache(t *testing.T) {
	srv, res := realDNS(t)
	addTXT(srv, "p.example", good)
	s, _ := newSet(t, testConfig(t), Options{Resolver: res, Forget: res.Flush})
	if rep, err := s.Refresh(t.Context(), "p", false); err != nil || rep.Result != resultChanged {
		t.Fatalf("%+v, %v", rep, err)
	}
	srv.Remove("p.example.")
	addTXT(srv, "p.example", "v=spf1 ip4:192.0.2.0/24 ip4:198.51.100.0/28 ip6:2001:db8::/32 -all")
	if rep, err := s.Refresh(t.Context(), "p", true); err != nil || len(rep.Added) != 1 {
		t.Errorf("dry: %+v, %v", rep, err)
	}
	if rep, err := s.Refresh(t.Context(), "p", false); err != nil || rep.Result != resultChanged || srv.Count("p.example", "TXT") != 3 {
		t.Errorf("%+v, %v; %d questions", rep, err, srv.Count("p.example", "TXT"))
	}
	// What cannot be asked now is not read, however fresh the cache is.
	srv.Behave("p.example", dnstest.ServFail)
	if rep, err := s.Refresh(t.Context(), "p", false); err != nil || rep.Result != resultFailed {
		t.Errorf("%+v, %v", rep, err)
	}
	// Nor does a failure that is remembered hold up the next reading.
	srv.BehaveWell("p.example")
	if rep, err := s.Refresh(t.Context(), "p", false); err != nil || rep.Result != resultUnchanged {
		t.Errorf("%+v, %v", rep, err)
	}
}

func FuzzFlatten(f *testing.F) {
	f.Add("v=spf1 include:b.example -ip4:192.0.2.0/24 a:b.example mx -all", "v=spf1 ip4:192.0.2.1/23 redirect=a.example")
	f.Add("v=spf1 +all", "v=spf1 -include:a.example ptr")
	f.Add("v=spf1 ip6:::/1 exists:%{i}.example ?include:b.example ip4:1.2.3.4/0", "v=spf1 ip6:8000::/2 -all")
	f.Fuzz(func(t *testing.T, a, b string) {
		z := newZone(map[string]string{"a.example": a, "b.example": b})
		z.addrs["b.example"] = []netip.Addr{netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("2001:db8::5")}
		z.mx["a.example"] = []string{"b.example"}
		flat, err := Flatten(context.Background(), z, "a.example", defaultLimits)
		if err != nil {
			t.Fatal(err)
		}
		if len(flat.Entries) > 128*defaultLimits.Networks || flat.Queries > maxQuestions {
			t.Fatalf("%d entries, %d queries", len(flat.Entries), flat.Queries)
		}
		snap := newSnapshot(flat.Entries)
		for i, e := range flat.Entries {
			if !e.Prefix.IsValid() || e.Prefix != e.Prefix.Masked() || i > 0 && e.Prefix.Overlaps(flat.Entries[i-1].Prefix) {
				t.Fatalf("entry %v", e)
			}
		}
		for _, p := range snap.prefixes {
			s := spanOf(p)
			for _, addr := range []netip.Addr{s.from, s.to} {
				if snap.find(addr) == nil {
					t.Fatalf("%v of %v is in no entry", addr, p)
				}
				if !addr.Is4In6() && !passes(z, "a.example", addr) {
					t.Fatalf("%v does not pass\n%q\n%q", addr, a, b)
				}
			}
		}
	})
}
