package mailaddr

import (
	"strings"
	"testing"

	"postern/policy"
)

func TestCorrespondent(t *testing.T) {
	for in, want := range map[string]string{
		"":                "",
		"Ann@Example.ORG": "ann@example.org",
		"postmaster":      "postmaster",
		"@example.org":    "@example.org",
		// internal form: what had been quoted stands without its quotes
		"Ann Bee@example.org":           "ann bee@example.org",
		"ann@home@example.org":          "ann@home@example.org",
		`"ann"@example.org`:             `"ann"@example.org`,
		"ann@[192.0.2.7]":               "ann@[192.0.2.7]",
		"j\u00dcrg@b\u00fccher.example": "j\u00fcrg@xn--bcher-kva.example",
		// extensions
		"ann+x@example.org":   "ann@example.org",
		"ann+x+y@example.org": "ann@example.org",
		"+x@example.org":      "+x@example.org",
		"ann+@example.org":    "ann@example.org",
		"ann-x@example.org":   "ann-x@example.org",
		// BATV
		"prvs=0123abc=u@d.example":               "u@d.example",
		"prvs=0123abcdef=u+ext@d.example":        "u@d.example",
		"PRVS=0123abcdef=prvs=12=u@d.example":    "u@d.example",
		"prvs=u=0123abcdef@d.example":            "u@d.example",
		"prvs=u=v=0123abcdef@d.example":          "u=v@d.example",
		"prvs=u=v@d.example":                     "v@d.example", // neither is a tag
		"prvs==0123abcdef@d.example":             "0123abcdef@d.example",
		"msprvs1=u=0123abcdef@d.example":         "0123abcdef@d.example", // the tag is in front, always
		"prvs=@d.example":                        "prvs=@d.example",
		"prvs=x@d.example":                       "prvs=x@d.example",
		"prvs=x=@d.example":                      "prvs=x=@d.example",
		"btv1==123abc45def==u@d.example":         "u@d.example",
		"btv1==123abc45def=u@d.example":          "btv1==#=u@d.example",
		"msprvs1=17xyzABC=bounces-1-2@d.example": "bounces-#-#@d.example",
		// SRS
		"SRS0=HHHH=TT=dom.example=u@f.example":                     "srs0=#=#=dom.example=u@f.example",
		"SRS0+HHHH=TT=dom.example=u@f.example":                     "srs0=#=#=dom.example=u@f.example",
		"srs0-HH/h=TT=dom.example=u=x@f.example":                   "srs0=#=#=dom.example=u=x@f.example",
		"SRS1=HHHH=g.example==HHH=TT=d.example=u@f.example":        "srs1=#=g.example==#=#=d.example=u@f.example",
		"SRS1=HHHH=g.example=+HHH=TT=d.example=u@f.example":        "srs1=#=g.example==#=#=d.example=u@f.example",
		"SRS0=H=TT=d.example=list-bounce-17-x=y.example@f.example": "srs0=#=#=d.example=list-bounce-#-x=y.example@f.example",
		"prvs=0123abcdef=SRS0=HHH=TT=d.example=u@f.example":        "srs0=#=#=d.example=u@f.example",
		"srs0@f.example":                              "srs0@f.example",
		"srs0=ann@f.example":                          "srs0=ann@f.example",
		"srs0+ann@f.example":                          "srs0@f.example",
		"srs1=HHH=g.example=x@f.example":              "srs1=hhh=g.example=x@f.example",
		"srs1=HHH=g.example==x=y@f.example":           "srs1=hhh=g.example==x=y@f.example",
		"srs2=a=b=c=d@f.example":                      "srs2=a=b=c=d@f.example",
		"srs1=h=g.example=@f.example":                 "srs1=h=g.example=@f.example",
		"srs1=h=g.example=xh=t=d.example=u@f.example": "srs1=h=g.example=xh=t=d.example=u@f.example",
		"srs0=h=t==u@f.example":                       "srs0=h=t==u@f.example",
		"srs0=h=t=d.example=@f.example":               "srs0=h=t=d.example=@f.example",
		// VERP
		"bounce-123-u=d.example@l.example":                                       "bounce-#-u=d.example@l.example",
		"list-bounces+u=d.example@l.example":                                     "list-bounces@l.example",
		"owner-list-0@l.example":                                                 "owner-list-#@l.example",
		"owner-list-9@l.example":                                                 "owner-list-#@l.example",
		"x-8a3b4c5d-1e2f-4a5b-abcd-0123456789ab@l.example":                       "x-#@l.example",
		"x-8a3b4c5d-1e2f-4a5b-abcd-0123456789a@l.example":                        "x-#-1e2f-4a5b-abcd-#@l.example",
		"x-8a3b4c5d_1e2f-4a5b-abcd-0123456789ab@l.example":                       "x-#_1e2f-4a5b-abcd-#@l.example",
		"x-8a3b4c5da1e2f-4a5b-abcd-0123456789ab@l.example":                       "x-#-4a5b-abcd-#@l.example",
		"x-8a3b4c5d-1e2g-4a5b-abcd-0123456789ab@l.example":                       "x-#-1e2g-4a5b-abcd-#@l.example",
		"bounce_aaaaaa9g9hhhhhhh_u@l.example":                                    "bounce_#_u@l.example",
		"bounce_aaaaaa9g9hhhhhh_u@l.example":                                     "bounce_aaaaaa9g9hhhhhh_u@l.example",  // 15 bytes
		"bounce_aaaaaa9ghhhhhhh1_u@l.example":                                    "bounce_aaaaaa9ghhhhhhh1_u@l.example", // letters go on once
		"bounce_x7gh2kq9~z41mmp3_u@l.example":                                    "bounce_x7gh2kq9~z41mmp3_u@l.example",
		"bounce_0a1b2c3_u@l.example":                                             "bounce_0a1b2c3_u@l.example",
		"owner-list-17@l.example":                                                "owner-list-#@l.example",
		"b.0a1b2c3d4e5f.x@l.example":                                             "b.#.x@l.example",
		"0100018f1a2b3c4d-8a3b4c5d-1e2f-4a5b-abcd-0123456789ab-000000@l.example": "#-#-#@l.example",
		"x-8a3b4c5d-1e2f-4a5b-abcd-0123456789abc@l.example":                      "x-#-1e2f-4a5b-abcd-#@l.example",
		"0a1b2c3d4e5f6a7b@l.example":                                             "#@l.example",
		"bounce_x7gh2kq9zz41mmp3_u@l.example":                                    "bounce_#_u@l.example",
		// names
		"12345@qq.example":                          "12345@qq.example",
		"1234567890123456@qq.example":               "1234567890123456@qq.example",
		"12-34@x.example":                           "12-34@x.example",
		"#-34@x.example":                            "#-34@x.example",
		"john.smith@x.example":                      "john.smith@x.example",
		"agent007@x.example":                        "agent007@x.example",
		"cafe2024@x.example":                        "cafe2024@x.example",
		"christopher-christophersson1985@x.example": "christopher-christophersson1985@x.example",
	} {
		if got := Correspondent(Parse(in), "+"); got != want {
			t.Errorf("Correspondent(%q) = %q, want %q", in, got, want)
		}
	}
	for delimiters, want := range map[string]string{"": "ann-a+b@example.org", "+": "ann-a@example.org", "-": "ann@example.org", "+-": "ann@example.org"} {
		if got := Correspondent(Parse("ann-a+b@example.org"), delimiters); got != want {
			t.Errorf("with delimiters %q: %q, want %q", delimiters, got, want)
		}
	}
}

