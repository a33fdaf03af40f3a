package console

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"postern/internal/conf"
	"postern/internal/page"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cheap is a hash that costs little.
func cheap(password string) string {
	h := hash{time: 1, memory: 64, threads: 1, salt: []byte("saltsalt"), key: make([]byte, 16)}
	h.key = keyOf(&h, password)
	return h.String()
}

const hostile = `"><script>alert(1)</script><img src=x onerror=alert(1)>'{{.}}javascript:alert(1)`

// testPages show what strangers wrote, in every place where a page can show
// something.
func testPages(did *[]url.Values) []page.Page {
	return []page.Page{
		{Name: "first", Title: "First", Group: "Mail", Show: func(_ context.Context, a *page.Ask) (*page.View, error) {
			v := &page.View{Title: hostile, Intro: hostile}
			cell := page.Cell{Text: hostile, Note: hostile, Href: page.Link("first", "x", hostile), Buttons: []page.Button{{Action: "change", Label: hostile, Values: page.Values("x", hostile), Confirm: hostile}}}
			v.Add(page.Notice{Tone: page.Bad, Text: hostile, Lines: []string{hostile}}, page.Tiles{{Name: hostile, Value: hostile, Note: hostile}},
				page.Facts{Title: hostile, Rows: []page.Fact{{Name: hostile, Value: cell}}},
				page.Table{Title: hostile, Columns: []string{hostile}, Rows: [][]page.Cell{{cell, page.Code(hostile), page.State(page.Bad, hostile), {Text: hostile, Time: a.Now}}}, Live: true, More: hostile},
				page.Form{Title: hostile, Action: "change", Submit: hostile, Fields: []page.Field{
					{Name: "x", Label: hostile, Value: hostile, Hint: hostile, Placeholder: hostile}, {Name: "t", Label: "t", Type: "textarea", Value: "</textarea>" + hostile},
					{Name: "s", Label: "s", Type: "select", Choices: page.Choices("any", hostile)}, {Name: "h", Type: "hidden", Value: hostile},
				}},
				page.Text{Title: hostile, Text: "</pre>" + hostile, Copy: true}, page.Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}})
			return v, nil
		}, Actions: []page.Action{
			{Name: "change", Do: func(_ context.Context, a *page.Ask) (*page.Done, error) {
				*did = append(*did, a.Values)
				if a.Get("x") == "bad" {
					return nil, errors.New("no: " + hostile)
				}
				return &page.Done{Text: "done " + hostile, Before: "old", After: "new"}, nil
			}},
			{Name: "try", Trial: true, Do: func(context.Context, *page.Ask) (*page.Done, error) {
				return &page.Done{View: &page.View{Title: "Tried"}}, nil
			}},
		}},
		{Name: "secret", Title: "Secret", Group: "Mail", Role: page.RoleAdmin, Show: func(context.Context, *page.Ask) (*page.View, error) { return nil, errors.New("broken: " + hostile) },
			Actions: []page.Action{{Name: "set", Do: func(context.Context, *page.Ask) (*page.Done, error) { return &page.Done{}, nil }}}},
	}
}

type site struct {
	*httptest.Server
	s   *Server
	did []url.Values
	dir string
}

func open(t *testing.T, change func(*Config, *Options)) *site {
	t.Helper()
	st := &site{dir: t.TempDir()}
	cfg := DefaultConfig()
	cfg.UsersFile, cfg.AuditFile = filepath.Join(st.dir, "users"), filepath.Join(st.dir, "audit")
	text := ""
	for _, role := range roleNames {
		text += role + ":" + role + ":" + cheap("password of "+role) + "\n"
	}
	text += "coded:view:" + cheap("password of coded") + ":" + secret + "\n"
	write(t, cfg.UsersFile, text)
	o := Options{Pages: testPages(&st.did), Hostname: "mx.example.com", Version: "1.2.3", Log: zaptest.NewLogger(t)}
	if change != nil {
		change(&cfg, &o)
	}
	s, err := New(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	st.s, st.Server = s, httptest.NewServer(s.http.Handler)
	t.Cleanup(func() {
		s.live.close()
		st.Close()
	})
	return st
}

const secret = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"

var roleNames = []string{"view", "operate", "admin"}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// browser keeps cookies and follows nothing.
type browser struct {
	*http.Client
	site *site
	csrf string
}

func (st *site) browser(t *testing.T) *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{&http.Client{Jar: jar, Transport: &http.Transport{}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, st, ""}
	t.Cleanup(b.CloseIdleConnections)
	return b
}

func (b *browser) do(t *testing.T, method, path string, form url.Values, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, b.site.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := b.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text)
}

