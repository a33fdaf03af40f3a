// Package smtptest is an SMTP and LMTP server for tests of clients that never
// send a message: it knows mailboxes, and misbehaves by script.
package smtptest

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/certtest"
)

// Answers that are no replies.
const (
	Drop    = "\x00drop"    // close the connection
	Silence = "\x00silence" // say nothing
)

// Server is one server. Its methods are safe for concurrent use.
type Server struct {
	tb       testing.TB
	listener net.Listener
	stop     chan struct{}
	wg       sync.WaitGroup

	mu        sync.Mutex
	mailboxes map[string]bool
	all       bool
	answers   map[string]string // by verb, "GREETING" and the like; before everything else
	rcpt      func(address string) string
	message   func(m Message)
	features  []string
	cert      *tls.Certificate
	latency   time.Duration
	conns     map[net.Conn]bool
	log       []string
	counts    map[string]int
	open, max int
	lmtp      bool
}

// Start runs a server on a free port of 127.0.0.1 until the test ends.
func Start(tb testing.TB) *Server { return start(tb, "tcp", "127.0.0.1:0") }

// StartLMTP runs an LMTP server on a unix socket.
func StartLMTP(tb testing.TB, path string) *Server {
	s := start(tb, "unix", path)
	s.lmtp = true
	return s
}

func start(tb testing.TB, network, address string) *Server {
	tb.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{
		tb: tb, listener: l, stop: make(chan struct{}), mailboxes: make(map[string]bool), answers: make(map[string]string),
		features: []string{"PIPELINING", "SIZE 10240000", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8"},
		conns:    make(map[net.Conn]bool), counts: make(map[string]int),
	}
	s.wg.Go(s.accept)
	tb.Cleanup(s.Stop)
	return s
}

// Addr returns "127.0.0.1:port" or the path.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// NextHop returns the server as transport(5) writes it.
func (s *Server) NextHop() string {
	if s.lmtp {
		return "lmtp:unix:" + s.Addr()
	}
	host, port, _ := net.SplitHostPort(s.Addr())
	return "[" + host + "]:" + port
}

// Know adds mailboxes; others are refused with 550 5.1.1.
func (s *Server) Know(addresses ...string) *Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range addresses {
		s.mailboxes[strings.ToLower(a)] = true
	}
	return s
}

// Forget takes a mailbox away.
func (s *Server) Forget(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mailboxes, strings.ToLower(address))
}

// AcceptAll has every address taken, or not.
func (s *Server) AcceptAll(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = on
}

// Answer sets the reply to a verb, "GREETING", "EHLO", "MAIL", ... for every
// client, several lines parted by \n; "" goes back to the usual one.
func (s *Server) Answer(verb, reply string) *Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reply == "" {
		delete(s.answers, verb)
	} else {
		s.answers[verb] = reply
	}
	return s
}

// OnRcpt decides replies to RCPT; "" leaves an address to the mailboxes. f may be
// called by several sessions at once.
func (s *Server) OnRcpt(f func(address string) string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rcpt = f
}

// Message is one that was handed over.
type Message struct {
	From string
	To   []string
	Text string // with CRLF, without the last dot
}

// OnMessage has the server take messages, and hand each to f before it answers.
// Without it DATA is refused.
func (s *Server) OnMessage(f func(m Message)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.message = f
}

// Features replaces what EHLO announces.
func (s *Server) Features(words ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.features = words
}

// Latency delays each reply; replies to commands that came together wait once.
func (s *Server) Latency(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latency = d
}

// Log returns the commands in the order in which they came.
func (s *Server) Log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.log...)
}

// Count returns how many commands of a verb came; "CONNECT" counts connections.
func (s *Server) Count(verb string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[verb]
}

// Most returns the most connections that were open at once.
func (s *Server) Most() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.max
}

