package console

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"postern/internal/dnstest"
	"postern/internal/policytest"
)

// pictures is where pictures of all pages are written: make pictures.
var pictures = flag.String("pictures", "", "directory for pictures of all pages")

// patience ends a test that would hang.
const patience = 3 * time.Minute

const config = `
hostname = "mx.example.com"
[policy]
listen = ["unix:{dir}/policy.sock"]
[milter]
listen = ["unix:{dir}/milter.sock"]
[admin]
listen = "unix:{dir}/admin.sock"
[store]
path = "{dir}/state.db"
[journal]
keep = "all"
[console]
listen = "tcp:{console}"
[dns]
servers = ["{dns}"]
[access]
allow = ["file:{dir}/allow.list"]
deny = ["file:{dir}/deny.list"]
[client]
own_domains = ["example.com"]
[greylist]
profile = "strict"
[rbl]
lists = ["bl.example*3", "wl.example*-2"]
[[provider.list]]
name = "bulk-mailer"
domains = ["mailer.example"]
[provider]
state_dir = "{dir}/providers"
[[verify.route]]
domains = ["example.com"]
sources = ["list:{dir}/recipients"]
[[limit.rule]]
name = "clients"
key = ["client"]
rate = "60/1h"
[chains.inbound]
checks = ["access", "provider", "client", "rbl", "spf", "limit", "verify", "greylist"]
[headers]
checks = [{ table = "pcre:{dir}/header_checks" }]
`

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // only for its number
	return l.Addr().String()
}

// gateway is a running daemon that has seen some mail.
type gateway struct {
	t       *testing.T
	dir     string
	url     string
	config  string
	binary  string
	started *exec.Cmd
}