var tokenField = regexp.MustCompile(`name="_csrf" value="([^"]+)"`)

func tokenOf(t *testing.T, text string) string {
	t.Helper()
	m := tokenField.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no token in\n%s", text)
	}
	return m[1]
}

// try makes a login and returns what came of it.
func (b *browser) try(t *testing.T, form url.Values) (*http.Response, string) {
	t.Helper()
	_, text := b.do(t, http.MethodGet, "/login", nil)
	form.Set("_csrf", tokenOf(t, text))
	return b.do(t, http.MethodPost, "/login", form)
}

func (b *browser) login(t *testing.T, name string) *browser {
	t.Helper()
	if res, text := b.try(t, url.Values{"name": {name}, "password": {"password of " + name}}); res.StatusCode != http.StatusSeeOther {
		t.Fatalf("login: %d\n%s", res.StatusCode, text)
	}
	_, text := b.do(t, http.MethodGet, "/account", nil)
	b.csrf = tokenOf(t, text)
	return b
}

// The table of all routes is walked by everybody: without a session, and with
// each role.
func TestRoutesByRole(t *testing.T) {
	st := open(t, nil)
	users := map[page.Role]*browser{}
	for i, name := range roleNames {
		users[page.Role(i+1)] = st.browser(t).login(t, name)
	}
	nobody := st.browser(t)
	if len(st.s.routes) < 14 {
		t.Fatalf("%d routes", len(st.s.routes))
	}
	for _, r := range st.s.routes {
		if r.pattern == "/logout" || strings.HasPrefix(r.pattern, "/account/") || r.pattern == "/live" {
			continue // they end the session, or stay; each has its test
		}
		path := strings.NewReplacer("{$}", "", "{name}", assetNames["console.css"]).Replace(r.pattern)
		res, _ := nobody.do(t, r.method, path, nil)
		switch {
		case r.pattern == "/login" && r.method == http.MethodPost:
			if res.StatusCode != http.StatusForbidden {
				t.Errorf("%s %s without its token: %d", r.method, path, res.StatusCode)
			}
			continue
		case r.role == 0:
			if res.StatusCode != http.StatusOK {
				t.Errorf("%s %s by nobody: %d", r.method, path, res.StatusCode)
			}
			continue
		case r.method == http.MethodGet && (res.StatusCode != http.StatusSeeOther || !strings.HasPrefix(res.Header.Get("Location"), "/login?next=")):
			t.Errorf("GET %s by nobody: %d to %s", path, res.StatusCode, res.Header.Get("Location"))
		case r.method == http.MethodPost && res.StatusCode != http.StatusUnauthorized:
			t.Errorf("POST %s by nobody: %d", path, res.StatusCode)
		}
		for role, b := range users {
			res, text := b.do(t, r.method, path, url.Values{"_csrf": {b.csrf}})
			if got, want := res.StatusCode == http.StatusForbidden, role < r.role; got != want {
				t.Errorf("%s %s by %s: %d, forbidden should be %v\n%.200s", r.method, path, role, res.StatusCode, want, text)
			}
			if r.method != http.MethodPost {
				continue
			}
			for _, token := range []string{"", "x", users[page.RoleAdmin].csrf + "x", nobody.csrf} {
				if res, _ := b.do(t, r.method, path, url.Values{"_csrf": {token}}); res.StatusCode != http.StatusForbidden {
					t.Errorf("POST %s by %s with token %q: %d", path, role, token, res.StatusCode)
				}
			}
		}
	}
	if res, _ := users[page.RoleOperate].do(t, "POST", "/p/first/change", url.Values{"_csrf": {users[page.RoleAdmin].csrf}}); res.StatusCode != http.StatusForbidden {
		t.Errorf("another one's token: %d", res.StatusCode)
	}
	for _, path := range []string{"/nowhere", "/p/none", "/static/../users", "/static/x", "/p/first/none"} {
		if res, _ := users[page.RoleAdmin].do(t, "GET", path, nil); res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusMethodNotAllowed && res.StatusCode/100 != 3 {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
}

func TestOrdersOfOtherSites(t *testing.T) {
	st := open(t, nil)
	b := st.browser(t).login(t, "operate")
	form := url.Values{"_csrf": {b.csrf}, "x": {"1"}}
	for header, value := range map[string]string{"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"} {
		if res, _ := b.do(t, "POST", "/p/first/change", form, header, value); res.StatusCode != http.StatusForbidden {
			t.Errorf("%s %s: %d", header, value, res.StatusCode)
		}
	}
	if len(st.did) != 0 {
		t.Errorf("it was done: %v", st.did)
	}
	if res, _ := b.do(t, "POST", "/p/first/change", form, "Sec-Fetch-Site", "same-origin"); res.StatusCode != http.StatusSeeOther || len(st.did) != 1 {
		t.Errorf("its own order: %d, %v", res.StatusCode, st.did)
	}
}

func TestHeaders(t *testing.T) {
	st := open(t, nil)
	b := st.browser(t)
	for _, path := range []string{"/login", "/nowhere", "/p/first", "/static/" + assetNames["console.js"]} {
		res, _ := b.do(t, "GET", path, nil)
		csp := res.Header.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: %q", path, csp)
		}
		if res.Header.Get("X-Content-Type-Options") != "nosniff" || res.Header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s: %v", path, res.Header)
		}
		if len(res.Cookies()) > 0 {
			c := res.Cookies()[0]
			if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Secure {
				t.Errorf("%s: %v", path, c)
			}
		}
	}
}

