package milter

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gomilter "github.com/d--j/go-milter"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/dialog"
	"postern/internal/conf"
	"postern/internal/listen"
	"postern/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler is what decides in tests. Nil functions have no objection.
type handler struct {
	wants   Wants
	decide  func(ctx context.Context, req *policy.Request, d *policy.Decision)
	inspect func(req *policy.Request, to []policy.Address) Content

	mu       sync.Mutex
	requests []policy.Request
}

func (h *handler) Decide(ctx context.Context, req *policy.Request, d *policy.Decision) {
	h.mu.Lock()
	h.requests = append(h.requests, *req)
	h.mu.Unlock()
	if h.decide != nil {
		h.decide(ctx, req, d)
	}
}

func (h *handler) Inspect(req *policy.Request, to []policy.Address) Content {
	if h.inspect == nil {
		return nil
	}
	return h.inspect(req, to)
}

func (h *handler) Wants(string) Wants { return h.wants }

func (h *handler) seen() []policy.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.requests)
}

// looked is a Content that keeps what it is shown and ends as it is told.
type looked struct {
	req       *policy.Request
	at        policy.Request // as End saw it
	to        []policy.Address
	fields    []policy.Field
	eoh       int
	body      []byte
	most      int // of the body; 0: all
	abandoned bool
	ended     bool

	verdict policy.Verdict
	headers []policy.Header
	edits   []policy.Edit
	panics  string // the method that panics
}

func (l *looked) crash(method string) {
	if l.panics == method {
		panic("told to: " + method)
	}
}

func (l *looked) Header(f policy.Field) { l.crash("Header"); l.fields = append(l.fields, f) }
func (l *looked) EndOfHeaders()         { l.crash("EndOfHeaders"); l.eoh++ }
func (l *looked) Abandon()              { l.abandoned = true; l.crash("Abandon") }
func (l *looked) Body(p []byte) bool {
	l.crash("Body")
	l.body = append(l.body, p...)
	return l.most == 0 || len(l.body) < l.most
}

func (l *looked) End(_ context.Context, req *policy.Request, d *policy.Decision) []policy.Edit {
	l.crash("End")
	l.ended, l.at = true, *req
	d.Verdict, d.Headers = l.verdict, append(d.Headers, l.headers...)
	return l.edits
}

// logs collects what is logged, from Warn on.
func logs() (*zap.Logger, *observer.ObservedLogs) {
	core, seen := observer.New(zapcore.WarnLevel)
	return zap.New(core), seen
}

// start opens a door on a unix socket and stops it at the end of the test.
// What it logs fails the test, unless the test looks for it.
func start(t testing.TB, h Handler, edit func(*Config, *Options)) (*Server, net.Addr) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Drain = conf.Duration(100 * time.Millisecond)
	cfg.Listen = []listen.Address{unixAddress(t)}
	log, seen := logs()
	o := Options{Handler: h, Hostname: "mx.example.com", Log: log, Metrics: prometheus.NewRegistry()}
	if edit != nil {
		edit(&cfg, &o)
	}
	s := New(cfg, o)
	if err := s.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Stop(context.Background()) // some tests leave messages under way
		if o.Log == log {
			for _, e := range seen.All() {
				t.Errorf("logged: %.2000s", fmt.Sprint(e.Message, e.ContextMap()))
			}
		}
	})
	return s, s.Addresses()[0]
}

func unixAddress(t testing.TB) (a listen.Address) {
	t.Helper()
	if err := a.UnmarshalText([]byte("unix:" + filepath.Join(t.TempDir(), "m.sock"))); err != nil {
		t.Fatal(err)
	}
	return a
}

// mta is the other side: it sends what Postfix does, byte for byte, and does
// not wait for answers that were negotiated away.
type mta struct {
	t       testing.TB
	c       net.Conn
	r       *bufio.Reader
	actions gomilter.OptAction
	steps   gomilter.OptProtocol
	macros  map[uint32]string
}

// The steps that go with events: not sent, not answered.
var noEvent = map[byte]gomilter.OptProtocol{
	codeConnect: gomilter.OptNoConnect, codeHelo: gomilter.OptNoHelo, codeMail: gomilter.OptNoMailFrom, codeRcpt: gomilter.OptNoRcptTo,
	codeData: gomilter.OptNoData, codeHeader: gomilter.OptNoHeaders, codeEOH: gomilter.OptNoEOH, codeBody: gomilter.OptNoBody,
}

var noReply = map[byte]gomilter.OptProtocol{
	codeConnect: gomilter.OptNoConnReply, codeHelo: gomilter.OptNoHeloReply, codeMail: gomilter.OptNoMailReply, codeRcpt: gomilter.OptNoRcptReply,
	codeData: gomilter.OptNoDataReply, codeHeader: gomilter.OptNoHeaderReply, codeEOH: gomilter.OptNoEOHReply, codeBody: gomilter.OptNoBodyReply,
}

func dial(t testing.TB, addr net.Addr) *mta {
	t.Helper()
	return dialOffer(t, addr, 6, 0x1ff, 0x1fffff)
}

func dialOffer(t testing.TB, addr net.Addr, version, actions, steps uint32) *mta {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute)) // a hanging door fails the test
	return negotiated(t, c, version, actions, steps)
}

