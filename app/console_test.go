package app_test

import (
	"context"
	"encoding/json"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/console"
	"postern/internal/policytest"
)

const consoleConfig = plain + `
[console]
listen = "unix:{dir}/c.sock"
[journal]
keep = "all"
[access]
allow = ["inline:203.0.113.0/24"]
deny = ["inline:192.0.2.66"]
[rbl]
lists = []
[greylist]
profile = "strict"
[[limit.rule]]
name = "clients"
key = ["client"]
rate = "100/1h"
[[verify.route]]
domains = ["example.com"]
sources = ["list:{dir}/recipients"]
`

// password is that of all users, with a hash that costs little.
const (
	password     = "let me in, please"
	passwordHash = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$DGVf4UIf02wP2d7tDzQAfQ"
)

// browser is a user of the console of a site.
type browser struct {
	*http.Client
	t    *testing.T
	csrf string
}

func (s *site) browser(name string) *browser {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.dir, "c.sock"))
	}
	b := &browser{&http.Client{Jar: jar, Transport: &http.Transport{DialContext: dial}}, s.t, ""}
	s.t.Cleanup(b.CloseIdleConnections)
	_, text := b.get("/login")
	code, text := b.post("/login", url.Values{"name": {name}, "password": {password}, "_csrf": {token(s.t, text)}})
	if code != http.StatusOK || !strings.Contains(text, "Overview") {
		s.t.Fatalf("login: %d\n%s", code, text)
	}
	b.csrf = token(s.t, text)
	return b
}

func token(t *testing.T, text string) string {
	t.Helper()
	m := regexp.MustCompile(`name="_csrf" value="([^"]+)"`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no token in\n%s", text)
	}
	return m[1]
}

func (b *browser) read(res *http.Response, err error) (int, string) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func (b *browser) get(path string) (int, string) {
	b.t.Helper()
	return b.read(b.Get("http://console" + path))
}

func (b *browser) post(path string, form url.Values) (int, string) {
	b.t.Helper()
	if form.Get("_csrf") == "" {
		form.Set("_csrf", b.csrf)
	}
	return b.read(b.PostForm("http://console"+path, form))
}

