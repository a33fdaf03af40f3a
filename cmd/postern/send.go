package main

import (
	"context"
	"errors"
	"fmt"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/internal/adminapi"
	"postern/postfix"
)

// Exit statuses of `postern send`, as sysexits(3) has them.
const (
	exitBounced  = 69
	exitDeferred = 75
)

// sent is what `postern send` reports.
type sent struct {
	ID      string            `json:"queue_id"`
	Refused []postfix.Refused `json:"refused,omitempty"`
	Events  []postfix.Event   `json:"events"`
	Outcome string            `json:"outcome"` // "delivered", "deferred", "bounced", "unknown"
}

func (c *cli) sendCommand() *cobra.Command {
	var files postfixFiles
	var l postfix.Letter
	var subject, body, file, server, log string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "send --from A --to B...", Short: "send a test message through this host's Postfix, and follow it until it is delivered, deferred or bounced",
		Long: "Hands the message to Postfix by SMTP and follows it in the log, through content filters that hand it\n" +
			"back, too. Exit status 0: delivered to all recipients; 75: deferred; 69: refused or bounced; 1: anything else.",
		Example: "  postern send --from me@example.org --to you@example.net --subject test\n" +
			"  postern send --from me@example.org --to you@example.net --file newsletter.eml",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			setup, err := files.read(cmd)
			if err != nil {
				return err
			}
			if l.Text, err = letterText(&l, subject, body, file); err != nil {
				return err
			}
			if log == "" {
				if log = setup.LogFile(); log == "" {
					log = postfix.Logs()
				}
			}
			out, err := send(cmd, setup, &l, server, log, timeout, !c.json)
			if out == nil {
				return err
			}
			if c.json {
				if err := writeJSON(cmd.OutOrStdout(), out); err != nil {
					return err
				}
			}
			if err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "postern:", err)
			}
			switch out.Outcome {
			case "delivered":
				return nil
			case "deferred":
				return exitStatus(exitDeferred)
			case "bounced":
				return exitStatus(exitBounced)
			}
			return errSaid
		},
	}
	f := cmd.Flags()
	f.StringVar(&l.From, "from", "", "envelope sender, also in From; \"\" for the null sender")
	f.StringArrayVar(&l.To, "to", nil, "recipient; can be given several times")
	f.StringVar(&subject, "subject", "postern test", "subject")
	f.StringVar(&body, "body", "This is a test message.", "text")
	f.StringVar(&file, "file", "", "a whole message, header and body, in place of subject and body")
	f.StringVar(&server, "server", "127.0.0.1:25", "Postfix's smtpd")
	f.StringVar(&log, "log", "", "Postfix's log (default: maillog_file, /var/log/mail.log or /var/log/maillog)")
	f.DurationVar(&timeout, "timeout", time.Minute, "how long to follow it")
	files.flags(cmd)
	_ = cmd.MarkFlagRequired("to") // it is there
	cmd.MarkFlagsMutuallyExclusive("file", "subject")
	cmd.MarkFlagsMutuallyExclusive("file", "body")
	return cmd
}

// letterText is the message: a file's, or made of subject and body.
func letterText(l *postfix.Letter, subject, body, file string) ([]byte, error) {
	for _, a := range append([]string{l.From, subject}, l.To...) {
		if strings.ContainsAny(a, "\r\n<>") {
			return nil, fmt.Errorf("%q holds what no address or subject has", a)
		}
	}
	if file != "" {
		return os.ReadFile(file)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	now := time.Now()
	return fmt.Appendf(nil, "From: <%s>\nTo: <%s>\nSubject: %s\nDate: %s\nMessage-ID: <postern.%d@%s>\nAuto-Submitted: auto-generated\n\n%s\n",
		l.From, strings.Join(l.To, ">, <"), subject, now.Format(time.RFC1123Z), now.UnixNano(), host, body), nil
}

// send hands the message over and follows it; out is nil when nothing was
// sent.
func send(cmd *cobra.Command, setup *postfix.Setup, l *postfix.Letter, server, log string, timeout time.Duration, talk bool) (out *sent, err error) {
	var offset int64
	if st, err := os.Stat(log); err == nil {
		offset = st.Size()
	}
	out = &sent{Outcome: "unknown", Events: []postfix.Event{}}
	say := func(format string, args ...any) {
		if talk {
			fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
		}
	}
	out.ID, out.Refused, err = postfix.Send(cmd.Context(), server, l)
	for _, r := range out.Refused {
		say("refused    %s: %s", adminapi.Printable(r.Recipient), adminapi.Printable(r.Reply))
	}
	if err != nil {
		if reply := (*textproto.Error)(nil); errors.As(err, &reply) {
			out.Refused = append(out.Refused, postfix.Refused{Reply: fmt.Sprintf("%d %s", reply.Code, reply.Msg)})
		}
		if o := refusedOutcome(out.Refused); o != "" {
			out.Outcome = o
		}
		return out, err
	}
	say("queued     as %s", out.ID)
	if log == "" || out.ID == "" {
		return out, errors.New("there is no log to follow it in: name it with --log")
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	open := map[string]bool{} // recipients without an end
	for _, to := range l.To {
		if !slices.ContainsFunc(out.Refused, func(r postfix.Refused) bool { return r.Recipient == to }) {
			open[strings.ToLower(to)] = true
		}
	}
	worst := ""
	f := postfix.Follow(out.ID, time.Now())
	err = postfix.Tail(ctx, log, offset, func(line string) bool {
		e, ok := f.Line(line)
		if !ok {
			return true
		}
		out.Events = append(out.Events, e)
		what := e.What
		if what == "" {
			what = "."
		}
		say("%-10s %s", what, adminapi.Printable(e.Text))
		if !e.Final() {
			return true
		}
		if worst == "" || e.What != "sent" {
			worst = e.What
		}
		if e.Recipient == "" {
			clear(open) // of all
		}
		delete(open, strings.ToLower(e.Recipient))
		return len(open) > 0
	})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		q, qerr := setup.InQueue(cmd.Context(), out.ID)
		if qerr == nil && q != nil {
			out.Outcome = "deferred"
			return out, fmt.Errorf("after %v it is in the queue (%s) still", timeout, q.Queue)
		}
		return out, fmt.Errorf("after %v the log %s has no end of it", timeout, log)
	case err != nil:
		return out, err
	}
	switch worst {
	case "sent":
		out.Outcome = "delivered"
	case "deferred", "held":
		out.Outcome = "deferred"
	default:
		out.Outcome = "bounced"
	}
	if o := refusedOutcome(out.Refused); o == "bounced" || o != "" && out.Outcome == "delivered" {
		out.Outcome = o
	}
	say("=> %s", out.Outcome)
	return out, nil
}

// refusedOutcome is what becomes of those that the server did not take, "" when
// there are none.
func refusedOutcome(all []postfix.Refused) string {
	switch {
	case len(all) == 0:
		return ""
	case slices.ContainsFunc(all, func(r postfix.Refused) bool { return !strings.HasPrefix(r.Reply, "4") }):
		return "bounced"
	}
	return "deferred"
}
