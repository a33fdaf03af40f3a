package known

import (
	"io"
	"net/netip"
	"strings"
	"time"

	"postern/internal/maillog"
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

	log      maillog.Reader
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
)

// Read reads one file and calls yield for each delivery to the outside of our
// users' mail, until it returns false. Lines that are too long or of no form
// that is known are counted and passed over.
func (r *LogReader) Read(in io.Reader, yield func(Written) bool) error {
	if r.messages == nil {
		r.messages = make(map[string]*message)
	}
	r.log.Now, r.log.In = r.Now, r.In
	defer func() { r.Seen.Lines, r.Seen.Unread = r.log.Lines, r.log.Unread }()
	return r.log.Read(in, func(l maillog.Line) bool {
		if !l.OfMessage() {
			return true
		}
		w, ok := r.line(&l)
		return !ok || yield(w)
	})
}

// line takes one line, and returns a delivery of our users' mail.
func (r *LogReader) line(l *maillog.Line) (w Written, ok bool) {
	id, text := l.ID, l.Text
	switch l.Program {
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
		if from, _, ok := maillog.Bracketed(text, "from=<"); ok {
			if m := r.messages[id]; m != nil {
				m.sender, m.from = from, true
			}
		}
	case "smtp":
		m := r.messages[id]
		to, after, ok := maillog.Bracketed(text, "to=<")
		if m == nil || !m.own || !m.from || !ok {
			return w, false
		}
		// What stands behind the first status is the other server's words.
		if _, status, _ := strings.Cut(after, ", status="); !strings.HasPrefix(status, "sent (") {
			r.Seen.NotSent++
			return w, false
		}
		r.Seen.Sent++
		return Written{User: m.sender, To: to, At: l.At}, true
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
	_, addr, ok := maillog.Client(client)
	if !ok {
		return false
	}
	for _, p := range r.Networks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
