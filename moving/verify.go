package moving

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Result is what was found out about an address.
type Result struct {
	Address string
	Known   bool
	At      time.Time
	Text    string // the answer
}

// VerifyCache is what verify(8) remembered.
type VerifyCache struct {
	Results []Result
	Open    int // addresses without a result that lasts
	Unread  int
	First   error
}

// Verify reads address_verify_map as `postmap -s` prints it: an address and
// "status:probed:updated:text", with 0 for an address that is delivered to, 1
// for a temporary failure, 2 for one that is refused, 3 for one that is being
// asked about (verify.c of Postfix).
func Verify(r io.Reader) (*VerifyCache, error) {
	out := new(VerifyCache)
	err := scanLines(r, func(n int, line string) error {
		if line == "" {
			return nil
		}
		key, value, _ := strings.Cut(line, "\t")
		if strings.HasPrefix(key, "_LAST_CACHE_CLEANUP_COMPLETED_") {
			return nil
		}
		f := strings.SplitN(strings.TrimSpace(value), ":", 4)
		var at time.Time
		ok := len(f) == 4 && key != ""
		if ok && f[0] != "3" {
			if at, ok = seconds(f[2]); !ok && (f[2] == "0") {
				out.Open++ // probed, no answer yet
				return nil
			}
		}
		switch {
		case !ok:
			if out.Unread++; out.First == nil {
				out.First = fmt.Errorf("line %d: %q is no line of postmap -s", n, line)
			}
		case f[0] == "0" || f[0] == "2":
			out.Results = append(out.Results, Result{Address: strings.TrimSuffix(key, "\x00"), Known: f[0] == "0", At: at, Text: f[3]})
		default:
			out.Open++
		}
		return nil
	})
	return out, err
}
