package console

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"sync"
	"time"

	"postern/internal/page"
)

// session is somebody logged in.
type session struct {
	user     string
	password string // hash that it began with: another one ends it
	totp     string // likewise
	csrf     string
	from     string // address
	began    time.Time
	id       [sha256.Size]byte

	seen time.Time // under the lock of sessions

	mu      sync.Mutex
	message *message // to be shown on the next page
}

// message is what came of an order.
type message struct {
	Tone page.Tone
	Text string
}

// say has a message shown on the next page.
func (one *session) say(tone page.Tone, text string) {
	one.mu.Lock()
	defer one.mu.Unlock()
	one.message = &message{tone, text}
}

// heard returns the message to be shown, once.
func (one *session) heard() *message {
	one.mu.Lock()
	defer one.mu.Unlock()
	m := one.message
	one.message = nil
	return m
}

// sessions are all of them, in memory: a restart ends them.
type sessions struct {
	idle, absolute time.Duration

	mu    sync.Mutex
	all   map[[sha256.Size]byte]*session
	steps map[string]int64 // of each user, that of the last one-time password
}

// takeCode reports whether code is a one-time password of a user that has not
// been used.
func (s *sessions) takeCode(u *User, code string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	step, ok := matchTOTP(u.secret, code, now, s.steps[u.Name])
	if !ok {
		return false
	}
	if s.steps == nil {
		s.steps = make(map[string]int64)
	}
	s.steps[u.Name] = step
	return true
}

// Bounds of sessions; the oldest gives way.
const (
	maxSessions  = 2000
	maxOfOneUser = 50
)

// begin makes a session and returns its token, which is kept nowhere here.
func (s *sessions) begin(u *User, from string, now time.Time) (token string, one *session) {
	token = rand.Text() + rand.Text()
	one = &session{user: u.Name, password: u.Password, totp: u.TOTP, csrf: rand.Text(), from: from, began: now, seen: now, id: sha256.Sum256([]byte(token))}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[[sha256.Size]byte]*session)
	}
	s.sweep(now)
	s.makeRoom(func(o *session) bool { return o.user == u.Name }, maxOfOneUser)
	s.makeRoom(func(*session) bool { return true }, maxSessions)
	s.all[one.id] = one
	return token, one
}

func (s *sessions) sweep(now time.Time) {
	for id, one := range s.all {
		if s.over(one, now) {
			delete(s.all, id)
		}
	}
}

func (s *sessions) makeRoom(of func(*session) bool, most int) {
	n := 0
	var oldest *session
	for _, one := range s.all {
		if of(one) {
			n++
			if oldest == nil || one.seen.Before(oldest.seen) {
				oldest = one
			}
		}
	}
	if n >= most {
		delete(s.all, oldest.id)
	}
}

func (s *sessions) over(one *session, now time.Time) bool {
	return now.Sub(one.seen) >= s.idle || now.Sub(one.began) >= s.absolute
}

// find returns the session of a token, nil when there is none. touch says that
// its user has done something.
func (s *sessions) find(token string, now time.Time, touch bool) *session {
	if token == "" || len(token) > 200 {
		return nil
	}
	id := sha256.Sum256([]byte(token))
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.all[id]
	if one == nil {
		return nil
	}
	if s.over(one, now) {
		delete(s.all, id)
		return nil
	}
	if touch {
		one.seen = now
	}
	return one
}

// end ends a session.
func (s *sessions) end(one *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, one.id)
}

// endOthers ends the sessions of a user but one, and returns how many.
func (s *sessions) endOthers(of *session) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, one := range s.all {
		if one.user == of.user && one != of {
			delete(s.all, id)
			n++
		}
	}
	return n
}

// of returns how many sessions a user has.
func (s *sessions) of(user string, now time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now)
	for _, one := range s.all {
		if one.user == user {
			n++
		}
	}
	return n
}

// owns reports whether a form comes from a page of the session.
func (one *session) owns(csrf string) bool {
	return subtle.ConstantTimeCompare([]byte(one.csrf), []byte(csrf)) == 1
}

// alive reports whether a session goes on.
func (s *sessions) alive(one *session, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[one.id] == one && !s.over(one, now)
}
