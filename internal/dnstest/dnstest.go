// Package dnstest is a DNS server for tests. It speaks real packets over UDP
// and TCP on loopback, holds records that a test adds, and misbehaves by
// script: it drops, delays, truncates, refuses and lies.
package dnstest

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Lie is a way of answering wrongly.
type Lie string

// The lies.
const (
	LieID       Lie = "id"       // right answer, another message id
	LieQuestion Lie = "question" // answer to a question that was not asked
	LieCase     Lie = "case"     // right answer, question in lower case
	LieName     Lie = "name"     // right question, records of another name
	LieClass    Lie = "class"    // question with another class
	LieQuery    Lie = "query"    // the answer says it is a query
	LieGarbage  Lie = "garbage"  // octets that are no message
	LieBroken   Lie = "broken"   // right header and question, records cut off
	LieOversize Lie = "oversize" // far more octets than were asked for (only UDP)
	LieReferral Lie = "referral" // "ask those servers", as one that does not recurse
)

// Behavior is what the server does with a query instead of answering well.
// The zero value answers well. Fields combine: the query waits for Hold and
// Delay first; then Drop, Raw, RefuseEDNS, Rcode, Lies, Truncate are looked at in
// this order.
type Behavior struct {
	Hold       <-chan struct{} // wait until it is closed
	Delay      time.Duration
	Drop       bool
	Raw        func(query []byte) [][]byte // answer with these packets
	RefuseEDNS bool                        // FORMERR for a query with EDNS
	Bare       bool                        // an error answer is only a header
	Rcode      int                         // dns.RcodeServerFailure, dns.RcodeRefused, ...
	Lies       []Lie                       // sent in this order
	Truth      bool                        // after the lies, the right answer
	Truncate   bool                        // TC and no records over UDP; full over TCP

	UDPOnly bool   // behave well over TCP
	Type    string // only for queries of this type ("A"); all when empty
	Times   int    // only for so many queries, then well; 0 means always
}

// Behaviors that need no more words.
var (
	Drop     = Behavior{Drop: true}
	Truncate = Behavior{Truncate: true}
	ServFail = Behavior{Rcode: dns.RcodeServerFailure}
	Refused  = Behavior{Rcode: dns.RcodeRefused}
)

// Query is one query that arrived.
type Query struct {
	Name     string // lower case, no trailing dot
	SentName string // as it was sent, with trailing dot
	Type     string // "A"
	Net      string // "udp" or "tcp"
	EDNS     bool
	UDPSize  int // what EDNS allows
	ID       uint16
	From     string // address and port it came from
}

type script struct {
	name  string // canonical, with trailing dot
	under bool   // also for every name below
	b     Behavior
	used  int
}

// Server is a DNS server. All methods are safe for concurrent use.
type Server struct {
	tb    testing.TB
	ips   []string
	port  int
	queue sync.Mutex // one Stop or Restart at a time

	mu      sync.Mutex
	records map[string][]dns.RR // by canonical name
	below   map[string]int      // names that have something below them
	scripts []*script
	log     []Query
	keepLog bool
	counts  map[[2]string]int
	servers []*dns.Server
	stop    chan struct{} // closed by Stop
}

// Start runs a server on 127.0.0.1 and the other given addresses (127.0.0.2,
// ...), UDP and TCP, on one port that was free. It ends with the test.
func Start(tb testing.TB, more ...string) *Server {
	tb.Helper()
	s := &Server{
		tb:      tb,
		ips:     append([]string{"127.0.0.1"}, more...),
		records: make(map[string][]dns.RR),
		below:   make(map[string]int),
		counts:  make(map[[2]string]int),
		keepLog: true,
	}
	var err error
	for range 50 {
		if err = s.listen(); err == nil {
			tb.Cleanup(s.Stop)
			return s
		}
		s.port = 0
	}
	tb.Fatalf("dnstest: no port that is free for UDP and TCP: %v", err)
	return nil
}

// Addr returns the first address with its port, "127.0.0.1:12345".
func (s *Server) Addr() string { return s.Addrs()[0] }

// Addrs returns all addresses with the port.
func (s *Server) Addrs() []string {
	out := make([]string, len(s.ips))
	for i, ip := range s.ips {
		out[i] = net.JoinHostPort(ip, fmt.Sprint(s.port))
	}
	return out
}

