package headercheck

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/policy"
)

// Each fault says where it is; lenient reading makes a warning of it where
// Postfix does.
func TestFaultsOfTables(t *testing.T) {
	const both, strict = "both", "strict"
	for _, tt := range []struct{ table, where, text, when string }{
		{"header\n/^a/ REJEKT x\n", ":1:6", `unknown action "REJEKT"`, strict},
		{"header\n\n# c\n/^a/   554 no\n", ":3:8", `unknown action "554"`, strict},
		{"header\n/^a/ PREPEND\n", ":1:6", "PREPEND needs text", strict},
		{"header\n/^a/ PREPEND no header\n", ":1:6", `PREPEND needs text of the form "Name: value"`, strict},
		{"header\n/^(a)/ PREPEND no header: $1\n", ":1:8", `PREPEND needs text of the form`, strict},
		{"header\n/^(a)/ REPLACE $1: x\n", "", "", ""},
		{"header\n/^(a)/ REPLACE X-A: $1\n", "", "", ""},
		{"body\n/^a/ REPLACE no header\n", "", "", ""},
		{"header\n/^a/ REDIRECT\n", ":1:6", "REDIRECT needs an address", strict},
		{"header\n/^a/ BCC nobody\n", ":1:6", "BCC needs an address", strict},
		{"header\n/^a/ BCC a@b, c@d\n", ":1:6", "BCC needs one address", strict},
		{"header\n/^a/ FILTER x\n", ":1:6", "FILTER needs transport:destination", strict},
		{"header\n/^a/ FILTER x:y\n", ":1:6", "FILTER needs headers.filter_marker", both},
		{"header\n/^(a)/ FILTER x:$1\n", ":1:8", "FILTER with a target from the message", both},
		{"header\n/^a/ REJECT 2.0.0 x\n", ":1:6", "must begin with 4 or 5", strict},
		{"header\n/^(a)/ $1 x\n", ":1:8", "comes from the message", strict},
		{"header\n/^a/ SHADOW\n", ":1:6", "no action", strict},
		{"header\n/^a/\n", ":1:5", "no result", strict},
		{"header\n/^a/q REJECT\n", ":1:5", "unknown flag", strict},
		{"header\n/^a[/ REJECT\n", ":1", "not closed", strict},
		{"header\nif /a/\n/b/ WARN\n", ":1:1", "if without endif", strict},
		{"header\n/(?R)/ REJECT\n", ":1", "not supported", both},
		{"header\n/^a/\n  REJEKT\n", ":1", "unknown action", strict},
	} {
		c := tables(t, t.TempDir(), tt.table)
		path := strings.TrimPrefix(c.Checks[0].Table, "pcre:")
		for _, lenient := range []bool{false, true} {
			c.Lenient = lenient
			var fs conf.Faults
			c.Validate("headers", &fs)
			warnings := c.Warnings("headers")
			fs = slices.DeleteFunc(fs, func(f *conf.Fault) bool { return strings.HasSuffix(f.Text, "with lenient = true so does postern") })
			want, other := fs, warnings
			if tt.when == strict && lenient {
				want, other = warnings, fs
			}
			if tt.when == "" {
				if len(fs) > 0 || len(warnings) > 0 {
					t.Errorf("%q: faults %v, warnings %v", tt.table, fs, warnings)
				}
				continue
			}
			if len(want) != 1 || len(other) != 0 || !strings.HasPrefix(want[0].Error(), path+tt.where) || !strings.Contains(want[0].Text, tt.text) {
				t.Errorf("%q, lenient %v: faults %v, warnings %v, want one at %s: %s", tt.table, lenient, fs, warnings, tt.where, tt.text)
			}
		}
	}
}

