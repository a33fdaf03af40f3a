// Package callout asks an SMTP or LMTP server whether it takes mail for an
// address, by a transaction that ends before DATA (RFC 5321, RFC 2033), and
// says what the answer means.
//
// It is gentle: few connections a next hop, used again for some addresses,
// a rate, a pause for one that is down or refuses us. See [Prober].
package callout

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/policy"
)

// Resolver is the DNS that a Prober needs. Errors are *net.DNSError, as those
// of [net.Resolver]; a null MX has the host ".".
type Resolver interface {
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error)
}

// Probe is one question.
type Probe struct {
	Hops    []Hop // in order of preference
	Address policy.Address
	Options *Options
	// Gentle gives up at once when there is no free connection: for refreshes
	// that can wait.
	Gentle bool
	// Force asks even a next hop that is left alone.
	Force bool
	// Dialogue, when not nil, takes down what is said.
	Dialogue *Dialogue
}

// Result is what came of a Probe.
type Result struct {
	Class Class
	Stage Stage
	Hop   string // the next hop that was asked last
	Host  string // and its host, "mail.example.org [192.0.2.1]:25"
	Reply Reply  // zero when there was none
	Err   error  // why there was none
	// Limited is set when nobody was asked: limits, or a next hop that is left alone.
	Limited bool
	Took    time.Duration
}

// Text is the answer in one printable line.
func (r *Result) Text() string {
	switch {
	case r.Reply.Code != 0:
		return r.Reply.String()
	case r.Err != nil:
		return policy.Printable(r.Err.Error())
	}
	return ""
}

// maxAddresses is how many addresses of a next hop are tried
// (smtp_mx_address_limit of postconf(5)).
const maxAddresses = 5

// target is one address to connect to.
type target struct {
	network, address string // for net.Dialer
	name             string // of the certificate
}

// label names the target in results.
func (t target) label() string {
	if t.network == "unix" || t.name == "" || strings.HasPrefix(t.address, t.name) {
		return t.address
	}
	return t.name + " " + t.address
}

// Errors of routing, which stop at their hop.
var (
	errNullMX     = errors.New("the domain takes no mail: null MX (RFC 7505)")
	errNoAddress  = errors.New("no host of the next hop has an address")
	errOwnAddress = errors.New("the next hop leads back to this host")
)

// resolve finds the addresses of a hop, preferred ones first. A null MX is a
// failure with reply 556.
func (p *Prober) resolve(ctx context.Context, h Hop) ([]target, *failure) {
	fail := func(err error) ([]target, *failure) { return nil, &failure{stage: StageRoute, err: err} }
	switch {
	case h.Path != "":
		return []target{{network: "unix", address: h.Path}}, nil
	case h.Addr.IsValid():
		return []target{{network: "tcp", address: netip.AddrPortFrom(h.Addr, h.Port).String(), name: h.Addr.String()}}, nil
	}
	hosts := []*net.MX{{Host: h.Host}}
	if h.MX {
		mx, err := p.dns.LookupMX(ctx, h.Host)
		switch {
		case err == nil && len(mx) > 0:
			hosts = mx
		case err != nil && !notFound(err):
			return fail(fmt.Errorf("MX of %s: %w", h.Host, err))
		}
		if len(hosts) == 1 && (hosts[0].Host == "." || hosts[0].Host == "") {
			return fail(errNullMX)
		}
	}
	hosts = slices.Clone(hosts)
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	slices.SortStableFunc(hosts, func(a, b *net.MX) int { return int(a.Pref) - int(b.Pref) })

	var out []target
	var last error
	own := p.ownAddresses()
	limit := 1 << 17 // the preference of this host, where it is an exchanger
	prefs := make(map[string]int, len(hosts))
	for _, mx := range hosts {
		name := strings.ToLower(strings.TrimSuffix(mx.Host, "."))
		if int(mx.Pref) >= limit {
			break
		}
		addrs, err := p.dns.LookupIPAddr(ctx, name)
		if err != nil {
			last = fmt.Errorf("address of %s: %w", name, err)
			continue
		}
		var found []target
		for _, ip := range addrs {
			a, ok := netip.AddrFromSlice(ip.IP)
			if a = a.Unmap(); !ok {
				continue
			}
			if h.MX && h.Port == smtpPort && (own[a] || thisHost(a)) { // another port is another server
				limit = int(mx.Pref)
			}
			found = append(found, target{network: "tcp", address: netip.AddrPortFrom(a, h.Port).String(), name: name})
		}
		prefs[name] = int(mx.Pref)
		rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
		out = append(out, interleave(found)...)
	}
	// Where this host is an exchanger, it and those that are no better are not
	// the way to the mailbox (RFC 5321 section 5.1).
	if before := len(out); limit < 1<<17 {
		out = slices.DeleteFunc(out, func(t target) bool { return prefs[t.name] >= limit })
		if len(out) < before {
			last = fmt.Errorf("%w: it is an MX of %s", errOwnAddress, h.Host)
		}
	}
	if len(out) == 0 {
		if last == nil {
			last = errNoAddress
		}
		return fail(last)
	}
	return out[:min(len(out), maxAddresses)], nil
}

