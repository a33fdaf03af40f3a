package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is a Backend.
type daemon struct {
	ready, reload error
	asked         []Question
}

func (d *daemon) Ready(context.Context) error  { return d.ready }
func (d *daemon) Reload(context.Context) error { return d.reload }

func (d *daemon) Status(context.Context) *Status {
	return &Status{
		Version: "1.2.3", Hostname: "mx.example.com", Started: time.Now(), Mode: policy.Shadow,
		Config:   ConfigStatus{Path: "/etc/postern/postern.toml", Loaded: time.Now(), Fault: "line one\nline two", FaultAt: time.Now(), Restarts: []string{"store"}},
		Chains:   map[string][]CheckMode{"inbound": {{"access", policy.Enforce}, {"rbl", policy.Shadow}}},
		Warnings: []string{"odd"},
		Parts:    []Part{{"first", part{N: 1}}, {"nothing", parts(nil)}, {"last", part{N: 2}}},
	}
}

func (d *daemon) Explain(_ context.Context, q Question) (*policy.Decision, error) {
	d.asked = append(d.asked, q)
	if q.Client == "" {
		return nil, errors.New("no client")
	}
	return &policy.Decision{Chain: "inbound"}, nil
}

// part is a part's status.
type part struct {
	N int `json:"n"`
}

func (p part) WriteStatus(w io.Writer, _ time.Time) { fmt.Fprintf(w, "part      %d\n", p.N) }

type parts []part

func (parts) WriteStatus(io.Writer, time.Time) {}

func serve(t *testing.T, d *daemon, token string, calls ...adminapi.Calls) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(NewServer(d, calls, token, prometheus.NewRegistry(), zap.NewNop()).http.Handler)
	t.Cleanup(func() {
		s.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

// do makes a request and returns status and body.
func do(t *testing.T, method, url, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func TestCalls(t *testing.T) {
	d := &daemon{}
	s := serve(t, d, "", adminapi.Calls{"GET /v1/part/{name}": adminapi.Answer(func(r *http.Request) (any, error) { return r.PathValue("name"), nil })})
	for _, tt := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{"GET", "/healthz", "", 200, "ok\n"},
		{"GET", "/readyz", "", 200, "ready\n"},
		{"GET", "/metrics", "", 200, ""},
		{"GET", "/v1/status", "", 200, `"version":"1.2.3"`},
		{"GET", "/v1/status", "", 200, `,"first":{"n":1},"last":{"n":2}}`},
		{"GET", "/v1/status/text", "", 200, "part      1\npart      2\nwarning   odd\n"},
		{"POST", "/v1/reload", "", 200, "{}"},
		{"POST", "/v1/explain", `{"client":"192.0.2.7","helo":"x"}`, 200, `"chain":"inbound"`},
		{"POST", "/v1/explain", `{}`, 400, "no client"},
		{"POST", "/v1/explain", `{"client":`, 400, "cannot be read"},
		{"POST", "/v1/explain", `{"clinet":"192.0.2.7"}`, 400, `unknown field \"clinet\"`},
		{"POST", "/v1/explain", `{"client":"` + strings.Repeat("x", maxQuestion) + `"}`, 413, "too large"},
		{"GET", "/v1/part/x", "", 200, `"x"`},
		{"GET", "/v1/nowhere", "", 404, ""},
		{"GET", "/", "", 404, ""},
		{"GET", "/v1/reload", "", 405, ""},
		{"DELETE", "/v1/status", "", 405, ""},
		{"POST", "/v1/part/x", "", 405, ""},
	} {
		code, text := do(t, tt.method, s.URL+tt.path, tt.body)
		if code != tt.code || !strings.Contains(text, tt.want) {
			t.Errorf("%s %s %.80s: %d %.300q, want %d %q", tt.method, tt.path, tt.body, code, text, tt.code, tt.want)
		}
	}
	if len(d.asked) != 2 || d.asked[0].Helo != "x" {
		t.Errorf("asked %+v", d.asked)
	}
	d.ready, d.reload = errors.New("no address"), errors.New("line 3: no such key")
	for path, want := range map[string]string{"GET /readyz": "503 not ready: no address", "POST /v1/reload": "422 {\"error\":\"line 3: no such key\"}"} {
		method, path, _ := strings.Cut(path, " ")
		if code, text := do(t, method, s.URL+path, ""); strings.TrimSpace(fmt.Sprint(code, " ", text)) != want {
			t.Errorf("%s: %d %q, want %q", path, code, text, want)
		}
	}
}

func TestStatusForPeople(t *testing.T) {
	s := serve(t, &daemon{}, "")
	_, text := do(t, "GET", s.URL+"/v1/status/text", "")
	for _, want := range []string{
		"postern 1.2.3 on mx.example.com, pid 0, up 0s, the whole daemon in shadow mode\n",
		"RELOAD REFUSED 0s ago, the configuration above stays in force:\n          line one\n          line two\n",
		"waits for a restart: store\n", "chain     inbound: access, rbl (shadow)\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	_, text = do(t, "GET", s.URL+"/v1/status", "")
	var any map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &any); err != nil || any["nothing"] != nil || any["config"] == nil {
		t.Errorf("%v in %s", err, text)
	}
}

func TestToken(t *testing.T) {
	s := serve(t, &daemon{}, "s3cret")
	for _, tt := range []struct {
		path, authorization string
		code                int
	}{
		{"/v1/status", "Bearer s3cret", 200},
		{"/metrics", "Bearer s3cret", 200},
		{"/v1/status", "", 401},
		{"/metrics", "", 401},
		{"/v1/nowhere", "", 401},
		{"/v1/status", "Bearer s3cre", 401},
		{"/v1/status", "Bearer s3cret2", 401},
		{"/v1/status", "Basic s3cret", 401},
		{"/v1/status", "s3cret", 401},
		{"/healthz", "", 200},
		{"/readyz", "", 200},
		{"//healthz", "", 401},
	} {
		if code, text := do(t, "GET", s.URL+tt.path, "", "Authorization", tt.authorization); code != tt.code {
			t.Errorf("%s with %q: %d %s, want %d", tt.path, tt.authorization, code, text, tt.code)
		}
	}
}

// A body that no call would take is not read to its end.
func TestBodiesAreBounded(t *testing.T) {
	var n int
	s := serve(t, &daemon{}, "", adminapi.Calls{"POST /v1/eat": adminapi.Answer(func(r *http.Request) (any, error) {
		b, err := io.ReadAll(r.Body)
		n = len(b)
		return n, err
	})})
	code, text := do(t, "POST", s.URL+"/v1/eat", strings.Repeat("x", maxBody+1))
	if code != 413 || n > maxBody {
		t.Errorf("%d %s after %d bytes", code, text, n)
	}
}

func TestServeAndStop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(&daemon{}, nil, "", prometheus.NewRegistry(), zap.NewNop())
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	c := Client{adminapi.NewClient(path, "")}
	if _, err := c.StatusText(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, adminapi.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{DefaultConfig(), ""},
		{Config{}, ""},
		{Config{Listen: "tcp:127.0.0.1:1", TokenFile: "/t"}, ""},
		{Config{Listen: "tcp:127.0.0.1:1"}, "admin.listen: a tcp address needs admin.token_file"},
		{Config{Listen: "nonsense"}, "admin.listen: "},
	} {
		var fs conf.Faults
		tt.cfg.Validate("admin", &fs)
		if got := fmt.Sprint(fs.Err()); tt.want == "" && fs.Err() != nil || !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %s, want %q", tt.cfg, got, tt.want)
		}
	}
}
