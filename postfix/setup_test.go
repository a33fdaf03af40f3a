package postfix

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	main, err := ParseMain("m", strings.NewReader("# c\na = b\n   c,\n# inside\n\td\n\nempty =\nx=y=z\n"))
	if want := map[string]string{"a": "b c, d", "empty": "", "x": "y=z"}; err != nil || !reflect.DeepEqual(main, want) {
		t.Errorf("%q, %v", main, err)
	}
	master, err := ParseMaster("m", strings.NewReader("smtp inet n - y - - smtpd -v -o a=b -o { c = d e } -oe=f\npickup unix n - n 60 1 pickup\n  -o g=h\n"))
	want := []Service{
		{"smtp", "inet", true, "smtpd", map[string]string{"a": "b", "c": "d e", "e": "f"}},
		{"pickup", "unix", false, "pickup", map[string]string{"g": "h"}},
	}
	if err != nil || !reflect.DeepEqual(master, want) {
		t.Errorf("%+v, %v", master, err)
	}
	for text, want := range map[string]string{
		" a = b\n":                       "f:1: a line goes on, and there is none before it",
		"a = b\nnothing\n":               `f:2: "nothing" is not "name = value"`,
		"a b = c\n":                      `f:1: "a b = c" is not "name = value"`,
		"x\n" + strings.Repeat("y", 100): `f:1: "x" is not`,
	} {
		if _, err := ParseMain("f", strings.NewReader(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, want := range map[string]string{
		"smtp inet n - y - -\n":                 `f:1: "smtp inet n - y - -" is no service`,
		"smtp inet n - y - - smtpd -o nothing":  "f:1: -o nothing of service smtp is not name=value",
		"\n\nsmtp inet n - y - - smtpd -ofalse": "f:3: -o false of service smtp is not name=value",
	} {
		if _, err := ParseMaster("f", strings.NewReader(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := ParseMain("f", strings.NewReader(strings.Repeat("x", maxLine+10))); err == nil {
		t.Error("a line without end was read")
	}
}

func TestValue(t *testing.T) {
	s := &Setup{
		Main:     map[string]string{"a": "1", "b": "$a ${a} $(a) $a.x", "circle": "x$circle", "q": "${a?yes}${none?no}${none:or}${a:not}", "n": "${a?{in}:{out}}", "d": "$$x", "odd": "${a", "end": "x$"},
		Defaults: map[string]string{"c": "$a"},
	}
	of := &Service{Set: map[string]string{"a": "2"}}
	for name, want := range map[string][2]string{
		"b": {"1 1 1 1.x", "2 2 2 2.x"}, "c": {"1", "2"}, "q": {"yesor", "yesor"}, "n": {"in", "in"}, "d": {"$x", "$x"}, "odd": {"${a", "${a"}, "end": {"x", "x"}, "none": {"", ""},
		"smtp_helo_name": {"localhost", "localhost"},
	} {
		if got := [2]string{s.Value(nil, name), s.Value(of, name)}; got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := s.Value(nil, "circle"); !strings.HasPrefix(got, "xxx") || len(got) > 100 {
		t.Errorf("%q", got)
	}
	if s.IsSet(nil, "c") || !s.IsSet(nil, "a") || !s.IsSet(of, "a") {
		t.Error("what is set")
	}
}

func TestRestrictions(t *testing.T) {
	got := Restrictions("permit_mynetworks, reject_rbl_client zen.example\n\tcheck_policy_service { unix:a/b.sock, timeout=5s, default_action = DUNNO, { policy_context = x y } } sleep 5 check_client_access hash:/x,reject")
	want := []Restriction{
		{Name: "permit_mynetworks", Text: "permit_mynetworks"},
		{Name: "reject_rbl_client", Arg: "zen.example", Text: "reject_rbl_client zen.example"},
		{
			Name: "check_policy_service", Arg: "unix:a/b.sock", Text: "check_policy_service { unix:a/b.sock, timeout=5s, default_action = DUNNO, { policy_context = x y } }",
			Options: map[string]string{"timeout": "5s", "default_action": "", "=": "", "DUNNO": "", "policy_context": "x y"},
		},
		{Name: "sleep", Arg: "5", Text: "sleep 5"}, {Name: "check_client_access", Arg: "hash:/x", Text: "check_client_access hash:/x"}, {Name: "reject", Text: "reject"},
	}
	want[2].Options = got[2].Options // below
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if o := got[2].Options; o["timeout"] != "5s" || o["policy_context"] != "x y" {
		t.Errorf("%q", o)
	}
	if got := Restrictions("check_policy_service"); len(got) != 1 || got[0].Arg != "" {
		t.Errorf("%+v", got)
	}
	if got := Restrictions("a { b"); len(got) != 2 {
		t.Errorf("%+v", got)
	}
}

func TestEndpoints(t *testing.T) {
	const queue = "/var/spool/postfix"
	for _, tt := range []struct {
		e      Endpoint
		chroot bool
		want   string
		ok     bool
	}{
		{Endpoint{Network: "unix", Path: queue + "/postern/a.sock"}, true, "unix:postern/a.sock", true},
		{Endpoint{Network: "unix", Path: queue + "/postern/a.sock"}, false, "unix:postern/a.sock", true},
		{Endpoint{Network: "unix", Path: "/run/a.sock"}, false, "unix:/run/a.sock", true},
		{Endpoint{Network: "unix", Path: "/run/a.sock"}, true, "unix:/run/a.sock", false},
		{Endpoint{Network: "unix", Path: queue + "-other/a.sock"}, true, "unix:" + queue + "-other/a.sock", false},
		{Endpoint{Network: "tcp", Port: "1"}, true, "inet:127.0.0.1:1", true},
		{Endpoint{Network: "tcp", Host: "::", Port: "1"}, true, "inet:[::1]:1", true},
		{Endpoint{Network: "tcp", Host: "192.0.2.1", Port: "1"}, true, "inet:192.0.2.1:1", true},
	} {
		if got, ok := tt.e.Postfix(queue, tt.chroot); got != tt.want || ok != tt.ok {
			t.Errorf("%+v: %s %v", tt.e, got, ok)
		}
	}
	doors := []Endpoint{{Network: "unix", Path: queue + "/postern/a.sock"}, {Network: "tcp", Host: "127.0.0.1", Port: "1"}, {Network: "tcp", Port: "2"}}
	for text, want := range map[string]bool{
		"unix:postern/a.sock": true, "unix:" + queue + "/postern/a.sock": true, "unix:/postern/a.sock": true, "local:postern/a.sock": true, "unix:other.sock": false,
		"inet:127.0.0.1:1": true, "inet:localhost:1": true, "inet:1": true, "inet:192.0.2.1:1": false, "inet:192.0.2.1:2": true, "inet:127.0.0.1:3": false, "inet:1@127.0.0.1": true,
		"unix:": false, "what": false, "hash:/x": false,
	} {
		if _, ok := doorOf(text, queue, doors); ok != want {
			t.Errorf("%s: %v", text, ok)
		}
	}
	for text, want := range map[string]time.Duration{"5": 5 * time.Second, "5s": 5 * time.Second, "2m": 2 * time.Minute, "1h": time.Hour, "1d": 24 * time.Hour, "1w": 7 * 24 * time.Hour} {
		if got, ok := seconds(text); !ok || got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	for _, text := range []string{"", "x", "s", "-1", "1x"} {
		if got, ok := seconds(text); ok {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestRecipient(t *testing.T) {
	for main, want := range map[string]string{
		"mydestination = $myhostname, localhost.localdomain, hash:/x, example.org\nmyhostname = gate\n": "postmaster@example.org",
		"mydestination =\nrelay_domains = .example.net\n":                                               "postmaster@example.net",
		"mydestination =\nmyhostname = mx.example.com\n":                                                "postmaster@mx.example.com",
	} {
		if got := setup(t, main, usualMaster).Recipient(); got != want {
			t.Errorf("%q: %s", main, got)
		}
	}
}

// A plan leaves what the operator has written, and is over once it was followed.
func TestPlan(t *testing.T) {
	const asks = "check_policy_service { inet:127.0.0.1:10040, timeout=25s, default_action=DUNNO }"
	for _, tt := range []struct {
		name string
		main string
		edit func(*Ours)
		want map[string]string
	}{
		{"of a new Postfix", "myhostname = mx.example.com\n", nil, map[string]string{
			"smtpd_recipient_restrictions": "permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination, reject_unlisted_recipient, " + asks,
			"smtpd_data_restrictions":      "permit_mynetworks, permit_sasl_authenticated, " + asks,
		}},
		{"what is there stays", "smtpd_recipient_restrictions = $mine, reject_unauth_destination, check_client_access hash:/x, permit\nmine = permit_mynetworks\nsmtpd_data_restrictions = reject_unauth_pipelining\n", nil, map[string]string{
			"smtpd_recipient_restrictions": "$mine, reject_unauth_destination, check_client_access hash:/x, " + asks + ", permit",
			"smtpd_data_restrictions":      "reject_unauth_pipelining, " + asks,
		}},
		{"strangers are refused first", "smtpd_recipient_restrictions = permit_mynetworks\nsmtpd_data_restrictions = " + asks + "\n", nil, map[string]string{
			"smtpd_recipient_restrictions": "permit_mynetworks, reject_unauth_destination, " + asks,
		}},
		{"a relay chain", "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination, reject_unlisted_recipient\nsmtpd_data_restrictions = " + asks + "\nsmtpd_relay_restrictions = permit_mynetworks, reject\n", func(o *Ours) { o.Relay = []string{"out"} }, map[string]string{
			"smtpd_relay_restrictions":     "permit_mynetworks, permit_auth_destination, check_policy_service { inet:127.0.0.1:10040, timeout=25s, default_action=DUNNO, policy_context=out }, reject",
			"smtpd_recipient_restrictions": "permit_mynetworks, reject_unlisted_recipient, " + asks,
		}},
		{"messages", "smtpd_data_restrictions = " + asks + "\nsmtpd_recipient_restrictions = reject_unauth_destination, " + asks + "\nsmtpd_milters = inet:localhost:8891,\n", func(o *Ours) { o.LooksAtContent, o.Signs = true, true }, map[string]string{
			"smtpd_milters": "inet:localhost:8891, { inet:127.0.0.1:10041, default_action=accept }", "non_smtpd_milters": "$smtpd_milters", "internal_mail_filter_classes": "bounce",
		}},
		{"messages on which relaying depends", "smtpd_data_restrictions = " + asks + "\nsmtpd_recipient_restrictions = reject_unauth_destination, " + asks + "\n", func(o *Ours) { o.LooksAtContent, o.RelaysByContent = true, true }, map[string]string{
			"smtpd_milters": "{ inet:127.0.0.1:10041, default_action=tempfail }",
		}},
	} {
		o := ours()
		o.Relay, o.LooksAtContent, o.Content = nil, false, 0
		if tt.edit != nil {
			tt.edit(o)
		}
		s := setup(t, tt.main, usualMaster)
		changes, err := Plan(s, o)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, c := range changes {
			got[c.Name] = c.New
			s.Main[c.Name] = c.New
			if c.Why == "" {
				t.Errorf("%s: nothing says why %s changes", tt.name, c.Name)
			}
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %q", tt.name, got)
		}
		if again, err := Plan(s, o); err != nil || len(again) != 0 {
			t.Errorf("%s: there is more to do: %+v %v", tt.name, again, err)
		}
		for _, f := range Check(s, o) {
			if f.Severity == Error {
				t.Errorf("%s: %+v", tt.name, f)
			}
		}
	}
	o := ours()
	o.Policy = []Endpoint{{Network: "unix", Path: "/run/x.sock"}}
	if _, err := Plan(setup(t, "", usualMaster), o); err == nil || !strings.Contains(err.Error(), `set policy.listen to "unix:/var/spool/postfix/postern/policy.sock" or a tcp address`) {
		t.Error(err)
	}
	o.Policy = nil
	if _, err := Plan(setup(t, "", usualMaster), o); err == nil || !strings.Contains(err.Error(), "the policy door is closed") {
		t.Error(err)
	}
	if changes, err := Plan(setup(t, "", strings.ReplaceAll(usualMaster, " y ", " n ")), &Ours{Policy: []Endpoint{{Network: "unix", Path: "/run/x.sock"}}}); err != nil || !strings.Contains(changes[0].New, "{ unix:/run/x.sock, ") {
		t.Error(changes, err)
	}
}

func TestTexts(t *testing.T) {
	changes := []Change{{Name: "smtpd_recipient_restrictions", Old: "permit_mynetworks, permit", New: "permit_mynetworks, sleep 5", Why: "it's so"}, {Name: "x", New: "it's", Why: "y"}}
	if got, want := MainCF(changes), "# it's so\nsmtpd_recipient_restrictions =\n    permit_mynetworks,\n    sleep 5\n\n# y\nx = it's\n"; got != want {
		t.Errorf("%q", got)
	}
	if got, want := Commands(changes), "postconf -e 'smtpd_recipient_restrictions = permit_mynetworks, sleep 5'\npostconf -e 'x = it'\\''s'\n"; got != want {
		t.Errorf("%q", got)
	}
	if got, want := Diff(changes), "smtpd_recipient_restrictions  (it's so)\n  - permit\n    permit_mynetworks\n  + sleep 5\nx  (y)\n  + it's\n"; got != want {
		t.Errorf("%q", got)
	}
}

// The manual has every kind of finding, and no other.
func TestManual(t *testing.T) {
	manual, err := os.ReadFile("../docs/postfix.md")
	if err != nil {
		t.Fatal(err)
	}
	var source []byte
	for _, name := range []string{"check.go", "reverse.go"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, b...)
	}
	var slugs []string
	for _, part := range strings.Split(string(source), "c.say(")[1:] {
		_, rest, _ := strings.Cut(part, `"`)
		slug, _, _ := strings.Cut(rest, `"`)
		slugs = append(slugs, slug)
	}
	slugs = append(slugs, "greylist-twice", "other-policy-service")
	slices.Sort(slugs)
	for _, slug := range slices.Compact(slugs) {
		if !strings.Contains(slug, " ") && !strings.Contains(string(manual), "| `"+slug+"`") {
			t.Errorf("docs/postfix.md does not say what %s is", slug)
		}
	}
	_, table, _ := strings.Cut(string(manual), "\n## Findings\n")
	for _, line := range strings.Split(table, "\n") {
		if rest, ok := strings.CutPrefix(line, "| `"); ok {
			slug, _, _ := strings.Cut(rest, "`")
			if !slices.Contains(slugs, slug) {
				t.Errorf("docs/postfix.md has %s, which is no finding", slug)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a = $b ${c?{d}:{e}}\n  f\n", "smtp inet n - y - - smtpd -o { a = b } -o c=d\n")
	f.Add("smtpd_recipient_restrictions = check_policy_service { unix:x, timeout=1s\n", "x y z\n")
	f.Fuzz(func(t *testing.T, main, master string) {
		s := &Setup{}
		var err error
		if s.Main, err = ParseMain("m", strings.NewReader(main)); err != nil {
			return
		}
		s.Services, _ = ParseMaster("m", strings.NewReader(master))
		for name := range s.Main {
			s.Value(nil, name)
		}
		Check(s, ours())
		if changes, err := Plan(s, ours()); err == nil {
			for _, c := range changes {
				s.Main[c.Name] = c.New
			}
		}
	})
}
