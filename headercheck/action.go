package headercheck

import (
	"errors"
	"fmt"
	"strings"

	"postern/policy"
)

// action is what a rule asks for.
type action uint8

const (
	actDunno action = iota // also OK
	actIgnore
	actStrip
	actInfo
	actWarn
	actPass
	actReject
	actDiscard
	actHold
	actPrepend
	actReplace
	actRedirect
	actBCC
	actFilter
	actSubject // of headers.rules only, as actMark
	actMark
	actUnknown // a word that is no action: the line is kept
	actNone    // the result is empty, which Postfix takes as a failed look-up
	actionCount
)

var actionNames = [actionCount]string{
	"dunno", "ignore", "strip", "info", "warn", "pass", "reject", "discard", "hold", "prepend", "replace", "redirect", "bcc", "filter", "subject", "mark", "unknown", "none",
}

// String returns the name used in logs, metrics and reports.
func (a action) String() string { return actionNames[a] }

var actionWords = map[string]action{
	"OK": actDunno, "DUNNO": actDunno, "IGNORE": actIgnore, "STRIP": actStrip, "INFO": actInfo, "WARN": actWarn, "PASS": actPass, "REJECT": actReject,
	"DISCARD": actDiscard, "HOLD": actHold, "PREPEND": actPrepend, "REPLACE": actReplace, "REDIRECT": actRedirect, "BCC": actBCC, "FILTER": actFilter,
}

// edits reports whether the action changes the line it is about.
func (a action) edits() bool {
	return a == actIgnore || a == actStrip || a == actPrepend || a == actReplace
}

// parsed is the result of a rule, read.
type parsed struct {
	act    action
	arg    string
	shadow bool // the word SHADOW stands in front
	word   string
}

// parseResult reads the result of a rule as cleanup(8) does: a word in any
// case, up to the first blank or tab, and text.
func parseResult(result string) parsed {
	var p parsed
	for {
		n := strings.IndexAny(result, " \t")
		if n < 0 {
			n = len(result)
		}
		p.word, p.arg = result[:n], strings.TrimLeft(result[n:], " \t\n\v\f\r")
		if p.shadow || !strings.EqualFold(p.word, "SHADOW") {
			break
		}
		p.shadow, result = true, p.arg
	}
	var known bool
	if p.act, known = actionWords[strings.ToUpper(p.word)]; !known {
		p.act = actUnknown
	}
	if p.word == "" {
		p.act = actNone
	}
	return p
}

// parseRule reads the action of one of headers.rules, which has words that
// Postfix has not.
func parseRule(result string) parsed {
	p := parseResult(result)
	switch strings.ToUpper(p.word) {
	case "SUBJECT":
		p.act = actSubject
	case "MARK":
		p.act = actMark
	}
	return p
}

// Errors of an argument, with Postfix's reasons.
var (
	errHeader = errors.New(`needs text of the form "Name: value"`)
	errText   = errors.New("needs text")
	errFilter = errors.New("needs transport:destination")
	errTarget = errors.New("needs an address, user@domain")
	errTag    = errors.New("SUBJECT needs printable ASCII to put in front of the subject, at most 100 characters")
	errMark   = errors.New("MARK needs one word of a-z, 0-9 and -, at most 40 characters")
)

// usable says why a rule with this argument does nothing, as in Postfix; nil:
// it does what it should.
func (p parsed) usable(k Kind) error {
	switch p.act {
	case actFilter:
		if !strings.Contains(p.arg, ":") {
			return errFilter
		}
	case actRedirect, actBCC:
		if !strings.Contains(p.arg, "@") {
			return errTarget
		}
		// Postfix would go on with these; they make no address that can be
		// handed over in the milter protocol.
		if strings.ContainsFunc(p.arg, func(r rune) bool { return r < ' ' || r == 0x7f || r == '<' || r == '>' }) {
			return errTarget
		}
	case actSubject:
		if p.arg == "" || len(p.arg) > 100 || strings.ContainsFunc(p.arg, func(r rune) bool { return r < ' ' || r > '~' }) {
			return errTag
		}
	case actMark:
		if p.arg == "" || len(p.arg) > 40 || strings.Trim(p.arg, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return errMark
		}
	case actPrepend, actReplace:
		if p.arg == "" {
			return errText
		}
		if k != Body && headerName([]byte(p.arg)) == 0 {
			return errHeader
		}
	default:
	}
	return nil
}

