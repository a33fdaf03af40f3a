package lookup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/filestamp"
	"postern/internal/mailaddr"
	"postern/table"
)

// TableConfig is one [tables.NAME] section: a table that is served under NAME.
// It has either files, in Postfix's own syntax, or a mapping of domains.
type TableConfig struct {
	// Source is the file of the table: "cidr:PATH", "regexp:PATH", "pcre:PATH"
	// or "texthash:PATH". Default none.
	Source string `toml:"source"`
	// Sources are several of them, asked in this order, as a list of tables in
	// main.cf. Default none.
	Sources []string `toml:"sources"`
	// Lenient reads regexp and pcre tables as Postfix does: what it warns of and
	// skips is skipped, with a warning. Otherwise it is a fault.
	// Default false.
	Lenient bool `toml:"lenient"`
	// Search says by which keys beside the whole one a texthash is asked:
	// "exact" (none), "access" (access(5)), "transport" (transport(5)),
	// "virtual" (virtual(5), canonical(5)), "mailbox" (tables that list
	// addresses), "domain" (lists of domains). It must be set for a texthash.
	// Default none.
	Search Search `toml:"search"`
	// Parents is how parent domains are written in the table: "plain"
	// (example.org) or "dot" (.example.org); it must agree with
	// parent_domain_matches_subdomains in main.cf. Without it they are as
	// Postfix has them where main.cf says nothing: "dot" with search =
	// "transport", "plain" with "access" and "domain". Default none.
	Parents string `toml:"parents"`
	// Delimiters are the characters that part an extension from the user in an
	// address; it must agree with recipient_delimiter in main.cf. Default none.
	Delimiters string `toml:"delimiters"`
	// LocalDomains are domains whose users may stand without one in the table,
	// with search = "virtual" or "mailbox": those of mydestination, and
	// myorigin. Default none.
	LocalDomains []string `toml:"local_domains"`
	// MapDomains makes every address of one domain one of another:
	// { "a.example" = "b.example" } answers user@b.example for user@a.example.
	// For virtual_alias_maps and canonical_maps. Default none.
	MapDomains map[string]string `toml:"map_domains"`
	// AnswerDomains makes a mapping answer the bare domains too. Postfix takes
	// them as virtual alias domains then, and mail for them in, since
	// virtual_alias_domains is $virtual_alias_maps where main.cf says nothing.
	// Set it to false when they are listed in relay_domains or elsewhere.
	// Default true.
	AnswerDomains bool `toml:"answer_domains"`
	// ExistsIn is the name of another table: a mapping answers only addresses
	// whose other form is found there. Default none.
	ExistsIn string `toml:"exists_in"`
}

// DefaultTable returns the defaults of a section.
func DefaultTable() TableConfig { return TableConfig{AnswerDomains: true} }

// maxFaults bounds what is reported of one file.
const maxFaults = 20

// ValidateTables reports what is wrong with the sections and with every line
// of their files; prefix is the key they stand under.
func ValidateTables(prefix string, cfgs map[string]TableConfig, faults *conf.Faults) (warnings conf.Faults) {
	t, fs := newTables(prefix, cfgs, zap.NewNop(), nil)
	*faults = append(*faults, fs...)
	if t != nil {
		for _, n := range t.files {
			for _, s := range n.sources {
				warnings = append(warnings, s.warnings...)
			}
		}
	}
	return warnings
}

// Tables are the named tables. Their methods are safe for concurrent use.
type Tables struct {
	log     *zap.Logger
	metrics *TableMetrics
	names   []string // sorted
	maps    map[string]Explainer
	files   []*named // those made of files, by name

	mu      sync.Mutex // held while files are read
	watcher filestamp.Watcher
}

// NewTables reads the tables of cfgs. It starts nothing: see [Tables.Start].
// With any fault the Tables are nil. metrics may be nil.
func NewTables(cfgs map[string]TableConfig, log *zap.Logger, metrics *TableMetrics) (*Tables, conf.Faults) {
	return newTables("tables", cfgs, log.Named("lookup"), metrics)
}

