package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	ednsSize  = 1232 // fits into every path without fragments (DNS flag day 2020)
	maxUDP    = 4096 // more than we allow; what is longer is cut and thrown away
	maxCNAMEs = 16   // in one answer
)

// resolve asks the servers, as often as the configuration allows, and returns
// the answer or a failure.
func (r *Resolver) resolve(ctx context.Context, k key) *answer {
	r.probeSick()
	servers := r.servers.order()
	last := &failure{name: k.name, qtype: k.qtype, kind: ErrUnreachable, detail: "no server"}
	for i := range max(r.cfg.Attempts, len(servers)) {
		if ctx.Err() != nil {
			return &answer{err: &failure{name: k.name, qtype: k.qtype, kind: ErrClosed}}
		}
		s := servers[i%len(servers)]
		m, err := s.ask(ctx, k, r.cfg.Timeout.D())
		if err == nil {
			var a *answer
			if a, err = r.read(m, k); err == nil {
				return a
			}
			s.fault(ErrServFail, err.Error(), false)
			err = &failure{kind: ErrServFail, detail: err.Error()}
		}
		f := &failure{kind: ErrUnreachable, detail: err.Error()}
		errors.As(err, &f)
		last = &failure{name: k.name, qtype: k.qtype, kind: f.kind, detail: s.addr.String() + ": " + f.detail}
	}
	until := time.Now().Add(r.cfg.ServFailTTL.D())
	return &answer{err: last, expires: until, keep: until}
}

// ask sends one query to the server and returns a message that answers it:
// NOERROR or NXDOMAIN. Errors are failures of kind and detail.
func (s *server) ask(ctx context.Context, k key, timeout time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	edns := time.Now().UnixNano() > s.noEDNS.Load()
	m, err := s.exchange(ctx, k, edns)
	if err == nil && edns && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented || m.Rcode == dns.RcodeBadVers) {
		// RFC 6891 section 7: the server may not know EDNS.
		if m, err = s.exchange(ctx, k, false); err == nil && (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError) {
			s.noEDNS.Store(time.Now().Add(noEDNSFor).UnixNano())
		}
	}
	if err != nil {
		f := s.classify(ctx, err)
		s.fault(f.kind, f.detail, f.kind != ErrServFail)
		return nil, f
	}
	switch m.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
		return m, nil
	case dns.RcodeRefused:
		s.fault(ErrRefused, "REFUSED", false)
		return nil, &failure{kind: ErrRefused, detail: "REFUSED"}
	}
	word := dns.RcodeToString[m.Rcode]
	s.fault(ErrServFail, word, false)
	return nil, &failure{kind: ErrServFail, detail: word}
}

// classify says what kind of failure an error of the network is.
func (s *server) classify(ctx context.Context, err error) *failure {
	var ne net.Error
	switch {
	case errors.Is(err, errMalformed):
		return &failure{kind: ErrServFail, detail: err.Error()}
	case errors.Is(ctx.Err(), context.Canceled):
		return &failure{kind: ErrClosed}
	case errors.As(err, &ne) && ne.Timeout(), ctx.Err() != nil:
		return &failure{kind: ErrTimeout, detail: "no answer in time"}
	}
	return &failure{kind: ErrUnreachable, detail: err.Error()}
}

// exchange asks over UDP, and over TCP when the answer did not fit.
func (s *server) exchange(ctx context.Context, k key, edns bool) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(k.name), k.qtype)
	if edns {
		q.SetEdns0(ednsSize, false)
	}
	wire, err := q.Pack()
	if err != nil {
		return nil, err
	}
	s.queries.Add(1)
	s.metrics.udp.Inc()
	start := time.Now()
	m, err := s.udp(ctx, q, wire)
	if err != nil {
		return nil, err
	}
	s.answeredIn(time.Since(start))
	if !m.Truncated {
		return m, nil
	}
	s.metrics.tcp.Inc()
	return s.tcp(ctx, q, wire)
}

var packets = sync.Pool{New: func() any { b := make([]byte, maxUDP); return &b }}

// udp sends the query and waits for what answers it. What does not is
// counted and passed over: the right answer may be behind it.
func (s *server) udp(ctx context.Context, q *dns.Msg, wire []byte) (*dns.Msg, error) {
	c, err := s.take(ctx)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // the resolver is closing
	buf := packets.Get().(*[]byte)
	defer packets.Put(buf)
	var m *dns.Msg
	if err = c.SetDeadline(deadline); err == nil {
		if _, err = c.Write(wire); err == nil {
			m, err = s.await(c, q, *buf)
		}
	}
	if !stop() || err != nil {
		// An answer may still come, and would meet the next query.
		_ = c.Close() // err is what matters
		return m, err
	}
	s.give(c)
	return m, nil
}

func (s *server) await(c net.Conn, q *dns.Msg, buf []byte) (*dns.Msg, error) {
	strange := false
	for {
		n, err := c.Read(buf)
		if err != nil {
			var ne net.Error
			if strange && errors.As(err, &ne) && ne.Timeout() {
				return nil, errMalformed
			}
			return nil, err
		}
		if m, ok := parse(buf[:n], q); ok {
			return m, nil
		}
		strange = true
		s.metrics.malformed.Inc()
	}
}

