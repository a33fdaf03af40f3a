package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/dialog"
	"postern/internal/certtest"
	"postern/internal/conf"
	"postern/internal/listen"
	"postern/internal/reference"
	"postern/journal"
	"postern/milter"
	"postern/pipeline"
	"postern/policy"
	"postern/policyd"
)

// filter is the milter door over a pipeline, in this process: its checks and
// its inspector are functions.
type filter struct {
	t       *testing.T
	socket  string
	door    *milter.Server
	pipe    *pipeline.Pipeline
	journal *journal.Journal

	mu     sync.Mutex
	judge  func(m *mail) (policy.Judgement, error)
	decide func(req *policy.Request) policy.Verdict
	bodies bool
	mails  []*mail
}

// mail is one message as the inspector was shown it.
type mail struct {
	f      *filter
	req    policy.Request
	to     []string
	fields []policy.Field
	body   bytes.Buffer
	bytes  int
}

func (f *filter) Name() string    { return "test" }
func (f *filter) WantsBody() bool { return f.bodies }
func (f *filter) Inspect(req *policy.Request, to []policy.Address) policy.Inspection {
	m := &mail{f: f, req: *req}
	for _, a := range to {
		m.to = append(m.to, a.Raw)
	}
	return m
}

func (m *mail) Header(f policy.Field) { m.fields = append(m.fields, f) }
func (m *mail) EndOfHeaders()         {}
func (m *mail) Body(p []byte) bool {
	m.bytes += len(p)
	if m.body.Len() < 1<<20 {
		m.body.Write(p)
	}
	return true
}

func (m *mail) End(context.Context) (policy.Judgement, error) {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	m.f.mails = append(m.f.mails, m)
	if m.f.judge == nil {
		return policy.Judgement{}, nil
	}
	return m.f.judge(m)
}

// seen returns the messages that were shown whole.
func (f *filter) seen() []*mail {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.mails)
}

