package table

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/postfixtest"
)

// postmap asks the real Postfix. It returns the answers by key and what was
// written to standard error.
func postmap(t *testing.T, kind Kind, file string, keys []string) (map[string]string, string) {
	t.Helper()
	if err := postfixtest.Age(file); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("postmap", "-c", postfixDir(t), "-q", "-", kind.String()+":"+file)
	cmd.Stdin = strings.NewReader(strings.Join(keys, "\n") + "\n")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // 1 when no key is found
	got := map[string]string{}
	for line := range strings.Lines(out.String()) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		got[k] = v
	}
	return got, errs.String()
}

// madePostfixDir makes a configuration of our own, so that the tests do not
// depend on the machine's. TestMain takes it away.
var madePostfixDir = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "postern-table-"); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return dir, err
	}
	if err := postfixtest.WriteFile(filepath.Join(dir, "main.cf"), []byte("compatibility_level = 3.6\nmail_owner = postfix\nsmtputf8_enable = no\n"), 0o644); err != nil {
		return dir, err
	}
	// Where Debian lists pcre and other loadable table types.
	if data, err := os.ReadFile("/etc/postfix/dynamicmaps.cf"); err == nil {
		if err := os.WriteFile(filepath.Join(dir, "dynamicmaps.cf"), data, 0o644); err != nil {
			return dir, err
		}
	}
	err = os.CopyFS(filepath.Join(dir, "dynamicmaps.cf.d"), os.DirFS("/etc/postfix/dynamicmaps.cf.d"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return dir, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := madePostfixDir(); dir != "" {
		_ = os.RemoveAll(dir) // best effort
	}
	os.Exit(code)
}

func postfixDir(t *testing.T) string {
	t.Helper()
	dir, err := madePostfixDir()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func needPostmap(t *testing.T, kind Kind) {
	t.Helper()
	missing := func(what string) {
		if os.Getenv("CI") == "true" {
			t.Fatal(what)
		}
		t.Skip(what)
	}
	if _, err := exec.LookPath("postmap"); err != nil {
		missing("postmap is not installed: the comparison with Postfix is left out")
	}
	out, err := exec.Command("postconf", "-c", postfixDir(t), "-m").CombinedOutput()
	if err != nil || !strings.Contains("\n"+string(out), "\n"+kind.String()+"\n") {
		missing("Postfix here has no " + kind.String() + " tables: the comparison is left out")
	}
}

// compareWithPostfix makes tables until enough of them were taken by both
// sides, and demands equal answers. A table that Postfix complains of must be
// refused here; refusing more than Postfix does is allowed.
func compareWithPostfix(t *testing.T, kind Kind, want int, table func(*rand.Rand) string, key func(*rand.Rand) string) {
	needPostmap(t, kind)
	dir := t.TempDir()
	seed := uint64(20240607)
	if s := os.Getenv("POSTERN_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatalf("POSTERN_SEED=%q is not a number", s)
		}
	}
	rng := rand.New(rand.NewPCG(seed, uint64(kind)))
	taken, answers, refused := 0, 0, 0
	for i := 0; taken < want && i < 20*want; i++ {
		text := table(rng)
		tab, faults := Parse(kind, "t", []byte(text))
		if tab == nil {
			refused++
			if faults.Err() == nil {
				t.Fatalf("no table and no fault: %q", text)
			}
			continue
		}
		file := filepath.Join(dir, "t")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		// Postfix waits with a texthash that has just been written.
		if err := os.Chtimes(file, time.Time{}, time.Unix(1e9, 0)); err != nil {
			t.Fatal(err)
		}
		keys := make([]string, 40)
		for j := range keys {
			keys[j] = key(rng)
		}
		got, complaints := postmap(t, kind, file, keys)
		if complaints != "" {
			t.Errorf("Postfix complains, we do not:\n%s\n%s", text, complaints)
			continue
		}
		taken++
		for _, k := range keys {
			res, r := tab.Lookup(k)
			theirs, found := got[k]
			if found {
				answers++
			}
			if found != (r != nil) || res != theirs {
				t.Errorf("key %q: we say %q (%v), Postfix %q (%v), table:\n%s", k, res, r != nil, theirs, found, text)
			}
		}
	}
	t.Logf("%d tables, %d answers of %d keys, %d tables refused", taken, answers, taken*40, refused)
	if taken < want {
		t.Errorf("only %d of %d tables were taken", taken, want)
	}
	if answers < want {
		t.Errorf("only %d answers: the keys do not meet the tables", answers)
	}
}

func pick(r *rand.Rand, from ...string) string { return from[r.IntN(len(from))] }

func TestCIDRAsPostfix(t *testing.T) {
	t.Parallel()
	addr := func(r *rand.Rand) string {
		switch r.IntN(10) {
		case 0:
			return pick(r, "unknown", "mail.example.org", "192.0.2", "::ffff:192.0.2.1", "fe80::1%eth0", "[192.0.2.1]", "1.2.3.04", "192.0.2.256")
		case 1, 2, 3:
			return fmt.Sprintf("2001:db8:%x::%x", r.IntN(4), r.IntN(4))
		default:
			return fmt.Sprintf("192.0.%d.%d", r.IntN(4), r.IntN(8))
		}
	}
	pattern := func(r *rand.Rand) string {
		not := pick(r, "", "", "", "!", "!!", "! ")
		var a string
		if r.IntN(3) == 0 {
			bits := []int{0, 16, 32, 48, 64, 126, 128}[r.IntN(7)]
			a = fmt.Sprintf("2001:db8:%x::%x/%d", r.IntN(4), r.IntN(4), bits)
		} else {
			a = fmt.Sprintf("192.0.%d.%d/%d", r.IntN(4), r.IntN(8), []int{0, 8, 22, 23, 24, 29, 30, 31, 32}[r.IntN(9)])
		}
		if net, err := parseNetwork(a); err != nil { // mostly right it
			if at := strings.Index(err.Error(), "write "); at > 0 && r.IntN(20) > 0 {
				a = err.Error()[at+len("write "):]
			}
		} else if r.IntN(4) == 0 {
			a = net.Addr().String()
		}
		switch r.IntN(8) {
		case 0:
			a = "[" + a + "]"
		case 1:
			if host, bits, ok := strings.Cut(a, "/"); ok {
				a = "[" + host + "]/" + bits
			}
		}
		return not + a
	}
	table := func(r *rand.Rand) string {
		var b strings.Builder
		depth := 0
		n := 1 + r.IntN(40)
		for i := range n {
			switch k := r.IntN(12); {
			case k == 0:
				fmt.Fprintf(&b, "%s %s\n", pick(r, "if", "IF", "If"), pattern(r))
				depth++
			case k == 1 && depth > 0:
				fmt.Fprintf(&b, "%s\n", pick(r, "endif", "ENDIF"))
				depth--
			case k == 2:
				fmt.Fprintf(&b, "# comment\n\n   \n")
			case k == 3 && i > 0:
				fmt.Fprintf(&b, "%s\n  # in between\n\n\t continued $1 %d\n", pattern(r)+" result", i)
			default:
				fmt.Fprintf(&b, "%s%sresult %d\n", pattern(r), pick(r, " ", "\t", "   "), i)
			}
		}
		for ; depth > 0; depth-- {
			b.WriteString("endif\n")
		}
		return b.String()
	}
	compareWithPostfix(t, CIDR, 200, table, addr)
}

// textKey makes keys of few letters, so that patterns meet them.
func textKey(r *rand.Rand) string {
	if r.IntN(6) == 0 {
		return pick(r, "mail.example.org", "192.0.2.1", "user+ext@example.org", "Subject: buy now", "abc123", "a\\b", "foo[bar]", "a-b_c.d", "x\xe9y", "\xc9x")
	}
	var b strings.Builder
	for range 1 + r.IntN(7) {
		b.WriteString(pick(r, "a", "b", "c", "A", "B", "1", "_", "-", ".", "a", "b", "ab", " a", "]", "^", "\xe9"))
	}
	return strings.TrimSpace(b.String())
}

func rules(r *rand.Rand, kind Kind, pattern func(*rand.Rand, int) string, flags string) string {
	var b strings.Builder
	depth := 0
	delimited := func() string {
		d := pick(r, "/", "/", "/", "%")
		f := ""
		for range r.IntN(3) {
			f += pick(r, "", "", string(flags[r.IntN(len(flags))]))
		}
		return pick(r, "", "", "", "!", "! ! ", "!") + d + pattern(r, 3) + d + f
	}
	for i := range 1 + r.IntN(5) {
		switch k := r.IntN(14); {
		case k == 0:
			fmt.Fprintf(&b, "%s %s\n", pick(r, "if", "IF"), delimited())
			depth++
		case k == 1 && depth > 0:
			b.WriteString("endif\n")
			depth--
		case k == 2 && kind == Regexp:
			fmt.Fprintf(&b, "/%s/!/%s/ two %d\n", pattern(r, 2), pattern(r, 1), i)
		case k == 3:
			fmt.Fprintf(&b, "%s a\n# c\n  b %d\n", delimited(), i)
		default:
			fmt.Fprintf(&b, "%s%s\n", delimited(), pick(r, " R", " got <$1>", " got $(1)${2}.", " $$x $1", " plain"))
		}
	}
	for ; depth > 0; depth-- {
		b.WriteString("endif\n")
	}
	return b.String()
}

func TestRegexpAsPostfix(t *testing.T) {
	t.Parallel()
	var pattern func(r *rand.Rand, depth int) string
	pattern = func(r *rand.Rand, depth int) string {
		var b strings.Builder
		for range 1 + r.IntN(3) {
			switch k := r.IntN(24); {
			case k < 9 || depth == 0:
				b.WriteString(pick(r, "a", "b", "c", "ab", "A", "1", "_", ".", "-", "\\.", "\\/", "x"))
			case k < 12:
				b.WriteString("(" + pattern(r, depth-1) + ")")
			case k < 13:
				b.WriteString("(" + pattern(r, depth-1) + "|" + pattern(r, depth-1) + ")")
			case k < 17:
				b.WriteString(pick(r, "[ab]", "[^a]", "[a-c]", "[]a]", "[^]a]", "[a-]", "[[:alpha:]]", "[[:digit:]x]", "[\\.]", "[A-b]", "[A-z]",
					"[_-a]", "[[=a=]]", "[[.a.]-c]", "[[:lower:]]", "[[:upper:]]", "[^[:space:]]", "[b-", "[\xe0-\xef]", "[[:punct:]]", "[a\\]"))
			case k < 18:
				b.WriteString(pick(r, "^", "$"))
			case k < 19:
				b.WriteString(pick(r, "\\<", "\\>", "\\b", "\\B", "\\w", "\\W", "\\s", "\\S", "\\`", "\\'"))
			case k < 20:
				b.WriteString(pick(r, "\\1", "\\d", "\\n", "\\[", "\\(", "\\\\", "{", "\xe9"))
			default:
				b.WriteString(pick(r, "a", "b", ".", "[ab]", "("+pattern(r, depth-1)+")"))
				b.WriteString(pick(r, "*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "**", "+?", "{0}", "{2}{2}", "{", "{x}"))
			}
		}
		return b.String()
	}
	compareWithPostfix(t, Regexp, 220, func(r *rand.Rand) string { return rules(r, Regexp, pattern, "imx") }, textKey)
}

func TestBasicRegexpAsPostfix(t *testing.T) {
	t.Parallel()
	var pattern func(r *rand.Rand, depth int) string
	pattern = func(r *rand.Rand, depth int) string {
		var b strings.Builder
		for range 1 + r.IntN(3) {
			switch k := r.IntN(12); {
			case k < 6 || depth == 0:
				b.WriteString(pick(r, "a", "b", "c", "(", ")", "|", "+", "?", "{", "}", "^", "$", "[ab]", "."))
			case k < 8:
				b.WriteString("\\(" + pattern(r, depth-1) + "\\)")
			case k < 9:
				b.WriteString("\\(" + pattern(r, depth-1) + "\\|" + pattern(r, depth-1) + "\\)")
			default:
				b.WriteString(pick(r, "a", "b", ".") + pick(r, "*", "\\+", "\\?", "\\{2\\}", "\\{1,2\\}"))
			}
		}
		return b.String()
	}
	compareWithPostfix(t, Regexp, 60, func(r *rand.Rand) string {
		return fmt.Sprintf("/%s/x got\n/%s/x <$1>\n", pattern(r, 2), pattern(r, 2))
	}, textKey)
}

func TestPCREAsPostfix(t *testing.T) {
	t.Parallel()
	var pattern func(r *rand.Rand, depth int) string
	pattern = func(r *rand.Rand, depth int) string {
		var b strings.Builder
		for range 1 + r.IntN(3) {
			switch k := r.IntN(30); {
			case k < 9 || depth == 0:
				b.WriteString(pick(r, "a", "b", "c", "ab", "A", "1", "_", ".", "-", "\\.", "\\/", " ", "#", "\xe9"))
			case k < 12:
				b.WriteString("(" + pattern(r, depth-1) + ")")
			case k < 14:
				b.WriteString(pick(r, "(", "(?:") + pattern(r, depth-1) + "|" + pattern(r, depth-1) + ")")
			case k < 18:
				b.WriteString(pick(r, "[ab]", "[^a]", "[a-c]", "[]a]", "[^]a]", "[a-]", "[[:alpha:]]", "[[:digit:]x]", "[\\.]", "[A-z]", "[\\w.]", "[\\d-z]",
					"[_-a]", "[[:lower:]]", "[[:^upper:]]", "[^\\s]", "[\\x61-b]", "[b-", "[\xe0-\xef]", "[[:word:]]", "[\\-a]", "[[a]", "[\\b]", "[\\h\\t]"))
			case k < 19:
				b.WriteString(pick(r, "^", "$"))
			case k < 20:
				b.WriteString(pick(r, "\\b", "\\B", "\\w", "\\W", "\\s", "\\S", "\\d", "\\D", "\\A", "\\z", "\\Z", "\\h", "\\H", "\\v", "\\V", "\\N", "\\R"))
			case k < 22:
				b.WriteString(pick(r, "\\1", "\\2", "\\g1", "\\g{-1}", "\\x41", "\\x{61}", "\\141", "\\0", "\\o{141}", "\\Qa.b\\E", "\\e", "\\K", "\\[", "\\\\", "\\X", "\\i", "{", "{1", "{,2}", "\\cA"))
			case k < 24:
				b.WriteString(pick(r, "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:", "(?s-i:", "(?<n>", "(?P<m>", "(?'o'", "(?|", "(?R") + pattern(r, depth-1) + ")")
			case k < 25:
				b.WriteString(pick(r, "(?i)", "(?-i)", "(?x)", "(?#c)", "(?m)"))
			default:
				b.WriteString(pick(r, "a", "b", ".", "[ab]", "("+pattern(r, depth-1)+")"))
				b.WriteString(pick(r, "*", "+", "?", "{2}", "{1,2}", "{1,}", "*?", "+?", "??", "{1,2}?", "*+", "++", "?+", "{0}", "{1,2}+", "**"))
			}
		}
		return b.String()
	}
	compareWithPostfix(t, PCRE, 220, func(r *rand.Rand) string { return rules(r, PCRE, pattern, "imsxAEU") }, textKey)
}

func TestTexthashAsPostfix(t *testing.T) {
	t.Parallel()
	key := func(r *rand.Rand) string {
		return pick(r, "a@example.org", "A@Example.ORG", "example.org", "example.net", "user@", "<>", "192.0.2.1", "192.0.2",
			`"a b"@example.org`, `"a\" b"@example.org`, `a\ b@example.org`, `a"b`, `"a`, `"a b`, `a\"b`, `a\\`)
	}
	compareWithPostfix(t, Texthash, 30, func(r *rand.Rand) string {
		var b strings.Builder
		seen := map[string]bool{}
		for range 4 {
			k := key(r)
			if seen[strings.ToLower(k)] {
				continue
			}
			seen[strings.ToLower(k)] = true
			fmt.Fprintf(&b, "%s \t%s\n%s", k, pick(r, "OK", "REJECT $1 $$", "DUNNO  "), pick(r, "", "# c\n", "  more\n"))
		}
		return b.String()
	}, key)
}
