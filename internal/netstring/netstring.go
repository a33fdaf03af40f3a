// Package netstring reads and writes netstrings
// (https://cr.yp.to/proto/netstrings.txt): LENGTH ":" BYTES ",", the length in
// decimal digits without leading zeros. Postfix's socketmap_table(5) speaks
// them.
package netstring

import (
	"errors"
	"fmt"
	"strconv"
)

// What Next says of bytes that cannot become a netstring any more.
var (
	ErrMalformed = errors.New("netstring: malformed")
	ErrTooLong   = errors.New("netstring: too long")
)

// Next returns the content of the netstring that buf begins with, and the
// length of the whole; 0 when more bytes are needed. content is part of buf.
// A netstring of more than limit bytes is ErrTooLong as soon as its length is
// known. limit is at most a billion.
func Next(buf []byte, limit int) (content []byte, n int, err error) {
	length := 0
	for i, c := range buf {
		switch {
		case '0' <= c && c <= '9':
			if i > 0 && length == 0 {
				return nil, 0, fmt.Errorf("%w: the length begins with 0", ErrMalformed)
			}
			if length = length*10 + int(c-'0'); length > limit {
				return nil, 0, fmt.Errorf("%w: more than %d bytes", ErrTooLong, limit)
			}
			continue
		case c != ':' || i == 0:
			return nil, 0, fmt.Errorf("%w: byte %q in the length", ErrMalformed, c)
		}
		end := i + 1 + length
		if len(buf) <= end {
			return nil, 0, nil
		}
		if buf[end] != ',' {
			return nil, 0, fmt.Errorf("%w: byte %q where a comma must be", ErrMalformed, buf[end])
		}
		return buf[i+1 : end : end], end + 1, nil
	}
	return nil, 0, nil
}

// Append appends content as a netstring to dst.
func Append[T ~string | ~[]byte](dst []byte, content T) []byte {
	dst = AppendLength(dst, len(content))
	dst = append(dst, content...)
	return append(dst, ',')
}

// AppendLength appends what comes before a content of n bytes. The content
// and a comma follow.
func AppendLength(dst []byte, n int) []byte {
	return append(strconv.AppendInt(dst, int64(n), 10), ':')
}