func (g *gateway) write(name, text string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) run(stdin string, args ...string) {
	g.t.Helper()
	cmd := exec.Command(g.binary, append([]string{"-c", g.config}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

const password = "let me in, please"

func start(t *testing.T) *gateway {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // best effort
	g := &gateway{t: t, dir: dir, config: filepath.Join(dir, "postern.toml"), binary: filepath.Join(dir, "postern")}
	if out, err := exec.Command("go", "build", "-o", g.binary, "postern/cmd/postern").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dns := dnstest.Start(t)
	dns.Add(
		`mailer.example. 300 IN TXT "v=spf1 ip4:192.0.2.0/26 ip4:203.0.113.0/24 ip4:198.18.0.0/15 ip6:2001:db8:25::/48 include:_spf.mailer.example -all"`,
		`_spf.mailer.example. 300 IN TXT "v=spf1 ip4:10.32.0.0/14 ip4:172.20.0.0/16 ~all"`,
		`2.0.0.127.bl.example. 300 IN A 127.0.0.2`, `2.0.0.127.wl.example. 300 IN A 127.0.0.2`,
		`66.100.51.198.bl.example. 300 IN A 127.0.0.2`, `66.100.51.198.bl.example. 300 IN TXT "<script>alert('listed')</script> see https://bl.example/198.51.100.66"`,
		`example.org. 300 IN MX 10 mail.example.org.`, `mail.example.org. 300 IN A 198.51.100.7`, `example.org. 300 IN TXT "v=spf1 ip4:198.51.100.0/24 -all"`,
		`7.100.51.198.in-addr.arpa. 300 IN PTR mail.example.org.`,
	)
	address := freePort(t)
	g.url = "http://" + address
	g.write("postern.toml", strings.NewReplacer("{dir}", dir, "{console}", address, "{dns}", dns.Addr()).Replace(config))
	g.write("recipients", "ann@example.com\nbob@example.com\npostmaster@example.com\n")
	g.write("allow.list", "192.0.2.25  # owner=ann a partner\nfrom:.partner.example\n")
	g.write("deny.list", "203.0.113.0/24 554 5.7.1 We do not take mail from this network\nfrom:offers@bulk.example until=2026-01-31\n")
	g.write("header_checks", "/^Subject:.*viagra/ REJECT no such offers\n/^X-Mailer: bulk/ PREPEND X-Bulk: yes\n/^Subject: \\[list\\]/ HOLD\n")
	g.run(password+"\n", "console", "user", "add", "ann", "--role", "admin", "--stdin")
	var log bytes.Buffer
	g.started = exec.Command(g.binary, "-c", g.config, "serve")
	g.started.Stderr = &log
	if err := g.started.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- g.started.Wait() }()
	t.Cleanup(func() {
		_ = g.started.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := <-ended; err != nil {
			t.Errorf("the daemon: %v\n%s", err, &log)
		}
	})
	until(t, "the daemon to open its doors", func() bool {
		select {
		case err := <-ended:
			ended <- err
			t.Fatal("the daemon has ended")
		default:
		}
		c, err := net.Dial("unix", filepath.Join(dir, "policy.sock"))
		if err != nil {
			return false
		}
		_ = c.Close()
		c, err = net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	g.mail()
	return g
}

// until waits for what comes soon.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// ask asks the policy door about one recipient.
func (g *gateway) ask(client, helo, sender, recipient string) {
	g.t.Helper()
	c := policytest.Dial(g.t, &net.UnixAddr{Name: filepath.Join(g.dir, "policy.sock"), Net: "unix"})
	c.MustAsk(g.t, policytest.Sample().With("client_address", client, "client_name", "unknown", "reverse_client_name", "unknown", "helo_name", helo, "sender", sender, "recipient", recipient))
}

const hostile = `"<script>alert(1)</script><img src=x onerror=alert(2)>"@example.org`

func (g *gateway) mail() {
	g.t.Helper()
	for i := range 12 {
		g.ask(fmt.Sprintf("198.51.100.%d", 7+i), "mail.example.org", fmt.Sprintf("news%d@example.org", i), "ann@example.com")
	}
	g.ask("198.51.100.7", "mail.example.org", "carol@example.org", "nobody@example.com")
	g.ask("198.51.100.66", "<script>alert(3)</script>", hostile, "bob@example.com")
	g.ask("203.0.113.77", "friend", "offers@bulk.example", "bob@example.com")
	g.ask("192.0.2.25", "mx.partner.example", "dave@partner.example", "ann@example.com")
}

// browser is a tab of a real browser.
type browser struct {
	t   *testing.T
	ctx context.Context
	g   *gateway

	mu    sync.Mutex
	heard []string
}

func (g *gateway) browser() *browser {
	t := g.t
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("there is no chromium; make deps installs it")
		}
		t.Skip("there is no chromium; make deps installs it")
	}
	alloc, cancel := chromedp.NewExecAllocator(context.Background(), chromedp.Headless, chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.UserDataDir(filepath.Join(g.dir, "browser")), chromedp.WSURLReadTimeout(patience))
	t.Cleanup(cancel)
	ctx, end := chromedp.NewContext(alloc)
	t.Cleanup(end)
	b := &browser{t: t, ctx: ctx, g: g}
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1280, 900)); err != nil {
		t.Fatal(err)
	}
	listen, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	messages := chromedp.Console(listen)
	work.Go(func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			b.mu.Lock()
			b.heard = append(b.heard, m.String()+" at "+m.URL)
			b.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		stop()
		work.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.heard) > 0 {
			t.Errorf("the browser complains: %v", b.heard)
		}
	})
	return b
}

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) open(path string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.g.url + path))
}

// says evaluates an expression.
func says[T any](b *browser, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

func (b *browser) scheme(name string) {
	b.t.Helper()
	b.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}})
		return err
	}))
}

func (b *browser) login() {
	b.t.Helper()
	b.open("/")
	b.do(chromedp.SendKeys(chromedp.CSS("#name"), "ann"), chromedp.SendKeys(chromedp.CSS("#password"), password))
	b.press(".login button")
	if got := says[string](b, "location.pathname"); got != "/p/overview" {
		b.t.Fatalf("after the login: %s\n%s", got, says[string](b, "document.body.innerText"))
	}
}

