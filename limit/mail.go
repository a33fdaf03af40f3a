package limit

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"mime"
	"strings"

	"postern/internal/conf"
	"postern/internal/sendmail"
)

// mail sends a notification as a mail.
type mail struct {
	Notify
	hostname, program string
}

func (n *Notify) validateMail(prefix string, fs *conf.Faults) {
	if len(n.To) > maxNotifyTo {
		fs.Keyf(prefix+".to", "%d addresses: at most %d", len(n.To), maxNotifyTo)
	}
	for i, to := range n.To {
		if !sendmail.Address(to) && !sendmail.Name(to) {
			fs.Keyf(index(prefix+".to", i), "%q is no address that can be used here", to)
		}
	}
	if n.From != "" && !sendmail.Address(n.From) {
		fs.Keyf(prefix+".from", "%q is no address that can be used here", n.From)
	}
	if strings.ContainsAny(n.Subject, "\r\n") || len(n.Subject) > maxSubject {
		fs.Keyf(prefix+".subject", "is one line of at most %d bytes", maxSubject)
	}
	for _, k := range []struct {
		key string
		set bool
	}{{"token_file", n.TokenFile != ""}, {"headers", len(n.Headers) > 0}, {"content_type", n.ContentType != ""}, {"ca_file", n.CAFile != ""}} {
		if k.set {
			fs.Keyf(prefix+"."+k.key, "is for webhooks")
		}
	}
}

const maxSubject = 200

func (m *mail) send(ctx context.Context, ev *event) error {
	err := sendmail.Send(ctx, m.program, m.From, m.To, m.message(ev))
	if errors.Is(err, sendmail.ErrLasting) {
		return lasting{err}
	}
	return err
}

// message returns the whole of it, with LF as line ends: sendmail(1) wants
// those of the system.
func (m *mail) message(ev *event) []byte {
	from := m.From
	if from == "" {
		from = "postern@" + m.hostname
	}
	to := make([]string, len(m.To))
	copy(to, m.To)
	subject := ev.fill(m.Subject, m.hostname, escapeText)
	if r := []rune(subject); len(r) > maxSubject {
		subject = string(r[:maxSubject-3]) + "..."
	}
	var b bytes.Buffer
	for _, h := range [][2]string{
		{"From", "postern <" + from + ">"},
		{"To", strings.Join(to, ",\n ")},
		{"Subject", folded(mime.QEncoding.Encode("utf-8", subject))},
		{"Date", ev.time.Format("Mon, 02 Jan 2006 15:04:05 -0700")},
		{"Message-ID", "<postern." + rand.Text() + "@" + m.hostname + ">"},
		{"Auto-Submitted", "auto-generated"}, // RFC 3834: nobody's absence answers it
		{"Precedence", "bulk"},
		{"MIME-Version", "1.0"},
		{"Content-Type", "text/plain; charset=utf-8"},
		{"Content-Transfer-Encoding", "base64"},
	} {
		b.WriteString(h[0] + ": " + h[1] + "\n")
	}
	b.WriteByte('\n')
	text := base64.StdEncoding.EncodeToString([]byte(strings.TrimRight(ev.fill(m.Body, m.hostname, escapeText), "\n") + "\n"))
	for len(text) > 76 {
		b.WriteString(text[:76] + "\n")
		text = text[76:]
	}
	b.WriteString(text + "\n")
	return b.Bytes()
}

// folded breaks a field between encoded words.
func folded(s string) string { return strings.ReplaceAll(s, "?= =?", "?=\n =?") }
