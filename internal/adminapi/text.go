package adminapi

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
)

// Status is what `postern status` shows of a part of the daemon. Its JSON is
// what --json writes.
type Status interface {
	// WriteStatus writes lines for people: the part's name in the first nine
	// columns of its first line, what belongs to it behind ten blanks.
	WriteStatus(w io.Writer, now time.Time)
}

// Ago writes how long before now t was, in one or two units.
func Ago(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := now.Sub(t)
	switch {
	case d < 2*time.Minute:
		return d.Truncate(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Until writes how long after now t is.
func Until(now, t time.Time) string {
	if t.IsZero() || !t.After(now) {
		return "-"
	}
	return "in " + Ago(t, now)
}

// Tidy rounds a duration to what people can use.
func Tidy(d time.Duration) time.Duration {
	switch {
	case d < time.Millisecond:
		return d.Round(100 * time.Nanosecond)
	case d < time.Second:
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

// Printable replaces in what strangers wrote what a terminal would obey or not
// show: control characters, those that turn the direction of writing or have no
// width, and line ends of Unicode.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r > '~' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) || r < ' ' {
			return '?'
		}
		return r
	}, s)
}