// Whatever a stranger wrote stays text.
func TestStrangersWriteNoHTML(t *testing.T) {
	st := open(t, func(_ *Config, o *Options) {
		o.Hostname, o.Version = hostile, hostile
	})
	b := st.browser(t).login(t, "admin")
	pages := []string{"/p/first?x=" + url.QueryEscape(hostile), "/p/secret", "/account", "/audit?find=" + url.QueryEscape(hostile) + "&user=" + url.QueryEscape(hostile), "/nowhere?" + url.QueryEscape(hostile)}
	texts := map[string]string{}
	b.do(t, "POST", "/p/first/change", url.Values{"_csrf": {b.csrf}, hostile: {hostile}, "x": {hostile}})
	for _, path := range pages {
		_, texts[path] = b.do(t, "GET", path, nil)
	}
	_, texts["message"] = b.do(t, "GET", "/p/first", nil)
	_, texts["audit"] = b.do(t, "GET", "/audit", nil)
	_, texts["confirm"] = b.do(t, "POST", "/p/first/change", url.Values{"_csrf": {b.csrf}, "_ask": {hostile}, "_query": {hostile}, hostile: {hostile}})
	_, texts["login"] = st.browser(t).try(t, url.Values{"name": {hostile[:60]}, "password": {hostile}, "next": {hostile}})
	for what, text := range texts {
		if strings.Contains(text, "<script>alert") || strings.Contains(text, "<img src=x") || strings.Contains(text, "</textarea>\"><") || strings.Contains(text, "</pre>\"><") {
			t.Errorf("%s holds what a stranger wrote:\n%s", what, text)
		}
		if strings.Contains(text, `href="javascript:`) || regexp.MustCompile(`<[^>]+ (style|on[a-z]+)=`).MatchString(strings.ReplaceAll(text, "onerror=alert", "")) {
			t.Errorf("%s has a script or style inside:\n%s", what, text)
		}
	}
	if !strings.Contains(texts["audit"], "&lt;script&gt;") {
		t.Errorf("what was done is not in the audit log:\n%s", texts["audit"])
	}
	event, err := eventText(page.Event{{Text: hostile + "\n\nevent: x\ndata: y", Note: hostile, Href: page.Link("x", "y", hostile)}})
	if err != nil || strings.Contains(string(event), "<script>alert") {
		t.Errorf("%v\n%s", err, event)
	}
	for line := range strings.Lines(strings.TrimSuffix(string(event), "\n")) {
		if !strings.HasPrefix(line, "data: ") {
			t.Errorf("an event holds another: %q", event)
		}
	}
}

