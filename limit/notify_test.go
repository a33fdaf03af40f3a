package limit

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptest"
	netmail "net/mail"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"postern/internal/admintest"
	"postern/internal/conf"
	"postern/policy"
)

// pigeon is a sender for tests.
type pigeon struct {
	mu    sync.Mutex
	sent  []string      // "rule/key used of limit"
	tries int           // in all
	fails []error       // of the first tries
	hang  chan struct{} // until it is closed or the time is up; nil: not at all
}

func (p *pigeon) send(ctx context.Context, ev *event) error {
	p.mu.Lock()
	p.tries++
	hang := p.hang
	var err error
	if len(p.fails) > 0 {
		err, p.fails = p.fails[0], p.fails[1:]
	}
	p.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err == nil {
		p.mu.Lock()
		p.sent = append(p.sent, fmt.Sprintf("%s/%s %d of %d", ev.rule, ev.who, ev.used, ev.limit))
		p.mu.Unlock()
	}
	return err
}

func (p *pigeon) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.sent, ", ")
}

func notifying() Config {
	c := rules(Rule{Name: "q", Key: []string{"login"}, Quota: quota("2/day"), Notify: []string{"desk"}})
	c.Notify = []Notify{{Name: "desk", URL: "http://127.0.0.1:1/"}}
	return c
}

// fly has b's notifications sent by p, until the test ends.
func (b *bench) fly(p *pigeon) *bench {
	b.targets[0].sender = p
	b.Start()
	b.t.Cleanup(b.Stop)
	return b
}

// hit has a login ask once more.
func (b *bench) hit(login string, at time.Time, want policy.Action) {
	b.t.Helper()
	req := rcpt(fmt.Sprint(login, b.store.asks), "a@example.com")
	req.SASL.Username, req.Time = login, at
	b.says(req, want, "")
}

func (b *bench) results(result string) float64 {
	b.t.Helper()
	return testutil.ToFloat64(b.targets[0].results[result])
}

// Who first hits a limit is told of once, by one gateway, over restarts, and
// again when the period is over.
func TestNotifyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pigeon{}
		one := newBench(t, notifying()).fly(p)
		two := one.other().fly(p)
		for range 2 {
			one.hit("ann", noon, policy.Continue)
			one.hit("bob", noon, policy.Continue)
		}
		synctest.Wait()
		if p.said() != "" {
			t.Fatalf("before anybody is over: %s", p.said())
		}
		for range 5 {
			one.hit("ann", noon, policy.Defer)
			synctest.Wait() // or both claim it at once, and either may be the one
			two.hit("ann", noon, policy.Defer)
		}
		two.hit("bob", noon, policy.Defer)
		synctest.Wait()
		if want := "q/ann 2 of 2, q/bob 2 of 2"; p.said() != want {
			t.Fatalf("%s, want %s", p.said(), want)
		}
		one.Stop()
		three := one.other().fly(p)
		three.hit("ann", noon.Add(time.Hour), policy.Defer)
		synctest.Wait()
		if n := len(p.sent); n != 2 {
			t.Errorf("after a restart: %s", p.said())
		}
		// The next day's quota is full, the day since the first is over.
		next := noon.Add(24 * time.Hour)
		for range 2 {
			three.hit("ann", next, policy.Continue)
		}
		three.hit("ann", next.Add(-time.Second), policy.Defer)
		synctest.Wait()
		if n := len(p.sent); n != 2 {
			t.Errorf("a second before the period ends: %s", p.said())
		}
		three.hit("ann", next, policy.Defer)
		synctest.Wait()
		if n := len(p.sent); n != 3 {
			t.Errorf("after the period: %s", p.said())
		}
		// The clock is set back by days.
		three.hit("ann", noon.Add(-72*time.Hour), policy.Continue)
		three.hit("ann", noon.Add(-72*time.Hour), policy.Continue)
		three.hit("ann", noon.Add(-72*time.Hour), policy.Defer)
		synctest.Wait()
		if n := len(p.sent); n != 4 {
			t.Errorf("after a step of the clock: %s", p.said())
		}
	})
}

