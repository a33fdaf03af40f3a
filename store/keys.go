package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"postern/greylist"
)

// Kinds of greylist entries, the first byte of their keys.
const (
	TripletKey = 't'
	ClientKey  = 'c'
	PairKey    = 'p'
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
	b = append(b, kind)
	for _, p := range parts {
		b = appendPart(b, p)
	}
	return b
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
	var into []*string
	switch key[0] {
	case TripletKey:
		e.Kind, into = "triplet", []*string{&e.Who, &e.Sender, &e.Recipient}
	case ClientKey:
		e.Kind, into = "client", []*string{&e.Who}
	case PairKey:
		e.Kind, into = "pair", []*string{&e.Sender, &e.Recipient}
	default:
		return e, false
	}
	rest := key[1:]
	for _, p := range into {
		if len(rest) < 2 {
			return e, false
		}
		n := int(rest[0])<<8 | int(rest[1])
		if len(rest) < 2+n {
			return e, false
		}
		*p, rest = rest[2:2+n], rest[2+n:]
	}
	return e, rest == ""
}

// Matches reports whether f picks e.
func Matches(f *greylist.Filter, e *greylist.Entry) bool {
	return (f.Kind == "" || f.Kind == e.Kind) &&
		holds(e.Who, f.Who, e.Kind != "pair") &&
		holds(e.Sender, f.Sender, e.Kind != "client") &&
		holds(e.Recipient, f.Recipient, e.Kind != "client")
}

// holds reports whether part occurs in field; an entry that lacks the field
// holds no part.
func holds(field, part string, has bool) bool {
	return part == "" || has && strings.Contains(strings.ToLower(field), strings.ToLower(part))
}