func newTables(prefix string, cfgs map[string]TableConfig, log *zap.Logger, metrics *TableMetrics) (*Tables, conf.Faults) {
	t := &Tables{log: log, metrics: metrics, maps: make(map[string]Explainer, len(cfgs))}
	var faults conf.Faults
	for name := range cfgs {
		t.names = append(t.names, name)
	}
	slices.Sort(t.names)
	mappings := make(map[string]*domains)
	for _, name := range t.names {
		cfg, key := cfgs[name], prefix+"."+name
		if err := fit(name); err != nil {
			faults.Keyf(key, "%v", err)
		}
		switch hasFiles := cfg.Source != "" || len(cfg.Sources) > 0; {
		case hasFiles && cfg.MapDomains != nil:
			faults.Keyf(key, "a table has either files or map_domains; make it two, and name both in main.cf")
		case hasFiles:
			if one := newNamed(name, key, &cfg, &faults); one != nil {
				t.maps[name], t.files = one, append(t.files, one)
			}
		case len(cfg.MapDomains) > 0:
			one := newDomains(key, &cfg, &faults)
			t.maps[name], mappings[name] = one, one
		default:
			faults.Keyf(key, "there is neither source, sources nor map_domains: the table would be empty")
		}
	}
	for _, name := range t.names {
		if m := mappings[name]; m != nil && m.existsIn != "" {
			t.tie(prefix, name, m, mappings, cfgs, &faults)
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return t, nil
}

// tie finds the table that a mapping asks, which must not ask the mapping.
func (t *Tables) tie(prefix, name string, m *domains, mappings map[string]*domains, cfgs map[string]TableConfig, faults *conf.Faults) {
	key := prefix + "." + name + ".exists_in"
	if _, ok := cfgs[m.existsIn]; !ok {
		faults.Keyf(key, "there is no table %q", m.existsIn)
		return
	}
	at := m
	for range mappings {
		if at.existsIn == name {
			faults.Keyf(key, "the tables %q and %q ask each other", name, m.existsIn)
			return
		}
		if at = mappings[at.existsIn]; at == nil || at.existsIn == "" {
			break
		}
	}
	if one, ok := t.maps[m.existsIn]; ok { // otherwise it has faults of its own
		m.exists = one
	}
}

// secretWords are what the tables are called that must not be served.
var secretWords = []string{"sasl_passw", "sasl-passw", "sasl.passw", "saslpassw", "passwd", "password", "shadow"}

// fit says what is wrong with the name of a table, or the path of its file:
// whoever reaches a socket of the door can read every value.
func fit(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return public(name)
}

func public(name string) error {
	lower := strings.ToLower(name)
	for _, word := range secretWords {
		if strings.Contains(lower, word) {
			return fmt.Errorf("%q looks like a table of passwords: who reaches the door can read it, so leave it in a file that only root can read (smtp_sasl_password_maps = texthash:PATH)", name)
		}
	}
	return nil
}

// named is a table made of files.
type named struct {
	name    string
	search  searcher
	sources []*source                      // guarded by Tables.mu
	tables  atomic.Pointer[[]*table.Table] // what is answered from
}

// source is one file, and what is known of it.
type source struct {
	text, key, path string
	kind            table.Kind
	lenient         bool
	warnings        conf.Faults  // of the last reading
	table           *table.Table // the last good one
	track           filestamp.Tracker
	loaded          time.Time
	fault           string
	faultAt         time.Time
}

func indexed(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }

// newNamed reads a table; nil when there is any fault.
func newNamed(name, key string, cfg *TableConfig, faults *conf.Faults) *named {
	before := len(*faults)
	n := &named{name: name, search: newSearcher(key, cfg, faults)}
	texts, keyAt := cfg.Sources, func(i int) string { return indexed(key+".sources", i) }
	if cfg.Source != "" {
		if len(cfg.Sources) > 0 {
			faults.Keyf(key+".source", "there are sources as well: put all files there")
		}
		texts, keyAt = []string{cfg.Source}, func(int) string { return key + ".source" }
	}
	if cfg.ExistsIn != "" {
		faults.Keyf(key+".exists_in", "it has no effect without map_domains")
	}
	var tables []*table.Table
	indexed := false
	for i, text := range texts {
		s, err := newSource(text, keyAt(i))
		if err != nil {
			faults.Keyf(keyAt(i), "%v", err)
			continue
		}
		if s.kind == table.Texthash && cfg.Search == "" && !indexed {
			indexed = true
			faults.Keyf(key+".search", `it must be set for a texthash, since Postfix leaves the search to postern: "access" for check_*_access, "transport" for transport_maps, "virtual" for virtual_alias_maps and canonical_maps, "mailbox" for tables that list addresses, "domain" for lists of domains, "exact" for smtp_tls_policy_maps and all else`)
		}
		s.loaded, s.lenient = time.Now(), cfg.Lenient
		s.track.Begin(s.path)
		var fs conf.Faults
		s.table, fs = s.read()
		*faults = append(*faults, fs...)
		n.sources, tables = append(n.sources, s), append(tables, s.table)
	}
	if len(*faults) > before {
		return nil
	}
	n.tables.Store(&tables)
	return n
}

func newSearcher(key string, cfg *TableConfig, faults *conf.Faults) searcher {
	s := searcher{kind: cfg.Search, delimiters: cfg.Delimiters, dots: cfg.Search == SearchTransport}
	switch {
	case cfg.Search == "":
		s.kind = SearchExact
	case !slices.Contains(searches, cfg.Search):
		faults.Keyf(key+".search", "there is no search %q (one of %v)", string(cfg.Search), searches)
	}
	switch cfg.Parents {
	case "":
	case "plain", "dot":
		s.dots = cfg.Parents == "dot"
		if !slices.Contains([]Search{SearchAccess, SearchTransport, SearchDomain}, s.kind) {
			faults.Keyf(key+".parents", "search = %q asks for no parent domains", string(s.kind))
		}
	default:
		faults.Keyf(key+".parents", `%q is neither "plain" nor "dot"`, cfg.Parents)
	}
	if strings.ContainsFunc(cfg.Delimiters, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '@' || r == '"' }) {
		faults.Keyf(key+".delimiters", "%q holds something that cannot part an extension from a user", cfg.Delimiters)
	}
	if len(cfg.LocalDomains) > 0 && s.kind != SearchVirtual && s.kind != SearchMailbox {
		faults.Keyf(key+".local_domains", `it needs search = "virtual" or "mailbox"`)
	}
	for i, d := range cfg.LocalDomains {
		name, err := domainName(d)
		if err != nil {
			faults.Keyf(indexed(key+".local_domains", i), "%v", err)
			continue
		}
		if s.local == nil {
			s.local = make(map[string]bool)
		}
		s.local[name] = true
	}
	return s
}

// domainName returns a domain of the configuration in the compared form.
func domainName(s string) (string, error) {
	name := mailaddr.Domain(s)
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`@,;:<>()"\*`, r) }) ||
		name[0] == '.' || strings.Contains(name, "..") {
		return "", fmt.Errorf("%q is not a domain", s)
	}
	return name, nil
}

