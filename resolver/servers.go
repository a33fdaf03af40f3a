package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/zap"
)

const (
	// unhealthyAfter queries in a row without any answer a server is asked last.
	unhealthyAfter = 3
	// probeEvery is how often an unhealthy server is tried in the background.
	probeEvery = 5 * time.Second
	// lookEvery is how often resolv.conf is looked at.
	lookEvery = 5 * time.Second
	// A socket is given up after so many queries or so long: its port is a
	// part of what an off-path attacker has to guess (RFC 5452).
	socketQueries = 200
	socketAge     = 30 * time.Second
	socketsKept   = 64 // idle ones, of each server
	// noEDNSFor is how long a server that does not know EDNS is spared it.
	noEDNSFor = 10 * time.Minute
)

// serverList is the servers in the order of preference.
type serverList struct {
	log     *zap.Logger
	metrics *metrics
	file    string // resolv.conf; "" when the servers are configured
	current atomic.Pointer[[]*server]

	mu     sync.Mutex
	looked time.Time
	stamp  os.FileInfo
}

func (l *serverList) init(cfg Config, resolvConf string, log *zap.Logger, m *metrics) error {
	l.log, l.metrics = log, m
	var addrs []netip.AddrPort
	for _, s := range cfg.Servers {
		a, err := parseServer(s)
		if err != nil {
			return fmt.Errorf("resolver: %w", err)
		}
		addrs = append(addrs, a)
	}
	if len(cfg.Servers) == 0 {
		l.file = resolvConf
		l.stamp, _ = os.Stat(resolvConf) // without the file the defaults hold
		l.looked = time.Now()
		addrs = readResolvConf(resolvConf)
	}
	l.set(addrs)
	return nil
}

// set makes addrs the servers; what is known of those that stay is kept.
func (l *serverList) set(addrs []netip.AddrPort) {
	old := map[netip.AddrPort]*server{}
	if p := l.current.Load(); p != nil {
		for _, s := range *p {
			old[s.addr] = s
		}
	}
	out := make([]*server, 0, len(addrs))
	for _, a := range addrs {
		s := old[a]
		if s == nil {
			s = &server{addr: a, metrics: l.metrics}
		}
		delete(old, a)
		out = append(out, s)
	}
	l.current.Store(&out)
	for _, s := range old {
		s.close()
	}
}

// list returns the servers, after a look at resolv.conf when it is time.
func (l *serverList) list() []*server {
	if l.file != "" && l.mu.TryLock() {
		if now := time.Now(); now.Sub(l.looked) > lookEvery {
			l.looked = now
			if st, err := os.Stat(l.file); err == nil && (l.stamp == nil || !st.ModTime().Equal(l.stamp.ModTime()) || !os.SameFile(st, l.stamp)) {
				l.stamp = st
				l.set(readResolvConf(l.file))
				l.log.Info("the name servers have changed", zap.String("file", l.file), zap.Int("servers", len(*l.current.Load())))
			}
		}
		l.mu.Unlock()
	}
	return *l.current.Load()
}

func (l *serverList) close() {
	for _, s := range *l.current.Load() {
		s.close()
	}
}

// order returns the servers as they are to be asked: the healthy ones first.
func (l *serverList) order() []*server {
	all := l.list()
	sick := 0
	for _, s := range all {
		if s.failures.Load() >= unhealthyAfter {
			sick++
		}
	}
	if sick == 0 || sick == len(all) {
		return all
	}
	out := make([]*server, 0, len(all))
	for _, healthy := range []bool{true, false} {
		for _, s := range all {
			if (s.failures.Load() < unhealthyAfter) == healthy {
				out = append(out, s)
			}
		}
	}
	return out
}

// readResolvConf returns the servers of resolv.conf(5), at most as many as
// the C library takes; the local host when there are none.
func readResolvConf(path string) []netip.AddrPort {
	const most = 3
	var out []netip.AddrPort
	text, _ := os.ReadFile(path) // without the file the default holds
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(out) == most {
			continue
		}
		if addr, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(addr.Unmap(), 53))
		}
	}
	if len(out) == 0 {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53))
	}
	return out
}

// server is one name server.
type server struct {
	addr    netip.AddrPort
	metrics *metrics

	failures atomic.Int32 // in a row without any answer
	queries  atomic.Uint64
	failed   atomic.Uint64
	rtt      atomic.Int64 // moving mean, ns
	noEDNS   atomic.Int64 // until, Unix ns
	probed   atomic.Int64 // last probe, Unix ns

	mu      sync.Mutex
	lastErr string
	lastAt  time.Time
	idle    []*socket
	closed  bool
}

// socket is a connected UDP socket: the kernel drops what comes from others.
type socket struct {
	net.Conn
	born time.Time
	uses int
}

func (s *server) take(ctx context.Context) (*socket, error) {
	now := time.Now()
	s.mu.Lock()
	for n := len(s.idle); n > 0; n = len(s.idle) {
		c := s.idle[n-1]
		s.idle = s.idle[:n-1]
		if now.Sub(c.born) < socketAge {
			s.mu.Unlock()
			return c, nil
		}
		_ = c.Close() // it was only old
	}
	s.mu.Unlock()
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", s.addr.String())
	if err != nil {
		return nil, err
	}
	return &socket{Conn: c, born: now}, nil
}

// give takes a socket back that has no answer outstanding.
func (s *server) give(c *socket) {
	c.uses++
	s.mu.Lock()
	if s.closed || c.uses >= socketQueries || len(s.idle) >= socketsKept {
		s.mu.Unlock()
		_ = c.Close() // nothing is outstanding
		return
	}
	s.idle = append(s.idle, c)
	s.mu.Unlock()
}

func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.idle {
		_ = c.Close() // nothing is outstanding
	}
	s.idle = nil
}

// answeredIn notes an answer, whatever it said.
func (s *server) answeredIn(took time.Duration) {
	s.failures.Store(0)
	s.metrics.answered(took)
	if mean := s.rtt.Load(); mean == 0 {
		s.rtt.Store(int64(took))
	} else {
		s.rtt.Store(mean + (int64(took)-mean)/8)
	}
}

// fault notes that there was no usable answer; silent, that there was none at all.
func (s *server) fault(kind error, detail string, silent bool) {
	if silent {
		s.failures.Add(1)
	}
	s.failed.Add(1)
	s.metrics.failed(kind)
	s.mu.Lock()
	s.lastErr, s.lastAt = detail, time.Now()
	s.mu.Unlock()
}

func (s *server) status() ServerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ServerStatus{
		Address: s.addr.String(), Healthy: s.failures.Load() < unhealthyAfter, LastError: s.lastErr, LastErrorAt: s.lastAt,
		RTT: time.Duration(s.rtt.Load()), Queries: s.queries.Load(), Failures: s.failed.Load(),
	}
}

// probeSick tries unhealthy servers in the background, each at most once in
// probeEvery: any answer to a question about the root makes it healthy again.
func (r *Resolver) probeSick() {
	for _, s := range r.servers.list() {
		if s.failures.Load() < unhealthyAfter {
			continue
		}
		now, last := time.Now().UnixNano(), s.probed.Load()
		if now-last < int64(probeEvery) || !s.probed.CompareAndSwap(last, now) {
			continue
		}
		r.flights.mu.Lock()
		if !r.flights.closed {
			r.wg.Go(func() { _, _ = s.ask(r.ctx, key{"", dns.TypeNS}, r.cfg.Timeout.D()) }) // what it finds is noted
		}
		r.flights.mu.Unlock()
	}
}

var errMalformed = errors.New("malformed answer")
