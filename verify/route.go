package verify

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/policy"
	"postern/verify/callout"
	"postern/verify/directory"
)

// route is a Route made ready.
type route struct {
	name      string // the first domain, for logs and commands
	domains   []*file
	hops      []callout.Hop
	transport []*file
	sources   []source
	instant   int // how many sources, from the first, answer from memory
	options   *callout.Options
	times     Times
	wait      time.Duration
	whenDown  string
	hard      bool // reject with 550
	reject    *policy.Template
}

// source is one who may know an address: exactly one of the fields is set.
type source struct {
	name      string
	file      *file
	directory *directory.Directory
	callout   bool
}

// routes finds the route of a domain.
type routes struct {
	exact    map[string]*route // "example.org", ".example.org"
	byFile   []*route
	fallback *route // of "*"
	all      []*route
	files    []*file
}

// newRoutes reads every file that the routes name. directories are by name.
func newRoutes(cfg *Config, hostname string, directories map[string]*directory.Directory) (*routes, error) {
	rs := &routes{exact: make(map[string]*route)}
	var faults conf.Faults
	open := func(text string) *file {
		for _, f := range rs.files {
			if f.text == text {
				return f
			}
		}
		f, err := parseFile(text)
		if err != nil {
			faults.Keyf("verify", "%v", err)
			return nil
		}
		faults = append(faults, f.load()...)
		rs.files = append(rs.files, f)
		return f
	}
	for i := range cfg.Routes {
		full := cfg.settings(&cfg.Routes[i])
		r := &route{times: cfg.times(&full), wait: full.Wait.D(), whenDown: full.WhenDown, hard: full.RejectCode == 550}
		var err error
		if r.reject, err = policy.ParseTemplate(full.RejectText, rejectDefault(full.RejectCode), replyVars...); err != nil {
			return nil, fmt.Errorf("verify: reject_text: %w", err)
		}
		if full.NextHop != "" {
			if r.hops, err = callout.ParseHops(full.NextHop); err != nil {
				return nil, fmt.Errorf("verify: next_hop: %w", err)
			}
		}
		roots, err := callout.LoadRoots(full.CAFile)
		if err != nil {
			return nil, fmt.Errorf("verify: ca_file: %w", err)
		}
		r.options = &callout.Options{Sender: callout.SenderAddress(full.Sender, hostname), Level: full.TLS, Roots: roots}
		for _, d := range full.Domains {
			if r.name == "" {
				r.name = d
			}
			switch name := foldKey(d); {
			case strings.Contains(d, ":"):
				r.domains = append(r.domains, open(d))
			case name == "*":
				rs.fallback = r
			default:
				rs.exact[name] = r
			}
		}
		if len(r.domains) > 0 {
			rs.byFile = append(rs.byFile, r)
		}
		for _, t := range full.Transport {
			r.transport = append(r.transport, open(t))
		}
		for n, s := range full.sources() {
			src := source{name: s}
			if kind, rest, _ := strings.Cut(s, ":"); s == calloutWord {
				src.callout = true
			} else if kind == "ldap" {
				src.directory = directories[rest]
			} else {
				src.file = open(s)
				if r.instant == n {
					r.instant++
				}
			}
			r.sources = append(r.sources, src)
		}
		rs.all = append(rs.all, r)
	}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	return rs, nil
}

// find returns the route of a domain: by its name, by what it is below of, by
// a file, the one of "*"; nil for a domain that is not ours.
func (rs *routes) find(domain string) *route {
	if r := rs.exact[domain]; r != nil {
		return r
	}
	for d := domain; ; {
		dot := strings.IndexByte(d, '.')
		if dot < 0 {
			break
		}
		if r := rs.exact[d[dot:]]; r != nil {
			return r
		}
		d = d[dot+1:]
	}
	for _, r := range rs.byFile {
		for _, f := range r.domains {
			if _, ok := f.domain(domain); ok {
				return r
			}
		}
	}
	return rs.fallback
}

// hopsFor returns whom to ask about an address.
func (r *route) hopsFor(a policy.Address, cfg *Config) ([]callout.Hop, error) {
	for _, f := range r.transport {
		result, place, ok := f.transport(a, cfg.Delimiters)
		if !ok {
			continue
		}
		hops, err := callout.FromTransport(result, a.Domain, callout.Services{SMTP: cfg.SMTPServices, LMTP: cfg.LMTPServices})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", place, err)
		}
		if len(hops) > 0 {
			return hops, nil
		}
		break // ":" leaves it as it is
	}
	if len(r.hops) == 0 {
		return nil, errors.New("no transport table names a next hop")
	}
	return r.hops, nil
}

// said is what a file says by its result: an entry as of access(5) may refuse.
func said(result string) Result {
	word, _, _ := strings.Cut(strings.TrimSpace(result), " ")
	switch upper := strings.ToUpper(word); {
	case upper == "REJECT", upper == "DISCARD", len(word) == 3 && (word[0] == '4' || word[0] == '5') && word[1] >= '0' && word[1] <= '9' && word[2] >= '0' && word[2] <= '9':
		return Unknown
	case upper == "DUNNO":
		return ""
	}
	return Known
}
