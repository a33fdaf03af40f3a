package postfix

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"postern/internal/maillog"
	"postern/policy"
)

// Letter is a message to send.
type Letter struct {
	From string
	To   []string
	// Text is the whole message, header and body, with any line ends.
	Text []byte
}

// Refused is a recipient that the server did not take.
type Refused struct {
	Recipient string `json:"recipient"`
	Reply     string `json:"reply"`
}

// queuedAs is how Postfix names the queue file in its reply to DATA.
var queuedAs = regexp.MustCompile(`queued as ([0-9A-Za-z]{5,32})`)

// Send hands a message to an SMTP server, and returns the queue id that it has
// there. Recipients that the server refuses are left out; an error means that it has
// taken nothing.
func Send(ctx context.Context, addr string, l *Letter) (id string, refused []Refused, err error) {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(5 * time.Minute))
	c := textproto.NewConn(conn)
	defer c.Close() //nolint:errcheck // nothing is pending
	say := func(want int, format string, args ...any) (string, error) {
		if format != "" {
			if err := c.PrintfLine(format, args...); err != nil {
				return "", err
			}
		}
		_, text, err := c.ReadResponse(want)
		return text, err
	}
	if _, err := say(220, ""); err != nil {
		return "", nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	if _, err := say(250, "EHLO %s", host); err != nil {
		return "", nil, err
	}
	if _, err := say(250, "MAIL FROM:<%s>", l.From); err != nil {
		return "", nil, fmt.Errorf("the sender is refused: %w", err)
	}
	for _, to := range l.To {
		_, err := say(25, "RCPT TO:<%s>", to)
		if reply := (*textproto.Error)(nil); errors.As(err, &reply) {
			refused = append(refused, Refused{to, fmt.Sprintf("%d %s", reply.Code, reply.Msg)})
		} else if err != nil {
			return "", refused, err
		}
	}
	if len(refused) == len(l.To) {
		_, _ = say(221, "QUIT") // it has refused all
		return "", refused, errors.New("every recipient is refused")
	}
	if _, err := say(354, "DATA"); err != nil {
		return "", refused, err
	}
	w := c.DotWriter()
	if _, err := w.Write(l.Text); err != nil {
		return "", refused, err
	}
	if err := w.Close(); err != nil {
		return "", refused, err
	}
	text, err := say(250, "")
	if err != nil {
		return "", refused, fmt.Errorf("the message is refused: %w", err)
	}
	_, _ = say(221, "QUIT") // it has been taken
	if m := queuedAs.FindStringSubmatch(text); m != nil {
		return m[1], refused, nil
	}
	return "", refused, nil
}

// Event is something that has become of a message.
type Event struct {
	Time time.Time `json:"time,omitzero"`
	ID   string    `json:"queue_id"`
	// What is "queued", "sent", "deferred", "bounced", "expired", "held", "rejected"
	// or "" for other lines of the log.
	What      string `json:"what,omitempty"`
	Recipient string `json:"recipient,omitempty"`
	Relay     string `json:"relay,omitempty"`
	Text      string `json:"text"`
}

// Final reports whether nothing more is to be waited for, for this recipient.
func (e *Event) Final() bool {
	return slices.Contains([]string{"sent", "deferred", "bounced", "expired", "held", "rejected"}, e.What)
}

// Follower finds in Postfix's log what becomes of a message, through content
// filters that hand it back, too.
type Follower struct {
	ids    []string // of the message, the first as it was queued
	reader maillog.Reader
}

// Follow returns a follower of a queue id.
func Follow(id string, now time.Time) *Follower {
	return &Follower{ids: []string{id}, reader: maillog.Reader{Now: now}}
}

// Line takes a line of the log, and reports whether it is about the message.
func (f *Follower) Line(text string) (e Event, ok bool) {
	err := f.reader.Read(strings.NewReader(text+"\n"), func(l maillog.Line) bool {
		if !slices.Contains(f.ids, l.ID) {
			return true
		}
		e, ok = f.event(&l), true
		return false
	})
	return e, ok && err == nil
}