// interleave takes IPv6 and IPv4 in turn, so that a family without a way out
// does not use up all attempts.
func interleave(ts []target) []target {
	var six, four []target
	for _, t := range ts {
		if strings.HasPrefix(t.address, "[") {
			six = append(six, t)
		} else {
			four = append(four, t)
		}
	}
	out := ts[:0:0]
	for i := 0; i < len(six) || i < len(four); i++ {
		if i < len(six) {
			out = append(out, six[i])
		}
		if i < len(four) {
			out = append(out, four[i])
		}
	}
	return out
}

func notFound(err error) bool {
	d := (*net.DNSError)(nil)
	return errors.As(err, &d) && d.IsNotFound
}

// ownAddresses are those of the interfaces and of the configuration.
func (p *Prober) ownAddresses() map[netip.Addr]bool {
	own := make(map[netip.Addr]bool, len(p.cfg.OwnAddresses)+8)
	for _, a := range p.cfg.OwnAddresses {
		own[a.Unmap()] = true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		p.log.Warn("this host's addresses are not known; list them in verify.callout.own_addresses", zap.Error(err))
		return own
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own[ip.Unmap().WithZone("")] = true
			}
		}
	}
	return own
}

// Ask makes a probe. It blocks until there is an answer, ctx is done, or the
// configured time is over. It is safe for concurrent use.
func (p *Prober) Ask(ctx context.Context, q *Probe) Result {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout.D())
	defer cancel()
	start := time.Now()
	var res Result
	for _, h := range q.Hops {
		res = p.askHop(ctx, q, h)
		if res.Class != Down {
			break // the first host that gives an answer decides
		}
	}
	res.Took = time.Since(start)
	p.metrics.observe(&res)
	return res
}

func (p *Prober) askHop(ctx context.Context, q *Probe, h Hop) Result {
	res := Result{Class: Down, Hop: h.String(), Limited: true}
	hop := p.hop(h)
	if !q.Force {
		if why := hop.leftAlone(time.Now()); why != nil {
			res.Err = why
			if errors.Is(why, errRefusedPause) {
				res.Class = Refused
			}
			return res
		}
	}
	// Who has waited for half of the time still has enough to be answered: a
	// long queue must not make a next hop look slow.
	wait, cancel := context.WithTimeout(ctx, p.cfg.Timeout.D()/2)
	release, err := hop.acquire(wait, p, q.Gentle)
	cancel()
	if err != nil {
		res.Err = err
		if errors.Is(err, ErrBusy) {
			res.Class = Temporary
		}
		return res
	}
	res.Limited = false
	began := time.Now()
	c, fail := p.exchange(ctx, q, hop, &res)
	p.putBack(hop, c, release)
	if fail != nil {
		res.Stage, res.Reply, res.Err, res.Class = fail.stage, fail.reply, fail.err, fail.class()
		// Only the domain itself can say that it takes no mail; of a relay named
		// by the operator it is a mistake.
		if errors.Is(fail.err, errNullMX) && h.Host == q.Address.Domain {
			res.Class = Unknown
		}
		// The deadline of who waits says nothing about the next hop, nor do the
		// few seconds that others before it have left.
		if errors.Is(ctx.Err(), context.Canceled) || ctx.Err() != nil && time.Since(began) < p.cfg.Timeout.D()/3 {
			return res
		}
	}
	hop.note(p, &res, began)
	return res
}

