// Package maillog reads Postfix's log, line by line: what syslog, journald or
// postlogd have written, whatever stands in front.
package maillog

import (
	"bufio"
	"errors"
	"io"
	"net/netip"
	"strings"
	"time"

	"postern/internal/mailaddr"
)

// Line is one line of one of Postfix's programs.
type Line struct {
	At time.Time
	// Program is the last part of its name: "smtpd", also where the line has
	// "postfix-out/submission/smtpd".
	Program string
	// ID is what stands in front of the first ": ": a queue id, or "NOQUEUE",
	// "warning" and the like. Text is what stands behind it.
	ID, Text string
}

// OfMessage reports whether the line is about a message that has a queue id.
func (l *Line) OfMessage() bool { return queueID(l.ID) }

// Reader reads logs, one after the other. It is used by one goroutine.
type Reader struct {
	// Now is when the log is read: a timestamp without a year is of the last
	// twelve months. In is the zone of such timestamps; nil: the local one.
	Now time.Time
	In  *time.Location
	// Lines counts those that were read, Unread those of them that are too long or
	// begin with no timestamp that is known.
	Lines, Unread int
}

// maxLine is the most bytes of a line.
const maxLine = 64 << 10

// Read reads one file and calls yield for each line of Postfix's, until it
// returns false.
func (r *Reader) Read(in io.Reader, yield func(Line) bool) error {
	b := bufio.NewReaderSize(in, maxLine)
	for {
		line, err := b.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = b.ReadSlice('\n')
		}
		if len(line) > 0 {
			r.Lines++
			if long {
				r.Unread++
			} else if l, ok := r.line(strings.TrimRight(string(line), "\r\n")); ok && !yield(l) {
				return nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func (r *Reader) line(s string) (l Line, ok bool) {
	at, rest, ok := r.stamp(s)
	if !ok {
		r.Unread++
		return l, false
	}
	l.At = at
	l.Program, l.ID, l.Text, ok = record(rest)
	return l, ok
}

// record takes "HOST PROGRAM[PID]: QUEUEID: TEXT" apart. The program is the last
// part of its name: "postfix-out/submission/smtpd" is smtpd.
func record(s string) (program, id, text string, ok bool) {
	i := strings.Index(s, "]: ")
	if i < 0 {
		return "", "", "", false
	}
	head, body := s[:i], s[i+3:]
	j := strings.LastIndexByte(head, '[')
	if j < 0 {
		return "", "", "", false
	}
	program = head[:j]
	program = program[strings.LastIndexByte(program, ' ')+1:]
	if !strings.HasPrefix(program, "postfix") {
		return "", "", "", false
	}
	program = program[strings.LastIndexByte(program, '/')+1:]
	// rsyslog and journald may put a tag of their own: "[ID 197553 mail.info] ".
	if strings.HasPrefix(body, "[ID ") {
		_, body, _ = strings.Cut(body, "] ")
	}
	id, text, ok = strings.Cut(body, ": ")
	return program, id, text, ok
}

// queueID reports whether s is one: hexadecimal, or the long form of letters
// and digits without vowels (postconf enable_long_queue_ids).
func queueID(s string) bool {
	if len(s) < 5 || len(s) > 32 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s != "NOQUEUE" && s != "warning" && s != "statistics" && s != "connect" && s != "disconnect" && s != "error" && s != "fatal"
}

// Bracketed returns what stands between the prefix and the next "<...>" end.
// Postfix quotes nothing in there; a local part may hold ">" only in quotes.
func Bracketed(s, prefix string) (inner, after string, ok bool) {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return "", "", false
	}
	i := strings.Index(rest, ">")
	if strings.HasPrefix(rest, `"`) {
		if end := strings.Index(rest, `"@`); end > 0 {
			i = end + strings.Index(rest[end:], ">")
			if i < end {
				return "", "", false
			}
		}
	}
	if i < 0 {
		return "", "", false
	}
	return mailaddr.ParsePath(rest[:i]).Raw, rest[i+1:], true
}

// Client takes "NAME[ADDRESS]:PORT" apart. The name is "" where Postfix has
// none that it verified.
func Client(s string) (name string, addr netip.Addr, ok bool) {
	// The name is the client's own choice; the address stands in the last brackets.
	i, j := strings.LastIndexByte(s, '['), strings.LastIndexByte(s, ']')
	if i < 0 || j < i {
		return "", netip.Addr{}, false
	}
	if name = s[:i]; name == "unknown" {
		name = ""
	}
	addr = mailaddr.IP(s[i+1 : j])
	return name, addr, addr.IsValid()
}

// stamp reads the timestamp of a line: "Nov 27 09:01:02", with or without a year
// behind or in front, or RFC 3339 and its like.
func (r *Reader) stamp(s string) (at time.Time, rest string, ok bool) {
	if len(s) < 16 {
		return at, "", false
	}
	if s[0] >= '0' && s[0] <= '9' {
		word, rest, _ := strings.Cut(s, " ")
		if len(word) == len("2006-01-02") { // "2006-01-02 15:04:05"
			clock, after, _ := strings.Cut(rest, " ")
			word, rest = word+"T"+clock, after
		}
		word = strings.Replace(word, ",", ".", 1)
		for _, form := range [...]string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999-0700", "2006-01-02T15:04:05.999999999"} {
			if t, err := time.ParseInLocation(form, word, r.zone()); err == nil {
				return t, rest, true
			}
		}
		return at, "", false
	}
	t, err := time.ParseInLocation("Jan _2 15:04:05", s[:15], r.zone())
	if err != nil {
		return at, "", false
	}
	rest = strings.TrimPrefix(s[15:], " ")
	if strings.HasPrefix(s[15:], ".") { // journalctl -o short-precise
		_, rest, _ = strings.Cut(s[15:], " ")
	}
	return r.year(t), rest, true
}

func (r *Reader) zone() *time.Location {
	if r.In != nil {
		return r.In
	}
	return time.Local
}

// year puts a time without a year into the last twelve months. A clock that is
// a day ahead is believed.
func (r *Reader) year(t time.Time) time.Time {
	now := r.Now.In(t.Location())
	t = time.Date(now.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, t.Location())
	if t.After(now.Add(24 * time.Hour)) {
		t = t.AddDate(-1, 0, 0)
	}
	return t
}