func TestActions(t *testing.T) {
	st := open(t, nil)
	b := st.browser(t).login(t, "operate")
	res, _ := b.do(t, "POST", "/p/first/change", url.Values{"_csrf": {b.csrf}, "_query": {"a=b&c=%0d%0ax"}, "x": {"1"}})
	if got := res.Header.Get("Location"); got != "/p/first?a=b&c=%0D%0Ax" {
		t.Errorf("back to %q", got)
	}
	if len(st.did) != 1 || len(st.did[0]) != 1 || st.did[0].Get("x") != "1" {
		t.Errorf("%v", st.did)
	}
	if _, text := b.do(t, "GET", "/p/first", nil); !strings.Contains(text, `role="status"><p>done `) {
		t.Errorf("it does not say what was done:\n%s", text)
	}
	b.do(t, "POST", "/p/first/change", url.Values{"_csrf": {b.csrf}, "x": {"bad"}})
	if _, text := b.do(t, "GET", "/p/first", nil); !strings.Contains(text, `role="status"><p>No: `) {
		t.Errorf("it does not say what went wrong:\n%s", text)
	}
	if _, text := b.do(t, "POST", "/p/first/try", url.Values{"_csrf": {b.csrf}}); !strings.Contains(text, "<h1>Tried</h1>") {
		t.Errorf("a trial:\n%s", text)
	}
	all, err := st.s.audit.last(10, func(*Entry) bool { return true })
	if err != nil || len(all) != 3 || all[0].Error == "" || all[1].Before != "old" || all[1].After != "new" || all[1].User != "operate" || all[1].From != "127.0.0.1" || all[2].Action != "login" {
		t.Errorf("%v: %+v", err, all)
	}
	// Without an audit log nothing is changed.
	done := len(st.did)
	st.s.audit.path = filepath.Join(st.dir, "none", "audit")
	if res, _ := b.do(t, "POST", "/p/first/change", url.Values{"_csrf": {b.csrf}}); res.StatusCode != http.StatusServiceUnavailable || len(st.did) != done {
		t.Errorf("%d, %v", res.StatusCode, st.did)
	}
}

func TestUploadsAreBounded(t *testing.T) {
	st := open(t, func(c *Config, _ *Options) { c.MaxUpload = 64 << 10 })
	b := st.browser(t).login(t, "operate")
	if res, _ := b.do(t, "POST", "/p/first/change", url.Values{"_csrf": {b.csrf}, "x": {strings.Repeat("x", 64<<10)}}); res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a large form: %d", res.StatusCode)
	}
	if res, _ := b.do(t, "POST", "/login", url.Values{"x": {strings.Repeat("x", maxLogin)}}); res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a large login: %d", res.StatusCode)
	}
	many := url.Values{"_csrf": {b.csrf}}
	for i := range 500 {
		many.Add(fmt.Sprint("f", i), "x")
		many.Add("one", "x")
	}
	b.do(t, "POST", "/p/first/change", many)
	if len(st.did) != 1 || len(st.did[0]) > maxFields || len(st.did[0]["one"]) > maxParts {
		t.Errorf("%d fields", len(st.did[0]))
	}
	var body strings.Builder
	body.WriteString("--b\r\nContent-Disposition: form-data; name=\"_csrf\"\r\n\r\n" + b.csrf + "\r\n--b\r\nContent-Disposition: form-data; name=\"message\"; filename=\"../../x\"\r\n\r\nhello\r\n--b--\r\n")
	req, err := http.NewRequestWithContext(t.Context(), "POST", st.URL+"/p/first/change", strings.NewReader(body.String()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "multipart/form-data; boundary=b")
	res, err := b.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if len(st.did) != 2 || st.did[1].Get("message") != "hello" {
		t.Errorf("%d: %v", res.StatusCode, st.did[1:])
	}
}

