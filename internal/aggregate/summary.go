package aggregate

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Source is what all reports say of one client that sent as one domain.
type Source struct {
	Domain string `json:"domain"` // in From
	IP     string `json:"ip"`
	Name   string `json:"name,omitempty"` // its reverse name, where somebody has asked
	Count  int64  `json:"count"`
	// Pass are messages that passed DMARC; DKIM and SPF those for which an aligned
	// one passed.
	Pass        int64    `json:"pass"`
	DKIM        int64    `json:"dkim"`
	SPF         int64    `json:"spf"`
	Quarantined int64    `json:"quarantined"`
	Rejected    int64    `json:"rejected"`
	Overridden  int64    `json:"overridden"` // with a reason not to carry out the policy
	Reporters   []string `json:"reporters"`
	// Signers are domains of valid signatures, aligned or not: they tell whose
	// mail it is.
	Signers []string `json:"signers,omitempty"`
}

// Summary is what a set of reports says.
type Summary struct {
	Reports    int      `json:"reports"`
	Duplicates int      `json:"duplicates"` // the same report again, not counted
	Begin      int64    `json:"begin"`      // Unix seconds
	End        int64    `json:"end"`
	Count      int64    `json:"count"`
	Pass       int64    `json:"pass"`
	Sources    []Source `json:"sources"`

	seen  map[string]bool
	index map[[2]string]int
}

const maxListed = 20 // reporters or signers of a source

// Add takes a report into the sum.
func (s *Summary) Add(r *Report) {
	if s.seen == nil {
		s.seen, s.index = map[string]bool{}, map[[2]string]int{}
	}
	id := r.Metadata.Organization + "\x00" + r.Metadata.ID + "\x00" + r.Published.Domain
	if s.seen[id] && r.Metadata.ID != "" {
		s.Duplicates++
		return
	}
	s.seen[id] = true
	s.Reports++
	if b := r.Metadata.Range.Begin; b > 0 && (s.Begin == 0 || b < s.Begin) {
		s.Begin = b
	}
	s.End = max(s.End, r.Metadata.Range.End)
	for i := range r.Records {
		s.add(r, &r.Records[i])
	}
}

func (s *Summary) add(r *Report, rec *Record) {
	domain := strings.ToLower(rec.Identifiers.HeaderFrom)
	if domain == "" {
		domain = strings.ToLower(r.Published.Domain)
	}
	ip := rec.Row.SourceIP
	if a, err := netip.ParseAddr(ip); err == nil {
		ip = a.Unmap().String()
	}
	key := [2]string{domain, ip}
	at, ok := s.index[key]
	if !ok {
		at = len(s.Sources)
		s.index[key] = at
		s.Sources = append(s.Sources, Source{Domain: domain, IP: ip})
	}
	one, n, e := &s.Sources[at], rec.Row.Count, &rec.Row.Evaluated
	one.Count += n
	s.Count += n
	if e.Passes() {
		one.Pass += n
		s.Pass += n
	}
	if strings.EqualFold(e.DKIM, "pass") {
		one.DKIM += n
	}
	if strings.EqualFold(e.SPF, "pass") {
		one.SPF += n
	}
	switch strings.ToLower(e.Disposition) {
	case "quarantine":
		one.Quarantined += n
	case "reject":
		one.Rejected += n
	}
	if len(e.Reasons) > 0 {
		one.Overridden += n
	}
	list(&one.Reporters, r.Metadata.Organization)
	for _, d := range rec.Results.DKIM {
		if strings.EqualFold(d.Result, "pass") {
			list(&one.Signers, strings.ToLower(d.Domain))
		}
	}
}

func list(to *[]string, s string) {
	if s != "" && len(*to) < maxListed && !slices.Contains(*to, s) {
		*to = append(*to, s)
	}
}

// Sort puts the sources first of which most fail.
func (s *Summary) Sort() {
	slices.SortStableFunc(s.Sources, func(a, b Source) int {
		return cmp.Or(cmp.Compare(b.Count-b.Pass, a.Count-a.Pass), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.IP, b.IP))
	})
}
