package moving

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// MilterGreylist reads the dump that milter-greylist keeps, greylist.db: lines
// of client, sender, recipient and a time, and for those that have passed the
// word AUTO. Their time is when they would be forgotten there, so all that is
// known of the last contact is that it was before now.
func MilterGreylist(r io.Reader, now time.Time) (*Greylisted, error) {
	g := new(Greylisted)
	err := scanLines(r, func(n int, line string) error {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			return nil
		}
		where := fmt.Sprintf("line %d", n)
		if len(f) < 4 {
			g.unread(where, "%q is no record", strings.TrimSpace(line))
			return nil
		}
		addr, ok := address(f[0])
		until, timed := seconds(f[3])
		if !ok || !timed {
			g.unread(where, "%q is no record", strings.TrimSpace(line))
			return nil
		}
		if len(f) < 5 || f[4] != "AUTO" {
			g.Waiting++
			return nil
		}
		if until.Before(now) {
			return nil // forgotten there
		}
		g.Past = append(g.Past, Pass{Time: now, Client: addr, Sender: bare(f[1]), Recipient: bare(f[2])})
		return nil
	})
	return g, err
}

// bare takes an address out of its angle brackets.
func bare(s string) string {
	if strings.HasPrefix(s, "<") && strings.HasSuffix(s, ">") {
		return s[1 : len(s)-1]
	}
	return s
}
