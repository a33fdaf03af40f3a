package dkim

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/policy"
)

func TestRecords(t *testing.T) {
	b := newCheck(t, nil, "rsa0", "ed0", "rsa1")
	rsa, ed, other := b.ring.keys[0], b.ring.keys[1], b.ring.keys[2]
	for _, tt := range []struct {
		name    string
		key     *key
		texts   []string
		want    Standing
		problem string // or a note
	}{
		{"good", rsa, []string{rsa.text()}, Published, ""},
		{"good, Ed25519", ed, []string{ed.text()}, Published, ""},
		{"short", rsa, []string{"p=" + rsa.record}, Published, ""},
		{"with all tags", rsa, []string{"v=DKIM1; k=rsa; h=sha256; s=email; t=s; n=x; p=" + rsa.record + ";"}, Published, "h= is not needed"},
		{"testing", rsa, []string{"v=DKIM1; t=y:s; p=" + rsa.record}, Published, "t=y"},
		{"missing", rsa, nil, Missing, "there is no record"},
		{"of another key", rsa, []string{other.text()}, Other, "another key"},
		{"of another kind", rsa, []string{ed.text()}, Other, "an Ed25519 key, and the one that signs is RSA"},
		{"revoked", rsa, []string{"v=DKIM1; p="}, Revoked, "p= is empty"},
		{"SHA-1 only", rsa, []string{"v=DKIM1; h=sha1; p=" + rsa.record}, Faulty, "h="},
		{"not for mail", rsa, []string{"v=DKIM1; s=tlsrpt; p=" + rsa.record}, Faulty, "s="},
		{"cut off", rsa, []string{"v=DKIM1; k=rsa; p=" + rsa.record[:100]}, Faulty, "p="},
		{"SPF", rsa, []string{"v=spf1 -all"}, Faulty, "v= is not DKIM1"},
		{"quoted twice", rsa, []string{`"v=DKIM1; p=` + rsa.record + `"`}, Faulty, "no key record"},
		{"two", rsa, []string{other.text(), rsa.text()}, Published, "there are 2 records"},
		{"two wrong ones", rsa, []string{other.text(), "v=DKIM1; p="}, Other, "there are 2 records"},
	} {
		s := judgeRecord(tt.texts, tt.key)
		if s.Standing != tt.want || !strings.Contains(s.Problem+strings.Join(s.Notes, ";"), tt.problem) || (s.Problem == "") != (tt.want == Published) {
			t.Errorf("%s: %+v", tt.name, s)
		}
	}
}

// signers returns the selectors that sign.
func (b *bench) signers() string {
	uses, _ := b.ring.uses(policy.Address{Local: "a", Domain: "example.org"}, now)
	var out []string
	for _, u := range uses {
		out = append(out, u.selector)
	}
	return strings.Join(out, " ")
}

// A key whose record is not good leaves the place to the one before it, and is
// taken when it is; what is known stays when the DNS does not answer.
func TestOnlyWhatIsPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newCheck(t, func(c *Config) {
			c.Domains[0].Keys[1].From = Date{time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)}
		}, "rsa0", "rsa1")
		older, newer := b.ring.keys[0], b.ring.keys[1]
		b.dns.fail(true)
		if got := b.signers(); got != "rsa1" {
			t.Errorf("before anybody has asked: %s", got)
		}
		b.Start()
		synctest.Wait()
		if got := b.signers(); got != "rsa1" {
			t.Errorf("without an answer: %s", got)
		}
		step := func(what, want string, lines int) {
			t.Helper()
			time.Sleep(again + time.Second)
			synctest.Wait()
			if got := b.signers(); got != want || b.logs.Len() != lines {
				t.Errorf("%s: %s signs, want %s; log %v", what, got, want, b.logs.All())
			}
		}
		b.dns.fail(false)
		b.dns.set(older.name("example.org"), older.text())
		step("the new one is missing", "rsa0", 1)
		step("said once", "rsa0", 1)
		b.dns.fail(true)
		step("the DNS is down", "rsa0", 1)
		b.dns.fail(false)
		b.dns.set(newer.name("example.org"), newer.text())
		step("it is there", "rsa1", 2)
		b.dns.fail(true)
		step("the DNS is down again", "rsa1", 2)
		b.dns.fail(false)
		b.dns.set(newer.name("example.org"), older.text())
		time.Sleep(b.cfg.CheckInterval.D())
		step("it is another key's", "rsa0", 3)
		b.dns.set(older.name("example.org"))
		time.Sleep(b.cfg.CheckInterval.D())
		step("none is good", "", 4)
		if v, _ := b.show(login(), letter); v.Reason != reasonNoKey {
			t.Errorf("%+v", v)
		}
		var text bytes.Buffer
		b.Status().WriteStatus(&text, time.Now())
		if !strings.Contains(text.String(), "dkim      example.org rsa0 (RSA 2048): DOES NOT SIGN, its record is not good: there is no record\n          example.org rsa1") {
			t.Errorf("%s", &text)
		}
		b.Stop()
		b.Stop()
	})
}

