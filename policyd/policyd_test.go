package policyd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/dialog"
	"postern/internal/conf"
	"postern/internal/listen"
	"postern/internal/policytest"
	"postern/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type handlerFunc func(ctx context.Context, req *policy.Request, d *policy.Decision)

func (f handlerFunc) Decide(ctx context.Context, req *policy.Request, d *policy.Decision) {
	f(ctx, req, d)
}

var dunno = handlerFunc(func(context.Context, *policy.Request, *policy.Decision) {})

// start opens a door on a unix socket and stops it at the end of the test.
func start(t testing.TB, h Handler, edit func(*Config)) (*Server, net.Addr) {
	t.Helper()
	cfg := DefaultConfig()
	var a listen.Address
	if err := a.UnmarshalText([]byte("unix:" + filepath.Join(t.TempDir(), "p.sock"))); err != nil {
		t.Fatal(err)
	}
	cfg.Listen = []listen.Address{a}
	if edit != nil {
		edit(&cfg)
	}
	s := New(cfg, h, nil, zap.NewNop(), prometheus.NewRegistry())
	if err := s.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = s.Stop(ctx) // some tests leave requests hanging
	})
	return s, s.Addresses()[0]
}

func TestParseReadsEveryAttribute(t *testing.T) {
	text := string(policytest.Sample().With(
		"protocol_state", "END-OF-MESSAGE", "client_address", "::ffff:192.0.2.7", "client_name", "Mail.Example.ORG.",
		"reverse_client_name", "unknown", "sender", "Alice@B\u00fccher.example", "recipient", "a=b@Example.COM",
		"recipient_count", "3", "queue_id", "4abc", "etrn_domain", "example.net", "stress", "yes",
		"sasl_method", "PLAIN", "sasl_username", "alice", "sasl_sender", "x+40y",
		"ccert_subject", "J+2EM+C3+BCller", "ccert_issuer", "CA+", "ccert_fingerprint", "AA:BB", "ccert_pubkey_fingerprint", "CC",
		"tls_sni", "mx.example.com", "policy_context", "submission", "compatibility_level", "3.6", "mail_version", "3.8.0",
		"no_such_attribute", "x",
	).Bytes())
	var req policy.Request
	req.Helo, req.SASL.Username = "left over", "left over"
	if _, err := Parse(text, 100, &req); err != nil {
		t.Fatal(err)
	}
	want := policy.Request{
		Stage: policy.StageEndOfMessage, Context: "submission",
		Client:     policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Port: 40211, Name: "mail.example.org"},
		ServerAddr: netip.MustParseAddr("192.0.2.10"), ServerPort: 25, ESMTP: true, Helo: "mail.example.org",
		Sender:         policy.Address{Raw: "Alice@B\u00fccher.example", Local: "Alice", Domain: "xn--bcher-kva.example"},
		Recipient:      policy.Address{Raw: "a=b@Example.COM", Local: "a=b", Domain: "example.com"},
		RecipientCount: 3, QueueID: "4abc", Instance: "1a2b.66f1c0de.c35a7.0", Size: 1532, ETRNDomain: "example.net", Stress: true,
		SASL: policy.SASL{Method: "PLAIN", Username: "alice", Sender: "x+40y"},
		TLS: policy.TLS{
			Protocol: "TLSv1.3", Cipher: "TLS_AES_256_GCM_SHA384", KeySize: 256, CertSubject: "J.M\u00fcller",
			CertIssuer: "CA+", CertFingerprint: "AA:BB", PubkeyFingerprint: "CC", SNI: "mx.example.com",
		},
		CompatibilityLevel: "3.6", MailVersion: "3.8.0",
	}
	if !reflect.DeepEqual(req, want) {
		t.Errorf("got  %+v\nwant %+v", req, want)
	}
}

