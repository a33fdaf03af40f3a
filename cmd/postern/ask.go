package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/config"
	"postern/internal/listen"
)

// askTimeout is longer than a decision may take.
const askTimeout = 100 * time.Second

func (c *cli) askCommand() *cobra.Command {
	var to string
	var attrs []string
	values := map[string]*string{}
	cmd := &cobra.Command{
		Use:   "ask",
		Short: "send one request to the policy door, as Postfix would",
		Long: "Speaks the policy delegation protocol to a running door and prints the answer. Unlike explain,\n" +
			"this is a real request: it is counted, logged and greylisted.",
		Example: "  postern ask --client 192.0.2.7 --helo mail.example.org --sender a@example.org --recipient b@example.com\n" +
			"  postern ask --to tcp:127.0.0.1:10040 --attr policy_context=submission",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := c.dialPolicy(to)
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // the answer is read
			if !cmd.Flags().Changed("helo") {
				*values["helo_name"] = addressLiteral(*values["client_address"])
			}
			var b strings.Builder
			b.WriteString("request=smtpd_access_policy\nprotocol_name=ESMTP\n")
			for name, v := range values {
				fmt.Fprintf(&b, "%s=%s\n", name, *v)
			}
			for _, a := range attrs {
				if !strings.Contains(a, "=") {
					return fmt.Errorf("--attr %q is not NAME=VALUE", a)
				}
				b.WriteString(a + "\n")
			}
			if text := b.String(); strings.Contains(text, "\n\n") || strings.ContainsAny(text, "\r\x00") {
				return errors.New("a value holds a line break or NUL, which the protocol cannot carry")
			}
			b.WriteString("\n")
			_ = conn.SetDeadline(time.Now().Add(askTimeout)) // a dead connection fails the write
			if _, err := io.WriteString(conn, b.String()); err != nil {
				return err
			}
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil {
				return fmt.Errorf("the door closed without an answer: %w", err)
			}
			fmt.Fprint(cmd.OutOrStdout(), line)
			return nil
		},
	}
	f := cmd.Flags()
	for _, a := range [][4]string{
		{"client", "client_address", "192.0.2.1", "IP address of the client"},
		{"client-name", "client_name", "unknown", "verified reverse name"},
		{"helo", "helo_name", "", "HELO or EHLO name (default: the client's address in brackets)"},
		{"sender", "sender", "", "envelope sender; empty for the null sender"},
		{"recipient", "recipient", "", "envelope recipient"},
		{"stage", "protocol_state", "RCPT", "CONNECT, EHLO, HELO, MAIL, RCPT, DATA, END-OF-MESSAGE, VRFY or ETRN"},
		{"context", "policy_context", "", "policy_context, which picks a chain"},
		{"instance", "instance", "", "identifies the message; headers are added once per instance"},
	} {
		values[a[1]] = f.String(a[0], a[2], a[3])
	}
	f.StringArrayVar(&attrs, "attr", nil, "further attribute, NAME=VALUE; may be repeated")
	f.StringVar(&to, "to", "", "address of the door (default: the first of policy.listen)")
	return cmd
}

// addressLiteral is what a client that is not asked about its HELO name says: its
// address (RFC 5321 section 4.1.3), which speaks neither for nor against it.
func addressLiteral(ip string) string {
	addr, err := netip.ParseAddr(ip)
	switch {
	case err != nil:
		return ""
	case addr.Unmap().Is4():
		return "[" + addr.Unmap().String() + "]"
	default:
		return "[IPv6:" + addr.String() + "]"
	}
}

func (c *cli) dialPolicy(to string) (net.Conn, error) {
	var a listen.Address
	if to != "" {
		if err := a.UnmarshalText([]byte(to)); err != nil {
			return nil, fmt.Errorf("--to: %w", err)
		}
	} else {
		cfg := config.Peek(c.config)
		if len(cfg.Policy.Listen) == 0 {
			return nil, errors.New("policy.listen is empty: there is no policy door")
		}
		a = cfg.Policy.Listen[0]
	}
	conn, err := net.DialTimeout(a.Network, a.Target(), 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("no daemon answers: %w", err)
	}
	return conn, nil
}
