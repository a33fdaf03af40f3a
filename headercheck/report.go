package headercheck

import (
	"bytes"
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/policy"
	"postern/table"
)

// Match is a line that was looked up, or a rule that matched it.
type Match struct {
	Kind Kind   `json:"kind"`
	Text string `json:"text"` // as the patterns saw it before decoding; of headers.rules the name
	// Line is set for a line that is looked up; the matches of its rules follow.
	Line    bool   `json:"line,omitempty"`
	Rule    string `json:"rule,omitempty"` // file:line, or the name of one of headers.rules
	Table   string `json:"table,omitempty"`
	Pattern string `json:"pattern,omitempty"`
	Action  string `json:"action,omitempty"` // "reject"
	Arg     string `json:"arg,omitempty"`    // its argument, groups filled in
	Shadow  bool   `json:"shadow,omitempty"` // it has no effect
}

// Looked is a line of a message and the rules that matched it.
type Looked struct {
	Kind    Kind    `json:"kind"`
	Text    string  `json:"text"`
	Matches []Match `json:"matches,omitempty"`
}

// Report is what the rules make of a message.
type Report struct {
	// Lines are all headers, in the message and in its parts, and those body
	// lines that a rule matched, in their order.
	Lines     []Looked         `json:"lines"`
	Judgement policy.Judgement `json:"judgement"`
	// Message is the message as it would leave, with CRLF line ends; nil when
	// it is refused or thrown away.
	Message []byte `json:"message,omitempty"`
}

// Test runs the rules over a whole message, a file as mail programs save it,
// for an envelope. Nothing is counted or logged. req may be nil. An error
// means that the rules took too long.
func (c *Check) Test(req *policy.Request, to []policy.Address, message []byte) (*Report, error) {
	if req == nil {
		req = &policy.Request{Stage: policy.StageData, Time: time.Now(), DryRun: true}
	}
	message = toCRLF(message)
	fields, body := cutFields(message)
	rep := &Report{}
	quiet := &Check{cfg: c.cfg, log: zap.NewNop(), metrics: newMetrics(nil)}
	m := quiet.inspect(c.rules.Load(), req, to)
	m.observe = func(one Match) {
		if one.Line || one.Kind == Rule {
			rep.Lines = append(rep.Lines, Looked{Kind: one.Kind, Text: one.Text})
		}
		if !one.Line {
			last := &rep.Lines[len(rep.Lines)-1]
			last.Matches = append(last.Matches, one)
		}
	}
	for _, f := range fields {
		m.Header(f)
	}
	m.EndOfHeaders()
	m.Body(body)
	var err error
	rep.Judgement, err = m.End(context.Background())
	lines := rep.Lines[:0]
	for _, l := range rep.Lines {
		if l.Kind != Body || len(l.Matches) > 0 {
			lines = append(lines, l)
		}
	}
	rep.Lines = lines
	if a := rep.Judgement.Verdict.Action; err == nil && !a.Refuses() && a != policy.Discard {
		rep.Message = Apply(fields, body, rep.Judgement.Edits)
	}
	return rep, err
}

// Query asks the tables of one kind about a text, as `postmap -q` does:
// "Subject: hello". It returns the first rule of each table that matches, in
// their order, and rules in shadow mode before it; the first Match that is not
// in shadow mode decides. Nothing is counted.
func (c *Check) Query(kind Kind, text string) []Match {
	var out []Match
	q := table.NewQuery(c.cfg.PatternTime.D())
	for _, s := range c.rules.Load().sets[kind] {
		key := text
		if s.decoded {
			key = decodeHeader(text)
		}
		if key == "" {
			continue
		}
		s.table.Each(q, key, func(result string, tr *table.Rule) bool {
			r := s.rules[tr.Index]
			p := r.read(result)
			shadow := s.shadow || r.shadow || p.shadow
			out = append(out, Match{Kind: kind, Text: text, Rule: r.place, Table: r.owner, Pattern: r.pattern, Action: p.act.String(), Arg: p.arg, Shadow: shadow})
			return shadow && !s.shadow
		})
	}
	return out
}

// Apply makes the message that edits ask for, with CRLF line ends; body has
// them already. Edits of recipients change no message.
func Apply(fields []policy.Field, body []byte, edits []policy.Edit) []byte {
	var out []byte
	put := func(name, value string) {
		out = append(out, name...)
		out = append(out, ':')
		for _, c := range []byte(value) {
			if c == '\n' {
				out = append(out, '\r')
			}
			out = append(out, c)
		}
		out = append(out, "\r\n"...)
	}
	for _, f := range policy.Apply(fields, edits) {
		put(f.Name, f.Value)
	}
	if text, ok := policy.Replaced(edits); ok {
		body = text
	}
	out = append(out, "\r\n"...)
	return append(out, body...)
}

// toCRLF gives every line CRLF, and takes out the line that mailbox files begin with.
func toCRLF(message []byte) []byte {
	text := strings.ReplaceAll(string(message), "\r\n", "\n")
	if strings.HasPrefix(text, "From ") {
		_, text, _ = strings.Cut(text, "\n")
	}
	return []byte(strings.ReplaceAll(text, "\n", "\r\n"))
}

// cutFields parts the headers from the body of a message, as Postfix does on input.
func cutFields(message []byte) (fields []policy.Field, body []byte) {
	s := &splitter{splitLimits: splitLimits{header: len(message) + 1, line: len(message) + 1, noMIME: true}}
	s.head = func(_ class, text, _ []byte) {
		name, value, _ := strings.Cut(string(text), ":")
		fields = append(fields, policy.Field{Name: name, Value: value})
	}
	s.body = func(record, []byte, int) {}
	for len(message) > 0 {
		n := bytes.IndexByte(message, '\n') + 1
		if n == 0 {
			n = len(message)
		}
		s.write(message[:n])
		if s.state == inBody {
			if strings.TrimRight(string(message[:n]), "\r\n") == "" {
				message = message[n:]
			}
			return fields, message
		}
		message = message[n:]
	}
	s.finish()
	return fields, nil
}
