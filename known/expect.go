package known

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
)

// Expected is mail that somebody waits for.
type Expected struct {
	To    string    `json:"to"`             // as given, or "@example.org" for all of a domain
	From  string    `json:"from,omitempty"` // an address, or a domain and all below it; "" is anybody
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

func (e Expected) String() string {
	s := "mail to " + e.To
	if e.From != "" {
		s += " from " + e.From
	}
	return s + ", until " + e.Until.UTC().Format(time.RFC3339)
}

// expectations are those of one recipient or domain.
type expectations []Expected

// maxExpected is how many expectations one recipient or domain has at most.
const maxExpected = 20

// parseExpected reads expectations; none for anything else.
func parseExpected(value string) (e expectations) {
	if value == "" || json.Unmarshal([]byte(value), &e) != nil {
		return nil
	}
	return e
}

func (e expectations) alive(now time.Time) expectations {
	return slices.DeleteFunc(slices.Clone(e), func(x Expected) bool { return !now.Before(x.Until) })
}

// find returns one that holds for a sender, in the compared form.
func (e expectations) find(sender string, now time.Time) (Expected, bool) {
	for _, x := range e {
		if now.Before(x.Until) && x.from(sender) {
			return x, true
		}
	}
	return Expected{}, false
}

func (e Expected) from(sender string) bool {
	if e.From == "" || strings.Contains(e.From, "@") {
		return e.From == "" || e.From == sender
	}
	domain := domainOf(sender)
	return domain == e.From || strings.HasSuffix(domain, "."+e.From)
}

// errOff answers calls for a check that is off.
var errOff = errors.New("known.mode is \"off\": nobody would look at it")

// Expect lets mail past the greylist for a time: to an address, or all of a
// domain ("@example.org"), from an address, a domain and all below it, or
// anybody (""). The same again only changes the time.
func (c *Check) Expect(ctx context.Context, to, from string, d time.Duration, now time.Time) (e Expected, err error) {
	if c.cfg.Mode == policy.Off {
		return e, errOff
	}
	if d < time.Minute || d > c.cfg.MaxExpect.D() {
		return e, fmt.Errorf("for %v: 1m to %v (known.max_expect)", conf.Duration(d), c.cfg.MaxExpect)
	}
	if e.To, err = c.recipient(to); err != nil {
		return e, err
	}
	if e.From, err = c.from(from); err != nil {
		return e, err
	}
	e.Since, e.Until = now.UTC().Truncate(time.Second), now.Add(d).UTC().Truncate(time.Second)
	var refused error
	err = change(ctx, c.stores.Expected, e.To, func(old string) (string, time.Time, bool) {
		all := slices.DeleteFunc(parseExpected(old).alive(now), func(x Expected) bool { return x.From == e.From })
		if refused = nil; len(all) >= maxExpected {
			refused = fmt.Errorf("there are %d expectations of %s already", len(all), e.To)
			return "", time.Time{}, true
		}
		return encode(append(all, e))
	})
	if err = errors.Join(adminapi.Unavailable(err), refused); err != nil {
		return Expected{}, err
	}
	if c.expected != nil {
		c.expected()
	}
	return e, nil
}

func encode(e expectations) (value string, expires time.Time, same bool) {
	if len(e) == 0 {
		return "", time.Time{}, false
	}
	for _, x := range e {
		if x.Until.After(expires) {
			expires = x.Until
		}
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings and times
	}
	return string(b), expires, false
}

// recipient reads the operator's form of a recipient.
func (c *Check) recipient(s string) (string, error) {
	a := mailaddr.Parse(strings.Trim(strings.TrimSpace(s), "<>"))
	switch {
	case a.Domain == "" || literal(a.Domain) || policy.Printable(s) != s || len(s) > maxAddress:
		return "", fmt.Errorf("to %q: an address, or @domain for all of one", s)
	case a.Local == "":
		return "@" + a.Domain, nil
	}
	return mailaddr.Correspondent(a, c.delimiters), nil
}

// from reads the operator's form of a sender.
func (c *Check) from(s string) (string, error) {
	s = strings.Trim(strings.TrimSpace(s), "<>")
	if s == "" {
		return "", nil
	}
	local, domain, at := strings.Cut(s, "@")
	if !at {
		domain = s
	}
	if policy.Printable(s) != s || len(s) > maxAddress || !strings.Contains(strings.Trim(domain, "."), ".") || strings.ContainsAny(domain, " <>[]*") {
		return "", fmt.Errorf("from %q: an address, or a domain", s)
	}
	if !at || local == "" {
		return mailaddr.Domain(strings.TrimPrefix(domain, ".")), nil
	}
	return mailaddr.Correspondent(mailaddr.Parse(s), c.delimiters), nil
}

// Cancel ends expectations of a recipient: all, or those from one sender. It
// returns how many.
func (c *Check) Cancel(ctx context.Context, to, from string, now time.Time) (n int, err error) {
	if to, err = c.recipient(to); err != nil {
		return 0, err
	}
	if from, err = c.from(from); err != nil {
		return 0, err
	}
	err = change(ctx, c.stores.Expected, to, func(old string) (string, time.Time, bool) {
		all := parseExpected(old).alive(now)
		left := slices.DeleteFunc(slices.Clone(all), func(x Expected) bool { return from == "" || x.From == from })
		if n = len(all) - len(left); n == 0 {
			return "", time.Time{}, true
		}
		return encode(left)
	})
	return n, adminapi.Unavailable(err)
}

// Expectations returns what is expected now, soonest end first.
func (c *Check) Expectations(ctx context.Context, now time.Time) ([]Expected, error) {
	out := []Expected{}
	seen := map[string]bool{}
	err := c.stores.Expected.Each(ctx, func(key, value string) bool {
		if !seen[key] {
			out = append(out, parseExpected(value).alive(now)...)
		}
		seen[key] = true
		return true
	})
	slices.SortFunc(out, func(a, b Expected) int { return a.Until.Compare(b.Until) })
	return out, adminapi.Unavailable(err)
}
