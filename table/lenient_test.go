package table

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// With ParseLenient a table with mistakes answers as Postfix does, and there
// is a warning when Postfix has one.
func TestLenientAsPostfix(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Regexp, PCRE} {
		t.Run(kind.String(), func(t *testing.T) { lenientAsPostfix(t, kind) })
	}
}

func lenientAsPostfix(t *testing.T, kind Kind) {
	needPostmap(t, kind)
	rng := rand.New(rand.NewPCG(11, uint64(kind)))
	patterns := []string{
		"/a/", "/b/", "/c(b)?/", "!/a/", "/^ab/", "/(a)(b)/", "/[a/", "/(a/", "/a)/", "/*a/", "/a", "//", "/[z-a]/", "/[[:foo:]]/", "/a\\/", "abc", "!", "/B/i", "/a/q", "/b/X", "/a/!/b/",
		"/[[:digit:]]/", "/a{1,2}/", "/b{3,2}/", "%a%", "/1$/m",
	}
	results := []string{" R", " $1", " $2", " $x", " $$", "", " ${1}", " $", " two words", " $0"}
	line := func() string {
		switch rng.IntN(10) {
		case 0:
			return pick(rng, "if ", "IF ") + pick(rng, patterns...) + pick(rng, "", "", " more")
		case 1:
			return pick(rng, "endif", "ENDIF", "endif x")
		case 2:
			return "# comment"
		case 3:
			return " indented"
		}
		return pick(rng, patterns...) + pick(rng, results...)
	}
	dir := t.TempDir()
	taken, warned, skipped := 0, 0, 0
	for taken < 150 && skipped < 1000 {
		var b strings.Builder
		for range 1 + rng.IntN(7) {
			fmt.Fprintf(&b, "%s\n", line())
		}
		text := b.String()
		tab, warnings, faults := ParseLenient(kind, "t", []byte(text))
		if tab == nil {
			if len(faults) == 0 {
				t.Fatalf("no table and no fault: %q", text)
			}
			skipped++
			continue
		}
		taken++
		file := filepath.Join(dir, "t")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		keys := []string{"a", "b", "ab", "cb", "ba", "B", "1", "xyz", "a1", "c"}
		got, complaints := postmap(t, kind, file, keys)
		if complaints != "" {
			warned++
		}
		if (complaints == "") != (len(warnings) == 0) {
			t.Errorf("our warnings %v, Postfix's %q, table:\n%s", warnings, complaints, text)
		}
		for _, k := range keys {
			res, r := tab.Lookup(k)
			theirs, found := got[k]
			if found != (r != nil) || res != theirs {
				t.Errorf("key %q: we say %q (%v), Postfix %q (%v), table:\n%s", k, res, r != nil, theirs, found, text)
			}
		}
	}
	t.Logf("%d tables, %d with warnings, %d refused", taken, warned, skipped)
	if taken < 150 || warned < 75 {
		t.Errorf("only %d tables were taken, %d with warnings", taken, warned)
	}
}

// What Postfix may understand and we do not is a fault, lenient or not.
func TestLenientRefusesWhatIsNotKnown(t *testing.T) {
	for _, text := range []string{"/(?R)/ x\n", "/(*UTF)a/ x\n", "if /(?|a)/\n/b/ x\nendif\n"} {
		if tab, warnings, faults := ParseLenient(PCRE, "t", []byte(text)); tab != nil || len(faults) != 1 || len(warnings) > 0 {
			t.Errorf("%q: %v, warnings %v, faults %v", text, tab, warnings, faults)
		}
	}
}