func TestFaultsOfKeys(t *testing.T) {
	dir := t.TempDir()
	good := tables(t, dir, "header\n/a/ WARN\n")
	rule := RuleConfig{Name: "r", All: []string{"/a/"}, Action: "REJECT"}
	for _, tt := range []struct {
		want   string
		change func(*Config)
	}{
		{"", func(*Config) {}},
		{"headers.checks[0].table: no table is given", func(c *Config) { c.Checks[0].Table = "" }},
		{`headers.checks[0].table: "/etc/x" has no type`, func(c *Config) { c.Checks[0].Table = "/etc/x" }},
		{`headers.checks[0].table: tables of type "hash"`, func(c *Config) { c.Checks[0].Table = "hash:/x" }},
		{`headers.checks[0].table: tables of type "cidr"`, func(c *Config) { c.Checks[0].Table = "cidr:/x" }},
		{"headers.checks[0].table: a table inside the value", func(c *Config) { c.Checks[0].Table = "pcre:{{/a/ b}}" }},
		{"headers.checks[0].table: the name of the file is missing", func(c *Config) { c.Checks[0].Table = "pcre:" }},
		{"/nothing/here: no such file", func(c *Config) { c.Checks[0].Table = "pcre:/nothing/here" }},
		{"headers.checks[0].decoded: body lines", func(c *Config) { c.Checks[0].Kind, c.Checks[0].Decoded = Body, true }},
		{`headers.checks[0].domains[1]: "a@b" is not a domain`, func(c *Config) { c.Checks[0].Domains = []string{"a", "a@b"} }},
		{`headers.checks[0].domains_match: unknown value "some"`, func(c *Config) { c.Checks[0].Domains, c.Checks[0].DomainsMatch = []string{"a"}, "some" }},
		{"headers.checks[0].domains_match: there are no domains", func(c *Config) { c.Checks[0].DomainsMatch = "all" }},
		{"headers.body_limit: -1 is out of range", func(c *Config) { c.BodyLimit = -1 }},
		{"headers.line_limit: 1 is out of range", func(c *Config) { c.LineLimit = 1 }},
		{"headers.header_limit: 1 is out of range", func(c *Config) { c.HeaderLimit = 1 }},
		{"headers.mime_nesting: 0 is out of range", func(c *Config) { c.MIMENesting = 0 }},
		{"headers.boundary_limit: 1 is out of range", func(c *Config) { c.BoundaryLimit = 1 }},
		{"headers.max_body_edit: -1 is out of range", func(c *Config) { c.MaxBodyEdit = -1 }},
		{"headers.max_body_edit_total: -1 is out of range", func(c *Config) { c.MaxBodyEditTotal = -1 }},
		{"headers.pattern_time: 0s is out of range: 1ms to 1m", func(c *Config) { c.PatternTime = 0 }},
		{"headers.max_time: 1h is out of range: 100ms to 5m", func(c *Config) { c.MaxTime = conf.Duration(time.Hour) }},
		{"headers.reload_interval: 0s is out of range", func(c *Config) { c.ReloadInterval = 0 }},
		{`headers.filter_marker: "X:" is not the name`, func(c *Config) { c.FilterMarker = "X:" }},
		{"headers.rules[0].name: a rule needs a name", func(c *Config) { c.Rules[0].Name = "" }},
		{`headers.rules[1].name: two rules are called "r"`, func(c *Config) { c.Rules = append(c.Rules, rule) }},
		{"headers.rules[0].name: \"a\\n\": at most", func(c *Config) { c.Rules[0].Name = "a\n" }},
		{"headers.rules[0].action: a rule needs an action", func(c *Config) { c.Rules[0].Action = "" }},
		{"headers.rules[0].action: IGNORE is about one header", func(c *Config) { c.Rules[0].Action = "IGNORE" }},
		{"headers.rules[0].action: DUNNO does nothing", func(c *Config) { c.Rules[0].Action = "dunno" }},
		{"headers.rules[0].action: unknown action", func(c *Config) { c.Rules[0].Action = "REFUSE" }},
		{"headers.rules[0].action: FILTER needs headers.filter_marker", func(c *Config) { c.Rules[0].Action = "FILTER a:" }},
		{"headers.rules[0].all: a rule needs at least one", func(c *Config) { c.Rules[0].All = nil }},
		{`headers.rules[0].all[0]: "!/a/" is not a pattern`, func(c *Config) { c.Rules[0].All = []string{"!/a/"} }},
		{"headers.rules[0].all[0]: text after the pattern", func(c *Config) { c.Rules[0].All = []string{"/a/ b"} }},
		{"headers.rules[0].all[0]: a pattern is one line", func(c *Config) { c.Rules[0].All = []string{"/a/\n/b/"} }},
		{"headers.rules[0].none[0]: character 3: ", func(c *Config) { c.Rules[0].None = []string{"/a[/"} }},
		{`headers.rules[0].none[0]: "" is not a pattern`, func(c *Config) { c.Rules[0].None = []string{""} }},
		{`headers.rules[0].domains[0]: "" is not a domain`, func(c *Config) { c.Rules[0].Domains = []string{""} }},
	} {
		c := good
		c.Checks = append([]TableConfig(nil), good.Checks...)
		c.Rules = []RuleConfig{rule}
		tt.change(&c)
		var fs conf.Faults
		c.Validate("headers", &fs)
		if tt.want == "" && len(fs) == 0 {
			continue
		}
		if len(fs) != 1 || !strings.HasPrefix(fs[0].Error(), tt.want) {
			t.Errorf("%v, want %s", fs, tt.want)
		}
	}
	// All at once, and not thousands.
	c := tables(t, dir, "header\n"+strings.Repeat("/a/ NO\n", 500))
	c.BodyLimit = -1
	var fs conf.Faults
	if c.Validate("headers", &fs); len(fs) != 1+maxFaults+1 || !strings.HasSuffix(fs[len(fs)-1].Error(), "and 480 more") {
		t.Errorf("%d faults, the last %v", len(fs), fs[len(fs)-1])
	}
}