// Gateways that are hit at the same moment claim the one right to tell.
func TestNotifyTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pigeon{}
		b := newBench(t, notifying())
		ev := sample("q", noon)
		ev.period = time.Hour
		for range 8 {
			b.other().fly(p).targets[0].note(ev)
		}
		synctest.Wait()
		if len(p.sent) != 1 {
			t.Errorf("sent %d times", len(p.sent))
		}
	})
}

// A failure is tried again a few times, one that lasts is not; then a later hit
// has another try, after a pause.
func TestNotifyFailures(t *testing.T) {
	bad, worse := errors.New("busy"), lasting{errors.New("gone")}
	for name, tt := range map[string]struct {
		fails        []error
		tries        int
		took         time.Duration
		sent, failed float64
	}{
		"at once":      {nil, 1, 0, 1, 0},
		"at the third": {[]error{bad, bad}, 3, 17 * time.Second, 1, 0},
		"never":        {[]error{bad, bad, bad}, 3, 17 * time.Second, 0, 1},
		"lasting":      {[]error{worse}, 1, 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pigeon{fails: tt.fails}
				b := newBench(t, notifying()).fly(p)
				for range 2 {
					b.hit("ann", noon, policy.Continue)
				}
				start := time.Now()
				b.hit("ann", noon, policy.Defer)
				for synctest.Wait(); p.count() < tt.tries; synctest.Wait() {
					time.Sleep(time.Second)
				}
				if took := time.Since(start); took != tt.took || b.results(resultSent) != tt.sent || b.results(resultFailed) != tt.failed {
					t.Errorf("after %v: %v sent, %v failed", took, b.results(resultSent), b.results(resultFailed))
				}
				b.hit("ann", noon.Add(notifyPause-time.Second), policy.Defer)
				synctest.Wait()
				if p.count() != tt.tries {
					t.Errorf("tried again too early")
				}
				b.hit("ann", noon.Add(notifyPause), policy.Defer)
				synctest.Wait()
				if p.said() != "q/ann 2 of 2" || b.results(resultSent) != 1 {
					t.Errorf("sent in the end: %q", p.said())
				}
			})
		})
	}
}

func (p *pigeon) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tries
}

// Requests never wait for a target that hangs; what is too much is dropped.
func TestNotifyIsOffTheRequestPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pigeon{hang: make(chan struct{})}
		b := newBench(t, notifying()).fly(p)
		start := time.Now()
		for i := range notifyQueue + 11 {
			login := fmt.Sprint("u", i)
			b.hit(login, noon, policy.Continue)
			b.hit(login, noon, policy.Continue)
			b.hit(login, noon, policy.Defer)
			synctest.Wait() // the first is being sent
		}
		if time.Since(start) != 0 {
			t.Errorf("requests took %v", time.Since(start))
		}
		if n := b.results(resultDropped); n != 10 {
			t.Errorf("%v were dropped, want 10", n)
		}
		close(p.hang)
		synctest.Wait()
		if n := len(p.sent); n != notifyQueue+1 {
			t.Errorf("%d were sent", n)
		}
	})
}

// What waits when the daemon stops is sent, within a bound.
func TestNotifyAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pigeon{fails: []error{errors.New("busy")}}
		b := newBench(t, notifying()).fly(p)
		ev := *sample("q", noon)
		ev.period = time.Hour
		for _, who := range []string{"a", "b", "c"} {
			ev.who = who
			b.targets[0].note(&ev)
		}
		synctest.Wait() // the first is waiting for its next try
		start := time.Now()
		b.Stop()
		if p.said() != "q/a 1 of 1, q/b 1 of 1, q/c 1 of 1" || time.Since(start) != 0 {
			t.Errorf("%q after %v", p.said(), time.Since(start))
		}
		p = &pigeon{hang: make(chan struct{})}
		b = b.other().fly(p)
		for _, who := range []string{"d", "e", "f"} {
			ev.who = who
			b.targets[0].note(&ev)
		}
		start = time.Now()
		b.Stop()
		if took := time.Since(start); took != notifyGrace {
			t.Errorf("it stopped after %v", took)
		}
	})
}

