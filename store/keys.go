package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"postern/greylist"
)

// Kinds of greylist records, the first byte of their keys.
const (
	TripletKey = 't'
	CreditKey  = 'k'
	// Earlier versions had these: what a client had earned by its name alone,
	// and who waited. They are not read, and go when their time is over.
	OldClientKey = 'c'
	OldPairKey   = 'p'
)

// maxPart is the most bytes of who, sender or recipient in a key. A longer
// one is cut and a digest put behind it, so that distinct ones stay distinct
// and the beginning stays readable.
const maxPart = 256

// digestSize is the length of the digest's text.
const digestSize = 32

// AppendKey appends the key of an entry: its kind, then each part behind its
// length (two bytes, big-endian), so that no byte in a part can be taken for
// a separator. Keys of one sending side, sender or pair stand together.
func AppendKey(b []byte, kind byte, parts ...string) []byte {
	return AppendParts(append(b, kind), parts...)
}

// AppendParts appends parts as they stand in a key.
func AppendParts(b []byte, parts ...string) []byte {
	for _, p := range parts {
		b = appendPart(b, p)
	}
	return b
}

// SplitParts reads two parts that AppendParts wrote, and nothing else.
func SplitParts(b []byte) (first, second string, ok bool) {
	first, b, ok = cutPart(b)
	if ok {
		second, b, ok = cutPart(b)
	}
	return first, second, ok && len(b) == 0
}

func cutPart(b []byte) (part string, rest []byte, ok bool) {
	if len(b) < 2 {
		return "", nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) < n {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}

func appendPart(b []byte, p string) []byte {
	if len(p) > maxPart {
		p = Shorten(p)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	return append(b, p...)
}

// Shorten returns p as it stands in a key.
func Shorten(p string) string {
	if len(p) <= maxPart {
		return p
	}
	sum := sha256.Sum256([]byte(p))
	return p[:maxPart-digestSize-1] + "~" + hex.EncodeToString(sum[:digestSize/2])
}

// SplitKey reads what AppendKey wrote into an Entry without times. It
// reports false for anything else.
func SplitKey(key string) (greylist.Entry, bool) {
	if key == "" {
		return greylist.Entry{}, false
	}
	var e greylist.Entry
	rest, ok := []byte(key[1:]), true
	switch key[0] {
	case TripletKey:
		e.Kind = greylist.KindTriplet
		if e.Match, rest, ok = cutPart(rest); ok {
			e.Sender, e.Recipient, ok = SplitParts(rest)
		}
		return e, ok
	case CreditKey:
		e.Kind = greylist.KindCredit
		e.Credit, rest, ok = cutPart(rest)
		return e, ok && len(rest) == 0
	}
	return e, false
}

// Matches reports whether f picks e.
func Matches(f *greylist.Filter, e *greylist.Entry) bool {
	return (f.Kind == "" || f.Kind == e.Kind) &&
		(f.Who == "" || holds(e.Match, f.Who) || holds(e.Credit, f.Who)) &&
		(f.Sender == "" || e.Kind != greylist.KindCredit && holds(e.Sender, f.Sender)) &&
		(f.Recipient == "" || e.Kind != greylist.KindCredit && holds(e.Recipient, f.Recipient))
}

// holds reports whether part occurs in field.
func holds(field, part string) bool {
	return strings.Contains(strings.ToLower(field), strings.ToLower(part))
}

// Picker returns a function that hands those of the entries it is given to
// yield that f picks, and returns false when no more are wanted. Once it has,
// it hands on no more.
func Picker(f *greylist.Filter, yield func(greylist.Entry) bool) func(greylist.Entry) bool {
	n, done := 0, false
	return func(e greylist.Entry) bool {
		if !done && Matches(f, &e) {
			n++
			done = !yield(e) || f.Limit > 0 && n >= f.Limit
		}
		return !done
	}
}
