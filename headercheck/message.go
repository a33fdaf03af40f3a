package headercheck

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"postern/policy"
	"postern/table"
)

// errTime is what End returns when the rules took too long.
var errTime = errors.New("headers: the rules took longer than max_time for this message")

// inspection looks at one message. It implements [policy.Inspection].
type inspection struct {
	c   *Check
	rs  *ruleset
	req *policy.Request
	to  []policy.Address

	sets   [kindCount][]*set
	query  *table.Query
	split  splitter
	spent  time.Duration
	fields int
	// done is set when no more rules are to be asked: REJECT, DISCARD, PASS,
	// REDIRECT, or the time is up.
	done    bool
	timeout bool
	gaveUp  int // failures of query that have been counted

	// What the rules asked for.
	verdict  policy.Verdict // refused or thrown away, else held
	edits    []policy.Edit
	redirect string
	bcc      []string
	filter   string

	subject     int // which field it is, the first one; -1: there is none
	subjectText string

	// The line being looked up, for visit.
	cur struct {
		set     *set
		kind    Kind
		text    string
		decided bool
		effect  effect
	}
	visitor func(string, *table.Rule) bool

	// found are patterns of headers.rules that have found a header.
	found []uint64
	which int // the finder that is asked
	mark  func(string, *table.Rule) bool

	// The body as it will leave, kept while a rule may change it.
	keep    bool
	changed bool
	body    []byte
	held    *holding // what of it is counted in Check.held
	tooLong bool

	observe func(Match) // of a test
	inBody  bool
}

// effect is what becomes of a line.
type effect struct {
	drop    bool
	prepend string
	replace string
}

func (c *Check) inspect(rs *ruleset, req *policy.Request, to []policy.Address) *inspection {
	m := &inspection{c: c, rs: rs, req: req, to: to, subject: -1, sets: rs.sets, query: table.NewQuery(c.cfg.PatternTime.D())}
	if rs.scoped {
		for k, sets := range m.sets {
			m.sets[k] = slices.DeleteFunc(slices.Clone(sets), func(s *set) bool { return !s.covers(to) })
		}
	}
	m.split.splitLimits = splitLimits{
		header: c.cfg.HeaderLimit, line: c.cfg.LineLimit, nesting: c.cfg.MIMENesting, boundary: c.cfg.BoundaryLimit, noMIME: c.cfg.DisableMIME,
	}
	m.split.head, m.split.body = m.bodyHeader, m.bodyLine
	m.visitor, m.mark = m.visit, m.markPattern
	if rs.patterns > 0 {
		m.found = make([]uint64, (rs.patterns+63)/64)
	}
	return m
}

// timed adds the time since start to what the rules have taken.
func (m *inspection) timed(start time.Time) {
	m.spent += time.Since(start)
	if n := m.query.Failures(); n > m.gaveUp {
		m.gaveUpPatterns(n)
	}
	if m.spent > m.c.cfg.MaxTime.D() && !m.done {
		m.done, m.timeout = true, true
		m.c.metrics.timeouts.Inc()
		m.c.log.Error("the header rules took too long for one message", zap.String("queue_id", m.req.QueueID), zap.Duration("took", m.spent))
	}
}

// Header implements [policy.Inspection].
func (m *inspection) Header(f policy.Field) {
	at := m.fields
	m.fields++
	start := time.Now()
	defer m.timed(start)
	m.split.field(f.Name, f.Value)
	marker := m.c.cfg.FilterMarker
	forged := marker != "" && m.c.cfg.Mode != policy.Shadow && strings.EqualFold(f.Name, marker)
	if forged {
		m.edits = append(m.edits, policy.Edit{Kind: policy.DeleteField, At: at})
	}
	if m.done {
		return
	}
	if m.subject < 0 && strings.EqualFold(f.Name, "Subject") {
		m.subject, m.subjectText = at, f.Value
	}
	text := m.fieldText(f)
	m.findPatterns(text)
	kind := Header
	if isMIMEHeader(f.Name) {
		kind = MIME
	}
	e := m.lookup(kind, text)
	if forged {
		return
	}
	switch {
	case e.drop:
		m.edits = append(m.edits, policy.Edit{Kind: policy.DeleteField, At: at})
	case e.replace != "":
		name, value := asField(e.replace)
		if name != f.Name || value != f.Value {
			m.edits = append(m.edits, policy.Edit{Kind: policy.ReplaceField, At: at, Name: name, Value: value})
		}
	case e.prepend != "":
		name, value := asField(e.prepend)
		m.edits = append(m.edits, policy.Edit{Kind: policy.InsertField, At: at, Name: name, Value: value})
	}
}