// edit writes a file whose time of change is long past, as that of a file
// that is left alone.
func edit(t *testing.T, path, text string, version int) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1e9, 0).Add(time.Duration(version) * time.Hour)
	if err := os.Chtimes(path+".new", at, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestTablesAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		dir := t.TempDir()
		c := tables(t, dir, "header\n", "body\n/x/ HOLD\n")
		c.FilterMarker = "X-Way"
		path := filepath.Join(dir, "t0")
		edit(t, path, "/^A: (.*)/ PREPEND X: $1\n/^B/ WARN\n", 1)
		reg := prometheus.NewRegistry()
		check, err := New(c, zap.New(core), reg, nil)
		if err != nil {
			t.Fatal(err)
		}
		s := &site{check, t, logs}
		check.Start()
		check.Start()
		defer check.Stop()
		look := func() { time.Sleep(3 * time.Second); synctest.Wait() }
		say := func(message, want string) {
			t.Helper()
			if got := told(s.message(message)); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		say("A: b\n\n", "insert-field 0 X:\" b\"\n")

		edit(t, path, "/^B/ WARN\n/^A: (.*)/ PREPEND X: $1\n/^C/ IGNORE\n", 2)
		look()
		say("A: b\nC: d\n\n", "insert-field 0 X:\" b\"\ndelete-field 1\n")
		hits := check.Hits()
		if len(hits) != 4 || hits[1].Hits != 2 || hits[0].Hits != 0 || hits[2].Hits != 1 || hits[1].Rule != path+":2" || hits[1].Last.IsZero() {
			t.Errorf("hits %+v: those of before should be there", hits)
		}

		// A message that has begun keeps the rules it began with.
		m := check.Inspect(&policy.Request{}, nil)
		edit(t, path, "/^A/ NONSENSE\n/^B/ HOLD\n", 3)
		look()
		say("B: b\n\n", "")
		st := check.Status()
		if len(st) != 2 || !strings.Contains(st[0].Fault, path+":1:6: unknown action") || st[0].FaultAt.IsZero() || st[0].Rules != 3 || st[0].Hits != 4 || st[0].Never != 0 || st[1].Never != 1 {
			t.Errorf("status %+v", st)
		}
		look()
		if n := logs.FilterMessageSnippet("was not taken").Len(); n != 1 {
			t.Errorf("the broken edit was logged %d times", n)
		}
		if n := testutil.ToFloat64(check.metrics.faulty); n != 1 {
			t.Errorf("%v tables are faulty", n)
		}
		if fs := check.Reload(); len(fs) != 1 {
			t.Errorf("faults %v", fs)
		}

		edit(t, path, "/^B/ HOLD\n/^F/ FILTER a:\n", 4)
		look()
		say("B: b\n\n", "hold header-held\n")
		if st := check.Status(); st[0].Fault != "" || st[0].Rules != 2 || st[0].Hits != 1 {
			t.Errorf("status %+v", st[0])
		}
		if n := logs.FilterMessageSnippet("milter_header_checks must hold").Len(); n != 1 || len(check.FilterLines()) != 1 {
			t.Errorf("new targets were told %d times, lines %v", n, check.FilterLines())
		}
		m.Header(policy.Field{Name: "C", Value: " d"})
		m.EndOfHeaders()
		if j, err := m.End(t.Context()); err != nil || told(j) != "delete-field 0\n" {
			t.Errorf("%v, %v", j, err)
		}

		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		look()
		say("B: b\n\n", "hold header-held\n")
		if n := testutil.ToFloat64(check.metrics.rules); n != 3 {
			t.Errorf("%v rules", n)
		}
		if fs := check.Reload(); len(fs) != 1 {
			t.Errorf("faults %v", fs)
		}
		edit(t, path, "/^B/ HOLD\n", 5)
		if fs := check.Reload(); len(fs) != 0 {
			t.Errorf("faults %v", fs)
		}

		next, err := New(c, zap.NewNop(), reg, check)
		if err != nil {
			t.Fatal(err)
		}
		if h := next.Hits(); len(h) != 2 || h[0].Hits != 2 {
			t.Errorf("hits %+v: those of the check before should be there", h)
		}
		if never := next.NeverHit(time.Now()); len(never) != 1 || never[0].Pattern != "/x/" {
			t.Errorf("never hit: %+v", never)
		}
		if never := next.NeverHit(time.Now().Add(-time.Hour)); len(never) != 0 {
			t.Errorf("never hit for an hour: %+v", never)
		}
		check.Stop()
		check.Stop()
	})
}