// strictly says what is wrong with the result of a rule as it is written,
// beyond what makes it useless. dynamic results have parts that only the
// message knows.
func (p parsed) strictly(k Kind, dynamic bool) error {
	switch {
	case p.act == actNone:
		return errors.New("no action")
	case p.act == actUnknown && dynamic && strings.Contains(p.word, "$"):
		return errors.New("the action itself comes from the message: whoever writes the message could choose it")
	case p.act == actUnknown:
		return fmt.Errorf("unknown action %q (one of REJECT, DISCARD, HOLD, WARN, INFO, IGNORE, STRIP, REPLACE, PREPEND, REDIRECT, BCC, FILTER, PASS, DUNNO, OK)", clip(p.word, 40))
	case p.act == actReject && hasStatus(p.arg) && p.arg[0] == '2':
		return fmt.Errorf("REJECT with the status %s: it must begin with 4 or 5", strings.Fields(p.arg)[0])
	}
	arg := p
	if dynamic {
		// Stand in for what is found: only what is surely wrong is a fault.
		arg.arg = strings.ReplaceAll(arg.arg, "$", "@:")
		if p.act == actPrepend || p.act == actReplace {
			before, _, _ := strings.Cut(p.arg, "$")
			if !strings.Contains(before, ":") {
				return nil
			}
			arg.arg = before
		}
	}
	if err := arg.usable(k); err != nil {
		return fmt.Errorf("%s %w", strings.ToUpper(p.word), err)
	}
	if (p.act == actRedirect || p.act == actBCC) && !dynamic {
		local, domain, _ := strings.Cut(p.arg, "@")
		if local == "" || domain == "" || strings.ContainsAny(p.arg, " \t,") {
			return fmt.Errorf("%s needs one address, user@domain", strings.ToUpper(p.word))
		}
	}
	return nil
}

// reply is what REJECT answers (cleanup(8), dsn_prepend(3)).
func rejectReply(arg string) policy.Reply {
	r := policy.Reply{Code: 550, Enhanced: "5.7.1", Text: clean(arg)}
	if hasStatus(arg) {
		n := strings.IndexAny(arg, " \t\n\v\f\r")
		if n < 0 {
			n = len(arg)
		}
		r.Enhanced, r.Text = arg[:n], clean(strings.TrimLeft(arg[n:], " \t\n\v\f\r"))
		if r.Enhanced[0] == '2' {
			r.Enhanced = "4" + r.Enhanced[1:]
		}
		if r.Enhanced[0] == '4' {
			r.Code = 451
		}
	}
	if r.Text == "" {
		r.Text = "message content rejected"
	}
	return r
}

// hasStatus reports whether s begins with an enhanced status code (RFC 3463
// section 2): a class of 2, 4 or 5 and two numbers of up to three digits.
func hasStatus(s string) bool {
	if s == "" || strings.IndexByte("245", s[0]) < 0 {
		return false
	}
	i := 1
	for range 2 {
		if i >= len(s) || s[i] != '.' {
			return false
		}
		i++
		start := i
		for i < len(s) && '0' <= s[i] && s[i] <= '9' {
			i++
		}
		if i == start || i-start > 3 {
			return false
		}
	}
	return i == len(s) || strings.IndexByte(" \t\n\v\f\r", s[i]) >= 0
}

// clean makes text fit for a reply line: printable ASCII, cut to what fits.
func clean(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = ' '
		}
	}
	s = strings.TrimRight(string(b), " ")
	if len(s) > policy.MaxReplyText {
		s = s[:policy.MaxReplyText-3] + "..."
	}
	return s
}

// clip cuts s for a log line or a fault.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n-3] + "..."
	}
	return s
}

// shown is text of a message as it is logged: at most 200 bytes, what cannot
// be printed as "?".
func shown(s string) string {
	if len(s) > 200 {
		s = s[:200]
	}
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// asField cuts "Name: value" as cleanup(8) writes it: one header, with further
// lines if a group held some.
func asField(text string) (name, value string) {
	text = oneHeader(text)
	n := headerName([]byte(text))
	rest := strings.TrimLeft(text[n:], " \t")
	return text[:n], rest[1:]
}

// oneHeader takes out what would end a header: CR and NUL, and a LF that no
// white space follows.
func oneHeader(text string) string {
	if !strings.ContainsAny(text, "\r\n\x00") {
		return text
	}
	b := make([]byte, 0, len(text)+8)
	for i := range len(text) {
		c := text[i]
		if c == '\r' || c == 0 || c == '\n' && i+1 == len(text) {
			continue
		}
		b = append(b, c)
		if c == '\n' && text[i+1] != ' ' && text[i+1] != '\t' {
			b = append(b, '\t')
		}
	}
	return string(b)
}
