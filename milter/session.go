package milter

import (
	"context"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	gomilter "github.com/d--j/go-milter"
	"go.uber.org/zap"

	"postern/dialog"
	"postern/internal/mailaddr"
	"postern/policy"
)

// session is one SMTP session, or as much of it as the library connects with
// one connection. The library calls its methods one at a time.
type session struct {
	door    *entrance
	log     *zap.Logger
	version uint32
	actions gomilter.OptAction
	steps   gomilter.OptProtocol

	// What is known of the connection. STARTTLS and a second EHLO change some
	// of it; ABORT changes nothing.
	req    policy.Request
	mta    string // the MTA's name of its host, in the compared form
	local  bool   // no SMTP: cleanup(8) plays the part of smtpd(8)
	broken bool   // what is known is incomplete, by a fault of ours
	told   bool   // what is heard was said to an earlier process, and is answered
	joined *dialog.Session
	// What the verdicts at connect, and at HELO after them, do to each message.
	connected, greeted effects

	messages int // so far
	msg      message
	d        policy.Decision
	fields   fields // of msg; here for its memory
}

// message is one mail transaction.
type message struct {
	begun  bool
	failed bool // by a fault of ours
	lost   bool // an earlier process knew of it what this one does not
	over   bool // discarded, or refused as a whole: what comes still is not looked at
	probe  bool // the sender is exempt, and has not been judged
	full   bool // it has more recipients than there may be

	to     []policy.Address
	wire   []string // the recipients, as the MTA knows them
	bytes  int      // in all of them
	facts  policy.Facts
	effect effects

	looking bool // content has been asked for
	content Content
	many    bool // it has more header fields than there may be
}

// effects is what verdicts that accept a message do to it at its end.
type effects struct {
	hold     string // why; "" for not at all
	discard  bool
	redirect string
	headers  []policy.Header
}

// clone returns a copy to which more can be added.
func (e *effects) clone() effects {
	c := *e
	c.headers = slices.Clip(c.headers)
	return c
}

func newSession(d *entrance, version uint32, actions gomilter.OptAction, steps gomilter.OptProtocol) *session {
	return &session{door: d, log: d.log, version: version, actions: actions, steps: steps, told: d.agreed != (agreement{})}
}

var _ gomilter.Milter = (*session)(nil)

// guard turns a panic of ours into a failure of the message: the process, and
// the other messages of the session, go on. reply is the step bit by which the
// event has no answer.
func (s *session) guard(event string, reply gomilter.OptProtocol, resp **gomilter.Response) {
	cause := recover()
	if cause == nil {
		return
	}
	s.panicked(event, cause)
	s.msg.failed = true
	s.abandonAfterPanic()
	*resp = gomilter.RespContinue
	if s.steps&reply == 0 && s.door.cfg.Load().OnPanic == policy.ErrorDefer {
		*resp = gomilter.RespTempFail
	}
}

// guardSession is guard for events that belong to no message. An answer that
// refused would hold for the whole session; each message fails instead.
func (s *session) guardSession(event string, resp **gomilter.Response) {
	if cause := recover(); cause != nil {
		s.panicked(event, cause)
		s.broken = true
		*resp = gomilter.RespContinue
	}
}

// guardEnd is guard for what ends something: nothing is left to fail.
func (s *session) guardEnd(event string) {
	if cause := recover(); cause != nil {
		s.panicked(event, cause)
	}
}

func (s *session) panicked(event string, cause any) {
	s.door.metrics.panics.Inc()
	s.log.Error("session panicked", zap.String("event", event), zap.Any("cause", cause),
		zap.Stringer("client", s.req.Client.Addr), zap.ByteString("stack", debug.Stack()))
}

// NewConnection implements gomilter.Milter. An MTA that uses a connection for
// another SMTP session calls it again.
func (s *session) NewConnection(gomilter.Modifier) error {
	s.end()
	s.req = policy.Request{Door: "milter", Listener: s.door.address.String(), Chain: s.door.chain(s.door.cfg.Load())}
	s.mta, s.local, s.broken = "", false, false
	s.connected, s.greeted = effects{}, effects{}
	return nil
}

// Cleanup implements gomilter.Milter.
func (s *session) Cleanup(gomilter.Modifier) { s.end() }

func (s *session) end() {
	defer s.guardEnd("end")
	s.reset()
	s.joined.Close()
	s.joined = nil
}

// reset forgets the message.
func (s *session) reset() {
	c := s.msg.content
	s.msg = message{}
	s.fields.reset()
	r := &s.req
	r.Sender, r.Recipient, r.RecipientCount = policy.Address{}, policy.Address{}, 0
	r.QueueID, r.Instance, r.Joined, r.Size, r.SASL, r.OnTop = "", "", "", 0, policy.SASL{}, nil
	r.Facts.Reset()
	if c != nil {
		c.Abandon()
	}
}

