package headercheck

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"postern/internal/conf"
	"postern/internal/when"
	"postern/list"
	"postern/policy"
	"postern/table"
)

// maxFaults bounds what is reported of one file: with a wrong file, thousands
// of lines say no more than twenty.
const maxFaults = 20

// counter survives its rule when the table is read again.
type counter struct {
	hits  atomic.Uint64
	last  atomic.Int64 // Unix seconds
	since time.Time    // when it began to count
}

func (c *counter) hit(now time.Time) {
	c.hits.Add(1)
	c.last.Store(now.Unix())
}

// rule is one rule of a table, or one of headers.rules.
type rule struct {
	kind    Kind
	place   string // "file:line", or the name of one of headers.rules
	owner   string // the name of the table; of headers.rules the name too
	file    string
	line    int
	pattern string
	result  string // as written
	shadow  bool   // the rule by itself
	parsed  parsed // of a result without substitutions
	dynamic bool
	hits    *counter
}

// read returns what the rule asks for of one line.
func (r *rule) read(result string) parsed {
	if r.dynamic {
		return parseResult(result)
	}
	return r.parsed
}

// set is one table in force.
type set struct {
	scope
	kind    Kind
	name    string
	decoded bool
	shadow  bool
	table   *table.Table
	rules   []*rule // by table.Rule.Index
	edits   bool    // a rule may change its line
}

// multi is one of headers.rules.
type multi struct {
	scope
	index     int // in Config.Rules
	rule      *rule
	shadow    bool
	all, none []int           // numbers of patterns
	when      *when.Condition // nil for none
	match     *list.Live      // nil for all
}

// meant reports whether the rule is for a message.
func (r *multi) meant(req *policy.Request, to []policy.Address) bool {
	if r.match == nil {
		return true
	}
	one := *req
	for i := range max(1, len(to)) {
		if len(to) > 0 {
			one.Recipient = to[i]
		}
		if e := r.match.Match(&one); e != nil && e.Action != policy.Continue {
			return true
		}
	}
	return false
}

// ruleset is all rules in force. It is immutable but for the counters.
type ruleset struct {
	tables []*set            // in the order of the configuration
	sets   [kindCount][]*set // what is asked for each kind of line
	multis []*multi
	// finders tell which patterns of multis find a header: as received and decoded.
	finders  [2]*table.Table
	numbers  [2][]int // of a finder's rules: the number of the pattern
	patterns int
	refuses  bool     // a header of any kind is looked at: MIME nesting matters
	filters  []string // targets of FILTER, sorted
	scoped   bool
}

// load reads all tables and rules. The ruleset is nil when there is any fault.
func load(c *Config, prefix string) (rs *ruleset, warnings, faults conf.Faults) {
	rs = &ruleset{}
	for i := range c.Checks {
		s, w, f := loadSet(c, i, prefix)
		warnings, faults = append(warnings, w...), append(faults, f...)
		if s != nil {
			rs.tables = append(rs.tables, s)
		}
	}
	rs.loadMultis(c, prefix, &faults)
	if len(faults) > 0 {
		return nil, warnings, faults
	}
	rs.arrange(c)
	return rs, warnings, nil
}

// arrange fills in what follows from the tables.
func (rs *ruleset) arrange(c *Config) {
	present := [kindCount]bool{}
	for i := range c.Checks {
		present[c.Checks[i].Kind] = true
	}
	rs.sets, rs.filters, rs.scoped, rs.refuses = [kindCount][]*set{}, nil, false, false
	for _, s := range rs.tables {
		rs.sets[s.kind] = append(rs.sets[s.kind], s)
		if s.kind == Header {
			if c.MIMEDefault && !present[MIME] {
				rs.sets[MIME] = append(rs.sets[MIME], s)
			}
			if c.NestedDefault && !present[Nested] {
				rs.sets[Nested] = append(rs.sets[Nested], s)
			}
		}
		rs.scoped = rs.scoped || len(s.domains) > 0
		rs.refuses = rs.refuses || s.kind != Body && !s.shadow
		for _, r := range s.rules {
			rs.addFilter(r)
		}
	}
	for _, m := range rs.multis {
		rs.scoped = rs.scoped || len(m.domains) > 0
		rs.addFilter(m.rule)
	}
	slices.Sort(rs.filters)
	rs.filters = slices.Compact(rs.filters)
}