// fieldText is a field as patterns see it: cut as Postfix cuts headers, which
// is at the end of the line, or piece of a line, that reaches the limit.
func (m *inspection) fieldText(f policy.Field) string {
	value := f.Value
	if strings.IndexByte(value, '\r') >= 0 {
		value = strings.ReplaceAll(value, "\r", "")
	}
	text := strings.TrimRight(f.Name, " \t") + ":" + value
	limit := m.c.cfg.HeaderLimit
	if len(text) <= limit {
		return text
	}
	line := m.c.cfg.LineLimit
	for from := 0; from < len(text); {
		n := strings.IndexByte(text[from:], '\n')
		next := from + n + 1
		if n < 0 || n > line {
			n, next = min(line, len(text)-from), from+min(line, len(text)-from)
		}
		if from+n >= limit {
			return text[:from+n]
		}
		from = next
	}
	return text
}

// mimeHeaders are the primary headers that go to mime_header_checks.
var mimeHeaders = [...]string{"MIME-Version", "Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Content-ID", "Content-Description"}

func isMIMEHeader(name string) bool {
	if len(name) < 10 || name[0]|0x20 != 'c' && name[0]|0x20 != 'm' {
		return false
	}
	for _, h := range mimeHeaders {
		if len(h) == len(name) && strings.EqualFold(h, name) {
			return true
		}
	}
	return false
}

// EndOfHeaders implements [policy.Inspection].
func (m *inspection) EndOfHeaders() {
	start := time.Now()
	defer m.timed(start)
	m.inBody = true
	m.rules(false)
	m.split.endOfFields()
	bodyEdits := func(sets []*set) bool {
		return slices.ContainsFunc(sets, func(s *set) bool { return s.edits && !s.shadow })
	}
	headers := !m.split.idle()
	m.keep = !m.done && (bodyEdits(m.sets[Body]) || headers && (bodyEdits(m.sets[MIME]) || bodyEdits(m.sets[Nested])))
	if m.keep && m.c.cfg.MaxBodyEdit == 0 {
		m.keep, m.tooLong = false, true
	}
	if m.keep {
		m.held = &holding{total: &m.c.held}
		runtime.AddCleanup(m, (*holding).release, m.held) // of a message that is given up
	}
	m.split.keepRaw, m.split.rawLimit = m.keep, m.c.cfg.MaxBodyEdit
}

// rules asks headers.rules: those with a condition when all is known of the
// message, the others when all headers are.
func (m *inspection) rules(atEnd bool) {
	for _, r := range m.rs.multis {
		if m.done {
			break
		}
		if (r.when != nil) != atEnd || !r.covers(m.to) || !m.holds(r) || atEnd && !r.when.Holds(m.req) || !r.meant(m.req, m.to) {
			continue
		}
		m.cur.kind, m.cur.text, m.cur.effect = Rule, r.rule.place, effect{}
		m.match(r.rule, r.rule.parsed, r.shadow || r.rule.shadow)
		if text := m.cur.effect.prepend; text != "" {
			name, value := asField(text)
			m.edits = append(m.edits, policy.Edit{Kind: policy.InsertField, Name: name, Value: value})
		}
	}
}

// holding is how much of a bound that all messages share one has taken.
type holding struct {
	total *atomic.Int64
	bytes int64
}

// take raises the share to n bytes, in steps.
func (h *holding) take(n int64) {
	const step = 64 << 10
	if n > h.bytes {
		h.total.Add(n + step - h.bytes)
		h.bytes = n + step
	}
}

func (h *holding) release() {
	if h != nil {
		h.total.Add(-h.bytes)
		h.bytes = 0
	}
}

