// Package table reads Postfix lookup tables of the types cidr, regexp, pcre
// and texthash, and answers as Postfix would (cidr_table(5), regexp_table(5),
// pcre_table(5), postmap(1), access(5)).
//
// It is stricter than Postfix in one way: where Postfix logs a warning and
// skips a rule, the table is not taken at all and every such line is
// reported. A pattern whose meaning cannot be kept is refused in the same way,
// never matched approximately.
package table

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"

	"postern/internal/conf"
)

// Kind is the type of a table.
type Kind uint8

// The kinds.
const (
	CIDR Kind = iota
	Regexp
	PCRE
	Texthash
	kindCount
)

var kindNames = [kindCount]string{"cidr", "regexp", "pcre", "texthash"}

// String returns the name that Postfix uses in front of the colon.
func (k Kind) String() string {
	if k < kindCount {
		return kindNames[k]
	}
	return "unknown"
}

// KindByName finds the kind that Postfix calls name.
func KindByName(name string) (Kind, bool) {
	for i, n := range kindNames {
		if n == name {
			return Kind(i), true
		}
	}
	return 0, false
}

// MaxFile is the most bytes a table file may have.
const MaxFile = 256 << 20

// Rule is one rule of a table: its line, and what it gives.
type Rule struct {
	Line    int    // of the file, from 1
	Pattern string // as written, with delimiters, flags and negation; the key of a texthash
	Result  string // as written; $1 and the like stand for groups
	// Index is the rule's place in Rules.
	Index int
	// Column is where Result begins in its line, from 1; 0: not known.
	Column int
	// Prefix is the network of a cidr rule that is not negated.
	Prefix netip.Prefix
	// Substitutes is set when the result is made of what the pattern found.
	Substitutes bool

	literal string // the result without substitutions, $$ undone
	result  []part // with substitutions
}

// Table is one table in memory. It is immutable and safe for concurrent use.
type Table struct {
	kind     Kind
	name     string
	rules    []Rule
	prog     []instr
	top      *block         // regexp and pcre
	keys     map[string]int // texthash, folded
	failures atomic.Uint64
	notes    conf.Faults // what the administrator should know
}

// Kind returns the type of the table.
func (t *Table) Kind() Kind { return t.kind }

// Name returns the name given to Parse, usually the path.
func (t *Table) Name() string { return t.name }

// Rules returns all rules in the order of the file, conditions left out. The
// slice is not to be changed.
func (t *Table) Rules() []Rule { return t.rules }

// Failures returns how often a pattern was given up after its time limit.
// Like Postfix, Lookup then takes the rule as not matching.
func (t *Table) Failures() uint64 { return t.failures.Load() }

// Load reads the table at path. The Table is nil when there is any fault.
func Load(kind Kind, path string) (*Table, conf.Faults) {
	var fs conf.Faults
	data, err := readFile(path)
	if err != nil {
		fs.Filef(path, 0, 0, "%v", err)
		return nil, fs
	}
	return Parse(kind, path, data)
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, plain(err)
	}
	if info.Size() > MaxFile {
		return nil, fmt.Errorf("the file has more than %d bytes", MaxFile)
	}
	data, err := os.ReadFile(path)
	return data, plain(err)
}

// plain drops "open PATH:" from an error that is reported with the path.
func plain(err error) error {
	if pe, ok := err.(*os.PathError); ok { //nolint:errorlint // as os returns it
		return pe.Err
	}
	return err
}

// Parse reads a table; name is what faults call it. The Table is nil when
// there is any fault.
func Parse(kind Kind, name string, data []byte) (*Table, conf.Faults) {
	var fs conf.Faults
	return parse(&parser{t: &Table{kind: kind, name: name}, fs: &fs, warnings: &fs}, data), fs
}

// ParseLenient is Parse of a regexp or pcre table as Postfix does it: a rule
// that Postfix warns of and skips is skipped here too, and reported in
// warnings. A rule whose result is missing gives the empty string. What
// Postfix may understand and this package does not is still a fault.
func ParseLenient(kind Kind, name string, data []byte) (t *Table, warnings, faults conf.Faults) {
	lenient := kind == Regexp || kind == PCRE
	t = parse(&parser{t: &Table{kind: kind, name: name}, fs: &faults, warnings: &warnings, lenient: lenient}, data)
	return t, warnings, faults
}

