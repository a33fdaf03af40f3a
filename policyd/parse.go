package policyd

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Limits bound one request.
type Limits struct {
	Line, Request int // bytes
	Attributes    int
}

// Errors of a request. The connection cannot go on after one.
var (
	ErrTooLong   = errors.New("request exceeds a limit")
	ErrMalformed = errors.New("malformed request")
)

// scanner finds the end of a request in a growing buffer, reading each byte once.
type scanner struct {
	at   int // bytes looked at
	line int // start of the current line
}

// end returns the length of the request that buf begins with, its empty line
// included, or 0 when it is not complete yet. buf must begin with what it
// began with before.
func (s *scanner) end(buf []byte, l Limits) (int, error) {
	if s.at == 0 && len(buf) > 0 && len(buf) <= min(l.Line, l.Request) && buf[0] != '\n' {
		// The usual case: all of it at once, and no line can be too long.
		if i := bytes.Index(buf, endOfRequest); i >= 0 && bytes.IndexByte(buf[:i], '\r') < 0 {
			return i + 2, nil
		}
	}
	for {
		i := bytes.IndexByte(buf[s.at:], '\n')
		if i < 0 {
			s.at = len(buf)
			if s.at-s.line > l.Line {
				return 0, fmt.Errorf("%w: a line of more than %d bytes", ErrTooLong, l.Line)
			}
			break
		}
		end := s.at + i
		length := end - s.line
		if length > l.Line {
			return 0, fmt.Errorf("%w: a line of more than %d bytes", ErrTooLong, l.Line)
		}
		empty := length == 0 || length == 1 && buf[s.line] == '\r'
		s.at, s.line = end+1, end+1
		if end >= l.Request {
			return 0, fmt.Errorf("%w: more than %d bytes", ErrTooLong, l.Request)
		}
		if empty {
			*s = scanner{}
			return end + 1, nil
		}
	}
	if len(buf) > l.Request {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrTooLong, l.Request)
	}
	return 0, nil
}

// Parse reads one whole request, its empty line included, into req, whose
// protocol fields it overwrites; Time, Door, Listener, Chain and Facts are the
// caller's. Unknown attributes are passed over, missing ones stay empty, of a
// repeated one the last counts (SMTPD_POLICY_README). A line may end in CR LF,
// as a person at a terminal sends it. The strings of req share text.
func Parse(text string, maxAttributes int, req *policy.Request) error {
	req.Stage, req.Context, req.Client = policy.StageUnknown, "", policy.Client{}
	req.ServerAddr, req.ServerPort, req.ESMTP, req.Helo = netip.Addr{}, 0, false, ""
	req.Sender, req.Recipient, req.RecipientCount = policy.Address{}, policy.Address{}, 0
	req.QueueID, req.Instance, req.Size, req.ETRNDomain, req.Stress = "", "", 0, "", false
	req.SASL, req.TLS, req.CompatibilityLevel, req.MailVersion = policy.SASL{}, policy.TLS{}, "", ""

	if strings.IndexByte(text, 0) >= 0 {
		return fmt.Errorf("%w: it holds a NUL", ErrMalformed)
	}
	kind := ""
	for n := 0; ; n++ {
		end := strings.IndexByte(text, '\n')
		if end < 0 {
			return fmt.Errorf("%w: no empty line at its end", ErrMalformed)
		}
		line := text[:end]
		text = text[end+1:]
		if end > 0 && line[end-1] == '\r' {
			line = line[:end-1]
		}
		if line == "" {
			break
		}
		if n >= maxAttributes {
			return fmt.Errorf("%w: more than %d attributes", ErrTooLong, maxAttributes)
		}
		eq := strings.IndexByte(line, '=')
		if eq < 0 {
			return fmt.Errorf("%w: line %d has no '='", ErrMalformed, n+1)
		}
		name, value := line[:eq], line[eq+1:]
		if value == "" && name != "request" {
			continue // as if it were not there
		}
		switch name {
		case "request":
			kind = value
		case "protocol_state":
			req.Stage = stageOf(value)
		case "protocol_name":
			req.ESMTP = value == "ESMTP"
		case "client_address":
			req.Client.Addr = mailaddr.IP(value)
		case "client_name":
			req.Client.Name = mailaddr.HostName(value)
		case "client_port":
			req.Client.Port = port(value)
		case "reverse_client_name":
			req.Client.ReverseName = mailaddr.HostName(value)
		case "server_address":
			req.ServerAddr = mailaddr.IP(value)
		case "server_port":
			req.ServerPort = port(value)
		case "helo_name":
			req.Helo = value
		case "sender":
			req.Sender = mailaddr.Parse(value)
		case "recipient":
			req.Recipient = mailaddr.Parse(value)
		case "recipient_count":
			req.RecipientCount = int(number(value, 31))
		case "queue_id":
			req.QueueID = value
		case "instance":
			req.Instance = value
		case "size":
			req.Size = int64(number(value, 63))
		case "etrn_domain":
			req.ETRNDomain = value
		case "stress":
			req.Stress = value == "yes"
		case "sasl_method":
			req.SASL.Method = value
		case "sasl_username":
			req.SASL.Username = value
		case "sasl_sender":
			req.SASL.Sender = value
		case "ccert_subject":
			req.TLS.CertSubject = xtext(value)
		case "ccert_issuer":
			req.TLS.CertIssuer = xtext(value)
		case "ccert_fingerprint":
			req.TLS.CertFingerprint = value
		case "ccert_pubkey_fingerprint":
			req.TLS.PubkeyFingerprint = value
		case "encryption_protocol":
			req.TLS.Protocol = value
		case "encryption_cipher":
			req.TLS.Cipher = value
		case "encryption_keysize":
			req.TLS.KeySize = int(number(value, 31))
		case "tls_sni":
			req.TLS.SNI = value
		case "policy_context":
			req.Context = value
		case "compatibility_level":
			req.CompatibilityLevel = value
		case "mail_version":
			req.MailVersion = value
		}
	}
	if kind != "smtpd_access_policy" {
		return fmt.Errorf("%w: request type %.40q", ErrMalformed, kind)
	}
	return nil
}

func stageOf(state string) policy.Stage {
	switch state {
	case "CONNECT":
		return policy.StageConnect
	case "EHLO", "HELO":
		return policy.StageHelo
	case "MAIL":
		return policy.StageMail
	case "RCPT":
		return policy.StageRcpt
	case "DATA", "BDAT":
		return policy.StageData
	case "END-OF-MESSAGE":
		return policy.StageEndOfMessage
	case "VRFY":
		return policy.StageVrfy
	case "ETRN":
		return policy.StageEtrn
	}
	return policy.StageUnknown
}

func port(s string) uint16 { return uint16(number(s, 16)) }

// number reads an unsigned number; what is none, or too large, is 0.
func number(s string, bits int) uint64 {
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		return 0
	}
	return n
}

// xtext decodes +XX (RFC 3461 section 4). A value that is no valid xtext is
// returned as it is.
func xtext(s string) string {
	if strings.IndexByte(s, '+') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '+' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return s
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return s
		}
		b.WriteByte(byte(n))
		i += 2
	}
	return b.String()
}
