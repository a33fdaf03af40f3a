package resolver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/zap"
)

const (
	// downAfter is after how many queries in a row without any answer a
	// server is asked last.
	downAfter = 3
	// firstProbe and lastProbe are the times between two attempts to reach
	// such a server; they double.
	firstProbe = 2 * time.Second
	lastProbe  = time.Minute
	// plainFor is how long a server that does not understand EDNS is asked
	// without it.
	plainFor = 15 * time.Minute
	// rereadEvery is how often resolv.conf is looked at, at most.
	rereadEvery = 5 * time.Second
)

// server is one name server: its sockets and what is known of it.
type server struct {
	addr    netip.AddrPort
	text    string // addr
	timeout time.Duration
	log     *zap.Logger
	metrics *metrics
	pools   [transportCount]pool
	probe   func(*server) // called some time after the server went down
	first   time.Duration // until the first probe

	mu         sync.Mutex
	closed     bool
	down       bool
	silent     int // queries in a row without any answer
	lastError  string
	lastErrAt  time.Time
	rtt        time.Duration
	queries    uint64
	failures   uint64
	plainUntil time.Time
	probeAfter time.Duration // the next wait
	timer      *time.Timer   // of the next probe
}

func (s *server) healthy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.down
}

func (s *server) status() ServerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ServerStatus{
		Address: s.text, Healthy: !s.down, LastError: s.lastError, LastErrorAt: s.lastErrAt,
		RTT: s.rtt, Queries: s.queries, Failures: s.failures,
	}
}

// ask is one try of one server: without EDNS if it must be, and over TCP if
// the answer does not fit or cannot be trusted. detail says what went wrong.
func (s *server) ask(ctx context.Context, q *query) (a *answer, res result, detail string) {
	edns := s.useEDNS()
	a, res, detail = s.send(ctx, q, overUDP, edns)
	if res == resFormErr && edns {
		edns = false
		a, res, detail = s.send(ctx, q, overUDP, edns)
		if res != resFormErr && res.answered() {
			s.avoidEDNS()
		}
	}
	if res == resTruncated || res == resForged {
		a, res, detail = s.send(ctx, q, overTCP, edns)
	}
	return a, res, detail
}

// answered reports whether the server said anything at all.
func (r result) answered() bool {
	switch r {
	case resTimeout, resUnreachable, resForged:
		return false
	case resAnswer, resNegative, resTruncated, resFormErr, resServFail, resRefused, resBad:
	}
	return true
}

// send sends one query and notes what came of it.
func (s *server) send(ctx context.Context, q *query, t transport, edns bool) (a *answer, res result, detail string) {
	start := time.Now()
	deadline := start.Add(s.timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	resp, unwanted, err := s.pools[t].exchange(ctx, deadline, q, edns)
	took := time.Since(start)
	s.metrics.unwanted.Add(float64(unwanted))
	if err != nil {
		if ctx.Err() != nil { // we gave up, the server did not
			return nil, resTimeout, s.text + ": given up"
		}
		res = classify(err)
		detail = shortText(err)
	} else {
		s.metrics.seconds.Observe(took.Seconds())
		if a, res = parse(resp, q.key); a == nil {
			detail = res.String()
		}
	}
	s.metrics.queries[t][res].Inc()
	if detail != "" {
		detail = s.text + " over " + t.String() + ": " + detail
	}
	s.note(res, err, detail, took)
	return a, res, detail
}

// note keeps the state of the server.
func (s *server) note(res result, err error, detail string, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries++
	if res.kind() != nil && res != resTruncated {
		s.failures++
		s.lastError, s.lastErrAt = detail, time.Now()
	}
	if res.answered() {
		s.silent = 0
		if s.rtt == 0 {
			s.rtt = took
		}
		s.rtt += (took - s.rtt) / 8
		if s.down {
			s.down, s.probeAfter = false, 0
			s.stopTimer()
			s.log.Info("name server answers again", zap.String("server", s.text))
		}
		return
	}
	if res != resForged && !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
		s.silent++ // else it is not the server's fault
	}
	if s.silent >= downAfter && !s.down {
		s.down, s.probeAfter = true, s.first
		s.log.Warn("name server does not answer and is asked last", zap.String("server", s.text), zap.String("error", detail))
	}
	s.schedule()
}

// schedule sets the time of the next probe. s.mu is held.
func (s *server) schedule() {
	if !s.down || s.closed || s.timer != nil {
		return
	}
	s.timer = time.AfterFunc(s.probeAfter, func() {
		s.mu.Lock()
		s.timer = nil
		s.probeAfter = min(2*s.probeAfter, lastProbe)
		s.mu.Unlock()
		s.probe(s)
	})
}

func (s *server) stopTimer() {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

func (s *server) useEDNS() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plainUntil.IsZero() || time.Now().After(s.plainUntil)
}

func (s *server) avoidEDNS() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plainUntil = time.Now().Add(plainFor)
	s.log.Info("name server does not understand EDNS", zap.String("server", s.text))
}

func (s *server) close() {
	s.mu.Lock()
	s.closed = true
	s.stopTimer()
	s.mu.Unlock()
	for i := range s.pools {
		s.pools[i].close()
	}
}

// rootQuery is what an unhealthy server is probed with: every recursive server
// knows the answer.
var rootQuery = func() *query {
	q, err := newQuery(key{"", dns.TypeNS})
	if err != nil {
		panic(err) // a fault in this file
	}
	return q
}()

// serverList is the list of servers, in the order of preference.
type serverList struct {
	file    string        // resolv.conf; "" when the configuration names the servers
	every   time.Duration // between two looks at file
	first   time.Duration // see server
	timeout time.Duration
	log     *zap.Logger
	metrics *metrics
	probe   func(*server)

	current atomic.Pointer[[]*server]

	reread  sync.Mutex // only ever tried: nobody waits for the file
	checked time.Time
	info    fs.FileInfo // nil when there is no file
	problem string      // the last one that was logged
	closed  bool
}