// Stop closes the listener and all connections. It can be called twice.
func (s *Server) Stop() {
	s.mu.Lock()
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	_ = s.listener.Close() // maybe closed already
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Restart opens the port again after Stop.
func (s *Server) Restart() {
	s.tb.Helper()
	l, err := net.Listen(s.listener.Addr().Network(), s.Addr())
	if err != nil {
		s.tb.Fatal(err)
	}
	s.mu.Lock()
	s.listener, s.stop = l, make(chan struct{})
	s.mu.Unlock()
	s.wg.Go(s.accept)
}

// TLS has the server offer STARTTLS with a certificate for its name that it
// signs itself, and returns the path of that certificate.
func (s *Server) TLS(names ...string) string {
	s.tb.Helper()
	pair := certtest.New(s.tb, names...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cert = &pair.Cert
	s.features = append(s.features, "STARTTLS")
	return pair.CertFile
}

func (s *Server) accept() {
	s.mu.Lock()
	l := s.listener
	s.mu.Unlock()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[c] = true
		s.counts["CONNECT"]++
		s.open++
		s.max = max(s.max, s.open)
		s.mu.Unlock()
		s.wg.Go(func() {
			s.serve(c)
			s.mu.Lock()
			delete(s.conns, c)
			s.open--
			s.mu.Unlock()
			_ = c.Close() // nobody is left to tell
		})
	}
}

// session is one client.
type session struct {
	conn net.Conn
	in   *bufio.Reader
	mail bool
	msg  Message
}

func (s *Server) serve(c net.Conn) {
	ss := &session{conn: c, in: bufio.NewReader(c)}
	if !s.say(ss, "GREETING", "220 smtptest ESMTP", true) {
		return
	}
	for {
		first := ss.in.Buffered() == 0
		line, err := ss.in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb, args, _ := strings.Cut(line, " ")
		verb = strings.ToUpper(verb)
		s.mu.Lock()
		s.log = append(s.log, line)
		s.counts[verb]++
		s.mu.Unlock()
		if !s.say(ss, verb, s.usual(ss, verb, args), first) || verb == "QUIT" {
			return
		}
		if verb == "DATA" && !s.data(ss) {
			return
		}
		if verb == "STARTTLS" && s.encrypts() {
			t := tls.Server(ss.conn, &tls.Config{Certificates: []tls.Certificate{*s.cert}})
			if t.Handshake() != nil {
				return
			}
			ss.conn, ss.in, ss.mail = t, bufio.NewReader(t), false
		}
	}
}

// data reads a message, if any is taken, and reports whether the session goes
// on.
func (s *Server) data(ss *session) bool {
	s.mu.Lock()
	take := s.message
	s.mu.Unlock()
	if take == nil || len(ss.msg.To) == 0 {
		return true
	}
	var b strings.Builder
	for {
		line, err := ss.in.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		b.WriteString(strings.TrimPrefix(line, "."))
	}
	ss.msg.Text = b.String()
	take(ss.msg)
	ss.msg, ss.mail = Message{}, false
	return s.say(ss, "END", "250 2.0.0 Ok: taken", true)
}

func (s *Server) encrypts() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cert != nil && (s.answers["STARTTLS"] == "" || strings.HasPrefix(s.answers["STARTTLS"], "220"))
}

// say writes a reply and reports whether the session goes on. Only the first
// of commands that came together waits.
func (s *Server) say(ss *session, verb, usual string, first bool) bool {
	s.mu.Lock()
	reply, latency, stop := usual, s.latency, s.stop
	if a, ok := s.answers[verb]; ok {
		reply = a
	}
	s.mu.Unlock()
	if latency > 0 && first {
		select {
		case <-time.After(latency):
		case <-stop:
			return false
		}
	}
	switch reply {
	case Drop:
		return false
	case Silence:
		return true
	}
	lines := strings.Split(reply, "\n")
	code := "250"
	if len(lines[0]) >= 3 {
		code = lines[0][:3]
	}
	for i, l := range lines {
		switch {
		case len(lines) == 1:
		case i == len(lines)-1:
			l = code + " " + strings.TrimPrefix(strings.TrimPrefix(l, code+" "), code+"-")
		default:
			l = code + "-" + strings.TrimPrefix(strings.TrimPrefix(l, code+" "), code+"-")
		}
		if _, err := fmt.Fprintf(ss.conn, "%s\r\n", l); err != nil {
			return false
		}
	}
	return true
}

// usual is what a well-behaved server says.
func (s *Server) usual(ss *session, verb, args string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch verb {
	case "EHLO", "LHLO":
		if s.lmtp != (verb == "LHLO") {
			return "500 5.5.1 wrong greeting"
		}
		return "250 smtptest\n" + strings.Join(s.features, "\n")
	case "HELO":
		return "250 smtptest"
	case "STARTTLS":
		if s.cert == nil {
			return "502 5.5.1 not here"
		}
		return "220 2.0.0 go ahead"
	case "MAIL":
		ss.mail, ss.msg = true, Message{From: path(args)}
		if a, ok := s.answers["MAIL"]; ok && !strings.HasPrefix(a, "2") {
			ss.mail = false
		}
		return "250 2.1.0 Ok"
	case "RCPT":
		if !ss.mail {
			return "503 5.5.1 need MAIL first"
		}
		address := strings.ToLower(path(args))
		if f := s.rcpt; f != nil {
			s.mu.Unlock() // it may wait for another session
			r := f(address)
			s.mu.Lock()
			if r != "" {
				return r
			}
		}
		if s.all || s.mailboxes[address] {
			ss.msg.To = append(ss.msg.To, address)
			return "250 2.1.5 Ok"
		}
		return "550 5.1.1 <" + address + ">: Recipient address rejected: User unknown in local recipient table"
	case "DATA":
		if s.message == nil {
			return "502 5.5.1 not here"
		}
		if len(ss.msg.To) == 0 {
			return "554 5.5.1 no valid recipients"
		}
		return "354 go ahead"
	case "RSET":
		ss.mail, ss.msg = false, Message{}
		return "250 2.0.0 Ok"
	case "QUIT":
		return "221 2.0.0 Bye"
	}
	return "502 5.5.2 what?"
}

// path is the address in "FROM:<address> PARAMETERS".
func path(args string) string {
	_, rest, _ := strings.Cut(args, "<")
	address, _, _ := strings.Cut(rest, ">")
	return address
}
