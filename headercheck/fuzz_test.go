package headercheck

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"postern/policy"
)

// Whatever a message holds, the splitter gives every byte to one call, and the
// same calls however the message is cut.
func FuzzSplit(f *testing.F) {
	f.Add([]byte(strings.ReplaceAll(mixed, "\n", "\r\n")), uint64(1))
	f.Add([]byte("Subject: a\r\n b\r\n\r\nbody\r\r\n"+strings.Repeat("x", 5000)+"\r\n--"), uint64(2))
	f.Add([]byte("Content-Type: multipart/digest; boundary=\"a\\\"b\"; boundary=(c (d)) e\n\n--a\"b\n\n--e--\n"), uint64(3))
	f.Add([]byte("Content-Type: message/rfc822\n\nContent-Type: message/global\n\nX : y\n: z\n"), uint64(4))
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range uint64(20) {
		f.Add([]byte(randomMessage(rng)), i)
	}
	f.Fuzz(func(t *testing.T, message []byte, seed uint64) {
		limits := splitLimits{header: 3000, line: 600, nesting: 5, boundary: 40}
		heads, bodies, all := splitAll(limits, message, nil)
		rng := rand.New(rand.NewPCG(seed, 0))
		_, _, again := splitAll(limits, message, func(n int) int { return 1 + rng.IntN(min(n, 1+rng.IntN(1500))) })
		if diff := cmp.Diff(all, again); diff != "" {
			t.Errorf("cut otherwise: %s", diff)
		}
		for _, h := range heads {
			if len(h) > limits.header+limits.line+1 || headerName([]byte(h)) == 0 || strings.HasSuffix(h, "\n") {
				t.Errorf("header of %d bytes: %.100q", len(h), h)
			}
		}
		n := 0
		for _, b := range bodies {
			if n += len(b); len(b) > limits.line || strings.Contains(b, "\n") {
				t.Errorf("body line of %d bytes: %.100q", len(b), b)
			}
		}
		if n > len(message) {
			t.Errorf("%d bytes of body from a message of %d", n, len(message))
		}
	})
}

// The judgement does not depend on how the body is cut, and a body that no
// rule changes is not replaced; one that is keeps all that no rule is about.
func FuzzInspection(f *testing.F) {
	f.Add([]byte(mixed), uint64(1))
	f.Add([]byte("Subject: word\n\nneedle\n\r\nword\n"+strings.Repeat("needle ", 700)), uint64(2))
	rng := rand.New(rand.NewPCG(6, 6))
	for i := range uint64(20) {
		f.Add(randomMail(rng), i)
	}
	c := DefaultConfig()
	c.BodyLimit, c.MaxBodyEdit = 5000, 20000
	dir := f.TempDir()
	for i, text := range []string{
		"/^Subject:(.*)/ PREPEND X-Subject:$1\n/needle/ STRIP\n/^X-(.)/ REPLACE Y: $1\n/discard/ DISCARD\n",
		"/^--/ DUNNO\n/needle (.*)/ REPLACE $1\n/^word/ IGNORE\n/alpha/ PREPEND beta\n/hold/ HOLD\n",
	} {
		path := filepath.Join(dir, fmt.Sprint("t", i))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			f.Fatal(err)
		}
		c.Checks = append(c.Checks, TableConfig{Table: "pcre:" + path, Kind: []Kind{Header, Body}[i]})
	}
	check, err := New(c, zap.NewNop(), nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, message []byte, seed uint64) {
		fields, body := cutFields(toCRLF(message))
		judge := func(cut func(n int) int) policy.Judgement {
			m := check.Inspect(&policy.Request{}, nil)
			for _, f := range fields {
				m.Header(f)
			}
			m.EndOfHeaders()
			rest := body
			for more := true; more && len(rest) > 0; {
				n := min(max(cut(len(rest)), 1), len(rest))
				chunk := bytes.Clone(rest[:n])
				more = m.Body(chunk)
				clear(chunk) // it keeps nothing
				rest = rest[n:]
			}
			j, err := m.End(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return j
		}
		one := judge(func(n int) int { return n })
		rng := rand.New(rand.NewPCG(seed, 0))
		if diff := cmp.Diff(one, judge(func(n int) int { return 1 + rng.IntN(min(n, 3000)) })); diff != "" {
			t.Errorf("cut otherwise: %s", diff)
		}
		if n := check.held.Load(); n != 0 {
			t.Errorf("%d bytes are still counted", n)
		}
		for _, e := range one.Edits {
			if e.At < 0 || e.At > len(fields) {
				t.Errorf("edit %+v of %d fields", e, len(fields))
			}
			if strings.ContainsAny(e.Name+e.Value+e.Arg, "\r\x00") || strings.Contains(strings.NewReplacer("\n ", "", "\n\t", "").Replace(e.Value), "\n") {
				t.Errorf("edit %+v breaks the header", e)
			}
			if e.Kind == policy.ReplaceBody {
				lone := strings.ReplaceAll(string(e.Body), "\r\n", "")
				if strings.Contains(lone, "\n") {
					t.Errorf("line ends are not all CRLF: %q", e.Body)
				}
				if bytes.Equal(e.Body, body) && len(body) > 0 {
					t.Log("replaced by itself") // a rule may say so
				}
			}
		}
	})
}