// init reads the list. It sends nothing.
func (l *serverList) init(cfg Config, resolvConf string, log *zap.Logger, m *metrics, probe func(*server)) error {
	l.every, l.first, l.timeout, l.log, l.metrics, l.probe = rereadEvery, firstProbe, cfg.Timeout.D(), log, m, probe
	if len(cfg.Servers) > 0 {
		addrs := make([]netip.AddrPort, 0, len(cfg.Servers))
		for _, text := range cfg.Servers {
			addr, err := parseServer(text)
			if err != nil {
				return fmt.Errorf("resolver: servers: %w", err)
			}
			addrs = append(addrs, addr)
		}
		l.set(addrs)
		return nil
	}
	l.file = resolvConf
	addrs, info, err := l.read()
	if err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	l.checked, l.info = time.Now(), info
	if len(addrs) == 0 {
		addrs = localServer
	}
	l.set(addrs)
	return nil
}

// localServer is asked when resolv.conf names none (resolv.conf(5)).
var localServer = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}

// read reads resolv.conf. A file that is not there names no server.
func (l *serverList) read() ([]netip.AddrPort, fs.FileInfo, error) {
	info, err := os.Stat(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	data, err := os.ReadFile(l.file)
	if err != nil {
		return nil, nil, err
	}
	addrs, faults := parseResolvConf(data)
	for _, f := range faults {
		l.log.Warn("line of resolv.conf left out", zap.String("file", l.file), zap.Error(f))
	}
	return addrs, info, nil
}

// parseResolvConf returns the name servers of a resolv.conf(5) file. Its
// options are for the C library; ours are in the configuration. Search domains
// are not used: names in mail are complete.
func parseResolvConf(data []byte) (addrs []netip.AddrPort, faults []error) {
	scanner := bufio.NewScanner(bytes.NewReader(data))
	for line := 1; scanner.Scan(); line++ {
		fields := strings.Fields(scanner.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		ip, err := netip.ParseAddr(fields[1])
		if err != nil {
			faults = append(faults, fmt.Errorf("line %d: %q is not an address", line, fields[1]))
			continue
		}
		addr, err := checkServer(fields[1], netip.AddrPortFrom(ip, 53))
		if err != nil {
			faults = append(faults, fmt.Errorf("line %d: %w", line, err))
			continue
		}
		if len(addrs) < maxServers && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	if err := scanner.Err(); err != nil {
		faults = append(faults, err)
	}
	return addrs, faults
}

// set makes addrs the list. What is known of a server stays.
func (l *serverList) set(addrs []netip.AddrPort) {
	old := l.list()
	servers := make([]*server, 0, len(addrs))
	for _, addr := range addrs {
		if i := slices.IndexFunc(old, func(s *server) bool { return s.addr == addr }); i >= 0 {
			servers = append(servers, old[i])
			continue
		}
		s := &server{
			addr: addr, text: addr.String(), timeout: l.timeout, first: l.first,
			log: l.log, metrics: l.metrics, probe: l.probe,
		}
		for t := range s.pools {
			s.pools[t].transport, s.pools[t].addr = transport(t), addr
		}
		servers = append(servers, s)
	}
	l.current.Store(&servers)
	for _, s := range old {
		if !slices.Contains(servers, s) {
			s.close()
		}
	}
}

// list returns the servers in the order of preference. It must not be changed.
func (l *serverList) list() []*server {
	if p := l.current.Load(); p != nil {
		return *p
	}
	return nil
}

// order returns the servers in the order in which they are asked now: those
// that do not answer go last.
func (l *serverList) order() []*server {
	l.refresh()
	servers := l.list()
	up := make([]*server, 0, len(servers))
	var down []*server
	for _, s := range servers {
		if s.healthy() {
			up = append(up, s)
		} else {
			down = append(down, s)
		}
	}
	return append(up, down...)
}

// refresh reads resolv.conf again if it is another one than before.
func (l *serverList) refresh() {
	if l.file == "" || !l.reread.TryLock() {
		return
	}
	defer l.reread.Unlock()
	now := time.Now()
	if l.closed || now.Sub(l.checked) < l.every {
		return
	}
	l.checked = now
	info, err := os.Stat(l.file)
	if l.info == nil && errors.Is(err, fs.ErrNotExist) {
		return // there has never been one
	}
	if err == nil && l.info != nil && os.SameFile(info, l.info) && info.ModTime().Equal(l.info.ModTime()) && info.Size() == l.info.Size() {
		return
	}
	problem := ""
	var addrs []netip.AddrPort
	if err == nil {
		addrs, info, err = l.read()
	}
	switch {
	case err != nil:
		problem = err.Error()
	case len(addrs) == 0:
		problem = "it names no server" // half written, more often than not
	}
	if problem != "" {
		if problem != l.problem {
			l.log.Warn("name servers stay as they are", zap.String("file", l.file), zap.String("problem", problem))
		}
		l.problem = problem
		return
	}
	l.info, l.problem = info, ""
	before := l.list()
	l.set(addrs)
	if slices.Equal(before, l.list()) {
		return
	}
	names := make([]string, len(addrs))
	for i, a := range addrs {
		names[i] = a.String()
	}
	l.log.Info("name servers changed", zap.String("file", l.file), zap.Strings("servers", names))
}

func (l *serverList) close() {
	l.reread.Lock()
	defer l.reread.Unlock()
	l.closed = true
	for _, s := range l.list() {
		s.close()
	}
}