// Read is Load, or LoadLenient, for the administrator: warnings are what he
// should know of the table, taken or not, and where a table is refused that
// Postfix reads, the faults say how to go on.
func Read(kind Kind, path string, lenient bool) (t *Table, warnings, faults conf.Faults) {
	if lenient {
		t, warnings, faults = LoadLenient(kind, path)
	} else if t, faults = Load(kind, path); t == nil && (kind == Regexp || kind == PCRE) {
		if other, _, _ := LoadLenient(kind, path); other != nil {
			faults.Filef(path, 0, 0, "Postfix reads this table and skips what is wrong in it; with lenient = true so does postern")
		}
	}
	if t != nil {
		warnings = append(warnings, t.notes...)
	}
	return t, warnings, faults
}

// LoadLenient is Load with the rules of [ParseLenient].
func LoadLenient(kind Kind, path string) (t *Table, warnings, faults conf.Faults) {
	data, err := readFile(path)
	if err != nil {
		faults.Filef(path, 0, 0, "%v", err)
		return nil, nil, faults
	}
	return ParseLenient(kind, path, data)
}

func parse(p *parser, data []byte) *Table {
	lines := logicalLines(p.t.name, data, p.fs, p.warnings)
	switch p.t.kind {
	case CIDR, Regexp, PCRE:
		p.program(lines)
	case Texthash:
		p.texthash(lines)
	default:
		p.fs.Filef(p.t.name, 0, 0, "unknown kind of table")
	}
	if len(*p.fs) > 0 {
		return nil
	}
	p.t.link()
	return p.t
}

// parser reads one table.
type parser struct {
	t  *Table
	fs *conf.Faults
	l  logicalLine
	// warnings takes what Postfix warns of: fs unless lenient.
	warnings *conf.Faults
	lenient  bool
}

func (p *parser) faultf(offset int, format string, args ...any) {
	p.fs.Filef(p.t.name, p.l.line, p.l.column(offset), format, args...)
}

// warnf is faultf for what makes Postfix skip a rule or ignore a word.
func (p *parser) warnf(offset int, format string, args ...any) {
	p.warnings.Filef(p.t.name, p.l.line, p.l.column(offset), format, args...)
}

// op is what an instruction does.
type op uint8

const (
	opMatch op = iota
	opIf
	opEndif
	opRun // many plain cidr rules, by index
)

// instr is a rule or a condition.
type instr struct {
	op   op
	rule int // into rules
	line int
	end  int // of opIf: the index of its endif
	not  bool
	net  netip.Prefix
	re   *expr
	not2 bool // regexp: /p1/!/p2/
	re2  *expr
	run  *run
}

// maxNested is how many conditions may stand inside each other.
const maxNested = 1000

func (p *parser) program(lines []logicalLine) {
	t := p.t
	var open []int // indices of ifs
	for _, p.l = range lines {
		word := keyword(p.l.text)
		switch {
		case word == "if":
			// A bad condition is already a fault; keep the nesting right.
			in := instr{op: opIf, line: p.l.line}
			before := len(*p.fs)
			rest, ok := p.condition(&in, len("if"))
			if !ok && len(*p.fs) == before {
				continue // lenient: skipped like a rule, what it guards is not
			}
			if rest != "" {
				p.warnf(len(p.l.text)-len(rest), "text after the condition: %q (a rule that is indented continues the line above)", clip(rest))
			}
			if len(open) == maxNested {
				p.faultf(0, "more than %d conditions inside each other", maxNested)
				return
			}
			open = append(open, len(t.prog))
			t.prog = append(t.prog, in)
		case word == "endif":
			if rest := strings.TrimSpace(p.l.text[len("endif"):]); rest != "" {
				p.warnf(len("endif"), "text after endif: %q (a rule that is indented continues the line above)", clip(rest))
			}
			if len(open) == 0 {
				p.warnf(0, "endif without if")
				continue
			}
			t.prog[open[len(open)-1]].end = len(t.prog)
			open = open[:len(open)-1]
			t.prog = append(t.prog, instr{op: opEndif, line: p.l.line})
		default:
			p.rule()
		}
	}
	for _, i := range open {
		p.warnings.Filef(t.name, t.prog[i].line, 1, "if without endif")
		t.prog[i].end = len(t.prog)
	}
}

