package dkimsig

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The examples of RFC 6376 section 3.4.5, and what it says of empty bodies.
func TestCanonicalForms(t *testing.T) {
	for _, tt := range []struct {
		c         Canon
		in, field string
	}{
		{Relaxed, "A: X\r\n", "a:X\r\n"},
		{Relaxed, "B : Y\t\r\n\tZ  \r\n", "b:Y Z\r\n"},
		{Simple, "B : Y\t\r\n\tZ  \r\n", "B : Y\t\r\n\tZ  \r\n"},
		{Relaxed, "Subject:\r\n folded  at \tonce\r\n", "subject:folded at once\r\n"},
		{Relaxed, "Subject:\r\n", "subject:\r\n"},
		{Relaxed, "Subject: a\rb \r c\r\n", "subject:a\rb \r c\r\n"},
		{Relaxed, "Subject: gr\xfc\xdf\xa0e \xc2\xa0\r\n", "subject:gr\xfc\xdf\xa0e \xc2\xa0\r\n"},
	} {
		if got := string(AppendField(nil, tt.in, tt.c)); got != tt.field {
			t.Errorf("%v %q: %q", tt.c, tt.in, got)
		}
	}
	for _, tt := range []struct{ in, simple, relaxed string }{
		{" C \r\nD \t E\r\n\r\n\r\n", " C \r\nD \t E\r\n", " C\r\nD E\r\n"},
		{"", "\r\n", ""},
		{"\r\n\r\n", "\r\n", ""},
		{" \r\n\t\r\n", " \r\n\t\r\n", ""},
		{"a", "a\r\n", "a\r\n"},
		{"a \t b  \r\n\r\n \r\nc\t", "a \t b  \r\n\r\n \r\nc\t\r\n", "a b\r\n\r\n\r\nc\r\n"},
		{"a\r", "a\r\r\n", "a\r\r\n"},
		{"a\rb\r\r\n", "a\rb\r\r\n", "a\rb\r\r\n"},
		{"a \r\r\n", "a \r\r\n", "a \r\r\n"},
		{"a\nb\n", "a\r\nb\r\n", "a\r\nb\r\n"},
		{".\r\n..\r\n", ".\r\n..\r\n", ".\r\n..\r\n"},
		{strings.Repeat("x", 5000) + " \r\n", strings.Repeat("x", 5000) + " \r\n", strings.Repeat("x", 5000) + "\r\n"},
	} {
		for c, want := range map[Canon]string{Simple: tt.simple, Relaxed: tt.relaxed} {
			b := NewBody(c, -1)
			b.Write([]byte(tt.in))
			if sum := b.Sum(); sum != sha256.Sum256([]byte(want)) || b.Length() != int64(len(want)) {
				t.Errorf("%v %q: %d bytes, want %q", c, tt.in, b.Length(), want)
			}
		}
	}
}

var (
	trailing = regexp.MustCompile(`[ \t]+\r\n`)
	inside   = regexp.MustCompile(`[ \t]+`)
)

// naive is a canonical form as RFC 6376 section 3.4.3 and 3.4.4 describe it.
func naive(body string, c Canon) string {
	body = strings.ReplaceAll(strings.ReplaceAll(body, "\r\n", "\n"), "\n", "\r\n")
	if body != "" && !strings.HasSuffix(body, "\r\n") {
		body += "\r\n"
	}
	if c == Relaxed {
		body = inside.ReplaceAllString(trailing.ReplaceAllString(body, "\r\n"), " ")
	}
	for strings.HasSuffix(body, "\r\n\r\n") {
		body = body[:len(body)-2]
	}
	if body == "\r\n" && c == Relaxed {
		return ""
	}
	if body == "" && c == Simple {
		return "\r\n"
	}
	return body
}

// However a body is made and cut, its hash is that of its canonical form, and
// a limit cuts that.
func TestBodyInPieces(t *testing.T) {
	pieces := []string{"a", "bc ", " ", "\t", "\r\n", "\n", "\r", "\r\n\r\n", "  ", "x y", strings.Repeat("long ", 1000), "ü"}
	rapid.Check(t, func(rt *rapid.T) {
		text := strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 30).Draw(rt, "pieces"), "")
		c := Canon(rapid.IntRange(0, 1).Draw(rt, "form"))
		want := naive(text, c)
		limit := rapid.IntRange(-1, len(want)+2).Draw(rt, "limit")
		b := NewBody(c, int64(limit))
		for rest := text; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(rt, "cut")
			b.Write([]byte(rest[:n]))
			rest = rest[n:]
		}
		cut := want
		if limit >= 0 {
			cut = want[:min(limit, len(want))]
		}
		if sum := b.Sum(); sum != sha256.Sum256([]byte(cut)) || b.Length() != int64(len(want)) {
			rt.Fatalf("%v of %q: length %d, want %q", c, text, b.Length(), want)
		}
	})
}

