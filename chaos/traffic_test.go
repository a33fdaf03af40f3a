package chaos

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/policytest"
)

// verdict is what a client learns.
type verdict string

// The verdicts.
const (
	passed  verdict = "passed"
	delayed verdict = "delayed"
	refused verdict = "refused"
	failed  verdict = "451"
	strange verdict = "strange"
)

// kind is what a request is about, and so what is the right answer.
type kind int

const (
	acquainted kind = iota // has passed before: passes, whatever is broken
	denied                 // on a list in memory: is refused, whatever is broken
	listed                 // on a list in the DNS: is refused, unless the DNS is broken
	newcomer               // has never been seen: is delayed, unless the store is broken
	returning              // was delayed, and comes back in time: passes
)

func (k kind) String() string {
	return [...]string{"acquainted", "denied", "listed", "newcomer", "returning"}[k]
}

// right reports whether a verdict is a right one. broken is what may be missing.
func (k kind) right(v verdict, broken part) bool {
	switch k {
	case acquainted, returning:
		return v == passed
	case denied:
		return v == refused
	case listed:
		return v == refused || broken == theDNS && (v == passed || v == delayed)
	case newcomer:
		return v == delayed || broken == theStore && v == passed
	}
	return false
}

// part is something that the daemon stands on.
type part int

const (
	nothing part = iota
	theStore
	theDNS
)

// contact is who wants to write to whom.
type contact struct {
	kind            kind
	client, sender  string
	first           time.Time // of a newcomer that returns
	when            time.Time // it does
	recipient, helo string
}

// greeting is what the client says in HELO.
func (c *contact) greeting() string {
	if c.helo != "" {
		return c.helo
	}
	return "mail.example.org"
}

var serial atomic.Int64

// someone makes a contact of a kind that nobody has seen, but for acquainted
// ones, of which there are a few.
func someone(k kind) *contact {
	n := serial.Add(1)
	c := &contact{kind: k, sender: fmt.Sprintf("s%d@example.org", n), recipient: "b@example.com"}
	switch k {
	case denied:
		c.client = fmt.Sprintf("203.0.113.%d", n%256)
	case listed:
		c.client = fmt.Sprintf("198.18.%d.%d", n>>8&255, n&255)
	default: // each in a network of its own, so that none earns credit
		c.client = fmt.Sprintf("11.%d.%d.7", n>>8&255, n&255)
	}
	return c
}

// tally is what became of the requests.
type tally struct {
	mu              sync.Mutex
	requests, mails int
	wrong           []string
	failures        []string // 451s
	slowest         time.Duration
	lost            time.Duration
}

// asker asks what becomes of a contact.
type asker interface {
	ask(c *contact) (verdict, string)
	close()
}

// judge asks, and counts the answer. It returns the contact if it is to come back.
func (w *world) judge(a asker, c *contact, broken part) *contact {
	troubled, before := w.trouble.Load(), w.episodes.Load()
	start := time.Now()
	v, text := a.ask(c)
	took := time.Since(start)
	if !troubled && w.episodes.Load() == before {
		broken = nothing
	}
	w.tally.mu.Lock()
	defer w.tally.mu.Unlock()
	if _, ok := a.(*smtpAsker); ok {
		w.tally.mails++
	} else {
		w.tally.requests++
	}
	w.tally.slowest = max(w.tally.slowest, took)
	switch {
	case v == failed:
		w.tally.failures = append(w.tally.failures, fmt.Sprintf("%v: %s", c.kind, text))
	case c.kind.right(v, broken):
	case c.kind == returning && v == delayed:
		age, ok := w.lost(c.first)
		if !ok {
			w.tally.wrong = append(w.tally.wrong, fmt.Sprintf("%v of %v: %v after %v: %s", c.kind, c.sender, v, time.Since(c.first), text))
			break
		}
		w.tally.lost = max(w.tally.lost, age)
	default:
		w.tally.wrong = append(w.tally.wrong, fmt.Sprintf("%v (in trouble: %v): %v: %s", c.kind, troubled, v, text))
	}
	if c.kind != newcomer || v != delayed {
		return nil
	}
	again := *c
	again.kind, again.first, again.when = returning, start, time.Now().Add(delay+delay/2)
	return &again
}