func TestLogin(t *testing.T) {
	st := open(t, nil)
	for what, form := range map[string]url.Values{
		"nobody": {"name": {"nobody"}, "password": {"password of view"}}, "wrong": {"name": {"view"}, "password": {"password of admin"}}, "empty": {},
		"long": {"name": {"view"}, "password": {strings.Repeat("x", 1000)}}, "no code": {"name": {"coded"}, "password": {"password of coded"}},
		"wrong code": {"name": {"coded"}, "password": {"password of coded"}, "code": {"000000"}},
	} {
		st.s.guesses = guesses{}
		b := st.browser(t)
		if res, text := b.try(t, form); res.StatusCode != http.StatusUnauthorized || !strings.Contains(text, errWrong.Error()) {
			t.Errorf("%s: %d\n%s", what, res.StatusCode, text)
		}
		if res, _ := b.do(t, "GET", "/p/first", nil); res.StatusCode != http.StatusSeeOther {
			t.Errorf("%s: %d afterwards", what, res.StatusCode)
		}
	}
	st.s.guesses = guesses{}
	code, err := TOTPCode(secret, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	form := url.Values{"name": {"coded"}, "password": {"password of coded"}, "code": {code[:3] + " " + code[3:]}, "next": {"/p/first?a=b"}}
	b := st.browser(t)
	if res, _ := b.try(t, form); res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != "/p/first?a=b" {
		t.Errorf("with a code: %d to %s", res.StatusCode, res.Header.Get("Location"))
	}
	if res, _ := st.browser(t).try(t, form); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("with a code that was used: %d", res.StatusCode)
	}
}

// A session's name is made at the login, whatever the browser came with.
func TestFixation(t *testing.T) {
	st := open(t, nil)
	b := st.browser(t)
	u, err := url.Parse(st.URL)
	if err != nil {
		t.Fatal(err)
	}
	b.Jar.SetCookies(u, []*http.Cookie{{Name: "postern", Value: "known", Path: "/"}})
	b.login(t, "view")
	token := func() string {
		for _, c := range b.Jar.Cookies(u) {
			if c.Name == "postern" {
				return c.Value
			}
		}
		return ""
	}
	first := token()
	if first == "known" || len(first) < 40 {
		t.Fatalf("session %q", first)
	}
	b.do(t, "POST", "/logout", url.Values{"_csrf": {b.csrf}})
	b.Jar.SetCookies(u, []*http.Cookie{{Name: "postern", Value: first, Path: "/"}})
	if res, _ := b.do(t, "GET", "/p/first", nil); res.StatusCode != http.StatusSeeOther {
		t.Errorf("a session that has ended: %d", res.StatusCode)
	}
}

func TestSessionsEnd(t *testing.T) {
	now := time.Now()
	s := sessions{idle: time.Minute, absolute: time.Hour}
	u := &User{Name: "a"}
	token, _ := s.begin(u, "", now)
	for i := range 120 {
		at := now.Add(time.Duration(i) * 59 * time.Second)
		if got, want := s.find(token, at, true) != nil, at.Sub(now) < time.Hour; got != want {
			t.Fatalf("after %v: %v", at.Sub(now), got)
		}
	}
	token, _ = s.begin(u, "", now)
	if s.find(token, now.Add(59*time.Second), false) == nil || s.find(token, now.Add(time.Minute), true) != nil {
		t.Error("it does not end when nothing is done")
	}
	for range 3 * maxOfOneUser {
		s.begin(u, "", now)
	}
	if n := s.of("a", now); n != maxOfOneUser {
		t.Errorf("%d sessions of one user", n)
	}
	for i := range maxSessions + 10 {
		s.begin(&User{Name: fmt.Sprint(i)}, "", now)
	}
	if len(s.all) != maxSessions {
		t.Errorf("%d sessions", len(s.all))
	}
}

// Another password, role or no user at all takes effect at once.
func TestUsersChange(t *testing.T) {
	st := open(t, nil)
	b := st.browser(t).login(t, "admin")
	change := func(text string) {
		write(t, st.s.users.path, text)
		st.s.users.looked = time.Time{}
	}
	change("admin:view:" + cheap("password of admin") + "\n")
	if res, _ := b.do(t, "GET", "/audit", nil); res.StatusCode != http.StatusForbidden {
		t.Errorf("with a lesser role: %d", res.StatusCode)
	}
	change("admin:admin:" + cheap("another password") + "\n")
	if res, _ := b.do(t, "GET", "/p/first", nil); res.StatusCode != http.StatusSeeOther {
		t.Errorf("with another password: %d", res.StatusCode)
	}
	change("nonsense\n")
	if res, text := b.try(t, url.Values{"name": {"admin"}, "password": {"another password"}}); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("with a bad file: %d\n%s", res.StatusCode, text)
	}
}