// findPatterns notes which patterns of headers.rules find a header in text.
func (m *inspection) findPatterns(text string) {
	for d, finder := range m.rs.finders {
		if finder == nil {
			continue
		}
		key := text
		if d == 1 {
			key = decodeHeader(text)
		}
		m.which = d
		finder.Each(m.query, key, m.mark)
	}
}

func (m *inspection) markPattern(_ string, r *table.Rule) bool {
	n := m.rs.numbers[m.which][r.Index]
	m.found[n/64] |= 1 << (n % 64)
	return true
}

func (m *inspection) holds(r *multi) bool {
	has := func(n int) bool { return m.found[n/64]&(1<<(n%64)) != 0 }
	for _, n := range r.all {
		if !has(n) {
			return false
		}
	}
	return !slices.ContainsFunc(r.none, has)
}

// lookup asks the tables of one kind about a line.
func (m *inspection) lookup(kind Kind, text string) effect {
	m.cur.effect = effect{}
	sets := m.sets[kind]
	if len(sets) == 0 && m.observe == nil || text == "" {
		return effect{}
	}
	if m.observe != nil {
		m.observe(Match{Kind: kind, Text: text, Line: true})
	}
	m.cur.kind, m.cur.text, m.cur.decided = kind, text, false
	decoded := ""
	for _, s := range sets {
		key := text
		if s.decoded {
			if decoded == "" {
				decoded = decodeHeader(text)
			}
			key = decoded
		}
		m.cur.set = s
		s.table.Each(m.query, key, m.visitor)
		if m.cur.decided {
			break
		}
	}
	return m.cur.effect
}

// gaveUpPatterns tells of patterns that took too long.
func (m *inspection) gaveUpPatterns(n int) {
	m.c.metrics.patterns.Add(float64(n - m.gaveUp))
	if m.gaveUp == 0 {
		m.c.log.Warn("a pattern was given up, its rule does not match", zap.String("queue_id", m.req.QueueID),
			zap.Stringer("kind", m.cur.kind), zap.String("text", shown(m.cur.text)), zap.Bool("out_of_time", m.query.Spent()))
	}
	m.gaveUp = n
}

// visit takes one rule that matches. It returns false when the search ends.
func (m *inspection) visit(result string, tr *table.Rule) (more bool) {
	s := m.cur.set
	r := s.rules[tr.Index]
	p := r.read(result)
	if s.shadow || r.shadow || p.shadow {
		m.match(r, p, true)
		return !s.shadow // a rule in shadow mode is as if it were not there
	}
	m.cur.decided = true
	m.match(r, p, false)
	return false
}

// oneLine is text as a body line.
func oneLine(text string) string {
	b := []byte(text)
	for i, c := range b {
		if c == '\n' || c == '\r' || c == 0 {
			b[i] = ' '
		}
	}
	return string(b)
}

// End implements [policy.Inspection].
func (m *inspection) End(context.Context) (policy.Judgement, error) {
	start := time.Now()
	if m.wantsBody() {
		m.split.finish()
		m.timed(start)
	}
	if m.split.tooDeep && m.rs.refuses {
		m.nestingExceeded()
	}
	start = time.Now()
	m.rules(true)
	m.timed(start)
	body := m.body
	m.drop()
	m.c.metrics.messages.Inc()
	if m.timeout {
		return policy.Judgement{}, errTime
	}
	j := policy.Judgement{Verdict: m.verdict}
	if a := j.Verdict.Action; a.Refuses() || a == policy.Discard {
		return j, nil
	}
	j.Edits = m.edits
	if m.changed && !m.tooLong {
		j.Edits = append(j.Edits, policy.Edit{Kind: policy.ReplaceBody, Body: body})
	}
	for _, addr := range m.bcc {
		j.Edits = append(j.Edits, policy.Edit{Kind: policy.AddRecipient, Arg: addr})
	}
	switch {
	case m.redirect != "":
		j.Edits = append(j.Edits, policy.Edit{Kind: policy.ReplaceRecipient, Arg: m.redirect})
	case m.filter != "":
		j.Edits = append(j.Edits, policy.Edit{Kind: policy.InsertField, At: m.fields, Name: m.c.cfg.FilterMarker, Value: " " + m.filter})
	}
	return j, nil
}