func negotiated(t testing.TB, c net.Conn, version, actions, steps uint32) *mta {
	t.Helper()
	m := &mta{t: t, c: c, r: bufio.NewReader(c), macros: map[uint32]string{}}
	offer := binary.BigEndian.AppendUint32(nil, version)
	offer = binary.BigEndian.AppendUint32(offer, actions)
	offer = binary.BigEndian.AppendUint32(offer, steps)
	m.write(codeOptions, string(offer))
	code, data := m.read()
	if code != codeOptions || len(data) < 12 {
		t.Fatalf("negotiation: %q %q", code, data)
	}
	m.actions = gomilter.OptAction(binary.BigEndian.Uint32([]byte(data[4:])))
	m.steps = gomilter.OptProtocol(binary.BigEndian.Uint32([]byte(data[8:])))
	if uint32(m.actions)&^actions != 0 || uint32(m.steps)&^steps != 0 {
		t.Errorf("more was taken than offered: %v %v", m.actions, m.steps)
	}
	for rest := data[12:]; rest != ""; {
		list, after, ok := strings.Cut(rest[4:], "\x00")
		if !ok {
			t.Fatalf("macro lists: %q", data[12:])
		}
		m.macros[binary.BigEndian.Uint32([]byte(rest))] = list
		rest = after
	}
	return m
}

func (m *mta) write(code byte, data ...string) {
	m.t.Helper()
	if _, err := m.c.Write(packet(code, data...)); err != nil {
		m.t.Fatalf("%q: %v", code, err)
	}
}

func (m *mta) read() (byte, string) {
	m.t.Helper()
	code, data, err := m.tryRead()
	if err != nil {
		m.t.Fatal(err)
	}
	return code, data
}