// press presses a button and waits for the page that comes.
func (b *browser) press(css string) {
	b.t.Helper()
	says[bool](b, "window.before = true")
	b.do(chromedp.Click(chromedp.CSS(css)))
	until(b.t, "the next page", func() bool { return says[bool](b, "window.before === undefined && document.readyState === 'complete'") })
}

// faults are what a page must not have: text of too little contrast (WCAG 2.2,
// 1.4.3), fields without labels, and what does not fit.
const faults = `(() => {
  const out = [];
  const parse = c => { const m = c.match(/[\d.]+/g).map(Number); return c.startsWith("color(srgb") ? [m[0]*255, m[1]*255, m[2]*255, m.length > 3 ? m[3] : 1] : [m[0], m[1], m[2], m.length > 3 ? m[3] : 1]; };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = c => { const f = c.slice(0, 3).map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
  const ground = e => { const all = []; for (; e; e = e.parentElement) all.push(parse(getComputedStyle(e).backgroundColor)); let c = [255, 255, 255, 1]; for (const g of all.reverse()) c = over(g, c); return c; };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; (n = walk.nextNode());) {
    const e = n.parentElement;
    if (!n.textContent.trim() || !e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) || e.closest("option, script, style, .skip")) continue;
    const s = getComputedStyle(e), bg = ground(e), a = light(over(parse(s.color), bg)), b = light(bg);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), size = parseFloat(s.fontSize);
    if (ratio < (size >= 24 || size >= 18.66 && parseInt(s.fontWeight) >= 700 ? 3 : 4.5)) out.push("contrast " + ratio.toFixed(2) + ": " + n.textContent.trim().slice(0, 40));
  }
  for (const e of document.querySelectorAll("input:not([type=hidden]):not([hidden]), select, textarea")) if (!(e.labels && e.labels.length && e.labels[0].textContent.trim()) && !e.getAttribute("aria-label")) out.push("no label: " + e.name);
  for (const e of document.querySelectorAll("button, a")) if (!e.textContent.trim() && !e.getAttribute("aria-label")) out.push("no name: " + e.outerHTML.slice(0, 80));
  const ids = new Set(); for (const e of document.querySelectorAll("[id]")) { if (ids.has(e.id)) out.push("id twice: " + e.id); ids.add(e.id); }
  if (document.documentElement.scrollWidth > innerWidth) out.push("wider than the window: " + document.documentElement.scrollWidth);
  if (!document.querySelector("h1") || document.querySelectorAll("h1").length > 1) out.push("not one heading");
  if (document.querySelector("script:not([src]), style, [style]")) out.push("script or style inside");
  return out;
})()`

var looks = []struct {
	name, scheme  string
	width, height int64
}{
	{"light", "light", 1280, 900}, {"dark", "dark", 1280, 900}, {"narrow", "light", 390, 844},
}

// look holds the present page to everything that all pages must be, in each way of
// looking at it.
func (b *browser) look(name string) {
	b.t.Helper()
	for _, l := range looks {
		b.scheme(l.scheme)
		b.do(chromedp.EmulateViewport(l.width, l.height))
		for _, f := range says[[]string](b, faults) {
			b.t.Errorf("%s, %s: %s", name, l.name, f)
		}
		if *pictures == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(b.ctx, patience)
		shot, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
		cancel()
		if err != nil {
			b.t.Fatal(err)
		}
		if err := os.MkdirAll(*pictures, 0o755); err != nil {
			b.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(*pictures, name+"-"+l.name+".png"), shot, 0o644); err != nil { //nolint:gosec // for all to see
			b.t.Fatal(err)
		}
	}
	b.scheme("light")
	b.do(chromedp.EmulateViewport(1280, 900))
}

