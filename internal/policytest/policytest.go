// Package policytest is the Postfix side of the policy delegation protocol,
// for tests and benchmarks: a client, sample requests, and the floor that
// benchmarks are measured against.
package policytest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Attrs are the attributes of one request, in the order in which they are sent.
type Attrs [][2]string

// Sample is a request at RCPT as Postfix 3.7 sends it.
func Sample() Attrs {
	return Attrs{
		{"request", "smtpd_access_policy"},
		{"protocol_state", "RCPT"},
		{"protocol_name", "ESMTP"},
		{"client_address", "192.0.2.7"},
		{"client_name", "mail.example.org"},
		{"client_port", "40211"},
		{"reverse_client_name", "mail.example.org"},
		{"server_address", "192.0.2.10"},
		{"server_port", "25"},
		{"helo_name", "mail.example.org"},
		{"sender", "alice@example.org"},
		{"recipient", "bob@example.com"},
		{"recipient_count", "0"},
		{"queue_id", ""},
		{"instance", "1a2b.66f1c0de.c35a7.0"},
		{"size", "1532"},
		{"etrn_domain", ""},
		{"stress", ""},
		{"sasl_method", ""},
		{"sasl_username", ""},
		{"sasl_sender", ""},
		{"ccert_subject", ""},
		{"ccert_issuer", ""},
		{"ccert_fingerprint", ""},
		{"ccert_pubkey_fingerprint", ""},
		{"encryption_protocol", "TLSv1.3"},
		{"encryption_cipher", "TLS_AES_256_GCM_SHA384"},
		{"encryption_keysize", "256"},
		{"policy_context", ""},
	}
}

// With returns a copy of a with the named attributes set, new ones at the end.
// The arguments are names and values in turn.
func (a Attrs) With(pairs ...string) Attrs {
	out := append(Attrs(nil), a...)
	for i := 0; i < len(pairs); i += 2 {
		found := false
		for j := range out {
			if out[j][0] == pairs[i] {
				out[j][1], found = pairs[i+1], true
			}
		}
		if !found {
			out = append(out, [2]string{pairs[i], pairs[i+1]})
		}
	}
	return out
}

// Bytes returns the request as it stands on the wire.
func (a Attrs) Bytes() []byte {
	var b []byte
	for _, p := range a {
		b = append(append(append(append(b, p[0]...), '='), p[1]...), '\n')
	}
	return append(b, '\n')
}

// Client is one connection, as an smtpd process holds it.
type Client struct {
	net.Conn
	r *bufio.Reader
}

// timeout is that of smtpd_policy_service_timeout.
const timeout = 100 * time.Second

// Dial connects to a door; the test fails when that fails.
func Dial(t testing.TB, addr net.Addr) *Client {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // it may be closed already
	return &Client{c, bufio.NewReaderSize(c, 1024)}
}

// Ask sends a request and returns the action.
func (c *Client) Ask(a Attrs) (string, error) { return c.AskBytes(a.Bytes()) }

// AskBytes sends a request as it is and returns the action.
func (c *Client) AskBytes(b []byte) (string, error) {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := c.Write(b); err != nil {
		return "", err
	}
	return c.Answer()
}

// Answer reads one answer as strictly as Postfix does.
func (c *Client) Answer() (string, error) {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	action, ok := strings.CutPrefix(line, "action=")
	if !ok {
		return "", fmt.Errorf("answer %q is no action", line)
	}
	action = strings.TrimSuffix(action, "\n")
	empty, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	if empty != "\n" {
		return "", fmt.Errorf("answer %q is followed by %q, not by an empty line", line, empty)
	}
	if err := Proper(action); err != nil {
		return "", err
	}
	return action, nil
}

// Proper returns an error for an action that Postfix would misread.
func Proper(action string) error {
	word, text, _ := strings.Cut(action, " ")
	_, number := strconv.Atoi(word)
	switch {
	case action == "":
		return fmt.Errorf("an empty action is a permit")
	case number == nil && text == "":
		return fmt.Errorf("action %q is a permit", action)
	case len(action) > 510:
		return fmt.Errorf("action of %d bytes would be cut", len(action))
	}
	for i := range len(action) {
		if action[i] < ' ' || action[i] > '~' {
			return fmt.Errorf("byte %#x in action %q", action[i], action)
		}
	}
	return nil
}

// MustAsk is Ask for tests in which it cannot fail.
func (c *Client) MustAsk(t testing.TB, a Attrs) string {
	t.Helper()
	action, err := c.Ask(a)
	if err != nil {
		t.Fatalf("ask: %v", err)
	}
	return action
}

// Floor is a server that reads a request and answers at once, without looking
// at it: what no policy server can be faster than. It serves l until l is closed.
func Floor(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close() //nolint:errcheck // the peer is gone
			buf := make([]byte, 0, 4096)
			for {
				n, err := c.Read(buf[len(buf):cap(buf)])
				if err != nil {
					return
				}
				buf = buf[:len(buf)+n]
				if len(buf) >= 2 && string(buf[len(buf)-2:]) == "\n\n" {
					buf = buf[:0]
					if _, err := io.WriteString(c, "action=DUNNO\n\n"); err != nil {
						return
					}
				}
			}
		}()
	}
}
