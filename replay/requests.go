package replay

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"postern/policy"
	"postern/policyd"
)

// Bounds of a file of requests.
const (
	maxRequest    = 64 << 10 // bytes of one
	maxAttributes = 200
)

// ReadRequests reads requests as Postfix sends them to a policy server:
// attributes, a line each, and an empty line behind each request. Lines that begin
// with # are comments. Postfix does not say when it asks; "time=" with a time as
// in RFC 3339 does. Without it requests come a second after each other, the
// first at start. name is that of the file, for errors: "name:line: what".
func ReadRequests(name string, in io.Reader, start time.Time, yield func(Item) bool) error {
	b := bufio.NewReaderSize(in, maxRequest)
	var text strings.Builder
	number, first, at := 0, 0, start.Add(-time.Second)
	var said time.Time
	give := func() (bool, error) {
		if text.Len() == 0 {
			return true, nil
		}
		req := new(policy.Request)
		text.WriteString("\n")
		if _, err := policyd.Parse(text.String(), maxAttributes, req); err != nil {
			return false, fmt.Errorf("%s:%d: %w", name, first, err)
		}
		text.Reset()
		if at = at.Add(time.Second); !said.IsZero() {
			at, said = said, time.Time{}
		}
		req.Time, req.Door = at, "replay"
		return yield(Item{Request: req, Ref: fmt.Sprintf("%s:%d", name, first)}), nil
	}
	for {
		line, err := b.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s:%d: %w", name, number+1, err)
		}
		end := err != nil
		number++
		switch line = strings.TrimRight(line, "\r\n"); {
		case strings.HasPrefix(line, "#"):
		case line == "":
			if more, err := give(); err != nil || !more {
				return err
			}
		default:
			if text.Len() == 0 {
				first = number
			}
			key, value, ok := strings.Cut(line, "=")
			if !ok {
				return fmt.Errorf("%s:%d: %q is no attribute, \"name=value\"", name, number, shortened(line))
			}
			if key == "time" {
				t, err := time.Parse(time.RFC3339, value)
				if err != nil {
					return fmt.Errorf("%s:%d: %q is not a time such as 2026-11-27T10:00:00Z", name, number, shortened(value))
				}
				said = t
				break
			}
			if text.Len()+len(line) > maxRequest {
				return fmt.Errorf("%s:%d: the request has more than %d bytes", name, number, maxRequest)
			}
			text.WriteString(line + "\n")
		}
		if end {
			_, err := give()
			return err
		}
	}
}

func shortened(s string) string {
	const most = 60
	if len(s) > most {
		s = s[:most] + "..."
	}
	return s
}
