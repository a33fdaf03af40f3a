// Package moving reads what other programs keep, for those who come from them:
// postgrey's, sqlgrey's and milter-greylist's records, Postfix's verify(8)
// cache, postwhite's networks and the DNS lists of main.cf. It only reads; the
// checks take what it returns, and each reader says what it has left out.
package moving

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// maxLine is the most bytes of a line: a dump of SQL has a table in one.
const maxLine = 64 << 20

// Pass is mail that had passed greylisting elsewhere. Without a recipient it
// tells of a sending side: how often it has passed, and when it was first seen;
// without a sender, of a client alone.
type Pass struct {
	Time              time.Time // last
	Client            netip.Addr
	Name              string // verified, see [Names]
	Sender, Recipient string
	Passes            int
	First             time.Time
}

// Greylisted is what a greylisting program knew.
type Greylisted struct {
	// Past is mail that had passed there, the oldest first contact first where
	// that is told. Entries without a recipient tell of a sending side.
	Past []Pass
	// Waiting are those that had not passed: they will wait here anew.
	Waiting int
	// Hidden are records whose addresses are hashed, which cannot be read.
	Hidden int
	// Unread are records of no form that is known, and First the first of them.
	Unread int
	First  error
}

// unread counts a record that cannot be read.
func (g *Greylisted) unread(where string, format string, args ...any) {
	if g.Unread++; g.First == nil {
		g.First = fmt.Errorf("%s: %s", where, fmt.Sprintf(format, args...))
	}
}

// scanLines calls yield for each line, with its number.
func scanLines(r io.Reader, yield func(n int, line string) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), maxLine)
	n := 0
	for sc.Scan() {
		n++
		if err := yield(n, strings.TrimSuffix(sc.Text(), "\r")); err != nil {
			return err
		}
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("line %d: longer than %d bytes", n+1, maxLine)
	}
	return sc.Err()
}

// seconds reads a time in seconds since 1970.
func seconds(s string) (time.Time, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || n > 1<<40 {
		return time.Time{}, false
	}
	return time.Unix(n, 0), true
}

// address reads a client's address; "192.0.2" stands for its network.
func address(s string) (netip.Addr, bool) {
	if strings.Count(s, ".") == 2 && !strings.Contains(s, ":") {
		s += ".0"
	}
	a, err := netip.ParseAddr(s)
	return a.Unmap().WithZone(""), err == nil
}
