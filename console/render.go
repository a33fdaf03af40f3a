package console

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/internal/adminapi"
	"postern/internal/page"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// assets are the files under /static, by names that change with their content, so
// that browsers can keep them.
var assets, assetNames = func() (map[string][]byte, map[string]string) {
	byName, names := map[string][]byte{}, map[string]string{}
	entries, err := staticFiles.ReadDir("static")
	if err != nil {
		panic(err) // they are in the binary
	}
	for _, e := range entries {
		text, err := staticFiles.ReadFile("static/" + e.Name())
		if err != nil {
			panic(err) // likewise
		}
		sum := sha256.Sum256(text)
		ext := path.Ext(e.Name())
		name := strings.TrimSuffix(e.Name(), ext) + "-" + hex.EncodeToString(sum[:6]) + ext
		byName[name], names[e.Name()] = text, name
	}
	return byName, names
}()

var contentTypes = map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

func (s *Server) static(v *visit) {
	name := v.r.PathValue("name")
	text, ok := assets[name]
	if !ok {
		v.fail(http.StatusNotFound, "There is no such file.")
		return
	}
	h := v.w.Header()
	h.Set("Content-Type", contentTypes[path.Ext(name)])
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	v.send(http.StatusOK, text)
}

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"asset": func(name string) string { return "/static/" + assetNames[name] },
	"kind":  func(b page.Block) string { return b.Kind() },
	"in":    func(v any, f *frame) scope { return scope{v, f} },
	"ago":   ago,
	"stamp": func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") },
	"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"lines": func(s string) []string { return strings.Split(s, "\n") },
	"short": func(d time.Duration) string { return strings.TrimSuffix(d.Round(time.Minute).String(), "0s") },
	"bars":  addressBars,
}).ParseFS(templateFiles, "templates/*.html"))

func ago(t, now time.Time) string {
	if t.After(now) {
		return adminapi.Until(now, t)
	}
	return adminapi.Ago(now, t) + " ago"
}

// scope is what a block's template is given.
type scope struct {
	V any
	F *frame
}

// frame is what is around a page.
type frame struct {
	Title    string
	User     *User
	CSRF     string
	Hostname string
	Version  string
	Menu     []menuGroup
	Present  string // name of the page
	Query    string
	Message  *message
	Now      time.Time
	Body     any
}

type menuGroup struct {
	Name  string
	Items []menuItem
}

type menuItem struct{ Title, Href, Name string }

func (s *Server) menu(role page.Role) (out []menuGroup) {
	add := func(group string, item menuItem) {
		for i := range out {
			if out[i].Name == group {
				out[i].Items = append(out[i].Items, item)
				return
			}
		}
		out = append(out, menuGroup{group, []menuItem{item}})
	}
	for i := range s.pages {
		p := &s.pages[i]
		if p.Group != "" && role >= p.Role {
			add(p.Group, menuItem{p.Title, "/p/" + p.Name, p.Name})
		}
	}
	if role >= page.RoleAdmin {
		add("Gateway", menuItem{"Audit log", "/audit", "audit"})
	}
	return out
}

// render answers with a page.
func (v *visit) render(code int, name, title string, body any) {
	f := &frame{Title: title, Hostname: v.s.o.Hostname, Version: v.s.o.Version, Present: v.page, Now: v.now, Body: body, Query: v.r.URL.RawQuery}
	if v.user != nil {
		f.User, f.CSRF, f.Menu = v.user, v.session.csrf, v.s.menu(v.user.Role)
		if code < 400 {
			f.Message = v.session.heard()
		}
	}
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, f); err != nil {
		v.s.log.Error("a page could not be made", zap.String("page", name), zap.Error(err))
		http.Error(v.w, "the page could not be made; the daemon's log says why", http.StatusInternalServerError)
		return
	}
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.send(code, b.Bytes())
}

// send writes an answer to whoever reads it in time.
func (v *visit) send(code int, text []byte) {
	_ = http.NewResponseController(v.w).SetWriteDeadline(time.Now().Add(writeIn)) // without, a slow reader costs a connection
	v.w.WriteHeader(code)
	_, _ = v.w.Write(text) // the browser is gone: nobody to tell
}

func (v *visit) redirect(to string) {
	v.w.Header().Set("Location", to)
	v.send(http.StatusSeeOther, nil)
}

type failPage struct {
	Code int
	Text string
}

func (v *visit) fail(code int, text string) {
	v.render(code, "fail", http.StatusText(code), &failPage{code, text})
}

// body is a page's view with what its template needs.
type body struct {
	*page.View
	Page *page.Page
	// Allowed are the actions that who looks may order, "page/action".
	Allowed map[string]bool
}

func (s *Server) allowed(role page.Role) map[string]bool {
	out := map[string]bool{}
	for i := range s.pages {
		p := &s.pages[i]
		for j := range p.Actions {
			a := &p.Actions[j]
			least := a.Role
			if least == 0 {
				least = page.RoleOperate
			}
			out[p.Name+"/"+a.Name] = role >= max(least, p.Role)
		}
	}
	return out
}

// May reports whether who looks may order an action; of is the page, "" for this
// one.
func (b *body) May(of, action string) bool {
	if of == "" {
		of = b.Page.Name
	}
	return b.Allowed[of+"/"+action]
}

// Path is where an action is ordered.
func (b *body) Path(of, action string) string {
	if of == "" {
		of = b.Page.Name
	}
	return "/p/" + of + "/" + action
}

func (s *Server) ask(v *visit, values map[string][]string) *page.Ask {
	return &page.Ask{Client: s.o.Client, Values: values, Now: v.now}
}

