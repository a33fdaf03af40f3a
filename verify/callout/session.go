package callout

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"postern/policy"
)

// failure is an answer, or the lack of one, that ends a probe.
type failure struct {
	stage Stage
	reply Reply // zero when there was none
	err   error // nil when there was a reply
}

func (f *failure) Error() string {
	if f.err != nil {
		return f.stage.String() + ": " + f.err.Error()
	}
	return f.stage.String() + ": " + f.reply.String()
}

func (f *failure) Unwrap() error { return f.err }

func (f *failure) class() Class {
	if f.err != nil {
		return Down
	}
	return Classify(f.stage, f.reply)
}

// session is one connection. It is used by one probe at a time.
type session struct {
	conn     net.Conn
	in       *bufio.Reader
	lmtp     bool
	features map[string]string
	timeout  time.Duration // of one reply
	dialogue *Dialogue     // nil: nobody reads along

	transactions, refused int
	usedAt                time.Time
	broken                bool // out of step, or told to go
}

// Dialogue is what was said, one line each: "S: ..." and "C: ...".
type Dialogue struct{ Lines []string }

// maxDialogue is the most lines kept.
const maxDialogue = 500

func (d *Dialogue) add(who, line string) {
	if d != nil && len(d.Lines) < maxDialogue {
		d.Lines = append(d.Lines, who+policy.Printable(line))
	}
}

func newSession(conn net.Conn, lmtp bool, timeout time.Duration, d *Dialogue) *session {
	return &session{conn: conn, in: bufio.NewReaderSize(conn, maxLine), lmtp: lmtp, timeout: timeout, dialogue: d}
}

// arm sets the deadline of the next reads and writes: the step's time, or
// ctx's end when that is sooner.
func (s *session) arm(ctx context.Context, timeout time.Duration) error {
	limit := time.Now().Add(timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	err := s.conn.SetDeadline(limit)
	if err == nil {
		err = ctx.Err() // what watch has done may just have been undone
	}
	if err != nil {
		s.broken = true
		return plain(err)
	}
	return nil
}

// watch has what reads or writes give up when ctx is done, until the function
// it returns is called.
func (s *session) watch(ctx context.Context) (end func()) {
	conn := s.conn
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0)) // a connection that is gone gives up anyway
	})
	return func() {
		if !stop() {
			s.broken = true
		}
	}
}

func (s *session) read(ctx context.Context, timeout time.Duration) (Reply, error) {
	defer s.watch(ctx)()
	if err := s.arm(ctx, timeout); err != nil {
		return Reply{}, err
	}
	r, err := readReply(s.in, func(line string) { s.dialogue.add("S: ", line) })
	if err != nil {
		s.broken = true
		return r, plain(err)
	}
	if r.Code == 421 {
		s.broken = true
	}
	return r, nil
}

// write sends commands. What is there before they are sent answers none of
// them: who has said more than he was asked is out of step, and the answer to
// one address would be taken for that to another.
func (s *session) write(ctx context.Context, lines ...string) error {
	if n := s.in.Buffered(); n > 0 {
		s.broken = true
		return fmt.Errorf("%w: %d bytes too many before %s", errReply, n, lines[0])
	}
	var b strings.Builder
	for _, l := range lines {
		s.dialogue.add("C: ", l)
		b.WriteString(l)
		b.WriteString("\r\n")
	}
	defer s.watch(ctx)()
	if err := s.arm(ctx, s.timeout); err != nil {
		return err
	}
	if _, err := io.WriteString(s.conn, b.String()); err != nil {
		s.broken = true
		return plain(err)
	}
	return nil
}

func (s *session) command(ctx context.Context, line string) (Reply, error) {
	if err := s.write(ctx, line); err != nil {
		return Reply{}, err
	}
	return s.read(ctx, s.timeout)
}