func TestWhatNeedsNoChangeCostsNothing(t *testing.T) {
	a := Parse("ann.2nd@example.org")
	if n := testing.AllocsPerRun(100, func() { Correspondent(a, "+") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What is stored is bounded by what came, is its own form, and does not depend
// on the case of letters. It has an @ before the domain and is empty for the
// null sender only, so that no two senders are taken for one by accident.
func FuzzCorrespondent(f *testing.F) {
	for _, s := range []string{
		"", "a@b", "SRS0=a=b=c=d@e", "SRS1=a=b==c=d=e=f@g", "prvs=1=prvs=2=x@y", "btv1==1==x@y", "a+b+c@d", "1-2-3@x", "\x00@\xff",
		"srs0+a=b=c@d", "srs0=a=b=c=d+e@f", "#-1@x", "#-a1@x", "8a3b4c5d-1e2f-4a5b-abcd-0123456789ab@x", "owner-1@x", "x-request-1@x", "\u0130@\u0130",
	} {
		f.Add(s, "+")
		f.Add(s, "+-")
	}
	f.Fuzz(func(t *testing.T, s, delimiters string) {
		if len(s) > 2048 || strings.Trim(delimiters, "+-_") != "" {
			return
		}
		a := Parse(s)
		got := Correspondent(a, delimiters)
		// Letters may need more bytes in lower case, fields of SRS be empty.
		if len(got) > len(strings.ToLower(a.Local))+1+len(a.Domain)+len("####") {
			t.Fatalf("Correspondent(%q) = %q is longer", s, got)
		}
		if (got == "") != (s == "") && (a.Domain != "" || a.Local != "") {
			t.Fatalf("Correspondent(%q) = %q", s, got)
		}
		if a.Domain != "" && !strings.HasSuffix(got, "@"+a.Domain) {
			t.Fatalf("Correspondent(%q) = %q has another domain", s, got)
		}
		again := policy.Address{Raw: got, Local: strings.TrimSuffix(got, "@"+a.Domain), Domain: a.Domain}
		if a.Domain == "" {
			again.Local = got
		}
		if twice := Correspondent(again, delimiters); twice != got {
			t.Fatalf("Correspondent(%q) = %q, and of that %q", s, got, twice)
		}
		if upper := Correspondent(Parse(strings.ToUpper(s)), delimiters); isASCII(s) && upper != got {
			t.Fatalf("Correspondent(%q) = %q, in capitals %q", s, got, upper)
		}
	})
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
func TestPRVSTag(t *testing.T) {
	for in, want := range map[string]bool{
		"0123abcdef": true, "9999999999": true, "0000000000": true, "0123456fff": true,
		"012abcdef": false, "00123abcdef": false, "a123abcdef": false, "012fabcdef": false, "0123abcdeg": false,
		"012/abcdef": false, "012:abcdef": false, "0123`bcdef": false, "0123:bcdef": false,
	} {
		if prvsTag(in) != want {
			t.Errorf("%s: %v", in, !want)
		}
	}
}
