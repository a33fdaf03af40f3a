package dkim

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"postern/internal/adminapi"
	"postern/internal/mailaddr"
)

// KeyReport is what is to be known of a key.
type KeyReport struct {
	Domain    string    `json:"domain"` // "" for that of the author
	Selector  string    `json:"selector"`
	Algorithm string    `json:"algorithm"`
	Bits      int       `json:"bits,omitempty"`
	File      string    `json:"file"`
	From      time.Time `json:"from,omitzero"`
	To        time.Time `json:"to,omitzero"`
	// Signs reports whether it signs now.
	Signs bool `json:"signs"`
	// Name and Record are what must stand in the DNS.
	Name   string `json:"name,omitempty"`
	Record string `json:"record"`
	State  State  `json:"state"`
}

// Report is what is to be known of a domain.
type Report struct {
	Domain string      `json:"domain"`
	Keys   []KeyReport `json:"keys"`
	// Faults are what keeps mail from being signed well now, Next what is to be
	// done, and when.
	Faults []string `json:"faults,omitempty"`
	Next   []string `json:"next,omitempty"`
}

// Status is what `postern status` shows.
type Status struct {
	Keys []KeyReport `json:"keys"`
}

// Status returns how the keys are, nothing while it is off.
func (c *Check) Status() Status {
	if !c.on() {
		return Status{}
	}
	now := time.Now()
	s := Status{Keys: make([]KeyReport, 0, len(c.ring.keys))}
	for _, k := range c.ring.keys {
		s.Keys = append(s.Keys, c.report(k, now))
	}
	return s
}

// maxShown is how many keys `postern status` shows that are as they should be.
const maxShown = 20

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, now time.Time) {
	good, label := 0, "dkim"
	line := func(format string, args ...any) {
		fmt.Fprintf(w, "%-9s ", label)
		fmt.Fprintf(w, format+"\n", args...)
		label = ""
	}
	for _, k := range s.Keys {
		bad := k.State.Problem != "" && (k.Signs || k.on(now))
		if !bad {
			if good++; good > maxShown {
				continue
			}
		}
		line("%s", k.line(now))
	}
	if good > maxShown {
		line("and %d more that are as they should be", good-maxShown)
	}
}

func (k *KeyReport) on(now time.Time) bool {
	return !now.Before(k.From) && (k.To.IsZero() || now.Before(k.To))
}

