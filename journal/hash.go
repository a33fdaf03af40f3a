package journal

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"postern/policy"
)

// keyFile holds the key of hashed addresses, beside the segments.
const keyFile = "address.key"

const keySize = 32

// hasher puts a keyed hash in the place of the local parts of addresses.
// It is safe for concurrent use.
type hasher struct{ key []byte }

// readKey returns the hasher of a directory. The error is os.ErrNotExist when
// there is no key.
func readKey(dir string) (*hasher, error) {
	path := filepath.Join(dir, keyFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != keySize {
		return nil, fmt.Errorf("journal: %s holds no key of %d bytes in hexadecimal", path, keySize)
	}
	return &hasher{key}, nil
}

// makeKey is readKey, and makes a key when there is none.
func makeKey(dir string) (*hasher, error) {
	h, err := readKey(dir)
	if !errors.Is(err, os.ErrNotExist) {
		return h, err
	}
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // it never fails
	path := filepath.Join(dir, keyFile)
	// Whole or not at all: half a key would be a fault for ever.
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintln(f, hex.EncodeToString(key))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(path+".new"))
	}
	return &hasher{key}, os.Rename(path+".new", path)
}

var hashText = base32.StdEncoding.WithPadding(base32.NoPadding)

// hashMark begins what stands for a local part or a name.
const hashMark = "~"

// address returns what stands for an address: a hash of all of it, without
// regard to case, and its domain.
func (h *hasher) address(raw string) string {
	if raw == "" || raw == nullSender || isHash(raw) {
		return raw
	}
	m := hmac.New(sha256.New, h.key)
	_, _ = m.Write([]byte(strings.ToLower(raw))) // it never fails
	out := hashMark + strings.ToLower(hashText.EncodeToString(m.Sum(nil)[:10]))
	if at := strings.LastIndexByte(raw, '@'); at >= 0 {
		out += raw[at:]
	}
	return out
}

// isHash reports whether an address is hashed already.
func isHash(raw string) bool {
	rest, ok := strings.CutPrefix(raw, hashMark)
	if local, _, found := strings.Cut(rest, "@"); found {
		rest = local
	}
	if !ok || len(rest) != 16 {
		return false
	}
	_, err := hashText.DecodeString(strings.ToUpper(rest))
	return err == nil
}

// addressLike finds what looks like an address in a text for people.
var addressLike = regexp.MustCompile(`[^\s<>"'(),;:\[\]{}=|@/]+@[^\s<>"'(),;:\[\]{}=|@/]*[^\s<>"'(),;:\[\]{}=|@/.]`)

// text replaces addresses in a text for people: those given, wherever they
// stand, and what looks like one.
func (h *hasher) text(s string, known []string) string {
	if s == "" {
		return s
	}
	for _, raw := range known {
		s = replaceFold(s, raw, h.address(raw))
	}
	if strings.IndexByte(s, '@') < 0 {
		return s
	}
	return addressLike.ReplaceAllStringFunc(s, h.address)
}

// replaceFold replaces every occurrence of old, whatever its case. A name
// without @ must stand as a word.
func replaceFold(s, old, with string) string {
	if old == "" || len(s) < len(old) {
		return s
	}
	word := !strings.Contains(old, "@")
	var b strings.Builder
	for i := 0; i < len(s); {
		end := i + len(old)
		if end <= len(s) && strings.EqualFold(s[i:end], old) && !(word && (i > 0 && inWord(s[i-1]) || end < len(s) && inWord(s[end]))) {
			b.WriteString(with)
			i += len(old)
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}

func inWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c >= 0x80
}

// conceal returns a copy of a record without addresses in plain.
func (h *hasher) conceal(r *Record) *Record {
	var known []string
	for _, raw := range []string{r.Sender, r.Recipient, r.Login, r.SASLSender} {
		if raw != "" && raw != nullSender {
			known = append(known, raw)
		}
	}
	text := func(s string) string { return h.text(s, known) }
	headers := func(in []policy.Header) []policy.Header {
		out := make([]policy.Header, 0, len(in))
		for _, f := range in {
			out = append(out, policy.Header{Name: f.Name, Value: text(f.Value)})
		}
		return out
	}
	verdict := func(v *policy.Verdict) {
		v.Detail, v.Arg, v.Reply.Text = text(v.Detail), text(v.Arg), text(v.Reply.Text)
		if len(v.Add) > 0 {
			v.Add = headers(v.Add)
		}
	}
	c := r.clone()
	c.Sender, c.Recipient, c.Login = h.address(r.Sender), h.address(r.Recipient), h.address(r.Login)
	c.SASLSender, c.Helo, c.ETRNDomain = h.address(r.SASLSender), text(r.Helo), text(r.ETRNDomain)
	c.Name, c.ReverseName = text(r.Name), text(r.ReverseName)
	c.OnTop = headers(r.OnTop)
	if t := c.TLS; t != nil {
		t.CertSubject, t.CertIssuer, t.SNI = text(t.CertSubject), text(t.CertIssuer), text(t.SNI)
	}
	f := &c.Facts
	f.Auth.Results, f.Auth.Summary = text(f.Auth.Results), text(f.Auth.Summary)
	for i := range f.Listings {
		f.Listings[i].What = text(f.Listings[i].What)
	}
	for i := range f.Missing {
		f.Missing[i] = text(f.Missing[i])
	}
	d := c.Decision
	verdict(&d.Verdict)
	verdict(&d.Would)
	d.Headers = headers(d.Headers)
	for i := range d.Steps {
		s := &d.Steps[i]
		verdict(&s.Verdict)
		s.Error = text(s.Error)
		s.Notes = append([]policy.Note(nil), s.Notes...)
		for j := range s.Notes {
			s.Notes[j].What, s.Notes[j].Value = text(s.Notes[j].What), text(s.Notes[j].Value)
		}
	}
	return c
}