// Every page of the menu is as pages must be, light, dark and narrow, and the
// browser has nothing to complain about.
func TestPages(t *testing.T) {
	g := start(t)
	b := g.browser()
	b.open("/login")
	b.look("login")
	b.login()
	paths := says[[]string](b, `[...document.querySelectorAll(".menu a")].map(a => a.getAttribute("href"))`)
	if len(paths) < 15 {
		t.Fatalf("the menu has %v", paths)
	}
	for _, path := range append(paths, "/account", "/p/provider?name=bulk-mailer", "/p/what-if?client=198.51.100.7&helo=mail.example.org&sender=carol@example.org&recipient=ann@example.com",
		"/p/dns-lists?ip=198.51.100.66", "/p/spf?ip=198.51.100.7&sender=carol@example.org&helo=mail.example.org") {
		b.open(path)
		name := strings.TrimPrefix(strings.TrimPrefix(path, "/p/"), "/")
		if page, query, ok := strings.Cut(name, "?"); ok {
			name = page + "-asked"
			_ = query
		}
		b.look(name)
	}
	b.open("/p/decisions?client=198.51.100.66")
	b.press("tbody tr:first-child th a")
	if text := says[string](b, "document.querySelector('main').innerText"); !strings.Contains(text, "<script>alert(1)</script>") {
		t.Errorf("the sender is not shown as it was:\n%s", text)
	}
	b.look("decision")
}

// A decision is on the page as it is made, without the page being opened again,
// and a change is made by mouse and keyboard.
func TestLiveAndActions(t *testing.T) {
	g := start(t)
	b := g.browser()
	b.login()
	b.open("/p/decisions")
	until(t, "the live view", func() bool {
		return says[bool](b, `document.querySelector("#live-state .badge")?.textContent === "live"`)
	})
	g.ask("198.51.100.99", "mail.example.org", hostile, "ann@example.com")
	until(t, "the decision", func() bool {
		return says[bool](b, `document.querySelector("tr.new")?.innerText.includes("198.51.100.99") === true`)
	})
	if says[bool](b, `document.querySelector("tr.new script, tr.new img") !== null`) {
		t.Error("what a stranger wrote became a part of the page")
	}
	b.press("tr.new th a")
	if text := says[string](b, "document.querySelector('main').innerText"); !strings.Contains(text, "198.51.100.99") || !strings.Contains(text, "greylist") {
		t.Errorf("the decision:\n%s", text)
	}

	b.open("/p/greylist?kind=waiting")
	b.press("main table form button")
	if got := says[string](b, "document.querySelector('h1').innerText"); got != "Are you sure?" {
		t.Fatalf("asked: %q", got)
	}
	b.look("confirm")
	b.press(".confirm button")
	if text := says[string](b, "document.querySelector('.notice')?.innerText ?? ''"); !strings.Contains(text, "entries were forgotten") {
		t.Errorf("it says %q", text)
	}
	b.open("/p/expected")
	b.do(chromedp.SendKeys(chromedp.CSS("input[name=to]"), "ann@example.com"), chromedp.SendKeys(chromedp.CSS("input[name=from]"), "example.net"))
	b.press(".form .send button")
	if text := says[string](b, "document.querySelector('main').innerText"); !strings.Contains(text, "does not wait") {
		t.Errorf("it says\n%s", text)
	}
	b.open("/audit")
	b.look("audit-log")
	rows := says[[]string](b, `[...document.querySelectorAll("tbody tr")].map(r => r.innerText)`)
	if !slices.ContainsFunc(rows, func(r string) bool { return strings.Contains(r, "forget") && strings.Contains(r, "ann") }) {
		t.Errorf("the audit log has %q", rows)
	}
	b.press(".top form button")
	if got := says[string](b, "location.pathname"); got != "/login" {
		t.Errorf("after the end of the session: %s", got)
	}
}