// greet waits for the greeting, all of it, before anything is sent.
func (s *session) greet(ctx context.Context, timeout time.Duration, own string) *failure {
	r, err := s.read(ctx, timeout)
	if err != nil {
		return &failure{stage: StageGreeting, err: err}
	}
	if r.Code != 220 {
		return &failure{stage: StageGreeting, reply: r}
	}
	return s.looped(StageGreeting, r, own)
}

// looped notices a server that calls itself by our name. An LMTP server is
// where mail ends; that of this very host has this host's name.
func (s *session) looped(stage Stage, r Reply, own string) *failure {
	if len(r.Lines) > 0 && !s.lmtp {
		name, _, _ := strings.Cut(strings.TrimSpace(r.Lines[0]), " ")
		if own != "" && strings.EqualFold(strings.TrimSuffix(name, "."), own) {
			return &failure{stage: stage, err: fmt.Errorf("%w: it calls itself %s", errLoop, own)}
		}
	}
	return nil
}

var errLoop = errors.New("the next hop is this host")

// hello says EHLO (LHLO), and HELO where that is not understood.
func (s *session) hello(ctx context.Context, own string) *failure {
	verb := "EHLO "
	if s.lmtp {
		verb = "LHLO "
	}
	s.features = nil
	r, err := s.command(ctx, verb+own)
	if err != nil {
		return &failure{stage: StageHello, err: err}
	}
	if !r.positive() && r.Code != 421 && !s.lmtp {
		if r, err = s.command(ctx, "HELO "+own); err != nil {
			return &failure{stage: StageHello, err: err}
		}
		if r.positive() {
			return s.looped(StageHello, r, own)
		}
	}
	if !r.positive() {
		return &failure{stage: StageHello, reply: r}
	}
	s.features = make(map[string]string, len(r.Lines))
	for _, l := range r.Lines[1:] {
		word, args, _ := strings.Cut(strings.TrimSpace(l), " ")
		s.features[strings.ToUpper(word)] = args
	}
	return s.looped(StageHello, r, own)
}

func (s *session) offers(feature string) bool {
	_, ok := s.features[feature]
	return ok
}

// startTLS encrypts the connection. What came in plain text behind the answer
// is thrown away with its buffer, and the features are asked for again.
func (s *session) startTLS(ctx context.Context, cfg *tls.Config, own string) *failure {
	r, err := s.command(ctx, "STARTTLS")
	if err != nil {
		return &failure{stage: StageTLS, err: err}
	}
	if r.Code != 220 {
		return &failure{stage: StageTLS, reply: r}
	}
	if err := s.arm(ctx, s.timeout); err != nil {
		return &failure{stage: StageTLS, err: err}
	}
	t := tls.Client(s.conn, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		s.broken = true
		s.dialogue.add("-- ", "TLS handshake failed: "+err.Error())
		return &failure{stage: StageTLS, err: fmt.Errorf("handshake: %w", plain(err))}
	}
	state := t.ConnectionState()
	s.dialogue.add("-- ", "TLS: "+tls.VersionName(state.Version)+", "+tls.CipherSuiteName(state.CipherSuite))
	s.conn, s.in = t, bufio.NewReaderSize(t, maxLine)
	return s.hello(ctx, own)
}

