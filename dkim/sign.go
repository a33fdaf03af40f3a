package dkim

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/dkimsig"
	"postern/internal/mailaddr"
	"postern/policy"
)

// maxNamed is the most bytes of names in h=. A message may have any number of
// fields; those that are named are the last ones of their name.
const maxNamed = 16 << 10

// signedNames returns h=: of every field that is to be signed its name, as often
// as it is there, and once more for those of which none may be added.
func (c *Check) signedNames(fields []policy.Field) (names []string) {
	length := 0
	for i, pattern := range c.cfg.Headers {
		begin := len(names)
		first := func(name string) bool {
			return covers(pattern, name) && !slices.ContainsFunc(c.cfg.Headers[:i], func(p string) bool { return covers(p, name) })
		}
		for _, f := range fields {
			if !first(f.Name) || !policy.UsableName(f.Name) || strings.ContainsRune(f.Name, ';') {
				continue
			}
			name := f.Name
			if !strings.HasSuffix(pattern, "*") {
				name = pattern
			}
			if length += len(name); length > maxNamed {
				break
			}
			names = append(names, name)
		}
		// Fields of a name stand together.
		slices.SortStableFunc(names[begin:], func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
		for _, over := range c.cfg.Oversign {
			if first(over) {
				names = append(names, over)
			}
		}
	}
	return names
}

// lineLength is where the lines of a signature are folded.
const lineLength = 76

// folder writes a header field in lines.
type folder struct {
	b      strings.Builder
	column int
}

// word adds a piece that is not cut, on a new line when this one is full. With
// space there is a blank or a line end before it in any case.
func (f *folder) word(s string, space bool) {
	n := len(s)
	if space {
		n++
	}
	switch {
	case f.column+n > lineLength:
		f.b.WriteString("\r\n\t")
		f.column = 8
	case space:
		f.b.WriteByte(' ')
		f.column++
	}
	f.b.WriteString(s)
	f.column += len(s)
}

// text adds what can be cut anywhere.
func (f *folder) text(s string) {
	for s != "" {
		n := min(len(s), max(lineLength-f.column, 0))
		if n == 0 {
			f.b.WriteString("\r\n\t")
			f.column = 8
			continue
		}
		f.b.WriteString(s[:n])
		f.column += n
		s = s[n:]
	}
}

const fieldName = "DKIM-Signature"

// signature returns the value of a DKIM-Signature, lines joined by LF.
func (c *Check) signature(u *use, fields *dkimsig.Fields, names []string, body [sha256.Size]byte, now time.Time) (string, error) {
	f := folder{column: len(fieldName) + 1}
	f.b.WriteString(fieldName + ":")
	f.word("v=1;", true)
	f.word("a="+u.algorithm+"-sha256;", true)
	f.word("c="+c.header.String()+"/"+c.body.String()+";", true)
	f.word("d="+u.domain+";", true)
	f.word("s="+u.selector+";", true)
	if u.identity != "" {
		f.word("i="+u.identity+";", true)
	}
	f.word("t="+strconv.FormatInt(now.Unix(), 10)+";", true)
	if c.cfg.Expire > 0 {
		f.word("x="+strconv.FormatInt(now.Add(c.cfg.Expire.D()).Unix(), 10)+";", true)
	}
	for i, name := range names {
		end := ":"
		if i == len(names)-1 {
			end = ";"
		}
		if i == 0 {
			f.word("h="+name+end, true)
		} else {
			f.word(name+end, false)
		}
	}
	f.word("bh="+base64.StdEncoding.EncodeToString(body[:])+";", true)
	f.word("b=", true)
	sig, err := dkimsig.Sign(u.signer, fields.Hash(names, c.header, dkimsig.Field(f.b.String()+"\r\n")))
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	f.text(base64.StdEncoding.EncodeToString(sig))
	return strings.ReplaceAll(strings.TrimPrefix(f.b.String(), fieldName+":"), "\r\n", "\n"), nil
}

// candidate is a signature that may be one of ours.
type candidate struct {
	key          *key
	domain       string
	header, body dkimsig.Canon
	signed       []string
	bodyHash     []byte
	sig          []byte
	expires      int64
}

// candidate reads a signature, and reports whether one of our keys can have made
// it.
func (c *Check) candidate(f policy.Field) (s candidate, ok bool) {
	tags, err := dkimsig.ParseTags(strings.ReplaceAll(f.Value, "\n", "\r\n"))
	if err != nil {
		return s, false
	}
	s.domain = mailaddr.Domain(tags.Bare("d"))
	selector := mailaddr.Domain(tags.Bare("s"))
	i := slices.IndexFunc(c.ring.keys, func(k *key) bool {
		return k.selector == selector && (k.domain == s.domain || k.domain == "") && tags.Bare("a") == k.algorithm+"-sha256"
	})
	if i < 0 {
		return s, false
	}
	s.key = c.ring.keys[i]
	if _, partial := tags.Get("l"); partial {
		return s, false // not ours
	}
	if s.header, s.body, err = dkimsig.ParseCanon(tags.Bare("c")); err != nil {
		return s, false
	}
	s.signed = tags.List("h")
	if s.bodyHash, err = tags.Binary("bh"); err != nil {
		return s, false
	}
	if s.sig, err = tags.Binary("b"); err != nil {
		return s, false
	}
	s.expires, err = tags.Number("x")
	return s, err == nil && slices.ContainsFunc(s.signed, func(n string) bool { return strings.EqualFold(n, "From") })
}

// present returns, by domain and selector, which of our keys have signed the
// message as it is: it comes a second time.
func (c *Check) present(fields []policy.Field, all *dkimsig.Fields, sums *[2][sha256.Size]byte, bodies *[2]*dkimsig.Body, now time.Time) map[string]bool {
	var out map[string]bool
	n := 0
	for _, f := range fields {
		if !strings.EqualFold(f.Name, fieldName) {
			continue
		}
		if n++; n > maxCandidates {
			break
		}
		s, ok := c.candidate(f)
		if !ok || bodies[s.body] == nil || string(s.bodyHash) != string(sums[s.body][:]) || s.expires >= 0 && now.Unix() > s.expires {
			continue
		}
		own := dkimsig.Field(f.Name + ":" + strings.ReplaceAll(f.Value, "\n", "\r\n") + "\r\n")
		public := dkimsig.Key{Public: s.key.signer.Public()}
		if !public.Verify(all.Hash(s.signed, s.header, dkimsig.Unsigned(own)), s.sig) {
			continue
		}
		if out == nil {
			out = map[string]bool{}
		}
		out[s.domain+" "+s.key.selector] = true
	}
	return out
}