// line says in one line how a key is.
func (k *KeyReport) line(now time.Time) string {
	domain := k.Domain
	if domain == "" {
		domain = "any domain"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s (%s): ", domain, k.Selector, k.Kind())
	switch {
	case k.Signs:
		b.WriteString("signs")
	case now.Before(k.From):
		fmt.Fprintf(&b, "signs from %s on", Date{k.From})
	case !k.To.IsZero() && !now.Before(k.To):
		fmt.Fprintf(&b, "has signed until %s", Date{k.To})
	case k.State.usable():
		b.WriteString("would sign if a later key did not")
	default:
		b.WriteString("DOES NOT SIGN")
	}
	switch k.State.Standing {
	case Unknown, "":
		b.WriteString(", its record has not been seen")
	case Published:
		b.WriteString(", its record is good")
	default:
		b.WriteString(", its record is not good")
	}
	if k.State.Problem != "" {
		b.WriteString(": " + adminapi.Printable(k.State.Problem))
	}
	return b.String()
}

// Kind returns algorithm and length: "RSA 2048".
func (k *KeyReport) Kind() string {
	if k.Bits > 0 {
		return fmt.Sprintf("%s %d", kindName(k.Algorithm), k.Bits)
	}
	return kindName(k.Algorithm)
}

func (c *Check) report(k *key, now time.Time) KeyReport {
	out := KeyReport{
		Domain: k.domain, Selector: k.selector, Algorithm: k.algorithm, Bits: k.bits, File: k.file, From: k.from, To: k.to,
		Record: k.text(), State: State{Standing: Unknown},
	}
	if k.domain != "" {
		out.Name = k.name(k.domain)
	}
	if s := k.state.Load(); s != nil {
		out.State = *s
	}
	if d := c.ring.domains[k.domain]; d != nil && slices.Contains(d.keys, k) {
		out.Signs = d.pick(k.algorithm, now) == k
	} else {
		out.Signs = k.state.Load().usable()
	}
	return out
}

// Domains returns reports of one domain, or of all for "".
func (c *Check) domains(of string, now time.Time) (out []Report) {
	at := map[string]int{}
	for _, k := range c.ring.keys {
		if of != "" && k.domain != of {
			continue
		}
		i, ok := at[k.domain]
		if !ok {
			i = len(out)
			at[k.domain] = i
			out = append(out, Report{Domain: k.domain})
		}
		out[i].Keys = append(out[i].Keys, c.report(k, now))
	}
	for i := range out {
		out[i].advise(now)
	}
	return out
}

// keepRecord is how long the record of a key should stay after its last
// signature: mail can be on its way for days, and is verified then.
const keepRecord = 14 * 24 * time.Hour

// advise fills in Faults and Next.
func (r *Report) advise(now time.Time) {
	signs := false
	for i := range r.Keys {
		k := &r.Keys[i]
		signs = signs || k.Signs
		problem := k.State.Problem
		switch {
		case k.Name == "":
			continue
		case now.Before(k.From):
			if k.State.Standing != Published {
				r.Next = append(r.Next, fmt.Sprintf("publish the record of %s before %s: %s", k.Selector, Date{k.From}, orWord(problem, "it has not been seen")))
			} else {
				r.Next = append(r.Next, fmt.Sprintf("nothing: %s takes over at %s, and its record is good", k.Selector, Date{k.From}))
			}
			continue
		case !k.To.IsZero() && !now.Before(k.To):
			if k.State.Standing == Published && now.After(k.To.Add(keepRecord)) {
				r.Next = append(r.Next, fmt.Sprintf("the record of %s can be revoked (p= empty) or taken out: it has not signed since %s", k.Selector, Date{k.To}))
			}
			continue
		case k.State.Standing != Published:
			text := fmt.Sprintf("%s: %s", k.Selector, orWord(problem, "its record has not been seen"))
			if !k.Signs {
				text += "; it does not sign"
			}
			r.Faults = append(r.Faults, text)
		}
		if !k.To.IsZero() && !slices.ContainsFunc(r.Keys, func(o KeyReport) bool {
			return o.Algorithm == k.Algorithm && o.Selector != k.Selector && (o.To.IsZero() || o.To.After(k.To)) && !o.From.After(k.To)
		}) {
			r.Next = append(r.Next, fmt.Sprintf("make the key that follows %s, which ends at %s: postern dkim rotate %s", k.Selector, Date{k.To}, r.Domain))
		}
	}
	if !signs {
		r.Faults = append(r.Faults, "no key signs")
	}
}

func orWord(s, word string) string {
	if s == "" {
		return word
	}
	return s
}

// Question is what `postern dkim check` asks.
type Question struct {
	Domain string `json:"domain"` // "" for all
}

// checkTime bounds a check of all records.
const checkTime = 2 * time.Minute

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/dkim": adminapi.Answer(func(*http.Request) (any, error) {
			if !c.on() {
				return nil, nil
			}
			return c.domains("", time.Now()), nil
		}),
		"POST /v1/dkim/check": adminapi.Answer(func(r *http.Request) (any, error) {
			var q Question
			if err := adminapi.Decode(r, 4096, &q); err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(r.Context(), checkTime)
			defer cancel()
			return c.Asked(ctx, q.Domain)
		}),
	}
}

// Asked asks the DNS for the records of a domain's keys, of all for "", and
// returns what is to be known of them.
func (c *Check) Asked(ctx context.Context, domain string) ([]Report, error) {
	if domain != "" {
		domain = mailaddr.Domain(domain)
	}
	var keys []*key
	for _, k := range c.ring.keys {
		if k.domain == "" || domain != "" && k.domain != domain {
			continue
		}
		c.res.Forget(k.name(k.domain))
		keys = append(keys, k)
	}
	switch {
	case len(keys) == 0 && domain != "":
		return nil, fmt.Errorf("no key of %s is configured, or the daemon does not have it yet: postern reload", domain)
	case len(keys) == 0 && len(c.ring.keys) == 0:
		return nil, fmt.Errorf("no key is configured: [[dkim.domain]]")
	}
	c.ask(ctx, keys)
	return c.domains(domain, time.Now()), nil
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Domains returns what is known of all keys. Nobody is asked.
func (a Admin) Domains(ctx context.Context) (out []Report, err error) {
	err = a.Call(ctx, http.MethodGet, "/v1/dkim", nil, &out)
	return out, err
}

// Check has the daemon ask the DNS.
func (a Admin) Check(ctx context.Context, q Question) (out []Report, err error) {
	err = a.Call(ctx, http.MethodPost, "/v1/dkim/check", q, &out)
	return out, err
}
