package headercheck

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

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
	m := &inspection{c: c, rs: rs, req: req, to: to, sets: rs.sets, query: table.NewQuery(c.cfg.PatternTime.D())}
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
	for _, r := range m.rs.multis {
		if m.done {
			break
		}
		if r.covers(m.to) && m.holds(r) {
			m.cur.kind, m.cur.text, m.cur.effect = Rule, r.rule.place, effect{}
			m.match(r.rule, r.rule.parsed, r.shadow || r.rule.shadow)
			if text := m.cur.effect.prepend; text != "" {
				name, value := asField(text)
				m.edits = append(m.edits, policy.Edit{Kind: policy.InsertField, Name: name, Value: value})
			}
		}
	}
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

// match takes the rule r that matches m.cur.text, and does what p asks for.
func (m *inspection) match(r *rule, p parsed, shadow bool) {
	text, kind := m.cur.text, m.cur.kind
	if m.observe != nil {
		m.observe(Match{Kind: kind, Text: text, Rule: r.place, Table: r.owner, Pattern: r.pattern, Action: p.act.String(), Arg: p.arg, Shadow: shadow})
	} else {
		r.hits.hit(m.req.Time)
		m.c.metrics.matched(kind, p.act, shadow)
	}
	if err := p.usable(kind); err != nil {
		m.unusable(r, p, err)
		return
	}
	if shadow {
		m.log(zapcore.InfoLevel, "a header rule in shadow mode matches", r, p)
		return
	}
	switch p.act {
	case actDunno:
	case actIgnore:
		m.cur.effect.drop = true
	case actStrip:
		m.cur.effect.drop = true
		m.log(zapcore.InfoLevel, "header check", r, p)
	case actUnknown:
		m.unusable(r, p, fmt.Errorf("unknown action %q", clip(p.word, 40)))
	default:
		if p.act == actHold && m.verdict.Action == policy.Hold {
			return // once is enough
		}
		m.log(zapcore.InfoLevel, "header check", r, p)
		m.act(r, p)
	}
}

// act does what an action asks for that is logged.
func (m *inspection) act(r *rule, p parsed) {
	switch p.act {
	case actPass:
		m.done = true
	case actReject:
		m.done = true
		reply := rejectReply(p.arg)
		if reply.Code == 451 {
			m.decide(policy.Verdict{Action: policy.Defer, Reply: reply}, "deferred", r)
		} else {
			m.decide(policy.Verdict{Action: policy.Reject, Reply: reply}, "rejected", r)
		}
	case actNone:
		m.done = true
		m.decide(policy.Verdict{Action: policy.Defer, Reply: policy.Reply{Code: 451, Enhanced: "4.3.0", Text: "message content could not be checked"}}, "table-error", r)
	case actDiscard:
		m.done = true
		m.decide(policy.Verdict{Action: policy.Discard}, "discarded", r)
	case actHold:
		m.decide(policy.Verdict{Action: policy.Hold}, "held", r)
	case actPrepend:
		m.cur.effect.prepend = p.arg
	case actReplace:
		m.cur.effect.replace = p.arg
	case actRedirect:
		m.done = true
		m.redirect = p.arg
	case actBCC:
		if !slices.Contains(m.bcc, p.arg) {
			m.bcc = append(m.bcc, p.arg)
		}
	case actFilter:
		m.filter = p.arg
	default: // INFO and WARN are only logged
	}
}

// reasons are the beginnings of reason slugs.
var reasons = [kindCount]string{"header", "mime-header", "nested-header", "body", "header-rule"}

func (m *inspection) decide(v policy.Verdict, what string, r *rule) {
	v.Reason = reasons[m.cur.kind] + "-" + what
	v.Detail = r.place + " " + r.result
	if m.cur.kind != Rule {
		v.Detail += ": " + shown(m.cur.text)
	}
	m.verdict = v
}

func (m *inspection) unusable(r *rule, p parsed, err error) {
	if m.observe != nil {
		return
	}
	m.c.log.Warn("a header rule has no effect", zap.String("rule", r.place), zap.String("action", p.word), zap.Error(err))
}

func (m *inspection) log(level zapcore.Level, message string, r *rule, p parsed) {
	ce := m.c.log.Check(level, message)
	if ce == nil {
		return
	}
	ce.Write(zap.Stringer("action", p.act), zap.Stringer("kind", m.cur.kind), zap.String("rule", r.place), zap.String("text", shown(m.cur.text)),
		zap.String("argument", shown(p.arg)), zap.Stringer("client", m.req.Client.Addr), zap.String("sender", shown(m.req.Sender.Raw)),
		zap.Int("recipients", len(m.to)), zap.String("queue_id", m.req.QueueID))
}