func (f *Follower) event(l *maillog.Line) Event {
	e := Event{Time: l.At, ID: l.ID, Text: policy.Printable(l.Program + ": " + l.Text)}
	switch {
	case l.Program == "qmgr" && strings.Contains(l.Text, "status=expired"):
		e.What = "expired"
	case l.Program == "cleanup" && strings.HasPrefix(l.Text, "milter-reject: "), l.Program == "cleanup" && strings.HasPrefix(l.Text, "reject: "):
		e.What = "rejected"
	case strings.Contains(l.Text, "milter-hold: "), l.Program == "cleanup" && strings.HasPrefix(l.Text, "hold: "):
		e.What = "held"
	case l.Program == "qmgr" && strings.HasPrefix(l.Text, "from=<"):
		e.What = "queued"
	default:
		to, after, ok := maillog.Bracketed(l.Text, "to=<")
		if !ok {
			return e
		}
		e.Recipient = to
		if orig, _, ok := maillog.Bracketed(strings.TrimPrefix(after, ", "), "orig_to=<"); ok {
			e.Recipient = orig
		}
		if _, rest, ok := strings.Cut(after, "relay="); ok {
			e.Relay, _, _ = strings.Cut(rest, ", ")
		}
		_, status, _ := strings.Cut(after, ", status=")
		e.What, _, _ = strings.Cut(status, " ")
		if m := queuedAs.FindStringSubmatch(status); m != nil && e.What == "sent" && f.passes(e.Relay) {
			f.ids, e.What = append(f.ids, m[1]), "" // it goes on under another id
		}
	}
	return e
}

// passes reports whether a relay is a content filter of this host, which hands
// the message back.
func (f *Follower) passes(relay string) bool {
	_, addr, ok := maillog.Client(relay)
	return ok && addr.IsLoopback()
}

// LogFile is where the instance logs, "" for syslog or journald.
func (s *Setup) LogFile() string { return s.Value(nil, "maillog_file") }

// Tail yields lines that are written to a file from offset on, until ctx is
// done or yield returns false. A file that is rotated meanwhile is read on under its
// name.
func Tail(ctx context.Context, path string, offset int64, yield func(line string) bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	b := bufio.NewReader(f)
	var part string
	for {
		line, err := b.ReadString('\n')
		part += line
		switch {
		case err == nil:
			if !yield(strings.TrimRight(part, "\r\n")) {
				return nil
			}
			part = ""
			continue
		case !errors.Is(err, io.EOF):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if now, err := os.Stat(path); err == nil {
			if was, err := f.Stat(); err == nil && !os.SameFile(now, was) {
				next, err := os.Open(path)
				if err != nil {
					continue
				}
				_ = f.Close()
				f, b, part = next, bufio.NewReader(next), ""
			}
		}
	}
}

// Queued is a message in the queue (postqueue(1), -j).
type Queued struct {
	Queue      string `json:"queue_name"`
	ID         string `json:"queue_id"`
	Recipients []struct {
		Address string `json:"address"`
		Reason  string `json:"delay_reason"`
	} `json:"recipients"`
}

// InQueue returns the message with an id, nil when it is not in the queue.
func (s *Setup) InQueue(ctx context.Context, id string) (*Queued, error) {
	args := []string{"-j"}
	if s.Dir != "" {
		args = []string{"-c", s.Dir, "-j"}
	}
	cmd := exec.CommandContext(ctx, program("postqueue"), args...)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("postqueue: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		var q Queued
		if json.Unmarshal([]byte(line), &q) == nil && q.ID == id {
			return &q, nil
		}
	}
	return nil, nil
}

// Logs are files where a host's log may be, the first that is there.
func Logs() string {
	for _, path := range []string{"/var/log/mail.log", "/var/log/maillog"} {
		if _, err := os.Stat(path); err == nil {
			return filepath.Clean(path)
		}
	}
	return ""
}
