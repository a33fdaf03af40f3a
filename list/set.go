package list

import (
	"postern/internal/conf"
	"postern/policy"
)

// Set is what a list of sources was made into. It is immutable but for its
// hit counts, and safe for concurrent use.
type Set struct {
	opts    Options
	entries []*Entry
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
	return nil, nil
}

// Len returns the number of entries.
func (s *Set) Len() int { return len(s.entries) }

// Entries returns all entries in the order of the sources. The slice is not
// to be changed.
func (s *Set) Entries() []*Entry { return s.entries }

// Match returns the entry that decides about req, nil when there is none, and
// counts the hit unless req is a dry run.
func (s *Set) Match(req *policy.Request) *Entry {
	e := s.Find(req)
	if e != nil && !req.DryRun {
		e.Hit(req.Time)
	}
	return e
}

// Find is Match without counting.
func (s *Set) Find(req *policy.Request) *Entry { return nil }