// Add adds records, one zone-file line each, names complete:
// "2.0.0.127.bl.example. 60 IN A 127.0.0.2". "*.bl.example." covers every name
// below that has no records of its own. A SOA line sets the owner and the
// minimum of negative answers for the names below it; without one they come
// from a SOA of the root with a minimum of 60.
func (s *Server) Add(lines ...string) {
	s.tb.Helper()
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil || rr == nil {
			s.tb.Fatalf("dnstest: record %q: %v", line, err)
		}
		s.mu.Lock()
		name := dns.CanonicalName(rr.Header().Name)
		if len(s.records[name]) == 0 {
			s.addBelow(name, 1)
		}
		s.records[name] = append(s.records[name], rr)
		s.mu.Unlock()
	}
}

// Remove takes all records of a name away.
func (s *Server) Remove(name string) {
	name = dns.CanonicalName(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records[name]) > 0 {
		s.addBelow(name, -1)
	}
	delete(s.records, name)
}

// addBelow counts name for all names above it.
func (s *Server) addBelow(name string, n int) {
	for off, end := dns.NextLabel(name, 0); !end; off, end = dns.NextLabel(name, off) {
		s.below[name[off:]] += n
	}
}

// Behave sets what happens to queries for name.
func (s *Server) Behave(name string, b Behavior) { s.script(name, false, b) }

// BehaveUnder sets what happens to queries for zone and every name below it;
// "." means all. A longer name goes first, then Behave before BehaveUnder,
// then the newer one.
func (s *Server) BehaveUnder(zone string, b Behavior) { s.script(zone, true, b) }

func (s *Server) script(name string, under bool, b Behavior) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts = append(s.scripts, &script{name: dns.CanonicalName(name), under: under, b: b})
}

// BehaveWell forgets every behavior that was set for name or zone.
func (s *Server) BehaveWell(name string) {
	name = dns.CanonicalName(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts = slices.DeleteFunc(s.scripts, func(sc *script) bool { return sc.name == name })
}

// Count returns how many queries of the type ("A"; "" means any) came for name.
func (s *Server) Count(name, qtype string) int {
	name = strings.TrimSuffix(dns.CanonicalName(name), ".")
	s.mu.Lock()
	defer s.mu.Unlock()
	if qtype != "" {
		return s.counts[[2]string{name, qtype}]
	}
	n := 0
	for k, v := range s.counts {
		if k[0] == name {
			n += v
		}
	}
	return n
}

// Total returns how many queries came.
func (s *Server) Total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, v := range s.counts {
		n += v
	}
	return n
}

// Log returns the queries in the order in which they came.
func (s *Server) Log() []Query {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// Reset forgets the log and the counts.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = nil
	clear(s.counts)
}

// KeepLog switches the log and the counts, which grow without bound, on (as
// they are at first) or off, for benchmarks.
func (s *Server) KeepLog(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keepLog = on
}

// Stop closes the sockets: an outage. Queries are then answered by the
// kernel's "port unreachable". It may be called more than once.
func (s *Server) Stop() {
	s.queue.Lock()
	defer s.queue.Unlock()
	s.mu.Lock()
	servers := s.servers
	s.servers = nil
	if s.stop != nil {
		close(s.stop)
		s.stop = nil
	}
	s.mu.Unlock()
	for _, srv := range servers {
		_ = srv.Shutdown() // it can only say that it does not run
	}
}

// Restart opens the sockets again on the same port after [Server.Stop].
func (s *Server) Restart() {
	s.tb.Helper()
	s.queue.Lock()
	defer s.queue.Unlock()
	s.mu.Lock()
	running := s.servers != nil
	s.mu.Unlock()
	if running {
		return
	}
	if err := s.listen(); err != nil {
		s.tb.Fatalf("dnstest: restart: %v", err)
	}
}

