package milter

import (
	"time"

	gomilter "github.com/d--j/go-milter"
	"go.uber.org/zap"

	"postern/dialog"
	"postern/policy"
)

// look begins to look at the content of the message, once.
func (s *session) look(m gomilter.Modifier) {
	msg := &s.msg
	if msg.looking || msg.over || msg.failed || msg.lost || s.steps&gomilter.OptNoHeaders != 0 {
		return
	}
	msg.looking = true
	// The inspectors keep it until the end, so it is not the session's own.
	req := new(policy.Request)
	s.allRecipients()
	if id := m.Get(gomilter.MacroQueueId); id != "" {
		s.req.QueueID = id
	}
	*req = s.req
	req.Stage, req.Time = policy.StageData, time.Now()
	req.BodyHidden = s.steps&gomilter.OptNoBody != 0
	req.Joined = s.joined.Instance(req.QueueID, req.Time)
	req.Facts = policy.Facts{}
	dialog.Merge(&req.Facts, &msg.facts)
	learned, _ := s.joined.Message(req.QueueID, req.Time)
	dialog.Merge(&req.Facts, &learned)
	msg.content = s.door.o.Handler.Inspect(req, msg.to)
}

// Header implements gomilter.Milter. It is not answered.
func (s *session) Header(name, value string, m gomilter.Modifier) (resp *gomilter.Response, _ error) {
	defer s.guard("header", gomilter.OptNoHeaderReply, &resp)
	s.look(m)
	if s.msg.content == nil || s.msg.many {
		return gomilter.RespContinue, nil
	}
	f := policy.Field{Name: name, Value: value}
	if s.steps&gomilter.OptHeaderLeadingSpace == 0 {
		f.Value = " " + value // which the MTA has taken away
	}
	if !s.fields.add(f, s.door.cfg.Load().MaxHeaders) {
		s.msg.many = true
		return gomilter.RespContinue, nil
	}
	s.msg.content.Header(f)
	return gomilter.RespContinue, nil
}

// Headers implements gomilter.Milter: the body follows. It is not answered.
func (s *session) Headers(m gomilter.Modifier) (resp *gomilter.Response, _ error) {
	defer s.guard("end of header", gomilter.OptNoEOHReply, &resp)
	s.look(m)
	if s.msg.content != nil {
		s.msg.content.EndOfHeaders()
	}
	return gomilter.RespContinue, nil
}

// BodyChunk implements gomilter.Milter.
func (s *session) BodyChunk(chunk []byte, m gomilter.Modifier) (resp *gomilter.Response, _ error) {
	defer s.guard("body", gomilter.OptNoBodyReply, &resp)
	s.look(m)
	if s.msg.content != nil && !s.msg.many && s.msg.content.Body(chunk) {
		return gomilter.RespContinue, nil
	}
	if s.steps&gomilter.OptSkip != 0 {
		return gomilter.RespSkip, nil
	}
	return gomilter.RespContinue, nil
}

// EndOfMessage implements gomilter.Milter: everything that is done to the
// message is done here.
func (s *session) EndOfMessage(m gomilter.Modifier) (resp *gomilter.Response, _ error) {
	defer s.guard("end of message", 0, &resp)
	s.look(m)
	msg, d := &s.msg, s.door
	cfg := d.cfg.Load()
	d.metrics.total.Add(1)
	done := func(a policy.Action, resp *gomilter.Response) (*gomilter.Response, error) {
		if !msg.over { // a discarded one has been counted
			d.metrics.messages[a].Inc()
		}
		s.reset()
		s.joined.End()
		return resp, nil
	}
	switch {
	case msg.lost:
		return done(policy.Defer, gomilter.RespTempFail)
	case msg.failed && cfg.OnPanic == policy.ErrorDefer:
		return done(policy.Defer, gomilter.RespTempFail)
	case msg.full:
		s.log.Warn("message deferred: it has more recipients than milter.max_recipients or max_envelope", zap.String("sender", s.req.Sender.Raw))
		return done(policy.Defer, tooManyRecipients)
	case msg.many:
		s.log.Warn("message refused: it has more header fields than milter.max_headers", zap.String("sender", s.req.Sender.Raw), zap.Stringer("client", s.req.Client.Addr))
		return done(policy.Reject, tooManyHeaders)
	}
	if id := m.Get(gomilter.MacroQueueId); id != "" {
		s.req.QueueID = id
	}
	if !s.local {
		resp := s.judgeProbe(m)
		if resp == gomilter.RespContinue {
			s.allRecipients()
			resp = s.judge(policy.StageEndOfMessage, &msg.effect, m)
		}
		if resp != gomilter.RespContinue {
			return done(s.d.Verdict.Action, resp)
		}
	}
	_, headers := s.joined.Message(s.req.QueueID, time.Now())
	for _, h := range headers {
		msg.effect.headers = dialog.Add(msg.effect.headers, h)
	}
	edits, resp := s.judgeContent(m)
	if resp != nil {
		return done(s.d.Verdict.Action, resp)
	}
	if err := s.apply(m, edits); err != nil {
		// A message that should have been held, or go elsewhere, must not go
		// on as it is.
		s.log.Error("edits could not be made", zap.String("queue_id", s.req.QueueID), zap.Error(err))
		return done(policy.Defer, gomilter.RespTempFail)
	}
	action := policy.Continue
	switch {
	case msg.effect.hold != "":
		action = policy.Hold
	case msg.effect.redirect != "":
		action = policy.Redirect
	}
	return done(action, gomilter.RespAccept)
}

// judgeContent ends the looking. It returns the edits, or the answer when the
// message is not accepted.
func (s *session) judgeContent(m gomilter.Modifier) ([]policy.Edit, *gomilter.Response) {
	c := s.msg.content
	if c == nil {
		return nil, nil
	}
	s.msg.content = nil
	s.allRecipients()
	s.req.Stage, s.req.Time = policy.StageEndOfMessage, time.Now()
	s.req.Joined = s.joined.Instance(s.req.QueueID, s.req.Time)
	s.req.OnTop = s.msg.effect.headers
	s.d.Reset()
	var edits []policy.Edit
	stop := alive(m)
	func() {
		defer stop()
		edits = c.End(s.door.ctx, &s.req, &s.d)
	}()
	switch a := s.d.Verdict.Action; {
	case a.Refuses():
		return nil, s.refusal(&s.d)
	case a == policy.Discard:
		return nil, gomilter.RespDiscard
	}
	s.msg.effect.take(&s.d)
	return edits, nil
}