// traffic asks steadily until stop is called.
func (w *world) traffic(known []*contact, broken part) (stop func()) {
	var wg sync.WaitGroup
	end := make(chan struct{})
	run := func(a asker, every time.Duration) {
		wg.Go(func() {
			defer a.close()
			tick := time.NewTicker(every)
			defer tick.Stop()
			var back []*contact
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				case <-tick.C:
				}
				var c *contact
				switch {
				case len(back) > 0 && time.Now().After(back[0].when):
					c, back = back[0], back[1:]
				case n%6 == 1:
					c = someone(newcomer)
				case n%6 == 3:
					c = someone(denied)
				case n%6 == 5:
					c = someone(listed)
				default:
					c = known[n%len(known)]
				}
				if again := w.judge(a, c, broken); again != nil {
					back = append(back, again)
				}
			}
		})
	}
	for range 4 {
		run(&doorAsker{socket: w.d.socket()}, 20*time.Millisecond)
	}
	if w.postfix != nil {
		for range 3 {
			run(&smtpAsker{addr: w.postfix.Addr()}, 50*time.Millisecond)
		}
	}
	return sync.OnceFunc(func() { close(end); wg.Wait() })
}

// acquaint makes contacts that pass.
func (w *world) acquaint() []*contact {
	w.t.Helper()
	a := &doorAsker{socket: w.d.socket()}
	defer a.close()
	var out []*contact
	for range 30 {
		c := someone(acquainted)
		if v, text := a.ask(c); v != delayed {
			w.t.Fatalf("a first contact is %s: %s", v, text)
		}
		out = append(out, c)
	}
	for _, c := range out {
		eventually(w.t, "a known contact passes", func() bool { v, _ := a.ask(c); return v == passed })
	}
	return out
}

// doorAsker asks the policy door as smtpd does: when a connection breaks it
// tries once more after a second, and then answers 451 itself
// (smtpd_policy_service_try_limit, smtpd_policy_service_retry_delay).
type doorAsker struct {
	socket string
	conn   net.Conn
	r      *bufio.Reader
	asked  int
}

// policyTimeout is smtpd_policy_service_timeout.
const policyTimeout = 100 * time.Second

func (a *doorAsker) close() {
	if a.conn != nil {
		_ = a.conn.Close() // it may be broken
		a.conn = nil
	}
}

func (a *doorAsker) ask(c *contact) (verdict, string) {
	req := policytest.Sample().With("client_address", c.client, "client_name", "unknown", "reverse_client_name", "unknown",
		"helo_name", c.greeting(), "sender", c.sender, "recipient", c.recipient, "instance", fmt.Sprint("i", serial.Add(1))).Bytes()
	if a.asked++; a.asked%50 == 0 {
		a.close() // smtpd processes come and go
	}
	action, err := a.once(req)
	if err != nil {
		a.close()
		time.Sleep(time.Second)
		action, err = a.once(req)
	}
	if err != nil {
		a.close()
		return failed, err.Error()
	}
	switch {
	case action == "DUNNO", strings.HasPrefix(action, "PREPEND "):
		return passed, action
	case strings.HasPrefix(action, "DEFER_IF_PERMIT 4.2.0 "):
		return delayed, action
	case strings.HasPrefix(action, "554 5.7.1 "):
		return refused, action
	case strings.HasPrefix(action, "451"), strings.HasPrefix(action, "DEFER"):
		return failed, action
	}
	return strange, action
}

func (a *doorAsker) once(req []byte) (string, error) {
	if a.conn == nil {
		conn, err := net.Dial("unix", a.socket)
		if err != nil {
			return "", err
		}
		a.conn, a.r = conn, bufio.NewReader(conn)
	}
	if err := a.conn.SetDeadline(time.Now().Add(policyTimeout)); err != nil {
		return "", err
	}
	if _, err := a.conn.Write(req); err != nil {
		return "", err
	}
	line, err := a.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	empty, err := a.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	action, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "action=")
	if !ok || empty != "\n" {
		return "", fmt.Errorf("answer %q %q", line, empty)
	}
	return action, policytest.Proper(action)
}

