package headercheck

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/internal/when"
	"postern/list"
	"postern/policy"
	"postern/table"
)

// Kind is the kind of line that a table looks at.
type Kind uint8

// The kinds, named after Postfix's parameters.
const (
	Header Kind = iota // header_checks
	MIME               // mime_header_checks
	Nested             // nested_header_checks
	Body               // body_checks
	// Rule is not of a table: [[headers.rules]].
	Rule
	kindCount
)

var kindNames = [kindCount]string{"header", "mime", "nested", "body", "rule"}

// String returns the name used in configuration, logs and metrics.
func (k Kind) String() string {
	if k < kindCount {
		return kindNames[k]
	}
	return "unknown"
}

// MarshalText implements [encoding.TextMarshaler].
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (k *Kind) UnmarshalText(text []byte) error {
	i := slices.Index(kindNames[:Rule], string(text))
	if i < 0 {
		return fmt.Errorf("unknown kind %q (one of header, mime, nested, body)", text)
	}
	*k = Kind(i)
	return nil
}

// UnmarshalJSON implements [json.Unmarshaler]. Reports have lines of all
// kinds, configurations only those of tables.
func (k *Kind) UnmarshalJSON(text []byte) error {
	name, err := strconv.Unquote(string(text))
	if err != nil {
		return fmt.Errorf("kind %s: %w", text, err)
	}
	if name == Rule.String() {
		*k = Rule
		return nil
	}
	return k.UnmarshalText([]byte(name))
}

// Config is the [headers] section: rules on the header fields and body lines
// of messages, applied over the milter protocol.
type Config struct {
	// Mode is "enforce" (default), "shadow" (rules are looked at, counted and
	// logged, and change nothing) or "off".
	Mode policy.Mode `toml:"mode"`
	// OnError is what happens to a message that could not be looked at whole:
	// "continue" or "defer". Default "continue".
	OnError policy.OnError `toml:"on_error"`
	// Checks are the tables, as in header_checks and the like. Those of one
	// kind are asked in their order; the first that knows a line decides.
	// Default none.
	Checks []TableConfig `toml:"checks"`
	// Rules need several headers. Default none.
	Rules []RuleConfig `toml:"rules"`
	// Lenient reads tables as Postfix does: what it warns of and skips is
	// skipped, with a warning. Otherwise it is a fault. Default false.
	Lenient bool `toml:"lenient"`
	// MIMEDefault lets the tables of kind "header" look at MIME headers too
	// while no table is of kind "mime", as mime_header_checks does. Default true.
	MIMEDefault bool `toml:"mime_default"`
	// NestedDefault is the same for headers of attached messages. Default true.
	NestedDefault bool `toml:"nested_default"`
	// FilterMarker is the name of the header that carries the target of a
	// FILTER action to Postfix's milter_header_checks. Headers of this name
	// that a message comes with are taken out. Default "": FILTER is refused.
	FilterMarker string `toml:"filter_marker"`
	// BodyLimit is how many bytes of each body segment are looked at; 0: all.
	// A line that begins within it is looked at whole. Default 51200, as
	// body_checks_size_limit.
	BodyLimit int `toml:"body_limit"`
	// LineLimit is the length in bytes of the pieces in which longer body
	// lines are looked at. Default 2048, as line_length_limit.
	LineLimit int `toml:"line_limit"`
	// HeaderLimit is how many bytes of a header are looked at. Default 60000,
	// to which Postfix cuts headers when a milter is configured.
	HeaderLimit int `toml:"header_limit"`
	// MIMENesting is how deep MIME parts may stand in each other; a message
	// beyond it is refused, as Postfix does while it has header checks.
	// Default 100, as mime_nesting_limit.
	MIMENesting int `toml:"mime_nesting"`
	// BoundaryLimit is how many bytes of a MIME boundary count. Default 2048, as
	// mime_boundary_length_limit.
	BoundaryLimit int `toml:"boundary_limit"`
	// DisableMIME takes all that follows the headers as body
	// (disable_mime_input_processing). Default false.
	DisableMIME bool `toml:"disable_mime"`
	// MaxBodyEdit is how many bytes of body are kept in memory for rules that
	// change body lines or headers in the body. A longer body is not changed,
	// which is logged. Default 10485760.
	MaxBodyEdit int `toml:"max_body_edit"`
	// MaxBodyEditTotal is the same for all messages at a time. Default 134217728.
	MaxBodyEditTotal int64 `toml:"max_body_edit_total"`
	// PatternTime is how long patterns that need backtracking may take for one
	// message; after that they do not match. Default "500ms".
	PatternTime conf.Duration `toml:"pattern_time"`
	// MaxTime is how long all rules together may take for one message; after
	// that the message cannot be decided, and on_error rules.
	// Default "20s".
	MaxTime conf.Duration `toml:"max_time"`
	// ReloadInterval is how often the files are looked at. Default "2s".
	ReloadInterval conf.Duration `toml:"reload_interval"`
}

