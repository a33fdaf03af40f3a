package list

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode/utf8"

	"postern/internal/conf"
	"postern/policy"
	"postern/table"
)

// Bounds of one list file.
const (
	maxFile = 256 << 20
	maxLine = 64 << 10
)

// maxFaults bounds what is reported of one file: with a wrong file, thousands
// of lines say no more than twenty.
const maxFaults = 20

// format is how a source is written.
type format uint8

const (
	formatList format = iota
	formatInline
	formatTable
	formatPostgreyClients
	formatPostgreyRecipients
)

// source is one source, its text understood but not read.
type source struct {
	text   string // as configured
	key    string // of the configuration
	file   string // "" for an inline entry
	inline string
	format format
	kind   table.Kind
	field  Field
}

// content is what was read from a source.
type content struct {
	entries  []*Entry
	patterns []pattern    // of each entry; nil for a table
	table    *table.Table // its rules go with entries by Rule.Index
	warnings conf.Faults
}

var fieldWords = map[string]Field{
	"client": Client, "helo": Helo, "sender": Sender, "from": Sender, "recipient": Recipient, "to": Recipient,
}

// parseSource understands the text of a source.
func (o *Options) parseSource(i int, text string) (*source, error) {
	s := &source{text: text, field: o.Field, key: o.sourceKey(i)}
	rest := text
	given := false
	if word, r, ok := strings.Cut(text, "="); ok {
		if f, known := fieldWords[word]; known {
			s.field, rest, given = f, r, true
		}
	}
	word, path, ok := strings.Cut(rest, ":")
	kind, isTable := table.KindByName(word)
	switch {
	case strings.HasPrefix(rest, "/") || !ok:
		s.format, s.file = formatList, rest
	case word == "inline":
		s.format, s.inline = formatInline, path
	case word == "postgrey-clients":
		s.format, s.file, s.field = formatPostgreyClients, path, Client
	case word == "postgrey-recipients":
		s.format, s.file, s.field = formatPostgreyRecipients, path, Recipient
	case isTable:
		s.format, s.kind, s.file = formatTable, kind, path
	case word == "hash" || word == "btree" || word == "lmdb" || word == "cdb" || word == "dbm":
		return nil, fmt.Errorf("%s tables are read from their source: texthash:%s", word, path)
	case word == "file":
		s.format, s.file = formatList, path
	default:
		return nil, fmt.Errorf("unknown kind of list %q (a path, inline:, cidr:, pcre:, regexp:, texthash:, postgrey-clients: or postgrey-recipients:)", word)
	}
	if given && (s.format == formatPostgreyClients || s.format == formatPostgreyRecipients) {
		return nil, fmt.Errorf("%s says by itself what its entries are looked up by", word)
	}
	if s.kind == table.CIDR && s.format == formatTable && s.field != Client {
		return nil, fmt.Errorf("a cidr table holds addresses of clients, not of a %s", s.field)
	}
	if s.format != formatInline && s.file == "" {
		return nil, errors.New("the name of the file is missing")
	}
	return s, nil
}

func (o *Options) sourceKey(i int) string {
	if o.KeyAt != nil {
		return o.KeyAt(i)
	}
	return o.Key + "[" + itoa(i) + "]"
}

// read reads the source. With any fault the content is not to be used.
func (s *source) read(o *Options) (*content, conf.Faults) {
	var faults conf.Faults
	c := &content{}
	switch s.format {
	case formatInline:
		s.addLine(o, c, &faults, s.inline, 1)
		if len(faults) == 0 && len(c.entries) == 0 {
			faults.Keyf(s.key, "there is no entry in %q", s.text)
		}
		for _, f := range faults {
			f.Key, f.File, f.Line, f.Column = s.key, "", 0, 0
		}
	case formatTable:
		s.readTable(o, c, &faults)
	default:
		s.readLines(o, c, &faults)
	}
	return c, faults
}