// exchange asks over a connection that is there, or over new ones. It returns
// the one that is open now, nil for none.
func (p *Prober) exchange(ctx context.Context, q *Probe, hop *hop, res *Result) (*connection, *failure) {
	c, surplus := p.idleOf(hop, q.Options)
	for _, s := range surplus {
		go s.close() // bounded by quitTimeout
	}
	if c != nil {
		c.dialogue = q.Dialogue
		q.Dialogue.add("-- ", "connection used again: "+c.label)
		res.Host = c.label
		fail := p.transaction(ctx, q, hop, c, res)
		if fail == nil || fail.reply.Code != 0 && fail.reply.Code != 421 || ctx.Err() != nil {
			return c, fail
		}
		c.close() // it had been left by the other side: once more, on a new one
	}
	targets, fail := p.resolve(ctx, hop.Hop)
	if fail != nil {
		return nil, fail
	}
	for i, t := range targets {
		if ctx.Err() != nil {
			break
		}
		res.Host = t.label()
		var c *connection
		if c, fail = p.connect(ctx, q, hop, t); fail == nil {
			fail = p.transaction(ctx, q, hop, c, res)
		}
		if fail == nil || fail.class() != Down || errors.Is(fail.err, errLoop) || i == len(targets)-1 {
			return c, fail
		}
		if c != nil {
			c.close()
		}
	}
	if fail == nil {
		fail = &failure{stage: StageRoute, err: errTimeout}
	}
	return nil, fail
}

// connect opens a connection and says hello, with TLS as asked for.
func (p *Prober) connect(ctx context.Context, q *Probe, hop *hop, t target) (*connection, *failure) {
	s, fail := p.dial(ctx, q, hop, t)
	if fail != nil {
		return nil, fail
	}
	o := q.Options
	switch {
	case o.Level == TLSNone, t.network == "unix":
	case s.offers("STARTTLS"):
		fail = s.startTLS(ctx, o.tlsConfig(t.name), p.helo)
		if fail == nil {
			break
		}
		if o.Level != TLSMay || ctx.Err() != nil {
			s.close()
			return nil, fail
		}
		// As Postfix does at this level: a server whose TLS does not work is
		// asked in plain text. A mere "not now" leaves the connection usable.
		if fail.stage == StageTLS && fail.reply.Code != 0 && !s.broken {
			break
		}
		s.close()
		q.Dialogue.add("-- ", "once more, without TLS")
		if s, fail = p.dial(ctx, q, hop, t); fail != nil {
			return nil, fail
		}
	case o.Level != TLSMay:
		s.close()
		return nil, &failure{stage: StageTLS, err: errors.New("STARTTLS is not offered")}
	}
	return &connection{session: s, options: o, label: t.label()}, nil
}

func (p *Prober) dial(ctx context.Context, q *Probe, hop *hop, t target) (*session, *failure) {
	q.Dialogue.add("-- ", "connecting to "+t.label())
	conn, err := p.dialer(t).DialContext(ctx, t.network, t.address)
	if err != nil {
		q.Dialogue.add("-- ", plain(err).Error())
		return nil, &failure{stage: StageConnect, err: plain(err)}
	}
	s := newSession(conn, hop.LMTP, p.cfg.ReplyTimeout.D(), q.Dialogue)
	fail := s.greet(ctx, p.cfg.ReplyTimeout.D(), p.helo)
	if fail == nil {
		fail = s.hello(ctx, p.helo)
	}
	if fail != nil {
		s.close()
		return nil, fail
	}
	return s, nil
}

func (p *Prober) dialer(t target) *net.Dialer {
	d := &net.Dialer{Timeout: p.cfg.ConnectTimeout.D()}
	bind := p.cfg.BindIPv4
	if strings.HasPrefix(t.address, "[") {
		bind = p.cfg.BindIPv6
	}
	if a, err := netip.ParseAddr(bind); err == nil && t.network == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0))
	}
	return d
}

