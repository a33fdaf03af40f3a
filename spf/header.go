package spf

import (
	"postern/internal/fieldtext"
	"postern/policy"
)

// Bounds of what a stranger can put into a field, so that it stays one line
// of at most 998 octets (RFC 5322 section 2.1.1).
const (
	maxSender = 254
	maxHelo   = 128
	maxDomain = 128
)

// header returns the field for an accepted message.
func (c *Check) header(f *findings, s *subject) []policy.Header {
	switch c.cfg.Header {
	case HeaderReceivedSPF:
		return []policy.Header{{Name: "Received-SPF", Value: c.receivedSPF(f, s)}}
	case HeaderResults:
		return []policy.Header{{Name: "Authentication-Results", Value: c.results(f)}}
	}
	return nil
}

// receivedSPF returns the value of Received-SPF (RFC 7208 section 9.1). A pass
// that does not count is "neutral" there, which has no word for it.
func (c *Check) receivedSPF(f *findings, s *subject) string {
	o, id := f.main()
	b := make([]byte, 0, 320)
	result := o.Result
	if o.TooWide {
		result = neutral
	}
	b = append(b, result...)
	b = append(b, " ("...)
	b = fieldtext.AppendComment(b, c.hostname)
	b = append(b, ": "...)
	client := s.addr.String()
	b = fieldtext.AppendComment(b, sentence(o, client))
	b = append(b, ") receiver="...)
	b = fieldtext.AppendWord(b, c.hostname)
	b = append(b, "; client-ip="...)
	b = fieldtext.AppendWord(b, client)
	b = append(b, "; identity="...)
	b = append(b, id.fact()...)
	b = append(b, "; envelope-from="...)
	b = fieldtext.AppendQuoted(b, cut(s.sender.Raw, maxSender))
	b = append(b, "; helo="...)
	b = fieldtext.AppendWord(b, cut(s.helo, maxHelo))
	if o.Mechanism != "" {
		b = append(b, "; mechanism="...)
		b = append(b, o.Mechanism...)
	}
	if o.Problem != "" {
		b = append(b, "; problem="...)
		b = fieldtext.AppendQuoted(b, cut(o.Problem, maxDomain))
	}
	return string(b)
}

// sentence says an outcome in the words of RFC 7208's examples.
func sentence(o *Outcome, client string) string {
	domain := cut(o.Domain, maxDomain)
	switch kindOf(o) {
	case kindPass:
		return domain + " designates " + client + " as permitted sender"
	case kindFail:
		return domain + " does not designate " + client + " as permitted sender"
	case kindSoftFail:
		return domain + " probably does not permit " + client + " to send"
	case kindNeutral:
		return domain + " does not say whether " + client + " may send"
	case kindTempError:
		return "the record of " + domain + " cannot be looked up"
	case kindPermError:
		return "the record of " + domain + " has an error"
	case kindTooWide:
		return "the record of " + domain + " lets too many clients pass to count"
	default:
		if domain == "" {
			return "no domain to ask about"
		}
		return domain + " has no record"
	}
}

// results returns the value of Authentication-Results (RFC 8601 section 2.7.2)
// with both identities.
func (c *Check) results(f *findings) string {
	b := make([]byte, 0, 160)
	b = fieldtext.AppendWord(b, c.hostname)
	if f.mail != nil {
		b = appendResult(b, f.mail, "mailfrom")
	}
	return string(appendResult(b, f.helo, "helo"))
}

func appendResult(b []byte, o *Outcome, property string) []byte {
	b = append(b, "; spf="...)
	if o.TooWide {
		b = append(b, policy.SPFTooWide...)
		b = append(b, " (the record lets too many clients pass)"...)
	} else {
		b = append(b, o.Result...)
	}
	if o.Domain == "" {
		return b
	}
	b = append(b, " smtp."...)
	b = append(b, property...)
	b = append(b, '=')
	return fieldtext.AppendWord(b, cut(o.Domain, maxDomain))
}

// cut shortens s to n octets.
func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