func TestAccount(t *testing.T) {
	st := open(t, nil)
	b, other := st.browser(t).login(t, "view"), st.browser(t).login(t, "view")
	b.do(t, "POST", "/account/others", url.Values{"_csrf": {b.csrf}})
	if res, _ := other.do(t, "GET", "/p/first", nil); res.StatusCode != http.StatusSeeOther {
		t.Errorf("the other session: %d", res.StatusCode)
	}
	for want, form := range map[string]url.Values{
		"is wrong":     {"old": {"x"}, "new": {"long enough"}, "again": {"long enough"}},
		"at least":     {"old": {"password of view"}, "new": {"short"}, "again": {"short"}},
		"in the same":  {"old": {"password of view"}, "new": {"long enough"}, "again": {"long enouhg"}},
		"present pass": {"new": {"long enough"}, "again": {"long enough"}},
	} {
		form.Set("_csrf", b.csrf)
		b.do(t, "POST", "/account/password", form)
		if _, text := b.do(t, "GET", "/account", nil); !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	res, _ := b.do(t, "POST", "/account/password", url.Values{"_csrf": {b.csrf}, "old": {"password of view"}, "new": {"long enough"}, "again": {"long enough"}})
	if res.Header.Get("Location") != "/login" {
		t.Errorf("to %s", res.Header.Get("Location"))
	}
	st.s.users.looked = time.Time{}
	if res, text := b.try(t, url.Values{"name": {"view"}, "password": {"long enough"}}); res.StatusCode != http.StatusSeeOther {
		t.Errorf("with the new password: %d\n%s", res.StatusCode, text)
	}
}

func TestGuesses(t *testing.T) {
	now := time.Now()
	var g guesses
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::1")
	for i := range 30 {
		want := time.Duration(0)
		if i >= freeGuesses {
			want = min(time.Second<<(i-freeGuesses), maxWait)
		}
		if got := g.wait(netip.MustParseAddr("2001:db8::2"), "ann", now); got != max(want, 0) {
			t.Errorf("after %d: %v, want %v", i, got, want)
		}
		g.failed(a, "ann", now)
	}
	if got := g.wait(b, "ann", now); got != maxNameWait {
		t.Errorf("from elsewhere: %v", got)
	}
	if got := g.wait(b, "bob", now); got != 0 {
		t.Errorf("another name from elsewhere: %v", got)
	}
	g.succeeded(a, "ann")
	if got := g.wait(a, "ann", now); got != 0 {
		t.Errorf("after a good one: %v", got)
	}
	for i := range maxGuesses * 2 {
		g.failed(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), "x", now)
	}
	if len(g.by) > maxGuesses {
		t.Errorf("%d are counted", len(g.by))
	}
	st := open(t, nil)
	br := st.browser(t)
	for range freeGuesses {
		br.try(t, url.Values{"name": {"view"}, "password": {"x"}})
	}
	if res, _ := br.try(t, url.Values{"name": {"view"}, "password": {"password of view"}}); res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("a sixth: %d", res.StatusCode)
	}
}

func TestNext(t *testing.T) {
	for next, want := range map[string]string{
		"/p/first?a=b#c": "/p/first?a=b", "/audit": "/audit", "": "/", "https://evil.example/p/": "/", "//evil.example/p/x": "/", `/\evil.example`: "/", "/p/x\r\nSet-Cookie: a": "/",
		"javascript:alert(1)": "/", "/logout": "/", "p/x": "/", "/p/" + strings.Repeat("x", maxNextPath): "/", `/p/\evil`: "/",
	} {
		if got := safeNext(next); got != want {
			t.Errorf("%q: %q, want %q", next, got, want)
		}
	}
}