// keyword returns "if" or "endif" when the line begins with that word, in any case.
func keyword(s string) string {
	for _, w := range []string{"if", "endif"} {
		if len(s) >= len(w) && strings.EqualFold(s[:len(w)], w) && (len(s) == len(w) || !isAlnum(s[len(w)])) {
			return w
		}
	}
	return ""
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// condition reads the pattern after "if" and returns what follows it.
func (p *parser) condition(in *instr, at int) (rest string, ok bool) {
	text := p.l.text
	for at < len(text) && isSpace(text[at]) {
		at++
	}
	if at == len(text) {
		p.warnf(at, "if without a pattern")
		return "", false
	}
	if p.t.kind == CIDR {
		word, rest := cutSpace(text[at:])
		return rest, p.network(in, word, at)
	}
	end, ok := p.pattern(in, at, false)
	if !ok {
		return "", false
	}
	return strings.TrimLeft(text[end:], " \t\v\f\r"), true
}

func (p *parser) rule() {
	t, text := p.t, p.l.text
	in := instr{op: opMatch, rule: len(t.rules), line: p.l.line}
	r := Rule{Line: p.l.line, Index: len(t.rules)}
	if t.kind == CIDR {
		word, rest := cutSpace(text)
		ok := p.network(&in, word, 0)
		if rest == "" {
			p.faultf(len(text), "no result after %q", clip(word))
			ok = false
		}
		if !ok {
			return
		}
		r.Pattern, r.Result, r.literal = word, rest, rest
		if !in.not {
			r.Prefix = in.net
		}
	} else {
		end, ok := p.pattern(&in, 0, true)
		if !ok {
			return
		}
		r.Pattern = text[:end]
		r.Result = strings.TrimLeft(text[end:], " \t\v\f\r")
		r.Column = p.l.column(len(text) - len(r.Result))
		if r.Result == "" {
			p.warnf(len(text), "no result after the pattern")
			if !p.lenient {
				return
			}
		}
		if !p.substitution(&r, &in, len(text)-len(r.Result)) {
			return
		}
	}
	t.rules = append(t.rules, r)
	t.prog = append(t.prog, in)
}

func cutSpace(s string) (word, rest string) {
	i := 0
	for i < len(s) && !isSpace(s[i]) {
		i++
	}
	return s[:i], strings.TrimLeft(s[i:], " \t\v\f\r")
}

func clip(s string) string {
	if len(s) > 60 {
		return s[:57] + "..."
	}
	return s
}

// Lookup returns what the table says about key, and by which rule; nil: the
// table does not know it. For pattern tables key is taken as it is, without
// line feeds at its end; a texthash folds it to lower case. A key that is not
// an address is unknown to a cidr table.
func (t *Table) Lookup(key string) (string, *Rule) {
	switch t.kind {
	case Texthash:
		if i, ok := t.keys[fold(key)]; ok {
			return t.rules[i].literal, &t.rules[i]
		}
		return "", nil
	case CIDR:
		addr, err := parseAddr(key)
		if err != nil {
			return "", nil
		}
		return t.lookupAddr(addr)
	default:
		return t.lookupText(key)
	}
}

// LookupAddr is Lookup of an address in the form that Postfix writes it. An
// IPv4-mapped address is taken as it is given.
func (t *Table) LookupAddr(addr netip.Addr) (string, *Rule) {
	if t.kind == CIDR {
		return t.lookupAddr(addr)
	}
	return t.Lookup(addr.String())
}

func (t *Table) lookupAddr(addr netip.Addr) (string, *Rule) {
	for i := 0; i < len(t.prog); i++ {
		switch in := &t.prog[i]; in.op {
		case opMatch:
			if in.holds(addr) {
				return t.rules[in.rule].literal, &t.rules[in.rule]
			}
		case opIf:
			if !in.holds(addr) {
				i = in.end
			}
		case opRun:
			if n, ok := in.run.nets.Lookup(addr); ok {
				return t.rules[n].literal, &t.rules[n]
			}
		case opEndif:
		}
	}
	return "", nil
}

// holds reports whether a cidr pattern is true of addr. A pattern says nothing
// about the other family, negated or not.
func (in *instr) holds(addr netip.Addr) bool {
	return in.net.Addr().Is4() == addr.Is4() && in.net.Contains(addr) != in.not
}

func (t *Table) lookupText(key string) (string, *Rule) {
	q := queries.Get().(*Query)
	q.failures = 0
	result, rule := t.Find(q, key)
	queries.Put(q)
	return result, rule
}
