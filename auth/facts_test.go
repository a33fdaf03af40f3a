package auth

import (
	"reflect"
	"testing"

	"postern/internal/dkimverify"
	"postern/policy"
)

// What rules, reports and the log are told of a message.
func TestFactsOfResults(t *testing.T) {
	sig := func(result, domain, reason string) dkimverify.Signature {
		return dkimverify.Signature{Result: result, Domain: domain, Reason: reason}
	}
	none := dkimverify.Chain{Result: dkimverify.None}
	for _, tt := range []struct {
		name   string
		r      results
		want   policy.Auth
		detail string
	}{
		{"nothing", results{chain: none}, policy.Auth{DKIM: "none", DMARC: "none", ARC: "none"}, "spf=none, dkim=none"},
		{
			"only valid signatures have a signer",
			results{chain: none, dkim: []dkimverify.Signature{sig("fail", "bad.example", "changed"), sig("pass", "Good.example", ""), sig("pass", "good.example", ""), sig("temperror", "slow.example", "")}},
			policy.Auth{DKIM: "pass", DMARC: "none", ARC: "none", Signers: []string{"good.example"}},
			"spf=none, dkim=fail bad.example (changed), dkim=pass Good.example, dkim=pass good.example, dkim=temperror slow.example",
		},
		{
			"the author who fares worst",
			results{chain: none, spf: policy.SPF{Result: "pass"}, authors: []dmarc{
				{Domain: "a.example", Record: "a.example", Result: "pass", Published: "none"}, {Domain: "b.example", Record: "b.example", Result: "fail", Wish: "quarantine", Published: "reject", Reason: "pct=50"},
			}},
			policy.Auth{DKIM: "none", DMARC: "fail", ARC: "none", Policy: "reject", Authors: []string{"a.example", "b.example"}},
			"spf=pass, dkim=none, dmarc=pass a.example p=none, dmarc=fail b.example p=reject (pct=50)",
		},
		{
			"vouched for", results{chain: dkimverify.Chain{Result: "pass"}, authors: []dmarc{{Domain: "a.example", Result: "fail", Published: "reject", Sealer: "lists.example"}}},
			policy.Auth{DKIM: "none", DMARC: "fail", ARC: "pass", Policy: "reject", Override: "arc", Authors: []string{"a.example"}},
			"spf=none, dkim=none, arc=pass, dmarc=fail a.example (passed at lists.example)",
		},
		{"no author", results{chain: none, badFrom: "there is no From field"}, policy.Auth{DKIM: "none", DMARC: "permerror", ARC: "none"}, "spf=none, dkim=none, there is no From field"},
	} {
		if got := tt.r.facts(); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if got := tt.r.detail(); got != tt.detail {
			t.Errorf("%s: %s", tt.name, got)
		}
	}
}

func TestStatusWhileOff(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Skip = []string{"192.0.2.0/24"} })
	if st := w.check.Status(); reflect.DeepEqual(st, Status{}) {
		t.Error("nothing is said of the lists")
	}
	w = newWorld(t, func(c *Config) { c.Mode = policy.Off })
	if st := w.check.Status(); !reflect.DeepEqual(st, Status{}) {
		t.Errorf("%+v", st)
	}
}

// Without an author with a wish the sender's domain stands in the reply.
func TestPlaceholders(t *testing.T) {
	req := envelope("ann@Sender.example")
	req.Sender.Domain = "sender.example"
	m := &inspection{req: req}
	a := &dmarc{Domain: "author.example", Wish: wishReject}
	for name, want := range map[string][2]string{
		"domain": {"sender.example", "author.example"}, "sender": {req.Sender.Raw, req.Sender.Raw}, "policy": {"", "reject"}, "client": {"192.0.2.7", "192.0.2.7"}, "what": {"", ""},
	} {
		if got := [2]string{m.placeholders(nil)(name), m.placeholders(a)(name)}; got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
