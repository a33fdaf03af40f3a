package list

import (
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/policy"
)

// words are the actions of entries and of the results of Postfix tables
// (access(5)).
var words = map[string]policy.Action{
	"allow": policy.Allow, "ok": policy.Allow, "relay": policy.Allow, "off": policy.Allow,
	"permit": policy.Permit,
	"reject": policy.Reject, "deny": policy.Reject, "defer": policy.Defer, "defer_if_permit": policy.DeferIfPermit,
	"hold": policy.Hold, "discard": policy.Discard, "redirect": policy.Redirect,
	"prepend": policy.Continue, "dunno": policy.Continue, "on": policy.Continue,
}

// foreign are results of access(5) that have no meaning outside Postfix.
var foreign = []string{"filter", "bcc", "defer_if_reject", "info", "warn", "hangup"}

// fault is what is wrong at a byte of the text that was read.
type fault struct {
	at   int // from 0
	text string
}

func (f *fault) Error() string { return f.text }

func faultf(at int, format string, args ...any) error {
	return &fault{at, fmt.Sprintf(format, args...)}
}

// setAction reads "[ACTION] [key=value ...] [text]" into e. A table's result
// has no keys and always an action. base is where s begins in its line.
func (o *Options) setAction(e *Entry, s string, base int, result bool) error {
	e.Action = o.Default
	if e.Action == policy.Continue && !o.NeedAction {
		e.Action = policy.Allow
	}
	word, rest, at := cut(s, base)
	start := base
	lower := strings.ToLower(word)
	action, known := words[lower]
	switch {
	case known:
		e.Action, s, base = action, rest, at
		if result && lower == "permit" {
			e.Action = policy.Allow // the restriction of that name, which says no more than OK
		}
	case slices.Contains(foreign, lower):
		return faultf(base, "%s is something that only Postfix can do: use it in a table of Postfix's own", word)
	case isCode(word):
		e.Action = policy.Reject
		if word[0] == '4' {
			e.Action = policy.Defer
		}
	case result && isDigits(word) && rest == "":
		e.Action, s = policy.Allow, "" // access(5): all numerical is OK
	case o.NeedAction || result:
		return faultf(base, "%q is not an action (one of %s)", word, strings.Join(o.actionWords(), ", "))
	}
	if !result {
		var err error
		if s, base, err = o.params(e, s, base); err != nil {
			return err
		}
	}
	if !o.permits(e.Action) || known && lower == "prepend" && !o.NeedAction {
		return faultf(start, "%s cannot stand in %s (one of %s)", e.Action, o.Key, strings.Join(o.actionWords(), ", "))
	}
	e.Text = s
	switch {
	case e.Action.Refuses():
		if result {
			s = braces.Replace(s) // Postfix knows no placeholders
		}
		return o.setReply(e, s, base)
	case e.Action == policy.Redirect:
		if !strings.Contains(s, "@") || strings.ContainsAny(s, " \t") {
			return faultf(base, "redirect needs one address: redirect user@example.org")
		}
		e.Arg = s
	case lower == "prepend" && known:
		return setHeader(e, s, base)
	}
	return nil
}

var braces = strings.NewReplacer("{", "{{", "}", "}}")

func (o *Options) setReply(e *Entry, s string, base int) error {
	if s == "" {
		return nil
	}
	def := o.Reject
	if def.Code == 0 {
		def = policy.Reply{Code: 554, Enhanced: "5.7.1"}
	}
	if e.Action != policy.Reject {
		if def = o.Defer; def.Code == 0 {
			def = policy.Reply{Code: 450, Enhanced: "4.7.1"}
		}
	}
	if isCode(s) {
		return faultf(base, "the code %s has no text: Postfix reads a bare code as permission", s)
	}
	t, err := policy.ParseTemplate(s, def, o.Vars...)
	if err != nil {
		return faultf(base, "%v", err)
	}
	e.Reply = t
	return nil
}

// setHeader reads "Name: value" (RFC 5322 section 2.2).
func setHeader(e *Entry, s string, base int) error {
	name, value, _ := strings.Cut(s, ":")
	value = strings.TrimSpace(value)
	if name == "" || value == "" || strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return faultf(base, "prepend needs a header field: prepend X-Name: value")
	}
	if value != policy.Printable(value) {
		return faultf(base+len(name)+1, "a header field holds printable ASCII only")
	}
	if name == strings.ToLower(name) { // else as the operator spells it
		name = textproto.CanonicalMIMEHeaderKey(name)
	}
	e.Header = policy.Header{Name: name, Value: value}
	return nil
}

