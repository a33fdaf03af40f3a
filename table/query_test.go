package table

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// linear is how Postfix searches: every rule in turn.
func linear(t *Table, key string) []string {
	q := NewQuery(0)
	q.subject = subject{text: strings.TrimRight(key, "\n")}
	var found []string
	for i := 0; i < len(t.prog); i++ {
		switch in := &t.prog[i]; in.op {
		case opIf:
			if !q.holds(in.re, in.not) {
				i = in.end
			}
		case opMatch:
			r := &t.rules[in.rule]
			if r.Substitutes {
				m, err := q.find(in.re)
				if err == nil && m != nil && (in.re2 == nil || q.holds(in.re2, in.not2)) {
					found = append(found, fmt.Sprint(r.Line, r.expand(m)))
				}
			} else if q.holds(in.re, in.not) && (in.re2 == nil || q.holds(in.re2, in.not2)) {
				found = append(found, fmt.Sprint(r.Line, r.literal))
			}
		case opEndif, opRun:
		}
	}
	return found
}

func sameAsLinear(t *testing.T, tab *Table, key string) int {
	t.Helper()
	var got []string
	tab.Each(NewQuery(0), key, func(s string, r *Rule) bool {
		got = append(got, fmt.Sprint(r.Line, s))
		return true
	})
	want := linear(tab, key)
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("key %q: %q, searched one by one %q", key, got, want)
	}
	if s, r := tab.Lookup(key); len(want) > 0 && (r == nil || fmt.Sprint(r.Line, s) != want[0]) || len(want) == 0 && r != nil {
		t.Errorf("key %q: Lookup gives %q, want %q", key, s, want)
	}
	return len(want)
}

var headerPatterns = []string{
	"^Subject:", "^Subject:.*w", "^(Subject|From): ", "^subject: *a?b", "viagra|cialis", "^X-[a-c]+:", "[Ss]pam", "^To:.*@example\\.(org|net)", "w(x|yz)+", "",
	"^From:.*<([^>]+)>", "^(?:Date|Message-Id):", "ab(?=c)", "(a)\\1", "\\bword\\b", "^Received: from [a-z]*\\.example", "^$", "^Subject|^Cc:", "colou?r", "(a|b)(c|d)(e|f)",
	"x{2,3}y", "^.*secret", "(?-i)CASE", "\xe9t\xe9", "[[:digit:]]{3}", "a*", "(abc|abd|ab)e", "^(X-Mailer: )?bulk", "^X-Mailer: (bulk|mass|x{0}y)", "(?m)^\tfolded",
}

var headerWords = []string{
	"Subject:", "subject: ", "From: ", "To: ", "X-a:", "X-Mailer: ", "Received: from mx.example", "word", "viagra", "Cialis", "wyz", "wx", "spam", "@example.org", "<a@b>", "abc", "abe", "aa",
	"colour", "color", "ace", "bdf", "xxy", "xxxy", "secret", "CASE", "case", "\xe9t\xe9", "\xc9T\xc9", "123", "bulk", "mass", "\n\tfolded", "\n", " ", "Date:", "Cc:",
}

func randomTable(r *rand.Rand, n int) string {
	var b strings.Builder
	depth := 0
	for i := range n {
		p := headerPatterns[r.IntN(len(headerPatterns))]
		not := pick(r, "", "", "", "", "!")
		switch k := r.IntN(12); {
		case k == 0 && depth < 4:
			fmt.Fprintf(&b, "if %s/%s/\n", not, p)
			depth++
		case k == 1 && depth > 0:
			b.WriteString("endif\n")
			depth--
		case k == 2 && not == "" && strings.Contains(p, "(["):
			fmt.Fprintf(&b, "/%s/ got $1\n", p)
		default:
			fmt.Fprintf(&b, "%s/%s%s/%s rule %d\n", not, p, pick(r, "", "", "q?", ".*z?"), pick(r, "", "", "i", "m"), i)
		}
	}
	for ; depth > 0; depth-- {
		b.WriteString("endif\n")
	}
	return b.String()
}

// The index leaves no match out and changes no order.
func TestIndexAsLinear(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	indexed, matches := 0, 0
	for range 150 {
		text := randomTable(rng, 4+rng.IntN(150))
		tab, faults := Parse(PCRE, "t", []byte(text))
		if tab == nil {
			t.Fatalf("%v in\n%s", faults, text)
		}
		if tab.top.index != nil {
			indexed++
		}
		for range 20 {
			var key strings.Builder
			for range rng.IntN(6) {
				key.WriteString(headerWords[rng.IntN(len(headerWords))])
			}
			matches += sameAsLinear(t, tab, key.String())
		}
	}
	if indexed < 100 || matches < 10000 {
		t.Errorf("only %d tables with an index and %d matches", indexed, matches)
	}
}

