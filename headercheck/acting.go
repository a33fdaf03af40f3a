package headercheck

import (
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"postern/policy"
)

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
	case actSubject:
		m.tag(p.arg)
	case actMark:
		m.req.Facts.Mark(p.arg)
	default: // INFO and WARN are only logged
	}
}

// tag puts a text in front of the subject, unless it stands there.
func (m *inspection) tag(text string) {
	if m.subject < 0 {
		m.edits = append(m.edits, policy.Edit{Kind: policy.InsertField, At: m.fields, Name: "Subject", Value: " " + text})
		m.subject = m.fields
		return
	}
	for i := range m.edits {
		e := &m.edits[i]
		switch {
		case e.At != m.subject:
		case e.Kind == policy.DeleteField:
			return
		case strings.EqualFold(e.Name, "Subject"):
			e.Value = tagged(text, e.Value)
			return
		}
	}
	if value := tagged(text, m.subjectText); value != m.subjectText {
		m.edits = append(m.edits, policy.Edit{Kind: policy.ReplaceField, At: m.subject, Name: "Subject", Value: value})
	}
}

func tagged(text, value string) string {
	subject := strings.TrimLeft(value, " \t\n")
	if strings.HasPrefix(subject, text) {
		return value
	}
	return " " + strings.TrimRight(text, " ") + " " + subject
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