func (f *filter) on(judge func(m *mail) (policy.Judgement, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.judge = judge
}

// envelope is the filter as a check.
type envelope struct{ *filter }

func (e envelope) Name() string { return "envelope" }
func (e envelope) Traits() policy.Traits {
	return policy.Traits{Stages: policy.AllStages}
}

func (e envelope) Evaluate(_ context.Context, req *policy.Request) (policy.Verdict, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.filter.decide == nil {
		return policy.Verdict{}, nil
	}
	return e.filter.decide(req), nil
}

// Decide, Inspect and Wants make a milter.Handler of it.
type byPipeline struct{ p *pipeline.Pipeline }

func (h byPipeline) Decide(ctx context.Context, req *policy.Request, d *policy.Decision) {
	h.p.Decide(ctx, req, d)
}

func (h byPipeline) Inspect(req *policy.Request, to []policy.Address) milter.Content {
	if c := h.p.Inspect(req, to); c != nil {
		return c
	}
	return nil
}

func (h byPipeline) Wants(chain string) milter.Wants {
	content, bodies := h.p.Looks()
	return milter.Wants{Stages: h.p.Stages(chain), Content: content, Bodies: bodies}
}

// startFilter opens the door on a unix socket.
func startFilter(t *testing.T, bodies bool, edit func(*milter.Config, *milter.Options)) *filter {
	t.Helper()
	f := &filter{t: t, socket: filepath.Join(shortDir(t), "m.sock"), bodies: bodies, journal: journal.New(journal.DefaultConfig(), journal.Options{References: reference.NewSource(0), Log: zap.NewNop()})}
	chain := pipeline.DefaultChain()
	chain.Checks = []string{"envelope"}
	reg := prometheus.NewRegistry()
	var err error
	f.pipe, err = pipeline.New(pipeline.Options{
		Chains: map[string]pipeline.ChainConfig{pipeline.DefaultName: chain}, Default: pipeline.DefaultName,
		Steps:      map[string]pipeline.Step{"envelope": {Check: envelope{f}}},
		Inspectors: []pipeline.Inspector{{Inspector: f, Step: conf.Step{Timeout: conf.Duration(time.Minute), OnError: policy.ErrorDefer}}},
		Log:        zap.NewNop(), Metrics: pipeline.NewMetrics(reg), Journal: f.journal,
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := milter.DefaultConfig()
	cfg.Listen = make([]listen.Address, 1)
	if err := cfg.Listen[0].UnmarshalText([]byte("unix:" + f.socket)); err != nil {
		t.Fatal(err)
	}
	o := milter.Options{Handler: byPipeline{f.pipe}, Hostname: "mx.example.com", Log: zap.NewNop(), Metrics: reg}
	if edit != nil {
		edit(&cfg, &o)
	}
	f.door = milter.New(cfg, o)
	if err := f.door.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.door.Stop(context.Background()) }) // some tests leave sessions open
	return f
}

// setting is the line for main.cf.
func (f *filter) setting() string {
	a := f.door.Addresses()[0]
	return "smtpd_milters = " + strings.Replace(a.Network(), "tcp", "inet", 1) + ":" + a.String()
}

// send sends a message as it is, lines ending in LF, and returns the reply to
// its end, or the first that refuses.
func (s *session) send(message string, to ...string) string {
	s.t.Helper()
	s.cmd(250, "MAIL FROM:<ann@example.org> BODY=8BITMIME")
	for _, r := range to {
		if reply := s.say("RCPT TO:<%s>", r); !strings.HasPrefix(reply, "250") {
			s.cmd(250, "RSET")
			return reply
		}
	}
	if reply := s.say("DATA"); !strings.HasPrefix(reply, "354") {
		s.cmd(250, "RSET")
		return reply
	}
	w := s.DotWriter()
	if _, err := w.Write([]byte(message)); err != nil {
		s.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	return s.reply()
}

// take waits for one message, returns it and takes it away.
func (p *postfix) take() string {
	p.t.Helper()
	m := p.messages(1)
	if len(m) != 1 {
		p.t.Fatalf("%d messages were delivered, want one", len(m))
	}
	files, err := filepath.Glob(filepath.Join(p.dir, "mail/box/new/*"))
	if err != nil || len(files) != 1 {
		p.t.Fatal(files, err)
	}
	if err := os.Remove(files[0]); err != nil {
		p.t.Fatal(err)
	}
	return m[0]
}

// received splits a delivered message: its header as fields, without those of
// the delivery and Postfix's own Received, which must come first or after the
// fields in front of it, and its body.
func received(t *testing.T, message string) (header []policy.Field, body string) {
	t.Helper()
	head, body, _ := strings.Cut(message, "\n\n")
	own := false
	for line := range strings.SplitSeq(head, "\n") {
		if line != "" && (line[0] == ' ' || line[0] == '\t') && len(header) > 0 {
			header[len(header)-1].Value += "\n" + line
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("no header line: %q", line)
		}
		header = append(header, policy.Field{Name: name, Value: value})
	}
	return slices.DeleteFunc(header, func(f policy.Field) bool {
		switch f.Name {
		case "Return-Path", "X-Original-To", "Delivered-To":
			return true
		case "Received":
			if !own && strings.Contains(f.Value, "by mx.example.com (Postfix)") {
				own = true
				return true
			}
		}
		return false
	}), body
}

func asText(header []policy.Field) string {
	var b strings.Builder
	for _, f := range header {
		b.WriteString(f.Name + ":" + f.Value + "\n")
	}
	return b.String()
}

// edited makes the edits as policy.Edit says.
func edited(header []policy.Field, edits []policy.Edit) (out []policy.Field) {
	for i := 0; i <= len(header); i++ {
		for _, e := range edits {
			if e.Kind == policy.InsertField && e.At == i {
				out = append(out, policy.Field{Name: e.Name, Value: e.Value})
			}
		}
		if i == len(header) {
			return out
		}
		f, keep := header[i], true
		for _, e := range edits {
			if e.At == i && e.Kind == policy.ReplaceField {
				f, keep = policy.Field{Name: e.Name, Value: e.Value}, true
			}
			keep = keep && (e.At != i || e.Kind != policy.DeleteField)
		}
		if keep {
			out = append(out, f)
		}
	}
	return out
}

// Any edits of any header, through Postfix, come out as the edits say: many
// messages in one session.
func TestMilterEditsOfHeaders(t *testing.T) {
	t.Parallel()
	f := startFilter(t, false, nil)
	p := startPostfix(t, false, f.setting(), "header_size_limit = 102400")
	s := p.dial("192.0.2.7", "mail.example.org")
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"Received", "Subject", "X-A", "x-a", "X-B", "List-Id"}
	values := []string{
		" plain", "\ttab", "  two spaces", "none", " folded\n\tonce", " folded\n  twice\n\tand again", "\n from the start",
		" gr\u00fc\u00dfe \u65e5\u672c", " \xff\xfe 8-bit", " 100% of it: \"x\" \\ <y>", " " + strings.Repeat("long ", 11_000), " trailing ",
	}
	field := func() policy.Field {
		return policy.Field{Name: names[r.IntN(len(names))], Value: values[r.IntN(len(values))]}
	}
	for n := range 150 {
		// Names and values that Postfix leaves alone, and From, Date and
		// Message-Id, so that it adds none.
		header := []policy.Field{{Name: "From", Value: " ann@example.org"}}
		for range r.IntN(7) {
			header = append(header, field())
		}
		header = append(header, policy.Field{Name: "Date", Value: " Thu, 1 Jan 1970 00:00:00 +0000"}, policy.Field{Name: "Message-Id", Value: " <1@example.org>"})
		var edits []policy.Edit
		for range r.IntN(6) {
			x := field()
			e := policy.Edit{Kind: policy.EditKind(r.IntN(3)), At: r.IntN(len(header) + 1), Name: x.Name, Value: x.Value}
			if e.At == len(header) {
				e.Kind = policy.InsertField
			}
			edits = append(edits, e)
		}
		f.on(func(m *mail) (policy.Judgement, error) {
			if asText(m.fields) != asText(header) {
				t.Errorf("message %d was shown as\n%.2000s\nsent\n%.2000s", n, asText(m.fields), asText(header))
			}
			return policy.Judgement{Edits: edits}, nil
		})
		matches(t, "the message", s.send(asText(header)+"\nbody\n", "box@example.com"), `^250 `)
		got, body := received(t, p.take())
		if want := edited(header, edits); asText(got) != asText(want) || body != "body\n" {
			t.Fatalf("message %d\nsent\n%.3000s\nedits %.3000s\ngot\n%.3000s\nwant\n%.3000s", n, asText(header), fmt.Sprint(edits), asText(got), asText(want))
		}
	}
}

// eml is a short message with a subject.
func eml(subject string) string {
	return "From: ann@example.org\nDate: Thu, 1 Jan 1970 00:00:00 +0000\nMessage-Id: <1@example.org>\nSubject: " + subject + "\n\nbody\n"
}

// queue lists the queue ids in one of Postfix's queues.
func (p *postfix) queue(name string) []string {
	p.t.Helper()
	files, err := filepath.Glob(filepath.Join(p.dir, "queue", name, "*"))
	if err != nil {
		p.t.Fatal(err)
	}
	return files
}

// logged waits until Postfix has logged what matches.
func (p *postfix) logged(pattern string) {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.Now().Add(patience)
	for !re.MatchString(p.log()) {
		if time.Now().After(deadline) {
			p.t.Fatalf("Postfix has not logged %s\n%s", pattern, p.log())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// noComplaint fails the test when Postfix has complained about the filter.
func (p *postfix) noComplaint() {
	p.t.Helper()
	for line := range strings.Lines(p.log()) {
		if strings.Contains(line, "file system clock") || strings.Contains(line, "resetting file time stamps") {
			continue // of a busy machine
		}
		if strings.Contains(line, "warning:") || strings.Contains(line, "error:") || strings.Contains(line, "fatal:") || strings.Contains(line, "panic:") {
			p.t.Errorf("Postfix complains: %s", line)
		}
	}
}

func verdict(a policy.Action, code int, text string) policy.Verdict {
	return policy.Verdict{Action: a, Reason: "test", Reply: policy.Reply{Code: code, Enhanced: fmt.Sprintf("%d.7.1", code/100), Text: text}}
}

// Every verdict about content, and every edit beside those of the header, has
// its effect: one after the other in one session.
func TestMilterEffects(t *testing.T) {
	t.Parallel()
	f := startFilter(t, true, nil)
	p := startPostfix(t, false, f.setting(), "virtual_alias_maps = inline:{ { list@example.com = one@example.com two@example.com } }",
		"virtual_mailbox_maps = inline:{box@example.com=box/ bcc@example.com=bcc/ one@example.com=one/ two@example.com=two/ Mixed@example.com=mixed/ other@example.com=other/}")
	s := p.dial("192.0.2.7", "mail.example.org")
	delivered := func(box string) int {
		files, err := filepath.Glob(filepath.Join(p.dir, "mail", box, "new/*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	next := func(j policy.Judgement, err error) {
		f.on(func(*mail) (policy.Judgement, error) { return j, err })
	}
	// empty waits until all that was accepted has been delivered.
	empty := func() {
		t.Helper()
		deadline := time.Now().Add(patience)
		for len(p.queue("incoming"))+len(p.queue("active")) > 0 {
			if time.Now().After(deadline) {
				t.Fatalf("the queue does not become empty\n%s", p.log())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}

	next(policy.Judgement{Verdict: verdict(policy.Reject, 550, "100% spam")}, nil)
	refused := s.send(eml("x"), "box@example.com")
	matches(t, "reject", refused, `^550 5\.7\.1 100% spam \[ref [0-9A-Z]{5}-[0-9A-Z]{5}\]$`)
	ref := regexp.MustCompile(`\[ref (.*)\]`).FindStringSubmatch(refused)
	if rec, err := f.journal.Find(t.Context(), ref[1]); err != nil || rec == nil || rec.Decision.Check != "test" || rec.Stage != policy.StageEndOfMessage || rec.Sender != "ann@example.org" || rec.Recipient != "box@example.com" || rec.QueueID == "" {
		t.Errorf("journal %+v", rec)
	}
	next(policy.Judgement{Verdict: verdict(policy.DeferIfPermit, 451, "later")}, nil)
	matches(t, "defer", s.send(eml("x"), "box@example.com"), `^451 4\.7\.1 later \[ref `)
	next(policy.Judgement{Edits: []policy.Edit{{Kind: policy.DeleteField}}}, errors.New("out of order"))
	matches(t, "error", s.send(eml("x"), "box@example.com"), `^451 4\.3\.0 Temporary local problem, please try again later \[ref `)
	next(policy.Judgement{Verdict: policy.Verdict{Action: policy.Discard}}, nil)
	matches(t, "discard", s.send(eml("x"), "box@example.com"), `^250 `)
	p.logged("milter-discard: END-OF-MESSAGE")

	next(policy.Judgement{Verdict: policy.Verdict{Action: policy.Hold, Reason: "odd one"}, Edits: []policy.Edit{{Kind: policy.InsertField, Name: "X-Held", Value: " yes"}}}, nil)
	matches(t, "hold", s.send(eml("x"), "box@example.com"), `^250 `)
	held := p.queue("hold")
	if len(held) != 1 {
		t.Fatalf("on hold: %v", held)
	}
	if out, err := exec.Command("postcat", "-c", p.config, "-q", filepath.Base(held[0])).CombinedOutput(); err != nil || !strings.Contains(string(out), "X-Held: yes") {
		t.Errorf("on hold: %v %s", err, out)
	}
	empty()
	if n := delivered("box"); n > 0 {
		t.Fatalf("%d messages were delivered that should not", n)
	}

	next(policy.Judgement{Edits: []policy.Edit{{Kind: policy.AddRecipient, Arg: "bcc@example.com"}}}, nil)
	matches(t, "add recipient", s.send(eml("x"), "box@example.com"), `^250 `)
	empty()
	if delivered("box") != 1 || delivered("bcc") != 1 {
		t.Errorf("added: %d and %d", delivered("box"), delivered("bcc"))
	}
	next(policy.Judgement{Edits: []policy.Edit{{Kind: policy.ReplaceRecipient, Arg: "other@example.com"}, {Kind: policy.AddRecipient, Arg: "bcc@example.com"}}}, nil)
	matches(t, "redirect", s.send(eml("x"), "box@example.com", "list@example.com", "Mixed@example.com"), `^250 `)
	empty()
	if delivered("other") != 1 || delivered("box") != 1 || delivered("one")+delivered("two")+delivered("mixed") != 0 || delivered("bcc") != 1 {
		t.Errorf("redirected: %d other, %d box, %d one, %d two, %d mixed, %d bcc", delivered("other"), delivered("box"), delivered("one"), delivered("two"), delivered("mixed"), delivered("bcc"))
	}
	next(policy.Judgement{Verdict: policy.Verdict{Action: policy.Redirect, Arg: "box@example.com"}}, nil)
	matches(t, "redirect to one of them", s.send(eml("x"), "one@example.com", "box@example.com"), `^250 `)
	empty()
	if delivered("box") != 2 || delivered("one") != 0 {
		t.Errorf("redirected to one of them: %d box, %d one", delivered("box"), delivered("one"))
	}

	body := strings.Repeat("a new line\r\n", 20_000)
	next(policy.Judgement{Edits: []policy.Edit{{Kind: policy.ReplaceBody, Body: []byte(body)}, {Kind: policy.InsertField, At: 4, Name: "X-Last", Value: " one"}}}, nil)
	matches(t, "body", s.send(eml("x"), "one@example.com"), `^250 `)
	empty()
	files, _ := filepath.Glob(filepath.Join(p.dir, "mail/one/new/*"))
	b, err := os.ReadFile(files[0])
	if header, text := received(t, string(b)); err != nil || text != strings.ReplaceAll(body, "\r", "") || header[len(header)-1].Name != "X-Last" {
		t.Errorf("%v: a body of %d bytes, header %s", err, len(text), asText(header))
	}
	next(policy.Judgement{Edits: []policy.Edit{{Kind: policy.ReplaceBody}}}, nil)
	matches(t, "empty body", s.send(eml("x"), "two@example.com"), `^250 `)
	empty()
	if _, text := received(t, p.takeFrom("two")); text != "" {
		t.Errorf("an empty body has %q", text)
	}

	next(policy.Judgement{Verdict: policy.Verdict{Add: []policy.Header{{Name: "X-One", Value: "1"}, {Name: "X-Two", Value: "2"}}}}, nil)
	matches(t, "headers on top", s.send(eml("x"), "two@example.com"), `^250 `)
	if m := p.takeFrom("two"); !regexp.MustCompile(`(?m)^X-One: 1\nX-Two: 2\nReceived: from `).MatchString(m) {
		t.Errorf("header fields on top:\n%s", m)
	}
	p.noComplaint()
	for _, m := range f.seen() {
		if m.body.String() != "body\r\n" || m.req.Client.Name != "mail.example.org" || m.req.Client.Addr.String() != "192.0.2.7" || m.req.Helo != "mail.example.org" || m.req.QueueID == "" {
			t.Errorf("shown %q of %+v", m.body.String(), m.req)
		}
	}
}

// The envelope is judged by the milter alone.
func TestMilterEnvelope(t *testing.T) {
	t.Parallel()
	f := startFilter(t, false, func(c *milter.Config, _ *milter.Options) { c.Envelope = true })
	p := startPostfix(t, false, f.setting())
	f.mu.Lock()
	f.decide = func(req *policy.Request) policy.Verdict {
		switch req.Recipient.Local {
		case "refused":
			return verdict(policy.Reject, 550, "50% off")
		case "later":
			return verdict(policy.DeferIfPermit, 450, "later")
		case "held":
			return policy.Verdict{Action: policy.Hold, Reason: "held"}
		case "gone":
			return policy.Verdict{Action: policy.Discard}
		case "moved":
			return policy.Verdict{Action: policy.Redirect, Arg: "box@example.com"}
		}
		if req.Sender.Local == "bad" {
			return verdict(policy.Reject, 554, "bad sender")
		}
		return policy.Verdict{Action: policy.Permit, Add: []policy.Header{{Name: "X-Greylist", Value: "delayed"}}}
	}
	f.mu.Unlock()
	s := p.dial("192.0.2.7", "mail.example.org")
	to := []string{"a@example.com", "refused@example.com", "later@example.com", "b@example.com", "nobody@example.net"}
	rcpt, data := s.mail("ann@example.org", to...)
	for i, want := range []string{`^250 `, `^550 5\.7\.1 50% off \[ref [0-9A-Z-]+\]$`, `^450 4\.7\.1 later \[ref `, `^250 `, `^554 5\.7\.1 .*Relay access denied`} {
		matches(t, to[i], rcpt[i], want)
	}
	matches(t, "the message", data, `^250 `)
	for _, m := range p.messages(2) {
		if n := strings.Count(m, "X-Greylist: delayed\n"); n != 1 {
			t.Errorf("%d fields were added:\n%s", n, m)
		}
	}
	rcpt, data = s.mail("ann@example.org", "held@example.com", "a@example.com")
	matches(t, "held", rcpt[0]+" "+data, `^250 .* 250 `)
	if held := p.queue("hold"); len(held) != 1 {
		t.Errorf("on hold: %v", held)
	}
	rcpt, data = s.mail("ann@example.org", "a@example.com", "gone@example.com", "refused@example.com")
	matches(t, "gone", rcpt[1]+" "+data, `^250 .* 250 `)
	p.logged("milter-discard: RCPT")
	rcpt, data = s.mail("ann@example.org", "moved@example.com")
	matches(t, "moved", rcpt[0]+" "+data, `^250 .* 250 `)
	p.messages(3)
	p.logged(`to=<box@example\.com>, relay=virtual.*status=sent`)

	// Probes of other systems, and what only says it is one.
	rcpt, _ = s.mail("bad@example.org", "a@example.com")
	matches(t, "a bad sender", rcpt[0], `^554 `)
	f.mu.Lock()
	f.decide = func(*policy.Request) policy.Verdict { return verdict(policy.Reject, 554, "no") }
	f.mu.Unlock()
	s.cmd(250, "MAIL FROM:<double-bounce@mx.example.com>")
	s.cmd(250, "RCPT TO:<a@example.com>")
	s.cmd(250, "RSET")
	rcpt, data = s.mail("double-bounce@mx.example.com", "a@example.com")
	matches(t, "a probe's recipient", rcpt[0], `^250 `)
	matches(t, "a message of a probe", data, `^554 5\.7\.1 no \[ref`)
	s = p.dial("192.0.2.7", "mail.example.org")
	rcpt, _ = s.mail("double-bounce@example.org", "a@example.com")
	matches(t, "another host's", rcpt[0], `^554 `)
	p.noComplaint()
}

// The policy door is asked at RCPT and at DATA, the milter sees the content:
// each header field once, and what was found is known.
func TestMilterJoinedWithPolicy(t *testing.T) {
	t.Parallel()
	table := dialog.New(100)
	var mu sync.Mutex
	asked := 0
	door := policyd.New(policyd.DefaultConfig(), handlerFunc(func(_ context.Context, req *policy.Request, d *policy.Decision) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		req.Facts.SPF = policy.SPF{Result: "pass", Domain: req.Sender.Domain}
		if req.Recipient.Local != "plain" {
			d.Headers = append(d.Headers, policy.Header{Name: "X-Greylist", Value: "delayed"}, policy.Header{Name: "Received-SPF", Value: "pass"})
		}
		if req.Recipient.Local == "held" {
			d.Verdict.Action, d.Verdict.Reason = policy.Hold, "odd"
		}
	}), nil, zap.NewNop(), prometheus.NewRegistry())
	door.Join(table)
	cfg := policyd.DefaultConfig()
	cfg.Listen = cfg.Listen[:1]
	socket := filepath.Join(shortDir(t), "p.sock")
	if err := cfg.Listen[0].UnmarshalText([]byte("unix:" + socket)); err != nil {
		t.Fatal(err)
	}
	if err := door.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = door.Stop(context.Background()) }) // the end

	f := startFilter(t, false, func(_ *milter.Config, o *milter.Options) { o.Dialogs = table })
	p := startPostfix(t, false, append(restrictions("unix:"+socket), f.setting())...)
	s := p.dial("192.0.2.7", "mail.example.org")
	counts := func(what, message string, want int) {
		t.Helper()
		if a, b := strings.Count(message, "X-Greylist: delayed\n"), strings.Count(message, "Received-SPF: pass\n"); a != want || b != want {
			t.Errorf("%s: %d and %d fields, want %d\n%s", what, a, b, want, message)
		}
	}
	rcpt, data := s.mail("ann@example.org", "a@example.com", "b@example.com", "plain@example.com")
	matches(t, "the message", rcpt[2]+" "+data, `^250 .* 250 `)
	for _, m := range p.messages(3) {
		counts("joined", m, 1)
		if !regexp.MustCompile(`(?m)^X-Greylist: delayed\nReceived-SPF: pass\nReceived: from `).MatchString(m) {
			t.Errorf("not on top:\n%s", m)
		}
	}
	if seen := f.seen(); len(seen) != 1 || seen[0].req.Facts.SPF.Result != "pass" || len(seen[0].to) != 3 {
		t.Errorf("the inspector was shown %d messages", len(seen))
	}
	// What was learned of a message that was given up is not of the next.
	s.cmd(250, "MAIL FROM:<ann@example.org>")
	s.cmd(250, "RCPT TO:<a@example.com>")
	s.cmd(250, "RSET")
	_, data = s.mail("ann@example.org", "plain@example.com")
	matches(t, "a plain message", data, `^250 `)
	plain := ""
	for _, m := range p.messages(4) {
		if strings.Contains(m, "X-Original-To: plain") && !strings.Contains(m, "X-Greylist") {
			plain = m
		}
	}
	counts("plain", plain, 0)
	// A message that is held has no room for a field in the policy answer.
	_, data = s.mail("ann@example.org", "held@example.com")
	matches(t, "a held message", data, `^250 `)
	held := p.queue("hold")
	if len(held) != 1 {
		t.Fatalf("on hold: %v", held)
	}
	out, err := exec.Command("postcat", "-c", p.config, "-q", filepath.Base(held[0])).CombinedOutput()
	if err != nil || strings.Count(string(out), "X-Greylist: delayed") != 1 {
		t.Errorf("on hold: %v %s", err, out)
	}
	// Without the milter the policy door hands them out.
	q := startPostfix(t, false, restrictions("unix:"+socket)...)
	s = q.dial("192.0.2.7", "mail.example.org")
	if _, data = s.mail("ann@example.org", "a@example.com"); !strings.HasPrefix(data, "250") {
		t.Error(data)
	}
	counts("policy alone", q.take(), 1)
	p.noComplaint()
	if mu.Lock(); asked < 10 {
		t.Errorf("the policy door was asked %d times", asked)
	}
	mu.Unlock()
}

type handlerFunc func(ctx context.Context, req *policy.Request, d *policy.Decision)

func (f handlerFunc) Decide(ctx context.Context, req *policy.Request, d *policy.Decision) {
	f(ctx, req, d)
}

func TestMilterLargeMessages(t *testing.T) {
	t.Parallel()
	f := startFilter(t, true, nil)
	p := startPostfix(t, false, f.setting(), "message_size_limit = 104857600", "virtual_mailbox_limit = 104857600", "mailbox_size_limit = 104857600")
	s := p.dial("192.0.2.7", "mail.example.org")

	line := strings.Repeat("x", 99) + "\n"
	matches(t, "50 MB", s.send(eml("big")+strings.Repeat(line, 500_000), "box@example.com"), `^250 `)
	if m := f.seen()[0]; m.bytes != 500_000*101+len("body\r\n") {
		t.Errorf("%d bytes of the body were shown", m.bytes)
	}
	if got := p.take(); len(got) < 50_000_000 {
		t.Errorf("%d bytes were delivered", len(got))
	}

	var many strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&many, "X-Field-%d: %d\n", i%10, i)
	}
	f.on(func(m *mail) (policy.Judgement, error) {
		return policy.Judgement{Edits: []policy.Edit{
			{Kind: policy.DeleteField, At: 5_003},
			{Kind: policy.ReplaceField, At: 9_999, Name: "X-Field-9", Value: " changed"},
			{Kind: policy.InsertField, At: 7_000, Name: "X-New", Value: " new"},
			{Kind: policy.InsertField, At: len(m.fields), Name: "X-End", Value: " end"},
		}}, nil
	})
	matches(t, "10,000 header fields", s.send(many.String()+eml("many"), "box@example.com"), `^250 `)
	shown := f.seen()[1].fields
	if len(shown) < 10_004 {
		t.Errorf("%d fields were shown", len(shown))
	}
	header, _ := received(t, p.take())
	want := edited(shown, []policy.Edit{
		{Kind: policy.DeleteField, At: 5_003},
		{Kind: policy.ReplaceField, At: 9_999, Name: "X-Field-9", Value: " changed"},
		{Kind: policy.InsertField, At: 7_000, Name: "X-New", Value: " new"},
		{Kind: policy.InsertField, At: len(shown), Name: "X-End", Value: " end"},
	})
	if asText(header) != asText(want) {
		t.Error("10,000 header fields: they are not as edited")
	}

	// Postfix cuts a header field at 60000 bytes while a milter is in use.
	long := "X-Long:" + strings.Repeat(" "+strings.Repeat("y", 70)+"\n", 1400)
	f.on(func(m *mail) (policy.Judgement, error) {
		return policy.Judgement{Edits: []policy.Edit{
			{Kind: policy.ReplaceField, At: 0, Name: "X-Long", Value: m.fields[0].Value}, // as it is
			{Kind: policy.InsertField, At: 1, Name: "X-Longer", Value: " " + strings.Repeat("z ", 50_000)},
		}}, nil
	})
	matches(t, "a field of 100,000 bytes", s.send(long+eml("long"), "box@example.com"), `^250 `)
	header, _ = received(t, p.take())
	if header[0].Name != "X-Long" || len(header[0].Value) < 50_000 || header[1].Name != "X-Longer" || len(header[1].Value) < 50_000 || header[2].Name != "From" {
		t.Errorf("long fields: %s %d, %s %d", header[0].Name, len(header[0].Value), header[1].Name, len(header[1].Value))
	}

	// A client that goes away in the middle of a message.
	gone := p.dial("192.0.2.8", "mail.example.org")
	gone.cmd(250, "MAIL FROM:<ann@example.org>")
	gone.cmd(250, "RCPT TO:<box@example.com>")
	gone.cmd(354, "DATA")
	if err := gone.PrintfLine("Subject: x\r\n\r\n%s", strings.Repeat("x", 100_000)); err != nil {
		t.Fatal(err)
	}
	_ = gone.Close() // in the middle
	p.logged(`lost connection after DATA .*192\.0\.2\.8`)
	before := len(f.seen())
	f.on(nil)
	matches(t, "another session", p.dial("192.0.2.9", "mail.example.org").send(eml("x"), "box@example.com"), `^250 `)
	if n := len(f.seen()); n != before+1 {
		t.Errorf("%d messages were shown after one was given up", n-before)
	}
	p.noComplaint()
}

// A second EHLO, RSET and STARTTLS change what they should and nothing else.
func TestMilterSeveralMessages(t *testing.T) {
	t.Parallel()
	f := startFilter(t, false, nil)
	pair := certtest.New(t, "mx.example.com")
	p := startPostfix(t, false, "smtpd_tls_cert_file = "+pair.CertFile, "smtpd_tls_key_file = "+pair.KeyFile, "smtpd_tls_security_level = may", f.setting())
	s := p.dial("192.0.2.7", "mail.example.org")
	var want []string // what was to be shown of each message
	send := func(helo, protocol string, to ...string) {
		t.Helper()
		want = append(want, strings.Join(to, ",")+" "+helo+" "+protocol)
		matches(t, "a message", s.send(eml("x"), to...), `^250 `)
	}
	helo := "mail.example.org"
	send(helo, "", "a@example.com")
	s.cmd(250, "MAIL FROM:<x@example.org>")
	s.cmd(250, "RCPT TO:<x@example.com>")
	s.cmd(250, "RSET")
	s.cmd(250, "RSET")
	send(helo, "", "b@example.com", "c@example.com")
	helo = "other.example.org"
	s.cmd(250, "MAIL FROM:<x@example.org>")
	s.cmd(250, "RCPT TO:<x@example.com>")
	s.cmd(250, "EHLO %s", helo)
	send(helo, "", "d@example.com")
	helo = "third.example.org"
	s.cmd(250, "HELO %s", helo)
	s.cmd(250, "NOOP")
	s.say("XYZZY")
	send(helo, "", "e@example.com")
	s.cmd(221, "QUIT")

	s = p.dial("192.0.2.7", "mail.example.org")
	s.cmd(220, "STARTTLS")
	c := tls.Client(s.conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the test's own certificate
	s.Conn = textproto.NewConn(c)
	helo = "secret.example.org"
	s.cmd(250, "EHLO %s", helo)
	for _, to := range []string{"f@example.com", "g@example.com"} {
		send(helo, "TLSv1.3", to)
	}
	s.cmd(221, "QUIT")

	var got []string
	for _, m := range f.seen() {
		got = append(got, strings.Join(m.to, ",")+" "+m.req.Helo+" "+m.req.TLS.Protocol)
		if m.req.Client.Addr.String() != "192.0.2.7" || m.req.Sender.Raw != "ann@example.org" {
			t.Errorf("shown %+v", m.req)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("shown\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	deadline := time.Now().Add(patience)
	for f.door.Status().Sessions > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions are left", f.door.Status().Sessions)
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.noComplaint()
}

// Mail of local users comes through cleanup(8), which plays the client.
func TestMilterLocalMail(t *testing.T) {
	t.Parallel()
	f := startFilter(t, false, func(c *milter.Config, _ *milter.Options) {
		c.Envelope, c.GreetPause, c.GreetPauseExcept = true, conf.Duration(time.Minute), nil
	})
	f.decide = func(*policy.Request) policy.Verdict { return verdict(policy.Reject, 550, "never asked") }
	p := startPostfix(t, false, "non_smtpd_milters = unix:"+f.socket)
	f.on(func(m *mail) (policy.Judgement, error) {
		return policy.Judgement{Edits: []policy.Edit{{Kind: policy.InsertField, At: 0, Name: "X-Shown", Value: " " + strings.Join(m.to, ",")}}}, nil
	})
	cmd := exec.Command("sendmail", "-C", p.config, "-f", "ann@example.org", "box@example.com")
	cmd.Stdin = strings.NewReader(eml("local"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("sendmail: %v %s", err, out)
	}
	if m := p.take(); !strings.Contains(m, "X-Shown: box@example.com\n") {
		t.Errorf("delivered:\n%s", m)
	}
	p.noComplaint()
}

func TestMilterGreetPause(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var asked []string
	f := startFilter(t, false, func(c *milter.Config, o *milter.Options) {
		c.GreetPause, c.GreetPauseExcept = conf.Duration(300*time.Millisecond), nil
		if err := c.Listen[0].UnmarshalText([]byte("tcp:127.0.0.1:0")); err != nil {
			t.Fatal(err)
		}
		o.Known = func(_ context.Context, c policy.Client) bool {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, c.Addr.String())
			return c.Addr.Is6()
		}
	})
	p := startPostfix(t, false, f.setting())
	greeted := func(addr string) time.Duration {
		t.Helper()
		start := time.Now()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // the end
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	if took := greeted(p.addr()); took < 300*time.Millisecond {
		t.Errorf("greeted after %v", took)
	}
	greeted(net.JoinHostPort("::1", fmt.Sprint(p.port))) // how soon is not measured
	mu.Lock()
	defer mu.Unlock()
	if !slices.Contains(asked, "127.0.0.1") || !slices.Contains(asked, "::1") {
		t.Errorf("asked for %v", asked)
	}
	p.noComplaint()
}

// milterVariable names the socket for TestMilterProcess.
const milterVariable = "POSTERN_TEST_MILTER"

// TestMilterProcess is no test: it is a filter in a process of its own, which
// can be killed. It marks each message, and stops in order when its standard
// input is closed.
func TestMilterProcess(t *testing.T) {
	socket := os.Getenv(milterVariable)
	if socket == "" {
		t.Skip("runs as a process of TestMilterUnderTraffic")
	}
	cfg := milter.DefaultConfig()
	cfg.Listen = make([]listen.Address, 1)
	if err := cfg.Listen[0].UnmarshalText([]byte("unix:" + socket)); err != nil {
		t.Fatal(err)
	}
	f := &filter{}
	f.on(func(*mail) (policy.Judgement, error) {
		return policy.Judgement{Edits: []policy.Edit{{Kind: policy.InsertField, Name: "X-Seen", Value: " yes"}}}, nil
	})
	p, err := pipeline.New(pipeline.Options{
		Chains: map[string]pipeline.ChainConfig{pipeline.DefaultName: pipeline.DefaultChain()}, Default: pipeline.DefaultName,
		Inspectors: []pipeline.Inspector{{Inspector: f}}, Log: zap.NewNop(), Metrics: pipeline.NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		t.Fatal(err)
	}
	door := milter.New(cfg, milter.Options{Handler: byPipeline{p}, Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err := door.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is closed
	if err := door.Stop(context.Background()); err != nil {
		fmt.Println(err)
	}
	os.Exit(0) // no more of this process's tests
}

// process is one run of TestMilterProcess.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

func startProcess(t *testing.T, socket string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0], "-test.run=^TestMilterProcess$")}
	p.cmd.Env = append(os.Environ(), milterVariable+"="+socket)
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = in
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the process says %q, %v", line, err)
	}
	return p
}

func (p *process) stop() {
	_ = p.stdin.Close() // what it waits for
	_ = p.cmd.Wait()    // killed or not
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()         // as above
}

// The filter is stopped, killed and started again under traffic. With
// milter_default_action=accept no client notices; with tempfail none is told
// that a message was taken that the filter has not seen, and none is refused
// for good.
func TestMilterUnderTraffic(t *testing.T) {
	for _, action := range []string{"accept", "tempfail"} {
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(shortDir(t), "m.sock")
			p := startPostfix(t, false, "smtpd_milters = unix:"+socket, "milter_default_action = "+action, "milter_connect_timeout = 5s")
			filter := startProcess(t, socket)

			ctx, cancel := context.WithCancel(t.Context())
			var mu sync.Mutex
			var clients sync.WaitGroup
			accepted, deferred := 0, 0
			wrong := ""
			for i := range 4 {
				clients.Go(func() {
					for ctx.Err() == nil {
						a, d, err := twoMessages(p.addr(), i)
						mu.Lock()
						accepted, deferred = accepted+a, deferred+d
						if err != nil && wrong == "" {
							wrong = err.Error()
						}
						mu.Unlock()
					}
				})
			}
			count := func() (a, d int) {
				mu.Lock()
				defer mu.Unlock()
				return accepted, deferred
			}
			// some waits until the clients have got somewhere.
			some := func(what string, until func(a, d int) bool) {
				t.Helper()
				deadline := time.Now().Add(patience)
				for a, d := count(); !until(a, d); a, d = count() {
					if time.Now().After(deadline) {
						t.Fatalf("%s: %d accepted and %d deferred, no more", what, a, d)
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
			for round := range 2 {
				a, _ := count()
				some("with a filter", func(b, _ int) bool { return b > a+20 })
				if round == 0 {
					filter.stop()
				} else {
					filter.kill()
				}
				a, d := count()
				some("without one", func(b, e int) bool {
					if action == "accept" {
						return b > a+20
					}
					return e > d+20
				})
				filter = startProcess(t, socket)
			}
			a, _ := count()
			some("in the end", func(b, _ int) bool { return b > a+20 })
			cancel()
			clients.Wait()
			if wrong != "" {
				t.Error(wrong)
			}
			a, d := count()
			if action == "accept" && d > 0 {
				t.Errorf("%d of %d messages were deferred", d, a+d)
			}
			seen := 0
			for _, m := range p.messages(a) {
				if strings.Contains(m, "X-Seen: yes\n") {
					seen++
				} else if action == "tempfail" {
					t.Fatalf("a message was taken that the filter has not seen:\n%s", m)
				}
			}
			t.Logf("%d accepted, %d of them seen, %d deferred", a, seen, d)
		})
	}
}

// twoMessages sends two messages in one session and counts what became of
// them. An error is an answer that no client should get.
func twoMessages(addr string, i int) (accepted, deferred int, err error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, 0, nil // Postfix has no process for it
	}
	defer c.Close()                                 //nolint:errcheck // the end
	_ = c.SetDeadline(time.Now().Add(2 * patience)) // a dead session is an error
	tc := textproto.NewConn(c)
	_, _, err = tc.ReadResponse(220)
	say := func(format string, args ...any) (int, string) {
		if err != nil {
			return 0, ""
		}
		if err = tc.PrintfLine(format, args...); err != nil {
			return 0, ""
		}
		var code int
		var text string
		code, text, err = tc.ReadResponse(0)
		if te := (*textproto.Error)(nil); errors.As(err, &te) {
			code, text, err = te.Code, te.Msg, nil
		}
		return code, text
	}
	if te := (*textproto.Error)(nil); errors.As(err, &te) && te.Code/100 == 4 {
		return 0, 1, nil
	}
	say("EHLO client%d.example.org", i)
	for range 2 {
		for _, line := range []string{"MAIL FROM:<ann@example.org>", "RCPT TO:<box@example.com>", "DATA", eml("x") + "."} {
			code, text := say("%s", strings.ReplaceAll(strings.ReplaceAll(line, "\r\n", "\n"), "\n", "\r\n"))
			switch {
			case err != nil:
				if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
					return accepted, deferred, nil // 421 has been said
				}
				return accepted, deferred, err
			case code/100 == 4:
				deferred++
				if code == 421 {
					return accepted, deferred, nil
				}
				say("RSET")
			case code/100 == 5:
				return accepted, deferred, fmt.Errorf("%.20s: %d %s", line, code, text)
			case strings.HasPrefix(line, "From:"):
				accepted++
			default:
				continue
			}
			break
		}
	}
	say("QUIT")
	return accepted, deferred, nil
}

// miltertest(8) is another implementation of the MTA's side.
func TestMilterAgainstMiltertest(t *testing.T) {
	t.Parallel()
	requireOnly(t, "miltertest")
	f := startFilter(t, true, func(c *milter.Config, _ *milter.Options) { c.Envelope = true })
	f.decide = func(req *policy.Request) policy.Verdict {
		if req.Recipient.Local == "refused" {
			return verdict(policy.Reject, 550, "no")
		}
		return policy.Verdict{Add: []policy.Header{{Name: "X-Envelope", Value: "seen"}}}
	}
	f.on(func(m *mail) (policy.Judgement, error) {
		for i, h := range m.fields {
			if h.Name == "Subject" && strings.Contains(h.Value, "spam") {
				return policy.Judgement{Verdict: verdict(policy.Reject, 554, "spam")}, nil
			}
			if h.Name == "X-Del" {
				return policy.Judgement{Edits: []policy.Edit{
					{Kind: policy.DeleteField, At: i},
					{Kind: policy.ReplaceRecipient, Arg: "other@example.com"},
					{Kind: policy.ReplaceBody, Body: []byte("new body")},
				}, Verdict: policy.Verdict{Action: policy.Hold, Reason: "odd"}}, nil
			}
		}
		return policy.Judgement{}, nil
	})
	for name, script := range map[string]string{
		"edits": `
check(mt.conninfo(conn, "mail.example.org", "192.0.2.7"), "conninfo")
check(mt.helo(conn, "mail.example.org"), "helo")
check(mt.macro(conn, SMFIC_MAIL, "i", "t-one"), "macro")
check(mt.mailfrom(conn, "ann@example.org"), "mailfrom")
reply(SMFIR_CONTINUE, "mailfrom")
check(mt.rcptto(conn, "box@example.com"), "rcptto")
reply(SMFIR_CONTINUE, "rcptto")
check(mt.rcptto(conn, "refused@example.com"), "rcptto")
reply(SMFIR_REPLYCODE, "rcptto refused")
check(mt.header(conn, "Subject", " hello"), "header")
check(mt.header(conn, "X-Del", " yes"), "header")
check(mt.eoh(conn), "eoh")
check(mt.bodystring(conn, "text\r\n"), "body")
check(mt.eom(conn), "eom")
reply(SMFIR_ACCEPT, "eom")
if not mt.eom_check(conn, MT_HDRDELETE, "X-Del") then error("X-Del is still there") end
if not mt.eom_check(conn, MT_RCPTDELETE, "<box@example.com>") then error("no recipient was deleted") end
if not mt.eom_check(conn, MT_RCPTADD, "<other@example.com>") then error("no recipient was added") end
if not mt.eom_check(conn, MT_QUARANTINE, "odd") then error("it is not held") end
if not mt.eom_check(conn, MT_BODYCHANGE, "new body") then error("the body is not changed") end
if not mt.eom_check(conn, MT_HDRINSERT, "X-Envelope") then error("no field was added") end
`,
		"reject": `
check(mt.conninfo(conn, "localhost", "2001:db8::7"), "conninfo")
check(mt.mailfrom(conn, "ann@example.org"), "mailfrom")
check(mt.rcptto(conn, "box@example.com"), "rcptto")
check(mt.header(conn, "Subject", " spam"), "header")
check(mt.eoh(conn), "eoh")
check(mt.eom(conn), "eom")
reply(SMFIR_REPLYCODE, "eom")
`,
		"several messages": `
check(mt.conninfo(conn, "mail.example.org", "192.0.2.7"), "conninfo")
for i = 1, 3 do
  check(mt.mailfrom(conn, "ann@example.org"), "mailfrom")
  check(mt.rcptto(conn, "box@example.com"), "rcptto")
  if i ~= 2 then
    check(mt.header(conn, "Subject", " hello"), "header")
    check(mt.eoh(conn), "eoh")
    check(mt.bodyrandom(conn, 200000), "body")
    check(mt.eom(conn), "eom")
    reply(SMFIR_ACCEPT, "eom")
  end
  check(mt.abort(conn), "abort")
end
`,
	} {
		lua := filepath.Join(t.TempDir(), "s.lua")
		text := fmt.Sprintf(`
function error(what) mt.echo(what) os.exit(1) end
function check(r, what) if r ~= nil then error(what .. " failed") end end
conn = mt.connect("unix:%s", 40, 0.05)
if conn == nil then error("no connection") end
function reply(want, what) if mt.getreply(conn) ~= want then error(what .. ": reply " .. mt.getreply(conn)) end end
%s
mt.disconnect(conn)
`, f.socket, script)
		if err := os.WriteFile(lua, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("miltertest", "-v", "-s", lua).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if n := len(f.seen()); n != 4 {
		t.Errorf("%d messages were shown", n)
	}
}

// requireOnly is require without root.
func requireOnly(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", tool)
	}
	t.Skipf("%s is not installed (make deps installs it)", tool)
}