func FuzzIndex(f *testing.F) {
	for _, p := range headerPatterns {
		f.Add(p, "^X: y", "Subject: word abc")
	}
	f.Fuzz(func(t *testing.T, one, two, key string) {
		if strings.ContainsAny(one+two, "/\\\n\r") || strings.ContainsAny(key, "\n") {
			return
		}
		for _, kind := range []Kind{Regexp, PCRE} {
			text := fmt.Sprintf("/%s/ a\n/%s/ b\n!/%s/ c\n/x%s/i d\n/%s%s/m e\n/(?=a)%s|%s/ f\n", one, two, one, two, one, two, one, two)
			tab, _ := Parse(kind, "t", []byte(text))
			if tab == nil {
				continue
			}
			sameAsLinear(t, tab, key)
			sameAsLinear(t, tab, key+one+two)
			sameAsLinear(t, tab, strings.ToUpper(one)+strings.ToLower(two))
		}
	})
}

// Rules are found from what they must hold, and only those are tried.
func TestIndexIsUsed(t *testing.T) {
	for _, tt := range []struct {
		pattern  string
		prefixes string
		required string
	}{
		{"^Subject:.*viagra", "subject:", "viagra"},
		{"^Subject:", "subject:", ""},
		{"^(Subject|From): x", "from: x subject: x", ""},
		{"^Subject:|^From:", "from: subject:", ""},
		{"buy (viagra|cialis) now", "", "buy cialis now buy viagra now"},
		{"colou?r", "", "color colour"},
		{"a+b{2,}", "", "a"},
		{"(abc)*d.*ef", "", "ef"},
		{"^X.*[0-9a-f]{32}", "x", ""},
		{".*", "", ""},
		{"^(?-i)Case", "case", ""},
		{"(?m)^Line", "", "line"},
		{"(spam|)", "", ""},
		{"x(?!y)z", "", "xz"},
	} {
		re, err := compile(PCRE, tt.pattern, map[byte]bool{'i': true, 's': true})
		if err != nil {
			t.Fatal(err)
		}
		prefixes, required := re.tree.anchored(), re.tree.required()
		if required.shortest() < 2 && len(required) > 1 {
			required = nil // says little
		}
		join := func(s texts) string { return strings.Join(s, " ") }
		if tt.required != "" && join(required) != tt.required || join(prefixes) != tt.prefixes {
			t.Errorf("%s: begins with %q, holds %q; want %q, %q", tt.pattern, prefixes, required, tt.prefixes, tt.required)
		}
	}
}

// A pattern that backtracks without end costs no more than the limit of the
// query and its own.
func TestQueryLimit(t *testing.T) {
	tab, faults := Parse(PCRE, "t", []byte("/^(a+)+(?=b)$/ never\n!/^(a+)+(?=b)$/ negated\n/^a/ begins\n"))
	if tab == nil {
		t.Fatal(faults)
	}
	evil := strings.Repeat("a", 60)
	q := NewQuery(time.Nanosecond)
	for range 20 {
		if s, _ := tab.Find(q, evil); s != "begins" {
			t.Errorf("found %q", s)
		}
	}
	if !q.Spent() || q.Failures() != 40 || tab.Failures() != 40 {
		t.Errorf("spent %v, %d failures, %d of the table", q.Spent(), q.Failures(), tab.Failures())
	}
	if s, _ := tab.Find(NewQuery(time.Minute), "b"); s != "negated" {
		t.Errorf("found %q", s)
	}
}

func benchmarkTable(b *testing.B, n int) *Table {
	b.Helper()
	var text strings.Builder
	names := []string{"Subject", "From", "To", "X-Mailer", "Received", "Message-ID", "Reply-To", "X-Spam-Flag"}
	for i := range n {
		fmt.Fprintf(&text, "/^%s:.*word%d[a-z]+ (free|cheap)/ REJECT no %d\n", names[i%len(names)], i, i)
	}
	tab, faults := Parse(PCRE, "t", []byte(text.String()))
	if tab == nil {
		b.Fatal(faults)
	}
	return tab
}

func BenchmarkFind(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tab := benchmarkTable(b, n)
			q := NewQuery(time.Second)
			b.ReportAllocs()
			for b.Loop() {
				tab.Find(q, "Subject: Re: minutes of the meeting of last Tuesday, and what was said about words")
			}
		})
	}
}
