package limit

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"mime"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"postern/internal/conf"
)

// mail hands a message to Postfix's sendmail(1), which puts it into the
// maildrop: smtpd, and so this daemon, never sees it.
type mail struct {
	Notify
	hostname, program string
}

// Addresses that are safe as an argument and in a header field: nothing that
// would have to be quoted, and no "-" in front.
var (
	mailAddress = regexp.MustCompile(`^[A-Za-z0-9!#$%&'*+/=?^_{|}~][A-Za-z0-9!#$%&'*+/=?^_{|}~.-]{0,63}@[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	mailName    = regexp.MustCompile(`^[a-z0-9_][a-z0-9_.-]{0,63}$`)
)

func (n *Notify) validateMail(prefix string, fs *conf.Faults) {
	if len(n.To) > maxNotifyTo {
		fs.Keyf(prefix+".to", "%d addresses: at most %d", len(n.To), maxNotifyTo)
	}
	for i, to := range n.To {
		if !mailAddress.MatchString(to) && !mailName.MatchString(to) {
			fs.Keyf(index(prefix+".to", i), "%q is no address that can be used here", to)
		}
	}
	if n.From != "" && !mailAddress.MatchString(n.From) {
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

const (
	maxSubject = 200
	// maxComplaint is how much is read of what the program says.
	maxComplaint = 4 << 10
)

// args are the program's arguments: no line of them comes from a stranger.
func (m *mail) args() []string {
	return append([]string{"-i", "-f", m.From, "--"}, m.To...)
}

func (m *mail) send(ctx context.Context, ev *event) error {
	cmd := exec.CommandContext(ctx, m.program, m.args()...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	// An administrator with several instances of Postfix says which by this.
	if dir := os.Getenv("MAIL_CONFIG"); dir != "" {
		cmd.Env = append(cmd.Env, "MAIL_CONFIG="+dir)
	}
	cmd.Stdin = bytes.NewReader(m.message(ev))
	var said limited
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	err = fmt.Errorf("mail: %w: %s", err, escapeText.apply(strings.TrimSpace(said.String())))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
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

// limited keeps the beginning of what is written.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxComplaint - l.Len(); room > 0 {
		_, _ = l.Buffer.Write(p[:min(len(p), room)]) // never fails
	}
	return len(p), nil
}
