package lookup

import (
	"context"
	"maps"
	"slices"
	"strings"

	"postern/internal/conf"
	"postern/internal/mailaddr"
)

// domains maps all addresses of domains to those of others.
type domains struct {
	to       map[string]string // in the compared form; values as written
	bare     bool              // answer the domain alone
	existsIn string
	exists   Map // nil: every address exists
}

func newDomains(key string, cfg *TableConfig, faults *conf.Faults) *domains {
	m := &domains{to: make(map[string]string, len(cfg.MapDomains)), bare: cfg.AnswerDomains, existsIn: cfg.ExistsIn}
	for _, other := range []struct {
		key   string
		given bool
	}{
		{"search", cfg.Search != ""},
		{"parents", cfg.Parents != ""},
		{"delimiters", cfg.Delimiters != ""},
		{"local_domains", len(cfg.LocalDomains) > 0},
	} {
		if other.given {
			faults.Keyf(key+"."+other.key, "it has no effect with map_domains")
		}
	}
	for _, from := range slices.Sorted(maps.Keys(cfg.MapDomains)) {
		at := key + ".map_domains." + from
		name, err := domainName(from)
		if err != nil {
			faults.Keyf(at, "%v", err)
			continue
		}
		to, err := domainName(cfg.MapDomains[from])
		if err != nil {
			faults.Keyf(at, "%v", err)
			continue
		}
		if _, twice := m.to[name]; twice {
			faults.Keyf(at, "%s is mapped twice", name)
			continue
		}
		m.to[name] = to
	}
	// Postfix looks the result of a virtual alias up again: a circle has no end.
	for _, from := range slices.Sorted(maps.Keys(m.to)) {
		at := from
		for range m.to {
			next, ok := m.to[at]
			if !ok {
				break
			}
			if at = next; at == from {
				faults.Keyf(key+".map_domains."+from, "%s leads back to itself", from)
				break
			}
		}
	}
	return m
}

// Lookup implements [Map].
func (m *domains) Lookup(ctx context.Context, key string) (value string, found bool, err error) {
	local, domain, isAddress := splitAddress(key)
	if !isAddress {
		to, ok := m.to[mailaddr.Domain(key)]
		if !m.bare || !ok {
			return "", false, nil
		}
		return to, true, nil
	}
	to, ok := m.to[mailaddr.Domain(domain)]
	if !ok || !proper(local) {
		return "", false, nil
	}
	value = local + "@" + to
	if m.exists != nil {
		if _, found, err = m.exists.Lookup(ctx, value); err != nil || !found {
			return "", false, err
		}
	}
	return value, true, nil
}

// proper reports whether a local part can stand in a result, where Postfix
// reads a list of addresses. It asks for a strange one quoted first, then bare.
func proper(local string) bool {
	if n := len(local); n > 2 && local[0] == '"' && local[n-1] == '"' {
		return true
	}
	return local != "" && !strings.ContainsFunc(local, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`,;:<>()[]\"@`, r) })
}

// Explain implements [Explainer].
func (m *domains) Explain(ctx context.Context, key string) (Answer, error) {
	value, found, err := m.Lookup(ctx, key)
	a := Answer{Key: key, Found: found, Value: value}
	if _, domain, ok := splitAddress(key); found {
		if !ok {
			domain = key
		}
		a.Pattern = "map_domains." + mailaddr.Domain(domain)
	}
	return a, err
}
