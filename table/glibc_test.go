package table

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var glibcRounds = flag.Int("glibc", 4000, "how many patterns are tried against glibc's regexec")

// regexecSource is a C program that says what glibc finds. A line in is the
// flags, the pattern and the texts, in hexadecimal with an x in front of each;
// a line out is "bad", or for each text the offsets of the groups, "none", or
// "late" when glibc finds no end or has found none before, each with a ; behind it.
const regexecSource = `#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
static char *rest;
/* Comes only while regcomp or regexec runs, which may hold malloc's lock. */
static void late(int sig) {
	(void) sig;
	if (!rest) rest = strtok(NULL, " ");
	do fputs("late;", stdout); while ((rest = strtok(NULL, " ")));
	puts("");
	fflush(stdout);
	_exit(0);
}
static char *unhex(const char *s) {
	size_t n = strlen(s) / 2;
	char *out = malloc(n + 1);
	for (size_t i = 0; i < n; i++) { unsigned v; sscanf(s + 2 * i, "%2x", &v); out[i] = (char) v; }
	out[n] = 0;
	return out;
}
static void answer(char *line) {
	char *flags = strtok(line, " "), *p = unhex(strtok(NULL, " ") + 1);
	regex_t re;
	int cflags = (strchr(flags, 'x') ? REG_EXTENDED : 0) | (strchr(flags, 'i') ? REG_ICASE : 0) | (strchr(flags, 'm') ? REG_NEWLINE : 0);
	struct itimerval some = {{0, 0}, {0, 50000}}, none = {{0, 0}, {0, 0}};
	setitimer(ITIMER_VIRTUAL, &some, NULL);
	int bad = regcomp(&re, p, cflags);
	setitimer(ITIMER_VIRTUAL, &none, NULL);
	if (bad) { puts("bad"); return; }
	while ((rest = strtok(NULL, " "))) {
		char *t = unhex(rest + 1);
		regmatch_t m[10];
		setitimer(ITIMER_VIRTUAL, &some, NULL);
		int found = regexec(&re, t, 10, m, 0) == 0;
		setitimer(ITIMER_VIRTUAL, &none, NULL);
		if (!found) fputs("none", stdout);
		for (int i = 0; found && i <= (int) re.re_nsub && i < 10; i++) printf("%s%d %d", i ? " " : "", (int) m[i].rm_so, (int) m[i].rm_eo);
		fputs(";", stdout);
		free(t);
	}
	puts("");
}
int main(void) {
	static char line[1 << 20], out[1 << 20];
	setvbuf(stdout, out, _IOFBF, sizeof out);
	signal(SIGVTALRM, late);
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		pid_t child = fork(); /* a line that finds no end ends with its process */
		if (child == 0) { answer(line); fflush(stdout); _exit(0); }
		int status;
		if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 1;
	}
	return 0;
}
`

// question is a pattern and the texts that it is tried on.
type question struct {
	flags   string // of x (extended), i (without regard to case), m (lines)
	pattern string
	texts   []string
}

// glibcFinds returns for each text of each question the offsets of the groups, "none"
// or "late"; nothing for a pattern that glibc does not take.
func glibcFinds(t *testing.T, program string, questions []question) [][]string {
	t.Helper()
	var in bytes.Buffer
	for _, q := range questions {
		fmt.Fprintf(&in, ".%s x%x", q.flags, q.pattern)
		for _, text := range q.texts {
			fmt.Fprintf(&in, " x%x", text)
		}
		in.WriteByte('\n')
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin, cmd.Stderr = &in, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(questions) {
		t.Fatalf("%d answers to %d questions", len(lines), len(questions))
	}
	answers := make([][]string, len(questions))
	for i, line := range lines {
		if line != "bad" {
			answers[i] = strings.Split(strings.TrimSuffix(line, ";"), ";")
		}
	}
	return answers
}

// buildRegexec compiles the program.
func buildRegexec(t *testing.T) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v; make deps installs it", err)
		}
		t.Skipf("%v; make deps installs it", err)
	}
	program := filepath.Join(t.TempDir(), "regexec")
	cmd := exec.CommandContext(t.Context(), gcc, "-O1", "-x", "c", "-o", program, "-")
	cmd.Stdin = strings.NewReader(regexecSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return program
}

// offsets is what glibcFinds returns, by the engine of tables.
func offsets(re *expr, text string) string {
	m := re.re.FindStringSubmatchIndex(text)
	if m == nil {
		return "none"
	}
	var b strings.Builder
	for i := range min(10, len(m)/2) {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%d %d", m[2*i], m[2*i+1])
	}
	return b.String()
}

// groupPattern makes expressions of few letters, so that alternatives begin
// alike and groups repeat.
func groupPattern(r *rand.Rand, depth int) string {
	atom := func() string {
		switch n := r.IntN(20); {
		case n < 10 || depth == 0:
			return pick(r, "a", "b", "c")
		case n < 12:
			return "."
		case n < 13:
			return "[ab]"
		case n < 14:
			return pick(r, "^", "$", `\b`, "[^a]", `\w`)
		default:
			alts := []string{}
			for range 1 + r.IntN(3) {
				alt := ""
				if r.IntN(8) > 0 {
					alt = groupPattern(r, depth-1)
				}
				alts = append(alts, alt)
			}
			return "(" + strings.Join(alts, "|") + ")"
		}
	}
	var b strings.Builder
	for range 1 + r.IntN(4) {
		a := atom()
		b.WriteString(a)
		if a != "^" && a != "$" && a != `\b` {
			b.WriteString(pick(r, "", "", "", "", "*", "+", "?", "{1,2}", "{2}", "{0,2}", "{2,}", "{0}"))
		}
	}
	return b.String()
}

