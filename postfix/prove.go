package postfix

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"time"
)

// AskPolicy asks a policy server about a made-up client as smtpd would, and returns
// its action.
func AskPolicy(ctx context.Context, door Endpoint) (string, error) {
	network, addr := "unix", door.Path
	if door.Network == "tcp" {
		text, _ := door.Postfix("", false)
		network, addr = "tcp", strings.TrimPrefix(text, "inet:")
	}
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
	if err != nil {
		return "", err
	}
	defer conn.Close() //nolint:errcheck // nothing is pending
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	// CONNECT of an address for documentation: nothing is learned from it.
	if _, err := fmt.Fprint(conn, "request=smtpd_access_policy\nprotocol_state=CONNECT\nprotocol_name=SMTP\nclient_address=192.0.2.1\nclient_name=unknown\nreverse_client_name=unknown\n\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", err
	}
	action, ok := strings.CutPrefix(strings.TrimSpace(line), "action=")
	if !ok {
		return "", fmt.Errorf("%q is no answer of a policy server", strings.TrimSpace(line))
	}
	return action, nil
}

// Session is what a session by SMTP has shown.
type Session struct {
	Lines  []string `json:"lines"`  // what was said, "C: ..." and "S: ..."
	Client bool     `json:"client"` // Postfix took a made-up client (XCLIENT)
	Code   int      `json:"code"`   // of the reply to RCPT
}

// Try talks to an SMTP server up to RCPT, as a stranger where Postfix permits
// XCLIENT from here, and takes it back: no mail is sent.
func Try(ctx context.Context, addr, from, to string) (s Session, err error) {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return s, err
	}
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	c := textproto.NewConn(conn)
	defer c.Close() //nolint:errcheck // nothing is pending
	say := func(line string) (code int, text string, err error) {
		if line != "" {
			s.Lines = append(s.Lines, "C: "+line)
			if err := c.PrintfLine("%s", line); err != nil {
				return 0, "", err
			}
		}
		code, text, err = c.ReadResponse(0)
		if code != 0 {
			err = nil
			for _, l := range strings.Split(text, "\n") {
				s.Lines = append(s.Lines, fmt.Sprintf("S: %d %s", code, l))
			}
		}
		return code, text, err
	}
	if code, text, err := say(""); err != nil || code != 220 {
		return s, orReply(err, code, text)
	}
	code, text, err := say("EHLO mail.example.org")
	if err != nil || code != 250 {
		return s, orReply(err, code, text)
	}
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "XCLIENT ") && strings.Contains(line, "ADDR") {
			if code, text, err := say("XCLIENT NAME=mail.example.org ADDR=192.0.2.1"); err != nil || code != 220 {
				return s, orReply(err, code, text)
			}
			s.Client = true
			if code, text, err := say("EHLO mail.example.org"); err != nil || code != 250 {
				return s, orReply(err, code, text)
			}
		}
	}
	if code, text, err := say("MAIL FROM:<" + from + ">"); err != nil || code != 250 {
		return s, orReply(err, code, text)
	}
	if s.Code, _, err = say("RCPT TO:<" + to + ">"); err != nil {
		return s, err
	}
	_, _, _ = say("RSET") // the answer to RCPT has been seen
	_, _, _ = say("QUIT")
	return s, nil
}

func orReply(err error, code int, text string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("the server says %d %s", code, text)
}
