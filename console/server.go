// Package console is the gateway in a browser: pages that are made on the server
// and work without scripts. It knows no check: app hands it the pages of the parts
// (package page) and a client for the administrator's calls, so that the console
// does what the command line does and nothing else.
//
// What browsers send is hostile, and so is what a page shows, since strangers wrote
// it: all of it goes through html/template. The rules that hold the rest together:
// every route stands in one table with the role it takes, every POST carries the
// token of its session, every change is in the audit log.
package console

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"postern/internal/adminapi"
	"postern/internal/page"
)

// Options is what a Server needs beside its configuration.
type Options struct {
	// Client makes the administrator's calls.
	Client *adminapi.Client
	// Pages are all pages in the order of the menu; the first is the one that
	// is seen after a login.
	Pages []page.Page
	// Live calls yield with what happens as it happens until that returns false
	// or ctx ends. nil: nothing is live.
	Live func(ctx context.Context, yield func(page.Event) bool) error
	// Hostname and Version are shown.
	Hostname, Version string
	// State is a file in the directory of the daemon's state, for the defaults of
	// files.
	State   string
	Log     *zap.Logger
	Metrics prometheus.Registerer
}

// Server is the console. Serve and Stop are called once each.
type Server struct {
	cfg      Config
	o        Options
	log      *zap.Logger
	users    users
	sessions sessions
	guesses  guesses
	audit    audit
	hashing  chan struct{} // who holds a place in it computes a hash
	waiting  chan struct{} // likewise waits for one
	cert     *certificate
	live     *live
	pages    []page.Page
	routes   []route
	http     *http.Server
	logins   *prometheus.CounterVec
}

// Bounds of what browsers can make the process do.
const (
	shutdownIn  = 2 * time.Second
	maxLogin    = 8 << 10 // bytes of the login form
	answerIn    = 150 * time.Second
	writeIn     = 30 * time.Second
	maxHashing  = 2
	maxWaiting  = 16
	maxFields   = 60
	maxHeader   = 16 << 10
	readIn      = 30 * time.Second
	headersIn   = 5 * time.Second
	idleIn      = 2 * time.Minute
	maxParts    = 100
	maxNextPath = 1000
)

// New returns a console. cfg has been validated.
func New(cfg Config, o Options) (*Server, error) {
	s := &Server{
		cfg: cfg, o: o, log: o.Log.Named("console"), pages: o.Pages,
		users: users{path: cfg.Users(o.State)}, audit: audit{path: cfg.Audit(o.State)},
		sessions: sessions{idle: cfg.IdleEnd.D(), absolute: cfg.AbsoluteEnd.D()},
		hashing:  make(chan struct{}, maxHashing), waiting: make(chan struct{}, maxWaiting),
		logins: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_console_logins_total", Help: "Attempts to log in to the console, by result."}, []string{"result"}),
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(s.logins)
	}
	s.live = newLive(o.Live, s.log)
	if cfg.TLSCert != "" {
		var err error
		if s.cert, err = newCertificate(cfg.TLSCert, cfg.TLSKey); err != nil {
			return nil, fmt.Errorf("console: %w", err)
		}
	}
	s.routes = s.allRoutes()
	s.http = &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: headersIn, ReadTimeout: readIn, IdleTimeout: idleIn, MaxHeaderBytes: maxHeader,
		ErrorLog: zap.NewStdLog(o.Log.Named("console.http")),
	}
	if all, err := s.users.get(); err != nil {
		s.log.Error("nobody can log in to the console", zap.Error(err))
	} else if len(all) == 0 {
		s.log.Warn("nobody can log in to the console yet: postern console user add NAME --role admin", zap.String("users_file", s.users.path))
	}
	return s, nil
}