func (m *mta) tryRead() (byte, string, error) {
	var head [4]byte
	if _, err := io.ReadFull(m.r, head[:]); err != nil {
		return 0, "", err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(m.r, b); err != nil {
		return 0, "", err
	}
	return b[0], string(b[1:]), nil
}

// event sends an event and returns the answer: its code and text, "" when
// there is none to wait for.
func (m *mta) event(code byte, data ...string) string {
	m.t.Helper()
	if m.steps&noEvent[code] != 0 {
		return ""
	}
	m.write(code, data...)
	if m.steps&noReply[code] != 0 {
		return ""
	}
	c, text := m.read()
	return string(c) + strings.TrimSuffix(text, "\x00")
}

func (m *mta) set(code byte, pairs ...string) {
	m.t.Helper()
	m.write(codeMacros, string(code), strings.Join(append(slices.Clone(pairs), ""), "\x00"))
}

// connect opens the session as Postfix does for a client.
func (m *mta) connect(client string, port uint16) string {
	m.t.Helper()
	m.set(codeConnect, "j", "mx.example.com", "v", "Postfix 3.7.11", "{daemon_addr}", "192.0.2.10", "{daemon_port}", "25", "{client_ptr}", "mail.example.org", "{client_resolve}", "OK")
	family := "4"
	if strings.Contains(client, ":") {
		family = "6"
	}
	return m.event(codeConnect, "mail.example.org\x00", family, string([]byte{byte(port >> 8), byte(port)}), client, "\x00")
}

func (m *mta) helo() string { m.t.Helper(); return m.event(codeHelo, "mail.example.org\x00") }

func (m *mta) mail(from string) string {
	m.t.Helper()
	return m.event(codeMail, "<"+from+">\x00SIZE=1234\x00")
}

func (m *mta) rcpt(to string) string { m.t.Helper(); return m.event(codeRcpt, "<"+to+">\x00") }

// content sends header and body and returns the modifications and the final
// answer.
func (m *mta) content(header []policy.Field, body string) (edits []string, final string) {
	m.t.Helper()
	for _, f := range header {
		m.set(codeHeader, "i", "4abc")
		m.event(codeHeader, f.Name, "\x00", f.Value, "\x00")
	}
	m.event(codeEOH)
	for body != "" {
		n := min(65535, len(body))
		if m.event(codeBody, body[:n]) == "s" {
			break
		}
		body = body[n:]
	}
	return m.end()
}

func (m *mta) end() (edits []string, final string) {
	m.t.Helper()
	m.set(codeEOM, "i", "4abc")
	m.write(codeEOM)
	for {
		code, data := m.read()
		if !strings.ContainsRune(modifications+"p", rune(code)) {
			return edits, string(code) + strings.TrimSuffix(data, "\x00")
		}
		edits = append(edits, readable(code, data))
	}
}

// readable shows a modification with its numbers in decimal.
func readable(code byte, data string) string {
	if code == 'm' || code == 'i' {
		data = fmt.Sprint(binary.BigEndian.Uint32([]byte(data))) + "\x00" + data[4:]
	}
	return string(code) + " " + strings.ReplaceAll(strings.TrimSuffix(data, "\x00"), "\x00", "|")
}

// open is a session that has got as far as RCPT.
func (m *mta) open() *mta {
	m.t.Helper()
	m.connect("192.0.2.7", 40211)
	m.helo()
	m.begin()
	return m
}

func (m *mta) begin() {
	m.t.Helper()
	m.mail("ann@example.org")
	m.rcpt("bob@example.com")
}

var someHeader = []policy.Field{{Name: "From", Value: " ann"}, {Name: "Subject", Value: " hello"}}

func TestNothingIsAskedForThatIsNotUsed(t *testing.T) {
	const edits = gomilter.OptQuarantine | gomilter.OptAddRcpt | gomilter.OptAddRcptWithArgs | gomilter.OptRemoveRcpt
	for _, tt := range []struct {
		name    string
		wants   Wants
		edit    func(*Config, *Options)
		actions gomilter.OptAction
		not     gomilter.OptProtocol // events that do not come, answers that are not waited for
		also    gomilter.OptProtocol
	}{
		{
			"nothing but header fields to hand out",
			Wants{},
			nil, gomilter.OptAddHeader | gomilter.OptSetMacros,
			gomilter.OptNoUnknown | gomilter.OptNoData | gomilter.OptNoHeaders | gomilter.OptNoEOH | gomilter.OptNoBody | gomilter.OptNoReplies, 0,
		},
		{
			"header fields",
			Wants{Content: true},
			nil, gomilter.OptAddHeader | gomilter.OptSetMacros | gomilter.OptChangeHeader | edits,
			gomilter.OptNoUnknown | gomilter.OptNoData | gomilter.OptNoBody | gomilter.OptNoReplies, gomilter.OptHeaderLeadingSpace,
		},
		{
			"bodies",
			Wants{Content: true, Bodies: true},
			nil, gomilter.OptAddHeader | gomilter.OptSetMacros | gomilter.OptChangeHeader | gomilter.OptChangeBody | edits,
			gomilter.OptNoUnknown | gomilter.OptNoData | gomilter.OptNoReplies&^gomilter.OptNoBodyReply, gomilter.OptHeaderLeadingSpace | gomilter.OptSkip,
		},
		{
			"envelope",
			Wants{Stages: policy.Stages(policy.StageRcpt)},
			func(c *Config, _ *Options) { c.Envelope = true },
			gomilter.OptAddHeader | gomilter.OptSetMacros | edits,
			gomilter.OptNoUnknown | gomilter.OptNoHeaders | gomilter.OptNoEOH | gomilter.OptNoBody | gomilter.OptNoReplies&^(gomilter.OptNoMailReply|gomilter.OptNoRcptReply|gomilter.OptNoDataReply), 0,
		},
		{
			"envelope from the first word",
			Wants{Stages: policy.AllStages},
			func(c *Config, _ *Options) { c.Envelope = true },
			gomilter.OptAddHeader | gomilter.OptSetMacros | edits,
			gomilter.OptNoUnknown | gomilter.OptNoHeaders | gomilter.OptNoEOH | gomilter.OptNoBody | gomilter.OptNoUnknownReply | gomilter.OptNoHeaderReply | gomilter.OptNoEOHReply | gomilter.OptNoBodyReply, 0,
		},
		{
			"a pause",
			Wants{},
			func(c *Config, _ *Options) { c.GreetPause = conf.Duration(time.Second) }, gomilter.OptAddHeader | gomilter.OptSetMacros,
			gomilter.OptNoUnknown | gomilter.OptNoData | gomilter.OptNoHeaders | gomilter.OptNoEOH | gomilter.OptNoBody | gomilter.OptNoReplies&^gomilter.OptNoConnReply, 0,
		},
		{
			"look-ups at connect",
			Wants{Early: true},
			nil, gomilter.OptAddHeader | gomilter.OptSetMacros,
			gomilter.OptNoUnknown | gomilter.OptNoData | gomilter.OptNoHeaders | gomilter.OptNoEOH | gomilter.OptNoBody | gomilter.OptNoReplies&^gomilter.OptNoConnReply, 0,
		},
	} {
		_, addr := start(t, &handler{wants: tt.wants}, tt.edit)
		m := dial(t, addr)
		if m.actions != tt.actions || m.steps != tt.not|tt.also {
			t.Errorf("%s:\nactions %v\nwant    %v\nsteps %v\nwant  %v", tt.name, m.actions, tt.actions, m.steps, tt.not|tt.also)
		}
		if !strings.Contains(m.macros[0], "{client_ptr}") || !strings.Contains(m.macros[1], "{tls_version}") || !strings.Contains(m.macros[2], "{auth_authen}") || m.macros[5] != "i" {
			t.Errorf("%s: macros %v", tt.name, m.macros)
		}
		if _, final := m.open().content(nil, ""); final != "a" {
			t.Errorf("%s: the message was answered %q", tt.name, final)
		}
	}
}

func TestOlderVersionsOfTheProtocol(t *testing.T) {
	for version, steps := range map[uint32]uint32{2: 0x7f, 3: 0x17f, 4: 0x37f, 6: 0x1fffff} {
		l := &looked{edits: []policy.Edit{
			{Kind: policy.ReplaceField, At: 1, Name: "Subject", Value: " changed"},
			{Kind: policy.InsertField, At: 2, Name: "X-End", Value: " end"},
			{Kind: policy.AddRecipient, Arg: "carl@example.com"},
		}}
		h := &handler{wants: Wants{Content: true, Bodies: true}, inspect: func(*policy.Request, []policy.Address) Content { return l }}
		_, addr := start(t, h, nil)
		m := dialOffer(t, addr, version, 0x1ff, steps).open()
		header, space := someHeader, " "
		if version < 6 { // the MTA takes the space away and puts one there
			header, space = []policy.Field{{Name: "From", Value: "ann"}, {Name: "Subject", Value: "hello"}}, ""
		}
		edits, final := m.content(header, "text\r\n")
		args := ""
		if version >= 6 {
			args = "|NOTIFY=NEVER"
		}
		code := "+"
		if version >= 6 {
			code = "2"
		}
		want := []string{code + " <carl@example.com>" + args, "h X-End|" + space + "end", "m 1|Subject|" + space + "changed"}
		if final != "a" || !slices.Equal(edits, want) {
			t.Errorf("version %d: %q %q, want %q", version, final, edits, want)
		}
		if !slices.Equal(l.fields, someHeader) || string(l.body) != "text\r\n" || l.eoh != 1 {
			t.Errorf("version %d: shown %q %q", version, l.fields, l.body)
		}
	}
	_, addr := start(t, &handler{}, func(_ *Config, o *Options) { o.Log = zap.NewNop() })
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the end
	if _, err := c.Write(packet(codeOptions, "\x00\x00\x00\x01", strings.Repeat("\x00", 8))); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // a bare one
		t.Errorf("version 1 was answered: %d %v", n, err)
	}
}