func TestReloadKeepsWhatIsKnown(t *testing.T) {
	b := newCheck(t, nil, "rsa0", "ed0")
	b.dns.set(b.ring.keys[0].name("example.org"), b.ring.keys[0].text())
	b.ask(t.Context(), b.ring.keys)
	next, err := New(b.cfg, Options{Resolver: b.dns, Log: zap.NewNop(), Registry: prometheus.NewRegistry()}, b.Check)
	if err != nil {
		t.Fatal(err)
	}
	if !next.ring.keys[0].state.Load().good() || next.ring.keys[1].state.Load().usable() {
		t.Error("it is forgotten")
	}
	// A new key, of which nothing is known yet, does not take the place of one
	// that is good.
	cfg := b.cfg
	cfg.Domains = []DomainConfig{{Domain: "example.org", Keys: append(cfg.Domains[0].Keys[:1:1], KeyConfig{Selector: "next", File: keyFile(t, "rsa1"), From: Date{time.Unix(1e9, 0)}})}}
	if next, err = New(cfg, Options{Resolver: b.dns, Log: zap.NewNop(), Registry: prometheus.NewRegistry()}, b.Check); err != nil {
		t.Fatal(err)
	}
	if uses, _ := next.ring.uses(policy.Address{Local: "a", Domain: "example.org"}, now); len(uses) != 1 || uses[0].selector != "rsa0" {
		t.Errorf("%v", uses)
	}
	cfg.CheckDNS = false
	if next, err = New(cfg, Options{Resolver: b.dns, Log: zap.NewNop(), Registry: prometheus.NewRegistry()}, b.Check); err != nil {
		t.Fatal(err)
	}
	if uses, _ := next.ring.uses(policy.Address{Local: "a", Domain: "example.org"}, now); len(uses) != 1 || uses[0].selector != "next" {
		t.Errorf("nobody asks: %v", uses)
	}
}

func TestReports(t *testing.T) {
	b := newCheck(t, nil, "rsa0", "ed0")
	b.publish()
	out, err := b.Asked(t.Context(), "Example.ORG")
	if err != nil || len(out) != 1 || len(out[0].Keys) != 2 || len(out[0].Faults)+len(out[0].Next) != 0 || !out[0].Keys[0].Signs {
		t.Fatalf("%+v %v", out, err)
	}
	if _, err := b.Asked(t.Context(), "example.net"); err == nil {
		t.Error("of a domain that is not there")
	}
	at := func(s string) Date {
		var d Date
		if err := d.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, tt := range []struct {
		name    string
		keys    []KeyConfig
		missing string // selector whose record is
		faults  string
		next    string
	}{
		{"ends without another", []KeyConfig{{Selector: "a", To: at("2099-01-01")}}, "", "", "make the key that follows a, which ends at 2099-01-01: postern dkim rotate example.org"},
		{"planned", []KeyConfig{{Selector: "a", To: at("2099-01-15")}, {Selector: "b", From: at("2099-01-01")}}, "", "", "nothing: b takes over at 2099-01-01, and its record is good"},
		{"planned, not published", []KeyConfig{{Selector: "a", To: at("2099-01-15")}, {Selector: "b", From: at("2099-01-01")}}, "b", "", "publish the record of b before 2099-01-01: there is no record"},
		{"over", []KeyConfig{{Selector: "a", To: at("2001-01-01")}, {Selector: "b"}}, "", "", "the record of a can be revoked (p= empty) or taken out: it has not signed since 2001-01-01"},
		{"bad", []KeyConfig{{Selector: "a"}}, "a", "a: there is no record; it does not sign|no key signs", ""},
		{"all over", []KeyConfig{{Selector: "a", To: at("2001-01-01")}}, "a", "no key signs", ""},
	} {
		b := newCheck(t, func(c *Config) {
			for i := range tt.keys {
				tt.keys[i].File = keyFile(t, "ed0")
			}
			c.Domains = []DomainConfig{{Domain: "example.org", Keys: tt.keys}}
		})
		b.publish()
		b.dns.set(tt.missing + "._domainkey.example.org")
		out, err := b.Asked(t.Context(), "")
		if err != nil || strings.Join(out[0].Faults, "|") != tt.faults || strings.Join(out[0].Next, "|") != tt.next {
			t.Errorf("%s: %+v %v", tt.name, out, err)
		}
	}
}