// smtpAsker asks a Postfix for a recipient.
type smtpAsker struct {
	addr string
	conn *textproto.Conn
}

func (a *smtpAsker) close() {
	if a.conn != nil {
		_ = a.conn.Close() // the end
		a.conn = nil
	}
}

func (a *smtpAsker) ask(c *contact) (verdict, string) {
	code, text, err := a.once(c)
	if err != nil {
		a.close()
		return failed, err.Error()
	}
	reply := fmt.Sprintf("%d %s", code, text)
	switch {
	case code == 250:
		return passed, reply
	case code == 450 && strings.HasPrefix(text, "4.2.0 "):
		return delayed, reply
	case code == 554 && strings.HasPrefix(text, "5.7.1 "):
		return refused, reply
	case code/100 == 4:
		return failed, reply
	}
	return strange, reply
}

func (a *smtpAsker) once(c *contact) (code int, text string, err error) {
	if a.conn == nil {
		conn, err := net.Dial("tcp", a.addr)
		if err != nil {
			return 0, "", err
		}
		a.conn = textproto.NewConn(conn)
		if _, _, err := a.conn.ReadResponse(220); err != nil {
			return 0, "", err
		}
		if err := a.want(250, "EHLO test.example"); err != nil {
			return 0, "", err
		}
	}
	if err := errors.Join(
		a.want(220, "XCLIENT ADDR="+c.client+" NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]"),
		a.want(250, "EHLO mail.example.org"), a.want(250, "MAIL FROM:<"+c.sender+">"),
	); err != nil {
		return 0, "", err
	}
	if err := a.conn.PrintfLine("RCPT TO:<%s>", c.recipient); err != nil {
		return 0, "", err
	}
	code, text, err = a.conn.ReadResponse(0)
	if te := (*textproto.Error)(nil); errors.As(err, &te) {
		code, text, err = te.Code, te.Msg, nil
	}
	if err != nil {
		return 0, "", err
	}
	return code, text, a.want(250, "RSET")
}

func (a *smtpAsker) want(code int, line string) error {
	if err := a.conn.PrintfLine("%s", line); err != nil {
		return err
	}
	if _, _, err := a.conn.ReadResponse(code); err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	return nil
}

// recovered waits until all is as before, and returns how long that took.
func (w *world) recovered(known []*contact) time.Duration {
	w.t.Helper()
	start := time.Now()
	a := &doorAsker{socket: w.d.socket()}
	defer a.close()
	eventually(w.t, "all is as before", func() bool {
		if !w.d.healthy() {
			return false
		}
		for _, c := range []*contact{someone(newcomer), someone(listed), someone(denied), known[0]} {
			if v, _ := a.ask(c); !c.kind.right(v, nothing) {
				return false
			}
		}
		return true
	})
	return time.Since(start)
}

// check fails the test for what must not be.
func (w *world) check(t *testing.T) {
	t.Helper()
	w.tally.mu.Lock()
	defer w.tally.mu.Unlock()
	c := &w.tally
	if len(c.wrong) > 0 {
		t.Errorf("%d wrong answers:\n%s", len(c.wrong), some(c.wrong))
	}
	if len(c.failures) > 0 {
		t.Errorf("%d times 451:\n%s", len(c.failures), some(c.failures))
	}
	if c.requests < 20 || w.postfix != nil && c.mails < 10 {
		t.Errorf("only %d requests and %d recipients through Postfix", c.requests, c.mails)
	}
	if c.slowest >= policyTimeout {
		t.Errorf("an answer took %v, longer than Postfix waits", c.slowest)
	}
	if t.Failed() {
		t.Logf("the end of the daemon's log:\n%s", w.d.log())
	}
}

// some are the first few of many.
func some(all []string) string { return strings.Join(all[:min(len(all), 8)], "\n") }