func TestPeer(t *testing.T) {
	s := &Server{cfg: Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}
	for _, tt := range []struct {
		remote, forwarded, proto, want string
		secure                         bool
	}{
		{"198.51.100.1:1", "", "", "198.51.100.1", false},
		{"198.51.100.1:1", "203.0.113.1", "https", "198.51.100.1", false},
		{"192.0.2.1:1", "203.0.113.1", "https", "203.0.113.1", true},
		{"192.0.2.1:1", "1.2.3.4, 203.0.113.1, 192.0.2.9", "http", "203.0.113.1", false},
		{"192.0.2.1:1", "1.2.3.4, nonsense, 192.0.2.9", "", "192.0.2.9", false},
		{"192.0.2.1:1", "", "", "192.0.2.1", false},
		{"[::ffff:192.0.2.1]:1", "2001:db8::1", "HTTPS", "2001:db8::1", true},
		{"@", "203.0.113.1", "https", "203.0.113.1", true},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = tt.remote
		r.Header.Set("X-Forwarded-For", tt.forwarded)
		r.Header.Set("X-Forwarded-Proto", tt.proto)
		if addr, secure := s.peer(r); addr.String() != tt.want || secure != tt.secure {
			t.Errorf("%+v: %v, %v", tt, addr, secure)
		}
	}
	st := open(t, func(c *Config, _ *Options) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	res, _ := st.browser(t).do(t, "GET", "/login", nil, "X-Forwarded-Proto", "https", "X-Forwarded-For", "203.0.113.1")
	if c := res.Cookies(); len(c) != 1 || !c[0].Secure || res.Header.Get("Strict-Transport-Security") == "" {
		t.Errorf("%v %v", c, res.Header)
	}
}

// RFC 6238, appendix B, its last six digits.
func TestTOTP(t *testing.T) {
	key := []byte("12345678901234567890")
	for at, want := range map[int64]string{59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037", 20000000000: "353130"} {
		if got := totpCode(key, stepOf(time.Unix(at, 0))); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
	}
	now := time.Unix(1111111111, 0)
	for shift, want := range map[time.Duration]bool{0: true, totpStep: true, -totpStep: true, 2 * totpStep: false, -2 * totpStep: false} {
		if _, ok := matchTOTP(key, totpCode(key, stepOf(now.Add(shift))), now, 0); ok != want {
			t.Errorf("%v off: %v", shift, ok)
		}
	}
	if s := NewTOTP(); len(s) != 32 {
		t.Errorf("secret %q", s)
	}
	if got := TOTPLink("mx.example.com", "ann", "S"); got != "otpauth://totp/postern%20mx.example.com:ann?issuer=postern+mx.example.com&secret=S" {
		t.Error(got)
	}
}

func TestUsersFile(t *testing.T) {
	h := cheap("x")
	text := "# a comment\n\nann:admin:" + h + "\nbob:view:" + h + ":" + secret + "\n"
	all, err := ParseUsers("f", []byte(text))
	if err != nil || len(all) != 2 || all[1].TOTP != secret || all[0].Role != page.RoleAdmin {
		t.Errorf("%v, %+v", err, all)
	}
	for line, want := range map[string]string{
		"ann": "f:1:1: a line is", "a b:view:" + h: "no user name", "ann:boss:" + h: "no role", "ann:view:x": "no hash", "ann:view:" + h + ":x": "no base32",
		"ann:view:" + h + "\nann:view:" + h: "f:2:1: ann stands here a second time", "ann:view:$argon2id$v=19$m=4294967295,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA": "out of range",
		"ann:view:$argon2id$v=19$m=64,t=1,p=0$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA": "out of range", "ann:view:$argon2id$v=19$m=64,t=1,p=1,x=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA": "no hash",
	} {
		if _, err := ParseUsers("f", []byte(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
	path := filepath.Join(t.TempDir(), "users")
	add := func(name string) error {
		return ChangeUsers(path, func(all []User) ([]User, error) {
			return append(all, User{Name: name, Role: page.RoleView, Password: h}), nil
		})
	}
	for _, name := range []string{"ann", "bob"} {
		if err := add(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := add("bob"); err == nil {
		t.Error("bob twice")
	}
	if all, err := ReadUsers(path); err != nil || len(all) != 2 {
		t.Errorf("%v, %+v", err, all)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", err, st.Mode())
	}
	full := Hash("a password that is long")
	if p, err := parseHash(full); err != nil || !p.is("a password that is long") || p.is("another") {
		t.Errorf("%v: %s", err, full)
	}
}

func FuzzUsers(f *testing.F) {
	f.Add("ann:admin:" + cheap("x"))
	f.Add("ann:view:" + cheap("x") + ":" + secret + "\nbob")
	f.Add("#\n:::\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := ParseUsers("f", []byte(text))
		if err != nil {
			return
		}
		again := ""
		for _, u := range all {
			again += u.Name + ":" + u.Role.String() + ":" + u.Password + ":" + u.TOTP + "\n"
		}
		if same, err := ParseUsers("f", []byte(again)); err != nil || len(same) != len(all) {
			t.Errorf("%q became %q: %v", text, again, err)
		}
	})
}

func TestConfig(t *testing.T) {
	with := func(change func(*Config)) Config {
		c := DefaultConfig()
		c.Listen = "tcp:127.0.0.1:8025"
		change(&c)
		return c
	}
	for want, cfg := range map[string]Config{
		"":                                       with(func(*Config) {}),
		"console.listen: passwords would cross":  with(func(c *Config) { c.Listen = "tcp:192.0.2.1:8025" }),
		"console.listen: ":                       with(func(c *Config) { c.Listen = "nonsense" }),
		"console.tls_cert: console.tls_cert and": with(func(c *Config) { c.TLSCert = "x" }),
		"the certificate cannot be used":         with(func(c *Config) { c.TLSCert, c.TLSKey = "x", "y" }),
		"console.idle_end: ":                     with(func(c *Config) { c.IdleEnd = 0 }),
		"console.max_upload: ":                   with(func(c *Config) { c.MaxUpload = 1 << 30 }),
		"console.max_connections: ":              with(func(c *Config) { c.MaxConnections = 0 }),
	} {
		var fs conf.Faults
		cfg.Validate("console", &fs)
		if err := fs.Err(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for host, want := range map[string]bool{"127.0.0.1": true, "::1": true, "localhost": true, "": false, "0.0.0.0": false, "mx.example.com": false} {
		if loopback(host) != want {
			t.Errorf("%q", host)
		}
	}
}

func TestLive(t *testing.T) {
	events, ended := make(chan page.Event), make(chan struct{}, 10)
	st := open(t, func(_ *Config, o *Options) {
		o.Live = func(ctx context.Context, yield func(page.Event) bool) error {
			defer func() { ended <- struct{}{} }()
			for {
				select {
				case e := <-events:
					if !yield(e) {
						return nil
					}
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
	})
	b := st.browser(t).login(t, "view")
	ctx, cancel := context.WithCancel(t.Context())
	var bodies []*bufio.Reader
	for range 3 {
		req, err := http.NewRequestWithContext(ctx, "GET", st.URL+"/live", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := b.Do(req) //nolint:bodyclose // ctx ends it
		if err != nil {
			t.Fatal(err)
		}
		if got := res.Header.Get("Content-Type"); got != "text/event-stream" {
			t.Fatal(got)
		}
		bodies = append(bodies, bufio.NewReader(res.Body))
	}
	events <- page.Event{{Text: "<b>"}}
	for _, r := range bodies {
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(line, "data: ") {
				if line != "data: <tr><th scope=\"row\">&lt;b&gt;</th></tr>\n" {
					t.Errorf("%q", line)
				}
				break
			}
		}
	}
	cancel() // nobody looks on: nobody listens
	<-ended
	if res, _ := st.browser(t).do(t, "GET", "/live", nil); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("by nobody: %d", res.StatusCode)
	}
}

// Those who read too slowly miss events, and hold up nobody.
func TestSlowViews(t *testing.T) {
	feed := make(chan page.Event)
	l := newLive(func(ctx context.Context, yield func(page.Event) bool) error {
		for {
			select {
			case e := <-feed:
				yield(e)
			case <-ctx.Done():
				return nil
			}
		}
	}, zaptest.NewLogger(t))
	defer l.close()
	var all []chan []byte
	for range maxLive {
		events, _ := l.join()
		all = append(all, events)
	}
	if events, _ := l.join(); events != nil {
		t.Error("one too many")
	}
	for range 3 * liveRoom {
		feed <- page.Event{{Text: "x"}}
	}
	for _, events := range all {
		if len(events) > liveRoom {
			t.Fatal("more than there is room for")
		}
	}
}

func TestAddressBars(t *testing.T) {
	bars := addressBars(page.Networks{
		Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fe80::/10")},
		Mark:     []netip.Prefix{netip.MustParsePrefix("192.0.0.0/2"), netip.MustParsePrefix("3000::/4")},
	})
	want := "[{IPv4 3 [{0 500 false} {750 250 true}]} {IPv6 2 [{500 500 true}]}]"
	if got := fmt.Sprint(bars); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
