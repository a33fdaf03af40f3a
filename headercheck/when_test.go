package headercheck

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
)

// judge shows a message whose authentication has found something by its end.
func judge(t *testing.T, c *Check, found policy.Facts, text string) (policy.Judgement, *policy.Request) {
	t.Helper()
	req := &policy.Request{QueueID: "4F1", Time: time.Now(), Stage: policy.StageData, Sender: mailaddr.Parse("ann@example.org"), Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7")}}
	m := c.Inspect(req, []policy.Address{mailaddr.Parse("bob@example.com"), mailaddr.Parse("carl@example.net")})
	fields, body := cutFields(toCRLF([]byte(text)))
	for _, f := range fields {
		m.Header(f)
	}
	m.EndOfHeaders()
	m.Body(body)
	req.Facts = found
	j, err := m.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return j, req
}

// Rules ask what was found out, for whom they are, and do what only they can.
func TestConditions(t *testing.T) {
	failed := policy.Facts{Auth: policy.Auth{DKIM: "none", DMARC: "fail", ARC: "none"}}
	const plain = "From: ann@example.org\nSubject: hello\n\tworld\n\nx\n"
	file := filepath.Join(t.TempDir(), "some.list")
	if err := os.WriteFile(file, []byte("from:example.org\nfrom:eve@example.org dunno\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		rule    RuleConfig
		found   policy.Facts
		message string
		want    string // the verdict's action and reason, edits, marks
	}{
		{"refused", RuleConfig{When: "dmarc=fail", Action: "REJECT no"}, failed, plain, "reject header-rule-rejected"},
		{"not looked at", RuleConfig{When: "dmarc=fail or not dkim=pass", Action: "REJECT no"}, policy.Facts{}, plain, "continue"},
		{"another result", RuleConfig{When: "dmarc=pass", Action: "REJECT no"}, failed, plain, "continue"},
		{"with a pattern", RuleConfig{When: "dmarc=fail", All: []string{"/^Subject: hello/"}, Action: "HOLD"}, failed, plain, "hold header-rule-held"},
		{"with another pattern", RuleConfig{When: "dmarc=fail", All: []string{"/^Subject: hi/"}, Action: "HOLD"}, failed, plain, "continue"},
		{"with a pattern that may not be", RuleConfig{When: "dmarc=fail", None: []string{"/^Subject: hello/"}, Action: "HOLD"}, failed, plain, "continue"},
		{"in shadow", RuleConfig{When: "dmarc=fail", Action: "REJECT no", Mode: policy.Shadow}, failed, plain, "continue"},
		{"a field", RuleConfig{When: "dmarc=fail", Action: "PREPEND X-Fail: yes"}, failed, plain, "continue insert-field 0 X-Fail: yes"},
		{"a mark", RuleConfig{When: "dmarc=fail", Action: "MARK odd-author"}, failed, plain, "continue odd-author"},
		{"a subject", RuleConfig{When: "dmarc=fail", Action: "SUBJECT [odd]"}, failed, plain, "continue replace-field 1 Subject: [odd] hello\n\tworld"},
		{"a subject without white space", RuleConfig{When: "dmarc=fail", Action: "subject [odd]"}, failed, "Subject:hello\n\nx\n", "continue replace-field 0 Subject: [odd] hello"},
		{"a subject that is tagged", RuleConfig{When: "dmarc=fail", Action: "SUBJECT [odd]"}, failed, "Subject: [odd] hello\n\nx\n", "continue"},
		{"no subject", RuleConfig{When: "dmarc=fail", Action: "SUBJECT [odd]"}, failed, "From: x\n\nx\n", "continue insert-field 1 Subject: [odd]"},
		{"the first subject", RuleConfig{All: []string{"/^Subject: b/"}, Action: "SUBJECT [odd]"}, failed, "Subject: a\nSubject: b\n\nx\n", "continue replace-field 0 Subject: [odd] a"},

		{"for the sender", RuleConfig{Match: []string{"from:.example.org"}, Action: "HOLD"}, failed, plain, "hold header-rule-held"},
		{"for another sender", RuleConfig{Match: []string{"from:.example.net"}, When: "dmarc=fail", Action: "HOLD"}, failed, plain, "continue"},
		{"for a recipient", RuleConfig{Match: []string{"to:carl@example.net"}, When: "dmarc=fail", Action: "HOLD"}, failed, plain, "hold header-rule-held"},
		{"for the client", RuleConfig{Match: []string{"192.0.2.0/24"}, Action: "HOLD"}, failed, plain, "hold header-rule-held"},
		{"but not this one", RuleConfig{Match: []string{"192.0.2.0/24", "192.0.2.7 dunno"}, Action: "HOLD"}, failed, plain, "continue"},
		{"for a file", RuleConfig{MatchLists: []string{file}, Action: "HOLD"}, failed, plain, "hold header-rule-held"},
	} {
		c := DefaultConfig()
		tt.rule.Name = "rule"
		c.Rules = []RuleConfig{tt.rule}
		check, err := New(c, zap.NewNop(), nil, nil)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		j, req := judge(t, check, tt.found, tt.message)
		got := strings.TrimSpace(j.Verdict.Action.String() + " " + j.Verdict.Reason)
		for _, e := range j.Edits {
			got += " " + e.Kind.String() + " " + string(rune('0'+e.At)) + " " + e.Name + ":" + e.Value
		}
		for _, m := range req.Facts.Marks {
			got += " " + m
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A subject that a table has replaced or taken out.
func TestSubjectOfATable(t *testing.T) {
	for table, want := range map[string]string{
		"header\n/^Subject:/ REPLACE Subject: other\n": "Subject: [odd] other",
		"header\n/^Subject:/ IGNORE\n":                 "",
	} {
		c := tables(t, t.TempDir(), table)
		c.Rules = []RuleConfig{{Name: "a", All: []string{"/^From:/"}, Action: "SUBJECT [odd]"}, {Name: "b", All: []string{"/^From:/"}, Action: "SUBJECT [odd]"}}
		s := newSite(t, c)
		j := s.message("From: x\nSubject: hello\n\nx\n")
		got := ""
		if e := j.Edits[0]; e.Kind == policy.ReplaceField {
			got = e.Name + ":" + e.Value
		}
		if len(j.Edits) != 1 || got != want {
			t.Errorf("%q: %+v", table, j.Edits)
		}
	}
}

// A list that a rule is for is read again, and lives over a reload.
func TestMatchIsWatched(t *testing.T) {
	file := filepath.Join(t.TempDir(), "some.list")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write("from:example.com\n")
	c := DefaultConfig()
	c.ReloadInterval = conf.Duration(20 * time.Millisecond)
	c.Rules = []RuleConfig{{Name: "rule", MatchLists: []string{file}, Action: "HOLD"}}
	check, err := New(c, zap.NewNop(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	check.Start()
	defer check.Stop()
	const plain = "From: ann@example.org\n\nx\n"
	if j, _ := judge(t, check, policy.Facts{}, plain); j.Verdict.Action != policy.Continue {
		t.Fatal(j)
	}
	write("from:example.org some more\n")
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if j, _ := judge(t, check, policy.Facts{}, plain); j.Verdict.Action == policy.Hold {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the list was not read again")
		}
	}
}

func TestRuleFaults(t *testing.T) {
	for want, rule := range map[string]RuleConfig{
		`headers.rules[0].when: character 7: dmarc is never "maybe" (one of pass, fail, none, temperror, permerror)`:    {When: "dmarc=maybe", Action: "HOLD"},
		`headers.rules[0].all: a rule needs at least one pattern, or when, or match`:                                    {Action: "HOLD"},
		`headers.rules[0].action: SUBJECT needs printable ASCII to put in front of the subject, at most 100 characters`: {When: "dmarc=fail", Action: "SUBJECT"},
		`headers.rules[0].action: MARK needs one word of a-z, 0-9 and -, at most 40 characters`:                         {When: "dmarc=fail", Action: "MARK Two words"},
	} {
		c := DefaultConfig()
		rule.Name = "rule"
		c.Rules = []RuleConfig{rule}
		var fs conf.Faults
		c.Validate("headers", &fs)
		if len(fs) != 1 || fs[0].Error() != want {
			t.Errorf("%v, want %s", fs, want)
		}
	}
	c := DefaultConfig()
	c.Rules = []RuleConfig{{Name: "rule", Match: []string{"192.0.2.0/24", "192.0.2.1/24"}, MatchLists: []string{"/nowhere"}, Action: "HOLD"}}
	var fs conf.Faults
	c.Validate("headers", &fs)
	keys := []string{}
	for _, f := range fs {
		keys = append(keys, f.Key)
	}
	if !slices.Equal(keys, []string{"headers.rules[0].match[1]", "headers.rules[0].match_lists[0]"}) {
		t.Errorf("%v", fs)
	}
	// A table of Postfix's knows none of these words.
	c = tables(t, t.TempDir(), "header\n/^X/ SUBJECT x\n/^Y/ MARK y\n")
	fs = nil
	if c.Validate("headers", &fs); len(fs) != 2 {
		t.Errorf("%v", fs)
	}
	if got := c.WithoutAuth("headers"); got != "" {
		t.Error(got)
	}
	c.Rules = []RuleConfig{{Name: "rule", When: "spf=fail"}, {Name: "other", When: "not dmarc=pass"}}
	if got := c.WithoutAuth("headers"); got != `headers.rules: auth.mode is "off": the condition of other never holds` {
		t.Error(got)
	}
}