func (rs *ruleset) addFilter(r *rule) {
	if r.parsed.act == actFilter && r.parsed.usable(r.kind) == nil {
		rs.filters = append(rs.filters, r.parsed.arg)
	}
}

// loadSet reads one table. The set is nil when it is switched off or has faults.
func loadSet(c *Config, i int, prefix string) (_ *set, warnings, faults conf.Faults) {
	tc := &c.Checks[i]
	key := fmt.Sprintf("%s.checks[%d]", prefix, i)
	s := &set{kind: tc.Kind, name: tc.Name, decoded: tc.Decoded, shadow: tc.Mode == policy.Shadow || c.Mode == policy.Shadow}
	s.scope = parseScope(key, tc.Domains, tc.DomainsMatch, &faults)
	if tc.Decoded && tc.Kind == Body {
		faults.Keyf(key+".decoded", "body lines are not decoded")
	}
	src, err := parseSource(tc.Table)
	if err != nil {
		faults.Keyf(key+".table", "%v", err)
		return nil, nil, faults
	}
	if s.name == "" {
		s.name = src.path
	}
	if tc.Mode == policy.Off {
		return nil, nil, faults
	}
	var fs conf.Faults
	s.table, warnings, fs = table.Read(src.kind, src.path, c.Lenient)
	if s.table != nil {
		w, f := s.actions(c, src.path)
		warnings, fs = append(warnings, w...), append(fs, f...)
	} else if t, _, _ := table.LoadLenient(src.kind, src.path); t != nil && !c.Lenient {
		// Of the rules that can be read, the actions are looked at too.
		rest := &set{kind: s.kind, table: t}
		_, f := rest.actions(c, src.path)
		fs = append(fs, f...)
		slices.SortStableFunc(fs, func(a, b *conf.Fault) int { return cmp.Compare(a.Line, b.Line) })
	}
	faults = append(faults, few(fs, src.path)...)
	if len(faults) > 0 {
		return nil, warnings, faults
	}
	return s, warnings, nil
}

// few cuts a long list of faults of one file.
func few(fs conf.Faults, file string) conf.Faults {
	if len(fs) > maxFaults {
		n := len(fs) - maxFaults
		fs = fs[:maxFaults:maxFaults]
		fs.Filef(file, 0, 0, "and %d more", n)
	}
	return fs
}

// actions reads the results of the rules of a table.
func (s *set) actions(c *Config, path string) (warnings, faults conf.Faults) {
	now := time.Now()
	rules := s.table.Rules()
	s.rules = make([]*rule, len(rules))
	for i := range rules {
		tr := &rules[i]
		r := &rule{
			kind: s.kind, place: fmt.Sprintf("%s:%d", path, tr.Line), owner: s.name, file: path, line: tr.Line,
			pattern: tr.Pattern, result: tr.Result, dynamic: tr.Substitutes, hits: &counter{since: now},
		}
		s.rules[i] = r
		text := tr.Result
		if !tr.Substitutes {
			text = strings.ReplaceAll(text, "$$", "$")
		}
		r.parsed = parseResult(text)
		r.shadow = r.parsed.shadow
		s.edits = s.edits || r.parsed.act.edits() || r.dynamic && r.parsed.act == actUnknown
		switch err := hard(r, c.FilterMarker); {
		case err != nil:
			faults.Filef(path, tr.Line, tr.Column, "%v", err)
		case text == "": // reported by the table
		default:
			if err := r.parsed.strictly(s.kind, r.dynamic); err != nil {
				if c.Lenient {
					warnings.Filef(path, tr.Line, tr.Column, "%v", err)
				} else {
					faults.Filef(path, tr.Line, tr.Column, "%v", err)
				}
			}
		}
	}
	return warnings, faults
}

