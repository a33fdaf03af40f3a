package table

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"postern/internal/mailaddr"
	"postern/policy"
)

// fold is how Postfix compares the keys of fixed-key tables.
func fold(key string) string { return strings.ToLower(key) }

func (p *parser) texthash(lines []logicalLine) {
	t := p.t
	t.keys = make(map[string]int, len(lines))
	for _, p.l = range lines {
		key, value, ok := cutKey(p.l.text)
		if !ok {
			p.faultf(0, "a quote without end in the key")
			continue
		}
		if !utf8.ValidString(p.l.text) {
			p.faultf(0, "not UTF-8 text")
			continue
		}
		if value == "" {
			p.faultf(len(p.l.text), "no result after %q", clip(key))
			continue
		}
		if strings.HasSuffix(key, ":") && !strings.Contains(key, "::") && !strings.HasPrefix(key, "[") {
			if _, err := netip.ParseAddr(key + "1"); err != nil && strings.Count(key, ":") == 1 {
				p.faultf(len(key)-1, "%q looks like an alias file: here a key ends at the white space", clip(key))
				continue
			}
		}
		f := fold(key)
		if first, twice := t.keys[f]; twice {
			p.faultf(0, "%q is already in line %d", clip(key), t.rules[first].Line)
			continue
		}
		t.keys[f] = len(t.rules)
		t.rules = append(t.rules, Rule{Line: p.l.line, Pattern: key, Result: value, Index: len(t.rules), literal: value})
	}
}

// cutKey parts a line at the first white space that is not inside quotes, as
// in "al b"@example.org, nor behind a backslash; as postmap(1) does. It is not
// ok when the quotes do not end.
func cutKey(s string) (key, rest string, ok bool) {
	quoted := false
	i := 0
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case isSpace(c) && !quoted:
			return s[:i], strings.TrimLeft(s[i:], " \t\v\f\r"), true
		}
	}
	return s, "", !quoted
}

// Client asks as check_client_access does (access(5)): the verified name or
// "unknown", then the address; a texthash is also asked for the parents of
// both.
func (t *Table) Client(name string, addr netip.Addr) (string, *Rule) {
	if name == "" {
		name = "unknown"
	}
	if t.kind == CIDR {
		if !addr.IsValid() {
			return "", nil
		}
		return t.lookupAddr(addr)
	}
	if res, r := t.host(name); r != nil {
		return res, r
	}
	if !addr.IsValid() {
		return "", nil
	}
	text := addr.String()
	if res, r := t.Lookup(text); r != nil || t.kind != Texthash {
		return res, r
	}
	sep := byte('.')
	if addr.Is6() {
		sep = ':'
	}
	for {
		i := strings.LastIndexByte(text, sep)
		if i <= 0 {
			return "", nil
		}
		text = text[:i]
		if res, r := t.Lookup(text); r != nil {
			return res, r
		}
	}
}

// Helo asks as check_helo_access does: the name, and for a texthash its
// parents, unless it is numeric.
func (t *Table) Helo(name string) (string, *Rule) {
	if name == "" {
		return "", nil
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return t.Lookup(name)
	}
	return t.host(name)
}

// host asks for a name and its parents, the top-level domain too. The parents
// have no leading dot: Postfix's default, smtpd_access_maps in
// parent_domain_matches_subdomains.
func (t *Table) host(name string) (string, *Rule) {
	if res, r := t.Lookup(name); r != nil || t.kind != Texthash {
		return res, r
	}
	for {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return "", nil
		}
		if name = parent; name != "" {
			if res, r := t.Lookup(name); r != nil {
				return res, r
			}
		}
	}
}

// Address asks as check_sender_access and check_recipient_access do: pattern
// tables for the whole address, a texthash for user+ext@domain, user@domain,
// the domain and its parents, user+ext@ and user@. The null sender is asked
// as "<>". Delimiters are those of recipient_delimiter.
func (t *Table) Address(a policy.Address, delimiters string) (string, *Rule) {
	if a.Raw == "" {
		return t.Lookup("<>")
	}
	if t.kind != Texthash {
		return t.Lookup(a.Raw)
	}
	user, _, extended := mailaddr.SplitExtension(a.Local, delimiters)
	if a.Domain == "" {
		if res, r := t.Lookup(a.Local); r != nil {
			return res, r
		}
	} else {
		if res, r := t.Lookup(a.Local + "@" + a.Domain); r != nil {
			return res, r
		}
		if extended {
			if res, r := t.Lookup(user + "@" + a.Domain); r != nil {
				return res, r
			}
		}
		if res, r := t.host(a.Domain); r != nil {
			return res, r
		}
	}
	if res, r := t.Lookup(a.Local + "@"); r != nil || !extended {
		return res, r
	}
	return t.Lookup(user + "@")
}