func TestOrderOfAttributesDoesNotMatter(t *testing.T) {
	in := policytest.Sample().With("queue_id", "4abc", "tls_sni", "mx.example.com", "policy_context", "c", "mail_version", "3.8.0")
	parse := func(m *memory, a policytest.Attrs) (req policy.Request) {
		text := string(a.Bytes())
		if n, err := m.parse(text, 100, &req); err != nil || n != len(text) {
			t.Fatalf("%d of %d bytes, %v\n%s", n, len(text), err, text)
		}
		return req
	}
	want := parse(new(memory), in)
	var m memory // one connection
	for _, at := range []int{0, 5, len(in) - 1} {
		turned := append(append(policytest.Attrs(nil), in[at:]...), in[:at]...)
		if got := parse(&m, turned); !reflect.DeepEqual(got, want) {
			t.Errorf("from %s on: %+v", in[at][0], got)
		}
		slices.Reverse(turned)
		if got := parse(&m, turned); !reflect.DeepEqual(got, want) {
			t.Errorf("backwards: %+v", got)
		}
	}
	for i := 1; i < len(in); i++ {
		without := append(append(policytest.Attrs(nil), in[:i]...), in[i+1:]...)
		empty := append(policytest.Attrs(nil), in...)
		empty[i][1] = ""
		if got, want := parse(&m, without), parse(new(memory), empty); !reflect.DeepEqual(got, want) {
			t.Errorf("without %s: %+v", in[i][0], got)
		}
		strange := append(append(append(policytest.Attrs(nil), in[:i]...), [2]string{"new_in_postfix_4", "x"}), in[i:]...)
		if got := parse(&m, strange); !reflect.DeepEqual(got, want) {
			t.Errorf("with another before %s: %+v", in[i][0], got)
		}
	}
	other := in.With("client_address", "2001:db8::1", "client_name", "other.example.org", "reverse_client_name", "unknown", "server_address", "192.0.2.11")
	if got, want := parse(&m, other), parse(new(memory), other); !reflect.DeepEqual(got, want) {
		t.Errorf("the next client on the connection: %+v", got)
	}
}

