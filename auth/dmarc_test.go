package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// zone answers from maps: texts by name, names that exist.
type zone struct {
	txt    map[string][]string
	exists map[string]bool
	fails  map[string]bool
}

var errDNS = errors.New("the server failed")

func (z *zone) LookupTXT(_ context.Context, name string) ([]string, error) {
	if z.fails[name] {
		return nil, errDNS
	}
	return z.txt[name], nil
}

func (z *zone) Exists(_ context.Context, name string) (bool, error) {
	if z.fails[name] {
		return false, errDNS
	}
	return z.exists[name], nil
}

func TestParseRecord(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"v=DMARC1; p=reject", "reject sp= np= pct=100 psd=u"},
		{"v=DMARC1;p=quarantine;sp=none;np=reject;pct=20;adkim=s;aspf=s;t=y;psd=n", "quarantine sp=none np=reject pct=20 psd=n adkim aspf t"},
		{"v = DMARC1 ; P = Reject ; ADKIM = S", "reject sp= np= pct=100 psd=u adkim"},
		{"v=DMARC1; rua=mailto:a@example.org", "none sp= np= pct=100 psd=u"},
		{"v=DMARC1; p=refuse; rua=mailto:a@example.org", "none sp= np= pct=100 psd=u"},
		{"v=DMARC1", "none sp= np= pct=100 psd=u"},
		{"v=DMARC1; sp=oops; np=; p=reject", "reject sp= np= pct=100 psd=u"},
		{"v=DMARC1; p=reject; p=none", "reject sp= np= pct=100 psd=u"},
		{"v=DMARC1; p=reject; pct=101; t=Y; psd=maybe", "reject sp= np= pct=100 psd=u t"},
		{"v=DMARC1; p=reject; pct=-1; adkim=strict; x", "reject sp= np= pct=100 psd=u"},
		{"v=DMARC1; p=reject; pct=0;;", "reject sp= np= pct=0 psd=u"},
		{"v=DMARC12; p=reject", ""},
		{"v=dmarc1; p=reject", ""},
		{"p=reject; v=DMARC1", ""},
		{"V=DMARC1; p=reject", ""},
		{"v=spf1 -all", ""},
		{"", ""},
	} {
		got := ""
		if r, ok := parseRecord(tt.text); ok {
			got = fmt.Sprintf("%s sp=%s np=%s pct=%d psd=%c", r.p, r.sp, r.np, r.pct, r.psd)
			for i, set := range []bool{r.adkim, r.aspf, r.test} {
				if set {
					got += []string{" adkim", " aspf", " t"}[i]
				}
			}
		}
		if got != tt.want {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestWalk(t *testing.T) {
	for _, tt := range []struct{ domain, want string }{
		{"example", "example"},
		{"example.org", "example.org org"},
		{"a.b.example.org", "a.b.example.org b.example.org example.org org"},
		{"a.b.c.d.e.f.g.h", "a.b.c.d.e.f.g.h b.c.d.e.f.g.h c.d.e.f.g.h d.e.f.g.h e.f.g.h f.g.h g.h h"},
		{"1.2.3.a.b.c.d.e.f.g.h", "1.2.3.a.b.c.d.e.f.g.h b.c.d.e.f.g.h c.d.e.f.g.h d.e.f.g.h e.f.g.h f.g.h g.h h"},
	} {
		if got := strings.Join(walk(tt.domain), " "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.domain, got, tt.want)
		}
	}
}

// The rule over records, alignment and discovery. RFC 7489 appendix B.1 is
// among it.
func TestEvaluate(t *testing.T) {
	type txt = map[string]string
	plain := txt{"example.org": "v=DMARC1; p=reject"}
	strict := txt{"example.org": "v=DMARC1; p=reject; adkim=s; aspf=s"}
	for _, tt := range []struct {
		name    string
		records txt
		tree    bool
		author  string
		spf     string
		dkim    string // signing domains
		unsure  bool
		exists  string
		want    string // result, wish, by
	}{
		// Appendix B.1.1 and B.1.2.
		{name: "SPF in alignment, the same", records: plain, author: "example.org", spf: "example.org", want: "pass spf"},
		{name: "SPF in alignment, parent", records: plain, author: "example.org", spf: "child.example.org", want: "pass spf"},
		{name: "SPF not in alignment", records: plain, author: "child.example.org", spf: "example.net", want: "fail reject"},
		{name: "DKIM in alignment, the same", records: plain, author: "example.org", dkim: "example.org", want: "pass dkim"},
		{name: "DKIM in alignment, parent", records: plain, author: "child.example.org", dkim: "example.org", want: "pass dkim"},
		{name: "DKIM not in alignment", records: plain, author: "child.example.org", dkim: "sample.net", want: "fail reject"},

		{name: "both", records: plain, author: "example.org", spf: "example.org", dkim: "example.org", want: "pass spf dkim"},
		{name: "neither", records: plain, author: "example.org", want: "fail reject"},
		{name: "second signature", records: plain, author: "example.org", dkim: "example.net example.org", want: "pass dkim"},
		{name: "strict, the same", records: strict, author: "example.org", spf: "example.org", dkim: "example.org", want: "pass spf dkim"},
		{name: "strict, below", records: strict, author: "example.org", spf: "a.example.org", dkim: "a.example.org", want: "fail reject"},
		{name: "strict, above", records: strict, author: "a.example.org", spf: "example.org", dkim: "example.org", want: "fail reject"},
		{name: "the end of the name alone", records: plain, author: "example.org", spf: "badexample.org", dkim: "badexample.org", want: "fail reject"},
		{name: "siblings, relaxed", records: plain, author: "a.example.org", spf: "b.example.org", want: "pass spf"},
		{name: "public suffix in common only", records: txt{"a.co.uk": "v=DMARC1; p=reject"}, author: "a.co.uk", spf: "b.co.uk", dkim: "co.uk", want: "fail reject"},
		{name: "a d= that no domain has", records: plain, author: "example.org", dkim: "example.net(.example.org", want: "fail reject"},
		{name: "a d= with a blank", records: plain, author: "example.org", dkim: "x .example.org", want: "fail reject"},

		{name: "no record", author: "example.org", spf: "example.org", want: "none"},
		{name: "two records", records: txt{"example.org": "v=DMARC1; p=reject|v=DMARC1; p=none"}, author: "example.org", want: "none"},
		{name: "a record among others", records: txt{"example.org": "hello|v=DMARC1; p=reject"}, author: "example.org", want: "fail reject"},
		{name: "another record of a sub-domain", records: txt{"example.org": "v=DMARC1; p=reject", "a.example.org": "v=DMARC1; p=none"}, author: "a.example.org", want: "fail none"},
		{name: "a sub-domain without one", records: txt{"example.org": "v=DMARC1; p=quarantine"}, author: "a.b.example.org", want: "fail quarantine"},
		{name: "p=none; sp=reject, the domain", records: txt{"example.org": "v=DMARC1; p=none; sp=reject"}, author: "example.org", want: "fail none"},
		{name: "p=none; sp=reject, below", records: txt{"example.org": "v=DMARC1; p=none; sp=reject"}, author: "a.example.org", want: "fail reject"},
		{name: "np, does not exist", records: txt{"example.org": "v=DMARC1; p=none; sp=none; np=reject"}, author: "a.example.org", want: "fail reject"},
		{name: "np, exists", records: txt{"example.org": "v=DMARC1; p=none; np=reject"}, author: "a.example.org", exists: "a.example.org", want: "fail none"},
		{name: "np does not count for the domain itself", records: txt{"example.org": "v=DMARC1; p=none; np=reject"}, author: "example.org", want: "fail none"},
		{name: "sp of a sub-domain's own record", records: txt{"a.example.org": "v=DMARC1; p=quarantine; sp=reject"}, author: "a.example.org", want: "fail quarantine"},
		{name: "pct=0", records: txt{"example.org": "v=DMARC1; p=reject; pct=0"}, author: "example.org", want: "fail quarantine"},
		{name: "pct=0, quarantine", records: txt{"example.org": "v=DMARC1; p=quarantine; pct=0"}, author: "example.org", want: "fail none"},
		{name: "t=y", records: txt{"example.org": "v=DMARC1; p=reject; t=y"}, author: "example.org", want: "fail quarantine"},
		{name: "IDN", records: txt{"xn--bcher-kva.example": "v=DMARC1; p=reject"}, author: "xn--bcher-kva.example", dkim: "xn--bcher-kva.example", want: "pass dkim"},

		{name: "the record cannot be looked up", records: txt{"example.org": "fails"}, author: "example.org", want: "temperror"},
		{name: "nor that of the organisation", records: txt{"example.org": "fails"}, author: "a.example.org", want: "temperror"},
		{name: "a key cannot be looked up", records: plain, author: "example.org", unsure: true, want: "temperror"},
		{name: "a key cannot be looked up, another passes", records: plain, author: "example.org", dkim: "example.org", unsure: true, want: "pass dkim"},
		{name: "whether it exists cannot be looked up", records: txt{"example.org": "v=DMARC1; p=none; np=reject"}, author: "fails.example.org", want: "temperror"},

		{name: "tree: parent", tree: true, records: plain, author: "a.b.example.org", dkim: "example.org", want: "pass dkim"},
		{name: "tree: no public suffix list", tree: true, records: txt{"a.co.uk": "v=DMARC1; p=reject"}, author: "x.a.co.uk", dkim: "b.co.uk", want: "fail reject"},
		{name: "tree: the domain with fewest labels counts", tree: true, records: txt{"example.org": "v=DMARC1; p=none", "a.example.org": "v=DMARC1; p=reject"}, author: "a.example.org", dkim: "b.example.org", want: "pass dkim"},
		{name: "tree: psd=n parts", tree: true, records: txt{"example.org": "v=DMARC1; p=none", "a.example.org": "v=DMARC1; p=reject; psd=n"}, author: "x.a.example.org", dkim: "b.example.org", want: "fail reject"},
		{name: "tree: psd=y above", tree: true, records: txt{"bank": "v=DMARC1; p=reject; psd=y"}, author: "a.example.bank", dkim: "example.bank", want: "pass dkim"},
		{name: "tree: psd=y above, strangers", tree: true, records: txt{"bank": "v=DMARC1; p=reject; psd=y"}, author: "a.example.bank", dkim: "other.bank", want: "fail reject"},
		{name: "tree: no record", tree: true, author: "a.example.org", dkim: "a.example.org", want: "none"},
		{name: "tree: fails", tree: true, records: txt{"org": "fails"}, author: "a.example.org", want: "temperror"},
	} {
		z := &zone{txt: map[string][]string{}, exists: map[string]bool{tt.exists: true}, fails: map[string]bool{"fails.example.org": true}}
		for domain, text := range tt.records {
			if text == "fails" {
				z.fails["_dmarc."+domain] = true
				continue
			}
			z.txt["_dmarc."+domain] = strings.Split(text, "|")
		}
		d := discovery{res: z, tree: tt.tree}
		p := &passed{spf: []string{tt.spf}, unsure: tt.unsure}
		if tt.dkim != "" {
			p.dkim = []string{tt.dkim}
			if !strings.Contains(tt.name, "blank") {
				p.dkim = strings.Fields(tt.dkim)
			}
		}
		m := d.evaluate(t.Context(), tt.author, p, "")
		got := m.Result
		if m.Wish != "" {
			got += " " + string(m.Wish)
		}
		if len(m.By) > 0 {
			got += " " + strings.Join(m.By, " ")
		}
		if got != tt.want {
			t.Errorf("%s: %q (%+v), want %q", tt.name, got, m, tt.want)
		}
	}
}

func TestSampled(t *testing.T) {
	n := 0
	for i := range 10_000 {
		if sampled(30, fmt.Sprint("message ", i)) {
			n++
		}
	}
	if n < 2700 || n > 3300 {
		t.Errorf("%d of 10000 at pct=30", n)
	}
	if sampled(0, "x") || !sampled(100, "x") {
		t.Error("0 or 100 percent")
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add("v=DMARC1; p=reject; sp=none; pct=5")
	f.Add("v=DMARC1;;=;p")
	f.Fuzz(func(t *testing.T, text string) {
		r, ok := parseRecord(text)
		if ok && (asWish(string(r.p)) == "" || r.pct < 0 || r.pct > 100 || !strings.Contains("ynu", string(r.psd))) {
			t.Fatalf("%q: %+v", text, r)
		}
	})
}