// listen opens all sockets, on a new port if s.port is 0, and serves them.
func (s *Server) listen() (err error) {
	var servers []*dns.Server
	defer func() {
		if err != nil {
			for _, srv := range servers {
				err = errors.Join(err, srv.PacketConn.Close(), srv.Listener.Close())
			}
		}
	}()
	for _, ip := range s.ips {
		pc, err := net.ListenPacket("udp", net.JoinHostPort(ip, fmt.Sprint(s.port)))
		if err != nil {
			return err
		}
		if s.port == 0 {
			s.port = pc.LocalAddr().(*net.UDPAddr).Port
		}
		ln, err := net.Listen("tcp", net.JoinHostPort(ip, fmt.Sprint(s.port)))
		if err != nil {
			return errors.Join(err, pc.Close())
		}
		servers = append(servers, &dns.Server{PacketConn: pc, Listener: ln})
	}
	stop := make(chan struct{})
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { s.serve(w, q, stop) })
	var running []*dns.Server
	var started sync.WaitGroup
	for _, srv := range servers {
		// A dns.Server serves one of both; its Shutdown waits for the queries.
		for _, one := range []*dns.Server{{PacketConn: srv.PacketConn, UDPSize: dns.MaxMsgSize}, {Listener: srv.Listener}} {
			one.Handler = handler
			started.Add(1)
			one.NotifyStartedFunc = started.Done
			running = append(running, one)
			go func() { _ = one.ActivateAndServe() }() // ends with Shutdown
		}
	}
	started.Wait()
	s.mu.Lock()
	s.servers, s.stop = running, stop
	s.mu.Unlock()
	return nil
}

// serve handles one query.
func (s *Server) serve(w dns.ResponseWriter, q *dns.Msg, stop <-chan struct{}) {
	if len(q.Question) != 1 {
		m := new(dns.Msg)
		_ = w.WriteMsg(m.SetRcode(q, dns.RcodeFormatError)) // the peer may be gone
		return
	}
	network := w.LocalAddr().Network()
	question := q.Question[0]
	b := s.note(q, network, w.RemoteAddr().String())
	if b.Hold != nil {
		select {
		case <-b.Hold:
		case <-stop:
			return
		}
	}
	if b.Delay > 0 {
		timer := time.NewTimer(b.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-stop:
			return
		}
	}
	packets := s.packets(q, question, b, network)
	for _, p := range packets {
		_, _ = w.Write(p) // the peer may be gone
	}
}

// packets returns what is sent for a query.
func (s *Server) packets(q *dns.Msg, question dns.Question, b Behavior, network string) [][]byte {
	switch {
	case b.Drop:
		return nil
	case b.Raw != nil:
		query, _ := q.Pack() // it was just unpacked
		return b.Raw(query)
	case b.RefuseEDNS && q.IsEdns0() != nil:
		return [][]byte{rcode(q, dns.RcodeFormatError, b.Bare)}
	case b.Rcode != 0:
		return [][]byte{rcode(q, b.Rcode, b.Bare)}
	}
	truth := s.answer(q, question)
	var out [][]byte
	for _, lie := range b.Lies {
		if lie == LieOversize && network == "tcp" {
			continue // there is no such thing
		}
		out = append(out, lie.packet(truth.Copy()))
	}
	if len(b.Lies) > 0 && !b.Truth {
		return out
	}
	if network == "udp" {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		if b.Truncate {
			truth.Truncated, truth.Answer, truth.Ns = true, nil, nil
		} else {
			truth.Truncate(size)
		}
	}
	return append(out, pack(truth))
}

// note writes the log and returns the behavior for the query.
func (s *Server) note(q *dns.Msg, network, from string) Behavior {
	question := q.Question[0]
	entry := Query{
		Name:     strings.TrimSuffix(dns.CanonicalName(question.Name), "."),
		SentName: question.Name,
		Type:     dns.TypeToString[question.Qtype],
		Net:      network,
		ID:       q.Id,
		From:     from,
	}
	if opt := q.IsEdns0(); opt != nil {
		entry.EDNS, entry.UDPSize = true, int(opt.UDPSize())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keepLog {
		s.log = append(s.log, entry)
		s.counts[[2]string{entry.Name, entry.Type}]++
	}
	var best *script
	name := dns.CanonicalName(question.Name)
	for _, sc := range s.scripts {
		if sc.name != name && (!sc.under || !dns.IsSubDomain(sc.name, name)) {
			continue
		}
		if sc.b.Times > 0 && sc.used >= sc.b.Times ||
			sc.b.UDPOnly && network != "udp" ||
			sc.b.Type != "" && sc.b.Type != entry.Type {
			continue
		}
		if best == nil || len(sc.name) > len(best.name) ||
			len(sc.name) == len(best.name) && (best.under || !sc.under) {
			best = sc
		}
	}
	if best == nil {
		return Behavior{}
	}
	best.used++
	return best.b
}

// answer returns the right answer.
func (s *Server) answer(q *dns.Msg, question dns.Question) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(dns.DefaultMsgSize, opt.Do())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := dns.CanonicalName(question.Name)
	for range 16 {
		rrs, exists := s.find(name)
		var next string
		found := false
		for _, rr := range rrs {
			t := rr.Header().Rrtype
			if t != question.Qtype && question.Qtype != dns.TypeANY && t != dns.TypeCNAME {
				continue
			}
			c := dns.Copy(rr)
			c.Header().Name = name
			m.Answer = append(m.Answer, c)
			found = true
			if cname, ok := c.(*dns.CNAME); ok && question.Qtype != dns.TypeCNAME && question.Qtype != dns.TypeANY {
				next = dns.CanonicalName(cname.Target)
			}
		}
		if next != "" {
			name = next
			continue
		}
		if !found {
			if !exists {
				m.Rcode = dns.RcodeNameError
			}
			m.Ns = append(m.Ns, s.soa(name))
		}
		break
	}
	return m
}

