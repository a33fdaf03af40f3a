package provider

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"
)

// Entry is one network of a list and where it comes from.
type Entry struct {
	Prefix netip.Prefix `json:"prefix"`
	// Record is the domain whose record holds the term, or the path of a file.
	Record string `json:"record"`
	// Term is the term as it stands in the record ("ip4:192.0.2.0/24"), or
	// "line 12". The network can be smaller than the term: the part of it
	// that no earlier term decides.
	Term string `json:"term"`
	// Via is the way to the record: "example.org > _spf.example.org".
	Via string `json:"via,omitempty"`
	// Since is when the whole network has been in the list from.
	Since time.Time `json:"since"`
}

func byPrefix(a, b Entry) int {
	return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
}

// entriesOf makes entries of what terms let pass.
func entriesOf(pieces []piece) []Entry {
	out := make([]Entry, 0, len(pieces))
	var prefixes []netip.Prefix
	for _, p := range pieces {
		prefixes = p.appendPrefixes(prefixes[:0])
		for _, x := range prefixes {
			out = append(out, Entry{Prefix: x, Record: p.source.record, Term: p.source.term, Via: p.source.via})
		}
	}
	slices.SortFunc(out, byPrefix)
	return out
}

// prefixesOf returns the fewest networks that hold the same addresses.
func prefixesOf(entries []Entry) []netip.Prefix {
	s := make(spans, len(entries))
	for i := range entries {
		s[i] = spanOf(entries[i].Prefix)
	}
	return normal(s).prefixes()
}

// carrySince sets Since of entries: that of the entry of old that holds the
// whole network, else now. Both are sorted.
func carrySince(entries []Entry, old *snapshot, now time.Time) {
	for i := range entries {
		e := &entries[i]
		e.Since = now
		if old == nil {
			continue
		}
		if _, was, ok := old.table.LookupPrefixLPM(e.Prefix); ok {
			e.Since = was.Since
		} else if covered(e.Prefix, old.prefixes) {
			e.Since = newest(e.Prefix, old.entries, now)
		}
	}
}

// covered reports whether one of the networks, which are aggregated and
// sorted, holds all of p.
func covered(p netip.Prefix, prefixes []netip.Prefix) bool {
	i, found := slices.BinarySearchFunc(prefixes, p.Addr(), func(x netip.Prefix, a netip.Addr) int { return x.Addr().Compare(a) })
	if !found {
		i--
	}
	return i >= 0 && prefixes[i].Bits() <= p.Bits() && prefixes[i].Contains(p.Addr())
}

// newest returns the latest Since of the entries inside p.
func newest(p netip.Prefix, entries []Entry, now time.Time) time.Time {
	i, _ := slices.BinarySearchFunc(entries, p.Addr(), func(e Entry, a netip.Addr) int { return e.Prefix.Addr().Compare(a) })
	var since time.Time
	for ; i < len(entries) && p.Contains(entries[i].Prefix.Addr()); i++ {
		if entries[i].Since.After(since) {
			since = entries[i].Since
		}
	}
	if since.IsZero() {
		return now
	}
	return since
}

// snapshot is a list in force. It does not change.
type snapshot struct {
	entries  []Entry        // sorted
	prefixes []netip.Prefix // aggregated, sorted
	table    *bart.Fast[*Entry]
}

// newSnapshot takes over the entries, which are sorted.
func newSnapshot(entries []Entry) *snapshot {
	s := &snapshot{entries: entries, prefixes: prefixesOf(entries), table: new(bart.Fast[*Entry])}
	for i := range entries {
		s.table.Insert(entries[i].Prefix, &entries[i])
	}
	return s
}

// find returns the entry that holds an address, nil if there is none. The
// address is unmapped.
func (s *snapshot) find(addr netip.Addr) *Entry {
	if s == nil {
		return nil
	}
	e, _ := s.table.Lookup(addr)
	return e
}

// Diff is what one list has and another has not, aggregated.
type Diff struct {
	Added   []netip.Prefix `json:"added,omitempty"`
	Removed []netip.Prefix `json:"removed,omitempty"`
}

// Empty reports whether both lists hold the same addresses.
func (d Diff) Empty() bool { return len(d.Added) == 0 && len(d.Removed) == 0 }

// diffOf compares two aggregated lists.
func diffOf(from, to []netip.Prefix) Diff {
	if slices.Equal(from, to) {
		return Diff{}
	}
	a, b := spansOf(from), spansOf(to)
	return Diff{Added: b.without(a).prefixes(), Removed: a.without(b).prefixes()}
}

// idOf names the content of a list in a few characters: what an operator
// accepts is what he has seen.
func idOf(prefixes []netip.Prefix) string {
	h := sha256.New()
	for _, p := range prefixes {
		h.Write(append(p.AppendTo(nil), '\n'))
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}
