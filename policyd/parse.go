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

// end returns a length at which a request in buf ends, its empty line
// included, or 0 when there is none yet. That is the request that buf begins
// with, or one behind it: Postfix sends one and waits, so where all has come
// at once nobody looks for an earlier end but [Parse]. buf must begin with
// what it began with before.
func (s *scanner) end(buf []byte, l Limits) (int, error) {
	if s.at == 0 && len(buf) <= min(l.Line, l.Request, usualRequest) && bytes.HasSuffix(buf, endOfRequest) {
		return len(buf), nil // no line can be too long
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

// usualRequest is more than Postfix sends in life.
const usualRequest = 4 << 10

// memory is what the last request of a connection was made of, which one about
// the same session repeats.
type memory struct {
	clientText, serverText, nameText string
	client, server                   netip.Addr
	name                             string
}

// Parse reads the request that text begins with, its empty line included, into
// req, whose protocol fields it overwrites; Time, Door, Listener, Chain and
// Facts are the caller's. Unknown attributes are skipped, missing ones stay
// empty, of a repeated one the last counts (SMTPD_POLICY_README). A line may
// end in CR LF, as a person at a terminal sends it. The strings of req share
// text. It returns the length of the request.
func Parse(text string, maxAttributes int, req *policy.Request) (int, error) {
	return new(memory).parse(text, maxAttributes, req)
}

func (m *memory) parse(text string, maxAttributes int, req *policy.Request) (int, error) {
	req.Stage, req.Context, req.Client = policy.StageUnknown, "", policy.Client{}
	req.ServerAddr, req.ServerPort, req.ESMTP, req.Helo = netip.Addr{}, 0, false, ""
	req.Sender, req.Recipient, req.RecipientCount = policy.Address{}, policy.Address{}, 0
	req.QueueID, req.Instance, req.Size, req.ETRNDomain, req.Stress = "", "", 0, "", false
	req.SASL, req.TLS, req.CompatibilityLevel, req.MailVersion = policy.SASL{}, policy.TLS{}, "", ""

	kind := ""
	next, rest := aRequest, text
	for n := 0; ; n++ {
		at, value, after := line(rest, next)
		rest = after
		if at > aUnknown {
			used := len(text) - len(rest)
			switch {
			case at == lineUnended:
				return 0, fmt.Errorf("%w: no empty line at its end", ErrMalformed)
			case at == lineStrange:
				return 0, fmt.Errorf("%w: line %d has no '='", ErrMalformed, n+1)
			case strings.IndexByte(text[:used], 0) >= 0:
				return 0, fmt.Errorf("%w: it holds a NUL", ErrMalformed)
			case kind != "smtpd_access_policy":
				return 0, fmt.Errorf("%w: request type %.40q", ErrMalformed, kind)
			}
			return used, nil
		}
		if n >= maxAttributes {
			return 0, fmt.Errorf("%w: more than %d attributes", ErrTooLong, maxAttributes)
		}
		if at == aUnknown {
			continue
		}
		next = at + 1
		if value == "" && at != aRequest {
			continue // as if it were not there
		}
		switch at {
		case aRequest:
			kind = value
		case aState:
			req.Stage = stageOf(value)
		case aProtocol:
			req.ESMTP = value == "ESMTP"
		case aClientAddress:
			if value != m.clientText {
				m.clientText, m.client = value, mailaddr.IP(value)
			}
			req.Client.Addr = m.client
		case aClientName:
			req.Client.Name = m.hostName(value)
		case aClientPort:
			req.Client.Port = port(value)
		case aReverseName:
			req.Client.ReverseName = m.hostName(value)
		case aServerAddress:
			if value != m.serverText {
				m.serverText, m.server = value, mailaddr.IP(value)
			}
			req.ServerAddr = m.server
		case aServerPort:
			req.ServerPort = port(value)
		case aHelo:
			req.Helo = value
		case aSender:
			req.Sender = mailaddr.Parse(value)
		case aRecipient:
			req.Recipient = mailaddr.Parse(value)
		case aRecipientCount:
			req.RecipientCount = int(number(value, 31))
		case aQueueID:
			req.QueueID = value
		case aInstance:
			req.Instance = value
		case aSize:
			req.Size = int64(number(value, 63))
		case aETRNDomain:
			req.ETRNDomain = value
		case aStress:
			req.Stress = value == "yes"
		case aSASLMethod:
			req.SASL.Method = value
		case aSASLUsername:
			req.SASL.Username = value
		case aSASLSender:
			req.SASL.Sender = value
		case aCertSubject:
			req.TLS.CertSubject = xtext(value)
		case aCertIssuer:
			req.TLS.CertIssuer = xtext(value)
		case aCertFingerprint:
			req.TLS.CertFingerprint = value
		case aPubkeyFingerprint:
			req.TLS.PubkeyFingerprint = value
		case aEncryptionProtocol:
			req.TLS.Protocol = value
		case aEncryptionCipher:
			req.TLS.Cipher = value
		case aEncryptionKeySize:
			req.TLS.KeySize = int(number(value, 31))
		case aSNI:
			req.TLS.SNI = value
		case aContext:
			req.Context = value
		case aCompatibilityLevel:
			req.CompatibilityLevel = value
		case aMailVersion:
			req.MailVersion = value
		default: // no attribute, met above
		}
	}
}

// attribute is the place of an attribute in a request of Postfix 3.12.
type attribute uint8

const (
	aRequest attribute = iota
	aState
	aProtocol
	aClientAddress
	aClientName
	aClientPort
	aReverseName
	aServerAddress
	aServerPort
	aHelo
	aSender
	aRecipient
	aRecipientCount
	aQueueID
	aInstance
	aSize
	aETRNDomain
	aStress
	aSASLMethod
	aSASLUsername
	aSASLSender
	aCertSubject
	aCertIssuer
	aCertFingerprint
	aPubkeyFingerprint
	aEncryptionProtocol
	aEncryptionCipher
	aEncryptionKeySize
	aSNI
	aContext
	aCompatibilityLevel
	aMailVersion
	aUnknown

	// What a line can be instead.
	lineEmpty
	lineUnended
	lineStrange // it has no '='
)

// attributes are their names, each with its '='.
var attributes = [aUnknown]string{
	"request=", "protocol_state=", "protocol_name=", "client_address=", "client_name=", "client_port=", "reverse_client_name=",
	"server_address=", "server_port=", "helo_name=", "sender=", "recipient=", "recipient_count=", "queue_id=", "instance=", "size=",
	"etrn_domain=", "stress=", "sasl_method=", "sasl_username=", "sasl_sender=", "ccert_subject=", "ccert_issuer=", "ccert_fingerprint=",
	"ccert_pubkey_fingerprint=", "encryption_protocol=", "encryption_cipher=", "encryption_keysize=", "tls_sni=", "policy_context=",
	"compatibility_level=", "mail_version=",
}

// places are the attributes by name.
var places = func() map[string]attribute {
	m := make(map[string]attribute, len(attributes))
	for a, name := range attributes {
		m[strings.TrimSuffix(name, "=")] = attribute(a)
	}
	return m
}()

// line reads the line that s begins with. Postfix sends its attributes in one
// order: next is the one that is likely.
func line(s string, next attribute) (at attribute, value, rest string) {
	at = aUnknown
	if next < aUnknown && strings.HasPrefix(s, attributes[next]) {
		at, s = next, s[len(attributes[next]):]
		if s != "" && s[0] == '\n' {
			return at, "", s[1:]
		}
	}
	end := strings.IndexByte(s, '\n')
	if end < 0 {
		return lineUnended, "", ""
	}
	value, rest = s[:end], s[end+1:]
	if end > 0 && value[end-1] == '\r' {
		value = value[:end-1]
	}
	switch {
	case at != aUnknown:
		return at, value, rest
	case value == "":
		return lineEmpty, "", rest
	}
	name, value, ok := strings.Cut(value, "=")
	if !ok {
		return lineStrange, "", rest
	}
	if at, ok = places[name]; !ok {
		at = aUnknown
	}
	return at, value, rest
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

// hostName returns a name in the compared form, "" for Postfix's "unknown".
func (m *memory) hostName(s string) string {
	if s != m.nameText {
		m.nameText, m.name = s, mailaddr.HostName(s)
	}
	return m.name
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