// params reads the key=value words in front of the text.
func (o *Options) params(e *Entry, s string, base int) (string, int, error) {
	for {
		word, rest, at := cut(s, base)
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" || strings.IndexFunc(key, func(r rune) bool { return (r < 'a' || r > 'z') && r != '_' }) >= 0 {
			return s, base, nil
		}
		if value == "" {
			return s, base, faultf(base, "%s has no value", word)
		}
		switch check := o.Params[key]; {
		case key == "until":
			until, err := parseDate(value)
			if err != nil {
				return s, base, faultf(base, "%v", err)
			}
			e.Until = until
		case key == "owner":
			e.Owner = value
		case check == nil:
			known := []string{"until", "owner"}
			for k := range o.Params {
				known = append(known, k)
			}
			slices.Sort(known)
			return s, base, faultf(base, "unknown key %q (one of %s)", key, strings.Join(known, ", "))
		default:
			if err := check(value); err != nil {
				return s, base, faultf(base, "%s: %v", key, err)
			}
			if e.Params == nil {
				e.Params = make(map[string]string)
			}
			e.Params[key] = value
		}
		s, base = rest, at
	}
}

// parseDate reads a date, which lasts through that day in local time, or a
// time.
func parseDate(s string) (time.Time, error) {
	if t, err := time.ParseInLocation(time.DateOnly, s, time.Local); err == nil {
		return t.AddDate(0, 0, 1), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("until=%s is not a date such as 2027-12-31 or a time such as 2027-12-31T18:00", s)
}

func (o *Options) permits(a policy.Action) bool {
	if a == policy.Continue {
		return true
	}
	if o.Actions != nil {
		return slices.Contains(o.Actions, a)
	}
	return a == o.Default || o.Default == policy.Continue && a == policy.Allow
}

// actionWords are the words that may be written, for messages.
func (o *Options) actionWords() []string {
	var out []string
	for w, a := range words {
		if o.permits(a) && w != "relay" && w != "off" && w != "on" && w != "deny" && w != "ok" && (w != "prepend" || o.NeedAction) {
			out = append(out, w)
		}
	}
	slices.Sort(out)
	return out
}

// isCode reports whether s is a 4xx or 5xx reply code.
func isCode(s string) bool { return len(s) == 3 && (s[0] == '4' || s[0] == '5') && isDigits(s) }

// cut parts the first word from the rest, and says where the rest begins.
func cut(s string, base int) (word, rest string, at int) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, "", base + len(s)
	}
	rest = strings.TrimLeft(s[i:], " \t")
	return s[:i], rest, base + len(s) - len(rest)
}

// parseLine reads one line of a list. It returns nil for a line without an
// entry. Columns of faults count from the beginning of the line.
func (o *Options) parseLine(line string, def Field) (*Entry, pattern, error) {
	line = stripComment(strings.TrimRight(line, " \t\r"))
	s := strings.TrimLeft(line, " \t")
	base := len(line) - len(s)
	if s == "" {
		return nil, pattern{}, nil
	}
	n := patternEnd(s)
	if n < 0 {
		return nil, pattern{}, faultf(base, "the regular expression has no closing /")
	}
	p, err := parsePattern(s[:n], def)
	if err != nil {
		return nil, p, faultf(base, "%v", err)
	}
	rest := strings.TrimLeft(s[n:], " \t")
	e := &Entry{Pattern: s[:n], Field: p.field, rank: p.rank}
	if err := o.setAction(e, rest, base+len(s)-len(rest), false); err != nil {
		return nil, p, err
	}
	return e, p, nil
}

// patternEnd returns the length of the pattern that s begins with, -1 when a
// regular expression is not closed. A regular expression may hold blanks.
func patternEnd(s string) int {
	start := 0
	for _, pre := range prefixes {
		if len(s) >= len(pre.word) && strings.EqualFold(s[:len(pre.word)], pre.word) {
			start = len(pre.word)
			break
		}
	}
	if start < len(s) && s[start] == '"' { // a quoted local part
		i := start + 1
		for ; i < len(s) && s[i] != '"'; i++ {
			if s[i] == '\\' {
				i++
			}
		}
		start = min(i, len(s))
	}
	if start < len(s) && s[start] == '/' {
		i := start + 1
		for ; i < len(s) && s[i] != '/'; i++ {
			if s[i] == '\\' {
				i++
			}
		}
		if i >= len(s) {
			return -1
		}
		start = i
	}
	if i := strings.IndexAny(s[start:], " \t"); i >= 0 {
		return start + i
	}
	return len(s)
}

// stripComment cuts at a # at the beginning or behind white space; \# stands
// for the sign itself.
func stripComment(s string) string {
	for i := 0; i < len(s); i++ {
		if s[i] == '#' && (i == 0 || s[i-1] == ' ' || s[i-1] == '\t') {
			s = strings.TrimRight(s[:i], " \t")
			break
		}
	}
	return strings.ReplaceAll(s, `\#`, "#")
}

// position turns an error of a line into the fault of a file.
func position(fs *conf.Faults, file string, line int, err error) {
	if f := (*fault)(nil); errors.As(err, &f) {
		fs.Filef(file, line, f.at+1, "%s", f.text)
		return
	}
	fs.Filef(file, line, 0, "%v", err)
}

func itoa(n int) string { return strconv.Itoa(n) }
