package replay

import (
	"cmp"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/mailaddr"
	"postern/internal/maillog"
	"postern/policy"
)

// Log takes requests out of Postfix's log. What a log does not have is put in
// its place: HELO of mail that was accepted, TLS, sizes. It is used by one
// goroutine, for any number of files in turn.
type Log struct {
	// Now and In are as in [maillog.Reader].
	Now time.Time
	In  *time.Location

	reader   maillog.Reader
	messages map[string]*logged
	items    []logItem
	// Dropped are messages and requests for which there was no room.
	Dropped int
}

// logged is a message whose end has not been seen.
type logged struct {
	at     time.Time
	client policy.Client
	login  string
	sender string
	size   int64
	from   bool
	to     map[string]bool
}

// logItem is a request with its place in the order.
type logItem struct {
	Item
	order int
}

// Bounds of what is remembered of a log.
const (
	maxLogged = 200_000
	maxItems  = 5_000_000
)

// Read reads one file.
func (l *Log) Read(in io.Reader) error {
	if l.messages == nil {
		l.messages = make(map[string]*logged)
	}
	l.reader.Now, l.reader.In = l.Now, l.In
	return l.reader.Read(in, func(line maillog.Line) bool {
		l.line(&line)
		return true
	})
}

// Lines is how many lines were read, and how many of them are of no form that
// is known.
func (l *Log) Lines() (all, unread int) { return l.reader.Lines, l.reader.Unread }

// Items returns the requests in the order of time.
func (l *Log) Items() []Item {
	slices.SortStableFunc(l.items, func(a, b logItem) int {
		return cmp.Or(a.Request.Time.Compare(b.Request.Time), cmp.Compare(a.order, b.order))
	})
	out := make([]Item, len(l.items))
	for i := range l.items {
		out[i] = l.items[i].Item
	}
	return out
}

func (l *Log) line(line *maillog.Line) {
	if line.Program == "smtpd" {
		if l.refused(line) {
			return
		}
		if text, ok := strings.CutPrefix(line.Text, "client="); ok && line.OfMessage() {
			l.begin(line, text)
			return
		}
	}
	if !line.OfMessage() {
		return
	}
	m := l.messages[line.ID]
	if m == nil {
		return
	}
	switch {
	case line.Program == "qmgr" && line.Text == "removed":
		delete(l.messages, line.ID)
	case line.Program == "qmgr":
		if from, after, ok := maillog.Bracketed(line.Text, "from=<"); ok && !m.from {
			m.sender, m.from = from, true
			if _, size, ok := strings.Cut(after, "size="); ok {
				digits, _, _ := strings.Cut(size, ",")
				m.size, _ = strconv.ParseInt(digits, 10, 64) // 0 where it is none
			}
		}
	default: // smtp, local, lmtp, virtual, pipe, relay, error: a recipient
		to, after, ok := maillog.Bracketed(line.Text, "to=<")
		if !ok || !m.from {
			return
		}
		if orig, _, ok := maillog.Bracketed(strings.TrimPrefix(after, ", "), "orig_to=<"); ok {
			to = orig // what the client has said, in front of all aliases
		}
		if m.to[to] || len(m.to) >= 1000 {
			return
		}
		m.to[to] = true
		l.add(line.ID, &policy.Request{
			Time: m.at, Stage: policy.StageRcpt, Client: m.client, Sender: mailaddr.Parse(m.sender), Recipient: mailaddr.Parse(to), Size: m.size,
			SASL: policy.SASL{Username: m.login}, Helo: likelyHelo(&m.client),
		}, Outcome{What: "accepted"})
	}
}

// begin takes "client=NAME[ADDRESS]:PORT, sasl_method=..., sasl_username=...".
func (l *Log) begin(line *maillog.Line, text string) {
	who, after, _ := strings.Cut(text, ", ")
	name, addr, ok := maillog.Client(who)
	if !ok {
		return
	}
	if len(l.messages) >= maxLogged {
		l.Dropped++
		return
	}
	m := &logged{at: line.At, client: policy.Client{Addr: addr, Name: mailaddr.Domain(name), ReverseName: mailaddr.Domain(name)}, to: make(map[string]bool)}
	for _, part := range strings.Split(after, ", ") {
		if login, ok := strings.CutPrefix(part, "sasl_username="); ok {
			m.login = login
		}
	}
	l.messages[strings.Clone(line.ID)] = m
}

// refused takes "reject: RCPT from NAME[ADDRESS]: 450 4.2.0 <to>: ...;
// from=<...> to=<...> proto=ESMTP helo=<...>".
func (l *Log) refused(line *maillog.Line) bool {
	stage, rest, ok := strings.Cut(line.Text, " from ")
	if !ok {
		return false
	}
	kind, command, ok := strings.Cut(stage, ": ")
	if !ok || kind != "reject" || command != "RCPT" {
		return kind == "reject" // of other commands too little is known
	}
	who, rest, ok := strings.Cut(rest, "]: ")
	if !ok {
		return true
	}
	name, addr, ok := maillog.Client(who + "]")
	if !ok {
		return true
	}
	// The reply may hold anything; what stands behind its end comes last.
	at := strings.LastIndex(rest, "; from=<")
	if at < 0 {
		return true
	}
	reply, tail := rest[:at], rest[at+2:]
	from, after, ok := maillog.Bracketed(tail, "from=<")
	if !ok {
		return true
	}
	to, after, ok := maillog.Bracketed(strings.TrimPrefix(after, " "), "to=<")
	if !ok {
		return true
	}
	helo := ""
	if _, text, ok := strings.Cut(after, " helo=<"); ok {
		helo = strings.TrimSuffix(text, ">")
	}
	what := "refused"
	if strings.HasPrefix(reply, "4") {
		what = "deferred"
	}
	client := policy.Client{Addr: addr, Name: mailaddr.Domain(name), ReverseName: mailaddr.Domain(name)}
	l.add(line.ID, &policy.Request{
		Time: line.At, Stage: policy.StageRcpt, Client: client, Helo: helo, Sender: mailaddr.Parse(from), Recipient: mailaddr.Parse(to),
	}, Outcome{What: what, Reply: reply})
	return true
}

// likelyHelo is a HELO name against which nothing speaks.
func likelyHelo(c *policy.Client) string {
	switch {
	case c.Name != "":
		return c.Name
	case c.Addr.Is6():
		return "[IPv6:" + c.Addr.String() + "]"
	}
	return "[" + c.Addr.String() + "]"
}

func (l *Log) add(id string, req *policy.Request, then Outcome) {
	if len(l.items) >= maxItems {
		l.Dropped++
		return
	}
	req.Door, req.ESMTP = "replay", true
	l.items = append(l.items, logItem{Item{Request: req, Then: &then, Ref: strings.Clone(id)}, len(l.items)})
}
