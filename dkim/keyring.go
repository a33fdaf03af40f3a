package dkim

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
)

// keyring holds all keys, and says which of them sign for an author. It does not
// change, but for what is known of the keys' records.
type keyring struct {
	keys     []*key // in the order of the configuration
	domains  map[string]*domain
	signing  *signingTable // nil without one
	multiple bool
	warnings conf.Faults
}

// domain is a [[dkim.domain]].
type domain struct {
	name       string
	subdomains bool
	keys       []*key // the latest first
}

// use is a key that signs a message, and for whom.
type use struct {
	*key
	domain   string // d=
	identity string // i=, "" to leave it out
}

// newKeyring reads the keys and tables of a configuration.
func newKeyring(c *Config, prefix string, fs *conf.Faults) *keyring {
	r := &keyring{domains: map[string]*domain{}, multiple: c.MultipleSignatures}
	for i := range c.Domains {
		r.addDomain(c, &c.Domains[i], prefix+".domain["+strconv.Itoa(i)+"]", fs)
	}
	switch {
	case c.SigningTable == "" && c.KeyTable != "":
		fs.Keyf(prefix+".keytable", "no signing table says which mail is signed with these keys: set signingtable")
	case c.SigningTable != "" && c.KeyTable == "":
		fs.Keyf(prefix+".signingtable", "no key table says where the keys are: set keytable")
	case c.SigningTable != "":
		r.readTables(c, prefix, fs)
	}
	return r
}

func (r *keyring) addDomain(c *Config, d *DomainConfig, at string, fs *conf.Faults) {
	name := mailaddr.Domain(d.Domain)
	switch {
	case !mailaddr.IsDomain(name):
		fs.Keyf(at+".domain", "%q is no domain", d.Domain)
		return
	case r.domains[name] != nil:
		fs.Keyf(at+".domain", "%s stands there twice: put all keys under one", name)
		return
	case len(d.Keys) == 0:
		fs.Keyf(at, "%s has no key: [[dkim.domain.key]]", name)
		return
	}
	dom := &domain{name: name, subdomains: c.Subdomains}
	if d.Subdomains != nil {
		dom.subdomains = *d.Subdomains
	}
	r.domains[name] = dom
	for i := range d.Keys {
		k := &d.Keys[i]
		here := at + ".key[" + strconv.Itoa(i) + "]"
		selector := strings.ToLower(k.Selector)
		switch {
		case !properSelector(selector):
			fs.Keyf(here+".selector", "%q is no selector: letters, digits and hyphens, as \"s2026a\"", k.Selector)
			continue
		case slices.ContainsFunc(dom.keys, func(o *key) bool { return o.selector == selector }):
			fs.Keyf(here+".selector", "%s stands there twice: a selector has one key", selector)
			continue
		case k.File == "":
			fs.Keyf(here+".file", "no file is given: `postern dkim new %s` makes one", name)
			continue
		case !k.To.IsZero() && !k.To.After(k.From.Time):
			fs.Keyf(here+".to", "%v is not after from (%v)", k.To, k.From)
			continue
		}
		made := &key{domain: name, selector: selector, key: here, file: k.File, from: k.From.Time, to: k.To.Time}
		var err error
		if made.signer, err = readKey(k.File); err == nil {
			err = made.describe()
		}
		if err != nil {
			fs.Keyf(here+".file", "%v", err)
			continue
		}
		dom.keys = append(dom.keys, made)
		r.keys = append(r.keys, made)
	}
	slices.SortStableFunc(dom.keys, func(a, b *key) int { return cmp.Compare(b.from.Unix(), a.from.Unix()) })
}

// kinds are the algorithms, in the order of the signatures.
var kinds = [...]string{"rsa", "ed25519"}

// domainOf returns the domain that signs for the given one, the longest.
func (r *keyring) domainOf(of string) *domain {
	for name := of; name != ""; _, name, _ = strings.Cut(name, ".") {
		if d := r.domains[name]; d != nil && (name == of || d.subdomains) {
			return d
		}
	}
	return nil
}

// uses returns the keys that sign for an author, and whether anything is
// configured for one.
func (r *keyring) uses(author policy.Address, now time.Time) (out []use, known bool) {
	if d := r.domainOf(author.Domain); d != nil {
		for _, kind := range kinds {
			if k := d.pick(kind, now); k != nil {
				out = append(out, use{key: k, domain: d.name})
			}
		}
		return out, true
	}
	if r.signing == nil {
		return nil, false
	}
	entries := r.signing.match(author, r.multiple)
	for _, e := range entries {
		u, ok := r.signing.use(e, author)
		if ok && u.state.Load().usable() && !slices.ContainsFunc(out, func(o use) bool { return o.domain == u.domain && o.selector == u.selector }) {
			out = append(out, u)
		}
	}
	return out, len(entries) > 0
}

// pick returns the key of a kind that signs at a time: the latest that is known
// to be good, else the latest of which nothing is known.
func (d *domain) pick(kind string, now time.Time) (best *key) {
	for _, k := range d.keys {
		if k.algorithm != kind || !k.on(now) {
			continue
		}
		s := k.state.Load()
		if s.good() {
			return k
		}
		if best == nil && s.usable() {
			best = k
		}
	}
	return best
}

// adopt takes over what was known of the records before a reload.
func (r *keyring) adopt(prev *keyring) {
	old := make(map[string]*State, len(prev.keys))
	id := func(k *key) string { return fmt.Sprint(k.name(k.domain), " ", k.record) }
	for _, k := range prev.keys {
		old[id(k)] = k.state.Load()
	}
	for _, k := range r.keys {
		if s := old[id(k)]; s != nil {
			k.state.Store(s)
		}
	}
}