func TestFields(t *testing.T) {
	f := NewFields("From: a\r\nTo: 1\r\n x\r\nto : 2\r\nTO:\r\nX\r\n")
	if n := f.Count("tO"); n != 3 || f.Count("x") != 1 || f.Count("y") != 0 {
		t.Errorf("%d", n)
	}
	if to := f.Named("to"); to[0] != "To: 1\r\n x\r\n" || to[0].Value() != " 1\r\n x" || to[1].Name() != "to" || to[2].Value() != "" {
		t.Errorf("%q", to)
	}
	own := Field("DKIM-Signature: b=\r\n")
	for _, tt := range []struct {
		names []string
		c     Canon
		want  string
	}{
		{[]string{"From"}, Simple, "From: a\r\nDKIM-Signature: b="},
		{[]string{"to", "from", "To"}, Relaxed, "to:\r\nfrom:a\r\nto:2\r\ndkim-signature:b="},
		{[]string{"TO", "to", "to", "to", "Cc", "FROM", "from"}, Simple, "TO:\r\nto : 2\r\nTo: 1\r\n x\r\nFrom: a\r\nDKIM-Signature: b="},
	} {
		if got := f.Hash(tt.names, tt.c, own); got != sha256.Sum256([]byte(tt.want)) {
			t.Errorf("%v: not the hash of %q", tt.names, tt.want)
		}
	}
	if got := HashSeal([]Field{"A:  1\r\n", "B: 2\r\n"}, "ARC-Seal: b=\r\n"); got != sha256.Sum256([]byte("a:1\r\nb:2\r\narc-seal:b=")) {
		t.Error("a seal")
	}
}