// abandonAfterPanic gives the content up, which may be what has panicked.
func (s *session) abandonAfterPanic() {
	c := s.msg.content
	if s.msg.content = nil; c == nil {
		return
	}
	defer func() { _ = recover() }() // one panic has been reported
	c.Abandon()
}

// Connect implements gomilter.Milter.
func (s *session) Connect(host, family string, port uint16, addr string, m gomilter.Modifier) (resp *gomilter.Response, _ error) {
	defer s.guardSession("connect", &resp)
	c := &s.req.Client
	if strings.HasPrefix(family, "tcp") {
		c.Addr, c.Port = mailaddr.IP(strings.Trim(addr, "[]")), port
	}
	if !strings.HasPrefix(host, "[") {
		c.Name = mailaddr.HostName(host)
	}
	if r := m.Get("{client_resolve}"); r != "" && r != "OK" {
		c.Name = "" // Sendmail gives an unverified one
	}
	c.ReverseName = reverseName(m)
	s.req.ServerAddr = mailaddr.IP(m.Get(gomilter.MacroDaemonAddr))
	s.req.ServerPort = number16(m.Get(gomilter.MacroDaemonPort))
	s.req.MailVersion = strings.TrimPrefix(m.Get(gomilter.MacroMTAVersion), "Postfix ")
	s.mta = mailaddr.HostName(m.Get(gomilter.MacroMTAFQDN))
	s.local = port == 0 && c.Addr.IsLoopback()
	if s.local {
		c.Port = 0
		return gomilter.RespContinue, nil
	}
	if s.actions&gomilter.OptAddHeader != 0 {
		s.joined = s.door.o.Dialogs.Open(*c, s.req.ServerAddr)
		if s.steps&(gomilter.OptNoHeaders|gomilter.OptNoEOH) == 0 {
			s.joined.SeesContent()
		}
	}
	s.door.begin(*c)
	if s.steps&gomilter.OptNoConnReply != 0 {
		return gomilter.RespContinue, nil
	}
	if !s.told {
		s.pause(m)
	}
	resp = s.judge(policy.StageConnect, &s.connected, m)
	s.greeted = s.connected.clone()
	return resp, nil
}

// reverseName returns the client's reverse name, which nobody has verified.
func reverseName(m gomilter.Modifier) string {
	if ptr, ok := m.GetEx(gomilter.MacroClientPTR); ok {
		return mailaddr.HostName(ptr)
	}
	// "name [address] (may be forged)"
	name, _, ok := strings.Cut(m.Get(gomilter.MacroRFC1413AuthInfo), " [")
	if !ok || strings.Contains(name, "@") {
		return ""
	}
	return mailaddr.HostName(name)
}

// Helo implements gomilter.Milter. It is called again after STARTTLS, then
// with the macros of TLS.
func (s *session) Helo(name string, m gomilter.Modifier) (resp *gomilter.Response, _ error) {
	defer s.guardSession("helo", &resp)
	s.req.Helo = name
	s.req.TLS = policy.TLS{
		Protocol: m.Get(gomilter.MacroTlsVersion), Cipher: m.Get(gomilter.MacroCipher), KeySize: int(number16(m.Get(gomilter.MacroCipherBits))),
		CertSubject: m.Get(gomilter.MacroCertSubject), CertIssuer: m.Get(gomilter.MacroCertIssuer), SNI: m.Get("{tls_sni}"),
	}
	if s.local || s.steps&gomilter.OptNoHeloReply != 0 {
		return gomilter.RespContinue, nil
	}
	s.greeted = s.connected.clone() // a second EHLO is judged anew
	return s.judge(policy.StageHelo, &s.greeted, m), nil
}

// MailFrom implements gomilter.Milter: a message begins.
func (s *session) MailFrom(from, args string, m gomilter.Modifier) (resp *gomilter.Response, _ error) {
	defer s.guard("mail", gomilter.OptNoMailReply, &resp)
	s.reset()
	s.joined.Begin()
	s.messages++
	s.msg.begun, s.msg.failed = true, s.broken
	s.msg.effect = s.greeted.clone()
	r := &s.req
	r.Sender, r.Recipient, r.RecipientCount = mailaddr.ParsePath(from), policy.Address{}, 0
	r.QueueID = m.Get(gomilter.MacroQueueId)
	r.Instance = "milter." + s.door.started + "." + strconv.FormatUint(m.MilterId(), 36) + "." + strconv.Itoa(s.messages)
	r.Size, r.ESMTP = sizeOf(args), args != ""
	r.SASL = policy.SASL{
		Method: m.Get(gomilter.MacroAuthType), Username: m.Get(gomilter.MacroAuthAuthen), Sender: m.Get(gomilter.MacroAuthAuthor),
	}
	if s.local || s.steps&gomilter.OptNoMailReply != 0 {
		return gomilter.RespContinue, nil
	}
	if s.msg.failed && s.door.cfg.Load().OnPanic == policy.ErrorDefer {
		return gomilter.RespTempFail, nil
	}
	s.msg.probe = s.door.cfg.Load().exempt(r.Sender, s.mta, mailaddr.Domain(s.door.o.Hostname))
	if s.msg.probe {
		return gomilter.RespContinue, nil
	}
	if s.greeted.discard {
		s.msg.over = true
		return gomilter.RespDiscard, nil
	}
	return s.judge(policy.StageMail, &s.msg.effect, m), nil
}