// transaction asks about the address and, where it is not known, whether the
// next hop takes every address of its domain.
func (p *Prober) transaction(ctx context.Context, q *Probe, hop *hop, c *connection, res *Result) *failure {
	address := quote(q.Address)
	utf8 := !ascii(address)
	if utf8 && !c.offers("SMTPUTF8") {
		res.Class, res.Stage, res.Err = Undecided, StageRcpt, errors.New("the address needs SMTPUTF8, which the next hop does not offer")
		return nil
	}
	ask := []string{address}
	all := hop.acceptAll(q.Address.Domain, time.Now())
	test := p.cfg.AcceptAllKeep > 0 && (hop.untested(q.Address.Domain, time.Now()) || q.Force && all != nil && *all)
	if test {
		ask = append(ask, randomLocal()+"@"+q.Address.Domain)
	}
	sender := hop.sender(q.Options)
	params := p.params(c, utf8)
	replies, fail := c.ask(ctx, sender, params, ask...)
	if fail != nil && fail.stage == StageMail && fail.reply.Code/100 == 5 && !c.broken {
		// Some refuse the null sender, some an address they cannot verify.
		other := p.otherForm(q.Options, sender)
		again, second := c.ask(ctx, other, params, ask...)
		if second == nil && p.serves(ctx, c, other, params, q.Address.Domain) {
			replies, fail = again, nil
			hop.preferSender(q.Options, other)
		}
	}
	if utf8 && len(replies) == 0 && fail != nil && fail.stage == StageMail && fail.reply.Code/100 == 5 {
		// It may be about SMTPUTF8, which the recipient has brought along.
		res.Class, res.Stage, res.Reply = Undecided, StageMail, fail.reply
		return nil
	}
	if len(replies) == 0 {
		return fail
	}
	res.Stage, res.Reply = StageRcpt, replies[0]
	res.Class = Classify(StageRcpt, replies[0])
	said := Undecided
	if test && len(replies) > 1 {
		said = Classify(StageRcpt, replies[1])
	}
	switch {
	case said == Known:
		hop.setAcceptAll(p, q.Address.Domain, true)
	case said == Unknown, res.Class == Unknown && all != nil && *all: // who refuses one does not take every address
		hop.setAcceptAll(p, q.Address.Domain, false)
	case test:
		hop.testedInVain(p, q.Address.Domain)
	}
	if all = hop.acceptAll(q.Address.Domain, time.Now()); all != nil && *all && res.Class == Known {
		res.Class = AcceptAll
	}
	return nil
}

// serves reports whether answers to another form of the sender say anything.
// A site that tags its bounce addresses refuses the null sender for every
// mailbox; postmaster must be there (RFC 5321 section 4.5.1).
func (p *Prober) serves(ctx context.Context, c *connection, sender, params, domain string) bool {
	if sender != "" {
		return true
	}
	control, fail := c.ask(ctx, sender, params, "postmaster@"+domain)
	return fail == nil && len(control) == 1 && control[0].positive()
}

// params are the parameters of MAIL.
func (p *Prober) params(c *connection, utf8 bool) string {
	out := ""
	if p.cfg.Size > 0 && c.offers("SIZE") {
		out = " SIZE=" + strconv.Itoa(p.cfg.Size)
	}
	if utf8 {
		out += " SMTPUTF8"
	}
	return out
}

func (p *Prober) otherForm(o *Options, sender string) string {
	switch {
	case sender != "":
		return ""
	case o.Sender != "":
		return o.Sender
	}
	return p.address
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// randomLocal is a local part that no mailbox has: a letter, then letters and
// digits, none that sets an extension apart.
func randomLocal() string {
	const letters, more = "abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, 18)
	b[0] = letters[rand.IntN(len(letters))] //nolint:gosec // it need not be secret, only unused
	for i := 1; i < len(b); i++ {
		b[i] = more[rand.IntN(len(more))] //nolint:gosec // as above
	}
	return string(b)
}