// Serve answers on l until Stop. It returns nil after Stop.
func (s *Server) Serve(l net.Listener) error {
	l = netutil.LimitListener(l, s.cfg.MaxConnections)
	if s.cert != nil {
		l = tls.NewListener(l, &tls.Config{GetCertificate: s.cert.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	}
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("console: %w", err)
	}
	return nil
}

// Stop closes the console, waiting a short while for answers under way.
func (s *Server) Stop(ctx context.Context) error {
	s.live.close()
	ctx, cancel := context.WithTimeout(ctx, shutdownIn)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

// route is what answers one kind of request.
type route struct {
	method, pattern string
	role            page.Role // who may; 0: everybody
	handle          func(v *visit)
}

// allRoutes is the table of all routes by role. Nothing is served beside it.
func (s *Server) allRoutes() []route {
	all := []route{
		{http.MethodGet, "/static/{name}", 0, s.static},
		{http.MethodGet, "/login", 0, s.showLogin},
		{http.MethodPost, "/login", 0, s.login},
		{http.MethodPost, "/logout", page.RoleView, s.logout},
		{http.MethodGet, "/live", page.RoleView, s.serveLive},
		{http.MethodGet, "/account", page.RoleView, s.showAccount},
		{http.MethodPost, "/account/others", page.RoleView, s.endOthers},
		{http.MethodPost, "/account/password", page.RoleView, s.changePassword},
		{http.MethodGet, "/audit", page.RoleAdmin, s.showAudit},
		{http.MethodGet, "/{$}", page.RoleView, func(v *visit) { v.redirect("/p/" + s.pages[0].Name) }},
	}
	for i := range s.pages {
		p := &s.pages[i]
		all = append(all, route{http.MethodGet, "/p/" + p.Name, max(p.Role, page.RoleView), func(v *visit) { s.showPage(v, p) }})
		for j := range p.Actions {
			a := &p.Actions[j]
			role := a.Role
			if role == 0 {
				role = page.RoleOperate
			}
			all = append(all, route{http.MethodPost, "/p/" + p.Name + "/" + a.Name, max(role, p.Role), func(v *visit) { s.act(v, p, a) }})
		}
	}
	return all
}

// handler serves the routes.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range s.routes {
		mux.HandleFunc(r.method+" "+r.pattern, func(w http.ResponseWriter, q *http.Request) { s.serve(w, q, &r) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) {
		v := s.visit(w, q)
		s.recognize(v, false)
		v.fail(http.StatusNotFound, "There is no such page.")
	})
	return mux
}

// visit is one request.
type visit struct {
	s       *Server
	w       http.ResponseWriter
	r       *http.Request
	now     time.Time
	from    netip.Addr
	secure  bool // the browser's connection is encrypted
	user    *User
	session *session
	page    string // whose menu item is the present one
}

// policyOfContent lets a page load nothing but what is here, run no script that
// stands in it, and be in no frame.
const policyOfContent = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'"

func (s *Server) visit(w http.ResponseWriter, r *http.Request) *visit {
	v := &visit{s: s, w: w, r: r, now: time.Now()}
	v.from, v.secure = s.peer(r)
	h := w.Header()
	h.Set("Content-Security-Policy", policyOfContent)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
	h.Set("Cache-Control", "no-store")
	if v.secure {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	return v
}

// peer returns the browser's address and whether its connection is encrypted, as
// far as that is known: X-Forwarded-For is read from its end, past trusted
// proxies.
func (s *Server) peer(r *http.Request) (addr netip.Addr, secure bool) {
	secure = r.TLS != nil
	proxy := false
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		addr = ap.Addr().Unmap().WithZone("")
		proxy = s.trusted(addr)
	} else {
		proxy = true // a unix socket
	}
	if !proxy {
		return addr, secure
	}
	secure = secure || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		a, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		addr = a.Unmap().WithZone("")
		if !s.trusted(addr) {
			break
		}
	}
	return addr, secure
}

func (s *Server) trusted(addr netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// serve is the door of every route.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, to *route) {
	v := s.visit(w, r)
	ctx, cancel := context.WithTimeout(r.Context(), answerIn)
	if to.pattern == "/live" {
		cancel()
		ctx, cancel = context.WithCancel(r.Context())
	}
	defer cancel()
	v.r = r.WithContext(ctx)
	s.recognize(v, to.pattern != "/live")
	if to.role != 0 && v.user == nil {
		if r.Method == http.MethodGet && to.pattern != "/live" {
			v.redirect("/login?" + url.Values{"next": {r.URL.RequestURI()}}.Encode())
			return
		}
		v.fail(http.StatusUnauthorized, "You are not logged in, or your session has ended.")
		return
	}
	if r.Method == http.MethodPost && !v.readForm(to) {
		return
	}
	if to.role != 0 && v.user.Role < to.role {
		v.fail(http.StatusForbidden, fmt.Sprintf("This takes the role %s; you have %s.", to.role, v.user.Role))
		return
	}
	// Whoever waits for a long answer is still there when the time to send the
	// request is over.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // without, it ends early
	to.handle(v)
}

// readForm reads the form of a POST and reports whether it comes from a page of
// ours. Otherwise it has answered.
func (v *visit) readForm(to *route) bool {
	if err := crossOrigin.Check(v.r); err != nil {
		v.fail(http.StatusForbidden, "This order came from another site.")
		return false
	}
	most := int64(v.s.cfg.MaxUpload)
	if to.role == 0 {
		most = maxLogin
	}
	v.r.Body = http.MaxBytesReader(v.w, v.r.Body, most)
	err := v.r.ParseForm()
	if err == nil {
		if err = v.r.ParseMultipartForm(most + 1<<20); errors.Is(err, http.ErrNotMultipart) { // nothing goes to a file
			err = nil
		}
	}
	if err != nil {
		code, text := http.StatusBadRequest, "The form could not be read."
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			code, text = http.StatusRequestEntityTooLarge, fmt.Sprintf("That is more than the %d bytes that console.max_upload lets in.", most)
		}
		v.fail(code, text)
		return false
	}
	token := v.r.PostForm.Get(csrfField)
	if v.r.MultipartForm != nil {
		token = first(v.r.MultipartForm.Value[csrfField])
	}
	if to.role == 0 {
		if c, err := v.r.Cookie(loginCookie); err != nil || c.Value == "" || !equal(c.Value, token) {
			v.fail(http.StatusForbidden, "The form is too old, or cookies are off. Open the page again.")
			return false
		}
		return true
	}
	if !v.session.owns(token) {
		v.fail(http.StatusForbidden, "The form does not belong to your session. Open the page again.")
		return false
	}
	return true
}

// crossOrigin tells orders of other sites by what browsers say of them, beside
// cookies and tokens.
var crossOrigin = http.NewCrossOriginProtection()

// recognize finds out whose request it is.
func (s *Server) recognize(v *visit, touch bool) {
	c, err := v.r.Cookie(v.cookieName())
	if err != nil {
		return
	}
	one := s.sessions.find(c.Value, v.now, touch)
	if one == nil {
		return
	}
	if u := s.holds(one); u != nil {
		v.user, v.session = u, one
		return
	}
	s.sessions.end(one)
}

// holds returns the user of a session if that is still who began it.
func (s *Server) holds(one *session) *User {
	all, err := s.users.get()
	if err != nil {
		return nil
	}
	u := all[one.user]
	if u == nil || u.Password != one.password || u.TOTP != one.totp {
		return nil
	}
	return u
}