// RcptTo implements gomilter.Milter. It never accepts, which in Postfix would
// end the events of the message; it continues.
func (s *session) RcptTo(to, _ string, m gomilter.Modifier) (resp *gomilter.Response, _ error) {
	defer s.guard("rcpt", gomilter.OptNoRcptReply, &resp)
	cfg := s.door.cfg.Load()
	msg := &s.msg
	if msg.over {
		return gomilter.RespContinue, nil
	}
	replies := s.steps&gomilter.OptNoRcptReply == 0 && !s.local
	if msg.lost && replies {
		return gomilter.RespTempFail, nil
	}
	if len(msg.to) >= cfg.MaxRecipients || msg.bytes+len(to) > cfg.MaxEnvelope {
		if !replies {
			msg.full = true // said at the end
			return gomilter.RespContinue, nil
		}
		return tooManyRecipients, nil
	}
	s.req.QueueID = m.Get(gomilter.MacroQueueId)
	addr := mailaddr.ParsePath(to)
	if replies && !msg.probe {
		s.req.Recipient = addr
		if resp := s.judge(policy.StageRcpt, &msg.effect, m); resp != gomilter.RespContinue {
			return resp, nil
		}
	}
	msg.to, msg.wire = append(msg.to, addr), append(msg.wire, to)
	msg.bytes += len(to)
	return gomilter.RespContinue, nil
}

var (
	tooManyRecipients = mustReply(452, "4.5.3 Too many recipients")
	tooManyHeaders    = mustReply(554, "5.6.0 Message has too many header fields")
)

func mustReply(code uint16, text string) *gomilter.Response {
	resp, err := gomilter.RejectWithCodeAndReason(code, text)
	if err != nil {
		panic(err) // a constant
	}
	return resp
}

// Data implements gomilter.Milter.
func (s *session) Data(m gomilter.Modifier) (resp *gomilter.Response, _ error) {
	defer s.guard("data", gomilter.OptNoDataReply, &resp)
	s.req.QueueID = m.Get(gomilter.MacroQueueId)
	if s.local || s.msg.over || s.steps&gomilter.OptNoDataReply != 0 {
		return gomilter.RespContinue, nil
	}
	if s.msg.lost {
		return gomilter.RespTempFail, nil
	}
	if resp := s.judgeProbe(m); resp != gomilter.RespContinue {
		return resp, nil
	}
	s.allRecipients()
	return s.judge(policy.StageData, &s.msg.effect, m), nil
}

// maxProbed is the most recipients of an exempt sender that are judged when it
// goes on to send: a probe has one.
const maxProbed = 10

// judgeProbe judges the recipients of an exempt sender that is no probe after
// all, since it sends a message. The first refusal is that of the message.
func (s *session) judgeProbe(m gomilter.Modifier) *gomilter.Response {
	if !s.msg.probe {
		return gomilter.RespContinue
	}
	s.msg.probe = false
	for _, to := range s.msg.to[:min(len(s.msg.to), maxProbed)] {
		s.req.Recipient, s.req.RecipientCount = to, 0
		if resp := s.judge(policy.StageRcpt, &s.msg.effect, m); resp != gomilter.RespContinue {
			s.msg.probe = true // the client may try DATA again
			return resp
		}
	}
	return gomilter.RespContinue
}

// allRecipients fills the request in as Postfix does from DATA on.
func (s *session) allRecipients() {
	s.req.Recipient, s.req.RecipientCount = policy.Address{}, len(s.msg.to)
	if len(s.msg.to) == 1 {
		s.req.Recipient = s.msg.to[0]
	}
}