func TestRequestsSayWhatTheEventsSay(t *testing.T) {
	h := &handler{wants: Wants{Stages: policy.AllStages}}
	_, addr := start(t, h, func(c *Config, _ *Options) { c.Envelope, c.Chain = true, "mine" })
	m := dial(t, addr)
	m.set(codeConnect, "j", "mx.example.com", "v", "Postfix 3.7.11", "{daemon_addr}", "2001:db8::25", "{daemon_port}", "25", "{client_ptr}", "Mail.Example.ORG", "{client_resolve}", "FORGED")
	m.event(codeConnect, "[192.0.2.7]\x006\x9d\x13::ffff:192.0.2.7\x00")
	m.helo()
	m.set(codeHelo, "{tls_version}", "TLSv1.3", "{cipher}", "TLS_AES_256_GCM_SHA384", "{cipher_bits}", "256", "{cert_subject}", "client", "{cert_issuer}", "CA", "{tls_sni}", "mx.example.com")
	m.helo()
	m.write(codeAbort)
	m.set(codeMail, "{auth_type}", "PLAIN", "{auth_authen}", "ann", "{auth_author}", "ann@example.org")
	m.event(codeMail, `<"ann b"@B`, "\u00fc", `cher.example>`, "\x00SIZE=1234\x00BODY=8BITMIME\x00")
	m.set(codeRcpt)
	m.event(codeRcpt, "<@relay.example:Bob@Example.COM>\x00")
	m.set(codeRcpt, "i", "4abc")
	m.rcpt("carl@example.com")
	m.set(codeData, "i", "4abc")
	m.event(codeData)
	m.end()

	seen := h.seen()
	var stages []string
	for i := range seen {
		stages = append(stages, seen[i].Stage.String())
		seen[i].Time = time.Time{}
	}
	if got := strings.Join(stages, " "); got != "connect helo helo mail rcpt rcpt data end-of-message" {
		t.Fatalf("stages %s", got)
	}
	r := seen[5]
	if !strings.HasPrefix(r.Instance, "milter.") || seen[7].Instance != r.Instance {
		t.Errorf("instances %q and %q", r.Instance, seen[7].Instance)
	}
	r.Instance, r.Facts = "", policy.Facts{}
	want := policy.Request{
		Stage: policy.StageRcpt, Door: "milter", Listener: r.Listener, Chain: "mine",
		Client:     policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Port: 40211, ReverseName: "mail.example.org"},
		ServerAddr: netip.MustParseAddr("2001:db8::25"), ServerPort: 25, ESMTP: true, Helo: "mail.example.org",
		Sender:    policy.Address{Raw: "ann b@B\u00fccher.example", Local: "ann b", Domain: "xn--bcher-kva.example"},
		Recipient: policy.Address{Raw: "carl@example.com", Local: "carl", Domain: "example.com"},
		QueueID:   "4abc", Size: 1234, MailVersion: "3.7.11",
		SASL: policy.SASL{Method: "PLAIN", Username: "ann", Sender: "ann@example.org"},
		TLS:  policy.TLS{Protocol: "TLSv1.3", Cipher: "TLS_AES_256_GCM_SHA384", KeySize: 256, CertSubject: "client", CertIssuer: "CA", SNI: "mx.example.com"},
	}
	if fmt.Sprintf("%+v", r) != fmt.Sprintf("%+v", want) {
		t.Errorf("got  %+v\nwant %+v", r, want)
	}
	if first := seen[4].Recipient.Raw; first != "Bob@Example.COM" {
		t.Errorf("first recipient %q", first)
	}
	if d := seen[6]; d.RecipientCount != 2 || d.Recipient.Raw != "" || d.QueueID != "4abc" {
		t.Errorf("at data: %+v", d)
	}
	if h := seen[1]; h.Sender.Raw != "" || h.TLS.Protocol != "" {
		t.Errorf("at the first helo: %+v", h)
	}
}

func reject(text string) policy.Verdict {
	return policy.Verdict{Action: policy.Reject, Reason: "test", Reply: policy.Reply{Code: 550, Enhanced: "5.7.1", Text: text}}
}