// hard says what no reading of a rule can make good.
func hard(r *rule, marker string) error {
	p := r.parsed
	switch {
	case p.act == actFilter && r.dynamic:
		return fmt.Errorf("FILTER with a target from the message: Postfix must be told the targets beforehand")
	case p.act == actFilter && marker == "" && p.usable(r.kind) == nil:
		return fmt.Errorf("FILTER needs headers.filter_marker: a milter cannot ask for it otherwise")
	case p.act == actFilter && strings.ContainsFunc(p.arg, func(c rune) bool { return c < ' ' || c > '~' }):
		return fmt.Errorf("FILTER %q: only printable ASCII can be a target", p.arg)
	}
	return nil
}

// loadMultis reads headers.rules.
func (rs *ruleset) loadMultis(c *Config, prefix string, faults *conf.Faults) {
	now := time.Now()
	var texts [2]strings.Builder
	names := map[string]bool{}
	for i := range c.Rules {
		rc := &c.Rules[i]
		key := fmt.Sprintf("%s.rules[%d]", prefix, i)
		before := len(*faults)
		r := &rule{
			kind: Rule, place: rc.Name, owner: rc.Name, result: rc.Action, parsed: parseRule(rc.Action), hits: &counter{since: now},
			pattern: strings.Join(rc.All, " and "),
		}
		for _, p := range rc.None {
			r.pattern += " and no " + p
		}
		if rc.When != "" {
			r.pattern = strings.TrimPrefix(r.pattern+" when "+rc.When, " ")
		}
		r.shadow = r.parsed.shadow
		m := &multi{index: i, rule: r, shadow: rc.Mode == policy.Shadow || c.Mode == policy.Shadow}
		m.scope = parseScope(key, rc.Domains, rc.DomainsMatch, faults)
		switch {
		case rc.Name == "":
			faults.Keyf(key+".name", "a rule needs a name")
		case policy.Printable(rc.Name) != rc.Name || len(rc.Name) > 100:
			faults.Keyf(key+".name", "%q: at most 100 printable ASCII characters", clip(rc.Name, 120))
		case names[rc.Name]:
			faults.Keyf(key+".name", "two rules are called %q", rc.Name)
		}
		names[rc.Name] = true
		if rc.Action == "" {
			faults.Keyf(key+".action", "a rule needs an action")
		} else if err := multiAction(r, c.FilterMarker); err != nil {
			faults.Keyf(key+".action", "%v", err)
		}
		if rc.When != "" {
			var err error
			if m.when, err = when.Parse(rc.When); err != nil {
				faults.Keyf(key+".when", "%v", err)
			}
		}
		sources, opts := c.match(prefix, i)
		_, fs := list.Load(sources, opts)
		*faults = append(*faults, fs...)
		if len(rc.All) == 0 && rc.When == "" && len(sources) == 0 {
			faults.Keyf(key+".all", "a rule needs at least one pattern, or when, or match")
		}
		d := 0
		if rc.Decoded {
			d = 1
		}
		add := func(key string, patterns []string) (numbers []int) {
			for j, p := range patterns {
				if !checkPattern(fmt.Sprintf("%s[%d]", key, j), p, faults) {
					continue
				}
				fmt.Fprintf(&texts[d], "%s x\n", strings.TrimSpace(p))
				rs.numbers[d] = append(rs.numbers[d], rs.patterns)
				numbers = append(numbers, rs.patterns)
				rs.patterns++
			}
			return numbers
		}
		m.all, m.none = add(key+".all", rc.All), add(key+".none", rc.None)
		if len(*faults) == before && rc.Mode != policy.Off {
			rs.multis = append(rs.multis, m)
		}
	}
	if len(*faults) > 0 {
		return
	}
	for d := range texts {
		if texts[d].Len() > 0 {
			var fs conf.Faults
			rs.finders[d], fs = table.Parse(table.PCRE, prefix+".rules", []byte(texts[d].String()))
			*faults = append(*faults, fs...)
		}
	}
}