func (s *Server) showPage(v *visit, p *page.Page) {
	v.page = cmp.Or(p.Under, p.Name)
	view, err := p.Show(v.r.Context(), s.ask(v, v.r.URL.Query()))
	code := http.StatusOK
	if err != nil {
		code = statusOf(err)
		if view == nil {
			view = &page.View{}
		}
		view.Blocks = append([]page.Block{page.Notice{Tone: page.Bad, Text: sentence(err.Error())}}, view.Blocks...)
	}
	s.showView(v, p, code, view)
}

func (s *Server) showView(v *visit, p *page.Page, code int, view *page.View) {
	title := p.Title
	if view.Title != "" {
		title = view.Title
	}
	v.render(code, "page", title, &body{view, p, s.allowed(v.user.Role)})
}

// statusOf is the status with which a page says that something went wrong: it is
// a page all the same.
func statusOf(err error) int {
	if errors.Is(err, adminapi.ErrNotRunning) {
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

// sentence makes an error one.
func sentence(text string) string {
	if text == "" {
		return "Something went wrong."
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// values returns what a form holds, uploads as texts, without our own fields.
func (v *visit) values() map[string][]string {
	out := map[string][]string{}
	take := func(from map[string][]string) {
		for name, values := range from {
			if name != csrfField && name != askField && name != queryField && len(out) < maxFields {
				out[name] = values[:min(len(values), maxParts)]
			}
		}
	}
	take(v.r.PostForm)
	if v.r.MultipartForm == nil {
		return out
	}
	take(v.r.MultipartForm.Value)
	for name, files := range v.r.MultipartForm.File {
		for _, fh := range files[:min(1, len(files))] {
			f, err := fh.Open()
			if err != nil {
				continue
			}
			var b bytes.Buffer
			if _, err := b.ReadFrom(f); err == nil && b.Len() > 0 && len(out) < maxFields {
				out[name] = []string{b.String()}
			}
			_ = f.Close() // it is memory
		}
	}
	return out
}

type confirmPage struct {
	Text, Path, Query string
	Values            []pair
}

type pair struct{ Name, Value string }

// act carries out what was ordered, and writes it to the audit log.
func (s *Server) act(v *visit, p *page.Page, a *page.Action) {
	v.page = cmp.Or(p.Under, p.Name)
	values := v.values()
	form := v.r.PostForm
	if v.r.MultipartForm != nil {
		form = v.r.MultipartForm.Value
	}
	query := first(form[queryField])
	if text := first(form[askField]); text != "" {
		c := &confirmPage{Text: text, Path: v.r.URL.Path, Query: query}
		for name, all := range values {
			for _, value := range all {
				c.Values = append(c.Values, pair{name, value})
			}
		}
		v.render(http.StatusOK, "confirm", "Are you sure?", c)
		return
	}
	write := func(*Entry) error { return nil }
	if !a.Trial {
		var err error
		if write, err = s.audit.open(); err != nil {
			s.log.Error("the audit log cannot be written", zap.Error(err))
			v.fail(http.StatusServiceUnavailable, "The audit log cannot be written, so nothing was changed.")
			return
		}
	}
	done, err := a.Do(v.r.Context(), s.ask(v, values))
	e := &Entry{Page: p.Name, Action: a.Name, Values: values}
	if err != nil {
		e.Error = err.Error()
	} else {
		e.Result, e.Before, e.After = done.Text, done.Before, done.After
	}
	if err := s.write(v, v.user, e, write); err != nil {
		s.log.Error("the audit log could not be written", zap.Error(err), zap.Any("entry", e))
	}
	switch {
	case err != nil:
		v.session.say(page.Bad, sentence(err.Error()))
	case done.View != nil:
		if done.Text != "" {
			v.session.say(page.Good, done.Text)
		}
		s.showView(v, p, http.StatusOK, done.View)
		return
	default:
		v.session.say(page.Good, done.Text)
	}
	v.redirect(back(p, query))
}

// back is the page as it was looked at when something was ordered there.
func back(p *page.Page, query string) string {
	to := "/p/" + p.Name
	if len(query) > maxNextPath {
		return to
	}
	values, err := url.ParseQuery(query)
	if err != nil || len(values) == 0 {
		return to
	}
	return to + "?" + values.Encode()
}

// auditPage is what the audit log shows.
type auditPage struct {
	Entries                 []auditEntry
	User, Page, Find, Fault string
	Pages                   []string
	More                    bool
}

type auditEntry struct {
	Entry
	Given []pair
}

// shownAudit is how many entries are shown.
const shownAudit = 200

func (s *Server) showAudit(v *visit) {
	v.page = "audit"
	q := v.r.URL.Query()
	p := &auditPage{User: q.Get("user"), Page: q.Get("page"), Find: q.Get("find"), Pages: []string{"console", "account"}}
	for i := range s.pages {
		if len(s.pages[i].Actions) > 0 {
			p.Pages = append(p.Pages, s.pages[i].Name)
		}
	}
	all, err := s.audit.last(shownAudit+1, func(e *Entry) bool {
		return (p.User == "" || e.User == p.User) && (p.Page == "" || e.Page == p.Page) && (p.Find == "" || strings.Contains(fmt.Sprint(e.Values, e.Result, e.Error, e.Before, e.After), p.Find))
	})
	if err != nil {
		p.Fault = err.Error()
	}
	if p.More = len(all) > shownAudit; p.More {
		all = all[:shownAudit]
	}
	for _, e := range all {
		one := auditEntry{Entry: e}
		for _, name := range slices.Sorted(maps.Keys(e.Values)) {
			one.Given = append(one.Given, pair{name, strings.Join(e.Values[name], ", ")})
		}
		p.Entries = append(p.Entries, one)
	}
	v.render(http.StatusOK, "audit", "Audit log", p)
}
