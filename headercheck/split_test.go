package headercheck

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/postfixtest"
)

var testLimits = splitLimits{header: 60000, line: 2048, nesting: 100, boundary: 2048}

// splitAll returns what a splitter makes of a message, one entry a call.
func splitAll(limits splitLimits, message []byte, cuts func(n int) int) (heads, bodies, all []string) {
	s := &splitter{splitLimits: limits, keepRaw: true, rawLimit: 1 << 30}
	s.head = func(c class, text, raw []byte) {
		heads = append(heads, string(text))
		all = append(all, fmt.Sprintf("head %d %q %q", c, text, raw))
	}
	s.body = func(rec record, text []byte, offset int) {
		bodies = append(bodies, string(text))
		all = append(all, fmt.Sprintf("body %d %d %q", rec, offset, text))
	}
	for len(message) > 0 {
		n := len(message)
		if cuts != nil {
			n = min(max(cuts(n), 1), n)
		}
		s.write(message[:n])
		message = message[n:]
	}
	s.finish()
	all = append(all, fmt.Sprint("deep ", s.tooDeep))
	return heads, bodies, all
}

func pick(r *rand.Rand, from ...string) string { return from[r.IntN(len(from))] }

// randomMessage makes messages that lead a MIME parser astray.
func randomMessage(r *rand.Rand) string {
	var b strings.Builder
	multi := func() string {
		return "Content-Type: " + pick(r, "multipart/mixed", "multipart/digest", "MULTIPART / Mixed", "multipart") + pick(r, "; boundary=b", "; boundary=bb", ";\n\tboundary=\"b\"; boundary=c") + "\n"
	}
	switch r.IntN(8) {
	case 0:
	case 1:
		b.WriteString("Subject: a\nContent-Type: message/rfc822\n\n")
	default:
		b.WriteString("Subject: a\n" + multi() + pick(r, "", "Content-Type: application/x\n", "X: y\n") + "\n--" + pick(r, "b", "bb") + "\n")
	}
	for range 2 + r.IntN(14) {
		if r.IntN(5) == 0 {
			b.WriteString(multi() + pick(r, "\n", "\n", "") + "--" + pick(r, "b", "bb", "c") + "\n")
		}
		switch r.IntN(16) {
		case 0:
			b.WriteString("Content-Type: " + pick(r, "multipart/mixed", "multipart/digest", "MULTIPART / Mixed", "multipart") +
				pick(r, "; boundary=b", "; boundary=\"b\"", ";\n boundary=bb", "; x=y; BOUNDARY = \"b\\b\"; boundary=c", "; boundary=\"\"", "; boundary", "; boundary=(c)b", "; boundary==", "; boundary=\"b\n c\"", ";boundary:b") + "\n")
		case 1:
			b.WriteString("Content-Type: " + pick(r, "message/rfc822", "message/global", "message/partial", "message/x", "text/plain", "application/pdf", "(c) message/rfc822", "\"message\"/rfc822",
				"message", "message/rfc822; x", "", ";", "text", "image/png; name=\"a:b\"", "message /rfc822", "message(c)/rfc822", "(") + "\n")
		case 2:
			b.WriteString(pick(r, "Subject: x\n", "X-A : y\n", "X:z\n", "a b: c\n", ": d\n", "X-Long:\n", "Content-Transfer-Encoding: base64\n", "8bit\xe9: x\n", "Name\t:\tv\n"))
		case 3:
			b.WriteString(pick(r, " folded\n", "\tmore\n", " \n"))
		case 4, 5, 6:
			b.WriteString("\n")
		case 7, 8, 9:
			b.WriteString("--" + pick(r, "b", "bb", "c", "", "b--", "bb--", "c--", "--", "b cruft", "b--x", "d", "=", "b c") + "\n")
		case 10:
			b.WriteString(pick(r, "text\n", "--\n", "-b\n", "- -b\n", "From: no\n", "begin\n"))
		default:
			b.WriteString(pick(r, "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: message/rfc822\n\nX: y\n\nbody\n--b--\n",
				"Content-Type: multipart/digest; boundary=bb\n\n--bb\n\nSubject: inner\n\nline\n", "line\n", "Subject: s\n", "\n--b\n", "\n--bb\nX: part\n\n", "A: b\n"))
		}
	}
	return b.String()
}

func needPostmap(t *testing.T) string {
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
	dir := t.TempDir()
	if err := postfixtest.WriteFile(filepath.Join(dir, "main.cf"), []byte("compatibility_level = 3.6\nmail_owner = postfix\nsmtputf8_enable = no\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile("/etc/postfix/dynamicmaps.cf"); err == nil {
		if err := os.WriteFile(filepath.Join(dir, "dynamicmaps.cf"), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "dynamicmaps.cf.d"), os.DirFS("/etc/postfix/dynamicmaps.cf.d")); err != nil && !os.IsNotExist(err) {
		t.Log(err)
	}
	out, err := exec.Command("postconf", "-c", dir, "-m").CombinedOutput()
	if err != nil || !strings.Contains("\n"+string(out), "\npcre\n") {
		missing("Postfix here has no pcre tables: the comparison is left out")
	}
	return dir
}

func postmap(t *testing.T, dir, mode, table string, message string) string {
	t.Helper()
	cmd := exec.Command("postmap", "-c", dir, "-q", "-", mode, table)
	cmd.Stdin = strings.NewReader(message)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // 1 when nothing is found
	if errs.Len() > 0 {
		t.Errorf("postmap: %s", &errs)
	}
	return out.String()
}

// Headers and body lines are told apart as Postfix does.
func TestSplitAsPostfix(t *testing.T) {
	t.Parallel()
	dir := needPostmap(t)
	table := filepath.Join(dir, "all.pcre")
	if err := os.WriteFile(table, []byte("/^/ @@END@@\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 14))
	limits := testLimits
	limits.header, limits.line = 102400, 1<<20 // as postmap has it
	heads, bodies, nests := 0, 0, 0
	for range 220 {
		text := randomMessage(rng)
		h, b, all := splitAll(limits, []byte(text), nil)
		show := func(s []string) string {
			if len(s) == 0 {
				return ""
			}
			return strings.Join(s, "\t@@END@@\n") + "\t@@END@@\n"
		}
		if got := postmap(t, dir, "-hmf", "pcre:"+table, text); got != show(h) {
			t.Errorf("message %q:\nheaders      %q\nfor Postfix %q", text, show(h), got)
		}
		if got := postmap(t, dir, "-bmf", "pcre:"+table, text); got != show(b) {
			t.Errorf("message %q:\nbody         %q\nfor Postfix %q", text, show(b), got)
		}
		heads, bodies = heads+len(h), bodies+len(b)
		for _, s := range all {
			if strings.HasPrefix(s, "head 2") {
				nests++
			}
		}
	}
	t.Logf("%d headers, %d of attached messages, %d body lines", heads, nests, bodies)
	if nests < 50 {
		t.Errorf("only %d headers of attached messages", nests)
	}
}