func (s *source) readLines(o *Options, c *content, faults *conf.Faults) {
	text, err := readFile(s.file)
	if err != nil {
		s.unreadable(faults, err)
		return
	}
	text = strings.TrimPrefix(text, "\ufeff")
	line := 0
	for text != "" {
		var one string
		one, text, _ = strings.Cut(text, "\n")
		line++
		switch bad := strings.IndexByte(one, 0); {
		case bad >= 0:
			faults.Filef(s.file, line, bad+1, "a zero byte: this is not a text file")
		case len(one) > maxLine:
			faults.Filef(s.file, line, 0, "the line has %d bytes, at most %d can stand in one", len(one), maxLine)
		case !utf8.ValidString(one):
			faults.Filef(s.file, line, invalidAt(one)+1, "not UTF-8")
		default:
			s.addLine(o, c, faults, one, line)
		}
		if len(*faults) > maxFaults {
			*faults = (*faults)[:maxFaults]
			faults.Filef(s.file, 0, 0, "and more faults after line %d", line)
			return
		}
	}
}

func invalidAt(s string) int {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return i
			}
		}
	}
	return 0
}

func (s *source) addLine(o *Options, c *content, faults *conf.Faults, line string, n int) {
	var e *Entry
	var p pattern
	var err error
	switch s.format {
	case formatPostgreyClients, formatPostgreyRecipients:
		e, p, err = s.postgreyLine(o, line)
	default:
		e, p, err = o.parseLine(line, s.field)
	}
	if err != nil {
		position(faults, s.file, n, err)
		return
	}
	if e == nil {
		return
	}
	e.File, e.Line = s.file, n
	if s.file == "" {
		e.File, e.Line = s.key, 1
	}
	c.entries = append(c.entries, e)
	c.patterns = append(c.patterns, p)
}

func (s *source) postgreyLine(o *Options, line string) (*Entry, pattern, error) {
	text, _, _ := strings.Cut(line, "#")
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, pattern{}, nil
	}
	at := strings.Index(line, text)
	if strings.ContainsAny(text, " \t") {
		return nil, pattern{}, faultf(at, "a line of a postgrey whitelist is one word")
	}
	parse := parsePostgreyClient
	if s.format == formatPostgreyRecipients {
		parse = parsePostgreyRecipient
	}
	p, err := parse(text)
	if err != nil {
		return nil, p, faultf(at, "%v", err)
	}
	e := &Entry{Pattern: text, Field: p.field, rank: p.rank, Action: policy.Allow}
	if !o.permits(e.Action) {
		return nil, p, faultf(at, "a postgrey whitelist exempts; that cannot stand in %s", o.Key)
	}
	return e, p, nil
}

func (s *source) readTable(o *Options, c *content, faults *conf.Faults) {
	if _, err := readable(s.file); err != nil {
		s.unreadable(faults, err)
		return
	}
	t, warnings, fs := table.Read(s.kind, s.file, o.Lenient)
	c.warnings = warnings
	if len(fs) > 0 {
		if len(fs) > maxFaults {
			fs = fs[:maxFaults]
			fs.Filef(s.file, 0, 0, "and more faults")
		}
		*faults = append(*faults, fs...)
		return
	}
	c.table = t
	for _, r := range t.Rules() {
		e := &Entry{File: s.file, Line: r.Line, Pattern: r.Pattern, Field: s.field, rank: rank{level: levelRegexp}}
		switch s.kind {
		case table.CIDR:
			e.rank = rank{levelNetwork, 0}
			if r.Prefix.IsValid() {
				e.rank = networkRank(r.Prefix)
			}
		case table.Texthash:
			e.rank = keyRank(r.Pattern, s.field)
		case table.PCRE, table.Regexp: // as said
		}
		// What groups will hold is not known: "$1" as a word will do to see
		// whether the action can be carried out.
		if err := o.setAction(e, strings.TrimSpace(r.Result), 0, true); err != nil {
			faults.Filef(s.file, r.Line, 0, "%v", err)
			if len(*faults) >= maxFaults {
				return
			}
		}
		c.entries = append(c.entries, e)
	}
}

// keyRank ranks a key of a texthash as access(5) tries them.
func keyRank(key string, f Field) rank {
	p, err := parsePattern(key, f)
	if err != nil {
		return rank{level: levelSuffix}
	}
	if len(p.networks) > 0 {
		return networkRank(p.networks[0])
	}
	return p.rank
}

func (s *source) unreadable(faults *conf.Faults, err error) {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	faults.Keyf(s.key, "%s cannot be read: %v", s.file, err)
}

// readable returns what stat says of a file that can be read as a list.
func readable(path string) (os.FileInfo, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	if st.Size() > maxFile {
		return nil, fmt.Errorf("it has %d bytes, at most %d can be read", st.Size(), maxFile)
	}
	return st, nil
}

func readFile(path string) (string, error) {
	if _, err := readable(path); err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err
}
