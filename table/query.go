package table

import (
	"errors"
	"sync"
	"time"
)

// Query is the state of a series of look-ups that belong together, such as
// all those of one message: what patterns that need backtracking may still
// take, and memory that is used again. It belongs to one goroutine.
type Query struct {
	limited  bool
	left     time.Duration
	failures int
	subject  subject
	words    []uint64 // a stack of candidate sets
}

// NewQuery returns a Query whose patterns may backtrack for limit altogether;
// 0 sets no limit beyond that of each pattern. A pattern that has begun is
// given up after its own limit, so that the whole takes at most limit and
// that of one pattern.
func NewQuery(limit time.Duration) *Query {
	return &Query{limited: limit > 0, left: limit}
}

// Failures returns how many patterns were given up or, after the limit, not
// tried. They count as not matching.
func (q *Query) Failures() int { return q.failures }

// Spent reports whether the limit is used up.
func (q *Query) Spent() bool { return q.limited && q.left <= 0 }

// queries are used by Lookup, which has none of its own.
var queries = sync.Pool{New: func() any { return new(Query) }}

var errSpent = errors.New("the time for backtracking is used up")

// match is expr.match with the time taken counted.
func (q *Query) match(re *expr) (bool, error) {
	if re.back == nil || !q.limited {
		return re.match(&q.subject)
	}
	if q.left <= 0 {
		return false, errSpent
	}
	start := time.Now()
	ok, err := re.match(&q.subject)
	q.left -= time.Since(start)
	return ok, err
}

func (q *Query) find(re *expr) ([]string, error) {
	if re.back == nil || !q.limited {
		return re.find(&q.subject)
	}
	if q.left <= 0 {
		return nil, errSpent
	}
	start := time.Now()
	m, err := re.find(&q.subject)
	q.left -= time.Since(start)
	return m, err
}

// Find is [Table.Lookup] as part of q.
func (t *Table) Find(q *Query, key string) (result string, rule *Rule) {
	t.Each(q, key, func(s string, r *Rule) bool {
		result, rule = s, r
		return false
	})
	return result, rule
}

// Each calls f with every rule of a regexp or pcre table that matches key, in
// order, until f returns false. The first is what Lookup finds.
func (t *Table) Each(q *Query, key string, f func(result string, r *Rule) (more bool)) {
	if t.top == nil {
		return
	}
	for len(key) > 0 && key[len(key)-1] == '\n' {
		key = key[:len(key)-1]
	}
	q.subject = subject{text: key}
	before := q.failures
	t.top.each(t, q, f)
	if n := q.failures - before; n > 0 {
		t.failures.Add(uint64(n))
	}
	q.subject = subject{}
}

// holds is false when the engine gave up, negated or not, as in Postfix.
func (q *Query) holds(re *expr, not bool) bool {
	ok, err := q.match(re)
	if err != nil {
		q.failures++
		return false
	}
	return ok != not
}

// block is a sequence of rules and conditions: the whole table, or what stands
// between if and endif.
type block struct {
	items []item
	index *index // nil: every item is tried
}

// item is a rule, or a condition and what it guards.
type item struct {
	in     *instr
	guards *block
	// prefixes are texts of which one begins every key that in can be true
	// of; nil: not known.
	prefixes []string
}

// each returns false when f wanted no more.
func (b *block) each(t *Table, q *Query, f func(string, *Rule) bool) bool {
	if b.index == nil {
		for i := range b.items {
			if !b.items[i].each(t, q, f) {
				return false
			}
		}
		return true
	}
	// Words of q may move when a nested block takes more of them.
	base := len(q.words)
	q.words = b.index.candidates(q.words, q.subject.text)
	more := true
	for w := 0; more && w < b.index.width; w++ {
		for set := q.words[base+w]; more && set != 0; set &= set - 1 {
			it := &b.items[w*64+trailingZeros(set)]
			if it.prefixes == nil || hasFoldedPrefix(q.subject.text, it.prefixes) {
				more = it.each(t, q, f)
			}
		}
	}
	q.words = q.words[:base]
	return more
}

func (it *item) each(t *Table, q *Query, f func(string, *Rule) bool) bool {
	in := it.in
	if in.op == opIf {
		return !q.holds(in.re, in.not) || it.guards.each(t, q, f)
	}
	r := &t.rules[in.rule]
	if !r.Substitutes {
		if q.holds(in.re, in.not) && (in.re2 == nil || q.holds(in.re2, in.not2)) {
			return f(r.literal, r)
		}
		return true
	}
	m, err := q.find(in.re)
	if err != nil {
		q.failures++
		return true
	}
	if m != nil && (in.re2 == nil || q.holds(in.re2, in.not2)) {
		return f(r.expand(m), r)
	}
	return true
}

// newBlock arranges prog[from:to]. An if without endif reaches to the end.
func newBlock(prog []instr, from, to int) *block {
	b := &block{}
	for i := from; i < to; i++ {
		in := &prog[i]
		switch in.op {
		case opMatch:
			b.items = append(b.items, item{in: in})
		case opIf:
			end := min(in.end, to)
			b.items = append(b.items, item{in: in, guards: newBlock(prog, i+1, end)})
			i = end
		case opEndif, opRun:
		}
	}
	b.link()
	return b
}
