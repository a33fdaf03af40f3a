package adminapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

func serve(t *testing.T, calls Calls) *Client {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, handler := range calls {
		mux.Handle(pattern, handler)
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return NewClient("tcp:"+s.Listener.Addr().String(), "")
}

func numbers(n int, end error) http.Handler {
	return Lines(zap.NewNop(), func(_ *http.Request, yield func(int) bool) error {
		for i := range n {
			if !yield(i) {
				return nil
			}
		}
		return end
	})
}

func TestLines(t *testing.T) {
	c := serve(t, Calls{
		"GET /ten": numbers(10, nil), "GET /none": numbers(0, nil), "GET /endless": numbers(1<<30, nil),
		"GET /bad": numbers(0, errors.New("no such filter")), "GET /down": numbers(0, Unavailable(errors.New("no store"))), "GET /breaks": numbers(3, errors.New("gone")),
	})
	for _, tt := range []struct {
		path string
		most int
		n    int
		want string
	}{
		{"/ten", 100, 10, ""},
		{"/ten", 4, 4, ""},
		{"/none", 100, 0, ""},
		{"/endless", 1000, 1000, ""},
		{"/bad", 100, 0, "no such filter"},
		{"/down", 100, 0, "no store"},
		{"/breaks", 100, 3, "broke off"},
	} {
		n := 0
		err := Each(t.Context(), c, tt.path, func(i int) bool {
			if i != n {
				t.Errorf("%s: %d, want %d", tt.path, i, n)
			}
			n++
			return n < tt.most
		})
		if n != tt.n || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %d values, %v", tt.path, n, err)
		}
	}
}

func TestErrors(t *testing.T) {
	plain := errors.New("what is wrong")
	for name, tt := range map[string]struct {
		err  error
		code int
	}{
		"the request's":  {plain, 400},
		"not there":      {NotFound(plain), 404},
		"no right":       {Unauthorized(plain), 401},
		"not ours":       {Unavailable(plain), 503},
		"refused":        {Refused(plain), 422},
		"inside another": {fmt.Errorf("really: %w", NotFound(plain)), 404},
		"too large":      {fmt.Errorf("body: %w", &http.MaxBytesError{Limit: 1}), 413},
	} {
		w := httptest.NewRecorder()
		Answer(func(*http.Request) (any, error) { return nil, tt.err }).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if w.Code != tt.code || !strings.Contains(w.Body.String(), `{"error":"`) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	if Unavailable(nil) != nil {
		t.Error("no error became one")
	}
	if !errors.Is(NotFound(plain), plain) {
		t.Error("the error is hidden")
	}
}

func TestDecode(t *testing.T) {
	var v struct {
		A int `json:"a"`
	}
	for body, want := range map[string]string{
		`{"a":7}`: "", `{"a":"x"}`: "cannot be read", `{"b":1}`: "unknown field", "": "EOF", `{"a":7}x`: "something follows", `{"a":7} {}`: "something follows", "{\"a\":7} \n": "", `{"a":` + strings.Repeat(" ", 100) + `1}`: "too large",
	} {
		err := Decode(httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)), 50, &v)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %q", body, err, want)
		}
	}
	for query, want := range map[string]int{"": 0, "limit=": 0, "limit=7": 7, "limit=0": 0, "limit=-1": -1, "limit=x": -1} {
		n, err := Limit(httptest.NewRequest(http.MethodGet, "/?"+query, nil))
		if (err != nil) != (want < 0) || err == nil && n != want {
			t.Errorf("%q: %d, %v", query, n, err)
		}
	}
	for text, want := range map[string]string{"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "fe80::1%eth0": "fe80::1", "mail.example.org": ""} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.SetPathValue("addr", text)
		addr, err := Addr(r, "addr")
		if (err != nil) != (want == "") || err == nil && addr.String() != want {
			t.Errorf("%q: %v, %v", text, addr, err)
		}
	}
}

func TestAnotherVersionAnswers(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/known", Answer(func(*http.Request) (any, error) { return nil, NotFound(errors.New("no such entry")) }))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	c := NewClient("tcp:"+s.Listener.Addr().String(), "")
	for call, want := range map[string]string{
		"GET /v1/new": "has no call GET /v1/new: it may be of another version", "GET /v1/known": "has no call GET /v1/known", "POST /v1/known": "no such entry",
	} {
		method, path, _ := strings.Cut(call, " ")
		if err := c.Call(t.Context(), method, path, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", call, err, want)
		}
	}
}

func TestNobodyAnswers(t *testing.T) {
	for address, hint := range map[string]string{
		filepath.Join(t.TempDir(), "a.sock"):                     "is postern running",
		"unix:" + filepath.Join(t.TempDir(), "a.sock,mode=0660"): "is postern running",
		"tcp:127.0.0.1:1": "",
	} {
		err := NewClient(address, "").Call(t.Context(), http.MethodGet, "/", nil, nil)
		if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), hint) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestTexts(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		d    time.Duration
		want string
	}{
		{0, "0s"}, {119*time.Second + 900*time.Millisecond, "1m59s"}, {2 * time.Minute, "2m"}, {47*time.Hour + 59*time.Minute, "47h59m"}, {48 * time.Hour, "2d"}, {800 * time.Hour, "33d"},
	} {
		if got := Ago(now, now.Add(-tt.d)); got != tt.want {
			t.Errorf("%v ago is %q, want %q", tt.d, got, tt.want)
		}
		if got := Until(now, now.Add(tt.d)); tt.d > 0 && got != "in "+tt.want {
			t.Errorf("in %v is %q", tt.d, got)
		}
	}
	if Ago(now, time.Time{}) != "-" || Until(now, time.Time{}) != "-" || Until(now, now.Add(-time.Hour)) != "-" {
		t.Error("no time")
	}
	for d, want := range map[time.Duration]time.Duration{1234: 1200, 1_234_567: 1_230_000, 1_234_567_890: 1_235_000_000} {
		if got := Tidy(d); got != want {
			t.Errorf("%v became %v", d, got)
		}
	}
	if got := Printable("a\x1b[31m\u009bb\tü\u202eg\u200b\u2028\x7f\U000e0041"); got != "a?[31m?b?ü?g????" {
		t.Errorf("%q", got)
	}
}