func TestEnvelopeVerdicts(t *testing.T) {
	for _, tt := range []struct {
		name    string
		verdict policy.Verdict
		rcpt    string
		final   string
		edits   []string
	}{
		{"no objection", policy.Verdict{}, "c", "a", []string{"i 0|X-Added|one"}},
		{"permit", policy.Verdict{Action: policy.Permit}, "c", "a", []string{"i 0|X-Added|one"}},
		{"reject", reject("100% of it"), "y550 5.7.1 100%% of it [ref AAAAA-BBBBB]", "", nil},
		{"defer", policy.Verdict{Action: policy.Defer, Reply: policy.Reply{Code: 450, Enhanced: "4.2.0", Text: "later\r\nQUIT"}}, "y450 4.2.0 later QUIT [ref AAAAA-BBBBB]", "", nil},
		{"defer if permit", policy.Verdict{Action: policy.DeferIfPermit, Reply: policy.Reply{Code: 450, Enhanced: "4.2.0", Text: "later"}}, "y450 4.2.0 later [ref AAAAA-BBBBB]", "", nil},
		{"unusable reply", policy.Verdict{Action: policy.Reject, Reply: policy.Reply{Code: 250, Enhanced: "2.0.0", Text: "ok"}}, "t", "", nil},
		{"hold", policy.Verdict{Action: policy.Hold, Reason: "odd"}, "c", "a", []string{"i 0|X-Added|one", "q odd"}},
		{"hold without a word", policy.Verdict{Action: policy.Hold}, "c", "a", []string{"i 0|X-Added|one", "q held by policy"}},
		{"discard", policy.Verdict{Action: policy.Discard}, "d", "", nil},
		{"redirect", policy.Verdict{Action: policy.Redirect, Arg: "other@example.net"}, "c", "a", []string{"- <bob@example.com>", "+ <other@example.net>", "i 0|X-Added|one"}},
		{"redirect to where it goes", policy.Verdict{Action: policy.Redirect, Arg: "bob@example.com"}, "c", "a", []string{"i 0|X-Added|one"}},
		{"redirect to nowhere", policy.Verdict{Action: policy.Redirect, Arg: "nobody"}, "c", "t", nil},
	} {
		h := &handler{wants: Wants{Stages: policy.Stages(policy.StageRcpt)}, decide: func(_ context.Context, _ *policy.Request, d *policy.Decision) {
			d.Verdict = tt.verdict
			if d.Verdict.Action.Refuses() {
				d.Reference = "AAAAA-BBBBB"
			} else {
				d.Headers = append(d.Headers, policy.Header{Name: "X-Added", Value: "one"})
			}
		}}
		_, addr := start(t, h, func(c *Config, o *Options) { c.Envelope, o.Log = true, zap.NewNop() })
		m := dial(t, addr)
		m.connect("192.0.2.7", 40211)
		m.helo()
		m.mail("ann@example.org")
		if got := m.rcpt("bob@example.com"); got != tt.rcpt {
			t.Errorf("%s: answer at rcpt %q, want %q", tt.name, got, tt.rcpt)
		}
		if tt.final == "" {
			continue
		}
		edits, final := m.content(nil, "")
		if final != tt.final || !slices.Equal(edits, tt.edits) {
			t.Errorf("%s: %q %q, want %q %q", tt.name, final, edits, tt.final, tt.edits)
		}
	}
}

func TestContentVerdicts(t *testing.T) {
	for _, tt := range []struct {
		name    string
		verdict policy.Verdict
		headers []policy.Header
		edits   []policy.Edit
		final   string
		want    []string
	}{
		{name: "no objection", final: "a"},
		{name: "reject", verdict: reject("no"), edits: []policy.Edit{{Kind: policy.DeleteField}}, final: "y550 5.7.1 no"},
		{name: "discard", verdict: policy.Verdict{Action: policy.Discard}, edits: []policy.Edit{{Kind: policy.DeleteField}}, final: "d"},
		{
			name: "everything at once", verdict: policy.Verdict{Action: policy.Hold, Reason: "odd"},
			headers: []policy.Header{{Name: "X-One", Value: "1"}, {Name: "X-Two", Value: "2"}, {Name: "x-one", Value: "again"}},
			edits: []policy.Edit{
				{Kind: policy.DeleteField, At: 0},
				{Kind: policy.InsertField, At: 1, Name: "X-A", Value: " a"},
				{Kind: policy.InsertField, At: 1, Name: "X-B", Value: " b"},
				{Kind: policy.ReplaceField, At: 1, Name: "X-Subject", Value: " s"},
				{Kind: policy.InsertField, At: 2, Name: "X-End", Value: " e"},
				{Kind: policy.ReplaceBody, Body: []byte("lost")},
				{Kind: policy.ReplaceBody, Body: []byte("new body\r\n")},
				{Kind: policy.AddRecipient, Arg: "bcc@example.com"},
				{Kind: policy.AddRecipient, Arg: "bcc@example.com"},
				{Kind: policy.AddRecipient, Arg: "bob@example.com"},
			},
			final: "a",
			want: []string{
				"2 <bcc@example.com>|NOTIFY=NEVER", "h X-End| e", "m 1|Subject|", "i 2|X-Subject| s", "i 2|X-B| b", "i 2|X-A| a", "m 1|From|",
				"i 0|X-Two| 2", "i 0|X-One| 1", "b new body\r\n", "q odd",
			},
		},
		{
			name:  "only there",
			edits: []policy.Edit{{Kind: policy.AddRecipient, Arg: "bcc@example.com"}, {Kind: policy.ReplaceRecipient, Arg: "a@example.net"}, {Kind: policy.ReplaceRecipient, Arg: "b@example.net"}},
			final: "a", want: []string{"- <bob@example.com>", "+ <b@example.net>"},
		},
		{name: "an empty body", edits: []policy.Edit{{Kind: policy.ReplaceBody}}, final: "a", want: []string{"b "}},
		{name: "no value", edits: []policy.Edit{{Kind: policy.ReplaceField, At: 0, Name: "From"}}, final: "a", want: []string{"m 1|From| "}},
		{name: "no recipient", edits: []policy.Edit{{Kind: policy.AddRecipient, Arg: "a@b, c@d"}}, final: "t"},
	} {
		l := &looked{verdict: tt.verdict, headers: tt.headers, edits: tt.edits}
		h := &handler{wants: Wants{Content: true, Bodies: true}, inspect: func(req *policy.Request, to []policy.Address) Content { l.req, l.to = req, to; return l }}
		_, addr := start(t, h, func(_ *Config, o *Options) { o.Log = zap.NewNop() })
		edits, final := dial(t, addr).open().content(someHeader, "text\r\n")
		if final != tt.final || !slices.Equal(edits, tt.want) {
			t.Errorf("%s: %q %q, want %q %q", tt.name, final, edits, tt.final, tt.want)
		}
		if len(l.to) != 1 || l.to[0].Raw != "bob@example.com" || l.req.Stage != policy.StageData || l.req.QueueID != "4abc" || l.at.Stage != policy.StageEndOfMessage ||
			l.at.Recipient.Raw != "bob@example.com" || l.at.Client.Port != 40211 || l.abandoned || !slices.Equal(l.fields, someHeader) || string(l.body) != "text\r\n" {
			t.Errorf("%s: shown %+v", tt.name, l)
		}
	}
}