// newSource understands the text of a source.
func newSource(text, key string) (*source, error) {
	word, path, ok := strings.Cut(text, ":")
	kind, known := table.KindByName(word)
	switch {
	case !known && slices.Contains([]string{"hash", "btree", "lmdb", "cdb", "dbm", "sdbm"}, word):
		return nil, fmt.Errorf("%s tables are read from their source: texthash:%s", word, path)
	case !ok || !known:
		return nil, fmt.Errorf("%q: want cidr:PATH, regexp:PATH, pcre:PATH or texthash:PATH", text)
	case !filepath.IsAbs(path):
		return nil, fmt.Errorf("%q: the path must be absolute", text)
	}
	if err := public(filepath.Base(path)); err != nil {
		return nil, err
	}
	return &source{text: text, key: key, kind: kind, path: path}, nil
}

// read reads the file. With any fault the table is nil.
func (s *source) read() (*table.Table, conf.Faults) {
	var faults conf.Faults
	st, err := os.Stat(s.path)
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err
		}
		faults.Keyf(s.key, "%s cannot be read: %v", s.path, err)
		return nil, faults
	}
	t, warnings, faults := table.Read(s.kind, s.path, s.lenient)
	s.warnings = warnings
	if t != nil {
		for _, r := range t.Rules() {
			if !utf8.ValidString(r.Result) {
				faults.Filef(s.path, r.Line, 0, "the result is not UTF-8, which Postfix does not take")
			}
		}
	}
	if len(faults) > maxFaults {
		faults = faults[:maxFaults]
		faults.Filef(s.path, 0, 0, "and more faults")
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return t, nil
}