func TestUnsigned(t *testing.T) {
	for in, want := range map[string]string{
		"S: a=1; b=xyz; c=2\r\n":          "S: a=1; b=; c=2\r\n",
		"S: a=1; b=xyz\r\n":               "S: a=1; b=\r\n",
		"S: b=x\r\n y\r\n z;\r\n":         "S: b=;\r\n",
		"S: bh=b=1; b \r\n = x\r\n z\r\n": "S: bh=b=1; b \r\n =\r\n",
		"S: bh=1; bb=2\r\n":               "S: bh=1; bb=2\r\n",
		"S\r\n":                           "S\r\n",
		"S: b=":                           "S: b=",
		"":                                "",
	} {
		if got := Unsigned(Field(in)); string(got) != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestTags(t *testing.T) {
	tags, err := ParseTags(" a = 1 ;\r\n\tb=x y\r\n z; h=From : To:\r\n Subject;n=42;big=99999999999999999999; empty=; ")
	if err != nil {
		t.Fatal(err)
	}
	n, _ := tags.Number("n")
	big, _ := tags.Number("big")
	none, _ := tags.Number("none")
	if tags.Bare("b") != "xyz" || n != 42 || big != 1<<63-1 || none != -1 || strings.Join(tags.List("h"), ",") != "From,To,Subject" || tags.List("none") != nil {
		t.Errorf("%+v", tags)
	}
	if v, ok := tags.Get("empty"); v != "" || !ok {
		t.Error("an empty one is one")
	}
	if tags, err = ParseTags("z=1; Z=2; A0_9=3;"); err != nil || tags.Bare("z")+tags.Bare("Z")+tags.Bare("A0_9") != "123" {
		t.Errorf("%+v %v", tags, err)
	}
	for _, bad := range []string{"a-b=1", "a{=1", "a`=1", "a@=1", "a/=1", "a:=1", "_a=1", "{=1", "a=1; a=2", "x", "a=1; x", "=1", "1a=2", "a b=1", ";a=1", "a=1;;b=2", strings.Repeat("aA", 1) + "=1;" + "ä=2"} {
		if _, err := ParseTags(bad); err == nil {
			t.Errorf("%q is a list", bad)
		}
	}
	many := ""
	for i := range 65 {
		many += strings.Repeat("x", i+1) + "=;"
	}
	if _, err := ParseTags(many); err == nil {
		t.Error("65 tags")
	}
	for _, bad := range []string{"n=", "n=-1", "n=1.5", "n=" + strings.Repeat("9", 77)} {
		tags, _ := ParseTags(bad)
		if _, err := tags.Number("n"); err == nil {
			t.Errorf("%q is a number", bad)
		}
	}
	for _, bad := range []string{"n=", "n=A", "n=A*AA"} {
		tags, _ := ParseTags(bad)
		if _, err := tags.Binary("n"); err == nil {
			t.Errorf("%q is base64", bad)
		}
	}
}

func TestParseCanon(t *testing.T) {
	for in, want := range map[string][2]Canon{
		"": {}, "simple": {}, "relaxed": {Relaxed, Simple}, "relaxed/relaxed": {Relaxed, Relaxed}, "Simple/RELAXED": {Simple, Relaxed},
	} {
		if h, b, err := ParseCanon(in); err != nil || h != want[0] || b != want[1] {
			t.Errorf("%q: %v %v %v", in, h, b, err)
		}
	}
	for _, bad := range []string{"nofws", "simple/nofws", "relaxed/relaxed/relaxed"} {
		if _, _, err := ParseCanon(bad); err == nil {
			t.Errorf("%q", bad)
		}
	}
}

func TestKeys(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("x"))
	for _, record := range []string{
		"p=" + base64.StdEncoding.EncodeToString(pkix),
		"v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(x509.MarshalPKCS1PublicKey(&private.PublicKey)) + ";",
	} {
		key, err := ParseKey(record)
		if err != nil || key.Bits() != 1024 || key.Algorithm() != "rsa" {
			t.Fatalf("%+v %v", key, err)
		}
		sig, err := Sign(private, sum)
		if err != nil || !key.Verify(sum, sig) || key.Verify(sha256.Sum256([]byte("y")), sig) {
			t.Error("a signature by RSA")
		}
	}
	key, err := ParseKey("v=DKIM1; k=Ed25519; p=" + base64.StdEncoding.EncodeToString(other.Public().(ed25519.PublicKey)))
	if err != nil || key.Bits() != 0 || key.Algorithm() != "ed25519" {
		t.Fatalf("%+v %v", key, err)
	}
	sig, err := Sign(other, sum)
	if err != nil || !key.Verify(sum, sig) || key.Verify(sha256.Sum256([]byte("y")), sig) || key.Verify(sum, sig[1:]) {
		t.Error("a signature by Ed25519")
	}
	for record, want := range map[string]string{
		"":                          "it is no key record: there is no p=",
		"hello":                     "it is no key record: the list of tags is malformed",
		"v=DKIM2; p=AAAA":           "it is no key record: v= is not DKIM1",
		"k=rsa; v=DKIM1; p=AAAA":    "it is no key record: v= is not DKIM1",
		"v=DKIM1; p=":               "the key is revoked",
		"v=DKIM1; p=%":              "the key record is malformed: p= is no base64",
		"v=DKIM1; p=AAAA":           "the key record is malformed: p= is no RSA key",
		"v=DKIM1; k=ed25519;p=AAAA": "the key record is malformed: an Ed25519 key has 32 bytes",
		"v=DKIM1; k=dsa; p=AAAA":    "the key is of an unknown kind (k=)",
		"v=DKIM1; p=" + base64.StdEncoding.EncodeToString(make([]byte, 48_000)): "the RSA key is too long",
	} {
		if _, err := ParseKey(record); err == nil || err.Error() != want {
			t.Errorf("%.40q: %v", record, err)
		}
	}
	if _, err := ParseKey("v=DKIM1; p="); !errors.Is(err, ErrRevoked) {
		t.Error(err)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("v=DKIM1; k=rsa; h=sha256; t=y:s; s=email; p=AAAA")
	f.Fuzz(func(t *testing.T, record string) {
		if k, err := ParseKey(record); err == nil && k.Verify(sha256.Sum256(nil), []byte(record)) {
			t.Fatal("the record is a signature")
		}
	})
}

func BenchmarkBody(b *testing.B) {
	text := []byte(strings.Repeat("Dear Bob, this is a line as they stand in letters of this kind.\r\n", 150))
	for _, c := range []Canon{Simple, Relaxed} {
		b.Run(c.String(), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				h := NewBody(c, -1)
				h.Write(text)
				h.Sum()
			}
		})
	}
	b.Run("bare SHA-256", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			sha256.Sum256(text)
		}
	})
}