// TableConfig is one entry of headers.checks.
type TableConfig struct {
	// Name stands for the table in logs and reports. Default: its path.
	Name string `toml:"name"`
	// Table is "pcre:PATH" or "regexp:PATH", as in main.cf.
	Table string `toml:"table"`
	// Kind is what the table looks at: "header" (default), "mime", "nested" or "body".
	Kind Kind `toml:"kind"`
	// Decoded gives the patterns headers as a reader sees them: unfolded, with
	// encoded words and parameters decoded to UTF-8. Not for kind "body".
	// Default false.
	Decoded bool `toml:"decoded"`
	// Domains are the recipient domains that the table is for; ".example.org"
	// stands for all sub-domains. Default none: all mail.
	Domains []string `toml:"domains"`
	// DomainsMatch is "any" (default): one recipient in the domains is enough;
	// or "all": the table is skipped if there is another recipient.
	DomainsMatch string `toml:"domains_match"`
	// Mode is "enforce" (default), "shadow" or "off". A single rule is in
	// shadow mode when the word SHADOW stands before its action.
	Mode policy.Mode `toml:"mode"`
}

// RuleConfig is one entry of headers.rules: it holds when every pattern of All
// finds a primary header, no pattern of None does, an entry of Match holds and
// the condition of When does. At least one of All, Match and When must be given.
type RuleConfig struct {
	// Name stands for the rule in logs and reports. It must be given.
	Name string `toml:"name"`
	// When is a condition on what was found out about the message, such as
	// "dmarc=fail and not arc=pass". It asks [auth]; of mail that was not looked
	// at there it does not hold. Default: none.
	When string `toml:"when"`
	// Match are clients, senders or recipients that the rule is for, each an entry
	// as in a list file. An entry with "dunno" makes an exception. Default none:
	// it is for all.
	Match []string `toml:"match"`
	// MatchLists are files of such entries, or Postfix tables. Default none.
	MatchLists []string `toml:"match_lists"`
	// All are patterns as in a pcre table, with delimiters and flags:
	// '/^Subject:.*invoice/'. Default none.
	All []string `toml:"all"`
	// None are patterns of which none may find a header. Default none.
	None []string `toml:"none"`
	// Action is what is done, as in a table: "REJECT text", "HOLD",
	// "PREPEND X-Suspicious: yes" (on top of the message), and besides "SUBJECT
	// [suspicious]" (in front of the subject) and "MARK slug" (a suspicion, for
	// the log). Not IGNORE, STRIP and REPLACE, which are about one header.
	Action string `toml:"action"`
	// Decoded is as in headers.checks. Default false.
	Decoded bool `toml:"decoded"`
	// Domains is as in headers.checks. Default none.
	Domains []string `toml:"domains"`
	// DomainsMatch is as in headers.checks. Default: any.
	DomainsMatch string `toml:"domains_match"`
	// Mode is "enforce" (default), "shadow" or "off".
	Mode policy.Mode `toml:"mode"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		MIMEDefault: true, NestedDefault: true,
		BodyLimit: 51200, LineLimit: 2048, HeaderLimit: 60000, MIMENesting: 100, BoundaryLimit: 2048,
		MaxBodyEdit: 10 << 20, MaxBodyEditTotal: 128 << 20,
		PatternTime: conf.Duration(500 * time.Millisecond), MaxTime: conf.Duration(20 * time.Second),
		ReloadInterval: conf.Duration(2 * time.Second),
	}
}

// Step returns how the inspector must be run; it keeps to the mode itself.
func (c *Config) Step() conf.Step {
	return conf.Step{OnError: c.OnError, Timeout: c.MaxTime + conf.Duration(time.Second)}
}

// Validate reports what is wrong with the values and with every rule of the
// tables; prefix is the section's key. It reads the tables and opens nothing else.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	for _, n := range [...]struct {
		key          string
		value        int64
		least, most  int64
		zeroIsNoMore bool
	}{
		{"body_limit", int64(c.BodyLimit), 0, 1 << 30, true},
		{"line_limit", int64(c.LineLimit), 512, 1 << 20, false},
		{"header_limit", int64(c.HeaderLimit), 1024, 1 << 20, false},
		{"mime_nesting", int64(c.MIMENesting), 1, 1000, false},
		{"boundary_limit", int64(c.BoundaryLimit), 70, 1 << 16, false},
		{"max_body_edit", int64(c.MaxBodyEdit), 0, 1 << 30, true},
		{"max_body_edit_total", c.MaxBodyEditTotal, 0, 1 << 40, true},
	} {
		if n.value < n.least || n.value > n.most {
			fs.Keyf(prefix+"."+n.key, "%d is out of range: %d to %d", n.value, n.least, n.most)
		}
	}
	for _, d := range [...]struct {
		key               string
		value             conf.Duration
		least, most       time.Duration
		leastText, bounds string
	}{
		{"pattern_time", c.PatternTime, time.Millisecond, time.Minute, "1ms", "1m"},
		{"max_time", c.MaxTime, 100 * time.Millisecond, 5 * time.Minute, "100ms", "5m"},
		{"reload_interval", c.ReloadInterval, 100 * time.Millisecond, time.Hour, "100ms", "1h"},
	} {
		if d.value.D() < d.least || d.value.D() > d.most {
			fs.Keyf(prefix+"."+d.key, "%v is out of range: %s to %s", d.value, d.leastText, d.bounds)
		}
	}
	if c.FilterMarker != "" && !validMarker(c.FilterMarker) {
		fs.Keyf(prefix+".filter_marker", "%q is not the name of a header: letters, digits and -, at most 60", c.FilterMarker)
	}
	_, _, faults := load(c, prefix)
	*fs = append(*fs, faults...)
}

// Warnings returns what Postfix would warn of in the tables of a lenient
// section, one for each rule that is skipped.
func (c *Config) Warnings(prefix string) conf.Faults {
	_, warnings, _ := load(c, prefix)
	return warnings
}

func validMarker(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return len(name) <= 60
}

// source is the table of one entry of headers.checks, understood but not read.
type source struct {
	kind table.Kind
	path string
}

func parseSource(text string) (source, error) {
	word, path, ok := strings.Cut(text, ":")
	kind, known := table.KindByName(word)
	switch {
	case text == "":
		return source{}, errors.New("no table is given (pcre:PATH or regexp:PATH)")
	case !ok || strings.HasPrefix(text, "/"):
		return source{}, fmt.Errorf("%q has no type (pcre:PATH or regexp:PATH)", text)
	case !known || kind != table.PCRE && kind != table.Regexp:
		return source{}, fmt.Errorf("tables of type %q cannot be used here (one of pcre, regexp)", word)
	case strings.HasPrefix(strings.TrimSpace(path), "{"):
		return source{}, errors.New("a table inside the value is not supported: put its rules into a file")
	case path == "":
		return source{}, errors.New("the name of the file is missing")
	}
	return source{kind, path}, nil
}

// scope is for which recipients a table or rule is.
type scope struct {
	domains []string // in the compared form; with a leading dot: sub-domains
	all     bool
}

func parseScope(key string, domains []string, match string, fs *conf.Faults) scope {
	var s scope
	for i, d := range domains {
		name, sub := strings.CutPrefix(d, ".")
		name = mailaddr.Domain(name)
		if name == "" || strings.ContainsAny(name, "@ \t/:") || strings.HasPrefix(name, ".") {
			fs.Keyf(fmt.Sprintf("%s.domains[%d]", key, i), "%q is not a domain (example.org, or .example.org for its sub-domains)", d)
			continue
		}
		if sub {
			name = "." + name
		}
		s.domains = append(s.domains, name)
	}
	switch match {
	case "", "any":
	case "all":
		s.all = true
	default:
		fs.Keyf(key+".domains_match", "unknown value %q (one of any, all)", match)
	}
	if match != "" && len(domains) == 0 {
		fs.Keyf(key+".domains_match", "there are no domains to match")
	}
	return s
}

// covers reports whether the scope is open to mail for these recipients.
func (s *scope) covers(to []policy.Address) bool {
	if len(s.domains) == 0 {
		return true
	}
	for _, a := range to {
		in := slices.ContainsFunc(s.domains, func(d string) bool {
			if d[0] == '.' {
				return strings.HasSuffix(a.Domain, d)
			}
			return a.Domain == d
		})
		if in != s.all {
			return in
		}
	}
	return s.all && len(to) > 0
}

// WithoutMilter says what does not happen when there is no milter door.
func (c *Config) WithoutMilter(prefix string) string {
	if len(c.Checks)+len(c.Rules) == 0 {
		return ""
	}
	return prefix + ": milter.listen is empty: no message is looked at"
}

// WithoutAuth says what does not happen when nothing is authenticated.
func (c *Config) WithoutAuth(prefix string) string {
	for i := range c.Rules {
		if w, err := when.Parse(c.Rules[i].When); err == nil && w.NeedsAuth() {
			return prefix + ".rules: auth.mode is \"off\": the condition of " + c.Rules[i].Name + " never holds"
		}
	}
	return ""
}

// match returns the sources and options of the list that rule i is for.
func (c *Config) match(prefix string, i int) (sources []string, o list.Options) {
	r := &c.Rules[i]
	for _, e := range r.Match {
		sources = append(sources, "inline:"+e)
	}
	key := fmt.Sprintf("%s.rules[%d].match", prefix, i)
	return append(sources, r.MatchLists...), list.Options{KeyAt: func(j int) string {
		if j < len(r.Match) {
			return fmt.Sprintf("%s[%d]", key, j)
		}
		return fmt.Sprintf("%s_lists[%d]", key, j-len(r.Match))
	}}
}