// find returns the records of a name, or those of the wildcard above it, and
// whether the name exists.
func (s *Server) find(name string) ([]dns.RR, bool) {
	if rrs := s.records[name]; len(rrs) > 0 {
		return rrs, true
	}
	if s.below[name] > 0 {
		return nil, true
	}
	for off, end := dns.NextLabel(name, 0); !end; off, end = dns.NextLabel(name, off) {
		if rrs := s.records["*."+name[off:]]; len(rrs) > 0 {
			return rrs, true
		}
		if len(s.records[name[off:]]) > 0 || s.below[name[off:]] > 0 {
			break // the closest name that exists (RFC 4592)
		}
	}
	return nil, false
}

// soa returns the SOA of the zone that holds name.
func (s *Server) soa(name string) dns.RR {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		for _, rr := range s.records[name[off:]] {
			if rr.Header().Rrtype == dns.TypeSOA {
				return dns.Copy(rr)
			}
		}
	}
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60},
		Ns:  "ns.test.", Mbox: "root.test.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: 60,
	}
}

// rcode returns an error answer.
func rcode(q *dns.Msg, code int, bare bool) []byte {
	m := new(dns.Msg)
	m.SetRcode(q, code)
	if bare {
		m.Question = nil
	}
	return pack(m)
}

// packet makes the lie out of the true answer.
func (l Lie) packet(m *dns.Msg) []byte {
	switch l {
	case LieID:
		m.Id++
	case LieQuestion:
		m.Question[0].Name = other(m.Question[0].Name)
	case LieCase:
		m.Question[0].Name = dns.CanonicalName(m.Question[0].Name)
	case LieName:
		for _, rr := range m.Answer {
			rr.Header().Name = other(rr.Header().Name)
		}
	case LieClass:
		m.Question[0].Qclass = dns.ClassCHAOS
	case LieQuery:
		m.Response = false
	case LieGarbage:
		return []byte("\xff\x00 this is no message \x00\xff")
	case LieBroken:
		p := pack(m)
		end := 12
		for p[end] != 0 {
			end += int(p[end]) + 1
		}
		copy(p[6:12], []byte{0, 1, 0, 0, 0, 0})
		// A record that promises more octets than there are.
		return append(p[:end+5:end+5], 0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0xff, 0xff, 127)
	case LieOversize:
		for len(m.Extra) < 100 {
			m.Extra = append(m.Extra, &dns.TXT{
				Hdr: dns.RR_Header{Name: "fill.test.", Rrtype: dns.TypeTXT, Class: dns.ClassINET},
				Txt: []string{strings.Repeat("x", 200)},
			})
		}
	case LieReferral:
		m.Rcode, m.Answer, m.Authoritative, m.RecursionAvailable = dns.RcodeSuccess, nil, false, false
		m.Ns = []dns.RR{&dns.NS{
			Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 60},
			Ns:  "ns.test.",
		}}
	}
	return pack(m)
}

// other returns another name, a longer one.
func other(name string) string { return "other." + strings.TrimPrefix(name, ".") }

// pack returns the octets of a message that this package has built.
func pack(m *dns.Msg) []byte {
	m.Compress = true
	p, err := m.Pack()
	if err != nil {
		panic("dnstest: " + err.Error())
	}
	return p
}
