package headercheck

import (
	"strings"
	"time"

	"postern/policy"
)

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