// Results are read, checked and shown without harm, and what passes the
// strict reading has its effect.
func FuzzResult(f *testing.F) {
	for _, s := range []string{
		"REJECT 5.7.1 no", "reject", "PREPEND X: y", "REPLACE\tX : y", "REDIRECT a@b", "BCC a@b", "FILTER x:y", "SHADOW SHADOW HOLD", "", " ", "4.7.1", "REJECT 4.7.1", "REJECT 2.1.1 \xff", "$1 x", "IGNORE \n",
	} {
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, result string, dynamic bool) {
		p := parseResult(result)
		for k := Header; k <= Body; k++ {
			strict, loose := p.strictly(k, false), p.usable(k)
			if strict == nil && loose != nil {
				t.Errorf("%q: taken strictly, and %v", result, loose)
			}
			_ = p.strictly(k, dynamic)
			if loose == nil && k != Body && (p.act == actPrepend || p.act == actReplace) {
				if name, value := asField(p.arg); name == "" || strings.ContainsAny(name, " \t:\r\n") || strings.HasSuffix(value, "\n") || strings.ContainsAny(value, "\r\x00") {
					t.Errorf("%q becomes %q: %q", result, name, value)
				}
			}
		}
		r := rejectReply(p.arg)
		if r.Code != 550 && r.Code != 451 || r.Text == "" || len(r.Text) > policy.MaxReplyText || !hasStatus(r.Enhanced) || r.Enhanced[0] != byte('0'+r.Code/100) {
			t.Errorf("%q: %+v", result, r)
		}
		if strings.ContainsFunc(r.Text+shown(p.arg), func(c rune) bool { return c < ' ' || c > '~' }) {
			t.Errorf("%q: %q", result, r.Text)
		}
	})
}

// Decoding ends, and gives text without control characters that were not there.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"Subject: =?utf-8?q?a=0Ab?= =?koi8-r?B?0NLJ?=", "Content-Type: x/y; name*0*=utf-8''%0a; name*1=\"b", "Content-Disposition: a; filename*=x'y", "X: =?=?=?=", "Subject: =?utf-7?q?+AGE-?=",
		"Content-Type: x; a*0=b; a*0=c; a*999=d; a*=e", "Subject: =?iso-2022-jp?B?GyRCJCIbKEI=?=",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 10000 {
			return
		}
		got := decodeHeader(s)
		if strings.ContainsAny(got, "\r\n") {
			t.Errorf("%q: %q", s, got)
		}
		if len(got) > 8*len(s)+100 {
			t.Errorf("%d bytes became %d", len(s), len(got))
		}
	})
}
