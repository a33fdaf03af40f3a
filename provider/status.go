package provider

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Status is what `postern provider list` and `postern status` show of a list.
type Status struct {
	Name    string   `json:"name"`
	Domains []string `json:"domains,omitempty"`
	Files   []string `json:"files,omitempty"`
	// Ready is false until there is a list at all.
	Ready    bool          `json:"ready"`
	Networks int           `json:"networks"` // aggregated
	IPv4     int           `json:"ipv4"`     // of them
	IPv6     int           `json:"ipv6"`
	Checked  time.Time     `json:"checked,omitzero"` // last reading that agreed with the list
	Age      time.Duration `json:"age,omitempty"`    // since then
	Stale    bool          `json:"stale,omitempty"`  // older than stale_after
	Changed  time.Time     `json:"changed,omitzero"`
	How      How           `json:"how,omitempty"`
	ID       string        `json:"id,omitempty"` // of what the records say
	Next     time.Time     `json:"next,omitzero"`
	// Refused is the update that waits for an operator.
	Refused *Refused `json:"refused,omitempty"`
	// Problems are those of the list in force.
	Problems []Problem `json:"problems,omitempty"`
	Failures int       `json:"failures,omitempty"` // in a row
	Error    string    `json:"error,omitempty"`    // the last
	ErrorAt  time.Time `json:"error_at,omitzero"`
	// FileFault is why the files, as they are now, were not taken.
	FileFault   string    `json:"file_fault,omitempty"`
	FileFaultAt time.Time `json:"file_fault_at,omitzero"`
	ExportError string    `json:"export_error,omitempty"`
	Exports     []string  `json:"exports,omitempty"`
	Relay       int       `json:"relay,omitempty"` // relay sections
}

// Refused is an update that was not taken.
type Refused struct {
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Reasons []string  `json:"reasons"`
	Added   int       `json:"added"` // networks
	Removed int       `json:"removed"`
	// Problems are the parts of its records that could not be made into networks.
	Problems []Problem `json:"problems,omitempty"`
}

// Status returns the present state of all lists, in the order of the configuration.
func (s *Set) Status() Statuses {
	out := make([]Status, len(s.lists))
	for i, l := range s.lists {
		out[i] = l.status(time.Now())
	}
	return out
}

func (l *list) status(now time.Time) Status {
	st := Status{Name: l.cfg.Name, Domains: l.domains, Files: l.cfg.Files, Relay: len(l.rules)}
	for i := range l.exports {
		st.Exports = append(st.Exports, l.exports[i].Path)
	}
	if s := l.snap.Load(); s != nil {
		st.Ready, st.Networks = true, len(s.prefixes)
		for _, p := range s.prefixes {
			if p.Addr().Is4() {
				st.IPv4++
			}
		}
		st.IPv6 = st.Networks - st.IPv4
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d := &l.doc
	st.Problems, st.Failures, st.Error, st.ErrorAt = d.Problems, l.failures, l.lastError, l.errorAt
	st.FileFault, st.ExportError = l.fileFault, l.exportErr
	if st.FileFault != "" {
		st.FileFaultAt = l.faultAt
	}
	if len(l.domains) > 0 {
		st.Next = l.next
	}
	if d.Serial > 0 {
		st.Checked, st.Changed, st.How, st.ID = d.Checked, d.Changed, d.How, idOf(prefixesOf(d.Entries))
		st.Age = max(now.Sub(d.Checked), 0)
		st.Stale = st.Age > l.all.StaleAfter.D()
	}
	if p := d.Pending; p != nil {
		diff := diffOf(prefixesOf(d.Entries), prefixesOf(p.Entries))
		st.Refused = &Refused{p.ID, p.Time, p.Reasons, len(diff.Added), len(diff.Removed), p.Problems}
	}
	return st
}

// list returns the list of a name.
func (s *Set) list(name string) (*list, error) {
	if l := s.byName[name]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("provider: there is no list %q (there are: %s)", name, strings.Join(s.Names(), ", "))
}

// Shown is everything that is known of a list.
type Shown struct {
	Status  Status       `json:"status"`
	Entries []Entry      `json:"entries"` // sorted
	Records []RecordText `json:"records,omitempty"`
	History []Change     `json:"history,omitempty"` // the newest last
}

// Show returns everything that is known of a list. It must not be changed.
func (s *Set) Show(name string) (Shown, error) {
	l, err := s.list(name)
	if err != nil {
		return Shown{}, err
	}
	out := Shown{Status: l.status(time.Now())}
	if snap := l.snap.Load(); snap != nil {
		out.Entries = snap.entries
	}
	l.mu.Lock()
	out.Records, out.History = l.doc.Records, l.doc.History
	l.mu.Unlock()
	return out, nil
}

// Refresh reads the records of a list now and takes what they say, if the
// guards allow. With dry it changes nothing, and the report says what would
// happen. What went wrong with DNS is in the report; an error means that
// nothing was read.
func (s *Set) Refresh(ctx context.Context, name string, dry bool) (Report, error) {
	l, err := s.list(name)
	switch {
	case err != nil:
		return Report{}, err
	case dry || len(l.domains) == 0:
		return l.dryRun(ctx)
	}
	return l.refresh(ctx)
}

// Accept takes the refused update of a list that id names. Status, a refresh
// and the log show the id.
func (s *Set) Accept(ctx context.Context, name, id string) (Report, error) {
	l, err := s.list(name)
	if err != nil {
		return Report{}, err
	}
	return l.accept(ctx, id)
}

// Pending returns what accepting the refused update of a list would change,
// and the update; nil if there is none. It must not be changed.
func (s *Set) Pending(name string) (Diff, *Pending, error) {
	l, err := s.list(name)
	if err != nil {
		return Diff{}, nil, err
	}
	l.mu.Lock()
	p, entries := l.doc.Pending, l.doc.Entries
	l.mu.Unlock()
	if p == nil {
		return Diff{}, nil, nil
	}
	return diffOf(prefixesOf(entries), prefixesOf(p.Entries)), p, nil
}

// History returns the last changes of a list, the newest last.
func (s *Set) History(name string) ([]Change, error) {
	l, err := s.list(name)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.doc.History), nil
}

// Export writes a list as a Postfix cidr table; result stands behind each
// network, "" means OK.
func (s *Set) Export(w io.Writer, name, result string) error {
	l, err := s.list(name)
	if err != nil {
		return err
	}
	snap := l.snap.Load()
	if snap == nil {
		return fmt.Errorf("provider: list %s has never been read", name)
	}
	e := ExportConfig{Result: result}
	return cidr(w, name, e.result(), snap.prefixes)
}

// Match is a list that holds an address.
type Match struct {
	List string `json:"list"`
	Entry
}

// Whois returns the lists that hold an address, in the order of the
// configuration, with the term that puts it there.
func (s *Set) Whois(addr netip.Addr) []Match {
	addr = addr.Unmap().WithZone("")
	var out []Match
	for _, l := range s.lists {
		if e := l.snap.Load().find(addr); e != nil {
			out = append(out, Match{l.cfg.Name, *e})
		}
	}
	return out
}