// newConsole is a site with a console and one user of each role.
func newConsole(t *testing.T) *site {
	t.Helper()
	s := newSite(t, consoleConfig)
	if err := os.WriteFile(filepath.Join(s.dir, "recipients"), []byte("ann@example.com\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, role := range []string{"view", "operate", "admin"} {
		text += role + ":" + role + ":" + passwordHash + "\n"
	}
	if err := os.WriteFile(filepath.Join(s.dir, "console.users"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	return s
}

// ask asks the policy door.
func (s *site) ask(client, sender, recipient string) string {
	s.t.Helper()
	c := policytest.Dial(s.t, &net.UnixAddr{Name: filepath.Join(s.dir, "p.sock"), Net: "unix"})
	return c.MustAsk(s.t, policytest.Sample().With("client_address", client, "client_name", "unknown", "reverse_client_name", "unknown", "sender", sender, "recipient", recipient))
}

// Every page of the menu, and every one that they lead to, is there and shows no
// fault, in front of a real daemon.
func TestConsolePages(t *testing.T) {
	s := newConsole(t)
	for _, client := range []string{"192.0.2.66", "198.51.100.7", "203.0.113.9"} {
		s.ask(client, `"<script>alert(1)</script>"@example.org`, "ann@example.com")
	}
	b := s.browser("admin")
	seen := map[string]bool{}
	next := []string{
		"/p/overview", "/p/what-if?client=198.51.100.8&sender=a@example.org&recipient=ann@example.com", "/p/spf?ip=192.0.2.1&sender=a@example.org", "/p/client?ip=192.0.2.1&helo=x",
		"/p/dns-lists?ip=192.0.2.1", "/p/providers?ip=192.0.2.1", "/p/decisions?verdict=refused&since=1h", "/p/greylist?who=198.51&kind=waiting", "/account", "/audit",
	}
	links := regexp.MustCompile(`href="(/(?:p/|audit|account)[^"]*)"`)
	for len(next) > 0 && len(seen) < 200 {
		path := next[0]
		next = next[1:]
		if seen[path] {
			continue
		}
		seen[path] = true
		code, text := b.get(path)
		if code != http.StatusOK || strings.Contains(text, `role="alert"`) {
			t.Errorf("%s: %d\n%s", path, code, regexp.MustCompile(`(?s)<main.*</main>`).FindString(text))
		}
		if strings.Contains(text, "<script>alert") {
			t.Errorf("%s: what a stranger wrote", path)
		}
		for _, m := range links.FindAllStringSubmatch(text, -1) {
			next = append(next, html.UnescapeString(m[1]))
		}
	}
	for _, path := range []string{"/p/decisions", "/p/lists", "/p/greylist", "/p/recipients", "/p/dns-lists", "/p/providers", "/p/header-rules", "/p/limits", "/p/dkim", "/p/dmarc", "/p/message", "/p/expected", "/p/correspondents"} {
		if !seen[path] {
			t.Errorf("the menu does not lead to %s", path)
		}
	}
	decisions := 0
	for path := range seen {
		if strings.HasPrefix(path, "/p/decision?") {
			decisions++
		}
	}
	if decisions < 3 {
		t.Errorf("%d decisions can be opened", decisions)
	}
	if code, text := b.get("/p/decision?ref=AAAAA-AAAAA"); code != http.StatusBadRequest || !strings.Contains(text, "journal") {
		t.Errorf("a decision that is not there: %d", code)
	}
}

func TestConsoleActions(t *testing.T) {
	s := newConsole(t)
	s.ask("198.51.100.7", "a@example.org", "ann@example.com")
	operator, viewer, admin := s.browser("operate"), s.browser("view"), s.browser("admin")
	if _, text := operator.get("/p/greylist"); !strings.Contains(text, "198.51.100") {
		t.Fatalf("it does not wait:\n%s", text)
	}
	if _, text := viewer.get("/p/greylist"); !strings.Contains(text, "198.51.100") || strings.Contains(text, "Forget") {
		t.Error("who may only look is offered more")
	}
	forget := func() url.Values { return url.Values{"who": {"198.51.100"}} }
	if code, _ := viewer.post("/p/greylist/forget", forget()); code != http.StatusForbidden {
		t.Errorf("forget by view: %d", code)
	}
	if _, text := operator.post("/p/greylist/forget", forget()); !strings.Contains(text, "entries were forgotten") || strings.Contains(text, "<code>198.51.100") {
		t.Errorf("forget:\n%s", text)
	}
	if _, text := operator.post("/p/expected/expect", url.Values{"to": {"ann@example.com"}, "from": {"example.org"}, "for": {"1h"}}); !strings.Contains(text, "does not wait") {
		t.Errorf("expect:\n%s", text)
	}
	if _, text := operator.post("/p/expected/expect", url.Values{"to": {"ann@example.com"}, "for": {"long"}}); !strings.Contains(text, "notice bad") {
		t.Errorf("expect for no time:\n%s", text)
	}
	if _, text := operator.post("/p/recipients/ask", url.Values{"address": {"ann@example.com"}}); !strings.Contains(text, "known") {
		t.Errorf("ask:\n%s", text)
	}
	if code, text := viewer.post("/p/message/test", url.Values{"client": {"192.0.2.1"}, "text": {"From: a@example.org\nSubject: <script>alert(1)</script>\n\nx\n"}}); code != http.StatusOK || !strings.Contains(text, "DMARC") {
		t.Errorf("test of a message: %d\n%s", code, text)
	}
	if code, text := viewer.post("/p/header-rules/test", url.Values{"text": {"Subject: <script>alert(1)</script>\n\nx\n"}}); code != http.StatusOK || !strings.Contains(text, "&lt;script&gt;") || strings.Contains(text, "<script>alert") {
		t.Errorf("header rules: %d\n%s", code, text)
	}
	if code, _ := operator.post("/p/overview/reload", url.Values{}); code != http.StatusForbidden {
		t.Errorf("reload by operate: %d", code)
	}
	if _, text := admin.post("/p/overview/reload", url.Values{}); !strings.Contains(text, "is in force") {
		t.Errorf("reload:\n%s", text)
	}
	s.write(consoleConfig + "nonsense\n")
	if _, text := admin.post("/p/overview/reload", url.Values{}); !strings.Contains(text, "stays in force") || !strings.Contains(text, "was refused") {
		t.Errorf("a reload that is refused:\n%s", text)
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "console-audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var done []string
	for line := range strings.Lines(string(text)) {
		var e console.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Action != "login" {
			done = append(done, e.Page+"/"+e.Action+" by "+e.User)
		}
	}
	want := "greylist/forget by operate, expected/expect by operate, expected/expect by operate, recipients/ask by operate, overview/reload by admin, overview/reload by admin"
	if got := strings.Join(done, ", "); got != want {
		t.Errorf("the audit log has %s, want %s", got, want)
	}
}