// When the store cannot say whether others have told, nobody does.
func TestNotifyWithoutAStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pigeon{}
		b := newBench(t, notifying()).fly(p)
		b.leases.err = errors.New("gone")
		ev := sample("q", noon)
		ev.period = time.Hour
		b.targets[0].note(ev)
		synctest.Wait()
		if p.count() != 0 || b.results(resultFailed) != 1 {
			t.Errorf("%d tries, %v failed", p.count(), b.results(resultFailed))
		}
	})
}

// hostile is what strangers choose.
var hostile = event{
	rule: "q", who: "a\"},\"admin\":{\"\\\r\nBcc: x@example.org\x00é\u2028", used: 7, limit: 7, time: noon, client: netip.MustParseAddr("2001:db8::1"),
	login: "{rule}%0a&x=y+\"", sender: "\xff\xfe<script>",
}

func TestWebhook(t *testing.T) {
	type request struct {
		header http.Header
		body   string
		method string
	}
	got := make(chan request, 1)
	status := http.StatusOK
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // the test compares it
		got <- request{r.Header, string(body), r.Method}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
		fmt.Fprint(w, "because\nof \x1b[31mit")
	})
	plain := httptest.NewServer(handler)
	defer plain.Close()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	hook := func(n Notify) *target {
		t.Helper()
		c := notifying()
		n.Name = "desk"
		c.Notify[0] = n
		return newBench(t, c).targets[0]
	}

	h := hook(Notify{URLFile: file("url", plain.URL+"/s3cret\n"), TokenFile: file("token", "t0ken"), Headers: []string{"x-kind: limit", "X-Kind: two"}})
	if err := h.send(t.Context(), &hostile); err != nil {
		t.Fatal(err)
	}
	r := <-got
	if r.method != "POST" || r.header.Get("Authorization") != "Bearer t0ken" || fmt.Sprint(r.header["X-Kind"]) != "[limit two]" || r.header.Get("Content-Type") != typeJSON {
		t.Errorf("%s %v", r.method, r.header)
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(r.body), &fields); err != nil || len(fields) != 9 {
		t.Fatalf("%v in %s", err, r.body)
	}
	for name, want := range map[string]any{"key": hostile.who, "login": hostile.login, "used": 7.0, "limit": 7.0, "client": "2001:db8::1", "hostname": "mx.example.org", "time": "2026-01-07T12:00:00Z"} {
		if fields[name] != want {
			t.Errorf("%s is %q, want %q", name, fields[name], want)
		}
	}

	h = hook(Notify{URL: plain.URL, ContentType: typeForm, Body: "text={key}&login={login}"})
	if err := h.send(t.Context(), &hostile); err != nil {
		t.Fatal(err)
	}
	if form, err := url.ParseQuery((<-got).body); err != nil || len(form) != 2 || form.Get("text") != hostile.who || form.Get("login") != hostile.login {
		t.Errorf("%v, %v", form, err)
	}
	h = hook(Notify{URL: plain.URL, ContentType: "text/plain", Body: "{key}\n{used} of {limit}"})
	if err := h.send(t.Context(), &hostile); err != nil {
		t.Fatal(err)
	}
	if text := (<-got).body; strings.Count(text, "\n") != 1 || strings.ContainsAny(text, "\r\x00") {
		t.Errorf("%q", text)
	}

	// What cannot change is not tried again; nothing is followed.
	for code, again := range map[int]bool{200: false, 204: false, 301: false, 307: false, 400: false, 401: false, 404: false, 408: true, 429: true, 500: true, 503: true} {
		status = code
		err := h.send(t.Context(), &hostile)
		<-got
		var l lasting
		if (err == nil) != (code < 300) || err != nil && errors.As(err, &l) == again {
			t.Errorf("%d: %v, tried again: %v", code, err, !again)
		}
		if err != nil && (!strings.Contains(err.Error(), fmt.Sprint(code)) || strings.ContainsAny(err.Error(), "\n\x1b")) {
			t.Errorf("%d: %q", code, err)
		}
	}
	status = http.StatusOK

	// A certificate that nobody knows is not taken, one of ca_file is.
	secure := httptest.NewUnstartedServer(handler)
	secure.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	secure.StartTLS()
	defer secure.Close()
	h = hook(Notify{URL: secure.URL + "/s3cret"})
	if err := h.send(t.Context(), &hostile); err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "s3cret") {
		t.Error(err)
	}
	ca := file("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
	h = hook(Notify{URL: secure.URL, CAFile: ca})
	if err := h.send(t.Context(), &hostile); err != nil {
		t.Error(err)
	} else {
		<-got
	}

	// One that hangs is cut.
	hang := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}))
	defer slow.Close()
	defer close(hang)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := hook(Notify{URL: slow.URL}).send(ctx, &hostile); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	// Secrets that cannot be used are said when it is made.
	for _, n := range []Notify{{URLFile: file("empty", "")}, {URLFile: file("nourl", "s3cret")}, {URL: plain.URL, TokenFile: file("two", "a\nb")}, {URLFile: filepath.Join(dir, "none")}} {
		n.Name = "desk"
		c := notifying()
		c.Notify[0] = n
		o := Options{Secret: func(path string) (string, error) { b, err := os.ReadFile(path); return string(b), err }}
		if _, err := newTarget(n, &o, "", newBench(t, notifying()).shared.notified, zap.NewNop()); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%+v: %v", n, err)
		}
	}
}