// checkPattern reads a pattern of headers.rules by itself.
func checkPattern(key, pattern string, faults *conf.Faults) bool {
	p := strings.TrimSpace(pattern)
	if strings.ContainsAny(p, "\n\r\x00") {
		faults.Keyf(key, "a pattern is one line")
		return false
	}
	if p == "" || p[0] == '!' || p[0] == '#' || strings.HasPrefix(strings.ToLower(p), "if") {
		faults.Keyf(key, "%q is not a pattern between delimiters, such as /^Subject:.*word/ (what may not be found stands in \"none\")", clip(p, 60))
		return false
	}
	t, fs := table.Parse(table.PCRE, key, []byte(p+" x\n"))
	for _, f := range fs {
		if f.Column > 0 {
			faults.Keyf(key, "character %d: %s", f.Column, f.Text)
		} else {
			faults.Keyf(key, "%s", f.Text)
		}
	}
	if t != nil && (len(t.Rules()) != 1 || t.Rules()[0].Pattern != p) {
		faults.Keyf(key, "text after the pattern: %q", clip(p, 60))
		return false
	}
	return t != nil
}

func multiAction(r *rule, marker string) error {
	switch r.parsed.act {
	case actIgnore, actStrip, actReplace:
		return fmt.Errorf("%s is about one header, and this rule is about several", strings.ToUpper(r.parsed.word))
	case actDunno:
		return fmt.Errorf("%s does nothing here", strings.ToUpper(r.parsed.word))
	case actSubject, actMark:
		return r.parsed.usable(Rule)
	default:
	}
	if err := hard(r, marker); err != nil {
		return err
	}
	return r.parsed.strictly(Header, false)
}

// identity is what makes two rules the same over a reload.
type identity struct {
	kind                          Kind
	owner, file, pattern, written string
}

func (r *rule) identity() identity { return identity{r.kind, r.owner, r.file, r.pattern, r.result} }

// each calls f for every rule.
func (rs *ruleset) each(f func(r *rule, shadow bool)) {
	for _, s := range rs.tables {
		for _, r := range s.rules {
			f(r, s.shadow || r.shadow)
		}
	}
	for _, m := range rs.multis {
		f(m.rule, m.shadow || m.rule.shadow)
	}
}

// adopt takes over the counters of the same rules of old.
func (rs *ruleset) adopt(old *ruleset) {
	if old == nil {
		return
	}
	counters := map[identity]*counter{}
	old.each(func(r *rule, _ bool) {
		if _, twice := counters[r.identity()]; !twice {
			counters[r.identity()] = r.hits
		}
	})
	rs.each(func(r *rule, _ bool) {
		id := r.identity()
		if c := counters[id]; c != nil {
			r.hits = c
			delete(counters, id) // a second one like it counts by itself
		}
	})
}

// FilterLines returns the rules that Postfix's milter_header_checks must hold
// (a regexp table) so that FILTER actions have their effect, one for each
// target. It is empty when no rule has FILTER.
func (rs *ruleset) filterLines(marker string) []string {
	lines := make([]string, len(rs.filters))
	for i, target := range rs.filters {
		var pattern strings.Builder
		for j := range len(target) {
			if strings.IndexByte(`\.[]{}()*+?^$|/`, target[j]) >= 0 {
				pattern.WriteByte('\\')
			}
			pattern.WriteByte(target[j])
		}
		lines[i] = fmt.Sprintf("/^%s: *%s$/ FILTER %s", marker, &pattern, strings.ReplaceAll(target, "$", "$$"))
	}
	return lines
}
