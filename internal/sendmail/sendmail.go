// Package sendmail hands messages to Postfix's sendmail(1), which puts them into
// the maildrop: smtpd, and so this daemon, never sees them.
package sendmail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// Default is where the program usually is.
const Default = "/usr/sbin/sendmail"

var (
	address = regexp.MustCompile(`^[A-Za-z0-9!#$%&'*+/=?^_{|}~][A-Za-z0-9!#$%&'*+/=?^_{|}~.-]{0,63}@[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	name    = regexp.MustCompile(`^[a-z0-9_][a-z0-9_.-]{0,63}$`)
)

// Address reports whether s is an address that is safe as an argument and in a
// header field: nothing that would have to be quoted, and no "-" in front.
func Address(s string) bool { return address.MatchString(s) }

// Name is the same for the name of a user of this host.
func Name(s string) bool { return name.MatchString(s) }

// ErrLasting marks failures that a later attempt meets, too.
var ErrLasting = errors.New("sendmail: the program cannot be run")

// Send hands a message over, whose lines end with LF. from is "" for the null
// sender; from and to are safe in the sense of [Address] and [Name]. It returns
// soon after ctx is done.
func Send(ctx context.Context, program, from string, to []string, message []byte) error {
	cmd := exec.CommandContext(ctx, program, Args(from, to)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	// An administrator with several instances of Postfix says which by this.
	if dir := os.Getenv("MAIL_CONFIG"); dir != "" {
		cmd.Env = append(cmd.Env, "MAIL_CONFIG="+dir)
	}
	cmd.Stdin = bytes.NewReader(message)
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
	err = fmt.Errorf("mail: %w: %s", err, plain(strings.TrimSpace(said.String())))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: %w", ErrLasting, err)
	}
	return err
}

// Args are the program's arguments.
func Args(from string, to []string) []string { return append([]string{"-i", "-f", from, "--"}, to...) }

func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// maxComplaint is how much is read of what the program says.
const maxComplaint = 4 << 10

// limited keeps the beginning of what is written.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxComplaint - l.Len(); room > 0 {
		_, _ = l.Buffer.Write(p[:min(len(p), room)]) // never fails
	}
	return len(p), nil
}