// judge has the envelope judged at a stage and returns the answer. What the
// verdict does to the message is added to e.
func (s *session) judge(stage policy.Stage, e *effects, m gomilter.Modifier) *gomilter.Response {
	d := s.door
	cfg := d.cfg.Load()
	if !cfg.Envelope || !d.o.Handler.Wants(s.req.Chain).Stages.Has(stage) {
		return gomilter.RespContinue
	}
	s.req.Stage, s.req.Time = stage, time.Now()
	// What was decided before is wanted again, and not to be counted again.
	s.req.DryRun = s.told
	s.req.Joined = s.joined.Instance(s.req.QueueID, s.req.Time)
	s.req.Facts.Reset()
	s.d.Reset()
	stop := alive(m)
	func() {
		defer stop()
		d.o.Handler.Decide(d.ctx, &s.req, &s.d)
	}()
	if !s.told {
		d.metrics.replies[s.d.Verdict.Action].Inc()
	}
	if s.d.Verdict.Action.Refuses() {
		return s.refusal(&s.d)
	}
	dialog.Merge(&s.msg.facts, &s.req.Facts)
	if e.take(&s.d); e.discard && stage >= policy.StageMail {
		s.msg.over = true
		d.metrics.messages[policy.Discard].Inc()
		return gomilter.RespDiscard
	}
	return gomilter.RespContinue
}

// take notes what a decision that accepts does to the message.
func (e *effects) take(d *policy.Decision) {
	switch v := &d.Verdict; v.Action {
	case policy.Hold:
		if e.hold == "" {
			if e.hold = policy.Printable(v.Reason); e.hold == "" {
				e.hold = "held by policy"
			}
		}
	case policy.Discard:
		e.discard = true
	case policy.Redirect:
		e.redirect = v.Arg
	default:
	}
	for _, h := range d.Headers {
		e.headers = dialog.Add(e.headers, h)
	}
}

// refusal returns the answer that refuses: never an empty one, and with every
// % doubled, of which Postfix would take one away.
func (s *session) refusal(d *policy.Decision) *gomilter.Response {
	r := &d.Verdict.Reply
	text := r.Enhanced + " " + policy.Printable(r.Text)
	if d.Reference != "" {
		text += " [ref " + d.Reference + "]"
	}
	resp, err := gomilter.RejectWithCodeAndReason(uint16(r.Code), text)
	if err != nil {
		s.log.Error("unusable reply", zap.String("check", d.Check), zap.String("reply", r.String()), zap.Error(err))
		return gomilter.RespTempFail
	}
	return resp
}

// Unknown implements gomilter.Milter. The MTA is asked not to call it; it ends
// the past of a session that goes on.
func (s *session) Unknown(command string, _ gomilter.Modifier) (*gomilter.Response, error) {
	if s.told {
		s.told = false
		s.msg.lost = command == pastToldLost
	}
	return gomilter.RespContinue, nil
}

// Abort implements gomilter.Milter. Postfix sends it after every message and,
// with a second EHLO, after the event for that.
func (s *session) Abort(gomilter.Modifier) error {
	defer s.guardEnd("abort")
	s.reset()
	return nil
}

// aliveEvery is how often the MTA is told that a slow decision is still being
// made; Postfix's milter_command_timeout is 30s.
const aliveEvery = 10 * time.Second

// alive sends signs of life until the returned function is called.
func alive(m gomilter.Modifier) (stop func()) {
	if m.Version() < 6 {
		return func() {}
	}
	var mu sync.Mutex
	stopped := false
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(aliveEvery, func() {
		mu.Lock()
		defer mu.Unlock()
		if !stopped && m.Progress() == nil {
			timer.Reset(aliveEvery)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// sizeOf returns the SIZE= of the arguments of MAIL (RFC 1870), 0 for none.
func sizeOf(args string) int64 {
	for arg := range strings.FieldsSeq(args) {
		if name, value, _ := strings.Cut(arg, "="); strings.EqualFold(name, "SIZE") {
			n, err := strconv.ParseInt(value, 10, 64)
			if err == nil && n >= 0 {
				return n
			}
		}
	}
	return 0
}

// number16 reads a port or a key's size; what is none is 0.
func number16(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// begin has look-ups about a client begun. It does not wait.
func (d *entrance) begin(c policy.Client) {
	if d.o.Early == nil || !c.Addr.IsValid() || !d.o.Handler.Wants(d.chain(d.cfg.Load())).Early {
		return
	}
	select {
	case d.early <- struct{}{}:
	default:
		d.metrics.early.full.Inc()
		return
	}
	d.metrics.early.started.Inc()
	d.wg.Go(func() {
		defer func() {
			<-d.early
			if cause := recover(); cause != nil {
				d.metrics.panics.Inc()
				d.log.Error("early look-up panicked", zap.Any("cause", cause), zap.ByteString("stack", debug.Stack()))
			}
		}()
		ctx, cancel := context.WithTimeout(d.ctx, earlyTime)
		defer cancel()
		d.o.Early(ctx, c)
	})
}
