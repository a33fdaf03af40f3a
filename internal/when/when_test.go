package when

import (
	"reflect"
	"strings"
	"testing"

	"postern/policy"
)

func TestConditions(t *testing.T) {
	looked := policy.Request{
		Sender: policy.Address{Raw: "a@bounce.example.org", Domain: "bounce.example.org"}, Client: policy.Client{ReverseName: "x.example.org"},
		Facts: policy.Facts{
			SPF: policy.SPF{Result: "softfail"}, Marks: []string{"rbl-score"}, Provider: "Office365",
			Auth: policy.Auth{DKIM: "pass", DMARC: "fail", ARC: "none", Policy: "reject", Override: "arc", Signers: []string{"mail.example.com", "example.net"}, Authors: []string{"example.org"}},
		},
	}
	hidden := policy.Request{SASL: policy.SASL{Username: "ann"}, Client: policy.Client{Name: "x.example.org"}}
	for text, want := range map[string][2]bool{ // looked at, not looked at
		"dmarc=fail":                                {true, false},
		"DMARC = FAIL":                              {true, false},
		"dmarc!=fail":                               {false, false},
		"dmarc!=pass":                               {true, false},
		"not dmarc=pass":                            {true, false},
		"not not dmarc=fail":                        {true, false},
		"dmarc=none|pass | fail":                    {true, false},
		"dmarc=fail and not arc=pass":               {true, false},
		"dmarc=fail and arc=pass":                   {false, false},
		"dmarc=pass or arc=none":                    {true, false},
		"arc=pass or dmarc=fail and spf=pass":       {false, false},
		"(arc=none or dmarc=fail) and spf=softfail": {true, false},
		"dkim=pass or auth=pass":                    {true, true},
		"dkim=pass and auth=none":                   {true, false},
		"not (dkim=pass and auth=none)":             {false, true},
		"dmarc=fail and iprev=fail":                 {true, false},
		"iprev=pass":                                {false, true},
		"iprev=permerror":                           {false, false},
		"dmarc.policy=quarantine|reject":            {true, false},
		"dmarc.override=arc":                        {true, false},
		"header.d=example.net":                      {true, false},
		"header.d=Example.COM":                      {false, false},
		"header.d=.example.com":                     {true, false},
		"header.d=.mail.example.com":                {true, false},
		"header.d=.ail.example.com":                 {false, false},
		"header.d!=.example.com":                    {false, false},
		"header.from=example.org":                   {true, false},
		"smtp.mailfrom=.example.org":                {true, false},
		"smtp.mailfrom!=.example.org":               {false, true},
		"mark=rbl-score":                            {true, false},
		"mark!=rbl-score":                           {false, true},
		"provider=Office365":                        {true, false},
		"spf=policy":                                {false, false},
	} {
		c, err := Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := [2]bool{c.Holds(&looked), c.Holds(&hidden)}; got != want || c.String() != text {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestFaults(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "character 1: a comparison is missing, such as dmarc=fail",
		"dmarc=fail and":             "character 15: a comparison is missing, such as dmarc=fail",
		"dmarc":                      "character 6: dmarc must be followed by = or !=",
		"dmarc fail":                 "character 7: dmarc must be followed by = or !=",
		"dmarc!fail":                 "character 6: dmarc must be followed by = or !=",
		"dmarc=":                     "character 7: dmarc= needs a value",
		"dmarc=fail|":                "character 12: dmarc= needs a value",
		"dmarc==fail":                "character 7: dmarc= needs a value",
		"dmarc=failed":               `character 7: dmarc is never "failed" (one of pass, fail, none, temperror, permerror)`,
		"(dmarc=fail":                "character 12: a parenthesis is not closed",
		"dmarc=fail)":                `character 11: ")" is one word too many`,
		"dmarc=fail dkim=pass":       `character 12: "dkim" is one word too many`,
		"not":                        "character 4: a comparison is missing, such as dmarc=fail",
		"dmark=fail":                 `character 1: unknown name "dmark" (one of spf, dkim, dmarc, arc, dmarc.policy, dmarc.override, header.d, header.from, smtp.mailfrom, iprev, auth, mark, provider)`,
		strings.Repeat("not ", 60):   "character 205: too many parentheses",
		strings.Repeat("(", 100_000): "character 52: too many parentheses",
	} {
		if _, err := Parse(text); err == nil || err.Error() != want {
			t.Errorf("%.40s: %v", text, err)
		}
	}
	for text, want := range map[string]bool{"spf=pass": false, "spf=pass or not header.d=x": true} {
		if c, _ := Parse(text); c.NeedsAuth() != want {
			t.Error(text)
		}
	}
}

func TestParseAuth(t *testing.T) {
	got, err := ParseAuth(" dmarc=fail dmarc.policy=reject  header.d=a.example header.d=B.example dkim=pass header.from=c.example dmarc.override=arc arc=pass")
	want := policy.Auth{DKIM: "pass", DMARC: "fail", ARC: "pass", Policy: "reject", Override: "arc", Signers: []string{"a.example", "b.example"}, Authors: []string{"c.example"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := ParseAuth(" "); err != nil || !reflect.DeepEqual(got, policy.Auth{}) {
		t.Errorf("%+v %v", got, err)
	}
	for _, bad := range []string{"dmarc", "dmarc=x", "dmarc!=fail", "dmarc=fail|none", "spf=pass", "not dmarc=fail"} {
		if _, err := ParseAuth(bad); err == nil {
			t.Errorf("%q", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("dmarc=fail and not (arc=pass or header.d=.lists.example|x)")
	f.Fuzz(func(_ *testing.T, text string) {
		if c, err := Parse(text); err == nil {
			c.Holds(&policy.Request{})
		}
	})
}