// parse reads a message and reports whether it answers q.
func parse(wire []byte, q *dns.Msg) (*dns.Msg, bool) {
	if len(wire) < 12 || binary.BigEndian.Uint16(wire) != q.Id || wire[2]&0x80 == 0 || wire[2]&0x78 != 0 {
		return nil, false // too short, another id, a query, another opcode
	}
	m := new(dns.Msg)
	err := m.Unpack(wire)
	truncated := wire[2]&0x02 != 0
	if err != nil && !truncated {
		return nil, false
	}
	m.Truncated = truncated
	if len(m.Question) == 0 {
		// An error may come as a bare header.
		return m, err == nil && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
	}
	a, b := m.Question[0], q.Question[0]
	return m, len(m.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

// tcp asks over a connection of its own (RFC 7766).
func (s *server) tcp(ctx context.Context, q *dns.Msg, wire []byte) (*dns.Msg, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", s.addr.String())
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // the answer is read
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })() // the resolver is closing
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(wire)), uint16(len(wire)))
	if _, err := c.Write(append(framed, wire...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, buf); err != nil {
		return nil, err
	}
	m, ok := parse(buf, q)
	if !ok || m.Truncated {
		s.metrics.malformed.Inc()
		return nil, errMalformed
	}
	return m, nil
}

// read takes out of a message what was asked for, following aliases.
func (r *Resolver) read(m *dns.Msg, k key) (*answer, error) {
	a := &answer{}
	ttl := ^uint32(0)
	name, found, aliases := dns.Fqdn(k.name), false, 0
	for ; aliases <= maxCNAMEs; aliases++ {
		alias := ""
		for _, rr := range m.Answer {
			h := rr.Header()
			if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, name) {
				continue
			}
			if h.Rrtype == k.qtype {
				found = a.add(rr) || found
				ttl = min(ttl, sane(h.Ttl))
			} else if c, ok := rr.(*dns.CNAME); ok && alias == "" {
				alias = c.Target
				ttl = min(ttl, sane(h.Ttl))
			}
		}
		if found || alias == "" {
			break
		}
		name = alias
	}
	if aliases > maxCNAMEs {
		return nil, errors.New("too many aliases, or a loop of them")
	}
	now := time.Now()
	if found {
		slices.SortStableFunc(a.mx, func(x, y MX) int { return int(x.Pref) - int(y.Pref) })
		life := min(max(time.Duration(ttl)*time.Second, r.cfg.MinTTL.D()), r.cfg.MaxTTL.D())
		a.expires = now.Add(life)
		a.keep = a.expires.Add(r.cfg.StaleFor.D())
		return a, nil
	}
	life, soa := r.negative(m)
	switch {
	case soa || m.Rcode == dns.RcodeNameError:
	case len(m.Answer) > 0 && aliases == 0:
		return nil, errors.New("an answer about other names")
	case !m.RecursionAvailable && !m.Authoritative && slices.ContainsFunc(m.Ns, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeNS }):
		return nil, errors.New("the server does not recurse")
	}
	a.expires = now.Add(life)
	a.keep = a.expires.Add(r.cfg.StaleFor.D())
	return a, nil
}

// negative is how long a "does not exist" holds (RFC 2308 section 5), and
// whether the answer says so.
func (r *Resolver) negative(m *dns.Msg) (life time.Duration, soa bool) {
	for _, rr := range m.Ns {
		if s, ok := rr.(*dns.SOA); ok {
			ttl := time.Duration(min(sane(s.Hdr.Ttl), sane(s.Minttl))) * time.Second
			return min(max(ttl, r.cfg.MinTTL.D()), r.cfg.NegativeTTL.D()), true
		}
	}
	return min(r.cfg.MinTTL.D(), r.cfg.NegativeTTL.D()), false
}

// sane is a TTL as RFC 2181 section 8 reads it.
func sane(ttl uint32) uint32 {
	if ttl > 1<<31-1 {
		return 0
	}
	return ttl
}

// add takes the data of a record, and reports whether it could be used.
func (a *answer) add(rr dns.RR) bool {
	switch rr := rr.(type) {
	case *dns.A:
		addr, ok := netip.AddrFromSlice(rr.A.To4())
		if ok {
			a.addrs = append(a.addrs, addr)
		}
		return ok
	case *dns.AAAA:
		addr, ok := netip.AddrFromSlice(rr.AAAA.To16())
		if ok {
			a.addrs = append(a.addrs, addr)
		}
		return ok
	case *dns.TXT:
		var b strings.Builder
		for _, s := range rr.Txt {
			octets(&b, s)
		}
		a.texts = append(a.texts, b.String())
		return true
	case *dns.PTR:
		a.texts = append(a.texts, hostText(rr.Ptr))
		return true
	case *dns.MX:
		a.mx = append(a.mx, MX{rr.Preference, hostText(rr.Mx)})
		return true
	}
	return false
}