func TestReport(t *testing.T) {
	c := tables(t, t.TempDir(), "header\n/^From:/ SHADOW REJECT\n/^From: (.*)/ PREPEND X-From: $1\n", "nested\n/^Subject: inner/ REPLACE Subject: outer\n", "body\n/^text/ WARN seen\n", "mime decoded shadow\n/x\\.exe/ REJECT\n")
	c.Rules = []RuleConfig{{Name: "both", All: []string{"/^From:/", "/^MIME/"}, Action: "HOLD"}}
	s := newSite(t, c)
	rep, err := s.Test(nil, nil, []byte("From nobody Thu Jan  1 00:00:00 1970\n"+mixed))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range rep.Lines {
		line := l.Kind.String() + " " + l.Text
		for _, m := range l.Matches {
			line += " <" + filepath.Base(m.Rule) + " " + m.Action + " " + m.Arg
			if m.Shadow {
				line += " shadow"
			}
			line += ">"
		}
		got = append(got, line)
	}
	want := []string{
		"header From: a@example.org <t0:1 reject  shadow> <t0:2 prepend X-From: a@example.org>",
		"mime MIME-Version: 1.0",
		"mime Content-Type: multipart/mixed; boundary=\"b1\"",
		"rule both <both hold >",
		"mime Content-Type: text/plain; name=\"x.exe\" <t3:1 reject  shadow>",
		"mime X-In: part",
		"body text <t2:1 warn seen>",
		"mime Content-Type: message/rfc822",
		"nested Subject: inner <t1:1 replace Subject: outer>",
		"mime Content-Type: multipart/digest;\n\tboundary=b2",
		"nested Subject: deepest",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	message := strings.Replace(strings.Replace(mixed, "From:", "X-From: a@example.org\nFrom:", 1), "Subject: inner", "Subject: outer", 1)
	if diff := cmp.Diff(strings.ReplaceAll(message, "\n", "\r\n"), string(rep.Message)); diff != "" {
		t.Error(diff)
	}
	if rep.Judgement.Verdict.Action != policy.Hold {
		t.Errorf("verdict %+v", rep.Judgement.Verdict)
	}
	for _, h := range s.Hits() {
		if h.Hits > 0 {
			t.Errorf("a test was counted: %+v", h)
		}
	}
	if s.logs.Len() > 0 {
		t.Errorf("a test was logged: %v", s.logs.All())
	}
	ms := s.Query(Header, "From: x")
	if len(ms) != 2 || !ms[0].Shadow || ms[1].Shadow || ms[1].Arg != "X-From: x" {
		t.Errorf("%+v", ms)
	}
	if ms := s.Query(Header, ""); len(ms) != 0 {
		t.Errorf("%+v", ms)
	}
	c = tables(t, t.TempDir(), "header\n/^From:/ REJECT\n")
	if rep, err := newSite(t, c).Test(nil, nil, []byte(mixed)); err != nil || rep.Message != nil {
		t.Errorf("%q, %v", rep.Message, err)
	}
}

func TestModes(t *testing.T) {
	c := tables(t, t.TempDir(), "header\n/^From:/ REJECT\n", "body\n/line/ IGNORE\n")
	c.Mode = policy.Shadow
	s := newSite(t, c)
	if got := told(s.message(plain)); got != "" {
		t.Errorf("%q", got)
	}
	if n := s.logs.FilterMessageSnippet("in shadow mode matches").Len(); n != 3 || s.Hits()[0].Hits != 1 || !s.Hits()[0].Shadow {
		t.Errorf("%d log lines, hits %+v", n, s.Hits())
	}
	if n := testutil.ToFloat64(s.metrics.matches[Body][actIgnore][1]); n != 2 {
		t.Errorf("%v counted", n)
	}
	c.Mode = policy.Off
	if newSite(t, c).Inspect(&policy.Request{}, nil) != nil {
		t.Error("inspects though switched off")
	}
	c.Mode = policy.Enforce
	c.Checks[0].Mode, c.Checks[1].Mode = policy.Off, policy.Off
	if newSite(t, c).Inspect(&policy.Request{}, nil) != nil {
		t.Error("inspects without a table")
	}
}

// A table without a result, taken leniently, defers as Postfix does.
func TestEmptyResult(t *testing.T) {
	c := tables(t, t.TempDir(), "header\n/^From:/\n")
	c.Lenient = true
	if got := told(newSite(t, c).message(plain)); got != "defer header-table-error 451 4.3.0 message content could not be checked\n" {
		t.Errorf("%q", got)
	}
}

// What a report is written as can be read again, and a configuration has no
// table of rules.
func TestKindsInReports(t *testing.T) {
	for k := range kindCount {
		text, err := json.Marshal(RuleHits{Kind: k})
		if err != nil {
			t.Fatal(err)
		}
		var h RuleHits
		if err := json.Unmarshal(text, &h); err != nil || h.Kind != k {
			t.Errorf("%s is read as %v: %v", text, h.Kind, err)
		}
	}
	var k Kind
	for _, text := range []string{`"none"`, `7`, `""`} {
		if err := json.Unmarshal([]byte(text), &k); err == nil {
			t.Errorf("%s is read as %v", text, k)
		}
	}
	if err := k.UnmarshalText([]byte("rule")); err == nil {
		t.Error("a table can be of kind rule")
	}
}

// Faults of patterns do not hide those of actions.
func TestAllFaultsOfATable(t *testing.T) {
	c := tables(t, t.TempDir(), "header\n/^a/ FROB\nno pattern REJECT\n/^b/ REJECT fine\n/^c/ REPLACE x\n/^d[/ REJECT\n")
	var fs conf.Faults
	c.Validate("headers", &fs)
	var lines []int
	for _, f := range fs {
		if f.Line > 0 { // the last says how to go on
			lines = append(lines, f.Line)
		}
	}
	if diff := cmp.Diff([]int{1, 2, 4, 5}, lines); diff != "" {
		t.Errorf("%v\n%s", fs, diff)
	}
}
