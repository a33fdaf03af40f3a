package headercheck

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a check over tables that a test wrote.
type site struct {
	*Check
	t    *testing.T
	logs *observer.ObservedLogs
}

// tables writes tables, "kind name: text", and returns a configuration.
func tables(t testing.TB, dir string, texts ...string) Config {
	t.Helper()
	c := DefaultConfig()
	for i, text := range texts {
		head, rules, _ := strings.Cut(text, "\n")
		path := filepath.Join(dir, fmt.Sprint("t", i))
		if err := os.WriteFile(path, []byte(rules), 0o600); err != nil {
			t.Fatal(err)
		}
		tc := TableConfig{Table: "pcre:" + path}
		for word := range strings.FieldsSeq(head) {
			switch {
			case word == "regexp":
				tc.Table = "regexp:" + path
			case word == "decoded":
				tc.Decoded = true
			case word == "shadow":
				tc.Mode = policy.Shadow
			case strings.HasPrefix(word, "for="):
				tc.Domains = strings.Split(word[4:], ",")
			case word == "all":
				tc.DomainsMatch = "all"
			default:
				if err := tc.Kind.UnmarshalText([]byte(word)); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.Checks = append(c.Checks, tc)
	}
	return c
}

func newSite(t *testing.T, c Config) *site {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	check, err := New(c, zap.New(core), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &site{check, t, logs}
}

// message is what a door would hand over.
func (s *site) message(text string, to ...string) policy.Judgement {
	s.t.Helper()
	fields, body := cutFields(toCRLF([]byte(text)))
	j, err := s.run(fields, body, to...)
	if err != nil {
		s.t.Fatal(err)
	}
	return j
}

func (s *site) run(fields []policy.Field, body []byte, to ...string) (policy.Judgement, error) {
	if len(to) == 0 {
		to = []string{"bob@example.com"}
	}
	var rcpts []policy.Address
	for _, a := range to {
		rcpts = append(rcpts, mailaddr.Parse(a))
	}
	m := s.Inspect(&policy.Request{QueueID: "4F1", Time: time.Now()}, rcpts)
	if m == nil {
		return policy.Judgement{}, nil
	}
	for _, f := range fields {
		m.Header(f)
	}
	m.EndOfHeaders()
	for more := true; more && len(body) > 0; {
		n := min(1000, len(body))
		more = m.Body(body[:n])
		body = body[n:]
	}
	return m.End(s.t.Context())
}

// told is a judgement in one line each.
func told(j policy.Judgement) string {
	var b strings.Builder
	if v := j.Verdict; v.Action != policy.Continue {
		fmt.Fprintf(&b, "%s %s", v.Action, v.Reason)
		if v.Reply.Code != 0 {
			fmt.Fprintf(&b, " %s", v.Reply)
		}
		b.WriteByte('\n')
	}
	for _, e := range j.Edits {
		switch e.Kind {
		case policy.InsertField, policy.ReplaceField:
			fmt.Fprintf(&b, "%s %d %s:%q\n", e.Kind, e.At, e.Name, e.Value)
		case policy.DeleteField:
			fmt.Fprintf(&b, "%s %d\n", e.Kind, e.At)
		case policy.ReplaceBody:
			fmt.Fprintf(&b, "%s %q\n", e.Kind, e.Body)
		default:
			fmt.Fprintf(&b, "%s %s\n", e.Kind, e.Arg)
		}
	}
	return b.String()
}

const plain = "From: a@example.org\nSubject: Buy now\n and cheap\nX-Foo:bar\n\nfirst line\nsecond line\n"

func TestActions(t *testing.T) {
	for _, tt := range []struct{ result, want string }{
		{"REJECT", "reject header-rejected 550 5.7.1 message content rejected\n"},
		{"reject no thanks", "reject header-rejected 550 5.7.1 no thanks\n"},
		{"REJECT 5.6.0 no\tthanks", "reject header-rejected 550 5.6.0 no thanks\n"},
		{"REJECT 4.7.1 later", "defer header-deferred 451 4.7.1 later\n"},
		{"REJECT 4.3.2", "defer header-deferred 451 4.3.2 message content rejected\n"},
		{"REJECT 5.7.1000 x", "reject header-rejected 550 5.7.1 5.7.1000 x\n"},
		{"REJECT got $1", "reject header-rejected 550 5.7.1 got now  and cheap\n"},
		{"DISCARD quietly", "discard header-discarded\n"},
		{"HOLD look", "hold header-held\n"},
		{"WARN x", ""},
		{"INFO x", ""},
		{"PASS x", ""},
		{"DUNNO", ""},
		{"OK x", ""},
		{"dunno", ""},
		{"IGNORE", "delete-field 1\n"},
		{"STRIP bad", "delete-field 1\n"},
		{"PREPEND X-A: b", "insert-field 1 X-A:\" b\"\n"},
		{"PREPEND X-A:b", "insert-field 1 X-A:\"b\"\n"},
		{"PREPEND X-A: $1", "insert-field 1 X-A:\" now\\n and cheap\"\n"},
		{"REPLACE Subject: fine", "replace-field 1 Subject:\" fine\"\n"},
		{"REPLACE X-Subject : fine", "replace-field 1 X-Subject:\" fine\"\n"},
		{"REPLACE Subject: Buy $1", ""}, // as it was
		{"REDIRECT spam@example.org", "replace-recipient spam@example.org\n"},
		{"BCC copy@example.org", "add-recipient copy@example.org\n"},
		{"BCC $1@example.org", ""}, // holds a LF
		{"FILTER smtp:[192.0.2.9]:10025", "insert-field 3 X-Way:\" smtp:[192.0.2.9]:10025\"\n"},
		{"SHADOW REJECT", ""},
		{"shadow discard", ""},
	} {
		c := tables(t, t.TempDir(), "header\n/^Subject: Buy (.*)/ "+tt.result+"\n")
		c.FilterMarker = "X-Way"
		if got := told(newSite(t, c).message(plain)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.result, got, tt.want)
		}
	}
}

func TestOrderOfActions(t *testing.T) {
	for _, tt := range []struct{ name, table, message, want string }{
		{"the first rule that matches", "header\n/^From:/ DUNNO\n/^From:/ REJECT\n", plain, ""},
		{"the first table that knows the line", "header\n/^X-Foo:/ DUNNO\n||header\n/./ WARN\n/^X/ IGNORE\n", plain, ""},
		{"REJECT ends it", "header\n/^From:/ REJECT one\n/^Subject:/ REJECT two\n", plain, "reject header-rejected 550 5.7.1 one\n"},
		{"edits are lost with the message", "header\n/^From:/ IGNORE\n/^Subject:/ REJECT two\n", plain, "reject header-rejected 550 5.7.1 two\n"},
		{"HOLD does not end it", "header\n/^From:/ HOLD\n/^Subject:/ DISCARD\n", plain, "discard header-discarded\n"},
		{"HOLD and an edit", "header\n/^From:/ HOLD\n/^Subject:/ IGNORE\n", plain, "hold header-held\ndelete-field 1\n"},
		{"PASS ends it and keeps edits", "header\n/^From:/ IGNORE\n/^Subject:/ PASS\n/^X-Foo/ REJECT\n||body\n/line/ REJECT\n", plain, "delete-field 0\n"},
		{"the first REDIRECT", "header\n/^From:/ REDIRECT a@example.org\n/^Subject:/ REDIRECT b@example.org\n", plain, "replace-recipient a@example.org\n"},
		{"the last FILTER, and REDIRECT beats it", "header\n/^From:/ FILTER a:\n/^Subject:/ FILTER b:\n", plain, "insert-field 3 X-Way:\" b:\"\n"},
		{"REDIRECT beats FILTER", "header\n/^From:/ FILTER a:\n/^Subject:/ REDIRECT b@example.org\n", plain, "replace-recipient b@example.org\n"},
		{"several BCC, each once", "header\n/^From:/ BCC a@example.org\n/^Sub/ BCC b@example.org\n/^X/ BCC a@example.org\n", plain, "add-recipient a@example.org\nadd-recipient b@example.org\n"},
		{"repeated headers", "header\n/^X: 2/ IGNORE\n/^X: 3/ PREPEND Y: y\n", "X: 1\nX: 2\nX: 3\n\n", "delete-field 1\ninsert-field 2 Y:\" y\"\n"},
		{"shadow is as if it were not there", "header\n/^From:/ SHADOW REJECT\n/^From:/ IGNORE\n", plain, "delete-field 0\n"},
		{"a table in shadow mode does not hide the next", "header shadow\n/^From:/ REJECT\n||header\n/^From:/ IGNORE\n", plain, "delete-field 0\n"},
		{"MIME headers go to their own table", "header\n/^Content-Type/ REJECT\n||mime\n/^Content-Type:/ HOLD\n", "content-type: text/plain\n\n", "hold mime-header-held\n"},
		{"MIME headers without a table of their own", "header\n/^Content-Type/ REJECT\n", "Content-Type: text/plain\n\n", "reject mime-header-rejected 550 5.7.1 message content rejected\n"},
		{"Content-Language is no MIME header", "mime\n/./ REJECT\n", "Content-Language: de\n\n", ""},
		{"a forged marker", "header\n/^Zzz/ WARN\n", "x-way: smtp:evil\nA: b\n\n", "delete-field 0\n"},
		{"white space before the colon", "header\n/^Subject: x$/ IGNORE\n", "Subject \t: x\n\n", "delete-field 0\n"},
		{"bytes, not characters", "header\n/^Subject: .{2}$/ IGNORE\n", "Subject: \xc3\xa9\nSubject: \xe9\n\n", "delete-field 0\n"},
		{"body lines", "body\n/^first/ REPLACE other\n/second/ PREPEND X\n", plain, "replace-body \"other\\r\\nX\\r\\nsecond line\\r\\n\"\n"},
		{"body lines are dropped", "body\n/^first/ IGNORE\n", plain, "replace-body \"second line\\r\\n\"\n"},
		{"body without a match", "body\n/^third/ IGNORE\n", plain, ""},
		{"empty lines match nothing", "body\n/^$/ REJECT\n!/x/ REJECT\n", "A: b\n\n\nx\n\n", ""},
		{"an empty header name is no header", "header\n/./ REJECT\n", "\n: x\n", ""},
		{"a regexp table", "header regexp\n/^subject:.*\\<buy\\>/ REJECT\n", plain, "reject header-rejected 550 5.7.1 message content rejected\n"},
		{"no final line end", "body\n/last/ REPLACE x\n", "A: b\n\nlast", "replace-body \"x\\r\\n\"\n"},
	} {
		c := tables(t, t.TempDir(), strings.Split(tt.table, "||")...)
		c.FilterMarker = "X-Way"
		if got := told(newSite(t, c).message(tt.message)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

const mixed = `From: a@example.org
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="b1"

preamble
--b1
Content-Type: text/plain; name="x.exe"
X-In: part

text
--b1
Content-Type: message/rfc822

Subject: inner
Content-Type: multipart/digest;
	boundary=b2

--b2

Subject: deepest

dig
--b2--
after b2
--b1--
epilogue
`

func TestMIME(t *testing.T) {
	for _, tt := range []struct{ name, table, want string }{
		{"a name in a part", "header\n/name=.*\\.exe/ REJECT\n", "reject mime-header-rejected 550 5.7.1 message content rejected\n"},
		{"all headers of a part", "mime\n/^X-In:/ IGNORE\n", "-X-In: part"},
		{"nested", "nested\n/^Subject: inner/ IGNORE\n", "-Subject: inner"},
		{"deeper", "nested\n/^Subject: deepest/ REPLACE Subject: other\n", "Subject: deepest=Subject: other"},
		{"no primary header is nested", "nested\n/^From:/ REJECT\n", ""},
		{"MIME headers of a nested message", "nested\n/^Content/ REJECT\n||mime\n/digest/ IGNORE\n", "-Content-Type: multipart/digest;\n\tboundary=b2"},
		{"boundaries are body", "body\n/^--b1--/ REPLACE end\n", "--b1--=end"},
		{"preamble and epilogue are body", "body\n/^(preamble|epilogue)/ IGNORE\n", "-preamble -epilogue"},
		{"body of parts", "body\n/^dig$/ PREPEND above\n", "dig=above\ndig"},
		{"headers of parts are not body", "body\n/X-In|Subject/ REJECT\n", ""},
	} {
		want := tt.want
		if want != "" && !strings.HasPrefix(want, "reject") {
			_, body, _ := strings.Cut(mixed, "\n\n")
			for change := range strings.SplitSeq(want, " -") {
				if from, to, ok := strings.Cut(change, "="); ok && !strings.HasPrefix(change, "-Content") {
					body = strings.Replace(body, from+"\n", to+"\n", 1)
				} else {
					body = strings.Replace(body, strings.TrimPrefix(change, "-")+"\n", "", 1)
				}
			}
			want = fmt.Sprintf("replace-body %q\n", strings.ReplaceAll(body, "\n", "\r\n"))
		}
		c := tables(t, t.TempDir(), strings.Split(tt.table, "||")...)
		if diff := cmp.Diff(want, told(newSite(t, c).message(mixed))); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
		c.DisableMIME = true
		if got := told(newSite(t, c).message(mixed)); strings.HasPrefix(tt.table, "nested") && got != "" {
			t.Errorf("%s: without MIME: %s", tt.name, got)
		}
	}
}

func TestDefaultsOfMIMEAndNested(t *testing.T) {
	c := tables(t, t.TempDir(), "header\n/^(X-In|Subject):/ HOLD\n")
	if got := told(newSite(t, c).message(mixed)); got != "hold mime-header-held\n" {
		t.Error(got)
	}
	c.MIMEDefault = false
	if got := told(newSite(t, c).message(mixed)); got != "hold nested-header-held\n" {
		t.Error(got)
	}
	c.NestedDefault = false
	if got := told(newSite(t, c).message(mixed)); got != "" {
		t.Error(got)
	}
}

func TestBodyLimits(t *testing.T) {
	filler := strings.Repeat(strings.Repeat("x", 99)+"\n", 600)
	for _, tt := range []struct {
		name, message, want string
		limit               int
	}{
		{"within", "A: b\n\n" + filler[:51100] + "needle\n", "reject", 51200},
		{"beyond", "A: b\n\n" + filler[:51200] + "needle\n", "", 51200},
		{"without limit", "A: b\n\n" + filler + "needle\n", "reject", 0},
		{"each part begins anew", "Content-Type: multipart/mixed; boundary=b\n\n--b\n\n" + filler + "--b\n\nneedle\n", "reject", 51200},
		{"pieces", "A: b\n\n" + strings.Repeat("y", 2048) + "needle\n", "reject", 0},
		{"across pieces", "A: b\n\n" + strings.Repeat("y", 2045) + "needle\n", "", 0},
	} {
		c := tables(t, t.TempDir(), "body\n/^needle/ REJECT\n")
		c.BodyLimit = tt.limit
		if got := told(newSite(t, c).message(tt.message)); !strings.HasPrefix(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A door is told when nothing more is needed.
func TestBodyIsNotAskedForInVain(t *testing.T) {
	for _, tt := range []struct {
		name, table string
		fields      []policy.Field
		body        string
		want        bool
	}{
		{"no table for it", "header\n/^A:/ IGNORE\n", []policy.Field{{Name: "A", Value: " b"}}, "x\r\n", false},
		{"parts", "header\n/^A:/ IGNORE\n", []policy.Field{{Name: "Content-Type", Value: " multipart/mixed; boundary=b"}}, "x\r\n", true},
		{"a table for it", "body\n/y/ IGNORE\n", nil, "x\r\n", true},
		{"all that counts has been seen", "body\n/y/ IGNORE\n", nil, strings.Repeat("x\r\n", 30000), false},
		{"the rest of a changed body", "body\n/x/ IGNORE\n", nil, strings.Repeat("x\r\n", 30000), true},
		{"refused", "header\n/^A:/ REJECT\n||body\n/y/ WARN\n", []policy.Field{{Name: "A", Value: " b"}}, "x\r\n", false},
		{"refused in the body", "body\n/x/ REJECT\n", nil, "x\r\n", false},
	} {
		s := newSite(t, tables(t, t.TempDir(), strings.Split(tt.table, "||")...))
		m := s.Inspect(&policy.Request{}, nil)
		for _, f := range tt.fields {
			m.Header(f)
		}
		m.EndOfHeaders()
		if got := m.Body([]byte(tt.body)); got != tt.want {
			t.Errorf("%s: more is %v", tt.name, got)
		}
		if _, err := m.End(t.Context()); err != nil {
			t.Error(err)
		}
		if n := s.held.Load(); n != 0 {
			t.Errorf("%s: %d bytes are still counted", tt.name, n)
		}
	}
}

func TestBodyTooLongToChange(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(*Config)
	}{
		{"of the message", func(c *Config) { c.MaxBodyEdit = 1000 }},
		{"of all messages", func(c *Config) { c.MaxBodyEditTotal = 1000 }},
		{"none", func(c *Config) { c.MaxBodyEdit = 0 }},
	} {
		for _, where := range []string{"first", "last"} {
			c := tables(t, t.TempDir(), "body\n/^needle/ IGNORE\n/^hold/ HOLD\n")
			tt.set(&c)
			s := newSite(t, c)
			text := strings.Repeat("filler filler filler\n", 100) + "hold\n"
			if where == "first" {
				text = "needle\n" + text
			} else {
				text += "needle\n"
			}
			if got := told(s.message("A: b\n\n" + text)); got != "hold body-held\n" {
				t.Errorf("%s, %s: %q", tt.name, where, got)
			}
			if n := s.logs.FilterMessageSnippet("too long to be changed").Len(); n != 1 {
				t.Errorf("%s, %s: logged %d times", tt.name, where, n)
			}
			if n := s.held.Load(); n != 0 {
				t.Errorf("%s, %s: %d bytes are still counted", tt.name, where, n)
			}
		}
	}
}

// A message that is given up gives its memory back.
func TestGivenUp(t *testing.T) {
	s := newSite(t, tables(t, t.TempDir(), "body\n/^x/ IGNORE\n"))
	m := s.Inspect(&policy.Request{}, nil)
	m.EndOfHeaders()
	m.Body([]byte("x\r\n"))
	m.Body(bytes.Repeat([]byte("yyyyyyyyy\r\n"), 10000))
	if n := s.held.Load(); n < 100000 {
		t.Errorf("%d bytes are counted", n)
	}
	runtime.KeepAlive(m)
	m = nil
	for range 10000 {
		if runtime.GC(); s.held.Load() == 0 {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("%d bytes are still counted", s.held.Load())
}

// One header can be longer than all that is kept.
func TestLongHeaderInBody(t *testing.T) {
	c := tables(t, t.TempDir(), "mime\n/needle/ IGNORE\n")
	c.MaxBodyEdit = 100000
	s := newSite(t, c)
	got := told(s.message("Content-Type: multipart/mixed; boundary=b\n\n--b\nX: needle\nY: " + strings.Repeat("z\n z", 60000) + "\n\nx\n"))
	if got != "" || s.logs.FilterMessageSnippet("too long to be changed").Len() != 1 || s.held.Load() != 0 {
		t.Errorf("%q, %v", got, s.logs.All())
	}
}

func TestNesting(t *testing.T) {
	var b strings.Builder
	b.WriteString("Content-Type: multipart/mixed; boundary=b0\n\n")
	for i := 1; i < 200; i++ {
		fmt.Fprintf(&b, "--b%d\nContent-Type: multipart/mixed; boundary=b%d\n\n", i-1, i)
	}
	b.WriteString("x\n")
	if got := told(newSite(t, tables(t, t.TempDir(), "header\n/^No/ WARN\n")).message(b.String())); got != "reject mime-nesting 550 5.6.0 MIME nesting exceeds safety limit\n" {
		t.Error(got)
	}
	if got := told(newSite(t, tables(t, t.TempDir(), "body\n/^no/ WARN\n")).message(b.String())); got != "" {
		t.Error(got)
	}
}

// A header is cut where Postfix cuts it: at the end of the line, or of the
// piece of 2048 bytes, that reaches the limit.
func TestHeaderLimit(t *testing.T) {
	c := tables(t, t.TempDir(), "header\n/needle/ IGNORE\n")
	for _, tt := range []struct {
		value string
		found bool
	}{
		{strings.Repeat("x", 59000) + "needle", true},
		{strings.Repeat("x", 59392-len("Subject:")) + strings.Repeat("y", 1000) + "needle", true}, // in the piece that reaches 60000
		{strings.Repeat("x", 62000) + "needle", false},
		{strings.Repeat(" 9 chars.\n", 5998) + " x\n needle", true},
		{strings.Repeat(" 9 chars.\n", 6001) + " x\n needle", false},
	} {
		s := newSite(t, c)
		j, err := s.run([]policy.Field{{Name: "Subject", Value: tt.value}}, nil)
		if err != nil || (told(j) != "") != tt.found {
			t.Errorf("%d bytes: %q, %v", len(tt.value), told(j), err)
		}
		// In the body of a message the splitter does the cutting.
		_, _, all := splitAll(testLimits, []byte("Subject:"+tt.value+"\n\n"), nil)
		if want := fmt.Sprintf("head 0 %q", s.Inspect(&policy.Request{}, nil).(*inspection).fieldText(policy.Field{Name: "Subject", Value: tt.value})); !strings.HasPrefix(all[0], want) {
			t.Errorf("%d bytes: the splitter cuts at another place", len(tt.value))
		}
	}
}

func TestScopes(t *testing.T) {
	c := tables(t, t.TempDir(),
		"header for=Example.ORG,.sub.example\n/^Subject:/ PREPEND X: any\n", "header for=example.org,example.net all\n/^Subject:/ PREPEND X: all\n", "header\n/^Subject:/ PREPEND X: rest\n")
	c.Rules = []RuleConfig{{Name: "scoped", All: []string{"/^From:/"}, Action: "HOLD", Domains: []string{"example.net"}}}
	s := newSite(t, c)
	for _, tt := range []struct{ to, want string }{
		{"a@example.org", "any"},
		{"a@EXAMPLE.org", "any"},
		{"a@b.example.org", "rest"},
		{"a@x.sub.example", "any"},
		{"a@sub.example", "rest"},
		{"a@example.net", "hold all"},
		{"a@example.net b@example.com", "hold rest"},
		{"a@example.com b@example.org", "any"},
		{"postmaster", "rest"},
	} {
		got := told(s.message(plain, strings.Fields(tt.to)...))
		want := ""
		if rest, ok := strings.CutPrefix(tt.want, "hold "); ok {
			want, tt.want = "hold header-rule-held\n", rest
		}
		if want += "insert-field 1 X:\" " + tt.want + "\"\n"; got != want {
			t.Errorf("to %s: %q, want %q", tt.to, got, want)
		}
	}
}

func TestDecoded(t *testing.T) {
	word := func(charset, s string) string {
		return "=?" + charset + "?B?" + base64.StdEncoding.EncodeToString([]byte(s)) + "?="
	}
	for _, tt := range []struct{ header, want string }{
		{"Subject: plain", "Subject: plain"},
		{"Subject: a\n\tb", "Subject: a\tb"},
		{"Subject: =?utf-8?Q?Gr=C3=BC=C3=9Fe_an?= alle", "Subject: Grüße an alle"},
		{"Subject: =?ISO-8859-1?q?Gr=FC=DFe?=", "Subject: Grüße"},
		{"Subject: =?utf-8*de?q?x?=", "Subject: x"},
		{"Subject: " + word("utf-8", "via") + "\n " + word("UTF-8", "gra"), "Subject: viagra"},
		{"Subject: " + word("utf-8", "Gr\xc3") + " " + word("utf-8", "\xbcn"), "Subject: Grün"},
		{"Subject: " + word("utf-8", "a") + " b " + word("utf-8", "c"), "Subject: a b c"},
		{"Subject: " + word("koi8-r", "\xd0\xd2\xc9"), "Subject: при"},
		{"Subject: " + word("gb2312", "\xc4\xe3"), "Subject: 你"},
		{"Subject: " + word("iso-2022-jp", "\x1b$B$\"\x1b(B"), "Subject: あ"},
		{"Subject: " + word("x-unknown", "word"), "Subject: word"},
		{"Subject: " + word("utf-8", "a\r\nBcc: b"), "Subject: a  Bcc: b"},
		{"Subject: =?utf-8?B?YQ?=", "Subject: a"},
		{"Subject: =?utf-8?B?***?= =?", "Subject: =?utf-8?B?***?= =?"},
		{"Subject: =?utf-8?X?a?= =?utf-8?q?b", "Subject: =?utf-8?X?a?= =?utf-8?q?b"},
		{"Subject: " + word("utf-8", "a") + "  =?bad", "Subject: a  =?bad"},
		{"Subject: =?utf-8?q?=4x=?=", "Subject: =4x="},
		{"From: =?utf-8?q?PayPal?= <x@example.org>", "From: PayPal <x@example.org>"},
		{"Content-Disposition: attachment; filename=\"" + word("utf-8", "a.exe") + "\"", "Content-Disposition: attachment; filename=\"a.exe\""},
		{"Content-Disposition: attachment;\n filename*=utf-8''%61.e%78e", "Content-Disposition: attachment; filename=\"a.exe\""},
		{"Content-Disposition: attachment; filename*1*=%65; filename*0=a.ex; size=3", "Content-Disposition: attachment; size=3; filename=\"a.exe\""},
		{"Content-Type: x/y; name*0*=iso-8859-1'de'%fc; name*1=\"b;c\"; x=\"a;*\"", "Content-Type: x/y; x=\"a;*\"; name=\"übc\""},
		{"Content-Type: x/y; *=; name**=1; name*-1=2", "Content-Type: x/y; *=; name**=1; name*-1=2"},
		{"Subject: a; filename*=utf-8''b", "Subject: a; filename*=utf-8''b"},
	} {
		want := strings.Replace(tt.want, "übc", "üb;c", 1)
		if got := decodeHeader(tt.header); got != want {
			t.Errorf("%q: %q, want %q", tt.header, got, want)
		}
	}
	c := tables(t, t.TempDir(), "header decoded\n/^Subject: viagra$/ IGNORE\n/^(X: )(.)/ REPLACE $1$2\n", "header\n/=\\?utf-8/ HOLD\n")
	if got := told(newSite(t, c).message("Subject: =?utf-8?q?vi?=\n =?utf-8?q?agra?=\nX: =?utf-8?q?y?=\nSubject: =?utf-8?q?z?=\n\n")); got != "hold header-held\ndelete-field 0\nreplace-field 1 X:\" y\"\n" {
		t.Errorf("%q", got)
	}
}

func TestRulesOfSeveralHeaders(t *testing.T) {
	rule := RuleConfig{
		Name: "invoice", All: []string{"/^Subject:.*invoice/", "%^Reply-To:.*@gmail\\.com%i"}, None: []string{"/^List-Id:/"}, Action: "REJECT 5.7.1 invoices come from us",
	}
	const reject = "reject header-rule-rejected 550 5.7.1 invoices come from us\n"
	for _, tt := range []struct {
		name, message, want string
		change              func(*RuleConfig)
	}{
		{"all, other case", "Subject: your invoice\nReply-To: x@GMAIL.com\n\n", "", nil},
		{"all", "Reply-To: x@gmail.com\nsubject: your Invoice\n\n", reject, nil},
		{"one", "Subject: your invoice\n\n", "", nil},
		{"but not", "Subject: your invoice\nReply-To: x@gmail.com\nList-Id: y\n\n", "", nil},
		{"encoded", "Subject: =?utf-8?q?invo=69ce?=\nReply-To: x@gmail.com\n\n", "", nil},
		{"decoded", "Subject: =?utf-8?q?invo=69ce?=\nReply-To: x@gmail.com\n\n", reject, func(r *RuleConfig) { r.Decoded = true }},
		{"shadow", "Subject: your invoice\nReply-To: x@gmail.com\n\n", "", func(r *RuleConfig) { r.Mode = policy.Shadow }},
		{"shadow word", "Subject: your invoice\nReply-To: x@gmail.com\n\n", "", func(r *RuleConfig) { r.Action = "SHADOW REJECT" }},
		{"off", "Subject: your invoice\nReply-To: x@gmail.com\n\n", "", func(r *RuleConfig) { r.Mode = policy.Off }},
		{"prepend", "Subject: your invoice\nReply-To: x@gmail.com\n\n", "insert-field 0 X-Odd:\" yes\"\n", func(r *RuleConfig) { r.Action = "PREPEND X-Odd: yes" }},
		{"redirect", "Subject: your invoice\nReply-To: x@gmail.com\n\n", "replace-recipient q@example.org\n", func(r *RuleConfig) { r.Action = "REDIRECT q@example.org" }},
	} {
		r := rule
		if tt.change != nil {
			tt.change(&r)
		}
		c := DefaultConfig()
		c.Rules = []RuleConfig{{Name: "other", All: []string{"/^Nothing:/"}, Action: "DISCARD"}, r}
		s := newSite(t, c)
		if got := told(s.message(tt.message)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
		if h := s.Hits(); tt.want != "" && (h[0].Hits != 0 || h[1].Hits != 1 || h[1].Rule != "invoice") {
			t.Errorf("%s: hits %+v", tt.name, h)
		}
	}
}

func TestFilterLines(t *testing.T) {
	c := tables(t, t.TempDir(), "header\n/^A/ FILTER smtp:[192.0.2.9]:10025\n/^B/ FILTER scan:\n/^C/ FILTER scan:\n/^D/ FILTER x:a$$b\n")
	c.FilterMarker = "X-Way"
	c.Rules = []RuleConfig{{Name: "r", All: []string{"/^E/"}, Action: "FILTER relay:[2001:db8::1]"}}
	want := []string{
		`/^X-Way: *relay:\[2001:db8::1\]$/ FILTER relay:[2001:db8::1]`,
		`/^X-Way: *scan:$/ FILTER scan:`,
		`/^X-Way: *smtp:\[192\.0\.2\.9\]:10025$/ FILTER smtp:[192.0.2.9]:10025`,
		`/^X-Way: *x:a\$b$/ FILTER x:a$$b`,
	}
	got := newSite(t, c).FilterLines()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Read as the table they are meant to be, they turn the marker into the target.
	s := newSite(t, tables(t, t.TempDir(), "header regexp\n"+strings.Join(append(got, "/x/ DUNNO"), "\n")+"\n", "header\n/^/ DUNNO\n").withMarker("X-Other"))
	for _, target := range []string{"smtp:[192.0.2.9]:10025", "scan:", "x:a$b", "relay:[2001:db8::1]"} {
		if m := s.Query(Header, "X-Way: "+target); len(m) == 0 || m[0].Action != "filter" || m[0].Arg != target {
			t.Errorf("%s: %+v", target, m)
		}
	}
}

func (c Config) withMarker(name string) Config {
	c.FilterMarker = name
	return c
}

// A pattern that backtracks without end is given up, and the message with it
// when the time of all rules is up.
func TestTimeLimits(t *testing.T) {
	c := tables(t, t.TempDir(), "header\n/^Subject: (a+)+(?=b)$/ REJECT\n/^Subject: (a+)+(?!.)b/ REJECT\n/^X-Foo/ HOLD\n")
	c.PatternTime = conf.Duration(1)
	s := newSite(t, c)
	evil := "Subject: " + strings.Repeat("a", 60) + "\n"
	j := s.message(strings.Repeat(evil, 200) + "X-Foo: x\n\n")
	if got := told(j); got != "hold header-held\n" {
		t.Errorf("%q", got)
	}
	if n := s.logs.FilterMessageSnippet("given up").Len(); n != 1 {
		t.Errorf("logged %d times", n)
	}
	c.MaxTime = conf.Duration(1)
	s = newSite(t, c)
	fields, _ := cutFields([]byte(evil + "X-Foo: x\r\n\r\n"))
	if _, err := s.run(fields, nil); err == nil {
		t.Error("the message was judged")
	}
}

func TestLogs(t *testing.T) {
	c := tables(t, t.TempDir(), "header\n/^From:/ WARN mind\n/^Subject:/ IGNORE\n/^X-Foo/ STRIP out\n", "body\n/first/ HOLD a\n/second/ HOLD b\n")
	s := newSite(t, c)
	s.message(plain)
	var got []string
	for _, e := range s.logs.All() {
		f := e.ContextMap()
		got = append(got, fmt.Sprint(f["action"], " ", f["kind"], " ", f["text"], " ", f["argument"], " ", f["queue_id"]))
	}
	want := []string{"warn header From: a@example.org mind 4F1", "strip header X-Foo:bar out 4F1", "hold body first line a 4F1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := shown("a\n\xe9" + strings.Repeat("x", 300)); got != "a??"+strings.Repeat("x", 197) {
		t.Errorf("%q", got)
	}
}