func groupText(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(10) {
		b.WriteString(pick(r, "a", "b", "c", "a", "b", "c", "\n", "A", " "))
	}
	return strings.TrimRight(b.String(), "\n")
}

// The groups of a regexp table are those of glibc, except where loading warns
// that they may not be.
func TestGroupsAreThoseOfGlibc(t *testing.T) {
	t.Parallel()
	program := buildRegexec(t)
	r := rand.New(rand.NewPCG(4, 2))
	tried, differ, open, patterns := 0, 0, 0, 0
	for left := *glibcRounds; left > 0; {
		var questions []question
		var compiled []*expr
		for range min(left, 5000) {
			left--
			q := question{flags: pick(r, "xi", "xi", "xi", "x", "xm", "xim"), pattern: groupPattern(r, 3)}
			re, err := compile(Regexp, q.pattern, map[byte]bool{'x': true, 'i': strings.Contains(q.flags, "i"), 'm': strings.Contains(q.flags, "m")})
			if err != nil || re.re == nil || re.groups > 9 {
				continue
			}
			for range 8 {
				q.texts = append(q.texts, groupText(r))
			}
			questions, compiled = append(questions, q), append(compiled, re)
		}
		for i, answers := range glibcFinds(t, program, questions) {
			q, re := questions[i], compiled[i]
			if answers == nil {
				t.Errorf("glibc does not take %q, we do", q.pattern)
				continue
			}
			patterns++
			re.re.Longest()
			doubt := groupsInDoubt(re.tree, re.groups)
			if doubt != "" {
				open++
			}
			for j, want := range answers {
				if want == "late" {
					t.Logf("%s %q on %q: glibc finds no end", q.flags, q.pattern, q.texts[j])
					continue
				}
				tried++
				got := offsets(re, q.texts[j])
				if got == want {
					continue
				}
				differ++
				if doubt == "" {
					t.Errorf("%s %q on %q: %s, glibc %s, and nothing is said of it", q.flags, q.pattern, q.texts[j], got, want)
				}
			}
			if t.Failed() && differ > 300 {
				t.FailNow()
			}
		}
	}
	t.Logf("%d patterns, %d look-ups, %d differ, %d patterns are in doubt", patterns, tried, differ, open)
	if tried < 2**glibcRounds || differ == 0 || open > patterns*3/4 {
		t.Error("this is not what the test is for")
	}
}

// What administrators write: an attachment's extension, one of which begins
// like another.
func TestGroupsAsPostfixHasThem(t *testing.T) {
	for _, tt := range []struct{ table, key, want string }{
		{`/^Type:.*name=(.*)\.(vb|vbe|vbs)("?)(.*)$/ R <$1><$2><$3><$4>`, "Type: name=x.vbe", "R <x><vb><><e>"},
		{`/^Type:.*name=(.*)\.(vb|vbe|vbs)("?)(.*)$/ R <$1><$2><$3><$4>`, "Type: name=a.vbe.vb", "R <a.vbe><vb><><>"},
		{`/^A:(a|ab)(c|bcd)(d*)/ R <$1><$2><$3>`, "A:abcd", "R <a><bcd><>"},
		{`/^B:(x*)(x|xy)*(y?)/ R <$1><$2><$3>`, "B:xyxy", "R <><x><y>"},
		{`/^E:((a)|(ab))(b?)/ R <$1><$2><$3><$4>`, "E:ab", "R <a><a><><b>"},
		{`/name=(.*)\.(exe|vb|vbe|vbs)/ REJECT no .$2 files`, "x name=a.vbs", "REJECT no .vbs files"},
	} {
		tb, faults := Parse(Regexp, "t", []byte(tt.table+"\n"))
		if tb == nil {
			t.Errorf("%s: %v", tt.table, faults)
			continue
		}
		if got, _ := tb.Lookup(tt.key); got != tt.want {
			t.Errorf("%s on %q: %q, want %q", tt.table, tt.key, got, tt.want)
		}
	}
}

// What can differ is told at load, and refuses nothing.
func TestDoubtIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	if err := os.WriteFile(path, []byte("/^ok(a|b)*/ R $1\n/(a|b?)+c/ R $1\n/(a|b?)+d/ R\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tb, warnings, faults := Read(Regexp, path, false)
	if tb == nil || len(faults) > 0 || len(warnings) != 1 || warnings[0].Line != 2 || !strings.Contains(warnings[0].Text, "on \"b\" gives $1") {
		t.Errorf("%v %v", warnings, faults)
	}
}

// An escaped small letter matches nothing in Postfix; the rest of the table is
// of use.
func TestEscapedLetters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	if err := os.WriteFile(path, []byte("/a\\cb/ R one\n/x(a|\\c)b/ R two\n/^\\C\\0$/ R three\n/^\\d$/i R four\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if tb, _, faults := Read(Regexp, path, false); tb != nil || len(faults) != 6 || !strings.Contains(faults[0].Error(), path+":1:3: \\c matches nothing") || !strings.Contains(faults[5].Text, "lenient = true") {
		t.Errorf("%v", faults)
	}
	tb, warnings, faults := Read(Regexp, path, true)
	if tb == nil || len(faults) > 0 || len(warnings) != 5 {
		t.Fatalf("%v %v", warnings, faults)
	}
	for key, want := range map[string]string{"acb": "", "xab": "R two", "xcb": "", "c0": "R three", "d": "R four", "D": ""} {
		if got, _ := tb.Lookup(key); got != want {
			t.Errorf("%q: %q, want %q", key, got, want)
		}
	}
}
