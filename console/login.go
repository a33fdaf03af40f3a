package console

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/internal/page"
)

// Cookies and fields.
const (
	loginCookie = "postern_login"
	csrfField   = "_csrf"
	askField    = "_ask"
	queryField  = "_query"
)

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// cookieName is that of the session. With the prefix no other host and no
// unencrypted page can have set it.
func (v *visit) cookieName() string {
	if v.secure {
		return "__Host-postern"
	}
	return "postern"
}

func (v *visit) setCookie(name, value string, maxAge int) {
	http.SetCookie(v.w, &http.Cookie{Name: name, Value: value, Path: "/", MaxAge: maxAge, HttpOnly: true, Secure: v.secure, SameSite: http.SameSiteStrictMode})
}

// safeNext returns a path of the console to go on to after a login, "/" for
// everything else.
func safeNext(next string) string {
	u, err := url.Parse(next)
	if err != nil || len(next) > maxNextPath || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, "/") || strings.HasPrefix(u.Path, "//") ||
		strings.ContainsAny(next, "\\\r\n") || !strings.HasPrefix(u.Path, "/p/") && u.Path != "/audit" && u.Path != "/account" {
		return "/"
	}
	u.Fragment = ""
	return u.RequestURI()
}

type loginPage struct {
	Next, Token, Name, Error string
	Code                     bool // a one-time password is asked for
}

func (s *Server) showLogin(v *visit) {
	if v.user != nil {
		v.redirect(safeNext(v.r.URL.Query().Get("next")))
		return
	}
	s.renderLogin(v, http.StatusOK, &loginPage{Next: safeNext(v.r.URL.Query().Get("next"))})
}

func (s *Server) renderLogin(v *visit, code int, p *loginPage) {
	if c, err := v.r.Cookie(loginCookie); err == nil && len(c.Value) >= 20 && len(c.Value) < 100 {
		p.Token = c.Value
	} else {
		p.Token = rand.Text()
		v.setCookie(loginCookie, p.Token, 0)
	}
	v.render(code, "login", "Log in", p)
}

var (
	errWrong = errors.New("Name, password or one-time password is wrong.")                            //nolint:revive,staticcheck // a sentence for the page
	errBusy  = errors.New("Too many are logging in at this moment. Please try again.")                //nolint:revive,staticcheck // likewise
	errFile  = errors.New("Nobody can log in: the users file has faults. The daemon's log has them.") //nolint:revive,staticcheck // likewise
)

func (s *Server) login(v *visit) {
	form := v.r.PostForm
	name, password, code := form.Get("name"), form.Get("password"), strings.ReplaceAll(form.Get("code"), " ", "")
	p := &loginPage{Next: safeNext(form.Get("next")), Name: name}
	if len(name) > 64 || len(password) > maxPassword {
		name, password = "", ""
	}
	if wait := s.guesses.wait(v.from, name, v.now); wait > 0 {
		s.logins.WithLabelValues("slowed").Inc()
		wait = wait.Round(time.Second) + time.Second
		v.w.Header().Set("Retry-After", fmt.Sprint(int(wait/time.Second)))
		p.Error = fmt.Sprintf("Too many wrong logins. Please wait %v.", wait)
		s.renderLogin(v, http.StatusTooManyRequests, p)
		return
	}
	u, err := s.authenticate(v, name, password, code)
	switch {
	case errors.Is(err, errWrong):
		s.logins.WithLabelValues("wrong").Inc()
		s.guesses.failed(v.from, name, v.now)
		s.log.Warn("a login to the console failed", zap.String("name", name), zap.Stringer("from", v.from))
		p.Error = err.Error()
		s.renderLogin(v, http.StatusUnauthorized, p)
		return
	case err != nil:
		s.logins.WithLabelValues("error").Inc()
		p.Error = err.Error()
		s.renderLogin(v, http.StatusServiceUnavailable, p)
		return
	}
	if err := s.record(v, u, &Entry{Page: "console", Action: "login"}); err != nil {
		p.Error = "Nobody can log in: the audit log cannot be written."
		s.renderLogin(v, http.StatusServiceUnavailable, p)
		return
	}
	s.logins.WithLabelValues("ok").Inc()
	s.guesses.succeeded(v.from, name)
	s.log.Info("login to the console", zap.String("name", u.Name), zap.Stringer("role", u.Role), zap.Stringer("from", v.from))
	if v.session != nil {
		s.sessions.end(v.session)
	}
	token, _ := s.sessions.begin(u, v.from.String(), v.now)
	v.setCookie(v.cookieName(), token, 0)
	v.setCookie(loginCookie, "", -1)
	v.redirect(p.Next)
}