// recorder is a program that writes its arguments and what it reads into files.
func recorder(t *testing.T, then string) (program, dir string) {
	t.Helper()
	dir = t.TempDir()
	program = filepath.Join(dir, "sendmail")
	script := fmt.Sprintf("#!/bin/sh\nfor a; do printf '%%s\\n' \"<$a>\"; done >%[1]s/args\ncat >%[1]s/text\n%[2]s\n", dir, then)
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	return program, dir
}

func mailing(t *testing.T, program string, n Notify) *target {
	t.Helper()
	c := notifying()
	n.Name = "desk"
	c.Notify[0], c.Sendmail = n, program
	return newBench(t, c).targets[0]
}

// A mail's recipients and fields are the operator's only, whatever strangers
// have chosen.
func TestMail(t *testing.T) {
	program, dir := recorder(t, "")
	m := mailing(t, program, Notify{To: []string{"postmaster@example.org", "root"}, Subject: "{key} {login}"})
	if err := m.send(t.Context(), &hostile); err != nil {
		t.Fatal(err)
	}
	args, _ := os.ReadFile(filepath.Join(dir, "args")) // compared
	if want := "<-i>\n<-f>\n<>\n<-->\n<postmaster@example.org>\n<root>\n"; string(args) != want {
		t.Errorf("arguments %q, want %q", args, want)
	}
	text, err := os.ReadFile(filepath.Join(dir, "text"))
	if err != nil || bytes.Contains(text, []byte("\r")) {
		t.Fatalf("%v in %q", err, text)
	}
	msg, err := netmail.ReadMessage(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(msg.Header) != 10 || msg.Header.Get("Bcc") != "" || msg.Header.Get("Auto-Submitted") != "auto-generated" {
		t.Errorf("fields %v", msg.Header)
	}
	for name, want := range map[string]string{"From": "postern <postern@mx.example.org>", "To": "postmaster@example.org, root", "Date": "Wed, 07 Jan 2026 12:00:00 +0000"} {
		if got := msg.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if s, err := (&mimeDecoder).DecodeHeader(msg.Header.Get("Subject")); err != nil || !strings.HasPrefix(s, `a"},"admin":{"\??Bcc: x@example.org?é`) {
		t.Errorf("subject %q, %v", s, err)
	}
	for line := range strings.Lines(string(text)) {
		if len(line) > 999 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	body := decoded(t, msg.Body)
	if !strings.Contains(body, "used:   7 of 7\n") || !strings.Contains(body, "sender: ") || !utf8.ValidString(body) || strings.Contains(body, "\nBcc:") {
		t.Errorf("body %q", body)
	}
	m = mailing(t, program, Notify{To: []string{"root"}, From: "postern@example.org"})
	if err := m.send(t.Context(), &hostile); err != nil {
		t.Fatal(err)
	}
	if args, _ := os.ReadFile(filepath.Join(dir, "args")); !strings.HasPrefix(string(args), "<-i>\n<-f>\n<postern@example.org>\n") {
		t.Errorf("%q", args)
	}
}

func TestMailFails(t *testing.T) {
	program, _ := recorder(t, "echo 'no room' >&2; exit 75")
	err := mailing(t, program, Notify{To: []string{"root"}}).send(t.Context(), &hostile)
	var l lasting
	if err == nil || !strings.Contains(err.Error(), "75") || !strings.Contains(err.Error(), "no room") || errors.As(err, &l) {
		t.Error(err)
	}
	if err := mailing(t, filepath.Join(t.TempDir(), "none"), Notify{To: []string{"root"}}).send(t.Context(), &hostile); !errors.As(err, &l) {
		t.Error(err)
	}
	// One that hangs is killed.
	program, _ = recorder(t, "exec sleep 600")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := mailing(t, program, Notify{To: []string{"root"}}).send(ctx, &hostile); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestNotifyTestCall(t *testing.T) {
	c := notifying()
	program, dir := recorder(t, "")
	c.Notify = append(c.Notify, Notify{Name: "root", To: []string{"root"}})
	c.Rules[0].Notify, c.Sendmail = []string{"desk", "root"}, program
	c.Rules = append(c.Rules, Rule{Name: "silent", Quota: quota("1/day")})
	b := newBench(t, c)
	a := Admin{admintest.Serve(t, b.Calls())}
	out, err := a.TestNotify(t.Context(), "q")
	if err != nil || len(out) != 2 || out[0].Notify != "desk" || !strings.Contains(out[0].Error, "refused") || out[1] != (Tested{Notify: "root"}) {
		t.Errorf("%+v, %v", out, err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "text")); err != nil || !bytes.Contains(text, []byte("test@example.org has reached the limit q")) {
		t.Errorf("%v %s", err, text)
	}
	for rule, want := range map[string]string{"none": "there is no rule", "silent": "names no notify"} {
		if _, err := a.TestNotify(t.Context(), rule); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", rule, err)
		}
	}
	if len(b.leases.held) != 0 {
		t.Errorf("a test has taken %v", b.leases.held)
	}
}

func TestValidateNotify(t *testing.T) {
	hook := Notify{Name: "a", URL: "https://example.org/x"}
	letter := Notify{Name: "a", To: []string{"root"}}
	for name, tt := range map[string]struct {
		of     Notify
		change func(*Notify)
		want   string
	}{
		"name":              {hook, func(n *Notify) { n.Name = "A b" }, "limit.notify[0].name"},
		"nowhere":           {hook, func(n *Notify) { n.URL = "" }, "one of url, url_file and to"},
		"two ways":          {hook, func(n *Notify) { n.To = letter.To }, "one of url, url_file and to"},
		"no url":            {hook, func(n *Notify) { n.URL = "example.org" }, "no http or https URL"},
		"password":          {hook, func(n *Notify) { n.URL = "https://u:p@example.org/" }, "url_file"},
		"token without TLS": {hook, func(n *Notify) { n.URL, n.TokenFile = "http://example.org/", "t" }, "without TLS"},
		"body":              {hook, func(n *Notify) { n.Body = `{"a": "{keys}"}` }, "unknown placeholder {keys}"},
		"no JSON":           {hook, func(n *Notify) { n.Body = `{"a": {key}}` }, "is not JSON"},
		"type":              {hook, func(n *Notify) { n.ContentType = "json\r\nX: y" }, "no media type"},
		"header":            {hook, func(n *Notify) { n.Headers = []string{"X y: z"} }, "limit.notify[0].headers[0]"},
		"header's value":    {hook, func(n *Notify) { n.Headers = []string{"X: a\nb"} }, "limit.notify[0].headers[0]"},
		"host":              {hook, func(n *Notify) { n.Headers = []string{"Host: a"} }, "not to be set"},
		"two tokens":        {hook, func(n *Notify) { n.Headers, n.TokenFile = []string{"authorization: a"}, "t" }, "is sent as Authorization"},
		"timeout":           {hook, func(n *Notify) { n.Timeout = conf.Duration(time.Hour) }, "1s to 1m"},
		"ca":                {hook, func(n *Notify) { n.CAFile = "/nonexistent" }, "limit.notify[0].ca_file"},
		"from of a hook":    {hook, func(n *Notify) { n.From = "a@example.org" }, "is for mails"},
		"to an option":      {letter, func(n *Notify) { n.To = []string{"-bs"} }, "limit.notify[0].to[0]"},
		"to a program":      {letter, func(n *Notify) { n.To = []string{"|cat"} }, "limit.notify[0].to[0]"},
		"to two":            {letter, func(n *Notify) { n.To = []string{"a@example.org,b@example.org"} }, "limit.notify[0].to[0]"},
		"to a line":         {letter, func(n *Notify) { n.To = []string{"a@example.org\nBcc: b"} }, "limit.notify[0].to[0]"},
		"from":              {letter, func(n *Notify) { n.From = "postern" }, "limit.notify[0].from"},
		"subject":           {letter, func(n *Notify) { n.Subject = "a\nb" }, "one line"},
		"placeholder":       {letter, func(n *Notify) { n.Subject = "{keys}" }, "unknown placeholder {keys}"},
		"token of a mail":   {letter, func(n *Notify) { n.TokenFile = "t" }, "is for webhooks"},
	} {
		n := tt.of
		tt.change(&n)
		c := DefaultConfig()
		c.Notify = []Notify{n}
		var fs conf.Faults
		if c.Validate("limit", &fs); len(fs) == 0 || !strings.Contains(fs.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, fs, tt.want)
		}
	}
	c := rules(Rule{Name: "a", Quota: quota("1/day"), Notify: []string{"b"}, NotifyPeriod: conf.Duration(time.Second)})
	c.Notify = []Notify{hook, letter, {Name: "ok", URL: "http://[::1]:9/", TokenFile: "t", Body: `{"a": {"b": "{login}", "n": [{used}]}}`}}
	c.Sendmail = "sendmail"
	var fs conf.Faults
	c.Validate("limit", &fs)
	for _, want := range []string{"limit.sendmail: ", "limit.notify[1].name: ", `limit.rule[0].notify[0]: there is no [[limit.notify]] of the name "b"`, "limit.rule[0].notify_period: "} {
		if !strings.Contains(fs.Error(), want) {
			t.Errorf("no %q in %v", want, fs)
		}
	}
	if len(fs) != 4 {
		t.Errorf("%d faults: %v", len(fs), fs)
	}
	if w := c.Warnings("limit"); len(w) != 1 || !strings.Contains(w.Error(), "sendmail is no program") {
		t.Error(w)
	}
	if s := c.Secrets("limit"); s["limit.notify[2].token_file"] != "t" {
		t.Error(s)
	}
}

// Whatever strangers choose, JSON stays the JSON that the operator wrote.
func FuzzNotifyBody(f *testing.F) {
	f.Add(hostile.who, hostile.login)
	f.Add(`{key}`, `\`)
	f.Fuzz(func(t *testing.T, who, login string) {
		ev := event{who: who, login: login, time: noon}
		var out map[string]string
		if err := json.Unmarshal([]byte(ev.fill(`{"a": "{key}", "b": "{login}"}`, "", escapeJSON)), &out); err != nil || len(out) != 2 {
			t.Fatal(err, out)
		}
		if utf8.ValidString(who) && out["a"] != who || utf8.ValidString(login) && out["b"] != login {
			t.Errorf("%q %q became %q", who, login, out)
		}
		form, err := url.ParseQuery(ev.fill("a={key}&b={login}", "", escapeForm))
		if err != nil || len(form) != 2 || form.Get("a") != who {
			t.Errorf("%v, %v", form, err)
		}
		m := &mail{Notify: Notify{To: []string{"root"}, Subject: "{key}", Body: "{login}"}, hostname: "mx.example.org"}
		msg, err := netmail.ReadMessage(bytes.NewReader(m.message(&ev)))
		if err != nil || len(msg.Header) != 10 {
			t.Errorf("%v in %v", err, msg)
		}
	})
}

var mimeDecoder mime.WordDecoder

// decoded returns a body that is in base64.
func decoded(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, r))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
