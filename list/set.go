package list

import (
	"net/netip"
	"strings"
	"time"

	"github.com/gaissmai/bart"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
	"postern/table"
)

// Set is what a list of sources was made into. It is immutable but for its
// hit counts, and safe for concurrent use.
type Set struct {
	opts     *Options
	entries  []*Entry
	fields   [fieldCount]index
	nets     bart.Table[*Entry]
	tables   []tableSource
	warnings conf.Faults
}

// index finds the entries of one field. Entries with the same key form a
// chain through Entry.next, in the order of the sources.
type index struct {
	names     map[string]*Entry // exact; of an address its domain
	suffixes  map[string]*Entry
	users     map[string]*Entry
	addresses map[string]*Entry
	regexps   []regexpEntry
}

type regexpEntry struct {
	table *table.Table
	entry *Entry
}

type tableSource struct {
	table   *table.Table
	field   Field
	entries []*Entry // by Rule.Index
}

// Load reads the sources. Each is the path of a list, or one of
//
//	cidr:PATH pcre:PATH regexp:PATH texthash:PATH     Postfix tables
//	postgrey-clients:PATH postgrey-recipients:PATH    postgrey's whitelists
//	inline:ENTRY                                      an entry by itself
//
// and may have the name of a field in front ("sender=texthash:PATH"). All
// faults of all sources are reported; with any the Set is nil.
func Load(sources []string, opts Options) (*Set, conf.Faults) {
	var faults conf.Faults
	contents := make([]*content, 0, len(sources))
	parsed := make([]*source, 0, len(sources))
	for i, text := range sources {
		s, err := opts.parseSource(i, text)
		if err != nil {
			faults.Keyf(opts.sourceKey(i), "%v", err)
			continue
		}
		c, fs := s.read(&opts)
		faults = append(faults, fs...)
		parsed, contents = append(parsed, s), append(contents, c)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return build(&opts, parsed, contents), nil
}

// Warnings returns what the administrator should know of the tables that the
// set was read from.
func (s *Set) Warnings() conf.Faults { return s.warnings }

// build makes a set of what was read; the entries are taken over.
func build(opts *Options, sources []*source, contents []*content) *Set {
	s := &Set{opts: opts}
	n := 0
	for _, c := range contents {
		n += len(c.entries)
		s.warnings = append(s.warnings, c.warnings...)
	}
	s.entries = make([]*Entry, 0, n)
	for i, c := range contents {
		for j, e := range c.entries {
			// Each set has entries of its own: their place and their chain
			// belong to it. The counts are shared.
			own := *e
			e = &own
			e.order, e.next = len(s.entries), nil
			if e.hits == nil {
				e.hits = new(counter)
			}
			s.entries = append(s.entries, e)
			if c.table == nil {
				s.add(e, &c.patterns[j])
			}
		}
		if c.table != nil {
			own := s.entries[len(s.entries)-len(c.entries):]
			s.tables = append(s.tables, tableSource{c.table, sources[i].field, own})
		}
	}
	return s
}

func (s *Set) add(e *Entry, p *pattern) {
	ix := &s.fields[p.field]
	e.extended = p.extended
	switch {
	case len(p.networks) > 0:
		for i, net := range p.networks {
			one := e
			if i > 0 { // chains of different networks must not mix
				copied := *e
				copied.next = nil
				one = &copied
			}
			one.rank = networkRank(net)
			s.nets.Modify(net, func(first *Entry, ok bool) (*Entry, bool) { return chain(first, one), false })
		}
	case p.regexp != nil:
		ix.regexps = append(ix.regexps, regexpEntry{p.regexp, e})
	case p.name != "":
		put(&ix.names, p.name, e)
	case p.suffix != "":
		put(&ix.suffixes, p.suffix, e)
	case p.address != "":
		put(&ix.addresses, p.address, e)
	default:
		put(&ix.users, p.user, e)
	}
}

func put(m *map[string]*Entry, key string, e *Entry) {
	if *m == nil {
		*m = make(map[string]*Entry)
	}
	(*m)[key] = chain((*m)[key], e)
}

// chain puts e behind the entries that begin with first.
func chain(first, e *Entry) *Entry {
	if first == nil {
		return e
	}
	at := first
	for at.next != nil {
		at = at.next
	}
	at.next = e
	return first
}

// Len returns the number of entries.
func (s *Set) Len() int { return len(s.entries) }

// Entries returns all entries in the order of the sources. The slice is not
// to be changed.
func (s *Set) Entries() []*Entry { return s.entries }

// Match returns the entry that decides about req, nil when there is none, and
// counts the hit unless req is a dry run. Of several the most specific
// decides, of equally specific ones the first. Expired entries do not match.
func (s *Set) Match(req *policy.Request) *Entry {
	e := s.Find(req)
	if e != nil && !req.DryRun {
		e.Hit(req.Time)
	}
	return e
}

// Find is Match without counting.
func (s *Set) Find(req *policy.Request) *Entry {
	f := finder{set: s, now: req.Time}
	if req.Client.Addr.IsValid() || req.Client.Name != "" {
		f.client(req.Client.Name, req.Client.Addr)
	}
	if req.Helo != "" && s.fields[Helo].used() {
		f.helo(req.Helo)
	}
	if req.Stage >= policy.StageMail && (req.Sender.Raw != "" || req.NullSender()) {
		f.address(Sender, req.Sender)
	}
	if req.Recipient.Raw != "" {
		f.address(Recipient, req.Recipient)
	}
	f.tables(req)
	return f.best
}

func (ix *index) used() bool {
	return ix.names != nil || ix.suffixes != nil || ix.users != nil || ix.addresses != nil || ix.regexps != nil
}

// finder keeps the best entry seen so far.
type finder struct {
	set  *Set
	now  time.Time
	best *Entry
}

// offer takes the first entry of the chain that has not expired, if it is
// better than what there is.
func (f *finder) offer(e *Entry) bool {
	for e != nil && e.Expired(f.now) {
		e = e.next
	}
	if e == nil {
		return false
	}
	if f.best != nil {
		if c := f.best.Compare(e); c < 0 || c == 0 && f.best.order < e.order {
			return true
		}
	}
	f.best = e
	return true
}

func (f *finder) client(name string, addr netip.Addr) {
	s := f.set
	if addr.IsValid() && s.nets.Size() > 0 {
		if e, ok := s.nets.Lookup(addr); ok && !f.offer(e) {
			// The closest network has expired; a wider one may not have.
			for _, e := range s.nets.Supernets(netip.PrefixFrom(addr, addr.BitLen())) {
				if f.offer(e) {
					break
				}
			}
		}
	}
	ix := &s.fields[Client]
	if !ix.used() {
		return
	}
	if name == "" {
		f.offer(ix.names[unknownClient])
	} else {
		f.offer(ix.names[name])
		f.suffixes(ix, name)
	}
	for _, r := range ix.regexps {
		if name != "" {
			if _, hit := r.table.Lookup(name); hit != nil {
				f.offer(r.entry)
				continue
			}
		}
		if addr.IsValid() {
			if _, hit := r.table.LookupAddr(addr); hit != nil {
				f.offer(r.entry)
			}
		}
	}
}

// suffixes looks name and the domains above it up.
func (f *finder) suffixes(ix *index, name string) {
	if ix.suffixes == nil {
		return
	}
	for name != "" {
		if f.offer(ix.suffixes[name]) {
			return
		}
		_, name, _ = strings.Cut(name, ".")
	}
}

func (f *finder) helo(helo string) {
	ix := &f.set.fields[Helo]
	name := mailaddr.Domain(helo)
	f.offer(ix.names[name])
	f.suffixes(ix, name)
	for _, r := range ix.regexps {
		if _, hit := r.table.Lookup(helo); hit != nil {
			f.offer(r.entry)
		}
	}
}

func (f *finder) address(field Field, a policy.Address) {
	ix := &f.set.fields[field]
	if !ix.used() {
		return
	}
	if a.Raw == "" {
		f.offer(ix.addresses[nullSender])
		for _, r := range ix.regexps {
			if _, hit := r.table.Lookup(nullSender); hit != nil {
				f.offer(r.entry)
			}
		}
		return
	}
	if ix.addresses != nil || ix.users != nil {
		f.local(ix, a)
	}
	if a.Domain != "" {
		f.offer(ix.names[a.Domain])
		f.suffixes(ix, a.Domain)
	}
	for _, r := range ix.regexps {
		if _, hit := r.table.Lookup(a.Raw); hit != nil {
			f.offer(r.entry)
		}
	}
}

// local looks an address and its user up, as written and without extension.
func (f *finder) local(ix *index, a policy.Address) {
	whole := strings.ToLower(a.Local)
	f.offer(ix.addresses[join(a, whole)])
	f.offer(ix.users[whole])
	if user, _, ok := mailaddr.SplitExtension(whole, f.set.opts.Delimiters); ok {
		f.offer(ix.addresses[join(a, user)])
		f.offer(ix.users[user])
		return
	}
	// Entries of postgrey's whitelists match extensions in any case.
	if user, _, ok := strings.Cut(whole, "+"); ok && user != "" {
		for _, e := range []*Entry{ix.addresses[join(a, user)], ix.users[user]} {
			for e != nil && !e.extended {
				e = e.next
			}
			f.offer(e)
		}
	}
}

// join returns local@domain, without an allocation where a.Raw is that.
func join(a policy.Address, local string) string {
	n := len(local)
	if len(a.Raw) == n+1+len(a.Domain) && a.Raw[:n] == local && a.Raw[n+1:] == a.Domain {
		return a.Raw
	}
	return local + "@" + a.Domain
}

// tables asks the Postfix tables. Within one the order is Postfix's own.
func (f *finder) tables(req *policy.Request) {
	for i := range f.set.tables {
		t := &f.set.tables[i]
		var result string
		var rule *table.Rule
		switch t.field {
		case Client:
			if req.Client.Addr.IsValid() || req.Client.Name != "" {
				result, rule = t.table.Client(req.Client.Name, req.Client.Addr)
			}
		case Helo:
			if req.Helo != "" {
				result, rule = t.table.Helo(req.Helo)
			}
		case Sender:
			if req.Stage >= policy.StageMail && (req.Sender.Raw != "" || req.NullSender()) {
				result, rule = t.table.Address(req.Sender, f.set.opts.Delimiters)
			}
		case Recipient:
			if req.Recipient.Raw != "" {
				result, rule = t.table.Address(req.Recipient, f.set.opts.Delimiters)
			}
		}
		if rule == nil {
			continue
		}
		e := t.entries[rule.Index]
		if rule.Substitutes {
			e = f.set.substituted(e, result)
		}
		f.offer(e)
	}
}

// substituted returns e with the action that result asks for. A result that
// is no action, which groups of a stranger's text can bring about, is none.
func (s *Set) substituted(e *Entry, result string) *Entry {
	own := *e
	own.Reply, own.Arg, own.Header = nil, "", policy.Header{}
	if err := s.opts.setAction(&own, policy.Printable(result), 0, true); err != nil {
		own.Action, own.Text = policy.Continue, err.Error()
	}
	return &own
}
