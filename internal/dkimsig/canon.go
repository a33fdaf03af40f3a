// Package dkimsig is what DKIM (RFC 6376, RFC 8463) and ARC (RFC 8617) have in
// common: canonical forms, what is hashed of a message, lists of tags, key
// records, and the signatures themselves. It asks nobody and keeps no body.
package dkimsig

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
	"strings"
)

// Canon is a canonicalization algorithm (RFC 6376 section 3.4).
type Canon uint8

// The algorithms.
const (
	Simple Canon = iota
	Relaxed
)

// String returns the name in c=.
func (c Canon) String() string {
	if c == Relaxed {
		return "relaxed"
	}
	return "simple"
}

var errCanon = errors.New("unknown canonicalization")

// ParseCanon reads the value of c=: the forms of the header and of the body.
// "" stands for "simple/simple", and without a second word the body is simple.
func ParseCanon(s string) (header, body Canon, err error) {
	h, b, two := strings.Cut(s, "/")
	if header, err = parseCanon(h); err == nil && two {
		body, err = parseCanon(b)
	}
	return header, body, err
}

func parseCanon(s string) (Canon, error) {
	switch strings.ToLower(s) {
	case "simple", "":
		return Simple, nil
	case "relaxed":
		return Relaxed, nil
	}
	return 0, errCanon
}

// AppendField appends the canonical form of a header field to dst, CRLF
// included. raw is the field as it was received, with CRLF line ends.
func AppendField(dst []byte, raw string, c Canon) []byte {
	if c == Simple {
		return append(dst, raw...)
	}
	name, value, _ := strings.Cut(raw, ":")
	for i := range len(name) {
		if b := name[i]; b != ' ' && b != '\t' {
			if 'A' <= b && b <= 'Z' {
				b += 'a' - 'A'
			}
			dst = append(dst, b)
		}
	}
	dst = append(dst, ':')
	space, first := false, true
	for i := 0; i < len(value); i++ {
		b := value[i]
		switch {
		case b == ' ' || b == '\t':
			space = true
		case b == '\r' && i+1 < len(value) && value[i+1] == '\n':
			i++ // folding, or the end
		default:
			if space && !first {
				dst = append(dst, ' ')
			}
			space, first = false, false
			dst = append(dst, b)
		}
	}
	return append(dst, '\r', '\n')
}

// Body hashes a body in its canonical form while it comes in. It is used by one
// goroutine.
type Body struct {
	canon  Canon
	sum    hash.Hash
	limit  int64 // bytes to hash, -1 for all
	length int64 // of the canonical form so far
	out    []byte

	cr    bool  // a CR that may be half of a line end
	lines int64 // line ends that count when something follows
	space bool  // relaxed: white space that counts when something follows
	some  bool  // anything but empty lines has come
}

// NewBody returns a hash of the first limit bytes of the canonical form of a
// body, with SHA-256; of all of it when limit is negative.
func NewBody(c Canon, limit int64) *Body {
	return &Body{canon: c, sum: sha256.New(), limit: limit, out: make([]byte, 0, 4096)}
}

// Write takes the next bytes, cut anywhere. A line feed alone ends a line, too.
func (b *Body) Write(p []byte) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			b.line(p, false)
			return
		}
		b.line(p[:end], true)
		p = p[end+1:]
	}
}

// line takes a piece of a line, whole with its end.
func (b *Body) line(p []byte, ends bool) {
	if b.cr && len(p) > 0 {
		b.text(cr) // it was none of a line end
	}
	if len(p) > 0 {
		b.cr = p[len(p)-1] == '\r'
	}
	if b.cr && len(p) > 0 {
		p = p[:len(p)-1]
	}
	if b.canon == Simple {
		b.text(p)
	} else {
		b.relaxed(p)
	}
	if ends {
		b.cr, b.space = false, false
		b.lines++
	}
}

// relaxed takes text of a line.
func (b *Body) relaxed(p []byte) {
	if bytes.IndexByte(p, '\t') < 0 && !bytes.Contains(p, twoSpaces) {
		if len(p) > 0 && p[0] == ' ' {
			b.space, p = true, p[1:]
		}
		if n := len(p); n > 0 {
			trailing := p[n-1] == ' '
			if trailing {
				p = p[:n-1]
			}
			b.text(p)
			b.space = trailing
		}
		return
	}
	for len(p) > 0 {
		n := 0
		for n < len(p) && (p[n] == ' ' || p[n] == '\t') {
			n++
		}
		b.space = b.space || n > 0
		p = p[n:]
		for n = 0; n < len(p) && p[n] != ' ' && p[n] != '\t'; n++ {
		}
		b.text(p[:n])
		p = p[n:]
	}
}

var twoSpaces = []byte("  ")

// text takes text that counts, and with it what has waited for that.
func (b *Body) text(p []byte) {
	if len(p) == 0 {
		return
	}
	b.some = true
	for ; b.lines > 0; b.lines-- {
		b.put(crlf)
	}
	if b.space {
		b.put(oneSpace)
		b.space = false
	}
	b.put(p)
}

var (
	cr       = []byte("\r")
	crlf     = []byte("\r\n")
	oneSpace = []byte(" ")
)

// put hashes a piece of the canonical form.
func (b *Body) put(p []byte) {
	hashed := p
	if b.limit >= 0 {
		hashed = p[:max(0, min(int64(len(p)), b.limit-b.length))]
	}
	b.length += int64(len(p))
	if len(hashed) > cap(b.out)-len(b.out) {
		b.flush()
	}
	if len(hashed) >= cap(b.out) {
		b.sum.Write(hashed) // a hash never fails
		return
	}
	b.out = append(b.out, hashed...)
}

func (b *Body) flush() {
	b.sum.Write(b.out) // a hash never fails
	b.out = b.out[:0]
}

// Sum ends the body and returns its hash. It is called once.
func (b *Body) Sum() (sum [sha256.Size]byte) {
	if b.cr {
		b.cr = false
		b.text(cr)
	}
	if b.some || b.canon == Simple {
		b.put(crlf)
	}
	b.flush()
	b.sum.Sum(sum[:0])
	return sum
}

// Length returns, after Sum, how many bytes the canonical form has.
func (b *Body) Length() int64 { return b.length }