// What is inspected says whether its body is shown.
func TestABodyThatIsNotShown(t *testing.T) {
	for _, bodies := range []bool{true, false} {
		l := &looked{}
		h := &handler{wants: Wants{Content: true, Bodies: bodies}, inspect: func(req *policy.Request, _ []policy.Address) Content { l.req = req; return l }}
		_, addr := start(t, h, nil)
		body := ""
		if bodies {
			body = "text\r\n"
		}
		if _, final := dial(t, addr).open().content(someHeader, body); final != "a" || l.req.BodyHidden == bodies || string(l.body) != body {
			t.Errorf("bodies %v: %q, hidden %v, %q", bodies, final, l.req.BodyHidden, l.body)
		}
	}
}

func TestALargeNewBody(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	l := &looked{edits: []policy.Edit{{Kind: policy.ReplaceBody, Body: body}}}
	h := &handler{wants: Wants{Content: true, Bodies: true}, inspect: func(*policy.Request, []policy.Address) Content { return l }}
	_, addr := start(t, h, nil)
	edits, final := dial(t, addr).open().content(someHeader, "x")
	got := ""
	for _, e := range edits {
		got += strings.TrimPrefix(e, "b ")
	}
	if final != "a" || got != string(body) || len(edits) != 5 {
		t.Errorf("%q: %d bytes in %d pieces", final, len(got), len(edits))
	}
}

func TestARestOfABodyIsSkipped(t *testing.T) {
	l := &looked{most: 100_000}
	h := &handler{wants: Wants{Content: true, Bodies: true}, inspect: func(*policy.Request, []policy.Address) Content { return l }}
	_, addr := start(t, h, nil)
	if _, final := dial(t, addr).open().content(someHeader, strings.Repeat("x", 1_000_000)); final != "a" || len(l.body) != 2*65535 {
		t.Errorf("%q after %d bytes", final, len(l.body))
	}
	// Nobody is interested in the next one at all.
	h.inspect = nil
	if _, final := dial(t, addr).open().content(someHeader, strings.Repeat("x", 1_000_000)); final != "a" {
		t.Errorf("%q", final)
	}
}