// authenticate returns the user whose name, password and one-time password these
// are. It takes as long for a name that is nobody's.
func (s *Server) authenticate(v *visit, name, password, code string) (*User, error) {
	all, err := s.users.get()
	if err != nil {
		s.log.Error("nobody can log in to the console", zap.Error(err))
		return nil, errFile
	}
	u := all[name]
	ok, err := s.isPassword(v, u, password)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, errWrong
	case u.secret != nil && !s.sessions.takeCode(u, code, v.now):
		return nil, errWrong
	}
	return u, nil
}

// isPassword compares a password; u nil is nobody, whose it never is.
func (s *Server) isPassword(v *visit, u *User, password string) (bool, error) {
	select {
	case s.waiting <- struct{}{}:
	default:
		return false, errBusy
	}
	defer func() { <-s.waiting }()
	select {
	case s.hashing <- struct{}{}:
	case <-v.r.Context().Done():
		return false, errBusy
	}
	defer func() { <-s.hashing }()
	of := &nobody
	if u != nil {
		of = &u.hash
	}
	return of.is(password) && u != nil, nil
}

func (s *Server) logout(v *visit) {
	s.sessions.end(v.session)
	v.setCookie(v.cookieName(), "", -1)
	v.redirect("/login")
}

// record writes an entry to the audit log.
func (s *Server) record(v *visit, u *User, e *Entry) error {
	write, err := s.audit.open()
	if err == nil {
		err = s.write(v, u, e, write)
	}
	if err != nil {
		s.log.Error("the audit log cannot be written", zap.Error(err))
	}
	return err
}

func (s *Server) write(v *visit, u *User, e *Entry, write func(*Entry) error) error {
	e.Time, e.User, e.Role, e.From = v.now.UTC(), u.Name, u.Role, v.from.String()
	return write(e)
}

type accountPage struct {
	User     *User
	Code     bool
	Began    time.Time
	From     string
	Sessions int
	Idle     time.Duration
	Absolute time.Duration
	Min      int
}

func (s *Server) showAccount(v *visit) {
	v.page = "account"
	v.render(http.StatusOK, "account", "Your account", &accountPage{
		v.user, v.user.secret != nil, v.session.began, v.session.from, s.sessions.of(v.user.Name, v.now), s.sessions.idle, s.sessions.absolute, minPassword,
	})
}

func (s *Server) endOthers(v *visit) {
	e := &Entry{Page: "account", Action: "end other sessions"}
	if err := s.record(v, v.user, e); err != nil {
		v.fail(http.StatusServiceUnavailable, "The audit log cannot be written, so nothing was changed.")
		return
	}
	v.session.say(page.Good, fmt.Sprintf("%d other sessions were ended.", s.sessions.endOthers(v.session)))
	v.redirect("/account")
}

func (s *Server) changePassword(v *visit) {
	old, password := v.r.PostForm.Get("old"), v.r.PostForm.Get("new")
	err := func() error {
		if wait := s.guesses.wait(v.from, v.user.Name, v.now); wait > 0 {
			return fmt.Errorf("too many wrong passwords: please wait %v", wait.Round(time.Second)+time.Second)
		}
		if len(old) > maxPassword {
			old = ""
		}
		ok, err := s.isPassword(v, v.user, old)
		if err != nil {
			return err
		}
		if !ok {
			s.guesses.failed(v.from, v.user.Name, v.now)
			return errors.New("the present password is wrong")
		}
		if err := CheckPassword(v.user.Name, password); err != nil {
			return err
		}
		if password != v.r.PostForm.Get("again") {
			return errors.New("the new password was not typed twice in the same way")
		}
		write, err := s.audit.open()
		if err != nil {
			return err
		}
		e := &Entry{Page: "account", Action: "password"}
		h := Hash(password)
		err = ChangeUsers(s.users.path, func(all []User) ([]User, error) {
			i := slices.IndexFunc(all, func(u User) bool { return u.Name == v.user.Name })
			if i < 0 {
				return nil, errors.New("you are no longer in the users file")
			}
			all[i].Password = h
			return all, nil
		})
		if err != nil {
			e.Error = err.Error()
		}
		return errors.Join(err, s.write(v, v.user, e, write))
	}()
	if err != nil {
		v.session.say(page.Bad, "The password was not changed: "+err.Error())
		v.redirect("/account")
		return
	}
	s.sessions.end(v.session)
	v.setCookie(v.cookieName(), "", -1)
	v.redirect("/login")
}