// hit is where an answer was found.
type hit struct {
	table     *table.Table
	rule      *table.Rule
	asked     string
	extension string // that asked is without
}

// find asks each key of all files before it goes on to the next key, as
// Postfix does with a list of tables.
func (n *named) find(key string) (value string, h hit) {
	tables := *n.tables.Load()
	for _, t := range tables {
		if value, r := t.Lookup(key); r != nil {
			return value, hit{table: t, rule: r, asked: key}
		}
	}
	if n.search.kind == SearchExact {
		return "", h
	}
	for further, extension := range n.search.further(key) {
		for _, t := range tables {
			if t.Kind() != table.Texthash {
				continue
			}
			value, r := t.Lookup(further)
			if r == nil {
				continue
			}
			if n.search.kind == SearchVirtual && extension != "" {
				value = propagate(value, extension)
			}
			return value, hit{t, r, further, extension}
		}
	}
	return "", h
}

// Lookup implements [Map].
func (n *named) Lookup(_ context.Context, key string) (value string, found bool, err error) {
	value, h := n.find(key)
	if h.rule != nil && value == "" {
		return "", false, fmt.Errorf("%s: %w", h.place(), errEmpty)
	}
	return value, h.rule != nil, nil
}

func (h *hit) place() string { return h.table.Name() + ":" + strconv.Itoa(h.rule.Line) }

// Explain implements [Explainer].
func (n *named) Explain(_ context.Context, key string) (Answer, error) {
	value, h := n.find(key)
	if h.rule == nil {
		return Answer{Key: key}, nil
	}
	a := Answer{Key: key, Found: true, Value: value, Place: h.place(), Pattern: h.rule.Pattern}
	if h.asked != key {
		a.Asked = h.asked
	}
	if value == "" {
		return a, fmt.Errorf("%s: %w", a.Place, errEmpty)
	}
	return a, nil
}

// Names returns the names of the tables, sorted.
func (t *Tables) Names() []string { return slices.Clone(t.names) }

// Maps returns the tables by name.
func (t *Tables) Maps() map[string]Map {
	out := make(map[string]Map, len(t.maps))
	for name, m := range t.maps {
		out[name] = m
	}
	return out
}