// Body implements [policy.Inspection].
func (m *inspection) Body(p []byte) (more bool) {
	start := time.Now()
	defer m.timed(start)
	if !m.wantsBody() {
		return false
	}
	m.split.write(p)
	return m.wantsBody()
}

// wantsBody reports whether more of the body can change anything.
func (m *inspection) wantsBody() bool {
	switch {
	case m.timeout || m.verdict.Action.Refuses() || m.verdict.Action == policy.Discard:
		return false
	case m.changed && !m.tooLong:
		return true // all of it is needed
	case m.done:
		return false
	case !m.split.idle():
		return true
	}
	return len(m.sets[Body]) > 0 && (m.c.cfg.BodyLimit == 0 || m.split.offset < m.c.cfg.BodyLimit)
}

// bodyHeader takes a header found in the body.
func (m *inspection) bodyHeader(c class, text, raw []byte) {
	if m.split.tooDeep && m.rs.refuses {
		m.nestingExceeded()
	}
	var e effect
	if !m.done {
		kind := Nested
		if c == part {
			kind = MIME
		} else if name, _, _ := strings.Cut(string(text[:min(len(text), 40)]), ":"); isMIMEHeader(name) {
			kind = MIME
		}
		if len(m.sets[kind]) > 0 || m.observe != nil {
			e = m.lookup(kind, string(text))
		}
	}
	if !m.keep {
		m.lost(e)
		return
	}
	if e.prepend != "" {
		m.writeHeader(e.prepend)
	}
	switch {
	case e.drop:
		m.changed = true
		return
	case e.replace != "":
		m.writeHeader(e.replace)
		return
	}
	m.writeLines(raw)
}

func (m *inspection) writeHeader(text string) {
	m.changed = true
	m.writeLines([]byte(oneHeader(text)))
}

// writeLines adds lines that are parted by LF.
func (m *inspection) writeLines(text []byte) {
	for _, c := range text {
		if c == '\n' {
			m.body = append(m.body, '\r')
		}
		m.body = append(m.body, c)
	}
	m.body = append(m.body, "\r\n"...)
	m.bound()
}

// bodyLine takes a line of the body, or a piece of one.
func (m *inspection) bodyLine(rec record, text []byte, offset int) {
	if m.split.tooDeep && m.rs.refuses {
		m.nestingExceeded()
	}
	var e effect
	if limit := m.c.cfg.BodyLimit; !m.done && m.inBody && len(text) > 0 && (limit == 0 || offset < limit) && len(m.sets[Body]) > 0 {
		e = m.lookup(Body, string(text))
	}
	if !m.keep {
		m.lost(e)
		return
	}
	if e.prepend != "" {
		m.changed = true
		m.body = append(append(m.body, oneLine(e.prepend)...), "\r\n"...)
	}
	switch {
	case e.drop:
		m.changed = true
	case e.replace != "":
		m.changed = true
		m.body = append(m.body, oneLine(e.replace)...)
	default:
		m.body = append(m.body, text...)
	}
	if rec == whole && !e.drop {
		m.body = append(m.body, "\r\n"...)
	}
	m.bound()
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

// bound gives up the body when it is too much to keep.
func (m *inspection) bound() {
	m.held.take(int64(len(m.body)))
	if len(m.body) <= m.c.cfg.MaxBodyEdit && !m.split.rawLost && m.c.held.Load() <= m.c.cfg.MaxBodyEditTotal {
		return
	}
	m.keep, m.split.keepRaw, m.tooLong = false, false, true
	m.drop()
	if m.changed {
		m.notChanged()
	}
}

// drop forgets the kept body.
func (m *inspection) drop() {
	m.body = nil
	m.held.release()
}

// lost tells of a change that cannot be made, once.
func (m *inspection) lost(e effect) {
	if e != (effect{}) && m.tooLong && !m.changed {
		m.changed = true
		m.notChanged()
	}
}

func (m *inspection) notChanged() {
	m.c.metrics.unedited.Inc()
	m.c.log.Warn("the body is too long to be changed", zap.String("queue_id", m.req.QueueID),
		zap.Int("max_body_edit", m.c.cfg.MaxBodyEdit), zap.Int64("max_body_edit_total", m.c.cfg.MaxBodyEditTotal))
}

// nestingExceeded refuses a message as Postfix does.
func (m *inspection) nestingExceeded() {
	if m.done {
		return
	}
	m.done = true
	m.verdict = policy.Verdict{
		Action: policy.Reject, Reason: "mime-nesting", Reply: policy.Reply{Code: 550, Enhanced: "5.6.0", Text: "MIME nesting exceeds safety limit"},
		Detail: fmt.Sprintf("more than %d MIME parts inside each other", m.c.cfg.MIMENesting),
	}
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
