package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/dialog"
	"postern/internal/conf"
	"postern/internal/listen"
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
	f := &filter{t: t, socket: filepath.Join(shortDir(t), "m.sock"), bodies: bodies, journal: journal.New(100)}
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

func (f *filter) setting() string { return "smtpd_milters = unix:" + f.socket }

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

// box waits for the n-th message of a mailbox and returns it, oldest first.
func (p *postfix) box(n int) string {
	p.t.Helper()
	all := p.messages(n)
	return all[len(all)-1]
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
	for _, line := range strings.Split(head, "\n") {
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
	field := func() policy.Field { return policy.Field{Name: names[r.IntN(len(names))], Value: values[r.IntN(len(values))]} }
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

var (
	_ = errors.New
	_ = fmt.Sprint
	_ net.Addr
	_ netip.Addr
	_ *exec.Cmd
	_ *regexp.Regexp
	_ *dialog.Table
	_ *policyd.Server
)
