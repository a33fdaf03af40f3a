package known

import (
	"bufio"
	"errors"
	"io"
	"net/netip"
	"strings"
	"time"

	"postern/internal/mailaddr"
)

// LogReader finds in Postfix's log what our users have written. A message is
// theirs when it came by a login, from the host itself (sendmail command), or
// from one of Networks. It is used by one goroutine, for any number of files in
// turn: a message may begin in one and end in the next.
type LogReader struct {
	// Networks are those whose mail is our users'.
	Networks []netip.Prefix
	// Logins takes mail of clients that have logged in, Local that of the host.
	Logins, Local bool
	// Now is when the log is read: a timestamp without a year is of the last
	// twelve months. In is the zone of such timestamps; nil: the local one.
	Now time.Time
	In  *time.Location
	// Seen counts.
	Seen LogSeen

	messages map[string]*message
	order    []string // of messages, oldest first; may hold ids that are gone
}

// LogSeen are the counts of what was read.
type LogSeen struct {
	Lines     int `json:"lines"`
	Unread    int `json:"unread"`    // lines of no form that is known
	Messages  int `json:"messages"`  // of our users
	Strangers int `json:"strangers"` // messages of others
	Sent      int `json:"sent"`      // deliveries of our users' mail by SMTP
	NotSent   int `json:"not_sent"`  // deferred or bounced
	Forgotten int `json:"forgotten"` // messages that had to make room
}

// message is one queue id whose end has not been seen.
type message struct {
	own    bool
	judged bool
	sender string
	from   bool // the sender is known
}

// Bounds of what is remembered while reading.
const (
	maxMessages = 200_000
	maxLogLine  = 64 << 10
)

// Read reads one file and calls yield for each delivery to the outside of our
// users' mail, until it returns false. Lines that are too long or of no form
// that is known are counted and passed over.
func (r *LogReader) Read(in io.Reader, yield func(Written) bool) error {
	if r.messages == nil {
		r.messages = make(map[string]*message)
	}
	b := bufio.NewReaderSize(in, maxLogLine)
	for {
		line, err := b.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = b.ReadSlice('\n')
		}
		if len(line) > 0 {
			r.Seen.Lines++
			if long {
				r.Seen.Unread++
			} else if w, ok := r.line(strings.TrimRight(string(line), "\r\n")); ok && !yield(w) {
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

// line takes one line, and returns a delivery of our users' mail.
func (r *LogReader) line(s string) (w Written, ok bool) {
	at, rest, ok := r.stamp(s)
	if !ok {
		r.Seen.Unread++
		return w, false
	}
	program, id, text, ok := record(rest)
	if !ok {
		return w, false // not Postfix's, or about no message
	}
	switch program {
	case "smtpd":
		client, ok := strings.CutPrefix(text, "client=")
		if !ok {
			return w, false // "reject: ..." and the like
		}
		m := r.message(id)
		r.judge(m, r.ownClient(client))
	case "pickup":
		if !strings.HasPrefix(text, "uid=") {
			return w, false
		}
		m := r.message(id)
		r.judge(m, r.Local)
	case "qmgr":
		if text == "removed" {
			delete(r.messages, id)
			return w, false
		}
		if from, _, ok := bracketed(text, "from=<"); ok {
			if m := r.messages[id]; m != nil {
				m.sender, m.from = from, true
			}
		}
	case "smtp":
		m := r.messages[id]
		to, after, ok := bracketed(text, "to=<")
		if m == nil || !m.own || !m.from || !ok {
			return w, false
		}
		// What stands behind the first status is the other server's words.
		if _, status, _ := strings.Cut(after, ", status="); !strings.HasPrefix(status, "sent (") {
			r.Seen.NotSent++
			return w, false
		}
		r.Seen.Sent++
		return Written{User: m.sender, To: to, At: at}, true
	}
	return w, false
}

// message returns the one of a queue id.
func (r *LogReader) message(id string) *message {
	if m := r.messages[id]; m != nil {
		return m
	}
	for len(r.messages) >= maxMessages {
		oldest := r.order[0]
		r.order = r.order[1:]
		if _, ok := r.messages[oldest]; ok {
			delete(r.messages, oldest)
			r.Seen.Forgotten++
		}
	}
	if len(r.order) > 4*maxMessages { // most are gone
		left := r.order[:0]
		for _, id := range r.order {
			if _, ok := r.messages[id]; ok {
				left = append(left, id)
			}
		}
		r.order = left
	}
	m := &message{}
	id = strings.Clone(id)
	r.messages[id] = m
	r.order = append(r.order, id)
	return m
}

func (r *LogReader) judge(m *message, own bool) {
	if m.judged {
		// A short queue id is given to another message later.
		*m = message{}
	}
	m.judged, m.own = true, own
	if own {
		r.Seen.Messages++
	} else {
		r.Seen.Strangers++
	}
}

// ownClient judges what stands behind "client=": "NAME[ADDRESS]:PORT, sasl_method=..., sasl_username=...".
func (r *LogReader) ownClient(s string) bool {
	client, after, _ := strings.Cut(s, ", ")
	if r.Logins {
		for _, part := range strings.Split(after, ", ") {
			if name, ok := strings.CutPrefix(part, "sasl_username="); ok && name != "" {
				return true
			}
		}
	}
	// The name is the client's own choice; the address stands in the last brackets.
	i, j := strings.LastIndexByte(client, '['), strings.LastIndexByte(client, ']')
	if i < 0 || j < i {
		return false
	}
	addr := mailaddr.IP(client[i+1 : j])
	for _, p := range r.Networks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
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
	return program, id, text, ok && queueID(id)
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

// bracketed returns what stands between the prefix and the next "<...>" end.
// Postfix quotes nothing in there; a local part may hold ">" only in quotes.
func bracketed(s, prefix string) (inner, after string, ok bool) {
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

// stamp reads the timestamp of a line: "Nov 27 09:01:02", with or without a year
// behind or in front, or RFC 3339 and its like.
func (r *LogReader) stamp(s string) (at time.Time, rest string, ok bool) {
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

func (r *LogReader) zone() *time.Location {
	if r.In != nil {
		return r.In
	}
	return time.Local
}

// year puts a time without a year into the last twelve months. A clock that is
// a day ahead is believed.
func (r *LogReader) year(t time.Time) time.Time {
	now := r.Now.In(t.Location())
	t = time.Date(now.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, t.Location())
	if t.After(now.Add(day)) {
		t = t.AddDate(-1, 0, 0)
	}
	return t
}