// ask is one transaction: MAIL, RCPT for each address, RSET. It returns the
// reply to each RCPT, or why there is none.
func (s *session) ask(ctx context.Context, sender, params string, addresses ...string) ([]Reply, *failure) {
	s.transactions++
	lines := []string{"MAIL FROM:<" + sender + ">" + params}
	for _, a := range addresses {
		lines = append(lines, "RCPT TO:<"+a+">")
	}
	lines = append(lines, "RSET")
	replies := make([]Reply, 0, len(lines))
	for len(replies) < len(lines) {
		next := 1
		if s.offers("PIPELINING") {
			next = len(lines) - len(replies)
			if len(replies) == 0 && len(addresses) > 1 {
				next = 2 // what comes of the others is to leave the first alone
			}
		}
		sure := len(replies)
		together := lines[sure : sure+next]
		if err := s.write(ctx, together...); err != nil {
			if errors.Is(err, errReply) {
				return nil, s.lost(replies, err)
			}
			return answered(replies), s.lost(replies, err)
		}
		for range together {
			r, err := s.read(ctx, s.timeout)
			if err != nil {
				// Who closes has answered what came before; who falls silent, or
				// is out of step, may have left out any reply since the last time
				// he was waited for.
				got := replies
				if errors.Is(err, errTimeout) || errors.Is(err, errReply) || ctx.Err() != nil {
					got = got[:sure]
				}
				return answered(got), s.lost(replies, err)
			}
			replies = append(replies, r)
			if r.Code == 421 {
				return answered(replies[:len(replies)-1]), s.lost(replies, nil)
			}
		}
		// There is no use in going on after a refused sender.
		if !replies[0].positive() && len(replies) < len(lines) {
			if end, err := s.command(ctx, "RSET"); err != nil || !end.positive() {
				s.broken = true
			}
			return nil, &failure{stage: StageMail, reply: replies[0]}
		}
	}
	if !replies[len(replies)-1].positive() {
		s.broken = true // RSET must work
	}
	if n := s.in.Buffered(); n > 0 {
		s.broken = true
		if more, err := s.in.Peek(min(n, 3)); err != nil || string(more) != "421" { // a 421 is a farewell
			return nil, s.lost(replies, fmt.Errorf("%w: %d bytes too many", errReply, n))
		}
	}
	if !replies[0].positive() {
		return nil, &failure{stage: StageMail, reply: replies[0]}
	}
	rcpt := replies[1 : len(replies)-1]
	for _, r := range rcpt {
		if !r.positive() {
			s.refused++
		}
	}
	return rcpt, nil
}

// answered are the replies to RCPT among those that came before the
// connection was lost.
func answered(replies []Reply) []Reply {
	if len(replies) < 2 || !replies[0].positive() {
		return nil
	}
	return replies[1:]
}

// lost says at which stage a transaction broke off.
func (s *session) lost(replies []Reply, err error) *failure {
	stage := StageMail
	if len(replies) > 0 && replies[0].positive() {
		stage = StageRcpt
	}
	if err == nil {
		return &failure{stage: stage, reply: replies[len(replies)-1]}
	}
	return &failure{stage: stage, err: err}
}

// quitTimeout is the most time for a polite end.
const quitTimeout = 2 * time.Second

// close ends the connection, politely if it still is in step.
func (s *session) close() {
	if !s.broken {
		ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
		defer cancel()
		if s.write(ctx, "QUIT") == nil {
			_, _ = s.read(ctx, quitTimeout) // whatever it says
		}
	}
	_ = s.conn.Close() // nothing is lost
}

// plain drops addresses and operations from a network error, which says what
// happened to somebody who knows with whom.
func plain(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection was closed")
	case errors.Is(err, context.DeadlineExceeded):
		return errTimeout
	}
	if t, ok := err.(interface{ Timeout() bool }); ok && t.Timeout() {
		return errTimeout
	}
	return err
}

var errTimeout = errors.New("no answer in time")

// quote writes an address for the wire: a local part that is no dot-atom in
// quotes (RFC 5321 section 4.1.2).
func quote(a policy.Address) string {
	plain := a.Local != "" && a.Local[0] != '.' && a.Local[len(a.Local)-1] != '.' && !strings.Contains(a.Local, "..")
	for i := range len(a.Local) {
		c := a.Local[i]
		if c <= ' ' || c == 0x7f || strings.IndexByte(`()<>[]:;@\,"`, c) >= 0 {
			plain = false
		}
	}
	if plain {
		return a.Local + "@" + a.Domain
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(a.Local) {
		if c := a.Local[i]; c == '"' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(a.Local[i])
	}
	b.WriteString(`"@`)
	b.WriteString(a.Domain)
	return b.String()
}