func TestSeveralMessagesInOneSession(t *testing.T) {
	var mu sync.Mutex
	var all []*looked
	h := &handler{wants: Wants{Content: true}}
	h.inspect = func(req *policy.Request, to []policy.Address) Content {
		mu.Lock()
		defer mu.Unlock()
		l := &looked{req: req, to: to}
		all = append(all, l)
		return l
	}
	_, addr := start(t, h, nil)
	m := dial(t, addr)
	m.connect("192.0.2.7", 40211)
	m.set(codeHelo, "{tls_version}", "TLSv1.3")
	m.helo()
	for i := range 5 {
		m.mail(fmt.Sprintf("sender%d@example.org", i))
		m.rcpt(fmt.Sprintf("to%d@example.com", i))
		switch i {
		case 1: // RSET
			m.write(codeAbort)
			m.write(codeAbort)
			continue
		case 2: // a second EHLO: the event, then ABORT
			m.event(codeHelo, "other.example.org\x00")
			m.write(codeAbort)
			continue
		case 3: // the client disconnects inside of the content, and another message follows without ABORT
			m.event(codeHeader, "Subject\x00 never\x00")
			continue
		}
		if _, final := m.content([]policy.Field{{Name: "Subject", Value: fmt.Sprint(" ", i)}}, ""); final != "a" {
			t.Errorf("message %d: %q", i, final)
		}
		m.write(codeAbort)
	}
	m.write(codeQuit)
	if _, _, err := m.tryRead(); !errors.Is(err, io.EOF) {
		t.Errorf("after QUIT: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(all) != 3 {
		t.Fatalf("%d messages were looked at", len(all))
	}
	for i, want := range []struct {
		n     int
		ended bool
		helo  string
		tls   string
	}{{0, true, "mail.example.org", "TLSv1.3"}, {3, false, "other.example.org", ""}, {4, true, "other.example.org", ""}} {
		l := all[i]
		if l.req.Sender.Raw != fmt.Sprintf("sender%d@example.org", want.n) || len(l.to) != 1 || l.to[0].Local != fmt.Sprint("to", want.n) ||
			l.ended != want.ended || l.abandoned == want.ended || l.req.Helo != want.helo || l.req.TLS.Protocol != want.tls || len(l.fields) != 1 || l.req.Client.Port != 40211 {
			t.Errorf("message %d: %+v %+v", i, l, l.req)
		}
	}
}

func TestAnotherSessionOverOneConnection(t *testing.T) {
	h := &handler{wants: Wants{Stages: policy.Stages(policy.StageRcpt)}}
	_, addr := start(t, h, func(c *Config, _ *Options) { c.Envelope = true })
	m := dial(t, addr).open()
	m.end()
	m.write(codeQuitNew)
	m.event(codeConnect, "[198.51.100.9]\x004\x00\x19198.51.100.9\x00")
	m.begin()
	seen := h.seen()
	if len(seen) != 2 || seen[1].Client.Addr.String() != "198.51.100.9" || seen[1].Client.Name != "" || seen[1].Helo != "" {
		t.Errorf("requests %+v", seen)
	}
}

func TestAPanicCostsOneMessage(t *testing.T) {
	for _, tt := range []struct {
		method string
		bodies bool
	}{{"Header", false}, {"EndOfHeaders", false}, {"Body", true}, {"End", false}, {"Abandon", true}, {"Inspect", false}} {
		for _, onPanic := range []policy.OnError{policy.ErrorDefer, policy.ErrorContinue} {
			crash := true
			h := &handler{wants: Wants{Content: true, Bodies: tt.bodies}}
			h.inspect = func(*policy.Request, []policy.Address) Content {
				if crash && tt.method == "Inspect" {
					panic("told to")
				}
				l := &looked{}
				if crash {
					l.panics = tt.method
				}
				return l
			}
			log, seen := logs()
			reg := prometheus.NewRegistry()
			s, addr := start(t, h, func(c *Config, o *Options) { c.OnPanic, o.Log, o.Metrics = onPanic, log, reg })
			m := dial(t, addr)
			m.connect("192.0.2.7", 40211)
			for i := range 2 {
				m.begin()
				if tt.method == "Abandon" && i == 0 {
					m.event(codeBody, "x")
					crash = false
					m.write(codeAbort)
					continue
				}
				_, final := m.content(someHeader, "text\r\n")
				want := "a"
				if i == 0 && onPanic == policy.ErrorDefer {
					want = "t"
				}
				if final != want {
					t.Errorf("%s, %v: message %d was answered %q, want %q", tt.method, onPanic, i, final, want)
				}
				m.write(codeAbort)
				crash = false
			}
			if n := testutil.ToFloat64(s.metrics.panics); n != 1 || seen.FilterMessage("session panicked").Len() != 1 {
				t.Errorf("%s: %v panics were counted, %d logged", tt.method, n, seen.Len())
			}
		}
	}
}

func TestAPanicAboutTheEnvelope(t *testing.T) {
	for _, stage := range []policy.Stage{policy.StageConnect, policy.StageHelo, policy.StageMail, policy.StageRcpt, policy.StageData, policy.StageEndOfMessage} {
		crash := true
		h := &handler{wants: Wants{Stages: policy.AllStages}, decide: func(_ context.Context, req *policy.Request, _ *policy.Decision) {
			if crash && req.Stage == stage {
				panic("told to")
			}
		}}
		_, addr := start(t, h, func(c *Config, o *Options) { c.Envelope, o.Log = true, zap.NewNop() })
		m := dial(t, addr)
		var got []string
		for i := range 2 {
			if i == 0 {
				got = append(got, m.connect("192.0.2.7", 40211), m.helo())
			}
			got = append(got, m.mail("ann@example.org"), m.rcpt("bob@example.com"), m.event(codeData))
			_, final := m.end()
			got = append(got, final)
			m.write(codeAbort)
			crash = false
		}
		// connect helo, and for each message mail rcpt data end
		want := map[policy.Stage]string{
			policy.StageConnect: "cc tcct tcct", policy.StageHelo: "cc tcct tcct", policy.StageMail: "cc tcct ccca", policy.StageRcpt: "cc ctct ccca",
			policy.StageData: "cc cctt ccca", policy.StageEndOfMessage: "cc ccct ccca",
		}[stage]
		if all := strings.Join(got, ""); all != strings.ReplaceAll(want, " ", "") {
			t.Errorf("%v: %s, want %s", stage, all, want)
		}
	}
}

func TestBounds(t *testing.T) {
	h := &handler{wants: Wants{Content: true}, inspect: func(*policy.Request, []policy.Address) Content { return &looked{} }}
	_, addr := start(t, h, func(c *Config, o *Options) {
		c.MaxHeaders, c.MaxRecipients, c.MaxEnvelope, o.Log = 1000, 100, 64<<10, zap.NewNop()
	})
	m := dial(t, addr)
	m.connect("192.0.2.7", 40211)
	m.begin()
	header := make([]policy.Field, 1001)
	for i := range header {
		header[i] = policy.Field{Name: "X", Value: " y"}
	}
	if _, final := m.content(header[:1000], ""); final != "a" {
		t.Errorf("1000 fields: %q", final)
	}
	m.begin()
	if _, final := m.content(header, ""); final != "y554 5.6.0 Message has too many header fields" {
		t.Errorf("1001 fields: %q", final)
	}
	m.mail("ann@example.org")
	for i := range 101 {
		m.rcpt(fmt.Sprintf("to%d@example.com", i))
	}
	if _, final := m.content(someHeader, ""); final != "y452 4.5.3 Too many recipients" {
		t.Errorf("101 recipients: %q", final)
	}
	m.mail("ann@example.org")
	m.rcpt(strings.Repeat("x", 60_000) + "@example.com")
	m.rcpt(strings.Repeat("y", 60_000) + "@example.com")
	if _, final := m.content(someHeader, ""); final != "y452 4.5.3 Too many recipients" {
		t.Errorf("120 kB of recipients: %q", final)
	}
	m.begin()
	if _, final := m.content(someHeader, ""); final != "a" {
		t.Errorf("the next message: %q", final)
	}

	// With the envelope the recipient is refused that is too much.
	_, addr = start(t, h, func(c *Config, _ *Options) { c.Envelope, c.MaxRecipients = true, 100 })
	m = dial(t, addr)
	m.connect("192.0.2.7", 40211)
	m.mail("ann@example.org")
	for i := range 102 {
		want := "c"
		if i >= 100 {
			want = "y452 4.5.3 Too many recipients"
		}
		if got := m.rcpt(fmt.Sprintf("to%d@example.com", i)); got != want {
			t.Fatalf("recipient %d: %q", i, got)
		}
	}
	if _, final := m.content(someHeader, ""); final != "a" {
		t.Errorf("100 recipients: %q", final)
	}
}

// So does the judgement of content by a door that does not ask about the
// envelope: what was taken by that instance is given back when it is refused.
func TestJoinedInstanceOfContent(t *testing.T) {
	table := dialog.New(10)
	l := &looked{}
	h := &handler{wants: Wants{Content: true}, inspect: func(*policy.Request, []policy.Address) Content { return l }}
	_, addr := start(t, h, func(_ *Config, o *Options) { o.Dialogs = table })
	m := dial(t, addr)
	m.connect("192.0.2.7", 40211)
	m.helo()
	m.mail("ann@example.org")
	table.Learn(&policy.Request{
		Time: time.Now(), Stage: policy.StageRcpt, Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Port: 40211}, Instance: "1",
	}, &policy.Decision{})
	m.rcpt("bob@example.com")
	m.content(someHeader, "")
	if !l.ended || l.at.Joined != "1" {
		t.Errorf("the end of the content is joined to %q", l.at.Joined)
	}
}