// Explain asks the table name as Postfix would. The error is [ErrUnknown] when
// there is none.
func (t *Tables) Explain(ctx context.Context, name, key string) (Answer, error) {
	m, ok := t.maps[name]
	if !ok {
		return Answer{Map: name, Key: key}, fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	a, err := Explain(ctx, m, key)
	a.Map, a.Key = name, key
	return a, err
}

// Start looks at the files every interval until Stop.
func (t *Tables) Start(interval time.Duration) {
	if t.watcher.Start(interval, t.poll) {
		t.metrics.use(t)
	}
}

// Stop ends what Start began and waits for it. It can be called twice, and
// without Start.
func (t *Tables) Stop() {
	if t.watcher.Stop() {
		t.metrics.release(t)
	}
}

// poll reads the files that have changed and been left alone since.
func (t *Tables) poll(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.files {
		for _, s := range n.sources {
			if s.track.Due(s.path, now) {
				_ = t.reread(n, s, now, false) // logged
			}
		}
	}
}

// Reload reads all files again, changed or not. A file with faults keeps what
// was read last; the faults are returned.
func (t *Tables) Reload() conf.Faults {
	t.mu.Lock()
	defer t.mu.Unlock()
	var faults conf.Faults
	now := time.Now()
	for _, n := range t.files {
		for _, s := range n.sources {
			faults = append(faults, t.reread(n, s, now, true)...)
		}
	}
	return faults
}

// reread reads one file; with faults the last good table stays. asked is set
// when the administrator wants to know at once. t.mu is held.
func (t *Tables) reread(n *named, s *source, now time.Time, asked bool) conf.Faults {
	s.track.Begin(s.path)
	fresh, faults := s.read()
	if len(faults) == 0 && s.track.Torn(s.path) {
		return conf.Faults{{Key: s.key, File: s.path, Text: "changed while it was read"}}
	}
	if len(faults) > 0 && !s.track.Bad() && !asked {
		return faults // it may be half written
	}
	if len(faults) > 0 {
		s.fault, s.faultAt = faults.Error(), now
		t.metrics.refused()
		t.log.Error("a table was not taken, its last good version stays in force",
			zap.String("map", n.name), zap.String("source", s.text), zap.Error(faults))
		return faults
	}
	s.track.Good()
	for _, w := range s.warnings {
		t.log.Warn("in a table", zap.String("map", n.name), zap.Error(w))
	}
	was := len(s.table.Rules())
	s.table, s.loaded, s.fault, s.faultAt = fresh, now, "", time.Time{}
	tables := make([]*table.Table, len(n.sources))
	for i, one := range n.sources {
		tables[i] = one.table
	}
	n.tables.Store(&tables)
	t.metrics.taken()
	t.log.Info("table reloaded", zap.String("map", n.name), zap.String("source", s.text),
		zap.Int("rules", len(fresh.Rules())), zap.Int("before", was))
	return nil
}

// TableStatus is the state of one table, for `postern status`.
type TableStatus struct {
	Name    string         `json:"name"`
	Search  Search         `json:"search,omitempty"`
	Sources []SourceStatus `json:"sources,omitempty"`
	Domains int            `json:"domains,omitempty"` // of a mapping
}

// SourceStatus is the state of one file.
type SourceStatus struct {
	Source   string    `json:"source"` // as configured
	Rules    int       `json:"rules"`
	Failures uint64    `json:"failures,omitempty"` // patterns given up after their time limit
	Loaded   time.Time `json:"loaded"`             // when the present rules were read
	Fault    string    `json:"fault,omitempty"`    // why a later edit was not taken
	FaultAt  time.Time `json:"fault_at,omitzero"`  // when that was found
}

// Status returns the state of each table, by name.
func (t *Tables) Status() TableStatuses {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]TableStatus, 0, len(t.names))
	for _, name := range t.names {
		st := TableStatus{Name: name}
		switch m := t.maps[name].(type) {
		case *domains:
			st.Domains = len(m.to)
		case *named:
			st.Search = m.search.kind
			for _, s := range m.sources {
				st.Sources = append(st.Sources, SourceStatus{
					Source: s.text, Rules: len(s.table.Rules()), Failures: s.table.Failures(),
					Loaded: s.loaded, Fault: s.fault, FaultAt: s.faultAt,
				})
			}
		}
		out = append(out, st)
	}
	return out
}