func TestParseIsForgiving(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		check      func(*policy.Request) bool
	}{
		{"only the type", "request=smtpd_access_policy\n\n", func(r *policy.Request) bool { return r.Stage == policy.StageUnknown }},
		{"CR LF", "request=smtpd_access_policy\r\nhelo_name=x\r\n\r\n", func(r *policy.Request) bool { return r.Helo == "x" }},
		{"the last of two", "request=smtpd_access_policy\nhelo_name=a\nhelo_name=b\n\n", func(r *policy.Request) bool { return r.Helo == "b" }},
		{"unknown peer", "request=smtpd_access_policy\nclient_address=unknown\nclient_port=unknown\n\n", func(r *policy.Request) bool { return !r.Client.Addr.IsValid() && r.Client.Port == 0 }},
		{"zone", "request=smtpd_access_policy\nclient_address=fe80::1%eth0\n\n", func(r *policy.Request) bool { return r.Client.Addr == netip.MustParseAddr("fe80::1") }},
		{"absurd numbers", "request=smtpd_access_policy\nsize=99999999999999999999\nclient_port=70000\nrecipient_count=-1\n\n", func(r *policy.Request) bool { return r.Size == 0 && r.Client.Port == 0 && r.RecipientCount == 0 }},
		{"null sender", "request=smtpd_access_policy\nprotocol_state=RCPT\nsender=\n\n", func(r *policy.Request) bool { return r.NullSender() }},
		{"8-bit", "request=smtpd_access_policy\nsender=\xff@\xfe\n\n", func(r *policy.Request) bool { return r.Sender.Raw == "\xff@\xfe" }},
		{"strange state", "request=smtpd_access_policy\nprotocol_state=XYZZY\n\n", func(r *policy.Request) bool { return r.Stage == policy.StageUnknown }},
	} {
		var req policy.Request
		if _, err := Parse(tt.text, 100, &req); err != nil || !tt.check(&req) {
			t.Errorf("%s: %v, %+v", tt.name, err, req)
		}
	}
	for state, want := range map[string]policy.Stage{
		"CONNECT": policy.StageConnect, "EHLO": policy.StageHelo, "HELO": policy.StageHelo, "MAIL": policy.StageMail, "RCPT": policy.StageRcpt,
		"DATA": policy.StageData, "BDAT": policy.StageData, "END-OF-MESSAGE": policy.StageEndOfMessage, "VRFY": policy.StageVrfy, "ETRN": policy.StageEtrn,
	} {
		if got := stageOf(state); got != want {
			t.Errorf("state %s: %v", state, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"other type":      "request=junk\n\n",
		"no type":         "helo_name=x\n\n",
		"nothing":         "\n",
		"no equals sign":  "request=smtpd_access_policy\nhello\n\n",
		"NUL":             "request=smtpd_access_policy\nhelo_name=a\x00b\n\n",
		"no end":          "request=smtpd_access_policy\n",
		"many attributes": "request=smtpd_access_policy\n" + strings.Repeat("a=b\n", 100) + "\n",
	} {
		if _, err := Parse(text, 100, new(policy.Request)); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLong) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzRequest feeds arbitrary bytes in arbitrary pieces: however they are
// split, the outcome is the same, and nothing grows beyond the limits.
func FuzzRequest(f *testing.F) {
	f.Add(policytest.Sample().Bytes(), uint8(3))
	f.Add([]byte("request=smtpd_access_policy\r\n\r\nrequest=x\n\n"), uint8(1))
	f.Add([]byte("\n\n\n"), uint8(1))
	f.Add(bytes.Repeat([]byte("a"), 400), uint8(7))
	limits := Limits{Line: 128, Request: 512, Attributes: 10}
	read := func(data []byte, step int) (out []string) {
		var sc scanner
		var buf []byte
		for {
			n, err := sc.end(buf, limits)
			switch {
			case err != nil:
				return append(out, err.Error())
			case n > 0:
				var req policy.Request
				used, err := Parse(string(buf[:n]), limits.Attributes, &req)
				out = append(out, fmt.Sprintf("%+v %v", req, err))
				buf = buf[used:]
				if err != nil {
					return out
				}
			case len(data) == 0:
				return out
			default:
				k := min(step, len(data))
				buf, data = append(buf, data[:k]...), data[k:]
				if len(buf) > limits.Request+step {
					return append(out, "grew too far")
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		whole, split := read(data, 1), read(data, int(step)+1)
		if !reflect.DeepEqual(whole, split) {
			t.Fatalf("byte by byte %q\nin pieces %q", whole, split)
		}
	})
}

func TestReplies(t *testing.T) {
	long := strings.Repeat("x", policy.MaxReplyText)
	header := &policy.Header{Name: "X-Greylist", Value: "delayed\r\nEvil: header"}
	for _, tt := range []struct {
		name   string
		d      policy.Decision
		header *policy.Header
		want   string
	}{
		{"nothing", policy.Decision{}, nil, "DUNNO"},
		{"allow", policy.Decision{Verdict: policy.Verdict{Action: policy.Allow}}, nil, "DUNNO"},
		{"permit", policy.Decision{Verdict: policy.Verdict{Action: policy.Permit}}, nil, "OK"},
		{"header", policy.Decision{}, header, "PREPEND X-Greylist: delayed Evil: header"},
		{"reject", policy.Decision{Reference: "AAAAA-BBBBB", Verdict: policy.Verdict{Action: policy.Reject, Reply: policy.Reply{Code: 554, Enhanced: "5.7.1", Text: "no"}}}, header, "554 5.7.1 no [ref AAAAA-BBBBB]"},
		{"defer", policy.Decision{Verdict: policy.Verdict{Action: policy.Defer, Reply: policy.Reply{Code: 450, Enhanced: "4.7.1", Text: "later\n"}}}, nil, "450 4.7.1 later "},
		{"defer if permit", policy.Decision{Reference: "R", Verdict: policy.Verdict{Action: policy.DeferIfPermit, Reply: policy.Reply{Code: 450, Enhanced: "4.2.0", Text: long}}}, nil, "DEFER_IF_PERMIT 4.2.0 " + long + " [ref R]"},
		{"hold", policy.Decision{Verdict: policy.Verdict{Action: policy.Hold, Reason: "odd"}}, nil, "HOLD odd"},
		{"hold without reason", policy.Decision{Verdict: policy.Verdict{Action: policy.Hold}}, nil, "HOLD held by policy"},
		{"discard", policy.Decision{Verdict: policy.Verdict{Action: policy.Discard}}, nil, "DISCARD discarded by policy"},
		{"redirect", policy.Decision{Verdict: policy.Verdict{Action: policy.Redirect, Arg: "a@example.org"}}, nil, "REDIRECT a@example.org"},
		{"redirect nowhere", policy.Decision{Verdict: policy.Verdict{Action: policy.Redirect, Arg: "a@b\nOK"}}, nil, "DUNNO"},
	} {
		got := string(appendReply(nil, &tt.d, tt.header))
		if got != "action="+tt.want+"\n\n" {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
		if err := policytest.Proper(strings.TrimSuffix(strings.TrimPrefix(got, "action="), "\n\n")); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestEachHeaderOncePerMessage(t *testing.T) {
	headers := []policy.Header{{Name: "X-Greylist", Value: "1"}, {Name: "X-Other", Value: "2"}}
	_, addr := start(t, handlerFunc(func(_ context.Context, req *policy.Request, d *policy.Decision) {
		if req.Recipient.Local == "refused" {
			d.Verdict = policy.Verdict{Action: policy.Reject, Reply: policy.Reply{Code: 550, Enhanced: "5.1.1", Text: "no"}}
			return
		}
		if req.Stage == policy.StageRcpt {
			d.Headers = append(d.Headers, headers...)
		}
	}), nil)
	c := policytest.Dial(t, addr)
	s := policytest.Sample()
	for i, step := range []struct {
		attrs policytest.Attrs
		want  string
	}{
		{s.With("recipient", "refused@example.com"), "550 5.1.1 no"},
		{s, "PREPEND X-Greylist: 1"},
		{s, "PREPEND X-Other: 2"},
		{s, "DUNNO"},
		{s.With("protocol_state", "DATA"), "DUNNO"},
		{s.With("instance", "other"), "PREPEND X-Greylist: 1"},
		{s.With("instance", "other", "protocol_state", "END-OF-MESSAGE"), "DUNNO"},
		{s.With("instance", "other", "protocol_state", "DATA"), "PREPEND X-Other: 2"},
		{s.With("server_address", "192.0.2.11"), "PREPEND X-Greylist: 1"}, // another Postfix host, the same instance
		{s.With("instance", ""), "DUNNO"},
	} {
		if got := c.MustAsk(t, step.attrs); got != step.want {
			t.Errorf("request %d: %q, want %q", i, got, step.want)
		}
	}
}

func TestHeadersAreLeftToTheMilter(t *testing.T) {
	h := handlerFunc(func(_ context.Context, _ *policy.Request, d *policy.Decision) {
		d.Headers = append(d.Headers, policy.Header{Name: "X-Greylist", Value: "delayed"})
	})
	table := dialog.New(10)
	s := New(DefaultConfig(), h, nil, zap.NewNop(), prometheus.NewRegistry())
	s.Join(table)
	cfg := DefaultConfig()
	cfg.Listen = cfg.Listen[:1]
	if err := cfg.Listen[0].UnmarshalText([]byte("tcp:127.0.0.1:0")); err != nil {
		t.Fatal(err)
	}
	if err := s.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	defer s.Stop(t.Context()) //nolint:errcheck // the end
	c := policytest.Dial(t, s.Addresses()[0])
	sample := policytest.Sample()
	if got := c.MustAsk(t, sample.With("instance", "1")); got != "PREPEND X-Greylist: delayed" {
		t.Errorf("without a milter session: %q", got)
	}
	session := table.Open(policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Port: 40211}, netip.Addr{})
	if got := c.MustAsk(t, sample.With("instance", "2")); got != "DUNNO" {
		t.Errorf("with a milter session: %q", got)
	}
	if _, headers := session.Message("", time.Now()); len(headers) != 1 || headers[0].Name != "X-Greylist" {
		t.Errorf("the milter door has got %v", headers)
	}
	if got := c.MustAsk(t, sample.With("instance", "3", "client_port", "40212")); got != "PREPEND X-Greylist: delayed" {
		t.Errorf("another session: %q", got)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	var m messages
	add := []policy.Header{{Name: "X"}}
	now := time.Unix(1e9, 0)
	for i := range maxMessages + 100 {
		m.take(&policy.Request{Stage: policy.StageRcpt, Instance: fmt.Sprint(i), Time: now}, add)
	}
	if len(m.byKey) != maxMessages || len(m.order) != maxMessages {
		t.Errorf("%d messages remembered", len(m.byKey))
	}
	last := &policy.Request{Stage: policy.StageRcpt, Instance: fmt.Sprint(maxMessages + 99), Time: now}
	if m.take(last, add) != nil {
		t.Error("the newest message was forgotten")
	}
	last.Time = now.Add(messageAge + time.Second)
	if m.take(last, add) == nil {
		t.Error("an instance that comes again much later is another message")
	}
}

func TestPipelinedAndSplitRequests(t *testing.T) {
	_, addr := start(t, handlerFunc(func(_ context.Context, req *policy.Request, d *policy.Decision) {
		d.Verdict = policy.Verdict{Action: policy.Reject, Reply: policy.Reply{Code: 550, Enhanced: "5.1.1", Text: req.Helo}}
	}), nil)
	c := policytest.Dial(t, addr)
	var all []byte
	for i := range 3 {
		all = append(all, policytest.Sample().With("helo_name", fmt.Sprint("h", i)).Bytes()...)
	}
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if got, err := c.Answer(); err != nil || got != fmt.Sprint("550 5.1.1 h", i) {
			t.Errorf("pipelined %d: %q, %v", i, got, err)
		}
	}
	for _, b := range all[:len(all)/3] {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := c.Answer(); err != nil || got != "550 5.1.1 h0" {
		t.Errorf("byte by byte: %q, %v", got, err)
	}
}

// closed reports whether the door closes the connection without an answer.
func closed(t *testing.T, c *policytest.Client) bool {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Answer()
	var timeout net.Error
	return err != nil && (!errors.As(err, &timeout) || !timeout.Timeout())
}

func TestBadRequestsEndTheirConnectionOnly(t *testing.T) {
	s, addr := start(t, dunno, func(c *Config) { c.RequestTimeout = conf.Duration(200 * time.Millisecond) })
	good := policytest.Dial(t, addr)
	for name, data := range map[string][]byte{
		"endless line":       bytes.Repeat([]byte("a"), 20_000),
		"endless attributes": bytes.Repeat([]byte("a=b\n"), 20_000),
		"too large":          bytes.Repeat([]byte(strings.Repeat("a", 8000)+"=b\n"), 10),
		"no type":            []byte("a=b\n\n"),
		"garbage":            []byte("\x00\x01\x02\n\n"),
		"only an empty line": []byte("\n"),
		"never ends":         []byte("request=smtpd_access_policy\n"),
	} {
		t.Run(name, func(t *testing.T) {
			c := policytest.Dial(t, addr)
			_, _ = c.Write(data) // the door may close before all is written
			if !closed(t, c) {
				t.Error("the connection was not closed")
			}
			if got := good.MustAsk(t, policytest.Sample()); got != "DUNNO" {
				t.Errorf("another client got %q", got)
			}
		})
	}
	if n := s.Status().Requests; n != 7 {
		t.Errorf("%d requests answered, want the 7 good ones", n)
	}
}

func TestPanicIsNoObjection(t *testing.T) {
	n := 0
	_, addr := start(t, handlerFunc(func(_ context.Context, _ *policy.Request, d *policy.Decision) {
		if n++; n == 1 {
			d.Verdict.Action = policy.Reject
			panic("oops")
		}
	}), nil)
	c := policytest.Dial(t, addr)
	for range 2 {
		if got := c.MustAsk(t, policytest.Sample()); got != "DUNNO" {
			t.Errorf("got %q", got)
		}
	}
}

func TestAnswersAreCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := newMetrics(reg)
	for range 3 {
		m.answers.add(&policy.Request{Stage: policy.StageRcpt}, &policy.Decision{Verdict: policy.Verdict{Action: policy.Reject}})
	}
	m.answers.add(&policy.Request{Stage: policy.StageRcpt}, &policy.Decision{})
	m.answers.add(&policy.Request{Stage: policy.StageEtrn}, &policy.Decision{Verdict: policy.Verdict{Action: policy.Redirect}})
	if n := m.answers.total(); n != 5 {
		t.Errorf("%d in all", n)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if v := m.GetCounter().GetValue(); v > 0 {
				got[f.GetName()+" "+m.GetLabel()[0].GetValue()] = v
			}
		}
	}
	want := map[string]float64{
		"postern_policyd_requests_total rcpt": 4, "postern_policyd_requests_total etrn": 1,
		"postern_policyd_replies_total reject": 3, "postern_policyd_replies_total continue": 1, "postern_policyd_replies_total redirect": 1,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

func TestThousandsOfIdleConnections(t *testing.T) {
	const idle = 2000
	s, addr := start(t, dunno, nil)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range idle {
		c := policytest.Dial(t, addr)
		c.MustAsk(t, policytest.Sample()) // each has been used once
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)) / idle
	if per > 64<<10 { // both ends of it, the client's reader among them
		t.Errorf("an idle connection holds %d bytes", per)
	}
	if got := policytest.Dial(t, addr).MustAsk(t, policytest.Sample()); got != "DUNNO" {
		t.Errorf("got %q", got)
	}
	if st := s.Status(); st.Connections != idle+1 {
		t.Errorf("status %+v", st)
	}
}

func TestConnectionLimit(t *testing.T) {
	s, addr := start(t, dunno, func(c *Config) { c.MaxConnections = 2 })
	a, b := policytest.Dial(t, addr), policytest.Dial(t, addr)
	a.MustAsk(t, policytest.Sample())
	b.MustAsk(t, policytest.Sample())
	if c := policytest.Dial(t, addr); !closed(t, c) {
		t.Error("a third connection was taken")
	}
	a.MustAsk(t, policytest.Sample())
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for s.Status().Connections > 1 {
		runtime.Gosched()
	}
	policytest.Dial(t, addr).MustAsk(t, policytest.Sample())
}

func TestStopLetsRequestsFinish(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s, addr := start(t, handlerFunc(func(ctx context.Context, _ *policy.Request, d *policy.Decision) {
		close(entered)
		<-release
		d.Verdict = policy.Verdict{Action: policy.Reject, Reply: policy.Reply{Code: 550, Enhanced: "5.1.1", Text: fmt.Sprint(ctx.Err())}}
	}), nil)
	idle, busy := policytest.Dial(t, addr), policytest.Dial(t, addr)
	answer := make(chan string, 1)
	go func() {
		got, err := busy.Ask(policytest.Sample())
		answer <- fmt.Sprint(got, err)
	}()
	<-entered
	stopped := make(chan error, 1)
	go func() { stopped <- s.Stop(context.Background()) }()
	if !closed(t, idle) {
		t.Error("an idle connection was kept")
	}
	if _, err := net.Dial(addr.Network(), addr.String()); err == nil {
		t.Error("the door still accepts")
	}
	close(release)
	if got := <-answer; got != "550 5.1.1 <nil><nil>" {
		t.Errorf("the request under way got %q", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Errorf("stopping again: %v", err)
	}
}

func TestStopIsBounded(t *testing.T) {
	entered := make(chan struct{})
	s, addr := start(t, handlerFunc(func(ctx context.Context, _ *policy.Request, _ *policy.Decision) {
		close(entered)
		<-ctx.Done() // a check that keeps to its context
	}), nil)
	c := policytest.Dial(t, addr)
	go func() { _, _ = c.Ask(policytest.Sample()) }() // cut off
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop: %v", err)
	}
}

// Connections go on in the next process: what was asked meanwhile is answered
// there, on the same connection.
func TestConnectionsAreKept(t *testing.T) {
	var kept []*os.File
	keep := func(files []*os.File) error {
		for _, f := range files {
			fd, err := syscall.Dup(int(f.Fd()))
			if err != nil {
				return err
			}
			kept = append(kept, os.NewFile(uintptr(fd), f.Name()))
		}
		return nil
	}
	asked := make(chan struct{})
	answer := make(chan struct{})
	slow := handlerFunc(func(_ context.Context, req *policy.Request, _ *policy.Decision) {
		if req.Helo == "slow.example" {
			close(asked)
			<-answer
		}
	})
	next := func(addresses []listen.Address) *Server {
		cfg := DefaultConfig()
		cfg.Listen = addresses
		s := New(cfg, slow, keep, zap.NewNop(), prometheus.NewRegistry())
		if err := s.Configure(cfg, nil); err != nil {
			t.Fatal(err)
		}
		return s
	}
	addresses := make([]listen.Address, 2)
	for i, text := range []string{"unix:" + filepath.Join(t.TempDir(), "p.sock") + ",chain=one", "unix:" + filepath.Join(t.TempDir(), "q.sock")} {
		if err := addresses[i].UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	s := next(addresses)
	at := func(i int) net.Addr { return &net.UnixAddr{Name: addresses[i].Path, Net: "unix"} }
	dial := func(a net.Addr) net.Conn {
		c, err := net.Dial(a.Network(), a.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute)) // a hanging door fails the test
		return c
	}
	idle, busy, half, leaves := policytest.Dial(t, at(0)), policytest.Dial(t, at(0)), dial(at(0)), dial(at(1))
	idle.MustAsk(t, policytest.Sample())
	done := make(chan string)
	go func() { done <- busy.MustAsk(t, policytest.Sample().With("helo_name", "slow.example")) }()
	<-asked
	request := policytest.Sample().Bytes()
	if _, err := half.Write(request[:100]); err != nil {
		t.Fatal(err)
	}
	for s.Status().Connections != 4 {
		runtime.Gosched()
	}
	stopped := make(chan error)
	go func() { stopped <- s.Stop(t.Context()) }()
	if _, err := half.Write(request[100:]); err != nil { // it is answered here or there
		t.Fatal(err)
	}
	close(answer)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if got := <-done; got != "DUNNO" {
		t.Errorf("a request under way: %q", got)
	}
	if len(kept) != 4 {
		t.Errorf("%d connections are kept", len(kept))
	}
	asked, answer = make(chan struct{}), make(chan struct{})
	s = next(addresses[:1])
	defer s.Stop(context.Background()) //nolint:errcheck // the end
	if n := s.Resume(kept); n != 3 {
		t.Errorf("%d connections go on", n)
	}
	for _, c := range []*policytest.Client{idle, busy} {
		if got := c.MustAsk(t, policytest.Sample()); got != "DUNNO" {
			t.Errorf("%q", got)
		}
	}
	b := make([]byte, 100)
	if n, err := half.Read(b); err != nil || string(b[:n]) != "action=DUNNO\n\n" {
		t.Errorf("the half request: %q, %v", b[:n], err)
	}
	if n, err := leaves.Read(b); err == nil {
		t.Errorf("the address that is gone: %q", b[:n])
	}
	if st := s.Status(); st.Connections != 3 {
		t.Errorf("%+v", st)
	}
}

func TestConfigureOpensAndCloses(t *testing.T) {
	s, addr := start(t, dunno, nil)
	old := policytest.Dial(t, addr)
	old.MustAsk(t, policytest.Sample())
	cfg := *s.cfg.Load()
	var tcp listen.Address
	if err := tcp.UnmarshalText([]byte("tcp:127.0.0.1:0,chain=submission")); err != nil {
		t.Fatal(err)
	}
	keep := cfg.Listen
	cfg.Listen = []listen.Address{tcp}
	if err := s.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial(addr.Network(), addr.String()); err == nil {
		t.Error("the old address still accepts")
	}
	old.MustAsk(t, policytest.Sample()) // its connections go on
	policytest.Dial(t, s.Addresses()[0]).MustAsk(t, policytest.Sample())

	bad := cfg
	var nowhere listen.Address
	if err := nowhere.UnmarshalText([]byte("unix:" + filepath.Join(t.TempDir(), "no", "such", "dir"))); err != nil {
		t.Fatal(err)
	}
	bad.Listen = append([]listen.Address{nowhere}, keep...)
	if err := s.Configure(bad, nil); err == nil || !strings.Contains(err.Error(), "there is no directory") {
		t.Errorf("Configure: %v", err)
	}
	if st := s.Status(); len(st.Listen) != 1 {
		t.Errorf("after a failure: %+v", st)
	}
}

func TestDefaultsAreValidAndBadValuesAreNot(t *testing.T) {
	var fs conf.Faults
	c := DefaultConfig()
	c.Validate("policy", &fs)
	if fs.Err() != nil {
		t.Error(fs)
	}
	bad := Config{MaxLine: 1 << 21, MaxRequest: 1 << 20, IdleTimeout: conf.Duration(time.Second)}
	bad.Validate("policy", &fs)
	for _, key := range []string{"max_connections", "max_line", "max_attributes", "request_timeout", "write_timeout", "idle_timeout"} {
		if !strings.Contains(fs.Error(), "policy."+key+": ") {
			t.Errorf("no fault for %s in:\n%v", key, fs)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	text := policytest.Sample().Bytes()
	var req policy.Request
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		var sc scanner
		n, err := sc.end(text, Limits{Line: 16 << 10, Request: 64 << 10})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Parse(string(text[:n]), 100, &req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	run := func(b *testing.B, addr net.Addr) {
		request := policytest.Sample().Bytes()
		var wg sync.WaitGroup
		work := make(chan struct{})
		for range 10 {
			c := policytest.Dial(b, addr)
			wg.Go(func() {
				for range work {
					if _, err := c.AskBytes(request); err != nil && !errors.Is(err, io.EOF) {
						b.Error(err)
					}
				}
			})
		}
		b.ReportAllocs()
		for b.Loop() {
			work <- struct{}{}
		}
		close(work)
		wg.Wait()
	}
	b.Run("floor", func(b *testing.B) {
		l, err := net.Listen("unix", filepath.Join(b.TempDir(), "f.sock"))
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // the end
		go policytest.Floor(l)
		run(b, l.Addr())
	})
	b.Run("policyd", func(b *testing.B) {
		_, addr := start(b, dunno, nil)
		run(b, addr)
	})
}
