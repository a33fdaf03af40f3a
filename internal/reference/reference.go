// Package reference makes and reads the references of decisions: codes such as
// "7K3QX-2MDAB" that stand in a refusal, short enough to be read over the
// telephone.
//
// A reference is 50 bits in Crockford's Base32: the minute of the decision (22
// bits, which come round in eight years), the node that made it (8 bits) and a
// number of its own (20 bits). The number is a counter behind a permutation that
// each process draws for itself, so that nobody can tell from two references
// how many came between them.
package reference

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"strings"
	"sync/atomic"
	"time"
)

// Alphabet of references: no I, L, O, U, so that a code read over the
// telephone stays the same (Crockford's Base32).
const Alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

const (
	minuteBits = 22
	nodeBits   = 8
	numberBits = 20
	halfBits   = numberBits / 2
	halfMask   = 1<<halfBits - 1
	digits     = (minuteBits + nodeBits + numberBits) / 5
)

// Wrap is after how long minutes come round.
const Wrap = time.Minute << minuteBits

// Ref is a reference.
type Ref uint64

// Source makes references. It is safe for concurrent use.
type Source struct {
	node    uint64
	keys    [4]uint64
	counter atomic.Uint64
}

// NewSource returns a source for a node.
func NewSource(node uint8) *Source {
	s := &Source{node: uint64(node)}
	var seed [8 * 5]byte
	_, _ = rand.Read(seed[:]) // it never fails
	for i := range s.keys {
		s.keys[i] = binary.LittleEndian.Uint64(seed[8*i:])
	}
	s.counter.Store(binary.LittleEndian.Uint64(seed[8*4:]))
	return s
}

// Next returns a reference for a decision of that time. A million in one
// minute are all different.
func (s *Source) Next(t time.Time) Ref {
	return Ref(minuteOf(t)<<(nodeBits+numberBits) | s.node<<numberBits | s.permute(s.counter.Add(1)))
}

// permute is a Feistel network over the lower 20 bits: one to one, whatever
// the function of a round is.
func (s *Source) permute(n uint64) uint64 {
	left, right := n>>halfBits&halfMask, n&halfMask
	for _, k := range s.keys {
		x := (right ^ k) * 0x9e3779b97f4a7c15
		x ^= x >> 29
		x *= k | 1
		left, right = right, left^(x>>(64-halfBits))
	}
	return left<<halfBits | right
}

func minuteOf(t time.Time) uint64 { return uint64(t.Unix()/60) & (1<<minuteBits - 1) }

// String returns the reference as people read it: "ABCDE-FGHJK".
func (r Ref) String() string {
	var b [digits + 1]byte
	for i := digits; i >= 0; i-- {
		if i == digits/2 {
			b[i] = '-'
			continue
		}
		b[i] = Alphabet[r&31]
		r >>= 5
	}
	return string(b[:])
}

// Node returns the node that made the reference.
func (r Ref) Node() uint8 { return uint8(r >> numberBits) }

// Minute returns the beginning of the minute of the decision: of those that the
// reference can mean the newest that is not after latest.
func (r Ref) Minute(latest time.Time) time.Time {
	newest := latest.Unix() / 60
	back := (newest - int64(r>>(nodeBits+numberBits))) & (1<<minuteBits - 1)
	return time.Unix((newest-back)*60, 0)
}

// Parse reads a reference as people write it: in any case, with or without the
// dash and what stands around it in a reply, O for 0 and I or L for 1.
func Parse(text string) (Ref, error) {
	s := strings.Trim(text, " \t\r\n[]()<>\"'.,;:")
	if len(s) > 4 && strings.EqualFold(s[:3], "ref") && strings.ContainsRune(" =:", rune(s[3])) {
		s = strings.TrimLeft(s[4:], " =:")
	}
	var r Ref
	n := 0
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		switch c {
		case '-', ' ':
			continue
		case 'O':
			c = '0'
		case 'I', 'L':
			c = '1'
		}
		v := strings.IndexByte(Alphabet, c)
		if v < 0 || n == digits {
			return 0, bad(text)
		}
		r = r<<5 | Ref(v)
		n++
	}
	if n != digits {
		return 0, bad(text)
	}
	return r, nil
}

// bad is the fault of a text, which may hold anything and be long.
func bad(text string) error {
	const most = 40
	if len(text) > most {
		text = text[:most]
	}
	return fmt.Errorf("%q is not a reference: ten letters and digits, ABCDE-FGHJK", text)
}

// NodeOf returns the node of a host that has not been given a number.
func NodeOf(hostname string) uint8 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(strings.ToLower(hostname))) // it never fails
	sum := h.Sum32()
	return uint8(sum ^ sum>>8 ^ sum>>16 ^ sum>>24)
}
