package conf

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a number of bytes in a configuration file: a number with a unit, kB,
// MB, GB or TB, each 1024 times the one before ("500MB", "1.5GB"). The space
// between them, the B and the case do not matter.
type Size int64

const sizeUnits = "kMGT"

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Size) UnmarshalText(text []byte) error {
	word := strings.ToLower(strings.TrimSpace(string(text)))
	word = strings.TrimSuffix(word, "b")
	unit := int64(1)
	if n := len(word); n > 0 {
		if i := strings.IndexByte(strings.ToLower(sizeUnits), word[n-1]); i >= 0 {
			word, unit = word[:n-1], 1<<(10*(i+1))
		}
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(word), 64)
	if err != nil || !(v >= 0) || v*float64(unit) > 1<<62 || strings.ContainsAny(word, "einpx_") {
		return fmt.Errorf("invalid size %q (a number with a unit, such as 500kB, 64MB, 1.5GB)", text)
	}
	*s = Size(v * float64(unit))
	return nil
}

// String writes s in the form that UnmarshalText reads, in the largest unit
// that leaves a whole number.
func (s Size) String() string {
	n, unit := int64(s), ""
	for i := range len(sizeUnits) {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, sizeUnits[i:i+1]
	}
	return strconv.FormatInt(n, 10) + unit + "B"
}

// MarshalText implements [encoding.TextMarshaler].
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