// The milter's requests tell by which instance the policy door knows the
// transaction: of this transaction and none before.
func TestJoinedInstance(t *testing.T) {
	table := dialog.New(10)
	ask := func(instance string, stage policy.Stage) {
		table.Learn(&policy.Request{
			Time: time.Now(), Stage: stage, Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Port: 40211}, Instance: instance,
		}, &policy.Decision{})
	}
	l := &looked{}
	h := &handler{wants: Wants{Stages: policy.Stages(policy.StageMail, policy.StageRcpt), Content: true}, inspect: func(req *policy.Request, _ []policy.Address) Content { l.req = req; return l }}
	_, addr := start(t, h, func(c *Config, o *Options) { c.Envelope, o.Dialogs = true, table })
	m := dial(t, addr)
	m.connect("192.0.2.7", 40211)
	m.helo()
	m.mail("ann@example.org")
	m.rcpt("bob@example.com") // the policy door was not asked
	ask("1", policy.StageRcpt)
	m.rcpt("carl@example.com")
	m.content(someHeader, "")
	if l.req.Joined != "1" {
		t.Errorf("the content's request is joined to %q", l.req.Joined)
	}
	m.mail("ann@example.org")
	m.rcpt("bob@example.com")
	ask("2", policy.StageRcpt)
	m.write(codeAbort)
	ask("3", policy.StageMail)
	m.mail("ann@example.org")
	m.rcpt("bob@example.com")
	m.write(codeQuit)
	if _, _, err := m.tryRead(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	var got []string
	for _, r := range h.seen() {
		got = append(got, r.Stage.String()+"="+r.Joined)
	}
	if want := "mail= rcpt= rcpt=1 mail= rcpt= mail=3 rcpt=3"; strings.Join(got, " ") != want {
		t.Errorf("joined: %q, want %q", got, want)
	}
}

func TestJoinedSessions(t *testing.T) {
	table := dialog.New(10)
	client := policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Port: 40211}
	ask := func(instance string, names ...string) bool {
		req := &policy.Request{Time: time.Now(), Stage: policy.StageRcpt, Client: client, ServerAddr: netip.MustParseAddr("192.0.2.10"), Instance: instance}
		req.Facts.SPF = policy.SPF{Result: "pass", Domain: "example.org"}
		req.Facts.Mark("mark-" + instance)
		d := &policy.Decision{}
		for _, n := range names {
			d.Headers = append(d.Headers, policy.Header{Name: n, Value: instance})
		}
		return table.Learn(req, d)
	}
	l := &looked{headers: []policy.Header{{Name: "received-spf", Value: "again"}, {Name: "X-Own", Value: "own"}}}
	h := &handler{wants: Wants{Content: true}, inspect: func(req *policy.Request, _ []policy.Address) Content { l.req = req; return l }}
	_, addr := start(t, h, func(_ *Config, o *Options) { o.Dialogs = table })
	m := dial(t, addr)
	if ask("0", "X-Greylist") {
		t.Error("the policy door leaves a field to a milter session that has not begun")
	}
	m.connect("192.0.2.7", 40211)
	m.begin() // nothing is answered here: an answer shows that it was seen
	if _, final := m.content(nil, ""); final != "a" {
		t.Errorf("final %q", final)
	}
	m.write(codeAbort)
	m.mail("ann@example.org")
	if !ask("1", "X-Greylist", "Received-SPF") || !ask("1", "X-Greylist") {
		t.Error("the policy door hands out a field itself")
	}
	m.rcpt("bob@example.com")
	edits, _ := m.content(someHeader, "")
	if want := []string{"i 0|X-Own| own", "i 0|Received-SPF| 1", "i 0|X-Greylist| 1"}; !slices.Equal(edits, want) {
		t.Errorf("edits %q", edits)
	}
	if l.req.Facts.SPF.Result != "pass" || !slices.Equal(l.req.Facts.Marks, []string{"mark-1"}) {
		t.Errorf("facts %+v", l.req.Facts)
	}
	// A message with nothing to hand out, and one that was given up.
	m.begin()
	if edits, _ := m.content(nil, ""); slices.ContainsFunc(edits, func(e string) bool { return strings.Contains(e, "Greylist") }) {
		t.Errorf("the next message: %q", edits)
	}
	m.mail("ann@example.org")
	ask("2", "X-Greylist")
	m.write(codeAbort)
	m.begin()
	if edits, _ := m.content(nil, ""); slices.ContainsFunc(edits, func(e string) bool { return strings.Contains(e, "Greylist") }) {
		t.Errorf("after an abort: %q", edits)
	}
	m.write(codeQuit)
	if _, _, err := m.tryRead(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if ask("3", "X-Greylist") || table.Len() != 0 {
		t.Error("the policy door leaves a field to a milter session that has ended")
	}
}
