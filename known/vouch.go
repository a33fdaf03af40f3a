package known

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Vouch says why the sender of a request need not wait, "" when nobody knows:
// "correspondent", "correspondent-domain" or "expected", and a detail for the
// log. It changes nothing. Expectations hold in any mode but "off",
// correspondents only in "enforce".
//
// Who is shown by SPF not to be the sender (fail, softfail) is no
// correspondent. A domain speaks for all of its senders only where SPF passed,
// or the client's verified name is in it: else anybody could say it is from
// there.
func (c *Check) Vouch(ctx context.Context, req *policy.Request) (why, detail string, err error) {
	if c.cfg.Mode == policy.Off {
		return "", "", nil
	}
	user := mailaddr.Correspondent(req.Recipient, c.delimiters)
	if domainOf(user) == "" {
		return "", "", nil
	}
	asks := [4]ask{{c.stores.Expected, user}, {c.stores.Expected, "@" + domainOf(user)}}
	n := 2
	sender := mailaddr.Correspondent(req.Sender, c.delimiters)
	pair, domain := -1, -1
	if c.cfg.Mode == policy.Enforce && domainOf(sender) != "" && req.Facts.SPF.Result != "fail" && req.Facts.SPF.Result != "softfail" {
		pair, asks[n] = n, ask{c.stores.Correspondents, pairKey(user, sender)}
		n++
		if key := c.domainKey(user, sender); key != "" && shown(req) {
			domain, asks[n] = n, ask{c.stores.Domains, key}
			n++
		}
	}
	values, err := c.load(ctx, asks[:n])
	for _, value := range values[:2] {
		if e, ok := parseExpected(value).find(sender, req.Time); ok {
			return "expected", e.String(), nil
		}
	}
	keep := c.cfg.Keep.D()
	if pair >= 0 {
		if s := parseSpan(values[pair]); alive(s.last, req.Time, keep) {
			return "correspondent", "last written to on " + time.Unix(s.last, 0).UTC().Format(time.DateOnly), nil
		}
	}
	if domain >= 0 && len(parseWriters(values[domain]).alive(req.Time, keep)) >= c.cfg.DomainUsers {
		_, name := splitPair(asks[domain].key)
		return "correspondent-domain", name, nil
	}
	return "", "", err
}

// shown reports whether the client is shown to be of the sender's domain.
func shown(req *policy.Request) bool {
	if f := &req.Facts.SPF; f.Result == "pass" && f.Identity != "helo" {
		return true
	}
	org := mailaddr.OrgDomain(req.Sender.Domain)
	return org != "" && req.Client.Name != "" && mailaddr.OrgDomain(req.Client.Name) == org
}

// domainOf returns what stands behind the last @, "" without one.
func domainOf(address string) string {
	i := strings.LastIndexByte(address, '@')
	if i < 0 {
		return ""
	}
	return address[i+1:]
}

type ask struct {
	of  Store
	key string
}

// load returns the values of all, "" for what cannot be told. A store that
// takes a round trip is asked for all at the same time.
func (c *Check) load(ctx context.Context, asks []ask) ([]string, error) {
	values, errs := make([]string, len(asks)), make([]error, len(asks))
	if !c.stores.Remote {
		for i, a := range asks {
			values[i], errs[i] = a.of.Load(ctx, a.key)
		}
		return values, errors.Join(errs...)
	}
	var all sync.WaitGroup
	for i, a := range asks {
		all.Go(func() { values[i], errs[i] = a.of.Load(ctx, a.key) })
	}
	all.Wait()
	return values, errors.Join(errs...)
}
