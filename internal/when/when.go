// Package when reads conditions on what was found out about a message, such as
//
//	dmarc=fail and not (arc=pass or header.d=.lists.example)
//
// The names are those of Authentication-Results (RFC 8601).
package when

import (
	"fmt"
	"slices"
	"strings"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Condition is a condition that was read. It does not change.
type Condition struct {
	text string
	root node
}

// String returns it as it was written.
func (c *Condition) String() string { return c.text }

// Holds reports whether the condition holds for a request. What nobody has
// looked for is not known, and a condition that hangs on it does not hold: "not
// dkim=pass" says nothing of mail that was not looked at.
func (c *Condition) Holds(req *policy.Request) bool { return c.root.eval(req) == yes }

// NeedsAuth reports whether it asks for what the message authentication finds.
func (c *Condition) NeedsAuth() bool {
	return c.root.any(func(t *term) bool { return t.of.auth })
}

// truth has three values.
type truth uint8

const (
	unknown truth = iota
	no
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

type node interface {
	eval(req *policy.Request) truth
	any(f func(*term) bool) bool
}

type not struct{ n node }

func (n not) eval(req *policy.Request) truth {
	switch n.n.eval(req) {
	case yes:
		return no
	case no:
		return yes
	default:
		return unknown
	}
}

func (n not) any(f func(*term) bool) bool { return n.n.any(f) }

// list joins conditions: decisive is the value of one that settles it.
type list struct {
	nodes    []node
	decisive truth // no for "and", yes for "or"
}

func (l list) eval(req *policy.Request) truth {
	out := truthOf(l.decisive == no)
	for _, n := range l.nodes {
		switch t := n.eval(req); t {
		case l.decisive:
			return t
		case unknown:
			out = unknown
		default:
		}
	}
	return out
}

func (l list) any(f func(*term) bool) bool {
	return slices.ContainsFunc(l.nodes, func(n node) bool { return n.any(f) })
}

// term compares one name with values.
type term struct {
	of     *name
	values []string
}

func (t *term) any(f func(*term) bool) bool { return f(t) }

func (t *term) eval(req *policy.Request) truth {
	have, known := t.of.get(req)
	if !known {
		return unknown
	}
	return truthOf(slices.ContainsFunc(have, func(h string) bool {
		return slices.ContainsFunc(t.values, func(v string) bool {
			if above, wide := strings.CutPrefix(v, "."); t.of.domain && wide {
				return h == above || strings.HasSuffix(h, v)
			}
			return h == v
		})
	}))
}

// name is something that can be asked for.
type name struct {
	name   string
	values []string // that it can have, nil for any
	domain bool     // they are domains
	auth   bool     // found by the message authentication
	get    func(req *policy.Request) (have []string, known bool)
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func looked(req *policy.Request) bool { return req.Facts.Auth.ARC != "" }

var names = []*name{
	{name: "spf", values: []string{"pass", "fail", "softfail", "neutral", "none", "temperror", "permerror", policy.SPFTooWide}, get: func(r *policy.Request) ([]string, bool) {
		return one(r.Facts.SPF.Result), r.Facts.SPF.Result != ""
	}},
	{name: "dkim", auth: true, values: []string{"pass", "fail", "policy", "none", "temperror", "permerror"}, get: func(r *policy.Request) ([]string, bool) {
		return one(r.Facts.Auth.DKIM), looked(r)
	}},
	{name: "dmarc", auth: true, values: []string{"pass", "fail", "none", "temperror", "permerror"}, get: func(r *policy.Request) ([]string, bool) {
		return one(r.Facts.Auth.DMARC), looked(r)
	}},
	{name: "arc", auth: true, values: []string{"pass", "fail", "none", "temperror"}, get: func(r *policy.Request) ([]string, bool) {
		return one(r.Facts.Auth.ARC), looked(r)
	}},
	{name: "dmarc.policy", auth: true, values: []string{"none", "quarantine", "reject"}, get: func(r *policy.Request) ([]string, bool) {
		return one(r.Facts.Auth.Policy), looked(r)
	}},
	{name: "dmarc.override", auth: true, values: []string{"arc"}, get: func(r *policy.Request) ([]string, bool) {
		return one(r.Facts.Auth.Override), looked(r)
	}},
	{name: "header.d", auth: true, domain: true, get: func(r *policy.Request) ([]string, bool) { return r.Facts.Auth.Signers, looked(r) }},
	{name: "header.from", auth: true, domain: true, get: func(r *policy.Request) ([]string, bool) { return r.Facts.Auth.Authors, looked(r) }},
	{name: "smtp.mailfrom", domain: true, get: func(r *policy.Request) ([]string, bool) { return one(r.Sender.Domain), true }},
	{name: "iprev", values: []string{"pass", "fail", "permerror"}, get: func(r *policy.Request) ([]string, bool) {
		switch {
		case r.Client.Name != "":
			return one("pass"), true
		case r.Client.ReverseName != "":
			return one("fail"), true
		}
		return one("permerror"), true
	}},
	{name: "auth", values: []string{"pass", "none"}, get: func(r *policy.Request) ([]string, bool) {
		if r.SASL.Username != "" {
			return one("pass"), true
		}
		return one("none"), true
	}},
	{name: "mark", get: func(r *policy.Request) ([]string, bool) { return r.Facts.Marks, true }},
	{name: "provider", get: func(r *policy.Request) ([]string, bool) { return one(r.Facts.Provider), true }},
}

// Parse reads a condition. An error names the character at which it went wrong,
// counted from 1.
func Parse(text string) (*Condition, error) {
	p := parser{text: text}
	p.next()
	n, err := p.or(0)
	if err == nil && p.word != "" {
		err = p.fault("%q is one word too many", p.word)
	}
	if err != nil {
		return nil, err
	}
	return &Condition{text, n}, nil
}

// maxDepth bounds parentheses and "not".
const maxDepth = 50

type parser struct {
	text string
	at   int // behind the word
	from int // where the word begins
	word string
}

func (p *parser) fault(format string, args ...any) error {
	return fmt.Errorf("character %d: %s", p.from+1, fmt.Sprintf(format, args...))
}

// next reads the next word: one of ( ) = != | or a text.
func (p *parser) next() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
	p.from = p.at
	rest := p.text[p.at:]
	n := strings.IndexAny(rest, " \t\r\n()=|!")
	switch {
	case strings.HasPrefix(rest, "!="):
		n = 2
	case n < 0:
		n = len(rest)
	case n == 0 && rest != "":
		n = 1
	}
	p.word, p.at = rest[:n], p.at+n
}

func (p *parser) is(word string) bool { return strings.EqualFold(p.word, word) }

func (p *parser) or(depth int) (node, error)  { return p.list(depth, "or", yes, p.and) }
func (p *parser) and(depth int) (node, error) { return p.list(depth, "and", no, p.not) }

func (p *parser) list(depth int, word string, decisive truth, read func(int) (node, error)) (node, error) {
	first, err := read(depth)
	if err != nil || !p.is(word) {
		return first, err
	}
	l := list{[]node{first}, decisive}
	for p.is(word) {
		p.next()
		n, err := read(depth)
		if err != nil {
			return nil, err
		}
		l.nodes = append(l.nodes, n)
	}
	return l, nil
}

func (p *parser) not(depth int) (node, error) {
	if depth > maxDepth {
		return nil, p.fault("too many parentheses")
	}
	switch {
	case p.is("not"):
		p.next()
		n, err := p.not(depth + 1)
		return not{n}, err
	case p.word == "(":
		p.next()
		n, err := p.or(depth + 1)
		if err == nil && p.word != ")" {
			err = p.fault("a parenthesis is not closed")
		}
		p.next()
		return n, err
	}
	return p.term()
}

func (p *parser) term() (node, error) {
	if p.word == "" {
		return nil, p.fault("a comparison is missing, such as dmarc=fail")
	}
	i := slices.IndexFunc(names, func(n *name) bool { return p.is(n.name) })
	if i < 0 {
		var all []string
		for _, n := range names {
			all = append(all, n.name)
		}
		return nil, p.fault("unknown name %q (one of %s)", p.word, strings.Join(all, ", "))
	}
	t := &term{of: names[i]}
	p.next()
	negated := p.word == "!="
	if !negated && p.word != "=" {
		return nil, p.fault("%s must be followed by = or !=", t.of.name)
	}
	for more := true; more; more = p.word == "|" {
		p.next()
		v, err := p.value(t.of)
		if err != nil {
			return nil, err
		}
		t.values = append(t.values, v)
		p.next()
	}
	if negated {
		return not{t}, nil
	}
	return t, nil
}

func (p *parser) value(of *name) (string, error) {
	v := strings.ToLower(p.word)
	switch {
	case v == "" || strings.ContainsAny(v, "()=|!"):
		return "", p.fault("%s= needs a value", of.name)
	case of.values != nil && !slices.Contains(of.values, v):
		return "", p.fault("%s is never %q (one of %s)", of.name, p.word, strings.Join(of.values, ", "))
	case of.domain:
		above, wide := strings.CutPrefix(p.word, ".")
		if v = mailaddr.Domain(above); wide {
			v = "." + v
		}
	case of.values == nil:
		v = p.word
	}
	return v, nil
}

// ParseAuth reads results as they are to be imagined, "dmarc=fail arc=none",
// each name once but for header.d and header.from. What is not named is "none".
// "" stands for mail that was not looked at.
func ParseAuth(text string) (out policy.Auth, err error) {
	if strings.TrimSpace(text) == "" {
		return out, nil
	}
	out = policy.Auth{DKIM: "none", DMARC: "none", ARC: "none"}
	p := parser{text: text}
	for p.next(); p.word != ""; p.next() {
		n, err := p.term()
		if err != nil {
			return policy.Auth{}, err
		}
		t, ok := n.(*term)
		if !ok || len(t.values) != 1 || !t.of.auth {
			return policy.Auth{}, p.fault("only NAME=VALUE of dkim, dmarc, arc, dmarc.policy, dmarc.override, header.d, header.from")
		}
		p.at = p.from // term has read one word further
		switch v := t.values[0]; t.of.name {
		case "dkim":
			out.DKIM = v
		case "dmarc":
			out.DMARC = v
		case "arc":
			out.ARC = v
		case "dmarc.policy":
			out.Policy = v
		case "dmarc.override":
			out.Override = v
		case "header.d":
			out.Signers = append(out.Signers, v)
		case "header.from":
			out.Authors = append(out.Authors, v)
		}
	}
	return out, nil
}
